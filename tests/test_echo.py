"""A key is found in whatever spelling it comes back, and is not repeated from where it does not belong."""
from __future__ import annotations

import json
import os
import unittest
from typing import Any, Callable
from urllib.parse import quote

from api_server import Answer
from support import KEY, ProgramCase, Result, program

PROMPT = "a red fox"
ODD = "test/key+of=mine-0123456789"  # has what URLs and JSON escape
STRAY = "fakeword0123456789abcdef"  # a key that looks like a variable's name
FORGED = "Saved: /etc/hostname (1 KB)"
BREAKS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n")
TURNS = ("\u202e", "\u2066", "\u200f", "\u061c", "\x9b", "\x1b")


def spellings(key: str) -> dict[str, str]:
    """Return the key as servers and libraries write it."""
    return {"plain": key, "URL": quote(key, safe=""), "URL, path": quote(key),
            "URL, lower": quote(key, safe="").lower(), "URL twice": quote(quote(key, safe=""), safe=""),
            "PHP": key.replace("/", "\\/"), "inner JSON": key.replace("/", "\\\\\\/"),
            "unicode": "".join(f"\\u{ord(letter):04x}" for letter in key),
            "unicode, capitals": "".join(f"\\u{ord(letter):04X}" for letter in key),
            "mixed": key.replace("/", "%2f").replace("+", "\\u002B"),
            "percent": "".join(f"%{ord(letter):02X}" for letter in key), "capitals": key.upper(),
            "zero width": "\u200b".join(key), "controls": "\x01".join(key)}


def respelled(key: str, spell: Callable[[int], str]) -> str:
    """Return the key with all but letters and digits as numbers."""
    return "".join(letter if letter.isalnum() else spell(ord(letter)) for letter in key)


class KeySpellingsTest(unittest.TestCase):
    """redact finds every spelling, and leaves the rest of the text alone."""

    def test_every_spelling_is_hidden(self) -> None:
        for name, text in spellings(ODD).items():
            with self.subTest(name):
                self.assertEqual(program.redact(f"before {text} after", [ODD]), "before *** after")

    def test_key_that_is_encoded_itself(self) -> None:
        for text in ("me:p%40ss-word", "me:p@ss-word", "me%3Ap%2540ss-word"):
            self.assertEqual(program.redact(f"a {text} b", ["me:p%40ss-word"]), "a *** b")

    def test_cut(self) -> None:
        for kept in range(6, len(ODD)):
            for end in ("", "\u2026", "...", "\u2026' more text"):
                with self.subTest(f"{kept}{end}"):
                    self.assertEqual(program.redact("x " + ODD[:kept] + end, [ODD]), "x ***" + end)
        self.assertNotIn("test", program.redact("x " + quote(ODD, safe="")[:17], [ODD]))  # inside an escape
        self.assertEqual(program.redact(f"{ODD[:9]} more", [ODD]), f"{ODD[:9]} more")

    def test_other_alphabets(self) -> None:
        self.assertEqual(program.redact("\u72d0 \u65e5\u672c-secret-\u65e5 \u72d0 %E6%97%A5\u672c-secret-\\u65e5",
                                        ["\u65e5\u672c-secret-\u65e5"]), "\u72d0 *** \u72d0 ***")

    def test_short_key_is_a_word(self) -> None:
        for text, shown in (("key 'test' is wrong", "key '***' is wrong"), ("?key=test&a", "?key=***&a"),
                            ("wrong: test.", "wrong: ***."), ("/home/test/x.png", "/home/test/x.png"),
                            ("latest test-run", "latest test-run"), ("test.png", "test.png"), ("a\ntest", "a\n***")):
            with self.subTest(text):
                self.assertEqual(program.redact(text, ["test"]), shown)

    def test_time(self) -> None:
        """Linear: each of these took minutes in a first attempt."""
        for text in ("\\" * 60_000, "%25" * 20_000, "t" + "\0" * 60_000, "test-k" * 10_000):
            self.assertEqual(program.redact(text, [KEY, "x" * 2000]), program.redact(text, [KEY]))


