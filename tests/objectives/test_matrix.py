"""Every cell of the docs' table: the family learns a task of the objective."""

import pytest
from objectives import fits_table, matrix

CELLS = matrix.cells()
KINDS = {(name, matrix.structure(family)): (name, family) for name, family in CELLS[::-1]}
"""One family of each structure for each objective; the others are trained in the long run."""


def cell(objective, family):
    marks = [] if (objective, family) in KINDS.values() else [pytest.mark.peers]
    return pytest.param(objective, family, marks=marks)


@pytest.mark.parametrize(("objective", "family"), [cell(*each) for each in CELLS])
def test_the_loss_falls(objective, family, tmp_path):
    losses = matrix.learned(objective, family, tmp_path)
    assert losses[-1] < 0.75 * losses[0], losses


def test_the_page_is_the_table():
    assert fits_table.PAGE.read_text(encoding="utf-8") == fits_table.page()
