"""What a run keeps: saved and restored on another mesh, and what one run starts from of another."""

import json

import hubs
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.checkpoint import inspect
from jaxlm.checkpoint.commit import Checkpoints
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError, ConfigError, DataError
from jaxlm.inference import adapters
from jaxlm.inference.imported import import_folder
from jaxlm.inference.run import base_params, load_params, open_run, shapes, trained
from jaxlm.models import depth
from jaxlm.models.axes import AXES
from jaxlm.text import train
from jaxlm.training import optim, resume
from jaxlm.training.state import Keeper, inherit
from jaxlm.training.step import TrainState

WORDS = ["the quick brown fox jumps over the lazy dog\n" * 9]
MODEL = {"layers": 1, "embed": 16, "heads": 2}
ONE, EIGHT, MIXED = {"fsdp": 1}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train.train("bpe", 300, WORDS).save(folder)
    return folder


@pytest.fixture
def begin(tmp_path, tokenizer):
    """(name, **keys) -> the configuration of a run whose directory says so."""

    def begin(name, **keys):
        keys = {"steps": 9, "length": 8, "data": {"train": "unread"}, **keys}
        given = {} if "init" in keys else {"model": MODEL, "tokenizer": {"path": str(tokenizer)}}
        config = RunConfig.model_validate({"run_dir": str(tmp_path / name), **given, **keys})
        config = inherit(config)
        resume.accept(config, tmp_path / name, (), print)
        (tmp_path / name / "tokenizer").symlink_to(tokenizer)
        return config

    return begin


def keeper(config, sizes=ONE):
    """Its keeper on a mesh, and its spec."""
    spec, at = open_run(config.folder).spec, networks.layout(**sizes)
    want = shapes(config, spec, at)
    mask = trained(config, want)
    live, _ = tree.partition(want, mask)
    optimizer = optim.build(config.optimizer, live, steps=9, axes=AXES)
    kept = Checkpoints(f"{config.folder}/checkpoints")
    return Keeper(config, at, optimizer, mask, kept), spec


def moved(keeper, state, step=3):
    """The state as if it had trained: what is trained, and its optimizer's state, are others."""
    live, frozen = tree.partition(state.params, keeper.mask)
    live, opt = jax.tree.map(lambda x: x + jnp.asarray(1.25, x.dtype), (live, state.opt_state))
    return TrainState(jnp.int32(step), tree.combine(live, frozen), opt)


def saved(config, sizes=ONE, step=3):
    """(keeper, spec, the state that it saved)."""
    made, spec = keeper(config, sizes)
    state = moved(made, made.fresh(spec, print), step)
    made.save(state, {"score": 1.5}, 1.5)
    made.checkpoints.wait()
    return made, spec, state


def written(config):
    """Names of the parameters in the newest checkpoint."""
    folder = f"{config.folder}/checkpoints"
    return set(inspect.manifest(folder, inspect.steps(folder)[-1]).items["params"])


@pytest.mark.parametrize("kind", ["adamw", "schedule_free_adamw", "muon"])
def test_a_state_is_restored_bit_for_bit_on_any_mesh(begin, kind):
    config = begin("run", optimizer={"type": kind, "schedule": {"type": "constant"}})
    state = saved(config, EIGHT)[2]
    for sizes in (ONE, MIXED):
        again, spec = keeper(config, sizes)
        found, meta = again.restore(spec, print)
        networks.assert_same(found, state)
        assert meta == {"score": 1.5, "position": 3 * config.batch, "base": {}}
        lies = again.layout.shardings(found.params, AXES)
        assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == lies


@pytest.mark.parametrize("kind", ["adamw", "schedule_free_adamw"])
def test_what_is_loaded_from_a_run_is_what_was_scored(begin, kind):
    config = begin("run", optimizer={"type": kind, "schedule": {"type": "constant"}})
    made, _, state = saved(config)
    step, params = load_params(open_run(config.folder), networks.layout(**EIGHT))
    assert step == 3
    networks.assert_same(params, made.evaluated(state))
    same = np.array_equal(params["embed"]["embedding"], state.params["embed"]["embedding"])
    assert same == (kind == "adamw")


@pytest.mark.parametrize(
    "keys",
    [
        {"trainable": ["attn/q"]},
        {"trainable": ["attn/q"], "param_dtype": "bfloat16"},
        {"trainable": ["lora_(a|b)"], "lora": {"rank": 2}},
        {"trainable": ["lora_(a|b)"], "lora": {"rank": 2}, "param_dtype": "bfloat16"},
    ],
)
def test_a_frozen_base_is_named_and_not_written(begin, keys):
    base = begin("base")
    start = saved(base)[2]
    config = begin("child", init=base.folder, **keys)
    made, _, state = saved(config)
    assert written(config) == made.mask
    again, spec = keeper(config, MIXED)
    networks.assert_same(again.restore(spec, print)[0], state)
    networks.assert_same(load_params(open_run(config.folder), made.layout)[1], state.params)
    kernel = state.params["decoder"]["blocks"]["mlp"]["up"]["kernel"]
    right = start.params["decoder"]["blocks"]["mlp"]["up"]["kernel"].astype(config.param_dtype)
    networks.assert_same(kernel, right)


