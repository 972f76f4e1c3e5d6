"""Inputs and outputs as people have them: phone photos, cut-off files, URIs, masks that mark nothing, GIF, SVG."""
from __future__ import annotations

import base64
import io
import itertools
import json
import random
import shlex
import shutil
import signal
import struct
import tracemalloc
import unittest
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

from api_server import Answer, draw_jpeg, draw_png, draw_webp, jpeg_segment
from support import KEY, USAGE, ProgramCase, Result, mask_fault, mask_png, plain_png, png_chunk, png_file, program
from test_codex import CodexCase
from test_pictures import encode, filtered

PROMPT = "make it night"
PNG, JPEG, WEBP = draw_png(64, 48, 1), draw_jpeg(64, 48, 1), draw_webp(64, 48, 1)
SVG = (b'<?xml version="1.0"?>\n<!-- a fox -->\n<!DOCTYPE svg>\n'
       b'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><g/></svg>\n')
GIF = b"GIF89a" + struct.pack("<HH", 64, 48) + b"\0\0\0!\xf9\4\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
KINDS = {  # the first bytes as the formats' specifications have them
    "HEIC": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", "GIF": GIF,
    "TIFF": b"II*\0\x08\0\0\0", "BMP": b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0",
    "PDF": b"%PDF-1.7\n", "JPEG XL": b"\xff\x0a" + bytes(20),
    "SVG": SVG}
OTHER_FORMS = {"HEIC": b"\0\0\0\x18ftypmif1\0\0\0\0heic", "AVIF": b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf",
               "TIFF": b"MM\0*\0\0\0\x08", "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
               "SVG": b"\xef\xbb\xbf  <svg viewBox='0 0 9 9'></svg>"}
PAGES = (b"<!DOCTYPE html><html><body>no</body></html>", b"\n<!-- x --><html lang='en'>", b"<HEAD><title>x</title>")


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return a data: URI with base64."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def exif(orientation: int, order: str = "MM") -> bytes:
    """Return an EXIF block (TIFF) with one other entry and the orientation."""
    sign = ">" if order == "MM" else "<"
    entries = struct.pack(sign + "HHIHH", 0x10F, 3, 1, 7, 0) + struct.pack(sign + "HHIHH", 0x112, 3, 1, orientation, 0)
    return order.encode() + struct.pack(sign + "HIH", 42, 8, 2) + entries + bytes(4)


def turned_jpeg(width: int, height: int, orientation: int, order: str = "MM") -> bytes:
    """Return a JPEG with EXIF behind its JFIF segment."""
    plain = draw_jpeg(width, height)
    return plain[:20] + jpeg_segment(0xE1, b"Exif\0\0" + exif(orientation, order)) + plain[20:]


def extended_webp(width: int, height: int, flags: int, tail: bytes = b"") -> bytes:
    """Return a WebP with the header that announces EXIF, alpha and the like."""
    edges = b"".join((edge - 1).to_bytes(3, "little") for edge in (width, height))
    body = b"WEBP" + struct.pack("<4sIB3x", b"VP8X", 10, flags) + edges + draw_webp(width, height)[12:] + tail
    return b"RIFF" + len(body).to_bytes(4, "little") + body


class InputCase(ProgramCase):
    """Edits whose inputs are odd."""

    def change(self, *words: str, **options: Any) -> Result:
        """Run an edit in this process."""
        env = {"GPT_IMAGE2_API_KEY": KEY, **options.pop("env", {})}
        return self.run_inside("edit", *self.access(), *words, env=env, **options)

    def refuse(self, *words: str, told: str, hint: str = "") -> Result:
        """Check that an edit is refused for this reason, before anything is sent."""
        self.server.requests.clear()
        result = self.change(*words)
        self.assertEqual((result.exit_code, len(result.errors)), (USAGE, 1), result.stderr)
        self.assertIn(told, result.errors[0])
        self.assertIn(hint, result.stderr.partition(result.errors[0])[2])
        self.assertEqual(self.server.posts, [])
        return result

    def sent(self, *words: str) -> list[bytes]:
        """Return the image parts of an edit that succeeds."""
        self.server.requests.clear()
        self.forget()
        self.saved_file(self.change(*words))
        return [part.body for part in self.only_post().parts if part.filename is not None]


