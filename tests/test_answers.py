"""Answers of every kind: which become files, and what the caller is told about the others."""
from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from api_server import Answer, ApiServer, draw_jpeg, draw_png, draw_webp, error_body, sniff
from support import ERROR_FIELDS, KEY, LIMITED, NO_ANSWER, REFUSED, RESULT_FIELDS, SETUP, UNSAVED, ProgramCase, Result

PROMPT = "a red fox"
SMALL, LARGE = draw_png(32, 32), draw_png(32, 32, padding=300_000)
HUGE = draw_png(32, 32, padding=1_500_000)  # its base64 fills more than one block
USER_ERROR = "image_generation_user_error"
LATER = (("Retry-After", "3600"),)  # longer than any run waits, so that nothing is tried again


def data(*items: Any, **more: Any) -> bytes:
    """Return an answer's body around items of data."""
    return json.dumps({"created": 1, "data": list(items), **more}).encode()


def encoded(image: bytes) -> dict[str, str]:
    """Return one item of data."""
    return {"b64_json": base64.b64encode(image).decode()}


class AnswersBecomeFilesTest(ProgramCase):
    """Every spelling of a picture ends as the same bytes on disk."""

    def test_spellings(self) -> None:
        table = [(spelling, image) for spelling in ("plain", "data-url", "newlines", "slashes", "unpadded")
                 for image in (SMALL, LARGE, LARGE + b"\0")]
        for spelling, image in (*table, ("plain", HUGE), ("slashes", HUGE), ("newlines", draw_webp(9, 9))):
            with self.fresh(f"{spelling} {len(image)}"):
                self.server.plan(Answer(image=image, spelling=spelling))
                saved = self.saved_file(self.generate_inside(PROMPT, "-o", "a.png", "--overwrite"))
                self.assertEqual(saved.read_bytes(), image)

    def test_sent_in_pieces(self) -> None:
        for name, answer in (("chunked", Answer(image=LARGE, chunked=True)),
                             ("slowly", Answer(image=SMALL, chunked=True, trickle=0.01))):
            with self.fresh(name):
                self.server.plan(answer)
                self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), answer.image)

    def test_order_of_several(self) -> None:
        images = [draw_png(16 + number, 16, number) for number in range(4)]
        self.server.plan(Answer(body=data(*map(encoded, images))))
        result = self.generate(PROMPT, "--n", "4", "-o", "a.png")
        self.assert_succeeded(result)
        self.assertEqual([Path(path).read_bytes() for path, _ in result.saved], images)

    def test_members_that_nobody_asked_for(self) -> None:
        item = {"revised_prompt": "x" * 100_000, **encoded(SMALL), "url": None, "extra": {"@span": [0, 5]}}
        self.server.plan(Answer(body=data(item, error=None, code=0, message="success")))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)

    def test_content_type_does_not_matter(self) -> None:
        for kind in ("text/plain", "application/octet-stream", "text/html"):
            with self.fresh(kind):
                self.server.plan(Answer(image=SMALL, content_type=kind))
                self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)

    def test_mark_and_white_space_around_the_object(self) -> None:
        for prefix in (b"\xef\xbb\xbf", b" \r\n\t", b"\n" * 9000):  # the last: signs of life of a patient gateway
            with self.fresh(prefix):
                self.server.plan(Answer(body=prefix + data(encoded(SMALL)) + b"\n"))
                self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)


    def test_error_beside_a_picture_is_a_warning(self) -> None:
        text = "the second one was blocked"
        for name, more in (("envelope", {"error": {"message": text, "code": "moderation_blocked"}}),
                           ("words", {"error": text}), ("status", {"status": "failed", "failMsg": text}),
                           ("code", {"code": 500, "message": text})):
            with self.fresh(name):
                self.server.plan(Answer(body=data(encoded(SMALL), **more)))
                result = self.generate_inside(PROMPT, "--json", "-o", "a.png", "--overwrite")
                self.assertEqual((result.exit_code, len(result.json["saved"])), (0, 1), result.stderr)
                self.assertIn(text, result.json["warnings"][0])

    def test_error_without_words_is_none(self) -> None:
        for error in ({"message": "", "type": "", "param": "", "code": None}, {"code": 0}, {}):
            with self.fresh(error):
                self.server.plan(Answer(body=data(encoded(SMALL), error=error)))
                self.assertEqual(self.generate_inside(PROMPT, "--json", "--overwrite").json["warnings"], [])

    def test_small_base64_anywhere(self) -> None:
        for image in (SMALL, draw_jpeg(9, 9), draw_webp(9, 9)):
            for name in ("images", "output", "result"):
                with self.fresh(f"{name} {image[:4]!r}"):
                    self.server.plan(Answer(body=json.dumps({name: [encoded(image)["b64_json"]]}).encode()))
                    result = self.generate_inside(PROMPT, "-o", "a", "--overwrite")
                    self.assertEqual(self.saved_file(result).read_bytes(), image)

    def test_unreadable_answer_is_kept_when_the_message_cannot_show_it(self) -> None:
        body = json.dumps({"picture": {"link": "https://cdn.invalid/" + "p" * 2000}}).encode()
        self.server.plan(Answer(body=body), Answer(body=b'{"picture": 1}'))
        result = self.generate_inside(PROMPT, "--json", "-o", "a.png")
        self.assertEqual((result.exit_code, (self.work / "a-1.answer").read_bytes()), (NO_ANSWER, body))
        self.assertIn("a-1.answer", result.json["error"]["hint"])
        self.generate_inside(PROMPT, "-o", "b.png")
        self.assertEqual(list(self.work.glob("b*")), [])


