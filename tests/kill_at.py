"""Run the program and kill it with SIGKILL at the Nth line that it executes in the named functions.

python3 kill_at.py N TIMES FUNCTION[,FUNCTION ...] ARGUMENT ...

A line counts only the first TIMES times, so that loops do not drown the rest. With N = 0 nothing is killed, and the
last line on standard error is the number of lines that counted.
"""
from __future__ import annotations

import collections
import os
import signal
import sys
from types import FrameType
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts"))
import gpt_image2  # noqa: E402


def main(arguments: list[str]) -> int:
    last, times, names = int(arguments[0]), int(arguments[1]), set(arguments[2].split(","))
    executed: collections.Counter[int] = collections.Counter()
    counted = 0

    def on_event(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal counted
        if frame.f_code.co_filename != gpt_image2.__file__ or frame.f_code.co_name not in names:
            return None
        if event == "line":
            executed[frame.f_lineno] += 1
            counted += executed[frame.f_lineno] <= times
            if counted == last and last:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_event

    sys.settrace(on_event)
    exit_code = gpt_image2.main(arguments[3:])
    sys.settrace(None)
    if not last:
        print(counted, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
