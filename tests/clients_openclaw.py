"""OpenClaw and ClawHub: installing, publishing without doing it, and a whole turn of an agent."""
from __future__ import annotations

import io
import json
import sys
import threading
import zipfile
from http.server import ThreadingHTTPServer
from pathlib import Path

from api_server import QuietHandler
from chat_server import ChatServer
from clients_common import SKILL, ClientCase, node, node_packages, saved_path
from support import KEY


class OpenClawCase(ClientCase):
    """An OpenClaw with a state folder of its own."""
    client, version = "OpenClaw", "2026.9.6"

    def setUp(self) -> None:
        self.node, self.modules = node(), node_packages("openclaw@2026.9.6")
        super().setUp()
        self.state = self.root / "state"
        self.workspace = self.state / "workspace"

    def openclaw(self, *words: object, **variables: str) -> str:
        """Run one command of openclaw and return what it prints."""
        env = self.environment(OPENCLAW_STATE_DIR=str(self.state), **variables)
        return self.run_client(self.node, self.modules / "openclaw" / "openclaw.mjs", *words, env=env).stdout

    def configure(self, chat: ChatServer) -> None:
        """Write its configuration: which model, and the key and the address of the skill."""
        (self.state / "openclaw.json").write_text(json.dumps({
            "models": {"providers": {"stub": {"baseUrl": chat.url, "apiKey": "test-chat", "api": "openai-completions",
                                              "models": [{"id": "stub", "name": "stub"}]}}},
            "agents": {"defaults": {"model": {"primary": "stub/stub"}}},
            "skills": {"entries": {SKILL: {"apiKey": KEY, "env": {"GPT_IMAGE2_BASE_URL": self.api.url}}}}}))


class OpenClawTest(OpenClawCase):

    def assert_ready(self) -> None:
        """Fail unless the model will see the skill."""
        told = json.loads(self.openclaw("skills", "info", SKILL, "--json"))
        self.assertTrue(told["eligible"] and told["modelVisible"] and told["commandVisible"], told)
        self.assertEqual([values for values in told["missing"].values() if values], [])
        self.assertEqual(told["primaryEnv"], "GPT_IMAGE2_API_KEY")

    def test_install_a_folder(self) -> None:
        self.openclaw("skills", "install", self.skill)
        self.assert_ready()

    def test_install_by_name(self) -> None:
        """`openclaw skills install gpt-image-2-api`, from a registry on this machine."""
        registry = self.enter(Registry(self.skill))
        self.openclaw("skills", "install", SKILL, OPENCLAW_CLAWHUB_URL=registry.url)
        self.assert_ready()

    def test_quick_validate(self) -> None:
        script = self.modules / "openclaw" / "skills" / "skill-creator" / "scripts" / "quick_validate.py"
        if not script.exists():
            self.skipTest("this version brings no quick_validate.py")
        self.assertIn("Skill is valid!", self.run_client(sys.executable, script, self.skill).stdout)

    def test_agent_turn(self) -> None:
        """A chat model reads SKILL.md, runs the script with the injected key, and the reply carries the picture."""
        self.openclaw("skills", "install", self.skill)
        place = self.workspace / "skills" / SKILL
        command = f"python3 {place}/scripts/gpt_image2.py generate 'a red fox' --quality low"
        chat = self.enter(ChatServer(lambda _: ("read", {"path": str(place / "SKILL.md")}),
                                     lambda _: ("exec", {"command": command}),
                                     lambda result: "Here it is.\nMEDIA:" + saved_path(result)))
        self.configure(chat)
        told = json.loads(self.openclaw("agent", "--local", "--agent", "main", "-m", "draw a red fox", "--json"))
        self.assertIn(SKILL, json.dumps(chat.requests[0]))
        (picture,) = told["payloads"][0]["mediaUrls"]
        self.assert_picture(picture)
        self.assertEqual(Path(picture).parent, self.workspace)
        self.assertEqual(self.api.posts[0].header("authorization"), f"Bearer {KEY}")


class Registry:
    """ClawHub, as far as installing and publishing one skill need it."""

    def __init__(self, skill: Path) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as bundle:
            for path in sorted(skill.rglob("*")):
                if path.is_file() and not path.relative_to(skill).parts[0].startswith("."):
                    bundle.writestr(str(path.relative_to(skill)), path.read_bytes())
        listener = ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler)
        self.listener, self.url = listener, f"http://127.0.0.1:{listener.server_address[1]}"
        verdict = {"requestedSlug": SKILL, "requestedVersion": "1.0.0", "ok": True, "decision": "pass", "slug": SKILL,
                   "version": "1.0.0", "publisherHandle": "tester", "overview": "made here", "reasons": [],
                   "securityAuditUrl": self.url + "/audit", "security": {"status": "clean", "passed": True}}
        self.answers = {
            f"GET /api/v1/skills/{SKILL}/install": json.dumps({
                "ok": True, "slug": SKILL, "installKind": "archive",
                "archive": {"version": "1.0.0", "downloadUrl": self.url + "/bundle.zip"}}).encode(),
            "POST /api/v1/skills/-/security-verdicts": json.dumps({
                "schema": "clawhub.skill.security-verdicts.v1", "items": [verdict]}).encode(),
            "GET /bundle.zip": archive.getvalue()}

    def __enter__(self) -> Registry:
        answers = self.answers

        class RegistryHandler(QuietHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = answers.get(f"{self.command} {self.path.partition('?')[0]}")
                self.send_response(200 if body else 404)
                body = body or b'{"error": "Skill not found"}'
                self.send_header("Content-Type", "application/zip" if body[:2] == b"PK" else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

        self.listener.RequestHandlerClass = RegistryHandler
        threading.Thread(target=self.listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *about: object) -> None:
        self.listener.shutdown()
        self.listener.server_close()


class ClawHubTest(ClientCase):
    client, version = "ClawHub CLI", "0.23.3"

    def test_publish_dry_run(self) -> None:
        command = node_packages("clawhub@0.23.3") / "clawhub" / "bin" / "clawdhub.js"
        registry = self.enter(Registry(self.skill))
        registry.answers.clear()
        told = json.loads(self.run_client(node(), command, "--no-input", "--registry", registry.url, "skill", "publish",
                                          self.skill, "--name", "GPT Image 2 API", "--dry-run", "--json").stdout)
        self.assertEqual((told["status"], told["slug"]), ("would-publish", SKILL))
