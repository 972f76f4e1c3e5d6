#!/usr/bin/env python3
"""Generate and edit images with gpt-image-2 from any shell: Python 3.8+ and curl, nothing else.

The file follows the data: Settings + Job -> provider -> Requests -> curl -> Responses -> provider -> Images.

    Limits, Failures, Data     numbers with their sources; every kind of failure; what travels
    Text, Sizes, Pictures      pure helpers: hide secrets, size rules, formats, PNG rows
    Price, Services, Options   what a job will cost; two tables: who is spoken to, what can be asked for
    Settings, Job              files, environment, flags, where keys may go; options -> one checked Job
    Providers, Transport       what to send: generators; how to send: the only section that knows curl
    Journal                    the folder of each unfinished request, the receipt of each finished one
    Driver, Reading answers    the rule for sending again; a file -> Images, or the Failure that it means
    Saving, Telling, Gallery   verify, name, never replace; what is shown; a page to look at pictures
    Commands, Batch, main      start reading at run_image_command

A provider is a generator without input or output. It yields a Request and is sent the Response, or has a
Failure thrown in; it yields a Wait before it polls again; it returns an Image, or the Failure in its place,
for each image. With the same Job it yields the same paid requests in the same order.

One paid request: run_image_command reads Settings and builds the Job (free, may refuse). made_before looks
for its receipt, find_key for the key. open_folder makes a folder, or takes over an unfinished one, or
wait_for_twin waits for the same command elsewhere. run_provider asks the provider for a Request; start_curl
lets curl write its answer there, alone. read_response says what it means, failure_of what is wrong with it,
retry_pause when it may be sent again. The provider yields the next Request (poll, download) or returns
Images; save_images saves them, keep_receipt notes them, Console.finish tells, and the folder is removed.
Killed anywhere, the same command replays the provider in its folder: answered paid steps are only read.

Conventions: checked_x returns the value or raises, check_x only raises, x_fault returns a text or "",
x_failure makes a Failure, read_x reads a file. What is promised, and what is not, is in README.
"""
from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # the folder of this file, which may hold somebody else's shlex.py or json.py

import base64
import io
import json
import os
import re
import select
import signal
import stat
import time
import zlib
from contextlib import redirect_stderr, redirect_stdout, suppress
from copy import copy
from errno import EPERM, EROFS
from functools import partial
from itertools import accumulate, chain, count
from math import inf, log
from os import environ
from shlex import quote
from struct import pack, unpack
from types import SimpleNamespace as Namespace
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, Optional
from unicodedata import category, normalize

try:
    import fcntl
except ImportError:  # Windows: answers are kept, but unfinished requests look like running ones
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:  # slow modules are imported where they are used, and argparse not at all
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from subprocess import Popen
    Layer = dict[str, "Setting"]  # one source of settings
    Price = Optional[tuple[float, float]]  # the least and the most, in US dollars; None where it is unknown
    Action = Callable[[], None]
    Row = list[bytes]  # of a picture, in 8 bits: its red, green, blue and alpha
    Exchange = str  # the path that all files of one transfer begin with; the journal lists their suffixes
    Provider = Generator["Request | Wait", "Response", list["Image | Failure"]]

# ---- Limits and defaults -------------------------------------------------------------------------
# Vendor's numbers: OpenAI's image API reference and image generation guide, read 2026-10-08.
VERSION, PROGRAM, DEFAULT_MODEL = "1.0.0", "gpt_image2", "gpt-image-2"
AZURE_CLASSIC_VERSION = "2025-04-01-preview"  # Azure's image documentation, read 2026-07
DEFAULT_BASE_URL, DEFAULT_OUTPUT = "https://api.openai.com/v1", "~/gpt-image2-output.png"
DEFAULT_TIMEOUT, MAX_TIMEOUT = 600, 1_000_000  # seconds; the official SDK's own; more overflows in curl
CONNECT_TIMEOUT, DOWNLOAD_TIMEOUT, HEARTBEAT = 30, 300, 30  # seconds; relays are slow; off a terminal
KEEP_DAYS, KEEP_RECEIPT_DAYS, DAY = 30, 90, 86_400  # unfinished requests; what is known of others; seconds
TRIES, RATE_LIMIT_TRIES = 3, 5  # of what cannot have made an image; below: relays cool down for about 5 s
POLL_TIMEOUT, POLL_PAUSE, NETWORK_PAUSE, RATE_LIMIT_PAUSE = 60, 3.0, 0.5, 5.0  # seconds; polls of a task
MAX_PROMPT, MAX_IMAGES, MAX_IMAGE_BYTES, SAFE_MASK_BYTES = 32_000, 16, 50_000_000, 4_000_000  # characters
MAX_PNG_EDGE, MAX_DEFLATED = 65_535, 1032  # a few bytes may claim any size; how many times zlib can shrink
MAX_N, MAX_PARTIALS, SPARE_IMAGES, MAX_REDIRECTS, MINIMUM_CURL = 10, 3, 3, 3, (7, 68)  # redirects of a file
EDGE_STEP, MAX_EDGE, MAX_RATIO, MIN_PIXELS, MAX_PIXELS = 16, 3840, 3, 655_360, 8_294_400
EDGES = range(EDGE_STEP, MAX_EDGE + 1, EDGE_STEP)  # both must be multiples; 3840x2160 is accepted
MAX_DOWNLOAD_BYTES, MAX_ANSWER_BYTES = 200_000_000, 500_000_000  # a 4K PNG is below 50 MB; ten as base64
NOTABLE_COST, MAX_JOBS, MAX_BATCH_BYTES, MAX_MESSAGE = 0.05, 16, 100_000_000, 900  # US dollars; of a line
MAX_UNPACKED = 100  # times its packed size: a picture as base64 shrinks to three quarters, text to a fiftieth
MAX_MEMBERS, MAX_DEPTH, MAX_LINES = 100, 64, 1_000_000  # of a list that is shown; an answer's JSON; a stream
RESOLUTIONS = {"1k": 1024 * 1024, "2k": 2048 * 2048, "4k": MAX_PIXELS}  # pixels; next: RunAPI's SDKs, 2026-10
RUNAPI_RATIOS = {f"{width}:{height}": width / height for a, b in (
    (1, 1), (3, 2), (4, 3), (5, 4), (16, 9), (2, 1), (3, 1), (21, 9)) for width, height in ((a, b), (b, a))}
RUNAPI_EDGES = {"1k": (1024, 1536), "2k": (2048, 2560), "4k": (3840, 3840)}  # the longer edge, in pixels
SIZE_NAMES = {"square": "1024x1024", "landscape": "1536x1024", "portrait": "1024x1536"}
SUFFIXES = {"jpeg": (".jpg", ".jpeg"), "tiff": (".tif", ".tiff"), **{name: ("." + name,) for name in (
    "png", "webp", "gif", "svg", "avif", "bmp", "heic", "heif", "ico", "jxl", "pdf", "psd")}}
FORMATS, TYPICAL_SECONDS = ("png", "jpeg", "webp"), {"low": 70, "medium": 120, "high": 276}
# Bytes. A longer string stays in the file when an answer is parsed, its head is looked at; the rest must fit.
LONG_STRING, HEAD, MAX_SKELETON, BLOCK = 64 * 1024, 4000, 8 * 1024 * 1024, 1024 * 1024
DOLLARS_PER_TOKEN = {"text": 5e-6, "image": 8e-6, "output": 30e-6}  # list price, read 2026-10-08

class ModelRules(NamedTuple):
    """What one model accepts; sizes: "free" (whatever size_fault allows), a list, or None: not checked."""
    qualities: tuple[str, ...]
    sizes: str | tuple[str, ...] | None
    formats: tuple[str, ...] = FORMATS

DATED, QUALITIES = r"-20\d\d-\d\d-\d\d$", ("low", "medium", "high", "auto")  # as in gpt-image-2-2026-04-21
OLDER = ModelRules(QUALITIES, ("1024x1024", "1536x1024", "1024x1536"))
NEWER = ModelRules(("low", "medium", "high", "xhigh", "max", "auto"), None)
NEWEST = NEWER._replace(formats=(*FORMATS, "gif", "svg"))
MODELS = {"gpt-image-2": ModelRules(QUALITIES, "free"), "gpt-image-2.5-sunburst": NEWER,
          "gpt-image-2.5-flare": NEWER, "gpt-image-2.6-sunburst": NEWEST, "gpt-image-2.6-flare": NEWEST,
          "gpt-image-1.5": OLDER, "gpt-image-1-mini": OLDER, "chatgpt-image-latest": OLDER}

# ---- Failures ------------------------------------------------------------------------------------
OK, BUG, USAGE, SETUP, REFUSED, LIMITED, NO_ANSWER, UNSAVED = range(8)  # exit codes, as README has them
INTERRUPTED, UNREAD = 130, 141  # 128 + the signal's number, like the others
BUYS_AGAIN = "Running the command again buys a new image."
KEPT = "What came is kept. Make room, or choose another -o; then run the same command again at no cost."

class Kind(NamedTuple):
    """What a kind of failure means; a Failure may know better. next: what the caller should do.
    fix: change the command, a file or a setting. again: run the same command again, nothing is paid twice.
    later: the same after a pause. ask: a person has to act or to decide. stop: another try cannot help."""
    exit_code: int
    billed: str  # no, maybe or yes
    next: str
    hint: str = ""
    retryable: bool = False  # the same request may be sent again: it made no image
    says: str = ""  # to people, before what the server said

KINDS = {  # before anything is sent, and on the way; then the server refused; then no usable response
    **dict.fromkeys(("usage", "input", "target"), Kind(USAGE, "no", "fix")),
    "too_expensive": Kind(USAGE, "no", "ask", "Lower --quality, --size or --n, or raise --max-cost."),
    **dict.fromkeys(("config", "curl"), Kind(SETUP, "no", "fix")), "state": Kind(SETUP, "no", "ask"),
    "key": Kind(SETUP, "no", "ask", "config --show says where the key comes from; config --check tests it.",
                says="the server did not accept the key"),
    **dict.fromkeys(("network", "task_failed"), Kind(NO_ANSWER, "maybe", "ask", BUYS_AGAIN)),
    "tls": Kind(NO_ANSWER, "no", "fix", 'If your network has its own CA, set "cacert" in the config.'),
    "timeout": Kind(NO_ANSWER, "maybe", "ask", "Raise --timeout, or lower --quality; this buys a new image."),
    "upload": Kind(NO_ANSWER, "no", "again", "Run the same command again; you were not charged."),
    "moderation": Kind(REFUSED, "no", "fix", "Change the prompt; the same words will be refused again."),
    "refused": Kind(REFUSED, "no", "fix", "Fix what the message names, then run the command again."),
    "not_found": Kind(REFUSED, "no", "fix", "Check --base-url (is /v1 missing or there twice?) and --model.",
                      says="there is no such address or model"),
    "too_large": Kind(REFUSED, "no", "fix", "Make images smaller, or use JPEG.", says="too much data"),
    "redirect": Kind(NO_ANSWER, "no", "fix", "Use the address it points to as --base-url."),
    "forbidden": Kind(SETUP, "no", "ask", "This key may not use this model or endpoint."),
    "verification": Kind(SETUP, "no", "ask", "Verify it in platform.openai.com/settings; wait 15 minutes.",
                         says="your organization is not verified"),
    "region": Kind(SETUP, "no", "stop", "The service is not offered in this region."),
    "blocked": Kind(SETUP, "no", "ask", "The server's firewall blocked this computer; try another network."),
    "quota": Kind(LIMITED, "no", "ask", "Add credit or raise your limit.", says="the credit is used up"),
    "rate_limit": Kind(LIMITED, "no", "later", "Run it again in a minute.", True, "too many requests"),
    "overloaded": Kind(NO_ANSWER, "no", "later", "Run it again in a minute.", True, "the service is busy"),
    "unavailable": Kind(NO_ANSWER, "no", "later", "No model was reached. Check --model, or try again later."),
    "gateway": Kind(NO_ANSWER, "maybe", "ask", "Try --stream or a lower --quality; this buys a new image.",
                    says="the gateway gave up waiting for the image"),
    **dict.fromkeys(("server", "no_image", "broken_image"), Kind(
        NO_ANSWER, "maybe", "ask", "Check the account's usage first: another run buys a new image.",
        says="no usable image came back")),
    "web_page": Kind(NO_ANSWER, "maybe", "fix", "Check --base-url: it points at a website, not an API."),
    "place": Kind(NO_ANSWER, "yes", "stop", "Tell the people who run the service. " + BUYS_AGAIN),
    # The image exists or is being made: the same command continues from there. The first three are purposes.
    **dict.fromkeys(("poll", "result"), Kind(NO_ANSWER, "maybe", "again")),
    "download": Kind(UNSAVED, "yes", "again"),
    "disk": Kind(UNSAVED, "maybe", "again", KEPT), "save": Kind(UNSAVED, "yes", "again", KEPT),
    "stopped": Kind(INTERRUPTED, "maybe", "again", "Run the same command again to get the image at no cost."),
    "interrupted": Kind(INTERRUPTED, "no", "again", BUYS_AGAIN), "bug": Kind(BUG, "no", "stop", "Report it.")}

class Failure(Exception):
    """The only expected exception: what happened, whether money may be gone, and what to do next.
    What is not given follows from its kind. `billed` is what this request cost; billed_in_the_end decides.
    server_text: the server's own message, the only text that code may read. vars(one) makes an equal one."""
    def __init__(self, kind: str, message: str, hint: str | None = None, billed: str = "",
                 exit_code: int = -1, retryable: bool | None = None, next_step: str = "",
                 collectable: bool = False, http_status: int = 0, code: str = "",
                 request_id: str = "", server_text: str = "") -> None:
        super().__init__(message)
        rules = KINDS[kind]
        self.kind, self.message, self.hint = kind, message, rules.hint if hint is None else hint
        self.billed, self.exit_code = billed or rules.billed, rules.exit_code if exit_code < 0 else exit_code
        self.retryable = rules.retryable if retryable is None else retryable
        self.next_step = next_step or ("later" if self.retryable else rules.next)
        self.http_status, self.code, self.request_id = http_status, code, request_id
        self.server_text, self.collectable = server_text, collectable  # still to be had, without buying

    @property
    def next(self) -> str:
        """What the caller should do, as in KINDS."""
        return "again" if self.collectable else self.next_step

# The command is wrong; an image cannot be used; nothing can be saved where -o points to; settings are wrong.
usage_failure, input_failure, target_failure, setup_failure = (
    partial(Failure, kind) for kind in ("usage", "input", "target", "config"))

def own_name() -> str:
    """What this program is called: as somebody typed it."""
    folder, name = os.path.split(sys.argv[0] or PROGRAM)
    return name if folder in os.get_exec_path() else sys.argv[0] or name

def own_command(words: str) -> str:
    """The shell command that runs this program with these arguments, spelled as it was started this time."""
    return f"{'python3 ' if own_name().endswith('.py') else ''}{quote(own_name())} {words}"

# ---- Data ----------------------------------------------------------------------------------------
class Setting(NamedTuple):
    """A value and where it came from."""
    value: Any
    source: str

class KeySource(NamedTuple):
    """One source of the key. host: the only one it may be sent to, "" for any."""
    source: str
    host: str
    value: str = ""  # without it and a command: a variable that is named, but not set
    command: tuple[str, ...] = ()
    account: str = ""  # of a ChatGPT sign-in

class Settings(NamedTuple):
    """Everything that does not change from image to image; settings.timeout is values["timeout"]."""
    values: Mapping[str, Setting]  # of SETTING_KEYS, each with its source
    keys: tuple[KeySource, ...]
    config_path: str
    warnings: tuple[str, ...]

    def __getattr__(self, name: str) -> Setting:
        return self.values[name]

    @property
    def service(self) -> Service:
        """The row of SERVICES for its protocol."""
        return SERVICES[self.api.value]

class Picture(NamedTuple):
    """What the first bytes of a file show: format name and size in pixels."""
    format: str
    width: int
    height: int

class Upload(NamedTuple):
    """An input image or mask. Until its file is read, only path, origin and name are known."""
    path: str
    picture: Picture = Picture("", 0, 0)
    bytes: int = 0
    checksum: str = ""  # MD5 as base64, where the API wants one
    digest: str = ""  # SHA-256 of the content
    seen: Picture = Picture("", 0, 0)  # the edges as people see them; EXIF may turn the stored pixels
    origin: str = "file"  # what path is: "file", "url", "data" for a data: URI, or "rectangles"
    name: str = ""  # what messages call it

class Target(NamedTuple):
    """Where pictures go: folder (absolute), name without suffix, suffix as the user wrote it."""
    folder: str
    stem: str
    suffix: str
    overwrite: bool

class Job(NamedTuple):
    """One checked command: nothing in it needs a second look before sending."""
    command: str
    model: str
    prompt: str
    images: tuple[Upload, ...]
    mask: Upload | None
    parameters: Mapping[str, Any]  # what is sent besides model and prompt
    n: int
    target: Target
    keep_partials: bool = False
    resolution: str = ""  # of a size with the first image's shape; "input", "exact": it is that image's own
    mask_form: str = "alpha"  # bw: white is to change; rectangles: those in the mask's path are
    feather: int = 0  # of the rectangles' edges, in pixels
    exact: bool = False  # what the mask does not open stays the input's

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """The input images and the mask."""
        return (*self.images, self.mask) if self.mask else self.images

    def with_uploads(self, uploads: Sequence[Upload]) -> Job:
        """The job with others in their place."""
        mask = uploads[-1] if self.mask else None
        return self._replace(images=tuple(uploads[:len(self.images)]), mask=mask)

class DataUrl:
    """A file's content in a JSON body: no provider opens one. A NamedTuple would become a list there."""
    def __init__(self, path: str, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix

class Part(NamedTuple):
    """One part of a form: text, or a file with its content type."""
    name: str
    text: str = ""
    path: str = ""
    content_type: str = ""
    bytes: int = 0

class Purpose(NamedTuple):
    """What a request is for decides what may be done with it."""
    repeatable: bool  # asking again costs nothing, and an old answer is worth nothing
    is_file: bool  # the answer is a picture, from any host
    is_free: bool  # comes before the paid request, or does without one
    cannot: str = ""  # how it fails after payment; then the purpose is also the kind
    final: tuple[int, ...] = ()  # HTTP statuses that another try will not change

PURPOSES = {"upload": Purpose(False, False, True), "create": Purpose(False, False, False),  # makes images
            "poll": Purpose(True, False, False, "the task could not be polled", (404, 405)),
            "result": Purpose(True, False, False, "the task's result could not be fetched"),
            "download": Purpose(True, True, False, "the image could not be fetched", (401, 403)),
            "models": Purpose(True, False, True), "input": Purpose(True, True, True)}  # an image to edit

class Request(NamedTuple):
    """One HTTP request, without a word about curl."""
    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: Mapping[str, Any] | None = None  # sent as JSON
    form: tuple[Part, ...] = ()  # sent as multipart/form-data
    file: str = ""  # its bytes are sent as they are
    timeout: float = DEFAULT_TIMEOUT
    proxy: str = ""
    cacert: str = ""
    allow_http: bool = False
    purpose: str = "create"
    tasks: bool = False  # an id alone in an answer means a task: poll_url is set, or it is RunAPI
    free_failures: bool = False  # a task that failed is not charged
    idempotent: bool = False  # the server makes nothing twice for the same Idempotency-Key

    @property
    def rules(self) -> Purpose:
        """What follows from its purpose."""
        return PURPOSES[self.purpose]

    @property
    def most_bytes(self) -> int:
        """How long its answer may be."""
        return MAX_DOWNLOAD_BYTES if self.rules.is_file else MAX_ANSWER_BYTES

class Wait(NamedTuple):
    """What a provider yields between two polls of a task."""
    seconds: float
    status: str
    task: str
    done: str = ""  # per cent of it, where the service says so

class Response(NamedTuple):
    """One answer; the body stays in its file, document is its JSON with long strings as Spans."""
    path: str
    status: int
    headers: Mapping[str, str]
    document: Any = None
    text: str = ""  # the body's first characters, if it is not JSON
    broken: bool = False  # it was cut off: document is what arrived before
    url: str = ""  # where it came from
    images: tuple[Image, ...] = ()
    stray: bool = False  # the images were under an unknown name
    error: ServerError | None = None
    meaning: str = "nothing"  # or images, pending, linked, accepted, broken, error: see with_meaning

class Span(NamedTuple):
    """A long string of a JSON answer: its bytes in the file, still JSON-escaped."""
    path: str
    start: int
    end: int
    head: str = ""  # the first of them
    links: tuple[int, ...] = ()  # where data: URLs begin in a text with images

    def is_image(self) -> bool:
        """Whether it may be base64 or a data: URL."""
        return bool(re.match(DATA_URL + r"|(?:[A-Za-z0-9+/_=-]|\\[/nrt]|\\u00[23][bBfFdD]){200}", self.head))

class Image(NamedTuple):
    """One picture that came back: an address, base64 (in the answer's file or short), or a file."""
    url: str = ""  # perhaps relative to the answer's own
    base64: Span | str = ""
    path: str = ""

class ServerError(NamedTuple):
    """The error inside an answer, whatever its envelope."""
    message: str
    code: str = ""
    type: str = ""
    stage: str = ""  # of moderation: input or output

class Saved(NamedTuple):
    """One file on disk."""
    path: str
    bytes: int
    picture: Picture
    mtime_ns: int

    def record(self) -> dict[str, Any]:
        """The same in a receipt."""
        return {"path": self.path, "bytes": self.bytes, "mtime_ns": self.mtime_ns, **self.picture._asdict()}

class Identity(NamedTuple):
    """What makes two commands the same: what is asked for, and where -o points."""
    fingerprint: str
    output: str
    edges: tuple[int, ...] = ()  # with --mask-exact: of a picture that was made without it, and can be used

    @property
    def receipt(self) -> str:
        """The name of its receipt."""
        import hashlib
        return f"{self.fingerprint}-{hashlib.sha256(as_bytes(self.output)).hexdigest()[:16]}.json"

class Receipt(NamedTuple):
    """A finished command: its record, and its files, which are as they were saved."""
    record: Mapping[str, Any]
    saved: list[Saved]
    path: str = ""  # its own, "" from a twin

class Order(NamedTuple):
    """A job with all that decides how it is bought: a command, or a line of a batch."""
    job: Job
    settings: Settings
    identity: Identity
    requested: Mapping[str, Any]  # size, format and quality, for the result
    fresh: bool
    line: int = 0  # of a batch
    is_named: bool = True  # its file by the caller, not after the prompt
    warnings: tuple[str, ...] = ()

# ---- Text ----------------------------------------------------------------------------------------
# Control characters, stray bytes that are such in older encodings, and what breaks a line or reverses text.
CONTROL = r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]"
UNQUOTABLE, LONG_TEXT = r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]", "(a long text)"
SHORTEST_KEY, CUT_MARK = 8, "\u2026"  # what is shorter may be an ordinary word; ends a text that was cut
# For UTF-8, a character for each byte. CUT: how a text ends that was cut. LETTER: an ESCAPE, or a byte.
CUT = (r"(?:[ux][\da-f]{0,3}|%[\da-f]?|&#?x?[\da-f]{0,6}|[\xc2-\xf4][\x80-\xbf]{0,2})?"
       r"(?:\xe2\x80\xa6|\.{3}|\Z)")
ESCAPE = (r"(?=[\\%&\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xc2\xe2\xef])(?:"  # or what is invisible
          r"\\{1,8}(?:x([\da-fA-F]{2})|u([\da-fA-F]{4}))?|%(?:25){0,4}([\da-fA-F]{2})|"
          r"&#(?:[xX]0{0,4}([2-7][\da-fA-F])|0{0,4}(\d{2,3}));|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|"
          r"\xc2\xad|\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf)")
LETTER = ESCAPE + r"|((?s:.))"
# Also matches keys that a server has masked (sk-ab****cd), a login in an address, and a JSON web token.
KEY_LIKE = (r"\b(?:sk|rk|pk)-[\w*.-]{6,}|[\w.-]{0,40}\*{4,}[\w*.\u2026-]*|\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*|"
            r"\b[Bb]earer\s+(?!(?:auth|cred|token|scheme|header)[a-z]*(?![\w-]))[^\s\"']{6,}|"
            r"(?<=//)[^\s/:@\[\"']{0,200}(?::(?!\d+[/?#])[^\s@\"']{0,200})?(?=@)")
# On the command line: a long word that may be a key, but not part of a path, nor words_with_numbers_2.
MISPLACED_KEY = (r"(?<![\w./~-])(?:(?!(?:[A-Za-z]*\d{0,4}_)+[A-Za-z]*\d{0,4}\b)(?=\w*\d)(?=\w*[A-Za-z])"
                 r"\w{20,}|[\da-fA-F]{8}(?:-[\da-fA-F]{4}){3}-[\da-fA-F]{12})(?![\w./-])")
# Several words, a size, a short word or a word-of-words without digits, a path, a host's name.
HARMLESS = (r"\s|^([\d.:x]{1,12}|\D{1,15}|(--)?[a-z]{1,12}([-_][a-z]{1,12})*|~?/.*|"
            r"(https?:?/+)?(([a-z\d-]+\.)+[a-z]{2,8}|localhost|\d+(\.\d+){3})(:\d+)?(/v\d)?)$")
SECRET_HEADER = r"(?i)auth|key|token|secret|cookie|session|pass|pwd|pin\b|login|access|cred|signature"

def redact(text: str, secrets: Sequence[str]) -> str:
    """The text without any secret, and without anything that looks like a key."""
    octets = re.sub("\x7f+", "***", blanked(utf8(text).decode("latin-1"), secrets, "\x7f"))
    return re.sub(KEY_LIKE, "***", octets.encode("latin-1").decode("utf-8", "surrogateescape"))

def blanked(text: str, secrets: Sequence[str], mark: str) -> str:
    """A text of bytes, as long as before, with every secret overwritten, however it is escaped.
    Where the text was cut, six characters of a secret are enough. A short one counts only as a whole word."""
    plain = re.sub(ESCAPE, resolved, text).lower()
    spans: list[tuple[int, int]] = []
    octets = bytearray(text, "latin-1")
    for secret in secrets:
        wanted = re.sub(ESCAPE, resolved, utf8(secret).decode("latin-1")).lower()
        short, at = len(wanted) < SHORTEST_KEY, plain.find(wanted[:6]) if len(wanted) >= 4 else -1
        while at >= 0:
            end = at + len(os.path.commonprefix([wanted, plain[at:at + len(wanted)]]))
            near = plain[max(0, at - 1):at], plain[end:end + 2]
            inside = short and (re.match(r"[\w/.-]", near[0]) or re.match(r"\.?\w|[/-]", near[1]))
            if not inside if end == at + len(wanted) else not short and re.compile(CUT).match(plain, end):
                spans = spans or [each.span() for each in re.finditer(LETTER, text) for _ in resolved(each)]
                first, last = spans[at][0], spans[end - 1][1]
                octets[first:last] = mark.encode() * (last - first)
            at = plain.find(wanted[:6], at + 1)
    return octets.decode("latin-1")

def resolved(escape: re.Match[str]) -> str:
    """What an escape, or a letter, stands for, in UTF-8's bytes."""
    group = escape.lastindex  # of the groups in ESCAPE
    if group is None or group == 6:
        return escape[group] if group else ""
    number = int(escape[group], 10 if group == 5 else 16)
    return chr(number) if group == 3 else utf8(chr(number)).decode("latin-1")

def one_line(text: str, limit: int = 300) -> str:
    """Outside text made safe for a terminal: no control characters, one line, a bounded length."""
    text = " ".join(re.sub(CONTROL, " ", whole_characters(text)).split())
    return text if len(text) <= limit else text[:limit - 3] + "..."

def as_bytes(text: str) -> bytes:
    """Text with file names as the system spells them; UTF-8 if its encoding lacks a character."""
    with suppress(UnicodeEncodeError):
        return os.fsencode(text)
    return utf8(text)

def utf8(text: str) -> bytes:
    """The text in UTF-8, stray bytes as they are; half a character becomes `?`."""
    return re.sub(r"[\ud800-\udc7f\udd00-\udfff]", "?", text).encode("utf-8", "surrogateescape")

def whole_characters(text: str) -> str:
    """The text with each group of stray bytes that forms a character joined into that character."""
    return as_bytes(text).decode("utf-8", "surrogateescape") if re.search(r"[\udc80-\udcff]", text) else text

def quoted(text: str) -> str:
    """What somebody typed, safe to repeat: a long word, or one with a digit, may be a misplaced key."""
    harmless = len(text) < SHORTEST_KEY or re.search(HARMLESS, text)
    return repr(one_line(text, 40) if harmless else one_line(text[:2]) + "***")

def reason(error: BaseException) -> str:
    """What went wrong, without the path that the caller names anyway."""
    own = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None)
    return own or str(error)

def as_text(value: Any) -> str:
    """A JSON value as text for a message."""
    if value is None or isinstance(value, str):
        return value or ""
    shown = map_texts(value, lambda text: text if len(text) < 300 else LONG_TEXT)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)

def mask_key(key: str) -> str:
    """A key as it may be shown: its last four characters only when they give little away."""
    return "***" + (key[-4:] if len(key) >= 20 else "")

def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """` Did you mean X?` for a typo, or an empty text."""
    from difflib import get_close_matches
    return "".join(f" Did you mean {found}?" for found in get_close_matches(word, list(words), 1, cutoff))

def pasted(text: str) -> str:
    """A pasted text without invisible characters: white space around it, a BOM, zero-width characters."""
    return re.sub("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]", "", text).strip()

def json_path(node: Any, *names: str) -> Any:
    """The value under these names, one inside the other, in a stranger's JSON; None where there is none."""
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node

def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts changed, names too; without endless lists and Spans."""
    if isinstance(value, dict):
        return {change(name): map_texts(item, change) for name, item in list(value.items())[:MAX_MEMBERS]}
    if isinstance(value, list):
        return [map_texts(item, change) for item in value[:MAX_MEMBERS]]
    return change(value) if isinstance(value, str) else LONG_TEXT if isinstance(value, tuple) else value

def quote_config(value: str) -> str:
    """A value for curl's -K file: quoted, escaped, always one physical line (reference: curl's man page)."""
    if re.search(UNQUOTABLE, value):
        raise usage_failure("a control character cannot be passed on to curl")
    return json.dumps(value, ensure_ascii=False)  # for all others curl's escapes are those of JSON

def quote_path(path: str) -> str:
    """A path inside a form line: quotes of its own, so that `;` and `,` stay part of the name."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'

# ---- Sizes ---------------------------------------------------------------------------------------
def split_size(text: str) -> tuple[int, int] | None:
    """(width, height) of `1536x1024`, None when it is not of that form."""
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    return (int(match[1]), int(match[2])) if match else None

def size_fault(width: int, height: int) -> str:
    """Every rule of gpt-image-2 that this size breaks, or an empty text."""
    longest, shortest, step = max(width, height), min(width, height), EDGE_STEP
    rules = ((width % step or height % step, f"width and height must both be multiples of {step}"),
             (longest > MAX_EDGE, f"the longer side can be at most {MAX_EDGE} pixels"),
             (longest > MAX_RATIO * shortest, f"the longer side can be at most {MAX_RATIO} times the other"),
             (not MIN_PIXELS <= width * height <= MAX_PIXELS, f"the image must have {MIN_PIXELS:,} to "
              f"{MAX_PIXELS:,} pixels, {width}x{height} has {width * height:,}"))
    return "; ".join(text for broken, text in rules if broken)

def nearest_size(width: int, height: int) -> str:
    """The legal size nearest in edges and shape; one that covers this, if any does; the larger on a tie."""
    width, height = max(width, 1), max(height, 1)
    distances = ((w < width or h < height, round(abs(log(w / width)) + abs(log(h / height)) + abs(
        log(w / h * height / width)), 3), -w * h, w, h) for w in EDGES for h in EDGES if not size_fault(w, h))
    return "%dx%d" % min(distances)[3:]

def size_of_ratio(ratio: float, pixels: int) -> str:
    """The legal size closest to this ratio whose area is 80 to 105 % of `pixels`."""
    pixels = min(pixels, int(MAX_EDGE * MAX_EDGE / max(ratio, 1 / ratio)))  # a long shape meets that first
    distances = ((round(abs(log(w / h / ratio)), 3), abs(log(w * h / pixels)), w, h) for w in EDGES
                 for h in EDGES if 0.8 * pixels <= w * h <= 1.05 * pixels and not size_fault(w, h))
    return "%dx%d" % min(distances)[2:]

# ---- Pictures ------------------------------------------------------------------------------------
KEPT_CHUNKS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs")  # what says how a PNG's colours and pixels look
PNG_COLOURS = {0: (1, (1, 2, 4, 8, 16), (2,)), 2: (3, (8, 16), (6,)), 3: (1, (1, 2, 4, 8), ()),
               4: (2, (8, 16), ()), 6: (4, (8, 16), ())}  # channels, bits of each, lengths of tRNS
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
XML_NOISE = rb"(?si)<\?.*?\?>|<!--.*?-->|<!doctype(?:[^\[>]|\[[^\]]*\])*>|\A\xef\xbb\xbf"

