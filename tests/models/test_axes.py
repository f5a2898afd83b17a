"""Sharding and Muon read one table: every parameter of every preset has its row in it."""

from pathlib import Path

import jax
import networks
import pytest

from jaxlm.config.load import load
from jaxlm.core import tree
from jaxlm.core.mesh import RULES, logical_axes
from jaxlm.models import lora, rows
from jaxlm.models.axes import AXES, INPUTS
from jaxlm.models.transformer import param_shapes

SPECS = {
    **{
        name: networks.spec(**changes)
        for shapes in (networks.SHAPES, networks.ENCODERS, networks.PAIRS)
        for name, changes in shapes.items()
    },
    **{
        path.stem: load(str(path), []).model.filled(vocab=50257, max_length=1024)
        for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    },
}


def shapes(spec, *, adapters=True):
    at = networks.layout()
    base = param_shapes(spec, at, "float32")
    if not adapters:
        return base
    how = {"rank": 4, "alpha": 8.0, "init": "pissa"}
    kernels, experts = ["(attn|cross|mlp)/.*kernel"], ["experts/(gate|up|down)/kernel"]
    first = networks.VOCAB - 2

    def added(params):
        more = {"targets": kernels, "dora": True, "dropout": 0.1}
        params = lora.add(params, at, networks.ROOT, **how, **more)
        if spec.experts.count:
            params = lora.add(params, at, networks.ROOT, **how, targets=experts)
        return rows.split(params, at, first, networks.VOCAB)

    return jax.eval_shape(added, base)


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_and_adapter_matches_one_row(name):
    for leaf, shape in tree.flatten(shapes(SPECS[name])).items():
        axes = logical_axes(leaf, AXES)  # raises when two rows match
        assert axes is not None and len(axes) == len(shape.shape), leaf


@pytest.mark.parametrize("name", SPECS)
def test_an_axis_has_one_size(name):
    """`embed` is the width wherever it stands, and so on: no row names its dimensions wrongly."""
    spec = SPECS[name]
    sizes = {
        "embed": {spec.embed},
        "heads": {spec.heads},
        "kv_heads": {spec.kv_heads},
        "head_dim": {spec.head_dim},
        "mlp": {spec.mlp},
        "rank": {4},
        "layers": {spec.layers, spec.encoder.layers},
    }
    for leaf, shape in tree.flatten(shapes(spec)).items():
        for axis, size in zip(logical_axes(leaf, AXES) or (), shape.shape, strict=True):
            assert size in sizes.get(axis, {size}), (leaf, axis)


def test_no_row_is_idle():
    names = {name for spec in SPECS.values() for name in tree.flatten(shapes(spec))}
    for suffix, axes in AXES:
        assert any(logical_axes(name, [(suffix, axes)]) for name in names), suffix


def test_every_axis_has_a_rule_and_every_kernel_its_inputs():
    assert {axis for _, axes in AXES for axis in axes} <= dict(RULES).keys()
    for name in tree.flatten(shapes(SPECS["llama"], adapters=False)):
        if "blocks/" in name and name.endswith("/kernel"):
            assert (logical_axes(name, AXES) or ())[1:] in INPUTS
