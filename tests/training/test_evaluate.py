"""A run is scored where its files are, and is told where they were looked for."""

import re

import pytest

from jaxlm.config.schema import Source
from jaxlm.core.errors import DataError
from jaxlm.training.evaluate import check_found


def test_every_path_that_leads_nowhere_is_named_with_the_folder(tmp_path, monkeypatch):
    (tmp_path / "here.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    wanted = [Source(path=path) for path in ("a.txt", "here.txt", "data/*.txt", "stdlib")]
    line = f"a.txt, data/*.txt: not found from {tmp_path}; run `jaxlm eval` in the folder"
    with pytest.raises(DataError, match=re.escape(line)):
        check_found(wanted)
    check_found(wanted[1:2])
