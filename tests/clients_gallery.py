"""The gallery page in a real Chromium without a window: it opens, moves, closes, copies, and nothing leaves it.

Chromium is Debian's (`apt-get install chromium`). With GALLERY_SHOTS=FOLDER, pictures of what it shows are kept there.
"""
from __future__ import annotations

import json
import math
import os
import shutil
import unittest
from typing import Any, Sequence

from clients_common import ClientCase, node, node_packages
from support import environ, png_file, program

CHROMIUM = "/usr/bin/chromium"
VERSION = "1.65.1"
# A script gets `open(options)` for a page, and returns what it found. All that happens meanwhile is recorded.
DRIVER = r"""
const [modules, url, script] = process.argv.slice(2);
const {chromium} = require(modules + "/playwright-core");
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync"];
const told = {requests: [], failed: [], errors: [], dialogs: []};
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
(async () => {
  const browser = await chromium.launch({executablePath: "/usr/bin/chromium", args: flags});
  const open = async (options = {}, address = url) => {
    const page = await (await browser.newContext({viewport: {width: 1280, height: 800}, ...options})).newPage();
    page.on("request", request => told.requests.push(request.url()));
    page.on("requestfailed", request => told.failed.push([request.url(), request.failure().errorText]));
    page.on("console", message => { if (message.type() === "error") told.errors.push(message.text()); });
    page.on("pageerror", error => told.errors.push(String(error)));
    page.on("dialog", dialog => { told.dialogs.push(dialog.message()); dialog.dismiss(); });
    await page.goto(address);
    return page;
  };
  try {
    const Script = Object.getPrototypeOf(async () => {}).constructor;
    told.found = await new Script("open", "wait", "url", script)(open, wait, url);
  } finally {
    await browser.close();
  }
  console.log(JSON.stringify(told));
})().catch(error => { console.error(error); process.exit(1); });
"""
# What is shown now: the opened picture's prompt (null: none), its file, its width, and where the focus is.
STATE = r"""
const state = page => page.evaluate(() => {
  const box = document.querySelector("dialog"), image = box.querySelector("figure img"), on = document.activeElement;
  return {prompt: box.open ? box.querySelector(".prompt").textContent : null, place: box.querySelector("nav").innerText,
          width: image && image.naturalWidth, focus: on.getAttribute("href") || on.className || on.localName,
          hash: location.hash, scroll: scrollY};
});
"""


