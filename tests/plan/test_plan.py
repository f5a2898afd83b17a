"""`jaxlm plan`: what it says fits together, and what it proposes can be run."""

import json
from dataclasses import replace

import jax
import pytest
import recipes

from jaxlm import cli
from jaxlm.config.load import load
from jaxlm.core import errors
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.core.mesh import AXES, Layout, make_mesh
from jaxlm.models.axes import AXES as TABLE
from jaxlm.plan import cost, meshes, page
from jaxlm.plan.devices import devices, machine
from jaxlm.plan.memory import estimate
from jaxlm.plan.sketch import model, resolved, sketch
from jaxlm.plan.tuning import alternatives
from jaxlm.training.building import build

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def llama():
    return model(resolved(load("llama3_8b")), "tpu")


@pytest.fixture(scope="module")
def large():
    return model(resolved(load("llama3_70b", ["mesh.tensor=1", "microbatches=1"])), "gpu")


def test_bytes_of_a_device_are_those_of_a_real_mesh():
    words = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "lora.rank=4"]
    config = resolved(load("quickstart", words))
    planned = sketch(model(config, "cpu"), machine("cpu:8"))
    layout = Layout(make_mesh({axis: getattr(config.mesh, axis) for axis in AXES}))
    built = build(config, config.model, layout, steps=10, tokenizer=None)
    assert planned.use == estimate(planned.step, built.params, built.opt_state, built.mask)
    real = jax.tree.map(lambda s: s.sharding.shard_shape(s.shape), built.params)
    small = Layout(make_mesh({}, jax.devices()[:1])).placed(built.params, TABLE)
    assert jax.tree.leaves(real) != [leaf.shape for leaf in jax.tree.leaves(small)]


def test_a_run_that_fits_is_planned_whole(llama):
    found = sketch(llama, machine("v5e:4x4"))
    assert found.fits and found.sizes == {**dict.fromkeys(AXES, 1), "fsdp": 16}
    assert found.model.facts["parameters"] == 8_030_261_248
    speed, whole = cost.rate(found), cost.total(found)
    assert found.tokens == 16 * 8192 and whole.tokens == 100_000 * found.tokens
    assert speed.tokens_per_second * 16 * speed.seconds == pytest.approx(found.tokens)
    assert 0.2 < speed.mfu_causal < speed.mfu_full < 0.8
    assert whole.dollars == pytest.approx(whole.days * 24 * 16 * 1.2)
    assert whole.kilowatt_hours is None  # nobody published what a v5e draws


@pytest.mark.parametrize("words", [[], ["batch=64"], ["batch=64", "model.remat=none"]])
def test_what_makes_it_fit_can_be_run(words):
    given = ["length=4096", *words]
    found = sketch(model(resolved(load("llama3_8b", given)), "gpu"), machine("h100:2"))
    assert not found.fits
    for option in meshes.nearest(found):
        config = resolved(load("llama3_8b", [*given, *option.overrides]))
        again = sketch(model(config, "gpu"), machine("h100:2"))
        assert again.fits and again.use == option.sketch.use


def test_where_more_devices_are_told_they_hold_it():
    words = ["mesh.slices=2", "mesh.data=2"]
    given = sketch(model(resolved(load("llama3_8b", words)), "tpu"), machine("v5e:2x2*2"))
    told = page.plan(given)["nearest"]
    assert len(told) == 1 and told[0]["device"] != "v5e:2x2*2"
    config = resolved(load("llama3_8b", [*words, *told[0]["overrides"]]))
    found = sketch(model(config, "tpu"), machine(told[0]["device"]))
    assert found.fits and found.use.total == told[0]["total"]


def test_a_plan_has_the_same_keys_whatever_is_known():
    words, seen = ["platform=auto", "length=4096"], []
    for device, more in (("cpu:1", []), ("h100:1", []), ("v5e:1x1", ["batch=4096"])):
        config, on = resolved(load("quickstart", [*words, *more])), machine(device)
        seen.append(page.plan(sketch(model(config, on.device.platform), on)))
    assert [found["memory"]["fits"] for found in seen] == [None, True, False]
    assert seen[0].keys() == seen[1].keys() == seen[2].keys() and seen[0]["step"] is None
    assert seen[1]["step"].keys() == seen[2]["step"].keys() and seen[2]["nearest"]


