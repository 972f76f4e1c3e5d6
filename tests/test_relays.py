"""Every shape in which relays answer: pictures, errors and tasks, and what each costs in paid requests."""
from __future__ import annotations

import base64
import json
import os
import re
import signal
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from api_server import Answer, ApiServer, draw_png, error_body
from support import KEY, LIMITED, NO_ANSWER, REFUSED, SETUP, ProgramCase, Result, World, mask_png, program

SMALL, LARGE = draw_png(32, 32), draw_png(32, 32, 1, padding=300_000)
SOON = (("retry-after-ms", "50"),)
HTML = b"<!doctype html><html><head><title>Just a moment</title></head><body>wait</body></html>"


def as_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def as_data_url(image: bytes) -> str:
    return "data:image/png;base64," + as_base64(image)


def wrapped(text: str) -> str:
    """A text broken into lines of 76 characters, as mailers and some relays do."""
    return "\n".join(text[at:at + 76] for at in range(0, len(text), 76))


def chat(**message: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}


def body(document: Any, **more: Any) -> Answer:
    return Answer(body=json.dumps(document).encode(), **more)


# ---- Where the picture is ----------------------------------------------------------------------------------

def shapes(text: str, data_url: str, url: str) -> dict[str, Any]:
    """Every place of one picture: as base64, as data: URL and behind a URL."""
    return {
        "b64_json": {"data": [{"b64_json": text}]},
        "b64_json with a prefix": {"data": [{"b64_json": data_url}]},
        "b64_json with white space": {"data": [{"b64_json": " \t" + wrapped(text).replace("\n", "\r\n") + "\n"}]},
        "b64_json without padding": {"data": [{"b64_json": text.rstrip("=")}]},
        "b64_json before url": {"data": [{"url": url + ".missing", "b64_json": text}]},
        "null b64_json, url": {"data": [{"b64_json": None, "url": url}]},
        "empty b64_json, url": {"data": [{"b64_json": "", "url": url}]},
        "null url, b64_json": {"data": [{"url": None, "b64_json": text}]},
        "empty url, b64_json": {"data": [{"url": "", "b64_json": text}]},
        "null url, image_url": {"data": [{"b64_json": None, "url": None, "image_url": {"url": url}}]},
        "url": {"created": 1, "data": [{"url": url}]},
        "url as list": {"data": [{"url": [url]}]},
        "url as empty list, b64_json": {"data": [{"url": [], "b64_json": text}]},
        "data: in url": {"data": [{"url": data_url}]},
        "data: in a list": {"data": [{"url": [data_url]}]},
        "image_url.url": {"data": [{"image_url": {"url": url}}]},
        "image_url.url with data:": {"data": [{"image_url": {"url": data_url}}]},
        "OpenRouter": {"created": 1, "data": [{"b64_json": text}], "usage": {"cost": 0.04}},
        "fal": {"images": [{"url": url, "content_type": "image/png", "width": 32, "height": 32}], "prompt": "a fox"},
        "images with data:": {"images": [{"url": data_url}]},
        "images of texts": {"images": [url]},
        "empty data, images": {"data": [], "images": [{"url": url}]},
        "result.images": {"result": {"images": [{"url": [url]}]}},
        "data.result.images": {"code": 200, "data": {"status": "completed", "result": {"images": [{"url": [url]}]}}},
        "url and result": {"status": "completed", "url": url, "result": {"type": "image", "data": [{"url": url}]}},
        "outputs": {"outputs": [url], "error": ""},
        "data.outputs": {"code": 200, "message": "success",
                         "data": {"outputs": [url], "status": "completed", "error": ""}},
        "outputs with data:": {"data": {"outputs": [data_url]}},
        "resultJson": {"code": 200, "msg": "success", "data": {
            "taskId": "1", "state": "success", "resultJson": json.dumps({"resultUrls": [url]})}},
        "resultJson with data:": {"resultJson": json.dumps({"resultUrls": [data_url]})},
        "chat images": chat(role="assistant", content=None, images=[{
            "type": "image_url", "image_url": {"url": data_url}}]),
        "chat images with text": chat(content="Here is your fox.", images=[{"image_url": {"url": url}}]),
        "chat Markdown": chat(content=f"Here is your fox:\n\n![a fox]({url})\n\nAnything else?"),
        "chat Markdown with data:": chat(content=f"![image]({data_url})"),
        "chat Markdown with wrapped data:": chat(content=f"Done.\n![image]({wrapped(data_url)}\n)\nBye."),
        "chat content of parts": chat(content=[{"type": "text", "text": "Here."},
                                               {"type": "image_url", "image_url": {"url": data_url}}]),
    }


