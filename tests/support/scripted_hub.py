"""A local server that plays the Hugging Face Hub's API for models, as huggingface_hub asks it (HF_ENDPOINT)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from support.http_server import Quiet, serving

GOOD_TOKEN = "hf_good"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model(model_id: str, **fields: object) -> dict:
    """What the Hub says of a model; the defaults are those of a small language model."""
    known = {
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
    return known | fields


@contextmanager
def hub(*models: dict, refs: tuple[str, ...] = ("main",)) -> Iterator[str]:
    """Serve `models`; yields the address. A gated or private one needs GOOD_TOKEN.

    The field `content` of a model, {file name: bytes}, makes those files downloadable.
    """
    by_id = {one["id"]: one for one in models}

    class Handler(Quiet):
        def send_file(self, model_id: str, name: str) -> None:
            content = by_id[model_id]["content"][name]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.reply(200, content, "application/octet-stream", ETag=tag, X_Repo_Commit=COMMIT)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if "/resolve/" in url.path:
                org, name, _, _, file = url.path.strip("/").split("/", 4)
                return self.send_file(f"{org}/{name}", file)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            parts = url.path.strip("/").split(
                "/"
            )  # api, models, org, name, "revision" | "auth-check", ...
            if url.path == "/api/whoami-v2":
                return (
                    self.reply(200, {"name": "me"})
                    if token == GOOD_TOKEN
                    else self.reply(401, {"error": "Invalid token"})
                )
            if url.path == "/api/models":
                search = parse_qs(url.query)["search"][0].lower()
                return self.reply(
                    200, [one for name, one in by_id.items() if search in name.lower()]
                )
            found = by_id.get("/".join(parts[2:4]))
            if token and token != GOOD_TOKEN:
                return self.reply(401, {"error": "Invalid credentials in Authorization header"})
            if not found or (found["private"] and token != GOOD_TOKEN):
                return self.reply(
                    404 if token else 401,
                    {"error": "Repository not found"},
                    X_Error_Code="RepoNotFound",
                )
            if parts[4:5] == ["auth-check"]:
                if found["gated"] and found["gated"] != "granted" and token != GOOD_TOKEN:
                    return self.reply(
                        403 if token else 401, {"error": "gated"}, X_Error_Code="GatedRepo"
                    )
                return self.reply(200, {})
            if parts[4:5] == ["revision"] and parts[5] not in refs:
                return self.reply(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return self.reply(
                200, {name: value for name, value in found.items() if name != "content"}
            )

    with serving(Handler) as server:
        yield server.url
