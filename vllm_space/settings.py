"""Environment variables and secrets -> one frozen, typed `Settings`.

The only module that reads the owner's variables (hardware.py reads what the platform says). It knows
nothing of Gradio, HTTP or vLLM. Every variable is declared here once: name, type, bounds, what is
allowed in words, and its meaning; the README's table is held to these declarations by a test.
"""

from __future__ import annotations

import argparse
import difflib
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

# Flags of the engine that this project sets itself: in ENGINE_ARGS they would cut the page off from its engine.
OWN_ENGINE_FLAGS = {
    "--host": "the engine listens on 127.0.0.1 only",
    "--port": "use ENGINE_PORT",
    "--api-key": "the engine's key is made at random; use API_KEYS for /v1",
    "--model": "use MODEL_ID",
    "--uds": "the engine listens on 127.0.0.1 only",
    "--root-path": "use GRADIO_ROOT_PATH",
    "--ssl-keyfile": "the engine listens on 127.0.0.1 only, without TLS",
    "--ssl-certfile": "the engine listens on 127.0.0.1 only, without TLS",
}


# -- readers: from the text of a variable to its value ---------------------------------------------------


def _auto_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def _text_list(value: Any, separator: str) -> Any:
    """JSON list, or plain items split at `separator`; blanks are dropped."""
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


def _commas(value: Any) -> Any:
    return _text_list(value, ",")


def _stop_sequences(value: Any) -> Any:
    # Not stripped: a stop sequence may be a space or end in one.
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [line for line in value.split("\n") if line]
    return _lines(value)


