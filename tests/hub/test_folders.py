"""Whole folders: what is written loads again, bit for bit, on any mesh; a misfit is named."""

import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import networks
import numpy as np
import processes
import pytest
from safetensors.numpy import save_file

import jaxlm
from jaxlm.core import errors, tree
from jaxlm.core.errors import CheckpointError, ConfigError, StorageError
from jaxlm.hub.load import load_params, open_folder
from jaxlm.hub.save import save
from jaxlm.hub.tensors import open_tensors
from jaxlm.models.transformer import make_forward
from jaxlm.text.train import train

SHAPES = {
    "llama": {},
    "gpt2": {**networks.GPT2},
    "mixtral": {"experts": {"count": 4}, "window": {"size": 6}, "tied": False},
    "gemma3_text": {
        **networks.SHAPES["gemma"],
        "scale": {"embed": 32**0.5, "query": 0.25, "logits_cap": 4.0},
    },
}
TEXT = "def main(argument):\n    return [word for word in argument if word]\n" * 20
BIG = 10**9


@pytest.fixture(scope="module")
def tokenizer():
    return train("bpe", 300, [TEXT])


def spec_of(name, vocab):
    return networks.spec(**SHAPES[name], vocab=vocab)


@pytest.fixture(scope="module", params=SHAPES)
def written(request, tmp_path_factory, tokenizer):
    """(folder, spec, parameters) of each shape, exported."""
    spec = spec_of(request.param, tokenizer.vocab)
    params, out = networks.params(spec), tmp_path_factory.mktemp("hub") / "out"
    assert save(out, params, spec, tokenizer, max_shard_bytes=BIG).model_type == request.param
    return out, spec, params


def without_padding(params, vocab):
    """Rows that stand for no id are not in a file."""
    cut = {"embed/embedding": np.s_[:vocab], "head/kernel": np.s_[:, :vocab]}
    return {n: np.asarray(x)[cut.get(n, ...)] for n, x in tree.flatten(params).items()}


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_what_was_written_is_read_bit_for_bit_on_any_mesh(written, mesh):
    out, spec, params = written
    loaded = load_params(open_folder(out), networks.layout(**mesh))
    networks.assert_same(*(without_padding(p, spec.vocab) for p in (loaded, params)))
    shards = [leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(loaded)]
    whole = [leaf.size for leaf in jax.tree.leaves(loaded)]
    assert sum(shards) < 0.4 * sum(whole) or not mesh


def test_replicas_share_their_memory_until_they_are_donated(written):
    out, spec, params = written
    loaded = load_params(open_folder(out), networks.layout(data=2))
    lies = jax.tree.map(lambda leaf: leaf.sharding, loaded)
    double = jax.jit(
        lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0, out_shardings=lies
    )
    twice = jax.tree.map(lambda x: 2 * x, params)
    shards = [leaf.addressable_shards for leaf in jax.tree.leaves(double(loaded))]
    for copy in zip(*shards, strict=True):
        replica = jax.tree.unflatten(jax.tree.structure(loaded), [shard.data for shard in copy])
        networks.assert_same(*(without_padding(p, spec.vocab) for p in (replica, twice)))


def test_the_model_of_a_folder_has_the_logits_of_the_parameters(written, tokenizer):
    out, spec, params = written
    tokens = np.random.default_rng(0).integers(0, tokenizer.vocab, (2, 12))
    forward = make_forward(spec, networks.layout(), jnp.float32)
    at = np.broadcast_to(np.arange(12), (2, 12))
    x, _ = forward.hidden(params, {"tokens": jnp.asarray(tokens), "positions": at}, None)
    right = forward.logits(forward.head(params), x)[..., : spec.vocab]
    model = jaxlm.load(out)
    np.testing.assert_allclose(model.logits(tokens), right, atol=1e-5)
    assert model.generate(["def "], max_tokens=4) == jaxlm.load(out).generate(
        ["def "], max_tokens=4
    )


