"""The web application on the one port: the page, the API gateway and sign-in, put together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from vllm_space import (
    csp,
    errors,
    forwarded,
    gradio_app,
    hardware,
    http_server,
    mcp_tools,
    prctl,
    run_dir,
)
from vllm_space.auth import SignIn, SignInMiddleware
from vllm_space.bodies import BodyMiddleware
from vllm_space.catalog import Catalog
from vllm_space.forwarded import ForwardedMiddleware
from vllm_space.gateway import Gateway
from vllm_space.generation import Generation
from vllm_space.headers import HeadersMiddleware
from vllm_space.health import Health
from vllm_space.ingress import Ingress
from vllm_space.origins import OriginMiddleware
from vllm_space.page import conversation, javascript, layout, no_gpu, theme
from vllm_space.session_owners import SessionOwnerMiddleware
from vllm_space.settings import Settings
from vllm_space.storage import Storage

SPARE_THREADS = 40  # for handlers that do not stream


class Web:
    """The web application for the owner's settings. `demo` is its page."""

    def __init__(self, config: Settings, without_gpu: bool):
        self.config = config
        self.catalog = Catalog.of(config)
        self.space = hardware.space()
        self.sign_in = SignIn(config, self.space, theme.button_color(config.app_theme))
        self.gateway = Gateway(config, self.catalog)
        self.generation = Generation(config, self.catalog)
        self.storage = Storage(Path(get_upload_folder()))
        if without_gpu and self.space:
            self.demo = no_gpu.build(config, self.space)
        else:
            self.demo = layout.build(config, self.generation, self.sign_in, self.storage)

    def serve(self) -> None:
        """Wait for the engine if start.sh starts one, open the port, and serve until a signal."""
        _prepare_process(self.config)
        folder = self.config.engine_run_dir
        while folder and not run_dir.has_started(folder):
            time.sleep(0.05)  # start.sh ends this process if the engine fails
        self._launch()
        print(self.config.mask(self._ready_line()), flush=True)
        _configure_garbage_collector()
        self.demo.block_thread()

    def restyle(self) -> None:
        """Apply a changed theme, CSS and JavaScript under `gradio app.py`.

        In the thread that reloads, Gradio's launch does only that.
        """
        self.demo.launch(**self._look())

    # -- Gradio ----------------------------------------------------------------------------

    def _launch(self) -> None:
        config = self.config
        self.demo.queue(
            default_concurrency_limit=config.max_concurrency,
            max_size=config.max_queue,
            # gradio 6.31: by default, every start of an event is reported to everyone who waits
            status_update_rate=1,  # seconds
        )
        # gradio 6.31: quiet=True does not stop it from printing the address of its MCP server,
        # which is wrong on a Space
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            self.demo.launch(
                server_name=config.gradio_server_name,
                server_port=config.gradio_server_port,
                share=config.gradio_share,
                auth_dependency=self.sign_in.user if self.sign_in.required else None,
                _app=self._app(),
                app_kwargs={"lifespan": self._lifespan},
                ssr_mode=False,  # gradio 6.31: its proxy answers /v1 with the page (gradio#13366)
                max_threads=config.max_concurrency + SPARE_THREADS,  # a stream occupies a thread
                mcp_server=True,  # /chat and /complete as tools
                # gradio 6.31: it caches 0.3 MiB of state per tab and evicts the oldest, and
                # rebuilding one is slow (gradio#8030). Keep one for everyone running or queued.
                state_session_capacity=config.max_concurrency + config.max_queue,
                max_file_size=conversation.IMAGE_LIMIT,
                footer_links=["api", "settings"],
                run_history=False,
                pwa=False,
                enable_monitoring=False,
                prevent_thread_lock=True,
                quiet=True,
                **self._look(),
            )
        if config.gradio_share and not self.demo.share_url and not self.space:
            print(output.getvalue().strip(), flush=True)  # why there is no public link

    def _look(self) -> dict[str, Any]:
        return {
            "theme": theme.theme(self.config.app_theme),
            "css": theme.css(),
            "head": javascript.scripts(),
            "js": javascript.call("start"),
        }

    def _app(self) -> gradio_app.GradioApp:
        """Gradio's application, with what it lacks in front of it and inside."""
        gradio_app.reject_unknown_events()
        gradio_app.fetch_nothing()
        gradio_app.limit_files()
        gradio_app.log_no_redirects()
        http_server.install()
        mcp_tools.install()
        return gradio_app.GradioApp(
            self._front,
            routes=self.sign_in.routes(),
            middleware=[  # the first is the outermost
                Middleware(gradio_app.ErrorMiddleware),
                Middleware(SignInMiddleware, sign_in=self.sign_in),
                Middleware(BodyMiddleware, sign_in=self.sign_in, storage=self.storage),
                Middleware(SessionOwnerMiddleware, sign_in=self.sign_in),
            ],
        )

    def _front(self, gradio: ASGIApp) -> ASGIApp:
        """The layers in front of Gradio's application, the innermost first."""
        config, space = self.config, self.space
        trusts = forwarded.trusted(config.forwarded_allow_ips, on_space=space is not None)
        own_hosts = space.hosts if space else (socket.gethostname(),)
        is_private = not config.gradio_share  # a public link makes loopback no protection
        page = OriginMiddleware(gradio, own_hosts, is_private, trusts)
        policy = csp.page_policy(config, space, self.sign_in.required)
        health = Health(config, self.catalog)
        ingress = Ingress(HeadersMiddleware(page, policy), health, self.gateway, self.demo.dev_mode)
        return ForwardedMiddleware(ingress, trusts)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: gradio_app.GradioApp) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(gradio_app.drop_uncollected_answers(self.demo)),
            asyncio.create_task(self.sign_in.prepare_keys()),
        ]
        try:
            async with self.gateway.lifespan():
                yield
        finally:
            for task in tasks:
                task.cancel()

    # -- the last line of the start log ----------------------------------------------------

    def _ready_line(self) -> str:
        """Where the page is, which model it serves and why, and who can use it."""
        config, folder = self.config, self.config.engine_run_dir
        url = (self.space.url if self.space else "") or str(self.demo.local_url).rstrip("/")
        urls = f"{url} and {self.demo.share_url}" if self.demo.share_url else url
        status = run_dir.read_status(folder)
        if folder and status:
            seconds = run_dir.seconds_since_start(folder)
            headline = f"Ready at {urls} in {seconds:.1f} s (vLLM: {status.boot_seconds:.1f} s)"
            model = f"model {status.model}"
        elif models := self.catalog.models():
            headline = f"Ready at {urls}"
            names = errors.some_of(model.label for model in models)
            source = ", from MODELS" if config.models else " (served at MODEL_URL)"
            model = f"{'model' if len(models) == 1 else 'models'} {names}{source}"
        elif self.catalog.servers:
            headline = f"Page open at {urls}"
            model = "no model yet: see the warning above"
        else:
            headline = f"Page open at {urls}"
            model = "no model: this Space has no GPU, and MODEL_URL is not set"
        return " · ".join((headline, model, self._sign_in(), self._api()))

    def _sign_in(self) -> str:
        ways = []
        if self.config.logins:
            ways.append("password")
        if self.config.oauth_allowed:
            names = ", ".join(self.config.oauth_allowed)
            ways.append(f"Hugging Face ({'any account' if '*' in names else names})")
        return f"sign-in: {' or '.join(ways) or 'none (open to everyone)'}"

    def _api(self) -> str:
        count = len(self.config.api_keys)
        if not count:
            return "API: off (API_KEYS not set)"
        return f"API: on ({count} {'key' if count == 1 else 'keys'})"


def _prepare_process(config: Settings) -> None:
    prctl.die_with_parent()
    os.umask(0o077)  # visitors' files are nobody else's business
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for name in ("httpx", "mcp"):  # Gradio's
        logging.getLogger(name).setLevel(logging.WARNING)
    if config.engine_run_dir:  # the supervisor reports when its engine is down
        logging.getLogger("vllm_space.catalog").setLevel(logging.ERROR)
    # gradio 6.31: it looks for matplotlib around every update: 0.07 ms if it is not installed.
    # None: there is no such module
    sys.modules.setdefault("matplotlib", cast(ModuleType, None))
    # Every connection needs a file descriptor.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def _configure_garbage_collector() -> None:
    # Everything imported so far is permanent: exclude it from GC, whose pauses stall all streams.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
