"""Hermes: the plugin by every route of README, its settings, errors and kills; the skill in a whole agent."""
from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import unittest
from pathlib import Path
from typing import Any, Mapping

from api_server import Answer, draw_png
from chat_server import ChatServer
from clients_common import HERE, README, SKILL, ClientCase, copy_project, python_packages, run, saved_path
from support import KEY

QUOTA = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota", "type": "insufficient_quota"}}'
MODERATION = b'{"error": {"message": "Rejected by the safety system", "code": "moderation_blocked"}}'
PROVIDER = "gpt-image2"
PNG = draw_png(64, 48, 1)
NEWEST = "0.19.0"
COMMAND_LINE = ("pyyaml", "python-dotenv", "rich", "markdown-it-py", "mdurl", "pygments")  # for its own commands


class HermesCase(ClientCase):
    """A Hermes home whose configuration leads to the loopback API."""
    client = "Hermes Agent"
    packages: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.bin = python_packages("hermes-" + self.version + ("-cli" if "--no-deps" in self.packages else "-full"),
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

    def configure_chat(self, chat: ChatServer, **sections: Mapping[str, Any]) -> None:
        """The same with a chat model to talk to."""
        model = {"provider": "custom", "default": "stub", "base_url": chat.url, "api_key": "test-chat"}
        self.configure(model=model, **sections)

    def link(self) -> None:
        """The route by a symbolic link."""
        os.symlink(str(self.skill / "scripts"), str(self.hermes_home / "plugins" / "image_gen" / PROVIDER))

    def hermes(self, *words: object, **options: Any) -> str:
        """Run Hermes' own command to its good end; what it prints."""
        result = self.run_client(self.bin / "hermes", *words, **options)
        return result.stdout + result.stderr

    def readme_lines(self, pattern: str, lines: int) -> str:
        """Run the lines of README that match in a shell; they must end well. What they print."""
        found = [line.replace("https://.../v1", self.api.url) for line in re.findall(pattern, README, re.MULTILINE)]
        self.assertEqual(len(found), lines, found)
        variables = self.environment()
        variables["PATH"] = f"{self.bin}:{variables['PATH']}"
        result = self.run_client("sh", "-ec", "\n".join(found), env=variables)
        return " ".join((result.stdout + result.stderr).split())

    def choose_as_readme_says(self) -> str:
        """README's settings, and the key; what Hermes says to that."""
        self.hermes("config", "set", "GPT_IMAGE2_API_KEY", KEY)
        return self.readme_lines(r"^    (hermes config set image_gen\..*)$", 3)

    def publish(self) -> None:
        """Make the copy a repository, which git finds where README's OWNER/gpt-image-2-api leads."""
        if not shutil.which("git"):
            self.skipTest("needs git")
        for words in (["init", "-q"], ["add", "-A"],
                      ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "copy"],
                      ["config", "--global", f"url.file://{self.skill}.insteadOf",
                       f"https://github.com/OWNER/{SKILL}.git"]):
            self.run_client("git", *words, cwd=str(self.skill))

    def inside(self, *words: object, **options: Any) -> Any:
        """Run hermes_call.py in Hermes' Python and return what it prints."""
        result = self.run_client(self.bin / "python", HERE / "hermes_call.py", *words, **options)
        self.assertNotIn(KEY, result.stdout + result.stderr)
        return json.loads(result.stdout.splitlines()[-1])

    def call_tool(self, *calls: Mapping[str, Any], **variables: str) -> dict[str, Any]:
        """Let Hermes call its tool; how the plugin was loaded and what came back."""
        env = self.environment(**{"MY_IMAGE_KEY": KEY, **variables})
        return dict(self.inside("calls", input=json.dumps(calls), env=env))

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


class EveryHermesChecks:
    """What has to work in every version."""

    def test_generate(self: Any) -> None:
        self.link()
        self.configure()
        self.draw()
        post = self.api.posts[0]
        self.assertEqual(post.header("authorization"), f"Bearer {KEY}")
        self.assertEqual(post.fields, {"model": "gpt-image-2", "prompt": "a red fox", "size": "1024x1536",
                                       "quality": "medium"})

    def test_route_by_link_as_a_skill_too(self: Any) -> None:
        """README's lines: a clone below skills/ is a plugin too, through a link.

        From 0.18 on Hermes asks something then; with nobody to answer it takes No, which is right.
        """
        copy_project(self.hermes_home / "skills" / SKILL)
        shutil.rmtree(str(self.hermes_home / "plugins"))
        said = self.readme_lines(r"^    ((?:mkdir -p|ln -s|hermes plugins enable) .*)$", 3)
        self.assertEqual("Allow this plugin to replace built-in tools" in said, self.version >= "0.18", said)
        self.choose_as_readme_says()
        self.draw(MY_IMAGE_KEY="")
        self.assertEqual(self.api.posts[0].fields["quality"], "high")


