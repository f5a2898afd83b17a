"""The configuration stays a page, and every key is documented and read."""

import json

import jax
import jax.numpy as jnp
import networks
import processes
import pytest

from jaxlm.config import optimizers
from jaxlm.config.keys import documented, sections
from jaxlm.config.load import load
from jaxlm.config.objectives import READERS, Objective
from jaxlm.core import errors
from jaxlm.models.axes import AXES
from jaxlm.training import optim
from jaxlm.training.schedule import schedule

OTHER = {
    "learning_rate": 1e-3,
    "weight_decay": 0.2,
    "no_decay": ("norm",),
    "clip": 2.0,
    "state_dtype": "bfloat16",
    "max_skipped": 3,
    "b1": 0.8,
    "b2": 0.7,
    "eps": 1e-5,
    "momentum": 0.5,
    "warmup": 3,
    "final": 0.5,
    "decay": 0.5,
}
"""Another value than the default for every key of optimizers and schedules."""
ELSEWHERE = {"max_skipped"}
"""Read by the loop."""
NO_MOMENT = {"schedule_free_adamw": {"state_dtype"}}
"""Optimizers whose state is float32 whatever is asked for: they say so at the end of a run."""


@pytest.mark.parametrize("section", sections(Objective), ids=lambda section: section.__name__)
def test_the_configuration_stays_a_page(section):
    """Of a run of one objective: its own keys, and those that all have or it reads."""
    name = section.model_fields["type"].default
    own = documented(section, "objective.").keys()
    unread = {f"examples.{key}" for key, readers in READERS.items() if name not in readers}
    others = [k for k in documented() if not k.startswith(("model.", "objective."))]
    counted = own | (set(others) - unread)
    assert len(counted) <= 90, sorted(counted)
    assert own <= documented().keys() and unread <= documented().keys()


def test_every_key_says_what_it_is():
    bare = [key for key, field in documented().items() if not field.description]
    assert [key for key in bare if not key.endswith(".type")] == []


def changed(section):
    """The section with every key but its type away from its default."""
    return section(**{k: OTHER[k] for k in section.model_fields if k not in ("type", "schedule")})


@pytest.mark.parametrize(
    "section",
    [
        optimizers.AdamW,
        optimizers.Lion,
        optimizers.Adafactor,
        optimizers.Muon,
        optimizers.ScheduleFreeAdamW,
    ],
)
def test_every_key_of_an_optimizer_is_read(section):
    made, shapes = changed(section), jax.eval_shape(lambda: networks.params(networks.spec()))
    made.watch()
    optim.build(made, shapes, steps=10, axes=AXES)
    assert set(made.unread()) - ELSEWHERE == NO_MOMENT.get(made.type, set())


@pytest.mark.parametrize(
    "section",
    [
        optimizers.Constant,
        optimizers.Linear,
        optimizers.Cosine,
        optimizers.WarmupStableDecay,
        optimizers.InverseSquareRoot,
    ],
)
def test_every_key_of_a_schedule_is_read(section):
    made = changed(section)
    made.watch()
    rate = schedule(made, 1.0, 10)
    assert jnp.isfinite(jnp.array([rate(step) for step in range(10)])).all()
    assert made.unread() == []


