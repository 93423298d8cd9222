"""Client for model servers: sends a prompt or messages over HTTP and streams the text back.

Speaks the OpenAI API and the `POST /generate` of vLLM's legacy server. Knows nothing of Gradio.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

import requests
import urllib3

from vllm_space import chunks, dialect, error_body, errors
from vllm_space.chunks import Chunk
from vllm_space.connection import CONNECT_TIMEOUT, check_response, decoded, failure, session
from vllm_space.server import Model, Server

log = logging.getLogger(__name__)

READ_SIZE = 65536  # bytes; only an upper bound: whatever has arrived is passed on immediately

# {"role": "system" | "user" | "assistant", "content": a str, or a list of OpenAI's content parts}
Message = dict[str, Any]


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
        self._chunks = (_legacy if model.protocol == "generate" else _openai)(self)

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

    def blocks(self) -> Iterator[bytes]:
        """POST the request and yield the body of the response in blocks, as they arrive."""
        with session(self.model.server) as http, self._respond(http) as response:
            check_response(response, self.model.server.secrets)
            # read1 returns after one read of the socket; iter_content would wait for a full block.
            try:
                while block := response.raw.read1(READ_SIZE, decode_content=True):
                    yield block
            except urllib3.exceptions.HTTPError:
                if not self._closed:
                    raise

    def _respond(self, http: requests.Session) -> requests.Response:
        """The response to the request, sent again without the fields that the server refuses.

        What was changed is remembered only if it helped: an error can be about something else, or
        repeat what the visitor wrote.
        """
        server, known, changes = self.model.server, dialect.of(self.model), list[str]()
        while True:
            body = known.apply(self.body)
            self._response = response = http.post(
                server.endpoint(self.path),
                json=body,
                stream=True,
                timeout=(CONNECT_TIMEOUT, server.timeout),
                allow_redirects=False,
            )
            if response.ok or self._closed:
                break
            error = decoded(response)
            change = known.learn(body, response.status_code, error)
            if not change or len(changes) == dialect.MAX_CHANGES:
                raise failure(response, error, server.secrets)
            changes.append(change)
            response.close()
        if response.ok and changes:
            dialect.remember(self.model, known)
            log.warning(
                "%s refuses some fields; from now on, %s", self.model.label, ", ".join(changes)
            )
        return response


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
    return Stream(model, "/v1/chat/completions", body | continuation(messages))


def continuation(messages: list[Message]) -> dict[str, bool]:
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


_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def _openai(stream: Stream) -> Generator[Chunk, None, None]:
    yield from chunks.read(stream.blocks(), stream.model.server.secrets)


# -- vLLM's legacy server: JSON lines, each with the prompt and the whole text so far ------


def _legacy(stream: Stream) -> Generator[Chunk, None, None]:
    prompt = stream.body["prompt"]
    sent, received_any = 0, False
    for line in _lines(stream.blocks()):
        texts = _decode(line, stream.model.server).get("text")
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


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines that are not empty. Older versions separate them by \\0."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block.replace(b"\0", b"\n")).split(b"\n")
        yield from filter(None, lines)
    if rest:
        yield rest


def _decode(line: bytes, server: Server) -> dict[str, Any]:
    try:
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    except (ValueError, RecursionError):
        pass
    shown = error_body.mask(line.decode("utf-8", "replace"), server.secrets)[:500]
    log.error("the model server sent a line that is not a JSON object: %r", shown)
    raise errors.malformed_response()
