"""Image backend plugin for Hermes Agent: its image_generate tool makes and edits images with gpt_image2.py.

The program does all the work as a child process, so that no stray output, signal or crash reaches Hermes. Its
settings and the key travel through its standard input, the prompt through a file. Hermes is imported inside
functions only: the folder stays importable without it, and versions of Hermes differ.
"""
from __future__ import annotations

import hashlib
import inspect
import itertools
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
# Names and sizes are those of the backend that comes with Hermes (0.19), so that nothing else changes.
TIERS = {
    "gpt-image-2-low": {"display": "GPT Image 2 (low)", "speed": "~70s", "strengths": "Drafts, lowest cost"},
    "gpt-image-2-medium": {"display": "GPT Image 2 (medium)", "speed": "~2min",
                           "strengths": "Balanced, the default"},
    "gpt-image-2-high": {"display": "GPT Image 2 (high)", "speed": "~5min",
                         "strengths": "Finals, small text"}}
SIZES = {"landscape": "1536x1024", "square": "1024x1024", "portrait": "1024x1536"}
TIME_LIMIT = 390  # seconds; Hermes 0.19 cuts tool calls of a batch off after 420
GRACE = 10  # seconds that a child has to end after it was told to
MAX_NAME = 255  # characters of a path that does not exist; a longer one may be an image, and is not repeated

COLLECT = "Call image_generate again with the same arguments: you get this image, nothing is bought twice."
SET_KEY = ("Set one with: hermes config set GPT_IMAGE2_API_KEY ... (or add a base_url and a key to the model "
           "section of Hermes' configuration).")
ERROR_TYPES = {  # by the program's kind of failure, else by its exit code
    "curl": "missing_dependency", "moderation": "moderation_blocked", "timeout": "timeout",
    "stopped": "timeout", "network": "connection_error", "tls": "connection_error",
    "no_image": "empty_response", "save": "io_error", "broken_image": "invalid_response",
    "web_page": "invalid_response", "place": "invalid_response", "quota": "quota_exceeded",
    "rate_limit": "rate_limited", "interrupted": "timeout", "config": "configuration_error",
    "state": "io_error", "disk": "io_error", "bug": "provider_error", "input": "invalid_image_input",
    "target": "io_error"}
ERROR_TYPES_BY_EXIT = {2: "invalid_argument", 3: "auth_required", 7: "io_error"}
# What the agent should do, by the program's `next`. Its own hints speak of a command line.
ADVICE = {"again": COLLECT,
          "later": "Call image_generate again with exactly the same arguments in a minute or two.",
          "fix": "Change what the message names, then call image_generate again.",
          "ask": "Ask the user before calling image_generate again, which may buy another image.",
          "stop": "Do not call image_generate again; tell the user."}
ADVICE_BY_KIND = {"key": SET_KEY, "moderation": "Reword the prompt; the same one will be refused again.",
                  "state": "Make that folder writable, or change the prompt, which starts a new image.",
                  "interrupted": "Call image_generate again.", "task_failed": "Call image_generate again.",
                  **{kind: program.KINDS[kind].hint for kind in ("quota", "verification", "region", "blocked",
                                                                 "forbidden")}}


# ---- Settings: own ones first, then those that Hermes has for its model ------------------------

def hermes_section(*names: str) -> dict[str, Any]:
    """A section of Hermes' configuration, empty when there is none."""
    try:
        from hermes_cli.config import load_config  # type: ignore[import-not-found]
        node = load_config()
    except Exception:  # a broken configuration is Hermes' to report
        return {}
    node = program.json_path(node, *names)
    return node if isinstance(node, dict) else {}


def variable(name: str) -> str:
    """A variable of the process, Hermes' file of variables or its configuration.

    In a gateway for several profiles only this profile's count: the process holds another one's.
    """
    try:
        from agent import secret_scope  # type: ignore[import-not-found]
        if secret_scope.current_secret_scope() is not None or secret_scope.is_multiplex_active():
            return text_of(secret_scope.get_secret(name)) or text_of(hermes_section().get(name))
    except ImportError:  # before Hermes 0.17
        pass
    except Exception:
        return ""
    try:
        from hermes_cli.config import get_env_value
        value = text_of(get_env_value(name))
    except Exception:
        value = text_of(program.environment(name))
    return value or text_of(hermes_section().get(name))  # where `hermes config set` puts all but keys