class PicturesBehindUrlsTest(ProgramCase):
    """Pictures behind a URL are fetched without the key, and never asked for anew."""

    def downloads(self) -> list[Any]:
        """Return the requests for files."""
        return [request for request in self.server.requests if request.path.startswith("/files/")]

    def test_download_has_no_secret(self) -> None:
        self.server.plan(Answer(as_url=True, image=LARGE))
        result = self.generate(PROMPT, "--header", "api-key: test-key-2", "-v")
        self.assertEqual(self.saved_file(result).read_bytes(), LARGE)
        download, = self.downloads()
        self.assertEqual(download.method, "GET")
        self.assertEqual({name.lower() for name, _ in download.headers},
                         {"host", "user-agent", "accept", "accept-encoding"})
        self.only_post()

    def test_several(self) -> None:
        self.server.plan(Answer(as_url=True))
        result = self.generate_inside(PROMPT, "--n", "3", "-o", "a.png")
        self.assertEqual((result.names, len(self.downloads())), (["a-1.png", "a-2.png", "a-3.png"], 3))

    def test_mixed(self) -> None:
        self.server.files["x.png"] = SMALL
        self.server.plan(Answer(body=data({"url": f"{self.server.origin}/files/x.png"}, encoded(LARGE))))
        result = self.generate_inside(PROMPT, "--n", "2", "-o", "a.png")
        self.assertEqual([Path(path).read_bytes() for path, _ in result.saved], [SMALL, LARGE])

    def test_name_comes_from_the_user_not_from_the_server(self) -> None:
        climb = "../" * 3
        self.server.files["../../evil.sh"] = SMALL
        self.server.plan(Answer(body=data({"url": f"{self.server.origin}/files/x/{climb}evil.png"})))
        self.server.plan_files(Answer(image=SMALL))
        self.generate_inside(PROMPT, "-o", "a.png")
        self.assertEqual(list(self.root.rglob("evil*")), [])

    def test_redirect_is_followed(self) -> None:
        self.server.files["real.png"] = SMALL
        self.server.plan(Answer(as_url=True))
        self.server.plan_files(Answer(status=302, headers=(("Location", "/files/real.png"),)))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT)).read_bytes(), SMALL)

    def test_address_as_people_write_it(self) -> None:
        self.server.files["my%20image.png"] = self.server.files["my image.png"] = SMALL
        for url in ("{}/files/my image.png", " {}/files/my%20image.png ", "HTTP{}/files/my%20image.png"):
            with self.fresh(url):
                origin = self.server.origin if "HTTP" not in url else self.server.origin[4:]
                self.server.plan(Answer(body=data({"url": url.format(origin)})))
                result = self.generate_inside(PROMPT, "-o", "a.png", "--overwrite")
                self.assertEqual(self.saved_file(result).read_bytes(), SMALL)

    def test_bytes_after_the_end(self) -> None:
        for image in (SMALL + b"x" * 5000, draw_webp(9, 8)[:-1] if len(draw_webp(9, 8)) % 2 == 0 else draw_webp(9, 8)):
            with self.fresh(image[:4]):
                self.server.plan(Answer(as_url=True, image=image))
                result = self.generate_inside(PROMPT, "-o", "a", "--overwrite")
                self.assertEqual(self.saved_file(result).read_bytes(), image)

    def from_own_servers(self, *answers: tuple[Answer, Answer]) -> list[tuple[Result, ApiServer]]:
        """Run one generate for each (answer, answer of the download), side by side, each with its own server."""
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(ApiServer(KEY)) for _ in answers]
            commands = []
            for number, (server, (answer, file)) in enumerate(zip(servers, answers)):
                server.plan(answer)
                server.plan_files(*[file] * 9)
                commands.append(["generate", f"{number}", "--base-url", server.url, "--json", "--timeout", "2",
                                 "-o", f"{number}.png"])
            results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY}, at_once=len(commands))  # most only wait
            return list(zip(results, servers))

    def test_failed_downloads(self) -> None:
        to_a_file = Answer(status=302, headers=(("Location", "file://" + self.file("secret.png", SMALL)),))
        downloads = [Answer(status=404), Answer(status=403), Answer(status=500), Answer(drop="half"), to_a_file]
        pairs = [(Answer(as_url=True), download) for download in downloads]
        pairs.append((Answer(body=data({"url": f"https://127.0.0.1:1/{KEY}.png"})), Answer()))
        for (answer, download), (result, server) in zip(pairs, self.from_own_servers(*pairs)):
            with self.subTest(f"{download.status} {download.drop} {answer.body!r}"):
                self.assertNotIn(KEY, result.stdout + result.stderr)
                self.assertIn(result.exit_code, (NO_ANSWER, UNSAVED), result.stderr)
                self.assertEqual((result.json["error"]["billed"], result.json["saved"]), ("yes", []))
                self.assertNotIn("--base-url", result.json["error"]["hint"])
                self.assertEqual(len(server.posts), 1)

    def test_refused_download_tells_the_code_and_words_of_its_server(self) -> None:
        refusals = [Answer(status=403, body=error_body("link expired", "url_expired")), Answer(
            status=503, body=error_body("busy", "server_is_overloaded"), headers=(("retry-after-ms", "20"),))]
        outcomes = self.from_own_servers(*((Answer(as_url=True), refusal) for refusal in refusals))
        for (result, _), code, words, retryable in zip(
                outcomes, ("url_expired", "server_is_overloaded"), ("link expired", "busy"), (False, True)):
            error = result.json["error"]
            self.assertEqual((error["kind"], error["code"], error["retryable"]), ("download", code, retryable))
            self.assertIn(": " + words, error["message"])

    def test_words_of_a_refused_download_do_not_give_up_the_paid_image(self) -> None:
        bodies = (error_body("rejected", "moderation_blocked"),
                  b'{"response": {"status": 400, "body": {"error": "x"}}}')
        refusals = ((Answer(as_url=True), Answer(status=400, body=body)) for body in bodies)
        for result, server in self.from_own_servers(*refusals):
            error = result.json["error"]
            self.assertEqual((result.exit_code, error["kind"], error["billed"], error["next"]),
                             (UNSAVED, "download", "yes", "again"), error)
            self.assertEqual(len(server.posts), 1)
        self.assertEqual(len(self.journal()), 2)

    def test_download_that_is_no_image(self) -> None:
        self.server.plan(Answer(as_url=True, image=b"<html>expired</html>"))
        result = self.generate_inside(PROMPT, "--json")
        self.assertIn(result.exit_code, (NO_ANSWER, UNSAVED))
        self.assertEqual((result.json["saved"], len(result.errors)), ([], 1))
        self.only_post()

    def test_addresses_that_are_none(self) -> None:
        secret = self.file("secret.png", SMALL)
        urls = ('http://127.0.0.1:1/a"\noutput = "evil.png', "http://127.0.0.1:1/a\0b", "http://127.0.0.1:1/\x1b[2J",
                f"file://{secret}", "ftp://127.0.0.1/a.png", "gopher://127.0.0.1/a")
        outcomes = self.from_own_servers(*((Answer(body=data({"url": url})), Answer()) for url in urls))
        for url, (result, server) in zip(urls, outcomes):
            with self.subTest(url):
                self.assertIn(result.exit_code, (NO_ANSWER, UNSAVED), result.stderr)
                self.assertIn(result.json["error"]["billed"], ("maybe", "yes"))
                self.assertEqual((result.json["saved"], len(server.requests)), ([], 1))
                self.assertNotIn(KEY, result.stdout + result.stderr)
        self.assertEqual(list(self.root.rglob("evil*")), [])


