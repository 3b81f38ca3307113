"""docs/settings.md has every setting, as its class has it."""

from __future__ import annotations

import dataclasses
import pathlib

from pit_jax.data.layouts import Lengths
from pit_jax.report import settings
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RLStage
from pit_jax.runtime.loop import LoopConfig

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_that_of_the_classes():
    """Made again by `python -m pit_jax.report.settings > docs/settings.md`."""
    assert PAGE.read_text(encoding="utf-8") == settings.page()


def test_every_field_has_a_meaning_and_a_scope():
    found = settings.classes()
    assert found[RLStage] and found[LoopConfig] and not found[RunConfig] and not found[Lengths]
    for cls in found:
        fields = {field.name for field in dataclasses.fields(cls)}
        assert set(settings._meanings(cls)) == fields, cls
    rows = [line for line in settings.page().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(dataclasses.fields(cls)) for cls in found)
