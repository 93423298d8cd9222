"""Model servers and their models."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from vllm_space import hardware


@dataclass(frozen=True)
class Server:
    """A running model server. `url` is its root, without /v1."""

    url: str
    label: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300  # seconds to wait for the next chunk of an answer

    @classmethod
    def from_url(
        cls, url: str, *, label: str = "", api_key: str | None = None, timeout: float = 300
    ) -> Server:
        """A server by its root URL, which may end in /v1 or /generate."""
        url = url.strip().rstrip("/")
        for suffix in ("/v1", "/generate"):
            url = url.removesuffix(suffix)
        return cls(url, label, api_key, timeout)

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine."""
        return hardware.is_loopback(urlsplit(self.url).hostname)

    def endpoint(self, target: str) -> str:
        """The URL of a path of the server, which may have a query."""
        return self.url + target

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@dataclass(frozen=True)
class Model:
    """A model that a server offers. `protocol` is the one that the server speaks."""

    server: Server
    name: str
    protocol: str = "openai"  # or "generate"
    context_length: int | None = None  # tokens
    is_vllm: bool = False  # the server accepts vLLM's extra request fields

    @property
    def label(self) -> str:
        """The name shown on the page, unique across all servers."""
        return f"{self.name} ({self.server.label})" if self.server.label else self.name
