"""The pure parts, in-process: quoting, sizes, pictures, masks, JSON skeletons, base64, names, providers."""
from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import struct
import tempfile
import time
import unittest
from os import environ
from pathlib import Path
from typing import Any, Callable, Iterator, List, Sequence
from unittest import mock

from api_server import draw_jpeg, draw_png, draw_webp, jpeg_segment
from support import CHANNELS, mask_png, plain_png, png_chunk, png_file, program

# Options that the minimum curl has, from the reference's list; nothing else may ever be written.
OLD_OPTIONS = {"url", "header", "data-binary", "form", "output", "dump-header", "write-out", "max-time",
               "connect-timeout", "silent", "show-error", "request", "globoff", "no-buffer", "proxy", "noproxy", "cacert",
               "proto", "max-filesize"}
EVIL = ('"\noutput = "evil"\n', '\\"\nurl = "http://evil.invalid"\n', "\r\noutput=evil", "\\\n\\", '";\nproxy = "evil:1"', "#\t%")


def read_config(text: str) -> list[tuple[str, str]]:
    """Read curl's -K format as curl does: one option per line, escapes inside double quotes."""
    letters = {"n": "\n", "r": "\r", "t": "\t", "v": "\v"}
    options = []
    for line in text.split("\n")[:-1]:
        match = re.fullmatch(r'([a-z-]+)(?: = "((?:[^"\\]|\\.)*)")?', line)
        if not match:
            raise AssertionError(f"not a clean line: {line!r}")
        value = re.sub(r"\\(.)", lambda escape: letters.get(escape[1], escape[1]), match[2] or "")
        options.append((match[1], value))
    return options


class CurlQuotingTest(unittest.TestCase):
    """Nothing that stands in a value can become an option of curl."""

    def test_quote_config(self) -> None:
        for value, quoted in (("a", '"a"'), ("", '""'), ('"', '"\\""'), ("\\", '"\\\\"'), ("\n", '"\\n"'), ("\r", '"\\r"'),
                              ("\t", '"\\t"'), ("\\n", '"\\\\n"'), ('\\"', '"\\\\\\""'), (" a ", '" a "'), ("#'%$", "\"#'%$\""),
                              ("\N{FOX FACE}", '"\N{FOX FACE}"')):
            with self.subTest(value):
                self.assertEqual(program.quote_config(value), quoted)

    def test_what_cannot_be_quoted_is_refused(self) -> None:
        for code in (*range(9), 11, 12, *range(14, 32), 127):
            with self.subTest(code), self.assertRaises(program.Failure):
                program.quote_config(f"a{chr(code)}b")

    def test_round_trip(self) -> None:
        for value in EVIL:
            with self.subTest(value):
                text = f"url = {program.quote_config(value)}\n"
                self.assertEqual(read_config(text), [("url", value)])

    def test_quote_path(self) -> None:
        for path, quoted in (("a b", '"a b"'), ("a;b,c", '"a;b,c"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"'), ("@", '"@"')):
            with self.subTest(path):
                self.assertEqual(program.quote_path(path), quoted)


