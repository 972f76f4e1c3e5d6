"""The tests themselves: tests/README.md maps promises to classes that exist, whose names are unique."""
from __future__ import annotations

import ast
import re
import unittest
from collections import Counter
from pathlib import Path

from support import LIMITED, NO_ANSWER, REFUSED, SETUP, UNSAVED, USAGE, program

HERE = Path(__file__).resolve().parent
MAP = set(re.findall(r"`(\w+)`", (HERE / "README.md").read_text(encoding="utf-8")))
CLASSES = [(path.stem, node.name) for path in sorted(HERE.glob("*.py"))
           for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]


class TestsAreMappedTest(unittest.TestCase):
    """A promise leads to its proof, and the name of what fails says what is broken."""

    def test_every_name_in_the_map_exists(self) -> None:
        named = {name for name in MAP if name.endswith("Test") or re.match("test_|clients_", name)}
        self.assertGreater(len(named), 50)
        self.assertEqual(named - {name for _, name in CLASSES} - {path.stem for path in HERE.glob("*.py")}, set())

    def test_every_module_with_tests_is_in_the_map(self) -> None:
        unnamed = {module for module, name in CLASSES if name.endswith("Test")}
        unnamed -= MAP | {module for module, name in CLASSES if name in MAP}
        self.assertEqual(unnamed, set())

    def test_class_names_are_unique(self) -> None:
        names = Counter(name for _, name in CLASSES)
        self.assertEqual([name for name, times in names.items() if times > 1], [])

    def test_exit_codes_are_those_that_the_world_knows(self) -> None:
        self.assertEqual((program.OK, program.BUG, USAGE, SETUP, REFUSED, LIMITED, NO_ANSWER, UNSAVED), tuple(range(8)))
