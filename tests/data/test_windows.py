import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.errors import DataError
from jaxlm.data import packing
from jaxlm.data.cache import Tokens

PAD = 99


def stream(sizes):
    """Documents of these sizes; each token is its own number."""
    total = sum(sizes)
    return Tokens(np.arange(total, dtype=np.uint32), np.cumsum([0, *sizes]), "stream", "digest")


def whole(tokens, length):
    rows = np.arange(packing.count(tokens.ids.size, length))
    return packing.windows(tokens, rows, length, vocab=10**6, pad=PAD)


SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@settings(deadline=None)
@given(SIZES, st.integers(1, 16))
def test_every_token_is_a_target_once_and_trained_unless_it_begins_a_document(sizes, length):
    tokens = stream(sizes)
    batch = whole(tokens, length)
    total = tokens.ids.size
    inside = np.arange(batch["targets"].size).reshape(batch["targets"].shape) < total - 1
    assert batch["targets"][inside].tolist() == list(range(1, total))
    trained = batch["targets"][batch["weights"] > 0].tolist()
    assert trained == sorted(set(range(total)) - set(tokens.offsets[:-1].tolist()))


@settings(deadline=None)
@given(SIZES, st.integers(1, 16))
def test_segments_and_positions_are_those_of_the_documents(sizes, length):
    tokens = stream(sizes)
    batch = whole(tokens, length)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    for row, (ids, segments, positions) in enumerate(
        zip(batch["tokens"], batch["segments"], batch["positions"], strict=True)
    ):
        real = owner[row * length : (row + 1) * length]
        seen = (segments > 0).sum()
        assert seen == len(real)
        assert (ids[seen:] == PAD).all()
        for number in np.unique(segments[:seen]):
            chosen = segments == number
            assert len(set(real[chosen[:seen]])) == 1
            assert positions[chosen].tolist() == list(range(chosen.sum()))
        assert sorted(set(segments[:seen])) == list(range(1, len(set(real)) + 1))
        assert (batch["weights"][row][seen:] == 0).all()


def test_by_hand():
    batch = whole(stream([3, 2, 1, 3]), 4)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1], [0, 0, 1, 1]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2], [1, 2, 3, 3]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0], [0, 0, 0, 1]]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "weights": "float32",
        "segments": "int32",
        "positions": "int32",
    }


def test_the_last_window_is_filled_up():
    batch = whole(stream([6]), 4)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [4, 5, PAD, PAD]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [5, PAD, PAD, PAD]]
    assert batch["weights"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("tokens", "rows"), [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (9, 2), (10, 3)]
)
def test_as_many_windows_as_hold_a_target(tokens, rows):
    assert packing.count(tokens, 4) == rows


def test_an_id_outside_the_vocabulary_is_refused():
    with pytest.raises(DataError, match="stream: token 5 is id 5, outside the vocabulary of 5 ids"):
        packing.windows(stream([9]), np.arange(2), 4, vocab=5, pad=0)
