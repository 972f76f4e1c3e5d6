"""What people and agents type, paste and set up wrongly is understood, or answered with the command that is right."""
from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
from typing import Any
from unittest import mock

from api_server import Answer, draw_png
from runapi_server import RunApiServer
from support import KEY, NO_ANSWER, SETUP, USAGE, ProgramCase, Result, png_file, program

PNG = draw_png(64, 48)
INVISIBLE = ("\r", "\n", "\r\n", " ", "\t", "\u00a0", "\u3000", "\ufeff", "\u200b", "\u200e", "\u2060", "\u00ad")


class AdviceCase(ProgramCase):
    """Runs commands against the loopback server, with its key in the environment."""

    def try_command(self, *words: str, env: dict[str, str | None] | None = None) -> Result:
        return self.run_inside(*words, env={"GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.server.url,
                                            **(env or {})})

    def refused(self, *words: str, exit_code: int = USAGE, env: dict[str, str | None] | None = None) -> str:
        """The text of a refusal before anything was sent."""
        self.server.reset()
        result = self.try_command(*words, env=env)
        self.assertEqual((result.exit_code, self.server.requests), (exit_code, []), result.stdout + result.stderr)
        self.assertEqual(len(result.errors), 1, result.stderr)
        return result.stderr

    def sent(self, *words: str, env: dict[str, str | None] | None = None) -> dict[str, Any]:
        """The fields of the one request of a command that worked."""
        self.server.reset()
        self.forget()
        result = self.try_command(*words, env=env)
        self.assertEqual(result.exit_code, 0, result.stderr)
        return self.only_post().fields


class PromptThatIsNoneTest(AdviceCase):
    """A prompt that is the name of a file, or the word help, is not drawn: the right command is shown."""

    def proposed(self, *words: str) -> list[str]:
        """The words of the command that a refusal proposes."""
        with mock.patch("sys.argv", ["gpt_image2.py"]):
            return shlex.split(self.refused(*words).rpartition("gpt_image2.py ")[2])

    def test_text_files(self) -> None:
        self.file("notes.txt", "a red fox")
        self.file("my notes", "a red fox")
        photo = self.file("photo.png", PNG)
        self.file("@odd", "a red fox")
        for word, name in (("notes.txt", "notes.txt"), ("@notes.txt", "notes.txt"), ("./notes.txt", "./notes.txt"),
                           ("my notes", "my notes"), ("@odd", "@odd")):
            with self.subTest(word):
                self.assertEqual(self.proposed("generate", word), ["generate", "--prompt-file", name])
                self.assertEqual(self.proposed("edit", photo, word), ["edit", photo, "--prompt-file", name])

    def test_the_proposed_command_works(self) -> None:
        self.file("my notes.txt", "a red fox\n")
        self.assertEqual(self.sent(*self.proposed("generate", "@my notes.txt"))["prompt"], "a red fox")

    def test_images(self) -> None:
        self.file("photo.png", PNG)
        self.file("bare", PNG)
        self.file("my photo.png", PNG)
        for word in ("photo.png", "nowhere.JPG", "x.webp", "x.heic", "bare", "my photo.png",
                     "https://relay.invalid/a.png"):
            with self.subTest(word):
                self.assertEqual(self.proposed("generate", word), ["edit", word, "what to change"])
        self.assertEqual(self.proposed("generate", "photo.png", "give it a hat")[:2], ["edit", "photo.png"])
        self.assertEqual(self.proposed("generate", "@photo.png")[:2], ["edit", "photo.png"])
        text = self.refused("generate", "data:image/png;base64," + "iVBORw0KGgo" * 500)
        self.assertIn('edit IMAGE "what to change"', text)
        self.assertLess(len(text), 400)

    def test_through_the_front_door(self) -> None:
        self.file("notes.txt", "a red fox")
        result = self.generate("notes.txt")
        self.assertEqual((result.exit_code, self.server.requests), (USAGE, []))
        self.assertIn("generate --prompt-file notes.txt", result.stderr)
        result = self.generate("photo.png", "-o", "x.png")
        self.assertIn('edit photo.png "what to change"', result.stderr)

    def test_ordinary_words_pass(self) -> None:
        (self.work / "folder").mkdir()
        for prompt in ("fox", "a.b", "@home", "@", "notes.txt", "folder", "a sign that says photo.png", "fox.",
                       "help me", "~", "a\nb.png c"):
            with self.subTest(prompt):
                self.assertEqual(self.sent("generate", prompt)["prompt"], prompt)

    def test_help(self) -> None:
        for words in (["generate", "help"], ["edit", "help"], ["config", "help"], ["generate", "help", "--json"],
                      ["help", "generate"], ["help"]):
            with self.subTest(words):
                result = self.run_inside(*words)
                self.assertEqual((result.exit_code, result.stderr), (0, ""))
                topic = [word for word in words if word in ("generate", "edit", "config")]
                self.assertEqual(result.stdout, self.run_inside(*topic, "--help").stdout)
        photo = self.file("photo.png", PNG)
        for words in (["generate", "-o", "x.png", "help"], ["edit", photo, "help"], ["generate", "Help"]):
            self.assertEqual(self.proposed(*words), [words[0], "--help"])
        self.file("help", "a red fox")
        self.assertEqual(self.sent("generate", "--prompt-file", "help")["prompt"], "a red fox")


