"""Parsing vLLM's /metrics, and their history."""

import time
from concurrent.futures import ThreadPoolExecutor

from support.scripted_engine import ScriptedEngine
from vllm_space import metrics
from vllm_space.server import Server

TEXT = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} 2.0
vllm:num_requests_running{{engine="1",model_name="m"}} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} 4.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25
vllm:kv_cache_usage_perc{{engine="1",model_name="m"}} 0.5
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{{engine="0",model_name="m"}} {generation}
"""


def test_metrics_of_all_ranks_are_combined():
    earlier = metrics.read(TEXT.format(prompt=100, generation=1000), 10.0)
    later = metrics.read(TEXT.format(prompt=110, generation=1100), 12.0)
    assert earlier == metrics.Reading(10.0, 3, 4, 0.5, 100, 1000)
    assert metrics.between(earlier, later) == metrics.Point(12.0, 3, 4, 0.5, 5, 50)


def test_restart_gives_no_negative_rate():
    before = metrics.Reading(10.0, generation_tokens=1000)
    after = metrics.Reading(12.0, generation_tokens=20)
    assert metrics.between(before, after).generation_rate == 10


def test_engine_is_scraped_only_for_viewers(monkeypatch):
    scrapes = []

    def text() -> str:
        scrapes.append(1)
        return TEXT.format(prompt=1, generation=len(scrapes))

    with ScriptedEngine(metrics=text).running() as engine:
        recorder = metrics.Recorder(Server.from_url(engine.url))
        assert scrapes == []
        recorder.points()
        recorder.points()
        assert len(scrapes) == 1
        monkeypatch.setattr(metrics, "MAX_AGE", 0)
        assert len(recorder.points()) == 1


def test_no_metrics_means_no_points():
    with ScriptedEngine().running() as engine:
        assert metrics.Recorder(Server.from_url(engine.url)).points() == []
    assert metrics.Recorder(Server.from_url("http://127.0.0.1:9")).points() == []


def test_concurrent_callers_share_a_result():
    """nvidia-smi keeps a core busy for half a second, so all viewers share one call."""
    calls = []

    def function() -> int:
        calls.append(1)
        time.sleep(0.05)
        return len(calls)

    cached = metrics.Cached(function)
    with ThreadPoolExecutor(20) as viewers:
        assert set(viewers.map(lambda _: cached.get(), range(20))) == {1}
    assert len(calls) == 1