class RelayShapesTest(ProgramCase):
    """One reader for all places; each row is one paid request and one file with exactly the picture's bytes."""

    def check_shapes(self, image: bytes, *left_out: str) -> None:
        self.server.files["shape.png"] = image
        url = f"{self.server.origin}/files/shape.png"
        for name, document in shapes(as_base64(image), as_data_url(image), url).items():
            if name in left_out:
                continue
            with self.fresh(name):
                self.server.plan(body(document))
                saved = self.saved_file(self.generate_inside("a fox", "-o", "a.png", "--overwrite"))
                self.assertEqual(saved.read_bytes(), image)
                self.only_post()

    def test_small(self) -> None:
        self.check_shapes(SMALL)

    def test_longer_than_any_buffer(self) -> None:
        self.check_shapes(LARGE, "resultJson with data:")  # nobody puts a whole picture into a string in a string

    def test_several(self) -> None:
        self.server.files.update({"1.png": SMALL, "2.png": LARGE})
        urls = [f"{self.server.origin}/files/{number}.png" for number in (1, 2)]
        text = f"![one]({urls[0]}) and ![two]({as_data_url(LARGE)})"
        for name, document in {
                "url as list": {"data": [{"url": urls}]}, "items": {"data": [{"url": url} for url in urls]},
                "outputs": {"outputs": urls}, "result.images": {"result": {"images": [{"url": [url]} for url in urls]}},
                "resultJson": {"data": {"resultJson": json.dumps({"resultUrls": urls})}},
                "Markdown": chat(content=text)}.items():
            with self.fresh(name):
                self.server.plan(body(document))
                result = self.generate_inside("a fox", "--n", "2", "-o", "a.png", "--overwrite")
                self.assert_succeeded(result)
                self.assertEqual([Path(path).read_bytes() for path, _ in result.saved], [SMALL, LARGE])

    def test_one_picture_in_two_places_is_one_picture(self) -> None:
        self.server.files["1.png"] = SMALL
        url = f"{self.server.origin}/files/1.png"
        self.server.plan(body({"data": [{"url": url, "b64_json": as_base64(SMALL)}], "images": [{"url": url}]}))
        self.saved_file(self.generate_inside("a fox"))

    def test_long_text_is_no_picture(self) -> None:
        for name, document in {"chat": chat(content="No. " * 30_000), "message": {"message": "Sorry. " * 20_000},
                               "data": {"data": "x y" * 40_000}}.items():
            with self.subTest(name):
                self.server.plan(body(document))
                result = self.generate_inside("a fox", "--json")
                self.assertEqual((result.exit_code, result.json["error"]["kind"]), (NO_ANSWER, "no_image"))
                self.assertEqual(result.json["error"]["billed"], "maybe")

    def test_fewer_than_asked_is_a_warning(self) -> None:
        self.server.plan(body({"images": [{"url": as_data_url(SMALL)}, {"url": None}, {"url": ""}]}))
        result = self.generate_inside("a fox", "--n", "3", "--json")
        self.assertEqual((result.exit_code, len(result.json["saved"]), len(result.json["warnings"])), (0, 1, 1))
        self.assertIn("only 1 of the 3 images came back", result.json["warnings"][0])
        self.only_post()

    def test_addresses_that_cannot_be_fetched_are_no_bug(self) -> None:
        for url in ("http://127.0.0.1:1/\ud800.png", "https://\udfff/"):
            with self.subTest(ascii(url)):
                self.server.plan(body({"data": [{"url": url}]}))
                result = self.generate_inside("a fox", "--json", "--timeout", "2", "--fresh")
                self.assertIn(result.exit_code, (6, 7), result.stderr)
                self.assertIn(result.json["error"]["billed"], ("maybe", "yes"))


class Trouble(NamedTuple):
    """An answer without a picture, and what follows."""
    name: str
    document: Any
    exit_code: int = NO_ANSWER
    billed: str = "maybe"
    message: str = ""


TROUBLES = (  # name, answer, exit code, billed ("": no or maybe), words of the message
    Trouble("empty data", {"created": 1, "data": []}, message='{"created": 1, "data": []}'),
    Trouble("null data", {"data": None}, message='{"data": null}'),
    Trouble("null and empty members", {"data": [{"b64_json": None, "url": ""}], "images": None, "outputs": []}),
    Trouble("empty resultJson", {"data": {"state": "success", "resultJson": ""}}),
    Trouble("resultJson that is none", {"data": {"state": "success", "resultJson": "{\"resultUrls\":["}}),
    Trouble("chat without a picture", chat(content="I cannot draw that today."), message="I cannot draw that today."),
    Trouble("error as object", {"error": {"message": "no channel", "type": "new_api_error"}}, message="no channel"),
    Trouble("error as text", {"error": "no channel"}, message="no channel"),
    Trouble("error inside data", {"data": {"error": "upstream broke"}}, message="upstream broke"),
    Trouble("error beside empty data", {"data": [], "error": {"message": "no channel"}}, message="no channel"),
    Trouble("code 4xx and msg", {"code": 400, "msg": "bad ratio", "data": None}, REFUSED, "", "bad ratio"),
    Trouble("code 422 as text", {"code": "422", "message": "bad ratio"}, REFUSED, "", "bad ratio"),
    Trouble("code 401", {"code": 401, "msg": "no such key"}, SETUP, "", "no such key"),
    Trouble("code 402", {"code": 402, "msg": "no credits left"}, LIMITED, "no", "no credits left"),
    Trouble("code 500 and msg", {"code": 500, "msg": "upstream broke"}, message="upstream broke"),
    Trouble("success false", {"success": False, "message": "upstream broke"}, message="upstream broke"),
    Trouble("moderation in an error", {"error": {"code": "400", "message": "rejected by the safety system"}},
            REFUSED, "no", "safety system"),
    Trouble("moderation in msg", {"code": 400, "msg": "violates our content policy"}, REFUSED, "no", "content policy"),
    Trouble("the original JSON inside message",
            {"error": {"code": "400", "message": error_body("no", "moderation_blocked").decode()}}, REFUSED, "no"),
    Trouble("an id but no sign of waiting", {"id": "img-1", "object": "image", "data": []}),
    Trouble("waiting but no id", {"status": "queued", "data": []}),
)


class RelayTroubleTest(ProgramCase):
    """HTTP 200 proves nothing; what came instead is shown, without the key."""

    def test_no_picture(self) -> None:
        for trouble in TROUBLES:
            with self.fresh(trouble.name):
                self.server.plan(body(trouble.document))
                result = self.generate_inside("a fox", "--json")
                error = result.json["error"]
                self.assertEqual((result.exit_code, result.json["saved"]), (trouble.exit_code, []), error)
                self.assertIn(error["billed"], trouble.billed or ("no", "maybe"))
                self.assertIn(trouble.message, error["message"])
                self.assertEqual((len(self.server.posts), self.server.gets), (1, []))

    def test_what_came_is_shown_redacted(self) -> None:
        self.server.plan(body({"data": [], "debug": f"Authorization: Bearer {KEY}, channel 7", "tail": "x" * 5000}))
        error = self.generate_inside("a fox", "--json").json["error"]
        self.assertIn("channel 7", error["message"])
        self.assertNotIn(KEY, error["message"])
        self.assertLess(len(error["message"]), 1000)

    def test_gateway_that_gave_up(self) -> None:
        for status in (504, 524):
            with self.subTest(status):
                self.server.plan(Answer(status=status, body=HTML, content_type="text/html"))
                error = self.generate_inside("a fox", "--json").json["error"]
                self.assertEqual((error["kind"], error["billed"], error["retryable"]), ("gateway", "maybe", False))
                for word in ("--stream", "--quality", "buys a new image"):
                    self.assertIn(word, error["hint"])


