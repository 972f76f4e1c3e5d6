"""Answers that break off, in the shapes that test_reading.py does not have."""
from __future__ import annotations

import json
import unittest
from typing import Any

from api_server import Answer, draw_jpeg, draw_png, draw_webp
from test_reading import EVENTS, LARGE, OTHER, SMALL, ReadingCase, data, event, text

NO_ANSWER = 6
TINY = (draw_png(8, 8), draw_jpeg(8, 8), draw_webp(8, 8))


class BrokenShapesTest(ReadingCase):
    """Where an answer breaks off, what stands whole in it is saved, whatever is around it."""

    def cut(self, body: bytes, length: int) -> Answer:
        """Return an answer that ends too early for its Content-Length."""
        return Answer(body=body[:length], headers=(("Content-Length", str(len(body) + 9)),), drop="end")

    def ends(self, document: Any, *images: bytes) -> None:
        """Check an answer that is cut in its last text, just behind that, and just before its end."""
        body = json.dumps({**document, "z": {"y": [1, "x"]}}).encode()
        quote = body.rindex(b'"', 0, body.index(b', "z"'))
        for length in (quote, quote + 1, quote + 2, body.index(b'{"y'), len(body) - 2):
            with self.subTest(body[:length][-30:]):
                self.saves(self.cut(body, length), *images, options=("--n", str(len(images))), warned="(curl 18)")

    def test_texts_in_a_list(self) -> None:
        for image in (*TINY, LARGE):
            self.ends({"images": ["data:image/png;base64," + text(image)]}, image)
        self.ends({"images": [text(SMALL), text(OTHER)]}, SMALL, OTHER)

    def test_markdown(self) -> None:
        for images in ((SMALL,), (LARGE,), (SMALL, LARGE)):
            words = " and ".join(f"![a fox](data:image/png;base64,{text(image)})" for image in images)
            body = json.dumps({"choices": [{"message": {"content": f"Here: {words} Enjoy!"}}]}).encode()
            end = body.rindex(b")")
            for length in (end, end + 1, end + 5, len(body) - 6, len(body) - 2):
                with self.subTest(body[:length][-20:]):
                    self.saves(self.cut(body, length), *images, options=("--n", str(len(images))), warned="(curl 18)")

    def test_first_of_two_in_markdown(self) -> None:
        words = " ".join(f"![a](data:image/png;base64,{text(image)})" for image in (SMALL, LARGE))
        body = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
        self.saves(self.cut(body, len(body) - 9000), SMALL, options=("--n", "2"), warned="2 images were asked for, 1 came")
        self.assertEqual(self.kept(), [body[:-9000]])

    def test_unknown_names(self) -> None:
        for image in (*TINY, LARGE):
            self.ends({"candidates": [{"parts": [{"inline": {"b64": text(image)}}]}]}, image)

    def test_what_was_asked_is_no_result(self) -> None:
        """The echo of an edit's input is whole, the result is not."""
        for echo in ({"input": [{"image_url": "data:image/png;base64," + text(OTHER)}]}, {"request": {"b64": text(OTHER)}}):
            body = json.dumps({**echo, "data": [{"b64_json": text(LARGE)}]}).encode()
            for answer in (self.cut(body, len(body) - 9000),
                           self.cut(b"data: " + body, len(body) - 9000)._replace(content_type=EVENTS)):
                with self.subTest(body[:12]):
                    self.fails(answer, NO_ANSWER, "network")
                    self.assertEqual(self.kept(), [answer.body])

    def test_no_proper_json(self) -> None:
        for words in (b'a "red" fox', b"a red\nfox", b"a red \\fox", b"\xff\xfe"):
            body = data({"b64_json": text(SMALL)}, revised_prompt="@").replace(b"@", words)
            self.saves(Answer(body=body), SMALL)

    def test_summary_that_breaks_off(self) -> None:
        items = [{"type": "image_generation_call", "result": text(image)} for image in (SMALL, OTHER)]
        told = b"".join(event("response.output_item.done", item=item) for item in items)
        summary = event("response.completed", response={"output": items})
        for left in (0, 60, summary.index(b'"}, {') + 1, summary.index(b'"}]') + 1, len(summary) - 4):
            with self.subTest(left):
                self.saves(self.cut(told + summary, len(told) + left)._replace(content_type=EVENTS), SMALL, OTHER,
                           options=("--n", "2"))

    def test_second_of_two_is_kept(self) -> None:
        """Where nothing but the answer itself says that it is not all there."""
        told = [event("image_generation.completed", b64_json=text(image)) for image in (SMALL, LARGE)]
        lines = [json.dumps({"b64_json": text(image)}).encode() for image in (SMALL, LARGE)]
        for body in (b"".join(told)[:-9000], b"\n".join(lines)[:-9000], b"".join(lines)):
            with self.subTest(body[:20]):
                self.saves(Answer(body=body), SMALL, options=("--n", "2"), warned="2 images were asked for, 1 came")
                self.assertEqual(self.kept(), [body])


