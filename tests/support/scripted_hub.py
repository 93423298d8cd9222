"""A local server with the Hugging Face Hub's API for models: set HF_ENDPOINT to its URL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from support.http_server import QuietHandler, serving

GOOD_TOKEN = "hf_good"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model(model_id: str, **fields: object) -> dict:
    """The Hub's metadata of a model; the defaults describe a small language model."""
    metadata = {
        "id": model_id,
        "pipeline_tag": "text-generation",
        "gated": False,
        "private": False,
        "config": {"architectures": ["LlamaForCausalLM"]},
        "safetensors": {"parameters": {"BF16": 1_000_000_000}, "total": 1_000_000_000},
        "siblings": [
            {"rfilename": "config.json", "size": 700},
            {"rfilename": "model.safetensors", "size": 2_000_000_000},
        ],
    }
    return metadata | fields


@contextmanager
def hub(*models: dict, refs: tuple[str, ...] = ("main",)) -> Iterator[str]:
    """Serve `models`; yields the URL. Gated and private models need GOOD_TOKEN.

    A model's field `content`, {file name: bytes}, makes these files downloadable.
    """
    by_id = {model["id"]: model for model in models}

    class Handler(QuietHandler):
        def send_file(self, model_id: str, name: str) -> None:
            content = by_id.get(model_id, {}).get("content", {}).get(name)
            if content is None:
                return self.reply(404, {"error": "Not found"}, X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.reply(
                200, content, "application/octet-stream", ETag=tag, X_Repo_Commit=COMMIT
            )

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if "/resolve/" in url.path:
                org, name, _, _, file = url.path.strip("/").split("/", 4)
                return self.send_file(f"{org}/{name}", file)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if url.path == "/api/whoami-v2":
                if token == GOOD_TOKEN:
                    return self.reply(200, {"name": "me"})
                return self.reply(401, {"error": "Invalid token"})
            if url.path == "/api/models":
                search = parse_qs(url.query)["search"][0].lower()
                matches = [model for name, model in by_id.items() if search in name.lower()]
                return self.reply(200, matches)
            # /api/models/ORG/NAME, alone or followed by /auth-check or /revision/REVISION
            if not url.path.startswith("/api/models/"):
                return self.reply(404, {"error": "Not found"})
            _, _, org, name, *action = url.path.strip("/").split("/")
            model = by_id.get(f"{org}/{name}")
            if token and token != GOOD_TOKEN:
                return self.reply(401, {"error": "Invalid credentials in Authorization header"})
            status = 404 if token else 401
            if not model or (model["private"] and not token):
                error = {"error": "Repository not found"}
                return self.reply(status, error, X_Error_Code="RepoNotFound")
            if action == ["auth-check"]:
                if model["gated"] and model["gated"] != "granted" and not token:
                    return self.reply(401, {"error": "gated"}, X_Error_Code="GatedRepo")
                return self.reply(200, {})
            if action[:1] == ["revision"] and action[1] not in refs:
                return self.reply(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            public = {field: value for field, value in model.items() if field != "content"}
            return self.reply(200, public)

    with serving(Handler) as server:
        yield server.url
