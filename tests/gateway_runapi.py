"""RunAPI's official SDK against tests/runapi_server.py: proves that the server speaks the SDK's protocol.

python3 tests/gateway_runapi.py installs the SDK into .clients/runapi once, then needs no network.
One line per check: ok, FAILED reason, SKIPPED reason. Ends with 1 when a check failed.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback
import urllib.request
import venv
from os import environ
from pathlib import Path
from typing import Any, Callable

from api_server import draw_png
from runapi_server import LONG_NAMES, Order, RunApiServer

PACKAGE = "runapi-gpt-image-2==0.4.0"
FOLDER = Path(__file__).resolve().parent.parent / ".clients" / "runapi"
PYTHON = FOLDER / ("Scripts" if os.name == "nt" else "bin") / "python"
KEY, MODEL = "test-key", "gpt-image-2"
PNG = draw_png(64, 64)
CHECKS: list[Callable[[RunApiServer, Any], None]] = []


def check(function: Callable[[RunApiServer, Any], None]) -> Callable[[RunApiServer, Any], None]:
    """Make a function one of the checks."""
    CHECKS.append(function)
    return function


def same(found: Any, expected: Any) -> None:
    """Fail a check unless both are equal."""
    if found != expected:
        raise AssertionError(f"found {found!r}, expected {expected!r}")


def fails(work: Callable[[], Any], kind: type[Exception]) -> Any:
    """Return the error of this kind that some work ends with."""
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def fetch(url: str) -> bytes:
    """Return a result's bytes; without a key."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return bytes(answer.read())


# ---- Checks ------------------------------------------------------------------------------------------------

@check
def create_poll_result(server: RunApiServer, client: Any) -> None:
    """The whole way of a text to image task, with one look that finds it running."""
    server.polls = 1
    result = client.text_to_image.run(model=MODEL, prompt="a fox", aspect_ratio="16:9", output_resolution="2k")
    task, = server.tasks
    same((result.id, result.status, task.looks), (task.name, "completed", 2))
    same([fetch(image.url) for image in result.images], [server.result(task)])
    same(result.usage.cost, 0.08)
    same(task.request.fields, {"model": MODEL, "prompt": "a fox", "aspect_ratio": "16:9", "output_resolution": "2k"})


@check
def edit_with_a_signed_upload(server: RunApiServer, client: Any) -> None:
    """Prepare, PUT, confirm, then an edit of that file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "in.png")
        with open(path, "wb") as stream:
            stream.write(PNG)
        uploaded = client.files.create(file=path)
    same([request.kind for request in server.requests], ["prepare", "put", "confirm"])
    same((uploaded.size_bytes, uploaded.mime_type, fetch(uploaded.url)), (len(PNG), "image/png", PNG))
    client.edit_image.run(model=MODEL, prompt="a hat", source_image_urls=[uploaded.url])
    same(server.source_bytes(server.creates[-1]), [PNG])


@check
def idempotency(server: RunApiServer, client: Any) -> None:
    """The same key and body give the same task, another body a conflict."""
    from runapi.core import ConflictError, RequestOptions
    options = RequestOptions(headers={"Idempotency-Key": "one-key"})
    tasks = [client.text_to_image.create(model=MODEL, prompt="a fox", options=options) for _ in range(2)]
    same((tasks[0].id, tasks[1].task_replayed, len(server.tasks)), (tasks[1].id, True, 1))
    fails(lambda: client.text_to_image.create(model=MODEL, prompt="a cat", options=options), ConflictError)


@check
def dropped_create_is_retried(server: RunApiServer, client: Any) -> None:
    """The SDK's own retry of a create with a key finds the first task."""
    from runapi.core import RequestOptions
    server.plan("create", Order(drop="silent"))
    task = client.text_to_image.create(model=MODEL, prompt="a fox",
                                       options=RequestOptions(headers={"Idempotency-Key": "one-key"}, max_retries=2))
    same((len(server.creates), len(server.tasks), task.task_replayed), (2, 1, True))


@check
def failed_task(server: RunApiServer, client: Any) -> None:
    """A failed task comes with HTTP 200."""
    from runapi.core import TaskFailedError
    error = fails(lambda: client.text_to_image.run(model=MODEL, prompt="a fox [fail: gave up]"), TaskFailedError)
    same((error.message, error.runapi_task_id), ("gave up", server.tasks[0].name))


@check
def accepted_with_a_location(server: RunApiServer, client: Any) -> None:
    """202, Location, and the answer in an envelope; the SDK keeps this way for other models, so its inner call."""
    from runapi.core import PollingOptions
    server.located, server.wrapped = "/api/v1/tasks/{id}", "object"
    result = client.text_to_image._run_hybrid(
        "post", client.text_to_image.ENDPOINT, body={"model": MODEL, "prompt": "a fox"},
        polling_options=PollingOptions(poll_interval=1, max_wait=20))
    same(fetch(result.images[0].url), server.result(server.tasks[-1]))


