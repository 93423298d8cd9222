"""metrics.py: what vLLM's /metrics says, and its course."""

import time
from concurrent.futures import ThreadPoolExecutor

from support.scripted_engine import ScriptedEngine
from vllm_space import client, metrics

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


def test_the_numbers_of_all_ranks_are_put_together_and_rates_are_differences():
    earlier = metrics.read(TEXT.format(prompt=100, generation=1000), 10.0)
    later = metrics.read(TEXT.format(prompt=110, generation=1100), 12.0)
    assert earlier == metrics.Reading(10.0, 3, 4, 0.5, 100, 1000)
    assert metrics.between(earlier, later) == metrics.Point(12.0, 3, 4, 0.5, 5, 50)


def test_an_engine_that_restarted_has_no_negative_rate():
    before, after = (
        metrics.Reading(10.0, generation_tokens=1000),
        metrics.Reading(12.0, generation_tokens=20),
    )
    assert metrics.between(before, after).generation_rate == 10


def test_the_engine_is_asked_only_when_somebody_looks_and_once_a_second_at_most(monkeypatch):
    asked = []
    engine = ScriptedEngine(
        metrics=lambda: asked.append(1) or TEXT.format(prompt=1, generation=len(asked))
    )
    with engine.running():
        recorder = metrics.Recorder(client.Server.from_url(engine.url))
        assert asked == []
        recorder.points()
        recorder.points()
        assert len(asked) == 1
        monkeypatch.setattr(metrics, "OFTEN", 0)
        assert len(recorder.points()) == 1


def test_a_server_without_metrics_has_no_points():
    with ScriptedEngine().running() as engine:
        assert metrics.Recorder(client.Server.from_url(engine.url)).points() == []
    assert metrics.Recorder(client.Server.from_url("http://127.0.0.1:9")).points() == []


def test_however_many_look_one_asks():
    """nvidia-smi takes half a second of a core: it is asked once a second for all viewers together."""
    asked = []

    def ask() -> int:
        asked.append(1)
        time.sleep(0.05)
        return len(asked)

    shared = metrics.Cached(ask)
    with ThreadPoolExecutor(20) as viewers:
        assert set(viewers.map(lambda _: shared.get(), range(20))) == {1}
    assert len(asked) == 1
