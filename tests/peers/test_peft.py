"""Adapters in PEFT's format: ours give its logits in peft, and peft's give ours here."""

import json

import jax.numpy as jnp
import networks
import numpy as np
import pytest
import test_families as families

from jaxlm.core import tree
from jaxlm.hub.adapter import load_adapter, save_adapter
from jaxlm.inference.model import Model
from jaxlm.models import lora

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.peers

FORMS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
}
EVERY = list({values["model_type"]: name for name, values in families.CONFIGS.items()}.values())
"""A configuration of each family."""
MOST = ["llama", "gpt2", "phi3 plain", "gpt_neox", "modernbert plain", "t5"]
"""Kernels of their own, lying the other way round, fused and interleaved; two stacks."""


def moved(params, parts=("lora_a", "lora_b", "lora_m")):
    """Adapters and what is named that differ from the base."""

    def one(name, leaf):
        noise = np.random.default_rng([*name.encode()]).normal(size=leaf.shape)
        return leaf + 0.2 * jnp.asarray(noise, leaf.dtype) if name.endswith(parts) else leaf

    return tree.map_named(one, params)


@pytest.fixture
def case(request, tmp_path):
    """(transformers' network, our folder and model, inputs of both) of a configuration."""
    values = families.CONFIGS[request.param]
    net = families.saved(values, tmp_path / "base")
    folder, model = families.loaded(tmp_path / "base")
    return net, folder, model, families.inputs(values, 12)


def adapted(model, **how):
    given = {"rank": 3, "alpha": 5.0, "targets": ["all-linear"]} | how
    return moved(lora.add(model.params, networks.layout(), networks.ROOT, **given))


def scored(params, folder, given):
    model = Model(params, folder.spec, None, networks.layout(), jnp.float32)
    return np.asarray(model.logits(**given))


def check_out(case, params, out, **more):
    """Ours in `out` gives the same logits in peft, and the same here when it is read again."""
    net, folder, model, (mine, given) = case
    save_adapter(out, params, folder.spec, folder.family, **more)
    wanted = scored(params, folder, mine)
    assert families.apart(scored(model.params, folder, mine), wanted) > 1e-2
    loaded = peft.PeftModel.from_pretrained(net, out).eval()
    assert families.apart(families.theirs(loaded, given), wanted) < 1e-4
    again = load_adapter(out, model.params, folder.spec, folder.family, networks.layout())
    assert families.apart(scored(again, folder, mine), wanted) < 1e-5


@pytest.mark.parametrize("case", EVERY, indirect=True)
def test_adapters_of_every_family_load_in_peft(case, tmp_path):
    check_out(case, adapted(case[2]), tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", MOST, indirect=True)
def test_every_form_loads_in_peft(case, form, tmp_path):
    check_out(case, adapted(case[2], **FORMS[form]), tmp_path / "out")


@pytest.mark.parametrize("form", ["lora", "dora"])
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "phi3 plain"], indirect=True)
def test_a_part_of_a_fused_tensor_loads_in_peft(case, form, tmp_path):
    check_out(case, adapted(case[2], targets=["attn/[qv]/kernel"], **FORMS[form]), tmp_path / "out")


@pytest.mark.parametrize("case", [*MOST, "bert", "bart", "bert sequence"], indirect=True)
def test_embeddings_trained_whole_load_in_peft(case, tmp_path):
    saved = [name for name in tree.flatten(case[2].params) if name.endswith("embed/embedding")]
    params = moved(adapted(case[2]), ("embed/embedding",))
    check_out(case, params, tmp_path / "out", saved=saved)


@pytest.mark.parametrize("form", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("case", MOST, indirect=True)
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
    found = load_adapter(
        tmp_path / "out", model.params, folder.spec, folder.family, networks.layout()
    )
    assert families.apart(scored(found, folder, mine), families.theirs(made, given)) < 1e-4
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
