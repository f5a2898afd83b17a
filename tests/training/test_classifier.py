"""The head of a classifier: what it takes of the model that a run starts from, and what is new."""

import json

import hubs
import networks
import numpy as np
import pytest
import test_state as states
from safetensors.numpy import save_file

import jaxlm
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.hub.tensors import open_tensors
from jaxlm.inference import adapters
from jaxlm.inference.export import export
from jaxlm.inference.imported import import_folder
from jaxlm.inference.inspect import inspect
from jaxlm.inference.run import base_params, load_params, open_run, shapes, trained
from jaxlm.training import classifier, receipt, resume
from jaxlm.training.state import inherit

POOLER = "bert.pooler.dense"
TEXT = {"type": "classification", "labels": ["bad", "good", "odd"]}
WORDS = {"type": "token_classification", "labels": ["name", "number"]}


def begin(folder, name, **keys):
    """The configuration of a run of a classifier whose directory says so."""
    keys = {"steps": 9, "length": 8, "data": {"train": "unread"}, "objective": TEXT, **keys}
    config = RunConfig.model_validate({"run_dir": str(folder / name), **keys})
    config = classifier.headed(inherit(config))
    resume.accept(config, folder / name, (), print)
    hubs.TOKENIZER.save(folder / name / "tokenizer")
    return config


def masked(folder, pooler=True):
    """A BERT that predicts what is masked; pooler: its file has the one of its pretraining too."""
    hubs.write(folder, "bert")
    if pooler:
        rng = np.random.default_rng(0)
        sizes = {f"{POOLER}.weight": (32, 32), f"{POOLER}.bias": (32,)}
        tensors = {name: np.array(x) for name, x in open_tensors(folder).items()}
        for part in folder.glob("*.safetensors*"):
            part.unlink()
        tensors |= {name: rng.normal(size=size).astype("f4") for name, size in sizes.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def made(config):
    """What the run starts from."""
    params = base_params(config, networks.layout(), None, print)[0]
    return tree.flatten(params)


def test_a_masked_lm_becomes_a_classifier_with_its_pooler(tmp_path):
    init = masked(tmp_path / "bert")
    config = begin(tmp_path, "run", init=init)
    head = config.model.head
    assert (head.labels, head.pool, head.transform, head.norm) == (3, "first", "tanh", False)
    leaves, file = made(config), open_tensors(init)
    kernel = leaves["head/transform/kernel"]
    np.testing.assert_array_equal(kernel, file[f"{POOLER}.weight"].T)
    np.testing.assert_array_equal(leaves["head/transform/bias"], file[f"{POOLER}.bias"])
    assert 0.01 < np.std(leaves["head/labels/kernel"]) < 0.03  # init_scale
    assert not np.any(leaves["head/labels/bias"])
    want = shapes(config, config.model, networks.layout())
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        name: leaf.shape for name, leaf in tree.flatten(want).items()
    }
    new = classifier.new_leaves(config, want)
    assert new == ["head/labels/bias", "head/labels/kernel"]
    found = receipt.receipt({}, want, trained(config, want), {}, new)
    assert "new, and random: head/labels/bias, head/labels/kernel" in receipt.lines(found)[-1]


def test_what_the_file_lacks_is_new_and_depends_on_the_seed_alone(tmp_path):
    init = masked(tmp_path / "bert", pooler=False)
    config = begin(tmp_path, "run", init=init)
    want = shapes(config, config.model, networks.layout())
    assert "head/transform/kernel" in classifier.new_leaves(config, want)
    networks.assert_same(made(config), made(config))
    other = made(config.model_copy(update={"seed": 1}))
    assert np.any(other["head/transform/kernel"] != made(config)["head/transform/kernel"])
    on_eight = base_params(config, networks.layout(fsdp=8), None, print)[0]
    networks.assert_same(on_eight["head"], tree.unflatten(made(config))["head"])


