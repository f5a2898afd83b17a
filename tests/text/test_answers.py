"""Which tokens of a chat the assistant wrote, with blocks in the template and without."""

import pytest

from jaxlm.core.errors import DataError
from jaxlm.text import chat
from jaxlm.text.builtin import BUILTIN
from jaxlm.text.chat import ChatTemplate
from jaxlm.text.train import train

TOKENIZER = train("bpe", 300, ["the quick brown fox\nuser: assistant: <end>\n"] * 30)
CHAT = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "quick"},
    {"role": "user", "content": "<|endoftext|>"},
    {"role": "assistant", "content": "brown fox"},
]
TURNS = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}OPEN"
    "{{ m.content }}<|endoftext|>CLOSE{{ '\\n' }}{% else %}{{ m.content + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
BLOCKS = TURNS.replace("OPEN", "{% generation %}").replace("CLOSE", "{% endgeneration %}")
BARE = TURNS.replace("OPEN", "").replace("CLOSE", "")


def said(template, messages=CHAT):
    return [
        (TOKENIZER.decode(ids, skip_special=False), index)
        for ids, index in template.answers(TOKENIZER, messages)
    ]


def test_blocks_and_prefixes_tell_the_same_answers():
    right = [
        ("user: the fox\nassistant: ", None),
        ("quick<|endoftext|>", 1),
        ("\nuser: <|endoftext|>\nassistant: ", None),
        ("brown fox<|endoftext|>", 3),
        ("\n", None),
    ]
    assert said(ChatTemplate(BLOCKS)) == said(ChatTemplate(BARE)) == right


def test_what_a_message_says_of_special_tokens_stays_text():
    stretches = ChatTemplate(BLOCKS).answers(TOKENIZER, CHAT)
    assert [ids.count(TOKENIZER.eos) for ids, _ in stretches] == [0, 1, 0, 1, 0]


def test_the_opening_is_what_a_model_is_asked_with():
    template = ChatTemplate(BLOCKS)
    asked = template.apply(TOKENIZER, CHAT[:1], add_generation_prompt=True)
    assert template.answers(TOKENIZER, CHAT)[0] == (asked, None)


def test_a_template_that_writes_earlier_turns_otherwise_is_refused():
    last = BARE.replace("{{ m.content }}<", "{{ m.content if loop.last else '...' }}<")
    with pytest.raises(DataError, match="writes message 2 otherwise when more follow"):
        said(ChatTemplate(last))


def test_blocks_for_some_answers_alone_are_refused():
    some = BLOCKS.replace("{% if m.role == 'assistant' %}", "{% if loop.last %}")
    with pytest.raises(DataError, match="1 generation blocks for 2 answers"):
        said(ChatTemplate(some))


@pytest.mark.parametrize("name", ["mistral", "alpaca", "plain"])
def test_a_built_in_template_ends_every_answer(name):
    answers = [text for text, index in said(chat.builtin(TOKENIZER, name)) if index is not None]
    assert [text.strip() for text in answers] == ["quick<|endoftext|>", "brown fox<|endoftext|>"]


def test_built_in_templates_open_the_answer_as_they_train_it():
    for name in ("mistral", "alpaca", "plain"):
        template = chat.builtin(TOKENIZER, name)
        asked = template.apply(TOKENIZER, CHAT[:1], add_generation_prompt=True)
        assert template.answers(TOKENIZER, CHAT)[0][0] == asked, name
    assert set(BUILTIN) == {"chatml", "llama3", "mistral", "alpaca", "plain"}
