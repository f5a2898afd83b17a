"""What of a model may be called by a word, and what near names a wrong one is answered with."""

import re

import jax
import networks
import pytest

from jaxlm.core import parts, tree
from jaxlm.core.errors import ConfigError
from jaxlm.models import lora, rows

SPECS = {**networks.SHAPES, **networks.PAIRS, **networks.ENCODERS}


def names(kind, **changes):
    """The names of a network's parameters, those of adapters and of new ids' rows included."""
    at, params = networks.layout(), networks.params(networks.spec(**SPECS[kind], **changes))
    how = {"rank": 2, "alpha": 1.0, "targets": ["attn/q"]}
    params = lora.add(params, at, jax.random.key(0), **how)
    return list(tree.flatten(rows.split(params, at, networks.VOCAB - 2, networks.VOCAB)))


@pytest.mark.parametrize("kind", SPECS)
def test_every_parameter_is_of_one_type(kind):
    for name in names(kind):
        types = [kind for kind, p in parts.TYPES.items() if re.search(p, name)]
        assert types == [parts.type_of(name)], name


def test_words_stand_for_patterns():
    found = parts.matched(names("bert"), [*parts.WORDS, "q/k"])
    assert found["q/k"] == ["encoder/blocks/attn/q/kernel"]
    assert {name.rpartition("/")[2] for name in found["biases"]} == {"bias"}
    assert "encoder/blocks/attn_out_norm/scale" in found["norms"]
    assert not set(found["mlp"]) & set(found["norms"])
    assert found["lora"] == [f"encoder/blocks/attn/q/lora_{x}" for x in ("a", "b", "scale")]


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("atn/q", "'atn/q' matches no parameter; near are attn/q, "),
        ("norm_s", "'norm_s' matches no parameter; near are norms"),
        ("head", "'head' matches no parameter; the embedding is this model's head "),
        ("biases", "'biases' matches no parameter; this model has none"),
        ("^zzz$", "'^zzz$' matches no parameter; names are like decoder/blocks/"),
        ("q(", "'q(' is not a regular expression: "),
    ],
)
def test_what_matches_nothing_is_answered_with_near_names(pattern, line):
    with pytest.raises(ConfigError) as raised:
        parts.matched(names("llama"), ["norms", pattern])
    assert str(raised.value).startswith(f"trainable: {line}")


def test_a_split_changes_no_meaning_but_that_of_the_last_layers():
    plain = names("llama")
    split = [n.replace("/blocks/", f"/{parts.LOWER}/") for n in plain if "/blocks/" in n] + plain
    for pattern in ("attn/q/kernel", "decoder/blocks/attn", "norms", "."):
        before, after = (parts.matched(n, [pattern])[pattern] for n in (plain, split))
        assert set(map(parts.whole, after)) == set(before)
        assert len(after) == len(before) + sum("/blocks/" in name for name in before)
    last = parts.matched(split, ["last_layers: 1"])["last_layers: 1"]
    assert last == [name for name in plain if "/blocks/" in name]