class OtherThanAskedForTest(ProgramCase):
    """What came is not what was asked for: it is saved, named truthfully and reported."""

    def test_format(self) -> None:
        for asked, drawn, name in (("a.png", "jpeg", "a.jpg"), ("b.jpg", "png", "b.png"), ("c.webp", "jpeg", "c.jpg"),
                                   ("d.png", "webp", "d.webp")):
            with self.subTest(f"{asked} {drawn}"):
                self.server.plan(Answer(format=drawn))
                document = self.generate_inside(PROMPT, "-o", asked, "--json").json
                self.assertEqual((document["ok"], Path(document["saved"][0]["path"]).name), (True, name))
                self.assertEqual(document["saved"][0]["format"], drawn)
                self.assertEqual(len(document["warnings"]), 1, document["warnings"])
                self.assertIn(drawn, document["warnings"][0])

    def test_gif(self) -> None:
        gif = b"GIF89a" + (16).to_bytes(2, "little") * 2 + b"\0\0\0" + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
        self.server.plan(Answer(image=gif))
        self.assertEqual(self.saved_file(self.generate_inside(PROMPT, "-o", "a.png")).name, "a.gif")

    def test_another_size_is_a_warning(self) -> None:
        self.server.plan(Answer(size=(1024, 768)))
        result = self.generate(PROMPT, "--size", "1536x1024", "--json")
        document = result.json
        self.assertEqual((document["ok"], document["requested"]["size"]), (True, "1536x1024"))
        self.assertEqual((document["saved"][0]["width"], document["saved"][0]["height"]), (1024, 768))
        self.assertTrue(any("1024x768" in warning for warning in document["warnings"]))
        self.assertIn("1024x768", result.stderr)

    def test_free_size_is_not_reported(self) -> None:
        self.server.plan(Answer(size=(1254, 1254)))
        self.assertEqual(self.generate_inside(PROMPT, "--json").json["warnings"], [])

    def test_fewer_than_asked(self) -> None:
        self.server.plan(Answer(count=2))
        result = self.generate(PROMPT, "--n", "3", "--json", "-o", "a.png")
        self.assertEqual(len(result.json["saved"]), 2)
        told = result.json["warnings"] + [result.json.get("error", {}).get("message", "")]
        self.assertTrue(any("3 " in text and "2 " in text for text in told), told)
        self.assertRegex(result.stderr, r"\b2 .*\b3 ")

    def test_more_than_asked_are_all_kept(self) -> None:
        self.server.plan(Answer(count=3))
        result = self.generate_inside(PROMPT, "-o", "a.png")
        self.assertEqual((result.exit_code, len(result.saved)), (0, 3))