class PastedKeyTest(AdviceCase):
    """What a clipboard or a .env file leaves around a key is dropped; what is no key is not sent."""

    def test_what_cannot_be_seen_is_dropped_from_every_source(self) -> None:
        config, vault = self.work / "c.json", self.work / "key.txt"
        command = ["cat", str(vault)]
        for mark in INVISIBLE:
            for key in (KEY + mark, mark + KEY):
                with self.subTest(repr(key)):
                    self.write_config({"base_url": self.server.url, "api_key": key}, path=config)
                    self.sent("generate", "a fox", env={"GPT_IMAGE2_API_KEY": key})
                    self.sent("generate", "a fox", "--config", str(config))
                    if mark == "\ufeff":
                        self.sent("generate", "a fox", "--api-key", key, env={"GPT_IMAGE2_API_KEY": None})
                        vault.write_text(key + "\n", encoding="utf-8")
                        self.write_config({"base_url": self.server.url, "api_key_command": command}, path=config)
                        self.sent("generate", "a fox", "--config", str(config))
                    self.assertEqual(self.only_post().header("Authorization"), f"Bearer {KEY}")

    def test_with_the_real_environment(self) -> None:
        result = self.generate("a fox", env={"GPT_IMAGE2_API_KEY": f"\ufeff{KEY}\u200b\r\n"})
        self.assert_succeeded(result)
        self.assertEqual(self.only_post().header("Authorization"), f"Bearer {KEY}")

    def test_quotes_are_named(self) -> None:
        for key in (f'"{KEY}"', f"'{KEY}'", f"`{KEY}`", f"\u201c{KEY}\u201d", f'"{KEY}', f"{KEY}'", f' "{KEY}"\n'):
            with self.subTest(key):
                for words, env in (([], {"GPT_IMAGE2_API_KEY": key}), (["--api-key", key], {})):
                    text = self.refused("generate", "a fox", *words, exit_code=SETUP, env=dict(env))
                    self.assertIn("is in quotes", text)
                    self.assertNotIn(KEY, text)

    def test_placeholders(self) -> None:
        for key in ("...", "sk-...", "sk-\u2026", "YOUR_KEY", "<key>", "<your key>", "your-api-key", "sk-your-key-here",
                    "your_openai_api_key", "YOUR_API_KEY_HERE", "sk-xxxx", "sk-proj-XXXXXXXX", "xxx", "$OPENAI_API_KEY",
                    "${OPENAI_API_KEY}", "%OPENAI_API_KEY%", "{{key}}", "[key]", "OPENAI_API_KEY", "api-key", "sk-",
                    "REPLACE_ME", "changeme", "insert-key-here", "sk-****abcd", "your key here"):
            with self.subTest(key):
                text = self.refused("generate", "a fox", exit_code=SETUP, env={"GPT_IMAGE2_API_KEY": key})
                self.assertIn("placeholder", text)
        config = self.write_config({"base_url": self.server.url, "api_key": "${MY_KEY}"}, path=self.work / "c.json")
        self.assertIn("placeholder", self.refused("generate", "a fox", "--config", config, exit_code=SETUP))
        self.assertIn("placeholder", self.refused("config", "--check", exit_code=SETUP,
                                                  env={"GPT_IMAGE2_API_KEY": "..."}))

    def test_real_looking_ones_pass(self) -> None:
        for key in (KEY, "none", "EMPTY", "dummy", "sk-1234", "ollama", "test-your", "Abc.def-ghi_jkl+mno/pqr==",
                    "a$b{c}", "YouR9here8", "key-1", "dont-change-monkey", "relay-yourself-key9"):
            with self.subTest(key):
                self.assertEqual(program.read_key(program.KeySource("x", "", key), []), key)


