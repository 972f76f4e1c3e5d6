"""The program's own files: nobody else's are followed, replaced or removed; what others could change is not used."""
from __future__ import annotations

import base64
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path
from typing import Any, Callable, NamedTuple
from unittest import mock

from api_server import Answer, Recorded, draw_png, error_body
from runapi_server import RunApiServer
from support import KEY, PROGRAM, ProgramCase, Result, mask_png, plain_png, program
from test_stream import PARTIALS, completed, frame, partial, stream

PNG, OTHER = draw_png(64, 64), draw_png(64, 64, 5)
ACCESS = {"GPT_IMAGE2_API_KEY": KEY}
NOBODY = 65534
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
# Runs the program with one of its functions replaced: file of the program, lines of Python, arguments.
CHANGED = """
import os, signal, sys
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import gpt_image2 as program
die = lambda *values, **more: os.kill(os.getpid(), signal.SIGKILL)
exec(sys.argv[2])
sys.exit(program.main(sys.argv[3:]))
"""
DESCRIPTORS = f"/proc/{os.getpid()}/fd"  # of this process, on Linux


class PrivateCase(ProgramCase):
    """A journal with something in it, and a person's files beside it."""

    def setUp(self) -> None:
        super().setUp()
        self.state = self.home / ".local" / "state"
        self.requests = self.world.requests

    def folder(self) -> Path:
        """The one unfinished request."""
        (name,) = self.journal()
        return self.requests / name

    def leave_unfinished(self, lines: str = "", env: Any = None) -> None:
        """A request that is paid for, killed before its picture was saved."""
        command = ("generate", *self.access(), "a fox", "-o", "out.png")
        self.assertEqual(self.changed(lines + "\nprogram.save_images = die", *command, env=env), -9)

    def again(self, *more: str, env: Any = None) -> Result:
        """The same command, without a look at what is left in the temporary folder."""
        return self.finish(self.start_generate("a fox", "-o", "out.png", *more, env=env))

    def changed(self, lines: str, *arguments: str, env: Any = None) -> int:
        """The exit code of a run in which some function does something else."""
        command = (sys.executable, "-c", CHANGED, PROGRAM, lines, *arguments)
        return self.finish(self.world.launch(*command, env={**ACCESS, **(env or {})})).exit_code

    def victim(self, name: str = "precious.txt") -> Path:
        return Path(self.file(name, "precious"))

    def give_away(self, path: Path) -> None:
        os.chown(str(path), NOBODY, NOBODY, follow_symlinks=False)


class HalfRemovedTest(PrivateCase):
    """A finished request whose removal was cut off is no unfinished one, for no reader of the journal."""

    def killed_while_removed(self, lines: str) -> None:
        command = ("generate", *self.access(), "a fox", "-o", "out.png")
        self.assertEqual(self.changed(lines, *command), -9)
        self.assertTrue((self.work / "out.png").is_file())
        self.assertEqual(len(self.journal()), 1)

    def pending(self) -> list[Any]:
        found: list[Any] = self.run_program("config", "--json", env=ACCESS).json["pending"]
        return found

    def test_killed_between_the_new_name_and_the_removal(self) -> None:
        self.killed_while_removed("import shutil\nshutil.rmtree = die")
        self.assertEqual(self.pending(), [])
        self.assertEqual(self.run_program("config", env=ACCESS).stdout.count("a fox"), 0)
        self.saved_file(self.generate("another"))
        self.assertEqual(self.journal(), [])  # and it is cleared away

    def test_killed_where_the_folder_could_not_be_renamed(self) -> None:
        self.killed_while_removed("import shutil\nshutil.rmtree = die\ndef fail(*values): raise OSError(1, 'no')\n"
                                  "os.rename = fail")
        self.assertEqual(self.pending(), [])
        self.saved_file(self.generate("another"))
        self.assertEqual(self.journal(), [])

    def test_same_command_where_the_folder_could_not_be_renamed(self) -> None:
        """Nobody works on the half-removed folder, so there is nobody to wait for."""
        self.killed_while_removed("import shutil\nshutil.rmtree = die\ndef fail(*values): raise OSError(1, 'no')\n"
                                  "os.rename = fail")
        self.assertEqual((self.again().stderr.count("made before"), len(self.server.posts)), (1, 1))
        (self.work / "out.png").unlink()
        self.saved_file(self.again())
        self.assertEqual((self.journal(), len(self.server.posts)), ([], 2))

    def test_killed_before_its_folder_has_an_owner(self) -> None:
        lines = ("real = program.take_lock\n"
                 "program.take_lock = lambda path, create=False, strict=False: (\n"
                 "    die() if create and path.endswith('owner') else real(path, create, strict))")
        self.assertEqual(self.changed(lines, "generate", *self.access(), "a fox", "-o", "out.png"), -9)
        self.assertEqual((len(self.journal()), self.server.posts), (1, []))
        self.saved_file(self.again())
        self.assertEqual((self.journal(), len(self.server.posts)), ([], 1))

    def test_killed_while_an_old_one_is_forgotten(self) -> None:
        self.leave_unfinished()
        os.utime(str(self.folder()), (time.time() - 40 * 86400,) * 2)
        self.assertEqual(self.changed("import shutil\nshutil.rmtree = die", "generate", *self.access(), "another"), -9)
        self.assertEqual((self.pending(), len(self.server.posts)), ([], 1))
        self.assertNotIn("collecting", self.again().stderr)

    def test_its_input_is_not_sent_again(self) -> None:
        """The address is gone: then the edit is refused, not bought with what lies in the dustbin."""
        self.server.files["a.png"] = PNG
        url = self.server.origin + "/files/a.png"
        self.assertEqual(self.changed("import shutil\nshutil.rmtree = die", "edit", *self.access(), url, "a hat"), -9)
        self.assertEqual(len(self.journal()), 1)
        del self.server.files["a.png"]
        for left in self.tmp.iterdir():
            left.unlink()
        again, other = self.edit(url, "a hat"), self.edit(url, "a hat", "-o", "other.png")
        self.assertEqual((again.exit_code, other.exit_code, len(self.server.posts)), (0, 2, 1), other.stderr)

    def test_unfinished_ones_are_still_listed(self) -> None:
        self.leave_unfinished()
        self.assertEqual([row["prompt"] for row in self.pending()], ["a fox"])


