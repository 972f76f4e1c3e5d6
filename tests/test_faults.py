"""Every fault of network, server and disk: exit code, number of paid requests, billed, and what is on disk."""
from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from api_server import Answer, ApiServer, draw_png, error_body
from support import KEY, LIMITED, NO_ANSWER, PROGRAM, REFUSED, SETUP, UNSAVED, USAGE, ProgramCase, Result, program

HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
PNG = draw_png(64, 64)
SOON = (("retry-after-ms", "50"),)
RATE = error_body("Rate limit reached. Please try again in 0.05s.", "rate_limit_exceeded", None, "requests")
TOO_MUCH = error_body("Rate limit reached on input-images per min: Limit 5, Used 0, Requested 6. "
                      "Please try again in 0.05s.", "rate_limit_exceeded", None, "input-images")
QUOTA = error_body("You have no credits remaining.", "credit_balance_exhausted", None, "insufficient_quota")
MODERATED = error_body("Your request was rejected by the safety system. safety_violations=[sexual].",
                       "moderation_blocked", None, "image_generation_user_error")


def failing(status: int, body: bytes, kind: str = "application/json", **more: Any) -> Answer:
    return Answer(status=status, body=body, content_type=kind, **more)


class Fault(NamedTuple):
    """A row of the table: what the server does, and what must follow."""
    name: str
    answers: tuple[Answer, ...]
    exit_code: int
    posts: int
    billed: str = "no"
    kind: str = ""
    saved: int = 0
    files: tuple[Answer, ...] = ()
    options: tuple[str, ...] = ()


