"""generate: what goes over the wire, which files appear, and what the caller reads."""
from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from api_server import Answer, draw_png, sniff
from support import KEY, PROGRAM, RESULT_FIELDS, ProgramCase

PROMPT = "a red fox"
NASTY_PROMPTS = (
    'say "hello"', "it's", "back\\slash \\n \\", "two\nlines\n\nand more", "a\r\nb", "tab\there",
    "@/usr/share/dict/words", "<secret", "a;type=text/html", "a;filename=b", "a, b; c=d", "%{http_code} %s %41",
    "{a,b}[1-3]", "$HOME `id` $(id)", '"\noutput = "evil.txt"\n"', "\N{FOX FACE} \u732b \u00fc \u2028",
    " blanks around ", "#hash // comment", "\x1b[2J", "null", "{\"a\": 1}", "\ufeffmark")


class GenerateRequestTest(ProgramCase):
    """The request that arrives."""

    def test_default_body_is_model_and_prompt(self) -> None:
        self.saved_file(self.generate(PROMPT))
        post = self.only_post()
        self.assertEqual((post.method, post.path), ("POST", "/v1/images/generations"))
        self.assertEqual(json.loads(post.body), {"model": "gpt-image-2", "prompt": PROMPT})
        self.assertEqual(len(self.server.requests), 1)

    def test_headers(self) -> None:
        self.generate(PROMPT)
        post = self.only_post()
        self.assertEqual(post.header("Authorization"), f"Bearer {KEY}")
        self.assertEqual(post.header("Content-Type"), "application/json")
        self.assertRegex(post.header("User-Agent"), r"^curl/\d")
        self.assertEqual(post.header("Content-Length"), str(len(post.body)))
        allowed = {"host", "user-agent", "accept", "accept-encoding", "authorization", "content-type", "content-length"}
        self.assertEqual({name.lower() for name, _ in post.headers}, allowed)

    def test_what_is_default_is_not_sent(self) -> None:
        self.generate(PROMPT, "--quality", "auto", "--size", "auto", "--background", "auto", "--moderation", "auto",
                      "--n", "1", "--format", "png", "--model", "gpt-image-2", "--timeout", "600")
        self.assertEqual(self.only_post().fields, {"model": "gpt-image-2", "prompt": PROMPT})

    def test_each_option_becomes_its_field(self) -> None:
        table: tuple[tuple[list[str], dict[str, Any]], ...] = (
            (["--quality", "low"], {"quality": "low"}), (["--quality", "high"], {"quality": "high"}),
            (["--size", "1536x1024"], {"size": "1536x1024"}), (["--size", "2048X1152"], {"size": "2048x1152"}),
            (["--size", "square"], {"size": "1024x1024"}), (["--size", "landscape"], {"size": "1536x1024"}),
            (["--size", "portrait"], {"size": "1024x1536"}), (["--size", "3840x2160"], {"size": "3840x2160"}),
            (["--size", "1024x640"], {"size": "1024x640"}), (["--format", "jpeg"], {"output_format": "jpeg"}),
            (["--format", "jpg"], {"output_format": "jpeg"}), (["--format", "webp"], {"output_format": "webp"}),
            (["--format", "webp", "--compression", "0"], {"output_format": "webp", "output_compression": 0}),
            (["--format", "jpg", "--compression", "100"], {"output_format": "jpeg", "output_compression": 100}),
            (["--background", "opaque"], {"background": "opaque"}),
            (["--background", "transparent"], {"background": "transparent"}),
            (["--moderation", "low"], {"moderation": "low"}), (["--n", "2"], {"n": 2}),
            (["--model", "gpt-image-2-2026-04-21"], {"model": "gpt-image-2-2026-04-21"}),
            (["--model", "gpt-image-2.5-flare", "--quality", "max"],
             {"model": "gpt-image-2.5-flare", "quality": "max"}),
            (["--param", "user=me"], {"user": "me"}))
        self.check_fields(table)

    def test_extra_parameters(self) -> None:
        table: tuple[tuple[list[str], dict[str, Any]], ...] = (
            (["--param", "seed=7"], {"seed": 7}), (["--param", "guide=1.5"], {"guide": 1.5}),
            (["--param", "fast=true", "--param", "slow=null"], {"fast": True, "slow": None}),
            (["--param", 'more={"a": [1, "b"]}'], {"more": {"a": [1, "b"]}}), (["--param", 'id="7"'], {"id": "7"}),
            (["--param", "style=oil = 'thick'"], {"style": "oil = 'thick'"}), (["--param", "empty="], {"empty": ""}),
            (["--param", 'odd=@"x";\n\\'], {"odd": '@"x";\n\\'}), (["--param", "size=2k"], {"size": "2k"}))
        for options, fields in table:
            with self.fresh(" ".join(options)):
                self.server.plan(Answer(check=False))
                self.saved_file(self.generate_inside(PROMPT, *options))
                self.assertEqual(self.only_post().fields, {"model": "gpt-image-2", "prompt": PROMPT, **fields})

    def check_fields(self, table: tuple[tuple[list[str], dict[str, Any]], ...]) -> None:
        """Run generate with each row's options and compare the body that arrives."""
        commands = [["generate", f"row {row}", *self.access(), "-o", f"{row}.png", *options]
                    for row, (options, _) in enumerate(table)]
        results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY})
        arrived = self.posts_by_prompt()
        for row, (options, fields) in enumerate(table):
            with self.subTest(" ".join(options)):
                self.assert_succeeded(results[row])
                self.assertEqual(arrived[f"row {row}"].fields,
                                 {"model": "gpt-image-2", "prompt": f"row {row}", **fields})

    def test_extra_headers(self) -> None:
        self.generate(PROMPT, "--header", "X-Relay: fast; \"and\" \\ cheap", "--header", "OpenAI-Project:proj_1")
        post = self.only_post()
        self.assertEqual(post.header("X-Relay"), 'fast; "and" \\ cheap')
        self.assertEqual(post.header("OpenAI-Project"), "proj_1")
        self.assertEqual(post.header("Authorization"), f"Bearer {KEY}")

    def test_trailing_slash_of_the_base_url(self) -> None:
        self.run_program("generate", PROMPT, "--base-url", self.server.url + "/", env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual(self.only_post().path, "/v1/images/generations")

    def test_unknown_model_is_passed_on_with_a_note(self) -> None:
        self.server.plan(Answer(check=False))
        result = self.generate(PROMPT, "--model", "relay/house-model", "--size", "1000x1000", "--quality", "ultra")
        self.saved_file(result)
        self.assertEqual(self.only_post().fields, {"model": "relay/house-model", "prompt": PROMPT, "size": "1000x1000",
                                                   "quality": "ultra"})
        self.assertIn("relay/house-model", result.stderr)


class PromptSourcesTest(ProgramCase):
    """The prompt arrives character by character, wherever it comes from."""

    def test_as_argument(self) -> None:
        commands = [["generate", *self.access(), "-o", f"{row}.png", "--", prompt]
                    for row, prompt in enumerate(NASTY_PROMPTS)]
        results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual([result.exit_code for result in results], [0] * len(results), results[0].stderr)
        self.assertEqual(set(self.posts_by_prompt()), set(NASTY_PROMPTS))
        self.assertEqual(sorted(os.listdir(str(self.work))), sorted(f"{row}.png" for row in range(len(NASTY_PROMPTS))))

    def test_from_a_file(self) -> None:
        table = (("plain", b"a fox", "a fox"), ("one line break", b"a fox\n", "a fox"),
                 ("two", b"a fox\n\n", "a fox\n"), ("windows", b"a\r\nfox\r\n", "a\r\nfox"),
                 ("mark", b"\xef\xbb\xbfa fox", "a fox"), ("quotes", b'"a" \\ ;type=x', '"a" \\ ;type=x'),
                 ("at", b"@file", "@file"), ("less", b"<file", "<file"))
        for name, content, prompt in table:
            with self.fresh(name):
                self.saved_file(self.generate_inside("--prompt-file", self.file("prompt.txt", content)))
                self.assertEqual(self.only_post().fields["prompt"], prompt)

    def test_from_standard_input(self) -> None:
        for arguments in (["-"], ["--prompt-file", "-"]):
            with self.fresh(arguments):
                self.saved_file(self.generate(*arguments, stdin='two\n"lines"\n'))
                self.assertEqual(self.only_post().fields["prompt"], 'two\n"lines"')

    def test_32000_emoji(self) -> None:
        prompt = "\N{FOX FACE}" * 32000  # 128 KB: too long for one argument and for one line of curl's config
        for name, arguments, stdin in (("file", ["--prompt-file", self.file("p.txt", prompt)], ""),
                                       ("input", ["-"], prompt)):
            with self.fresh(name):
                self.saved_file(self.generate(*arguments, stdin=stdin))
                self.assertEqual(self.only_post().fields["prompt"], prompt)

    def test_like_an_option(self) -> None:
        for prompt in ("-o", "--quality low", "--", "-"):
            with self.fresh(prompt):
                result = self.generate_inside("--quality", "low", "--", prompt, stdin="from input")
                self.saved_file(result)
                expected = "from input" if prompt == "-" else prompt
                self.assertEqual(self.only_post().fields, {"model": "gpt-image-2", "prompt": expected,
                                                           "quality": "low"})

    def test_options_stand_anywhere(self) -> None:
        for arguments in ([PROMPT, "--quality", "low", "-o", "a.png"], ["--quality", "low", PROMPT, "-oa.png"],
                          ["-o", "a.png", "--quality=low", PROMPT], ["--quality=low", "--output=a.png", "--", PROMPT]):
            with self.fresh(arguments):
                self.saved_file(self.generate_inside(*arguments))
                self.assertEqual(self.only_post().fields, {"model": "gpt-image-2", "prompt": PROMPT, "quality": "low"})


class Place(NamedTuple):
    """Where -o leads: the file below the working folder and the format that is sent."""
    output: str
    file: str
    sent: str | None = None
    options: tuple[str, ...] = ()


class SavedNamesTest(ProgramCase):
    """Names and formats of the saved files."""

    def check_places(self, *table: Place) -> None:
        """Save to each place and check the file's name, its format and the request."""
        commands = [["generate", f"for {place.output}", *self.access(), "-o", place.output, *place.options]
                    for place in table]
        results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY})
        arrived = self.posts_by_prompt()
        for place, result in zip(table, results):
            with self.subTest(place):
                path = self.saved_file(result)
                self.assertEqual(path, self.work / place.file)
                self.assertEqual(arrived[f"for {place.output}"].fields.get("output_format"), place.sent)
                self.assertEqual(sniff(path.read_bytes()), (place.sent or "png", 1024, 1024))

    def test_suffix_and_format(self) -> None:
        self.check_places(
            Place("a.png", "a.png"), Place("b.PNG", "b.PNG"), Place("c.jpg", "c.jpg", "jpeg"),
            Place("d.jpeg", "d.jpeg", "jpeg"), Place("e.JPG", "e.JPG", "jpeg"), Place("f.webp", "f.webp", "webp"),
            Place("g.WebP", "g.WebP", "webp"), Place("h", "h.png"), Place("i.v2", "i.v2.png"),
            Place("j.png", "j.webp", "webp", ("--format", "webp")), Place("k.jpg", "k.png", None, ("--format", "png")),
            Place("l", "l.jpg", "jpeg", ("--format", "jpg")), Place("m.v2", "m.v2.webp", "webp", ("--format", "webp")),
            Place("n.jpeg", "n.jpeg", "jpeg", ("--format", "jpg")), Place(".o.png", ".o.png"))

    def test_folders(self) -> None:
        (self.work / "there.png").mkdir()
        self.check_places(
            Place("there.png", "there.png/gpt-image2-output.png"), Place("new/", "new/gpt-image2-output.png"),
            Place("new/and/nested/a.png", "new/and/nested/a.png"), Place("x/../up.png", "up.png"),
            Place("there.png/", "there.png/gpt-image2-output.webp", "webp", ("--format", "webp")),
            Place(str(self.work / "absolute.png"), "absolute.png"))

    def test_odd_names(self) -> None:
        names = ("two words.png", 'quote".png', "it's.png", "semi;colon.png", "com,ma.png", "\u732b \u00fc.png",
                 "a\\b.png", "a%20{b,c}[1-3].png", "$HOME.png", "a=b&c.png", "(KB).png", "#1.png")
        self.check_places(*(Place(name, name) for name in names), Place("./-dash.png", "-dash.png"))

    def test_default_is_in_the_home_folder(self) -> None:
        self.assertEqual(self.saved_file(self.generate(PROMPT)), self.home / "gpt-image2-output.png")

    def test_tilde(self) -> None:
        self.assertEqual(self.saved_file(self.generate(PROMPT, "-o", "~/pictures/a.png")),
                         self.home / "pictures" / "a.png")

    def test_bytes_are_those_of_the_answer(self) -> None:
        for size in (3, 40_000, 3_000_000):
            with self.subTest(size):
                picture = draw_png(64, 64, padding=size)
                self.server.plan(Answer(image=picture))
                self.assertEqual(self.saved_file(self.generate(PROMPT, "-o", f"{size}.png")).read_bytes(), picture)

    def test_mode_follows_the_umask(self) -> None:
        mode = self.saved_file(self.generate(PROMPT)).stat().st_mode & 0o777
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(mode, 0o666 & ~umask)


