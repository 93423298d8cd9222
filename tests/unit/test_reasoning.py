"""Bare <think> tags in an answer's text, cut into pieces anywhere."""

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
        ("<think>\n\n</think>\n\nNo thought.", "", "No thought."),
        ("Opened in the prompt.\n</think>\n\nYes.", "Opened in the prompt.", "Yes."),
        ("No thought at all.", "", "No thought at all."),
        ("The tag </think> ends it.", "", "The tag </think> ends it."),
        ("<think>never ended", "never ended", ""),
        ("<thin", "", "<thin"),
        ("<think>ended in </thi", "ended in </thi", ""),
    ],
)
def test_thinking_is_told_apart_in_any_chunking(text, thought, answer, size):
    so_far = Answer()
    for start in range(0, len(text), size):
        so_far.add(Chunk(text[start : start + size]))
    so_far.show(ended=True)
    assert (so_far.reasoning, so_far.text) == (thought, answer)


def test_a_server_that_tells_them_apart_is_believed():
    answer = Answer()
    answer.add(Chunk(reasoning="Hm"))
    answer.add(Chunk("<think>quoted</think>"))
    answer.show(ended=True)
    assert (answer.reasoning, answer.text) == ("Hm", "<think>quoted</think>")


def test_half_a_tag_is_not_shown():
    assert reasoning.split("<th") == ("", "")
    assert reasoning.split("<think>so</th") == ("so", "")
