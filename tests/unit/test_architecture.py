"""Who imports whom: no cycle, the engine's side without Gradio, the page without the engine's side."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import ROOT

PACKAGE = ROOT / "vllm_space"
HOME = "vllm_space"


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(file): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if "demo_model" not in file.parts
} | {"app": ROOT / "app.py"}


def imports(file: Path) -> set[str]:
    """Every module that a file imports, in functions and under conditions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            names |= found or {node.module}
    return names


GRAPH = {name: imports(file) for name, file in FILES.items()}


def reached(name: str) -> set[str]:
    """All modules that an import of this one brings with it, the packages that they lie in included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            parents = {current.rpartition(".")[0]} & FILES.keys()
            waiting += (GRAPH.get(current, set()) | parents) - seen
    return seen


def is_in(name: str, room: str) -> bool:
    return name == f"{HOME}.{room}" or name.startswith(f"{HOME}.{room}.")


def test_the_graph_is_read_rightly():
    assert f"{HOME}.engine.command" in GRAPH[f"{HOME}.engine.supervisor"]
    assert "huggingface_hub" in GRAPH[f"{HOME}.engine.model_check"]  # imported in a function
    assert "gradio" in reached("app")


@pytest.mark.parametrize("name", FILES)
def test_no_import_leads_back(name):
    for other in GRAPH[name] & FILES.keys():
        assert name not in reached(other) - {name.rpartition(".")[0]} or other in name, (
            f"{name} -> {other} -> {name}"
        )


@pytest.mark.parametrize("name", [name for name in FILES if is_in(name, "engine")])
def test_engine_knows_no_gradio(name):
    brought = reached(name)
    assert not any(other.partition(".")[0] == "gradio" or is_in(other, "page") for other in brought)


@pytest.mark.parametrize("name", [name for name in FILES if is_in(name, "page")])
def test_page_knows_no_engine(name):
    assert not any(is_in(other, "engine") for other in reached(name))


def test_only_web_imports_the_page():
    outside = {
        name
        for name in FILES
        if not is_in(name, "page") and any(is_in(other, "page") for other in GRAPH[name])
    }
    assert outside == {f"{HOME}.web"}


def reads_variables(tree: ast.AST) -> bool:
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(names & {"environ", "getenv"})


def test_only_settings_and_hardware_read_variables():
    readers = {
        name
        for name, file in FILES.items()
        if reads_variables(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert readers == {
        f"{HOME}.settings",
        f"{HOME}.hardware",
        "app",
    }  # app.py sets one for start.sh


# Packages are imported once; then each module by a process of its own, which inherits them and none of ours.
ALONE = """
import importlib, os, sys
import gradio, gradio.mcp, huggingface_hub, pandas, prometheus_client, aiohttp, limits, pydantic_settings
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{name} cannot be imported alone")
"""


def test_each_module_can_be_imported_alone():
    names = [name for name in FILES if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *names], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