@pytest.mark.parametrize("of_a_base", [True, False])
def test_the_last_layers_are_saved_and_all_are_loaded(begin, of_a_base):
    model = {"model": {**MODEL, "layers": 3}}
    base = begin("base", **model)
    saved(base)
    start = {"init": base.folder} if of_a_base else model
    config = begin("child", trainable=["last_layers: 1"], **start)
    made, _, state = saved(config)
    assert (written(config) == made.mask) == of_a_base
    again, spec = keeper(config, MIXED)
    networks.assert_same(again.restore(spec, print)[0], state)
    loaded = load_params(open_run(config.folder), made.layout)[1]
    networks.assert_same(loaded, depth.joined(state.params, made.layout))
    assert loaded["decoder"]["blocks"]["mlp"]["up"]["kernel"].shape[0] == 3


def test_a_base_keeps_the_step_that_another_run_starts_from(begin):
    base = begin("base")
    made, _, state = saved(base)
    child = begin("child", init=base.folder, trainable=["attn/q"])
    saved(child)
    for step in (4, 5, 6):
        made.save(moved(made, state, step), {}, None)
        made.checkpoints.wait()
    assert inspect.steps(f"{base.folder}/checkpoints") == [3, 5, 6]  # the two newest, and it
    assert not inspect.verify(f"{base.folder}/checkpoints", 3).problems
    assert load_params(open_run(child.folder), networks.layout())[0] == 3


def test_a_base_that_is_another_now_is_refused(begin):
    base = begin("base")
    saved(base)
    config = begin("child", init=base.folder, trainable=["attn/q"])
    saved(config)
    made, spec = keeper(base)
    state, _ = made.restore(spec, print)
    made.save(moved(made, state), {}, None)  # the same step, other values
    made.checkpoints.wait()
    again, spec = keeper(config)
    with pytest.raises(CheckpointError, match="is not the base that was trained on"):
        again.restore(spec, print)


def test_a_base_that_trains_on_stays_what_it_was_to_its_child(begin):
    base = begin("base")
    made, _, state = saved(base)
    config = begin("child", init=base.folder, trainable=["attn/q"])
    first = saved(config)[0]
    made.save(moved(made, state, step=5), {}, None)
    made.checkpoints.wait()
    again, spec = keeper(config)
    state, meta = again.restore(spec, print)
    again.save(moved(again, state, step=6), {}, None)
    again.checkpoints.wait()
    last = keeper(config)[0].restore(spec, print)[1]
    assert last["base"] == meta["base"] == first.base and first.base["step"] == 3


def test_adapters_of_a_base_are_merged(begin):
    base = begin("base", lora={"rank": 2})
    start = saved(base)[2]
    config = begin("child", init=base.folder, lora={"rank": 1}, trainable=["lora"])
    state = saved(config)[2]
    q, merged = (s.params["decoder"]["blocks"]["attn"]["q"] for s in (start, state))
    assert q["lora_a"].shape[-1] == 2 and merged["lora_a"].shape[-1] == 1
    product = jnp.einsum("lir,lrnh->linh", q["lora_a"], q["lora_b"])
    right = q["kernel"] + q["lora_scale"][:, None, None, None] * product
    networks.assert_close(merged["kernel"], right)


def test_what_an_adapter_began_as_is_in_the_checkpoint_and_the_base_is_not(begin):
    base = begin("base")
    saved(base)
    lora = {"rank": 2, "init": "pissa", "dora": True, "save": ["final_norm"], "dropout": 0.1}
    config = begin("child", init=base.folder, lora=lora)
    _, spec, state = saved(config)
    held = inspect.manifest(f"{config.folder}/checkpoints").items["params"]
    parts = {name.split("/")[-1] for name in held}
    assert parts == {"lora_a", "lora_b", "lora_m", "lora_a0", "lora_b0", "scale"}
    again, _ = keeper(config)[0].restore(spec, print)
    networks.assert_same(again.params, state.params)


def test_an_adapter_of_which_a_part_trains_is_whole_in_the_checkpoint(begin):
    base = begin("base")
    saved(base)
    lora = {"rank": 2, "init": "pissa"}
    config = begin("child", init=base.folder, lora=lora, trainable=["attn/q/lora_b$"])
    made, _, state = saved(config)
    networks.assert_same(load_params(open_run(config.folder), made.layout)[1], state.params)


def test_a_run_without_a_checkpoint_is_nothing_to_start_from(begin):
    base = begin("base")
    made, spec = keeper(begin("child", init=base.folder))
    with pytest.raises(CheckpointError, match="holds no checkpoint to start from"):
        made.fresh(spec, print)


def test_the_architecture_comes_from_the_base_and_speed_from_the_run(begin):
    base = begin("base")
    config = begin("child", init=base.folder, model={"dropout": 0.1, "embed": 16})
    assert (config.model.layers, config.model.dropout) == (1, 0.1)
    for key, value in {"layers": 2, "tied": False, "kv_heads": 1}.items():
        with pytest.raises(ConfigError, match=rf"^model.{key}: comes from init=.*; leave it out$"):
            begin("other", init=base.folder, model={key: value})
    with pytest.raises(DataError, match="^elsewhere: no such file"):
        begin("third", init=base.folder, tokenizer={"path": "elsewhere"})