def drawn(width: int, height: int, seed: int) -> bytes:
    """Return a picture that people can tell from others: a disc before a sky."""
    sky, ground = ([(seed * step + at * 85) % 256 for at in range(3)] for step in (67, 151))
    rows = bytearray()
    for y in range(height):
        colour = bytes(int(high + (low - high) * y / height) for high, low in zip(sky, ground))
        half = int(math.sqrt(max(0, (height / 3) ** 2 - (y - height / 2) ** 2)))
        left, right = max(0, width // 2 - half), min(width, width // 2 + half)
        disc = bytes(255 - value for value in colour) * (right - left)
        rows += b"\0" + colour * left + disc + colour * (width - right)
    return png_file(width, height, bytes(rows), 2)


class ChromiumCase(ClientCase):
    """A folder with pictures and a page, and the browser."""
    client, version = "Chromium", "Debian's"

    def setUp(self) -> None:
        if not os.access(CHROMIUM, os.X_OK):
            self.skipTest("needs Debian's chromium (apt-get install chromium)")
        self.node, self.modules = shutil.which("node") or node(), node_packages(f"playwright-core@{VERSION}")
        super().setUp()
        self.page = self.work / "page.html"

    def picture(self, name: str, width: int = 96, height: int = 64) -> dict[str, Any]:
        """Save a picture in the working folder."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(width, height, len(name)))
        return {"path": str(path), "width": width, "height": height, "bytes": path.stat().st_size}

    def write(self, entries: Sequence[Any], unfinished: int = 0) -> None:
        """Write the page."""
        program.write_gallery(str(self.page), entries, program.Console(program.Secrets()), unfinished)

    def foxes(self, number: int = 3) -> list[dict[str, Any]]:
        """Return entries with pictures that exist."""
        return [{"saved": [self.picture(f"p/fox {at}.png", 96 + at, 64)], "prompt": f"fox {at}", "quality": "low",
                 "command": f"gpt-image2 generate 'fox {at}'\n  --quality low", "elapsed_s": 9, "cost_usd": 0.006,
                 "time": 1_795_000_000 + at} for at in range(number)]

    def browse(self, script: str, allowed: Sequence[str] = ()) -> Any:
        """Run a script in the browser. Nothing but the page and files beside it may be asked for."""
        driver = self.root / "driver.js"
        driver.write_text(DRIVER, encoding="utf-8")
        result = self.run_client(self.node, driver, self.modules, self.page.as_uri(), STATE + script)
        told = json.loads(result.stdout)
        folder = self.work.as_uri() + "/"
        self.assertEqual([url for url in told["requests"] if not url.startswith((folder, *allowed))], [])
        self.assertIn(self.page.as_uri(), told["requests"][0])
        errors = [text for text in told["errors"] if not any(part in text for part in allowed)]
        self.assertEqual((told["dialogs"], errors), ([], []))
        self.failed = told["failed"]
        return told["found"]


class GalleryInChromiumTest(ChromiumCase):
    """By mouse and by keyboard, in every width and both colours."""

    def test_open_move_close(self) -> None:
        self.write(self.foxes())
        by_mouse, moved, wrapped, closed, by_key, gone = self.browse(r"""
            const page = await open(), seen = [], see = async () => { await wait(150); seen.push(await state(page)); };
            await page.click("li:nth-child(1) .open"); await see();
            await page.keyboard.press("ArrowRight"); await see();
            await page.keyboard.press("ArrowLeft"); await page.keyboard.press("ArrowLeft"); await see();
            await page.keyboard.press("Escape"); await see();
            await page.keyboard.press("Shift+Tab"); await page.keyboard.press("Enter"); await see();
            await page.goBack(); await see();
            return seen;""")
        self.assertEqual([state["prompt"] for state in (by_mouse, moved, wrapped, closed, by_key, gone)],
                         ["fox 0", "fox 1", "fox 2", None, "fox 1", None])
        self.assertEqual([state["width"] for state in (by_mouse, moved, wrapped)], [96, 97, 98])
        self.assertIn("2 of 3", moved["place"])
        self.assertIn("fox%202.png", closed["focus"])  # where the reader was
        self.assertEqual(closed["hash"], "")

    def test_buttons(self) -> None:
        self.write([*self.foxes(2), {"prompt": "a dragon", "error": "refused", "command": "again"}])
        prompts, text = self.browse(r"""
            const page = await open(), seen = [];
            await page.click("li:nth-child(1) .open");
            for (const name of ["Next", "Next", "Previous", "Next"]) {
              await page.click(`dialog >> text="${name}"`); await wait(150); seen.push((await state(page)).prompt);
            }
            const text = await page.innerText("dialog");
            await page.click('dialog >> text="Close"'); await wait(150); seen.push((await state(page)).prompt);
            await page.click("li:nth-child(2) .open"); await wait(150);
            await page.mouse.click(5, 400); await wait(150); seen.push((await state(page)).prompt);
            return [seen, text];""")
        self.assertEqual(prompts, ["fox 1", "a dragon", "fox 1", "a dragon", None, None])
        self.assertRegex(text, r"(?s)Failed\s+refused.*a dragon.*again")

    def test_copy(self) -> None:
        """What is copied is the command, and where the browser forbids it, it is selected."""
        self.write(self.foxes())
        command = "gpt-image2 generate 'fox %s'\n  --quality low"
        copied, label, selected, forbidden, by_key = self.browse(r"""
            const page = await open({permissions: ["clipboard-read", "clipboard-write"]});
            await page.click("li:nth-child(2) .open");
            await page.click("dialog .copy");
            const copied = await page.evaluate(() => navigator.clipboard.readText());
            const label = await page.innerText("dialog .copy");
            await page.evaluate(() => { document.execCommand = () => false; });
            await page.keyboard.press("ArrowRight"); await wait(150);
            await page.click("dialog .copy");
            const selected = await page.evaluate(() => String(getSelection()));
            const said = await page.innerText("dialog .copy");
            await page.keyboard.press("Control+c");
            return [copied, label, selected, said, await page.evaluate(() => navigator.clipboard.readText())];""")
        self.assertEqual((copied, label), (command % 1, "Copied"))
        self.assertEqual((selected, forbidden, by_key), (command % 2, "Selected: now press Ctrl+C", command % 2))

    def test_widths_and_colours(self) -> None:
        """Nothing is wider than the window, and dark is dark."""
        long = {"saved": [self.picture("wide.png", 900, 120)], "prompt": "x" * 300 + " a fox" * 200,
                "command": "y" * 3000}
        self.write([*self.foxes(), long, {"error": "z" * 600, "prompt": "a dragon"}])
        shots = json.dumps(environ.get("GALLERY_SHOTS") or str(self.root))
        found = self.browse(r"""
            const seen = [], shots = """ + shots + r""";
            for (const width of [360, 800, 1440, 2560]) for (const colorScheme of ["light", "dark"]) {
              const page = await open({viewport: {width, height: 740}, colorScheme, reducedMotion: "reduce"});
              await wait(200);
              const measure = async name => {
                await page.screenshot({path: `${shots}/gallery-${width}-${colorScheme}-${name}.png`});
                seen.push(await page.evaluate(() => {
                  const top = document.querySelector("dialog[open]") || document.documentElement;
                  const light = node => getComputedStyle(node).backgroundColor.match(/\d+/g).map(Number)[0];
                  const right = node => node.getBoundingClientRect().right;
                  const out = [...top.querySelectorAll("*")].filter(node => right(node) > innerWidth + 1).length;
                  const all = document.documentElement;
                  return {wide: [all.scrollWidth - innerWidth, top.scrollWidth - top.clientWidth, out],
                          light: light(document.querySelector("dialog[open]") || document.body),
                          columns: new Set([...document.querySelectorAll("li")].map(node => node.offsetLeft)).size};
                }));
              };
              await measure("grid");
              for (const [at, name] of [[1, "open"], [4, "long"], [5, "failed"]]) {
                await page.click(`li:nth-child(${at}) .open`); await wait(150); await measure(name);
                await page.keyboard.press("Escape"); await wait(100);
              }
            }
            return seen;""")
        self.assertEqual([state["wide"] for state in found], [[0, 0, 0]] * 32)
        self.assertEqual([state["light"] > 128 for state in found], ([True] * 4 + [False] * 4) * 4)
        self.assertEqual(found[0]["columns"], 2)
        self.assertGreaterEqual(found[16]["columns"], 4)

    def test_touch(self) -> None:
        self.write(self.foxes())
        self.assertEqual(self.browse(r"""
            const page = await open({viewport: {width: 360, height: 740}, hasTouch: true, isMobile: true});
            await page.tap("li:nth-child(2) .open"); await wait(150);
            const first = (await state(page)).prompt;
            await page.tap('dialog >> text="Next"'); await wait(150);
            const small = await page.evaluate(() => [...document.querySelectorAll("dialog button")]
              .filter(node => node.getBoundingClientRect().height < 32).length);
            return [first, (await state(page)).prompt, small];"""), ["fox 1", "fox 2", 0])

    def test_a_picture_that_is_gone(self) -> None:
        entries = self.foxes()
        os.unlink(entries[1]["saved"][0]["path"])
        self.write(entries)
        text, opened = self.browse(r"""
            const page = await open(); await wait(200);
            const text = await page.innerText("li:nth-child(2) .open");
            await page.click("li:nth-child(2) .open"); await wait(150);
            return [text, await page.innerText("figure")];""", ["ERR_FILE_NOT_FOUND"])
        self.assertEqual((text, opened), ("This picture is gone.",) * 2)


class GalleryIsWatchedTest(ChromiumCase):
    """While pictures are to come, the page reloads, and the reader notices only new pictures."""

    def test_reload(self) -> None:
        entries = self.foxes(60)
        self.write(entries[:50], 10)
        grid, opened, selecting, finished = self.browse(r"""
            const fs = process.getBuiltinModule("fs"), seen = [], path = new URL(url);
            const page = await open({viewport: {width: 900, height: 500}});
            const count = () => page.evaluate(() => [document.querySelectorAll("li").length, window.mark || 0]);
            const mark = () => page.evaluate(() => { window.mark = 1; });
            const swap = name => fs.copyFileSync(new URL(name, path), path);
            await page.focus("li:nth-child(30) .open"); await wait(100);
            const before = await state(page);
            await mark(); swap("second.html"); await wait(6500);
            seen.push([...await count(), before, await state(page)]);
            await page.click("li:nth-child(31) .open"); await wait(100);
            const open_before = await state(page);
            await mark(); swap("third.html"); await wait(6500);
            seen.push([...await count(), open_before, await state(page)]);
            await page.click("dialog .copy"); await mark(); await wait(6500);
            seen.push(await count());
            swap("last.html"); await page.reload(); await mark(); await wait(6500);
            seen.push(await count());
            return seen;""")
        self.assertEqual(grid[:2], [55, 0])
        self.assertEqual(grid[2], grid[3])
        self.assertEqual(opened[:2], [58, 0])
        for name in ("prompt", "hash", "scroll", "width"):
            self.assertEqual(opened[2][name], opened[3][name], name)
        self.assertEqual((selecting, finished), ([58, 1], [60, 1]))

    def write(self, entries: Sequence[Any], unfinished: int = 0) -> None:
        """Write the page and what it will become."""
        every = self.foxes(60)
        for name, number in (("second", 55), ("third", 58), ("last", 60)):
            program.write_gallery(str(self.work / f"{name}.html"), every[:number],
                                  program.Console(program.Secrets()), 60 - number)
        super().write(entries, unfinished)


class GalleryWithOddTextsTest(ChromiumCase):
    """Hostile prompts and names are text: no element, no dialog, no request; and odd names are found."""

    def test_hostile(self) -> None:
        texts = ["</script><img src=x onerror=alert(1)>", "<script>alert(2)</script>", "javascript:alert(3)",
                 "\"><svg onload=alert(4)>", "' onclick='alert(5)", "<img src=https://example.com/x.png>", "\u202e gnp",
                 "<!--"]
        names = ["fox's \"den\".png", "100% #1?.png", "<img src=x onerror=alert(1)>.png", "a\nb.png", "x:y\\z.png",
                 "javascript:alert(1).png", "\udcff\udcfe.png", "%2e%2e%41.png", "top", "\u043b\u0438\u0441\u0430.png"]
        entries = [{"prompt": text, "command": text, "error": text, "size": text, "quality": text} for text in texts]
        entries += [{"saved": [self.picture(name)], "prompt": "a fox"} for name in names]
        self.write(entries)
        self.assertEqual(self.browse(r"""
            const page = await open(); await wait(300);
            const cards = await page.locator("li").count();
            for (let at = 1; at <= cards; at++) {
              await page.click(`li:nth-child(${at}) .open`); await wait(60);
              await page.click("dialog .prompt"); await page.keyboard.press("Escape"); await wait(60);
            }
            return await page.evaluate(() => ({
              pictures: [...document.querySelectorAll("li img")].filter(image => image.naturalWidth === 96).length,
              images: document.querySelectorAll("li img").length, scripts: document.querySelectorAll("script").length,
              strange: document.querySelectorAll("svg, iframe, [onclick], [onerror], [onload]").length,
              prompts: [...document.querySelectorAll("li .prompt")].map(node => node.textContent)}));"""),
                         {"pictures": len(names), "images": len(names), "scripts": 1, "strange": 0,
                          "prompts": texts + ["a fox"] * len(names)})

    def test_the_policy_stops_what_the_page_does_not_do(self) -> None:
        """Even a script that got in could not ask anybody for anything."""
        self.write(self.foxes(1))
        self.assertEqual(self.browse(r"""
            const page = await open();
            return await page.evaluate(async () => {
              const tried = [];
              const script = document.createElement("script");
              script.textContent = "window.ran = 1"; document.body.append(script);
              tried.push(window.ran || 0);
              const image = new Image(); image.src = "https://example.com/x.png"; document.body.append(image);
              tried.push(await fetch("https://example.com/").then(() => 1, () => 0));
              return tried;
            });""", ["Content Security Policy", "violates", "https://example.com/"]), [0, 0])
        self.assertEqual({reason for _, reason in self.failed}, {"csp"})


class GalleryOfThousandsTest(ChromiumCase):
    """Ten thousand pictures open as one."""

    def test_ten_thousand(self) -> None:
        saved = self.foxes(1)[0]["saved"]
        self.write([{"saved": saved, "prompt": f"fox {at}", "command": "x", "time": at + 1} for at in range(10_000)])
        self.assertEqual(self.browse(r"""
            const page = await open(); await page.click(".open"); await wait(150);
            await page.keyboard.press("ArrowLeft"); await wait(500);
            return (await state(page)).prompt;"""), "fox 9999")


if __name__ == "__main__":
    unittest.main()
