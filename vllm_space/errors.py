"""Every failure -> one sentence that says what happened and what to do.

The one vocabulary of errors: the classes below are raised everywhere, and their text is what a person
sees. It never holds a secret, and knows nothing of where it is shown. Details go to the log.
"""

from __future__ import annotations


class SpaceError(Exception):
    """A failure whose text is a sentence for the person who can act on it."""


class SettingsError(SpaceError):
    """A variable has a value that cannot work. One line for each."""


class EngineError(SpaceError):
    """The engine cannot be started, or died."""


class ModelError(SpaceError):
    """A request to a model failed. `status` is the HTTP status that says the same."""

    status = 502


class Unreachable(ModelError):
    status = 503


class TimedOut(ModelError):
    status = 504


class Rejected(ModelError):
    """The engine understood the request and will not serve it as it is."""

    status = 400


class Interrupted(ModelError):
    """The stream broke off; what had arrived is kept."""


# -- talking to an engine ------------------------------------------------------------------------------------


def unreachable(label: str = "") -> Unreachable:
    who = f"The model server {label}" if label else "The model server"
    return Unreachable(
        f"{who} cannot be reached. It may be starting or down: wait a minute and try again."
    )


def no_server() -> Unreachable:
    return Unreachable(
        "There is no engine: this Space has no GPU, and MODEL_URL names no other server."
    )


def timed_out(seconds: float) -> TimedOut:
    return TimedOut(
        f"The model sent nothing for {seconds:g} seconds. Try again with a shorter prompt, or raise REQUEST_TIMEOUT."
    )


def too_long(what: str, tokens: int, context_length: int) -> Rejected:
    return Rejected(
        f"The {what} has {tokens:,} tokens and the model's context holds {context_length:,}, the answer included: "
        "shorten it, or start a new one."
    )


def malformed_request() -> Rejected:
    return Rejected("This page cannot make sense of that request.")


def bad_message() -> Rejected:
    return Rejected(
        'Each message of the history is {"role": "user" or "assistant", "content": "text"}.'
    )


def too_many_answers(running: int) -> Rejected:
    return Rejected(
        f"You have {running} answers running already: wait until one of them has ended, or stop it."
    )


def cut_off() -> Interrupted:
    return Interrupted(
        "The answer was cut off: the connection to the model server was lost. Try again."
    )


def internal() -> ModelError:
    return ModelError(
        "Something went wrong on this page's side. Try again; the log of the Space says more."
    )


def malformed_response() -> Interrupted:
    return Interrupted(
        "The model server sent something that is not an answer. Check that MODEL_URL is an LLM server."
    )


def from_response(status: int, body: object) -> ModelError:
    """The error for a refusal: an HTTP status with the body (decoded JSON, or text) that came with it."""
    said = _message(body)
    if "EngineCore encountered an issue" in said:
        return Interrupted(
            "The model's engine has died. Wait a minute until it is back, and try again."
        )
    known = [
        (
            status in (401, 403),
            "The model server refused the key. Set MODEL_API_KEY to the server's key.",
        ),
        (
            "chat template" in said,
            "This model has no chat template, so it cannot chat. Use the Completion tab, or choose an instruct model.",
        ),
        (
            any(
                words in said
                for words in ("maximum context length", "maximum model length", "max_model_len")
            ),
            "The conversation does not fit the model's context. Shorten it or start a new one, or lower "
            f"max tokens. The server says: {said}",
        ),
        (status == 429, "The model server is busy. Try again in a minute."),
        (
            status == 404,
            f"The model server does not know this request: {said} Reload the page and try again.",
        ),
    ]
    for matches, sentence in known:
        if matches:
            return Rejected(sentence)
    if status < 500:
        return Rejected(f"The model server refused the request: {said}")
    return ModelError(
        f"The model server failed (HTTP {status}): {said} Try again; the engine's log says more."
    )


def _message(body: object) -> str:
    """What an error body says, in any of the forms servers use, as one short sentence."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = (
            inner.get("message") or inner.get("detail") or inner
            if isinstance(inner, dict)
            else inner
        )
    text = " ".join(str(body).split()) or "no reason given"
    text = text if len(text) <= 300 else text[:299] + "…"
    return text if text[-1] in ".!?…" else text + "."
