"""What tuning takes away is said, bounded and held back."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import processes
import pytest

from jaxlm.config.schema import Source
from jaxlm.core import errors, tree
from jaxlm.data.general import general
from jaxlm.models import lora, quantize
from jaxlm.models.transformer import make_forward
from jaxlm.text.train import train
from jaxlm.training.forgetting import FILE, forgetting
from jaxlm.training.gauges import base_beside

TOKENIZER = train("bpe", 280, ["what is one plus two? it is three."] * 30)
SPEC = networks.spec(vocab=TOKENIZER.vocab, max_length=64)
COLUMNS = "general_loss", "general_change", "general_kl"


def text(folder, documents=40):
    """Documents of a few different lengths."""
    path = folder / "general.jsonl"
    said = (f"what is {n}? it is {n}. " * (1 + n % 5) for n in range(documents))
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in said))
    return path


def quiet():
    """Nobody waits."""


def test_the_rows_are_few_and_always_the_same(tmp_path):
    source = Source(path=str(text(tmp_path)))
    found = general(source, TOKENIZER, 64)
    assert found.rows == 40 and found.digest == general(source, TOKENIZER, 64).digest
    few = general(Source(path="stdlib"), TOKENIZER, 2048)
    assert few.length == 512 and few.rows == 16


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("adapters", [True, False])
def test_it_is_nothing_at_first_and_grows(tmp_path, mesh, adapters):
    at = networks.layout(**mesh)
    params = networks.params(SPEC, at)
    if adapters:
        how = {"rank": 2, "alpha": 4.0, "targets": ["attention"]}
        params = lora.add(params, at, networks.ROOT, **how)
    data = general(Source(path=str(text(tmp_path))), TOKENIZER, 64)
    forward, base = make_forward(SPEC, at, jnp.float32), lora.without if adapters else None
    gauge = forgetting(data, forward, at, tmp_path, base=base)
    found = gauge(0, params, quiet)
    assert found["general_change"] == 0 and abs(found["general_kl"]) < (1e-9 if adapters else 1e-6)
    moved = "lora_b" if adapters else "kernel"
    rows = []
    for by in (0.02, 0.2):
        after = tree.map_named(lambda name, x, by=by: x + by * name.endswith(moved), params)
        rows.append(gauge(5, after, quiet))
    assert 0 < rows[0]["general_kl"] < rows[1]["general_kl"]
    right = rows[1]["general_loss"] - found["general_loss"]
    np.testing.assert_allclose(rows[1]["general_change"], right, rtol=1e-4)
    again = forgetting(data, forward, at, tmp_path, base=base)(5, after, quiet)  # another process
    assert again == rows[1]
    assert (tmp_path / FILE).is_file() != adapters


def test_what_makes_up_for_a_quantized_kernel_is_of_the_base():
    at, leaves = networks.layout(), tree.flatten(networks.params(SPEC))
    one = partial(lora.compensated, kind="nf4", rank=2, scale=2.0)
    for name in [name for name in leaves if name.endswith("attn/o/kernel")]:
        made = quantize.over_slices(name, one, leaves.pop(name))
        leaves |= {name.removesuffix("kernel") + part: leaf for part, leaf in made.items()}
    how = {"rank": 2, "alpha": 4.0, "targets": ["attn/o"], "init": "loftq"}
    params = lora.add(tree.unflatten(leaves), at, networks.ROOT, **how)
    base = base_beside(tree.select(params, [lora.TRAINED]))
    networks.assert_same(lora.merge(base(params)), lora.merge(params))
    after = tree.map_named(lambda name, x: x + 0.2 if name.endswith("lora_b") else x, params)
    networks.assert_same(base(after), base(params))
    whole = lora.add(networks.params(SPEC), at, networks.ROOT, **how | {"init": "pissa"})
    networks.assert_same(base(whole), networks.params(SPEC))


def test_what_was_kept_of_other_rows_is_not_taken(tmp_path):
    at = networks.layout()
    forward, params = make_forward(SPEC, at, jnp.float32), networks.params(SPEC)
    for documents, step in ((40, 0), (9, 5)):
        data = general(Source(path=str(text(tmp_path, documents))), TOKENIZER, 64)
        found = forgetting(data, forward, at, tmp_path, base=None)(step, params, quiet)
        assert set(found) == set(COLUMNS if step == 0 else COLUMNS[:1])
    (tmp_path / FILE).write_bytes(b"torn")
    assert set(forgetting(data, forward, at, tmp_path, base=None)(5, params, quiet)) == {
        "general_loss"
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of two steps, to start from."""
    folder = tmp_path_factory.mktemp("base")
    text(folder)
    code, _, err = processes.run(*processes.words(folder, "steps=2", name="base"))
    assert code == errors.DONE, err
    return folder