def test_where_no_key_helps_more_devices_do(large):
    found = sketch(large, machine("h100:8"))
    assert not found.fits and not meshes.nearest(found)
    more = meshes.larger(found)
    assert more.sketch.fits and more.sketch.machine.count > 8


@pytest.mark.parametrize(
    ("preset", "device"),
    [("llama3_8b", "v5e:4x4"), ("llama3_70b", "v5p:8x8x8"), ("llama3_405b", "v5p:16x16x16")],
)
def test_what_the_presets_of_llama_3_name_holds_them(preset, device):
    found = sketch(model(resolved(load(preset)), "tpu"), machine(device))
    assert found.fits and found.model.spec.embed / found.sizes["fsdp"] >= meshes.LEAST_ROWS


def test_meshes_are_legal_and_ranked(llama):
    config = llama.config.model_copy(update={"batch": 64})
    found = meshes.ranked(sketch(replace(llama, config=config), machine("v5p:2x4x4")), most=99)
    seconds = [option.sketch.time.total for option in found]
    assert seconds == sorted(seconds) and all(option.sketch.fits for option in found)
    for option in found:
        sizes = option.sketch.sizes
        assert 32 % sizes["tensor"] == 0 and 64 % (sizes["data"] * sizes["fsdp"]) == 0
        assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == 32 and sizes["expert"] == 1
        load("llama3_8b", ["batch=64", *option.overrides])


def test_tensor_splits_what_it_can_and_costs_the_network(llama):
    config = llama.config.model_copy(update={"batch": 32})
    narrow = sketch(llama, machine("h100:16"), config)
    mesh = llama.config.mesh.model_copy(update={"tensor": 8})
    wide = sketch(llama, machine("h100:16"), config.model_copy(update={"mesh": mesh}))
    assert wide.use.loss < narrow.use.loss and wide.use.collectives < narrow.use.collectives
    assert wide.time.communication["tensor"] > narrow.time.communication["tensor"] == 0


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("v5e", 16, "v5e:4x4"),
        ("v5p", 64, "v5p:4x4x4"),
        ("v5e", 1024, "v5e:16x16*4"),
        ("v5e", 24, None),
        ("v5e", 384, None),
        ("h100", 64, "h100:64"),
        ("h100", 12, None),
    ],
)
def test_so_many_devices_are_a_machine_that_there_is(name, count, words):
    found = meshes.of_count(devices()[name], count)
    assert found == (machine(words) if words else None)


def test_adapters_need_fewer_devices(large):
    found = sketch(large, machine("h100:32"))
    lora, qlora = alternatives(found)
    assert qlora.sketch.machine.count <= lora.sketch.machine.count < 32
    assert lora.sketch.fits and qlora.sketch.fits
    assert lora.trained == qlora.trained < 0.01 * large.facts["parameters"]


def test_fsdp_may_cross_slices_and_pays_for_it(llama):
    there = machine("v5e:4x4*2")
    config = llama.config.model_copy(update={"batch": 32})
    mesh = config.mesh.model_copy(update={"data": 2})
    across = sketch(llama, there, config)
    copies = sketch(llama, there, config.model_copy(update={"mesh": mesh}))
    assert (across.sizes["fsdp"], copies.sizes["fsdp"]) == (32, 16)
    assert across.use.total < copies.use.total
    network = across.time.communication, copies.time.communication
    assert network[0]["fsdp"] > network[1]["fsdp"] and network[1]["data"] > network[0]["data"] == 0
    found = {option.sketch.sizes["data"] for option in meshes.ranked(across, most=99)}
    assert found >= {1, 2}


def test_adapters_are_planned_on_several_slices_where_one_is_too_small(large):
    config = large.config.model_copy(update={"batch": 8, "length": 1024})
    found = sketch(replace(large, config=config), machine("v5e:2x2*2"))
    on = {tuned.name: tuned.sketch.machine for tuned in alternatives(found)}
    assert str(on["LoRA"]) == "v5e:2x2*2"