def text_of(value: Any) -> str:
    """A text; Hermes leaves `${NAME}` in place when that variable is unset, so that counts as none."""
    text = value.strip() if isinstance(value, str) else ""
    return "" if re.search(r"\$\{[^}]*\}", text) else text


def settings_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """Endpoint, key, protocol and model of a section, as the program's config names them."""
    key_variable = text_of(section.get("key_env")) or text_of(section.get("api_key_env"))
    names = ("base_url", "api", "api_key", "model")
    found: dict[str, Any] = {name: text_of(section.get(name)) for name in names}
    found["api_key"] = found["api_key"] or (variable(key_variable) if key_variable else "")
    found["model"] = "" if found["model"] in TIERS else found["model"]
    found["allow_http"] = section.get("allow_http") is True
    return {name: value for name, value in found.items() if value}


def own_key(config: Mapping[str, Any]) -> str:
    """The key that is meant for this program. It may go to any configured endpoint, but not to one that only
    a vendor's variable names."""
    if protocol(config) != "runapi":
        return variable("GPT_IMAGE2_API_KEY")
    address = config["base_url"]
    stray = address == variable("RUNAPI_BASE_URL") and program.api_of(address) != "runapi"
    return variable("RUNAPI_API_KEY") or ("" if stray else variable("GPT_IMAGE2_API_KEY"))


def default_url(api: str, from_variables: bool = True) -> str:
    """Where a protocol is spoken if only a variable, or nothing, names an address."""
    if (api or "openai") not in program.SERVICES:
        return ""
    service = program.SERVICES[api or "openai"]
    addresses = map(variable, service.address_variables[:1] if from_variables else ())
    return next(filter(None, addresses), service.base_url)


def protocol(config: Mapping[str, Any]) -> str:
    """openai, azure, runapi or codex."""
    return str(config.get("api") or program.api_of(config["base_url"]))


def own_file() -> dict[str, Any]:
    """The program's config file, its key variable looked up as Hermes does. Failure if it cannot be read."""
    path = next((each for each in program.config_locations() if os.path.lexists(each)), "")
    content = program.read_config(path, []) if path else {}
    for name in ("output", "format", "compression", "size", "quality"):  # Hermes decides these
        content.pop(name, None)
    key_variable = content.pop("api_key_env", "")
    key = variable(key_variable) if key_variable else ""
    return {**({"api_key": key} if key else {}), **content}


def find_config() -> dict[str, Any]:
    """The program's config for this call, from the first source that has an endpoint or a key; else empty.

    The sources: image_gen.gpt-image2, the program's file, its variables, Hermes' model, OpenAI's variables. A
    key goes only to the endpoint of its source, except GPT_IMAGE2_API_KEY (and RUNAPI_API_KEY for RunAPI): it
    is meant for any endpoint that the first two name.
    """
    own = settings_of(hermes_section("image_gen", NAME))
    try:
        file = own_file()
    except program.Failure:
        if not {"base_url", "api_key"} <= set(own):
            raise
        file = {}
    openai = {"base_url": variable("OPENAI_BASE_URL") or program.DEFAULT_BASE_URL,
              "api_key": variable("OPENAI_API_KEY")}
    shared = ("model", "timeout", "proxy", "cacert", "allow_http", "history", "max_cost", "price_per_image",
              "background", "moderation")
    common = {name: file[name] for name in shared if name in file}
    common.update({name: own[name] for name in ("model", "allow_http") if name in own})
    for source in (own, file):
        if {"base_url", "api", "api_key", "api_key_command"} & set(source):
            api = source.get("api", "")
            # A key in the file is bound to the address in the file.
            bound = source is file and {"api_key", "api_key_command"} & set(source)
            url = default_url(api, from_variables=not bound)
            config = {"base_url": url, **common, **source}
            return with_key(config, own_key(config), openai)
    own_url = variable("GPT_IMAGE2_BASE_URL")
    ours = {"base_url": own_url or openai["base_url"]}
    if variable("GPT_IMAGE2_API_KEY") or own_url:
        vendor = program.host_of(program.DEFAULT_BASE_URL)
        stray = not own_url and not program.may_go(vendor, openai["base_url"])
        if stray and not openai["api_key"]:
            host = program.host_of(openai["base_url"])
            raise program.Failure(
                "key", f"GPT_IMAGE2_API_KEY is not sent to {host}, which only OPENAI_BASE_URL names",
                "If it belongs there, run: hermes config set GPT_IMAGE2_BASE_URL with that address.")
        return with_key({**common, **ours}, "" if stray else own_key(ours), openai)
    model = settings_of(hermes_section("model"))
    if "base_url" in model and ("api_key" in model or not openai["api_key"]):
        borrowed = {name: model[name] for name in ("base_url", "api_key") if name in model}
        return {**common, **borrowed, "allow_http": True}  # Hermes itself talks to it like that
    return {**common, **openai} if openai["api_key"] else {}


