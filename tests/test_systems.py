"""The scripts that try other systems and other Pythons choose and tell as they say; nothing real is run."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support import PROGRAM, ProgramCase

TOOLS = ("sh", "dirname", "grep", "tail", "head", "id", "mkdir", "rm", "mv", "cp", "awk", "paste", "env")
# A Python that says what it was asked to do. Whether it has no GIL is asked with -c.
FAKE = '[ "$1" = -c ] && exit {refuses}\n[ "$FAST" = 1 ] || exit 1\necho "Ran {ran} tests in 1s"\nexit {code}\n'


class ScriptCase(ProgramCase):
    """A script of tests/ in a copy of its folder, with a PATH that holds little."""

    def setUp(self) -> None:
        super().setUp()
        self.bin = self.root / "bin"
        self.bin.mkdir()
        for name in TOOLS:
            place = shutil.which(name)
            if not place:
                self.skipTest(f"needs {name}")
            (self.bin / name).symlink_to(place)
        for name in ("systems.sh", "matrix.sh"):
            (self.work / "tests").mkdir(exist_ok=True)
            shutil.copy(str(PROGRAM.parent.parent / "tests" / name), str(self.work / "tests" / name))

    def script(self, name: str, **variables: str) -> tuple[int, list[str]]:
        """The exit code of a script and the lines it printed."""
        child = subprocess.run([str(self.bin / "sh"), f"tests/{name}.sh"], cwd=str(self.work), encoding="utf-8",
                               env={"PATH": str(self.bin), "HOME": str(self.home), **variables},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        return child.returncode, child.stdout.splitlines()


class OtherSystemsTest(ScriptCase):
    """What cannot be tried is skipped with the reason; what fails there is a failure."""

    def setUp(self) -> None:
        super().setUp()
        for name, text in (("id", "echo 0"), ("unshare", '[ "$2" = true ] || { shift; exec "$@"; }')):
            self.put(name, text)

    def put(self, name: str, text: str) -> None:
        """Replace a tool."""
        if (self.bin / name).exists():
            (self.bin / name).unlink()
        self.shell_script(name, text + "\n")

    def test_reasons_to_skip(self) -> None:
        rows = (("debootstrap", 'mkdir "$4"; echo E: no such mirror; exit 1', "debootstrap failed: E: no such mirror"),
                ("debootstrap", "", "debootstrap is not installed"),
                ("unshare", "exit 1", "nothing can be mounted here"), ("id", "echo 1000", "a chroot needs root"))
        for name, text, reason in rows:
            with self.subTest(reason):
                if text:
                    self.put(name, text)
                else:
                    (self.bin / name).unlink()
                lines = [f"{system}: SKIPPED, {reason}" for system in ("bullseye", "bookworm", "sid")]
                self.assertEqual(self.script("systems"), (0, lines))
                self.assertFalse((self.work / ".chroots" / "sid").exists(), "a half-made system counts as made")

    def test_mirror_is_the_one_of_apt(self) -> None:
        self.put("debootstrap", 'echo "$@"; exit 1')
        for mirror in ("http://mirror.invalid/debian", ""):
            with self.subTest(mirror):
                self.put("apt-get", f"echo {mirror}" if mirror else "exit 1")
                code, (line,) = self.script("systems", SYSTEMS="sid")
                self.assertEqual(code, 0)
                self.assertTrue(line.endswith(f" sid .chroots/sid.part {mirror}".rstrip()), line)

    def test_result_is_that_of_the_tests(self) -> None:
        for name in ("Makefile", "README.md", "SKILL.md", "scripts"):
            (self.work / name).mkdir()
        (self.work / ".chroots" / "sid" / "etc").mkdir(parents=True)
        for code, said, last in ((0, "OK (skipped=2)", "Ran 9 tests in 1s OK (skipped=2)"),
                                 (1, "FAILED (failures=1)", "FAILED")):
            with self.subTest(last):
                self.put("unshare", '[ "$2" = true ] && exit\ncase $* in\n'
                         '*--version*) echo "Python 3.1.4 x"; echo "curl 8.0 (y)";;\n'
                         f'*) echo "test_a: ok"; echo "Ran 9 tests in 1s"; echo "{said}"; exit {code};;\nesac')
                exit_code, lines = self.script("systems", SYSTEMS="sid")
                self.assertEqual((exit_code, lines[-1]), (code, f"sid (Python 3.1.4 curl 8.0): {last}"))
                self.assertNotIn("test_a: ok", lines)
                self.assertTrue((self.work / ".chroots" / "sid" / "project" / "tests" / "matrix.sh").is_file())


class OtherPythonsTest(ScriptCase):
    """Every usable Python is tried, and only those."""

    def python(self, name: str, folder: Path, refuses: int = 0, ran: int = 0, code: int = 0) -> None:
        """A Python that says so many tests ran."""
        self.shell_script(name, FAKE.format(refuses=refuses, ran=ran, code=code), folder)

    def test_newer_ones_are_taken_and_free_threaded_ones_are_not(self) -> None:
        versions = self.root / "pyenv" / "versions"
        self.python("python3.8", self.bin, ran=8)
        self.python("python3.14", versions / "3.14.1" / "bin", ran=14)
        self.python("python3.15", versions / "3.15.0t" / "bin", refuses=1)
        self.python("python3.19", self.bin, ran=19)
        code, lines = self.script("matrix", PYENV_ROOT=str(self.root / "pyenv"))
        self.assertEqual((code, lines[:-1]), (0, [f"python3.{n}: Ran {n} tests in 1s" for n in (8, 14, 19)]))
        self.assertEqual(lines[-1].partition(":")[2].split(),
                         [f"python3.{n}" for n in (9, 10, 11, 12, 13, 15, 16, 17, 18)])

    def test_one_can_be_left_out(self) -> None:
        self.python("python3.8", self.bin, ran=8)
        self.python("python3.9", self.bin, ran=9)
        code, lines = self.script("matrix", WITHOUT="3.8")
        self.assertEqual((code, lines[:-1]), (0, ["python3.9: Ran 9 tests in 1s"]))

    def test_failure_fails(self) -> None:
        self.python("python3.16", self.bin, ran=16, code=1)
        code, lines = self.script("matrix")
        self.assertEqual((code, lines[:2]), (1, ["Ran 16 tests in 1s", "python3.16: FAILED"]))