SET = (
    "name=other",
    "seed=3",
    "steps=2",
    "microbatches=2",
    "trainable=[lora]",
    "compute_dtype=float32",
    "param_dtype=bfloat16",
    "deterministic=true",
    "watchdog=500",
    "data.parse_special=true",
    "objective.z_loss=1e-3",
    "optimizer.max_skipped=3",
    "mesh.data=2",
    "mesh.fsdp=1",
    "mesh.expert=2",
    "mesh.tensor=2",
    "mesh.slices=2",
    "model.experts.count=2",
    "lora.rank=2",
    "lora.alpha=8",
    "lora.targets=[attn/q/kernel]",
    "lora.rslora=true",
    "lora.dora=true",
    "lora.dropout=0.1",
    "lora.b_rate=4",
    "lora.init=pissa",
    "lora.save=[final_norm]",
    "checkpoint.every=1",
    "checkpoint.keep=1",
    "checkpoint.keep_every=2",
    "checkpoint.keep_best=true",
    "log.trackers=tensorboard",
    "evaluate.every=1",
    "evaluate.batches=1",
    "profile.steps=1:2",
)
"""Every key that a run from nothing has, away from its default, beside those of processes.TINY."""
EXAMPLES = (
    "objective.type=sft",
    "examples.template=plain",
    "examples.learn=last",
    "examples.overlong=drop",
    "examples.packing=false",
)
"""Those of a run on examples."""
LABELED = (
    "objective.type=classification",
    "objective.labels=[no, yes]",
    "objective.label=label",
    "objective.text=a",
    "objective.pair=b",
    "objective.label_smoothing=0.1",
    "objective.class_weights=balanced",
)
"""Those of a run on labeled texts; some are of single labels alone."""
SEVERAL = ("objective.type=classification", "objective.problem=multi", "objective.text=a")
WORDS = ("objective.type=token_classification", "objective.words=a", "objective.label=b")
"""Of several labels, and of labeled words."""
ASKED = ("samples.count=1", "samples.tokens=2", "samples.match=json")
"""Those of a run with prompts."""
TUNED = (
    "objective.kl_to_base=0.1",
    "evaluate.max_forgetting=1e6",
    "frozen_dtype=nf4",
    "lora.rank=2",
    "lora.init=loftq",
    "steps=2",
)
"""Those of a run with a base."""
MASKED = (
    "objective.type=mlm",
    "model.structure=encoder",
    "objective.rate=0.3",
    "objective.hidden=0.7",
    "objective.random=0.2",
    "objective.unit=word",
    "objective.rows=packed",
    "objective.z_loss=1e-3",
    "steps=2",
)
"""Those of a run that predicts masked tokens."""
COMPARED = (
    "objective.type=contrastive",
    "objective.temperature=0.1",
    "objective.pool=last",
    "objective.symmetric=true",
    "objective.negatives=0",
    "objective.columns=[body, body]",
    "model.structure=encoder",
    "steps=2",
)
"""Those of a run on texts that belong together."""
CORRUPTED = (
    ("objective.type=span_corruption", "objective.rate=0.3", "objective.span=2"),
    (
        "objective.type=bart",
        "objective.infill=0.2",
        "objective.permute=false",
        "objective.mask=0.1",
        "objective.delete=0.1",
        "objective.rotate=0.5",
    ),
    (
        "objective.type=ul2",
        "objective.denoisers=[{mode: R, rate: 0.2, span: 2}, {mode: S, rate: 0.4}]",
        "objective.modes.R=<extra_id_97>",
        "objective.modes.S=<extra_id_98>",
        "objective.modes.X=<extra_id_99>",
    ),
    ("objective.type=prefix_lm",),
)
"""Those of each run that learns targets for sources."""
ALL_CORRUPTED = (
    "model.structure=encoder-decoder",
    "objective.rows=packed",
    "objective.z_loss=1e-3",
    "steps=2",
    "tokenizer.vocab=400",
)
"""Those that all of them have."""
PAIRED = (
    "objective.type=seq2seq",
    "objective.z_loss=1e-3",
    "objective.source=[instruction]",
    "objective.target=output",
    "objective.target_length=24",
    "examples.overlong=truncate-left",
    "examples.packing=false",
    "samples.prompts=validation",
    "samples.beams=2",
    "samples.length_penalty=0.5",
    "samples.metrics=[exact, rouge_l, chrf]",
    "samples.tokens=4",
    "data.validation=0.2",
    "model.structure=encoder-decoder",
    "steps=2",
)
"""Those of a run on sources with their targets."""
NOT_SET = {"epochs", "init", "tokenizer.path"}
"""What excludes others of them; two more runs below set it."""
IDLE = {"data.validation.weight", "evaluate.general.weight"}
"""Such data is gone through once, whatever its weights: a run that sets one says so."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with two files of records whose text is in another column than the default."""
    folder = tmp_path_factory.mktemp("keys")
    lines = [f'{{"body": "text number {i} of some words"}}\n' for i in range(400)]
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text("".join(lines))
    long = " ".join(map(str, range(99)))
    asked = [f'{{"instruction": "{i}", "output": "word"}}\n' for i in (*range(40), long)]
    (folder / "c.jsonl").write_text("".join(asked))
    (folder / "p.txt").write_text("what is it?\n")
    (folder / "schema.json").write_text('{"type": "object"}')
    return folder


