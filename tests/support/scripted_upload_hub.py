"""A local server with the part of the Hub's API that `hf upload` uses for a Space.

The client creates the repository, has the card checked, asks how to send each file, uploads large
and binary ones through git LFS, and commits. The Hub decides which files .gitignore excludes; here
git does.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from pathlib import Path
from urllib.parse import urlsplit

from support import space_card
from support.http_server import QuietHandler, serving
from support.programs import CLEAN

TOKEN = "hf_may_write"
SPACE = "me/my-space"
UPLOAD = f"hf upload {SPACE} . --repo-type=space"
LFS_FROM = 10_000_000  # bytes; the Hub takes larger files, and all binary ones, only through LFS


class UploadHub:
    """`files` is the content of the Space, `by_lfs` the paths that were sent through LFS."""

    def __init__(self) -> None:
        self.url = ""
        self.created: dict = {}
        self.files: dict[str, bytes] = {}
        self.by_lfs: set[str] = set()
        self.objects: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.messages: list[str] = []

    # -- the answers to each path: (status, body) --------------------------------------------------

    def get(self, path: str) -> tuple[int, object]:
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if path == f"/api/spaces/{SPACE}/tree/main":
            return 200, [
                {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
        if path in (f"/api/spaces/{SPACE}", f"/api/spaces/{SPACE}/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {"id": SPACE, "sha": "0" * 40, "siblings": siblings}
        return 404, {"error": f"not implemented here: GET {path}"}

    def post(self, path: str, body: bytes) -> tuple[int, object]:
        if path == f"/api/spaces/{SPACE}/commit/main":
            return self.commit([json.loads(line) for line in body.splitlines()])
        fields = json.loads(body)
        if path == "/api/repos/create":
            status = 409 if self.created else 200
            self.created = self.created or fields
            return status, {"url": f"{self.url}/spaces/{SPACE}"}
        if path == "/api/validate-yaml":
            errors = [{"message": problem} for problem in space_card.problems(fields["content"])]
            return 400 if errors else 200, {"errors": errors, "warnings": []}
        if path == f"/api/spaces/{SPACE}/preupload/main":
            return 200, {"files": self.preupload(fields)}
        if path == f"/spaces/{SPACE}.git/info/lfs/objects/batch":
            objects = [
                {**file, "actions": {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}}
                for file in fields["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        return 404, {"error": f"not implemented here: POST {path}"}

    def preupload(self, fields: dict) -> list[dict]:
        paths = [file["path"] for file in fields["files"]]
        ignored = ignored_by_git(paths, fields.get("gitIgnore", ""))

        def mode(file: dict) -> str:
            binary = b"\0" in base64.b64decode(file["sample"])
            return "lfs" if binary or file["size"] > LFS_FROM else "regular"

        return [
            {"path": path, "uploadMode": mode(file), "shouldIgnore": path in ignored}
            for path, file in zip(paths, fields["files"], strict=True)
        ]

    def commit(self, lines: list[dict]) -> tuple[int, object]:
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    self.messages.append(value["summary"])
                case "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        return 400, {"error": f"{value['path']}: no such LFS object"}
                    self.files[value["path"]] = self.objects[value["oid"]]
                    self.by_lfs.add(value["path"])
                case "deletedFile":
                    del self.files[value["path"]]
                case other:
                    return 400, {"error": f"not implemented here: {other}"}
        oid = "1" * 40
        return 200, {"commitUrl": f"{self.url}/spaces/{SPACE}/commit/{oid}", "commitOid": oid}


def ignored_by_git(paths: list[str], gitignore: str) -> set[str]:
    """The paths that this .gitignore excludes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "init", "--quiet", folder], check=True)
        Path(folder, ".gitignore").write_text(gitignore)
        done = subprocess.run(
            ["git", "-C", folder, "check-ignore", "--no-index", "--stdin", "-z"],
            input="\0".join(paths),
            capture_output=True,
            text=True,
        )
    return set(done.stdout.split("\0")) - {""}


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Run the server; it accepts only TOKEN."""
    hub = UploadHub()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT":  # needs no token, like the Hub's signed URLs
                oid = path.removeprefix("/lfs/")
                hub.objects[oid] = body
                self.reply(200 if sha256(body).hexdigest() == oid else 400, {})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.reply(401, {"error": "Invalid credentials in Authorization header"})
            elif self.command == "GET":
                self.reply(*hub.get(path))
            else:
                self.reply(*hub.post(path, body))

        do_GET = do_POST = do_PUT = answer

    with serving(Handler) as server:
        hub.url = server.url
        yield hub


def upload(command: str, folder: Path, hub_url: str, **env: str) -> subprocess.CompletedProcess:
    """Run a shell command such as UPLOAD in a folder, with this Hub and the tests' `hf` command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{CLEAN['PATH']}"
    # uv needs the certificates
    certificates = {key: value for key, value in os.environ.items() if key.startswith("SSL_CERT")}
    # The server above has git LFS, not the Xet storage that the client prefers.
    hub = {"HF_ENDPOINT": hub_url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    hub |= {"HF_HUB_DISABLE_XET": "1"}
    home = {"PATH": path, "HF_HOME": str(folder.parent / "hf")}
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=CLEAN | certificates | hub | home | env,
    )
