"""Environment variables and secrets -> one frozen, typed `Settings`.

The only module that knows the owner's variables; dotenv.py finds their text, readers.py reads it.
Each is declared here once: its name, type, bounds, allowed values in words, and meaning. A test
checks the README's tables against these declarations. Imports neither Gradio nor vLLM.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from vllm_space import dotenv, readers
from vllm_space.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "vllm_space" / "demo_model"
DEMO_MODEL_NAME = "vllm-space-demo"
DEFAULT_GPU_MODEL = "Qwen/Qwen3-4B-Instruct-2507"
SHORTEST_MASKED = 6  # characters
LOGIN_IN_URL = re.compile(r"(?<=:)//[^/@\s\"']+@")
HUB_TOKEN = re.compile(r"\bhf_\w+")
OLD_TOKEN = "HUGGING_FACE_HUB_TOKEN"  # the former name of HF_TOKEN

Theme = Literal["default", "base", "citrus", "glass", "monochrome", "ocean", "origin", "soft"]


def _var(default: Any, allowed: str, meaning: str, **bounds: Any) -> Any:
    """Declare a variable: its default, the allowed values in words, and its meaning."""
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **bounds)


Lines = Annotated[tuple[str, ...], BeforeValidator(readers.lines)]
CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(readers.comma_separated)]
StopSequences = Annotated[tuple[str, ...], BeforeValidator(readers.stop_sequences)]
Key = Annotated[SecretStr, BeforeValidator(readers.key)]
Token = Annotated[SecretStr, BeforeValidator(readers.token)]
Password = Annotated[SecretStr, BeforeValidator(readers.password)]
Logins = Annotated[tuple[SecretStr, ...], BeforeValidator(readers.logins)]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(readers.api_keys)]
Url = Annotated[str, BeforeValidator(readers.url)]
Urls = Annotated[dict[str, str], BeforeValidator(readers.urls)]
Origins = Annotated[tuple[str, ...], BeforeValidator(readers.origins)]
Networks = Annotated[tuple[str, ...], BeforeValidator(readers.networks)]
EngineFlags = Annotated[tuple[str, ...], BeforeValidator(readers.engine_flags)]
AutoInt = Annotated[int | None, BeforeValidator(readers.auto_is_none)]
AutoBool = Annotated[bool | None, BeforeValidator(readers.auto_is_none)]

# In these, white space and quotes around the text can be meant.
FREE_TEXT = {"stop", "system_prompt", "app_title", "app_description", "app_examples"}
# In these, there can be passwords and keys.
ADDRESSES = {"model_id", "model_url", "models"}


class Settings(BaseModel):
    """Everything the owner can set; `load` reads it.

    An empty value counts as unset. White space and one pair of quotes around a value are removed.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    # -- model -------------------------------------------------------------------------------------
    model_id: str | None = _var(
        None,
        "a Hub ID such as org/name or its page's address, a local path, or an s3://, gs:// or "
        "az:// address",
        "the model to serve; with MODEL_URL or MODELS, the name of the model to begin with",
    )
    model_revision: str = _var(
        "main", "a branch, tag or commit", "branch, tag or commit of the model"
    )
    hf_token: Token | None = _var(
        None,
        "a Hugging Face token",
        "for gated and private models; default: the token of `hf auth login`",
    )
    model_url: Url | None = _var(
        None,
        "http://host:port, optionally with a path such as /v1",
        "use this running server instead of starting vLLM",
    )
    model_api_key: Key | None = _var(
        None, "the server's key", "API key of the server at MODEL_URL or of those in MODELS"
    )
    models: Urls = _var({}, 'JSON: {"label": "http://host:port", ...}', "several running servers")
    model_images: AutoBool = _var(
        None,
        "auto, true or false",
        "whether the model takes images, if its server cannot be asked",
    )

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
        "vLLM flags, quoted as in a shell, except " + ", ".join(readers.OWN_ENGINE_FLAGS),
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
    app_username: Password | None = _var(
        None, "a name", "user name of a single login; needs APP_PASSWORD"
    )
    app_password: Password | None = _var(None, "a password", "password of APP_USERNAME")
    app_users: Logins = _var(
        (), "comma-separated logins such as alice:pw,bob:pw2", "several user names with passwords"
    )
    oauth_allowed: CommaSeparated = _var(
        (),
        "comma-separated users and organisations of the Hub, or *",
        "who can sign in with Hugging Face",
    )
    api_keys: Keys = _var(
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

    # -- not for owners ----------------------------------------------------------------------------
    engine_run_dir: Path | None = Field(None, exclude=True)  # start.sh sets it for its processes
    hf_token_origin: str = Field("HF_TOKEN", exclude=True)  # where `load` found it, in words

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: dict[str, Any]) -> dict[str, Any]:
        cleaned = {
            name: dotenv.clean(value) if isinstance(value, str) and name not in FREE_TEXT else value
            for name, value in values.items()
        }
        # The readers of secrets clean them themselves, with every item of a list.
        return {
            name: values[name] if name.upper() in SECRETS else value
            for name, value in cleaned.items()
            if value != ""
        }

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
        if self.model_id and not self.servers:
            try:
                model, revision = readers.model(self.model_id, os.environ.get("HF_ENDPOINT", ""))
            except ValueError as error:
                problems.append(_sentence("model_id", self.model_id, f" ({error})"))
            else:
                self.__dict__["model_id"] = model
                if revision and "model_revision" not in self.model_fields_set:
                    self.__dict__["model_revision"] = revision
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

        Secrets are the values of all SecretStr settings, and passwords and keys in the addresses of
        servers. If one has a name before a colon (`alice:password`), the part after it is masked on
        its own, too. A secret shorter than SHORTEST_MASKED is left alone: it would match ordinary
        words. The login in a URL is always masked.
        """
        text = LOGIN_IN_URL.sub("//***@", text)
        secrets = set()
        for secret in _secrets_in(vars(self).values()):
            secrets |= {secret, secret.partition(":")[2]}
        for address in self.servers.values():
            secrets |= set(readers.secrets_in_url(address))
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
    secrets = SECRETS | {OLD_TOKEN}
    return {name: value for name, value in os.environ.items() if name.upper() not in secrets}


def models_are_elsewhere() -> bool:
    """Whether vLLM's own variables make it look for models elsewhere than on the Hub."""
    is_modelscope = os.environ.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true")
    return is_modelscope or bool(os.environ.get("VLLM_MODEL_REDIRECT_PATH"))


