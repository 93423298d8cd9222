"""command.py, hardware.py, deaths.py: the engine's command line and environment, and its death."""

import os
import shlex
from pathlib import Path

import pytest

from vllm_space import hardware, settings
from vllm_space.engine import command, deaths
from vllm_space.hardware import Gpu


def gpu(name="NVIDIA L4", capability=8.9) -> Gpu:
    return Gpu(name, 24000, 23000, capability, "580.1")


def config(**values) -> settings.Settings:
    return settings.Settings(_env_file=None, **values)


# -- the command line ----------------------------------------------------------------------

OPENAI = "vllm.entrypoints.openai.api_server"
QWEN = settings.DEFAULT_GPU_MODEL
ADDRESS = "--host 127.0.0.1 --port 8000"
END = "--allowed-media-domains none.invalid --disable-uvicorn-access-log"


@pytest.mark.parametrize(
    ("gpus", "values", "expected"),
    [
        pytest.param(
            [],
            {},
            f"-m {OPENAI} --model {settings.DEMO_MODEL} {ADDRESS} "
            f"--served-model-name vllm-space-demo --max-model-len -1 --enforce-eager {END}",
            id="no GPU: demo model",
        ),
        pytest.param(
            [gpu()],
            {},
            f"-m {OPENAI} --model {QWEN} {ADDRESS} --served-model-name {QWEN} "
            f"--max-model-len -1 --tensor-parallel-size 1 {END}",
            id="one GPU",
        ),
        pytest.param(
            [gpu("Tesla T4", 7.5)],
            {},
            f"-m {OPENAI} --model {QWEN} {ADDRESS} --served-model-name {QWEN} "
            f"--dtype half --max-model-len -1 --tensor-parallel-size 1 {END}",
            id="T4: no bfloat16",
        ),
        pytest.param(
            [gpu()] * 3,
            {
                "model_id": "a/b",
                "max_model_len": 8192,
                "gpu_memory_utilization": 0.8,
                "quantization": "fp8",
            },
            f"-m {OPENAI} --model a/b {ADDRESS} --served-model-name a/b --quantization fp8 "
            f"--max-model-len 8192 --gpu-memory-utilization 0.8 --tensor-parallel-size 2 {END}",
            id="three GPUs: uses two",
        ),
        pytest.param(
            [gpu()] * 8,
            {
                "model_id": "a/b",
                "model_revision": "v2",
                "tensor_parallel_size": 4,
                "dtype": "bfloat16",
                "trust_remote_code": True,
                "reasoning_parser": "qwen3",
                "tool_call_parser": "hermes",
                "engine_port": 9000,
                "engine_args": "--max-num-seqs 8 --dtype auto",
            },
            f"-m {OPENAI} --model a/b --host 127.0.0.1 --port 9000 --served-model-name a/b "
            "--revision v2 --dtype bfloat16 --max-model-len -1 --tensor-parallel-size 4 "
            "--trust-remote-code --reasoning-parser qwen3 --tool-call-parser hermes "
            f"--enable-auto-tool-choice {END} --max-num-seqs 8 --dtype auto",
            id="ENGINE_ARGS come last",
        ),
        pytest.param(
            [gpu()],
            {
                "model_id": "a/b",
                "engine_module": "vllm.entrypoints.api_server",
                "reasoning_parser": "qwen3",
            },
            f"-m vllm.entrypoints.api_server --model a/b {ADDRESS} --served-model-name a/b "
            "--max-model-len -1 --tensor-parallel-size 1",
            id="legacy server: fewer flags",
        ),
    ],
)
def test_settings_become_vllm_flags(gpus, values, expected):
    _, *arguments = command.command_line(config(**values), gpus)
    assert shlex.join(arguments) == expected


@pytest.mark.parametrize(
    ("gpus", "values", "origin"),
    [
        ([gpu()], {"model_id": "a/b"}, "MODEL_ID"),
        ([gpu()], {}, "default for a GPU"),
        ([], {}, "demo model: no GPU found"),
        ([], {"engine_device": "cpu"}, "demo model: ENGINE_DEVICE=cpu"),
    ],
)
def test_log_says_why_the_model_was_chosen(gpus, values, origin):
    assert command.model_origin(config(**values), gpus) == origin


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("{here}/my-model", "my-model"),
        ("./my-model", "my-model"),
        ("{here}/link", "my-model"),
        ("{here}/small.Q4_K_M.gguf", "small.Q4_K_M"),
        ("{here}/missing", "missing"),
        ("../missing.gguf", "missing"),
        ("s3://bucket/shelf/small-chat/", "small-chat"),
        ("gs://bucket/small-chat", "small-chat"),
        ("az://box", "box"),
        ("org/name", "org/name"),
        ("gpt2", "gpt2"),
        ("x" * 300, "x" * 300),
        ("org/name:Q4_K_M", "org/name:Q4_K_M"),
    ],
)
def test_local_model_hides_its_path(monkeypatch, tmp_path, model, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "link").symlink_to("my-model")
    (tmp_path / "small.Q4_K_M.gguf").touch()
    assert command.served_model_name(model.format(here=tmp_path)) == name