class Wrong(NamedTuple):
    """One answer without a usable picture, and what the caller has to learn from it."""
    name: str
    answer: Answer
    exit_code: int
    kind: str
    billed: str = "no"
    hint: str = ""
    message: str = ""
    retryable: bool = False
    arguments: tuple[str, ...] = ()


def refusal(status: int, message: str, code: str | None = None, kind: str = "invalid_request_error",
            headers: tuple[tuple[str, str], ...] = (), **more: Any) -> Answer:
    """Return an error in the API's envelope."""
    envelope = {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}
    return Answer(status=status, body=json.dumps(envelope).encode(), headers=headers)


class WrongAnswerCase(ProgramCase):
    """Runs generate against wrong answers; whatever is tried again meets the same answer."""

    def check(self, *table: Wrong) -> None:
        """Check a table of wrong answers."""
        for wrong in table:
            with self.subTest(wrong.name):
                self.server.default = wrong.answer
                self.check_result(wrong, self.generate_inside(PROMPT, "--json", *wrong.arguments))
        with self.subTest(f"{wrong.name}, as a child"):
            self.check_result(wrong, self.generate(PROMPT, "--json", *wrong.arguments))

    def check_result(self, wrong: Wrong, result: Result) -> None:
        """Check one outcome on both streams."""
        document = result.json
        error = document["error"]
        self.assertEqual((set(document), set(error)), (RESULT_FIELDS | {"error"}, ERROR_FIELDS))
        self.assertEqual((result.exit_code, error["kind"], error["billed"], error["retryable"]),
                         (wrong.exit_code, wrong.kind, wrong.billed, wrong.retryable), error)
        self.assertEqual((document["ok"], document["saved"]), (False, []))
        self.assertIn(wrong.hint, error["hint"])
        self.assertIn(wrong.message, error["message"])
        self.assertEqual(len(result.errors), 1, result.stderr)
        self.assertIn(wrong.message, result.errors[0])
        self.assertNotIn("Traceback", result.stderr)


