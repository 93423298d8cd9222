"""The one port: the page, the API gateway beside it and who may come in, put together as one web application.

Decides nothing of its own.
"""

from __future__ import annotations

import gc
import logging
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any, cast

from starlette.middleware import Middleware

from vllm_space import gradio_app, hardware, prctl, run_dir
from vllm_space.auth import SignIn, SignInMiddleware
from vllm_space.catalog import Catalog
from vllm_space.csp import CspMiddleware
from vllm_space.gateway import Gateway
from vllm_space.generation import Generation
from vllm_space.health import Health
from vllm_space.ingress import Ingress
from vllm_space.page import conversation, javascript, layout, no_gpu, theme
from vllm_space.settings import Settings

SPARE_THREADS = 40  # for handlers besides those that stream


class Web:
    """What is behind the port, by the owner's settings. `demo` is the page."""

    def __init__(self, config: Settings, without_gpu: bool):
        self.config = config
        self.catalog = Catalog.of(config)
        space = hardware.space()
        self.sign_in = SignIn(config, space, theme.button_color(config.app_theme))
        self.gateway = Gateway(config, self.catalog)
        if without_gpu and space:
            self.demo = no_gpu.build(config, space)
        else:
            self.demo = layout.build(config, Generation(config, self.catalog), self.sign_in)

    def serve(self) -> None:
        """Open the port, once the engine that start.sh boots is ready, and serve until a signal comes."""
        _prepare_process(self.config)
        folder = self.config.engine_run_dir
        while folder and not run_dir.has_started(folder):
            time.sleep(0.05)  # start.sh ends this process if the engine fails
        self._launch()
        if folder and (chart := run_dir.chart(folder, time.time())):
            print(chart, flush=True)
        _settle_garbage_collector()
        self.demo.block_thread()

    def restyle(self) -> None:
        """Under `gradio app.py`, after a change: take over the theme, the CSS and the JavaScript of this page.

        Gradio's launch does that and no more in the thread that reloads.
        """
        self.demo.launch(**self._look())

    def _launch(self) -> None:
        config = self.config
        self.demo.queue(
            default_concurrency_limit=config.max_concurrency,
            max_size=config.max_queue,
            status_update_rate=1,  # gradio 6.31: seconds; by default all who wait hear of each start
        )
        self.demo.launch(
            server_name=config.gradio_server_name,
            server_port=config.gradio_server_port,
            share=config.gradio_share,
            auth_dependency=self.sign_in.user if self.sign_in.required else None,
            _app=self._app(),
            app_kwargs={"lifespan": self._lifespan},
            ssr_mode=False,  # gradio 6.31: its proxy answers /v1 with the page (gradio#13366)
            max_threads=config.max_concurrency + SPARE_THREADS,  # a streaming handler takes one
            mcp_server=True,  # /chat and /complete as tools
            # gradio 6.31: it caches 0.3 MiB of state per tab (gradio#8030) and evicts the oldest. Keep enough for
            # everyone running or queued; rebuilding is slow.
            state_session_capacity=config.max_concurrency + config.max_queue,
            max_file_size=conversation.IMAGE_LIMIT,
            footer_links=["api", "settings"],
            run_history=False,
            pwa=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            **self._look(),
        )

    def _look(self) -> dict[str, Any]:
        return {
            "theme": theme.theme(self.config.app_theme),
            "css": theme.css(),
            "head": javascript.scripts(),
            "js": javascript.call("start"),
        }

    def _app(self) -> gradio_app.GradioApp:
        """Gradio's application, with the ingress before it and sign-in inside it."""
        gradio_app.reject_unknown_events()
        health = Health(self.config, self.catalog)
        return gradio_app.GradioApp(
            partial(Ingress, health=health, gateway=self.gateway, development=self.demo.dev_mode),
            routes=self.sign_in.routes(),
            middleware=[
                Middleware(CspMiddleware, config=self.config),
                Middleware(gradio_app.ErrorMiddleware),
                Middleware(SignInMiddleware, sign_in=self.sign_in),
            ],
        )

    @asynccontextmanager
    async def _lifespan(self, app: gradio_app.GradioApp) -> AsyncIterator[None]:
        async with self.gateway.lifespan():
            yield


def _prepare_process(config: Settings) -> None:
    prctl.die_with_parent()
    hardware.reach_directly(
        config.gradio_server_name
    )  # gradio 6.31: launch asks its own address (gradio#4046)
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio's
    # gradio 6.31: it looks for matplotlib before and after each update: 0.07 ms if it is not installed
    sys.modules.setdefault("matplotlib", cast(ModuleType, None))  # None: there is no such module
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # every visitor's connection is an open file


def _settle_garbage_collector() -> None:
    # Everything imported so far is permanent: exclude it from garbage collection, whose pauses stall all streams.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
