"""In a bfloat16 step every product has bfloat16 operands, forward and backward: with float32 ones
an accelerator would be several times slower."""

import re

import jax
import jax.numpy as jnp
import networks
import optax
import pytest

from jaxlm.models import lora

SPECS = {
    "llama": networks.spec(),
    "gpt2": networks.spec(**networks.GPT2, tied=False),
    "full attention": networks.spec(attention="full"),
}


def products(step, state, batch):
    """How many dot_generals of the lowered program have (bfloat16, float32) operands."""
    text = step.lower(state, batch).as_text()
    kinds = re.findall(r"dot_general.* : \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text)
    assert len(kinds) == text.count("stablehlo.dot_general")
    assert all(left == right for left, right in kinds)
    return tuple(sum(left == kind for left, _ in kinds) for kind in ("bf16", "f32"))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_no_product_of_the_step_has_float32_operands(name, microbatches):
    step = networks.trainer(
        SPECS[name], optax.adamw(1e-3), dtype=jnp.bfloat16, microbatches=microbatches
    )
    halves, floats = products(step[1], step[0], networks.batch())
    assert floats == 0
    # Each weight has one product forward and two backward, and attention 2 and at least 4.
    weights = 7 if SPECS[name].gated else 6
    assert halves >= 3 * (weights + 1) + 6


def test_adapters_are_applied_in_bfloat16_too():
    spec, at = networks.spec(), networks.layout()
    targets = {"rank": 4, "alpha": 8.0, "targets": ["kernel"]}
    start = lora.add(networks.params(spec), at, networks.ROOT, **targets)
    adapters = {"start": start, "trainable": ["lora_(a|b)"], "dtype": jnp.bfloat16}
    state, step = networks.trainer(spec, networks.sgd(), **adapters)
    assert products(step, state, networks.batch())[1] == 0


def test_a_bfloat16_step_is_the_float32_step_but_for_rounding():
    spec, batch = networks.spec(), networks.batch()
    (state, exact), (_, step) = (
        networks.trainer(spec, networks.sgd(), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    (right, sums), (found, rounded) = exact(state, batch), step(state, batch)
    assert float(rounded["loss"]) == pytest.approx(float(sums["loss"]), rel=1e-2)
    moved, should = (jax.tree.map(jnp.subtract, s.params, state.params) for s in (found, right))
    networks.assert_close(moved, should, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float32")}
