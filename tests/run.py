"""Run all test modules, a few at a time: they spend much of their time waiting. Ends like unittest does."""
from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
# These wait a lot: each of their classes runs as a process of its own, before the others.
LONG_MODULES = ("test_runapi", "test_kill", "test_relays", "test_faults", "test_stream", "test_masks")


def run_module(name: str) -> tuple[str, str]:
    """The module's name with its time, and what unittest said."""
    started = time.monotonic()
    child = subprocess.run([sys.executable, "-W", "error::ResourceWarning", "-m", "unittest", name], cwd=HERE,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{name} ({time.monotonic() - started:.0f} s)", child.stdout.decode("utf-8", "replace")


def count(word: str, output: str) -> int:
    """The number behind a word in unittest's last line."""
    match = re.search(rf"{word}=(\d+)", output.rstrip().rpartition("\n")[2])
    return int(match.group(1)) if match else 0


def cases(module: str) -> list[str]:
    """The names of a module's test classes."""
    with open(os.path.join(HERE, module + ".py"), encoding="utf-8") as stream:
        return re.findall(r"^class (\w+Test)\(", stream.read(), re.MULTILINE)


def main(names: list[str]) -> int:
    found = names or sorted(name[:-3] for name in os.listdir(HERE) if re.fullmatch(r"test_\w+\.py", name))
    ordered = [f"{name}.{case}" for name in LONG_MODULES if name in found for case in cases(name)]
    ordered += [name for name in found if name not in LONG_MODULES]
    started, ran, bad, skipped = time.monotonic(), 0, 0, 0
    with ThreadPoolExecutor((os.cpu_count() or 1) * 3) as pool:
        for name, output in pool.map(run_module, ordered):
            total = re.search(r"^Ran (\d+) tests?", output, re.MULTILINE)
            failures = count("failures", output) + count("errors", output)
            if not total or (failures == 0 and not re.match(r"OK\b", output.rstrip().rpartition("\n")[2])):
                failures = 1  # it did not even start, or died
            if failures:
                print(output)
            ran, bad = ran + int(total.group(1) if total else 1), bad + failures
            skipped += count("skipped", output)
            print(f"{name}: {'FAILED' if failures else 'ok'}", flush=True)
    print(f"\nRan {ran} tests in {time.monotonic() - started:.0f}s\n")
    print(f"FAILED (failures={bad})" if bad else f"OK (skipped={skipped})" if skipped else "OK")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
