"""The same command is the same picture: however often it is run, beside itself or again, it buys once."""
from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
from os import environ
from pathlib import Path
from typing import Any, Mapping

from api_server import Answer, ApiServer
from support import (
    KEY,
    LIMITED,
    NO_ANSWER,
    PROGRAM,
    REFUSED,
    SETUP,
    USAGE,
    Result,
    World,
    finish,
    plain_png,
    png_chunk,
    program,
)
from test_kill import KillCase

LONG = bool(environ.get("LONG"))
SCHEDULES = 200 if LONG else 8 if environ.get("FAST") else 24
LARGE = 30_000_000 if LONG else 3_000_000  # bytes of a picture; 30 MB are an answer of 40 MB
HANG_UP = 0  # instead of a signal's number: close the reading end of standard output
# Whatever happens to a command whose server is good; the last two, before Python has begun with the program.
EXIT_CODES = {0, 129, 130, 141, 143, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}
POSIX = unittest.skipUnless(os.name == "posix", "needs POSIX signals and flock")


class OnceCase(KillCase):
    """Helpers for commands that meet each other."""

    def held(self, name: str, *options: str, answer: Answer | None = None) -> tuple[World, Any]:
        """A world, and what lets its server answer."""
        answer, event = answer or Answer(), threading.Event()
        self.addCleanup(event.set)
        self.server.plan(answer._replace(event=event))
        return self.trial(name, *options), event

    def config(self, world: World, *arguments: str) -> Result:
        """Run `config` in a world."""
        return finish(world.launch(sys.executable, PROGRAM, "config", *arguments))

    def wait_for_words(self, child: subprocess.Popen[bytes], words: str) -> str:
        """Read a child's standard error until it says this."""
        assert child.stderr
        said = b""
        deadline = time.monotonic() + 20
        while words.encode() not in said:
            self.assertLess(time.monotonic(), deadline, said)
            if select.select([child.stderr], [], [], 0.1)[0]:
                said += os.read(child.stderr.fileno(), 4096)
        return said.decode()

    def receipts(self, world: World) -> list[dict[str, Any]]:
        """What is remembered in a world."""
        return [json.loads(path.read_text()) for path in world.receipts.glob("*.json")]


@POSIX
class ScheduleTest(OnceCase):
    """Random schedules of one command: started, killed, stopped, run beside itself, waited for, run again."""

    def setUp(self) -> None:
        super().setUp()
        picture = plain_png(64, 64)
        self.large = picture[:-12] + png_chunk(b"juNk", os.urandom(LARGE)) + picture[-12:]

    def test_random_schedules(self) -> None:
        self.at_once(self.run_schedule, range(SCHEDULES), 6)
        self.assert_no_orphans()

    def run_schedule(self, seed: int) -> None:
        """One schedule, then the command once more: one purchase, one picture."""
        chance = random.Random(seed)
        delay = chance.uniform(0.1, 1.0)
        forms = {"base64": Answer(delay=delay), "url": Answer(delay=delay, as_url=True), "stream": Answer(delay=delay),
                 "slow": Answer(delay=delay, trickle=0.05), "large": Answer(delay=delay, image=self.large)}
        form, words = chance.choice(list(forms)), chance.choice([("generate",), ("edit", "in.png")])
        with ApiServer(KEY) as server:
            server.default = forms[form]
            world = self.make_world(f"schedule-{seed}", server, words=words,
                                    options=["--stream"] if form == "stream" else [])
            (world.work / "in.png").write_bytes(plain_png(64, 64))
            steps = self.play(world, chance)
            result = world.run()
            note = f"seed {seed}: {form} {words} {steps}\n{result.stdout}{result.stderr}"
            self.assertEqual((result.exit_code, len(server.posts), result.names), (0, 1, ["out.png"]), note)
            self.check_end(world, ["out.png"], note)

    def play(self, world: World, chance: random.Random) -> list[str]:
        """Some steps, after which nothing of this command runs any more; what they were."""
        ends = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "interrupt": signal.SIGINT, "hang up": HANG_UP,
                "wait": None}
        steps, running = [], []
        for _ in range(chance.randint(2, 8)):
            step = chance.choice(["start", "start", "start twins", "pause", *ends])
            steps.append(step)
            if step.startswith("start") and len(running) < 4:
                more = [(), ("--json",)]
                running += [world.start(*chance.choice(more)) for _ in range(2 if step == "start twins" else 1)]
            elif step == "pause":
                time.sleep(chance.uniform(0, 0.6))
            elif step in ends and running:
                self.end(running.pop(chance.randrange(len(running))), ends[step], chance.uniform(0, 0.5))
        for child in running:
            self.end(child, chance.choice([signal.SIGKILL, signal.SIGTERM, None]), chance.uniform(0, 0.5))
        return steps

    def end(self, child: subprocess.Popen[bytes], number: int | None, after: float) -> None:
        """End a child by a signal or by going away; without, wait until it has ended of itself."""
        if number == HANG_UP and child.stdout:
            child.stdout.close()
            child.stdout = None
        elif number is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
        result = finish(child, 90)
        if result.exit_code not in EXIT_CODES:  # interrupted while Python was starting
            self.assertIn("KeyboardInterrupt", result.stderr, result)


