"""Small networks of transformers in the repository: their logits here, and their bytes back."""

import json

import jax
import pytest
import tokenizers
import typer.main
from families import checks, golden

from jaxlm import cli
from jaxlm.families import find
from jaxlm.hub.save import save
from jaxlm.text import tokenizer as text


@pytest.fixture(scope="module", params=golden.NAMES)
def name(request):
    """Of a fixture: its tests come one after the other and share what was loaded."""
    return request.param


def test_every_configuration_has_a_fixture_and_all_are_small():
    assert [*golden.CONFIGS] == golden.NAMES, "run python tests/families/golden.py"
    files = [file for file in (golden.HERE / "golden").rglob("*") if file.is_file()]
    assert {file.parent for file in files} == {golden.folder(name) for name in golden.NAMES}
    assert sum(file.stat().st_size for file in files) < 2_000_000
    for name in golden.NAMES:
        values = golden.values(name)
        assert find(values).spec(values) == checks.opened(name).spec, f"make {name} again"


def test_logits_are_those_that_transformers_computed(name):
    assert checks.difference(name) < 2e-4


def test_a_mesh_holds_shards_and_has_the_same_logits(name):
    params = checks.model(name, **checks.MESH).params
    shards = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    assert shards < 0.4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert checks.difference(name, **checks.MESH) < 2e-4


def test_import_then_export_is_the_identity_in_every_type(name, tmp_path):
    for dtype, params in checks.in_every_type(name, tmp_path).items():
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
        assert checks.is_file(name, params, dtype)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One id for each letter of TEXT, and an end: fewer than any fixture's network has."""
    vocab = {letter: i for i, letter in enumerate(["<unk>", "</s>", *sorted({*TEXT})])}
    model = tokenizers.models.BPE(vocab, [], unk_token="<unk>")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    return text.load(folder)


TEXT = "def main(words):\n    return [word for word in words]"


def test_the_verb_verifies_what_was_exported(name, tokenizer, tmp_path, capsys):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    tokenizer.save(theirs)
    for file in ("config.json", "model.safetensors"):
        (theirs / file).symlink_to(golden.folder(name) / file)
    folder = checks.opened(name)
    how = {"max_shard_bytes": 10**9, "config": folder.config}
    save(ours, checks.loaded(name), folder.spec, text.load(theirs), **how)
    (tmp_path / "text").write_text(TEXT)
    words = ["verify", str(theirs), str(ours), "--receipt", str(tmp_path)]
    command = typer.main.get_command(cli.app)
    command(["convert", *words, "--text", str(tmp_path / "text")], standalone_mode=False)
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["verdict"] == "equal" and receipt["figures"]["largest difference"] == 0
    assert receipt["a"]["digest"] == receipt["b"]["digest"]
