"""Adapters in PEFT's format: ours give its logits in peft, and peft's give ours here."""

import copy
import json

import jax.numpy as jnp
import networks
import numpy as np
import pytest
import test_families as families

from jaxlm.core import tree
from jaxlm.hub.adapter import put_adapter, read_adapter
from jaxlm.hub.adapter_save import save_adapter
from jaxlm.models import lora, rows

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.peers

FORMS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
}
SHAPES = ["llama", "gpt2", "modernbert plain", "t5"]
"""A decoder, one whose kernels are fused and lie the other way round, an encoder, two stacks."""


def moved(params, parts=("lora_a", "lora_b", "lora_m")):
    """Adapters and what is named that differ from the base."""

    def one(name, leaf):
        noise = np.random.default_rng([*name.encode()]).normal(size=leaf.shape)
        return leaf + 0.2 * jnp.asarray(noise, leaf.dtype) if name.endswith(parts) else leaf

    return tree.map_named(one, params)


def read_onto(path, base, spec, family):
    """`base` with the adapter in a folder."""
    return put_adapter(base, read_adapter(path, base, spec, family)[0], networks.layout())


@pytest.fixture
def case(request, tmp_path):
    """(transformers' network, our folder and model, inputs of both) of a configuration."""
    values = families.CONFIGS[request.param]
    net = families.saved(values, tmp_path / "base")
    folder, model = families.loaded(tmp_path / "base")
    assert model._logits  # made before it is copied: compiled once for all of a case
    return net, folder, model, families.inputs(values, 12)


def adapted(model, **how):
    given = {"rank": 3, "alpha": 5.0, "targets": ["all-linear"]} | how
    return moved(lora.add(model.params, networks.layout(), networks.ROOT, **given))


def scored(params, model, given):
    other = copy.copy(model)
    other.params = params
    return np.asarray(other.logits(**given))


def check_out(case, params, out, **more):
    """Ours in `out` gives the same logits in peft, and the same here when it is read again."""
    net, folder, model, (mine, given) = case
    save_adapter(out, params, folder.spec, folder.family, **more)
    wanted = scored(params, model, mine)
    assert families.apart(scored(model.params, model, mine), wanted) > 1e-2
    loaded = peft.PeftModel.from_pretrained(net, out).eval()
    assert families.apart(families.theirs(loaded, given), wanted) < 1e-4
    again = read_onto(out, model.params, folder.spec, folder.family)
    assert families.apart(scored(again, model, mine), wanted) < 1e-5


@pytest.mark.parametrize(
    ("case", "form"),
    [
        *(("llama", form) for form in FORMS),
        *(("gpt2", form) for form in FORMS),
        ("modernbert plain", "dora"),
        ("t5", "rslora"),
        ("mixtral", "rslora"),
        ("qwen3_moe", "lora"),
    ],
    indirect=["case"],
)
def test_adapters_load_in_peft(case, form, tmp_path):
    check_out(case, adapted(case[2], **FORMS[form]), tmp_path / "out")


@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "phi3 plain"], indirect=True)
def test_a_part_of_a_fused_tensor_loads_in_peft(case, tmp_path):
    params = adapted(case[2], targets=["attn/[qv]/kernel"], dora=True)
    check_out(case, params, tmp_path / "out")


@pytest.mark.parametrize("case", ["llama", "bert", "t5", "bert sequence"], indirect=True)
def test_embeddings_trained_whole_load_in_peft(case, tmp_path):
    saved = [name for name in tree.flatten(case[2].params) if name.endswith("embed/embedding")]
    params = moved(adapted(case[2]), ("embed/embedding",))
    check_out(case, params, tmp_path / "out", saved=saved)


@pytest.mark.parametrize("case", ["llama", "gpt2"], indirect=True)
def test_rows_trained_alone_load_in_peft(case, tmp_path):
    vocab = case[1].spec.vocab
    tables, ids = rows.tables(case[2].params), range(vocab - 3, vocab)
    leaves = tree.flatten(adapted(case[2]))
    for name, axis in tables.items():
        at = (slice(None),) * axis + (slice(ids.start, ids.stop),)
        leaves[name] = leaves[name].at[at].add(0.5)
    check_out(case, tree.unflatten(leaves), tmp_path / "out", rows=dict.fromkeys(tables, ids))


@pytest.mark.parametrize("form", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("case", SHAPES, indirect=True)
def test_adapters_of_peft_load_here(case, form, tmp_path):
    net, folder, model, (mine, given) = case
    tied = folder.spec.tied
    names = {n for n, m in net.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    head = {name for name in names if name.split(".")[-1] in ("lm_head", "embed_out", "decoder")}
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.1,
        target_modules=sorted(n for n in names - head if not n.startswith("head")),
        rank_pattern=dict.fromkeys(sorted(names)[::2], 2),
        alpha_pattern=dict.fromkeys(sorted(names)[::3], 3),
        modules_to_save=None if tied else sorted(head),
        init_lora_weights=False,
        **form,
    )
    made = peft.get_peft_model(net, config)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "magnitude" in name or "modules_to_save" in name:
                value.mul_(1.1)
    made.eval().save_pretrained(tmp_path / "out")
    found = read_onto(tmp_path / "out", model.params, folder.spec, folder.family)
    assert families.apart(scored(found, model, mine), families.theirs(made, given)) < 1e-4
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4


CLASSIFIERS = [
    "bert sequence",
    "bert tokens",
    "roberta sequence",
    "modernbert sequence",
    "bart sequence",
    "qwen2 sequence",
    "gpt_neox tokens",
]


@pytest.mark.parametrize("case", CLASSIFIERS, indirect=True)
def test_a_classifier_leaves_with_its_head(case, tmp_path):
    head = [name for name in tree.flatten(case[2].params) if name.startswith("head/")]
    params = moved(adapted(case[2]), ("lora_b", *head))
    check_out(case, params, tmp_path / "out", saved=head)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tokens = case[1].spec.head.pool == "none"
    assert config["task_type"] == ("TOKEN_CLS" if tokens else "SEQ_CLS")
    modules = {name for name in config["modules_to_save"] if name in ("classifier", "score")}
    assert modules or case[1].spec.structure == "encoder-decoder"


@pytest.mark.parametrize("case", CLASSIFIERS, indirect=True)
def test_classifiers_of_peft_load_here(case, tmp_path):
    net, folder, model, (mine, given) = case
    task = "TOKEN_CLS" if folder.spec.head.pool == "none" else "SEQ_CLS"
    linear = {n for n, m in net.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    body = sorted(n for n in linear if "layer" in n)
    more = ["classification_head"] if "classification_head.dense" in linear else None
    config = peft.LoraConfig(
        task_type=task, r=4, target_modules=body, modules_to_save=more, init_lora_weights=False
    )
    made = peft.get_peft_model(net, config)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "modules_to_save" in name:
                value.mul_(1.3)
    made.eval().save_pretrained(tmp_path / "out")
    found = read_onto(tmp_path / "out", model.params, folder.spec, folder.family)
    assert families.apart(scored(found, model, mine), families.theirs(made, given)) < 1e-4
