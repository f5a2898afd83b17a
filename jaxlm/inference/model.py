"""The face for people in Python: a model loaded from a run or a Hugging Face folder.

model = jaxlm.load("runs/quickstart")
model.logits([[1, 2, 3]])
model.generate(["def main("], max_tokens=64)
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import Params
from jaxlm.hub.adapter import put_adapter
from jaxlm.inference import adapters, slots
from jaxlm.inference.adapters import Adapter
from jaxlm.inference.generate import Generator
from jaxlm.inference.run import compute_dtype, read
from jaxlm.inference.slots import Choice, Held, Slots
from jaxlm.models import lora
from jaxlm.models.heads import pooled
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, make_forward
from jaxlm.text import chat
from jaxlm.text.chat import Message
from jaxlm.text.tokenizer import Tokenizer

Tokens = Sequence[Sequence[int]] | np.ndarray | Array
Prompt = str | Sequence[Message]


class Model:
    """Parameters, architecture and tokenizer, and what can be asked of them."""

    def __init__(
        self,
        params: Params,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        layout: Layout,
        dtype: Any,
        config: dict[str, Any] | None = None,
        held: Held | None = None,
    ):
        """config: the config.json that it came with, if it did. held: of the slots in `params`."""
        self.params, self.spec, self.tokenizer = params, spec, tokenizer
        self._layout, self._config, self._held = layout, config, held
        self._forward = make_forward(spec, layout, dtype)

    def with_adapter(
        self, adapter: str | Path | Adapter, *, name: str | None = None, force: bool = False
    ) -> "Model":
        """The model with the adapter in a folder, as PEFT writes it, or with one that was read.

        The base is shared. In slots it lies beside those that are there, under `name`, by default
        its path: in the slot of that name, in a free one, or in the oldest adapter's, and nothing
        is compiled again. Without slots it takes another's place, and nothing is compiled again for
        one of the same shapes; adapters of a run that was loaded are part of the base. Raises
        CheckpointError for an adapter that does not fit, or was trained on another base, unless
        `force`.
        """
        read = isinstance(adapter, Adapter)
        return self._with(adapter if read else self.read_adapter(adapter, force=force), name)

    def with_adapters(
        self, weights: Mapping[Any, float], *, name: str | None = None, force: bool = False
    ) -> "Model":
        """The model with the sum of the adapters in folders, each by its weight, as one adapter.

        Its rank is the sum of theirs. As `with_adapter` otherwise; adapters of DoRA, and with more
        than an adapter beside each kernel, are no summands.
        """
        return self._with(self._read(weights, force), name)

    def read_adapter(self, path: str | Path, *, force: bool = False) -> Adapter:
        """The adapter in a folder, in the host's memory: `with_adapter` then only transfers it."""
        return self._read({path: 1.0}, force)

    def _read(self, weights: Mapping[Any, float], force: bool) -> Adapter:
        if not weights:
            raise ConfigError("adapters", "are none; name a folder and its weight")
        given = {str(path): float(weight) for path, weight in weights.items()}
        family = adapters.family_of(self._config, self.spec)
        leaves = adapters.read(
            given, self._base, self.spec, family, digest=lambda: self._digest, force=force
        )
        several = [f"{path}:{weight:g}" for path, weight in given.items()]
        name = " + ".join(several) if len(several) > 1 else next(iter(given))
        return Adapter(name, leaves, self._base)

    def _with(self, adapter: Adapter, name: str | None) -> "Model":
        if adapter.base is not self._base:
            raise ConfigError(adapter.name, "was read for another model; read it for this one")
        if name is not None and not self._held:
            raise ConfigError("name", f"{name!r} is of a slot; load with adapters=Slots(...)")
        for part in ("_generator", "_hidden", "_logits"):
            getattr(self, part)  # made now and compiled when used: both have the same
        adapted = copy.copy(self)
        if self._held:
            adapted.params, adapted._held = slots.put(
                self.params, self._held, name or adapter.name, adapter, self._layout
            )
        else:
            adapted.params = put_adapter(self._base, adapter.leaves, self._layout)
        return adapted

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters in the model's slots, the last put in last."""
        return tuple(self._held.places) if self._held else ()

    def _chosen(self, adapter: Choice, rows: int, fill: int) -> Params:
        """The parameters for a batch of so many rows, and so many that only fill it up."""
        if self._held:
            return slots.choose(self.params, self._held, adapter, rows, self._layout, fill)
        if adapter is not None:
            raise ConfigError("adapter", "is chosen among slots; load with adapters=Slots(...)")
        return self.params

    @cached_property
    def _base(self) -> Params:
        return lora.without(self.params) if self._held else lora.merge(self.params)

    @cached_property
    def _digest(self) -> str:
        return adapters.base_digest(self._base, self.spec)

    def logits(
        self,
        tokens: Tokens,
        mask: Any = None,
        *,
        source: Tokens | None = None,
        source_mask: Any = None,
        types: Any = None,
        adapter: Choice = None,
    ) -> Array:
        """Scores, float32, for token ids [B, L]: a decoder's of the next token [B, L, V], an
        encoder's of the token itself [B, L, V], a classifier's [B, labels] or [B, L, labels].

        mask: [B, L], false for padding; positions count from a row's first unmasked token. source
        [B, S] and its mask: what an encoder-decoder's `tokens` continue, which begin with
        `spec.encoder.start`; its classifier takes the text as `tokens` alone. types: [B, L] token
        types, 0 by default. adapter: the name of one in a slot, or a list of one for each row, None
        being the base alone; by default the one put in last. Raises DataError for ids outside the
        vocabulary, rows longer than the model's positions, and a source that is missing or that the
        model does not take, ConfigError for an adapter that is in no slot.
        """
        batch = self._batch(tokens, mask, source, source_mask, types)
        return self._sized(self._logits, batch, adapter)

    def hidden(
        self,
        tokens: Tokens,
        mask: Any = None,
        *,
        source: Tokens | None = None,
        source_mask: Any = None,
        types: Any = None,
        adapter: Choice = None,
    ) -> Array:
        """Hidden states after the final norm, [B, L, D]; arguments as for `logits`."""
        batch = self._batch(tokens, mask, source, source_mask, types)
        return self._sized(self._hidden, batch, adapter)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        adapter: Choice = None,
    ) -> list[str]:
        """The continuation of every prompt, without the prompt, up to a token that ends it.

        An encoder-decoder's answer to it, the prompt being its source.

        prompts: texts, or chats: lists of messages such as {"role": "user", "content": "Hello"},
        which the tokenizer's chat template renders up to the answer. temperature 0 is greedy.
        adapter: as for `logits`, one for each prompt. Raises ConfigError for settings or lengths
        that cannot be, DataError for prompts that are neither.
        """
        how = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        starts = self._prompts(prompts)
        ids: list[list[int]] = [[] for _ in prompts]
        for tokens in self._continue(starts, max_tokens, how, adapter):
            for row, token in zip(ids, tokens.tolist(), strict=True):
                row.append(token)
        return [self._after(start, row) for start, row in zip(starts, ids, strict=True)]

    def stream(
        self, prompt: Prompt, *, max_tokens: int = 64, adapter: Choice = None, **how: Any
    ) -> Iterator[str]:
        """The pieces of one continuation as they come; `how` as for `generate`."""
        starts = self._prompts([prompt])
        ids: list[int] = []
        said = ""
        for tokens in self._continue(starts, max_tokens, how, adapter):
            ids.append(int(tokens[0]))
            text = self._after(starts[0], ids)
            if text.endswith("\ufffd") and len(ids) < max_tokens:
                continue  # the bytes of one character may come in several tokens
            yield text[len(said) :]
            said = text

    def _prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids as documents begin in training: nothing that a tokenizer puts at a text's end."""
        if isinstance(prompts, str) or not all(map(_is_prompt, prompts)):
            raise DataError("prompts", "are a list of texts; write ['def main('] for a single one")
        return [self._start(prompt) for prompt in prompts]

    def _start(self, prompt: Prompt) -> list[int]:
        tokenizer = self.tokenizer
        if not isinstance(prompt, str):
            return chat.of(tokenizer).apply(tokenizer, prompt, add_generation_prompt=True)
        if self.spec.structure == "encoder-decoder":  # a source is a whole text
            return tokenizer.encode(prompt)
        return tokenizer.beginning(prompt)

    def _after(self, start: list[int], ids: list[int]) -> str:
        """The text of `ids` after a prompt, or for a source."""
        return self.tokenizer.continuation(
            [] if self.spec.structure == "encoder-decoder" else start, ids
        )

    def _continue(
        self,
        starts: list[list[int]],
        max_tokens: int,
        how: Mapping[str, Any],
        adapter: Choice = None,
    ) -> Iterator[np.ndarray]:
        rows = len(starts)
        fill = -rows % self._layout.size("batch")  # they split over the mesh
        params, ids = self._chosen(adapter, rows, fill), starts + starts[:1] * fill
        ended = np.zeros(rows, bool)
        for tokens in self._generator.tokens(params, ids, max_tokens=max_tokens, **how):
            yield tokens[:rows]
            ended |= np.isin(tokens[:rows], self.tokenizer.ends)
            if ended.all():
                return

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self._forward, self.spec)

    @cached_property
    def _hidden(self) -> Any:
        return jax.jit(lambda params, batch: self._forward.hidden(params, batch, None)[0])

    @cached_property
    def _logits(self) -> Any:
        def run(params: Params, batch: Batch) -> Array:
            x, _ = self._forward.hidden(params, batch, None)
            x = pooled(x, batch.get("segments"), self.spec.head.pool)
            width = self.spec.head.labels or self.spec.vocab
            return self._forward.logits(self._forward.head(params), x)[..., :width]

        return jax.jit(run)

    def _sized(self, run: Any, batch: dict[str, np.ndarray], adapter: Choice) -> Array:
        """`run` on a batch that splits over the mesh; the rows that fill it up are cut off."""
        rows, shards = batch["tokens"].shape[0], self._layout.size("batch")
        fill = -rows % shards
        sharding = self._layout.sharding(("batch", None))
        whole = {
            name: jax.device_put(np.pad(array, ((0, fill), (0, 0))), sharding)
            for name, array in batch.items()
        }
        return run(self._chosen(adapter, rows, fill), whole)[:rows]

    def _batch(
        self, tokens: Tokens, mask: Any, source: Tokens | None, source_mask: Any, types: Any
    ) -> dict[str, np.ndarray]:
        """A batch as Forward has it."""
        rows, spec = _rows(tokens), self.spec
        if types is not None and not spec.embedding.types:
            raise DataError("types", "is nothing that this model has; leave it out")
        if spec.structure != "encoder-decoder":
            if source is not None:
                raise DataError(
                    "source",
                    f"is nothing that a model of structure {spec.structure} reads; leave it out",
                )
            batch = self._checked(rows, mask)
            if types is not None:
                batch["types"] = self._checked_types(types, rows)
            return batch
        if source is None and not spec.head.labels:
            raise DataError("source", "is missing: it is what an encoder-decoder's tokens continue")
        if source is None:  # a classifier reads the text twice
            source, source_mask = rows, mask
            rows = np.insert(rows, 0, spec.encoder.start, axis=1)[:, :-1]
        read = self._checked(_rows(source), source_mask)
        if read["tokens"].shape[0] != len(rows):
            have = f"{read['tokens'].shape[0]} rows for {len(rows)} of tokens"
            raise DataError("source", f"has {have}; give one for each")
        names = {"tokens": "source", "positions": "source_positions", "segments": "source_segments"}
        return self._checked(rows, mask) | {names[name]: array for name, array in read.items()}

    def _checked_types(self, types: Any, rows: np.ndarray) -> np.ndarray:
        given, most = np.asarray(types), self.spec.embedding.types
        if given.shape != rows.shape or not 0 <= given.min() <= given.max() < most:
            what = f"{list(given.shape)} from {given.min()} to {given.max()}"
            raise DataError("types", f"{what} are not {list(rows.shape)} within [0, {most})")
        return given.astype(np.int32)

    def _checked(self, tokens: np.ndarray, mask: Any) -> dict[str, np.ndarray]:
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise DataError("tokens", f"{tokens.dtype}{list(tokens.shape)} are not ids [B, L]")
        if not tokens.size:
            raise DataError("tokens", f"{list(tokens.shape)} holds none; give at least one row")
        if not 0 <= tokens.min() <= tokens.max() < self.spec.vocab:
            raise DataError(
                "tokens", f"ids {tokens.min()} to {tokens.max()} leave [0, {self.spec.vocab})"
            )
        if tokens.shape[1] > self.spec.max_length:
            raise DataError(
                "tokens",
                f"rows of {tokens.shape[1]} are longer than the model's {self.spec.max_length} "
                "positions; cut them",
            )
        if mask is None:
            positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
            return {"tokens": tokens.astype(np.int32), "positions": positions.astype(np.int32)}
        real = np.asarray(mask).astype(bool)
        if real.shape != tokens.shape:
            raise DataError("mask", f"has shape {list(real.shape)}, tokens {list(tokens.shape)}")
        return {
            "tokens": np.where(real, tokens, 0).astype(np.int32),
            "positions": np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32),
            "segments": real.astype(np.int32),
        }


