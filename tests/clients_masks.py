"""The PNG reader and writer beside Pillow: the same pixels, both ways, and files that are hardly larger."""
from __future__ import annotations

import io
import itertools
import json
import random
import sys
import unittest
from pathlib import Path
from typing import Any

from clients_common import ClientCase, python_packages, run
from support import program
from test_masks import EVERY_KIND, decode, random_png

PILLOW = "12.0.0"


def picture(number: int) -> tuple[str, bytes]:
    """Return one of the random pictures, and what it is."""
    draw = random.Random(number)
    kinds = list(itertools.product(EVERY_KIND, (False, True), (False, True)))
    (colour, depth), interlaced, special = kinds[number % len(kinds)]
    data = random_png(draw, draw.randrange(1, 60), draw.randrange(1, 60), colour, depth, interlaced, special)
    return f"{number}: colour {colour}, {depth} bits, {interlaced}, {special}", data


def planes(path: Path) -> bytes:
    """Return all pixels of a PNG as the program reads them: RGBA, RGBA ..."""
    return b"".join(bytes(itertools.chain.from_iterable(zip(*row))) for row in program.Png(str(path)).rows())


def pillow_pixels(image: Any) -> bytes:
    """Return the same as Pillow reads them."""
    if image.mode.startswith("I"):  # 16 bits of grey, of which the upper eight count
        key = image.info.get("transparency")
        return b"".join(bytes((value >> 8,) * 3 + (0 if value == key else 255,)) for value in image.getdata())
    return bytes(image.convert("RGBA").tobytes())


def can_compare(data: bytes) -> bool:
    """Whether Pillow reads this as the specification says: it scales no clear grey, and cuts a clear RGB of 16 bits."""
    return b"tRNS" not in data or data[24:26] not in (b"\1\0", b"\2\0", b"\4\0", b"\x10\2")


def compare(folder: str) -> dict[str, list[str]]:
    """In Pillow's Python: what differs between the two."""
    from PIL import Image  # type: ignore[import-not-found]
    told: dict[str, list[str]] = {"different": [], "written": [], "compared": [], "large": []}
    for number in range(280):
        name, data = picture(number)
        path = Path(folder) / "a.png"
        path.write_bytes(data)
        image, pixels = Image.open(io.BytesIO(data)), planes(path)
        if can_compare(data):
            told["compared"].append(name)
            image.load()
            if pillow_pixels(image) != pixels:
                told["different"].append(name)
        rows = [list(map(bytes, zip(*row))) for row in decode(data)]
        program.write_png(sink := io.BytesIO(), len(rows[0][0]), len(rows), rows, 4, {})
        if Image.open(sink).convert("RGBA").tobytes() != pixels:
            told["written"].append(name)
    for seed in range(3):  # a photograph, as far as Pillow can make one: what it packs, the program may pack 1.3 times
        noise = Image.effect_noise((400, 300), 20 * seed + 5).convert("RGB")
        photo = Image.blend(noise, Image.radial_gradient("L").resize((400, 300)).convert("RGB"), 0.8)
        photo.save(Path(folder) / "photo.png")
        png = program.Png(str(Path(folder) / "photo.png"))
        program.write_png(sink := io.BytesIO(), 400, 300, (row[:3] for row in png.rows()), 3, {})
        sizes = len(sink.getvalue()), (Path(folder) / "photo.png").stat().st_size
        told["large"] += [f"{sizes[0]} of {sizes[1]}"] * (sizes[0] > 1.3 * sizes[1])
    return told


class PillowTest(ClientCase):
    """Pillow in a Python of its own."""
    client, version = "Pillow", PILLOW

    def test_both_ways(self) -> None:
        python = python_packages("pillow", f"pillow=={PILLOW}") / "python"
        result = run([python, __file__, self.work], timeout=300, cwd=str(Path(__file__).parent))
        self.assertEqual(result.returncode, 0, result.stderr)
        told = json.loads(result.stdout)
        self.assertGreaterEqual(len(told.pop("compared")), 200)
        self.assertEqual(told, {"different": [], "written": [], "large": []})


if __name__ == "__main__":
    if len(sys.argv) > 1 and Path(sys.argv[1]).is_dir():
        print(json.dumps(compare(sys.argv[1])))
    else:
        unittest.main()
