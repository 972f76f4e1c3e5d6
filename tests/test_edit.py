"""edit: the form that arrives, byte for byte, whatever the files and texts are called and contain."""
from __future__ import annotations

import os
import shutil
import signal
import unittest
from pathlib import Path
from typing import Any

from api_server import Answer, Part, Recorded, draw_jpeg, draw_png, draw_webp, sniff
from support import KEY, Environment, ProgramCase, mask_png, plain_png
from test_generate import NASTY_PROMPTS

PROMPT = "make it night"
PNG, JPEG, WEBP = draw_png(64, 48, 1), draw_jpeg(64, 48, 1), draw_webp(64, 48, 1)


class EditCase(ProgramCase):
    """An image to edit, and views of the form that arrived."""

    def setUp(self) -> None:
        super().setUp()
        self.image = self.file("private-place/holiday.png", PNG)

    def texts(self, post: Recorded) -> dict[str, bytes]:
        """Return the text parts."""
        return {part.name: part.body for part in post.parts if part.filename is None}

    def files(self, post: Recorded) -> list[Part]:
        """Return the file parts in order."""
        return [part for part in post.parts if part.filename is not None]

    def edited(self, *arguments: str, env: Environment | None = None, **options: Any) -> Recorded:
        """Run one edit that succeeds, inside this process, and return the request that arrived."""
        self.server.requests.clear()
        self.forget()
        self.saved_file(self.run_inside("edit", *self.access(), *arguments,
                                        env={"GPT_IMAGE2_API_KEY": KEY, **(env or {})}, **options))
        return self.only_post()


class EditFormTest(EditCase):
    """Names, order and types of the parts."""

    def test_one_image(self) -> None:
        post = self.edited(self.image, PROMPT)
        self.assertEqual((post.method, post.path), ("POST", "/v1/images/edits"))
        self.assertTrue(post.header("Content-Type").startswith("multipart/form-data; boundary="))
        self.assertEqual(post.header("Authorization"), f"Bearer {KEY}")
        self.assertEqual(post.header("Expect"), "")
        self.assertEqual([part.name for part in post.parts], ["model", "prompt", "image"])
        self.assertEqual(self.texts(post), {"model": b"gpt-image-2", "prompt": PROMPT.encode()})
        self.assertEqual(self.files(post)[0].body, PNG)

    def test_text_parts_have_no_type(self) -> None:
        for part in self.edited(self.image, PROMPT, "--quality", "low").parts:
            if part.filename is None:
                self.assertEqual(part.content_type, "", part.name)

    def test_several_images_in_order(self) -> None:
        paths = [self.file(f"{number}.png", draw_png(32, 32, number)) for number in range(16)]
        more = [word for path in paths[1:] for word in ("--image", path)]
        files = self.files(self.edited(paths[0], PROMPT, *more))
        self.assertEqual({part.name for part in files}, {"image[]"})
        self.assertEqual([part.body for part in files], [draw_png(32, 32, number) for number in range(16)])
        self.assertEqual(len({part.filename for part in files}), 16)

    def test_the_same_image_twice(self) -> None:
        files = self.files(self.edited(self.image, PROMPT, "--image", self.image))
        self.assertEqual([(part.name, part.body) for part in files], [("image[]", PNG)] * 2)

    def test_type_by_content(self) -> None:
        for name, content, kind in (("a.png", PNG, "png"), ("a.jpg", JPEG, "jpeg"), ("a.webp", WEBP, "webp"),
                                    ("webp.png", WEBP, "webp"), ("png.jpg", PNG, "png"), ("jpeg", JPEG, "jpeg"),
                                    ("jpeg.txt", JPEG, "jpeg"), ("webp", WEBP, "webp"), ("a.WEBP", WEBP, "webp")):
            with self.subTest(name):
                part, = self.files(self.edited(self.file(name, content), PROMPT))
                self.assertEqual((part.content_type, part.body), (f"image/{kind}", content))
                self.assertRegex(str(part.filename), r"^[\w-]+\.(%s)$" % kind.replace("jpeg", "jpe?g"))

    def test_local_names_are_not_sent(self) -> None:
        mask = self.file("private-place/holiday-mask.png", mask_png(64, 48))
        body = self.edited(self.image, PROMPT, "--image", self.image, "--mask", mask).body
        for word in (b"holiday", b"private-place", os.fsencode(str(self.work)), b"filename=\"/"):
            self.assertNotIn(word, body)

    def test_what_is_default_is_not_sent(self) -> None:
        post = self.edited(self.image, PROMPT, "--size", "auto", "--quality", "auto", "--n", "1", "--format", "png",
                           "--background", "auto", "--moderation", "auto")
        self.assertEqual(set(self.texts(post)), {"model", "prompt"})

    def test_each_option_becomes_its_part(self) -> None:
        table: tuple[tuple[list[str], dict[str, bytes]], ...] = (
            (["--size", "1536x1024"], {"size": b"1536x1024"}), (["--quality", "medium"], {"quality": b"medium"}),
            (["--n", "2"], {"n": b"2"}), (["--moderation", "low"], {"moderation": b"low"}),
            (["--background", "transparent"], {"background": b"transparent"}),
            (["--format", "jpg", "--compression", "0"], {"output_format": b"jpeg", "output_compression": b"0"}),
            (["--model", "gpt-image-1.5", "--input-fidelity", "high"],
             {"model": b"gpt-image-1.5", "input_fidelity": b"high"}),
            (["--param", "stream=false", "--param", "user=a \"b\""], {"stream": b"false", "user": b'a "b"'}))
        commands = [["edit", self.image, f"row {row}", *self.access(), "-o", f"{row}.png", *options]
                    for row, (options, _) in enumerate(table)]
        results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY})
        arrived = self.posts_by_prompt()
        for row, (options, parts) in enumerate(table):
            with self.subTest(" ".join(options)):
                self.assert_succeeded(results[row])
                self.assertEqual(self.texts(arrived[f"row {row}"]),
                                 {"model": b"gpt-image-2", "prompt": f"row {row}".encode(), **parts})


