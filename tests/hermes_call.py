"""Runs inside a real Hermes: calls its image_generate tool once for each JSON object on standard input.

Prints one JSON object: how the plugin was loaded, what the provider says of itself, and the tool's results.
"""
from __future__ import annotations

import json
import sys
import time


def main() -> int:
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
    print(json.dumps({"plugins": get_plugin_manager().list_plugins(), "provider": facts, "results": results,
                      "seconds": seconds}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
