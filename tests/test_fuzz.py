"""Mutated answers through the reader: always pictures, a task or a Failure, whatever the bytes are.

FAST=1 tries a tenth of them. A failing answer is named by its number, and `mutant(number)` makes it again.
"""
from __future__ import annotations

import base64
import contextlib
import copy
import faulthandler
import gzip
import io
import json
import os
import random
import re
import resource
import sys
import time
import traceback
import zlib
from os import environ
from pathlib import Path
from typing import Any, Callable

from api_server import draw_png, error_body
from support import KEY, ProgramCase, program
from test_relays import APIMART, FAL, KIE_DONE, TOAPIS, WAVESPEED, chat, shapes

ANSWERS = 1_200 if environ.get("FAST") else 12_000
PICTURE = draw_png(4, 4)
TEXT = base64.b64encode(PICTURE).decode()
ORIGIN = "https://relay.example"
CREATE = program.Request("POST", ORIGIN + "/v1/images/generations", (("Authorization", "Bearer " + KEY),),
                         {"model": "gpt-image-2", "prompt": "a fox"})
USAGE = {"input_tokens": 10, "output_tokens": 100, "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 10 ** 30, 1e308, "", " ", "\ud800", "\0", "x" * 300, [], {}, [[]], [None], {"": None},
    {"@span": [0, 9]}, {"@span": [-1, 5]}, {"@span": [10 ** 25, 10 ** 26]}, {"@span": [5, 1]}, {"@span": ["0", 1]},
    "http://", "https://relay.example/\ud800", "data:image/png;base64,", "data:,", "../..", "![x](http://x",
    "{\"a\":", "[" * 2000, float("inf"), float("nan"), "429", 404, "queued", "completed", "failed", TEXT, [TEXT] * 3,
    "/a/b.png", "b.png?x=1", "//127.0.0.1:9/x.png", "http://169.254.169.254/x", "http://[::1]/x.png",
    "https://2130706433/x.png", "../" * 50 + "x.png", "![" * 5000, "![](" * 3000, {"image": TEXT},
    {"inlineData": {"data": TEXT}}, {"item": {"result": TEXT}}]
ODD_TEXTS = [b"1e999", b"-1e999", b"9" * 5000, b"NaN", b"-Infinity", b"\"\\ud800\"", b"\"\\u0000\"", b"\"\\",
             b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"\xef\xbb\xbf", b"\0", b"\r", b"\r\n\r\n", b"\n\n",
             b"\ndata: ", b"\nevent: error\n", b"[" * 3000, b"{\"a\":" * 3000, b"]" * 50, b"}" * 50, b"\\/", b"\\n",
             b"\"", b"data:", b": keepalive\n"]


def events() -> bytes:
    done = {"type": "image_generation.completed", "b64_json": TEXT, "usage": USAGE}
    part = {"type": "image_generation.partial_image", "b64_json": TEXT, "partial_image_index": 0}
    return "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in (part, done)).encode()


def seed_answers() -> list[bytes]:
    """Whole answers of every kind."""
    documents = list(shapes(TEXT, "data:image/png;base64," + TEXT, "https://cdn.example/1.png").values())
    documents += [APIMART, FAL, KIE_DONE, TOAPIS, WAVESPEED, chat(content="no"), {"data": [{"b64_json": TEXT}] * 3},
                  {"data": [{"b64_json": TEXT}], "usage": USAGE}, {"code": 500, "msg": "broken"},
                  {"detail": [{"msg": "x"}]},
                  {"data": [{"b64_json": TEXT}], "usage": {"cost": 0.04}},
                  {"status": "failed", "error": {"message": "x"}}]
    documents += [{"data": [{"url": "/files/1.png"}]}, [{"url": "files/1/content"}], {"image_base64": TEXT},
                  {"predictions": [{"bytesBase64Encoded": TEXT}]},
                  {"data": {"picture": "https://cdn.example/x/1.webp"}}]
    stream = events()
    failed = b"event: error\ndata: " + error_body("rejected", "moderation_blocked") + b"\n\n"
    call = {"type": "image_generation_call", "result": TEXT}
    answers = [{"type": "response.output_item.done", "item": call},
               {"type": "response.completed", "response": {"output": [call], "usage": USAGE}}]
    lines = "\n".join(map(json.dumps, answers)).encode()
    return [json.dumps(each).encode() for each in documents] + [
        lines, b"data: " + lines.replace(b"\n", b"\n\ndata: "), stream.replace(b"\n", b"\r"), b"\xef\xbb\xbf " + stream,
        stream, stream.replace(b"\n", b"\r\n"), b": keepalive\n\n" + stream + b"data: [DONE]\n\n", failed,
        stream + failed, error_body("no", "invalid_value"), b"<html><title>502</title></html>", b"error code: 524", b""]


