"""Settings: which value wins, where a key may go, and what the config command says about both."""
from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from api_server import Answer, error_body
from support import KEY, NO_ANSWER, SETUP, USAGE, ProgramCase, Result

PROMPT = "a red fox"
REMOTE = "https://relay.invalid/v1"  # a name that never resolves: whatever would be sent there cannot leave
OPENAI = "https://api.openai.com/v1"


class SettingsCase(ProgramCase):
    """Views of config --show."""

    def show(self, *arguments: str, env: dict[str, str | None] | None = None) -> dict[str, Any]:
        """Return the object of config --show --json."""
        result = self.run_inside("config", "--json", *arguments, env=env)
        self.assertEqual(result.exit_code, 0, result.stderr)
        return result.json

    def shown_setting(self, name: str, *arguments: str, env: dict[str, str | None] | None = None) -> tuple[str, str]:
        """Return value and source of one setting."""
        row = self.show(*arguments, env=env)["settings"][name]
        return row["value"], row["source"]

    def warnings(self, *arguments: str, env: dict[str, str | None] | None = None) -> list[str]:
        """Return the warnings of config --show."""
        return list(self.show(*arguments, env=env)["warnings"])

    def explicit(self, content: dict[str, Any]) -> str:
        """Write a config file that only --config finds."""
        return self.write_config(content, path=self.work / "explicit.json")


class SettingsOrderTest(SettingsCase):
    """--config file > flags > found file > environment > defaults."""

    def test_base_url(self) -> None:
        urls = {name: f"https://{name}.invalid/v1" for name in ("explicit", "flag", "found", "ours", "openai")}
        explicit = self.explicit({"base_url": urls["explicit"]})
        found = self.home / ".config" / "gpt-image-2" / "config.json"
        env: dict[str, str | None] = {}
        steps = [(OPENAI, "default", []), (urls["openai"], "$OPENAI_BASE_URL", []),
                 (urls["ours"], "$GPT_IMAGE2_BASE_URL", []), (urls["found"], str(found), []),
                 (urls["flag"], "--base-url", ["--base-url", urls["flag"]]),
                 (urls["explicit"], explicit, ["--base-url", urls["flag"], "--config", explicit])]
        for url, source, arguments in steps:  # each step adds one stronger place
            with self.subTest(source):
                if source.startswith("$"):
                    env[source[1:]] = url
                elif source == str(found):
                    self.write_config({"base_url": url})
                self.assertEqual(self.shown_setting("base_url", *arguments, env=env), (url, source))

    def test_key(self) -> None:
        keys = {name: f"fake-{name}-key-that-is-long" for name in ("explicit", "named", "found", "ours", "openai")}
        explicit = self.explicit({"api_key": keys["explicit"]})
        variables: dict[str, str | None] = {"MY_KEY": keys["named"]}
        self.assertEqual(self.shown_setting("api_key", env=variables)[0], "none")
        steps = [("OPENAI_API_KEY", "openai", []), ("GPT_IMAGE2_API_KEY", "ours", []), ("", "found", []),
                 ("MY_KEY", "named", ["--api-key-env", "MY_KEY"]),
                 ("", "explicit", ["--api-key-env", "MY_KEY", "--config", explicit])]
        for variable, name, arguments in steps:
            with self.subTest(name):
                if variable:
                    variables[variable] = keys[name]
                elif name == "found":
                    self.write_config({"api_key": keys["found"]})
                _, source = self.shown_setting("api_key", *arguments, env=variables)
                self.assertIn({"found": ".config", "explicit": explicit}.get(name, variable), source)

    def test_key_that_is_really_sent(self) -> None:
        config = self.explicit({"api_key": KEY})
        self.write_config({"api_key": "found-key"})
        cases = ((["--config", config, "--api-key", "flag-key"], {}), (["--api-key", KEY], {"GPT_IMAGE2_API_KEY": "a"}),
                 (["--api-key-env", "MINE"], {"MINE": KEY, "OPENAI_API_KEY": "b"}))
        for arguments, env in cases:
            with self.fresh(arguments[0]):
                self.run_program("generate", PROMPT, *self.access(), *arguments, env=env)
                self.assertEqual(self.only_post().header("Authorization"), f"Bearer {KEY}")

    def test_model_and_timeout(self) -> None:
        self.write_config({"model": "found-model", "timeout": 50})
        explicit = self.explicit({"model": "explicit-model", "timeout": 5.5})
        self.assertEqual(self.shown_setting("model")[0], "found-model")
        self.assertEqual(self.shown_setting("timeout")[0], "50")
        self.assertEqual(self.shown_setting("model", "--config", explicit)[0], "explicit-model")
        self.assertEqual(self.shown_setting("timeout", "--config", explicit)[0], "5.5")

    def test_model_flag_is_sent_instead_of_the_found_one(self) -> None:
        self.write_config({"model": "gpt-image-1.5"})
        self.generate(PROMPT, "--model", "gpt-image-2-2026-04-21")
        self.assertEqual(self.only_post().fields["model"], "gpt-image-2-2026-04-21")

    def test_null_and_empty_values_count_as_absent(self) -> None:
        self.write_config({"base_url": None, "model": "", "timeout": None, "headers": None, "api_key": "",
                           "api_key_command": []})
        settings = self.show()["settings"]
        self.assertEqual((settings["base_url"]["value"], settings["model"]["value"], settings["timeout"]["value"],
                          settings["api_key"]["value"]), (OPENAI, "gpt-image-2", "600", "none"))

    def test_empty_variables_count_as_unset(self) -> None:
        env: dict[str, str | None] = {"GPT_IMAGE2_BASE_URL": "", "OPENAI_BASE_URL": "", "GPT_IMAGE2_API_KEY": ""}
        self.assertEqual(self.shown_setting("base_url", env=env), (OPENAI, "default"))
        self.assertEqual(self.shown_setting("api_key", env=env)[0], "none")

    def test_headers_of_file_and_flags_are_merged(self) -> None:
        self.write_config({"base_url": self.server.url, "headers": {"X-A": "file", "X-B": "file"}, "api_key": KEY})
        self.run_inside("generate", PROMPT, "--header", "x-b: flag", "--header", "X-C: flag")
        post = self.only_post()
        self.assertEqual([post.header(name) for name in ("X-A", "X-B", "X-C")], ["file", "flag", "flag"])

    def test_overridden_flag_is_reported(self) -> None:
        explicit = self.explicit({"base_url": REMOTE, "api_key": "file-key"})
        for flag, value in (("--base-url", "https://other.invalid/v1"), ("--api-key", "flag-key")):
            with self.subTest(flag):
                warnings = self.warnings("--config", explicit, flag, value)
                self.assertTrue(any(flag in text and "takes precedence" in text for text in warnings), warnings)

    def test_flag_over_found_file_is_not_a_warning(self) -> None:
        self.write_config({"base_url": REMOTE})
        self.assertEqual(self.warnings("--base-url", "https://other.invalid/v1"), [])


