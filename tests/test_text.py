"""Texts, in-process: what may be shown of them, whose address a URL is, and signs of life."""
from __future__ import annotations

import contextlib
import io
import time
import unittest
from unittest import mock

from support import program


class TextCleaningTest(unittest.TestCase):
    """What may be shown."""

    def test_redact(self) -> None:
        for text, secrets, shown in (
                ("key test-key!", ["test-key"], "key ***!"),
                ("test-key-2 test-key", ["test-key", "test-key-2"], "*** ***"),
                ("abc", ["ab"], "abc"), ("Authorization: Bearer abcdef", [], "Authorization: ***"),
                ("none", [""], "none"), ("sk-" + "a1" * 5, [], "***"),
                ("provided: wron" + "*" * 9 + "wxyz", [], "provided: ***"), ("Use Bearer auth", [], "Use Bearer auth"),
                ("key sk-ab" + "*" * 8 + "cd.", [], "key ***"), ("task-force", [], "task-force")):
            with self.subTest(text):
                self.assertEqual(program.redact(text, secrets).rstrip("."), shown)

    def test_redact_takes_no_time_for_long_words(self) -> None:
        started = time.process_time()
        program.redact("A" * 300_000, [])
        self.assertLess(time.process_time() - started, 5)  # it once took minutes

    def test_one_line(self) -> None:
        for text, shown in (("a", "a"), ("a\n b\r\n\tc", "a b c"), ("\x1b[2Ja\x07", "[2Ja"), ("", ""),
                            ("\N{FOX FACE}", "\N{FOX FACE}"), ("\x9b31m\x85", "31m")):
            with self.subTest(text):
                self.assertEqual(program.one_line(text), shown)
        self.assertLessEqual(len(program.one_line("x" * 1000)), 300)

    def test_mask_key(self) -> None:
        for key, shown in (("", "***"), ("a", "***"), ("x" * 19, "***"), ("x" * 16 + "abcd", "***abcd")):
            with self.subTest(key):
                self.assertEqual(program.mask_key(key), shown)


class UrlOriginTest(unittest.TestCase):
    """Whose address a URL is: what curl would read in another way is nobody's."""

    def test_loopback(self) -> None:
        for url, own in (("http://127.0.0.1:8/v1", True), ("http://localhost/", True), ("https://[::1]:5", True),
                         ("http://LOCALHOST:1/a", True), ("http://127.255.0.9/", True),
                         ("http://127.999.1.1/", False), ("http://127.1.1.08/", False),
                         ("http://127.0.0.1.evil.invalid/", False), ("http://127.0.0.1:80@evil.invalid/", False),
                         ("http://localhost@evil.invalid/", False), ("http://127.0.0.1\\@evil.invalid/", False),
                         ("http://localhost.evil.invalid", False),
                         ("http://127.0.0.1#@evil.invalid/", False), ("ftp://127.0.0.1/", False)):
            with self.subTest(url):
                self.assertEqual(program.is_loopback(url), own)

    def test_same_host(self) -> None:
        base = "https://relay.invalid/v1/images/generations"
        for url, found in (("/tasks/1", "https://relay.invalid/tasks/1"),
                           ("https://relay.invalid/t", "https://relay.invalid/t"), ("https://relay.invalid:443/t", ""),
                           ("https://relay.invalid.evil.invalid/t", ""), ("//evil.invalid/t", ""),
                           ("//relay.invalid/t", "https://relay.invalid/t"), ("///t", "https://relay.invalid/t"),
                           ("http://relay.invalid/t", ""),
                           ("https://relay.invalid@evil.invalid/t", ""), ("/a\nb", ""), ("", ""),
                           ("/a b", "https://relay.invalid/a%20b")):
            with self.subTest(url):
                self.assertEqual(program.url_on_host(url, base), found)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


class ProgressTest(unittest.TestCase):
    """Signs of life while an image is made, by a clock that the tests turn."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(program.time, "monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)

    def wait(self, stream: io.StringIO, seconds: int, **options: bool) -> str:
        """Return what is written to standard error during this time, when progress is reported ten times a second."""
        with contextlib.redirect_stderr(stream):
            report = program.Console(program.Secrets())
            vars(report).update(options)
            for _ in range(seconds * 10):
                self.now += 0.1
                report.progress("120 s")
            report.note("done")
        return stream.getvalue()

    def test_off_a_terminal_a_line_every_30_seconds(self) -> None:
        lines = self.wait(io.StringIO(), 65).split("\n")
        self.assertEqual(lines[2:], ["done", ""])
        for line, seconds in zip(lines, (30, 60)):
            self.assertRegex(line, r"^[^\r\x1b]*\b%d s\b[^\r\x1b]*120 s" % seconds)

    def test_on_a_terminal_one_line_is_refreshed(self) -> None:
        text = self.wait(Terminal(), 3)
        self.assertEqual((text.count("\n"), text.startswith("\r")), (1, True))
        self.assertTrue(text.endswith("done\n"))
        self.assertGreaterEqual(text.count("120 s"), 2)

    def test_quiet(self) -> None:
        for stream in (io.StringIO(), Terminal()):
            self.assertEqual(self.wait(stream, 65, quiet=True), "")

    def test_the_same_warning_once(self) -> None:
        stream = io.StringIO()
        with contextlib.redirect_stderr(stream):
            report = program.Console(program.Secrets())
            report.warn("odd")
            report.warn("odd")
        self.assertEqual(stream.getvalue().count("odd"), 1)