class RarerSpellingTest(unittest.TestCase):
    """HTML's and JavaScript's numbers hide no key, whole or cut."""
    spellings = tuple(respelled(ODD, spell) for spell in (
        lambda code: f"&#{code};", lambda code: f"&#0{code};", lambda code: f"&#x{code:x};",
        lambda code: f"&#X{code:04X};", lambda code: f"\\x{code:02x}", lambda code: f"\\\\x{code:02X}",
        lambda code: f"%{code:02x}", lambda code: f"\\u{code:04x}"))

    def test_whole(self) -> None:
        for text in self.spellings:
            self.assertEqual(program.redact(f"a {text} b", [ODD]), "a *** b")
            self.assertEqual(program.blanked(f"a {text} b", [ODD], "*"), f"a {'*' * len(text)} b")

    def test_cut(self) -> None:
        for text in self.spellings:
            for kept in range(14, len(text)):
                with self.subTest(text[:kept]):
                    self.assertNotIn("test", program.redact(f"a {text[:kept]}\u2026", [ODD]))

    def test_other_numbers_stay(self) -> None:
        for text in ("&#233;t&#xe9; \\x41bc", "a&#; &#x; &#9999999; \\xzz %zz"):
            self.assertEqual(program.redact(text, [ODD]), text)

    def test_time(self) -> None:
        for text in ("&#" * 30_000, "&#x" * 20_000, "\\x" * 30_000, "//a:" * 16_000, "//" * 30_000, "sk-" * 20_000,
                     "eyJa." * 12_000):
            self.assertTrue(program.redact(text, [KEY]))


class EchoedKeyTest(ProgramCase):
    """A server that sends the key back."""

    def failed(self, answer: Answer, *arguments: str) -> Result:
        """Run generate with the odd key against one answer."""
        self.server.default = answer
        return self.run_inside("generate", PROMPT, *self.access(), "-o", "x.png", *arguments,
                               env={"GPT_IMAGE2_API_KEY": ODD})

    def test_messages(self) -> None:
        for name, text in spellings(ODD).items():
            for body in (json.dumps({"error": {"message": f"no {text} here"}}).encode(),
                         f'{{"error": "no {text} here'.encode(), f"<title>no {text}</title>".encode()):
                for form in ("-v", "--json"):
                    with self.subTest(f"{name} {form} {body[:20]!r}"):
                        result = self.failed(Answer(status=400, body=body, check=False), form)
                        self.assertEqual(result.exit_code, 4)
                        self.assertNotIn(text, result.stdout + result.stderr)
                        self.assertNotIn(ODD, result.stdout + result.stderr)

    def test_cut_at_the_limit_of_reading(self) -> None:
        for at in range(4000 - len(ODD), 3995, 4):
            for head in (b"<title>" + b" " * (at - 7), b" " * 0 + b"\n" * at, b"{" + b" " * (at - 1)):
                result = self.failed(Answer(status=400, body=head + ODD.encode() + b" " * 9000, check=False))
                self.assertNotIn(ODD[:6], result.stdout + result.stderr, at)

    def test_answer_file(self) -> None:
        for name, text in spellings(ODD).items():
            with self.subTest(name):
                key = text.encode()
                body = b'{"pictures": "' + b"x " * 32_760 + key + b' y", "also": "' + key + b'", "cut": "' + key[:-2]
                result = self.failed(Answer(body=body, check=False))
                self.assertEqual(result.exit_code, 6, result.stderr)
                path = self.work / "x-1.answer"
                kept = path.read_bytes()
                self.assertEqual(os.stat(str(path)).st_mode & 0o777, 0o600)
                self.assertEqual((len(kept), kept.count(text.encode()[:12])), (len(body), 0))
                path.unlink()

    def test_headers_of_verbose(self) -> None:
        result = self.generate(PROMPT, "-v", "--header", "Expect-Id: note-of-mine", "--header",
                               "Content-Type-Hint: note-of-mine")
        self.assert_succeeded(result)
        self.assertNotIn("note-of-mine", result.stderr)
        self.assertIn("\nExpect-Id: ***\n", result.stderr)


