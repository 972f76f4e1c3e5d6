"""A loopback Images API: as strict as the real one, and able to misbehave on order.

A request is received (Recorded), checked (Refused when the API would refuse it), answered with drawn images
(Reply) and sent the way the planned Answer says. Nothing leaves 127.0.0.1 and nothing is logged.
"""
from __future__ import annotations

import base64
import collections
import colorsys
import functools
import json
import math
import random
import re
import struct
import sys
import threading
import time
import traceback
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Callable, Iterator, NamedTuple, Tuple, TypeVar, Union, final
from urllib.parse import parse_qs, urlsplit

# ---- What the real API accepts (November 2026) -------------------------------------------------------------

MODELS: dict[str, str | None] = {  # name: shutdown date
    "gpt-image-2": None, "gpt-image-2-2026-04-21": None,
    "gpt-image-2.5-sunburst": None, "gpt-image-2.5-sunburst-2026-09-08": None,
    "gpt-image-2.5-flare": None, "gpt-image-2.5-flare-2026-09-08": None,
    "gpt-image-2.6-sunburst": None, "gpt-image-2.6-flare": None,
    "gpt-image-1.5": "2026-12-01", "gpt-image-1-mini": "2026-12-01", "chatgpt-image-latest": "2026-12-01",
}
NEWER = ("gpt-image-2.5", "gpt-image-2.6")
FIXED_SIZES = ("1024x1024", "1536x1024", "1024x1536", "auto")  # all that the models before gpt-image-2 take
PAID_PATHS = ("/v1/images/generations", "/v1/images/edits")
AZURE_PATH = re.compile(r"/openai/(?:v1|deployments/([^/]+))(/images/(?:generations|edits))")
AZURE_DEPLOYMENTS = ("gpt-image-2", "my-pictures")
COMMON = {"model", "prompt", "n", "size", "quality", "background", "output_format", "output_compression",
          "moderation", "stream", "partial_images", "safety_identifier", "user"}
ANIMATION = {"complexity", "frame_count", "frame_duration_ms", "svg"}
FILE_PARTS = ("image", "image[]", "mask", "markup")
NULL_IS_OMITTED = ("n", "output_compression", "partial_images", "quality", "size", "stream", "mask")
FORMATS = ("png", "jpeg", "webp")
BACKGROUNDS = ("transparent", "opaque", "auto")
QUALITIES = ("low", "medium", "high", "xhigh", "max")
MAX_PROMPT, MAX_IMAGES, MAX_IMAGE_URL = 32000, 16, 20971520
MAX_IMAGE_BYTES, MAX_MASK_BYTES = 50 << 20, 4 << 20
MAX_EDGE, MAX_RATIO, MIN_PIXELS, MAX_PIXELS = 3840, 3, 655360, 8294400
TOKEN_BASE = {"low": 16, "medium": 48}  # anything better: 96
IMAGE_INPUT_TOKENS = 1100

USER_ERROR = "image_generation_user_error"
PLANNED_ERRORS: dict[int, tuple[str, str | None, str]] = {  # type, code, message of a planned bare status
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: te****ey."),
    403: ("invalid_request_error", None, "Your organization must be verified to use the model."),
    429: ("rate_limit_error", "rate_limit_exceeded", "Rate limit reached on requests per min."),
    503: ("service_unavailable_error", "server_is_overloaded", "The server is overloaded."),
}
RELAY_PAGE = b"<!doctype html><html><head><title>Relay console</title></head><body>Sign in</body></html>"
MAX_HOLD = 60.0  # seconds that a held or endless answer may last, so that no test can hang


# ---- Data --------------------------------------------------------------------------------------------------

class Part(NamedTuple):
    """One part of a multipart form; `filename` is None for a text part."""
    name: str
    filename: str | None
    content_type: str
    body: bytes


class Recorded(NamedTuple):
    """One raw request as received; `fields` are the JSON object or the text parts (last wins)."""
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    fields: dict[str, Any]
    parts: list[Part]
    when: float

    def header(self, name: str) -> str:
        """Return the first header of that name in any case, or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class Answer(NamedTuple):
    """One answer on order; the defaults are a good server."""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()  # these replace the server's own of the same name
    body: bytes | None = None  # verbatim, instead of drawn images
    content_type: str = "application/json"
    check: bool = True  # validate the request first
    delay: float = 0.0  # seconds of silence before the status line
    drop: str = ""  # where to close the connection: unread, silent, headers, half
    chunked: bool = False
    endless: bool = False  # a chunked body that never ends
    trickle: float = 0.0  # seconds between 16 slices of the body
    slice: int = 0  # bytes of one slice, instead of a 16th of the body
    as_url: bool = False  # data[].url of this server's /files instead of b64_json
    spelling: str = "plain"  # of b64_json: plain, data-url, newlines, slashes, unpadded
    count: int | None = None  # number of images, whatever was asked
    size: tuple[int, int] | None = None  # drawn size, whatever was asked
    format: str = ""  # drawn format, whatever was asked
    image: bytes | None = None  # these bytes as every image
    event: threading.Event | None = None  # hold the answer back until this is set


class Drawing(NamedTuple):
    """The pictures to draw for one request."""
    prompt: str
    images: int
    width: int
    height: int
    quality: str
    format: str
    transparent: bool
    edit: bool
    input_images: int
    partials: int | None  # None: a plain answer, no event stream


class Reply(NamedTuple):
    """What goes on the wire when nothing is made to go wrong."""
    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that the API refuses, with the error it answers."""

    def __init__(self, message: str, code: str | None = None, param: str | None = None,
                 kind: str = "invalid_request_error", status: int = 400) -> None:
        super().__init__(message)
        self.reply = Reply(error_body(message, code, param, kind), status)


