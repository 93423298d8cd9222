"""Separates reasoning from the rest of an answer, for servers that leave its tags in the text.

What counts as a tag:

- An opening tag counts at the start of a line, a closing tag anywhere.
- Tags in code (between backticks, in fences, indented), in quotation marks, or in a pair within a
  sentence are what the answer is about. They stay.
- A closing tag without an opening one ends reasoning that began in the prompt: all text before it
  is reasoning, even if it was shown as the answer.
- Once an answer has begun after reasoning, only a complete block is reasoning again, and a closing
  tag in mid-sentence stays.
- Inside reasoning only backticks protect a closing tag: a fence there may never end.
- Of gpt-oss's channels only `final` is the answer.

Scans every character once, or twice if a tag follows an unpaired backtick in its line, so the cost
does not depend on where the text was cut into chunks. Knows nothing of servers and streams.
"""

from __future__ import annotations

import re

# From the chat templates of open models and the parsers in vllm/reasoning, in lower case.
_NAMES = ["think", "thinking", "thought", "thoughts", "reason", "reasoning", "antthinking"]
_NAMES += ["seed:think", "mm:think"]  # Seed-OSS, MiniMax M3
OPENING = {f"<{name}>" for name in _NAMES} | {
    "[think]",  # Magistral
    "◁think▷",  # Kimi-VL
    "<|begin_of_thought|>",  # Sky-T1, OpenThinker
    "<|start_thinking|>",  # Command A
    "<|channel>thought",  # Gemma 4
    "<|open|>think<|sep|>",  # Kimi K3
}
CLOSING = {f"</{name}>" for name in _NAMES} | {
    "[/think]",
    "◁/think▷",
    "<|end_of_thought|>",
    "<|begin_of_solution|>",
    "<|end_thinking|>",
    "<|start_response|>",
    "<|start_text|>",
    "<channel|>",
    "<|close|>think<|sep|>",
    "<|open|>response<|sep|>",
    "[begin final response]",  # Apriel
}
# End an answer, or any message of gpt-oss. Without one of the special tokens above, they are text.
ENDING = {
    "<|end_of_solution|>",
    "<|end_response|>",
    "<|end_text|>",
    "<|close|>response<|sep|>",
    "<|close|>message<|sep|>",
    "[end final response]",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<turn|>",
}
# gpt-oss: `<|start|>assistant<|channel|>analysis<|message|>` is the header of a message, which
# `<|end|>` ends. https://developers.openai.com/cookbook/articles/openai-harmony
HEADER = {"<|start|>", "<|channel|>"}
MESSAGE = "<|message|>"
MAX_HEADER = 100  # characters
HEADER_TEXT = re.compile(
    r"(?P<start>(?:<\|start\|>)?assistant[^<]*)?"
    r"(?:(?:<\|channel\|>)?\s*(?P<channel>analysis|commentary|final)\b.*)?",
    re.IGNORECASE | re.DOTALL,
)
CUT_HEADER = re.compile(r"(<\|start\|>)?\w*(<\|channel\|>\w*)?", re.IGNORECASE)
# What comes before `<|message|>` if the header began in the prompt.
PROMPTED_HEADERS = {"", "assistant", "analysis", "commentary", "final"}
# What is left of the first and the last header if the server drops special tokens.
BARE_ANALYSIS, BARE_FINAL = "analysis", "assistantfinal"

TAGS = OPENING | CLOSING | ENDING | HEADER | {MESSAGE, BARE_FINAL}
MAX_TAG = max(map(len, TAGS))
PARTIAL_OPENING = {tag[:size] for tag in OPENING for size in range(1, len(tag))}
PARTIAL_OTHER = {tag[:size] for tag in TAGS - OPENING for size in range(1, len(tag))}
TOKEN = re.compile("\n|`+|" + "|".join(map(re.escape, sorted(TAGS))), re.IGNORECASE | re.ASCII)
TAG_START, TAG_START_IF_BARE = re.compile(r"[<\[◁]"), re.compile(r"[<\[◁aA]")

