"""A local package index (PEP 503) of nearly empty wheels."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

from support.http_server import QuietHandler, serving


class PackageIndex:
    """An index of the wheels that were added, served at `url`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.url = ""

    def add(self, name: str, version: str, *requires: str, extras: tuple[str, ...] = ()) -> None:
        """Add a wheel that holds one empty module."""
        folder = self.folder / "simple" / name.replace("_", "-")
        folder.mkdir(parents=True, exist_ok=True)
        module = name.replace("-", "_")
        info = f"{module}-{version}.dist-info"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "")
            wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")


@contextmanager
def package_index(
    folder: Path, on_request: Callable[[str], object] = lambda path: None
) -> Iterator[PackageIndex]:
    """Serve an empty index in `folder`; `on_request` is called with each requested path."""

    class Handler(QuietHandler, SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            on_request(self.path)
            super().do_GET()

    index = PackageIndex(folder)
    folder.mkdir(exist_ok=True)
    with serving(partial(Handler, directory=str(folder))) as server:
        index.url = f"{server.url}/simple/"
        yield index
