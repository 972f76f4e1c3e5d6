"""Settings that stay: a config file's defaults for pictures, how --init writes them, and which key goes where."""
from __future__ import annotations

import json
import os
import pty
import select
import sys
import time
import unittest
from pathlib import Path
from typing import Any

from support import KEY, PROGRAM, SETUP, USAGE, ProgramCase, plain_png, program

DEFAULTS = {"quality": "low", "size": "square", "format": "webp", "compression": 50, "background": "opaque",
            "moderation": "low"}
SENT = {"quality": "low", "size": "1024x1024", "output_format": "webp", "output_compression": 50,
        "background": "opaque", "moderation": "low"}


class DefaultsCase(ProgramCase):
    """Dry runs tell what would be sent, so that many settings can be tried quickly."""

    def told(self, *words: str, config: Any = None, api: str = "openai") -> dict[str, Any]:
        """What a dry run tells with this config file."""
        self.write_config(config or {})
        result = self.run_inside(*(words or ("generate", "a fox")), "--dry-run", "--json", "--api", api)
        self.assertEqual(result.exit_code, 0, result)
        return result.json

    def sent(self, *options: str, **about: Any) -> dict[str, Any]:
        """The parameters that would be sent."""
        parameters: dict[str, Any] = self.told("generate", "a fox", *options, **about)["parameters"]
        return parameters


class PictureDefaultsTest(DefaultsCase):

    def test_all_of_them_are_sent(self) -> None:
        self.assertEqual(self.sent(config=DEFAULTS), SENT)
        self.assertEqual(self.sent(config={}), {})

    def test_a_flag_always_wins(self) -> None:
        for flags, changed in ((("--quality", "high"), {"quality": "high"}),
                               (("--size", "portrait"), {"size": "1024x1536"}),
                               (("--format", "jpeg"), {"output_format": "jpeg"}),
                               (("--compression", "7"), {"output_compression": 7}),
                               (("--background", "transparent"), {"background": "transparent"}),
                               (("-o", "fox.jpg"), {"output_format": "jpeg"})):
            self.assertEqual(self.sent(*flags, config=DEFAULTS), {**SENT, **changed}, flags)
            path = self.write_config(DEFAULTS, path=self.work / "mine.json")
            told = self.run_inside("generate", "a fox", *flags, "--dry-run", "--json", "--config", path).json
            self.assertEqual((told["parameters"], told["warnings"]), ({**SENT, **changed}, []), flags)
        for flags, gone in ((("--quality", "auto"), "quality"), (("--size", "auto"), "size")):
            self.assertEqual(self.sent(*flags, config=DEFAULTS), {name: SENT[name] for name in SENT if name != gone})

    def test_what_other_options_say_is_left_out_quietly(self) -> None:
        told = self.told("generate", "a fox", "--aspect-ratio", "16:9", "-o", "x.png", config={"size": "square",
                                                                                              "format": "webp"})
        self.assertEqual((told["parameters"], told["warnings"]), ({"size": "1280x720"}, []))

    def test_what_does_not_fit_is_left_out_with_a_note(self) -> None:
        for config, api, left in (
                ({"quality": "xhigh"}, "openai", "quality"), ({"format": "gif"}, "openai", "format"),
                ({"size": "1000x1000"}, "openai", "size"), ({"compression": 50}, "openai", "compression"),
                ({"format": "jpeg", "background": "transparent"}, "openai", "background"),
                ({"quality": "low"}, "runapi", "quality"), ({"moderation": "low"}, "runapi", "moderation"),
                ({"size": "1024x1040"}, "runapi", "size"),
                ({"model": "gpt-image-1.5", "size": "2048x1152"}, "openai", "size"),
                ({"base_url": "https://x.openai.azure.com", "format": "webp"}, "azure", "format")):
            told = self.told(config=config, api=api)
            (warning,) = [line for line in told["warnings"] if "left out" in line] or [str((config, told))]
            self.assertTrue(warning.startswith(f"{left} {config[left]} (from "), warning)
            self.assertNotIn({"format": "output_format", "compression": "output_compression"}.get(left, left),
                             told["parameters"])

    def test_output_is_a_file_or_a_folder(self) -> None:
        pictures = self.home / "pictures"
        for output, path in (("~/pictures", pictures / "gpt-image2-output.png"),
                             ("~/a/fox.webp", self.home / "a" / "fox.webp"),
                             ("~/pictures/", pictures / "gpt-image2-output.png")):
            self.assertEqual(self.told(config={"output": output})["output"], str(path), output)
        self.assertEqual(self.told("generate", "a fox", "-o", "b.png", config={"output": "~/pictures"})["output"],
                         str(self.work / "b.png"))
        self.assertEqual(self.told(config={"output": "~/x", "format": "jpeg"})["output"],
                         str(self.home / "x" / "gpt-image2-output.jpg"))

    def test_wrong_values_are_named_with_file_and_setting(self) -> None:
        for name, value in (("quality", 3), ("compression", 101), ("compression", "5"), ("background", "pink"),
                            ("moderation", "none"), ("format", "bmp2"), ("format", "tiff"), ("output", 1), ("size", 7),
                            ("size", "foo"),
                            ("quality", "best"), ("timeout", 0),
                            ("price_per_image", -1), ("history", "no")):
            path = self.write_config({name: value})
            result = self.run_inside("generate", "a fox", "--dry-run")
            self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1), (name, value, result))
            self.assertIn(f"{path}: {name} ", result.stderr)

    def test_config_shows_them_with_their_source(self) -> None:
        path = self.write_config(DEFAULTS)
        shown = self.run_inside("config", "--json").json["settings"]
        for name in program.PICTURE_KEYS:
            self.assertEqual(shown[name]["source"], path if name in DEFAULTS else "default", name)
        self.assertEqual(shown["quality"]["value"], "low")

    def test_they_are_part_of_what_is_asked_for(self) -> None:
        """With a real run: the same words under other defaults are another picture."""
        for quality in ("low", "high", "low"):
            self.write_config({"quality": quality})
            self.assert_succeeded(self.generate("a fox", "-o", "fox.png"))
        self.assertEqual([post.fields["quality"] for post in self.server.posts], ["low", "high"])


