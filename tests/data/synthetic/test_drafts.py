"""The drafts family: verdicts by hand, and what every generated example promises."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.synthetic import drafts
from pit_jax.data.synthetic.drafts import (
    DIGITS,
    OPERATIONS,
    DraftsConfig,
    check,
    parse_prompt,
    sheet,
    solve,
)

PROMPT = "from 4 do +3 x7 +5 x3"  # 4 + 3 = 7, 7 * 7 = 49, 9 + 5 = 14, 4 * 3 = 12: 7, 9, 4, 2
REQUIRED = ("step 1", "step 2", "step 3", "step 4")
KINDS = {"mistakes": 0.0, "bluffs": 0.0, "malformed": 0.0}

tasks = st.tuples(
    st.integers(0, 9), st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=8, unique=True)
)
levels = st.builds(
    lambda steps, ahead, shares: DraftsConfig(min(steps), max(steps), ahead, *shares),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.integers(1, 4),
    st.sampled_from([(0.25, 0.15, 0.1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]),
)


def generated(count=400, seed=0, **level):
    """Examples, each with the sheet's start, operations and right results."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        fields = drafts.generate(rng, DraftsConfig(**level))
        start, operations = parse_prompt(fields["prompt"])
        yield fields, start, operations, solve(start, operations)


def given_results(response):
    """Results of a whole sheet, oldest first, without its blanks."""
    return [int(word) for word in response.split()[1:-2:2][::-1] if word != "?"]


def test_a_prompt_and_its_steps_by_hand():
    assert parse_prompt(PROMPT) == (4, ["+3", "x7", "+5", "x3"])
    assert solve(4, ["+3", "x7", "+5", "x3"]) == [7, 9, 4, 2]
    assert parse_prompt("from 0 do x9") == (0, ["x9"])
    # 0, 9, 9 + 4 = 13, 3 * 9 = 27, 7 + 1 = 8, 8 + 2 = 10
    assert solve(9, ["+1", "x3", "x7", "+2"]) == [0, 0, 0, 2]
    assert solve(5, ["+4", "x9", "+2"]) == [9, 1, 3]
    assert sheet(4, ["+3", "x7", "+5", "x3"], [7, 9]) == "x3 ? +5 ? x7 9 +3 7 from 4"
    assert sheet(0, ["x9"], []) == "x9 ? from 0"


