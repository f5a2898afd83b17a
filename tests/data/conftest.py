import hashlib
import importlib
import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

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


class Bucket(MemoryFileSystem):
    """A real file system of fsspec, in memory, under the name of Google's."""

    protocol = ("gcs", "gs")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

    def info(self, path, **kwargs):
        """With the ETag that a bucket tells and a memory does not."""
        told = super().info(path, **kwargs)
        if told["type"] == "file":
            told["ETag"] = hashlib.md5(self.cat_file(told["name"])).hexdigest()
        return told


@pytest.fixture
def bucket(monkeypatch):
    from etils.epath import backend

    registry = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(registry, "gcs", Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Bucket()
    Bucket.store.clear()
    backend.fsspec_backend._get_filesystem.cache_clear()
