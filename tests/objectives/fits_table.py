"""The table of objectives and families in the docs.

python tests/objectives/fits_table.py      # docs/objectives.md
"""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "objectives.md"
TEXT = """# Which objective trains which family

`objective.type` beside the families of `docs/families.md`. `tests/objectives/fits_table.py` makes
this page; `tests/objectives/test_matrix.py` trains each cell for {steps} steps on a task that can
be learned, and the loss must fall by a quarter.

{table}

What does not fit is refused before anything is read, with the objectives that do.
"""


def page():
    """The page as it should be."""
    from objectives import matrix

    from jaxlm.families import FAMILIES

    names = list(matrix.TRAINS)
    rows = [("family", *names), ("---", *[":-:"] * len(names))]
    for family in FAMILIES:
        rows.append((family, *("yes" if matrix.fits(name, family) else "" for name in names)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return TEXT.format(table=table, steps=matrix.STEPS)


if __name__ == "__main__":
    sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]
    PAGE.write_text(page(), encoding="utf-8")
