"""Write a run, an import or a Hugging Face folder as a Hugging Face folder, verified.

    python tools/export_hf.py MODEL OUT [--dtype bfloat16] [--max-shard-size 5GB] [--no-verify]

The same as `jaxlm convert export`, for a checkout that is not installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("jaxlm") is None:
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from jaxlm.cli import main

if __name__ == "__main__":
    main(["convert", "export", *sys.argv[1:]])