def with_key(config: dict[str, Any], key: str, openai: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a key, if there is one that may go to its endpoint."""
    if "api_key" in config or "api_key_command" in config or protocol(config) == "codex":
        return config
    if not key and program.host_of(config["base_url"]) == program.host_of(openai["base_url"]):
        key = openai["api_key"]
    return {**config, "api_key": key} if key else config


def check_config(config: Mapping[str, Any]) -> None:
    """Raise a Failure if no image can be requested with this config."""
    if not config:
        raise program.Failure("key", "no key for the image endpoint", SET_KEY)
    if not config["base_url"]:
        raise program.setup_failure("base_url is missing")
    if protocol(config) == "codex":
        program.codex_login()
    elif not (config.get("api_key") or config.get("api_key_command")
              or program.is_loopback(config["base_url"])
              or (protocol(config) == "runapi" and program.runapi_tool_key())):
        raise program.Failure("key", f"no key for {program.host_of(config['base_url'])}", SET_KEY)


# ---- One call of the tool ----------------------------------------------------------------------

def tier_of(*names: Any) -> str:
    """The first that is a virtual model; image_gen.model may name another backend's."""
    return next((name for name in names if isinstance(name, str) and name in TIERS), DEFAULT_TIER)


class BadSource(ValueError):
    """An input image that must not be read, or that is not one."""


def sources_of(image_url: Any, references: Any) -> list[str]:
    """The input images in order, however they were given; blank ones do not count."""
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in (image_url, references)]
    given = [item for items in lists for item in items]
    if not all(item is None or isinstance(item, str) for item in given):
        raise BadSource("it must be a text: a URL, a path or a data URL")
    return [item.strip() for item in given if item and item.strip()]


def is_text(text: str) -> bool:
    """Whether there are whole characters only; JSON can hold halves."""
    try:
        return bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def local_source(source: str) -> str:
    """What the program is given for an input image: a URL or a path."""
    if "\0" in source or not is_text(source):
        raise BadSource("it contains a character that no address or path can have")
    scheme, colon, rest = source.partition(":")
    if colon and scheme.lower() in ("http", "https"):
        return scheme.lower() + colon + rest
    if colon and scheme.lower() == "data":
        return data_file(rest)
    path = unquote(urlsplit(source).path) if scheme.lower() == "file" else os.path.expanduser(source)
    if len(path) > MAX_NAME and not os.path.exists(path):
        raise BadSource("neither a URL, a path nor a data URL")
    try:
        from agent.file_safety import raise_if_read_blocked  # type: ignore[import-not-found]
    except ImportError:
        return path
    try:
        raise_if_read_blocked(path)
    except ValueError as error:
        raise BadSource(str(error)) from None
    return path


