"""The price before paying: an estimate, a dry run and a limit."""
from __future__ import annotations

import base64
import json
import os
import pty
import sys
import threading
import unittest
from pathlib import Path
from typing import Any

from api_server import Answer
from support import PROGRAM, SETUP, USAGE, ProgramCase, World, finish, mask_png, plain_png, program
from test_kill import KillCase

# OpenAI's prices and counts of tokens, published or measured (reference, read 2026-08-29 and 2026-10-08).
TOKENS = {"1024x1024": (196, 1756, 7024), "1024x1536": (158, 1372, 5488), "2048x1152": (157, 1413, 5650),
          "2048x2048": (397, 3568, 14272), "3840x2160": (371, 3336, 13342)}
DOLLARS = {"1024x1024": (0.006, 0.053, 0.211), "1024x1536": (0.005, 0.041, 0.165), "1536x1024": (0.005, 0.041, 0.165)}


class PriceCase(ProgramCase):
    """Dry runs against the real address: nothing is sent, so no price is made up for a loopback server."""

    def dry(self, *words: str, config: Any = None, exit_code: int = 0) -> dict[str, Any]:
        """What a dry run tells."""
        if config is not None:
            self.write_config(config)
        result = self.run_inside(*words, "--dry-run", "--json")
        self.assertEqual(result.exit_code, exit_code, result)
        return result.json

    def price(self, *options: str, prompt: str = "a fox", **about: Any) -> list[float] | None:
        """The estimate for a picture."""
        found: list[float] | None = self.dry("generate", prompt, *options, **about)["estimate_usd"]
        return found


class TokensTest(unittest.TestCase):

    def test_every_published_or_measured_count(self) -> None:
        for size, counts in TOKENS.items():
            width, height = map(int, size.split("x"))
            found = [program.image_tokens(width, height, quality) for quality in ("low", "medium", "high")]
            self.assertEqual(found, list(counts), size)
            self.assertEqual([program.image_tokens(height, width, each) for each in program.PATCHES], found, size)

    def test_the_help_names_prices_and_times(self) -> None:
        told = program.help_for(["generate", "--help"])
        for (quality, seconds), dollars in zip(program.TYPICAL_SECONDS.items(), DOLLARS["1024x1024"]):
            self.assertIn(f"{quality} (${dollars}, {seconds} s)", told)

    def test_every_published_price(self) -> None:
        for size, prices in DOLLARS.items():
            width, height = map(int, size.split("x"))
            for quality, dollars in zip(program.PATCHES, prices):
                self.assertEqual(round(program.image_tokens(width, height, quality) * 30e-6, 3), dollars, size)


class PricesInDocumentsTest(unittest.TestCase):

    def test_help_and_readme_say_the_same(self) -> None:
        readme = (PROGRAM.parent.parent / "README.md").read_text(encoding="utf-8")
        for quality, seconds in program.TYPICAL_SECONDS.items():
            dollars = f"${program.image_tokens(1024, 1024, quality) * 30e-6:.3f}"
            self.assertIn(f"| `{quality}` | {dollars} | {seconds} s |", readme)
            self.assertIn(f"{quality} ({dollars}, {seconds} s)", program.help_for(["generate", "--help"]))


