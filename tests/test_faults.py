"""The table of faults: each row is provoked for real, and must end in a sentence, the right code, and nothing left.

A start that cannot work: the exit code and the last line. An engine that dies: what is made of its last words.
An engine that fails a request: what /chat and /v1 tell, and that the text which had arrived is kept. A request that is
hostile: that it is refused, and the page and the engine go on.
"""

import importlib.util
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gradio_client
import psutil
import pytest
import requests
from scripted_hub import hub, model

from conftest import ROOT, Program, free_port, wait_for
from scripted_engine import Cut, ScriptedEngine, chat_stream, event
from vllm_space import errors

START = ["bash", str(ROOT / "start.sh")]
TESTS = str(ROOT / "tests")
KEY = {"Authorization": "Bearer key-of-the-tests"}


def ended(running: Program, folder: Path, seconds: float = 60) -> tuple[int, list[str]]:
    """(exit code, the ERROR lines) of a program, which must have left no process and no folder."""
    family = running.family()
    code = running.process.wait(seconds)
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert list(folder.glob("vllm-space.*")) == []
    assert "Traceback" not in re.sub(r"^ {4}.*$", "", running.output, flags=re.MULTILINE)  # but for the engine's own
    return code, [line for line in running.output.splitlines() if line.startswith("ERROR: ")]


