"""The skill and the plugin in the real clients, each installed into .clients/ and fed from servers on this machine.

    python3 tests/clients.py                       everything, with a table at the end
    python3 tests/clients.py HermesTest SkillsRef  only what begins with one of these

A client that cannot be installed is SKIPPED with the reason. Only installing needs a network.
"""
from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zipfile
from http.server import ThreadingHTTPServer
from os import environ
from pathlib import Path
from typing import Any, Mapping, Sequence

from api_server import Answer, ApiServer, QuietHandler, draw_png, sniff
from chat_server import ChatServer
from support import KEY

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CLIENTS = PROJECT / ".clients"
SKILL = "gpt-image-2-api"
PROVIDER = "gpt-image2"
PNG = draw_png(64, 48, 1)
README = (PROJECT / "README.md").read_text(encoding="utf-8")
NODE_PACKAGE = "node@26.10.0"
NODE_VERSION = (24, 16)  # what openclaw asks for; from 26.1 on again
QUOTA = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota", "type": "insufficient_quota"}}'
MODERATION = b'{"error": {"message": "Rejected by the safety system", "code": "moderation_blocked"}}'
INSTALL_SECONDS, RUN_SECONDS = 900, 180
FAILED_INSTALLS: dict[str, str] = {}  # tried once in a run


# ---- Installing ---------------------------------------------------------------------------------------------

