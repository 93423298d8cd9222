"""A conversation in its forms: as gr.Chatbot holds it, as the engine is sent it, as Markdown, and as OpenAI-style JSON.

The JSON is also what the visitor's browser keeps. A user's message is its text and pictures; an assistant's is its
text and, small beneath it, the numbers. What has a title is a note of the page (thinking, an error). Raises Rejected
for a file that is no conversation or cannot be taken. Knows no component and no server.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from pathlib import Path
from typing import Annotated, Any

from gradio import FileData
from gradio.processing_utils import save_base64_to_cache
from pydantic import AfterValidator

from vllm_space import errors
from vllm_space.client import Message, text_of
from vllm_space.streaming import Answer


def _checked(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a browser or a program sent as a conversation. Raises ValueError if gr.Chatbot could not hold it."""
    for one in history:
        parts = one.get("content")
        if one.get("role") not in ("user", "assistant") or not isinstance(parts, list):
            raise ValueError("no role or no content")
        if not all(map(_is_part, parts)):
            raise ValueError("neither text nor a file")
    return history


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
History = Annotated[list[dict[str, Any]], AfterValidator(_checked)]

THOUGHT = "Thought"
FAILED = "⚠️"
CONTINUE = "continue"  # value of the option under an answer that stopped at max tokens
TITLE_LENGTH = 48  # characters
TEXT_FILE_LIMIT = 64 * 2**10  # bytes; a quarter of it in tokens, roughly
IMAGE_LIMIT = 10 * 2**20  # bytes
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

# -- as gr.Chatbot holds it ----------------------------------------------------------------------------------


def message(role: str, text: str, **metadata: Any) -> dict[str, Any]:
    # gradio 6.31: as a typed part, since a plain string is re-indented (inspect.cleandoc), and with it the code in it
    return {"role": role, "content": [_part(text)], "metadata": metadata or None, "options": None}


def _part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(path: str) -> dict[str, Any]:
    file = FileData(path=path, mime_type=mimetypes.guess_type(path)[0], orig_name=Path(path).name)
    return {"type": "file", "file": file.model_dump(), "alt_text": None}


def question(text: str, files: list[str], images: bool) -> dict[str, Any]:
    """The user's message: the text, text files quoted in it under their names, and pictures beside it.

    `images` says whether the model takes those. Raises Rejected for a file that cannot be sent.
    """
    pictures = []
    for path in map(Path, files):
        if mimetypes.guess_type(path.name)[0] in IMAGE_TYPES:
            if not images:
                raise errors.Rejected(f"{path.name} cannot be sent: this model takes no images.")
            _check_size(path, IMAGE_LIMIT)
            pictures.append(_picture(str(path)))
        else:
            _check_size(path, TEXT_FILE_LIMIT)
            try:
                content = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise errors.Rejected(
                    f"{path.name} cannot be sent: it is not a text file."
                ) from None
            text = f"{text}\n\n{_quoted(path.name, content)}".lstrip()
    return {**message("user", text), "content": [*([_part(text)] if text else []), *pictures]}


def _check_size(path: Path, limit: int) -> None:
    if path.stat().st_size > limit:
        raise errors.Rejected(
            f"{path.name} cannot be sent: it is larger than {limit // 1024:,} kB."
        )


def _quoted(name: str, content: str) -> str:
    fence = "```"
    while fence in content:
        fence += "`"
    return f"**{name}**\n{fence}\n{content.rstrip()}\n{fence}"