def without_effect(folder, *words, devices=1):
    """What a run names as set and without effect."""
    code, out, err = processes.run(*words, devices=devices)
    assert code == errors.DONE, err
    return [line for line in (out + err).splitlines() if "without effect" in line]


@pytest.mark.once
def test_every_key_has_an_effect(texts):
    one, two = (f"path: {texts}/{name}.jsonl, field: body" for name in "ab")
    data = (
        f"data.train=[{{{one}, weight: 1}}, {{{two}, weight: 2}}]",
        f"data.validation=[{{{one}}}]",
    )
    words = [*processes.words(texts, *SET), *data, "tokenizer.type=sentencepiece"]
    assert without_effect(texts, *words, devices=8) == []

    plain = [w for w in processes.words(texts, name="again") if "tokenizer" not in w]
    data = f"data.train=[{{{one}}}]"
    path = f"tokenizer.path={texts}/run/tokenizer"
    assert without_effect(texts, *plain, data, path, "epochs=0.05") == []

    plain = [
        w for w in processes.words(texts, name="child") if "model." not in w and "token" not in w
    ]
    kept = f"data.replay={{{two}, weight: 0.5}}", f"evaluate.general={{{two}}}"
    assert without_effect(texts, *plain, data, *kept, f"init={texts}/run", *TUNED) == []

    masked = [w for w in processes.words(texts, *MASKED, name="mlm") if "data.t" not in w]
    assert without_effect(texts, *masked, data) == []
    compared = [w for w in processes.words(texts, name="compared") if not w.startswith("data.")]
    assert without_effect(texts, *compared, *COMPARED, f"data.train={texts}/b.jsonl") == []
    paired = [w.replace("vocab=300", "vocab=380") for w in processes.words(texts, name="paired")]
    paired = [word for word in paired if not word.startswith("data.")]
    assert without_effect(texts, *paired, *PAIRED, f"data.train={texts}/c.jsonl") == []

    for number, its in enumerate(CORRUPTED):
        own = processes.words(texts, *its, *ALL_CORRUPTED, name=f"corrupted{number}")
        corrupted = [w for w in own if "data.t" not in w and w != "tokenizer.vocab=300"]
        assert without_effect(texts, *corrupted, data) == []

    plain = [w for w in processes.words(texts, name="tuned") if not w.startswith("data.")]
    data = f"data.train={texts}/c.jsonl"
    asked = f"samples.prompts={texts}/p.txt", f"samples.json_schema={texts}/schema.json", *ASKED
    assert without_effect(texts, *plain, *EXAMPLES, data, *asked, "steps=2") == []


@pytest.mark.once
@pytest.mark.parametrize("chosen", [LABELED, SEVERAL, WORDS], ids=["single", "several", "words"])
def test_every_key_of_labels_has_an_effect(tmp_path, chosen):
    rows = [{"a": "x y", "b": "N V", "label": ("yes", "no")[i % 2]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = "steps=2", "examples.overlong=drop", "examples.packing=false"
    plain = [w for w in processes.words(tmp_path) if not w.startswith("data.")]
    plain += ["model.structure=encoder", "tokenizer.vocab=400", f"data.train={tmp_path}/a.jsonl"]
    plain = [w for w in plain if w != "tokenizer.vocab=300"]
    assert without_effect(tmp_path, *plain, *more, *chosen) == []


TOLD = (
    *(*processes.TINY, *SET, *EXAMPLES, *ASKED, *TUNED, *MASKED, *COMPARED, *PAIRED),
    *(*LABELED, *SEVERAL, *WORDS, *sum(CORRUPTED, ())),
)


def test_every_key_is_set_above():
    config = load(None, [*processes.TINY, *SET, "data.train=x", "run_dir=y", "data.cache=z"])
    assert config.name == "other"
    given = {word.partition("=")[0] for word in TOLD}
    given |= {"samples.prompts", "samples.json_schema"}
    given |= {f"objective.denoisers.{key}" for key in ("mode", "rate", "span")}
    given |= {"run_dir", "data.cache", "tokenizer.type", "objective.type", *NOT_SET, *IDLE}
    given |= {
        f"{part}.{key}"
        for part in ("data.train", "data.validation", "data.replay", "evaluate.general")
        for key in ("path", "weight", "field")
    }
    left = [key for key in documented() if not key.startswith(("model.", "optimizer."))]
    assert [key for key in left if key not in given] == []
