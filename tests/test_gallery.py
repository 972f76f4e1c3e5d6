"""The page to look at pictures, in-process: what it links, what it says, and that outside texts stay texts."""
from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
import tracemalloc
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Mapping, Sequence
from unittest import mock
from urllib.parse import unquote_to_bytes, urlsplit

from support import plain_png, program

VOID = {"meta", "img"}
HOSTILE = ("</script><img src=x onerror=alert(1)>", "</style><script>alert(1)</script>", "javascript:alert(1)",
           "\"><svg onload=alert(1)>", "' onmouseover='alert(1)", "<!--", "]]>", "&lt;b&gt; &amp;", "</p></li></ul>",
           "</code></dialog><dialog open>", "{{7*7}} ${7*7} %s %(x)s {0}", "\u202egnp.exe", "\x1b[2J\x9b")
NAMES = ("a.png", "two words.png", "fox's \"den\".png", "100% #1?.png", "%41.png", "<script>alert(1)<.png",
         "a\nb\tc.png", "a&amp;b.png", "javascript:alert(1).png", "http:x.png", "x:y\\z.png", "-o.png", "top",
         "\u043b\u0438\u0441\u0430.png",
         "\udcff\udcfe.png", "e\u0301.png", "..png", "*~!'();=+$,@[].png")


class Page(HTMLParser):
    """A page as a browser sees it: elements, texts by the class of what holds them; wrong nesting fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == [("html", "")], self.open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attrs}
        self.elements.append((tag, about))
        if tag not in VOID:
            self.open.append((tag, about.get("class", "")))
            self.texts.setdefault(about.get("class") or tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        for tag, name in self.open[1:]:
            self.texts[name or tag][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every such element."""
        return [about for name, about in self.elements if name == tag]


