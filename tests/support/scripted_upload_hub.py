"""A local server that plays the Hub while files are uploaded to a Space, as huggingface_hub's client speaks to it:
create the repository, check the card, ask how each file should come, send large and binary ones by git LFS, commit.

Which files .gitignore keeps out is decided by the Hub, not by the client; here by git itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support import space_card
from support.http_server import Quiet, serving
from support.programs import CLEAN

TOKEN = "hf_may_write"
SPACE = "me/my-space"
UPLOAD = f"hf upload {SPACE} . --repo-type=space"
LFS_FROM = 10_000_000  # bytes; above, and for binary files, the Hub wants LFS (huggingface.co/docs/hub/repositories)


class UploadHub:
    """What has been uploaded: `files` is the Space's content, `by_lfs` the paths that came through LFS."""

    def __init__(self) -> None:
        self.url = ""
        self.created: dict = {}
        self.files: dict[str, bytes] = {}
        self.by_lfs: set[str] = set()
        self.objects: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.messages: list[str] = []

    # -- the Hub's answers, by path: (status, body) -------------------------------------------------------------

    def get(self, path: str) -> tuple[int, object]:
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if path == f"/api/spaces/{SPACE}/tree/main":
            return 200, [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in self.files.items()
            ]
        if path in (f"/api/spaces/{SPACE}", f"/api/spaces/{SPACE}/revision/main"):
            return 200, {
                "id": SPACE,
                "sha": "0" * 40,
                "siblings": [{"rfilename": name} for name in self.files],
            }
        return 404, {"error": f"not played here: GET {path}"}

    def post(self, path: str, body: bytes) -> tuple[int, object]:
        if path == f"/api/spaces/{SPACE}/commit/main":
            return self.commit([json.loads(line) for line in body.splitlines()])
        asked = json.loads(body)
        if path == "/api/repos/create":
            status = 409 if self.created else 200
            self.created = self.created or asked
            return status, {"url": f"{self.url}/spaces/{SPACE}"}
        if path == "/api/validate-yaml":
            errors = [{"message": problem} for problem in space_card.problems(asked["content"])]
            return 400 if errors else 200, {"errors": errors, "warnings": []}
        if path == f"/api/spaces/{SPACE}/preupload/main":
            return 200, {"files": self.preupload(asked)}
        if path == f"/spaces/{SPACE}.git/info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in asked["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        return 404, {"error": f"not played here: POST {path}"}

    def preupload(self, asked: dict) -> list[dict]:
        ignored = ignored_by_git(
            [one["path"] for one in asked["files"]], asked.get("gitIgnore", "")
        )

        def mode(one: dict) -> str:
            binary = b"\0" in base64.b64decode(one["sample"])
            return "lfs" if binary or one["size"] > LFS_FROM else "regular"

        return [
            {"path": one["path"], "uploadMode": mode(one), "shouldIgnore": one["path"] in ignored}
            for one in asked["files"]
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
                    return 400, {"error": f"not played here: {other}"}
        return 200, {
            "commitUrl": f"{self.url}/spaces/{SPACE}/commit/{'1' * 40}",
            "commitOid": "1" * 40,
        }


def ignored_by_git(paths: list[str], gitignore: str) -> set[str]:
    """Those of `paths` that a repository with this .gitignore ignores."""
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
    """Play the Hub on a free port; only TOKEN may write."""
    hub = UploadHub()

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT":  # the address is itself the permission, as with a signed one
                oid = path.removeprefix("/lfs/")
                hub.objects[oid] = body
                status, said = (200 if hashlib.sha256(body).hexdigest() == oid else 400), {}
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, said = 401, {"error": "Invalid credentials in Authorization header"}
            else:
                status, said = hub.get(path) if self.command == "GET" else hub.post(path, body)
            self.reply(status, said)

        do_GET = do_POST = do_PUT = answer

    with serving(Handler) as server:
        hub.url = server.url
        yield hub


def upload(command: str, folder: Path, hub_url: str, **env: str) -> subprocess.CompletedProcess:
    """Run a shell command such as UPLOAD in a folder, against that Hub and with the tests' `hf` first in PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{CLEAN['PATH']}"
    certificates = {
        name: value for name, value in os.environ.items() if name.startswith("SSL_CERT")
    }  # for uv
    # The server above plays git LFS, not the Xet storage that the client would rather use.
    hub = {
        "HF_ENDPOINT": hub_url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    home = {"PATH": path, "HF_HOME": str(folder.parent / "hf")}
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env=CLEAN | certificates | hub | home | env,
    )
