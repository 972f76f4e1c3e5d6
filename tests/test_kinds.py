"""Every kind of failure stands in one table; who decides about a failure decides by its fields, never by its words."""
from __future__ import annotations

import ast
import json
import os
import re
import unittest
from pathlib import Path
from typing import Any

from support import PROGRAM, ProgramCase, program
from test_private_files import PrivateCase

SOURCE = ast.parse(PROGRAM.read_text(encoding="utf-8"))
README = (PROGRAM.parent.parent / "README.md").read_text(encoding="utf-8")


class KindTableTest(unittest.TestCase):
    """The table itself, and everything that refers to it."""

    def test_readme_lists_each_kind_with_its_fields(self) -> None:
        listed = {}
        for names, *fields in re.findall(r"^\| (`.*`) \| (\d+) \| (no|maybe|yes) \| (\w+) \|$", README, re.MULTILINE):
            for name in re.findall(r"`(\w+)`", names):
                listed[name] = (int(fields[0]), fields[1], fields[2])
        self.assertEqual(listed, {name: kind[:3] for name, kind in program.KINDS.items()})

    def test_fields_have_the_values_that_readme_explains(self) -> None:
        for name, kind in program.KINDS.items():
            with self.subTest(name):
                self.assertIn(kind.next, ("fix", "again", "later", "ask", "stop"))
                self.assertIn(kind.billed, ("no", "maybe", "yes"))
                if kind.retryable:
                    self.assertEqual((kind.billed, kind.next), ("no", "later"))

    def test_other_tables_name_kinds_that_exist(self) -> None:
        named = set(program.CURL_KINDS.values())
        named |= {purpose for purpose, rules in program.PURPOSES.items() if rules.cannot}
        named |= set(program.UNREAD_KINDS)
        self.assertEqual(named - set(program.KINDS), set())

    def test_each_failure_is_made_of_a_kind_in_the_table(self) -> None:
        made = {call.args[0].value for call in ast.walk(SOURCE) if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name) and call.func.id == "Failure"
                and call.args and isinstance(call.args[0], ast.Constant)}
        self.assertGreater(len(made), 8)
        self.assertEqual(made - set(program.KINDS), set())

    def test_collectable_failure_says_again_whatever_its_kind(self) -> None:
        failure = program.Failure("timeout", "x", collectable=True)
        self.assertEqual((failure.next, failure.billed), ("again", "maybe"))
        failure.collectable = False
        self.assertEqual(failure.next, "ask")


class OneOwnerTest(unittest.TestCase):
    """`billed` is decided in one function, and a failure's words decide nothing."""

    def test_billed_is_assigned_in_one_place(self) -> None:
        places = []
        for function in ast.walk(SOURCE):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    targets = node.targets if isinstance(node, ast.Assign) else []
                    names = [name for target in targets for name in ast.walk(target)]
                    if any(isinstance(name, ast.Attribute) and name.attr == "billed" for name in names):
                        places.append(function.name)
        self.assertEqual(sorted(places), ["__init__", "run_job"])

    def test_plugin_matches_no_words_of_a_failure(self) -> None:
        plugin = ast.parse((PROGRAM.parent / "__init__.py").read_text(encoding="utf-8"))
        (function,) = (node for node in plugin.body if isinstance(node, ast.FunctionDef) and node.name == "error_of")
        matched = [call.func.attr for call in ast.walk(function) if isinstance(call, ast.Call)
                   and isinstance(call.func, ast.Attribute)]
        self.assertEqual(set(matched) - {"get", "sub", "rstrip", "strip"}, set())


class NextStepTest(ProgramCase):
    """What the caller is told to do, through the front door."""

    def error(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """The error of a command that fails."""
        result = self.generate("a fox", *arguments, "--json", **options)
        self.assertFalse(result.json["ok"])
        return dict(result.json["error"])

    def test_next_follows_from_what_happened(self) -> None:
        for arguments, kind, following in (
                (("--size", "7x7"), "usage", "fix"), (("-o", "/dev/null/a.png"), "target", "fix"),
                (("--base-url", "http://127.0.0.1:1/v1"), "network", "later")):
            with self.subTest(kind):
                error = self.error(*arguments)
                self.assertEqual((error["kind"], error["next"], error["billed"]), (kind, following, "no"))
        self.assertEqual(self.server.posts, [])

    def test_image_that_cannot_be_used(self) -> None:
        (self.work / "a.png").write_bytes(b"no picture")
        for image in ("a.png", "gone.png", "http://127.0.0.1:1/a.png", "data:image/png;base64,QUJD"):
            with self.subTest(image):
                result = self.run_inside("edit", image, "a hat", *self.access(), "--json")
                error = result.json["error"]
                self.assertEqual((result.exit_code, error["kind"], error["next"]), (2, "input", "fix"), error)


class NewerSchemaTest(PrivateCase):
    """A folder of a newer version of the program is left alone by this one, and said so."""

    def make_newer(self) -> Path:
        """An unfinished request whose record says that a newer version wrote it."""
        self.leave_unfinished()
        record = json.loads((self.folder() / "request.json").read_text())
        self.assertEqual(record["schema"], program.SCHEMA)
        (self.folder() / "request.json").write_text(json.dumps({**record, "schema": program.SCHEMA + 1}))
        return self.folder()

    def test_it_is_not_collected(self) -> None:
        folder = self.make_newer()
        before = sorted(os.listdir(str(folder)))
        result = self.again()
        self.saved_file(result)
        self.assertIn("newer version", result.stderr)
        self.assertEqual(len(self.server.posts), 2)
        self.assertEqual(sorted(os.listdir(str(folder))), before)

    def test_fresh_does_not_remove_it(self) -> None:
        folder = self.make_newer()
        (folder / "droppable").touch()
        self.saved_file(self.again("--fresh"))
        self.assertTrue(folder.is_dir())

    def test_age_does_not_remove_it(self) -> None:
        folder = self.make_newer()
        os.utime(str(folder), (0, 0))
        self.saved_file(self.again())
        self.assertTrue(folder.is_dir())

    def test_config_does_not_list_it(self) -> None:
        self.make_newer()
        self.assertEqual(self.run_program("config", "--json").json["pending"], [])


if __name__ == "__main__":
    unittest.main()
