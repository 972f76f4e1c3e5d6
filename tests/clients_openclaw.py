"""OpenClaw: installing by every route of README, setting up, and a whole turn of an agent."""
from __future__ import annotations

import json
import re
import shutil
import unittest
from pathlib import Path
from typing import Any

from chat_server import ChatServer
from clients_common import README, SKILL, ClientCase, node, node_packages, saved_path
from clients_published import OPENCLAW, OWNER, VERSION, Registry, published
from support import KEY

TURN = ("agent", "--agent", "main", "-m", "draw a red fox", "--json")


class OpenClawCase(ClientCase):
    """An OpenClaw with a state folder of its own."""
    client, version = "OpenClaw", OPENCLAW

    def setUp(self) -> None:
        self.node, self.modules = node(), node_packages("openclaw@" + OPENCLAW)
        super().setUp()
        self.state = self.root / "state"
        self.workspace = self.state / "workspace"
        self.state.mkdir()
        self.configure()

    def command(self, *words: object) -> list[str]:
        """A command line of openclaw."""
        return [self.node, str(self.modules / "openclaw" / "openclaw.mjs"), *map(str, words)]

    def variables(self, **more: str) -> dict[str, str]:
        """The environment of its commands."""
        return self.environment(OPENCLAW_STATE_DIR=str(self.state), **more)

    def openclaw(self, *words: object, **variables: str) -> str:
        """Run one command of openclaw and return what it prints."""
        return self.run_client(*self.command(*words), env=self.variables(**variables)).stdout

    def configure(self, **sections: Any) -> None:
        """Write its configuration, in which nothing asks the network or writes elsewhere."""
        (self.state / "openclaw.json").write_text(json.dumps({
            "update": {"checkOnStart": False}, "discovery": {"mdns": {"mode": "off"}},
            "logging": {"file": str(self.root / "openclaw.log")}, **sections}))

    def use_model(self, chat: ChatServer, **sections: Any) -> None:
        """The same with a chat model."""
        model = {"baseUrl": chat.url, "apiKey": "test-chat", "api": "openai-completions",
                 "models": [{"id": "stub", "name": "stub"}]}
        self.configure(models={"providers": {"stub": model}, "catalogRefresh": {"enabled": False}},
                       agents={"defaults": {"model": {"primary": "stub/stub"}}}, **sections)

    def set_up_skill(self) -> None:
        """README's two lines."""
        names = re.findall(r"^ +openclaw config set (\S+) \S+$", README, re.MULTILINE)
        self.assertEqual(len(names), 2)
        for name in names:
            self.openclaw("config", "set", name, self.api.url if name.endswith("_URL") else KEY)

    def assert_shown(self, picture: Path, payload: Any) -> None:
        """Fail unless a reply carries that picture."""
        self.assertEqual(payload.get("mediaUrls"), [str(picture)], payload)
        self.assert_picture(picture)


def media_lines(result: str) -> str:
    """A reply with the lines that the script has printed for it."""
    return "\n".join(["Here it is.", *re.findall("^MEDIA:.*$", result, re.MULTILINE)])


class OpenClawTest(OpenClawCase):

    def install(self, *words: object, **variables: str) -> None:
        """Install without a word of trouble; then the model will see the skill."""
        result = self.run_client(*self.command("skills", "install", *words), env=self.variables(**variables))
        self.assertNotRegex(result.stdout + result.stderr, "(?i)fail|error|warn|could not|unable")
        told = json.loads(self.openclaw("skills", "info", SKILL, "--json"))
        self.assertTrue(told["eligible"] and told["modelVisible"] and told["commandVisible"], told)
        self.assertEqual([values for values in told["missing"].values() if values], [])
        self.assertEqual(told["primaryEnv"], "GPT_IMAGE2_API_KEY")

    def install_from(self, registry: Registry, name: str) -> None:
        """Install by a name; what arrives is what was published."""
        self.install(name, OPENCLAW_CLAWHUB_URL=registry.origin)
        place = self.workspace / "skills" / SKILL
        self.assertEqual({each: (place / each).read_bytes() for each in registry.files}, registry.files)
        self.assertEqual(registry.refused, [])

    def test_install_a_folder(self) -> None:
        self.install(self.skill)

    @unittest.skipUnless(shutil.which("git"), "needs git")
    def test_install_from_git(self) -> None:
        for words in (["init", "-q"], ["add", "-A"],
                      ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "copy"]):
            self.run_client("git", *words, cwd=str(self.skill))
        self.install(f"git:file://{self.skill}")

    def test_install_by_name(self) -> None:
        self.install_from(published(self), SKILL)

    def test_find_install_and_verify(self) -> None:
        """By the name with its owner, as the search shows it."""
        registry = published(self)
        address = {"OPENCLAW_CLAWHUB_URL": registry.origin}
        name = self.openclaw("skills", "search", "gpt-image-2", **address).split()[0]
        self.assertEqual(name, f"@{OWNER}/{SKILL}")
        self.install_from(registry, name)
        self.assertIn(f"ownerHandle={OWNER}", next(each for each in registry.asked if "/install?" in each))
        del registry.asked[:]
        self.assertEqual(json.loads(self.openclaw("skills", "verify", name, **address))["decision"], "pass")
        (asked,) = registry.asked
        self.assertTrue(asked.startswith(f"GET /api/v1/skills/{SKILL}/verify?"), asked)
        self.assertIn(f"version={VERSION}", asked)

    def test_agent_turn(self) -> None:
        """A chat model reads SKILL.md, runs the script with the set key, and repeats its MEDIA line."""
        self.openclaw("skills", "install", self.skill)
        place = self.workspace / "skills" / SKILL
        command = f"python3 {place}/scripts/gpt_image2.py generate 'a red fox' --quality low"
        chat = self.enter(ChatServer(lambda _: ("read", {"path": str(place / "SKILL.md")}),
                                     lambda _: ("exec", {"command": command}), media_lines))
        self.use_model(chat)
        self.set_up_skill()
        told = json.loads(self.openclaw(*TURN, "--local"))
        self.assertIn(SKILL, json.dumps(chat.requests[0]))
        picture = Path(saved_path(chat.results[1]))
        self.assert_shown(picture, told["payloads"][0])
        self.assertEqual(picture.parent, self.workspace)
        self.assertEqual([post.header("authorization") for post in self.api.posts], [f"Bearer {KEY}"])
