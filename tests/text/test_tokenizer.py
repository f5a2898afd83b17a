import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from jaxlm.core.errors import DataError
from jaxlm.text import tokenizer as tokenizers

TEXTS = [
    "",
    " ",
    "plain words",
    "def f(x):\n\treturn  x + 1\n\n\n    # done   ",
    "naïve café, Быстрая лиса, 素早い狐, שלום, ہیلو, नमस्ते",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\ufeff",
    "a" + " " * 100 + "b\r\n\x00\x1b[0m",
]
SPECIAL = ["<|endoftext|>", "</s>", "<unk>", "<0x41>", "x<|endoftext|>y"]


@pytest.mark.parametrize("text", TEXTS + SPECIAL)
def test_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", SPECIAL)
def test_text_that_looks_special_stays_text(tokenizer, text):
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
        assert tokenizer.eos not in ids
        assert tokenizer.decode(ids) == text


def test_special_text_is_parsed_when_asked_for(tokenizer):
    ids = tokenizer.encode("one<|endoftext|>two", parse_special=True)
    assert ids.count(tokenizer.eos) == 1
    assert tokenizer.encode_batch(["one<|endoftext|>two"], parse_special=True) == [ids]
    assert tokenizer.decode(ids) == "onetwo"
    assert tokenizer.decode(ids, skip_special=False) == "one<|endoftext|>two"
    assert tokenizer.eos not in tokenizer.encode("one<|endoftext|>two")  # and not for ever


def test_a_batch_is_its_texts(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "one")
    loaded = tokenizers.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    assert loaded.digest == tokenizer.digest == tokenizers.load(tmp_path / "two").digest
    assert (loaded.vocab, loaded.bos, loaded.eos, loaded.pad) == (
        tokenizer.vocab,
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.pad,
    )
    assert loaded.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])
    by_file = tokenizers.load(tmp_path / "one" / tokenizer.file)
    assert by_file.digest == tokenizer.digest


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for wrong in (tokenizer.vocab, -1):
        with pytest.raises(DataError, match=f"{wrong} is outside the vocabulary"):
            tokenizer.decode([0, wrong])


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(DataError, match="character 1 is a lone surrogate"):
        tokenizer.encode("a\ud800")


