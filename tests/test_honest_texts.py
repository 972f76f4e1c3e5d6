"""What is shown all the same: names, typed words and addresses that are no keys, but not the keys beside them."""
from __future__ import annotations

import json

from api_server import Answer, draw_png
from support import KEY, ProgramCase, program

PROMPT = "a red fox"
ODD = "test/key+of=mine_0123456789"
UUID = "0a1b2c3d-0000-4000-8000-00000fa4e0e0"
TOKEN = "eyJmYWtlIjoxfQ.eyJmYWtlIjoyfQ.ZmFrZQ"
REMOTE = "https://relay.invalid/v1"


class LoginInAddressTest(ProgramCase):
    """A login in an address is hidden however short it is, and what is no login is not."""

    def test_texts(self) -> None:
        for text, shown in (("see http://me:pw1@h:1/x", "see http://***@h:1/x"),
                            ("socks5h://me:abc@h", "socks5h://***@h"), ("//a:b@h", "//***@h"),
                            ("https://tok@h/v1", "https://***@h/v1"), ("http://u:p/w@h:1", "http://***@h:1"),
                            ("http://a:b%2f@h", "http://***@h"), ("https://x.example/@user", "https://x.example/@user"),
                            ("http://127.0.0.1:80/a@b", "http://127.0.0.1:80/a@b"),
                            ("http://[::1]:80/a@b", "http://[::1]:80/a@b"), ("http://h:80?x@b", "http://h:80?x@b"),
                            ("me@x.example", "me@x.example"), ("https://x.example/a a@b", "https://x.example/a a@b")):
            self.assertEqual(program.redact(text, ()), shown)

    def test_proxy(self) -> None:
        for login in ("me:pw1", "me:p", "tok", "m:p/w", "me:pass"):
            for scheme in ("http://", "socks5h://", "//", *([""] if len(login) > 5 else [])):
                with self.subTest(scheme + login):
                    path = self.write_config({"proxy": f"{scheme}{login}@127.0.0.1:9", "base_url": REMOTE,
                                              "api_key": KEY})
                    for words in (["config", "-v"], ["config", "--json"]):
                        result = self.run_inside(*words, "--config", path)
                        self.assertIn("127.0.0.1:9", result.stdout)
                        self.assertNotIn(f"{login}@", result.stdout + result.stderr)
        result = self.run_inside("generate", PROMPT, "-v", "--config", path, "--timeout", "1")
        self.assertNotIn(f"{login}@", result.stderr)

    def test_input(self) -> None:
        for words in (["generate", "https://me:pw1@x.invalid/a.png"], ["edit", "https://me:pw1@x.invalid/a.png"]):
            result = self.run_inside(*words, *self.access())
            self.assertEqual(result.exit_code, 2)
            self.assertNotIn("pw1", result.stderr)
        self.assertEqual(program.shown_input("https://x.invalid/a.png#access_token=abc"), "https://x.invalid/a.png")


class OtherKeysInWrongPlacesTest(ProgramCase):
    """Keys with dots and hyphens are not repeated either."""

    def test_not_repeated(self) -> None:
        for key in (UUID, UUID.upper(), TOKEN):
            for words in (["--config", key], ["--prompt-file", key], ["--model", key],
                          ["--header", f"Bad name {key}: x"]):
                with self.subTest(words):
                    result = self.generate_inside(PROMPT, *words)
                    self.assertNotEqual(result.exit_code, 0)
                    self.assertNotIn(key, result.stdout + result.stderr)


