"""A record's format is known by its columns, and it says what its writer meant."""

import json
import re

import pytest

from jaxlm.core.errors import DataError
from jaxlm.data.formats import Example, detect


def read(record, field="text"):
    return detect(record, "here", field).read(record, "here")


def refused(record):
    with pytest.raises(DataError) as error:
        read(record)
    assert error.value.where == "here" and "\n" not in str(error.value)
    return error.value.what


SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def test_messages_are_messages_and_nulls_that_arrow_adds_are_left_out():
    tools = [{"type": "function"}]
    record = {"messages": [{**SAID[0], "tool_calls": None}, SAID[1]], "tools": tools}
    assert read(record) == Example("here", SAID, tools=tools)


def test_a_content_in_parts_of_text_is_their_text():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    record = {"messages": [{"role": "user", "content": parts}, SAID[1]]}
    assert read(record).messages == ({"role": "user", "content": "one two"}, SAID[1])


def test_tools_may_be_json_as_tables_hold_them():
    tools = [{"type": "function"}]
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    pair = {"prompt": [SAID[0]], "completion": [SAID[1]]}
    for record in ({"messages": list(SAID)}, {"conversations": turns}, pair):
        assert read({**record, "tools": json.dumps(tools)}).tools == tools
        assert read({**record, "tools": "[]"}).tools is read({**record, "tools": ""}).tools is None
        assert refused({**record, "tools": "[{"}).startswith("tools: not JSON: ")
        assert refused({**record, "tools": {"type": 1}}) == "tools: a list of JSON schemas is meant"


def test_sharegpt_names_become_roles():
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    assert read({"conversations": turns}).messages == SAID
    with_system = read({"conversations": turns, "system": "be kind"}).messages
    assert with_system == ({"role": "system", "content": "be kind"}, *SAID)
    assert read({"conversations": list(SAID)}).messages == SAID


def test_an_instruction_keeps_its_input_apart():
    record = {"instruction": "add", "input": "1 2", "output": "3"}
    asked, answer = read(record).messages
    assert asked == {"role": "user", "content": "add", "input": "1 2"}
    assert answer == {"role": "assistant", "content": "3"}
    assert "input" not in read({"instruction": "add", "output": "3"}).messages[0]
    assert "input" not in read({**record, "input": ""}).messages[0]


def test_a_pair_is_two_texts_or_two_parts_of_a_chat():
    assert read({"prompt": "a", "completion": "b"}) == Example("here", prompt="a", completion="b")
    found = read({"prompt": [SAID[1], SAID[0]], "completion": [SAID[1]]}).messages
    assert [message.get("train", True) for message in found] == [False, False, True]


def test_a_text_is_learned_whole_from_the_column_that_is_named():
    assert read({"body": "a", "id": 1}, "body") == Example("here", completion="a")


def test_unknown_columns_are_answered_with_those_found_and_the_formats():
    what = refused({"question": "a", "answer": "b"})
    assert re.match("the columns are question, answer; examples have one of: messages; conv", what)


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"messages": "hi"}, 'messages: a list of {"role": ..., "content": ...} is meant'),
        ({"messages": []}, "messages: a list of"),
        ({"messages": [SAID[0]]}, "messages: no message of the assistant; there is nothing"),
        ({"messages": [{"content": "x"}]}, "messages: message 1 has no role"),
        ({"messages": [{"role": "user", "content": 3}]}, "the content of message 1 is int"),
        ({"conversations": [{"from": "me", "value": "x"}]}, "turn 1 is from 'me'; known are"),
        ({"conversations": [{"who": "me"}]}, 'conversations: a list of {"from": "human"'),
        ({"instruction": "a", "output": None}, "output is NoneType, not a string"),
        ({"prompt": "a", "completion": ["b"]}, "prompt: a list of"),
        ({"prompt": None, "completion": "b"}, "prompt is NoneType; write a text, or a list"),
        ({"prompt": [SAID[0]], "completion": 1.5}, "completion is float; write a text, or a"),
        ({"messages": [{"role": "user", "content": []}]}, "1 is list, not a text; write one"),
        ({"messages": [SAID[0], SAID[1] | {"train": "no"}]}, "train of message 2 is 'no'; write"),
        ({"messages": [SAID[0], SAID[1] | {"weight": 0.5}]}, "weight of message 2 is 0.5; write"),
    ],
)
def test_what_a_record_does_wrong_is_one_line(record, what):
    assert what in refused(record)
