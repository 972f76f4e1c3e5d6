"""Whatever is wrong with a command or a local file: one exit code, one clear line, and nothing is sent."""
from __future__ import annotations

import json
import os
import re
import sys
import unittest
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from api_server import draw_jpeg, draw_png
from support import (
    ERROR_FIELDS,
    KEY,
    PROGRAM,
    RESULT_FIELDS,
    SETUP,
    USAGE,
    ProgramCase,
    Result,
    mask_png,
    plain_png,
    png_chunk,
)

PROMPT = "a red fox"
SMALL = plain_png(64, 48)
GIF = b"GIF89a" + (64).to_bytes(2, "little") + (48).to_bytes(2, "little") + b"\0\0\0;"


class StrangeModulesTest(ProgramCase):
    """A copy of the program runs no other file that lies beside it."""

    def test_modules_beside_a_copy(self) -> None:
        copy = self.file("tool/gpt_image2.py", PROGRAM.read_bytes())
        for name in ("shlex", "json", "tempfile", "subprocess", "argparse", "re", "time", "difflib"):
            self.file(f"tool/{name}.py", "raise SystemExit('a stranger')\n")
        for folder in (self.work, self.work / "tool"):
            result = self.finish(self.start_generate("a fox", "-o", "a.png", through=(sys.executable, copy),
                                                     cwd=folder))
            self.assertEqual((result.exit_code, "stranger" in result.stderr), (0, False), result.stderr)


class Bad(NamedTuple):
    """One wrong command: what it is, and a fragment of the error line and of the hint below it."""
    name: str
    arguments: list[str]
    message: str
    hint: str = ""
    exit_code: int = USAGE
    kind: str = ""  # else that of the class
    env: dict[str, str | None] = {}
    stdin: str = ""