# ---- Tasks --------------------------------------------------------------------------------------------------

FILE, ORIGIN = "@FILE@", "@ORIGIN@"  # stand for the server's own addresses


class Poll(NamedTuple):
    """The answers of one GET; a plain document is HTTP 200."""
    target: str
    answers: tuple[Any, ...]


class Dialect(NamedTuple):
    """A create answer, what GETs answer, and what must follow. asked: the targets of all GETs, repeats once."""
    name: str
    create: Any
    polls: tuple[Poll, ...] = ()
    asked: tuple[str, ...] = ()
    exit_code: int = 0
    kind: str = ""
    billed: str = "no"
    config: tuple[tuple[str, Any], ...] = ()
    message: str = ""
    kept: int = 0


APIMART = {"code": 200, "data": [{"status": "submitted", "task_id": "task_1"}]}
APIMART_BUSY = {"code": 200, "data": {"id": "task_1", "status": "processing", "progress": 40}}


def apimart_done(url: Any) -> dict[str, Any]:
    return {"code": 200, "data": {"id": "task_1", "status": "completed", "progress": 100, "result": {
        "images": [{"url": url, "expires_at": 1800000000}]}}}


def apimart_failed(error: Any) -> dict[str, Any]:
    return {"code": 200, "data": {"id": "task_1", "status": "failed", "error": error}}


TOAPIS = {"id": "task-2", "object": "generation.task", "status": "queued", "progress": 0, "url": None}
TOAPIS_DONE = {"id": "task-2", "object": "generation.task", "status": "completed", "url": FILE,
               "result": {"type": "image", "data": [{"url": FILE}]}}
KIE = (("poll_url", "{base}/jobs/recordInfo?taskId={id}"),)
KIE_STATE = {"code": 200, "msg": "success", "data": {"taskId": "281", "state": "generating", "resultJson": ""}}
KIE_DONE = {"code": 200, "msg": "success", "data": {"taskId": "281", "state": "success",
                                                    "resultJson": '{"resultUrls":["' + FILE + '"]}'}}
KIE_FAILED = {"code": 200, "msg": "success", "data": {"taskId": "281", "state": "fail", "resultJson": "",
                                                      "failCode": "500", "failMsg": "Internal error"}}
WAVESPEED = {"code": 200, "message": "success", "data": {
    "id": "p1", "outputs": [], "urls": {"get": ORIGIN + "/v1/predictions/p1/result"}, "status": "created"}}
WAVESPEED_DONE = {"code": 200, "message": "success", "data": {
    "id": "p1", "outputs": [FILE], "urls": {"get": ORIGIN + "/v1/predictions/p1/result"}, "status": "completed",
    "error": ""}}
WAVESPEED_FAILED = {"code": 200, "message": "success", "data": {
    "id": "p1", "outputs": [], "status": "failed", "error": "no worker"}}
FAL = {"status": "IN_QUEUE", "request_id": "r1", "queue_position": 0, "response_url": ORIGIN + "/v1/requests/r1",
       "status_url": ORIGIN + "/v1/requests/r1/status", "cancel_url": ORIGIN + "/v1/requests/r1/cancel"}
FAL_BUSY, FAL_DONE = {**FAL, "status": "IN_PROGRESS"}, {**FAL, "status": "COMPLETED"}
FAL_RESULT = {"images": [{"url": FILE, "content_type": "image/png", "width": 32, "height": 32}]}
TASKS_1, TASKS_2, FAL_STATUS = "/v1/tasks/task_1", "/v1/tasks/task-2", "/v1/requests/r1/status"
CREATE_1, CREATE_2 = "/v1/images/generations/task_1", "/v1/images/generations/task-2"
PLAIN_DONE = {"data": [{"b64_json": as_base64(SMALL)}]}


def located(location: str, document: bytes = b"") -> Answer:
    return Answer(status=202, body=document, headers=(("Location", location), *SOON))


