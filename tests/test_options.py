"""One table says which options exist: parser, help, advice, requests and the documents agree with it."""
from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import unittest
from os import environ
from typing import Any, Iterator, NamedTuple
from unittest import mock

from api_server import draw_png
from runapi_server import RunApiServer
from support import KEY, PROGRAM, ProgramCase, mask_png, program

USAGE = 2
README, SKILL = ((PROGRAM.parent.parent / name).read_text(encoding="utf-8") for name in ("README.md", "SKILL.md"))
COMMANDS = {flag: {command for row in program.OPTIONS if row.flag == flag for command in row.commands}
            for flag in (row.flag for row in program.OPTIONS)}
OPTION = r"(?<![\w-])--[a-z][a-z-]*"


class OptionsTableTest(unittest.TestCase):
    """The table itself."""

    def test_no_option_stands_twice(self) -> None:
        for command in ("generate", "edit", "config"):  # -f is the --force of config and the --overwrite of others
            flags = [name for row in program.OPTIONS if command in row.commands
                     for name in (row.flag, row.short) if name]
            self.assertEqual(len(flags), len(set(flags)))
        self.assertEqual(len(program.OPTIONS), len({row.flag for row in program.OPTIONS}))

    def test_what_has_a_wire_name_has_one_of_its_own(self) -> None:
        for names in ([row.wire for row in program.OPTIONS if row.wire],
                      [row.runapi for row in program.OPTIONS if row.runapi]):
            self.assertEqual(len(names), len(set(names)))

    def test_a_config_file_may_have_an_empty_list_of_headers(self) -> None:
        self.assertEqual(program.checked_value("config.json", "headers", {}), {})


class OptionsInDocumentsTest(unittest.TestCase):
    """README.md and SKILL.md know the options of the table and no others."""

    def test_the_table_in_readme_is_complete(self) -> None:
        found: dict[str, set[str]] = {}
        for cell in re.findall(r"^\| (`-[^|]*(?:\\\|[^|]*)*) \|", README, re.MULTILINE):
            for flag in re.findall(OPTION, cell):
                found[flag] = set(re.findall(r"\((config|edit|generate)\)", cell)) or {"generate", "edit"}
        wanted = {flag: commands - {"config"} or commands for flag, commands in COMMANDS.items()}
        self.assertEqual(found, wanted)

    def test_every_option_that_is_named_exists(self) -> None:
        others = {"--enable", "--version", "--help"}
        for text in (README, SKILL):
            for span in re.findall(r"`([^`\n]+)`", text):
                self.assertEqual(set(re.findall(OPTION, span)) - set(COMMANDS) - others, set(), span)

    def test_every_command_line_uses_options_of_its_command(self) -> None:
        lines = re.findall(r"(?:gpt-image2|gpt_image2\.py) (generate|edit|config)\b([^`\n]*)", README + SKILL)
        self.assertGreater(len(lines), 10)
        for command, rest in lines:
            for flag in re.findall(OPTION, re.sub(r"\"[^\"]*\"", "", rest)):
                if flag != "--help":
                    self.assertIn(command, COMMANDS.get(flag, ()), f"{command}{rest}")


class OptionsHelpTest(ProgramCase):
    """The help comes from the table."""

    def test_lines_fit_into_79_columns(self) -> None:
        with mock.patch.object(sys, "argv", ["gpt_image2"]):
            for text in (program.HELP, *(program.help_for([command, "--help"]) for command in program.SYNOPSIS)):
                for line in text.split("\n"):
                    self.assertLessEqual(len(line), 79, line)

    def test_each_command_shows_its_options_and_no_others(self) -> None:
        for command in program.SYNOPSIS:
            shown = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", self.run_program(command, "--help").stdout, re.MULTILINE)
            self.assertEqual(shown, [row.flag for row in program.OPTIONS if command in row.commands])

    def test_defaults_are_named(self) -> None:
        for row in program.OPTIONS:
            if row.default:
                self.assertIn(str(row.default), row.value + row.help, row.flag)

    def test_argparse_is_never_loaded(self) -> None:
        measured = {"PYTHONPROFILEIMPORTTIME": "1"}
        for words in (["--help"], ["generate", "--help"], ["--version"], ["generate"], ["config"]):
            self.assertNotRegex(self.run_program(*words, env=measured).stderr, r"\bargparse\b")


