import json

import pytest

from jaxlm.config.schema import Source
from jaxlm.text import train


@pytest.fixture(scope="session")
def tokenizer():
    return train.train("bpe", 300, ["the quick brown fox jumps over the lazy dog\n" * 9])


@pytest.fixture
def jsonl(tmp_path):
    """Write documents as records of a .jsonl file; its source."""

    def write(name, texts, **source):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return Source(path=str(path), **source)

    return write
