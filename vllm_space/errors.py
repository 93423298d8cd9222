"""Errors whose message is shown to people: a few short sentences, what happened and what to do.

A message never contains a secret. Details go to the log.
"""

from __future__ import annotations

import re

# What servers call it: "context_length_exceeded", "maximum model length", "max_model_len"...
CONTEXT_LIMIT = re.compile(
    r"context[ _](?:length|window|size)|maximum model length|max_model_len", re.IGNORECASE
)


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


class KeyRejected(Rejected):
    """The server rejected the API key of this Space."""


class Interrupted(ModelError):
    """The response was cut off or is unusable. The text received so far is kept."""


# -- requests to a model server ------------------------------------------------------------


def unreachable(label: str = "") -> Unreachable:
    server = f"The model server {label}" if label else "The model server"
    return Unreachable(
        f"{server} cannot be reached. It may be down or still starting. Try again in a minute."
    )


def not_answering(label: str = "") -> TimedOut:
    server = f"The model server {label}" if label else "The model server"
    return TimedOut(
        f"{server} accepts connections but does not answer. It may be overloaded or stuck. "
        "Try again in a minute."
    )


def no_server() -> Unreachable:
    return Unreachable("No model is running: this Space has no GPU and MODEL_URL is not set.")


def waking_up(label: str, seconds: float) -> TimedOut:
    server = f"The model server {label}" if label else "The model server"
    return TimedOut(
        f"{server} has not answered within {seconds:g} s. It may be slow, or waking up. "
        "Try again in a minute."
    )


def no_model_list(address: str, status: int) -> ModelError:
    return ModelError(
        f"There is no model list at {address} (HTTP {status}). Check MODEL_URL. If this server has "
        "no list, set MODEL_ID to the name of its model."
    )


def not_a_model_list(address: str) -> ModelError:
    return ModelError(
        f"The response of {address} is not a list of models. "
        "Check that MODEL_URL points to an OpenAI-compatible server."
    )


def list_refused(address: str, body: object) -> ModelError:
    """`body` is what the server returned instead of its list of models."""
    return ModelError(f"The model server did not list its models at {address}: {_reason(body)}")


def no_models(label: str) -> Unreachable:
    server = f"The model server {label}" if label else "The model server"
    return Unreachable(
        f"{server} lists no models. Load one there, or set MODEL_ID to the name of one it has."
    )


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
        f"The proxy in {variable} rejected its user name and password. "
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


def from_response(status: int, body: object) -> ModelError:
    """The error for an HTTP error response. `body` is its decoded JSON or its text."""
    reason = _reason(body)
    if "EngineCore encountered an issue" in reason:
        return Interrupted("The engine has crashed. Try again in a minute, once it has restarted.")
    if status in (401, 403):
        return KeyRejected(
            "The model server rejected the API key. Set MODEL_API_KEY to that server's key."
        )
    if "chat template" in reason:
        return Rejected(
            "This model has no chat template, so it cannot chat. "
            "Use the Completion tab, or choose an instruct model."
        )
    if is_about_context(reason):
        return Rejected(
            "The prompt does not fit into the model's context. Shorten it, start a new "
            f"conversation, or lower max tokens. The server says: {reason}"
        )
    if status == 429:
        return Rejected("The model server is busy. Try again in a minute.")
    if status == 404:
        return Rejected(
            f"The model server did not find the model or endpoint: {reason} "
            "Reload the page and try again."
        )
    if status < 500:
        return Rejected(f"The model server rejected the request: {reason}")
    return ModelError(
        f"The model server failed (HTTP {status}): {reason} "
        "Try again; the server's log has the details."
    )


def is_about_context(message: str) -> bool:
    """Whether a server's error may say that prompt and answer do not fit into the context."""
    return bool(CONTEXT_LIMIT.search(message))


def _reason(body: object) -> str:
    """The message in an error body, in whichever format the server uses, as one short sentence."""
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail") or error
        body = error
    text = " ".join(str(body).split()) or "no reason given"
    text = text if len(text) <= 300 else text[:299] + "…"
    return text if text[-1] in ".!?…" else text + "."