URL = Answer(as_url=True)
FAULTS = (  # name, answers, exit code, paid requests, billed, kind, pictures
    Fault("dropped before the body was read", (Answer(drop="unread", check=False),), NO_ANSWER, 1, "maybe", "network"),
    Fault("dropped without an answer", (Answer(drop="silent"),), NO_ANSWER, 1, "maybe", "network"),
    Fault("dropped after the headers", (Answer(drop="headers"),), NO_ANSWER, 1, "maybe", "network"),
    Fault("truncated JSON", (Answer(drop="half"),), NO_ANSWER, 1, "maybe", "network"),
    Fault("JSON that ends early", (Answer(body=b'{"data":[{"b64_json":"iVBO'),), NO_ANSWER, 1, "maybe", "no_image"),
    Fault("stall", (Answer(delay=30),), NO_ANSWER, 1, "maybe", "timeout", options=("--timeout", "1")),
    Fault("slow trickle", (Answer(trickle=0.05),), 0, 1, saved=1),
    Fault("chunked without end", (Answer(endless=True),), NO_ANSWER, 1, "maybe", "timeout", options=("--timeout", "2")),
    Fault("truncated base64", (Answer(image=draw_png(64, 64, padding=9000)[:-4000]),), NO_ANSWER, 1, "yes",
          "broken_image", 1),
    Fault("broken base64", (Answer(body=b'{"data":[{"b64_json":"!!!!"}]}'),), NO_ANSWER, 1, "maybe", "broken_image"),
    Fault("no image in the base64", (Answer(image=b"hello"),), NO_ANSWER, 1, "maybe", "broken_image"),
    Fault("400", (failing(400, error_body("no", "invalid_value")),), REFUSED, 1, kind="refused"),
    Fault("401", (failing(401, error_body("no", "invalid_api_key")),), SETUP, 1, kind="key"),
    Fault("402", (failing(402, error_body("no", "payment_required")),), LIMITED, 1, kind="quota"),
    Fault("403", (failing(403, error_body("no")),), SETUP, 1, kind="forbidden"),
    Fault("403 page", (failing(403, b"<html>error code: 1010</html>", "text/html"),), SETUP, 1, kind="blocked"),
    Fault("404", (failing(404, b""),), REFUSED, 1, kind="not_found"),
    Fault("408", (failing(408, b""),), NO_ANSWER, 1, "maybe", "gateway"),
    Fault("413", (failing(413, HTML, "text/html"),), REFUSED, 1, kind="too_large"),
    Fault("422", (failing(422, error_body("no")),), REFUSED, 1, kind="refused"),
    Fault("429 once", (failing(429, RATE, headers=SOON),), 0, 2, saved=1),
    Fault("429 once, told in words", (failing(429, RATE),), 0, 2, saved=1),
    Fault("429 for ever", (failing(429, RATE, headers=SOON),) * 9, LIMITED, 5, kind="rate_limit"),
    Fault("429 longer than the timeout", (failing(429, RATE, headers=(("retry-after", "3600"),)),), LIMITED, 1,
          kind="rate_limit"),
    Fault("429 that can never fit", (failing(429, TOO_MUCH, headers=SOON),), LIMITED, 1, kind="rate_limit"),
    Fault("429 without credit", (failing(429, QUOTA, headers=SOON),), LIMITED, 1, kind="quota"),
    Fault("400 without credit", (failing(400, error_body("no", "billing_hard_limit_reached")),), LIMITED, 1,
          kind="quota"),
    Fault("moderation", (failing(400, MODERATED),), REFUSED, 1, kind="moderation"),
    Fault("500", (failing(500, error_body("no")),), NO_ANSWER, 1, "maybe", "server"),
    Fault("500 page", (failing(500, HTML, "text/html"),), NO_ANSWER, 1, "maybe", "server"),
    Fault("502 page", (failing(502, HTML, "text/html"),), NO_ANSWER, 1, "maybe", "gateway"),
    Fault("503 overloaded", (failing(503, error_body("no", "server_is_overloaded"), headers=SOON),), 0, 2, saved=1),
    Fault("503 without a code", (failing(503, b""),), NO_ANSWER, 1, "maybe", "server"),
    Fault("504 page", (failing(504, HTML, "text/html"),), NO_ANSWER, 1, "maybe", "gateway"),
    Fault("524 page", (failing(524, HTML, "text/html"),), NO_ANSWER, 1, "maybe", "gateway"),
    Fault("524 as JSON", (failing(524, error_body("timeout")),), NO_ANSWER, 1, "maybe", "gateway"),
    Fault("200 with an error", (Answer(body=error_body("no channel")),), NO_ANSWER, 1, "maybe", "no_image"),
    Fault("200 with empty data", (Answer(body=b'{"data":[]}'),), NO_ANSWER, 1, "maybe", "no_image"),
    Fault("200 with null data", (Answer(body=b'{"data":null}'),), NO_ANSWER, 1, "maybe", "no_image"),
    Fault("200 with an empty body", (Answer(body=b""),), NO_ANSWER, 1, "maybe", "no_image"),
    Fault("200 with a page", (Answer(body=HTML, content_type="text/html"),), NO_ANSWER, 1, "maybe", "web_page"),
    Fault("302", (failing(302, b"", headers=(("location", "https://elsewhere.invalid/v1"),)),), NO_ANSWER, 1,
          kind="redirect"),
    Fault("wrong size", (Answer(size=(640, 480)),), 0, 1, saved=1, options=("--size", "1024x1024")),
    Fault("wrong format", (Answer(format="jpeg"),), 0, 1, saved=1),
    Fault("a url that fails twice", (URL,), 0, 1, saved=1, files=(Answer(status=404), Answer(drop="half"))),
    Fault("a url that fails for ever", (URL,), UNSAVED, 1, "yes", "download", files=(Answer(status=404),) * 9),
    Fault("a url with a page behind it", (URL,), UNSAVED, 1, "yes", "download",
          files=(Answer(body=HTML, content_type="text/html"),) * 9),
    Fault("a url with a page behind it at first", (URL,), 0, 1, saved=1,
          files=(Answer(body=HTML, content_type="text/html"),)),
    Fault("the picture itself as the answer", (Answer(body=PNG, content_type="image/png"),), 0, 1, saved=1),
    Fault("a whole answer, then a fault", (Answer(body=b'{"data":[{"b64_json":"' + base64.b64encode(PNG) + b'"}]}',
                                                  headers=(("Content-Length", "99999"),)),), 0, 1, saved=1,
          options=("--timeout", "2")),
    Fault("a date beyond all dates",
          (failing(429, RATE, headers=(("retry-after", "Fri, 01 Jan 999999999999 00:00:00"),)),), 0, 2, saved=1),
)


