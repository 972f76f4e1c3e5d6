"""Run the program and kill it with SIGKILL at the Nth line that it executes in the named functions.

python3 kill_at.py N FUNCTION[,FUNCTION ...] ARGUMENT ...
"""
from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts"))
import gpt_image2  # noqa: E402


def main(arguments: list[str]) -> int:
    left, names = int(arguments[0]), set(arguments[1].split(","))

    def on_event(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != gpt_image2.__file__ or frame.f_code.co_name not in names:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return on_event

    sys.settrace(on_event)
    return gpt_image2.main(arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
