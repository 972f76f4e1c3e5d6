"""RunAPI: settings that choose it, both dialects, tasks, uploads, errors; one task per image whatever is killed."""
from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
import urllib.error
import urllib.request
from os import environ
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from api_server import draw_jpeg, draw_png, draw_webp
from runapi_server import RATIOS, Order, Received, RunApiServer, Task
from support import (
    KEY,
    LIMITED,
    NO_ANSWER,
    PROGRAM,
    REFUSED,
    SETUP,
    UNSAVED,
    USAGE,
    ProgramCase,
    Result,
    World,
    mask_png,
    program,
)
from test_kill import KillCase
from test_secrets import Route, WatchedCase, helpers

PAGE, SDK = "/v1/text_to_image", "/api/v1/gpt_image_2/text_to_image"
LONG, SHORT = "gpt-image-2-text-to-image", "gpt-image-2"
HOME_URL = "https://runapi.ai"
OTHER = "https://relay.invalid"
SOON = (("retry-after-ms", "20"),)
PNG = draw_png(64, 64)


def order(status: int, text: str = "", **more: Any) -> Order:
    """An error on order, with the service's body and a short pause."""
    body = json.dumps({"error": text}).encode() if text else None
    return Order(status=status, body=body, headers=SOON, **more)


def keys(requests: Sequence[Received]) -> list[str]:
    return [request.header("Idempotency-Key") for request in requests]


def paths(requests: Sequence[Received]) -> list[str]:
    return [request.path for request in requests]


class OnRunApi(ProgramCase):
    """A loopback RunAPI in the place of the Images API."""
    server: RunApiServer

    @classmethod
    def make_server(cls) -> RunApiServer:
        return RunApiServer(KEY)


class RunApiCase(OnRunApi):
    """The program against a loopback RunAPI."""

    def access(self) -> list[str]:
        return ["--api", "runapi", "--base-url", self.server.url]

    def make(self, *arguments: str, reset: bool = True, **switches: Any) -> Result:
        """Set switches of a fresh server and run generate inside this process, with a JSON result."""
        if reset:
            self.server.reset()
            self.forget()
        for name, value in switches.items():
            setattr(self.server, name, value)
        return self.generate_inside("a fox", "-o", str(self.work / "out.png"), "--json", "--overwrite", *arguments)

    def check_success(self, result: Result, tasks: int = 1) -> None:
        self.assertEqual((result.exit_code, len(self.server.tasks), len(result.json["saved"])), (0, tasks, tasks),
                         result.stdout + result.stderr)

    def check_failure(self, result: Result, exit_code: int, billed: str, kind: str = "") -> dict[str, Any]:
        error: dict[str, Any] = result.json.get("error", {})
        self.assertEqual((result.exit_code, error.get("billed")), (exit_code, billed), result.stdout + result.stderr)
        if kind:
            self.assertEqual(error["kind"], kind)
        self.assertTrue(error["hint"], error)
        return error


# ---- The server itself -------------------------------------------------------------------------------------