@pytest.mark.parametrize("source", ["folder", "import", "run"])
@pytest.mark.parametrize("name", ["modernbert", "bert sequence", "llama tokens", "gpt2"])
def test_what_is_the_same_in_both_heads_is_taken(tmp_path, name, source):
    init = str(hubs.write(tmp_path / "folder", name))
    plain = jaxlm.load(init)
    if source == "import":
        import_folder(init, f"{tmp_path}/import", dtype=None, warn=print)
        init = f"{tmp_path}/import"
    if source == "run":
        keys = {"run_dir": str(tmp_path / "first"), "init": init, "data": {"train": "unread"}}
        first = inherit(RunConfig.model_validate({**keys, "steps": 9, "length": 8}))
        resume.accept(first, tmp_path / "first", (), print)
        hubs.TOKENIZER.save(tmp_path / "first" / "tokenizer")
        keeper, spec = states.keeper(first)
        keeper.save(keeper.fresh(spec, print), {}, None)
        keeper.checkpoints.wait()
        init, plain = first.folder, jaxlm.load(first.folder)
    config = begin(tmp_path, "run", init=init, objective={**TEXT, "labels": list("abcde")})
    leaves, had = made(config), tree.flatten(plain.params)
    taken = {"modernbert": ("transform", "norm"), "bert sequence": ("transform",)}.get(name, ())
    for leaf, array in leaves.items():
        if leaf.startswith("head/") and leaf.split("/")[1] not in taken:
            assert leaf.startswith("head/labels/") and array.shape[-1] == 5
        else:
            np.testing.assert_array_equal(array, had[leaf])
    want = shapes(config, config.model, networks.layout())
    assert all(leaf.startswith("head/labels/") for leaf in classifier.new_leaves(config, want))


def test_a_head_that_scores_the_same_labels_stays_with_its_names(tmp_path):
    init = str(hubs.write(tmp_path / "folder", "bert sequence"))
    config = begin(tmp_path, "run", init=init, objective={"type": "classification"})
    assert config.objective.labels == ("a", "b", "c")
    had = tree.flatten(jaxlm.load(init).params)
    networks.assert_same(made(config), had)
    for labels in ("cba", ("bad", "good", "odd")):
        other = begin(tmp_path, "".join(labels), init=init, objective={**TEXT, "labels": [*labels]})
        new = classifier.new_leaves(other, shapes(other, other.model, networks.layout()))
        assert new == ["head/labels/bias", "head/labels/kernel"]
        assert np.any(made(other)["head/labels/kernel"] != had["head/labels/kernel"])
    beside = begin(tmp_path, "beside", init=init, lora={"rank": 2})
    assert beside.lora.save == ("head",)
    words = begin(tmp_path, "words", init=init, objective={**WORDS, "labels": ["a", "b", "c"]})
    assert np.any(made(words)["head/labels/kernel"] != had["head/labels/kernel"])


