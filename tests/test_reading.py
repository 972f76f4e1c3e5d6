"""What a server may do to the answer that was paid for: however it is written, packed or cut, no picture is lost."""
from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import signal
import subprocess
import zlib
from os import environ
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from api_server import Answer, ApiServer, draw_jpeg, draw_png, draw_webp, error_body
from support import KEY, LIMITED, NO_ANSWER, REFUSED, SETUP, UNSAVED, ProgramCase, Result, program

PROMPT = "a red fox"
SMALL, OTHER, LARGE = draw_png(32, 32), draw_png(48, 32, 7), draw_png(32, 32, padding=300_000)
TINY = (draw_png(8, 8), draw_jpeg(8, 8), draw_webp(8, 8))
EVENTS = "text/event-stream"


def text(image: bytes) -> str:
    """Return a picture as base64."""
    return base64.b64encode(image).decode()


def data(*items: Any, **more: Any) -> bytes:
    """Return an answer's body around items of data."""
    return json.dumps({"created": 1, "data": list(items), **more}).encode()


def event(kind: str, **members: Any) -> bytes:
    """Return one server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class ReadingCase(ProgramCase):
    """Plans one answer, runs the program, compares what is on disk."""

    def setUp(self) -> None:
        super().setUp()
        self.runs = 0

    def saves(self, answer: Answer, *images: bytes, options: tuple[str, ...] = (), warned: str = "") -> Result:
        """Check that an answer becomes these pictures, with one POST, and perhaps a warning."""
        self.server.reset()
        self.server.plan(answer)
        self.runs += 1
        result = self.generate_inside(PROMPT, "--fresh", "-o", f"{self.runs}.png", *options)
        self.assert_succeeded(result)
        self.assertEqual([Path(path).read_bytes() for path, _ in result.saved], list(images))
        self.assertIn(warned, result.stderr)
        self.assertEqual(len(self.server.posts), 1)
        return result

    def fails(self, answer: Answer, exit_code: int, kind: str, *options: str) -> dict[str, Any]:
        """Check that an answer is this failure, after one POST, and return its `error`."""
        self.server.reset()
        self.server.plan(answer)
        result = self.generate_inside(PROMPT, "--json", "-o", "f.png", *options)
        error = dict(result.json["error"])
        self.assertEqual((result.exit_code, error["kind"]), (exit_code, kind), error)
        self.assertEqual(len(self.server.posts), 1)
        return error

    def cut(self, body: bytes, **more: Any) -> Answer:
        """Return an answer that ends too early for its Content-Length, or its chunks."""
        return Answer(body=body, headers=(("Content-Length", str(len(body) + 500)),), drop="end", **more)

    def kept(self) -> list[bytes]:
        """Return the answers that were put beside the target for a person, and remove them."""
        paths = sorted(self.work.glob("*.answer"))
        contents = [path.read_bytes() for path in paths]
        for path in paths:
            path.unlink()
        return contents


class RelativeAddressTest(ReadingCase):
    """The address of a picture is resolved like a link in a page."""

    def test_spellings_and_places(self) -> None:
        host = self.server.origin.partition("//")[2]
        for link in ("/files/a.png", "/files/a.png?sig=1", "../../files/a.png", f"//{host}/files/a.png",
                     "./../../files/a.png"):
            for body in (data({"url": link, "b64_json": None}), json.dumps([{"url": link}]).encode(),
                         data({"image_url": {"url": link}}), json.dumps({"images": [link]}).encode(),
                         json.dumps({"choices": [{"message": {"content": f"Here: ![a fox]({link})"}}]}).encode()):
                with self.subTest(link=link, body=body):
                    self.server.files["a.png"] = SMALL
                    self.saves(Answer(body=body), SMALL)

    def test_without_a_suffix(self) -> None:
        self.server.files["1"] = SMALL
        for body in (b'[{"url": "/files/1"}]', b'{"data": {"url": "/files/1"}}', b'{"url": "../../files/1"}'):
            self.saves(Answer(body=body), SMALL)

    def test_relative_to_the_request(self) -> None:
        self.server.plan_gets("/v1/images/out/x.png", Answer(body=SMALL, content_type="image/png", check=False))
        self.server.plan(Answer(body=data({"url": "out/x.png"})))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)

    def test_words_are_no_addresses(self) -> None:
        for body in (b'{"message": "fox.png"}', b'{"result": "no/picture"}', b'{"url": "none"}', b'{"data": "a/b"}'):
            with self.subTest(body):
                self.fails(Answer(body=body), NO_ANSWER, "no_image")

    def test_link_to_a_task_that_waits(self) -> None:
        self.server.plan_gets("/v1/images/generations/t1",
                              Answer(body=b'{"id":"t1","status":"completed","url":"/files/a.png"}'))
        self.server.files["a.png"] = SMALL
        self.server.plan(Answer(body=b'{"id":"t1","status":"queued","url":"/v1/tasks/t1"}'))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)


class CompressedAnswerTest(ReadingCase):
    """Identity is asked for; what comes packed all the same is unpacked, whatever the headers say."""

    def packed(self, content: bytes, packer: str, labelled: bool, **more: Any) -> Answer:
        """Return an answer in one of the packings."""
        label = (("Content-Encoding", packer),) if labelled else ()
        return Answer(body=PACKERS[packer](content), headers=label, **more)

    def every(self) -> list[tuple[str, bool]]:
        """Return every packing, with and without a label."""
        return [(packer, labelled) for packer in PACKERS for labelled in (False, True)]

    def test_pictures(self) -> None:
        stream = event("image_generation.completed", b64_json=text(SMALL))
        for packer, labelled in self.every():
            for image, body in ((SMALL, data({"b64_json": text(SMALL)})), (LARGE, data({"b64_json": text(LARGE)})),
                                (SMALL, stream), (SMALL, SMALL)):
                with self.subTest(f"{packer} {labelled} {body[:30]!r}"):
                    self.saves(self.packed(body, packer, labelled), image)

    def test_refusals(self) -> None:
        for packer, labelled in self.every():
            with self.subTest(f"{packer} {labelled}"):
                refusal = self.packed(error_body("Rejected by the safety system.", "moderation_blocked"), packer,
                                      labelled, status=400)
                self.assertIn("safety system", self.fails(refusal, REFUSED, "moderation")["message"])
                used_up = self.packed(error_body("You exceeded your quota.", "insufficient_quota"), packer, labelled,
                                      status=429)
                self.fails(used_up, LIMITED, "quota")

    def test_downloads_inputs_and_the_check(self) -> None:
        for packer, labelled in self.every():
            with self.fresh(f"{packer} {labelled}"):
                self.server.plan(Answer(as_url=True))
                self.server.plan_files(self.packed(SMALL, packer, labelled, content_type="image/png"))
                saved = self.saved_file(self.generate_inside(PROMPT, "-o", "d.png", "--overwrite"))
                self.assertEqual(saved.read_bytes(), SMALL)
                self.server.plan_files(self.packed(SMALL, packer, labelled, content_type="image/png"))
                self.assert_succeeded(self.edit(self.server.origin + "/files/in.png", "a hat", "-o", "e.png",
                                                "--overwrite"))
                self.assertEqual(self.server.posts[-1].parts[-1].body, SMALL)
                self.server.plan_models(self.packed(b'{"data": [{"id": "gpt-image-2"}]}', packer, labelled))
                checked = self.run_inside("config", "--check", *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
                self.assertIn("gpt-image-2 is listed", checked.stdout)

    def test_plain_text_that_is_labelled(self) -> None:
        for label in ("gzip", "deflate", "br", "x"):
            self.saves(Answer(body=data({"b64_json": text(SMALL)}), headers=(("Content-Encoding", label),)), SMALL)

    def test_several_members_and_a_lost_end(self) -> None:
        body = data({"b64_json": text(LARGE)})
        self.saves(Answer(body=gzip.compress(body[:900]) + gzip.compress(body[900:])), LARGE)
        self.saves(Answer(body=gzip.compress(body)[:-6]), LARGE)

    def test_bomb(self) -> None:
        """The time in its header is "<<<<": it is no web page for that."""
        bomb = gzip.compress(b'{"data": "' + b"A" * 30_000_000, mtime=int.from_bytes(b"<<<<", "little"))
        error = self.fails(Answer(body=bomb), NO_ANSWER, "no_image")
        self.assertIn(f"{len(bomb)} bytes that are not text", error["message"])
        self.assertEqual(self.kept(), [bomb])


class StreamSpellingTest(ReadingCase):
    """Streams as vendors, gateways and other APIs write them."""

    def stream(self, *events: bytes) -> Answer:
        """Return an answer of events."""
        return Answer(body=b"".join(events), content_type=EVENTS)

    def test_finished_under_other_names(self) -> None:
        self.server.files["a.png"] = OTHER
        link = self.server.origin + "/files/a.png"
        used = event("image_generation.completed", usage={"total_tokens": 3})
        for kind in ("image_generation.partial_succeeded", "image.done", "x"):
            self.server.files["a.png"] = OTHER
            self.saves(self.stream(event(kind, b64_json=text(SMALL)), used), SMALL)
            self.saves(self.stream(event(kind, url=link), used), OTHER)
        preview = event("image_generation.partial_image", b64_json=text(OTHER))
        self.saves(self.stream(preview, event("image_generation.partial_succeeded", b64_json=text(SMALL))), SMALL)
        self.fails(self.stream(preview), NO_ANSWER, "no_image")

    def test_responses_api(self) -> None:
        call = {"type": "image_generation_call", "id": "ig_1", "result": text(SMALL)}
        start = event("response.created", response={"output": [],
                                                    "input": [{"image_url": "data:image/png;base64," + text(OTHER)}]})
        partial = event("response.image_generation_call.partial_image", partial_image_b64=text(OTHER))
        item = event("response.output_item.done", item=call)
        for events in ((start, partial, item, event("response.completed", response={"output": []})),
                       (start, item, event("response.completed", response={"output": [{"type": "message"}, call]})),
                       (start, event("response.completed", response={"output": [call]})),
                       (item, event("response.completed", response={"usage": {"total_tokens": 2}}))):
            with self.subTest(events[-1]):
                self.saves(self.stream(*events), SMALL)

    def test_two_of_one_kind_are_two(self) -> None:
        done = event("image_generation.completed", b64_json=text(SMALL))
        self.saves(self.stream(done, done), SMALL, SMALL, options=("--n", "2"))
        items = [{"type": "image_generation_call", "result": text(image)} for image in (SMALL, OTHER)]
        told = [event("response.output_item.done", item=item) for item in items]
        self.saves(self.stream(*told, event("response.completed", response={"output": items})), SMALL, OTHER,
                   options=("--n", "2"))

    def test_odd_lines(self) -> None:
        for image in (SMALL, LARGE):
            whole = event("image_generation.completed", b64_json=text(image))
            line = json.dumps({"type": "image_generation.completed", "b64_json": text(image)}).encode()
            for name, body in {
                    "BOM": b"\xef\xbb\xbf" + whole,
                    "CRLF": whole.replace(b"\n", b"\r\n"), "blanks": b"  " + whole.replace(b"\n", b"\n\t "),
                    "comment": b": hello\n\n" + whole, "JSON lines": b'{"type": "started"}\n' + line + b"\n",
                    "one JSON line": line + b"\n{}\n",
                    "no empty line": b'data: {"type": "started"}\ndata: ' + line + b"\ndata: [DONE]\n",
                    "no end": whole.rstrip()}.items():
                with self.subTest(name):
                    self.saves(Answer(body=body), image)

    def test_chat_pieces(self) -> None:
        images = {"choices": [{"delta": {"images": [{"image_url": {"url": "data:image/png;base64," + text(SMALL)}}]}}]}
        self.saves(Answer(body=b"data: " + json.dumps(images).encode() + b"\n\n", content_type=EVENTS), SMALL)

    def test_failure_inside_a_response(self) -> None:
        failed = event("response.failed", response={"error": {"code": "server_error", "message": "no such luck"}})
        self.assertIn("no such luck", self.fails(self.stream(failed), NO_ANSWER, "no_image")["message"])


class BrokenAnswerTest(ReadingCase):
    """An answer that breaks off behind its picture is worth what was paid for it."""

    def test_json(self) -> None:
        for image in (SMALL, LARGE):
            body = data({"b64_json": text(image), "revised_prompt": "x"}, usage={"total_tokens": 1234})
            quote = body.index(b'", "revised')
            for length in (len(body), len(body) - 1, len(body) - 3, quote + 1, quote + 5, quote, quote - 1):
                with self.subTest(f"{len(image)} {body[:length][-20:]!r}"):
                    self.saves(self.cut(body[:length]), image, warned="(curl 18)")

    def test_without_a_length(self) -> None:
        body = data({"b64_json": text(SMALL)}, usage={"total_tokens": 1234})
        for cut in (5, 20):
            answer = Answer(body=body[:-cut], headers=(("Content-Length", str(len(body) - cut)),))
            self.saves(answer, SMALL, warned="warning: the reply was cut off")

    def test_stream(self) -> None:
        for image in (SMALL, LARGE):
            body = event("image_generation.completed", b64_json=text(image), usage={"total_tokens": 1234})
            quote = body.index(b'", "usage')
            for length in (len(body) - 1, len(body) - 4, quote + 1, quote):
                with self.subTest(f"{len(image)} {body[:length][-20:]!r}"):
                    self.saves(self.cut(body[:length], content_type=EVENTS), image, warned="(curl 18)")

    def test_first_of_two(self) -> None:
        body = data({"b64_json": text(SMALL)}, {"b64_json": text(LARGE)})
        result = self.saves(self.cut(body[:-9000]), SMALL, options=("--n", "2"),
                            warned="images requested: 2, received: 1")
        self.assertIn("1-1.answer", result.stderr)
        self.assertEqual(self.kept(), [body[:-9000]])

    def test_download(self) -> None:
        self.server.plan(Answer(as_url=True))
        self.server.plan_files(self.cut(SMALL, content_type="image/png"))
        result = self.generate_inside(PROMPT)
        self.assertEqual(self.saved_file(result).read_bytes(), SMALL)

    def test_half_a_picture_is_kept(self) -> None:
        for image in (SMALL, LARGE):
            for body, more in ((data({"b64_json": text(image)}), {}),
                               (event("image_generation.completed", b64_json=text(image)), {"content_type": EVENTS})):
                half = body[:len(body) * 2 // 3]
                with self.subTest(half[:20]):
                    error = self.fails(self.cut(half, **more), NO_ANSWER, "network")
                    self.assertEqual((error["billed"], self.kept()), ("maybe", [half]))
                    self.assertIn("f-1.answer", error["hint"])

    def test_preview_is_no_picture(self) -> None:
        preview = event("image_generation.partial_image", b64_json=text(SMALL), partial_image_index=0)
        error = self.fails(self.cut(preview[:-20], content_type=EVENTS), NO_ANSWER, "network")
        self.assertEqual((error["billed"], self.kept()), ("maybe", [preview[:-20]]))

    def test_no_answer_in_time(self) -> None:
        body = data({"b64_json": text(LARGE)})
        answer = Answer(body=body[:-9000], chunked=True, trickle=0.2, slice=len(body) - 20_000)
        with self.subTest("half"):
            error = self.fails(answer._replace(trickle=5), NO_ANSWER, "timeout", "--timeout", "1")
            self.assertIn("f-1.answer", error["hint"])
            self.assertEqual(self.kept(), [body[:-20_000]])

    def test_junk_behind(self) -> None:
        self.saves(Answer(body=data({"b64_json": text(SMALL)}) + b"\n<!-- served by a relay -->"), SMALL)


class BrokenShapesTest(ReadingCase):
    """Where an answer breaks off, what stands whole in it is saved, whatever is around it."""

    def ends(self, document: Any, *images: bytes) -> None:
        """Check an answer that is cut in its last text, just behind that, and just before its end."""
        body = json.dumps({**document, "z": {"y": [1, "x"]}}).encode()
        quote = body.rindex(b'"', 0, body.index(b', "z"'))
        for length in (quote, quote + 1, quote + 2, body.index(b'{"y'), len(body) - 2):
            with self.subTest(body[:length][-30:]):
                self.saves(self.cut(body[:length]), *images, options=("--n", str(len(images))), warned="(curl 18)")

    def test_texts_in_a_list(self) -> None:
        for image in (*TINY, LARGE):
            self.ends({"images": ["data:image/png;base64," + text(image)]}, image)
        self.ends({"images": [text(SMALL), text(OTHER)]}, SMALL, OTHER)

    def test_markdown(self) -> None:
        for images in ((SMALL,), (LARGE,), (SMALL, LARGE)):
            words = " and ".join(f"![a fox](data:image/png;base64,{text(image)})" for image in images)
            body = json.dumps({"choices": [{"message": {"content": f"Here: {words} Enjoy!"}}]}).encode()
            end = body.rindex(b")")
            for length in (end, end + 1, end + 5, len(body) - 6, len(body) - 2):
                with self.subTest(body[:length][-20:]):
                    self.saves(self.cut(body[:length]), *images, options=("--n", str(len(images))), warned="(curl 18)")

    def test_first_of_two_in_markdown(self) -> None:
        words = " ".join(f"![a](data:image/png;base64,{text(image)})" for image in (SMALL, LARGE))
        body = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
        self.saves(self.cut(body[:-9000]), SMALL, options=("--n", "2"), warned="images requested: 2, received: 1")
        self.assertEqual(self.kept(), [body[:-9000]])

    def test_unknown_names(self) -> None:
        for image in (*TINY, LARGE):
            self.ends({"candidates": [{"parts": [{"inline": {"b64": text(image)}}]}]}, image)

    def test_what_was_asked_is_no_result(self) -> None:
        """The echo of an edit's input is whole, the result is not."""
        for echo in ({"input": [{"image_url": "data:image/png;base64," + text(OTHER)}]},
                     {"request": {"b64": text(OTHER)}}):
            body = json.dumps({**echo, "data": [{"b64_json": text(LARGE)}]}).encode()
            for answer in (self.cut(body[:-9000]), self.cut((b"data: " + body)[:-9006], content_type=EVENTS)):
                with self.subTest(body[:12]):
                    self.fails(answer, NO_ANSWER, "network")
                    self.assertEqual(self.kept(), [answer.body])

    def test_no_proper_json(self) -> None:
        for words in (b'a "red" fox', b"a red\nfox", b"a red \\fox", b"\xff\xfe"):
            body = data({"b64_json": text(SMALL)}, revised_prompt="@").replace(b"@", words)
            self.saves(Answer(body=body), SMALL)

    def test_summary_that_breaks_off(self) -> None:
        items = [{"type": "image_generation_call", "result": text(image)} for image in (SMALL, OTHER)]
        told = b"".join(event("response.output_item.done", item=item) for item in items)
        summary = event("response.completed", response={"output": items})
        for left in (0, 60, summary.index(b'"}, {') + 1, summary.index(b'"}]') + 1, len(summary) - 4):
            with self.subTest(left):
                self.saves(self.cut(told + summary[:left], content_type=EVENTS), SMALL, OTHER, options=("--n", "2"))

    def test_second_of_two_is_kept(self) -> None:
        """Where nothing but the answer itself says that it is not all there."""
        told = [event("image_generation.completed", b64_json=text(image)) for image in (SMALL, LARGE)]
        lines = [json.dumps({"b64_json": text(image)}).encode() for image in (SMALL, LARGE)]
        for body in (b"".join(told)[:-9000], b"\n".join(lines)[:-9000], b"".join(lines)):
            with self.subTest(body[:20]):
                self.saves(Answer(body=body), SMALL, options=("--n", "2"), warned="images requested: 2, received: 1")
                self.assertEqual(self.kept(), [body])


