"""A loopback RunAPI: both dialects, tasks that are polled, uploads; strict, and able to misbehave on order.

A request is received (Received), checked (Declined when the service would refuse it) and answered (Reply), or
treated the way a planned Order says. Nothing leaves 127.0.0.1 and nothing is logged.
"""
from __future__ import annotations

import base64
import collections
import functools
import hashlib
import json
import re
import threading
import time
import zlib
from typing import Any, Callable, NamedTuple, final
from urllib.parse import unquote

from api_server import Listener, LoopbackServer, QuietHandler, Reply, draw_png, sniff

# ---- What the service accepts (November 2026) --------------------------------------------------------------

CREATE_PATH = re.compile(r"/(v1|api/v1/gpt_image_2)/(text_to_image|edit_image)")
POLL_PATH = re.compile(CREATE_PATH.pattern + r"/([^/]+)")
TASK_PATH = re.compile(r"/api/v1/tasks/([^/]+)")
LONG_NAMES = {"text_to_image": "gpt-image-2-text-to-image", "edit_image": "gpt-image-2-image-to-image"}
SHORT_NAME = "gpt-image-2"
RATIOS = ("auto", "1:1", "3:2", "2:3", "4:3", "3:4", "5:4", "4:5", "16:9", "9:16", "2:1", "1:2", "3:1", "1:3", "21:9",
          "9:21")
RESOLUTIONS = ("1k", "2k", "4k")
FIELDS = {"model", "prompt", "aspect_ratio", "output_resolution", "callback_url"}
MAX_IMAGES, MAX_KEY = 16, 512
COST = {"1k": 0.05, "2k": 0.08, "4k": 0.12}  # made up: the real prices are not public
# What any client sends by itself; a signed PUT takes nothing else but the headers that prepare returned.
OWN_HEADERS = {"host", "user-agent", "accept", "accept-encoding", "connection", "content-length"}
MESSAGES = {400: "Bad request", 401: "Unauthorized", 402: "Insufficient credits", 404: "Not found",
            405: "Method not allowed", 409: "Idempotency-Key was used with another body", 413: "Payload too large",
            422: "Validation failed", 429: "Too many requests", 500: "Server error",
            503: "No active channel available"}
MAX_HOLD = 60.0  # seconds that a held answer may last, so that no test can hang


# ---- Data --------------------------------------------------------------------------------------------------

