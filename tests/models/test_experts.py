"""The sparse MLP against every expert computed for every token, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.models import lora
from jaxlm.models.experts import sparse
from jaxlm.models.transformer import make_forward

MIXTRAL = networks.spec(**networks.SHAPES["mixtral"])


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


def ours(x, weights, chosen, gate, up, down):
    kernels = {"gate": {"kernel": gate}, "up": {"kernel": up}, "down": {"kernel": down}}
    return sparse(x, weights, chosen, kernels, activation="silu")


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_the_chosen_experts_are_all_that_counts(chosen):
    x, weights, index, *kernels = arrays(chosen=chosen)
    cotangent = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def both(run):
        y, pullback = jax.vjp(
            lambda *given: run(given[0], given[1], index, *given[2:]), x, weights, *kernels
        )
        return {"y": y, "gradients": dict(enumerate(pullback(cotangent)))}

    found = both(ours)
    networks.assert_close(found, both(dense))


def test_an_expert_that_nobody_chooses_has_no_gradient():
    x, weights, index, *kernels = arrays()
    index = jnp.minimum(index, 2)
    gradient = jax.grad(lambda gate: ours(x, weights, index, gate, *kernels[1:]).sum())
    found = np.asarray(gradient(kernels[0]))
    assert not found[3].any() and found[0].any()


def adapted(params, at=None, **how):
    """The model with adapters of its experts that do something."""
    given = {"rank": 3, "alpha": 6.0, "targets": ["mlp"]} | how
    added = lora.add(params, at or networks.layout(), jax.random.key(2), **given)

    def moved(name, leaf):
        noise = np.random.default_rng([*name.encode()]).normal(size=leaf.shape)
        return leaf + 0.2 * jnp.asarray(noise, leaf.dtype) if "lora_b" in name[-6:] else leaf

    return tree.map_named(moved, added)


def hidden(params, spec=MIXTRAL):
    forward = make_forward(spec, networks.layout(), jnp.float32)
    return jax.jit(lambda p, b: forward.hidden(p, b, None)[0])(params, networks.batch())


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 2, "expert": 4},
        {"data": 2, "expert": 2, "tensor": 2},
    ],
    ids=str,
)
def test_a_mesh_changes_neither_loss_nor_gradient(mesh):
    """Of the experts' kernels and of their adapters."""
    batch, found = networks.batch(), []
    for at in (networks.layout(), networks.layout(**mesh)):
        params = adapted(networks.params(MIXTRAL, at), at, rank=3)
        found.append(jax.jit(jax.value_and_grad(networks.loss(MIXTRAL, at)))(params, batch))
    networks.assert_close(*found)


@pytest.mark.parametrize("form", [{}, {"rslora": True}, {"init": "pissa"}], ids=str)
def test_each_expert_has_an_adapter_of_its_own_which_merges(form):
    base = networks.params(MIXTRAL)
    params = adapted(base, **form)
    size = (MIXTRAL.layers, MIXTRAL.experts.count, 3, MIXTRAL.embed)
    assert tree.flatten(params)["decoder/blocks/experts/down/lora_b"].shape == size
    applied = hidden(params)
    assert np.abs(applied - hidden(base)).max() > 0.1
    np.testing.assert_allclose(hidden(lora.merge(params)), applied, atol=1e-4)


def test_adapters_of_experts_alone_train_and_begin_as_nothing():
    base = networks.params(MIXTRAL)
    start = lora.add(
        base, networks.layout(), networks.ROOT, rank=2, alpha=4.0, targets=["experts/(gate|down)"]
    )
    networks.assert_same(hidden(start), hidden(base))
    given = {"start": start, "trainable": [lora.TRAINED]}
    state, step = networks.trainer(MIXTRAL, optax.adamw(1e-2), **given)
    for _ in range(2):  # A has no gradient while B is 0
        state, _ = step(state, networks.batch())
    before, after = tree.flatten(start), tree.flatten(state.params)
    for name in before:
        assert np.any(before[name] != after[name]) == name.endswith(("lora_a", "lora_b")), name


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"dora": True}, "lora.dora"),
        ({"dropout": 0.1}, "lora.dropout"),
        ({"targets": ["experts/router"]}, "lora.targets"),
    ],
)
def test_what_adapters_of_experts_cannot_is_refused(given, key):
    with pytest.raises(ConfigError, match=rf"^{key}: decoder/blocks/experts/\w+/kernel "):
        adapted(networks.params(MIXTRAL), **given)


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
