"""What all tests share: the program as a child process in a private home, and a loopback API beside it."""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib
from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence, Union
from unittest import mock

from api_server import ApiServer, Recorded

PROGRAM = Path(__file__).resolve().parent.parent / "scripts" / "gpt_image2.py"
sys.dont_write_bytecode = True  # importing the program must not leave files beside it
sys.path.insert(0, str(PROGRAM.parent))
import gpt_image2 as program  # noqa: E402

# Who runs the tests in the background may ignore these; the programs under test must not inherit that.
for _signal in (getattr(signal, _name) for _name in ("SIGINT", "SIGHUP") if hasattr(signal, _name)):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler)

KEY = "test-key"
USAGE, SETUP, REFUSED, LIMITED, NO_ANSWER, UNSAVED = (
    program.USAGE, program.SETUP, program.REFUSED, program.LIMITED, program.NO_ANSWER, program.UNSAVED)
RESULT_FIELDS = {"schema", "ok", "saved", "requested", "http_status", "elapsed_s", "model", "usage", "cost_usd",
                 "request_id", "warnings", "source"}
ERROR_FIELDS = {"kind", "message", "http_status", "code", "request_id", "billed", "retryable", "next", "hint"}
SAVED_LINE = re.compile(r"Saved: (/.+) \((\d+) KB\)")

Argument = Union[str, bytes]
Environment = Mapping[str, Optional[str]]  # None removes a variable


class Result(NamedTuple):
    """What one run of the program left: its exit code and both streams."""
    exit_code: int
    stdout: str
    stderr: str

    @property
    def saved(self) -> list[tuple[str, int]]:
        """Return (path, kilobytes) of every Saved: line; a line of another form is a failure."""
        found = []
        for line in self.stdout.split("\n"):
            if line.startswith("Saved"):
                match = SAVED_LINE.fullmatch(line)
                if not match:
                    raise AssertionError(f"not a proper Saved: line: {line!r}")
                found.append((match[1], int(match[2])))
        return found

    @property
    def names(self) -> list[str]:
        """Return the file names of the Saved: lines."""
        return [Path(path).name for path, _ in self.saved]

    @property
    def json(self) -> dict[str, Any]:
        """Return the JSON object that has to be the only line of standard output."""
        lines = self.stdout.split("\n")
        if len(lines) != 2 or lines[1]:
            raise AssertionError(f"standard output is not one line: {self.stdout!r}\n{self.stderr}")
        document = json.loads(lines[0])
        if not isinstance(document, dict):
            raise AssertionError(f"standard output is not an object: {self.stdout!r}")
        return document

    @property
    def errors(self) -> list[str]:
        """Return the lines of standard error that say `error:`."""
        return [line for line in self.stderr.split("\n") if "error:" in line]