class OptionsAdviceTest(ProgramCase):
    """A wrong spelling of an option suggests it."""

    def test_one_letter_too_many(self) -> None:
        for row in program.OPTIONS:
            for command in row.commands:
                wrong = row.flag + row.flag[-1]
                with self.subTest(f"{command} {wrong}"), self.assertRaises(program.Failure) as caught:
                    program.parse([command, "a fox", wrong])
                self.assertIn(f"unknown option {wrong}. Did you mean {row.flag}?", caught.exception.message)

    def test_the_program_says_so(self) -> None:
        result = self.run_program("generate", "a fox", "--qualitty", "low")
        self.assertEqual(result.exit_code, USAGE)
        self.assertIn("Did you mean --quality?", result.stderr)


class Sample(NamedTuple):
    """How an option with a wire name is given, and what the server then gets under that name."""
    arguments: list[str]
    sent: str


SAMPLES = {
    "mask": Sample(["--mask", "mask.png"], "mask.png"),
    "input_fidelity": Sample(["--input-fidelity", "high", "--model", "gpt-image-1.5"], "high"),
    "size": Sample(["--size", "landscape"], "1536x1024"),
    "quality": Sample(["--quality", "low"], "low"),
    "n": Sample(["--n", "2"], "2"),
    "format": Sample(["--format", "webp"], "webp"),
    "compression": Sample(["--compression", "0", "--format", "webp"], "0"),
    "background": Sample(["--background", "transparent"], "transparent"),
    "moderation": Sample(["--moderation", "low"], "low"),
    "stream": Sample(["--stream"], "true"),
    "partial_images": Sample(["--partial-images", "2", "--stream"], "2"),
}
RUNAPI_SAMPLES = {"aspect_ratio": Sample(["--aspect-ratio", "3:2"], "3:2"),
                  "resolution": Sample(["--resolution", "2k", "--aspect-ratio", "3:2"], "2k")}


class OptionsOnTheWireTest(ProgramCase):
    """What has a wire name is sent under it, and what RunAPI lacks is refused there."""

    def setUp(self) -> None:
        """Write the input files."""
        super().setUp()
        self.file("fox.png", draw_png(64, 48, 1))
        self.file("mask.png", mask_png(64, 48))

    def test_each_is_sent_under_its_name(self) -> None:
        rows = {row.name: row.wire for row in program.OPTIONS if row.wire}
        self.assertEqual(set(rows), set(SAMPLES), "a row with a wire name needs a sample here")
        for name, sample in SAMPLES.items():
            with self.subTest(name):
                self.server.reset()
                self.assert_succeeded(self.edit("fox.png", "a hat", *sample.arguments))
                post = self.only_post()
                if name == "mask":
                    self.assertIn("mask", [part.name for part in post.parts])
                else:
                    self.assertEqual(str(post.fields.get(rows[name])).lower(), sample.sent)

    def test_what_is_left_out_is_not_sent(self) -> None:
        self.assert_succeeded(self.edit("fox.png", "a hat"))
        self.assertEqual(set(self.only_post().fields), {"model", "prompt"})
        for words in (["--size", "auto"], ["--quality", "auto"], ["--background", "auto"], ["--moderation", "auto"],
                      ["--format", "png"], ["--n", "1"]):
            self.server.reset()
            self.forget()
            self.assertEqual(self.generate_inside("a fox", *words).exit_code, 0)
            self.assertEqual(set(self.only_post().fields), {"model", "prompt"}, words)

    def test_runapi_refuses_what_it_lacks_and_nothing_else(self) -> None:
        lacking = {row.name for row in program.OPTIONS if row.wire and row.runapi is None}
        self.assertEqual(set(SAMPLES) - lacking, {"size", "n"})
        with RunApiServer(KEY) as server:
            for row in program.OPTIONS:
                if row.name in SAMPLES:
                    with self.subTest(row.flag):
                        result = self.run_inside(
                            "edit", "fox.png", "a hat", *SAMPLES[row.name].arguments, "--api", "runapi",
                            "--base-url", server.origin, env={"RUNAPI_API_KEY": KEY})
                        self.assertEqual(result.exit_code, USAGE if row.name in lacking else 0, result.stderr)
                        refused = result.stderr.partition("RunAPI does not support ")[2].split(".")[0].split(", ")
                        self.assertEqual(row.flag in refused, row.name in lacking, result.stderr)

    def test_runapi_gets_its_own_names(self) -> None:
        rows = {row.name: row.runapi for row in program.OPTIONS if row.runapi}
        self.assertEqual(set(rows), set(RUNAPI_SAMPLES))
        for name, sample in RUNAPI_SAMPLES.items():
            with self.subTest(name), RunApiServer(KEY) as server:
                result = self.run_program("generate", "a fox", *sample.arguments, "--api", "runapi", "--base-url",
                                          server.origin, env={"RUNAPI_API_KEY": KEY})
                self.assert_succeeded(result)
                self.assertEqual(server.creates[0].fields[rows[name]], sample.sent)