TASKS = (  # name, create, polls, asked, exit code, kind, billed
    Dialect("APIMart, url list", APIMART, (Poll(TASKS_1, (APIMART_BUSY, APIMART_BUSY, apimart_done([FILE]))),),
            (TASKS_1,)),
    Dialect("APIMart, url string", APIMART, (Poll(TASKS_1, (APIMART_BUSY, apimart_done(FILE))),), (TASKS_1,)),
    Dialect("APIMart, failed", APIMART, (Poll(TASKS_1, (apimart_failed({"message": "no worker"}),)),), (TASKS_1,),
            NO_ANSWER, "task_failed", "maybe", message="no worker"),
    Dialect("APIMart, failed with a text", APIMART, (Poll(TASKS_1, (apimart_failed("no worker"),)),), (TASKS_1,),
            NO_ANSWER, "task_failed", "maybe", message="no worker"),
    Dialect("APIMart, failed by moderation", APIMART, (Poll(TASKS_1, (APIMART_BUSY, apimart_failed(
        {"code": "content_policy_violation", "message": "refused"}))),), (TASKS_1,), REFUSED, "moderation",
            "", message="refused"),
    Dialect("ToAPIs", TOAPIS, (Poll(CREATE_2, ({**TOAPIS, "status": "in_progress"}, TOAPIS_DONE)),), (CREATE_2,)),
    Dialect("ToAPIs, failed", TOAPIS, (Poll(CREATE_2, ({**TOAPIS, "status": "failed", "error": {
        "code": "generate_failed", "message": "no worker"}},)),), (CREATE_2,), NO_ANSWER, "task_failed", "maybe"),
    Dialect("RunAPI form", {"task_id": "task_1", "status": "pending"},
            (Poll(CREATE_1, ({"task_id": "task_1", "status": "processing"},
                             {"task_id": "task_1", "status": "succeeded", "images": [{"url": FILE}]})),), (CREATE_1,)),
    Dialect("kie, waiting", {"code": 200, "data": {"taskId": "281", "state": "waiting"}}, (
        Poll("/v1/jobs/recordInfo?taskId=281", (KIE_STATE, KIE_DONE)),), ("/v1/jobs/recordInfo?taskId=281",),
            config=KIE),
    Dialect("kie, only an id", {"code": 200, "msg": "success", "data": {"taskId": "281"}}, (
        Poll("/v1/jobs/recordInfo?taskId=281", (KIE_STATE, KIE_DONE)),), ("/v1/jobs/recordInfo?taskId=281",),
            config=KIE),
    Dialect("kie, failed", {"code": 200, "data": {"taskId": "281", "state": "queuing"}}, (
        Poll("/v1/jobs/recordInfo?taskId=281", (KIE_STATE, KIE_FAILED)),), ("/v1/jobs/recordInfo?taskId=281",),
            NO_ANSWER, "task_failed", "maybe", KIE, "Internal error"),
    Dialect("PoYo", {"code": 200, "data": {"task_id": "281", "status": "not_started"}}, (
        Poll("/v1/generate/status/281", ({"data": {"status": "running"}}, {"data": {
            "status": "finished", "images": [{"url": FILE}]}})),), ("/v1/generate/status/281",),
            config=(("poll_url", "{base}/generate/status/{id}"),)),
    Dialect("WaveSpeed", WAVESPEED, (Poll("/v1/predictions/p1/result", (WAVESPEED, WAVESPEED_DONE)),),
            ("/v1/predictions/p1/result",)),
    Dialect("WaveSpeed, urls at the top", {**WAVESPEED["data"]},  # type: ignore[dict-item]
            (Poll("/v1/predictions/p1/result", (WAVESPEED, WAVESPEED_DONE)),), ("/v1/predictions/p1/result",)),
    Dialect("WaveSpeed, failed", WAVESPEED, (Poll("/v1/predictions/p1/result", (WAVESPEED_FAILED,)),),
            ("/v1/predictions/p1/result",), NO_ANSWER, "task_failed", "maybe", message="no worker"),
    Dialect("fal queue", FAL, (Poll(FAL_STATUS, (FAL, FAL_BUSY, FAL_DONE)), Poll("/v1/requests/r1", (FAL_RESULT,))),
            (FAL_STATUS, "/v1/requests/r1")),
    Dialect("fal queue with 202", FAL, (Poll(FAL_STATUS, (body(FAL_BUSY, status=202, headers=SOON), FAL_DONE)),
                                        Poll("/v1/requests/r1", (FAL_RESULT,))), (FAL_STATUS, "/v1/requests/r1")),
    Dialect("fal queue, refused result", FAL, (Poll(FAL_STATUS, (FAL_DONE,)), Poll("/v1/requests/r1", (
        body({"detail": "rejected by the content policy"}, status=422),))), (FAL_STATUS, "/v1/requests/r1"),
            REFUSED, "moderation", "", message="content policy"),
    Dialect("fal queue, no images", FAL, (Poll(FAL_STATUS, (FAL_DONE,)), Poll("/v1/requests/r1", ({"images": []},))),
            (FAL_STATUS, "/v1/requests/r1"), NO_ANSWER, "no_image", "maybe"),
    Dialect("202, absolute Location", located(ORIGIN + "/v1/operations/7"), (
        Poll("/v1/operations/7", ({"status": "running"}, PLAIN_DONE)),), ("/v1/operations/7",)),
    Dialect("202, relative Location", located("/v1/operations/7?v=1", b"{}"), (
        Poll("/v1/operations/7?v=1", ({"status": "running"}, PLAIN_DONE)),), ("/v1/operations/7?v=1",)),
    Dialect("202 again and again without a body", located("/v1/operations/7"), (
        Poll("/v1/operations/7", (*[located("/v1/operations/7")] * 4, PLAIN_DONE)),), ("/v1/operations/7",)),
    Dialect("202 with an id", body({"request_id": "task_1"}, status=202, headers=SOON), (
        Poll(CREATE_1, (PLAIN_DONE,)),), (CREATE_1,)),
    Dialect("unknown status words", APIMART, (Poll(TASKS_1, (
        {"data": {"status": "moderating"}}, {"data": {"status": "RENDERING 4/9"}}, {"data": {"status": None}},
        {"data": {}}, apimart_done(FILE))),), (TASKS_1,)),
    Dialect("429 while polling", APIMART, (Poll(TASKS_1, (Answer(status=429, headers=SOON), APIMART_BUSY,
                                                          apimart_done(FILE))),), (TASKS_1,)),
    Dialect("500 while polling", APIMART, (Poll(TASKS_1, (*[Answer(status=500)] * 4, apimart_done(FILE))),),
            (TASKS_1,)),
    Dialect("502 page while polling", APIMART, (Poll(TASKS_1, (
        Answer(status=502, body=HTML, content_type="text/html"), apimart_done(FILE))),), (TASKS_1,)),
    Dialect("page while polling", APIMART, (Poll(TASKS_1, (
        *[Answer(body=HTML, content_type="text/html")] * 4, apimart_done(FILE))),), (TASKS_1,)),
    Dialect("dropped while polling", APIMART, (Poll(TASKS_1, (*[Answer(drop="silent")] * 4, apimart_done(FILE))),),
            (TASKS_1,)),
    Dialect("404 at the first known place", TOAPIS, (Poll(TASKS_2, (TOAPIS_DONE,)),), (CREATE_2, TASKS_2)),
    Dialect("404 at APIMart's place", APIMART, (Poll(CREATE_1, (apimart_done(FILE),)),), (TASKS_1, CREATE_1)),
    Dialect("404 everywhere", APIMART, (), (TASKS_1, CREATE_1), NO_ANSWER, "poll", "maybe", kept=1),
    Dialect("401 while polling", APIMART, (Poll(TASKS_1, (Answer(status=401),)),), (TASKS_1,), NO_ANSWER, "poll",
            "maybe", kept=1),
    Dialect("id of a stranger", {**TOAPIS, "id": "../a b?c#d/\u00e9"}, (
        Poll("/v1/images/generations/..%2Fa%20b%3Fc%23d%2F%C3%A9", (TOAPIS_DONE,)),),
            ("/v1/images/generations/..%2Fa%20b%3Fc%23d%2F%C3%A9",)),
    Dialect("id of dots", {**TOAPIS, "id": ".."}, (), (), NO_ANSWER, "", "maybe"),
    Dialect("id of one dot", {**TOAPIS, "id": "."}, (), (), NO_ANSWER, "", "maybe"),
    Dialect("id that is no text", {**TOAPIS, "id": "\ud800"}, (), None, NO_ANSWER, "",
            "maybe"),  # type: ignore[arg-type]
    Dialect("id as a number", {"data": {"id": 77, "status": "Pending"}}, (
        Poll("/v1/images/generations/77", (PLAIN_DONE,)),), ("/v1/images/generations/77",)),
    Dialect("broken status_url", {**FAL, "status_url": "\x01http://127.0.0.1/\x00", "response_url": ""}, (),
            None, NO_ANSWER, "", "maybe"),  # type: ignore[arg-type]
    Dialect("task that ends empty", TOAPIS, (Poll(CREATE_2, ({**TOAPIS, "status": "completed"},)),), (CREATE_2,),
            NO_ANSWER, "no_image", "maybe"),
)


