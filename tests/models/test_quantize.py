"""Frozen kernels in 8 and 4 bits: how near they are, and that none is whole for long."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.models import lora, quantize
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import param_shapes

SPEC = networks.spec(embed=64)
MIXTRAL = networks.spec(**networks.SHAPES["mixtral"], layers=1)
KINDS = pytest.mark.parametrize("kind", quantize.KINDS)
ADAMW = optax.adamw(1e-2)
BATCH = networks.batch(2, 8)


@partial(jax.jit, static_argnums=1)
def quantized(params, kind):
    """The parameters with every kernel of a block as `kind` has it."""
    made = {}
    for name, leaf in tree.flatten(params).items():
        if not re.search(quantize.KERNELS, name):
            made[name] = leaf
            continue
        parts = quantize.over_slices(name, partial(quantize.quantize, kind=kind), leaf)
        made |= {name.removesuffix("kernel") + part: x for part, x in parts.items()}
    return tree.unflatten(made)


@jax.jit
def whole(params):
    """The parameters with kernels that are what quantized ones stand for."""
    kernels = quantize.gathered(params)
    return tree.unflatten({n: quantize.dequantize(x, jnp.float32) for n, x in kernels.items()})


def adapted(params, **how):
    given = {"rank": 2, "alpha": 4.0, "targets": ["attn/o", "mlp/up"]} | how
    return lora.add(params, networks.layout(), jax.random.key(2), **given)


@pytest.fixture(scope="module")
def base():
    return networks.params(SPEC)


@pytest.mark.parametrize(("kind", "bits", "most"), [("int8", 8.07, 0.008), ("nf4", 4.2, 0.094)])
@pytest.mark.parametrize(("size", "inputs"), [((512, 4, 64), 1), ((8, 64, 256), 2)])
def test_a_kernel_is_near_what_it_was_in_few_bits(kind, bits, most, size, inputs):
    kernel = jax.random.normal(jax.random.key(0), size)
    made = quantize.quantize(kernel, kind, inputs)
    error = quantize.dequantize(made, jnp.float32) - kernel
    assert float(jnp.sqrt(jnp.square(error).mean())) < most
    assert 8 * tree.nbytes(made) / kernel.size < bits
    assert quantize.shape(made) == size and quantize.total(made) == kernel.size


def test_nf4_takes_the_nearest_of_the_quantiles_of_its_block():
    kernel = np.asarray(jax.random.normal(jax.random.key(0), (128, 3)))
    made = quantize.quantize(jnp.asarray(kernel), "nf4", 1)
    unit = np.float32(made["kernel_block"]) * np.asarray(made["kernel_scale"])
    unit = np.repeat(unit, 64, 0)
    values = np.array(quantize.NF4)
    distance = np.abs(kernel[..., None] - values * unit[..., None])
    nearest = values[distance.argmin(-1)] * unit
    np.testing.assert_allclose(quantize.dequantize(made, jnp.float32), nearest, rtol=1e-5)
    largest = np.abs(kernel.reshape(2, 64, 3)).max(1)
    np.testing.assert_allclose(unit[::64], largest, atol=largest.max() / 255)


@KINDS
def test_zeros_stay_zeros(kind):
    made = quantize.quantize(jnp.zeros((64, 2)), kind, 1)
    assert not np.asarray(quantize.dequantize(made, jnp.float32)).any()


@pytest.mark.parametrize(("kind", "shape"), [("int8", SPEC), ("nf4", MIXTRAL)])
def test_a_quantized_network_computes_with_what_its_kernels_stand_for(kind, shape):
    params = quantized(networks.params(shape), kind)
    assert any(n.endswith(f"kernel_{kind}") for n in tree.flatten(params))
    loss = lambda x, p: networks.loss(shape)(p | {"embed": {"embedding": x}}, BATCH)  # noqa: E731
    run, x = jax.jit(jax.value_and_grad(loss)), params["embed"]["embedding"]
    (found, slope), (right, true) = run(x, params), run(x, whole(params))
    np.testing.assert_allclose(found, right, rtol=1e-6)
    networks.assert_close({"x": slope}, {"x": true}, 1e-5)


def test_adapters_train_and_the_quantized_base_is_bit_for_bit_what_it_was(base):
    start = adapted(quantized(base, "nf4"), dora=True)
    state, step = networks.trainer(SPEC, ADAMW, start=start, trainable=[lora.TRAINED])
    for _ in range(2):
        state, _ = step(state, BATCH)
    networks.assert_same(lora.without(state.params), quantized(base, "nf4"))
    merged = jax.jit(lora.merge)(state.params)
    assert tree.flatten(merged).keys() == tree.flatten(base).keys()
    loss = jax.jit(networks.loss(SPEC))
    applied, found = (loss(params, BATCH) for params in (state.params, merged))
    assert abs(applied - loss(start, BATCH)) > 0.05
    assert float(found) == pytest.approx(float(applied), rel=2e-3)  # merged, it is bfloat16


@pytest.mark.parametrize("shape", [networks.spec(embed=64, layers=3), MIXTRAL])
def test_nothing_of_a_quantized_kernel_is_kept_for_the_backward_pass(shape):
    shape = shape.model_copy(update={"remat": "none"})  # nor where all that is computed is kept
    params = networks.params(shape)
    kernels = {x.size for n, x in tree.flatten(params).items() if re.search(quantize.KERNELS, n)}
    start = adapted(quantized(params, "nf4"), targets=["attn/[qo]"], dora=True)
    live, frozen = tree.partition(start, tree.select(start, [lora.TRAINED]))
    batch = networks.batch(3, 7)
    loss = lambda live: networks.loss(shape)(tree.combine(live, frozen), batch)  # noqa: E731
    saved = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(loss, x)[1], live))
    floats = [x.size for x in saved if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) > 10 and not kernels & {*floats, *(shape.layers * n for n in floats)}


@pytest.mark.parametrize(("axis", "experts"), [("fsdp", 0), ("expert", 2)])
def test_quantized_kernels_lie_as_the_whole_ones_do(axis, experts):
    at, one = networks.layout(**{"data": 2, axis: 2, "tensor": 2}), networks.layout()
    shape = {"embed": 128, "heads": 2, "kv_heads": 2, "mlp": 256, "layers": 1}
    small = networks.spec(**shape, experts={"count": experts})
    found = param_shapes(small, at, jnp.float32)
    params = quantized(networks.params(small), "nf4")
    placed = jax.device_put(params, at.shardings(params, AXES))
    lies = {name: leaf.sharding.spec for name, leaf in tree.flatten(placed).items()}
    for name, kernel in tree.flatten(found).items():
        if re.search(quantize.KERNELS, name):
            quantize.check(name, kernel, "nf4", at)
            codes = name.removesuffix("kernel") + "kernel_nf4"
            assert lies[codes] == kernel.sharding.spec, name
    batch = networks.batch(4, 8)
    losses = [
        jax.jit(networks.loss(small, where))(given, networks.placed(batch, where))
        for where, given in ((one, params), (at, placed))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_what_cannot_be_stored_or_split_is_refused():
    at = networks.layout(fsdp=8)
    odd = jax.ShapeDtypeStruct((2, 34, 4, 8), jnp.float32)
    with pytest.raises(ConfigError, match=r"^frozen_dtype: nf4 needs inputs of a multiple of 4"):
        quantize.check("decoder/blocks/attn/q/kernel", odd, "nf4", at)
    few = jax.ShapeDtypeStruct((2, 128, 4, 8), jnp.float32)
    with pytest.raises(ConfigError, match="do not split over 8 devices"):
        quantize.check("decoder/blocks/attn/q/kernel", few, "nf4", at)
    quantize.check("decoder/blocks/attn/q/kernel", few, "int8", at)


def test_loftq_begins_nearer_to_the_whole_model(base):
    leaves = {n: x for n, x in tree.flatten(base).items() if n.endswith(("o/kernel", "up/kernel"))}
    made, base = {}, tree.unflatten(leaves)
    for name, leaf in leaves.items():
        one = partial(lora.compensated, kind="nf4", rank=8, scale=2.0)
        parts = quantize.over_slices(name, one, leaf)
        made |= {name.removesuffix("kernel") + part: x for part, x in parts.items()}
    begun = adapted(tree.unflatten(made), rank=8, alpha=16.0, init="loftq")
    networks.assert_same(lora.without(begun), quantized(base, "nf4"))
    plain = adapted(quantized(base, "nf4"), rank=8, alpha=16.0)
    right, near, far = (merged_kernels(p) for p in (base, begun, plain))
    for name, kernel in right.items():
        lost = [np.linalg.norm(np.asarray(p[name], np.float32) - kernel) for p in (near, far)]
        assert lost[0] < 0.9 * lost[1], name
    # What leaves for the whole base is without what the adapter began as: nothing, here.
    leaves = tree.flatten(begun) | tree.flatten(base)
    parts = quantize.PARTS
    gone = tree.unflatten({n: x for n, x in leaves.items() if n.rpartition("/")[2] not in parts})
    networks.assert_close(lora.merge(gone), base, 1e-5)


def merged_kernels(params):
    merged = tree.flatten(jax.jit(lora.merge)(params))
    return {n: np.asarray(x, np.float32) for n, x in merged.items() if n.endswith("kernel")}