class NothingIsDroppedTest(ReadingCase):
    """What cannot be read is shown whole, or kept."""

    def test_short_answers_are_shown(self) -> None:
        for body in (b'event: done\ndata: {"type": "image.done", "picture": "id-77"}\n\n', b'{"picture": "id-77"}',
                     b'{"picture": "id-77"}\n{"type": "end"}\n', b"see id-77"):
            with self.subTest(body):
                self.assertIn("id-77", self.fails(Answer(body=body), NO_ANSWER, "no_image")["message"])

    def test_others_are_kept(self) -> None:
        bodies = (event("image.done", picture="id-77", note="x" * 500), json.dumps({"picture": "x" * 900}).encode(),
                  data({"b64_json": "@@@"}), data({"b64_json": text(b"no picture at all")}),
                  event("image_generation.completed", b64_json="QUJD"))
        for body in bodies:
            with self.subTest(body):
                self.fails(Answer(body=body), NO_ANSWER, "broken_image" if b"b64_json" in body else "no_image")
                self.assertEqual(self.kept(), [body])

    def test_no_base64_and_no_noise_in_a_message(self) -> None:
        odd = json.dumps({"note": "A" * 70_000, "hint": "B" * 2000, "error": None}).encode()
        message = self.fails(Answer(body=odd), NO_ANSWER, "no_image")["message"]
        self.assertIn("(a long text)", message)
        self.assertNotRegex(message, "requests|AAAA|BBBB")
        noise = self.fails(Answer(body=bytes(range(128, 255)) * 8), NO_ANSWER, "no_image")["message"]
        self.assertIn("1016 bytes that are not text", noise)

    def test_curl_killed_in_the_middle(self) -> None:
        body = data({"b64_json": text(LARGE)})
        self.server.plan(Answer(body=body, chunked=True, trickle=9, slice=len(body) // 2))
        child = self.start_generate(PROMPT, "--json", "-o", "f.png")
        self.wait_until(lambda: any(path.stat().st_size for path in self.home.rglob("1.answer")))
        (lock,) = self.home.rglob("1.lock")
        os.kill(int(lock.read_text()), signal.SIGKILL)
        error = self.finish(child).json["error"]
        self.assertEqual((error["kind"], error["billed"]), ("network", "maybe"))
        self.assertIn("f-1.answer", error["hint"])
        self.assertEqual([bool(kept) and body.startswith(kept) for kept in self.kept()], [True])


class KeyAtItsOwnOriginTest(ReadingCase):
    """A picture that lies on the endpoint itself may want the key; nobody else ever gets it."""

    def test_asked_once_more_with_the_key(self) -> None:
        for status in (401, 403):
            with self.fresh(status):
                self.server.plan(Answer(as_url=True))
                self.server.plan_files(Answer(status=status, image=b""))
                self.assert_succeeded(self.generate_inside(PROMPT, "-o", f"{status}.png"))
                gets = [each for each in self.server.requests if each.path.startswith("/files/")]
                self.assertEqual([each.header("authorization") for each in gets], ["", f"Bearer {KEY}"])

    def test_other_origins_never(self) -> None:
        with ApiServer() as stranger:
            stranger.files["a.png"] = SMALL
            for link in (f"{stranger.origin}/files/a.png",
                         f"{self.server.origin.replace('127.0.0.1', 'localhost')}/files/a.png"):
                self.server.reset()
                self.server.files["a.png"] = SMALL
                stranger.plan_files(Answer(status=401), Answer(status=401))
                self.server.plan_files(Answer(status=401), Answer(status=401))
                self.server.plan(Answer(body=data({"url": link})))
                result = self.generate_inside(PROMPT, "--fresh", "--json")
                self.assertEqual((result.exit_code, result.json["error"]["http_status"]), (UNSAVED, 401))
                gets = [each for each in self.server.requests + stranger.requests if each.method == "GET"]
                self.assertEqual({each.header("authorization") for each in gets}, {""})

    def test_no_redirect_with_the_key(self) -> None:
        with ApiServer() as stranger:
            stranger.files["a.png"] = SMALL
            away = (("Location", f"{stranger.origin}/files/a.png"),)
            self.server.plan(Answer(as_url=True))
            self.server.plan_files(Answer(status=401), *[Answer(status=302, headers=away)] * 3)
            self.assertEqual(self.generate_inside(PROMPT).exit_code, UNSAVED)
            self.assertEqual(stranger.requests, [])


class UnknownNamesTest(ReadingCase):
    """The last resort: whatever begins like a picture is one, unless it is only what was asked."""

    def test_found(self) -> None:
        self.server.files["a.png"] = SMALL
        link = f"{self.server.origin}/files/a.png"
        for image in (SMALL, LARGE):
            b64, inline = text(image), "data:image/png;base64," + text(image)
            for document in ({"image": b64}, {"b64": b64}, {"image_base64": [b64]}, {"data": [{"picture": inline}]},
                             {"candidates": [{"content": {"parts": [{"inlineData": {"data": b64}}]}}]},
                             {"predictions": [{"bytesBase64Encoded": b64}]}, {"a": {"b": [{"imageUrl": inline}]}},
                             {"content": [{"type": "image", "source": {"data": b64}}]}):
                with self.subTest(str(document)[:60]):
                    body = json.dumps(document).replace("/", "\\/").encode()
                    self.saves(Answer(body=body), image, warned="under an unknown name")
        for document in ({"imageUrl": link}, {"download": {"href": link + "?x=1"}}):
            self.server.files["a.png"] = SMALL
            self.saves(Answer(body=json.dumps(document).encode()), SMALL)

    def test_not_taken(self) -> None:
        b64 = text(SMALL)
        for document in ({"input_image": b64}, {"mask": b64}, {"thumbnail": b64}, {"request": {"x": b64}},
                         {"docs": self.server.origin + "/help"}, {"home": self.server.origin + "/a.pngx/y"}):
            with self.subTest(str(document)[:60]):
                self.fails(Answer(body=json.dumps(document).encode()), NO_ANSWER, "no_image")
                self.kept()

    def test_known_names_first(self) -> None:
        self.saves(Answer(body=json.dumps({"cover": text(OTHER), "data": [{"b64_json": text(SMALL)}]}).encode()), SMALL)

    def test_a_task_that_waits_shows_no_result(self) -> None:
        done = data({"b64_json": text(SMALL)}, status="completed", id="t1")
        self.server.plan_gets("/v1/images/generations/t1", Answer(body=done))
        self.server.plan(Answer(body=json.dumps({"id": "t1", "status": "queued", "cover": text(OTHER)}).encode()))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)


class PicturesInWordsTest(ReadingCase):
    """Pictures that chats show in their texts, as people and models write them."""

    def shown(self, words: str) -> tuple[Any, ...]:
        """Return the answers that hold these words: of a chat, with parts, of the Responses API, under an odd name."""
        return ({"choices": [{"message": {"content": words}}]},
                {"choices": [{"message": {"content": [{"type": "text", "text": words}]}}]},
                {"output": [{"type": "message", "content": [{"type": "output_text", "text": words}]}]}, {"said": words})

    def test_links(self) -> None:
        for name, words in (
                ("a_(1).png", "![a fox]({})"), ("a.png", '![a fox]({} "A title (x)")'), ("a b.png", "![a fox](<{}>)"),
                ("a.png", "![a [red] fox]({})"), ("a.png", "![" + "a red fox " * 90 + "]({})"),
                ("a.png", "![a][1]\n\n[1]: {}"), ("a.png", '<img src="{}">'), ("a.png", "[Download]({}). Enjoy!"),
                ("a.png", "Here: {}?x=1, and so on"),
                ("a.png", "[![fox]({})](https://example.test/full)"),
                ("id", "See [this](https://a.test/b) ![fox]({})")):
            for document in self.shown(words.replace("{}", f"{self.server.origin}/files/{name}")):
                with self.subTest(words, document=document):
                    self.server.files[name.replace(" ", "%20")] = SMALL
                    self.saves(Answer(body=json.dumps(document).encode()), SMALL)

    def test_inline(self) -> None:
        for image in (SMALL, LARGE):
            for words in ('![a]({} "a title")', "![a](<{}>)", '<img src="{}">', "Well, " * 1000 + "![a]({})"):
                if image is SMALL and "<img" in words:
                    continue
                link = "data:image/png;base64," + text(image)
                for document in self.shown(words.replace("{}", link)):
                    with self.subTest(words[:40], document=str(document)[:60]):
                        self.saves(Answer(body=json.dumps(document).encode()), image)

    def test_data_urls(self) -> None:
        for image in (SMALL, LARGE):
            for head in ("DATA:image/png;base64,", "data:application/octet-stream;base64,", "data:;base64,",
                         "data:image/png;charset=utf-8;base64,"):
                with self.subTest(head):
                    self.saves(Answer(body=data({"url": head + text(image)})), image)

    def test_query_alone(self) -> None:
        self.server.plan_gets("/v1/images/generations?id=7", Answer(body=SMALL, content_type="image/png", check=False))
        self.server.plan(Answer(body=data({"url": "?id=7"})))
        self.assertEqual(self.saved_file(self.generate_inside("a red fox")).read_bytes(), SMALL)

    def test_hostile_words(self) -> None:
        for words in ("](data:image/" * 5000, "](<" * 20_000, "](a(" * 15_000, "https://a/" * 6000, ".png" * 15_000,
                      "![a](" + "b" * 60_000):
            with self.subTest(words[:20]):
                self.fails(Answer(body=json.dumps({"choices": [{"message": {"content": words}}]}).encode()), NO_ANSWER,
                           "no_image")
                self.kept()


class JsonResultIsCleanTest(ReadingCase):
    """--json prints one object that every reader takes, and no byte that was not looked at."""

    def usage(self, value: str) -> Any:
        """Return what --json says of a `usage`."""
        self.server.reset()
        self.forget()
        body = b'{"data": [{"b64_json": "%s"}], "usage": %s}' % (text(SMALL).encode(), value.encode())
        self.server.plan(Answer(body=body))
        result = self.generate_inside(PROMPT, "--json", "-o", "u.png", "--overwrite")
        self.assertEqual(result.exit_code, 0, result.stderr)
        self.assertNotIn(KEY, result.stdout + result.stderr)
        json.loads(result.stdout, parse_constant=lambda name: self.fail(name))
        return result.json["usage"]

    def test_long_and_forged_texts(self) -> None:
        echo = f"Bearer {KEY} "
        self.assertEqual(self.usage(json.dumps({"x": echo * 9000})), {"x": "(a long text)"})
        self.assertEqual(self.usage(json.dumps({"x": [{"y": echo * 9000}]})), {"x": [{"y": "(a long text)"}]})
        self.assertEqual(self.usage(json.dumps({"x": {"@span": [0, 900]}, "y": echo})),
                         {"x": {"@span": [0, 900]}, "y": "Bearer ***"})
        self.assertEqual(len(self.usage(json.dumps({str(number): 1 for number in range(999)}))), program.MAX_MEMBERS)

    def test_numbers_that_json_has_not(self) -> None:
        self.assertEqual(self.usage('{"cost": NaN, "x": 1e999, "y": -Infinity}'), {"cost": None, "x": None, "y": None})
        inner = json.dumps({"usage": {"a": 1}})[:-2] + ', "cost": NaN, "x": 1e400}}'
        self.server.plan(Answer(body=json.dumps({"data": [{"b64_json": text(SMALL)}],
                                                 "response": {"body": inner}}).encode()))
        result = self.generate_inside(PROMPT, "--json", "-o", "v.png")
        json.loads(result.stdout, parse_constant=lambda name: self.fail(name))

    def test_depth(self) -> None:
        for depth in (60, 200, 900):
            with self.subTest(depth):
                self.usage('{"x": ' + "[" * depth + "]" * depth + "}")
        self.fails(Answer(body=b"[" * 100_000 + b"]" * 100_000), NO_ANSWER, "no_image")

    def test_half_characters_in_an_inner_answer(self) -> None:
        self.server.files["a.png"] = SMALL
        inner = json.dumps({"resultUrls": [self.server.origin + "/files/a.png?\ud800"]})
        self.server.plan(Answer(body=json.dumps({"data": {"resultJson": inner}}).encode()))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)


