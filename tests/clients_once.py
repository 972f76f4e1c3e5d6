"""The same command in the real agents: cut off, in the background, interrupted, and again: it buys once."""
from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import unittest
from typing import Any, Mapping, Sequence

from api_server import Answer
from chat_server import ChatServer
from clients_coding_agents import FREE, SANDBOX, SCRIPTING, AgentCase, ClaudeCodeAgentCase, CodexAgentCase, as_script
from clients_hermes import NEWEST, HermesCase
from clients_openclaw import OpenClawCase

HEAD_START = 2.0  # seconds that the second command has for finding the first at work; later it finds its picture


class AgentOnceCase(AgentCase):
    """A chat model that has one command run twice, and an image server that answers when the second one waits."""

    def setUp(self) -> None:
        super().setUp()
        self.may_answer = threading.Event()
        self.addCleanup(self.may_answer.set)
        self.api.plan(Answer(event=self.may_answer))

    def model(self, *calls: Any) -> ChatServer:
        """The same; from the last call on, the image server may answer."""
        def last(_: str) -> Any:
            threading.Timer(HEAD_START, self.may_answer.set).start()
            return calls[-1]

        return super().model(*calls[:-1], last)

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


class ClaudeCodeBuysOnceTest(AgentOnceCase, ClaudeCodeAgentCase):

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

    def test_interrupted_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGINT)

    def test_killed_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGKILL)

    def end_and_start_again(self, number: int) -> None:
        """End the client with its command at work; then a new conversation, with the same command."""
        self.cut_run(number, *self.command(self.enter(ChatServer(lambda _: self.bash()))))
        chat = self.model(self.bash())
        self.whole_run(*self.command(chat))
        self.assert_bought_once([], chat.results[0])


class CodexBuysOnceTest(AgentOnceCase, CodexAgentCase):

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

    def test_interrupted_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGINT)

    def test_killed_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGKILL)

    def end_and_start_again(self, number: int) -> None:
        """End the client with its command at work; then a new conversation, with the same command."""
        self.cut_run(number, *self.command(self.enter(ChatServer(lambda _: self.execute())), FREE))
        chat = self.model(self.execute())
        self.whole_run(*self.command(chat, FREE))
        self.assert_bought_once([], chat.results[0])

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
class HermesTerminalBuysOnceTest(AgentOnceCase, HermesCase):
    version = NEWEST
    packages = ("hermes-agent==" + NEWEST,)

    def run_twice(self, **first: Any) -> str:
        """Two calls of the tool terminal in one conversation, the first with these arguments; its result."""
        chat = self.model(("terminal", {"command": self.line, **first}),
                          ("terminal", {"command": self.line, "timeout": 60}))
        self.configure(model={"provider": "custom", "default": "stub", "base_url": chat.url, "api_key": "test-chat"})
        self.whole_run([str(self.bin / "hermes"), "-z", "draw a fox", "-t", "terminal"], self.environment())
        cut_off, result = chat.results
        self.assert_bought_once([cut_off], result)
        return cut_off

    def test_limit_too_short(self) -> None:
        self.assertIn("timed out", self.run_twice(timeout=3))

    def test_background(self) -> None:
        self.assertIn("session_id", self.run_twice(background=True))


@unittest.skipUnless(os.name == "posix", "needs process groups")
class OpenClawBuysOnceTest(AgentOnceCase, OpenClawCase):

    def run_twice(self, **first: Any) -> str:
        """Two calls of the tool exec in one conversation, the first with these arguments; its result."""
        self.openclaw("skills", "install", self.skill)
        chat = self.model(("exec", {"command": self.line, **first}),
                          ("exec", {"command": self.line, "yieldMs": 60_000}))
        self.configure(chat)
        self.openclaw("agent", "--local", "--agent", "main", "-m", "draw a fox", "--json")
        cut_off, result = chat.results[:2]
        self.assert_bought_once([cut_off], result)
        return cut_off

    def test_limit_too_short(self) -> None:
        self.assertIn("timed out", self.run_twice(timeoutSeconds=3).lower())

    def test_background(self) -> None:
        self.assertIn("still running", self.run_twice(yieldMs=1500))