class InstallCommandChecks:
    """0.17.0 is the first one whose `plugins install` takes a folder of a repository."""

    def test_route_by_install_command(self: Any) -> None:
        """From 0.19 on Hermes doubts the settings, but keeps them."""
        self.publish()
        self.readme_lines(r"`(hermes plugins install \S+ --enable)`", 1)
        self.assertTrue((self.hermes_home / "plugins" / PROVIDER / "gpt_image2.py").exists())
        said = self.choose_as_readme_says()
        self.assertEqual("is not a recognized config key" in said, self.version >= "0.19", said)
        self.draw(MY_IMAGE_KEY="")
        self.assertEqual(self.api.posts[0].fields["quality"], "high")


class Hermes013Test(EveryHermesChecks, HermesCase):
    version = "0.13.0"
    packages = ("--no-deps", "hermes-agent==0.13.0", *COMMAND_LINE)

    def test_install_command_came_later(self) -> None:
        """So README has the link for it."""
        self.publish()
        command = [self.bin / "hermes", "plugins", "install", f"OWNER/{SKILL}/scripts", "--enable"]
        result = run(command, cwd=str(self.work), env=self.environment())
        self.assertEqual(result.returncode, 1)
        self.assertIn("Invalid plugin identifier", result.stdout + result.stderr)


class Hermes017Test(EveryHermesChecks, InstallCommandChecks, HermesCase):
    version = "0.17.0"
    packages = ("--no-deps", "hermes-agent==0.17.0", *COMMAND_LINE)