class FilesAreNotReplacedTest(ProgramCase):
    """More than one image, and names that are already taken."""

    def test_numbers(self) -> None:
        result = self.generate(PROMPT, "--n", "3", "-o", "cat.png")
        self.assert_succeeded(result)
        paths = [str(self.work / f"cat-{number}.png") for number in (1, 2, 3)]
        self.assertEqual([path for path, _ in result.saved], paths)
        self.assertEqual(len({Path(path).read_bytes() for path in paths}), 3)
        self.assertEqual(len(os.listdir(str(self.work))), 3)

    def test_ten(self) -> None:
        result = self.generate_inside(PROMPT, "--n", "10", "-o", "cat.webp")
        self.assertEqual(result.names, [f"cat-{number}.webp" for number in range(1, 11)])

    def test_an_existing_file_stays(self) -> None:
        self.file("cat.png", "mine"), self.file("cat-2.png", "mine too")
        result = self.generate(PROMPT, "-o", "cat.png")
        self.assertEqual(self.saved_file(result).name, "cat-3.png")
        self.assertEqual((self.work / "cat.png").read_text(), "mine")
        self.assertEqual((self.work / "cat-2.png").read_text(), "mine too")
        self.assertIn("cat.png already exists", result.stderr)

    def test_existing_numbers_stay(self) -> None:
        self.file("cat-1.png", "mine")
        result = self.generate_inside(PROMPT, "-o", "cat.png", "--n", "2")
        self.assert_succeeded(result)
        self.assertEqual((self.work / "cat-1.png").read_text(), "mine")
        self.assertEqual(result.names, ["cat-2.png", "cat-3.png"])

    def test_the_same_command_twice(self) -> None:
        first, again = (self.generate(PROMPT, "-o", "cat.png") for _ in range(2))
        path = self.saved_file(first)
        self.assertEqual((again.exit_code, again.errors), (0, []), again.stderr)
        self.assertEqual(again.stdout.splitlines(), first.stdout.splitlines()[1:])  # without the line about HTTP
        self.assertRegex(again.stderr, r"made before .*nothing was bought now; --fresh buys another take")
        self.assertNotIn("already exists", again.stderr)
        self.assertEqual((len(self.server.requests), os.listdir(str(self.work))), (1, ["cat.png"]))
        before = path.read_bytes()
        fresh = self.generate(PROMPT, "-o", "cat.png", "--fresh")
        self.assertEqual((self.saved_file(fresh).name, len(self.server.posts)), ("cat-2.png", 2))
        self.assertEqual(path.read_bytes(), before)

    def test_the_same_command_after_its_picture_went_or_was_changed(self) -> None:
        for name, act in (("gone", lambda path: path.unlink()), ("changed", lambda path: path.write_text("mine")),
                          ("touched", lambda path: os.utime(str(path), (0, 0)))):
            with self.fresh(name):
                path = self.saved_file(self.generate_inside(PROMPT, "-o", f"{name}.png"))
                act(path)
                again = self.generate_inside(PROMPT, "-o", f"{name}.png")
                self.assertEqual(self.saved_file(again).name, f"{name}.png" if name == "gone" else f"{name}-2.png")
                self.assertIn("is gone or was changed", again.stderr)
                self.assertEqual(len(self.server.posts), 2)

    def test_the_same_picture_in_another_place_is_another_one(self) -> None:
        for more in ((), ("--size", "1024x1024"), ("--n", "2")):
            self.assert_succeeded(self.generate_inside(PROMPT, "-o", "cat.png", *more))
        self.assert_succeeded(self.generate_inside(PROMPT, "-o", "dog.png"))
        self.assertEqual(len(self.server.posts), 4)

    def test_overwrite(self) -> None:
        path = self.file("cat.png", "old")
        result = self.generate_inside(PROMPT, "-o", "cat.png", "--overwrite")
        self.assertEqual(self.saved_file(result), Path(path))
        self.assertEqual(sniff(Path(path).read_bytes())[0], "png")
        self.assertEqual(os.listdir(str(self.work)), ["cat.png"])

    def test_overwrite_keeps_the_old_file_when_nothing_came(self) -> None:
        path = self.file("cat.png", "old")
        self.server.plan(Answer(status=500))
        self.assertNotEqual(self.generate_inside(PROMPT, "-o", "cat.png", "--overwrite").exit_code, 0)
        self.assertEqual(Path(path).read_text(), "old")

    def test_symbolic_links_are_not_followed(self) -> None:
        self.file("kept.png", "mine")
        for name, target in (("link.png", "kept.png"), ("dangling.png", "none.png")):
            (self.work / name).symlink_to(target)
            with self.subTest(name):
                saved = self.saved_file(self.generate_inside(PROMPT, "-o", name))
                self.assertEqual(saved.name, name.replace(".png", "-2.png"))
        self.assertEqual((self.work / "kept.png").read_text(), "mine")
        self.assertFalse((self.work / "none.png").exists())

    def test_overwrite_of_a_symbolic_link_spares_what_it_points_to(self) -> None:
        self.file("kept.png", "mine")
        (self.work / "link.png").symlink_to("kept.png")
        saved = self.saved_file(self.generate_inside(PROMPT, "-o", "link.png", "--overwrite"))
        self.assertEqual((self.work / "kept.png").read_text(), "mine")
        self.assertEqual((sniff(saved.read_bytes())[0], saved.name, saved.is_symlink()), ("png", "link.png", False))