def _url(value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http(s) address")
        _ = parts.port  # raises ValueError beyond 65535
    return value


def _urls(value: Any) -> Any:
    """A JSON object of label -> address."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError("not JSON") from error
    if not isinstance(value, dict) or not all(isinstance(url, str) for url in value.values()):
        raise ValueError("not an object of addresses")
    return {label: _url(url) for label, url in value.items()}


def _origins(value: Any) -> Any:
    origins = _commas(value)
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}".lower():
            raise ValueError(f"{origin} is not the scheme and host of a site alone")
    return origins


def _engine_flags(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    flags = shlex.split(value)  # raises ValueError on an open quote
    for flag in flags:
        reason = OWN_ENGINE_FLAGS.get(flag.split("=", 1)[0].replace("_", "-"))
        if reason:
            raise ValueError(f"{flag.split('=', 1)[0]} is not yours to set here ({reason})")
    return flags


def _secret_list(value: Any) -> Any:
    return [SecretStr(item) if isinstance(item, str) else item for item in _commas(value)]


def _var(default: Any, allowed: str, meaning: str, **bounds: Any) -> Any:
    """Declare one variable: its default, what is allowed (in words, for the error line) and its meaning."""
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **bounds)


# NoDecode: the readers above take plain text as well as JSON, which pydantic-settings alone would refuse.
Lines = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_lines)]
Commas = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_commas)]
StopSequences = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_stop_sequences)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_secret_list)]
Url = Annotated[str, BeforeValidator(_url)]
Urls = Annotated[dict[str, str], NoDecode, BeforeValidator(_urls)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]
EngineFlags = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_engine_flags)]
AutoInt = Annotated[int | None, BeforeValidator(_auto_is_none)]


class Settings(BaseSettings):
    """Everything the owner can set, from the environment or from `.env` beside app.py. An empty value is unset."""

    model_config = SettingsConfigDict(
        env_file=ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    # -- the model -----------------------------------------------------------------------------------
    model_id: str | None = _var(
        None, "a Hub id such as org/name, or a local path", "Hub id or local path"
    )
    model_revision: str = _var(
        "main", "a branch, tag or commit", "branch, tag or commit of the model"
    )
    hf_token: SecretStr | None = _var(None, "a Hugging Face token", "for gated and private models")
    model_url: Url | None = _var(
        None, "http://host:port, or with /v1 or /generate", "use this running server and boot none"
    )
    model_api_key: SecretStr | None = _var(
        None, "the server's key", "key of the server at MODEL_URL or in MODELS"
    )
    models: Urls = _var({}, 'JSON: {"label": "http://host:port", ...}', "several running servers")

    # -- the engine ----------------------------------------------------------------------------------
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = _var(
        None, "auto, half, float16, bfloat16, float or float32", "number format of the weights"
    )
    quantization: str | None = _var(
        None, "a method vLLM knows, such as awq, gptq or fp8", "quantization method"
    )
    max_model_len: AutoInt = _var(
        None, "auto, or tokens from 1", "context length; auto fits it to the memory", ge=1
    )
    gpu_memory_utilization: float | None = _var(
        None,
        "a number above 0, at most 1",
        "part of the GPU memory the engine may take",
        gt=0,
        le=1,
    )
    tensor_parallel_size: AutoInt = _var(
        None, "auto, or GPUs from 1", "GPUs to split the model over", ge=1
    )
    trust_remote_code: bool = _var(
        False, "true or false", "run Python code that comes with the model"
    )
    reasoning_parser: str | None = _var(
        None, "a parser vLLM knows, such as qwen3", "how thinking is told apart"
    )
    tool_call_parser: str | None = _var(
        None, "a parser vLLM knows, such as hermes", "turns tool calling on"
    )
    engine_args: EngineFlags = _var(
        (),
        "vLLM flags, quoted as in a shell, none of " + ", ".join(OWN_ENGINE_FLAGS),
        "more vLLM flags; they win",
    )
    engine_module: str = _var(
        "vllm.entrypoints.openai.api_server",
        "a Python module name",
        "`vllm.entrypoints.api_server` boots the legacy server where vLLM still has it (up to 0.24)",
        pattern=r"^[A-Za-z_][\w.]*$",
    )
    engine_port: int = _var(
        8000, "a port from 1 to 65535", "the engine's port, on 127.0.0.1 only", ge=1, le=65535
    )
    engine_device: Literal["auto", "cpu"] = _var(
        "auto",
        "auto or cpu",
        "`cpu` runs the engine on the CPU even where a GPU is; needs requirements-cpu.txt",
    )
    startup_timeout: int = _var(
        1800, "seconds from 1 to 86400", "seconds the engine may take to start", ge=1, le=86400
    )
    max_restarts: int = _var(
        3, "a number from 0 to 100", "restarts in a row before the Space gives up", ge=0, le=100
    )
    request_timeout: float = _var(
        300,
        "seconds from 1 to 86400",
        "seconds to wait for the engine's next token",
        ge=1,
        le=86400,
    )

    # -- sampling defaults: unset means that the field is not sent and the model's own value holds --------
    temperature: float | None = _var(
        None, "a number from 0 to 2", "0 always takes the likeliest token", ge=0, le=2
    )
    top_p: float | None = _var(None, "a number above 0, at most 1", "nucleus sampling", gt=0, le=1)
    top_k: int | None = _var(
        None, "-1 (off) or a number from 1", "sample from the k likeliest tokens", ge=-1, le=10**6
    )
    min_p: float | None = _var(
        None, "a number from 0 to 1", "least probability, relative to the likeliest", ge=0, le=1
    )
    max_tokens: int = _var(
        1024, "a number from 1 to MAX_TOKENS_LIMIT", "tokens an answer may have", ge=1
    )
    repetition_penalty: float | None = _var(
        None, "a number above 0, at most 2", "above 1 discourages repetition", gt=0, le=2
    )
    presence_penalty: float | None = _var(
        None, "a number from -2 to 2", "penalty for tokens used before", ge=-2, le=2
    )
    frequency_penalty: float | None = _var(
        None, "a number from -2 to 2", "penalty that grows with each use", ge=-2, le=2
    )
    seed: int | None = _var(
        None, "a whole number from 0", "makes sampling repeatable", ge=0, le=2**63 - 1
    )
    stop: StopSequences = _var(
        (), "one stop sequence a line, or a JSON list", "where the answer ends"
    )
    system_prompt: str = _var("", "any text", "instruction before every conversation")
    max_tokens_limit: int = _var(
        4096, "a number from 1", "the most tokens a visitor may ask for", ge=1
    )

    # -- the page ------------------------------------------------------------------------------------
    app_title: str = _var("vLLM Space", "any text", "title of the page")
    app_description: str = _var("", "Markdown", "text under the title")
    app_theme: Theme = _var("default", ", ".join(get_args(Theme)), "a Gradio theme")
    app_examples: Lines = _var((), "one question a line, or a JSON list", "example questions")

    app_image_origins: Origins = _var(
        (),
        "https://site.example, with commas, or *",
        "other sites that pictures on the page may come from",
    )

    # -- doors ---------------------------------------------------------------------------------------
    app_username: SecretStr | None = _var(None, "a name", "one login, with APP_PASSWORD")
    app_password: SecretStr | None = _var(None, "a password", "one login, with APP_USERNAME")
    app_users: Secrets = _var((), "alice:pw,bob:pw2", "several logins")
    oauth_allowed: Commas = _var(
        (),
        "Hugging Face users or organisations, with commas, or *",
        "who may sign in with Hugging Face",
    )
    api_keys: Secrets = _var((), "keys, with commas; name:key names one", "keys that open /v1")
    api_rate_limit: int | None = _var(
        None, "a number from 1", "requests a minute that each API key may make", ge=1, le=10**6
    )
    api_cors_origins: Origins = _var(
        (),
        "https://site.example, with commas, or *",
        "sites whose scripts may use /v1 from a browser",
    )

    # -- limits --------------------------------------------------------------------------------------
    max_concurrency: int = _var(64, "a number from 1 to 1000", "generations at once", ge=1, le=1000)
    max_queue: int = _var(
        256, "a number from 1 to 100000", "visitors who may wait", ge=1, le=100_000
    )

    # -- Gradio's own names, also set by the flags -----------------------------------------------------
    gradio_server_name: str = _var(
        "127.0.0.1", "an address of this machine", "same as `--host`; 0.0.0.0 for all"
    )
    gradio_server_port: int = _var(
        7860, "a port from 1 to 65535", "same as `--port`", ge=1, le=65535
    )
    gradio_share: bool = _var(
        False, "true or false", "same as `--share`: a public gradio.live link"
    )

    # -- set by start.sh for the processes it starts; not for owners -------------------------------------
    engine_run_dir: Path | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        problems = []
        if self.model_url and self.models:
            problems.append(
                "MODEL_URL and MODELS are both set: put every server into MODELS, or unset one."
            )
        if (self.app_username is None) != (self.app_password is None):
            missing = "APP_USERNAME" if self.app_username is None else "APP_PASSWORD"
            problems.append(
                f"{missing} is not set: a login needs APP_USERNAME and APP_PASSWORD together."
            )
        if any(not all(user.get_secret_value().partition(":")) for user in self.app_users):
            problems.append("APP_USERS is not allowed: use alice:pw,bob:pw2.")
        if any(not key.get_secret_value().rpartition(":")[2].strip() for key in self.api_keys):
            problems.append("API_KEYS is not allowed: use keys, with commas; name:key names one.")
        if self.max_tokens > self.max_tokens_limit:
            if "max_tokens" in self.model_fields_set:
                problems.append(
                    f"MAX_TOKENS={self.max_tokens} is more than MAX_TOKENS_LIMIT={self.max_tokens_limit}."
                )
            self.__dict__["max_tokens"] = (
                self.max_tokens_limit
            )  # the default gives way to the owner's limit
        if problems:
            raise SettingsError("\n".join(problems))
        return self

    @property
    def servers(self) -> dict[str, str]:
        """Label -> address of the running servers to use; empty where the engine is ours to boot."""
        return self.models or ({"": self.model_url} if self.model_url else {})

    @property
    def logins(self) -> dict[str, str]:
        """User name -> password of every login."""
        pairs = [user.get_secret_value().split(":", 1) for user in self.app_users]
        if self.app_username and self.app_password:
            pairs.append(
                [self.app_username.get_secret_value(), self.app_password.get_secret_value()]
            )
        return {name.strip(): password for name, password in pairs}

    def mask(self, text: str) -> str:
        """`text` with every secret in it replaced by `***`: the value of every SecretStr among the settings.

        Of one that holds a name before a colon (`alice:password`), what follows is masked by itself too. One of fewer
        than SHORTEST_MASKED characters stays: it would be found in innocent words.
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
}  # variable name -> pydantic field; what the README's table documents

