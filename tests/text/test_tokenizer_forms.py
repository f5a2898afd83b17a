"""What each form of folder puts around a text, keeps in it, and refuses."""

import json

import pytest
from text import folders

from jaxlm.core.errors import DataError
from jaxlm.text import tokenizer as tokenizers

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
FORMS = {
    "gpt2": lambda f: folders.vocab_and_merges(f, ["<|endoftext|>"]),
    "roberta": lambda f: folders.vocab_and_merges(f, ROBERTA, tokenizer_class="RobertaTokenizer"),
    "bert": folders.vocab_txt,
    "llama": folders.llama,
    "gemma": folders.gemma,
    "t5": folders.t5,
    "json": lambda f: folders.tokenizer_json(f, "bytes"),
    "modernbert": folders.modernbert,
}
AROUND = {
    "gpt2": ("", ""),
    "roberta": ("<s>", "</s>"),
    "bert": ("[CLS]", "[SEP]"),
    "llama": ("<s>", ""),
    "gemma": ("<bos>", ""),
    "t5": ("", "</s>"),
    "json": ("<s>", ""),
    "modernbert": ("[CLS]", "[SEP]"),
}
BYTES = [form for form in FORMS if form not in ("bert", "t5")]
"""What has an id for every byte."""


@pytest.fixture(params=FORMS)
def folder(request, tmp_path):
    FORMS[request.param](tmp_path)
    return request.param, tmp_path


def test_what_goes_around_a_text_is_there_once(folder):
    form, path = folder
    tokenizer, (first, last) = tokenizers.load(path), AROUND[form]
    bare = tokenizer.encode("fox", add_special=False)
    around = [[tokenizer.names[name]] if name else [] for name in (first, last)]
    assert tokenizer.encode("fox") == around[0] + bare + around[1]
    assert tokenizer.bos == (tokenizer.names[first] if first else None)
    assert tokenizer.decode(tokenizer.encode("fox")) == "fox"


def test_saved_it_gives_the_same_ids_and_templates(folder):
    _, path = folder
    (path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = tokenizers.load(path)
    tokenizer.save(path / "again")
    again = tokenizers.load(path / "again")
    for text in folders.TEXTS + folders.with_specials(tokenizer.names):
        for how in ({}, {"parse_special": True}, {"add_special": False}):
            assert again.encode(text, **how) == tokenizer.encode(text, **how)
    assert again.names == tokenizer.names and again.special == tokenizer.special
    assert again.digest == tokenizer.digest


def test_no_text_becomes_a_special_token(folder):
    _, path = folder
    tokenizer = tokenizers.load(path)
    unknown = tokenizer.names.get(tokenizer.special.get("unk_token", ""))
    for text in folders.TEXTS + folders.with_specials(tokenizer.names):
        ids = {*tokenizer.encode(text, add_special=False)} - {unknown}
        assert not ids & {*tokenizer.names.values()}
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text, add_special=False)]


@pytest.mark.parametrize("form", BYTES)
@pytest.mark.parametrize("text", ["<0x41>", "\x01 \U0010fffd<0x0A>\n", "a<0xE4>b"])
def test_the_name_of_a_byte_is_text(form, text, tmp_path):
    FORMS[form](tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text, parse_special=True)) == text


def replace(name, old, new):
    def change(path):
        (path / name).write_bytes((path / name).read_bytes().replace(old, new, 1))

    return change


def truncate(name):
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-100])


DAMAGE = {
    "a cut vocabulary": ("gpt2", truncate("vocab.json")),
    "a cut model": ("llama", truncate("tokenizer.model")),
    "a cut unigram model": ("t5", truncate("spiece.model")),
    "a model of zeros": ("t5", lambda path: (path / "spiece.model").write_bytes(bytes(999))),
    "an empty model": ("llama", lambda path: (path / "tokenizer.model").write_bytes(b"")),
    "a cut tokenizer.json": ("json", truncate("tokenizer.json")),
    "merges of nothing": ("gpt2", lambda path: (path / "merges.txt").write_text("q zq\n")),
    "an empty vocabulary": ("bert", lambda path: (path / "vocab.txt").write_text("")),
    "no id for what is unknown": ("bert", replace("vocab.txt", b"[UNK]\n", b"[UNC]\n")),
    "two tokens of one id": ("json", replace("tokenizer.json", b'"!": 3', b'"!": 4')),
    "a piece that is no UTF-8": ("llama", replace("tokenizer.model", b"quick", b"qu\xffck")),
    "no UTF-8": ("bert", lambda path: (path / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe\n")),
    "too many sentinels": (
        "t5",
        lambda path: folders.write_json(
            path, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 10**9}
        ),
    ),
    "an added token at a taken id": (
        "json",
        lambda path: folders.write_json(
            path,
            "tokenizer_config.json",
            {"eos_token": "</s>", "added_tokens_decoder": {"7": {"content": "<new>"}}},
        ),
    ),
    "added tokens of another shape": (
        "json",
        lambda path: folders.write_json(path, "tokenizer_config.json", {"added_tokens_decoder": 7}),
    ),
    "an unknown class": (
        "gpt2",
        lambda path: folders.write_json(
            path, "tokenizer_config.json", {"tokenizer_class": "XLMTokenizer"}
        ),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_that_names_a_file(damage, tmp_path):
    form, change = DAMAGE[damage]
    change(FORMS[form](tmp_path))
    with pytest.raises(DataError) as raised:
        tokenizers.load(tmp_path)
    assert str(raised.value).startswith((str(tmp_path), "tokenizer_config.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("at", range(8))
def test_flipped_bits_are_noticed_or_change_no_rule(folder, at):
    _, path = folder
    file = next(
        path / name for forms in tokenizers.FORMS for name in forms if (path / name).exists()
    )
    data = bytearray(file.read_bytes())
    data[(2 * at + 1) * len(data) // 16] ^= 1 << at
    file.write_bytes(data)
    try:
        tokenizer = tokenizers.load(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        ids = tokenizer.encode(folders.UNSEEN)
        assert all(0 <= i < tokenizer.vocab for i in ids) and tokenizer.decode(ids)


def test_a_class_of_remote_code_is_never_run(tmp_path):
    folders.tokenizer_json(tmp_path, "bytes", tokenizer_class="Mine", auto_map={"x": ["code.Mine"]})
    (tmp_path / "code.py").write_text("raise SystemExit('executed')")
    assert tokenizers.load(tmp_path).eos == 1
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["auto_map"]
