"""Conversations on their way to the engine, to a file, and back."""

import json

import pytest
from gradio.processing_utils import save_base64_to_cache
from pydantic import TypeAdapter, ValidationError

from vllm_space import errors
from vllm_space.page import conversation
from vllm_space.streaming import Answer
from vllm_space.tokenizer import TEST_IMAGE

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


@pytest.fixture
def save(tmp_path):
    """Saves an image, given as a data URL, and returns its path."""
    return lambda url: save_base64_to_cache(url, str(tmp_path))


def test_import_restores_an_export(save):
    exported = conversation.to_json(HISTORY, "Be kind.")
    assert exported[2] == {"role": "assistant", "content": "Four\n", "reasoning": "Adding."}
    history, system_prompt = conversation.from_json(json.loads(json.dumps(exported)), save)
    assert system_prompt == "Be kind."
    assert conversation.to_json(history, system_prompt) == exported


def test_images_survive_an_export(save):
    image = {"type": "image_url", "image_url": {"url": TEST_IMAGE}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    history, _ = conversation.from_json(messages, save)
    assert conversation.to_messages(history) == messages
    assert TEST_IMAGE in conversation.to_markdown(history)


def image_message(path: str, count: int = 1) -> dict:
    file = {"type": "file", "file": {"path": path}, "alt_text": None}
    return {"role": "user", "content": [file] * count, "metadata": None}


def test_images_are_bounded_before_they_are_read(tmp_path):
    image = tmp_path / "a.png"
    with image.open("wb") as file:
        file.truncate(conversation.IMAGES_LIMIT // 3)
    for convert in (conversation.to_messages, conversation.to_json):
        assert convert([image_message(str(image), 3)])
        for history in ([image_message(str(image), 4)], [image_message(str(image))] * 100_000):
            with pytest.raises(errors.Rejected, match="larger than 24 MiB together"):
                convert(history)


def test_long_conversations_are_rejected(save, tmp_path):
    message = {"role": "user", "content": "a"}
    limit = conversation.MAX_MESSAGES
    assert conversation.from_json([message] * limit, save)
    with pytest.raises(errors.Rejected, match="more than 1,000 messages"):
        conversation.from_json([message] * (limit + 1), save)
    for history in (
        [HISTORY[0]] * (limit + 1),
        [HISTORY[0] | {"content": HISTORY[0]["content"] * (limit + 1)}],
    ):
        with pytest.raises(errors.Rejected, match="more than 1,000 messages"):
            TypeAdapter(conversation.History).validate_python(history)
    file = tmp_path / "a.json"
    file.write_text("[" + "{}," * 200_000 + "{}]")
    with pytest.raises(errors.Rejected, match="not a conversation"):
        conversation.read_file(str(file), save)


def test_deleted_image_is_named(tmp_path):
    with pytest.raises(errors.Rejected, match="no longer on the server"):
        conversation.to_messages([image_message(str(tmp_path / "gone.png"))])


def test_number_of_attached_files_is_limited(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    assert conversation.question("Hi", [str(path)] * conversation.MAX_FILES, images=False)
    with pytest.raises(errors.Rejected, match="at most 20 files"):
        conversation.question("Hi", [str(path)] * (conversation.MAX_FILES + 1), images=False)


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
def test_other_files_are_not_imported(junk, save):
    with pytest.raises(errors.Rejected, match="not a conversation"):
        conversation.from_json(junk, save)


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
