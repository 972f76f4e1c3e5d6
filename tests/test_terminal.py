"""At home in a terminal: what a person types, sees there, and is spared; in pipes nothing of it."""
from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Sequence
from unittest import mock

from api_server import Answer
from support import KEY, PROGRAM, Argument, ProgramCase, Result, finish, program

ESCAPE = "\x1b"
STREAMS = ("stdout", "stderr")
COMMANDS = ("generate", "edit", "config")
FLAGS = {each: {row.flag for row in program.OPTIONS if each in row.commands} for each in COMMANDS}
CURL = shutil.which("curl") or "curl"
PIXELS = 0, 0  # of a terminal that does not tell
SECRETS = {"Authorization": "Bearer secret-1", "X-Api-Key": "secret-2", "Cookie": "sid=secret-3"}


@unittest.skipUnless(os.name == "posix", "needs pseudo-terminals")
class TerminalCase(ProgramCase):
    """The program as `gpt-image2` in PATH; streams of one's choice are pseudo-terminals that change nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.bin = self.root / "bin"
        self.bin.mkdir()
        self.program = self.bin / "gpt-image2"
        self.program.symlink_to(PROGRAM)

    def settings(self, **env: str | None) -> dict[str, str | None]:
        """The variables: the server, its key, a PATH with this program."""
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        return {"PATH": path, "GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.server.url, "TERM": "xterm", **env}

    def piped(self, *arguments: Argument, **options: Any) -> Result:
        """Run it with no terminal at all."""
        env = self.settings(**options.pop("env", {}))
        return finish(self.world.launch(sys.executable, self.program, *arguments, env=env, **options))

    def seen(self, *arguments: Argument, on: Sequence[str] = STREAMS[:1], columns: int = 80, typed: bytes = b"",
             **env: str | None) -> Result:
        """Run it with pseudo-terminals; what was typed waits there already. Both streams as they were written."""
        import pty
        pairs = {name: pty.openpty() for name in (*on, *["stdin"] * bool(typed))}
        for _, terminal in pairs.values():
            set_up(terminal, columns)
        if typed:
            os.write(pairs["stdin"][0], typed)
        child = self.world.launch(sys.executable, self.program, *arguments, env=self.settings(**env),
                                  start_new_session=True, **{name: pair[1] for name, pair in pairs.items()})
        for _, terminal in pairs.values():
            os.close(terminal)
        with ThreadPoolExecutor(len(pairs)) as pool:
            texts = {name: pool.submit(read_all, pair[0]) for name, pair in pairs.items() if name != "stdin"}
            result = finish(child)
        for leader, _ in pairs.values():
            os.close(leader)
        found = [texts[name].result() if name in texts else getattr(result, name) for name in STREAMS]
        return Result(result.exit_code, *found)

    def fake(self, name: str, text: str) -> Path:
        """Put a program into PATH; the file is where it may write what it was told."""
        told = self.root / f"{name}.told"
        self.shell_script(name, f"told={shlex.quote(str(told))}\n{text}", self.bin)
        return told


def set_up(terminal: int, columns: int) -> None:
    """Give a pseudo-terminal its width; line breaks stay what they are, nothing is echoed."""
    import fcntl
    import struct
    import termios
    mode = termios.tcgetattr(terminal)
    mode[1] &= ~termios.OPOST
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, *PIXELS))


def read_all(leader: int) -> str:
    """What is written to a terminal until its last writer has gone."""
    text = b""
    try:
        while piece := os.read(leader, 65536):
            text += piece
    except OSError:  # how Linux says that it is the end
        pass
    return text.decode("utf-8")


# ---- What is typed --------------------------------------------------------------------------------------------------

class FirstContactTest(TerminalCase):
    """Help and version are found however one asks; the program calls itself what was typed."""

    def test_the_bare_command_prints_the_short_help(self) -> None:
        bare, asked = self.piped(), self.piped("--help")
        self.assertEqual((bare.exit_code, bare.stdout), (2, ""))
        self.assertEqual((asked.exit_code, asked.stderr), (0, ""))
        self.assertEqual(bare.stderr, asked.stdout)
        self.assertIn('gpt-image2 generate "a red fox in the snow" -o fox.png', bare.stderr)
        self.assertRegex(bare.stderr, r"minutes[\s\S]*\$0\.006[\s\S]*\$0\.05[\s\S]*\$0\.21")

    def test_every_way_to_ask_for_help(self) -> None:
        for command in ("", *COMMANDS):
            asked = [[command, *words] for words in (["--help"], ["-h"], ["help"])] if command else [["-h"], ["help"]]
            asked += [["help", command], ["--help", command]] if command else []
            asked += [[command, "a fox", "-o", "x.png", "--help"], ["-q", command, "-h"]] if command else []
            start, texts = f"gpt-image2 {command} " if command else "Generate and edit images", set()
            for words in asked:
                result = self.piped(*words)
                self.assertEqual((result.exit_code, result.stderr), (0, ""), words)
                self.assertTrue(result.stdout.startswith(start), words)
                texts.add(result.stdout)
            self.assertEqual(len(texts), 1, command)

    def test_every_way_to_ask_for_the_version(self) -> None:
        for words in (["version"], ["-V"], ["--version"], ["generate", "--version"], ["config", "-V"],
                      ["edit", "a.png", "a hat", "--version"], ["--quiet", "-V"]):
            result = self.piped(*words)
            self.assertEqual((result.exit_code, result.stdout, result.stderr),
                             (0, f"gpt-image2 {program.VERSION}\n", ""), words)
        self.assertEqual(self.run_program("-V").stdout, f"gpt_image2 {program.VERSION}\n")

    def test_help_fits_80_columns_and_shows_each_option_once_in_a_group(self) -> None:
        for topic in ("", *COMMANDS):
            text = self.piped("help", *filter(None, [topic])).stdout
            self.assertEqual([line for line in text.split("\n") if len(line) > 79], [], topic)
            shown = re.findall(r"(?m)^  (?:-\w, )?(--[a-z0-9-]+)", text)
            self.assertEqual((len(shown), set(shown)), (len(set(shown)), FLAGS.get(topic, set())))
            headings = re.findall(r"(?m)^([A-Z][a-z ]+):$", text)
            self.assertEqual(len(headings), len(set(headings)))
            self.assertTrue(set(headings) <= set(program.HEADINGS.values()), headings)
            self.assertGreater(len(headings), 3 if topic else -1)
            if topic:
                first = text.index("\n\n" + headings[0])
                self.assertNotRegex(text[:first], r"(?m)^  (-\w, )?--", "an option stands in no group")

    def test_named_as_it_was_started(self) -> None:
        (self.bin / "pictures").symlink_to(PROGRAM)
        for start, name, command in (
                (self.program, "gpt-image2", "gpt-image2 "), (PROGRAM, "gpt_image2", f"python3 {PROGRAM} "),
                (self.bin / "pictures", "pictures", "pictures ")):
            result = finish(self.world.launch(sys.executable, start, "generate", "--sise", "1", env=self.settings()))
            self.assertEqual(result.exit_code, 2)
            self.assertTrue(result.stderr.startswith(f"{name}: error: "), result.stderr)
            self.assertIn(f"See: {command}generate --help\n", result.stderr)
        self.assertIn("See: gpt-image2 --help\n", self.piped("genrate").stderr)


class WordOrderTest(TerminalCase):
    """Options stand anywhere; the short ones do what the long ones do."""

    def test_options_before_the_command(self) -> None:
        for words in (["-q", "--quality", "low", "generate", "a fox", "-o", "x.png"],
                      ["--quality=low", "-o", "x.png", "generate", "-q", "a fox"],
                      ["generate", "a fox", "-o", "x.png", "--quality", "low", "-q"],
                      ["-o", "x.png", "-q", "--quality", "low", "generate", "--", "a fox"],
                      ["--quality", "low", "-qo", "x.png", "generate", "a fox"]):
            self.assert_succeeded(result := self.piped(*words))
            self.assertEqual(result.names, ["x.png"])
        self.assertEqual(self.only_post().fields["quality"], "low")

    def test_a_value_is_not_taken_for_the_command(self) -> None:
        result = self.piped("-o", "edit", "--model", "config", "generate", "a fox", "--dry-run")
        self.assertRegex(result.stdout, rf"\Awould buy: POST .*, config\nto {re.escape(str(self.work))}/edit\.png\n")

    def test_a_switch_takes_no_value(self) -> None:
        for words in (["--stream=false"], ["a fox", "--dry-run=false"], ["a fox", "--json=1"]):
            result = self.piped("generate", *words)
            self.assertEqual((result.exit_code, self.server.requests), (2, []), result)
            self.assertIn("takes no value", result.stderr + result.stdout)

    def test_no_command(self) -> None:
        for words in (["--quality", "low"], ["-q"], ["--", "a fox"], ["a fox"]):
            result = self.piped(*words)
            self.assertEqual((result.exit_code, result.stdout), (2, ""), words)
            self.assertIn("error: ", result.stderr)
        self.assertEqual(self.server.posts, [])

    def test_short_letters(self) -> None:
        self.file("x.png", "mine")
        self.assertEqual(self.piped("generate", "a fox", "-f", "-o", "x.png").names, ["x.png"])
        self.assertEqual(self.piped("generate", "a bear", "-n", "2", "-o", "y.png").names, ["y-1.png", "y-2.png"])
        self.assertEqual(self.piped("generate", "a cat", "-qn2", "-o", "z.png").names, ["z-1.png", "z-2.png"])
        for extra, code in (([], 0), ([], 2), (["-f"], 0), (["--force"], 0)):
            self.assertEqual(self.piped("config", "--init", *extra).exit_code, code, extra)


class PipedPromptTest(TerminalCase):
    """What is piped in without a word is the prompt; on a terminal `-` says what it waits for."""

    def through_a_pipe(self, text: bytes, *arguments: Argument) -> Result:
        reader, writer = os.pipe()
        os.write(writer, text)
        os.close(writer)
        try:
            return self.piped(*arguments, stdin=reader)
        finally:
            os.close(reader)

    def test_pipe_and_file(self) -> None:
        self.saved_file(self.through_a_pipe(b"a red\nfox\n", "generate", "-o", "a.png"))
        self.assertEqual(self.only_post().fields["prompt"], "a red\nfox")
        self.server.reset()
        self.saved_file(self.piped("generate", "-o", "b.png", stdin="a bear"))
        self.assertEqual(self.only_post().fields["prompt"], "a bear")

    def test_a_word_wins_and_nothing_is_read(self) -> None:
        self.saved_file(self.through_a_pipe(b"a bear", "generate", "a fox"))
        self.file("prompt.txt", "a cat")
        self.saved_file(self.through_a_pipe(b"a bear", "generate", "--prompt-file", "prompt.txt", "-o", "c.png"))
        self.assertEqual(set(self.posts_by_prompt()), {"a fox", "a cat"})

    def test_nothing_comes(self) -> None:
        closed = self.world.launch("/bin/sh", "-c", 'exec "$0" "$@" <&-', sys.executable, self.program, "generate",
                                   env=self.settings())
        for result in (self.through_a_pipe(b"", "generate"), self.piped("generate"), finish(closed)):
            self.assertEqual((result.exit_code, result.stdout), (2, ""))
            self.assertRegex(result.stderr, r"error: the prompt is (missing|empty)")
        self.assertEqual(self.server.requests, [])

    def test_on_a_terminal_it_says_what_it_waits_for(self) -> None:
        typed = self.seen("generate", "-", "-o", "a.png", typed=b"a fox\n\x04")
        self.assertEqual(typed.exit_code, 0, typed)
        self.assertEqual(typed.stderr.split("\n")[0], "Type the prompt; end it with Ctrl-D.")
        self.assertEqual(self.only_post().fields["prompt"], "a fox")
        self.assertNotIn("Ctrl-D", self.through_a_pipe(b"a bear", "generate", "-").stderr)

    def test_on_a_terminal_without_a_word_nothing_is_waited_for(self) -> None:
        result = self.seen("generate", typed=b"a fox\n")
        self.assertEqual(result.exit_code, 2)
        self.assertIn("the prompt is missing", result.stderr)


# ---- What is seen ---------------------------------------------------------------------------------------------------

class ResultOnTerminalTest(TerminalCase):
    """A person gets pixels, megabytes, seconds and dollars; who reads a pipe gets what it always got."""

    def test_saved_line(self) -> None:
        command = ("generate", "a fox", "--size", "1024x1536", "--quality", "low", "-o", "x y.png")
        self.server.default = Answer(delay=1.0)
        seen = self.seen(*command, NO_COLOR="1")
        path = self.work / "x y.png"
        line = re.fullmatch(r"Saved: (.*?)  1024x1536, (\d+\.\d) MB, ([1-9]\d*) s, about \$(0\.\d{3})\n", seen.stdout)
        assert line, seen
        self.assertEqual(line[1], str(path))
        self.assertEqual(line[2], f"{path.stat().st_size / 1e6:.1f}")
        self.assertIn(f"cost: about ${line[4]}\n", seen.stderr)
        self.assertRegex(self.piped(*command, "--fresh").stdout, r"\AHTTP 200 in \d\.\d s\nSaved: .* \(\d+ KB\)\n\Z")

    def test_what_is_not_known_is_not_said(self) -> None:
        drawing = base64.b64encode(b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0h9v9z"/></svg>')
        self.server.default = Answer(check=False, body=b'{"data":[{"b64_json":"%s"}]}' % drawing)
        seen = self.seen("generate", "a fox", "--model", "gpt-image-2.6-flare", "-o", "a.svg", NO_COLOR="1")
        self.assertRegex(seen.stdout, rf"\ASaved: {re.escape(str(self.work))}/a\.svg  1 KB, \d+ s\n\Z")

    def test_several_made_before_and_quiet(self) -> None:
        command = ("generate", "a fox", "-n", "2", "-o", "x.png")
        for more in (("--quality", "low"), ("--quality", "low"), ("--quality", "low", "-q")):
            seen = self.seen(*command, *more, NO_COLOR="1")
            shown = r"Saved: \S+-[12]\.png  \d+x\d+, \d\.\d MB, \d+ s, about \$0\.006\n"  # of each
            self.assertRegex(seen.stdout, rf"\A({shown}){{2}}\Z")
        self.only_post()

    def test_json_is_indented(self) -> None:
        for failing in ((), ("--size", "1x1")):
            command = ("generate", "a fox", "--json", *failing)
            seen, piped = self.seen(*command), self.piped(*command)
            self.assertTrue(seen.stdout.startswith('{\n  "schema": 1,\n'), seen)
            self.assertNotIn(ESCAPE, seen.stdout)
            found = Result(0, re.sub(r"\n *", "", seen.stdout) + "\n", "").json
            self.assertEqual(set(found), set(piped.json))

    def test_name_taken_is_told_afterwards_once_with_the_new_name(self) -> None:
        self.file("x.png", "mine")
        result = self.piped("generate", "a fox", "-o", "x.png")
        new = result.saved[0][0]
        self.assertNotEqual(new, str(self.work / "x.png"))
        warnings = [line for line in result.stderr.split("\n") if line.startswith("warning: ")]
        self.assertEqual(warnings, [f"warning: {self.work / 'x.png'} already exists; saved as {new} "
                                    "(--overwrite replaces it)"])
        self.assertGreater(result.stderr.index("warning: "), result.stderr.index("Generating"))

    def test_name_taken_without_o_is_no_warning(self) -> None:
        for prompt in ("a fox", "a bear"):
            result = self.piped("generate", prompt, "--json")
            self.assertEqual(result.json["warnings"], [])
        self.assertNotEqual(Path(result.json["saved"][0]["path"]).name, "gpt-image2-output.png")


class ColoursTest(TerminalCase):
    """Three words in colour, where there is a terminal that has any and nobody forbids it."""
    RED, YELLOW, GREEN = (f"{ESCAPE}[1;{number}m%s{ESCAPE}[0m" for number in (31, 33, 32))

    def test_the_three_words(self) -> None:
        self.file("x.png", "mine")
        good = self.seen("generate", "a fox", "-o", "x.png", on=STREAMS)
        self.assertTrue(good.stdout.startswith(self.GREEN % "Saved:" + f" {self.work}"), good)
        self.assertIn("\n" + self.YELLOW % "warning:" + " ", good.stderr)
        bad = self.seen("generate", "a fox", "--size", "1x1", on=STREAMS)
        self.assertTrue(bad.stderr.startswith("gpt-image2: " + self.RED % "error:" + " "), bad)
        self.assertEqual((good.stdout + good.stderr + bad.stderr).count(f"{ESCAPE}[1;"), 3)

    def test_where_there_are_none(self) -> None:
        self.file("x.png", "mine")
        good, bad = ("generate", "a fox", "-o", "x.png", "--fresh"), ("generate", "a fox", "--size", "1x1")
        for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}, {"TERM": None}):
            for command in (good, bad):
                seen = self.seen(*command, on=STREAMS, **env)
                self.assertNotRegex(seen.stdout + seen.stderr.replace(program.ERASE_LINE, ""), ESCAPE, env)
        for command in (good, bad):
            result = self.piped(*command)
            self.assertNotIn(ESCAPE, result.stdout + result.stderr)
        only_out = self.seen(*good)
        self.assertIn(ESCAPE, only_out.stdout)
        self.assertNotIn(ESCAPE, only_out.stderr)
        only_error = self.seen(*good, on=["stderr"])
        self.assertIn(self.YELLOW % "warning:", only_error.stderr)
        self.assertNotIn(ESCAPE, only_error.stdout)

    def test_an_empty_no_color_forbids_nothing(self) -> None:
        self.assertIn(self.GREEN % "Saved:", self.seen("generate", "a fox", NO_COLOR="").stdout)

    def test_lines_of_a_batch_are_whole(self) -> None:
        names = ("fox.png", "bear.png")
        self.file("lines.txt", "".join(f'{{"prompt": "an animal", "output": "{name}"}}\n' for name in names))
        for name in names:
            self.file(f"pictures/{name}", "mine")
        seen = self.seen("generate", "--batch", "lines.txt", "-o", "pictures", on=STREAMS)
        marked = [line for line in seen.stderr.replace(program.ERASE_LINE, "").split("\n") if "warning:" in line]
        self.assertEqual(len(marked), 2, seen)
        for line in marked:
            self.assertRegex(line.rpartition("\r")[2], rf"\Aline [12]: {re.escape(self.YELLOW % 'warning:')} /")


class VerboseTest(TerminalCase):
    """-v shows the request and what came back, and no secret."""

    def test_request_and_answer_in_order(self) -> None:
        result = self.piped("generate", "a red \u00fcber-fox", "-v", "--quality", "low", "--header", "X-Team: blue",
                            *(f"--header={name}: {value}" for name, value in list(SECRETS.items())[1:]))
        self.assert_succeeded(result)
        shown = [r"POST %s/images/generations\n" % re.escape(self.server.url), r"(?:\w.*\n)*? *Authorization: \*\*\*\n",
                 r" *X-Team: \*\*\*\n", r" *X-Api-Key: \*\*\*\n", r" *Cookie: \*\*\*\n",
                 r' *\{"model": "gpt-image-2", "prompt": "a red \u00fcber-fox", "quality": "low"\}\n',
                 r"HTTP 200, req_test_\d+\n", r"usage: \{.*\}\n"]
        at = 0
        for pattern in shown:
            match = re.compile(pattern).search(result.stderr, at if "\\{" in pattern or "HTTP" in pattern else 0)
            assert match, (pattern, result.stderr)
            at = match.end() if "\\{" in pattern or "HTTP" in pattern else at
        for secret in (KEY, "secret-", "blue"):
            self.assertNotIn(secret, result.stdout + result.stderr)
        for setting in ("connect-timeout", "max-time", "write-out", "dump-header", ".answer", ".body"):
            self.assertNotIn(setting, result.stderr)

    def test_without_it_nothing_of_this(self) -> None:
        self.assertNotRegex(self.piped("generate", "a fox").stderr, "POST|Authorization|usage:|HTTP")

    def test_pictures_are_not_printed(self) -> None:
        from api_server import draw_png
        self.file("fox.png", draw_png(64, 64, 1))
        result = self.piped("edit", "fox.png", "a hat", "-v")
        self.assert_succeeded(result)
        self.assertRegex(result.stderr, r"\n *prompt: a hat\n")
        self.assertNotRegex(result.stderr, r"[A-Za-z0-9+/]{200}")
        self.assertLess(len(result.stderr), 3000)

    def test_a_secret_in_every_place(self) -> None:
        self.write_config({"base_url": self.server.url, "api_key": "config-key-12345",
                           "headers": {"X-Auth": "hidden-4", "X-Long": "hidden-5-" + "x" * 20}})
        for refused in (False, True):
            self.server.default = Answer(status=401, body=b'{"error":{"message":"bad key config-key-12345"}}') \
                if refused else Answer(check=False)
            result = self.piped("generate", "a fox", "-v", "--fresh", env={
                "GPT_IMAGE2_API_KEY": None, "GPT_IMAGE2_BASE_URL": None})
            self.assertIn("POST ", result.stderr)
            self.assertNotRegex(result.stdout + result.stderr, "config-key-12345|hidden-4|hidden-5")


class ConfigInShortTest(TerminalCase):
    """`config` shows what matters first; all of it with -v, and always with --json."""

    def test_four_lines_then_all(self) -> None:
        short, whole = self.piped("config"), self.piped("config", "-v")
        names = [line.split()[0] for line in short.stdout.split("\n") if line]
        self.assertEqual(names[:4], ["base_url", "api_key", "model", "config"])
        self.assertEqual(names[4:], ["unfinished"])
        listed = {line.split()[0] for line in whole.stdout.split("\n") if line}
        self.assertTrue({"base_url", "api_key", "model", "quality", "timeout", "headers", "proxy"} <= listed, listed)
        self.assertTrue({"quality", "headers"} <= set(self.piped("config", "--json").json["settings"]))
        self.assertNotIn(KEY, short.stdout + whole.stdout)


# ---- Pictures in the terminal ---------------------------------------------------------------------------------------

class PreviewTest(TerminalCase):
    """--preview: the codes of the terminal that is there, and nothing where none is known."""
    SIZE = ("--size", "1536x1024")
    KITTY = re.compile(r"\x1b_G([^;\x1b]*);([^\x1b]*)\x1b\\")

    def preview(self, *more: str, columns: int = 80, on: Sequence[str] = STREAMS[:1], name: str = "out.png",
                **env: str | None) -> tuple[str, bytes]:
        """What follows the Saved: line, and the file."""
        result = self.seen("generate", "a fox", *self.SIZE, "-o", name, "--preview", *more, columns=columns, on=on,
                           NO_COLOR="1", **env)
        self.assertEqual(result.exit_code, 0, result)
        line, _, codes = result.stdout.partition("\n")
        self.assertTrue(line.startswith("Saved: " if "stdout" in on else "HTTP"), result)
        return codes, (self.work / name).read_bytes()

    def assert_room(self, codes: str, rows: int) -> str:
        """What stands between the room for a picture and the way below it."""
        before, after = "\n" * rows + f"{ESCAPE}[{rows}A", f"{ESCAPE}[{rows}B"
        self.assertTrue(codes.startswith(before) and codes.endswith(after), codes[:80])
        return codes[len(before):-len(after)]

    def assert_kitty(self, codes: str, content: bytes, columns: int = 66, rows: int = 22, place: str = "") -> None:
        """The exact codes: room, the file in chunks, the last one with the cursor kept, the way below it."""
        middle = self.assert_room(codes, rows)
        chunks = self.KITTY.findall(middle)
        written = [f"{ESCAPE}_G{keys};{text}{ESCAPE}\\" for keys, text in chunks]
        self.assertEqual("".join(written[:-1]) + f"{ESCAPE}7{place}{written[-1]}{ESCAPE}8", middle)
        self.assertEqual(chunks[0], (f"a=T,f=100,q=2,C=1,c={columns},r={rows},m=1", ""))
        self.assertEqual(({keys for keys, _ in chunks[1:-1]}, chunks[-1]), ({"m=1"}, ("m=0", "")))
        self.assertTrue(all(len(text) <= 4096 and not len(text) % 4 for _, text in chunks))
        self.assertEqual(base64.b64decode("".join(text for _, text in chunks)), content)

    def assert_iterm(self, codes: str, content: bytes, columns: int = 66, place: str = "") -> None:
        """The one code of iTerm2 in its room."""
        code = self.assert_room(codes, 22)
        match = re.fullmatch(r"\x1b7" + re.escape(place) + r"\x1b\]1337;File=inline=1;width=(\d+):([A-Za-z0-9+/=]+)\x07"
                             r"\x1b8", code)
        assert match, code[:200]
        self.assertEqual((int(match[1]), base64.b64decode(match[2])), (columns, content))

    def test_kitty_and_ghostty(self) -> None:
        for term in ("xterm-kitty", "xterm-ghostty"):
            self.assert_kitty(*self.preview(TERM=term))

    def test_iterm_and_wezterm(self) -> None:
        for name in ("iTerm.app", "WezTerm"):
            self.assert_iterm(*self.preview(TERM="xterm-256color", TERM_PROGRAM=name))

    def test_nothing_elsewhere(self) -> None:
        for env in ({"TERM": "xterm-256color"}, {"TERM": "dumb"}, {"TERM": None}, {"TERM": "linux"},
                    {"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"},
                    {"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}):
            self.assertEqual(self.preview(**env)[0], "", env)

    def test_nothing_in_a_pipe_or_as_json(self) -> None:
        result = self.piped("generate", "a fox", "--preview", env={"TERM": "xterm-kitty"})
        self.assertEqual((result.stdout.count("\n"), result.stdout.count(ESCAPE)), (2, 0))
        seen = self.seen("generate", "a fox", "--preview", "--json", TERM="xterm-kitty")
        self.assertEqual(seen.stdout.count(ESCAPE), 0)
        self.assertNotIn(ESCAPE, self.preview(on=["stderr"], TERM="xterm-kitty")[0])

    def test_kitty_takes_png_alone_iterm_all(self) -> None:
        self.assertEqual(self.preview(TERM="xterm-kitty", name="out.jpg")[0], "")
        self.assert_iterm(*self.preview(TERM="xterm", TERM_PROGRAM="iTerm.app", name="out.jpg"))

    def test_widths(self) -> None:
        for columns, wide, rows in ((200, 66, 22), (30, 29, 10), (2, 1, 1), (0, 66, 22)):
            with self.subTest(columns):
                codes, content = self.preview(TERM="xterm-kitty", columns=columns)
                self.assert_kitty(codes, content, wide, rows)

    def test_letters_of_another_shape(self) -> None:
        with mock.patch("test_terminal.PIXELS", (80 * 9, 24 * 20)):
            self.assert_kitty(*self.preview(TERM="xterm-kitty"), rows=20)

    def test_asked_for_later_it_costs_nothing(self) -> None:
        self.assert_succeeded(self.piped("generate", "a fox", *self.SIZE, "-o", "out.png"))
        self.assert_kitty(*self.preview(TERM="xterm-kitty"))
        self.only_post()

    def test_not_for_a_batch(self) -> None:
        self.file("lines.txt", "a fox\na bear\n")
        for option in ("--preview", "--open"):
            result = self.piped("generate", "--batch", "lines.txt", option)
            self.assertEqual((result.exit_code, self.server.posts), (2, []))
            self.assertIn("--preview and --open do not work with --batch", result.stderr)

    def test_each_of_several(self) -> None:
        seen = self.seen("generate", "a fox", "-n", "2", "--preview", TERM="xterm-kitty")
        self.assertEqual(seen.stdout.count("_Ga=T,f=100,"), 2)


class PreviewThroughTmuxTest(PreviewTest):
    """Inside tmux its own word counts: which terminal is around it, and whether it lets pictures through."""
    INSIDE = {"TERM": "tmux-256color", "TERM_PROGRAM": "tmux", "TMUX": "/tmp/tmux-0/default,1,0"}

    def inside(self, answer: str, name: str = "out.png") -> tuple[str, bytes]:
        """What is written with a tmux that answers so; unwrapped, and each code was wrapped by itself."""
        told = self.fake("tmux", f'printf "%s\\n" "$*" > "$told"\n{answer}\n')
        codes, content = self.preview(name=name, **self.INSIDE)
        asked = told.read_text()
        self.assertRegex(asked, r"\Adisplay -p .*allow-passthrough.*client_term")
        wrapped = re.compile(r"\x1bPtmux;((?:\x1b\x1b|[^\x1b])*)\x1b\\")
        found = wrapped.findall(codes)
        plain = wrapped.sub(lambda match: match[1].replace(ESCAPE * 2, ESCAPE), codes)
        self.assertEqual(bool(found), bool(codes))
        self.assertTrue(all(text.count(ESCAPE * 2 + "_G") <= 1 for text in found))
        return plain, content

    def test_kitty_and_ghostty(self) -> None:
        for answer in ("kitty(0.32.2) xterm-kitty", "xterm-kitty", "ghostty 1.2.0 xterm-ghostty"):
            self.assert_kitty(*self.inside(f"echo '3 5 2 {answer}'"), place=f"{ESCAPE}[7;4H")

    def test_iterm_and_wezterm(self) -> None:
        for answer in ("iTerm2 3.5.0 xterm-256color", "WezTerm 20240203 xterm-256color"):
            self.assert_iterm(*self.inside(f"echo '0 0 23 {answer}'"), place=f"{ESCAPE}[2;1H")

    def test_nothing_elsewhere(self) -> None:
        for answer in ("echo", "echo 0 0 0", "echo 0 0 0 xterm-256color", "exit 1", "echo no server >&2; exit 1"):
            self.assertEqual(self.inside(answer)[0], "", answer)

    def test_kitty_takes_png_alone_iterm_all(self) -> None:
        self.assertEqual(self.inside("echo 0 0 0 xterm-kitty", "out.jpg")[0], "")

    def test_a_tmux_that_hangs_is_not_waited_for(self) -> None:
        started = time.monotonic()
        self.assertEqual(self.inside("exec sleep 60")[0], "")
        self.assertLess(time.monotonic() - started, 40)

    def test_no_key_in_its_environment(self) -> None:
        told = self.root / "env"
        self.inside(f"env > {shlex.quote(str(told))}; echo 0 0 0 xterm-kitty")
        self.assertNotIn(KEY, told.read_text())

    # These are the same inside and outside.
    test_nothing_in_a_pipe_or_as_json = test_widths = test_letters_of_another_shape = None  # type: ignore[assignment]
    test_asked_for_later_it_costs_nothing = test_each_of_several = None  # type: ignore[assignment]
    test_not_for_a_batch = None  # type: ignore[assignment]


@unittest.skipIf(sys.platform == "darwin", "there it is open, and a display is always there")
class OpenTest(TerminalCase):
    """--open: the system's viewer gets the file, where there is a display, and never a key."""

    def setUp(self) -> None:
        super().setUp()
        self.told = self.fake("xdg-open", '(printf "%s\\n" "$#" "$@"; env) > "$told.new"; mv "$told.new" "$told"')

    def test_called_with_the_file(self) -> None:
        for display in ("DISPLAY", "WAYLAND_DISPLAY"):
            name = f"{display} \u00fc.png"
            result = self.piped("generate", "a fox", "-o", name, "--open",
                                env={display: ":7", "OPENAI_API_KEY": "other-key"})
            self.assert_succeeded(result)
            self.wait_until(self.told.exists)
            count, path, *variables = self.told.read_text(encoding="utf-8").split("\n")
            self.assertEqual((count, path), ("1", str(self.work / name)))
            self.assertIn(f"{display}=:7", variables)
            self.assertNotRegex("\n".join(variables), f"{KEY}|other-key|API_KEY")
            self.told.unlink()

    def test_made_before_it_is_opened_again_at_no_cost(self) -> None:
        for _ in range(2):
            self.assert_succeeded(self.piped("generate", "a fox", "--open", "--json", env={"DISPLAY": ":7"}))
            self.wait_until(self.told.exists)
            self.told.unlink()
        self.only_post()

    def test_no_display_no_wish_no_picture(self) -> None:
        for display, more in ((None, ["--open"]), ("", ["--open"]), (":7", []), (":7", ["--open", "--size", "1x1"]),
                              (":7", ["--open", "--dry-run"])):
            self.piped("generate", "a fox", "--fresh", *more, env={"DISPLAY": display})
        time.sleep(0.5)
        self.assertFalse(self.told.exists())

    def test_without_a_viewer_the_picture_is_there_all_the_same(self) -> None:
        (self.bin / "xdg-open").unlink()
        for name in ("python3", "curl"):
            (self.bin / name).symlink_to(shutil.which(name) or name)
        result = self.piped("generate", "a fox", "--open", env={"DISPLAY": ":7", "PATH": str(self.bin)})
        self.saved_file(result)
        self.assertNotIn("xdg-open", result.stderr)

    def test_a_viewer_that_stays_is_not_waited_for(self) -> None:
        self.fake("xdg-open", 'echo > "$told"; exec sleep 20')
        started = time.monotonic()
        self.saved_file(self.piped("generate", "a fox", "--open", env={"DISPLAY": ":7"}))
        self.assertLess(time.monotonic() - started, 15)