class EveryFaultTest(ProgramCase):
    """One server and one home for each row and command, several at a time."""

    def test_exit_code_posts_billed_and_files_of_every_fault(self) -> None:
        rows = [(fault, command) for fault in FAULTS for command in ("generate", "edit")]
        with ThreadPoolExecutor(6) as pool:
            for (fault, command), problem in zip(rows, pool.map(lambda row: self.check(*row), rows)):
                with self.subTest(fault.name, command=command):
                    self.assertEqual(problem, "")

    def check(self, fault: Fault, command: str) -> str:
        """What is wrong in this row, or an empty text."""
        with ApiServer(KEY) as server:
            world = self.make_world(f"{fault.name} {command}", server)
            (world.work / "in.png").write_bytes(PNG)
            world.words = ("edit", "in.png") if command == "edit" else ("generate",)
            server.plan(*fault.answers)
            server.plan_files(*fault.files)
            result = world.run("--json", *fault.options)
            found: dict[str, Any] = {"exit_code": result.exit_code, "posts": len(server.posts),
                                     "left": world.leftovers(),
                                     "pictures": len(world.pictures()), "journal": len(world.journal())}
            error = result.json.get("error", {"billed": "no", "kind": ""})
            found.update(billed=error["billed"], kind=error["kind"], saved=len(result.json["saved"]))
        kept = 1 if fault.exit_code == 7 else 0
        whole = fault.saved if not fault.exit_code else 0
        expected = {"exit_code": fault.exit_code, "posts": fault.posts, "pictures": fault.saved, "left": [],
                    "journal": kept, "billed": fault.billed, "kind": fault.kind, "saved": whole}
        if found != expected:
            return f"\nfound    {found}\nexpected {expected}\n{result.stdout}{result.stderr}"
        untold = [path.name for path in world.work.glob("*.answer") if path.name not in error.get("hint", "")]
        return "" if not error["kind"] or (error["hint"] and not untold) else f"no hint: {result.stdout} {untold}"


class NoServerTest(ProgramCase):
    """Connections that never come to be: nothing was sent, nothing is billed."""

    def fails(self, url: str, kind: str, *options: str) -> Result:
        result = self.run_program("generate", "a fox", "--base-url", url, "--json", *options,
                                  env={"GPT_IMAGE2_API_KEY": KEY})
        error = result.json["error"]
        self.assertEqual((result.exit_code, error["billed"], error["kind"]), (6, "no", kind), result.stderr)
        self.assertTrue(error["hint"], error)
        return result

    def test_connection_refused_is_tried_again(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            result = self.fails(f"http://127.0.0.1:{closed.getsockname()[1]}/v1", "network")
        self.assertEqual(result.stderr.count("trying again"), 2)

    def test_name_not_found(self) -> None:
        self.fails("https://nothing.invalid/v1", "network")

    def test_tls_to_a_plain_port(self) -> None:
        self.fails(self.server.url.replace("http:", "https:"), "tls")
        self.assertEqual(self.server.answered, 0)

    def test_dead_proxy(self) -> None:
        config = self.write_config({"base_url": "https://relay.invalid/v1", "api_key": KEY,
                                    "proxy": "http://someone:proxy-word@127.0.0.1:9"})
        result = self.run_program("generate", "a fox", "--config", config, "--json", "-v", env={"NO_PROXY": None})
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (6, "no"), result.stderr)
        self.assertNotIn("proxy-word", result.stdout + result.stderr)

    def test_proxy_that_refuses(self) -> None:
        # The loopback API answers CONNECT with an error, as a proxy that wants a password does.
        config = self.write_config({"base_url": "https://relay.invalid/v1", "api_key": KEY,
                                    "proxy": self.server.origin})
        result = self.run_program("generate", "a fox", "--config", config, "--json", env={"NO_PROXY": None})
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (6, "no"), result.stderr)
        self.assertIn("proxy", result.json["error"]["message"])


