"""Which machines are asked, through which proxy, by whose config, and which key goes where."""
from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import threading
import unittest
from os import environ
from types import ModuleType
from typing import Any
from unittest import mock

from api_server import Answer, LoopbackServer, QuietHandler, draw_png
from support import KEY, PROGRAM, ProgramCase, Result, program

PROMPT = "a red fox"
SMALL = draw_png(64, 48)
LOGIN = "user:p%40ss-word"
PLAIN_PASSWORD = "p@ss-word"
REMOTE = "http://relay.invalid/v1"
B64 = json.dumps({"data": [{"b64_json": base64.b64encode(SMALL).decode()}]}).encode()
OWN_MACHINE = ("127.0.0.1", "127.1", "127.0.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1",
               "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[::]",
               "0.0.0.0", "0", "0x0", "localhost", "LocalHost", "localhost.", "127.0.0.1.", "a.localhost",
               "a.b.localhost.", "localhost.localdomain", "ip6-localhost", "localhost6", "[0:0:0:0:0:0:0:1]",
               "127.255.255.254")
LINK = ("169.254.169.254", "0xa9fea9fe", "2852039166", "[fe80::1]", "[febf::9]", "[::ffff:169.254.169.254]")
ELSEWHERE = ("relay.example", "127.0.0.1.nip.example", "10.0.0.1", "192.168.7.7", "172.16.0.1", "[fd00::1]", "8.8.8.8",
             "localhost.example", "127.0.0.256", "[2001:db8::1]")


class ProxyHandler(QuietHandler):
    """Wants a login, where its server has one, and plays every host there is."""
    server: Any

    def do_GET(self) -> None:
        """Answer one request for an absolute URL, or a CONNECT."""
        proxy = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with proxy.lock:
            proxy.seen.append((self.command, self.path, dict(self.headers), body))
        wanted = "Basic " + base64.b64encode(proxy.login.encode()).decode() if proxy.login else ""
        if wanted and self.headers.get("Proxy-Authorization") != wanted:
            status, headers, content = 407, {"Proxy-Authenticate": "Basic"}, b""
        elif self.command == "CONNECT":
            status, headers, content = 502, {}, b""
        else:
            status, headers, content = proxy.answers.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    do_POST = do_PUT = do_CONNECT = do_GET


class Proxy(LoopbackServer):
    """A proxy that is also the whole internet: what a URL answers is in `answers`."""

    def __init__(self, login: str = "") -> None:
        super().__init__(ProxyHandler)
        self.lock, self.login = threading.Lock(), login
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}


class ProxyCase(ProgramCase):
    """Runs with a proxy between the program and a relay that is somewhere else."""
    login = ""

    def setUp(self) -> None:
        super().setUp()
        self.proxy = self.enter(Proxy(self.login))
        self.port = self.proxy.origin.rpartition(":")[2]
        self.proxy.answers[f"{REMOTE}/images/generations"] = (200, {}, B64)

    def relay(self, *arguments: str, env: Any = None, base: str = REMOTE, **options: Any) -> Result:
        """Run generate against the relay behind the proxy."""
        variables = {"NO_PROXY": None, "http_proxy": self.proxy.origin, "GPT_IMAGE2_API_KEY": KEY, **(env or {})}
        return self.run_program("generate", PROMPT, "--allow-http", "--base-url", base, *arguments, env=variables,
                                **options)

    def posts(self) -> int:
        """Return how many paid requests the relay saw."""
        return sum(method == "POST" for method, *_ in self.proxy.seen)


