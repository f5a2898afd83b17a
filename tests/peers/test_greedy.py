"""Greedy continuations are those of transformers' generate, for every golden fixture."""

import pytest
from families import checks, golden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers


def theirs(name):
    """What transformers adds to the prompts of `checks.starts`, in one batch."""
    prompts, count = checks.starts(name)
    kind = getattr(transformers, checks.opened(name).config["architectures"][0])
    net = kind.from_pretrained(golden.folder(name), dtype="float32", attn_implementation="eager")
    longest = max(map(len, prompts))
    fill = [longest - len(prompt) for prompt in prompts]
    ids = [[0] * n + prompt for n, prompt in zip(fill, prompts, strict=True)]
    mask = [[0] * n + [1] * len(prompt) for n, prompt in zip(fill, prompts, strict=True)]
    how = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return net.eval().generate(**given, generation_config=how)[:, longest:].tolist()


@pytest.mark.parametrize("name", golden.NAMES)
def test_greedy_continuations_are_theirs_token_for_token(name):
    assert checks.with_cache(name) == theirs(name)