@POSIX
class TwinsTest(OnceCase):

    def test_two_at_once_are_one_request(self) -> None:
        world, answer = self.held("two")
        first = self.start_and_wait(world, "--json")
        second = world.start("--json")
        self.wait_for_words(second, "at work elsewhere")
        answer.set()
        results = [finish(first), finish(second)]
        self.assertEqual(([result.exit_code for result in results], world.posts()), ([0, 0], 1), results)
        told = [result.json for result in results]
        self.assertEqual([each.pop("source") for each in told], ["bought", "made_before"])
        for name in ("saved", "usage", "cost_usd", "elapsed_s", "request_id", "model"):
            self.assertEqual(told[0][name], told[1][name], name)
        self.check_end(world, ["out.png"], "two")

    def test_ten_at_the_same_moment(self) -> None:
        self.server.default = Answer(delay=0.5)
        world = self.trial("ten")
        results = [finish(child) for child in [world.start() for _ in range(10)]]
        self.assertEqual([(result.exit_code, result.names) for result in results], [(0, ["out.png"])] * 10, results)
        self.assertEqual(world.posts(), 1)
        self.check_end(world, ["out.png"], "ten")

    def test_takes_over_when_the_other_dies(self) -> None:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            with self.fresh(number):
                world, answer = self.held(f"dies-{number}")
                first = self.start_and_wait(world)
                twin = world.start("--json")
                self.wait_for_words(twin, "at work elsewhere")
                self.kill(first, number)
                answer.set()
                result = finish(twin)
                self.assertEqual((result.exit_code, result.json["source"], world.posts()), (0, "collected", 1), result)
                self.assertIn("collected: already paid, about $0.0", result.stderr)
                self.assertNotIn("cost:", result.stderr)
                self.check_end(world, ["out.png"], result.stderr)

    def test_takes_over_when_the_other_dies_before_it_has_sent_anything(self) -> None:
        world = self.trial("unsent", "--header", "X-Slow: yes")
        text = f'case "$*" in *version*) ;; *) sleep 3;; esac\nexec {shutil.which("curl")} "$@"\n'
        slow = self.shell_script("curl", text, world.root / "slow")
        first = world.launch(sys.executable, PROGRAM, *world.command(), start_new_session=True, env={
            world.key_variable: KEY, "PATH": os.path.dirname(slow) + os.pathsep + environ["PATH"]})
        self.wait_until(lambda: bool(world.journal()))
        twin = world.start("--json")
        self.wait_for_words(twin, "at work elsewhere")
        os.killpg(first.pid, signal.SIGTERM)
        finish(first)
        result = finish(twin)
        self.assertEqual((result.exit_code, world.posts()), (0, 1), result)
        self.check_end(world, ["out.png"], result.stderr)

    def test_fails_as_the_other_fails_and_sends_nothing(self) -> None:
        for answer, exit_code, kind in ((Answer(status=400), REFUSED, "refused"), (Answer(status=401), SETUP, "key"),
                                        (Answer(status=500), NO_ANSWER, "server"),
                                        (Answer(body=b'{"data": []}'), NO_ANSWER, "no_image"),
                                        (Answer(body=b'{"error": {"message": "no", "code": "insufficient_quota"}}',
                                                status=429), LIMITED, "quota")):
            with self.fresh(kind):
                world, event = self.held(f"fails-{kind}", answer=answer)
                first = self.start_and_wait(world, "--json")
                twin = world.start("--json")
                self.wait_for_words(twin, "at work elsewhere")
                event.set()
                results = [finish(first), finish(twin)]
                self.assertEqual([result.exit_code for result in results], [exit_code] * 2, results)
                self.assertEqual(results[0].json["error"], results[1].json["error"])
                self.assertEqual((results[1].json["error"]["kind"], world.posts()), (kind, 1))

    def test_another_output_is_another_picture(self) -> None:
        self.server.plan(Answer(delay=1.0), Answer(delay=1.0))
        world = self.trial("another")
        children = [world.start(), world.start("-o", "other.png")]
        results = [finish(child) for child in children]
        self.assertEqual(([result.names for result in results], world.posts()), ([["out.png"], ["other.png"]], 2))
        again = world.run("-o", "third.png")
        self.assertEqual((again.names, world.posts()), (["third.png"], 3), "a finished one is another picture too")

    def test_stopped_twin_leaves_the_other_alone(self) -> None:
        world, answer = self.held("patient")
        first = self.start_and_wait(world)
        twin = world.start("--json")
        self.wait_for_words(twin, "at work elsewhere")
        result = self.kill(twin, signal.SIGTERM)
        self.assertEqual((result.exit_code, result.json["error"]["next"]), (143, "again"), result)
        answer.set()
        self.assertEqual((finish(first).exit_code, world.posts()), (0, 1))
        self.check_end(world, ["out.png"], "patient")

    def test_twin_gives_up_waiting_after_its_timeout(self) -> None:
        world, answer = self.held("impatient")
        first = self.start_and_wait(world)
        result = world.run("--json", "--timeout", "1")
        self.assertEqual((result.exit_code, result.json["error"]["kind"]), (NO_ANSWER, "timeout"), result)
        self.assertEqual(result.json["error"]["next"], "again")
        answer.set()
        self.assertEqual((finish(first).exit_code, world.posts()), (0, 1))

    def test_without_history_too(self) -> None:
        self.server.default = Answer(delay=1.0)
        world = self.trial("no-history")
        self.write_config({"history": False}, path=world.home / ".config" / "gpt-image-2" / "config.json")
        results = [finish(child) for child in [world.start() for _ in range(4)]]
        self.assertEqual([result.names for result in results], [["out.png"]] * 4, results)
        self.assertEqual((world.posts(), self.receipts(world)), (1, []))
        again = world.run()
        self.assertEqual((again.names, world.posts()), (["out-2.png"], 2), "a finished one is forgotten")


