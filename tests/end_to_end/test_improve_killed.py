"""`improve`, ended by real signals; killed_improve.py does it with as many prompts as wanted."""

from __future__ import annotations

import pytest

from tests import tiny_runs
from tests.end_to_end import killed_improve


@pytest.mark.slow
def test_improve_goes_on_after_any_signal(trained, tmp_path):
    tiny_runs.copy(trained, tmp_path / "run")
    (tmp_path / "run.gin").write_text(tiny_runs.GIN)
    found = killed_improve.drive(tmp_path / "run", tmp_path, prompts=600, kills=4, shard=32)
    assert found["equal"] and found["kills"] == 4
    for text in found["said"]:
        assert text.startswith("interrupted; ") and "give the same command again" in text