class ConfigPlacesTest(SettingsCase):
    """The four places of a config file."""

    def places(self) -> list[Path]:
        """Return the places, first one first."""
        return [self.root / "xdg" / "gpt-image-2" / "config.json",
                self.home / ".config" / "gpt-image-2" / "config.json",
                self.home / ".gpt-image-2-config.json", self.home / ".hermes" / "gpt-image-2-config.json"]

    def test_first_that_exists(self) -> None:
        env: dict[str, str | None] = {"XDG_CONFIG_HOME": str(self.root / "xdg")}
        for number, place in reversed(list(enumerate(self.places()))):
            with self.subTest(number):
                self.write_config({"model": f"model-{number}"}, path=place)
                document = self.show(env=env)
                self.assertEqual(document["settings"]["model"], {"value": f"model-{number}", "source": str(place)})
                self.assertEqual(document["config_file"], str(place))

    def test_relative_xdg_folder_is_ignored(self) -> None:
        for folder in ("xdg", "./xdg", ".", ""):
            with self.subTest(folder):
                self.write_config({"model": "wrong"}, path=self.work / folder / "gpt-image-2" / "config.json")
                self.assertEqual(self.shown_setting("model", env={"XDG_CONFIG_HOME": folder}),
                                 ("gpt-image-2", "default"))

    def test_broken_link_is_not_passed_over(self) -> None:
        self.write_config({"model": "second"}, path=self.places()[2])
        self.places()[1].parent.mkdir(parents=True)
        self.places()[1].symlink_to("nowhere")
        self.assertEqual(self.run_inside("config").exit_code, SETUP)

    def test_explicit_file_may_lie_anywhere(self) -> None:
        self.write_config({"model": "mine"}, path=self.home / "my config.json")
        self.assertEqual(self.shown_setting("model", "--config", "~/my config.json")[0], "mine")
        self.write_config({"model": "x"}, path=self.work / "c.json")
        self.assertEqual(self.shown_setting("model", "--config", "c.json"), ("x", str(self.work / "c.json")))

    def test_byte_order_mark(self) -> None:
        self.write_config("\ufeff" + json.dumps({"model": "marked"}))
        self.assertEqual(self.shown_setting("model")[0], "marked")