class LoopbackRunApiTest(RunApiCase):
    """The server refuses what the service refuses: without that, nothing below would prove anything."""

    def send(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a plain request."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode() if content is not None else None
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        kept = {name: value for name, value in given.items() if value}
        request = urllib.request.Request(self.server.url + path, data, kept, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def test_creates(self) -> None:
        good = {"model": LONG, "prompt": "a fox"}
        edit = {"model": "gpt-image-2-image-to-image", "prompt": "a", "source_image_urls": ["https://x.invalid/a.png"]}
        for path, content, status in (
                (PAGE, good, 200), (PAGE, {**good, "model": SHORT}, 422), (SDK, good, 422),
                (SDK, {**good, "model": SHORT}, 200), (PAGE, {**good, "quality": "high"}, 422),
                (PAGE, {**good, "source_image_urls": []}, 422),
                (PAGE, {**good, "output_resolution": "2k"}, 422), (PAGE, {**good, "aspect_ratio": "7:5"}, 422),
                (PAGE, {**good, "output_resolution": "4k", "aspect_ratio": "1:1"}, 422), ("/v1/edit_image", edit, 200),
                ("/v1/edit_image", {**edit, "source_image_urls": ["data:image/png;base64,AAAA"]}, 422),
                ("/v1/edit_image", {**edit, "source_image_urls": []}, 422), ("/v1/make_image", good, 404)):
            with self.subTest(path, content=content):
                self.assertEqual(self.send("POST", path, content)[0], status)

    def test_keys(self) -> None:
        good = {"model": LONG, "prompt": "a fox"}
        for given in ("", "Bearer wrong-key", KEY):
            self.assertEqual(self.send("POST", PAGE, good, Authorization=given)[0], 401)
        name = self.send("POST", PAGE, good)[1]["task_id"]
        self.assertEqual(self.send("GET", f"{PAGE}/{name}", Authorization="")[0], 401)
        self.assertEqual(self.send("GET", f"{SDK}/{name}")[0], 404)
        self.assertEqual(self.send("GET", f"/files/{name}.png")[0], 400)  # a key where none belongs

    def test_uploads(self) -> None:
        digest = base64.b64encode(hashlib.md5(PNG).digest()).decode()
        fields = {"filename": "a.png", "byte_size": len(PNG), "checksum": digest, "content_type": "image/png"}
        prepared = self.send("POST", "/api/v1/files/prepare", fields)[1]
        path, headers = prepared["upload_url"][len(self.server.url):], {**prepared["headers"], "Authorization": ""}
        confirm = {"signed_id": prepared["signed_id"]}
        for name, data, changed, status in (
                ("a key", PNG, {"Authorization": f"Bearer {KEY}"}, 400), ("other bytes", PNG[:-1] + b"x", {}, 400),
                ("another type", PNG, {"Content-Type": "image/jpeg"}, 400),
                ("a header more", PNG, {"X-More": "1"}, 400), ("a header less", PNG, {"X-Storage-Pass": ""}, 400),
                ("half", PNG[:9], {}, 400)):
            with self.subTest(name):
                self.assertEqual(self.send("PUT", path, data, **{**headers, **changed})[0], status)
        self.assertEqual(self.send("POST", "/api/v1/files/confirm", confirm)[0], 422)
        self.assertEqual(self.send("PUT", path, PNG, **headers)[0], 200)
        self.assertEqual(self.send("PUT", path, PNG, **headers)[0], 409)
        self.assertEqual(self.send("POST", "/api/v1/files/confirm", confirm)[0], 200)


# ---- Settings ----------------------------------------------------------------------------------------------

class RunApiIsChosenTest(RunApiCase):
    """Who chooses RunAPI, and where its key may go."""

    def test_default_is_not_runapi(self) -> None:
        settings = self.load_settings({}, {"RUNAPI_API_KEY": KEY, "RUNAPI_BASE_URL": OTHER})
        self.assertEqual((settings.api.value, settings.base_url.value, settings.keys),
                         ("openai", "https://api.openai.com/v1", ()))

    def test_by_flag_and_by_config(self) -> None:
        settings = self.load_settings({"api": "runapi"})
        self.assertEqual((settings.api, settings.base_url.value), (("runapi", "--api"), HOME_URL))
        path = self.write_config({"api": "runapi"})
        settings = self.load_settings({})
        self.assertEqual((settings.api, settings.base_url.value), (("runapi", path), HOME_URL))

    def test_by_host(self) -> None:
        for url, api in ((HOME_URL, "runapi"), ("https://runapi.ai/v1", "runapi"), ("https://RunAPI.ai", "runapi"),
                         ("https://eu.runapi.ai/api/v1", "runapi"), ("https://runapi.ai:8443", "runapi"),
                         ("https://runapi.ai.invalid", "openai"), ("https://notrunapi.ai", "openai"),
                         ("https://relay.invalid/runapi.ai", "openai")):
            for flags, env, config in (({"base_url": url}, {}, {}), ({}, {"GPT_IMAGE2_BASE_URL": url}, {}),
                                       ({}, {}, {"base_url": url})):
                with self.subTest(url, flags=flags, env=env):
                    self.write_config(config)
                    self.assertEqual(self.load_settings(flags, env).api.value, api)

    def test_flag_beats_the_host(self) -> None:
        self.assertEqual(self.load_settings({"api": "openai", "base_url": "https://runapi.ai/v1"}).api.value, "openai")

    def test_base_url_from_its_own_variable(self) -> None:
        env: dict[str, str | None] = {"RUNAPI_BASE_URL": OTHER, "OPENAI_BASE_URL": "https://openai.invalid/v1"}
        self.assertEqual(self.load_settings({"api": "runapi"}, env).base_url, (OTHER, "$RUNAPI_BASE_URL"))
        self.assertEqual(self.load_settings({"api": "runapi", "base_url": "https://b.invalid"}, env).base_url.value,
                         "https://b.invalid")

    def test_base_url_of_another_service_in_the_config_is_left_out(self) -> None:
        self.write_config({"base_url": "https://openai.invalid/v1", "api_key": "fake-key"})
        self.assertEqual(self.load_settings({"api": "runapi"}).base_url.value, HOME_URL)

    def test_suffixes_of_the_base_url_are_stripped(self) -> None:
        for suffix in ("", "/", "/v1", "/v1/", "/api/v1", "/api/v1/"):
            with self.subTest(suffix):
                result = self.make("--base-url", self.server.url + suffix)
                self.check_success(result)
                self.assertEqual(paths(self.server.creates), [PAGE])


class KeyRow(NamedTuple):
    """Where a key stands, where the request goes, and the key that may go there ("" for none)."""
    name: str
    key: str
    env: dict[str, str | None] = {}
    config: dict[str, Any] = {}
    tool: dict[str, Any] = {}
    flags: dict[str, Any] = {"api": "runapi"}


THERE = {"api": "runapi", "base_url": OTHER}
KEY_ROWS = (  # name, the key that goes there, variables, config
    KeyRow("variable", "k-env", {"RUNAPI_API_KEY": "k-env"}),
    KeyRow("variable, by host", "k-env", {"RUNAPI_API_KEY": "k-env"}, flags={"base_url": "https://runapi.ai/v1"}),
    KeyRow("variable, another host", "", {"RUNAPI_API_KEY": "k-env"}, flags=THERE),
    KeyRow("variable, a neighbour", "", {"RUNAPI_API_KEY": "k-env"}, flags={"base_url": "https://x.runapi.ai"}),
    KeyRow("variable, another port", "", {"RUNAPI_API_KEY": "k-env"}, flags={"base_url": "https://runapi.ai:444"}),
    KeyRow("variable beside its host", "k-env", {"RUNAPI_API_KEY": "k-env", "RUNAPI_BASE_URL": OTHER}),
    KeyRow("variable beside a host, away from it", "", {"RUNAPI_API_KEY": "k-env", "RUNAPI_BASE_URL": OTHER},
           flags={"api": "runapi", "base_url": HOME_URL}),
    KeyRow("not for openai", "", {"RUNAPI_API_KEY": "k-env"}, flags={"api": "openai"}),
    KeyRow("not openai's", "", {"OPENAI_API_KEY": "k-openai"}),
    KeyRow("ours goes anywhere", "k-ours", {"GPT_IMAGE2_API_KEY": "k-ours"}, flags=THERE),
    KeyRow("config", "k-file", config={"base_url": HOME_URL, "api_key": "k-file"}, flags={}),
    KeyRow("config with api only", "k-file", config={"api": "runapi", "api_key": "k-file"}, flags={}),
    KeyRow("config with api and variable's name", "k-env", {"MY_KEY": "k-env"},
           {"api": "runapi", "api_key_env": "MY_KEY"}, flags={}),
    KeyRow("config of openai", "", config={"api_key": "k-file"}),
    KeyRow("config of a relay", "", config={"base_url": OTHER, "api_key": "k-file"}),
    KeyRow("official tool", "k-tool", tool={"api_key": "k-tool"}),
    KeyRow("official tool, other spelling", "k-tool", tool={"apiKey": "k-tool", "baseUrl": HOME_URL}),
    KeyRow("official tool, another host", "", tool={"api_key": "k-tool"}, flags=THERE),
    KeyRow("official tool of another host", "", tool={"api_key": "k-tool", "base_url": OTHER}),
    KeyRow("official tool at its own host", "k-tool", tool={"api_key": "k-tool", "baseUrl": OTHER}, flags=THERE),
    KeyRow("official tool is the last", "k-env", {"RUNAPI_API_KEY": "k-env"}, tool={"api_key": "k-tool"}),
    KeyRow("official tool not for openai", "", tool={"api_key": "k-tool"}, flags={"api": "openai"}),
    KeyRow("official tool without a key", "", tool={"created_at": "2026"}),
)


class RunApiKeyTest(RunApiCase):

    def chosen(self, row: KeyRow) -> str:
        """The key that would be sent, empty when the program refuses."""
        try:
            return str(program.choose_key(self.load_settings(row.flags, row.env)).value)
        except program.Failure as failure:
            self.assertEqual((failure.exit_code, failure.kind), (SETUP, "key"))
            return ""

    def test_which_key_goes_where(self) -> None:
        tool = self.home / ".config" / "runapi" / "config.json"
        for row in KEY_ROWS:
            with self.subTest(row.name):
                self.write_config(row.config)
                self.write_config(row.tool, path=tool)
                self.assertEqual(self.chosen(row), row.key)

    def test_official_tool_below_xdg_config_home(self) -> None:
        folder = self.root / "xdg"
        self.write_config({"api_key": "k-tool"}, path=folder / "runapi" / "config.json")
        self.assertEqual(self.chosen(KeyRow("", "", {"XDG_CONFIG_HOME": str(folder)})), "k-tool")

    def test_broken_file_of_the_official_tool(self) -> None:
        path = self.write_config("{oops", path=self.home / ".config" / "runapi" / "config.json")
        result = self.run_inside("generate", "a fox", "--api", "runapi", "--json")
        self.assertEqual(result.exit_code, SETUP, result.stderr)
        self.assertIn(path, result.json["error"]["message"])

    def test_broken_file_of_the_official_tool_does_not_hide_a_good_key(self) -> None:
        self.write_config("{oops", path=self.home / ".config" / "runapi" / "config.json")
        result = self.generate_inside("a fox", "--json", env={"GPT_IMAGE2_API_KEY": None, "RUNAPI_API_KEY": KEY})
        self.check_success(result)

    def test_each_key_is_really_sent(self) -> None:
        tool = self.home / ".config" / "runapi" / "config.json"
        for name, env, content in (("variable", {"RUNAPI_API_KEY": KEY}, {}), ("tool", {}, {"api_key": KEY})):
            with self.fresh(name):
                self.write_config(content, path=tool)
                result = self.generate_inside("a fox", "--json", env={"GPT_IMAGE2_API_KEY": None, **env})
                self.check_success(result)

    def test_no_key_at_all(self) -> None:
        result = self.run_inside("generate", "a fox", "--api", "runapi", "--json")
        error = self.check_failure(result, SETUP, "no", "key")
        self.assertIn("runapi.ai", error["message"])

    def test_refused_key(self) -> None:
        result = self.generate_inside("a fox", "--json", env={"GPT_IMAGE2_API_KEY": "wrong-key"})
        self.check_failure(result, SETUP, "no", "key")
        self.assertEqual(len(self.server.creates), 1)

    def test_check_proves_the_key(self) -> None:
        for given, exit_code in ((KEY, 0), ("wrong-key", SETUP)):
            with self.subTest(given):
                result = self.run_inside("config", "--check", *self.access(), env={"RUNAPI_API_KEY": given})
                self.assertEqual(result.exit_code, exit_code, result.stdout + result.stderr)
        self.assertEqual(self.server.creates, [])


class RunApiKeyIsNowhereTest(RunApiCase, WatchedCase):
    """The key is in no argument, environment or file while a task is created, looked at and fetched."""

    def test_key_is_nowhere(self) -> None:
        for kind in ("prepare", "put", "create", "poll", "file"):
            with self.fresh(kind):
                held = threading.Event()
                self.server.plan(kind, Order(event=held))
                self.watch_run(["edit", self.file("in.png", PNG), f"a fox {kind}", *self.access(), "-v"],
                               {"RUNAPI_API_KEY": KEY}, held, lambda: self.server.of_kind(kind), Route("variable"))


# ---- Creating a task ---------------------------------------------------------------------------------------

class CreateCase(RunApiCase):

    def sent(self) -> list[tuple[str, str]]:
        """Path and model of every create."""
        return [(create.path, create.fields["model"]) for create in self.server.creates]


class RunApiDialectsTest(CreateCase):
    """Path and model name: the other one is tried where nothing can have been bought, and nowhere else."""

    def test_page_dialect_first(self) -> None:
        result = self.make()
        self.check_success(result)
        self.assertEqual(self.sent(), [(PAGE, LONG)])
        self.assertEqual(self.server.creates[0].fields, {"model": LONG, "prompt": "a fox"})
        self.assertEqual({look.path for look in self.server.of_kind("poll")}, {f"{PAGE}/tsk_001"})

    def test_sdk_dialect_when_the_page_is_not_there(self) -> None:
        for absent in (404, 405):
            with self.subTest(absent):
                self.check_success(self.make(dialects={"sdk"}, absent=absent))
                self.assertEqual(self.sent(), [(PAGE, LONG), (SDK, SHORT)])
                self.assertEqual(len(set(keys(self.server.creates))), 2)

    def test_edit_in_both_dialects(self) -> None:
        image = self.file("in.png", PNG)
        for dialects, expected in (({"page"}, [("/v1/edit_image", "gpt-image-2-image-to-image")]),
                                   ({"sdk"}, [("/v1/edit_image", "gpt-image-2-image-to-image"),
                                              ("/api/v1/gpt_image_2/edit_image", SHORT)])):
            with self.fresh(dialects=dialects):
                self.server.dialects = dialects
                result = self.run_inside("edit", image, "a fox", *self.access(), "--json", env={"RUNAPI_API_KEY": KEY})
                self.check_success(result)
                self.assertEqual(self.sent(), expected)
                self.assertEqual(len(self.server.uploads), 1)

    def test_neither_is_there(self) -> None:
        for absent in (404, 405):
            with self.subTest(absent):
                self.check_failure(self.make(dialects=set(), absent=absent), REFUSED, "no")
                self.assertEqual(self.sent(), [(PAGE, LONG), (SDK, SHORT)])

    def test_dialect_is_remembered(self) -> None:
        self.check_success(self.make("--n", "3", dialects={"sdk"}), 3)
        self.assertEqual(paths(self.server.creates), [PAGE, SDK, SDK, SDK])

    def test_a_dialect_that_goes_away_is_left_once(self) -> None:
        self.server.reset()
        self.server.plan("create", Order(), order(404))
        result = self.make("--n", "2", reset=False)
        self.check_success(result, 2)
        self.assertEqual(paths(self.server.creates), [PAGE, PAGE, SDK])

    def test_never_after_anything_that_may_have_made_a_task(self) -> None:
        nothing = Order(body=b"{}")
        no_json = Order(body=b"<html><title>hello</title>", content_type="text/html")
        for name, planned in (("500", order(500)), ("502", order(502)), ("503", order(503)), ("504", order(504)),
                              ("no answer", Order(drop="silent")), ("half an answer", Order(drop="half")),
                              ("200 without a task", nothing), ("a page", no_json), ("201", order(201)),
                              ("302", Order(status=302, headers=(("Location", "/elsewhere"),)))):
            with self.fresh(name):
                self.server.plan("create", planned)
                result = self.make(reset=False)
                billed = "no" if name == "302" else "maybe"
                self.check_failure(result, NO_ANSWER, billed)
                self.assertEqual(paths(self.server.creates), [PAGE])
                self.assertEqual(self.journal(), [])

    def test_never_after_a_timeout(self) -> None:
        self.server.plan("create", Order(delay=10))
        result = self.make("--timeout", "1", reset=False)
        self.check_failure(result, NO_ANSWER, "maybe", "timeout")
        self.assertEqual(paths(self.server.creates), [PAGE])

    def test_never_after_another_refusal(self) -> None:
        for status, exit_code in ((401, SETUP), (402, LIMITED), (403, SETUP), (409, REFUSED), (413, REFUSED),
                                  (415, REFUSED), (422, REFUSED), (400, REFUSED)):
            with self.fresh(status):
                self.server.plan("create", order(status, "no, thank you"))
                self.check_failure(self.make(reset=False), exit_code, "no")
                self.assertEqual(paths(self.server.creates), [PAGE])


class RunApiModelNamesTest(CreateCase):
    """The model's other name, once, when a refusal names the model."""

    def test_other_name_on_the_page(self) -> None:
        self.check_success(self.make(models={"page": ("short",), "sdk": ("short",)}))
        self.assertEqual(self.sent(), [(PAGE, LONG), (PAGE, SHORT)])
        self.assertEqual(len(set(keys(self.server.creates))), 2)

    def test_other_name_in_the_sdk_dialect(self) -> None:
        self.check_success(self.make(dialects={"sdk"}, models={"page": (), "sdk": ("long",)}))
        self.assertEqual(self.sent(), [(PAGE, LONG), (SDK, SHORT), (SDK, LONG)])
        self.assertEqual(len(set(keys(self.server.creates))), 3)

    def test_other_name_after_a_400(self) -> None:
        self.server.plan("create", order(400, "Model not found: gpt-image-2-text-to-image"))
        self.server.models = {"page": ("short",), "sdk": ()}
        self.check_success(self.make(reset=False))
        self.assertEqual(self.sent(), [(PAGE, LONG), (PAGE, SHORT)])

    def test_only_once(self) -> None:
        self.check_failure(self.make(models={"page": (), "sdk": ("short",)}), REFUSED, "no")
        self.assertEqual(self.sent(), [(PAGE, LONG), (PAGE, SHORT)])

    def test_not_when_the_refusal_names_something_else(self) -> None:
        for status in (400, 422):
            with self.fresh(status):
                self.server.plan("create", order(status, "prompt is too long"))
                self.check_failure(self.make(reset=False), REFUSED, "no")
                self.assertEqual(self.sent(), [(PAGE, LONG)])

    def test_other_name_is_remembered(self) -> None:
        self.check_success(self.make("--n", "2", models={"page": ("short",), "sdk": ()}), 2)
        self.assertEqual([model for _, model in self.sent()], [LONG, SHORT, SHORT])

    def test_a_name_that_goes_away(self) -> None:
        self.server.models = {"page": ("long", "short"), "sdk": ()}
        self.server.plan("create", Order(), order(422, "model is not available"))
        self.check_success(self.make("--n", "2", reset=False), 2)
        self.assertEqual([model for _, model in self.sent()], [LONG, LONG, SHORT])


class RunApiSomeOfManyTest(RunApiCase):
    """Several tasks, and not all of them came about."""

    def test_rate_limit_for_the_second(self) -> None:
        self.server.dialects = {"sdk"}
        self.server.plan("create", Order(), Order(), *[order(429)] * 9)
        first = self.make("--n", "2", reset=False)
        self.assertEqual((first.exit_code, len(first.json["saved"]), len(self.journal())), (5, 1, 1), first.stderr)
        self.assertEqual((first.json["error"]["billed"], first.json["error"]["retryable"]), ("yes", True))
        self.server._plans.clear()
        again = self.make("--n", "2", reset=False)
        self.assertEqual((again.exit_code, len(again.json["saved"]), len(self.server.tasks)), (0, 2, 2), again.stderr)


class RunApiIdempotencyTest(RunApiCase):
    """A key on every create: the same for a repeat, another for a changed attempt, another image, another run."""

    def test_on_every_create(self) -> None:
        self.check_success(self.make("--n", "3", dialects={"sdk"}), 3)
        found = keys(self.server.creates)
        self.assertEqual((len(found), len(set(found))), (4, 4))
        for key in found:
            self.assertRegex(key, r"^[\x21-\x7e]{8,512}$")
            self.assertNotIn(KEY, key)

    def test_another_run_has_another_key(self) -> None:
        first = self.make()
        again, fresh = self.make(reset=False), self.make("--fresh", reset=False)
        self.assertEqual([result.json["source"] for result in (first, again, fresh)],
                         ["bought", "made_before", "bought"])
        self.assertEqual((len(set(keys(self.server.creates))), len(self.server.tasks)), (2, 2))

    def test_lost_answer_is_asked_for_again(self) -> None:
        for name, planned in (("dropped", Order(drop="silent")), ("half", Order(drop="half")),
                              ("unread", Order(drop="unread")), ("500", order(500)), ("502", order(502)),
                              ("503", order(503)), ("504", order(504))):
            with self.fresh(name):
                self.server.dialects = {"sdk"}
                self.server.plan("create", Order(), planned)  # the first one meets the page that is not there
                self.check_success(self.make(reset=False))
                creates = self.server.creates
                self.assertEqual(paths(creates), [PAGE, SDK, SDK])
                self.assertEqual((keys(creates)[1], creates[1].body), (keys(creates)[2], creates[2].body))

    def test_not_for_ever(self) -> None:
        self.server.dialects = {"sdk"}
        self.server.plan("create", Order(), *[order(503)] * 9)
        self.check_failure(self.make(reset=False), NO_ANSWER, "maybe")
        self.assertEqual(paths(self.server.creates), [PAGE, SDK, SDK, SDK])

    def test_rate_limit_is_repeated_with_the_same_key(self) -> None:
        for dialects in ({"page"}, {"sdk"}):
            with self.fresh(dialects=dialects):
                self.server.dialects = dialects
                self.server.plan("create", *([] if "page" in dialects else [Order()]), order(429), order(429))
                self.check_success(self.make(reset=False))
                self.assertEqual(len(set(keys(self.server.creates)[-3:])), 1)

    def test_conflict_is_told(self) -> None:
        self.server.plan("create", order(409, "Idempotency-Key was used with another body"))
        error = self.check_failure(self.make(reset=False), REFUSED, "no")
        self.assertIn("another body", error["message"])


# ---- Parameters --------------------------------------------------------------------------------------------

SENT = (  # options, what is sent besides model and prompt
    ((), {}),
    (("--aspect-ratio", "16:9"), {"aspect_ratio": "16:9"}),
    (("--aspect-ratio", "auto"), {"aspect_ratio": "auto"}),
    (("--resolution", "1k"), {"output_resolution": "1k"}),
    (("--aspect-ratio", "3:4", "--resolution", "2k"), {"aspect_ratio": "3:4", "output_resolution": "2k"}),
    (("--aspect-ratio", "9:21", "--resolution", "4k"), {"aspect_ratio": "9:21", "output_resolution": "4k"}),
    (("--aspect-ratio", "1:1", "--resolution", "2k"), {"aspect_ratio": "1:1", "output_resolution": "2k"}),
    (("--size", "auto"), {}),
    (("--size", "1024x1024"), {"aspect_ratio": "1:1", "output_resolution": "1k"}),
    (("--size", "square"), {"aspect_ratio": "1:1", "output_resolution": "1k"}),
    (("--size", "landscape"), {"aspect_ratio": "3:2", "output_resolution": "1k"}),
    (("--size", "portrait"), {"aspect_ratio": "2:3", "output_resolution": "1k"}),
    (("--size", "1536x1024"), {"aspect_ratio": "3:2", "output_resolution": "1k"}),
    (("--size", "2048x2048"), {"aspect_ratio": "1:1", "output_resolution": "2k"}),
    (("--size", "2048x1152"), {"aspect_ratio": "16:9", "output_resolution": "2k"}),
    (("--size", "3840x2160"), {"aspect_ratio": "16:9", "output_resolution": "4k"}),
    (("--size", "2160x3840"), {"aspect_ratio": "9:16", "output_resolution": "4k"}),
)
REFUSALS = (  # options, a word of the message or hint
    (("--quality", "high"), "--quality"), (("--quality", "bogus"), "--quality"), (("--format", "png"), "--format"),
    (("--format", "webp"), "--format"), (("--background", "transparent"), "--background"),
    (("--background", "auto"), "--background"), (("--compression", "50"), "--compression"),
    (("--moderation", "low"), "--moderation"), (("--stream",), "--stream"),
    (("--partial-images", "1"), "--partial-images"),
    (("--resolution", "2k"), "ratio"), (("--resolution", "4k"), "ratio"),
    (("--resolution", "2k", "--aspect-ratio", "auto"), "ratio"),
    (("--resolution", "4k", "--aspect-ratio", "1:1"), "2k"),
    (("--aspect-ratio", "7:5"), "16:9"), (("--aspect-ratio", "4:1"), "3:1"), (("--aspect-ratio", "wide"), "16:9"),
    (("--aspect-ratio", "16-9"), "16:9"), (("--aspect-ratio", ""), "--aspect-ratio"),
    (("--size", "1024x1024", "--aspect-ratio", "1:1"), "--size"),
    (("--size", "square", "--resolution", "1k"), "--size"),
    (("--size", "1920x1088"), "--aspect-ratio 16:9"), (("--size", "640x640"), "--aspect-ratio 1:1"),
    (("--size", "2880x2880"), "--aspect-ratio 1:1"), (("--size", "100x300"), "--aspect-ratio 1:3"),
    (("--size", "0x0"), "0x0"), (("--size", "huge"), "huge"), (("--resolution", "8k"), "8k"),
)


class RunApiParametersTest(RunApiCase):

    def test_what_is_sent(self) -> None:
        for options, expected in SENT:
            with self.subTest(options):
                self.check_success(self.make(*options))
                sent = dict(self.server.creates[0].fields)
                self.assertEqual({**sent, "model": "", "prompt": ""}, {"model": "", "prompt": "", **expected})

    def test_every_ratio(self) -> None:
        for ratio in RATIOS[1:]:
            with self.subTest(ratio):
                self.check_success(self.make("--aspect-ratio", ratio, "--resolution", "2k"))
                self.assertEqual(self.server.creates[0].fields["aspect_ratio"], ratio)

    def test_what_is_refused(self) -> None:
        for options, word in REFUSALS:
            with self.subTest(options):
                result = self.make(*options)
                error = result.json.get("error", {})
                self.assertEqual((result.exit_code, error.get("billed")), (USAGE, "no"), result.stderr)
                self.assertIn(word, error["message"] + error["hint"])
                self.assertEqual(self.server.requests, [])

    def test_what_a_refusal_names_is_accepted(self) -> None:
        for size in ("640x640", "1920x1088", "2880x2880", "4000x4000", "100x300", "1000x1400", "3000x3000", "3800x200"):
            with self.subTest(size):
                hint = self.make("--size", size).json["error"]["hint"]
                self.assertIn("--aspect-ratio", hint)
                words = hint.split("Use ")[1].split()
                self.check_success(self.make(*words))

    def test_refused_on_an_edit(self) -> None:
        image, mask = self.file("in.png", PNG), self.file("mask.png", mask_png(64, 64))
        for source in (image, "https://pictures.invalid/a.png"):
            for options in (("--mask", mask), ("--input-fidelity", "high")):
                with self.subTest(source, options=options):
                    result = self.run_inside("edit", source, "a fox", *self.access(), *options, "--json",
                                             env={"RUNAPI_API_KEY": KEY})
                    self.assertEqual(result.exit_code, USAGE, result.stderr)
                    self.assertIn(f"RunAPI does not support {options[0]}", result.json["error"]["message"])
        self.assertEqual(self.server.requests, [])

    def test_several_refused_options_in_one_line(self) -> None:
        message = self.make("--quality", "low", "--background", "opaque").json["error"]["message"]
        self.assertIn("--quality", message)
        self.assertIn("--background", message)

    def test_param_overrides_the_cross_rules(self) -> None:
        result = self.make("--param", "aspect_ratio=1:1", "--param", "output_resolution=4k")
        error = self.check_failure(result, REFUSED, "no", "refused")
        self.assertIn("output_resolution", error["message"])
        self.assertEqual(self.server.creates[0].fields["output_resolution"], "4k")

    def test_suffix_of_the_output_is_no_request(self) -> None:
        result = self.generate_inside("a fox", "-o", "fox.jpg", "--json")
        self.check_success(result)
        self.assertNotIn("output_format", self.server.creates[0].fields)
        self.assertEqual([Path(saved["path"]).name for saved in result.json["saved"]], ["fox.png"])


# ---- Tasks -------------------------------------------------------------------------------------------------

class RunApiTaskTest(RunApiCase):

    def test_saved_image_is_the_result(self) -> None:
        result = self.make()
        self.check_success(result)
        self.assertEqual((self.work / "out.png").read_bytes(), self.server.result(self.server.tasks[0]))
        self.assertEqual(self.journal(), [])

    def test_human_form(self) -> None:
        result = self.generate("a fox", "-o", "out.png")
        self.assertEqual(self.saved_file(result), self.work / "out.png")
        self.assertRegex(result.stdout, r"\AHTTP 200 in \d+\.\d s\nSaved: ")
        self.assertRegex(result.stderr, r"cost: [^\n]*\$0\.05")

    def test_n_tasks(self) -> None:
        result = self.make("--n", "3")
        self.check_success(result, 3)
        self.assertEqual([Path(saved["path"]).name for saved in result.json["saved"]],
                         ["out-1.png", "out-2.png", "out-3.png"])
        self.assertEqual(len({(self.work / f"out-{number}.png").read_bytes() for number in (1, 2, 3)}), 3)
        self.assertTrue(all("n" not in create.fields for create in self.server.creates))

    def test_cost_is_the_servers(self) -> None:
        for options, tasks, cost in (((), 1, 0.05), (("--n", "3"), 3, 0.15),
                                     (("--aspect-ratio", "3:2", "--resolution", "4k", "--n", "2"), 2, 0.24)):
            with self.subTest(options):
                result = self.make(*options)
                self.check_success(result, tasks)
                self.assertAlmostEqual(result.json["cost_usd"], cost)
                self.assertIn("cost", result.json["usage"])

    def test_download_carries_no_key(self) -> None:
        self.check_success(self.make("--n", "2"), 2)
        files = self.server.of_kind("file")
        self.assertEqual(len(files), 2)
        for request in files:
            self.assertEqual([request.header(name) for name in ("Authorization", "Idempotency-Key")], ["", ""])
            self.assertNotIn(KEY, str(request))

    def test_api_requests_carry_the_key(self) -> None:
        self.check_success(self.make())
        for request in self.server.of_kind("create", "poll"):
            self.assertEqual(request.header("Authorization"), f"Bearer {KEY}")

    def test_answers_in_other_shapes(self) -> None:
        def upper(content: dict[str, Any]) -> dict[str, Any]:
            return {**content, "status": content["status"].upper()}

        def inner(content: dict[str, Any]) -> dict[str, Any]:
            return {"data": content}

        def state(content: dict[str, Any]) -> dict[str, Any]:
            return {"state" if name == "status" else name: value for name, value in content.items()}

        def unknown(content: dict[str, Any]) -> dict[str, Any]:
            return {**content, "status": "warming_up"} if "images" not in content else content
        for shape in (upper, inner, state, unknown):
            for dialects in ({"page"}, {"sdk"}):
                with self.subTest(shape.__name__, dialects=dialects):
                    self.check_success(self.make("--timeout", "10", reshape=shape, dialects=dialects))

    def test_words_for_success(self) -> None:
        for word in ("completed", "success", "succeeded", "complete", "finished"):
            with self.subTest(word):
                self.check_success(self.make(done=word))

    def test_finished_at_once(self) -> None:
        self.check_success(self.make(at_once=True))
        self.assertEqual(self.server.of_kind("poll"), [])

    def test_accepted_with_a_location(self) -> None:
        for location in ("/api/v1/tasks/{id}", self.server.url + "/api/v1/tasks/{id}"):
            for wrapped in ("", "object", "text"):
                with self.subTest(location, wrapped=wrapped):
                    result = self.make(located=location, wrapped=wrapped)
                    self.check_success(result)
                    self.assertEqual({look.path for look in self.server.of_kind("poll")}, {"/api/v1/tasks/tsk_001"})

    def test_cost_of_a_wrapped_answer(self) -> None:
        for wrapped in ("object", "text"):
            with self.subTest(wrapped):
                self.assertEqual(self.make(located="/api/v1/tasks/{id}", wrapped=wrapped).json["cost_usd"], 0.05)

    def test_key_does_not_follow_a_location_elsewhere(self) -> None:
        """Nor is the same path looked at on the endpoint's own host: `//host/path` names another one."""
        with RunApiServer(KEY) as elsewhere:
            for location in (elsewhere.url + "/api/v1/tasks/{id}", "//" + elsewhere.url[7:] + "/api/v1/tasks/{id}",
                             self.server.url + "@" + elsewhere.url[7:] + "/api/v1/tasks/{id}"):
                with self.subTest(location):
                    result = self.make("--timeout", "2", "--fresh", located=location)
                    self.check_failure(result, NO_ANSWER, "maybe")
                    self.assertEqual((elsewhere.requests, len(self.server.tasks)), ([], 1))
                    self.assertEqual(paths(self.server.of_kind("poll")), [])

    def test_task_that_is_looked_at_elsewhere(self) -> None:
        result = self.make("--n", "2", poll_at={"tasks"})
        self.check_success(result, 2)
        looks = paths(self.server.of_kind("poll"))
        self.assertEqual(looks[-1], "/api/v1/tasks/tsk_002")

    def test_poll_url_of_the_config(self) -> None:
        path = self.write_config({"poll_url": self.server.url + "/api/v1/tasks/{id}", "base_url": self.server.url,
                                  "api": "runapi", "api_key": KEY}, path=self.work / "c.json")
        self.check_success(self.run_inside("generate", "a fox", "--config", path, "--json"))
        self.assertEqual({look.path for look in self.server.of_kind("poll")}, {"/api/v1/tasks/tsk_001"})

    def test_trouble_with_looking_is_not_the_tasks(self) -> None:
        self.server.plan("poll", order(429), order(500), Order(drop="silent"), order(503),
                         Order(body=b"<html>"), order(502))
        self.check_success(self.make(reset=False))

    def test_rate_limit_of_looking_is_respected(self) -> None:
        look = program.Request("GET", self.server.url, purpose="poll")
        refused = program.Failure("rate_limit", "x", http_status=429)
        failure = program.afterwards_failure(look, refused)
        self.assertEqual(program.retry_pause(look, failure, {"retry-after": "7"}, 1), 7.0)

    def test_status_is_on_the_progress_line(self) -> None:
        for dialects, word in (({"page"}, b"pending"), ({"sdk"}, b"processing")):
            with self.fresh(word):
                self.server.dialects, self.server.seconds, self.server.pause = dialects, 2.5, "700"
                shown = self.on_terminal("generate", f"a fox {word.decode()}", *self.access())
                self.assertRegex(shown, rb"waiting: \d+ s[^\r\n]*" + word)

    def on_terminal(self, *arguments: str) -> bytes:
        """What the program writes on a terminal."""
        import pty
        master, slave = pty.openpty()
        child = subprocess.Popen([sys.executable, str(PROGRAM), *arguments], cwd=str(self.work),
                                 env=self.environment({"RUNAPI_API_KEY": KEY, "TERM": "xterm"}),
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave)
        os.close(slave)
        shown = b""
        try:
            while True:
                shown += os.read(master, 4096)
        except OSError:  # the last writer is gone
            pass
        finally:
            os.close(master)
        child.communicate(timeout=30)
        self.assertEqual(child.returncode, 0, shown)
        return shown


class RunApiFailedTaskTest(RunApiCase):

    def fails(self, prompt: str, exit_code: int, kind: str, text: str, *options: str) -> dict[str, Any]:
        result = self.generate_inside(prompt, "--json", *options)
        error = self.check_failure(result, exit_code, "no", kind)
        self.assertIn(text, error["message"])
        self.assertEqual((len(self.server.tasks), self.journal(), result.json["saved"]), (1, [], []))
        return error

    def test_failed_task(self) -> None:
        for dialects in ({"page"}, {"sdk"}):
            with self.fresh(dialects=dialects):
                self.server.dialects = dialects
                self.fails("a fox [fail: the provider gave up]", NO_ANSWER, "task_failed", "the provider gave up")

    def test_failed_for_its_content(self) -> None:
        for words in ("Rejected by the safety system.", "This violates our content policy", "blocked by moderation"):
            with self.fresh(words):
                self.fails(f"a fox [fail: {words}]", REFUSED, "moderation", words.rstrip("."))

    def test_failed_in_an_envelope(self) -> None:
        for wrapped in ("object", "text"):
            for words, exit_code in (("the provider gave up", (NO_ANSWER, REFUSED)),
                                     ("safety system says no", (REFUSED,))):
                with self.fresh(wrapped, words=words):
                    self.server.located, self.server.wrapped = "/api/v1/tasks/{id}", wrapped
                    result = self.generate_inside(f"a fox [fail: {words}]", "--json")
                    self.assertIn(result.exit_code, exit_code, result.stdout)
                    self.assertEqual(result.json["error"]["billed"], "no")
                    self.assertIn(words, result.json["error"]["message"])

    def test_words_for_failure(self) -> None:
        for word in ("failed", "error", "generate_failed", "create_task_failed", "canceled", "cancelled", "timeout",
                     "FAILED"):
            for told in ("the provider gave up", {"code": "E1", "message": "the provider gave up"}):
                with self.fresh(word, told=told):

                    def shape(content: dict[str, Any], word: str = word, told: Any = told) -> dict[str, Any]:
                        return {**content, "status": word, "error": told} if content["status"] == "failed" else content
                    self.server.reshape = shape
                    self.fails("a fox [fail]", NO_ANSWER, "task_failed", "the provider gave up")

    def test_failed_at_once(self) -> None:
        self.server.at_once = True
        self.fails("a fox [fail: the provider gave up]", NO_ANSWER, "task_failed", "the provider gave up")

    def test_ids_are_told(self) -> None:
        result = self.generate_inside("a fox [fail]", "--json")
        self.assertRegex(result.json["error"]["request_id"], r"req_run_\d+")
        self.assertIn("tsk_001", result.json["error"]["request_id"])

    def test_ids_are_told_to_people(self) -> None:
        result = self.generate_inside("a fox [fail]")
        self.assertRegex(result.stderr, r"req_run_\d+")
        self.assertIn("tsk_001", result.stderr)

    def test_the_others_are_kept(self) -> None:
        for failures, exit_code in (({2: "gave up"}, NO_ANSWER), ({1: "gave up"}, NO_ANSWER),
                                    ({3: "gave up"}, NO_ANSWER), ({1: "moderation says no"}, REFUSED),
                                    ({2: "safety system"}, REFUSED)):
            with self.subTest(failures):
                result = self.make("--n", "3", failures=failures)
                counts = (result.exit_code, len(self.server.tasks), len(result.json["saved"]))
                self.assertEqual(counts, (exit_code, 3, 2), result.stdout)
                done = [self.server.result(task) for task in self.server.tasks if task.number not in failures]
                self.assertEqual([Path(saved["path"]).read_bytes() for saved in result.json["saved"]], done)
                self.assertIn(list(failures.values())[0], result.json["error"]["message"])

    def test_the_others_are_kept_when_a_create_fails(self) -> None:
        for planned, exit_code in ((order(402), LIMITED), (order(500), NO_ANSWER), (order(422, "no"), REFUSED),
                                   (Order(drop="silent"), NO_ANSWER), (order(401), SETUP)):
            with self.fresh(planned.status):
                self.server.plan("create", Order(), planned, planned)
                result = self.make("--n", "2", reset=False)
                self.assertEqual((result.exit_code, len(result.json["saved"])), (exit_code, 1), result.stdout)

    def test_human_form_of_a_partial_failure(self) -> None:
        self.server.failures = {2: "gave up"}
        result = self.generate_inside("a fox", "--n", "2", "-o", "out.png")
        self.assertEqual((result.exit_code, len(result.saved), len(result.errors)), (NO_ANSWER, 1, 1), result.stderr)


class ErrorRow(NamedTuple):
    name: str
    orders: tuple[Order, ...]
    exit_code: int
    billed: str
    kind: str
    creates: int


ERRORS = (  # name, answers, exit code, billed, kind, creates
    ErrorRow("400", (order(400, "bad prompt"),), REFUSED, "no", "refused", 1),
    ErrorRow("401", (order(401),), SETUP, "no", "key", 1),
    ErrorRow("402", (order(402),), LIMITED, "no", "quota", 1),
    ErrorRow("409", (order(409),), REFUSED, "no", "refused", 1),
    ErrorRow("413", (order(413),), REFUSED, "no", "too_large", 1),
    ErrorRow("422", (order(422, "prompt is too long"),), REFUSED, "no", "refused", 1),
    ErrorRow("429 once", (order(429),), 0, "", "", 2),
    ErrorRow("429 for ever", (order(429),) * 9, LIMITED, "no", "rate_limit", 5),
    ErrorRow("429 for longer than the timeout", (Order(status=429, headers=(("Retry-After", "3600"),)),), LIMITED, "no",
             "rate_limit", 1),
    ErrorRow("429 until a date", (Order(status=429, headers=(("Retry-After", "Thu, 01 Jan 2026 00:00:00 GMT"),)),), 0,
             "", "", 2),
    ErrorRow("503 without a channel", (order(503),), NO_ANSWER, "maybe", "server", 1),
    ErrorRow("a web page", (Order(status=502, body=b"<!doctype html><title>Bad Gateway</title>",
                                  content_type="text/html"),), NO_ANSWER, "maybe", "gateway", 1),
)
BODIES = (  # the forms of an error, and what must be told
    ({"error": "some text"}, ("some text",)),
    ({"error": "Validation failed", "errors": {"prompt": ["is required"]}},
     ("Validation failed", "prompt", "is required")),
    ({"error": {"code": "c1", "message": "some text"}}, ("some text",)),
    ({"message": "some text"}, ("some text",)), ({"detail": "some text"}, ("some text",)),
    ({"errorMessage": "some text"}, ("some text",)), ({"msg": "some text"}, ("some text",)),
)


class RunApiErrorsTest(RunApiCase):

    def test_exit_code_kind_and_billed_of_every_error(self) -> None:
        for row in ERRORS:
            with self.fresh(row.name):
                self.server.plan("create", *row.orders)
                result = self.make(reset=False)
                self.assertEqual((len(self.server.creates), self.journal()), (row.creates, []), result.stdout)
                if row.exit_code == 0:
                    self.check_success(result)
                else:
                    self.check_failure(result, row.exit_code, row.billed, row.kind)

    def test_bodies(self) -> None:
        for content, words in BODIES:
            with self.fresh(content):
                self.server.plan("create", Order(status=400, body=json.dumps(content).encode()))
                error = self.check_failure(self.make(reset=False), REFUSED, "no")
                for word in words:
                    self.assertIn(word, error["message"])
                self.assertRegex(error["request_id"], r"req_run_\d+")

    def test_result_that_fails_twice(self) -> None:
        self.server.plan("file", order(404), Order(drop="half"))
        self.check_success(self.make(reset=False))

    def test_result_that_fails_for_ever_is_kept(self) -> None:
        self.server.plan("file", *[order(500)] * 9)
        error = self.check_failure(self.make(reset=False), UNSAVED, "yes", "download")
        self.assertIn(f"{self.server.url}/files/tsk_001.png", error["message"])
        self.assertEqual(len(self.journal()), 1)
        self.server.plan_nothing()
        self.check_success(self.make(reset=False))
        self.assertEqual(self.journal(), [])

    def test_looking_that_fails_for_ever_is_kept(self) -> None:
        self.server.plan("poll", *[order(403)] * 9)
        self.check_failure(self.make(reset=False), NO_ANSWER, "maybe", "poll")
        self.assertEqual(len(self.journal()), 1)
        self.server.plan_nothing()
        self.check_success(self.make(reset=False))

    def test_timeout_while_pending_is_kept(self) -> None:
        result = self.make("--timeout", "1", seconds=3600.0)
        error = self.check_failure(result, NO_ANSWER, "maybe", "timeout")
        self.assertIn("same command", error["hint"])
        self.assertEqual((len(self.server.tasks), len(self.journal())), (1, 1))
        self.server.seconds = 0
        self.check_success(self.make(reset=False))
        self.assertEqual(self.journal(), [])

    def test_timeout_while_pending_names_the_task(self) -> None:
        result = self.make("--timeout", "1", seconds=3600.0)
        self.assertIn("tsk_001", json.dumps(result.json["error"]))


# ---- Input images ------------------------------------------------------------------------------------------

class RunApiUploadTest(RunApiCase):

    def change(self, *arguments: str, **options: Any) -> Result:
        return self.run_inside("edit", *arguments, *self.access(), "--json", env={"RUNAPI_API_KEY": KEY}, **options)

    def sources(self) -> list[bytes | str]:
        return self.server.source_bytes(self.server.creates[-1])

    def test_local_files(self) -> None:
        for name, data in (("a.png", PNG), ("b.jpg", draw_jpeg(64, 64)), ("c", draw_webp(64, 64)), ("ü, ;\".png", PNG)):
            with self.fresh(name):
                self.check_success(self.change(self.file(name, data), "a hat"))
                self.assertEqual(self.sources(), [data])
                self.assertEqual([request.kind for request in self.server.requests][:4],
                                 ["prepare", "put", "confirm", "create"])

    def test_put_carries_no_key(self) -> None:
        self.check_success(self.change(self.file("a.png", PNG), "a hat"))
        put, = self.server.of_kind("put")
        self.assertNotIn(KEY, str(put.headers))

    def test_order_is_kept(self) -> None:
        url, jpeg = "https://pictures.invalid/a.png?x=1&y=%20", draw_jpeg(64, 64)
        data_url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        result = self.change(self.file("a.png", PNG), "a hat", "--image", url, "--image", data_url,
                             "--image", self.file("b.png", draw_png(32, 32)))
        self.check_success(result)
        self.assertEqual(self.sources(), [PNG, url, jpeg, draw_png(32, 32)])

    def test_url_is_not_uploaded(self) -> None:
        for url in ("https://pictures.invalid/a.png", "http://pictures.invalid/a"):
            with self.fresh(url):
                self.check_success(self.change(url, "a hat"))
                self.assertEqual((self.sources(), self.server.uploads), ([url], {}))

    def test_data_url_is_uploaded(self) -> None:
        self.check_success(self.change("data:image/png;base64," + base64.b64encode(PNG).decode(), "a hat"))
        self.assertEqual((self.sources(), len(self.server.of_kind("put"))), ([PNG], 1))

    def test_inputs_without_a_file_are_journalled(self) -> None:
        for source in ("https://pictures.invalid/a.png", "data:image/png;base64," + base64.b64encode(PNG).decode()):
            with self.fresh(source[:20]):
                self.server.seconds = 3600.0
                result = self.change(source, "a hat", "--timeout", "1", "--overwrite")
                self.assertEqual((result.json["warnings"], len(self.journal())), ([], 1), result.stderr)
                self.server.seconds = 0
                self.check_success(self.change(source, "a hat", "--overwrite"))

    def test_other_inputs_are_another_command(self) -> None:
        self.server.seconds = 3600.0
        self.change("https://pictures.invalid/a.png", "a hat", "--timeout", "1")
        self.server.seconds = 0
        result = self.change("https://pictures.invalid/b.png", "a hat")
        self.assertEqual((result.exit_code, len(self.server.tasks)), (0, 2), result.stderr)

    def test_one_upload_for_all_tasks(self) -> None:
        self.check_success(self.change(self.file("a.png", PNG), "a hat", "--n", "2"), 2)
        self.assertEqual(len(self.server.of_kind("prepare")), 1)

    def test_large_file(self) -> None:
        data = draw_png(64, 64, padding=3_000_000)
        self.check_success(self.change(self.file("a.png", data), "a hat"))
        self.assertEqual(self.sources(), [data])

    def test_too_many(self) -> None:
        more = [word for number in range(16) for word in ("--image", f"https://pictures.invalid/{number}.png")]
        result = self.change("https://pictures.invalid/x.png", "a hat", *more)
        self.assertEqual((result.exit_code, self.server.requests), (USAGE, []), result.stderr)

    def test_bad_local_files_are_refused_before_sending(self) -> None:
        for name, data in (("empty.png", b""), ("text.png", b"hello"), ("a.gif", b"GIF89a\1\0\1\0\0\0\0;")):
            with self.subTest(name):
                result = self.change(self.file(name, data), "a hat")
                self.assertEqual((result.exit_code, self.server.requests), (USAGE, []), result.stderr)

    def test_refused_uploads(self) -> None:
        for kind, planned, exit_code in (
                ("prepare", order(402), LIMITED), ("prepare", order(422, "byte_size is too large"), REFUSED),
                ("prepare", order(500), NO_ANSWER), ("put", order(403), SETUP), ("put", order(500), NO_ANSWER),
                ("put", Order(drop="silent"), NO_ANSWER), ("confirm", order(422, "no"), REFUSED),
                ("confirm", order(503), NO_ANSWER), ("prepare", Order(drop="silent"), NO_ANSWER)):
            with self.fresh(kind, status=planned.status):
                self.server.plan(kind, *[planned] * 9)
                self.check_failure(self.change(self.file("a.png", PNG), "a hat"), exit_code, "no")
                self.assertEqual((self.server.creates, self.journal()), ([], []))

    def test_rate_limited_upload_is_tried_again(self) -> None:
        self.server.plan("prepare", order(429))
        self.check_success(self.change(self.file("a.png", PNG), "a hat"))

    def test_useless_answers_to_uploads(self) -> None:
        local = b'{"signed_id":"s","upload_url":"file:///tmp/here","headers":{}}'
        for kind, body in (("prepare", b"[]"), ("prepare", b"{}"), ("prepare", b'"x"'), ("prepare", b"7"),
                           ("prepare", local), ("prepare", b'{"signed_id":1,"upload_url":2,"headers":3}'),
                           ("confirm", b"{}"), ("confirm", b"[]"), ("confirm", b'{"url":"ftp://x"}'),
                           ("confirm", b"oops")):
            with self.fresh(kind, body=body):
                shutil.rmtree(str(self.home / ".local"), True)
                self.server.plan(kind, Order(body=body))
                prompt = f"{kind} {body.decode()}"  # another command each, so that none goes on from the one before
                self.check_failure(self.change(self.file("a.png", PNG), prompt), NO_ANSWER, "no")
                self.assertEqual((self.server.creates, self.journal()), ([], []))


# ---- Kill and collect --------------------------------------------------------------------------------------

class RunApiWorld(World):
    """A world whose paid requests are tasks."""

    def tasks(self) -> list[Task]:
        return list(self.server.tasks_for(self.prompt))

    def posts(self) -> int:
        return len(self.tasks())


@unittest.skipUnless(os.name == "posix", "needs POSIX signals and flock")
class RunApiKilledTest(OnRunApi, KillCase):
    """One task per image, and the image is there, whatever moment the program was killed at."""

    def trial(self, name: str, *options: str, edit: bool = True) -> RunApiWorld:
        trial = RunApiWorld(self.root / name, self.server, f"a fox called {name}", key_variable="RUNAPI_API_KEY",
                            words=("edit", "in.png") if edit else ("generate",), options=("--api", "runapi", *options))
        (trial.work / "in.png").write_bytes(PNG)
        return trial

    def check_trial(self, trial: Any) -> None:
        super().check_trial(trial)
        self.check_picture(trial)

    def check_picture(self, trial: RunApiWorld) -> None:
        self.assertEqual((trial.work / "out.png").read_bytes(), self.server.result(trial.tasks()[0]))

    def test_killed_at_each_step(self) -> None:
        for dialects, kinds in (({"page"}, ("prepare", "put", "confirm", "create", "poll", "file")),
                                ({"sdk"}, ("create", "poll"))):
            for kind in kinds:
                for early in (True, False):
                    with self.fresh(kind, dialects=dialects, early=early):
                        self.server.dialects = dialects
                        self.kill_at_step(kind, early, self.trial(f"{kind}-{early}-{min(dialects)}"))
        self.assert_no_orphans()

    def kill_at_step(self, kind: str, early: bool, trial: RunApiWorld) -> None:
        """Kill while the server holds one answer; release it before (early) or after the command runs again."""
        event = threading.Event()
        skipped = [Order()] if kind == "create" and self.server.dialects == {"sdk"} else []
        self.server.plan(kind, *skipped, Order(event=event))
        child = trial.start()
        self.wait_until(lambda: len(self.server.of_kind(kind)) > len(skipped))
        self.kill(child)
        releaser = threading.Timer(0.0 if early else 0.4, event.set)
        releaser.start()
        self.collect(trial, f"killed at {kind}")
        releaser.join()
        self.check_picture(trial)

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_killed_at_any_moment(self) -> None:
        self.server.seconds = 0.6
        moments = [(0.07 * step, signal.SIGKILL) for step in range(24)]
        random.Random(1).shuffle(moments)
        self.kill_at_moments("moment", moments, 6)

    @unittest.skipIf(environ.get("FAST"), "the long kill test")
    def test_killed_at_every_line(self) -> None:
        self.server.dialects = {"sdk"}
        self.kill_at_lines([function.__name__ for function in (
            program.runapi, program.runapi_create, program.runapi_upload, program.collect_images,
            program.run_provider, program.start_curl, program.forget_exchange)], 39)

    def test_killed_twice(self) -> None:
        self.server.seconds = 3600.0
        trial = self.trial("twice")
        for looks in (1, 3):
            child = trial.start()
            self.wait_until(lambda: len(self.server.of_kind("poll")) >= looks)
            self.kill(child)
        self.server.seconds = 0
        self.collect(trial, "killed twice")

    def test_killed_between_two_images(self) -> None:
        trial = self.trial("two", "--n", "2")
        self.server.seconds = 0.3
        child = trial.start()
        self.wait_until(lambda: trial.posts() == 2)
        self.kill(child)
        again = trial.run()
        self.assertEqual((again.exit_code, trial.posts()), (0, 2), again.stderr)
        self.check_end(trial, ["out-1.png", "out-2.png"], again.stderr)
        self.assertEqual([(trial.work / name).read_bytes() for name in trial.pictures()],
                         [self.server.result(task) for task in trial.tasks()])

    def test_another_count_is_another_command(self) -> None:
        trial = self.trial("count")
        child = trial.start("--n", "2")
        self.wait_until(lambda: len(self.server.of_kind("file")) >= 1)
        self.server.seconds = 3600.0
        self.wait_until(lambda: trial.posts() == 2)
        self.kill(child)
        self.server.seconds = 0
        for number in ("1", "2"):
            result = trial.run("--n", number)
            self.assertEqual(result.exit_code, 0, result.stderr)
        self.assertLessEqual(trial.posts(), 3, "the second task of the first command was bought again")
        self.assertEqual(trial.journal(), [])

    def test_lost_create_is_not_repeated_on_the_page(self) -> None:
        self.server.plan("create", Order(delay=20))
        trial = self.trial("lost", edit=False)
        child = trial.start()
        self.wait_until(lambda: len(self.server.creates) == 1)
        self.kill_family(child, trial.home)
        again = trial.run()
        self.assertEqual((again.exit_code, trial.posts()), (NO_ANSWER, 1), again.stderr)
        self.assertIn("You may be charged", again.stderr)

    def test_lost_create_is_repeated_with_its_key(self) -> None:
        self.server.dialects = {"sdk"}
        self.server.plan("create", Order(), Order(delay=20))
        trial = self.trial("lost", edit=False)
        child = trial.start()
        self.wait_until(lambda: len(self.server.creates) == 2)
        self.kill_family(child, trial.home)
        self.collect(trial, "curl was killed too")
        self.assertEqual(len(set(keys(self.server.creates)[1:])), 1)
        self.assertEqual(len(self.server.creates), 3)

    def kill_family(self, child: subprocess.Popen[bytes], home: Path) -> None:
        """Kill the program and its curl."""
        curls = [each.pid for each in helpers(child.pid, home) if each.arguments[:1] == [b"curl"]]
        self.assertEqual(len(curls), 1)
        child.kill()
        os.kill(curls[0], signal.SIGKILL)
        self.finish(child)

    def test_download_left_running_does_not_spoil_the_next_one(self) -> None:
        event = threading.Event()
        self.server.plan("file", Order(event=event, trickle=0.2), Order(trickle=0.1))
        trial = self.trial("spoil", edit=False)
        child = trial.start()
        self.wait_until(lambda: len(self.server.of_kind("file")) == 1)
        self.kill(child)
        again = trial.start()
        self.wait_until(lambda: len(self.server.of_kind("file")) == 2)
        threading.Timer(1.0, event.set).start()
        self.saved_file(self.finish(again))
        self.check_picture(trial)

    def test_interrupted_while_looking_keeps_the_task(self) -> None:
        self.server.seconds = 3600.0

        def interrupt(number: int) -> None:
            trial = self.trial(f"ctrl-c-{number}")
            child = trial.start()
            self.wait_until(lambda: any(trial.tasks()) and trial.tasks()[0].looks > 0)
            time.sleep(0.007 * number)
            result = self.kill(child, signal.SIGINT)
            self.assertEqual(result.exit_code, 130, result.stderr)
            self.assertIn("same command again", result.stderr)
            self.assertEqual(len(trial.journal()), 1)
            trials.append(trial)
        trials: list[RunApiWorld] = []
        self.at_once(interrupt, range(8), 3)
        self.server.seconds = 0
        for trial in trials:
            self.collect(trial, "Ctrl-C")
        self.assertEqual(len(trials), 8)
        self.assert_no_orphans()

    def test_terminated_while_looking_keeps_the_task(self) -> None:
        self.server.seconds = 3600.0
        trial = self.trial("term")
        child = trial.start()
        self.wait_until(lambda: len(self.server.of_kind("poll")) > 1)
        result = self.kill(child, signal.SIGTERM)
        self.assertEqual((result.exit_code, len(trial.journal())), (143, 1), result.stderr)
        self.server.seconds = 0
        self.collect(trial, "SIGTERM")

    def test_interrupted_upload_bought_nothing(self) -> None:
        for kind in ("prepare", "put", "confirm"):
            with self.fresh(kind):
                self.server.plan(kind, Order(delay=20))
                trial = self.trial(f"upload-{kind}")
                child = trial.start()
                self.wait_until(lambda: len(self.server.of_kind(kind)) == 1)
                result = self.kill(child, signal.SIGINT)
                self.assertEqual((result.exit_code, trial.posts(), trial.journal()), (130, 0, []), result.stderr)
                self.assertIn("nothing was bought", result.stderr)
                self.collect(trial, kind)
        self.assert_no_orphans()

    def test_two_identical_commands_are_one_task(self) -> None:
        """Only the one that asked for it looks at the task and fetches the picture; the other one waits."""
        self.server.seconds = 3600.0
        trial = self.trial("both", edit=False)
        first = trial.start("--json")
        self.wait_until(lambda: len(self.server.of_kind("poll")) > 0)
        second = trial.start("--json")
        assert second.stderr
        self.assertIn("at work elsewhere; waiting for its picture", second.stderr.readline().decode())
        self.server.seconds = 0
        results = [self.finish(child) for child in (first, second)]
        self.assertEqual([(result.exit_code, result.json["source"]) for result in results],
                         [(0, "bought"), (0, "made_before")], results)
        self.assertEqual(results[0].json["saved"], results[1].json["saved"])
        self.assertEqual((trial.posts(), len(self.server.creates), len(self.server.of_kind("file"))), (1, 1, 1))
        self.check_end(trial, ["out.png"], "both")

    def test_fresh_beside_the_same_command_is_another_task(self) -> None:
        self.server.seconds = 0.5
        trial = self.trial("beside")
        children = [trial.start()]
        self.wait_until(lambda: trial.posts() == 1)
        children.append(trial.start("--fresh"))
        results = [self.finish(child) for child in children]
        self.assertEqual(([result.exit_code for result in results], trial.posts()), ([0, 0], 2), results)
        self.check_end(trial, ["out-2.png", "out.png"], "beside")

    def test_fresh_makes_a_new_task(self) -> None:
        self.server.seconds = 3600.0
        trial = self.trial("fresh")
        child = trial.start()
        self.wait_until(lambda: len(self.server.of_kind("poll")) > 0)
        self.kill(child)
        self.server.seconds = 0
        fresh = trial.run("--fresh")
        self.assertEqual((fresh.exit_code, trial.posts()), (0, 2), fresh.stderr)
        self.assertEqual((trial.work / "out.png").read_bytes(), self.server.result(trial.tasks()[1]))
        self.assertEqual(len(set(keys(self.server.creates))), 2)
