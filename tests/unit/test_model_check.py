"""model_check.py: the real huggingface_hub asks a local server that stands in for the Hub."""

import shutil
from collections import namedtuple

import pytest
from huggingface_hub import constants

from support.scripted_hub import GOOD_TOKEN, hub, model
from vllm_space import errors, settings
from vllm_space.engine import model_check
from vllm_space.hardware import Gpu

T4 = Gpu("Tesla T4", 15360, 15000, 7.5, "580.1")
L4 = Gpu("NVIDIA L4", 23034, 22900, 8.9, "580.1")


@pytest.fixture
def check(monkeypatch, tmp_path):
    """check(models, gpus=..., name=value) -> warnings, with a Hub that has these models."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_check, "_cuda_of_torch", lambda: 13)

    def run(*models, gpus=(L4,), model_id="org/name", **values):
        with hub(*models) as url:
            monkeypatch.setattr(constants, "ENDPOINT", url)
            config = settings.Settings(_env_file=None, model_id=model_id, **values)
            return model_check.check(config, model_id, list(gpus))

    return run


# -- the Hub -------------------------------------------------------------------------------

CONFIG = {"rfilename": "config.json", "size": 9}
NO_WEIGHTS = {"siblings": [CONFIG]}  # nothing to download
GGUF = [CONFIG, {"rfilename": "q4.gguf", "size": 5}]
DIFFUSION = [{"rfilename": "model_index.json"}, {"rfilename": "unet.safetensors"}]
HUGE = [CONFIG, {"rfilename": "a.safetensors", "size": 10**15}]


def parameters(number: float) -> dict:
    counts = {"parameters": {"BF16": int(number)}, "total": int(number)}
    return {"safetensors": counts, **NO_WEIGHTS}


def test_model_that_fits_has_no_warnings(check):
    assert check(model("org/name")) == []


@pytest.mark.parametrize(
    ("models", "values", "messages"),
    [
        pytest.param(
            [model("org/nama"), model("a/name-2")],
            {},
            ["no model org/name", "org/nama"],
            id="does not exist",
        ),
        pytest.param([], {"model_id": "one/two/three"}, ["neither a Hub id"], id="not a name"),
        pytest.param([], {"model_id": "x" * 300}, ["neither a Hub id"], id="too long"),
        pytest.param(
            [model("org/name", private=True)], {}, ["private", "HF_TOKEN"], id="private, no token"
        ),
        pytest.param(
            [model("org/name", gated="manual")],
            {},
            ["gated", "HF_TOKEN is not set", "/org/name"],
            id="gated",
        ),
        pytest.param(
            [model("org/name")],
            {"hf_token": "hf_bad-marked"},
            ["rejected HF_TOKEN"],
            id="bad token",
        ),
        pytest.param(
            [model("org/name")],
            {"model_revision": "v9"},
            ["no revision v9", "MODEL_REVISION"],
            id="bad revision",
        ),
        pytest.param([model("org/name", siblings=GGUF)], {}, ["only GGUF"], id="GGUF only"),
        pytest.param(
            [model("org/name", siblings=GGUF)],
            {"model_id": "org/name:Q4_K_M"},
            ["names a GGUF file"],
            id="one GGUF file",
        ),
        pytest.param(
            [model("org/name")],
            {"hf_token": "hf_bad-marked", "hf_token_origin": "the token in /home/me/token"},
            ["rejected the token in /home/me/token"],
            id="bad token of hf auth login",
        ),
        pytest.param(
            [model("org/name", siblings=DIFFUSION)],
            {},
            ["no config.json"],
            id="not a language model",
        ),
        pytest.param(
            [model("org/name", **parameters(32e9))],
            {},
            ["59.6 GiB of weights", "1 x NVIDIA L4 has 22.5 GiB", "A100"],
            id="too large for the GPU",
        ),
        pytest.param(
            [model("org/name", siblings=HUGE)],
            {},
            ["free: choose a smaller model", "HF_HOME"],
            id="too large for the disk",
        ),
    ],
)
def test_model_that_cannot_work_is_an_error(check, models, values, messages):
    with pytest.raises(errors.EngineError) as caught:
        check(*models, **values)
    for message in messages:
        assert message in str(caught.value)
    assert "marked" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "gpu", "message"),
    [
        (
            {"pipeline_tag": "text-to-image"},
            L4,
            "org/name is tagged text-to-image on the Hub, so chat may not work.",
        ),
        ({"config": {"auto_map": {"AutoModel": "x"}}}, L4, "TRUST_REMOTE_CODE=true"),
        (
            {"safetensors": {"parameters": {"F16": 7_500_000_000}, "total": 1}},
            T4,
            "leaves little for the context",
        ),
        ({}, Gpu("NVIDIA L4", 23034, 9000, 8.9, "580.1"), "GPU_MEMORY_UTILIZATION"),
    ],
)
def test_estimate_is_a_warning(check, fields, gpu, message):
    (warning,) = check(model("org/name", **fields), gpus=[gpu])
    assert message in warning


@pytest.mark.parametrize(
    ("gpus", "values"),
    [
        pytest.param([L4] * 4, {}, id="four GPUs"),
        pytest.param([L4], {"quantization": "fp8"}, id="quantized while loading"),
        pytest.param([L4], {"engine_args": "--cpu-offload-gb 30"}, id="offloaded"),
        pytest.param([], {}, id="on the CPU"),
    ],
)
def test_model_that_might_fit_passes(check, gpus, values):
    check(model("org/name", **parameters(20e9)), gpus=gpus, **values)


def test_token_gives_access(check):
    assert check(model("org/name", private=True, gated="auto"), hf_token=GOOD_TOKEN) == []


@pytest.mark.parametrize(
    ("env", "values"),
    [
        pytest.param({"VLLM_USE_MODELSCOPE": "True"}, {}, id="ModelScope"),
        pytest.param({"VLLM_MODEL_REDIRECT_PATH": "models.json"}, {}, id="redirected"),
        pytest.param({}, {"model_id": "s3://bucket/shelf/small-chat/"}, id="S3"),
        pytest.param({}, {"model_id": "gs://bucket/small-chat"}, id="Google"),
        pytest.param({}, {"model_id": "az://box/small-chat"}, id="Azure"),
        pytest.param({}, {"engine_args": "--hf-token hf_x"}, id="another token"),
        pytest.param({}, {"engine_args": "--revision=v2"}, id="another revision"),
        pytest.param({}, {"engine_args": "--hf_config_path x"}, id="another config.json"),
    ],
)
def test_hub_is_not_asked_without_need(check, monkeypatch, env, values):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert check(**values) == []  # the Hub has no models


@pytest.mark.parametrize(
    "env", [{"VLLM_USE_MODELSCOPE": "False"}, {"VLLM_USE_MODELSCOPE": "0"}, {"HF_HUB_OFFLINE": "0"}]
)
def test_other_variables_change_nothing(check, monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.EngineError, match="no model org/name"):
        check()


def test_plugin_for_gguf_is_believed(check, monkeypatch, tmp_path):
    monkeypatch.setattr(model_check, "_reads_gguf", lambda: True)
    assert check(model("org/name", siblings=GGUF)) == []
    assert check(model_id="org/name:Q4_K_M") == []
    file = tmp_path / "x.gguf"
    file.touch()
    assert check(model_id=str(file)) == []


def test_hub_that_is_down_is_ignored(check, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    config = settings.Settings(_env_file=None, model_id="org/name")
    assert model_check.check(config, "org/name", [L4]) == []


# -- the machine ---------------------------------------------------------------------------


def test_local_files_give_the_model_size(check, tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as sparse:
        sparse.truncate(40 * 2**30)
    with pytest.raises(errors.EngineError, match=r"40.0 GiB of weights"):
        check(model_id=str(folder))


def test_local_gguf_is_left_to_vllm(check, tmp_path):
    file = tmp_path / "small.Q4_K_M.GGUF"
    file.touch()
    (warning,) = check(model_id=str(file))
    assert warning.startswith("small.Q4_K_M.GGUF is a GGUF file, which the installed vLLM cannot")


@pytest.mark.parametrize("model_id", ["./model", "shelf/model", "shelf/../shelf/model"])
def test_relative_folder_is_a_model(check, monkeypatch, tmp_path, model_id):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "model", tmp_path / "shelf" / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    assert check(model_id=model_id) == []


def test_folder_without_a_model_is_a_warning(check, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (warning,) = check(model("org/name"))
    assert f"The folder {tmp_path}/org/name" in warning
    assert warning.endswith("To get org/name from the Hub, rename it.")


def test_folder_of_an_org_is_no_model(check, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert check(model("org/name")) == []


def test_old_driver_is_an_error(check):
    old = Gpu("NVIDIA L4", 23034, 22900, 8.9, "535.1")
    expected = r"driver 535.1 is too old for CUDA 13.*580 or newer"
    with pytest.raises(errors.EngineError, match=expected):
        check(model("org/name"), gpus=[old])


def test_read_only_cache_is_an_error(check, monkeypatch):
    monkeypatch.setattr(model_check.os, "access", lambda *_: False)
    with pytest.raises(errors.EngineError, match="HF_HOME"):
        check(model("org/name"))


def test_small_disk_is_an_error(check, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(errors.EngineError, match=r"download of 1.9 GiB.* has only 0.9 GiB free"):
        check(model("org/name"))
