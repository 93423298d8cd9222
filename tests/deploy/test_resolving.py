"""The Space builder can resolve requirements.txt together with what it adds itself."""

import re

import pytest
from upgrade import BUILDER, CARD, OFFLINE, requirements, resolve, version_of


@pytest.mark.registry
def test_builder_resolves_requirements(tmp_path):
    lines = requirements("requirements.txt") + [line.format(**CARD) for line in BUILDER]
    done = resolve(lines, "--no-config", "--cache-dir", str(tmp_path / "cache"))
    if re.search(OFFLINE, done.stderr):
        pytest.skip("the package registry cannot be reached from here")
    assert done.returncode == 0, done.stderr
    for line in requirements("requirements.txt"):
        if "==" in line:
            name, version = re.sub(r"\[.*]", "", line).split("==")
            assert version_of(name, done.stdout) == version
