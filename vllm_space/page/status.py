"""The Status tab: is the engine up, what is it, what does it do. Nothing is asked while the tab is not looked at."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import gradio as gr
import pandas as pd

from vllm_space import auth, errors, hardware, run_dir
from vllm_space.client import Model
from vllm_space.metrics import Cached, Point, Recorder
from vllm_space.page.controls import Controls
from vllm_space.page.events import UNQUEUED, handler, http
from vllm_space.page.javascript import call
from vllm_space.page.theme import PLOT_COLORS

EVERY = 2  # seconds between two updates of a tab that is looked at

# Title of each plot, its unit, the least height of its axis, and its series: field of metrics.Point -> legend.
PLOTS = {
    "Tokens per second": (
        "tokens/s",
        10,
        {"generation_rate": "generation", "prompt_rate": "prompt"},
    ),
    "Requests": ("requests", 4, {"running": "running", "waiting": "waiting"}),
    "KV cache in use": ("%", 10, {"kv_cache": "in use"}),
}


class StatusTab:
    def __init__(self, controls: Controls, sign_in: auth.SignIn):
        self.controls = controls
        self.config = controls.config
        self.sign_in = sign_in
        self.gpus = Cached(lambda: hardware.gpus(self.config.engine_device))
        self.recorders = {server: Recorder(server) for server in controls.catalog.servers}

    def tab(self) -> None:
        self.timer = gr.Timer(EVERY, active=False)
        self.facts = gr.Markdown(elem_id="facts")
        with gr.Row():
            self.plots = [
                gr.LinePlot(
                    x="time",
                    y="value",
                    color="series",
                    title=title,
                    x_title=" ",
                    y_title=unit,
                    color_title=" ",
                    color_map=dict(zip(series.values(), PLOT_COLORS, strict=False)),
                    height=240,
                    min_width=260,
                    elem_classes="plot",
                    buttons=[],
                    y_axis_format=",.0f",
                )
                for title, (unit, _, series) in PLOTS.items()
            ]
        with gr.Accordion("Engine log", open=False, visible=False) as self.log_part:
            self.log = gr.Code(
                label="Last lines, secrets masked",
                language=None,
                lines=12,
                max_lines=24,
                wrap_lines=True,
            )

    def wire(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        shown = [self.facts, *self.plots, self.log_part, self.log]
        tab.select(None, None, self.timer, js=call("startTimer"), **UNQUEUED)
        for event in (tab.select, self.timer.tick):
            event(self.look, self.controls.model, shown, **UNQUEUED, preprocess=False)
        for other in others:
            other.select(None, None, self.timer, js=call("stopTimer"), **UNQUEUED)

    @handler
    def look(self, label: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Everything on the tab, as it is now."""
        try:
            model = self.controls.catalog.find(label)
            points = self.recorders[model.server].points()
        except errors.SpaceError as error:
            model, points, problem = None, [], str(error)
        else:
            problem = ""
        owner = self.sign_in.is_owner(http(request))
        log = run_dir.log_tail(self.config.engine_run_dir) if owner else ""
        return (
            self.describe(model, problem),
            *self.frames(points),
            gr.Accordion(visible=owner),
            self.config.mask(log),
        )

    def describe(self, model: Model | None, problem: str) -> str:
        folder = self.config.engine_run_dir
        rows = {"Engine": problem or "answers"}
        if status := run_dir.read_status(folder):
            rows["Engine"] = (
                f"{status.state}{': ' + status.phase if status.phase else ''} since {_since(status.since)}"
            )
            rows["Restarts"] = f"{status.restarts}" + (
                f"; the last time because {status.reason}" if status.reason else ""
            )
        if model:
            rows["Model"] = model.name
            if model.context_length:
                rows["Context"] = f"{model.context_length:,} tokens"
        if folder and (dtype := run_dir.dtype(folder)):
            rows["Number format"] = dtype
        if folder:  # else the engine runs on another machine
            gpus = self.gpus.get()
            for gpu in gpus:
                used = gpu.memory_total - gpu.memory_free
                rows[gpu.name] = f"{used / 1024:.1f} of {gpu.memory_total / 1024:.1f} GiB in use"
            if not gpus:
                rows["GPU"] = "none; the engine runs on the CPU"
        return "  \n".join(f"**{name}**: {value}" for name, value in rows.items())

    @staticmethod
    def frames(points: list[Point]) -> list[gr.LinePlot]:
        """The plots of these points."""
        found = []
        for unit, least, series in PLOTS.values():
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
            top = max([least, *(row["value"] for row in rows)])
            # gradio 6.31: without rows a frame has no types, and the plot would keep the wrong ones
            found.append(gr.LinePlot(pd.DataFrame(rows) if rows else None, y_lim=[0, top]))
        return found


def _since(moment: float) -> str:
    """A moment (seconds since the epoch) and how long ago it was."""
    minutes = int(time.time() - moment) // 60
    ago = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M} UTC ({ago})"