class OddConfigTest(SettingsCase):
    """What is odd about a config file, but no reason to stop."""

    def test_unknown_names(self) -> None:
        for name, nearest in (("base_ulr", "base_url"), ("apikey", "api_key"), ("time_out", "timeout"), ("zzz", "")):
            with self.subTest(name):
                self.write_config({name: "x"})
                warning, = self.warnings()
                self.assertIn(repr(name), warning)
                self.assertIn(nearest, warning)
                self.assertEqual("Did you mean" in warning, bool(nearest))

    def test_permissions(self) -> None:
        for mode in (0o644, 0o640, 0o604, 0o660, 0o666):
            with self.subTest(oct(mode)):
                path = self.write_config({"api_key": KEY}, mode)
                warning, = self.warnings()
                self.assertIn(f"chmod 600 {path}", warning)
        for mode in (0o600, 0o400, 0o700):
            with self.subTest(oct(mode)):
                self.write_config({"api_key": KEY}, mode)
                self.assertEqual(self.warnings(), [])

    def test_warnings_reach_the_image_commands(self) -> None:
        self.write_config({"base_url": self.server.url, "api_key": KEY, "modle": "x"}, 0o644)
        result = self.run_program("generate", PROMPT, "--json")
        self.assertEqual((result.exit_code, len(result.json["warnings"])), (0, 2), result.stderr)
        self.assertEqual(result.stderr.count("warning: "), 2)

    def test_key_on_the_command_line(self) -> None:
        result = self.run_inside("generate", PROMPT, *self.access(), "--api-key", KEY)
        self.assert_succeeded(result)
        self.assertRegex(result.stderr, "warning: .*--api-key .*history")
        self.assertNotIn(KEY, result.stdout + result.stderr)


class Bound(NamedTuple):
    """One combination of key and endpoint, and whether the key may go there."""
    name: str
    allowed: bool
    env: dict[str, str | None] = {}
    config: dict[str, Any] | None = None
    arguments: list[str] = []


class OverriddenVariableTest(SettingsCase):
    """A file that wins over the variable for the endpoint says so: the key may be meant for the other one."""

    def test_warning(self) -> None:
        path = self.write_config({"base_url": REMOTE})
        ours = "GPT_IMAGE2_BASE_URL"
        self.assertEqual(self.warnings(env={ours: OPENAI}), [f"{path} takes precedence over ${ours}"])
        self.assertEqual(self.warnings(env={ours: REMOTE + "/"}), [])
        self.assertEqual(self.warnings("--base-url", REMOTE, env={ours: OPENAI}), [])
        self.assertEqual(self.warnings("--config", path, env={ours: OPENAI}), [])


class AddressOfOneCallTest(SettingsCase):
    """The address of one call, pasted as base URL, is cut to what it means."""

    def test_cut(self) -> None:
        for tail in ("/images/generations", "/images/edits", "/images/generations/"):
            self.assertEqual(self.shown_setting("base_url", "--base-url", REMOTE + tail)[0], REMOTE)
        azure = "https://x.openai.azure.com/openai/deployments/d"
        self.assertEqual(self.shown_setting("base_url", "--base-url", azure + "/images/generations?api-version=1")[0],
                         azure + "?api-version=1")


