"""Devices by the words of a command line, each with facts that agree with the rest of jaxlm."""

import itertools
import re
from dataclasses import dataclass

import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.observe.flops import peak_flops
from jaxlm.plan.devices import devices, machine, of


@pytest.mark.parametrize(
    ("words", "count", "domain"),
    [
        ("h200:8", 8, 8),
        ("H100:256", 256, 8),
        ("h100", 1, 1),
        ("v5e:4x4", 16, 16),
        ("v5p:8x8x8", 512, 512),
        ("v5p:16x16x16", 4096, 4096),
        ("v6e:16x16*4", 1024, 256),
        ("cpu:8", 8, 1),
    ],
)
def test_words_name_a_machine(words, count, domain):
    found = machine(words)
    assert (found.count, found.domain) == (count, domain)
    assert machine(str(found)) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("h300:8", "did you mean h200"),
        ("tpu", "known are h200:8, h100:8"),
        ("v5e:3x3", "no topology '3x3'; known are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5p:8x8", "known are 2x2x1, 2x2x2"),
        ("v5p:64x64x64", "4x4x4"),
        ("v5e:16", "known are 1x1"),
        ("h100:12", "use h100:8 or h100:16"),
        ("h100:2x4", "is counted; write h100:8"),
        ("h100:0", "no device"),
        ("v5e:4x4*0", "no device"),
        ("", "is missing; known are h200:8"),
    ],
)
def test_what_is_unknown_is_one_line_with_what_is_known(words, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as found:
        machine(words)
    assert found.value.code == 2 and "\n" not in str(found.value)


@pytest.mark.parametrize("device", devices().values(), ids=lambda device: device.name)
def test_every_figure_has_its_source(device):
    assert device.peak == peak_flops(device.kind)
    if device.price:
        assert re.fullmatch(r"20\d\d-\d\d", device.price.date) and device.price.source
    assert bool(device.watts) == bool(device.watts_source)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", "cpu"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_jaxs_names_are_known(kind, name):
    found = of(chips(kind, [2, 2, 1]))
    assert (found.device.name if found else None) == name


@dataclass
class Chip:
    """What jax says of a device."""

    device_kind: str
    coords: tuple[int, ...]
    slice_index: int = 0


def chips(kind, sides, slices=1):
    coords = itertools.product(*map(range, sides))
    return [Chip(kind, at, i) for at in coords for i in range(slices)]


@pytest.mark.parametrize(
    ("kind", "sides", "slices", "words"),
    [
        ("TPU v5 lite", (2, 4, 1), 1, "v5e:2x4"),
        ("TPU v5 lite", (4, 2, 1), 1, "v5e:2x4"),
        ("TPU v5 lite", (4, 4, 1), 2, "v5e:4x4*2"),
        ("TPU v5", (4, 8, 4), 1, "v5p:4x4x8"),
        ("TPU v5 lite", (3, 3, 1), 1, None),
        ("NVIDIA H200", (16, 1, 1), 1, "h200:16"),
    ],
)
def test_devices_have_their_network(kind, sides, slices, words):
    there = chips(kind, sides, slices)
    assert of(there) == (machine(words) if words else None)
    if "TPU" in kind:  # no topology: one chip is not of the run
        assert of(there[:-1]) is None
