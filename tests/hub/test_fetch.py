"""Models of the Hub by name, from a cache and from a server that are made here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hubs
import processes
import pytest

from jaxlm.core import errors

FIRST, SECOND = "1" * 40, "2" * 40
FILES = ("original/model.safetensors", "pytorch_model.bin", "consolidated.safetensors")
"""What is not read here."""


def cached(cache, folder, commit):
    """Put a folder into huggingface_hub's cache, as the commit that org/name's main is at."""
    model = cache / "models--org--name"
    for name in ("refs", "blobs", f"snapshots/{commit}"):
        (model / name).mkdir(parents=True, exist_ok=True)
    (model / "refs" / "main").write_text(commit)
    for file in folder.iterdir():
        (model / "blobs" / f"{commit}{file.name}").write_bytes(file.read_bytes())
        link = model / "snapshots" / commit / file.name
        link.symlink_to(f"../../blobs/{commit}{file.name}")


@pytest.fixture
def offline(tmp_path):
    """(the cache, what a process needs to see it and no network)."""
    cache = tmp_path / "cache"
    cached(cache, hubs.write(tmp_path / "first", "llama"), FIRST)
    return cache, {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}


@pytest.mark.parametrize(
    "words",
    [
        ("fetch", "org/name"),
        ("inspect", "hf://org/name"),
        ("generate", "hf://org/name@main", "--prompt", "def ", "--max-tokens", "4"),
        ("convert", "import", f"hf://org/name@{FIRST}", "{}/in"),
    ],
)
def test_verbs_open_what_the_cache_holds(tmp_path, offline, words):
    words = [word.format(tmp_path) for word in words]
    code, out, err = processes.run(*words, **offline[1])
    assert code == errors.DONE and out, err
    if words[0] == "fetch":
        assert out.splitlines()[0] == f"hf://org/name@{FIRST}"


@pytest.mark.once
def test_a_run_keeps_the_commit_that_it_began_with(tmp_path, offline):
    cache, env = offline
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    code, _, err = processes.run(*own, "init=hf://org/name", "steps=1", **env)
    assert code == errors.DONE, err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["model"]["init"] == f"hf://org/name@{FIRST}"
    cached(cache, hubs.write(tmp_path / "second", "llama", rope_theta=300.0), SECOND)
    code, _, err = processes.run(*own, "init=hf://org/name", "steps=2", **env)
    assert code == errors.DONE, err
    code, _, err = processes.run(*own, "init=hf://org/name@main", "steps=3", **env)
    assert code == errors.CONFIG and f"name@{FIRST}, not hf://org/name@{SECOND}" in err


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("hf://org/other", errors.CHECKPOINT, "HF_HUB_OFFLINE is set; run `jaxlm fetch hf://org"),
        ("hf://org/name@v2", errors.CHECKPOINT, "is not whole in"),
        ("hf://org/name/more", errors.CONFIG, "write hf://ORG/NAME or hf://ORG/NAME@REVISION"),
        ("hf://or--g/name", errors.CONFIG, "is no name of a model"),
    ],
)
def test_what_the_cache_lacks_is_one_line(offline, name, code, line):
    found, _, err = processes.run("fetch", name, **offline[1])
    assert found == code and line in err and err.count("\n") == 1, err


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as a download needs; `files` are those of org/name."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name/revision/main"):
            self.answer(json.dumps({"id": "org/name", "sha": FIRST}).encode())
        elif path.startswith("/api/models/org/name/tree/"):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.files.items()
            ]
            self.answer(json.dumps(rows).encode())
        elif path.startswith(f"/org/name/resolve/{FIRST}/"):
            self.answer(self.files[path.removeprefix(f"/org/name/resolve/{FIRST}/")])
        elif "/gated" in path:
            self.answer(b"{}", 403, "GatedRepo")
        elif "/name/" in path:
            self.answer(b"{}", 404, "RevisionNotFound")
        else:
            self.answer(b"{}", 404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def answer(self, data, status=200, error=None):
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", FIRST)
        self.send_header("ETag", f'"{hash(data) & 0xFFFFFF:x}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """What a process needs to see the server, and the paths that it was asked for."""
    folder = hubs.write(tmp_path / "folder", "llama")
    Hub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    Hub.files |= dict.fromkeys(FILES, b"no")
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"HF_ENDPOINT": address, "HF_HUB_CACHE": f"{tmp_path}/cache", "NO_PROXY": "127.0.0.1"}
    server.shutdown()


def test_only_what_is_read_is_downloaded(hub):
    code, out, err = processes.run("fetch", "org/name", **hub)
    assert code == errors.DONE, err
    code, _, err = processes.run("inspect", out.splitlines()[0], HF_HUB_OFFLINE="1", **hub)
    assert code == errors.DONE, err
    loaded = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
    assert "config.json" in loaded and any(name.startswith("model-") for name in loaded)
    assert not [path for path in Hub.asked if path.endswith(FILES)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("org/gated", "is gated: accept its terms on https://huggingface.co/org/gated"),
        ("org/none", "is not on the Hub, or is private"),
        ("org/name@v9", "has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, name, line):
    code, _, err = processes.run("fetch", name, **hub)
    assert code == errors.CHECKPOINT and line in err and err.count("\n") == 1, err
