"""A chat model on loopback that plays one fixed part: for tests of agents that need a model to talk to."""
from __future__ import annotations

import json
import traceback
from typing import Any, Callable, Mapping, NamedTuple

from api_server import LoopbackServer, QuietHandler

# The last tool result -> a final text, or (tool name, arguments), or several of these in a list.
Turn = Callable[[str], Any]


class Message(NamedTuple):
    """What the model says: a text, or calls of tools as (id, tool name, arguments)."""
    model: str
    id: str
    text: str
    calls: tuple[tuple[str, str, Any], ...]


class ChatServer(LoopbackServer):
    """Answers in every form of FORMS. Which turn it is tells the number of tool results in the conversation."""

    def __init__(self, *turns: Turn) -> None:
        super().__init__(handler_of(self))
        self.turns = turns
        self.requests: list[dict[str, Any]] = []
        self.results: list[str] = []  # of the longest conversation
        self.url = self.origin + "/v1"

    def answer(self, request: dict[str, Any], results: list[str]) -> Message:
        """The model's turn in a conversation."""
        self.requests.append(request)
        self.results = max(self.results, results, key=len)
        try:
            turn = self.turns[min(len(results), len(self.turns) - 1)](results[-1] if results else "")
        except Exception:  # told at the end of the test; without an answer an agent asks again and again
            self.faults.append(traceback.format_exc())
            turn = "No idea."
        text, calls = (turn, []) if isinstance(turn, str) else ("", turn if isinstance(turn, list) else [turn])
        numbered = tuple((f"call_{len(results) + place}", *call) for place, call in enumerate(calls))
        return Message(str(request.get("model", "stub")), str(len(results)), text, numbered)


def text_of(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "\n".join(str(part.get("text", "")) for part in parts)


# ---- OpenAI's Chat Completions ----

def completions_results(request: Mapping[str, Any]) -> list[str]:
    """What the tools gave back so far."""
    return [text_of(each.get("content")) for each in request.get("messages", ()) if each.get("role") == "tool"]


def completions_body(message: Message) -> dict[str, Any]:
    """The whole message."""
    calls = [{"index": place, "id": name, "type": "function",
              "function": {"name": tool, "arguments": json.dumps(arguments)}}
             for place, (name, tool, arguments) in enumerate(message.calls)]
    said = {"role": "assistant", "content": None, "tool_calls": calls} if calls else {
        "role": "assistant", "content": message.text}
    choice = {"index": 0, "message": said, "finish_reason": "tool_calls" if calls else "stop"}
    return {"id": "chat_1", "created": 1, "model": message.model, "object": "chat.completion", "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}


def completions_events(message: Message) -> list[dict[str, Any]]:
    """The message as a stream."""
    body = {**completions_body(message), "object": "chat.completion.chunk"}
    (choice,), usage = body["choices"], body.pop("usage")
    chunks = [{"index": 0, "delta": choice["message"], "finish_reason": None},
              {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]
    return [*({**body, "choices": [chunk]} for chunk in chunks), {**body, "choices": [], "usage": usage}]


# ---- Anthropic's Messages ----

def messages_results(request: Mapping[str, Any]) -> list[str]:
    """What the tools gave back so far."""
    contents = [each["content"] for each in request.get("messages", ()) if isinstance(each.get("content"), list)]
    blocks = [block for content in contents for block in content]
    return [text_of(block.get("content")) for block in blocks if block.get("type") == "tool_result"]


def messages_body(message: Message) -> dict[str, Any]:
    """The whole message."""
    calls = [{"type": "tool_use", "id": "toolu_" + name, "name": tool, "input": arguments}
             for name, tool, arguments in message.calls]
    return {"id": "msg_" + message.id, "type": "message", "role": "assistant", "model": message.model,
            "content": calls or [{"type": "text", "text": message.text}],
            "stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1}}


def messages_events(message: Message) -> list[dict[str, Any]]:
    """The message as a stream."""
    body = messages_body(message)
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**body, "content": [], "stop_reason": None}}]
    for index, block in enumerate(body["content"]):
        if block["type"] == "text":
            start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            start = {**block, "input": {}}
        events += [{"type": "content_block_start", "index": index, "content_block": start},
                   {"type": "content_block_delta", "index": index, "delta": delta},
                   {"type": "content_block_stop", "index": index}]
    stop = {"stop_reason": body["stop_reason"], "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}}, {"type": "message_stop"}]


# ---- OpenAI's Responses ----

def responses_results(request: Mapping[str, Any]) -> list[str]:
    """What the tools gave back so far."""
    return [text_of(item.get("output")) for item in request.get("input", ())
            if item.get("type") in ("function_call_output", "custom_tool_call_output")]


def responses_item(name: str, tool: str, arguments: Any) -> dict[str, Any]:
    """One call; a text as arguments is meant for a tool that has no schema."""
    if isinstance(arguments, str):
        return {"type": "custom_tool_call", "id": "item_" + name, "call_id": name, "name": tool, "input": arguments}
    return {"type": "function_call", "id": "item_" + name, "call_id": name, "name": tool,
            "arguments": json.dumps(arguments)}


def responses_body(message: Message) -> dict[str, Any]:
    """The whole message."""
    text = {"type": "message", "id": "item_" + message.id, "role": "assistant",
            "content": [{"type": "output_text", "text": message.text}]}
    usage = {"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 1,
             "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 2}
    return {"id": "resp_" + message.id, "object": "response", "model": message.model, "status": "completed",
            "usage": usage, "output": [responses_item(*call) for call in message.calls] or [text]}


def responses_events(message: Message) -> list[dict[str, Any]]:
    """The message as a stream."""
    body = responses_body(message)
    return [{"type": "response.created", "response": {**body, "status": "in_progress", "output": []}},
            *({"type": "response.output_item.done", "output_index": index, "item": item}
              for index, item in enumerate(body["output"])),
            {"type": "response.completed", "response": body}]


# ---- The server ----

class Form(NamedTuple):
    """How one interface spells a conversation."""
    results: Callable[[Mapping[str, Any]], list[str]]
    body: Callable[[Message], dict[str, Any]]
    events: Callable[[Message], list[dict[str, Any]]]
    last_line: str = ""


FORMS = {"/chat/completions": Form(completions_results, completions_body, completions_events, "data: [DONE]\n\n"),
         "/messages": Form(messages_results, messages_body, messages_events),
         "/responses": Form(responses_results, responses_body, responses_events)}


def event_text(event: Mapping[str, Any]) -> str:
    """One event of a stream."""
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n"


def handler_of(server: ChatServer) -> type[QuietHandler]:
    """The request handler that asks one server."""

    class ChatHandler(QuietHandler):
        def do_GET(self) -> None:
            self.send(200, "application/json", json.dumps({"object": "list", "data": [{"id": "stub"}]}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            path = self.path.partition("?")[0]
            form = next((form for end, form in FORMS.items() if path.endswith(end)), None)
            if not form:
                return self.send(404, "application/json", '{"error": {"message": "not here"}}')
            message = server.answer(request, form.results(request))
            if not request.get("stream"):
                return self.send(200, "application/json", json.dumps(form.body(message)))
            self.send(200, "text/event-stream", "".join(map(event_text, form.events(message))) + form.last_line)

        def send(self, status: int, content_type: str, text: str) -> None:
            """One complete answer."""
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ChatHandler
