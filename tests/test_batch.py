"""Many pictures in one command: generate --batch."""
from __future__ import annotations

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Sequence

from api_server import Answer
from support import (
    KEY,
    LIMITED,
    NO_ANSWER,
    PROGRAM,
    SETUP,
    USAGE,
    Argument,
    ProgramCase,
    Result,
    mask_png,
    plain_png,
    program,
)

HAS_FORK = unittest.skipUnless(hasattr(os, "fork"), "needs fork")
HAS_PROC = unittest.skipUnless(os.path.exists("/proc/uptime"), "needs /proc")
# A system without fork, and therefore without flock.
FORKLESS = ("import sys, os; sys.modules['fcntl'] = None; del os.fork; sys.argv = sys.argv[1:]; import runpy; "
            "runpy.run_path(sys.argv[0], run_name='__main__')")


class BatchCase(ProgramCase):
    """Runs batches whose lines are given as texts or as mappings."""

    def lines(self, *lines: Any, name: str = "lines.txt") -> str:
        """Write a batch and return its name."""
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.file(name, text + "\n")
        return name

    def batch(self, lines: Sequence[Any], *options: Argument, **more: Any) -> Result:
        """Run a batch to its end."""
        return self.generate("--batch", self.lines(*lines), *options, **more)

    def start(self, lines: Sequence[Any], *options: Argument, **more: Any) -> subprocess.Popen[bytes]:
        """Start a batch and return at once."""
        return self.start_generate("--batch", self.lines(*lines), *options, **more)

    def records(self, result: Result) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
        """(the JSON objects of the jobs by their lines, the last one)."""
        objects = [json.loads(line) for line in result.stdout.splitlines()]
        return {each["job"]: each for each in objects[:-1]}, objects[-1]

    def counts(self, result: Result) -> dict[str, int]:
        """What became of the jobs, as the last JSON object says."""
        last = self.records(result)[1]["batch"]
        return {name: last[name] for name in ("bought", "collected", "made_before", "failed", "not_started")
                if last[name]}

    def prompts(self) -> list[str]:
        """The prompts that arrived."""
        return [post.fields["prompt"] for post in self.server.posts]

    def held(self, answer: Answer | None = None) -> threading.Event:
        """Let the server hold all answers back until this is set."""
        event = threading.Event()
        self.addCleanup(event.set)
        self.server.default = (answer or Answer())._replace(event=event)
        return event

    def state(self, pid: int) -> tuple[str, int]:
        """(state, parent) of a process; a dead one is a zombie or has none."""
        try:
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            return fields[0], int(fields[1])
        except OSError:
            return "Z", 0

    def is_alive(self, pid: int) -> bool:
        """Whether a process still runs."""
        return self.state(pid)[0] != "Z"

    def children(self, pid: int) -> list[int]:
        """The processes that a process has started and that still run."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self.is_alive(int(name))
                and self.state(int(name))[1] == pid]


class BatchLinesTest(BatchCase):
    """What a batch may hold, and where its pictures go."""

    def test_texts_and_objects_and_edits(self) -> None:
        self.file("fox.png", plain_png(64, 64))
        self.file("mask.png", mask_png(64, 64))
        result = self.batch(["# a comment", "  a red fox  ", "", {"prompt": "a bear", "size": "1536x1024",
                             "quality": "low", "n": 2, "output_format": None}, {"prompt": "a hat", "image": "fox.png",
                             "mask": "mask.png", "input-fidelity": None}, {"prompt": "two", "image": ["fox.png"],
                             "format": "jpeg", "param": {"user": "me"}, "model": "gpt-image-1.5"}], "--jobs", "1")
        self.assert_succeeded(result)
        posts = self.posts_by_prompt()
        self.assertEqual(set(posts), {"a red fox", "a bear", "a hat", "two"})
        self.assertEqual([posts["a bear"].fields[name] for name in ("size", "quality", "n")], ["1536x1024", "low", 2])
        self.assertEqual({posts[prompt].path.rpartition("/")[2] for prompt in ("a hat", "two")}, {"edits"})
        self.assertEqual((posts["two"].fields["user"], posts["two"].fields["model"]), ("me", "gpt-image-1.5"))
        names = sorted(re.sub("-[0-9a-f]{4}", "-####", name) for name in os.listdir(str(self.work / "lines")))
        self.assertEqual(names, ["a-bear-####-1.png", "a-bear-####-2.png", "a-hat-####.png", "a-red-fox-####.png",
                                 "two-####.jpg"])
        self.assertEqual(len(result.saved), 5)

    def test_byte_order_mark_and_line_ends(self) -> None:
        self.file("lines.txt", b"\xef\xbb\xbfa fox\r\na bear\r\n\r\n# no\rtwo cats")
        self.assert_succeeded(self.generate("--batch", "lines.txt"))
        self.assertEqual(sorted(self.prompts()), ["a bear", "a fox", "two cats"])

    def test_standard_input(self) -> None:
        result = self.generate("--batch", "-", stdin="a fox\na bear\n")
        self.assert_succeeded(result)
        self.assertEqual(sorted(os.listdir(str(self.work))), ["batch"])

    def test_options_of_the_command_are_defaults_of_the_lines(self) -> None:
        self.write_config({"size": "1536x1024", "jobs": 2})
        self.assert_succeeded(self.batch(["a", {"prompt": "b", "quality": "high"}, {"prompt": "c", "size": "16:9"}],
                                         "--quality", "low"))
        found = {post.fields["prompt"]: (post.fields["quality"], post.fields["size"]) for post in self.server.posts}
        self.assertEqual(found, {"a": ("low", "1536x1024"), "b": ("high", "1536x1024"), "c": ("low", found["c"][1])})
        self.assertNotEqual(found["c"][1], "1536x1024")

    def test_where_pictures_go(self) -> None:
        self.file("prompts", "a fox\n")
        (self.work / "there").mkdir()
        other = self.root / "other" / "cat.png"
        lines = ["one", {"prompt": "two", "output": "in/two.png"}, {"prompt": "three", "output": str(other)},
                 {"prompt": "four", "output": "sub/"}]
        result = self.batch(lines, "-o", "new/pics")
        self.assert_succeeded(result)
        paths = [str(Path(path).relative_to(self.root)) for path, _ in result.saved]
        found = sorted(re.sub("-[0-9a-f]{4}", "-####", path) for path in paths)
        self.assertEqual(found, ["other/cat.png", "work/new/pics/in/two.png", "work/new/pics/one-####.png",
                                 "work/new/pics/sub/four-####.png"])
        self.assertEqual(Path(self.generate("--batch", "prompts").saved[0][0]).parent.name, "prompts-pictures")
        self.file("batch", "a fox\n")
        self.assertEqual(Path(self.generate("--batch", "batch").saved[0][0]).parent.name, "batch-pictures")
        self.write_config({"output": str(self.root / "always")})
        self.assertEqual(Path(self.generate("--batch", "prompts").saved[0][0]).parent.name, "always")

    def test_equal_lines_are_one_picture(self) -> None:
        result = self.batch(["a fox", {"prompt": "a fox"}, {"prompt": "a fox", "output": "x.png"},
                             {"prompt": "a fox", "output": "x.png"}], "--json")
        self.assertEqual((len(self.server.posts), self.counts(result)), (2, {"bought": 2}))

    def test_names_do_not_depend_on_the_order(self) -> None:
        lines = [f"a balloon, number {number}, in the sky over a very long sentence" for number in range(5)]
        first = self.batch(lines, "--jobs", "4")
        second = self.batch(["another one", *lines[::-1]], "--json")
        self.assertEqual(self.counts(second), {"bought": 1, "made_before": 5})
        self.assertEqual({each["saved"][0]["path"] for each in self.records(second)[0].values() if each["job"] > 1},
                         {path for path, _ in first.saved})


class BatchNamesTest(unittest.TestCase):
    """file_stem: names from prompts."""

    def test_any_script_and_every_file_system(self) -> None:
        for prompt, wanted in {
                "A red fox, in the snow!": "a-red-fox-in-the-snow", "Ein Bär": "ein-bär",
                "Ein Ba\u0308r": "ein-bär", "狐狸 在 雪中": "狐狸-在-雪中", "🦊🦊": "picture",
                "नमस्ते दुनिया": "नमस्ते-दुनिया", "../x": "x", "con": "con",
                "a\tb\\c:d*e?f\"g<h>i|j": "a-b-c-d-e-f-g-h-i-j", "---": "picture", ".hidden": "hidden"}.items():
            with self.subTest(prompt):
                self.assertEqual(program.file_stem(prompt), wanted)

    def test_never_long(self) -> None:
        for prompt in ("word " * 100, "x" * 1000, "狐" * 1000, "é" * 1000):
            stem = program.file_stem(prompt)
            self.assertTrue(1 < len(stem.encode()) <= 50, stem)
            self.assertFalse(stem.endswith("-"))

    def test_equal_four_digits_and_equal_words(self) -> None:
        def order(digits: str, line: int) -> Any:
            target = program.Target("/x", f"fox-{digits[:4]}", ".png", False)
            job = program.Job("generate", "m", f"fox {digits}", (), None, {"n": 1}, 1, target)
            identity = program.Identity(digits, f"/x/{target.stem}.png")
            return program.Order(job, None, identity, {"format": "png"}, False, line, False)

        with unittest.mock.patch.object(program, "identity_of", lambda job, settings: program.Identity(
                job.prompt[4:], f"/x/{job.target.stem}.png")):
            pair = [order("abcd111111111111", 1), order("abcd222222222222", 2)]
            for orders in (pair, pair[::-1]):
                found, clashes = program.named_apart(orders)
                self.assertEqual(([each.job.target.stem for each in found], clashes),
                                 (["fox-abcd", "fox-abcd22222222"], []))


class BatchFaultsTest(BatchCase):
    """Everything that is wrong is told before anything is sent."""

    def test_every_fault_with_its_line(self) -> None:
        faults = {
            '{"prompt": "x", "siez": "1024x1024"}': "unknown key 'siez'. Did you mean size?",
            '{"prompt": "x"': "not valid JSON", '{"prompt": "x", "size": "99x99"}': "99x99 is not supported",
            '{"prompt": "x", "image": "no.png"}': "cannot read image no.png",
            '{"n": 1}': "the prompt of a line must be a text in that line",
            '{"prompt": "x", "mask": "no.png"}': "mask needs an image",
            '{"prompt": "x", "n": true}': "n cannot be true", '{"prompt": "x", "n": 99}': "must be between 1 and 10",
            '{"prompt": "x", "overwrite": "yes"}': "overwrite cannot",
            '{"prompt": "x", "quality": "best"}': "quality 'best'", '{"prompt": 7}': "must be a text",
            '{"prompt": "x", "background": "pink"}': "background cannot be 'pink'", "help": "not a prompt",
            '{"prompt": "x", "base_url": "http://a"}': "unknown key",
            '{"prompt": "x", "dry_run": true}': "unknown key",
            '{"prompt": "x", "size": {"a": 1}}': "size cannot be an object", "-": "must be a text",
            "y.png": "is an image", '{"prompt": "x", "output": "same.png"}': "",
            '{"prompt": "' + "x" * 40_000 + '"}': "has 40000 characters",
            '{"prompt": "z", "output": "Same.PNG"}': "line 19 saves another picture"}
        lines = list(faults)
        lines[18], lines[19], lines[20] = lines[18], lines[20], lines[19]  # the pair is on lines 19 and 20
        result = self.batch([*lines, "a good one"], "--json")
        self.assertEqual((result.exit_code, self.server.posts), (USAGE, []))
        told = {int(text.split(":")[0][5:]): text for text in result.json["warnings"]}
        for number, line in enumerate(lines, 1):
            if faults[line]:
                with self.subTest(line[:60]):
                    self.assertIn(faults[line], told.get(number, ""))
                    self.assertIn(told[number][:100], result.stderr)
        self.assertEqual(len(told), len(lines) - 1)
        self.assertIn(f"{len(lines) - 1} of {len(lines) + 1} lines cannot be used; nothing was sent",
                      result.json["error"]["message"])
        self.assertEqual(os.listdir(str(self.work)), ["lines.txt"])

    def test_wrong_commands(self) -> None:
        self.lines("a fox")
        (self.work / "folder").mkdir()
        self.file("empty.txt", "\n# nothing\n")
        self.file("binary", plain_png(8, 8))
        self.file("utf16.txt", "a fox".encode("utf-16"))
        for words, message in (
                (["--batch", "folder"], "cannot read the batch"), (["--batch", "no.txt"], "cannot read the batch"),
                (["--batch", "empty.txt"], "there is no prompt in empty.txt"), (["--batch", "binary"], "not UTF-8"),
                (["--batch", "utf16.txt"], "not UTF-8"), (["--batch", "lines.txt", "--jobs", "0"], "between 1 and 16"),
                (["--batch", "lines.txt", "--jobs", "17"], "between 1 and 16"),
                (["a", "--jobs", "2"], "only with --batch"),
                (["--batch", "lines.txt", "--jobs", "x"], "needs a whole number"),
                (["--batch", "lines.txt", "-o", "binary"], "binary: Not a directory"),
                (["--batch", "lines.txt", "-o", "x.png"], "-o names a folder"),
                (["a prompt", "--batch", "lines.txt"], "the prompts are in the lines"),
                (["--prompt-file", "lines.txt", "--batch", "lines.txt"], "the prompts are in the lines"),
                (["--batch", "-", "--config", "-"], "both config and batch"),
                (["--batch", "lines.txt", "--gallery", "no/page.html"], "cannot write no/page.html"),
                (["--batch", "lines.txt", "--gallery", "binary"], "that is not a page of this program")):
            with self.subTest(" ".join(words)):
                result = self.generate(*words, stdin="{}")
                self.assertEqual((result.exit_code, self.server.posts), (USAGE, []), result)
                self.assertIn(message, result.stderr)
        self.assertIn("A line of generate --batch FILE can be an edit", self.edit("--batch", "x").stderr)

    def test_a_key_in_a_line(self) -> None:
        result = self.batch(["a fox", "with secret-key-1234 in it"], env={"GPT_IMAGE2_API_KEY": "secret-key-1234"})
        self.assertEqual((result.exit_code, self.server.posts), (USAGE, []))
        self.assertIn("known key", result.stderr)


class BatchPricesTest(BatchCase):
    """What a batch costs is known, and limited, before it begins."""

    def test_dry_run(self) -> None:
        self.write_config({"price_per_image": 0.02, "base_url": self.server.url})
        lines = ["a fox", {"prompt": "a bear", "n": 3}]
        self.assert_succeeded(self.batch(lines[:1]))
        before = sorted(map(str, self.root.rglob("*")))
        text, result = self.batch(lines, "--dry-run"), self.batch(lines, "--dry-run", "--json")
        self.assertIn("2 jobs, 1 of them to buy; price: about $0.060", text.stdout)
        jobs, last = self.records(result)
        self.assertEqual([jobs[1]["would"], jobs[2]["would"]], ["made_before", "buy"])
        self.assertEqual((jobs[2]["estimate_usd"], last["batch"]),
                         ([0.06, 0.06], {"jobs": 2, "to_buy": 1, "estimate_usd": [0.06, 0.06]}))
        self.assertEqual((len(self.server.posts), sorted(map(str, self.root.rglob("*")))), (1, before))

    def test_max_cost_counts_what_is_still_to_buy(self) -> None:
        self.write_config({"price_per_image": 0.02, "base_url": self.server.url})
        lines = ["a fox", "a bear", "a cat"]
        result = self.batch(lines, "--max-cost", "0.05", "--json")
        self.assertEqual((result.exit_code, result.json["error"]["kind"]), (USAGE, "too_expensive"))
        self.assertEqual(self.server.posts, [])
        self.assert_succeeded(self.batch(lines[:2], "--max-cost", "0.05"))
        self.assert_succeeded(self.batch(lines, "--max-cost", "0.03"))
        self.assertEqual(len(self.server.posts), 3)

    @HAS_FORK
    def test_max_cost_counts_one_unfinished_request_once(self) -> None:
        self.write_config({"price_per_image": 0.01, "base_url": self.server.url})
        event = self.held()
        child = self.start_generate("a fox", "-o", "a.png")
        self.wait_until(lambda: len(self.server.posts) == 1)
        self.kill(child)
        event.set()
        self.server.default = Answer()
        lines = [{"prompt": "a fox", "output": name} for name in ("b.png", "c.png", "d.png")]
        self.assertEqual(self.batch(lines, "--max-cost", "0.015").exit_code, USAGE)
        self.assert_succeeded(self.batch(lines, "--max-cost", "0.025"))
        self.assertEqual(len(self.server.posts), 3)

    def test_unknown_price_under_a_limit(self) -> None:
        result = self.batch(["a fox"], "--max-cost", "1")
        self.assertEqual((result.exit_code, self.server.posts), (USAGE, []))
        self.assertIn("price_per_image", result.stderr)


class BatchResultsTest(BatchCase):
    """What is told, and how a batch ends."""

    def test_json_lines_and_summary(self) -> None:
        self.server.plan(Answer(), Answer(400, check=False))
        result = self.batch(["a fox", "a bear", "a cat"], "--json", "--jobs", "1")
        jobs, last = self.records(result)
        self.assertEqual([jobs[line]["ok"] for line in (1, 2, 3)], [True, False, True])
        self.assertEqual((result.exit_code, last["ok"], self.counts(result)),
                         (program.REFUSED, False, {"bought": 2, "failed": 1}))
        self.assertEqual((last["batch"]["jobs"], last["batch"]["cost_usd"]), (3, round(2 * jobs[1]["cost_usd"], 4)))
        self.assertIn("line 2: gpt_image2: error: HTTP 400", result.stderr)
        self.assertIn("3 jobs: 2 bought, 1 failed;", result.stderr)
        again = self.batch(["a fox", "a bear", "a cat"], "--json")
        self.assertEqual((again.exit_code, self.counts(again)), (0, {"bought": 1, "made_before": 2}))

    def test_text(self) -> None:
        result = self.batch(["a fox", {"prompt": "a bear", "size": "1024x1024"}], "-q")
        self.assertEqual((result.stderr, len(result.saved), len(result.stdout.splitlines())), ("", 2, 2))

    def test_warnings_name_their_line(self) -> None:
        self.server.plan(Answer(size=(512, 512)))
        result = self.batch([{"prompt": "a fox", "size": "1024x1024"}])
        self.assertIn("line 1: warning: you asked for 1024x1024", result.stderr)

    def test_a_refused_key_and_used_up_credit_stop(self) -> None:
        quota = json.dumps({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
        for answer, exit_code, kind in ((Answer(401), SETUP, "key"),
                                        (Answer(429, body=quota.encode()), LIMITED, "quota")):
            with self.fresh(kind):
                self.server.plan(answer)
                result = self.batch(["a", "b", "c"], "--jobs", "1", "--json")
                self.assertEqual((result.exit_code, self.counts(result)), (exit_code, {"failed": 1, "not_started": 2}))
                self.assertEqual((len(self.server.posts), self.records(result)[0][1]["error"]["kind"]), (1, kind))
                self.assertIn("2 not started", result.stderr)

    def test_rate_limit_slows_all_and_gets_a_second_round(self) -> None:
        limited = Answer(429, headers=(("Retry-After", "1"),))
        self.server.plan(*[limited] * 5, Answer())
        result = self.batch(["a", "b"], "--jobs", "1", "--json")
        self.assertEqual((result.exit_code, self.counts(result)), (0, {"bought": 2}))
        self.assertEqual(self.prompts(), ["a"] * 5 + ["b", "a"])
        self.server.reset()
        self.server.plan(Answer(429, headers=(("Retry-After", "2"),)))
        self.batch(["c", "d", "e"], "--jobs", "1")
        first = self.server.posts[0].when
        self.server.reset()
        self.server.plan(Answer(429, headers=(("Retry-After", "2"),)), Answer(delay=0.5))
        self.batch([str(number) for number in range(6)], "--jobs", "2")
        first, *others = [post.when for post in self.server.posts]
        self.assertEqual([when for when in others if first + 0.4 < when < first + 1.9], [], "the pause is for all")

    def test_a_part_that_met_a_rate_limit_is_told(self) -> None:
        limited = Answer(429, headers=(("Retry-After", "0"),))
        self.server.plan(*[limited] * 5, Answer(401))
        result = self.batch(["a", "b", "c"], "--jobs", "1", "--json")
        jobs, _ = self.records(result)
        self.assertEqual({line: each["error"]["kind"] for line, each in jobs.items()}, {1: "rate_limit", 2: "key"})
        self.assertEqual(self.counts(result), {"failed": 2, "not_started": 1})

    def test_a_model_that_one_line_may_not_use(self) -> None:
        self.server.plan(Answer(403))
        result = self.batch([{"prompt": "a", "model": "gpt-image-9"}, "b"], "--jobs", "1", "--json")
        self.assertEqual(self.counts(result), {"bought": 1, "failed": 1})

    def test_nothing_is_promised_with_fresh(self) -> None:
        self.server.plan(Answer(400, check=False))
        self.assertNotIn("is not bought again", self.batch(["a"], "--fresh").stderr)

    @HAS_FORK
    def test_jobs_at_a_time(self) -> None:
        event = self.held()
        child = self.start([f"fox {number}" for number in range(5)], "--jobs", "3")
        self.wait_until(lambda: len(self.server.posts) == 3)
        time.sleep(0.3)
        self.assertEqual(len(self.server.posts), 3)
        event.set()
        self.assert_succeeded(self.finish(child))
        self.assertEqual(len(self.server.posts), 5)

    def test_without_fork_one_after_the_other(self) -> None:
        result = self.finish(self.start(["a", "b", "# c"], "--jobs", "3", "--json",
                                        through=(sys.executable, "-c", FORKLESS, PROGRAM)))
        self.assertEqual((result.exit_code, self.counts(result)), (0, {"bought": 2}), result)

    def test_without_fork_a_signal_stops_and_faults_are_told_once(self) -> None:
        event = threading.Event()
        self.addCleanup(event.set)
        self.server.plan(Answer(400, check=False), Answer(), Answer(event=event))
        child = self.start(["a", "b", "c", "d"], "--json", through=(sys.executable, "-c", FORKLESS, PROGRAM))
        self.wait_until(lambda: len(self.server.posts) == 3)
        child.send_signal(signal.SIGINT)
        result = self.finish(child)
        self.assertEqual((result.exit_code, self.counts(result)), (130, {"bought": 1, "failed": 2, "not_started": 1}))
        self.assertEqual(result.stderr.count("line 1: gpt_image2: error"), 1)


class GalleryOptionTest(BatchCase):
    """--gallery: the page of a batch, of a command and of the history."""

    def page(self, name: str = "page.html") -> str:
        """What is written there."""
        return (self.work / name).read_text(encoding="utf-8")

    def test_of_a_batch(self) -> None:
        self.server.plan(Answer(), Answer(400, check=False))
        told = self.batch(["a fox <b>", {"prompt": "a bear", "size": "1024x1024"}], "--gallery", "page.html",
                          "--jobs", "1")
        self.assertIn(f"2 jobs, 2 to buy, price: unknown; {self.work / 'page.html'}", told.stderr)
        page = self.page()
        self.assertEqual((page.count("<li>"), page.count("<img "), "a fox &lt;b&gt;" in page), (2, 1, True))
        self.assertIn("1 failed", page)
        self.assertNotIn("to come", page)
        name = next((self.work / "lines").iterdir()).name
        self.assertIn(f'src="lines/{name}"', page)
        again = re.findall(r"<code>(.*?)</code>", page)
        self.assertEqual(len(again), 2)
        self.assertIn("--size 1024x1024", again[1])

    @HAS_FORK
    def test_can_be_watched(self) -> None:
        event = threading.Event()
        self.addCleanup(event.set)
        self.server.plan(Answer(), Answer(event=event))
        child = self.start(["a fox", "a bear"], "--gallery", "page.html", "--jobs", "1")
        self.wait_until(lambda: (self.work / "page.html").exists())
        self.assertIn("1 picture, $0.006, 1 to come", self.page())
        event.set()
        self.finish(child)
        self.assertIn("2 pictures", self.page())

    def test_of_one_command_and_again(self) -> None:
        command = ("a fox", "--size", "1024x1024", "-o", "fox.png", "--gallery", "page.html")
        self.assert_succeeded(self.generate(*command))
        first = self.page()
        self.assert_succeeded(self.generate(*command))
        self.assertEqual((first.count("<img "), self.page().count("<img "), len(self.server.posts)), (1, 1, 1))
        words = shlex.split(html.unescape(re.findall(r"<code>(.*?)</code>", first)[0]))
        result = self.finish(self.start_program(*words[2:], env={"GPT_IMAGE2_API_KEY": KEY}))
        self.assertIn("made before", result.stderr, "the command of the page is the same command")
        self.assertEqual(len(self.server.posts), 1)

    def test_of_the_history(self) -> None:
        self.generate("a fox", "-o", "a.png")
        self.generate("a bear", "-o", "b.png")
        self.assert_succeeded(self.run_program("config", "--history", "--gallery", "page.html"))
        self.assertLess(self.page().index("a bear"), self.page().index("a fox"), "the newest first")
        self.assertEqual(self.run_program("config", "--gallery", "page.html").exit_code, USAGE)

    def test_hides_what_looks_like_a_key_and_inputs_with_a_login(self) -> None:
        result = self.generate("draw sk" + "-abcdefgh1234567890 here", "--gallery", "page.html", "-o", "a.png")
        self.assert_succeeded(result)
        self.assertNotIn("abcdefgh", self.page())
        self.assertIn("draw *** here", self.page())

    def test_never_replaces_what_is_not_its_own(self) -> None:
        self.file("mine.html", "<p>mine")
        self.assertEqual(self.generate("a fox", "-o", "fox.png", "--gallery", "fox.png").exit_code, USAGE)
        for words in (["generate", "a fox", *self.access()], ["config", "--history"]):
            result = self.run_program(*words, "--gallery", "mine.html", env={"GPT_IMAGE2_API_KEY": KEY})
            self.assertEqual((result.exit_code, self.server.posts), (USAGE, []))
        self.assertEqual(self.page("mine.html"), "<p>mine")


@HAS_FORK
class BatchAgainTest(BatchCase):
    """Whatever happens to a batch: the same batch buys only what is missing."""
    LINES = [f"fox number {number}" for number in range(6)]

    def buy_the_rest(self, at_most: int) -> None:
        """The same batch again makes all pictures; so many requests in all at most."""
        self.server.default = Answer()
        result = self.batch(self.LINES, "--json")
        self.assertEqual((result.exit_code, self.records(result)[1]["batch"]["failed"]), (0, 0), result)
        self.assertLessEqual(len(self.server.posts), at_most)
        self.assertEqual(sorted(set(self.prompts())), self.LINES)
        self.assertEqual((len(os.listdir(str(self.work / "lines"))), self.journal()), (6, []))

    def test_what_may_be_paid_is_asked_for_first(self) -> None:
        for status, asked in ((524, True), (400, False)):
            self.server.plan(Answer(), Answer(status, check=False))
            told = self.batch([f"{status} {line}" for line in self.LINES[:2]], "--jobs", "1").stderr
            self.assertIn("Run the same command again for the rest", told)
            self.assertEqual("Ask first: 1 may be charged, and would be bought again." in told, asked, told)

    @HAS_PROC
    def test_after_a_kill_no_child_waits_and_nothing_is_bought_twice(self) -> None:
        event = self.held()
        child = self.start(self.LINES, "--jobs", "3")
        self.wait_until(lambda: len(self.server.posts) == 3)
        workers = self.children(child.pid)
        self.assertEqual(len(workers), 3)
        self.kill(child)
        self.wait_until(lambda: not any(map(self.is_alive, workers)))
        event.set()
        self.buy_the_rest(6)

    def test_after_a_signal(self) -> None:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            with self.fresh(number):
                event = self.held()
                child = self.start(self.LINES, "--jobs", "2", "--json")
                self.wait_until(lambda: len(self.server.posts) == 2)
                result = self.kill(child, number)
                self.assertEqual(result.exit_code, code, result)
                self.assertEqual(self.counts(result), {"failed": 2, "not_started": 4})
                jobs, _ = self.records(result)
                self.assertEqual({(each["error"]["kind"], each["error"]["next"]) for each in jobs.values()},
                                 {("stopped", "again")})
                self.assertIn("4 not started: interrupted", result.stderr)
                event.set()
                self.buy_the_rest(6)
                for path in (self.work / "lines").iterdir():
                    path.unlink()

    @HAS_PROC
    def test_a_child_that_dies_is_a_failed_job(self) -> None:
        event = self.held()
        child = self.start(self.LINES, "--jobs", "2", "--json")
        self.wait_until(lambda: len(self.server.posts) == 2)
        os.kill(self.children(child.pid)[0], signal.SIGKILL)
        self.wait_until(lambda: len(self.server.posts) == 3)
        event.set()
        result = self.finish(child)
        self.assertEqual((result.exit_code, self.counts(result)), (NO_ANSWER, {"bought": 5, "failed": 1}), result)
        self.assertIn("the job's process died", result.stderr)
        self.buy_the_rest(6)

    def test_a_reader_that_goes_away(self) -> None:
        event = self.held()
        child = self.start(self.LINES, "--jobs", "2", "--json")
        self.wait_until(lambda: len(self.server.posts) == 2)
        assert child.stdout
        child.stdout.close()
        child.stdout = None
        self.assertEqual(self.finish(child).exit_code, program.UNREAD)
        event.set()
        self.buy_the_rest(6)

    def test_beside_itself_and_beside_a_single_command(self) -> None:
        self.server.default = Answer(delay=0.5)
        children = [self.start(self.LINES, "--jobs", "4") for _ in range(2)]
        stem = program.file_stem(self.LINES[0])
        results = [self.finish(child) for child in children]
        self.assertEqual([result.exit_code for result in results], [0, 0], results)
        self.assertEqual(sorted(self.prompts()), self.LINES)
        name = next(path for path in (self.work / "lines").iterdir() if path.name.startswith(stem))
        self.assert_succeeded(self.generate(self.LINES[0], "-o", str(name)))
        self.assertEqual(len(self.server.posts), 6, "a single command knows what a batch has made")



if __name__ == "__main__":
    unittest.main()
