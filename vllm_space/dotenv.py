"""The owner's variables as text: the environment, and `.env` next to app.py.

The only reader of `.env`, for settings.py and for start.sh, which runs

    python vllm_space/dotenv.py FILE NAME...   prints the values of the variables

before anything is installed: standard library only. Knows no variable. The format is that of
python-dotenv, with two differences: `${NAME}` is text in single quotes, as in a shell, and where
there is no such variable; a line that cannot be read is an error.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from pathlib import Path

BLANK = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?:\n|\Z)")
NAME = re.compile(r"[^\S\n]*(?:export[^\S\n]+)?([^\W\d][\w.-]*)[^\S\n]*=([^\S\n]*)")
VALUE = re.compile(
    r"""(?:
    '(?P<single>(?:\\.|[^'\\])*)' |
    "(?P<double>(?:\\.|[^"\\])*)" |
    (?P<plain>(?!['"])[^\n]*)
    )[^\S\n]*(?:\#[^\n]*)?(?:\n|\Z)""",
    re.DOTALL | re.VERBOSE,
)
COMMENT = re.compile(r"\s#.*")  # behind a value without quotes
REFERENCE = re.compile(r"\$\{([^}:]*)(?::-([^}]*))?\}")  # ${NAME} or ${NAME:-default}
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

ENCODINGS = (  # the longer mark first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# White space, and what looks like none: zero-width space, direction marks, word joiner, BOM.
SPACE = "[\\s\u200b\u200e\u200f\u2060\ufeff]+"
SURROUNDINGS = re.compile(rf"\A{SPACE}|{SPACE}\Z")


class UnreadableFile(ValueError):
    """`.env` cannot be read. The message names the line, never what is in it."""


def variables(path: Path) -> dict[str, str]:
    """Upper-case name -> text, from the environment and from the file at `path`.

    The environment overrides, unless its value is blank. Raises UnreadableFile.
    """
    merged: dict[str, str] = {}
    for source in (read(path), os.environ):
        for name, text in source.items():
            if clean(text) or name.upper() not in merged:
                merged[name.upper()] = text
    return merged


def clean(text: str) -> str:
    """`text` without white space around it and without one pair of quotes around it."""
    text = SURROUNDINGS.sub("", text)
    quote = text[:1]
    if len(text) > 1 and quote in ("'", '"') and text[-1] == quote and quote not in text[1:-1]:
        text = SURROUNDINGS.sub("", text[1:-1])
    return text


def read(path: Path) -> dict[str, str]:
    """The variables in a `.env` file; none if it does not exist. Raises UnreadableFile."""
    if path.is_dir():
        return {}
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreadableFile(f"{path.name} cannot be read ({error.strerror}).") from None
    try:
        text = _decode(data)
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, number, "it is not UTF-8: save the file as UTF-8") from None
    text = re.sub("\r\n?", "\n", text)
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise _unreadable(path, number, "its encoding differs: save the file as UTF-8")
    return _parse(path, text)


def _decode(data: bytes) -> str:
    for mark, encoding in ENCODINGS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    if data[1:2] == b"\0":
        return data.decode("utf-16-le")
    return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-8")


def _parse(path: Path, text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    position = 0
    while position < len(text):
        blank = BLANK.match(text, position)
        if blank:
            position = blank.end()
            continue
        number = text.count("\n", 0, position) + 1
        name = NAME.match(text, position)
        if not name:
            line = text[position:].split("\n", 1)[0]
            why = "it is not NAME=value" if "=" in line else "it has no `=`"
            raise _unreadable(path, number, why)
        value = VALUE.match(text, name.end())
        if not value:
            why = "its quote is never closed, or text follows the closing quote"
            raise _unreadable(path, number, why)
        values[name[1]] = _value(value, values, spaced=bool(name[2]))
        position = value.end()
    return values


def _value(match: re.Match[str], earlier: dict[str, str], spaced: bool) -> str:
    """`spaced`: there is white space before the value, where a # begins a comment."""
    if match["single"] is not None:
        return re.sub(r"\\([\\'])", r"\1", match["single"])
    if match["double"] is not None:
        text = re.sub(
            r"\\([\\'\"abfnrtv])",
            lambda escape: ESCAPES.get(escape[1], escape[1]),
            match["double"],
        )
    else:
        text = match["plain"]
        text = COMMENT.sub("", " " + text if spaced else text).strip()
    return REFERENCE.sub(lambda reference: _resolve(reference, earlier), text)


def _resolve(reference: re.Match[str], earlier: dict[str, str]) -> str:
    """What ${NAME} stands for. The text itself if there is no such variable: it was not meant."""
    value = earlier.get(reference[1], os.environ.get(reference[1]))
    if reference[2] is not None:
        return value or reference[2]
    return reference[0] if value is None else value


def _unreadable(path: Path, line: int, why: str) -> UnreadableFile:
    return UnreadableFile(f"{path.name}: line {line} cannot be read: {why}.")


def main(file: str, *names: str) -> int:
    """Print the values of the variables, one after the other; returns the exit code."""
    try:
        values = variables(Path(file))
    except UnreadableFile as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    for name in names:
        print(clean(values.get(name, "")))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
