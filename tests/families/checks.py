"""What a family must do with a golden fixture, for the tests and for the table of the docs.

Nothing here knows a family: what can be asked of one is seen from its spec and its inputs.
"""

from functools import cache

import jax
import jax.numpy as jnp
import networks
import numpy as np
from families import golden
from safetensors.numpy import load_file

from jaxlm.hub.load import load_params, open_folder
from jaxlm.hub.save import lazy
from jaxlm.inference.generate import Generator
from jaxlm.inference.model import Model
from jaxlm.models.transformer import make_forward

MESH = {"fsdp": 4, "tensor": 2}


@cache
def opened(name):
    """The folder of a fixture, its configuration read."""
    return open_folder(golden.folder(name))


@cache
def loaded(name):
    """The fixture's parameters in its own type."""
    return load_params(opened(name), networks.layout())


@cache
def model(name, **mesh):
    """The fixture's model as it answers, in float32, on one device or a mesh."""
    layout = networks.layout(**mesh)
    if mesh:
        params = load_params(opened(name), layout, jnp.float32)
    else:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), loaded(name))
    return Model(params, opened(name).spec, None, layout, jnp.float32)


def difference(name, **mesh):
    """The largest difference from the logits of transformers, as a share of the largest of them."""
    apart = []
    for given, right in golden.inputs(name):
        found = np.asarray(model(name, **mesh).logits(**given))
        assert found.shape == right.shape
        apart.append(np.abs(found - right).max() / np.abs(right).max())
    return float(max(apart))


def in_file(name, dtype):
    """The tensors of a fixture, cast."""
    file = load_file(golden.folder(name) / "model.safetensors")
    return {key: tensor.astype(dtype) for key, tensor in file.items()}


def written(params, folder):
    """The tensors that an export of `params` holds."""
    return {key: each.make() for key, each in lazy(params, folder.spec, folder.family).items()}


def bits(tensors):
    """Type, shape and bytes by name."""
    return {key: (x.dtype, x.shape, x.tobytes()) for key, x in tensors.items()}


def room(name):
    """How long a row may be where the cache may change no token.

    A rope whose waves depend on the length turns what comes later otherwise, and what the cache
    holds not again, here as in transformers: so rows of a dynamic one stay within the trained
    length, and in `starts` those of a longrope begin beyond it.
    """
    rope = opened(name).spec.rope
    return rope.original_length if rope.scaling == "dynamic" else golden.LENGTH


def starts(name):
    """(two prompts of different lengths, the first over the window; how many tokens to add)."""
    spec, tokens = opened(name).spec, golden.inputs(name)[0][0]["tokens"]
    longest = max(10, spec.window.size + 1)
    if spec.rope.scaling == "longrope":
        longest = max(longest, spec.rope.original_length + 1)
    prompts = [tokens[0, :longest].tolist(), tokens[1, :3].tolist()]
    return prompts, min(12, room(name) - longest)


def with_cache(name):
    """Greedy continuations of both prompts at once, padded on the left to one length."""
    spec, (prompts, count) = opened(name).spec, starts(name)
    generator = Generator(make_forward(spec, networks.layout(), jnp.float32), spec)
    steps = generator.tokens(model(name).params, prompts, max_tokens=count)
    return np.stack([*steps], axis=1).tolist()


def without_cache(name):
    """The same, each token from the logits of the whole row so far."""
    prompts, count = starts(name)
    rows = np.zeros((len(prompts), room(name)), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    for step in range(count):
        scores = np.asarray(model(name).logits(rows))
        for row, prompt, each in zip(rows, prompts, scores, strict=True):
            row[len(prompt) + step] = each[len(prompt) + step - 1].argmax()
    ends = [len(prompt) for prompt in prompts]
    return [row[end : end + count].tolist() for row, end in zip(rows, ends, strict=True)]
