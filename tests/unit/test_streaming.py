"""How often the page updates, and that the engine is freed whenever a visitor leaves."""

import itertools
import threading
import time
from collections.abc import Iterator
from queue import Queue

from support.scripted_engine import ScriptedEngine, chat_stream
from vllm_space import client, discovery, errors, streaming
from vllm_space.server import Server
from vllm_space.streaming import Answer, Streams, unqueued


def follow(streams: Streams, engine: ScriptedEngine, visitor: str = "") -> Iterator[Answer]:
    """The growing answer to one request."""
    model = discovery.models(Server.from_url(engine.url))[0]
    stream = client.chat(model, [{"role": "user", "content": "Hi"}], {})
    answer = Answer()
    for _ in streams.follow([(stream, answer)], visitor):
        yield answer


def engine_sending(*texts: str, every: float = 0) -> ScriptedEngine:
    return ScriptedEngine(lambda path, body: chat_stream(*texts, every=every))


def test_updates_are_merged_without_loss():
    words = [f"w{number} " for number in range(300)]
    with engine_sending(*words, every=0.001).running() as engine:
        updates = [answer.text for answer in follow(Streams(), engine)]
    assert updates[-1] == "".join(words)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(updates))
    assert 3 < len(updates) < 100


def test_first_token_is_not_delayed():
    def time_to_first_token() -> float:
        answers = follow(Streams(), engine)
        started_at = time.monotonic()
        while not next(answers).text:
            pass
        answers.close()
        return time.monotonic() - started_at

    with engine_sending("first", *[" x"] * 3, every=0.4).running() as engine:
        # The engine's own 0.4 s, plus less than a heartbeat in the best of three tries.
        assert min(time_to_first_token() for _ in range(3)) < 0.4 + 0.3


def test_many_streams_update_less_often():
    def updates(streams: Streams) -> int:
        with engine_sending(*["x"] * 100, every=0.01).running() as engine:
            return sum(1 for _ in follow(streams, engine))

    busy = Streams()
    busy.active = 200  # pretend that 200 are running
    assert updates(busy) < updates(Streams()) / 3


def test_leaving_during_prefill_frees_engine():
    release = threading.Event()

    def script(path, body):
        yield b": the headers are sent, the prompt is being processed\n\n"
        release.wait(10)
        for _ in range(200):  # it takes a few writes to notice that the socket is closed
            time.sleep(0.01)
            yield b": still alive\n\n"

    before = threading.active_count()
    with ScriptedEngine(script).running() as engine:
        answers = follow(Streams(), engine)
        assert next(answers).text == ""  # a heartbeat: nothing has arrived yet
        answers.close()
        release.set()
        assert engine.client_left.wait(2)
    deadline = time.monotonic() + 2
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before + 1  # no reader is left


def test_stalled_engine_gets_heartbeats():
    with engine_sending("a", "b", every=1.2).running() as engine:
        started_at, updates = time.monotonic(), 0
        for _ in follow(Streams(), engine):
            updates += 1
        elapsed = time.monotonic() - started_at
    assert updates >= elapsed / streaming.HEARTBEAT / 2


def test_busy_page_sets_stream_interval():
    intervals = []

    def script(path, body):
        intervals.append(body.get("stream_interval"))
        return chat_stream(*["x"] * 50, every=0.01)

    streams = Streams()
    with ScriptedEngine(script).running() as engine:
        for streams.active in (0, 100, 100):  # pretend that that many are running
            *_, answer = follow(streams, engine)
            assert answer.text == "x" * 50
    assert intervals[0] is None  # the engine's speed is not known yet
    # Half the tokens that arrive in the 0.4 s between two updates, at 100 tokens/s.
    assert 10 <= intervals[1] <= 25


def test_tokens_in_bulk_do_not_inflate_rate():
    def script(path, body):
        time.sleep(0.5)
        return chat_stream(*["x"] * 50)

    streams = Streams()
    with ScriptedEngine(script).running() as engine:
        for _ in range(3):
            list(follow(streams, engine))
    assert streams.rate <= 100


def test_visitor_limit_spares_the_others():
    streams = Streams(per_visitor=2)
    with engine_sending(*["x"] * 500, every=0.01).running() as engine:
        running = [follow(streams, engine, "first") for _ in range(2)]
        assert all(next(answers).error is None for answers in running)
        (rejected,) = follow(streams, engine, "first")
        assert rejected.error == (
            "You already have 2 answers running. Wait for one to finish, or stop it."
        )
        other = follow(streams, engine, "second")
        assert next(other).error is None
        running[0].close()
        another = follow(streams, engine, "first")
        assert next(another).error is None
        for answers in (running[1], other, another):
            answers.close()
    assert (streams.active, not streams.visitors) == (0, True)


def test_unqueued_streams_need_a_free_slot():
    """However close together they arrive. Others have waited in the page's queue."""
    streams = Streams(total=2)
    with engine_sending(*["x"] * 500, every=0.01).running() as engine:
        results: Queue[str | None] = Queue()

        def call() -> None:
            unqueued.set(True)
            results.put(next(answers := follow(streams, engine)).error)
            release.wait(10)
            answers.close()

        release = threading.Event()
        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        refused = [error for error in (results.get(timeout=10) for _ in threads) if error]
        queued = follow(streams, engine)
        assert next(queued).error is None
        queued.close()
        release.set()
        for thread in threads:
            thread.join()
    assert refused == [str(errors.busy())] * 4
