"""llama.cpp's server, built once from the source in the distribution of its Python package."""

from __future__ import annotations

import tarfile
from pathlib import Path

from support.environments import cached, environment, run

SOURCE = "llama-cpp-python==0.3.36"
TOOLS = ["cmake==4.1.2", "gguf==0.19.0", "pip"]
OPTIONS = """
-DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_C_FLAGS_RELEASE=-O2
-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF
-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF
""".split()


def tools() -> Path:
    """An environment that can build llama.cpp and write its model files."""
    return environment("llama.cpp-tools", TOOLS)


def llama_server() -> Path:
    """The program. Building it takes a few minutes, and needs a C++ compiler."""
    return cached("llama.cpp", f"{SOURCE} {OPTIONS}", _build) / "build" / "bin" / "llama-server"


def _build(folder: Path) -> None:
    python, cmake = tools() / "bin" / "python", str(tools() / "bin" / "cmake")
    download = "-m pip download --quiet --no-deps --no-binary :all: --dest".split()
    run(str(python), *download, str(folder), SOURCE)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder / "source", filter="data")
    (source,) = folder.glob("source/*/vendor/llama.cpp")
    build = str(folder / "build")
    run(cmake, "-S", str(source), "-B", build, *OPTIONS)
    run(cmake, "--build", build, "--target", "llama-server", "--parallel", "2")
