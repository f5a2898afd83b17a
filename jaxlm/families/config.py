"""config.json, read strictly: what changes the computation is read, or it is an error.

A key that is absent has the value that transformers gives it for that model_type. A key that nobody
reads is refused by name, unless it is empty (null, false, 0, [], ...), which asks for nothing, or a
table says that it changes no logit.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from jaxlm.core.errors import CheckpointError
from jaxlm.core.words import printable
from jaxlm.models.spec import ModelSpec

Fields = dict[str, Any]
"""Values by the dotted name of a spec's field: {"norm.eps": 1e-5}."""
T = TypeVar("T", bool, int, float, str)

ABOUT = {
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "is_llama_config",
    "model_type",
    "name_or_path",
    "prefix",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "_commit_hash",
    "_name_or_path",
}
"""What the file is, and how it came to be."""

TRAINING = {
    "attention_dropout",
    "attention_probs_dropout_prob",
    "activation_dropout",
    "attn_pdrop",
    "classif_dropout",
    "decoder_layerdrop",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "embedding_dropout",
    "encoder_layerdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "init_std",
    "initializer_cutoff_factor",
    "initializer_factor",
    "initializer_range",
    "mlp_dropout",
    "output_router_logits",
    "resid_pdrop",
    "router_aux_loss_coef",
}
"""What acts in training only and not on a logit. `training_notes` has a line for the dropouts."""

RUNNING = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pretraining_tp",
    "return_dict",
    "torchscript",
    "use_bfloat16",
    "use_cache",
}
"""How transformers runs it: the same numbers by another way, or more of them returned."""

LABELS = {"_num_labels", "classifier_dropout", "id2label", "label2id", "num_labels", "problem_type"}
"""Of classifiers."""

TOKENS = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "pad_token_id",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "unk_token_id",
}
"""Which ids are special, and how to choose the next one: generation_config.json's matter."""

NEUTRAL = frozenset(ABOUT | TRAINING | RUNNING | LABELS | TOKENS)
"""Keys of every family that change no logit."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
}
"""Their name of an activation -> ours; the first of equal ones is what export writes."""


class Key(NamedTuple):
    """A row of a family's table: a key of config.json and the field that holds its value."""

    theirs: str
    ours: str
    """The dotted name of a field of ModelSpec."""
    default: Any = None
    """transformers' value for an absent key; None leaves the field to the spec, as null does."""


class Config:
    """config.json, or a part of it, that remembers which of its keys were read."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json"):
        self._values, self.where = values, where
        self._read: set[str] = set()
        self._parts: list[Config] = []

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null."""
        return key in self._values and self._values[key] is None

    def any(self, key: str) -> Any:
        """The value of a key as it stands; None when absent or null."""
        self._read.add(key)
        return self._values.get(key)

    def get(self, key: str, default: T) -> T:
        """The value, of the default's type. Null and absent are the default."""
        value, kind = self.any(key), type(default)
        if value is None:
            return default
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self.error(key, f"is not {_NAMES[kind]}")
        if isinstance(value, int | float) and not abs(value) < HUGE:
            raise self.error(key, "is too large")
        return kind(value)

    def need(self, key: str, kind: type[T]) -> T:
        """The value of a key that has no default."""
        if key not in self:
            raise CheckpointError(self.where, f"{key} is missing")
        return self.get(key, kind())

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self.any(key)
        numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
        if not numbers or not all(abs(one) < HUGE for one in value):
            raise self.error(key, "is not a list of numbers")
        return tuple(float(one) for one in value)

    def part(self, key: str) -> "Config | None":
        """A nested object; None when absent, null or empty."""
        value = self.any(key)
        if not value:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, "is not an object")
        self._parts.append(Config(value, f"{self.where}: {key}"))
        return self._parts[-1]

    def error(self, key: str, what: str) -> CheckpointError:
        """One line about the value of a key."""
        shown = brief(self._values.get(key))
        return CheckpointError(self.where, f"{printable(key)[:60]}={shown} {what}")

    def check_read(self, neutral: Iterable[str]) -> None:
        """Raise CheckpointError for the first key that asks for something nobody read."""
        known = self._read | set(neutral)
        for key, value in self._values.items():
            if key not in known and value:
                what = "is an option that is not supported; remove it if it changes nothing"
                raise self.error(key, what)
        for part in self._parts:
            part.check_read(())