class Unsafe(NamedTuple):
    """What is wrong with a folder between home and request; path is relative to the home."""
    name: str
    path: str
    mode: int = 0o700
    foreign: bool = False
    advice: str = ""


REQUESTS, OURS = ".local/state/gpt-image-2/requests", ".local/state/gpt-image-2"
UNSAFE = (  # name, folder below the home, mode
    Unsafe("requests for all", REQUESTS, 0o777, advice="chmod 700"),
    Unsafe("requests for a group", REQUESTS, 0o770, advice="chmod 700"),
    Unsafe("requests of somebody else", REQUESTS, foreign=True),
    Unsafe("gpt-image-2 for all", OURS, 0o777, advice="chmod go-w"),
    Unsafe("gpt-image-2 for others only", OURS, 0o702, advice="chmod go-w"),
    Unsafe("gpt-image-2 of somebody else", OURS, foreign=True),
    Unsafe("gpt-image-2 of somebody else, sticky", OURS, 0o1777, foreign=True),
    Unsafe("state for all", ".local/state", 0o777, advice="chmod go-w"),
    Unsafe(".local for all", ".local", 0o777, advice="chmod go-w"),
    Unsafe(".local of somebody else", ".local", 0o755, foreign=True),
    Unsafe("the home for all", "", 0o777, advice="chmod go-w"),
)


