"""Image backend plugin for Hermes Agent: lets its image_generate tool make and edit images with gpt_image2.py.

Everything of substance is done by that program, as a child process: no stray output, signal or crash reaches
Hermes. Settings with the key travel through the child's standard input, the prompt through a file. Hermes itself
is imported inside functions only: the folder stays importable without it, and old and new versions differ.
"""
from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from . import gpt_image2 as program

NAME = "gpt-image2"
DEFAULT_TIER = "gpt-image-2-medium"
# Names and sizes of the backend that comes with Hermes (0.19), so that a change of backend changes nothing else.
TIERS = {
    "gpt-image-2-low": {"display": "GPT Image 2 (low)", "speed": "~70s", "strengths": "Drafts, lowest cost"},
    "gpt-image-2-medium": {"display": "GPT Image 2 (medium)", "speed": "~2min", "strengths": "Balanced, the default"},
    "gpt-image-2-high": {"display": "GPT Image 2 (high)", "speed": "~5min", "strengths": "Finals, small text"}}
SIZES = {"landscape": "1536x1024", "square": "1024x1024", "portrait": "1024x1536"}
TIME_LIMIT = 390  # seconds; Hermes 0.19 cuts tool calls of a batch off after 420
GRACE = 10  # seconds that a child has to end after it was asked to

COLLECT = "Call image_generate again with exactly the same arguments: the image is collected, not bought twice."
SET_KEY = ("Set one with: hermes config set GPT_IMAGE2_API_KEY ... (or give the model section of Hermes' configuration "
           "a base_url and a key).")
ERROR_TYPES = {  # by the program's kind of failure, else by its exit code
    "curl": "missing_dependency", "moderation": "moderation_blocked", "timeout": "timeout", "stopped": "timeout",
    "network": "connection_error", "tls": "connection_error", "no_image": "empty_response", "save": "io_error",
    "broken_image": "invalid_response", "web_page": "invalid_response", "quota": "quota_exceeded",
    "rate_limit": "rate_limited"}
ERROR_TYPES_BY_EXIT = {2: "invalid_argument", 3: "auth_required", 7: "io_error"}


# ---- Settings: own ones first, then those that Hermes has for its model -------------------------------------

def hermes_section(*names: str) -> dict[str, Any]:
    """A section of Hermes' configuration, empty when there is none."""
    try:
        from hermes_cli.config import load_config  # type: ignore[import-not-found]
        node = load_config()
    except Exception:  # a broken configuration is Hermes' to report
        return {}
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def variable(name: str) -> str:
    """A variable of the process or of Hermes' own file of variables."""
    try:
        from hermes_cli.config import get_env_value
        return text_of(get_env_value(name))
    except Exception:
        return program.environment(name)


def text_of(value: Any) -> str:
    """A text; Hermes leaves `${NAME}` in place when that variable is unset, so that counts as none."""
    text = value.strip() if isinstance(value, str) else ""
    return "" if re.search(r"\$\{\w*\}", text) else text


def flags_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """Endpoint, key, protocol and model of a section, as if they were options of the program."""
    key_variable = text_of(section.get("key_env")) or text_of(section.get("api_key_env"))
    flags = {"base_url": text_of(section.get("base_url")), "api": text_of(section.get("api")),
             "api_key": text_of(section.get("api_key")) or (variable(key_variable) if key_variable else ""),
             "model": text_of(section.get("model"))}
    return {name: value for name, value in flags.items() if value and value not in TIERS}


def find_settings() -> program.Settings:
    """image_gen.gpt-image2, else the program's own settings, else Hermes' model, else OPENAI_*.

    Endpoint and key always come from the same place, so that no key reaches an endpoint it was not made for.
    """
    own = flags_of(hermes_section("image_gen", NAME))
    ours = {"base_url": variable("GPT_IMAGE2_BASE_URL"), "api_key": variable("GPT_IMAGE2_API_KEY")}
    ours = {name: value for name, value in ours.items() if value}
    if own.get("base_url") or own.get("api_key") or own.get("api"):
        key = {} if "api_key" in own or "api_key" not in ours else {"api_key": ours["api_key"]}
        return program.load_settings({**own, **key})
    found = program.load_settings(own)
    if ours and not found.config_path:
        return program.load_settings({**own, **ours})
    if found.base_url.source not in ("default", "$OPENAI_BASE_URL") or any(
            source.source != "$OPENAI_API_KEY" for source in found.keys):
        return found
    section = flags_of(hermes_section("model"))
    borrowed = {**own, **{name: section[name] for name in ("base_url", "api_key") if name in section}}
    keyless = program.is_loopback(borrowed.get("base_url", "")) and not found.keys
    if "base_url" in borrowed and ("api_key" in borrowed or keyless):
        return program.load_settings(borrowed)
    openai_key = variable("OPENAI_API_KEY")
    if openai_key and not found.keys:  # known to Hermes only
        return program.load_settings({**own, "api_key": openai_key, "base_url": variable("OPENAI_BASE_URL") or None})
    return found