def write(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def foreign(tmp_path):
    """A tokenizer.json with a start token, an end that is not flagged special, and truncation."""
    vocab = {"<s>": 0, "</s>": 1, "[UNK]": 2, "a": 3, "b": 4}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    backend.add_special_tokens(["<s>"])
    backend.add_tokens(["</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_what_a_foreign_tokenizer_adds(foreign):
    write(foreign, "tokenizer_config.json", {"eos_token": {"content": "</s>"}})
    loaded = tokenizers.load(foreign)
    assert (loaded.bos, loaded.eos, loaded.pad, loaded.vocab) == (0, 1, 1, 5)
    assert loaded.encode("ab") == [0, 3, 4]
    assert loaded.encode("ab", add_special=False) == loaded.encode_batch(["ab"])[0] == [3, 4]


def test_a_foreign_tokenizer_does_not_truncate(foreign):
    assert len(tokenizers.load(foreign).encode("ababab")) == 7


def test_an_end_token_not_flagged_special_is_not_made_from_text(foreign):
    write(foreign, "special_tokens_map.json", {"eos_token": "</s>"})
    loaded = tokenizers.load(foreign)
    assert 1 not in loaded.encode("a</s>b")
    assert 1 in loaded.encode("a</s>b", parse_special=True)


def test_a_foreign_sentencepiece_adds_its_start(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words and more words"] * 5),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    loaded = tokenizers.load(tmp_path)
    assert loaded.encode("more") == [loaded.bos, *loaded.encode("more", add_special=False)]
    assert (loaded.bos, loaded.eos) == (1, 2)
    write(tmp_path, "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True})
    loaded = tokenizers.load(tmp_path)
    assert loaded.bos is None
    assert loaded.encode("more")[-1] == loaded.eos


WRONG = [
    ("", None, "no tokenizer.json, .* or vocab.txt in this folder"),
    ("nothing.json", None, "no such file"),
    ("vocab.txt", "a", "not a tokenizer; name a tokenizer.json"),
    ("tokenizer.json", "{", "not a tokenizer.json"),
    ("tokenizer.model", "garbage", "not a SentencePiece model"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_is_no_tokenizer_says_so(tmp_path, name, content, message):
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as raised:
        tokenizers.load(tmp_path / name)
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_missing_end_token_says_so(foreign):
    write(foreign, "tokenizer_config.json", {"eos_token": "<end>"})
    with pytest.raises(DataError, match="eos_token '<end>' is not in the vocabulary"):
        tokenizers.load(foreign)
    write(foreign, "tokenizer_config.json", "[")
    with pytest.raises(DataError, match="not JSON"):
        tokenizers.load(foreign)


@pytest.mark.parametrize(
    ("file", "value", "ends"),
    [
        ("generation_config.json", [2, 1, 4, 2], (1, 2, 4)),
        ("generation_config.json", 3, (1, 3)),
        ("generation_config.json", None, (1,)),
        ("config.json", [1], (1,)),
        ("config.json", [4], (1, 4)),
    ],
)
def test_what_ends_generation_may_be_several(foreign, file, value, ends):
    write(foreign, "tokenizer_config.json", {"eos_token": "</s>"})
    write(foreign, file, {"eos_token_id": value, "top_k": 5})
    loaded = tokenizers.load(foreign)
    assert loaded.ends == ends and loaded.eos == 1
    loaded.save(foreign / "again")
    assert tokenizers.load(foreign / "again").ends == ends
    loaded.save(foreign)  # what else the file says of generation stays
    assert json.loads((foreign / file).read_text())["top_k"] == 5


@pytest.mark.parametrize("value", ["2", [1, -1], [True], 1.5])
def test_ends_that_are_no_ids_are_refused(foreign, value):
    write(foreign, "tokenizer_config.json", {"eos_token": "</s>"})
    write(foreign, "generation_config.json", {"eos_token_id": value})
    with pytest.raises(DataError, match="an id or a list of ids is meant"):
        tokenizers.load(foreign)


@pytest.mark.parametrize(
    "named", [{"image_token": "<image>"}, {"extra_special_tokens": {"image_token": "<image>"}}]
)
def test_an_image_token_that_the_model_has_no_row_for_stays_text(foreign, named):
    added = {"5": {"content": "<image>", "special": True}}
    config = {"eos_token": "</s>", "added_tokens_decoder": added, **named}
    write(foreign, "tokenizer_config.json", config)
    whole = tokenizers.load(foreign)
    whole.save(foreign / "whole")
    assert tokenizers.load(foreign / "whole").special == whole.special
    assert (whole.vocab, whole.special["image_token"]) == (6, "<image>")
    write(foreign, "config.json", {"vocab_size": 5})
    loaded = tokenizers.load(foreign)
    loaded.save(foreign / "again")
    for each in (loaded, tokenizers.load(foreign / "again")):
        assert each.vocab == 5
        assert max(each.encode("a<image>b", parse_special=True)) < 5


@pytest.mark.parametrize(
    ("special", "named"),
    [
        (True, {"pad_token": "<more>"}),
        (True, {"additional_special_tokens": ["<more>"]}),
        (True, {"extra_special_tokens": ["<more>"]}),
        (True, {}),
        (False, {"image_token": "<other>"}),
    ],
)
def test_other_tokens_beyond_the_model_are_kept_for_it_to_refuse(foreign, special, named):
    added = {"5": {"content": "<more>", "special": special}}
    config = {"eos_token": "</s>", "added_tokens_decoder": added, **named}
    write(foreign, "tokenizer_config.json", config)
    write(foreign, "config.json", {"vocab_size": 5})
    assert tokenizers.load(foreign).vocab == 6