class TaskWorld(World):
    """A world with a server of its own that answers with tasks, so that rows can run side by side."""

    def plan(self, *polls: Poll) -> None:
        for poll in polls:
            self.server.plan_gets(poll.target, *(self.answer(each) for each in poll.answers))

    def answer(self, given: Any) -> Answer:
        """An Answer, or one around a document that asks to come back soon; the server's addresses filled in."""
        given = given if isinstance(given, Answer) else body(given, headers=SOON)
        headers = tuple((name, value.replace(ORIGIN, self.server.origin)) for name, value in given.headers)
        text = given.body
        if text is not None:
            text = text.replace(FILE.encode(), (self.server.origin + "/files/1.png").encode())
            text = text.replace(ORIGIN.encode(), self.server.origin.encode())
        return given._replace(headers=headers, body=text)

    def asked(self) -> list[str]:
        """The targets of all GETs but downloads, each once, in order."""
        return list(dict.fromkeys(each.path for each in self.server.gets))


class TaskCase(ProgramCase):
    """Worlds for tests of tasks."""

    def task_world(self, name: str, *creates: Any, config: Mapping[str, Any] | None = None) -> TaskWorld:
        """A world whose server answers the first paid requests like this."""
        server = self.enter(ApiServer(KEY))
        server.files["1.png"] = SMALL
        world = TaskWorld(self.root / re.sub(r"\W+", "-", name), server)
        server.plan(*map(world.answer, creates))
        if config:
            self.write_config(config, path=world.home / ".config" / "gpt-image-2" / "config.json")
        return world

    def check_collected(self, world: World, result: Result) -> None:
        """The picture is there, bought once, and nothing is left."""
        self.assertEqual(result.exit_code, 0, result.stdout + result.stderr)
        self.assertEqual((world.pictures(), (world.work / "out.png").read_bytes() == SMALL), (["out.png"], True))
        self.assertEqual((len(world.server.posts), world.journal(), world.leftovers()), (1, [], []))