class InitWritesTest(ProgramCase):

    def written(self, *options: str, exit_code: int = 0, **env: str) -> dict[str, Any]:
        """What --init writes."""
        result = self.run_inside("config", "--init", "--force", *options, env=env)
        self.assertEqual(result.exit_code, exit_code, result)
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        content: dict[str, Any] = json.loads(path.read_text())
        for name, value in content.items():
            self.assertIn(f"{name} {value}" if isinstance(value, str) else name, result.stdout)
        return content

    def test_what_it_is_given(self) -> None:
        base = {"base_url": "https://api.openai.com/v1", "api_key_env": "GPT_IMAGE2_API_KEY"}
        self.assertEqual(self.written("--quality", "low", "--timeout", "300", "--max-cost", "0.5", "--model", "other"),
                         {**base, "quality": "low", "timeout": 300.0, "max_cost": 0.5, "model": "other"})
        self.assertEqual(self.written("--output", "pictures/"), {**base, "output": str(self.work / "pictures") + "/"})
        self.assertEqual(self.written("--header", "X-A: b", "--allow-http", "--base-url", "http://10.0.0.1/v1"),
                         {**base, "headers": {"X-A": "b"}, "allow_http": True, "base_url": "http://10.0.0.1/v1"})
        self.assertEqual(self.written("--api", "runapi"), {"api": "runapi", "base_url": "https://runapi.ai",
                                                           "api_key_env": "RUNAPI_API_KEY"})
        self.assertEqual(self.written("--api", "codex"), {"api": "codex",
                                                          "base_url": "https://chatgpt.com/backend-api/codex"})

    def test_nothing_wrong_and_no_secret(self) -> None:
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        for options in (["--quality", "best"], ["--size", "foo"], ["--header", "Authorization: Bearer test-key"],
                        ["--header", "X-Api-Key: test-key"]):
            result = self.run_inside("config", "--init", *options)
            self.assertIn(result.exit_code, (USAGE, SETUP), result)
            self.assertEqual((len(result.errors), path.exists()), (1, False), result)
            self.assertNotIn("test-key", result.stdout + result.stderr)
        result = self.run_inside("config", "--init", "--header", "X-Team: a-word-of-mine")
        self.assertNotIn("a-word-of-mine", result.stdout)
        self.assertEqual(json.loads(path.read_text())["headers"], {"X-Team": "a-word-of-mine"})

    def test_what_was_written_is_used(self) -> None:
        self.written("--quality", "low", "--output", "pictures", "--base-url", self.server.url)
        result = self.run_program("generate", "a fox", env={"GPT_IMAGE2_API_KEY": KEY}, cwd=self.home)
        self.assertEqual(self.saved_file(result), self.work / "pictures" / "gpt-image2-output.png")
        self.assertEqual(self.only_post().fields["quality"], "low")

    def test_key_is_refused_and_an_older_one_is_kept_beside(self) -> None:
        path = Path(self.write_config({"api_key": "an-older-key"}))
        copy = path.parent / "config.json.bak"
        refused = self.run_inside("config", "--init", "--force", "--api-key", KEY)
        self.assertEqual((refused.exit_code, copy.exists()), (USAGE, False))
        self.written()
        self.assertEqual(json.loads(copy.read_text()), {"api_key": "an-older-key"})
        self.assertEqual(copy.stat().st_mode & 0o777, 0o600)
        copy.unlink()
        self.written()
        self.assertFalse(copy.exists(), "the file that was replaced held no key")


