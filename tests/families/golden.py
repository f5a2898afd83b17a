"""Golden fixtures: small networks of transformers, and the logits that it computed with them.

    python tests/families/golden.py [NAME ...]      # of configs.json; all by default

A fixture is a Hugging Face folder with inputs.safetensors beside the weights: tokens, what else the
network takes, and its logits. Weights are bfloat16, the arithmetic on them is float32. Making them
needs torch and transformers; reading them, by the functions above `make`, needs neither.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
CONFIGS = json.loads((HERE / "configs.json").read_text())
ROWS, LENGTH, SHORT = 2, 28, 10
"""Of the tokens: longer than every window, and for the scalings below also shorter than both."""
NARROW = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 16}
NARROW |= {"n_embd": 16, "n_inner": 24, "d_model": 16, "d_ff": 24}
NARROW |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
"""Widths that take less room in the repository than those of configs.json."""
KEPT = {"phi3": {"hidden_size": 32}}
"""Widths that the rest of a configuration was made for."""
LENGTHS_MATTER = ("dynamic", "longrope")
"""Scalings of rope that a short row does not have."""


def folder(name):
    """Where the fixture of a configuration lies."""
    return HERE / "golden" / name.replace(" ", "_")


NAMES = [name for name in CONFIGS if folder(name).is_dir()]
"""Of those that are made."""


def inputs(name):
    """(what the network takes, by the names of Model.logits; its logits) and the same, short."""
    held = load_file(folder(name) / "inputs.safetensors")
    cases = [("logits", LENGTH), ("short", SHORT)]
    right = {size: held.pop(key) for key, size in cases if key in held}
    return [({k: x[:, :size] for k, x in held.items()}, y) for size, y in right.items()]


def values(name):
    """What config.json of a fixture is made of."""
    narrow = {key: NARROW.get(key, value) for key, value in CONFIGS[name].items()}
    return narrow | KEPT.get(name, {})


def network(values):
    """The network of transformers that a config.json describes."""
    import transformers

    config = transformers.AutoConfig.for_model(**values)
    kind = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
    made = getattr(kind, "from_config", getattr(kind, "_from_config", None))
    return made(config, attn_implementation="eager").float().eval()


def make(name):
    """Make the fixture of a configuration, in place of an older one."""
    import torch

    torch.manual_seed(0)
    net = network(values(name))
    head = net.get_output_embeddings()
    if not values(name).get("tie_word_embeddings", True) and head is not None:
        head.weight = torch.nn.Parameter(head.weight.clone())  # tied by transformers in T5 1.1
    kept = net.state_dict()
    buffers = [value for key, value in net.named_buffers() if key in kept]
    with torch.no_grad():
        for value in [*net.parameters(), *(x for x in buffers if x.is_floating_point())]:
            value.add_(0.2 * torch.randn_like(value))
            value.copy_(value.bfloat16())
    given = drawn(net.config)
    found = given | {"logits": logits(net, given)}
    scaling = CONFIGS[name].get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) in LENGTHS_MATTER:
        found["short"] = logits(net, {"tokens": given["tokens"][:, :SHORT]})
    out = folder(name)
    shutil.rmtree(out, ignore_errors=True)
    net.bfloat16().save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    save_file(found, out / "inputs.safetensors")


def drawn(config):
    """Random inputs, by the names of Model.logits.

    What is read to both sides has a row that is padded and token types where there are several; the
    source of an encoder-decoder has its end.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(3, config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    both = getattr(config, "is_encoder_decoder", False)
    if not both and "CausalLM" in (config.architectures or ["CausalLM"])[0]:
        return {"tokens": ids}
    read = rng.integers(3, config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 9]])
    if both:
        read[0, -1] = read[1, LENGTH - 10] = config.eos_token_id
    read = np.where(mask, read, config.pad_token_id or 0).astype(np.int32)
    if both and "Classification" not in config.architectures[0]:
        return {"tokens": ids, "source": read, "source_mask": mask}
    kinds = getattr(config, "type_vocab_size", 1)
    types = rng.integers(0, kinds, read.shape).astype(np.int32)
    return {"tokens": read, "mask": mask} | ({"types": types} if kinds > 1 else {})


THEIRS = {"tokens": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
THEIRS_OF_TWO = {"tokens": "decoder_input_ids", "source": "input_ids"}
THEIRS_OF_TWO |= {"source_mask": "attention_mask"}
"""What transformers calls the inputs, and of an encoder-decoder."""


def logits(net, given):
    """What a network of transformers computes of inputs by our names."""
    import torch

    names = THEIRS_OF_TWO if "source" in given else THEIRS
    with torch.no_grad():
        found = net(**{names[key]: torch.tensor(x).long() for key, x in given.items()})
    return found.logits.numpy()


if __name__ == "__main__":
    for chosen in sys.argv[1:] or CONFIGS:
        make(chosen)