FENCE = re.compile(
    r"[ \t]*(?:(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])[ \t]*)*(?P<fence>`{3,}|~{3,})(?P<info>.*)"
)
INDENTATION = ("    ", "\t")
NONBLANK = re.compile(r"\S")
QUOTE_BEFORE = re.compile(r"""(?:^|[\s(\[{,:=])["'“‘«]\Z""")
QUOTES_AFTER = frozenset("\"'”’»")
BLANKS = frozenset(" \t(")


class Splitter:
    """Splits a growing text into reasoning and answer."""

    def __init__(self) -> None:
        self._text = ""
        self._position = 0  # all text before it was scanned
        self._ended = False
        # The text is a sequence of blocks. The last one, from `_start`, is still growing.
        self._start = 0
        self._first = 0  # there are only blanks between `_start` and this
        self._thinking = False  # the growing block is reasoning
        self._thought = False  # there was reasoning
        self._reasoning = ""  # of the earlier blocks
        self._answer = ""
        self._prompted = ""  # what is known to be reasoning that began in the prompt
        self._blocks: list[str] = []  # all blocks since then
        self._resume: tuple[int, str] | None = None  # start and answer, if no tag closes this block
        self._restore: tuple[str, str] | None = None  # reasoning and answer, if no answer follows
        self._special = False  # tags that are special tokens were found
        self._header: int | None = None  # start of a header of gpt-oss that has not ended
        # Code
        self._line = 0  # start of the line, or of what follows a tag in it
        self._paired = False  # an opening tag earlier in the line does not count
        self._indentable = False  # if this line is indented, it is code
        self._fence = ""  # what opened the fenced code
        self._run = 0  # length of the backticks that end at `_run_end`; more may follow
        self._run_end = 0
        self._span = 0  # length of the backticks that may have opened code in this line
        self._undecided: list[tuple[int, int]] = []  # starts and ends of the tags after them

    def add(self, text: str) -> None:
        """Read what follows in the text."""
        self._text += text
        self._scan()

    def end(self) -> None:
        """The text is complete: what could have become a tag is text."""
        self._ended = True
        self._scan()
        self._finish_run()
        header = self._header
        if self._special and header is not None and CUT_HEADER.fullmatch(self._text, header):
            self._end_block(header, len(self._text))
        self._end_line(len(self._text))
        if self._resume is not None:
            self._start, self._answer = self._resume
            self._first = self._start
            self._thinking, self._resume = False, None
        if self._restore and self.split()[1] == "":
            self._reasoning, self._answer = self._restore

    def split(self) -> tuple[str, str]:
        """(reasoning, answer) so far, without what may become a tag."""
        end = self._shown_until()
        is_blank = self._is_first(end)
        if self._thinking:
            current = self._text[self._first : end].rstrip()
            return _join(self._reasoning, current), self._answer
        if self._start:
            current = "" if is_blank else self._text[self._first : end]
            return self._reasoning, _join(self._answer, current)
        return "", "" if is_blank and not self._ended else self._text[:end]

    def _scan(self) -> None:
        while match := TOKEN.search(self._text, self._position):
            if self._needs_next_character(match):
                self._position = match.start()
                return
            self._position = match.end()
            if match[0][0] == "`":
                self._read_backticks(match)
                continue
            self._finish_run()
            if match[0] == "\n":
                self._end_line(match.start())
            elif self._span:
                self._undecided.append(match.span())
            else:
                self._read_tag(*match.span())
        self._position = self._partial_tag()

    def _partial_tag(self) -> int:
        """Where the text ends, or where what may become a tag starts at its end."""
        if not self._ended:
            tag_start = TAG_START_IF_BARE if self._is_bare() else TAG_START
            start = max(self._position, len(self._text) - MAX_TAG)
            for match in tag_start.finditer(self._text, start):
                partial = self._text[match.start() :].lower()
                if partial in PARTIAL_OPENING or partial in PARTIAL_OTHER:
                    return match.start()
        return len(self._text)

    def _shown_until(self) -> int:
        at, end = self._position, len(self._text)
        if self._header is not None and end - self._header <= MAX_HEADER:
            return self._header
        if at == end or self._span_after_run() or (not self._thinking and self._in_code(at)):
            return end
        partial = self._text[at:].lower()
        is_opening = partial in PARTIAL_OPENING and partial not in PARTIAL_OTHER
        if is_opening and not self._is_first(at) and (self._thinking or not self._starts_line(at)):
            return end
        return at

    # --- Code ---

    def _read_backticks(self, match: re.Match[str]) -> None:
        if match.start() != self._run_end:
            self._finish_run()
        self._run += match.end() - match.start()
        self._run_end = match.end()

    def _finish_run(self) -> None:
        self._span = self._span_after_run()
        self._run = 0
        if not self._span:
            self._undecided.clear()  # all of them are code

    def _span_after_run(self) -> int:
        if self._fence or not self._run:
            return self._span
        return 0 if self._run == self._span else self._span or self._run

    def _end_line(self, end: int) -> None:
        """Decide on the tags of the line that ends here, and whether the next one is in a fence."""
        start, line = self._line, self._text[self._line : end]
        fence = FENCE.match(line)
        if self._fence:
            if fence and fence["fence"].startswith(self._fence) and not fence["info"].strip():
                self._fence = ""
        elif fence and ("`" not in fence["info"] or fence["fence"][0] == "~"):
            self._fence = fence["fence"]
        elif self._undecided:
            spans = _code_spans(line)
            for tag_start, tag_end in self._undecided:
                while spans and spans[-1][1] <= tag_start - start:
                    spans.pop()
                if not spans or tag_start - start < spans[-1][0]:
                    self._read_tag(tag_start, tag_end)
        self._span = 0
        self._undecided.clear()
        self._indentable = not line.strip() or (self._indentable and line.startswith(INDENTATION))
        self._paired, self._header = False, None
        self._line = end + 1

    def _in_code(self, at: int) -> bool:
        """Whether `at`, which is not between backticks, is code."""
        is_indented = self._indentable and self._text.startswith(INDENTATION, self._line)
        return bool(self._fence) or (is_indented and not self._is_first(at))

    # --- Tags ---

    def _read_tag(self, start: int, end: int) -> None:
        tag = self._text[start:end].lower()
        if not self._thinking and self._in_code(start):
            return
        header, self._header = self._header, None
        if tag in HEADER:
            is_part = header is not None and start - header <= MAX_HEADER
            self._header = header if is_part else start - self._size_of_role(start)
        elif tag == MESSAGE:
            self._read_message(header, start, end)
        elif tag in ENDING:
            if self._special:
                self._end_block(start, end)
        elif tag in OPENING:
            self._read_opening(tag, start, end)
        elif tag in CLOSING:
            self._read_closing(tag, start, end)
        elif self._is_bare():
            self._begin_answer(start, end)
            self._reasoning = self._prompted = self._prompted.removeprefix(BARE_ANALYSIS)

    def _read_opening(self, tag: str, start: int, end: int) -> None:
        is_first = self._is_first(start)
        if self._thinking:
            if is_first:  # it is repeated
                self._start = self._first = end
        elif tag == "[think]" and self._text.startswith("(", end):
            pass  # it is a link
        elif is_first or self._starts_line(start):
            self._special |= tag.startswith("<|")
            self._begin_reasoning(start, end)
        else:
            self._paired = True

    def _read_closing(self, tag: str, start: int, end: int) -> None:
        if self._is_quoted(start, end):
            return
        if self._thinking:
            self._end_block(start, end)
        elif self._paired:
            self._paired = False
            return
        elif self._thought and self._is_in_sentence(start, end):
            return
        else:
            self._begin_answer(start, end)
        self._special |= tag.startswith(("<|", "[b"))

    def _read_message(self, header: int | None, start: int, end: int) -> None:
        """Begin a message of gpt-oss, whose header may have begun in the prompt."""
        if header is None:
            header = 0
            if start > MAX_HEADER or self._text[:start].strip() not in PROMPTED_HEADERS:
                return
        name = HEADER_TEXT.fullmatch(self._text[header:start].rstrip())
        if not name or start - header > MAX_HEADER:
            return
        channel = (name["channel"] or "").lower()
        if channel == "final" or (name["start"] and not channel):
            self._begin_answer(header, end)
        elif self._thinking or self._special or self._is_first(header) or self._starts_line(header):
            self._begin_reasoning(header, end)
        else:
            return
        self._special = True

    def _begin_reasoning(self, start: int, end: int) -> None:
        resume = None
        if self._thought and not self._thinking and not self._special and not self._is_first(start):
            resume = self._start, self._answer
        self._end_block(start, end)
        self._resume = resume
        self._thinking = self._thought = True

    def _begin_answer(self, start: int, end: int) -> None:
        """Begin the answer; everything before it was reasoning."""
        self._end_block(start, end)
        if self._thought and self._answer:
            self._restore = self._reasoning, self._answer
        self._prompted = "\n\n".join(filter(None, (self._prompted, *self._blocks)))
        self._reasoning = self._prompted = self._prompted.removesuffix("<|end|>").rstrip()
        self._answer = ""
        self._blocks.clear()
        self._thought = True

    def _end_block(self, start: int, end: int) -> None:
        """End the growing block at the start of a tag. What follows the tag is an answer."""
        if text := self._text[self._start : start].strip():
            self._blocks.append(text)
            self._restore = None
            if self._thinking:
                self._reasoning = _join(self._reasoning, text)
            else:
                self._answer = _join(self._answer, text)
        self._start = self._first = self._line = end
        self._thinking, self._resume, self._indentable = False, None, False

    # --- Where a tag is ---

    def _is_first(self, at: int) -> bool:
        """Whether the growing block has no text before `at`."""
        first = NONBLANK.search(self._text, self._first)
        self._first = first.start() if first else len(self._text)
        return self._first >= at

    def _starts_line(self, at: int) -> bool:
        return at - self._line <= 3 and not self._text[self._line : at].strip(" ")

    def _size_of_role(self, at: int) -> int:
        """Length of the start of a header before `at` that lacks its special token."""
        role = "assistant"
        start = at - len(role)
        is_role = self._text.startswith(role, max(0, start)) and self._is_first(start)
        return len(role) if is_role else 0

    def _is_quoted(self, start: int, end: int) -> bool:
        before = self._text[max(self._line, start - 2) : start]
        return self._text[end : end + 1] in QUOTES_AFTER and bool(QUOTE_BEFORE.search(before))

    def _is_in_sentence(self, start: int, end: int) -> bool:
        return (
            self._text[start - 1] in BLANKS
            and not self._starts_line(start)
            and self._text[end : end + 1] not in ("", "\n", "\r")
        )

    def _needs_next_character(self, match: re.Match[str]) -> bool:
        """Whether only the next character tells if the tag counts."""
        if match.end() < len(self._text) or self._ended:
            return False
        tag, before = match[0].lower(), self._text[max(0, match.start() - 1) : match.start()]
        return tag == "[think]" or (
            tag in CLOSING and (before in BLANKS or bool(QUOTE_BEFORE.search(before)))
        )

    def _is_bare(self) -> bool:
        """Whether the text starts like one of gpt-oss without special tokens."""
        return self._text.startswith(BARE_ANALYSIS)


def _join(before: str, after: str) -> str:
    return f"{before}\n\n{after}" if before and after else before or after


def _code_spans(line: str) -> list[tuple[int, int]]:
    """Where code between equal runs of backticks starts and ends in a line, the last one first."""
    runs = [match.span() for match in re.finditer("`+", line)]
    last = {end - start: number for number, (start, end) in enumerate(runs)}
    spans: list[tuple[int, int]] = []
    opening: tuple[int, int] | None = None
    for number, (start, end) in enumerate(runs):
        if opening is None:
            if last[end - start] > number:
                opening = start, end
        elif end - start == opening[1] - opening[0]:
            spans.append((opening[0], end))
            opening = None
    return spans[::-1]
