"""What README.md and SKILL.md show works as shown, and SKILL.md keeps the rules of those who read it."""
from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import unittest
from os import environ
from pathlib import Path

from api_server import Answer, draw_png, sniff
from support import KEY, PROGRAM, Argument, ProgramCase, program

PROJECT = PROGRAM.parent.parent
README, SKILL = ((PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "SKILL.md"))
FRONT, BODY = SKILL[4:].split("\n---\n", 1)


def fenced(text: str, language: str) -> str:
    """The one code block of a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(block)


class SkillCommandsRunTest(ProgramCase):
    """Every command line in SKILL.md runs."""

    def test_every_command_of_skill_md(self) -> None:
        for name in ("fox.png", "room.png", "chair.jpg"):
            self.file(name, draw_png(1024, 640, 1))
        self.file("prompts.txt", "a bear\na cat\na dog\n")
        lines = re.findall(r"^    python3 scripts/gpt_image2\.py (generate|edit) (.*)$", BODY, re.MULTILINE)
        self.assertGreaterEqual(len(lines), 5)
        for command, line in lines:
            with self.subTest(line):
                arguments = shlex.split(line)
                result = self.run_program(command, *arguments, *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
                self.assert_succeeded(result)
                self.assertEqual(len(result.saved), 3 if {"--n", "--batch"} & set(arguments) else 1)
        self.assertIn("a dog", (self.work / "pictures.html").read_text(encoding="utf-8"))

    def test_the_gateway_of_skill_md(self) -> None:
        """Its address and its key hold from then on, also with other defaults."""
        command, = re.findall(r"^ +python3 scripts/gpt_image2\.py (config --init .*)$", BODY, re.MULTILINE)
        words = shlex.split(command.replace("https://relay.example/v1", self.server.url))
        variable = {words[words.index("--api-key-env") + 1]: KEY}
        self.assertEqual(self.run_program(*words).exit_code, 0)
        self.assert_succeeded(self.run_program("generate", "a fox", "-o", "fox.png", env=variable))
        self.assertEqual(self.server.posts[0].header("authorization"), f"Bearer {KEY}")
        defaults, = re.findall("`(config --init --force --quality low)`", BODY)
        self.assertEqual(self.run_program(*defaults.split()).exit_code, 0)
        self.assert_succeeded(self.run_program("generate", "a bear", "-o", "bear.png", env=variable))
        self.assertEqual(self.server.posts[1].fields["quality"], "low")

    def test_other_config_commands_of_skill_md(self) -> None:
        """One request waits to be given up."""
        event = threading.Event()
        self.addCleanup(event.set)
        self.server.plan(Answer(event=event))
        env = {"GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.server.url}
        self.kill_at_request(self.start_program("generate", "a fox", "-o", "fox.png", env=env))
        (pending,) = self.run_program("config", "--json", env=env).json["pending"]
        commands = set(re.findall("`(config[^`]*)`", BODY))
        self.assertGreaterEqual(commands, {"config", "config --check", "config --forget ID", "config --history 100"})
        for line in sorted(commands):
            with self.subTest(line):
                result = self.run_program(*line.replace("ID", pending["id"]).split(), env=env)
                self.assertEqual((result.exit_code, result.errors), (0, []))
                self.assertTrue(result.stdout)
        self.assertEqual(self.run_program("config", "--json", env=env).json["pending"], [])

    def test_words_of_exit_6_in_skill_md(self) -> None:
        """Its rows quote the messages: what is under way costs nothing more, a lost reply may be paid for."""
        rows = '(?m)^\\| 6 \\| (?:HTTP 524.*)?"(at no cost|may be charged)" \\| (?:same command|ask)'
        free, paid = re.findall(rows, BODY)
        self.server.plan(Answer(body=b'{"task_id": "t1", "status": "processing"}'), Answer(524, check=False))
        self.server.plan_gets("/v1/tasks/t1", Answer(body=b'{"task_id": "t1", "status": "processing"}'))
        for words, posts in ((("a fox", "--timeout", "2"), 1), (("a fox", "--timeout", "2"), 1), (("a bear",), 2)):
            result = self.generate(*words, "-o", words[0][2:] + ".png")
            self.assertEqual((result.exit_code, len(self.server.posts)), (6, posts), result)
            self.assertEqual((free in result.stderr, paid in result.stderr), (posts == 1, True), result.stderr)

    def test_the_prices_of_skill_md(self) -> None:
        """What a dry run says, for each size and quality of the table."""
        head, *rows = re.findall(r"(?m)^\| (?:size|\d+x\d+).*$", BODY)
        qualities = re.findall(r"(low|medium|high), (\d+) s", head)
        self.assertEqual((len(qualities), len(rows)), (3, 3))
        for row in rows:
            size, *prices = re.findall(r"\d[\dx.]+", row)
            for (quality, seconds), price in zip(qualities, prices):
                told = self.run_program("generate", "a fox", "--size", size, "--quality", quality, "--dry-run").stdout
                self.assertIn(f"about ${price};", told)
                took = int(told.split("time: ")[1].split()[0]) / (2 if "twice the time" in row else 1)
                self.assertAlmostEqual(took / int(seconds), 1, delta=0.08)

    def test_the_mask_of_readme(self) -> None:
        command, = re.findall(r"(?m)^    gpt-image2 (edit .*--mask-exact.*)$", README)
        self.file("room.png", draw_png(1024, 640, 1))
        result = self.run_program(*shlex.split(command), *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
        self.assert_succeeded(result)
        self.assertEqual(result.names, ["sofa.png"])

    def test_the_batch_of_readme(self) -> None:
        section = README.partition("## Many pictures")[2].partition("\n## ")[0]
        lines, command = re.findall(r"(?m)((?:^    .*\n)+)", section)
        self.file("lines.txt", re.sub("(?m)^    ", "", lines))
        self.file("fox.png", draw_png(64, 48, 1))
        result = self.run_program(*shlex.split(command)[1:], *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
        self.assert_succeeded(result)
        self.assertEqual((len(result.saved), "bear.png" in result.names), (3, True))

    def test_named_options_exist(self) -> None:
        """Also in running text and in README's table."""
        known = set(re.findall(r"--[a-z-]+", "".join(self.run_program(*words, "--help").stdout for words in (
            [], ["generate"], ["edit"], ["config"]))))
        others = {"--enable", "--version", "--help"}
        for text in (BODY, README):
            for span in re.findall(r"`([^`\n]+)`", text):
                self.assertEqual(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)) - known - others, set(), span)