class AnswerLimitsTest(ReadingCase):
    """No answer is endless: bytes, pictures and lines are bounded."""

    def test_pictures(self) -> None:
        images = [draw_png(16 + number, 16) for number in range(9)]
        body = data(*({"b64_json": text(image)} for image in images))
        self.saves(Answer(body=body), *images[:4], warned="images requested: 1, received: 9")
        self.assertEqual(self.kept(), [body])
        for number, image in enumerate(images):
            self.server.files[f"{number}.png"] = image
        body = data(*({"url": f"{self.server.origin}/files/{number}.png"} for number in range(9)))
        self.saves(Answer(body=body), *images[:4], warned="images requested: 1, received: 9")
        self.assertEqual(sum(each.method == "GET" for each in self.server.requests), 4)

    def test_pictures_are_told_when_their_answer_cannot_be_kept(self) -> None:
        images = [draw_png(16 + number, 16) for number in range(9)]
        body = data(*({"b64_json": text(image)} for image in images))
        with mock.patch.object(program, "save_answer", side_effect=OSError(28, "No space left on device")):
            self.saves(Answer(body=body), *images[:4], warned="could not be saved")

    def test_disk_full_in_the_free_check(self) -> None:
        with mock.patch.object(program, "unpack_file", side_effect=OSError(28, "No space left on device")):
            result = self.run_inside("config", "--check", "--json", *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["billed"]), (SETUP, "no"), error)

    def test_bytes(self) -> None:
        with mock.patch.object(program, "MAX_ANSWER_BYTES", 2_000_000):
            for answer in (Answer(endless=True), Answer(body=b"x" * 3_000_000)):
                error = self.fails(answer, NO_ANSWER, "network")
                self.assertIn("larger than allowed (curl 63)", error["message"])
                self.assertEqual((error["billed"], self.kept()), ("maybe", []))

    def test_hostile_markdown(self) -> None:
        for words in ("![" * 30_000, "![](" * 15_000, "![](http:" * 7000):
            body = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
            self.fails(Answer(body=body), NO_ANSWER, "no_image")
            self.kept()


