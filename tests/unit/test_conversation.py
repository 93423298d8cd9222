"""conversation.py: from the page to the engine, to a file, and back."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from vllm_space import errors
from vllm_space.client import TEST_IMAGE
from vllm_space.page import conversation
from vllm_space.streaming import Answer

HISTORY = [
    conversation.text_message("user", "Two\n    and two?"),
    conversation.text_message("assistant", "Adding.", title=conversation.REASONING_TITLE, status="done"),
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


def test_thinking_numbers_and_errors_are_not_sent_to_the_engine():
    assert conversation.to_messages(HISTORY) == [
        {"role": "user", "content": "Two\n    and two?"},
        {"role": "assistant", "content": "Four\n"},
    ]


def test_an_answer_cut_by_max_tokens_offers_to_continue_and_shows_its_numbers():
    answer = HISTORY[2]
    assert answer["options"] == [{"value": "continue", "label": "Stopped at 5 tokens — Continue"}]
    assert "5 tokens · 5 tokens/s · first token after 0.10 s" in answer["content"][1]["text"]


def test_export_and_import_give_the_same_conversation(tmp_path):
    exported = conversation.to_json(HISTORY, "Be kind.")
    assert exported[2] == {"role": "assistant", "content": "Four\n", "reasoning": "Adding."}
    history, system_prompt = conversation.from_json(json.loads(json.dumps(exported)), str(tmp_path))
    assert system_prompt == "Be kind."
    assert conversation.to_json(history, system_prompt) == exported


def test_a_picture_survives_export_and_import(tmp_path):
    picture = {"type": "image_url", "image_url": {"url": TEST_IMAGE}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]
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
def test_a_file_that_is_no_conversation_is_refused(junk, tmp_path):
    with pytest.raises(errors.Rejected, match="not a conversation"):
        conversation.from_json(junk, str(tmp_path))


def test_text_files_are_quoted_under_their_names_and_bounded(tmp_path):
    notes, large, binary, picture = (
        tmp_path / name for name in ("notes.md", "large.txt", "x.txt", "a.png")
    )
    notes.write_text("# Hi\n```\ncode\n```\n")
    large.write_text("x" * (conversation.TEXT_FILE_LIMIT + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    picture.write_bytes(b"png")
    said = conversation.question("Sum up", [str(notes)], images=False)
    assert conversation.text(said) == "Sum up\n\n**notes.md**\n````\n# Hi\n```\ncode\n```\n````"
    for file, why in (
        (large, "larger than 64 kB"),
        (binary, "not a text file"),
        (picture, "takes no images"),
    ):
        with pytest.raises(errors.Rejected, match=why):
            conversation.question("Sum up", [str(file)], images=False)


def test_a_picture_too_large_for_the_browser_is_left_out_of_what_it_keeps(tmp_path):
    picture = tmp_path / "large.png"
    picture.write_bytes(b"x" * conversation.STORED_LIMIT)
    said = conversation.question("What is this?", [str(picture)], images=True)
    kept = conversation.to_stored([said], "Be brief.", "id-1")
    assert kept["title"] == "What is this?"
    assert kept["messages"] == [
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
def test_only_a_conversation_reaches_a_handler(junk):
    history = TypeAdapter(conversation.History)
    assert history.validate_python(HISTORY) == HISTORY
    with pytest.raises(ValidationError):
        history.validate_python(junk)