class PastedAddressIsUnderstoodTest(AdviceCase):
    """Base URLs as people paste them lead to the right path, and no hint makes them worse."""

    def base(self, url: str, *words: str) -> str:
        return str(self.load_settings({"base_url": url}).base_url.value)

    def test_cut(self) -> None:
        table = (("/v1/chat/completions", "/v1"), ("/v1/responses", "/v1"), ("/v1/models", "/v1"),
                 ("/v1/images", "/v1"), ("/v1/images/generations", "/v1"), ("/v1/images/edits/", "/v1"),
                 ("/v1/embeddings", "/v1"), ("/v1/", "/v1"), ("/v1/models/gpt-image-2", "/v1"), ("//v1//", "/v1"),
                 ("/api//v1//chat/completions", "/api/v1"), ("/v3/chat/completions", "/v3"), ("/chat/completions", ""),
                 ("/api/images/edits", "/api"), ("/", ""), ("/models", "/models"), ("/images", "/images"),
                 ("/v1/acct/gateway", "/v1/acct/gateway"), ("/v1beta/openai/chat/completions", "/v1beta/openai"),
                 ("/v1\ufeff\u200b", "/v1"), ("/v1 \r\n", "/v1"),
                 ("/openai/v1/images/edits?api-version=preview", "/openai/v1?api-version=preview"),
                 ("/openai/deployments/d/chat/completions?api-version=2025-04-01-preview",
                  "/openai/deployments/d?api-version=2025-04-01-preview"))
        for pasted, meant in table:
            with self.subTest(pasted):
                self.assertEqual(self.base("https://relay.invalid" + pasted), "https://relay.invalid" + meant)

    def test_scheme_and_host_have_no_case(self) -> None:
        self.assertEqual(self.base("HTTPS://relay.invalid/v1"), "https://relay.invalid/v1")
        self.assertEqual(self.base("Https://Relay.INVALID/v1"), "https://Relay.INVALID/v1")
        port = self.server.url.partition("//")[2]
        self.sent("generate", "a fox", "--base-url", "HTTP://" + port.replace("127.0.0.1", "LOCALHOST"))
        for one, other in (("HTTPS://API.openai.com/v1", "api.openai.com"),
                           ("HTTP://x.invalid", "http://x.invalid:80")):
            self.assertEqual(program.host_of(one), other)
        settings = self.load_settings({}, {"OPENAI_BASE_URL": " Https://Relay.invalid/v1 ", "OPENAI_API_KEY": KEY})
        self.assertIsNotNone(program.choose_key(settings))
        self.assertEqual(program.api_of("HTTPS://R.OPENAI.AZURE.COM"), "azure")

    def test_plain_http_in_capitals_is_still_refused(self) -> None:
        self.assertIn("over plain http", self.refused("generate", "a fox", "--base-url", "HTTP://relay.invalid/v1"))

    def test_the_whole_way(self) -> None:
        for tail in ("/chat/completions", "/responses", "/models", "/images", "/images/edits", "//images/generations/"):
            with self.subTest(tail):
                self.sent("generate", "a fox", "--base-url", self.server.url + tail)
                self.assertEqual(self.only_post().path, "/v1/images/generations")

    def test_hints_never_propose_a_version_behind_a_path_of_the_api(self) -> None:
        for tail in ("/responses", "/images", "/models", "/chat"):
            self.server.reset()
            text = self.try_command("generate", "a fox", "--base-url", self.server.origin + tail).stderr
            with self.subTest(tail):
                self.assertNotIn(tail + "/v1", text)
                self.assertIn(f"--base-url {self.server.origin}/v1", text)

    def test_azure(self) -> None:
        table = (("/openai", "/openai/v1", "preview"), ("/openai/", "/openai/v1", "preview"),
                 ("/openai?api-version=2025-04-01-preview", "/openai/v1", "2025-04-01-preview"),
                 ("/openai/?api-version=preview", "/openai/v1", "preview"), ("/openai/v1", "/openai/v1", "preview"),
                 ("/openai/v1/", "/openai/v1", "preview"), ("/openai//v1/images/generations", "/openai/v1", "preview"),
                 ("/openai/responses?api-version=2025-04-01-preview", "/openai/v1", "2025-04-01-preview"))
        for base, path, version in table:
            with self.subTest(base):
                self.sent("generate", "a fox", "--api", "azure", "--base-url", self.server.origin + base)
                self.assertEqual(self.only_post().path, f"{path}/images/generations?api-version={version}")


