"""Reasoning between <think> tags, in text that was cut into chunks anywhere."""

import pytest

from vllm_space import reasoning
from vllm_space.client import Chunk
from vllm_space.streaming import Answer


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nLet me see: 1 < 2.\n</think>\n\nYes.", "Let me see: 1 < 2.", "Yes."),
        ("\n<think>Hm</think>Yes, <b>.", "Hm", "Yes, <b>."),
        ("<think>\n\n</think>\n\nNo reasoning.", "", "No reasoning."),
        ("Opened in the prompt.\n</think>\n\nYes.", "Opened in the prompt.", "Yes."),
        ("No reasoning at all.", "", "No reasoning at all."),
        ("The tag </think> ends it.", "", "The tag </think> ends it."),
        ("<think>never ended", "never ended", ""),
        ("<thin", "", "<thin"),
        ("<think>ended in </thi", "ended in </thi", ""),
    ],
)
def test_tags_are_found_in_any_chunking(text, thought, answer, size):
    result = Answer()
    for start in range(0, len(text), size):
        result.add(Chunk(text[start : start + size]))
    result.update_text(ended=True)
    assert (result.reasoning, result.text) == (thought, answer)


def test_parsed_reasoning_leaves_tags_alone():
    answer = Answer()
    answer.add(Chunk(reasoning="Hm"))
    answer.add(Chunk("<think>quoted</think>"))
    answer.update_text(ended=True)
    assert (answer.reasoning, answer.text) == ("Hm", "<think>quoted</think>")


def test_partial_tag_is_held_back():
    assert reasoning.split("<th") == ("", "")
    assert reasoning.split("<think>so</th") == ("so", "")
