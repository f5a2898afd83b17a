"""Adapters in slots: swapped without a compilation, one for each row of a batch, and their sums."""

import logging

import hubs
import jax
import networks
import numpy as np
import pytest

import jaxlm
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError, ConfigError

ROWS = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
PROMPTS = ["def main(", "class ", "return "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and adapters of it: of two ranks, of fewer targets, and what no slot holds."""
    at = tmp_path_factory.mktemp("slots")
    base = jaxlm.load(hubs.write(at / "base", "llama"))
    hubs.write_adapter(base, at / "sql", 1)
    hubs.write_adapter(base, at / "chat", 2, rank=1, rslora=True, targets=["attn/[qv]/kernel"])
    hubs.write_adapter(base, at / "wide", 3, rank=5)
    hubs.write_adapter(base, at / "dora", 4, rank=1, dora=True)
    return at


def test_experts_have_no_slots(tmp_path):
    base = hubs.write(tmp_path / "base", "mixtral")
    with pytest.raises(ConfigError, match=r"^Slots.targets: .*/experts/down/kernel has no slots; "):
        jaxlm.load(base, adapters=jaxlm.Slots(3, "all-linear", 2))


@pytest.fixture(scope="module")
def plain(folder):
    return jaxlm.load(folder / "base")


@pytest.fixture(scope="module")
def slotted(folder):
    return jaxlm.load(folder / "base", adapters=jaxlm.Slots(3, "all-linear", 2))


@pytest.fixture(scope="module")
def both(folder, slotted):
    return slotted.with_adapter(folder / "sql", name="sql").with_adapter(
        folder / "chat", name="chat"
    )


def alone(plain, folder, name):
    return np.asarray(plain.with_adapter(folder / name).logits(ROWS))


def assert_near(a, b):
    networks.assert_close({"scores": a}, {"scores": b})


def test_each_row_has_its_own_adapter_and_none_is_the_base(folder, plain, slotted, both):
    base, sql, chat = plain.logits(ROWS), alone(plain, folder, "sql"), alone(plain, folder, "chat")
    assert np.abs(sql - chat).max() > 0.1 and np.abs(sql - base).max() > 0.1
    assert both.adapters == ("sql", "chat") and slotted.adapters == ()
    mixed = both.logits(ROWS, adapter=["sql", "chat", None])
    assert_near(mixed[0], sql[0])
    assert_near(mixed[1], chat[1])
    networks.assert_same(mixed[2], base[2])
    assert_near(both.logits(ROWS), chat)  # the last put in
    assert_near(both.logits(ROWS, adapter="sql"), sql)
    networks.assert_same(slotted.logits(ROWS), base)


def test_a_batch_of_prompts_is_answered_as_each_alone(both):
    names = ["sql", None, "chat"]
    wanted = [
        both.generate([prompt], max_tokens=8, adapter=name if name else [None])[0]
        for prompt, name in zip(PROMPTS, names, strict=True)
    ]
    assert both.generate(PROMPTS, max_tokens=8, adapter=names) == wanted
    assert wanted[0] != both.generate(PROMPTS[:1], max_tokens=8, adapter=[None])[0]
    assert "".join(both.stream(PROMPTS[0], max_tokens=8, adapter="sql")) == wanted[0]


def test_the_beams_of_a_prompt_have_its_adapter(both):
    def found(*adapter):
        return both.generate(PROMPTS[:1] * 2, max_tokens=8, beams=2, adapter=adapter)

    sql, chat = found("sql", "sql")[0], found("chat", "chat")[0]
    assert sql != chat and found("sql", "chat") == [sql, chat]


def test_a_swap_compiles_nothing_and_shares_the_base(folder, plain, slotted, caplog):
    first = slotted.with_adapter(folder / "sql", name="one")
    first.logits(ROWS)
    first.generate(PROMPTS, max_tokens=2)
    entries = first._logits._cache_size(), first._generator._next._cache_size()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        second = first.with_adapter(first.read_adapter(folder / "chat"), name="one")
        swapped = second.logits(ROWS)
        second.generate(PROMPTS, max_tokens=2)
        assert not [line for line in caplog.messages if "ompiling" in line]
        jax.jit(lambda x: x + 3)(1.0)
        assert [line for line in caplog.messages if "ompiling" in line]
    assert (second._logits._cache_size(), second._generator._next._cache_size()) == entries
    assert_near(swapped, alone(plain, folder, "chat"))
    leaves, before = tree.flatten(second.params), tree.flatten(slotted.params)
    assert all(leaves[n] is before[n] for n in before if "lora_" not in n)


def test_a_full_house_gives_up_the_oldest(folder, both):
    third = both.with_adapter(folder / "sql")
    assert third.adapters == ("chat", str(folder / "sql"))
    networks.assert_same(third.logits(ROWS), both.logits(ROWS, adapter="sql"))


def test_slots_on_a_mesh_are_those_of_one_device(folder, both):
    mesh = {"fsdp": 4, "tensor": 2}
    model = jaxlm.load(folder / "base", mesh=mesh, adapters=jaxlm.Slots(3, ["all-linear"], 2))
    names = ["sql", None, "sql"]
    one = model.with_adapter(folder / "sql", name="sql")
    assert_near(one.logits(ROWS, adapter=names), both.logits(ROWS, adapter=names))


def products(model):
    """What an adapter adds to each kernel."""
    leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(model.params).items()}
    return {
        name: np.einsum(
            "l,l...r,lro->l...o", leaves[f"{name}scale"], a, b.reshape(*b.shape[:2], -1)
        )
        for name, a, b in (
            (name.removesuffix("a"), leaf, leaves[f"{name[:-1]}b"])
            for name, leaf in leaves.items()
            if name.endswith("lora_a")
        )
    }


def test_a_sum_of_adapters_is_the_sum_of_their_products(folder, plain, slotted):
    weights = {folder / "sql": 0.7, folder / "chat": -0.3}
    summed = plain.with_adapters(weights)
    sql, chat = (products(plain.with_adapter(path)) for path in weights)
    assert len(chat) == 2 and len(sql) == 7
    wanted = {name: 0.7 * x - 0.3 * chat.get(name, 0) for name, x in sql.items()}
    networks.assert_close(products(summed), wanted)
    assert_near(slotted.with_adapters(weights).logits(ROWS), summed.logits(ROWS))


def test_what_fits_no_slot_is_one_line(folder, slotted):
    small = jaxlm.load(folder / "base", adapters=jaxlm.Slots(3, "attn/q/kernel"))
    for model, name, line in (
        (slotted, "wide", "has rank 5, a slot 3"),
        (slotted, "dora", "is of DoRA"),
        (small, "chat", "adapts decoder/blocks/attn/v/kernel, which has no slot"),
    ):
        with pytest.raises(CheckpointError, match=line):
            model.with_adapter(folder / name)
    with pytest.raises(CheckpointError, match="of which there is no weighted sum"):
        slotted.with_adapters({folder / "sql": 0.5, folder / "dora": 0.5})


def test_a_choice_that_cannot_be_is_one_line(folder, plain, both):
    for model, choice, line in (
        (both, "sqk", "'sqk' is in no slot; there is 'sql'"),
        (both, ["sql", None], "has 2 names for 3 rows"),
        (plain, "sql", "is chosen among slots"),
    ):
        with pytest.raises(ConfigError, match=line):
            model.logits(ROWS, adapter=choice)
    for slots in (jaxlm.Slots(0, "mlp"), jaxlm.Slots(2, "atn", 2), jaxlm.Slots(1, [], 1)):
        with pytest.raises(ConfigError, match=r"^Slots"):
            jaxlm.load(folder / "base", adapters=slots)
    with pytest.raises(ConfigError, match="'sql' is of a slot"):
        plain.with_adapter(folder / "sql", name="sql")
    with pytest.raises(ConfigError, match="was read for another model"):
        plain.with_adapter(both.read_adapter(folder / "sql"))
    with pytest.raises(ConfigError, match="is no number"):
        plain.with_adapters({folder / "sql": float("nan")})
    with pytest.raises(ConfigError, match="make a sum beyond what float32 holds"):
        plain.with_adapters({folder / "sql": 1e39})
