"""What generation is asked for and cannot be is one line, and large settings are no overflow."""

import networks
import numpy as np
import pytest

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.inference.generate import Generator
from jaxlm.inference.model import Model
from jaxlm.models.transformer import make_forward
from jaxlm.text.train import train


@pytest.fixture(scope="module")
def generate():
    spec = networks.spec()
    generator = Generator(make_forward(spec, networks.layout(), "float32"), spec)

    def tokens(prompt=(1, 2, 3), **how):
        return [int(t[0]) for t in generator.tokens(networks.params(spec), [prompt], **how)]

    return tokens


@pytest.mark.parametrize("how", [{"seed": 2**32}, {"seed": -1}, {"temperature": -1.0}])
def test_settings_out_of_range_are_refused(generate, how):
    with pytest.raises(ConfigError, match=f"^--{next(iter(how))}: "):
        generate(max_tokens=2, **how)


def test_top_k_beyond_the_vocabulary_keeps_every_token(generate):
    how = {"max_tokens": 4, "temperature": 1.0}
    assert generate(top_k=10**12, **how) == generate(top_k=0, **how)


def test_a_prompt_that_fills_the_positions_is_told_to_be_shorter(generate):
    with pytest.raises(ConfigError, match="positions; shorten the prompt"):
        generate([1] * networks.spec().max_length, max_tokens=1)


@pytest.fixture(scope="module")
def model():
    tokenizer = train("bpe", 300, ["def main():\n    return 1\n"] * 9)
    spec = networks.spec().model_copy(update={"vocab": tokenizer.vocab})
    return Model(networks.params(spec), spec, tokenizer, networks.layout(), "float32")


@pytest.mark.parametrize("tokens", [[[1, 2], [3]], np.zeros((0, 3), int), [[]], [1, 2], [[999]]])
def test_tokens_that_are_no_rows_of_ids_are_refused(model, tokens):
    with pytest.raises(DataError, match="^tokens: "):
        model.logits(tokens)


@pytest.mark.parametrize("prompts", ["def main(", [[1, 2]]])
def test_prompts_are_a_list_of_texts(model, prompts):
    with pytest.raises(DataError, match="^prompts: are a list of texts"):
        model.generate(prompts, max_tokens=1)
