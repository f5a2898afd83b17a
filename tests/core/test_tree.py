import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.core import tree
from jaxlm.core.errors import ConfigError

KEYS = st.sampled_from(["a", "b", "attn", "q", "kernel"])
TREES = st.recursive(
    st.integers(0, 9).map(np.int32),
    lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    max_leaves=12,
).filter(lambda made: isinstance(made, dict))
PARAMS = {"embed": {"embedding": 0}, "attn": {"q": {"kernel": 1, "bias": 2}, "o": {"kernel": 3}}}


@given(TREES, st.data())
def test_combine_is_the_inverse_of_partition(params, data):
    mask = frozenset(data.draw(st.sets(st.sampled_from(sorted(tree.flatten(params))))))
    inside, outside = tree.partition(params, mask)
    assert set(tree.flatten(inside)) == mask
    assert set(tree.flatten(outside)) == tree.flatten(params).keys() - mask
    assert tree.combine(inside, outside) == params == tree.combine(outside, inside)


@given(TREES)
def test_names_say_where_a_leaf_is(params):
    assert tree.unflatten(tree.flatten(params)) == params
    assert tree.map_named(lambda name, leaf: (name, leaf), params) == tree.unflatten(
        {name: (name, leaf) for name, leaf in tree.flatten(params).items()}
    )


def test_absent_branches_leave_nothing():
    assert tree.partition(PARAMS, frozenset({"embed/embedding"})) == (
        {"embed": PARAMS["embed"]},
        {"attn": PARAMS["attn"]},
    )


def test_trees_that_share_a_leaf_do_not_combine():
    with pytest.raises(ValueError, match="both trees hold 'kernel'"):
        tree.combine(PARAMS, {"attn": {"o": {"kernel": 4}}})


def test_patterns_are_found_anywhere_in_a_name():
    assert tree.select(PARAMS, ["attn/.*kernel", "bias$"]) == {
        "attn/q/kernel",
        "attn/o/kernel",
        "attn/q/bias",
    }


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("mlp", "trainable: 'mlp' matches no parameter; names are like .*/kernel"),
        ("q(", r"trainable: 'q\(' is not a regular expression: .*"),
    ],
)
def test_a_pattern_that_selects_nothing_is_refused(pattern, line):
    with pytest.raises(ConfigError, match=line) as raised:
        tree.select(PARAMS, ["attn", pattern])
    assert "\n" not in str(raised.value)


def test_bytes_count_every_leaf():
    assert tree.nbytes({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.int8)}) == 53
