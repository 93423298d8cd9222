"""Errors whose message is shown to people: a few short sentences, what happened and what to do.

A message never contains a secret. Details go to the log.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from http import HTTPStatus

from vllm_space import error_body

# What servers call it: "context_length_exceeded", "maximum model length", "max_model_len"...
CONTEXT_LIMIT = re.compile(
    r"context[ _](?:length|window|size)|maximum model length|max_model_len", re.IGNORECASE
)
# An error that mentions the context may be about something else, such as an unknown field.
TOO_LONG = re.compile(
    r"exceed|too (?:long|large|many|big)|(?:long|great|larg)er than|maximum|at most|limit|fit\b|"
    r"requested|overflow",
    re.IGNORECASE,
)
CONTEXT_CODE = re.compile(r"context_length_exceeded|exceed_context_size")
# vLLM's and the like of Transformers.
NO_CHAT_TEMPLATE = re.compile(
    r"default chat template is no longer allowed|must provide a chat template|"
    r"chat_template is not set|(?:has|have|without|define|is) (?:no|an?|any) chat template",
    re.IGNORECASE,
)
ABOUT_KEY = re.compile(
    r"(?:invalid|incorrect|wrong|missing|expired|unknown|no) (?:\w+ ){0,2}(?:api.?key|token)\b",
    re.IGNORECASE,
)
HTML = re.compile(r"<(?:!doctype html|html|head|body)\b", re.IGNORECASE)
MAX_NAMES = 10  # in a message
RETRY = re.compile(r"try again|retry", re.IGNORECASE)
# Phrases that a server repeats from the request; not an apostrophe, nor the name of a field.
QUOTED = re.compile(r"""(?<!\w)'[^']*\s[^']*'(?!\w)|"[^"]*\s[^"]*"|`[^`]*\s[^`]*`""")


class SpaceError(Exception):
    """A failure whose message is written for the person who can do something about it."""


class SettingsError(SpaceError):
    """An environment variable is invalid. The message has one line for each."""


class EngineError(SpaceError):
    """The engine cannot be started, or it died."""


class ModelError(SpaceError):
    """A request to a model failed. `status` is the matching HTTP status."""

    status = 502


class Unreachable(ModelError):
    status = 503


class TimedOut(ModelError):
    status = 504


class Rejected(ModelError):
    """The request is invalid, or too large for the model or this Space."""

    status = 400


class NotAList(ModelError):
    """The response is not a list of models."""


class KeyRejected(Rejected):
    """The server rejected the API key of this Space."""


class Failed(ModelError):
    """The server failed to answer this request. It may well answer the next one."""


class Interrupted(ModelError):
    """The response was cut off or is unusable. The text received so far is kept."""


# -- the owner's environment ---------------------------------------------------------------


def unusable_authorities(variable: str, path: str, error: Exception) -> SettingsError:
    """`error` was raised when the file with certificate authorities was read."""
    if isinstance(error, ssl.SSLError):
        reason = "it holds no certificates in PEM format"
    else:
        reason = getattr(error, "strerror", None) or "it is not a path"
    return SettingsError(
        f"{variable}={path} cannot be used: {reason}. Set it to a file with the certificates of "
        "the authorities to trust, or unset it."
    )


def no_such_address(host: str) -> SettingsError:
    return SettingsError(
        f"--host (or GRADIO_SERVER_NAME) is {host}, which is not an address of this machine. "
        "Set it to 127.0.0.1, or to 0.0.0.0 for all of its addresses."
    )


def privileged_port(port: int, name: str) -> EngineError:
    """`name` is the setting that changes the port."""
    return EngineError(f"Port {port} needs root privileges: set {name} to 1024 or higher.")


def unusable_port(port: int, host: str, name: str, reason: str) -> EngineError:
    """`name` is the setting that changes the port."""
    return EngineError(
        f"Port {port} on {host} cannot be used ({reason}): set {name} to a free one, or stop the "
        "program that uses it."
    )


# -- requests to a model server ------------------------------------------------------------


def _server(label: str) -> str:
    return f"The model server {label}".rstrip()


def unreachable(label: str = "") -> Unreachable:
    return Unreachable(
        f"{_server(label)} cannot be reached. It may be down or still starting. "
        "Try again in a minute."
    )


def not_answering(label: str = "") -> TimedOut:
    return TimedOut(
        f"{_server(label)} accepts connections but does not answer. It may be overloaded or stuck. "
        "Try again in a minute."
    )


def no_server() -> Unreachable:
    return Unreachable("No model is running: this Space has no GPU and MODEL_URL is not set.")


def waking_up(label: str, seconds: float) -> TimedOut:
    return TimedOut(
        f"{_server(label)} has not answered within {seconds:g} s. It may be slow, or waking up. "
        "Try again in a minute."
    )


def no_model_list(address: str, status: int) -> ModelError:
    return ModelError(
        f"There is no model list at {address} (HTTP {status}). Check MODEL_URL. If this server has "
        "no list, set MODEL_ID to the name of its model."
    )


def not_a_model_list(address: str) -> NotAList:
    return NotAList(
        f"The response of {address} is not a list of models. "
        "Check that MODEL_URL points to an OpenAI-compatible server."
    )


def list_refused(address: str, body: object, secrets: Iterable[str] = ()) -> ModelError:
    """`body` is what the server returned instead of its list of models; `secrets` are masked."""
    reason = _reason(body, secrets)
    return ModelError(f"The model server did not list its models at {address}: {reason}")


def no_models(label: str) -> Unreachable:
    return Unreachable(
        f"{_server(label)} lists no models. Load one there, or set MODEL_ID to the name of one it "
        "has."
    )


def some_of(names: Iterable[str]) -> str:
    """Names of models for a message; of many only the first."""
    names = list(names)
    more = len(names) - MAX_NAMES
    shown = _cut(", ".join(names[:MAX_NAMES]), 500)
    return f"{shown} and {more} more" if more > 0 else shown


def unknown_model(name: str, known: Iterable[str]) -> Rejected:
    return Rejected(f"There is no model {_cut(name, 80)!r}. Available models: {some_of(known)}.")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def no_such_model(name: str, instead: str) -> str:
    """A warning for the owner."""
    return (
        f"MODEL_ID={name} is not the name of any model listed here, so {instead} is used. "
        "Set MODEL_ID to one of the names listed."
    )


def unknown_host(host: str) -> Unreachable:
    return Unreachable(
        f"The name {host} cannot be resolved. Check its spelling in MODEL_URL, and this machine's "
        "DNS."
    )


def redirected(address: str, location: str) -> ModelError:
    """Neither has credentials or a query."""
    if location.rstrip("/") == address.rstrip("/"):
        return ModelError(f"The model server at {address} redirects to itself. Check MODEL_URL.")
    return ModelError(
        f"The model server at {address} redirects to {location}: set MODEL_URL to {location}."
    )


def redirected_elsewhere(address: str, location: str) -> ModelError:
    """Neither has credentials or a query."""
    return ModelError(
        f"{address} redirects to {location}, which is not the same API. Check MODEL_URL, and "
        "whether the server expects a login in front of it."
    )


def untrusted_certificate(address: str, reason: str) -> Unreachable:
    """`reason` is OpenSSL's."""
    return Unreachable(
        f"The certificate of {address} is not trusted ({reason}). If your company or the server "
        "itself issued it, set SSL_CERT_FILE to a file with the issuer's certificate (PEM)."
    )


def certificate_of_another(address: str) -> Unreachable:
    return Unreachable(
        f"The certificate of {address} was issued for another name. Set MODEL_URL to the name in "
        "the certificate, or have one issued for this name."
    )


def certificate_out_of_date(address: str, reason: str) -> Unreachable:
    """`reason` is OpenSSL's: it has expired, or is not valid yet."""
    return Unreachable(
        f"The certificate of {address} is not valid now ({reason}). Renew it on the server, or "
        "set this machine's clock."
    )


def speaks_plain_http(address: str) -> Unreachable:
    """`address` starts with https://."""
    return Unreachable(
        f"{address} does not speak TLS, but plain http. "
        f"Set MODEL_URL to http://{address.partition('://')[2]}."
    )


def speaks_tls(address: str) -> Unreachable:
    """`address` starts with http://."""
    return Unreachable(
        f"{address} speaks TLS, not plain http. "
        f"Set MODEL_URL to https://{address.partition('://')[2]}."
    )


def tls_failed(address: str, reason: str) -> Unreachable:
    """`reason` is OpenSSL's."""
    return Unreachable(
        f"No TLS connection to {address} is possible ({reason}). Check the server's TLS settings, "
        "or whether it speaks plain http."
    )


def invalid_proxy(variable: str) -> Unreachable:
    return Unreachable(
        f"{variable} is not the address of a proxy. Set it to one such as http://proxy:3128, with "
        "special characters in the password percent-encoded, or unset it."
    )


def unsupported_proxy(variable: str, host: str) -> Unreachable:
    return Unreachable(
        f"{variable} is a SOCKS proxy, which needs more packages: install them with "
        f"`pip install 'requests[socks]' aiohttp-socks`, or add {host} to NO_PROXY."
    )


def proxy_failed(variable: str, host: str) -> Unreachable:
    return Unreachable(
        f"The proxy in {variable} does not let requests to {host} through. Check the variable, or "
        f"add {host} to NO_PROXY."
    )


def proxy_needs_login(variable: str) -> Unreachable:
    return Unreachable(
        f"The proxy in {variable} requires a valid user name and password. "
        "Set it to http://USER:PASSWORD@HOST:PORT."
    )


def timed_out(seconds: float) -> TimedOut:
    return TimedOut(
        f"The model sent nothing for {seconds:g} s. Try a shorter prompt, or raise REQUEST_TIMEOUT."
    )


def too_long(prompt: str, tokens: int, context_length: int) -> Rejected:
    """`prompt` is what to call it: "conversation" or "text"."""
    return Rejected(
        f"The {prompt} has {tokens:,} tokens, but the model's context length is "
        f"{context_length:,}, including the answer. Shorten it."
    )


def too_many_characters(prompt: str, characters: int, limit: int, context_length: int) -> Rejected:
    """`prompt` is what to call it: "conversation" or "text"."""
    return Rejected(
        f"The {prompt} has {characters:,} characters. The model's context of {context_length:,} "
        f"tokens holds at most {limit:,} here. Shorten it."
    )


def too_much_text(size: int, limit: int) -> Rejected:
    """Both in bytes."""
    return Rejected(
        f"The request has {size / 1e6:.1f} MB of text; at most {limit / 1e6:g} MB are allowed. "
        "Shorten it."
    )


def schema_too_large(name: str, limit: int) -> Rejected:
    return Rejected(f"{name} has more than {limit:,} values, too many for the engine. Simplify it.")


def looks_like_a_path(length: int) -> Rejected:
    return Rejected(
        f"The request contains a path of {length:,} characters with very many slashes, which the "
        "engine cannot process. Remove or shorten it."
    )


def malformed_request() -> Rejected:
    return Rejected("This request is malformed. If you sent it from the page, reload the page.")


def bad_message() -> Rejected:
    return Rejected(
        'Each message in the history must be {"role": "user" or "assistant", "content": "text"}.'
    )


def too_many_answers(running: int) -> Rejected:
    answers = "1 answer" if running == 1 else f"{running} answers"
    return Rejected(f"You already have {answers} running. Wait for one to finish, or stop it.")


def disk_full() -> Rejected:
    return Rejected(
        "This file cannot be stored: the server's disk is almost full. "
        "Tell the owner of this Space."
    )


def quota_exceeded(size: int) -> Rejected:
    return Rejected(
        f"This file cannot be stored: you have used your {size // 2**20} MiB for today. "
        "Try again tomorrow."
    )


def too_many_requests() -> Rejected:
    return Rejected("You have too many large requests running. Wait for one to finish.")


def busy() -> Rejected:
    return Rejected("This Space is generating as many answers as it can. Try again in a minute.")


def cut_off() -> Interrupted:
    return Interrupted(
        "The answer was cut off because the connection to the model server was lost. Try again."
    )


def internal() -> ModelError:
    return ModelError("Something went wrong. Try again; the Space's log says why.")


def malformed_response() -> Interrupted:
    return Interrupted(
        "The model server sent an invalid response. Check that MODEL_URL points to an LLM server."
    )


def aborted() -> Interrupted:
    return Interrupted("The model server ended the answer because of an error. Try again.")


def from_response(status: object, body: object, secrets: Iterable[str] = ()) -> ModelError:
    """The error for an error of a model server, in that server's words if there are any.

    `status` is the HTTP status of the response; None for an error in a stream, whose body may name
    one. `body` is the decoded JSON or the text. `secrets` are masked.
    """
    number = error_body.http_error(status) or error_body.status(body)
    words = error_body.words(body, secrets)
    reason = _reason(body, secrets)
    said = "" if _is_phrase(number, words) else f" The server says: {reason}"
    if number in (None, 500) and words.startswith("EngineCore encountered an issue"):
        return Interrupted("The engine has crashed. Try again in a minute, once it has restarted.")
    if number == 403 and HTML.search(str(body)):
        return Rejected(
            "A firewall or proxy in front of the model server denied access (HTTP 403). "
            "Allow this machine there."
        )
    if number == 401 or (number == 403 and (not said or ABOUT_KEY.search(words))):
        return KeyRejected(
            f"The model server rejected the API key. Set MODEL_API_KEY to that server's key.{said}"
        )
    if number == 402:
        return Rejected(f"The model server's account has no credit left, or needs a plan.{said}")
    if number == 403:
        return Rejected(f"The model server denied access.{said}")
    if number == 404 and not said:
        return Rejected(
            "The model server did not find the model or endpoint. Reload the page and try again."
        )
    if number == 404:
        return Rejected(
            f"The model server did not find the model or endpoint: {reason} "
            "Reload the page and try again."
        )
    if number == 429 and not said:
        return Rejected("The model server is busy. Try again in a minute.")
    if number == 429:
        return Rejected(f"The model server is busy, or a limit has been reached.{said}")
    own_words = QUOTED.sub("", words)
    if NO_CHAT_TEMPLATE.search(own_words):
        return Rejected(
            "This model has no chat template, so it cannot chat. "
            "Use the Completion tab, or choose an instruct model."
        )
    if CONTEXT_CODE.search(" ".join(error_body.kinds(body))) or (
        is_about_context(own_words) and TOO_LONG.search(own_words)
    ):
        return Rejected(
            "The prompt does not fit into the model's context. Shorten it, start a new "
            f"conversation, or lower max tokens. The server says: {reason}"
        )
    if number and number < 500 and number != 408:
        return Rejected(f"The model server rejected the request: {reason}")
    failed = f"failed (HTTP {number})" if number else "failed"
    advice = "" if RETRY.search(words) else " Try again; the server's log has the details."
    return Failed(f"The model server {failed}: {reason}{advice}")


def is_about_context(message: str) -> bool:
    """Whether a server's error may say that prompt and answer do not fit into the context."""
    return bool(CONTEXT_LIMIT.search(message))


def _reason(body: object, secrets: Iterable[str] = ()) -> str:
    """What a server's error says, in whichever format, as one short sentence."""
    text = error_body.words(body, secrets)
    if not text and isinstance(body, (dict, list)) and body:
        text = error_body.one_line(str(body), secrets)
    text = text or "no reason given"
    return text if text[-1] in ".!?…。！？" else text + "."


def _is_phrase(number: int | None, words: str) -> bool:
    """Whether the words are only the name of the status, such as "Not Found"."""
    phrases = {status.phrase.lower() for status in HTTPStatus if status == number}
    return words.lower().rstrip(".!") in {"", *phrases}
