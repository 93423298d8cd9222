"""The models of all servers, cached for a few seconds. Knows nothing of Gradio."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from vllm_space import discovery, errors, tokenizer
from vllm_space.server import Model, Server
from vllm_space.settings import Settings

log = logging.getLogger(__name__)


class Catalog:
    """The models of all servers. `MAX_AGE` is how long a listing is cached.

    A failed listing is cached too, for `MAX_AGE_ERROR`: otherwise every request would wait for the
    server that is down.
    """

    MAX_AGE = 5.0  # seconds
    MAX_AGE_ERROR = 1.0  # seconds

    def __init__(self, servers: list[Server]):
        self.servers = servers
        self._lock = threading.Lock()
        self._refreshed_at = -self.MAX_AGE
        self._models: list[Model] = []
        self._problems: dict[str, str] = {}
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
        """The models of every server that responds; see `problems` for the others."""
        self._refresh()
        return self._models

    def problems(self) -> dict[str, str]:
        """Label of each server that does not respond -> error message."""
        self._refresh()
        return self._problems

    def find(self, label: str | None = None) -> Model:
        """The model with that label or name, by default the first. Raises ModelError if none."""
        models = self.models()
        for names in ([model.label for model in models], [model.name for model in models]):
            for model, name in zip(models, names, strict=True):
                if not label or label == name:
                    return model
        if models:
            labels = ", ".join(model.label for model in models)
            raise errors.Rejected(f"There is no model {label!r}. Available models: {labels}.")
        if self._problems:
            raise errors.Unreachable(next(iter(self._problems.values())))
        raise errors.no_server()

    def expire(self) -> None:
        """List the models again at the next call, because a request has just failed."""
        self._refreshed_at = -self.MAX_AGE

    def takes_images(self, model: Model) -> bool:
        """Whether the model accepts images. Cached for good, unless the server could not say."""
        if model not in self._takes_images:
            try:
                self._takes_images[model] = model.protocol == "openai" and tokenizer.takes_images(
                    model
                )
            except errors.ModelError:
                return False
        return self._takes_images[model]

    def _refresh(self) -> None:
        if not self._lock.acquire(blocking=not self._models):
            return  # another thread is refreshing, and may be waiting for a server that is down
        try:
            max_age = self.MAX_AGE if self._models and not self._problems else self.MAX_AGE_ERROR
            if time.monotonic() - self._refreshed_at < max_age:
                return
            models: list[Model] = []
            problems: dict[str, str] = {}
            with ThreadPoolExecutor(max_workers=max(1, len(self.servers))) as pool:
                results = pool.map(_models_or_error, self.servers)
                for server, result in zip(self.servers, results, strict=True):
                    if isinstance(result, list):
                        models += result
                        continue
                    problems[server.label] = str(result)
                    # A server that returns an error is still up, such as a router that lost a
                    # replica: keep its models.
                    if not isinstance(result, errors.Unreachable):
                        models += [model for model in self._models if model.server == server]
            self._log_changes(problems)
            self._models, self._problems = models, problems
            self._refreshed_at = time.monotonic()
        finally:
            self._lock.release()

    def _log_changes(self, problems: dict[str, str]) -> None:
        for label in problems.keys() - self._problems.keys():
            log.warning(problems[label])
        for label in self._problems.keys() - problems.keys():
            log.info("%s responds again.", f"The model server {label}".rstrip())


def _models_or_error(server: Server) -> list[Model] | errors.ModelError:
    try:
        return discovery.models(server)
    except errors.ModelError as error:
        return error