def _is_prompt(prompt: Any) -> bool:
    said = isinstance(prompt, list | tuple) and len(prompt) > 0
    return isinstance(prompt, str) or (said and all(isinstance(x, Mapping) for x in prompt))


def _rows(tokens: Tokens) -> np.ndarray:
    try:
        return np.asarray(tokens)
    except ValueError:
        wrong = "rows differ in length; fill them to one length and pass a mask"
        raise DataError("tokens", wrong) from None


def load(
    path: str | Path,
    *,
    mesh: Mesh | Mapping[str, int] | None = None,
    adapters: Slots | None = None,
) -> Model:
    """The newest good checkpoint of a run, an import, or a Hugging Face folder in its own types.

    mesh: a mesh of ours, or sizes by axis such as {"fsdp": -1}, to shard the parameters over it; by
    default everything lies on the first device. adapters: slots to reserve, for `with_adapter`.
    Raises CheckpointError for what is neither, or is damaged, DataError for a tokenizer that cannot
    be read, ConfigError for slots that no kernel has.
    """
    if not isinstance(mesh, Mesh):
        devices = jax.devices() if mesh else jax.devices()[:1]
        mesh = make_mesh(dict(mesh or {}), devices)
    layout = Layout(mesh)
    found = read(path, layout)
    dtype = compute_dtype(found.compute_dtype)
    params, held = found.params, None
    if adapters:
        params, held = slots.reserve(lora.merge(params), adapters, layout)
    return Model(params, found.spec, found.tokenizer, layout, dtype, found.config, held)