class ErrorEnvelopesTest(WrongAnswerCase):
    """Error envelopes of the API."""

    def test_bad_requests(self) -> None:
        self.check(
            Wrong("size", refusal(400, "Invalid size '1x1'. Width and height must both be divisible by 16.",
                                  "invalid_value", USER_ERROR), REFUSED, "refused", message="divisible by 16"),
            Wrong("unknown parameter", refusal(400, "Unknown parameter: 'seed'.", "unknown_parameter"), REFUSED,
                  "refused", message="Unknown parameter: 'seed'"),
            Wrong("no such model", refusal(400, "The model 'x' does not exist.", "invalid_value", USER_ERROR), REFUSED,
                  "refused", message="does not exist"),
            Wrong("unprocessable", refusal(422, "n must be 1"), REFUSED, "refused"),
            Wrong("too large", Answer(status=413, body=b"", content_type="text/plain"), REFUSED, "too_large",
                  hint="JPEG"))

    def test_real_refusal_of_the_server(self) -> None:
        self.check(Wrong("strict", Answer(), REFUSED, "refused", message="Unknown parameter: 'seed'",
                         arguments=("--param", "seed=7")))

    def test_moderation(self) -> None:
        text = "Your request was rejected by the safety system. safety_violations=[sexual]."
        self.check(
            Wrong("input", refusal(400, text, "moderation_blocked", USER_ERROR, moderation_details={
                "moderation_stage": "input", "categories": ["sexual"]}), REFUSED, "moderation",
                  hint="Change the prompt"),
            Wrong("output", refusal(400, text, "moderation_blocked", USER_ERROR, moderation_details={
                "moderation_stage": "output", "categories": ["sexual"]}), REFUSED, "moderation", "maybe",
                  "Change the prompt"),
            Wrong("without details", refusal(400, text, "moderation_blocked", USER_ERROR), REFUSED, "moderation"),
            Wrong("Azure's code", refusal(400, "blocked", "contentFilter"), REFUSED, "moderation"))

    def test_key_and_account(self) -> None:
        self.check(
            Wrong("organization", refusal(403, "Your organization must be verified to use the model `gpt-image-2`."),
                  SETUP, "verification", hint="15 minutes"),
            Wrong("region", refusal(403, "Country, region, or territory not supported",
                                    "unsupported_country_region_territory"), SETUP, "region"),
            Wrong("forbidden", refusal(403, "You have insufficient permissions"), SETUP, "forbidden"),
            Wrong("firewall", Answer(status=403, body=b"<html><title>Just a moment...</title></html>"), SETUP,
                  "blocked", message="Just a moment"),
            Wrong("wrong key", refusal(401, "Incorrect API key provided: te****ey.", "invalid_api_key"), SETUP, "key",
                  hint="config --check"),
            Wrong("bare 401", Answer(status=401, body=b"", content_type="text/plain"), SETUP, "key"))

    def test_wrong_key_at_the_real_check(self) -> None:
        result = self.run_inside("generate", PROMPT, *self.access(), "--json", env={"GPT_IMAGE2_API_KEY": "test-wrong"})
        self.assertEqual((result.exit_code, result.json["error"]["code"]), (SETUP, "invalid_api_key"))
        self.assertNotIn("test-wrong", result.stdout + result.stderr)

    def test_quota_and_rate_limit(self) -> None:
        rate = "Rate limit reached for gpt-image-2 on input-images per min: Limit 5, Used 5, Requested 1."
        self.check(
            Wrong("no credit", refusal(429, "You have no credits remaining.", "credit_balance_exhausted",
                                       "insufficient_quota"), LIMITED, "quota", hint="credit"),
            Wrong("old quota", refusal(429, "You exceeded your current quota", "insufficient_quota",
                                       "insufficient_quota"),
                  LIMITED, "quota"),
            Wrong("hard limit", refusal(400, "Billing hard limit has been reached.", "billing_hard_limit_reached",
                                        "billing_limit_user_error"), LIMITED, "quota"),
            Wrong("payment required", refusal(402, "Please top up"), LIMITED, "quota"),
            Wrong("rate limit", refusal(429, rate, "rate_limit_exceeded", "input-images", LATER), LIMITED, "rate_limit",
                  hint="3600 s", message="input-images per min", retryable=True),
            Wrong("slow down", refusal(429, "Slow down", "slow_down", "rate_limit_error", LATER), LIMITED, "rate_limit",
                  retryable=True))

    def test_not_found(self) -> None:
        self.check(Wrong("empty", Answer(status=404, body=b"", content_type="text/plain"), REFUSED, "not_found",
                         hint="/v1"))

    def test_broken_servers(self) -> None:
        page = b"<html><head><title>504 Gateway &amp; Time-out</title></head></html>"
        self.check(
            Wrong("500", refusal(500, "The server had an error", None, "server_error"), NO_ANSWER, "server", "maybe"),
            Wrong("503", refusal(503, "The server is overloaded.", "server_is_overloaded", "service_unavailable_error",
                                 LATER), NO_ANSWER, "overloaded", retryable=True),
            Wrong("502", Answer(status=502, body=page, content_type="text/html"), NO_ANSWER, "gateway", "maybe",
                  message="504 Gateway"),
            Wrong("504", Answer(status=504, body=page, content_type="text/html"), NO_ANSWER, "gateway", "maybe"),
            Wrong("520", Answer(status=520, body=page, content_type="text/html"), NO_ANSWER, "server", "maybe"),
            Wrong("524", Answer(status=524, body=b"error code: 524"), NO_ANSWER, "gateway", "maybe"),
            Wrong("empty 500", Answer(status=500, body=b""), NO_ANSWER, "server", "maybe"))

    def test_facts_of_a_refusal(self) -> None:
        self.server.plan(refusal(400, "no", "invalid_value", USER_ERROR, (("x-request-id", "req_12"),)))
        document = self.generate_inside(PROMPT, "--json", "--quality", "low").json
        error = document["error"]
        self.assertEqual((error["http_status"], error["code"], error["request_id"]), (400, "invalid_value", "req_12"))
        self.assertEqual((document["http_status"], document["request_id"], document["model"]),
                         (400, "req_12", "gpt-image-2"))
        self.assertEqual(document["requested"]["quality"], "low")

    def test_refusals_are_sent_once(self) -> None:
        for answer in (refusal(400, "no"), refusal(401, "no"), refusal(429, "no", "insufficient_quota"),
                       Answer(status=500), Answer(status=504, body=b"")):
            with self.fresh(answer.status):
                self.server.default = answer
                self.generate_inside(PROMPT)
                self.only_post()


