"""FLOPs per token of every structure, against what XLA counts."""

import jax
import jax.numpy as jnp
import networks
import pytest

from jaxlm.core import tree
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import make_forward
from jaxlm.training.facts import facts

LENGTH, SOURCE, ROWS = 64, 96, 2
COLUMNS = {"tokens": LENGTH, "targets": LENGTH, "source": SOURCE}


def of(structure):
    """A spec whose loops are unrolled, for XLA counts a loop's body once."""
    shape = {"layers": 2, "embed": 64, "heads": 4, "kv_heads": 2, "mlp": 96, "unroll": 2}
    how = {"structure": structure, "attention": "full", "remat": "none"}
    return ModelSpec.model_validate(shape | how).filled(vocab=128, max_length=SOURCE)


def counted(spec, params, trains):
    """FLOPs of logits and gradients as XLA has them, the halves that causal attention leaves out
    excepted.
    """
    live, frozen = tree.partition(params, trains)
    forward = make_forward(spec, networks.layout(), jnp.float32)
    ones, source = jnp.ones((ROWS, LENGTH), jnp.int32), jnp.ones((ROWS, SOURCE), jnp.int32)
    batch = {"tokens": ones, "positions": ones}
    if spec.structure == "encoder-decoder":
        batch |= {"source": source, "source_positions": source}

    def loss(live):
        params = tree.combine(live, frozen)
        x, _ = forward.hidden(params, batch, None)
        return (forward.logits(forward.head(params), x) ** 2).sum()

    whole = jax.jit(jax.grad(loss)).lower(live).cost_analysis()["flops"]
    causal = 0 if spec.structure == "encoder" else spec.layers * LENGTH / 2
    row = whole / ROWS - 12 * causal * LENGTH * spec.heads * spec.head_dim
    return row / (LENGTH + (SOURCE if spec.structure == "encoder-decoder" else 0))


@pytest.mark.parametrize("structure", ["decoder", "encoder", "encoder-decoder"])
def test_flops_are_those_of_the_program(structure):
    spec = of(structure)
    params = networks.params(spec)
    every = frozenset(tree.flatten(params))
    live, frozen = tree.partition(params, every)
    found = facts(live, frozen, spec, COLUMNS)["flops_per_token"]
    # The rest is no product: norms, softmax, rotations.
    assert 0.85 < found / counted(spec, params, every) < 1


@pytest.mark.parametrize("trains", [r"^encoder/", r"^decoder/"])
def test_a_frozen_encoder_is_forward_alone_unless_a_gradient_goes_through_it(trains):
    spec = of("encoder-decoder")
    params = networks.params(spec)
    mask = tree.select(params, (trains,))
    found = facts(*tree.partition(params, mask), spec, COLUMNS)["flops_per_token"]
    assert 0.85 < found / counted(spec, params, mask) < 1.02


def test_a_source_is_as_long_as_the_target_if_nothing_is_said():
    spec = of("encoder-decoder")
    params = networks.params(spec)
    found = [
        facts(params, {}, spec, {"tokens": LENGTH, "targets": LENGTH, **more})["flops_per_token"]
        for more in ({}, {"source": LENGTH})
    ]
    assert found[0] == found[1]


def test_a_head_costs_at_the_positions_that_it_reads():
    spec = of("encoder")
    params = networks.params(spec)
    few, all_ = (
        facts(params, {}, spec, {"tokens": LENGTH, "targets": n})["flops_per_token"]
        for n in (16, LENGTH)
    )
    assert all_ - few == 6 * spec.vocab * spec.embed * 0.75
    none = facts(params, {}, spec, {"tokens": LENGTH})["flops_per_token"]  # texts are compared
    assert all_ - none == 6 * spec.vocab * spec.embed