class CurlConfigTest(unittest.TestCase):
    """The text that curl reads."""

    def config(self, **fields: Any) -> list[tuple[str, str]]:
        """Return the options written for a request."""
        request = program.Request(**{"method": "POST", "url": "https://relay.invalid/v1/images/generations", **fields})
        text = program.curl_config(request, program.Exchange("/tmp/x y/1"))
        self.assertLess(max(len(line.encode()) for line in text.split("\n")), 100 * 1024)
        return read_config(text)

    def requests(self) -> list[dict[str, Any]]:
        """Return fields of very different requests."""
        return [{"body": {"prompt": "a"}, "headers": (("Authorization", "Bearer test-key"),)},
                {"form": (program.Part("prompt", "a"), program.Part("image[]", path="/a.png", content_type="image/png"))},
                {"method": "GET", "url": "http://127.0.0.1:8/v1/models", "proxy": "http://p:1", "cacert": "/ca.pem"},
                {"method": "GET", "url": "https://cdn.invalid/1.png", "purpose": "download", "proxy": "http://p:1"}]

    def test_only_known_options(self) -> None:
        for fields in self.requests():
            names = {name for name, _ in self.config(**fields)}
            self.assertEqual(names - OLD_OPTIONS, set())

    def test_nothing_dangerous_on_a_paid_request(self) -> None:
        for fields in self.requests()[:2]:
            names = {name for name, _ in self.config(**fields)}
            self.assertEqual(names & {"location", "retry", "fail", "verbose", "trace", "next", "insecure"}, set())

    def test_guards_come_first(self) -> None:
        for fields in self.requests():
            names = [name for name, _ in self.config(**fields)]
            for guard in ("globoff", "silent", "show-error", "proto", "connect-timeout", "max-time"):
                self.assertLess(names.index(guard), names.index("url"))

    def test_protocol(self) -> None:
        for url, allow_http, proto in (("https://relay.invalid/a", False, "=https"), ("http://127.0.0.1:5/a", False, "=http"),
                                       ("http://relay.invalid/a", True, "=http"), ("http://relay.invalid/a", False, "=https")):
            with self.subTest(f"{url} {allow_http}"):
                asked = {"method": "GET", "url": url, "allow_http": allow_http}
                self.assertEqual(dict(self.config(**asked, purpose="poll"))["proto"], proto)
                self.assertEqual(dict(self.config(**asked, purpose="download"))["proto"], proto)

    def test_download(self) -> None:
        options = dict(self.config(**self.requests()[3]))
        self.assertNotIn("location", options)  # a redirect is followed here, where each place is looked at
        self.assertGreater(int(options["max-filesize"]), 50_000_000)

    def test_loopback_needs_no_proxy(self) -> None:
        options = dict(self.config(**self.requests()[2]))
        self.assertEqual((options.get("proxy"), options["noproxy"]), (None, "*"))
        self.assertEqual(dict(self.config(**self.requests()[3]))["proxy"], "http://p:1")

    def test_expect_is_switched_off(self) -> None:
        for fields in self.requests()[:2]:
            self.assertIn(("header", "Expect:"), self.config(**fields))

    def test_prompt_is_in_no_line(self) -> None:
        fox = "\N{FOX FACE}" * 32_000
        for fields in ({"body": {"prompt": fox}}, {"form": (program.Part("prompt", fox),)}):
            self.assertNotIn("\N{FOX FACE}", repr(self.config(**fields)))

    def test_form_lines(self) -> None:
        form = (program.Part("prompt", "@a"), program.Part("image", path='/a;"b\\.png', content_type="image/webp"))
        lines = [value for name, value in self.config(form=form) if name == "form"]
        self.assertEqual(lines[0], 'prompt=<"/tmp/x y/1.field-0"')
        self.assertRegex(lines[1], r'^image=@"/a;\\"b\\\\\.png";filename="[\w.-]+";type=image/webp$')

    def test_injection(self) -> None:
        for evil in EVIL:
            path = "/tmp/" + evil
            for name, fields in (("file", {"form": (program.Part("image", path=path, content_type="image/png"),)}),
                                 ("proxy", {"proxy": evil}), ("url", {"url": "https://relay.invalid/" + evil}),
                                 ("header", {"headers": (("X-A", evil),)}), ("header name", {"headers": ((evil, "a"),)}),
                                 ("cacert", {"cacert": path})):
                with self.subTest(f"{name} {evil!r}"):
                    try:
                        options = self.config(**fields)
                    except program.Failure:
                        continue
                    self.assertEqual([value for option, value in options if option == "output"], ["/tmp/x y/1.answer"])
                    self.assertEqual(len([option for option, _ in options if option == "url"]), 1)

    def test_second_header_by_line_break_is_refused(self) -> None:
        for value in ("a\r\nX-B: c", "a\nX-B: c", "a\rb", "a\0b"):
            with self.subTest(value), self.assertRaises(program.Failure):
                self.config(headers=(("X-A", value),))


