"""--aspect-ratio and --resolution for the OpenAI API: a legal size of that shape and about that many pixels."""
from __future__ import annotations

from typing import Any

from api_server import Answer, draw_jpeg, draw_png
from support import USAGE, ProgramCase, Result, program

BUDGETS = {"1k": 1024 * 1024, "2k": 2048 * 2048, "4k": 3840 * 2160}
LONGEST = 3840  # pixels of an edge: wide shapes cannot use the whole budget of 4k
RATIOS = ("1:1", "3:2", "2:3", "4:3", "3:4", "5:4", "4:5", "16:9", "9:16", "2:1", "1:2", "3:1", "1:3", "21:9", "9:21",
          "7:5", "100:99", "1920:1080", "239:100")
SIZES = (  # ratio, resolution, size: what people expect
    ("1:1", "1k", "1024x1024"), ("1:1", "2k", "2048x2048"), ("1:1", "4k", "2880x2880"),
    ("16:9", "4k", "3840x2160"), ("9:16", "4k", "2160x3840"), ("16:9", "2k", "2560x1440"), ("9:16", "2k", "1440x2560"),
    ("3:1", "4k", "3840x1280"), ("1:3", "4k", "1280x3840"), ("2:1", "4k", "3840x1920"),
    ("16:9", "1k", "1280x720"), ("1:1", None, "1024x1024"), ("16:9", None, "1280x720"))
THREE_SIZES = (  # of the models before gpt-image-2
    ("1:1", None, "1024x1024"), ("16:9", "1k", "1536x1024"), ("3:2", "4k", "1536x1024"), ("9:16", "2k", "1024x1536"),
    ("2:3", None, "1024x1536"), ("21:20", None, "1024x1024"), ("5:4", "1k", "1024x1024"))


class RatioCase(ProgramCase):

    def make(self, *arguments: str) -> Result:
        self.server.reset()
        return self.generate_inside("a fox", "-o", str(self.work / "out.png"), "--overwrite", "--json", *arguments)

    def change(self, image: str, *arguments: str) -> Result:
        self.server.reset()
        return self.run_inside("edit", image, "a hat", *self.access(), "-o", str(self.work / "out.png"),
                               "--overwrite", "--json", *arguments, env={"GPT_IMAGE2_API_KEY": self.server.key})

    def sent(self, result: Result) -> Any:
        """The size that was sent by a successful run."""
        self.assertEqual(result.exit_code, 0, result.stdout + result.stderr)
        return self.only_post().fields.get("size")


class RatioBecomesSizeTest(RatioCase):

    def test_each_ratio_and_resolution_has_its_size(self) -> None:
        for ratio in RATIOS:
            for resolution, budget in BUDGETS.items():
                with self.subTest(ratio, resolution=resolution):
                    across, down = map(int, ratio.split(":"))
                    size = program.size_of_ratio(across / down, program.RESOLUTIONS[resolution])
                    width, height = map(int, size.split("x"))
                    self.assertEqual(program.size_fault(width, height), "")
                    self.assertLess(abs(width / height * down / across - 1), 0.02, size)
                    self.assertLessEqual(width * height, 1.05 * budget, size)
                    self.assertTrue(width * height >= 0.75 * budget or max(width, height) >= 0.95 * LONGEST, size)

    def test_exact_ratios_stay_exact(self) -> None:
        for ratio in ("1:1", "3:2", "4:3", "5:4", "16:9", "2:1", "3:1"):
            for resolution in BUDGETS:
                with self.subTest(ratio, resolution=resolution):
                    across, down = map(int, ratio.split(":"))
                    size = program.size_of_ratio(across / down, program.RESOLUTIONS[resolution])
                    width, height = map(int, size.split("x"))
                    self.assertAlmostEqual(width / height, across / down, 2)

    def test_mirrored(self) -> None:
        for ratio in (16 / 9, 3 / 2, 3.0, 7 / 5):
            for pixels in program.RESOLUTIONS.values():
                wide, tall = program.size_of_ratio(ratio, pixels), program.size_of_ratio(1 / ratio, pixels)
                self.assertEqual(wide.split("x"), tall.split("x")[::-1])

    def test_sent(self) -> None:
        self.server.default = Answer(size=(64, 64))
        for ratio, resolution, size in SIZES:
            with self.subTest(ratio, resolution=resolution):
                more = ["--resolution", resolution] if resolution else []
                self.assertEqual(self.sent(self.make("--aspect-ratio", ratio, *more)), size)

    def test_the_picture_has_that_size(self) -> None:
        result = self.make("--aspect-ratio", "3:2", "--resolution", "1k")
        saved, = result.json["saved"]
        self.assertEqual(self.sent(result), f"{saved['width']}x{saved['height']}")

    def test_resolution_alone(self) -> None:
        for resolution, size in (("1k", "1024x1024"), ("2k", "2048x2048"), ("4k", "2880x2880")):
            with self.subTest(resolution):
                self.assertEqual(self.sent(self.make("--resolution", resolution)), size)

    def test_neither_sends_nothing(self) -> None:
        self.assertIsNone(self.sent(self.make()))

    def test_three_sizes(self) -> None:
        for ratio, resolution, size in THREE_SIZES:
            for model in ("gpt-image-1.5", "gpt-image-1-mini"):
                with self.subTest(ratio, resolution=resolution, model=model):
                    more = ["--resolution", resolution] if resolution else []
                    result = self.make("--model", model, "--aspect-ratio", ratio, *more)
                    self.assertEqual(self.sent(result), size)

    def test_newer_models(self) -> None:
        result = self.make("--model", "gpt-image-2.5-flare", "--aspect-ratio", "16:9", "--resolution", "4k")
        self.assertEqual(self.sent(result), "3840x2160")


