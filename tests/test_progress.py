"""The line that shows how far a picture is: by a clock that the tests turn, and in real pseudo-terminals."""
from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import unicodedata
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterable, Mapping, NamedTuple, Sequence
from unittest import mock

from api_server import Answer
from runapi_server import RunApiServer
from support import KEY, PROGRAM, ProgramCase, World, program

DRAWING = re.compile(r"\r([^\r]*)\r")
# Takes the pseudo-terminal as the one of its session, then becomes the command.
OWN_TERMINAL = (sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
                "os.execv(sys.argv[1], sys.argv[1:])")
THROUGH = (*OWN_TERMINAL, sys.executable, PROGRAM)
IN_BACKGROUND = (*OWN_TERMINAL, "/bin/sh", "-mc", '"$@" & wait', "sh", sys.executable, PROGRAM)


class PseudoTerminal(io.StringIO):
    """Looks like a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def width(text: str) -> int:
    """How many columns a text takes where all unclear characters are wide."""
    return sum(2 if unicodedata.east_asian_width(each) in "WFA" else 1 for each in text)


def drawn(text: str) -> list[str]:
    """The lines that were drawn and replaced; what only erases is none."""
    found = DRAWING.findall(text.replace(program.ERASE_LINE, ""))
    return [each for each in found if each.strip()]


# ---- The text -------------------------------------------------------------------------------------------------------

class ProgressTextTest(unittest.TestCase):
    """What the line says."""

    def line(self, seconds: float, columns: int = 80, status: str = "", typical: str = "", foreground: int = 7,
             text: str = "", **state: Any) -> str:
        """The last line after so many seconds, and no line break; all of them without a text, else this text."""
        stream, clock = PseudoTerminal(), [1000.0]
        with contextlib.redirect_stderr(stream), contextlib.ExitStack() as patches:
            for owner, name, value in ((program.time, "monotonic", lambda: clock[0]),
                                       (os, "get_terminal_size", lambda _: os.terminal_size((columns, 24))),
                                       (os, "tcgetpgrp", lambda _: foreground), (os, "getpgrp", lambda: 7)):
                patches.enter_context(mock.patch.object(owner, name, value, create=True))
            console = program.Console(program.Secrets())
            vars(console).update(state)
            clock[0] += seconds
            if text:
                console.refresh(text)
            else:
                console.progress(typical, status)
        self.assertNotIn("\n", stream.getvalue())
        return "".join(drawn(stream.getvalue())[-1:])

    def test_bar_fills_against_the_usual_time(self) -> None:
        for seconds, usual, shown in (
                (1, 120, "[--------------------] 0:01 of about 2:00"),
                (42, 120, "[#######-------------] 0:42 of about 2:00"),
                (119.9, 120, "[###################-] 1:59 of about 2:00"),
                (120, 120, "[###################-] 2:00 of about 2:00"),
                (121, 120, "[###################-] 2:01, longer than usual"),
                (4000, 280, "[###################-] 66:40, longer than usual")):
            with self.subTest(seconds):
                self.assertEqual(self.line(seconds, usual=usual), shown)

    def test_without_a_usual_time_there_is_no_bar(self) -> None:
        self.assertEqual(self.line(3, typical="70 to 280 s"), "waiting: 3 s (typically 70 to 280 s)")
        self.assertEqual(self.line(3, status="pending"), "waiting: 3 s, pending")

    def test_percent_of_a_task(self) -> None:
        for state in ({}, {"usual": 120}):
            with self.subTest(**state):
                self.assertEqual(self.line(42, status="in_progress", percent=45, **state),
                                 "[#########-----------] 0:42, 45 %, in_progress")
        self.assertEqual(self.line(42, percent=99), "[###################-] 0:42, 99 %")

    def test_bytes_that_arrived(self) -> None:
        self.assertEqual(self.line(42, received=12_440_000), "0:42, 12.4 MB received")
        self.assertEqual(self.line(60, usual=120, received=100_000), "[##########----------] 1:00, 0.1 MB received")
        self.assertIn("of about", self.line(60, usual=120, received=99_999))  # an error, or the state of a task

    def test_never_wider_than_the_terminal(self) -> None:
        states: tuple[Mapping[str, Any], ...] = (
            {"usual": 120}, {"usual": 20}, {"percent": 45, "status": "处理中" * 20}, {"typical": "70 to 280 s"},
            {"received": 10**9, "usual": 120}, {"text": "7 of 12, 3 under way, 1 failed, $0.04, " * 5},
            {"text": "🦊" * 100}, {"text": "e\u0301" * 100}, {"text": "×" * 100})
        for state in states:
            for columns in (1, 2, 5, 10, 20, 29, 30, 31, 40, 80, 81, 200):
                with self.subTest(columns=columns, **state):
                    line = self.line(42, columns, **state)
                    self.assertLess(width(line), columns)
                    if width(line) < columns - 2:  # nothing was cut away for no reason
                        self.assertNotEqual(line[-1:], " ")

    def test_bar_fits_30_columns(self) -> None:
        for seconds, shown in ((42, "[##------] 0:42 of about 2:00"), (130, "2:10, longer than usual")):
            self.assertEqual(self.line(seconds, 30, usual=120), shown)

    def test_unknown_width_is_80_columns(self) -> None:
        self.assertEqual(width(self.line(42, 0, text="x" * 100)), 79)

    def test_background_job_draws_nothing(self) -> None:
        self.assertEqual(self.line(42, foreground=8, usual=120), "")

    def test_line_of_a_command_that_went_into_the_background_is_not_erased(self) -> None:
        for place, erased in ((7, 2), (8, 0)):
            stream, console = PseudoTerminal(), program.Console(program.Secrets())
            with contextlib.redirect_stderr(stream), mock.patch.object(program, "environment", lambda _: "xterm"), \
                    mock.patch.multiple(os, get_terminal_size=lambda _: os.terminal_size((80, 24)), getpgrp=lambda: 7,
                                        tcgetpgrp=mock.Mock(side_effect=[7, place])):
                for text in ("before C-z", "after bg"):
                    console.last_sign = float("-inf")
                    console.refresh(text)
                console.note("done")
            self.assertEqual(stream.getvalue().count(program.ERASE_LINE), erased)

    def test_shown_text_has_no_control_character(self) -> None:
        self.assertEqual(self.line(2, text="1 of 2\x1b[31m\r\n, 1 under way"), "1 of 2 [31m , 1 under way")


class UsualTimeTest(unittest.TestCase):
    """Against which time the bar fills."""

    def usual(self, n: int = 1, api: str = "openai", **parameters: str) -> int:
        """Of a job with these parameters."""
        order = mock.Mock(line=0)
        order.job = mock.Mock(parameters=parameters, n=n, target=program.Target("/x", "fox", ".png", False))
        order.settings.api.value = api
        run = program.Run(program.Console(program.Secrets()), program.Result())
        seconds: int = program.for_order(order, run).console.usual
        return seconds

    def test_larger_pictures_take_longer(self) -> None:
        for size, seconds in (("auto", 280), ("1024x1024", 280), ("1536x1024", 280), ("2048x2048", 560),
                              ("3840x2160", 520), ("0x0", 280), ("99999x1", 280)):
            self.assertEqual(self.usual(quality="high", size=size), seconds, size)

    def test_runapi_makes_one_after_another(self) -> None:
        self.assertEqual([self.usual(n=3, api=api, quality="low") for api in ("openai", "runapi")], [70, 210])

    def test_unknown_quality(self) -> None:
        for quality in ("auto", "max", "", "hd"):
            self.assertEqual(self.usual(n=3, quality=quality, size="3840x2160"), 0)


# ---- On terminals ---------------------------------------------------------------------------------------------------

class Shown(NamedTuple):
    """What a command left."""
    exit_code: int
    stdout: str
    terminal: str


@unittest.skipUnless(os.name == "posix", "needs pseudo-terminals")
class ProgressCase(ProgramCase):
    """Commands whose standard error is a pseudo-terminal."""

    def on_terminal(self, world: World, more: Sequence[str] = (), columns: int = 80, then: Iterable[int] = (),
                    term: str = "xterm", through: Sequence[Any] = THROUGH, **env: str) -> Shown:
        """Run a command to its end; the terminal has these columns, then others, each after its next drawing."""
        import pty
        leader, terminal = pty.openpty()
        self.resize(leader, columns)
        child = world.launch(*through, *world.command(*more), stderr=terminal, start_new_session=True,
                             env={world.key_variable: KEY, "TERM": term, **env})
        os.close(terminal)
        text, rest = b"", list(then)
        with contextlib.suppress(OSError):  # the last writer is gone
            while piece := os.read(leader, 4096):
                text += piece
                if rest and re.search(rb"\r[^\r\n]*of about[^\r\n]*\r\Z", text):
                    self.resize(leader, rest.pop(0))
                    text += b"RESIZED"
        os.close(leader)
        stdout = child.communicate(timeout=30)[0]
        return Shown(child.returncode, stdout.decode(), text.decode().replace("\r\n", "\n"))

    def resize(self, leader: int, columns: int) -> None:
        """Give a terminal another width."""
        import fcntl
        import struct
        import termios
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def together(self, *commands: Mapping[str, Any]) -> list[Shown]:
        """Run commands at the same time, each in a world of its own; all must succeed."""
        with ThreadPoolExecutor(len(commands)) as pool:
            found = list(pool.map(lambda number: self.on_terminal(
                self.make_world(str(number), options=("--quality", "low")), **commands[number]), range(len(commands))))
        self.assertEqual({each.exit_code for each in found}, {0}, found)
        return found


class WidthOnTerminalTest(ProgressCase):
    """Real terminals of several widths, all at once."""

    def test_no_line_is_wider_than_its_terminal_and_none_stays(self) -> None:
        self.server.default = Answer(delay=2.5)
        widths = (12, 30, 80, 200)
        for columns, shown in zip(widths, self.together(*({"columns": each} for each in widths))):
            with self.subTest(columns):
                lines = drawn(shown.terminal)
                self.assertGreaterEqual(len(lines), 2, shown)
                self.assertLess(max(map(width, lines)), columns)
                self.assertEqual("[" in lines[0], columns >= 30, lines)
                self.assertRegex(lines[-1], r"0:0\d of" if columns > 12 else r"0:0\d")
                self.assertNotIn("\r", shown.terminal.rpartition(program.ERASE_LINE)[2], "the last line stays")
                self.assertIn("Saved: ", shown.stdout)

    def test_resized_while_it_runs(self) -> None:
        self.server.default = Answer(delay=3.7)
        narrower, wider = self.together({"columns": 200, "then": [30]}, {"columns": 30, "then": [80]})
        for shown, columns in ((narrower, 30), (wider, 80)):
            before, _, after = shown.terminal.partition("RESIZED")
            lines = drawn(after)
            self.assertGreaterEqual(len(lines), 1, shown)
            self.assertLess(max(map(width, lines)), columns)
            self.assertTrue(before.endswith("\r"), "the cursor is not at the start: a wrapped line could not be erased")
            self.assertTrue(after.startswith(program.ERASE_LINE), after)
        self.assertIn("[-----------", wider.terminal.partition("RESIZED")[2], "the bar did not grow")


class OddTerminalTest(ProgressCase):
    """Where a line cannot be drawn as usual, or must not be drawn."""

    def test_every_kind(self) -> None:
        self.server.default = Answer(delay=2.5)
        dumb, unknown, background, latin, no_color, auto, quiet = self.together(
            {"term": "dumb"}, {"term": ""}, {"through": IN_BACKGROUND}, {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
            {"NO_COLOR": "1"}, {"more": ["--quality", "auto"]}, {"more": ["--quiet"]})
        for shown in (dumb, unknown):
            self.assertNotIn("\x1b", shown.terminal)
            self.assertGreaterEqual(len(drawn(shown.terminal)), 2, shown)
            self.assertNotIn("\r", shown.terminal.rpartition("\r" + " " * 79 + "\r")[2], "the last line stays")
        self.assertNotIn("\r", background.terminal)
        self.assertIn("typically 70 s\n", background.terminal)
        self.assertIn("Saved: ", background.stdout)
        for shown in (latin, no_color):
            self.assertTrue(drawn(shown.terminal)[0].startswith("[---"), shown)
        self.assertRegex(drawn(auto.terminal)[0], r"^waiting: \d s \(typically 70 to 280 s\)$")
        self.assertEqual(quiet.terminal, "")

    def test_off_a_terminal_no_line_is_drawn(self) -> None:
        self.server.default = Answer(delay=1.5)
        result = self.generate("a fox", "--quality", "high", "--size", "3840x2160")
        self.assertNotRegex(result.stderr, r"[\r\x1b]|of about")
        self.assertIn("typically 520 s\n", result.stderr)


class BytesOnTerminalTest(ProgressCase):
    """What arrives is counted."""

    def test_bytes_of_the_growing_answer(self) -> None:
        self.server.default = Answer(body=b" " * 3_000_000, trickle=0.16)
        shown = self.on_terminal(self.make_world("bytes", options=("--quality", "low")))
        counts = [float(each) for each in re.findall(r"0:0\d, (\d\.\d) MB received", shown.terminal)]
        self.assertGreaterEqual(len(counts), 1, shown)
        self.assertEqual(counts, sorted(set(counts)))
        self.assertLess(counts[-1], 3.1)


class PercentOnTerminalTest(ProgressCase):
    """A task that says how far it is."""

    @classmethod
    def make_server(cls) -> Any:
        return RunApiServer(KEY)

    def test_percent_of_a_task(self) -> None:
        told: tuple[tuple[Any, int], ...] = ((45, 45), ("7 %", 7), (100, 0), (True, 0), ("soon", 0), ([45], 0))
        for number, (value, shown) in enumerate(told):
            with self.fresh(value):
                self.server.seconds, self.server.pause = 0.3, "200"
                self.server.reshape = lambda answer, value=value: {**answer, "progress": value}
                seen: list[int] = []
                with mock.patch.object(program.Console, "progress", lambda console, *_: seen.append(console.percent)):
                    result = self.run_inside("generate", f"a fox {number}", *self.access(), "--api", "runapi",
                                             env={"RUNAPI_API_KEY": KEY})
                self.assertEqual(result.exit_code, 0, result)
                self.assertEqual(set(seen[-2:]), {shown}, seen)


if __name__ == "__main__":
    unittest.main()