@pytest.mark.parametrize(
    ("response", "score", "steps", "content"),
    [
        ("x3 2 +5 4 x7 9 +3 7 from 4", 1.0, 4, True),
        ("x3 ? +5 4 x7 9 +3 7 from 4", 0.8, 3, True),
        ("x3 ? +5 ? x7 9 +3 7 from 4", 0.6, 2, True),
        ("x3 ? +5 ? x7 ? +3 7 from 4", 0.4, 1, True),
        ("x3 ? +5 ? x7 ? +3 ? from 4", 0.2, 0, True),
        (" x3 ? +5 ?\nx7 9  +3 7 from 4\n", 0.6, 2, True),
        # A wrong result, with and without what follows from it.
        ("x3 3 +5 4 x7 9 +3 7 from 4", 0.0, 3, True),
        ("x3 ? +5 5 x7 9 +3 7 from 4", 0.0, 2, True),
        ("x3 8 +5 6 x7 1 +3 7 from 4", 0.0, 1, True),
        ("x3 2 +5 4 x7 9 +3 8 from 4", 0.0, 0, True),
        # Results that stand above a blank, right as they are.
        ("x3 2 +5 4 x7 9 +3 ? from 4", 0.0, 0, False),
        ("x3 2 +5 ? x7 9 +3 7 from 4", 0.0, 0, False),
        # No start, another one, or one that isn't a digit.
        ("x3 2 +5 4 x7 9 +3 7", 0.0, 0, False),
        ("x3 2 +5 4 x7 9 +3 7 from", 0.0, 0, False),
        ("x3 2 +5 4 x7 9 +3 7 from 5", 0.0, 0, False),
        ("x3 2 +5 4 x7 9 +3 7 from ?", 0.0, 0, False),
        ("from 4 x3 2 +5 4 x7 9 +3 7", 0.0, 0, False),
        # Oldest first, lines out of place, missing, doubled, too many.
        ("+3 7 x7 9 +5 4 x3 2 from 4", 0.0, 0, False),
        ("+5 4 x3 2 x7 9 +3 7 from 4", 0.0, 0, False),
        ("+5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x3 2 +5 4 x7 9 x7 9 from 4", 0.0, 0, False),
        ("x3 2 +5 4 x7 9 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x3 2 +5 4 x7 9 +3 7 from 4 from 4", 0.0, 0, False),
        # Words where a result or an operation stands.
        ("x3 12 +5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x3 02 +5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x3 +5 +5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x9 2 +5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x3 ٢ +5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("x3 +5 4 x7 9 +3 7 from 4", 0.0, 0, False),
        ("2 4 9 7 4", 0.0, 0, False),
        (PROMPT, 0.0, 0, False),
        ("", 0.0, 0, False),
    ],
)
def test_verdicts_by_hand(response, score, steps, content):
    verdict = check(PROMPT, response)
    assert verdict.score == pytest.approx(score)
    assert verdict.met == REQUIRED[:steps]
    assert verdict.required == REQUIRED
    assert verdict.content is content


@given(tasks, st.data())
def test_a_right_sheet_is_worth_its_filled_lines_and_a_changed_digit_nothing(task, data):
    start, operations = task
    n = len(operations)
    k = data.draw(st.integers(0, n))
    prompt = f"from {start} do {' '.join(operations)}"
    response = sheet(start, operations, solve(start, operations)[:k])
    verdict = check(prompt, response)
    assert verdict.score == (k + 1) / (n + 1)
    assert verdict.met == verdict.required[:k]
    assert verdict.content and len(verdict.required) == n

    words = response.split()
    place = data.draw(st.sampled_from([i for i, word in enumerate(words) if word in DIGITS]))
    words[place] = data.draw(st.sampled_from([digit for digit in DIGITS if digit != words[place]]))
    assert check(prompt, " ".join(words)).score == 0


@given(tasks, st.data())
def test_nothing_but_the_right_sheets_is_worth_anything(task, data):
    start, operations = task
    n, right = len(operations), solve(start, operations)
    sheets = {sheet(start, operations, right[:k]): (k + 1) / (n + 1) for k in range(n + 1)}
    words = data.draw(st.sampled_from([*sheets])).split()
    place = data.draw(st.integers(0, len(words) - 1))
    edit = data.draw(
        st.lists(st.sampled_from(drafts.WORDS), max_size=2)  # deletes, replaces or adds
    )
    changed = " ".join([*words[:place], *edit, *words[place + 1 :]])
    prompt = f"from {start} do {' '.join(operations)}"
    assert check(prompt, changed).score == sheets.get(changed, 0)


@given(st.lists(st.sampled_from(drafts.WORDS), max_size=12))
def test_any_response_gets_a_verdict(words):
    assert 0 <= check(PROMPT, " ".join(words)).score <= 1


@given(st.integers(0, 2**32), levels)
def test_chosen_is_right_and_above_rejected(seed, level):
    fields = drafts.generate(np.random.default_rng(seed), level)
    start, operations = parse_prompt(fields["prompt"])
    assert set(" ".join(fields.values()).split()) <= set(drafts.WORDS)
    assert level.min_steps <= len(operations) <= level.max_steps
    assert len(set(operations)) == len(operations)
    steps = given_results(fields["chosen"])
    assert fields["chosen"] == sheet(start, operations, solve(start, operations)[: len(steps)])
    chosen, rejected = (check(fields["prompt"], fields[y]) for y in ("chosen", "rejected"))
    assert chosen.score == (len(steps) + 1) / (len(operations) + 1)
    assert chosen.score > rejected.score


def test_carry_on():
    seen = collections.Counter()
    for fields, start, operations, right in generated(2000, **KINDS):
        done = int(fields["reflection"].removeprefix("carry on after step "))
        assert fields["rejected"] == sheet(start, operations, right[:done])
        assert check(fields["prompt"], fields["rejected"]).score == (done + 1) / 6
        ahead = len(given_results(fields["chosen"])) - done
        assert 1 <= ahead <= min(3, 5 - done)
        seen[done, ahead] += 1
    assert set(seen) == {(d, a) for d in range(5) for a in range(1, 4) if d + a <= 5}
    # The smaller of two draws from 0 … 4 is d in 2 (5 - d) - 1 of 25 cases.
    for done, cases in enumerate((9, 7, 5, 3, 1)):
        drawn = sum(count for (d, _), count in seen.items() if d == done)
        assert abs(drawn - 2000 * cases / 25) < 90


def test_max_ahead():
    for fields, _, _, _ in generated(**KINDS, max_ahead=1):
        done = int(fields["reflection"].removeprefix("carry on after step "))
        assert len(given_results(fields["chosen"])) == done + 1


def test_mistakes_are_cut_back():
    seen = set()
    for fields, start, operations, right in generated(**{**KINDS, "mistakes": 1}):
        done = int(fields["reflection"].removeprefix("cut back to step "))
        assert fields["chosen"] == sheet(start, operations, right[:done])
        results = given_results(fields["rejected"])
        assert fields["rejected"] == sheet(start, operations, results)
        assert results[:done] == right[:done]
        assert results[done] != right[done]
        # What follows is worked out from the mistake.
        assert results[done + 1 :] == solve(results[done], operations[done + 1 : len(results)])
        verdict = check(fields["prompt"], fields["rejected"])
        assert (verdict.score, verdict.met, verdict.content) == (0, verdict.required[:done], True)
        seen.add((done, len(results)))
    assert seen == {(done, end) for done in range(5) for end in range(done + 1, 6)}


def test_bluffs_are_cut_back_and_may_go_a_step_on():
    seen, on, guessed = set(), set(), 0
    for fields, start, operations, right in generated(600, **{**KINDS, "bluffs": 1}):
        carried_on = fields["reflection"].endswith(" carry on")
        advice = fields["reflection"].removesuffix(" carry on")
        done = int(advice.removeprefix("cut back to step "))
        steps = len(given_results(fields["chosen"]))
        assert fields["chosen"] == sheet(start, operations, right[:steps])
        assert carried_on == (steps > done)
        results = given_results(fields["rejected"])
        assert fields["rejected"] == sheet(start, operations, results)
        assert results[:done] == right[:done]
        assert results[done] != right[done]
        guessed += results[done + 1 :] != solve(results[done], operations[done + 1 : len(results)])
        verdict = check(fields["prompt"], fields["rejected"])
        assert (verdict.score, verdict.met, verdict.content) == (0, verdict.required[:done], True)
        seen.add((done, len(results)))
        on.add(steps - done)
    assert seen == {(done, end) for done in range(5) for end in range(done + 1, 6)}
    assert on == {0, 1}
    assert guessed > 200


def how_malformed(chosen, rejected):
    """Which part of the layout a malformed sheet breaks; `chosen` is the same sheet, unbroken."""
    whole, words = chosen.split(), rejected.split()
    if len(words) == len(whole) - 1:
        return "result missing"
    if len(words) == len(whole) - 2 and words[-2:] == whole[-2:]:
        return "line missing"
    if len(words) < len(whole) - 2 and words == whole[: len(words)] and len(words) % 2 == 0:
        return "cut short"
    assert len(words) == len(whole)
    changed = [place for place in range(len(whole)) if words[place] != whole[place]]
    first = changed[0]
    if changed == [len(whole) - 1]:
        return "other start"
    if changed == [len(whole) - 3] and words[first] == "?":
        return "hole"
    if changed == [first] and first % 2 and words[first] == words[first - 1]:
        return "stray word"
    assert first % 2 == 0 and changed in ([first], [first, first + 1])
    lines = [words[place : place + 2] for place in range(0, len(words) - 2, 2)]
    line = lines.pop(first // 2)
    return "line doubled" if line in lines else "other operation"


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_malformed_sheets_are_worth_nothing(steps):
    level = {**KINDS, "malformed": 1, "min_steps": steps, "max_steps": steps}
    seen = collections.Counter()
    for fields, start, operations, right in generated(**level):
        assert fields["reflection"] == "rewrite the sheet"
        results = given_results(fields["chosen"])
        assert fields["chosen"] == sheet(start, operations, right[: len(results)])
        verdict = check(fields["prompt"], fields["rejected"])
        assert (verdict.score, verdict.met, verdict.content) == (0, (), False)
        seen[how_malformed(fields["chosen"], fields["rejected"])] += 1
    ways = {
        "result missing",
        "line missing",
        "cut short",
        "other start",
        "stray word",
        "other operation",
    }
    # A line takes the place of another one where there are two, a hole needs a result above it.
    ways |= {"line doubled"} if steps > 1 else set()
    ways |= {"hole"} if steps > 2 else set()
    assert set(seen) == ways
    assert min(seen.values()) > 10


def test_kinds_come_in_their_shares():
    seen = collections.Counter()
    for fields, _, operations, _ in generated(2000, min_steps=3, max_steps=6):
        seen[fields["reflection"].split()[0]] += 1
        seen[len(operations)] += 1
    expected = {"cut": 800, "rewrite": 200, "carry": 1000, 3: 500, 4: 500, 5: 500, 6: 500}
    assert set(seen) == set(expected)
    assert all(abs(seen[name] - count) < 90 for name, count in expected.items())


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "from 4 do",
        "from 12 do +3",
        "from x do +3",
        "from ٤ do +3",
        "start 4 do +3",
        "from 4 then +3",
        "+3 x7 from 4 do",
    ],
)
def test_foreign_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="drafts: got the prompt .*, expected 'from D do OPERATIO"):
        parse_prompt(prompt)
    with pytest.raises(ValueError, match="drafts: got the prompt .*, expected 'from D do OPERATIO"):
        check(prompt, "x3 ? from 4")


