import json
import subprocess
import sys

import pytest
from text import folders

from jaxlm.core.errors import DataError
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text import train

ELSEWHERE = """
import json, sys
from jaxlm.text import train
digest = train.train(sys.argv[1], 400, json.load(sys.stdin)).digest
print(json.dumps([digest, "jax" in sys.modules]))
"""


@pytest.mark.parametrize("type", train.TRAINERS)
def test_training_is_deterministic_in_another_process_without_jax(type, documents):
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, type],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [train.train(type, 400, documents).digest, False]


@pytest.mark.parametrize("type", train.TRAINERS)
def test_vocabulary_is_at_most_what_was_asked_for(type, documents):
    small = train.train(type, 330, documents)
    assert 256 < small.vocab <= 330
    assert small.bos is None
    assert small.pad == small.eos


def test_training_makes_text_shorter(documents):
    tokenizer = train.train("bpe", 400, documents)
    assert len(tokenizer.encode(documents[1])) < len(documents[1]) / 2


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_refused(texts):
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train.train("bpe", 300, texts)


def test_a_vocabulary_too_small_for_the_text_is_refused(documents):
    with pytest.raises(
        DataError, match=r"^tokenizer\.vocab: 257 is too small .*; use \d+ or more$"
    ) as raised:
        train.train("sentencepiece", 257, documents)
    enough = int(str(raised.value).split()[-3])
    assert train.train("sentencepiece", enough, documents).vocab <= enough


def test_null_characters_do_not_cost_a_line():
    with_null = train.train("sentencepiece", 300, ["word\0word word\n" * 20])
    assert with_null.decode(with_null.encode("a\0b")) == "a\0b"


def test_a_sample_does_not_depend_on_the_order_and_is_spread_out():
    texts = [f"{i:04}" for i in range(1000)]
    chosen = train.sample(texts, 2000)
    assert 900 < 4 * len(chosen) <= 2000
    assert set(chosen) == set(train.sample(reversed(texts), 2000))
    assert 0.35 < sum(text < "0500" for text in chosen) / len(chosen) < 0.65
    assert train.sample(texts, 4000) == texts
    assert len(train.sample(["a" * 10, "b" * 10], 1)) == 1


def named(tokenizer, ids):
    names = {index: name for name, index in tokenizer.names.items()}
    return " ".join(names[index] for index in ids)


@pytest.fixture(scope="module", params=train.TRAINERS)
def encoder(request, documents):
    return train.train(request.param, 400, documents, "encoder")


@pytest.fixture(scope="module", params=train.TRAINERS)
def pair(request, documents):
    return train.train(request.param, 500, documents, "encoder-decoder")


def test_an_encoders_tokenizer_has_the_form_of_roberta(encoder):
    ids = encoder.bos, encoder.pad, encoder.eos, encoder.mask
    assert named(encoder, ids) == "<s> <pad> </s> <mask>" and ids[:3] == (0, 1, 2)
    assert (encoder.role("cls"), encoder.role("sep")) == (encoder.bos, encoder.eos)
    assert encoder.sentinels == () and len(encoder.names) == 4
    a, b = encoder.encode("fox", add_special=False), encoder.encode("dog", add_special=False)
    assert encoder.encode("fox") == [0, *a, 2]
    assert encoder.joined(a, b) == ([0, *a, 2, 2, *b, 2], [0] * (len(a + b) + 4))


def test_an_encoder_decoders_tokenizer_has_the_form_of_t5(pair):
    assert (pair.bos, pair.pad, pair.eos) == (None, 0, 1)
    assert named(pair, [pair.mask, *pair.sentinels[:2]]) == "<mask> <extra_id_0> <extra_id_1>"
    assert len({*pair.sentinels}) == 100 and len(pair.names) == 103
    a, b = pair.encode("fox", add_special=False), pair.encode("dog", add_special=False)
    assert pair.encode("fox") == [*a, 1]
    assert pair.joined(a, b) == ([*a, 1, *b, 1], [0] * (len(a + b) + 2))
    ids = pair.encode("the<extra_id_7> dog", parse_special=True)
    assert pair.sentinels[7] in ids and pair.sentinels[7] not in pair.encode("the<extra_id_7> dog")


@pytest.mark.parametrize("structure", ["encoder", "encoder-decoder"])
@pytest.mark.parametrize("type", train.TRAINERS)
def test_text_comes_back_from_every_structure(type, structure, documents, tmp_path):
    tokenizer = train.train(type, 500, documents, structure)
    tokenizer.save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.digest == tokenizer.digest and loaded.names == tokenizer.names
    assert (loaded.frame, loaded.pair_frame) == (tokenizer.frame, tokenizer.pair_frame)
    assert (loaded.pad, loaded.mask, loaded.sentinels) == (
        tokenizer.pad,
        tokenizer.mask,
        tokenizer.sentinels,
    )
    unseen = folders.UNSEEN.replace("\u2581", "")  # which decodes as a space
    for text in [unseen, *folders.with_specials(["<mask>", "<pad>", "<extra_id_0>"])]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert loaded.encode(text) == tokenizer.encode(text)
        assert not {*tokenizer.encode(text, add_special=False)} & {*tokenizer.names.values()}


@pytest.mark.parametrize("structure", train.FORMS)
@pytest.mark.parametrize("type", train.TRAINERS)
def test_special_tokens_count_and_have_room_or_the_vocabulary_is_refused(
    type, structure, documents
):
    with pytest.raises(DataError, match=r"^tokenizer\.vocab: 250 .*use \d+ or more$") as raised:
        train.train(type, 250, documents, structure)
    enough = int(str(raised.value).split()[-3])
    assert train.train(type, enough, documents, structure).vocab <= enough


def test_what_is_masked_takes_the_space_before_it(documents):
    tokenizer = train.train("bpe", 400, documents, "encoder")
    ids = tokenizer.encode("the <mask> fox", parse_special=True, add_special=False)
    at = ids.index(tokenizer.mask)
    assert ids[:at] == tokenizer.encode("the", add_special=False)
    assert ids[at + 1 :] == tokenizer.encode(" fox", add_special=False)