# ---- Completion in real shells --------------------------------------------------------------------------------------

class CompletionCase(TerminalCase):
    """A shell with the script that `config --completion` prints."""
    shell = ""

    def setUp(self) -> None:
        super().setUp()
        if not shutil.which(self.shell):
            self.skipTest(f"needs {self.shell}")
        result = self.piped("config", "--completion", self.shell)
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        self.script = self.file(f"_gpt-image2-{self.shell}", result.stdout)

    def run_shell(self, *words: Argument) -> str:
        """What a shell says; it must not complain."""
        result = finish(self.world.launch(*words, env=self.settings()))
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        return result.stdout


class CompletionOptionTest(TerminalCase):
    """The option itself."""

    def test_choices_and_json(self) -> None:
        for shell in ("bash", "zsh", "fish"):
            plain = self.piped("config", "--completion", shell)
            self.assertIn("gpt-image2", plain.stdout)
            as_json = self.piped("config", "--completion", shell, "--json").json
            self.assertEqual(as_json["completion"] + "\n", plain.stdout)
        result = self.piped("config", "--completion", "tcsh")
        self.assertEqual((result.exit_code, result.stdout), (2, ""))
        self.assertIn("only bash, zsh, fish", result.stderr)

    def test_needs_no_settings(self) -> None:
        self.write_config("{broken")
        self.assertEqual(self.piped("config", "--completion", "bash").exit_code, 0)