class EstimateTest(PriceCase):

    def test_published_prices_are_inside(self) -> None:
        for size, prices in DOLLARS.items():
            for quality, dollars in zip(("low", "medium", "high"), prices):
                low, high = self.price("--size", size, "--quality", quality) or (0, 0)
                self.assertTrue(dollars - 0.0006 <= low <= high <= dollars + 0.0006, (size, quality, low, high))

    def test_auto_is_a_range(self) -> None:
        low, high = self.price() or (0, 0)
        self.assertTrue(0.004 < low < 0.006 and 0.21 < high < 0.215, (low, high))
        low, high = self.price("--quality", "medium") or (0, 0)
        self.assertTrue(0.04 < low < 0.042 and 0.052 < high < 0.054, (low, high))

    def test_count_partials_prompt_and_inputs_are_counted(self) -> None:
        plain = self.price("--quality", "low", "--size", "square") or [0, 0]
        for options, least in ((("--n", "10"), 9 * 0.0058), (("--stream", "--partial-images", "3"), 3 * 0.003 - 1e-4)):
            price = self.price("--quality", "low", "--size", "square", *options) or [0, 0]
            self.assertGreaterEqual(price[0] - plain[0], least, options)
        long = self.price("--quality", "low", "--size", "square", prompt="a red fox " * 2000) or [0, 0]
        self.assertGreater(long[0], plain[0] + 0.01)
        self.file("in.png", plain_png(64, 64))
        edit = self.dry("edit", "in.png", "a hat", "--quality", "low", "--size", "square")["estimate_usd"]
        self.assertTrue(plain[0] + 0.004 <= edit[0] <= edit[1] <= plain[1] + 0.012, edit)

    def test_unknown_is_not_made_up(self) -> None:
        for options in (("--base-url", "https://relay.example/v1"), ("--model", "gpt-image-2.5-flare"),
                        ("--model", "other"), ("--api", "runapi"), ("--param", "quality=ultra"),
                        ("--param", "size=[1]"), ("--base-url", "https://x.openai.azure.com")):
            self.assertIsNone(self.price(*options), options)
        self.assertIsNotNone(self.price("--model", "gpt-image-2-2026-04-21"))

    def test_flat_price_of_a_relay(self) -> None:
        price = self.price("--n", "3", config={"base_url": "https://relay.example/v1", "price_per_image": 0.02})
        self.assertEqual(price, [0.06, 0.06])
        for value, message in ((-1, "price_per_image"), ("2", "price_per_image"), (True, "price_per_image")):
            told = self.dry("generate", "a fox", config={"price_per_image": value}, exit_code=SETUP)
            self.assertIn(message, told["error"]["message"])
            self.assertIn("config.json", told["error"]["message"])


    def test_what_param_says_counts(self) -> None:
        plain = self.price("--quality", "low", "--size", "square") or [0, 0]
        ten = self.price("--quality", "low", "--size", "square", "--param", "n=10") or [0, 0]
        self.assertGreater(ten[0], 9 * plain[0])
        for odd in ("n=0", "n=-3", "n=x", "partial_images=-1000", "model=other", "size=0x0", "quality=[1]"):
            self.assertIsNone(self.price("--param", odd), odd)

    def test_flat_price_belongs_to_its_host(self) -> None:
        config = {"base_url": "https://relay.example/v1", "price_per_image": 0.01, "api_key": "test-key"}
        price = self.price("--base-url", "https://api.openai.com/v1", "--quality", "high", "--size", "square",
                           config=config)
        self.assertGreater((price or [0])[0], 0.2)
        for value in ("NaN", "Infinity", "-Infinity", "1e999"):
            self.write_config('{"price_per_image": %s}' % value)
            result = self.run_inside("generate", "a fox", "--dry-run", "--max-cost", "0.01")
            self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1), value)


