"""Runs inside a real Hermes and prints what happened there as one line of JSON; the first argument says what to do."""
from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def calls() -> dict[str, Any]:
    """Call the tool image_generate once for each JSON object on standard input; also how the plugin was loaded."""
    import tools.image_generation_tool  # noqa: F401  # registers the tool
    from agent.image_gen_registry import get_provider
    from hermes_cli.plugins import get_plugin_manager
    from tools.registry import registry

    results, seconds = [], []
    for call in json.load(sys.stdin):
        started = time.monotonic()
        results.append(json.loads(registry.dispatch("image_generate", call)))
        seconds.append(round(time.monotonic() - started, 1))
    provider = get_provider("gpt-image2")
    facts = {} if provider is None else {
        "available": provider.is_available(), "models": [model["id"] for model in provider.list_models()],
        "default": provider.default_model(), "capabilities": provider.capabilities(),
        "setup": provider.get_setup_schema()}
    return {"plugins": get_plugin_manager().list_plugins(), "provider": facts, "results": results, "seconds": seconds}


def together(times: str) -> list[Any]:
    """Call the tool with the JSON object on standard input, several times at the same moment."""
    import tools.image_generation_tool  # noqa: F401
    from hermes_cli.plugins import _ensure_plugins_discovered
    from tools.registry import registry

    _ensure_plugins_discovered()
    call, start = json.load(sys.stdin), threading.Barrier(int(times))

    def one(_: int) -> Any:
        start.wait(10)
        return json.loads(registry.dispatch("image_generate", dict(call)))

    with ThreadPoolExecutor(int(times)) as pool:
        return list(pool.map(one, range(int(times))))


def plugin() -> Any:
    """The plugin's module."""
    from hermes_cli.plugins import _ensure_plugins_discovered
    _ensure_plugins_discovered()
    return next(module for module in list(sys.modules.values()) if hasattr(module, "find_config"))


def config() -> list[str]:
    """Endpoint and key, as the program would be given them."""
    found = plugin().find_config()
    return [found.get("base_url", ""), found.get("api_key", "")]


def profiles() -> list[str | None]:
    """The key in a gateway of several profiles: outside of any, and in one that has a key."""
    from agent import secret_scope
    module = plugin()
    secret_scope.set_multiplex_active(True)
    without = module.find_config().get("api_key")
    secret_scope.set_secret_scope({"GPT_IMAGE2_API_KEY": "k-profile"})
    return [without, module.find_config().get("api_key")]


def skills() -> Any:
    """The skills that are found."""
    from tools.skills_tool import skills_list
    return json.loads(skills_list())["skills"]


def guard(folder: str) -> dict[str, Any]:
    """What Hermes' scanner says of a skill's folder."""
    from tools.skills_guard import scan_skill
    result = scan_skill(Path(folder), source="community")
    return {"verdict": result.verdict, "alarms": [
        each.match for each in result.findings
        if each.severity in ("critical", "high") and each.category != "structural"]}


MODES = {"calls": calls, "together": together, "config": config, "profiles": profiles, "skills": skills, "guard": guard}

if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]](*sys.argv[2:]), default=str))