class BashCompletionTest(CompletionCase):
    """In bash, by its function."""
    shell = "bash"

    def complete(self, *words: str) -> list[str]:
        """What is offered for the last word."""
        script = ('set -u; source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _gpt_image2; '
                  'for each in ${COMPREPLY[@]+"${COMPREPLY[@]}"}; do echo "$each"; done')
        return self.run_shell("bash", "--norc", "-c", script, "bash", self.script, "gpt-image2", *words).split()

    def test_commands(self) -> None:
        self.assertEqual(self.complete(""), [*COMMANDS, "help"])
        self.assertEqual(self.complete("ge"), ["generate"])
        self.assertEqual(self.complete("-q", "c"), ["config"])

    def test_options(self) -> None:
        for command in COMMANDS:
            self.assertEqual(set(self.complete(command, "--")), FLAGS[command])
        self.assertEqual(self.complete("generate", "a fox", "--qual"), ["--quality"])
        self.assertEqual(self.complete("config", "--mask"), [])

    def test_choices(self) -> None:
        self.assertEqual(self.complete("generate", "--quality", "h"), ["high"])
        self.assertEqual(self.complete("edit", "x.png", "--api", "")[0], "openai")
        self.assertEqual(self.complete("config", "--completion", ""), ["bash", "zsh", "fish"])
        self.assertIn("landscape", self.complete("generate", "--size", ""))

    def test_files(self) -> None:
        for words in (["edit", "fo"], ["generate", "-o", "fo"], ["edit", "fox.png", "--mask", ""]):
            self.assertEqual(self.complete(*words), [])  # then bash completes files
        told = self.run_shell("bash", "--norc", "-c", 'source "$0"; complete -p gpt-image2', self.script)
        self.assertEqual(told, "complete -o default -F _gpt_image2 gpt-image2\n")


