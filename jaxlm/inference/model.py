"""The face for people in Python: a model loaded from a run or a Hugging Face folder.

model = jaxlm.load("runs/quickstart")
model.logits([[1, 2, 3]])
model.generate(["def main("], max_tokens=64)
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.core.tree import Params
from jaxlm.families.heads import Labels
from jaxlm.hub.adapter import put_adapter
from jaxlm.hub.pooling import pooling_of
from jaxlm.inference import adapters, predict, slots, texts
from jaxlm.inference.adapters import Adapter
from jaxlm.inference.batch import Tokens, batch_of, by_length
from jaxlm.inference.beam import BeamSearch, check_beside
from jaxlm.inference.embed import embedder, framed
from jaxlm.inference.generate import Generator
from jaxlm.inference.run import compute_dtype, read
from jaxlm.inference.slots import Choice, Held, Slots
from jaxlm.inference.texts import Prompt
from jaxlm.models import lora
from jaxlm.models.embedding import pooling
from jaxlm.models.heads import pooled
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import Batch, make_forward
from jaxlm.text.tokenizer import Tokenizer


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
        pool: str | None = None,
        labels: Labels | None = None,
    ):
        """config: the config.json that it came with, if it did. held: of the slots in `params`.
        pool: how it embeds texts, where that is known. labels: a classifier's: their names in the
        order of scores, and problem: single, multi or regression, or empty where nobody said.
        """
        self.params, self.spec, self.tokenizer = params, spec, tokenizer
        self._layout, self._config, self._held, self._pool = layout, config, held, pool
        self.labels, self.problem = labels or Labels()
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
        pools = {pool for path in given if (pool := pooling_of(Path(path)))}
        return Adapter(name, leaves, self._base, pools.pop() if len(pools) == 1 else None)

    def _with(self, adapter: Adapter, name: str | None) -> "Model":
        if adapter.base is not self._base:
            raise ConfigError(adapter.name, "was read for another model; read it for this one")
        if name is not None and not self._held:
            raise ConfigError("name", f"{name!r} is of a slot; load with adapters=Slots(...)")
        for part in ("_beam_search", "_embedded", "_generator", "_hidden", "_logits"):
            getattr(self, part)  # made now and compiled when used: both have the same
        adapted = copy.copy(self)
        adapted._pool = adapter.pool or self._pool
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
        batch = batch_of(self.spec, tokens, mask, source, source_mask, types)
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
        batch = batch_of(self.spec, tokens, mask, source, source_mask, types)
        return self._sized(self._hidden, batch, adapter)

    def embed(
        self,
        texts: Sequence[str],
        pool: str | None = None,
        *,
        overlong: str = "error",
        adapter: str | None = None,
        where: Sequence[str] | None = None,
    ) -> np.ndarray:
        """A vector of length 1 for each text, float32 [n, D].

        pool: mean, first or last state of a text; by default as the model was trained, else an
        encoder's mean, a decoder's last. overlong: what becomes of texts longer than the model's
        positions: error, truncate-right or truncate-left. adapter: as for `logits`. where: what the
        texts are called in errors. Raises DataError for what is no text or too long, ConfigError
        for a pool or a model that embeds none.
        """
        how = pooling(pool or self._pool, self.spec, "pool")
        rows = framed(texts, self.tokenizer, self.spec, overlong=overlong, where=where)
        run, found = partial(self._embedded, how=how), np.zeros((len(rows), self.spec.embed))
        for index, tokens, real in by_length(rows, self.spec.max_length):
            batch = batch_of(self.spec, tokens, real)
            found[index] = np.asarray(self._sized(run, batch, adapter))[: index.size]
        return found.astype(np.float32)

    def predict(
        self, texts: Sequence[Any], pairs: Sequence[str] | None = None, *, overlong: str = "error"
    ) -> list[predict.Prediction]:
        """The label of each text, or pair of texts, and each label's probability: see `predict`.

        texts: of a classifier of words lists of words, or texts that are split at white space.
        """
        return predict.predict(self, predict.asked(predict.task_of(self), texts, pairs), overlong)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        beams: int = 1,
        length_penalty: float = 1.0,
        adapter: Choice = None,
    ) -> list[str]:
        """The continuation of every prompt, without the prompt, up to a token that ends it.

        An encoder-decoder's answer to it, the prompt being its source.

        prompts: texts, or chats: lists of messages such as {"role": "user", "content": "Hello"},
        which the tokenizer's chat template renders up to the answer. temperature 0 is greedy.
        beams: how many a beam search has, 1 being none; the continuation is then the one of the
        largest sum of log-probabilities over length ** length_penalty. adapter: as for `logits`,
        one for each prompt. Raises ConfigError for settings or lengths that cannot be, DataError
        for prompts that are neither.
        """
        check_beside(beams, length_penalty, temperature=temperature, top_p=top_p, top_k=top_k)
        how = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        starts = self._starts(prompts)
        if beams != 1:
            return self._likeliest(starts, max_tokens, beams, length_penalty, adapter)
        ids: list[list[int]] = [[] for _ in prompts]
        for tokens in self._continue(starts, max_tokens, how, adapter):
            for row, token in zip(ids, tokens.tolist(), strict=True):
                row.append(token)
        return [self._after(start, row) for start, row in zip(starts, ids, strict=True)]

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 64,
        beams: int = 1,
        length_penalty: float = 1.0,
        adapter: Choice = None,
        **how: Any,
    ) -> Iterator[str]:
        """The pieces of one continuation as they come, with beams all at once; see `generate`."""
        if (beams, length_penalty) != (1, 1):
            search = {"beams": beams, "length_penalty": length_penalty, "adapter": adapter}
            yield from self.generate([prompt], max_tokens=max_tokens, **search, **how)
            return
        starts = self._starts([prompt])
        ids: list[int] = []
        said = ""
        for tokens in self._continue(starts, max_tokens, how, adapter):
            ids.append(int(tokens[0]))
            text = self._after(starts[0], ids)
            if text.endswith("\ufffd") and len(ids) < max_tokens:
                continue  # the bytes of one character may come in several tokens
            yield text[len(said) :]
            said = text

    def _starts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return texts.starts(self.tokenizer, self.spec, prompts)

    def _after(self, start: list[int], ids: list[int]) -> str:
        return texts.after(self.tokenizer, self.spec, start, ids)

    def _continue(
        self,
        starts: list[list[int]],
        max_tokens: int,
        how: Mapping[str, Any],
        adapter: Choice = None,
    ) -> Iterator[np.ndarray]:
        rows, (params, ids) = len(starts), self._filled(starts, adapter)
        ended = np.zeros(rows, bool)
        for tokens in self._generator.tokens(params, ids, max_tokens=max_tokens, **how):
            yield tokens[:rows]
            ended |= np.isin(tokens[:rows], self.tokenizer.ends)
            if ended.all():
                return

    def _likeliest(
        self,
        starts: list[list[int]],
        max_tokens: int,
        beams: int,
        length_penalty: float,
        adapter: Choice,
    ) -> list[str]:
        """What a beam search finds for each."""
        params, ids = self._filled(starts, adapter)
        found = self._beam_search.beams(
            params,
            ids,
            beams=beams,
            max_tokens=max_tokens,
            ends=self.tokenizer.ends,
            length_penalty=length_penalty,
        )
        return [self._after(start, its[0].ids) for start, its in zip(starts, found, strict=False)]

    def _filled(self, starts: list[list[int]], adapter: Choice) -> tuple[Params, list[list[int]]]:
        """The parameters for prompts, and the prompts with as many more as split over the mesh."""
        fill = -len(starts) % self._layout.size("batch")
        return self._chosen(adapter, len(starts), fill), starts + starts[:1] * fill

    @cached_property
    def _beam_search(self) -> BeamSearch:
        return BeamSearch(self._forward, self.spec)

    @cached_property
    def _embedded(self) -> Any:
        return embedder(self._forward)

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
    its = found.spec, found.tokenizer, layout, dtype, found.config, held, found.pool, found.labels
    return Model(params, *its)