def inspect_picture(stream: BinaryIO) -> Picture | None:
    """Format and pixels, from the first bytes; None for any but PNG, JPEG, WebP, GIF, SVG (0x0: unknown)."""
    head = stream.read(32)
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
        return Picture("png", int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    if head.startswith(b"\xff\xd8\xff"):
        return jpeg_picture(stream)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        # Its first chunk is extended or lossless, which store the size less one, or lossy.
        layouts = {b"VP8X": (24, 30, 0xFFFFFF, 24, 1), b"VP8L": (21, 25, 0x3FFF, 14, 1)}
        start, end, mask, shift, less = layouts.get(head[12:16], (26, 30, 0x3FFF, 16, 0))
        bits = int.from_bytes(head[start:end], "little")
        return Picture("webp", (bits & mask) + less, (bits >> shift & mask) + less)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return Picture("gif", int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    root = re.match(rb"\s*<(?:\w+:)?svg(?=[\s>/])[^>]*", re.sub(XML_NOISE, b"", head + stream.read(HEAD)))
    if not root:
        return None
    number = rb"[\s,]*(\d{1,6})(?:\.\d*)?(?:px)?\s*"
    found = [edge[1] for name in (b"width", b"height")
             if (edge := re.search(rb"\s%s\s*=\s*[\"']%s[\"']" % (name, number), root[0]))]
    box = re.search(rb"\sviewBox\s*=\s*[\"']\s*[-+.\deE]+[\s,]+[-+.\deE]+%s%s" % (number, number), root[0])
    return Picture("svg", *map(int, found if len(found) == 2 else box.groups() if box else (0, 0)))

def picture_in(path: str) -> tuple[Picture | None, bool]:
    """(picture, whether it is whole) of a file."""
    with open(path, "rb") as stream:
        picture = inspect_picture(stream)
        return picture, picture is not None and is_whole(stream, picture)

def jpeg_picture(stream: BinaryIO) -> Picture | None:
    """Walk the segments up to the frame header, which holds the size."""
    stream.seek(2)
    while len(marker := stream.read(4)) == 4 and marker[0] == 0xFF:
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            frame = stream.read(5)
            return Picture("jpeg", int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big"))
        is_fill = marker[1] == 0xFF  # one byte, before the real marker
        stream.seek(-3 if is_fill else int.from_bytes(marker[2:4], "big") - 2, os.SEEK_CUR)
    return None

def is_whole(stream: BinaryIO, picture: Picture) -> bool:
    """Whether the file reaches its format's end mark: an answer that broke off does not."""
    length = stream.seek(0, os.SEEK_END)
    if picture.format == "png":
        return any(name == b"IEND" for name, _ in png_chunks(stream, skip=True))
    if picture.format == "webp":
        stream.seek(4)
        return length >= int.from_bytes(stream.read(4), "little") + 7  # some leave the last, padding byte out
    if picture.format == "jpeg":  # more may follow: the further pictures of an MPO, the film of a telephone
        jpeg_picture(stream)
        return next(occurrences(stream, b"\xff\xd9", stream.tell(), length), None) is not None
    stream.seek(max(0, length - 1024))
    tail = stream.read()
    if picture.format == "gif":
        return tail.rstrip(b"\0\r\n ").endswith(b";")
    stream.seek(0)
    text = stream.read(MAX_IMAGE_BYTES)
    is_closed = re.search(rb"</(\w+:)?svg\s*>\s*\Z", re.sub(XML_NOISE, b"", tail)) is not None
    return is_closed and text == text.decode("utf-8", "ignore").encode("utf-8")

def is_turned(content: bytes) -> bool:
    """Whether EXIF, near a file's start or end, says that the pixels lie on their side (5 to 8)."""
    ends = content if len(content) < 4 * LONG_STRING else content[:3 * LONG_STRING] + content[-LONG_STRING:]
    exif = re.search(rb"(?s)(?:Exif\0\0|eXIf|EXIF.{4})(?:II\*\0|MM\0\*).*", ends)
    turned = rb"\x12\x01\x03\0\x01\0\0\0[\x05-\x08]|\x01\x12\0\x03\0\0\0\x01\0[\x05-\x08]"
    return exif is not None and re.search(turned, exif[0]) is not None

def has_alpha(path: str, form: str) -> bool:
    """Whether a PNG is transparent anywhere, or another picture can be, judging by its first bytes."""
    with suppress(OSError, ValueError), open(path, "rb") as stream:  # it may be gone already
        head = stream.read(LONG_STRING)
        if form == "png":
            return (png := Png(path)).has_alpha and any(min(row[3]) < 255 for row in png.rows(True))
        if form == "webp":
            return head[12:16] != b"VP8 " and bool(head[20 if head[12:16] == b"VP8X" else 24] & 0x10)
        marks = re.findall(rb"(?s)!\xf9\x04(.)", head) if form == "gif" else []
        return form == "svg" or any(mark[0] & 1 for mark in marks)
    return True

def png_chunks(stream: BinaryIO, skip: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of each chunk, long data in pieces; stops where the file stops making sense.
    skip: leave the data out. ValueError: a checksum is wrong."""
    stream.seek(8)
    while (head := stream.read(8))[4:].isalpha() and (length := unpack(">I", head[:4])[0]) <= MAX_IMAGE_BYTES:
        checksum = zlib.crc32(head[4:])
        for start in range(0, 1 if skip else length or 1, LONG_STRING):
            yield head[4:], (data := b"" if skip else stream.read(min(LONG_STRING, length - start)))
            checksum = zlib.crc32(data, checksum)
        if skip:
            stream.seek(length + 4, os.SEEK_CUR)
        elif int.from_bytes(stream.read(4), "big") != checksum:
            raise ValueError("is a broken PNG: a checksum is wrong")

class Png:
    """A PNG that is read row by row (its specification, parts 7 to 11); ValueError says why it cannot be.
    passes: where each begins, across and down, and its steps. planes: the bytes of a pixel, at least one.
    tables: the red, green, blue and alpha of each value. clear: a colour without alpha, by planes."""
    def __init__(self, path: str) -> None:
        chunks = dict.fromkeys((b"IHDR", b"PLTE", b"tRNS", *KEPT_CHUNKS), b"")
        with open(path, "rb") as stream:
            most = os.fstat(stream.fileno()).st_size * MAX_DEFLATED
            for name, data in png_chunks(stream):
                if name in chunks:
                    chunks[name] += data
        header, palette, special, *_ = chunks.values()
        self.path, self.kept = path, {name: chunks[name] for name in KEPT_CHUNKS if chunks[name]}
        self.width, self.height, depth, colour, *rest = unpack(">IIBBBBB", header.rjust(13, b"\0")[-13:])
        channels, depths, lengths = PNG_COLOURS.get(colour, (0, (), ()))
        entries = len(palette) // 3 if colour == 3 else 256
        if (depth not in depths or not self.width * self.height * entries or rest not in ([0] * 3, [0, 0, 1])
                or (special and len(special) not in (range(entries + 1) if colour == 3 else lengths))):
            raise ValueError("is a broken PNG")
        self.bits = channels * depth
        if self.width * self.height * self.bits > 8 * most or max(self.width, self.height) > MAX_PNG_EDGE:
            raise ValueError("claims more pixels than it holds")
        self.depth, self.colour, self.entries = depth, colour, entries
        self.planes, self.has_alpha = self.bits // 8 or 1, colour >= 4 or bool(special)
        self.passes = ADAM7 if rest[2] else ((0, 0, 1, 1),)
        self.clear = special if depth == 16 else special[1::2]
        self.tables = [palette[plane:768:3] for plane in range(3)] + [special] if colour == 3 else []
        if colour == 0 and depth <= 8:
            top = (1 << depth) - 1
            grey = bytes((value & top) * 255 // top for value in range(256))
            clear = self.clear[0] & top if special else -1
            self.tables = [grey] * 3 + [bytes(255 * (value & top != clear) for value in range(256))]
        self.tables = [table.ljust(256, b"\xff") for table in self.tables]

    def scanlines(self, wanted: int) -> Iterator[bytes]:
        """The rows of one pass, each with its filter's number in front. No such pass: checks them all."""
        with open(self.path, "rb") as stream:
            pieces = unpacked(data for name, data in png_chunks(stream) if name == b"IDAT")
            buffer = bytearray()
            for number, (left, top, across, down) in enumerate(self.passes):
                length = 1 + (len(range(left, self.width, across)) * self.bits + 7) // 8
                for _ in range(top, self.height if length > 1 else 0, down):
                    while len(buffer) < length:
                        if (piece := next(pieces, None)) is None:
                            raise ValueError("is a broken PNG: it is cut off")
                        buffer += piece
                    if buffer[0] > 4:
                        raise ValueError("is a broken PNG: unknown filter")
                    if number == wanted:
                        yield bytes(buffer[:length])
                    del buffer[:length]

    def pass_rows(self, number: int, only_alpha: bool) -> Iterator[Row]:
        """The rows of one pass as planes of 8 bits: red, green, blue, alpha."""
        last = self.planes - (self.depth // 8 or 1)  # where the alpha channel begins, if there is one
        offsets = range(last if only_alpha and self.colour >= 4 else 0, self.planes)
        columns = len(range(self.passes[number][0], self.width, self.passes[number][2]))
        above = [bytes((columns * self.bits + 7) // 8 // self.planes) for _ in offsets]
        for row in self.scanlines(number):
            planes = [row[1 + offset::self.planes] for offset in offsets]
            above = [unfiltered(row[0], plane, up) for plane, up in zip(planes, above)]
            yield self.in_eight_bits(above, columns)

    def in_eight_bits(self, lines: Row, columns: int) -> Row:
        """Red, green, blue and alpha of a row, from its planes. Of 16 bits, the upper 8 count."""
        if self.tables:
            line = lines[0]
            if self.depth < 8:  # several pixels share a byte
                shifts, top = range(8 - self.depth, -1, -self.depth), (1 << self.depth) - 1
                line = bytes(byte >> shift & top for byte in line for shift in shifts)[:columns]
            if max(line) >= self.entries:
                raise ValueError("is a broken PNG: its palette lacks a colour")
            return [line.translate(table) for table in self.tables]
        upper, alpha = lines[::2] if self.depth == 16 else lines, b"\xff" * columns
        if self.clear:
            marks = -1
            for line, value in zip(lines, self.clear):
                marks &= int.from_bytes(line.translate(bytes(value == each for each in range(256))), "big")
            alpha = marks.to_bytes(columns, "big").translate(b"\xff\0" + bytes(254))
        return [*(upper[:3] if len(upper) > 2 else upper[:1] * 3), upper[-1] if self.colour >= 4 else alpha]

    def checked(self) -> Png:
        """The same, read to its end; faster than its pixels would be, but for those of a palette."""
        for _ in self.rows() if self.colour == 3 else self.scanlines(-1):
            pass
        return self

    def rows(self, only_alpha: bool = False) -> Iterator[Row]:
        """Its rows from above. Memory holds a few: each pass of an interlaced one unpacks on its own."""
        readers = [self.pass_rows(number, only_alpha) for number in range(len(self.passes))]
        for y in range(self.height):
            row = [bytearray(self.width) for _ in range(4)]
            for (left, top, across, down), reader in zip(self.passes, readers):
                if y % down == top and left < self.width:
                    for plane, part in zip(row, next(reader)):
                        plane[left::across] = part
            yield [bytes(plane) for plane in row]

def unfiltered(method: int, line: bytes, above: bytes) -> bytes:
    """One plane of a PNG's row without its filter; above: the same of the row above."""
    if method == 0 or (method != 3 and not any(line) and above.count(above[:1]) == len(above)):
        return line if method < 2 else above  # the second: nothing under one value, as in most masks
    if method < 3:
        sums = accumulate(line) if method == 1 else map(int.__add__, line, above)
        return bytes(each & 255 for each in sums)
    result, left, corner = bytearray(), 0, 0
    for value, up in zip(line, above):
        guess = left + up >> 1
        if method == 4:
            a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)  # Paeth's distances
            guess = left if a <= b and a <= c else up if b <= c else corner
            corner = up
        left = value + guess & 255
        result.append(left)
    return bytes(result)

def filtered(method: int, line: bytes, above: bytes) -> bytes:
    """One plane of a row with filter 0 to 3: its difference from nothing, its left, above, or their mean.
    All bytes at once, in one number: the lower seven bits of each, then the upper one without its carry."""
    texts = line, b"\0" + line[:-1], above, b"\x7f" * len(line), b"\x80" * len(line)
    value, left, up, low, high = (int.from_bytes(text, "big") for text in texts)
    guess = (0, left, up, (left & up) + ((left ^ up) >> 1 & low))[method]
    return (((value | high) - (guess & low)) ^ (value ^ guess ^ high) & high).to_bytes(len(line), "big")

def write_png(stream: BinaryIO, width: int, height: int, rows: Iterable[Row], channels: int,
              kept: Mapping[bytes, bytes]) -> None:
    """Write rows of planes as a PNG of 8 bits, RGB or RGBA. kept: chunks that stand before its pixels."""
    def chunk(name: bytes, data: bytes) -> None:
        stream.write(pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data)))
    stream.write(b"\x89PNG\r\n\x1a\n")
    header = pack(">IIBBBBB", width, height, 8, 6 if channels == 4 else 2, 0, 0, 0)
    for name, data in {b"IHDR": header, **kept}.items():
        chunk(name, data)
    packer, above = zlib.compressobj(), [bytes(width)] * channels
    sizes = bytes(min(value, 256 - value) for value in range(256))
    for row in rows:
        choices = [[filtered(method, line, up) for line, up in zip(row, above)] for method in range(4)]
        costs = [sum(sum(plane.translate(sizes)) for plane in planes) for planes in choices]
        method, above = costs.index(min(costs)), row[:channels]
        line = bytearray([method]) * (1 + channels * width)
        for number, plane in enumerate(choices[method]):
            line[1 + number::channels] = plane
        if packed := packer.compress(line):
            chunk(b"IDAT", packed)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")

def blended(mask: bytes, kept: Row, made: Row) -> Row:
    """One row: kept where the mask is opaque, made where it is clear; between, both by their opacity."""
    opaque, row = int.from_bytes(mask.translate(bytes(255) + b"\xff"), "big"), []
    for old, new in zip(kept, made):
        mine, other = int.from_bytes(old, "big"), int.from_bytes(new, "big")
        row.append(bytearray((other ^ (mine ^ other) & opaque).to_bytes(len(mask), "big")))
    for x, value in enumerate(mask) if mask.translate(None, b"\0\xff") else ():
        if 0 < value < 255:
            mine, other = value * kept[3][x], (255 - value) * made[3][x]
            total = mine + other or 1
            for plane, old, new in zip(row, kept, made):
                plane[x] = (old[x] * mine + new[x] * other + total // 2) // total
            row[3][x] = (mine + other + 127) // 255
    return [bytes(plane) for plane in row]

def rectangle_in(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a text as from as_rectangle; it may reach beyond the picture."""
    x, y, across, down = (float(part[:-1]) / 100 * whole if part.endswith("%") else int(part)
                          for part, whole in zip(text.split(","), (width, height) * 2))
    return round(x), round(y), round(x + across), round(y + down)

def soft_edges(start: int, end: int, whole: int, feather: int) -> bytes:
    """A rectangle's alpha along one axis: from 255 to 0 inside it; no edge where the picture ends."""
    depths = (min(at - start if start > 0 else feather, end - 1 - at if end < whole else feather)
              for at in range(whole))
    return bytes(max(0, 255 - 255 * max(0, depth + 1) // (feather + 1)) for depth in depths)

def mask_rows(job: Job, width: int, height: int) -> Iterator[bytes]:
    """The alpha of a job's mask, row by row, for an image of this size."""
    mask = job.mask or Upload("")
    if job.mask_form == "rectangles":
        boxes = [rectangle_in(text, width, height) for text in mask.path.split()]
        edges = [(soft_edges(left, right, width, job.feather), soft_edges(top, bottom, height, job.feather))
                 for left, top, right, bottom in boxes]
        for y in range(height):
            row = b"\xff" * width
            for across, down in [each for each in edges if each[1][y] < 255]:
                row = bytes(map(min, row, across.translate(bytes(max(down[y], each) for each in range(256)))))
            yield row
    yield from (row[3] for row in Png(mask.path).rows(only_alpha=True)) if job.mask_form == "alpha" else ()
    for red, green, blue, alpha in Png(mask.path).rows() if job.mask_form == "bw" else ():
        yield bytes(255 - (299 * r + 587 * g + 114 * b) * a // 255_000
                    for r, g, b, a in zip(red, green, blue, alpha))  # as bright as ITU-R 601 says

def unpacked(data: Iterable[bytes], bits: int = 15) -> Iterator[bytes]:
    """The decompressed data, at most 1 MB a piece however well it was packed. bits: zlib's wbits."""
    unpacker = zlib.decompressobj(bits)
    with suppress(zlib.error):  # cut off: the reader notices
        for chunk in data:
            for start in range(0, len(chunk), LONG_STRING):
                packed = chunk[start:start + LONG_STRING]
                while packed:
                    yield unpacker.decompress(packed, BLOCK)
                    packed = unpacker.unconsumed_tail
                    if unpacker.eof and unpacker.unused_data:  # gzip may have several members
                        packed, unpacker = unpacker.unused_data, zlib.decompressobj(bits)
        yield unpacker.flush()

# ---- Price: what a job will cost -----------------------------------------------------------------
# gpt-image-2 at list price, read 2026-10-08. The formula, for it alone, gives all published, measured counts.
PATCHES = {"low": 16, "medium": 48, "high": 96}  # along the longer edge, by quality
# Of an input image, as others have measured it (undated); of a prompt: English has 4 to 5, none below 1.
INPUT_TOKENS, BYTES_PER_TOKEN, PARTIAL_TOKENS = (512, 1457), (8, 1), 100  # the last for each partial image

def image_tokens(width: int, height: int, quality: str) -> int:
    """Output tokens of one image."""
    patches = PATCHES[quality]
    shorter = round(patches * min(width, height) / max(width, height))
    return -(-patches * shorter * (2_000_000 + width * height) // 4_000_000)

def estimate(job: Job, settings: Settings) -> Price:
    """The least and the most that a job costs, in US dollars; None where no price is known."""
    flat, parameters = settings.price_per_image.value, job.parameters  # --param may say more than options
    n, partials, model, quality, size = (parameters.get(name, usual) for name, usual in (
        ("n", job.n), ("partial_images", 0), ("model", job.model), ("quality", "auto"), ("size", "auto")))
    if type(n) is not int or type(partials) is not int or n < 1 or partials < 0:
        return None
    if flat is not None:
        return n * flat, n * flat
    qualities = tuple(PATCHES) if quality == "auto" else (quality,)
    sizes = [split_size(as_text(each)) for each in (SIZE_NAMES.values() if size == "auto" else (size,))]
    is_known = (host_of(settings.base_url.value) == host_of(DEFAULT_BASE_URL)
                and re.sub(DATED, "", as_text(model)) == DEFAULT_MODEL and quality in (*PATCHES, "auto"))
    if not is_known or not all(edges and all(edges) for edges in sizes):
        return None
    outputs = [image_tokens(*edges, each) for edges in sizes if edges for each in qualities]
    low, high = (n * (pick(outputs) + PARTIAL_TOKENS * partials) * DOLLARS_PER_TOKEN["output"]
                 + len(job.uploads) * image * DOLLARS_PER_TOKEN["image"]
                 + len(utf8(job.prompt)) / letters * DOLLARS_PER_TOKEN["text"]
                 for pick, image, letters in zip((min, max), INPUT_TOKENS, BYTES_PER_TOKEN))
    return round(low, 4), round(high, 4)

def checked_price(prices: Sequence[Price], settings: Settings) -> Price:
    """The sum of some estimates, which may not be more than --max-cost allows."""
    limit, source = settings.max_cost
    source = source if source.startswith("--") else f"max_cost in {source}"
    known = [price for price in prices if price]
    low, high = price = tuple(round(sum(each), 4) for each in zip(*known, (0, 0)))
    if len(known) < len(prices):
        if limit is None:
            return None
        raise Failure("too_expensive", f"{source}: the price is unknown", "Set price_per_image in a config.")
    if limit is not None and high > limit:
        raise Failure("too_expensive", f"this costs {price_text(price)}; {source} allows ${limit}")
    return price

def price_text(price: Price) -> str:
    """An estimate for people."""
    if not price or not price[1]:
        return "nothing" if price else "unknown"
    low, high = (f"${dollars:.3f}" for dollars in price)
    return f"about {low}" if low == high else f"{low} to {high}"

# ---- Services ------------------------------------------------------------------------------------
class Service(NamedTuple):
    """One protocol and who speaks it. Functions defined further down are called through a lambda."""
    base_url: str
    key_variables: tuple[str, ...]  # the first that is set counts
    address_variables: tuple[str, ...]
    provider: Callable[..., Provider]  # (job, settings, key, token) -> what to send
    values: Callable[..., dict[str, Any]]  # (options, size, settings, notes) -> what is sent instead
    free_check: str = "/models"  # where a GET proves address and key, free of charge; "" where nothing can
    takes_urls: bool = False  # it fetches inputs itself, from its own storage or from anywhere
    formats: tuple[str, ...] = tuple(SUFFIXES)

OPENAI = Service(DEFAULT_BASE_URL, ("GPT_IMAGE2_API_KEY", "OPENAI_API_KEY"), ("GPT_IMAGE2_BASE_URL",
                 "OPENAI_BASE_URL"), lambda *call: openai(*call), lambda *call: openai_values(*call))
SERVICES = {
    "openai": OPENAI, "azure": OPENAI._replace(base_url="", formats=("png", "jpeg")),
    "runapi": Service("https://runapi.ai", ("RUNAPI_API_KEY", "GPT_IMAGE2_API_KEY"), ("RUNAPI_BASE_URL",),
                      lambda *call: runapi(*call), lambda *call: runapi_shape(*call), "/api/v1/me", True),
    "codex": Service("https://chatgpt.com/backend-api/codex", (), (), lambda *call: codex(*call),
                     OPENAI.values, free_check="")}
KEY_VARIABLES = tuple(dict.fromkeys(name for service in SERVICES.values() for name in service.key_variables))

# ---- Options -------------------------------------------------------------------------------------
# Parser, help, advice, what is sent, what RunAPI lacks and what a config file may hold come from this table.
class Option(NamedTuple):
    """One row of OPTIONS. With config, it is None when it is not given."""
    commands: tuple[str, ...]
    flag: str
    value: str  # its value's name in the help; a switch has none
    help: str
    accepts: Callable[[str], Any] | tuple[str, ...] = str  # what reads its value, or the words that it may be
    wire: str = ""  # OpenAI's name for it, if it is sent
    config: type | None = None  # the type of its value in a config file, if it may be there
    default: Any = None  # what holds if it is not given
    runapi: str | None = None  # RunAPI's name for it, if it is sent; None: not supported, if wire is set
    short: str = ""
    repeatable: bool = False
    alone: bool = False  # only one of these may be given

    @property
    def name(self) -> str:
        """What the program calls it."""
        return self.flag[2:].replace("-", "_")

def number(low: float, high: int, convert: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """What reads a number in a range."""
    def read(text: str) -> Any:
        try:
            value = convert("" if "_" in text or not text.isascii() else text)  # not 1_000, nor other scripts
        except ValueError:
            raise ValueError(f"needs a {'whole ' * (convert is int)}number, not {quoted(text)}") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}, not {text}")
        return value
    return read

def as_pair(text: str) -> str:
    """A size or a shape as people write it, in one spelling: `1024 × 1024`, `16/9`, `LANDSCAPE`."""
    text, edge = text.strip().lower(), "([0-9]+) *(?:px)?"
    if not (edges := re.fullmatch(f"{edge} *([x×х*:：∶/]|by) *{edge}", text)):  # a Cyrillic x too
        return text
    return f"{edges[1]}{':' if edges[2] in ':：∶/' and len(edges[1]) < 3 else 'x'}{edges[3]}"

def as_header(text: str) -> tuple[str, str]:
    """`Name: value` as a pair."""
    name, colon, value = (piece.strip() for piece in text.partition(":"))
    if fault := header_fault(name, value) if colon and name else "--header must look like 'Name: value'":
        raise usage_failure(fault)
    return name, value

def as_parameter(text: str) -> tuple[str, Any]:
    """`key=value` as a pair, the value read as JSON where it is JSON."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"must look like key=value, not {quoted(text)}")
    with suppress(ValueError, RecursionError):
        return name, json.loads(value, parse_constant=str)
    return name, value

def as_rectangle(text: str) -> str:
    """`X,Y,WIDTH,HEIGHT` without blanks; each in pixels or per cent of the picture."""
    parts, form = "".join(text.split()).split(","), r"(?a)-?\d{1,6}|\d{1,2}(\.\d+)?%|100(\.0+)?%"
    if len(parts) != 4 or not all(re.fullmatch(form, part) for part in parts) or min(
            float(part.rstrip("%")) for part in parts[2:]) <= 0:
        raise ValueError(f"must be X,Y,WIDTH,HEIGHT, such as 10,20,300,50%, not {quoted(text)}")
    return ",".join(parts)

CONFIG, GENERATE, EDIT, IMAGES = ("config",), ("generate",), ("edit",), ("generate", "edit")
ALL, PATH = (*IMAGES, *CONFIG), os.fspath  # as it is: a path's bytes need not be UTF-8
OPTIONS = (
    Option(CONFIG, "--show", "", "every setting and where it comes from (default)", alone=True),
    Option(CONFIG, "--init", "", "write a config file that only you can read", alone=True),
    Option(CONFIG, "--force", "", "with --init: overwrite an existing file", short="-f"),
    Option(CONFIG, "--check", "", "test curl, the key and the endpoint (free)", alone=True),
    Option(CONFIG, "--history", "[N]", "what was made, its cost (default 20)", number(1, 9999), alone=True),
    Option(CONFIG, "--forget", "ID|all", "give up an unfinished request", str.lower, alone=True),
    Option(CONFIG, "--completion", "SHELL", "for bash, zsh or fish", ("bash", "zsh", "fish"), alone=True),
    Option(GENERATE, "--batch", "FILE", "a picture for each line, a prompt or a JSON object", PATH),
    Option((*GENERATE, *CONFIG), "--jobs", "1-16", "how many at a time (3)", number(1, MAX_JOBS), "", int, 3),
    Option(ALL, "--gallery", "PAGE.html", "also write a page to look at the pictures", PATH),
    Option(EDIT, "--image", "PATH", "another image, 16 in all; can be repeated", PATH, repeatable=True),
    Option(EDIT, "--mask", "PNG", "as large as IMAGE, transparent where it is to change", PATH, wire="mask"),
    Option(EDIT, "--mask-bw", "PNG", "the same in black and white: what is white changes", PATH),
    Option(EDIT, "--mask-rect", "X,Y,W,H", "may change (px or %); repeatable", as_rectangle, repeatable=True),
    Option(EDIT, "--mask-feather", "PIXELS", "with --mask-rect: how wide its soft edge is", number(0, 1000)),
    Option(EDIT, "--mask-exact", "", "put IMAGE's own pixels back outside the mask"),
    Option(EDIT, "--input-fidelity", "low|high", "older models only", ("low", "high"), wire="input_fidelity"),
    Option(ALL, "--output", "PATH", f"file or folder (default {DEFAULT_OUTPUT})", PATH, "", str,
           DEFAULT_OUTPUT, short="-o"),
    Option(ALL, "--size", "WIDTHxHEIGHT", "or square, landscape, portrait, auto (default);\n"
           "edit: input, the size of IMAGE", lambda text:
           as_pair(re.sub(r"^ *([0-9]{3,5})( *px)? *$", r"\1x\1", text)), "size", str, "auto", runapi=""),
    Option(IMAGES, "--aspect-ratio", "W:H", "a shape such as 16:9; the closest allowed size is used",
           lambda text: re.sub(r"(?<=\d)x", ":", as_pair(text)), runapi="aspect_ratio"),
    Option(IMAGES, "--resolution", "1k|2k|4k", "how many pixels that shape gets (default 1k)",
           tuple(RESOLUTIONS), runapi="output_resolution"),
    Option(ALL, "--quality", "LEVEL", "low ($0.006, 70 s), medium ($0.053, 120 s),\n"
           "high ($0.211, 276 s) or auto", str.lower, "quality", str, "auto"),
    Option(IMAGES, "--n", "1-10", "how many images", number(1, MAX_N), "n", default=1, runapi="", short="-n"),
    Option(ALL, "--format", "FORMAT", "png, jpeg or webp (default: as -o ends, else png);\n"
           "newer models: gif, svg", (*SUFFIXES, "jpg"), "output_format", str),
    Option(ALL, "--compression", "0-100", "for jpeg and webp", number(0, 100), "output_compression", int),
    Option(ALL, "--background", "KIND", "opaque, transparent or auto (default)",
           ("auto", "opaque", "transparent"), "background", str),
    Option(ALL, "--moderation", "LEVEL", "low or auto (default)", ("auto", "low"), "moderation", str),
    Option(ALL, "--model", "MODEL", f"default {DEFAULT_MODEL}", str, "", str, DEFAULT_MODEL),
    Option(IMAGES, "--prompt-file", "FILE", "read the prompt from FILE; a PROMPT of - reads stdin", PATH),
    Option(ALL, "--max-cost", "USD", "refuse a higher/unknown price", number(0.0001, 9999, float), "", float),
    Option(IMAGES, "--dry-run", "", "show what would be sent, saved and paid; send nothing"),
    Option(IMAGES, "--overwrite", "", "replace existing files (default: a free name)", short="-f"),
    Option(IMAGES, "--fresh", "", "buy another take, although this command has its image"),
    Option(ALL, "--timeout", "SECONDS", f"time limit for the whole request (default {DEFAULT_TIMEOUT})",
           number(1, MAX_TIMEOUT, float), "", float, DEFAULT_TIMEOUT),
    Option(IMAGES, "--stream", "", "stream the reply; helps if a gateway times out", wire="stream"),
    Option(IMAGES, "--partial-images", "0-3", "streamed previews", number(0, MAX_PARTIALS), "partial_images"),
    Option(IMAGES, "--keep-partials", "", "keep the previews when the final image is saved"),
    Option(IMAGES, "--param", "KEY=VALUE", "any other parameter, not checked", as_parameter, repeatable=True),
    Option(ALL, "--base-url", "URL", f"default {DEFAULT_BASE_URL}", str, "", str, DEFAULT_BASE_URL),
    Option(ALL, "--api", "NAME", "openai, azure, runapi, codex (default: by host)", tuple(SERVICES), "", str),
    Option(ALL, "--api-key-env", "NAME", "the variable that holds the key", config=str),
    Option(ALL, "--api-key", "KEY", "the key (visible in ps and shell history)", config=str),
    Option(ALL, "--header", "'NAME: VALUE'", "an extra header; can be repeated", as_header, repeatable=True),
    Option(ALL, "--allow-http", "", "send the key unencrypted to another machine", str, "", bool, False),
    Option(ALL, "--config", "PATH", "read the settings from this file; - means stdin", PATH),
    Option(IMAGES, "--preview", "", "show the picture, in a terminal that can"),
    Option(IMAGES, "--open", "", "open the picture in the system's viewer"),
    Option(ALL, "--json", "", "print the result as one JSON object"),
    Option(ALL, "--quiet", "", "print only warnings, errors and Saved: lines", short="-q"),
    Option(ALL, "--verbose", "", "also show what is sent (keys are hidden)", short="-v"))

# What may stand in a config file, as (default, type of its value). What says where the key is, is no setting.
PICTURE_KEYS = ("output", "format", "size", "quality", "compression", "background", "moderation")
SETTING_KEYS = ("api", "base_url", "model", "timeout", "headers", "proxy", "cacert", "allow_http", "poll_url",
                "history", "jobs", "max_cost", "price_per_image", *PICTURE_KEYS)
CONFIG_KEYS = {**{row.name: (row.default, row.config) for row in OPTIONS if row.config}, "cacert": ("", str),
               "api_key_command": (None, list), "history": (True, bool), "price_per_image": (None, float),
               "headers": ({}, dict), "proxy": ("", str), "poll_url": ("", str)}
STRANGERS = {  # what other image tools call it -> what to write here
    "-c --count --num-images --batch-size": "Use -n.", "--ar --aspect --ratio": "Use --aspect-ratio W:H.",
    "--batch --jobs": "A line of generate --batch FILE can be an edit: give it an image.",
    "-y --force --yes --replace": "Use --overwrite.", "--url --endpoint --api-base": "Use --base-url.",
    "-s -w --width --height --image-size": "Use --size WIDTHxHEIGHT.", "-k --key": "Use --api-key-env NAME.",
    "-p --prompt --text": "The prompt needs no option, only quotes.", "--output-format": "Use --format.",
    "-o --out --outfile --output-file --output-dir --outdir --save --filename": "Use --output PATH.",
    "-i -m --image --mask --input --input-image --input-fidelity": "Images go with edit, see edit --help.",
    "--seed --negative-prompt --steps --cfg --cfg-scale --guidance-scale --sampler --style --strength --hd "
    "--response-format --user": "The API has no such parameter: leave it out, or say it in the prompt."}

# ---- Settings ------------------------------------------------------------------------------------
STANDARD_INPUT, MAX_CONFIG_BYTES = "standard input", 1_000_000  # the former: as the path of a config
AZURE_HOSTS = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")
# A child needs these, whatever they hold: they lead to files, to the network and to trusted certificates.
NEEDED_VARIABLES = r"(?i)(.*_)?(path|home|proxy|ca_bundle|cert_file|cert_dir|tmpdir|temp|tmp|systemroot)"
TYPE_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number",
              float: "a number", type(None): "null"}  # JSON's types as people call them
VARIABLE_NAME = r"[A-Z]{1,12}\d?(_[A-Z]{1,12}\d?)+|[A-Za-z]{1,15}(_[A-Za-z]{1,15}){0,4}"  # unlike a key
# Scheme, host and port, up to the path. User names, blanks and backslashes are read differently elsewhere.
ORIGIN = r"((?i:https?))://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?(?=[/?]|\Z)"
LOOPBACK = r"localhost|\[::1\]|127(\.(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)){3}"  # 127.999.1.1 would be a name
# What people paste behind a base URL: paths of OpenAI's API reference, read 2026-10-08.
API_PATH = r"(?i)(/(chat|completions|responses|models(/[^/]+)?|images|generations|edits|embeddings|audio))+$"

def environment(name: str) -> str:
    """A variable's value; unset and empty are the same."""
    return environ.get(name, "")

def child_environment(secrets: Sequence[str]) -> dict[str, str]:
    """The environment for a child process: no key in it, C messages, no TLS key log. secrets: keys only."""
    dropped = (*KEY_VARIABLES, "SSLKEYLOGFILE")
    return {**{name: value for name, value in environ.items() if re.fullmatch(NEEDED_VARIABLES, name) or (
        name not in dropped and not any(secret == value or (len(secret) >= SHORTEST_KEY and secret in value)
                                        for secret in secrets if len(secret) >= 4))}, "LC_ALL": "C"}

def config_locations() -> list[str]:
    """Where a config file may be, in the order of search; the first one is where --init writes."""
    name, own = "gpt-image-2/config.json", environment("XDG_CONFIG_HOME")  # which has to be absolute
    paths = map(os.path.expanduser, (os.path.join(own, name), os.path.join("~/.config", name),
                                     "~/.gpt-image-2-config.json", "~/.hermes/gpt-image-2-config.json"))
    return [path for path in paths if os.path.isabs(path) and not re.search(CONTROL, whole_characters(path))]

def config_path(named: str) -> str:
    """The full path of the file that --config names; `-` is standard input."""
    return STANDARD_INPUT if named == "-" else os.path.abspath(os.path.expanduser(named)) if named else ""

def read_config(path: str, warnings: list[str]) -> dict[str, Any]:
    """The checked content of a config file."""
    piped = path == STANDARD_INPUT
    try:
        with open(0 if piped else path, "rb", closefd=not piped) as stream:
            status, text = os.fstat(stream.fileno()), stream.read(MAX_CONFIG_BYTES)  # a longer one is cut off
        content = json.loads(text.decode("utf-8-sig"), parse_constant=str)  # NaN is not a number here
        if not isinstance(content, dict):
            raise ValueError(f"it must contain one JSON object, not {TYPE_NAMES[type(content)]}")
        if re.search("[\ud800-\udfff]", json.dumps(content, ensure_ascii=False)):
            raise ValueError("it contains an invalid character (a lone surrogate)")
    except (OSError, ValueError, RecursionError) as error:
        fresh = "" if piped else ", or run: " + own_command(f"config --init --force --config {quote(path)}")
        raise setup_failure(f"cannot read config file {path}: {reason(error)}",
                            f"Fix it{fresh}" if isinstance(error, ValueError) else "") from None
    if os.name == "posix" and not piped:
        check_owner(path, status, {name for name in content if content[name]}, warnings)
    warnings += [f"{path}: unknown setting {quoted(name)} is ignored.{nearest(name, CONFIG_KEYS)}"
                 for name in content if name not in CONFIG_KEYS]
    return {name: checked_value(path, name, value) for name, value in content.items()
            if name in CONFIG_KEYS and value not in (None, "", [])}

def check_owner(path: str, status: os.stat_result, names: set[str], warnings: list[str]) -> None:
    """Refuse a config file that others can change if it decides what runs, where a key goes, who listens."""
    foreign = status.st_uid not in (0, os.getuid())
    ruling = [name for name in ("api_key_command", "base_url", "headers", "proxy", "cacert") if name in names]
    if ruling and (foreign or status.st_mode & 0o002):
        whose = "belongs to another user" if foreign else "can be changed by every user"
        raise setup_failure(f"{path} {whose}, and it sets {', '.join(ruling)}", "Read it. If it is yours: "
                            f"chmod 600 {quote(path)}, or use --config - < {quote(path)}")
    done = "changed" if foreign or status.st_mode & 0o022 else "read"
    if done == "changed" or (status.st_mode & 0o044 and names & {"api_key", "headers", "proxy"}):
        warnings.append(f"{path} can be {done} by other users; fix it with: chmod 600 {quote(path)}")

def checked_value(path: str, name: str, value: Any) -> Any:
    """The value, which has the type of its setting."""
    kind, found = CONFIG_KEYS[name][1], type(value)  # True is not a number, although bool is an int
    items = value if found is list else value.values() if found is dict else ()
    if (found is not kind and (found, kind) != (int, float)) or any(type(item) is not str for item in items):
        wanted = TYPE_NAMES[kind] + " of strings" * (kind in (list, dict))
        raise setup_failure(f"{path}: {name} must be {wanted}, not {TYPE_NAMES[found]}")
    accepts = {"price_per_image": number(0, 1_000_000, float),
               **{row.name: row.accepts for row in OPTIONS if row.config}}.get(name, str)
    words = {"quality": NEWER.qualities, "format": (*NEWEST.formats, "jpg"),
             "size": ("auto", *SIZE_NAMES, "WIDTHxHEIGHT")}.get(name, accepts)
    try:
        read = accepts(str(value)) if callable(accepts) else value
        value = read if isinstance(value, str) else value  # a number stays as it is written
        if isinstance(words, tuple) and value not in words and not (name == "size" and split_size(value)):
            raise ValueError(f"cannot be {quoted(value)}, only {', '.join(words)}")
    except ValueError as fault:
        raise setup_failure(f"{path}: {name} {fault}") from None
    return value

def load_settings(flags: Mapping[str, Any]) -> Settings:
    """--config file > flags > found config file > environment > defaults; each value with its source."""
    warnings: list[str] = []
    explicit = config_path(flags.get("config") or "")
    path = explicit or next(filter(os.path.lexists, config_locations()), "")
    content = read_config(path, warnings) if path else {}
    from_flags, from_file = flag_layer(flags), {name: Setting(value, path) for name, value in content.items()}
    if explicit:
        key = {"api_key", "api_key_env", "api_key_command"}  # any of them replaces all; headers are merged
        overridden = from_file.keys() - {"headers"} | (key if key & from_file.keys() else set())
        warnings += [f"the file of --config takes precedence over {setting.source}"
                     for name, setting in from_flags.items() if name in overridden.difference(PICTURE_KEYS)]
    layers = (from_flags, from_file) if explicit else (from_file, from_flags)  # the last one counts
    api = {**layers[0], **layers[1]}.get("api", Setting("", "default"))
    address = content.get("base_url", "")
    if api.source == "--api" and address and api.value != (content.get("api") or api_of(address)):
        del from_file["base_url"]  # it is another service's
    values = {**default_layer(api.value), **layers[0], **layers[1]}
    base_url, poll_url = values["base_url"], values["poll_url"]
    base_url = base_url._replace(value=checked_base_url(base_url, values["allow_http"].value))
    own_address = environment("GPT_IMAGE2_BASE_URL").rstrip("/")
    if base_url.source == path and not explicit and own_address not in ("", base_url.value):
        warnings.append(f"{path} takes precedence over $GPT_IMAGE2_BASE_URL")
    api = api if api.value else Setting(api_of(base_url.value), "from the host")
    host, polled = host_of(base_url.value), fill_template(poll_url.value, base_url.value, "id")
    if polled and not url_on_host(polled, base_url.value):
        raise setup_failure(f"poll_url must point to {host}, the host of the key (from {poll_url.source})")
    file_host = host_of(address or SERVICES[content.get("api") or "openai"].base_url)  # for its secrets
    keys = key_sources(api.value, layers, file_host, base_url.source, flags.get("dry_run"))
    values.update((name, from_flags[name]) for name in PICTURE_KEYS if name in from_flags)  # a flag wins
    if not may_go(file_host, base_url.value):
        values["price_per_image"] = Setting(None, "default")  # it is another host's
    limits = [layer["max_cost"] for layer in layers if "max_cost" in layer] if explicit else []
    values["max_cost"] = min(limits, key=lambda limit: limit.value, default=values["max_cost"])
    headers = merged_headers(layers, file_host, base_url.value, warnings)
    values.update(api=api, base_url=base_url, headers=headers)
    return Settings({name: values[name] for name in SETTING_KEYS}, tuple(keys), path, tuple(warnings))

def key_sources(api: str, layers: Sequence[Layer], host: str, url_from: str, dry_run: Any) -> list[KeySource]:
    """Every source of the key, the first that counts in front. Keys of flags may go anywhere, those of a file
    to its host, our variable anywhere but where only a vendor's leads, a vendor's to the host beside it."""
    keys = []
    for name, (value, source) in [(name, layer[name]) for layer in reversed(layers)
                                  for name in ("api_key", "api_key_env", "api_key_command") if name in layer]:
        key, by_flag = KeySource(source, host, value), source.startswith("--")
        if name == "api_key_env":
            found = environment(variable_name(value) if by_flag else value)
            shown = f"${value}" if found or re.fullmatch(VARIABLE_NAME, value) else "a variable"
            key = KeySource(f"{shown}, named {'by' if by_flag else 'in'} {source}", host, found)
        elif name == "api_key_command":
            key = KeySource(f"api_key_command in {source}", host, "", tuple(value))
        keys.append(key._replace(host="") if by_flag else key)
    if api == "codex":
        return [] if dry_run else [codex_login()]
    vendor = {"$OPENAI_BASE_URL": "openai", "$RUNAPI_BASE_URL": "runapi"}.get(url_from)
    hosts = {"GPT_IMAGE2_API_KEY": host_of(SERVICES[vendor].base_url) if vendor else "",
             "OPENAI_API_KEY": host_of(environment("OPENAI_BASE_URL") or DEFAULT_BASE_URL),
             "RUNAPI_API_KEY": host_of(environment("RUNAPI_BASE_URL") or SERVICES["runapi"].base_url)}
    variables = filter(environment, SERVICES[api].key_variables)
    keys += [KeySource(f"${name}", hosts[name], environment(name)) for name in variables]
    return keys or (runapi_tool_key() if api == "runapi" else [])

def fill_template(template: str, base: str, task: str) -> str:
    """A poll_url with {base} and {id} filled in."""
    return template.replace("{base}", base.partition("?")[0]).replace("{id}", task)

def api_of(base_url: str) -> str:
    """The protocol that a host speaks. Codex is never chosen automatically."""
    host = "." + host_of(base_url).partition(":")[0]
    return "azure" if host.endswith(AZURE_HOSTS) else "runapi" if host.endswith(".runapi.ai") else "openai"

def flag_layer(flags: Mapping[str, Any]) -> Layer:
    """The settings given on the command line."""
    return {name: Setting(value, "--" + name.replace("_", "-")) for name, value in flags.items()
            if name in CONFIG_KEYS and value not in (None, False, {})}

def default_layer(api: str) -> Layer:
    """What holds by default; the base URL may stand in our own variable or in that of the vendor's tools."""
    row = SERVICES[api or "openai"]
    defaults = {name: Setting(default, "default") for name, (default, *_) in CONFIG_KEYS.items()}
    if environment("OPENCLAW_SHELL"):  # OpenClaw delivers files of its workspace, in which it runs commands
        defaults["output"] = Setting(os.path.basename(DEFAULT_OUTPUT), "$OPENCLAW_SHELL")
    found = (Setting(environment(name), f"${name}") for name in filter(environment, row.address_variables))
    return {**defaults, "base_url": next(found, Setting(row.base_url, "default"))}

def checked_base_url(setting: Setting, allow_http: bool) -> str:
    """The base URL without a trailing slash; anything that could send a key astray is refused."""
    url, question, query = pasted(setting.value).rstrip("/").partition("?")
    url = re.sub("(?i)^https?:", lambda scheme: scheme.group().lower(), url)
    url = re.sub(r"(?<=[^:/])//+", "/", url).rstrip("/")
    cut = re.sub(API_PATH, "", url)  # pasted whole; one word alone may be a relay's folder
    sure = re.search(r"/v\d\w*$|/openai$", cut) or re.search("(?i)/(chat/completions|images/[a-z]+)$", url)
    url = (cut if sure else url) + question + query
    shown = redact(one_line(re.sub(r"(?s)^(.*?//)?.*@", r"\1***@", url).partition("?")[0]), ())
    match = re.fullmatch(ORIGIN + r"(/[^\s\\?#\x00-\x1f\x7f]*)?(\?api-version=[\w.-]+)?", url)
    make = usage_failure if setting.source.startswith("--") else setup_failure  # whose fault it is
    refuse_broken(
        ("://" not in url, f"the base URL {quoted(shown)} must start with https:// (http:// is local)", ""),
        ("@" in url, f"the base URL {shown} contains a user name or password", "Pass the key as a setting."),
        (not match or int(match.group(3) or 443) > 65535, f"the base URL {shown!r} is not of the form "
         "https://HOST[:PORT][/PATH]" + " without a query" * bool(query), ""),
        (url.startswith("http:") and not is_loopback(url) and not allow_http, "refusing to send the key "
         f"over plain http to {shown}", "Use https://, or --allow-http for a server on a network you trust."),
        failure=lambda message, hint: make(f"{message} (from {setting.source})", hint))
    return url

def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return bool((match := re.match(ORIGIN, url)) and re.fullmatch(LOOPBACK, match.group(2), re.IGNORECASE))

def address_fault(url: str, named_by: str) -> str:
    """Why a URL that the server at named_by chose is refused, by its host: only this machine may reach it."""
    match, author = re.match(ORIGIN, url), re.match(ORIGIN, named_by)
    if not match or not author:
        return "is not of the form https://HOST/PATH"
    host, own_host = match.group(2).lower(), author.group(2).lower()
    where = "" if host == own_host else local_place(host)
    harmless = not where or where == local_place(own_host) == "this machine"
    return "" if harmless else f"leads to {where}, which that server must not reach"

def local_place(host: str) -> str:
    """`this machine` or `a link-local address` for a host that is one, in every spelling that curl takes."""
    import ipaddress
    import socket
    host = host.lower().rstrip(".")
    if re.fullmatch(r"(.+\.)?localhost[46]?(\.localdomain[46]?)?|ip6-(localhost|loopback)", host):
        return "this machine"
    try:
        octets = ipaddress.ip_address(host[1:-1]).packed if host.startswith("[") else socket.inet_aton(host)
    except (OSError, ValueError):
        return ""  # a name, or nothing that curl could reach
    if octets[:-4] in (bytes(12), bytes(10) + b"\xff\xff", b"\0\x64\xff\x9b" + bytes(8)):  # IPv4 inside IPv6
        octets = octets[-4:]
    address = ipaddress.ip_address(octets)
    own = address.is_loopback or (len(octets) == 4 and octets[0] == 0)
    return "this machine" if own else "a link-local address" if address.is_link_local else ""

def host_of(url: str) -> str:
    """What a key is bound to: the host in lower case, and its port if that is not the usual one of https."""
    if not (match := re.match(ORIGIN, pasted(url))):
        return "no host"  # equal to no host that a request may go to
    host, port = match.group(2).lower(), match.group(3)
    if match.group(1).lower() == "http":
        return f"http://{host}:{port or 80}"
    return host if port in (None, "443") else f"{host}:{port}"

def merged_headers(layers: Sequence[Layer], host: str, base_url: str, warnings: list[str]) -> Setting:
    """Extra headers of all layers, the last layer winning by name; those of a file stay with its host."""
    given = [setting for layer in layers if (setting := layer.get("headers")) and setting.value]
    sent = [each for each in given if each.source.startswith("--") or may_go(host, base_url)]
    warnings += [f"the headers in {each.source} belong to another host and are not sent"
                 for each in given if each not in sent]
    merged = {name.lower(): (name, value) for each in sent for name, value in each.value.items()}
    if faults := [fault for pair in merged.values() if (fault := header_fault(*pair))]:
        raise setup_failure(faults[0])
    return Setting(dict(merged.values()), ", ".join(each.source for each in sent) or "default")

def header_fault(name: str, value: str) -> str:
    """Why this cannot be an extra header, or an empty text."""
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(CONTROL, value):
        return f"the header {one_line(name)!r} has an illegal name or a control character"
    if name.lower() in ("host", "content-type", "content-length", "transfer-encoding", "expect"):
        return f"the header {name} cannot be set: it follows from the address and from what is sent"
    return ""

def may_go(host: str, base_url: str) -> bool:
    """Whether a secret bound to host may be sent to base_url. Loopback addresses are always allowed."""
    return host in ("", host_of(base_url)) or is_loopback(base_url)

def variable_name(text: str) -> str:
    """The text, which can be a variable's name. If it is a key by mistake, the message does not repeat it."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise usage_failure("--api-key-env takes the name of a variable, not a key")
    return text

def runapi_tool_key() -> list[KeySource]:
    """The key that RunAPI's official tool has stored, if any."""
    path = os.path.join(os.path.expanduser("~/.config"), environment("XDG_CONFIG_HOME"), "runapi/config.json")
    content = read_login(path) if os.path.exists(path) else None
    key = json_path(content, "api_key") or json_path(content, "apiKey")
    base_url = json_path(content, "base_url") or json_path(content, "baseUrl") or SERVICES["runapi"].base_url
    return [KeySource(path, host_of(as_text(base_url)), key)] if isinstance(key, str) and key else []

def read_login(path: str, hint: str = "") -> Any:
    """The JSON that another program keeps its login in."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise Failure("key", f"cannot read {path}: {reason(error)}", hint) from None

def codex_login() -> KeySource:
    """Codex's access token, for chatgpt.com only; not refreshed here: the refresh token works once."""
    folder = environment("CODEX_HOME") or os.path.join(os.path.expanduser("~"), ".codex")
    path = os.path.join(folder, "auth.json")
    hint = ("Run codex once (or codex login), then try again. If Codex keeps its sign-in in a keyring, first "
            f'put cli_auth_credentials_store = "file" into {folder}/config.toml.')
    tokens = json_path(read_login(path, hint), "tokens")
    token, claims = json_path(tokens, "access_token"), None
    if not isinstance(token, str) or not token:
        raise Failure("key", f"there is no ChatGPT sign-in in {path}", hint)
    with suppress(IndexError, ValueError):  # a JSON web token, which is only read, not verified
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))  # more of them do no harm
    claimed = json_path(claims, "https://api.openai.com/auth", "chatgpt_account_id")
    return KeySource(path, "chatgpt.com", token, account=as_text(json_path(tokens, "account_id") or claimed))

def choose_key(settings: Settings) -> KeySource | None:
    """The first key that may go to the configured host; none is needed on this machine."""
    base_url, file, host = settings.base_url.value, settings.config_path, host_of(settings.base_url.value)
    keys = [source for source in settings.keys if source.value or source.command]
    fitting = [source for source in keys if may_go(source.host, base_url)]
    own = [source for source in fitting if source.host == host]  # to this machine any may go
    chosen = next(iter(own if own and fitting[0].host else fitting), None)
    before = settings.keys[:settings.keys.index(chosen)] if chosen else settings.keys
    unset = next((source.source for source in before if source not in keys), "")  # somebody counts on it
    if not unset and (chosen or is_loopback(base_url)):
        return chosen
    if keys and not unset:
        raise Failure("key", f"the key from {keys[0].source} is for {keys[0].host} and is not sent to {host} "
                      f"(from {settings.base_url.source})", "Set GPT_IMAGE2_API_KEY and GPT_IMAGE2_BASE_URL.")
    other = f"name its variable as api_key_env in {file}" if file else "run: " + own_command("config --init")
    raise Failure("key", f"no API key for {host}" + (f": {unset}, is not set" if unset else ""),
                  f"Set {'it' if unset else 'GPT_IMAGE2_API_KEY (agents hide OPENAI_API_KEY)'} or {other}")

class Secrets:
    """What must never be shown, as far as it is known by now."""
    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)
        self.keys: list[str] = []  # those of them that no child's environment and no prompt may hold
        self.paths: list[str] = []  # patterns of paths that are shown whatever they look like

    def add_keys(self, *keys: str) -> None:
        """Add keys or passwords."""
        self.keys += filter(None, keys)
        self.texts += filter(None, keys)

    def clean(self, text: str) -> str:
        """Text fit to be shown: no secret, one line, not endless. Cut last, or half a key could survive."""
        text = text if len(text) <= LONG_STRING else text[:LONG_STRING] + CUT_MARK
        pieces = re.split(f"({'|'.join(self.paths) or '(?!)'})", text)
        pieces[::2] = [redact(piece, self.texts) for piece in pieces[::2]]
        return one_line("".join(pieces), MAX_MESSAGE)

def read_settings(options: Namespace, console: Console) -> Settings:
    """The settings; their warnings are shown, and their secrets known from now on."""
    secrets = console.secrets
    if options.api_key:
        secrets.texts.append(options.api_key)
        console.warn("--api-key shows in ps and shell history; better: --api-key-env NAME, or a config file")
    settings = load_settings({**vars(options), "headers": dict(options.header)})
    secrets.add_keys(*(pasted(source.value) for source in settings.keys))
    parameters = re.findall(r"[?&]([^=&]+)=([^&]+)", settings.poll_url.value)
    for name, value in (*settings.headers.value.items(), *parameters):
        if value.strip() and re.search(SECRET_HEADER, name):
            secrets.add_keys(value, value.split()[-1])  # `Bearer KEY`: the key alone too
        elif re.search(r"\S{16}", value):
            secrets.texts += [value, value.split()[-1]]
    read_by_curl = [value for name, value in environ.items() if name.lower().endswith("_proxy")]
    for proxy in (settings.proxy.value, *read_by_curl):  # a password may be in them
        login = re.sub(r"^\w*:?//", "", proxy.rpartition("@")[0])
        secrets.texts += filter(None, [login])
        secrets.add_keys(login.partition(":")[2])
    for warning in settings.warnings:
        console.warn(warning)
    return settings

def fill_options(options: Namespace, settings: Settings, notes: list[str]) -> None:
    """Put the defaults in place of what was not given. One of a config file that does not fit is left out."""
    missing = [name for name in PICTURE_KEYS if getattr(options, name) is None]
    vars(options).update((name, CONFIG_KEYS[name][0]) for name in missing)
    for name in missing:
        usual, (value, source) = getattr(options, name), settings.values[name]
        shaped = options.mask_exact and name in ("size", "format") or (
            name == "size" and (options.aspect_ratio or options.resolution))
        named = os.path.basename(options.output) != os.path.basename(DEFAULT_OUTPUT)
        if source == "default" or shaped or (name == "format" and named and is_picture_name(options.output)):
            continue  # these flags say it
        is_folder = name == "output" and not is_picture_name(value)  # made or not
        setattr(options, name, os.path.join(value, "") if is_folder else value)
        try:
            plan(options, settings, "a prompt", ["an image"] if options.command == "edit" else [], [])
        except Failure as failure:
            setattr(options, name, usual)
            notes.append(f"{name} {as_text(value)} (from {source}) is left out: {failure.message}")

# ---- Job: what is asked for, checked while it is still free --------------------------------------
IMAGE_NAME = (r"(?is)https?://\S+|file:\S+|data:[^,\s]*,.*|"  # as a prompt it is a mistake
              r"\S+\.(?:png|jpe?g|webp|gif|svg|tiff?|avif|hei[cf]|bmp|psd)")
OTHER_FORMATS = {  # what else people pass, by its first bytes without XML's prolog
    "AVIF": rb".{4}ftyp.{,40}avi[fs]", "HEIC": rb".{4}ftyp(?:he|mif1|msf1)", "BMP": rb"BM.{4}\0{4}",
    "TIFF": rb"II[*+]\0|MM\0[*+]", "GIF": rb"GIF8", "PDF": rb"%PDF-", "JPEG XL": rb"\xff\x0a|\0{3}\x0cJXL ",
    "SVG": rb"\s*<(?:\w+:)?svg[\s>/]", "a web page": rb"\s*<(?:html|head|body|title|meta|script|link)\b"}

def read_words(options: Namespace) -> tuple[str, list[str]]:
    """(prompt, images) of a command's words. Reads files and standard input, without a last line break."""
    words, paths, wanted = list(options.words), [], 0 if options.prompt_file else 1
    with suppress(AttributeError, OSError, ValueError):  # closed, or Windows
        piped = os.fstat(sys.stdin.fileno()) if not words and wanted else os.stat(os.devnull)
        if stat.S_ISFIFO(piped.st_mode) or (stat.S_ISREG(piped.st_mode) and piped.st_size):
            words = ["-"] if select.select([sys.stdin], [], [], 60)[0] else words  # an agent's may stay empty
    if options.command == "edit":  # images come first, as long as a word is left for the prompt
        others = [at for at, word in enumerate(words) if at and not re.fullmatch(IMAGE_NAME, word)
                  and not os.path.isfile(os.path.expanduser(word))]
        first = max(0, min([*others, len(words) - wanted]))
        words, paths = words[first:], words[:first] + options.image
    if words:  # one that is only the name of a file, or a call for help, would be drawn and billed
        path = os.path.expanduser(words[0] if os.path.isfile(words[0]) else re.sub("^@", "", words[0]))
        there, named = os.path.isfile(path), " ".join(map(quote, paths))
        shown = quote(path) if len(path) < MAX_MESSAGE // 3 else "IMAGE"  # a data: URL
        if re.fullmatch(IMAGE_NAME, path) or (there and os.access(path, os.R_OK) and picture_in(path)[0]):
            raise usage_failure(f"{one_line(shown_input(path), 80)} is an image, the prompt is missing",
                                "To change it: " + own_command(f'edit {named or shown} "what to change"'))
        if there or words[0].strip().lower() == "help":
            use = f"{options.command} {named} --prompt-file {shown}" if there else f"{options.command} --help"
            raise usage_failure(f"{one_line(path)} is {'a file' if there else 'a command'}, not a prompt",
                                "Use: " + own_command(" ".join(use.split("  "))))
    refuse_broken((len(words) < wanted, "the prompt is missing", 'Add it in quotes: "a red fox in the snow"'),
        (len(words) > wanted, f"too many arguments: {quoted(shown_input(''.join(words[-1:])))}",
         "Put the whole prompt in quotes."),
        (options.config == "-" and "-" in (options.prompt_file, *words), "both config and prompt are -", ""))
    source = options.prompt_file or ("-" if words[0] == "-" else "")
    if not source:
        return as_bytes(words[0]).decode("utf-8", "surrogateescape"), paths
    if source == "-" and sys.stdin and sys.stdin.isatty():
        print("Type the prompt; end it with Ctrl-D.", file=sys.stderr)
    return re.sub(r"\r?\n\Z", "", read_text(source, "the prompt", MAX_PROMPT * 8)), paths

def refuse_broken(*rules: tuple[Any, str, str], failure: Callable[..., Failure] = usage_failure) -> None:
    """Refuse the command for the first of the rules that is broken: (whether it is, message, hint)."""
    for broken, message, hint in rules:
        if broken:
            raise failure(message, hint)

def plan(options: Namespace, settings: Settings, prompt: str, paths: Sequence[str], notes: list[str]) -> Job:
    """The job that is asked for, checked as far as words and settings decide. Neither reads nor writes."""
    model, image_format = settings.model.value, chosen_format(options)
    possible, runapi = MODELS.get(re.sub(DATED, "", model), NEWEST).formats, settings.api.value == "runapi"
    formats = [each for each in possible if each in settings.service.formats]
    size, shaped = SIZE_NAMES.get(options.size, options.size), options.aspect_ratio or options.resolution
    masks = [f"--{each}" for each in ("mask", "mask_bw", "mask_rect") if getattr(options, each)]
    is_own = size == "input"  # the first image's, which is not read yet
    refuse_broken(
        (not prompt.strip(), "the prompt is empty", ""),
        (re.search("[\ud800-\udfff]", prompt), "the prompt is not valid UTF-8", ""),
        (len(prompt) > MAX_PROMPT, f"the prompt has {len(prompt)} characters; the limit is {MAX_PROMPT}", ""),
        (image_format not in formats, f"{model} does not make {image_format}, only {', '.join(formats)}", ""),
        (options.command == "edit" and not paths, "the image to edit is missing", "Use: edit IMAGE PROMPT"),
        (len(paths) > MAX_IMAGES, f"{len(paths)} images were given; at most {MAX_IMAGES} are allowed", ""),
        (shaped and size != "auto", "use either --size or --aspect-ratio and --resolution, not both", ""),
        (is_own and (options.command == "generate" or runapi), "--size input is for edit, not at RunAPI", ""),
        (size not in ("auto", "input") and not split_size(size), f"{quoted(size)} is not a size: use "
         f"WIDTHxHEIGHT, {', '.join(SIZE_NAMES)} or auto", "For example --size 1536x1024"),
        (len(masks) > 1, f"use one of {' and '.join(masks)}, not several".replace("_", "-"), ""),
        (options.mask_feather and not options.mask_rect, "--mask-feather needs --mask-rect", ""),
        (options.mask_exact and not masks, "--mask-exact needs a mask", "Such as --mask-rect 0,0,50%,50%"),
        (options.mask_exact and (shaped or image_format != "png"), "--mask-exact: PNG of the same shape", ""))
    uploads = []  # not read yet
    mask_path = " ".join(options.mask_rect) or options.mask_bw or options.mask
    for role, path in [("image", path) for path in paths] + [("mask", mask_path)] * bool(masks):
        if not path:
            raise input_failure(f"the name of the {role} is empty: perhaps a variable that is not set")
        origin = ("rectangles" if role == "mask" and options.mask_rect else "url" if re.match(
            "(?i)https?://", path) else "data" if re.match(r"(?i)data:[^,\s]*,", path) else "file")
        if origin == "url" and not re.match(ORIGIN, web_address(path)):
            raise input_failure("an image's URL must look like https://HOST/PATH, without a user name")
        name = "--mask-rect" if origin == "rectangles" else f"{role} {shown_input(path)}"
        uploads.append(Upload(path, origin=origin, name=name))
    values = {**vars(options), "mask": None, **settings.service.values(
        options, "auto" if is_own else size, settings, notes)}
    sent = {wire: values[row.name] for row in OPTIONS if (wire := row.runapi if runapi else row.wire)
            and values[row.name] not in (None, row.default) and (runapi or values[row.name] != "auto")}
    target = checked_target(options.output, image_format, options.overwrite)
    resolution = (options.resolution or "1k") if shaped and not runapi and values["size"] == "auto" else ""
    resolution = "input" if is_own else "exact" if options.mask_exact and size == "auto" else resolution
    form = "rectangles" if options.mask_rect else "bw" if options.mask_bw else "alpha"
    return Job(options.command, model, prompt, tuple(uploads[:len(paths)]), uploads[-1] if masks else None,
               {**sent, **dict(options.param)}, options.n, target, options.keep_partials, resolution, form,
               options.mask_feather or 0, bool(options.mask_exact))  # --param may say what no check knows

def read_inputs(job: Job, settings: Settings, notes: list[str]) -> Job:
    """The job with what its local files hold, checked (the mask too), and the size that follows from it."""
    uploads, md5 = list(job.uploads), settings.service.takes_urls
    for number, upload in enumerate(uploads):
        try:
            uploads[number] = upload if upload.digest else read_upload(upload, md5)
        except (OSError, ValueError) as error:
            raise input_failure(f"cannot read {upload.name}: {reason(error)}") from None
    job = job.with_uploads(uploads)
    first, mask = job.images[0] if job.images else None, job.mask
    if job.resolution and first and first.digest:
        of_shape = size_of_shape if job.resolution in RESOLUTIONS else size_of_input
        size = of_shape(job.model, first.seen.width, first.seen.height, job.resolution, first.name)
        job = job._replace(parameters={"size": size, **job.parameters})
    if mask and first and first.digest and (mask.digest or mask.origin == "rectangles"):
        check_mask(job, first, mask, notes)
    path = first_path(job)
    if job.target.overwrite and os.path.isdir(path):
        raise target_failure(f"{path} is a folder, which --overwrite cannot replace")
    return job

def check_mask(job: Job, first: Upload, mask: Upload, notes: list[str]) -> None:
    """Refuse a mask that does not fit the first image, or opens nothing; and what cannot be kept exactly."""
    hint, form = "A mask is a PNG whose transparent pixels (alpha 0) mark the part to change.", job.mask_form
    turned = "" if first.seen == first.picture else "EXIF turns the first image; save that upright first."
    wanted, found = (f"{each.width}x{each.height}" for each in (first.picture, mask.picture))
    is_file, who, (_, width, height) = form != "rectangles", mask.name, first.picture
    refuse_broken(
        (is_file and mask.picture.format != "png", f"{who} is {mask.picture.format}, it must be PNG", hint),
        (is_file and found != wanted,
         f"{who} is {found}, the first image is {wanted}; both must be the same size", turned),
        (turned and (job.exact or not is_file), f"EXIF turns {first.name}", turned),
        (width * height > 64_000_000, f"{first.name} has too many pixels for a mask", ""),
        (job.exact and first.picture.format != "png", f"--mask-exact needs a PNG; {first.name} is "
         f"{first.picture.format}", f"Convert it: {convert_command(first.path)}"),
        (job.exact and job.parameters.get("size", wanted) != wanted,
         f"--mask-exact needs the size of the image, {wanted}", "Leave --size out."), failure=input_failure)
    try:
        for text in mask.path.split() if not is_file else ():
            left, top, right, bottom = box = rectangle_in(text, width, height)
            inside = max(0, left), max(0, top), min(width, right), min(height, bottom)
            if inside[0] >= inside[2] or inside[1] >= inside[3]:
                raise ValueError(f"{text} covers no pixel of {first.name} ({wanted})")
            if inside != box:
                notes.append(f"--mask-rect {text} reaches beyond {first.name} ({wanted}) and is clipped")
        if is_file and not Png(mask.path).checked().has_alpha and form == "alpha":
            raise input_failure(f"{who} has no alpha channel", f"{hint} White marks it? Use --mask-bw.")
        if not any(0 in row for row in mask_rows(job, width, height)):
            why = {"alpha": "is fully opaque, or half: no pixel has alpha 0", "bw": "has no white pixel"}
            raise input_failure(f"{who} {why.get(form, 'is too small for --mask-feather')}",
                                hint * (form == "alpha"))
        who = first.name
        if job.exact and Png(first.path).checked().depth == 16:
            notes.append(f"{who} has 16 bits a channel; the result will have 8")
    except ValueError as fault:
        raise input_failure(f"{who} {fault}") from None
    if mask.bytes >= SAFE_MASK_BYTES and form == "alpha":
        notes.append(f"{who} is larger than 4 MB; some servers refuse that")

def size_of_input(model: str, width: int, height: int, resolution: str, name: str) -> str:
    """An image's own size, if the model can make it."""
    rules = MODELS.get(re.sub(DATED, "", model), NEWER)
    fault = size_fault(width, height) if rules.sizes == "free" else ""
    near = nearest_size(width, height) if fault else ""
    if isinstance(rules.sizes, tuple) and f"{width}x{height}" not in rules.sizes:
        fault, near = f"{model} makes only {', '.join(rules.sizes)}", size_of_shape(model, width, height)
    if fault:
        raise input_failure(f"{name} is {width}x{height}, which cannot be the result's size: {fault}",
                            f"The nearest is {near}. To scale it: {convert_command(name[6:], near)}")
    return f"{width}x{height}"

def shown_input(path: str) -> str:
    """An input as messages name it: a URL without its query (a login?), a data: URI without its content."""
    return re.sub(r"(?is)\A(https?://[^?#]*|data:[^,;]{,40}).*", r"\1", path)

def read_text(source: str, what: str, most: int) -> str:
    """The text of a file, or of standard input for `-`; more bytes are too many anyway, and left out."""
    try:
        piped = source == "-"
        with open(0 if piped else os.path.expanduser(source), "rb", closefd=not piped) as stream:
            content = stream.read(most)
        return content.decode("utf-8-sig", "ignore" if len(content) == most else "strict")
    except (OSError, UnicodeDecodeError) as error:
        raise usage_failure(f"cannot read {what} from {source}: {reason(error)}") from None

def read_upload(upload: Upload, md5: bool = False) -> Upload:
    """The input with what its file holds. md5: RunAPI's storage checks the transfer with it, no security."""
    import hashlib
    if upload.origin == "data":
        read_input(data_content(upload.path), upload.name, "picture")
    if upload.origin != "file":
        return upload
    who, path = upload.name, upload.path
    uri = re.match(r"(?i)file:(?://(?:localhost)?(?=/))?(?:/(?=[a-z]:))?(?!//)", path)
    if uri and not os.path.lexists(path):
        from urllib.parse import unquote_to_bytes
        path = os.fsdecode(unquote_to_bytes(as_bytes(path[uri.end():])))
    path = os.path.abspath(path if os.path.lexists(path) else os.path.expanduser(path))
    if re.search(UNQUOTABLE, path):
        raise input_failure(f"{one_line(who)} has a control character in its name; curl cannot take it")
    size = os.stat(path).st_size
    refuse_broken(
        (not os.path.isfile(path), f"{who} is {'a folder' if os.path.isdir(path) else 'not a file'}", ""),
        (size == 0, f"{who} is empty", ""),
        (size >= MAX_IMAGE_BYTES, f"{who} has {size // 1000000} MB; it must be smaller than 50 MB",
         "Scale it down or save it as JPEG."), failure=input_failure)
    content = content_of(path)
    picture = read_input(content, who, path)
    checksum = base64.b64encode(hashlib.md5(content).digest()).decode("ascii") if md5 else upload.checksum
    seen = Picture(picture.format, picture.height, picture.width) if is_turned(content) else picture
    return upload._replace(path=path, picture=picture, bytes=len(content), checksum=checksum,
                           digest=hashlib.sha256(content).hexdigest(), seen=seen)

def content_of(path: str) -> bytes:
    """What is in a file, up to the limit for an input."""
    with plain_file(path, follow=True) as stream:
        return stream.read(MAX_IMAGE_BYTES)

def data_content(uri: str) -> bytes:
    """What is in a data: URI."""
    from urllib.parse import unquote_to_bytes
    head, _, text = uri.partition(",")
    content = unquote_to_bytes(as_bytes(text))
    return base64.urlsafe_b64decode(content + b"==") if head.lower().endswith(";base64") else content

def read_input(content: bytes, who: str, name: str) -> Picture:
    """The picture of an input. name: of the file to convert, for the hint."""
    picture = inspect_picture(stream := io.BytesIO(content))
    if picture and picture.format in FORMATS and picture.width * picture.height:
        if not is_whole(stream, picture):
            raise input_failure(f"{who} is incomplete", "Save or download it again.")
        return picture
    head = re.sub(XML_NOISE, b"", content[:HEAD])
    other = next((other for other, mark in OTHER_FORMATS.items() if re.match(b"(?si)" + mark, head)), "")
    found = f" but {other}" if other else " (whatever its name says)"
    hint = "Give its own address." if other == "a web page" else f"Convert it: {convert_command(name)}"
    raise input_failure(f"{who} is not a PNG, JPEG or WebP image{found}", hint if other else "")

def convert_command(name: str, size: str = "") -> str:
    """The command that saves an image's first frame as PNG, perhaps with another size."""
    import shutil
    target, (width, height) = quote(os.path.splitext(name)[0] + "-converted.png"), split_size(size) or (0, 0)
    if sys.platform == "darwin":
        return f"sips -s format png{f' -z {height} {width}' * bool(size)} {quote(name)} --out {target}"
    tool = "magick" if shutil.which("magick") or os.name != "posix" else "convert"  # Windows' is another
    return f"{tool} {quote(name + '[0]')}{f' -resize {quote(size)}!' * bool(size)} {target}"

def openai_values(options: Namespace, size: str, settings: Settings, notes: list[str]) -> dict[str, Any]:
    """The size and format that OpenAI's API gets. Options that contradict each other are refused."""
    model, image_format = settings.model.value, chosen_format(options)
    rules = MODELS.get(re.sub(DATED, "", model))
    if rules is None:
        notes.append(f"unknown model {model}: its size and quality are not checked")
    elif options.quality not in rules.qualities:
        raise usage_failure(f"quality {quoted(options.quality)}: {model} has {', '.join(rules.qualities)}")
    match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", options.aspect_ratio or "")
    refuse_broken(
        (options.partial_images and not options.stream, "--partial-images needs --stream", ""),
        (options.compression is not None and image_format not in ("jpeg", "webp"),
         f"--compression needs --format jpeg or webp: {image_format.upper()} is always lossless", ""),
        (options.background == "transparent" and image_format == "jpeg", "JPEG cannot be transparent", ""),
        (options.input_fidelity and rules is MODELS[DEFAULT_MODEL], f"{model} has no --input-fidelity", ""),
        (options.aspect_ratio not in (None, "auto") and not match,
         f"an --aspect-ratio is like 16:9, not {quoted(options.aspect_ratio or '')}", ""))
    if match or (options.command == "generate" and (options.aspect_ratio or options.resolution)):
        width, height = map(int, match.groups()) if match else (1, 1)
        size = size_of_shape(model, width, height, options.resolution or "1k")
    elif size != "auto":
        edges = split_size(size) or (0, 0)
        if rules and isinstance(rules.sizes, tuple) and size not in rules.sizes:
            raise usage_failure(f"{model} makes only {', '.join(rules.sizes)} or auto, not {size}")
        if rules and rules.sizes == "free" and (problem := size_fault(*edges)):
            raise usage_failure(f"{size} is not supported: {problem}", f"Use --size {nearest_size(*edges)}")
        size = "%dx%d" % edges
    return {"size": size, "format": None if image_format == "png" else image_format}

def size_of_shape(model: str, width: int, height: int, resolution: str = "1k", name: str = "") -> str:
    """The model's size that comes nearest to a shape and a resolution."""
    rules = MODELS.get(re.sub(DATED, "", model))
    if rules and isinstance(rules.sizes, tuple):
        edges = [split_size(size) or (1, 1) for size in rules.sizes]
        return "%dx%d" % min(edges, key=lambda edge: abs(edge[0] / edge[1] - width / height))
    if max(width, height) > MAX_RATIO * min(width, height):
        raise usage_failure(f"--aspect-ratio {width}:{height}: one side is over {MAX_RATIO} times the other")
    return size_of_ratio(width / height, RESOLUTIONS[resolution])

def runapi_shape(options: Namespace, size: str, settings: Settings, notes: list[str]) -> dict[str, Any]:
    """The shape that RunAPI gets. Options that it lacks are refused, not silently ignored."""
    missing = [row.flag for row in OPTIONS if row.runapi is None and (row.wire or row.name[:4] == "mask")
               and getattr(options, row.name) not in (None, [], row.default)]
    ratio, resolution = options.aspect_ratio, options.resolution
    if size != "auto":
        width, height = (max(edge, 1) for edge in split_size(size) or (1, 1))
        shapes = {name: abs(log(width / height / shape)) for name, shape in RUNAPI_RATIOS.items()}
        ratio, edge = min(shapes, key=lambda name: shapes[name]), max(width, height)
        resolution = next((name for name, (low, high) in RUNAPI_EDGES.items() if low <= edge <= high), "")
        if shapes[ratio] > 1e-9 or not resolution:  # a pixel size needs both, exactly
            raise usage_failure(f"RunAPI cannot make {size}",
                                f"Use --aspect-ratio {ratio} --resolution {resolution or '1k'}")
    refuse_broken(
        (missing, f"RunAPI does not support {', '.join(missing)}", "Use another endpoint."),
        (ratio not in (None, "auto", *RUNAPI_RATIOS), f"RunAPI has only {', '.join(RUNAPI_RATIOS)}", ""),
        (resolution in ("2k", "4k") and ratio in (None, "auto"), "RunAPI needs --aspect-ratio for that", ""),
        (ratio == "1:1" and resolution == "4k", "RunAPI makes 1:1 at 2k at most", "Use --resolution 2k."))
    return {"aspect_ratio": ratio, "resolution": resolution}

def chosen_format(options: Namespace) -> str:
    """The format asked for, else the one of the output's suffix, else png."""
    suffix = f".{options.format}" if options.format else os.path.splitext(options.output)[1].lower()
    return next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), "png")

def is_picture_name(path: str) -> bool:
    """Whether a path ends like that of a picture."""
    return os.path.splitext(path)[1].lower() in sum(SUFFIXES.values(), ())

def checked_target(output: str, image_format: str, overwrite: bool) -> Target:
    """Where to save, from -o: a file, or a folder to save in. cat.v2 is a name without a format."""
    home, hint = os.path.expanduser(output), "Give a full path with -o."
    try:
        path = os.path.abspath(home)
    except OSError as error:
        raise target_failure(f"cannot save here: {reason(error)}", hint) from None
    refuse_broken(
        (output == "-", "--output - is not supported: give a file name", ""),
        (re.search(CONTROL, whole_characters(path)), "the output path contains a control character", ""),
        (home.startswith("~") and home == output, f"cannot save in {output}: there is no home folder", hint),
        failure=target_failure)
    if output.endswith(("/", os.sep)):
        path = os.path.join(path, os.path.basename(DEFAULT_OUTPUT))
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name) if is_picture_name(name) else (name, SUFFIXES[image_format][0])
    return Target(folder, stem, suffix, overwrite)

def picture_path(target: Target, number: int, image_format: str) -> str:
    """The path for one picture: number 0, alone, is the bare name. The suffix follows the real format."""
    suffix = target.suffix if target.suffix.lower() in SUFFIXES[image_format] else SUFFIXES[image_format][0]
    return os.path.join(target.folder, target.stem + (f"-{number}" if number else "") + suffix)

def first_path(job: Job) -> str:
    """Where a job's first picture is to go."""
    return picture_path(job.target, int(job.n > 1), job.parameters.get("output_format", "png"))

def taken_path(order: Order) -> str:
    """Where the first picture cannot go, as another file is there; "" if the caller named none."""
    path = first_path(order.job)
    return path if order.is_named and os.path.lexists(path) and not order.job.target.overwrite else ""

def check_folder(target: Target, n: int, size: str, write: bool = False) -> None:
    """Whether pictures can be saved there, before one is paid for. write: make the folder and try it."""
    import tempfile
    hint, folder = "Choose another folder with -o.", target.folder
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        os.stat(os.path.join(folder, ""))  # fails if it is no folder
        if write:
            os.makedirs(target.folder, exist_ok=True)
            tempfile.TemporaryFile(dir=target.folder).close()
        elif not os.access(folder, os.W_OK | os.X_OK):
            raise OSError("Permission denied")
        with suppress(FileNotFoundError):  # a name may be free, but not too long
            os.lstat(picture_path(target, 999, "jpeg"))
        free, needed = free_bytes(folder), room_needed(n, size)
        if free < needed:
            raise OSError(f"{free // 1_000_000} MB are free, {needed // 1_000_000 + 1} MB may be needed")
    except (OSError, ValueError) as error:
        hint += f" {SANDBOX}" if getattr(error, "errno", 0) in (EROFS, EPERM) else ""
        raise target_failure(f"cannot save in {target.folder}: {reason(error)}", hint) from None

def free_bytes(folder: str) -> int:
    """How large a file may become there."""
    import shutil
    free = shutil.disk_usage(folder).free
    with suppress(ImportError):  # Windows
        import resource
        free = min(free, resource.getrlimit(resource.RLIMIT_FSIZE)[0] % 2**64)  # -1: no limit
    return free

def room_needed(n: int, size: str) -> int:
    """Bytes of n pictures: a detailed PNG takes one to two for each pixel."""
    width, height = split_size(size) or (1536, 1024)
    return n * width * height * 2

# ---- Providers: what to send ---------------------------------------------------------------------
def openai(job: Job, settings: Settings, key: KeySource, token: str) -> Provider:
    """The OpenAI Images API and its relatives, Azure too: one POST, which some relays turn into a task."""
    body = {"model": job.model, "prompt": job.prompt, **job.parameters}
    if "/deployments/" in settings.base_url.value:
        del body["model"]  # Azure's older addresses name the deployment in the path and refuse it here
    request = api_request(settings, key.value, "POST", f"/images/{'edits' if job.images else 'generations'}")
    field, other = ("image", "image[]") if len(job.images) == 1 else ("image[]", "image")  # as the SDK does
    texts = [Part(name, item if isinstance(item, str) else json.dumps(item)) for name, item in body.items()]
    files = [Part("mask" if upload is job.mask else field, path=upload.path, bytes=upload.bytes,
                  content_type=f"image/{upload.picture.format}") for upload in job.uploads]
    try:  # text first, as in the official SDK
        response = yield request._replace(form=(*texts, *files)) if files else request._replace(body=body)
    except Failure as failure:  # in 2026 relays refused an edit only because of `image` or `image[]`
        signs = {400: "(Invalid type for|Duplicate parameter:) 'image", 422: r"\bimage\b"}
        sign = signs.get(failure.http_status) if files and failure.kind == "refused" else None
        if not sign or not re.search(sign, failure.server_text):
            raise
        files = [file._replace(name=other) if file.name == field else file for file in files]
        response = yield request._replace(form=(*texts, *files))  # a refused one is not billed
    return (yield from collect_images(request, response, settings, job.n))

def api_request(settings: Settings, key: str, method: str, path: str, *more: tuple[str, str]) -> Request:
    """A request to the configured endpoint, with its key, extra headers and more headers."""
    base, question, query = settings.base_url.value.partition("?")
    name, value = "Authorization", f"Bearer {key}"
    if settings.api.value == "runapi":
        base = re.sub(r"(/api)?(/v1)?$", "", base)  # people set it with /v1 for chat
    elif settings.api.value == "azure":
        name, value = "api-key", key
        classic = "/deployments/" in base
        if not classic and not base.endswith("/v1"):
            base += "/v1" if base.endswith("/openai") else "/openai/v1"
        question, query = "?", query or f"api-version={AZURE_CLASSIC_VERSION if classic else 'preview'}"
    headers = settings.headers.value
    own = [(name, value)] if key and name.lower() not in map(str.lower, headers) else []
    return Request(method, base + path + question + query, (*own, *headers.items(), *more),
                   timeout=settings.timeout.value, proxy=settings.proxy.value, cacert=settings.cacert.value,
                   allow_http=settings.allow_http.value, tasks=bool(settings.poll_url.value))

def collect_images(create: Request, response: Response, settings: Settings, wanted: int,
                   templates: Sequence[str] = ()) -> Provider:
    """The images of a response, once its task has them, or their Failures. templates: the task's URLs."""
    from urllib.parse import quote as escaped
    poll = create._replace(method="GET", body=None, form=(), purpose="poll",
                           timeout=min(create.timeout, POLL_TIMEOUT))
    task, least = task_id(response.document), 0.05  # seconds; it grows: a server may always say "at once"
    urls: list[str] = []  # the most certain first; only on the host that already has the key
    if response.meaning == "pending":
        document, name = response.document, escaped(task, safe="")
        base, data = re.sub(r"/images/\w+$", "", create.url), json_path(document, "data")
        links = [fill_template(settings.poll_url.value, settings.base_url.value, name),
                 response.headers.get("location"), task_field(document, ("status_url",)),
                 json_path(document, "urls", "get"), json_path(data, "urls", "get")]
        usual = [create.url + "/{id}", base + "/tasks/{id}"][::-1 if isinstance(data, list) else 1]
        known = [each.replace("{id}", name) for each in templates or usual] if name.strip(".") else []
        urls = [*filter(None, (url_on_host(as_text(link), create.url) for link in links)), *known]
    while urls and not response.images and (status := task_status(response.document)) not in DONE:
        delay = server_pause(response.headers, "")
        done = task_field(response.document, ("progress", "percent")).rstrip("% ")
        yield Wait(POLL_PAUSE if delay is None else max(delay, least), status, task, done)
        least = min(2 * least, 1.0)
        try:
            response = yield poll._replace(url=urls[0])
        except Failure as failure:
            if failure.http_status == 404 and len(urls) > 1:
                del urls[0]
            elif failure.http_status and failure.http_status != 429 and failure.http_status < 500:
                raise  # anything else says nothing about the task
    url = url_on_host(task_field(response.document, ("response_url",)), create.url)
    if url and not response.images:
        response = yield poll._replace(url=url, purpose="result")
    if not response.images:
        raise Failure("no_image", "the task ended without an image: " + nothing_usable(response))
    images: list[Image | Failure] = list(response.images)
    for index, image in enumerate(response.images[:wanted + SPARE_IMAGES]):  # more are not fetched
        if image.url:
            images[index] = yield from fetch_image(image, response, create, settings)
    return images

def url_on_host(url: str, base: str) -> str:
    """The absolute URL if it leads to base's host, else an empty text: a key never follows it elsewhere."""
    address, origin = web_address(url, base), (re.match(ORIGIN, base) or ["no host"])[0]
    return address if url and address.startswith((origin + "/", origin + "?")) else ""

def fetch_image(image: Image, response: Response, create: Request,
                settings: Settings) -> Generator[Request | Wait, Response, Image | Failure]:
    """The image at a URL, fetched without the key, then with it if the endpoint itself asks for it."""
    try:
        request = download(image.url, settings, base=response.url or create.url)
        try:
            return Image(path=(yield request).path)
        except Failure as failure:
            if failure.http_status not in (401, 403) or not url_on_host(request.url, create.url):
                raise
        return Image(path=(yield request._replace(headers=create.headers)).path)
    except Failure as failure:
        return failure

def web_address(url: str, base: str = "") -> str:
    """A URL, joined to its base, as curl wants it: scheme in lower case, no spaces; "" if it is none."""
    from urllib.parse import urljoin, urlsplit
    with suppress(ValueError):
        if not re.search(r"[\\\x00-\x1f\x7f-\x9f]", url):
            return urlsplit(urljoin(base, url).replace(" ", "%20")).geturl()
    return ""

def download(url: str, settings: Settings, named_by: str = "", base: str = "") -> Request:
    """A request for a file anywhere, without the key. named_by: the URL that named it, else the endpoint."""
    url = checked_address(url, named_by or settings.base_url.value, base)
    return Request("GET", url, purpose="download", timeout=min(DOWNLOAD_TIMEOUT, settings.timeout.value),
        proxy=settings.proxy.value, cacert=settings.cacert.value, allow_http=settings.allow_http.value)

def checked_address(url: str, named_by: str, base: str) -> str:
    """The web address of a result. One that its server must not name is refused for good."""
    address = web_address(url, base)
    if fault := address_fault(address, named_by):
        raise Failure("place", f"the image's address {url} {fault}")
    return address

def codex(job: Job, settings: Settings, key: KeySource, token: str) -> Provider:
    """The images endpoints behind a ChatGPT sign-in, as the Codex command line uses them: JSON, edits too."""
    files = [{"image_url": DataUrl(upload.path, f"data:image/{upload.picture.format};base64,")}
             for upload in job.uploads]
    body = {"model": job.model, "prompt": job.prompt, **job.parameters, **({"mask": files.pop()} if job.mask
            else {}), **({"images": files} if files else {})}
    path = f"/images/{'edits' if job.images else 'generations'}"
    account = [("ChatGPT-Account-ID", key.account)] if key.account else []
    request = api_request(settings, key.value, "POST", path, *account, ("originator", PROGRAM))
    response = yield request._replace(body=body)
    return (yield from collect_images(request, response, settings, job.n))

def runapi(job: Job, settings: Settings, key: KeySource, token: str) -> Provider:
    """RunAPI: upload; then for each image create a task, wait and fetch it. token: the same in every run."""
    root = api_request(settings, "", "", "").url
    urls: list[str] = []
    for image in job.images:
        urls.append((yield from runapi_upload(image, settings, key.value)))
    body = {"prompt": job.prompt, **job.parameters, **({"source_image_urls": urls} if urls else {})}
    action, long = ("edit_image", "image-to-image") if job.images else ("text_to_image", "text-to-image")
    family = re.sub(r"-(sunburst|flare)$", "", re.sub(DATED, "", job.model))
    folder = {"gpt-image-1.5": "gpt_image"}.get(family, re.sub(r"[-.]", "_", family))
    # Two ways to ask for the same, as (path, model): its pages' way, then its SDKs'.
    dialects = [(f"/v1/{action}", f"{job.model}-{long}"), (f"/api/v1/{folder}/{action}", job.model)]
    results: list[Image | Failure] = []
    for take in range(1, job.n + 1):
        try:
            create, response = yield from runapi_create(body, settings, key, f"{token}-{take}", dialects)
            templates = [create.url + "/{id}", root + "/api/v1/tasks/{id}",
                         f"{root}/api/v1/gpt_image_2/{action}/{{id}}"]
            results += yield from collect_images(create, response, settings, 1, templates)
        except Failure as failure:
            if failure.collectable or (take == 1 and failure.kind not in ("task_failed", "moderation")):
                raise
            failure.collectable = failure.retryable  # the same command asks for this one image again
            results.append(failure)
    return results

def runapi_create(body: dict[str, Any], settings: Settings, key: KeySource, token: str,
        dialects: list[tuple[str, str]]) -> Generator[Request | Wait, Response, tuple[Request, Response]]:
    """One task. dialects: the one that works is moved to the front, in place."""
    remaining, renamed, turn = list(dialects), False, count()
    while True:  # ends after two paths, and one other name of the model
        path, model = remaining[0]
        request = api_request(settings, key.value, "POST", path, ("Idempotency-Key", f"{token}-{next(turn)}"))
        request = request._replace(body={"model": model, **body}, tasks=True, free_failures=True,
                                   idempotent=path.startswith("/api/"))  # only SDK paths honour the key
        try:
            response = yield request
            dialects[:] = [remaining[0], *(pair for pair in dialects if pair != remaining[0])]
            return request, response
        except Failure as failure:  # another dialect only where the refusal proves that there is no task
            elsewhere = [pair for pair in remaining if pair[0] != path]
            if failure.http_status in (404, 405) and elsewhere:
                remaining = elsewhere
            elif failure.http_status in (400, 422) and "model" in failure.server_text.lower() and not renamed:
                renamed, remaining[0] = True, (path, next(name for _, name in dialects if name != model))
            else:
                raise

def runapi_upload(image: Upload, settings: Settings, key: str) -> Generator[Request | Wait, Response, str]:
    """The URL of an input image: its own, or one in RunAPI's storage, which keeps it for an hour."""
    if image.origin == "url":
        return image.path
    request = api_request(settings, key, "POST", "/api/v1/files")._replace(purpose="upload")
    suffix = image.picture.format
    prepare = {"filename": f"image.{suffix}", "byte_size": image.bytes, "checksum": image.checksum,
               "content_type": f"image/{suffix}"}
    response = yield request._replace(url=request.url + "/prepare", body=prepare)
    ticket = response.document
    url, headers = as_text(json_path(ticket, "upload_url")), json_path(ticket, "headers")
    pairs = [(name, as_text(item)) for name, item in headers.items()] if isinstance(headers, dict) else []
    bad = any(header_fault(name, text) for name, text in pairs if name.lower() != "content-type")
    if bad or re.search(r"[\s\x00-\x20\x7f-\x9f]", url) or address_fault(url, request.url):
        raise Failure("upload", "the upload reply has no usable address: " + nothing_usable(response))
    yield request._replace(method="PUT", url=url, headers=tuple(pairs), file=image.path)  # without key
    confirm = {"signed_id": json_path(ticket, "signed_id")}
    response = yield request._replace(url=request.url + "/confirm", body=confirm)
    url = task_field(response.document, ("url",))
    if not re.match(r"https?://", url):
        raise Failure("upload", "the upload did not return a URL: " + nothing_usable(response))
    return url

# ---- Transport: how to send ----------------------------------------------------------------------
# The key travels in a nameless file, curl's standard input; prompts and bodies in files of a private folder.
WRITE_OUT = "%{http_code} %{http_connect} %{size_upload} %{time_pretransfer} %{size_download} %{size_request}"
NO_LINK, BINARY = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_BINARY", 0)  # Windows: links need rights
STOPPED, TOO_LARGE = -1, 63
# Curl's exit codes: its man page, read 2026-11-01. For others its own message must do. STOPPED: by a signal.
CURL_KINDS = {**dict.fromkeys((1, 3, 77), "config"), 2: "curl", 23: "disk", 26: "input", 28: "timeout",
              **dict.fromkeys((35, 60), "tls")}  # all others: network
CURL_FAULTS = {  # what curl's own message, which follows, does not say as well
    STOPPED: "curl was stopped", 65: "the request would have to be repeated, which could charge you twice",
    7: "no server is listening there", 8: "the server there does not speak HTTP", 23: "the disk is full",
    28: "could not connect in time", 35: "the TLS handshake failed: a wrong port, or a proxy in between",
    60: "the server's certificate is not trusted", TOO_LARGE: "the reply is larger than allowed"}
EARLY, HOPELESS = (2, 3, 5, 6, 7, 35, 60, 77), (1, 2, 3, 26, 60, 77)  # nothing had left; it will fail again
NO_KEYS = {  # what is not a key -> what is wrong with it; the first that matches counts
    "": "is empty", r".*[\r\n].*": "contains a line break",
    r"[\"'`\u2018-\u201f\u00ab\u00bb].*|.*[\"'`\u2018-\u201f\u00ab\u00bb]": "is in quotes: remove them",
    r".*(\.\.\.|\u2026|\*\*\*).*|<.*>|\[.*\]|\$?\{.*\}|\$?[A-Z0-9]+(_[A-Z0-9]+)*_KEY|%\w+%|(?i:"
    r"([srp]k-)?(proj-)?[x-]*|(my[-_ ]?)?api[-_ ]?key|(.*[-_ ])?(your|insert|paste|replace|change)[-_ ]?"
    r"(.*[-_ ])?((api)?key|token|secret|here|me|this))": "is only a placeholder: put the real key there",
    r"(?i:bearer\s.*)|[A-Z_\d]+_KEY=.*": "starts with another word: leave only the key",
    r".*[^\x21-\x7e].*": "contains a space or a character that is not ASCII"}
# Codex's words, read in 0.169. It sets CODEX_SANDBOX_NETWORK_DISABLED where a command has no network.
SANDBOX = ("In a sandbox, ask for access or run outside it (Codex: sandbox_permissions require_escalated; or "
           'sandbox_mode = "workspace-write", and network_access = true under [sandbox_workspace_write]).')

class Outcome(NamedTuple):
    """What curl reported of one transfer."""
    exit_code: int  # negative: ended by that signal
    status: int  # 0: no answer
    proxy_status: int
    sent: bool  # whether anything of the request left this machine
    message: str

def private_file(path: str, how: int = os.O_TRUNC, content: bytes = b"") -> BinaryIO:
    """A file to write, with content alone by default, that only its owner can read. No link is followed."""
    stream = open(os.open(path, os.O_WRONLY | os.O_CREAT | how | NO_LINK | BINARY, 0o600), "wb")
    stream.write(content)
    return stream

def plain_file(path: str, follow: bool = False) -> BinaryIO:
    """A file to read. Anything else of that name, a link or a pipe, is an OSError and never blocks."""
    stream = open(os.open(path, getattr(os, "O_NONBLOCK", 0) | BINARY | (0 if follow else NO_LINK)), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError("it is not a file")
    return stream

def discard(path: str) -> None:
    """Remove a file if it is there."""
    if os.path.lexists(path):
        os.unlink(path)

def curl_config(request: Request, exchange: Exchange) -> str:
    """The text of curl's -K file, guards first; all options exist in curl 7.68 (checked up to 8.16)."""
    is_local = is_loopback(request.url)
    plain = request.url.startswith("http:") and (request.allow_http or is_local)
    lines = [("globoff", ""), ("silent", ""), ("show-error", ""), ("proto", "=http" if plain else "=https"),
             ("connect-timeout", f"{min(CONNECT_TIMEOUT, request.timeout):g}"), ("write-out", WRITE_OUT),
             ("max-time", f"{request.timeout:.3f}"), ("max-filesize", str(request.most_bytes))]
    lines += [("noproxy", "*")] if is_local else [("proxy", request.proxy)] if request.proxy else []
    lines += [("cacert", os.path.abspath(os.path.expanduser(request.cacert)))] if request.cacert else []
    lines += [("url", request.url), ("dump-header", exchange + ".headers"), ("header", "Expect:"),
              ("no-buffer", ""), ("output", exchange + ".answer"), ("header", "Accept-Encoding: identity")]
    lines += [("header", re.sub(CONTROL, " ", ": ".join(pair))) for pair in request.headers]  # one line each
    if request.body is not None:
        lines += [("header", "Content-Type: application/json"), ("data-binary", "@" + exchange + ".body")]
    elif request.file:
        lines.append(("upload-file", request.file))  # a PUT
    for number, part in enumerate(request.form):  # each text from a file too: curl interprets none
        content = f"<{quote_path(f'{exchange}.field-{number}')}"
        if part.path:
            name = f"{part.name.rstrip('[]')}-{number}.{part.content_type.split('/')[-1]}"
            content = f'@{quote_path(part.path)};filename="{name}";type={part.content_type}'
        lines.append(("form", f"{part.name}={content}"))
    return "".join(f"{name} = {quote_config(value)}\n" if value else f"{name}\n" for name, value in lines)

def start_child(argv: Sequence[str], secrets: Sequence[str], **streams: Any) -> Popen[bytes]:
    """Start a program: no shell, no key in its environment, no Ctrl-C from a terminal."""
    import subprocess
    try:
        return subprocess.Popen(argv, env=child_environment(secrets), start_new_session=True, **streams)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Failure("curl", f"cannot run {quoted(argv[0])}: {reason(error)}",
                      "Install curl 7.68 or newer." if argv[0] == "curl" else "") from None

def child_output(argv: Sequence[str], secrets: Sequence[str], kind: str, timeout: float) -> bytes:
    """A finished program's standard output; a non-zero exit is a failure that names only the program."""
    from subprocess import DEVNULL, PIPE, TimeoutExpired
    with start_child(argv, secrets, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL) as child:
        pipe: Any = child.stdout
        try:
            child.wait(timeout)
            if os.name == "posix":  # a password agent that it started may hold the pipe open
                os.set_blocking(pipe.fileno(), False)
            output: bytes = pipe.read1(BLOCK)
        except TimeoutExpired:
            raise Failure(kind, f"{quoted(argv[0])} took over {timeout:g} s", "") from None
        finally:
            child.kill()
    if child.returncode:
        raise Failure(kind, f"{quoted(argv[0])} failed with exit code {child.returncode}", "")
    return output

def check_curl(secrets: Sequence[str]) -> str:
    """curl's version; older ones ignore or misread what this program writes for them."""
    output = child_output(["curl", "-q", "--version"], secrets, "curl", 10).decode("utf-8", "replace")
    match = re.match(r"curl (\d+)\.(\d+)\S*", output)
    if not match or (int(match.group(1)), int(match.group(2))) < MINIMUM_CURL:
        raise Failure("curl", f"curl 7.68 or newer is needed; this is {one_line(output, 40)}")
    return match.group()

def read_key(source: KeySource, secrets: Sequence[str]) -> str:
    """The key itself, or the first line that its command prints; it is fit for a header."""
    key = source.value
    if source.command:
        try:
            key = child_output(source.command, secrets, "key", 120).split(b"\n")[0].decode("utf-8", "replace")
        except Failure as failure:
            raise Failure("key", f"{source.source}: {failure.message}", "Run it by hand.") from None
    key = pasted(key)
    for pattern, fault in NO_KEYS.items():
        if re.fullmatch(pattern, key, re.DOTALL):
            raise Failure("key", f"the key from {source.source} {fault}", "")
    return key

def start_curl(request: Request, exchange: Exchange, secrets: Sequence[str], end: int) -> Popen[bytes]:
    """Start curl on one request. It writes to files; when it ends, the exchange's lock and `end` close."""
    import tempfile
    texts = {f"field-{number}": part.text for number, part in enumerate(request.form) if not part.path}
    if request.body is not None:
        texts["body"] = json.dumps(request.body, ensure_ascii=False, default=lambda file: (
            file.prefix + base64.b64encode(content_of(file.path)).decode("ascii")))  # of a DataUrl
    for name, text in texts.items():
        private_file(f"{exchange}.{name}", content=text.encode("utf-8")).close()
    if request.purpose == "create":
        private_file(exchange + ".create").close()
    room = b" " * 4096  # for how it ended, on a disk that is full by then
    lock = take_lock(exchange + ".lock", create=True)  # others only test it
    more: dict[str, Any] = {"pass_fds": (end,)} if fcntl else {}
    if lock is not None and lock != NO_LOCKS:
        more = {"pass_fds": (lock, end), "preexec_fn": partial(detach_from_tree, lock)}
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(exchange)) as config, \
                private_file(exchange + ".outcome", content=room) as outcome, \
                private_file(exchange + ".errors", content=room) as errors:
            config.write(as_bytes(curl_config(request, exchange)))
            for file in (outcome, errors, config):
                file.seek(0)  # writes it out; the child shares the offset
            return start_child(["curl", "-q", "-K", "-"], secrets, stdin=config, stdout=outcome,
                               stderr=errors, **more)
    finally:
        release(lock)

def detach_from_tree(lock: int) -> None:
    """Fork and exit before curl starts, so that init adopts it: some agents kill a whole process tree."""
    os.umask(0o077)  # of all that curl writes
    if os.fork():
        os._exit(0)
    os.write(lock, b"%d" % os.getpid())  # in the lock file, true as long as the lock is held

def is_running(child: Popen[bytes] | None, exchange: Exchange) -> bool:
    """Whether curl is still running. child is its short-lived parent; without locks it is curl itself."""
    return (child is not None and child.poll() is None) or exchange_state(exchange) == RUNNING

def stop_curl(child: Popen[bytes] | None, exchange: Exchange) -> None:
    """Stop a transfer that this run started, if it is still running."""
    while is_running(child, exchange):
        if child is not None:
            child.terminate()
        with suppress(OSError, ValueError), plain_file(exchange + ".lock") as stream:
            os.kill(int(stream.read()), signal.SIGTERM)
        time.sleep(0.01)

def read_outcome(exchange: Exchange) -> Outcome:
    """What curl's files say; the exit code is in its error message, so that any process can read it."""
    fields = content_of(exchange + ".outcome").decode("ascii", "replace").split()
    errors = content_of(exchange + ".errors")[:4000].decode("utf-8", "replace").replace("\r\n", "\n")
    exit_code, message = 0 if len(fields) >= 5 else -9, ""
    if match := re.search(r"(?m)^(?:curl: )*\((\d+)\) ?(.*)", errors):  # 7.74: `(23) ...` on a full disk
        exit_code, message = int(match.group(1)), match.group(2)
    elif "curl --help" in errors:  # 8.23 gives no code when it rejects its options
        exit_code, message = 2, errors.partition("\n")[0]
    if len(fields) < 5:  # half a write-out line or none: a usage error, or curl was killed
        return Outcome(exit_code, 0, 0, exit_code not in (2, 26), message)
    # curl 8.14 does not report a full disk. An unpacked answer is hardly ever shorter than it was.
    if not exit_code and os.path.exists(exchange + ".answer") and (
            float(fields[4]) > os.path.getsize(exchange + ".answer") * 1.01 + 100):
        exit_code = 23
    # What was sent has a time and a size; 8.23 gives a time to what was not, 7.x a size to a proxy's CONNECT.
    sent = float(fields[3]) > 0 and (len(fields) < 6 or float(fields[5]) > 0)  # 5: an older version wrote it
    return Outcome(exit_code, int(fields[0]), int(fields[1]), sent or float(fields[2]) > 0, message)

def read_headers(path: str) -> dict[str, str]:
    """The last block of headers, names in lower case; earlier blocks are 100, 103, a proxy's or redirects."""
    text = content_of(path).decode("utf-8", "replace") if os.path.exists(path) else ""
    block = re.split("(?m)^HTTP/.*", text)[-1]
    return {name.strip().lower(): value.strip() for name, value in re.findall("(?m)^(.*?):(.*)", block)}

def transport_failure(outcome: Outcome, request: Request) -> Failure | None:
    """The failure of a transfer that returned no complete response, else None."""
    host, refused = host_of(request.url), outcome.status or outcome.proxy_status
    if refused == 407 or (not outcome.status and refused >= 400):  # without TLS its refusal is the response
        return Failure("network", f"the proxy refused the connection to {host} (HTTP {refused})",
                       "Check the proxy's login and rules for this host.", "no", -1, refused >= 500, "fix")
    if outcome.exit_code == 0:
        return None
    code = 8 if outcome.exit_code == 1 and outcome.sent else max(outcome.exit_code, STOPPED)
    kind, sentence = CURL_KINDS.get(code, "network"), CURL_FAULTS.get(code, "the transfer failed")
    if code == 28 and outcome.sent:
        sentence = f"no reply within {request.timeout:g} s"
    never_sent = not outcome.sent or code in EARLY
    advice = f"there is no network here. {SANDBOX}" if environment("CODEX_SANDBOX_NETWORK_DISABLED") else (
        "check --base-url, the network and the proxy, then run the same command again.")
    hint = f"Nothing was sent: {advice}" if never_sent and kind in ("network", "timeout") else None
    message = f"{host}: {sentence} (curl {outcome.exit_code}): {outcome.message}".rstrip(": ")
    billed = "no" if never_sent or request.rules.is_free else "maybe"
    kept = kind == "disk" and billed == "maybe"
    return Failure(kind, message, hint, billed, -1 if kept or (never_sent and kind != "disk") else NO_ANSWER,
                   never_sent and code not in HOPELESS, "ask" if billed == "maybe" else "",
                   collectable=kept, http_status=outcome.status)

# ---- Journal: unfinished requests survive everything, finished ones are remembered --------------
# requests/FINGERPRINT-RANDOM: a folder for each command, half removed without owner; .lock guards making and
# adopting. made/FINGERPRINT-OUTPUT.json: the receipt of a finished command.
#   request.json  the request without a key; its schema  N.create             the Nth paid step is for images
#   owner         locked by its program; how that ended  N.body, N.field-K    what is sent
#   droppable     --fresh may remove the folder          N.lock               curl's id; locked while it runs
#   input-K       the Kth input image                    N.answer, N.headers  the response (N.answer.*: of it)
#   saved-N       the path of the Nth image              N.outcome, N.errors  how it ended
#   saved-N-exact the same, with --mask-exact            RUN-K.*              as N.*: repeated, not replayed
#   partials      the files of the previews              mask, result         made here; before --mask-exact
# The state of a transfer: UNSENT without N.errors; RUNNING while N.lock is held; ANSWERED when N.outcome or
# N.errors say how curl ended. Else curl was killed: LOST with N.headers, UNSENT if it had not connected.

SCHEMA = 1  # of request.json and of receipts; what has a newer one is left alone
UNSENT, RUNNING, ANSWERED, LOST = "unsent", "running", "answered", "lost"
NO_LOCKS = -1  # instead of a lock's descriptor, where locks do not exist: then nothing counts as running
RECEIPT_TYPES: dict[str, Any] = {"time": (int, float), "prompt": str, "output": str, "saved": list}
SAVED_TYPES = {"path": str, "bytes": int, "mtime_ns": int, "format": str, "width": int, "height": int}

class Folder(NamedTuple):
    """The private folder of one command."""
    path: str
    lock: int | None  # the owner's, held while the program runs; in the journal, None: another program's
    journaled: bool  # in the journal, not a temporary folder
    adopted: bool = False

    def file(self, name: str) -> str:
        """The path of one of its own files."""
        return os.path.join(self.path, name)

    def leave_word(self, word: Mapping[str, Any]) -> None:
        """Say how the command ended, for its twins: they read it with the lock, even in a removed file."""
        with suppress(OSError):
            os.ftruncate(lock := NO_LOCKS if self.lock is None else self.lock, 0)  # an error without locks
            os.pwrite(lock, json.dumps(word).encode(), 0)

    def transfers(self) -> list[tuple[Exchange, str]]:
        """The transfers that ask for images and were begun, each with its state."""
        steps = sorted(int(name[:-7]) for name in os.listdir(self.path) if re.fullmatch(r"\d+\.create", name))
        return [(exchange := self.file(str(step)), exchange_state(exchange)) for step in steps]

    def state(self) -> str:
        """RUNNING while images are being made, else LOST or ANSWERED; UNSENT when nothing was sent."""
        states = [state for _, state in self.transfers()]
        return next((state for state in (RUNNING, LOST, ANSWERED) if state in states), UNSENT)

    def is_paid(self) -> bool:
        """Whether the server accepted a transfer: something may have been bought there."""
        return any(state == ANSWERED and 200 <= read_outcome(exchange).status < 300
                   for exchange, state in self.transfers())

    def answers(self) -> list[str]:
        """The files of responses that may hold an image: not refused, not endless."""
        ended = [(exchange + ".answer", read_outcome(exchange)) for exchange, state in self.transfers()
                 if state in (ANSWERED, LOST)]
        return [path for path, outcome in ended if outcome.status < 300 and outcome.exit_code != TOO_LARGE
                and os.path.exists(path) and os.path.getsize(path)]

    def saved_before(self, note: str) -> str:
        """Where an earlier run saved an image, as its note says, if that file is still an image."""
        with suppress(OSError), plain_file(note) as stream, \
                plain_file(path := os.fsdecode(stream.read()), follow=True) as picture:
            return path if inspect_picture(picture) else ""
        return ""

    def remove(self) -> None:
        """Forget the command. Its owner goes first: a half-removed folder is never taken for a request."""
        import shutil
        with suppress(OSError):
            discard(self.file("owner"))
        shutil.rmtree(self.path, ignore_errors=True)  # make_folder does the rest

def take_lock(path: str, create: bool = False, strict: bool = False) -> int | None:
    """A file's lock, as a descriptor; None if it is held elsewhere or has no file. create: wait for it."""
    if fcntl is None:  # Windows
        if create:
            private_file(path).close()
        return NO_LOCKS if os.path.exists(path) else None
    try:  # the lock lasts until the last process that has the descriptor exits
        handle = os.open(path, os.O_RDWR | NO_LINK | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        return None
    lock = None
    try:
        with suppress(BlockingIOError, FileNotFoundError):  # held by another, or removed since it was opened
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if create else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(handle), os.lstat(path)):
                return handle
    except OSError:  # some network file systems have none
        lock = NO_LOCKS
    os.close(handle)
    if lock == NO_LOCKS and strict:  # two programs could buy the same image
        raise OSError("files cannot be locked there")
    return lock

def release(lock: int | None) -> None:
    """Give a lock back."""
    if lock is not None and lock != NO_LOCKS:
        os.close(lock)

def request_homes() -> list[str]:
    """Where requests may be: XDG's place, to survive a restart; beside temporary files, for a sandbox."""
    bases = filter(os.path.isabs, (environment("XDG_STATE_HOME"), os.path.expanduser("~/.local/state")))
    user = os.getuid() if hasattr(os, "getuid") else None
    return [*(os.path.join(os.path.realpath(base), "gpt-image-2", "requests") for base in [*bases][:1]),
            *(os.path.join(folder, f"gpt-image-2-{user}", "requests") for folder in temp_folders()[:1])]

def temp_folders() -> list[str]:
    """Folders for temporary files. Python's own search leaves a probe file behind if it is killed."""
    folders = [*map(environment, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp"]
    return [folder for folder in map(os.path.realpath, filter(None, folders))
            if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
            and not folder_fault(os.path.join(folder, os.urandom(8).hex()))]  # a name that is not there

def folder_fault(path: str, closed: int = 0o022) -> str:
    """Why others can change or replace a folder, made or not; else "". closed: rights they must not have."""
    if not hasattr(os, "getuid"):  # Windows
        return ""
    user, folder, child = os.getuid(), path, ""
    trusted = {0, user, os.stat("/").st_uid, *((1000,) if hasattr(sys, "getandroidapilevel") else ())}
    while folder != child:
        with suppress(FileNotFoundError):
            status, is_itself = os.lstat(folder), folder == path
            mode, owner = status.st_mode, status.st_uid
            # In a sticky folder nobody replaces what others own; many systems give each user a group alone.
            above = 0 if mode & stat.S_ISVTX else 0o002 if status.st_gid == owner else 0o022
            if not stat.S_ISDIR(mode) or owner not in ({user} if is_itself else trusted):
                return f"{folder} is a link, or belongs to another user"
            if mode & (closed if is_itself else above):
                command = f"chmod {'700' if is_itself else 'go-w'} {quote(folder)}"
                return f"{folder} is open to other users; fix it with: {command} (or set XDG_STATE_HOME)"
        folder, child = os.path.dirname(folder), folder
    return ""

def is_safe(path: str, console: Console, closed: int = 0o022) -> bool:
    """Whether a folder is this user's alone; if not, a warning says why."""
    if fault := folder_fault(path, closed):
        console.warn(f"{path} is not used, nor is anything in it: {fault}")
    return not fault

def make_private(path: str) -> None:
    """Make a folder and any missing parents, closed to others whatever the umask."""
    umask = os.umask(0o077)  # for the parents, which makedirs gives no mode
    try:
        os.makedirs(path, exist_ok=True)
    finally:
        os.umask(umask)

def safe_folder(path: str, console: Console) -> str:
    """A folder of the journal, made if it is missing. OSError when others could tamper with it."""
    if not is_safe(path, console):  # as far as it exists
        raise OSError("others can change it")
    make_private(path)
    return path

def journal_roots(console: Console) -> list[str]:
    """The folders of requests that exist and are this user's."""
    return [path for path in request_homes() if os.path.lexists(path) and is_safe(path, console)]

def read_record(path: str, console: Console) -> dict[str, Any] | None:
    """A request or a receipt, empty if unreadable; None for a newer program's, which is left alone."""
    record: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError, RecursionError), plain_file(path) as stream:
        if not hasattr(os, "getuid") or os.fstat(stream.fileno()).st_uid == os.getuid():
            record = dict(json.load(stream, parse_constant=str))
    if record.get("schema", SCHEMA) == SCHEMA:
        return record
    console.warn(f"{path} was made by a newer version of this program and is left alone")
    return None

def identity_of(job: Job, settings: Settings) -> Identity:
    """What this command shares with its twins only. Files count by content, other inputs by address."""
    import hashlib
    inputs = [upload.digest or upload.path for upload in job.uploads]
    is_exact = job.resolution == "exact"  # what is done here with a picture is no part of what is asked for
    chosen = [item for item in sorted(job.parameters.items()) if not (is_exact and item[0] == "size")]
    mask = bool(job.mask) if job.mask_form == "alpha" else [job.mask_form, job.feather]
    facts = [1, job.command, settings.api.value, settings.base_url.value, job.model, job.prompt, chosen,
             job.n, inputs, mask, *filter(None, ["" if is_exact else job.resolution])]
    return Identity(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24],
                    os.path.join(os.path.realpath(job.target.folder), job.target.stem + job.target.suffix),
                    job.images[0].picture[1:] if job.exact and job.images[0].digest else ())

def requests_in(roots: Iterable[str], console: Console, prefix: str = "") -> list[str]:
    """The folders of unfinished commands; without an owner one is half made or half removed."""
    paths = [os.path.join(root, name) for root in roots for name in sorted(os.listdir(root))
             if name.startswith(prefix) and not name.startswith(".")]
    return [path for path in paths if os.path.lexists(f"{path}/owner") and is_safe(path, console, 0o077)]

def same_requests(root: str, identity: Identity, console: Console) -> tuple[list[str], list[str]]:
    """The folders of what is asked for and not finished: (with the same output, with another)."""
    paths = requests_in([root], console, identity.fingerprint) if fcntl else []
    outputs = {path: record.get("output", identity.output) for path in paths
               if (record := read_record(os.path.join(path, "request.json"), console)) is not None}
    same = [path for path in outputs if outputs[path] == identity.output]
    return same, [path for path in outputs if path not in same]

def made_before(identity: Identity, console: Console) -> Receipt | None:
    """The receipt of the same command, if nothing of it is unfinished."""
    roots = journal_roots(console)
    with suppress(OSError):
        if not any(same_requests(root, identity, console)[0] for root in roots):
            return next(filter(None, (find_receipt(root, identity, console) for root in roots)), None)
    return None

def open_folder(order: Order, console: Console) -> Folder | Receipt:
    """The folder of an unfinished identical command, or a new one; its receipt, if it is finished by now."""
    for root in journal_roots(console):
        is_known = False
        try:
            is_known = any(same_requests(root, order.identity, console))
            if is_known and (found := claim(root, order, console)):
                return found
        except OSError as error:  # better no image than one that is paid for twice
            if is_known and not order.fresh:
                text = f"the same request waits in {root}, which is unusable here: {reason(error)}"
                raise Failure("state", text, "Run it where you started it; --fresh buys a new one.") from None
    problem = ""
    for path in request_homes():
        try:
            if found := claim(safe_folder(path, console), order, console, make=True):
                return found
        except OSError as error:
            problem = problem or reason(error)
    console.warn(f"cannot use the state folder ({problem or 'no home'}): this command is not remembered")
    return temporary_folder()

def temporary_folder() -> Folder:
    """A private folder that no later run will look for."""
    import tempfile
    for folder in [*temp_folders(), os.curdir]:
        with suppress(OSError):
            return Folder(tempfile.mkdtemp(prefix=PROGRAM + "-", dir=folder), None, False)
    raise setup_failure("there is no folder for temporary files", "Set TMPDIR to a writable one. " + SANDBOX)

def claim(root: str, order: Order, console: Console, make: bool = False) -> Folder | Receipt | None:
    """What the same command left unfinished, made, or makes now; else what was left for another place; else,
    and with fresh only that, a new folder. One program at a time, so that of any number of twins one buys."""
    identity, fresh = order.identity, order.fresh
    gate = take_lock(os.path.join(root, ".lock"), create=True, strict=True)
    try:
        same, others = same_requests(root, identity, console)
        for path in same + others if fresh else ():  # what may fail for ever goes
            folder = Folder(path, take_lock(os.path.join(path, "owner"), strict=True), True)
            if folder.lock is not None and os.path.exists(folder.file("droppable")):
                folder.remove()
            release(folder.lock)
        found = None if fresh else take_over(same, identity, console) or find_receipt(root, identity, console)
        if not found and not fresh:
            found = Folder(same[0], None, True) if same else take_over(others, identity, console)
        return found or (make_folder(root, order, console) if make else None)
    finally:
        release(gate)

def take_over(paths: Sequence[str], identity: Identity, console: Console) -> Folder | None:
    """The first of these requests that nobody works on, now this command's; it may be finished to the end."""
    for path in paths:
        folder = Folder(path, take_lock(os.path.join(path, "owner"), strict=True), True, adopted=True)
        if folder.lock is not None:
            os.ftruncate(folder.lock, 0)  # how an earlier run ended
            record = read_record(folder.file("request.json"), console) or {}
            if record.get("output") != identity.output:
                for saved in [name for name in os.listdir(path) if name.startswith("saved-")]:
                    discard(folder.file(saved))  # at another place, where nobody looks for it now
                write_json(folder.file("request.json"), {**record, "output": identity.output})
            return folder
    return None

def make_folder(root: str, order: Order, console: Console) -> Folder:
    """A new folder; the caller has the root's lock, so nobody sees it half made. Broken and old ones go."""
    job, settings, identity = order.job, order.settings, order.identity
    for entry in [each for each in os.scandir(root) if each.is_dir(follow_symlinks=False)]:  # no link
        with suppress(OSError):  # its owner has just removed it
            if entry.name.startswith(".") or not os.path.lexists(os.path.join(entry.path, "owner")):
                Folder(entry.path, None, False).remove()
            elif is_over(entry, KEEP_DAYS) and read_record(f"{entry.path}/request.json", console) is not None:
                folder = Folder(entry.path, take_lock(os.path.join(entry.path, "owner"), strict=True), True)
                if folder.lock is not None and folder.state() != RUNNING:
                    folder.remove()
                release(folder.lock)
    room = room_needed(job.n, as_text(job.parameters.get("size"))) * 3 // 2  # as base64
    room += sum(upload.bytes for upload in job.uploads) * (3 if settings.api.value == "codex" else 1)
    if free_bytes(root) < room:
        raise OSError(f"less than {room // 1_000_000} MB are free there")
    path = os.path.join(root, f"{identity.fingerprint}-{os.urandom(4).hex()}")
    os.mkdir(path, 0o700)
    write_json(os.path.join(path, "request.json"), {"schema": SCHEMA, "version": VERSION, "time": time.time(),
        "command": job.command, "prompt": job.prompt, "model": job.model, "images": len(job.images),
        "output": identity.output, "endpoint": settings.base_url.value, "parameters": job.parameters})
    return Folder(path, take_lock(os.path.join(path, "owner"), create=True, strict=True), True)

def write_json(path: str, record: Mapping[str, Any]) -> None:
    """Write a file of the journal, whole or not at all."""
    part = f"{path}.{os.urandom(4).hex()}"  # of this process alone
    private_file(part, content=json.dumps(record).encode()).close()
    os.replace(part, path)

def find_receipt(root: str, identity: Identity, console: Console) -> Receipt | None:
    """The receipt of a finished command, if its pictures are still there."""
    path = os.path.join(os.path.dirname(root), "made", identity.receipt)
    record = read_receipt(path, console)
    receipt = checked_receipt(record) if record else None
    if record and not receipt:
        console.warn("a picture that this command made before is gone or was changed")
    if receipt and identity.edges and not record.get("exact") and any(
            file.picture[1:] != identity.edges for file in receipt.saved):
        return None  # nothing can be put back into it
    return receipt and receipt._replace(path=path)

def read_receipt(path: str, console: Console) -> dict[str, Any]:
    """The record in a receipt; empty if it is not there or cannot be used."""
    if not os.path.lexists(path) or not is_safe(os.path.dirname(path), console) or (
            record := read_record(path, console)) is None:
        return {}
    saved = record["saved"] if isinstance(record.get("saved"), list) else []
    nodes = [(record, RECEIPT_TYPES), *((item, SAVED_TYPES) for item in saved)]
    if all(isinstance(json_path(node, name), kind) for node, types in nodes for name, kind in types.items()):
        return record
    console.warn(f"{path} is not a receipt that this program can read, and is ignored")
    return {}

def checked_receipt(record: Mapping[str, Any]) -> Receipt | None:
    """The receipt with this record, None if one of its files is gone or was changed."""
    saved = [Saved(item["path"], item["bytes"], Picture(item["format"], item["width"], item["height"]),
                   item["mtime_ns"]) for item in record["saved"]]
    with suppress(OSError, ValueError):
        found = [(each.st_size, each.st_mtime_ns) for each in (os.stat(file.path) for file in saved)]
        if saved and found == [(file.bytes, file.mtime_ns) for file in saved]:
            return Receipt(record, saved)
    return None

def is_over(entry: os.DirEntry[str], days: int) -> bool:
    """Whether it is older than that; many years mean only that a clock was wrong."""
    return days * DAY < time.time() - entry.stat(follow_symlinks=False).st_mtime < 10 * 365 * DAY

def keep_receipt(folder: Folder, identity: Identity, record: Mapping[str, Any], console: Console) -> None:
    """Write a command's receipt; an earlier take's stays, for the history. Once a day, old ones go."""
    made = os.path.join(os.path.dirname(os.path.dirname(folder.path)), "made")
    path, mark = os.path.join(made, identity.receipt), os.path.join(made, ".pruned")
    if (earlier := read_record(path, console)) is None:
        return
    try:
        safe_folder(made, console)
        if earlier and earlier.get("saved") != record["saved"]:  # else from before a kill
            os.rename(path, f"{path[:-5]}-{os.urandom(4).hex()}.json")
        write_json(path, record)
        if not os.path.exists(mark) or abs(time.time() - os.stat(mark).st_mtime) >= DAY:  # there may be many
            with suppress(FileNotFoundError):  # another program removes the same one
                for entry in [each for each in os.scandir(made) if is_over(each, KEEP_RECEIPT_DAYS)]:
                    discard(entry.path)
            private_file(mark).close()
    except OSError as error:
        console.warn(f"{made} cannot be written ({reason(error)}): the same command will buy another picture")

def exchange_state(exchange: Exchange) -> str:
    """The state of a transfer, as the journal's comment says."""
    if not os.path.exists(exchange + ".errors"):
        return UNSENT
    if (lock := take_lock(exchange + ".lock")) is None:
        return RUNNING
    release(lock)
    if any(content_of(f"{exchange}.{name}").strip() for name in ("outcome", "errors")):  # not only blanks
        return ANSWERED
    return LOST if os.path.exists(exchange + ".headers") else UNSENT

def unfinished_commands(console: Console) -> list[dict[str, Any]]:
    """What `config` shows of every unfinished command, oldest first."""
    found = []
    for path in requests_in(journal_roots(console), console):
        with suppress(OSError):  # it was just removed
            if record := read_record(os.path.join(path, "request.json"), console):
                age = max(0, round(time.time() - os.stat(os.path.join(path, "request.json")).st_mtime))
                folder = Folder(path, take_lock(os.path.join(path, "owner")), True)
                found.append({"age_s": age, "state": folder.state(), "at_work": folder.lock is None,
                              **told_request(path, record)})
                release(folder.lock)
    return sorted(found, key=lambda each: -each["age_s"])

def told_request(path: str, record: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a request: its id, where its picture goes, and its first words."""
    return {"id": path[-8:], "output": as_text(record.get("output")),
            "prompt": one_line(as_text(record.get("prompt")), 60)}

def signal_exit_code(stop: KeyboardInterrupt) -> int:
    """128 plus the number of the signal."""
    return 128 + int(stop.args[0] if stop.args else 2)

def stop_failure(stop: KeyboardInterrupt, folder: Folder) -> Failure:
    """What a signal leaves behind: something to collect, or nothing."""
    code, state = signal_exit_code(stop), folder.state()
    cause = {INTERRUPTED: "interrupted", UNREAD: "nobody reads the result"}.get(code, "terminated")
    if state == RUNNING or folder.is_paid():
        effect = "the image is still being made" if state == RUNNING else "the server's reply is kept"
        hint = None if code != INTERRUPTED else (  # a person may have changed their mind
            "Run the same command again to get it at no further cost, or give it up with: "
            + own_command(f"config --forget {folder.path[-8:]}"))
        return Failure("stopped", f"{cause}; {effect}", hint, exit_code=code, collectable=True)
    if state == LOST:
        return Failure("interrupted", f"{cause}; the request was stopped", None, "maybe", code, None, "ask")
    return Failure("interrupted", f"{cause}; nothing was bought", exit_code=code)

# ---- Driver: feed the provider -------------------------------------------------------------------
class Run(NamedTuple):
    """What every step of one command needs."""
    console: Console
    result: Result
    deadline: float = float("inf")  # time.monotonic() after which nothing new begins
    typical: str = ""
    watch: Callable[[Exchange], None] = lambda exchange: None  # looks at a response while it grows
    collectable: bool = False  # whether the same command can collect what this one leaves
    calm: Any = None  # of a batch: one number that its processes share, the time until which none may send

late_failure = partial(Failure, "timeout", collectable=True,  # --timeout ends while something is under way
                       hint="Run the same command again to keep waiting at no cost.")

def run_provider(provider: Provider, folder: Folder, run: Run) -> list[Image | Failure]:
    """Send each Request that the provider yields, hand it the Response, and return its Images."""
    paid_steps, response = count(1), None  # those are numbered, so that a replay finds their responses
    run_name = os.urandom(4).hex()  # a killed run's curl may still be about to open its files
    try:
        item = next(provider)
        while True:
            try:
                if isinstance(item, Wait) and time.monotonic() < run.deadline:  # so 100 % is not true yet
                    run.console.percent = int(item.done) if re.fullmatch(r"\d\d?", item.done) else 0
                    rest(min(item.seconds, run.deadline - time.monotonic()), run, item.status)
                elif isinstance(item, Wait):  # the next run goes on
                    raise late_failure(f"task {item.task} is still {item.status or 'busy'} after --timeout")
                else:
                    place = f"{run_name}-{zlib.crc32(as_bytes(item.url))}"  # polling again needs no new files
                    name = place if item.rules.repeatable else str(next(paid_steps))
                    response = send_with_retries(item, folder.file(name), run)
            except Failure as failure:
                item = provider.throw(failure)
            else:
                item = provider.send(response)  # type: ignore[arg-type]  # nobody reads what a Wait returns
    except StopIteration as finished:
        return list(finished.value)

def send_with_retries(request: Request, exchange: Exchange, run: Run) -> Response:
    """Send one request until there is a usable Response; everything else is a Failure."""
    attempts = count(1)
    while True:
        if run.calm and request.purpose == "create":
            rest(run.calm[0] - time.monotonic(), run)
        state = exchange_state(exchange)  # an earlier run may have sent it
        harmless = request.idempotent or request.purpose != "create"  # sending it again makes nothing twice
        if state == UNSENT or request.rules.repeatable or (state == LOST and harmless):
            try:
                send(request, exchange, run)
            except Failure as fault:  # curl did not even start; what is made already can still be fetched
                raise afterwards_failure(request, fault) from None
        elif state == RUNNING:
            run.console.note("the request is still running; waiting for it")
            wait_for(lambda: exchange_state(exchange) != RUNNING, exchange, run)
        outcome = read_outcome(exchange)
        response = read_response(request, exchange, outcome)
        if not request.rules.is_file:
            asked = Folder(os.path.dirname(exchange), None, False).transfers()
            started = asked[0][0] if request.rules.repeatable and asked else exchange  # a task is older
            took = os.stat(exchange + ".outcome").st_mtime - os.stat(started + ".lock").st_mtime
            run.result.facts.update(http_status=response.status or None, elapsed_s=round(max(0.0, took), 1),
                                    request_id=response.headers.get("x-request-id"))
        run.console.note(f"HTTP {response.status}, {response.headers.get('x-request-id', '-')}", detail=True)
        failure = failure_of(request, outcome, response)
        if failure is None:
            tell_extras(request, outcome, response, run)
            return response
        is_dead = outcome.exit_code < 0 and not os.path.exists(exchange + ".headers")  # before it connected
        if (failure.kind == "curl" or is_dead) and not request.rules.cannot:
            check_curl(run.console.secrets.keys)  # is it too old, or none?
        delay = retry_pause(request, failure, response.headers, next(attempts))
        if delay is None or time.monotonic() + delay > run.deadline:
            late = f"; the next try would be in {delay:.0f} s, after --timeout has run out" if delay else ""
            failure.message += late
            raise failure
        run.console.note(f"{failure.message}; trying again in {delay:.1f} s")
        if run.calm and failure.kind == "rate_limit":
            run.calm[0] = max(run.calm[0], time.monotonic() + delay)
        forget_exchange(exchange)
        rest(delay, run)

def tell_extras(request: Request, outcome: Outcome, response: Response, run: Run) -> None:
    """Report what a usable response says besides its images."""
    if response.broken or outcome.exit_code:
        run.result.is_cut_off = True
        run.console.warn(f"the reply was cut off (curl {outcome.exit_code}) after what is saved")
    if request.rules.is_file:
        return
    if task_status(response.document) not in WAITING:  # or each poll of a task would be added
        document, flat = response.document, run.result.flat
        nodes = (document, json_path(document, "data"), inner_json(json_path(document, "response", "body")))
        usage = next((node["usage"] for node in nodes if isinstance(json_path(node, "usage"), dict)), None)
        dollars = json_path(usage, "cost") if flat is None else flat * len(response.images)
        if type(dollars) not in (int, float):  # else its token counts at OpenAI's list price
            inputs = json_path(usage, "input_tokens_details")
            tokens = {"text": json_path(inputs, "text_tokens"), "image": json_path(inputs, "image_tokens"),
                      "output": json_path(usage, "output_tokens")}
            prices = [DOLLARS_PER_TOKEN[key] * each for key, each in tokens.items() if isinstance(each, int)]
            dollars = round(sum(prices), 4) if len(prices) == len(tokens) else None
        if usage is not None:
            run.console.note(f"usage: {as_text(usage)}", detail=True)
            run.result.facts.update(usage=usage, cost_usd=dollars)
        if dollars is not None:  # RunAPI bills each of several tasks
            run.result.dollars += dollars
            run.result.facts["cost_usd"] = cost = round(run.result.dollars, 4)
            run.console.note(f"cost: about ${cost:.3f}", run.result.facts["source"] == "collected")
    if response.stray:
        run.console.warn(f"the image was under an unknown name: {as_text(response.document)}")
    if response.error:
        run.console.warn(f"the server also says: {response.error.message or response.error.code}")

def wait_for_twin(twin: Folder, run: Run) -> Receipt | None:
    """Wait for the program that works on the same command: its receipt or Failure; None if it died."""
    run.console.note("the same command is at work elsewhere; waiting for its picture (--fresh buys another)")
    word: dict[str, Any] = {}
    try:
        with open(os.open(twin.file("owner"), os.O_RDWR | NO_LINK), "rb") as owner:  # readable when removed
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > run.deadline:
                    raise late_failure("the same command is still at work elsewhere after --timeout")
                rest(0.1, run)
            with suppress(ValueError, TypeError):  # it was killed before it could say how it ended
                word = dict(json.load(owner))
    except FileNotFoundError:
        rest(0.1, run)
    with suppress(KeyError, TypeError):  # there is none; or a newer program's is of another form
        raise Failure(**word["failure"])
    return checked_receipt(word["made"]) if "made" in word else None

def rest(seconds: float, run: Run, status: str = "", end: int = -1) -> None:
    """Sleep in small steps, with signs of life, until end can be read. All waiting for a server is here."""
    ends = time.monotonic() + seconds
    while (left := min(0.5, ends - time.monotonic())) > 0:
        if os.name != "posix":  # select knows only sockets there
            time.sleep(left)
        elif select.select([end] if end >= 0 else [], [], [], left)[0]:
            return
        run.console.progress(run.typical, status)
        if run.collectable and run.console.is_unread():  # nobody reads the result; the transfer continues
            raise KeyboardInterrupt(signal.SIGPIPE)

def failure_of(request: Request, outcome: Outcome, response: Response) -> Failure | None:
    """What is wrong with a response, None if it is usable."""
    is_conclusive = response.error is not None  # all that matters has come, although its transfer failed
    if response.status < 400 or request.rules.is_file:  # 0: curl was killed before it could report
        is_conclusive = response.status in (0, 200) and bool(response.images or response.meaning == "images")
    failure = None if is_conclusive and outcome.status != 407 else transport_failure(outcome, request)
    if failure is None and response.status and response.meaning in ("error", "nothing"):
        failure = answer_failure(request, response)
        if request.purpose == "input":  # its text may be another service's secret
            failure.message = f"HTTP {response.status} from {host_of(request.url)}"
    if failure is None and response.meaning == "broken":
        failure = Failure("broken_image", "the reply is not a complete image", http_status=response.status)
    return afterwards_failure(request, failure) if failure else None

def afterwards_failure(request: Request, failure: Failure) -> Failure:
    """The failure of a step after payment, which the same command can continue; others stay as they are."""
    is_over = failure.kind in ("task_failed", "moderation") and not request.rules.is_file
    if not request.rules.cannot or is_over or failure.kind == "place":
        return failure
    hint = "Run the same command again to continue at no cost (--fresh abandons this image)."
    if request.url.startswith("http:") and failure.kind == "config":
        hint = "The address is not encrypted. Run the same command with --allow-http to fetch it at no cost."
    return Failure(request.purpose, f"{request.rules.cannot} from {request.url}: {failure.message}", hint,
                   retryable=failure.retryable, collectable=True, http_status=failure.http_status,
                   code=failure.code, request_id=failure.request_id)

def retry_pause(request: Request, failure: Failure, headers: Mapping[str, str], attempt: int) -> float | None:
    """Seconds until the same request may be sent again, None if it must not be; attempt counts from 1."""
    rules, status = request.rules, failure.http_status
    if request.purpose == "input":
        can_help = failure.retryable or status >= 500
    elif rules.repeatable:
        can_help = failure.kind == request.purpose and status not in rules.final
    else:  # it must not buy anything twice
        limit = re.search(r"Limit (\d{1,18}), Used \d+, Requested (\d{1,18})", failure.server_text)
        too_much = limit and int(limit[2]) > int(limit[1])  # it is more than the limit ever allows at once
        can_help = not too_much and (failure.retryable or (request.idempotent and failure.billed == "maybe"))
    is_limited = failure.retryable and status and not rules.repeatable
    if not can_help or attempt >= (RATE_LIMIT_TRIES if is_limited else TRIES):
        return None
    delay = server_pause(headers, "" if rules.repeatable else failure.server_text)
    first = 2 * NETWORK_PAUSE if rules.repeatable else RATE_LIMIT_PAUSE if status else NETWORK_PAUSE
    return first * 2.0 ** (attempt - 1) if delay is None else delay

# A pause in words: 20s, 7h12m0s, 51.84 seconds, 1 hour and 5 minutes; and what stands before it.
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
AMOUNT = r"(\d+(?:\.\d+)?)\s{0,3}(ms|[smhd])(?:ec(?:ond)?s?|in(?:ute)?s?|(?:ou)?rs?|ays?)?(?![a-z])"
DURATION = rf"((?:{AMOUNT}(?:,?\s{{1,3}}(?:and\s{{1,3}})?)?)+)"
PAUSE_WORDS = (r"\b(?:again|retry(?:delay)?|wait|cool.?down)\W{1,5}(?:[a-z]{1,9}\W{1,3}){0,3}?" + DURATION,
               r"(?:\bin|after)\W{1,4}" + DURATION)

def server_pause(headers: Mapping[str, str], message: str) -> float | None:
    """The pause that a server asks for, in seconds: in two headers, or in words of its message."""
    text = headers.get("retry-after", "")
    places = (f"in {headers.get('retry-after-ms')}ms", f"in {text}" if text else message, f"in {text}s")
    for words, place in ((words, place) for place in places for words in PAUSE_WORDS):
        if match := re.search(words, place, re.IGNORECASE):
            parts = re.findall(AMOUNT, match.group(1), re.IGNORECASE)
            return sum(float(number) * UNITS[unit.lower()] for number, unit in parts)
    from email.utils import mktime_tz, parsedate_tz
    with suppress(ValueError, OverflowError, TypeError, IndexError):  # which one depends on Python's version
        return max(0.0, mktime_tz(parsedate_tz(text)) - time.time())  # type: ignore[arg-type]
    return None

def forget_exchange(exchange: Exchange) -> None:
    """Remove what one try left, so that a stale response is not mistaken for the next try's."""
    for name in ("errors", "outcome", "headers", "answer", "lock"):
        discard(f"{exchange}.{name}")

def send(request: Request, exchange: Exchange, run: Run) -> None:
    """Send one request; the redirects of a file are followed here, and each address is checked first."""
    for redirects_left in range(MAX_REDIRECTS, -1, -1):
        run_curl(request, exchange, run)
        location = read_headers(exchange + ".headers").get("location", "")
        moved = request.rules.is_file and location and 300 <= read_outcome(exchange).status < 400
        if not moved or request.headers or not redirects_left:
            return
        request = request._replace(url=checked_address(location, request.url, request.url))

def run_curl(request: Request, exchange: Exchange, run: Run) -> None:
    """Run curl on one request and wait for its end. When this program is stopped, a paid request goes on."""
    texts = [f"{part.name}: {part.text or part.content_type}" for part in request.form]
    body = json.dumps(request.body, ensure_ascii=False, default=lambda file: LONG_TEXT)  # of a DataUrl
    headers = [f"  {name}: ***" for name, _ in request.headers]
    for line in (f"{request.method} {request.url}", *headers, *["  " + body] * bool(request.body), *texts):
        run.console.note(line, detail=True)
    forget_exchange(exchange)
    answer, child = exchange + ".answer", None
    reader, writer = os.pipe()  # curl inherits its other end, so that its end wakes this program
    try:
        if request.purpose == "create":
            run.result.facts["source"] = "bought"
        with open(writer, "wb"):  # and closed here
            child = start_curl(request, exchange, run.console.secrets.keys, writer)
        # Too much: curl before 8.4 checks only what a Content-Length announces.
        wait_for(lambda: not is_running(child, exchange) or (
            os.path.exists(answer) and os.path.getsize(answer) > request.most_bytes), exchange, run, reader)
        run.watch(exchange)  # what arrived since the last look
        if is_running(child, exchange):
            stop_curl(child, exchange)
            private_file(exchange + ".errors", content=b"curl: (%d) stopped\n" % TOO_LARGE).close()
    except KeyboardInterrupt:
        if request.purpose != "create" or not run.collectable:
            stop_curl(child, exchange)
        raise
    except OSError as error:
        raise setup_failure(f"cannot write {exchange}: {reason(error)}", "Make room there.") from None
    finally:
        os.close(reader)

def wait_for(done: Callable[[], bool], exchange: Exchange, run: Run, end: int = -1) -> None:
    """Wait for the end of a transfer, with signs of life. end: what can be read then, if it is known."""
    while not done():
        with suppress(OSError):
            run.console.received = os.path.getsize(exchange + ".answer")
        rest(0.1 if end < 0 else 0.5, run, end=end)
        run.watch(exchange)

# ---- Reading answers: a file -> images or a Failure ----------------------------------------------
def read_response(request: Request, exchange: Exchange, outcome: Outcome) -> Response:
    """The response as data, with what it means; its body stays in the file."""
    path = exchange + ".answer"
    try:
        private_file(path, 0).close()  # curl makes it only with the first byte
        unpack_file(path, request.most_bytes)
        headers, document = read_headers(exchange + ".headers"), read_document(path)
        return with_meaning(request, Response(path, outcome.status, headers, *document, request.url))
    except OSError as error:
        kind, folder = "config" if request.rules.is_free else "disk", os.path.dirname(path)
        raise Failure(kind, f"cannot write {folder}: {reason(error)}", collectable=kind == "disk") from None

def with_meaning(request: Request, response: Response) -> Response:
    """The response with what it means; nothing else judges it. broken: a file that is not a whole image."""
    is_good, document, purpose = 200 <= response.status < 300, response.document, request.purpose
    response = response._replace(error=server_error(document))
    if request.rules.is_file:
        is_image = is_good and (purpose == "input" or picture_in(response.path)[1])
        return response._replace(meaning="images" if is_image else "broken" if is_good else "error")
    images, stray = images_in(document)
    beside = {name: json_path(document, name) for name in ("b64_json", "data", "images", "outputs")}
    task = task_id(document) or (response.status == 202 and response.headers.get("location"))
    meanings = {  # the first that holds counts; where images stand beside an error, it is only a warning
        "error": not is_good or (response.error and not find_images(beside)), "images": images,
        "pending": task and (response.status == 202 or task_status(document) in WAITING or request.tasks),
        "linked": task_field(document, ("response_url",)),  # and accepted: this step needs no image
        "accepted": purpose != "create" and (document is not None or request.file or purpose == "poll")}
    meaning = next((name for name, holds in meanings.items() if holds), "nothing")
    return response._replace(images=tuple(images), stray=stray, meaning=meaning)

def unpack_file(path: str, limit: int) -> None:
    """Unpack a compressed body, whatever its headers say; one that unpacks to far too much stays as it is."""
    with open(path, "rb") as packed:
        size = os.fstat(packed.fileno()).st_size
        if not re.match(rb"\x1f\x8b|\x78[\x01\x5e\x9c\xda]", packed.read(2)):
            return  # neither gzip nor deflate, which 32 + 15 tells apart
        room = min(limit, MAX_UNPACKED * size + BLOCK)
        with private_file(path + ".plain") as plain:
            pieces = unpacked((block for _, block in file_blocks(packed, 0, size)), 47)
            fits = all((room := room - plain.write(piece)) >= 0 for piece in pieces)
    if fits:
        os.replace(path + ".plain", path)

def read_document(path: str) -> tuple[Any, str, bool]:
    """(JSON with long strings as Spans, "", whether it broke off), or (None, the first characters, False)."""
    with open(path, "rb") as stream:
        if inspect_picture(stream):
            return {"data": [Image(path=path)]}, "", False  # some servers answer with the image itself
        stream.seek(0)
        while (start := stream.read(HEAD)).isspace():
            pass  # blanks that a patient gateway sends
        text = start.decode("utf-8", "replace") + (CUT_MARK if len(start) == HEAD else "")
        sign = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if not re.match(READABLE, start) or sign == b"<":
            return None, text, False
        everything = [(0, os.fstat(stream.fileno()).st_size)]
        if sign in (b"{", b"[") and (document := parse_json(stream, everything)) is not None:
            return document, "", False
        document, is_cut_off = event_document(stream)
        if document["events"] or sign not in (b"{", b"["):
            return document, text, is_cut_off
        document = parse_json(stream, everything, broken=True)
        return (document, "", True) if images_in(document)[0] else (None, text, False)

def parse_json(stream: BinaryIO, ranges: Sequence[tuple[int, int]], broken: bool = False) -> Any:
    """The JSON in ranges of a file, long strings as Spans, else None. broken: it may break off, or be odd."""
    mark = os.urandom(8).hex()  # no server can write a Span into its answer
    def revive(item: dict[str, Any]) -> Any:
        if mark not in item:
            return item
        begin, end = item[mark]
        if broken and end == ranges[-1][1]:  # whole images alone are left of it, as files
            starts = list(occurrences(stream, b"data:image", begin, end))[:MAX_MEMBERS] or [begin]
            images = [Image(path=f"{stream.name}.picture-{start}") for start in starts]
            for start, image in zip(starts, images):
                with private_file(image.path) as sink, suppress(Failure):  # it may end inside a group of four
                    copy_image(Image(base64=Span(stream.name, start, end)), sink)
            return [image for image in images if picture_in(image.path)[1]]
        stream.seek(begin)
        span = Span(stream.name, begin, end, stream.read(min(HEAD, end - begin)).decode("latin-1"))
        links = () if span.is_image() else occurrences(stream, b"data:image", begin, end)
        return span._replace(links=tuple(links)[:MAX_MEMBERS])
    with suppress(ValueError, RecursionError):
        text = json_skeleton(chain(*(file_blocks(stream, *each) for each in ranges)), mark, broken)
        if not broken:
            return load_json(text, revive)
        string = rb'"[^"\\]*(?:\\.[^"\\]*)*"|\{"%s":\[\d+,\d+\]\}' % mark.encode()  # or a long one's place
        closing, last = bytearray(), 0  # what would close it; where its last whole member ends
        for token in re.finditer(string + rb"|[][{},]", text, re.DOTALL):
            sign = token.group()
            closing += {b"{": b"}", b"[": b"]"}.get(sign, b"")
            if sign in (b"}", b"]"):
                del closing[-1:]
            if len(sign) == 1:
                last = token.start() if sign == b"," else token.end()
            if not closing:
                break
        for closed in (text + closing[::-1], text[:last] + closing[::-1]):
            with suppress(ValueError):
                return load_json(closed, revive)
        if members := re.findall(rb'("[^"\\]{1,40}")\s*:\s*(' + string + b")", text, re.DOTALL):
            return {"data": [load_json(b"{%s:%s}" % pair, revive) for pair in members]}
    return None

def load_json(text: bytes, revive: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """A stranger's JSON made harmless: no half characters, no odd or endless numbers, no endless depth."""
    return tidy(json.loads(text.decode("utf-8-sig", "replace"), strict=False, object_hook=revive,
                           parse_float=lambda digits: None if float(digits) in (inf, -inf) else float(digits),
                           parse_int=lambda digits: int(digits[:40]), parse_constant=lambda name: None))

def tidy(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The value without half characters, which no file and no terminal accepts, and cut off at this depth."""
    if isinstance(value, dict):
        return {tidy(name): tidy(item, depth - 1) for name, item in value.items()} if depth else None
    if isinstance(value, list):
        return [tidy(item, depth - 1) for item in value] if depth else None
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value

def file_blocks(stream: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a range, a block at a time; others may move the file's position in between."""
    for start in range(begin, end, BLOCK):
        stream.seek(start)
        yield start, stream.read(min(BLOCK, end - start))

def occurrences(stream: BinaryIO, mark: bytes, begin: int, end: int) -> Iterator[int]:
    """The positions of the mark in a range of a file."""
    tail = b""
    for offset, block in file_blocks(stream, begin, end):
        text, base = tail + block, offset - len(tail)
        yield from (base + found.start() for found in re.finditer(re.escape(mark), text))
        tail = text[max(0, len(text) + 1 - len(mark)):]

def json_skeleton(blocks: Iterable[tuple[int, bytes]], mark: str, broken: bool = False) -> bytes:
    """JSON where {mark: [start, end]} stands for each string over 64 KB; broken: for an open last one too."""
    skeleton, opened, kept = bytearray(), -1, 0  # where the open string begins in the file, in the skeleton
    base, block, skip = 0, b"", 0  # skip: bytes of an escape that continues in the next block
    for base, block in blocks:
        skeleton += block[:skip]
        end, skip, quote_at = skip, 0, -1
        while end < len(block):
            begin = end
            if quote_at < begin:  # find is much faster than any pattern
                found = block.find(b'"', begin)
                quote_at = found if found >= 0 else len(block)
            escape = block.find(b"\\", begin, quote_at) if opened >= 0 else -1
            end = min(len(block), escape + 2 if escape >= 0 else quote_at + 1)
            skeleton += block[begin:end]
            if escape >= 0:
                skip = escape + 2 - end
            elif quote_at < len(block) and opened < 0:
                opened, kept = base + end, len(skeleton)
            elif quote_at < len(block):
                if base + end - 1 - opened > LONG_STRING:
                    skeleton[kept - 1:] = b'{"%s":[%d,%d]}' % (mark.encode(), opened, base + end - 1)
                opened = -1
            if opened >= 0 and base + end - opened > LONG_STRING:
                del skeleton[kept:]
        if len(skeleton) > MAX_SKELETON:
            raise ValueError("too much JSON beside the images")
    if broken and opened >= 0:
        skeleton[kept - 1:] = b'{"%s":[%d,%d]}' % (mark.encode(), opened, base + len(block))
    return bytes(skeleton)

class Event(NamedTuple):
    """One server-sent event, or a line of JSON. end: where the next one begins in the file."""
    type: str  # what it calls itself
    data: Any  # None for [DONE] and for what is not JSON
    end: int
    broken: bool = False
    is_preview: bool = False  # its image is not finished; any other is a result, whatever its vendor calls it

def read_events(stream: BinaryIO, begin: int = 0, growing: bool = False) -> Iterator[Event]:
    """The events in a file; while it grows, only the complete ones."""
    name, ranges, start, size = "", [], begin, os.fstat(stream.fileno()).st_size
    ends = (position + 1 for position in occurrences(stream, b"\n", begin, size))
    for end, _ in zip(chain(ends, () if growing else (size,)), range(MAX_LINES)):
        stream.seek(start)
        line = stream.read(min(end - start, 80))
        head = line.strip(b"\xef\xbb\xbf \t\r\n")
        if head.startswith(b"data:"):
            ranges.append((start + line.index(b"data:") + 5, end))
        elif head.startswith(b"event:"):
            name = head[6:].strip().decode("utf-8", "replace")
        elif head.startswith(b"{"):  # lines of JSON alone
            yield from events_of(stream, "", [(start, end)], end, not growing)
        elif line and not head:
            yield from events_of(stream, name, ranges, end)
            name, ranges = "", []
        start = end
    if not growing:
        yield from events_of(stream, name, ranges, start, True)

def events_of(stream: BinaryIO, name: str, ranges: Sequence[tuple[int, int]], end: int,
              last: bool = False) -> Iterator[Event]:
    """The event in some data lines, or in each if they make no sense together. last: it may be cut off."""
    def event(lines: Sequence[tuple[int, int]], broken: bool = False) -> Event | None:
        if (data := parse_json(stream, lines, broken)) is None:
            return None
        data = data if not broken or images_in(data)[0] else None
        kind = as_text(json_path(data, "type")) or name
        return Event(kind, data, end, broken, kind.endswith("partial_image"))
    if whole := event(ranges):
        yield whole
    for line in () if whole else ranges:
        may_break_off = last and line == ranges[-1]
        yield event([line]) or (event([line], True) if may_break_off else None) or Event(name, None, end)

def event_document(stream: BinaryIO) -> tuple[dict[str, Any], bool]:
    """(a stream as one plain response: finished images, else its error, and all events; is it cut off?)."""
    types: dict[str, str] = {}  # of the event that brought an image; one of another type repeats it
    finished, events, usage, error, broken = [], [], None, None, False
    for event in read_events(stream):
        data, broken = event.data if isinstance(event.data, dict) else {}, broken or event.broken
        failed = data.get("error") or json_path(data, "response", "error") or (event.type == "error" and data)
        error = failed or error
        if not failed and not event.is_preview:
            for image in find_images(event.data):
                content = image.path or image.url or str([*map(zlib.crc32, blocks_of(image.base64))])
                if types.setdefault(content, event.type) == event.type:
                    finished.append(image)
        usage = data.get("usage") or json_path(data, "response", "usage") or usage
        if event.data is not None:
            events.append({"type": event.type} if event.is_preview else event.data)
    body = {"error": error} if error and not finished else {"data": finished, "usage": usage}
    return {**body, "events": events}, broken

# Where relays put images, in the order of search; the first member that holds any wins.
IMAGE_KEYS = ("b64_json", "url", "image_url", "data", "images", "result", "outputs", "output", "resultJson",
              "resultUrls", "choices", "message", "delta", "content", "text", "item", "response", "body")
DATA_URL = r"(?i:data:[\w./+-]*[;,])"  # or base64 that begins like a PNG, JPEG, WebP, GIF or SVG:
IMAGE_START = DATA_URL + r"|(?:iVBORw0KGgo|/9j/|UklGR|R0lGOD|PHN2Zy|PD94bW)[A-Za-z0-9+/_=\s-]{20}"
IMAGE_END = r"\.(?:png|jpe?g|webp|gif|svg)(?![\w/.-])(?:[?#][^\s<>()\"'\\]*)?"
IMAGE_PATH = r"(?://[^\s/]+/)?[^\s<>\"\\:]*" + IMAGE_END  # of an address without a host
ANY_PATH = r"\.{0,2}[/?][^\s<>\"\\]+|[^\s<>\"\\:]+/[^\s<>\"\\]*|" + IMAGE_PATH  # where only an address can be
MARKDOWN_LINK = (r"\]\(\s{0,9}(?:<?(data:image/[^()>\"'\\]*)(?=[)>\"'])|<([^<>\s][^<>\r\n]*)>|"
                 r"((?:[^\s()<>]|\([^\s()<>]*\))+)(?=[\s)]))")
WAITING = ("pending", "submitted", "queued", "queuing", "in_queue", "created", "waiting", "starting",
           "processing", "in_progress", "generating", "running")
FAILED = ("failed", "fail", "error", "generate_failed", "create_task_failed", "canceled", "cancelled",
          "timeout")
DONE = ("completed", "complete", "success", "succeeded", "finished")
READABLE = rb"(\xef\xbb\xbf)?\s*([{\[<]|(event|data|id|retry)?:)"  # JSON, a web page or events
# Members with such names repeat the request, or show what is not a result.
NO_RESULT = "(?i)prompt|input|mask|source_image|init|reference|request|partial|preview|thumb|avatar|logo|icon"

def images_in(document: Any) -> tuple[list[Image], bool]:
    """(the images in a response, whether they stood under unknown names). A path may be a waiting task's."""
    waiting = task_status(document) in WAITING
    images = [image for image in find_images(document) if not waiting or re.match("(?i)http|$", image.url)]
    strays = [] if images or waiting else find_images(document, stray=True)
    return images or strays, bool(strays)

def find_images(node: Any, depth: int = 12, name: str = "", stray: bool = False) -> list[Image]:
    """The images in a response. name: of the member that holds node. stray: look under unknown names too."""
    node = inner_json(node) if name in ("resultJson", "body") else node
    if depth and isinstance(node, list):
        return [image for item in node for image in find_images(item, depth - 1, name, stray)]
    if isinstance(node, Image):
        return [node]
    if name == "b64_json" and node and isinstance(node, (str, Span)):
        return [Image(base64=node)]
    if stray and isinstance(node, (str, Span)):  # whatever begins like an image; a link needs its suffix
        words = (node.head if isinstance(node, Span) else node.strip()).replace("\\/", "/")
        if re.match(IMAGE_START, words):
            return [Image(base64=node)]
        links = re.findall(r"(?i)https?://[^\s/<>()\"'\\]+/[^\s<>()\"'\\:]*" + IMAGE_END, words)
        return images_in_words(node) or [Image(url=link) for link in dict.fromkeys(links)]
    if name in ("content", "text") and isinstance(node, (str, Span)):
        return images_in_words(node)
    if isinstance(node, Span):
        return [Image(base64=node)] if node.is_image() else []
    if isinstance(node, str):
        text, paths = node.strip(), (ANY_PATH if name in ("url", "image_url") else IMAGE_PATH)
        if re.match(IMAGE_START, text):
            return [Image(base64=text)]
        is_path = name not in ("message", "response", "body") and re.fullmatch(paths, text)
        return [Image(url=text)] if is_path or re.match("(?i)https?://", text) else []
    if not depth or not isinstance(node, dict):
        return []
    names = [key for key in node if not re.search(NO_RESULT, key)] if stray else IMAGE_KEYS
    return next(filter(None, (find_images(node.get(key), depth - 1, key, stray) for key in names)), [])

def images_in_words(text: str | Span) -> list[Image]:
    """The images that a text with Markdown shows, in their order; a description may hold brackets."""
    span, last = Span("", 0, 0, text) if isinstance(text, str) else text, 0
    images = {link: Image(base64=span._replace(start=link)) for link in span.links}
    for match in re.finditer(MARKDOWN_LINK, span.head):
        inline, angled, plain = match.groups()
        if inline and isinstance(text, str):
            images[match.start(1)] = Image(base64=re.sub(r"\s", "", inline))
        elif not inline and "![" in span.head[last:match.start()]:
            images[span.start + match.start()] = Image(url=angled or plain)
        last = match.end()
    return [image for _, image in sorted(images.items())]

def inner_json(value: Any) -> Any:
    """The JSON inside a string, None when it is not JSON; any other value as it is."""
    with suppress(ValueError, RecursionError):
        return load_json(value.encode()) if isinstance(value, str) else value
    return None

def task_field(document: Any, names: Sequence[str]) -> str:
    """The first of these members that a response has: at the top, in data, or in data's first item."""
    data = json_path(document, "data")
    nodes = (document, data, data[0] if isinstance(data, list) and data else None)
    values = [json_path(node, name) for name in names for node in nodes]
    return next((str(value) for value in values if value and type(value) in (str, int)), "")

task_id = partial(task_field, names=("task_id", "taskId", "id", "request_id"))  # of a response
error_code = partial(task_field, names=("code", "error_code", "errorCode", "failCode"))  # beside its message

def task_status(document: Any) -> str:
    """Its status, in lower case."""
    return task_field(document, ("status", "state")).lower()

def server_error(document: Any) -> ServerError | None:
    """The error in a response, None when there is none."""
    status, body = json_path(document, "response", "status"), json_path(document, "response", "body")
    if isinstance(status, int) and status >= 400:  # RunAPI, around another server's response
        inner = server_error(body) or ServerError(as_text(body))
        return inner._replace(code=inner.code or "task_failed")
    # Most: `{"error": {"message": ..., "code": ...}}` or a text, some inside data; RunAPI: `errors` too.
    error = json_path(document, "error") or json_path(document, "data", "error")
    code, state, details = error_code(document), task_status(document), json_path(document, "errors")
    if isinstance(error, dict) and any(error.values()):  # some relays always have the member
        words = re.sub('[][{}"]', "", as_text(json_path(error, "moderation_details")))  # stage, categories
        message = as_text(error.get("message") or error.get("msg") or error) + f" ({words})" * bool(words)
        stage = as_text(json_path(error, "moderation_details", "moderation_stage"))
        return ServerError(message, as_text(error.get("code")) or code, as_text(error.get("type")), stage)
    text = "" if isinstance(error, dict) else as_text(error)
    text += f": {as_text(details)}" if isinstance(details, dict) else ""
    # Kie, one-api and others: `{"code": 422, "msg": "..."}`, or a task whose status says that it failed.
    message = text or task_field(document, ("failMsg", "errorMessage", "message", "msg", "detail"))
    is_error = text or state in FAILED or (message and re.fullmatch(r"[45]\d\d", code))
    return ServerError(message or f"the task ended as {state}", code) if is_error else None

MODERATION_CODES = ("moderation_blocked", "content_policy_violation", "contentfilter", "content_filter")
MODERATION_WORDS = ("safety system", "safety_violations", "moderation", "content policy")
KIND_OF_CODE = {"server_is_overloaded": "overloaded", "invalid_api_key": "key", "task_failed": "task_failed",
                "unsupported_country_region_territory": "region"}
KIND_OF_STATUS = {401: "key", 404: "not_found", 405: "not_found", 413: "too_large", 429: "rate_limit",
                  **dict.fromkeys((408, 502, 504, 522, 524), "gateway")}
# Codes and words of OpenAI, one-api, new-api, sub2api and others (their sources, 2026-11), one blank apart.
QUOTA_WORDS = (r"\binsufficient (\w+ ){0,3}(quota|balance|credits?|funds?)\b|\b(not enough|no|out of) "
               r"(quota|balance|credits?|funds?)\b|\b(quota|balance|credits?|funds?) (\w+ ){0,3}"
               r"(not enough|insufficient|exhausted|used up|too low)\b|billing (hard )?limit|"
               r"token quota failed|(spend|usage) limit exceeded|^quota exceeded\b|额度不足|余额不足")
# A relay or gateway that asked nobody: the same sources, and Cloudflare's list of 5xx errors, read 2026-11.
UNREACHED = (521, 523, 525, 526, 530)
UNREACHED_WORDS = (r"^(model not found|get channel failed|channel no available key)\b|无可用|\bno "
                   r"(channel|account|provider|deployment|server|auth)s? (is |are )?available|\bno "
                   r"(available|healthy|live|allowed|enabled) (\w+ ){0,3}"
                   r"(channel|account|provider|deployment|upstream|server|backend|auth)")

def answer_failure(request: Request, response: Response) -> Failure:
    """The failure that a response means whose meaning is an error or nothing."""
    document = response.document
    error = response.error or ServerError(task_field(document, ("message", "msg", "detail", "errorMessage"))
        or as_text(json_path(document, "detail")) or nothing_usable(response), error_code(document))
    kind = refusal_kind(response, error)
    if kind == "redirect":
        error = error._replace(message=f"it points to {response.headers.get('location', 'nowhere')}")
    seconds, base = server_pause(response.headers, error.message) or 0, re.sub(API_PATH, "", request.url)
    billed, next_step, hint = "", "", None  # what to do, where more is known than the kind
    if kind in ("web_page", "not_found") and base != request.url and not re.search(r"/v\d+$", base):
        billed, hint = "no", f"The base URL may be missing /v1. Try: --base-url {base}/v1"
    elif "Transparent background is not supported" in error.message:
        hint = "Leave --background out, or try --model gpt-image-2.5-flare."
    elif kind == "key" and ("originator", PROGRAM) in request.headers:
        hint = "Run codex once to renew its sign-in, then run the same command again."
    elif kind == "key" and not any(re.search(SECRET_HEADER, name) for name, _ in request.headers):
        hint = "No key is set: set GPT_IMAGE2_API_KEY, or run: " + own_command("config --init")
    elif KINDS[kind].retryable and seconds > 60:
        hint = f"Wait {seconds:.0f} s, as the server asks, then run the same command again."
    elif kind == "too_large" and request.form:
        hint = f"{sum(part.bytes for part in request.form) / 1e6:.1f} MB were sent. {KINDS[kind].hint}"
    if kind == "moderation" and error.stage == "output":
        billed = "maybe"  # what was refused is the finished image
    if request.rules.is_free or (kind == "task_failed" and request.free_failures):
        billed, next_step = "no", "again" if kind == "task_failed" else ""
    message = f"HTTP {response.status} from {host_of(request.url)}: {error.message.strip().rstrip('.')}"
    ids = filter(None, map(response.headers.get, ("x-request-id", "x-runapi-task-id")))
    return Failure(kind, message, hint, billed, next_step=next_step, http_status=response.status,
                   code=error.code, server_text=error.message, request_id=" ".join(ids))

def refusal_kind(response: Response, error: ServerError) -> str:
    """The kind of failure that a response is: codes and words first, the HTTP status last."""
    code = error.code.lower()  # some relays put the HTTP status there
    status = int(code) if response.status == 200 and re.fullmatch(r"[45]\d\d", code) else response.status
    words = f"{error.type} {error.message}".lower()
    is_page = response.document is None and re.match(r"[\s\ufeff]*<", response.text)
    has_failed = task_status(response.document) in FAILED
    by_words = status < 500 and "invalid" not in code and any(word in words for word in MODERATION_WORDS)
    may_repeat_prompt = status < 300 and (has_failed or not response.error)
    plain = re.sub(r"[\W_]+", " ", code if may_repeat_prompt else f"{code} {words}")
    kinds = (  # the first that holds counts
        ("server" if "temporarily blocked" in words else "moderation", code in MODERATION_CODES or by_words),
        ("quota", status == 402 or re.search(QUOTA_WORDS, plain)),
        ("verification", "organization must be verified" in words),
        (KIND_OF_CODE.get(code, ""), code in KIND_OF_CODE),
        ("unavailable", status in UNREACHED or (status >= 500 and re.search(UNREACHED_WORDS, plain))),
        ("blocked" if is_page or "error code: 1010" in words else "forbidden", status == 403),
        ("web_page" if is_page else "task_failed" if has_failed else "no_image", status < 300),
        (KIND_OF_STATUS.get(status, ""), status in KIND_OF_STATUS), ("redirect", status < 400),
        ("refused", status < 500), ("server", True))
    return next(kind for kind, holds in kinds if holds)

def nothing_usable(response: Response) -> str:
    """What arrived instead of an image, shortened."""
    if title := re.search(r"(?i)<title[^>]*>([^<]*)", response.text):
        return f"a web page titled {title[1].strip()!r}"
    events = json_path(response.document, "events")
    content = as_text(response.document if events is None else events or response.text) or response.text
    if re.search(UNQUOTABLE + "|\ufffd", content[:100]):
        content = f"{os.path.getsize(response.path)} bytes that are not text"
    fault = "no image in the reply" if events is None else "the stream ended without a finished image"
    return f"{fault}: {content}" if content.strip() else "an empty reply"

# ---- Saving --------------------------------------------------------------------------------------
def save_images(images: Sequence[Image | Failure], job: Job, folder: Folder, run: Run) -> None:
    """Every image under its own name; one that cannot be saved does not stop the others."""
    numbers = count(1) if len(images) > 1 else chain([0], count(2))  # 0: the name alone
    problems = []
    for index, image in enumerate(images, 1):
        try:
            if isinstance(image, Failure):
                raise image
            run.result.saved.append(save_image(image, index, job, numbers, folder, run))
        except (OSError, Failure) as error:
            text = f"cannot save an image in {job.target.folder}: {reason(error)}"
            problems.append(error if isinstance(error, Failure) else Failure("save", text, collectable=True))
    if problems:
        worst = max(problems, key=lambda failure: failure.exit_code)
        worst.collectable = any(failure.collectable for failure in problems)
        raise worst
    if len(images) < job.n:
        run.console.warn(f"only {len(images)} of the {job.n} images came back")

def save_image(image: Image, index: int, job: Job, numbers: Iterator[int], folder: Folder, run: Run) -> Saved:
    """Give an image a name and verify it. What a run that was killed in this had done is not repeated."""
    name = f"{index}" + "-exact" * job.exact  # what was finished without it does not count with it
    part = os.path.join(job.target.folder, f".{os.path.basename(folder.path)}-{name}.part")
    note = folder.file(f"saved-{name}")
    if not (path := folder.saved_before(note)):
        path = save_new(image, part, job, numbers, folder, run)
        discard(note)  # it named no image
        private_file(note, content=os.fsencode(path)).close()
    discard(part)
    picture, is_whole = picture_in(path)
    if picture is None or not is_whole:
        raise Failure("broken_image", f"the image is incomplete; what arrived is in {path}", billed="yes")
    status = os.stat(path)
    return Saved(path, status.st_size, picture, status.st_mtime_ns)

def save_new(image: Image, part: str, job: Job, numbers: Iterator[int], folder: Folder, run: Run) -> str:
    """The path of the image's new file; the temporary one stays for the caller to remove."""
    target = job.target
    if os.path.exists(part) and os.stat(part).st_nlink > 1:  # a killed run had given it its name
        for path in (os.path.join(target.folder, name) for name in os.listdir(target.folder)):
            if path != part and os.path.exists(path) and os.path.samefile(path, part):
                return path
    others = {folder.saved_before(folder.file(name)) for name in os.listdir(folder.path)
              if name.startswith("saved-")}  # --overwrite replaces none of this command's own images
    try:
        picture = decode_to(folder.file("result") if job.exact else part, partial(copy_image, image))
        if job.exact:
            picture = decode_to(part, partial(copy_kept, folder.file("result"), picture, job, run))
        paths = (picture_path(target, number, picture.format) for number in numbers)
        return next(path for path in paths if give_name(part, path, target.overwrite and path not in others))
    except BaseException:
        discard(part)
        raise

def decode_to(path: str, copy_to: Callable[[BinaryIO], None]) -> Picture:
    """Write an image to a new file, down to the disk. The file stays even if it is not an image."""
    discard(path)
    with open(path, "xb") as stream:
        copy_to(stream)
        stream.flush()
        os.fsync(stream.fileno())
    if not (picture := picture_in(path)[0]):
        raise Failure("broken_image", "the reply is not an image")
    return picture

def copy_kept(result: str, picture: Picture, job: Job, run: Run, sink: BinaryIO) -> None:
    """Write a result with the first image's own pixels outside the mask; as it came where that cannot be."""
    _, width, height = wanted = job.images[0].picture
    try:
        old, new = Png(job.images[0].path), Png(result).checked() if picture == wanted else None
        if new is None:  # warn_about_differences tells it
            copy_image(Image(path=result), sink)
            return
        def rows(lines: Iterable[Row]) -> Iterator[Row]:
            for y, row in enumerate(lines):
                run.console.refresh("putting the image back outside the mask", y / height)
                yield row
        lines = map(blended, mask_rows(job, width, height), old.rows(), new.rows())
        kept = old.kept if old.colour not in (0, 4) else {}  # a profile for grey does not fit
        write_png(sink, width, height, rows(lines), 4 if old.has_alpha or new.has_alpha else 3, kept)
    except ValueError as fault:
        run.console.warn(f"nothing outside the mask could be put back, as the result {fault}")
        copy_image(Image(path=result), sink)

class Partials:
    """Previews, saved while a stream arrives. made: marks of all that this command made, in record too."""
    def __init__(self, job: Job, folder: Folder, console: Console) -> None:
        self.job, self.console, self.position, self.record = job, console, 0, folder.file("partials")
        self.part = os.path.join(job.target.folder, f".{os.path.basename(folder.path)}-partial.part")
        self.made: list[str] = []
        with suppress(OSError), plain_file(self.record) as stream:
            self.made = [os.fsdecode(line) for line in stream.read().splitlines()]

    def look(self, exchange: Exchange) -> None:
        """Save what has arrived since the last look."""
        if self.job.parameters.get("partial_images"):
            with suppress(FileNotFoundError), open(exchange + ".answer", "rb") as stream:
                for event in read_events(stream, self.position, growing=True):
                    self.position = event.end
                    if isinstance(event.data, dict) and event.is_preview:
                        self.publish(event.data)

    def publish(self, data: Mapping[str, Any]) -> None:
        """One partial image, in place of an older one of this command; a problem is only a warning."""
        target, most = self.job.target, self.job.parameters["partial_images"]
        index, others = data.get("partial_image_index"), {mark.split(" ", 5)[-1] for mark in self.made}
        name = f"{target.stem}.partial-{index if type(index) is int else len(others)}"
        try:
            picture = decode_to(self.part, partial(copy_image, find_images(data)[0]))
            path = os.path.join(target.folder, name + SUFFIXES[picture.format][0])
            if len(others | {path}) > self.job.n * (most if type(most) is int else MAX_PARTIALS):
                raise OSError("more arrived than you asked for")
            self.made.append(file_mark(self.part, path))
            private_file(self.record, os.O_APPEND, os.fsencode(self.made[-1] + "\n")).close()  # never emptied
            if give_name(self.part, path, os.path.lexists(path) and file_mark(path, path) in self.made):
                self.console.note(f"partial image: {path}")
            else:
                self.console.warn(f"{path} already exists; the partial image is not saved")
        except (OSError, IndexError, Failure) as problem:
            self.console.warn(f"cannot save a partial image: {problem}")
        with suppress(OSError):
            discard(self.part)

    def remove(self) -> None:
        """Remove the previews that are still as they were made: the final image is saved."""
        paths = [] if self.job.keep_partials else [mark.split(" ", 5)[-1] for mark in self.made]
        for path in [self.part, *paths]:
            with suppress(OSError):
                if path == self.part or file_mark(path, path) in self.made:
                    discard(path)

def file_mark(path: str, name: str) -> str:
    """A line that distinguishes a file from any other that may ever get its name."""
    status = os.lstat(path)
    return f"{status.st_mode} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {name}"

def give_name(part: str, path: str, overwrite: bool) -> bool:
    """Give the finished file its name in one step. False when the name is taken and stays as it is."""
    with suppress(FileExistsError):
        if not overwrite:
            with suppress(OSError):
                os.link(part, path)
                return True
            open(path, "xb").close()  # taken, or there are no hard links: claim it, then replace the claim
        os.replace(part, path)
        return True
    return False

def copy_image(image: Image, sink: BinaryIO) -> None:
    """Write the image's bytes, a block at a time."""
    try:
        if image.path:
            sink.writelines(blocks_of(Span(image.path, 0, os.path.getsize(image.path))))
        else:
            decode_base64(blocks_of(image.base64), sink)
    except ValueError:
        raise Failure("broken_image", "the image's base64 is broken") from None

def blocks_of(source: str | Span) -> Iterator[bytes]:
    """Blocks of what is in memory or in a range of a file."""
    if isinstance(source, str):
        yield source.encode("utf-8", "replace")
    else:
        with open(source.path, "rb") as stream:
            yield from (block for _, block in file_blocks(stream, source.start, source.end))

# JSON's escapes that base64 may have: PHP writes `\/`, some servers write `\n` every 76 characters.
ESCAPES = ((rb"\\/|\\u002[fF]", b"/"), (rb"\\u002[bB]", b"+"), (rb"\\u003[dD]", b"="), (rb"\\[nrt]", b""))
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="

def decode_base64(blocks: Iterator[bytes], sink: BinaryIO) -> None:
    """Base64 with or without a data: prefix, white space and padding. ValueError for any other character."""
    rest, cut_off, is_first = b"", b"", True
    for block in chain(filter(None, blocks), [b""]):
        text = cut_off + block
        if is_first and text[:5].lower() == b"data:":
            text = text.partition(b",")[2]
        at = text.rfind(b"\\", max(0, len(text) - 6)) if block else -1  # an escape that may continue
        text, cut_off, is_first = (text[:at], text[at:], False) if at >= 0 else (text, b"", False)
        for escape, plain in ESCAPES if b"\\" in text else ():
            text = re.sub(escape, plain, text)
        text = rest + text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n")
        if text.translate(None, BASE64):
            rest = re.split(rb"\\?[)>\"']", text, maxsplit=1)[0]  # the end of a link in words
            if rest.translate(None, BASE64):
                raise ValueError("not base64")
            break
        usable = len(text) // 4 * 4
        sink.write(base64.b64decode(text[:usable]))
        rest = text[usable:]
    sink.write(base64.b64decode(rest + b"=" * (-len(rest) % 4)))

def warn_about_differences(job: Job, run: Run) -> None:
    """Say where the images differ from what was asked for: relays ignore sizes and formats."""
    warn, parameters = run.console.warn, job.parameters
    wanted_format = parameters.get("output_format", "png")
    for path, _, picture, _ in run.result.saved:
        size = f"{picture.width}x{picture.height}"
        if parameters.get("size", size) != size and picture.format != "svg":  # which has any size
            warn(f"you asked for {parameters['size']}; {path} is {size}")
        if picture.format != wanted_format:
            warn(f"you asked for {wanted_format} but got {picture.format}: {path}")
        seen = picture if {"size", "aspect_ratio"} & set(parameters) or not job.images else job.images[0].seen
        same = picture.height * seen.width  # 0 for unknown sizes, which count as the same shape
        if not 0.95 * same <= picture.width * seen.height <= 1.05 * same:
            warn(f"{path} is {size}, a different shape from the input; set it with --size")
        if job.exact and job.images[0].digest and picture != job.images[0].picture:
            warn(f"outside the mask {path} may differ from the image, as it is {picture.format} of {size}")
        if parameters.get("background") == "transparent" and not has_alpha(path, picture.format):
            warn(f"you asked for a transparent background; {path} is opaque")

def save_answer(answer: str, target: Target, secrets: Sequence[str]) -> str:
    """The path of a copy of a response, for people, where its image should be; any key in it is blanked."""
    secrets = [secret for secret in secrets if len(secret) >= SHORTEST_KEY]  # not a piece of base64 by chance
    for number in range(1, 1000):
        path = os.path.join(target.folder, f"{target.stem}-{number}.answer")
        with suppress(FileExistsError), private_file(path, os.O_EXCL) as copy, open(answer, "rb") as source:
            for begin in range(0, os.path.getsize(answer), LONG_STRING):
                before = min(begin, LONG_STRING // 2)  # a key may begin before a piece, or end after it
                source.seek(begin - before)
                text = source.read(2 * LONG_STRING).decode("latin-1")
                copy.write(blanked(text, secrets, "*")[before:before + LONG_STRING].encode("latin-1"))
            return path
    raise OSError("too many replies are kept there")

# ---- Telling: while it happens, and at the end ---------------------------------------------------
OUTLOOKS = {"buy": "would buy", "collect": "would collect what is paid", "made_before": "was made before"}
PURCHASE_FACTS = ("elapsed_s", "usage", "cost_usd", "request_id")  # fields of the result, in a receipt too
STATES_IN_WORDS = {UNSENT: "not sent yet", RUNNING: "still being made", ANSWERED: "ready to be collected",
                   LOST: "cut off, perhaps billed"}
MONEY = {"no": "Nothing was billed.", "maybe": "You may be charged for this image.", "yes": "It was billed."}
COLOURS = {"error:": "\033[1;31m", "warning:": "\033[1;33m", "Saved:": "\033[1;32m", "": "\033[0m"}
# From the line's start, with what wraps by now; in two steps, as tmux keeps a screen that is erased at once.
ERASE_LINE = "\r\0337\033[K\033[B\033[J\0338"

class Console:
    """What a person sees: notes, warnings and progress. Every line goes through here, and shows no secret.
    label: before each line of stderr. progress_shown: columns that the next line clears. usual: seconds."""
    def __init__(self, secrets: Secrets) -> None:
        self.secrets, self.label = secrets, ""
        self.as_json = self.quiet = self.verbose = False
        self.progress_shown = self.usual = self.received = self.percent = 0
        self.warnings: list[str] = []
        self.started = self.last_sign = time.monotonic()

    def say(self, stream: str, text: str, end: str = "\n", mark: str = "") -> None:
        """Write to sys.stdout or sys.stderr at once. A reader that went away must not cost an image.
        mark: a word of COLOURS in the text, in its colour on a terminal that has any."""
        has_colours = self.is_terminal(stream) and environment("TERM") not in ("", "dumb")
        if mark and has_colours and not any(map(environment, ("NO_COLOR",))):
            text = text.replace(mark, COLOURS[mark] + mark + COLOURS[""], 1)
        if self.progress_shown:
            blanks, self.progress_shown = "\r" + " " * self.progress_shown + "\r", 0
            self.say("stderr", blanks if environment("TERM") in ("", "dumb") else ERASE_LINE, end="")
        sink = getattr(sys, stream)
        if sink is None:  # closed from the start; print would use standard output instead
            return
        try:
            try:
                print(text, end=end, file=sink, flush=True)
            except UnicodeEncodeError:  # a file name that the terminal's encoding lacks: as its bytes
                sink.buffer.write(as_bytes(text + end))
                sink.flush()
        except (OSError, ValueError):
            setattr(sys, stream, open(os.devnull, "w"))  # or Python complains again at its exit

    def output(self, text: str, mark: str = "") -> None:
        """One line on standard output, for people."""
        if not self.as_json:
            self.say("stdout", text, mark=mark)

    def error_line(self, text: str, indent: str = "", mark: str = "") -> None:
        """One line on standard error."""
        self.say("stderr", indent + self.label + self.secrets.clean(text), mark=mark)

    def note(self, text: str, detail: bool = False) -> None:
        """What is good to know while it happens. detail: only -v shows it."""
        if self.verbose if detail else not self.quiet:
            self.error_line(text)

    def warn(self, text: str) -> None:
        """Something the caller may not expect; also part of the JSON result. Once each."""
        text = self.secrets.clean(text)
        if text not in self.warnings:
            self.warnings.append(text)
            self.error_line(f"warning: {text}", mark="warning:")

    def is_unread(self) -> bool:
        """Whether --json's reader has closed stdout. Without --json a person may still want the file."""
        with suppress(AttributeError, OSError, ValueError):  # Windows has no poll; or it is not a file
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)  # no events: it reports only errors and hang-ups
            return self.as_json and bool(poll.poll(0))
        return False

    def is_terminal(self, stream: str = "stderr") -> bool:
        """Whether a person sees what this says."""
        sink = getattr(sys, stream)
        return sink is not None and bool(sink.isatty())

    def progress(self, typical: str, status: str = "") -> None:
        """How far one picture is: by the bytes or the task's own word, else by the usual time."""
        seconds, share = time.monotonic() - self.started, None
        text = f"waiting: {seconds:.0f} s" + (f" (typically {typical})" if typical else "")
        if self.is_terminal():
            waited, end = ("%d:%02d" % divmod(int(each), 60) for each in (seconds, self.usual))
            if self.usual:
                share = seconds / self.usual
                text = f"{waited} of about {end}" if share <= 1 else f"{waited}, longer than usual"
            if self.percent:
                share, text = self.percent / 100, f"{waited}, {self.percent} %"
            if self.received >= 100_000:  # less may be the state of a task
                text = f"{waited}, {self.received / 1e6:.1f} MB received"
        self.refresh(text + (f", {one_line(status, 40)}" if status else ""), share)

    def refresh(self, text: str, share: float | None = None) -> None:
        """A line redrawn every second on a terminal, a new one every 30 s elsewhere. share: of its bar."""
        now, columns, is_shown = time.monotonic(), 80, not self.quiet
        if now - self.last_sign < (1 if self.is_terminal() else HEARTBEAT):
            return
        self.last_sign = now
        if not self.is_terminal():
            self.note(text)
            return
        with suppress(AttributeError, OSError, ValueError):  # Windows, or a terminal without jobs
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or columns
            is_shown &= os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()  # or a shell's prompt stands there
        self.progress_shown *= is_shown  # after C-z and bg the shell is where the line was
        blocks = min(20, columns - len(text) - 4)
        if share is not None and blocks > 3:
            full = min(blocks - 1, int(share * blocks))  # it never claims to be done
            text = f"[{'#' * full}{'-' * (blocks - full)}] {text}"
        if is_shown:
            from unicodedata import east_asian_width
            text = self.secrets.clean(text)  # a character that only some terminals show wide counts as wide
            ends = accumulate(2 if east_asian_width(each) in "WFA" else 1 for each in text)
            self.say("stderr", f"\r{text[:sum(end < columns for end in ends)]}\r", end="")
            self.progress_shown = columns - 1

    def tell(self, **facts: Any) -> None:
        """A JSON object on standard output, with --json."""
        if self.as_json:
            record = {"schema": 1, "ok": True, "warnings": self.warnings, **facts}
            self.say("stdout", json.dumps(record, indent=2 if self.is_terminal("stdout") else None))

    def finish(self, record: Mapping[str, Any], **line: int) -> None:
        """Show the result of a command, or of a line of a batch. record: as from Result.record."""
        self.tell(**line, **record)
        is_seen, cost = self.is_terminal("stdout"), record["cost_usd"]
        if record["http_status"] and record["ok"] and not self.quiet and not line and not is_seen:
            self.output(f"HTTP {record['http_status']} in {record['elapsed_s']:.1f} s")
        each = "" if cost is None or not record["saved"] else f"about ${cost / len(record['saved']):.3f}"
        for saved in record["saved"]:
            size, edges = f"{max(1, round(saved['bytes'] / 1024))} KB", f"{saved['width']}x{saved['height']}"
            text = f"{saved['path']} ({size})"  # the line that agents read
            if is_seen:
                size = f"{saved['bytes'] / 1e6:.1f} MB" if saved["bytes"] > 50_000 else size
                told = edges * (saved["width"] > 0), size, f"{record['elapsed_s'] or 0:.0f} s", each  # SVG
                text = f"{saved['path']}  {', '.join(filter(None, told))}"
            self.output("Saved: " + text, "Saved:")
        for saved in record["saved"] if environment("OPENCLAW_SHELL") else ():
            self.output(f"MEDIA:{saved['path']}")

    def explain(self, failure: Failure) -> None:
        """What went wrong, whether money may be gone, and what to do next."""
        if failure.exit_code == BUG:
            import traceback
            for line in traceback.format_exc().split("\n"):
                self.error_line(line, "  ")
        money = "" if failure.billed == "no" else " " + MONEY[failure.billed]
        ids = f" ({failure.request_id})" if failure.request_id else ""
        says, text = KINDS[failure.kind].says * bool(failure.http_status), failure.message + ids
        text += "" if text.endswith(("?", "!", ".")) else "."
        text = f"{says}.{money} Details: {text}" if says else text + money
        name = os.path.splitext(os.path.basename(sys.argv[0]))[0] or PROGRAM
        self.error_line(f"{name}: error: {text}", mark="error:")
        if failure.hint:
            self.error_line(failure.hint, "  ")

ERROR_FIELDS = ("kind", "message", "http_status", "code", "request_id", "billed", "retryable", "next", "hint")

class Result:
    """What a command has made. dollars: all it cost. is_cut_off: a response, or its transfer, broke off."""
    def __init__(self) -> None:
        self.saved: list[Saved] = []
        self.facts: dict[str, Any] = dict.fromkeys(
            ("source", "requested", "http_status", "elapsed_s", "model", "usage", "cost_usd", "request_id"))
        self.dollars, self.is_cut_off, self.flat = 0.0, False, None

    def record(self, console: Console, failure: Failure | None = None) -> dict[str, Any]:
        """The JSON object; schema rises when a field changes its meaning."""
        saved = [{"path": file.path, "bytes": file.bytes, **file.picture._asdict()} for file in self.saved]
        facts = self.facts if saved else {**self.facts, "source": None}
        record = {"schema": 1, "ok": failure is None, "saved": saved,
                  **map_texts(facts, console.secrets.clean), "warnings": console.warnings}
        if failure:
            error = {name: getattr(failure, name) for name in ERROR_FIELDS}
            unknown = {name: None for name in ("http_status", "code", "request_id") if not error[name]}
            record["error"] = map_texts({**error, **unknown}, console.secrets.clean)
        return record

def show_picture(saved: Saved, options: Namespace, console: Console) -> None:
    """--open and --preview, as far as this terminal and this system can; nothing where they cannot."""
    from subprocess import DEVNULL as NULL
    viewer = {"darwin": "open", "win32": "explorer"}.get(sys.platform, "xdg-open")
    if options.open and (viewer != "xdg-open" or any(map(environment, ("DISPLAY", "WAYLAND_DISPLAY")))):
        with suppress(Failure):
            start_child([viewer, saved.path], console.secrets.keys, stdin=NULL, stdout=NULL, stderr=NULL)
    if options.preview and not console.as_json and console.is_terminal("stdout"):
        console.say("stdout", preview(saved, console.secrets.keys), end="")

def preview(saved: Saved, secrets: Sequence[str]) -> str:
    """The codes that show a picture: iTerm2's, or kitty's, which takes PNG alone; "" elsewhere.
    tmux says what terminal it is in, whether it passes them on, and where the cursor is there."""
    told = " ".join(("0 0 0", *map(environment, ("TERM", "TERM_PROGRAM"))))
    (form, width, height), is_tmux = saved.picture, "tmux" in told
    if is_tmux:
        names = "#{?#{==:#{allow-passthrough},off},,#{client_termtype} #{client_termname}}"
        asked = ["tmux", "display", "-p", "#{pane_left} #{pane_top} #{cursor_y} " + names]
        with suppress(Failure):
            told = child_output(asked, secrets, "curl", 5).decode("utf-8", "replace")
    is_iterm = re.search("(?i)iterm|wezterm", told)
    if not is_iterm and not (form == "png" and re.search("kitty|ghostty", told)):
        return ""
    (left, top, cursor), lines, columns, shape = map(int, told.split()[:3]), 24, 80, 2.0
    with suppress(ArithmeticError, ImportError, AttributeError, OSError):  # how high a letter is, if known
        import termios
        size = unpack("4H", fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8)))
        lines, columns = size[0] or lines, size[1] or columns
        shape = size[3] / size[0] / (size[2] / size[1])
    with open(saved.path, "rb") as stream:
        text = base64.b64encode(stream.read()).decode()
    columns = max(1, min(columns - 1, 44 * width // max(1, height)))
    rows = max(1, min(lines - 1, round(columns * height / max(1, width) / shape)))
    parts = [text[at:at + 4096] for at in range(0, len(text), 4096)]
    codes = [f"\033]1337;File=inline=1;width={columns}:{text}\a"] if is_iterm else [
        f"\033_Ga=T,f=100,q=2,C=1,c={columns},r={rows},m=1;\033\\",
        *(f"\033_Gm=1;{part}\033\\" for part in parts), "\033_Gm=0;\033\\"]
    place = f"\033[{top + min(cursor, lines - 1 - rows) + 1};{left + 1}H" if is_tmux else ""
    codes[-1] = f"\0337{place}{codes[-1]}\0338"  # only now it is shown
    if is_tmux:
        codes = ["\033Ptmux;" + code.replace("\033", "\033\033") + "\033\\" for code in codes]
    return "\n" * rows + f"\033[{rows}A" + "".join(codes) + f"\033[{rows}B"

# ---- Gallery: a page to look at pictures ---------------------------------------------------------
GENERATOR = f'name="generator" content="{PROGRAM}"'  # how a page of this program is known
STYLE = """:root { color-scheme: light dark; } :root:has(dialog[open]) { overflow: hidden; }
* { box-sizing: border-box; margin: 0; overflow-wrap: anywhere; } b { color: light-dark(#a23a24, #f0967f); }
body, dialog { font: 1rem/1.45 system-ui, sans-serif; color: light-dark(#21201c, #ebe8e1);
  background: light-dark(#fbfaf7, #171715); } .open, figure, code { background: light-dark(#eeebe4, #252422) }
body { max-width: 100rem; margin: auto; padding: clamp(1rem, 4vw, 4rem); } h1 + p { margin: .5rem 0 2rem; }
h1 + p, .facts, code, nav { color: light-dark(#686459, #a39e93); font-size: .875rem; } nav span { flex: 1; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(clamp(8.5rem, 17vw, 16rem), 1fr));
  gap: 1.75rem 1.25rem; padding: 0; list-style: none; } li .file, li code, li button { display: none; }
.open, code, button { display: block; border-radius: .5rem; } .open:not(:has(img)), figure { padding: 1rem; }
.open { aspect-ratio: 1; overflow: hidden; text-decoration: none; } .prompt { margin: .625rem 0 .25rem; }
.open img { width: 100%; height: 100%; object-fit: contain; } figure { display: grid; place-content: center; }
li .prompt { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
code { white-space: pre-wrap; margin: 1rem 0; padding: .75rem; } a, button { color: inherit; }
button { font: inherit; background: none; border: 1px solid; padding: .7rem; } nav, section { padding: 1rem; }
nav { display: flex; align-items: center; gap: .5rem; } figure img { max-width: 100%; max-height: 88vh; }
dialog { width: 100%; height: 100%; max-width: none; max-height: none; border: 0; padding: 0; }
dialog[open] { display: grid; grid: auto minmax(50vh, auto) 1fr / minmax(0, 1fr); }
@media (min-width: 50rem) { dialog[open] { grid: auto minmax(0, 1fr) / minmax(0, 1fr) 24rem; }
  figure { grid-area: 1 / 1 / 3; } section { overflow: auto; } } .prompt, figure { white-space: pre-line; }"""
SCRIPT = """let at, box = document.querySelector("dialog"), links = [...document.querySelectorAll(".open")];
function show() {  // what the address names: so it stays open over a reload, and "back" closes it
  at = links.findIndex(link => link.hash === location.hash); if (at < 0) return box.close();
  const [link, ...texts] = links[at].parentNode.cloneNode(true).children, [bar, figure, about] = box.children;
  bar.firstChild.textContent = `${at + 1} of ${links.length}`; figure.replaceChildren(...link.childNodes);
  about.replaceChildren(...texts); if (!box.open) box.showModal();
}
function copy(button) {  // navigator.clipboard is missing in some browsers for a file
  getSelection().selectAllChildren(button.previousSibling);
  button.textContent = document.execCommand("copy") ? "Copied" : "Selected: now press Ctrl+C";
}
const step = by => location.replace(links.at((at + by) % links.length).hash);
const actions = {ArrowLeft: () => step(-1), ArrowRight: () => step(1), close: () => box.close(), copy};
onclick = ({target}) => actions[target.className]?.(target);
onkeydown = e => { if (box.open && !e.altKey && !e.ctrlKey && !e.metaKey) actions[e.key]?.(); };
addEventListener("error", ({target}) => target.replaceWith?.("This picture is gone."), true);
for (const i of [...document.images]) if (i.complete && !i.naturalWidth) i.dispatchEvent(new Event("error"));
box.onclose = () => { links[at]?.focus(); history.replaceState(null, "", location.href.split("#")[0]); };
onhashchange = show; show(); links.find(link => link.href === history.state)?.focus({preventScroll: true});
if (document.documentElement.dataset.unfinished) setInterval(() => {
  if (document.hidden || String(getSelection())) return;
  history.replaceState(document.activeElement.href, ""); location.reload();
}, 5000);"""

def write_gallery(page: str, entries: Sequence[Any], console: Console, missing: int = 0) -> None:
    """Write the page, if there is to be one, whole, in one step; a problem is only a warning now."""
    part = os.path.join(os.path.dirname(page), f".{os.urandom(4).hex()}.part")
    try:
        if page:
            with open(part, "xb") as stream:
                stream.writelines(text.encode() for text in gallery_page(page, entries, missing))
            os.replace(part, page)
    except (OSError, ValueError) as error:  # the latter where a picture is on another drive
        console.warn(f"cannot write the gallery {page}: {reason(error)}")
    finally:
        discard(part)

def gallery_page(page: str, entries: Sequence[Mapping[str, Any]], missing: int) -> Iterator[str]:
    """The page in pieces. Outside texts are escaped; besides, nothing can run but what two digests name."""
    from hashlib import sha256
    from urllib.parse import quote as escaped
    folder = os.path.dirname(os.path.abspath(page))
    style, script = (base64.b64encode(sha256(text.encode()).digest()).decode()
                     for text in (STYLE, SCRIPT))
    images = sum(len(entry.get("saved") or ()) for entry in entries)
    failed = sum(bool(entry.get("error")) for entry in entries)
    costs = [entry["cost_usd"] for entry in entries if isinstance(entry.get("cost_usd"), (int, float))]
    told = (f"{images} picture{'s' * (images != 1)}", in_dollars({"cost_usd": sum(costs)}) if costs else "",
            f"{failed} failed" if failed else "", f"{missing} to come" if missing else "")
    yield (f'<!DOCTYPE html>\n<html lang="en" data-unfinished="{missing or ""}"><meta charset="utf-8">\n'
           f'<meta {GENERATOR}>\n<meta name="viewport" content="width=device-width">\n'
           '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src \'self\' file:'
           f"; style-src 'sha256-{style}'; script-src 'sha256-{script}'\">\n<title>Pictures</title>\n"
           f"<style>{STYLE}</style><main><h1>Pictures</h1><p>{', '.join(filter(None, told))}</p><ul>\n")
    for number, entry in enumerate(entries):  # a card for each picture of a request, and one for its fault
        prompt, command, error = (as_html(entry.get(name)) for name in ("prompt", "command", "error"))
        files, quality, seconds, made = map(entry.get, ("saved", "quality", "elapsed_s", "time"))
        several = f" for {len(files)}" if files and files[1:] else ""
        cost = entry.get("cost_usd") and in_dollars(entry) + several
        copy = f'<code>{command}</code><button class="copy">Copy the command</button>' if command else ""
        for file in (files or []) + [{}] * bool(error):
            path = file.get("path", "")
            link = escaped(as_bytes(os.path.relpath(path, folder).replace(os.sep, "/"))) if file else ""
            name = f'<a href="{link}">{as_html(one_line(os.path.basename(path)))}</a>' if file else ""
            image = f'<img src="{link}" alt="{prompt or link}" loading="lazy" decoding="async">'
            size = f"{file['width']} × {file['height']}" if file.get("width") else as_text(entry.get("size"))
            facts = size, quality and f"{quality}\xa0quality", seconds and f"{as_text(seconds)}\xa0s", cost
            yield (f'<li><a class="open" href="#/{link or number}/{as_html(made)}">'
                   f'{image if file else f"<b>Failed</b> {error}"}</a><p class="prompt" dir="auto">{prompt}'
                   f'</p><p class="facts">{as_html(", ".join(filter(None, facts)))}</p><p class="facts file">'
                   f'{name} {local_time(made) if made else ""}</p>{copy}</li>\n')
    yield ('</ul></main><dialog aria-label="One picture"><nav><span></span><button class="ArrowLeft">Previous'
           '</button><button class="ArrowRight" autofocus>Next</button><button class="close">Close</button>'
           '</nav><figure class="close" aria-live="polite"></figure><section></section></dialog>\n'
           f"<script>{SCRIPT}</script>\n")

def as_html(text: Any) -> str:
    """An outside text for the page."""
    from html import escape
    return escape(utf8(as_text(text)).decode("utf-8", "replace")).replace("\r", "&#13;")

# ---- Commands ------------------------------------------------------------------------------------
def run_image_command(options: Namespace, run: Run) -> int:
    """generate and edit."""
    settings, ignore_signals = read_settings(options, run.console), catch_signals()
    if options.batch:
        return run_batch(options, settings, run, ignore_signals)
    refuse_broken((options.jobs, "--jobs works only with --batch", ""))
    order = checked_order(options, settings, run)
    run = for_order(order, run)
    receipt = None if order.fresh else made_before(order.identity, run.console)
    page = checked_page(options.gallery)
    if options.dry_run:
        would = what_would_be(order, run.console, set())
        checked_price([estimate(order.job, settings)] if would == "buy" else [], settings)
        if would == "buy" and (taken := taken_path(order)):
            run.console.warn(f"{taken} already exists; saving to a new name (--overwrite replaces it)")
        tell_outlook(order, would, receipt.saved[0].path if receipt else first_path(order.job), run)
        return OK
    key = KeySource("nothing", "") if receipt else ready_to_buy([order], settings, run.console)
    buy_or_collect(order, receipt, key, run, ignore_signals)
    for saved in run.result.saved:
        with suppress(OSError):  # the picture is there all the same
            show_picture(saved, options, run.console)
    write_gallery(page, [gallery_entry(order, run.result.record(run.console), run.console)], run.console)
    return OK

def checked_order(options: Namespace, settings: Settings, run: Run) -> Order:
    """What a command asks for, after all checks that need only words, settings and local files."""
    notes: list[str] = []
    is_named = options.output is not None
    fill_options(options, settings, notes)
    if options.output != "-" and os.path.isdir(os.path.expanduser(options.output)):
        options.output = os.path.join(options.output, "")  # plan knows a folder by its last character
    requested = {"size": options.size, "format": chosen_format(options), "quality": options.quality}
    run.result.facts.update(model=settings.model.value, requested=requested)
    job = plan(options, settings, *read_words(options), notes)
    job = with_inputs_read(job, settings, notes, bool(options.aspect_ratio or options.resolution), run)
    return Order(job, settings, identity_of(job, settings), requested, options.fresh, is_named=is_named)

def for_order(order: Order, run: Run) -> Run:
    """The run, for a line of a batch a new one, which knows an order's files and how long one takes."""
    if order.line:
        run = for_line(order.line, order.warnings, run)
        run.result.facts.update(model=order.job.model, requested=order.requested)
    job, settings = order.job, order.settings
    own = re.escape(os.path.join(job.target.folder, job.target.stem))
    run.console.secrets.paths.append(own + r"(?:\.partial-\d+|-\d+)?\.\w+")
    run.result.flat = settings.price_per_image.value
    quality, edges = as_text(job.parameters.get("quality")), split_size(as_text(job.parameters.get("size")))
    seconds, tokens = TYPICAL_SECONDS.get(quality, 0), partial(image_tokens, quality=quality)
    size = max(1, tokens(*edges) / tokens(1024, 1024)) if seconds and edges and all(edges) else 1
    run.console.usual = int(round(seconds * size * (job.n if settings.api.value == "runapi" else 1), -1))
    return run._replace(typical=f"{run.console.usual} s" if seconds else "70 to 280 s")

def with_inputs_read(job: Job, settings: Settings, notes: list[str], shaped: bool, run: Run) -> Job:
    """The job when its inputs are known. Says what may surprise, and a size that was computed (shaped)."""
    job = read_inputs(job, settings, notes)
    for note in notes:
        run.console.warn(note)
    size = run.result.facts["requested"]["size"] = job.parameters.get("size", "auto")
    if shaped and size != "auto":
        run.console.note(f"--size {size} was computed from --aspect-ratio and --resolution")
    return job

def ready_to_buy(orders: Sequence[Order], settings: Settings, console: Console) -> KeySource:
    """The key, after a test of all that must work before anything is sent; no job may contain a key."""
    key = find_key(settings, console)
    for job, *_ in orders:
        refuse_keys(job, console.secrets.keys)
        check_folder(job.target, job.n, as_text(job.parameters.get("size")), write=True)
    return key

def buy_or_collect(order: Order, found: Receipt | Folder | None, key: KeySource, run: Run,
                   ignore_signals: Action) -> int:
    """Tell what was made before; else run a job, or wait for the run of the same command that is at work."""
    run = run._replace(deadline=time.monotonic() + order.settings.timeout.value)
    while found is None:
        found = open_folder(order, run.console)
        if isinstance(found, Folder) and found.journaled and found.lock is None:
            found = wait_for_twin(found, run._replace(collectable=True))
    if isinstance(found, Receipt):
        recall(found, order, run)
        made = local_time(found.record["time"])
        run.console.note(f"made before ({made}): nothing was bought now; --fresh buys another take")
        run.console.finish(run.result.record(run.console))
    else:
        run.console.secrets.paths.append(re.escape(found.path) + r"(?:/\d+\.answer)?")
        run_job(order, key, found, run, ignore_signals)
    return OK

def what_would_be(order: Order, console: Console, taken: set[str]) -> str:
    """Whether a command would buy, collect what was bought, or tell what was made. taken: by others here."""
    identity = order.identity
    if order.fresh or made_before(identity, console):
        return "buy" if order.fresh else "made_before"
    for same, others in [same_requests(root, identity, console) for root in journal_roots(console)]:
        for path in [each for each in same + others if each not in taken]:
            folder = Folder(path, take_lock(os.path.join(path, "owner")), True)
            release(folder.lock)
            if (path in same) if folder.lock is None else folder.state() == RUNNING or folder.is_paid():
                taken.add(path)
                return "collect"
    return "buy"

def tell_outlook(order: Order, would: str, output: str, run: Run) -> None:
    """--dry-run: what becomes of an order, from what is known without key, network or a change on disk."""
    job, settings, console = order.job, order.settings, run.console
    hide = partial(redact, secrets=console.secrets.texts)
    check_folder(job.target, job.n, as_text(job.parameters.get("size")))
    refuse_keys(job, console.secrets.keys)
    price = estimate(job, settings) if would == "buy" else (0.0, 0.0)
    request = next(settings.service.provider(job, settings, KeySource("nothing", ""), ""))
    assert isinstance(request, Request)  # every provider begins with one
    files = [{"path": shown_input(upload.path), "bytes": upload.bytes} for upload in job.uploads]
    console.tell(**{"job": order.line} if order.line else {}, would=would, method=request.method,
                 url=request.url, model=job.model, files=files, prompt=hide(job.prompt), output=output,
                 parameters=map_texts(job.parameters, hide), typical=run.typical or None, estimate_usd=price)
    sent = [f"{name} {as_text(value)}" for name, value in job.parameters.items()]
    cost = price_text(price)
    lines = [f"line {order.line}: {OUTLOOKS[would]}, to {output}, price: {cost}"] if order.line else [
        f"{OUTLOOKS[would]}: {request.method} {request.url}, {', '.join([job.model, *sent])}",
        *(f"with {each.name}" + f" ({max(1, round(each.bytes / 1024))} KB)" * bool(each.bytes)
          for each in job.uploads), f"to {output}", f"price: {cost}; time: {run.typical}"]
    for line in lines:
        console.output(console.secrets.clean(line))

def recall(receipt: Receipt, order: Order, run: Run) -> None:
    """Fill in a result from what was made before. --mask-exact may be asked for only now."""
    run.result.saved, first = receipt.saved, order.job.images[0] if order.job.exact else Upload("")
    run.result.facts.update({name: receipt.record.get(name) for name in PURCHASE_FACTS}, source="made_before")
    fits = all(not first.digest or first.picture == file.picture for file in receipt.saved)
    if order.job.exact and fits and not receipt.record.get("exact"):
        folder, run.result.saved = temporary_folder(), []
        try:
            job = own_inputs(order.job, order.settings, folder, run)
            save_images([Image(path=file.path) for file in receipt.saved], job, folder, run)
        finally:
            folder.remove()
        record = {**receipt.record, "exact": True, "saved": [file.record() for file in run.result.saved]}
        with suppress(OSError):  # or it is done again the next time
            if receipt.path:
                write_json(receipt.path, record)
    warn_about_differences(order.job, run)

def command_of(order: Order) -> str:
    """The command that makes an order's picture, or finds it again; "" where an input must not be shown."""
    job, settings, runapi = order.job, order.settings, order.settings.api.value == "runapi"
    rows = {(runapi and row.runapi) or row.wire: row for row in OPTIONS}
    words = [quote(upload.path) for upload in job.images]
    size = {"input": "input", "exact": None}.get(job.resolution, job.parameters.get("size"))
    for name, value in {**({"n": job.n} if job.n > 1 else {}), **job.parameters, "size": size}.items():
        row, text = rows.get(name), as_text(value)
        named = [row.flag] + [quote(text)] * bool(row.value) if row else ["--param", quote(f"{name}={text}")]
        words += named if value is not None else []
    if job.mask:
        name, *paths = {"alpha": ("--mask", job.mask.path), "bw": ("--mask-bw", job.mask.path)}.get(
            job.mask_form, ("--mask-rect", *job.mask.path.split()))
        words += [f"{name}={quote(path)}" for path in paths]
        words += ["--mask-feather", str(job.feather)] * bool(job.feather) + ["--mask-exact"] * job.exact
    words += ["--model", quote(job.model)] if job.model != DEFAULT_MODEL else []
    for setting in (settings.base_url, settings.api):
        words += [setting.source, quote(setting.value)] if setting.source.startswith("--") else []
    words += ["-o", quote(order.identity.output), *(["--"] if job.prompt.startswith("-") else [])]
    is_shown = all(shown_input(upload.path) == upload.path for upload in job.uploads)
    return own_command(" ".join([job.command, *words, quote(job.prompt)])) if is_shown else ""

def gallery_entry(order: Order, record: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """What the gallery shows of a result."""
    hide = partial(redact, secrets=console.secrets.texts)
    return {**order.job.parameters, **{name: record[name] for name in ("saved", "elapsed_s", "cost_usd")},
            "prompt": hide(order.job.prompt), "command": hide(command_of(order)), "time": time.time(),
            "error": json_path(record, "error", "message")}

def checked_page(path: str | None) -> str:
    """The full path of --gallery's page, which can be written and does not replace another's file."""
    import tempfile
    page = os.path.abspath(os.path.expanduser(path)) if path else ""
    try:
        if is_picture_name(page) or (os.path.lexists(page) and GENERATOR.encode() not in content_of(page)):
            raise OSError("that is not a page of this program")
        if page:
            tempfile.TemporaryFile(dir=os.path.dirname(page)).close()
    except OSError as error:
        raise target_failure(f"cannot write {path}: {reason(error)}", "Name another file.") from None
    return page

def catch_signals() -> Action:
    """SIGTERM and SIGHUP act like Ctrl-C, unless ignored (nohup). What this returns ignores all from then."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    caught = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    def handle(handler: Any = signal.SIG_IGN) -> None:
        for number in caught:
            signal.signal(number, handler)
    def stop(number: int, frame: Any) -> None:
        handle()
        raise KeyboardInterrupt(number)
    handle(stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)  # of a batch's child
    return handle

def own_inputs(job: Job, settings: Settings, folder: Folder, run: Run) -> Job:
    """The job with private copies of its inputs: what was checked is sent, and what is no file is fetched."""
    uploads = list(job.uploads)
    try:
        for number, upload in enumerate(uploads):
            if upload.origin == "rectangles" or (upload.origin == "url" and settings.service.takes_urls):
                continue  # made below; RunAPI fetches it itself
            path = folder.file(f"input-{number}")
            if not os.path.exists(path):  # an adopted request may be reading it
                fetch_upload(upload, path + ".part", settings, run)
                os.replace(path + ".part", path)
            uploads[number] = upload._replace(path=path, origin="file")
        job = job.with_uploads(uploads)
        if not all(each.digest or each.origin == "rectangles" for each in uploads):  # nobody has seen it yet
            job = with_inputs_read(job, settings, [], job.resolution in RESOLUTIONS, run)
        if job.mask and job.mask_form != "alpha":
            path, (_, width, height) = folder.file("mask"), job.images[0].picture
            if not os.path.exists(path):
                rows = ([bytes(width)] * 3 + [alpha] for alpha in mask_rows(job, width, height))
                with private_file(path + ".part") as stream:
                    write_png(stream, width, height, rows, 4, {})
                os.replace(path + ".part", path)
            made = job.mask._replace(path=path, origin="file", picture=Picture("png", width, height))
            job = job._replace(mask=made, mask_form="alpha")  # the one that the API wants
    except (OSError, Failure) as error:
        failure = error if isinstance(error, Failure) else setup_failure(
            f"cannot write {folder.path}: {reason(error)}", "Make room there.")
        failure.collectable = folder.adopted
        raise failure from None
    return job

def fetch_upload(upload: Upload, path: str, settings: Settings, run: Run) -> None:
    """Write an input to a private file: a copy of what was checked, or what its URL leads to."""
    from hashlib import sha256
    name, url, content = shown_input(upload.path), upload.path, b""
    if upload.origin != "url":
        with suppress(OSError):
            content = content_of(url) if upload.origin == "file" else data_content(url)
        if upload.digest not in ("", sha256(content).hexdigest()):
            raise input_failure(f"{url} changed while it was being read", "Run the same command again.")
        private_file(path, content=content).close()
        return
    try:
        request = download(url, settings, url)._replace(allow_http=True, purpose="input")
        deadline = run.console.started + settings.timeout.value
        send_with_retries(request, path, Run(run.console, Result(), deadline))
        os.replace(path + ".answer", path)
        if os.path.getsize(path) < MAX_IMAGE_BYTES:  # read_upload refuses a larger one
            read_input(content_of(path), "it", os.path.basename(name) or "picture")
    except Failure as failure:
        hint = failure.hint if failure.kind == "input" or SANDBOX in failure.hint else ""
        raise input_failure(f"cannot fetch image {name}: {failure.message}", hint) from None

def find_key(settings: Settings, console: Console) -> KeySource:
    """The key for the configured host, known as a secret before anything can show it."""
    if not (source := choose_key(settings)):
        return KeySource("nothing", "")  # this machine needs no key
    source = source._replace(value=read_key(source, console.secrets.keys))
    console.secrets.add_keys(source.value)
    return source

def refuse_keys(job: Job, keys: Sequence[str]) -> None:
    """Refuse a job that contains a key: it would go to the server as text, and into the journal."""
    text = json.dumps([job.prompt, job.model, *job.parameters.items()], ensure_ascii=False)
    text = utf8(text).decode("latin-1")
    known = [key for key in keys if len(key) >= SHORTEST_KEY and not key.isalpha()]  # it may be a word
    refuse_broken((blanked(text, known, "*") != text, "the prompt or an option contains a known key", ""))

# How a job ended              can be collected   folder stays   billed                    --fresh may drop it
# everything is saved           -                  no             -                         -
# refused, or failed for good   no                 no             no or maybe               -
# the rest can still come       yes                yes            maybe or yes              yes
# the response is unreadable    no                 if no copy     maybe                     yes
# stopped while it is made      yes                yes            maybe, yes if it came     no
# stopped before or in between  no                 no             no, maybe if curl died    -
# a bug in this program         yes                yes            maybe after a response    yes
def run_job(order: Order, key: KeySource, folder: Folder, run: Run, ignore_signals: Action) -> None:
    """One checked job, however it ends: its folder stays as long as there is something to collect."""
    job, settings, keep_folder = order.job, order.settings, True
    try:
        job = own_inputs(job, settings, folder, run)
        provider = settings.service.provider(job, settings, key, os.path.basename(folder.path))
        taken = taken_path(order)
        make_images(provider, job, settings, folder, run)
        if taken not in ("", path := run.result.saved[0].path) and not folder.adopted:
            run.console.warn(f"{taken} already exists; saved as {path} (--overwrite replaces it)")
        saved = [file.record() for file in run.result.saved]
        paid = map_texts({name: run.result.facts[name] for name in PURCHASE_FACTS}, run.console.secrets.clean)
        made = {"schema": SCHEMA, "version": VERSION, "time": time.time(), "command": job.command,
                "prompt": job.prompt, "model": job.model, "host": host_of(settings.base_url.value),
                "parameters": job.parameters, "output": order.identity.output, "saved": saved,
                "again": command_of(order), "exact": job.exact, **paid}
        folder.leave_word({"made": made})
        if settings.history.value and folder.journaled:
            keep_receipt(folder, order.identity, made, run.console)
        run.console.finish(run.result.record(run.console))  # last: whoever does not hear it can ask again
        ignore_signals()
        keep_folder = False
    except (Exception, KeyboardInterrupt) as error:
        ignore_signals()  # first: a second signal must not hide what ended the job
        failure = error if isinstance(error, Failure) else Failure(
            "bug", f"a bug in this program: {error!r}", "Run the command again at no cost.", collectable=True)
        if isinstance(error, KeyboardInterrupt):
            failure = stop_failure(error, folder)
        keep_folder = add_what_is_known(failure, folder, job, run)
        kind, failure.billed = failure.kind, billed_in_the_end(folder, failure, bool(run.result.saved))
        if kind not in ("stopped", "too_expensive") and (kind, failure.billed) != ("interrupted", "no"):
            folder.leave_word({"failure": map_texts(vars(failure), run.console.secrets.clean)})
        if order.fresh and failure.collectable:
            failure.hint = f"From now on without --fresh: {failure.hint}"
        raise failure from (error if failure.kind == "bug" else None)
    finally:
        if not keep_folder:
            folder.remove()
        release(folder.lock)

def make_images(provider: Provider, job: Job, settings: Settings, folder: Folder, run: Run) -> None:
    """From the request to the files."""
    console = run.console
    if folder.adopted and folder.state() != UNSENT:
        run.result.facts["source"] = "collected"
        console.note("continuing the unfinished request from before at no charge (--fresh buys a new image)")
    else:
        price = checked_price([estimate(job, settings)], settings)
        cost = f", {price_text(price)}" if price and price[1] > NOTABLE_COST and console.is_terminal() else ""
        console.note(f"{'Editing' if job.images else 'Generating'} with {job.model} at "
                     f"{host_of(settings.base_url.value)}, typically {run.typical}{cost}")
        found = unfinished_commands(console) if console.is_terminal() else []
        if ready := sum(each["state"] == ANSWERED and not each["at_work"] for each in found):
            console.note(f"finished, but not collected: {ready}; list them with: {own_command('config')}")
    partials = Partials(job, folder, console)
    run = run._replace(deadline=time.monotonic() + settings.timeout.value, watch=partials.look,
                       collectable=folder.journaled)
    images = run_provider(provider, folder, run)
    save_images(images[:job.n + SPARE_IMAGES], job, folder, run)
    is_short, answers = len(images) < job.n and run.result.is_cut_off, folder.answers()
    if answers and (is_short or len(images) > job.n + SPARE_IMAGES):
        kept = "could not be saved"
        with suppress(OSError):  # the images are saved, and must be reported
            kept = "was saved to " + save_answer(answers[-1], job.target, console.secrets.texts)
        console.warn(f"images requested: {job.n}, received: {len(images)}; the whole reply {kept}")
    partials.remove()
    warn_about_differences(job, run)
    if run.result.facts["source"] == "collected":
        cost = in_dollars(run.result.facts)
        console.note("collected: already paid" + f", about {cost}" * (cost != "?"))

# Nothing that arrived is saved. Up to so many bytes the message says it all: a page's title, short JSON.
UNREAD_KINDS = {"no_image": MAX_MESSAGE // 2, "web_page": LONG_STRING, "broken_image": 0, "place": 0,
                "network": 0, "timeout": 0}

def add_what_is_known(failure: Failure, folder: Folder, job: Job, run: Run) -> bool:
    """Add to the failure where the reply is kept; return whether the folder has to stay."""
    keep_folder, kind = failure.collectable, failure.kind
    unread = [path for path in folder.answers() if os.path.getsize(path) > UNREAD_KINDS.get(kind, inf)]
    if keep_folder and not folder.journaled:
        failure.hint = f"What arrived is kept in {folder.path}"
    elif unread and not keep_folder and (failure.billed != "yes" or kind == "place"):
        try:  # a person may find its image
            kept = save_answer(unread[-1], job.target, run.console.secrets.texts)
        except OSError:
            kept, keep_folder = unread[-1], True
        failure.hint = f"The server's reply was saved to {kept}. {failure.hint}"
    if keep_folder and kind != "stopped":  # collecting it may fail for ever: let --fresh remove it
        with suppress(OSError):  # on a full disk it stays until it is collected
            private_file(folder.file("droppable")).close()
    return keep_folder

def billed_in_the_end(folder: Folder, failure: Failure, saved: bool = False) -> str:
    """Whether money is gone. Only this function decides it: a Failure knows no more than its own request."""
    answered = folder.is_paid()
    if saved or (answered and failure.kind == "stopped"):
        return "yes"
    if answered and failure.billed == "no" and failure.exit_code in (USAGE, SETUP, BUG):
        return "maybe"  # it came after a paid request
    return failure.billed

def run_config_command(options: Namespace, run: Run) -> int:
    """config: --show (the default), --init, --check, --history or --forget."""
    stray = [name for name in ("force", "jobs", *PICTURE_KEYS) if getattr(options, name) is not None]
    alone = [row.flag for row in OPTIONS if row.alone and getattr(options, row.name) is not None]
    refuse_broken(
        (len(alone) > 1, " is not allowed with ".join(alone[:2]), ""),
        (options.words, f"config takes no arguments, got {quoted(''.join(options.words[:1]))}", ""),
        (stray and not options.init, f"--{(stray or [''])[0]} only works with --init", ""),
        (options.gallery and not options.history, "--gallery only works with --history", ""))
    if options.init:
        write_template(options, run)
    elif options.check:
        check_setup(read_settings(options, run.console), run)
    elif options.history:
        show_history(options.history, checked_page(options.gallery), run.console)
    elif options.completion:
        run.console.output(script := completion(options.completion))
        run.console.tell(completion=script)
    elif options.forget:
        forget_requests(options.forget, run.console)
    else:
        show_settings(read_settings(options, run.console), run.console)
    return OK

def write_template(options: Namespace, run: Run) -> None:
    """--init: a config file that only its owner can read. On a terminal without a key it asks for one."""
    console, path = run.console, config_path(options.config or next(iter(config_locations()), "-"))
    again = "config --init --force" + (f" --config {quote(path)}" if options.config else "")
    refuse_broken(
        (options.api_key or any(re.search(SECRET_HEADER, name) for name, _ in options.header),
         "--init does not store keys", "Name a variable: --api-key-env NAME"),
        (path == STANDARD_INPUT, "--init needs a file to write", "Name it with --config FILE."),
        (os.path.lexists(path) and not options.force, f"{path} already exists",
         "To replace it (and the key in it): " + own_command(again)))
    with suppress(Failure):  # what leads to the service stays, unless it is told anew
        old = {} if options.base_url or options.api or not options.force else read_config(path, [])
        for name in ("base_url", "api", "api_key_env"):
            setattr(options, name, getattr(options, name) or old.get(name))
    content = template(options)
    name = "" if options.api_key_env or console.as_json else content.get("api_key_env", "")
    asks = name and not environment(name) and console.is_terminal() and sys.stdin and sys.stdin.isatty()
    if asks:
        content.update(ask_for_key(content["base_url"], content.pop("api_key_env"), path, console))
    write_config(path, content, options.force)
    shown = {**content, "api_key": mask_key(content.get("api_key", "")), "headers": [*dict(options.header)]}
    console.tell(config_file=path, written={name: shown[name] for name in content})
    console.output(f"Wrote {path}: " + ", ".join(f"{name} {as_text(shown[name])}" for name in content))
    if asks and (content.get("api_key") or environment(content["api_key_env"])):
        check_setup(read_settings(parse(["config", "--config", path]), console), run)
        console.output("Next: " + own_command('generate "a red fox in the snow" -o fox.png'))
    elif asks:
        console.output(f"Set {content['api_key_env']}, then run: " + own_command("config --check"))

def template(options: Namespace) -> dict[str, Any]:
    """What --init writes: address, the key's variable, and every other setting that was given."""
    given = flag_layer({**vars(options), "headers": dict(options.header)})
    base_url = {**default_layer(options.api or ""), **given}["base_url"]
    variables = SERVICES[options.api or api_of(base_url.value)].key_variables
    has_openai_key = environment("OPENAI_API_KEY") and not environment("GPT_IMAGE2_API_KEY")
    is_openai = {"$OPENAI_BASE_URL": True, "default": has_openai_key}.get(base_url.source)
    usual = "OPENAI_API_KEY" if is_openai and "OPENAI_API_KEY" in variables else "".join(variables[:1])
    content = {name: checked_value("--init", name, setting.value) for name, setting in given.items()}
    content["base_url"] = checked_base_url(base_url, options.allow_http)
    if options.api_key_env or usual:
        content["api_key_env"] = variable_name(options.api_key_env or usual)
    if options.output:  # the file is read wherever the program is started
        content["output"] = os.path.join(os.getcwd(), os.path.expanduser(options.output))
    return content

def ask_for_key(base_url: str, usual: str, path: str, console: Console) -> dict[str, str]:
    """Ask a person for the key, unseen, and where to keep it. usual: the variable that may hold it."""
    from getpass import getpass
    try:
        key = getpass(f"API key for {host_of(base_url)} (not shown; Enter: it is in a variable): ")
        console.secrets.add_keys(key)
        key = read_key(KeySource("your answer", "", key), ()) if key else ""
        if key and input(f"Keep it in {path}, for you alone to read? [Y/n] ").strip()[:1] in ("", "y", "Y"):
            return {"api_key": key}
        name = input(f"Name of the variable that holds it [{usual}]: ").strip()
        return {"api_key_env": variable_name(name or usual)}
    except EOFError:
        raise usage_failure("no answer; nothing was written") from None

def write_config(path: str, content: Mapping[str, Any], force: bool) -> None:
    """Write the file in one step. An older one with a key is kept beside it, as private."""
    part = f"{path}.{os.getpid()}.part"
    try:
        make_private(os.path.dirname(path))
        private_file(part, os.O_EXCL, json.dumps(content, indent=2).encode() + b"\n").close()
        with suppress(FileNotFoundError), plain_file(path, follow=True) as old:
            if re.search(rb'"(api_key|headers)"', text := old.read(MAX_CONFIG_BYTES)):
                private_file(path + ".bak", content=text).close()
        refuse_broken((not give_name(part, path, force), f"{path} already exists", ""))
    except OSError as error:
        raise usage_failure(f"cannot write {path}: {reason(error)}") from None
    finally:
        discard(part)

def show_settings(settings: Settings, console: Console) -> None:
    """Every setting with its value and its source; keys masked."""
    clean, headers = console.secrets.clean, ", ".join(f"{name}: ***" for name in settings.headers.value)
    shown = {**settings.values, "headers": settings.headers._replace(value=headers)}
    rows = {name: Setting(clean(as_text(setting.value)), setting.source) for name, setting in shown.items()}
    rows["api_key"] = Setting("none", "set GPT_IMAGE2_API_KEY or run: " + own_command("config --init"))
    for number, source in enumerate(settings.keys, 1):
        value = mask_key(source.value) if source.value else "not set"
        value = f"the output of {quoted(source.command[0])}" if source.command else value
        value += "" if may_go(source.host, settings.base_url.value) else f", only for {source.host}"
        rows["api_key" if number == 1 else f"api_key {number}"] = Setting(value, source.source)
    pending = map_texts(unfinished_commands(console), clean)
    console.tell(settings={name: row._asdict() for name, row in rows.items()}, pending=pending,
                 config_file=settings.config_path or None)
    first = ["base_url", *(name for name in rows if name.startswith("api_key")), "model"]
    for name in dict.fromkeys([*first, *rows] if console.verbose else first):
        console.output(f"{name:<11} {rows[name].value or '-'}  ({rows[name].source})")
    console.output(f"config file {settings.config_path or 'none of ' + ', '.join(config_locations())}")
    for request in pending:
        state = "at work" if request["at_work"] else STATES_IN_WORDS[request["state"]]
        console.output(f"unfinished  {request['id']}  {local_time(time.time() - request['age_s'])}, {state}: "
                       f"{request['output']} ({request['prompt']})")
    console.output("To collect one, run its command again. To give one up: "
                   + own_command("config --forget ID") if pending else "unfinished  none")

def forget_requests(wanted: str, console: Console) -> None:
    """Give up the unfinished request with this id, or all that nobody works on: what is under way ends."""
    chosen = [path for path in requests_in(journal_roots(console), console) if wanted in (path[-8:], "all")]
    refuse_broken((not chosen and wanted != "all", "no request has this id", "See: " + own_command("config")))
    forgotten = []
    for path in chosen:
        folder = Folder(path, take_lock(os.path.join(path, "owner")), True)
        if folder.lock is None and wanted == "all":
            console.warn(f"a running command works on {path[-8:]}; give it up by its id")
            continue
        record = read_record(folder.file("request.json"), console) or {}
        billed = billed_in_the_end(folder, stop_failure(KeyboardInterrupt(), folder))
        for lock in [name for name in os.listdir(path) if name.endswith(".lock")]:
            stop_curl(None, folder.file(lock[:-5]))
        ends = time.monotonic() + 5  # so that a program that works on it can notice
        while folder.lock is None and os.path.exists(path) and time.monotonic() < ends:
            time.sleep(0.1)
        folder.remove()
        release(folder.lock)
        forgotten.append(map_texts({**told_request(path, record), "billed": billed}, console.secrets.clean))
    console.tell(forgotten=forgotten)
    for each in forgotten:
        console.output(f"forgot {each['id']}: {each['output']} ({each['prompt']}). {MONEY[each['billed']]}")
    if not forgotten:
        console.note("nothing to forget")

def show_history(most: int, page: str, console: Console) -> None:
    """What was made, the newest last, and what it cost."""
    walks = (os.walk(os.path.join(os.path.dirname(root), "made")) for root in journal_roots(console))
    paths = [os.path.join(folder, name) for folder, _, names in chain(*walks) for name in names]
    found = [read_receipt(path, console) for path in paths if path.endswith(".json")]
    records = sorted(filter(None, found), key=lambda record: record["time"])
    since = {"today": time.strftime("%Y-%m-%d"), "30 days": local_time(time.time() - 30 * DAY), "all": ""}
    sums: dict[str, Any] = {}
    hide = partial(redact, secrets=console.secrets.texts)
    for name, start in since.items():
        counted = [record for record in records if local_time(record["time"]) >= start]
        known = [record for record in counted if isinstance(record.get("cost_usd"), (int, float))]
        pictures, priced = (sum(len(record["saved"]) for record in some) for some in (counted, known))
        cost = round(sum(record["cost_usd"] for record in known), 4)
        sums[name] = {"pictures": pictures, "cost_usd": cost, "unknown": pictures - priced}
    shown = [{**each, "prompt": hide(each["prompt"]), "parameters": map_texts(each.get("parameters"), hide)}
             for each in records[-most:]]
    write_gallery(page, [{**(each["parameters"] or {}), **each, "command": hide(as_text(each.get("again")))}
                         for each in shown[::-1]], console)
    console.tell(history=shown, sums=sums)
    for each in shown:
        facts = f"{local_time(each['time'])}  {in_dollars(each):>7}  {as_text(each.get('elapsed_s')):>5} s"
        for file in each["saved"]:
            size = f"{file['width']}x{file['height']}"
            console.output(f"{facts}  {size:<9}  {file['path']}  {one_line(each['prompt'], 60)}")
            facts = " " * len(facts)  # its cost is that of all its pictures
    for name, total in sums.items():
        unknown = f", {total['unknown']} of them of unknown cost" if total["unknown"] else ""
        console.output(f"{name}: {in_dollars(total)}, pictures: {total['pictures']}{unknown}")

def local_time(seconds: float) -> str:
    """A time as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(max(0, min(seconds, 3e10))))  # a clock may jump

def in_dollars(record: Mapping[str, Any]) -> str:
    """What something cost."""
    cost = record.get("cost_usd")
    return f"${cost:.3f}" if isinstance(cost, (int, float)) else "?"

def check_setup(settings: Settings, run: Run) -> None:
    """Everything that can be proved without spending money."""
    console = run.console
    say = console.note if console.as_json else console.output
    say(f"ok    Python {sys.version.split()[0]}")
    say(f"ok    {check_curl(console.secrets.keys)}")
    say(f"ok    config file {settings.config_path or 'none'}")
    key = find_key(settings, console).value
    say((f"ok    key {mask_key(key)}" if key else "note  no key") + f", endpoint {settings.base_url.value}")
    if settings.service.free_check:
        try_key(settings, key, run, say)
    else:
        say("note  no free request can test a Codex sign-in")
    console.tell()

def try_key(settings: Settings, key: str, run: Run, say: Callable[[str], None]) -> None:
    """A free request that proves host and key, and one without the key: was it the key that was accepted?"""
    request = api_request(settings, key, "GET", settings.service.free_check)._replace(
        timeout=min(60, settings.timeout.value), purpose="models")
    bare = tuple(pair for pair in request.headers if not re.search(SECRET_HEADER, pair[0]))
    run = run._replace(deadline=time.monotonic() + request.timeout)
    host, folder, note, response = host_of(request.url), temporary_folder(), "", None
    try:
        response = send_with_retries(request, folder.file("1"), run)
        with suppress(Failure):
            if key and send_with_retries(request._replace(headers=bare), folder.file("2"), run):
                note = f"{host} answers without the key too: this proves the address, not the key"
    except Failure as failure:
        if failure.http_status not in (404, 405, 501):
            raise
        note = f"{failure.message}: no free request proves address and key"
        note += f". {failure.hint}" if failure.kind == "not_found" else ""
    finally:
        folder.remove()
    if note:
        run.console.warnings.append(run.console.secrets.clean(note))  # for the JSON result
        say(f"note  {note}")
    elif response:
        say(f"ok    {host} {'accepts the key' if key else 'answers'} (HTTP {response.status})")
    if response and settings.service.free_check == "/models":  # being listed does not prove access
        model, items = settings.model.value, json_path(response.document, "data")
        rows = [item for item in items if json_path(item, "id") == model] if isinstance(items, list) else []
        date = json_path(rows[0], "shutdown_date") if rows else None
        listed = f"note  {model} is listed, shut down on {date}" if date else f"ok    {model} is listed"
        say(listed if rows else f"note  {model} is not in the server's list of models")

# ---- Batch: many jobs in one command -------------------------------------------------------------
# What a line may say besides its prompt; everything else is the same for all lines.
LINE_KEYS = {row.name: row for row in OPTIONS if row.name in (*PICTURE_KEYS, "model")
             or (row.commands in (EDIT, IMAGES) and row.name not in ("dry_run", "preview", "open"))}

def run_batch(options: Namespace, settings: Settings, run: Run, ignore_signals: Action) -> int:
    """generate --batch: every line is checked before the first is sent."""
    console, page = run.console, checked_page(options.gallery)
    refuse_broken(
        (options.words or options.prompt_file, "with --batch the prompts are in the lines of its file", ""),
        (options.preview or options.open, "--preview and --open do not work with --batch", "Use --gallery."),
        (options.batch == options.config == "-", "standard input cannot be both config and batch", ""),
        (options.output and is_picture_name(options.output), "with --batch, -o names a folder", ""))
    orders = read_batch(options, settings, run)
    taken: set[str] = set()
    woulds = {order.line: what_would_be(order, console, taken) for order in orders}
    to_buy = [order for order in orders if woulds[order.line] == "buy"]
    price = checked_price([estimate(order.job, order.settings) for order in to_buy], settings)
    for order in orders if options.dry_run else ():
        tell_outlook(order, woulds[order.line], first_path(order.job), run)
    if options.dry_run:
        console.tell(batch={"jobs": len(orders), "to_buy": len(to_buy), "estimate_usd": price})
        console.output(f"{len(orders)} jobs, {len(to_buy)} of them to buy; price: {price_text(price)}")
        return OK
    console.note(f"{len(orders)} jobs, {len(to_buy)} to buy, price: {price_text(price)}{page and '; '}{page}")
    others = [order for order in orders if woulds[order.line] != "made_before"]
    key = ready_to_buy(others, settings, console) if others else KeySource("nothing", "")
    return Batch(settings.jobs.value, key, woulds, page, run).run_all(orders, ignore_signals)

def read_batch(options: Namespace, settings: Settings, run: Run) -> list[Order]:
    """One order for each line. All faults are told with their lines; then nothing is sent."""
    text, orders, faults = read_text(options.batch, "the batch", MAX_BATCH_BYTES), [], []
    refuse_broken((len(text) * 4 >= MAX_BATCH_BYTES, "the batch is too long: make several of it", ""))
    lines = [(number, line.strip()) for number, line in enumerate(re.split("\r\n?|\n", text), 1)
             if not re.match(r"\s*(#|\Z)", line)]
    value, source = settings.output
    name, end = os.path.splitext("batch.txt" if options.batch == "-" else os.path.basename(options.batch))
    named = name if end else name + "-pictures"  # not the file itself
    folder = options.output or (named if source == "default" or is_picture_name(value) else value)
    for number, line in lines:
        try:
            orders.append(read_line(line, number, folder, options, settings, for_line(number, (), run)))
        except Failure as failure:
            faults.append((number, failure.message, failure.hint))
    orders, clashes = named_apart(orders)
    for number, message, hint in (faults := sorted(faults + clashes)):
        text = run.console.secrets.clean(f"line {number}: {message}")
        run.console.warnings.append(text)  # for the JSON result
        run.console.error_line(f"{text}{'' if text.endswith(('?', '.')) else '.'} {hint}".rstrip())
    refuse_broken((faults, f"{len(faults)} of {len(lines)} lines cannot be used; nothing was sent", ""),
                  (not orders, f"there is no prompt in {options.batch}", ""))
    return orders

def for_line(number: int, warnings: Sequence[str], run: Run) -> Run:
    """A run for one line, whose console knows the same secrets and says which line it speaks of."""
    console = Console(copy(run.console.secrets))  # they share what they learn, but not the paths
    console.secrets.paths = list(console.secrets.paths)
    console.label, console.warnings = f"line {number}: ", list(warnings)
    console.quiet = console.as_json = True
    return run._replace(console=console, result=Result())

def read_line(line: str, number: int, folder: str, options: Namespace, settings: Settings, run: Run) -> Order:
    """The checked order of one line: a prompt, or a JSON object."""
    given = {"prompt": line}
    if line.startswith("{"):
        try:
            given = json.loads(line, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise usage_failure(f"it is not valid JSON: {error}") from None
    own, prompt = copy(options), given.pop("prompt", "")
    own.command, own.output = "edit" if given.get("image") else "generate", ""
    for key, value in given.items():
        if value is not None:
            setattr(own, key.replace("-", "_"), line_value(key.replace("-", "_"), value, own.command))
    split_shape(own)
    if not isinstance(prompt, str) or "-" in (prompt, own.prompt_file) or not (prompt or own.prompt_file):
        raise usage_failure("the prompt of a line must be a text in that line, or a file")
    if own.model != options.model:
        settings = settings._replace(values=dict(settings.values, model=Setting(own.model, f"line {number}")))
    own.words, own.output = [prompt] if prompt else [], os.path.join(folder, os.path.expanduser(own.output))
    order = checked_order(own, settings, run)._replace(line=number)
    if own.output.endswith(("/", os.sep)):  # a folder
        stem = f"{file_stem(order.job.prompt)}-{order.identity.fingerprint[:4]}"
        order = renamed(order, stem)._replace(is_named=False)
    return order._replace(warnings=tuple(run.console.warnings))

def line_value(name: str, value: Any, command: str) -> Any:
    """The value that a line gives to an option."""
    row = LINE_KEYS.get(name)
    if row is None:
        raise usage_failure(f"unknown key {quoted(name)}.{nearest(name, [*LINE_KEYS, 'prompt'])}")
    refuse_broken((command not in row.commands, f"{name} needs an image", ""))
    if row.repeatable and isinstance(value, dict):
        return list(value.items())
    if row.repeatable:
        return [read_value(row, as_text(item)) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, (dict, list)) or isinstance(value, bool) != (not row.value):
        raise usage_failure(f"{name} cannot be {TYPE_NAMES[type(value)]}")
    return read_value(row, as_text(value)) if row.value else value

def file_stem(prompt: str) -> str:
    """A name from a prompt's first words, in any script, that every file system takes."""
    letters = (sign if category(sign)[0] in "LMN" else " " for sign in normalize("NFC", prompt[:300].lower()))
    name = "-".join("".join(letters).split())
    short = utf8(name)[:50].decode("utf-8", "ignore")
    return (name if short == name else short.rpartition("-")[0] or short) or "picture"

def renamed(order: Order, stem: str) -> Order:
    """The order with another name for its file."""
    suffix = SUFFIXES[order.requested["format"]][0]
    job = order.job._replace(target=order.job.target._replace(stem=stem, suffix=suffix))
    return order._replace(job=job, identity=identity_of(job, order.settings))

def named_apart(orders: Sequence[Order]) -> tuple[list[Order], list[tuple[int, str, str]]]:
    """(the orders, equal ones only once; the faults where different ones name the same file)."""
    first: dict[str, Order] = {}
    clashes = []
    def place(order: Order) -> str:  # some file systems see no difference
        return normalize("NFC", order.identity.output).lower()
    for order in sorted(orders, key=lambda each: (not each.is_named, each.identity.fingerprint, each.line)):
        fingerprint = order.identity.fingerprint
        if not order.is_named and first.get(place(order), order).identity.fingerprint != fingerprint:
            order = renamed(order, order.job.target.stem + fingerprint[4:12])  # equal four digits
        other = first.setdefault(place(order), order)
        if other.identity.fingerprint != fingerprint:
            one, two = sorted((other, order), key=lambda each: each.line)
            clashes.append((two.line, f"line {one.line} saves another picture in {one.identity.output}", ""))
    return sorted(first.values(), key=lambda order: order.line), clashes

class Batch:
    """Runs orders in forked children and tells each result. running: by the pipe of each, its order, process
    and words so far. stopped: why no other job may begin. limited: met a rate limit, is tried once more."""
    def __init__(self, jobs: int, key: KeySource, woulds: Mapping[int, str], page: str, run: Run) -> None:
        from mmap import mmap
        self.jobs, self.key, self.woulds, self.page, self.console = jobs, key, woulds, page, run.console
        self.run = run._replace(calm=memoryview(mmap(-1, 8)).cast("d"))
        self.running: dict[int, tuple[Order, int, bytearray]] = {}
        self.limited: list[tuple[Order, Mapping[str, Any], int]] = []
        self.entries: list[dict[str, Any]] = []
        self.counts = dict.fromkeys(("bought", "collected", "made_before", "failed"), 0)
        self.dollars, self.exit_code, self.signal_code = 0.0, OK, OK
        self.stopped, self.is_last, self.shown, self.page_due, self.unsure = "", False, 0, 0.0, 0

    def run_all(self, orders: Sequence[Order], ignore_signals: Action) -> int:
        """Run all orders, first those that were made before; the exit code: the highest of their own."""
        self.total, self.waiting = len(orders), sorted(  # the last comes first
            orders, key=lambda order: (self.woulds[order.line] == "made_before", -order.line))
        while self.running or (self.waiting and not self.stopped):
            try:
                while self.waiting and len(self.running) < self.jobs and not self.stopped:
                    self.start(self.waiting.pop())
                self.listen()
            except KeyboardInterrupt as stop:  # what they have begun can be collected
                self.stopped, self.signal_code = self.stopped or "interrupted", signal_exit_code(stop)
                for _, pid, _ in self.running.values():
                    os.kill(pid, signal.SIGTERM)
            if not (self.running or self.waiting or self.stopped or self.is_last):
                self.is_last, self.waiting = True, [order for order, *_ in self.limited]
        for each in self.limited if self.stopped and not self.is_last else ():
            self.tell(*each)
        ignore_signals()
        write_gallery(self.page, self.entries, self.console)
        exit_code, left = self.signal_code or self.exit_code, self.total - sum(self.counts.values())
        seconds = round(time.monotonic() - self.console.started, 1)
        self.console.tell(ok=not exit_code, batch={"jobs": self.total, **self.counts, "not_started": left,
                                                   "cost_usd": round(self.dollars, 4), "elapsed_s": seconds})
        counts = [f"{number} {name.replace('_', ' ')}" for name, number in self.counts.items() if number]
        self.console.note(f"{self.total} jobs: {', '.join(counts)}; ${self.dollars:.3f}, {seconds:.0f} s")
        if left:
            self.console.warn(f"{left} not started: {self.stopped}")
        remembers = all(order.settings.history.value and not order.fresh for order in orders)
        if (left or self.counts["failed"]) and remembers:
            self.console.note("Run the same command again for the rest: what is made is not bought again." + (
                f" Ask first: {self.unsure} may be charged, and would be bought again." * (self.unsure > 0)))
        return exit_code

    def start(self, order: Order) -> None:
        """Begin one job in a process of its own; without fork or if it is made, all of it here and now."""
        run = for_order(order, self.run)
        found = made_before(order.identity, run.console) if self.woulds[order.line] == "made_before" else None
        action = partial(buy_or_collect, order, found, self.key, run)
        if found or not hasattr(os, "fork"):
            with redirect_stdout(io.StringIO()) as told, redirect_stderr(None):
                exit_code = exit_code_of(lambda: action(lambda: None), run)
            self.tell(order, json.loads(told.getvalue()), exit_code)
            if exit_code > 128:
                self.stopped, self.signal_code = "interrupted", exit_code
            return
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        reader, writer = os.pipe()
        if pid := os.fork():
            self.running[reader] = (order, pid, bytearray())
            os.close(writer)
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            return
        exit_code = BUG
        try:  # the child: what it prints is its result, and if the parent dies, nobody reads it any more
            for pipe in (reader, *self.running):
                os.close(pipe)
            for stream in (1, 2):  # whoever reads the parent's streams must not wait for its children
                os.dup2(os.open(os.devnull, os.O_RDWR), stream)
            sys.stdout, sys.stderr = open(writer, "w", encoding="utf-8"), None
            exit_code = exit_code_of(lambda: action(catch_signals()), run)
            sys.stdout.flush()
        finally:
            os._exit(exit_code)

    def listen(self) -> None:
        """Read what children say, and what the end of one means."""
        if self.console.is_unread() and not self.stopped:
            raise KeyboardInterrupt(signal.SIGPIPE)
        for pipe in select.select(list(self.running), [], [], 0.5)[0] if self.running else ():
            order, pid, text = self.running[pipe]
            if piece := os.read(pipe, BLOCK):
                text += piece
                continue
            os.close(pipe)
            del self.running[pipe]
            exit_code = os.waitpid(pid, 0)[1] >> 8
            try:
                record = json.loads(text)
            except ValueError:  # killed
                run, exit_code = for_order(order, self.run), NO_ANSWER
                failure = Failure("stopped", "the job's process died", exit_code=exit_code, collectable=True)
                record = run.result.record(run.console, failure)
            self.tell(order, record, exit_code)
        began = time.monotonic()
        if len(self.entries) > self.shown and began > self.page_due:  # a large page takes time
            self.shown = len(self.entries)
            write_gallery(self.page, self.entries, self.console, self.total - self.shown)
            self.page_due = began + 20 * (time.monotonic() - began)
        done = sum(self.counts.values())
        self.console.refresh(f"{done} of {self.total}, {len(self.running)} under way, "
                             f"{self.counts['failed']} failed, ${self.dollars:.2f}", done / self.total)

    def tell(self, order: Order, record: Mapping[str, Any], exit_code: int) -> None:
        """Tell one result, and what it means for the others."""
        error, console = record.get("error"), for_order(order, self.run).console
        self.console.say("stderr", "", end="")  # the progress line goes
        if error and error["kind"] == "rate_limit" and not (self.is_last or self.stopped or record["saved"]):
            self.limited.append((order, record, exit_code))
            return
        if error and error["kind"] in ("key", "quota", "too_expensive", "config", "curl", "region"):
            self.stopped = self.stopped or error["message"]
        source = "failed" if error else record["source"]
        self.counts[source] += 1
        self.exit_code = max(self.exit_code, exit_code)
        self.unsure += bool(error and error["billed"] != "no" and error["next"] != "again")
        self.dollars += record["cost_usd"] or 0.0 if source in ("bought", "failed") else 0.0
        for warning in record["warnings"]:
            console.warn(warning)
        self.console.finish(record, job=order.line)
        if error:
            texts = {name: error[name] for name in ("kind", "message", "hint", "billed", "request_id")}
            console.explain(Failure(**texts, exit_code=exit_code))
        elif not self.console.is_terminal():
            cost = f", {in_dollars(record)}" if record["cost_usd"] is not None else ""
            self.console.note(f"line {order.line}: {source.replace('_', ' ')}{cost}")
        if self.page:
            self.entries.append(gallery_entry(order, record, self.console))

# ---- Parser --------------------------------------------------------------------------------------
HELP = """Generate and edit images with gpt-image-2.

  gpt_image2 generate "a red fox in the snow" -o fox.png
  gpt_image2 edit fox.png "give the fox a hat" -o hat.png
  gpt_image2 config --check         test the key and the connection, for free

  generate  make an image from a text
  edit      change an image, or combine several
  config    your settings; what was made, and what is unfinished

An image takes 1 to 5 minutes and costs about $0.006 (low quality), $0.05
(medium) or $0.21 (high). Each command has its own help: help COMMAND."""
HEADINGS = {"--show": "What to do", "--batch": "Many pictures", "--image": "Images and masks",
            "--output": "The picture", "--max-cost": "Money and files", "--stream": "Gateways and parameters",
            "--base-url": "Endpoint and key", "--preview": "Output"}  # in the help, before these options
WORD = r"(?s)(?!-).*|-|.* .*|-[\d.,%]+"  # what cannot be an option
SYNOPSIS = {"generate": """gpt_image2 generate PROMPT [options]

  gpt_image2 generate "a red fox in the snow" --quality low -o fox.png
  gpt_image2 generate --batch prompts.txt -o pictures --gallery pictures.html""",
            "edit": """gpt_image2 edit IMAGE [IMAGE ...] PROMPT [options]

  gpt_image2 edit room.png chair.jpg "put the chair into the room"

  IMAGE                  PNG, JPEG, WebP below 50 MB: a file, URL or data: URI""",
            "config": """gpt_image2 config [--show | --init [--force] | --check] [options]
gpt_image2 config --history [N] [--gallery PAGE.html] | --forget ID|all
gpt_image2 config --completion bash|zsh|fish"""}

# How shells complete: a script around the cases, how it offers words, and how files.
COMPLETIONS = {
    "bash": ("""_gpt_image2() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=; COMPREPLY=()
  [[ "${COMP_WORDS[*]:1:COMP_CWORD-1} " =~ (generate|edit|config)" " ]] && command=${BASH_REMATCH[1]}
CASES
}
complete -o default -F _gpt_image2 gpt-image2""", 'COMPREPLY=($(compgen -W "{}" -- "$word"))', ":"),
    "zsh": ("""#compdef gpt-image2
_gpt_image2() {
  local word=$PREFIX before=$words[CURRENT-1] command=${words[(r)(generate|edit|config)]}
CASES
}
_gpt_image2""", "compadd -- {}", "_files")}

def completion(shell: str) -> str:
    """The script with which a shell completes commands, options, their words and the names of files."""
    words = {row.flag: " ".join(row.accepts) for row in OPTIONS if isinstance(row.accepts, tuple)}
    words.update({"--quality": " ".join(QUALITIES), "--size": " ".join((*SIZE_NAMES, "auto", "input"))})
    if shell == "fish":
        lines = ["complete -c gpt-image2 -n __fish_use_subcommand -fa 'generate edit config'"]
        for row in OPTIONS:
            names = f"-l {row.flag[2:]}" + f" -s {row.short[1:]}" * bool(row.short)
            value = f"-xa '{words[row.flag]}'" if row.flag in words else "-r" * bool(row.value)
            lines.append(f"complete -c gpt-image2 -n '__fish_seen_subcommand_from {' '.join(row.commands)}' "
                         f"{names} {value} -d {quote(row.help.partition(chr(10))[0])}")
        return "\n".join(lines)
    script, offer, files = COMPLETIONS[shell]
    cases = [f"    {'|'.join(filter(None, (row.short, row.flag)))}) "
             + (offer.format(words[row.flag]) if row.flag in words else files) + "; return;;"
             for row in OPTIONS if row.value]
    flags = {each: " ".join(row.flag for row in OPTIONS if each in row.commands) for each in SYNOPSIS}
    lines = ["  case $before in", *cases, "  esac", "  case $command:$word in",
             *(f"    {command}:-*) {offer.format(flags[command])};;" for command in flags),
             f"    :*) {offer.format(' '.join((*flags, 'help')))};;", f"    *) {files};;", "  esac"]
    return script.replace("CASES", "\n".join(lines))

def read_value(row: Option, text: str) -> Any:
    """The value of an option on the command line. An empty one is a variable that was not set."""
    words = row.accepts if isinstance(row.accepts, tuple) else ()
    try:
        value = row.accepts(text) if text and callable(row.accepts) else text.lower()
    except ValueError as fault:
        raise usage_failure(f"{row.flag} {fault}") from None
    stray = row.accepts is not PATH and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
    refuse_broken(
        (not text, f"{row.flag} is empty or missing", ""), (stray, f"{row.flag} is not valid UTF-8", ""),
        (words and value not in words, f"{row.flag} cannot be {quoted(text)}, only {', '.join(words)}", ""))
    return value

def parse(arguments: list[str]) -> Namespace:
    """The command line; words may stand anywhere among the options, and after -- they are never options."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    takes_value = {flag for row in OPTIONS if row.value for flag in (row.short, row.flag)}
    at = next((at for at, word in enumerate(arguments[:cut]) if re.fullmatch(WORD, word) and not (
        at and (arguments[at - 1] in takes_value or re.fullmatch(r"-\w+[no]", arguments[at - 1])))), cut)
    command, rest = "".join(arguments[at:at + 1]), (arguments[:at] + arguments[at + 1:cut])[::-1]
    if command not in SYNOPSIS:
        unknown = f"unknown command {quoted(command)}.{nearest(command, SYNOPSIS)}"
        raise usage_failure(unknown if command[:1].isalpha() else "no command: use generate, edit or config",
                            "See: " + own_command("--help"))
    rows = {flag: row for row in OPTIONS if command in row.commands for flag in (row.short, row.flag) if flag}
    options = Namespace(command=command, words=[], **{
        row.name: [] if row.repeatable else None if row.config else row.default for row in OPTIONS})
    while rest:
        word = rest.pop()
        flag, equals, value = word.partition("=")
        if flag not in rows and word[:2] in rows:  # -n3, or several letters: -qv
            flag, equals, value = word[:2], "-", word[2:]
        if not (row := rows.get(flag)) and re.fullmatch(WORD, word):
            options.words.append(word)
        elif not row:
            plain, shown = flag.lower().replace("_", "-"), flag if re.search(HARMLESS, flag) else flag[:2]
            more = next((f" {advice}" for names, advice in STRANGERS.items() if plain in names.split()),
                        nearest(plain, rows, 0.75))
            raise usage_failure(f"unknown option {shown}.{more}", "See: " + own_command(f"{command} --help"))
        elif not row.value:
            refuse_broken((equals == "=", f"{row.flag} takes no value", ""))
            setattr(options, row.name, True)
            rest += [equals + value] if equals else []
        else:
            if not equals:
                follows = rest and re.fullmatch(WORD, rest[-1])
                value = rest.pop() if follows else "20" if row.name == "history" else ""
            found = read_value(row, value)
            setattr(options, row.name, [*getattr(options, row.name), found] if row.repeatable else found)
    split_shape(options)
    options.words += arguments[cut + 1:]
    return options

def split_shape(options: Namespace) -> None:
    """--size may say what --aspect-ratio and --resolution say."""
    for name, fitting in (("aspect_ratio", "[0-9]+:[0-9]+"), ("resolution", "[124]k")):
        if re.fullmatch(fitting, options.size or "") and not getattr(options, name):
            vars(options).update({name: options.size, "size": "auto"})

def help_for(arguments: list[str]) -> str:
    """The help or version that is wanted, or an empty text. Of a command: usage and options in groups."""
    words = arguments[:arguments.index("--")] if "--" in arguments else arguments
    if {"-V", "--version"} & set(words) or words[:1] == ["version"]:
        return f"{os.path.splitext(os.path.basename(own_name()))[0]} {VERSION}"
    if arguments and not {"-h", "--help"} & set(words) and "help" not in words[:2]:
        return ""
    topic, heading, shown = next((word for word in words if word in SYNOPSIS), ""), "", ""
    text = SYNOPSIS.get(topic, HELP)
    for row in OPTIONS:
        heading = HEADINGS.get(row.flag, heading)
        if topic in row.commands:
            text, shown = text + f"\n\n{heading}:" * (heading != shown), heading
            names = (row.short + ", " if row.short else "") + row.flag + " " + row.value
            text += f"\n  {names:22} " + row.help.replace("\n", "\n" + " " * 25)
    return text.replace(PROGRAM + " ", own_command(""))

# ---- main ----------------------------------------------------------------------------------------
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a lock could take the place of a standard stream that is closed
    os.close(handle)
    with suppress(ImportError, OSError, ValueError):  # no core file: it would hold the key; not on Windows
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    misplaced = re.findall(MISPLACED_KEY, "\n".join(arguments))  # first: nothing may show a secret
    console = Console(Secrets([*misplaced, *map(environment, KEY_VARIABLES)]))
    console.as_json = "--json" in arguments
    console.secrets.paths = [re.escape(stem) + r"(?:-converted)?(?![\w-])" for word in arguments if (
        os.path.lexists(word) and re.search(KEY_LIKE, stem := os.path.splitext(word)[0]))]
    if help_text := help_for(arguments):
        console.say("stdout" if arguments else "stderr", help_text.rstrip())
        return OK if arguments else USAGE
    def command() -> int:
        options = parse(arguments)
        console.as_json, console.quiet, console.verbose = options.json, options.quiet, options.verbose
        return (run_config_command if options.command == "config" else run_image_command)(options, run)
    return exit_code_of(command, run := Run(console, Result()))

def exit_code_of(action: Callable[[], int], run: Run) -> int:
    """The exit code of an action. The only place that turns failures into exit codes, and tells them."""
    try:
        return action()
    except (Exception, KeyboardInterrupt) as error:
        failure = error if isinstance(error, Failure) else Failure("bug", f"a bug in this program: {error!r}")
        if isinstance(error, KeyboardInterrupt):
            failure = Failure("interrupted", "stopped; nothing was sent", "", "", signal_exit_code(error))
        run.console.finish(run.result.record(run.console, failure))
        run.console.explain(failure)
        return failure.exit_code

def leave(exit_code: int) -> NoReturn:
    """End the process; on a terminal, after Ctrl-C, by that signal: only then does a shell's loop end too."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if exit_code == INTERRUPTED and os.name == "posix" and any(each and each.isatty() for each in streams):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(exit_code)

if __name__ == "__main__":
    leave(main())