# -- a start that cannot work ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "says"),
    [
        pytest.param({"TEMPERATURE": "hot"}, "TEMPERATURE=hot is not allowed", id="a word for a number"),
        pytest.param({"MAX_TOKENS": "-1"}, "MAX_TOKENS=-1 is not allowed", id="a number out of bounds"),
        pytest.param({"MAX_TOKENS": "9999"}, "more than MAX_TOKENS_LIMIT=4096", id="more than the limit"),
        pytest.param({"MODEL_URL": "gpu-box"}, "MODEL_URL=gpu-box is not allowed", id="no address"),
        pytest.param(
            {"MODEL_URL": "http://a", "MODELS": '{"a": "http://b"}'}, "MODEL_URL and MODELS are both set", id="two ways"
        ),
        pytest.param({"APP_PASSWORD": "x-marked"}, "APP_USERNAME is not set", id="a password without a name"),
        pytest.param({"APP_USERNAME": "x"}, "APP_PASSWORD is not set", id="a name without a password"),
        pytest.param({"APP_USERS": "alice"}, "APP_USERS is not allowed", id="a user without a password"),
        pytest.param({"API_KEYS": "x-marked,phone:"}, "API_KEYS is not allowed", id="a name without a key"),
        pytest.param({"ENGINE_ARGS": "--x 'open"}, "ENGINE_ARGS", id="an open quote"),
        pytest.param({"ENGINE_ARGS": "--api-key k"}, "--api-key is not yours to set", id="a flag of our own"),
        pytest.param({"ENGINE_PORT": "{port}"}, "is the page's own port", id="one port for two"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_end_the_start_with_code_2(program, tmp_path, env, says):
    port = str(free_port())
    env = {name: value.replace("{port}", port) for name, value in env.items()}
    code, lines = ended(program([*START, "--port", port], TMPDIR=str(tmp_path), **env), tmp_path)
    assert code == 2
    assert any(says in line for line in lines), lines
    assert "marked" not in "".join(lines)


@pytest.mark.parametrize(
    ("which", "names"), [("--port", "--port (or GRADIO_SERVER_PORT)"), ("ENGINE_PORT", "ENGINE_PORT")]
)
@pytest.mark.parametrize("command", [START, [sys.executable, str(ROOT / "app.py")]], ids=["start.sh", "app.py"])
def test_a_taken_port_ends_the_start_before_anything_is_booted(program, tmp_path, command, which, names):
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        taken = str(other.server_port)
        port, engine_port = (taken, str(free_port())) if which == "--port" else (str(free_port()), taken)
        running = program([*command, "--port", port], TMPDIR=str(tmp_path), ENGINE_PORT=engine_port)
        code, lines = ended(running, tmp_path)
    assert code == 1
    assert lines[-1].startswith(f"ERROR: Port {taken} on 127.0.0.1 cannot be used")
    assert f"set {names} to a free one" in lines[-1]


HUB = [
    pytest.param([model("org/nama")], {}, ["no model org/name", "Did you mean org/nama?"], id="no such model"),
    pytest.param([model("org/name", gated="auto")], {}, ["is gated", "HF_TOKEN is not set"], id="gated"),
    pytest.param([model("org/name")], {"HF_TOKEN": "hf_bad-marked"}, ["refuses HF_TOKEN"], id="token refused"),
    pytest.param([model("org/name")], {"MODEL_REVISION": "v9"}, ["no revision v9"], id="no such revision"),
    pytest.param(
        [model("org/name", siblings=[{"rfilename": "q.gguf", "size": 5}])], {}, ["only GGUF files"], id="GGUF only"),
    pytest.param(
        [model("org/name", siblings=[{"rfilename": "config.json"}, {"rfilename": "a.safetensors", "size": 10**15}])],
        {}, ["a download of 931322.6 GiB", "HF_HOME"], id="disk too small"),
    pytest.param([model("org/name")], {"HF_HOME": "/proc/nowhere"}, ["/proc", "HF_HOME"], id="cache not writable"),
]  # fmt: skip


@pytest.mark.parametrize(("models", "env", "says"), HUB)
def test_what_the_hub_says_ends_the_start_before_vllm_is_imported(program, tmp_path, models, env, says):
    env = {"MODEL_ID": "org/name", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")} | env
    with hub(*models) as address:
        env |= {"HF_ENDPOINT": address, "TMPDIR": str(tmp_path), "ENGINE_PORT": str(free_port())}
        code, lines = ended(program([*START, "--port", str(free_port())], **env), tmp_path)
    assert code == 1
    for words in says:
        assert words in lines[-1]
    assert "marked" not in "".join(lines)


# -- a disk that is full -----------------------------------------------------------------------------------------------


def test_a_start_without_a_folder_for_its_log_says_so(program, tmp_path):
    code, lines = ended(program(START, TMPDIR=str(tmp_path / "nowhere")), tmp_path)
    assert code == 1
    assert lines[-1] == "ERROR: Set TMPDIR to a folder that can be written to."


@pytest.mark.parametrize(("room", "ready"), [(0, False), (1, True)], ids=["no room at all", "no room for the log"])
def test_a_full_disk_ends_the_start_only_where_nothing_can_be_written(program, tmp_path, room, ready):
    """`ulimit -f` refuses to write more than so many kB to a file, as a full disk does."""
    env = {"ENGINE_MODULE": "scripted_api_server", "PYTHONPATH": TESTS, "SCRIPT": "verbose"}
    env |= {"ENGINE_RUN_DIR": str(tmp_path), "ENGINE_PORT": str(free_port())}
    running = program(
        ["bash", "-c", f"(ulimit -f {room}; exec '{sys.executable}' -m vllm_space.engine) 2>&1 | cat"], **env
    )
    wait_for(
        lambda: "vLLM is ready" in running.output if ready else running.process.poll() is not None, 60, "the start"
    )
    assert "Traceback" not in running.output
    if not ready:
        assert "cannot be written to: set TMPDIR to a folder with room" in running.output


# -- an engine that dies -------------------------------------------------------------------------------------------

# (the file of a package that says so, what stands there, what was said, what is made of it)
LAST_WORDS = [
    pytest.param(
        "torch/cuda/__init__.py", "OutOfMemoryError",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "the GPU has too little memory", id="out of memory at load"),
    pytest.param(
        "vllm/v1/core/kv_cache_utils.py", "No available memory for the cache blocks. ",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "no memory is left for the context", id="out of memory for the KV cache"),
    pytest.param(
        "vllm/v1/core/kv_cache_utils.py", "cache is needed, which is larger than the available KV cache ",
        "ValueError: (4.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).",
        "lower MAX_MODEL_LEN", id="context too long for the memory"),
    pytest.param(
        "vllm/v1/worker/utils.py", "Free memory on device ",
        "ValueError: Free memory on device cuda:0 (3.1/14.6 GiB) on startup is less than desired GPU memory",
        "another program holds part of the GPU memory", id="GPU busy"),
    pytest.param(
        "vllm/v1/worker/cpu_worker.py", "is less than desired CPU memory utilization ",
        "ValueError: Available memory on node 0 (1.0/8.0 GiB) on startup is less than desired CPU memory utilization",
        "lower GPU_MEMORY_UTILIZATION", id="too little memory without a GPU"),
    pytest.param(
        "vllm/platforms/cuda.py", "Bfloat16 is only supported on GPUs ",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU",
        "set DTYPE=half", id="bfloat16 on a T4"),
    pytest.param(
        "vllm/config/vllm.py", "is not supported for the current GPU. Minimum ",
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89.",
        "this GPU is too old for the quantization of this model (fp8)", id="quantization on an old GPU"),
    pytest.param(
        "vllm/config/vllm.py", "is not supported for quantization ",
        "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
        "the quantization awq: set DTYPE=half", id="dtype and quantization"),
    pytest.param(
        "vllm/config/parallel.py", "is larger than the number of ",
        "ValueError: World size (4) is larger than the number of available GPUs (1) in this node.",
        "fewer GPUs than TENSOR_PARALLEL_SIZE", id="too few GPUs"),
    pytest.param(
        "vllm/config/device.py", "Failed to infer device type, please set ",
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "finds no GPU that works", id="no device"),
    pytest.param(
        "vllm/model_executor/models/registry.py", "is not supported in-tree anymore. ",
        "ValueError: Model architecture OldModel is not supported in-tree anymore. Please install the plugin",
        "does not support this kind of model (OldModel)", id="architecture given up"),
    pytest.param(
        "vllm/model_executor/model_loader/default_loader.py", "Cannot find any model weights with ",
        "RuntimeError: Cannot find any model weights with `org/name`", "has no weights", id="no weights"),
    pytest.param(
        "transformers/utils/hub.py", "You are trying to access a gated repo.",
        "OSError: You are trying to access a gated repo.", "is gated", id="gated after all"),
    pytest.param(
        "transformers/utils/hub.py", "is not a local folder and is not a valid model identifier ",
        "OSError: org/x is not a local folder and is not a valid model identifier listed on 'https://huggingface.co'",
        "no such model, or it is private", id="no such model after all"),
    pytest.param(
        "transformers/utils/hub.py", "We couldn't connect to ",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them",
        "could not be downloaded", id="download failed"),
    pytest.param(
        None, os.strerror(28), "OSError: [Errno 28] No space left on device", "the disk is full", id="disk full"),
    pytest.param(
        None, os.strerror(30), "OSError: [Errno 30] Read-only file system: '/data/hub'",
        "/data/hub cannot be written to: set HF_HOME", id="cache read-only"),
    pytest.param(
        None, os.strerror(98), "OSError: [Errno 98] Address already in use", "set ENGINE_PORT", id="port taken"),
    pytest.param(
        "vllm/v1/executor/multiproc_executor.py", "Worker proc %s died unexpectedly (exit code: %s), ",
        "(EngineCore pid=9) ERROR 11-22 17:12:59 Worker proc VLLM::Worker died unexpectedly (exit code: -9), shutting",
        "the system killed it", id="worker killed by the kernel"),
    pytest.param(
        "vllm/v1/engine/utils.py", "Engine core initialization failed. ",
        "(EngineCore pid=9) ValueError: what is really wrong.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}",
        "it says: ValueError: what is really wrong.", id="anything else: the root cause"),
    pytest.param(
        "vllm/v1/engine/exceptions.py", "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "INFO 11-22 17:12:59 args: trust_remote_code=True\n"
        "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "one of its processes ended without a word", id="the core gone without a word"),
]  # fmt: skip


def dying(program, folder: Path, words: str, code: int = 1) -> tuple[int, list[str]]:
    """What start.sh's part for the engine makes of one that dies with these words."""
    run_dir = folder / "run"
    run_dir.mkdir()
    env = {"ENGINE_MODULE": "scripted_api_server", "SCRIPT": "die", "LAST_WORDS": words, "EXIT": str(code)}
    env |= {"PYTHONPATH": TESTS, "ENGINE_RUN_DIR": str(run_dir), "ENGINE_PORT": str(free_port()), "TMPDIR": str(folder)}
    result = ended(program([sys.executable, "-m", "vllm_space.engine"], **env), folder)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "failed"
    return result


@pytest.mark.parametrize(("file", "quote", "words", "says"), LAST_WORDS)
def test_an_engine_that_dies_while_starting_is_explained(program, tmp_path, file, quote, words, says):
    if file:  # the words are those of the installed version
        package, _, path = file.partition("/")
        folder = Path(importlib.util.find_spec(package).origin).parent
        assert quote in (folder / path).read_text()
    code, lines = dying(program, tmp_path, words)
    assert code == 1
    assert lines[-1].startswith("ERROR: vLLM did not start: ")
    assert says in lines[-1]
    assert lines[-1].endswith(".")
    assert not lines[-1].endswith("..")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        pytest.param("INFO loading", -9, "the system killed it", id="killed by the kernel"),
        pytest.param("INFO loading", 3, "it ended with exit code 3 and said nothing", id="silent"),
    ],
)
def test_an_engine_that_dies_without_a_word_is_explained(program, tmp_path, words, code, says):
    assert says in dying(program, tmp_path, words, code)[1][-1]


@pytest.fixture(scope="module")
def real_words(tmp_path_factory) -> dict[str, list[str]]:
    """Cause -> the last lines of the installed vLLM, which has just died of it."""
    command = [sys.executable, str(ROOT / "tests" / "provoke_deaths.py"), str(ROOT / "vllm_space" / "demo_model")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    folder = tmp_path_factory.mktemp("models")
    done = subprocess.run(
        [*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, timeout=300
    )
    parts = re.split(r"^(?:\(.+?\) )?CAUSE (.+)$", done.stdout, flags=re.MULTILINE)[1:]
    return {cause: said.splitlines()[-200:] for cause, said in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        ("unknown flag", "vLLM does not know a flag in ENGINE_ARGS: unrecognized arguments: --no-such-flag"),
        ("bad value", "vLLM refuses a flag: argument --max-num-seqs: invalid int value: 'many'"),
        ("unknown reasoning parser", "vLLM does not know the parser mind: check REASONING_PARSER"),
        ("unknown tool parser", "vLLM does not know the parser hammer: check REASONING_PARSER and TOOL_CALL_PARSER"),
        ("unknown quantization", "vLLM does not know the method zip: check QUANTIZATION"),
        ("context too long", "MAX_MODEL_LEN is more than this model's context of 2048 tokens"),
        ("heads not divisible", "this model's 4 attention heads cannot be split over that many GPUs"),
        ("unsupported architecture", "vLLM does not support this kind of model (['NoSuchModel'])"),
        ("unknown model type", "vLLM does not support this kind of model (nosuch)"),
        ("code of its own", "set TRUST_REMOTE_CODE=true if you trust it"),
        ("not in the cache", "the model could not be downloaded"),
    ],
)
def test_what_the_real_vllm_says_when_it_dies_is_understood(real_words, cause, says):
    assert errors.explain_death(real_words[cause], 1).startswith(says) or says in errors.explain_death(
        real_words[cause], 1
    )


# -- an engine that fails a request ----------------------------------------------------------------------------------


def broken(*after: bytes, cut: bool = False) -> Iterator[bytes]:
    """A stream that begins well."""
    yield event(choices=[{"index": 0, "delta": {"content": "The first half"}, "finish_reason": None}])
    yield from after
    if cut:
        raise Cut


def silent() -> Iterator[bytes]:
    yield event(choices=[{"index": 0, "delta": {"content": "The first half"}, "finish_reason": None}])
    time.sleep(3)


def refused(status: int, said: object):
    return lambda: (status, said)


# What is asked -> (how the engine answers, what the page says, whether text had arrived, the status of /v1)
REQUESTS = {
    "prompt too long": (refused(400, {"error": {"message": "This model's maximum context length is 4096 tokens."}}),
                        "does not fit the model's context", False, 400),
    "bad parameter": (refused(400, {"error": {"message": "temperature must be non-negative"}}),
                      "refused the request: temperature must be non-negative.", False, 400),
    "no chat template": (refused(400, {"message": "default chat template is no longer allowed"}),
                         "Use the Completion tab", False, 400),
    "wrong key": (refused(401, {"error": "Unauthorized"}), "Set MODEL_API_KEY", False, 502),
    "forbidden": (refused(403, {"error": "Forbidden"}), "Set MODEL_API_KEY", False, 502),
    "model gone": (refused(404, {"error": {"message": "The model `x` does not exist."}}), "Reload", False, 404),
    "busy": (refused(429, {"detail": "slow down"}), "busy. Try again in a minute", False, 429),
    "server error": (refused(500, "Internal Server Error"), "failed (HTTP 500)", False, 500),
    "core dead": (refused(500, {"error": {"message": "EngineCore encountered an issue. See stack trace (above)"}}),
                  "The model's engine has died", False, 500),
    "not ready": (refused(503, {"detail": "loading"}), "failed (HTTP 503): loading.", False, 503),
    "connection lost": (lambda: broken(cut=True), "The answer was cut off", True, 200),
    "ended without an end": (lambda: broken(), "The answer was cut off", True, 200),
    "not JSON": (lambda: broken(b"data: {oops\n\n"), "sent something that is not an answer", True, 200),
    "error in mid-stream": (
        lambda: broken(event(error={"message": "CUDA error", "code": 500})), "(HTTP 500): CUDA error.", True, 200),
    "core dead in mid-stream": (
        lambda: broken(event(error={"message": "EngineCore encountered an issue. See", "code": 500})),
        "The model's engine has died", True, 200),
    "silent in mid-stream": (silent, "sent nothing for 1 seconds", True, 200),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    def script(path: str, body: dict):
        asked = body["messages"][-1]["content"] if "messages" in body else body.get("prompt")
        return REQUESTS[asked][0]() if asked in REQUESTS else chat_stream("Hello")

    with ScriptedEngine(script).running() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(shared_page, engine) -> str:
    return shared_page(engine.url, REQUEST_TIMEOUT="1", API_KEYS="key-of-the-tests")


@pytest.fixture(scope="module")
def client(url) -> gradio_client.Client:
    return gradio_client.Client(url, verbose=False)


@pytest.mark.parametrize("asked", REQUESTS)
def test_a_request_that_fails_is_a_sentence_and_what_had_arrived_is_kept(url, client, engine, asked):
    _, says, partial, status = REQUESTS[asked]
    job = client.submit(asked, api_name="/chat")
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        job.result(timeout=20)
    assert says in str(caught.value)
    assert str(caught.value).endswith(".")
    assert [text for text in job.outputs()[-1:] if text] == (["The first half"] if partial else [])

    body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": asked}]}
    with requests.post(f"{url}/v1/chat/completions", json=body, headers=KEY, timeout=20, stream=True) as answer:
        assert answer.status_code == status
        got = b""
        try:
            for data in answer.iter_content(None):
                got += data
        except requests.exceptions.ChunkedEncodingError:
            assert partial
    assert (b"The first half" in got) is partial
    assert client.predict("And now?", api_name="/chat") == "Hello"


# -- a request that is hostile -----------------------------------------------------------------------------------------


def join(url: str, data: list, name: str = "chat") -> dict:
    """What the queue makes of an event with this data: the last message of its stream."""
    session = f"s{time.monotonic_ns()}"
    config = requests.get(f"{url}/config", timeout=10).json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == name)
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session})
    answer = requests.post(
        f"{url}/gradio_api/queue/join", data=body, headers={"Content-Type": "application/json"}, timeout=20
    )
    assert answer.status_code < 500, answer.text
    if not answer.ok:
        return {"msg": "refused", "status": answer.status_code}
    last: dict = {}
    with requests.get(f"{url}/gradio_api/queue/data?session_hash={session}", stream=True, timeout=20) as stream:
        for line in stream.iter_lines():
            if line.startswith(b"data: "):
                last = json.loads(line[6:])
                if last["msg"] in ("process_completed", "close_stream"):
                    break
    return last


SENT_AS_IT_IS = {
    "lone surrogates": "\ud800 and \udfff",
    "NUL": "a\0b",
    "control characters": "".join(map(chr, range(1, 32))),
    "right to left": "\u202eabc\u2066 \u05e9\u05dc\u05d5\u05dd",
    "zalgo": "e" + "\u0301\u0317\u0489" * 500,
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "10 MB": "word " * 2 * 2**20,
}


@pytest.mark.parametrize("kind", SENT_AS_IT_IS)
def test_strange_text_reaches_the_model_as_it_is(url, engine, kind):
    engine.requests.clear()
    last = join(url, [SENT_AS_IT_IS[kind], [], "", "", 10, None, None, None, None])
    assert last["success"], last
    assert last["output"]["data"] == ["Hello"]
    assert engine.requests[-1][2]["messages"][-1]["content"] == SENT_AS_IT_IS[kind]


HOSTILE = {
    "temperature a word": ["Hi", [], "", "", 10, "x"],
    "temperature NaN": ["Hi", [], "", "", 10, float("nan")],
    "max_tokens infinite": ["Hi", [], "", "", float("inf")],
    "max_tokens of 400 digits": ["Hi", [], "", "", 10**400],
    "seed negative": ["Hi", [], "", "", 10, None, None, None, -5],
    "unknown model": ["Hi", [], "", "no-such-model"],
    "model a list": ["Hi", [], "", ["scripted"]],
    "message a number": [5],
    "message an object": [{"text": "Hi"}],
    "message null": [None],
    "history a word": ["Hi", "history"],
    "history of words": ["Hi", ["a", "b"]],
    "history of a king": ["Hi", [{"role": "king", "content": "x"}]],
    "history with a tool": ["Hi", [{"role": "tool", "content": "x", "tool_call_id": "1"}]],
    "history with a picture": [
        "Hi", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}]}]],
    "system prompt an object": ["Hi", [], {"a": 1}],
    "stop a list of objects": ["Hi", [], "", "", 10, None, None, [{}]],
    "nothing": [],
    "too much": ["Hi"] * 100,
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_request_is_refused_and_does_not_reach_the_engine(url, client, engine, kind):
    engine.requests.clear()
    last = join(url, HOSTILE[kind])
    assert not last.get("success"), last
    assert engine.requests == []
    assert client.predict("And now?", api_name="/chat") == "Hello"


