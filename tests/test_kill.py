"""A paid image survives whatever is killed: run the same command again and it is there, bought once."""
from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

from api_server import Answer, ApiServer, draw_png
from support import KEY, PROGRAM, ProgramCase, Result

KILL_AT = Path(__file__).resolve().parent / "kill_at.py"
# The functions between the decision to send and the end: everything that a kill could interrupt.
CRITICAL = ("make_images,drive,perform,bring_answer,transfer,start_curl,write_bodies,take_lock,adopt_folder,take_over,make_folder,exchange_state,"
            "read_outcome,read_response,save_images,save_image,save_new,give_name,name_before_kill,saved_before,saved_paths,remember_saved,"
            "copy_image,remove_folder,remove_tree,discard,run_image_command,collect_images")


# Runs a script and writes down the name of each file that is made: a kill may come before it is gone again.
NOTE_MADE = """
import os, runpy, sys
log = open(sys.argv[1], "a")
def note(event, values):
    if event == "os.mkdir" or (event == "open" and isinstance(values[2], int) and values[2] & os.O_CREAT):
        log.write(f"{values[0]}\\n")
        log.flush()
sys.addaudithook(note)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Every line takes some minutes on two cores: LONG=1 does it, otherwise every third has to do.
STRIDE = 1 if environ.get("LONG") else 3


class Trial(NamedTuple):
    """One command in a world of its own."""
    root: Path
    server: ApiServer
    prompt: str
    more: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        return {"PATH": environ["PATH"], "HOME": str(self.root), "TMPDIR": str(self.root / "tmp"), "LANG": "C.UTF-8",
                "NO_PROXY": "*", "GPT_IMAGE2_API_KEY": KEY, "PYTHONDONTWRITEBYTECODE": "1"}

    def arguments(self) -> list[str]:
        return ["generate", self.prompt, "--base-url", self.server.url, "-o", str(self.root / "out.png"), *self.more]

    def start(self, *launcher: str) -> subprocess.Popen[bytes]:
        """Start the program, by default directly; launcher may wrap it."""
        command = list(launcher) or [str(PROGRAM)]
        return subprocess.Popen([sys.executable, *command, *self.arguments()], env=self.environment(),
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)

    def run(self) -> Result:
        stdout, stderr = self.start().communicate(timeout=90)
        return Result(0, "", "")._replace(stdout=stdout.decode(), stderr=stderr.decode())

    def posts(self) -> int:
        return sum(1 for post in self.server.posts if post.fields.get("prompt") == self.prompt)

    def pictures(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("out*"))

    def journal(self) -> list[str]:
        folder = self.root / ".local" / "state" / "gpt-image-2" / "requests"
        return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


class KillCase(ProgramCase):
    """Helpers for trials, many at a time: they spend their time waiting."""

    def trial(self, name: str, server: ApiServer | None = None) -> Trial:
        root = self.root / name
        (root / "tmp").mkdir(parents=True)
        return Trial(root, server or self.server, f"a fox called {name}")

    def collect(self, trial: Trial, note: str) -> None:
        """Run the same command again: the picture is there, and was bought once, now or before."""
        before = trial.posts()
        child = trial.start()
        stdout, stderr = (text.decode() for text in child.communicate(timeout=90))
        told = f"{note}\nfirst run sent {before}\n{stdout}{stderr}"
        self.assertEqual(child.returncode, 0, told)
        self.assertEqual(trial.posts(), 1, told)
        self.check_end(trial, ["out.png"], told)

    def check_end(self, trial: Trial, pictures: Sequence[str], told: str) -> None:
        self.assertEqual(trial.pictures(), list(pictures), told)
        for name in pictures:
            picture = (trial.root / name).read_bytes()
            self.assertTrue(picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82"), told)
        self.assertEqual(trial.journal(), [], told)
        self.assertEqual(os.listdir(str(trial.root / "tmp")), [], told)
        self.assertEqual([path.name for path in trial.root.glob(".*.part")], [], told)

    def at_once(self, work: Callable[[Any], None], items: Sequence[Any], workers: int = 12) -> None:
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(work, item) for item in items]:
                future.result()

    def check_trial(self, trial: Any) -> None:
        """What holds in the end, whatever happened on the way."""
        self.assertEqual((trial.posts(), trial.pictures()), (1, ["out.png"]))

    def kill_at_moments(self, name: str, kills: Sequence[tuple[float, int]], workers: int = 12) -> None:
        """Kill a command after so many seconds with this signal, each time another one, and collect its picture."""
        def kill_and_collect(kill: tuple[float, int]) -> None:
            moment, number = kill
            trial = self.trial(f"{name}-{number}-{moment:.2f}")
            child = trial.start()
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)  # everything but curl, which has a session of its own
            if b"Saved: " not in child.communicate()[0]:  # a caller who saw that line has no reason to ask again
                self.collect(trial, f"killed after {moment:.2f} s")
            self.check_trial(trial)
        self.at_once(kill_and_collect, kills, workers)
        self.assert_no_orphans()

    def kill_at_lines(self, functions: str, lines: Sequence[int]) -> None:
        """The same at the Nth line that is executed in these functions; the last of the lines are beyond the end."""
        def kill_and_collect(line: int) -> None:
            if ended.is_file():
                return
            trial = self.trial(f"line-{line}")
            child = trial.start(str(KILL_AT), str(line), functions)
            stdout, stderr = child.communicate(timeout=60)
            if child.returncode == 0:
                ended.write_text(str(line))
                return
            self.assertEqual(child.returncode, -signal.SIGKILL, stderr)
            if b"Saved: " not in stdout:
                self.collect(trial, f"killed at line {line}")
            self.check_trial(trial)
        ended = self.root / "ended"
        self.at_once(kill_and_collect, lines, 6)
        self.assertTrue(ended.is_file(), "the program executes more lines than were tried")
        self.assertGreater(int(ended.read_text()), 100)
        self.assert_no_orphans()

    def assert_no_orphans(self) -> None:
        """A transfer that was left running ends by itself soon after its answer."""
        self.wait_until(lambda: not self.at_work())

    def at_work(self) -> list[str]:
        """The processes that work for one of this test's homes."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc") if os.path.exists("/proc/uptime") else []):
            with contextlib.suppress(OSError):
                if b"HOME=" + os.fsencode(str(self.root)) in Path("/proc", pid, "environ").read_bytes():
                    found.append(pid)
        return found