@pytest.mark.parametrize("operation", ["+6", "-3", "3", "do", "x"])
def test_foreign_operations_are_refused(operation):
    with pytest.raises(ValueError) as error:
        parse_prompt(f"from 4 do +3 {operation} x7")
    assert str(error.value).startswith(f"drafts: unknown operation '{operation}', expected one of")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_steps": 0}, "got min_steps=0, max_steps=5; expected 1 <= min_steps <= max_steps"),
        ({"min_steps": 6}, "got min_steps=6, max_steps=5; expected 1 <= min_steps <= max_steps"),
        ({"max_steps": 9}, "got min_steps=5, max_steps=9; expected .* <= max_steps <= 8"),
        ({"max_ahead": 0}, "got max_ahead=0, expected 1 or more"),
        ({"mistakes": 0.8}, r"mistakes \+ bluffs \+ malformed is over 1"),
        ({"mistakes": 0.0, "malformed": 0.9}, r"mistakes \+ bluffs \+ malformed is over 1"),
    ],
)
def test_impossible_levels_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"drafts: {message}"):
        DraftsConfig(**fields)


def test_all_operations_and_every_kind_may_be_asked_for():
    DraftsConfig(min_steps=1, max_steps=8, mistakes=0.5, bluffs=0.25, malformed=0.25)
