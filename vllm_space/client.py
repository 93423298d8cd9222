"""A prompt or messages -> a stream of text, over HTTP with `requests`.

Speaks the OpenAI protocol of the vLLM api_server and the legacy `POST /generate`; which one a server
speaks is found by asking it. Knows nothing of Gradio.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from vllm_space import errors, hardware

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5  # seconds
HEALTH_TIMEOUT = 3  # seconds; whoever asks /healthz waits for this
LIST_TIMEOUT = 5  # seconds; a page waits for this
READ_SIZE = 65536  # bytes; an upper bound: what has arrived is handed on at once

# A white square of 64 pixels, to ask with.
TEST_IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAS0lEQVR42u3PMQ0AAAwDoPo33UrYvQQckD4XAQEBAQ"
    "EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAYHLAMpT0sIcNbcEAAAAAElFTkSuQmCC"
)

Message = dict[
    str, Any
]  # {"role": "system" | "user" | "assistant", "content": str or OpenAI's typed parts}


@dataclass(frozen=True)
class Server:
    """One running engine. `url` is its root, without /v1."""

    url: str
    label: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300  # seconds to wait for the next chunk of an answer

    @classmethod
    def from_url(
        cls, url: str, *, label: str = "", api_key: str | None = None, timeout: float = 300
    ) -> Server:
        """A server from its address in any form: the root, or with /v1 or /generate."""
        url = url.strip().rstrip("/")
        for suffix in ("/v1", "/generate"):
            url = url.removesuffix(suffix)
        return cls(url, label, api_key, timeout)

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return hardware.is_loopback(urlsplit(self.url).hostname)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True)
class Model:
    """One model that a server offers. `protocol` is how that server is spoken to."""

    server: Server
    name: str
    protocol: str = "openai"  # or "generate"
    context_length: int | None = None
    is_vllm: bool = False  # it knows fields of vLLM's own

    @property
    def label(self) -> str:
        """The name to show and to choose by, unique over all servers."""
        return f"{self.name} ({self.server.label})" if self.server.label else self.name


@dataclass(frozen=True)
class Chunk:
    """What arrived together: new text, new thinking, and at the end the reason it ended and the token counts."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


def models(server: Server) -> list[Model]:
    """Ask a server which models it offers.

    A server without /v1/models but with /health is taken for vLLM's legacy one, which names no model.
    Raises ModelError if it cannot be reached or refuses.
    """
    with _session(server) as session:
        answer = session.get(f"{server.url}/v1/models", timeout=(CONNECT_TIMEOUT, LIST_TIMEOUT))
        if answer.status_code == 404:
            return [Model(server, server.label or "vLLM (legacy server)", "generate")]
        _check(answer)
        found = [
            Model(
                server,
                model["id"],
                context_length=model.get("max_model_len"),
                is_vllm=model.get("owned_by") == "vllm",
            )
            for model in answer.json()["data"]
        ]
        # For seconds after the death of vLLM's engine, its API server still answers this.
        if any(model.is_vllm for model in found) and not _is_up(session, server, LIST_TIMEOUT):
            raise errors.unreachable(server.label)
        return found


def is_up(server: Server) -> bool:
    """Whether a server can answer requests now."""
    try:
        with _session(server) as session:
            return _is_up(session, server, HEALTH_TIMEOUT)
    except errors.ModelError:
        return False


def _is_up(session: requests.Session, server: Server, timeout: float) -> bool:
    """Ask /health, and /readiness if that is 503: vllm-router's /health is 503 while any of its replicas is down.

    A server that is not vLLM may have neither, and still answer.
    """

    def status(path: str) -> int:
        return session.get(f"{server.url}/{path}", timeout=timeout).status_code

    health = status("health")
    return status("readiness") == 200 if health == 503 else health < 500