@unittest.skipUnless(os.name == "posix", "needs users and modes")
class UnsafePlaceTest(PrivateCase):
    """A journal that others could change is not believed: a warning, another place, and the picture all the same."""

    def test_made_closed_whatever_the_umask(self) -> None:
        for umask in (0, 0o002, 0o027):
            with self.subTest(oct(umask)):
                shutil.rmtree(str(self.home / ".local"), True)
                self.leave_unfinished(f"os.umask({umask})")
                modes = {str(path): path.stat().st_mode & 0o077 for path in (self.home / ".local").rglob("*")}
                self.assertEqual(set(modes.values()), {0}, modes)
                self.assertEqual((self.home / ".local").stat().st_mode & 0o777, 0o700)

    def check_unused(self, words: str) -> None:
        """The next run says so, buys and saves in another place, and leaves the folder as it is."""
        before = {str(path): path.lstat().st_mtime_ns for path in self.requests.rglob("*")}
        result = self.again()
        self.assert_succeeded(result)
        self.assertEqual(len(self.server.posts), 2, result.stderr)
        self.assertIn("is not used", result.stderr)
        self.assertIn(words, result.stderr)
        self.assertEqual({str(path): path.lstat().st_mtime_ns for path in self.requests.rglob("*")}, before)
        shown = self.finish(self.start_program("config", "--json", env=ACCESS)).json
        self.assertEqual((shown["pending"], "is not used" in str(shown["warnings"])), ([], True))

    def test_each_unsafe_folder_is_left_unused(self) -> None:
        for row in UNSAFE:
            if row.foreign and not IS_ROOT:
                continue
            with self.fresh(row.name):
                shutil.rmtree(str(self.home))
                self.home.mkdir()
                self.leave_unfinished()
                place = self.home / row.path
                place.chmod(row.mode)
                if row.foreign:
                    self.give_away(place)
                self.check_unused(f"{row.advice} {place}" if row.advice else f"{place} ")
                self.assertEqual(place.stat().st_mode & 0o7777, row.mode)  # nothing is changed behind one's back

    def test_receipts_that_others_could_change_are_not_believed(self) -> None:
        made, elsewhere = self.world.receipts, self.root / "elsewhere"
        acts: dict[str, tuple[Callable[[], Any], str]] = {
            "for all": (lambda: made.chmod(0o777), f"chmod 700 {made}"),
            "for a group": (lambda: made.chmod(0o770), f"chmod 700 {made}"),
            "a link": (lambda: (made.rename(elsewhere), made.symlink_to(elsewhere)), f"{made} is a link"),
            "of somebody else": (lambda: self.give_away(made), "belongs to another user")}
        for name, (act, words) in acts.items():
            if name == "of somebody else" and not IS_ROOT:
                continue
            with self.fresh(name):
                self.assert_succeeded(self.again())
                act()
                before = [(path.name, path.read_bytes()) for path in made.iterdir()]
                result = self.again()
                self.assert_succeeded(result)
                self.assertEqual(len(self.server.posts), 2, result.stderr)
                self.assertIn(f"{made} is not used", result.stderr)
                self.assertIn(words, result.stderr)
                self.assertIn("the same command will buy another picture", result.stderr)
                self.assertEqual([(path.name, path.read_bytes()) for path in made.iterdir()], before)
            if made.is_symlink():
                made.unlink()

    def test_receipt_that_is_a_link_or_somebody_elses_is_not_believed(self) -> None:
        def link(receipt: Path) -> None:
            receipt.rename(self.root / "kept")
            receipt.symlink_to(self.root / "kept")

        for act in (link, *([self.give_away] if IS_ROOT else [])):
            with self.fresh(act.__name__):
                self.assert_succeeded(self.again())
                receipt, = self.world.receipts.glob("*.json")
                act(receipt)
                kept = receipt.read_bytes()
                result = self.again()
                self.assert_succeeded(result)
                self.assertEqual(len(self.server.posts), 2, result.stderr)
                self.assertIn("is ignored", result.stderr)
                if act is link:
                    self.assertEqual((self.root / "kept").read_bytes(), kept)
                self.assertEqual((self.again().stderr.count("made before"), len(self.server.posts)), (1, 2))

    def test_nothing_is_made_in_an_unsafe_place(self) -> None:
        for name, env in (("home", None), ("shared", {"XDG_STATE_HOME": str(self.root / "shared")})):
            with self.fresh(name):
                place = self.root / name
                place.mkdir(exist_ok=True)
                place.chmod(0o777)
                self.assertIn("is not used", self.again(env=env).stderr)
                self.assertEqual(os.listdir(str(place)), [])

    def test_waits_in_the_other_place(self) -> None:
        """Killed and run again it is still bought once."""
        self.home.chmod(0o777)
        self.leave_unfinished()
        self.assertTrue(list(self.tmp.glob("gpt-image-2-*/requests/[!.]*")))
        self.assert_succeeded(self.again())
        self.assertEqual(len(self.server.posts), 1)

    def test_link_in_the_place_of_a_folder(self) -> None:
        for name in ("gpt-image-2", "gpt-image-2/requests"):
            with self.fresh(name):
                shutil.rmtree(str(self.home))
                self.home.mkdir()
                precious = self.home / "documents" / "letters"
                precious.mkdir(parents=True, mode=0o700)
                (precious / "letter").write_text("dear")
                (self.state / name).parent.mkdir(parents=True)
                (self.state / name).symlink_to(precious.parent)
                result = self.again()
                self.assert_succeeded(result)
                self.assertIn("is not used", result.stderr)
                self.assertEqual([path.name for path in precious.parent.rglob("*")], ["letters", "letter"])

    def test_own_links_above_are_fine(self) -> None:
        real = self.root / "disk"
        real.mkdir()
        self.state.parent.mkdir()
        self.state.symlink_to(real)
        (self.root / "xdg").symlink_to(real)
        self.leave_unfinished()
        self.assertTrue((real / "gpt-image-2" / "requests").is_dir())
        result = self.again(env={"XDG_STATE_HOME": str(self.root / "xdg")})
        self.assertEqual((result.exit_code, len(self.server.posts)), (0, 1), result.stderr)  # collected
        self.assertNotIn("is not used", result.stderr)
        real.chmod(0o777)
        (self.work / "out.png").unlink()
        self.assertIn(f"chmod go-w {real}", self.again().stderr)  # the real folder counts

    def test_ordinary_places_give_no_warning(self) -> None:
        places = [("readable", 0o755), ("sticky", 0o1777), ("own group", 0o775)]
        for name, mode in places:
            with self.fresh(name):
                place = self.root / name
                place.mkdir()
                (self.work / "out.png").unlink() if (self.work / "out.png").exists() else None
                place.chmod(mode)
                if name == "own group" and place.stat().st_gid != os.getuid():
                    continue
                self.leave_unfinished(env={"XDG_STATE_HOME": str(place)})
                result = self.again(env={"XDG_STATE_HOME": str(place)})
                self.assertEqual((result.exit_code, len(self.server.posts)), (0, 1), result.stderr)
                self.assertNotIn("is not used", result.stderr)

    def test_temporary_place_that_others_could_swap(self) -> None:
        """The folder in it would be this user's, until somebody puts another in its place."""
        self.tmp.chmod(0o777)
        with self.inside({"XDG_STATE_HOME": "/proc/nowhere"}, ""):
            self.assertNotIn(str(self.tmp), program.temp_folders())
        self.tmp.chmod(0o1777)
        with self.inside(None, ""):
            self.assertIn(str(self.tmp), program.temp_folders())

    def test_group_of_several_people(self) -> None:
        if not IS_ROOT:
            self.skipTest("needs root")
        self.leave_unfinished()
        self.state.chmod(0o775)
        os.chown(str(self.state), 0, NOBODY)
        self.check_unused(f"chmod go-w {self.state}")