class HumanOutputTest(ProgramCase):
    """What a person or an agent reads."""

    def test_exact_form(self) -> None:
        picture = draw_png(64, 64, padding=200_000)
        self.server.plan(Answer(image=picture))
        result = self.generate(PROMPT, "-o", "cat.png")
        self.assert_succeeded(result)
        kilobytes = round(len(picture) / 1024)
        self.assertRegex(result.stdout, r"\AHTTP 200 in \d+\.\d s\nSaved: %s \(%d KB\)\n\Z"
                         % (re.escape(str(self.work / "cat.png")), kilobytes))

    def test_everything_else_is_on_standard_error(self) -> None:
        result = self.generate(PROMPT, "--quality", "low")
        first = result.stderr.split("\n")[0]
        self.assertIn("gpt-image-2", first)
        self.assertIn("70 s", first)
        self.assertNotIn("\r", result.stderr)
        self.assertNotIn("\x1b", result.stderr)

    def test_quiet(self) -> None:
        result = self.generate(PROMPT, "-q")
        self.assertEqual(result.stderr, "")
        self.assertEqual(result.stdout.count("\n"), 1)
        self.saved_file(result)

    def test_quiet_still_warns(self) -> None:
        self.file("cat.png", "mine")
        self.assertIn("cat.png already exists", self.generate(PROMPT, "-q", "-o", "cat.png").stderr)

    def test_verbose_shows_the_request_without_the_key(self) -> None:
        result = self.generate(PROMPT, "-v", "--quality", "low")
        self.saved_file(result)
        self.assertIn(f"{self.server.url}/images/generations", result.stderr)
        self.assertRegex(result.stderr,
                         r'(?m)^Authorization: \*\*\*\n\{"model": .*"prompt": .*\}\nHTTP 200, req_test_\d+$')
        self.assertNotIn(KEY, result.stdout + result.stderr)

    def test_cost(self) -> None:
        result = self.generate(PROMPT, "--quality", "high", "--size", "square")
        self.assertRegex(result.stderr, r"\$0\.211")  # 7024 output tokens at 30 dollars a million

    def test_media_lines_for_openclaw(self) -> None:
        result = self.generate(PROMPT, "--n", "2", "-o", "cat.png", env={"OPENCLAW_SHELL": "exec"})
        paths = [path for path, _ in result.saved]
        self.assertEqual(len(paths), 2)
        self.assertTrue(result.stdout.endswith("".join(f"MEDIA:{path}\n" for path in paths)), result.stdout)

    def test_openclaw_delivers_from_its_workspace(self) -> None:
        path = self.saved_file(self.generate(PROMPT, env={"OPENCLAW_SHELL": "exec"}))
        self.assertEqual(path, self.work / "gpt-image2-output.png")

    def test_no_media_lines_elsewhere(self) -> None:
        self.assertNotIn("MEDIA", self.generate(PROMPT).stdout)

    def test_closed_and_full_standard_output_costs_no_image(self) -> None:
        for name, redirection in (("closed", ">&-"), ("full", ">/dev/full"), ("both closed", ">&- 2>&-")):
            with self.subTest(name):
                target = self.work / f"{name}.png"
                script = self.shell_script("run", f'exec "$@" {redirection}\n')
                self.run_through(script, "-o", str(target))
                self.assertEqual(sniff(target.read_bytes())[0], "png")

    def run_through(self, script: str, *arguments: str) -> None:
        """Run generate through a shell script that changes its streams."""
        subprocess.run([script, sys.executable, str(PROGRAM), "generate", PROMPT, *self.access(), *arguments],
                       timeout=60, env=self.environment({"GPT_IMAGE2_API_KEY": KEY}), stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        self.assert_no_leftovers()


class JsonOutputTest(ProgramCase):
    """The contract with other programs."""

    def test_success(self) -> None:
        result = self.generate(PROMPT, "--json", "--quality", "high", "--size", "1536x1024", "-o", "cat.webp")
        document = result.json
        self.assertEqual(set(document), RESULT_FIELDS)
        path = self.work / "cat.webp"
        self.assertEqual(document["saved"], [{"path": str(path), "bytes": path.stat().st_size, "format": "webp",
                                              "width": 1536, "height": 1024}])
        self.assertEqual(document["requested"], {"size": "1536x1024", "format": "webp", "quality": "high"})
        self.assertEqual((document["schema"], document["ok"], document["http_status"], document["model"]),
                         (1, True, 200, "gpt-image-2"))
        self.assertEqual(document["warnings"], [])
        self.assertRegex(document["request_id"], r"^req_test_\d+$")
        self.assertIsInstance(document["elapsed_s"], float)

    def test_usage_and_cost(self) -> None:
        document = self.generate(PROMPT, "--json", "--quality", "high", "--size", "square").json
        usage = document["usage"]
        self.assertEqual(usage["output_tokens"], 7024)
        cost = 5e-6 * usage["input_tokens_details"]["text_tokens"] + 30e-6 * usage["output_tokens"]
        self.assertAlmostEqual(document["cost_usd"], cost, 4)

    def test_defaults(self) -> None:
        document = self.generate(PROMPT, "--json").json
        self.assertEqual(document["requested"], {"size": "auto", "format": "png", "quality": "auto"})

    def test_several_images_and_a_warning(self) -> None:
        self.file("cat-1.png", "mine")
        document = self.generate(PROMPT, "--json", "--n", "2", "-o", "cat.png").json
        self.assertEqual([Path(saved["path"]).name for saved in document["saved"]], ["cat-2.png", "cat-3.png"])
        self.assertEqual(len(document["warnings"]), 1)
        self.assertIn("cat-1.png", document["warnings"][0])

    def test_one_object_whatever_else_is_asked(self) -> None:
        result = self.generate(PROMPT, "--json", "-v", env={"OPENCLAW_SHELL": "exec"})
        self.assertTrue(result.json["ok"])
        self.assertEqual(len(self.generate(PROMPT, "--json", "-q").json["saved"]), 1)

    def test_unicode_path(self) -> None:
        document = self.generate(PROMPT, "--json", "-o", "\u732b.png").json
        self.assertEqual(document["saved"][0]["path"], str(self.work / "\u732b.png"))


class HelpTest(ProgramCase):
    """--help and --version work with nothing set up and send nothing."""

    def test_help(self) -> None:
        for arguments, word in ((["--help"], "generate"), (["-h"], "edit"), (["generate", "--help"], "--quality"),
                                (["edit", "-h"], "--mask"), (["config", "--help"], "--init")):
            with self.subTest(arguments):
                result = self.run_program(*arguments, env={"PATH": "/nowhere", "HOME": None})
                self.assertEqual((result.exit_code, result.stderr), (0, ""))
                self.assertIn(word, result.stdout)

    def test_help_shows_commands_that_run(self) -> None:
        lines = re.findall(r"^  (python3 .* generate .*)$", self.run_program("--help").stdout, re.MULTILINE)
        self.assertEqual(len(lines), 1)
        arguments = shlex.split(lines[0])
        self.assertEqual(Path(arguments[1]), PROGRAM)
        self.saved_file(self.generate(*arguments[3:]))

    def test_version(self) -> None:
        result = self.run_program("--version")
        self.assertRegex(result.stdout, r"^gpt_image2 \d+\.\d+\.\d+\n$")
        self.assertEqual(result.exit_code, 0)