SECRETS = {name for name, field in VARIABLES.items() if "SecretStr" in str(field.annotation)}


def environment_without_secrets() -> dict[str, str]:
    """This process's environment less the owner's secrets, for a process that has no need of them."""
    return {name: value for name, value in os.environ.items() if name.upper() not in SECRETS}


def load(argv: list[str] | None = None) -> Settings:
    """Read the settings; `argv` holds app.py's flags, which win over the environment.

    Raises SettingsError with one line for each bad value.
    """
    try:
        return Settings(**_parse_flags(argv or []))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(one) for one in error.errors())) from None


def _parse_flags(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="./start.sh",
        description="Boot vLLM, wait until it is ready, and serve a chat page and an OpenAI-compatible API.",
        epilog="Everything else is an environment variable: see the table in README.md.",
    )
    parser.add_argument(
        "--host", dest="gradio_server_name", help="address to listen on (default 127.0.0.1)"
    )
    parser.add_argument(
        "--port", dest="gradio_server_port", help="port to listen on (default 7860)"
    )
    parser.add_argument(
        "--model-url", dest="model_url", help="use this running server and boot none"
    )
    parser.add_argument(
        "--share", dest="gradio_share", action="store_true", default=None, help="make a public link"
    )
    return {
        name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None
    }


def allowed(name: str) -> str:
    """What a variable may be, in words; `name` is the field's."""
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else ""


