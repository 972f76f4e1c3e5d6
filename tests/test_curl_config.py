"""What curl is told: nothing in a value becomes an option, and no option is newer than curl 7.68."""
from __future__ import annotations

import re
import unittest
from os import environ
from typing import Any
from unittest import mock

from support import program

# Options that curl 7.68 has; nothing else may ever be written.
OLD_OPTIONS = {"url", "header", "data-binary", "upload-file", "form", "output", "dump-header", "write-out", "max-time",
               "connect-timeout", "silent", "show-error", "request", "globoff", "no-buffer", "proxy", "noproxy",
               "cacert", "proto", "max-filesize"}
EVIL = ('"\noutput = "evil"\n', '\\"\nurl = "http://evil.invalid"\n', "\r\noutput=evil", "\\\n\\",
        '";\nproxy = "evil:1"', "#\t%")


def read_config(text: str) -> list[tuple[str, str]]:
    """Read curl's -K format as curl does: one option per line, escapes inside double quotes."""
    letters = {"n": "\n", "r": "\r", "t": "\t", "v": "\v"}
    options = []
    for line in text.split("\n")[:-1]:
        match = re.fullmatch(r'([a-z-]+)(?: = "((?:[^"\\]|\\.)*)")?', line)
        if not match:
            raise AssertionError(f"not a clean line: {line!r}")
        value = re.sub(r"\\(.)", lambda escape: letters.get(escape[1], escape[1]), match[2] or "")
        options.append((match[1], value))
    return options


class CurlQuotingTest(unittest.TestCase):
    """Nothing that stands in a value can become an option of curl."""

    def test_quote_config(self) -> None:
        for value, quoted in (("a", '"a"'), ("", '""'), ('"', '"\\""'), ("\\", '"\\\\"'), ("\n", '"\\n"'),
                              ("\r", '"\\r"'), ("\t", '"\\t"'), ("\\n", '"\\\\n"'), ('\\"', '"\\\\\\""'),
                              (" a ", '" a "'), ("#'%$", "\"#'%$\""), ("\N{FOX FACE}", '"\N{FOX FACE}"')):
            with self.subTest(value):
                self.assertEqual(program.quote_config(value), quoted)

    def test_what_cannot_be_quoted_is_refused(self) -> None:
        for code in (*range(9), 11, 12, *range(14, 32), 127):
            with self.subTest(code), self.assertRaises(program.Failure):
                program.quote_config(f"a{chr(code)}b")

    def test_round_trip(self) -> None:
        for value in EVIL:
            with self.subTest(value):
                text = f"url = {program.quote_config(value)}\n"
                self.assertEqual(read_config(text), [("url", value)])

    def test_quote_path(self) -> None:
        for path, quoted in (("a b", '"a b"'), ("a;b,c", '"a;b,c"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"'),
                             ("@", '"@"')):
            with self.subTest(path):
                self.assertEqual(program.quote_path(path), quoted)


