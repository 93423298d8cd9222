"""The one port: the page, the API beside it and the doors before both, as one web application.

Puts the rooms together and launches Gradio; decides nothing of its own.
"""

from __future__ import annotations

import gc
import logging
import resource
import sys
import time

import gradio as gr
from starlette.middleware import Middleware

from vllm_space import api, auth, client, conversation, engine, hardware, startup, ui, ui_browser
from vllm_space.client import Catalog
from vllm_space.settings import Settings
from vllm_space.shield import ShieldMiddleware


def catalog(config: Settings) -> Catalog:
    """The servers of MODEL_URL or MODELS."""
    key = config.model_api_key.get_secret_value() if config.model_api_key else None
    return Catalog(
        [
            client.server(url, label=label, api_key=key, timeout=config.request_timeout)
            for label, url in config.servers.items()
        ]
    )


def serve(demo: gr.Blocks, config: Settings, models: Catalog, guard: auth.Guard) -> None:
    """Open the port, once the engine that start.sh boots is ready, and serve until a signal comes."""
    engine.die_with_parent()
    hardware.reach_directly(config.gradio_server_name)  # Gradio asks itself when it starts
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio's
    # Gradio looks for it before and after each step of a handler; where it is not installed, that search takes 0.5 ms.
    sys.modules.setdefault("matplotlib", None)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every visitor's connection is an open file
    while config.engine_run_dir and not engine.has_started(config.engine_run_dir):
        time.sleep(0.05)  # start.sh ends this process if the engine fails
    demo.queue(
        default_concurrency_limit=config.max_concurrency,
        max_size=config.max_queue,
        status_update_rate=1,  # seconds; at each start instead, those who begin together would all hear of one another
    )
    demo.launch(
        server_name=config.gradio_server_name,
        server_port=config.gradio_server_port,
        share=config.gradio_share,
        auth_dependency=guard.user if guard.closed else None,
        app_kwargs={
            "lifespan": api.Door(config, models).lifespan,
            "routes": guard.routes(),
            "middleware": [
                Middleware(ShieldMiddleware, config=config),
                Middleware(auth.GuardMiddleware, guard=guard),
            ],
        },
        ssr_mode=False,  # its proxy answers every path it does not know, /v1 among them, with the page
        max_threads=config.max_concurrency + 40,  # handlers at once: one for each stream, and some for everything else
        theme=ui.theme(config.app_theme),
        css=ui.CSS,
        head=ui_browser.HEAD,
        js=ui_browser.ON_LOAD,
        mcp_server=True,  # /chat and /complete as tools
        # Gradio keeps what it knows of a tab, 0.3 MiB, until so many others came. No handler needs it, but to make it
        # anew takes time: all who are answered or wait have theirs.
        state_session_capacity=config.max_concurrency + config.max_queue,
        max_file_size=conversation.IMAGE_LIMIT,
        footer_links=["api", "settings"],
        run_history=False,
        pwa=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
    )
    if config.engine_run_dir and (chart := startup.chart(config.engine_run_dir, time.time())):
        print(chart, flush=True)
    # What is here now stays. To search it for garbage again and again holds up all who ask at the same time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    demo.block_thread()
