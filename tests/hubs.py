"""Hugging Face folders of random weights, for any family's configuration, that tests share."""

import json
from pathlib import Path

import networks

from jaxlm.families import find
from jaxlm.hub.save import lazy
from jaxlm.hub.shards import write_tensors
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