class TextCleaningTest(unittest.TestCase):
    """What may be shown."""

    def test_redact(self) -> None:
        for text, secrets, shown in (
                ("key test-key!", ["test-key"], "key ***!"), ("test-key-2 test-key", ["test-key", "test-key-2"], "*** ***"),
                ("abc", ["ab"], "abc"), ("Authorization: Bearer abcdef", [], "Authorization: ***"), ("none", [""], "none"),
                ("sk-" + "a1" * 5, [], "***"),
                ("provided: wron" + "*" * 9 + "wxyz", [], "provided: ***"), ("Use Bearer auth", [], "Use Bearer auth"), ("key sk-ab" + "*" * 8 + "cd.", [], "key ***"), ("task-force", [], "task-force")):
            with self.subTest(text):
                self.assertEqual(program.redact(text, secrets).rstrip("."), shown)

    def test_same_shape(self) -> None:
        for form, one, other, same in (("png", (640, 480), (1024, 768), True), ("png", (640, 480), (768, 1024), False),
                                       ("jpeg", (640, 480), (768, 1024), False), ("png", (0, 0), (1, 1), True),
                                       ("png", (640, 480), (1024, 1024), False), ("jpeg", (640, 480), (9, 9), False)):
            with self.subTest(form=form, one=one, other=other):
                self.assertEqual(program.same_shape(program.Picture(form, *one), program.Picture("png", *other)), same)

    def test_redact_takes_no_time_for_long_words(self) -> None:
        started = time.process_time()
        program.redact("A" * 300_000, [])
        self.assertLess(time.process_time() - started, 5)  # it once took minutes

    def test_one_line(self) -> None:
        for text, shown in (("a", "a"), ("a\n b\r\n\tc", "a b c"), ("\x1b[2Ja\x07", "[2Ja"), ("", ""), ("\N{FOX FACE}", "\N{FOX FACE}"),
                            ("\x9b31m\x85", "31m")):
            with self.subTest(text):
                self.assertEqual(program.one_line(text), shown)
        self.assertLessEqual(len(program.one_line("x" * 1000)), 300)

    def test_mask_key(self) -> None:
        for key, shown in (("", "***"), ("a", "***"), ("x" * 19, "***"), ("x" * 16 + "abcd", "***abcd")):
            with self.subTest(key):
                self.assertEqual(program.mask_key(key), shown)


class SizeRulesTest(unittest.TestCase):
    """The size rules of gpt-image-2."""

    def test_split_size(self) -> None:
        for text, size in (("1536x1024", (1536, 1024)), ("16X16", (16, 16)), ("0x0", (0, 0)), ("1x", None), ("x1", None),
                           ("1x1x1", None), (" 1x1", None), ("1 x 1", None), ("-1x1", None), ("999999x1", None), ("", None),
                           ("1x1\n", None), ("1.5x2", None)):
            with self.subTest(text):
                self.assertEqual(program.split_size(text), size)

    def test_faults(self) -> None:
        table = (
            (768, 768, "589824"), (800, 800, "640000"), (1024, 576, "589824"), (1024, 640, ""), (816, 816, ""), (1008, 672, ""),
            (1280, 720, ""), (1920, 1080, "16"), (1920, 1088, ""), (2048, 1152, ""), (2880, 2880, ""), (3840, 2160, ""),
            (2160, 3840, ""), (3008, 3008, "9048064"), (4096, 4096, "3840"), (3856, 1600, "3840"), (3840, 1280, ""),
            (3840, 1264, "3 times"), (1264, 3840, "3 times"), (1024, 1024, ""), (1536, 1024, ""), (1024, 1536, ""), (2048, 2048, ""),
            (1000, 1000, "16"), (0, 0, "0"), (1792, 936, "16"))
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
        for size, near in (((1920, 1080), (1920, 1088)), ((1366, 768), (1360, 768))):
            with self.subTest(size):
                self.assertEqual(program.split_size(program.nearest_size(*size)), near)


class PictureInspectionTest(unittest.TestCase):
    """Format and size from the bytes alone."""

    def inspect(self, data: bytes) -> Any:
        """Return what the program reads from these bytes."""
        return program.inspect_picture(io.BytesIO(data))

    def test_kinds(self) -> None:
        extended = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (299).to_bytes(3, "little") + (199).to_bytes(3, "little")
        lossy = b"RIFF\x1e\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 300 | 0x4000, 200 | 0x8000)
        gif = b"GIF89a" + struct.pack("<HH", 300, 200) + b"\0\0\0;"
        for name, data, kind in (("png", draw_png(300, 200), "png"), ("jpeg", draw_jpeg(300, 200), "jpeg"),
                                 ("lossless", draw_webp(300, 200), "webp"), ("extended", extended, "webp"),
                                 ("lossy", lossy, "webp"), ("gif", gif, "gif"), ("old gif", gif.replace(b"89a", b"87a"), "gif")):
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

    def test_other_things(self) -> None:
        for data in (b"", b"a", b"\x89PNG", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\x10", b"RIFF", b"BM" + bytes(50),
                     b"RIFF\0\0\0\0WAVE" + bytes(50), b"<svgx>", bytes(100), b"\xff" * 100):
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
    return [[draw.getrandbits(8 * size).to_bytes(size, "big") + b"\xff" * sample for _ in range(width)] for _ in range(height)]