class FishCompletionTest(CompletionCase):
    """In fish, which can be asked."""
    shell = "fish"

    def complete(self, line: str) -> dict[str, str]:
        """What is offered at the end of a line, and what is said of it."""
        told = self.run_shell("fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", self.script, line)
        return {word: about for word, _, about in (each.partition("\t") for each in told.split("\n")) if word}

    def test_commands(self) -> None:
        self.assertEqual(set(self.complete("gpt-image2 ")), set(COMMANDS))

    def test_options(self) -> None:
        for command in COMMANDS:
            self.assertEqual(set(self.complete(f"gpt-image2 {command} --")) - {"--"}, FLAGS[command])
        self.assertEqual(self.complete("gpt-image2 generate --ope"),
                         {"--open": "open the picture in the system's viewer"})
        self.assertIn("-o", self.complete("gpt-image2 generate -"))

    def test_choices(self) -> None:
        self.assertEqual(set(self.complete("gpt-image2 generate --quality h")), {"high"})
        self.assertEqual(set(self.complete("gpt-image2 config --completion ")), {"bash", "zsh", "fish"})
        self.assertIn("landscape", self.complete("gpt-image2 generate --size "))

    def test_files(self) -> None:
        self.file("fox.png", "x")
        for line in ("edit fo", "generate -o fo", "edit x.png --mask fo", "generate --output fo"):
            self.assertEqual(set(self.complete("gpt-image2 " + line)), {"fox.png"}, line)