class TaskDialectsTest(TaskCase):
    """An answer that only promises a picture is polled, on the same origin, and never asked for twice."""

    def test_dialects(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            for task, problem in zip(TASKS, pool.map(self.check, TASKS)):
                with self.subTest(task.name):
                    self.assertEqual(problem, "")

    def check(self, task: Dialect) -> str:
        """What is wrong in this row, or an empty text."""
        world = self.task_world(task.name, task.create, config=dict(task.config))
        world.plan(*task.polls)
        result = world.run("--json", "--timeout", "30")
        error = result.json.get("error", {"kind": "", "billed": "no", "message": ""})
        found = {"exit_code": result.exit_code, "posts": len(world.server.posts), "asked": world.asked(),
                 "pictures": world.pictures(), "journal": len(world.journal()), "kind": error["kind"],
                 "billed": error["billed"], "message": task.message in error["message"], "left": world.leftovers()}
        expected = {"exit_code": task.exit_code, "posts": 1, "asked": list(task.asked or ()),
                    "pictures": [] if task.exit_code else ["out.png"], "journal": task.kept, "kind": task.kind,
                    "billed": task.billed, "message": True, "left": []}
        if task.asked is None:
            del found["asked"], expected["asked"]
        if task.exit_code and not task.kind:  # any kind and any fate of the folder will do
            expected.update(kind=error["kind"], journal=len(world.journal()))
        if task.exit_code and not task.billed:
            expected.update(billed=error["billed"])
        return "" if found == expected else f"\nfound    {found}\nexpected {expected}\n{result.stdout}{result.stderr}"

    def test_an_edit_is_polled_too(self) -> None:
        image = self.file("in.png", SMALL)
        world = self.task_world("edit", TOAPIS)
        world.words, world.prompt = ("edit", image), "a hat"
        world.plan(Poll("/v1/images/edits/task-2", ({**TOAPIS, "status": "in_progress"}, TOAPIS_DONE)))
        self.check_collected(world, world.run())

    def test_looking_sends_the_key_and_nothing_else(self) -> None:
        world = self.task_world("headers", APIMART)
        world.plan(Poll(TASKS_1, (apimart_done(FILE),)))
        self.check_collected(world, world.run("--header", "X-Team: fox"))
        look, = world.server.gets
        self.assertEqual((look.header("authorization"), look.header("x-team"), look.body),
                         (f"Bearer {KEY}", "fox", b""))
        self.assertEqual((look.header("content-type"), look.header("content-length")), ("", ""))

    def test_usage_of_a_task_counts_once(self) -> None:
        usage = {"usage": {"cost": 0.05}}
        self.server.plan(body({**TOAPIS, **usage}, headers=SOON))
        self.server.plan_gets(CREATE_2, body({**TOAPIS, "status": "processing", **usage}, headers=SOON),
                              body({**PLAIN_DONE, **usage}))
        self.assertEqual(self.generate_inside("a fox", "--json").json["cost_usd"], 0.05)

    def test_failed_words(self) -> None:
        for word in ("failed", "FAIL", "error", "generate_failed", "create_task_failed", "canceled", "Cancelled",
                     "timeout"):
            with self.fresh(word):
                self.server.plan(body(TOAPIS, headers=SOON))
                self.server.plan_gets(CREATE_2, body({"id": "task-2", "status": word}))
                result = self.generate_inside("a fox", "--json", "--timeout", "10")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"], error["billed"]), (6, "task_failed", "maybe"), error)
                self.assertIn(word.lower(), error["message"])
                self.assertEqual((len(self.server.posts), len(self.server.gets)), (1, 1))

    def test_waiting_words(self) -> None:
        for word in ("submitted", "PENDING", "queued", "created", "Processing", "in_progress", "waiting", "starting",
                     "IN_QUEUE"):
            with self.fresh(word):
                self.server.plan(body({"request_id": "task-2", "status": word}, headers=SOON))
                self.server.plan_gets(CREATE_2, body(PLAIN_DONE))
                self.saved_file(self.generate_inside("a fox", "-o", "a.png", "--overwrite"))
                self.only_post()

    def test_done_words(self) -> None:
        for word in ("completed", "complete", "SUCCESS", "succeeded", "finished"):
            with self.fresh(word):
                self.server.plan(body(TOAPIS, headers=SOON))
                self.server.plan_gets(CREATE_2, body({"status": word, "data": []}))
                result = self.generate_inside("a fox", "--json", "--timeout", "10")
                self.assertEqual((result.exit_code, result.json["error"]["billed"]), (6, "maybe"))
                self.assertEqual(len(self.server.gets), 1)

    def test_retry_after_is_kept(self) -> None:
        self.server.plan(body(TOAPIS, status=202, headers=(("Retry-After", "1"),)))
        self.server.plan_gets(CREATE_2, body(PLAIN_DONE))
        self.saved_file(self.generate_inside("a fox"))
        look, = self.server.gets
        self.assertGreater(look.when - self.only_post().when, 0.95)

    def test_a_failed_task_is_forgotten(self) -> None:
        world = self.task_world("failed", APIMART, Answer(image=SMALL))
        world.plan(Poll(TASKS_1, (apimart_failed("no worker"),)))
        self.assertEqual((world.run().exit_code, len(world.journal())), (6, 0))
        self.assertEqual((world.run().exit_code, len(world.server.posts)), (0, 2))

    def test_status_is_told_while_waiting(self) -> None:
        self.server.plan(body(TOAPIS, headers=SOON))
        self.server.plan_gets(CREATE_2, body({**TOAPIS, "status": "shaving the fox"}, headers=SOON))
        error = self.generate_inside("a fox", "--json", "--timeout", "1").json["error"]
        self.assertIn("shaving the fox", error["message"])


class KeyStaysAtItsOriginTest(TaskCase):
    """The key goes to the origin of the base URL only, whatever an answer names."""

    def check_stranger(self, name: str, make: Callable[[str], Answer], polls: Sequence[Poll] = (),
                       exit_code: int = NO_ANSWER, **config: str) -> Result:
        """Run against an answer that names another server; that one must hear nothing at all."""
        with ApiServer(KEY) as stranger:
            world = self.task_world(name, make(stranger.origin), config={
                each: value.replace("@STRANGER@", stranger.origin) for each, value in config.items()})
            world.plan(*polls)
            result = world.run("--json", "--timeout", "4")
            self.assertEqual(stranger.requests, [], name)
        self.assertEqual((result.exit_code, len(world.server.posts)), (exit_code, 1), result.stdout + result.stderr)
        return result

    def test_location(self) -> None:
        self.check_stranger("location", lambda origin: located(origin + "/v1/operations/7"))
        self.check_stranger("location-id", lambda origin: located(origin + "/v1/operations/7", b'{"id": "task-2"}'),
                            [Poll(CREATE_2, (PLAIN_DONE,))], 0)

    def test_look_alikes(self) -> None:
        with ApiServer(KEY) as stranger:
            port = stranger.origin.rpartition(":")[2]
        for number, form in enumerate(("//127.0.0.1:{port}/x", "{own}@127.0.0.1:{port}/x", "{own}.evil.invalid/x",
                                       "{own}0/x", "https{tail}/x", "http://localhost:{port}/x")):
            with self.subTest(form):
                own = self.server.origin
                url = form.format(port=port, own=own, tail=own[4:])
                found = program.url_on_host(url, self.server.url + "/images/generations")
                self.assertIn(found, ("", own + url), number)
                self.assertTrue(found == "" or found.startswith(own + "/"), found)

    def test_other_names_of_this_host(self) -> None:
        create = "https://relay.example/v1/images/generations"
        for url, expected in (("https://relay.example/v1/x", "https://relay.example/v1/x"),
                              ("/v2/x", "https://relay.example/v2/x"), ("http://relay.example/v1/x", ""),
                              ("https://relay.example:8443/x", ""), ("https://other.example/x", ""),
                              ("https://relay.example.evil/x", ""), ("https://relay.example@evil/x", ""), ("", ""),
                              ("ftp://relay.example/x", ""), ("x/y", "https://relay.example/v1/images/x/y")):
            with self.subTest(url):
                self.assertEqual(program.url_on_host(url, create), expected)

    def test_status_url(self) -> None:
        self.check_stranger("status", lambda origin: body(
            {**FAL, "status_url": origin + "/status", "response_url": origin + "/result"}, headers=SOON),
            [Poll("/v1/images/generations/r1", ({"status": "failed"},))])
        self.check_stranger("status-known", lambda origin: body(
            {**TOAPIS, "status_url": origin + "/status"}, headers=SOON), [Poll(CREATE_2, (PLAIN_DONE,))], 0)

    def test_urls_get(self) -> None:
        def wavespeed(origin: str) -> Answer:
            return body({"data": {"id": "p1", "status": "created", "urls": {"get": origin + "/x"}}}, headers=SOON)
        self.check_stranger("urls", wavespeed, [Poll("/v1/images/generations/p1", ({"status": "failed"},))])

    def test_response_url(self) -> None:
        self.check_stranger("response", lambda origin: body({**FAL, "response_url": origin + "/x"}, headers=SOON),
                            [Poll(FAL_STATUS, ({"status": "COMPLETED", "response_url": "http://127.0.0.1:1/"},))])

    def test_poll_url_of_another_host_is_refused_before_anything_is_bought(self) -> None:
        world = self.task_world("template", TOAPIS, config={"poll_url": "https://relay.example/tasks/{id}"})
        result = world.run("--json", "--timeout", "4")
        self.assertEqual((result.exit_code, len(world.server.requests)), (3, 0), result.stdout)
        self.assertIn("poll_url", result.json["error"]["message"])

    def test_result_of_another_host_is_fetched_without_the_key(self) -> None:
        world = self.task_world("result", APIMART)
        with ApiServer(KEY) as stranger:
            stranger.files["1.png"] = SMALL
            world.plan(Poll(TASKS_1, (apimart_done([stranger.origin + "/files/1.png"]),)))
            self.check_collected(world, world.run())
            download, = stranger.requests
            self.assertEqual(download.header("authorization"), "")


class UnfinishedTaskTest(TaskCase):
    """A task outlives the command that asked for it: the same command goes on looking, and buys nothing."""

    def busy(self, name: str, create: Any = APIMART, still: Any = APIMART_BUSY) -> TaskWorld:
        world = self.task_world(name, create)
        world.plan(Poll(TASKS_1, (still,)), Poll("/v1/operations/7", (still,)))
        return world

    def finish_task(self, world: TaskWorld) -> None:
        world.plan(Poll(TASKS_1, (apimart_done(FILE),)), Poll("/v1/operations/7", (apimart_done(FILE),)))

    def test_pending_at_the_timeout(self) -> None:
        world = self.busy("timeout")
        result = world.run("--json", "--timeout", "1")
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["kind"], error["billed"], len(world.journal())),
                         (6, "timeout", "maybe", 1))
        self.assertIn("same command again", error["hint"])
        again = world.run("--json", "--timeout", "1")
        self.assertEqual((again.exit_code, len(world.server.posts), len(world.journal())), (6, 1, 1), again.stderr)
        self.finish_task(world)
        self.check_collected(world, world.run())

    def test_the_pause_itself_is_longer_than_the_timeout(self) -> None:
        world = self.task_world("pause", body(APIMART, headers=(("Retry-After", "3600"),)))
        self.assertEqual((world.run("--timeout", "2").exit_code, len(world.journal()), len(world.asked())), (6, 1, 1))
        self.assertEqual(world.run("--timeout", "2").exit_code, 6)
        self.assertEqual(len(world.server.posts), 1)

    def test_looks_that_failed_are_collected(self) -> None:
        world = self.busy("lost")
        world.plan(Poll(TASKS_1, (Answer(status=401),)))
        self.assertEqual((world.run().exit_code, len(world.journal())), (6, 1))
        self.finish_task(world)
        self.check_collected(world, world.run())

    def test_killed_while_polling(self) -> None:
        for name, create in (("200", APIMART), ("202", located("/v1/operations/7"))):
            with self.subTest(name):
                world = self.busy("kill" + name, create)
                child = world.start("--timeout", "60")
                self.wait_until(lambda: len(world.server.gets) > 2)
                self.kill(child)
                self.finish_task(world)
                self.check_collected(world, world.run())

    def test_killed_at_once_after_the_create(self) -> None:
        world = self.task_world("kill-early", body(APIMART, headers=SOON, delay=0.5))
        self.finish_task(world)
        child = world.start()
        self.wait_until(lambda: len(world.server.posts) == 1)
        self.kill(child)
        self.check_collected(world, world.run())

    def test_terminated_while_polling(self) -> None:
        for name, create in (("200", APIMART), ("202", located("/v1/operations/7"))):
            with self.subTest(name):
                world = self.busy("term" + name, create, body(APIMART_BUSY, headers=(("Retry-After", "20"),)))
                child = world.start("--timeout", "60", "--json")
                self.wait_until(lambda: len(world.server.gets) == 1)
                time.sleep(0.5)  # by now it waits for the next look
                child.send_signal(signal.SIGTERM)
                result = self.finish(child)
                self.assertEqual((result.exit_code, len(world.journal())), (143, 1), result.stderr)
                self.assertIn(result.json["error"]["billed"], ("maybe", "yes"))
                self.finish_task(world)
                self.check_collected(world, world.run())

    def test_killed_while_fetching_the_result(self) -> None:
        world = self.busy("kill-download")
        world.server.plan_files(Answer(delay=5))
        self.finish_task(world)
        child = world.start()
        self.wait_until(lambda: any(each.path.startswith("/files/") for each in world.server.requests))
        self.kill(child)
        self.check_collected(world, world.run())


