"""Pictures by their bytes alone: the size rules, formats, whole or cut, and masks of every encoder."""
from __future__ import annotations

import contextlib
import io
import itertools
import random
import struct
import unittest
from typing import Any, Callable, Iterator, List
from unittest import mock

from api_server import draw_jpeg, draw_png, draw_webp, jpeg_segment
from support import CHANNELS, mask_fault, mask_png, plain_png, png_chunk, png_file, program


class SizeRulesTest(unittest.TestCase):
    """The size rules of gpt-image-2."""

    def test_split_size(self) -> None:
        for text, size in (("1536x1024", (1536, 1024)), ("16X16", (16, 16)), ("0x0", (0, 0)), ("1x", None),
                           ("x1", None), ("1x1x1", None), (" 1x1", None), ("1 x 1", None), ("-1x1", None),
                           ("999999x1", None), ("", None), ("1x1\n", None), ("1.5x2", None)):
            with self.subTest(text):
                self.assertEqual(program.split_size(text), size)

    def test_faults(self) -> None:
        table = (
            (768, 768, "589,824"), (800, 800, "640,000"), (1024, 576, "589,824"), (1024, 640, ""), (816, 816, ""),
            (1008, 672, ""), (1280, 720, ""), (1920, 1080, "16"), (1920, 1088, ""), (2048, 1152, ""), (2880, 2880, ""),
            (3840, 2160, ""), (2160, 3840, ""), (3008, 3008, "9,048,064"), (4096, 4096, "3840"), (3856, 1600, "3840"),
            (3840, 1280, ""), (3840, 1264, "3 times"), (1264, 3840, "3 times"), (1024, 1024, ""), (1536, 1024, ""),
            (1024, 1536, ""), (2048, 2048, ""), (1000, 1000, "16"), (0, 0, "0"), (1792, 936, "16"))
        for width, height, words in table:
            with self.subTest(f"{width}x{height}"):
                fault = program.size_fault(width, height)
                self.assertEqual(bool(fault), bool(words), fault)
                self.assertIn(words, fault)

    def test_nearest_is_legal(self) -> None:
        draw = random.Random(2)
        for _ in range(12):
            width, height = draw.randrange(1, 6000), draw.randrange(1, 6000)
            with self.subTest(f"{width}x{height}"):
                edges = program.split_size(program.nearest_size(width, height))
                self.assertEqual(program.size_fault(*edges), "")

    def test_nearest_keeps_what_is_legal_and_what_is_square(self) -> None:
        for width, height in ((1024, 1024), (3840, 2160), (1024, 640)):
            self.assertEqual(program.nearest_size(width, height), f"{width}x{height}")
        for edge in (1, 500, 1000, 1010, 3000, 4096):
            with self.subTest(edge):
                width, height = program.split_size(program.nearest_size(edge, edge))
                self.assertEqual(width, height)

    def test_nearest_turns_with_the_picture(self) -> None:
        for width, height in ((1920, 1080), (5000, 100), (4096, 2304)):
            with self.subTest(f"{width}x{height}"):
                upright = program.split_size(program.nearest_size(height, width))
                self.assertEqual(program.split_size(program.nearest_size(width, height)), upright[::-1])

    def test_nearest_is_near(self) -> None:
        """It covers what was asked for, if any size does: what is too large can be cut."""
        for size, near in (((1920, 1080), (1920, 1088)), ((1366, 768), (1376, 768)), ((1010, 710), (1024, 720)),
                           ((1000, 300), (1440, 480)), ((2100, 710), (2128, 720)), ((4000, 2000), (3840, 2000))):
            with self.subTest(size):
                self.assertEqual(program.split_size(program.nearest_size(*size)), near)


