"""Splits and folds: no prompt twice, nothing that moves when sizes do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.examples import SPLITS, fold_of, stable_hash
from pit_jax.data.synthetic import instructions
from pit_jax.errors import UserError

LEVELS = {name: family.CONFIG() for name, family in instructions.FAMILIES.items()}


@pytest.mark.parametrize("family", instructions.FAMILIES)
def test_prompts_never_repeat(family):
    splits = [instructions.examples(family, split, 300, 0, LEVELS[family]) for split in SPLITS]
    # Another seed may draw the same prompts, but never into another split.
    splits += [instructions.examples(family, "test", 300, 1, LEVELS[family])]
    prompts = [{example.prompt for example in split} for split in splits]
    assert [len(p) for p in prompts] == [300] * 4
    train, dev, test, other_test = prompts
    assert not train & dev and not train & test and not dev & test and not train & other_test


@pytest.mark.parametrize("family", instructions.FAMILIES)
def test_examples_depend_on_seed_and_position_alone(family):
    few = instructions.examples(family, "dev", 20, 3, LEVELS[family])
    many = instructions.examples(family, "dev", 50, 3, LEVELS[family])
    assert many[:20] == few
    assert [example.index for example in many] == list(range(50))
    assert instructions.examples(family, "dev", 20, 4, LEVELS[family]) != few


@pytest.mark.parametrize("family", instructions.FAMILIES)
def test_checker_puts_chosen_above_rejected(family):
    for example in instructions.examples(family, "train", 200, 0, LEVELS[family]):
        chosen = instructions.check(family, example.prompt, example.chosen)
        rejected = instructions.check(family, example.prompt, example.rejected)
        assert chosen.content
        assert chosen.score > rejected.score


def test_exhausted_family_says_how_many_there_are():
    level = instructions.FAMILIES["drafts"].CONFIG(min_steps=1, max_steps=1)
    with pytest.raises(
        UserError, match=r"about \d+ different prompts for split 'dev', expected 500"
    ):
        instructions.examples("drafts", "dev", 500, 0, level)


def test_unknown_names_list_the_choices():
    with pytest.raises(UserError, match="got 'poems', expected one of drafts, requirements"):
        instructions.examples("poems", "train", 1, 0, None)
    with pytest.raises(UserError, match="got 'poems', expected one of drafts, requirements"):
        instructions.check("poems", "x", "y")
    with pytest.raises(UserError, match="got 'validation', expected one of train, dev, test"):
        instructions.examples("drafts", "validation", 1, 0, LEVELS["drafts"])


def test_hashes_never_change():
    # Values of the first release: another hash would move examples between folds of old runs.
    assert [fold_of(prompt) for prompt in ("a", "b", "c", "Was ist 2+2?")] == [0, 1, 2, 1]
    assert stable_hash("a", "fold") != stable_hash("a", "split")


@given(st.text(st.characters()))
def test_every_text_has_a_fold(prompt):
    assert fold_of(prompt) in (0, 1, 2)


@pytest.mark.parametrize("family", instructions.FAMILIES)
def test_seed_and_split_each_move_what_is_drawn(family, monkeypatch):
    """Also where any prompt may be in any split: the splits' draws are of different generators."""
    monkeypatch.setattr(
        instructions, "_SPLIT_OF_TEN", dict.fromkeys(("dev", "test", "train"), range(10))
    )
    found = [
        tuple(e.prompt for e in instructions.examples(family, split, 20, seed, LEVELS[family]))
        for seed in (0, 1, 0)
        for split in SPLITS
    ]
    assert len(set(found)) == 6 and found[:3] == found[6:]