class TextPartsTest(EditCase):
    """Text parts arrive byte for byte: nothing of curl's form language is understood in them."""

    def test_prompts(self) -> None:
        commands = [["edit", *self.access(), "-o", f"{row}.png", "--", self.image, prompt]
                    for row, prompt in enumerate(NASTY_PROMPTS)]
        results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual([result.exit_code for result in results], [0] * len(results), results[0].stderr)
        self.assertEqual({self.texts(post)["prompt"] for post in self.server.posts},
                         {prompt.encode() for prompt in NASTY_PROMPTS})

    def test_parameters(self) -> None:
        values = ("@/usr/share/dict/words", "</usr/share/dict/words", "a;type=text/html", 'a "b" \\ c', "two\nlines",
                  "x;filename=y", "a,b", "=")
        options = [word for number, value in enumerate(values) for word in ("--param", f"p{number}={value}")]
        self.server.plan(Answer(check=False))
        texts = self.texts(self.edited(self.image, PROMPT, *options))
        self.assertEqual([texts[f"p{number}"] for number in range(len(values))], [value.encode() for value in values])

    def test_32000_emoji(self) -> None:
        prompt = "\N{FOX FACE}" * 32000
        for arguments, stdin in (([self.image, "--prompt-file", self.file("p.txt", prompt)], ""),
                                 ([self.image, "-"], prompt)):
            with self.subTest(arguments[-1]):
                self.assertEqual(self.texts(self.edited(*arguments, stdin=stdin))["prompt"], prompt.encode())