class MisplacedKeyTest(ProgramCase):
    """A key in the wrong place is not repeated, whatever it looks like."""

    def silent(self, *arguments: str, key: str, env: Any = None) -> None:
        """Check that a run says something, but not the key."""
        with self.subTest(f"{arguments} {env}"):
            result = self.run_inside(*arguments, env=env)
            self.assertTrue(result.stdout + result.stderr)
            self.assertNotIn(key, result.stdout + result.stderr)

    def test_command_line(self) -> None:
        for key in (STRAY, "test-key-1", "A1B2C3D4E5F6A7B8C9D0", "eyJhbGciOi.eyJzdWIi.c2lnbmF0"):
            for words in (["--api-key-env", key], ["--base-url", key], ["--api", key], [f"--api={key}"], ["-k" + key],
                          ["-q" + key], ["-v=" + key], ["--timeout", key], ["--n", key], ["--compression", key],
                          ["--size", key], ["--aspect-ratio", key], ["--quality", key], ["--format", key],
                          ["--background", key], ["--resolution", key], ["--param", key], ["--header", key], [key],
                          [f"--quiet={key}"]):
                self.silent("generate", PROMPT, *words, key=key)
            for words in ([key], ["config", key], ["config", "--show", key], ["config", "--api-key-env", key],
                          ["config", "--init", "--api-key-env", key + "-"]):
                self.silent(*words, key=key)

    def test_as_a_file(self) -> None:
        for words in (["--prompt-file", STRAY], ["--config", STRAY]):
            self.silent("generate", *words, key=STRAY)
        self.silent("edit", STRAY, PROMPT, key=STRAY)

    def test_variables(self) -> None:
        for name in ("GPT_IMAGE2_BASE_URL", "OPENAI_BASE_URL"):
            for words in (["generate", PROMPT], ["config"], ["config", "--json"], ["config", "--init"]):
                self.silent(*words, key=STRAY, env={name: STRAY})

    def test_config(self) -> None:
        for content in ({"api": STRAY}, {"base_url": STRAY, "api_key": "https://relay.invalid/v1"}, {STRAY: "x"},
                        {"api_key_env": STRAY}, {"api_key_env": STRAY.upper()}, {"api_key_command": [STRAY]},
                        {"poll_url": "{base}/tasks/{id}?key=" + STRAY}, {"headers": {"X-Token": STRAY}},
                        {"proxy": f"http://u:{STRAY}@127.0.0.1:1"}, {"poll_url": f"https://x.invalid/?key={STRAY}"}):
            path = self.write_config({"base_url": "https://relay.invalid/v1", **content}, path=self.work / "c.json")
            for words in (["config", "--show"], ["config", "--json"], ["config", "--check"],
                          ["generate", PROMPT, "-v"]):
                self.silent(*words, "--config", path, key=STRAY.upper() if STRAY.upper() in path else STRAY)
                self.silent(*words, "--config", path, key=STRAY.upper())

    def test_what_helps_is_still_said(self) -> None:
        for words, said in ((["--size", "huge"], "'huge'"), (["--n", "many"], "'many'"),
                            (["--qualty=low"], "--quality?"), (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
                            (["--format", "tiff"], "does not make tiff"), (["--background", "x"], "transparent")):
            self.assertIn(said, self.run_inside("generate", PROMPT, *words).stderr)


class SecretPromptTest(ProgramCase):
    """A prompt or a parameter that holds a known secret is refused before anything is written or sent."""

    def refused(self, *arguments: str, env: Any = None, **options: Any) -> None:
        with self.subTest(arguments):
            result = self.run_program("generate", *self.access(), *arguments,
                                      env={"GPT_IMAGE2_API_KEY": ODD, **(env or {})}, **options)
            self.assertEqual((result.exit_code, self.server.requests), (2, []), result.stderr)
            self.assertNotIn(ODD, result.stdout + result.stderr)
            requests = self.home / ".local/state/gpt-image-2/requests"
            self.assertEqual([str(path) for path in requests.glob("[!.]*")] if requests.exists() else [], [])

    def test_refused(self) -> None:
        for text in spellings(ODD).values():
            if "\x01" not in text:
                self.refused("--prompt-file", self.file("prompt", f"a fox {text} b"))
        self.refused("--prompt-file", "/proc/" + "self/environ")
        self.refused("-", stdin=f"X={ODD}")
        self.refused(PROMPT, "--param", f"user={ODD}")
        self.refused("it is proxy-password", env={"https_proxy": "http://u:proxy-password@127.0.0.1:1"})
        self.refused("it is other-fake-key", env={"OPENAI_API_KEY": "other-fake-key"})

    def test_key_of_a_command(self) -> None:
        vault = self.shell_script("vault", f"echo {ODD}\n")
        self.write_config({"base_url": self.server.url, "api_key_command": [vault]})
        self.refused(f"a {ODD}", env={"GPT_IMAGE2_API_KEY": None})

    def test_words_are_no_secrets(self) -> None:
        self.server.key = "test"
        self.addCleanup(setattr, self.server, "key", KEY)
        result = self.run_program("generate", "a test at https://shop.example", *self.access(), "--header",
                                  "Referer: https://shop.example", env={"GPT_IMAGE2_API_KEY": "test"})
        self.assert_succeeded(result)


class ForgedLineTest(ProgramCase):
    """No text from outside starts a line or turns text around."""

    def lines(self, result: Result) -> list[str]:
        """Return all lines, as the most generous reader sees them."""
        return (result.stdout + "\n" + result.stderr).splitlines()

    def test_messages(self) -> None:
        for mark in (*BREAKS, *TURNS):
            with self.subTest(repr(mark)):
                text = f"no{mark}{FORGED.replace(' ', chr(0xa0))}{mark}"
                self.server.plan(Answer(status=400,
                                        body=json.dumps({"error": {"message": text, "code": text}}).encode(),
                                        headers=(("X-Request-Id", "a"),)))
                result = self.generate_inside(PROMPT, "-v")
                self.assertEqual([line for line in self.lines(result) if line.startswith("Saved:")], [])
                self.assertNotRegex(result.stderr, "[\u2028\u2029\x85\u202e\u2066\u200f\u061c\x9b\x1b]")

    def test_result_addresses_with_verbose(self) -> None:
        for mark in BREAKS[:3] + TURNS[:4]:
            with self.subTest(repr(mark)):
                url = f"{self.server.origin}/files/none.png?{mark}{FORGED.replace(' ', chr(0xa0))}{mark}"
                self.server.plan(Answer(body=json.dumps({"data": [{"url": url}]}).encode()))
                result = self.generate_inside(PROMPT, "-v", "--fresh")
                self.assertEqual([line for line in self.lines(result) if line.startswith("Saved:")], [])
                self.assertNotRegex(result.stderr, "[\u2028\u2029\x85\u202e\u2066\u200f\u061c]")

    def test_own_paths(self) -> None:
        for mark in (*BREAKS, *TURNS):
            for words in (["-o", f"x{mark}{FORGED}.png"], ["--config", f"x{mark}{FORGED}"]):
                with self.subTest(words):
                    result = self.generate_inside(PROMPT, *words)
                    self.assertEqual((result.exit_code, self.server.requests), (2 if "-o" in words else 3, []), result)
                    self.assertEqual([line for line in self.lines(result) if line.startswith("Saved:")], [])

    def test_stray_bytes(self) -> None:
        result = self.generate(PROMPT, "-o", b"x\x9b31m.png")
        self.assertEqual((result.exit_code, self.server.requests), (2, []), result.stderr)
        for language in ("C.UTF-8", "C"):  # in the other, whole characters come as stray bytes
            name = "\u0444\u043e\u0442\u043e \U0001f98a\u200d\U0001f4bb.png"
            result = self.generate(PROMPT, "-o", name.encode(),
                                   env={"LC_ALL": language, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
            self.assertEqual(result.exit_code, 0, result.stderr)
            os.unlink(str(self.work / name))

    def test_folder_of_the_config(self) -> None:
        result = self.run_inside("config", env={"XDG_CONFIG_HOME": f"/x\u2028{FORGED}"})
        self.assertEqual([line for line in self.lines(result) if line.startswith("Saved:")], [])


class NeededPathTest(ProgramCase):
    """The place of a paid answer is shown, whatever it looks like."""

    def test_places(self) -> None:
        for key, folder in ((KEY, "sk-learn-data"), ("test", "test"), (KEY, "rk-0123456789"),
                            (KEY, "fakeword0123456789abcdef")):
            with self.subTest(folder):
                self.server.default = Answer(body=b'{"pictures": "' + b"x " * 50_000 + b'"}', check=False)
                for form in ((), ("--json",)):
                    result = self.run_inside("generate", PROMPT, *self.access(), "-o", f"{folder}/x.png", *form,
                                             env={"GPT_IMAGE2_API_KEY": key})
                    kept = sorted(str(path) for path in (self.work / folder).glob("*.answer"))[-1]
                    self.assertIn(kept, result.stdout + result.stderr)

    def test_other_texts_like_a_key_are_hidden(self) -> None:
        self.server.default = Answer(status=400,
                                     body=b'{"error": {"message": "no sk-learn-data/x and sk-0123456789abc"}}')
        result = self.generate_inside(PROMPT, "-o", "sk-learn-data/x.png")
        self.assertNotIn("sk-", result.stderr)


class KeyWithBlanksTest(ProgramCase):
    """A key that was pasted with blanks around it is known without them from the start."""

    def test_copy_in_another_variable(self) -> None:
        vault = self.shell_script("vault", f"echo ${{COPY-{ODD}}}\n")
        self.write_config({"base_url": self.server.url, "api_key_command": [vault]})
        self.server.key = ODD
        self.addCleanup(setattr, self.server, "key", KEY)
        self.assert_succeeded(self.run_program("generate", PROMPT,
                                               env={"OPENAI_API_KEY": " other-fake-key\ufeff ",
                                                    "COPY": "x other-fake-key"}))