HUGE = 1e15
"""No value is so large; NaN and infinity are."""
LIMITS = {"layers": 1024, "encoder.layers": 1024, "experts.count": 1024}
"""What a table is expanded over must not be absurd."""
LARGEST = 2**16
"""Experts in all layers together."""
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_DEFAULTS = ModelSpec().model_dump()


def brief(value: Any) -> str:
    """A value as an error shows it: on one line, and not long."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read_keys(config: Config, keys: Iterable[Key]) -> Fields:
    """The fields of a table's keys. Null is the spec's own default where that is empty."""
    fields: Fields = {}
    for key in keys:
        own = _default(key.ours)
        if config.is_null(key.theirs) and own:
            raise config.error(key.theirs, "is null; write a value")
        absent = own if key.default is None or config.is_null(key.theirs) else key.default
        fields[key.ours] = value = config.get(key.theirs, absent)
        if type(value) is int and value < 1 and key.theirs in config:
            raise config.error(key.theirs, "is not a size")
        if key.ours in LIMITS and value > LIMITS[key.ours]:
            raise config.error(key.theirs, f"is more than {LIMITS[key.ours]}")
    return fields


def write_keys(spec: ModelSpec, keys: Iterable[Key]) -> dict[str, Any]:
    """The keys of a table's fields; null for an empty number."""
    values = {key.theirs: value_of(spec, key.ours) for key in keys}
    empty = {key for key, value in values.items() if value == 0 and value is not False}
    return {key: None if key in empty else value for key, value in values.items()}


def value_of(spec: ModelSpec, field: str) -> Any:
    """A field of the spec by its dotted name."""
    return reduce(getattr, field.split("."), spec)


def read_activation(config: Config, key: str, default: str) -> Fields:
    """The activation by their name. Raises CheckpointError for one that is not here."""
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise config.error(key, f"is not supported; known are {', '.join(ACTIVATIONS)}")
    return {"activation": ACTIVATIONS[name]}


def their_activation(spec: ModelSpec, activation: str = "") -> str:
    """Their name of an activation, by default the spec's. Raises CheckpointError for none."""
    wanted = activation or spec.activation
    for theirs, ours in ACTIVATIONS.items():
        if ours == wanted:
            return theirs
    raise CheckpointError("export", f"no key of Hugging Face names the activation {wanted!r}")


def build(config: Config, keys: Iterable[Key], fields: Fields) -> ModelSpec:
    """The filled spec of these fields.

    Raises CheckpointError for what cannot be, under the name of the key where the table has it.
    """
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        *parents, last = name.split(".")
        reduce(lambda branch, parent: branch.setdefault(parent, {}), parents, tree)[last] = value
    try:
        spec = ModelSpec.model_validate(tree).filled(vocab=0, max_length=0)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        theirs = next((key.theirs for key in keys if key.ours == field), field)
        shown = f"{theirs}: " if theirs else ""
        what = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(config.where, f"{shown}{what}") from None
    if spec.encoder.start >= spec.vocab:
        what = f"decoder_start_token_id={spec.encoder.start} is none of the {spec.vocab} ids"
        raise CheckpointError(config.where, what)
    if (parts := spec.layers * max(spec.experts.count, 1)) > LARGEST:
        raise CheckpointError(
            config.where, f"{parts} experts in all layers are more than {LARGEST}"
        )
    turning = int(spec.head_dim * spec.rope.share)
    if spec.positions == "rope" and (turning < 2 or turning % 2):
        what = f"{turning} of the {spec.head_dim} dimensions of a head turn; an even number can"
        raise CheckpointError(config.where, what)
    return spec


def _default(field: str) -> Any:
    return reduce(lambda branch, part: branch[part], field.split("."), _DEFAULTS)
