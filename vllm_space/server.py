"""Model servers and their models: from the address that the owner pasted to the URL of a request.

Sends nothing; discovery.py asks the server which of its `bases` is right.
"""

from __future__ import annotations

import base64
import functools
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from vllm_space import readers

# Whole endpoints, as they are pasted from a curl command.
ENDPOINT = re.compile(
    r"/(?:chat/completions|completions|responses|messages|embeddings|models|generate)$"
)
VERSION = re.compile(r"v\d+(?:(?:alpha|beta|preview)\d*)?", re.IGNORECASE)


@dataclass(eq=False)
class Server:
    """A running model server.

    `bases` are the URLs below which its OpenAI API may be, the likeliest first, without a query;
    `base` is the one that is used. `query` is added to every request, such as Azure's api-version.
    """

    bases: tuple[str, ...]
    label: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300  # seconds to wait for the next chunk of an answer
    query: str = field(default="", repr=False)
    login: str = field(default="", repr=False)  # "user:password" of HTTP's basic authentication
    base: str = ""
    is_found: bool = False  # the API has been found at `base`

    def __post_init__(self) -> None:
        self.base = self.base or self.bases[0]

    def found_at(self, base: str) -> None:
        """Use this base from now on."""
        self.base, self.is_found = base, True

    @classmethod
    def from_url(
        cls, url: str, *, label: str = "", api_key: str | None = None, timeout: float = 300
    ) -> Server:
        """A server by any of its addresses: the root, a base such as /v1, or an endpoint."""
        parts = urlsplit(url.strip())
        path = re.sub("/{2,}", "/", parts.path).rstrip("/")
        endpoint = ENDPOINT.search(path)
        path = ENDPOINT.sub("", path)
        is_base = endpoint is not None and endpoint[0] != "/generate"
        if path.endswith("/v1"):
            paths = [path]
        elif is_base or any(map(VERSION.fullmatch, path.split("/"))):
            paths = [path, f"{path}/v1"]
        else:
            paths = [f"{path}/v1", path]
        user, at, host = parts.netloc.rpartition("@")
        bases = tuple(urlunsplit((parts.scheme, host, path, "", "")) for path in paths)
        return cls(bases, label, api_key, timeout, parts.query, unquote(user) if at else "")

    @property
    def url(self) -> str:
        """The server's root as the owner gave it, which identifies it."""
        return self.bases[0].removesuffix("/v1")

    def endpoint(self, target: str, base: str = "") -> str:
        """The URL of a path such as /v1/chat/completions or /tokenize, which may have a query.

        `base` is to be used instead of the server's.
        """
        base = base or self.base
        path, _, query = target.partition("?")
        is_api = path.startswith("/v1/")
        url = base + path.removeprefix("/v1") if is_api else base.removesuffix("/v1") + path
        query = "&".join(filter(None, (self.query, query)))
        return f"{url}?{query}" if query else url

    @functools.cached_property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, though the server may repeat it."""
        in_query = readers.secrets_in_url(f"?{self.query}")
        return tuple(filter(None, (self.api_key, self.login.partition(":")[2], *in_query)))

    @property
    def headers(self) -> dict[str, str]:
        if self.api_key:
            return {"Authorization": f"Bearer {self.api_key}"}
        if self.login:
            return {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}"}
        return {}


@dataclass(frozen=True)
class Model:
    """A model that a server offers. `protocol` is the one that the server speaks.

    `chats` and `takes_images` are what the server's list says; None if it says nothing.
    """

    server: Server
    name: str
    protocol: str = "openai"  # or "generate"
    context_length: int | None = None  # tokens
    is_vllm: bool = False  # the server accepts vLLM's extra request fields
    chats: bool | None = None
    takes_images: bool | None = None

    @property
    def label(self) -> str:
        """The name shown on the page, unique across all servers."""
        return f"{self.name} ({self.server.label})" if self.server.label else self.name