@check
def accepted_and_failed(server: RunApiServer, client: Any) -> None:
    """The envelope of a failed task."""
    from runapi.core import ValidationError
    server.located, server.wrapped = "/api/v1/tasks/{id}", "object"
    body = {"model": MODEL, "prompt": "a fox [fail: gave up]"}
    error = fails(lambda: client.text_to_image._run_hybrid("post", client.text_to_image.ENDPOINT, body=body),
                  ValidationError)
    same(error.message, "gave up")


@check
def errors_by_status(server: RunApiServer, client: Any) -> None:
    """Each status becomes the SDK's own error, with its text and id."""
    from runapi import core
    for status, kind in ((400, core.ValidationError), (402, core.InsufficientCreditsError), (409, core.ConflictError),
                         (422, core.ValidationError), (429, core.RateLimitError), (503, core.ServiceUnavailableError)):
        server.plan("create", Order(status=status, headers=(("Retry-After", "7"),)))
        error = fails(lambda: client.text_to_image.create(model=MODEL, prompt="a fox"), kind)
        same((error.status, error.request_id is not None), (status, True))
        if status == 429:
            same(error.retry_after, 7.0)
    same(server.tasks, [])


@check
def refused_requests(server: RunApiServer, client: Any) -> None:
    """The server's rules reach the caller as validation errors."""
    from runapi.core import ValidationError
    bodies: tuple[dict[str, Any], ...] = (
        {"model": MODEL, "prompt": " "}, {"model": LONG_NAMES["text_to_image"], "prompt": "a"},
        {"model": MODEL, "prompt": "a", "quality": "high"}, {"model": MODEL, "prompt": "a", "output_resolution": "2k"},
        {"model": MODEL, "prompt": "a", "output_resolution": "4k", "aspect_ratio": "1:1"},
        {"model": MODEL, "prompt": "a", "aspect_ratio": "7:5"})
    for body in bodies:
        error = fails(lambda body=body: client.text_to_image.create(**body), ValidationError)
        same((error.status, sorted(error.details)), (422, ["error", "errors"]))


@check
def wrong_key(server: RunApiServer, client: Any) -> None:
    """401."""
    from runapi.core import AuthenticationError
    from runapi.gpt_image_2 import GptImage2Client
    other = GptImage2Client(api_key="wrong-key", base_url=server.url, max_retries=0)
    fails(lambda: other.text_to_image.create(model=MODEL, prompt="a fox"), AuthenticationError)


@check
def unknown_task(server: RunApiServer, client: Any) -> None:
    """404."""
    from runapi.core import NotFoundError
    fails(lambda: client.text_to_image.get("00000000-0000-4000-8000-000000000099"), NotFoundError)


@check
def who_am_i(server: RunApiServer, client: Any) -> None:
    """The free check of a key."""
    same(client.account.info().id, 1)


# ---- Running -----------------------------------------------------------------------------------------------

def run_checks() -> int:
    """Run every check on a fresh server; inside the SDK's environment."""
    from runapi.gpt_image_2 import GptImage2Client
    failures = 0
    with RunApiServer(KEY) as server:
        client = GptImage2Client(api_key=KEY, base_url=server.url, max_retries=0)
        for function in CHECKS:
            server.reset()
            server.polls = 0
            try:
                function(server, client)
                print(f"ok      {function.__name__}", flush=True)
            except Exception as error:
                failures += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                print(f"FAILED  {function.__name__}: {error!r} ({where})", flush=True)
    return 1 if failures else 0


def install() -> str:
    """Make the SDK's environment if it is not there; the reason why there is none, or an empty text."""
    if sys.version_info < (3, 9):
        return "the SDK needs Python 3.9"
    installed = PYTHON.exists() and not subprocess.call([str(PYTHON), "-c", "import runapi.gpt_image_2"],
                                                        stderr=subprocess.DEVNULL)
    if not installed:
        venv.create(str(FOLDER), with_pip=True)
        pip = subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
        if pip.returncode:
            lines = pip.stdout.decode("utf-8", "replace").strip().splitlines()
            return f"pip cannot install {PACKAGE}: {lines[-1] if lines else pip.returncode}"
    return ""


def main(arguments: list[str]) -> int:
    """Install, then run the checks with the environment's Python."""
    if arguments == ["--inside"]:
        return run_checks()
    reason = install()
    if reason:
        print(f"SKIPPED {PACKAGE}: {reason}")
        return 0
    variables = {name: value for name, value in environ.items() if not name.startswith("RUNAPI_")}
    return subprocess.call([str(PYTHON), str(Path(__file__).resolve()), "--inside"], timeout=300,
                           env={**variables, "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
