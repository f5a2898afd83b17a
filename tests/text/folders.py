"""Small tokenizers in every form that a Hugging Face folder may have."""

import io
import json

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = """The quick brown fox jumps over the lazy dog, 2024 times (or 1,000,000). It's naïve, no?
def greet(name):\n\t\"\"\"Say hello.\"\"\"\n    return f"Hello,  {name}!"  # done   \n\n\n
Der schnelle braune Fuchs springt über den faulen Hund. Быстрая лиса, ёлка.
素早い狐は跳ぶ。 敏捷的棕色狐狸。
שלום עולם, ہیلو دنیا, नमस्ते दुनिया, สวัสดี, 안녕하세요 세계. Ελληνικά, ΑΘΗΝΑ ς.
"""
"""What the tokenizers here are trained on."""
UNSEEN = (
    " 🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 ﬁ ½ Å İ ǅ \u200b\ufeff\u00a0\u3000|"
    + " " * 37
    + "|\t\t \r\n\n  end ₿\U0001d518\U0001d52b \u0301a ▁ <0x41> ##x Ġ"
)
TEXTS = [TEXT, UNSEEN, TEXT + UNSEEN, "", "a", "word word", "  two", "x " * 9, "HELLO Straße ÀÉ"]


def with_specials(names):
    """Texts with special tokens inside, beside words, spaces and each other."""
    return [f"one {name} two{name}three  {name}{name} \n{name}" for name in names]


def learn(model, trainer, *, before=None, normalizer=None):
    """A `tokenizers.Tokenizer` trained on TEXT."""
    backend = tokenizers.Tokenizer(model)
    if before:
        backend.pre_tokenizer = before
    if normalizer:
        backend.normalizer = normalizer
    backend.train_from_iterator([TEXT] * 3, trainer)
    return backend


def byte_level(specials):
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return learn(models.BPE(), trainer, before=pre_tokenizers.ByteLevel(add_prefix_space=False))


def write_json(folder, name, values):
    (folder / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def vocab_and_merges(folder, specials, **config):
    """vocab.json and merges.txt, and what tokenizer_config.json says beside them."""
    byte_level(specials).model.save(str(folder))
    if config:
        write_json(folder, "tokenizer_config.json", config)
    return folder


def vocab_txt(folder, **config):
    """vocab.txt of a WordPiece model."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lower = config.get("do_lower_case", True)
    backend = learn(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False),
        before=pre_tokenizers.BertPreTokenizer(),
        normalizer=normalizers.BertNormalizer(lowercase=lower),
    )
    backend.model.save(str(folder))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})
    return folder


def tokenizer_json(folder, kind, **config):
    """tokenizer.json of `kind`: bytes (as Llama 3's, <s> before a text), unigram or wordpiece."""
    specials = ["<s>", "</s>", "<unk>"]
    if kind == "bytes":
        backend = byte_level(specials)
    elif kind == "unigram":
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
        before = pre_tokenizers.Metaspace()
        backend = learn(models.Unigram(), trainer, before=before, normalizer=normalizers.NFKC())
        backend.decoder = decoders.Metaspace()
    else:
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=specials, show_progress=False
        )
        before = pre_tokenizers.BertPreTokenizer()
        backend = learn(models.WordPiece(unk_token="<unk>"), trainer, before=before)
        backend.decoder = decoders.WordPiece()
    if kind == "bytes":
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **config}
    write_json(folder, "tokenizer_config.json", config)
    return folder


def modernbert(folder):
    """tokenizer.json as ModernBERT's: byte-level BPE, [CLS] and [SEP] around a text, no end."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    backend = byte_level(names)
    backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True)])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {f"{name[1:-1].lower()}_token": name for name in names}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    write_json(folder, "tokenizer_config.json", config)
    return folder


def spm(folder, name, config, **how):
    """A SentencePiece model, and tokenizer_config.json beside it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **how,
    )
    (folder / name).write_bytes(model.getvalue())
    if config is not None:
        write_json(folder, "tokenizer_config.json", config)
    return folder


def llama(folder, symbols=(), **config):
    """tokenizer.model as Llama 2's: BPE with byte fallback and no normalization.

    symbols: pieces that the user defined.
    """
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **config}
    how = {"model_type": "bpe", "vocab_size": 600, "byte_fallback": True}
    how |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    more = {"allow_whitespace_only_pieces": True, "split_digits": True}
    more |= {"user_defined_symbols": list(symbols)}
    return spm(folder, "tokenizer.model", config, **how, **more)


def gemma(folder, **config):
    """tokenizer.model as Gemma's: BPE with byte fallback, no space before a text."""
    config = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, **config}
    how = {"model_type": "bpe", "vocab_size": 600, "byte_fallback": True, "add_dummy_prefix": False}
    how |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    how |= {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "split_digits": True}
    how |= {"bos_piece": "<bos>", "eos_piece": "<eos>"}
    symbols = ["<start_of_turn>", "<end_of_turn>", "\n\n", "\u2581\u2581", "<mask>"]
    more = {"allow_whitespace_only_pieces": True, "user_defined_symbols": symbols}
    spm(folder, "tokenizer.model", config, **how, **more)
    find = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).piece_to_id
    turns = {find(name): {"content": name, "special": True} for name in symbols[:2]}
    write_json(folder, "tokenizer_config.json", {**config, "added_tokens_decoder": turns})
    return folder


def t5(folder, **config):
    """spiece.model as T5's: unigram, NFKC, pad 0, end 1, unknown 2."""
    config = {"tokenizer_class": "T5Tokenizer", **config}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    return spm(folder, "spiece.model", config, model_type="unigram", vocab_size=260, **ids)
