"""The Status tab: what the engine is and what it is doing. It makes no requests while closed."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import gradio as gr
import pandas as pd

from vllm_space import __version__, errors, hardware, run_dir
from vllm_space.metrics import Cached, Point, Recorder
from vllm_space.page import theme
from vllm_space.page.controls import Controls
from vllm_space.page.events import handler, http
from vllm_space.page.tab import Tab
from vllm_space.server import Model

# Title of each plot, its unit, the smallest upper end of its axis, and its series: field of
# metrics.Point -> legend.
PLOTS = {
    "Tokens per second": (
        "tokens/s",
        10,
        {"generation_rate": "generation", "prompt_rate": "prompt"},
    ),
    "Requests": ("requests", 4, {"running": "running", "waiting": "waiting"}),
    "KV cache usage": ("%", 10, {"kv_cache": "in use"}),
}


class StatusTab(Tab):
    title = "Status"
    shows_controls = False
    refresh_every = 2

    def __init__(self, controls: Controls):
        super().__init__(controls)
        self.gpus = Cached(lambda: hardware.gpus(self.config.engine_device))
        self.recorders = {server: Recorder(server) for server in controls.catalog.servers}

    def build(self) -> None:
        facts = gr.Markdown(elem_id="facts")
        colors = theme.plot_colors(self.config.app_theme)
        with gr.Row():
            plots = [
                gr.LinePlot(
                    x="time",
                    y="value",
                    color="series",
                    title=title,
                    x_title=" ",
                    y_title=unit,
                    color_title=" ",
                    color_map=dict(zip(series.values(), colors, strict=False)),
                    height=240,
                    min_width=260,
                    elem_classes="plot",
                    buttons=[],
                    y_axis_format=",.0f",
                )
                for title, (unit, _, series) in PLOTS.items()
            ]
        with gr.Accordion("Engine log", open=False, visible=False) as log_section:
            log = gr.Code(
                label="Last lines, secrets masked",
                language=None,
                lines=12,
                max_lines=24,
                wrap_lines=True,
            )
        self.refreshed = [facts, *plots, log_section, log]

    @handler
    def refresh(self, label: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Everything on the tab, as it is now."""
        model, points, problem = None, [], ""
        try:
            model = self.controls.catalog.find(label)
            points = self.recorders[model.server].points()
        except errors.SpaceError as error:
            model, problem = None, str(error)
        is_owner = self.controls.sign_in.is_owner(http(request))
        log = run_dir.log_tail(self.config.engine_run_dir) if is_owner else ""
        return (
            self.facts(model, problem),
            *self.plots(points),
            gr.Accordion(visible=is_owner),
            self.config.mask(log),
        )

    def facts(self, model: Model | None, problem: str) -> str:
        """What is known about the engine, as lines of Markdown."""
        folder = self.config.engine_run_dir
        rows = {"Engine": problem or "ready"}
        if status := run_dir.read_status(folder):
            phase = f": {status.phase}" if status.phase else ""
            rows["Engine"] = f"{status.state}{phase} since {_since(status.since)}"
            rows["Restarts"] = str(status.restarts)
            if status.reason:
                rows["Last failure"] = status.reason
        if model:
            rows["Model"] = model.name
            if model.context_length:
                rows["Context length"] = f"{model.context_length:,} tokens"
        if folder and (dtype := run_dir.dtype(folder)):
            rows["dtype"] = dtype
        if folder:  # otherwise the engine runs on another machine
            gpus = self.gpus.get()
            for number, gpu in enumerate(gpus):
                used = gpu.memory_total - gpu.memory_free
                rows[f"GPU {number} ({gpu.name})"] = (
                    f"{used / 1024:.1f} of {gpu.memory_total / 1024:.1f} GiB in use"
                )
            if not gpus:
                rows["GPU"] = "none; the engine runs on the CPU"
        rows["vLLM Space"] = __version__
        return "  \n".join(f"**{name}**: {value}" for name, value in rows.items())

    @staticmethod
    def plots(points: list[Point]) -> list[gr.LinePlot]:
        plots = []
        for unit, smallest_top, series in PLOTS.values():
            scale = 100 if unit == "%" else 1
            rows = [
                {
                    "time": pd.Timestamp(point.time, unit="s"),
                    "value": asdict(point)[field] * scale,
                    "series": name,
                }
                for field, name in series.items()
                for point in points
            ]
            top = max([smallest_top, *(row["value"] for row in rows)])
            # gradio 6.31: without rows a frame has no types, and the plot would keep the wrong ones
            plots.append(gr.LinePlot(pd.DataFrame(rows) if rows else None, y_lim=[0, top]))
        return plots


def _since(moment: float) -> str:
    """A moment (seconds since the epoch) and how long ago it was."""
    minutes = int(time.time() - moment) // 60
    ago = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M} UTC ({ago} ago)"
