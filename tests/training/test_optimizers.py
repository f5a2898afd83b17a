import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from jaxlm.config import optimizers as keys
from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.models.axes import AXES
from jaxlm.training import optim

SPEC = networks.spec(**networks.GPT2, tied=False)
FLAT = {"schedule": keys.Constant(), "weight_decay": 0.0, "clip": None, "learning_rate": 1e-2}
SECTIONS = {
    "adamw": keys.AdamW(**FLAT),
    "lion": keys.Lion(**FLAT),
    "adafactor": keys.Adafactor(**FLAT, b1=0.9),
    "muon": keys.Muon(**FLAT),
    "schedule_free_adamw": keys.ScheduleFreeAdamW(**FLAT),
}


@pytest.fixture(scope="module")
def params():
    return networks.params(SPEC)


def build(name, params, **changes):
    section = SECTIONS[name].model_copy(update=changes)
    return optim.build(section, params, steps=100, axes=AXES)


def updated(tx, gradients, params, steps=1):
    """(parameters, state) after so many updates with the same gradients."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_learns(name):
    spec = networks.spec(layers=1)
    tx = build(name, networks.params(spec)).tx
    state, step = networks.trainer(spec, tx)
    losses = []
    for _ in range(15):
        state, sums = step(state, networks.batch())
        losses.append(float(sums["loss"] / sums["weight"]))
    assert losses[-1] < 0.8 * losses[0]


def test_adamw_is_exact_where_a_moment_is_young():
    """Loshchilov & Hutter 2019 in float64: 1 - 0.999^t has few digits in float32."""
    slopes = np.random.default_rng(0).normal(size=(8, 50))
    params, first, second = {"kernel": jnp.zeros(50)}, 0.0, 0.0
    tx = build("adamw", params, b2=0.999).tx
    state, update = tx.init(params), jax.jit(tx.update)
    for t, slope in enumerate(slopes, 1):
        moved, state = update({"kernel": jnp.asarray(slope, jnp.float32)}, state, params)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        right = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(np.median(moved["kernel"] / right), -1e-2, rtol=1e-6)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_decay_is_the_rate_times_the_weight_and_spares_names(name, params):
    """Without a gradient nothing else moves a parameter."""
    exempt = ("norm", "bias$", "embed/embedding$")
    tx = build(name, params, weight_decay=0.5, no_decay=exempt).tx
    after, _ = updated(tx, jax.tree.map(jnp.zeros_like, params), params)

    def right(leaf, x):
        spared = "norm" in leaf or leaf.endswith("bias") or leaf == "embed/embedding"
        return x if spared else x * (1 - 1e-2 * 0.5)

    networks.assert_close(after, tree.map_named(right, params), 1e-6)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_paths_of_the_state_end_in_names_of_parameters(name, params):
    names = tree.flatten(params)
    state = tree.flatten(jax.eval_shape(build(name, params, clip=1.0).tx.init, params))
    arrays = {path: leaf for path, leaf in state.items() if leaf.ndim}
    arrays = {path: leaf for path, leaf in arrays.items() if not path.endswith("ns_coeffs")}
    found = {name for name in names for path in arrays if path.endswith(f"/{name}")}
    assert found == names.keys()
    assert all(any(path.endswith(f"/{name}") for name in names) for path in arrays)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_the_first_moment_can_be_bfloat16(name, params):
    sizes = {
        dtype: tree.nbytes(jax.eval_shape(build(name, params, state_dtype=dtype).tx.init, params))
        for dtype in ("float32", "bfloat16")
    }
    assert sizes["float32"] - sizes["bfloat16"] == tree.nbytes(params) // 2


def test_clipping_bounds_the_norm_of_the_gradient_and_keeps_its_direction(params):
    tables = {"embed": params["embed"], "head": params["head"]}
    tx = build("adamw", tables, clip=0.5, b1=0.0).tx
    first = optax.tree.get(updated(tx, tables, tables)[1], "mu")
    assert float(optax.tree.norm(first)) == pytest.approx(0.5, rel=1e-5)
    networks.assert_close(first, jax.tree.map(lambda x: x * 0.5 / optax.tree.norm(tables), tables))


def test_muon_turns_each_layers_matrix_into_an_orthogonal_one(params):
    """Rows and columns as the network multiplies them, whatever the rank of the stored array."""
    after, _ = updated(build("muon", params).tx, params, params)
    shapes = {"attn/q": (32, 32), "attn/o": (32, 32), "mlp/up": (32, 128), "mlp/down": (128, 32)}
    for name, shape in shapes.items():
        old, new = (tree.flatten(p)[f"decoder/blocks/{name}/kernel"] for p in (params, after))
        for layer in np.asarray(old - new):
            values = np.linalg.svd(layer.reshape(shape) / 1e-2, compute_uv=False)
            size = 0.2 * np.sqrt(max(shape))  # Liu et al. 2025, eq. 4
            assert 0.5 * size < values.min() and values.max() < 1.3 * size


def test_muon_treats_layers_apart_and_the_rest_as_adamw(params):
    together, _ = updated(build("muon", params).tx, params, params, steps=2)
    first, found = ({"blocks": p["decoder"]["blocks"]} for p in (params, together))
    first, found = (jax.tree.map(lambda x: x[:1], blocks) for blocks in (first, found))
    networks.assert_close(found, updated(build("muon", first).tx, first, first, steps=2)[0])

    def others(params):
        table = {"positions": params["decoder"]["positions"]}
        return {"embed": params["embed"], "head": params["head"], "decoder": table}

    rest = others(params)
    adamw = optax.adamw(1e-2, 0.9, 0.95, weight_decay=0.0, nesterov=True)
    right, _ = updated(adamw, rest, rest, steps=2)
    networks.assert_close(others(together), right)


def test_schedule_free_averages_as_it_is_defined():
    """Defazio et al. 2024, algorithm 1, in float64, for the loss |y|^2 / 2 with weight decay."""
    start = np.array([3.0, -2.0, 0.5])
    changes = {"b1": 0.8, "b2": 0.9, "weight_decay": 0.1, "no_decay": ()}
    made = build("schedule_free_adamw", {"w": jnp.asarray(start, jnp.float32)}, **changes)
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = made.tx.init(params)
    x = y = z = start
    v = np.zeros(3)
    for t in range(1, 8):
        v = 0.9 * v + 0.1 * y**2
        z = z - 1e-2 * (y / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + 0.1 * y)
        x = (1 - 1 / t) * x + z / t
        y = 0.2 * z + 0.8 * x
        updates, state = made.tx.update(params, state, params)  # the gradient of |y|^2 / 2 is y
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], y, rtol=1e-5)
    np.testing.assert_allclose(made.averaged(state, params)["w"], x, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in optim.OPTIMIZERS if "free" not in name])
def test_where_nothing_is_averaged_the_parameters_are_used(name, params):
    assert build(name, params).averaged(None, params) is params


def test_schedule_free_refuses_parameters_too_coarse_to_average():
    half = networks.params(SPEC, dtype=jnp.bfloat16)
    with pytest.raises(ConfigError, match=r"^param_dtype: .* use param_dtype=float32$"):
        build("schedule_free_adamw", half)


def test_every_section_of_the_config_has_its_optimizer():
    assert SECTIONS.keys() == optim.OPTIMIZERS.keys()
    assert all(section.type == name for name, section in SECTIONS.items())


@pytest.mark.parametrize("name", [n for n in optim.OPTIMIZERS if n != "schedule_free_adamw"])
def test_the_b_of_adapters_has_its_own_rate(name):
    leaves = {"blocks": {"q": {part: jnp.ones((2, 4, 8)) for part in ("lora_a", "lora_b")}}}
    moves = []
    for b_rate in (1.0, 16.0):
        made = optim.build(SECTIONS[name], leaves, steps=100, axes=AXES, b_rate=b_rate)
        after, _ = updated(made.tx, jax.tree.map(lambda x: 0.1 * x, leaves), leaves)
        moves.append(tree.flatten(jax.tree.map(lambda new, old: new - old, after, leaves)))
    np.testing.assert_allclose(moves[1]["blocks/q/lora_a"], moves[0]["blocks/q/lora_a"])
    np.testing.assert_allclose(
        moves[1]["blocks/q/lora_b"], 16 * moves[0]["blocks/q/lora_b"], rtol=1e-4
    )


def test_schedule_free_has_one_rate(params):
    section = SECTIONS["schedule_free_adamw"]
    with pytest.raises(ConfigError, match=r"^lora.b_rate: "):
        optim.build(section, params, steps=100, axes=AXES, b_rate=2.0)


def test_magnitudes_do_not_decay():
    leaves = {"q": {"lora_m": jnp.ones((2, 8))}}
    tx = build("adamw", leaves, weight_decay=0.5).tx
    after, _ = updated(tx, jax.tree.map(jnp.zeros_like, leaves), leaves)
    networks.assert_same(after, leaves)
