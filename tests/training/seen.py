"""`jaxlm` that writes down the rows that each process reads: `seen.py FOLDER words ...`."""

import hashlib
import json
import os
import sys
from pathlib import Path

from jaxlm import cli
from jaxlm.data.pipeline import Dataset

FOLDER = Path(sys.argv[1])
READ = Dataset.batch


def batch(self, step, size, rows, limit=None):
    found = READ(self, step, size, rows, limit)
    names = sorted(found)
    each = [
        hashlib.sha256(b"".join(found[name][row].tobytes() for name in names)).hexdigest()
        for row in range(len(found["tokens"]))
    ]
    with (FOLDER / f"{os.getpid()}.jsonl").open("a") as file:
        print(json.dumps({"step": step, "first": rows.start, "rows": each}), file=file)
    return found


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    Dataset.batch = batch
    cli.main(sys.argv[2:])
