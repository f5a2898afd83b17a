"""Print what a run, an import or a Hugging Face folder is made of; no weight is read.

    python tools/inspect_checkpoint.py MODEL

The same as `jaxlm inspect`, for a checkout that is not installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("jaxlm") is None:
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from jaxlm.cli import main

if __name__ == "__main__":
    main(["inspect", *sys.argv[1:]])
