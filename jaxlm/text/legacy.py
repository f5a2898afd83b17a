"""Folders of older tokenizers as the tokenizer.json that transformers makes of them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxlm.core.errors import DataError
from jaxlm.text import files, frames, pieces
from jaxlm.text.files import named
from jaxlm.text.frames import Frame, PairFrame
from jaxlm.text.huggingface import add_listed
from jaxlm.text.tokenizer import END, OWN_MODEL

Config = dict[str, Any]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's split, with every digit a word."""


class Kind(NamedTuple):
    """How transformers' class of that name reads its files.

    file: the model's. build: (path, configuration) -> the tokenizer without added tokens. tokens:
    special tokens where no file names others. first, last: the keys of what goes around a text;
    pair: and from that to what goes around two.
    """

    file: str
    build: Callable[[Path, Config], Tokenizer]
    tokens: Mapping[str, str]
    first: str | None = None
    last: str | None = None
    pair: Callable[[Frame], PairFrame] = frames.each


def kind(model: Path, config: Config) -> str | None:
    """The class in KINDS for a model file, by tokenizer_class or config.json's model_type.

    None is for what is read as it is: tokenizer.json, a SentencePiece model that nothing describes.
    Raises DataError for a class that is not known.
    """
    if model.name not in ("vocab.json", "vocab.txt") and model.suffix != ".model":
        return None
    model_type = files.read_json(model.parent / "config.json").get("model_type")
    theirs = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    name = ALIASES.get(theirs, theirs)
    if model.suffix == ".model":
        if config.get(OWN_MODEL) == model.name:
            return None
        if name not in KINDS and model_type in TYPES:
            name = TYPES[model_type]
        if name == "LlamaTokenizer" and model_type in PLAIN_TYPES:
            return PLAIN
        if name in KINDS and KINDS[name].file.endswith(".model"):
            return name
        described = theirs or model_type or files.added(model.parent, config)
        return PLAIN if described else None
    if name in ("", PLAIN):
        usual = "BertTokenizer" if model.name == "vocab.txt" else "GPT2Tokenizer"
        name = TYPES.get(model_type, usual) if isinstance(model_type, str) else usual
    if name not in KINDS or KINDS[name].file != model.name:
        raise DataError(
            str(model),
            f"tokenizer_class {theirs or name!r} is not made of this file here; save the tokenizer "
            "with transformers, which writes a tokenizer.json",
        )
    return name


def filled(model: Path, config: Config, data: bytes) -> Config:
    """The configuration beside a tokenizer.json, with the tokens that its class leaves unsaid.

    Of BERT, RoBERTa and T5, whose older folders name none, and only what the file has: data.
    """
    theirs = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    model_type = files.read_json(model.parent / "config.json").get("model_type")
    usual = TYPES.get(model_type) if isinstance(model_type, str) else None
    name = ALIASES.get(theirs, theirs) or usual
    if name not in FILLED:
        return config
    unsaid = {key: token for key, token in KINDS[name].tokens.items() if key not in config}
    have = _vocabulary(data) if unsaid else set()
    return {key: token for key, token in unsaid.items() if token in have} | config


