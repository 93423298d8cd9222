"""A conversation in its forms: for gr.Chatbot, for the engine, as Markdown and as JSON.

The JSON is OpenAI's list of messages; it is also what the visitor's browser stores. A user message
has text and images; an assistant message has text and, in small print below it, statistics. A
message with a title is a note of the page: the model's reasoning, or an error. Functions raise
Rejected for a file that is not a conversation or cannot be sent. Knows no component and no server.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Annotated, Any

from gradio import FileData
from pydantic import AfterValidator

from vllm_space import errors
from vllm_space.client import Message, text_of
from vllm_space.streaming import Answer

REASONING_TITLE = "Thought"  # to which Gradio adds "for 3 s"
FAILURE_MARK = "⚠️"  # at the beginning of an error's title
CONTINUE = "continue"  # value of the option under an answer that stopped at max tokens
TITLE_LENGTH = 48  # characters
TEXT_FILE_LIMIT = 64 * 2**10  # bytes; roughly a quarter as many tokens
IMAGE_LIMIT = 10 * 2**20  # bytes
IMAGES_LIMIT = 24 * 2**20  # bytes of all images in a conversation: 32 MiB when sent as text
MAX_FILES = 20  # in a message
MAX_MESSAGES = 1000  # in a conversation: Gradio compares all of them at each update
MAX_BRACKETS = 100_000  # in an imported file: more than these messages have, and quickly read
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
STORED_LIMIT = 2**19  # characters of one conversation; a browser has room for a few of these


def _validated(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation sent by a browser or a program.

    Raises ValueError if gr.Chatbot could not hold it, and Rejected if it is too long.
    """
    _check_length(history)
    for message in history:
        parts = message.get("content")
        if message.get("role") not in ("user", "assistant") or not isinstance(parts, list):
            raise ValueError("no role or no content")
        if not all(map(_is_part, parts)):
            raise ValueError("neither text nor a file")
    _check_length([part for message in history for part in message["content"]])
    return history


def _check_length(messages: Sized) -> None:
    if len(messages) > MAX_MESSAGES:
        raise errors.Rejected(
            f"This conversation has more than {MAX_MESSAGES:,} messages. Start a new one."
        )


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    if part.get("type") == "text":
        return isinstance(part.get("text"), str)
    file = part.get("file")
    return (
        part.get("type") == "file" and isinstance(file, dict) and isinstance(file.get("path"), str)
    )


# What gr.Chatbot holds: {"role", "content": [{"type": "text", "text"}], "metadata"}
History = Annotated[list[dict[str, Any]], AfterValidator(_validated)]

# -- for gr.Chatbot --------------------------------------------------------------------------------


