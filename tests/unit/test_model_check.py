"""model_check.py against a local server that plays the Hub, asked by the real huggingface_hub over real HTTP."""

import shutil
from collections import namedtuple

import pytest

from support.scripted_hub import GOOD_TOKEN, hub, model
from vllm_space import errors, settings
from vllm_space.engine import model_check
from vllm_space.hardware import Gpu

T4 = Gpu("Tesla T4", 15360, 15000, 7.5, "580.1")
L4 = Gpu("NVIDIA L4", 23034, 22900, 8.9, "580.1")


@pytest.fixture
def check(monkeypatch, tmp_path):
    """check(models, gpus=..., NAME=value) -> warnings, with a Hub that has those models."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_check, "_cuda_of_torch", lambda: 13)

    def run(*models, gpus=(L4,), model_id="org/name", **values):
        with hub(*models) as address:
            monkeypatch.setattr(constants, "ENDPOINT", address)
            config = settings.Settings(_env_file=None, model_id=model_id, **values)
            return model_check.check(config, model_id, list(gpus))

    return run


def test_a_model_that_fits_passes_without_a_word(check):
    assert check(model("org/name")) == []


CONFIG = {"rfilename": "config.json", "size": 9}
SMALL = {"siblings": [CONFIG]}  # nothing to download


def parameters(number: float) -> dict:
    return {"safetensors": {"parameters": {"BF16": int(number)}, "total": int(number)}, **SMALL}


@pytest.mark.parametrize(
    ("known", "values", "says"),
    [
        pytest.param(
            [model("org/nama"), model("a/name-2")],
            {},
            ["no model org/name", "org/nama"],
            id="does not exist",
        ),
        pytest.param([], {"model_id": "one/two/three"}, ["neither a Hub id"], id="not a name"),
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
            ["refuses HF_TOKEN"],
            id="token refused",
        ),
        pytest.param(
            [model("org/name")],
            {"model_revision": "v9"},
            ["no revision v9", "MODEL_REVISION"],
            id="no revision",
        ),
        pytest.param(
            [model("org/name", siblings=[CONFIG, {"rfilename": "q4.gguf", "size": 5}])],
            {},
            ["only GGUF"],
            id="GGUF only",
        ),
        pytest.param(
            [
                model(
                    "org/name",
                    siblings=[{"rfilename": "model_index.json"}, {"rfilename": "unet.safetensors"}],
                )
            ],
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
            [model("org/name", siblings=[CONFIG, {"rfilename": "a.safetensors", "size": 10**15}])],
            {},
            ["free: choose a smaller model", "HF_HOME"],
            id="too large for the disk",
        ),
    ],
)
def test_a_certainty_stops_with_a_sentence(check, known, values, says):
    with pytest.raises(errors.EngineError) as caught:
        check(*known, **values)
    for words in says:
        assert words in str(caught.value)
    assert "marked" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "gpus", "values", "says"),
    [
        ({"pipeline_tag": "text-to-image"}, [L4], {}, "text-to-image"),
        ({"config": {"auto_map": {"AutoModel": "x"}}}, [L4], {}, "TRUST_REMOTE_CODE=true"),
        (
            {"safetensors": {"parameters": {"F16": 7_500_000_000}, "total": 1}},
            [T4],
            {},
            "leaves little for the context",
        ),
        ({}, [Gpu("NVIDIA L4", 23034, 9000, 8.9, "580.1")], {}, "GPU_MEMORY_UTILIZATION"),
    ],
)
def test_an_estimate_only_warns(check, fields, gpus, values, says):
    warnings = check(model("org/name", **fields), gpus=gpus, **values)
    assert len(warnings) == 1
    assert says in warnings[0]


@pytest.mark.parametrize(
    ("gpus", "values"),
    [
        ([L4] * 4, {}),  # split over four
        ([L4], {"quantization": "fp8"}),  # made smaller while it loads
        ([L4], {"engine_args": "--cpu-offload-gb 30"}),
        ([], {}),  # on the CPU, memory is not the GPU's
    ],
)
def test_a_model_that_may_fit_after_all_is_not_stopped(check, gpus, values):
    check(model("org/name", **parameters(20e9)), gpus=gpus, **values)


def test_what_a_token_opens_is_open(check):
    assert check(model("org/name", private=True, gated="auto"), hf_token=GOOD_TOKEN) == []


def test_no_hub_is_no_obstacle(check, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    config = settings.Settings(_env_file=None, model_id="org/name")
    assert model_check.check(config, "org/name", [L4]) == []


def test_a_local_model_is_measured_by_its_files(check, tmp_path, monkeypatch):
    folder = tmp_path / "big"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as sparse:
        sparse.truncate(40 * 2**30)
    with pytest.raises(errors.EngineError, match=r"40.0 GiB of weights"):
        check(model_id=str(folder))


def test_a_driver_too_old_for_the_installed_cuda_stops(check):
    with pytest.raises(
        errors.EngineError, match=r"driver 535.1 is too old for CUDA 13.*580 or newer"
    ):
        check(model("org/name"), gpus=[Gpu("NVIDIA L4", 23034, 22900, 8.9, "535.1")])


def test_a_folder_that_cannot_be_written_to_is_named(check, monkeypatch):
    monkeypatch.setattr(model_check.os, "access", lambda *_: False)
    with pytest.raises(errors.EngineError, match="HF_HOME"):
        check(model("org/name"))


def test_the_download_must_fit_the_disk(check, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(errors.EngineError, match=r"download of 1.9 GiB .* has 0.9 GiB free"):
        check(model("org/name"))
