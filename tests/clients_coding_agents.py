"""skills-ref, npx skills, Codex and Claude Code: the skill is valid, installed, seen and used in whole turns."""
from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from api_server import Answer
from chat_server import ChatServer
from clients_common import PROJECT, README, SKILL, ClientCase, copy_project, node, node_packages, python_packages, run
from support import KEY

CODEX, CLAUDE_CODE, NPX_SKILLS, SKILLS_REF = "0.169.0", "2.1.332", "1.7.4", "0.1.1"
CLIENT_SECONDS = 90  # then a client is killed
MANUAL = (PROJECT / "SKILL.md").read_text(encoding="utf-8")
RELAY = "http://relay.invalid/v1"  # where Claude Code's sandbox lets a command go
NOWHERE = "http://127.0.0.1:9"  # no proxy, so that a client that would ask other hosts cannot
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "NO_PROXY": "127.0.0.1"}
SCRIPTING = "gpt-6-astra"  # one of the models whose only tool takes JavaScript
UPSTREAM = "user:upstream-login"  # of the proxy behind that of the sandbox


class SkillsRefTest(ClientCase):
    """The whole repository is a skill, too."""
    client, version = "skills-ref", SKILLS_REF

    def test_validate(self) -> None:
        check_with_agentskills(self, self.skill)


class NpxSkillsTest(ClientCase):
    client, version = "npx skills", NPX_SKILLS

    def test_list(self) -> None:
        list_with_npx_skills(self, self.skill)

    def test_add(self) -> None:
        add_skill(self)
        for place in (".claude/skills", ".agents/skills", "skills"):
            script = self.work / place / SKILL / "scripts" / "gpt_image2.py"
            self.assertIn("gpt_image2 ", self.run_client(sys.executable, script, "--version").stdout)


def check_with_agentskills(case: ClientCase, folder: Path) -> None:
    """Fail unless the specification's own program accepts a skill."""
    command = python_packages("skills-ref", "skills-ref==" + SKILLS_REF) / "agentskills"
    case.assertIn("Valid skill", case.run_client(command, "validate", folder).stdout)


def npx_skills() -> list[str]:
    """The command that starts it."""
    return [node(), str(node_packages("skills@" + NPX_SKILLS) / "skills" / "bin" / "cli.mjs")]


def list_with_npx_skills(case: ClientCase, folder: Path) -> None:
    """Fail unless it finds the skill, and only this, in a folder."""
    case.assertIn("Found 1 skill", case.run_client(*npx_skills(), "add", folder, "--list").stdout)


def home_folder(client: str, home: Path) -> Path:
    """Where README's line for a client clones the skill to."""
    match = re.search(rf"^\| {client} \| `git clone REPOSITORY ~/([^`]+)`", README, re.MULTILINE)
    assert match, client
    return home / match.group(1)


def add_skill(case: Any) -> None:
    """Install the skill into the working folder for three agents, as its users do."""
    agents = ("-a", "claude-code", "-a", "codex", "-a", "openclaw")
    case.run_client(*npx_skills(), "add", case.skill, *agents, "-y", "--copy")


def codex() -> list[str]:
    """The command that starts Codex."""
    return [node(), str(node_packages("@openai/codex@" + CODEX) / "@openai" / "codex" / "bin" / "codex.js")]


def claude_code() -> str:
    """Claude Code, whose package fetches the program itself only when it is told to."""
    package = node_packages("@anthropic-ai/claude-code@" + CLAUDE_CODE) / "@anthropic-ai" / "claude-code"
    command = package / "bin" / "claude.exe"
    if not command.exists() or command.stat().st_size < 1_000_000:
        result = run([node(), package / "install.cjs"])
        if result.returncode:
            raise unittest.SkipTest("cannot be installed: " + result.stderr[-200:])
    return str(command)


