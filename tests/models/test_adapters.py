import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.models import lora
from jaxlm.models.transformer import make_forward

SPEC = networks.spec(**networks.GPT2)
TARGETS = ["attn/(q|k|v|o)/kernel", "mlp/.*/kernel"]


@pytest.fixture(scope="module")
def base():
    return networks.params(SPEC)


def adapt(params, at=None, **changes):
    how = {"rank": 3, "alpha": 6.0, "targets": TARGETS} | changes
    return lora.add(params, at or networks.layout(), jax.random.key(2), **how)


@pytest.fixture(scope="module")
def trained(base):
    """Adapters that do something: B is not 0 any more."""

    def moved(name, leaf):
        noise = np.random.default_rng([*name.encode()]).normal(size=leaf.shape)
        return leaf + 0.2 * jnp.asarray(noise, leaf.dtype) if name.endswith("lora_b") else leaf

    return tree.map_named(moved, adapt(base))


def hidden(params):
    forward = make_forward(SPEC, networks.layout(), jnp.float32)
    return jax.jit(lambda p, b: forward.hidden(p, b, None)[0])(params, networks.batch())


def test_an_adapter_changes_nothing_at_its_start(base):
    networks.assert_same(hidden(adapt(base)), hidden(base))


def test_merged_equals_applied(base, trained):
    applied = np.asarray(hidden(trained))
    assert np.abs(applied - np.asarray(hidden(base))).max() > 0.1
    merged = lora.merge(trained)
    assert tree.flatten(merged).keys() == tree.flatten(base).keys()
    np.testing.assert_allclose(hidden(merged), applied, atol=1e-4)


def test_what_is_merged_is_the_scaled_product(base, trained):
    leaves, merged = tree.flatten(trained), tree.flatten(lora.merge(trained))
    beside = "decoder/blocks/attn/o/"
    a, b = (np.asarray(leaves[beside + f"lora_{part}"], np.float64) for part in "ab")
    right = leaves[beside + "kernel"] + 6.0 / 3 * np.einsum("lnhr,lre->lnhe", a, b)
    np.testing.assert_allclose(merged[beside + "kernel"], right, atol=1e-5)


def test_only_targets_get_one(base):
    added = tree.flatten(adapt(base, targets=["attn/(q|v)/kernel"])).keys() - tree.flatten(base)
    parts = ("lora_a", "lora_b", "lora_scale")
    assert added == {f"decoder/blocks/attn/{x}/{part}" for x in "qv" for part in parts}


@pytest.mark.parametrize("targets", [["attn/(x|y)/kernel"], ["embedding"], ["attn/q/bias"]])
def test_targets_that_are_no_kernel_are_refused(base, targets):
    with pytest.raises(ConfigError, match=r"^lora.targets: "):
        adapt(base, targets=targets)


def test_training_moves_the_adapters_alone(base):
    start = adapt(base)
    state, step = networks.trainer(SPEC, optax.adamw(1e-2), start=start, trainable=["lora_(a|b)$"])
    for _ in range(2):  # A has no gradient while B is 0
        state, _ = step(state, networks.batch())
    before, after = tree.flatten(start), tree.flatten(state.params)
    for name in before:
        assert np.any(before[name] != after[name]) == name.endswith(("lora_a", "lora_b")), name
    moments = [name for name in tree.flatten(state.opt_state) if "kernel" in name]
    assert moments == []


def test_adapters_are_the_same_on_every_mesh_and_lie_as_their_kernels(base):
    at = networks.layout(fsdp=2, tensor=4)
    split = adapt(networks.params(SPEC, at), at)
    networks.assert_same(split, adapt(base))
    specs = {name: tuple(leaf.sharding.spec) for name, leaf in tree.flatten(split).items()}
    assert specs["decoder/blocks/attn/q/lora_b"][2] == "tensor"
    assert specs["decoder/blocks/mlp/up/lora_a"][1] == "fsdp"