class CurlConfigTest(unittest.TestCase):
    """The text that curl reads."""

    def config(self, **fields: Any) -> list[tuple[str, str]]:
        """Return the options written for a request."""
        request = program.Request(**{"method": "POST", "url": "https://relay.invalid/v1/images/generations", **fields})
        text = program.curl_config(request, "/tmp/x y/1")
        self.assertLess(max(len(line.encode()) for line in text.split("\n")), 100 * 1024)
        return read_config(text)

    def requests(self) -> list[dict[str, Any]]:
        """Return fields of very different requests."""
        return [{"body": {"prompt": "a"}, "headers": (("Authorization", "Bearer test-key"),)},
                {"form": (program.Part("prompt", "a"),
                          program.Part("image[]", path="/a.png", content_type="image/png"))},
                {"method": "GET", "url": "http://127.0.0.1:8/v1/models", "proxy": "http://p:1", "cacert": "/ca.pem"},
                {"method": "GET", "url": "https://cdn.invalid/1.png", "purpose": "download", "proxy": "http://p:1"}]

    def test_only_known_options(self) -> None:
        for fields in self.requests():
            names = {name for name, _ in self.config(**fields)}
            self.assertEqual(names - OLD_OPTIONS, set())

    def test_nothing_dangerous_on_a_paid_request(self) -> None:
        for fields in self.requests()[:2]:
            names = {name for name, _ in self.config(**fields)}
            self.assertEqual(names & {"location", "retry", "fail", "verbose", "trace", "next", "insecure"}, set())

    def test_guards_come_first(self) -> None:
        for fields in self.requests():
            names = [name for name, _ in self.config(**fields)]
            for guard in ("globoff", "silent", "show-error", "proto", "connect-timeout", "max-time"):
                self.assertLess(names.index(guard), names.index("url"))

    def test_protocol(self) -> None:
        for url, allow_http, proto in (
                ("https://relay.invalid/a", False, "=https"), ("http://127.0.0.1:5/a", False, "=http"),
                ("http://relay.invalid/a", True, "=http"), ("http://relay.invalid/a", False, "=https")):
            with self.subTest(f"{url} {allow_http}"):
                asked = {"method": "GET", "url": url, "allow_http": allow_http}
                self.assertEqual(dict(self.config(**asked, purpose="poll"))["proto"], proto)
                self.assertEqual(dict(self.config(**asked, purpose="download"))["proto"], proto)

    def test_download(self) -> None:
        options = dict(self.config(**self.requests()[3]))
        self.assertNotIn("location", options)  # a redirect is followed here, where each place is looked at
        self.assertGreater(int(options["max-filesize"]), 50_000_000)

    def test_loopback_needs_no_proxy(self) -> None:
        options = dict(self.config(**self.requests()[2]))
        self.assertEqual((options.get("proxy"), options["noproxy"]), (None, "*"))
        self.assertEqual(dict(self.config(**self.requests()[3]))["proxy"], "http://p:1")

    def test_expect_is_switched_off(self) -> None:
        for fields in self.requests()[:2]:
            self.assertIn(("header", "Expect:"), self.config(**fields))

    def test_prompt_is_in_no_line(self) -> None:
        fox = "\N{FOX FACE}" * 32_000
        for fields in ({"body": {"prompt": fox}}, {"form": (program.Part("prompt", fox),)}):
            self.assertNotIn("\N{FOX FACE}", repr(self.config(**fields)))

    def test_form_lines(self) -> None:
        form = (program.Part("prompt", "@a"), program.Part("image", path='/a;"b\\.png', content_type="image/webp"))
        lines = [value for name, value in self.config(form=form) if name == "form"]
        self.assertEqual(lines[0], 'prompt=<"/tmp/x y/1.field-0"')
        self.assertRegex(lines[1], r'^image=@"/a;\\"b\\\\\.png";filename="[\w.-]+";type=image/webp$')

    def test_injection(self) -> None:
        for evil in EVIL:
            path = "/tmp/" + evil
            for name, fields in (("file", {"form": (program.Part("image", path=path, content_type="image/png"),)}),
                                 ("proxy", {"proxy": evil}), ("url", {"url": "https://relay.invalid/" + evil}),
                                 ("header", {"headers": (("X-A", evil),)}),
                                 ("header name", {"headers": ((evil, "a"),)}), ("cacert", {"cacert": path})):
                with self.subTest(f"{name} {evil!r}"):
                    try:
                        options = self.config(**fields)
                    except program.Failure:
                        continue
                    self.assertEqual([value for option, value in options if option == "output"], ["/tmp/x y/1.answer"])
                    self.assertEqual(len([option for option, _ in options if option == "url"]), 1)

    def test_no_second_header_by_line_break(self) -> None:
        plain = self.config(headers=(("X-A", "a"),))
        for value in ("a\r\nX-B: c", "a\nX-B: c", "a\rb", "a\0b"):
            with self.subTest(value):
                options = self.config(headers=(("X-A", value),))
                self.assertEqual([name for name, _ in options], [name for name, _ in plain])
                self.assertFalse(any(re.search("[\r\n\0]", text) for _, text in options))