class StrangeInputsAreNamedTest(InputCase):
    """What is no PNG, JPEG or WebP is told by its name, with a way out."""

    def test_local_files(self) -> None:
        for name, content in itertools.chain(KINDS.items(), OTHER_FORMS.items()):
            with self.subTest(name):
                self.refuse(self.file("photo.png", content + bytes(600 * (name != "SVG"))), PROMPT, told=f"but {name}.",
                            hint="photo-converted.png")

    def test_web_pages(self) -> None:
        for content in PAGES:
            with self.subTest(content):
                result = self.refuse(self.file("a.png", content), PROMPT, told="but a web page")
                self.assertNotIn("converted", result.stderr)

    def test_content_of_an_address(self) -> None:
        self.server.files.update({"a.avif": KINDS["AVIF"] + bytes(500), "page.png": PAGES[0], "cut.png": PNG[:-40]})
        for name, told in (("a.avif?sig=hidden", "but AVIF"), ("page.png", "but a web page"),
                           ("cut.png", "is incomplete")):
            with self.subTest(name):
                result = self.refuse(f"{self.server.origin}/files/{name}", PROMPT, told=told)
                self.assertIn("cannot fetch image", result.stderr)
                self.assertNotIn("hidden", result.stderr)

    def test_something_else(self) -> None:
        self.refuse(self.file("a.png", "BMW is no bitmap"), PROMPT, told="whatever its name says")

    def test_the_command_converts_and_harms_nothing(self) -> None:
        path = self.file("it's a photo.png", GIF)
        for system, tools, words in (("linux", ["magick", "convert"], ["magick", path + "[0]"]),
                                     ("linux", ["convert"], ["convert", path + "[0]"]),
                                     ("darwin", ["magick"], ["sips", "-s", "format", "png", path, "--out"])):
            with self.subTest(f"{system} {tools}"), mock.patch.object(program.sys, "platform", system), \
                    mock.patch.object(shutil, "which", lambda tool, tools=tools: tool if tool in tools else None):
                with self.assertRaises(program.Failure) as caught:
                    program.read_input(GIF, "image", path)
                self.assertEqual(shlex.split(caught.exception.hint.partition(": ")[2]),
                                 [*words, str(self.work / "it's a photo-converted.png")])

    def test_mask(self) -> None:
        self.refuse(self.file("a.png", PNG), PROMPT, "--mask", self.file("m.png", KINDS["HEIC"]),
                    told="mask " + str(self.work / "m.png"))


