"""The models of all servers, cached for a few seconds. Knows nothing of Gradio."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace

from vllm_space import discovery, errors, readers, tokenizer
from vllm_space.server import Model, Server
from vllm_space.settings import Settings

log = logging.getLogger(__name__)

# Seconds to wait for a server's list; loading the page waits for it.
WAIT = 5.0
WAIT_IF_KNOWN = 1.0  # if its models are known: the list has probably not changed


class Catalog:
    """The models of all servers; the first is the one to begin with.

    `first` is the owner's choice of that model, by its name or label. `images` says whether models
    take images if neither their list nor their server does; None means that they do not. `MAX_AGE`
    is how long a listing is cached. A failed listing is cached too, for `MAX_AGE_ERROR`: otherwise
    every request would wait for the server that is down.
    """

    MAX_AGE = 5.0  # seconds
    MAX_AGE_ERROR = 1.0  # seconds

    def __init__(self, servers: list[Server], first: str = "", images: bool | None = None):
        self.servers = servers
        self.first = first
        self.images = images
        self._lock = threading.Lock()
        self._refreshed_at = -self.MAX_AGE
        self._listings: dict[Server, _Listing] = {}  # those that have not ended
        self._models: list[Model] = []
        self._problems: dict[str, str] = {}
        self._missing = ""
        self._takes_images: dict[Model, bool | None] = {}

    @classmethod
    def of(cls, config: Settings) -> Catalog:
        """The catalog of the servers in MODEL_URL or MODELS."""
        key = config.model_api_key.get_secret_value() if config.model_api_key else None
        # If start.sh has started the engine, MODEL_ID is the model it serves, under another name.
        first = "" if config.engine_run_dir else _name(config.model_id or "")
        servers = [
            Server.from_url(url, label=label, api_key=key, timeout=config.request_timeout)
            for label, url in config.servers.items()
        ]
        return cls(servers, first, config.model_images)

    @property
    def only_name(self) -> str:
        """The name of the model of a server that does not list its models; empty if unknown."""
        return self.first if len(self.servers) == 1 else ""

    def models(self) -> list[Model]:
        """The models of every server that responds; see `problems` for the others."""
        self._refresh()
        return self._models

    def chat_models(self) -> list[Model]:
        """The models to chat with: those that are not known to be for something else."""
        models = self.models()
        return [model for model in models if model.chats is not False] or models

    def problems(self) -> dict[str, str]:
        """Label of each server that does not respond -> error message."""
        self._refresh()
        return self._problems

    def missing(self) -> str:
        """A warning if no server has the model that the owner has chosen; otherwise empty."""
        self._refresh()
        return self._missing

    def find(self, label: str | None = None) -> Model:
        """The model with that label or name, by default the first. Raises ModelError if none."""
        models = self.models()
        if model := _named(models, label) if label else next(iter(models), None):
            return model
        if models:
            raise errors.unknown_model(str(label), (model.label for model in models))
        if self._problems:
            raise errors.Unreachable(next(iter(self._problems.values())))
        raise errors.no_server()

    def expire(self) -> None:
        """List the models again at the next call, because a request has just failed."""
        self._refreshed_at = -self.MAX_AGE

    def takes_images(self, model: Model) -> bool:
        """Whether the model accepts images. The server's answer to that is cached for good."""
        if self.images is False or model.protocol != "openai":
            return False
        if model.takes_images is not None:
            return model.takes_images
        if model not in self._takes_images:
            try:
                self._takes_images[model] = tokenizer.takes_images(model)
            except errors.ModelError:
                return bool(self.images)
        known = self._takes_images[model]
        return bool(self.images) if known is None else known

    def _refresh(self) -> None:
        if not self._lock.acquire(blocking=not self._models):
            return  # another thread is refreshing, and may be waiting for a server that is down
        try:
            max_age = self.MAX_AGE if self._models and not self._problems else self.MAX_AGE_ERROR
            if time.monotonic() - self._refreshed_at < max_age:
                return
            for server in self.servers:
                if server not in self._listings:
                    self._listings[server] = _Listing(server, self.only_name)
            models: list[Model] = []
            problems: dict[str, str] = {}
            for server in self.servers:
                known = [model for model in self._models if model.server is server]
                try:
                    models += self._listed(server, known)
                except errors.ModelError as error:
                    problems[server.label] = str(error)
                    # A server that returns an error is still up, such as a router that lost a
                    # replica: keep its models.
                    if not isinstance(error, errors.Unreachable):
                        models += known
            self._log_changes(problems)
            self._models, self._problems = self._sorted(models), problems
            self._refreshed_at = time.monotonic()
            self._missing = self._warn_if_missing()
        finally:
            self._lock.release()

    def _listed(self, server: Server, known: list[Model]) -> list[Model]:
        """The models of a server, which had the `known` ones before.

        Raises ModelError, also if nothing is known and the list is not there within WAIT.
        """
        listing = self._listings[server]
        wait = WAIT_IF_KNOWN if known else WAIT
        listing.join(max(0.0, listing.started_at + wait - time.monotonic()))
        if listing.is_alive():  # it goes on: a later refresh finds its result
            if known:
                return known
            raise errors.waking_up(server.label, WAIT)
        del self._listings[server]
        if listing.error:
            raise listing.error
        return listing.models

    def _sorted(self, models: list[Model]) -> list[Model]:
        """The models with the owner's choice first, and those that do not chat last."""
        models = sorted(models, key=lambda model: model.chats is False)
        first = self._first_of(models)
        return [first, *(model for model in models if model is not first)] if first else models

    def _first_of(self, models: list[Model]) -> Model | None:
        """The model that the owner has chosen, if a server has it."""
        if not self.first:
            return None
        for name in (self.first, f"{self.first}:latest"):  # which Ollama appends
            if model := _named(models, name):
                return model
        for model in models:
            if model.name.lower() == self.first.lower():
                return model
        # Hugging Face's router takes names with the suffix of a provider, which it does not list.
        model = _named(models, self.first.rpartition(":")[0])
        return replace(model, name=self.first) if model else None

    def _warn_if_missing(self) -> str:
        models = self._models
        if not self.first or not models or self._problems or self._first_of(models):
            return ""
        warning = errors.no_such_model(self.first, models[0].label)
        if warning != self._missing:
            log.warning(warning)
        return warning

    def _log_changes(self, problems: dict[str, str]) -> None:
        for label in problems.keys() - self._problems.keys():
            log.warning(problems[label])
        for label in self._problems.keys() - problems.keys():
            log.info("%s responds again.", f"The model server {label}".rstrip())


class _Listing(threading.Thread):
    """Lists the models of a server. A slow server does not keep the process from ending."""

    def __init__(self, server: Server, name: str):
        super().__init__(daemon=True)
        self.server = server
        self.name_without_list = name
        self.models: list[Model] = []
        self.error: errors.ModelError | None = None
        self.started_at = time.monotonic()
        self.start()

    def run(self) -> None:
        try:
            self.models = discovery.models(self.server, self.name_without_list)
        except errors.ModelError as error:
            self.error = error
        except Exception:
            log.exception("a list of models could not be read")
            self.error = errors.internal()


def _name(model_id: str) -> str:
    """The name of a model, if MODEL_ID is the address of its page on the Hub."""
    with suppress(ValueError):
        return readers.model(model_id)[0] if "://" in model_id else model_id
    return model_id


def _named(models: list[Model], name: str) -> Model | None:
    """The model with this label, or else with this name."""
    for names in ([model.label for model in models], [model.name for model in models]):
        if name in names:
            return models[names.index(name)]
    return None