def data_file(data: str) -> str:
    """A data URL's image as a file in Hermes' cache: it must outlast this call, which may end before curl."""
    digest = hashlib.sha256(data.encode("utf-8", "replace")).hexdigest()
    path = image_cache() / f"{NAME}_input_{digest[:24]}"
    part = f"{path}.{os.urandom(4).hex()}.part"
    try:
        with open(part, "wb") as stream:
            program.copy_image(program.Image(base64="data:" + data), stream)
        os.replace(part, str(path))
    except program.Failure:
        raise BadSource("the data URL does not contain base64") from None
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return str(path)


def image_cache() -> Path:
    """The folder whose files every chat platform may send; Hermes empties it by itself."""
    from hermes_constants import get_hermes_home  # type: ignore[import-not-found]
    folder = Path(get_hermes_home()).absolute() / "cache" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(str(folder), os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder


def run_program(arguments: Sequence[str], config: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The program's JSON result. When time is up the program ends; its request can still be collected."""
    script = str(Path(program.__file__).absolute())
    child = subprocess.Popen(
        [sys.executable or "python3", script, *arguments, "--config", "-", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env=program.child_environment([config["api_key"]] if config.get("api_key") else []))
    in_time = True
    try:
        output = child.communicate(json.dumps(config).encode(), timeout=max(1.0, seconds))[0]
    except subprocess.TimeoutExpired:
        in_time, output = False, last_words(child)
    finally:
        if child.poll() is None:
            child.terminate()
    try:
        return {**json.loads(output), "exit_code": child.returncode}
    except ValueError:
        if in_time:
            raise program.Failure("bug", f"the image program died (exit code {child.returncode})", COLLECT,
                                  "maybe") from None
        raise program.Failure("timeout", "the time limit was reached", COLLECT) from None


def last_words(child: subprocess.Popen[bytes]) -> bytes:
    """The rest of a child's output after it was told to end; one that does not end is killed."""
    child.terminate()
    try:
        return child.communicate(timeout=GRACE)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        return child.communicate()[0]


def picture_of(*call: Any) -> Path:
    """Where the picture of a call goes. Equal calls share it until Hermes has it, so that it is made once."""
    digest = hashlib.sha256(json.dumps(call).encode()).hexdigest()[:16]
    pictures = (image_cache() / f"{NAME}_{digest}-{number}.png" for number in itertools.count(1))
    return next(path for path in pictures if not delivery_of(path).exists())


def delivery_of(picture: Path) -> Path:
    """The file that says that Hermes has this picture: an equal call makes another one from then on."""
    return picture.with_suffix(".delivered")


def make_image(prompt: str, size: str, quality: str, sources: Sequence[str], path: Path,
               deadline: float) -> dict[str, Any]:
    """The program's result for one picture. deadline: in seconds of time.monotonic()."""
    config = find_config()
    check_config(config)
    inputs = [f"--image={local_source(source)}" for source in sources]
    with tempfile.TemporaryDirectory(prefix=NAME + "-") as folder:
        text = os.path.join(folder, "prompt")
        with open(text, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(prompt)
        arguments = ["edit" if sources else "generate", *inputs, f"--prompt-file={text}", f"--size={size}",
                     f"--output={path}"]
        if protocol(config) != "runapi":  # which has no such parameter
            arguments.append(f"--quality={quality}")
        return run_program(arguments, config, deadline - time.monotonic())


def error_of(kind: str, message: str, advice: str, billed: str, exit_code: int) -> dict[str, str]:
    """Message and type of a failure of the program, in words that fit a tool call."""
    error_type = ERROR_TYPES.get(kind) or ERROR_TYPES_BY_EXIT.get(exit_code, "api_error")
    if kind == "stopped":
        message = "the image is ready" if billed == "yes" else "the image is still being made"
    message = re.sub(r"[A-Za-z0-9+/_=-]{200,}", "...", message)  # perhaps a picture
    money = {"maybe": " The image may have been billed.", "yes": " The image was billed."}.get(billed, "")
    return {"error": f"{message.rstrip('.')}.{money} {advice}".strip(), "error_type": error_type}


def failure_of(error: Exception) -> dict[str, str]:
    """The same for an exception, cleaned as the program cleans what it says."""
    if isinstance(error, program.Failure):
        # A config's hint names the command line; the others were written for this tool.
        advice = ADVICE["fix"] if error.kind == "config" else error.hint
        answer = error_of(error.kind, error.message, advice, error.billed, error.exit_code)
    elif isinstance(error, BadSource):
        answer = {"error": f"an input image cannot be used: {error}", "error_type": "invalid_image_input"}
    else:
        error_type = "io_error" if isinstance(error, OSError) else "provider_error"
        answer = {"error": f"{type(error).__name__}: {error}", "error_type": error_type}
    secrets = program.Secrets(filter(None, map(variable, program.KEY_VARIABLES)))
    return {**answer, "error": secrets.clean(answer["error"])}


def time_limit(section: Mapping[str, Any]) -> float:
    """Seconds that one call may take; shorter ones are for front ends with less patience."""
    wanted = section.get("timeout")
    return float(min(wanted, TIME_LIMIT)) if isinstance(wanted, (int, float)) and wanted > 1 else TIME_LIMIT


def answer_call(hermes: ModuleType, facts: dict[str, str], image_url: Any, references: Any) -> dict[str, Any]:
    """Hermes' answer to one call of the tool. facts: what every answer repeats."""
    section = hermes_section("image_gen", NAME)
    deadline = time.monotonic() + time_limit(section)
    facts["model"] = tier_of(section.get("model"), facts["model"], hermes_section("image_gen").get("model"))
    size, quality = SIZES[facts["aspect_ratio"]], facts["model"].rpartition("-")[2]
    sources = sources_of(image_url, references)
    path = picture_of(facts["prompt"], size, quality, sources)
    result = make_image(facts["prompt"], size, quality, sources[:program.MAX_IMAGES], path, deadline)
    if not result["ok"]:
        error = result["error"]
        advice = ADVICE_BY_KIND.get(error["kind"]) or ADVICE[error["next"]]
        answer = error_of(error["kind"], error["message"], advice, error["billed"], result["exit_code"])
        return dict(hermes.error_response(**answer, **facts))
    saved = result["saved"][0]
    if len(sources) > program.MAX_IMAGES:
        result["warnings"].append(
            f"only the first {program.MAX_IMAGES} of {len(sources)} input images were used")
    delivery_of(path).touch()
    names = ("source", "usage", "cost_usd", "request_id", "warnings")
    more = {name: result[name] for name in names if result[name]}
    if "modality" in inspect.signature(hermes.success_response).parameters:  # since Hermes 0.17
        facts["modality"] = "image" if sources else "text"
    extra = {"size": f"{saved['width']}x{saved['height']}", "quality": quality, **more}
    return dict(hermes.success_response(image=saved["path"], extra=extra, **facts))


def has_key() -> bool:
    """Whether a call could be paid for."""
    try:
        check_config(find_config())
    except Exception:
        return False
    return True


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
            """Whether curl and a key are there."""
            return shutil.which("curl") is not None and has_key()

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
            """Hermes asks for a key only if there is none."""
            variables = [{"key": "GPT_IMAGE2_API_KEY", "prompt": "API key of the image endpoint",
                          "url": "https://platform.openai.com/api-keys"}]
            return {"name": self.display_name, "badge": "paid", "env_vars": [] if has_key() else variables,
                    "tag": "gpt-image-2 through any OpenAI-compatible endpoint; makes and edits images"}

        def generate(self, prompt: str = "", aspect_ratio: str = "landscape", *, image_url: str | None = None,
                     reference_image_urls: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
            """One image, made or edited; never an exception."""
            facts = {"provider": NAME, "model": kwargs.get("model") or "",
                     "prompt": str(prompt or "").strip(),
                     "aspect_ratio": hermes.resolve_aspect_ratio(aspect_ratio)}
            try:
                return answer_call(hermes, facts, image_url, reference_image_urls)
            except Exception as error:
                facts.pop("modality", None)
                facts["model"] = tier_of(facts["model"])
                return dict(hermes.error_response(**facts, **failure_of(error)))

    return Provider()


def register(ctx: Any) -> None:
    """Called by Hermes when the plugin is loaded."""
    from agent import image_gen_provider
    ctx.register_image_gen_provider(make_provider(image_gen_provider))
