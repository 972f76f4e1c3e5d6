"""The real program through a real relay: litellm's proxy on this machine, in front of the loopback API.

The proxy lives in a virtual environment of its own below .clients/, which is made when it is missing: only pip needs
the network then. One line for each check; the exit code is 1 when one FAILED.
"""
from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from os import environ
from pathlib import Path
from typing import Callable, NamedTuple

from api_server import ApiServer, Recorded, draw_png
from support import KEY, PROGRAM, mask_png

LITELLM = "litellm[proxy]==1.108.7"  # the newest on 2026-11-25 whose [proxy] pip can resolve
VENV = PROGRAM.parent.parent / ".clients" / LITELLM.replace("[proxy]==", "-")  # another version stays beside it
INSTALL_SECONDS, START_SECONDS, CALL_SECONDS = 900, 120, 60
CONFIG = """\
model_list:
  - model_name: gpt-image-2
    litellm_params: {{model: openai/gpt-image-2, api_base: "{url}", api_key: {key}}}
    model_info: {{mode: image_generation}}
litellm_settings: {{num_retries: 0, telemetry: false}}
router_settings: {{num_retries: 0}}
"""


class Unavailable(Exception):
    """The proxy cannot be had on this machine."""


def install() -> Path:
    """The proxy's program, installed when it is missing."""
    done = VENV / "done"
    if not done.exists():
        shutil.rmtree(str(VENV), ignore_errors=True)
        pip = [str(VENV / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", LITELLM]
        for command in ([sys.executable, "-m", "venv", str(VENV)], pip):
            child = subprocess.run(command, timeout=INSTALL_SECONDS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if child.returncode:
                last = child.stdout.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no word"]
                raise Unavailable(f"{LITELLM} cannot be installed: {last[0][:200]}")
        done.touch()
    return VENV / "bin" / "litellm"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def clean_environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's, and nothing that lets the proxy talk to the world."""
    return {"PATH": f"{VENV / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}", "HOME": str(home),
            "TMPDIR": str(home), "LANG": "C.UTF-8", "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False", "DISABLE_ADMIN_UI": "True", "PYTHONDONTWRITEBYTECODE": "1"}


class Gateway:
    """The proxy as a child, in front of a loopback API; ended by its process id."""

    def __init__(self, server: ApiServer, home: Path) -> None:
        self.server, self.home = server, home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = home / "proxy.log"
        self.key = "sk-" + secrets.token_hex(16)  # the proxy's own, for this run; only the proxy holds the API's

    def __enter__(self) -> Gateway:
        config = self.home / "config.yaml"
        config.write_text(CONFIG.format(url=self.server.url, key=KEY))
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [str(install()), "--config", str(config), "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=str(self.home), env={**clean_environment(self.home), "LITELLM_MASTER_KEY": self.key},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def wait_until_ready(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.child.poll() is None:
            try:
                with opener.open(f"http://127.0.0.1:{self.port}/health/liveliness", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError("the proxy did not start:\n" + self.tail())

    def tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])


class Check(NamedTuple):
    """One call, and the file parts that must reach the API."""
    name: str
    arguments: tuple[str, ...]
    parts: tuple[str, ...] = ()


def file_parts(post: Recorded) -> tuple[str, ...]:
    """The names of the pictures that arrived, whatever spelling the proxy uses for them."""
    return tuple(part.name.replace("[]", "") for part in post.parts if part.filename is not None)


def run_check(check: Check, gateway: Gateway) -> str:
    """What is wrong with one call through the proxy, or an empty text."""
    server, home = gateway.server, gateway.home
    server.reset()
    out = home / (check.name.replace(" ", "-") + ".png")
    child = subprocess.run(
        [sys.executable, str(PROGRAM), *check.arguments, "--base-url", gateway.url, "-o", str(out), "--json"],
        env={**clean_environment(home), "GPT_IMAGE2_API_KEY": gateway.key}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=CALL_SECONDS)
    told = child.stderr.decode("utf-8", "replace").strip().splitlines()[-2:]
    document = json.loads(child.stdout or b"{}")
    if child.returncode or not out.exists():
        return f"exit code {child.returncode}: {' '.join(told)}"
    if (document["saved"][0]["width"], document["saved"][0]["height"]) != (1024, 1024):
        return f"another picture than the API drew: {document['saved']}"
    answered = [post for post in server.posts if post.fields.get("prompt") == check.arguments[-1]]
    if server.answered != 1 or not answered:
        return f"{server.answered} pictures were paid for, {len(server.posts)} requests reached the API"
    if file_parts(answered[-1]) != check.parts:
        return f"other files reached the API: {file_parts(answered[-1])}"
    return ""


def checks(home: Path) -> list[Check]:
    """generate, edit with one and with three images, edit with a mask."""
    images = [home / f"in-{number}.png" for number in range(3)]
    for number, path in enumerate(images):
        path.write_bytes(draw_png(64, 64, number))
    mask = home / "mask.png"
    mask.write_bytes(mask_png(64, 64))
    one, two, three = map(str, images)
    return [Check("generate", ("generate", "a red fox")),
            Check("edit with one image", ("edit", one, "a fox with a hat"), ("image",)),
            Check("edit with three images", ("edit", one, "--image", two, "--image", three, "three foxes"),
                  ("image",) * 3),
            Check("edit with a mask", ("edit", one, "--mask", str(mask), "a fox with a scarf"), ("image", "mask"))]


def show(name: str, work: Callable[[], str]) -> bool:
    """Run one check and print its line; whether it is well."""
    try:
        problem = work()
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        problem = repr(error)
    print(f"{name}: {'FAILED ' + problem if problem else 'ok'}", flush=True)
    return not problem


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="gpt-image2-gateway-"))
    good = True
    try:
        with ApiServer(KEY) as server, Gateway(server, home) as gateway:
            for check in checks(home):
                server.answered = 0
                good = show(check.name, lambda check=check: run_check(check, gateway)) and good  # type: ignore[misc]
            if not good:
                print(gateway.tail())
    except Unavailable as reason:
        print(f"gateway: SKIPPED {reason}")
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"gateway: FAILED {error}")
        good = False
    finally:
        shutil.rmtree(str(home), ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