@POSIX
class MadeBeforeTest(OnceCase):

    def check_bought(self, world: World, result: Result, warning: str) -> None:
        """It bought another picture, and one line says why."""
        self.assertEqual((result.exit_code, result.json["source"], world.posts()), (0, "bought", 2), result)
        self.assertEqual([warning in line for line in result.stderr.split("\n")].count(True), 1, result.stderr)

    def test_tells_the_same_and_sends_nothing(self) -> None:
        world = self.trial("again")
        first = world.run("--json").json
        with self.server.lock:
            asked = len(self.server.requests)
        result = world.run()
        self.assertEqual(result.stdout, f"Saved: {first['saved'][0]['path']} ({result.saved[0][1]} KB)\n")
        self.assertIn("made before", result.stderr)
        self.assertIn("nothing was bought now; --fresh buys another take", result.stderr)
        told = world.run("--json").json
        self.assertEqual(told["source"], "made_before")
        self.assertEqual({**told, "source": "bought", "http_status": 200}, first)
        with self.server.lock:
            self.assertEqual(len(self.server.requests), asked)

    def test_needs_neither_key_nor_curl_nor_a_folder_to_write(self) -> None:
        world = self.trial("nothing-needed")
        world.run()
        bare = world.launch(sys.executable, PROGRAM, *world.command(), env={"PATH": str(world.tmp)})
        result = finish(bare)
        self.assertEqual((result.exit_code, result.names), (0, ["out.png"]), result)

    def test_several_images_and_an_edit(self) -> None:
        for words, options, names in ((("generate",), ("--n", "2"), ["out-1.png", "out-2.png"]),
                                      (("edit", "in.png"), (), ["out.png"])):
            with self.fresh(words):
                world = self.make_world(words[0], words=words, options=options)
                (world.work / "in.png").write_bytes(plain_png(64, 64))
                results = [world.run(), world.run()]
                self.assertEqual(([result.names for result in results], world.posts()), ([names, names], 1), results)

    def test_input_that_is_gone_from_its_address(self) -> None:
        self.server.files["in.png"] = plain_png(64, 64)
        world = self.make_world("gone", words=("edit", self.server.origin + "/files/in.png"))
        first = world.run()
        self.server.files.clear()
        with self.server.lock:
            asked = len(self.server.requests)
        again = world.run("--json")
        self.assertEqual((first.exit_code, again.exit_code, again.json["source"]), (0, 0, "made_before"), again)
        with self.server.lock:
            self.assertEqual(len(self.server.requests), asked, "nothing is fetched either")

    def test_other_words_for_the_same_place(self) -> None:
        world = self.trial("places")
        world.run()
        (world.root / "link").symlink_to(world.work)
        for output in (str(world.work / "out.png"), "./out.png", str(world.root / "link" / "out.png")):
            self.assertEqual((world.run("-o", output).exit_code, world.posts()), (0, 1), output)

    def test_fresh_buys_another_take_which_counts_from_then_on(self) -> None:
        world = self.trial("fresh")
        names = [world.run(*more).names for more in ((), ("--fresh",), ())]
        self.assertEqual((names, world.posts()), ([["out.png"], ["out-2.png"], ["out-2.png"]], 2))
        self.assertEqual(len(self.receipts(world)), 2)

    def test_stopped_fresh_take_is_collected_without_fresh(self) -> None:
        world = self.trial("fresh-stopped")
        world.run()
        self.server.plan(Answer(delay=1.0))
        child = world.start("--fresh")
        self.wait_until(lambda: world.posts() == 2)
        self.assertIn("without --fresh", self.kill(child, signal.SIGINT).stderr)
        result = world.run("--json")
        self.assertEqual((result.names or [row["path"][-9:] for row in result.json["saved"]], world.posts()),
                         (["out-2.png"], 2), result)
        self.assertEqual(result.json["source"], "collected")

    def test_changed_or_gone_pictures_are_bought(self) -> None:
        def move(world: World) -> None:
            (world.work / "out.png").rename(world.work / "mine.png")

        def change(world: World) -> None:
            (world.work / "out.png").write_bytes(plain_png(8, 8))

        def touch(world: World) -> None:
            os.utime(str(world.work / "out.png"), (1, 1))

        def folder(world: World) -> None:
            (world.work / "out-2.png").unlink()
            (world.work / "out-2.png").mkdir()

        for spoil in (move, change, touch, folder):
            with self.fresh(spoil.__name__):
                world = self.trial(spoil.__name__, *(["--n", "2"] if spoil is folder else []))
                world.run()
                spoil(world)
                self.check_bought(world, world.run("--json"), "gone or was changed")

    def test_receipts_that_cannot_be_used(self) -> None:
        broken: Mapping[str, Any] = {
            "no JSON": "{", "another kind": "[]", "empty": "", "deep": "[" * 100_000,
            "no files": '{"schema": 1, "time": 1, "prompt": "x", "output": "x"}',
            "odd time": '{"schema": 1, "time": NaN, "prompt": "x", "output": "x", "saved": []}',
            "odd files": '{"schema": 1, "time": 1, "prompt": "x", "output": "x", "saved": [{"path": 1}]}'}
        for name, text in broken.items():
            with self.fresh(name):
                world = self.trial(name.replace(" ", "-"))
                world.run()
                (path,) = world.receipts.glob("*.json")
                path.write_text(text)
                listed = self.config(world, "--history")
                self.assertEqual((listed.exit_code, listed.stderr.count("warning")), (0, 1), listed)
                self.check_bought(world, world.run("--json"), "is ignored")
                self.assertEqual(world.run("--json").json["source"], "made_before")

    def test_newer_receipt_is_left_alone(self) -> None:
        world = self.trial("newer")
        world.run()
        (path,) = world.receipts.glob("*.json")
        path.write_text('{"schema": 2}')
        self.check_bought(world, world.run("--json"), "newer version")
        self.assertEqual(path.read_text(), '{"schema": 2}')

    @unittest.skipIf(not hasattr(os, "getuid") or os.getuid(), "needs root")
    def test_receipt_of_another_user_is_ignored(self) -> None:
        world = self.trial("foreign")
        world.run()
        (path,) = world.receipts.glob("*.json")
        os.chown(str(path), 4321, 4321)
        self.check_bought(world, world.run("--json"), "is ignored")

    def test_state_folder_that_cannot_be_written(self) -> None:
        world = self.trial("read-only")
        (world.home / ".local").write_text("a file")
        (world.tmp / f"gpt-image-2-{os.getuid()}").mkdir()
        (world.tmp / f"gpt-image-2-{os.getuid()}").chmod(0o777)
        for name in ("out.png", "out-2.png"):
            result = world.run()
            self.assertEqual((result.exit_code, result.names), (0, [name]), result)
            self.assertEqual(result.stderr.count("this command is not remembered"), 1, result.stderr)

    def test_clock_that_was_in_the_future(self) -> None:
        world = self.trial("clock")
        world.run()
        (path,) = world.receipts.glob("*.json")
        record = json.loads(path.read_text())
        for seconds in (4e9, 1e30, -1e30, 0):
            path.write_text(json.dumps({**record, "time": seconds}))
            self.assertEqual((world.run("--json").json["source"], world.posts()), ("made_before", 1), seconds)
            self.assertIn("out.png", self.config(world, "--history").stdout)

    def test_forgotten_after_90_days_and_looked_for_once_a_day(self) -> None:
        world = self.trial("old")
        world.run()
        (path,) = world.receipts.glob("*.json")
        os.utime(str(path), (time.time() - 91 * 86400,) * 2)
        world.run("-o", "second.png")
        self.assertTrue(path.exists(), "today's look was before")
        os.utime(str(world.receipts / ".pruned"), (time.time() - 2 * 86400,) * 2)
        world.run("-o", "third.png")
        self.assertEqual((path.exists(), len(self.receipts(world))), (False, 2))

    def test_wrong_clock_forgets_nothing(self) -> None:
        self.server.plan(Answer(delay=0.3))
        world = self.trial("wrong-clock")
        self.kill(self.start_and_wait(world))
        self.assert_no_orphans()
        other = self.trial("another-fox")
        other.home, other.requests, other.receipts = world.home, world.requests, world.receipts
        os.utime(str(next(world.requests.glob("[!.]*"))), (0, 0))
        other.run()
        self.assertEqual((world.run("--json").json["source"], world.posts()), ("collected", 1))

    def test_receipts_are_private_and_hold_no_key(self) -> None:
        world = self.trial("private", "--header", "X-Secret: test-secret-1234")
        world.run()
        (path,) = world.receipts.glob("*.json")
        for each in (world.receipts, path):
            self.assertEqual(each.stat().st_mode & 0o077, 0, each)
        for secret in (KEY, "test-secret-1234"):
            self.assertNotIn(secret, path.read_text())