class SuccessWithoutPictureTest(WrongAnswerCase):
    """HTTP 200 without a picture."""

    def test_errors_inside_success(self) -> None:
        self.check(
            Wrong("envelope", Answer(body=error_body("Something broke", "image_generation_failed")), NO_ANSWER,
                  "no_image", "maybe", message="Something broke"),
            Wrong("moderation", Answer(body=error_body("rejected", "moderation_blocked")), REFUSED, "moderation"),
            Wrong("quota", Answer(body=error_body("empty", "insufficient_quota")), LIMITED, "quota"),
            Wrong("text", Answer(body=b'{"error": "no channel available"}'), NO_ANSWER, "no_image", "maybe",
                  message="no channel available"),
            Wrong("relay's code", Answer(body=b'{"code": 500, "msg": "upstream failed"}'), NO_ANSWER, "server", "maybe",
                  message="upstream failed"),
            Wrong("detail", Answer(body=b'{"detail": "not today"}'), NO_ANSWER, "no_image", "maybe",
                  message="not today"))

    def test_nothing_inside(self) -> None:
        bodies: dict[str, bytes] = {
            "empty data": b'{"created": 1, "data": []}', "null data": b'{"data": null}', "object": b'{"data": {}}',
            "text": b'{"data": "abc"}', "null item": b'{"data": [null]}', "empty item": b'{"data": [{}]}',
            "null image": b'{"data": [{"b64_json": null}]}', "empty image": b'{"data": [{"b64_json": ""}]}',
            "number": b'{"data": [{"b64_json": 5}]}', "empty object": b"{}", "list": b"[]", "null": b"null",
            "string": b'"a"', "only a number": b"5", "cut off": b'{"data": [{"b64_json": "iVBOR', "empty body": b"",
            "blank": b" \n", "plain text": b"OK", "nested": b"[" * 200_000,
            "huge number": b'{"data": [' + b"9" * 100_000 + b"]}", "not UTF-8": b'{"data": "\xff\xfe"}',
            "forged span": b'{"data": [{"b64_json": {"@span": [0, 10]}}]}',
            "mad span": b'{"data": [{"b64_json": {"@span": [-5, 1e999]}}]}'}
        for name, body in bodies.items():
            with self.subTest(name):
                self.server.default = Answer(body=body)
                result = self.generate_inside(PROMPT, "--json")
                self.assertEqual((result.exit_code, result.json["error"]["billed"], result.json["saved"]),
                                 (NO_ANSWER, "maybe", []), result.stderr)
                self.assertEqual(len(result.errors), 1)

    def test_web_page(self) -> None:
        self.check(Wrong("page", Answer(body=b"<!doctype html><title>Sign in</title>", content_type="text/html"),
                         NO_ANSWER, "web_page", "maybe", "points at a website", "Sign in"))

    def test_base_url_without_v1(self) -> None:
        for url in (self.server.origin, self.server.origin + "/"):
            with self.subTest(url):
                result = self.run_inside("generate", PROMPT, "--base-url", url, "--json",
                                         env={"GPT_IMAGE2_API_KEY": KEY})
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["billed"]), (NO_ANSWER, "no"))
                self.assertIn(f"--base-url {self.server.origin}/v1", error["hint"])

    def test_wrong_path_is_not_found(self) -> None:
        url = self.server.url + "/proxy"
        result = self.run_inside("generate", PROMPT, "--base-url", url, "--json", env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual((result.exit_code, result.json["error"]["kind"]), (REFUSED, "not_found"))
        self.assertIn(f"--base-url {url}/v1", result.json["error"]["hint"])

    def test_garbage_instead_of_an_image(self) -> None:
        half = base64.b64encode(LARGE[:len(LARGE) // 2]).decode()
        items: dict[str, Any] = {
            "text": encoded(b"sorry, no image today"), "page": encoded(b"<html></html>"),
            "zeros": encoded(bytes(200_000)), "not base64": {"b64_json": "not base64 at all!"},
            "long not base64": {"b64_json": "?" * 100_000},
            "half a letter": {"b64_json": "A"}, "unicode": {"b64_json": "\u732b" * 50_000}}
        for name, item in items.items():
            with self.subTest(name):
                self.server.default = Answer(body=data(item))
                result = self.generate_inside(PROMPT, "--json")
                self.assertEqual((result.exit_code, result.json["saved"]), (NO_ANSWER, []), result.stderr)
                self.assertIn(result.json["error"]["billed"], ("maybe", "yes"))
                kept = list(self.home.glob("gpt-image2-output*"))
                self.assertEqual([path.suffix for path in kept], [".answer"])
                for path in kept:
                    self.assertIn(str(path), result.json["error"]["hint"])
                    path.unlink()
        with self.subTest("broken off"):
            self.server.default = Answer(body=data({"b64_json": half}))
            result = self.generate_inside(PROMPT, "--json")
            self.assertEqual((result.exit_code, result.json["error"]["billed"]), (NO_ANSWER, "yes"), result.stderr)

    def test_one_bad_image_does_not_cost_the_others(self) -> None:
        images = [draw_png(16, 16, number) for number in range(2)]
        self.server.plan(Answer(body=data(encoded(images[0]), encoded(b"no image"), encoded(images[1]))))
        result = self.generate_inside(PROMPT, "--n", "3", "-o", "a.png", "--json")
        self.assertIn(result.exit_code, (NO_ANSWER, UNSAVED))
        self.assertEqual([Path(saved["path"]).read_bytes() for saved in result.json["saved"]], images)

    def test_saved_lines_of_a_partial_success(self) -> None:
        self.server.plan(Answer(body=data(encoded(SMALL), encoded(b"no image"))))
        result = self.generate(PROMPT, "--n", "2", "-o", "a.png")
        self.assertEqual(len(result.saved), 1)
        self.assertEqual(Path(result.saved[0][0]).read_bytes(), SMALL)


class NoAnswerAtAllTest(WrongAnswerCase):
    """No answer at all; the question is whether money may be gone."""

    def test_connection_breaks(self) -> None:
        self.check(
            Wrong("silent", Answer(drop="silent"), NO_ANSWER, "network", "maybe"),
            Wrong("only headers", Answer(drop="headers"), NO_ANSWER, "network", "maybe"),
            Wrong("half", Answer(drop="half", image=LARGE), NO_ANSWER, "network", "maybe"),
            Wrong("half in pieces", Answer(drop="half", chunked=True), NO_ANSWER, "network", "maybe"))

    def test_answer_that_is_not_http(self) -> None:
        """The request was sent all the same."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def answer() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(65536)
                connection.sendall(b"hello\r\n")
        server = threading.Thread(target=answer, daemon=True)
        server.start()
        result = self.run_inside("generate", PROMPT, "--base-url", f"http://127.0.0.1:{listener.getsockname()[1]}/v1",
                                 "--json")
        server.join(10)
        self.check_result(Wrong("", Answer(), NO_ANSWER, "network", "maybe", "",
                                "the server there does not speak HTTP"), result)

    def test_refusal_with_a_wrong_length(self) -> None:
        wrong = (("Content-Length", "9000"), ("Connection", "close"))
        self.check(Wrong("401", refusal(401, "Incorrect", "invalid_api_key", headers=wrong), SETUP, "key"),
                   Wrong("400", refusal(400, "n must be 1", headers=wrong), REFUSED, "refused", message="n must be 1"))

    def test_no_connection_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # it never answers TLS's first word
            url = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
            result = self.run_inside("generate", PROMPT, "--base-url", url, "--json", "--timeout", "1")
        self.check_result(Wrong("", Answer(), NO_ANSWER, "timeout", "no", "--base-url", retryable=True), result)

    def test_timeout(self) -> None:
        self.server.plan(Answer(delay=30))
        self.check_result(Wrong("silent", Answer(), NO_ANSWER, "timeout", "maybe", "--timeout", "within 1 s"),
                          self.generate(PROMPT, "--json", "--timeout", "1"))
        self.only_post()

    def test_nothing_answers(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
            result = self.run_inside("generate", PROMPT, "--base-url", url, "--json", "--timeout", "1",
                                     env={"GPT_IMAGE2_API_KEY": KEY})
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["kind"], error["billed"]), (NO_ANSWER, "network", "no"))
        self.assertIn("--base-url", error["hint"])

    def test_redirects_are_not_followed(self) -> None:
        with ApiServer(KEY) as other:
            for status in (301, 302, 303, 307, 308):
                self.check(Wrong(str(status), Answer(status=status, body=b"", headers=(
                    ("Location", f"{other.url}/images/generations"),)), NO_ANSWER, "redirect", "no", message=other.url))
            self.assertEqual(other.requests, [])


class HostileTextsOfServersTest(ProgramCase):
    """A server that repeats the key, or that aims at the terminal, reaches nobody with it."""

    def test_key_in_errors(self) -> None:
        answers = {
            "message": refusal(400, f"bad key {KEY}!"), "code": refusal(400, "no", KEY),
            "type": refusal(400, "no", None, KEY),
            "401": refusal(401, f"Incorrect API key provided: {KEY}."), "page": Answer(
                status=502, body=f"<title>{KEY}</title>".encode()),
            "text": Answer(status=500, body=f"key={KEY}".encode()),
            "inside 200": Answer(body=f'{{"data": [], "debug": "Bearer {KEY}"}}'.encode()),
            "request id": refusal(400, "no", headers=(("x-request-id", KEY),)),
            "location": Answer(status=302, body=b"", headers=(("Location", f"https://relay.invalid/?key={KEY}"),)),
            "garbage": Answer(body=data(encoded(f"no image for {KEY}".encode()))),
            "echoed header": Answer(status=500, body=f"authorization: bearer {KEY}".encode())}
        for name, answer in answers.items():
            for form in ("--json", "-v"):
                with self.subTest(f"{name} {form}"):
                    self.server.default = answer
                    result = self.generate_inside(PROMPT, form, "--timeout", "2")
                    self.assertNotEqual(result.exit_code, 0)
                    self.assertNotIn(KEY, result.stdout + result.stderr)

    def test_missing_key_on_this_machine_is_named_as_the_reason(self) -> None:
        result = self.run_inside("generate", PROMPT, *self.access())
        self.assertEqual(result.exit_code, SETUP, result.stderr)
        self.assertIn("No key is set: set GPT_IMAGE2_API_KEY", result.stderr)
        check = self.run_inside("config", "--check", *self.access())
        self.assertIn("note  no key", check.stdout)

    def test_ordinary_words_in_headers_are_no_secrets(self) -> None:
        result = self.generate_inside(PROMPT, "--json", "--header", "X-Mode: auto", "--header", "X-Title: gpt-image-2",
                                      "--header", "X-Level: warning")
        self.assertEqual((result.json["model"], result.json["requested"]["quality"]), ("gpt-image-2", "auto"))
        self.assertNotIn("***", result.stderr)

    def test_key_in_a_header_of_any_name(self) -> None:
        for name, value in (("X-Relay-Token", "abc12"), ("Cookie", "id=7"), ("X-Relay", "0123456789abcdef")):
            self.server.default = refusal(400, f"no {value} here")
            result = self.generate_inside(PROMPT, "--header", f"{name}: {value}")
            self.assertIn("no *** here", result.stderr, name)

    def test_part_of_a_key_at_the_end_of_a_cut_message(self) -> None:
        key = "test-key-" + "0123456789" * 4
        for length in (140, 190, 270, 280, 290):
            with self.subTest(length):
                self.server.default = refusal(400, "x" * length + " " + key)._replace(check=False)
                result = self.generate_inside(PROMPT, "--json", env={"GPT_IMAGE2_API_KEY": key})
                self.assertNotIn(key[:9], result.stdout + result.stderr)

    def test_key_that_curls_config_escapes(self) -> None:
        for key in ('test"quoted"key-123', "test\\slash\\key-123", "test'key-123"):
            with self.fresh(key):
                self.server.plan(Answer(check=False))
                result = self.generate_inside(PROMPT, "-v", env={"GPT_IMAGE2_API_KEY": key})
                self.assert_succeeded(result)
                self.assertNotIn("key-123", result.stdout + result.stderr)

    def test_secret_header_with_verbose(self) -> None:
        result = self.generate_inside(PROMPT, "-v", "--header", 'api-key: hidden "word" here')
        self.assertEqual(self.only_post().header("api-key"), 'hidden "word" here')
        for word in ("hidden", "word", "here"):
            self.assertNotIn(word, result.stderr)

    def test_keys_of_other_people(self) -> None:
        self.server.plan(refusal(400, "used sk-" + "a1" * 6 + " instead"))
        self.assertNotIn("a1a1a1", self.generate_inside(PROMPT).stderr)

    def test_control_characters(self) -> None:
        evil = "\x1b[2J\x1b]0;gone\x07\r\n\x08\x7f\x9b31m\x85 end"
        answers = {
            "message": refusal(400, evil), "code": refusal(400, "no", evil),
            "text": Answer(status=500, body=evil.encode()),
            "page": Answer(status=502, body=f"<title>{evil}</title>".encode()), "200": Answer(body=evil.encode()),
            "object": Answer(body=json.dumps({"data": [], "note": evil}, ensure_ascii=False).encode()),
            "entities": Answer(status=502, body=b"<title>&#27;[2J&#x9b;31m&#13;</title>"),
            "location": Answer(status=302, body=b"", headers=(("Location", "http://x/\x1b[2J\x9b"),)),
            "garbage": Answer(body=data(encoded(evil.encode())))}
        for name, answer in answers.items():
            with self.subTest(name):
                self.server.default = answer
                result = self.generate_inside(PROMPT)
                self.assertNotEqual(result.exit_code, 0)
                shown = [repr(letter) for letter in result.stdout + result.stderr
                         if letter != "\n" and unicodedata.category(letter) == "Cc"]
                self.assertEqual(shown, [])
                self.assertEqual(len(result.errors), 1)

    def test_long_messages_are_cut(self) -> None:
        self.server.plan(refusal(400, "word " * 20_000))
        self.assertLess(len(self.generate_inside(PROMPT).stderr), 2000)


class DrawnPicturesAreRealTest(ProgramCase):
    """The pictures of the test server are what they claim, so that the tests above mean something."""

    def test_drawn_pictures(self) -> None:
        for image, kind in ((draw_png(32, 16), "png"), (draw_jpeg(32, 16), "jpeg"), (draw_webp(32, 16), "webp")):
            self.assertEqual(sniff(image), (kind, 32, 16))
