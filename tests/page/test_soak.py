"""A page that runs for weeks must not leak memory."""

import re
import subprocess
import sys

import pytest

from support.programs import CLEAN, ROOT


@pytest.mark.release
@pytest.mark.timeout(3600)
def test_600_conversations_leak_no_memory():
    done = subprocess.run(
        [sys.executable, "tests/benchmark/page.py", "--soak", "600"],
        cwd=ROOT,
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=3500,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    growth = re.search(r"Growth after the first 400: (-?[\d.]+) MiB", done.stdout)
    assert float(growth.group(1)) < 30