class PictureInspectionTest(unittest.TestCase):
    """Format and size from the bytes alone."""

    def inspect(self, data: bytes) -> Any:
        """Return what the program reads from these bytes."""
        return program.inspect_picture(io.BytesIO(data))

    def test_kinds(self) -> None:
        extended = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + bytes([299 & 255, 299 >> 8, 0, 199, 0, 0])
        lossy = b"RIFF\x1e\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 300 | 0x4000, 200 | 0x8000)
        gif = b"GIF89a" + struct.pack("<HH", 300, 200) + b"\0\0\0;"
        for name, data, kind in (("png", draw_png(300, 200), "png"), ("jpeg", draw_jpeg(300, 200), "jpeg"),
                                 ("lossless", draw_webp(300, 200), "webp"), ("extended", extended, "webp"),
                                 ("lossy", lossy, "webp"), ("gif", gif, "gif"),
                                 ("old gif", gif.replace(b"89a", b"87a"), "gif")):
            with self.subTest(name):
                self.assertEqual(self.inspect(data), (kind, 300, 200))

    def test_jpeg_with_big_segments(self) -> None:
        plain = draw_jpeg(300, 200)
        camera = b"".join(jpeg_segment(0xE1, b"Exif\0\0" + bytes([number]) * 65_000) for number in range(3))
        thumbnail = jpeg_segment(0xE1, b"Exif\0\0" + draw_jpeg(16, 16))
        for name, extra in (("three", camera), ("thumbnail", thumbnail), ("fill bytes", b"\xff\xff\xff" + camera[1:]),
                            ("tables", jpeg_segment(0xC4, b"\0" + bytes(16)))):
            with self.subTest(name):
                self.assertEqual(self.inspect(plain[:2] + extra + plain[2:]), ("jpeg", 300, 200))

    def test_progressive_jpeg(self) -> None:
        self.assertEqual(self.inspect(draw_jpeg(300, 200).replace(b"\xff\xc0", b"\xff\xc2", 1)), ("jpeg", 300, 200))

    def test_same_shape(self) -> None:
        for form, one, other, same in (("png", (640, 480), (1024, 768), True), ("png", (640, 480), (768, 1024), False),
                                       ("jpeg", (640, 480), (768, 1024), False), ("png", (0, 0), (1, 1), True),
                                       ("png", (640, 480), (1024, 1024), False), ("jpeg", (640, 480), (9, 9), False)):
            with self.subTest(form=form, one=one, other=other):
                job = mock.Mock(parameters={}, exact=False, images=[mock.Mock(seen=program.Picture(form, *one))])
                run = program.Run(program.Console(program.Secrets()), program.Result())
                run.result.saved.append(program.Saved("a.png", 1, program.Picture("png", *other), 1))
                with contextlib.redirect_stderr(io.StringIO()):
                    program.warn_about_differences(job, run)
                self.assertEqual(not run.console.warnings, same)

    def test_other_things(self) -> None:
        for data in (b"", b"a", b"\x89PNG", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\x10", b"RIFF",
                     b"BM" + bytes(50), b"RIFF\0\0\0\0WAVE" + bytes(50), b"<svgx>", bytes(100), b"\xff" * 100):
            with self.subTest(data[:12]):
                self.assertIsNone(self.inspect(data))

    def test_no_prefix_of_a_picture_breaks_it(self) -> None:
        for data in (draw_png(20, 10), draw_jpeg(20, 10), draw_webp(20, 10)):
            for length in range(min(len(data), 700)):
                picture = self.inspect(data[:length])
                if picture is not None:
                    program.is_whole(io.BytesIO(data[:length]), picture)

    def test_whole(self) -> None:
        for name, data in (("png", draw_png(64, 64)), ("jpeg", draw_jpeg(64, 64)), ("webp", draw_webp(64, 64))):
            with self.subTest(name):
                picture = self.inspect(data)
                self.assertTrue(program.is_whole(io.BytesIO(data), picture))
                self.assertTrue(program.is_whole(io.BytesIO(data + b"\n"), picture))
                self.assertFalse(program.is_whole(io.BytesIO(data[:-8]), picture))


# ---- Masks: a reference encoder that knows every filter ----------------------------------------------------

Pixels = List[List[bytes]]
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def paeth(left: int, above: int, corner: int) -> int:
    """Return PNG's predictor number 4."""
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))


