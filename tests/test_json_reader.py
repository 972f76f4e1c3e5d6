"""Answers of any length are read in blocks: JSON without its long strings, base64, and curl's small files."""
from __future__ import annotations

import base64
import io
import json
import os
import random
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any, Sequence
from unittest import mock

from support import program


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
        program.decode_base64(iter(pieces), sink)
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
                "plain": plain, "unpadded": plain.rstrip(b"="),
                "lines": base64.encodebytes(data).replace(b"\n", b"\\r\\n"), "slashes": plain.replace(b"/", b"\\/"),
                "url-safe": base64.urlsafe_b64encode(data),
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
                ("cat", ".png", 0, "png", "cat.png"), ("cat", ".png", 3, "png", "cat-3.png"),
                ("cat", ".PNG", 1, "png", "cat-1.PNG"), ("cat", ".jpeg", 0, "jpeg", "cat.jpeg"),
                ("cat", ".JPG", 2, "jpeg", "cat-2.JPG"), ("cat", ".png", 0, "jpeg", "cat.jpg"),
                ("cat", ".jpg", 0, "png", "cat.png"), ("cat", ".png", 0, "webp", "cat.webp"),
                ("a.b", ".png", 0, "gif", "a.b.gif")):
            with self.subTest(name):
                target = program.Target("/folder", stem, suffix, False)
                self.assertEqual(program.picture_path(target, number, kind), "/folder/" + name)

    def test_headers_of_the_last_block(self) -> None:
        path = self.write("headers", b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\n\r\n"
                          b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
                          b"HTTP/2 200\r\nX-Request-ID:  req_1 \r\nretry-after: 5\r\nodd line\r\nA: b: c\r\n\r\n")
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
            (b"", b"curl: (26) Failed to open", (26, 0, 0, False)),
            (b"", b"curl: option -K: is unknown\ncurl: (2) x", (2, 0, 0, False)))
        for number, (outcome, errors, expected) in enumerate(table):
            with self.subTest(errors):
                exchange = os.path.join(self.folder, str(number))
                Path(exchange + ".outcome").write_bytes(outcome)
                Path(exchange + ".errors").write_bytes(errors)
                self.assertEqual(program.read_outcome(exchange)[:4], expected)

    def test_killed_curl(self) -> None:
        exchange = os.path.join(self.folder, "k")
        for kind in ("outcome", "errors"):
            Path(f"{exchange}.{kind}").touch()
        outcome = program.read_outcome(exchange)
        self.assertLess(outcome.exit_code, 0)
        self.assertTrue(outcome.sent)

    def test_long_key_in_an_answer_does_not_crash(self) -> None:
        path = self.write("answer", json.dumps({"x" * 100_000: 1}).encode())
        document, text, _ = program.read_document(path)
        self.assertTrue(document is None or isinstance(document, dict))
        self.assertEqual(bool(text), document is None)
