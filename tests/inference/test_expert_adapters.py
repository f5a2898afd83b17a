"""Adapters of experts in folders: read, summed and shown as those beside any kernel."""

import hubs
import networks
import numpy as np
import pytest

import jaxlm
from jaxlm import cli
from jaxlm.core import tree
from jaxlm.models import lora

KERNEL = "decoder/blocks/experts/down/kernel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("experts")
    base = jaxlm.load(hubs.write(at / "base", "mixtral"))
    hubs.write_adapter(base, at / "one", 1)
    hubs.write_adapter(base, at / "two", 2, rank=3, targets=["experts/down"])
    return at


def change(model, base):
    """What is added to a kernel of experts [L, E, F, D]."""
    merged = tree.flatten(lora.merge(model.params))[KERNEL]
    return np.asarray(merged) - np.asarray(tree.flatten(base.params)[KERNEL])


def test_what_is_read_is_what_was_written_and_a_sum_is_that_of_the_products(folder):
    base = jaxlm.load(folder / "base")
    wanted = {name: change(base.with_adapter(folder / name), base) for name in ("one", "two")}
    written = lora.merge(hubs.write_adapter(base, folder / "again", 1))
    found = base.with_adapter(folder / "again").params
    networks.assert_close(lora.merge(found), written)
    both = base.with_adapters({folder / "one": 0.7, folder / "two": -0.3})
    assert np.abs(wanted["one"]).max() > 0.1
    np.testing.assert_allclose(
        change(both, base), 0.7 * wanted["one"] - 0.3 * wanted["two"], atol=1e-5
    )


def test_experts_of_all_layers_are_one_row_of_a_table(folder, capsys):
    for more, name in (
        ([], "model.layers.{}.block_sparse_moe.experts.{}.w2"),
        (["--base", str(folder / "base")], "decoder/blocks/{}/experts/{}/down"),
    ):
        assert cli.run(["adapter", "show", str(folder / "one"), *more]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        config = hubs.CONFIGS["mixtral"]
        count = config["num_hidden_layers"] * config["num_local_experts"]
        assert [row[1] for row in rows if row[:1] == [name]] == [str(count)]