class TargetTroubleTest(ProgramCase):
    """Places to save in that go wrong while the image is being made."""

    def test_target_that_appears_during_the_request(self) -> None:
        self.server.plan(Answer(delay=0.7))
        child = self.start_generate("a fox", "-o", "out.png")
        self.wait_until(lambda: bool(self.server.posts))
        (self.work / "out.png").write_text("mine")
        result = self.finish(child)
        self.assertEqual(result.names, ["out-2.png"])
        self.assertEqual((self.work / "out.png").read_text(), "mine")

    def test_folder_that_vanishes_is_collected_elsewhere(self) -> None:
        self.server.plan(Answer(delay=0.7))
        child = self.start_generate("a fox", "-o", "new/out.png")
        self.wait_until(lambda: bool(self.server.posts))
        shutil.rmtree(str(self.work / "new"))
        result = self.finish(child)
        self.assertEqual(result.exit_code, 7, result.stderr)
        self.assertIn("It was billed", result.stderr)
        again = self.generate("a fox", "-o", "other.png")
        self.assertEqual(again.names, ["other.png"])
        self.assertEqual((len(self.server.posts), self.journal()), (1, []))

    def test_disk_full_is_collected_once_there_is_room(self) -> None:
        disk = self.work / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
        if os.geteuid() or not shutil.which("mount") or subprocess.call(mount):
            self.skipTest("needs the right to mount a small disk")
        self.addCleanup(subprocess.call, ["umount", "-l", str(disk)])
        self.server.plan(Answer(delay=0.7))
        child = self.start_generate("a fox", "-o", str(disk / "out.png"), "--n", "2")
        self.wait_until(lambda: bool(self.server.posts))
        filler = disk / "filler"
        with filler.open("wb") as stream:  # leaves room for one of the two pictures
            stream.truncate(0)
            os.posix_fallocate(stream.fileno(), 0, os.statvfs(str(disk)).f_bavail * 4096 - 200_000)
        result = self.finish(child)
        self.assertEqual(result.exit_code, 7, result.stderr)
        self.assertEqual(result.names, ["out-1.png"])
        self.assertEqual(list(disk.glob(".*")), [])
        filler.unlink()
        again = self.generate("a fox", "-o", str(disk / "out.png"), "--n", "2")
        self.assertEqual(again.names, ["out-1.png", "out-2.png"])
        self.assertEqual((len(self.server.posts), self.journal()), (1, []))

    def test_disk_full_for_the_answer(self) -> None:
        # A limit that is too small is seen before; a larger one stops curl's own writing, and the money may be gone.
        self.server.default = Answer(image=draw_png(64, 64, padding=6_000_000))
        for limit, exit_code, billed, posts in ((50_000, USAGE, "no", 0), (6_000_000, NO_ANSWER, "maybe", 1)):
            result = self.finish(self.start_generate("a fox", "--json", preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_FSIZE, (limit, limit))))
            self.assertEqual((result.exit_code, result.json["error"]["billed"]), (exit_code, billed), result.stderr)
            self.assertEqual((len(self.server.posts), self.journal()), (posts, []))

    def test_state_folder_that_cannot_be_used(self) -> None:
        """A sandbox, in which only the workspace and temporary files can be written, collects from there."""
        for number, state in enumerate((self.file("a-file"), "/proc/nowhere")):
            env = {"XDG_STATE_HOME": state}
            self.server.reset()
            self.server.plan(Answer(delay=1))
            command = ("a fox", "-o", f"{number}.png")
            self.kill_at_request(self.start_generate(*command, env=env))
            (folder,) = self.tmp.glob("gpt-image-2-*")
            self.assertEqual(len(list((folder / "requests").glob("*-*"))), 1)
            for each in (folder, folder / "requests"):
                self.assertEqual(each.stat().st_mode & 0o777, 0o700, each)
            self.assertIn("a fox", self.finish(self.start_program("config", env=env)).stdout)
            self.saved_file(self.finish(self.start_generate(*command, env=env)))
            self.assertEqual(len(self.server.posts), 1)

    def test_begun_in_a_sandbox_and_collected_outside(self) -> None:
        self.server.plan(Answer(delay=1))
        self.kill_at_request(self.start_generate("a fox", "-o", "x.png", env={"XDG_STATE_HOME": "/proc/nowhere"}))
        self.saved_file(self.finish(self.start_generate("a fox", "-o", "x.png")))
        self.assertEqual(len(self.server.posts), 1)

    def test_begun_outside_and_repeated_where_it_cannot_be_collected(self) -> None:
        """Better no picture than one that is paid for twice; --fresh says that it is meant."""
        self.server.plan(Answer(body=b'{"data": [{"url": "' + self.server.origin.encode() + b'/files/no.png"}]}'))
        self.assertEqual(self.generate("a fox").exit_code, 7)
        for error in (OSError(30, "Read-only file system"), PermissionError(13, "Permission denied")):
            with mock.patch.object(program, "take_lock", side_effect=error):
                result = self.generate_inside("a fox")
            self.assertEqual(result.exit_code, 3, result.stderr)
            self.assertIn("--fresh", result.stderr)
        self.assertEqual(len(self.server.posts), 1)

    def test_no_state_folder_and_somebody_elses_temporary_one(self) -> None:
        """A folder that others may write to is not trusted; the image is made all the same."""
        (self.tmp / f"gpt-image-2-{os.getuid()}").mkdir()
        (self.tmp / f"gpt-image-2-{os.getuid()}").chmod(0o777)
        result = self.generate("a fox", "-o", "x.png", env={"XDG_STATE_HOME": "/proc/nowhere"})
        self.assertEqual(result.exit_code, 0, result.stderr)
        self.assertIn("this command is not remembered", result.stderr)

    def test_closed_output_does_not_lose_an_image(self) -> None:
        for number, closing in enumerate((">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-")):
            command = (f'exec "$@" -o closed-{number}.png {closing}')
            through = ("sh", "-c", command, "sh", sys.executable, PROGRAM)
            result = self.finish(self.start_generate("a fox", through=through))
            self.assertTrue((self.work / f"closed-{number}.png").is_file(), (closing, result))
            lines = [line.split(" ")[0] for line in result.stdout.splitlines()]
            self.assertEqual(lines, [] if ">&-" in closing.split() else ["HTTP", "Saved:"], closing)
        self.assertEqual(self.journal(), [])

    def test_system_without_fcntl(self) -> None:
        start = ("import runpy, sys; sys.modules['fcntl'] = None; sys.argv = sys.argv[1:]; "
                 "runpy.run_path(sys.argv[0], run_name='__main__')")
        for number in range(2):
            through = (sys.executable, "-c", start, PROGRAM)
            result = self.finish(self.start_generate("a fox", "-o", f"{number}.png", through=through))
            self.assertEqual(self.saved_file(result).name, f"{number}.png")
        self.assertEqual(self.journal(), [])

    def test_reader_that_goes_away_does_not_lose_an_image(self) -> None:
        for name, encoding, more in (("piped.png", "utf-8", ()), ("\N{FOX FACE}.png", "ascii", ("-q",))):
            self.server.plan(Answer(delay=0.5))
            child = self.start_generate("a fox", *more, "-o", name, env={"PYTHONIOENCODING": encoding})
            assert child.stdout and child.stderr
            child.stdout.close()
            child.stderr.close()
            child.wait(timeout=30)
            self.assertTrue((self.work / name).is_file())
            self.assertEqual(child.returncode, 0)
            self.assertEqual(self.journal(), [])