@unittest.skipUnless(os.name == "posix", "needs a terminal")
class InitAsksTest(ProgramCase):

    def talk(self, *answers: tuple[str, str], env: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> str:
        """Run --init on a terminal; (what it asks, what is typed) in turn. What was on the screen."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(str(self.work))
            os.execve(sys.executable, [sys.executable, str(PROGRAM), "config", "--init", "--base-url", self.server.url,
                                       *options], self.environment(env))
        screen, waiting = "", list(answers)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(terminal, 4096).decode()
            except OSError:
                break
            if not piece:
                break
            screen += piece
            if waiting and waiting[0][0] in screen:
                os.write(terminal, waiting.pop(0)[1].encode() + b"\n")
        os.close(terminal)
        self.exit_code = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
        self.assertEqual(waiting, [], screen)
        return screen

    def content(self) -> dict[str, Any]:
        """What was written."""
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def test_key_is_asked_for_unseen_kept_and_checked(self) -> None:
        screen = self.talk(("API key for", KEY), ("Keep it in", ""))
        self.assertEqual((self.exit_code, self.content()), (0, {"base_url": self.server.url, "api_key": KEY}), screen)
        self.assertNotIn(KEY, screen)
        self.assertIn("accepts the key", screen)
        self.assertNotIn("takes precedence", screen)
        self.assertIn('generate "a red fox in the snow"', screen)

    def test_variable_instead(self) -> None:
        screen = self.talk(("API key for", ""), ("Name of the variable", "MY_IMAGE_KEY"))
        self.assertEqual(self.content(), {"base_url": self.server.url, "api_key_env": "MY_IMAGE_KEY"}, screen)
        self.assertIn("Set MY_IMAGE_KEY, then run", screen)
        screen = self.talk(("API key for", KEY), ("Keep it in", "n"), ("Name of the variable", ""),
                           options=("--force",))
        self.assertEqual(self.content(), {"base_url": self.server.url, "api_key_env": "GPT_IMAGE2_API_KEY"}, screen)
        self.assertNotIn(KEY, screen)

    def test_wrong_answers(self) -> None:
        for key in ("your-key-here", "two words"):
            screen = self.talk(("API key for", key))
            self.assertEqual(self.exit_code, SETUP, screen)
            self.assertNotIn("Traceback", screen)
            self.assertFalse((self.home / ".config" / "gpt-image-2" / "config.json").exists())

    def test_nothing_is_asked_where_a_key_is_set_or_named_or_nobody_is_there(self) -> None:
        told = self.run_inside("config", "--init", "--json", "--quality", "low").json
        self.assertEqual(told["written"]["quality"], "low")
        for env, options in (({"GPT_IMAGE2_API_KEY": KEY}, ()), ({}, ("--api-key-env", "MY_KEY")), ({}, ("--json",))):
            screen = self.talk(env=env, options=("--force", *options))
            self.assertEqual(self.exit_code, 0, screen)
            self.assertNotIn("API key for", screen)
        result = self.run_program("config", "--init", "--force", stdin="x\n")
        self.assertEqual((result.exit_code, result.stderr), (0, ""))


class KeyChoiceTest(ProgramCase):

    def key_sent(self, *options: str, config: Any = None, env: dict[str, str] | None = None) -> str:
        """The key that the server gets from a command with this config and these variables."""
        self.write_config(config or {})
        self.server.reset()
        self.forget()
        self.run_program("generate", "a fox", *options, env=env)
        return self.server.posts[0].header("authorization")[7:] if self.server.posts else ""

    def test_variable_that_is_named_and_unset(self) -> None:
        for env in ({}, {"GPT_IMAGE2_API_KEY": "another-key"}):
            self.write_config({"base_url": self.server.url, "api_key_env": "MY_IMAGE_KEY"})
            result = self.run_program("generate", "a fox", env=env)
            self.assertEqual((result.exit_code, len(result.errors), self.server.requests), (SETUP, 1, []), result)
            self.assertIn("$MY_IMAGE_KEY", result.stderr)
            self.assertIn("Set it", result.stderr)
        env = {"OTHER_KEY": KEY, "GPT_IMAGE2_API_KEY": "another-key"}
        result = self.run_program("generate", "a fox", "--api-key-env", "OTHER_KEY", env=env)
        self.assertEqual(self.only_post().header("authorization"), f"Bearer {KEY}", result)

    def test_variable_of_the_command_line(self) -> None:
        for name in ("NOPE", "my_key", "MY_KEY", "MyKey"):
            result = self.run_inside("generate", "a fox", "--api-key-env", name)
            self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1), result)
            self.assertIn(f"${name}, named by --api-key-env, is not set", result.stderr)

    def test_own_address_goes_first_and_the_port_counts(self) -> None:
        other = "http://127.0.0.1:9/v1"
        config = {"base_url": other, "api_key": "key-of-the-file"}
        env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": self.server.url}
        self.assertEqual(self.key_sent("--base-url", self.server.url, config=config, env=env), KEY)
        self.assertEqual(self.key_sent("--base-url", self.server.url, config=config, env={}), "key-of-the-file")
        sent = self.key_sent("--base-url", self.server.url, "--api-key", "key-of-flag", config=config, env=env)
        self.assertEqual(sent, "key-of-flag")

    def test_runapi_prefers_its_own_variable(self) -> None:
        env = {"GPT_IMAGE2_API_KEY": "ours", "RUNAPI_API_KEY": "its-own", "OPENAI_API_KEY": "vendor"}
        shown = self.run_inside("config", "--json", "--api", "runapi", env=env).json["settings"]
        self.assertEqual(shown["api_key"]["source"], "$RUNAPI_API_KEY")

    def test_edit_takes_the_defaults_too(self) -> None:
        self.file("in.png", plain_png(64, 64))
        self.write_config({"quality": "high", "base_url": self.server.url})
        self.run_program("edit", "in.png", "a hat", env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual(self.only_post().fields["quality"], "high")