class OpenAiProviderTest(unittest.TestCase):
    """The OpenAI provider, driven by hand: no file is opened and nothing is sent."""

    def start(self, command: str, **fields: Any) -> tuple[Any, Any]:
        """Return a provider and its first request."""
        upload = program.Upload("/a.png", program.Picture("png", 64, 64), 100)
        job = program.Job(**{
            "command": command, "model": "gpt-image-2", "prompt": "a fox",
            "images": (upload,) if command == "edit" else (), "mask": None, "parameters": {"n": 2}, "n": 2,
            "target": program.Target("/out", "a", ".png", False), **fields})
        with mock.patch.dict(environ, {"HOME": "/nonexistent"}, clear=True):
            settings = program.load_settings({"base_url": "https://relay.invalid/v1/", "headers": {"X-A": "b"}})
        provider = program.openai(job, settings, program.KeySource("test", "", "test-key"), "token")
        return provider, next(provider)

    def finish(self, provider: Any, *responses: Any) -> Any:
        """Send the responses and return what the provider returns."""
        with self.assertRaises(StopIteration) as finished:
            for response in responses:
                provider.send(response)
        return finished.exception.value

    def response(self, document: Any, path: str = "/answer") -> Any:
        """Return a canned response."""
        request = program.Request("POST", "https://relay.invalid/v1/images/generations")
        return program.with_meaning(request, program.Response(path, 200, {}, document=document))

    def test_generate(self) -> None:
        provider, request = self.start("generate")
        self.assertEqual((request.method, request.url), ("POST", "https://relay.invalid/v1/images/generations"))
        self.assertEqual(dict(request.body), {"model": "gpt-image-2", "prompt": "a fox", "n": 2})
        self.assertEqual(dict(request.headers), {"Authorization": "Bearer test-key", "X-A": "b"})
        self.assertEqual(request.purpose, "create")
        span = program.Span("/answer", 5, 99)
        images = self.finish(provider, self.response({"data": [{"b64_json": "QUJD"}, {"b64_json": span}]}))
        self.assertEqual([image.base64 for image in images], ["QUJD", span])

    def test_edit(self) -> None:
        mask = program.Upload("/mask.png", program.Picture("png", 64, 64), 100)
        provider, request = self.start("edit", mask=mask)
        self.assertEqual((request.method, request.url, request.body),
                         ("POST", "https://relay.invalid/v1/images/edits", None))
        self.assertEqual([(part.name, part.text, part.path) for part in request.form], [
            ("model", "gpt-image-2", ""), ("prompt", "a fox", ""), ("n", "2", ""), ("image", "", "/a.png"),
            ("mask", "", "/mask.png")])
        self.assertEqual(len(self.finish(provider, self.response({"data": [{"b64_json": "QUJD"}]}))), 1)

    def test_images_behind_urls(self) -> None:
        provider, _ = self.start("generate")
        first = provider.send(self.response({"data": [{"url": "https://cdn.invalid/1.png"}, {"b64_json": "QUJD"},
                                                      {"url": "https://cdn.invalid/2.png"}]}))
        self.assertEqual((first.method, first.url, first.headers, first.purpose),
                         ("GET", "https://cdn.invalid/1.png", (), "download"))
        second = provider.send(self.response(None, "/file-1"))
        self.assertEqual((second.url, second.headers), ("https://cdn.invalid/2.png", ()))
        images = self.finish(provider, self.response(None, "/file-2"))
        self.assertEqual([(image.base64, image.path) for image in images],
                         [("", "/file-1"), ("QUJD", ""), ("", "/file-2")])
