"""The Codex sign-in: only when asked for, only to chatgpt.com, and never a word of the token anywhere."""
from __future__ import annotations

import base64
import json
import os
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from api_server import Answer, Recorded, draw_jpeg, draw_png
from support import LIMITED, NO_ANSWER, REFUSED, SETUP, USAGE, ProgramCase, Result, mask_png, program
from test_secrets import Route, WatchedCase

PNG = draw_png(64, 64)
HOUR = 3600
CHATGPT = "https://chatgpt.com/backend-api/codex"
CLOUDFLARE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>challenge</body></html>"


def web_token(claims: Any) -> str:
    """A JSON web token as the sign-in holds one; nobody checks its signature here."""
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "sig-test"])


def fresh_token(**claims: Any) -> str:
    return web_token({"exp": int(time.time()) + HOUR, **claims})


class CodexCase(ProgramCase):
    """A sign-in in the private home, and the Images API on loopback in place of chatgpt.com."""

    def setUp(self) -> None:
        super().setUp()
        self.token = fresh_token()
        self.server.key = self.token

    def sign_in(self, tokens: Any = None, folder: Path | None = None, **more: Any) -> Path:
        """Write an auth.json as Codex does and return its path."""
        path = (folder or self.home / ".codex") / "auth.json"
        if tokens is None:
            tokens = {"access_token": self.token, "account_id": "account-1", "refresh_token": "fake-refresh",
                      "id_token": web_token({})}
        self.write_config({"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2026-11-20T00:00:00Z", **more},
                          path=path)
        return path

    def access(self) -> list[str]:
        return ["--api", "codex", "--base-url", self.server.url]

    def generate_inside(self, *arguments: str, env: Any = None, **options: Any) -> Result:
        """Run generate with a JSON result and without any key in the environment."""
        return self.run_inside("generate", "a fox", "--json", *self.access(), *arguments, env=env, **options)

    def change(self, *arguments: str, env: Any = None) -> Result:
        return self.run_inside("edit", *arguments, "--json", *self.access(), env=env)

    def check_failure(self, result: Result, exit_code: int, kind: str = "", billed: str = "no") -> dict[str, Any]:
        error: dict[str, Any] = result.json.get("error", {})
        self.assertEqual((result.exit_code, error.get("billed")), (exit_code, billed), result.stdout + result.stderr)
        if kind:
            self.assertEqual(error["kind"], kind)
        self.assert_secret(result.stdout + result.stderr)
        return error

    def assert_secret(self, text: str) -> None:
        """No part of the token, of any size that would help, is in a text."""
        for part in (self.token, *self.token.split("."), "fake-refresh"):
            self.assertNotIn(part, text)

    def tell(self, error: dict[str, Any]) -> str:
        return f"{error['message']} {error['hint']}".lower()