class WhatACheckProvesTest(AdviceCase):
    """config --check says what it has proved, no more."""

    def check(self, *words: str, env: dict[str, str | None] | None = None) -> Result:
        return self.try_command("config", "--check", *words, env=env)

    def test_no_list_is_a_note(self) -> None:
        for status in (404, 405, 501):
            self.server.plan_models(*[Answer(status=status, body=b"", check=False)])
            result = self.check()
            with self.subTest(status):
                self.assertEqual((result.exit_code, result.errors), (0, []), result.stderr)
                self.assertRegex(result.stdout, f"(?m)^note  .*HTTP {status}.*proves")
                self.assertNotIn("accepts the key", result.stdout)

    def test_in_json_it_is_a_warning(self) -> None:
        self.server.plan_models(Answer(status=404, body=b"", check=False))
        document = self.check("--json").json
        self.assertTrue(document["ok"])
        self.assertIn("proves", " ".join(document["warnings"]))

    def test_public_list(self) -> None:
        self.server.plan_models(*[Answer(body=b'{"data": [{"id": "gpt-image-2"}]}', check=False)] * 4)
        result = self.check()
        self.assertRegex(result.stdout, "(?m)^note  .*without the key")
        self.assertNotIn("accepts the key", result.stdout)
        self.assertIn("without the key", " ".join(self.check("--json").json["warnings"]))
        self.assertEqual([request.header("Authorization") for request in self.server.requests],
                         [f"Bearer {KEY}", ""] * 2)

    def test_a_header_that_is_a_key_is_left_out_too(self) -> None:
        self.server.plan_models(*[Answer(body=b'{"data": []}', check=False)] * 2)
        self.check("--header", "X-Api-Key: other-test-key", "--header", "X-Title: fox")
        self.assertEqual([(request.header("x-api-key"), request.header("x-title")) for request in self.server.requests],
                         [("other-test-key", "fox"), ("", "fox")])

    def test_a_list_that_wants_the_key_proves_it(self) -> None:
        result = self.run_program("config", "--check", *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertRegex(result.stdout, "(?m)^ok .*accepts the key")

    def test_a_refused_key_and_a_web_page_stay_failures(self) -> None:
        self.assertEqual(self.check(env={"GPT_IMAGE2_API_KEY": "wrong-test"}).exit_code, SETUP)
        for answer, exit_code in ((Answer(status=403, body=b'{"error": {"message": "no"}}'), SETUP),
                                  (Answer(body=b"<title>Hello</title>", content_type="text/html"), NO_ANSWER)):
            self.server.plan_models(answer)
            self.assertEqual(self.check().exit_code, exit_code)

    def test_runapi(self) -> None:
        with RunApiServer(KEY) as server:
            result = self.run_inside("config", "--check", "--api", "runapi", "--base-url", server.origin,
                                     env={"RUNAPI_API_KEY": KEY})
        self.assertIn("accepts the key", result.stdout + result.stderr)


class WrongKindOfFileTest(AdviceCase):
    """A sign-in in a keyring, a config in another encoding: said with the way out; the journal's paths are not."""

    def test_keyring(self) -> None:
        folder = self.home / ".codex"
        for content in (None, {}, {"tokens": None}, {"OPENAI_API_KEY": "test-key-1", "tokens": {}}):
            if content is not None:
                self.write_config(content, path=folder / "auth.json")
            text = self.refused("generate", "a fox", "--api", "codex", exit_code=SETUP)
            self.assertIn("keyring", text)
            self.assertIn(f'cli_auth_credentials_store = "file" into {folder / "config.toml"}', text)

    def test_encodings(self) -> None:
        content = json.dumps({"base_url": self.server.url, "api_key": KEY, "model": "caf\u00e9"}, ensure_ascii=False)
        for name in ("utf-16", "utf-16-le", "utf-16-be", "latin-1"):
            mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(name, b"")
            with self.subTest(name):
                path = self.file("c.json", mark + content.encode(name))
                text = self.refused("generate", "a fox", "--config", path, exit_code=SETUP)
                self.assertIn("it is not UTF-8", text)
                self.assertNotIn("codec", text)

    def test_long_texts_are_only_named(self) -> None:
        long = "iVBORw0KGgo" + "x" * 200_000
        bodies = ({"data": [{"picture": long}]}, {"errors": {"a": [long]}, "message": "no"}, [long, 1],
                  {"error": {"message": {"a": long}}}, {"error": {"code": [long]}}, {"message": [long]})
        for body in bodies:
            self.server.plan(Answer(body=json.dumps(body).encode()))
            result = self.try_command("generate", "a fox", "--json")
            error = result.json["error"]
            with self.subTest(str(body)[:30]):
                text = error["message"] + str(error["code"]) + result.stderr.partition("The server's reply")[0]
                self.assertNotIn("iVBOR", text)
                self.assertNotIn(os.sep + "requests" + os.sep, text)

    def test_half_a_character_beside_a_picture_costs_no_picture(self) -> None:
        rows = b"".join(b"\0" + os.urandom(3 * 256) for _ in range(256))
        long = base64.b64encode(png_file(256, 256, rows, 2)).decode()
        self.assertGreater(len(long), program.LONG_STRING)
        self.server.plan(Answer(body=b'{"note": "\\ud800", "data": [{"b64_json": "' + long.encode() + b'"}]}'))
        result = self.try_command("generate", "a fox")
        self.assertEqual((result.exit_code, len(result.saved)), (0, 1), result.stderr)

    def test_deep_answers_are_no_crash(self) -> None:
        for depth in (60, 400, 900):
            self.server.plan(Answer(body=b'{"a":' * depth + b"1" + b"}" * depth))
            self.assertEqual(self.try_command("generate", "a fox").exit_code, NO_ANSWER)

    def test_files_that_curl_names(self) -> None:
        base = str(self.work / "requests" / "x" / "1")
        self.file("requests/x/1.outcome", "000 000 0 0.0 0\n")
        self.file("requests/x/1.errors", f"curl: (26) Failed to open {base}.body\n")
        self.assertEqual(program.read_outcome(base).message, f"Failed to open {base}.body")


class SandboxTest(AdviceCase):
    """Where a sandbox closes network or disk, the message names it and what to ask for."""

    def dead(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"

    def test_codex_says_so(self) -> None:
        closed = {"CODEX_SANDBOX_NETWORK_DISABLED": "1", "GPT_IMAGE2_API_KEY": KEY}
        for url in (self.dead(), "https://relay.invalid/v1"):
            result = self.run_program("generate", "a fox", "--base-url", url, "--json", env=closed)
            error = result.json["error"]
            with self.subTest(url):
                self.assertEqual((result.exit_code, error["billed"]), (NO_ANSWER, "no"))
                for word in ("sandbox", "require_escalated", "network_access = true"):
                    self.assertIn(word, error["hint"])
                self.assertNotIn("run the same command again", error["hint"])

    def test_an_input_that_cannot_be_fetched(self) -> None:
        url = self.dead().replace("/v1", "/a.png")
        self.assertIn("sandbox", self.refused("edit", url, "a hat", env={"CODEX_SANDBOX_NETWORK_DISABLED": "1"}))
        self.assertNotIn("sandbox", self.refused("edit", url, "a hat"))

    def test_an_ordinary_dead_server_is_none(self) -> None:
        result = self.try_command("generate", "a fox", "--base-url", self.dead())
        self.assertNotIn("sandbox", result.stderr)
        self.assertIn("--base-url", result.stderr)

    def test_read_only_workspace(self) -> None:
        for number, words in ((30, "Read-only file system"), (1, "Operation not permitted")):
            with mock.patch("tempfile.TemporaryFile", side_effect=OSError(number, words)):
                text = self.refused("generate", "a fox")
            self.assertIn("sandbox", text)
            self.assertIn('sandbox_mode = "workspace-write"', text)
            self.assertIn("-o", text)
        with mock.patch("tempfile.TemporaryFile", side_effect=OSError(28, "No space left on device")):
            self.assertNotIn("sandbox", self.refused("generate", "a fox"))


class StrangersTest(AdviceCase):
    """Options of other tools get the option that is meant; only near words are guessed."""

    def test_known_strangers(self) -> None:
        table = {"Use -n.": ("--count", "--num-images", "--batch-size"), "--overwrite.": ("--force", "-y"),
                 "--size WIDTHxHEIGHT": ("--width", "--height"), "needs no option": ("--prompt", "-p"),
                 "no such parameter": ("--seed", "--negative-prompt", "--negative_prompt", "--style", "--steps",
                                       "--response-format"),
                 "--format.": ("--output-format",), "--output PATH": ("--out", "--output-dir"),
                 "--aspect-ratio W:H": ("--ar",), "edit --help": ("--image", "--mask", "-i"),
                 "--api-key-env NAME": ("--key",), "--base-url.": ("--endpoint",)}
        for advice, options in table.items():
            for option in options:
                for words in ([option, "3"], [f"{option}=3"]):
                    with self.subTest(words):
                        text = self.refused("generate", "a fox", *words)
                        self.assertIn(f"unknown option {option}", text)
                        self.assertIn(advice, text)
                        self.assertNotIn("Did you mean", text)

    def test_no_wild_guess(self) -> None:
        for option in ("--again", "--list", "--no-such-thing", "--zip"):
            self.assertNotIn("Did you mean", self.refused("generate", "a fox", option))
        for option, meant in (("--ouput", "--output"), ("--qualty", "--quality"), ("--aspect_ratio", "--aspect-ratio"),
                              ("--SIZE", "--size"), ("--overwite", "--overwrite")):
            self.assertIn(f"Did you mean {meant}?", self.refused("generate", "a fox", option))

    def test_all_that_is_advised_exists(self) -> None:
        both = [set(re.findall(r"(?<![\w-])--[a-z-]+", program.help_for([command, "--help"])))
                for command in ("generate", "edit")]
        named = set(re.findall(r"--[a-z-]+", " ".join(program.STRANGERS.values())))
        self.assertLessEqual(named, both[0] | both[1] | {"--help"})
        self.assertEqual(both[0] & both[1] & set(" ".join(program.STRANGERS).split()), set())

    def test_short_n(self) -> None:
        for words in (["-n", "2"], ["-n2"], ["--n", "2"], ["--n=2"]):
            self.assertEqual(self.sent("generate", "a fox", *words)["n"], 2)
        self.assertIn("--n needs a whole number", self.refused("generate", "a fox", "-n", "two"))

    def test_force_of_init_stays(self) -> None:
        for words in ([], ["--force"]):
            self.assertEqual(self.try_command("config", "--init", *words).exit_code, 0)


class ValuesAsPeopleWriteThemTest(AdviceCase):
    """Sizes, shapes and words in the spellings of other tools mean what they say."""

    def test_sizes(self) -> None:
        table = {"16:9": "1280x720", "16/9": "1280x720", "4k": "2880x2880", "2K": "2048x2048", "1024": "1024x1024",
                 "1024px": "1024x1024", "1024\u00d71536": "1024x1536", "1024 x 1536": "1024x1536",
                 "1024*1536": "1024x1536", "1024X1536": "1024x1536", " 1024x1536 ": "1024x1536",
                 "1024 by 1536": "1024x1536", "1024:1536": "1024x1536", "1536px x 1024px": "1536x1024",
                 "LANDSCAPE": "1536x1024", "Square": "1024x1024", "3\uff1a2": "1248x832"}
        for text, size in table.items():
            with self.subTest(text):
                self.assertEqual(self.sent("generate", "a fox", "--size", text)["size"], size)
        self.assertNotIn("size", self.sent("generate", "a fox", "--size", "AUTO"))

    def test_size_together_with_its_kin(self) -> None:
        for words in (["--size", "16:9", "--resolution", "4K"], ["--size", "4k", "--aspect-ratio", "16x9"]):
            self.assertEqual(self.sent("generate", "a fox", *words)["size"], "3840x2160")
        for words in (["--size", "16:9", "--aspect-ratio", "4:3"], ["--size", "4k", "--resolution", "2k"]):
            self.assertIn("use either --size", self.refused("generate", "a fox", *words))

    def test_ratios(self) -> None:
        for text in ("16:9", "16x9", "16/9", "16X9", "16\u00d79", "16 : 9", "16\uff1a9", "16 by 9"):
            with self.subTest(text):
                self.assertEqual(self.sent("generate", "a fox", "--aspect-ratio", text)["size"], "1280x720")

    def test_words_in_capitals(self) -> None:
        fields = self.sent("generate", "a fox", "--quality", "HIGH", "--format", "WEBP", "--background", "Transparent",
                           "--moderation", "Low", "--api", "OpenAI")
        self.assertEqual([fields[name] for name in ("quality", "output_format", "background", "moderation")],
                         ["high", "webp", "transparent", "low"])
        self.assertEqual(self.sent("generate", "a fox", "--format", "JPG")["output_format"], "jpeg")

    def test_runapi_understands_the_same(self) -> None:
        table = ((["--size", "16:9"], {"aspect_ratio": "16:9"}), (["--aspect-ratio", "16x9"], {"aspect_ratio": "16:9"}),
                 (["--size", "16/9", "--resolution", "2K"], {"aspect_ratio": "16:9", "output_resolution": "2k"}),
                 (["--size", "1024"], {"aspect_ratio": "1:1", "output_resolution": "1k"}),
                 (["--size", "1536 \u00d7 1024"], {"aspect_ratio": "3:2", "output_resolution": "1k"}))
        for words, expected in table:
            with self.subTest(words), RunApiServer(KEY) as server:
                result = self.run_inside("generate", "a fox", "--api", "runapi", "--base-url", server.origin, *words,
                                         env={"RUNAPI_API_KEY": KEY})
                self.assertEqual(result.exit_code, 0, result.stderr)
                fields = server.creates[0].fields
                self.assertEqual({name: fields[name] for name in fields if name not in ("model", "prompt")}, expected)

    def test_every_broken_rule(self) -> None:
        for size, rules, hints in (
                ("3840x1000", ["multiples of 16", "3 times"], ["--size 3840x1280"]),
                ("8001x100", ["multiples of 16", "3840", "3 times"], []),
                ("500x500", ["multiples of 16", "250,000"], []),
                ("1920x1080", ["multiples of 16"], ["Use --size 1920x1088"]),
                ("1080x1920", ["multiples of 16"], ["Use --size 1088x1920"]),
                ("7680x4320", ["3840", "33,177,600"], ["Use --size 3840x2160"])):
            with self.subTest(size):
                text = self.refused("generate", "a fox", "--size", size)
                for words in (*rules, *hints):
                    self.assertIn(words, text)

    def test_what_is_proposed_is_taken(self) -> None:
        for size in re.findall(r"--size (\S+x\d+)", self.refused("generate", "a fox", "--size", "1920x1080")):
            self.assertEqual(self.sent("generate", "a fox", "--size", size)["size"], size)