SEEDS = seed_answers()


def flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(draw: random.Random, data: bytes) -> bytes:
    first, second = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return draw.choice((data[:first], data[first:second], data[:first] + data[second:], data[:second] + data[first:]))


def insert(draw: random.Random, data: bytes) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice(ODD_TEXTS) + data[at:]


def splice(draw: random.Random, data: bytes) -> bytes:
    other = draw.choice(SEEDS)
    return data[:draw.randint(0, len(data))] + other[draw.randint(0, len(other)):]


def nest(draw: random.Random, data: bytes) -> bytes:
    depth = draw.choice((1, 2, 7, 8, 9, 60, 900, 980, 995, 5000))
    name = draw.choice((b"data", b"images", b"error", b"message", b"usage", b"detail", b"url", b"x"))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"' + name + b'":', b"}"), (b'{"data":[', b"]}")))
    return opening * depth + data + closing * depth


def lengthen(draw: random.Random, data: bytes) -> bytes:
    """Make one string longer than what stays in memory."""
    at = data.find(b'"', draw.randint(0, len(data))) + 1
    return data[:at] + draw.choice((b"A", b"\\n", b"\\", b"data:image/png;base64,", b"\xe2\x82\xac",
                                    b"![x](http://")) * (
        70_000 // draw.choice((1, 2, 20))) + data[at:]


def walk(node: Any) -> list[Any]:
    """All containers of a document."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    below = [found for child in inner for found in walk(child)]
    return [node, *below] if isinstance(node, (dict, list)) and node else below


def retype(draw: random.Random, data: bytes) -> bytes:
    """Replace members of the document by values of another kind."""
    if data.count(b"[") + data.count(b"{") > 200:
        return flip(draw, data)  # too deep for the json of this test
    try:
        document = json.loads(data)
    except ValueError:
        return insert(draw, data)
    for _ in range(draw.randint(1, 3)):
        places = walk(document)
        if places:
            place = draw.choice(places)
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            place[key] = copy.deepcopy(draw.choice(ODD_VALUES))
    if draw.random() < 0.2:
        document = {**(document if isinstance(document, dict) else {}), draw.choice((
            "error", "usage", "urls", "status_url", "response_url", "message", "code", "status", "id", "response",
            "errors", "detail")): copy.deepcopy(draw.choice(ODD_VALUES))}
    return json.dumps(document).encode()


def as_events(draw: random.Random, data: bytes) -> bytes:
    end = draw.choice((b"\n", b"\r\n", b"\r"))
    return b"event: " + draw.choice((b"x.completed", b"error", b"",
                                     b"\xff")) + end + b"data:" + data + end * draw.randint(0, 3)


def pack(draw: random.Random, data: bytes) -> bytes:
    """Compress it in one of the two ways; sometimes to a bomb, sometimes broken."""
    if draw.random() < 0.05:
        data += b" " * 3_000_000
    packed = draw.choice((gzip.compress(data), zlib.compress(data)))
    return draw.choice((packed, packed, packed, packed[:-5], flip(draw, packed), packed + packed))


def as_lines(draw: random.Random, data: bytes) -> bytes:
    """JSON lines around it."""
    return b'{"type": "start"}\n' + data.replace(b"\n", b" ") + draw.choice((b"", b"\n", b'\n{"usage": {"cost": 1}}\n'))


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip, flip, cut, insert, insert, splice, nest, retype, retype, retype, as_events,
    pack, as_lines, cut)


def mutant(number: int) -> tuple[bytes, int, dict[str, str]]:
    """The numbered answer: body, HTTP status, headers."""
    draw = random.Random(number)
    data = draw.choice(SEEDS)
    for _ in range(draw.choice((1, 1, 1, 1, 1, 2, 3))):
        data = draw.choice(MUTATIONS)(draw, data)
    if draw.random() < 0.02:
        data = lengthen(draw, data)
    status = draw.choice((*[200] * 20, 201, 202, 202, 204, 302, 400, 403, 422, 429, 500, 503, 524))
    headers = {"location": draw.choice(("", "/x", ORIGIN + "/x", "https://evil.example/x", "\udcff", "//", "/\x01")),
               "retry-after": draw.choice(("", "1", "-1", "9" * 30, "Wed, 21 Oct 2099 07:28:00 GMT", "x", "\u0663"))}
    return data, status, {name: value for name, value in headers.items() if value}


class MutatedAnswersTest(ProgramCase):
    """The reader in-process, from the file to the pictures' bytes."""

    def setUp(self) -> None:
        super().setUp()
        self.settings = self.load_settings({"base_url": ORIGIN + "/v1", "api_key": KEY})
        self.path = str(self.work / "answer")
        self.picture = self.file("picture.png", PICTURE)

    def test_mutated_answers(self) -> None:
        faulthandler.dump_traceback_later(900, exit=True)  # a hang ends the test, and shows where
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        outcomes: dict[str, int] = {}
        problems: dict[str, str] = {}
        peak = 0
        for number in range(ANSWERS):
            outcome = self.try_answer(number, problems)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if number == ANSWERS // 10:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        self.assertEqual(list(problems.values()), [], f"{len(problems)} kinds of problems, {outcomes}")
        self.assertLess(grown / (1024 if sys.platform != "darwin" else 1024 * 1024), 24, "memory grew, in MB")
        for outcome in ("failure", "images", "task"):  # or the mutations are too wild to prove anything
            self.assertGreater(outcomes.get(outcome, 0), ANSWERS // 100, outcomes)

    def try_answer(self, number: int, problems: dict[str, str]) -> str:
        """What became of one answer; a traceback is noted once for each line of the program that it comes from."""
        data, status, headers = mutant(number)
        Path(self.path).write_bytes(data)
        started = time.monotonic()
        try:
            return self.read(status, headers)
        except Exception as error:
            own = [frame for frame in traceback.extract_tb(error.__traceback__) if "gpt_image2" in frame.filename]
            place = own[-1] if own else traceback.extract_tb(error.__traceback__)[-1]
            problems.setdefault(f"{place.name} {type(error).__name__}",
                                f"answer {number}: {error!r:.200} in {place.name}: {place.line}\n{data[:200]!r}")
            return "bug"
        finally:
            if time.monotonic() - started > 10:
                problems["slow"] = f"answer {number} took {time.monotonic() - started:.0f} s"

    def read(self, status: int, headers: dict[str, str]) -> str:
        """Read the file as the driver does, follow what it leads to, decode the pictures."""
        program.unpack_file(self.path, program.MAX_ANSWER_BYTES)
        self.assertLess(os.path.getsize(self.path), 20_000_000)
        response = program.Response(self.path, status, headers, *program.read_document(self.path), CREATE.url)
        response = program.with_meaning(CREATE, response)
        run = program.Run(program.Console(program.Secrets()), program.Result())
        run.console.as_json = run.console.quiet = True
        try:
            if response.meaning in ("error", "nothing"):
                raise program.answer_failure(CREATE, response)
            program.tell_extras(CREATE, program.Outcome(0, status, 0, True, ""), response, run)
            images = self.follow(program.collect_images(CREATE, response, self.settings, 1, []), response)
            if images is None:
                return "task"
            pictures = [self.decode(image) for image in images]
            self.check_json(lambda: run.console.finish(run.result.record(run.console)), True)
            self.assertTrue(pictures)
            return "images"
        except program.Failure as failure:
            told = failure
        self.assertNotIn(told.exit_code, (0, 1, 2, 7))
        self.check_json(lambda: run.console.finish(run.result.record(run.console, told)), False)
        return "failure"

    def follow(self, steps: Any, response: Any) -> Any:
        """Answer what a generator asks for; None when it is still looking at a task after a few rounds."""
        try:
            item = next(steps)
            for _ in range(12):
                if isinstance(item, program.Request):
                    config = program.curl_config(item, self.path)
                    self.check_request(item, os.fsencode(config))
                    document = program.Response(self.picture, 200, {}) if item.purpose == "download" else response
                    item = steps.send(document)
                else:
                    self.assertGreaterEqual(item.seconds, 0)
                    self.assertIsInstance(item.status, str)
                    item = steps.send(None)
            return None
        except StopIteration as finished:
            return finished.value

    def check_request(self, request: Any, config: bytes) -> None:
        """A request carries the key to the relay only, and stays one line of curl's config."""
        if request.purpose == "download":
            self.assertEqual(request.headers, ())
            self.assertEqual(program.local_place(re.match(program.ORIGIN, request.url)[2]), "", request.url)
        else:
            self.assertTrue(request.url.startswith(ORIGIN + "/"), request.url)
        lines = [line.split(b" ")[0] for line in config.splitlines()]
        self.assertEqual((lines.count(b"url"), lines.count(b"output")), (1, 1))

    def decode(self, image: Any) -> bytes:
        """The bytes of a picture; a Failure in its place is raised."""
        if isinstance(image, program.Failure):
            raise image
        sink = io.BytesIO()
        program.copy_image(image, sink)
        return sink.getvalue()

    def check_json(self, tell: Callable[[], Any], good: bool) -> None:
        """What the caller is told is one line of strict JSON."""
        def refuse(name: str) -> None:
            raise ValueError(f"{name} is no JSON")

        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
            tell()
        document = json.loads(stdout.getvalue(), parse_constant=refuse)
        self.assertEqual((document["ok"], stdout.getvalue().count("\n")), (good, 1))
