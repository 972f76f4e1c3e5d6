"""The same command in the real agents: cut off, in the background, interrupted, and again: it buys once."""
from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import unittest
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from api_server import Answer
from chat_server import ChatServer
from clients_coding_agents import FREE, SANDBOX, SCRIPTING, AgentCase, ClaudeCodeAgentCase, CodexAgentCase, as_script
from clients_hermes import NEWEST, HermesCase
from clients_openclaw import TURN, OpenClawCase, media_lines

HEAD_START = 1.5  # seconds that the last command has for finding the first at work; later it finds its picture
START_SECONDS = 20  # until a client has started it


class AgentOnceCase(AgentCase):
    """A chat model that has one command run twice, and an image server that answers when the second one waits."""

    def setUp(self) -> None:
        super().setUp()
        self.may_answer = threading.Event()
        self.addCleanup(self.may_answer.set)
        self.api.plan(Answer(event=self.may_answer))

    def model(self, *calls: Any) -> ChatServer:
        """The same; when the last call's command is at work, the image server may answer."""
        def last(_: str) -> Any:
            threading.Thread(target=self.answer_soon, args=(self.at_work(),), daemon=True).start()
            return calls[-1]

        return super().model(*calls[:-1], last)

    def answer_soon(self, earlier: set[str]) -> None:
        """Let the image server answer a while after another process runs the command."""
        deadline = time.monotonic() + START_SECONDS
        while not self.at_work() - earlier and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(HEAD_START)
        self.may_answer.set()

    def at_work(self) -> set[str]:
        """The processes that run the command; a shell has it as one word."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                found |= {process.name} if str(self.picture).encode() in words else set()
        return found

    def cut_run(self, number: int, command: Sequence[str], env: Mapping[str, str]) -> None:
        """End a client by a signal, as a terminal sends it, while its command waits for the image server."""
        with self.started(command, env) as child:
            self.wait_for_post(child)
            os.killpg(child.pid, number)
            child.communicate()

    def assert_lost(self, result: str) -> None:
        """The command told that its picture was lost on the way, and did not buy another."""
        self.assertRegex(result, "(?s)code 6\n.*You may be charged for this image")
        self.assertEqual((len(self.api.posts), self.files()), (1, []))

    def wait_for_post(self, child: subprocess.Popen[str]) -> None:
        """Until the image server has been asked."""
        while not self.api.posts:
            self.assertIsNone(child.poll(), "the client ended before its command had asked for a picture")
            time.sleep(0.05)


class StartedAgain:
    """A client is ended with its command at work; then a new conversation, with the same command.

    call makes the model's call, start the client's command and environment for a model.
    """

    def test_interrupted_and_started_again(self: Any) -> None:
        self.end_and_start_again(signal.SIGINT)

    def test_killed_and_started_again(self: Any) -> None:
        self.end_and_start_again(signal.SIGKILL)

    def end_and_start_again(self: Any, number: int) -> None:
        """The end comes by this signal."""
        self.cut_run(number, *self.start(self.enter(ChatServer(lambda _: self.call()))))
        chat = self.model(self.call())
        self.whole_run(*self.start(chat))
        self.assert_bought_once([], chat.results[0])


class ClaudeCodeBuysOnceTest(StartedAgain, AgentOnceCase, ClaudeCodeAgentCase):
    call, start = ClaudeCodeAgentCase.bash, ClaudeCodeAgentCase.command

    def run_twice(self, *calls: Any, **variables: str) -> list[str]:
        """Two calls in one conversation; their results."""
        chat = self.model(*calls)
        self.whole_run(*self.command(chat, **variables))
        first, second = chat.results
        self.assert_bought_once([first], second)
        return chat.results

    def test_limit_too_short(self) -> None:
        """Claude Code moves the first one into the background."""
        self.assertIn("moved to the background", self.run_twice(self.bash(timeout=3000), self.bash())[0])

    def test_run_in_background(self) -> None:
        self.assertIn("running in background", self.run_twice(self.bash(run_in_background=True), self.bash())[0])

    def test_killed_by_the_limit(self) -> None:
        results = self.run_twice(self.bash(timeout=3000), self.bash(), CLAUDE_CODE_DISABLE_BACKGROUND_TASKS="1")
        self.assertIn("timed out", results[0])

    def test_limit_too_short_in_the_sandbox(self) -> None:
        """Each command has a process space of its own there."""
        variables = self.sandbox()
        results = self.run_twice(self.bash(timeout=3000), self.bash(), **variables)
        self.assertIn("moved to the background", results[0])

    def test_killed_by_the_limit_in_the_sandbox(self) -> None:
        """The transfer dies with it; the same command tells that, and buys nothing by itself."""
        variables = self.sandbox()
        chat = self.model(self.bash(timeout=3000), self.bash())
        self.whole_run(*self.command(chat, CLAUDE_CODE_DISABLE_BACKGROUND_TASKS="1", **variables))
        cut_off, result = chat.results
        self.assertIn("timed out", cut_off)
        self.assert_lost(result)

    def test_twice_in_one_message(self) -> None:
        chat = self.model([self.bash(), self.bash()])
        self.whole_run(*self.command(chat))
        self.assert_bought_once([], chat.results[0])
        self.assert_bought_once([], chat.results[1])


class CodexBuysOnceTest(StartedAgain, AgentOnceCase, CodexAgentCase):
    call = CodexAgentCase.execute

    def start(self, chat: ChatServer) -> tuple[list[str], dict[str, str]]:
        """Outside the sandbox, which ends a transfer together with its command."""
        return self.command(chat, FREE)

    def run_twice(self, *calls: Any, sandbox: str = FREE, model: str = "stub") -> None:
        """Two calls in one conversation, of which the first is still at work when its result is told."""
        chat = self.model(*calls)
        self.whole_run(*self.command(chat, sandbox, model=model))
        first, second = chat.results
        self.assertRegex(first, "(?i)session.id")
        self.assert_bought_once([first], second)

    def test_still_running(self) -> None:
        self.run_twice(self.execute(1500), self.execute())

    def test_still_running_in_the_sandbox(self) -> None:
        """Each command has a process space of its own there."""
        self.run_twice(self.execute(1500), self.execute(), sandbox=SANDBOX)

    def test_still_running_from_a_script(self) -> None:
        self.run_twice(as_script(self.execute(1500)), as_script(self.execute()), model=SCRIPTING)

    def test_in_the_sandbox_and_then_outside(self) -> None:
        self.run_in_two(SANDBOX, FREE)

    def test_outside_and_then_in_the_sandbox(self) -> None:
        self.run_in_two(FREE, SANDBOX)

    def run_in_two(self, *sandboxes: str) -> None:
        """The command in one conversation, to its end, and again in another; the home can be written in one of them."""
        for sandbox in sandboxes:
            chat = self.model(self.execute())
            self.whole_run(*self.command(chat, sandbox))
            self.assert_bought_once([], chat.results[0])

    def test_ended_in_the_sandbox(self) -> None:
        """The transfer dies with it; the same command tells that, and buys nothing by itself."""
        self.cut_run(signal.SIGINT, *self.command(self.enter(ChatServer(lambda _: self.execute()))))
        chat = self.model(self.execute())
        self.whole_run(*self.command(chat))
        self.assert_lost(chat.results[0])

    def test_turn_interrupted(self) -> None:
        """Esc in a conversation: Codex leaves the command running, and the model never learns of it."""
        chat = self.model(self.execute(), self.execute())
        self.command(chat, FREE)
        with self.server() as server:
            thread = server.ask("thread/start", cwd=str(self.work), approvalPolicy="never")["thread"]["id"]
            turn = server.start_turn(thread)
            self.wait_for_post(server.child)
            server.ask("turn/interrupt", threadId=thread, turnId=turn)
            server.end_turn()
            server.start_turn(thread)
            server.end_turn()
        first, second = chat.results
        self.assertIn("aborted by user", first)
        self.assert_bought_once([first], second)


@unittest.skipUnless(os.name == "posix", "needs process groups")
class HermesTerminalBuysOnceTest(StartedAgain, AgentOnceCase, HermesCase):
    version = NEWEST
    packages = ("hermes-agent==" + NEWEST,)

    def terminal(self, **more: Any) -> Any:
        """A call of the tool terminal."""
        return "terminal", {"command": self.line, **more}

    def talk(self, chat: ChatServer) -> list[str]:
        """The results of the tools in one conversation."""
        self.whole_run(*self.start(chat))
        return chat.results

    call = terminal

    def start(self, chat: ChatServer) -> tuple[list[str], dict[str, str]]:
        """What starts Hermes, and its environment."""
        self.configure_chat(chat)
        return [str(self.bin / "hermes"), "-z", "draw a fox", "-t", "terminal"], self.environment()

    def run_again(self, *earlier: Any) -> list[str]:
        """These calls, and then one with time enough; the results of the earlier ones."""
        *cut_off, result = self.talk(self.model(*earlier, self.terminal(timeout=600)))
        self.assert_bought_once(cut_off, result)
        return cut_off

    def test_limit_too_short(self) -> None:
        """Twice; then Hermes warns the model not to repeat the call, which is what SKILL.md asks for."""
        first, second = self.run_again(self.terminal(timeout=3), self.terminal(timeout=3))
        for result in (first, second):
            self.assertEqual(json.loads(result.partition("\n")[0])["exit_code"], 124, result)
        self.assertNotIn("Tool loop warning", first)
        self.assertIn("Tool loop warning", second)

    def test_background(self) -> None:
        self.assertIn("session_id", self.run_again(self.terminal(background=True))[0])

    def test_background_until_it_ends(self) -> None:
        self.run_in_background(1)

    def test_background_twice(self) -> None:
        self.run_in_background(2)

    def run_in_background(self, times: int) -> None:
        """Start the command as SKILL.md says, once or twice; then look at each, and wait for each."""
        def ask(place: int, action: str) -> Callable[[str], Any]:
            def turn(_: str) -> Any:
                if action == "wait":
                    self.may_answer.set()
                return "process", {"action": action, "session_id": json.loads(chat.results[place])["session_id"]}
            return turn

        start = self.terminal(background=True, notify_on_complete=True)
        chat: ChatServer = self.enter(ChatServer(
            *[lambda _: start] * times, *(ask(place, "poll") for place in range(times)),
            *(ask(place, "wait") for place in range(times)), lambda _: "Done."))
        results = self.talk(chat)
        self.assertEqual(len(results), 3 * times)
        for running, ended in zip(results[times:2 * times], results[2 * times:]):
            self.assertEqual(json.loads(running)["status"], "running", running)
            self.assertEqual((json.loads(ended)["status"], json.loads(ended)["exit_code"]), ("exited", 0), ended)
            self.assert_bought_once([running], json.loads(ended)["output"])

    def test_turn_ends_and_a_new_one_starts_it_again(self) -> None:
        """Hermes ends while its background command waits for the image server."""
        def done(_: str) -> str:
            while not self.api.posts and not self.may_answer.is_set():
                time.sleep(0.05)
            return "Done."

        self.talk(self.enter(ChatServer(lambda _: self.terminal(background=True), done)))
        self.assertEqual((len(self.api.posts), self.picture.exists()), (1, False))
        self.run_again()


@unittest.skipUnless(os.name == "posix", "needs process groups")
class OpenClawBuysOnceTest(AgentOnceCase, OpenClawCase):

    def execute(self, **more: Any) -> Any:
        """A call of the tool exec."""
        return "exec", {"command": self.line, **more}

    def run_twice(self, **first: Any) -> str:
        """Two calls in one conversation, the first with these arguments; its result."""
        self.openclaw("skills", "install", self.skill)
        chat = self.model(self.execute(**first), self.execute(yieldMs=60_000))
        chat.turns = (*chat.turns[:-1], media_lines)
        self.use_model(chat)
        told = json.loads(self.openclaw(*TURN, "--local"))
        cut_off, result = chat.results
        self.assert_bought_once([cut_off], result)
        self.assert_shown(self.picture, told["payloads"][0])
        return cut_off

    def test_limit_too_short(self) -> None:
        self.assertIn("timed out", self.run_twice(timeoutSeconds=3).lower())

    def test_background(self) -> None:
        self.assertIn("still running", self.run_twice(yieldMs=1500))

    def test_polled(self) -> None:
        chat = self.polling_model()
        self.use_model(chat)
        self.assert_polled(chat, json.loads(self.openclaw(*TURN, "--local")))

    def test_polled_through_a_gateway(self) -> None:
        """The gateway has the key and the address from its settings only."""
        chat = self.polling_model()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.use_model(chat, gateway={"mode": "local", "bind": "loopback", "port": port,
                                      "auth": {"mode": "token", "token": "test-gateway"}})
        self.set_up_skill()
        env = {name: value for name, value in self.variables().items() if not name.startswith("GPT_")}
        with self.started(self.command("gateway", "run"), env) as gateway:
            self.wait_until_ready(gateway, port)
            told = json.loads(self.openclaw(*TURN))
        self.assertEqual(told["status"], "ok")
        self.assert_polled(chat, told["result"])

    def wait_until_ready(self, gateway: subprocess.Popen[str], port: int) -> None:
        """Until the gateway says that it is."""
        status = 0
        while status != 200:
            self.assertIsNone(gateway.poll(), "the gateway ended, or it was not ready in time")
            time.sleep(0.2)
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.suppress(OSError, HTTPException), contextlib.closing(connection):
                connection.request("GET", "/readyz")
                status = connection.getresponse().status

    def polling_model(self) -> ChatServer:
        """A chat model that has the command run, polls until it has ended, and shows the picture."""
        self.openclaw("skills", "install", self.skill)

        def go_on(result: str) -> Any:
            if "still running" not in result:
                return media_lines(result)
            threading.Timer(HEAD_START, self.may_answer.set).start()
            (session,) = re.findall(r"\(session ([\w-]+),", chat.results[0])
            return "process", {"action": "poll", "sessionId": session, "timeout": 500}

        chat: ChatServer = self.enter(ChatServer(lambda _: self.execute(yieldMs=1500), go_on))
        return chat

    def assert_polled(self, chat: ChatServer, told: Any) -> None:
        """The command was handed on to the background, and its picture is shown."""
        self.assertIn("still running", chat.results[0])
        self.assert_bought_once(chat.results[:-1], chat.results[-1])
        self.assert_shown(self.picture, told["payloads"][0])