def error_body(message: str, code: str | None = None, param: str | None = None,
               kind: str = "invalid_request_error") -> bytes:
    """Return the API's error envelope."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


# ---- Pictures ----------------------------------------------------------------------------------------------

Colour = Tuple[int, int, int]
Alpha = Union[None, int, Callable[[int, int], int]]


def colour(hue: float, saturation: float, value: float) -> Colour:
    """Return an RGB colour from hue, saturation and value in 0..1."""
    red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))
    return red, green, blue


class Landscape:
    """A sun over two hills in front of a soft sky; every seed has other colours and places."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        draw = random.Random(seed)
        hue = draw.random()
        self.width, self.height = width, height
        self.top, self.horizon = colour(hue, 0.55, 0.55), colour(hue + 0.08, 0.25, 0.98)
        self.radius = 0.13 * min(width, height)
        disc = colour(hue + 0.5, 0.25, 1.0)
        far, near = colour(hue + 0.35, 0.45, 0.55), colour(hue + 0.4, 0.55, 0.38)
        self.sun = (width * draw.uniform(0.25, 0.75), height * draw.uniform(0.25, 0.45), disc)
        self.hills = [(width * draw.uniform(0.0, 0.5), height * 0.55, width * 0.9, far),
                      (width * draw.uniform(0.5, 1.0), height * 0.68, width * 0.8, near)]

    def sky(self, y: int) -> Colour:
        """Return the colour of the sky in row y."""
        red, green, blue = (a + (b - a) * y // self.height for a, b in zip(self.top, self.horizon))
        return red, green, blue

    def spans(self, y: int) -> Iterator[tuple[int, int, Colour]]:
        """Yield (first x, end x, colour) of the shapes in row y, back to front."""
        x, centre, shade = self.sun
        shapes = [(x, math.sqrt(max(0.0, self.radius ** 2 - (y - centre) ** 2)), shade)]
        for x, peak, reach, shade in self.hills:
            shapes.append((x, reach * math.sqrt(max(0.0, y - peak) / self.height), shade))
        for x, half, shade in shapes:
            first, end = max(0, int(x - half)), min(self.width, int(x + half))
            if end > first:
                yield first, end, shade


def paint_row(scene: Landscape, y: int, alpha: Alpha, clear_sky: bool) -> bytes:
    """Return row y of the scene as PNG data: filter byte 0, then RGB or RGBA pixels."""
    rgba = clear_sky or alpha is not None
    solid = bytes([alpha if isinstance(alpha, int) else 255]) if rgba else b""
    row = bytearray((bytes(scene.sky(y)) + (b"\0" if clear_sky else solid)) * scene.width)
    step = 4 if rgba else 3
    for first, end, shade in scene.spans(y):
        row[first * step:end * step] = (bytes(shade) + solid) * (end - first)
    if callable(alpha):
        row[3::4] = bytes(alpha(x, y) for x in range(scene.width))
    return b"\0" + row


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return one PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def draw_png(width: int, height: int, seed: int = 0, alpha: Alpha = None, padding: int = 0,
             clear_sky: bool = False) -> bytes:
    """Draw a landscape as PNG, as RGBA with `alpha` (a value or a function of x, y) or `clear_sky`."""
    scene = Landscape(width, height, seed)
    packer = zlib.compressobj(1)
    pixels = [packer.compress(paint_row(scene, y, alpha, clear_sky)) for y in range(height)]
    pixels.append(packer.flush())
    kind = 2 if alpha is None and not clear_sky else 6
    # The padding is a caBX chunk, where real answers carry their C2PA record.
    noise = random.Random(seed).getrandbits(8 * padding).to_bytes(padding, "big") if padding else b""
    return b"".join([b"\x89PNG\r\n\x1a\n",
                     png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
                     png_chunk(b"caBX", noise) if padding else b"",
                     png_chunk(b"IDAT", b"".join(pixels)), png_chunk(b"IEND", b"")])


def jpeg_segment(marker: int, data: bytes) -> bytes:
    """Return one JPEG segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def draw_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """Draw one plain colour as a baseline JPEG that every decoder reads."""
    # Only the first block of each of the three components carries a value; every other block is the two bits
    # 00 (no difference, end of block), so no encoder is needed.
    draw = random.Random(seed)
    head = "".join(f"10{draw.randrange(128):07b}0" for _ in range(3))  # category 7, value, end of block
    blocks = -(-width // 8) * -(-height // 8)
    bits = head + "0" * (6 * (blocks - 1))
    bits += "1" * (-len(bits) % 8)
    scan = int(bits[:64], 2).to_bytes(len(bits[:64]) // 8, "big").replace(b"\xff", b"\xff\0")
    scan += bytes(max(0, len(bits) // 8 - 9)) + (bytes([int(bits[-8:], 2)]) if len(bits) > 64 else b"")
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    return b"".join([
        b"\xff\xd8", jpeg_segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), jpeg_segment(0xDB, b"\0" + b"\4" * 64),
        jpeg_segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + components),
        jpeg_segment(0xC4, b"\0" + bytes([1, 1]) + bytes(14) + bytes([0, 7])),  # 0: 0, 10: category 7
        jpeg_segment(0xC4, b"\x10" + bytes([1]) + bytes(15) + b"\0"),  # 0: end of block
        jpeg_segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0"), scan, b"\xff\xd9"])


def draw_webp(width: int, height: int, seed: int = 0) -> bytes:
    """Draw one plain colour as a lossless WebP: with one symbol per channel no pixel takes any bits."""
    red, green, blue = colour(random.Random(seed).random(), 0.5, 0.8)
    value = place = 0
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4), (0, 3)]  # version 0, no extras
    for channel in (green, red, blue, 255):
        fields += [(0b101, 3), (channel, 8)]
    for number, size in fields + [(0b001, 4)]:  # the last is the unused distance code
        value |= number << place
        place += size
    data = value.to_bytes((place + 7) // 8, "little")
    data = struct.pack("<4sI", b"VP8L", len(data)) + data + bytes(len(data) % 2)
    return struct.pack("<4sI4s", b"RIFF", len(data) + 4, b"WEBP") + data


@functools.lru_cache(maxsize=64)
def draw_image(kind: str, width: int, height: int, seed: int, transparent: bool) -> bytes:
    """Draw an answer's image; the padding makes a PNG's base64 longer than any read buffer."""
    if kind == "png":
        return draw_png(width, height, seed, padding=100001, clear_sky=transparent)
    return (draw_webp if kind == "webp" else draw_jpeg)(width, height, seed)


def sniff(data: bytes) -> tuple[str, int, int]:
    """Return format, width and height from an image's first bytes, ("", 0, 0) for anything else."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 33:
        return ("png",) + struct.unpack(">II", data[16:24])
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return ("webp",) + webp_size(data)
    if data[:3] == b"\xff\xd8\xff":
        return ("jpeg",) + jpeg_size(data)
    return "", 0, 0


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP in any of its three forms."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return width and height from a JPEG's frame header, (0, 0) without one."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5:at + 9])
            return width, height
        at += 2 + length
    return 0, 0


