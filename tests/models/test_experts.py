"""The sparse MLP against every expert computed for every token, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.models.experts import sparse
from jaxlm.models.transformer import make_forward


def arrays(tokens=24, count=4, chosen=2, embed=8, hidden=12):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    x, weights = normal(2, tokens // 2, embed), jnp.abs(normal(2, tokens // 2, chosen))
    index = np.stack([rng.permutation(count)[:chosen] for _ in range(tokens)])
    kernels = (
        normal(count, embed, hidden),
        normal(count, embed, hidden),
        normal(count, hidden, embed),
    )
    return x, weights, jnp.asarray(index.reshape(2, -1, chosen), jnp.int32), *kernels


def dense(x, weights, chosen, gate, up, down):
    """All experts for all tokens, weighted with 0 where they are not chosen."""
    hidden = jax.nn.silu(jnp.einsum("bld,edf->blef", x, gate)) * jnp.einsum("bld,edf->blef", x, up)
    each = jnp.einsum("blef,efd->bled", hidden, down)
    share = (jax.nn.one_hot(chosen, gate.shape[0]) * weights[..., None]).sum(2)
    return jnp.einsum("bled,ble->bld", each, share)


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_the_chosen_experts_are_all_that_counts(chosen):
    x, weights, index, *kernels = arrays(chosen=chosen)
    cotangent = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def both(run):
        y, pullback = jax.vjp(
            lambda *given: run(given[0], given[1], index, *given[2:]), x, weights, *kernels
        )
        return {"y": y, "gradients": dict(enumerate(pullback(cotangent)))}

    found = both(lambda *given: sparse(*given, activation="silu"))
    networks.assert_close(found, both(dense))


def test_an_expert_that_nobody_chooses_has_no_gradient():
    x, weights, index, *kernels = arrays()
    index = jnp.minimum(index, 2)
    gradient = jax.grad(
        lambda gate: sparse(x, weights, index, gate, *kernels[1:], activation="silu").sum()
    )
    found = np.asarray(gradient(kernels[0]))
    assert not found[3].any() and found[0].any()


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_changes_neither_loss_nor_gradient(mesh):
    spec = networks.spec(**networks.SHAPES["mixtral"])
    batch = networks.batch()
    one, many = (networks.layout(**sizes) for sizes in ({}, mesh))
    found = [
        jax.jit(jax.value_and_grad(networks.loss(spec, at)))(networks.params(spec, at), batch)
        for at in (one, many)
    ]
    networks.assert_close(*found)


def test_weights_of_the_chosen_sum_to_one_or_are_shares_of_all():
    """Scaled by hand: with one chosen expert, normalized weights are 1."""
    specs = [
        networks.spec(layers=1, experts={"count": 3, "chosen": 1, "normalized": n})
        for n in (True, False)
    ]
    params, batch = networks.params(specs[0]), networks.batch()
    router = "decoder/blocks/experts/router/kernel"
    flat = tree.flatten(params)
    flat[router] = jnp.zeros_like(flat[router])  # shares of 1/3
    even = tree.unflatten(flat)
    tripled = {
        name: leaf * 3 if name.endswith("experts/down/kernel") else leaf
        for name, leaf in tree.flatten(even).items()
    }
    hidden = [
        make_forward(spec, networks.layout(), jnp.float32).hidden(each, batch, None)[0]
        for spec, each in zip(specs, (even, tree.unflatten(tripled)), strict=True)
    ]
    np.testing.assert_allclose(*hidden, atol=1e-5)