class CodexOnlyWhenAskedForTest(CodexCase):
    """Nothing but the word codex chooses it."""

    def test_never_by_itself(self) -> None:
        self.sign_in()
        for name, arguments, config, env in (
                ("nothing else", [], {}, {}), ("its host", ["--base-url", CHATGPT], {}, {}),
                ("its host in the config", [], {"base_url": CHATGPT}, {}),
                ("its host in a variable", [], {}, {"OPENAI_BASE_URL": CHATGPT}),
                ("CODEX_HOME", [], {}, {"CODEX_HOME": str(self.home / ".codex")}),
                ("another API", ["--api", "openai"], {}, {}), ("RunAPI", ["--api", "runapi"], {}, {})):
            with self.subTest(name):
                self.write_config(config)
                with mock.patch.object(program, "start_curl", side_effect=AssertionError("it would be sent")):
                    result = self.run_inside("generate", "a fox", "--json", *arguments, env=env)
                error = self.check_failure(result, SETUP, "key")
                self.assertIn("no API key", error["message"])

    def test_not_even_to_this_machine(self) -> None:
        self.sign_in()
        result = self.run_inside("generate", "a fox", "--json", "--base-url", self.server.url)
        self.assertEqual(result.exit_code, SETUP, result.stderr)  # the server wants a key
        self.assertEqual(self.only_post().header("Authorization"), "")

    def test_another_key_does_not_choose_it_either(self) -> None:
        self.sign_in()
        self.server.key = "test-key"
        for env in ({"GPT_IMAGE2_API_KEY": "test-key"}, {"OPENAI_API_KEY": "test-key"}):
            self.server.reset()
            self.forget()
            result = self.run_inside("generate", "a fox", "--json", "--base-url", self.server.url, env=env)
            self.assertEqual(result.exit_code, 0, result.stderr)
            self.assertEqual(self.only_post().header("Authorization"), "Bearer test-key")

    def test_by_flag_and_by_config(self) -> None:
        self.sign_in()
        settings = self.load_settings({"api": "codex"})
        self.assertEqual((settings.api.value, settings.base_url.value),
                         ("codex", "https://chatgpt.com/backend-api/codex"))
        self.write_config({"api": "codex"})
        by_config = self.load_settings({})
        values = {**settings.values, "api": ("codex", by_config.config_path)}
        self.assertEqual(by_config, settings._replace(values=values, config_path=by_config.config_path))

    def test_by_config_for_real(self) -> None:
        self.sign_in()
        self.write_config({"api": "codex", "base_url": self.server.url})
        result = self.run_inside("generate", "a fox", "--json")
        self.assertEqual(result.exit_code, 0, result.stderr)
        self.assertEqual(self.only_post().header("Authorization"), f"Bearer {self.token}")

    def test_no_other_key_is_sent(self) -> None:
        self.sign_in()
        env = {"GPT_IMAGE2_API_KEY": "other-key", "OPENAI_API_KEY": "other-key", "RUNAPI_API_KEY": "other-key"}
        self.assertEqual(self.generate_inside(env=env).exit_code, 0)
        self.assertEqual(self.only_post().header("Authorization"), f"Bearer {self.token}")

    def test_base_url_of_another_service_in_the_config_is_left_out(self) -> None:
        self.sign_in()
        self.write_config({"base_url": "https://relay.invalid/v1", "api_key": "file-key"})
        self.assertEqual(self.load_settings({"api": "codex"}).base_url.value, "https://chatgpt.com/backend-api/codex")

    def test_variables_of_other_services_do_not_move_it(self) -> None:
        self.sign_in()
        env = {"GPT_IMAGE2_BASE_URL": "https://a.invalid/v1", "OPENAI_BASE_URL": "https://b.invalid/v1",
               "RUNAPI_BASE_URL": "https://c.invalid"}
        self.assertEqual(self.load_settings({"api": "codex"}, env).base_url.value,
                         "https://chatgpt.com/backend-api/codex")


class CodexSignInTest(CodexCase):
    """auth.json: where it is, and everything that may be wrong with it."""

    def test_in_the_home(self) -> None:
        self.sign_in()
        self.assertEqual(self.generate_inside().exit_code, 0)

    def test_in_codex_home(self) -> None:
        self.sign_in(folder=self.root / "elsewhere")
        self.sign_in({"access_token": fresh_token(sub="the wrong one")})
        self.assertEqual(self.generate_inside(env={"CODEX_HOME": str(self.root / "elsewhere")}).exit_code, 0)
        self.assertEqual(self.only_post().header("Authorization"), f"Bearer {self.token}")

    def test_empty_codex_home_counts_as_unset(self) -> None:
        self.sign_in()
        self.assertEqual(self.generate_inside(env={"CODEX_HOME": ""}).exit_code, 0)

    def test_missing(self) -> None:
        for env in (None, {"CODEX_HOME": str(self.root / "nowhere")}):
            with self.subTest(env=env):
                error = self.check_failure(self.generate_inside(env=env), SETUP, "key")
                self.assertIn("auth.json", error["message"])
                self.assertEqual(self.server.requests, [])

    def test_missing_says_what_to_do(self) -> None:
        error = self.check_failure(self.generate_inside(env={"CODEX_HOME": str(self.root / "nowhere")}), SETUP, "key")
        self.assertIn("codex", error["hint"].lower())

    def test_broken(self) -> None:
        path = self.sign_in()
        contents: tuple[Any, ...] = (
            "", "{", "[]", "7", "null", '"text"', "{}", {"tokens": None}, {"tokens": []}, {"tokens": "x"},
            {"tokens": {}}, {"tokens": {"access_token": ""}}, {"tokens": {"access_token": None}},
            {"tokens": {"access_token": 5}}, {"tokens": {"access_token": ["x"]}}, {"tokens": {"access_token": "a b"}},
            {"tokens": {"access_token": "a\nb"}}, {"OPENAI_API_KEY": "fake-key", "tokens": None})
        for content in contents:
            with self.fresh(content):
                self.write_config(content, path=path)
                self.check_failure(self.generate_inside(), SETUP, "key")
                self.assertEqual(self.server.requests, [])

    def test_not_a_readable_file(self) -> None:
        path = self.home / ".codex" / "auth.json"
        path.mkdir(parents=True)
        self.check_failure(self.generate_inside(), SETUP, "key")
        path.rmdir()
        path.write_bytes(b'{"tokens": "\xff\xfe"}')
        self.check_failure(self.generate_inside(), SETUP, "key")

    def test_token_that_is_no_web_token(self) -> None:
        for token in ("opaque-token", "a.b.c", "a.!!.c", "..", "a." + "W" * 9 + ".c", web_token([]), web_token("x")):
            with self.fresh(token):
                self.server.key = token
                self.sign_in({"access_token": token})
                self.assertEqual(self.generate_inside().exit_code, 0)

    def test_file_is_only_read(self) -> None:
        path = self.sign_in()

        def state() -> tuple[bytes, int, list[str]]:
            return path.read_bytes(), os.stat(str(path)).st_mtime_ns, os.listdir(str(path.parent))
        before = state()
        self.generate_inside()
        self.assertEqual(state(), before)
        self.assertEqual(len(self.server.requests), 1)  # nobody was asked for another token

    def test_settings_name_the_file_and_mask_the_token(self) -> None:
        path = self.sign_in()
        result = self.run_inside("config", "--show", "--api", "codex")
        self.assertEqual(result.exit_code, 0, result.stderr)
        self.assertIn(str(path), result.stdout)
        self.assert_secret(result.stdout + result.stderr)