class ProxyLoginTest(ProxyCase):
    """A proxy variable that holds a login reaches curl; the login is in no message."""
    login = f"user:{PLAIN_PASSWORD}"

    def hidden(self, result: Result) -> None:
        for secret in (LOGIN, "p%40ss-word", PLAIN_PASSWORD, "p%2540ss"):
            self.assertNotIn(secret, result.stdout + result.stderr)

    def test_every_variable(self) -> None:
        for name in ("http_proxy", "all_proxy", "ALL_PROXY"):
            for scheme in ("http://", ""):
                with self.fresh(name + scheme):
                    result = self.relay("-v", env={"http_proxy": None, name: f"{scheme}{LOGIN}@127.0.0.1:{self.port}"})
                    self.assert_succeeded(result)
                    self.hidden(result)
                    self.assertEqual(self.posts(), 1)
                    self.proxy.seen.clear()

    def test_https_variables(self) -> None:
        for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            with self.subTest(name):
                env = {"http_proxy": None, name: f"{LOGIN}@127.0.0.1:{self.port}"}
                result = self.relay("-v", env=env, base="https://relay.invalid/v1")
                self.assertEqual(result.exit_code, 6, result.stderr)
                self.hidden(result)
                method, target, headers, _ = self.proxy.seen[0]
                self.assertEqual((method, target), ("CONNECT", "relay.invalid:443"))
                self.assertIn("Proxy-Authorization", headers)
                self.proxy.seen.clear()

    def test_wrong_password(self) -> None:
        result = self.relay("-v", "--json", env={"http_proxy": f"http://me:hidden-{LOGIN}@127.0.0.1:{self.port}"})
        self.assertFalse(result.json["ok"])
        self.assertNotIn("hidden-", result.stdout + result.stderr)
        seen = {headers.get("Authorization") for _, _, headers, _ in self.proxy.seen}
        self.assertEqual(seen - {None, f"Bearer {KEY}"}, set())

    def test_login_without_password(self) -> None:
        self.proxy.login = "user-and-no-password:"
        result = self.relay("-v", env={"http_proxy": f"http://user-and-no-password@127.0.0.1:{self.port}"})
        self.assert_succeeded(result)
        self.assertNotIn("user-and-no-password", result.stdout + result.stderr)


class ChildEnvironmentTest(unittest.TestCase):
    """Only variables that are keys are kept from child processes."""

    def kept(self, secrets: list[str], **variables: str) -> dict[str, str]:
        with mock.patch.dict(environ, variables, clear=True):
            return program.child_environment(secrets)

    def test_needed_variables_stay(self) -> None:
        needed = {"PATH": "/opt/test-key/bin", "HOME": "/home/test-key", "NO_PROXY": "test-key",
                  "no_proxy": "x.test-key", "http_proxy": "http://test-key:x@p", "HTTPS_PROXY": "test-key",
                  "SSL_CERT_FILE": "/test-key.pem", "CURL_CA_BUNDLE": "/test-key", "TMPDIR": "/tmp/test-key",
                  "LD_LIBRARY_PATH": "/test-key", "XDG_CONFIG_HOME": "/test-key"}
        self.assertEqual({**self.kept(["test-key"], **needed), "LC_ALL": ""}, {**needed, "LC_ALL": ""})

    def test_copies_of_a_key_go(self) -> None:
        env = self.kept(["test-key", "abcd", "1"], A="test-key", B="x test-key", C="abcd", D="abcde", E="1",
                        GPT_IMAGE2_API_KEY="z", SSLKEYLOGFILE="/x")
        self.assertEqual(sorted(env), ["D", "E", "LC_ALL"])


class HeaderValueIsNoKeyTest(ProgramCase):
    """The value of a header that is no secret costs the key command no variable."""

    def test_key_command(self) -> None:
        vault = self.shell_script("vault", f'test "$VAULT_ADDR" = https://vault.example/secret && echo {KEY}\n')
        self.write_config({"base_url": self.server.url, "api_key_command": [vault],
                           "headers": {"Referer": "https://vault.example"}})
        self.assert_succeeded(self.run_program("generate", PROMPT, env={"VAULT_ADDR": "https://vault.example/secret"}))


class OwnPlaceTest(unittest.TestCase):
    """Addresses of this machine and of its link, in every spelling that curl takes."""

    def test_every_spelling_of_an_own_address_is_known(self) -> None:
        for hosts, place in ((OWN_MACHINE, "this machine"), (LINK, "a link-local address"), (ELSEWHERE, "")):
            for host in hosts:
                with self.subTest(host):
                    self.assertEqual(program.local_place(host), place)

    def test_who_may_name_what(self) -> None:
        here, there = "http://localhost:5/v1", "https://relay.example/v1"
        for url, author, refused in (
                ("http://127.0.0.1:9/x", there, True), ("http://127.0.0.1:9/x", here, False),
                ("http://a.localhost/x", here, False), ("http://169.254.169.254/x", here, True),
                ("http://169.254.1.1/x", "https://169.254.1.1/v1", False),
                ("http://169.254.1.2/x", "https://169.254.1.1/v1", True), ("https://cdn.example/x", there, False),
                ("https://10.0.0.1/x", there, False), ("https://u@127.0.0.1/x", here, True),
                ("https://cdn.example\\@127.0.0.1/", there, True), ("http://\uff11\uff12\uff17.0.0.1/", there, True),
                ("http://%31%32%37.0.0.1/", there, True), ("http://[fe80::1%25eth0]/", there, True)):
            with self.subTest(f"{url} {author}"):
                self.assertEqual(bool(program.address_fault(url, author)), refused)


