"""What the checks of all clients share: installing them into .clients/, and a home with a copy of this project."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Sequence

from api_server import ApiServer, sniff
from support import KEY, World

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
CLIENTS = PROJECT / ".clients"
SKILL = "gpt-image-2-api"
README = (PROJECT / "README.md").read_text(encoding="utf-8")
NODE_PACKAGE = "node@26.10.0"
NODE_VERSION = (24, 16)  # what openclaw asks for; from 26.1 on again
INSTALL_SECONDS, RUN_SECONDS = 900, 180
FAILED_INSTALLS: dict[str, str] = {}  # tried once in a run


# ---- Installing ---------------------------------------------------------------------------------------------

def run(command: Sequence[object], timeout: float = RUN_SECONDS, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output as text."""
    return subprocess.run([str(word) for word in command], timeout=timeout, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in
                          options else None, encoding="utf-8", errors="replace", **options)


def install(name: str, *commands: Sequence[object]) -> Path:
    """The folder below .clients/ that these commands fill; they run in it, once. SkipTest when one fails."""
    folder = CLIENTS / name
    if name in FAILED_INSTALLS:
        raise unittest.SkipTest(FAILED_INSTALLS[name])
    if not (folder / "done").exists():
        shutil.rmtree(str(folder), ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands:
            try:
                result = run(command, INSTALL_SECONDS, cwd=str(folder))
                lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
                problem = (lines or ["no word"])[-1] if result.returncode else ""
            except (OSError, subprocess.TimeoutExpired) as error:
                problem = str(error)
            if problem:
                FAILED_INSTALLS[name] = f"cannot be installed: {problem[:200]}"
                raise unittest.SkipTest(FAILED_INSTALLS[name])
        (folder / "done").touch()
    return folder


def python_packages(name: str, *packages: str) -> Path:
    """The bin folder of a virtual environment with these packages."""
    pip = [str(CLIENTS / name / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if sys.version_info < (3, 11):
        raise unittest.SkipTest("needs Python 3.11 or newer")
    return install(name, [sys.executable, "-m", "venv", "."], [*pip, *packages]) / "bin"


def node_packages(*packages: str) -> Path:
    """The node_modules folder with these packages; no install script runs."""
    if not shutil.which("npm"):
        raise unittest.SkipTest("needs npm")
    name = re.sub(r"[^a-z0-9.]+", "-", packages[0]).strip("-")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", ".", *packages]
    return install(name, command) / "node_modules"


def node() -> str:
    """A Node.js that is new enough for all of them."""
    found = shutil.which("node")
    version = tuple(map(int, re.findall(r"\d+", run(["node", "--version"]).stdout)[:2])) if found else (0, 0)
    if found and version >= NODE_VERSION:
        return found
    if not shutil.which("npm"):
        raise unittest.SkipTest("needs Node.js 24.16 or newer, or npm to install it")
    folder = install("node", ["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", NODE_PACKAGE])
    return str(folder / "node_modules" / "node" / "bin" / "node")


# ---- What all checks share ----------------------------------------------------------------------------------

class ClientCase(unittest.TestCase):
    """A home of its own, a copy of this project under the skill's name, and the loopback API."""
    client = version = ""

    def setUp(self) -> None:
        root = Path(os.path.realpath(tempfile.mkdtemp(prefix="gpt-image2-clients-")))
        self.addCleanup(shutil.rmtree, str(root), True)
        self.api = self.enter(ApiServer(KEY))
        self.world = World(root, self.api)
        self.root, self.home, self.work = root, self.world.home, self.world.work
        self.skill = root / SKILL
        copy_project(self.skill)

    def enter(self, server: Any) -> Any:
        """Keep a server running until the end of the test."""
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server

    def environment(self, **extra: str) -> dict[str, str]:
        """As little as possible of this machine's environment."""
        return self.world.environment({"DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1", **extra})

    def run_client(self, *command: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a client in the working folder; it must end well."""
        options = {"cwd": str(self.work), "env": self.environment(), **options}
        result = run(command, **options)
        self.assertEqual(result.returncode, 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
        return result

    def assert_picture(self, path: str | Path, size: tuple[int, int] | None = None) -> None:
        """Fail unless there is a whole picture at an absolute path."""
        self.assertTrue(os.path.isabs(str(path)), path)
        content = Path(path).read_bytes()
        self.assertIsNotNone(sniff(content))
        if size:
            self.assertEqual(sniff(content)[1:], size)


def copy_project(target: Path) -> None:
    """The files that git knows, or everything that no tool has made."""
    if not (PROJECT / ".git").exists() or not shutil.which("git"):
        shutil.copytree(str(PROJECT), str(target), ignore=shutil.ignore_patterns(
            ".git", ".venv", ".clients", ".chroots", "__pycache__", ".*_cache"))
        return
    listed = run(["git", "ls-files", "-z"], cwd=str(PROJECT))
    assert not listed.returncode, listed.stderr
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(PROJECT / name), str(target / name))


def saved_path(output: str) -> str:
    """The path that an agent reads from the program's output."""
    match = re.search(r"^Saved: (.*) \(\d+ KB\)$", output, re.MULTILINE)
    return match.group(1) if match else ""
