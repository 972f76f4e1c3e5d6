"""Masks that hold: what is built from rectangles and black and white, what is kept outside, and what it costs."""
from __future__ import annotations

import io
import itertools
import json
import os
import random
import tempfile
import time
import tracemalloc
import unittest
import unittest.mock
import zlib
from os import environ
from pathlib import Path
from typing import Any, List, Tuple

from api_server import Answer, draw_jpeg, draw_png, draw_webp, png_chunk
from support import CHANNELS, KEY, ProgramCase, Result, mask_png, plain_png, png_file, program
from test_pictures import ADAM7

Pixel = Tuple[int, ...]  # red, green, blue, alpha
Rows = List[List[Pixel]]
FLARE = ("--model", "gpt-image-2.5-flare")  # takes any size, so that pictures may be small
WIDTH, HEIGHT = 40, 30


# ---- A slow decoder and encoder of our own: every step as PNG's specification says it ---------------------------

def paeth(left: int, up: int, corner: int) -> int:
    """Return the neighbour that is nearest to left + up - corner."""
    return min((abs(up - corner), 0, left), (abs(left - corner), 1, up), (abs(left + up - 2 * corner), 2, corner))[2]


def decode(data: bytes) -> Rows:
    """Return the pixels of a PNG, one number at a time."""
    at, chunks = 8, {b"IDAT": b""}
    while at < len(data):
        length, name = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        chunks[name] = chunks.get(name, b"") + data[at + 8:at + 8 + length]
        at += length + 12
    header = chunks[b"IHDR"]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colour, interlaced = header[8], header[9], header[12]
    content, start, rows = zlib.decompress(chunks[b"IDAT"]), 0, [[(0, 0, 0, 0)] * width for _ in range(height)]
    bits = CHANNELS[colour] * depth
    step = max(1, bits // 8)
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns = len(range(x, width, dx))
        length, above = (columns * bits + 7) // 8, bytes((columns * bits + 7) // 8)
        for line in range(y, height if columns else 0, dy):
            method, row = content[start], bytearray(content[start + 1:start + 1 + length])
            for at in range(length):
                left, up = row[at - step] if at >= step else 0, above[at]
                corner = above[at - step] if at >= step else 0
                row[at] = (row[at] + (0, left, up, (left + up) // 2, paeth(left, up, corner))[method]) & 255
            rows[line][x::dx] = [pixel(row, number, depth, colour, chunks) for number in range(columns)]
            start, above = start + 1 + length, bytes(row)
    return rows


def pixel(row: bytes, number: int, depth: int, colour: int, chunks: dict[bytes, bytes]) -> Pixel:
    """Return one pixel of a row in 8 bits."""
    channels, whole = CHANNELS[colour], int.from_bytes(row, "big")
    samples = [whole >> (8 * len(row) - depth * (number * channels + at + 1)) & (1 << depth) - 1
               for at in range(channels)]
    special = chunks.get(b"tRNS", b"")
    if colour == 3:
        at = samples[0]
        return (*chunks[b"PLTE"][3 * at:3 * at + 3], special[at] if at < len(special) else 255)
    key = [int.from_bytes(special[at:at + 2], "big") for at in range(0, len(special), 2)]
    eight = [sample >> 8 if depth == 16 else sample * 255 // ((1 << depth) - 1) for sample in samples]
    alpha = eight.pop() if colour >= 4 else 0 if samples == key else 255
    return (*(eight * 3)[:3], alpha) if len(eight) == 1 else (*eight, alpha)


def random_png(draw: random.Random, width: int, height: int, colour: int, depth: int, interlaced: bool,
               special: bool = False) -> bytes:
    """Return a PNG of random bytes, each row with another filter."""
    bits, extra, data = CHANNELS[colour] * depth, [], b""
    entries = 1 << depth
    if colour == 3:
        extra.append(png_chunk(b"PLTE", draw.getrandbits(24 * entries).to_bytes(3 * entries, "big")))
        extra += [png_chunk(b"tRNS", bytes(draw.randrange(256) for _ in range(entries // 2)))] * special
    elif special and colour < 4:
        extra.append(png_chunk(b"tRNS", b"".join(draw.choice((0, entries - 1)).to_bytes(2, "big")
                                                 for _ in range(CHANNELS[colour]))))
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        length = (len(range(x, width, dx)) * bits + 7) // 8
        for _ in range(y, height if length else 0, dy):
            data += bytes([draw.randrange(5)]) + bytes(draw.choice((0, 255, draw.randrange(256)))
                                                       for _ in range(length))
    return png_file(width, height, data, colour, depth, int(interlaced), extra, split=draw.choice((1, 50, 10_000)))


EVERY_KIND = [(colour, depth) for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)),
                                                     (4, (8, 16)), (6, (8, 16))) for depth in depths]


class PngCase(unittest.TestCase):
    """A folder for PNGs, and the program's reader and writer."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "a.png")

    def png(self, data: bytes) -> Any:
        """Return the program's reader of a PNG."""
        Path(self.path).write_bytes(data)
        return program.Png(self.path)

    def pixels(self, data: bytes) -> Rows:
        """Return the pixels that the program reads."""
        return [list(zip(*row)) for row in self.png(data).rows()]

    def written(self, rows: Rows, channels: int = 4) -> bytes:
        """Return the PNG that the program writes."""
        planes = [[bytes(plane) for plane in list(zip(*row))[:channels]] for row in rows]
        program.write_png(sink := io.BytesIO(), len(rows[0]), len(rows), planes, channels, {})
        return sink.getvalue()


class PngReaderTest(PngCase):
    """Every colour type, depth, filter and interlacing, against the slow decoder."""

    def test_every_kind(self) -> None:
        draw = random.Random(11)
        for (colour, depth), interlaced, special in itertools.product(EVERY_KIND, (False, True), (False, True)):
            for width, height in ((1, 1), (3, 9), (13, 5)):
                data = random_png(draw, width, height, colour, depth, interlaced, special)
                with self.subTest(f"{colour} {depth} {interlaced} {special} {width}x{height}"):
                    self.assertEqual(self.pixels(data), decode(data))
                    png = self.png(data).checked()
                    self.assertEqual([row[3] for row in png.rows(only_alpha=True)], [row[3] for row in png.rows()])
                    self.assertEqual(png.has_alpha, colour >= 4 or special)

    def test_round_trip(self) -> None:
        draw = random.Random(12)
        for colour, depth in EVERY_KIND:
            with self.subTest(f"{colour} {depth}"):
                rows = decode(random_png(draw, 17, 6, colour, depth, False, True))
                self.assertEqual(decode(self.written(rows)), rows)
                opaque = [[(*each[:3], 255) for each in row] for row in rows]
                self.assertEqual(decode(self.written(opaque, 3)), opaque)

    def test_a_drawn_picture_stays_small(self) -> None:
        for alpha in (None, 255):
            data = draw_png(200, 150, 3, alpha)
            self.assertLess(len(self.written(decode(data), 3 if alpha is None else 4)), 1.3 * len(data) + 500)

    def test_broken(self) -> None:
        short = [png_chunk(b"PLTE", bytes(6))]
        cases = {
            "a checksum": plain_png(8, 8)[:46] + b"\0" + plain_png(8, 8)[47:],
            "cut off": png_file(8, 8, bytes(50)), "no data": png_file(8, 8, b""),
            "zlib": plain_png(9, 9).replace(b"\x78\x01", b"\0\0"),
            "filter": png_file(1, 1, b"\5\0\0\0\0"), "palette": png_file(2, 1, b"\0\0\2", 3, extra=short),
            "no palette": png_file(2, 1, b"\0\0\1", 3), "odd palette": png_file(2, 1, b"\0\0\1", 3,
                                                                                extra=[png_chunk(b"PLTE", bytes(5))]),
            "tRNS of grey": png_file(1, 1, b"\0\0", 0, extra=[png_chunk(b"tRNS", b"\0")]),
            "tRNS of RGB": png_file(1, 1, b"\0\0\0\0", 2, extra=[png_chunk(b"tRNS", b"\0\0")]),
            "tRNS of a palette": png_file(1, 1, b"\0\0", 3, extra=[*short, png_chunk(b"tRNS", bytes(3))]),
            "tRNS beside alpha": png_file(1, 1, b"\0\0\0", 4, extra=[png_chunk(b"tRNS", bytes(2))]),
            "depth": png_file(8, 8, bytes(300), 6, 4), "colour": png_file(8, 8, bytes(300), 5),
            "edges": png_file(0, 8, b""), "interlacing": png_file(8, 8, bytes(300), 2, 8, 2),
            "bomb": png_file(8000, 8000, bytes(100), 6)}
        for name, data in cases.items():
            with self.subTest(name), self.assertRaisesRegex(ValueError, "is a broken PNG|claims more"):
                self.png(data).checked()
        for name in ("checksum", "filter", "cut off"):  # what can be said is said
            key = next(each for each in cases if name in each)
            with self.subTest(name), self.assertRaisesRegex(ValueError, name):
                self.png(cases[key]).checked()

    def test_what_stands_behind_the_end_does_not_count(self) -> None:
        whole = plain_png(8, 8, 6, 9)
        for more in (bytes(1), bytes(8), bytes(5000), b"\0\0\0\1 end", b"more of it"):
            self.assertEqual(self.pixels(whole + more), decode(whole), more[:12])

    def test_a_palette_of_too_many_colours(self) -> None:
        extra = [png_chunk(b"PLTE", bytes(3 * 300))]
        self.assertEqual(self.pixels(png_file(1, 1, b"\0\7", 3, extra=extra)), [[(0, 0, 0, 255)]])

    def test_a_bomb_is_not_unpacked(self) -> None:
        data = png_file(8000, 8000, bytes(100), 6)
        with unittest.mock.patch.object(zlib, "decompressobj", side_effect=AssertionError("unpacked")), \
                self.assertRaisesRegex(ValueError, "claims"):
            self.png(data)

    def test_memory_holds_a_few_rows(self) -> None:
        for interlaced in (False, True):
            rows = 8 if interlaced else 2500  # of noughts, which the reader passes quickly
            data = plain_png(2500, 2500, 6, 0) if not interlaced else random_png(
                random.Random(1), 4000, rows, 6, 8, True)
            png = self.png(data)
            tracemalloc.start()
            for _ in png.rows():
                pass
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.assertLess(peak, 12_000_000)

    def test_mutations_raise_nothing_else(self) -> None:
        draw = random.Random(13)
        kinds = [random_png(draw, 9, 7, colour, depth, interlaced, True)
                 for colour, depth in EVERY_KIND for interlaced in (False, True)]
        began = time.monotonic()
        for number in range(500 if environ.get("FAST") else 5000):
            data = bytearray(kinds[number % len(kinds)])
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(8, len(data))] = draw.randrange(256)
            if number % 2:  # with right checksums the mistakes get further
                data = bytearray(mended(bytes(data)))
            try:
                png = self.png(bytes(data[:draw.randrange(8, len(data) + 1)] if number % 5 == 0 else data)).checked()
                if png.width * png.height < 10_000:
                    self.assertEqual(sum(1 for _ in png.rows()), png.height)
            except ValueError as fault:
                self.assertNotIn("\n", str(fault))
        self.assertLess(time.monotonic() - began, 300)


def mended(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what they hold."""
    result, at = data[:8], 8
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at:at + 4], "big"), len(data) - at - 12)
        result += png_chunk(data[at + 4:at + 8], data[at + 8:at + 8 + length])
        at += length + 12
    return result


class BlendTest(unittest.TestCase):
    """One row of what was kept and what was made."""

    def blended(self, mask: int, kept: Pixel, made: Pixel) -> Pixel:
        """Return one mixed pixel."""
        row = program.blended(bytes([mask]), [bytes([each]) for each in kept], [bytes([each]) for each in made])
        return tuple(plane[0] for plane in row)

    def test_ends_are_exact(self) -> None:
        draw = random.Random(14)
        for _ in range(200):
            kept, made = (tuple(draw.randrange(256) for _ in range(4)) for _ in "ab")
            self.assertEqual(self.blended(255, kept, made), kept)
            self.assertEqual(self.blended(0, kept, made), made)

    def test_between(self) -> None:
        self.assertEqual(self.blended(128, (0, 100, 200, 255), (255, 100, 0, 255)), (127, 100, 100, 255))
        self.assertEqual(self.blended(51, (255, 0, 0, 255), (0, 0, 255, 255)), (51, 0, 204, 255))

    def test_what_is_clear_lends_no_colour(self) -> None:
        self.assertEqual(self.blended(128, (255, 0, 0, 255), (0, 0, 0, 0)), (255, 0, 0, 128))
        self.assertEqual(self.blended(100, (9, 9, 9, 0), (8, 8, 8, 0)), (0, 0, 0, 0))


class RectangleTest(unittest.TestCase):
    """X,Y,WIDTH,HEIGHT and the mask that it becomes."""

    def rows(self, *rectangles: str, feather: int = 0, size: tuple[int, int] = (8, 4)) -> list[bytes]:
        """Return the alpha of a mask."""
        mask = program.Upload(" ".join(rectangles), origin="rectangles")
        job = program.Job("edit", "m", "p", (), mask, {}, 1, program.Target("", "", "", False),
                          mask_form="rectangles", feather=feather)
        return list(program.mask_rows(job, *size))

    def test_pixels_and_per_cent(self) -> None:
        for text in ("2,1,4,2", "25%,25%,50%,50%", "2,25%,4,50%", "25%,1,50%,2"):
            with self.subTest(text):
                self.assertEqual([row.hex(" ") for row in self.rows(text)],
                                 ["ff ff ff ff ff ff ff ff"] + ["ff ff 00 00 00 00 ff ff"] * 2
                                 + ["ff ff ff ff ff ff ff ff"])

    def test_thirds_meet(self) -> None:
        left, middle = (self.rows(text, size=(100, 1))[0] for text in ("0,0,33.3%,100%", "33.3%,0,33.3%,100%"))
        self.assertEqual(left.count(0) + middle.count(0), 67)
        self.assertFalse(any(one == other == 0 for one, other in zip(left, middle)))

    def test_several_and_clipped(self) -> None:
        row = self.rows("-2,0,3,1", "6,0,100,1", size=(8, 1))[0]
        self.assertEqual([at for at in range(8) if row[at] == 0], [0, 6, 7])

    def test_feather_is_inside_and_not_at_the_border(self) -> None:
        row, = self.rows("2,0,6,1", feather=2, size=(10, 1))
        self.assertEqual(list(row), [255, 255, 170, 85, 0, 0, 85, 170, 255, 255])
        row, = self.rows("0,0,5,1", feather=2, size=(10, 1))
        self.assertEqual(list(row), [0, 0, 0, 85, 170, 255, 255, 255, 255, 255])
        corner = self.rows("1,1,100%,100%", feather=1, size=(4, 4))
        self.assertEqual([list(row) for row in corner], [[255] * 4, [255, 128, 128, 128], [255, 128, 0, 0],
                                                         [255, 128, 0, 0]])

    def test_refused(self) -> None:
        for text in ("", "1,2,3", "1,2,3,4,5", "0,0,0,5", "0,0,5,0", "0,0,-1,5", "0,0,101%,5", "NaN,0,1,1", "a,0,1,1",
                     "0,0,1e3,1", "0,0,1.5,2", "0,0,0%,5", "0;0;1;1", "0,0,%,5", "0,0,١,5"):
            with self.subTest(text), self.assertRaises(ValueError):
                program.as_rectangle(text)
        self.assertEqual(program.as_rectangle(" 0, 0, 50 %, 12.5%"), "0,0,50%,12.5%")


class MaskCase(ProgramCase):
    """An image to edit, the answer to it, and views of what comes of both."""

    def setUp(self) -> None:
        super().setUp()
        self.content = draw_png(WIDTH, HEIGHT, 1)
        self.image = self.file("a.png", self.content)
        self.made = draw_png(WIDTH, HEIGHT, 2)
        self.server.default = Answer(image=self.made, check=False)
        self.addCleanup(setattr, self.server, "default", Answer())

    def change(self, *arguments: str, image: str = "", **options: Any) -> Result:
        """Run one edit, which saves out.png."""
        output = () if "-o" in arguments else ("-o", "out.png")
        return self.edit(image or self.image, "a hat", *FLARE, *arguments, *output, **options)

    def sent_mask(self) -> list[bytes]:
        """Return the alpha of the mask that arrived."""
        part, = [part for part in self.only_post().parts if part.name == "mask"]
        self.assertEqual(part.content_type, "image/png")
        return [bytes(each[3] for each in row) for row in decode(part.body)]

    def picture(self, name: str = "out.png") -> Rows:
        """Return the pixels of a saved picture."""
        return decode((self.work / name).read_bytes())

    def assert_kept(self, rows: Rows, mask: list[bytes], content: bytes | None = None) -> None:
        """Check a result pixel by pixel: the image's where the mask is opaque, the answer's where it is clear."""
        old, new = decode(content or self.content), decode(self.made)
        for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
            if mask[y][x] in (0, 255):
                self.assertEqual(rows[y][x], (old if mask[y][x] else new)[y][x], (x, y, mask[y][x]))

    def refused(self, told: str, *arguments: str, image: str = "", hint: str = "") -> None:
        """Check that nothing is sent, and what is said."""
        result = self.change(*arguments, image=image)
        self.assertEqual(result.exit_code, program.USAGE, result.stderr)
        self.assertIn(told, result.stderr)
        self.assertIn(hint, result.stderr)
        self.assertEqual(self.server.requests, [])


class MadeMaskTest(MaskCase):
    """What --mask-rect and --mask-bw send."""

    def test_rectangle(self) -> None:
        self.assert_succeeded(self.change("--mask-rect", "0,0,50%,50%", "--mask-rect", "30,20,5,5"))
        expected = [bytes(0 if (x < 20 and y < 15) or (30 <= x < 35 and 20 <= y < 25) else 255 for x in range(WIDTH))
                    for y in range(HEIGHT)]
        self.assertEqual(self.sent_mask(), expected)

    def test_for_every_format(self) -> None:
        for name, content in (("a.jpg", draw_jpeg(WIDTH, HEIGHT)), ("a.webp", draw_webp(WIDTH, HEIGHT))):
            with self.subTest(name):
                self.server.requests.clear()
                self.forget()
                self.assert_succeeded(self.change("--mask-rect", "0,0,1,1", image=self.file(name, content)))
                self.assertEqual(self.sent_mask()[0][:2], b"\0\xff")

    def test_of_an_image_from_elsewhere(self) -> None:
        self.server.plan_files(Answer(body=self.content, content_type="image/png"))
        self.assert_succeeded(self.change("--mask-rect", "50%,0,50%,100%", image=self.server.url[:-3] + "/files/a.png"))
        self.assertEqual(self.sent_mask(), [b"\xff" * 20 + bytes(20)] * HEIGHT)

    def test_clipped_and_soft(self) -> None:
        result = self.change("--mask-rect", "30,0,20,30", "--mask-feather", "1")
        self.assert_succeeded(result)
        self.assertIn("30,0,20,30 reaches beyond", result.stderr)
        self.assertEqual(self.sent_mask(), [b"\xff" * 30 + b"\x80" + bytes(9)] * HEIGHT)

    def test_black_and_white(self) -> None:
        grey = bytes(range(0, 255, 7))[:WIDTH].ljust(WIDTH, b"\xff")
        data = png_file(WIDTH, HEIGHT, (b"\0" + grey) * HEIGHT, 0)
        self.assert_succeeded(self.change("--mask-bw", self.file("bw.png", data)))
        self.assertEqual(self.sent_mask(), [bytes(255 - each for each in grey)] * HEIGHT)

    def test_colours_and_clear_parts_of_a_black_and_white_mask(self) -> None:
        row = bytes((255, 255, 255, 255, 0, 0, 0, 255, 255, 255, 255, 0, 0, 255, 0, 255)) * (WIDTH // 4)
        data = png_file(WIDTH, HEIGHT, (b"\0" + row) * HEIGHT)
        self.assert_succeeded(self.change("--mask-bw", self.file("bw.png", data)))
        self.assertEqual(self.sent_mask(), [bytes((0, 255, 255, 255 - 149)) * (WIDTH // 4)] * HEIGHT)

    def test_palette_of_one_bit(self) -> None:
        extra = [png_chunk(b"PLTE", b"\0\0\0\xff\xff\xff")]
        data = png_file(WIDTH, HEIGHT, (b"\0\xf0" + bytes(4)) * HEIGHT, 3, 1, extra=extra)
        self.assert_succeeded(self.change("--mask-bw", self.file("bw.png", data)))
        self.assertEqual(self.sent_mask(), [bytes(4) + b"\xff" * 36] * HEIGHT)

    def test_what_is_asked_for_decides_what_is_the_same(self) -> None:
        other = self.file("bw.png", plain_png(WIDTH, HEIGHT, 0, 255))
        for number, options in enumerate((["--mask-rect", "0,0,9,9"], ["--mask-rect", "0,0,9,8"],
                                          ["--mask-rect", "0,0,9,9", "--mask-feather", "2"], ["--mask-bw", other]), 1):
            for _ in range(2):
                self.assert_succeeded(self.change(*options, "-o", "out.png"))
            self.assertEqual(len(self.server.posts), number, options)

    def test_in_a_batch(self) -> None:
        lines = [{"prompt": "one", "image": self.image, "mask-rect": "0,0,50%,50%", "mask-exact": True},
                 {"prompt": "two", "image": self.image, "mask-rect": ["0,0,9,9", "20,20,9,9"], "output": "two.png"}]
        batch = self.file("batch.jsonl", "\n".join(map(json.dumps, lines)))
        result = self.generate("--batch", batch, *FLARE, "-o", "pictures")
        self.assert_succeeded(result)
        masks = [[part for part in post.parts if part.name == "mask"] for post in self.server.posts]
        self.assertEqual([len(each) for each in masks], [1, 1])
        one, = (name for name in result.names if name != "two.png")
        mask = [bytes(0 if x < 20 and y < 15 else 255 for x in range(WIDTH)) for y in range(HEIGHT)]
        self.assert_kept(self.picture("pictures/" + one), mask)


class RefusedMaskTest(MaskCase):
    """What is wrong is found before anything is sent."""

    def test_rectangles(self) -> None:
        for text, told in (("1,2,3", "must be X,Y,WIDTH,HEIGHT"), ("0,0,0,5", "must be"), ("0,0,101%,5", "must be"),
                           ("NaN,0,1,1", "must be"), ("40,0,5,5", "covers no pixel"), ("0,-9,5,5", "covers no pixel"),
                           ("0,0,0.1%,5", "covers no pixel")):
            with self.subTest(text):
                self.refused(told, f"--mask-rect={text}")
        self.refused("too small for --mask-feather", "--mask-rect", "10,10,4,4", "--mask-feather", "4")

    def test_what_does_not_go_together(self) -> None:
        mask = self.file("m.png", mask_png(WIDTH, HEIGHT))
        self.refused("--mask and --mask-rect", "--mask", mask, "--mask-rect", "0,0,1,1")
        self.refused("--mask-bw and --mask-rect", "--mask-bw", mask, "--mask-rect", "0,0,1,1")
        self.refused("--mask-feather needs --mask-rect", "--mask", mask, "--mask-feather", "2")
        self.refused("--mask-exact needs a mask", "--mask-exact")
        self.refused("PNG of the same shape", "--mask", mask, "--mask-exact", "-o", "a.jpg")
        self.refused("PNG of the same shape", "--mask", mask, "--mask-exact", "--aspect-ratio", "1:1")
        self.refused("needs the size of the image", "--mask", mask, "--mask-exact", "--size", "64x64")
        result = self.edit(self.image, "a hat", "--api", "runapi", "--mask-rect", "0,0,9,9")
        self.assertIn("RunAPI does not support --mask-rect", result.stderr)
        result = self.generate("a hat", "--size", "input")
        self.assertIn("--size input is for edit", result.stderr)
        self.assertEqual(self.server.requests, [])

    def test_black_and_white(self) -> None:
        self.refused("has no white pixel", "--mask-bw", self.file("b.png", plain_png(WIDTH, HEIGHT, 0, 254)))
        self.refused("the same size", "--mask-bw", self.file("s.png", plain_png(8, 8, 0, 255)))
        self.refused("must be PNG", "--mask-bw", self.file("j.png", draw_jpeg(WIDTH, HEIGHT)))
        self.refused("has no alpha channel", "--mask", self.file("n.png", plain_png(WIDTH, HEIGHT, 0, 255)),
                     hint="--mask-bw")

    def test_broken_masks(self) -> None:
        whole = mask_png(WIDTH, HEIGHT)
        damaged = bytearray(whole)
        damaged[-20] ^= 1
        trns = [png_chunk(b"tRNS", bytes(3))]
        for name, content, told in (("crc", bytes(damaged), "a checksum is wrong"),
                                    ("cut", png_file(WIDTH, HEIGHT, bytes(300)), "it is cut off"),
                                    ("palette", png_file(WIDTH, HEIGHT, (b"\0" + b"\1" * WIDTH) * HEIGHT, 3, extra=[
                                        png_chunk(b"PLTE", bytes(3)), png_chunk(b"tRNS", b"\0")]), "its palette"),
                                    ("trns", png_file(WIDTH, HEIGHT, bytes(5000), 0, extra=trns), "is a broken PNG")):
            for option in ("--mask", "--mask-bw"):
                with self.subTest(f"{name} {option}"):
                    self.refused(told, option, self.file(name + ".png", content))

    def test_images_that_cannot_be_kept(self) -> None:
        keep = ("--mask-rect", "0,0,9,9", "--mask-exact")
        self.refused("--mask-exact needs a PNG", *keep, image=self.file("a.jpg", draw_jpeg(WIDTH, HEIGHT)),
                     hint="Convert it: ")
        self.refused("--mask-exact needs a PNG", *keep, image=self.file("lying.png", draw_webp(WIDTH, HEIGHT)))
        damaged = bytearray(self.content)
        damaged[-30] ^= 1
        self.refused("a checksum is wrong", *keep, image=self.file("crc.png", bytes(damaged)))

    def test_a_size_that_cannot_be_made(self) -> None:
        image = self.file("a.png", plain_png(1000, 1000))
        for options in (("--size", "input"), ("--mask-rect", "0,0,9,9", "--mask-exact")):
            result = self.edit(image, "a hat", *options)
            self.assertEqual(result.exit_code, program.USAGE, result.stderr)
            self.assertIn("is 1000x1000, which cannot be the result's size", result.stderr)
            self.assertRegex(result.stderr, r"nearest is 1008x1008.*-resize '?1008x1008")
        result = self.edit(image, "a hat", "--size", "input", "--model", "gpt-image-1.5")
        self.assertRegex(result.stderr, "makes only 1024x1024.*\n.*nearest is 1024x1024")
        self.assertEqual(self.server.requests, [])

    def test_no_mask_is_made_for_what_only_claims_to_be_large(self) -> None:
        for name, data in (("a.png", png_file(2_000_000_000, 2, b"")), ("b.jpg", draw_jpeg(8, 8)[:-2])):
            if name == "b.jpg":  # its frame says 60000x60000
                at = data.index(b"\xff\xc0") + 5
                data = data[:at] + b"\xea\x60" * 2 + data[at + 4:] + b"\xff\xd9"
            with self.subTest(name):
                self.refused("has too many pixels for a mask", "--mask-rect", "0,0,9,9", image=self.file(name, data))

    def test_a_model_with_three_sizes(self) -> None:
        image = self.file("long.png", plain_png(1200, 200))
        result = self.edit(image, "a hat", "--size", "input", "--model", "gpt-image-1.5")
        self.assertRegex(result.stderr, "makes only 1024x1024.*\n.*nearest is 1536x1024")

    def test_sixteen_bits_are_told(self) -> None:
        image = self.file("a.png", random_png(random.Random(2), WIDTH, HEIGHT, 2, 16, False))
        result = self.change("--mask-rect", "0,0,9,9", "--mask-exact", "--dry-run", image=image)
        self.assertIn("has 16 bits a channel; the result will have 8", result.stderr)


class SizeOfInputTest(MaskCase):
    """--size input asks for the first image's size."""

    def test_it_is_sent(self) -> None:
        image = self.file("b.png", draw_png(1024, 640, 1))
        self.server.default = Answer(image=self.made)
        self.edit(image, "a hat", "--size", "input")
        self.assertEqual(self.only_post().fields["size"], "1024x640")

    def test_other_names_of_it(self) -> None:
        self.assert_succeeded(self.change("--size", "INPUT", "--dry-run"))
        self.assertEqual(self.server.requests, [])


class ExactTest(MaskCase):
    """Outside the mask the result is the image, pixel for pixel."""
    LEFT = [bytes(20) + b"\xff" * 20] * HEIGHT
    KEEP = ("--mask-rect", "0,0,50%,100%", "--mask-exact")

    def test_every_kind_of_image(self) -> None:
        draw = random.Random(21)
        for (colour, depth), interlaced in itertools.product(EVERY_KIND, (False, True)):
            with self.subTest(f"{colour} {depth} {interlaced}"):
                content = random_png(draw, WIDTH, HEIGHT, colour, depth, interlaced, special=interlaced)
                self.forget()
                result = self.run_inside("edit", self.file("b.png", content), "a hat", *FLARE, *self.access(),
                                         *self.KEEP, "--overwrite", "-o", "out.png", env={"GPT_IMAGE2_API_KEY": KEY})
                self.assert_succeeded(result)
                self.assert_kept(self.picture("out.png"), self.LEFT, content)

    def test_every_kind_of_mask(self) -> None:
        draw = random.Random(22)
        for colour, depth in ((3, 8), (4, 8), (4, 16), (6, 8), (6, 16), (0, 1), (2, 8)):
            with self.subTest(f"{colour} {depth}"):
                content = random_png(draw, WIDTH, HEIGHT, colour, depth, True, special=True)
                mask = [bytes(each[3] for each in row) for row in decode(content)]
                self.forget()
                result = self.run_inside("edit", self.image, "a hat", *FLARE, *self.access(), "--mask-exact", "--mask",
                                         self.file("m.png", content), "--overwrite", "-o", "out.png",
                                         env={"GPT_IMAGE2_API_KEY": KEY})
                self.assert_succeeded(result)
                self.assert_kept(self.picture("out.png"), mask)

    def test_a_soft_edge_is_mixed(self) -> None:
        self.assert_succeeded(self.change(*self.KEEP, "--mask-feather", "3"))
        old, new, rows = decode(self.content), decode(self.made), self.picture()
        for y in range(HEIGHT):
            for x, share in ((17, 64), (18, 128), (19, 192)):
                mixed = [(one * share + other * (255 - share)) / 255 for one, other in zip(old[y][x], new[y][x])]
                self.assertTrue(all(abs(one - other) <= 1 for one, other in zip(mixed, rows[y][x])), (x, y))

    def test_several_images(self) -> None:
        self.assert_succeeded(self.change(*self.KEEP, "--n", "3", "-o", "out.png"))
        for number in (1, 2, 3):
            self.assert_kept(self.picture(f"out-{number}.png"), self.LEFT)

    def test_streaming(self) -> None:
        self.assert_succeeded(self.change(*self.KEEP, "--stream", "--partial-images", "1", "-o", "out.png"))
        self.assert_kept(self.picture("out.png"), self.LEFT)

    def test_alpha_of_the_result(self) -> None:
        self.made = draw_png(WIDTH, HEIGHT, 2, lambda x, y: 5 * x)
        self.server.default = Answer(image=self.made, check=False)
        self.assert_succeeded(self.change(*self.KEEP))
        self.assert_kept(self.picture(), self.LEFT)

    def test_colour_profile_stays(self) -> None:
        chunk = png_chunk(b"sRGB", b"\1") + png_chunk(b"pHYs", bytes(9)) + png_chunk(b"tEXt", b"a\0b")
        image = self.file("b.png", self.content[:33] + chunk + self.content[33:])
        self.assert_succeeded(self.change(*self.KEEP, image=image))
        saved = (self.work / "out.png").read_bytes()
        self.assertIn(png_chunk(b"sRGB", b"\1") + png_chunk(b"pHYs", bytes(9)), saved)
        self.assertNotIn(b"tEXt", saved)

    def test_another_size_is_saved_as_it_came(self) -> None:
        other = draw_png(48, 30, 2)
        self.server.default = Answer(image=other, check=False)
        for posts in (1, 1):  # it is told again, and not bought again
            result = self.change(*self.KEEP)
            self.assert_succeeded(result)
            self.assertEqual((self.work / "out.png").read_bytes(), other)
            self.assertRegex(result.stderr, "warning: outside the mask .* may differ .*48x30")
            self.assertEqual(len(self.server.posts), posts)

    def test_another_format_is_saved_as_it_came(self) -> None:
        self.server.default = Answer(image=draw_jpeg(WIDTH, HEIGHT), check=False)
        result = self.change(*self.KEEP)
        self.assertEqual(result.names, ["out.jpg"])
        self.assertRegex(result.stderr, "warning: outside the mask .* may differ .*jpeg")

    def test_a_result_that_cannot_be_read_is_saved_as_it_came(self) -> None:
        broken = bytearray(self.made)
        broken[-30] ^= 1
        self.server.default = Answer(image=bytes(broken), check=False)
        result = self.change(*self.KEEP)
        self.assert_succeeded(result)
        self.assertIn("nothing outside the mask could be put back", result.stderr)
        self.assertEqual((self.work / "out.png").read_bytes(), bytes(broken))

    def test_the_size_is_asked_for(self) -> None:
        self.change(*self.KEEP)
        self.assertEqual(self.only_post().fields["size"], f"{WIDTH}x{HEIGHT}")

    def test_defaults_of_a_config_do_not_stand_in_its_way(self) -> None:
        self.write_config({"size": "1024x1024", "format": "webp"})
        self.assert_succeeded(self.change(*self.KEEP))
        self.assertNotIn("warning", self.change(*self.KEEP).stderr)
        self.assert_kept(self.picture("out.png"), self.LEFT)

    def test_generate_then_edit(self) -> None:
        self.server.default = Answer()
        self.assert_succeeded(self.generate("a fox", "--size", "1024x640", "-o", "fox.png"))
        result = self.edit("fox.png", "give the fox a hat", "--mask-rect", "25%,0,50%,40%", "--mask-feather", "8",
                           "--mask-exact", "-o", "hat.png", "--json")
        self.assert_succeeded(result)
        self.assertEqual(result.json["warnings"], [])
        self.assertEqual(result.json["saved"][0]["width"], 1024)
        before, after = (program.Png(str(self.work / name)).rows() for name in ("fox.png", "hat.png"))
        changed = [sum(one != other for one, other in zip(map(tuple, zip(*old)), map(tuple, zip(*new)))) if y < 256
                   else old != new for y, (old, new) in enumerate(zip(before, after))]
        self.assertFalse(any(changed[256:]), "below the rectangle")
        self.assertTrue(any(changed[:256]))


class ExactLaterTest(MaskCase):
    """--mask-exact is no part of what makes commands the same."""
    MASK = ("--mask-rect", "0,0,50%,100%", "-o", "out.png")
    LEFT = ExactTest.LEFT

    def test_asked_for_later(self) -> None:
        self.assert_succeeded(self.change(*self.MASK))
        result = self.change(*self.MASK, "--mask-exact")
        self.assert_succeeded(result)
        self.assertIn("nothing was bought now", result.stderr)
        self.assertEqual(result.names, ["out-2.png"])
        self.assert_kept(self.picture("out-2.png"), self.LEFT)
        self.assertEqual(self.picture("out.png"), decode(self.made))
        again = self.change(*self.MASK, "--mask-exact", "--json").json
        self.assertEqual(([Path(each["path"]).name for each in again["saved"]], again["source"]),
                         (["out-2.png"], "made_before"))
        self.assertEqual(len(self.server.posts), 1)
        self.assertEqual(len(list(self.world.receipts.glob("*.json"))), 1)
        self.assertEqual(list(self.tmp.iterdir()), [])

    def test_overwriting(self) -> None:
        self.assert_succeeded(self.change(*self.MASK))
        self.assertEqual(self.change(*self.MASK, "--mask-exact", "--overwrite").names, ["out.png"])
        self.assert_kept(self.picture("out.png"), self.LEFT)

    def test_another_size_is_bought_now(self) -> None:
        self.server.plan(Answer(image=draw_png(64, 64), check=False))
        self.assert_succeeded(self.change(*self.MASK))
        self.assert_succeeded(self.change(*self.MASK, "--mask-exact"))
        self.assertEqual(len(self.server.posts), 2)
        self.assert_kept(self.picture("out-2.png"), self.LEFT)

    def test_without_it_after_it(self) -> None:
        self.assert_succeeded(self.change(*self.MASK, "--mask-exact"))
        self.assertEqual(self.change(*self.MASK).names, ["out.png"])
        self.assertEqual(len(self.server.posts), 1)

    def test_collected(self) -> None:
        for options in ((), ("--mask-exact",)):  # begun without and with it
            with self.fresh(str(options)):
                self.server.default = Answer(image=self.made, check=False, delay=1.5)
                child = self.start_program("edit", *self.access(), self.image, "a hat", *FLARE, *self.MASK, *options,
                                           env={"GPT_IMAGE2_API_KEY": KEY}, start_new_session=True)
                self.kill_at_request(child)
                result = self.change(*self.MASK, "--mask-exact")
                self.assert_succeeded(result)
                self.assertEqual(len(self.server.posts), 1)
                self.assert_kept(self.picture("out.png"), self.LEFT)

    def test_killed_while_it_is_put_back(self) -> None:
        content, made = draw_png(1024, 640, 1), draw_png(1024, 640, 2)
        image = self.file("large.png", content)
        self.server.default = Answer(image=made, check=False)
        command = ("edit", *self.access(), image, "a hat", *FLARE, *self.MASK, "--mask-exact")
        child = self.start_program(*command, env={"GPT_IMAGE2_API_KEY": KEY}, start_new_session=True)
        self.wait_until(lambda: any(self.work.glob(".*.part")))
        self.kill(child)
        self.assertFalse((self.work / "out.png").exists())
        result = self.run_program(*command, env={"GPT_IMAGE2_API_KEY": KEY})
        self.assert_succeeded(result)
        self.assertEqual((len(self.server.posts), result.names), (1, ["out.png"]))
        self.assertEqual(list(self.work.glob(".*")), [])
        rows = zip(*(program.Png(str(self.work / name)).rows() for name in ("large.png", "out.png")))
        self.assertTrue(all(one[512:] == other[512:] for old, new in rows for one, other in zip(old, new)))

    def test_in_a_batch(self) -> None:
        line = {"prompt": "a hat", "image": self.image, "mask-rect": "0,0,50%,100%", "output": "one.png"}
        for more in ({}, {"mask-exact": True}):
            batch = self.file("batch.jsonl", json.dumps({**line, **more}))
            result = self.generate("--batch", batch, *FLARE, "-o", "pictures")
            self.assert_succeeded(result)
        self.assertEqual((len(self.server.posts), result.names), (1, ["one-2.png"]))
        self.assert_kept(self.picture("pictures/one-2.png"), self.LEFT)


class HistoryOfMasksTest(MaskCase):
    """The command that the history keeps makes the same picture."""

    def test_again(self) -> None:
        bw = self.file("bw.png", plain_png(WIDTH, HEIGHT, 0, 255))
        for options in (["--mask-rect=-1,0,9,9", "--mask-rect=20,20,9,9", "--mask-feather", "2", "--mask-exact"],
                        ["--mask-bw", bw], ["--mask", self.file("m.png", mask_png(WIDTH, HEIGHT))]):
            with self.fresh(options[0]):
                self.server.default = Answer(image=self.made, check=False)
                self.assert_succeeded(self.change(*options, "-o", "out.png"))
                history = json.loads(self.run_program("config", "--history", "--json").stdout)["history"]
                command = history[-1]["again"]
                result = self.finish(self.world.launch("sh", "-c", command, env={"GPT_IMAGE2_API_KEY": KEY}))
                self.assertIn("made before", result.stderr, command)
                self.assertEqual(len(self.server.posts), 1)


if __name__ == "__main__":
    unittest.main()