class CutInputsAreRefusedTest(InputCase):
    """Half a picture is not paid for; what stands behind a whole one does no harm."""

    def test_cut(self) -> None:
        for name, content in (("a.png", PNG), ("a.jpg", JPEG), ("a.webp", WEBP),
                              ("b.webp", extended_webp(64, 48, 8, b"EXIF\4\0\0\0abcd"))):
            for length in (len(content) - len(content) // 5, len(content) - (9 if name == "a.png" else 2)):
                with self.subTest(f"{name} {length}"):
                    self.refuse(self.file(name, content[:length]), PROMPT, told="is incomplete")

    def test_cut_second_image(self) -> None:
        self.refuse(self.file("a.png", PNG), PROMPT, "--image", self.file("b.png", PNG[:-20]),
                    told="b.png is incomplete")

    def test_cut_photo_with_a_whole_thumbnail(self) -> None:
        photo = JPEG[:20] + jpeg_segment(0xE1, b"Exif\0\0" + draw_jpeg(16, 16)) + JPEG[20:]
        self.assertEqual(self.sent(self.file("a.jpg", photo), PROMPT), [photo])
        self.refuse(self.file("a.jpg", photo[:-2]), PROMPT, told="is incomplete")

    def test_more_behind_the_end_mark(self) -> None:
        noise = random.Random(1).getrandbits(8 * 3_000_000).to_bytes(3_000_000, "big")
        film = b"\0\0\0\x18ftypmp42" + noise.replace(b"\xff\xd9", b"")
        for name, tail in (("film", film), ("second picture", draw_jpeg(16, 16)),
                           ("half a second picture", JPEG[:-9] * 200)):
            with self.subTest(name):
                self.assertEqual(self.sent(self.file("a.jpg", JPEG + tail), PROMPT), [JPEG + tail])

    def test_end_mark_between_two_blocks(self) -> None:
        photo = io.BytesIO(JPEG)
        for block in range(1, 40):
            with mock.patch.object(program, "BLOCK", block):
                self.assertTrue(program.is_whole(photo, program.Picture("jpeg", 64, 48)))


class UrisAsInputsTest(InputCase):
    """file: and data: URIs are what agents pass."""

    def test_file_uris(self) -> None:
        odd = self.file("a b%20c#é.png", PNG)
        upper = self.file("plain.png", PNG)
        for uri in (Path(odd).as_uri(), "file://" + self.file("a b#é.png", PNG), upper.replace("/", "file:///", 1),
                    upper.replace("/", "file://localhost/", 1), "file:" + upper, "FILE://" + upper, "file:plain.png"):
            with self.subTest(uri):
                self.assertEqual(self.sent(uri, PROMPT), [PNG])
        mask = self.file("m m.png", mask_png(64, 48))
        self.assertEqual(self.sent(upper, PROMPT, "--mask", Path(mask).as_uri()), [PNG, mask_png(64, 48)])

    def test_file_uris_that_lead_nowhere(self) -> None:
        for uri in ("file:///none/a.png", "file://other.invalid/a.png"):
            with self.subTest(uri):
                self.refuse(uri, PROMPT, told="cannot read image file:")
        for uri in ("file:///a%00.png", "file:///a%01.png"):
            self.refuse(uri, PROMPT, told="control character in its name")

    def test_data_uris(self) -> None:
        percent = "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)
        for uri in (data_uri(PNG), data_uri(PNG, "application/octet-stream"), data_uri(PNG).replace("data:", "DATA:"),
                    percent, data_uri(PNG).rstrip("="), data_uri(PNG).replace("+", "%2B").replace("=", "%3D"),
                    "data:;base64," + data_uri(PNG).partition(",")[2]):
            with self.subTest(uri[:30]):
                self.assertEqual(self.sent(uri, PROMPT), [PNG])
        self.assertEqual(self.sent(self.file("a.png", PNG), PROMPT, "--image", data_uri(JPEG, "image/jpeg"), "--mask",
                                   data_uri(mask_png(64, 48))),
                         [PNG, JPEG, mask_png(64, 48)])

    def test_broken_data_uris_do_not_show_their_content(self) -> None:
        text = base64.b64encode(random.Random(2).getrandbits(4000).to_bytes(500, "big")).decode()
        rows = (("data:image/png;base64," + text, "whatever its name says"),
                ("data:image/png;base64,%%%" + text, "is not a PNG"),
                (data_uri(KINDS["HEIC"] + text.encode()), "but HEIC"), (data_uri(PNG[:-20]), "incomplete"),
                ("data:image/svg+xml;utf8," + SVG.decode(), "but SVG"), ("data:image/png;base64,", "is not a PNG"))
        for uri, told in rows:
            with self.subTest(told):
                result = self.refuse(uri, PROMPT, told=told)
                self.assertNotIn(text[:40], result.stderr)
                self.assertNotIn(uri[-30:], result.stderr)
        image = self.file("a.png", PNG)
        for words, told in (([image, data_uri(PNG)], "is an image, the prompt is missing"),
                            ([image, "a hat", data_uri(PNG)], "too many arguments"),
                            ([data_uri(PNG).replace(",", ""), PROMPT], "cannot read image data:image/png:")):
            self.assertNotIn("iVBOR", self.refuse(*words, told=told).stderr)

    def test_nothing_is_left_and_a_killed_run_is_collected(self) -> None:
        self.server.plan(Answer(delay=1.5))
        small = draw_png(16, 16)
        command = ("edit", *self.access(), data_uri(small), PROMPT, "-o", "cat.png")
        self.assertEqual(self.kill_at_request(self.start_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}),
                                              signal.SIGTERM).exit_code, 143)
        self.saved_file(self.run_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}))
        self.assertEqual([part.body for part in self.only_post().parts if part.filename], [small])


