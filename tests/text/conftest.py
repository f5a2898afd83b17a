import pytest

from jaxlm.text import train

DOCUMENTS = [
    'def greet(name):\n    """Say hello."""\n    return f"Hello, {name}!"\n' * 3,
    "The quick brown fox jumps over the lazy dog, 2024 times.\n" * 4,
    "Der schnelle braune Fuchs. Быстрая лиса. 素早い狐。\n" * 3,
]


@pytest.fixture(scope="session")
def documents():
    return DOCUMENTS


@pytest.fixture(scope="session", params=["bpe", "sentencepiece"])
def tokenizer(request):
    return train.train(request.param, 400, DOCUMENTS)
