"""Reasoning between tags, in text that was cut into chunks anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_space import reasoning
from vllm_space.chunks import Chunk
from vllm_space.reasoning import Splitter
from vllm_space.streaming import Answer

FENCE = "```"


def split(*chunks: str) -> tuple[str, str]:
    splitter = Splitter()
    for chunk in chunks:
        splitter.add(chunk)
    splitter.end()
    return splitter.split()


def shown(text: str) -> tuple[str, str]:
    """What is shown of a text that goes on."""
    splitter = Splitter()
    splitter.add(text)
    return splitter.split()


SEPARATED = [
    # Any model's tags
    ("<think>\nLet me see: 1 < 2.\n</think>\n\nYes.", "Let me see: 1 < 2.", "Yes."),
    ("\n <think>Hm</think>Yes, <b>.", "Hm", "Yes, <b>."),
    ("<thought>\nThey want a tale.\n</thought>\n\n**Harbour**", "They want a tale.", "**Harbour**"),
    ("◁think▷plan◁/think▷reply", "plan", "reply"),
    ("[THINK]plan[/THINK](reply)", "plan", "(reply)"),
    ("<thinking>plan</thinking>reply", "plan", "reply"),
    ("<Think>plan</THINK>reply", "plan", "reply"),
    ("<reasoning>plan</reasoning>reply", "plan", "reply"),
    ("<seed:think>plan</seed:think>reply", "plan", "reply"),
    ("<|channel>thought\nplan<channel|>reply<turn|>", "plan", "reply"),
    (
        "<|begin_of_thought|>\n\nplan\n\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\n\nreply\n\n<|end_of_solution|>",
        "plan",
        "reply",
    ),
    (
        "<|START_THINKING|>plan<|END_THINKING|><|START_RESPONSE|>reply<|END_RESPONSE|>",
        "plan",
        "reply",
    ),
    # The opening tag is in the prompt
    ("Opened in the prompt.\n</think>\n\nYes.", "Opened in the prompt.", "Yes."),
    (
        "1.  They want 12.\n3.  Say it briefly.</think>132",
        "1.  They want 12.\n3.  Say it briefly.",
        "132",
    ),
    ("So.</think>\n\n132", "So.", "132"),
    ("So.\n</think>", "So.", ""),
    ("The tag </think> ends it.", "The tag", "ends it."),
    ("</think>132", "", "132"),
    ("The tag is `</think>`.\n</think>132", "The tag is `</think>`.", "132"),
    ("It is 5` long.</think>132", "It is 5` long.", "132"),
    ('They say "yes"</think>"Yes"', 'They say "yes"', '"Yes"'),
    # Not closed, empty or repeated
    ("<think>never ended", "never ended", ""),
    ("<think>ended in </thi", "ended in </thi", ""),
    ("Sure.\n<think>never ended", "never ended", "Sure."),
    ("<think>\n\n</think>\n\nNo reasoning.", "", "No reasoning."),
    ("<think>\n<think>a</think>b", "a", "b"),
    ("<think>a</think>\n<think>b</think>c", "a\n\nb", "c"),
    ("<think>a</think>\n<think>b", "a\n\nb", ""),
    ("<think>a</think>Hi\n<think>b</think>\nEnd", "a\n\nb", "Hi\n\nEnd"),
    ("<think>a</think>b\n</think>", "a", "b"),
    # Tags in reasoning
    ("<think>I write `</think>` then.</think>Yes", "I write `</think>` then.", "Yes"),
    ("<think>a <think>b</think> c</think>final", "a <think>b\n\nc", "final"),
    ("<think>first</thought>second</think>final", "first\n\nsecond", "final"),
    (
        f"<think>{FENCE}\n<think>x</think>\n{FENCE}\nok</think>Answer",
        f"{FENCE}\n<think>x\n\n{FENCE}\nok",
        "Answer",
    ),
    (
        f"<think>{FENCE}py\nx\n</think>\nRun\n{FENCE}py\ny\n{FENCE}",
        f"{FENCE}py\nx",
        f"Run\n{FENCE}py\ny\n{FENCE}",
    ),
    # gpt-oss
    (
        "<|channel|>analysis<|message|>They greet.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Good day!<|return|>",
        "They greet.",
        "Good day!",
    ),
    ("<|channel|>analysis<|message|>They greet.<|end|>Good day!", "They greet.", "Good day!"),
    (
        "They greet.<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
        "They greet.",
        "{}",
    ),
    ("analysis<|message|>They greet.<|end|><|start|>assistant<|message|>Hi", "They greet.", "Hi"),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.f <|constrain|>json<|message|>b<|call|>"
        "<|start|>assistant<|channel|>final<|message|>c",
        "a\n\nb",
        "c",
    ),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assist", "a", ""),
    ("<|channel|>final<|message|>c", "", "c"),
    (
        "assistant<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>c",
        "a",
        "c",
    ),
    ("<|channel|>analysis<|message|>a<|end|>Use <|channel|> so", "a", "Use <|channel|> so"),
    ("analysisThey greet.assistantfinalGood day!", "They greet.", "Good day!"),
]

KEPT = [
    "No reasoning at all.",
    "<thin",
    "  indented",
    "Use `</think>` to end, and `<think>` to begin.",
    "Use `` a ` and </think> `` to end.",
    "An odd `` and `</think>` after it.",
    "Here is a <think> in mid-sentence.",
    "Between <think> and </think> in a sentence.",
    '{"stop": ["</think>"], "start": "<think>"}',
    f"{FENCE}xml\n<think>\nx\n</think>\n{FENCE}\nDone.",
    "~~~\n```\n</think>\n~~~\n",
    f"- A list\n  {FENCE}\n  </think>\n  {FENCE}\n",
    f"> {FENCE}\n> </think>\n> {FENCE}",
    f"Cut off\n{FENCE}\n</think>\n",
    "So:\n\n    <think>\n    x\n    </think>\n\nDone.",
    "<b>bold</b>, <thinker> and 1 < 2",
    "[Think](https://example.com) is a link.",
    "An answer of Phi.<|end|>",
    "Use the header <|start|>assistant for it.",
    "<|channel|> begins a header, and <|message|> ends it.",
    "The analysis of assistantfinal.",
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(("text", "thought", "answer"), SEPARATED)
def test_reasoning_is_separated(text, thought, answer, size):
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert split(*chunks) == (thought, answer)


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("text", KEPT)
def test_text_about_tags_stays(text, size):
    assert split(*(text[start : start + size] for start in range(0, len(text), size))) == ("", text)


@pytest.mark.parametrize(
    "answer",
    [
        "The tag </think> ends it.",
        "It begins with\n<think>",
        f"{FENCE}\n</think>\n{FENCE}",
        "Write `<think>x</think>`.",
    ],
)
def test_answer_after_reasoning_stays(answer):
    assert split(f"<think>Hm.</think>{answer}") == ("Hm.", answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<th", ("", "")),
        ("<think>so</th", ("so", "")),
        ("Yes.</thin", ("", "Yes.")),
        ("1 <", ("", "1 ")),
        ("1 < ", ("", "1 < ")),
        ("a <thin", ("", "a <thin")),
        ("Use `</thin", ("", "Use `</thin")),
        ("Use `</think>", ("", "Use `</think>")),
        (f"{FENCE}\n</thin", ("", f"{FENCE}\n</thin")),
        ("<|channel|>analysis", ("", "")),
        ("<|channel|>analysis<|message|>They", ("They", "")),
    ],
)
def test_only_partial_tags_are_held_back(text, expected):
    assert shown(text) == expected


def test_text_before_a_lone_tag_is_redrawn():
    answer = Answer()
    answer.add(Chunk("They want 12."))
    assert (answer.reasoning, answer.text) == ("", "They want 12.")
    answer.add(Chunk("</think>"))
    assert (answer.reasoning, answer.text) == ("They want 12.", "")


def test_reasoning_time_ends_with_its_last_tag():
    answer = Answer(ttft=1.0)
    for elapsed, text in [(2.0, "<think>a</think>b"), (3.0, ".</think>"), (4.0, "c")]:
        answer.elapsed = elapsed
        answer.add(Chunk(text))
    assert (answer.text, answer.reasoning_time) == ("c", 3.0)


def test_parsed_reasoning_leaves_tags_alone():
    answer = Answer()
    answer.add(Chunk(reasoning="Hm"))
    answer.add(Chunk("<think>quoted</think>"))
    answer.update_text(ended=True)
    assert (answer.reasoning, answer.text) == ("Hm", "<think>quoted</think>")


FRAGMENTS = [*sorted(reasoning.TAGS), "<think>", "</think>", "`", "``", FENCE, "~~~", "\n", "\n\n"]
FRAGMENTS += [" ", "    ", "z", "analysis", "final", ".", '"', "(", "<", "</", "[", "1. ", "> "]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join), st.data())
def test_cuts_do_not_change_the_result(text, data):
    cuts = data.draw(st.sets(st.integers(0, len(text)))) | {len(text)}
    splitter, start = Splitter(), 0
    for end in sorted(cuts):
        splitter.add(text[start:end])
        splitter.split()
        start = end
    splitter.end()
    assert splitter.split() == split(text)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
def test_only_tags_and_headers_are_removed(text):
    if not any(tag in text for tag in reasoning.HEADER | {reasoning.MESSAGE}):
        assert "".join(split(text)).count("z") == text.count("z")


@given(st.text(alphabet="<>[]|`~ \nathink/", max_size=60))
def test_text_without_tags_is_shown_as_it_is(text):
    lowered = text.lower()
    if not any(tag in lowered for tag in reasoning.TAGS):
        assert split(*text) == ("", text)
        assert text.startswith(shown(text)[1])
        assert len(text.rstrip()) - len(shown(text)[1]) < reasoning.MAX_TAG
