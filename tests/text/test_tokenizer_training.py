import json
import subprocess
import sys

import pytest

from jaxlm.core.errors import DataError
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