def with_alpha(pixels: Pixels, x: int, y: int, alpha: bytes) -> Pixels:
    """Return a copy in which one pixel has this alpha."""
    copy = [list(row) for row in pixels]
    copy[y][x] = copy[y][x][:-len(alpha)] + alpha
    return copy


class MaskFiltersTest(unittest.TestCase):
    """A mask without a single transparent pixel is found out, whatever encoder made it."""

    def fault(self, data: bytes) -> str:
        """Return the fault of a mask."""
        return str(program.mask_fault(io.BytesIO(data)))

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
        for alpha in (b"\xff\xfe", b"\xfe\xff", b"\x80\0"):
            with self.subTest(alpha):
                self.assertIn("alpha 0", self.fault(encode(with_alpha(opaque, 2, 2, alpha), 6, 16, False, lambda row: 4)))

    def test_without_alpha(self) -> None:
        for colour in (0, 2, 3):
            with self.subTest(colour):
                self.assertIn("alpha", self.fault(plain_png(8, 8, colour)))

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
        opaque = png_file(1, 1, b"\0" + b"\xff" * 4, extra=[png_chunk(b"tEXt", b"a\0b"), png_chunk(b"caBX", bytes(5000))])
        self.assertIn("opaque", self.fault(opaque))


# ---- Answers ----------------------------------------------------------------------------------------------

def random_text(draw: random.Random) -> str:
    """Return a text of any length with everything that JSON escapes."""
    letters = "abc{}[],: \"\\/\n\t\u00fc\u732b\N{FOX FACE}\x01@u"
    return "".join(draw.choice(letters) for _ in range(draw.choice((0, 1, 2, 4, 5, 6, 7, 30))))


def random_document(draw: random.Random, depth: int = 0) -> Any:
    """Return a random JSON document."""
    kind = draw.randrange(6 if depth < 3 else 3)
    if kind == 0:
        return draw.choice((None, True, False, 0, -1.5, 12345, 1e30))
    if kind < 3:
        return random_text(draw)
    if kind == 3:
        return [random_document(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {f"k{number}": random_document(draw, depth + 1) for number in range(draw.randrange(4))}


class JsonSkeletonTest(unittest.TestCase):
    """Long strings leave the JSON text and can be found again, wherever blocks begin and end."""

    def skeleton(self, data: bytes, size: int = 1 << 20) -> bytes:
        """Return the skeleton of a file that is read in blocks of one size."""
        return program.json_skeleton([(at, data[at:at + size]) for at in range(0, len(data), size)], "@span")

    def resolve(self, data: bytes, size: int = 1 << 20) -> Any:
        """Return the document that skeleton and spans together make."""
        def revive(item: dict[str, Any]) -> Any:
            start, end = item.get("@span", (0, 0))
            return json.loads(b'"' + data[start:end] + b'"') if "@span" in item else item

        return json.loads(self.skeleton(data, size), object_hook=revive)

    def test_random_documents(self) -> None:
        draw = random.Random(11)
        for number in range(150):
            document = random_document(draw)
            data = json.dumps(document, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 1))).encode()
            for block in (1, 2, 3, 5, 7, 13, 1000):
                with self.subTest(f"{number} {block}"), mock.patch.object(program, "LONG_STRING", 5):
                    self.assertEqual(self.resolve(data, block), document, data)

    def test_only_long_strings_leave(self) -> None:
        with mock.patch.object(program, "LONG_STRING", 5):
            self.assertEqual(json.loads(self.skeleton(b'["12345", "123456"]')), ["12345", {"@span": [11, 17]}])

    def test_real_lengths(self) -> None:
        long = "A" * 3_000_000
        data = json.dumps({"data": [{"b64_json": long}, {"b64_json": "short"}]}).encode()
        skeleton = self.skeleton(data)
        self.assertLess(len(skeleton), 200)
        self.assertEqual(self.resolve(data)["data"][0]["b64_json"], long)

    def test_too_much_beside_the_images(self) -> None:
        with mock.patch.object(program, "MAX_SKELETON", 1000), self.assertRaises(ValueError):
            self.skeleton(json.dumps(list(range(2000))).encode())


