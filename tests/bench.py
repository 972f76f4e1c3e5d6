"""Start-up time, speed and memory of the program, as ratios measured in one run. No aim here is a test."""
from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from os import environ
from typing import Sequence

from api_server import Answer, ApiServer, draw_png, png_chunk

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.join(os.path.dirname(HERE), "scripts", "gpt_image2.py")
ROUNDS = 30
MEASURE = ("import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)")


def seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def fastest(commands: dict[str, list[str]], environment: dict[str, str], rounds: int = ROUNDS) -> dict[str, float]:
    """The fastest of many runs each, taken in turns so that all meet the same machine."""
    best = {name: float("inf") for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            best[name] = min(best[name], seconds(command, environment))
    return best


def peak_megabytes(command: Sequence[str], environment: dict[str, str]) -> float:
    """The largest resident size of the command and its children."""
    output = subprocess.run([sys.executable, "-c", MEASURE, *command], env=environment, check=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return int(output) / (1024 if sys.platform != "darwin" else 1024 * 1024)


def show(name: str, value: float, unit: str, aim: str = "") -> None:
    print(f"  {name:<58} {value:7.2f} {unit:<12} {aim}", flush=True)


def small(folder: str, environment: dict[str, str]) -> None:
    """Start-up and one small image."""
    with ApiServer("test-key") as server:
        with open(os.path.join(folder, "body.json"), "w") as stream:
            json.dump({"model": "gpt-image-2", "prompt": "a fox"}, stream)
        curl = ["curl", "-q", "-s", "-o", os.devnull, "-H", "Authorization: Bearer test-key", "-H",
                "Content-Type: application/json", "--data-binary", "@" + os.path.join(folder, "body.json"),
                server.url + "/images/generations"]
        best = fastest({
            "floor": [sys.executable, "-c", "pass"], "curl": curl, "help": [sys.executable, PROGRAM, "--help"],
            "generate": [sys.executable, PROGRAM, "generate", "a fox", "--base-url", server.url, "--overwrite",
                         "--fresh", "-o", os.path.join(folder, "small.png")]}, environment)
    floor = best["floor"]
    print(f"\nUnit: one `python -c pass` of {sys.executable}, here {floor * 1000:.1f} ms")
    show("--help", best["help"] / floor, "floors", "aim: 3.50 at most")
    show("one bare curl for the same request", best["curl"] / floor, "floors")
    show("generate, less that curl", (best["generate"] - best["curl"]) / floor, "floors", "aim: 4.00 at most")


def remembered(folder: str, environment: dict[str, str], receipts: int = 10_000) -> None:
    """One small image where nothing is remembered, and where very much is."""
    with ApiServer("test-key") as server:
        commands = {}
        for name in ("nothing", "much"):
            home = os.path.join(folder, name)
            command = ["env", f"HOME={home}", sys.executable, PROGRAM, "generate", "a fox", "--base-url", server.url,
                       "-o", os.path.join(home, "fox.png")]
            os.mkdir(home)
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            commands[name], commands[name + ", made before"] = [*command, "--fresh", "--overwrite"], command
        made = os.path.join(folder, "much", ".local", "state", "gpt-image-2", "made")
        (receipt,) = (name for name in os.listdir(made) if name.endswith(".json"))
        for number in range(receipts):
            shutil.copy(os.path.join(made, receipt), os.path.join(made, f"{number:024}-{number:016}.json"))
        best = fastest(commands, environment)
        history = seconds(["env", f"HOME={folder}/much", sys.executable, PROGRAM, "config", "--history"], environment)
    print(f"\n{receipts} receipts, against none")
    show("generate", best["much"] / best["nothing"], "times", "aim: 1.00, within noise")
    show("the same command again", best["much, made before"] / best["nothing, made before"], "times",
         "aim: 1.00, within noise")
    show("config --history", history / best["nothing, made before"], "times that command")


def large(folder: str, environment: dict[str, str]) -> None:
    """Ten images of 20 MB in one answer, beside the pipeline that people write by hand."""
    answer, out = os.path.join(folder, "answer.json"), os.path.join(folder, "large.png")
    with ApiServer("test-key") as server:
        server.default = Answer(image=draw_png(1024, 1024, padding=20_000_000))
        url = server.url + "/images/generations"
        ours = [sys.executable, PROGRAM, "generate", "a fox", "--n", "10", "--base-url", server.url, "-o", out,
                "--overwrite", "--fresh"]
        pipeline = ("curl -q -s -H 'Authorization: Bearer test-key' -H 'Content-Type: application/json' "
                    f"-d '{{\"model\":\"gpt-image-2\",\"prompt\":\"a fox\",\"n\":10}}' {url} > {answer} && "
                    f"for i in 0 1 2 3 4 5 6 7 8 9; do jq -r .data[$i].b64_json {answer} | base64 -d > {out}.$i; done")
        print("\nTen images of 20 MB in one answer (267 MB of JSON)")
        ours_seconds = fastest({"ours": ours}, environment, 2)["ours"]
        show("peak memory, with curl", peak_megabytes(ours, environment), "MB", "aim: below 60")
        if shutil.which("jq"):
            theirs = fastest({"theirs": ["sh", "-c", pipeline]}, environment, 1)["theirs"]
            megabytes = peak_megabytes(["sh", "-c", pipeline], environment)
            show("peak memory of the same by hand, with jq and base64", megabytes, "MB")
            show("time, against that pipeline", ours_seconds / theirs, "times")


def cpu(command: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds of processor time that a command and its children take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds(command, environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def batches(folder: str, environment: dict[str, str]) -> None:
    """Many pictures in one command."""
    with ApiServer("test-key") as server:
        def command(name: str, count: int, *more: str) -> list[str]:
            lines = os.path.join(folder, name)
            with open(lines, "w") as stream:
                stream.writelines(f"fox {number}\n" for number in range(count))
            return [sys.executable, PROGRAM, "generate", "--batch", lines, "--base-url", server.url, "-o",
                    os.path.join(folder, name + "-made"), *more]

        print("\nBatches")
        picture = draw_png(1024, 1024)  # once: the server shares this machine
        server.default = Answer(delay=1.0, image=picture)
        show("20 jobs of 1 s with --jobs 10", seconds(command("twenty", 20, "--jobs", "10"), environment) / 2,
             "ideal times", "aim: 1.25 at most, idle machine")
        server.default = Answer(image=picture)
        hundred = command("hundred", 100, "--jobs", "4")
        single = [sys.executable, PROGRAM, "generate", "a fox", "--base-url", server.url, "--fresh", "--overwrite",
                  "-o", os.path.join(folder, "single.png")]
        batch = cpu(hundred, environment) / 100
        show("processor time of one job, against a single command",
             batch / min(cpu(single, environment) for _ in range(5)), "times", "aim: 0.60 at most")
        show("100 jobs that were made before", seconds(hundred, environment), "s", "aim: below 2")
        show("10,000 lines: peak memory of the parent (--dry-run)",
             peak_megabytes(command("many", 10_000, "--dry-run"), environment), "MB", "aim: below 80")
        server.default = Answer(image=draw_png(1024, 1024, padding=20_000_000))
        show("four jobs of 20 MB: the largest process",
             peak_megabytes(command("large", 4, "--jobs", "2"), environment), "MB", "aim: below 45")


def noise_png(width: int, height: int) -> bytes:
    """Return the slowest picture there is: noise, every row with Paeth's filter."""
    rows = b"".join(b"\4" + os.urandom(3 * width) for _ in range(height))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\2\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(png_chunk, (
        (b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))))


def masks(folder: str, environment: dict[str, str]) -> None:
    """--mask-exact, against the same edit without it."""
    print("\nMasks that hold (--mask-exact with a soft edge; image and result of the slowest kind)")
    for width, height, aim in ((1024, 1024, 3), (3840, 2160, 30)):
        image, masked = (os.path.join(folder, name) for name in ("image.png", "masked.png"))
        made = noise_png(width, height)
        with open(image, "wb") as stream:
            stream.write(made)
        with ApiServer("test-key") as server:
            server.default = Answer(image=made)
            plain = [sys.executable, PROGRAM, "edit", image, "a fox", "--mask-rect", "25%,25%,50%,50%",
                     "--mask-feather", "16", "--base-url", server.url, "--fresh", "--overwrite", "-o", masked]
            took = [cpu([*plain, *more], environment) for more in ((), ("--mask-exact",))]
            show(f"{width}x{height}", took[1] - took[0], "s of CPU", f"aim: below {aim}")
        show("the saved file, against the one that came", os.path.getsize(masked) / len(made), "times",
             "aim: below 1.30")


def main() -> int:
    folder = tempfile.mkdtemp(prefix="gpt-image2-bench-")
    environment = {"PATH": environ.get("PATH", os.defpath), "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8",
                   "GPT_IMAGE2_API_KEY": "test-key", "NO_PROXY": "*"}
    try:
        small(folder, environment)
        remembered(folder, environment)
        batches(folder, environment)
        masks(folder, environment)
        large(folder, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
