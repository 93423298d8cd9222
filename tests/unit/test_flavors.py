"""flavors.py: for each GPU that Spaces offer, the model suggested there and the command line the engine gets."""

import huggingface_hub
import pytest

from vllm_space import flavors, settings
from vllm_space.engine import command

EVERY = "--host 127.0.0.1 --port 8000"  # on every hardware, and at the end:
LAST = "--allowed-media-domains none.invalid --disable-uvicorn-access-log"

PINNED = """
t4-small        Qwen/Qwen3-4B-Instruct-2507         --dtype half --max-model-len -1 --tensor-parallel-size 1
t4-medium       Qwen/Qwen3-4B-Instruct-2507         --dtype half --max-model-len -1 --tensor-parallel-size 1
l4x1            Qwen/Qwen3-8B                       --max-model-len -1 --tensor-parallel-size 1
a10g-small      Qwen/Qwen3-8B                       --max-model-len -1 --tensor-parallel-size 1
a10g-large      Qwen/Qwen3-8B                       --max-model-len -1 --tensor-parallel-size 1
l40sx1          Qwen/Qwen3-14B                      --max-model-len -1 --tensor-parallel-size 1
a100-large      Qwen/Qwen3-32B                      --max-model-len -1 --tensor-parallel-size 1
a10g-largex2    Qwen/Qwen3-14B                      --max-model-len -1 --tensor-parallel-size 2
l4x4            Qwen/Qwen3-32B                      --max-model-len -1 --tensor-parallel-size 4
a10g-largex4    Qwen/Qwen3-32B                      --max-model-len -1 --tensor-parallel-size 4
l40sx4          Qwen/Qwen2.5-72B-Instruct           --max-model-len -1 --tensor-parallel-size 4
a100x4          Qwen/Qwen2.5-72B-Instruct           --max-model-len -1 --tensor-parallel-size 4
a100x8          Qwen/Qwen3-235B-A22B-Instruct-2507  --max-model-len -1 --tensor-parallel-size 8
l40sx8          Qwen/Qwen2.5-72B-Instruct           --max-model-len -1 --tensor-parallel-size 8
rtx-pro-6000    Qwen/Qwen3-32B                      --max-model-len -1 --tensor-parallel-size 1
rtx-pro-6000x2  Qwen/Qwen2.5-72B-Instruct           --max-model-len -1 --tensor-parallel-size 2
rtx-pro-6000x4  Qwen/Qwen2.5-72B-Instruct           --max-model-len -1 --tensor-parallel-size 4
rtx-pro-6000x8  Qwen/Qwen3-235B-A22B-Instruct-2507  --max-model-len -1 --tensor-parallel-size 8
""".strip().splitlines()


def test_every_flavor_is_pinned():
    assert [line.split()[0] for line in PINNED] == [flavor.id for flavor in flavors.FLAVORS]


@pytest.mark.parametrize("pinned", PINNED, ids=[line.split()[0] for line in PINNED])
def test_the_command_line_on_each_flavor(pinned):
    name, model, flags = pinned.split(maxsplit=2)
    flavor = next(one for one in flavors.FLAVORS if one.id == name)
    assert (flavors.largest_model(flavor), flavors.flags(flavor)) == (model, flags)
    line = command.command_line(settings.Settings(_env_file=None, model_id=model), flavor.gpus)
    expected = f"--model {model} {EVERY} --served-model-name {model} {flags} {LAST}"
    assert " ".join(line[3:]) == expected


def test_the_default_model_fits_every_flavor():
    assert all(
        flavor.holds(flavors.weights(settings.DEFAULT_GPU_MODEL)) for flavor in flavors.FLAVORS
    )


def test_the_flavors_are_those_that_hugging_face_knows():
    assert {flavor.id for flavor in flavors.FLAVORS} <= {
        hardware.value for hardware in huggingface_hub.SpaceHardware
    }


@pytest.mark.parametrize(
    ("gib", "flavor"),
    [
        (7, "t4-small"),
        (15, "l4x1"),
        (28, "l40sx1"),
        (61, "a100-large"),
        (500, "a100x8"),
        (900, None),
    ],
)
def test_the_cheapest_that_holds_a_model_is_suggested(gib, flavor):
    found = flavors.cheapest(gib)
    assert (found.id if found else None) == flavor
