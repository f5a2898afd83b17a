"""What transformers makes of a folder: the other side of `jaxlm convert verify --against`.

    python -m jaxlm.inference.against FOLDER WORK

A program of its own, because jaxlm never loads torch. It reads WORK/inputs.npz (arguments of the
network, by name) and WORK/text, and writes WORK/logits.npy and WORK/tokens.json.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: str, work: Path) -> None:
    """Scores in float32, float32 [..., V], and the ids of the text, special tokens parsed."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = (getattr(config, "architectures", None) or [""])[0]
    network = getattr(transformers, kind, transformers.AutoModelForCausalLM)
    model = network.from_pretrained(folder, attn_implementation="eager").float().eval()
    inputs = {name: torch.tensor(array) for name, array in np.load(work / "inputs.npz").items()}
    with torch.no_grad():
        np.save(work / "logits.npy", model(**inputs).logits.numpy())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer((work / "text").read_text(encoding="utf-8"))["input_ids"]
    found = {"ids": ids, "eos": tokenizer.eos_token_id}
    (work / "tokens.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