class CodexTokenStaysWithItsHostTest(CodexCase):
    """The token goes to chatgpt.com or stays on this machine."""

    def test_other_hosts(self) -> None:
        self.sign_in()
        for url in ("https://relay.invalid/v1", "https://api.openai.com/v1", "https://chatgpt.com.invalid/backend-api",
                    "https://evil-chatgpt.com", "https://x.chatgpt.com", "https://chatgpt.com:8443/backend-api/codex",
                    "https://chatgpt.com@relay.invalid", "https://chatgpt.com.", "http://chatgpt.com/backend-api"):
            for more in ([], ["--allow-http"]):
                with self.subTest(url, more=more), \
                        mock.patch.object(program, "start_curl", side_effect=AssertionError("it would be sent")):
                    result = self.run_inside("generate", "a fox", "--json", "--api", "codex", "--base-url", url, *more)
                    self.assertIn(result.exit_code, (USAGE, SETUP), result.stderr)
                    self.assertEqual(result.json["error"]["billed"], "no")
                    self.assert_secret(result.stdout + result.stderr)

    def test_other_host_in_the_config(self) -> None:
        self.sign_in()
        self.write_config({"api": "codex", "base_url": "https://relay.invalid/v1", "api_key": "file-key"})
        error = self.check_failure(self.run_inside("generate", "a fox", "--json"), SETUP, "key")
        self.assertIn("chatgpt.com", error["message"])

    def test_default_address(self) -> None:
        self.sign_in()
        settings = self.load_settings({"api": "codex"})
        key = program.choose_key(settings)
        self.assertEqual((key.host, key.value), ("chatgpt.com", self.token))
        upload = program.Upload("/a.png", program.Picture("png", 64, 64), 100)
        for command, images, end in (("generate", (), "generations"), ("edit", (upload,), "edits")):
            job = program.Job(command, "gpt-image-2", "a fox", images, None, {}, 1,
                              program.Target("/out", "a", ".png", False))
            request = next(program.codex(job, settings, key, "token"))
            self.assertEqual((request.method, request.url),
                             ("POST", f"https://chatgpt.com/backend-api/codex/images/{end}"))

    def test_a_redirect_is_not_followed(self) -> None:
        self.sign_in()
        self.server.plan(Answer(status=302, body=b"", headers=(("location", self.server.origin + "/elsewhere"),)))
        self.check_failure(self.generate_inside(), NO_ANSWER, "redirect")
        self.assertEqual(len(self.server.requests), 1)

    def test_result_behind_a_url_is_fetched_without_the_token(self) -> None:
        self.sign_in()
        self.server.plan(Answer(as_url=True))
        self.assertEqual(self.generate_inside().exit_code, 0)
        fetched = [request for request in self.server.requests if request.path.startswith("/files/")]
        secrets = [(request.header("Authorization"), request.header("ChatGPT-Account-ID")) for request in fetched]
        self.assertEqual(secrets, [("", "")])