# ---- Reading a request -------------------------------------------------------------------------------------

PARAMETER = r';\s*([\w*]+)="((?:[^"\\]|\\.)*)"'


def unquote(value: str) -> str:
    r"""Undo both escapings of a form parameter: \" and \\ of older curls, %22, %0D and %0A of newer ones."""
    names = {"%22": '"', "%0D": "\r", "%0A": "\n"}
    return re.sub(r'\\(["\\])|%22|%0D|%0A', lambda found: found.group(1) or names[found.group()], value)


def parse_part(section: bytes) -> Part:
    """Read one part: CRLF, header lines, an empty line, the body."""
    head, gap, body = section.partition(b"\r\n\r\n")
    if not head.startswith(b"\r\n") or not gap:
        raise ValueError("a part without a header")
    headers: dict[str, str] = {}
    for line in head[2:].decode("utf-8", "surrogateescape").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:
            raise ValueError("a bad or repeated part header")
        headers[name.lower()] = value.strip()
    disposition = headers.get("content-disposition", "")
    if not re.fullmatch(f"form-data({PARAMETER})+", disposition):
        raise ValueError("a bad Content-Disposition")
    params = {found[1]: unquote(found[2]) for found in re.finditer(PARAMETER, disposition)}
    if not params.get("name"):
        raise ValueError("a part without a name")
    return Part(params["name"], params.get("filename"), headers.get("content-type", ""), body)