class OddInputPathsTest(EditCase):
    """Paths that mean something to curl are only paths."""

    def test_odd_names(self) -> None:
        names = ("semi;colon.png", "a;type=text/html", "com,ma.png", 'quo"te.png', "back\\slash.png", "new\nline.png",
                 "tab\there.png", "two words.png", "@at.png", "<less.png", "a=b.png", "{a,b}[1-3].png", "%41.png",
                 "'.png", "\u732b.png", 'all of;it,"\\\n=.png', "#.png", "-")
        commands = [["edit", *self.access(), "-o", f"out/{row}.png", self.file(name, draw_png(16, 16, row)), f"{row}"]
                    for row, name in enumerate(names)]
        results = self.run_all(commands, env={"GPT_IMAGE2_API_KEY": KEY})
        arrived = self.posts_by_prompt()
        for row, name in enumerate(names):
            with self.subTest(name):
                self.assert_succeeded(results[row])
                part, = self.files(arrived[str(row)])
                self.assertEqual((part.name, part.content_type, part.body),
                                 ("image", "image/png", draw_png(16, 16, row)))

    def test_relative_names_that_look_special(self) -> None:
        for name in ("-", "@", "~", "<", "-o"):
            with self.subTest(name):
                self.file(name, PNG)
                self.assertEqual(self.files(self.edited("./" + name, PROMPT))[0].body, PNG)
        self.assertEqual(self.files(self.edited("--image=-", PROMPT))[0].body, PNG)

    @unittest.skipUnless(os.name == "posix" and os.uname().sysname == "Linux", "other systems want UTF-8 names")
    def test_name_that_is_not_utf8(self) -> None:
        path = self.file(b"caf\xe9.png", PNG)
        self.assertEqual(self.files(self.edited(path, PROMPT))[0].body, PNG)

    def test_odd_mask_and_folder(self) -> None:
        image = self.file('a;b,"c"/x y.png', PNG)
        mask = self.file('a;b,"c"/m\n;,"\\.png', mask_png(64, 48))
        files = self.files(self.edited(image, PROMPT, "--mask", mask))
        self.assertEqual([part.name for part in files], ["image", "mask"])
        self.assertEqual(files[1].body, Path(mask).read_bytes())

    def test_odd_temporary_folder(self) -> None:
        odd = self.root / 't;m,p "dir" \\'
        odd.mkdir()
        post = self.edited(self.image, PROMPT, env={"TMPDIR": str(odd)})
        self.assertEqual(self.texts(post)["prompt"], PROMPT.encode())
        self.assertEqual(list(odd.iterdir()), [])

    def test_symbolic_link(self) -> None:
        (self.work / "link.png").symlink_to(self.image)
        self.assertEqual(self.files(self.edited("link.png", PROMPT))[0].body, PNG)


class EditCommandLineTest(EditCase):
    """The ways to name images and prompt."""

    def test_forms(self) -> None:
        first, second = self.file("a.png", PNG), self.file("b.jpg", JPEG)
        prompt = self.file("p.txt", PROMPT)
        table: tuple[tuple[list[str], list[bytes]], ...] = (
            ([first, PROMPT], [PNG]), ([first, PROMPT, "--image", second], [PNG, JPEG]),
            (["--image", second, first, PROMPT], [PNG, JPEG]), (["--image", second, PROMPT], [JPEG]),
            (["--image", first, "--image", second, PROMPT], [PNG, JPEG]), ([first, "--prompt-file", prompt], [PNG]),
            (["--prompt-file", prompt, "--image", second], [JPEG]), ([first, "--quality", "low", PROMPT], [PNG]),
            (["--image", second, "--prompt-file", prompt, first], [PNG, JPEG]), (["--", first, PROMPT], [PNG]))
        for arguments, bodies in table:
            with self.subTest(" ".join(Path(word).name for word in arguments)):
                post = self.edited(*arguments)
                self.assertEqual([part.body for part in self.files(post)], bodies)
                self.assertEqual(self.texts(post)["prompt"], PROMPT.encode())

    def test_home_folder(self) -> None:
        (self.home / "a.png").write_bytes(PNG)
        self.assertEqual(self.files(self.edited("~/a.png", PROMPT))[0].body, PNG)

    def test_result_does_not_replace_the_input(self) -> None:
        saved = self.saved_file(self.edit(self.image, PROMPT, "-o", self.image))
        self.assertEqual(Path(self.image).read_bytes(), PNG)
        self.assertEqual(saved.name, "holiday-2.png")

    def test_input_may_be_overwritten(self) -> None:
        self.assertEqual(self.saved_file(self.edit(self.image, PROMPT, "-o", self.image, "--overwrite")),
                         Path(self.image))
        self.assertEqual(sniff(Path(self.image).read_bytes()), ("png", 1024, 1024))

    def test_result_of_generate_can_be_edited(self) -> None:
        made = self.saved_file(self.generate("a fox", "-o", "fox.webp"))
        self.assertEqual(self.files(self.edited(str(made), PROMPT))[0].body, made.read_bytes())

    def test_json(self) -> None:
        document = self.edit(self.image, PROMPT, "--json").json
        self.assertTrue(document["ok"])
        self.assertGreater(document["usage"]["input_tokens_details"]["image_tokens"], 0)
        self.assertGreater(document["cost_usd"], 0)