class CodexRequestTest(CodexCase):
    """What is sent: plain JSON with the three headers."""

    def test_generate(self) -> None:
        self.sign_in()
        result = self.generate_inside("--size", "1536x1024", "--quality", "high", "--background", "opaque", "-o",
                                      "fox.png")
        self.assertEqual(result.exit_code, 0, result.stderr)
        post = self.only_post()
        self.assertEqual(post.path, "/v1/images/generations")
        self.assertEqual(post.fields, {"model": "gpt-image-2", "prompt": "a fox", "size": "1536x1024",
                                       "quality": "high", "background": "opaque"})
        self.assertEqual(result.json["saved"][0]["width"], 1536)

    def test_nothing_that_was_not_asked_for(self) -> None:
        self.sign_in()
        self.generate_inside()
        self.assertEqual(self.only_post().fields, {"model": "gpt-image-2", "prompt": "a fox"})

    def test_edit(self) -> None:
        self.sign_in()
        image, other, mask = self.file("a b;.png", PNG), self.file("b.png", draw_jpeg(32, 32)), mask_png(64, 64)
        result = self.change(image, "a hat", "--image", other, "--mask", self.file("mask.png", mask),
                             "--size", "1024x1024", "--quality", "low", "--background", "auto")
        self.assertEqual(result.exit_code, 0, result.stderr)
        post = self.only_post()
        self.assertEqual((post.path, post.header("Content-Type")), ("/v1/images/edits", "application/json"))
        rest = {name: value for name, value in post.fields.items() if name not in ("images", "mask")}
        self.assertEqual(rest, {"model": "gpt-image-2", "prompt": "a hat", "size": "1024x1024", "quality": "low"})
        self.assertEqual([self.decode(item) for item in (*post.fields["images"], post.fields["mask"])],
                         [("image/png", PNG), ("image/jpeg", draw_jpeg(32, 32)), ("image/png", mask)])

    def decode(self, item: dict[str, str]) -> tuple[str, bytes]:
        self.assertEqual(list(item), ["image_url"])
        kind, data = item["image_url"][len("data:"):].split(";base64,")
        return kind, base64.b64decode(data, validate=True)

    def test_large_edit(self) -> None:
        self.sign_in()
        data = draw_png(64, 64, padding=2_000_000)
        self.assertEqual(self.change(self.file("a.png", data), "a hat").exit_code, 0)
        self.assertEqual(self.decode(self.only_post().fields["images"][0])[1], data)

    def test_aspect_ratio(self) -> None:
        self.sign_in()
        self.assertEqual(self.generate_inside("--aspect-ratio", "16:9", "--resolution", "4k").exit_code, 0)
        self.assertEqual(self.only_post().fields["size"], "3840x2160")

    def headers(self) -> Recorded:
        self.server.reset()
        self.forget()
        self.assertEqual(self.generate_inside().exit_code, 0)
        return self.only_post()

    def test_headers(self) -> None:
        self.sign_in()
        post = self.headers()
        self.assertEqual([post.header(name) for name in ("Authorization", "ChatGPT-Account-ID", "Content-Type")],
                         [f"Bearer {self.token}", "account-1", "application/json"])
        self.assertRegex(post.header("originator"), r"gpt.image")
        self.assertEqual([name for name, _ in post.headers if name.lower() == "cookie"], [])

    def test_account_from_the_claim(self) -> None:
        claim = {"chatgpt_account_id": "account-2"}
        self.token = self.server.key = fresh_token(**{"https://api.openai.com/auth": claim})
        self.sign_in({"access_token": self.token})
        self.assertEqual(self.headers().header("ChatGPT-Account-ID"), "account-2")
        self.sign_in({"access_token": self.token, "account_id": "account-3"})
        self.assertEqual(self.headers().header("ChatGPT-Account-ID"), "account-3")

    def test_without_an_account(self) -> None:
        for claim in ({}, None, [], "x", {"chatgpt_account_id": None}):
            with self.subTest(claim):
                self.token = self.server.key = fresh_token(**{"https://api.openai.com/auth": claim})
                self.sign_in({"access_token": self.token})
                self.assertNotIn("chatgpt-account-id", [name.lower() for name, _ in self.headers().headers])

    def test_human_form(self) -> None:
        self.sign_in()
        result = self.run_program("generate", "a fox", *self.access(), "-o", "fox.png")
        self.assertEqual(self.saved_file(result), self.work / "fox.png")

    def test_killed_command_is_collected(self) -> None:
        self.sign_in()
        self.server.plan(Answer(delay=0.7))
        self.kill_at_request(self.start_program("generate", "a fox", *self.access(), "-o", "fox.png"))
        self.token = fresh_token(sub="renewed meanwhile")
        self.sign_in()
        result = self.run_program("generate", "a fox", *self.access(), "-o", "fox.png")
        self.saved_file(result)
        self.assertEqual(len(self.server.posts), 1)


