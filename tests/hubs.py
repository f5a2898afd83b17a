"""Hugging Face folders of random weights, for any family's configuration, that tests share."""

import json
from pathlib import Path

import networks
import numpy as np

from jaxlm.core import tree
from jaxlm.families import find
from jaxlm.hub.adapter_save import save_adapter
from jaxlm.hub.save import lazy
from jaxlm.hub.shards import write_tensors
from jaxlm.inference import adapters
from jaxlm.models import lora
from jaxlm.text.train import train

CONFIGS = json.loads((Path(__file__).parent / "families" / "configs.json").read_text())
"""A small configuration of every family, by name."""
TEXT = "def main(argument):\n    return [word for word in argument if word]\n" * 20
TOKENIZER = train("bpe", 270, [TEXT])


def write(folder, name, *, change=lambda params: params, tokenizer=TOKENIZER, **keys):
    """A folder whose weights are random and whose every token has a row; the folder.

    change: parameters -> others. keys: of config.json, besides those of the configuration.
    """
    config = {**CONFIGS[name], "vocab_size": tokenizer.vocab, "bos_token_id": None, **keys}
    spec = find(config).spec(config)
    params = change(networks.params(spec))
    write_tensors(folder, lazy(params, spec, find(config)), max_shard_bytes=40_000)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save(folder)
    return folder


def write_adapter(model, out, seed, **how):
    """An adapter of random B in the folder `out`, and its parameters."""
    given = {"rank": 2, "alpha": 4.0, "targets": ["all-linear"]} | how
    made = lora.add(model.params, networks.layout(), networks.ROOT, **given)

    def one(name, leaf):
        noise = np.random.default_rng([seed, *name.encode()]).normal(size=leaf.shape)
        return leaf + noise.astype(leaf.dtype) if name.endswith("lora_b") else leaf

    params = tree.map_named(one, made)
    family = adapters.family_of(model._config, model.spec)
    digest = adapters.base_digest(model.params, model.spec)
    save_adapter(out, params, model.spec, family, base=digest)
    return params