def piped_config(settings: program.Settings) -> dict[str, Any]:
    """The settings as the program reads them from its standard input."""
    names = ("api", "base_url", "model", "timeout", "headers", "proxy", "cacert", "allow_http", "poll_url")
    config = {name: getattr(settings, name).value for name in names}
    key = program.choose_key(settings)
    if key and key.command:
        config["api_key_command"] = list(key.command)
    elif key and settings.api.value != "codex":  # the program reads that sign-in itself
        config["api_key"] = key.value
    return config


# ---- One call of the tool -----------------------------------------------------------------------------------

def tier_of(*names: Any) -> str:
    """The first that is a virtual model; image_gen.model may name another backend's."""
    return next((name for name in names if isinstance(name, str) and name in TIERS), DEFAULT_TIER)


def sources_of(image_url: Any, references: Any) -> list[str]:
    """The input images in order, however they were given."""
    listed = references if isinstance(references, (list, tuple)) else [references]
    texts = [item.strip() for item in (image_url, *listed) if isinstance(item, str) and item.strip()]
    return texts[:program.MAX_IMAGES]


def local_source(source: str, folder: str, number: int) -> str:
    """What the program is given for an input image: a URL or a path. ValueError when it must not be read."""
    if re.match(r"(?i)https?://", source):
        return source
    if source.startswith("data:"):
        path = os.path.join(folder, f"input-{number}")
        try:
            with open(path, "wb") as stream:
                program.copy_image(program.Image(base64=source), stream)
        except program.Failure:
            raise ValueError("the data URL holds no base64") from None
        return path
    path = unquote(urlsplit(source).path) if source.startswith("file://") else os.path.expanduser(source)
    try:
        from agent.file_safety import raise_if_read_blocked  # type: ignore[import-not-found]
    except ImportError:
        return path
    raise_if_read_blocked(path)
    return path


def target_path() -> str:
    """A new file name in Hermes' image cache, whose files every chat platform may send."""
    from hermes_constants import get_hermes_home  # type: ignore[import-not-found]
    name = f"{NAME}_{time.strftime('%Y%m%d_%H%M%S')}_{os.urandom(4).hex()}.png"
    return str(Path(get_hermes_home()).absolute() / "cache" / "images" / name)