class DryRunTest(PriceCase):

    def test_shows_no_key(self) -> None:
        env = {"GPT_IMAGE2_API_KEY": "test-key-of-mine"}
        for words in (["a fox with test-key-of-mine"], ["a fox", "--param", "user=test-key-of-mine"]):
            result = self.run_inside("generate", *words, "--dry-run", "--json", env=env)
            self.assertEqual(result.exit_code, USAGE, result)
            self.assertNotIn("test-key-of-mine", result.stdout + result.stderr)

    def test_needs_no_sign_in(self) -> None:
        told = self.dry("generate", "a fox", "--api", "codex")
        self.assertEqual((told["url"], told["estimate_usd"]),
                         ("https://chatgpt.com/backend-api/codex/images/generations", None))

    def test_taken_name_is_told_like_in_a_run(self) -> None:
        self.file("taken.png", plain_png(8, 8))
        told = self.dry("generate", "a fox", "-o", "taken.png")
        self.assertIn("already exists; saving to a new name", " ".join(told["warnings"]))

    def test_looks_into_data_addresses(self) -> None:
        picture = base64.b64encode(plain_png(64, 64)).decode()
        for content, fault in ((picture, ""), (picture[:-40], "is incomplete"), ("AAAA", "is not a PNG"),
                               ("!", "is not a PNG")):
            result = self.run_program("edit", "data:image/png;base64," + content, "a hat", "--dry-run")
            self.assertEqual((result.exit_code, fault in result.stderr), (USAGE if fault else 0, True), result)

    def test_leaves_everything_as_it_was(self) -> None:
        picture = "data:image/png;base64," + base64.b64encode(plain_png(64, 64)).decode()
        before = sorted(map(str, self.root.rglob("*")))
        for words in (("generate", "a fox", "-o", "new/folder/fox.png"),
                      ("generate", "a fox", "--stream", "--partial-images", "2", "--overwrite", "--fresh"),
                      ("edit", "https://example.com/a.png", "a hat"), ("edit", picture, "a hat"),
                      ("generate", "a fox", "--api", "runapi")):
            result = self.run_program(*words, "--dry-run", env={"PATH": "/nowhere", "https_proxy": "http://127.0.0.1:1"})
            self.assertEqual(result.exit_code, 0, result)
            self.assertEqual(sorted(map(str, self.root.rglob("*"))), before, words)
        self.assertEqual(self.server.requests, [])

    def test_says_what_would_be_sent_where_it_goes_and_what_it_costs(self) -> None:
        self.file("in.png", plain_png(64, 64))
        told = self.dry("edit", "in.png", "a hat", "--quality", "high", "--n", "2", "-o", "hat.webp")
        names = ("would", "method", "url", "model", "prompt", "parameters")
        self.assertEqual(tuple(told[name] for name in names),
                         ("buy", "POST", "https://api.openai.com/v1/images/edits", "gpt-image-2", "a hat",
                          {"quality": "high", "n": 2, "output_format": "webp"}))
        self.assertEqual((told["output"], told["typical"]), (str(self.work / "hat-1.webp"), "280 s"))
        self.assertEqual([Path(file["path"]).name for file in told["files"]], ["in.png"])
        text = self.run_program("generate", "a fox", "--quality", "low", "--size", "square", "--dry-run").stdout
        self.assertEqual(text.split("\n"), [
            "would buy: POST https://api.openai.com/v1/images/generations, gpt-image-2, size 1024x1024, quality low",
            f"to {self.home / 'gpt-image2-output.png'}", "price: about $0.006; time: 70 s", ""])

    def test_refuses_what_a_run_refuses(self) -> None:
        self.file("in.png", plain_png(64, 64))
        self.file("mask.png", mask_png(64, 64, clear=False))
        self.file("a-file", "x")
        for words in (("edit", "in.png", "a hat", "--mask", "mask.png"), ("edit", "missing.png", "a hat"),
                      ("generate", "a fox", "-o", "a-file/fox.png"), ("generate", "a fox", "--size", "17x17")):
            dry, real = (self.run_program(*words, *more, env={"GPT_IMAGE2_API_KEY": "test-key"})
                         for more in (["--dry-run"], self.access()))
            self.assertEqual((dry.exit_code, real.exit_code), (USAGE, USAGE), words)
            self.assertEqual(dry.stderr, real.stderr, words)


@unittest.skipUnless(os.name == "posix", "needs flock")
class OutlookTest(KillCase):

    def outlook(self, world: World, *more: str) -> tuple[str, Any]:
        """What a dry run expects of the command of a world."""
        told = finish(world.launch(sys.executable, PROGRAM, *world.command("--dry-run", "--json", *more))).json
        return told["would"], told["estimate_usd"]

    def test_nothing_was_bought_yet(self) -> None:
        self.server.plan(Answer(status=429, headers=(("Retry-After", "30"),)))
        world = self.trial("limited")
        child = self.start_and_wait(world)
        assert child.stderr
        while b"trying again" not in child.stderr.readline():
            pass
        self.kill(child)
        self.assertEqual(self.outlook(world), ("buy", None))

    def test_buy_collect_and_made_before(self) -> None:
        answered = threading.Event()
        self.addCleanup(answered.set)
        self.server.plan(Answer(event=answered))
        world = self.trial("outlook")
        self.assertEqual(self.outlook(world), ("buy", None))
        child = self.start_and_wait(world)
        self.assertEqual(self.outlook(world), ("collect", [0.0, 0.0]))
        self.assertEqual(self.outlook(world, "-o", "other.png"), ("buy", None), "somebody works on it")
        self.kill(child)
        self.assertEqual(self.outlook(world, "-o", "other.png"), ("collect", [0.0, 0.0]))
        self.assertEqual(self.outlook(world, "--fresh"), ("buy", None))
        answered.set()
        self.collect(world, "outlook")
        self.assertEqual(self.outlook(world), ("made_before", [0.0, 0.0]))
        self.assertEqual(self.outlook(world, "-o", "other.png"), ("buy", None))