class GalleryCase(unittest.TestCase):
    """A folder with a page that is to be."""

    def setUp(self) -> None:
        root = os.path.realpath(tempfile.mkdtemp(prefix="gpt-image2-gallery-"))
        self.addCleanup(shutil.rmtree, root, True)
        self.root = Path(root)
        self.page = str(self.root / "page.html")

    def picture(self, name: str) -> dict[str, Any]:
        """Save a picture and return what an entry says about it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = plain_png(16, 16)
        path.write_bytes(content)
        return {"path": str(path), "width": 16, "height": 16, "bytes": len(content)}

    def text(self, entries: Sequence[Mapping[str, Any]], unfinished: int = 0, page: str = "") -> str:
        """Return the text of a page."""
        return "".join(program.gallery_page(page or self.page, entries, unfinished))

    def parsed(self, *entries: Mapping[str, Any], **about: Any) -> Page:
        """Return a page, parsed."""
        return Page(self.text(entries, **about))

    def write(self, entries: Sequence[Mapping[str, Any]], page: str = "") -> list[str]:
        """Write a page and return what it warns of."""
        console = program.Console(program.Secrets())
        with contextlib.redirect_stderr(io.StringIO()):
            program.write_gallery(page or self.page, entries, console)
        warnings: list[str] = console.warnings
        return warnings

    def linked(self, link: str, page: str = "") -> Path:
        """Return the file that a browser would open for a link on the page."""
        parts = urlsplit(link)
        self.assertEqual((parts.scheme, parts.netloc, parts.query, parts.fragment), ("", "", "", ""), link)
        path = os.fsdecode(unquote_to_bytes(parts.path))
        return Path(os.path.normpath(os.path.join(os.path.dirname(page or self.page), path)))


class OutsideTextsStayTextsTest(GalleryCase):
    """No prompt, name, command or reason becomes an element, an attribute or a link."""

    def test_hostile_texts(self) -> None:
        plain = self.parsed(*self.entries("a fox"))
        for text in HOSTILE:
            with self.subTest(text):
                page = self.parsed(*self.entries(text))
                shape = [(tag, sorted(about)) for tag, about in page.elements]
                self.assertEqual(shape, [(tag, sorted(about)) for tag, about in plain.elements])
                self.assertEqual(page.texts["prompt"], [text, text])
                self.assertEqual(page.texts["code"], [text, text])
                self.assertEqual(page.texts["open"][1], "Failed " + text)
                self.assertEqual(page.all("img")[0]["alt"], text)

    def entries(self, text: str) -> list[dict[str, Any]]:
        """Return entries with the text wherever there can be one."""
        told = {"prompt": text, "command": text, "size": text, "quality": text, "elapsed_s": text, "cost_usd": 1}
        return [{**told, "saved": [{"path": "/x.png", "width": text, "height": text, "bytes": text}]},
                {**told, "error": text, "saved": None}]

    def test_half_characters_and_stray_bytes(self) -> None:
        for text, seen in (("a\ud800b", "a?b"), ("a\udcffb", "a\ufffdb"), ("\udce2\udc82\udcac", "\u20ac")):
            with self.subTest(ascii(text)):
                self.write(self.entries(text))
                page = Page(Path(self.page).read_text(encoding="utf-8"))
                self.assertEqual(page.texts["prompt"][0], seen)

    def test_a_command_is_copied_as_it_is(self) -> None:
        command = "gpt-image2 generate 'two\n\n  lines\tand\r\nmore'  --n 2"
        text = self.text([{"command": command, "error": "x"}])
        self.assertIn("&#13;", text)
        self.assertEqual(Page(text).texts["code"], [command])


class NothingLeavesThePageTest(GalleryCase):
    """The page needs no network and may use none."""

    def test_no_link_leads_out(self) -> None:
        text = self.text([{"saved": [{"path": str(self.root / name)}], "prompt": "see https://example.com/x"}
                          for name in NAMES])
        for tag, about in Page(text).elements:
            self.assertEqual([name for name in about if re.match("srcset|style|action|on", name)], [])
            for name in {"src", "href"} & set(about):
                self.assertNotRegex(about[name], r"^(?!file:)[a-z]+:|^//", tag)
        own = program.STYLE + program.SCRIPT
        self.assertNotRegex(own, r"https?:|url\(|import|fetch|XMLHttp|innerHTML|eval|</")

    def test_only_its_own_style_and_script_may_run(self) -> None:
        page = self.parsed()
        (policy,) = (about["content"] for about in page.all("meta") if about.get("http-equiv"))
        digest = {name: base64.b64encode(hashlib.sha256(page.texts[name][0].encode()).digest()).decode()
                  for name in ("style", "script")}
        self.assertEqual(policy, "default-src 'none'; img-src 'self' file:; "
                                 f"style-src 'sha256-{digest['style']}'; script-src 'sha256-{digest['script']}'")
        self.assertEqual([len(page.all(name)) for name in ("style", "script", "link", "iframe")], [1, 1, 0, 0])


class PicturesAreLinkedBesideTest(GalleryCase):
    """A picture is linked from the page's folder, whatever its name."""

    def test_odd_names(self) -> None:
        for name in NAMES:
            with self.subTest(ascii(name)):
                try:
                    picture = self.picture(name)
                except (OSError, UnicodeError):
                    continue  # not every system has every name
                page = self.parsed({"saved": [picture]})
                (image,) = page.all("img")
                self.assertEqual(self.linked(image["src"]).read_bytes(), plain_png(16, 16))
                self.assertRegex(image["src"], r"^[\w.~/%-]+$")
                self.assertTrue(image["alt"])

    def test_other_folders(self) -> None:
        (self.root / "made here").mkdir()
        beside = str(self.root / "made here" / "page.html")
        for page, name, link in ((self.page, "p/a.png", "p/a.png"), (beside, "a.png", "../a.png"),
                                 (beside, "p/a.png", "../p/a.png"), (beside, "made here/a.png", "a.png")):
            with self.subTest(link):
                picture = self.picture(name)
                (image,) = self.parsed({"saved": [picture]}, page=page).all("img")
                self.assertEqual(image["src"], link)
                self.assertEqual(self.linked(link, page), Path(picture["path"]))

    def test_another_drive(self) -> None:
        with mock.patch.object(program.os.path, "relpath", side_effect=ValueError("other drive")):
            self.assertIn("other drive", self.write([{"saved": [{"path": "D:/a.png"}]}])[0])
        self.assertEqual(os.listdir(str(self.root)), [])

    def test_every_picture_has_an_address_of_its_own(self) -> None:
        """A file that was made again and replaced stands twice in a history."""
        picture = self.picture("a.png")
        page = self.parsed({"saved": [picture], "time": 1000.5}, {"saved": [picture], "time": 2000.5},
                           {"error": "x"}, {"error": "x"})
        links = [about["href"] for about in page.all("a") if about.get("class") == "open"]
        self.assertEqual(len(set(links)), 4, links)
        self.assertEqual({link[:2] for link in links}, {"#/"})