def shown(answer: Answer, ended: bool = False, before: str = "") -> History:
    """An answer as messages of the page: its thinking, its text, its error, each where there is one.

    `before` is the text that the answer continues.
    """
    found = []
    text = before + answer.text
    if before and not answer.text:
        text += (
            answer.reasoning
        )  # a parser that sees no thinking begin takes the rest of an answer for it
    elif answer.reasoning and not before:
        done = ended or bool(answer.text)
        took = (
            {"duration": round(answer.reasoning_time, 1)}
            if answer.reasoning_time is not None
            else {}
        )
        title = THOUGHT if done else "Thinking"
        found.append(
            message(
                "assistant",
                answer.reasoning,
                title=title,
                status="done" if done else "pending",
                **took,
            )
        )
    if text:
        said = message("assistant", text)
        if ended and (small := numbers(answer)):
            said["content"].append(_part(f"<small>{small}</small>"))
            if answer.finish_reason == "length":
                stopped = f"Stopped at {_tokens(answer):,} tokens — Continue"
                said["options"] = [{"value": CONTINUE, "label": stopped}]
        found.append(said)
    if answer.error:
        found.append(
            message(
                "assistant",
                answer.error,
                title=f"{FAILED} {'The answer is incomplete' if text else 'No answer'}",
            )
        )
    elif ended and not text:
        if answer.finish_reason == "length":
            note = f"The model was still thinking when it stopped at {_tokens(answer):,} tokens: raise max tokens."
        else:
            note = "The model ended its answer at once, without a word."
        found.append(message("assistant", note, title="Empty answer"))
    return found


def _tokens(answer: Answer) -> int:
    return (answer.usage or {}).get("completion_tokens") or 0


def numbers(answer: Answer) -> str:
    """Tokens, speed and time to first token of an answer, small."""
    if not _tokens(answer) or answer.ttft is None:
        return ""
    speed = _tokens(answer) / max(answer.elapsed, 1e-3)
    return f"{_tokens(answer):,} tokens · {speed:,.0f} tokens/s · first after {answer.ttft:.2f} s"


def is_note(one: dict[str, Any]) -> bool:
    return bool((one.get("metadata") or {}).get("title"))


def is_failure(one: dict[str, Any]) -> bool:
    return is_note(one) and one["metadata"]["title"].startswith(FAILED)


def text(one: dict[str, Any]) -> str:
    """The text of a message, without what the page put beneath it."""
    texts = [part["text"] for part in one["content"] if part["type"] == "text"]
    return "".join(texts[:1])


def turn(history: History, index: Any) -> int:
    """Index of the user's message that an event on the conversation is about. Raises Rejected if it is not there."""
    found = index[0] if isinstance(index, (list, tuple)) and index else index
    if not history or not isinstance(found, int):
        raise errors.Rejected("This message is no longer part of the conversation.")
    found = max(0, min(found, len(history) - 1))
    while found > 0 and history[found]["role"] != "user":
        found -= 1
    return found


def unfinished(history: History) -> History:
    """The conversation, if it ends with an answer that can be continued. Raises Rejected otherwise."""
    if not history or history[-1]["role"] != "assistant":
        raise errors.Rejected("There is no answer to continue.")
    return history