class FullDiskTest(ReadingCase):
    """A disk that is full while the answer arrives: said in words, kept, never bought again by itself."""

    def run_twice(self, **variables: str) -> None:
        """Run the same command twice where the answer finds no room; then buy anew."""
        body = data({"b64_json": text(draw_png(32, 32, padding=3_000_000))})
        self.server.default = Answer(body=body)
        for _ in range(2):
            result = self.generate(PROMPT, "--json", "-o", "f.png", env=variables)
            error = result.json["error"]
            self.assertEqual((result.exit_code, error["kind"], error["billed"]), (UNSAVED, "disk", "maybe"), error)
            self.assertIn("disk", error["message"] + error["hint"])
            self.assertEqual(len(self.server.posts), 1)
        self.server.default = Answer()
        self.assert_succeeded(self.generate(PROMPT, "--fresh", "-o", "g.png"))
        self.assertEqual(len(self.server.posts), 2)

    def test_no_room_for_the_answer(self) -> None:
        self.shell_script("curl", f"trap '' XFSZ\nulimit -f 1000\nexec {shutil.which('curl')} \"$@\"\n")
        self.run_twice(PATH=f"{self.root / 'bin'}{os.pathsep}{environ['PATH']}")

    def test_no_room_for_a_word_of_curl(self) -> None:
        """On a real small disk, which something else fills before the answer comes."""
        disk = self.root / "disk"
        disk.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], stderr=subprocess.DEVNULL)
        if made.returncode:
            self.skipTest("only root can mount a small disk")
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        body = data({"b64_json": text(draw_png(32, 32, padding=3_000_000))})
        self.server.plan(Answer(body=body, delay=1.0))
        child = self.start_generate(PROMPT, "--json", "-o", "f.png", env={"XDG_STATE_HOME": str(disk)})
        self.wait_until(lambda: bool(self.server.posts))
        filler = os.open(str(disk / "filler"), os.O_WRONLY | os.O_CREAT)
        self.addCleanup(os.close, filler)
        with self.assertRaises(OSError):
            while True:
                os.write(filler, b"x" * 4096)
        result = self.finish(child)
        self.assertEqual((result.exit_code, result.json["error"]["kind"]), (UNSAVED, "disk"), result.stderr)
        again = self.generate(PROMPT, "--json", "-o", "f.png", env={"XDG_STATE_HOME": str(disk)})
        self.assertEqual((again.exit_code, len(self.server.posts)), (UNSAVED, 1), again.stderr)