@POSIX
class InterruptedByAPersonTest(OnceCase):

    def test_says_how_to_get_the_picture_and_how_to_give_it_up(self) -> None:
        world, answer = self.held("ctrl-c")
        child = self.start_and_wait(world)
        result = self.kill(child, signal.SIGINT)
        self.assertEqual(result.exit_code, 130, "no terminal: an exit code")
        last = result.stderr.rstrip("\n").split("\n")[-2:]
        self.assertIn("the image is still being made", last[0])
        self.assertIn("Run the same command again", last[1])
        self.assertIn(f"config --forget {world.journal()[0][-8:]}", last[1])
        answer.set()
        self.collect(world, "ctrl-c")

    def catches(self, pid: int, number: int) -> bool:
        """Whether a process has a handler for a signal."""
        caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path("/proc", str(pid), "status").read_text())
        return bool(caught and int(caught[1], 16) >> (number - 1) & 1)

    def is_waiting(self, pid: int) -> bool:
        """Whether a process sleeps, and has not woken up for a moment."""
        status = Path("/proc", str(pid), "status")
        wanted = r"State:\s*S|voluntary_ctxt_switches:.*"
        before = re.findall(wanted, status.read_text())
        time.sleep(0.2)
        return len(before) == 3 and before == re.findall(wanted, status.read_text())

    @unittest.skipUnless(os.path.exists("/proc/uptime"), "needs /proc")
    def test_before_anything_is_sent_it_just_stops(self) -> None:
        world = self.trial("early")
        reader, writer = os.pipe()
        self.addCleanup(os.close, writer)
        with contextlib.closing(os.fdopen(reader, "rb")) as prompt:
            child = subprocess.Popen([sys.executable, str(PROGRAM), "generate", "-", *self.access()], stdin=prompt,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=world.environment())
        self.wait_until(lambda: self.catches(child.pid, signal.SIGTERM))  # then it is about to read the prompt
        # It must be reading by then: Python cannot interrupt a read that begins just after the signal came.
        self.wait_until(lambda: self.is_waiting(child.pid))
        result = self.kill(child, signal.SIGINT)
        self.assertEqual((result.exit_code, len(result.errors)), (130, 1), result)
        self.assertIn("nothing was sent", result.stderr)
        self.assertEqual((world.posts(), world.journal()), (0, []))

    def test_on_a_terminal_it_dies_of_the_signal(self) -> None:
        self.server.plan(Answer(delay=2.0))
        world = self.trial("terminal")
        leader, terminal = pty.openpty()
        self.addCleanup(os.close, leader)
        child = world.start(stderr=terminal)
        os.close(terminal)
        self.wait_until(lambda: world.posts() == 1)
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)
        self.assertEqual(child.returncode, -signal.SIGINT)
        self.collect(world, "terminal")

    def test_shell_loop_ends(self) -> None:
        self.server.default = Answer(delay=2.0)
        world = self.trial("loop")
        leader, terminal = pty.openpty()
        self.addCleanup(os.close, leader)
        loop = 'for name in 1 2 3; do "$@"; done; echo went on'
        child = world.launch("bash", "-c", loop, "bash", sys.executable, PROGRAM, *world.command(), stderr=terminal,
                             env={world.key_variable: KEY}, start_new_session=True)
        os.close(terminal)
        self.wait_until(lambda: world.posts() == 1)
        os.killpg(child.pid, signal.SIGINT)  # as the terminal does
        self.assertNotIn(b"went on", child.communicate(timeout=30)[0])
        self.assertEqual(world.posts(), 1)


