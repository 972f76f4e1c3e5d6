"""Server-sent events: read while they arrive, however they are cut, and what a broken stream costs."""
from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, NamedTuple

from api_server import Answer, draw_png, error_body
from support import KEY, LIMITED, NO_ANSWER, PROGRAM, REFUSED, ProgramCase, Result, program

PROMPT = "a red fox"
SMALL, OTHER, LARGE = draw_png(32, 32), draw_png(32, 32, 7), draw_png(32, 32, 1, padding=300_000)
PARTIALS = [draw_png(16, 16, number) for number in range(3)]
EVENTS = "text/event-stream"
MEASURE = ("import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)")


def frame(data: Any, name: str = "", end: str = "\n") -> str:
    """One event as text."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}{end}" if name else "") + f"data: {text}{end}{end}"


def completed(image: bytes = SMALL, kind: str = "image_generation", **more: Any) -> dict[str, Any]:
    return {"type": f"{kind}.completed", "b64_json": base64.b64encode(image).decode(), "created_at": 1,
            "usage": {"input_tokens": 200, "output_tokens": 100, "input_tokens_details": {
                "text_tokens": 200, "image_tokens": 0}}, **more}


def partial(number: int, kind: str = "image_generation") -> dict[str, Any]:
    return {"type": f"{kind}.partial_image", "partial_image_index": number,
            "b64_json": base64.b64encode(PARTIALS[number]).decode()}


def failed(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "sequence_number": 1, "error": {
        "type": "image_generation_server_error", "code": code, "message": message, "param": None, **more}}


def whole(end: str = "\n") -> str:
    """Two partial images and a finished one, with names."""
    return "".join(frame(data, data["type"], end) for data in (partial(0), partial(1), completed()))


def stream(text: str, **more: Any) -> Answer:
    return Answer(body=text.encode(), content_type=EVENTS, **more)


class StreamCase(ProgramCase):
    """Runs with --stream, and looks at the files beside the target."""

    def beside(self) -> list[str]:
        return sorted(path.name for path in self.work.iterdir())

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start_generate(PROMPT, "-o", "a.png", "--stream", *arguments)


class StreamFormsTest(StreamCase):
    """One finished picture in every form that a stream may have."""

    def test_forms(self) -> None:
        done = completed()
        plain = frame(done, done["type"])
        url = f"{self.server.origin}/files/1.png"
        by_url = {"type": "image_generation.completed", "url": url}
        self.server.files["1.png"] = SMALL
        pretty = "".join(f"data: {line}\n" for line in json.dumps(done, indent=1).split("\n")) + "\n"
        forms = {
            "LF": whole(), "CRLF": whole("\r\n"), "no blank line at the end": whole()[:-1],
            "no line break at the end": whole()[:-2], "CRLF, no line break at the end": whole("\r\n")[:-4],
            "no name": frame(done), "only a name": frame({"b64_json": done["b64_json"]}, "image_generation.completed"),
            "no blank after the colon": plain.replace(": ", ":", 2), "byte order mark": "\ufeff" + plain,
            "blank lines first": "\n\n" + plain, "keepalives": ": keepalive\n\n" * 3 + plain + ": keepalive\n\n",
            "keepalive inside an event": plain.replace("\ndata", "\n: keepalive\ndata"), "bare colon": ":\n\n" + plain,
            "id and retry": "retry: 3000\nid: 7\n" + plain, "[DONE]": plain + "data: [DONE]\n\n",
            "[DONE] without an end": plain + "data: [DONE]", "several data lines": pretty,
            "several data lines, CRLF": pretty.replace("\n", "\r\n"), "unknown events": frame(
                {"type": "response.created", "id": "x"}) + plain + frame({"type": "ping"}, "ping"),
            "data that is no JSON": "data: hello\n\n" + plain, "url": frame(by_url), "url as list": frame(
                {**by_url, "url": [url]}), "data: in url": frame({
                    **by_url, "url": "data:image/png;base64," + done["b64_json"]}),
            "empty b64_json, url": frame({**by_url, "b64_json": ""}), "plain JSON": json.dumps(
                {"data": [{"b64_json": done["b64_json"]}]}), "the last event is cut": plain + plain[:100]}
        for name, text in forms.items():
            for kind in (EVENTS, "application/json"):
                with self.fresh(name, content_type=kind):
                    self.server.plan(stream(text)._replace(content_type=kind))
                    saved = self.saved_file(self.generate_inside(PROMPT, "--stream", "-o", "a.png", "--overwrite"))
                    self.assertEqual((saved.read_bytes(), self.beside()), (SMALL, ["a.png"]))
                    self.only_post()

    def test_stream_that_nobody_asked_for(self) -> None:
        self.server.plan(stream(whole()))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)
        self.assertNotIn("stream", self.only_post().fields)

    def test_cut_at_any_byte(self) -> None:
        for step, text in ((1, whole()), (7, whole("\r\n")), (61, whole())):
            with self.fresh(step):
                self.server.plan(stream(text, slice=step, trickle=0.0001))
                result = self.generate(PROMPT, "--stream", "--partial-images", "2", "--keep-partials", "-o", "a.png",
                                       "--overwrite")
                self.assertEqual(self.saved_file(result).read_bytes(), SMALL)
                self.assertEqual(self.beside(), ["a.partial-0.png", "a.partial-1.png", "a.png"])
                self.assertEqual((self.work / "a.partial-1.png").read_bytes(), PARTIALS[1])

    def test_growing_file_gives_the_same_events_wherever_it_is_cut(self) -> None:
        path = self.work / "answer"
        for end in ("\n", "\r\n"):
            text = (": keepalive" + end * 2 + whole(end) + "data: [DONE]" + end * 2).encode()
            path.write_bytes(text)
            with path.open("rb") as file:
                expected = [(event.type, event.data) for event in program.read_events(file)]
            self.assertEqual(len(expected), 4)
            for cut in range(0, len(text) + 1, 3):
                path.write_bytes(text[:cut])
                with path.open("rb") as file:
                    first = list(program.read_events(file, 0, growing=True))
                path.write_bytes(text)
                with path.open("rb") as file:
                    rest = list(program.read_events(file, first[-1].end if first else 0, growing=True))
                self.assertEqual([(event.type, event.data) for event in first + rest], expected, cut)

    def test_several_finished(self) -> None:
        images = [SMALL, OTHER, LARGE]
        self.server.plan(stream("".join(frame(completed(image)) for image in images)))
        result = self.generate_inside(PROMPT, "--stream", "--n", "3", "-o", "a.png")
        self.assert_succeeded(result)
        self.assertEqual([Path(path).read_bytes() for path, _ in result.saved], images)

    def test_fewer_finished_than_asked(self) -> None:
        for name, text in (("ended", frame(completed())), ("error", frame(completed()) + frame(failed(
                "image_generation_failed", "no")))):
            with self.fresh(name):
                self.server.plan(stream(text))
                result = self.generate_inside(PROMPT, "--stream", "--n", "2", "--json", "-o", "a.png", "--overwrite")
                self.assertEqual((result.exit_code, len(result.json["saved"])), (0, 1), result.stderr)
                self.assertTrue(any("only 1 of" in text for text in result.json["warnings"]), result.json)

    def test_usage_is_told(self) -> None:
        self.server.plan(stream(whole()))
        document = self.generate_inside(PROMPT, "--stream", "--json").json
        self.assertEqual((document["usage"]["output_tokens"], document["cost_usd"]), (100, 0.004))


class PartialImagesTest(StreamCase):
    """Pictures in the making: asked for, saved beside the target, removed or kept."""

    def test_generate_and_edit(self) -> None:
        image = self.file("in/in.png", SMALL)
        for command in (("generate", PROMPT), ("edit", image, "a hat")):
            for count in range(4):
                with self.fresh(command[0], count=count):
                    self.server.plan(Answer(trickle=0.02, image=LARGE))
                    result = self.run_program(*command, *self.access(), "--stream", "--partial-images", str(count),
                                              "--keep-partials", "-o", "out/a.png", env={"GPT_IMAGE2_API_KEY": KEY})
                    self.assert_succeeded(result)
                    names = sorted(path.name for path in (self.work / "out").iterdir())
                    self.assertEqual(names, [f"a.partial-{each}.png" for each in range(count)] + ["a.png"])
                    self.assertEqual({path.read_bytes() for path in (self.work / "out").iterdir()}, {LARGE})
                    fields = self.only_post().fields
                    self.assertIn(fields["stream"], (True, "true"))
                    self.assertIn(fields.get("partial_images"), (count, str(count)))
                    for path in (self.work / "out").iterdir():
                        path.unlink()

    def test_not_asked_for(self) -> None:
        self.server.plan(stream(whole()))
        self.saved_file(self.generate_inside(PROMPT, "--stream", "--keep-partials", "-o", "a.png"))
        self.assertEqual((self.beside(), "partial_images" in self.only_post().fields), (["a.png"], False))

    def test_kept_although_everything_came_at_once(self) -> None:
        for _ in range(5):  # whether the program looked in between is a matter of luck
            self.server.plan(stream(whole()))
            self.saved_file(self.generate(PROMPT, "--stream", "--partial-images", "2", "--keep-partials", "-o",
                                          "a.png"))
            self.assertEqual(self.beside(), ["a.partial-0.png", "a.partial-1.png", "a.png"])
            for path in self.work.iterdir():
                path.unlink()

    def test_there_while_it_is_drawn_and_gone_afterwards(self) -> None:
        self.server.plan(stream(whole(), trickle=0.1))
        child = self.start("--partial-images", "2")
        path = self.work / "a.partial-0.png"
        self.wait_until(path.exists)
        self.assertEqual(path.read_bytes(), PARTIALS[0])
        self.assertFalse((self.work / "a.png").exists())
        result = self.finish(child)
        self.assertEqual((self.saved_file(result).read_bytes(), self.beside()), (SMALL, ["a.png"]))
        self.assertEqual(result.stderr.count("a.partial-"), 2, result.stderr)  # each is told once

    def test_format_is_told_by_the_bytes(self) -> None:
        self.server.plan(Answer(trickle=0.02, format="jpeg"))
        self.generate(PROMPT, "--stream", "--partial-images", "1", "--keep-partials", "-o", "a.png")
        self.assertEqual(self.beside(), ["a.jpg", "a.partial-0.jpg"])

    def test_newer_one_replaces_the_one_before(self) -> None:
        text = frame(partial(0)) + frame({**partial(1), "partial_image_index": 0}) + frame(completed())
        self.server.plan(stream(text, trickle=0.02))
        self.saved_file(self.generate(PROMPT, "--stream", "--partial-images", "1", "--keep-partials", "-o", "a.png"))
        self.assertEqual((self.work / "a.partial-0.png").read_bytes(), PARTIALS[1])

    def test_odd_partials_are_only_a_warning(self) -> None:
        odd = [{**partial(0), "b64_json": "!!!!"}, {**partial(0), "b64_json": "aGVsbG8="},
               {**partial(0), "b64_json": ""}, {**partial(0), "b64_json": None},
               {**partial(0), "partial_image_index": "../../evil"}, {**partial(0), "partial_image_index": {"x": [1]}},
               {**partial(0), "partial_image_index": "x" * 400},
               {**partial(0), "partial_image_index": "\ud800\0"}, {**partial(0), "b64_json": None, "url": "http://x/1"}]
        text = "".join(map(frame, odd)) + frame(completed())
        self.server.plan(stream(text, trickle=0.02))
        result = self.generate(PROMPT, "--stream", "--partial-images", "3", "-o", "a.png")
        self.assertEqual((result.exit_code, self.beside()), (0, ["a.png"]), result.stderr)
        self.assertEqual((list(self.root.rglob("*evil*")), "Traceback" in result.stderr), ([], False))

    def test_a_failed_stream_tells_what_is_left(self) -> None:
        self.server.plan(stream(frame(partial(0)) + frame(failed("image_generation_failed", "no")), trickle=0.02))
        result = self.generate(PROMPT, "--stream", "--partial-images", "1", "--json", "-o", "a.png")
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (NO_ANSWER, "maybe"))
        self.assertNotIn("a.png", self.beside())


@unittest.skipUnless(os.name == "posix", "needs POSIX signals and flock")
class KilledStreamTest(StreamCase):
    """Killed in the middle of a stream: the same command collects it and leaves no partial picture behind."""

    def kill_with_a_partial(self, answer: Answer) -> None:
        """Run until the first partial picture is there, then kill the program."""
        self.server.plan(answer)
        child = self.start("--partial-images", "2")
        self.wait_until((self.work / "a.partial-0.png").exists)
        child.kill()
        self.assertEqual((child.wait(), child.communicate()[0]), (-signal.SIGKILL, b""))
        self.assertNotIn("a.png", self.beside())

    def collect(self) -> None:
        result = self.finish(self.start("--partial-images", "2"))
        self.assertEqual(self.saved_file(result).read_bytes(), SMALL)
        self.assertEqual((self.beside(), self.journal(), len(self.server.posts)), (["a.png"], [], 1))

    def test_while_the_stream_goes_on(self) -> None:
        self.kill_with_a_partial(stream(whole(), trickle=0.12))
        self.collect()

    @unittest.skipUnless(os.name == "posix", "needs POSIX signals")
    def test_curl_is_killed_after_the_finished_image(self) -> None:
        self.server.plan(stream(frame(completed()) + ": keepalive\n\n" * 100, trickle=0.3))
        child = self.start()
        self.wait_until(lambda: any(b"keepalive" in path.read_bytes()
                                    for path in self.world.requests.rglob("1.answer")))
        os.kill(int(next(self.world.requests.rglob("1.lock")).read_text()), signal.SIGKILL)
        result = self.finish(child)
        self.assertEqual(self.saved_file(result).read_bytes(), SMALL)
        self.assertIn("after what is saved", result.stderr)

    def test_after_the_stream_has_ended(self) -> None:
        self.kill_with_a_partial(stream(whole(), trickle=0.08))
        self.wait_until(lambda: any(path.stat().st_size for path in self.world.requests.rglob("1.outcome")))
        self.collect()


class Broken(NamedTuple):
    """A stream without a picture, and what follows."""
    name: str
    text: str
    exit_code: int = NO_ANSWER
    billed: str = "maybe"
    kind: str = "no_image"
    code: str | None = None
    message: str = ""


BROKEN = (  # name, stream, exit code, billed, kind, code, words of the message
    Broken("moderation", frame(failed("moderation_blocked", "rejected by the safety system"), "error"), REFUSED, "no",
           "moderation", "moderation_blocked", "safety system"),
    Broken("moderation of the drawn picture", frame(partial(0)) + frame(failed(
        "moderation_blocked", "rejected", moderation_details={"moderation_stage": "output"}), "error"), REFUSED,
        "maybe", "moderation", "moderation_blocked"),
    Broken("failed", frame(failed("image_generation_failed", "try later"), "error"),
           code="image_generation_failed", message="try later"),
    Broken("failed after a partial", frame(partial(0)) + frame(failed("image_generation_failed", "try later")),
           code="image_generation_failed", message="try later"),
    Broken("an error without a type", frame({"error": {"message": "upstream broke"}}), message="upstream broke"),
    Broken("an error as text", frame({"error": "upstream broke"}), message="upstream broke"),
    Broken("an error by name", frame({"message": "upstream broke", "code": "x"}, "error"), code="x",
           message="upstream broke"),
    Broken("quota", frame(failed("insufficient_quota", "no credits")), LIMITED, "no", "quota", "insufficient_quota"),
    Broken("only partials", frame(partial(0)) + frame(partial(1)), message="without a finished image"),
    Broken("nothing but life", ": keepalive\n\n" * 5, message="without a finished image"),
    Broken("only [DONE]", "data: [DONE]\n\n", message="without a finished image"),
    Broken("cut in the finished image", frame(partial(0)) + frame(completed())[:-200]),
    Broken("cut in a long finished image", frame(completed(LARGE))[:-100_000]),
    Broken("empty b64_json", frame({**completed(), "b64_json": ""})),
    Broken("null b64_json", frame({**completed(), "b64_json": None})),
    Broken("empty stream", ""),
)


class BrokenStreamTest(StreamCase):
    """HTTP 200 and a stream, but no picture: exit code, kind and whether money may be gone."""

    def test_exit_code_kind_and_billed_of_every_broken_stream(self) -> None:
        for broken in BROKEN:
            with self.fresh(broken.name):
                self.server.plan(stream(broken.text))
                result = self.generate_inside(PROMPT, "--stream", "--json", "-o", "a.png")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["billed"], error["kind"], error["code"]),
                                 (broken.exit_code, broken.billed, broken.kind, broken.code), error)
                self.assertIn(broken.message, error["message"])
                kept = [name for name in self.beside() if name.endswith(".answer")]
                self.assertEqual((self.beside(), self.journal()), (kept, []))
                for name in kept:  # what was paid for and cannot be read is not thrown away either
                    self.assertIn(name, error["hint"])
                    (self.work / name).unlink()
                self.only_post()

    def test_connection_that_breaks(self) -> None:
        for name, answer in (("half", stream(whole(), drop="half")), ("headers", stream("", drop="headers"))):
            with self.fresh(name):
                self.server.plan(answer)
                result = self.generate_inside(PROMPT, "--stream", "--json", "-o", "a.png")
                self.assertEqual((result.exit_code, result.json["error"]["billed"]), (NO_ANSWER, "maybe"))
                self.only_post()

    def test_a_finished_picture_survives_what_comes_after_it(self) -> None:
        # Half of this body is the whole picture: then the connection breaks, or the server never stops talking.
        done = frame(completed()).encode()
        for name, answer in (("broken", Answer(body=done + b":" * len(done), content_type=EVENTS, drop="half")),
                             ("never ends", Answer(body=done + b": keepalive\n\n" * 3000, content_type=EVENTS,
                                                   slice=len(done), trickle=0.3))):
            with self.fresh(name):
                self.server.plan(answer)
                result = self.generate(PROMPT, "--stream", "--timeout", "3", "-o", "a.png", "--overwrite")
                self.assertEqual(result.exit_code, 0, result.stderr)
                self.assertEqual((self.work / "a.png").read_bytes(), SMALL)
                self.only_post()

    def test_refusal_before_the_stream(self) -> None:
        self.server.plan(Answer(status=400, body=error_body("rejected", "moderation_blocked")))
        error = self.generate_inside(PROMPT, "--stream", "--json").json["error"]
        self.assertEqual((error["kind"], error["billed"], error["http_status"]), ("moderation", "no", 400))

    def test_real_refusal_of_the_server(self) -> None:
        result = self.generate_inside(PROMPT, "--stream", "--param", "seed=7", "--json")
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (REFUSED, "no"))

    def test_gateway_that_cannot_stream(self) -> None:
        self.server.plan(Answer(status=500, body=error_body("streaming is not supported")))
        result = self.generate_inside(PROMPT, "--stream", "--json")
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (NO_ANSWER, "maybe"))
        self.only_post()


@unittest.skipUnless(os.name == "posix", "needs getrusage")
class StreamMemoryTest(StreamCase):

    def measure(self, answer: Answer, *arguments: str) -> float:
        """Peak memory in MB of the program and curl; a small process between, or this one's size would count."""
        self.server.plan(answer)
        through = (sys.executable, "-c", MEASURE, sys.executable, PROGRAM)
        result = self.finish(self.start_generate(PROMPT, "-o", "a.png", *arguments, through=through), 180)
        self.assertEqual(result.exit_code, 0, result.stderr)
        return int(result.stdout) / (1024 if sys.platform != "darwin" else 1024 * 1024)

    def test_one_event_of_30_megabytes(self) -> None:
        picture = draw_png(64, 64, padding=22_500_000)  # 30 MB of base64
        for trickle in (0.0, 0.02):
            self.forget()
            megabytes = self.measure(Answer(image=picture, trickle=trickle), "--stream", "--partial-images", "1",
                                     "--overwrite")
            self.assertLess(megabytes, 60)
            self.assertEqual((self.work / "a.png").read_bytes() == picture, True)
        self.assertEqual(self.beside(), ["a.png"])

    def test_many_small_events(self) -> None:
        text = ": keepalive\n\n" * 200_000 + frame(completed())
        self.assertLess(self.measure(stream(text), "--stream", "--partial-images", "1"), 60)


class StreamOptionsTest(StreamCase):
    """What is checked before anything is sent."""

    def check_usage(self, result: Result) -> None:
        self.assertEqual((result.exit_code, self.server.requests), (2, []), result.stderr)

    def test_partial_images_need_a_stream(self) -> None:
        self.check_usage(self.generate_inside(PROMPT, "--partial-images", "2"))

    def test_number_of_partial_images(self) -> None:
        for value in ("-1", "4", "x", "1.5"):
            with self.subTest(value):
                self.check_usage(self.generate_inside(PROMPT, "--stream", "--partial-images", value))