class Base64InPiecesTest(unittest.TestCase):
    """Base64 arrives in blocks that know nothing of its groups."""

    def decode(self, pieces: Sequence[bytes]) -> bytes:
        """Return what these pieces of a JSON string decode to."""
        sink = io.BytesIO()
        program.decode_base64(program.unescaped(iter(pieces)), sink)
        return sink.getvalue()

    def pieces(self, text: bytes, draw: random.Random, first: int = 0) -> list[bytes]:
        """Cut a text at random places, leaving its beginning whole."""
        cuts = sorted({first, *(draw.randrange(first, len(text) + 1) for _ in range(draw.randrange(6)))})
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]

    def test_random_splits(self) -> None:
        draw = random.Random(5)
        for number in range(300):
            data = draw.getrandbits(8 * 60).to_bytes(60, "big")[:draw.randrange(1, 61)]
            plain = base64.b64encode(data)
            spellings = {
                "plain": plain, "unpadded": plain.rstrip(b"="), "lines": base64.encodebytes(data).replace(b"\n", b"\\r\\n"),
                "slashes": plain.replace(b"/", b"\\/"), "url-safe": base64.urlsafe_b64encode(data),
                "unicode": plain.replace(b"+", b"\\u002b").replace(b"/", b"\\u002F").replace(b"=", b"\\u003d"),
                "real lines": base64.encodebytes(data)}
            for name, text in spellings.items():
                with self.subTest(f"{number} {name}"):
                    self.assertEqual(self.decode(self.pieces(text, draw)), data)
            prefix = b"data:image/png;base64,"
            with self.subTest(f"{number} prefix"):
                self.assertEqual(self.decode(self.pieces(prefix + plain, draw, len(prefix))), data)

    def test_what_is_not_base64(self) -> None:
        for text in (b"not base64!", b"A", b"AAAAA", b"<html>", b"\\u0041AAA\\x", b"AAAA\xff", b"AA.A", b"{}"):
            with self.subTest(text), self.assertRaises(ValueError):
                self.decode([text])


class CurlFilesTest(unittest.TestCase):
    """Names, and the small files that curl leaves."""

    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def write(self, name: str, content: bytes) -> str:
        """Write a file and return its path."""
        path = Path(self.folder) / name
        path.write_bytes(content)
        return str(path)

    def test_numbered(self) -> None:
        for stem, suffix, number, kind, name in (
                ("cat", ".png", 0, "png", "cat.png"), ("cat", ".png", 3, "png", "cat-3.png"), ("cat", ".PNG", 1, "png", "cat-1.PNG"),
                ("cat", ".jpeg", 0, "jpeg", "cat.jpeg"), ("cat", ".JPG", 2, "jpeg", "cat-2.JPG"), ("cat", ".png", 0, "jpeg", "cat.jpg"),
                ("cat", ".jpg", 0, "png", "cat.png"), ("cat", ".png", 0, "webp", "cat.webp"), ("a.b", ".png", 0, "gif", "a.b.gif")):
            with self.subTest(name):
                target = program.Target("/folder", stem, suffix, False)
                self.assertEqual(program.numbered(target, number, kind), "/folder/" + name)

    def test_headers_of_the_last_block(self) -> None:
        path = self.write("headers", b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\n\r\nHTTP/1.1 103 Early Hints\r\n"
                          b"Link: x\r\n\r\nHTTP/2 200\r\nX-Request-ID:  req_1 \r\nretry-after: 5\r\nodd line\r\nA: b: c\r\n\r\n")
        self.assertEqual(program.read_headers(path), {"x-request-id": "req_1", "retry-after": "5", "a": "b: c"})
        self.assertEqual(program.read_headers(self.write("empty", b"")), {})
        self.assertEqual(program.read_headers(os.path.join(self.folder, "none")), {})

    def test_outcome(self) -> None:
        table = (
            (b"200 000 10 0.001 99\n", b"", (0, 200, 0, True)),
            (b"000 000 0 0.000000 0\n", b"curl: (7) Failed to connect", (7, 0, 0, False)),
            (b"000 407 0 0.000 0\n", b"curl: (56) Received HTTP code 407 from proxy", (56, 0, 407, False)),
            (b"000 000 120 0.002 0\n", b"curl: (52) Empty reply from server", (52, 0, 0, True)),
            (b"000 000 0 0.002 0\n", b"curl: (28) timed out", (28, 0, 0, True)),
            (b"200 000 5 0.1 7\n", b"Warning: x\ncurl: (18) transfer closed", (18, 200, 0, True)),
            (b"", b"curl: (26) Failed to open", (26, 0, 0, False)), (b"", b"curl: option -K: is unknown\ncurl: (2) x", (2, 0, 0, False)))
        for number, (outcome, errors, expected) in enumerate(table):
            with self.subTest(errors):
                exchange = program.Exchange(os.path.join(self.folder, str(number)))
                Path(exchange.file("outcome")).write_bytes(outcome)
                Path(exchange.file("errors")).write_bytes(errors)
                self.assertEqual(program.read_outcome(exchange)[:4], expected)

    def test_killed_curl(self) -> None:
        exchange = program.Exchange(os.path.join(self.folder, "k"))
        for kind in ("outcome", "errors"):
            Path(exchange.file(kind)).touch()
        outcome = program.read_outcome(exchange)
        self.assertLess(outcome.exit_code, 0)
        self.assertTrue(outcome.sent)

    def test_long_key_in_an_answer_does_not_crash(self) -> None:
        path = self.write("answer", json.dumps({"x" * 100_000: 1}).encode())
        document, text, _ = program.read_document(path)
        self.assertTrue(document is None or isinstance(document, dict))
        self.assertEqual(bool(text), document is None)


