"""From the text of a variable to its value: what settings.py declares, read tolerantly.

Every reader takes text, or a value that is read already, which it returns as it is. Raises
ValueError with what is wrong, or Unusable. Knows no variable by name.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import SecretStr

from vllm_space.dotenv import clean

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


class Unusable(ValueError):
    """A value that can never work. The message continues a sentence that begins with its name."""


# -- lists -----------------------------------------------------------------------------------------


def auto_is_none(value: Any) -> Any:
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


def lines(value: Any) -> Any:
    return _text_list(value, "\n")


def split_at_commas(value: Any) -> Any:
    """The items as they are written."""
    return _text_list(value, ",")


def comma_separated(value: Any) -> Any:
    items = split_at_commas(value)
    if not isinstance(items, (list, tuple)):
        return items
    return [clean(item) if isinstance(item, str) else item for item in items]


def stop_sequences(value: Any) -> Any:
    # Not stripped: a stop sequence can be a space or end with one.
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [line for line in value.split("\n") if line]
    return lines(value)


def origins(value: Any) -> Any:
    read = comma_separated(value)
    for origin in read:
        parts = urlsplit(origin)
        if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}".lower():
            raise ValueError(f"{origin} is more than a scheme and a host")
    return read


def networks(value: Any) -> Any:
    read = comma_separated(value)
    for network in read:
        if network != "*":
            ipaddress.ip_network(network, strict=False)  # raises ValueError
    return read


def engine_flags(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A command pasted from a manual: a backslash continues it on the next line.
    command = re.sub(r"(?<!\\)\\[ \t]*(?:\r?\n|\Z)", " ", value)
    flags = shlex.split(command)  # raises ValueError if a quote is not closed
    for flag in flags:
        reason = OWN_ENGINE_FLAGS.get(flag.split("=", 1)[0].replace("_", "-"))
        if reason:
            raise ValueError(f"{flag.split('=', 1)[0]} cannot be set here: {reason}")
    return flags


# -- addresses -------------------------------------------------------------------------------------

# The names of query parameters that hold secrets: key, api_key, subscription-key, sig, code...
SECRET_PARAMETER = re.compile(r"key|token|secret|passw|\bsig|\bcode\b|auth", re.IGNORECASE)
IN_QUERY = re.compile(r"([?&]([^=&\s]+)=)([^&#\s\"']+)")


def url(value: Any) -> Any:
    """An http or https URL; its path and query can be anything."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    if re.search(r"\s", value):
        raise ValueError("it has white space in it")
    parts = _split(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http or https URL")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("its port is not a number up to 65535") from None
    return value


def _split(address: str) -> SplitResult:
    """The parts of a URL. Raises ValueError, unlike urlsplit's without what may be a password."""
    try:
        return urlsplit(address)
    except ValueError:
        raise ValueError("its host is malformed") from None


def urls(value: Any) -> Any:
    """A JSON object of label -> URL, or a list of URLs. Without a label, it is the host."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=_without_duplicates)
        except json.JSONDecodeError as error:
            raise ValueError("not JSON") from error
    if isinstance(value, list):
        pairs = [("", address) for address in value]
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        raise ValueError("not an object of URLs")
    labelled = []
    for label, address in pairs:
        try:
            read = url(address)
        except ValueError as error:
            raise ValueError(f"{label}: {error}" if label else str(error)) from None
        if not isinstance(read, str):
            raise ValueError("not an object of URLs")
        parts = urlsplit(read)
        host = parts.netloc.rpartition("@")[2] + parts.path.rstrip("/").removesuffix("/v1")
        labelled.append((label.strip() or host, read))
    return _without_duplicates(labelled)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    labels = [label for label, _ in pairs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"the label {label} is there twice")
    return dict(pairs)


def secrets_in_url(address: str) -> Iterator[str]:
    """The user name and password in a URL, and the keys in its query, as written and decoded."""
    login = urlsplit(address).netloc.rpartition("@")[0]
    keys = [item[3] for item in IN_QUERY.finditer(address) if SECRET_PARAMETER.search(item[2])]
    for secret in (login, login.partition(":")[2], *keys):
        yield secret
        yield unquote(secret)


def hide_secrets(text: str) -> str:
    """A text that ought to be a URL, or an object of URLs, without what may be secret in it.

    However broken it is: everything before the last @ is hidden, but for http://.
    """
    text = re.sub(r"\A(https?://)?.*@", r"\1***@", text, flags=re.DOTALL | re.IGNORECASE)
    return IN_QUERY.sub(
        lambda match: match[1] + "***" if SECRET_PARAMETER.search(match[2]) else match[0], text
    )


# -- models ----------------------------------------------------------------------------------------

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
# First parts of the paths of the Hub's other pages.
OTHER_PAGES = set("api collections datasets docs models organizations papers spaces tasks".split())
WITH_REVISION = ("tree", "blob", "resolve", "raw", "commit", "commits")


def model(text: str, endpoint: str = "") -> tuple[str, str]:
    """(model, revision or "") as vLLM takes them: a Hub ID, a local path or an address.

    `endpoint` is the address of a mirror of the Hub. A page of the Hub becomes the model's ID, and
    the revision that is in its address. Raises ValueError for other web pages.
    """
    if "://" in text:
        if not re.match("https?://", text, re.IGNORECASE):
            return text, ""  # a trailing slash counts in an object store
        address = text
    else:
        path = os.path.expanduser(text)  # noqa: PTH111  (a Path would drop a leading ./)
        if not text.lower().startswith(tuple(f"{host}/" for host in HUB_HOSTS)):
            return path.rstrip("/") or path, ""
        address = f"https://{text}"
    parts = _split(address)
    path = parts.path
    if endpoint and address.startswith(endpoint.rstrip("/") + "/"):
        path = path[len(urlsplit(endpoint).path.rstrip("/")) :]
    elif parts.hostname not in HUB_HOSTS:
        raise ValueError("a web address, but no model's page on the Hub; a server: set MODEL_URL")
    name, *rest = [unquote(part) for part in path.split("/") if part] or [""]
    if not name or name in OTHER_PAGES:
        raise ValueError("not the page of a model")
    revision = rest[2] if len(rest) > 2 and rest[1] in WITH_REVISION else ""
    return "/".join([name, *rest[:1]]), revision


# -- secrets ---------------------------------------------------------------------------------------

BEARER = re.compile(r"(?:authorization\s*:\s*)?bearer\s+", re.IGNORECASE)


def key(value: Any, kind: str = "API key") -> Any:
    """A key that is sent in an HTTP header. `kind` is what to call it.

    Raises Unusable if it has a character that is not printable ASCII: clients encode others
    differently, if at all (RFC 9110, section 5.5).
    """
    if not isinstance(value, str):
        return value
    value = clean(BEARER.sub("", clean(value), count=1))
    for character in value:
        if not " " <= character <= "~":
            raise Unusable(f"contains {_describe(character)}, which no {kind} has: copy it again.")
    return SecretStr(value)


def token(value: Any) -> Any:
    """A Hugging Face token; see key."""
    return key(value, "token")


def password(value: Any) -> Any:
    """A user name or a password. Raises Unusable if no sign-in form can send it."""
    if not isinstance(value, str):
        return value
    value = clean(value)
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise Unusable(
                f"contains {_describe(character)}, which cannot be typed into the sign-in form: "
                "change it."
            )
    return SecretStr(value)


def _describe(character: str) -> str:
    """A character of a secret. Of those in ASCII only the kind is told."""
    if character in "\r\n":
        return "a line break"
    if unicodedata.category(character) == "Cs":  # os.environ has undecodable bytes as surrogates
        return "a byte that is not UTF-8"
    if character < "\x80":
        return "a control character"
    code = f"U+{ord(character):04X}"
    if not character.isprintable():
        return f"the invisible character {code}"
    return f"the character {character} ({code})"


def _secret_list(value: Any, kind: str, read_item: Callable[[str], str]) -> Any:
    """Comma-separated secrets. `read_item` raises ValueError without any part of the item."""
    items = split_at_commas(clean(value) if isinstance(value, str) else value)
    if not isinstance(items, (list, tuple)):
        return items
    secrets = []
    for number, item in enumerate(items, start=1):
        if not isinstance(item, str):
            secrets.append(item)
            continue
        if "\n" in clean(item):
            raise Unusable(f"contains a line break: separate the {kind} with commas.")
        try:
            secrets.append(SecretStr(read_item(clean(item))))
        except Unusable:
            raise
        except ValueError as error:
            raise ValueError(f"entry {number} of {len(items)} {error}") from None
    return secrets


def api_keys(value: Any) -> Any:
    """Keys, each perhaps with a label: `label:key`."""

    def read_item(item: str) -> str:
        label, colon, secret = BEARER.sub("", item, count=1).partition(":")
        secret = key(secret if colon else label).get_secret_value()
        if not secret:
            raise ValueError("has no key")
        return f"{label.strip()}:{secret}" if colon else secret

    return _secret_list(value, "keys", read_item)


def logins(value: Any) -> Any:
    """Logins, each `name:password`."""

    def read_item(item: str) -> str:
        name, _, secret = item.partition(":")
        name, secret = (password(text).get_secret_value() for text in (name, secret))
        if not name or not secret:
            raise ValueError(
                "is not name:password; if a password has a comma in it, use a JSON list"
            )
        return f"{name}:{secret}"

    return _secret_list(value, "logins", read_item)
