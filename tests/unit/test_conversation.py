"""Conversations on their way to the engine, to a file, and back."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from vllm_space import errors
from vllm_space.client import TEST_IMAGE
from vllm_space.page import conversation
from vllm_space.streaming import Answer

HISTORY = [
    conversation.text_message("user", "Two\n    and two?"),
    conversation.text_message(
        "assistant", "Adding.", title=conversation.REASONING_TITLE, status="done"
    ),
    *conversation.answer_messages(
        Answer(
            text="Four\n",
            finish_reason="length",
            usage={"completion_tokens": 5},
            ttft=0.1,
            elapsed=1,
        ),
        ended=True,
    ),
    conversation.text_message("assistant", "It broke.", title="⚠️ The answer is incomplete"),
]


def test_the_engine_gets_no_notes():
    assert conversation.to_messages(HISTORY) == [
        {"role": "user", "content": "Two\n    and two?"},
        {"role": "assistant", "content": "Four\n"},
    ]


def test_a_truncated_answer_offers_continue():
    answer = HISTORY[2]
    assert answer["options"] == [{"value": "continue", "label": "Stopped at 5 tokens — Continue"}]
    assert "5 tokens · 5 tokens/s · first token after 0.10 s" in answer["content"][1]["text"]


def test_import_restores_an_export(tmp_path):
    exported = conversation.to_json(HISTORY, "Be kind.")
    assert exported[2] == {"role": "assistant", "content": "Four\n", "reasoning": "Adding."}
    history, system_prompt = conversation.from_json(json.loads(json.dumps(exported)), str(tmp_path))
    assert system_prompt == "Be kind."
    assert conversation.to_json(history, system_prompt) == exported


def test_images_survive_an_export(tmp_path):
    image = {"type": "image_url", "image_url": {"url": TEST_IMAGE}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    history, _ = conversation.from_json(messages, str(tmp_path))
    assert conversation.to_messages(history) == messages
    assert TEST_IMAGE in conversation.to_markdown(history)


@pytest.mark.parametrize(
    "junk",
    [
        None,
        3,
        "text",
        [1],
        [{"role": "king", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
            }
        ],
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    ],
)
def test_other_files_are_not_imported(junk, tmp_path):
    with pytest.raises(errors.Rejected, match="not a conversation"):
        conversation.from_json(junk, str(tmp_path))


def test_text_files_are_quoted(tmp_path):
    notes, large, binary, image = (
        tmp_path / name for name in ("notes.md", "large.txt", "x.txt", "a.png")
    )
    notes.write_text("# Hi\n```\ncode\n```\n")
    large.write_text("x" * (conversation.TEXT_FILE_LIMIT + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    image.write_bytes(b"png")
    message = conversation.question("Sum up", [str(notes)], images=False)
    assert conversation.text(message) == "Sum up\n\n**notes.md**\n````\n# Hi\n```\ncode\n```\n````"
    for file, why in (
        (large, "larger than 64 KiB"),
        (binary, "not a text file"),
        (image, "does not accept images"),
    ):
        with pytest.raises(errors.Rejected, match=why):
            conversation.question("Sum up", [str(file)], images=False)


def test_large_images_are_not_stored(tmp_path):
    image = tmp_path / "large.png"
    image.write_bytes(b"x" * conversation.STORED_LIMIT)
    message = conversation.question("What is this?", [str(image)], images=True)
    stored = conversation.to_stored([message], "Be brief.", "id-1")
    assert stored["title"] == "What is this?"
    assert stored["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is this?"},
    ]


@pytest.mark.parametrize(
    "junk",
    [
        None,
        5,
        [5],
        [{}],
        [{"role": "king", "content": []}],
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "file", "file": {}}]}],
        [{"role": "user", "content": [{"type": "component", "component": "image"}]}],
    ],
)
def test_handlers_get_conversations_only(junk):
    history = TypeAdapter(conversation.History)
    assert history.validate_python(HISTORY) == HISTORY
    with pytest.raises(ValidationError):
        history.validate_python(junk)
