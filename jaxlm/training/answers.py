"""What a model answers while it is trained: greedily, or by beam search."""

from collections.abc import Callable

import numpy as np

from jaxlm.config.schema import Samples
from jaxlm.core.errors import ConfigError
from jaxlm.core.tree import Params
from jaxlm.inference.beam import BeamSearch
from jaxlm.inference.generate import Generator
from jaxlm.inference.prompts import Prompts
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Forward
from jaxlm.text.tokenizer import Tokenizer

Answer = Callable[[Prompts, Params, Callable[[], None]], list[str]]
"""(ids of prompts, parameters, what is called when something is done) -> an answer to each."""


def answering(
    how: Samples, forward: Forward, spec: ModelSpec, tokenizer: Tokenizer, *, shards: int
) -> Answer:
    """The way to answer that `how` asks for. shards: over how many devices the rows split.

    Raises ConfigError for more beams than there are ids.
    """
    if how.beams > spec.vocab:
        what = f"{how.beams} is more than the {spec.vocab} ids there are; use fewer"
        raise ConfigError("samples.beams", what)
    write = _greedy if how.beams == 1 else _searched
    found = write(how, forward, spec, tokenizer)
    after = spec.structure == "decoder"  # an encoder-decoder's answer follows nothing

    def answer(prompts: Prompts, params: Params, beat: Callable[[], None]) -> list[str]:
        starts = [list(prompt) for prompt in prompts]
        said = found(params, starts + starts[:1] * (-len(starts) % shards), beat)
        each = zip(starts, said, strict=False)
        return [tokenizer.continuation(start if after else [], ids) for start, ids in each]

    return answer


Write = Callable[[Params, Prompts, Callable[[], None]], list[list[int]]]


def _greedy(how: Samples, forward: Forward, spec: ModelSpec, tokenizer: Tokenizer) -> Write:
    generator = Generator(forward, spec)

    def write(params: Params, prompts: Prompts, beat: Callable[[], None]) -> list[list[int]]:
        said = np.zeros((len(prompts), 0), np.int32)
        for tokens in generator.tokens(params, prompts, max_tokens=how.tokens):
            said = np.concatenate([said, tokens[:, None]], 1)
            beat()
            if np.isin(said, tokenizer.ends).any(1).all():
                break
        return said.tolist()

    return write


def _searched(how: Samples, forward: Forward, spec: ModelSpec, tokenizer: Tokenizer) -> Write:
    search = BeamSearch(forward, spec)

    def write(params: Params, prompts: Prompts, beat: Callable[[], None]) -> list[list[int]]:
        found = search.beams(
            params,
            prompts,
            beams=how.beams,
            max_tokens=how.tokens,
            ends=tokenizer.ends,
            length_penalty=how.length_penalty,
        )
        beat()
        return [beams[0].ids for beams in found]

    return write
