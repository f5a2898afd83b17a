"""Model families as data: what config.json and the tensors' names mean, read and written.

Each file holds one: a table of keys, a table of weights, and what no table can say.
"""

from collections.abc import Mapping
from typing import Any

from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.families import (
    bart,
    bert,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    modernbert,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    t5,
)
from jaxlm.families.config import TRAINING, brief
from jaxlm.families.family import Family
from jaxlm.families.heads import NONE, SEQUENCE, named, write_labels
from jaxlm.families.rope import USED
from jaxlm.models.spec import RUNTIME, Experts, Head, ModelSpec, Relative, Rope, Window

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        mixtral,
        qwen3_moe,
        gemma,
        gemma2,
        gemma3,
        phi3,
        olmo2,
        gpt2,
        gpt_neox,
        bert,
        roberta,
        modernbert,
        t5,
        bart,
    )
}
"""By model_type; of several that express a spec, export takes the first."""

ROUTER = "router_aux_loss_coef"
"""What transformers adds to the loss of a sparse model where it returns its routers' scores."""
FREE = (*RUNTIME, "init_scale")
"""Fields of a spec that change no logit."""


def find(values: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a config.json. Raises CheckpointError for a model_type that is not here."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        what = "has no model_type" if name is None else f"model_type={brief(name)} is not supported"
        raise CheckpointError(where, f"{what}; known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def notes(values: Mapping[str, Any]) -> list[str]:
    """A line for what a config.json has that is not followed, and on purpose."""
    lines = []
    if values.get("auto_map"):
        lines.append("auto_map is ignored: no code from a model's folder is run")
    family = FAMILIES.get(str(values.get("model_type")))
    bare = family.classifiers.get(NONE) if family else None
    if bare and values.get("architectures") == [bare]:
        lines.append(f"{bare} has no head: its hidden states are what it gives")
    return lines


def training_notes(values: Mapping[str, Any]) -> list[str]:
    """The same of what acts in training alone."""
    what = "is ignored: model.dropout sets what training drops"
    keys = sorted(key for key in TRAINING if "drop" in key and values.get(key))
    lines = [f"{key}={brief(values[key])} {what}" for key in keys]
    if values.get("output_router_logits") and (weight := values.get(ROUTER)):
        lines.append(f"{ROUTER}={brief(weight)} is ignored: model.balance_loss sets it")
    return lines


def fitting(spec: ModelSpec, origin: str = "") -> Family:
    """The first family that can express a filled spec; before all, the model_type it came from.

    Raises CheckpointError, with the first field that the nearest one has otherwise.
    """
    wanted, lost, refusal = computed(spec), {}, None
    for name, family in sorted(FAMILIES.items(), key=lambda item: item[0] != origin):
        try:
            made = computed(family.spec(family.config(wanted)))
        except CheckpointError as error:
            refusal = error
            continue
        if made == wanted:
            return family
        lost[name] = _differing(wanted.model_dump(), made.model_dump())
    if refusal and not lost:
        raise CheckpointError("export", f"no family of Hugging Face has this model: {refusal.what}")
    nearest = min(lost, key=lambda name: len(lost[name]))
    never = [field for field in lost[nearest] if all(field in each for each in lost.values())]
    field = (never or list(lost[nearest]))[0]
    mine, theirs = lost[nearest][field]
    what = f"no family of Hugging Face has model.{field}={mine!r} beside the rest of this model"
    raise CheckpointError("export", f"{what}; the nearest, {nearest}, has {theirs!r}")


def headed(
    spec: ModelSpec, kind: str, labels: int, came: Mapping[str, Any] | None = None
) -> ModelSpec:
    """A filled spec with the head that its family has to score `labels` labels, of SEQUENCE or of
    TOKENS; where no family has the spec, or the one that has it no such head, with a plain one.

    came: the config.json that the model came with, which may say more of such a head than the spec.
    Raises ConfigError where a model that came so, or an encoder-decoder, has no such head in its
    family.
    """
    try:
        family = find(came) if came else fitting(spec)
    except CheckpointError:
        family = None
    if family and (name := family.classifiers.get(kind)):
        one = spec.model_copy(update={"head": Head(labels=labels)})
        values = {**(came or family.config(spec)), "architectures": [name]}
        head = family.spec(values | write_labels(named({}, one))).head
        return spec.model_copy(update={"head": head})
    if family and (came or spec.structure == "encoder-decoder"):
        those = ", ".join(name for name, each in FAMILIES.items() if kind in each.classifiers)
        what = f"{family.model_type} has no head for {kind}; take a model of {those}"
        raise ConfigError("objective.type", what)
    place = "first" if spec.structure == "encoder" else "last"
    head = Head(labels=labels, pool=place if kind == SEQUENCE else "none", bias=True)
    return spec.model_copy(update={"head": head})


def computed(spec: ModelSpec) -> ModelSpec:
    """The spec with every field that changes no logit at its default: equal means the same."""
    fields = type(spec).model_fields
    update: dict[str, Any] = {name: fields[name].default for name in FREE}
    rope, window = spec.rope, spec.window
    if not window.size or len(set(window.full)) == spec.layers:
        window = Window()
    used = {name: getattr(rope, name) for name in ("theta", "share", *USED[rope.scaling])}
    if window.size and (rope.scaling != "none" or rope.local_theta != rope.theta):
        used["local_theta"] = rope.local_theta
    update["rope"] = Rope(scaling=rope.scaling, **used) if spec.positions == "rope" else Rope()
    update["window"] = Window(size=window.size, full=tuple(sorted(set(window.full))))
    if spec.scale.query == spec.head_dim**-0.5:
        update["scale"] = spec.scale.model_copy(update={"query": 0.0})
    if spec.positions == "relative":
        update["max_length"] = 0  # they do not end
    else:
        update["relative"] = Relative()
    if not spec.experts.count:
        update["experts"] = Experts()
    return spec.model_copy(update=update)


def _differing(ours: dict[str, Any], made: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields that differ -> both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in ours.items():
        if isinstance(value, dict):
            parts = _differing(value, made[name])
            found |= {f"{name}.{part}": both for part, both in parts.items()}
        elif value != made[name]:
            found[name] = (value, made[name])
    return found