class ResultPlaceTest(ProxyCase):
    """A relay somewhere else cannot make this program ask this machine; what was paid is kept and said."""

    def answer_url(self, url: str) -> None:
        self.proxy.answers[f"{REMOTE}/images/generations"] = (200, {}, json.dumps({"data": [{"url": url}]}).encode())

    def refused(self, result: Result, host: str) -> None:
        """Check a failure that names the place, keeps the answer and leaves nothing that fails for ever."""
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["kind"], error["billed"]), (6, "place", "yes"), error)
        self.assertIn(host, error["message"])
        self.assertNotIn("--allow-http", error["hint"])
        self.assertEqual(len(list(self.work.glob("*.answer"))), 1)
        self.assertEqual(self.server.requests, [])
        self.assertEqual([str(path) for path in (self.home / ".local/state/gpt-image-2/requests").glob("[!.]*")], [])

    def test_result_on_this_machine(self) -> None:
        port = self.server.origin.rpartition(":")[2]
        for host in ("127.1", "169.254.169.254"):
            with self.subTest(host):
                for old in self.work.glob("*.answer"):
                    old.unlink()
                self.answer_url(f"http://{host}:{port}/files/x.png")
                self.refused(self.relay("--json", "-o", "x.png"), host)

    def test_redirect_to_this_machine(self) -> None:
        self.answer_url("http://cdn.invalid/1.png")
        for location in (self.server.origin + "/files/x.png", f"//127.1:{self.server.origin.rpartition(':')[2]}/x"):
            with self.subTest(location):
                for old in self.work.glob("*.answer"):
                    old.unlink()
                self.proxy.answers["http://cdn.invalid/1.png"] = (302, {"Location": location}, b"")
                self.refused(self.relay("--json", "-o", "x.png"), "127")

    def test_redirects_elsewhere_are_followed(self) -> None:
        self.answer_url("http://cdn.invalid/1.png?a=1")
        other = {"Location": "http://other.invalid/3 4.png"}
        self.proxy.answers.update({"http://cdn.invalid/1.png?a=1": (302, {"Location": "/2.png"}, b""),
                                   "http://cdn.invalid/2.png": (307, other, b"x"),
                                   "http://other.invalid/3%204.png": (200, {}, SMALL)})
        self.assertEqual(self.saved_file(self.relay()).read_bytes(), SMALL)
        self.assertEqual([headers.get("Authorization") for _, _, headers, _ in self.proxy.seen],
                         [f"Bearer {KEY}", None, None, None])

    def test_endless_and_broken_redirects(self) -> None:
        self.answer_url("http://cdn.invalid/1.png")
        for location in ("/1.png", "http://[::1"):
            with self.subTest(location):
                self.proxy.seen.clear()
                self.proxy.answers["http://cdn.invalid/1.png"] = (302, {"Location": location, "Retry-After": "0"}, b"")
                result = self.relay("--json", "--fresh", "-o", "x.png")
                self.assertIn(result.exit_code, (6, 7), result.stderr)
                self.assertEqual(result.json["error"]["billed"], "yes")
                self.assertLess(len(self.proxy.seen), 15)


class InputPlaceTest(ProxyCase):
    """An input's URL is the caller's own choice; where it leads on is not, and what does not come is not shown."""

    def fetch(self, url: str) -> Result:
        """Run an edit of a picture at a URL."""
        return self.run_program("edit", url, PROMPT, *self.access(),
                                env={"NO_PROXY": None, "http_proxy": self.proxy.origin, "GPT_IMAGE2_API_KEY": KEY})

    def test_own_choice(self) -> None:
        self.server.files["a.png"] = SMALL
        self.assert_succeeded(self.fetch(self.server.origin + "/files/a.png"))

    def test_own_choice_led_on_here(self) -> None:
        self.server.files.update({"a.png": SMALL, "b.png": SMALL})
        self.server.plan_files(Answer(status=302, headers=(("Location", "/files/a.png"),)))
        self.assert_succeeded(self.fetch(self.server.origin + "/files/b.png"))

    def test_stranger_leads_here(self) -> None:
        here = {"Location": self.server.origin + "/files/a.png"}
        self.proxy.answers["http://pictures.invalid/a.png"] = (302, here, b"")
        result = self.fetch("http://pictures.invalid/a.png")
        self.assertEqual((result.exit_code, self.server.requests), (2, []), result.stderr)
        self.assertIn("this machine", result.stderr)

    def test_what_came_is_not_shown(self) -> None:
        bodies = [b"internal-password hunter2", b"<html><title>hunter2 page</title>",
                  b'{"error": {"message": "hunter2"}}']
        for status in (404, 500, 200):
            for body in bodies[:1 if status == 500 else 3]:
                with self.subTest(f"{status} {body!r}"):
                    self.proxy.answers["http://pictures.invalid/a.png"] = (status, {"Retry-After": "0"}, body)
                    result = self.fetch("http://pictures.invalid/a.png")
                    self.assertEqual(result.exit_code, 2, result.stderr)
                    self.assertNotIn("hunter2", result.stdout + result.stderr)
                    if status != 200:
                        self.assertIn(f"HTTP {status}", result.stderr)