class Stream:
    """An answer on its way: an iterator of Chunks, which raises ModelError.

    Nothing is sent before the first chunk is asked for. `close` may be called from any thread: it ends a read that
    waits, and with the connection the engine stops generating.
    """

    def __init__(self, model: Model, path: str, body: dict[str, Any]):
        self.model = model
        self.path = path
        self.body = body
        self._answer: requests.Response | None = None
        self._closed = False
        self._chunks = (_generate if model.protocol == "generate" else _openai)(self)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        self._closed = True
        if self._answer is not None:
            with suppress(OSError, ValueError, RuntimeError):  # it has ended, or ends just now
                self._answer.raw.shutdown()  # wakes a thread that waits in a read; its generator closes the connection
        with suppress(ValueError):  # that thread is inside the generator
            self._chunks.close()

    def lines(self, separators: bytes) -> Iterator[bytes]:
        """POST the request and yield the answer's lines as they arrive, without the blank ones."""
        table = bytes.maketrans(separators, b"\n" * len(separators))
        server = self.model.server
        timeout = (CONNECT_TIMEOUT, server.timeout)
        with (
            _session(server) as session,
            session.post(
                server.url + self.path, json=self.body, stream=True, timeout=timeout
            ) as self._answer,
        ):
            _check(self._answer)
            rest = b""
            # read1 returns what one read of the socket gave; requests' iter_lines would wait for a full buffer.
            try:
                while data := self._answer.raw.read1(READ_SIZE, decode_content=True):
                    *lines, rest = (rest + data.translate(table)).split(b"\n")
                    yield from filter(None, lines)
            except urllib3.exceptions.HTTPError:
                if not self._closed:
                    raise
            if rest:
                yield rest


def chat(model: Model, messages: list[Message], sampling: dict[str, Any]) -> Stream:
    """The answer to a conversation; where the last message is the assistant's, the rest of that one.

    `sampling` holds the fields of the request (max_tokens, temperature, ...) that are set; the others are not sent,
    so the model's own defaults hold.
    """
    if model.protocol == "generate":
        # Without a chat template the model would go on to write the user's next turn.
        stop = [*sampling.get("stop", []), "\nUser:"]
        return complete(model, transcript(messages), sampling | {"stop": stop})
    body = {
        "model": model.name,
        "messages": messages,
        **sampling,
        **_STREAM,
        **_prompt_end(messages),
    }
    return Stream(model, "/v1/chat/completions", body)


def _prompt_end(messages: list[Message]) -> dict[str, bool]:
    """vLLM's fields that make it go on with the assistant's last message instead of beginning another."""
    if messages and messages[-1]["role"] == "assistant":
        return {"continue_final_message": True, "add_generation_prompt": False}
    return {}


def complete(model: Model, prompt: str, sampling: dict[str, Any]) -> Stream:
    """The continuation of a text. Otherwise as `chat`."""
    if model.protocol == "generate":
        return Stream(model, "/generate", {"prompt": prompt, "stream": True, **sampling})
    return Stream(
        model, "/v1/completions", {"model": model.name, "prompt": prompt, **sampling, **_STREAM}
    )


def transcript(messages: list[Message]) -> str:
    """A conversation as plain text, for a server that has no chat template; it ends where the answer goes."""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    lines = [f"{names[message['role']]}: {text_of(message)}" for message in messages]
    if not messages or messages[-1]["role"] != "assistant":
        lines.append("Assistant:")
    return "\n".join(lines)


def text_of(message: Message) -> str:
    """The text of a message, without its pictures."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def count_tokens(model: Model, prompt: str | list[Message]) -> int | None:
    """Tokens of a text or a conversation as the model gets it; None if the server cannot count. Raises ModelError."""
    if isinstance(prompt, str):
        body: dict[str, Any] = {"model": model.name, "prompt": prompt}
    else:
        body = {"model": model.name, "messages": prompt, **_prompt_end(prompt)}
    status, answer = _ask(model.server, "/tokenize", body)
    return answer.get("count") if status == 200 else None


def takes_images(model: Model) -> bool:
    """Whether the model takes pictures: asked by letting the server count the tokens of one. Raises ModelError.

    A model without eyes refuses that; a server that cannot count is taken to have none.
    """
    picture = {"type": "image_url", "image_url": {"url": TEST_IMAGE}}
    body = {"model": model.name, "messages": [{"role": "user", "content": [picture]}]}
    return _ask(model.server, "/tokenize", body)[0] == 200


def metrics(server: Server) -> str | None:
    """The text of the server's /metrics; None where it has none. Raises ModelError."""
    with _session(server) as session:
        answer = session.get(f"{server.url}/metrics", timeout=(CONNECT_TIMEOUT, 10))
        return answer.text if answer.ok else None


