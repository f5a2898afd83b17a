"""More tokens than the base has: new rows are the mean of the old, and no id may move."""

import json
import shutil

import hubs
import networks
import numpy as np
import processes
import pytest
import tokenizers

import jaxlm
from jaxlm.checkpoint import inspect as checkpoints
from jaxlm.config.load import load
from jaxlm.core import errors, tree
from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.hub.adapter import BASE, read_tensors
from jaxlm.inference.adapters import base_digest
from jaxlm.inference.run import base_params
from jaxlm.text.train import train
from jaxlm.training.state import inherit

OLD, NEW = hubs.TOKENIZER.vocab, hubs.TOKENIZER.vocab + 5


@pytest.fixture
def base(tmp_path):
    return hubs.write(tmp_path / "base", "llama linear")  # its head is its own


@pytest.fixture
def larger(tmp_path):
    """A folder with the base's tokenizer and five tokens more."""
    hubs.TOKENIZER.save(tmp_path / "larger")
    file = str(tmp_path / "larger" / "tokenizer.json")
    made = tokenizers.Tokenizer.from_file(file)
    made.add_special_tokens([f"<|new{index}|>" for index in range(4)])
    made.add_tokens(["neologism"])
    made.save(file)
    return tmp_path / "larger"


def config(base, tokenizer, *more):
    words = [f"init={base}", f"tokenizer.path={tokenizer}", "data.train=stdlib", "steps=1"]
    return inherit(load(None, [*words, "length=16", *more]))


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_new_rows_are_the_mean_of_the_old_without_padding(base, larger, mesh):
    wide = config(base, larger)
    assert wide.model.vocab == NEW
    plain, _ = base_params(config(base, base), networks.layout(**mesh), None, print)
    params, named = base_params(wide, networks.layout(**mesh), None, print)
    assert base_params(wide, networks.layout(), named, print)[1] == named
    for old, new in zip(*(_rows(each) for each in (plain, params)), strict=True):
        np.testing.assert_array_equal(new[:OLD], old[:OLD])
        np.testing.assert_allclose(new[OLD:NEW], [old[:OLD].mean(0)] * 5, rtol=1e-5, atol=1e-7)
        assert not new[NEW:].any() and len(new) == 384


def _rows(params):
    """The embedding [V, D], and the head turned to it."""
    leaves = tree.flatten(params)
    return np.asarray(leaves["embed/embedding"]), np.asarray(leaves["head/kernel"]).T


@pytest.mark.once
def test_a_run_with_more_tokens_says_so_resumes_and_generates(tmp_path, base, larger):
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    words = [*own, f"init={base}", f"tokenizer.path={larger}", "lora.rank=2"]
    words += ["lora.save=new_rows", "optimizer.learning_rate=0.1"]
    for steps in (1, 2):
        code, out, err = processes.run(*words, f"steps={steps}")
        assert code == errors.DONE, err
    what = f"rows {OLD} to {NEW - 1} of embed/embedding and head/kernel: new, each the mean of the"
    assert what in out + err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["model"]["new_rows"].startswith(what)
    assert record["model"]["init"] == str(base)
    assert checkpoints.steps(tmp_path / "run" / "checkpoints")[-1] == 2
    code, out, err = processes.run(
        "convert", "export", f"{tmp_path}/run", f"{tmp_path}/out", "--merge"
    )
    assert code == errors.DONE and "equal" in out and "mean of" not in err, err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == NEW
    trained = json.loads((tmp_path / "run" / "trainable.json").read_text())["patterns"]["new_rows"]
    assert trained == {"tensors": 2, "parameters": 2 * (NEW - OLD) * 32}
    before, after = (jaxlm.load(each).params for each in (base, tmp_path / "out"))
    for old, new in zip(*(_rows(each) for each in (before, after)), strict=True):
        np.testing.assert_array_equal(new[:OLD], old[:OLD])
    assert np.abs(new[OLD:NEW] - old[:OLD].mean(0)).max() > 1e-3  # the head's: no text has them

    check_adapter(tmp_path, base)


def check_adapter(tmp_path, base):
    """The run's adapter has its rows; the base alone has none of those, and says so."""
    code, _, err = processes.run("convert", "export", f"{tmp_path}/run", f"{tmp_path}/adapter")
    assert code == errors.DONE, err
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    ids = list(range(OLD, NEW))
    assert config["trainable_token_indices"] == {"embed_tokens": ids, "lm_head": ids}
    with pytest.raises(CheckpointError, match=rf"a row for id {NEW - 1}, and the base {OLD}; give"):
        jaxlm.load(base).with_adapter(tmp_path / "adapter")
    plain, merged = (jaxlm.load(each) for each in (base, tmp_path / "out"))
    told = read_tensors(tmp_path / "adapter")[1]
    assert told[BASE] == base_digest(plain.params, plain.spec)
    found = merged.with_adapter(tmp_path / "adapter", force=True).params
    for one, other in zip(_rows(found), _rows(merged.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_new_rows_of_a_tokenizer_that_adds_none_are_refused(tmp_path, base):
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    code, _, err = processes.run(*own, f"init={base}", "trainable=new_rows", "steps=1")
    assert code == errors.CONFIG and "adds no id to that of init" in err


def test_a_tokenizer_in_which_ids_are_other_text_is_refused(tmp_path, base):
    train("bpe", 290, ["class Another:\n    pass\n" * 9]).save(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"tokenizer.path: .* are other text than in the tok"):
        config(base, tmp_path / "other")


def test_a_smaller_tokenizer_is_refused(tmp_path, base, larger):
    wide = hubs.write(tmp_path / "wide", "llama", vocab_size=NEW)
    shutil.copytree(larger, wide, dirs_exist_ok=True)
    hubs.TOKENIZER.save(tmp_path / "smaller")
    with pytest.raises(ConfigError, match="1 of .* are other text"):
        config(wide, tmp_path / "smaller")


def test_rows_that_the_model_has_are_used_as_they_are(tmp_path, larger):
    wide = hubs.write(tmp_path / "wide", "llama", vocab_size=NEW + 20)
    assert config(wide, larger).model.vocab == NEW + 20


def test_weights_without_a_tokenizer_take_one_that_fits(base, larger):
    (base / "tokenizer.json").unlink()
    assert config(base, larger).model.vocab == NEW