class BadInputCase(ProgramCase):
    """Runs wrong commands: all with --json, which reports on both streams, and one of each table as a child."""
    kind = "usage"

    def refuse(self, *table: Bad) -> None:
        """Check a table of wrong commands."""
        for bad in table:
            with self.subTest(bad.name):
                result = self.run_inside(*self.words(bad, "--json"), env=self.variables(bad), stdin=bad.stdin)
                self.check_error_line(bad, result)
                self.check_object(bad, result)
        with self.subTest(f"{table[0].name}, human form"):
            words = self.words(table[0], "--quiet")
            result = self.run_program(*words, env=self.variables(table[0]), stdin=table[0].stdin)
            self.check_error_line(table[0], result)
            self.assertEqual(result.stdout, "")
        self.assertEqual(self.server.requests, [])

    def words(self, bad: Bad, form: str) -> list[str]:
        """Return a wrong command line; the form stands early, where no missing value can swallow it."""
        return [*bad.arguments[:1], form, *bad.arguments[1:]]

    def variables(self, bad: Bad) -> dict[str, str | None]:
        """Return its variables; the server and its key are there, so that only the fault stops the command."""
        return {"GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.server.url, **bad.env}

    def check_error_line(self, bad: Bad, result: Result) -> None:
        """Check exit code, error line and hint."""
        self.assertEqual(result.exit_code, bad.exit_code, result.stderr)
        self.assertEqual(len(result.errors), 1, result.stderr)
        self.assertTrue(result.errors[0].startswith("gpt_image2: error: "), result.errors[0])
        self.assertIn(bad.message, result.errors[0])
        self.assertIn(bad.hint, result.stderr.partition(result.errors[0])[2])
        self.assertNotIn("Traceback", result.stderr)

    def check_object(self, bad: Bad, result: Result) -> None:
        """Check the one object on standard output."""
        document = result.json
        self.assertEqual(set(document), RESULT_FIELDS | {"error"})
        error = document["error"]
        self.assertEqual(set(error), ERROR_FIELDS)
        self.assertEqual((document["schema"], document["ok"], document["saved"]), (1, False, []))
        self.assertEqual((error["kind"], error["billed"], error["retryable"], error["http_status"]),
                         (bad.kind or self.kind, "no", False, None), error)
        self.assertIn(bad.message, error["message"])
        self.assertIn(bad.hint, error["hint"])


class BadPromptTest(BadInputCase):
    """Prompts that the API would refuse, or bill although they say nothing."""

    def test_empty_and_blank(self) -> None:
        blank, image = self.file("blank.txt", " \n\t\n"), self.file("a.png", SMALL)
        self.refuse(
            Bad("empty", ["generate", ""], "the prompt is empty"),
            Bad("blanks", ["generate", " \t \n "], "the prompt is empty"),
            Bad("wide blank", ["generate", "\u3000\u00a0"], "the prompt is empty"),
            Bad("blank file", ["generate", "--prompt-file", blank], "the prompt is empty"),
            Bad("empty input", ["generate", "-"], "the prompt is empty"),
            Bad("blank input", ["generate", "-"], "the prompt is empty", stdin="\n\n"),
            Bad("edit", ["edit", image, " "], "the prompt is empty"))

    def test_missing(self) -> None:
        image = self.file("a.png", SMALL)
        self.refuse(
            Bad("no prompt", ["generate"], "the prompt is missing", "quotes"),
            Bad("edit without prompt", ["edit", image], "the prompt is missing"),
            Bad("no file", ["generate", "--prompt-file", "none.txt"], "none.txt: No such file"),
            Bad("folder", ["generate", "--prompt-file", "/"], "cannot read the prompt from /"),
            Bad("two sources", ["generate", PROMPT, "--prompt-file", image], "too many arguments"),
            Bad("no quotes", ["generate", "a", "red", "fox"], "too many arguments", "quotes"))

    def test_too_long(self) -> None:
        long = "\N{FOX FACE}" * 32001
        self.refuse(
            Bad("argument", ["generate", "x" * 32001], "32001 characters; the limit is 32000"),
            Bad("file", ["generate", "--prompt-file", self.file("p.txt", long)], "32001 characters"),
            Bad("input", ["generate", "-"], "32001 characters", stdin=long),
            Bad("endless file", ["generate", "--prompt-file", "/dev/zero"], "the limit is 32000"),
            Bad("cut inside a character", ["generate", "--prompt-file",
                                           self.file("q.txt", "x" + "\N{FOX FACE}" * 64000)],
                "the limit is 32000"))

    def test_not_utf8(self) -> None:
        self.refuse(
            Bad("argument", ["generate", os.fsdecode(b"caf\xe9")], "not valid UTF-8"),
            Bad("file", ["generate", "--prompt-file", self.file("p.txt", b"caf\xe9")], "not UTF-8"))


class BadInputImageTest(BadInputCase):
    """Input files that are no usable images."""
    kind = "input"

    def test_missing_and_unreadable(self) -> None:
        image, long = self.file("a.png", SMALL), "x" * 300 + ".png"
        self.refuse(
            Bad("missing", ["edit", "none.png", PROMPT], "none.png: No such file"),
            Bad("second missing", ["edit", image, PROMPT, "--image", "none.png"], "none.png: No such file"),
            Bad("below a file", ["edit", image + "/b.png", PROMPT], "b.png: Not a directory"),
            Bad("long name", ["edit", long, PROMPT], "File name too long"),
            Bad("nothing given", ["edit"], "the prompt is missing", kind="usage"),
            Bad("empty name", ["edit", "", PROMPT], "name of the image is empty"),
            Bad("address for a prompt", ["edit", "https://relay.invalid/a.png", "--image", image],
                "the prompt is missing", kind="usage"),
            Bad("name for a prompt", ["edit", "none.jpg", "--image", image], "the prompt is missing",
                kind="usage"),
            Bad("control character", ["edit", "a\1.png", PROMPT], "control character in its name"),
            Bad("only a prompt file", ["edit", "--prompt-file", self.file("p.txt", PROMPT)],
                "the image to edit is missing", "edit IMAGE", kind="usage"),
            Bad("address", ["edit", "https://relay.invalid/a.png", PROMPT], "cannot fetch image https://relay.invalid"))

    @unittest.skipIf(os.geteuid() == 0, "root reads everything")
    def test_without_permission(self) -> None:
        image = self.file("a.png", SMALL)
        os.chmod(image, 0)
        self.refuse(Bad("mode 000", ["edit", image, PROMPT], "a.png: Permission denied"))

    def test_folders_and_devices(self) -> None:
        self.file("folder.png/inside", "")
        os.mkfifo(str(self.work / "pipe.png"))  # opening it would wait for ever
        self.refuse(
            Bad("folder", ["edit", "folder.png", PROMPT], "folder.png is a folder"),
            Bad("folder as second", ["edit", "--image", self.file("a.png", SMALL), "--image", ".", PROMPT],
                ". is a folder"),
            Bad("pipe", ["edit", "pipe.png", PROMPT], "pipe.png is not a file"),
            Bad("device", ["edit", "/dev/zero", PROMPT], "/dev/zero is not a file"))

    def test_content(self) -> None:
        rows = []
        for name, content in (("text.png", "no picture"), ("page.jpg", "<html></html>"), ("gif.png", GIF),
                              ("bmp.png", b"BM" + bytes(60)), ("half.png", SMALL[:12]), ("head.jpg", b"\xff\xd8\xff"),
                              ("riff.webp", b"RIFF\x24\0\0\0WAVEfmt " + bytes(40))):
            path = self.file(name, content)
            rows.append(Bad(name, ["edit", path, PROMPT], "is not a PNG, JPEG or WebP image"))
        self.refuse(*rows, Bad("empty", ["edit", self.file("empty.png"), PROMPT], "empty.png is empty"))

    def test_too_many_bytes(self) -> None:
        rows = []
        for name, size in (("limit.png", 50_000_000), ("huge.png", 3_000_000_000)):
            path = self.file(name, SMALL)
            os.truncate(path, size)  # a hole: it takes no room on the disk
            rows.append(Bad(name, ["edit", path, PROMPT], f"{size // 1000000} MB; it must be smaller than 50 MB"))
        self.refuse(*rows)

    def test_too_many(self) -> None:
        image = self.file("a.png", SMALL)
        self.refuse(Bad("17", ["edit", image, PROMPT] + ["--image", image] * 16, "17 images were given; at most 16",
                        kind="usage"))


class BadMaskTest(BadInputCase):
    """Masks that the API would refuse, or that mark nothing."""
    kind = "input"

    def mask(self, name: str, content: bytes, message: str, hint: str = "") -> Bad:
        """Return the edit of a 64x48 image with this mask."""
        arguments = ["edit", self.file("a.png", SMALL), PROMPT, "--mask", self.file(name, content)]
        return Bad(name, arguments, f"mask {self.work / name} {message}", hint)

    def test_without_alpha(self) -> None:
        palette = [png_chunk(b"PLTE", bytes(768))]
        self.refuse(*(self.mask(name, plain_png(64, 48, colour, extra=palette), "has no alpha channel", "alpha 0")
                      for name, colour in (("rgb.png", 2), ("grey.png", 0), ("palette.png", 3))))

    def test_another_size_than_the_image(self) -> None:
        self.refuse(*(self.mask(f"{width}.png", mask_png(width, height), f"is {width}x{height}")
                      for width, height in ((48, 64), (64, 49), (32, 24))))

    def test_fully_opaque(self) -> None:
        self.refuse(self.mask("opaque.png", mask_png(64, 48, clear=False), "is fully opaque", "transparent"),
                    self.mask("grey.png", plain_png(64, 48, 4, 255), "is fully opaque"),
                    self.mask("palette.png", plain_png(64, 48, 3, 0, [png_chunk(b"PLTE", bytes(3)), png_chunk(
                        b"tRNS", b"\xff")]), "is fully opaque"))

    def test_fully_opaque_in_4k(self) -> None:
        image = self.file("4k.png", plain_png(3840, 2160))
        mask = self.file("mask.png", mask_png(3840, 2160, clear=False))
        self.refuse(Bad("4K", ["edit", image, PROMPT, "--mask", mask], "is fully opaque"))

    def test_not_png(self) -> None:
        self.refuse(self.mask("mask.jpg", draw_jpeg(64, 48), "is jpeg, it must be PNG", "alpha 0"),
                    self.mask("text.png", b"text", "is not a PNG"),
                    self.mask("empty.png", b"", "is empty"),
                    self.mask("broken.png", SMALL[:33], "is incomplete"),
                    self.mask("half.png", mask_png(64, 48)[:150], "is incomplete"),
                    self.mask("empty-inside.png", SMALL[:33] + png_chunk(b"IEND", b""), "is a broken PNG"))

    def test_missing(self) -> None:
        image = self.file("a.png", SMALL)
        self.refuse(
            Bad("missing", ["edit", image, PROMPT, "--mask", "none.png"], "cannot read mask none.png: No such file"),
            Bad("folder", ["edit", image, PROMPT, "--mask", "."], "mask . is a folder"),
            Bad("generate", ["generate", PROMPT, "--mask", image], "--mask", kind="usage"))

    def test_measured_against_the_first_image(self) -> None:
        first, second = self.file("a.png", plain_png(48, 48)), self.file("b.png", SMALL)
        mask = self.file("m.png", mask_png(64, 48))
        self.refuse(Bad("second", ["edit", first, PROMPT, "--image", second, "--mask", mask],
                        "the first image is 48x48"))


class BadParameterTest(BadInputCase):
    """Values outside what the model takes."""

    def test_size_outside_the_rules(self) -> None:
        table = (
            ("1000x1000", "multiples of 16", "--size 1008x1008"), ("1920x1080", "multiples of 16", "--size 1920x1088"),
            ("768x768", "has 589,824", "--size 816x816"), ("3008x3008", "has 9,048,064", "--size 2880x2880"),
            ("4096x4096", "longer side", "--size 2880x2880"), ("3840x1264", "3 times", "--size "),
            ("0x0", "0x0 has 0", "--size "), ("abc", "WIDTHxHEIGHT", "1536x1024"), ("", "--size is empty", ""),
            ("10", "WIDTHxHEIGHT", ""), ("1024x", "WIDTHxHEIGHT", ""), ("1024x1024x3", "WIDTHxHEIGHT", ""),
            ("1024 1024", "WIDTHxHEIGHT", ""), ("squar", "square", ""), ("3k", "WIDTHxHEIGHT", ""))
        self.refuse(*(Bad(size or "empty", ["generate", PROMPT, "--size", size], message, hint)
                      for size, message, hint in table))

    def test_nearest_size_of_an_absurd_one_is_legal(self) -> None:
        self.refuse(*(Bad(size, ["generate", PROMPT, "--size", size], size, "--size ")
                      for size in ("99999x16", "16x99999")))
        for size in ("99999x16", "16x99999"):
            hint = self.run_inside("generate", PROMPT, "--size", size).stderr
            width, height = map(int, re.findall(r"--size (\d+)x(\d+)", hint)[-1])
            self.assertEqual(width > height, size.startswith("9"), hint)
            self.assertEqual((width % 16, height % 16), (0, 0))
            self.assertLessEqual(max(width, height), min(3840, 3 * min(width, height)))
            self.assertTrue(655_360 <= width * height <= 8_294_400, hint)

    def test_size_of_a_model_with_three_sizes(self) -> None:
        self.refuse(Bad("1.5", ["generate", PROMPT, "--model", "gpt-image-1.5", "--size", "2048x2048"], "1536x1024"))

    def test_numbers(self) -> None:
        rows = (("--n", "0"), ("--n", "11"), ("--n", "-1"), ("--n", "many"), ("--n", "1.5"), ("--compression", "-1"),
                ("--compression", "101"), ("--timeout", "0"), ("--timeout", "-5"), ("--timeout", "nan"),
                ("--timeout", "inf"), ("--timeout", "soon"))
        self.refuse(*(Bad(f"{option} {value}", ["generate", PROMPT, option, value], option) for option, value in rows))
        self.refuse(Bad("range", ["generate", PROMPT, "--n", "11"], "between 1 and 10"),
                    Bad("half", ["generate", PROMPT, "--n", "1.5"], "needs a whole number"),
                    Bad("no time", ["generate", PROMPT, "--timeout", "0"], "between 1 and 1000000"),
                    Bad("a picture's option without init", ["config", "--size", "square"], "only works with --init"),
                    Bad("force alone", ["config", "--force"], "only works with --init"))

    def test_choices(self) -> None:
        self.refuse(
            Bad("quality", ["generate", PROMPT, "--quality", "ultra"], "low, medium, high"),
            Bad("quality typo", ["generate", PROMPT, "--quality", "hihg"], "'hihg': gpt-image-2 has low, medium, high"),
            Bad("dall-e's quality", ["generate", PROMPT, "--quality", "hd"], "low, medium, high"),
            Bad("newer model's quality", ["generate", PROMPT, "--quality", "max"], "quality 'max'"),
            Bad("format", ["generate", PROMPT, "--format", "tiff"], "tiff"),
            Bad("gif", ["generate", PROMPT, "--format", "gif"], "gif"),
            Bad("background", ["generate", PROMPT, "--background", "red"], "red"),
            Bad("moderation", ["generate", PROMPT, "--moderation", "none"], "none"))

    def test_combinations(self) -> None:
        image = self.file("a.png", SMALL)
        self.refuse(
            Bad("compressed png", ["generate", PROMPT, "--compression", "50"], "--compression needs --format"),
            Bad("clear jpeg", ["generate", PROMPT, "-o", "a.jpg", "--background", "transparent"], "transparen"),
            Bad("fidelity", ["edit", image, PROMPT, "--input-fidelity", "high"], "--input-fidelity"))

    def test_pairs(self) -> None:
        self.refuse(
            Bad("header", ["generate", PROMPT, "--header", "X-Relay"], "Name: value"),
            Bad("no name", ["generate", PROMPT, "--header", ": x"], "Name: value"),
            Bad("param", ["generate", PROMPT, "--param", "seed"], "key=value"),
            Bad("no key", ["generate", PROMPT, "--param", "=1"], "key=value"))

    def test_injected_header(self) -> None:
        for name, header in (("new line", "X-A: b\nX-C: d"), ("carriage return", "X-A: b\rX-C: d"),
                             ("blank in name", "X A: b"), ("quote in name", 'X"A: b')):
            with self.subTest(name):
                result = self.generate_inside(PROMPT, "--header", header)
                self.assertIn(result.exit_code, (USAGE, SETUP))
                self.assertEqual((len(result.errors), self.server.requests), (1, []), result.stderr)


class BadTargetTest(BadInputCase):
    """Places where nothing can be saved."""
    kind = "target"

    def output(self, name: str, path: str, message: str = "cannot save in") -> Bad:
        """Return a generate that is to be saved there."""
        return Bad(name, ["generate", PROMPT, "-o", path], message, "-o")

    def test_impossible_folders(self) -> None:
        regular = self.file("regular", "text")
        self.refuse(
            self.output("below a file", regular + "/cat.png"),
            self.output("folder that is a file", regular + "/"),
            self.output("deeper below a file", regular + "/a/b/cat.png"),
            self.output("where nothing can be made", "/proc/none/cat.png"),
            self.output("where nothing can be written", "/proc/cat.png"),
            self.output("long folder", "x" * 300 + "/cat.png"),
            self.output("long name", "x" * 300 + ".png"))
        self.assertEqual(Path(regular).read_text(), "text")

    @unittest.skipIf(os.geteuid() == 0, "root writes everywhere")
    def test_read_only_folder(self) -> None:
        folder = self.work / "closed"
        folder.mkdir(mode=0o555)
        self.refuse(self.output("read-only", "closed/cat.png"), self.output("below it", "closed/a/cat.png"))

    def test_control_characters(self) -> None:
        self.refuse(*(Bad(repr(name), ["generate", PROMPT, "-o", name], "control character")
                      for name in ("a\nSaved: b.png", "a\x1b[2J.png", "a\tb.png")))


class BadConfigFileTest(BadInputCase):
    """Config files that cannot be used."""

    def config(self, name: str, content: str, message: str) -> Bad:
        """Return a generate with this explicit config file."""
        path = self.write_config(content, path=self.work / f"{name}.json")
        return Bad(name, ["generate", PROMPT, "--config", path], message, exit_code=SETUP, kind="config")

    def test_syntax(self) -> None:
        self.refuse(
            self.config("comma", '{\n  "model": "a"\n  "timeout": 5\n}', "line 3 column 3"),
            self.config("quotes", "{\n  'model': 'a'}", "line 2 column 3"),
            self.config("empty", "", "line 1 column 1"),
            self.config("text", "OPENAI", "line 1 column 1"))
        broken = self.config("a b", "{", "line 1")
        self.assertIn(f"config --init --force --config '{broken.arguments[-1]}'",
                      self.run_inside(*broken.arguments).stderr)  # not the file that is found by itself
        nested = self.work / "nested.json"
        nested.write_text("[" * 100000)
        self.refuse(Bad("nested", ["generate", PROMPT, "--config", str(nested)], "nested.json", exit_code=SETUP,
                        kind="config"))

    def test_not_an_object(self) -> None:
        self.refuse(*(self.config(name, content, f"must contain one JSON object, not {name}")
                      for name, content in (("a list", '["a"]'), ("a string", '"a"'), ("a number", "5"),
                                            ("null", "null"))))

    def test_wrong_types(self) -> None:
        table = (("base_url", 5), ("api_key", ["a"]), ("api_key_env", True), ("api_key_command", "pass show"),
                 ("api_key_command", [1]), ("model", {}), ("timeout", "600"), ("timeout", True), ("headers", ["a"]),
                 ("headers", {"a": 1}), ("proxy", 1), ("cacert", False), ("allow_http", "yes"), ("allow_http", 1))
        self.refuse(*(self.config(f"{name} {number}", json.dumps({name: value}), f"{name} must be ")
                      for number, (name, value) in enumerate(table)))

    def test_wrong_values(self) -> None:
        self.refuse(*(self.config(f"timeout {number}", '{"timeout": %s}' % value, "timeout")
                      for number, value in enumerate(("0", "-1", "NaN", "Infinity", "1e9"))))

    def test_unreadable(self) -> None:
        folder, latin = self.work / "folder", self.work / "latin.json"
        folder.mkdir()
        latin.write_bytes(b'{"model": "caf\xe9"}')
        self.refuse(*(Bad(path, ["generate", PROMPT, "--config", path], f"cannot read config file {path}",
                          exit_code=SETUP, kind="config")
                      for path in (str(folder), str(latin), str(self.work / "none.json"))))

    def test_found_file(self) -> None:
        path = self.write_config('{"model": }')
        self.refuse(Bad("found", ["generate", PROMPT], f"{path}: Expecting value: line 1 column 11",
                        exit_code=SETUP, kind="config"))

    def test_found_folder(self) -> None:
        place = self.home / ".config" / "gpt-image-2" / "config.json"
        place.mkdir(parents=True)
        self.refuse(Bad("found", ["generate", PROMPT], f"{place}: Is a directory", exit_code=SETUP, kind="config"))


class BadKeyAndAddressTest(BadInputCase):
    """Keys and base URLs that would go wrong."""

    def test_key_that_breaks_the_header(self) -> None:
        config = self.write_config({"api_key": "fake\nkey"}, path=self.work / "c.json")
        rows = (("new line", {"GPT_IMAGE2_API_KEY": "fake\nkey"}, [], "line break"),
                ("return", {"GPT_IMAGE2_API_KEY": "fake\rkey"}, [], "line break"),
                ("blank", {"GPT_IMAGE2_API_KEY": "fake key"}, [], "space"),
                ("not ASCII", {"GPT_IMAGE2_API_KEY": "fake\u00e9"}, [], "not ASCII"),
                ("option", {}, ["--api-key", "fake\nkey"], "line break"),
                ("config", {}, ["--config", config], "line break"))
        self.refuse(*(Bad(name, ["generate", PROMPT, *more], message, exit_code=SETUP, kind="key", env=env)
                      for name, env, more, message in rows))

    def test_no_key(self) -> None:
        self.refuse(
            Bad("none", ["generate", PROMPT, "--base-url", "https://relay.invalid/v1"], "no API key",
                "GPT_IMAGE2_API_KEY", SETUP, "key", {"GPT_IMAGE2_API_KEY": None}),
            Bad("unset variable", ["generate", PROMPT, "--api-key-env", "NO_SUCH_NAME"], "NO_SUCH_NAME",
                "", SETUP, "key"))

    def test_unset_variable_of_a_config_is_named(self) -> None:
        config = self.write_config({"base_url": "https://relay.invalid/v1", "api_key_env": "MY_RELAY_NAME"},
                                   path=self.work / "c.json")
        self.refuse(Bad("unset", ["generate", PROMPT, "--config", config],
                        "no API key for relay.invalid: $MY_RELAY_NAME, named in", "as api_key_env in", SETUP, "key",
                        {"GPT_IMAGE2_API_KEY": None, "GPT_IMAGE2_BASE_URL": None}))
        mistaken = self.write_config({"base_url": "https://relay.invalid/v1",
                                      "api_key_env": "test-key-in-place-of-a-name"},
                                     path=self.work / "d.json")
        for arguments in (["generate", PROMPT], ["config"]):
            result = self.run_inside(*arguments, "--config", mistaken)
            self.assertNotIn("test-key-in-place", result.stdout + result.stderr)
        shown = self.run_inside("config", "--config", config).stdout
        self.assertRegex(shown, r"api_key +not set  \(\$MY_RELAY_NAME, named in")

    def test_no_place_for_temporary_files(self) -> None:
        nowhere = {"XDG_STATE_HOME": self.file("state")}  # a file
        env = {"GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.server.url, **nowhere}
        for arguments in (["generate", PROMPT], ["config", "--check"]):
            missing = FileNotFoundError(2, "none")
            with self.subTest(arguments), mock.patch("tempfile.mkdtemp", side_effect=missing), mock.patch(
                    "os.access", return_value=False):
                result = self.run_inside(*arguments, env=env)
                self.assertEqual(result.exit_code, SETUP, result.stderr)
                self.assertIn("no folder for temporary files", result.stderr)
                self.assertIn("TMPDIR", result.stderr)
        self.assertEqual(self.server.requests, [])

    def test_base_url(self) -> None:
        table = (("no scheme", "relay.invalid/v1", "base URL"), ("host only", "relay.invalid", "base URL"),
                 ("other scheme", "ftp://relay.invalid/v1", "base URL"),
                 ("file", "file:///usr/share/dict/words", "base URL"), ("port only", "localhost:8080/v1", "base URL"),
                 ("no host", "https:///v1", "base URL"),
                 ("user and password", "https://me:hidden@relay.invalid/v1", "user name or password"),
                 ("user", "https://me@relay.invalid/v1", "user name or password"),
                 ("remote http", "http://relay.invalid/v1", "over plain http"),
                 ("looks like loopback", "http://127.0.0.1.relay.invalid/v1", "over plain http"),
                 ("not quite loopback", "http://localhost.relay.invalid/v1", "over plain http"),
                 ("private network", "http://192.168.0.7/v1", "over plain http"),
                 ("backslash", "http://127.0.0.1\\@relay.invalid/v1", "base URL"),
                 ("blank", "https://relay.invalid/v1 x", "base URL"),
                 ("new line", "https://relay.invalid\n/v1", "base URL"),
                 ("query", "https://relay.invalid/v1?a=b", "base URL"),
                 ("port", "https://relay.invalid:port/v1", "base URL"),
                 ("high port", "https://relay.invalid:99999/v1", "base URL"),
                 ("bracket", "https://[::1/v1", "base URL"))
        rows = [Bad(f"option: {name}", ["generate", PROMPT, "--base-url", url], message) for name, url,
                message in table]
        for name, url, message in (table[0], table[6], table[8]):
            rows.append(Bad(f"variable: {name}", ["generate", PROMPT], message, exit_code=SETUP, kind="config",
                            env={"GPT_IMAGE2_BASE_URL": url}))
            config = self.write_config({"base_url": url, "api_key": KEY}, path=self.work / f"{name}.json")
            rows.append(Bad(f"config: {name}", ["generate", PROMPT, "--config", config], message, exit_code=SETUP,
                            kind="config"))
        self.refuse(*rows)

    def test_password_in_the_address_is_not_shown(self) -> None:
        result = self.run_program("generate", PROMPT, "--base-url", "https://me:hidden@relay.invalid/v1")
        self.assertNotIn("hidden", result.stdout + result.stderr)


class BadCurlTest(BadInputCase):
    """No curl, or one that is too old."""

    def test_missing(self) -> None:
        empty = self.root / "empty"
        empty.mkdir()
        self.refuse(Bad("missing", ["generate", PROMPT], "curl", "Install curl 7.68 or newer", SETUP, "curl",
                        {"PATH": str(empty)}))

    def test_unusable(self) -> None:
        rows = []
        rejects = '[ "$2" = --version ] && echo "%s" || { echo "curl: (2) no such option" >&2; exit 2; }'
        for name, script, message in (("old", rejects % "curl 7.67.0 (x86_64-pc-linux-gnu) libcurl/7.67.0", "7.67.0"),
                                      ("older", rejects % "curl 6.5.1", "6.5.1"), ("silent", "exit 0", "curl"),
                                      ("failing", "exit 127", "curl"), ("other", "echo something else", "curl")):
            self.shell_script("curl", script + "\n", self.root / name)
            rows.append(Bad(name, ["generate", PROMPT], message, "", SETUP, "curl", {"PATH": str(self.root / name)}))
        self.refuse(*rows)


class BadCommandLineTest(BadInputCase):
    """Options and commands that do not exist."""

    def test_unknown_options(self) -> None:
        image = self.file("a.png", SMALL)
        rows = (("--no-such-thing", "unknown option --no-such-thing"), ("--qualty=low", "Did you mean --quality?"),
                ("--outptu", "Did you mean --output?"), ("--api-keyenv", "Did you mean --api-key"),
                ("-x", "unknown option -x"))
        table = [Bad(f"{words[0]} {option}", [*words, option], message, "--help")
                 for option, message in rows for words in (["generate", PROMPT], ["edit", image, PROMPT])]
        self.refuse(*table, Bad("config", ["config", "--chekc"], "Did you mean --check?", "--help"))

    def test_no_abbreviations(self) -> None:
        self.refuse(*(Bad(words[0], ["generate", PROMPT, *words], f"unknown option {words[0].partition('=')[0]}")
                      for words in (["--qual", "low"], ["--out", "a.png"], ["--base", "http://127.0.0.1"], ["--over"],
                                    ["--mod", "x"], ["--time=5"])))

    def test_options_of_the_other_command(self) -> None:
        image = self.file("a.png", SMALL)
        self.refuse(*(Bad(" ".join(words), words, "unknown option")
                      for words in (["generate", PROMPT, "--image", image], ["config", "--n", "2"],
                                    ["generate", PROMPT, "--input-fidelity", "high"])))

    def test_headers_that_cannot_be_set(self) -> None:
        self.refuse(*(Bad(text, ["generate", PROMPT, "--header", text], "header")
                      for text in ("A: b\r\nC: d", "A b: c", "Content-Type: application/json", "Content-Length: 5")))

    def test_numbers_that_only_python_reads(self) -> None:
        self.refuse(*(Bad(text, ["generate", PROMPT, "--n", text], "--n needs a whole number")
                      for text in ("1_0", "\uff11", "1.0")))

    def test_missing_values(self) -> None:
        self.refuse(*(Bad(option, ["generate", PROMPT, option], option)
                      for option in ("--size", "--output", "--model", "--n", "--param")))

    def test_no_command(self) -> None:
        for arguments in ([], ["--json"]):
            result = self.run_inside(*arguments)
            self.assertEqual((result.exit_code, "Traceback" in result.stderr), (USAGE, False))
            self.assertIn("generate", result.stdout + result.stderr)

    def test_empty_values(self) -> None:
        options = ("--api-key", "--api-key-env", "--base-url", "--config", "--model", "--output", "--prompt-file")
        self.refuse(*(Bad(option, ["generate", PROMPT, option, ""], f"{option} is empty") for option in options))
        image = self.file("a.png", SMALL)
        self.refuse(Bad("--mask", ["edit", image, PROMPT, "--mask", ""], "--mask is empty"))

    def test_values_that_no_request_can_hold(self) -> None:
        self.refuse(*(Bad(" ".join(words), ["generate", PROMPT, *words], words[0][2:]) for words in (
            ["--model", "\udcff"], ["--base-url", "http://127.0.0.1:9/\udcff"], ["--param", 'a="\\ud800"'])))
        self.refuse(Bad("output -", ["generate", PROMPT, "--output", "-"], "output", kind="target"))

    def test_prompt_that_is_a_file(self) -> None:
        image = self.file("a.png", SMALL)
        self.refuse(Bad("forgotten", ["edit", image, "--image", image], "the prompt is missing"),
                    Bad("swapped", ["edit", PROMPT, image], "the prompt is missing"))

    def test_keys_in_the_wrong_place_are_not_shown(self) -> None:
        for words in (["--api-key-env", "test-key-1"], ["--header", "api-key test-key-1"],
                      ["--base-url", "https://relay.invalid/v1?key=test-key-1"],
                      ["--base-url", "https://user:test/key test-key-1@relay.invalid"],
                      ["--base-url", "user:test-key-1@relay.invalid"]):
            for command in (["generate", PROMPT], ["config", "--init"]):
                result = self.run_inside(*command, *words, "--json")
                self.assertNotEqual(result.exit_code, 0, words)
                self.assertNotIn("test-key-1", result.stdout + result.stderr)

    def test_commands(self) -> None:
        self.refuse(
            Bad("unknown", ["draw", PROMPT], "draw"),
            Bad("abbreviated", ["gen", PROMPT], "gen"), Bad("config with a word", ["config", "show"], "show"),
            Bad("two actions", ["config", "--init", "--check"], "not allowed with"))


class OversizedWordsTest(ProgramCase):
    """Error lines stay one readable line whatever the command line holds."""

    def test_one_bounded_line(self) -> None:
        for arguments in (["generate", PROMPT, "--size", "9" * 5000], ["generate", PROMPT, "--quality", "q\n" * 3000],
                          ["generate", PROMPT, "--" + "y" * 5000], ["generate", "a", "b\nc" * 2000],
                          ["config", "d\n" * 3000], ["generate", PROMPT, "--n", "1\n2"],
                          ["generate", PROMPT, "--format", "\x1b[2Jgif"], ["edit", "no\nsuch\x1b[2J.png", PROMPT],
                          ["generate", PROMPT, "--prompt-file", "no\nsuch"], ["\x1b[31mdraw"]):
            with self.subTest(arguments[-1][:20]):
                result = self.run_inside(*arguments)
                self.assertEqual(result.exit_code, USAGE, result.stderr)
                self.assertLess(max(map(len, result.stderr.split("\n"))), 1000)
                self.assertLess(result.stderr.rstrip("\n").count("\n"), 3, result.stderr)
                self.assertNotIn("\x1b", result.stderr)


class NothingIsTouchedTest(ProgramCase):
    """A refused command leaves the disk as it was."""

    def test_no_folder_is_made_for_a_wrong_command(self) -> None:
        result = self.generate(PROMPT, "-o", "new/folder/cat.png", "--size", "1000x1000")
        self.assertEqual(result.exit_code, USAGE)
        self.assertEqual(list(self.work.iterdir()), [])

    def test_no_key_no_request(self) -> None:
        result = self.run_program("edit", self.file("a.png", draw_png(64, 48)), PROMPT, "--base-url",
                                  "https://relay.invalid/v1")
        self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1), result.stderr)
