"""A paid image survives whatever is killed: run the same command again and it is there, bought once."""
from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path
from typing import Any, Callable, Collection, Sequence

from api_server import Answer, draw_png, error_body
from support import KEY, NO_ANSWER, PROGRAM, REFUSED, ProgramCase, World, program

KILL_AT = Path(__file__).resolve().parent / "kill_at.py"
# The first and the last section of the program between the decision to send and the end, by how their titles begin:
# all that a kill could interrupt.
FIRST, LAST = "Transport", "Commands"
NOT_KILLED = {  # functions of these sections, and why no kill there could prove anything
    program.json_skeleton: "computes from bytes that are read already, hundreds of lines for one answer",
    program.find_images: "computes from the parsed answer",
    program.read_headers: "computes from one small file that nobody writes any more",
}
KILLS = 145  # evenly spread over all lines; LONG=1 takes every line, which takes a while on two cores
LONG = bool(environ.get("LONG"))

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


def critical_functions(without: Collection[Callable[..., Any]] = NOT_KILLED) -> list[str]:
    """The names of all functions in the sections above, but for the exceptions."""
    source = PROGRAM.read_text(encoding="utf-8")
    banners = [(source.count("\n", 0, match.start()) + 1, match[1])
               for match in re.finditer(r"^# -{4} (?:\d+\. )?(.+?) -{4,}$", source, re.MULTILINE)]
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    found, inside = [], False
    for (start, title), (end, _) in zip(banners, [*banners[1:], (sys.maxsize, "")]):
        inside = inside or title.startswith(FIRST)
        if inside:
            found += [node.name for node in functions if start < node.lineno < end]
        inside = inside and not title.startswith(LAST)
    return [name for name in found if name not in {function.__name__ for function in without}]