class Received(NamedTuple):
    """One request as it came in; `kind` says what it is for, `fields` are its JSON object."""
    kind: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    fields: dict[str, Any]
    when: float

    def header(self, name: str) -> str:
        """Return the first header of that name in any case, or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class Order(NamedTuple):
    """One misbehaviour; the defaults are a good answer."""
    status: int = 0  # answer this instead of doing anything
    body: bytes | None = None  # verbatim
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    drop: str = ""  # unread: before anything is done, silent: after it, half: in the middle of the answer
    delay: float = 0.0  # seconds of silence before the answer
    trickle: float = 0.0  # seconds between 16 slices of the answer
    event: threading.Event | None = None  # hold the answer back until this is set


class Task:
    """One paid image."""

    def __init__(self, number: int, name: str, dialect: str, action: str, request: Received) -> None:
        self.number, self.name, self.dialect, self.action, self.request = number, name, dialect, action, request
        self.prompt: str = request.fields["prompt"]
        self.looks, self.born = 0, time.monotonic()
        self.body = request.body


class Declined(Exception):
    """A request that the service refuses."""

    def __init__(self, status: int, message: str = "", errors: dict[str, list[str]] | None = None) -> None:
        super().__init__(message)
        content: dict[str, Any] = {"error": message or MESSAGES[status]}
        if errors:
            content["errors"] = errors
        self.reply = Reply(json.dumps(content).encode(), status)


def invalid(field: str, problem: str) -> Declined:
    """Return the refusal of one field."""
    return Declined(422, "Validation failed", {field: [problem]})


@functools.lru_cache(maxsize=64)
def picture(seed: int) -> bytes:
    """Return a result: a small landscape, padded so that its download takes several writes."""
    return draw_png(96, 64, seed, padding=100_001)


# ---- Checking a request ------------------------------------------------------------------------------------

def kind_of(method: str, path: str) -> str:
    """Return what a request is for, an empty string for a path that is not there."""
    if path.startswith("/files/"):
        return "file"
    if path.startswith("/storage/"):
        return "put" if method == "PUT" else ""
    posts = {"/api/v1/files/prepare": "prepare", "/api/v1/files/confirm": "confirm"}
    gets = {"/api/v1/me": "me", "/v1/models": "me"}
    if method == "POST" and CREATE_PATH.fullmatch(path):
        return "create"
    if method == "GET" and (POLL_PATH.fullmatch(path) or TASK_PATH.fullmatch(path)):
        return "poll"
    return (posts if method == "POST" else gets if method == "GET" else {}).get(path, "")


def check_fields(fields: dict[str, Any], dialect: str, action: str, models: tuple[str, ...]) -> None:
    """Refuse a create that breaks the contract."""
    known = FIELDS | ({"source_image_urls"} if action == "edit_image" else set())
    for name in fields:
        if name not in known:
            raise invalid(name, "is not a known field")
    if fields.get("model") not in models:
        raise invalid("model", f"is not available: {fields.get('model')}")
    if not isinstance(fields.get("prompt"), str) or not fields["prompt"].strip():
        raise invalid("prompt", "is required")
    ratio, resolution = fields.get("aspect_ratio", "auto"), fields.get("output_resolution", "1k")
    if ratio not in RATIOS:
        raise invalid("aspect_ratio", "is not included in the list")
    if resolution not in RESOLUTIONS:
        raise invalid("output_resolution", "is not included in the list")
    if (ratio, resolution) == ("1:1", "4k") or (ratio == "auto" and resolution != "1k"):
        raise invalid("output_resolution", f"{resolution} is not available with {ratio}")


def check_sources(fields: dict[str, Any]) -> None:
    """Refuse an edit without 1 to 16 URLs."""
    urls = fields.get("source_image_urls")
    if not isinstance(urls, list) or not 1 <= len(urls) <= MAX_IMAGES:
        raise invalid("source_image_urls", f"must have 1 to {MAX_IMAGES} items")
    if not all(isinstance(url, str) and re.match(r"https?://[^/]", url) for url in urls):
        raise invalid("source_image_urls", "must be http or https URLs")


def check_put(request: Received, ticket: dict[str, Any]) -> None:
    """Refuse bytes that are not the prepared ones, and any header but the returned ones."""
    for name, value in ticket["headers"].items():
        if request.header(name) != value:
            raise Declined(400, f"the signed header {name} is {request.header(name)!r}")
    for name, _ in request.headers:
        if name.lower() not in OWN_HEADERS and name.lower() not in map(str.lower, ticket["headers"]):
            raise Declined(400, f"{name} is not a signed header")
    if ticket["used"]:
        raise Declined(409, "this URL was used before")
    digest = base64.b64encode(hashlib.md5(request.body).digest()).decode()
    if (len(request.body), digest) != (ticket["byte_size"], ticket["checksum"]):
        raise Declined(400, "size or checksum differ from the prepared ones")


# ---- Serving -----------------------------------------------------------------------------------------------

@final
class RunApiServer(LoopbackServer):
    """The server as tests use it: set switches, plan orders, run the client against `url`, look at what arrived."""

    def __init__(self, key: str = "test-key", port: int = 0) -> None:
        """Listen at once, so that `url` is known."""
        super().__init__(RunApiHandler, port)
        self.key = key
        self.lock = threading.RLock()
        self._served = 0
        self.url = self.origin
        self.reset()

    def reset(self) -> None:
        """Forget everything and be the service that its pages and its SDKs describe."""
        with self.lock:
            self.requests: list[Received] = []
            self.tasks: list[Task] = []
            self.uploads: dict[str, bytes] = {}  # by name below /files/
            self.tickets: dict[str, dict[str, Any]] = {}
            self.keys: dict[tuple[str, str], Task] = {}
            self._plans: dict[str, collections.deque[Order]] = collections.defaultdict(collections.deque)
            self.dialects = {"page", "sdk"}
            self.absent = 404  # what a dialect that is switched off answers
            self.models = {"page": ("long",), "sdk": ("short",)}
            self.polls, self.seconds = 1, 0.0  # a task is done after so many looks and so much time
            self.pause = "20"  # retry-after-ms of an answer about a running task
            self.poll_at = {"create", "tasks"}  # places where a task may be looked at
            self.located = ""  # answer a create with 202 and this Location, with {id}
            self.wrapped = ""  # /api/v1/tasks answers with an envelope: object, text
            self.done = "completed"
            self.failures: dict[int, str] = {}  # text by the task's number
            self.at_once = False  # a create is answered with the finished task
            self.reshape: Callable[[dict[str, Any]], dict[str, Any]] = dict  # of every answer about a task

    def plan(self, kind: str, *orders: Order) -> None:
        """Queue orders for the next requests of one kind: create, poll, prepare, put, confirm, file, me."""
        self._plans[kind].extend(orders)

    def plan_nothing(self) -> None:
        """Forget all orders."""
        with self.lock:
            self._plans.clear()

    def of_kind(self, *kinds: str) -> list[Received]:
        """Return all requests of these kinds in order of arrival."""
        with self.lock:
            return sorted((each for each in self.requests if each.kind in kinds), key=lambda each: each.when)

    @property
    def creates(self) -> list[Received]:
        """Return the POSTs that ask for a task, of both dialects, refused ones too."""
        return self.of_kind("create")

    def tasks_for(self, prompt: str) -> list[Task]:
        """Return the paid tasks of one prompt."""
        with self.lock:
            return [task for task in self.tasks if task.prompt == prompt]

    def take(self, kind: str) -> Order:
        """Return the order for a request that has just arrived."""
        with self.lock:
            return self._plans[kind].popleft() if self._plans[kind] else Order()

    def reply(self, request: Received, order: Order) -> Reply:
        """Return the answer to a complete request; raises Declined when it breaks the rules."""
        if request.kind in ("put", "file"):
            if request.header("Authorization"):
                raise Declined(400, "no Authorization here: this is another service")
        elif request.header("Authorization") != f"Bearer {self.key}":
            raise Declined(401)
        if order.status or order.body is not None:
            status = order.status or 200
            body = json.dumps({"error": MESSAGES.get(status, "error")}).encode() if order.body is None else order.body
            return Reply(body, status, order.content_type)
        if not request.kind:
            raise Declined(404)
        return getattr(self, "answer_" + request.kind)(request)  # type: ignore[no-any-return]

    # ---- Tasks ----

    def answer_create(self, request: Received) -> Reply:
        """Make a task, or find the one of the same key."""
        prefix, action = CREATE_PATH.fullmatch(request.path).groups()  # type: ignore[union-attr]
        dialect = "page" if prefix == "v1" else "sdk"
        if dialect not in self.dialects:
            raise Declined(self.absent)
        if request.header("Content-Type").partition(";")[0] != "application/json":
            raise Declined(400, "the body must be application/json")
        names = {"long": LONG_NAMES[action], "short": SHORT_NAME}
        check_fields(request.fields, dialect, action, tuple(names[each] for each in self.models[dialect]))
        if action == "edit_image":
            check_sources(request.fields)
        key = request.header("Idempotency-Key")
        if len(key) > MAX_KEY or not re.fullmatch(r"[\x21-\x7e]*", key):
            raise Declined(400, "Idempotency-Key is not printable or too long")
        with self.lock:
            task = self.keys.get((request.path, key)) if key and dialect == "sdk" else None
            if task and task.body != request.body:
                raise Declined(409)
            replayed = task is not None
            if task is None:
                number = len(self.tasks) + 1
                name = f"tsk_{number:03}" if dialect == "page" else f"00000000-0000-4000-8000-{number:012}"
                task = Task(number, name, dialect, action, request)
                self.tasks.append(task)
                self.keys[request.path, key] = task
        return self.created(task, replayed)

    def created(self, task: Task, replayed: bool) -> Reply:
        """Return the answer to a create that was accepted."""
        about = (("X-RunAPI-Task-Id", task.name), ("retry-after-ms", self.pause))
        if self.located:
            location = self.located.replace("{id}", task.name)
            return Reply(b"{}", 202, headers=(*about, ("Location", location)))
        content = self.running(task)
        if self.at_once:
            content = self.finished(task)
        if task.dialect == "page":
            content["model"] = task.request.fields["model"]
        if replayed:
            content["task_replayed"] = True
        return Reply(json.dumps(self.reshape(content)).encode(), headers=about)

    def running(self, task: Task) -> dict[str, Any]:
        """Return a task's state in the words of its dialect."""
        if task.dialect == "page":
            return {"task_id": task.name, "status": "pending"}
        return {"id": task.name, "status": "processing"}

    def finished(self, task: Task) -> dict[str, Any]:
        """Return a task's end: images and cost, or an error."""
        words = re.search(r"\[fail:? ?([^]]*)\]", task.prompt)
        failure = self.failures.get(task.number) or (words and (words.group(1) or "generation failed"))
        name = {key: value for key, value in self.running(task).items() if key != "status"}
        if failure:
            return {**name, "status": "failed", "error": failure}
        cost = COST[task.request.fields.get("output_resolution", "1k")]
        return {**name, "status": self.done, "images": [{"url": f"{self.url}/files/{task.name}.png"}],
                "usage": {"cost": cost, "generated_images": 1}}

    def answer_poll(self, request: Received) -> Reply:
        """Look at a task."""
        at_create, at_tasks = POLL_PATH.fullmatch(request.path), TASK_PATH.fullmatch(request.path)
        name = unquote((at_create or at_tasks).groups()[-1])  # type: ignore[union-attr]
        with self.lock:
            task = next((each for each in self.tasks if each.name == name), None)
            if task is None or ("create" if at_create else "tasks") not in self.poll_at:
                raise Declined(404)
            if at_create and at_create.groups()[:2] != ("v1" if task.dialect == "page" else "api/v1/gpt_image_2",
                                                        task.action):
                raise Declined(404)
            task.looks += 1
            over = task.looks > self.polls and time.monotonic() - task.born >= self.seconds
        content = self.finished(task) if over else self.running(task)
        if over and at_tasks and self.wrapped:
            content = self.envelope(task, content)
        headers = (("X-RunAPI-Task-Id", task.name), *(() if over else (("retry-after-ms", self.pause),)))
        return Reply(json.dumps(self.reshape(content)).encode(), headers=headers)

    def envelope(self, task: Task, content: dict[str, Any]) -> dict[str, Any]:
        """Return a finished task's answer wrapped, as /api/v1/tasks does."""
        failed = content["status"] == "failed"
        body: Any = {"error": content["error"]} if failed else content
        return {"id": task.name, "status": content["status"], "response": {
            "status": 422 if failed else 200, "content_type": "application/json", "headers": {},
            "body": json.dumps(body) if self.wrapped == "text" else body}}

    # ---- Files ----

    def answer_prepare(self, request: Received) -> Reply:
        """Promise a place for a file."""
        fields = request.fields
        needed = {"filename", "byte_size", "checksum"}
        if not needed <= set(fields) <= {*needed, "content_type"}:
            raise invalid("filename", "filename, byte_size and checksum are required, and nothing else is known")
        md5 = re.fullmatch(r"[A-Za-z0-9+/]{22}==", str(fields["checksum"]))
        if not isinstance(fields["byte_size"], int) or not md5:
            raise invalid("checksum", "must be the base64 of an MD5 digest")
        with self.lock:
            name = f"signed-{len(self.tickets) + 1}"
            headers = {"Content-MD5": fields["checksum"], "X-Storage-Pass": f"pass for {name}; once"}
            if "content_type" in fields:
                headers["Content-Type"] = fields["content_type"]
            self.tickets[name] = {**fields, "headers": headers, "used": False, "data": b""}
        return Reply(json.dumps({"signed_id": name, "upload_url": f"{self.url}/storage/{name}?signature=a%2Fb&x=1",
                                 "headers": headers}).encode())

    def answer_put(self, request: Received) -> Reply:
        """Take a file's bytes."""
        with self.lock:
            ticket = self.tickets.get(request.path[len("/storage/"):])
            if ticket is None:
                raise Declined(404)
            check_put(request, ticket)
            ticket.update(used=True, data=request.body)
        return Reply(b"", 200, "text/plain")

    def answer_confirm(self, request: Received) -> Reply:
        """Give the URL of a file that has arrived."""
        ticket = self.tickets.get(str(request.fields.get("signed_id")))
        if set(request.fields) != {"signed_id"} or ticket is None or not ticket["used"]:
            raise invalid("signed_id", "is unknown, or nothing was uploaded")
        return self.stored(ticket["filename"], ticket["data"])

    def stored(self, name: str, data: bytes) -> Reply:
        """Keep a file for an hour."""
        with self.lock:
            place = f"uploads/{len(self.uploads) + 1}.{sniff(data)[0] or 'bin'}"
            self.uploads[place] = data
        return Reply(json.dumps({"file_name": name, "url": f"{self.url}/files/{place}", "size_bytes": len(data),
                                 "mime_type": f"image/{sniff(data)[0]}", "created_at": "2026-11-21T10:00:00Z",
                                 "expires_at": "2026-11-21T11:00:00Z"}).encode())

    def source_bytes(self, request: Received) -> list[bytes | str]:
        """Return the input images of an edit: the bytes that were uploaded, or the URL of another host."""
        return [self.uploads.get(url[len(self.url + "/files/"):], url) for url in request.fields["source_image_urls"]]

    def answer_file(self, request: Received) -> Reply:
        """Serve a result or an upload."""
        name = request.path[len("/files/"):]
        with self.lock:
            task = next((each for each in self.tasks if f"{each.name}.png" == name), None)
        if task is None and name not in self.uploads:
            raise Declined(404)
        return Reply(self.result(task) if task else self.uploads[name], content_type="image/png")

    def result(self, task: Task) -> bytes:
        """Return the picture of a task."""
        return picture(zlib.crc32(task.prompt.encode()) + task.number)

    def answer_me(self, request: Received) -> Reply:
        """Prove a key, free of charge."""
        if request.path == "/v1/models":
            return Reply(json.dumps({"object": "list", "data": [{"id": SHORT_NAME, "object": "model"}]}).encode())
        account = {"id": 1, "name": "a"}
        return Reply(json.dumps({**account, "email": "a@invalid", "account": account}).encode())

    def next_id(self) -> str:
        """Return a new request id."""
        with self.lock:
            self._served += 1
            return f"req_run_{self._served}"