class ReadmeExamplesRunTest(ProgramCase):
    """README's programs, with the program installed as README says."""

    def install(self) -> dict[str, str | None]:
        """Run `make install` and return an environment in which the program is found."""
        if not (shutil.which("make") and shutil.which("install")):
            self.skipTest("needs make and install")
        made = subprocess.run(["make", "-s", "-C", str(PROJECT), "install", f"PREFIX={self.root / 'prefix'}"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(made.returncode, 0, made.stdout)
        return {"PATH": os.pathsep.join([str(self.root / "prefix" / "bin"), environ.get("PATH", os.defpath)]),
                "GPT_IMAGE2_BASE_URL": self.server.url}

    def run_example(self, *command: str, code: str) -> None:
        """Run it with a key, twice, then with a refused one."""
        variables = self.install()
        for key, exit_code in ((KEY, 0), (KEY, 0), ("wrong", 1)):
            if key != KEY:
                self.assertEqual(len(self.server.posts), 1, "the same call is the same picture")
                self.forget()
            env = self.environment({**variables, "GPT_IMAGE2_API_KEY": key})
            child = subprocess.run([*command, code], env=env, cwd=str(self.work), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, encoding="utf-8", timeout=60)
            self.assertEqual(child.returncode, exit_code, child.stderr)
            if key == KEY:
                self.assertEqual(child.stdout.strip(), str(self.work / "fox.png"))
                self.assertIsNotNone(sniff((self.work / "fox.png").read_bytes()))
            else:
                self.assertIn("billed: no", child.stderr)
        self.assertEqual(self.server.posts[0].fields["prompt"], "a red fox in the snow")

    def test_python(self) -> None:
        self.run_example(sys.executable, "-c", code=fenced(README, "python"))

    def test_node(self) -> None:
        node = shutil.which("node")
        if not node:
            self.skipTest("needs Node.js")
        self.run_example(node, "-e", code=fenced(README, "js"))

    def test_json_example_has_all_fields(self) -> None:
        result = self.generate("a fox", "--json").json
        (shown,) = re.findall(r'^    (\{"schema".*?\})$', README, re.MULTILINE | re.DOTALL)
        self.assertEqual(set(json.loads(shown.replace("{...}", "{}"))), set(result))


class InstallTest(ProgramCase):
    """`make install` and `make uninstall`: what they put where, what runs, and what they say."""
    FILES = ("bin/gpt-image2", "lib/gpt-image2/gpt_image2.py", "share/bash-completion/completions/gpt-image2",
             "share/zsh/site-functions/_gpt-image2", "share/fish/vendor_completions.d/gpt-image2.fish")

    def make(self, goal: str, prefix: str = "prefix", destdir: str = "", path: str = "", umask: int = 0o022) -> str:
        """What it says besides its commands; the prefix is below the test's folder."""
        if not (shutil.which("make") and shutil.which("install")):
            self.skipTest("needs make and install")
        words = [f"PREFIX={self.root / prefix}", f"PYTHON={sys.executable}", *[f"DESTDIR={destdir}"] * bool(destdir)]
        env = {**self.environment(), "PATH": path + os.pathsep + environ.get("PATH", os.defpath)}
        del env["PYTHONDONTWRITEBYTECODE"]
        made = subprocess.run(["make", "-s", "-C", str(PROJECT), goal, *words], stdout=subprocess.PIPE, env=env,
                              stderr=subprocess.STDOUT, encoding="utf-8", preexec_fn=lambda: os.umask(umask) and None)
        self.assertEqual(made.returncode, 0, made.stdout)
        return made.stdout

    def version(self, *command: Argument, cwd: Path | None = None) -> str:
        """The last word of what --version says; nobody complains."""
        result = self.finish(self.world.launch(*command, "--version", cwd=cwd))
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return result.stdout.split()[-1]

    def installed(self, root: Path) -> set[str]:
        """The files below a folder."""
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}

    def test_files_and_bytecode(self) -> None:
        self.make("install", umask=0o077)
        root = self.root / "prefix"
        bytecode = f"lib/gpt-image2/__pycache__/gpt_image2.{sys.implementation.cache_tag}.pyc"
        self.assertEqual(self.installed(root), {*self.FILES, bytecode})
        for path in root.rglob("*"):
            runs = path.is_dir() or path.parent.name == "bin"
            self.assertEqual(path.stat().st_mode & 0o777, 0o755 if runs else 0o644, path)
        loud = self.finish(self.world.launch(sys.executable, "-v", root / self.FILES[0], "--version"))
        self.assertRegex(loud.stderr, rf"{re.escape(str(root / bytecode))} matches")
        for name, shell in zip(self.FILES[2:], ("bash", "zsh", "fish")):
            told = self.run_program("config", "--completion", shell).stdout
            self.assertEqual((root / name).read_text(encoding="utf-8"), told)
            self.assertGreater(len(told), 1000)

    def test_the_launcher_runs_however_it_is_called(self) -> None:
        self.make("install")
        launcher, link = self.root / "prefix" / "bin" / "gpt-image2", self.root / "elsewhere" / "pictures"
        link.parent.mkdir()
        link.symlink_to(os.path.relpath(str(launcher), str(link.parent)))
        for folder in (launcher.parent, link.parent, self.work):
            for name in ("json.py", "base64.py", "gpt_image2.py"):
                (folder / name).write_text("raise SystemExit('a stranger')", encoding="utf-8")
        for path in (launcher, link):
            for through in ([], [sys.executable], *([sys.executable, flag] for flag in ("-I", "-E", "-s"))):
                self.assertEqual(self.version(*through, path), program.VERSION, (path, through))
            self.assertEqual(self.version(sys.executable, path.name, cwd=path.parent), program.VERSION)
        self.assertEqual(list(self.root.rglob("bin/__pycache__")), [])

    def test_destdir_and_a_prefix_with_a_blank(self) -> None:
        said = self.make("install", "my prefix", str(self.root / "stage area"))
        staged = self.root / "stage area" / str(self.root / "my prefix")[1:]
        self.assertTrue(set(self.FILES) <= self.installed(staged))
        self.assertFalse((self.root / "my prefix").exists())
        self.assertNotIn("PATH", said)  # a packager's own business
        self.make("install", "my prefix")
        self.assertEqual(self.version(self.root / "my prefix" / "bin" / "gpt-image2"), program.VERSION)
        self.make("uninstall", "my prefix", str(self.root / "stage area"))
        self.assertEqual(self.installed(staged), set())
        self.assertTrue(set(self.FILES) <= self.installed(self.root / "my prefix"))

    def test_path_is_named_where_it_lacks_the_folder(self) -> None:
        for prefix in ("prefix", "my prefix"):
            folder = f"{self.root / prefix}/bin"
            said = self.make("install", prefix)
            self.assertIn(f'{folder} is not in your PATH; add it: export PATH="{folder}:$PATH"', said)
            self.assertIn("is not in your PATH", self.make("install", prefix, path=folder + "-other"))
            for path in (folder, f"/nowhere:{folder}", f"{folder}:/nowhere"):
                self.assertEqual(self.make("install", prefix, path=path), "")

    def test_uninstall_removes_all_and_says_what_stays(self) -> None:
        settings = Path(self.write_config({}))
        self.make("install")
        beside = self.root / "prefix" / "bin" / "other"
        beside.write_text("mine")
        said = self.make("uninstall")
        self.assertEqual(self.installed(self.root / "prefix"), {"bin/other"})
        for name in ("~/.config/gpt-image-2", "~/.local/state/gpt-image-2"):
            self.assertIn(name, said)
        self.assertTrue(settings.exists())
        self.assertIn("stay", self.make("uninstall"))


class DemoTest(ProgramCase):
    """`make demo` says first what is not real."""

    def test_prices_and_times_are_pretended(self) -> None:
        result = self.finish(self.world.launch(sys.executable, PROJECT / "tests" / "demo.py"))
        self.assertEqual(result.exit_code, 0, result)
        first = result.stdout.split("\n")[0]
        self.assertIn("prices and times below are pretended", first)
        self.assertEqual(len(result.saved), 2)


class SkillRulesTest(unittest.TestCase):
    """SKILL.md, as its readers want it; the validators themselves run in `make test-clients`."""

    def test_length_and_traps(self) -> None:
        self.assertLess(SKILL.count("\n"), 190)
        self.assertLess(len(SKILL), 8570)  # less than 2,400 tokens: 8,541 are 2,392 of cl100k
        self.assertIsNone(re.search(r"\$\d|\$ARGUMENTS|!`|\u200b|\ufeff|<!--", SKILL))
        self.assertNotIn("~/.hermes/", SKILL)

    def test_description_works_when_cut(self) -> None:
        (description,) = re.findall(r"^description: (.*)$", FRONT, re.MULTILINE)
        self.assertLessEqual(len(description), 160)
        self.assertNotRegex(description, r"[<>]|: ")
        for word in ("Create", "edit", "images", "gpt-image-2"):
            self.assertIn(word, description[:57])

    def test_named_files_exist(self) -> None:
        """Hermes fetches what is named like this, and fails when it is not there."""
        named = re.findall(r"(?:^|[\s\"'`]|\]\()((?:scripts|references|templates|assets|examples)/[\w./-]+)", SKILL)
        self.assertEqual({name.rstrip(".") for name in named},
                         {"scripts/gpt_image2.py", "scripts/plugin.yaml", "scripts/__init__.py"})
        for name in named:
            self.assertTrue((PROJECT / name.rstrip(".")).is_file(), name)

    def test_variables_are_declared(self) -> None:
        """Reviewers compare what is read with what is declared."""
        code = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "scripts").glob("*.py"))
        read = set(re.findall(r"(?:environment|variable)\(\"([A-Z][A-Z0-9_]+)\"\)", code))
        read |= set(re.findall(r"\"((?:GPT_IMAGE2|OPENAI|RUNAPI)_(?:API_KEY|BASE_URL))\"", code))
        self.assertEqual(read, set(re.findall(r"- name: (\w+)", FRONT)))

    def test_versions_agree(self) -> None:
        """Program, plugin and skill."""
        program = subprocess.run([sys.executable, str(PROGRAM), "--version"], stdout=subprocess.PIPE, encoding="utf-8")
        version = program.stdout.split()[1]
        self.assertIn(f'version: "{version}"', FRONT)
        self.assertIn(f'version: "{version}"', (PROJECT / "scripts" / "plugin.yaml").read_text(encoding="utf-8"))