def load(argv: list[str] | None = None) -> Settings:
    """Read the settings. `argv` holds app.py's flags, which override the environment.

    Raises SettingsError with one line for each invalid value.
    """
    flags = _parse_flags(argv or [])
    texts = _texts()
    values: dict[str, Any] = {
        name: texts[name.upper()] for name in Settings.model_fields if name.upper() in texts
    }
    values["hf_token"], values["hf_token_origin"] = _hub_token(texts)
    try:
        return Settings(**values | flags)
    except ValidationError as error:
        problems = [_explain(problem, values["hf_token_origin"]) for problem in error.errors()]
        raise SettingsError("\n".join(problems)) from None


def _texts() -> dict[str, str]:
    """All variables as they are written in the environment and in `.env`."""
    try:
        return dotenv.variables(ROOT / ".env")
    except dotenv.UnreadableFile as error:
        raise SettingsError(str(error)) from None


def _hub_token(texts: dict[str, str]) -> tuple[str, str]:
    """(the token for the Hub or "", where it is from), as huggingface_hub finds it.

    Sources: huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    for name in ("HF_TOKEN", OLD_TOKEN):
        if dotenv.clean(texts.get(name, "")):
            return texts[name], name
    if texts.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "", "HF_TOKEN"
    home = texts.get("HF_HOME") or f"{texts.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    path = Path(os.path.expandvars(texts.get("HF_TOKEN_PATH") or f"{home}/token"))
    try:
        path = path.expanduser()
        return path.read_text(encoding="utf-8"), f"the token in {path}"
    except (OSError, ValueError, RuntimeError):  # none, not text, or no home folder
        return "", "HF_TOKEN"


def _parse_flags(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="./start.sh",
        allow_abbrev=False,  # start.sh looks for --model-url
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
    flags = {
        name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None
    }
    for name, value in flags.items():
        if value == "":
            parser.error(f"the value for {name.upper()} is empty")
    return flags


def allowed(name: str) -> str:
    """The allowed values of a variable, in words. `name` is the name of its field."""
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else ""


def _explain(problem: ErrorDetails, token: str = "HF_TOKEN") -> str:
    """One line: the variable, its value (unless it is a secret) and the allowed values.

    `token` says where the token for the Hub is from.
    """
    field = str(problem["loc"][0])
    error = problem["ctx"]["error"] if problem["type"] == "value_error" else None
    if isinstance(error, readers.Unusable):
        name = token if field == "hf_token" else field.upper()
        return f"{name[0].upper()}{name[1:]} {error}"
    return _sentence(field, str(problem["input"]), f" ({error})" if error else "")


def _sentence(field: str, value: str, why: str) -> str:
    name = field.upper()
    if field in ADDRESSES:
        value = readers.hide_secrets(value)
    shown = "" if name in SECRETS else f"={shorten(HUB_TOKEN.sub('***', value))}"
    return f"{name}{shown} is invalid{why}. Use {allowed(field)}."


def shorten(text: str, limit: int = 80) -> str:
    """`text` on one line, shortened to `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def warnings(config: Settings) -> list[str]:
    """What is probably not meant: quotes around a value, unknown names. Never shows a secret.

    `config` is what `load` returned.
    """
    return [*_removed(config, _texts()), *_unknown_names()]


def _removed(config: Settings, texts: dict[str, str]) -> Iterator[str]:
    """A warning for each secret that was changed, and for quotes around other values."""
    for name in VARIABLES:
        text, value = texts.get(name, ""), getattr(config, name.lower())
        if name in SECRETS:
            items = readers.split_at_commas(text) if isinstance(value, tuple) else [text]
            if text and (text != text.strip() or items != [*_secrets_in([value])]):
                too = ", or `Bearer` before it" if "KEY" in name or "TOKEN" in name else ""
                yield f"{name} has white space or quotes around a value{too}: ignoring them."
        elif name.lower() not in FREE_TEXT and dotenv.clean(text) != text.strip():
            yield f"{name} has quotes around its value: ignoring them."


def _unknown_names() -> list[str]:
    """A warning for each APP_* or ENGINE_* variable that does not exist, with the nearest match."""
    existing = sorted({name.upper() for name in Settings.model_fields})
    found = []
    for name in sorted(_texts()):
        if name.startswith(("APP_", "ENGINE_")) and name not in existing:
            nearest = difflib.get_close_matches(name, existing, n=1, cutoff=0)
            found.append(
                f"{name} is set, but there is no such variable. Did you mean {nearest[0]}?"
            )
    return found


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
    if any(getattr(reader, "func", None) is readers.auto_is_none for reader in field.metadata):
        return "auto"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default in (None, "", (), {}) else f"{field.default}"


if __name__ == "__main__":
    print(table())