@POSIX
class ForgetTest(OnceCase):

    def abandoned(self, name: str, **options: Any) -> World:
        """A world whose command was killed while its picture was made."""
        world, self.answer = self.held(name, **options)
        self.kill(self.start_and_wait(world))
        return world

    def test_ends_the_transfer_and_removes_the_request(self) -> None:
        world = self.abandoned("given-up")
        name = world.journal()[0][-8:]
        result = self.config(world, "--forget", name)
        self.assertEqual((result.exit_code, world.journal()), (0, []), result)
        self.assertEqual(result.stdout, f"forgot {name}: {world.work / 'out.png'} ({world.prompt}). "
                                        "You may be charged for this image.\n")
        self.assert_no_orphans()
        self.assertEqual((world.run().exit_code, world.posts()), (0, 2))

    def test_finished_transfer_was_billed(self) -> None:
        world = self.abandoned("finished")
        self.answer.set()
        self.assert_no_orphans()
        told = self.config(world, "--forget", "all", "--json").json
        self.assertEqual([(each["billed"], each["output"]) for each in told["forgotten"]],
                         [("yes", str(world.work / "out.png"))])
        self.assertEqual(world.journal(), [])

    def test_unknown_and_nothing(self) -> None:
        world = self.trial("unknown")
        result = self.config(world, "--forget", "9000eebc")
        self.assertEqual((result.exit_code, len(result.errors)), (USAGE, 1))
        self.assertIn("no request has this id", result.stderr)
        self.assertIn("config", result.stderr)
        self.assertEqual(self.config(world, "--forget").exit_code, USAGE)
        self.assertEqual(self.config(world, "--forget", "all").exit_code, 0)

    def test_request_at_work_is_spared_by_all_and_ended_by_its_id(self) -> None:
        world, _ = self.held("busy")
        child = self.start_and_wait(world, "--json")
        result = self.config(world, "--forget", "all")
        self.assertEqual((result.exit_code, len(world.journal())), (0, 1))
        self.assertIn("a running command works on", result.stderr)
        result = self.config(world, "--forget", world.journal()[0][-8:])
        self.assertEqual((result.exit_code, world.journal()), (0, []), result)
        ended = finish(child)
        self.assertEqual((ended.exit_code, ended.json["error"]["billed"]), (NO_ANSWER, "maybe"), ended)

    def set_age(self, folder: Path, seconds: float) -> str:
        """Make a request older and return when it began, as people write it."""
        began = (time.time() - seconds) // 60 * 60 + 30  # far from the next minute
        os.utime(str(folder / "request.json"), (began, began))
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(began))

    def test_config_lists_what_is_unfinished(self) -> None:
        world = self.abandoned("listed")
        folder = next(world.requests.glob("[!.]*"))
        times = []
        for name, hours in (("b" * 24 + "-12345678", 1), ("a" * 24 + "-87654321", 49)):
            other = world.requests / name
            shutil.copytree(str(folder), str(other), ignore=shutil.ignore_patterns("1.*"))
            other.chmod(0o700)
            times.append(self.set_age(other, 3600 * hours + 60))
        times.append(self.set_age(folder, 190))
        lines = [line for line in self.config(world).stdout.split("\n") if line.startswith("unfinished")]
        what = f"{world.work / 'out.png'} ({world.prompt})"
        self.assertEqual(lines, [f"unfinished  87654321  {times[1]}, not sent yet: {what}",
                                 f"unfinished  12345678  {times[0]}, not sent yet: {what}",
                                 f"unfinished  {folder.name[-8:]}  {times[2]}, still being made: {what}"])
        self.answer.set()
        self.assert_no_orphans()
        self.assertIn(f"{times[2]}, ready to be collected", self.config(world).stdout)

    def test_terminal_is_told_of_pictures_that_wait(self) -> None:
        world = self.abandoned("waiting")
        self.answer.set()
        self.assert_no_orphans()
        leader, terminal = pty.openpty()
        child = world.launch(sys.executable, PROGRAM, "generate", "another fox", "--base-url", self.server.url, "-o",
                             "b.png", env={world.key_variable: KEY}, stderr=terminal)
        os.close(terminal)
        child.communicate(timeout=30)
        self.assertIn(b"finished, but not collected: 1", os.read(leader, 10_000))
        os.close(leader)
        self.assertNotIn("not collected", world.run("-o", "c.png", "--fresh").stderr, "nobody is there")