@unittest.skipUnless(os.name == "posix", "needs users and modes")
class AdoptedFolderTest(PrivateCase):
    """A single request that is not this user's alone is left alone, and no file in one is a way to others."""

    def check_unused(self, words: str) -> None:
        before = sorted(os.listdir(str(self.folder())))
        result = self.again()
        self.assert_succeeded(result)
        self.assertEqual((len(self.server.posts), sorted(os.listdir(str(self.folder())))), (2, before))
        self.assertIn("is not used", result.stderr)
        self.assertIn(words, result.stderr)
        shown = self.finish(self.start_program("config", "--json", env=ACCESS)).json
        self.assertEqual((shown["pending"], "is not used" in str(shown["warnings"])), ([], True))

    def test_open_to_others(self) -> None:
        for mode in (0o777, 0o770, 0o707, 0o750):
            with self.fresh(oct(mode)):
                shutil.rmtree(str(self.home / ".local"), True)
                self.leave_unfinished()
                self.folder().chmod(mode)
                self.check_unused(f"chmod 700 {self.folder()}")

    @unittest.skipUnless(IS_ROOT, "needs root")
    def test_of_somebody_else(self) -> None:
        self.leave_unfinished()
        self.give_away(self.folder())
        self.check_unused(str(self.folder()))

    def test_link(self) -> None:
        self.leave_unfinished()
        elsewhere = self.root / "elsewhere"
        folder = self.folder()
        folder.rename(elsewhere)
        folder.symlink_to(elsewhere)
        self.check_unused(str(folder))

    def collect(self) -> Result:
        return self.finish(self.start_generate("a fox", "-o", "out.png"), 20)

    def test_links_in_it_lead_nowhere(self) -> None:
        for name in ("saved-1", "partials", "droppable", "request.json"):
            with self.fresh(name):
                shutil.rmtree(str(self.home / ".local"), True)
                self.leave_unfinished()
                victim = self.victim()
                (self.folder() / name).unlink() if (self.folder() / name).exists() else None
                (self.folder() / name).symlink_to(victim)
                self.saved_file(self.collect())
                self.assertEqual((victim.read_text(), len(self.server.posts)), ("precious", 1))
                for path in self.work.glob("out*"):
                    path.unlink()

    def test_record_of_a_picture_that_is_a_pipe_now(self) -> None:
        self.leave_unfinished()
        os.mkfifo(str(self.work / "pipe.png"))
        (self.folder() / "saved-1").write_text(str(self.work / "pipe.png"))
        self.saved_file(self.collect())

    def test_no_private_file_goes_through_a_link(self) -> None:
        victim, link, nothing = self.victim(), self.work / "link", self.work / "nothing"
        for target in (victim, nothing):
            if os.path.lexists(str(link)):
                link.unlink()
            link.symlink_to(target)
            for attempt in (lambda: program.private_file(str(link)), lambda: program.plain_file(str(link)),
                            lambda: program.private_file(str(link), os.O_APPEND),
                            lambda: program.take_lock(str(link), create=True), lambda: program.take_lock(str(link))):
                self.assertRaises(OSError, attempt)
        self.assertEqual((victim.read_text(), nothing.exists()), ("precious", False))