class HermesTest(EveryHermesChecks, InstallCommandChecks, HermesCase):
    version = NEWEST
    packages = ("hermes-agent==" + NEWEST,)

    def test_route_by_clone(self) -> None:
        copy_project(self.hermes_home / "plugins" / SKILL)
        self.configure(SKILL + "/scripts")
        self.draw()

    def test_edit_in_all_source_forms(self) -> None:
        self.link()
        self.configure(image_gen={"model": "gpt-image-2-high"})
        self.api.files["a.png"] = PNG
        path = self.work / "b.png"
        path.write_bytes(draw_png(64, 48, 2))
        data = "data:image/png;base64," + base64.b64encode(draw_png(64, 48, 3, padding=300_000)).decode()
        told = self.call_tool({"prompt": "all together", "aspect_ratio": "square",
                               "image_url": self.api.origin + "/files/a.png",
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
        """Each beats the last: Hermes' model, own variables, Hermes' file of variables, own file, own section."""
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
        for variables, own, model_section, wanted in rows:
            with self.subTest(variables=variables, own=own, model=model_section):
                self.configure(model=model_section, image_gen={PROVIDER: own})
                self.assertEqual(tuple(self.inside("config", env=self.environment(**variables))), wanted)
        self.own_file({"api_key_env": "OPENAI_API_KEY"})
        self.configure(model={})
        env = self.environment(GPT_IMAGE2_BASE_URL=relay, OPENAI_API_KEY="k-openai")
        self.assertEqual(self.inside("config", env=env), [openai, "k-openai"])

    def test_profiles_of_one_gateway_keep_their_keys_apart(self) -> None:
        self.link()
        self.configure(model={}, image_gen={PROVIDER: {"base_url": self.api.url}})
        env = self.environment(GPT_IMAGE2_API_KEY="k-process")
        self.assertEqual(self.inside("profiles", env=env), [None, "k-profile"])

    def test_address_set_by_hermes_config_set(self) -> None:
        """It goes into Hermes' configuration, not into the environment."""
        self.link()
        self.configure(model={})
        for name, value in (("GPT_IMAGE2_API_KEY", KEY), ("GPT_IMAGE2_BASE_URL", self.api.url)):
            self.hermes("config", "set", name, value)
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
                     "https://", "http://me:word@127.0.0.1/a.png", "http://[bad/a.png", "a\0b.png", "a\ud800.png",
                     raw[:2700])),
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
                self.assertEqual("the same arguments" in result["error"], False, result["error"])
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
                child = subprocess.Popen([str(self.bin / "python"), str(HERE / "hermes_call.py"), "calls"],
                                         stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                         cwd=str(self.work), env=self.environment(MY_IMAGE_KEY=KEY))
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

    def test_equal_calls_at_the_same_moment_are_one_picture(self) -> None:
        """What is asked for after that is another take, here or in another Hermes."""
        self.link()
        self.configure()
        call = {"prompt": "a red fox", "aspect_ratio": "square"}
        self.api.plan(Answer(delay=2))
        env = self.environment(MY_IMAGE_KEY=KEY)
        results = self.inside("together", 3, input=json.dumps(call), env=env)
        self.assertEqual([result["success"] for result in results], [True] * 3, results)
        self.assertEqual(len(self.api.posts), 1)
        self.assertEqual(sorted(result["source"] for result in results), ["bought", "made_before", "made_before"])
        results += self.call_tool(call, call)["results"]
        self.assertEqual([result["source"] for result in results[3:]], ["bought"] * 2, results)
        self.assertEqual((len(self.api.posts), len({result["image"] for result in results})), (3, 3), results)
        for result in results:
            self.assert_picture(result["image"], (1024, 1024))

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
                self.assertIn("nothing is bought twice", result["error"])
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
        """A chat model calls image_generate until it has the picture; the backend's time is up twice before."""
        self.link()
        may_answer = threading.Event()
        self.addCleanup(may_answer.set)
        self.api.plan(Answer(event=may_answer))
        call = ("image_generate", {"prompt": "a cat", "aspect_ratio": "square"})

        def last(_: str) -> Any:
            may_answer.set()
            return call

        chat = self.enter(ChatServer(
            lambda _: call, lambda _: call, last, lambda result: "Done: " + json.loads(result)["image"]))
        self.configure_chat(chat, image_gen={PROVIDER: {"base_url": self.api.url, "api_key": KEY, "timeout": 3}})
        reply = self.hermes("-z", "draw a cat", "-t", "image_gen")
        *cut_off, made = chat.results
        self.assertEqual([json.loads(result.partition("\n")[0])["error_type"] for result in cut_off], ["timeout"] * 2)
        self.assertEqual((json.loads(made)["source"], len(self.api.posts)), ("collected", 1))
        path = re.search(r"Done: (\S+)", reply)
        self.assertIsNotNone(path, reply)
        self.assert_picture(path.group(1) if path else "", (1024, 1024))

    def test_skill_in_a_whole_agent(self) -> None:
        """A chat model reads the skill and runs the script in Hermes' terminal.

        The key comes from `hermes config set`, the relay's address from a config file: set in the same way as the key,
        it goes into Hermes' configuration and reaches no command. The first one therefore shows OpenAI's address; a
        proxy that is not there makes sure that nothing can go there.
        """
        target = self.hermes_home / "skills" / SKILL
        copy_project(target)
        skill = next(each for each in self.inside("skills") if each["name"] == SKILL)
        self.assertIn("gpt-image-2", skill["description"][:57])
        script = f"python3 {target}/scripts/gpt_image2.py"
        (line,) = re.findall(r"^ +(python3 .*config --init (?:.*\\\n)*.*)$", README, re.MULTILINE)
        commands = (f'{script} config && echo "[$GPT_IMAGE2_BASE_URL][$HTTPS_PROXY]"',
                    f"{line.replace('https://.../v1', self.api.url)} && {script} generate 'a cat' -o cat.png")
        chat = self.enter(ChatServer(
            lambda _: ("skill_view", {"name": SKILL}),
            *(lambda _, command=command: ("terminal", {"command": command}) for command in commands),
            lambda result: "MEDIA:" + saved_path(json.loads(result)["output"])))
        self.configure_chat(chat)
        for name, value in (("GPT_IMAGE2_API_KEY", KEY), ("GPT_IMAGE2_BASE_URL", self.api.url)):
            self.hermes("config", "set", name, value)
        nowhere = "http://127.0.0.1:9"
        reply = self.hermes("-z", "draw a cat", "-t", "terminal,skills",
                            env=self.environment(HTTPS_PROXY=nowhere, NO_PROXY="127.0.0.1"))
        self.assertIn("scripts/gpt_image2.py", chat.results[0])
        shown = json.loads(chat.results[1])["output"]
        self.assertRegex(shown, r"base_url +https://api\.openai\.com/v1 .*\napi_key +\*+ +\(\$GPT_IMAGE2_API_KEY\)")
        self.assertIn(f"[][{nowhere}]", shown)
        path = re.search(r"MEDIA:(\S+)", reply)
        self.assertIsNotNone(path, reply + chat.results[-1])
        self.assert_picture(path.group(1) if path else "")

    def test_skills_guard(self) -> None:
        """The repository scans SAFE; its tests too have nothing that would alarm a reader, but they are many."""
        self.assertEqual(self.inside("guard", self.skill)["verdict"], "safe")
        everything = self.root / "everything"
        copy_project(everything)
        (everything / ".clawhubignore").unlink()
        self.assertEqual(self.inside("guard", everything)["alarms"], [])