@pytest.mark.parametrize(
    ("words", "device", "said"),
    [
        (["mesh.tensor=3"], "h100:9", "hosts have 8 each; use h100:8 or h100:16"),
        (["mesh.tensor=64"], "h100:64", "model.heads=32 does not split over 64"),
        (["batch=20"], "v5e:4x4", "use 16 or 32"),
        (["mesh.fsdp=3"], "v5e:4x4", "does not give 16 devices"),
        (["mesh.data=2", "mesh.fsdp=16"], "v5e:4x4*3", "does not give 48 devices"),
        ([], "v7:8", "known are h200:8"),
        (["mesh.slices=3", "batch=32"], "v5e:4x4*2", "slices: 3 does not divide 32 devices; use 2"),
        (
            ["mesh.slices=1", "batch=32"],
            "v5e:4x4*2",
            "does not split each of 2 TPU slices into groups; use 2",
        ),
        (["batch=64", "microbatches=8"], "v5e:4x4", "use microbatches=4, or batch=128"),
        (["model.attention=splash"], "h100:8", "splash cannot run bfloat16 heads of 128"),
        (["mesh.slices=3"], "h100:8", "slices: 3 does not divide 8 devices; use 2 or 4"),
    ],
)
def test_what_cannot_be_is_one_line(llama, words, device, said):
    with pytest.raises(ConfigError, match=said) as found:
        config, on = resolved(load("llama3_8b", words)), machine(device)
        if config.model.attention != "auto":
            model(config, on.device.platform)
        sketch(llama, on, config)
    assert found.value.code == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["llama3_8b", "platform=tpu"],
            errors.CONFIG,
            "platform: tpu is not what --device asks for, which is gpu",
        ),
        (["quickstart"], errors.CONFIG, "use platform=gpu"),
        (
            ["quickstart", "platform=auto", "tokenizer.path=no/such"],
            errors.CONFIG,
            "tokenizer.path: no/such: no ",
        ),
        (["sentiment", "platform=gpu"], errors.CHECKPOINT, "runs/mlm"),
    ],
)
def test_what_the_run_would_refuse_is_not_planned(capsys, words, code, said):
    assert cli.run(["plan", *words, "--device", "h200:1"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert "tokenizer" not in said or "model.vocab=N" in lines[0]


def test_a_tokenizer_beside_that_of_init_has_to_be_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(recipes.MODELS["Mistral 7B"]))
    words = [f"init={tmp_path}", "tokenizer.path=no/such"]
    with pytest.raises(ConfigError, match="tokenizer.path: no/such: .* tokenizer.path=null"):
        resolved(load("full", words))
    assert resolved(load("full", [words[0], "tokenizer.path=null"])).model.layers == 32


def test_what_init_itself_lacks_is_not_laid_to_a_key_that_is_not_set(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {train: stdlib}\nsteps: 1\n")
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(DataError, match="^[^;]*tokenizer: no tokenizer.json[^;]*$"):
        resolved(load("full", [f"init={tmp_path}"]))


def test_a_vocabulary_that_is_given_needs_no_tokenizer():
    words = ["platform=gpu", "tokenizer.path=no/such", "model.vocab=512"]
    assert resolved(load("quickstart", words)).model.vocab == 512


def test_the_command_says_the_convention_and_prints_json(capsys):
    assert cli.run(["plan", "llama3_8b", "--device", "h200:8", "steps=1000"]) == 0
    said = capsys.readouterr().out
    for words in ("parameters", "fits", "6N + 6LTd", "6N + 12LTd", "meshes", "QLoRA", "kWh", "$"):
        assert words in said
    assert cli.run(["plan", "llama3_8b", "--device", "h200:8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["fits"] and found["run"]["steps"] == 100_000
    assert page.text(found) and found["price"]["date"]
    assert cli.run(["plan", "llama3_8b", "--device", "h200:12"]) == 2
    assert cli.run(["plan", "llama3_8b", "--device", "h200:8", "--compile"]) == 2
    assert "h200 is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "words", "device", "said"),
    [
        ("llama3_8b", [], "h200:8", []),
        ("llama3_8b", ["batch=32"], "v5e:4x4*2", []),
        ("llama3_8b", ["model.experts.count=8"], "h200:8", ["sparse"]),
        ("llama3_8b", ["lora.rank=4"], "h100:8", ["of a model that is partly frozen"]),
        ("llama3_8b", [], "a100:8", ["on a100"]),
        ("llama3_8b", ["length=512"], "h100:8", ["of rows of 512 tokens"]),
        ("llama3_8b", ["length=2048", "model.window.size=512"], "h100:1",
         ["with windows of attention", "on 1 device"]),
        ("llama3_8b", ["compute_dtype=float32"], "h100:8", ["in float32"]),
        ("mlm", ["platform=auto", "batch=64"], "h100:16",
         ["of an encoder", "for mlm"]),
        ("span_corruption", ["platform=auto", "batch=64"], "l4:8",
         ["of an encoder-decoder", "for span_corruption"]),
    ],
)  # fmt: skip
def test_what_no_published_run_checks_is_said(preset, words, device, said):
    on = machine(device)
    found = page.plan(sketch(model(resolved(load(preset, words)), on.device.platform), on))
    differs, lines = found["step"]["unlike"], page.text(found)
    assert differs[: len(said)] == said and bool(differs) == bool(said)
    assert bool(found["step"]["fit"]) == ("off by 8% on average" in lines) == (not said)
    assert ("no published run checks: the 27" in lines) == bool(said)
    assert ", ".join(differs) in lines


@pytest.mark.parametrize("preset", ["mlm", "span_corruption", "quickstart", "gpt2_124m"])
def test_every_structure_is_planned(preset):
    words = ["platform=auto"]
    words += ["tokenizer.path=null", "tokenizer.type=bpe"] if preset == "gpt2_124m" else []
    found = sketch(model(resolved(load(preset, words)), "gpu"), machine("h100:2"))
    assert found.fits and cost.rate(found).seconds > 0 and cost.total(found).tokens > 0


@pytest.mark.parametrize(
    "preset, words, device",
    [
        ("gpt2_124m", ["microbatches=16"], "a100:8"),
        ("llama_1b", ["model.experts.count=8", "mesh.expert=8"], "h100:8"),
    ],
)
def test_what_is_printed_beside_a_mesh_gives_what_was_said_of_it(preset, words, device):
    given = sketch(model(resolved(load(preset, words)), "gpu"), machine(device))
    said = page.plan(given)
    assert len(said["meshes"]) > 2
    for each in (*said["meshes"], said["tuning"][0]):  # the other stores what an init has
        again = resolved(load(preset, [*words, *each["overrides"]]))
        found = sketch(model(again, "gpu"), machine(each["device"]))
        assert (found.use.total, found.time.total) == (each["total"], each["seconds"])


@pytest.mark.parametrize("more", [[], ["trainable=[last_layers: 4]", "frozen_dtype=bfloat16"]])
def test_what_is_printed_beside_adapters_gives_what_was_said_of_them(tmp_path, more):
    (tmp_path / "config.json").write_text(json.dumps(recipes.MODELS["Mistral 7B"]))
    words = [f"init={tmp_path}", "mesh.slices=2", "mesh.data=2", "batch=16", *more]
    given = sketch(model(resolved(load("full", words)), "gpu"), machine("h100:16"))
    for each in page.plan(given)["tuning"]:
        again = resolved(load("full", [*words, *each["overrides"]]))
        found = sketch(model(again, "gpu"), machine(each["device"]))
        assert (found.use.total, found.time.total) == (each["total"], each["seconds"])
        assert found.fits and found.machine.count == 1


@pytest.mark.parametrize("preset", ["token_kinds", "sentiment"])
def test_classifiers_are_planned_before_their_labels_are_read(preset):
    words = ["init=null", "model.structure=encoder", "tokenizer.vocab=4096"]
    config = resolved(load(preset, words if preset == "sentiment" else []))
    assert config.model.head.labels == 2
    assert sketch(model(config, "cpu"), machine("cpu:1")).use.total > 0