class DataUriThroughCodexTest(CodexCase):
    """Codex gets the same bytes (RunAPI: see test_runapi)."""

    def test_same_bytes(self) -> None:
        self.sign_in()
        result = self.run_inside("edit", data_uri(JPEG, "image/png"), PROMPT, "--mask", data_uri(mask_png(64, 48)),
                                 *self.access(), "--json")
        self.assertEqual(result.exit_code, 0, result.stderr)
        fields = self.only_post().fields
        self.assertEqual([item["image_url"] for item in (*fields["images"], fields["mask"])],
                         [data_uri(JPEG, "image/jpeg"), data_uri(mask_png(64, 48))])


class SeveralImagesBeforeThePromptTest(InputCase):
    """edit a.png b.png "x": all but the last word are images."""

    def setUp(self) -> None:
        super().setUp()
        self.first, self.second = self.file("a.png", PNG), self.file("two words", JPEG)
        self.server.files["c.webp"] = WEBP
        self.address = self.server.origin + "/files/c.webp"

    def test_images_in_order(self) -> None:
        prompt = self.file("p.txt", PROMPT)
        for words, bodies in (([self.first, self.second, PROMPT], [PNG, JPEG]),
                              ([self.first, self.address, self.second, PROMPT], [PNG, WEBP, JPEG]),
                              ([self.first, self.second, "--image", self.first, PROMPT], [PNG, JPEG, PNG]),
                              ([self.first, self.second, "--prompt-file", prompt], [PNG, JPEG]),
                              ([self.first, data_uri(JPEG), PROMPT], [PNG, JPEG]),
                              ([self.second, self.first, "two words and more"], [JPEG, PNG])):
            with self.subTest(words):
                self.assertEqual(self.sent(*words), bodies)

    def test_what_is_still_wrong(self) -> None:
        for words, told in (([self.first, self.second], "the prompt is missing"),
                            ([self.first, "give", "it", "a hat"], "too many arguments"),
                            ([self.first, "none.png", PROMPT], "none.png: No such file"),
                            ([self.first, "a hat", self.second], "too many arguments"),
                            ([self.first] * 17 + [PROMPT], "17 images were given; at most 16")):
            with self.subTest(words):
                self.refuse(*words, told=told)


class OrientationTest(InputCase):
    """An upright photo is upright, whatever its pixels lie like; masks go by the pixels."""

    def size(self, content: bytes) -> tuple[int, int]:
        """Return the size that is asked for an edit of this picture."""
        self.server.requests.clear()
        self.assert_succeeded(self.change(self.file("photo", content), PROMPT, "--resolution", "1k"))
        width, height = self.only_post().fields["size"].split("x")
        return int(width), int(height)

    def test_jpeg(self) -> None:
        for orientation, order in itertools.product(range(1, 9), ("MM", "II")):
            with self.subTest(f"{orientation} {order}"):
                width, height = self.size(turned_jpeg(4000, 3000, orientation, order))
                self.assertEqual(height > width, orientation >= 5)

    def test_others(self) -> None:
        for orientation in (1, 6):
            png = plain_png(64, 48, extra=[png_chunk(b"eXIf", exif(orientation))])
            block = exif(orientation, "II")
            webp = extended_webp(64, 48, 8, struct.pack("<4sI", b"EXIF", len(block)) + block)
            for content in (png, webp):
                width, height = self.size(content)
                self.assertEqual(height > width, orientation == 6)

    def test_broken_exif(self) -> None:
        block = exif(6)
        for length in range(len(block)):
            content = JPEG[:20] + jpeg_segment(0xE1, b"Exif\0\0" + block[:length]) + JPEG[20:]
            self.assertFalse(program.is_turned(content) and length < 32)
        self.assertFalse(program.is_turned(turned_jpeg(64, 48, 9)))

    def test_shape_of_the_answer(self) -> None:
        photo = self.file("a.jpg", turned_jpeg(640, 480, 6))
        for size, told in (((768, 1024), False), ((1024, 768), True)):
            with self.fresh(size):
                self.server.default = Answer(image=draw_png(*size))
                warnings = self.change(photo, PROMPT, "--json").json["warnings"]
                self.assertEqual(any("different shape" in text for text in warnings), told, warnings)

    def test_mask_has_the_stored_size(self) -> None:
        photo = self.file("a.jpg", turned_jpeg(64, 48, 6))
        self.assertEqual(len(self.sent(photo, PROMPT, "--mask", self.file("m.png", mask_png(64, 48)))), 2)
        self.server.reset()
        self.refuse(photo, PROMPT, "--mask", self.file("m.png", mask_png(48, 64)), told="the first image is 64x48",
                    hint="EXIF")