def example(value: Any) -> str:
    """The question of an example that was chosen. Raises Rejected if it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise errors.Rejected("This is not one of the examples.")
    return str(value["text"])


def edited(one: dict[str, Any], new_text: Any) -> dict[str, Any]:
    """The message with another text and the same pictures."""
    return {
        **one,
        "content": [
            _part(str(new_text)),
            *(part for part in one["content"] if part["type"] == "file"),
        ],
    }


def title(history: History) -> str:
    """The first question, short."""
    words = (
        " ".join(next((text(one) for one in history if one["role"] == "user"), "").split())
        or "Picture"
    )
    return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1].rstrip() + "…"


# -- as the engine is sent it ----------------------------------------------------------------------------------


def to_messages(history: History) -> list[Message]:
    """The conversation for the engine, without the page's notes: earlier reasoning is not sent back.

    What is put in front of it, generation.py decides.
    """
    return [
        {"role": each["role"], "content": _content(each)} for each in history if not is_note(each)
    ]


def _content(one: dict[str, Any]) -> str | list[dict[str, Any]]:
    """The text of a message, with its images as data URLs if it has any."""
    images = [_data_url(part["file"]["path"]) for part in one["content"] if part["type"] == "file"]
    if not images:
        return text(one)
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in images
    ]
    return parts + ([_part(text(one))] if text(one) else [])


def _data_url(path: str) -> str:
    kind = mimetypes.guess_type(path)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


# -- as files and in the browser ---------------------------------------------------------------------------------


def to_json(history: History, system_prompt: str = "") -> list[Message]:
    """What is saved: OpenAI's messages, the visitor's own system prompt first.

    An assistant's message has its reasoning beside it as `reasoning`.
    """
    messages: list[Message] = (
        [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    )
    reasoning = ""
    for one in history:
        if is_note(one):
            if one["metadata"]["title"] == THOUGHT:
                reasoning = text(one)
            continue
        messages.append({"role": one["role"], "content": _content(one)})
        if one["role"] == "assistant" and reasoning:
            messages[-1]["reasoning"] = reasoning
        reasoning = ""
    return messages


def from_json(messages: Any, cache: str) -> tuple[History, str]:
    """(history, system prompt) of OpenAI-style messages. Raises Rejected where they are none.

    Pictures, which must be data URLs, become files under the folder `cache`.
    """
    if isinstance(messages, dict):
        messages = messages.get("messages")
    history: History = []
    system_prompt = ""
    try:
        for one in messages:
            if one["role"] == "system":
                system_prompt = text_of(one)
                continue
            if one["role"] not in ("user", "assistant"):
                raise ValueError(one["role"])
            if one.get("reasoning"):
                history.append(
                    message("assistant", str(one["reasoning"]), title=THOUGHT, status="done")
                )
            parts = one["content"] if isinstance(one["content"], list) else []
            urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            said = text_of(one)
            if not isinstance(said, str) or not all(url.startswith("data:image/") for url in urls):
                raise ValueError("not text and pictures")
            pictures = [_picture(save_base64_to_cache(url, cache)) for url in urls]
            content = [*([_part(said)] if said or not pictures else []), *pictures]
            history.append({"role": one["role"], "content": content, "metadata": None})
    except (TypeError, KeyError, ValueError, AttributeError, OSError):
        raise errors.Rejected(
            'This is not a conversation: use a JSON list of messages, each {"role": "user", "content": "text"}.'
        ) from None
    return history, system_prompt


def read_file(path: str, cache: str) -> tuple[History, str]:
    """(history, system prompt) of an exported JSON file. Raises Rejected where it is none."""
    try:
        messages = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        messages = None
    return from_json(messages, cache)


def to_markdown(history: History, system_prompt: str = "") -> str:
    """A conversation for people to read."""
    names = {"system": "System", "user": "You", "assistant": "Model"}
    parts = [f"# {title(history)}"]
    for one in to_json(history, system_prompt):
        parts.append(f"## {names[one['role']]}")
        if one.get("reasoning"):
            parts.append("\n".join(f"> {line}" for line in one["reasoning"].splitlines()))
        if isinstance(one["content"], list):
            parts += [
                f"![picture]({p['image_url']['url']})"
                for p in one["content"]
                if p["type"] == "image_url"
            ]
        parts.append(text_of(one))
    return "\n\n".join(filter(None, parts)) + "\n"


# -- what the visitor's browser keeps -------------------------------------------------------------------------------

LARGE = 2**19  # characters of one conversation, of which the browser has room for a few


def written(history: History, system_prompt: str, ident: str) -> dict[str, Any]:
    """{"id", "title", "messages"} of a conversation. Large pictures are left out: the browser has no room for them."""
    messages = to_json(history, system_prompt)
    if len(json.dumps(messages)) > LARGE:
        messages = [{**each, "content": text_of(each) or "(picture)"} for each in messages]
    return {"id": ident, "title": title(history), "messages": messages}