def filtered(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """Return a row behind its filter byte (PNG specification, part 9)."""
    result = bytearray([kind])
    for at, value in enumerate(row):
        left, corner = (row[at - step], above[at - step]) if at >= step else (0, 0)
        guess = (0, left, above[at], (left + above[at]) // 2, paeth(left, above[at], corner))[kind]
        result.append((value - guess) & 255)
    return bytes(result)


def encode(pixels: Pixels, colour: int, depth: int, interlaced: bool, kinds: Callable[[int], int]) -> bytes:
    """Return a PNG of these pixels; `kinds` names the filter of each row of a pass."""
    step = CHANNELS[colour] * depth // 8
    height, width = len(pixels), len(pixels[0])
    data = b""
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows = [b"".join(row[x::dx]) for row in pixels[y::dy]]
        above = bytes(len(rows[0]) if rows else 0)
        for number, row in enumerate(rows if above else []):
            data += filtered(kinds(number), row, above, step)
            above = row
    return png_file(width, height, data, colour, depth, int(interlaced), split=37)


def noise(width: int, height: int, colour: int, depth: int, draw: random.Random) -> Pixels:
    """Return opaque pixels with random colours."""
    sample = depth // 8
    size = (CHANNELS[colour] - 1) * sample
    return [[draw.getrandbits(8 * size).to_bytes(size, "big") + b"\xff" * sample for _ in range(width)]
            for _ in range(height)]


def with_alpha(pixels: Pixels, x: int, y: int, alpha: bytes) -> Pixels:
    """Return a copy in which one pixel has this alpha."""
    copy = [list(row) for row in pixels]
    copy[y][x] = copy[y][x][:-len(alpha)] + alpha
    return copy


class MaskFiltersTest(unittest.TestCase):
    """A mask without a single transparent pixel is found out, whatever encoder made it."""

    def fault(self, data: bytes) -> str:
        """Return the fault of a mask."""
        return mask_fault(data)

    def variants(self) -> Iterator[tuple[int, int, bool]]:
        """Yield colour type, depth and interlacing of every PNG with an alpha channel."""
        return itertools.product((4, 6), (8, 16), (False, True))

    def test_every_filter(self) -> None:
        draw = random.Random(7)
        for colour, depth, interlaced in self.variants():
            opaque = noise(5, 4, colour, depth, draw)
            clear = bytes(depth // 8)
            for first, other in itertools.product(range(5), range(5)):
                def kinds(row: int, first: int = first, other: int = other) -> int:
                    return other if row else first

                with self.subTest(f"colour {colour}, depth {depth}, {interlaced}, filters {first} {other}"):
                    self.assertIn("opaque", self.fault(encode(opaque, colour, depth, interlaced, kinds)))
                    x, y = draw.randrange(5), draw.randrange(4)
                    hole = with_alpha(opaque, x, y, clear)
                    self.assertEqual(self.fault(encode(hole, colour, depth, interlaced, kinds)), "")

    def test_every_pixel(self) -> None:
        draw = random.Random(8)
        for colour, depth, interlaced in self.variants():
            opaque = noise(9, 3, colour, depth, draw)
            for x, y in itertools.product(range(9), range(3)):
                with self.subTest(f"colour {colour}, depth {depth}, {interlaced}, at {x},{y}"):
                    hole = with_alpha(opaque, x, y, bytes(depth // 8))
                    self.assertEqual(self.fault(encode(hole, colour, depth, interlaced, lambda row: (row + x) % 5)), "")

    def test_odd_dimensions(self) -> None:
        draw = random.Random(9)
        for width, height in ((1, 1), (1, 9), (9, 1), (2, 2), (8, 8), (17, 5)):
            for interlaced in (False, True):
                with self.subTest(f"{width}x{height} {interlaced}"):
                    opaque = noise(width, height, 6, 8, draw)
                    self.assertIn("opaque", self.fault(encode(opaque, 6, 8, interlaced, lambda row: row % 5)))
                    hole = with_alpha(opaque, width - 1, height - 1, b"\0")
                    self.assertEqual(self.fault(encode(hole, 6, 8, interlaced, lambda row: row % 5)), "")

    def test_half_transparent_marks_nothing(self) -> None:
        opaque = noise(4, 4, 6, 16, random.Random(1))
        for alpha in (b"\xff\xfe", b"\xfe\xff", b"\x80\0", b"\1\0"):
            with self.subTest(alpha):
                self.assertIn("alpha 0", self.fault(encode(with_alpha(opaque, 2, 2, alpha), 6, 16, False,
                                                           lambda row: 4)))

    def test_without_alpha(self) -> None:
        for colour in (0, 2, 3):
            with self.subTest(colour):
                extra = [png_chunk(b"PLTE", bytes(768))] * (colour == 3)
                self.assertIn("alpha", self.fault(plain_png(8, 8, colour, extra=extra)))

    def test_broken_files_never_break_the_program(self) -> None:
        whole = mask_png(16, 16, clear=False)
        draw = random.Random(3)
        for number in range(300):
            data = bytearray(whole)
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(8, len(data))] = draw.randrange(256)
            with self.subTest(number):
                self.fault(bytes(data[:draw.randrange(8, len(data) + 1)]))

    def test_packed_bomb_is_read_in_pieces(self) -> None:
        huge = png_file(1, 1, bytes(30_000_000))
        self.assertEqual(self.fault(huge), "")
        with mock.patch.object(program, "BLOCK", 1000):
            self.assertIn("opaque", self.fault(mask_png(64, 64, clear=False)))

    def test_other_chunks_stand_between(self) -> None:
        opaque = png_file(1, 1, b"\0" + b"\xff" * 4, extra=[png_chunk(b"tEXt", b"a\0b"),
                                                            png_chunk(b"caBX", bytes(5000))])
        self.assertIn("opaque", self.fault(opaque))