class UploadPlaceTest(unittest.TestCase):
    """What RunAPI's prepare answer may choose: a place that is not this machine, and harmless headers."""

    def steps(self, prepared: dict[str, Any], base: str = "https://runapi.example") -> program.Request:
        """Return the request behind the prepare answer."""
        values = {name: program.Setting("", "") for name in program.SETTING_KEYS}
        values.update(base_url=program.Setting(base, ""), headers=program.Setting({}, ""),
                      timeout=program.Setting(9, ""), api=program.Setting("runapi", ""))
        upload = program.Upload("/a.png", program.Picture("png", 1, 1), 5, "x")
        steps = program.runapi_upload(upload, program.Settings(values, (), "", ()), KEY)
        next(steps)
        return steps.send(program.Response("", 200, {}, prepared))

    def test_good(self) -> None:
        headers = {"Content-Type": "image/png", "Content-MD5": "x", "X-Storage-Pass": "y"}
        request = self.steps({"upload_url": "https://storage.example/a?x=1", "headers": headers, "signed_id": "1"})
        self.assertEqual(dict(request.headers), headers)
        self.steps({"upload_url": "http://127.0.0.1:5/a", "headers": {}}, "http://localhost:4")

    def test_refused(self) -> None:
        good = "https://storage.example/a"
        for url, headers in (("http://127.1:5/put", {}), ("http://169.254.169.254/put", {}),
                             ("https://u@127.0.0.1/", {}), (good, {"Host": "a"}), (good, {"@../home/secret": "x"}),
                             (good, {"Transfer-Encoding": "x"}), (good, {"A": "b\r\nC: d"})):
            with self.subTest(f"{url} {headers}"), self.assertRaises(program.Failure) as caught:
                self.steps({"upload_url": url, "headers": headers})
            self.assertEqual((caught.exception.kind, caught.exception.billed), ("upload", "no"))


@unittest.skipUnless(hasattr(os, "getuid") and os.getuid() == 0, "gives files to another user")
class ForeignConfigTest(ProgramCase):
    """A config that another user can write decides neither what is run nor where a key goes."""

    def setUp(self) -> None:
        super().setUp()
        self.mark = self.root / "ran"
        self.vault = self.shell_script("vault", f"touch '{self.mark}'; echo {KEY}\n")

    def use(self, content: dict[str, Any], owner: int, mode: int, named: bool) -> Result:
        """Run generate with a config of some owner and mode."""
        path = self.write_config(content, mode, self.work / "c.json" if named else None)
        os.chown(path, owner, 0)
        return self.run_program("generate", PROMPT, *(("--config", path) if named else ()),
                                env={"GPT_IMAGE2_API_KEY": KEY})

    def test_refused(self) -> None:
        for owner, mode in ((65534, 0o600), (0, 0o602)):
            for setting, value in (("api_key_command", [self.vault]), ("base_url", self.server.url),
                                   ("headers", {"A": "b"}), ("proxy", "http://127.0.0.1:9")):
                with self.subTest(f"{owner} {mode:o} {setting}"):
                    result = self.use({setting: value}, owner, mode, setting == "base_url")
                    self.assertEqual(result.exit_code, 3, result.stderr)
                    self.assertIn(setting, result.stderr)
                    self.assertIn("chmod 600", result.stderr)
                    self.assertEqual((self.server.requests, self.mark.exists()), ([], False))

    def test_allowed(self) -> None:
        content = {"base_url": self.server.url, "api_key_command": [self.vault]}
        self.assert_succeeded(self.use(content, 0, 0o600, False))
        self.forget()
        result = self.use(content, 0, 0o660, False)
        self.assert_succeeded(result)
        self.assertIn("changed by other users", result.stderr)

    def test_harmless_settings_are_only_a_warning(self) -> None:
        path = self.write_config({"model": "gpt-image-2"}, 0o600)
        os.chown(path, 65534, 0)
        result = self.run_program("generate", PROMPT, *self.access(), env={"GPT_IMAGE2_API_KEY": KEY})
        self.assert_succeeded(result)
        self.assertIn("changed by other users", result.stderr)


