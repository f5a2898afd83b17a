"""The shares of masking beside transformers' DataCollatorForLanguageModeling."""

import numpy as np
import pytest

from jaxlm.data import masking
from jaxlm.data.noise import generator

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.peers

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH, ROWS, VOCAB, MASK = 128, 300, 1000, NAMES.index("[MASK]")


def collator():
    vocab = {name: i for i, name in enumerate([*NAMES, *map(str, range(len(NAMES), VOCAB))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    roles = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{role}_token": name for role, name in zip(roles, NAMES, strict=True)}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    return transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=0.15, return_tensors="np", seed=1
    )


def shares(chosen, before, after):
    """Shares of all that may be masked that are predicted, and of these hidden, random, kept."""
    hidden, kept = chosen & (after == MASK), chosen & (after == before)
    count = chosen.sum()
    parts = [hidden.sum(), count - hidden.sum() - kept.sum(), kept.sum()]
    return np.array([count / (ROWS * (LENGTH - 2)), *(np.array(parts) / count)])


def test_shares_are_the_collators_within_its_chance():
    rng = np.random.default_rng(0)
    ids = rng.integers(len(NAMES), VOCAB, (ROWS, LENGTH)).astype(np.int32)
    ids[:, 0], ids[:, -1] = NAMES.index("[CLS]"), NAMES.index("[SEP]")
    made = collator()([{"input_ids": row.tolist()} for row in ids])
    labels = np.asarray(made["labels"])
    theirs = shares(labels != -100, ids, np.asarray(made["input_ids"]))

    chosen, found = np.zeros(ids.shape, bool), ids.copy()
    others = np.arange(len(NAMES), VOCAB, dtype=np.int32)
    for number, row in enumerate(ids):
        at, found[number] = masking.mask_row(
            row,
            generator(0, number),
            may=row >= len(NAMES),
            starts=np.ones(LENGTH, bool),
            rate=0.15,
            hidden=0.8,
            random=0.1,
            unit="token",
            mask=MASK,
            others=others,
        )
        chosen[number, at] = True
    ours = shares(chosen, ids, found)
    total = ROWS * (LENGTH - 2)
    counts = np.array([total, *[0.15 * total] * 3])
    wanted = np.array([0.15, 0.8, 0.1, 0.1])
    assert (abs(ours - theirs) < 4 * np.sqrt(2 * wanted * (1 - wanted) / counts)).all()
    assert not chosen[:, [0, -1]].any() and not (labels[:, [0, -1]] != -100).any()
    assert chosen.sum(axis=1).tolist() == [round(0.15 * (LENGTH - 2))] * ROWS  # theirs vary