def _vocabulary(data: bytes) -> set[str]:
    """All tokens of a tokenizer.json; none where it is damaged, which whoever reads it says."""
    try:
        state = json.loads(data)
        vocab = state["model"]["vocab"]  # ids by piece, or a list of [piece, score]
        known = vocab if isinstance(vocab, dict) else [piece for piece, _ in vocab]
        return {*known, *(token["content"] for token in state["added_tokens"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def convert(model: Path, config: Config, name: str) -> tuple[bytes, Config]:
    """(tokenizer.json, its configuration with what the class leaves unsaid) of one of KINDS.

    Raises DataError for a file that is damaged, and OSError for one that cannot be read.
    """
    how = KINDS[name]
    try:
        backend = how.build(model, config)
    except (DataError, OSError):
        raise
    except Exception as error:  # the library raises its own kinds
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(str(model), f"not the files of a {name}: {first}") from error
    tokens = dict(how.tokens)
    if how.file.endswith(".model"):
        tokens |= pieces.tokens(pieces.read(model))
    unsaid = {key: name for key, name in tokens.items() if key not in config}
    unsaid = {key: name for key, name in unsaid.items() if backend.token_to_id(name) is not None}
    config = {**unsaid, **config}
    if name == PLAIN or "tokenizer_class" not in config:
        config["tokenizer_class"] = name
    add_listed(backend, files.added(model.parent, config), str(model))
    if "added_tokens_decoder" in config:  # who reads it takes it for all there are
        config["added_tokens_decoder"] = {
            str(index): {key: getattr(token, key) for key in ("content", *files.FLAGS)}
            for index, token in backend.get_added_tokens_decoder().items()
        }
    _around(backend, config, how, str(model))
    return backend.to_str().encode(), config


def _around(backend: Tokenizer, config: Config, how: Kind, where: str) -> None:
    """The tokens that the class puts before and after a text, and around two."""
    first, last, pair = how.first, how.last, how.pair
    if form := frames.own(config, where):
        first, last, pair = "bos_token", "eos_token", form
    elif first != "cls_token":
        first = "bos_token" if config.get("add_bos_token", first is not None) else None
        last = "eos_token" if config.get("add_eos_token", last is not None) else None
    names = [named(config, key) if key else None for key in (first, last)]
    ids: dict[str, int] = {}
    for name in names:
        if name is None:
            continue
        if (index := backend.token_to_id(name)) is None:
            raise DataError(where, f"its vocabulary has no {name!r}, which goes around every text")
        ids[name] = index
    start, end = names
    if how.build is _roberta and start and end:
        spaced = bool(config.get("add_prefix_space", False))
        backend.post_processor = processors.RobertaProcessing(
            (end, ids[end]), (start, ids[start]), add_prefix_space=spaced
        )
    elif ids:
        backend.post_processor = frames.processor(start, end, ids, pair)


def _byte_level(model: Path, config: Config) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019)."""
    merges = model.with_name("merges.txt")
    vocab, pairs = models.BPE.read_file(str(model), str(merges))
    backend = Tokenizer(models.BPE(vocab, pairs))
    spaced = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    return backend


def _roberta(model: Path, config: Config) -> Tokenizer:
    return _byte_level(model, config)


def _gpt_neox(model: Path, config: Config) -> Tokenizer:
    backend = _byte_level(model, config)
    backend.normalizer = normalizers.NFC()
    return backend


def _qwen2(model: Path, config: Config) -> Tokenizer:
    backend = _gpt_neox(model, config)
    spaced = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False),
        ]
    )
    return backend


def _bert(model: Path, config: Config) -> Tokenizer:
    """WordPiece (Devlin et al. 2019), in lower case unless do_lower_case is off."""
    unknown = named(config, "unk_token") or "[UNK]"
    vocab = models.WordPiece.read_file(str(model))
    backend = Tokenizer(models.WordPiece(vocab, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _keys(**tokens: str) -> dict[str, str]:
    return {f"{key}_token": name for key, name in tokens.items()}


SENTENCES = _keys(bos="<s>", eos="</s>", unk="<unk>")
PLAIN = "PreTrainedTokenizerFast"
KINDS: dict[str, Kind] = {
    "GPT2Tokenizer": Kind("vocab.json", _byte_level, _keys(bos=END, eos=END, unk=END)),
    "GPTNeoXTokenizer": Kind(
        "vocab.json", _gpt_neox, _keys(bos=END, eos=END, unk=END, pad="<|padding|>")
    ),
    "Qwen2Tokenizer": Kind("vocab.json", _qwen2, _keys(eos=END, unk=END, pad=END)),
    "RobertaTokenizer": Kind(
        "vocab.json",
        _roberta,
        {**SENTENCES, **_keys(sep="</s>", cls="<s>", pad="<pad>", mask="<mask>")},
        first="cls_token",
        last="sep_token",
    ),
    "BertTokenizer": Kind(
        "vocab.txt",
        _bert,
        _keys(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]"),
        first="cls_token",
        last="sep_token",
        pair=frames.bert,
    ),
    "T5Tokenizer": Kind(
        "spiece.model",
        pieces.t5,
        _keys(eos="</s>", unk="<unk>", pad="<pad>"),
        last="eos_token",
        pair=frames.t5,
    ),
    "LlamaTokenizer": Kind("tokenizer.model", pieces.llama, {}, first="bos_token"),
    "GemmaTokenizer": Kind(
        "tokenizer.model", pieces.gemma, _keys(mask="<mask>"), first="bos_token"
    ),
    PLAIN: Kind("tokenizer.model", pieces.plain, {}, first="bos_token"),
}
"""By tokenizer_class, without its Fast."""
FILLED = ("RobertaTokenizer", "BertTokenizer", "T5Tokenizer")
"""Those of KINDS whose tokens are taken for granted beside a tokenizer.json too."""
ALIASES = {
    "BartTokenizer": "RobertaTokenizer",
    "LongformerTokenizer": "RobertaTokenizer",
    "CodeGenTokenizer": "GPT2Tokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "CodeLlamaTokenizer": "LlamaTokenizer",
    "PreTrainedTokenizer": PLAIN,
    "TokenizersBackend": PLAIN,
}
TYPES = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "llama": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}
"""By config.json's model_type, where no file names a class."""
PLAIN_TYPES = ("mistral", "mixtral", "phi3")
"""Models whose LlamaTokenizer transformers reads by the model's own settings."""