class RunApiHandler(QuietHandler):
    """Receive a request, answer it as ordered."""
    server: Listener

    def do_GET(self) -> None:
        """Receive one request and answer it."""
        api, path = self.server.api, self.path.partition("?")[0]  # not urlsplit: behind `//` it sees a host
        kind, when = kind_of(self.command, path), time.monotonic()
        order = api.take(kind)
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) != size:
            self.close_connection = True
            return
        request = Received(kind, self.command, path, list(self.headers.items()), body, read_object(body), when)
        with api.lock:
            api.requests.append(request)
        if order.drop == "unread" or not self.answer(request, order):
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_GET

    def answer(self, request: Received, order: Order) -> bool:
        """Answer a complete request; False when the connection has to end without an answer."""
        try:
            reply = self.server.api.reply(request, order)
        except Declined as refused:
            reply = refused.reply
        deadline, stopping = time.monotonic() + MAX_HOLD, self.server.api.stopping
        stopping.wait(order.delay)
        while order.event and not order.event.wait(0.05) and time.monotonic() < deadline and not stopping.is_set():
            pass
        if stopping.is_set() or order.drop == "silent":
            return False
        self.send(reply, order)
        return True

    def send(self, reply: Reply, order: Order) -> None:
        """Send status, headers and body."""
        self.send_response(reply.status)
        own = (("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body))),
               ("X-Request-Id", self.server.api.next_id()), *reply.headers)
        planned = {name.lower() for name, _ in order.headers}
        for name, value in (*(pair for pair in own if pair[0].lower() not in planned), *order.headers):
            self.send_header(name, value)
        self.end_headers()
        body = reply.body[:len(reply.body) // 2] if order.drop == "half" else reply.body
        step = max(1, -(-len(body) // 16) if order.trickle else len(body))
        for start in range(0, len(body), step):
            self.wfile.write(body[start:start + step])
            if order.trickle and self.server.api.stopping.wait(order.trickle):
                return
        self.close_connection = self.close_connection or bool(order.drop)


def read_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object, an empty one for anything else."""
    try:
        fields = json.loads(body.decode())
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