class MaskUploadTest(EditCase):
    """The mask travels with the first image."""

    def test_mask(self) -> None:
        mask = self.file("mask.png", mask_png(64, 48))
        *_, part = self.edited(self.image, PROMPT, "--mask", mask).parts
        self.assertEqual((part.name, part.content_type, part.body), ("mask", "image/png", mask_png(64, 48)))

    def test_kinds_of_transparency(self) -> None:
        for name, content in (("rgba", plain_png(64, 48, 6, 0)), ("grey", plain_png(64, 48, 4, 0)),
                              ("drawn", draw_png(64, 48, 3, alpha=lambda x, y: x))):
            with self.subTest(name):
                post = self.edited(self.image, PROMPT, "--mask", self.file(f"{name}.png", content))
                self.assertEqual(self.files(post)[-1].body, content)

    def test_mask_of_another_image_than_the_first(self) -> None:
        second = self.file("second.png", draw_png(96, 96))
        mask = self.file("mask.png", mask_png(64, 48))
        names = [part.name for part in self.files(self.edited(self.image, PROMPT, "--image", second, "--mask", mask))]
        self.assertEqual(names, ["image[]", "image[]", "mask"])

    def test_mask_for_a_jpeg(self) -> None:
        image, mask = self.file("a.jpg", JPEG), self.file("mask.png", mask_png(64, 48))
        self.assertEqual([part.content_type for part in self.files(self.edited(image, PROMPT, "--mask", mask))],
                         ["image/jpeg", "image/png"])

    def test_4k_mask(self) -> None:
        image, mask = self.file("4k.png", plain_png(3840, 2160)), self.file("mask.png", mask_png(3840, 2160))
        self.saved_file(self.edit(image, PROMPT, "--mask", mask, timeout=20))
        self.assertEqual([part.name for part in self.files(self.only_post())], ["image", "mask"])


class EditedShapeTest(EditCase):
    """Without --size the service chooses; a picture of another shape than the input is worth a word."""

    def test_other_shape_is_told(self) -> None:
        for size, told in (((1024, 1024), True), ((1024, 768), False), ((1536, 1024), True)):
            with self.fresh(size):
                self.server.default = Answer(image=draw_png(*size))
                warnings = self.edit(self.image, PROMPT, "--json").json["warnings"]
                self.assertEqual(any("different shape" in text for text in warnings), told, warnings)
        self.server.default = Answer(image=draw_png(1024, 1024))
        warnings = self.edit(self.image, PROMPT, "--size", "square", "--json").json["warnings"]
        self.assertFalse(any("different shape" in text for text in warnings), warnings)