@unittest.skipUnless(os.name == "posix", "needs POSIX signals and flock")
class KilledAndCollectedTest(KillCase):

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_killed_at_any_moment_of_a_request(self) -> None:
        # 2 s: silence, then the answer in slices; the last moments fall into saving and after the end.
        self.server.default = Answer(delay=1.4, trickle=0.02)
        self.addCleanup(setattr, self.server, "default", Answer())
        moments = [(0.02 * step, signal.SIGKILL) for step in range(120)]
        moments += [(0.024 * step, signal.SIGTERM) for step in range(100)]
        random.Random(1).shuffle(moments)
        self.kill_at_moments("moment", moments)

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_killed_at_every_line(self) -> None:
        self.kill_at_lines(CRITICAL, range(1, 600, STRIDE))

    def test_no_temporary_file_has_a_name(self) -> None:
        """Not even for the moment in which Python's own tempfile tries out a folder."""
        trial = self.trial("named")
        log = trial.root / "made"
        child = trial.start("-c", NOTE_MADE, str(log), str(PROGRAM))
        self.assertIn(b"Saved: ", child.communicate(timeout=60)[0])
        made = log.read_text().splitlines()
        self.assertEqual([path for path in made if path.startswith(str(trial.root / "tmp"))], [])
        self.assertTrue([path for path in made if path.startswith(str(trial.root / ".local"))], made)

    def test_journal_is_private_and_shown(self) -> None:
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.server.plan(Answer(event=answered))
        trial = self.trial("private")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        root = trial.root / ".local" / "state" / "gpt-image-2" / "requests"
        for path in [root, *root.rglob("*")]:
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
            self.assertNotIn(KEY.encode(), path.read_bytes() if path.is_file() else b"")
        child.kill()
        child.communicate()
        shown = subprocess.run([sys.executable, str(PROGRAM), "config", "--json"], env=trial.environment(),
                               stdout=subprocess.PIPE, timeout=60).stdout
        pending = json.loads(shown)["pending"]
        self.assertEqual([(row["state"], row["prompt"]) for row in pending], [("running", trial.prompt)])
        self.assertLess(pending[0]["age_s"], 60)
        answered.set()
        self.collect(trial, "private")

    def test_what_nobody_collects_is_forgotten_after_30_days(self) -> None:
        trial = self.trial("old")
        root = trial.root / ".local" / "state" / "gpt-image-2" / "requests"
        for name, days in (("aaaa-1", 31), ("aaaa-2", 29)):
            folder = root / name
            folder.mkdir(parents=True)
            (folder / "owner").touch()
            (folder / "request.json").write_text('{"prompt": "a dog"}')
            os.utime(str(folder), (time.time() - days * 86400,) * 2)
        trial.run()
        self.assertEqual(trial.journal(), ["aaaa-2"])

    def test_terminated_while_waiting_leaves_the_transfer_running(self) -> None:
        for name, exit_code in (("SIGTERM", 143), ("SIGHUP", 129)):
            with self.subTest(name):
                self.server.plan(Answer(delay=1.5))
                trial = self.trial(name)
                child = trial.start()
                self.wait_until(lambda: trial.posts() == 1)
                child.send_signal(getattr(signal, name))
                stderr = child.communicate(timeout=30)[1].decode()
                self.assertEqual(child.returncode, exit_code, stderr)
                self.assertIn("same command again", stderr)
                self.collect(trial, name)
        self.assert_no_orphans()

    def test_interrupted_by_a_person_stops_the_transfer(self) -> None:
        self.server.plan(Answer(delay=20))
        trial = self.trial("ctrl-c")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        child.send_signal(signal.SIGINT)
        stderr = child.communicate(timeout=15)[1].decode()
        self.assertEqual(child.returncode, 130, stderr)
        self.assertIn("may have been drawn and billed", stderr)
        self.check_end(trial, [], stderr)
        self.assert_no_orphans()

    def test_closed_standard_input_does_not_lose_the_lock(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("closed")
        child = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, str(PROGRAM),
                                  *trial.arguments()], env=trial.environment(), start_new_session=True)
        self.wait_until(lambda: trial.posts() == 1)
        child.kill()
        child.wait()
        self.collect(trial, "closed")

    def test_old_folder_of_a_running_transfer_is_not_pruned(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("clock")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        child.kill()
        child.communicate()
        for folder in (trial.root / ".local" / "state" / "gpt-image-2" / "requests").iterdir():
            os.utime(str(folder), (0, 0))
        self.collect(trial, "clock")

    def test_process_group_killed_except_curl(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("group")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        self.collect(trial, "group")

    @unittest.skipUnless(os.path.exists("/proc/uptime"), "needs /proc")
    def test_killed_with_all_descendants(self) -> None:
        """Claude Code without background tasks and Hermes' process kill look for them by their parents."""
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("family")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        for pid in self.family(child.pid):
            os.kill(pid, signal.SIGKILL)
        child.communicate()
        self.collect(trial, "family")

    def run_json(self, trial: Trial, name: str) -> list[str]:
        """The names of the pictures that the command of a trial saves when it is to call them otherwise."""
        again = trial._replace(more=("--json", "-o", str(trial.root / name)))
        return [Path(row["path"]).name for row in json.loads(again.run().stdout)["saved"]]

    def test_caller_of_json_goes_away_while_it_waits(self) -> None:
        """The caller was killed, not this program: its next call is not bought again, wherever the picture goes."""
        self.server.plan(Answer(delay=1.5))
        trial = self.trial("unread")
        child = trial._replace(more=("--json",)).start()
        self.wait_until(lambda: trial.posts() == 1)
        assert child.stdout and child.stderr
        child.stdout.close()
        self.assertEqual(child.wait(timeout=30), 141)
        self.assertIn("same command again", child.stderr.read().decode())
        child.stderr.close()
        self.assertEqual((self.run_json(trial, "out-b.png"), trial.posts()), (["out-b.png"], 1))
        self.check_end(trial, ["out-b.png"], "unread")

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_json_that_could_not_be_told(self) -> None:
        trial = self.trial("untold")
        with open("/dev/full", "wb") as full:
            subprocess.run([sys.executable, str(PROGRAM), *trial.arguments(), "--json"], env=trial.environment(),
                           stdout=full, stderr=subprocess.DEVNULL, timeout=60)
        self.assertEqual(len(trial.journal()), 1)
        self.assertEqual((self.run_json(trial, "out-b.png"), trial.posts()), (["out.png"], 1))
        self.check_end(trial, ["out.png"], "untold")

    def test_two_identical_commands_are_two_requests(self) -> None:
        self.server.plan(Answer(delay=1.0), Answer(delay=1.0))
        trial = self.trial("twice")
        children = [trial.start(), trial.start()]
        outputs = [child.communicate(timeout=60) for child in children]
        self.assertEqual([child.returncode for child in children], [0, 0], outputs)
        self.assertEqual(trial.posts(), 2)
        self.check_end(trial, ["out-2.png", "out.png"], "twice")

    def test_fresh_does_not_collect(self) -> None:
        self.server.plan(Answer(delay=0.5))
        trial = self.trial("fresh")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        child.kill()
        child.communicate()
        fresh = subprocess.run([sys.executable, str(PROGRAM), *trial.arguments(), "--fresh"], env=trial.environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual((fresh.returncode, trial.posts()), (0, 2), fresh.stderr)
        again = trial.start()
        again.communicate(timeout=60)
        self.assertEqual((again.returncode, trial.posts()), (0, 2))
        self.check_end(trial, ["out-2.png", "out.png"], "fresh")

    def test_curl_killed_too_is_reported_and_forgotten(self) -> None:
        self.server.plan(Answer(delay=20))
        trial = self.trial("lost")
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 1)
        curl = self.curl_of(trial)
        child.kill()
        os.kill(curl, signal.SIGKILL)
        child.communicate()
        again = trial.start()
        stderr = again.communicate(timeout=60)[1].decode()
        self.assertEqual((again.returncode, trial.posts()), (6, 1), stderr)
        self.assertIn("may have been drawn and billed", stderr)
        self.assertEqual(trial.journal(), [])
        third = trial.start()
        third.communicate(timeout=60)
        self.assertEqual((third.returncode, trial.posts()), (0, 2))

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_a_large_answer(self) -> None:
        picture = draw_png(1024, 1024, padding=30_000_000)  # 40 MB of base64
        self.server.default = Answer(image=picture, delay=0.2)
        self.addCleanup(setattr, self.server, "default", Answer())
        self.kill_at_moments("large", [(0.1 + 0.06 * step, signal.SIGKILL) for step in range(20)], 3)
        for path in self.root.glob("large-*/out.png"):
            self.assertEqual(path.read_bytes(), picture)

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_an_answer_with_a_url(self) -> None:
        self.server.default = Answer(as_url=True, delay=0.2)
        self.addCleanup(setattr, self.server, "default", Answer())
        self.kill_at_moments("url", [(0.05 + 0.02 * step, signal.SIGKILL) for step in range(40)], 6)

    def curl_of(self, trial: Trial) -> int:
        """The process that the journal names."""
        lock = next((trial.root / ".local").rglob("1.lock"))
        self.wait_until(lambda: lock.read_text().isdigit())
        return int(lock.read_text())

    def family(self, ancestor: int) -> list[int]:
        """A process and its descendants, as programs find them that kill a whole tree."""
        found, parents = [ancestor], {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                parents[int(pid)] = int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found


if __name__ == "__main__":
    unittest.main()