FORBIDDEN = ("open", "os.mkdir", "os.listdir", "os.scandir", "socket", "subprocess")
EVENTS: list[str] = []
WATCHED: list[bool] = []


def listen(event: str, _: tuple[Any, ...]) -> None:
    """Note what the interpreter does, while somebody wants to know."""
    if WATCHED and event.startswith(FORBIDDEN):
        EVENTS.append(event)


class PlanTest(ProgramCase):
    """Building a job touches no disk and no network; reading its inputs changes nothing."""

    def setUp(self) -> None:
        """Write the input files."""
        super().setUp()
        self.fox, self.mask = self.file("fox.png", draw_png(96, 48, 1)), self.file("mask.png", mask_png(96, 48))

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Fail when a file, a folder or a socket is opened or looked at."""
        if hasattr(sys, "addaudithook") and listen not in PlanTest.hooks:
            sys.addaudithook(listen)
            PlanTest.hooks.append(listen)
        EVENTS.clear()
        WATCHED.append(True)
        try:
            with mock.patch("os.stat", side_effect=AssertionError("os.stat")), \
                    mock.patch("os.lstat", side_effect=AssertionError("os.lstat")):
                yield
        finally:
            WATCHED.clear()
        self.assertEqual(EVENTS, [])
    hooks: list[Any] = []

    def plan(self, *words: str, api: str = "openai") -> Any:
        """Return (settings, job) of a command, planned twice: the first time may load modules."""
        with mock.patch.dict(environ, {"HOME": str(self.home)}, clear=True):
            options = program.parse([*words])
            settings = program.load_settings({"api": api})
            program.fill_options(options, settings, [])
            prompt, paths = program.read_words(options)
            for watch in (contextlib.nullcontext, self.untouched):
                with watch():
                    job = program.plan(options, settings, prompt, paths, [])
        return settings, job

    def refused(self, *words: str, api: str = "openai") -> str:
        """Return the message of a command that plan refuses without looking at anything."""
        messages = []
        for watch in (contextlib.nullcontext, self.untouched):
            with mock.patch.dict(environ, {"HOME": str(self.home)}, clear=True):
                options, settings = program.parse([*words]), program.load_settings({"api": api})
                program.fill_options(options, settings, [])
                prompt, paths = program.read_words(options)
                with watch(), self.assertRaises(program.Failure) as caught:
                    program.plan(options, settings, prompt, paths, [])
            messages.append(caught.exception.message)
        self.assertEqual(messages[0], messages[1])
        return str(messages[0])

    def test_nothing_is_touched(self) -> None:
        place = str(self.work / "new" / "hat.webp")
        _, job = self.plan("generate", "a fox", "--aspect-ratio", "16:9", "--resolution", "2k", "-o", place)
        self.assertEqual(job.parameters, {"size": "2560x1440", "output_format": "webp"})
        _, job = self.plan("edit", self.fox, "a hat", "--mask", self.mask, "--aspect-ratio", "auto", "-o", place)
        self.assertEqual((job.parameters, job.resolution), ({"output_format": "webp"}, "1k"))
        self.assertFalse((self.work / "new").exists())

    def test_the_command_of_a_job_means_the_same(self) -> None:
        for api in ("openai", "runapi"):
            words = ["generate", "a fox", "--n", "2", "--aspect-ratio", "3:2", "--resolution", "2k"]
            settings, job = self.plan(*words, api=api)
            identity = program.identity_of(job, settings)
            with mock.patch.object(sys, "argv", ["gpt-image2"]):
                told = program.command_of(program.Order(job, settings, identity, {}, False))
            settings, job = self.plan(*shlex.split(told)[1:], api=api)
            self.assertEqual(program.identity_of(job, settings), identity, told)

    def test_the_watch_sees_what_it_looks_for(self) -> None:
        if not hasattr(sys, "addaudithook"):
            self.skipTest("needs Python 3.8")
        with self.assertRaises(AssertionError), self.untouched(), open(os.devnull, "rb"):
            pass
        with self.assertRaises(AssertionError), self.untouched():
            os.path.isdir(self.fox)

    def test_what_words_alone_decide_is_refused(self) -> None:
        for words, message in (((" ",), "prompt is empty"), (("x" * 32001,), "32001 characters"),
                               (("a fox", "--size", "17x17"), "is not supported"),
                               (("a fox", "--size", "16:9", "--aspect-ratio", "1:1"), "use either --size"),
                               (("a fox", "--aspect-ratio", "9:1"), "3 times"),
                               (("a fox", "--aspect-ratio", "wide"), "like 16:9"),
                               (("a fox", "--quality", "best"), "quality 'best'"),
                               (("a fox", "--compression", "5"), "--compression needs"),
                               (("a fox", "-o", "a.gif"), "does not make gif"),
                               (("a fox", "-o", "-"), "give a file name")):
            with self.subTest(words):
                self.assertIn(message, self.refused("generate", *words))
        many = [f"--image={self.fox}"] * 17
        self.assertIn("17 images", self.refused("edit", "a hat", *many))
        self.assertIn("RunAPI does not support --mask",
                      self.refused("edit", self.fox, "a hat", "--mask", self.mask, api="runapi"))

    def test_inputs_say_where_they_are(self) -> None:
        words = (self.fox, "https://x.invalid/a.png?token=1", "data:image/png;base64,AAAA", "FILE:///b.png")
        _, job = self.plan("edit", *words, "a hat")
        self.assertEqual([image.origin for image in job.images], ["file", "url", "data", "file"])
        self.assertEqual({(image.digest, image.bytes) for image in job.images}, {("", 0)})
        self.assertEqual(job.images[1].name, "image https://x.invalid/a.png")

    def test_the_half_that_only_reads_makes_and_fetches_nothing(self) -> None:
        place = self.work / "new" / "hat.png"
        settings, job = self.plan("edit", self.fox, "a hat", "--image", "https://x.invalid/a.png", "--mask", self.mask,
                                  "--resolution", "1k", "-o", str(place))
        read = program.read_inputs(job, settings, [])
        self.assertEqual((read.parameters["size"], read.images[1].origin), ("1440x720", "url"))
        self.assertFalse(place.parent.exists())
        program.check_folder(read.target, read.n, "auto")
        self.assertFalse(place.parent.exists())
        program.check_folder(read.target, read.n, "auto", write=True)
        self.assertTrue(place.parent.is_dir())

    def test_a_shape_that_waits_for_an_unread_image_waits_on(self) -> None:
        settings, job = self.plan("edit", "https://x.invalid/a.png", "a hat", "--resolution", "1k")
        self.assertNotIn("size", program.read_inputs(job, settings, []).parameters)

    def test_a_parameter_wins_over_the_shape(self) -> None:
        settings, job = self.plan("edit", self.fox, "a hat", "--resolution", "1k", "--param", "size=2k")
        self.assertEqual(program.read_inputs(job, settings, []).parameters["size"], "2k")

    def test_auto_is_a_square_where_no_image_has_a_shape(self) -> None:
        _, job = self.plan("generate", "a fox", "--aspect-ratio", "auto")
        self.assertEqual((job.parameters, job.resolution), ({"size": "1024x1024"}, ""))


if __name__ == "__main__":
    unittest.main()