@unittest.skipUnless(os.name == "posix", "needs links")
class PruneTest(PrivateCase):
    """What is cleared away is the program's own, and no file is made on the way."""

    def test_links_below_requests(self) -> None:
        for name in (".gone-x", ".gone-0123-x", "0123-x"):
            for dangling in (False, True):
                with self.fresh(name, dangling=dangling):
                    self.requests.mkdir(parents=True, exist_ok=True)
                    self.requests.chmod(0o700)
                    target = self.root / "target"
                    if not dangling:
                        target.mkdir(exist_ok=True)
                        (target / "file").write_text("precious")
                    (self.requests / name).symlink_to(target)
                    self.assert_succeeded(self.again("--overwrite"))
                    self.assertEqual(os.listdir(str(target)) if target.exists() else [], [] if dangling else ["file"])
                    (self.requests / name).unlink()
                    shutil.rmtree(str(target), True)

    def test_owner_that_is_a_link(self) -> None:
        self.requests.mkdir(parents=True)
        self.requests.chmod(0o700)
        for name in (".gone-x", "0123-x"):
            (self.requests / name).mkdir(mode=0o700)
            (self.requests / name / "owner").symlink_to(self.root / "made")
            os.utime(str(self.requests / name), (0, 0))
            self.forget()
            self.assert_succeeded(self.again("--overwrite"))
            self.assertFalse((self.root / "made").exists())

    def test_half_made_and_half_removed_go(self) -> None:
        self.requests.mkdir(parents=True)
        self.requests.chmod(0o700)
        for name in (".gone-x", "0123-x"):
            (self.requests / name).mkdir()
            (self.requests / name / "request.json").write_text("{}")
        (self.requests / ".gone-x" / "owner").touch()
        self.assert_succeeded(self.again())
        self.assertEqual(self.journal(), [])


@unittest.skipUnless(os.name == "posix", "needs links and pipes")
class PicturesInTheMakingTest(PrivateCase):
    """Pictures in the making never touch what this command did not make."""

    def preview(self, *more: str, text: str = "", timeout: float = 30) -> Result:
        self.server.plan(stream(text or frame(partial(0)) + frame(partial(1)) + frame(completed())))
        return self.finish(self.start_generate("a fox", "--stream", "--partial-images", "2", "-o", "fox.png", *more),
                           timeout)

    def plant(self, name: str, kind: str) -> Path:
        """Something of the user's own, or a stranger's, under a name that the program might want."""
        path = self.work / name
        if kind == "file":
            path.write_text("precious")
        elif kind == "pipe":
            os.mkfifo(str(path))
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(self.victim() if kind == "link" else self.work / "nothing")
        return path

    def test_everything_of_that_name_stays(self) -> None:
        for name in (".fox.partial-0.part", ".fox.partial-1.part", "fox.partial-0.png", "fox.partial-1.png"):
            for kind in ("file", "link", "dangling", "pipe", "folder"):
                for more in ((), ("--overwrite",)) if name == "fox.partial-0.png" else ((),):
                    with self.subTest(name, kind=kind, more=more):
                        shutil.rmtree(str(self.work))
                        self.work.mkdir()
                        path = self.plant(name, kind)
                        before = path.lstat()
                        self.assert_succeeded(self.preview(*more))
                        after = path.lstat()
                        self.assertEqual((before.st_ino, before.st_mode, before.st_size),
                                         (after.st_ino, after.st_mode, after.st_size))
                        if kind in ("file", "link"):
                            self.assertEqual(path.read_text(), "precious")
                        self.assertFalse((self.work / "nothing").exists())

    def test_parts_of_a_killed_run_are_cleared_away(self) -> None:
        self.server.plan(stream(frame(partial(0)) + frame(completed())))
        command = ("generate", *self.access(), "a fox", "--stream", "--partial-images", "2", "-o", "fox.png")
        self.assertEqual(self.changed("program.picture_in = die", *command), -9)
        self.assertEqual(len(list(self.work.glob(".*.part"))), 1)
        self.saved_file(self.run_program(*command, env=ACCESS))
        self.assertEqual((os.listdir(str(self.work)), len(self.server.posts)), (["fox.png"], 1))

    def kill_with_a_preview(self) -> Path:
        self.server.plan(stream(frame(partial(0)) + frame(completed())))
        command = ("generate", *self.access(), "a fox", "--stream", "--partial-images", "2", "-o", "fox.png")
        self.assertEqual(self.changed("program.save_images = die", *command), -9)
        path = self.work / "fox.partial-0.png"
        self.assertEqual(path.read_bytes(), PARTIALS[0])
        return path

    def test_a_killed_runs_previews_go(self) -> None:
        self.kill_with_a_preview()
        self.saved_file(self.preview())
        self.assertEqual((os.listdir(str(self.work)), len(self.server.posts)), (["fox.png"], 1))

    def test_only_the_same_file_is_removed_after_a_kill(self) -> None:
        """The user has put something else under the preview's name meanwhile."""
        replace: dict[str, Callable[[Path], Any]] = {
            "another file": lambda path: path.with_suffix(".new").write_bytes(OTHER) and
            path.with_suffix(".new").rename(path),
            "written over": lambda path: path.write_text("precious"),
            "written over, as long": lambda path: path.write_bytes(bytes(len(PARTIALS[0]))),
            "a link to it": lambda path: (path.rename(self.work / "kept.png"), path.symlink_to(self.work / "kept.png")),
            "a pipe": lambda path: (path.unlink(), os.mkfifo(str(path))),
            "a folder": lambda path: (path.unlink(), path.mkdir())}
        for name, act in replace.items():
            with self.fresh(name):
                shutil.rmtree(str(self.work))
                self.work.mkdir()
                path = self.kill_with_a_preview()
                act(path)
                before = path.lstat()
                self.saved_file(self.preview())
                self.assertTrue(os.path.lexists(str(path)))
                self.assertEqual((path.lstat().st_ino, path.lstat().st_size), (before.st_ino, before.st_size))
                self.assertEqual(len(self.server.posts), 1)

    def test_record_that_names_others(self) -> None:
        """Also in the form that earlier versions wrote."""
        self.kill_with_a_preview()
        victim = self.victim()
        with (self.folder() / "partials").open("a") as record:
            record.write(f"{victim}\n0 0 0 0 0 {victim}\n\nx\n")
        self.saved_file(self.preview())
        self.assertEqual(victim.read_text(), "precious")

    def test_never_more_than_were_asked_for(self) -> None:
        text = "".join(frame({**partial(0), "partial_image_index": number}) for number in range(40))
        bare = "".join(frame({name: value for name, value in partial(0).items() if name != "partial_image_index"})
                       for _ in range(40))
        for events, more, most in ((text, (), 2), (bare, (), 2), (text, ("--n", "2"), 4)):
            result = self.preview("--keep-partials", "--overwrite", *more, text=events + frame(completed()) * 2)
            self.assertEqual(result.exit_code, 0, result.stderr)
            self.assertEqual(len(list(self.work.glob("*.partial-*"))), most)
            self.assertEqual(result.stderr.count("more arrived than you asked for"), 1, result.stderr)
            for path in self.work.iterdir():
                path.unlink()