class ZshCompletionTest(CompletionCase):
    """In an interactive zsh, at its prompt."""
    shell = "zsh"

    def setUp(self) -> None:
        super().setUp()
        folder = self.root / "functions"
        folder.mkdir()
        shutil.copy(self.script, str(folder / "_gpt-image2"))
        (self.home / ".zshrc").write_text(
            f"fpath=({shlex.quote(str(folder))} $fpath)\nautoload -Uz compinit\ncompinit -D -u\n"
            "LISTMAX=0 PROMPT= RPROMPT= PS2=\nunsetopt BEEP PROMPT_CR PROMPT_SP\nbindkey -e\n"
            "zle_highlight=(none)\nprint READY\n")

    def at_the_prompt(self, *lines: bytes, until: Sequence[str]) -> str:
        """What is on the terminal once all these texts are; each line is typed, then thrown away."""
        import pty
        leader, terminal = pty.openpty()
        set_up(terminal, 500)
        child = self.world.launch("zsh", "-d", "-i", stdin=terminal, stdout=terminal, stderr=terminal,
                                  start_new_session=True, env=self.settings(TERM="dumb"))
        os.close(terminal)
        text: list[str] = [""]
        reader = threading.Thread(target=lambda: self.copy(leader, text))
        reader.start()
        try:
            self.wait_until(lambda: "?2004h" in text[0])  # before its editor is there, Ctrl-D would be eaten
            for line in lines:
                os.write(leader, line)
            self.wait_until(lambda: all(word in text[0] for word in until))
        except AssertionError:
            raise AssertionError(f"{until} are not all in {text[0]!r}") from None
        finally:
            child.kill()
            child.wait()
            reader.join(20)
            os.close(leader)
        return text[0].partition("READY")[2]

    def copy(self, leader: int, text: list[str]) -> None:
        """Read until nobody writes any more."""
        try:
            while piece := os.read(leader, 65536):
                text[0] += piece.decode("utf-8", "replace")
        except OSError:
            pass

    def test_commands_and_options(self) -> None:
        self.at_the_prompt(b"gpt-image2 ge\t--qual\thi\t", until=["generate --quality high "])
        self.at_the_prompt(b"gpt-image2 \x04", until=[*COMMANDS, "help"])
        for command in COMMANDS:
            shown = self.at_the_prompt(b"gpt-image2 %s --\x04" % command.encode(), until=sorted(FLAGS[command]))
            self.assertEqual(set(re.findall(r"(?<!\S)--[a-z-]+", shown)), FLAGS[command])

    def test_choices(self) -> None:
        self.at_the_prompt(b"gpt-image2 config --completion \x04", until=["bash", "zsh", "fish"])
        self.at_the_prompt(b"gpt-image2 generate --size land\t", until=["--size landscape "])

    def test_files(self) -> None:
        self.file("foxes.png", "x")
        for line in (b"edit fo", b"generate -o fo", b"edit x.png --mask fo"):
            self.at_the_prompt(b"gpt-image2 " + line + b"\t", until=[line.decode() + "xes.png "])


