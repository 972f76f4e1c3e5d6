"""A chat model on loopback that plays one fixed part: for tests of agents that need a model to talk to."""
from __future__ import annotations

import json
from typing import Any, Callable, Mapping, NamedTuple

from api_server import LoopbackServer, QuietHandler

Turn = Callable[[str], Any]  # the last tool result -> a final text, or (tool name, arguments)


class ChatServer(LoopbackServer):
    """Answers in every form of FORMS, one turn for each tool result that is in the conversation so far."""

    def __init__(self, *turns: Turn) -> None:
        super().__init__(handler_of(self))
        self.turns = turns
        self.requests: list[dict[str, Any]] = []
        self.results: list[str] = []  # of the longest conversation: what the tools gave back
        self.url = self.origin + "/v1"

    def answer(self, request: dict[str, Any], results: list[str]) -> tuple[str, Any]:
        """The model's turn in a conversation: (a name for it, a final text or a call)."""
        self.requests.append(request)
        self.results = max(self.results, results, key=len)
        turn = self.turns[min(len(results), len(self.turns) - 1)]
        return f"call_{len(results)}", turn(results[-1] if results else "")


def text_of(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "\n".join(str(part.get("text", "")) for part in parts)


# ---- OpenAI's Chat Completions ------------------------------------------------------------------

def completions_results(request: Mapping[str, Any]) -> list[str]:
    """What the tools gave back so far."""
    return [text_of(message.get("content")) for message in request.get("messages", ()) if message["role"] == "tool"]


def completions_events(model: str, name: str, turn: Any) -> list[dict[str, Any]]:
    """One turn as a stream."""
    facts = {"id": "chat_1", "created": 1, "model": model, "object": "chat.completion.chunk"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    message = completions_message(name, turn)
    chunks = [{"index": 0, "delta": message, "finish_reason": None},
              {"index": 0, "delta": {}, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}]
    return [*({**facts, "choices": [chunk]} for chunk in chunks), {**facts, "choices": [], "usage": usage}]


def completions_message(name: str, turn: Any) -> dict[str, Any]:
    """The assistant's message of one turn."""
    if isinstance(turn, str):
        return {"role": "assistant", "content": turn}
    call = {"index": 0, "id": name, "type": "function",
            "function": {"name": turn[0], "arguments": json.dumps(turn[1])}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def completions_body(model: str, name: str, turn: Any) -> dict[str, Any]:
    """One turn at once."""
    *_, finish, last = completions_events(model, name, turn)
    choice = {"index": 0, "message": completions_message(name, turn),
              "finish_reason": finish["choices"][0]["finish_reason"]}
    return {**last, "object": "chat.completion", "choices": [choice]}


# ---- Anthropic's Messages -----------------------------------------------------------------------

def messages_results(request: Mapping[str, Any]) -> list[str]:
    """What the tools gave back so far."""
    blocks = [block for message in request.get("messages", ()) if isinstance(message["content"], list)
              for block in message["content"]]
    return [text_of(block.get("content")) for block in blocks if block.get("type") == "tool_result"]


def messages_body(model: str, name: str, turn: Any) -> dict[str, Any]:
    """One turn at once."""
    block = {"type": "text", "text": turn} if isinstance(turn, str) else {
        "type": "tool_use", "id": "toolu_" + name, "name": turn[0], "input": turn[1]}
    return {"id": "msg_" + name, "type": "message", "role": "assistant", "model": model, "content": [block],
            "stop_reason": "end_turn" if isinstance(turn, str) else "tool_use", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1}}


def messages_events(model: str, name: str, turn: Any) -> list[dict[str, Any]]:
    """One turn as a stream."""
    body = messages_body(model, name, turn)
    (block,) = body["content"]
    empty, delta = ({**block, "text": ""}, {"type": "text_delta", "text": turn}) if isinstance(turn, str) else (
        {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(turn[1])})
    return [{"type": "message_start", "message": {**body, "content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "usage": {"output_tokens": 1},
             "delta": {"stop_reason": body["stop_reason"], "stop_sequence": None}},
            {"type": "message_stop"}]


# ---- OpenAI's Responses -------------------------------------------------------------------------

def responses_results(request: Mapping[str, Any]) -> list[str]:
    """What the tools gave back so far."""
    return [text_of(item.get("output")) for item in request.get("input", ())
            if item.get("type") in ("function_call_output", "custom_tool_call_output")]


def responses_body(model: str, name: str, turn: Any) -> dict[str, Any]:
    """One turn at once. Arguments that are a text are meant for a tool without a schema."""
    if isinstance(turn, str):
        item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": turn}]}
    elif isinstance(turn[1], str):
        item = {"type": "custom_tool_call", "call_id": name, "name": turn[0], "input": turn[1]}
    else:
        item = {"type": "function_call", "call_id": name, "name": turn[0], "arguments": json.dumps(turn[1])}
    usage = {"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 1,
             "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 2}
    return {"id": "resp_" + name, "object": "response", "model": model, "status": "completed", "usage": usage,
            "output": [{**item, "id": "item_" + name, "status": "completed"}]}


def responses_events(model: str, name: str, turn: Any) -> list[dict[str, Any]]:
    """One turn as a stream."""
    body = responses_body(model, name, turn)
    return [{"type": "response.created", "response": {**body, "status": "in_progress", "output": []}},
            {"type": "response.output_item.done", "output_index": 0, "item": body["output"][0]},
            {"type": "response.completed", "response": body}]


# ---- The server ---------------------------------------------------------------------------------

class Form(NamedTuple):
    """How one interface spells a conversation."""
    results: Callable[[Mapping[str, Any]], list[str]]
    body: Callable[[str, str, Any], dict[str, Any]]
    events: Callable[[str, str, Any], list[dict[str, Any]]]
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
            form = next((each for end, each in FORMS.items() if path.endswith(end)), None)
            if not form:
                return self.send(404, "application/json", '{"error": {"message": "not here"}}')
            about = (str(request.get("model", "stub")), *server.answer(request, form.results(request)))
            if not request.get("stream"):
                return self.send(200, "application/json", json.dumps(form.body(*about)))
            self.send(200, "text/event-stream", "".join(map(event_text, form.events(*about))) + form.last_line)

        def send(self, status: int, content_type: str, text: str) -> None:
            """One complete answer."""
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ChatHandler