def run_program(arguments: Sequence[str], config: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The program's JSON result. When time is up the program ends, but its request goes on and can be collected."""
    secrets = [config[name] for name in ("api_key",) if config.get(name)]
    child = subprocess.Popen(
        [sys.executable or "python3", str(Path(program.__file__).absolute()), *arguments, "--config", "-", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=program.child_environment(secrets), start_new_session=True)
    try:
        output = child.communicate(json.dumps(config).encode(), timeout=max(1.0, seconds))[0]
    except subprocess.TimeoutExpired:
        child.terminate()
        output = child.communicate(timeout=GRACE)[0]
    finally:
        if child.poll() is None:
            child.terminate()
    return {**json.loads(output), "exit_code": child.returncode}


def make_image(prompt: str, size: str, quality: str, sources: Sequence[str], settings: program.Settings,
               deadline: float) -> dict[str, Any]:
    """The program's result for one picture in Hermes' cache. deadline: in seconds of time.monotonic()."""
    with tempfile.TemporaryDirectory(prefix=NAME + "-") as folder:
        text = os.path.join(folder, "prompt")
        with open(text, "w", encoding="utf-8") as stream:
            stream.write(prompt)
        inputs = [f"--image={local_source(source, folder, number)}" for number, source in enumerate(sources)]
        arguments = ["edit" if sources else "generate", *inputs, f"--prompt-file={text}", f"--size={size}",
                     f"--output={target_path()}"]
        if settings.api.value != "runapi":  # which has no such parameter
            arguments.append(f"--quality={quality}")
        return run_program(arguments, piped_config(settings), deadline - time.monotonic())


def error_of(kind: str, message: str, hint: str, billed: str, exit_code: int) -> dict[str, str]:
    """Message and type of a failure of the program, in words that fit a tool call."""
    if kind == "stopped":
        message, hint = "the image is still being made", COLLECT
    money = {"maybe": " The image may have been billed.", "yes": " The image was billed."}.get(billed, "")
    hint = re.sub(r"(?i)\brun (the same|this|the) command again", COLLECT.partition(":")[0], hint)
    error_type = ERROR_TYPES.get(kind) or ERROR_TYPES_BY_EXIT.get(exit_code, "api_error")
    return {"error": f"{message.rstrip('.')}.{money} {hint}".strip(), "error_type": error_type}


def failure_of(error: Exception) -> dict[str, str]:
    """The same for an exception."""
    if isinstance(error, program.Failure):
        hint = SET_KEY if error.kind == "key" else error.hint
        return error_of(error.kind, error.message, hint, error.billed, error.exit_code)
    if isinstance(error, ValueError):  # a picture that must not be read, or no picture at all
        return {"error": f"an input image cannot be used: {error}", "error_type": "invalid_image_input"}
    return {"error": f"{type(error).__name__}: {error}", "error_type": "provider_error"}


def time_limit(section: Mapping[str, Any]) -> float:
    """Seconds that one call may take; shorter ones are for front ends with less patience."""
    asked = section.get("timeout")
    return float(min(asked, TIME_LIMIT)) if isinstance(asked, (int, float)) and asked > 0 else TIME_LIMIT


def answer_call(hermes: ModuleType, facts: dict[str, str], sources: Sequence[str]) -> dict[str, Any]:
    """Hermes' answer to one call of the tool. facts: what every answer repeats."""
    section = hermes_section("image_gen", NAME)
    deadline = time.monotonic() + time_limit(section)
    facts["model"] = tier_of(section.get("model"), facts["model"], hermes_section("image_gen").get("model"))
    size, quality = SIZES[facts["aspect_ratio"]], facts["model"].rpartition("-")[2]
    try:
        result = make_image(facts["prompt"], size, quality, sources, find_settings(), deadline)
    except Exception as exception:
        return dict(hermes.error_response(**failure_of(exception), **facts))
    if not result["ok"]:
        error = result["error"]
        told = error_of(error["kind"], error["message"], error["hint"], error["billed"], result["exit_code"])
        return dict(hermes.error_response(**told, **facts))
    saved = result["saved"][0]
    more = {name: result[name] for name in ("usage", "cost_usd", "request_id", "warnings") if result[name]}
    if "modality" in inspect.signature(hermes.success_response).parameters:  # since Hermes 0.17
        facts["modality"] = "image" if sources else "text"
    extra = {"size": f"{saved['width']}x{saved['height']}", "quality": quality, **more}
    return dict(hermes.success_response(image=saved["path"], extra=extra, **facts))


def make_provider(hermes: ModuleType) -> Any:
    """An instance of the provider; its base class must be the running Hermes' own."""

    class Provider(hermes.ImageGenProvider):  # type: ignore[name-defined, misc]
        """gpt-image-2 at three qualities, on whatever endpoint is configured."""

        @property
        def name(self) -> str:
            """What image_gen.provider is set to."""
            return NAME

        @property
        def display_name(self) -> str:
            """What people see."""
            return "GPT Image 2 (any endpoint)"

        def is_available(self) -> bool:
            """Whether there are curl and a key."""
            try:
                program.choose_key(find_settings())
            except program.Failure:
                return False
            return shutil.which("curl") is not None

        def list_models(self) -> list[dict[str, Any]]:
            """The virtual models: one model at three qualities."""
            return [{"id": tier, **facts, "price": "varies"} for tier, facts in TIERS.items()]

        def default_model(self) -> str:
            """The quality for everyday use."""
            return DEFAULT_TIER

        def capabilities(self) -> dict[str, Any]:
            """Without this the model is told that it cannot edit."""
            return {"modalities": ["text", "image"], "max_reference_images": program.MAX_IMAGES,
                    "max_source_images": program.MAX_IMAGES, "url_input": True}

        def get_setup_schema(self) -> dict[str, Any]:
            """A key is asked for only when none is there."""
            variables = [{"key": "GPT_IMAGE2_API_KEY", "prompt": "API key of the image endpoint",
                          "url": "https://platform.openai.com/api-keys"}]
            return {"name": self.display_name, "badge": "paid", "env_vars": [] if self.is_available() else variables,
                    "tag": "gpt-image-2 through any OpenAI-compatible endpoint; makes and edits images"}

        def generate(self, prompt: str, aspect_ratio: str = "landscape", *, image_url: str | None = None,
                     reference_image_urls: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
            """One image, made or edited; never an exception."""
            facts = {"provider": NAME, "model": kwargs.get("model") or "", "prompt": str(prompt or "").strip(),
                     "aspect_ratio": hermes.resolve_aspect_ratio(aspect_ratio)}
            return answer_call(hermes, facts, sources_of(image_url, reference_image_urls))

    return Provider()


def register(ctx: Any) -> None:
    """Called by Hermes when the plugin is loaded."""
    from agent import image_gen_provider  # type: ignore[import-not-found]
    ctx.register_image_gen_provider(make_provider(image_gen_provider))