# ---- What is spared -------------------------------------------------------------------------------------------------

class NoNeedlessChildTest(TerminalCase):
    """curl is asked for its version only where somebody wants to know, and its end wakes the program."""

    def log_curl(self, before: str = "") -> Path:
        """A curl that writes down what it is told."""
        return self.fake("curl", f'echo "$*" >> "$told"\n{before}\nexec {shlex.quote(CURL)} "$@"\n')

    def test_one_curl_for_one_picture(self) -> None:
        told = self.log_curl()
        self.assert_succeeded(self.piped("generate", "a fox"))
        self.assertEqual(told.read_text(), "-q -K -\n")

    def test_version_for_check(self) -> None:
        told = self.log_curl()
        self.piped("config", "--check")
        self.assertIn("-q --version\n", told.read_text())

    def test_version_after_curl_rejected_its_options(self) -> None:
        told = self.log_curl('[ "$*" = "-q --version" ] && { echo "curl 7.61.0 (x86_64)"; exit 0; }\n'
                             'echo "curl: (2) unknown option" >&2; exit 2')
        result = self.piped("generate", "a fox", "--json")
        self.assertEqual(told.read_text(), "-q -K -\n-q --version\n")
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["kind"], error["billed"]), (3, "curl", "no"))
        self.assertIn("curl 7.68 or newer is needed; this is curl 7.61.0", result.stderr)

    def looks(self) -> int:
        """How often it looks after a transfer of 1.5 s, but for its last moments: curl closes files before it ends."""
        self.server.default = Answer(delay=1.5)
        begins: list[float] = []
        true_rest = program.rest
        with mock.patch.object(program, "rest", lambda *words, **more: (
                begins.append(time.monotonic()), true_rest(*words, **more))):
            self.assertEqual(self.generate_inside("a fox", "--fresh").exit_code, 0)
        return sum(begin < begins[-1] - 0.3 for begin in begins)

    def test_woken_not_polled(self) -> None:
        self.assertLess(self.looks(), 8)

    def test_without_locks_it_does_not_spin(self) -> None:
        def no_locks(*_: Any) -> None:
            raise OSError("no locks here")
        with mock.patch.object(program.fcntl, "flock", no_locks):
            self.assertLess(self.looks(), 8)

    def test_its_end_is_noticed_at_once(self) -> None:
        reader, writer = os.pipe()
        timer = threading.Timer(0.3, os.close, [writer])
        run = program.Run(program.Console(program.Secrets()), program.Result())
        timer.start()
        started = time.monotonic()
        program.rest(30, run, end=reader)
        self.assertLess(time.monotonic() - started, 15)
        os.close(reader)


if __name__ == "__main__":
    unittest.main()
