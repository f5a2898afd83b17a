"""Beams are those of transformers' generate, token for token and in its order, with its scores."""

from collections import Counter

import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.hub.load import load_params, open_folder
from jaxlm.inference.beam import BeamSearch
from jaxlm.models.transformer import make_forward

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

VOCAB, PAD, START, BEAMS = 40, 39, 38, 4
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": START,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": START,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
NETS = {
    "T5": ("T5ForConditionalGeneration", "T5Config", T5),
    "T5 1.1": ("T5ForConditionalGeneration", "T5Config", T5 | GATED),
    "BART": ("BartForConditionalGeneration", "BartConfig", BART),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
}


@pytest.fixture(scope="module", params=NETS)
def pair(request, tmp_path_factory):
    """(their network with random weights, our search of the folder that it was saved to)."""
    kind, config, how = NETS[request.param]
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": PAD}
    torch.manual_seed(5)
    net = getattr(transformers, kind)(
        getattr(transformers, config)(vocab_size=VOCAB, **how, **ids, attn_implementation="eager")
    )
    for name, weight in net.named_parameters():  # large, or all scores are about equal
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.3)
    folder = tmp_path_factory.mktemp("net")
    net.save_pretrained(folder)
    found = open_folder(str(folder))
    params = load_params(found, networks.layout())
    search = BeamSearch(make_forward(found.spec, networks.layout(), jnp.float32), found.spec)
    return net.eval(), lambda prompts, **how: search.beams(params, prompts, beams=BEAMS, **how)


def theirs(net, prompts, max_tokens, ends, length_penalty):
    """Their sequences after the prompts, [B, K, T], and scores [B, K]."""
    longest, pairs = max(map(len, prompts)), net.config.is_encoder_decoder
    fill = [[PAD] * (longest - len(prompt)) for prompt in prompts]
    each = list(zip(prompts, fill, strict=True))
    ids = [[*row, *pad] if pairs else [*pad, *row] for row, pad in each]
    net.generation_config = transformers.GenerationConfig(
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=length_penalty,
        max_new_tokens=max_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=PAD,
        decoder_start_token_id=START if pairs else None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    given = torch.tensor(ids)
    found = net.generate(input_ids=given, attention_mask=(given != PAD).long())
    new = found.sequences[:, 1 if pairs else longest :].numpy()
    shape = len(prompts), BEAMS, -1
    return new.reshape(shape), found.sequences_scores.numpy().reshape(shape)[..., 0]


PROMPTS = np.random.default_rng(3).integers(2, 30, (4, 11))
PROMPTS = [row[:length].tolist() for row, length in zip(PROMPTS, (11, 1, 9, 2), strict=True)]


def lengths(net, search, **how):
    """The lengths of ours, which are theirs."""
    found, (rows, scores) = search(PROMPTS, **how), theirs(net, PROMPTS, **how)
    for beams, tokens, right in zip(found, rows, scores, strict=True):
        for beam, row in zip(beams, tokens.tolist(), strict=True):
            assert beam.ids == row[: len(beam.ids)] and set(row[len(beam.ids) :]) <= {PAD}
        np.testing.assert_allclose([beam.score for beam in beams], right, rtol=2e-5, atol=1e-5)
    return {len(beam.ids) for beams in found for beam in beams}


def rare(search, count):
    """Ids that some beams hold beyond their first token."""
    said = search(PROMPTS, max_tokens=10, ends=range(PAD + 1 - count, PAD + 1))
    each = Counter(token for beams in said for beam in beams for token in beam.ids[1:-1])
    return tuple(token for token, _ in each.most_common()[-count:])


def test_beams_are_theirs(pair):
    net, search = pair
    ends = rare(search, 2)
    found = {
        length
        for penalty in (0.5, 1.0, 2.0)
        for length in lengths(net, search, max_tokens=10, ends=ends, length_penalty=penalty)
    }
    assert 10 in found and min(found) < 10  # some ended, some were cut
    assert max(lengths(net, search, max_tokens=2, ends=ends, length_penalty=1.0)) == 2


@pytest.mark.parametrize("pair", ["BART"], indirect=True)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_any_number_of_ids_may_end_a_beam(pair, count):
    net, search = pair
    ends = rare(search, count) if count else ()
    found = lengths(net, search, max_tokens=24, ends=ends, length_penalty=-1.0)
    assert found == {24} if not count else min(found) < 24
