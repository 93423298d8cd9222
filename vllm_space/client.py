"""Client for model servers: sends a prompt or messages over HTTP and streams the text back.

Speaks the OpenAI API of vLLM's api_server and the `POST /generate` of vLLM's legacy server;
`models` detects which of them a server has. Knows nothing of Gradio.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from vllm_space import errors, hardware

log = logging.getLogger(__name__)

# Timeouts in seconds. Server.timeout limits the wait for each chunk of an answer.
CONNECT_TIMEOUT = 5
LIST_TIMEOUT = 5  # loading the page waits for this
METRICS_TIMEOUT = 10
TOKENIZE_TIMEOUT = 30
COUNT_WAIT = 5  # for the token counts of other visitors of the page; not those of the gateway
MAX_NAME = 500  # characters of a model's name
READ_SIZE = 65536  # bytes; only an upper bound: whatever has arrived is passed on immediately

# A white square of 64 x 64 pixels, to find out whether a model accepts images.
TEST_IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAS0lEQVR42u3PMQ0AAAwDoPo33UrYvQQckD4XAQEBAQ"
    "EBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAYHLAMpT0sIcNbcEAAAAAElFTkSuQmCC"
)

# {"role": "system" | "user" | "assistant", "content": a str, or a list of OpenAI's content parts}
Message = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A running model server. `url` is its root, without /v1."""

    url: str
    label: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300  # seconds to wait for the next chunk of an answer

    @classmethod
    def from_url(
        cls, url: str, *, label: str = "", api_key: str | None = None, timeout: float = 300
    ) -> Server:
        """A server by its root URL, which may end in /v1 or /generate."""
        url = url.strip().rstrip("/")
        for suffix in ("/v1", "/generate"):
            url = url.removesuffix(suffix)
        return cls(url, label, api_key, timeout)

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine."""
        return hardware.is_loopback(urlsplit(self.url).hostname)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True)
class Model:
    """A model that a server offers. `protocol` is the one that the server speaks."""

    server: Server
    name: str
    protocol: str = "openai"  # or "generate"
    context_length: int | None = None  # tokens
    is_vllm: bool = False  # the server accepts vLLM's extra request fields

    @property
    def label(self) -> str:
        """The name shown on the page, unique across all servers."""
        return f"{self.name} ({self.server.label})" if self.server.label else self.name


@dataclass(frozen=True)
class Chunk:
    """One event of a stream: new text or reasoning; at the end, the finish reason and the usage."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


def models(server: Server) -> list[Model]:
    """The models that a server offers.

    A server that answers /v1/models with 404 is taken for vLLM's legacy server, which does not name
    its model. Raises ModelError if the server cannot be reached or returns an error.
    """
    with _session(server) as session:
        response = session.get(f"{server.url}/v1/models", timeout=(CONNECT_TIMEOUT, LIST_TIMEOUT))
        if response.status_code == 404:
            return [Model(server, server.label or "vLLM (legacy server)", "generate")]
        _check(response, logging.DEBUG)  # Catalog logs it, once
        models = [
            Model(
                server,
                _checked_name(model["id"]),
                context_length=model.get("max_model_len"),
                is_vllm=model.get("owned_by") == "vllm",
            )
            for model in response.json()["data"]
        ]
        # vLLM's API server keeps listing models for some seconds after its engine has died.
        if any(model.is_vllm for model in models) and not _is_up(session, server, LIST_TIMEOUT):
            raise errors.unreachable(server.label)
        return models


def _checked_name(name: Any) -> str:
    """A model's name. Raises ModelError if it could not be shown on the page or in the log."""
    if isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME:
        return name
    log.error("a model server lists a model with the name %.200r", name)
    raise errors.malformed_response()


def check(server: Server, timeout: float) -> None:
    """Raise ModelError unless the server can answer requests now.

    Waits up to `timeout` seconds for each response; TimedOut if one does not come. The /health of
    vLLM does not wait for its tokenizer, a single thread that every request needs: tokenize a word.
    """
    with _session(server) as session:
        try:
            if not _is_up(session, server, timeout):
                raise errors.unreachable(server.label)
            if model := _vllm_model(session, server, timeout):
                body = {"model": model, "prompt": "Hi"}
                # Even an error shows that it responds.
                session.post(f"{server.url}/tokenize", json=body, timeout=timeout)
        except requests.exceptions.ReadTimeout:
            raise errors.not_answering(server.label) from None