def _ask(server: Server, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST -> status and JSON of the answer, whatever they are."""
    with _session(server) as session:
        answer = session.post(server.url + path, json=body, timeout=(CONNECT_TIMEOUT, 30))
        try:
            value = answer.json()
        except ValueError:
            value = {}
        return answer.status_code, value if isinstance(value, dict) else {}


# -- the OpenAI protocol: server-sent events ---------------------------------------------------------------

_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def _openai(stream: Stream) -> Generator[Chunk, None, None]:
    finished = False
    for line in stream.lines(b"\n"):
        if not line.startswith(b"data:"):
            continue  # a blank line between events, or a keep-alive comment
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = _chunk(_decode(data))
        finished = finished or chunk.finish_reason is not None
        yield chunk
    if not finished:  # some servers leave out [DONE]; none leaves out the finish reason
        raise errors.cut_off()


def _chunk(event: dict[str, Any]) -> Chunk:
    if "error" in event:  # vLLM reports a failure in mid-stream as an event
        raise errors.from_response(event["error"].get("code") or 500, event)
    usage = event.get("usage")
    if not event.get("choices"):
        return Chunk(usage=usage)
    choice = event["choices"][0]
    delta = choice.get("delta")
    if delta is None:  # /v1/completions
        return Chunk(choice.get("text") or "", "", choice.get("finish_reason"), usage)
    reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
    return Chunk(delta.get("content") or "", reasoning, choice.get("finish_reason"), usage)


# -- the legacy protocol: lines of JSON, each with the prompt and everything so far ---------------------------


def _generate(stream: Stream) -> Generator[Chunk, None, None]:
    prompt = stream.body["prompt"]
    sent, seen = 0, False
    for line in stream.lines(b"\0\n"):
        texts = _decode(line).get("text")
        if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
            raise errors.malformed_response()
        # The prompt is echoed in front. A tokenizer may not give back its exact spelling; its length is the best guess.
        text = texts[0][len(prompt) :]
        seen = True
        # A character whose bytes are still incomplete shows as U+FFFD until the next token completes it.
        text = text.removesuffix("\ufffd")
        yield Chunk(text[sent:])
        sent = max(sent, len(text))
    if not seen:
        raise errors.cut_off()
    yield Chunk(finish_reason="stop")


# -- HTTP ------------------------------------------------------------------------------------------------


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    except ValueError:
        pass
    log.error("the engine sent a line that is not JSON: %r", line[:500])
    raise errors.malformed_response()


def _check(answer: requests.Response) -> None:
    """Raise the ModelError that a refusal stands for."""
    if answer.ok:
        return
    try:
        body = answer.json()
    except ValueError:
        body = answer.text
    log.error("the engine answered %s: %s", answer.status_code, str(body)[:500])
    raise errors.from_response(answer.status_code, body)


@contextmanager
def _session(server: Server) -> Iterator[requests.Session]:
    """A session with `server` in which every way a connection can fail becomes its ModelError."""
    with requests.Session() as session:
        # No proxy and no .netrc between this page and an engine on the same machine.
        session.trust_env = not server.is_here
        session.headers.update(server.headers)
        try:
            yield session
        except requests.exceptions.ConnectTimeout:
            raise errors.unreachable(server.label) from None
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise errors.timed_out(server.timeout) from None
        except (urllib3.exceptions.HTTPError, requests.exceptions.ChunkedEncodingError) as error:
            log.error("the engine's stream broke off: %s", error)
            raise errors.cut_off() from None
        except requests.exceptions.RequestException as error:
            log.error("the engine cannot be reached: %s", type(error).__name__)
            raise errors.unreachable(server.label) from None
