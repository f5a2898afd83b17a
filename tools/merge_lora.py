"""Write a model with a LoRA adapter merged into it, measured against the two of them.

    python tools/merge_lora.py BASE ADAPTER OUT [--dtype bfloat16] [--max-shard-size 5GB] [--force]

The same as `jaxlm adapter merge`, for a checkout that is not installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("jaxlm") is None:
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from jaxlm.cli import main

if __name__ == "__main__":
    main(["adapter", "merge", *sys.argv[1:]])