def post(url: str, path: str, data: bytes, **headers: str) -> int:
    headers = {"Content-Type": "application/json"} | headers
    return requests.post(url + path, data=data, headers=headers, timeout=30).status_code


RAW = {
    "nested": b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b', "fn_index": 0, "session_hash": "x"}',
    "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no JSON": b"{",
    "an array": b"[1]",
    "NUL": b'{"data": ["\\u0000"], "fn_index": "\\u0000", "session_hash": null}',
    "surrogates": b'{"data": ["\\ud800"], "fn_index": 0, "session_hash": "\\udfff"}',
    "not UTF-8": b'{"data": ["\xff\xfe"]}',
    "a function that is not there": b'{"data": [], "fn_index": 99999, "session_hash": "x"}',
    "huge": b'{"data": [1e999999, ' + b"9" * 5000 + b'], "fn_index": 0, "session_hash": "x"}',
}
PATHS = ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/call/chat", "/v1/chat/completions")


@pytest.mark.parametrize("kind", RAW)
def test_a_body_that_is_hostile_is_no_error_of_ours(url, client, kind):
    for path in PATHS:
        assert post(url, path, RAW[kind], **KEY) < 500, path
    assert client.predict("And now?", api_name="/chat") == "Hello"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "app.py", ".env", "vllm_space/settings.py", "../app.py", "/proc/self/environ", "{tmp}/x.txt"],
)
def test_gradios_file_route_opens_no_file_of_this_machine(url, tmp_path, path):
    (tmp_path / "x.txt").write_text("MARKED")
    for form in (path, path.replace("/", "%2F"), path.replace("/", "//")):
        form = form.replace("{tmp}", str(tmp_path))
        assert requests.get(f"{url}/gradio_api/file={form}", timeout=10).status_code in (403, 404)


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["without meta", "with meta"])
def test_no_handler_reads_a_file_that_a_forged_event_names(url, client, engine, tmp_path, meta):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"MARKED" * 9)
    engine.requests.clear()
    file = {"path": str(secret), "mime_type": "image/png", "orig_name": "x.png"} | meta
    history = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "file", "file": file}]}]
    forged = {"chatbot": history, "multimodaltextbox": {"text": "Hi", "files": [file]}, "uploadbutton": file}
    config = requests.get(f"{url}/config", timeout=10).json()
    kinds = {one["id"]: one["type"] for one in config["components"]}
    tried = 0
    for function in config["dependencies"]:
        if any(kinds[one] in forged for one in function["inputs"]):
            tried += 1
            data = [forged.get(kinds[one], "") for one in function["inputs"]]
            event = {"event_data": {"index": 0, "value": "Hi"}}
            body = {"data": data, "fn_index": function["id"], "session_hash": f"forged-{tried}"} | event
            answer = requests.post(f"{url}/gradio_api/run/predict", json=body, timeout=10)
            assert answer.status_code == 400
            assert requests.post(f"{url}/gradio_api/queue/join", json=body, timeout=10).status_code < 500
            stream = f"{url}/gradio_api/queue/data?session_hash={body['session_hash']}"
            with requests.get(stream, stream=True, timeout=10) as events:
                said = next((line for line in events.iter_lines() if b"process_completed" in line), b"")
            assert b'"success":false' in said, function
            assert b"TUFSS0VE" not in said + answer.content  # MARKED in base64
    assert tried >= 5
    assert engine.requests == []