def run(command: Sequence[object], timeout: float = RUN_SECONDS, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output as text."""
    return subprocess.run([str(word) for word in command], timeout=timeout, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in
                          options else None, encoding="utf-8", errors="replace", **options)


def install(name: str, *commands: Sequence[object]) -> Path:
    """The folder below .clients/ that these commands fill; they run in it, once. SkipTest when one fails."""
    folder = CLIENTS / name
    if name in FAILED_INSTALLS:
        raise unittest.SkipTest(FAILED_INSTALLS[name])
    if not (folder / "done").exists():
        shutil.rmtree(str(folder), ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands:
            try:
                result = run(command, INSTALL_SECONDS, cwd=str(folder))
                lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
                problem = (lines or ["no word"])[-1] if result.returncode else ""
            except (OSError, subprocess.TimeoutExpired) as error:
                problem = str(error)
            if problem:
                FAILED_INSTALLS[name] = f"cannot be installed: {problem[:200]}"
                raise unittest.SkipTest(FAILED_INSTALLS[name])
        (folder / "done").touch()
    return folder


def python_packages(name: str, *packages: str) -> Path:
    """The bin folder of a virtual environment with these packages."""
    pip = [str(CLIENTS / name / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if sys.version_info < (3, 11):
        raise unittest.SkipTest("needs Python 3.11 or newer")
    return install(name, [sys.executable, "-m", "venv", "."], [*pip, *packages]) / "bin"


def node_packages(*packages: str) -> Path:
    """The node_modules folder with these packages; no install script runs."""
    if not shutil.which("npm"):
        raise unittest.SkipTest("needs npm")
    name = re.sub(r"[^a-z0-9.]+", "-", packages[0]).strip("-")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", ".", *packages]
    return install(name, command) / "node_modules"


def node() -> str:
    """A Node.js that is new enough for all of them."""
    found = shutil.which("node")
    version = tuple(map(int, re.findall(r"\d+", run(["node", "--version"]).stdout)[:2])) if found else (0, 0)
    if found and version >= NODE_VERSION:
        return found
    if not shutil.which("npm"):
        raise unittest.SkipTest("needs Node.js 24.16 or newer, or npm to install it")
    folder = install("node", ["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", NODE_PACKAGE])
    return str(folder / "node_modules" / "node" / "bin" / "node")


# ---- What all checks share ----------------------------------------------------------------------------------

class ClientCase(unittest.TestCase):
    """A home of its own, a copy of this project under the skill's name, and the loopback API."""
    client = version = ""

    def setUp(self) -> None:
        self.root = Path(os.path.realpath(tempfile.mkdtemp(prefix="gpt-image2-clients-")))
        self.addCleanup(shutil.rmtree, str(self.root), True)
        self.home, self.work = self.root / "home", self.root / "work"
        self.home.mkdir()
        self.work.mkdir()
        self.skill = self.root / SKILL
        copy_project(self.skill)
        self.api = ApiServer(KEY)
        self.enter(self.api)

    def enter(self, server: Any) -> Any:
        """Keep a server running until the end of the test."""
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server

    def environment(self, **extra: str) -> dict[str, str]:
        """As little as possible of this machine's environment."""
        kept = {name: environ[name] for name in ("PATH", "LANG") if name in environ}
        return {**kept, "HOME": str(self.home), "NO_PROXY": "*", "DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1", **extra}

    def run_client(self, *command: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a client in the working folder; it must end well."""
        options = {"cwd": str(self.work), "env": self.environment(), **options}
        result = run(command, **options)
        self.assertEqual(result.returncode, 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
        return result

    def assert_picture(self, path: str | Path, size: tuple[int, int] | None = None) -> None:
        """Fail unless there is a whole picture at an absolute path."""
        self.assertTrue(os.path.isabs(str(path)), path)
        content = Path(path).read_bytes()
        self.assertIsNotNone(sniff(content))
        if size:
            self.assertEqual(sniff(content)[1:], size)


def copy_project(target: Path) -> None:
    """The files that git knows, or everything that no tool has made."""
    if not (PROJECT / ".git").exists() or not shutil.which("git"):
        shutil.copytree(str(PROJECT), str(target), ignore=shutil.ignore_patterns(
            ".git", ".venv", ".clients", ".chroots", "__pycache__", ".*_cache"))
        return
    for name in filter(None, run(["git", "ls-files", "-z"], cwd=str(PROJECT)).stdout.split("\0")):
        if (PROJECT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(PROJECT / name), str(target / name))


def saved_path(output: str) -> str:
    """The path that an agent reads from the program's output."""
    match = re.search(r"^Saved: (.*) \(\d+ KB\)$", output, re.MULTILINE)
    return match.group(1) if match else ""


# ---- Hermes: the plugin -------------------------------------------------------------------------------------

class HermesCase(ClientCase):
    """A Hermes home whose configuration leads to the loopback API."""
    client = "Hermes Agent"
    packages: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.bin = python_packages("hermes-" + self.version + ("" if "--no-deps" in self.packages else "-full"),
                                   *self.packages)
        super().setUp()
        self.hermes_home = self.home / ".hermes"
        (self.hermes_home / "plugins" / "image_gen").mkdir(parents=True)
        (self.root / "no-plugins").mkdir()

    def environment(self, **extra: str) -> dict[str, str]:
        """Bundled plugins need more packages than are installed."""
        hermes = {"HERMES_HOME": str(self.hermes_home), "HERMES_BUNDLED_PLUGINS": str(self.root / "no-plugins")}
        return super().environment(**hermes, **extra)

    def configure(self, key: str = "image_gen/gpt-image2", **sections: Mapping[str, Any]) -> None:
        """Write Hermes' configuration; JSON is YAML."""
        config = {"model": {"base_url": self.api.url, "api_key": "${MY_IMAGE_KEY}"}, "plugins": {"enabled": [key]},
                  **sections}
        config["image_gen"] = {"provider": PROVIDER, **sections.get("image_gen", {})}
        (self.hermes_home / "config.yaml").write_text(json.dumps(config), encoding="utf-8")

    def link(self) -> None:
        """The route by a symbolic link."""
        os.symlink(str(self.skill / "scripts"), str(self.hermes_home / "plugins" / "image_gen" / PROVIDER))

    def call_tool(self, *calls: Mapping[str, Any], **variables: str) -> dict[str, Any]:
        """Let Hermes call its tool; how the plugin was loaded and what came back."""
        variables = {"MY_IMAGE_KEY": KEY, **variables}
        result = self.run_client(self.bin / "python", HERE / "hermes_call.py", input=json.dumps(calls),
                                 env=self.environment(**variables))
        told: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        self.assertNotIn(KEY, result.stdout + result.stderr)
        return told

    def draw(self, **variables: str) -> dict[str, Any]:
        """One picture that must come, and how the plugin was loaded."""
        told = self.call_tool({"prompt": "a red fox", "aspect_ratio": "portrait"}, **variables)
        plugin = next(each for each in told["plugins"] if each["name"] == PROVIDER)
        self.assertEqual((plugin["enabled"], plugin["error"]), (True, None))
        result: dict[str, Any] = told["results"][0]
        self.assertTrue(result["success"], result)
        self.assert_picture(result["image"], (1024, 1536))
        self.assertTrue(result["image"].startswith(str(self.hermes_home / "cache" / "images") + os.sep))
        return told

    def refused(self, call: Mapping[str, Any], **variables: str) -> dict[str, Any]:
        """One call that must fail, as Hermes hands it to the model."""
        result: dict[str, Any] = self.call_tool(call, **variables)["results"][0]
        self.assertEqual((result["success"], result["image"]), (False, None), result)
        self.assertEqual(result["provider"], PROVIDER)
        return result


class OlderHermesChecks:
    """What has to work in every version."""

    def test_generate(self: Any) -> None:
        self.link()
        self.configure()
        self.draw()
        post = self.api.posts[0]
        self.assertEqual(post.header("authorization"), f"Bearer {KEY}")
        self.assertEqual(post.fields, {"model": "gpt-image-2", "prompt": "a red fox", "size": "1024x1536",
                                       "quality": "medium"})


class Hermes013Test(OlderHermesChecks, HermesCase):
    version = "0.13.0"
    packages = ("--no-deps", "hermes-agent==0.13.0", "pyyaml")


class Hermes017Test(OlderHermesChecks, HermesCase):
    version = "0.17.0"
    packages = ("--no-deps", "hermes-agent==0.17.0", "pyyaml")


class HermesTest(OlderHermesChecks, HermesCase):
    version = "0.19.0"
    packages = ("hermes-agent==0.19.0",)

    def test_route_by_install_command(self) -> None:
        if not shutil.which("git"):
            self.skipTest("needs git")
        for command in (["git", "init", "-q"], ["git", "add", "-A"],
                        ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "copy"]):
            self.run_client(*command, cwd=str(self.skill))
        self.run_client(self.bin / "hermes", "plugins", "install", f"file://{self.skill}#scripts", "--enable")
        self.assertTrue((self.hermes_home / "plugins" / PROVIDER / "gpt_image2.py").exists())
        for name, value in (("image_gen.provider", PROVIDER), ("GPT_IMAGE2_API_KEY", KEY),
                            ("image_gen.gpt-image2.base_url", self.api.url)):  # README's lines
            self.run_client(self.bin / "hermes", "config", "set", name, value)
        self.draw()

    def test_route_by_clone(self) -> None:
        copy_project(self.hermes_home / "plugins" / SKILL)
        self.configure(SKILL + "/scripts")
        self.draw()

    def test_route_by_link_as_a_skill_too(self) -> None:
        """One clone below skills/ serves as skill and, through a link, as plugin."""
        copy_project(self.hermes_home / "skills" / SKILL)
        shutil.rmtree(str(self.hermes_home / "plugins"))
        self.configure("nothing")
        lines = re.findall(r"^    ((?:mkdir -p|ln -s|hermes plugins enable) .*)$", README, re.MULTILINE)
        self.assertEqual(len(lines), 3)
        variables = self.environment()
        self.run_client("sh", "-ec", "\n".join(lines), env={**variables, "PATH": f"{self.bin}:{variables['PATH']}"})
        self.draw()
        code = "import json; from tools.skills_tool import skills_list; print(skills_list())"
        listed = json.loads(self.run_client(self.bin / "python", "-c", code).stdout.splitlines()[-1])
        skill = next(each for each in listed["skills"] if each["name"] == SKILL)
        self.assertIn("gpt-image-2", skill["description"][:57])

    def test_edit_in_all_source_forms(self) -> None:
        self.link()
        self.configure(image_gen={"model": "gpt-image-2-high"})
        self.api.files["a.png"] = PNG
        path = self.work / "b.png"
        path.write_bytes(draw_png(64, 48, 2))
        data = "data:image/png;base64," + base64.b64encode(draw_png(64, 48, 3, padding=300_000)).decode()
        told = self.call_tool({"prompt": "all together", "aspect_ratio": "square", "image_url": self.api.origin + "/files/a.png",
                          "reference_image_urls": [str(path), data]})
        result = told["results"][0]
        self.assertTrue(result["success"], result)
        self.assertEqual((result["modality"], result["model"]), ("image", "gpt-image-2-high"))
        self.assert_picture(result["image"], (1024, 1024))
        files = [part.body for part in self.api.posts[0].parts if part.filename]
        self.assertEqual(files, [PNG, path.read_bytes(), draw_png(64, 48, 3, padding=300_000)])
        self.assertEqual(self.api.posts[0].fields["quality"], "high")
        self.assertEqual(told["provider"]["capabilities"]["modalities"], ["text", "image"])

    def test_what_the_picker_sees(self) -> None:
        self.link()
        self.configure()
        provider = self.call_tool({"prompt": " "})["provider"]
        self.assertEqual(provider["models"], ["gpt-image-2-low", "gpt-image-2-medium", "gpt-image-2-high"])
        self.assertEqual((provider["default"], provider["available"]), ("gpt-image-2-medium", True))
        self.assertEqual(provider["setup"]["env_vars"], [])

    def test_unexpanded_variable_is_no_key(self) -> None:
        self.link()
        self.configure(model={"base_url": "https://relay.invalid/v1", "api_key": "${NOT_SET_ANYWHERE}"})
        told = self.call_tool({"prompt": "x"})
        self.assertFalse(told["provider"]["available"])
        self.assertEqual(told["provider"]["setup"]["env_vars"][0]["key"], "GPT_IMAGE2_API_KEY")
        self.assertEqual(told["results"][0]["error_type"], "auth_required")
        self.assertIn("hermes config set GPT_IMAGE2_API_KEY", told["results"][0]["error"])

    def test_settings_in_their_order(self) -> None:
        """Hermes' model, own variables, Hermes' file of variables, own config file, own section: each beats the last."""
        self.link()
        relay = {"base_url": "https://relay.invalid/v1", "api_key": "test-relay"}
        ours = {"GPT_IMAGE2_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": self.api.url}
        self.configure(model={"base_url": self.api.url, "key_env": "MY_IMAGE_KEY"})
        self.draw()
        self.configure(model=relay)
        self.draw(**ours)
        (self.hermes_home / ".env").write_text("".join(f"{name}={value}\n" for name, value in ours.items()))
        self.draw()
        self.own_file({"timeout": 300})  # which has neither key nor endpoint
        self.draw()
        (self.hermes_home / ".env").unlink()
        self.own_file({"base_url": self.api.url, "api_key": KEY})
        self.draw()
        self.own_file(relay)
        self.configure(model=relay, image_gen={PROVIDER: {"base_url": self.api.url, "api_key": "${MY_IMAGE_KEY}"}})
        self.draw()
        self.assertEqual(len(self.api.posts), 6)

    def own_file(self, content: Mapping[str, Any]) -> None:
        """Write the program's own config file."""
        config = self.home / ".config" / "gpt-image-2" / "config.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(content))
        config.chmod(0o600)

    def test_where_keys_go(self) -> None:
        """(endpoint, key) for many mixtures, as the program would be given them."""
        openai, relay = "https://api.openai.com/v1", "https://relay.invalid/v1"
        other, runapi = "https://other.invalid/v1", "https://runapi.ai"
        ours, mine = {"GPT_IMAGE2_API_KEY": "k-ours"}, {"GPT_IMAGE2_API_KEY": "k-ours", "GPT_IMAGE2_BASE_URL": relay}
        vendor, pair = {"OPENAI_API_KEY": "k-openai"}, {"OPENAI_API_KEY": "k-openai", "OPENAI_BASE_URL": other}
        model = {"base_url": relay, "api_key": "k-model"}
        unset = {"GPT_IMAGE2_API_KEY": "${X}", "GPT_IMAGE2_BASE_URL": "${X}"}
        rows: tuple[tuple[dict[str, str], dict[str, Any], dict[str, Any], tuple[str, str]], ...] = (
            ({}, {}, {}, ("", "")), (ours, {}, {}, (openai, "k-ours")), (mine, {}, model, (relay, "k-ours")),
            (vendor, {}, {}, (openai, "k-openai")), (pair, {}, {}, (other, "k-openai")),
            (vendor, {}, model, (relay, "k-model")), (unset, {}, model, (relay, "k-model")),
            (vendor, {}, {"base_url": relay}, (openai, "k-openai")),
            ({}, {}, {"base_url": self.api.url}, (self.api.url, "")),
            ({"GPT_IMAGE2_BASE_URL": relay, **vendor}, {}, {}, (relay, "")),
            (pair, {"api_key": "k-own"}, model, (openai, "k-own")),
            ({**pair, **mine}, {"api_key": "k-own"}, {}, (relay, "k-own")),
            ({**pair, **ours}, {"base_url": relay}, {}, (relay, "k-ours")),
            (vendor, {"base_url": relay}, model, (relay, "")), (pair, {"base_url": other}, {}, (other, "k-openai")),
            ({**mine, "RUNAPI_API_KEY": "k-runapi"}, {"api": "runapi"}, {}, (runapi, "k-runapi")),
            (ours, {"api": "codex"}, {}, ("https://chatgpt.com/backend-api/codex", "")),
            ({"GPT_IMAGE2_BASE_URL": runapi, "RUNAPI_API_KEY": "k-runapi", **ours}, {}, {}, (runapi, "k-runapi")))
        self.link()
        code = ("import json, sys; from hermes_cli.plugins import _ensure_plugins_discovered; "
                "_ensure_plugins_discovered(); plugin = next(module for name, module in sys.modules.items() "
                "if hasattr(module, 'find_config')); config = plugin.find_config(); "
                "print(json.dumps([config.get('base_url', ''), config.get('api_key', '')]))")
        for variables, own, model_section, wanted in rows:
            with self.subTest(variables=variables, own=own, model=model_section):
                self.configure(model=model_section, image_gen={PROVIDER: own})
                result = self.run_client(self.bin / "python", "-c", code, env=self.environment(**variables))
                self.assertEqual(tuple(json.loads(result.stdout.splitlines()[-1])), wanted)
        self.own_file({"api_key_env": "OPENAI_API_KEY"})
        self.configure(model={})
        result = self.run_client(self.bin / "python", "-c", code, env=self.environment(
            GPT_IMAGE2_BASE_URL=relay, OPENAI_API_KEY="k-openai"))
        self.assertEqual(json.loads(result.stdout.splitlines()[-1]), [openai, "k-openai"])

    def test_profiles_of_one_gateway_keep_their_keys_apart(self) -> None:
        self.link()
        self.configure(model={}, image_gen={PROVIDER: {"base_url": self.api.url}})
        code = ("import json, sys; from agent import secret_scope; from hermes_cli.plugins import "
                "_ensure_plugins_discovered; _ensure_plugins_discovered(); plugin = next(module for name, module in "
                "sys.modules.items() if hasattr(module, 'find_config')); secret_scope.set_multiplex_active(True); "
                "without = plugin.find_config().get('api_key'); "
                "secret_scope.set_secret_scope({'GPT_IMAGE2_API_KEY': 'k-profile'}); "
                "print(json.dumps([without, plugin.find_config().get('api_key')]))")
        result = self.run_client(self.bin / "python", "-c", code, env=self.environment(GPT_IMAGE2_API_KEY="k-process"))
        self.assertEqual(json.loads(result.stdout.splitlines()[-1]), [None, "k-profile"])

    def test_address_set_by_hermes_config_set(self) -> None:
        """It goes into Hermes' configuration, not into the environment."""
        self.link()
        self.configure(model={})
        for name, value in (("GPT_IMAGE2_API_KEY", KEY), ("GPT_IMAGE2_BASE_URL", self.api.url)):
            self.run_client(self.bin / "hermes", "config", "set", name, value)
        self.draw()

    def test_error_cases(self) -> None:
        self.link()
        self.configure()
        text = self.work / "notes.txt"
        text.write_text("no picture")
        raw = base64.b64encode(draw_png(64, 48, 1, padding=300_000)).decode()
        cases = ((Answer(status=400), {}, "api_error"), (Answer(status=401), {}, "auth_required"),
                 (Answer(status=500), {}, "api_error"), (Answer(status=429, body=QUOTA), {}, "quota_exceeded"),
                 (Answer(status=400, body=MODERATION), {}, "moderation_blocked"),
                 (Answer(drop="silent"), {}, "connection_error"), (Answer(body=b'{"data": []}'), {}, "empty_response"),
                 (None, {"prompt": "  "}, "invalid_argument"), (None, {"prompt": "x" * 40_000}, "invalid_argument"),
                 (None, {"image_url": str(self.work / "none.png")}, "invalid_image_input"),
                 *((None, {"image_url": odd}, "invalid_image_input") for odd in (
                     "https://", "http://me:word@127.0.0.1/a.png", "http://[bad/a.png", "a\0b.png", "a\ud800.png", raw[:2700])),
                 (None, {"image_url": str(text)}, "invalid_image_input"),
                 (None, {"image_url": raw}, "invalid_image_input"),
                 (None, {"image_url": "data:image/png;base64,%%%"}, "invalid_image_input"),
                 (None, {"image_url": "DATA:image/png;base64," + "A" * 4000}, "invalid_image_input"),
                 (None, {"image_url": self.api.origin + "/files/none.png"}, "invalid_image_input"))
        for answer, call, error_type in cases:
            with self.subTest(error_type=error_type, call=str(call)[:60], status=answer and answer.status):
                self.api.reset()
                if answer:
                    self.api.plan(answer)
                result = self.refused({"prompt": f"x {error_type} {answer}"[:200], **call})
                self.assertEqual(result["error_type"], error_type, result)
                self.assertLess(len(result["error"]), 600)
                self.assertNotRegex(result["error"], r"[A-Za-z0-9+/]{200}")
                self.assertEqual("exactly the same arguments" in result["error"], False, result["error"])
                self.assertEqual(len(self.api.posts), 1 if answer else 0)

    def test_trouble_of_this_machine(self) -> None:
        self.link()
        self.configure()
        cache = self.hermes_home / "cache" / "images"
        cache.parent.mkdir()
        cache.write_text("a file in the way")
        self.assertEqual(self.refused({"prompt": "x"})["error_type"], "io_error")
        cache.unlink()
        only_python = self.root / "only-python"
        only_python.mkdir()
        result = self.refused({"prompt": "x"}, PATH=str(only_python))
        self.assertEqual(result["error_type"], "missing_dependency", result)
        self.configure(image_gen={PROVIDER: {"base_url": "nonsense"}})
        self.assertEqual(self.refused({"prompt": "x"}, GPT_IMAGE2_API_KEY=KEY)["error_type"], "configuration_error")
        self.configure(model={"base_url": "https://relay.invalid/v1", "api_key": "${A-B}"})
        self.assertEqual(self.refused({"prompt": "x"})["error_type"], "auth_required")

    def test_hermes_is_killed_and_asked_again(self) -> None:
        """Whether the picture is still being made then, or ready, it is collected."""
        self.link()
        self.configure()
        for name, number, pause in (("at once", signal.SIGKILL, 0.3), ("later", signal.SIGTERM, 4.0)):
            with self.subTest(name):
                self.api.reset()
                self.api.plan(Answer(delay=2.5))
                call = {"prompt": f"a fox {name}"}
                child = subprocess.Popen([str(self.bin / "python"), str(HERE / "hermes_call.py")], stdin=subprocess.PIPE,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=str(self.work),
                                         env=self.environment(MY_IMAGE_KEY=KEY))
                assert child.stdin
                child.stdin.write(json.dumps([call]).encode())
                child.stdin.close()
                while not self.api.posts:
                    self.assertIsNone(child.poll())
                    time.sleep(0.05)
                child.send_signal(number)
                child.wait()
                time.sleep(pause)
                result = self.call_tool(call)["results"][0]
                self.assertTrue(result["success"], result)
                self.assertEqual(len(self.api.posts), 1)
                self.assert_picture(result["image"])

    def test_odd_arguments(self) -> None:
        self.link()
        self.configure()
        self.api.files["a.png"] = PNG
        many = [self.api.origin + "/files/a.png"] * 20
        calls = ({"prompt": "a lone \ud800 half"}, {"prompt": "no ratio", "aspect_ratio": None},
                 {"prompt": "odd ratio", "aspect_ratio": 7}, {"prompt": "blank image", "image_url": "  "},
                 {"prompt": "scheme", "image_url": many[0].replace("http", "HTTP")},
                 {"prompt": "many", "reference_image_urls": many})
        results = self.call_tool(*calls)["results"]
        self.assertEqual([result["success"] for result in results], [True] * 6, results)
        self.assertIn("16 of 20", " ".join(results[-1]["warnings"]))

    def test_secret_files_are_no_pictures(self) -> None:
        self.link()
        self.configure()
        secret = self.hermes_home / ".env"
        secret.write_text("X=1\n")
        self.assertEqual(self.refused({"prompt": "x", "image_url": str(secret)})["error_type"], "invalid_image_input")

    def test_slow_server_is_left_in_time_and_collected_later(self) -> None:
        """Also with large pictures that are still on their way when time is up."""
        self.link()
        data = "data:image/png;base64," + base64.b64encode(draw_png(64, 48, 3, padding=6_000_000)).decode()
        for call in ({"prompt": "a slow fox"}, {"prompt": "large", "image_url": data, "reference_image_urls": [data]}):
            with self.subTest(call["prompt"]):
                self.api.reset()
                self.configure(image_gen={PROVIDER: {"timeout": 2}})
                self.api.plan(Answer(delay=5))
                told = self.call_tool(call)
                self.assertLess(told["seconds"][0], 5)
                result = told["results"][0]
                self.assertEqual((result["success"], result["error_type"]), (False, "timeout"), result)
                self.assertIn("collected", result["error"])
                self.configure()
                result = self.call_tool(call)["results"][0]
                self.assertTrue(result["success"], result)
                self.assertEqual(len(self.api.posts), 1)

    def test_slow_source_is_left_in_time(self) -> None:
        self.link()
        self.configure(image_gen={PROVIDER: {"timeout": 2}})
        self.api.files["a.png"] = PNG
        self.api.plan_files(Answer(delay=20))
        result = self.refused({"prompt": "x", "image_url": self.api.origin + "/files/a.png"})
        self.assertEqual(result["error_type"], "timeout", result)
        self.assertEqual(self.api.posts, [])

    @unittest.skipUnless(Path("/proc/cpuinfo").exists(), "needs /proc")
    def test_key_reaches_no_argument_and_no_environment(self) -> None:
        """While the server holds its answer back, no process but Hermes itself has the key."""
        self.link()
        self.configure()
        self.api.plan(Answer(delay=2))
        seen: list[str] = []

        def look() -> None:
            while not self.api.posts:
                time.sleep(0.02)
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    arguments, variables = ((process / name).read_bytes() for name in ("cmdline", "environ"))
                except OSError:
                    continue
                if str(self.root).encode() not in variables:
                    continue  # somebody else's
                if b"hermes_call" not in arguments and KEY.encode() in arguments + variables:
                    seen.append(str(arguments))
                if b"gpt_image2.py" in arguments:
                    seen.append("the program")

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        self.draw()
        watcher.join(20)
        self.assertEqual(seen, ["the program"])

    def test_whole_agent(self) -> None:
        """A chat model asks for a picture through the tool, and Hermes makes it."""
        self.link()
        chat = self.enter(ChatServer(lambda _: ("image_generate", {"prompt": "a cat", "aspect_ratio": "square"}),
                                     lambda result: "Done: " + json.loads(result)["image"]))
        self.configure(model={"provider": "custom", "default": "stub", "base_url": chat.url, "api_key": "test-chat"},
                       image_gen={PROVIDER: {"base_url": self.api.url, "api_key": KEY}})
        result = self.run_client(self.bin / "hermes", "-z", "draw a cat", "-t", "image_gen")
        path = re.search(r"Done: (\S+)", result.stdout)
        self.assertIsNotNone(path, result.stdout + result.stderr)
        self.assert_picture(path.group(1) if path else "", (1024, 1024))

    def test_skill_in_a_whole_agent(self) -> None:
        """A chat model reads the skill and runs the script in Hermes' terminal."""
        target = self.hermes_home / "skills" / SKILL
        copy_project(target)
        script = target / "scripts" / "gpt_image2.py"
        chat = self.enter(ChatServer(lambda _: ("skill_view", {"name": SKILL}),
                                     lambda _: ("terminal", {"command": f"python3 {script} generate 'a cat' -o cat.png"}),
                                     lambda result: "MEDIA:" + saved_path(json.loads(result)["output"])))
        self.configure(model={"provider": "custom", "default": "stub", "base_url": chat.url, "api_key": "test-chat"})
        env = self.environment(GPT_IMAGE2_API_KEY=KEY, GPT_IMAGE2_BASE_URL=self.api.url)
        result = self.run_client(self.bin / "hermes", "-z", "draw a cat", "-t", "terminal,skills", env=env)
        path = re.search(r"MEDIA:(\S+)", result.stdout)
        self.assertIsNotNone(path, result.stdout + result.stderr)
        self.assert_picture(path.group(1) if path else "")

    def test_skills_guard(self) -> None:
        """The repository scans SAFE; its tests too have nothing that would alarm a reader, but they are many."""
        code = ("import sys; from pathlib import Path; from tools.skills_guard import scan_skill, format_scan_report; "
                "result = scan_skill(Path(sys.argv[1]), source='community'); print(format_scan_report(result)); "
                "print('VERDICT', result.verdict); print('ALARMS', [each.match for each in result.findings "
                "if each.severity in ('critical', 'high') and each.category != 'structural'])")
        result = self.run_client(self.bin / "python", "-c", code, self.skill)
        self.assertIn("VERDICT safe", result.stdout)
        everything = self.root / "everything"
        copy_project(everything)
        (everything / ".skillignore").unlink()
        self.assertIn("ALARMS []", self.run_client(self.bin / "python", "-c", code, everything).stdout)


# ---- The skill in validators and other agents ---------------------------------------------------------------

class SkillsRefTest(ClientCase):
    client, version = "skills-ref", "0.1.1"

    def test_validate(self) -> None:
        command = python_packages("skills-ref", "skills-ref==0.1.1") / "agentskills"
        self.assertIn("Valid skill", self.run_client(command, "validate", self.skill).stdout)


class OpenClawTest(ClientCase):
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
        (self.state / "openclaw.json").write_text(json.dumps({
            "models": {"providers": {"stub": {"baseUrl": chat.url, "apiKey": "test-chat", "api": "openai-completions",
                                              "models": [{"id": "stub", "name": "stub"}]}}},
            "agents": {"defaults": {"model": {"primary": "stub/stub"}}},
            "skills": {"entries": {SKILL: {"apiKey": KEY, "env": {"GPT_IMAGE2_BASE_URL": self.api.url}}}}}))
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
        verdict = {"requestedSlug": SKILL, "requestedVersion": "1.0.0", "ok": True, "decision": "pass", "slug": SKILL, "version": "1.0.0", "publisherHandle": "tester",
                   "overview": "made here", "reasons": [], "securityAuditUrl": self.url + "/audit",
                   "security": {"status": "clean", "passed": True}}
        self.answers = {
            f"GET /api/v1/skills/{SKILL}/install": json.dumps({
                "ok": True, "slug": SKILL, "installKind": "archive",
                "archive": {"version": "1.0.0", "downloadUrl": self.url + "/bundle.zip"}}).encode(),
            "POST /api/v1/skills/-/security-verdicts": json.dumps({
                "schema": "clawhub.skill.security-verdicts.v1", "items": [verdict]}).encode(),
            "GET /bundle.zip": archive.getvalue()}

    def __enter__(self) -> Registry:
        answers = self.answers

        class Handler(QuietHandler):
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

        self.listener.RequestHandlerClass = Handler
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


class CodexTest(ClientCase):
    client, version = "Codex CLI", "0.169.0"

    def test_skill_added_to_a_project(self) -> None:
        add_skill(self)
        self.assert_listed()

    def test_skill_cloned_as_readme_says(self) -> None:
        copy_project(home_folder("Codex", self.home))
        self.assert_listed()

    def assert_listed(self) -> None:
        """Ask Codex for its skills."""
        command = [node(), str(node_packages("@openai/codex@0.169.0") / "@openai" / "codex" / "bin" / "codex.js")]
        (self.home / ".codex").mkdir()
        asked = [{"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "test", "version": "1"}}},
                 {"method": "initialized"},
                 {"id": 2, "method": "skills/list", "params": {"cwds": [str(self.work)], "forceReload": True}}]
        lines = "".join(json.dumps(message) + "\n" for message in asked)
        told = first_line(self, [*command, "app-server"], '"id":2', lines)
        (folder,) = told["result"]["data"]
        self.assertEqual(folder["errors"], [])
        skill = next(each for each in folder["skills"] if each["name"] == SKILL)
        self.assertTrue(skill["enabled"] and skill["description"])


class ClaudeCodeTest(ClientCase):
    client, version = "Claude Code", "2.1.329"

    def test_skill_added_to_a_project(self) -> None:
        add_skill(self)
        self.assert_listed()

    def test_skill_cloned_as_readme_says(self) -> None:
        copy_project(home_folder("Claude Code", self.home))
        self.assert_listed()

    def assert_listed(self) -> None:
        """Start Claude Code and read which skills it has found."""
        package = node_packages("@anthropic-ai/claude-code@2.1.329") / "@anthropic-ai" / "claude-code"
        if not (package / "bin" / "claude.exe").exists() or (package / "bin" / "claude.exe").stat().st_size < 1_000_000:
            self.run_client(node(), package / "install.cjs")
        chat = self.enter(ChatServer(lambda _: "no"))
        env = self.environment(ANTHROPIC_API_KEY="test-key", ANTHROPIC_BASE_URL=chat.url.rpartition("/")[0],
                               CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_AUTOUPDATER="1")
        command = [str(package / "bin" / "claude.exe"), "-p", "hi", "--output-format", "stream-json", "--verbose"]
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


# ---- The table ----------------------------------------------------------------------------------------------

class TableResult(unittest.TextTestResult):
    """Also counts by client."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.passed: dict[tuple[str, str], int] = {}
        self.skipped_because: dict[tuple[str, str], str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        """One more that holds."""
        super().addSuccess(test)
        name = (getattr(test, "client", ""), getattr(test, "version", ""))
        self.passed[name] = self.passed.get(name, 0) + 1

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """Not installed here."""
        super().addSkip(test, reason)
        self.skipped_because[getattr(test, "client", ""), getattr(test, "version", "")] = reason

    def table(self) -> str:
        """One line for each client, in Markdown."""
        failed: dict[tuple[str, str], int] = {}
        for test, _ in self.failures + self.errors:
            case = getattr(test, "test_case", test)
            name = (getattr(case, "client", "?"), getattr(case, "version", ""))
            failed[name] = failed.get(name, 0) + 1
        rows = ["| client | version | result |", "|---|---|---|"]
        for name in sorted({*self.passed, *self.skipped_because, *failed}):
            words = [f"{self.passed[name]} passed" if name in self.passed else "",
                     f"{failed[name]} FAILED" if name in failed else "",
                     f"SKIPPED: {self.skipped_because[name]}" if name in self.skipped_because else ""]
            rows.append(f"| {name[0]} | {name[1]} | {', '.join(filter(None, words))} |")
        return "\n".join(rows)


def main(names: Sequence[str]) -> int:
    """Run the checks whose class begins with one of the names, all when there is none."""
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    cases = [case for group in suite for case in group  # type: ignore[union-attr]
             if not names or type(case).__name__.startswith(tuple(names))]
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=TableResult)
    result = runner.run(unittest.TestSuite(cases))
    assert isinstance(result, TableResult)
    print(result.table())
    return 0 if result.wasSuccessful() and cases else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