def test_import_then_export_is_the_identity(written, tokenizer, tmp_path):
    out, spec, _ = written
    folder = open_folder(out)
    params = load_params(folder, networks.layout())
    again = tmp_path / "again"
    save(again, params, spec, tokenizer, max_shard_bytes=20_000, config=folder.config)
    first, second = open_tensors(out), open_tensors(again)
    assert first.keys() == second.keys() and len(list(again.glob("*.safetensors"))) > 1
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].tobytes() == second[name].tobytes(), name
    assert json.loads((again / "config.json").read_text()) == folder.config


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_stay_sixteen_bits(tokenizer, tmp_path, dtype):
    spec, out = spec_of("llama", tokenizer.vocab), tmp_path / "out"
    save(out, networks.params(spec), spec, tokenizer, dtype=dtype, max_shard_bytes=BIG)
    loaded = load_params(open_folder(out), networks.layout())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {dtype}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    ("kind", "line"),
    [("int8", "holds int8, which is no type of weights"), ("float64", "rounded only where")],
)
def test_weights_that_jax_would_take_for_others_are_refused(tokenizer, tmp_path, kind, line):
    spec, out = spec_of("llama", tokenizer.vocab), tmp_path / "out"
    save(out, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)
    tensors = {name: array.astype(kind) for name, array in open_tensors(out).items()}
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(CheckpointError, match=line):
        load_params(open_folder(out), networks.layout())
    if kind == "float64":
        loaded = load_params(open_folder(out), networks.layout(), jnp.float32)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}


def test_numbers_beyond_float16_are_refused_not_made_infinite(tokenizer, tmp_path):
    spec, out = spec_of("llama", tokenizer.vocab), tmp_path / "out"
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16") * 1e6, networks.params(spec))
    with pytest.raises(CheckpointError, match="beyond float16"):
        save(tmp_path / "half", params, spec, tokenizer, dtype="float16", max_shard_bytes=BIG)
    assert os.listdir(tmp_path) == []
    save(out, params, spec, tokenizer, max_shard_bytes=BIG)
    with pytest.raises(CheckpointError, match="beyond float16"):
        load_params(open_folder(out), networks.layout(), jnp.float16)


def test_a_configuration_that_nests_without_end_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="not JSON"):
        open_folder(tmp_path)


@pytest.mark.once
def test_a_run_starts_from_a_folder_and_generates(tmp_path, tokenizer):
    spec, base = spec_of("llama", tokenizer.vocab), tmp_path / "base"
    spec = spec.model_copy(update={"max_length": 64})
    save(base, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    words = [*own, f"init={base}", "lora.rank=2"]
    for steps in ("steps=2", "steps=3"):  # the second continues
        code, _, err = processes.run(*words, steps)
        assert code == errors.DONE, err
    code, out, err = processes.run(
        "generate", str(tmp_path / "run"), "--prompt", "def ", "--max-tokens", "8"
    )
    assert code == errors.DONE and out.startswith("def "), err
    code, out, err = processes.run("generate", str(base), "--prompt", "def ", "--max-tokens", "8")
    assert code == errors.DONE and out.startswith("def "), err


def broken(out, change):
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c.update(num_hidden_layers=3), "has no tensor model.layers.2"),
        (lambda c: c.update(num_hidden_layers=1), "model.layers.1.* is no part of the model"),
        (
            lambda c: c.update(intermediate_size=8),
            r"has the shape \[88, 32\]; the configuration makes it \[8, 32\]",
        ),
        (lambda c: c.update(model_type="nonsense"), "model_type='nonsense' is not supported"),
        (lambda c: c.update(a_new_option=2), "a_new_option"),
    ],
)
def test_a_configuration_that_does_not_fit_the_tensors_is_named(tokenizer, tmp_path, change, line):
    spec, out = spec_of("llama", tokenizer.vocab), tmp_path / "out"
    save(out, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)
    broken(out, change)
    with pytest.raises(CheckpointError, match=line):
        load_params(open_folder(out), networks.layout())


def test_nothing_half_written_keeps_the_name(tokenizer, tmp_path):
    spec, out = spec_of("llama", tokenizer.vocab), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError):
            save(out, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_exists_is_not_written_into(tokenizer, tmp_path):
    spec = spec_of("llama", tokenizer.vocab)
    with pytest.raises(ConfigError, match="exists; name a folder that does not"):
        save(tmp_path, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)


def test_a_folder_with_another_models_tokenizer_is_refused(tokenizer, tmp_path):
    spec, out = networks.spec(), tmp_path / "out"  # 97 ids
    save(out, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)
    with pytest.raises(
        CheckpointError, match=f"its tokenizer has {tokenizer.vocab} ids, its model 97"
    ):
        jaxlm.load(out)
    shutil.rmtree(out)


def test_what_is_ignored_is_said(tokenizer, tmp_path, capsys):
    spec, out = spec_of("llama", tokenizer.vocab), tmp_path / "out"
    save(out, networks.params(spec), spec, tokenizer, max_shard_bytes=BIG)
    broken(out, lambda c: c.update(auto_map={"AutoModel": "code.Model"}, attention_dropout=0.1))
    (out / "code.py").write_text("raise SystemExit('executed')")
    jaxlm.load(out)
    said = capsys.readouterr().err
    assert "auto_map is ignored" in said and "dropout" not in said  # nothing trains here
