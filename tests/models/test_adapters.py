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
MOVED = ("lora_a", "lora_b", "lora_m")
FORMS = [{"dora": True}, {"init": "pissa"}, {"init": "pissa", "dora": True, "rslora": True}]
KEYS = jax.random.split(networks.ROOT, networks.ROWS)


@pytest.fixture(scope="module")
def base():
    return networks.params(SPEC)


def adapt(params, at=None, **changes):
    how = {"rank": 3, "alpha": 6.0, "targets": TARGETS} | changes
    return lora.add(params, at or networks.layout(), jax.random.key(2), **how)


def moved(params):
    """Adapters that do something: B is not 0, nor a magnitude its kernel's."""

    def one(name, leaf):
        noise = np.random.default_rng([*name.encode()]).normal(size=leaf.shape)
        return leaf + 0.2 * jnp.asarray(noise, leaf.dtype) if name[-6:] in MOVED else leaf

    return tree.map_named(one, params)


@pytest.fixture(scope="module")
def trained(base):
    return moved(adapt(base))


def hidden(params, keys=None, spec=SPEC):
    forward = make_forward(spec, networks.layout(), jnp.float32)
    run = jax.jit(lambda p, b: forward.hidden(p, b, keys)[0])
    return np.asarray(run(params, networks.batch()))


def test_an_adapter_changes_nothing_at_its_start(base):
    networks.assert_same(hidden(adapt(base)), hidden(base))


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_begin_where_the_base_is(base, form):
    np.testing.assert_allclose(hidden(adapt(base, **form)), hidden(base), atol=2e-5)
    networks.assert_same(lora.without(adapt(base, **form)), base)


@pytest.mark.parametrize("form", [{}, *FORMS])
def test_merged_equals_applied(base, form):
    adapted = moved(adapt(base, **form))
    applied = hidden(adapted)
    assert np.abs(applied - hidden(base)).max() > 0.1
    merged = lora.merge(adapted)
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


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("attention", {"attn/q", "attn/k", "attn/v", "attn/o"}),
        ("mlp", {"mlp/up", "mlp/down"}),
        ("all-linear", {"attn/q", "attn/k", "attn/v", "attn/o", "mlp/up", "mlp/down"}),
    ],
)
def test_targets_have_names(base, target, parts):
    found = lora.select(base, [target])
    assert {name[len("decoder/blocks/") : -len("/kernel")] for name in found} == parts


def test_named_targets_are_of_every_stack():
    for shape in (networks.PAIRS["t5"], networks.ENCODERS["bert"]):
        params = networks.params(networks.spec(**shape))
        found = lora.select(params, ["all-linear"])
        kernels = {name for name in tree.flatten(params) if "blocks/" in name}
        assert set(found) == {name for name in kernels if name.endswith("/kernel")}


def test_a_rank_that_is_more_than_a_kernel_has_is_refused(base):
    with pytest.raises(ConfigError, match=r"^lora.rank: 33 is more than decoder.* has; use 32 or"):
        adapt(base, rank=33)


def test_a_name_that_is_none_is_told_the_known_ones(base):
    with pytest.raises(ConfigError, match="'atention' .* attention, mlp, all-linear"):
        adapt(base, targets=["atention"])


def test_rank_stabilized_scales_by_its_root(base):
    leaves = tree.flatten(adapt(base, rank=4, alpha=6.0, rslora=True))
    assert set(leaves["decoder/blocks/attn/q/lora_scale"].tolist()) == {3.0}


def test_pissa_takes_the_first_singular_vectors(base):
    leaves = tree.flatten(adapt(base, init="pissa", rank=3, alpha=6.0))
    kernel = np.asarray(leaves["decoder/blocks/mlp/up/kernel"][1], np.float64)
    a, b = (np.asarray(leaves[f"decoder/blocks/mlp/up/lora_{part}"][1]) for part in "ab")
    values = np.linalg.svd(kernel, compute_uv=False)
    left = np.linalg.svd(kernel - 6.0 / 3 * a @ b, compute_uv=False)
    np.testing.assert_allclose(left[: len(values) - 3], values[3:], atol=1e-5)
    with pytest.raises(ConfigError, match=r"^lora.rank: 33 is more than"):
        adapt(base, init="pissa", rank=33)


def test_a_magnitude_is_the_norm_of_the_merged_column(base):
    adapted = moved(adapt(base, dora=True))
    before, after = tree.flatten(adapted), tree.flatten(lora.merge(adapted))
    kernel = np.asarray(after["decoder/blocks/attn/o/kernel"], np.float64)
    norms = np.linalg.norm(kernel.reshape(2, -1, kernel.shape[-1]), axis=1)
    magnitude = before["decoder/blocks/attn/o/lora_m"]
    np.testing.assert_allclose(norms, np.abs(magnitude), rtol=1e-5)


def test_training_moves_the_parts_that_train_alone(base):
    start = adapt(base, init="pissa", dora=True, dropout=0.1)
    state, step = networks.trainer(SPEC, optax.adamw(1e-2), start=start, trainable=[lora.TRAINED])
    state, _ = step(state, networks.batch())
    before, after = tree.flatten(start), tree.flatten(state.params)
    for name in before:
        assert np.any(before[name] != after[name]) == name.endswith(MOVED), name


@pytest.mark.parametrize("shape", [SPEC, networks.spec(**networks.PAIRS["t5"])])
def test_what_an_adapter_drops_is_each_rows_own_and_nothing_without_keys(shape):
    params = moved(adapt(networks.params(shape), targets=["all-linear"], dropout=0.5))
    bare = tree.flatten(params)
    kept = tree.unflatten({name: x for name, x in bare.items() if not name.endswith("lora_drop")})
    batch = networks.batch() | {"source": networks.batch()["tokens"][:, ::-1]}
    batch |= {"source_positions": batch["positions"], "source_segments": batch["segments"]}
    forward = make_forward(shape, networks.layout(), jnp.float32)
    run = jax.jit(lambda p, keys, b: forward.hidden(p, b, keys)[0])
    networks.assert_same(run(params, None, batch), run(kept, None, batch))
    noisy = np.asarray(run(params, KEYS, batch))
    assert np.abs(noisy - run(kept, KEYS, batch)).max() > 0.1
    turned = run(params, KEYS[::-1], {name: rows[::-1] for name, rows in batch.items()})
    np.testing.assert_allclose(turned[::-1], noisy, atol=1e-5)


@pytest.mark.parametrize(("dropout", "products"), [(0.0, 4 + 7), (0.5, 7 + 7)])
def test_what_one_input_is_multiplied_with_is_one_product(dropout, products):
    spec = networks.spec(gated=True)
    params = adapt(networks.params(spec), targets=["all-linear"], dropout=dropout)
    forward = make_forward(spec, networks.layout(), jnp.float32)

    def count(params):
        run = jax.jit(lambda p, b: forward.hidden(p, b, KEYS)[0])
        return run.lower(params, networks.batch()).as_text().count("dot_general")

    assert count(params) - count(lora.without(params)) == products  # of A and of B