class OpenAiProviderTest(unittest.TestCase):
    """The OpenAI provider, driven by hand: no file is opened and nothing is sent."""

    def start(self, command: str, **fields: Any) -> tuple[Any, Any]:
        """Return a provider and its first request."""
        upload = program.Upload("/a.png", program.Picture("png", 64, 64), 100)
        job = program.Job(**{
            "command": command, "model": "gpt-image-2", "prompt": "a fox", "images": (upload,) if command == "edit" else (),
            "mask": None, "parameters": {"n": 2}, "n": 2, "target": program.Target("/out", "a", ".png", False), **fields})
        with mock.patch.dict(environ, {"HOME": "/nonexistent"}, clear=True):
            settings = program.load_settings({"base_url": "https://relay.invalid/v1/", "headers": {"X-A": "b"}})
        provider = program.openai(job, settings, "test-key")
        return provider, next(provider)

    def finish(self, provider: Any, *responses: Any) -> Any:
        """Send the responses and return what the provider returns."""
        with self.assertRaises(StopIteration) as finished:
            for response in responses:
                provider.send(response)
        return finished.exception.value

    def response(self, document: Any, path: str = "/answer") -> Any:
        """Return a canned response."""
        return program.Response(path, 200, {}, document=document)

    def test_generate(self) -> None:
        provider, request = self.start("generate")
        self.assertEqual((request.method, request.url), ("POST", "https://relay.invalid/v1/images/generations"))
        self.assertEqual(dict(request.body), {"model": "gpt-image-2", "prompt": "a fox", "n": 2})
        self.assertEqual(dict(request.headers), {"Authorization": "Bearer test-key", "X-A": "b"})
        self.assertEqual(request.purpose, "create")
        span = program.Span("/answer", 5, 99)
        images = self.finish(provider, self.response({"data": [{"b64_json": "QUJD"}, {"b64_json": span}]}))
        self.assertEqual([image.base64 for image in images], ["QUJD", span])

    def test_edit(self) -> None:
        mask = program.Upload("/mask.png", program.Picture("png", 64, 64), 100)
        provider, request = self.start("edit", mask=mask)
        self.assertEqual((request.method, request.url, request.body), ("POST", "https://relay.invalid/v1/images/edits", None))
        self.assertEqual([(part.name, part.text, part.path) for part in request.form], [
            ("model", "gpt-image-2", ""), ("prompt", "a fox", ""), ("n", "2", ""), ("image", "", "/a.png"), ("mask", "", "/mask.png")])
        self.assertEqual(len(self.finish(provider, self.response({"data": [{"b64_json": "QUJD"}]}))), 1)

    def test_images_behind_urls(self) -> None:
        provider, _ = self.start("generate")
        first = provider.send(self.response({"data": [{"url": "https://cdn.invalid/1.png"}, {"b64_json": "QUJD"},
                                                      {"url": "https://cdn.invalid/2.png"}]}))
        self.assertEqual((first.method, first.url, first.headers, first.purpose),
                         ("GET", "https://cdn.invalid/1.png", (), "download"))
        second = provider.send(self.response(None, "/file-1"))
        self.assertEqual((second.url, second.headers), ("https://cdn.invalid/2.png", ()))
        images = self.finish(provider, self.response(None, "/file-2"))
        self.assertEqual([(image.base64, image.path) for image in images], [("", "/file-1"), ("QUJD", ""), ("", "/file-2")])


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