class UploadsAreCopiesTest(PrivateCase):
    """What is uploaded is what was checked, whatever becomes of the name."""

    def setUp(self) -> None:
        super().setUp()
        self.image = Path(self.file("in.png", PNG))
        self.secret = Path(self.file("id", b"a private thing"))

    def bodies(self) -> bytes:
        return b"".join(request.body for request in self.server.requests)

    def files(self, post: Recorded) -> list[bytes]:
        return [part.body for part in post.parts if part.filename is not None]

    def key_command(self, lines: str) -> str:
        """A config whose key command does something else first; it runs after the inputs were checked."""
        script = self.shell_script("key", f"cd {self.work}\n{lines}\necho {KEY}\n")
        return self.write_config({"base_url": self.server.url, "api_key_command": [script]})

    def edit_with(self, config: str, *more: str) -> Result:
        return self.finish(self.start_program("edit", "in.png", "a hat", "--config", config, *more), 20)

    def test_changed_before_it_is_copied(self) -> None:
        self.file("other.png", OTHER)
        for name, lines in (("link to a secret", "ln -sf id in.png"), ("another picture", "cp other.png in.png"),
                            ("another picture by name", "mv other.png in.png"), ("no picture", "cat id >in.png"),
                            ("cut off", "head -c 60 in.png >x; cat x >in.png"), ("gone", "rm in.png"),
                            ("pipe", "rm in.png; mkfifo in.png"), ("folder", "rm in.png; mkdir in.png"),
                            ("huge", "truncate -s 3G in.png")):
            with self.fresh(name):
                if self.image.is_dir():
                    self.image.rmdir()
                elif os.path.lexists(str(self.image)):
                    self.image.unlink()
                self.file("in.png", PNG)
                self.file("other.png", OTHER)
                result = self.edit_with(self.key_command(lines))
                self.assertEqual((result.exit_code, self.server.requests), (2, []), result.stderr)
                self.assertIn("changed while it was being read", result.stderr)
                self.assertEqual(self.journal(), [])

    def test_mask_changed_before_it_is_copied(self) -> None:
        self.file("mask.png", mask_png(64, 64))
        self.file("opaque.png", mask_png(64, 64, clear=False))
        for lines in ("ln -sf id mask.png", "cp opaque.png mask.png"):
            self.file("mask.png", mask_png(64, 64))
            result = self.edit_with(self.key_command(lines), "--mask", "mask.png")
            self.assertEqual((result.exit_code, self.server.requests), (2, []), result.stderr)
            self.assertIn("mask.png changed", result.stderr)
            (self.work / "mask.png").unlink()

    def change_in_a_pause(self, *command: str, changed: Path, env: Any = ACCESS) -> Result:
        """Replace a file while the server asks for patience."""
        self.server.plan(Answer(status=429, body=error_body("slow down", "rate_limit_exceeded"),
                                headers=(("retry-after-ms", "700"),)))
        child = self.start_program(*command, env=env)
        self.wait_until(lambda: bool(self.server.posts))
        changed.unlink()
        changed.symlink_to(self.secret)
        return self.finish(child)

    def test_changed_between_two_tries(self) -> None:
        self.file("mask.png", mask_png(64, 64))
        self.file("b.png", OTHER)
        for name in ("in.png", "b.png", "mask.png"):
            with self.fresh(name):
                kept = (self.work / name).read_bytes()
                result = self.change_in_a_pause("edit", *self.access(), "in.png", "a hat", "--image", "b.png", "--mask",
                                                "mask.png", changed=self.work / name)
                self.assert_succeeded(result)
                self.assertEqual(self.files(self.server.posts[-1]), [PNG, OTHER, mask_png(64, 64)])
                self.assertNotIn(b"a private thing", self.bodies())
                (self.work / name).unlink()
                (self.work / name).write_bytes(kept)

    def test_codex_sends_the_copy_too(self) -> None:
        self.write_config({"tokens": {"access_token": KEY, "account_id": "a"}}, path=self.home / ".codex" / "auth.json")
        result = self.change_in_a_pause("edit", "--api", "codex", *self.access(), "in.png", "a hat", changed=self.image,
                                        env={})
        self.assert_succeeded(result)
        sent = self.server.posts[-1].fields["images"][0]["image_url"]
        self.assertEqual(base64.b64decode(sent.partition(",")[2]), PNG)

    def test_runapi_uploads_the_copy_too(self) -> None:
        with RunApiServer(KEY) as server:
            script = self.shell_script("key", f"echo {KEY}\n")
            config = self.write_config({"base_url": server.url, "api": "runapi", "api_key_command": [script]})
            with mock.patch.object(program, "start_curl", side_effect=self.swap_first(program.start_curl)):
                result = self.run_inside("edit", "in.png", "a hat", "--config", config)
            self.assert_succeeded(result)
            sent = b"".join(request.body for request in server.requests)
            self.assertIn(PNG, sent)
            self.assertNotIn(b"a private thing", sent)

    def swap_first(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """curl begins after the file has become a link to a secret."""
        def start(*values: Any) -> Any:
            if not self.image.is_symlink():
                self.image.unlink()
                self.image.symlink_to(self.secret)
            return real(*values)
        return start

    def test_killed_programs_request_has_its_files(self) -> None:
        """Killed just before curl begins; the next run sends the copy that waits, not what the name means now."""
        command = ("edit", *self.access(), "in.png", "a hat", "-o", "hat.png")
        self.assertEqual(self.changed("program.start_curl = die", *command), -9)
        copies = [path for path in self.folder().iterdir() if path.read_bytes() == PNG]
        self.assertEqual(len(copies), 1)
        self.assertEqual(copies[0].stat().st_mode & 0o777, 0o600)
        self.assertNotEqual(copies[0].stat().st_ino, self.image.stat().st_ino)  # a link would change with the file
        self.saved_file(self.run_program(*command, env=ACCESS))
        self.assertEqual((self.files(self.only_post()), self.journal()), ([PNG], []))

    def test_killed_while_it_was_copied(self) -> None:
        """Half a copy is not taken for one."""
        command = ("edit", *self.access(), "in.png", "a hat", "-o", "hat.png")
        lines = "real = os.replace\nos.replace = lambda *names: die() if '/input-' in names[0] else real(*names)"
        self.assertEqual(self.changed(lines, *command), -9)
        part, = self.folder().glob("input-*")
        part.write_bytes(PNG[:50])
        self.saved_file(self.run_program(*command, env=ACCESS))
        self.assertEqual(self.files(self.only_post()), [PNG])

    def test_room_for_the_copies_counts(self) -> None:
        large = plain_png(64, 64, extra=()) + bytes(40_000_000)
        self.file("large.png", large)
        with mock.patch.object(program, "free_bytes", return_value=30_000_000):
            result = self.run_inside("edit", "large.png", "a hat", *self.access(), env=ACCESS)
        self.assertIn("MB are free there", result.stderr)
        with mock.patch.object(program, "free_bytes", return_value=60_000_000):
            result = self.run_inside("edit", "large.png", "a hat", *self.access(), "-o", "x.png", env=ACCESS)
        self.assertNotIn("MB are free there", result.stderr)

    def test_inputs_are_left_alone(self) -> None:
        link = self.work / "link.png"
        link.symlink_to(self.image)
        before = (self.image.stat(), self.image.read_bytes())
        result = self.edit("link.png", "a hat")
        self.assert_succeeded(result)
        self.assertEqual((self.image.stat().st_nlink, self.image.read_bytes()), (before[0].st_nlink, before[1]))
        self.assertEqual(self.files(self.only_post()), [PNG])


@unittest.skipUnless(program.fcntl, "needs flock")
class NoLocksTest(PrivateCase):
    """A file system without locks: everything but collecting works."""

    def setUp(self) -> None:
        super().setUp()
        patch = mock.patch.object(program.fcntl, "flock", side_effect=OSError(errno.ENOLCK, "No locks available"))
        patch.start()
        self.addCleanup(patch.stop)

    def test_every_command_works(self) -> None:
        image = self.file("in.png", PNG)
        self.server.files["a.png"] = PNG
        url = self.server.origin + "/files/a.png"
        for command in (("generate", "a fox"), ("generate", "a fox"), ("edit", image, "a hat"), ("edit", url, "a hat"),
                        ("generate", "a fox", "--stream", "--partial-images", "1"), ("generate", "a fox", "--fresh")):
            with self.subTest(command):
                result = self.run_inside(*command, *self.access(), "-o", "out.png", "--overwrite", env=ACCESS)
                self.assert_succeeded(result)
                self.assertIn("this command is not remembered", result.stderr)
                self.assertEqual(self.journal(), [])
        self.assertEqual(len(self.server.posts), 6)
        self.assertEqual(self.run_inside("config", "--json", env=ACCESS).json["pending"], [])

    def test_faults_are_told_as_ever(self) -> None:
        self.server.plan(Answer(status=400, body=error_body("no", "invalid_value")))
        self.assertEqual(self.generate_inside("a fox").exit_code, 4)
        self.server.plan(Answer(drop="silent"))
        result = self.generate_inside("a fox", "--json")
        self.assertEqual((result.exit_code, result.json["error"]["billed"]), (6, "maybe"))
        self.server.plan(Answer(delay=20))
        result = self.generate_inside("a fox", "--timeout", "1")
        self.assertEqual(result.exit_code, 6, result.stderr)

    def test_locks_that_work_in_the_other_place(self) -> None:
        """A home on such a file system, temporary files on this machine: then those keep the request."""
        real, state = self.flock_of_this_machine(), str(self.home)

        def flock(handle: int, operation: int) -> None:
            if os.readlink(f"{DESCRIPTORS}/{handle}").startswith(state):
                raise OSError(errno.ENOLCK, "No locks available")
            real(handle, operation)
        if not os.path.exists(DESCRIPTORS):
            self.skipTest("needs /proc")
        self.server.plan(Answer(body=json.dumps({"data": [{"url": f"{self.server.origin}/files/no.png"}]}).encode()))
        with mock.patch.object(program.fcntl, "flock", flock), mock.patch.object(self, "assert_no_leftovers"):
            first = self.generate_inside("a fox", "-o", "x.png")
            self.assertEqual(first.exit_code, 7, first.stderr)
            self.server.files["no.png"] = PNG
            self.assert_succeeded(self.generate_inside("a fox", "-o", "x.png"))
        self.assertEqual(len(self.server.posts), 1)

    def test_locks_that_go_away_buy_nothing_twice(self) -> None:
        """A request of another time waits there, and nobody can tell whether a program is at work on it."""
        real = self.flock_of_this_machine()
        self.leave_unfinished()
        for name in (".lock", "owner"):
            def flock(handle: int, operation: int) -> None:
                if os.readlink(f"{DESCRIPTORS}/{handle}").endswith(name):
                    raise OSError(errno.ENOLCK, "No locks available")
                real(handle, operation)
            if not os.path.exists(DESCRIPTORS):
                self.skipTest("needs /proc")
            with mock.patch.object(program.fcntl, "flock", flock):
                result = self.generate_inside("a fox", "-o", "out.png")
            self.assertEqual((result.exit_code, len(self.server.posts)), (3, 1), result.stderr)
            self.assertIn("--fresh", result.stderr)
        self.assert_succeeded(self.again())
        self.assertEqual(len(self.server.posts), 1)

    def flock_of_this_machine(self) -> Callable[[int, int], None]:
        mock.patch.stopall()
        import fcntl
        return fcntl.flock


@unittest.skipUnless(os.path.exists(DESCRIPTORS), "needs /proc")
class CoreFileTest(PrivateCase):
    """No core file, in which the key would be, of the program or of curl."""

    def core_limit(self, pid: int) -> str:
        lines = Path("/proc", str(pid), "limits").read_text().splitlines()
        return next(line for line in lines if line.startswith("Max core file size")).split()[4]

    def test_limits(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if hard == 0:
            self.skipTest("no core files here anyway")
        hold = threading.Event()
        self.server.plan(Answer(event=hold))

        def as_in_a_terminal() -> None:  # a shell lets what it starts in the background ignore this signal
            signal.signal(signal.SIGQUIT, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

        child = subprocess.Popen([sys.executable, str(PROGRAM), "generate", "a fox", *self.access()],
                                 env=self.environment(ACCESS), cwd=str(self.work), stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, start_new_session=True, preexec_fn=as_in_a_terminal)
        self.wait_until(lambda: bool(self.server.posts))
        curl = int(next(self.requests.rglob("1.lock")).read_text())
        self.assertEqual((self.core_limit(child.pid), self.core_limit(curl)), ("0", "0"))
        child.send_signal(signal.SIGQUIT)
        self.finish(child)
        hold.set()
        self.assertEqual(list(self.root.rglob("core*")), [])
        self.assert_succeeded(self.again())
        self.assertEqual(len(self.server.posts), 1)
