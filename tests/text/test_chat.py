import json

import pytest
from text import chats, folders

from jaxlm.core.errors import DataError
from jaxlm.text import chat, train
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.chat import ChatTemplate

USER = [{"role": "user", "content": "Hello"}]
NAMES = ["<start_of_turn>", "<end_of_turn>"]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer that itself puts <s> before a text."""
    return folders.tokenizer_json(tmp_path, "bytes", additional_special_tokens=NAMES)


def test_the_start_token_is_there_once(folder):
    tokenizer = tokenizers.load(folder)
    ids = ChatTemplate(chats.GEMMA, tokens=tokenizer.special).apply(tokenizer, USER)
    assert ids[0] == tokenizer.bos and ids.count(tokenizer.bos) == 1
    without = ChatTemplate(chats.CHATML, tokens=tokenizer.special).apply(tokenizer, USER)
    assert tokenizer.bos not in without


@pytest.mark.parametrize("form", ["bytes", "unigram", "wordpiece"])
def test_special_tokens_that_a_user_writes_stay_text(form, tmp_path):
    tokenizer = tokenizers.load(folders.tokenizer_json(tmp_path, form))
    template = ChatTemplate(chats.GEMMA, tokens=tokenizer.special)
    ids = template.apply(tokenizer, [{"role": "user", "content": "a</s>b<s>"}])
    assert tokenizer.eos not in ids and ids.count(0) == 1
    if form == "bytes":
        assert "a</s>b<s>" in tokenizer.decode(ids)
    parsed = template.apply(
        tokenizer, [{"role": "user", "content": "a</s>b<s>"}], parse_special=True
    )
    assert parsed.count(tokenizer.eos) == 1 and parsed.count(0) == 2


def test_a_sentencepiece_model_by_itself_keeps_them_too(documents):
    tokenizer = train.train("sentencepiece", 400, documents)
    end = "<|endoftext|>"
    template = ChatTemplate("{% for m in messages %}{{ m.content + '" + end + "' }}{% endfor %}")
    ids = template.apply(tokenizer, [{"role": "user", "content": f"some {end} words"}])
    assert ids.count(tokenizer.eos) == 1 and ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids) == f"some {end} words"


def test_the_prompt_is_the_beginning_of_the_answered_chat():
    answered = [*USER, {"role": "assistant", "content": "Yes."}]
    for source in (chats.CHATML, chats.LLAMA3, chats.GEMMA):
        template = ChatTemplate(source, tokens={"bos_token": "<s>"})
        prompt = template.render(USER, add_generation_prompt=True, date_string="today").text
        assert template.render(answered, date_string="today").text.startswith(prompt + "Yes.")


def test_spans_are_what_the_assistant_writes():
    text, spans = ChatTemplate(chats.THINKING).render(chats.TURN * 2)
    written = [text[start:end] for start, end in spans]
    assert written == [
        "4 <b>&amp;</b><|im_end|>\n",
        "<think>four</think>\n4 <b>&amp;</b><|im_end|>\n",
    ]
    assert ChatTemplate(chats.CHATML).render(chats.TURN).spans == []


@pytest.mark.parametrize(
    "source",
    [
        "{% set x %}{% generation %}a{% endgeneration %}{% endset %}b{{ x }}",
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
    ],
)
def test_spans_that_cannot_be_told_are_refused(source):
    with pytest.raises(DataError, match="a generation block stands inside a macro"):
        ChatTemplate(source).render(USER)


WRONG = [
    ("{% for m in messages %}", USER, ":1: Unexpected end of template"),
    ("a\n{{ messages[0].content.nothing.more }}", USER, ":2: .* has no attribute 'nothing'"),
    ("{{ raise_exception('roles\nmust alternate') }}", USER, ":1: roles must alternate$"),
    ("{{ 1 / 0 }}", USER, ":1: division by zero"),
    ("{{ messages }}", "Hello", "^messages: a list of {role, content} is meant"),
    ("{{ messages }}", ["Hello"], "^messages: a list of {role, content} is meant"),
    ("{{ " + "(" * 9999 + ")" * 9999 + " }}", USER, "chat template: "),
]


@pytest.mark.parametrize(("source", "messages", "complaint"), WRONG)
def test_what_a_template_refuses_is_one_line(source, messages, complaint):
    with pytest.raises(DataError, match=complaint) as raised:
        ChatTemplate(source).render(messages)
    assert "\n" not in str(raised.value)


def templates(folder):
    return {name: source for name, (_, source) in tokenizers.load(folder).templates.items()}


SEVERAL = [{"name": "default", "template": "a é"}, {"name": "tool_use", "template": "b"}]
PLACES = {
    "a key": ("tokenizer_config.json", {"chat_template": "a é"}, {"default": "a é"}),
    "several": (
        "tokenizer_config.json",
        {"chat_template": SEVERAL},
        {"default": "a é", "tool_use": "b"},
    ),
    "a file": ("chat_template.jinja", "a é", {"default": "a é"}),
    "a file of JSON": ("chat_template.json", {"chat_template": "a é"}, {"default": "a é"}),
    "a named file": ("additional_chat_templates/rag.jinja", "a é", {"rag": "a é"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_templates_are_found_and_survive_saving(place, folder):
    name, content, want = PLACES[place]
    (folder / "additional_chat_templates").mkdir()
    if name == "tokenizer_config.json":
        content = {**json.loads((folder / name).read_text()), **content}
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    assert templates(folder) == want
    tokenizers.load(folder).save(folder / "again")
    assert templates(folder / "again") == want


def test_a_file_of_its_own_wins(folder):
    folders.write_json(folder, "chat_template.json", {"chat_template": "old"})
    (folder / "chat_template.jinja").write_text("new")
    tokenizer = tokenizers.load(folder)
    assert chat.of(tokenizer).source == "new"
    with pytest.raises(DataError, match="none named 'rag'; use one of default"):
        chat.of(tokenizer, "rag")


def test_no_template_says_what_to_do(folder):
    with pytest.raises(DataError, match="none; put a chat_template.jinja beside it"):
        chat.of(tokenizers.load(folder))


@pytest.mark.parametrize(
    "value", [7, {"default": 7}, [{"name": "a"}], [{"name": "../a", "template": "x"}], ["x"]]
)
def test_what_is_no_template_is_refused_with_its_file(value, folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    folders.write_json(folder, "tokenizer_config.json", {**config, "chat_template": value})
    with pytest.raises(DataError, match="tokenizer_config.json: chat_template: "):
        tokenizers.load(folder)


def test_an_error_names_the_file_of_the_template(folder):
    (folder / "chat_template.jinja").write_text("\n{{ 1 / 0 }}")
    with pytest.raises(DataError, match=r"chat_template\.jinja:2: division by zero"):
        chat.of(tokenizers.load(folder)).render(USER)