class WhatThePageSaysTest(GalleryCase):
    """The sum, the facts of each picture, the reason of each failure."""

    def test_sum(self) -> None:
        one, two = {"path": "/1.png"}, {"path": "/2.png"}
        table: Sequence[tuple[Sequence[Mapping[str, Any]], int, str]] = (
            ((), 0, "0 pictures"), ((), 5, "0 pictures, 5 to come"),
            (({"saved": [one]},), 0, "1 picture"), (({"saved": [one, two], "cost_usd": None},), 0, "2 pictures"),
            (({"saved": [one], "cost_usd": 0.0055}, {"saved": [two], "cost_usd": 0.05}), 0, "2 pictures, $0.056"),
            (({"saved": [one], "cost_usd": 2}, {"error": "x"}), 3, "1 picture, $2.000, 1 failed, 3 to come"),
            (({"saved": [one], "error": "one is missing", "cost_usd": "?"},), 0, "1 picture, 1 failed"))
        for entries, unfinished, words in table:
            with self.subTest(words):
                self.assertIn(f"<p>{words}</p>", self.text(entries, unfinished))

    def test_facts(self) -> None:
        made = 1_795_000_000.25
        page = self.parsed({"saved": [{"path": "/x/a.png", "width": 1536, "height": 1024}], "prompt": "a fox",
                            "size": "auto", "quality": "low", "elapsed_s": 11.3, "cost_usd": 0.006, "time": made,
                            "command": "make it"})
        facts, file = page.texts["facts"][0], page.texts["facts file"][0]
        self.assertEqual(facts.replace("\xa0", " "), "1536 × 1024, low quality, 11.3 s, $0.006")
        self.assertEqual(file, "a.png " + time.strftime("%Y-%m-%d %H:%M", time.localtime(made)))
        self.assertEqual((page.texts["code"], page.all("img")[0]["alt"]), (["make it"], "a fox"))

    def test_several_pictures_of_one_request(self) -> None:
        files = [{"path": f"/x/{number}.png", "width": 16, "height": 16} for number in range(3)]
        page = self.parsed({"saved": files, "cost_usd": 0.018, "error": "one of 4 is missing"})
        self.assertEqual(page.texts["facts"], ["16 × 16, $0.018 for 3"] * 3 + ["$0.018 for 3"])
        self.assertEqual(len(page.all("img")), 3)
        self.assertEqual(page.texts["open"][3], "Failed one of 4 is missing")

    def test_a_failure_has_its_reason_and_its_command(self) -> None:
        page = self.parsed({"error": "refused & gone", "command": "again", "prompt": "a fox", "size": "1024x1024"})
        self.assertEqual((page.texts["open"], page.texts["code"]), (["Failed refused & gone"], ["again"]))
        self.assertEqual((page.texts["prompt"], page.texts["facts"], page.all("img")), (["a fox"], ["1024x1024"], []))

    def test_everything_may_be_missing(self) -> None:
        names = ("saved", "prompt", "size", "quality", "elapsed_s", "cost_usd", "command", "time", "error")
        for entry in ({}, dict.fromkeys(names), {"saved": [{"path": "/a.png", "width": None, "height": None}]}):
            page = self.parsed(entry)
            self.assertNotIn("None", " ".join(sum(page.texts.values(), [])))
            self.assertEqual([about for about in page.all("a") if not about["href"]], [])
            self.assertNotIn("copy", page.texts)

    def test_for_everybody(self) -> None:
        page = self.parsed({"saved": [{"path": "/a.png"}], "prompt": "a fox"})
        self.assertEqual(page.all("html")[0]["lang"], "en")
        self.assertIn({"name": "viewport", "content": "width=device-width"}, page.all("meta"))
        self.assertEqual([len(page.all(tag)) for tag in ("h1", "main", "dialog")], [1, 1, 1])
        self.assertEqual(page.all("img")[0]["loading"], "lazy")

    def test_it_reloads_only_while_something_is_to_come(self) -> None:
        for unfinished, mark in ((0, ""), (3, "3")):
            self.assertEqual(self.parsed(unfinished=unfinished).all("html")[0]["data-unfinished"], mark)
        self.assertEqual(len(re.findall(r"location\.reload", program.SCRIPT)), 1)
        self.assertNotIn('http-equiv="refresh"', self.text([], 3))


class ThePageIsWrittenWholeTest(GalleryCase):
    """A reader sees the old page or the new one, and a page that cannot be written is a warning."""

    def test_one_step(self) -> None:
        Path(self.page).write_text("old")
        seen = []

        def pieces(*_: Any) -> Any:
            yield "new"
            seen.append(Path(self.page).read_text())

        with mock.patch.object(program, "gallery_page", pieces):
            self.write([])
        self.assertEqual((seen, Path(self.page).read_text()), (["old"], "new"))
        self.assertEqual(os.listdir(str(self.root)), ["page.html"])

    def test_nothing_is_left_when_it_fails(self) -> None:
        Path(self.page).write_text("old")
        with self.assertRaises(TypeError):
            self.write([{"saved": [{"width": {}, "path": 1}]}])
        self.assertEqual((os.listdir(str(self.root)), Path(self.page).read_text()), (["page.html"], "old"))

    def test_where_it_cannot_be(self) -> None:
        (self.root / "folder").mkdir()
        (self.root / "file").write_text("")
        for place in ("folder", "missing/page.html", "file/page.html"):
            with self.subTest(place):
                self.assertEqual(len(self.write([], str(self.root / place))), 1)
        self.assertEqual(sorted(os.listdir(str(self.root))), ["file", "folder"])

    def test_in_the_working_folder(self) -> None:
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(str(self.root))
        self.write([{"saved": [self.picture("a.png")]}], "page.html")
        self.assertIn('<img src="a.png"', Path(self.page).read_text(encoding="utf-8"))

    def test_many_pictures_take_little_memory(self) -> None:
        """It is written in pieces: many times the pictures, the same memory."""
        peaks = []
        for number in (10, 2000):
            entries = [{"saved": [{"path": f"/x/{at}.png"}], "prompt": "a fox \U0001f98a" * 20} for at in range(number)]
            tracemalloc.start()
            self.write(entries)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        self.assertEqual(Path(self.page).read_text(encoding="utf-8").count("<img"), 2000)
        self.assertLess(peaks[1], peaks[0] + 300_000)