def test_an_upload_that_is_too_large_is_refused_and_one_of_a_wrong_type_is_never_shown_as_a_page(url, tmp_path):
    def upload(name: str, content: bytes) -> requests.Response:
        return requests.post(f"{url}/gradio_api/upload", files={"files": (name, content)}, timeout=30)

    assert upload("x.txt", b"x" * (11 * 2**20)).status_code == 413
    for name in ("../../x.html", "x.svg", "\0.html", "x" * 300 + ".html"):
        answer = upload(name, b"<script>alert(1)</script>")
        assert answer.status_code < 500, name
        if answer.ok:
            shown = requests.get(f"{url}/gradio_api/file={answer.json()[0]}", timeout=10)
            assert shown.headers["Content-Disposition"].startswith("attachment")


def test_half_open_and_slow_connections_keep_nobody_out(url, client):
    """2 000 connections: ones that say nothing, that stop in mid-request, and that never read their answer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port = url.removeprefix("http://").split(":")
    half = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    openings = [*[b"", b"GET / HT", half] * 10, b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n"]
    held = []
    try:
        for number in range(2000):
            held.append(socket.create_connection((host, int(port)), timeout=10))
            held[-1].sendall(openings[number % len(openings)])
        began = time.monotonic()
        assert client.predict("And now?", api_name="/chat") == "Hello"
        assert requests.get(f"{url}/healthz", timeout=10).ok
        assert time.monotonic() - began < 10
        assert len(held) == 2000
    finally:
        for one in held:
            one.close()
    assert client.predict("And now?", api_name="/chat") == "Hello"