class ConfigForOthersTest(ProgramCase):
    """What is said of a config's rights fits to what is in it, and there is a way on."""

    def test_nothing_secret_in_it(self) -> None:
        for content, warned in (({"api_key_env": "MINE"}, False),
                                ({"api_key_env": "MINE", "model": "gpt-image-2"}, False), ({"api_key": KEY}, True),
                                ({"headers": {"A": "b"}}, True), ({"proxy": "http://127.0.0.1:9"}, True)):
            for mode in (0o644, 0o604, 0o640):
                with self.subTest(f"{content} {mode:o}"):
                    self.write_config({"base_url": self.server.url, **content}, mode)
                    self.assertEqual("read by other users" in self.run_inside("config").stderr, warned)
        self.write_config({"base_url": self.server.url, "api_key_env": "MINE"}, 0o660)
        self.assertIn("changed by other users", self.run_inside("config").stderr)

    def test_disk_without_rights(self) -> None:
        path = self.write_config({"base_url": self.server.url}, 0o777, self.work / "c 1.json")
        result = self.run_program("generate", PROMPT, "--config", path)
        self.assertEqual(result.exit_code, 3)
        self.assertIn(f"--config - < '{path}'", result.stderr)
        with open(path, encoding="utf-8") as stream:
            self.assert_succeeded(self.run_program("generate", PROMPT, "--config", "-", stdin=stream.read(),
                                                   env={"GPT_IMAGE2_API_KEY": KEY}))

    @unittest.skipUnless(os.name == "posix", "has a umask")
    def test_init_makes_no_open_folder(self) -> None:
        umask = os.umask(0)
        try:
            self.assertEqual(self.run_inside("config", "--init").exit_code, 0)
            self.assertEqual(os.umask(0), 0)
        finally:
            os.umask(umask)
        for path in (self.home / ".config", self.home / ".config" / "gpt-image-2"):
            self.assertEqual(path.stat().st_mode & 0o777, 0o700)


