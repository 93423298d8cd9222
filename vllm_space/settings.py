"""Environment variables and secrets -> one frozen, typed `Settings`.

The only module that reads the owner's variables; hardware.py reads those of the platform. Each
variable is declared here once: its name, type, bounds, allowed values in words, and meaning. A test
checks the README's tables against these declarations. Imports neither Gradio nor vLLM.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from vllm_space.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "vllm_space" / "demo_model"
DEMO_MODEL_NAME = "vllm-space-demo"
DEFAULT_GPU_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
SHORTEST_MASKED = 6  # characters

Theme = Literal["default", "base", "citrus", "glass", "monochrome", "ocean", "origin", "soft"]

# vLLM flags that this project sets itself: in ENGINE_ARGS they would cut the page off from its
# engine.
OWN_ENGINE_FLAGS = {
    "--host": "the engine listens on 127.0.0.1 only",
    "--port": "use ENGINE_PORT",
    "--api-key": "the engine gets a random key; use API_KEYS for /v1",
    "--model": "use MODEL_ID",
    "--uds": "the engine listens on 127.0.0.1 only",
    "--root-path": "use GRADIO_ROOT_PATH",
    "--ssl-keyfile": "the engine listens on 127.0.0.1 only, without TLS",
    "--ssl-certfile": "the engine listens on 127.0.0.1 only, without TLS",
}


# -- readers: from the text of a variable to its value ---------------------------------------------


def _auto_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def _text_list(value: Any, separator: str) -> Any:
    """A JSON list, or plain items split at `separator`, without blank ones."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError("not a JSON list") from error
    return [item.strip() for item in value.split(separator) if item.strip()]


def _lines(value: Any) -> Any:
    return _text_list(value, "\n")


def _comma_separated(value: Any) -> Any:
    return _text_list(value, ",")


def _stop_sequences(value: Any) -> Any:
    # Not stripped: a stop sequence can be a space or end with one.
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [line for line in value.split("\n") if line]
    return _lines(value)


