"""Write a Hugging Face folder as a checkpoint of ours, verified.

    python tools/import_hf.py HF_DIR OUT [--dtype bfloat16] [--no-verify]

The same as `jaxlm convert import`, for a checkout that is not installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("jaxlm") is None:
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from jaxlm.cli import main

if __name__ == "__main__":
    main(["convert", "import", *sys.argv[1:]])
