"""People as judges: who is shown what, and what their verdicts come to, by hand."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from pit_jax.errors import UserError
from pit_jax.evaluation import people, verdict_files
from pit_jax.evaluation.verdict_files import Sheet

ROW = {"name": "new vs old", "first": "system", "second": "system"}


def sides(count, alike=0, row=ROW):
    numbers = range(count + alike)
    first = [f"new {n}" if n < count else f"same {n}" for n in numbers]
    second = [f"old {n}" if n < count else f"same {n}" for n in numbers]
    prompts = [f"x {n}" for n in numbers]
    return people.Sides(row, prompts, first, second, prompts)


def key(*each, ties=True, seed=0):
    return people.ask(each, "Which?", ties, seed, {"title": "T", "seed": 5})


def sheet(made, name, outcomes):
    """What a person says who finds these outcomes, by the prompt of each comparison."""
    said = {}
    for number, item in enumerate(made.asked, 1):
        other = {"A": "B", "B": "A"}[item.shown_as]
        said[number] = {1: item.shown_as, -1: other, 0: "tie"}[outcomes[item.prompt]]
    return Sheet(f"{name}.csv", name, said, {})


def test_who_is_shown_what():
    made = key(sides(200, alike=7))
    assert len(made.asked) == 200 and len(made.items) == 207
    places = collections.Counter(item.shown_as for item in made.asked)
    assert 70 <= places["A"] <= 130  # within 4 standard deviations
    assert [i.prompt for i in made.asked] != [f"x {n}" for n in range(200)]
    for item in made.asked:
        prompt, a, b = item.shown
        number = prompt.removeprefix("x ")
        assert {a, b} == {f"new {number}", f"old {number}"}
        assert (a == f"new {number}") == (item.shown_as == "A")
    assert key(sides(200, alike=7)) == made
    other = key(sides(200, alike=7), seed=1)
    assert other.page != made.page
    order = np.array([[int(i.prompt[2:]) for i in k.asked] for k in (made, other)])
    assert (order[0] == order[1]).mean() < 0.1
    with pytest.raises(UserError, match="all responses are equal"):
        key(sides(0, alike=2))


def test_the_digest_is_of_all_that_is_seen():
    made = key(sides(3))
    item = made.items[0]
    swapped = dataclasses.replace(item, shown_as={"A": "B", "B": "A"}[item.shown_as])
    changes = [
        {"question": "What?"},
        {"ties": False},
        {"items": [swapped, *made.items[1:]]},
        {"items": [dataclasses.replace(item, prompt="y"), *made.items[1:]]},
        {"items": made.items[::-1]},
    ]
    pages = {dataclasses.replace(made, **change).page for change in changes}
    assert len(pages | {made.page}) == 6
    assert dataclasses.replace(made, about={"title": "U"}).page == made.page


def test_a_key_is_read_as_it_was_written_and_refused_if_it_was_changed(tmp_path):
    path = epath.Path(tmp_path) / "key.json"
    made = key(sides(4, alike=1), sides(2, row={**ROW, "name": "other"}))
    text = people.to_json(made)
    path.write_text(text)
    assert people.read_key(path) == made and len(text.splitlines()) == 9
    found = json.loads(text)
    changed = [
        text[:-9],
        text.replace("new 1", "new 9"),
        text.replace(people.FORMAT, "2"),
        text.replace('"shown_as": "A"', '"shown_as": 3'),
        json.dumps({**found, "sides": []}),
        json.dumps([found]),
        "[" * 100_000,
    ]
    for wrong in changed:
        path.write_text(wrong)
        with pytest.raises(UserError, match="key.json was changed, expected"):
            people.read_key(path)
    with pytest.raises(UserError, match="none.json isn't there, expected the folder that"):
        people.read_key(path.with_name("none.json"))


def test_agreement_and_a_win_only_if_both_say_so_by_hand():
    # As in the test of kappa: 4 wins and 2 losses in common, a win for a tie, a tie for a loss.
    ana = [1, 1, 1, 1, -1, -1, 1, 0]
    ben = [1, 1, 1, 1, -1, -1, 0, -1]
    made = key(sides(8, alike=2))
    prompts = [f"x {n}" for n in range(8)]
    sheets = [sheet(made, n, dict(zip(prompts, s))) for n, s in (("Ana", ana), ("Ben", ben))]
    found = people.results(made, sheets)
    (row,) = found["agreement"]
    assert (row["name"], row["accuracy"], row["n"]) == ("Ana and Ben", 0.75, 8)
    assert row["kappa"] == pytest.approx((48 - 27) / (64 - 27))
    assert row["kappa_low"] is None and 0.3 < row["ci_low"] < 0.75 < row["ci_high"] < 1
    (compared,) = found["comparisons"]
    # Of ten prompts, two with equal responses, which tie.
    assert (compared["win"], compared["lose"], compared["tie"]) == (40, 20, 40)
    assert (compared["delta"], compared["n"]) == (20, 10)
    assert compared["ci_low"] < 20 < compared["ci_high"]
    assert (compared["judge"], compared["group"]) == ("people (Ana, Ben)", "table1")
    assert compared["sign_test"] | {"p": 0} == {"wins": 4, "losses": 2, "ties": 4, "p": 0}
    counted = found["people"]
    assert (counted["asked"], counted["judged"], counted["alike"]) == (8, 8, 2)
    assert counted["agreed"] == 6 and found["num_prompts"] == 10 and found["title"] == "T"
    for person, said in zip(counted["annotators"], sheets, strict=True):
        values = list(said.verdicts.values())
        assert [person[k] for k in ("first", "second", "tie")] == [
            values.count(v) for v in ("A", "B", "tie")
        ]
    assert found["warnings"] == []
    assert people.results(made, sheets[::-1])["agreement"][0]["kappa"] == row["kappa"]


def test_three_people_have_to_agree_and_rows_stay_apart():
    made = key(sides(3), sides(2, row={**ROW, "name": "other"}))
    up = dict.fromkeys(("x 0", "x 1", "x 2"), 1)
    sheets = [sheet(made, "a", up), sheet(made, "b", up), sheet(made, "c", up | {"x 1": -1})]
    found = people.results(made, sheets)
    assert [row["name"] for row in found["agreement"]] == ["a and b", "a and c", "b and c", "all 3"]
    # Of five comparisons the third person has two otherwise, one of each row.
    assert [row["accuracy"] for row in found["agreement"]][:3] == [1, 0.6, 0.6]
    # 13 of 15 verdicts are wins: by chance two agree in (169 + 4) / 225, and in 11 / 15 they do.
    together = found["agreement"][3]
    assert together["accuracy"] == pytest.approx(11 / 15) and together["n"] == 5
    assert together["kappa"] == pytest.approx((165 - 173) / (225 - 173))
    assert not any("all 3" in text for text in found["warnings"])
    rows = {row["name"]: row for row in found["comparisons"]}
    assert rows["new vs old"]["win"] == pytest.approx(200 / 3) and rows["other"]["win"] == 50
    assert [rows[name]["lose"] for name in rows] == [0, 0] and found["people"]["agreed"] == 3


def test_intervals_are_those_of_prompts():
    """Two comparisons of each prompt are one draw: intervals are wider than of as many prompts."""
    rng = np.random.default_rng(0)
    made = key(sides(120), sides(120, row={**ROW, "name": "other"}))
    true = {f"x {n}": int(rng.choice([1, -1])) for n in range(120)}
    noisy = {x: v if rng.random() < 0.7 else -v for x, v in true.items()}
    both = people.results(made, [sheet(made, "a", true), sheet(made, "b", noisy)])
    apart = dataclasses.replace(
        made, items=[dataclasses.replace(i, group=f"{n}") for n, i in enumerate(made.items)]
    )
    alone = people.results(apart, [sheet(apart, "a", true), sheet(apart, "b", noisy)])
    (wide,), (narrow,) = both["agreement"], alone["agreement"]
    assert wide["kappa"] == narrow["kappa"]
    ratio = (wide["kappa_high"] - wide["kappa_low"]) / (narrow["kappa_high"] - narrow["kappa_low"])
    assert ratio == pytest.approx(np.sqrt(2), rel=0.1)


def test_what_is_missing_is_refused_or_left_out(tmp_path):
    made = key(sides(4))
    outcomes = {f"x {n}": 1 for n in range(4)}
    ana, ben = sheet(made, "Ana", outcomes), sheet(made, "Ben", outcomes)
    del ben.verdicts[2], ben.verdicts[3]
    people.check_whole(made, [ana])
    with pytest.raises(UserError, match=r"Ben.csv: has no verdict on comparison 2, and on 2 of 4"):
        people.check_whole(made, [ana, ben])
    blank = dataclasses.replace(ben, blank={2: 7})
    with pytest.raises(UserError, match=r"Ben.csv:7: has no verdict on comparison 2"):
        people.check_whole(made, [ana, blank])
    found = people.results(made, [ana, ben])
    assert found["people"]["judged"] == 2 and found["comparisons"][0]["n"] == 2
    assert "2 of 4 comparisons are left out" in found["warnings"][0]
    ben.verdicts.clear()
    with pytest.raises(UserError, match="no comparison has the verdicts of all"):
        people.results(made, [ana, ben])


def test_warnings_of_little_agreement_and_of_position_bias():
    made = key(sides(40))
    rng = np.random.default_rng(1)
    guesses = [dict(zip((f"x {n}" for n in range(40)), rng.choice([1, -1], 40))) for _ in range(2)]
    said = people.results(made, [sheet(made, "Ana", guesses[0]), sheet(made, "Ben", guesses[1])])
    kappa = said["agreement"][0]["kappa"]
    assert kappa < 0.2 and len(said["warnings"]) == 1
    assert (
        f"Ana and Ben agree hardly more often than by chance (Cohen's kappa {kappa:.2f})"
        in (said["warnings"][0])
    )
    left = Sheet("c.csv", "Cy", dict.fromkeys(range(1, 41), "A"), {})
    found = people.results(made, [left, dataclasses.replace(left, annotator="Di")])
    assert found["warnings"][-1].startswith("position bias: Di preferred A in 40 of 40 verdicts")
    # 28 of 40 is what chance gives once in 60 times, two-sided (p = 0.017), and 30 once in 450.
    for count, told in ((28, False), (30, True)):
        mixed = {n: "A" if n <= count else "B" for n in range(1, 41)}
        found = people.results(made, [left, Sheet("d.csv", "Di", mixed, {})])
        assert any("Di preferred A" in text for text in found["warnings"]) == told


def test_files_of_people(tmp_path):
    made = key(sides(2))
    paths = []
    for stem, name in (("a", "Ana"), ("b", "Ben"), ("c", "ANA")):
        text = verdict_files.empty(made.page, [item.shown for item in made.asked])
        text = text.replace(f",,,{made.page}", f",A,{name},{made.page}")
        paths.append(tmp_path / f"{stem}.csv")
        paths[-1].write_text(text, "utf-8")
    found = people.read_sheets(made, list(map(str, paths[:2])))
    assert [each.annotator for each in found] == ["Ana", "Ben"]
    with pytest.raises(UserError, match=r"c.csv: is by ANA as .*a.csv is, expected one file of e"):
        people.read_sheets(made, list(map(str, paths)))
    with pytest.raises(UserError, match="--verdicts: got 1 file, expected those of two people"):
        people.read_sheets(made, [str(paths[0])])