def tune(base, name, *more):
    words = [word for word in processes.words(base, name=name) if not word.startswith("model.")]
    words = [word for word in words if not word.startswith("tokenizer.")]
    general = f"evaluate.general={base}/general.jsonl"
    return processes.run(*words, f"init={base}/base", general, *more)


def scored(base, name):
    lines = (base / name / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines) if "general_loss" in row}


RATE = "optimizer.learning_rate=0.05"


def test_a_run_scores_it_from_before_its_first_step_and_goes_on_with_the_same_numbers(base):
    more = [
        "lora.rank=2",
        RATE,
        "evaluate.every=2",
        "checkpoint.every=2",
        "objective.kl_to_base=0.1",
    ]
    code, out, err = tune(base, "whole", "steps=4", *more)
    assert code == errors.DONE and "general loss" in out + err, err
    rows = scored(base, "whole")
    assert list(rows) == [0, 2, 4]
    assert rows[0]["general_change"] == rows[0]["general_kl"] == 0 < rows[4]["general_kl"]
    for lost in ("checkpoints/4", "checkpoints"):  # the last steps, and all
        shutil.rmtree(base / "whole" / lost)
        code, _, err = tune(base, "whole", "steps=4", *more)
        assert code == errors.DONE and scored(base, "whole") == rows, err
        written = (base / "whole" / "metrics.jsonl").read_text()
        assert written.count('"general_loss"') == len(rows)
    losses = (base / "whole" / "metrics.jsonl").read_text()
    assert '"kl_to_base"' in losses


@pytest.mark.once
def test_a_run_ends_well_where_too_much_is_forgotten(base):
    more = ["optimizer.learning_rate=5", "steps=9", "evaluate.every=2"]
    more += [f"data.replay={{path: {base}/general.jsonl, weight: 0.25}}"]
    more += ["evaluate.max_forgetting=0.01"]
    code, out, err = tune(base, "short", *more)
    assert code == errors.DONE, err
    assert "step 2 of 9, ended: the loss on general text has grown by" in out + err
    status = json.loads((base / "short" / "record.json").read_text())["status"]
    assert status.startswith("ended: the loss on general text")
    assert (base / "short" / "checkpoints" / "2").is_dir()
    code, out, err = tune(base, "short", *more)
    assert code == errors.DONE and "nothing left to do" in out + err
    (base / "short" / FILE).unlink()
    code, out, err = tune(base, "short", *more[:-1], "evaluate.max_forgetting=1e6")
    assert code == errors.DONE and "step 9 of 9, done" in out + err
    assert f"{FILE} is lost, or is of other text: evaluate.max_forgetting cannot" in out + err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["objective.kl_to_base=1"], "objective.kl_to_base: needs the base beside what is tuned"),
        (["data.replay=stdlib"], "replay needs its share of the rows; write {path: stdlib, w"),
        (["evaluate.general=nowhere.txt"], "nowhere.txt"),
        (
            ["evaluate.general=null", "evaluate.max_forgetting=1"],
            "max_forgetting=1 needs evaluate.general",
        ),
    ],
)
def test_what_cannot_be_held_back_is_refused(base, more, line):
    code, _, err = tune(base, "refused", "steps=1", *more)
    assert code in (errors.CONFIG, errors.DATA) and line in err and err.count("\n") == 1, err


@pytest.mark.once
def test_the_divergence_in_the_loss_holds_the_model_back():
    """Tuned as long on the same rows, it is nearer to its base."""
    at, batch = networks.layout(), networks.batch()
    how = {"rank": 2, "alpha": 4.0, "targets": ["all-linear"]}
    start = lora.add(networks.params(networks.spec(), at), at, networks.ROOT, **how)
    forward = make_forward(networks.spec(), at, jnp.float32)

    def logs(params):
        scores = forward.logits(forward.head(params), forward.hidden(params, batch, None)[0])
        return jax.nn.log_softmax(scores)

    def far(params):
        p, q = logs(lora.without(params)), logs(params)
        return float(((jnp.exp(p) * (p - q)).sum(-1) * (batch["weights"] > 0)).sum())

    found = []
    for weight in (0.0, 1.0):
        state, step = networks.trainer(
            networks.spec(), networks.sgd(), start=start, trainable=["lora_[ab]$"], kl=weight
        )
        for _ in range(8):
            state, _ = step(state, batch)
        found.append(far(state.params))
    assert 0 < found[1] < 0.8 * found[0]