class World:
    """A home, a working and a temporary folder, and the one command that is run there again and again."""

    def __init__(self, root: Path, server: Any, prompt: str = "a fox", words: Sequence[Argument] = ("generate",),
                 options: Sequence[Argument] = (), key_variable: str = "GPT_IMAGE2_API_KEY") -> None:
        """Make the folders; the command has `words`, the prompt, the server's address and these options."""
        self.root, self.server, self.prompt = root, server, prompt
        self.words, self.options, self.key_variable = words, options, key_variable
        self.home, self.work, self.tmp = (root / name for name in ("home", "work", "tmp"))
        state = self.home / ".local" / "state" / "gpt-image-2"
        self.requests, self.receipts = state / "requests", state / "made"
        for folder in (self.home, self.work, self.tmp):
            folder.mkdir(parents=True)

    def environment(self, extra: Environment | None = None) -> dict[str, str]:
        """Return a clean environment with some variables more (or, with None as value, less)."""
        variables: dict[str, str | None] = {
            "PATH": environ.get("PATH", os.defpath), "HOME": str(self.home), "TMPDIR": str(self.tmp),
            "LANG": "C.UTF-8", "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1", **(extra or {})}
        return {name: value for name, value in variables.items() if value is not None}

    def launch(self, *command: Argument | Path, env: Environment | None = None, stdin: Argument | int | None = None,
               cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start any command in this world and return at once."""
        with tempfile.TemporaryFile() as source:
            if not isinstance(stdin, int):  # else a descriptor
                source.write(stdin.encode() if isinstance(stdin, str) else stdin or b"")
                source.seek(0)
            streams = {"stdin": stdin if isinstance(stdin, int) else source, "stdout": subprocess.PIPE,
                       "stderr": subprocess.PIPE, **options}
            return subprocess.Popen([each if isinstance(each, bytes) else str(each) for each in command],
                                    cwd=str(cwd or self.work), env=self.environment(env), **streams)

    def command(self, *more: Argument) -> list[Argument]:
        """Return the arguments of this world's command, with some more."""
        return [*self.words, self.prompt, "--base-url", self.server.url, "-o", "out.png", *self.options, *more]

    def start(self, *more: Argument, through: Sequence[str | Path] = (sys.executable, PROGRAM),
              **options: Any) -> subprocess.Popen[bytes]:
        """Start this world's command, with its key, in a session of its own; `through` may wrap the program."""
        return self.launch(*through, *self.command(*more), env={self.key_variable: KEY}, start_new_session=True,
                           **options)

    def run(self, *more: Argument, **options: Any) -> Result:
        """Run this world's command to its end."""
        return finish(self.start(*more, **options), 90)

    def posts(self) -> int:
        """Return the number of paid requests that this command has sent."""
        return sum(post.fields.get("prompt") == self.prompt for post in self.server.posts)

    def pictures(self) -> list[str]:
        """Return the names of the pictures that were saved."""
        return sorted(path.name for path in self.work.glob("out*") if path.suffix != ".answer")

    def journal(self) -> list[str]:
        """Return the names of the unfinished requests."""
        return sorted(path.name for path in self.requests.glob("*") if path.name != ".lock")

    def leftovers(self) -> list[str]:
        """Return all temporary and half-written files."""
        return [*os.listdir(str(self.tmp)), *(str(path) for path in self.root.rglob("*.part"))]


def finish(child: subprocess.Popen[bytes], timeout: float = 60) -> Result:
    """Wait for a started program; one that hangs is killed and fails the test."""
    try:
        stdout, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        stdout, stderr = child.communicate()
        raise AssertionError(f"the program hung: {child.args!r}\n{stdout!r}\n{stderr!r}") from None
    return Result(child.returncode, (stdout or b"").decode("utf-8"), (stderr or b"").decode("utf-8"))


class ProgramCase(unittest.TestCase):
    """Runs the real program against one loopback server per class, in a private World per test.

    run_program, generate and edit start the real file as a child process; run_inside and generate_inside call its
    main() in this process, for long tables; start_program and start_generate return while the child still runs.
    generate, edit, generate_inside and start_generate add the server's address and key.
    """
    server: Any
    maxDiff = None

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server of the class."""
        cls.server = cls.make_server()
        cls.server.__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)

    @classmethod
    def make_server(cls) -> Any:
        """The stand-in for the API."""
        return ApiServer(KEY)

    def setUp(self) -> None:
        """Make an empty home, working folder and temporary folder, and forget earlier requests and plans."""
        root = tempfile.mkdtemp(prefix="gpt-image2-test-")
        self.addCleanup(shutil.rmtree, root, True)
        self.world = World(Path(root).resolve(), self.server)
        self.root, self.home, self.work, self.tmp = (self.world.root, self.world.home, self.world.work, self.world.tmp)
        self.server.reset()

    def enter(self, server: Any) -> Any:
        """Keep a server running until the end of the test."""
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server

    # ---- Running ----

    def make_world(self, name: str, server: Any = None, **about: Any) -> World:
        """Return another world, so that many commands can run side by side."""
        return World(self.root / re.sub(r"[^\w.-]+", "-", name), server or self.server, **about)

    def environment(self, extra: Environment | None = None) -> dict[str, str]:
        """Return the environment of this test's children."""
        return self.world.environment(extra)

    def start_program(self, *arguments: Argument, **options: Any) -> subprocess.Popen[bytes]:
        """Start the program (with env, stdin, cwd as in World.launch) and return at once."""
        return self.world.launch(sys.executable, PROGRAM, *arguments, **options)

    finish = staticmethod(finish)

    def kill(self, child: subprocess.Popen[bytes], number: int = 9) -> Result:
        """Send a signal, by default the one that nobody survives, and wait for the end."""
        child.send_signal(number)
        return finish(child)

    def kill_at_request(self, child: subprocess.Popen[bytes], number: int = 9) -> Result:
        """The same once a paid request has arrived."""
        self.wait_until(lambda: bool(self.server.posts))
        return self.kill(child, number)

    def run_program(self, *arguments: Argument, timeout: float = 60, **options: Any) -> Result:
        """Run the program to its end and check that it cleaned up."""
        result = self.finish(self.start_program(*arguments, **options), timeout)
        self.assert_no_leftovers()
        return result

    def run_all(self, commands: Sequence[Sequence[Argument]], env: Environment | None = None,
                at_once: int = 3) -> list[Result]:
        """Run independent commands a few at a time; results in the order of the commands."""
        with ThreadPoolExecutor(at_once) as pool:
            results = list(pool.map(lambda each: self.finish(self.start_program(*each, env=env)), commands))
        self.assert_no_leftovers()
        return results

    def run_inside(self, *arguments: str, env: Environment | None = None, stdin: str = "") -> Result:
        """Run the program's main() inside this process: for long tables, where starting interpreters takes the time."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with self.inside(env, stdin), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            exit_code = program.main(list(arguments))
        self.assert_no_leftovers()
        return Result(exit_code, stdout.getvalue(), stderr.getvalue())

    @contextlib.contextmanager
    def inside(self, env: Environment | None, stdin: str) -> Iterator[None]:
        """Make this process look like the child: environment, folders and input; put everything back afterwards."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        folder, real_input = os.getcwd(), os.dup(0)
        os.chdir(str(self.work))
        try:
            with tempfile.NamedTemporaryFile() as source:
                source.write(stdin.encode())
                source.seek(0)
                os.dup2(source.fileno(), 0)
            with mock.patch.dict(environ, self.environment(env), clear=True), \
                    mock.patch.object(sys, "argv", [str(PROGRAM)]), \
                    open(0, encoding="utf-8", closefd=False) as stream, mock.patch.object(sys, "stdin", stream):
                yield
        finally:
            os.dup2(real_input, 0)
            os.close(real_input)
            os.chdir(folder)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def load_settings(self, flags: Mapping[str, Any], env: Environment | None = None) -> Any:
        """Return the program's Settings for these options and variables."""
        with self.inside(env, ""):
            return program.load_settings(flags)

    def access(self) -> list[str]:
        """Return the options that lead to the server of the class."""
        return ["--base-url", self.server.url]

    def generate(self, *arguments: Argument, env: Environment | None = None, **options: Any) -> Result:
        """Run generate against the server, with its key."""
        return self.run_program("generate", *self.access(), *arguments,
                                env={"GPT_IMAGE2_API_KEY": KEY, **(env or {})}, **options)

    def edit(self, *arguments: Argument, env: Environment | None = None, **options: Any) -> Result:
        """Run edit against the server, with its key."""
        return self.run_program("edit", *self.access(), *arguments,
                                env={"GPT_IMAGE2_API_KEY": KEY, **(env or {})}, **options)

    def generate_inside(self, *arguments: str, env: Environment | None = None, **options: Any) -> Result:
        """Run generate against the server inside this process."""
        return self.run_inside("generate", *self.access(), *arguments,
                               env={"GPT_IMAGE2_API_KEY": KEY, **(env or {})}, **options)

    def start_generate(self, *arguments: Argument, env: Environment | None = None,
                       through: Sequence[str | Path] = (sys.executable, PROGRAM),
                       **options: Any) -> subprocess.Popen[bytes]:
        """Start generate against the server, with its key, and return at once; `through` may wrap the program."""
        return self.world.launch(*through, "generate", *self.access(), *arguments,
                                 env={"GPT_IMAGE2_API_KEY": KEY, **(env or {})}, **options)

    # ---- Files ----

    def file(self, name: str | bytes, content: bytes | str = b"") -> str:
        """Write a file into the working folder, with its folders, and return its path."""
        path = self.work / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def write_config(self, content: Mapping[str, Any] | str, mode: int = 0o600, path: Path | None = None) -> str:
        """Write a config file, by default where the program finds it, and return its path."""
        path = path or self.home / ".config" / "gpt-image-2" / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        path.chmod(mode)
        return str(path)

    def shell_script(self, name: str, text: str, folder: Path | None = None) -> str:
        """Write an executable shell script and return its path."""
        path = (folder or self.root / "bin") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    # ---- Looking ----

    @contextlib.contextmanager
    def fresh(self, *message: object, **about: object) -> Iterator[None]:
        """A subtest before which the server forgets all requests and plans, and the program what it has made."""
        with self.subTest(*message, **about):
            self.server.reset()
            self.forget()
            yield

    def forget(self) -> None:
        """Let the program forget what it has made, so that a command may be a new purchase."""
        for folder in (self.world.receipts, *self.tmp.glob("gpt-image-2-*/made")):
            shutil.rmtree(str(folder), True)

    def journal(self) -> list[str]:
        """Return the names of the unfinished requests."""
        return self.world.journal()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that must come within 20 s."""
        deadline = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.01)

    def assert_no_leftovers(self) -> None:
        """Fail when the program left anything in the temporary folder or a half-written file anywhere."""
        left = [name for name in os.listdir(str(self.tmp)) if not name.startswith("gpt-image-2-")]
        requests = [str(path) for path in self.tmp.glob("gpt-image-2-*/requests/[!.]*")]
        self.assertEqual(left + requests, [], "left in the temporary folder")
        parts = [str(path) for path in self.root.rglob("*") if path.name.endswith(".part")]
        self.assertEqual(parts, [], "half-written files left")

    def assert_succeeded(self, result: Result) -> None:
        """Fail unless the program reported success without a word about errors."""
        self.assertEqual((result.exit_code, result.errors), (0, []), result.stdout + result.stderr)

    def saved_file(self, result: Result) -> Path:
        """Return the one file that a successful run saved."""
        self.assert_succeeded(result)
        self.assertEqual(len(result.saved), 1, result.stdout)
        return Path(result.saved[0][0])

    def only_post(self) -> Recorded:
        """Return the one paid request that arrived."""
        self.assertEqual(len(self.server.posts), 1)
        return self.server.posts[0]

    def posts_by_prompt(self) -> dict[str, Recorded]:
        """Return the paid requests by their prompts."""
        return {post.fields["prompt"]: post for post in self.server.posts}


# ---- A PNG encoder for masks and odd inputs -----------------------------------------------------------------

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each PNG colour type


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return one PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(width: int, height: int, data: bytes, colour: int = 6, depth: int = 8, interlaced: int = 0,
             extra: Iterable[bytes] = (), split: int = 0) -> bytes:
    """Return a PNG around filtered image data; `extra` chunks stand before IDAT, `split` cuts IDAT in pieces."""
    packed = zlib.compress(data, 1)
    step = split or len(packed)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pieces: list[bytes] = [png_chunk(b"IDAT", packed[at:at + step]) for at in range(0, len(packed), step)]
    return b"".join([b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *extra, *pieces, png_chunk(b"IEND", b"")])


def plain_png(width: int, height: int, colour: int = 2, value: int = 128, extra: Iterable[bytes] = ()) -> bytes:
    """Return a PNG in which every byte of every pixel has one value."""
    row = b"\0" + bytes([value]) * (CHANNELS[colour] * width)
    return png_file(width, height, row * height, colour, extra=extra)


def mask_fault(data: bytes) -> str:
    """Return what the program finds wrong with a mask for an image of the same size, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "mask.png")
        Path(path).write_bytes(data)
        picture = program.inspect_picture(io.BytesIO(data)) or program.Picture("png", 0, 0)
        upload = program.Upload(path, picture, len(data), digest="known", seen=picture, name="mask")
        job = program.Job("edit", "gpt-image-2", "a fox", (upload,), upload, {}, 1, program.Target("", "", "", False))
        try:
            program.check_mask(job, upload, upload, [])
        except program.Failure as failure:
            return str(failure.message)
        return ""


def judged(request: Any, outcome: Any, response: Any, attempt: int = 1) -> Any:
    """Return (failure, pause) of one transfer, as the program's driver finds them."""
    response = program.with_meaning(request, response)
    failure = program.failure_of(request, outcome, response)
    return failure, program.retry_pause(request, failure, response.headers, attempt) if failure else None


def mask_png(width: int, height: int, clear: bool = True) -> bytes:
    """Return an RGBA mask, opaque but for (when `clear`) one pixel in the middle."""
    row = b"\0" + b"\xff" * (4 * width)
    middle = 1 + 4 * (width // 2)
    hole = row[:middle] + b"\0\0\0\0" + row[middle + 4:]
    upper = height // 2
    return png_file(width, height, row * upper + (hole if clear else row) + row * (height - upper - 1))