class UrlOriginTest(unittest.TestCase):
    """Whose address a URL is: what curl would read in another way is nobody's."""

    def test_loopback(self) -> None:
        for url, own in (("http://127.0.0.1:8/v1", True), ("http://localhost/", True), ("https://[::1]:5", True),
                         ("http://LOCALHOST:1/a", True), ("http://127.255.0.9/", True),
                         ("http://127.999.1.1/", False), ("http://127.1.1.08/", False), ("http://127.0.0.1.evil.invalid/", False),
                         ("http://127.0.0.1:80@evil.invalid/", False), ("http://localhost@evil.invalid/", False),
                         ("http://127.0.0.1\\@evil.invalid/", False), ("http://localhost.evil.invalid", False),
                         ("http://127.0.0.1#@evil.invalid/", False), ("ftp://127.0.0.1/", False)):
            with self.subTest(url):
                self.assertEqual(program.is_loopback(url), own)

    def test_same_host(self) -> None:
        base = "https://relay.invalid/v1/images/generations"
        for url, found in (("/tasks/1", "https://relay.invalid/tasks/1"), ("https://relay.invalid/t", "https://relay.invalid/t"),
                           ("https://relay.invalid:443/t", ""), ("https://relay.invalid.evil.invalid/t", ""),
                           ("//evil.invalid/t", ""), ("//relay.invalid/t", "https://relay.invalid/t"), ("///t", ""),
                           ("http://relay.invalid/t", ""),
                           ("https://relay.invalid@evil.invalid/t", ""), ("/a b", ""), ("/a\nb", ""), ("", "")):
            with self.subTest(url):
                self.assertEqual(program.same_host(url, base), found)


class ProgressTest(unittest.TestCase):
    """Signs of life while an image is made, by a clock that the tests turn."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(program.time, "monotonic", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)

    def wait(self, stream: io.StringIO, seconds: int, **options: bool) -> str:
        """Return what is written to standard error during this time, when progress is reported ten times a second."""
        with contextlib.redirect_stderr(stream):
            report = program.Report(**options)
            for _ in range(seconds * 10):
                self.now += 0.1
                report.progress("120 s")
            report.note("done")
        return stream.getvalue()

    def test_off_a_terminal_a_line_every_30_seconds(self) -> None:
        lines = self.wait(io.StringIO(), 65).split("\n")
        self.assertEqual(lines[2:], ["done", ""])
        for line, seconds in zip(lines, (30, 60)):
            self.assertRegex(line, r"^[^\r\x1b]*\b%d s\b[^\r\x1b]*120 s" % seconds)

    def test_on_a_terminal_one_line_is_refreshed(self) -> None:
        text = self.wait(Terminal(), 3)
        self.assertEqual((text.count("\n"), text.startswith("\r")), (1, True))
        self.assertTrue(text.endswith("done\n"))
        self.assertGreaterEqual(text.count("120 s"), 2)

    def test_quiet(self) -> None:
        for stream in (io.StringIO(), Terminal()):
            self.assertEqual(self.wait(stream, 65, quiet=True), "")

    def test_the_same_warning_once(self) -> None:
        stream = io.StringIO()
        with contextlib.redirect_stderr(stream):
            report = program.Report()
            report.warn("odd")
            report.warn("odd")
        self.assertEqual(stream.getvalue().count("odd"), 1)


if __name__ == "__main__":
    unittest.main()
