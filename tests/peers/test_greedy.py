"""Greedy continuations are those of transformers' generate, for every golden fixture."""

import pytest
from families import checks, golden

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers


def theirs(name):
    """What transformers adds to the prompts of `checks.starts`, in one batch."""
    prompts, count = checks.starts(name)
    folder = checks.opened(name)
    kind = getattr(transformers, folder.config["architectures"][0])
    net = kind.from_pretrained(folder.path, dtype="float32", attn_implementation="eager")
    longest = max(map(len, prompts))
    fill = [[0] * (longest - len(prompt)) for prompt in prompts]
    ids = [zeros + prompt for zeros, prompt in zip(fill, prompts, strict=True)]
    mask = [zeros + [1] * len(prompt) for zeros, prompt in zip(fill, prompts, strict=True)]
    how = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    if folder.spec.structure == "encoder-decoder":
        how["decoder_start_token_id"] = folder.spec.encoder.start
        how["use_cache"] = False  # made with as many layers as T5's encoder has
        ids = [prompt + zeros for zeros, prompt in zip(fill, prompts, strict=True)]
        mask, longest = [row[::-1] for row in mask], 1
    net.generation_config = transformers.GenerationConfig(**how)
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return net.eval().generate(**given)[:, longest:].tolist()


@pytest.mark.parametrize("name", [*filter(checks.generates, golden.NAMES)])
def test_greedy_continuations_are_theirs_token_for_token(name):
    assert checks.with_cache(name) == theirs(name)
