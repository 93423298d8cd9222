"""Which models there are: those of all servers, asked for again when the answer is no longer fresh. Knows no Gradio."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from vllm_space import client, errors
from vllm_space.client import Model, Server
from vllm_space.settings import Settings


class Catalog:
    """The models of all servers, asked for again when the answer is older than `FRESH` seconds.

    `FRESH_ERROR` seconds where a server did not answer: every request would wait for it otherwise.
    """

    FRESH = 5.0
    FRESH_ERROR = 1.0

    def __init__(self, servers: list[Server]):
        self.servers = servers
        self._lock = threading.Lock()
        self._asked = -self.FRESH
        self._models: list[Model] = []
        self._errors: dict[str, str] = {}
        self._takes_images: dict[Model, bool] = {}

    @classmethod
    def of(cls, config: Settings) -> Catalog:
        """The catalog of the servers in MODEL_URL or MODELS."""
        key = config.model_api_key.get_secret_value() if config.model_api_key else None
        return cls(
            [
                Server.from_url(url, label=label, api_key=key, timeout=config.request_timeout)
                for label, url in config.servers.items()
            ]
        )

    def models(self) -> list[Model]:
        """Every model of every server that answers. Those of one that does not are left out: see `problems`."""
        self._refresh()
        return self._models

    def problems(self) -> dict[str, str]:
        """Label of each server that does not answer -> why, as a sentence."""
        self._refresh()
        return self._errors

    def find(self, label: str | None = None) -> Model:
        """The model of that label (or name); without one, the first. Raises ModelError where there is none."""
        found = self.models()
        for names in ([model.label for model in found], [model.name for model in found]):
            for model, name in zip(found, names, strict=True):
                if not label or label == name:
                    return model
        if found:
            raise errors.Rejected(
                f"There is no model {label!r} here. There is: {', '.join(m.label for m in found)}."
            )
        raise (
            errors.Unreachable(next(iter(self._errors.values())))
            if self._errors
            else errors.no_server()
        )

    def expire(self) -> None:
        """Ask the servers anew at the next look: an answer of one has just failed."""
        self._asked = -self.FRESH

    def takes_images(self, model: Model) -> bool:
        """Whether the model takes pictures, asked once. A server that fails to say is asked again the next time."""
        if model not in self._takes_images:
            try:
                self._takes_images[model] = model.protocol == "openai" and client.takes_images(
                    model
                )
            except errors.ModelError:
                return False
        return self._takes_images[model]

    def _refresh(self) -> None:
        if not self._lock.acquire(blocking=not self._models):
            return  # another thread asks just now, and may have to wait for a server that is down
        try:
            fresh = self.FRESH if self._models and not self._errors else self.FRESH_ERROR
            if time.monotonic() - self._asked < fresh:
                return
            found: list[Model] = []
            failed: dict[str, str] = {}
            with ThreadPoolExecutor(max_workers=max(1, len(self.servers))) as pool:
                for one, answer in zip(
                    self.servers, pool.map(_models_or_error, self.servers), strict=True
                ):
                    if isinstance(answer, list):
                        found += answer
                    elif isinstance(answer, errors.Unreachable):
                        failed[one.label] = str(answer)
                    else:  # it is there and stumbles, as a router does while it loses a replica
                        found += [model for model in self._models if model.server == one]
                        failed[one.label] = str(answer)
            self._models, self._errors, self._asked = found, failed, time.monotonic()
        finally:
            self._lock.release()


def _models_or_error(server: Server) -> list[Model] | errors.ModelError:
    try:
        return client.models(server)
    except errors.ModelError as error:
        return error