def parse_form(content_type: str, body: bytes) -> list[Part]:
    """Read a multipart/form-data body strictly; ValueError when anything is off."""
    found = re.search(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', content_type, re.IGNORECASE)
    if not found:
        raise ValueError("no boundary")
    delimiter = b"\r\n--" + (found.group(1) or found.group(2)).encode("latin-1")
    first, *sections = (b"\r\n" + body).split(delimiter)
    if first or not sections or sections[-1] not in (b"--", b"--\r\n"):
        raise ValueError("the body is not enclosed in boundaries")
    return [parse_part(section) for section in sections[:-1]]


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads but JSON does not know."""
    raise ValueError(name)


def parse_body(path: str, content_type: str, body: bytes) -> tuple[dict[str, Any], list[Part]]:
    """Return a paid request's fields and parts, or refuse its content type or syntax."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data" and path == "/v1/images/edits":
        try:
            parts = parse_form(content_type, body)
            return {part.name: part.body.decode() for part in parts if part.filename is None
                    and part.name not in FILE_PARTS}, parts
        except ValueError as error:
            raise Refused(f"Could not parse multipart form: {error}.") from None
    if kind != "application/json":
        raise Refused(f"Unsupported content type: '{kind}'. This API method only accepts 'application/json'.",
                      "unsupported_content_type")
    try:
        fields = json.loads(body.decode(), parse_constant=refuse_constant)
    except ValueError:
        raise Refused("We could not parse the JSON body of your request.") from None
    if not isinstance(fields, dict):
        raise Refused("Invalid type for request body: expected an object.", "invalid_type")
    return fields, []


def path_of(target: str) -> str:
    """Return the path of a request; Azure's two forms of a paid path become OpenAI's."""
    path = urlsplit(target).path
    azure = AZURE_PATH.fullmatch(path)
    return "/v1" + azure[2] if azure else path


# ---- Checking a request, in the real server's order --------------------------------------------------------

def check_azure(request: Recorded, key: str) -> None:
    """Refuse what Azure refuses before it looks at the rest: key, version, deployment, webp."""
    deployment = AZURE_PATH.fullmatch(urlsplit(request.path).path)[1]  # type: ignore[index]
    if request.header("api-key") != key or request.header("authorization"):
        raise Refused("Access denied due to invalid subscription key or wrong API endpoint.", "401", status=401)
    if not parse_qs(urlsplit(request.path).query).get("api-version"):
        raise Refused("Resource not found", "404", status=404)
    if deployment and "model" in request.fields:
        raise Refused("Unknown parameter: 'model'.", "unknown_parameter", "model")
    if (deployment or request.fields.get("model")) not in AZURE_DEPLOYMENTS:
        raise Refused("The API deployment for this resource does not exist.", "DeploymentNotFound", status=404)
    if request.fields.get("output_format") == "webp":
        raise Refused("Invalid value: 'webp'. Supported values are: 'png' and 'jpeg'.", "invalid_value",
                      "output_format")


def check_key(request: Recorded, key: str) -> None:
    """Refuse a request without the right bearer key; like the real API, echo the key masked."""
    if AZURE_PATH.fullmatch(urlsplit(request.path).path):
        check_azure(request, key)
        return
    scheme, _, given = request.header("authorization").partition(" ")
    if scheme != "Bearer" or not given:
        raise Refused("You didn't provide an API key in an Authorization header using Bearer auth.",
                      "invalid_api_key", status=401)
    if given != key:
        edge = 4 if len(given) > 12 else min(2, len(given) // 4)
        masked = given[:edge] + "*" * (len(given) - 2 * edge) + given[len(given) - edge:]
        raise Refused(f"Incorrect API key provided: {masked}.", "invalid_api_key", status=401)


def check_request(request: Recorded) -> None:
    """Refuse whatever the real API would refuse with 400, first fault first."""
    path = path_of(request.path)
    fields, parts = parse_body(path, request.header("content-type"), request.body)
    form, edit = bool(parts), path == "/v1/images/edits"
    if path != urlsplit(request.path).path:
        fields["model"] = "gpt-image-2"  # what stands behind every deployment here
    for name in [name for name in NULL_IS_OMITTED if fields.get(name, "") is None]:
        del fields[name]
    check_model(fields)
    check_names(fields, parts, edit)
    check_prompt(fields)
    if form:
        check_form_images(parts)
    elif edit:
        check_json_images(fields)
    check_integer(fields, "n", 1, 10, form)
    check_options(fields, form)
    check_size(fields)


def missing(name: str) -> Refused:
    """Return the refusal of a request that lacks a parameter."""
    return Refused(f"Missing required parameter: '{name}'.", "missing_required_parameter", name)


def check_type(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another JSON type; true is no integer."""
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a decimal number",
             list: "an array", dict: "an object", type(None): "null"}
    if type(value) is not kind:
        got = f"expected {names[kind]}, but got {names[type(value)]} instead"
        raise Refused(f"Invalid type for '{name}': {got}.", "invalid_type", name)


def check_model(fields: dict[str, Any]) -> None:
    """Refuse a missing or unknown model."""
    if "model" not in fields:
        raise missing("model")
    check_type("model", fields["model"], str)
    model = fields["model"]
    if model not in MODELS:
        raise Refused(f"The model '{model}' does not exist.", "invalid_value", "model", USER_ERROR)


def check_names(fields: dict[str, Any], parts: list[Part], edit: bool) -> None:
    """Refuse unknown and repeated parameters, files as text and text as files."""
    model, names = fields["model"], [part.name for part in parts] or list(fields)
    known = COMMON | (ANIMATION if model.startswith("gpt-image-2.6") else set())
    if edit:
        known = known | {"mask", "input_fidelity"} | ({"image", "image[]"} if parts else {"images"})
        known = known | ({"markup"} if model.startswith(NEWER) and parts else set())
    for name in names:
        if name not in known:
            raise unknown_parameter(name, bool(parts), edit)
        if name != "image[]" and names.count(name) > 1:
            raise Refused(f"Duplicate parameter: '{name}'. You provided multiple values for this parameter, "
                          "whereas only one is allowed. If you are trying to provide a list of values, use "
                          f"the array syntax instead e.g. '{name}[]=<value>'.", "duplicate_parameter", name)
    if "input_fidelity" in names and model.startswith("gpt-image-2"):
        raise Refused(f"The model '{model}' does not support the 'input_fidelity' parameter.",
                      "invalid_input_fidelity_model", "input_fidelity")
    for part in parts:
        if (part.filename is None) == (part.name in FILE_PARTS):
            fault = "a file, but got a string" if part.filename is None else "a string, but got a file"
            raise Refused(f"Invalid type for '{part.name}': expected {fault}.", "invalid_type", part.name)


def unknown_parameter(name: str, form: bool, edit: bool) -> Refused:
    """Return the refusal of an unknown parameter, with the hints the real API gives."""
    message, hint = f"Unknown parameter: '{name}'.", ""
    if edit and form and name in ("images", "images[]"):
        hint = " For multipart/form-data use 'image' or 'image[]'."
    elif edit and not form and name == "image":
        hint = " For application/json on /v1/images/edits, use 'images' (array)."
    return Refused(message + hint, "invalid_value" if hint else "unknown_parameter", name)


def check_prompt(fields: dict[str, Any]) -> None:
    """Refuse a missing, empty or too long prompt."""
    if "prompt" not in fields:
        raise missing("prompt")
    prompt = fields["prompt"]
    check_type("prompt", prompt, str)
    if not prompt:
        raise Refused("Invalid 'prompt': empty string. Expected a string with minimum length 1, but got an "
                      "empty string instead.", "empty_string", "prompt")
    check_length("prompt", prompt, MAX_PROMPT)


def check_length(name: str, value: Any, limit: int) -> None:
    """Refuse a string or an array that is too long."""
    if len(value) > limit:
        kind = "string" if isinstance(value, str) else "array"
        raise Refused(f"Invalid '{name}': {kind} too long. Expected a maximum length of {limit}, but got "
                      f"{len(value)} instead.", f"{kind}_above_max_length", name)


def check_form_images(parts: list[Part]) -> None:
    """Refuse a form's file parts when count, MIME type, content or mask are wrong."""
    images = [part for part in parts if part.name in ("image", "image[]")]
    if not images:
        raise missing("image")
    if len({part.name for part in images}) > 1:
        raise Refused("Duplicate parameter: 'image'. Use 'image[]' only.", "duplicate_parameter", "image")
    check_length("image", images, MAX_IMAGES)
    for index, part in enumerate(images):
        check_image(f"image[{index}]", part.content_type, part.body)
    for part in parts:
        if part.name == "mask":
            check_image("mask", part.content_type, part.body)
            check_mask(part.body, images[0].body)
        elif part.name == "markup":
            check_image("markup", part.content_type, part.body)
            if any(other.name == "mask" for other in parts):
                raise Refused("'markup' cannot be used together with 'mask'.", "invalid_value", "markup")


def check_image(name: str, content_type: str, data: bytes) -> None:
    """Refuse an image whose MIME type is not allowed or not that of its bytes, and one that is too large."""
    mime = content_type.partition(";")[0].strip()
    if mime not in ("image/jpeg", "image/png", "image/webp"):
        raise Refused(f"Invalid file '{name}': unsupported mimetype ('{mime}'). Supported file formats are "
                      "'image/jpeg', 'image/png', and 'image/webp'.", "unsupported_file_mimetype", name)
    kind, width, _ = sniff(data)
    if not width:
        raise Refused(f"Invalid image file or mode for '{name}', please check your image file.",
                      "invalid_image_file", name, USER_ERROR)
    if mime != "image/" + kind:
        raise Refused(f"Invalid file '{name}': mimetype '{mime}' does not match its content ('image/{kind}')."
                      , "unsupported_file_mimetype", name)
    if len(data) >= MAX_IMAGE_BYTES:
        raise Refused(f"Invalid file '{name}': must be less than 50 MB.", "invalid_value", name)


def check_mask(mask: bytes, image: bytes | None) -> None:
    """Refuse a mask that is no PNG with alpha of the first image's size, or too large."""
    fault = ""
    if image is not None and sniff(mask)[1:] != sniff(image)[1:]:
        fault = "mask size does not match image size"
    elif sniff(mask)[0] != "png" or mask[25] not in (4, 6):  # the PNG colour types with an alpha channel
        fault = "mask image missing alpha channel"
    elif len(mask) >= MAX_MASK_BYTES:
        fault = "mask must be less than 4 MB"
    if fault:
        raise Refused("Invalid mask image format - " + fault, "invalid_mask_image_format", "mask", USER_ERROR)


def check_json_images(fields: dict[str, Any]) -> None:
    """Refuse wrong `images` and `mask` of a JSON edit."""
    if "images" not in fields:
        raise missing("images")
    check_type("images", fields["images"], list)
    if not fields["images"]:
        raise Refused("Invalid 'images': empty array.", "empty_array", "images")
    check_length("images", fields["images"], MAX_IMAGES)
    images = [read_reference(f"images[{at}]", item) for at, item in enumerate(fields["images"])]
    if "mask" in fields:
        mask = read_reference("mask", fields["mask"])
        if mask is not None:
            check_mask(mask, images[0])


def read_reference(name: str, item: Any) -> bytes | None:
    """Return the bytes of a checked data URL; None for a file id or an https URL, which are not fetched."""
    check_type(name, item, dict)
    for key in item:
        if key not in ("image_url", "file_id"):
            raise unknown_parameter(f"{name}.{key}", False, False)
    if len(item) != 1:
        raise Refused(f"Invalid '{name}': exactly one of 'image_url' and 'file_id' is required.", "invalid_value", name)
    (key, value), = item.items()
    name = f"{name}.{key}"
    check_type(name, value, str)
    check_length(name, value, MAX_IMAGE_URL)
    if value.startswith("file-" if key == "file_id" else "https://"):
        return None
    mime, marker, text = value[5:].partition(";base64,")
    try:
        if key == "file_id" or not value.startswith("data:") or not marker:
            raise ValueError("not a data URL")
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused(f"Invalid '{name}': expected a file id, an https URL or a base64 data URL.",
                      "invalid_value", name) from None
    check_image(name, mime, data)
    return data


def check_integer(fields: dict[str, Any], name: str, low: int, high: int, form: bool) -> None:
    """Refuse an integer of the wrong type or range; forms carry it as text."""
    if name not in fields:
        return
    value = fields[name]
    if form:
        if not re.fullmatch("-?[0-9]{1,9}", value):
            raise Refused(f"Invalid type for '{name}': '{value}' cannot be converted to an integer.",
                          "invalid_type", name)
        value = int(value)
    check_type(name, value, int)
    if not low <= value <= high:
        side, sign, limit = ("below_min", ">=", low) if value < low else ("above_max", "<=", high)
        words = f"integer {side.replace('_min', ' minimum').replace('_max', ' maximum')} value"
        raise Refused(f"Invalid '{name}': {words}. Expected a value {sign} {limit}, but got {value} instead.",
                      f"integer_{side}_value", name)


def check_choice(fields: dict[str, Any], name: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not in the enumeration."""
    if name not in fields:
        return
    check_type(name, fields[name], str)
    if fields[name] not in choices:
        listed = ", ".join(f"'{choice}'" for choice in choices[:-1]) + ", and '" + choices[-1] + "'"
        raise Refused(f"Invalid value: '{fields[name]}'. Supported values are: {listed}.", "invalid_value", name)


def check_options(fields: dict[str, Any], form: bool) -> None:
    """Refuse wrong values of everything that is neither prompt, image, n nor size."""
    qualities = QUALITIES if fields["model"].startswith(NEWER) else QUALITIES[:3]
    check_choice(fields, "quality", (*qualities, "auto"))
    check_choice(fields, "background", BACKGROUNDS)
    check_choice(fields, "output_format", FORMATS)
    check_choice(fields, "moderation", ("low", "auto"))
    check_choice(fields, "input_fidelity", ("high", "low"))
    check_integer(fields, "output_compression", 0, 100, form)
    check_integer(fields, "partial_images", 0, 3, form)
    for name in ("safety_identifier", "user"):
        check_type(name, fields.get(name, ""), str)
    if form:
        check_choice(fields, "stream", ("true", "false"))
    else:
        check_type("stream", fields.get("stream", False), bool)
    if fields.get("background") == "transparent" and fields.get("output_format") == "jpeg":
        raise Refused("Transparent background is not supported for output format 'jpeg'.", "invalid_value",
                      "background", USER_ERROR)


def check_size(fields: dict[str, Any]) -> None:
    """Refuse a size that breaks the rules of the model."""
    size = fields.get("size", "auto")
    check_type("size", size, str)
    if not fields["model"].startswith("gpt-image-2"):
        check_choice(fields, "size", FIXED_SIZES)
    elif size != "auto" and size_fault(size):
        raise Refused(f"Invalid size '{size}'. {size_fault(size)}", "invalid_value", "size", USER_ERROR)


def size_fault(size: str) -> str:
    """Return the API's words for the first rule that a size breaks, or an empty string."""
    found = re.fullmatch("([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", size)
    if not found:
        return "Expected WIDTHxHEIGHT, for example '1824x1024'."
    short, long = sorted(map(int, found.groups()))
    if short % 16 or long % 16:
        return "Width and height must both be divisible by 16."
    if long > MAX_EDGE:
        return f"The longest edge must be less than or equal to {MAX_EDGE}."
    if long > MAX_RATIO * short:
        return f"The ratio of the long edge to the short edge must be at most {MAX_RATIO}:1."
    if short * long < MIN_PIXELS:
        return "Requested resolution is below the current minimum pixel budget."
    return "Requested resolution exceeds the current pixel budget." if short * long > MAX_PIXELS else ""


# ---- Answering ---------------------------------------------------------------------------------------------

def read_order(request: Recorded, answer: Answer) -> Drawing:
    """Read what to draw; lenient, because with check=False the fields may be anything."""
    fields = request.fields

    def number(name: str, default: int) -> int:
        """Return a field as a small integer."""
        text = str(fields.get(name))
        return int(text) if re.fullmatch("[0-9]{1,2}", text) else default

    def choice(name: str, choices: tuple[str, ...]) -> str:
        """Return a field of an enumeration, by default its first value."""
        return fields[name] if fields.get(name) in choices else choices[0]

    size = str(fields.get("size"))
    width, height = answer.size or ((1024, 1024) if size_fault(size) else map(int, size.split("x")))
    images = fields.get("images") if isinstance(fields.get("images"), list) else []
    streamed = fields.get("stream") in (True, "true")
    count = number("n", 1) if answer.count is None else answer.count
    return Drawing(
        str(fields.get("prompt", "")), count, width, height, choice("quality", QUALITIES),
        answer.format or choice("output_format", FORMATS), fields.get("background") == "transparent",
        urlsplit(request.path).path.endswith("/edits"),
        len(images or [part for part in request.parts if part.name in ("image", "image[]")]),
        number("partial_images", 0) if streamed else None)


def usage(order: Drawing) -> dict[str, Any]:
    """Count plausible tokens; the output formula matches all published prices of gpt-image-2."""
    base = TOKEN_BASE.get(order.quality, 96)
    short, long = sorted((order.width, order.height))
    each = math.ceil(base * round(base * short / long) * (2000000 + short * long) / 4000000)
    output = each * order.images + 100 * (order.partials or 0)
    text, image = 1 + len(order.prompt) // 4, IMAGE_INPUT_TOKENS * order.input_images
    return {"input_tokens": text + image, "output_tokens": output,
            "input_tokens_details": {"image_tokens": image, "text_tokens": text},
            "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
            "total_tokens": text + image + output}


def spell(image: bytes, spelling: str) -> bytes:
    """Return an image as the inside of a JSON string, in one of the spellings seen at relays."""
    text = base64.b64encode(image)
    if spelling == "data-url":
        return f"data:image/{sniff(image)[0] or 'png'};base64,".encode() + text
    if spelling == "newlines":
        return base64.encodebytes(image).replace(b"\n", b"\\n")
    if spelling == "slashes":
        return text.replace(b"/", b"\\/")
    return text.rstrip(b"=") if spelling == "unpadded" else text


def describe(order: Drawing) -> dict[str, Any]:
    """Return the fields that plain answers and events share."""
    return {"background": "transparent" if order.transparent else "opaque", "output_format": order.format,
            "quality": order.quality, "size": f"{order.width}x{order.height}"}


def plain_body(order: Drawing, items: list[bytes]) -> bytes:
    """Return the JSON answer; joined as bytes, because json.dumps would copy huge strings several times."""
    head = json.dumps({"created": int(time.time()), "background": describe(order)["background"]})[:-1]
    tail = json.dumps({**describe(order), "usage": usage(order)}).partition(", ")[2]
    return b"".join([head.encode(), b', "data": [', b", ".join(b"{" + item + b"}" for item in items), b"], ",
                     tail.encode()])


def event_body(order: Drawing, items: list[bytes]) -> bytes:
    """Return the server-sent events: the partial images of the first item, then every item completed."""
    prefix = "image_edit" if order.edit else "image_generation"
    shared = {"created_at": int(time.time()), **describe(order)}
    frames = []
    for index in range(order.partials or 0 if items else 0):
        frames.append(("partial_image", items[0], {"partial_image_index": index, **shared}))
    frames += [("completed", item, {**shared, "usage": usage(order)}) for item in items]
    lines = []
    for name, item, rest in frames:
        kind = f"{prefix}.{name}"
        lines += [f"event: {kind}\ndata: ".encode(), b"{", item, b", ",
                  json.dumps({"type": kind, **rest}).encode()[1:], b"\n\n"]
    return b"".join(lines)


def planned_error(status: int) -> bytes:
    """Return a fitting body for a planned status without one."""
    kind, code, message = PLANNED_ERRORS.get(status, ("server_error", None, "The server had an error."))
    return error_body(message, code, None, kind)


def model_reply(path: str) -> Reply:
    """Return the list of models, or the one that the path names."""
    models = [{"id": name, "object": "model", "created": 1776729600, "owned_by": "system",
               "shutdown_date": date} for name, date in MODELS.items()]
    name = path[len("/v1/models/"):]
    if not name:
        return Reply(json.dumps({"object": "list", "data": models}).encode())
    for model in models:
        if model["id"] == name:
            return Reply(json.dumps(model).encode())
    raise Refused(f"The model '{name}' does not exist", "model_not_found", "model", status=404)


# ---- Serving -----------------------------------------------------------------------------------------------

Server = TypeVar("Server", bound="LoopbackServer")


class LoopbackServer:
    """Listens from the start and serves from `with` on; a bug in it fails the test."""

    def __init__(self, handler: type[QuietHandler], port: int = 0) -> None:
        """Listen at once, so that the address is known."""
        self.stopping = threading.Event()
        self.faults: list[str] = []  # tracebacks of bugs in this server
        self._listener = Listener(("127.0.0.1", port), handler)
        self._listener.api = self
        self.origin = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self: Server) -> Server:
        """Start serving."""
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stop, and report a bug in this server as a failure of the test."""
        self.stopping.set()
        self._listener.shutdown()
        self._listener.server_close()
        if self.faults and kind is None:
            raise AssertionError("a bug in the test server:\n" + self.faults[0])


@final
class ApiServer(LoopbackServer):
    """The server as tests use it: plan answers, run the client against `url`, look at what arrived."""

    def __init__(self, key: str = "test-key", port: int = 0) -> None:
        """Listen at once, so that `url` is known."""
        super().__init__(ApiHandler, port)
        self.key = key
        self.requests: list[Recorded] = []
        self.files: dict[str, bytes] = {}
        self.answered = 0
        self.default = Answer()  # for the paid paths when nothing is planned
        self.lock = threading.Lock()
        self._served = 0
        self._plans: dict[str, collections.deque[Answer]] = collections.defaultdict(collections.deque)
        self._gets: dict[str, collections.deque[Answer]] = {}
        self.url = self.origin + "/v1"

    def plan(self, *answers: Answer) -> None:
        """Queue answers for the next POSTs to the two paid paths."""
        self._plans["paid"].extend(answers)

    def plan_files(self, *answers: Answer) -> None:
        """Queue answers for the next downloads below /files/."""
        self._plans["files"].extend(answers)

    def plan_models(self, *answers: Answer) -> None:
        """Queue answers for the next requests for models."""
        self._plans["models"].extend(answers)

    def plan_gets(self, target: str, *answers: Answer) -> None:
        """Set the answers for GETs of one path (with its query), as tasks need it; the last one is given for ever."""
        self._gets[target] = collections.deque(answers)

    def reset(self) -> None:
        """Forget all requests and everything that was planned."""
        with self.lock:
            self.requests.clear()
            self._plans.clear()
            self._gets.clear()
            self.default = Answer()

    @property
    def gets(self) -> list[Recorded]:
        """Return all GETs but downloads in order of arrival."""
        with self.lock:
            asked = [each for each in self.requests if each.method == "GET" and not each.path.startswith("/files/")]
        return sorted(asked, key=lambda each: each.when)

    @property
    def posts(self) -> list[Recorded]:
        """Return the POSTs to the two paid paths in order of arrival."""
        with self.lock:
            paid = [each for each in self.requests if route(each.method, path_of(each.path)) == "paid"]
        return sorted(paid, key=lambda each: each.when)

    def arrive(self, method: str, target: str) -> tuple[str, float, Answer]:
        """Return kind, time and answer for a request whose header has just been read."""
        kind = route(method, path_of(target))
        with self.lock:
            answers = self._gets.get(target) if method == "GET" else None
            if answers:
                return "task", time.monotonic(), answers.popleft() if len(answers) > 1 else answers[0]
            if self._plans[kind]:
                return kind, time.monotonic(), self._plans[kind].popleft()
            return kind, time.monotonic(), self.default if kind == "paid" else Answer()

    def next_id(self) -> str:
        """Return a new request id."""
        with self.lock:
            self._served += 1
            return f"req_test_{self._served}"

    def reply(self, kind: str, request: Recorded, answer: Answer) -> Reply:
        """Return the answer to a complete request; raises Refused when it breaks the API's rules."""
        path = path_of(request.path)
        if answer.check and kind in ("paid", "models", "task"):
            check_key(request, self.key)
        if answer.check and kind == "paid":
            check_request(request)
        if answer.body is not None:
            return Reply(answer.body, answer.status, answer.content_type)
        if kind == "files":
            return self.file_reply(path, answer)
        if answer.status != 200:
            return Reply(planned_error(answer.status), answer.status, answer.content_type)
        if kind == "paid":
            return self.image_reply(request, answer)
        if kind == "models":
            return model_reply(path)
        if kind == "page":
            return Reply(RELAY_PAGE, content_type="text/html; charset=utf-8")
        return Reply(b"", 404, "text/plain")

    def file_reply(self, path: str, answer: Answer) -> Reply:
        """Return a result's bytes, or an empty body for a planned status and an unknown name."""
        name = path[len("/files/"):]
        data = self.files.get(name) if answer.image is None else answer.image
        if data is None or answer.status != 200:
            return Reply(b"", 404 if data is None else answer.status, "text/plain")
        mime = "image/" + name.rpartition(".")[2]
        return Reply(data, 200, mime if answer.content_type == Answer().content_type else answer.content_type)

    def image_reply(self, request: Recorded, answer: Answer) -> Reply:
        """Draw the images, count them as billed and return them as JSON or as events."""
        order = read_order(request, answer)
        with self.lock:
            self.answered += order.images > 0
        seed = zlib.crc32((str(order.edit) + order.prompt).encode("utf-8", "replace"))
        images = [answer.image if answer.image is not None else
                  draw_image(order.format, order.width, order.height, seed + index, order.transparent)
                  for index in range(order.images)]
        items = [self.publish(image, order.format) if answer.as_url else
                 b'"b64_json": "' + spell(image, answer.spelling) + b'"' for image in images]
        if order.partials is None:
            return Reply(plain_body(order, items), 200, answer.content_type)
        return Reply(event_body(order, items), 200, "text/event-stream")

    def publish(self, image: bytes, kind: str) -> bytes:
        """Store an image below /files/ and return its JSON member."""
        with self.lock:
            name = f"{len(self.files) + 1}.{kind}"
            self.files[name] = image
        return f'"url": "{self.origin}/files/{name}"'.encode()


def route(method: str, path: str) -> str:
    """Return what a path is: paid, models, files, page (a relay's web app) or nothing."""
    if method == "POST" and path in PAID_PATHS:
        return "paid"
    if method == "GET" and (path == "/v1/models" or path.startswith("/v1/models/")):
        return "models"
    if method == "GET" and path.startswith("/files/"):
        return "files"
    return "" if (path + "/").startswith(("/v1/", "/files/")) else "page"


class Listener(ThreadingHTTPServer):
    """The listening socket; quiet when a client goes away."""
    api: Any  # the server that it belongs to: its `faults` collects tracebacks
    daemon_threads = True
    request_queue_size = 128  # parallel tests connect all at once

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Forget broken connections, keep real faults for the end of the test."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.api.faults.append(traceback.format_exc())


class QuietHandler(BaseHTTPRequestHandler):
    """One connection, without a word on standard error."""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the header and the body are two writes; joined they would wait 40 ms
    timeout = 120

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class ApiHandler(QuietHandler):
    """Receive a request, answer it as planned."""
    server: Listener

    def do_GET(self) -> None:
        """Receive one request and answer it."""
        kind, when, answer = self.server.api.arrive(self.command, self.path)
        body, whole = (b"", False) if answer.drop == "unread" else self.read_body()
        request = self.record(path_of(self.path), body, when)
        if not whole or not self.respond(kind, request, answer):
            self.close_connection = True

    do_POST = do_GET

    def respond(self, kind: str, request: Recorded, answer: Answer) -> bool:
        """Answer a complete request; False when the connection has to end without an answer."""
        try:
            reply = self.server.api.reply(kind, request, answer)
        except Refused as refused:
            answer, reply = Answer(), refused.reply  # a refusal is never part of the misbehaviour
        if not self.wait(answer) or answer.drop == "silent":
            return False
        self.send_reply(answer, reply)
        return True

    def read_body(self) -> tuple[bytes, bool]:
        """Return the request's body and whether it arrived completely."""
        try:
            if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
                return self.read_chunks()
            size = max(0, int(self.headers.get("Content-Length") or 0))
        except ValueError:
            return b"", False
        body = self.rfile.read(size)
        return body, len(body) == size

    def read_chunks(self) -> tuple[bytes, bool]:
        """Return a chunked body and whether its last chunk arrived; ValueError for a bad chunk size."""
        pieces: list[bytes] = []
        size = -1
        while size:
            size = int(self.rfile.readline(100).partition(b";")[0].strip() or b"-1", 16)
            if size < 0:
                return b"".join(pieces), False
            pieces.append(self.rfile.read(size))
            if size:
                self.rfile.readline(100)
        while self.rfile.readline(65537) not in (b"\r\n", b""):
            pass  # trailers
        return b"".join(pieces), True

    def record(self, path: str, body: bytes, when: float) -> Recorded:
        """Keep the request for the tests."""
        fields: dict[str, Any] = {}
        parts: list[Part] = []
        if body:
            try:
                fields, parts = parse_body(path, self.headers.get("Content-Type", ""), body)
            except Refused:
                pass  # check_request meets the same fault and answers it
        request = Recorded(self.command, self.path, list(self.headers.items()), body, fields, parts, when)
        with self.server.api.lock:
            self.server.api.requests.append(request)
        return request

    def wait(self, answer: Answer) -> bool:
        """Be silent as long as planned; False when the server stops meanwhile."""
        stopping = self.server.api.stopping
        stopping.wait(answer.delay)
        deadline = time.monotonic() + MAX_HOLD
        while answer.event and time.monotonic() < deadline and not stopping.is_set():
            if answer.event.wait(0.05):
                break
        return not stopping.is_set()

    def send_reply(self, answer: Answer, reply: Reply) -> None:
        """Send status, headers and body, up to the planned point of failure."""
        chunked = answer.chunked or answer.endless or reply.content_type == "text/event-stream"
        headers = [("Content-Type", reply.content_type), ("x-request-id", self.server.api.next_id()),
                   ("openai-processing-ms", str(int(1000 * answer.delay) + 5)),
                   ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(reply.body)))]
        planned = {name.lower() for name, _ in answer.headers}
        headers = [header for header in headers if header[0].lower() not in planned]
        self.send_response(reply.status)
        for name, value in (*headers, *answer.headers):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = self.close_connection or bool(answer.drop) or answer.endless
        if answer.endless:
            self.send_endless(answer)
        elif answer.drop != "headers":
            body = reply.body[:len(reply.body) // 2] if answer.drop == "half" else reply.body
            self.send_body(body, chunked, answer.trickle, answer.slice)
            if chunked and not answer.drop:
                self.wfile.write(b"0\r\n\r\n")

    def send_body(self, body: bytes, chunked: bool, trickle: float, step: int = 0) -> None:
        """Send a body; in slices of `step` bytes, or in 16 slices when it is chunked or trickles."""
        step = step or max(1, -(-len(body) // 16) if chunked or trickle else len(body))
        for start in range(0, len(body), step):
            piece = body[start:start + step]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if trickle and self.server.api.stopping.wait(trickle):
                return

    def send_endless(self, answer: Answer) -> None:
        """Send the planned body, or the base64 of one image, on and on; slowly, so that no disk fills up."""
        piece = answer.body or b"A" * 65536
        if answer.body is None:
            self.send_body(b'{"created": 1, "data": [{"b64_json": "', True, 0)
        deadline = time.monotonic() + MAX_HOLD
        while time.monotonic() < deadline and not self.server.api.stopping.wait(answer.trickle or 0.02):
            self.send_body(piece, True, 0)