class PaidPicturesAreKeptTest(ProgramCase):
    """What came back and was paid for is neither lost nor bought again."""

    def urls(self, *names: str) -> Answer:
        items = ",".join(f'{{"url":"{self.server.origin}/files/{name}"}}' for name in names)
        return Answer(body=f'{{"data":[{items}]}}'.encode())

    def generate_json(self, *options: str) -> Result:
        return self.generate("a fox", "-o", "out.png", "--json", *options)

    def test_curl_that_dies_and_does_not_start_again(self) -> None:
        real = shutil.which("curl")
        self.shell_script("curl", f'[ "$2" = --version ] && exit 1\ncat > "{self.root}/k"\n'
                          f'grep -q /files/ "{self.root}/k" && kill -9 $$\nexec {real} -q -K "{self.root}/k"\n')
        self.server.plan(Answer(as_url=True))
        env = {"PATH": os.pathsep.join([str(self.root / "bin"), environ["PATH"]])}
        error = self.generate("a fox", "--json", "-o", "out.png", env=env).json["error"]
        self.assertEqual((error["kind"], error["billed"], error["next"]), ("download", "yes", "again"))
        self.assertEqual(self.generate("a fox", "-o", "out.png").names, ["out.png"])
        self.assertEqual(len(self.server.posts), 1)

    def test_one_dead_url_does_not_cost_the_other_picture(self) -> None:
        self.server.files["1.png"] = PNG
        self.server.plan(self.urls("1.png", "gone.png"))
        first = self.generate_json("--n", "2")
        self.assertEqual((first.exit_code, [Path(row["path"]).name for row in first.json["saved"]]), (7, ["out-1.png"]))
        self.server.files["gone.png"] = PNG
        again = self.generate_json("--n", "2")
        self.assertEqual((again.exit_code, len(self.server.posts), self.journal()), (0, 1, []), again.stderr)
        self.assertEqual([Path(row["path"]).name for row in again.json["saved"]], ["out-1.png", "out-2.png"])

    def test_overwrite_spares_the_other_pictures_of_the_command(self) -> None:
        second = draw_png(16, 16, 5)
        self.server.files["spared-2.png"] = second
        self.server.plan(self.urls("spared-1.png", "spared-2.png"))
        self.assertEqual(self.generate_json("--n", "2", "--overwrite").exit_code, 7)
        self.server.files["spared-1.png"] = PNG
        again = self.generate_json("--n", "2", "--overwrite")
        self.assertEqual(again.exit_code, 0, again.stderr)
        self.assertEqual([Path(row["path"]).read_bytes() for row in again.json["saved"]], [PNG, second])

    def test_saved_picture_that_was_changed_meanwhile(self) -> None:
        self.server.files["changed-1.png"] = PNG
        self.server.plan(self.urls("changed-1.png", "changed-2.png"))
        self.assertEqual(self.generate_json("--n", "2").exit_code, 7)
        (self.work / "out-1.png").write_text("converted to something else")
        self.server.files["changed-2.png"] = PNG
        again = self.generate_json("--n", "2")
        self.assertEqual((again.exit_code, len(again.json["saved"]), again.json["warnings"]), (0, 2, []), again.stderr)
        self.assertEqual((self.work / "out-1.png").read_text(), "converted to something else")

    def test_curl_that_goes_away_before_the_download(self) -> None:
        folder = self.root / "bin"
        self.shell_script("curl",
                          f'PATH="{environ.get("PATH", "")}"\ncase "$*" in *-K*) rm "$0";; esac\nexec curl "$@"\n')
        self.server.files["1.png"] = PNG
        self.server.plan(self.urls("1.png"))
        first = self.generate("a fox", "-o", "out.png", "--json", env={"PATH": str(folder)})
        self.assertEqual((first.exit_code, first.json["error"]["billed"]), (7, "yes"), first.stderr)
        self.assertEqual((self.generate_json().exit_code, len(self.server.posts)), (0, 1))

    def test_unreadable_picture_beside_a_saved_one_is_kept(self) -> None:
        items = [{"b64_json": base64.b64encode(image).decode()} for image in (PNG, b"no picture" * 200)]
        body = json.dumps({"data": items}).encode()
        self.server.plan(Answer(body=body))
        result = self.generate_json("--n", "2")
        self.assertEqual((result.exit_code, result.json["error"]["billed"], len(result.json["saved"])), (6, "yes", 1))
        self.assertEqual([path.read_bytes() for path in self.work.glob("*.answer")], [body])

    def test_answer_that_just_fits_is_kept_too(self) -> None:
        self.server.plan(Answer(body=b'{"picture":"https://cdn.invalid/' + b"p" * 850 + b'"}'))
        self.assertEqual(self.generate_json().exit_code, 6)
        self.assertEqual(len(list(self.work.glob("out-1.answer"))), 1)

    def test_fresh_gives_up_what_cannot_be_collected(self) -> None:
        self.server.plan(self.urls("gone.png"))
        self.assertEqual(self.generate_json().exit_code, 7)
        fresh = self.generate_json("--fresh")
        self.assertEqual((fresh.exit_code, fresh.json["source"], self.journal()), (0, "bought", []), fresh.stderr)
        again = self.generate_json()
        self.assertEqual((again.exit_code, again.json["source"], len(self.server.posts)), (0, "made_before", 2))
        self.assertEqual(again.json["saved"], fresh.json["saved"])

    def test_answer_that_nobody_can_read_is_kept(self) -> None:
        body = b'{"picture":{"bytes":"' + base64.b64encode(b"no picture" * 9000) + b'"}}'
        self.server.plan(Answer(body=body))
        result = self.generate_json()
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (6, "maybe"))
        self.assertEqual((self.work / "out-1.answer").read_bytes(), body)
        self.assertIn("out-1.answer", result.json["error"]["hint"])

    def test_poll_url_of_another_host_is_refused_before_paying(self) -> None:
        self.write_config({"poll_url": "https://other.invalid/{id}"})
        self.assertEqual((self.generate_json().exit_code, self.server.posts), (3, []))

    def test_key_that_a_config_names_is_in_no_childs_environment(self) -> None:
        self.shell_script("curl", f'export -p > {self.root}/seen; echo "curl 7.1.0"\n')
        config = self.write_config({"base_url": self.server.url, "api_key_env": "RELAY_WORD"})
        self.run_program("generate", "a fox", "--config", config, env={
            "RELAY_WORD": "test-key-relay", "PATH": f"{self.root}/bin:{environ.get('PATH', '')}"})
        self.assertNotIn("test-key-relay", (self.root / "seen").read_text())

    def test_usage_is_cleaned_and_stays_json(self) -> None:
        picture = base64.b64encode(PNG).decode()
        self.server.plan(Answer(body=(f'{{"data":[{{"b64_json":"{picture}"}}],"usage":{{"note":"{KEY}","cost":1e999,'
                                      '"more":NaN}}').encode()))
        result = self.generate_json()
        self.assertEqual(result.exit_code, 0, result.stderr)
        for word in (KEY, "Infinity", "NaN"):
            self.assertNotIn(word, result.stdout)

    def test_output_that_the_encoding_cannot_say(self) -> None:
        for encoding, name in (("utf-8", os.fsdecode(b"caf\xe9.png")), ("ascii", "\u56fe.png")):
            child = self.start_generate("a fox", "-o", name, env={"PYTHONIOENCODING": encoding})
            stdout = child.communicate(timeout=60)[0]
            self.assertIn(b"Saved: " + os.fsencode(str(self.work / name)), stdout)