class InputsBehindUrlsTest(EditCase):
    """Input images that are somewhere on the web: fetched without the key, then sent like files."""

    def setUp(self) -> None:
        super().setUp()
        self.server.files["a.png"] = PNG
        self.url = self.server.origin + "/files/a.png"

    def test_first_and_further(self) -> None:
        self.server.files["b.jpg"] = JPEG
        post = self.edited(self.url, PROMPT, "--image", self.image, "--image",
                           self.server.origin + "/files/b.jpg?sig=1")
        self.assertEqual([part.body for part in self.files(post)], [PNG, PNG, JPEG])
        fetched = [each for each in self.server.requests if each.method == "GET"]
        self.assertEqual([each.path for each in fetched], ["/files/a.png", "/files/b.jpg?sig=1"])
        self.assertFalse([each for each in fetched if KEY in str(each.headers)])

    def test_nothing_is_left_behind(self) -> None:
        self.saved_file(self.edit(self.url, PROMPT))
        state = self.home / ".local" / "state" / "gpt-image-2" / "requests"
        self.assertEqual([name for name in os.listdir(str(state)) if not name.startswith(".")], [])

    def test_trouble_is_told_and_costs_nothing(self) -> None:
        rows = (("missing", self.server.origin + "/files/none.png?sig=secret", "cannot fetch image"),
                ("no picture", self.server.origin + "/files/page.png", "cannot fetch image"),
                ("nobody there", "http://127.0.0.1:9/a.png", "no server is listening there"),
                ("no URL", self.server.origin + "/a b", "cannot fetch image"))
        self.server.files["page.png"] = b"<html>no</html>"
        for name, url, words in rows:
            with self.subTest(name):
                result = self.edit(url, PROMPT)
                self.assertEqual(result.exit_code, 2, result.stderr)
                self.assertIn(words, result.stderr)
                self.assertNotIn("sig=secret", result.stderr)
                self.assertNotIn("billed", result.stderr)
        self.assertEqual(self.server.posts, [])

    def test_a_broken_command_fetches_nothing(self) -> None:
        self.assertEqual(self.edit(self.url, " ").exit_code, 2)
        self.assertEqual(self.server.requests, [])

    def test_stopped_while_fetching(self) -> None:
        self.server.plan_files(Answer(delay=20))
        child = self.start_program("edit", *self.access(), self.url, PROMPT, env={"GPT_IMAGE2_API_KEY": KEY})
        self.wait_until(lambda: bool(self.server.requests))
        child.terminate()
        result = self.finish(child, 10)
        self.assertEqual(result.exit_code, 143, result.stderr)
        self.assertIn("nothing was bought", result.stderr)
        self.assertEqual(self.journal(), [])
        self.assert_no_leftovers()

    def test_user_name_in_the_address_is_not_shown(self) -> None:
        result = self.edit("http://someone:hidden-word@127.0.0.1:9/a.png", PROMPT)
        self.assertEqual(result.exit_code, 2, result.stderr)
        self.assertNotIn("hidden-word", result.stdout + result.stderr)

    def test_passing_trouble_is_tried_again(self) -> None:
        self.server.plan_files(Answer(status=503))
        self.saved_file(self.edit(self.url.replace("http:", "HTTP:"), PROMPT))

    def test_collected_although_the_input_is_gone(self) -> None:
        self.server.plan(Answer(delay=1))
        command = ("edit", *self.access(), self.url, PROMPT, "-o", "cat.png")
        self.kill_at_request(self.start_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}))
        for left in self.tmp.iterdir():
            shutil.rmtree(str(left))  # what a killed program leaves there
        del self.server.files["a.png"]
        self.saved_file(self.run_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}))
        self.assertEqual(len(self.server.posts), 1)

    def test_killed_and_collected(self) -> None:
        self.server.plan(Answer(delay=1.5))
        command = ("edit", *self.access(), self.url, PROMPT, "-o", "cat.png")
        self.assertEqual(self.kill_at_request(self.start_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}),
                                              signal.SIGTERM).exit_code, 143)
        self.saved_file(self.run_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}))
        self.assertEqual(self.files(self.only_post())[0].body, PNG)


class LargeUploadTest(EditCase):
    """Bodies of many megabytes."""

    def test_three_large_images(self) -> None:
        paths = [self.file(f"{number}.png", draw_png(32, 32, number, padding=4_000_000)) for number in range(3)]
        files = self.files(self.edited(paths[0], PROMPT, "--image", paths[1], "--image", paths[2]))
        self.assertEqual([part.body for part in files], [Path(path).read_bytes() for path in paths])
