"""The same command in the real agents: cut off, in the background, interrupted, and again: it buys once."""
from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from http.client import HTTPConnection, HTTPException
from typing import Any, Callable, Mapping, Sequence

from api_server import Answer
from chat_server import ChatServer
from clients_coding_agents import CLAUDE_CODE, CODEX, claude_code, claude_variables, codex
from clients_common import ClientCase
from clients_hermes import NEWEST, HermesCase
from clients_openclaw import TURN, OpenClawCase, media_lines
from support import KEY

HEAD_START = 2.0  # seconds that the second command has for finding the first at work; later it finds its picture
CLIENT_SECONDS = 90  # then a client is killed


class AgentOnceCase(ClientCase):
    """A chat model that has one command run twice, and an image server that answers when the second one waits."""

    def setUp(self) -> None:
        super().setUp()
        self.may_answer = threading.Event()
        self.addCleanup(self.may_answer.set)
        self.api.plan(Answer(event=self.may_answer))
        self.picture = self.work / "fox.png"
        script = self.skill / "scripts" / "gpt_image2.py"
        self.line = shlex.join([sys.executable, str(script), "generate", "a fox", "-o", str(self.picture)])

    def environment(self, **extra: str) -> dict[str, str]:
        """The program's own settings too."""
        return super().environment(GPT_IMAGE2_API_KEY=KEY, GPT_IMAGE2_BASE_URL=self.api.url, **extra)

    def model(self, *calls: Any) -> ChatServer:
        """A chat model that makes these calls; from the last one on, the image server may answer."""
        def last(_: str) -> Any:
            threading.Timer(HEAD_START, self.may_answer.set).start()
            return calls[-1]

        earlier: list[Callable[[str], Any]] = [lambda _, call=call: call for call in calls[:-1]]  # type: ignore[misc]
        server: ChatServer = self.enter(ChatServer(*earlier, last, lambda _: "Done."))
        return server

    @contextlib.contextmanager
    def started(self, command: Sequence[str], env: Mapping[str, str], stdin: int = subprocess.DEVNULL) -> Any:
        """A client while it runs; in the end, or when it takes too long, it is killed with its children."""
        child = subprocess.Popen(command, cwd=str(self.work), env=dict(env), stdin=stdin, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, encoding="utf-8", start_new_session=True)

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(CLIENT_SECONDS, end)
        timer.start()
        with child:
            try:
                yield child
            finally:
                timer.cancel()
                end()

    def whole_run(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Let a client run to its good end."""
        with self.started(command, env) as child:
            output, _ = child.communicate()
            self.assertEqual(child.returncode, 0, output)

    def cut_run(self, number: int, command: Sequence[str], env: Mapping[str, str]) -> None:
        """End a client by a signal, as a terminal sends it, while its command waits for the image server."""
        with self.started(command, env) as child:
            self.wait_for_post(child)
            os.killpg(child.pid, number)
            child.communicate()

    def wait_for_post(self, child: subprocess.Popen[str]) -> None:
        """Until the image server has been asked."""
        while not self.api.posts:
            self.assertIsNone(child.poll(), "the client ended before its command had asked for a picture")
            time.sleep(0.05)

    def assert_bought_once(self, cut_off: Sequence[str], result: str) -> None:
        """The last command told of the picture, the earlier ones did not, and there is one purchase."""
        self.assertIn(f"Saved: {self.picture} (", result)
        self.assertNotIn("Saved:", " ".join(cut_off))
        self.assertEqual(len(self.api.posts), 1)
        self.assertEqual(list(self.work.iterdir()), [self.picture])
        self.assert_picture(self.picture)


@unittest.skipUnless(os.name == "posix", "needs process groups")
class ClaudeCodeBuysOnceTest(AgentOnceCase):
    client, version = "Claude Code", CLAUDE_CODE

    def bash(self, **more: Any) -> Any:
        """A call of the Bash tool."""
        return "Bash", {"command": self.line, "description": "Draw a fox", "timeout": 60_000, **more}

    def command(self, chat: ChatServer, **variables: str) -> tuple[list[str], dict[str, str]]:
        """What starts Claude Code, and its environment."""
        return ([claude_code(), "-p", "draw a fox", "--allowedTools", "Bash"],
                self.environment(**claude_variables(chat), **variables))

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


@unittest.skipUnless(os.name == "posix", "needs process groups")
class CodexBuysOnceTest(AgentOnceCase):
    client, version = "Codex CLI", CODEX
    sandbox = ("-c", "sandbox_workspace_write.network_access=true",
               "-c", "sandbox_workspace_write.exclude_slash_tmp=true")  # where the home of these tests is

    def execute(self, milliseconds: int = 30_000) -> Any:
        """A call of the tool exec_command, which hands a longer command on to the background."""
        return "exec_command", {"cmd": self.line, "yield_time_ms": milliseconds}

    def script(self, milliseconds: int = 30_000) -> Any:
        """The same for the models that write JavaScript."""
        arguments = json.dumps(self.execute(milliseconds)[1])
        return "exec", f"text(JSON.stringify(await tools.exec_command({arguments})));"

    def settings(self, chat: ChatServer, model: str = "stub") -> None:
        """Write Codex' configuration: which model, and where it is."""
        folder = self.home / ".codex"
        folder.mkdir(exist_ok=True)
        (folder / ("config" + ".toml")).write_text(
            f'model = "{model}"\nmodel_provider = "stub"\napproval_policy = "never"\n'
            f'[model_providers.stub]\nname = "stub"\nbase_url = "{chat.url}"\nwire_api = "responses"\n')

    def command(self, chat: ChatServer, sandbox: str = "danger-full-access",
                model: str = "stub") -> tuple[list[str], dict[str, str]]:
        """What starts Codex, and its environment."""
        self.settings(chat, model)
        options = ["--skip-git-repo-check", "-s", sandbox, *self.sandbox]
        return [*codex(), "exec", *options, "draw a fox"], self.environment()

    def run_twice(self, *calls: Any, **about: str) -> None:
        """Two calls in one conversation, of which the first is still at work when its result is told."""
        chat = self.model(*calls)
        self.whole_run(*self.command(chat, **about))
        first, second = chat.results
        self.assertRegex(first, "(?i)session.id")
        self.assert_bought_once([first], second)

    def test_still_running(self) -> None:
        self.run_twice(self.execute(1500), self.execute())

    def test_still_running_in_the_sandbox(self) -> None:
        """Each command has a process space of its own there."""
        self.run_twice(self.execute(1500), self.execute(), sandbox="workspace-write")

    def test_still_running_from_a_script(self) -> None:
        self.run_twice(self.script(1500), self.script(), model="gpt-6-astra")

    def test_interrupted_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGINT)

    def test_killed_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGKILL)

    def end_and_start_again(self, number: int) -> None:
        """End the client with its command at work; then a new conversation, with the same command."""
        self.cut_run(number, *self.command(self.enter(ChatServer(lambda _: self.execute()))))
        chat = self.model(self.execute())
        self.whole_run(*self.command(chat))
        self.assert_bought_once([], chat.results[0])

    def test_in_the_sandbox_and_then_outside(self) -> None:
        self.run_in_two("workspace-write", "danger-full-access")

    def test_outside_and_then_in_the_sandbox(self) -> None:
        self.run_in_two("danger-full-access", "workspace-write")

    def run_in_two(self, *sandboxes: str) -> None:
        """The command in one conversation, to its end, and again in another; the home can be written in one of them."""
        for sandbox in sandboxes:
            chat = self.model(self.execute())
            self.whole_run(*self.command(chat, sandbox))
            self.assert_bought_once([], chat.results[0])

    def test_ended_in_the_sandbox(self) -> None:
        """The transfer dies with it; the same command tells that, and buys nothing by itself."""
        self.cut_run(signal.SIGINT, *self.command(self.enter(ChatServer(lambda _: self.execute())), "workspace-write"))
        chat = self.model(self.execute())
        self.whole_run(*self.command(chat, "workspace-write"))
        self.assertRegex(chat.results[0], "code 6")
        self.assertEqual(len(self.api.posts), 1)

    def test_turn_interrupted(self) -> None:
        """Esc in a conversation: Codex leaves the command running, and the model never learns of it."""
        chat = self.model(self.execute(), self.execute())
        self.settings(chat)
        with self.started([*codex(), "app-server"], self.environment(), subprocess.PIPE) as child:
            def ask(number: int, method: str, **parameters: Any) -> Any:
                child.stdin.write(json.dumps({"id": number, "method": method, "params": parameters}) + "\n")
                child.stdin.flush()
                return wait_for(lambda message: message.get("id") == number)["result"]

            def wait_for(wanted: Callable[[Any], bool]) -> Any:
                messages = (json.loads(line) for line in child.stdout if line.startswith("{"))
                return next(message for message in messages if wanted(message))

            def ended(message: Any) -> bool:
                return bool(message.get("method") == "turn/completed")

            ask(1, "initialize", clientInfo={"name": "test", "version": "1"})
            thread = ask(2, "thread/start", cwd=str(self.work), sandbox="danger-full-access")["thread"]["id"]
            words = [{"type": "text", "text": "draw a fox"}]
            turn = ask(3, "turn/start", threadId=thread, input=words)["turn"]["id"]
            self.wait_for_post(child)
            ask(4, "turn/interrupt", threadId=thread, turnId=turn)
            wait_for(ended)
            ask(5, "turn/start", threadId=thread, input=words)
            wait_for(ended)
        first, second = chat.results
        self.assertIn("aborted by user", first)
        self.assert_bought_once([first], second)


@unittest.skipUnless(os.name == "posix", "needs process groups")
class HermesTerminalBuysOnceTest(AgentOnceCase, HermesCase):
    version = NEWEST
    packages = ("hermes-agent==" + NEWEST,)

    def terminal(self, **more: Any) -> Any:
        """A call of the tool terminal."""
        return "terminal", {"command": self.line, **more}

    def talk(self, chat: ChatServer) -> list[str]:
        """The results of the tools in one conversation."""
        self.whole_run(*self.command(chat))
        return chat.results

    def command(self, chat: ChatServer) -> tuple[list[str], dict[str, str]]:
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

    def test_interrupted_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGINT)

    def test_killed_and_started_again(self) -> None:
        self.end_and_start_again(signal.SIGKILL)

    def end_and_start_again(self, number: int) -> None:
        """End Hermes with its command at work; then a new conversation, with the same command."""
        self.cut_run(number, *self.command(self.enter(ChatServer(lambda _: self.terminal()))))
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