class RatioOfTheInputTest(RatioCase):

    def test_ratio_of_the_first_image(self) -> None:
        for width, height, expected in ((160, 90, "16:9"), (64, 96, "2:3"), (64, 64, "1:1"), (100, 75, "4:3")):
            with self.subTest(expected):
                image, other = self.file("in.png", draw_png(width, height)), self.file("b.jpg", draw_jpeg(300, 100))
                size = self.sent(self.change(image, "--image", other, "--resolution", "2k"))
                across, down = map(int, size.split("x"))
                self.assertLess(abs(across / down * height / width - 1), 0.02)
                self.assertEqual(program.size_fault(across, down), "")
                self.assertLessEqual(across * down, 1.05 * BUDGETS["2k"])

    def test_ratio_of_the_first_image_when_auto(self) -> None:
        image = self.file("in.png", draw_png(160, 90))
        self.assertEqual(self.sent(self.change(image, "--aspect-ratio", "auto", "--resolution", "2k")), "2560x1440")

    def test_given_ratio_beats_the_image(self) -> None:
        image = self.file("in.png", draw_png(160, 90))
        self.assertEqual(self.sent(self.change(image, "--aspect-ratio", "1:1", "--resolution", "1k")), "1024x1024")

    def test_image_that_is_too_long(self) -> None:
        result = self.change(self.file("in.png", draw_png(400, 100)), "--resolution", "1k")
        self.assertEqual((result.exit_code, self.server.posts), (USAGE, []), result.stderr)


class BadRatioTest(RatioCase):

    def refuses(self, *arguments: str) -> str:
        result = self.make(*arguments)
        self.assertEqual((result.exit_code, self.server.posts), (USAGE, []), result.stdout + result.stderr)
        return str(result.json["error"]["message"])

    def test_with_size(self) -> None:
        for more in (("--aspect-ratio", "1:1"), ("--resolution", "2k"),
                     ("--aspect-ratio", "16:9", "--resolution", "4k")):
            for size in ("1024x1024", "square"):
                with self.subTest(more, size=size):
                    self.assertIn("--size", self.refuses("--size", size, *more))

    def test_with_size_auto(self) -> None:
        self.assertEqual(self.sent(self.make("--size", "auto", "--aspect-ratio", "1:1")), "1024x1024")

    def test_too_long(self) -> None:
        for ratio in ("4:1", "1:4", "301:100", "9999:1", "1:9999"):
            with self.subTest(ratio):
                self.assertIn("3 times", self.refuses("--aspect-ratio", ratio))

    def test_garbage(self) -> None:
        for ratio in ("16-9", "16:9:1", "16:", ":9", "0:1", "1:0", "-1:1", "1.5:1", "wide", "", "16", "1024",
                      "\u0661:\u0661", "99999:99999", "1e1:1"):
            with self.subTest(ratio):
                self.assertIn("--aspect-ratio", self.refuses(f"--aspect-ratio={ratio}"))

    def test_unknown_resolution(self) -> None:
        for resolution in ("3k", "1 K", "hd", "", "1024", "8k"):
            with self.subTest(resolution):
                self.refuses(f"--resolution={resolution}")


class RatioIsToldTest(RatioCase):
    """The computed size is said."""

    def test_on_standard_error(self) -> None:
        result = self.generate_inside("a fox", "--aspect-ratio", "16:9", "--resolution", "4k")
        self.assertIn("3840x2160", result.stderr)
        self.assertNotIn("3840x2160", result.stdout)

    def test_in_json(self) -> None:
        result = self.make("--aspect-ratio", "16:9", "--resolution", "4k")
        self.assertIn("3840x2160", result.json["requested"]["size"])
        self.assertEqual(result.json["warnings"], [])  # it is what was asked for

    def test_a_picture_of_another_size_is_told(self) -> None:
        self.server.reset()
        self.server.plan(Answer(size=(1024, 1024)))
        result = self.generate_inside("a fox", "--aspect-ratio", "16:9", "--json")
        self.assertTrue(any("asked for 1280x720" in text for text in result.json["warnings"]), result.stdout)
