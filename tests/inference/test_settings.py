"""What generation is asked for and cannot be is one line, and large settings are no overflow."""

import networks
import pytest

from jaxlm.core.errors import ConfigError
from jaxlm.inference.generate import Generator
from jaxlm.models.transformer import make_forward


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