# ---- Edits: image or image[], and uploads that are too large -----------------------------------------------

def refusal(status: int, message: str, code: str | None = None) -> Answer:
    return Answer(status=status, body=error_body(message, code), check=False)


DUPLICATE = refusal(400, "Duplicate parameter: 'image'. You provided multiple values for this parameter, whereas only "
                         "one is allowed. If you are trying to provide a list of values, use the array syntax instead "
                         "e.g. 'image[]=<value>'.", "duplicate_parameter")
NOT_A_FILE = refusal(400, "Invalid type for 'image[0]': expected a file, but got a string", "invalid_type")
MISSING = Answer(status=422, check=False, body=json.dumps(
    {"detail": [{"type": "missing", "loc": ["body", "image"], "msg": "Field required", "input": None}]}).encode())
OTHERS = (
    refusal(400, "Invalid image file or mode for 'image[0]', please check your image file.", "invalid_image_file"),
    refusal(400, "Invalid size '1x1'.", "invalid_value"), refusal(400, "Invalid type for 'prompt'.", "invalid_type"),
    refusal(400, "Unknown parameter: 'quality'.", "unknown_parameter"), refusal(422, "n must be 1"),
    refusal(400, "Duplicate parameter: 'prompt'.", "duplicate_parameter"),
    refusal(422, "Your image was rejected by our safety system.", "moderation_blocked"),
    refusal(404, "image[] not found"), refusal(413, "image too large"), refusal(415, "image"),
    refusal(500, "Invalid type for 'image[0]': expected a file, but got a string"))


