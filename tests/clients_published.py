"""The package for ClawHub: what the real client uploads, and what all validators say of it."""
from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

from api_server import LoopbackServer, QuietHandler
from clients_coding_agents import check_with_agentskills, codex, list_with_npx_skills
from clients_common import HERE, PROJECT, SKILL, ClientCase, node, node_packages, python_packages
from clients_hermes import NEWEST

OPENCLAW, CLAWHUB = "2026.9.6", "0.23.3"
OWNER, NAME = "tester", "GPT Image 2 API"
VERSION = "1.0.0"  # ClawHub's for what is new, whatever the skill's own is
Routes = Dict[str, Callable[[], Any]]  # "METHOD path" -> what makes the answer
PUBLISHED: dict[str, bytes] = {}  # the files of the package; it is published once in a run


class Registry(LoopbackServer):
    """ClawHub, as far as publishing, finding and installing one skill need it."""

    def __init__(self) -> None:
        super().__init__(handler_of(self))
        self.uploads: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}  # of the published skill; none: it is not there
        self.asked: list[str] = []
        self.refused: list[str] = []

    def answer(self, method: str, target: str, body: bytes) -> Any:
        """Bytes or JSON for a request, None for what is not here."""
        self.asked.append(f"{method} {target}")
        path = target.partition("?")[0]
        if path.startswith("/upload/"):
            self.uploads[path] = body
            return {"storageId": path}
        routes = {**self.for_publishers(body), **(self.for_users() if self.files else {})}
        known = routes.get(f"{method} {path}")
        if not known:
            self.refused.append(self.asked[-1])
        return known() if known else None

    def for_publishers(self, body: bytes) -> Routes:
        """How it takes a skill."""
        return {
            "POST /api/v1/skills/-/upload-url": lambda: {
                "uploadUrl": f"{self.origin}/upload/{len(self.asked)}", "uploadTicket": "1"},
            "POST /api/v1/skills": lambda: self.publish(json.loads(body))}

    def publish(self, wanted: Mapping[str, Any]) -> Any:
        """Take what was uploaded for one version, if it came whole."""
        files = {each["path"]: self.uploads[each["storageId"]] for each in wanted["files"]}
        sums = {each["path"]: each["sha256"] for each in wanted["files"]}
        assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        assert (wanted["slug"], wanted["ownerHandle"], wanted["version"]) == (SKILL, OWNER, VERSION), wanted
        self.files = files
        return {"ok": True, "skillId": "1", "versionId": "1", "publicationStatus": "published"}

    def for_users(self) -> Routes:
        """How it shows and hands out the skill."""
        about = {"slug": SKILL, "version": VERSION, "displayName": NAME}
        passed = {**about, "ok": True, "decision": "pass", "reasons": [], "publisherHandle": OWNER,
                  "security": {"status": "clean", "passed": True}}
        verdict = {**passed, "requestedSlug": SKILL, "requestedVersion": VERSION, "overview": "made here",
                   "securityAuditUrl": self.origin + "/audit"}
        verified = {**passed, "schema": "clawhub.skill.verify.v1", "pageUrl": self.origin, "createdAt": 1,
                    "publisherDisplayName": None, "publisherProfileUrl": None, "tag": None, "card": {},
                    "resolvedFrom": "version", "artifact": {}, "provenance": {}, "signature": {}}
        found = {**about, "source": "clawhub", "ownerHandle": OWNER, "score": 1,
                 "install": {"kind": "clawhub", "reference": f"@{OWNER}/{SKILL}"}}
        archive = {"version": VERSION, "downloadUrl": self.origin + "/bundle.zip"}
        return {
            f"GET /api/v1/skills/{SKILL}/install": lambda: {
                "ok": True, "slug": SKILL, "installKind": "archive", "archive": archive},
            f"GET /api/v1/skills/{SKILL}/verify": lambda: verified,
            "POST /api/v1/skills/-/security-verdicts": lambda: {
                "schema": "clawhub.skill.security-verdicts.v1", "items": [verdict]},
            "GET /api/v1/search": lambda: {"results": [found]},
            "GET /bundle.zip": self.bundle}

    def bundle(self) -> bytes:
        """The published files as an archive."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as bundle:
            for name, content in self.files.items():
                bundle.writestr(name, content)
        return archive.getvalue()


def handler_of(registry: Registry) -> type[QuietHandler]:
    """The request handler that asks one registry."""

    class RegistryHandler(QuietHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = registry.answer(self.command, self.path, body)
            status, answer = (404, {"error": "Skill not found"}) if answer is None else (200, answer)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if content != answer else "application/zip")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    return RegistryHandler


def clawhub(case: ClientCase, registry: Registry, *options: str) -> dict[str, Any]:
    """Publish the skill with the real client and a loopback ClawHub; what it tells."""
    config = case.root / "clawhub.json"
    config.write_text(json.dumps({"registry": registry.origin, "token": "test-token"}))
    command = node_packages("clawhub@" + CLAWHUB) / "clawhub" / "bin" / "clawdhub.js"
    told = case.run_client(node(), command, "--no-input", "--registry", registry.origin, "skill", "publish",
                           case.skill, "--name", NAME, "--owner", OWNER, "--json", *options,
                           env=case.environment(CLAWHUB_CONFIG_PATH=str(config))).stdout
    return dict(json.loads(told))


def published(case: ClientCase) -> Registry:
    """A registry that holds what the real client has uploaded to another."""
    if not PUBLISHED:
        first = case.enter(Registry())
        clawhub(case, first)
        PUBLISHED.update(first.files)
    registry: Registry = case.enter(Registry())
    registry.files = dict(PUBLISHED)
    return registry


class PackageTest(ClientCase):
    """The folder that its users get."""
    client, version = "ClawHub CLI", CLAWHUB

    def setUp(self) -> None:
        super().setUp()
        self.files = published(self).files
        self.package = self.root / "package" / SKILL
        for name, content in self.files.items():
            (self.package / name).parent.mkdir(parents=True, exist_ok=True)
            (self.package / name).write_bytes(content)

    def hermes_python(self) -> str:
        """A Python with Hermes, and with PyYAML."""
        return str(python_packages(f"hermes-{NEWEST}-full", "hermes-agent==" + NEWEST) / "python")

    def test_what_is_in_it(self) -> None:
        """No tests and no tools of developers."""
        scripts = ["scripts/" + each for each in ("__init__.py", "gpt_image2.py", "plugin.yaml")]
        wanted = {name: (PROJECT / name).read_bytes() for name in ("SKILL.md", "README.md", *scripts)}
        self.assertEqual(sorted(self.files), sorted(wanted))
        self.assertEqual(self.files, wanted)

    def test_dry_run(self) -> None:
        """It counts the same files, and it uploads nothing."""
        registry = self.enter(Registry())
        told = clawhub(self, registry, "--dry-run")
        self.assertEqual((told["status"], told["slug"]), ("would-publish", SKILL))
        self.assertEqual(told["fileCount"], len(self.files))
        self.assertEqual([each for each in registry.asked if each.startswith("POST")], [])

    def test_agentskills(self) -> None:
        check_with_agentskills(self, self.package)

    def test_npx_skills(self) -> None:
        list_with_npx_skills(self, self.package)

    def test_quick_validate_of_openclaw(self) -> None:
        creator = node_packages("openclaw@" + OPENCLAW) / "openclaw" / "skills" / "skill-creator"
        self.assert_quickly_valid(creator)

    def test_quick_validate_of_codex(self) -> None:
        """Codex unpacks its own skills when it starts."""
        (self.home / ".codex").mkdir()
        self.run_client(*codex(), "app-server")
        self.assert_quickly_valid(self.home / ".codex" / "skills" / ".system" / "skill-creator")

    def assert_quickly_valid(self, creator: Path) -> None:
        """Run the script that a client's skill for making skills brings."""
        script = creator / "scripts" / "quick_validate.py"
        self.assertIn("Skill is valid!", self.run_client(self.hermes_python(), script, self.package).stdout)

    def test_skills_guard_of_hermes(self) -> None:
        words = self.hermes_python(), HERE / "hermes_call.py", "guard", self.package
        told = self.run_client(*words, env=self.environment(HERMES_HOME=str(self.home / ".hermes"))).stdout
        self.assertEqual(json.loads(told.splitlines()[-1]), {"verdict": "safe", "alarms": []})
