"""What a picture costs beside curl, the shell and the vendor's SDK: medians of one run. No aim here is a test.

Every round runs each command once, so that all meet the same machine. A row ends after ROUNDS rounds (15) or when its
seconds are used up. Read it on an idle machine; ROUNDS=1 shows whether the bench itself works.
"""
from __future__ import annotations

import base64
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from os import environ
from os.path import join
from statistics import median
from typing import Callable, Dict, List, NamedTuple, Sequence

from api_server import Answer, ApiServer, Drawing, draw_png, plain_body, png_chunk

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROUNDS = max(1, int(environ.get("ROUNDS") or 15))
SECONDS = 20  # after which a row begins no other round
WAIT = 20  # seconds of waiting that stand for five minutes
MB = 1_000_000
COLUMNS = ("installed", "copied", "python", "curl", "pipeline", "SDK")
# A process of its own measures, because the peak of a child begins with the size of its parent.
MEASURE = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
status, used = os.wait4(process.pid, 0)[1:]
print(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status != 0)
"""
SDK = """
import base64
from openai import OpenAI
client = OpenAI()
def save(answer, number=0):
    for number, image in enumerate(answer.data, number):
        with open(f"sdk-{number}.png", "wb") as stream:
            stream.write(base64.b64decode(image.b64_json))
def generate(**more):
    return client.images.generate(model="gpt-image-2", prompt="a fox", **more)
"""
SDK_BATCH = SDK + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(10) as pool:
    list(pool.map(lambda number: save(generate(), number), range(20)))
"""
SDK_EDIT = SDK + """
with open("upload.png", "rb") as stream:
    save(client.images.edit(model="gpt-image-2", prompt="a fox", image=stream))
"""

Commands = Dict[str, List[str]]


class Cost(NamedTuple):
    """What a command takes, with its children; the megabytes are those of the largest process."""
    seconds: float
    cpu: float
    megabytes: float


def answer_body(image: bytes, count: int = 1) -> bytes:
    """Return an answer that is ready to be sent: the server shares this machine."""
    order = Drawing("a fox", count, 1024, 1024, "low", "png", False, False, 0, None)
    return plain_body(order, [b'"b64_json": "' + base64.b64encode(image) + b'"'] * count)


def noise_png(width: int, height: int) -> bytes:
    """Return the slowest picture there is: noise, every row with Paeth's filter."""
    rows = b"".join(b"\4" + os.urandom(3 * width) for _ in range(height))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\2\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(png_chunk, (
        (b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))))


