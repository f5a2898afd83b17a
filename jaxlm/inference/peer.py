"""A model here and the same in transformers, which runs in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.hub import load as folders
from jaxlm.hub.fetch import local
from jaxlm.hub.shards import shard_bytes
from jaxlm.inference import export, verify
from jaxlm.inference.model import load

PEERS = ("torch", "transformers")


def verify_against(
    path: str, peer: str, *, text: str | None = None, receipt: Path | None = None
) -> dict[str, Any]:
    """Compare the model at `path` with what `peer`, which is transformers, computes of it.

    It reads the Hugging Face folder itself, and of a run or an import an export. Token ids are
    compared with special tokens in the text parsed, as it parses them. Returns what `verify` does.
    Raises ConfigError where torch or transformers is not installed, CheckpointError where they
    cannot read the folder.
    """
    if peer != "transformers":
        raise ConfigError("--against", f"{peer!r} is not known; write --against transformers")
    if missing := [name for name in PEERS if find_spec(name) is None]:
        what = "is not installed; in the checkout, run `pip install -e '.[peers]'`"
        raise ConfigError("--against", f"{missing[0]} {what}")
    text = verify.TEXT if text is None else text
    model = load(path)
    rows = verify.rows(model, text)
    with TemporaryDirectory() as work:
        if folders.is_folder(path):
            folder = local(path)
        else:
            folder = Path(work, "exported")
            export.export(path, str(folder), dtype=None, max_shard_bytes=shard_bytes("5GB"))
        names = ("input_ids", "decoder_input_ids") if verify.is_pair(model) else ("input_ids",)
        scores, tokens = _answer(folder, Path(work), dict.fromkeys(names, rows), text)
    ours = verify.scores(model, rows)
    figures = {"tokens compared": rows.shape[1]}
    figures |= verify.apart(ours, scores[..., : ours.shape[-1]]) | {
        "tolerance": verify.TOLERANCES[verify.itemsize(model)],
        "same token ids": model.tokenizer.encode(text, parse_special=True) == tokens["ids"],
        "same end token": tokens["eos"] in (None, model.tokenizer.eos),
    }
    other = {"path": path, "read by": peer}
    packages = (*verify.PACKAGES, *PEERS)
    return verify.judged(verify.side(path, model), other, figures, packages, receipt)


def _answer(
    folder: Path, work: Path, inputs: dict[str, np.ndarray], text: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """(scores [B, L, V], {ids, eos}) of transformers. inputs: its arguments, each [B, L]."""
    given: Any = {name: rows.astype(np.int64) for name, rows in inputs.items()}
    np.savez(work / "inputs.npz", **given)
    (work / "text").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm.inference.against", str(folder), str(work)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1][:200]
        raise CheckpointError(str(folder), f"transformers does not read it: {reason}")
    return np.load(work / "logits.npy"), json.loads((work / "tokens.json").read_bytes())
