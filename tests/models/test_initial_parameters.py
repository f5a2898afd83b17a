import math

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import init_params, param_shapes

SPEC = networks.spec(**networks.GPT2, tied=False, init_scale=0.05)


@pytest.fixture(scope="module")
def leaves():
    return tree.flatten(init_params(SPEC, networks.layout(), jax.random.key(3), jnp.float32))


def test_weights_are_normal_and_residual_outputs_smaller_with_depth(leaves):
    """Radford et al. 2019, section 2.3: over sqrt(2 x layers)."""
    for name, leaf in leaves.items():
        if name.endswith(("kernel", "embedding")):
            residual = name.endswith(("attn/o/kernel", "mlp/down/kernel"))
            right = 0.05 / math.sqrt(2 * SPEC.layers) if residual else 0.05
            assert np.std(leaf) == pytest.approx(right, rel=0.1), name
            assert abs(np.mean(leaf)) < 0.1 * right, name


def test_scales_are_one_and_biases_zero(leaves):
    found = {name: leaf for name, leaf in leaves.items() if name.endswith(("scale", "bias"))}
    assert len(found) == 12
    for name, leaf in found.items():
        assert np.all(leaf == (1.0 if name.endswith("scale") else 0.0)), name


def test_no_two_layers_or_kernels_are_alike(leaves):
    kernels = [leaf for name, leaf in leaves.items() if "attn" in name and "kernel" in name]
    layers = {np.asarray(layer).tobytes() for leaf in kernels for layer in leaf}
    assert len(layers) == 4 * SPEC.layers


def test_a_mesh_makes_the_same_bits_where_they_lie(leaves):
    at = networks.layout(data=2, fsdp=2, tensor=2)
    found = init_params(SPEC, at, jax.random.key(3), jnp.float32)
    networks.assert_same(tree.flatten(found), leaves)
    shapes = param_shapes(SPEC, at, jnp.float32)
    for leaf, shape in zip(jax.tree.leaves(found), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
    table = found["embed"]["embedding"]
    wanted = at.sharding(dict(AXES)["embed/embedding"])
    assert table.sharding.is_equivalent_to(wanted, table.ndim)


def test_parameters_are_stored_in_the_type_that_is_asked_for():
    shapes = jax.tree.leaves(param_shapes(SPEC, networks.layout(), jnp.bfloat16))
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype(jnp.bfloat16)}