def text_message(role: str, text: str, **metadata: Any) -> dict[str, Any]:
    """A message of gr.Chatbot. `metadata` such as a title makes it a note of the page."""
    # gradio 6.31: as a typed part, since a plain string is re-indented (inspect.cleandoc), and with
    # it the code in it
    return {
        "role": role,
        "content": [_text_part(text)],
        "metadata": metadata or None,
        "options": None,
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image_part(path: str) -> dict[str, Any]:
    file = FileData(path=path, mime_type=mimetypes.guess_type(path)[0], orig_name=Path(path).name)
    return {"type": "file", "file": file.model_dump(), "alt_text": None}


def question(text: str, files: list[str], images: bool) -> dict[str, Any]:
    """A user message: the text, with text files quoted in it under their names, and the images.

    `files` are paths; `images` says whether the model takes images. Raises Rejected for a file that
    cannot be sent.
    """
    if len(files) > MAX_FILES:
        raise errors.Rejected(f"Attach at most {MAX_FILES} files to a message.")
    image_parts = []
    for path in map(Path, files):
        if mimetypes.guess_type(path.name)[0] in IMAGE_TYPES:
            if not images:
                raise errors.Rejected(
                    f"{path.name} cannot be sent: this model does not accept images."
                )
            _check_size(path, IMAGE_LIMIT)
            image_parts.append(_image_part(str(path)))
        else:
            _check_size(path, TEXT_FILE_LIMIT)
            try:
                content = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise errors.Rejected(
                    f"{path.name} cannot be sent: it is not a text file."
                ) from None
            text = f"{text}\n\n{_quoted(path.name, content)}".lstrip()
    text_parts = [_text_part(text)] if text else []
    return text_message("user", text) | {"content": text_parts + image_parts}


def _check_size(path: Path, limit: int) -> None:
    if path.stat().st_size > limit:
        raise errors.Rejected(
            f"{path.name} cannot be sent: it is larger than {limit // 1024:,} KiB."
        )


def _quoted(name: str, content: str) -> str:
    fence = "```"
    while fence in content:
        fence += "`"
    return f"**{name}**\n{fence}\n{content.rstrip()}\n{fence}"


def answer_messages(answer: Answer, ended: bool = False, start: str = "") -> History:
    """An answer as messages of gr.Chatbot: its reasoning, text and error, if it has them.

    `start` is the text that the answer continues.
    """
    messages = []
    text = start + answer.text
    if start and not answer.text:
        # When an answer is continued, vLLM's parser takes text without tags for reasoning.
        text += answer.reasoning
    elif answer.reasoning and not start:
        messages.append(_reasoning_message(answer, ended))
    if text:
        messages.append(text_message("assistant", text))
        if ended and (line := stats(answer)):
            messages[-1]["content"].append(_text_part(f"<small>{line}</small>"))
            if answer.finish_reason == "length":
                label = f"Stopped at {_tokens(answer)} — Continue"
                messages[-1]["options"] = [{"value": CONTINUE, "label": label}]
    if answer.error:
        title = f"{FAILURE_MARK} {'The answer is incomplete' if text else 'No answer'}"
        messages.append(text_message("assistant", answer.error, title=title))
    elif ended and not text:
        note = "The model returned an empty answer."
        if answer.finish_reason == "length":
            note = f"The model was still reasoning at {_tokens(answer)}. Raise max tokens."
        messages.append(text_message("assistant", note, title="Empty answer"))
    return messages


def _reasoning_message(answer: Answer, ended: bool) -> dict[str, Any]:
    if not ended and not answer.text:
        return text_message("assistant", answer.reasoning, title="Thinking", status="pending")
    message = text_message("assistant", answer.reasoning, title=REASONING_TITLE, status="done")
    if answer.reasoning_time is not None:
        message["metadata"]["duration"] = round(answer.reasoning_time, 1)
    return message


def _token_count(answer: Answer) -> int:
    return (answer.usage or {}).get("completion_tokens") or 0


def _tokens(answer: Answer) -> str:
    count = _token_count(answer)
    return f"{count:,} token{'' if count == 1 else 's'}"


def stats(answer: Answer) -> str:
    """Tokens, speed and time to first token of an answer; empty if they are not known."""
    if not _token_count(answer) or answer.ttft is None:
        return ""
    speed = _token_count(answer) / max(answer.elapsed, 1e-3)
    return f"{_tokens(answer)} · {speed:,.0f} tokens/s · first token after {answer.ttft:.2f} s"


def is_note(message: dict[str, Any]) -> bool:
    return bool((message.get("metadata") or {}).get("title"))


def is_failure(message: dict[str, Any]) -> bool:
    return is_note(message) and message["metadata"]["title"].startswith(FAILURE_MARK)


def text(message: dict[str, Any]) -> str:
    """The text of a message, without the statistics below it."""
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    return "".join(texts[:1])


def turn(history: History, index: Any) -> int:
    """Index of the user message to which the message at `index` belongs.

    `index` comes from a browser: an integer, or a list that begins with one. Raises Rejected if
    there is no such message.
    """
    position = index[0] if isinstance(index, (list, tuple)) and index else index
    if not history or not isinstance(position, int):
        raise errors.Rejected("This message is no longer part of the conversation.")
    position = max(0, min(position, len(history) - 1))
    while position > 0 and history[position]["role"] != "user":
        position -= 1
    return position


def with_answer(history: History) -> History:
    """The conversation, which ends with an answer. Raises Rejected if it does not."""
    if not history or history[-1]["role"] != "assistant":
        raise errors.Rejected("There is no answer to continue.")
    return history


def example(value: Any) -> str:
    """The question of an example, as the browser sends it. Raises Rejected if it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise errors.Rejected("This is not one of the examples.")
    return str(value["text"])


def edited(message: dict[str, Any], new_text: Any) -> dict[str, Any]:
    """The message with a new text and the same images."""
    images = [part for part in message["content"] if part["type"] == "file"]
    return message | {"content": [_text_part(str(new_text)), *images]}


def title(history: History) -> str:
    """The first question, shortened."""
    questions = [text(message) for message in history if message["role"] == "user"]
    line = " ".join("".join(questions[:1]).split()) or "Image"
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


# -- for the engine --------------------------------------------------------------------------------


def to_messages(history: History) -> list[Message]:
    """The conversation as sent to the engine, without notes: no earlier reasoning, no errors.

    generation.py adds the system message. Raises Rejected if the images are too large together.
    """
    _check_images(history)
    return [
        {"role": message["role"], "content": _content(message)}
        for message in history
        if not is_note(message)
    ]


def _check_images(history: History) -> None:
    """Raise Rejected if the images are too large together, or deleted, as they are after a day.

    A program can name the same file many times, so this comes before any of them is read.
    """
    paths = [path for message in history for path in image_paths(message)]
    try:
        size = sum(Path(path).stat().st_size for path in paths)
    except (OSError, ValueError):
        raise errors.Rejected(
            "An image of this conversation is no longer on the server. Attach it again."
        ) from None
    if size > IMAGES_LIMIT:
        raise errors.Rejected(
            f"The images of this conversation are larger than {IMAGES_LIMIT // 2**20} MiB "
            "together. Start a new one, or use smaller images."
        )


def image_paths(message: dict[str, Any]) -> list[str]:
    """Paths of the images of a message."""
    return [part["file"]["path"] for part in message["content"] if part["type"] == "file"]


def _content(message: dict[str, Any]) -> str | list[dict[str, Any]]:
    """The text of a message, with its images as data URLs if it has any."""
    paths = image_paths(message)
    if not paths:
        return text(message)
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data_url(path)}} for path in paths
    ]
    return parts + ([_text_part(text(message))] if text(message) else [])


def _data_url(path: str) -> str:
    mime_type = mimetypes.guess_type(path)[0] or "image/png"
    return f"data:{mime_type};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


# -- for files and the browser's storage -----------------------------------------------------------


def to_json(history: History, system_prompt: str = "") -> list[Message]:
    """The conversation as OpenAI's messages, beginning with the visitor's own system prompt.

    Reasoning is the field `reasoning` of an assistant message. Raises Rejected if the images are
    too large together.
    """
    _check_images(history)
    messages: list[Message] = []
    if system_prompt.strip():
        messages.append({"role": "system", "content": system_prompt})
    reasoning = ""
    for message in history:
        if is_note(message):
            if message["metadata"]["title"] == REASONING_TITLE:
                reasoning = text(message)
            continue
        messages.append({"role": message["role"], "content": _content(message)})
        if message["role"] == "assistant" and reasoning:
            messages[-1]["reasoning"] = reasoning
        reasoning = ""
    return messages


def from_json(messages: Any, save: Callable[[str], str]) -> tuple[History, str]:
    """(history, system prompt) of OpenAI's messages, or of an object with `messages`.

    Images must be data URLs; `save` turns each of them into the path of a file. Raises Rejected for
    anything else.
    """
    if isinstance(messages, dict):
        messages = messages.get("messages")
    if isinstance(messages, list):
        _check_length(messages)
    history: History = []
    system_prompt = ""
    try:
        for message in messages:
            if message["role"] == "system":
                system_prompt = text_of(message)
            elif message["role"] in ("user", "assistant"):
                if message.get("reasoning"):
                    history.append(_stored_reasoning(str(message["reasoning"])))
                history.append(_stored_message(message, save))
            else:
                raise ValueError(message["role"])
    except (TypeError, KeyError, ValueError, AttributeError, OSError):
        raise errors.Rejected(
            "This is not a conversation. Use a JSON list of messages, each "
            '{"role": "user", "content": "text"}.'
        ) from None
    return history, system_prompt


def _stored_reasoning(reasoning: str) -> dict[str, Any]:
    return text_message("assistant", reasoning, title=REASONING_TITLE, status="done")


def _stored_message(message: Message, save: Callable[[str], str]) -> dict[str, Any]:
    """One of OpenAI's messages as a message of gr.Chatbot. Raises ValueError and the like."""
    parts = message["content"] if isinstance(message["content"], list) else []
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    words = text_of(message)
    if not isinstance(words, str) or not all(url.startswith("data:image/") for url in urls):
        raise ValueError("neither text nor images")
    images = [_image_part(save(url)) for url in urls]
    texts = [_text_part(words)] if words or not images else []
    return {"role": message["role"], "content": texts + images, "metadata": None}


def read_file(path: str, save: Callable[[str], str]) -> tuple[History, str]:
    """(history, system prompt) of an exported JSON file. Raises Rejected if it is not one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        is_long = text.count("{") + text.count("[") > MAX_BRACKETS
        messages = None if is_long else json.loads(text)
    except (OSError, ValueError, RecursionError):
        messages = None
    return from_json(messages, save)


def to_markdown(history: History, system_prompt: str = "") -> str:
    """The conversation for people to read."""
    headings = {"system": "System", "user": "You", "assistant": "Model"}
    blocks = [f"# {title(history)}"]
    for message in to_json(history, system_prompt):
        blocks.append(f"## {headings[message['role']]}")
        if message.get("reasoning"):
            blocks.append("\n".join(f"> {line}" for line in message["reasoning"].splitlines()))
        if isinstance(message["content"], list):
            images = [part for part in message["content"] if part["type"] == "image_url"]
            blocks += [f"![image]({image['image_url']['url']})" for image in images]
        blocks.append(text_of(message))
    return "\n\n".join(filter(None, blocks)) + "\n"


def to_stored(history: History, system_prompt: str, id: str) -> dict[str, Any]:
    """{"id", "title", "messages"}: a conversation as the browser stores it.

    Large images are left out, since the browser has no room for them.
    """
    messages = to_json(history, system_prompt)
    if len(json.dumps(messages)) > STORED_LIMIT:
        messages = [message | {"content": text_of(message) or "(image)"} for message in messages]
    return {"id": id, "title": title(history), "messages": messages}