class KeyBelongsToAHostTest(SettingsCase):
    """A key from a file or from OpenAI's variable goes nowhere but to its host, or to this machine."""

    def setUp(self) -> None:
        super().setUp()
        self.sent = self.root / "sent"  # what a stand-in for curl was told; it answers like a dropped connection
        self.shell_script("curl", f"""case "$*" in *--version*) echo curl 8.0.0; exit;; esac
while IFS= read -r line; do printf '%s\\n' "$line"; done > '{self.sent}'
echo "000 0 10 0.5 0"; echo "curl: (52) Empty reply" >&2; exit 52
""")

    def check_bound(self, bound: Bound) -> None:
        """Check one combination: either curl gets the key for that host, or it is never started."""
        words = ["generate", PROMPT, "--json", *bound.arguments]
        words += ["--config", self.explicit(bound.config)] if bound.config is not None else []
        path = f"{self.root / 'bin'}:{self.environment()['PATH']}"
        result = self.run_inside(*words, env={**bound.env, "PATH": path})
        with self.subTest(bound.name):
            error = result.json["error"]
            if not bound.allowed:
                self.assertEqual((result.exit_code, error["kind"], error["billed"]), (SETUP, "key", "no"), error)
                self.assertFalse(self.sent.exists())
                return
            self.assertEqual((result.exit_code, error["billed"]), (NO_ANSWER, "maybe"), error)
            self.assertIn(f'"Authorization: Bearer {KEY}"', self.sent.read_text())
            self.sent.unlink()

    def test_refused(self) -> None:
        remote = ["--base-url", REMOTE]
        for bound in (
                Bound("OpenAI's key, other endpoint", False, {"OPENAI_API_KEY": KEY}, None, remote),
                Bound("OpenAI's key, endpoint from our variable", False,
                      {"OPENAI_API_KEY": KEY, "GPT_IMAGE2_BASE_URL": REMOTE}),
                Bound("OpenAI's key and URL, other endpoint", False,
                      {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://mine.invalid/v1"}, None, remote),
                Bound("OpenAI's key, endpoint of a config", False, {"OPENAI_API_KEY": KEY}, {"base_url": REMOTE}),
                Bound("other port", False, {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://relay.invalid:444/v1"},
                      None, remote),
                Bound("OpenAI's URL cannot be read", False, {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "mine"}, None,
                      remote),
                Bound("key of a subdomain", False, {"OPENAI_API_KEY": KEY,
                                                    "OPENAI_BASE_URL": "https://a.relay.invalid/v1"},
                      None, remote)):
            self.check_bound(bound)

    def test_key_of_a_found_config(self) -> None:
        remote = ["--base-url", REMOTE]
        named: dict[str, str | None] = {"MY_KEY": KEY}
        for name, content in (("key", {"api_key": KEY}), ("variable", {"api_key_env": "MY_KEY"}),
                              ("command", {"api_key_command": ["echo", KEY]}),
                              ("key of another host", {"api_key": KEY, "base_url": "https://mine.invalid/v1"}),
                              ("key of an address that cannot be read",
                               {"api_key": KEY, "base_url": "mine.invalid v1"})):
            self.write_config(content)
            self.check_bound(Bound(name, False, named, None, remote))
            self.check_bound(Bound(name + ", own variable wins", True, {**named, "GPT_IMAGE2_API_KEY": KEY}, None,
                                   remote))

    def test_allowed(self) -> None:
        remote = ["--base-url", REMOTE]
        for bound in (
                Bound("own variable", True, {"GPT_IMAGE2_API_KEY": KEY}, None, remote),
                Bound("flag", True, {}, None, [*remote, "--api-key", KEY]),
                Bound("named variable", True, {"MY_KEY": KEY}, None, [*remote, "--api-key-env", "MY_KEY"]),
                Bound("OpenAI's variable by name", True, {"OPENAI_API_KEY": KEY}, None,
                      [*remote, "--api-key-env", "OPENAI_API_KEY"]),
                Bound("config of that host", True, {}, {"base_url": REMOTE, "api_key": KEY}),
                Bound("same host, other path and case", True, {},
                      {"base_url": "https://Relay.invalid:443/v2", "api_key": KEY}),
                Bound("OpenAI's pair", True, {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": REMOTE})):
            self.check_bound(bound)

    def test_loopback_takes_any_key(self) -> None:
        for name, env, config in (("OpenAI's", {"OPENAI_API_KEY": KEY}, None), ("config's", {}, {"api_key": KEY}),
                                  ("other host's", {}, {"api_key": KEY, "base_url": REMOTE})):
            with self.fresh(name):
                self.write_config(config or {})
                result = self.run_inside("generate", PROMPT, *self.access(), env=env)
                self.assert_succeeded(result)
                self.assertEqual(self.only_post().header("Authorization"), f"Bearer {KEY}")

    def test_loopback_needs_no_key(self) -> None:
        self.server.plan(Answer(check=False))
        self.assert_succeeded(self.run_inside("generate", PROMPT, *self.access()))
        self.assertEqual(self.only_post().header("Authorization"), "")

    def test_headers_of_a_config_stay_with_its_host(self) -> None:
        self.write_config({"base_url": REMOTE, "headers": {"api-key": "fake-header"}})
        result = self.run_inside("config", "--base-url", "https://other.invalid/v1")
        self.assertNotIn("fake-header", result.stdout + result.stderr)
        self.assertIn("headers", result.stderr)

    def test_allow_http(self) -> None:
        remote = ["--base-url", "http://relay.invalid/v1"]
        self.check_bound(Bound("flag", True, {"GPT_IMAGE2_API_KEY": KEY}, None, [*remote, "--allow-http"]))
        self.check_bound(Bound("config", True, {}, {"base_url": "http://relay.invalid/v1", "api_key": KEY,
                                                    "allow_http": True}))


class KeyCommandTest(SettingsCase):
    """api_key_command: the vault stays the user's."""

    def with_command(self, *command: str) -> Result:
        """Run generate with the key from a command."""
        self.write_config({"base_url": self.server.url, "api_key_command": list(command)})
        return self.run_inside("generate", PROMPT)

    def test_first_line(self) -> None:
        for name, script in (("one line", f"echo {KEY}"), ("more lines", f"echo {KEY}; echo note; echo more"),
                             ("windows", f"printf '{KEY}\\r\\nx'"), ("no line break", f"printf {KEY}"),
                             ("blanks", f"echo '  {KEY} '"), ("talks", f"echo working >&2; echo {KEY}")):
            with self.fresh(name):
                result = self.with_command(self.shell_script("vault", script + "\n"))
                self.assert_succeeded(result)
                self.assertEqual(self.only_post().header("Authorization"), f"Bearer {KEY}")
                self.assertNotIn("working", result.stderr)

    def test_arguments_are_not_read_by_a_shell(self) -> None:
        vault = self.shell_script("vault", '[ "$2" = \'a b;c "$HOME\' ] && echo ' + KEY + "\n")
        self.assert_succeeded(self.with_command(vault, "show", 'a b;c "$HOME'))

    def test_failures(self) -> None:
        for name, script, message in (("exit code", "echo hidden-text; exit 3", "vault' failed with exit code 3"),
                                      ("silence", "exit 0", "api_key_command"),
                                      ("blank", "echo; echo hidden-text", "api_key_command"),
                                      ("not ASCII", "echo hidden-text-\u00fc", "not ASCII")):
            with self.subTest(name):
                result = self.with_command(self.shell_script("vault", script + "\n"))
                self.assertEqual((result.exit_code, len(result.errors), self.server.requests), (SETUP, 1, []),
                                 result.stderr)
                self.assertIn(message, result.stderr)
                self.assertIn("api_key_command in", result.stderr)
                self.assertNotIn("hidden-text", result.stdout + result.stderr)

    def test_missing_program(self) -> None:
        result = self.with_command("no-such-vault-program", "show")
        self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1), result.stderr)
        self.assertIn("no-such-vault-program", result.stderr)

    def test_program_that_stays_in_the_background(self) -> None:
        """As a password agent does that the command starts."""
        started = time.monotonic()
        vault = self.shell_script("vault", f"sleep 25 &\necho $! > '{self.work}/pid'; echo {KEY}\n")
        self.assert_succeeded(self.with_command(vault))
        self.assertLess(time.monotonic() - started, 20)
        os.kill(int((self.work / "pid").read_text()), signal.SIGKILL)

    def test_runs_only_when_a_key_is_needed(self) -> None:
        mark = self.work / "ran"
        self.write_config({"base_url": self.server.url,
                           "api_key_command": [self.shell_script("vault", f"echo x > '{mark}'\n")]})
        self.run_inside("config", "--show")
        self.run_inside("generate", PROMPT, "--size", "1000x1000")
        self.assertFalse(mark.exists())


class ConfigShowTest(SettingsCase):
    """config and config --show."""

    def test_every_setting_has_value_and_source(self) -> None:
        path = self.write_config({"base_url": REMOTE, "model": "m", "api_key": "fake-key-of-20-or-more",
                                  "proxy": "http://p:1", "headers": {"X-A": "b"}, "cacert": "ca.pem",
                                  "allow_http": True, "timeout": 7})
        settings = self.show()["settings"]
        for name in ("base_url", "model", "timeout", "headers", "proxy", "cacert", "allow_http", "api_key"):
            with self.subTest(name):
                self.assertEqual(settings[name]["source"], path)
        self.assertEqual(settings["api_key"]["value"], "***more")

    def test_human_form(self) -> None:
        path = self.write_config({"base_url": REMOTE, "api_key": "short"})
        for arguments in ([], ["--show"]):
            result = self.run_program("config", *arguments)
            self.assertEqual((result.exit_code, result.stderr), (0, ""))
            lines = {line.split(" ")[0]: line for line in result.stdout.rstrip("\n").split("\n")}
            self.assertIn(REMOTE, lines["base_url"])
            self.assertIn(path, lines["base_url"])
            self.assertIn("default", lines["model"])
            self.assertIn("***", lines["api_key"])
            self.assertNotIn("short", result.stdout)

    def test_masking(self) -> None:
        for key, shown in (("short-key", "***"), ("nineteen-characters", "***"), ("twenty-characters-xy", "***s-xy")):
            with self.subTest(key):
                value, _ = self.shown_setting("api_key", env={"GPT_IMAGE2_API_KEY": key})
                self.assertEqual(value, shown)

    def test_secrets_in_other_settings(self) -> None:
        self.write_config({"base_url": REMOTE, "proxy": "http://me:proxy-password@proxy.invalid:8080",
                           "headers": {"api-key": "header-secret", "X-Note": "note-secret"}})
        for form in ("--json", "-v"):
            result = self.run_inside("config", form)
            for secret in ("proxy-password", "header-secret", "note-secret"):
                self.assertNotIn(secret, result.stdout + result.stderr)
            self.assertIn("X-Note: ***", result.stdout)

    def test_key_for_another_host_says_so(self) -> None:
        value, source = self.shown_setting("api_key", "--base-url", REMOTE, env={"OPENAI_API_KEY": KEY})
        self.assertIn("api.openai.com", value)
        self.assertIn("OPENAI_API_KEY", source)

    def test_without_a_file(self) -> None:
        self.assertIsNone(self.show()["config_file"])
        self.assertIn(".gpt-image-2-config.json", self.run_inside("config").stdout)


class PipedConfigTest(SettingsCase):
    """--config - reads a config that is never a file: how another program hands a key over."""

    def test_it_is_an_explicit_file(self) -> None:
        config = json.dumps({"base_url": self.server.url, "api_key": KEY, "model": "gpt-image-2"})
        result = self.run_program("generate", PROMPT, "--config", "-", "--json", stdin=config,
                                  env={"OPENAI_API_KEY": "another"})
        self.assertTrue(result.json["ok"], result.stderr)
        self.assertEqual(self.only_post().header("authorization"), f"Bearer {KEY}")
        self.assertEqual(result.json["warnings"], [])

    def test_show_names_it(self) -> None:
        result = self.run_program("config", "--config", "-", stdin=json.dumps({"base_url": REMOTE, "api_key": KEY}))
        self.assertIn(f"base_url    {REMOTE}  (standard input)", result.stdout)
        self.assertNotIn(KEY, result.stdout)

    def test_faults(self) -> None:
        for arguments, stdin, code, words in (
                (["generate", PROMPT], "{broken", SETUP, "standard input: Expecting property name"),
                (["generate", PROMPT], "", SETUP, "Fix it"),
                (["generate", "-"], "{}", USAGE, "both config and prompt"),
                (["generate", "--prompt-file", "-"], "{}", USAGE, "both config and prompt"),
                (["config", "--init"], "{}", USAGE, "--init needs a file to write")):
            with self.subTest(arguments + [stdin]):
                result = self.run_program(*arguments, "--config", "-", stdin=stdin)
                self.assertEqual(result.exit_code, code, result.stderr)
                self.assertIn(words, result.stderr)


class ConfigInitTest(SettingsCase):
    """config --init."""

    def test_template(self) -> None:
        umask = os.umask(0)
        try:
            result = self.run_program("config", "--init")
        finally:
            os.umask(umask)
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        self.assertEqual((result.exit_code, result.stderr), (0, ""))
        self.assertIn(str(path), result.stdout)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertEqual(set(json.loads(path.read_text())), {"base_url", "api_key_env"})
        self.assertEqual(self.warnings(), [])

    def test_template_follows_what_is_set_up(self) -> None:
        """A key in use must not end up beside another endpoint."""
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        relay, ours, openai = REMOTE, "GPT_IMAGE2_API_KEY", "OPENAI_API_KEY"
        for env, arguments, base_url, variable in (
                ({}, [], OPENAI, ours), ({"GPT_IMAGE2_BASE_URL": relay, ours: KEY}, [], relay, ours),
                ({openai: KEY}, [], OPENAI, openai), ({openai: KEY, "OPENAI_BASE_URL": relay}, [], relay, openai),
                ({openai: KEY, "GPT_IMAGE2_BASE_URL": relay}, [], relay, ours),
                ({openai: KEY}, ["--base-url", relay], relay, ours), ({openai: KEY, ours: KEY}, [], OPENAI, ours)):
            with self.subTest(env=env, arguments=arguments):
                result = self.run_inside("config", "--init", *arguments, env=dict(env))
                self.assertEqual(result.exit_code, 0, result.stderr)
                self.assertEqual(json.loads(path.read_text()), {"base_url": base_url, "api_key_env": variable})
                path.unlink()

    def test_template_holds_no_key(self) -> None:
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        result = self.run_inside("config", "--init", "--api-key", KEY)
        self.assertEqual((result.exit_code, path.exists()), (USAGE, False), result.stderr)
        self.run_inside("config", "--init", env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertNotIn(KEY, path.read_text())

    def test_places(self) -> None:
        xdg, mine = self.root / "xdg", self.work / "new folder" / "mine.json"
        self.assertEqual(self.run_inside("config", "--init", env={"XDG_CONFIG_HOME": str(xdg)}).exit_code, 0)
        self.assertTrue((xdg / "gpt-image-2" / "config.json").exists())
        self.assertEqual(self.run_inside("config", "--init", "--config", "new folder/mine.json").exit_code, 0)
        self.assertEqual(mine.stat().st_mode & 0o777, 0o600)
        again = self.run_inside("config", "--init", "--config", "new folder/mine.json")
        self.assertIn(f"config --init --force --config '{mine}'", again.stderr)
        self.assertFalse((self.home / ".config").exists())

    def test_existing_file_stays_without_force(self) -> None:
        path = self.write_config({"model": "mine"}, 0o644)
        result = self.run_inside("config", "--init")
        self.assertEqual((result.exit_code, len(result.errors)), (USAGE, 1))
        self.assertIn("--force", result.stderr)
        self.assertEqual(json.loads(Path(path).read_text()), {"model": "mine"})
        self.assertEqual(self.run_inside("config", "--init", "--force").exit_code, 0)
        self.assertIn("base_url", json.loads(Path(path).read_text()))
        self.assertEqual(Path(path).stat().st_mode & 0o777, 0o600)

    def test_force_keeps_where_the_file_leads(self) -> None:
        """A setting more must not send a gateway's key and prompts elsewhere; another address has a key of its own."""
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        gateway = ["--base-url", REMOTE, "--api-key-env", "GATEWAY_KEY"]
        for given, address, variable in (
                (["--quality", "low"], REMOTE, "GATEWAY_KEY"), ([], REMOTE, "GATEWAY_KEY"),
                (["--api-key-env", "OTHER_KEY"], REMOTE, "OTHER_KEY"),
                (["--base-url", OPENAI], OPENAI, "GPT_IMAGE2_API_KEY"),
                (["--api", "runapi"], "https://runapi.ai", "RUNAPI_API_KEY")):
            with self.subTest(given):
                for words in (gateway, given):
                    self.assertEqual(self.run_inside("config", "--init", "--force", *words).exit_code, 0)
                content = json.loads(path.read_text())
                self.assertEqual((content["base_url"], content["api_key_env"]), (address, variable))
                path.unlink()

    def test_force_mends_a_broken_file(self) -> None:
        self.write_config("{broken")
        self.assertEqual(self.run_inside("config", "--init", "--force").exit_code, 0)
        self.assertEqual(self.run_inside("config").exit_code, 0)

    def test_impossible_place(self) -> None:
        self.file("regular", "text")
        for path in ("regular/config.json", "/proc/none/config.json", "."):
            with self.subTest(path):
                result = self.run_inside("config", "--init", "--config", path)
                self.assertIn(result.exit_code, (USAGE, SETUP))
                self.assertEqual(len(result.errors), 1, result.stderr)

    def test_values_from_flags(self) -> None:
        self.run_inside("config", "--init", "--base-url", REMOTE, "--api-key-env", "MY_KEY")
        path = self.home / ".config" / "gpt-image-2" / "config.json"
        self.assertEqual(json.loads(path.read_text()), {"base_url": REMOTE, "api_key_env": "MY_KEY"})
        self.assertEqual(self.shown_setting("base_url"), (REMOTE, str(path)))

    def test_json(self) -> None:
        self.assertTrue(self.run_inside("config", "--init", "--json").json["ok"])
        self.assertFalse(self.run_inside("config", "--init", "--json").json["ok"])


class ConfigCheckTest(SettingsCase):
    """config --check proves host and key with free requests: one with the key, and one that must fail without it."""

    def check(self, *arguments: str, key: str = KEY, env: dict[str, str | None] | None = None) -> Result:
        """Run config --check against the server."""
        return self.run_inside("config", "--check", *self.access(), *arguments,
                               env={"GPT_IMAGE2_API_KEY": key, **(env or {})})

    def test_good(self) -> None:
        result = self.run_program("config", "--check", *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
        self.assertEqual((result.exit_code, result.errors), (0, []), result.stderr)
        self.assertRegex(result.stdout, r"curl \d+\.\d+")
        self.assertRegex(result.stdout, r"Python \d")
        self.assertIn("gpt-image-2", result.stdout)
        self.assertNotIn(KEY, result.stdout + result.stderr)
        first, bare = self.server.requests
        self.assertEqual([first.header("Authorization"), bare.header("Authorization")], [f"Bearer {KEY}", ""])
        for request in (first, bare):
            self.assertTrue(request.path.startswith("/v1/models"), request.path)
            self.assertEqual((request.method, request.body), ("GET", b""))

    def test_json(self) -> None:
        document = self.check("--json").json
        self.assertTrue(document["ok"])

    def test_wrong_key(self) -> None:
        result = self.check(key="wrong-key")
        self.assertEqual((result.exit_code, len(result.errors)), (SETUP, 1))
        self.assertNotIn("wrong-key", result.stdout + result.stderr)

    def test_unknown_model(self) -> None:
        self.write_config({"model": "house-model"})
        result = self.check()
        self.assertEqual(result.exit_code, 0)
        self.assertRegex(result.stdout + result.stderr, "house-model .*not")

    def test_shutdown_date(self) -> None:
        self.write_config({"model": "gpt-image-1.5"})
        self.assertIn("2026-12-01", self.check().stdout)

    def test_odd_lists(self) -> None:
        for body in (b'{"data": null}', b'{"data": [null, 5, {"id": 7}]}', b"[]", b'{"object": "list"}'):
            with self.subTest(body):
                self.server.plan_models(Answer(body=body))
                result = self.check()
                self.assertNotIn("Traceback", result.stderr)
                self.assertIn(result.exit_code, (0, NO_ANSWER), result.stderr)

    def test_failures(self) -> None:
        for name, answer, exit_code in (("forbidden", Answer(status=403, body=error_body("no")), SETUP),
                                        ("page", Answer(body=b"<title>Sign in</title>", content_type="text/html"),
                                         NO_ANSWER),
                                        ("broken", Answer(status=500, body=b""), NO_ANSWER)):
            with self.subTest(name):
                self.server._plans.clear()
                self.server.plan_models(*[answer] * 5)
                result = self.check("--json")
                self.assertEqual((result.exit_code, result.json["ok"]), (exit_code, False), result.stderr)
                self.assertEqual(result.json["error"]["billed"], "no")

    def test_server_that_needs_no_key(self) -> None:
        self.server.plan_models(Answer(body=b'{"data": []}', check=False))
        result = self.check(key="")
        self.assertNotIn("accepts the key", result.stdout)

    def test_no_key(self) -> None:
        result = self.run_inside("config", "--check", "--base-url", REMOTE)
        self.assertEqual(result.exit_code, SETUP)
        self.assertIn("GPT_IMAGE2_API_KEY", result.stderr)

    def test_permissions(self) -> None:
        path = self.write_config({"api_key": KEY, "base_url": self.server.url}, 0o644)
        self.assertIn(f"chmod 600 {path}", self.run_inside("config", "--check").stderr)