@POSIX
class HistoryTest(OnceCase):

    def test_lists_and_sums(self) -> None:
        world = self.trial("history")
        for number in range(3):
            world.run("-o", f"{number}.png")
        paths = sorted(world.receipts.glob("*.json"), key=lambda path: json.loads(path.read_text())["time"])
        for path, days in zip(paths, (60, 10)):
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "time": record["time"] - days * 86400,
                                        "cost_usd": None if days == 10 else 0.25}))
        lines = self.config(world, "--history").stdout.rstrip("\n").split("\n")
        self.assertEqual([line.split()[6] for line in lines[:3]], [str(world.work / f"{n}.png") for n in range(3)])
        self.assertIn("$0.250", lines[0])
        self.assertIn("?", lines[1])
        self.assertEqual([line.split(":")[0] for line in lines[3:]], ["today", "30 days", "all"])
        self.assertIn("pictures: 3, 1 of them of unknown cost", lines[5])
        told = self.config(world, "--history", "1", "--json").json
        self.assertEqual([each["output"] for each in told["history"]], [str(world.work / "2.png")])
        cost = told["history"][0]["cost_usd"]
        self.assertEqual(told["sums"], {"today": {"pictures": 1, "cost_usd": cost, "unknown": 0},
                                        "30 days": {"pictures": 2, "cost_usd": cost, "unknown": 1},
                                        "all": {"pictures": 3, "cost_usd": round(0.25 + cost, 4), "unknown": 1}})

    def test_cost_of_several_pictures_stands_once(self) -> None:
        world = self.trial("several")
        cost = world.run("--n", "3", "--json").json["cost_usd"]
        lines = self.config(world, "--history").stdout.splitlines()
        self.assertEqual([line.count(f"${cost:.3f}") for line in lines[:3]], [1, 0, 0], lines)
        self.assertEqual([f"out-{number}.png" in line for number, line in enumerate(lines[:3], 1)], [True] * 3)

    def test_reads_nothing_but_receipts(self) -> None:
        world = self.trial("alone")
        world.run()
        shutil.rmtree(str(world.work))
        self.write_config("broken", path=world.home / ".config" / "gpt-image-2" / "config.json")
        world.work.mkdir()
        result = self.config(world, "--history")
        self.assertEqual((result.exit_code, result.stdout.count("out.png")), (0, 1), result)

    def test_nothing_yet_and_bad_numbers(self) -> None:
        world = self.trial("none")
        self.assertIn("all: $0.000, pictures: 0", self.config(world, "--history").stdout)
        for number in ("0", "-1", "x", "1.5"):
            result = self.config(world, "--history", number)
            self.assertEqual((result.exit_code, len(result.errors)), (USAGE, 1), result)


