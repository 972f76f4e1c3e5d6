"""Make and edit an image with the real program, against a server on this machine. No key, no cost."""
from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile

from api_server import ApiServer

PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts", "gpt_image2.py")


def show_and_run(*arguments: str) -> None:
    command = ["python3", os.path.relpath(PROGRAM), *arguments]
    print("\n$ " + " ".join(shlex.quote(word) for word in command), flush=True)
    subprocess.run([sys.executable, PROGRAM, *arguments], check=True, timeout=60)


def main() -> int:
    folder = tempfile.mkdtemp(prefix="gpt-image2-demo-")
    config = os.path.join(folder, "config.json")
    print("A stand-in for the API on this machine answers: the prices and times below are pretended, nothing is paid.")
    with ApiServer(key="test-key") as server:
        with open(os.open(config, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
            json.dump({"base_url": server.url, "api_key": "test-key"}, stream)
        fox, hat = os.path.join(folder, "fox.png"), os.path.join(folder, "fox-with-hat.png")
        show_and_run("generate", "a red fox in the snow", "--size", "landscape", "--config", config, "-o", fox)
        show_and_run("edit", fox, "give the fox a hat", "--size", "landscape", "--config", config, "-o", hat)
    print(f"\nThe stand-in drew the pictures, too: look at them in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