class CodexErrorsTest(CodexCase):
    """The errors of this route."""

    def fails(self, answer: Answer, exit_code: int, kind: str, billed: str = "no") -> dict[str, Any]:
        self.sign_in()
        self.server.reset()
        self.server.plan(answer)
        error = self.check_failure(self.generate_inside(), exit_code, kind, billed)
        self.assertEqual(len(self.server.posts), 1)
        self.assertTrue(error["hint"], error)
        return error

    def answer(self, status: int, content: Any, **more: Any) -> Answer:
        return Answer(status=status, body=json.dumps(content).encode(), check=False, **more)

    def test_detail(self) -> None:
        for status, exit_code, kind in ((400, REFUSED, "refused"), (422, REFUSED, "refused"), (403, SETUP, "forbidden"),
                                        (404, REFUSED, "not_found")):
            with self.subTest(status):
                answer = self.answer(status, {"detail": "Unsupported parameter: temperature"})
                error = self.fails(answer, exit_code, kind)
                self.assertIn("Unsupported parameter: temperature", error["message"])

    def test_detail_that_is_no_text(self) -> None:
        for detail in ([{"msg": "field required", "loc": ["body"]}], {"message": "field required"}):
            with self.subTest(detail):
                error = self.fails(self.answer(422, {"detail": detail}), REFUSED, "refused")
                self.assertIn("field required", error["message"])

    def test_detail_after_a_server_fault(self) -> None:
        error = self.fails(self.answer(500, {"detail": "no such luck"}), NO_ANSWER, "server", "maybe")
        self.assertIn("no such luck", error["message"])

    def test_error_object(self) -> None:
        error = self.fails(self.answer(400, {"error": {"message": "Tool choice not found"}}), REFUSED, "refused")
        self.assertIn("Tool choice", error["message"])

    def test_cloudflare(self) -> None:
        error = self.fails(Answer(status=403, body=CLOUDFLARE, content_type="text/html; charset=UTF-8", check=False,
                                  headers=(("cf-mitigated", "challenge"),)), SETUP, "blocked")
        self.assertIn("another network", error["hint"])
        self.assertIn("network", error["hint"])
        self.assertIn("Just a moment", error["message"])

    def test_refused_sign_in(self) -> None:
        expired = {"error": {"message": "token expired", "code": "token_expired"}}
        for content in ({"detail": "Unauthorized"}, expired, {}):
            with self.subTest(content):
                error = self.fails(self.answer(401, content), SETUP, "key")
                self.assertIn("run codex", error["hint"].lower())

    def test_usage_limit(self) -> None:
        self.sign_in()
        soon = (("retry-after-ms", "20"),)
        self.server.plan(*[self.answer(429, {"detail": "You have hit your usage limit"}, headers=soon)] * 9)
        error = self.check_failure(self.generate_inside(), LIMITED)
        self.assertIn("usage limit", error["message"])

    def test_echoed_token_is_not_shown(self) -> None:
        self.sign_in()
        self.server.plan(self.answer(400, {"detail": f"bad token {self.token} of account"}))
        error = self.check_failure(self.generate_inside(), REFUSED)
        self.assertIn("bad token", error["message"])

    def test_no_image_is_no_success(self) -> None:
        for content in ({"id": "t-1", "status": "pending"}, {"data": []}, {}):
            with self.subTest(content):
                self.sign_in()
                self.server.reset()
                self.server.plan(self.answer(200, content))
                self.check_failure(self.generate_inside(), NO_ANSWER, billed="maybe")


class CodexTokenIsNowhereTest(CodexCase, WatchedCase):
    """The token is in no argument, environment, file or output while a request waits."""

    def test_token_is_nowhere(self) -> None:
        path = self.sign_in()
        for command in (("generate", "a fox"), ("edit", self.file("in.png", PNG), "a hat")):
            with self.fresh(command[0]):
                held = threading.Event()
                self.server.plan(Answer(event=held))
                self.secret = self.token
                self.watch_run([*command, *self.access(), "-v"], {"COPY_OF_IT": f"x {self.token}"}, held,
                               lambda: self.server.posts, Route("auth.json", spared=[str(path)]))
