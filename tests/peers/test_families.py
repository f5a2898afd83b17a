"""Every family against transformers: its saved weights give our logits, and ours give its."""

import json
from pathlib import Path

import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.core import tree
from jaxlm.families import FAMILIES
from jaxlm.families.heads import SEQUENCE, TOKENS
from jaxlm.families.names import tensors, write
from jaxlm.hub.load import load_params, matched, open_folder
from jaxlm.hub.save import lazy
from jaxlm.hub.tensors import open_tensors
from jaxlm.inference.model import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.peers

CONFIGS = json.loads((Path(__file__).parents[1] / "families" / "configs.json").read_text())
LENGTHS = {"phi3": (48, 10), "llama dynamic": (48, 10)}
"""Longer than every window and every trained length, and in two families also shorter."""


def class_of(values):
    """The class of transformers for a configuration."""
    names = values.get("architectures")
    return getattr(transformers, names[0]) if names else transformers.AutoModelForCausalLM


def saved(values, folder):
    """A random network of transformers, every weight off its initial value, in a folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**values)
    config._attn_implementation = "eager"
    kind = class_of(values)
    net = kind.from_config(config) if "Auto" in kind.__name__ else kind(config)
    with torch.no_grad():
        for value in [*net.parameters(), *(b for n, b in net.named_buffers() if "logits" in n)]:
            value.add_(0.2 * torch.randn_like(value))
    net.float().eval().save_pretrained(folder)
    return net


def loaded(path):
    """Our model of a folder, in float32."""
    folder, layout = open_folder(path), networks.layout()
    return folder, Model(load_params(folder, layout), folder.spec, None, layout, jnp.float32)


def inputs(values, length):
    """What our network and theirs take, of random ids; a text ends with its one end token."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 97, (2, length)).astype(np.int32)
    kind = values.get("architectures", [""])[0]
    if "t5" in values["model_type"] or "ConditionalGeneration" in kind:
        source = rng.integers(3, 97, (2, length - 9)).astype(np.int32)
        return {"tokens": ids, "source": source}, {"decoder_input_ids": ids, "input_ids": source}
    if values["model_type"] == "bart":
        ids[:, -1] = 2
    if values["model_type"] == "bert":
        types = rng.integers(0, values.get("type_vocab_size", 2), ids.shape).astype(np.int32)
        return {"tokens": ids, "types": types}, {"input_ids": ids, "token_type_ids": types}
    return {"tokens": ids}, {"input_ids": ids}


def theirs(net, given):
    with torch.no_grad():
        return net(**{key: torch.tensor(ids).long() for key, ids in given.items()}).logits.numpy()


def apart(got, want):
    """The largest difference, as a share of the largest logit."""
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path):
    net = saved(CONFIGS[name], tmp_path)
    folder, model = loaded(tmp_path)
    assert folder.spec == folder.family.spec(CONFIGS[name])
    for length in LENGTHS.get(name, (48,)):
        mine, given = inputs(CONFIGS[name], length)
        assert apart(np.asarray(model.logits(**mine)), theirs(net, given)) < 2e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_the_tables_write(name, tmp_path):
    net = saved(CONFIGS[name], tmp_path / "in")
    folder, model = loaded(tmp_path / "in")
    params = tree.flatten(model.params)
    shapes = {leaf: value.shape for leaf, value in params.items()}
    pieces, _ = matched(folder, open_tensors(folder.path), shapes)
    out = tmp_path / "out"
    out.mkdir()
    made = folder.family.config(folder.spec)
    config = {**made, "eos_token_id": 2, "pad_token_id": made["pad_token_id"] or 1}
    (out / "config.json").write_text(json.dumps(config))
    file = {
        their_name: write(parts, [np.asarray(params[piece.leaf][piece.at]) for piece in parts])
        for their_name, parts in tensors(pieces).items()
    }
    safetensors.save_file(file, out / "model.safetensors", {"format": "pt"})
    again = class_of(CONFIGS[name]).from_pretrained(out, attn_implementation="eager")
    _, given = inputs(CONFIGS[name], 48)
    assert apart(theirs(again.eval(), given), theirs(net, given)) < 1e-5


DECODERS = [
    name
    for name, each in FAMILIES.items()
    if each.architecture.endswith(("ForCausalLM", "LMHeadModel"))
]


@pytest.mark.parametrize("kind", [SEQUENCE, TOKENS])
@pytest.mark.parametrize("name", DECODERS)
def test_classifiers_of_every_family_are_those_of_transformers(name, kind, tmp_path):
    family = FAMILIES[name]
    if kind not in family.classifiers:
        name_of = family.architecture.split("For")[0]
        assert not hasattr(transformers, f"{name_of}ForTokenClassification")
        return
    values = {"pad_token_id": 0, **CONFIGS[name], "id2label": {0: "a", 1: "b", 2: "c"}}
    net = saved(values | {"architectures": [family.classifiers[kind]]}, tmp_path)
    folder, model = loaded(tmp_path)
    mine, given = inputs(folder.config, 48)
    assert apart(np.asarray(model.logits(**mine)), theirs(net, given)) < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_are_what_transformers_takes_them_for(name):
    full = json.loads(transformers.AutoConfig.for_model(name).to_json_string(use_diff=False))
    assert FAMILIES[name].spec({"model_type": name}) == FAMILIES[name].spec(full)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_an_encoder_without_a_head_gives_the_hidden_states_of_transformers(name, tmp_path):
    bare = {"bert": "BertModel", "roberta": "RobertaModel", "modernbert": "ModernBertModel"}[name]
    values = {**CONFIGS[name], "architectures": [bare], "tie_word_embeddings": True}
    net = saved(values, tmp_path / "in")
    folder, model = loaded(tmp_path / "in")
    mine, given = inputs(values, 48)
    hidden = np.asarray(model.hidden(**mine))

    def last(net):
        with torch.no_grad():
            read = {key: torch.tensor(ids).long() for key, ids in given.items()}
            return net(**read).last_hidden_state.numpy()

    assert apart(hidden, last(net)) < 2e-4
    assert any("has no head" in note for note in folder.notes)
    file = {
        key: each.make() for key, each in lazy(model.params, folder.spec, folder.family).items()
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps(folder.family.config(folder.spec)))
    safetensors.save_file(file, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    again = transformers.AutoModel.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert type(again).__name__ == bare and apart(last(again.eval()), last(net)) < 1e-5
