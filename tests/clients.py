"""The skill and the plugin in the real clients, each installed into .clients/ and fed from servers on this machine.

    python3 tests/clients.py                       everything, with a table at the end
    python3 tests/clients.py HermesTest SkillsRef  only what begins with one of these

A client that cannot be installed is SKIPPED with the reason. Only installing needs a network.
"""
from __future__ import annotations

import sys
import unittest
from typing import Any, Sequence

import clients_coding_agents
import clients_gallery
import clients_hermes
import clients_masks
import clients_once
import clients_openclaw
import clients_published
import clients_terminal

MODULES = (clients_hermes, clients_openclaw, clients_published, clients_coding_agents, clients_once, clients_terminal,
           clients_gallery, clients_masks)


class TableResult(unittest.TextTestResult):
    """Also counts by client."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.passed: dict[tuple[str, str], int] = {}
        self.skipped_because: dict[tuple[str, str], str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        """One more that holds."""
        super().addSuccess(test)
        name = (getattr(test, "client", ""), getattr(test, "version", ""))
        self.passed[name] = self.passed.get(name, 0) + 1

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        """Not installed here."""
        super().addSkip(test, reason)
        self.skipped_because[getattr(test, "client", ""), getattr(test, "version", "")] = reason

    def table(self) -> str:
        """One line for each client, in Markdown."""
        failed: dict[tuple[str, str], int] = {}
        for test, _ in self.failures + self.errors:
            case = getattr(test, "test_case", test)
            name = (getattr(case, "client", "?"), getattr(case, "version", ""))
            failed[name] = failed.get(name, 0) + 1
        rows = ["| client | version | result |", "|---|---|---|"]
        for name in sorted({*self.passed, *self.skipped_because, *failed}):
            words = [f"{self.passed[name]} passed" if name in self.passed else "",
                     f"{failed[name]} FAILED" if name in failed else "",
                     f"SKIPPED: {self.skipped_because[name]}" if name in self.skipped_because else ""]
            rows.append(f"| {name[0]} | {name[1]} | {', '.join(filter(None, words))} |")
        return "\n".join(rows)


def main(names: Sequence[str]) -> int:
    """Run the checks whose class begins with one of the names, all when there is none."""
    suites = [suite for module in MODULES for suite in unittest.defaultTestLoader.loadTestsFromModule(module)]
    cases = [case for suite in suites for case in suite  # type: ignore[union-attr]
             if not names or type(case).__name__.startswith(tuple(names))]
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=TableResult)
    result = runner.run(unittest.TestSuite(cases))
    assert isinstance(result, TableResult)
    print(result.table())
    return 0 if result.wasSuccessful() and cases else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
