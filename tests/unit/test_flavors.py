"""flavors.py: for every GPU of Spaces, the suggested model and the engine's command line."""

import huggingface_hub
import pytest

from vllm_space import flavors, settings
from vllm_space.engine import command

# On every hardware, at the beginning and at the end.
FIRST = "--host 127.0.0.1 --port 8000"
LAST = "--allowed-media-domains none.invalid --disable-uvicorn-access-log"

PINNED = """
t4-small Qwen/Qwen3-4B-Instruct-2507 --dtype half --max-model-len -1 --tensor-parallel-size 1
t4-medium Qwen/Qwen3-4B-Instruct-2507 --dtype half --max-model-len -1 --tensor-parallel-size 1
l4x1 Qwen/Qwen3-8B --max-model-len -1 --tensor-parallel-size 1
a10g-small Qwen/Qwen3-8B --max-model-len -1 --tensor-parallel-size 1
a10g-large Qwen/Qwen3-8B --max-model-len -1 --tensor-parallel-size 1
l40sx1 Qwen/Qwen3-14B --max-model-len -1 --tensor-parallel-size 1
a100-large Qwen/Qwen3-32B --max-model-len -1 --tensor-parallel-size 1
a10g-largex2 Qwen/Qwen3-14B --max-model-len -1 --tensor-parallel-size 2
l4x4 Qwen/Qwen3-32B --max-model-len -1 --tensor-parallel-size 4
a10g-largex4 Qwen/Qwen3-32B --max-model-len -1 --tensor-parallel-size 4
l40sx4 Qwen/Qwen2.5-72B-Instruct --max-model-len -1 --tensor-parallel-size 4
a100x4 Qwen/Qwen2.5-72B-Instruct --max-model-len -1 --tensor-parallel-size 4
a100x8 Qwen/Qwen3-235B-A22B-Instruct-2507 --max-model-len -1 --tensor-parallel-size 8
l40sx8 Qwen/Qwen2.5-72B-Instruct --max-model-len -1 --tensor-parallel-size 8
rtx-pro-6000 Qwen/Qwen3-32B --max-model-len -1 --tensor-parallel-size 1
rtx-pro-6000x2 Qwen/Qwen2.5-72B-Instruct --max-model-len -1 --tensor-parallel-size 2
rtx-pro-6000x4 Qwen/Qwen2.5-72B-Instruct --max-model-len -1 --tensor-parallel-size 4
rtx-pro-6000x8 Qwen/Qwen3-235B-A22B-Instruct-2507 --max-model-len -1 --tensor-parallel-size 8
""".strip().splitlines()


def test_table_has_every_flavor():
    assert [line.split()[0] for line in PINNED] == [flavor.id for flavor in flavors.FLAVORS]


@pytest.mark.parametrize("line", PINNED, ids=[line.split()[0] for line in PINNED])
def test_model_and_command_line(line):
    flavor_id, model, flags = line.split(maxsplit=2)
    flavor = next(flavor for flavor in flavors.FLAVORS if flavor.id == flavor_id)
    assert (flavors.largest_model(flavor), flavors.flags(flavor)) == (model, flags)
    config = settings.Settings(_env_file=None, model_id=model)
    _, _, _, *arguments = command.command_line(config, flavor.gpus)
    expected = f"--model {model} {FIRST} --served-model-name {model} {flags} {LAST}"
    assert " ".join(arguments) == expected


def test_default_model_fits_every_flavor():
    weights = flavors.weights(settings.DEFAULT_GPU_MODEL)
    assert all(flavor.holds(weights) for flavor in flavors.FLAVORS)


def test_flavors_exist_on_hugging_face():
    names = {hardware.value for hardware in huggingface_hub.SpaceHardware}
    assert {flavor.id for flavor in flavors.FLAVORS} <= names


@pytest.mark.parametrize(
    ("gib", "flavor_id"),
    [
        (7, "t4-small"),
        (15, "l4x1"),
        (28, "l40sx1"),
        (61, "a100-large"),
        (500, "a100x8"),
        (900, None),
    ],
)
def test_cheapest_flavor_for_a_model(gib, flavor_id):
    flavor = flavors.cheapest(gib)
    assert (flavor.id if flavor else None) == flavor_id
