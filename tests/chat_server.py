"""A chat model on loopback that plays one fixed part: for tests of agents that need a model to talk to."""
from __future__ import annotations

import json
from typing import Any, Callable

from api_server import LoopbackServer, QuietHandler

Turn = Callable[[str], Any]  # the last tool result -> a final text, or (tool name, arguments)


class ChatServer(LoopbackServer):
    """Answers /v1/chat/completions, one turn for each tool result that is in the conversation so far."""

    def __init__(self, *turns: Turn) -> None:
        super().__init__(handler_of(self))
        self.turns = turns
        self.requests: list[dict[str, Any]] = []
        self.url = self.origin + "/v1"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The assistant's message for a conversation."""
        self.requests.append(request)
        results = [text_of(message.get("content")) for message in request.get("messages", ())
                   if message.get("role") == "tool"]
        turn = self.turns[min(len(results), len(self.turns) - 1)](results[-1] if results else "")
        if isinstance(turn, str):
            return {"role": "assistant", "content": turn}
        name, arguments = turn
        call = {"index": 0, "id": f"call_{len(results)}", "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


def text_of(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    return "\n".join(str(part.get("text", "")) for part in parts)


def handler_of(server: ChatServer) -> type[QuietHandler]:
    """The request handler that asks one server."""

    class ChatHandler(QuietHandler):
        def do_GET(self) -> None:
            self.send(200, "application/json", json.dumps({"object": "list", "data": [{"id": "stub"}]}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            if not self.path.endswith("/chat/completions"):
                return self.send(404, "application/json", '{"error": {"message": "not here"}}')
            message = server.answer(request)
            finish = "tool_calls" if "tool_calls" in message else "stop"
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            facts = {"id": "chat_1", "created": 1, "model": request.get("model", "stub")}
            if not request.get("stream"):
                choice = {"index": 0, "message": message, "finish_reason": finish}
                body = {**facts, "object": "chat.completion", "choices": [choice], "usage": usage}
                return self.send(200, "application/json", json.dumps(body))
            chunks = [{"index": 0, "delta": message, "finish_reason": None},
                      {"index": 0, "delta": {}, "finish_reason": finish}]
            events = [{**facts, "object": "chat.completion.chunk", "choices": [chunk]} for chunk in chunks]
            events.append({**facts, "object": "chat.completion.chunk", "choices": [], "usage": usage})
            lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
            self.send(200, "text/event-stream", "".join(lines))

        def send(self, status: int, content_type: str, text: str) -> None:
            """One complete answer."""
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ChatHandler