class KillCase(ProgramCase):
    """Helpers for trials, many at a time: they spend their time waiting."""

    def trial(self, name: str, *options: str) -> World:
        """A world in which one command can be repeated."""
        return self.make_world(name, prompt=f"a fox called {name}", options=options)

    def start_and_wait(self, trial: World, *more: str) -> subprocess.Popen[bytes]:
        """Start the command of a trial and wait until its request has arrived."""
        child = trial.start(*more)
        self.wait_until(lambda: trial.posts() == 1)
        return child

    def collect(self, trial: World, note: str) -> None:
        """Run the same command again: the picture is there, and was bought once, now or before."""
        before = trial.posts()
        result = trial.run()
        note = f"{note}\nfirst run sent {before}\n{result.stdout}{result.stderr}"
        self.assertEqual((result.exit_code, trial.posts()), (0, 1), note)
        self.check_end(trial, ["out.png"], note)

    def check_end(self, trial: World, pictures: Sequence[str], note: str) -> None:
        """These pictures are whole, and nothing else is left."""
        self.assertEqual(trial.pictures(), list(pictures), note)
        for name in pictures:
            picture = (trial.work / name).read_bytes()
            self.assertTrue(picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82"), note)
        journal = [path.parent.name for path in trial.requests.glob("*/owner")]  # without it: the next purchase's
        self.assertEqual((journal, trial.leftovers()), ([], []), note)

    def at_once(self, work: Callable[[Any], None], items: Sequence[Any], workers: int = 12) -> None:
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(work, item) for item in items]:
                future.result()

    def check_trial(self, trial: World) -> None:
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
            self.finish(child)
            self.collect(trial, f"killed after {moment:.2f} s")  # also where it had told its result
            self.check_trial(trial)
        self.at_once(kill_and_collect, kills, workers)
        self.assert_no_orphans()

    def kill_at_lines(self, functions: Sequence[str], kills: int) -> None:
        """The same at so many lines, evenly spread over all that are executed in these functions."""
        about = (str(sys.maxsize if LONG else 2), ",".join(functions))
        counting = self.trial("counting").run(through=(sys.executable, KILL_AT, "0", *about))
        self.assertEqual(counting.exit_code, 0, counting.stderr)
        total = int(counting.stderr.split()[-1])
        self.assertGreater(total, kills)
        lines = range(1, total + 1) if LONG else [1 + total * number // kills for number in range(kills)]
        ended = []  # without a kill: a run that waits a little less has fewer lines

        def kill_and_collect(line: int) -> None:
            trial = self.trial(f"line-{line}")
            result = trial.run(through=(sys.executable, KILL_AT, str(line), *about))
            if result.exit_code == 0:
                ended.append(line)
            else:
                self.assertEqual(result.exit_code, -signal.SIGKILL, result.stderr)
            self.collect(trial, f"killed at line {line}")  # also where it had told its result
            self.check_trial(trial)
        self.at_once(kill_and_collect, lines, 6)
        self.assertLess(len(ended), len(lines) // 10, "most were never killed")
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
        moments = [(0.02 * step, signal.SIGKILL) for step in range(120)]
        moments += [(0.024 * step, signal.SIGTERM) for step in range(100)]
        random.Random(1).shuffle(moments)
        self.kill_at_moments("moment", moments)

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_killed_at_every_line(self) -> None:
        self.kill_at_lines(critical_functions(), KILLS)

    def test_lines_for_kills_are_those_between_the_decision_to_send_and_the_end(self) -> None:
        critical = critical_functions()
        for function in (program.start_curl, program.make_folder, program.send_with_retries, program.read_response,
                         program.save_image, program.run_image_command):
            self.assertIn(function.__name__, critical)
        for function in (program.load_settings, program.plan, *NOT_KILLED):
            self.assertNotIn(function.__name__, critical)
        spared = [function.__name__ for function in NOT_KILLED]
        self.assertEqual(set(spared) - set(critical_functions(without=())), set(), "no exception: it is not in there")

    def test_no_temporary_file_has_a_name(self) -> None:
        """Not even for the moment in which Python's own tempfile tries out a folder."""
        trial = self.trial("named")
        log = trial.root / "made"
        self.saved_file(trial.run(through=(sys.executable, "-c", NOTE_MADE, log, PROGRAM)))
        made = log.read_text().splitlines()
        self.assertEqual([path for path in made if path.startswith(str(trial.tmp))], [])
        self.assertTrue([path for path in made if path.startswith(str(trial.requests))], made)

    def test_journal_is_private_and_shown(self) -> None:
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.server.plan(Answer(event=answered))
        trial = self.trial("private")
        child = self.start_and_wait(trial)
        for path in [trial.requests, *trial.requests.rglob("*")]:
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
            self.assertNotIn(KEY.encode(), path.read_bytes() if path.is_file() else b"")
        self.kill(child)
        pending = self.finish(trial.launch(sys.executable, PROGRAM, "config", "--json")).json["pending"]
        self.assertEqual([(row["state"], row["prompt"]) for row in pending], [("running", trial.prompt)])
        self.assertLess(pending[0]["age_s"], 60)
        answered.set()
        self.collect(trial, "private")

    def test_what_nobody_collects_is_forgotten_after_30_days(self) -> None:
        trial = self.trial("old")
        for name, days in (("aaaa-1", 31), ("aaaa-2", 29)):
            folder = trial.requests / name
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
                child = self.start_and_wait(trial)
                result = self.kill(child, getattr(signal, name))
                self.assertEqual(result.exit_code, exit_code, result.stderr)
                self.assertIn("same command again", result.stderr)
                self.collect(trial, name)
        self.assert_no_orphans()

    def interrupted(self, trial: World) -> str:
        """The id that `config --forget` wants, from what Ctrl-C says while an image is made."""
        result = self.kill(self.start_and_wait(trial), signal.SIGINT)
        self.assertEqual((result.exit_code, len(result.errors)), (130, 1), result.stderr)
        self.assertIn("the image is still being made. You may be charged", result.errors[0])
        match = re.search(r"(?m)same command again to get it .* with: .* config --forget (\w+)$", result.stderr)
        assert match, result.stderr
        self.assertEqual([name.endswith(match[1]) for name in trial.journal()], [True])
        return match[1]

    def test_interrupted_by_a_person_stops_the_waiting_not_the_transfer(self) -> None:
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.server.plan(Answer(event=answered))
        trial = self.trial("ctrl-c")
        self.interrupted(trial)
        pending = self.finish(trial.launch(sys.executable, PROGRAM, "config", "--json")).json["pending"]
        self.assertEqual([(row["state"], row["at_work"]) for row in pending], [("running", False)])
        answered.set()
        again = trial.run("--json")
        self.assertEqual((again.exit_code, again.json["source"], trial.posts()), (0, "collected", 1), again.stderr)
        self.check_end(trial, ["out.png"], again.stderr)
        self.assert_no_orphans()

    def test_interrupted_and_given_up_stops_the_transfer_too(self) -> None:
        self.server.plan(Answer(delay=20))
        trial = self.trial("forget")
        name = self.interrupted(trial)
        result = self.finish(trial.launch(sys.executable, PROGRAM, "config", "--forget", name))
        self.assertEqual((result.exit_code, result.errors), (0, []), result.stderr)
        self.assertRegex(result.stdout, rf"^forgot {name}: .*out\.png .*You may be charged")
        self.check_end(trial, [], result.stdout)
        self.assert_no_orphans()
        self.assertEqual((trial.run().exit_code, trial.posts()), (0, 2))

    def test_closed_standard_input_does_not_lose_the_lock(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("closed")
        child = trial.start(through=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, PROGRAM))
        self.wait_until(lambda: trial.posts() == 1)
        self.kill(child)
        self.collect(trial, "closed")

    def test_old_folder_of_a_running_transfer_is_not_pruned(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("clock")
        child = self.start_and_wait(trial)
        self.kill(child)
        for folder in trial.requests.iterdir():
            os.utime(str(folder), (0, 0))
        self.collect(trial, "clock")

    def test_process_group_killed_except_curl(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("group")
        child = self.start_and_wait(trial)
        os.killpg(child.pid, signal.SIGKILL)
        self.finish(child)
        self.collect(trial, "group")

    @unittest.skipUnless(os.path.exists("/proc/uptime"), "needs /proc")
    def test_killed_with_all_descendants(self) -> None:
        """Claude Code without background tasks and Hermes' process kill look for them by their parents."""
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("family")
        child = self.start_and_wait(trial)
        for pid in self.family(child.pid):
            os.kill(pid, signal.SIGKILL)
        self.finish(child)
        self.collect(trial, "family")

    def names_in_json(self, trial: World, name: str) -> list[str]:
        """The names of the pictures that the command of a trial saves when it is to call them otherwise."""
        return [Path(row["path"]).name for row in trial.run("--json", "-o", name).json["saved"]]

    def test_caller_of_json_goes_away_while_it_waits(self) -> None:
        """The caller was killed, not this program: its next call is not bought again, wherever the picture goes."""
        self.server.plan(Answer(delay=1.5))
        trial = self.trial("unread")
        child = self.start_and_wait(trial, "--json")
        assert child.stdout and child.stderr
        child.stdout.close()
        self.assertEqual(child.wait(timeout=30), 141)
        self.assertIn("same command again", child.stderr.read().decode())
        child.stderr.close()
        self.assertEqual((self.names_in_json(trial, "out-b.png"), trial.posts()), (["out-b.png"], 1))
        self.check_end(trial, ["out-b.png"], "unread")

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_json_that_could_not_be_told(self) -> None:
        """The receipt is written first: the same command tells it, and its folder is gone already."""
        trial = self.trial("untold")
        with open("/dev/full", "wb") as full:
            first = self.finish(trial.start("--json", stdout=full))
        self.assertEqual(first.exit_code, 0, first.stderr)  # everything is on disk
        self.check_end(trial, ["out.png"], first.stderr)
        again = trial.run("--json")
        self.assertEqual((again.exit_code, again.json["source"], trial.posts()), (0, "made_before", 1), again.stderr)
        self.assertEqual([row["path"] for row in again.json["saved"]], [str(trial.work / "out.png")])
        self.check_end(trial, ["out.png"], "untold")

    def test_identical_commands_at_once_are_one_request(self) -> None:
        """One buys, the others say that they wait, and all tell the same picture."""
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.server.plan(Answer(event=answered))
        trial = self.trial("twins")
        children = [trial.start() for _ in range(4)]
        said = [self.first_line(child) for child in children]
        self.assertEqual(sum(line.startswith("Generating with") for line in said), 1, said)
        self.assertEqual(sum("at work elsewhere; waiting for its picture" in line for line in said), 3, said)
        self.wait_until(lambda: trial.posts() == 1)
        answered.set()
        results = [self.finish(child) for child in children]
        for line, result in zip(said, results):
            bought = line.startswith("Generating with")
            self.assertEqual((result.exit_code, result.names), (0, ["out.png"]), result.stderr)
            self.assertEqual(("HTTP 200" in result.stdout, "nothing was bought now" in result.stderr),
                             (bought, not bought), result)
        self.assertEqual((trial.posts(), len(list(trial.receipts.glob("*.json")))), (1, 1))
        self.check_end(trial, ["out.png"], "twins")

    def first_line(self, child: subprocess.Popen[bytes]) -> str:
        """The first line that a running program says on standard error."""
        assert child.stderr
        return child.stderr.readline().decode()

    def test_identical_command_takes_over_from_one_that_dies(self) -> None:
        self.server.plan(Answer(delay=1.0))
        trial = self.trial("heir")
        first = self.start_and_wait(trial)
        second = trial.start("--json")
        self.assertIn("at work elsewhere", self.first_line(second))
        self.kill(first)
        result = self.finish(second)
        self.assertEqual((result.exit_code, result.json["source"], trial.posts()), (0, "collected", 1), result.stderr)
        self.check_end(trial, ["out.png"], "heir")

    def test_identical_command_fails_like_the_one_that_it_waits_for(self) -> None:
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.server.plan(Answer(event=answered, status=400, body=error_body("no foxes", "invalid_value")))
        trial = self.trial("fails")
        first = self.start_and_wait(trial, "--json")
        second = trial.start("--json")
        self.assertIn("at work elsewhere", self.first_line(second))
        answered.set()
        one, other = self.finish(first), self.finish(second)
        self.assertEqual((one.exit_code, other.exit_code, trial.posts()), (REFUSED, REFUSED, 1), other.stderr)
        self.assertEqual(other.json["error"], one.json["error"])
        self.assertIn("no foxes", other.json["error"]["message"])
        self.check_end(trial, [], "fails")

    def test_identical_commands_with_fresh_are_two_requests(self) -> None:
        self.server.plan(Answer(delay=1.0), Answer(delay=1.0))
        trial = self.trial("twice")
        children = [trial.start("--fresh"), trial.start("--fresh")]
        results = [self.finish(child) for child in children]
        self.assertEqual(([result.exit_code for result in results], trial.posts()), ([0, 0], 2), results)
        self.check_end(trial, ["out-2.png", "out.png"], "twice")

    def test_fresh_does_not_collect(self) -> None:
        self.server.plan(Answer(delay=0.5))
        trial = self.trial("fresh")
        child = self.start_and_wait(trial)
        self.kill(child)
        for options in (("--fresh",), ()):
            result = trial.run(*options)
            self.assertEqual((result.exit_code, trial.posts()), (0, 2), result.stderr)
        self.check_end(trial, ["out-2.png", "out.png"], "fresh")

    def test_curl_killed_too_is_reported_and_forgotten(self) -> None:
        self.server.plan(Answer(delay=20))
        trial = self.trial("lost")
        child = self.start_and_wait(trial)
        curl = self.curl_of(trial)
        child.kill()
        os.kill(curl, signal.SIGKILL)
        self.finish(child)
        again = trial.run()
        self.assertEqual((again.exit_code, trial.posts()), (NO_ANSWER, 1), again.stderr)
        self.assertIn("You may be charged", again.stderr)
        self.assertEqual(trial.journal(), [])
        self.assertEqual((trial.run().exit_code, trial.posts()), (0, 2))

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_a_large_answer(self) -> None:
        picture = draw_png(1024, 1024, padding=30_000_000)  # 40 MB of base64
        self.server.default = Answer(image=picture, delay=0.2)
        self.kill_at_moments("large", [(0.1 + 0.06 * step, signal.SIGKILL) for step in range(20)], 3)
        for path in self.root.glob("large-*/work/out.png"):
            self.assertEqual(path.read_bytes(), picture)

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_an_answer_with_a_url(self) -> None:
        self.server.default = Answer(as_url=True, delay=0.2)
        self.kill_at_moments("url", [(0.05 + 0.02 * step, signal.SIGKILL) for step in range(40)], 6)

    def curl_of(self, trial: World) -> int:
        """The process that the journal names."""
        lock = next(trial.requests.rglob("1.lock"))
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