class MaskMarksSomethingTest(unittest.TestCase):
    """Only a pixel of alpha 0 marks anything, however the PNG says so."""

    def fault(self, data: bytes) -> str:
        """Return the fault of a mask."""
        return mask_fault(data)

    def check(self, clear: bytes, soft: bytes) -> None:
        """Check a mask with and one without a clear pixel."""
        self.assertEqual(self.fault(clear), "")
        self.assertIn("alpha 0", self.fault(soft))

    def test_alpha(self) -> None:
        draw = random.Random(5)
        for colour, depth, interlaced in itertools.product((4, 6), (8, 16), (False, True)):
            sample = depth // 8
            alphas = [b"\1", b"\x80", b"\xfe", b"\xff"] if sample == 1 else [b"\1\0", b"\1\1", b"\x80\0", b"\xff\xfe"]
            colours = (colour // 2 if colour == 6 else 1) * sample
            pixels = [[draw.getrandbits(8 * colours).to_bytes(colours, "big") + draw.choice(alphas) for _ in range(13)]
                      for _ in range(9)]
            x, y = draw.randrange(13), draw.randrange(9)
            hole = [list(row) for row in pixels]
            hole[y][x] = hole[y][x][:-sample] + bytes(sample)
            for kinds in (lambda row: row % 5, lambda row: 4 - row % 5, lambda row: 4, lambda row: 3):
                with self.subTest(f"{colour} {depth} {interlaced}"):
                    self.check(encode(hole, colour, depth, interlaced, kinds),
                               encode(pixels, colour, depth, interlaced, kinds))

    def test_one_colour_is_clear(self) -> None:
        draw = random.Random(6)
        for colour, depth, interlaced in itertools.product((0, 2), (8, 16), (False, True)):
            size = (3 if colour == 2 else 1) * depth // 8
            wanted = bytes(range(7, 7 + size))
            # every byte of the colour is somewhere, but never all of them in one pixel
            others = [wanted[:at] + b"\x63" + wanted[at + 1:] for at in range(size)]
            pixels = [[draw.choice(others) for _ in range(11)] for _ in range(5)]
            hole = [list(row) for row in pixels]
            hole[4][10] = wanted
            special = png_chunk(b"tRNS", wanted if depth == 16
                                else bytes(byte for value in wanted for byte in (0, value)))
            for kind in range(5):
                with self.subTest(f"{colour} {depth} {interlaced} {kind}"):
                    made = [encode(each, colour, depth, interlaced, lambda row, kind=kind: kind)
                            for each in (hole, pixels)]
                    self.check(*(each[:33] + special + each[33:] for each in made))

    def test_packed_pixels(self) -> None:
        for depth, width, kind in itertools.product((1, 2, 4, 8), (1, 3, 5, 8, 13), range(5)):
            # 1 is clear, no pixel but the last one has it; the bits behind the last pixel are 0 and are none
            for colour in (0, 3):
                special = bytes([255, 0]) if colour == 3 else b"\0\1"
                extra = [png_chunk(b"PLTE", bytes(6))] * (colour == 3) + [png_chunk(b"tRNS", special)]
                files = []
                for last in (1, 0):
                    bits = "".join(f"{value:0{depth}b}" for value in [0] * (width - 1) + [last])
                    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
                    data = filtered(kind, row, bytes(len(row)), 1) + filtered(kind, row, row, 1)
                    files.append(png_file(width, 2, data, colour, depth, extra=extra))
                with self.subTest(f"{depth} {width} {kind} {colour}"):
                    self.check(*files)

    def test_bits_behind_the_last_pixel_are_none(self) -> None:
        clear_zero = [png_chunk(b"PLTE", bytes(6)), png_chunk(b"tRNS", b"\0\xff")]
        self.assertIn("alpha 0", self.fault(png_file(3, 1, b"\0\xe0", 3, 1, extra=clear_zero)))  # 1, 1, 1 and five 0
        self.assertEqual(self.fault(png_file(3, 1, b"\0\xc0", 3, 1, extra=clear_zero)), "")

    def test_every_row_is_unfiltered_rightly(self) -> None:
        draw = random.Random(9)
        for number in range(400):
            width = draw.randrange(1, 9)
            line, above = (bytes(draw.choice((0, 1, 127, 128, 255)) if number % 2 else draw.randrange(256)
                                 for _ in range(width)) for _ in "ab")
            if number % 3 == 0:
                line, above = line[:1] * width, above[:1] * width
            for kind in range(5):
                self.assertEqual(program.unfiltered(kind, filtered(kind, line, above, 1)[1:], above), line)

    def test_broken(self) -> None:
        whole = plain_png(8, 8, 6, 128)
        for name, data in (("too few rows", png_file(8, 8, b"\0" + b"\x80" * 32)),
                           ("no such filter", png_file(1, 1, b"\5\0\0\0\0")),
                           ("bad zlib", whole.replace(zlib.compress((b"\0" + b"\x80" * 32) * 8, 1),
                                                      b"no zlib at all....."[:19])),
                           ("odd depth", png_file(8, 8, bytes(300), 6, 4)),
                           ("odd colour", png_file(8, 8, bytes(300), 5)), ("no size", png_file(0, 0, b""))):
            with self.subTest(name):
                self.assertTrue(self.fault(data))

    def test_claims_are_not_believed(self) -> None:
        for width, height in ((10 ** 9, 1), (1, 8_000_000), (2 ** 31 - 1, 2 ** 31 - 1), (65_535, 65_535)):
            unpacked = mock.patch.object(zlib, "decompressobj", side_effect=AssertionError("unpacked"))
            with self.subTest(f"{width}x{height}"), unpacked:
                self.assertRegex(self.fault(png_file(width, height, bytes(3000))), "claims more pixels|too many pixels")

    def test_memory_is_bounded(self) -> None:
        data = png_file(4000, 4000, (b"\0" + b"\x80" * 16000) * 4000)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertIn("alpha 0", self.fault(data))
        self.assertLess(tracemalloc.get_traced_memory()[1], 16_000_000)  # of 64 MB unpacked


class MaskOfAnotherSizeTest(InputCase):
    """A mask is measured before anything of it is unpacked."""

    def test_size_comes_first(self) -> None:
        bomb = self.file("m.png", png_file(10 ** 9, 1, bytes(1000)))
        with mock.patch.object(zlib, "decompressobj", side_effect=AssertionError("unpacked")):
            self.refuse(self.file("a.png", PNG), PROMPT, "--mask", bomb, told="is 1000000000x1")

    def test_half_transparent_mask_is_refused(self) -> None:
        self.refuse(self.file("a.png", PNG), PROMPT, "--mask", self.file("m.png", plain_png(64, 48, 6, 128)),
                    told="no pixel has alpha 0")


class OutputNamesTest(ProgramCase):
    """What the name of -o asks for and the model cannot make costs nothing."""

    def test_suffixes_that_the_model_cannot_make(self) -> None:
        for suffix in ("gif", "svg", "avif", "tiff", "tif", "pdf", "bmp", "heic", "GIF", "psd"):
            for name in ("gpt-image-2", "gpt-image-2.5-flare-2026-09-08"):
                with self.subTest(suffix + name):
                    result = self.generate_inside(PROMPT, "-o", "x." + suffix, "--model", name, "--json")
                    self.assertEqual(result.exit_code, USAGE, result.stderr)
                    self.assertIn("png, jpeg, webp", result.json["error"]["message"])
        for arguments in (["--format", "gif"], ["--format", "tiff"], ["-o", "x.avif", "--model", "any-model"],
                          ["-o", "x.tiff", "--model", "gpt-image-2.6-flare"],
                          ["-o", "x.svg", "--api", "azure"], ["-o", "x.gif", "--api", "runapi"]):
            with self.subTest(arguments):
                self.assertEqual(self.generate_inside(PROMPT, *arguments).exit_code, USAGE)
        self.assertEqual(self.server.requests, [])

    def test_names_that_are_no_formats(self) -> None:
        (self.work / "shots.gif").mkdir()
        for output, name in (("cat.v2", "cat.v2.png"), ("shots.gif", "gpt-image2-output.png"),
                             ("new.svg/", "gpt-image2-output.png"), ("v1.2.final", "v1.2.final.png")):
            with self.subTest(output):
                self.assertEqual(self.saved_file(self.generate_inside(PROMPT, "-o", output)).name, name)

    def test_format_against_the_name(self) -> None:
        for output, form, name in (("a.png", "jpeg", "a.jpg"), ("b.gif", "png", "b.png"), ("c.tiff", "webp", "c.webp")):
            with self.subTest(output):
                result = self.generate_inside(PROMPT, "-o", output, "--format", form, "--json")
                self.assertEqual(Path(result.json["saved"][0]["path"]).name, name)
        for output, form in (("d.jpeg", "jpg"), ("e.PNG", "png"), ("f", "webp")):
            self.assertEqual(self.generate_inside(PROMPT, "-o", output, "--format", form, "--json").json["warnings"],
                             [])


class GifAndSvgComeBackTest(ProgramCase):
    """gpt-image-2.6 makes GIF and SVG; what comes is saved as what it is."""

    def make(self, name: str, image: bytes, *arguments: str) -> Result:
        """Ask for a picture with the newest model."""
        self.server.default = Answer(image=image, check=False)
        return self.generate_inside(PROMPT, "--model", "gpt-image-2.6-flare", "-o", name, "--json", *arguments)

    def test_both(self) -> None:
        for name, image, form, edges in (("a.gif", GIF, "gif", (64, 48)), ("a.svg", SVG, "svg", (300, 200))):
            with self.fresh(name):
                result = self.make(name, image)
                document = result.json
                saved = document["saved"][0]
                self.assertEqual((result.exit_code, document["warnings"]), (0, []), result.stderr)
                self.assertEqual((Path(saved["path"]).name, saved["format"], (saved["width"], saved["height"])),
                                 (name, form, edges))
                self.assertEqual(Path(saved["path"]).read_bytes(), image)
                self.assertEqual((self.only_post().fields["output_format"], document["requested"]["format"]),
                                 (form, form))

    def test_svg_instead_of_png(self) -> None:
        result = self.make("a.png", SVG)
        self.assertEqual(Path(result.json["saved"][0]["path"]).name, "a.svg")
        self.assertIn("you asked for png", result.json["warnings"][0])

    def test_as_url_and_as_the_answer_itself(self) -> None:
        for answer in (Answer(image=SVG, as_url=True, check=False),
                       Answer(body=SVG, content_type="image/svg+xml", check=False),
                       Answer(body=json.dumps({"images": [base64.b64encode(SVG).decode()]}).encode(), check=False)):
            with self.fresh(answer.content_type, as_url=answer.as_url):
                self.server.default = answer
                path = self.saved_file(self.generate_inside(PROMPT, "--model", "gpt-image-2.6-flare", "-o", "b.svg",
                                                            "--overwrite"))
                self.assertEqual((path.name, path.read_bytes()), ("b.svg", SVG))

    def test_size_of_a_vector_picture_is_none_of_ours(self) -> None:
        self.assertEqual(self.make("a.svg", SVG, "--size", "1024x1024").json["warnings"], [])

    def test_cut_svg_is_kept_and_told(self) -> None:
        result = self.make("a.svg", SVG[:-9])
        self.assertEqual((result.exit_code, result.json["ok"]), (6, False))
        self.assertIn("incomplete", result.json["error"]["message"])
        self.assertTrue((self.work / "a.svg").exists())

    def test_compression(self) -> None:
        for name in ("a.gif", "a.svg"):
            self.assertEqual(self.make(name, GIF, "--compression", "5").exit_code, USAGE)


class SvgTest(unittest.TestCase):
    """SVG by its text alone."""

    def inspect(self, text: bytes) -> Any:
        """Return what the program sees."""
        return program.inspect_picture(io.BytesIO(text))

    def test_sizes(self) -> None:
        for attributes, edges in (('width="30" height="20"', (30, 20)), ("height='20px' width = '30.5'", (30, 20)),
                                  ('viewBox="0 0 30 20"', (30, 20)),
                                  ('width="100%" height="100%" viewBox="-1,-2, 30.5,20.0"', (30, 20)), ("", (0, 0)),
                                  ('width="3em" height="2"', (0, 0)),
                                  ('stroke-width="9" data-height="8" viewBox="0 0 3e1 2"', (0, 0)),
                                  ('width="99999999999" height="1"', (0, 0))):
            with self.subTest(attributes):
                self.assertEqual(self.inspect(f"<svg {attributes}></svg>".encode()), ("svg", *edges))

    def test_prologs(self) -> None:
        doctype = b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://x/svg11.dtd" [ <!ENTITY a "b"> ]>'
        for prolog in (b"", b"\xef\xbb\xbf", b"\n", b'<?xml version="1.0"?>', b"<!-- <html> -->", doctype,
                       b"\xef\xbb\xbf<?xml?>\n<!-- a --><!-- b -->" + doctype + b"\n"):
            with self.subTest(prolog):
                self.assertEqual(self.inspect(prolog + b'<svg width="3" height="2"/>'), ("svg", 3, 2))
        for text in (b"<svgs>", b"text <svg>", b"<html><svg></svg></html>", b"<!-- <svg> -->", b"{\"svg\": \"<svg>\"}",
                     b"<!--" * 1000, b"<!doctype" * 400):
            self.assertIsNone(self.inspect(text), text[:40])

    def test_whole(self) -> None:
        for text, whole in ((SVG, True), (b"<svg:svg></svg:svg >", True), (b"<svg></svg><!-- end -->\n", True),
                            (b"<svg><g>", False), (b"<svg></svg><g", False),
                            (b"<svg>\xff</svg>", False), ("<svg>лиса</svg>".encode(), True)):
            self.assertEqual(program.is_whole(io.BytesIO(text), program.Picture("svg", 0, 0)), whole, text)
        for text, whole in ((GIF, True), (GIF + b"\0\0", True), (GIF[:-1], False)):
            self.assertEqual(program.is_whole(io.BytesIO(text), program.Picture("gif", 1, 1)), whole, text)


class TransparentBackgroundTest(ProgramCase):
    """Asked for and not got is a warning."""

    def warned(self, image: bytes, *arguments: str) -> bool:
        """Return whether it is told that nothing is transparent, in text and JSON."""
        self.server.default = Answer(image=image, check=False)
        results = []
        for form in ([], ["--json"]):
            self.forget()
            results.append(self.generate_inside(PROMPT, "--background", "transparent", "-o", "a.png", "--model",
                                                "gpt-image-2.6-flare", *arguments, *form))
        told = ["is opaque" in results[0].stderr, any("is opaque" in text for text in results[1].json["warnings"])]
        self.assertEqual(told[0], told[1])
        self.assertEqual([result.exit_code for result in results], [0, 0])
        return told[0]

    def test_formats(self) -> None:
        lossy = b"WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 64, 48)
        lossless = bytearray(WEBP)
        lossless[24] |= 0x10
        palette = [png_chunk(b"PLTE", bytes(3)), png_chunk(b"tRNS", b"\0")]
        for name, image, told in (("rgb", PNG, True), ("rgba", mask_png(64, 48), False),
                                  ("grey", plain_png(9, 9, 0), True), ("grey and alpha", plain_png(9, 9, 4), False),
                                  ("palette", plain_png(9, 9, 3, 0, palette), False),
                                  ("opaque palette", plain_png(9, 9, 3, 0, palette[:1]), True), ("jpeg", JPEG, True),
                                  ("alpha of 255", plain_png(9, 9, 6, 255), True),
                                  ("grey and alpha of 255", plain_png(9, 9, 4, 255), True),
                                  ("palette with alpha of 255", plain_png(9, 9, 3, 0, [
                                      palette[0], png_chunk(b"tRNS", b"\xff")]), True),
                                  ("lossy", b"RIFF" + len(lossy).to_bytes(4, "little") + lossy, True),
                                  ("lossless", WEBP[:24] + bytes([WEBP[24] & 0xEF]) + WEBP[25:], True),
                                  ("lossless with alpha", bytes(lossless), False),
                                  ("extended", extended_webp(9, 9, 0), True),
                                  ("extended with alpha", extended_webp(9, 9, 0x10), False), ("gif", GIF, False),
                                  ("opaque gif", GIF.replace(b"!\xf9\4\1", b"!\xf9\4\4"), True), ("svg", SVG, False)):
            with self.subTest(name):
                self.assertEqual(self.warned(image), told)

    def test_not_asked_for(self) -> None:
        self.server.default = Answer(image=PNG)
        self.assertNotIn("opaque", self.generate_inside(PROMPT, "-o", "a.png").stderr)