def _vllm_model(session: requests.Session, server: Server, timeout: float) -> str | None:
    """The name of a model of the server, if it is vLLM."""
    response = session.get(f"{server.url}/v1/models", timeout=timeout)
    if not response.ok:
        return None  # no list of models, or a router that has just lost a replica
    try:
        models = response.json()["data"]
        return next((model["id"] for model in models if model.get("owned_by") == "vllm"), None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _is_up(session: requests.Session, server: Server, timeout: float) -> bool:
    """Check /health; if that is 503, /readiness decides.

    The /health of vllm-router is 503 as long as any of its replicas is down. Servers other than
    vLLM may have neither endpoint and still answer requests.
    """

    def status(path: str) -> int:
        return session.get(f"{server.url}/{path}", timeout=timeout).status_code

    health = status("health")
    return status("readiness") == 200 if health == 503 else health < 500


class Stream:
    """A streamed answer: an iterator of Chunks that raises ModelError.

    The request is sent when the first chunk is requested. `close` may be called from any thread: it
    interrupts a blocked read and closes the connection, upon which the engine stops generating.
    """

    def __init__(self, model: Model, path: str, body: dict[str, Any]):
        self.model = model
        self.path = path
        self.body = body
        self._response: requests.Response | None = None
        self._closed = False
        self._chunks = (_generate if model.protocol == "generate" else _openai)(self)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        self._closed = True
        if self._response is not None:
            # Wakes a thread blocked in a read; that thread's generator then closes the connection.
            # The response may have ended already.
            with suppress(OSError, ValueError, RuntimeError):
                self._response.raw.shutdown()
        with suppress(ValueError):  # another thread is running the generator
            self._chunks.close()

    def lines(self, separators: bytes) -> Iterator[bytes]:
        """POST the request and yield the non-empty lines of the response as they arrive."""
        table = bytes.maketrans(separators, b"\n" * len(separators))
        server = self.model.server
        timeout = (CONNECT_TIMEOUT, server.timeout)
        with (
            _session(server) as session,
            session.post(
                server.url + self.path, json=self.body, stream=True, timeout=timeout
            ) as self._response,
        ):
            _check(self._response)
            rest = b""
            # read1 returns after one read of the socket; iter_lines would wait for a full buffer.
            try:
                while data := self._response.raw.read1(READ_SIZE, decode_content=True):
                    *lines, rest = (rest + data.translate(table)).split(b"\n")
                    yield from filter(None, lines)
            except urllib3.exceptions.HTTPError:
                if not self._closed:
                    raise
            if rest:
                yield rest


def chat(model: Model, messages: list[Message], sampling: dict[str, Any]) -> Stream:
    """Stream the answer to a conversation. If the last message is the assistant's, continue it.

    `sampling` holds the request fields to send (max_tokens, temperature, ...). The model's own
    defaults apply to all others.
    """
    if model.protocol == "generate":
        # Without a chat template the model would go on to write the user's next turn.
        stop = [*sampling.get("stop", []), "\nUser:"]
        return complete(model, transcript(messages), sampling | {"stop": stop})
    body = {"model": model.name, "messages": messages, **sampling, **_STREAM}
    return Stream(model, "/v1/chat/completions", body | _continuation(messages))


def _continuation(messages: list[Message]) -> dict[str, bool]:
    """vLLM's fields that make it continue the assistant's last message instead of starting one."""
    if messages and messages[-1]["role"] == "assistant":
        return {"continue_final_message": True, "add_generation_prompt": False}
    return {}


def complete(model: Model, prompt: str, sampling: dict[str, Any]) -> Stream:
    """Stream the continuation of a text. `sampling` is the same as for `chat`."""
    if model.protocol == "generate":
        return Stream(model, "/generate", {"prompt": prompt, "stream": True, **sampling})
    body = {"model": model.name, "prompt": prompt, **sampling, **_STREAM}
    return Stream(model, "/v1/completions", body)


def transcript(messages: list[Message]) -> str:
    """A conversation as plain text that ends where the answer begins: a makeshift chat template."""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    lines = [f"{names[message['role']]}: {text_of(message)}" for message in messages]
    if not messages or messages[-1]["role"] != "assistant":
        lines.append("Assistant:")
    return "\n".join(lines)


def text_of(message: Message) -> str:
    """The text of a message, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


_counting: dict[str, threading.Lock] = {}  # URL of a server -> held while it counts


def count_tokens(model: Model, prompt: str | list[Message]) -> int | None:
    """Number of tokens in a text, or in a conversation after the chat template.

    None if the server has no /tokenize, or is busy counting for others. Raises ModelError.
    """
    if isinstance(prompt, str):
        body: dict[str, Any] = {"model": model.name, "prompt": prompt}
    else:
        body = {"model": model.name, "messages": prompt, **_continuation(prompt)}
    # vLLM counts in a single thread that every request needs: the page does it once at a time, as
    # does the gateway (upstream.py), so that at most two counts per server keep others waiting.
    counting = _counting.setdefault(model.server.url, threading.Lock())
    if not counting.acquire(timeout=COUNT_WAIT):
        return None
    try:
        status, result = _tokenize(model.server, body)
    finally:
        counting.release()
    return result.get("count") if status == 200 else None


def takes_images(model: Model) -> bool:
    """Whether the model accepts images: whether the server can tokenize one. Raises ModelError.

    A text-only model returns an error, and a server without /tokenize counts as text-only.
    """
    image = {"type": "image_url", "image_url": {"url": TEST_IMAGE}}
    body = {"model": model.name, "messages": [{"role": "user", "content": [image]}]}
    return _tokenize(model.server, body)[0] == 200


def metrics(server: Server) -> str | None:
    """The text of the server's /metrics, or None if it has none. Raises ModelError."""
    timeout = (CONNECT_TIMEOUT, METRICS_TIMEOUT)
    with _session(server) as session:
        response = session.get(f"{server.url}/metrics", timeout=timeout)
        return response.text if response.ok else None


def _tokenize(server: Server, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST /tokenize -> the HTTP status and the JSON object of the response, {} if it has none."""
    timeout = (CONNECT_TIMEOUT, TOKENIZE_TIMEOUT)
    with _session(server) as session:
        response = session.post(f"{server.url}/tokenize", json=body, timeout=timeout)
        try:
            value = response.json()
        except ValueError:
            value = {}
        return response.status_code, value if isinstance(value, dict) else {}


# -- the OpenAI API: server-sent events ----------------------------------------------------

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
    if not finished:  # some servers omit [DONE], but none omits the finish reason
        raise errors.cut_off()


def _chunk(event: dict[str, Any]) -> Chunk:
    if "error" in event:  # vLLM reports an error in mid-stream as an event
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


# -- vLLM's legacy server: JSON lines, each with the prompt and the whole text so far ------


def _generate(stream: Stream) -> Generator[Chunk, None, None]:
    prompt = stream.body["prompt"]
    sent, received_any = 0, False
    for line in stream.lines(b"\0\n"):
        texts = _decode(line).get("text")
        if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
            raise errors.malformed_response()
        received_any = True
        # The text starts with the prompt. A tokenizer may not reproduce it character for character,
        # so its length is the best guess.
        text = texts[0][len(prompt) :]
        # An incomplete UTF-8 character appears as U+FFFD until the next token completes it.
        text = text.removesuffix("\ufffd")
        yield Chunk(text[sent:])
        sent = max(sent, len(text))
    if not received_any:
        raise errors.cut_off()
    yield Chunk(finish_reason="stop")


# -- HTTP ----------------------------------------------------------------------------------


def _decode(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    except ValueError:
        pass
    log.error("the model server sent a line that is not a JSON object: %r", line[:500])
    raise errors.malformed_response()


def _check(response: requests.Response, log_level: int = logging.ERROR) -> None:
    """Raise a ModelError if the response is an HTTP error."""
    if response.ok:
        return
    try:
        body = response.json()
    except ValueError:
        body = response.text
    log.log(
        log_level, "the model server returned HTTP %s: %s", response.status_code, str(body)[:500]
    )
    raise errors.from_response(response.status_code, body)


@contextmanager
def _session(server: Server) -> Iterator[requests.Session]:
    """A session that turns every connection failure into a ModelError."""
    with requests.Session() as session:
        # A local server must not be reached through a proxy, nor with credentials from .netrc.
        session.trust_env = not server.is_local
        session.headers.update(server.headers)
        try:
            yield session
        except requests.exceptions.ConnectTimeout:
            raise errors.unreachable(server.label) from None
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError):
            raise errors.timed_out(server.timeout) from None
        except (urllib3.exceptions.HTTPError, requests.exceptions.ChunkedEncodingError) as error:
            log.error("the stream from the model server was cut off: %s", error)
            raise errors.cut_off() from None
        except requests.exceptions.RequestException as error:
            log.debug("the model server cannot be reached: %s", type(error).__name__)
            raise errors.unreachable(server.label) from None