class PicturesInWordsTest(ReadingCase):
    """Pictures that chats show in their texts, as people and models write them."""

    def shown(self, words: str) -> tuple[Any, ...]:
        """Return the answers that hold these words: of a chat, with parts, of the Responses API, under an odd name."""
        return ({"choices": [{"message": {"content": words}}]},
                {"choices": [{"message": {"content": [{"type": "text", "text": words}]}}]},
                {"output": [{"type": "message", "content": [{"type": "output_text", "text": words}]}]}, {"said": words})

    def test_links(self) -> None:
        for name, words in (
                ("a_(1).png", "![a fox]({})"), ("a.png", '![a fox]({} "A title (x)")'), ("a b.png", "![a fox](<{}>)"),
                ("a.png", "![a [red] fox]({})"), ("a.png", "![" + "a red fox " * 90 + "]({})"), ("a.png", "![a][1]\n\n[1]: {}"),
                ("a.png", '<img src="{}">'), ("a.png", "[Download]({}). Enjoy!"), ("a.png", "Here: {}?x=1, and so on"),
                ("a.png", "[![fox]({})](https://example.test/full)"), ("id", "See [this](https://a.test/b) ![fox]({})")):
            for document in self.shown(words.replace("{}", f"{self.server.origin}/files/{name}")):
                with self.subTest(words, document=document):
                    self.server.files[name.replace(" ", "%20")] = SMALL
                    self.saves(Answer(body=json.dumps(document).encode()), SMALL)

    def test_inline(self) -> None:
        for image in (SMALL, LARGE):
            for words in ('![a]({} "a title")', "![a](<{}>)", '<img src="{}">', "Well, " * 1000 + "![a]({})"):
                if image is SMALL and "<img" in words:
                    continue
                link = "data:image/png;base64," + text(image)
                for document in self.shown(words.replace("{}", link)):
                    with self.subTest(words[:40], document=str(document)[:60]):
                        self.saves(Answer(body=json.dumps(document).encode()), image)

    def test_data_urls(self) -> None:
        for image in (SMALL, LARGE):
            for head in ("DATA:image/png;base64,", "data:application/octet-stream;base64,", "data:;base64,",
                         "data:image/png;charset=utf-8;base64,"):
                with self.subTest(head):
                    self.saves(Answer(body=data({"url": head + text(image)})), image)

    def test_query_alone(self) -> None:
        self.server.plan_gets("/v1/images/generations?id=7", Answer(body=SMALL, content_type="image/png", check=False))
        self.server.plan(Answer(body=data({"url": "?id=7"})))
        self.assertEqual(self.saved_file(self.generate_inside("a red fox")).read_bytes(), SMALL)

    def test_hostile_words(self) -> None:
        for words in ("](data:image/" * 5000, "](<" * 20_000, "](a(" * 15_000, "https://a/" * 6000, ".png" * 15_000,
                      "![a](" + "b" * 60_000):
            with self.subTest(words[:20]):
                self.fails(Answer(body=json.dumps({"choices": [{"message": {"content": words}}]}).encode()), NO_ANSWER, "no_image")
                self.kept()


if __name__ == "__main__":
    unittest.main()
