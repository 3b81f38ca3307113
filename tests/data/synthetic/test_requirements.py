"""The requirements family: verdicts by hand, and what every generated example promises."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.synthetic import requirements
from pit_jax.data.synthetic.requirements import REQUIREMENTS, RequirementsConfig, check, render

PROMPT = "reverse rose lamp river with quotes greeting bullets"


@pytest.mark.parametrize(
    ("response", "score", "met"),
    [
        ('hello " - river - lamp - rose "', 1.0, ("quotes", "greeting", "bullets")),
        ('" - river - lamp - rose "', 2 / 3, ("quotes", "bullets")),
        ("hello river lamp rose", 1 / 3, ("greeting",)),
        ("river lamp rose", 0.0, ()),
        # Nobody asked for the signature.
        ("hello - river - lamp - rose regards", 1 / 3, ("greeting", "bullets")),
        ("river lamp rose ! :)", 0.0, ()),
        ('<b> hello " - river - lamp - rose " </b>', 0.0, None),
        ('hello " - rose - lamp - river "', 0.0, None),
        ('hello " - river - lamp "', 0.0, None),
        ('hello " - river - lamp - rose', 0.0, None),
        ('hello " - river lamp - rose "', 0.0, None),
        ("hello RIVER lamp rose", 0.0, None),
        ("river lamp rose quotes greeting bullets", 0.0, None),
        ("river lamp rose river", 0.0, None),
        ('"', 0.0, None),
        ("", 0.0, None),
    ],
)
def test_verdicts_by_hand(response, score, met):
    verdict = check(PROMPT, response)
    assert verdict.score == pytest.approx(score)
    assert verdict.content == (met is not None)
    assert verdict.met == (met or ())
    assert verdict.required == ("quotes", "greeting", "bullets")


def test_perfect_responses_by_hand():
    names = ["bold", "quotes", "upper", "repeat", "heading", "exclamation", "smile", "signature"]
    assert (
        check(f"sort rose lamp with {' '.join(names)}", render(["lamp", "rose"], names)).score == 1
    )
    assert render(["lamp", "rose"], names) == ('# <b> " LAMP ROSE LAMP ROSE " </b> ! :) regards')
    assert check("write lamp rose with bold quotes", '" <b> lamp rose </b> "').score == 1
    assert check("write lamp rose with smile exclamation", "lamp rose :) !").score == 1


def test_every_subset_is_told_apart():
    # Requirements are independent: any subset is read back exactly from its rendering.
    content = ["lamp", "rose"]
    prompt = f"write lamp rose with {' '.join(REQUIREMENTS)}"
    for size in range(len(REQUIREMENTS) + 1):
        for names in itertools.combinations(REQUIREMENTS, size):
            verdict = check(prompt, render(content, names))
            assert (verdict.met, verdict.content) == (names, True)


@given(st.integers(0, 2**32))
def test_generated_examples_keep_their_promises(seed):
    config = RequirementsConfig()
    fields = requirements.generate(np.random.default_rng(seed), config)
    assert set(" ".join(fields.values()).split()) <= set(requirements.WORDS)
    assert check(fields["prompt"], fields["chosen"]).score == 1
    assert check(fields["prompt"], fields["rejected"]).score < 1
    assert len(fields["chosen"].split()) <= 16
    assert fields["reflection"]


def test_rejected_responses_fail_in_every_way():
    rng = np.random.default_rng(0)
    seen = collections.Counter()
    for _ in range(500):
        fields = requirements.generate(rng, RequirementsConfig())
        verdict = check(fields["prompt"], fields["rejected"])
        kind = fields["reflection"].split()[0]
        if kind == "missing":
            kind = "subset" if verdict.content else "bluff"
            missing = set(verdict.required) - set(verdict.met)
            assert kind == "bluff" or set(fields["reflection"].split()[1:]) == missing
        elif kind == "remove":
            assert verdict.met == verdict.required
        else:
            kind = fields["reflection"]
            assert not verdict.content
        seen[kind] += 1
    expected = {
        "subset": 250,
        "bluff": 50,
        "remove": 75,
        "fix the content": 75,
        "fix the layout": 50,
    }
    assert set(seen) == set(expected)
    assert all(abs(seen[kind] - count) < 30 for kind, count in expected.items())


@given(st.lists(st.sampled_from(requirements.WORDS), max_size=12))
def test_any_response_gets_a_verdict(words):
    verdict = check(PROMPT, " ".join(words))
    assert 0 <= verdict.score <= 1


@pytest.mark.parametrize(
    "prompt",
    ["", "with", "write with bold", "write rose with", "eat rose with bold", "write x with bold"],
)
def test_foreign_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="expected 'TASK WORDS with REQUIREMENTS'"):
        check(prompt, "rose")


@pytest.mark.parametrize(
    "fields",
    [
        {"tasks": ("eat",)},
        {"tasks": ()},
        {"min_words": 1},
        {"max_words": 20},
        {"max_requirements": 10},
        {"min_requirements": 0},
        {"requirements": 11},
        {"damaged": 0.9},
    ],
)
def test_impossible_levels_are_refused(fields):
    with pytest.raises(ValueError, match="requirements: "):
        RequirementsConfig(**fields)


def seen(count=300, **fields):
    """Tasks, numbers of words, numbers of requirements and their names, of generated prompts."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        words = requirements.generate(rng, RequirementsConfig(**fields))["prompt"].split()
        split = words.index("with")
        found.append((words[0], split - 1, len(words) - split - 1, *words[split + 1 :]))
    tasks, words, counts = (set(column) for column in list(zip(*[row[:3] for row in found])))
    return tasks, words, counts, {name for row in found for name in row[3:]}


@pytest.mark.parametrize(
    ("fields", "column", "expected"),
    [
        ({"tasks": ("sort", "write")}, 0, {"sort", "write"}),
        ({"min_words": 3}, 1, {3}),
        ({"max_words": 4}, 1, {2, 3, 4}),
        ({"min_requirements": 4}, 2, {4}),
        ({"max_requirements": 6}, 2, {2, 3, 4, 5, 6}),
        ({"requirements": 5}, 3, {*list(REQUIREMENTS)[:5]}),
    ],
)
def test_each_field_of_a_level_bounds_what_prompts_have(fields, column, expected):
    plain = {"write", "reverse", "sort"}, {2, 3}, {2, 3, 4}, set(REQUIREMENTS)
    assert seen() == plain
    assert seen(**fields) == (*plain[:column], expected, *plain[column + 1 :])


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("damaged", "fix the content"),
        ("extras", "remove"),
        ("malformed", "fix the layout"),
        ("bluffs", "bluff"),
    ],
)
def test_each_share_is_that_of_one_kind_of_fault(field, kind):
    none = dict.fromkeys(("damaged", "extras", "malformed", "bluffs"), 0.0)
    for share, least, most in ((1.0, 200, 200), (0.5, 70, 130), (0.0, 0, 0)):
        config, rng = RequirementsConfig(**none | {field: share}), np.random.default_rng(1)
        count = 0
        for _ in range(200):
            fields = requirements.generate(rng, config)
            whole = check(fields["prompt"], fields["rejected"]).content
            reflection = fields["reflection"]
            if reflection.startswith("missing") and not whole:
                reflection = "bluff"
            count += reflection.startswith(kind)
        assert least <= count <= most
