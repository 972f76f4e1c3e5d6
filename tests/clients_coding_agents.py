"""skills-ref, npx skills, Codex and Claude Code: the skill is valid, installed and seen."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, Mapping, Sequence

from chat_server import ChatServer
from clients_common import README, SKILL, ClientCase, copy_project, node, node_packages, python_packages, run

CODEX, CLAUDE_CODE = "0.169.0", "2.1.329"


class SkillsRefTest(ClientCase):
    client, version = "skills-ref", "0.1.1"

    def test_validate(self) -> None:
        command = python_packages("skills-ref", "skills-ref==0.1.1") / "agentskills"
        self.assertIn("Valid skill", self.run_client(command, "validate", self.skill).stdout)


class NpxSkillsTest(ClientCase):
    client, version = "npx skills", "1.7.4"

    def setUp(self) -> None:
        self.command = [node(), str(node_packages("skills@1.7.4") / "skills" / "bin" / "cli.mjs")]
        super().setUp()

    def test_list(self) -> None:
        self.assertIn("Found 1 skill", self.run_client(*self.command, "add", self.skill, "--list").stdout)

    def test_add(self) -> None:
        add_skill(self)
        for place in (".claude/skills", ".agents/skills", "skills"):
            script = self.work / place / SKILL / "scripts" / "gpt_image2.py"
            self.assertIn("gpt_image2 ", self.run_client(sys.executable, script, "--version").stdout)


def home_folder(client: str, home: Path) -> Path:
    """Where README's line for a client clones the skill to."""
    match = re.search(rf"^\| {client} \| `git clone REPOSITORY ~/([^`]+)`", README, re.MULTILINE)
    assert match, client
    return home / match.group(1)


def add_skill(case: Any) -> None:
    """Install the skill into the working folder for three agents, as its users do."""
    command = [node(), str(node_packages("skills@1.7.4") / "skills" / "bin" / "cli.mjs")]
    case.run_client(*command, "add", case.skill, "-a", "claude-code", "-a", "codex", "-a", "openclaw", "-y", "--copy")


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


class CodexTest(ClientCase):
    client, version = "Codex CLI", CODEX

    def test_skill_added_to_a_project(self) -> None:
        add_skill(self)
        self.assert_listed()

    def test_skill_cloned_as_readme_says(self) -> None:
        copy_project(home_folder("Codex", self.home))
        self.assert_listed()

    def assert_listed(self) -> None:
        """Ask Codex for its skills."""
        (self.home / ".codex").mkdir()
        asked = [{"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "test", "version": "1"}}},
                 {"method": "initialized"},
                 {"id": 2, "method": "skills/list", "params": {"cwds": [str(self.work)], "forceReload": True}}]
        lines = "".join(json.dumps(message) + "\n" for message in asked)
        told = first_line(self, [*codex(), "app-server"], '"id":2', lines)
        (folder,) = told["result"]["data"]
        self.assertEqual(folder["errors"], [])
        skill = next(each for each in folder["skills"] if each["name"] == SKILL)
        self.assertTrue(skill["enabled"] and skill["description"])


class ClaudeCodeTest(ClientCase):
    client, version = "Claude Code", CLAUDE_CODE

    def test_skill_added_to_a_project(self) -> None:
        add_skill(self)
        self.assert_listed()

    def test_skill_cloned_as_readme_says(self) -> None:
        copy_project(home_folder("Claude Code", self.home))
        self.assert_listed()

    def assert_listed(self) -> None:
        """Start Claude Code and read which skills it has found."""
        chat = self.enter(ChatServer(lambda _: "no"))
        command = [claude_code(), "-p", "hi", "--output-format", "stream-json", "--verbose"]
        env = self.environment(**claude_variables(chat))
        told = first_line(self, command, '"subtype":"init"', env=env)
        self.assertIn(SKILL, told["skills"])


def first_line(case: Any, command: Sequence[str], mark: str, sent: str = "",
               env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The first JSON line with that mark that a program prints; then the program is ended."""
    child = subprocess.Popen(command, cwd=str(case.work), env=dict(env or case.environment()), stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    timer = threading.Timer(60, child.kill)
    timer.start()
    try:
        assert child.stdin and child.stdout
        child.stdin.write(sent)
        child.stdin.flush()
        line = next((line for line in child.stdout if mark in line.replace(" ", "")), "")
    finally:
        timer.cancel()
        child.kill()
        child.communicate()
    case.assertTrue(line, f"{command[0]} printed no line with {mark}")
    return dict(json.loads(line))
