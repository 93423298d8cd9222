"""dotenv.py: `.env` files as people have them, and how the environment overrides them."""

import os
import subprocess
import sys

import pytest
from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st

from support.programs import ROOT
from vllm_space import dotenv


@pytest.fixture
def write(tmp_path):
    """write(text or bytes) -> the file."""

    def run(content):
        path = tmp_path / ".env"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return run


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A = b", "b"),
        ("export A=b", "b"),
        ("  export\tA\t=\tb  ", "b"),
        ("A=b c", "b c"),
        ("A=b # comment", "b"),
        ("A=b#c", "b#c"),
        ("A= # comment", ""),
        ("A=#b", "#b"),
        ("A=", ""),
        ("A='b # c' # comment", "b # c"),
        ('A=" b "', " b "),
        ('A="b\nc"', "b\nc"),
        (r'A="b\nc\"d\x"', 'b\nc"d\\x'),
        (r"A='b\nc\'d'", r"b\nc'd"),
        ("A=b'c\"d", "b'c\"d"),
        ("A=p$ss$1", "p$ss$1"),
        ("A=${B_C}-x", "${B_C}-x"),
        ("A=${B_C:-d}", "d"),
        ("A='${KNOWN}'", "${KNOWN}"),
        ("A=${KNOWN}/v1", "known/v1"),
        ("# A=c\n\n \nA=b\n#", "b"),
        ("A=c\nA=b", "b"),
        ("A={'a': 1}", "{'a': 1}"),
        ("A=https://h/?a=b&c=d#e", "https://h/?a=b&c=d#e"),
    ],
)
def test_line_becomes_a_value(monkeypatch, write, line, value):
    monkeypatch.setenv("KNOWN", "known")
    assert dotenv.read(write(line))["A"] == value
    for line_ending in ("\r\n", "\r"):
        assert dotenv.read(write(line.replace("\n", line_ending)))["A"] == value


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("line_ending", ["\n", "\r\n"])
def test_any_unicode_encoding_is_read(write, encoding, line_ending):
    lines = ["MODEL_URL = http://127.0.0.1:8000", "export APP_TITLE='Köln 🗼'", ""]
    expected = {"MODEL_URL": "http://127.0.0.1:8000", "APP_TITLE": "Köln 🗼"}
    assert dotenv.read(write(line_ending.join(lines).encode(encoding))) == expected


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("A=b\nMODEL_URL marked", 2),
        ("MODEL_URL: http://marked=", 1),
        ('"MODEL_URL": "marked=",', 1),
        ("set A=marked", 1),
        ("=marked", 1),
        ("# c\n\nA='marked", 3),
        ('A="marked"marked', 1),
        ('A="x\ny"\nB="marked\nC=c', 3),
        ("export A", 1),
        (b"A=b\nB=K\xf6ln-marked", 2),
        (b"A=b\n" + "B=marked".encode("utf-16-le"), 2),
        (b"\xff\xfeA\x00=\x00b\x00\n\x00B", 2),
    ],
)
def test_unreadable_line_is_named_not_shown(write, content, line):
    with pytest.raises(dotenv.UnreadableFile) as caught:
        dotenv.read(write(content))
    assert str(caught.value).startswith(f".env: line {line} cannot be read: ")
    assert "marked" not in str(caught.value)


def test_missing_file_has_no_variables(tmp_path):
    assert dotenv.read(tmp_path / ".env") == {}
    assert dotenv.read(tmp_path) == {}  # a folder with that name


@given(
    st.lists(
        st.sampled_from(["A", "B_1", " = ", "=", "'", '"', "#", " ", "\\", "n", "x", "\n", "é"]),
        max_size=30,
    )
)
@settings(deadline=None, max_examples=200)
def test_python_dotenv_reads_the_same(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("env") / ".env"
    path.write_text("".join(parts), encoding="utf-8")
    try:
        values = dotenv.read(path)
    except dotenv.UnreadableFile:
        return  # python-dotenv would skip a line
    assert values == dotenv_values(path)


@pytest.mark.parametrize(
    ("environment", "value"),
    [
        ({"NAME": "env"}, "env"),
        ({"name": "env"}, "env"),
        ({"NAME": ""}, "file"),
        ({"NAME": ' "" '}, "file"),
    ],
)
def test_environment_overrides_unless_blank(monkeypatch, write, environment, value):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert dotenv.variables(write("NAME=file"))["NAME"] == value


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", "-S", str(ROOT / "vllm_space" / "dotenv.py"), *arguments]
    environment = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)


def test_needs_the_standard_library_only(write):
    done = run(str(write("A = 'x'\nB=y")), "A", "B", "C", "D", B=" z ")
    assert (done.returncode, done.stdout) == (0, "x\nz\n\n\n")


def test_command_names_the_line_that_is_bad(write):
    done = run(str(write("A=b\nMODEL_URL\n")), "A")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ERROR: .env: line 2 cannot be read: it has no `=`.\n"