class TypoTest(ProgramCase):
    """What somebody typed is repeated where it cannot well be a key."""

    def said(self, *words: str) -> str:
        result = self.run_inside(*words)
        self.assertEqual(result.exit_code, 2)
        return result.stderr

    def test_ordinary_words(self) -> None:
        for option, value in (("--quality", "ultra-high"), ("--background", "transparant"), ("--size", "landscape-hd"),
                              ("--moderation", "strict-mode"), ("--timeout", "ten-minutes"), ("--n", "several-images"),
                              ("--aspect-ratio", "sixteen-nine"), ("--param", "response_format"),
                              ("--size", "1024x1024x3"), ("--base-url", "api.relay2.example/v1"),
                              ("--base-url", "relay.example:8080")):
            self.assertIn(repr(value), self.said("generate", PROMPT, option, value))
        for words in (["generaet"], ["config", "showsettings"], ["config", "/home/me/config2.json"],
                      ["config", "~/config2.json"]):
            self.assertIn(repr(words[-1]), self.said(*words))

    def test_addresses(self) -> None:
        for url in ("localhost:8080", "localhost:8080/v1", "127.0.0.1:8080/v1", "relay.example/v1",
                    "https//relay.example/v1", "https:/relay.example/v1", "http:/localhost:1/v1"):
            said = self.said("generate", PROMPT, "--base-url", url)
            self.assertIn(repr(url.replace("//", "/")), said)
            self.assertIn("must start with https:// (http:// is local)", said)
        said = self.said("generate", PROMPT, "--base-url", "https://relay.example/v1?key=fake1234")
        self.assertRegex(said, "without a query")
        self.assertNotIn("fake1234", said)

    def test_ratio_as_typed(self) -> None:
        self.assertIn("'4max3'", self.said("generate", PROMPT, "--aspect-ratio", "4max3"))

    def test_key_with_a_word_in_front(self) -> None:
        for key in (f"Bearer {KEY}", f"bearer  {KEY}", f"OPENAI_API_KEY={KEY}"):
            result = self.generate_inside(PROMPT, env={"GPT_IMAGE2_API_KEY": key})
            self.assertEqual(result.exit_code, 3)
            self.assertIn("only the key", result.stderr)
            self.assertNotIn(KEY, result.stderr)

    def test_what_may_be_a_key(self) -> None:
        for word in ("abcd1234", "a" * 16, "test-key-1", "Abcdefgh1", "abc.def.gh1", "1234567890123",
                     "relay.example1/Key", "a@b.example/key1"):
            for words in (["--quality", word], ["--base-url", word]):
                self.assertNotIn(word, self.said("generate", PROMPT, *words))


class HonestNameTest(ProgramCase):
    """Names of files, models and variables that look a little like keys are still shown."""

    def test_files(self) -> None:
        self.file("sk-photo-2024.heic", b"\0\0\0\x18ftypheic" + bytes(20))
        self.file("sk-photo-2025.png", draw_png(64, 48))
        result = self.run_program("edit", "sk-photo-2024.heic", PROMPT, *self.access())
        self.assertIn("image sk-photo-2024.heic is", result.stderr)
        self.assertIn(f"{self.work}/sk-photo-2024.heic[0]", result.stderr)
        self.assertIn("edit sk-photo-2025.png", self.run_program("generate", "sk-photo-2025.png").stderr)

    def test_a_key_beside_such_a_file(self) -> None:
        self.file("sk-photo-2025.png", draw_png(64, 48))
        message = f"sk-photo-2025.png sk-0123456789 sk-photo-20250123456789 {KEY}"
        self.server.plan(Answer(status=400, body=json.dumps({"error": {"message": message}}).encode()))
        result = self.edit("sk-photo-2025.png", PROMPT)
        self.assertNotRegex(result.stderr, f"0123456789|{KEY}")

    def test_no_file_splits_a_key(self) -> None:
        self.server.key = ODD
        self.addCleanup(setattr, self.server, "key", KEY)
        for name in ("k", "ey", "sk-", "test"):
            self.file(name, draw_png(64, 48))
        self.server.plan(Answer(status=400, body=json.dumps({"error": {"message": f"no {ODD}"}}).encode()))
        result = self.run_program("edit", "k", "ey", "sk-", "test", PROMPT, *self.access(),
                                  env={"GPT_IMAGE2_API_KEY": ODD})
        self.assertEqual(result.exit_code, 4, result.stderr)
        self.assertIn("no ***", result.stderr)

    def test_models_and_variables(self) -> None:
        for model in ("my_gpt_image_2_production", "gpt_image_2_2026_04_21_team", "GPT_IMAGE_2_EAST_US_PROD"):
            self.assertEqual(self.generate_inside(PROMPT, "--model", model, "--json").json["model"], model)
        name = "MY_COMPANY_OPENAI_KEY2"
        self.assertIn(name, self.generate_inside(PROMPT, "--api-key-env", name).stderr)
        for key in ("fake_live_0123456789abcdef", "fakeword0123456789abcdef", "r8_fake0fake1fake2fake3"):
            self.assertEqual(self.generate_inside(PROMPT, "--model", key, "--json").json["model"], "***")

    def test_words_about_bearers(self) -> None:
        for text in ("use Bearer authentication here", "missing bearer credentials", "a Bearer scheme"):
            self.assertEqual(program.redact(text, ()), text)
        for text in ("Bearer abc123", "Bearer abcdefghijklmnop", "bearer  a-b.c_d0"):
            self.assertEqual(program.redact(text, ()), "***")

    def test_prompt_with_a_word_that_is_a_password(self) -> None:
        result = self.generate("a lock as the icon of a password manager",
                               env={"https_proxy": "http://me:password@127.0.0.1:9"})
        self.assert_succeeded(result)