@unittest.skipUnless(os.name == "posix", "needs flock")
class LimitTest(KillCase):

    def limited(self, world: World, limit: object, **config: Any) -> Any:
        """Run a world's command with a flat price of 2 cents and a limit."""
        content = {"price_per_image": 0.02, "base_url": self.server.url, **config}
        self.write_config(content, path=world.home / ".config" / "gpt-image-2" / "config.json")
        return world.run("--json", *([] if limit is None else ["--max-cost", str(limit)]))

    def test_too_expensive_is_not_sent(self) -> None:
        world = self.trial("limit", "--n", "3")
        for limit, config in ((0.05, {}), (None, {"max_cost": 0.05}), (0.05, {"max_cost": 1})):
            result = self.limited(world, limit, **config)
            error = result.json["error"]
            self.assertEqual((result.exit_code, error["kind"], error["billed"]), (USAGE, "too_expensive", "no"), result)
            self.assertIn("0.06", error["message"])
            self.assertIn("0.05", error["message"])
            self.assertEqual((world.posts(), world.journal(), world.leftovers()), (0, [], []))
        self.assertEqual((self.limited(world, 0.06).exit_code, world.posts()), (0, 1))

    def test_stricter_limit_wins_beside_an_explicit_file(self) -> None:
        world = self.trial("stricter")
        path = self.write_config({"base_url": self.server.url, "price_per_image": 0.5, "max_cost": 1},
                                 path=world.work / "mine.json")
        result = world.run("--config", path, "--max-cost", "0.1", "--json")
        self.assertEqual((result.exit_code, result.json["error"]["kind"], world.posts()), (USAGE, "too_expensive", 0))

    def test_first_line_on_a_terminal_names_a_notable_price(self) -> None:
        for price, shown in ((0.2, True), (0.02, False)):
            world = self.trial(f"notable-{shown}")
            self.limited(world, None, price_per_image=price)
            leader, terminal = pty.openpty()
            child = world.start("--fresh", stderr=terminal)
            os.close(terminal)
            child.communicate(timeout=30)
            self.assertEqual(f"typically 70 to 280 s, about ${price:.3f}".encode() in os.read(leader, 10_000), shown)
            os.close(leader)

    def test_flat_price_is_the_cost(self) -> None:
        world = self.trial("flat", "--n", "2")
        self.assertEqual(self.limited(world, None).json["cost_usd"], 0.04)
        self.assertEqual(self.limited(world, None).json["cost_usd"], 0.04)

    def test_unknown_price_is_refused(self) -> None:
        world = self.trial("unknown")
        result = self.limited(world, 5, price_per_image=None)
        self.assertEqual((result.exit_code, result.json["error"]["kind"], world.posts()), (USAGE, "too_expensive", 0))
        self.assertIn("price_per_image", result.json["error"]["hint"])

    def test_what_is_paid_already_passes(self) -> None:
        self.server.plan(Answer(delay=1.0))
        world = self.trial("paid")
        self.kill(self.start_and_wait(world))  # ended or not: it is paid
        sources = [self.limited(world, 0.001).json["source"] for _ in range(2)]
        self.assertEqual((sources, world.posts()), (["collected", "made_before"], 1))

    def test_bad_limits(self) -> None:
        for value in ("0", "-1", "abc", "nan", "inf", ""):
            result = self.generate("a fox", f"--max-cost={value}")
            self.assertEqual((result.exit_code, len(result.errors)), (USAGE, 1), (value, result))
            self.assertIn("--max-cost", result.stderr)
        for broken in ("1", True, 0, -2, [1]):
            self.write_config(json.dumps({"max_cost": broken}))
            result = self.generate("a fox")
            self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1), (broken, result))
            self.assertIn("max_cost", result.stderr)
        self.assertEqual(self.server.posts, [])