class Bench:
    """A folder with everything to be compared, a server, and the two tables."""

    def __init__(self, folder: str, server: ApiServer) -> None:
        self.folder, self.server = folder, server
        self.small = answer_body(draw_png(1024, 1024))
        # `python3` is the Python that runs this, whatever comes first in the user's PATH.
        programs = join(folder, "programs")
        os.mkdir(programs)
        self.python = join(programs, "python3")
        os.symlink(sys.executable, self.python)
        # Without PYTHONDONTWRITEBYTECODE and its like.
        self.environment = {
            "PATH": programs + os.pathsep + environ.get("PATH", os.defpath), "HOME": folder, "TMPDIR": folder,
            "LANG": "C.UTF-8", "NO_PROXY": "*", "GPT_IMAGE2_API_KEY": server.key, "GPT_IMAGE2_BASE_URL": server.url,
            "OPENAI_API_KEY": server.key, "OPENAI_BASE_URL": server.url}
        prefix = join(folder, "prefix")
        subprocess.run(["make", "-C", ROOT, "install", "PREFIX=" + prefix, "PYTHON=" + self.python], check=True,
                       env=self.environment, stdout=subprocess.DEVNULL)
        self.installed, self.copied = join(prefix, "bin", "gpt-image2"), join(folder, "gpt-image2")
        shutil.copy(join(ROOT, "scripts", "gpt_image2.py"), self.copied)
        os.chmod(self.copied, 0o755)
        self.sdk, self.sdk_version = "", ""
        for python in (sys.executable, join(ROOT, ".clients", "openai", "bin", "python")):
            found = os.path.exists(python) and subprocess.run(
                [python, "-c", "import openai; print(openai.__version__)"], env=self.environment,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if found and not found.returncode and not self.sdk:
                self.sdk, self.sdk_version = python, found.stdout.decode().strip()

    # ---- Measuring

    def cost(self, command: Sequence[str], **more: str) -> Cost:
        """Run a command once; `more` are variables of its environment."""
        run = subprocess.run([sys.executable, "-I", "-S", "-c", MEASURE, *command], cwd=self.folder,
                             env={**self.environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if run.returncode:
            sys.exit(f"failed: {shlex.join(command)[:1000]}\n{run.stderr.decode(errors='replace')[-2000:]}")
        seconds, cpu, peak = map(float, run.stdout.split())
        return Cost(seconds, cpu, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))

    def medians(self, runs: dict[str, Callable[[], Cost]]) -> tuple[dict[str, Cost], int]:
        """Return the medians of many rounds, and how many they were."""
        costs: dict[str, list[Cost]] = {name: [] for name in runs}
        rounds, deadline = 0, time.monotonic() + SECONDS
        while rounds < ROUNDS and (not rounds or time.monotonic() < deadline):
            for name, run in runs.items():
                costs[name].append(run())
                self.server.requests.clear()  # uploads are large
            rounds += 1
        return {name: Cost(*map(median, zip(*several))) for name, several in costs.items()}, rounds

    # ---- The first table

    def ours(self, *arguments: str) -> Commands:
        """Return a command of the program, and what no Python program can be faster than."""
        return {"installed": [self.installed, *arguments], "copied": [self.copied, *arguments],
                "python": [self.python, "-c", "pass"]}

    def request(self, *more: str) -> list[str]:
        """Return curl's command for a request."""
        kind = "edits" if "-F" in more else "generations"
        return ["curl", "-q", "-s", "-H", "Authorization: Bearer " + self.server.key, *more,
                f"{self.server.url}/images/{kind}"]

    def theirs(self, request: list[str], save: str, script: str) -> Commands:
        """Return the same request by others: curl alone, curl and jq in a pipe, and the SDK."""
        return {"curl": [*request, "-o", "answer.json"], "pipeline": ["sh", "-c", f"{shlex.join(request)} | {save}"],
                "SDK": [self.sdk, "-c", script]}

    def row(self, name: str, commands: Commands, against: Sequence[str] = (), aim: float = 0) -> dict[str, Cost]:
        """Measure and print a row; the aim is for the installed command against the sum of some others."""
        skipped = [*([] if shutil.which("jq") else ["pipeline"]), *([] if self.sdk else ["SDK"])]
        costs, rounds = self.medians({column: lambda command=command: self.cost(command)  # type: ignore[misc]
                                      for column, command in commands.items() if column not in skipped})
        cells = [f"{1000 * costs[column].seconds:,.0f}" if column in costs else "-" for column in COLUMNS]
        ratio = ""
        if aim and all(column in costs for column in against):
            ratio = f"{costs['installed'].seconds / sum(costs[column].seconds for column in against):.2f} of {aim:.1f}"
        print(f"{name:<26} {cells[0]:>9} {ratio:>12} " + " ".join(f"{cell:>8}" for cell in cells[1:]) +
              f" {rounds:>6}", flush=True)
        return costs

    def compare(self) -> dict[str, dict[str, Cost]]:
        """Print the first table; return its costs."""
        print(f"{'milliseconds':<26} {'installed':>9} {'ratio':>12} " +
              " ".join(f"{column:>8}" for column in COLUMNS[1:]) + f" {'rounds':>6}")
        body = ["-H", "Content-Type: application/json", "-d"]
        fox = {"model": "gpt-image-2", "prompt": "a fox"}
        one = self.request(*body, json.dumps(fox))
        again = ("generate", "a fox", "-o", "fox.png", "--fresh", "--overwrite")
        pipe = "jq -r '.data[0].b64_json' | base64 -d > pipeline.png"
        all_of_them = ("jq -r '.data[].b64_json' | awk '{ save = \"base64 -d > pipeline-\" NR \".png\"; "
                       "print | save; close(save) }'")
        costs = {}

        costs["help"] = self.row("--help", {**self.ours("--help"), "SDK": [self.sdk, "-c", "import openai"]})
        for name, size, against, aim in (("small generate", 0, ("python", "curl"), 3.0), ("3 MB", 3, (), 0),
                                         ("25 MB", 25, ("pipeline",), 1.0)):
            picture = draw_png(1024, 1024, padding=size * MB)
            self.server.default = Answer(body=answer_body(picture) if size else self.small)
            costs[name] = self.row(name, {**self.ours(*again), **self.theirs(one, pipe, SDK + "save(generate())")},
                                   against, aim)
        upload = draw_png(1024, 1024, padding=20 * MB)
        self.server.default = Answer(body=answer_body(upload, 10))
        ten = self.request(*body, json.dumps({**fox, "n": 10}))
        costs["ten"] = self.row("10 x 20 MB, one answer", {
            **self.ours(*again, "--n", "10"), **self.theirs(ten, all_of_them, SDK + "save(generate(n=10))")})
        self.server.default = Answer(body=self.small)
        with open(join(self.folder, "upload.png"), "wb") as stream:
            stream.write(upload)
        form = [word for field in ("model=gpt-image-2", "prompt=a fox", "image=@upload.png") for word in ("-F", field)]
        costs["edit"] = self.row("edit, upload of 20 MB", {
            **self.ours("edit", "upload.png", *again[1:]), **self.theirs(self.request(*form), pipe, SDK_EDIT)})

        self.server.default = Answer(body=self.small, delay=1.0)
        self.lines("twenty", 20)
        ten_at_once = "seq 20 | xargs -P 10 -I NUMBER sh -c "
        several = {"curl": ["sh", "-c", ten_at_once + shlex.quote(shlex.join(one) + " > NUMBER.json")],
                   "pipeline": ["sh", "-c", ten_at_once + shlex.quote(
                       shlex.join(one) + " | " + pipe.replace("pipeline.", "NUMBER."))]}
        costs["batch"] = self.row("20 jobs of 1 s, 10 at once", {
            **self.ours("generate", "--batch", "twenty", "--jobs", "10", "-o", "made", "--fresh", "--overwrite"),
            **several, "SDK": [self.sdk, "-c", SDK_BATCH]})
        self.server.default = Answer(body=self.small)
        self.cost([self.installed, "generate", "a hare", "-o", "hare.png"])
        self.row("made before", self.ours("generate", "a hare", "-o", "hare.png"))
        self.row("dry run", self.ours("generate", "a fox", "-o", "fox.png", "--dry-run"))
        return costs

    # ---- The second table

    def show(self, name: str, value: float, unit: str, aim: str, more: str = "") -> None:
        """Print a row of the second table."""
        print(f"{name:<50} {value:>8.2f} {unit:<5}  {aim:<13} {more}".rstrip(), flush=True)

    def lines(self, name: str, count: int) -> None:
        """Write the prompts of a batch."""
        with open(join(self.folder, name), "w") as stream:
            stream.writelines(f"{name} {number}\n" for number in range(count))

    def waiting(self) -> None:
        """Five minutes of waiting, against the same command that need not wait."""
        def command(server: ApiServer, number: int) -> list[str]:
            name = f"{server.default.delay:.0f}-{number}"
            return [self.installed, "generate", name, "--base-url", server.url, "-o", name + ".png"]

        pairs = min(ROUNDS, 9)
        with ApiServer(self.server.key) as slow, ThreadPoolExecutor(pairs) as pool:
            slow.default = Answer(body=self.small, delay=WAIT)
            late, soon = [], []
            for number in range(pairs):
                late.append(pool.submit(self.cost, command(slow, number)))
                time.sleep(0.5)  # no start beside another start
                soon.append(self.cost(command(self.server, number)).cpu)
                time.sleep(0.2)
            more = median(future.result().cpu for future in late) - median(soon)
        self.show("5 minutes of waiting (20 s, times 15)", max(0.0, more * 300 / WAIT), "s CPU", "below 0.20")

    def remembered(self, receipts: int = 10_000) -> None:
        """One small image where nothing is remembered, and where very much is."""
        runs = {}
        for name in ("nothing", "much"):
            home = join(self.folder, name)
            command = [self.installed, "generate", "a fox", "-o", join(home, "fox.png")]
            os.mkdir(home)
            self.cost(command, HOME=home)
            for kind, words in (("fresh", ["--fresh", "--overwrite"]), ("again", [])):
                runs[f"{name} {kind}"] = lambda home=home, words=[*command, *words]: self.cost(words, HOME=home)
        made = join(self.folder, "much", ".local", "state", "gpt-image-2", "made")
        (receipt,) = (name for name in os.listdir(made) if name.endswith(".json"))
        for number in range(receipts):
            shutil.copy(join(made, receipt), join(made, f"{number:024}-{number:016}.json"))
        costs, _ = self.medians(runs)  # type: ignore[arg-type]
        history = self.cost([self.installed, "config", "--history"], HOME=join(self.folder, "much")).seconds
        for name, kind, more in (("generate", "fresh", f"config --history: {history:.1f} s"),
                                 ("made before", "again", "")):
            ratio = costs["much " + kind].seconds / costs["nothing " + kind].seconds
            self.show(f"{name}, beside {receipts:,} receipts", ratio, "times", "1.00 or so", more)

    def batches(self) -> None:
        """Many pictures in one command."""
        def batch(name: str, count: int, *more: str) -> Cost:
            self.lines(name, count)
            return self.cost([self.installed, "generate", "--batch", name, "-o", name + "-made", *more])

        single, _ = self.medians({"single": lambda: self.cost(
            [self.installed, "generate", "a fox", "-o", "fox.png", "--fresh", "--overwrite"])})
        job = batch("hundred", 100, "--jobs", "4").cpu / 100
        self.show("one job of a batch, against a single command", job / single["single"].cpu, "CPU", "at most 0.60")
        self.show("100 jobs that were made before", batch("hundred", 100, "--jobs", "4").seconds, "s", "below 2")
        self.show("10,000 lines, dry run: largest process", batch("many", 10_000, "--dry-run").megabytes, "MB",
                  "below 80")
        self.server.default = Answer(body=answer_body(draw_png(1024, 1024, padding=20 * MB)))
        self.show("four jobs of 20 MB: largest process", batch("large", 4, "--jobs", "2").megabytes, "MB", "below 45")

    def masks(self) -> None:
        """--mask-exact with a soft edge, against the same edit without it."""
        for width, height, aim in ((1024, 1024, 3), (3840, 2160, 30)):
            made = noise_png(width, height)
            with open(join(self.folder, "noise.png"), "wb") as stream:
                stream.write(made)
            self.server.default = Answer(body=answer_body(made))
            edit = [self.installed, "edit", "noise.png", "a fox", "--mask-rect", "25%,25%,50%,50%", "--mask-feather",
                    "16", "--fresh", "--overwrite", "-o", "masked.png"]
            plain, exact = self.cost(edit).cpu, self.cost([*edit, "--mask-exact"]).cpu
            larger = os.path.getsize(join(self.folder, "masked.png")) / len(made)
            self.show(f"--mask-exact, {width}x{height} of noise", exact - plain, "s CPU", f"below {aim}",
                      f"file: {larger:.2f} times, aim below 1.30")

    def aims(self, costs: dict[str, dict[str, Cost]]) -> None:
        """Print the second table."""
        print(f"\n{'the installed command':<50} {'measured':>8} {'':<5}  aim")
        largest = ", ".join(f"{name} {costs['ten'][name].megabytes:,.0f}" for name in ("curl", "pipeline", "SDK")
                            if name in costs["ten"])
        self.show("10 x 20 MB: largest process", costs["ten"]["installed"].megabytes, "MB", "below 45", largest)
        self.show("20 jobs of 1 s, 10 at once, against 2 s", costs["batch"]["installed"].seconds / 2, "times",
                  "at most 1.25")
        self.server.default = Answer(body=self.small)
        self.waiting()
        self.remembered()
        self.batches()
        self.masks()

    def describe(self) -> None:
        """Print what is compared, and where."""
        curl = subprocess.run(["curl", "--version"], stdout=subprocess.PIPE, check=True).stdout.decode().split()[1]
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        print(f"{time.strftime('%Y-%m-%d')}, {platform.system()}, {os.cpu_count()} processors{load}; "
              f"Python {platform.python_version()}, curl {curl}{self.sdk and ', openai ' + self.sdk_version}")
        print("Ratios: small generate to python + curl; 25 MB to the pipeline, curl | jq | base64 -d.")
        if self.sdk:
            print("SDK at --help: its import alone.")
        else:
            print("SDK: skipped, openai cannot be imported.")
        if not shutil.which("jq"):
            print("Pipeline: skipped, no jq.")
        print(flush=True)


def main() -> int:
    folder = tempfile.mkdtemp(prefix="gpt-image2-bench-")
    started = time.monotonic()
    try:
        with ApiServer("test-key") as server:
            bench = Bench(folder, server)
            bench.describe()
            bench.aims(bench.compare())
        print(f"\n{time.monotonic() - started:.0f} s in all")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