class ReceiptNameTest(unittest.TestCase):

    def test_name_depends_on_request_and_place(self) -> None:
        names = {program.Identity(print_, output).receipt for print_ in ("a" * 24, "b" * 24)
                 for output in ("/x/a.png", "/x/b.png", "/x/\udcff.png")}
        self.assertEqual(len(names), 6)
        self.assertTrue(all(len(name) == 24 + 1 + 16 + 5 for name in names))


@POSIX
class KilledAtTheEndTest(OnceCase):
    """Killed when the picture has its name: the next run finds it, buys nothing and remembers it once."""

    def killed_at(self, name: str, function: str, *options: str) -> World:
        """A world whose command was killed when it called this function for the first time."""
        world = self.trial(name, *options)
        lines = ("import os, runpy, signal, sys\nsys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
                 "import gpt_image2 as program\ndef die(*values): os.kill(os.getpid(), signal.SIGKILL)\n"
                 f"program.{function} = die\nsys.exit(program.main(sys.argv[2:]))")
        result = world.run(through=(sys.executable, "-c", lines, PROGRAM))
        self.assertEqual((result.exit_code, world.pictures()), (-signal.SIGKILL, ["out.png"]), result)
        return world

    def test_same_command_tells_it(self) -> None:
        for function in ("command_of", "keep_receipt", "is_over", "Console.finish", "Folder.remove"):
            with self.fresh(function):
                world = self.killed_at(function, function)
                for source in ("collected", "made_before"):
                    result = world.run("--json")
                    self.assertEqual((result.exit_code, result.json["source"], world.posts()), (0, source, 1), result)
                self.check_end(world, ["out.png"], function)
                self.assertEqual(len(self.receipts(world)), 1)

    def test_same_request_with_another_output_goes_there(self) -> None:
        world = self.killed_at("elsewhere", "command_of")
        result = world.run("-o", "other.png")
        self.assertEqual((result.exit_code, result.names, world.posts()), (0, ["other.png"], 1), result)
        self.assertEqual((world.work / "other.png").read_bytes(), (world.work / "out.png").read_bytes())
