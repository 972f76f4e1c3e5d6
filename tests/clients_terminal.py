"""The progress line in a real terminal: tmux, which wraps lines again when it is resized."""
from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
import unittest
from typing import Callable

from api_server import Answer
from clients_common import ClientCase, run
from support import KEY

BAR = re.compile(r"\[#*-+\] 0:\d\d of about 1:10")
LINE = re.compile(r"(\[#*-+\] )?0:\d\d of about 1:10")
START = re.compile(r"Generating with gpt-image-2 at \S+, typically 70 s")
PATIENCE = 12  # seconds until something must be on the screen


@unittest.skipUnless(shutil.which("tmux"), "needs tmux")
class TerminalTest(ClientCase):
    """Nothing of the line stays, and nothing wraps, whatever becomes of the terminal."""
    client = "tmux"
    windows = 0
    version = run(["tmux", "-V"]).stdout.strip().rpartition(" ")[2] if shutil.which("tmux") else ""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.close)
        self.api.default = Answer(delay=4.0)
        script, file = self.work / "fox", self.skill / "scripts" / "gpt_image2.py"
        program = [sys.executable, str(file), "generate", "a fox", "--quality", "low"]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(program)} -o fox.png --overwrite "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        (self.work / "rc").write_text("PS1='$ '\n", encoding="utf-8")

    def tmux(self, *words: str) -> str:
        """What a tmux command says; the server is this test's own."""
        command = ["tmux", "-f", os.devnull, "-S", str(self.root / f"tmux-{self.windows}"), *words]
        env = self.environment(GPT_IMAGE2_API_KEY=KEY, GPT_IMAGE2_BASE_URL=self.api.url)
        return run(command, cwd=str(self.work), env=env).stdout

    def open(self, columns: int, command: str) -> None:
        """A shell in a window of that width, where a command is typed."""
        self.tmux("new-session", "-d", "-x", str(columns), "-y", "20", "bash --noprofile --rcfile rc")
        self.see(lambda screen: screen == ["$"])
        self.type(command)

    def close(self) -> None:
        """End this server; the next one has another socket, as this one may still be ending."""
        self.tmux("kill-server")
        self.windows += 1

    def type(self, text: str) -> None:
        """A line at the keyboard; a name such as C-z is a key."""
        self.tmux("send-keys", *([text] if re.fullmatch("C-.", text) else [text, "Enter"]))

    def screen(self) -> list[str]:
        """What is to be seen and what has left the screen; a line that wraps is one, as it was written."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-").rstrip().replace(" \n", "\n").split("\n")

    def see(self, what: Callable[[list[str]], object]) -> list[str]:
        """Wait until the screen is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while not what(screen := [line.rstrip() for line in self.screen()]):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(["this is on the screen:", *screen]))
            time.sleep(0.1)
        return screen

    def see_line(self, pattern: re.Pattern[str] = BAR) -> None:
        """Wait until there are the command, its first line and the progress line, and nothing else."""
        self.see(lambda screen: len(screen) == 3 and START.fullmatch(screen[1]) and pattern.fullmatch(screen[2]))

    def see_the_end(self) -> None:
        """Wait until the command has ended; its progress line is gone."""
        screen = self.see(lambda screen: screen[-1] == "$" and any(line.startswith("Saved: ") for line in screen))
        words = [line.split()[0].rstrip(":") for line in screen[1:]]
        self.assertEqual(words, ["Generating", "cost", "HTTP", "Saved", "$"])

    def test_widths(self) -> None:
        for columns in (30, 80, 200):
            with self.subTest(columns):
                self.open(columns, "./fox --fresh")
                self.see_line()
                rows = self.tmux("capture-pane", "-p").rstrip().split("\n")
                self.assertRegex(rows[-1], BAR, "it wraps")
                self.see_the_end()
                self.close()

    def test_resized_while_it_runs(self) -> None:
        for first, *then in ((200, 30), (80, 20), (30, 200), (100, 30, 90)):
            with self.subTest(first=first, then=then):
                self.open(first, "./fox --fresh")
                self.see_line(LINE)
                for columns in then:
                    self.tmux("resize-window", "-x", str(columns))
                    time.sleep(1.2)  # the next drawing
                    self.see_line(LINE)
                    rows = self.tmux("capture-pane", "-p").rstrip().split("\n")
                    self.assertRegex(rows[-1], LINE, "it wraps")
                self.see_the_end()
                self.close()

    def test_in_the_background(self) -> None:
        self.open(80, "./fox &")
        self.see(lambda screen: any(map(START.search, screen)))
        time.sleep(2.5)  # it would be drawn twice
        self.type("echo typed")
        screen = self.see(lambda screen: "typed" in screen)
        self.assertFalse([line for line in screen if LINE.search(line)], screen)

    def test_stopped_continued_in_the_background_and_fetched_back(self) -> None:
        self.open(80, "./fox")
        self.see_line()
        self.type("C-z")
        self.see(lambda screen: any("Stopped" in line for line in screen))
        self.type("bg")
        time.sleep(1.5)
        self.tmux("send-keys", "fg")  # what a person has typed stays as it is
        time.sleep(1.2)
        self.assertEqual(self.see(lambda screen: screen[-1].startswith("$"))[-1], "$ fg")
        self.tmux("send-keys", "Enter")
        self.see(lambda screen: LINE.fullmatch(screen[-1]))
        self.see(lambda screen: screen[-1] == "$" and any(line.startswith("Saved: ") for line in screen))

    def test_simple_terminal(self) -> None:
        self.open(80, "TERM=dumb ./fox")
        self.see_line()
        self.see_the_end()


if __name__ == "__main__":
    unittest.main()