@pytest.mark.parametrize("kind", ["auto", "int8", "nf4"])
def test_beside_adapters_a_new_head_trains_and_is_kept(tmp_path, kind):
    init = masked(tmp_path / "bert")
    config = begin(tmp_path, "run", init=init, lora={"rank": 2}, frozen_dtype=kind)
    assert config.lora.save == ("head",)
    keeper, spec, state = states.saved(config)
    head = {name for name in tree.flatten(state.params) if name.startswith("head/")}
    assert len(head) == 4 and head < keeper.mask and states.written(config) == keeper.mask
    again, _ = states.keeper(config, {"data": 8})
    networks.assert_same(again.restore(spec, print)[0].params, state.params)
    networks.assert_same(load_params(open_run(config.folder), keeper.layout)[1], state.params)
    resumed = begin(tmp_path, "run", init=init, lora={"rank": 2}, frozen_dtype=kind)
    assert resumed == config
    adapters.export_adapter(config.folder, f"{tmp_path}/out")
    adapters.check(config.folder, f"{tmp_path}/out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["classifier", "pooler.dense"]


def test_a_new_head_must_train(tmp_path):
    init = masked(tmp_path / "bert")
    for parts, left in {"attn/q": "head/labels/bias", "head/labels": "head/transform"}.items():
        config = begin(tmp_path, parts, init=init, trainable=[parts])
        want = shapes(config, config.model, networks.layout())
        with pytest.raises(ConfigError, match=f"^trainable: leaves out {left}.*add head to it$"):
            classifier.check_trained(config, want, trained(config, want))
    config = begin(tmp_path, "head", init=init, trainable=["head"])
    want = shapes(config, config.model, networks.layout())
    classifier.check_trained(config, want, trained(config, want))
    _, spec, state = states.saved(config)
    networks.assert_same(states.keeper(config)[0].restore(spec, print)[0].params, state.params)


def test_from_scratch_the_head_is_the_familys_or_as_is_said(tmp_path):
    head = begin(tmp_path, "a", model=states.MODEL).model.head
    assert (head.labels, head.pool, head.bias) == (3, "last", False)  # as LlamaFor... has it
    own = {"labels": 3, "pool": "mean", "bias": True, "transform": "tanh"}
    config = begin(tmp_path, "b", model={**states.MODEL, "head": own})
    assert config.model.head.model_dump() == {**head.model_dump(), **own}
    for key, value in {"labels": 2, "pool": "none"}.items():
        with pytest.raises(ConfigError, match=rf"^model.head.{key}: .*; leave it out$"):
            begin(tmp_path, "c", model={**states.MODEL, "head": {**own, key: value}})


def test_what_has_no_such_head_is_refused_with_what_has(tmp_path):
    for name, objective in {"t5": TEXT, "bart": WORDS}.items():
        init = str(hubs.write(tmp_path / name, name))
        with pytest.raises(ConfigError, match=f"^objective.type: {name} has no head for .*bert"):
            begin(tmp_path, "run", init=init, objective=objective)
    init = str(hubs.write(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(ConfigError, match=r"^model.head: comes from init"):
        begin(tmp_path, "run", init=init, model={"head": {"labels": 7}})


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("bert", {**TEXT, "problem": "multi"}),
        ("modernbert", {**TEXT, "problem": "regression", "labels": ["stars"]}),
        ("gpt2", TEXT),
        ("qwen2", WORDS),
        ("bart", TEXT),
        (None, TEXT),
    ],
)
def test_names_and_problem_leave_with_the_model_and_come_back(tmp_path, name, objective):
    base = name and str(hubs.write(tmp_path / "base", name))
    start = {"init": base} if base else {"model": states.MODEL}
    config = begin(tmp_path, "run", objective=objective, **start)
    states.saved(config)
    run = jaxlm.load(config.folder)
    export(config.folder, f"{tmp_path}/out", dtype=None, max_shard_bytes=10**9)
    import_folder(f"{tmp_path}/out", f"{tmp_path}/in", dtype=None, warn=print)
    problem = objective.get("problem", "single" if objective is TEXT else "")
    ids = np.arange(6)[None] + 5
    for path in (config.folder, f"{tmp_path}/out", f"{tmp_path}/in"):
        model = jaxlm.load(path)
        assert (model.labels, model.problem) == (tuple(objective["labels"]), problem)
        assert inspect(path).labels == model.labels
        np.testing.assert_allclose(model.logits(ids), run.logits(ids), rtol=1e-5, atol=1e-6)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["label2id"] == {label: i for i, label in enumerate(objective["labels"])}
    assert ("problem_type" in written) == (problem != "")
    again = begin(tmp_path, "next", init=f"{tmp_path}/out", objective={"type": objective["type"]})
    assert again.objective.labels == tuple(objective["labels"])
    networks.assert_same(tree.unflatten(made(again))["head"], run.params["head"])