@pytest.mark.parametrize(("kind", "init"), [("int8", "default"), ("nf4", "loftq")])
def test_a_quantized_base_is_named_by_its_source_and_made_again_to_the_bit(begin, kind, init):
    base = begin("base")
    saved(base)
    lora = {"rank": 2, "targets": ["mlp/up"], "init": init, "save": ["final_norm"]}
    config = begin("child", init=base.folder, lora=lora, frozen_dtype=kind)
    made, spec, state = saved(config)
    want, found = shapes(config, spec, made.layout), tree.flatten(state.params)
    assert {n: (x.shape, x.dtype) for n, x in tree.flatten(want).items()} == {
        n: (x.shape, x.dtype) for n, x in found.items()
    }
    assert f"decoder/blocks/attn/q/kernel_{kind}" in found
    assert found["embed/embedding"].dtype == jnp.bfloat16
    assert found["decoder/final_norm/scale"].dtype == jnp.float32
    parts = {name.split("/")[-1] for name in written(config)}
    begun = {"lora_a0", "lora_b0"} if init == "loftq" else set()
    assert parts == {"lora_a", "lora_b", "scale", *begun}
    again, _ = keeper(config)
    networks.assert_same(again.restore(spec, print)[0].params, state.params)
    networks.assert_same(load_params(open_run(config.folder), made.layout)[1], state.params)
    whole = begin("whole", init=base.folder, trainable=["final_norm"])
    assert saved(whole)[0].base == made.base


@pytest.mark.parametrize("init", ["default", "loftq"])
def test_an_adapter_of_a_quantized_base_leaves_for_the_whole_one(begin, tmp_path, init):
    base = begin("base")
    saved(base)
    lora = {"rank": 2, "targets": ["mlp/up"], "init": init}
    config = begin("child", init=base.folder, lora=lora, frozen_dtype="nf4")
    saved(config)
    adapters.export_adapter(config.folder, f"{tmp_path}/out")
    adapters.check(config.folder, f"{tmp_path}/out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["r"] == (4 if init == "loftq" else 2)


def test_a_folder_and_its_import_are_quantized_to_the_same_bits(begin, tmp_path):
    folder = str(hubs.write(tmp_path / "folder", "mixtral"))
    import_folder(folder, f"{tmp_path}/import", dtype=None, warn=print)
    lora = {"rank": 2, "targets": ["attention"]}
    made = {}
    for name in ("folder", "import"):
        for kind in ("auto", "nf4"):
            keys = {"init": f"{tmp_path}/{name}", "lora": lora, "frozen_dtype": kind}
            config = RunConfig.model_validate({"steps": 1, "data": {"train": "x"}, **keys})
            made[name, kind] = base_params(inherit(config), networks.layout(), None, print)
    networks.assert_same(made["folder", "nf4"][0], made["import", "nf4"][0])
    assert made["folder", "nf4"][1] == made["folder", "auto"][1]
    whole, small = (tree.nbytes(made["folder", kind][0]) for kind in ("auto", "nf4"))
    assert small < 0.5 * whole


def test_what_is_frozen_has_its_type_and_what_trains_another(begin):
    base = begin("base", model={**MODEL, "layers": 3})
    saved(base)
    config = begin("child", init=base.folder, trainable=["last_layers: 1"], frozen_dtype="bfloat16")
    made, _, state = saved(config)
    for name, leaf in tree.flatten(state.params).items():
        assert leaf.dtype == (jnp.float32 if name in made.mask else jnp.bfloat16), name
    loaded = load_params(open_run(config.folder), made.layout)[1]
    networks.assert_same(loaded, depth.joined(state.params, made.layout))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, r"^frozen_dtype: nothing is frozen"),
        ({"trainable": ["kernel"]}, r"^frozen_dtype: nf4 is of kernels, and all train"),
        ({"trainable": ["last_layers: 1"]}, r"^frozen_dtype: nf4 is of whole kernels"),
        ({"lora": {"rank": 1, "init": "pissa"}}, r"^lora.init: pissa is of whole kernels"),
        ({"lora": {"rank": 99, "init": "loftq"}}, r"^lora.rank: 99 is more than"),
        (
            {"lora": {"rank": 1, "init": "loftq"}, "frozen_dtype": "auto"},
            r"^lora.init: loftq is of",
        ),
    ],
)
def test_what_cannot_be_quantized_is_refused(begin, keys, says):
    base = begin("base", model={**MODEL, "layers": 2})
    saved(base)
    config = begin("child", init=base.folder, **{"frozen_dtype": "nf4", **keys})
    with pytest.raises(ConfigError, match=says):
        keeper(config)
    with pytest.raises(ValueError, match="frozen_dtype=nf4 is how what is frozen of init"):
        begin("none", frozen_dtype="nf4")
