"""The key appears in no argument list, no child's environment and no file, at any moment of a run."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from api_server import Answer, draw_png
from support import KEY, PROGRAM, ProgramCase, Result

PROMPT = "a red fox"


class Process(NamedTuple):
    """What /proc shows of a process to others of the same user."""
    pid: int
    arguments: list[bytes]
    environment: bytes
    stdin: str  # what its standard input is called


def processes() -> Iterator[Process]:
    """Yield every process that can be looked at."""
    for entry in os.listdir("/proc"):
        try:
            folder = Path("/proc") / str(int(entry))
            arguments = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
            stdin = os.path.realpath(str(folder / "fd" / "0"))
            yield Process(int(entry), arguments, (folder / "environ").read_bytes(), stdin)
        except (OSError, ValueError):
            continue  # not a process, or gone meanwhile


def helpers(child: int, home: Path) -> list[Process]:
    """Return the processes that work for a program: curl is no descendant, but has the same home."""
    mark = b"\0HOME=" + os.fsencode(str(home)) + b"\0"
    return [each for each in processes() if each.pid != child and mark in b"\0" + each.environment]


class Route(NamedTuple):
    """One way for the key into the program; `spared` are files and places where the test itself put it."""
    name: str
    arguments: Sequence[str] = ()
    env: dict[str, str | None] = {}
    spared: Sequence[str] = ()
    in_own_arguments: bool = False


@unittest.skipUnless(sys.platform.startswith("linux"), "needs /proc")
class WatchedCase(ProgramCase):
    """Looks at the processes and files of a run while the server holds its answer back."""
    secret = KEY

    def watch_run(self, command: Sequence[str], env: dict[str, str | None], held: threading.Event,
                  arrived: Callable[[], object], route: Route) -> list[Process]:
        """Run a command, look around while it waits and afterwards, and return the processes that work for it."""
        child = self.start_program(*command, env=env)
        try:
            self.wait_until(lambda: bool(arrived()))
            family = helpers(child.pid, self.home)
            for process in family:
                self.assertNotIn(self.secret.encode(), b"\n".join(process.arguments) + process.environment)
            own = (Path("/proc") / str(child.pid) / "cmdline").read_bytes()
            self.assertEqual(self.secret.encode() in own, route.in_own_arguments)
            self.assertEqual(self.files_with_the_key(route), [])
        finally:
            held.set()
            result = self.finish(child)
        self.assert_succeeded(result)
        self.assert_secret(result.stdout + result.stderr)
        self.assertEqual(self.files_with_the_key(route), [])
        self.assert_no_leftovers()
        self.assertTrue(family)
        return family

    def assert_secret(self, text: str) -> None:
        """The key is not in a text."""
        self.assertNotIn(self.secret, text)

    def watch(self, route: Route, command: Sequence[str] = ("generate", PROMPT)) -> Process:
        """Run a command by one route of the key, look around, and return its curl."""
        held = threading.Event()
        self.server.reset()
        self.server.plan(Answer(event=held))
        family = self.watch_run([*command, *route.arguments], {"COPY_OF_IT": f"x {KEY}", **route.env}, held,
                                lambda: self.server.posts, route)
        self.assertEqual(self.only_post().header("Authorization"), f"Bearer {KEY}")
        curls = [process for process in family if process.arguments[:1] == [b"curl"]]
        self.assertEqual(len(curls), 1, family)
        return curls[0]

    def files_with_the_key(self, route: Route) -> list[str]:
        """Return the files of this test that hold the key, or have it in their name."""
        return [str(path) for path in self.root.rglob("*") if str(path) not in route.spared and (
            self.secret in path.name or (path.is_file() and self.secret.encode() in path.read_bytes()))]


class KeyRoutesTest(WatchedCase):
    """Every route of the key."""

    def config(self, **content: Any) -> str:
        """Write the config file of a route."""
        return self.write_config({"base_url": self.server.url, **content})

    def test_own_variable(self) -> None:
        self.watch(Route("own variable", self.access(), {"GPT_IMAGE2_API_KEY": KEY}))

    def test_openai_variables(self) -> None:
        self.watch(Route("OpenAI's", (), {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": self.server.url}))

    def test_option(self) -> None:
        self.watch(Route("option", [*self.access(), "--api-key", KEY], in_own_arguments=True))

    def test_named_variable(self) -> None:
        self.watch(Route("named variable", [*self.access(), "--api-key-env", "MINE"], {"MINE": KEY}))

    def test_config(self) -> None:
        self.watch(Route("config", spared=[self.config(api_key=KEY)]))

    def test_variable_named_in_a_config(self) -> None:
        self.config(api_key_env="MINE")
        self.watch(Route("config's variable", (), {"MINE": KEY}))

    def test_command(self) -> None:
        vault = self.shell_script("vault", f"echo {KEY}\n")
        self.config(api_key_command=[vault])
        self.watch(Route("command", spared=[vault]))

    def test_edit(self) -> None:
        image = self.file("a.png", draw_png(32, 32))
        self.watch(Route("edit", self.access(), {"GPT_IMAGE2_API_KEY": KEY}), ["edit", image, PROMPT])

    def test_with_verbose_and_json(self) -> None:
        for form in ("-v", "--json"):
            with self.fresh(form):
                self.watch(Route(form, self.access(), {"GPT_IMAGE2_API_KEY": KEY}), ["generate", PROMPT, form])

    def test_keys_that_are_not_used(self) -> None:
        env: dict[str, str | None] = {"GPT_IMAGE2_API_KEY": KEY, "OPENAI_API_KEY": "other-fake-key"}
        curl = self.watch(Route("two keys", self.access(), env))
        self.assertNotIn(b"other-fake-key", curl.environment)


class CurlSeesNoKeyTest(WatchedCase):
    """How curl is started."""

    def setUp(self) -> None:
        super().setUp()
        self.route = Route("own variable", self.access(), {"GPT_IMAGE2_API_KEY": KEY})

    def test_arguments(self) -> None:
        self.assertEqual(self.watch(self.route).arguments, [b"curl", b"-q", b"-K", b"-"])

    def test_config_has_no_name(self) -> None:
        self.assertRegex(self.watch(self.route).stdin, r"\(deleted\)$|^/memfd:")

    def test_tls_secrets_are_not_logged(self) -> None:
        log = self.root / "tls.log"
        curl = self.watch(self.route._replace(env={**self.route.env, "SSLKEYLOGFILE": str(log)}))
        self.assertNotIn(b"SSLKEYLOGFILE", curl.environment)
        self.assertFalse(log.exists())

    def test_hostile_curlrc_is_ignored(self) -> None:
        text = 'proxy = "http://127.0.0.1:1"\ninsecure\nheader = "X-Evil: yes"\nuser-agent = "evil"\nlocation-trusted\n'
        for folder in (self.home, self.home / ".config", self.work, self.root / "curl-home"):
            for name in (".curlrc", "curlrc", "_curlrc"):
                folder.mkdir(exist_ok=True)
                (folder / name).write_text(text)
        self.watch(self.route._replace(env={**self.route.env, "NO_PROXY": None,
                                            "CURL_HOME": str(self.root / "curl-home")}))
        post = self.only_post()
        self.assertEqual(post.header("X-Evil"), "")
        self.assertTrue(post.header("User-Agent").startswith("curl/"))

    def test_password_of_a_proxy_variable_is_not_shown(self) -> None:
        for proxy in ("http://me:secret pw99@127.0.0.1:9", "http://me:secretpw99@127.0.0.1:99999",
                      "foo://me:secretpw99@127.0.0.1:9"):
            for name in ("https_proxy", "ALL_PROXY"):
                result = self.run_program("generate", PROMPT, "--base-url", "https://relay.invalid/v1", "-v",
                                          env={"NO_PROXY": None, name: proxy, "GPT_IMAGE2_API_KEY": KEY})
                self.assertNotIn("pw99", result.stdout + result.stderr)

    def test_poor_encoding_of_the_system(self) -> None:
        """Neither a prompt nor a header needs more than its own bytes."""
        config = self.write_config({"headers": {"X-Who": "\u65e5\u672c"}})
        env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "GPT_IMAGE2_API_KEY": KEY}
        result = self.generate("\u65e5\u672c", "--config", config, env=env)
        self.assertEqual(result.exit_code, 0, result.stderr)
        self.assertEqual(self.only_post().fields["prompt"], "\u65e5\u672c")

    def test_proxy_variables_do_not_catch_loopback(self) -> None:
        dead = "http://127.0.0.1:1"
        env: dict[str, str | None] = {"NO_PROXY": None, "http_proxy": dead, "all_proxy": dead, "ALL_PROXY": dead}
        self.watch(self.route._replace(env={**self.route.env, **env}))


class KeyCommandSeesNoKeyTest(ProgramCase):
    """The key command sees no keys of others, and nobody sees what it prints."""

    def test_environment(self) -> None:
        seen = self.work / "seen"
        vault = self.shell_script("vault", f"export -p > '{seen}'; echo {KEY}\n")
        self.write_config({"base_url": self.server.url, "api_key_command": [vault]})
        env = {"GPT_IMAGE2_API_KEY": "other-fake-1", "OPENAI_API_KEY": "other-fake-2", "VAULT_ADDRESS": "kept"}
        self.assert_succeeded(self.run_program("generate", PROMPT, env=env))
        text = seen.read_text()
        self.assertRegex(text, "VAULT_ADDRESS=.?kept")
        self.assertNotIn("other-fake", text)


class EchoedKeyOnDiskTest(ProgramCase):
    """A server that echoes the key: what stays on disk of its answer does not hold it."""

    def files_with_key(self) -> list[str]:
        """Return all files that hold the key."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [str(path) for path in files if KEY.encode() in path.read_bytes()]

    def test_answer_that_nobody_can_read(self) -> None:
        for place in (0, 100_000, (1 << 20) - 4):
            with self.subTest(place):
                body = b'{"pictures": "' + b"x " * (place // 2) + KEY.encode() + b" y" * 700_000 + b'"}'
                self.server.default = Answer(body=body)
                result = self.generate("a fox", "-o", f"{place}.png")
                self.assertEqual(result.exit_code, 6, result.stderr)
                kept = (self.work / f"{place}-1.answer").read_bytes()
                self.assertEqual(kept, body.replace(KEY.encode(), b"*" * len(KEY)))
                self.assertEqual(self.files_with_key(), [])

    def test_what_is_to_be_collected_stays_as_it_came(self) -> None:
        """Even where the key, or the value of a header, is part of the picture's address."""
        url = f"{self.server.origin}/files/none.png?key={KEY}"
        self.server.default = Answer(body=f'{{"data": [{{"url": "{url}"}}], "you": "{KEY}"}}'.encode())
        command = ("a fox", "--header", f"Referer: {self.server.origin}")
        result = self.generate(*command)
        self.assertEqual(result.exit_code, 7, result.stderr)
        self.assertNotIn(KEY, result.stdout + result.stderr)
        self.server.files["none.png"] = draw_png(64, 48)
        self.saved_file(self.generate(*command))
        self.assertEqual(len(self.server.posts), 1)
        self.assertEqual(self.server.requests[-1].path, f"/files/none.png?key={KEY}")

    def test_another_key_that_is_no_text(self) -> None:
        """It is not used, and must not get into the way of what is said about money."""
        self.server.default = Answer(body=b'{"data": [{"url": "' + self.server.origin.encode() + b'/files/no.png"}]}')
        child = subprocess.run([sys.executable, str(PROGRAM), "generate", "a fox", *self.access(), "--json"],
                               env={**{os.fsencode(name): os.fsencode(value) for name, value in self.environment(
                                   {"GPT_IMAGE2_API_KEY": KEY}).items()}, b"OPENAI_API_KEY": b"caf\xe9-key-abcdef"},
                               cwd=str(self.work), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        error = json.loads(child.stdout)["error"]
        self.assertEqual((child.returncode, error["billed"]), (7, "yes"), error)


class FailuresShowNoKeyTest(ProgramCase):
    """No failure shows the key, with -v least of all."""

    def fail_with(self, answer: Answer, *arguments: str) -> Result:
        """Run generate against an answer, verbosely, with the key on the command line."""
        self.server.default = answer
        return self.run_inside("generate", PROMPT, *self.access(), "-v", "--api-key", KEY, "--timeout", "2", *arguments)

    def test_every_kind(self) -> None:
        later = (("Retry-After", "3600"),)
        answers = [Answer(status=status, headers=later) for status in (400, 401, 403, 404, 413, 429, 500, 503, 504)]
        answers += [Answer(drop="silent"), Answer(body=b"<html>"), Answer(body=b"{}"), Answer(drop="half")]
        codes = set()
        for answer in answers:
            with self.subTest(f"{answer.status} {answer.drop} {answer.body!r} {answer.delay}"):
                result = self.fail_with(answer)
                codes.add(result.exit_code)
                self.assertEqual(len(result.errors), 1, result.stderr)
                self.assertNotIn(KEY, result.stdout + result.stderr)
        self.assertEqual(codes, {3, 4, 5, 6})

    def test_timeout(self) -> None:
        result = self.fail_with(Answer(delay=10), "--timeout", "1")
        self.assertEqual((result.exit_code, len(result.errors)), (6, 1), result.stderr)
        self.assertNotIn(KEY, result.stdout + result.stderr)

    def test_local_faults(self) -> None:
        for arguments in (["--size", "1x1"], ["-o", "/proc/none/a.png"], ["--config", "/"], ["--no-such-option"]):
            with self.subTest(arguments):
                result = self.fail_with(Answer(), *arguments)
                self.assertIn(result.exit_code, (2, 3), result.stderr)
                self.assertNotIn(KEY, result.stdout + result.stderr)

    def test_key_in_the_wrong_place(self) -> None:
        for arguments in (["--api-key", KEY, KEY], [f"--apikey={KEY}"], ["--size", KEY, "--api-key", KEY],
                          ["--base-url", f"https://{KEY}@relay.invalid/v1"]):
            with self.subTest(arguments):
                result = self.run_inside("generate", PROMPT, *arguments, env={"GPT_IMAGE2_API_KEY": KEY})
                self.assertIn(result.exit_code, (2, 3))
                self.assertNotIn(KEY, result.stdout + result.stderr)
