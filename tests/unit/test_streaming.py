"""streaming.py: the pace of updates, and the engine freed whenever a visitor has gone."""

import itertools
import threading
import time
from collections.abc import Iterator

from support.scripted_engine import ScriptedEngine, chat_stream
from vllm_space import client, streaming
from vllm_space.streaming import Answer, Streams


def stream(engine: ScriptedEngine) -> client.Stream:
    return client.chat(
        client.models(client.Server.from_url(engine.url))[0],
        [{"role": "user", "content": "Hi"}],
        {},
    )


def follow(streams: Streams, engine: ScriptedEngine, visitor: str = "") -> Iterator[Answer]:
    """The growing answer to one request."""
    answer = Answer()
    for _ in streams.follow([(stream(engine), answer)], visitor):
        yield answer


def test_updates_are_coalesced_and_nothing_is_lost():
    words = [f"w{number} " for number in range(300)]
    with ScriptedEngine(lambda path, body: chat_stream(*words, every=0.001)).running() as engine:
        seen = [answer.text for answer in follow(Streams(), engine)]
    assert seen[-1] == "".join(words)
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(seen))
    assert 3 < len(seen) < 100


def test_the_first_token_is_not_held_back():
    def took() -> float:
        answers = follow(Streams(), engine)
        began = time.monotonic()
        while not next(answers).text:
            pass
        answers.close()
        return time.monotonic() - began

    with ScriptedEngine(
        lambda path, body: chat_stream("first", *[" x"] * 3, every=0.4)
    ).running() as engine:
        # The engine's own 0.4 s, not a heartbeat more; a busy machine may take its time once, not each time.
        assert min(took() for _ in range(3)) < 0.4 + 0.3


def test_the_more_streams_the_rarer_the_updates_of_each():
    def updates(streams: Streams) -> int:
        with ScriptedEngine(
            lambda path, body: chat_stream(*["x"] * 100, every=0.01)
        ).running() as engine:
            return sum(1 for _ in follow(streams, engine))

    busy = Streams()
    busy.active = 200  # as if as many ran
    assert updates(busy) < updates(Streams()) / 3


def test_leaving_before_the_first_token_frees_the_engine():
    release = threading.Event()

    def script(path, body):
        yield b": the headers are sent, the prompt is being read\n\n"
        release.wait(10)
        for _ in range(200):  # a closed socket takes a few writes to show
            time.sleep(0.01)
            yield b": still alive\n\n"

    before = threading.active_count()
    with ScriptedEngine(script).running() as engine:
        answers = follow(Streams(), engine)
        assert next(answers).text == ""  # a heartbeat: the page is alive although nothing came
        answers.close()
        release.set()
        assert engine.left.wait(2)
    deadline = time.monotonic() + 2
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before + 1  # no reader waits on


def test_a_stalled_engine_still_gets_heartbeats():
    with ScriptedEngine(lambda path, body: chat_stream("a", "b", every=1.2)).running() as engine:
        began, updates = time.monotonic(), 0
        for _ in follow(Streams(), engine):
            updates += 1
        took = time.monotonic() - began
    assert updates >= took / streaming.HEARTBEAT / 2


def test_a_busy_page_has_vllm_send_several_tokens_at_once():
    asked = []

    def script(path, body):
        asked.append(body.get("stream_interval"))
        return chat_stream(*["x"] * 50, every=0.01)

    streams = Streams()
    with ScriptedEngine(script).running() as engine:
        for streams.active in (0, 100, 100):  # as if as many ran
            *_, answer = follow(streams, engine)
            assert answer.text == "x" * 50
    assert (
        asked[0] is None
    )  # nothing is known of its speed yet, and alone each token is worth an update
    assert (
        10 <= asked[1] <= 25
    )  # half of what comes in the 0.4 s between two updates at 100 tokens/s


def test_tokens_that_come_at_once_do_not_make_the_engine_seem_fast():
    def script(path, body):
        time.sleep(0.5)
        return chat_stream(*["x"] * 50)

    streams = Streams()
    with ScriptedEngine(script).running() as engine:
        for _ in range(3):
            list(follow(streams, engine))
    assert streams.rate <= 100


def test_one_visitor_has_so_many_streams_at_once_and_the_others_have_theirs():
    streams = Streams(per_visitor=2)
    with ScriptedEngine(
        lambda path, body: chat_stream(*["x"] * 500, every=0.01)
    ).running() as engine:
        running = [follow(streams, engine, "one") for _ in range(2)]
        assert all(next(answers).error is None for answers in running)
        (refused,) = follow(streams, engine, "one")
        assert (
            refused.error
            == "You have 2 answers running already: wait until one of them has ended, or stop it."
        )
        other = follow(streams, engine, "another")
        assert next(other).error is None
        running[0].close()
        again = follow(streams, engine, "one")
        assert next(again).error is None
        for answers in (running[1], other, again):
            answers.close()
    assert (streams.active, not streams.visitors) == (0, True)