def test_address_is_handed_to_vllm_as_it_is():
    model = "s3://bucket/shelf/small-chat/"  # vLLM lists what begins with it
    line = command.command_line(config(model_id=model), [])
    assert line[line.index("--model") + 1] == model
    assert line[line.index("--served-model-name") + 1] == "small-chat"


# -- the environment -----------------------------------------------------------------------


def test_secrets_are_in_the_environment_only():
    secrets = config(hf_token="hf_marked", model_api_key="engine-marked")
    assert "marked" not in " ".join(command.command_line(secrets, []))
    env = command.environment(secrets, [])
    assert (env["HF_TOKEN"], env["VLLM_API_KEY"]) == ("hf_marked", "engine-marked")


def test_usage_statistics_are_off_by_default(monkeypatch):
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    assert command.environment(config(), [])["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    assert command.environment(config(), [])["VLLM_NO_USAGE_STATS"] == "0"


def test_no_flashinfer_sampler_without_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.environment(config(), [gpu()])["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    (tmp_path / "nvcc").touch(0o755)
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in command.environment(config(), [gpu()])


def test_cpu_engine_respects_the_core_limit(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert "OMP_NUM_THREADS" not in command.environment(config(), [])
    monkeypatch.setenv("SPACE_ID", "me/my-space")
    monkeypatch.setenv("CPU_CORES", "8")
    env = command.environment(config(), [])
    assert (env["VLLM_CPU_OMP_THREADS_BIND"], env["OMP_NUM_THREADS"]) == ("nobind", "7")
    assert "OMP_NUM_THREADS" not in command.environment(config(), [gpu()])
    monkeypatch.setenv("CPU_CORES", "64")
    assert "OMP_NUM_THREADS" not in command.environment(config(), [])


def test_cpu_engine_leaves_the_page_a_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert command.cores(config(), []) == {0, 3}
    assert command.cores(config(), [gpu()]) == {0, 3, 5}
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-5")
    assert command.cores(config(), []) == {0, 3, 5}
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7})
    assert command.cores(config(), []) == {7}


# -- the hardware --------------------------------------------------------------------------


def write_nvidia_smi(folder: Path, output: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}\nEOF\nexit {code}\n")
    script.chmod(0o755)


def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    t4, l4 = "Tesla T4, 15360, 14900, 7.5, 535.1", "NVIDIA L4, 23034, 22000, 8.9, 535.1"
    write_nvidia_smi(tmp_path, f"{t4}\n{l4}\nlost, [N/A], 0, 0, 0")
    assert hardware.gpus() == [
        Gpu("Tesla T4", 15360, 14900, 7.5, "535.1"),
        Gpu("NVIDIA L4", 23034, 22000, 8.9, "535.1"),
    ]
    assert hardware.gpus("cpu") == []
    write_nvidia_smi(tmp_path, "No devices were found", code=6)
    assert hardware.gpus() == []


# -- deaths --------------------------------------------------------------------------------

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
SMALL_SHM = "RuntimeError: Insufficient space in /dev/shm: 160 MiB required, 64 MiB free."


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        (["INFO fine", OUT_OF_MEMORY], 1, "smaller MODEL_ID"),
        (["ValueError: No available memory for the cache blocks."], 1, "MAX_MODEL_LEN"),
        (["api_server.py: error: unrecognized arguments: --no-such-flag"], 2, "--no-such-flag"),
        (["OSError: [Errno 28] No space left on device"], 1, "the disk is full"),
        ([SMALL_SHM], 1, "--shm-size"),
        (["INFO loading"], -9, "memory ran out"),
        (["INFO loading", "KeyError: 'a.b.c'", "INFO bye"], 1, "KeyError: 'a.b.c'"),
        ([], 3, "exit code 3, no error message"),
    ],
)
def test_last_lines_explain_a_death(lines, code, expected):
    assert expected in deaths.explain(lines, code)
