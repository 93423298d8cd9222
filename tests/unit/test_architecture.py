"""The imports between modules: no cycles, no Gradio in the engine, no engine in the page."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import ROOT

PACKAGE = "vllm_space"


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_name(file): file
    for file in sorted((ROOT / PACKAGE).rglob("*.py"))
    if "demo_model" not in file.parts
} | {"app": ROOT / "app.py"}


def imports(file: Path) -> set[str]:
    """All modules that a file imports, including inside functions and conditions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            names |= submodules or {node.module}
    return names


GRAPH = {name: imports(file) for name, file in FILES.items()}


def closure(name: str) -> set[str]:
    """All modules that are loaded when this one is imported, parent packages included."""
    loaded: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        if current not in loaded:
            loaded.add(current)
            parents = {current.rpartition(".")[0]} & FILES.keys()
            pending += (GRAPH.get(current, set()) | parents) - loaded
    return loaded


def is_in(name: str, subpackage: str) -> bool:
    prefix = f"{PACKAGE}.{subpackage}"
    return name == prefix or name.startswith(f"{prefix}.")


def modules_in(subpackage: str) -> list[str]:
    return [name for name in FILES if is_in(name, subpackage)]


def test_import_graph_is_complete():
    assert f"{PACKAGE}.engine.command" in GRAPH[f"{PACKAGE}.engine.supervisor"]
    assert "huggingface_hub" in GRAPH[f"{PACKAGE}.engine.model_check"]  # inside a function
    assert "gradio" in closure("app")


@pytest.mark.parametrize("name", FILES)
def test_no_import_cycles(name):
    parent = name.rpartition(".")[0]
    for other in GRAPH[name] & FILES.keys():
        is_cycle = name in closure(other) - {parent} and other not in name
        assert not is_cycle, f"{name} -> {other} -> {name}"


@pytest.mark.parametrize("name", modules_in("engine"))
def test_engine_does_not_import_gradio(name):
    loaded = closure(name)
    assert not any(other.partition(".")[0] == "gradio" or is_in(other, "page") for other in loaded)


@pytest.mark.parametrize("name", modules_in("page"))
def test_page_does_not_import_engine(name):
    assert not any(is_in(other, "engine") for other in closure(name))


def test_only_web_imports_the_page():
    importers = {name for name in FILES if any(is_in(other, "page") for other in GRAPH[name])}
    assert importers - set(modules_in("page")) == {f"{PACKAGE}.web"}


def reads_environment(file: Path) -> bool:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(names & {"environ", "getenv"})


def test_few_modules_read_the_environment():
    readers = {name for name, file in FILES.items() if reads_environment(file)}
    # app.py only sets a variable for start.sh.
    expected = ("dotenv", "hardware", "network", "settings")
    assert readers == {f"{PACKAGE}.{name}" for name in expected} | {"app"}


# Imports the slow third-party packages once, then each module in a forked process of its own.
IMPORT_EACH = """
import importlib, os, sys
import gradio, gradio.mcp, huggingface_hub, pandas, prometheus_client
import aiohttp, limits, pydantic
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{name} cannot be imported first")
"""


def test_each_module_can_be_imported_first():
    names = [name for name in FILES if not name.endswith("__main__")]
    command = [sys.executable, "-c", IMPORT_EACH, *names]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