class EndlessConfigTest(ProgramCase):
    """A config is a file or a pipe, and has an end."""

    def test_devices(self) -> None:
        for path in ("/dev/zero", "/dev/urandom", "/dev/null", "/dev/full"):
            with self.subTest(path):
                self.assertEqual(self.run_program("config", "--config", path).exit_code, 3)

    def test_endless_pipe(self) -> None:
        with open("/dev/zero", "rb") as zero, subprocess.Popen(
                ["cat"], stdin=zero, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as cat:
            child = subprocess.run([sys.executable, str(PROGRAM), "config", "--config", "-"], stdin=cat.stdout,
                                   env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            cat.terminate()
        self.assertEqual(child.returncode, 3, child.stderr)
        self.assertIn(b"cannot read config file standard input", child.stderr)

    def test_pipe(self) -> None:
        pipe = self.root / "pipe"
        os.mkfifo(str(pipe), 0o600)
        writer = threading.Thread(target=lambda: pipe.write_text(json.dumps({"model": "from-a-pipe"})))
        writer.start()
        result = self.run_program("config", "--config", str(pipe))
        writer.join()
        self.assertIn("from-a-pipe", result.stdout)


class OwnKeyStaysWithOwnAddressTest(ProxyCase):
    """GPT_IMAGE2_API_KEY does not go where only a vendor's variable leads."""

    def generate_there(self, *arguments: str, **env: str) -> Result:
        """Run generate with these variables only."""
        variables: dict[str, Any] = {"NO_PROXY": None, "http_proxy": self.proxy.origin, **env}
        return self.run_program("generate", PROMPT, "--allow-http", "--json", *arguments, env=variables)

    def test_refused(self) -> None:
        for arguments, env in (([], {"OPENAI_BASE_URL": REMOTE}), (["--api", "runapi"], {"RUNAPI_BASE_URL": REMOTE})):
            with self.subTest(env):
                result = self.generate_there(*arguments, GPT_IMAGE2_API_KEY=KEY, **env)
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"], self.proxy.seen), (3, "key", []), error)
                self.assertIn("relay.invalid", error["message"])
                self.assertIn("GPT_IMAGE2_BASE_URL", error["hint"])

    def test_allowed(self) -> None:
        config = self.write_config({"base_url": REMOTE}, path=self.work / "c.json")
        both = {"GPT_IMAGE2_API_KEY": KEY, "OPENAI_BASE_URL": REMOTE}
        for name, arguments, env in (
                ("named too", [], {**both, "GPT_IMAGE2_BASE_URL": REMOTE}), ("config", ["--config", config], both),
                ("flag", ["--base-url", REMOTE], both),
                ("OpenAI's pair wins", [], {**both, "OPENAI_API_KEY": "other-fake-key"})):
            with self.fresh(name):
                self.proxy.seen.clear()
                self.assertTrue(self.generate_there(*arguments, **env).json["ok"])
                used = "other-fake-key" if "OPENAI_API_KEY" in env else KEY
                self.assertEqual([headers["Authorization"] for _, _, headers, _ in self.proxy.seen], [f"Bearer {used}"])

    def test_this_machine(self) -> None:
        self.assertTrue(self.generate_there(GPT_IMAGE2_API_KEY=KEY, OPENAI_BASE_URL=self.server.url).json["ok"])

    def test_init_does_not_name_it_either(self) -> None:
        self.run_program("config", "--init", env={"GPT_IMAGE2_API_KEY": KEY,
                                                  "OPENAI_BASE_URL": "https://relay.invalid/v1"})
        written = json.loads((self.home / ".config/gpt-image-2/config.json").read_text())
        self.assertEqual(written["api_key_env"], "OPENAI_API_KEY")

    def test_host_cannot_be_set(self) -> None:
        for name in ("Host", "host", "HOST"):
            self.assertEqual(self.generate_there("--header", f"{name}: other.invalid", GPT_IMAGE2_API_KEY=KEY,
                                                 GPT_IMAGE2_BASE_URL=REMOTE).exit_code, 2)
            config = self.write_config({"base_url": REMOTE, "headers": {name: "other.invalid"}},
                                       path=self.work / "c.json")
            self.assertEqual(self.generate_there("--config", config, GPT_IMAGE2_API_KEY=KEY).exit_code, 3)
        self.assertEqual(self.proxy.seen, [])


class PluginKeyTest(unittest.TestCase):
    """The Hermes plugin keeps to the same rules, and cleans what it says itself."""

    def setUp(self) -> None:
        spec = importlib.util.spec_from_file_location("plugin_under_test", str(PROGRAM.parent / "__init__.py"),
                                                      submodule_search_locations=[str(PROGRAM.parent)])
        assert spec is not None and spec.loader is not None
        self.plugin: ModuleType = importlib.util.module_from_spec(spec)
        with mock.patch.dict(sys.modules, {"plugin_under_test": self.plugin}):
            spec.loader.exec_module(self.plugin)

    def config(self, **env: str) -> dict[str, Any]:
        """Return what the plugin would use with these variables."""
        with mock.patch.dict(environ, {"HOME": "/nonexistent", **env}, clear=True):
            return dict(self.plugin.find_config())

    def test_key_and_address(self) -> None:
        with self.assertRaises(Exception) as caught:
            self.config(GPT_IMAGE2_API_KEY=KEY, OPENAI_BASE_URL="https://relay.invalid/v1")
        self.assertIn("GPT_IMAGE2_BASE_URL", caught.exception.hint)  # type: ignore[attr-defined]
        both = self.config(GPT_IMAGE2_API_KEY=KEY, OPENAI_BASE_URL="https://relay.invalid/v1",
                           OPENAI_API_KEY="other-fake-key")
        self.assertEqual(both["api_key"], "other-fake-key")
        self.assertEqual(self.config(GPT_IMAGE2_API_KEY=KEY)["api_key"], KEY)
        own = self.config(GPT_IMAGE2_API_KEY=KEY, GPT_IMAGE2_BASE_URL="https://relay.invalid/v1")
        self.assertEqual((own["base_url"], own["api_key"]), ("https://relay.invalid/v1", KEY))

    def test_words_are_cleaned(self) -> None:
        with mock.patch.dict(environ, {"GPT_IMAGE2_API_KEY": "other-fake-key"}, clear=True):
            for error in (OSError("other-fake-key\u2028Saved: /x"), self.plugin.BadSource("/a/other%2Dfake-key"),
                          self.plugin.program.setup_failure("cannot read other-fake-key\x9b")):
                told = self.plugin.failure_of(error)["error"]
                self.assertNotRegex(told, "fake-key|\u2028|\x9b")
