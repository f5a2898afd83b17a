"""Every family against transformers: its saved weights give our logits, and ours give its."""

import json
from pathlib import Path

import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.families import FAMILIES, find
from jaxlm.families.names import expand, in_file, missing, read, tensors, unfilled, unused, write
from jaxlm.models.transformer import make_forward, param_shapes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.peers

CONFIGS = json.loads((Path(__file__).parents[1] / "families" / "configs.json").read_text())
LENGTHS = {"phi3": (48, 10), "llama dynamic": (48, 10)}
"""Longer than every window and every trained length, and in two families also shorter."""


def saved(values, folder):
    """A random network of transformers, every weight off its initial value, in a folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**values)
    net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.2 * torch.randn_like(value))
    net.float().eval().save_pretrained(folder)
    return net


def loaded(folder):
    """The spec and our parameters of a folder, through the family's tables."""
    values = json.loads((folder / "config.json").read_text())
    family, file = find(values), safetensors.load_file(folder / "model.safetensors")
    spec = family.spec(values)
    leaves = tree.flatten(param_shapes(spec, networks.layout(), jnp.float32))
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    pieces, names = expand(family.weights, shapes, spec.vocab), in_file(file, family.prefix)
    assert [unfilled(pieces, shapes), missing(pieces, names)] == [[], []]
    assert unused(pieces, names, family.ignored, []) == []
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for piece in pieces:
        leaf = params[piece.leaf]
        tensor = file[names[piece.name]]
        leaf[piece.at] = read(piece, tensor, leaf.shape[len(piece.at) :])
    return family, spec, pieces, params


def ours(spec, params, ids):
    """Logits [B, L, V] of our network."""
    forward = make_forward(spec, networks.layout(), jnp.float32)
    tree_of = tree.unflatten({name: jnp.asarray(leaf) for name, leaf in params.items()})
    at = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    hidden, _ = forward.hidden(tree_of, {"tokens": ids, "positions": at}, None)
    return np.asarray(forward.logits(forward.head(tree_of), hidden))[..., : spec.vocab]


def theirs(net, ids):
    with torch.no_grad():
        return net(torch.tensor(ids).long()).logits.numpy()


def apart(got, want):
    """The largest difference, as a share of the largest logit."""
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path):
    net = saved(CONFIGS[name], tmp_path)
    family, spec, _, params = loaded(tmp_path)
    assert spec == family.spec(CONFIGS[name])
    for length in LENGTHS.get(name, (48,)):
        ids = np.random.default_rng(0).integers(0, 97, (2, length)).astype(np.int32)
        want, got = theirs(net, ids), ours(spec, params, ids)
        assert apart(got, want) < 2e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_the_tables_write(name, tmp_path):
    net = saved(CONFIGS[name], tmp_path / "in")
    family, spec, pieces, params = loaded(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(family.config(spec)))
    file = {
        their_name: write(parts, [params[piece.leaf][piece.at] for piece in parts])
        for their_name, parts in tensors(pieces).items()
    }
    safetensors.save_file(file, out / "model.safetensors", {"format": "pt"})
    again = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    ids = np.random.default_rng(0).integers(0, 97, (2, 48))
    assert apart(theirs(again.eval(), ids), theirs(net, ids)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_are_what_transformers_takes_them_for(name):
    full = json.loads(transformers.AutoConfig.for_model(name).to_json_string(use_diff=False))
    assert FAMILIES[name].spec({"model_type": name}) == FAMILIES[name].spec(full)