class ImageFieldSpellingTest(ProgramCase):
    """`image` and `image[]`: the other one is tried once, on exactly the known refusals."""

    def setUp(self) -> None:
        super().setUp()
        self.images = [self.file(f"{number}.png", draw_png(32, 32, number)) for number in range(3)]

    def ask_edit(self, images: int, *arguments: str) -> Result:
        further = [word for path in self.images[1:images] for word in ("--image", path)]
        return self.run_inside("edit", self.images[0], "a hat", *further, *self.access(), *arguments,
                               env={"GPT_IMAGE2_API_KEY": KEY})

    def spellings(self) -> list[list[str]]:
        """The names of the file parts of each paid request."""
        return [[part.name for part in post.parts if part.filename] for post in self.server.posts]

    def test_known_refusals(self) -> None:
        for name, first in (("duplicate", DUPLICATE), ("not a file", NOT_A_FILE), ("422", MISSING)):
            with self.fresh(name):
                self.server.plan(first, Answer(check=False, image=SMALL))
                saved = self.saved_file(self.ask_edit(3, "-o", "a.png", "--overwrite"))
                self.assertEqual(saved.read_bytes(), SMALL)
                self.assertEqual(self.spellings(), [["image[]"] * 3, ["image"] * 3])
                bodies = [[part.body for part in post.parts if part.filename] for post in self.server.posts]
                self.assertEqual(bodies[0], bodies[1])
                self.assertEqual(*[{**post.fields} for post in self.server.posts])

    def test_one_image(self) -> None:
        self.server.plan(MISSING, Answer(check=False))
        self.saved_file(self.ask_edit(1))
        self.assertEqual(self.spellings(), [["image"], ["image[]"]])

    def test_the_mask_keeps_its_name(self) -> None:
        mask = self.file("mask.png", mask_png(32, 32))
        self.server.plan(NOT_A_FILE, Answer(check=False))
        self.saved_file(self.ask_edit(2, "--mask", mask))
        self.assertEqual(self.spellings(), [["image[]", "image[]", "mask"], ["image", "image", "mask"]])

    def test_only_once(self) -> None:
        self.server.default = NOT_A_FILE
        result = self.ask_edit(2, "--json")
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (REFUSED, "no"))
        self.assertEqual(len(self.server.posts), 2)

    def test_other_refusals_stand(self) -> None:
        for answer in OTHERS:
            with self.fresh(f"{answer.status} {answer.body!r}"):
                self.server.plan(answer)
                result = self.ask_edit(2, "--json")
                self.assertIn(result.exit_code, (REFUSED, NO_ANSWER), result.stderr)
                self.assertEqual(self.spellings(), [["image[]", "image[]"]])

    def test_generate_has_no_spelling(self) -> None:
        for answer in (NOT_A_FILE, DUPLICATE, MISSING):
            self.server.reset()
            self.server.plan(answer)
            self.assertEqual(self.generate_inside("a fox").exit_code, REFUSED)
            self.only_post()

    @unittest.skipUnless(os.name == "posix", "needs POSIX signals and flock")
    def test_killed_in_the_second_try(self) -> None:
        self.server.plan(NOT_A_FILE, Answer(check=False, image=SMALL, delay=0.7))
        command = ("edit", self.images[0], "a hat", "--image", self.images[1], *self.access(), "-o", "a.png")
        child = self.start_program(*command, env={"GPT_IMAGE2_API_KEY": KEY})
        self.wait_until(lambda: len(self.server.posts) == 2)
        self.kill(child)
        saved = self.saved_file(self.run_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}))
        self.assertEqual((saved.read_bytes(), len(self.server.posts)), (SMALL, 2))

    def test_too_large_an_upload_says_how_large(self) -> None:
        big = self.file("big.png", draw_png(32, 32, padding=3_400_000))
        self.server.plan(Answer(status=413, body=b"<html><title>413 Request Entity Too Large</title></html>",
                                content_type="text/html"))
        result = self.run_inside("edit", big, "a hat", *self.access(), "--json", env={"GPT_IMAGE2_API_KEY": KEY})
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["kind"], error["billed"]), (REFUSED, "too_large", "no"))
        self.assertIn("3.4 MB", error["hint"])
        self.assertIn("JPEG", error["hint"])
        self.only_post()