def _explain(problem: ErrorDetails) -> str:
    """One line for one bad value: the variable, the value (never a secret's) and what is allowed."""
    name = str(problem["loc"][0])
    shown = "" if name.upper() in SECRETS else f"={shorten(str(problem['input']))}"
    detail = f" ({problem['ctx']['error']})" if problem["type"] == "value_error" else ""
    return f"{name.upper()}{shown} is not allowed{detail}: use {allowed(name)}."


def shorten(text: str, limit: int = 80) -> str:
    """`text` on one line, at most `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _dotenv() -> dict[str, str | None]:
    return dotenv_values(ROOT / ".env")


def unknown_names() -> list[str]:
    """One warning for each APP_* or ENGINE_* variable that nothing reads, with the nearest name that exists."""
    known = {name.upper() for name in Settings.model_fields}
    warnings = []
    for name in sorted({*os.environ, *_dotenv()}):
        if name.startswith(("APP_", "ENGINE_")) and name.upper() not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0)
            warnings.append(f"{name} is set but nothing reads it; did you mean {nearest[0]}?")
    return warnings


def table() -> str:
    """The README's table of variables, as Markdown: `python -m vllm_space.settings` prints it."""
    rows = ["| variable | default | meaning | allowed |", "|---|---|---|---|"]
    for name, field in VARIABLES.items():
        secret = " (secret)" if name in SECRETS else ""
        default = (
            "auto"
            if _auto_is_none in [getattr(one, "func", None) for one in field.metadata]
            else field.default
        )
        shown = (
            str(default).lower()
            if isinstance(default, bool)
            else str(default or (default if default == 0 else ""))
        )
        rows.append(
            f"| `{name}`{secret} | {shown} | {field.description} | {allowed(name.lower())} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
