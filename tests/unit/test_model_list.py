"""Lists of models in the forms that servers send them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_space import errors, model_list
from vllm_space.model_list import Entry

ADDRESS = "http://h/v1/models"


def names(body: object) -> list[str]:
    return [entry.name for entry in model_list.parse(body, ADDRESS)]


@pytest.mark.parametrize(
    "body",
    [
        {"object": "list", "data": [{"id": "a", "object": "model"}, {"id": "b"}]},
        [{"id": "a"}, {"id": "b"}],
        {"models": [{"name": "a", "model": "a"}, {"name": "b"}]},
        {"models": [{"name": "x"}], "data": [{"id": "a"}, {"id": "b"}]},
        ["a", "b"],
        {"data": ["a", "b"]},
        {"data": {"a": {"context_length": 5}, "b": None}},
        {"data": [{"id": "a"}, {"object": "model"}, None, 5, {"id": "b"}, {"id": "a"}]},
        {"data": [{"id": "a", "error": "x"}, {"id": "b"}], "error": None},
    ],
)
def test_list_is_read_in_any_form(body):
    assert names(body) == ["a", "b"]


@pytest.mark.parametrize("body", [{"data": None}, {"data": []}, [], {"models": []}])
def test_empty_list_has_no_models(body):
    assert names(body) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "no models for you"}, "no models for you"),
        ({"error": {"message": "Pay first."}}, "Pay first."),
        ({"detail": "Not here"}, "Not here"),
        ({"status": "ok"}, "not a list of models"),
        (None, "not a list of models"),
        ("a", "not a list of models"),
        ({"data": [{"object": "model"}, None]}, "not a list of models"),
    ],
)
def test_other_bodies_are_errors(body, words):
    with pytest.raises(errors.ModelError, match=words):
        names(body)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"owned_by": "vllm", "max_model_len": 4096}, Entry("m", 4096, True)),
        ({"context_length": 8192}, Entry("m", 8192)),
        ({"context_window": 131072.0}, Entry("m", 131072)),
        ({"context_length": "8k", "max_model_len": None}, Entry("m")),
        ({"max_model_len": True}, Entry("m")),
        ({"type": "embedding"}, Entry("m", chats=False)),
        ({"type": "chat"}, Entry("m", chats=True)),
        ({"type": "vlm"}, Entry("m", chats=True, takes_images=True)),
        ({"task": "automatic_speech_recognition"}, Entry("m", chats=False)),
        ({"pipeline_tag": "text-ranking"}, Entry("m", chats=False)),
        ({"model_type": "llama"}, Entry("m")),
        ({"capabilities": {"completion_chat": False}}, Entry("m", chats=False)),
        (
            {"capabilities": {"completion_chat": True, "vision": False}},
            Entry("m", chats=True, takes_images=False),
        ),
        ({"capabilities": ["completion", "vision"]}, Entry("m", chats=True, takes_images=True)),
        ({"capabilities": ["embedding"]}, Entry("m", chats=False)),
        ({"endpoints": ["rerank"]}, Entry("m", chats=False)),
        (
            {
                "architecture": {
                    "input_modalities": ["text", "image"],
                    "output_modalities": ["text"],
                }
            },
            Entry("m", takes_images=True),
        ),
        (
            {"architecture": {"modality": "text->image"}},
            Entry("m", chats=False, takes_images=False),
        ),
        ({"architecture": {"modality": "text+image->text"}}, Entry("m", takes_images=True)),
        ({"architecture": None, "capabilities": 5, "type": {}}, Entry("m")),
    ],
)
def test_what_a_list_says_is_used(fields, expected):
    assert model_list.parse([{"id": "m"} | fields], ADDRESS) == [expected]


def test_names_do_not_decide_what_a_model_is_for():
    assert model_list.parse(["embed-small", "whisper"], ADDRESS) == [
        Entry("embed-small"),
        Entry("whisper"),
    ]


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.sampled_from(["chat"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "name", "data", "models", "type", "capabilities", "architecture"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values)
def test_any_json_is_a_list_or_a_model_error(body):
    try:
        entries = model_list.parse(json.loads(json.dumps(body)), ADDRESS)
    except errors.ModelError:
        return
    assert all(entry.name.isprintable() for entry in entries)