def claude_variables(chat: ChatServer) -> dict[str, str]:
    """What Claude Code needs to talk to that server only."""
    return {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": chat.origin,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}


# ---- Whole turns ---------------------------------------------------------------------------------------------

@unittest.skipUnless(os.name == "posix", "needs process groups")
class AgentCase(ClientCase):
    """A client whose model asks it for a fox, and what comes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.picture = self.work / "fox.png"
        self.line = self.line_of(self.skill)

    def line_of(self, skill: Path) -> str:
        """The command, with the script of a skill in this folder."""
        script = skill / "scripts" / "gpt_image2.py"
        return shlex.join([sys.executable, str(script), "generate", "a fox", "-o", str(self.picture)])

    def environment(self, **extra: str) -> dict[str, str]:
        """The program's own settings too."""
        return super().environment(**{"GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.api.url, **extra})

    def model(self, *calls: Any) -> ChatServer:
        """A chat model that makes these calls, or those that these functions make of the last result."""
        turns = [call if callable(call) else lambda _, call=call: call for call in calls]
        server: ChatServer = self.enter(ChatServer(*turns, lambda _: "Done."))
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

    def whole_run(self, command: Sequence[str], env: Mapping[str, str]) -> str:
        """Let a client run to its good end; its output."""
        with self.started(command, env) as child:
            output: str = child.communicate()[0]
            self.assertEqual(child.returncode, 0, output)
        return output

    def assert_bought_once(self, cut_off: Sequence[str], result: str) -> None:
        """The last command told of the picture, the earlier ones did not, and there is one purchase."""
        self.assertIn(f"Saved: {self.picture} (", result)
        self.assertNotIn("Saved:", " ".join(cut_off))
        self.assertEqual(len(self.api.posts), 1)
        self.assertEqual(self.files(), [self.picture])
        self.assert_picture(self.picture, (1024, 1024))

    def assert_refused(self, result: str, exit_code: int, *words: str) -> None:
        """The command told why, asked nobody and left nothing."""
        self.assertRegex(result, f"(?i)exit(ed with)? code {exit_code}")
        for word in words:
            self.assertIn(word, result)
        self.assertEqual((self.api.posts, self.files()), ([], []))

    def files(self) -> list[Path]:
        """What is in the working folder; Claude Code's sandbox leaves empty folders there."""
        return [path for path in self.work.rglob("*") if not path.is_dir()]


class Conversation:
    """A client that reads and writes a JSON object a line."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def send(self, **message: Any) -> None:
        """One message to it."""
        assert self.child.stdin
        self.child.stdin.write(json.dumps(message) + "\n")
        self.child.stdin.flush()

    def messages(self) -> Iterator[Any]:
        """Its messages from now on."""
        assert self.child.stdout
        return (json.loads(line) for line in self.child.stdout if line.startswith("{"))


def prompt_of(chat: ChatServer) -> str:
    """All texts of the model's last request."""
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts(each)

    return "\n".join(texts(chat.requests[-1]))


def found(pattern: str, text: str) -> re.Match[str]:
    """Where a line of a text has this form."""
    match = re.search(pattern, text, re.MULTILINE)
    assert match, f"no {pattern} in {text[:2000]}"
    return match


LISTED = f"{SKILL}: " + found("^description: (.+)$", MANUAL)[1]  # the skill in a model's prompt


# ---- Codex ---------------------------------------------------------------------------------------------------

# README's words for Codex' configuration: the sandbox, the network, and the table that the network is in.
SANDBOX, NETWORK, TABLE = (found(f"^ +({word}.*)$", README)[1] for word in (
    "sandbox_mode = ", "network_access = ", r"\[sandbox_"))
FREE = SANDBOX.replace("workspace-write", "danger-full-access")


def as_script(call: tuple[str, Any]) -> Any:
    """The same call from JavaScript."""
    return "exec", f"text(JSON.stringify(await tools.{call[0]}({json.dumps(call[1])})));"


class CodexAgentCase(AgentCase):
    """Codex, with a model on this machine."""
    client, version = "Codex CLI", CODEX

    def environment(self, **extra: str) -> dict[str, str]:
        """Codex would ask GitHub for plugins, and its maker for news."""
        return super().environment(**{**OFFLINE, **extra})

    def execute(self, milliseconds: int = 30_000, **more: Any) -> Any:
        """A call of the tool exec_command, which hands a longer command on to the background."""
        return "exec_command", {"cmd": self.line, "yield_time_ms": milliseconds, **more}

    def command(self, chat: ChatServer, sandbox: str = SANDBOX, network: str = NETWORK,
                model: str = "stub") -> tuple[list[str], dict[str, str]]:
        """What starts Codex, and its environment; its configuration has these lines.

        The sandbox may not write to /tmp: the home of these tests is there, and a user's home is closed, too.
        """
        folder = self.home / ".codex"
        folder.mkdir(exist_ok=True)
        (folder / ("config" + ".toml")).write_text(  # scanners take the whole name for an attack on Codex
            f'{sandbox}\nmodel = "{model}"\nmodel_provider = "stub"\n'
            f'[model_providers.stub]\nname = "stub"\nbase_url = "{chat.url}"\nwire_api = "responses"\n'
            f"{TABLE}\nexclude_slash_tmp = true\n{network}\n")
        return [*codex(), "exec", "--skip-git-repo-check", "draw a fox"], self.environment()

    @contextlib.contextmanager
    def server(self) -> Any:
        """What stands behind Codex' windows."""
        with self.started([*codex(), "app-server"], self.environment(), subprocess.PIPE) as child:
            server = AppServer(child)
            server.ask("initialize", clientInfo={"name": "test", "version": "1"})
            yield server


class AppServer(Conversation):
    """Codex, as its windows talk to it; it gets all that it asks for."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        super().__init__(child)
        self.number = 0
        self.allowed: list[dict[str, Any]] = []

    def ask(self, method: str, **parameters: Any) -> Any:
        """The result of one call."""
        self.number += 1
        self.send(id=self.number, method=method, params=parameters)
        answer = self.wait_for(lambda message: message.get("id") == self.number and "method" not in message)
        assert "result" in answer, answer
        return answer["result"]

    def start_turn(self, thread: str) -> str:
        """Ask for a picture; the turn's id."""
        words = [{"type": "text", "text": "draw a fox"}]
        return str(self.ask("turn/start", threadId=thread, input=words)["turn"]["id"])

    def end_turn(self) -> None:
        """Wait until the model has said its last word."""
        self.wait_for(lambda message: message.get("method") == "turn/completed")

    def wait_for(self, wanted: Callable[[Any], Any]) -> Any:
        """The next message of that kind."""
        for message in self.messages():
            if wanted(message):
                return message
            if "id" in message and "method" in message:
                self.allowed.append(message)
                self.send(id=message["id"], result={"decision": "accept"})
        raise AssertionError("Codex ended too early")


class CodexTest(CodexAgentCase):

    def test_skill_added_to_a_project(self) -> None:
        add_skill(self)
        self.assert_listed()

    def test_skill_cloned_as_readme_says(self) -> None:
        copy_project(home_folder("Codex", self.home))
        self.assert_listed()

    def assert_listed(self) -> None:
        """Ask Codex for its skills."""
        with self.server() as server:
            (folder,) = server.ask("skills/list", cwds=[str(self.work)], forceReload=True)["data"]
        self.assertEqual(folder["errors"], [])
        skill = next(each for each in folder["skills"] if each["name"] == SKILL)
        self.assertTrue(skill["enabled"])
        self.assertEqual(f"{SKILL}: {skill['description']}", LISTED)

    def turn(self, *calls: Any, **about: str) -> list[str]:
        """A whole turn, in README's sandbox unless told otherwise; the results of these calls."""
        chat = self.model(*calls)
        self.whole_run(*self.command(chat, **about))
        self.assertEqual(len(chat.results), len(calls), chat.results)
        return chat.results

    def test_turn_in_the_sandbox_of_readme(self) -> None:
        """The model finds the skill in its prompt, reads it and follows it."""
        copy_project(home_folder("Codex", self.home))

        def read(_: str) -> Any:
            prompt = prompt_of(chat)
            root, place = found(rf"^- {re.escape(LISTED)} \(file: (\w+)/(\S+)\)$", prompt).groups()
            manual = Path(found(f"^- `{root}` = `(.+)`$", prompt)[1], place)
            self.line = self.line_of(manual.parent)
            return "exec_command", {"cmd": shlex.join(["cat", str(manual)])}

        chat = self.model(read, lambda _: self.execute())
        self.whole_run(*self.command(chat))
        manual, result = chat.results
        self.assertIn(MANUAL.strip(), manual)
        self.assert_bought_once([], result)
        self.assertFalse((self.home / ".local").exists(), "the home was not closed")

    def test_sandbox_without_network(self) -> None:
        (result,) = self.turn(self.execute(), network="")
        self.assert_refused(result, 6, "Nothing was sent", "no network", "sandbox", "require_escalated", NETWORK, TABLE)

    def test_sandbox_that_only_reads(self) -> None:
        """What `codex exec` does by itself."""
        (result,) = self.turn(self.execute(), sandbox="")
        self.assert_refused(result, 2, "Read-only", "sandbox", "require_escalated", SANDBOX, NETWORK, TABLE)

    def test_leaving_the_sandbox_without_a_person(self) -> None:
        """`codex exec` has nobody to ask."""
        (result,) = self.turn(self.execute(sandbox_permissions="require_escalated"))
        self.assertIn("approval policy is Never", result)
        self.assertEqual((self.api.posts, self.files()), ([], []))

    def test_leaving_the_sandbox(self) -> None:
        """The model does what the message of the sandbox without network says, and a person allows it."""
        chat = self.model(self.execute(), self.execute(sandbox_permissions="require_escalated", justification="net"))
        self.command(chat, network="")
        with self.server() as server:
            thread = server.ask("thread/start", cwd=str(self.work), approvalPolicy="on-request")["thread"]["id"]
            server.start_turn(thread)
            server.end_turn()
        self.assertEqual([each["params"]["cwd"] for each in server.allowed], [str(self.work)])
        first, second = chat.results
        self.assertRegex(first, "(?s)code 6.*require_escalated")
        self.assert_bought_once([first], second)

    def test_polled(self) -> None:
        """A command that takes longer than a call may."""
        self.poll(lambda call: call)

    def test_polled_from_a_script(self) -> None:
        """The same with the models that write JavaScript."""
        self.poll(as_script, model=SCRIPTING)

    def poll(self, spell: Callable[[Any], Any], **about: str) -> None:
        """Start the command, and look at it twice; it gets its picture at the second time."""
        may_answer = threading.Event()
        self.addCleanup(may_answer.set)
        self.api.plan(Answer(event=may_answer))

        def look(told: str) -> Any:
            number = int(found(r"(?i)session.id\D+(\d+)", told)[1])
            return spell(("write_stdin", {"session_id": number, "chars": "", "yield_time_ms": 5000}))

        def look_again(told: str) -> Any:
            may_answer.set()
            return look(told)

        *earlier, last = self.turn(spell(self.execute(1500)), look, look_again, **about)
        self.assert_bought_once(earlier, last.replace("\\n", "\n"))


# ---- Claude Code ---------------------------------------------------------------------------------------------

class ClaudeCodeAgentCase(AgentCase):
    """Claude Code, with a model on this machine."""
    client, version = "Claude Code", CLAUDE_CODE

    def bash(self, **more: Any) -> Any:
        """A call of the Bash tool."""
        return "Bash", {"command": self.line, "description": "Draw a fox", "timeout": 60_000, **more}

    def command(self, chat: ChatServer, *words: str, **variables: str) -> tuple[list[str], dict[str, str]]:
        """What starts Claude Code, and its environment."""
        return ([claude_code(), "-p", "draw a fox", "--allowedTools", "Bash,Skill", *words],
                self.environment(**{**claude_variables(chat), **OFFLINE, **variables}))

    def sandbox(self) -> dict[str, str]:
        """Turn on Claude Code's own sandbox, for the variables returned.

        Its proxy never connects to this machine, but it goes through the proxy that Claude Code itself is told of: that
        is the image server here, which takes the address of any host.
        """
        for program in ("bwrap", "so" + "cat"):  # scanners doubt the second
            if not shutil.which(program):
                raise unittest.SkipTest(f"Claude Code's sandbox needs {program}")
        folder = self.home / ".claude"
        folder.mkdir(exist_ok=True)
        (folder / "settings.json").write_text(json.dumps({"sandbox": {
            "enabled": True, "failIfUnavailable": True, "network": {"allowedDomains": ["relay.invalid"]}}}))
        self.line += " --allow-http"
        proxy = self.api.origin.replace("//", f"//{UPSTREAM}@")
        return {"GPT_IMAGE2_BASE_URL": RELAY, "NO_PROXY": "127.0.0.1", "http_proxy": proxy, "https_proxy": proxy}


class ClaudeCodeTest(ClaudeCodeAgentCase):

    def test_skill_added_to_a_project(self) -> None:
        add_skill(self)
        self.assert_listed()

    def test_skill_cloned_as_readme_says(self) -> None:
        copy_project(home_folder("Claude Code", self.home))
        self.assert_listed()

    def assert_listed(self) -> None:
        """Read which skills Claude Code says it has found."""
        output = self.whole_run(*self.command(self.model(), "--output-format", "stream-json", "--verbose"))
        events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        self.assertIn(SKILL, next(event for event in events if event.get("subtype") == "init")["skills"])

    def test_turn(self) -> None:
        """The model finds the skill in its prompt, loads it and follows it."""
        copy_project(home_folder("Claude Code", self.home))

        def load(_: str) -> Any:
            self.assertIn(f"\n- {LISTED}\n", prompt_of(chat))
            return "Skill", {"skill": SKILL}

        def draw(_: str) -> Any:
            prompt = prompt_of(chat)
            self.assertIn(MANUAL[MANUAL.index("\n# "):].strip(), prompt)
            self.line = self.line_of(Path(found("^Base directory for this skill: (.+)$", prompt)[1]))
            return self.bash()

        chat = self.model(load, draw)
        self.whole_run(*self.command(chat))
        loaded, result = chat.results
        self.assert_bought_once([loaded], result)

    def test_turn_in_the_sandbox(self) -> None:
        """Its proxy wants a login, which is in the variables; the program uses it and never tells it."""
        variables = self.sandbox()
        refused = f"curl -s -o {os.devnull} -w '%{{http_code}}\\n' -x http://127.0.0.1:3128 {RELAY}"
        chat = self.model(self.bash(command=f"echo $http_proxy; {refused}; {self.line} -v"))
        self.whole_run(*self.command(chat, **variables))
        proxy, without_login, result = chat.results[0].split("\n", 2)
        user, password = found(r"^http://(srt\.\w+):(\w+)@127.0.0.1:3128$", proxy).groups()
        self.assertEqual(without_login, "407")
        self.assert_bought_once([], result)
        for secret in (user, password, base64.b64encode(f"{user}:{password}".encode()).decode()):
            self.assertNotIn(secret, result)
        (post,) = self.api.posts
        self.assertEqual(post.path, RELAY + "/images/generations")
        self.assertEqual(post.header("Proxy-Authorization"), "Basic " + base64.b64encode(UPSTREAM.encode()).decode())
        self.assertFalse((self.home / ".local").exists(), "the home was not closed")

    def test_host_that_the_sandbox_forbids(self) -> None:
        variables = {**self.sandbox(), "GPT_IMAGE2_BASE_URL": "https://elsewhere.invalid/v1"}
        chat = self.model(self.bash())
        self.whole_run(*self.command(chat, **variables))
        self.assert_refused(chat.results[0], 6, "the proxy refused the connection to elsewhere.invalid (HTTP 403)")

    def test_host_that_a_person_allows(self) -> None:
        variables = {**self.sandbox(), "GPT_IMAGE2_BASE_URL": "http://elsewhere.invalid/v1"}
        chat = self.model(self.bash())
        self.assertEqual(self.run_with_a_person(chat, variables), [{"host": "elsewhere.invalid"}])
        self.assert_bought_once([], chat.results[0])

    def test_host_that_a_person_refuses(self) -> None:
        """They are asked once."""
        variables = {**self.sandbox(), "GPT_IMAGE2_BASE_URL": "https://elsewhere.invalid/v1"}
        chat = self.model(self.bash())
        self.assertEqual(self.run_with_a_person(chat, variables, allows=False), [{"host": "elsewhere.invalid"}])
        self.assert_refused(chat.results[0], 6, "the proxy refused the connection to elsewhere.invalid (HTTP 403)")

    def test_leaving_the_sandbox(self) -> None:
        """No server on this machine can be reached from it; a person allows the command to run outside."""
        variables = {**self.sandbox(), "GPT_IMAGE2_BASE_URL": self.api.url}
        chat = self.model(self.bash(), self.bash(dangerouslyDisableSandbox=True))
        asked = self.run_with_a_person(chat, variables)
        self.assertEqual([each["command"] for each in asked], [self.line])
        first, second = chat.results
        self.assertRegex(first, "(?s)code 6\n.*Nothing was sent")
        self.assert_bought_once([first], second)

    def run_with_a_person(self, chat: ChatServer, variables: Mapping[str, str],
                          allows: bool = True) -> list[dict[str, Any]]:
        """A whole turn, in which a person allows all that Claude Code asks for, or refuses; what that was."""
        words = ("--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
                 "--permission-prompt-tool", "stdio")
        command, env = self.command(chat, *words, **variables)
        command.remove("draw a fox")
        asked = []
        with self.started(command, env, subprocess.PIPE) as child:
            client = Conversation(child)
            client.send(type="user", message={"role": "user", "content": "draw a fox"})
            for message in client.messages():
                if message["type"] == "control_request":
                    asked.append(message["request"]["input"])
                    client.send(type="control_response", response={
                        "subtype": "success", "request_id": message["request_id"],
                        "response": {"behavior": "allow", "updatedInput": asked[-1]} if allows else
                                    {"behavior": "deny", "message": "no"}})
                if message["type"] == "result":
                    break
        return asked
