"""In real terminals: the progress line in tmux, which wraps lines again when it is resized; a picture in kitty."""
from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from typing import Callable

from api_server import Answer
from clients_common import ClientCase, run
from support import KEY, png_chunk, png_file

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
        self.assertEqual(words, ["Generating", "cost", "Saved", "$"])

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
        self.api.default = Answer(delay=9.0)
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


MISSING = [name for name in ("kitty", "Xvfb", "import", "convert") if not shutil.which(name)]


@unittest.skipIf(MISSING, f"needs {', '.join(MISSING)}")
class KittyTest(ClientCase):
    """--preview, by what is on the screen: a picture of one strong colour, whole, below the lines before it."""
    client = "kitty"
    version = run(["kitty", "--version"]).stdout.split()[1] if shutil.which("kitty") else ""
    COLOUR, SIZE, COLUMNS = (255, 0, 200), (1024, 768), 58

    def setUp(self) -> None:
        super().setUp()
        row = b"\0" + bytes(self.COLOUR) * self.SIZE[0]
        padding = png_chunk(b"caBX", os.urandom(2_000_000))  # as large as a real one
        self.api.default = Answer(image=png_file(*self.SIZE, row * self.SIZE[1], 2, extra=[padding]), check=False)
        self.display = self.start_display()
        (self.work / "tmux.conf").write_text("set -g allow-passthrough on\n", encoding="utf-8")

    def start_display(self) -> str:
        """An X server of this test's own, whose number it finds itself."""
        with tempfile.TemporaryFile() as told:
            command = ["Xvfb", "-displayfd", str(told.fileno()), "-screen", "0", "1000x800x24", "-nolisten", "tcp"]
            self.keep(subprocess.Popen(command, pass_fds=[told.fileno()], stderr=subprocess.DEVNULL))
            deadline = time.monotonic() + 4 * PATIENCE
            number = b""
            while not number.endswith(b"\n"):
                if time.monotonic() > deadline:
                    raise unittest.SkipTest("Xvfb does not start")
                time.sleep(0.1)
                number = os.pread(told.fileno(), 20, 0)
        return ":" + number.decode().strip()

    def keep(self, child: subprocess.Popen[bytes]) -> None:
        """End it with the test."""
        self.addCleanup(child.wait, 60)
        self.addCleanup(child.kill)

    def picture_on_screen(self, *around: object) -> tuple[int, int, int, int]:
        """Width, height, left and top of what has the colour, once there is any; the program runs in `around`."""
        env = self.environment(GPT_IMAGE2_API_KEY=KEY, GPT_IMAGE2_BASE_URL=self.api.url, DISPLAY=self.display,
                               LIBGL_ALWAYS_SOFTWARE="1")
        program = [sys.executable, str(self.skill / "scripts" / "gpt_image2.py")]
        line = shlex.join([*program, "generate", "a fox", "-o", "fox.png", "--preview"]) + "; exec sleep 300"
        options = ["confirm_os_window_close=0", "remember_window_size=no", "initial_window_width=900",
                   "initial_window_height=700", "update_check_interval=0"]
        command = ["kitty", "--config", "NONE", *(word for each in options for word in ("-o", each))]
        self.keep(subprocess.Popen([*command, *map(str, around), "sh", "-c", line], env=env, cwd=str(self.work),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        deadline, box = time.monotonic() + 5 * PATIENCE, ""
        while time.monotonic() < deadline:
            time.sleep(1.0)
            run(["import", "-window", "root", "shot.png"], env=env, cwd=str(self.work))
            before, box = box, run(["convert", "shot.png", "-fill", "black", "+opaque", "rgb(%d,%d,%d)" % self.COLOUR,
                                    "-format", "%@", "info:"], env=env, cwd=str(self.work)).stdout
            found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)\+(\d+)", box)
            if before == box and found and int(found[3]) < 1000:  # nothing moves any more
                width, height, left, top = map(int, found.groups())
                return width, height, left, top
        raise AssertionError(f"no picture is to be seen; its box is {box!r}, {os.listdir(str(self.work))}")

    def assert_well_placed(self, width: int, height: int, left: int, top: int) -> None:
        """In its shape, as wide as it was to be, below three lines."""
        self.assertAlmostEqual(width / height, self.SIZE[0] / self.SIZE[1], delta=0.05)
        self.assertEqual(width % self.COLUMNS, 0)
        self.assertEqual((left, len(self.api.posts)), (0, 1))
        self.assertTrue(3 * 12 < top < 3 * 30, top)

    def test_plain(self) -> None:
        self.assert_well_placed(*self.picture_on_screen())

    @unittest.skipUnless(shutil.which("tmux"), "needs tmux")
    def test_through_tmux(self) -> None:
        tmux = ["tmux", "-S", self.root / "tmux", "-f", self.work / "tmux.conf"]
        self.addCleanup(run, [*tmux, "kill-server"])
        self.assert_well_placed(*self.picture_on_screen(*tmux, "new-session"))


if __name__ == "__main__":
    unittest.main()