def _url(value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http or https URL")
        _ = parts.port  # raises ValueError above 65535
    return value


def _urls(value: Any) -> Any:
    """A JSON object of label -> URL."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError("not JSON") from error
    if not isinstance(value, dict) or not all(isinstance(url, str) for url in value.values()):
        raise ValueError("not an object of URLs")
    return {label: _url(url) for label, url in value.items()}


def _origins(value: Any) -> Any:
    origins = _comma_separated(value)
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}".lower():
            raise ValueError(f"{origin} is more than a scheme and a host")
    return origins


def _networks(value: Any) -> Any:
    networks = _comma_separated(value)
    for network in networks:
        if network != "*":
            ipaddress.ip_network(network, strict=False)  # raises ValueError
    return networks


def _engine_flags(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    flags = shlex.split(value)  # raises ValueError if a quote is not closed
    for flag in flags:
        reason = OWN_ENGINE_FLAGS.get(flag.split("=", 1)[0].replace("_", "-"))
        if reason:
            raise ValueError(f"{flag.split('=', 1)[0]} cannot be set here: {reason}")
    return flags


def _secret_list(value: Any) -> Any:
    return [SecretStr(item) if isinstance(item, str) else item for item in _comma_separated(value)]


def _var(default: Any, allowed: str, meaning: str, **bounds: Any) -> Any:
    """Declare a variable: its default, the allowed values in words, and its meaning."""
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **bounds)


# NoDecode: the readers above take plain text as well as JSON; pydantic-settings takes only JSON.
Lines = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_lines)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
StopSequences = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_stop_sequences)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_secret_list)]
Url = Annotated[str, BeforeValidator(_url)]
Urls = Annotated[dict[str, str], NoDecode, BeforeValidator(_urls)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_networks)]
EngineFlags = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_engine_flags)]
AutoInt = Annotated[int | None, BeforeValidator(_auto_is_none)]


class Settings(BaseSettings):
    """Everything the owner can set, in the environment or in `.env` next to app.py.

    An empty value counts as unset.
    """

    model_config = SettingsConfigDict(
        env_file=ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    # -- model -------------------------------------------------------------------------------------
    model_id: str | None = _var(
        None, "a Hub ID such as org/name, or a local path", "Hub ID or local path of the model"
    )
    model_revision: str = _var(
        "main", "a branch, tag or commit", "branch, tag or commit of the model"
    )
    hf_token: SecretStr | None = _var(None, "a Hugging Face token", "for gated and private models")
    model_url: Url | None = _var(
        None,
        "http://host:port, optionally with /v1 or /generate",
        "use this running server instead of starting vLLM",
    )
    model_api_key: SecretStr | None = _var(
        None, "the server's key", "API key of the server at MODEL_URL or of those in MODELS"
    )
    models: Urls = _var({}, 'JSON: {"label": "http://host:port", ...}', "several running servers")

    # -- vLLM --------------------------------------------------------------------------------------
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = _var(
        None, "auto, half, float16, bfloat16, float or float32", "dtype of the weights"
    )
    quantization: str | None = _var(
        None, "a method vLLM supports, such as awq, gptq or fp8", "quantization method"
    )
    max_model_len: AutoInt = _var(
        None, "auto, or an integer ≥ 1", "context length in tokens; auto: what memory allows", ge=1
    )
    gpu_memory_utilization: float | None = _var(
        None, "a number > 0 and ≤ 1", "fraction of GPU memory vLLM may use", gt=0, le=1
    )
    tensor_parallel_size: AutoInt = _var(
        None, "auto, or an integer ≥ 1", "number of GPUs to split the model across", ge=1
    )
    trust_remote_code: bool = _var(
        False, "true or false", "run Python code that comes with the model"
    )
    reasoning_parser: str | None = _var(
        None,
        "a parser of vLLM, such as qwen3",
        "vLLM parser that separates reasoning from the answer",
    )
    tool_call_parser: str | None = _var(
        None, "a parser of vLLM, such as hermes", "vLLM parser for tool calls; enables them"
    )
    engine_args: EngineFlags = _var(
        (),
        "vLLM flags, quoted as in a shell, except " + ", ".join(OWN_ENGINE_FLAGS),
        "extra vLLM flags, appended last so they override",
    )
    engine_module: str = _var(
        "vllm.entrypoints.openai.api_server",
        "a Python module name",
        "server module; `vllm.entrypoints.api_server` is the legacy server of vLLM up to 0.24",
        pattern=r"^[A-Za-z_][\w.]*$",
    )
    engine_port: int = _var(
        8000, "an integer from 1 to 65535", "vLLM's port, on 127.0.0.1 only", ge=1, le=65535
    )
    engine_device: Literal["auto", "cpu"] = _var(
        "auto",
        "auto or cpu",
        "`cpu` runs vLLM on the CPU even if there is a GPU; needs requirements-cpu.txt",
    )
    startup_timeout: int = _var(
        1800,
        "an integer from 1 to 86400",
        "seconds vLLM may take to start",
        ge=1,
        le=86400,
    )
    max_restarts: int = _var(
        3,
        "an integer from 0 to 100",
        "consecutive restarts of vLLM before the Space gives up",
        ge=0,
        le=100,
    )
    request_timeout: float = _var(
        300, "a number from 1 to 86400", "seconds to wait for the next token", ge=1, le=86400
    )

    # -- sampling defaults: an unset one is not sent, so the model's own default applies -----------
    temperature: float | None = _var(
        None, "a number from 0 to 2", "0 always picks the most likely token", ge=0, le=2
    )
    top_p: float | None = _var(None, "a number > 0 and ≤ 1", "nucleus sampling", gt=0, le=1)
    top_k: int | None = _var(
        None,
        "-1 (off), or an integer ≥ 1",
        "sample from the k most likely tokens",
        ge=-1,
        le=10**6,
    )
    min_p: float | None = _var(
        None,
        "a number from 0 to 1",
        "minimum probability, relative to the most likely token",
        ge=0,
        le=1,
    )
    max_tokens: int = _var(
        1024, "an integer from 1 to MAX_TOKENS_LIMIT", "maximum length of an answer in tokens", ge=1
    )
    repetition_penalty: float | None = _var(
        None, "a number > 0 and ≤ 2", "above 1 discourages repetition", gt=0, le=2
    )
    presence_penalty: float | None = _var(
        None, "a number from -2 to 2", "penalty for tokens already used", ge=-2, le=2
    )
    frequency_penalty: float | None = _var(
        None, "a number from -2 to 2", "penalty that grows with each use of a token", ge=-2, le=2
    )
    seed: int | None = _var(None, "an integer ≥ 0", "makes sampling repeatable", ge=0, le=2**63 - 1)
    stop: StopSequences = _var((), "one stop sequence per line, or a JSON list", "stop sequences")
    system_prompt: str = _var("", "any text", "instructions for every conversation")
    max_tokens_limit: int = _var(
        4096,
        "an integer ≥ 1",
        "maximum that a visitor can set for max tokens; if you set it, also a cap on every answer "
        "of /v1",
        ge=1,
    )

    # -- page --------------------------------------------------------------------------------------
    app_title: str = _var("vLLM Space", "any text", "title of the page")
    app_description: str = _var("", "Markdown", "text below the title")
    app_theme: Theme = _var("default", ", ".join(get_args(Theme)), "Gradio theme")
    app_examples: Lines = _var((), "one question per line, or a JSON list", "example questions")
    app_image_origins: Origins = _var(
        (),
        "comma-separated origins such as https://site.example, or *",
        "other sites from which images may be shown",
    )

    # -- sign-in and API ---------------------------------------------------------------------------
    app_username: SecretStr | None = _var(
        None, "a name", "user name of a single login; needs APP_PASSWORD"
    )
    app_password: SecretStr | None = _var(None, "a password", "password of APP_USERNAME")
    app_users: Secrets = _var(
        (), "comma-separated logins such as alice:pw,bob:pw2", "several user names with passwords"
    )
    oauth_allowed: CommaSeparated = _var(
        (),
        "comma-separated users and organisations of the Hub, or *",
        "who can sign in with Hugging Face",
    )
    api_keys: Secrets = _var(
        (), "comma-separated keys; `name:key` labels a key in the log", "API keys for /v1"
    )
    api_rate_limit: int | None = _var(
        None, "an integer ≥ 1", "requests per minute for each API key", ge=1, le=10**6
    )
    api_max_concurrency: int | None = _var(
        None, "an integer ≥ 1", "concurrent requests for each API key", ge=1, le=10**6
    )
    api_cors_origins: Origins = _var(
        (),
        "comma-separated origins such as https://site.example, or *",
        "sites whose scripts may call /v1 from a browser",
    )

    # -- limits ------------------------------------------------------------------------------------
    max_concurrency: int = _var(
        64, "an integer from 1 to 1000", "answers generated at the same time", ge=1, le=1000
    )
    max_queue: int = _var(
        256, "an integer from 1 to 100000", "requests that may wait in the queue", ge=1, le=100_000
    )

    # -- address: Gradio's own names, also set by the flags ----------------------------------------
    gradio_server_name: str = _var(
        "127.0.0.1",
        "an address of this machine",
        "same as `--host`; 0.0.0.0 for all interfaces",
    )
    gradio_server_port: int = _var(
        7860, "an integer from 1 to 65535", "same as `--port`", ge=1, le=65535
    )
    gradio_share: bool = _var(
        False, "true or false", "same as `--share`: create a public gradio.live link"
    )
    forwarded_allow_ips: Networks = _var(
        (),
        "comma-separated addresses or networks such as 127.0.0.1 or 10.0.0.0/8, or *",
        "reverse proxies whose X-Forwarded headers are trusted; a Space's own always is",
    )

    # -- set by start.sh for the processes it starts; not for owners -------------------------------
    engine_run_dir: Path | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _check_combinations(self) -> Settings:
        problems = []
        if self.model_url and self.models:
            problems.append(
                "MODEL_URL and MODELS are both set. Put every server into MODELS, or unset one."
            )
        if (self.app_username is None) != (self.app_password is None):
            missing = "APP_USERNAME" if self.app_username is None else "APP_PASSWORD"
            problems.append(
                f"{missing} is not set. A login needs both APP_USERNAME and APP_PASSWORD."
            )
        if any(not all(user.get_secret_value().partition(":")) for user in self.app_users):
            problems.append(f"APP_USERS is invalid. Use {allowed('app_users')}.")
        if any(not key.get_secret_value().rpartition(":")[2].strip() for key in self.api_keys):
            problems.append(f"API_KEYS is invalid. Use {allowed('api_keys')}.")
        if self.max_tokens > (limit := self.max_tokens_limit):
            if "max_tokens" in self.model_fields_set:
                problems.append(f"MAX_TOKENS={self.max_tokens} exceeds MAX_TOKENS_LIMIT={limit}.")
            self.__dict__["max_tokens"] = limit  # the default yields to the owner's limit
        if problems:
            raise SettingsError("\n".join(problems))
        return self

    @property
    def servers(self) -> dict[str, str]:
        """Label -> URL of the running servers to use; empty if this Space starts vLLM itself."""
        return self.models or ({"": self.model_url} if self.model_url else {})

    @property
    def logins(self) -> dict[str, str]:
        """User name -> password, for every login."""
        pairs = [user.get_secret_value().split(":", 1) for user in self.app_users]
        if self.app_username and self.app_password:
            pairs.append(
                [self.app_username.get_secret_value(), self.app_password.get_secret_value()]
            )
        return {name.strip(): password for name, password in pairs}

    def mask(self, text: str) -> str:
        """`text` with every secret in it replaced by `***`.

        Secrets are the values of all SecretStr settings. If one has a name before a colon
        (`alice:password`), the part after it is masked on its own, too. A secret shorter than
        SHORTEST_MASKED is left alone: it would match ordinary words.
        """
        secrets = set()
        for secret in _secrets_in(vars(self).values()):
            secrets |= {secret, secret.partition(":")[2]}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= SHORTEST_MASKED:
                text = text.replace(secret, "***")
        return text


def _secrets_in(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
        elif isinstance(value, (tuple, list)):
            yield from _secrets_in(value)
        elif isinstance(value, dict):
            yield from _secrets_in(value.values())


VARIABLES: dict[str, Any] = {
    name.upper(): field for name, field in Settings.model_fields.items() if not field.exclude
}  # name of the variable -> pydantic field, for every variable in the README's table

SECRETS = {name for name, field in VARIABLES.items() if "SecretStr" in str(field.annotation)}


def environment_without_secrets() -> dict[str, str]:
    """This process's environment without the owner's secrets."""
    return {name: value for name, value in os.environ.items() if name.upper() not in SECRETS}


def load(argv: list[str] | None = None) -> Settings:
    """Read the settings. `argv` holds app.py's flags, which override the environment.

    Raises SettingsError with one line for each invalid value.
    """
    try:
        return Settings(**_parse_flags(argv or []))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from None


def _parse_flags(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="./start.sh",
        description="Start vLLM and serve a chat page and an OpenAI-compatible API.",
        epilog="Everything else is an environment variable: see the table in README.md.",
    )
    parser.add_argument(
        "--host", dest="gradio_server_name", help="address to listen on (default 127.0.0.1)"
    )
    parser.add_argument(
        "--port", dest="gradio_server_port", help="port to listen on (default 7860)"
    )
    parser.add_argument(
        "--model-url", dest="model_url", help="use this running server instead of starting vLLM"
    )
    parser.add_argument(
        "--share",
        dest="gradio_share",
        action="store_true",
        default=None,
        help="create a public link",
    )
    return {
        name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None
    }


def allowed(name: str) -> str:
    """The allowed values of a variable, in words. `name` is the name of its field."""
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else ""


def _explain(problem: ErrorDetails) -> str:
    """One line: the variable, its value (unless it is a secret) and the allowed values."""
    name = str(problem["loc"][0])
    value = "" if name.upper() in SECRETS else f"={shorten(str(problem['input']))}"
    detail = f" ({problem['ctx']['error']})" if problem["type"] == "value_error" else ""
    return f"{name.upper()}{value} is invalid{detail}. Use {allowed(name)}."


def shorten(text: str, limit: int = 80) -> str:
    """`text` on one line, shortened to `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _dotenv() -> dict[str, str | None]:
    return dotenv_values(ROOT / ".env")


def unknown_names() -> list[str]:
    """A warning for each APP_* or ENGINE_* variable that does not exist, with the nearest match."""
    existing = {name.upper() for name in Settings.model_fields}
    warnings = []
    for name in sorted({*os.environ, *_dotenv()}):
        if name.startswith(("APP_", "ENGINE_")) and name.upper() not in existing:
            nearest = difflib.get_close_matches(name, sorted(existing), n=1, cutoff=0)
            warnings.append(
                f"{name} is set, but there is no such variable. Did you mean {nearest[0]}?"
            )
    return warnings


# Groups of variables in the README: title -> first variable.
GROUPS = {
    "Model": "MODEL_ID",
    "vLLM": "DTYPE",
    "Sampling defaults": "TEMPERATURE",
    "Page": "APP_TITLE",
    "Sign-in and API": "APP_USERNAME",
    "Limits": "MAX_CONCURRENCY",
    "Address": "GRADIO_SERVER_NAME",
}


def table() -> str:
    """The README's tables of variables: `python -m vllm_space.settings` prints them.

    One table for each group, folded, as Markdown with HTML.
    """
    titles = {first: title for title, first in GROUPS.items()}
    lines: list[str] = []
    for name, field in VARIABLES.items():
        if name in titles:
            lines += ["", "</details>", ""] if lines else []
            lines += [f"<details><summary><b>{titles[name]}</b></summary>", ""]
            lines += ["| variable | default | meaning | allowed values |", "|---|---|---|---|"]
        secret = " (secret)" if name in SECRETS else ""
        row = f"{field.description} | {allowed(name.lower())}"
        lines.append(f"| `{name}`{secret} | {_default(field)} | {row} |")
    return "\n".join([*lines, "", "</details>"])


def _default(field: Any) -> str:
    if any(getattr(reader, "func", None) is _auto_is_none for reader in field.metadata):
        return "auto"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default in (None, "", (), {}) else f"{field.default}"


if __name__ == "__main__":
    print(table())
