"""The suite with scripted models: how it samples, improves and judges, without a trained run."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from pit_jax.data.examples import Example
from pit_jax.data.layouts import GAP_PAIRS, Layout
from pit_jax.data.vocabularies.load import load
from pit_jax.evaluation import intervals
from pit_jax.evaluation.judges import ExactJudge, RewardJudge
from pit_jax.evaluation.suite import EvaluationConfig, Suite
from pit_jax.evaluation.tables import Side, Tables
from pit_jax.method.curriculum import Round
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Response
from tests import tiny_runs

WORDS = load("words:drafts")
PROMPTS = ("from 1 do +1", "from 2 do +1", "from 3 do +1")
IMPROVE = ImproveConfig(
    iterations=9,
    sampling=SamplingConfig(temperature=0.3, top_k=5),
    policy_sampling=SamplingConfig(temperature=0.6, top_p=0.9),
    stop_unchanged=True,
    min_gap=0.5,
    time_budget=3.0,
)
CONFIG = EvaluationConfig(iterations=2, policy="M_P", pit="M_PIT", gap_model="R_PIT")


def said(text):
    """A response of this text."""
    return Response(WORDS.encode(text), True, text=text)


class Sampler:
    """A sampler whose responses are the digits 1, 2, … by call; it keeps the calls."""

    def __init__(self):
        self.calls, self.scored = [], []

    def respond(self, model, prompts, width, rows, key, sampling):
        self.calls.append((model, rows, key, sampling))
        return [Response(WORDS.encode(str(len(self.calls))), True) for _ in prompts]

    def score(self, model, prompts, width, responses, pooling):
        self.scored.append((model, [(r.tokens, r.ended) for r in responses], pooling))
        return np.zeros(len(responses))


@dataclasses.dataclass(frozen=True)
class Improver:
    """Stands for Algorithm 2: it keeps what it is called with, and says how it is anchored."""

    calls: list
    models: tuple
    anchor: float = 2.0
    better_above: float = 0.0

    def __call__(self, prompts, responses, rows, key, config):
        anchors = self.anchor, self.better_above
        self.calls.append((self.models, anchors, responses, rows, key, config))
        return [Trace([response] * 3, [0.0, 0.0]) for response in responses]


def suite_of(config=CONFIG, more=(), complete=(), directory=None, dataset=None):
    """A suite of a run with some more stages, of which these are complete."""
    sampler, improved = Sampler(), []
    whole = tiny_runs.with_stages(tiny_runs.config("unused"), *more)
    whole = dataclasses.replace(
        whole, dataset=dataclasses.replace(whole.dataset, **(dataset or {}))
    )
    role, improving = Role(whole.network, Layout(WORDS), whole.lengths, sampler), []

    def improver(*models, reflects, role):
        improving.append(role)
        return Improver(improved, (*models, *["reflects"] * reflects))

    run = types.SimpleNamespace(
        directory=directory,
        config=dataclasses.replace(whole, improve=IMPROVE),
        data=types.SimpleNamespace(
            examples=lambda split: [
                Example(p, "a", "b", index=7 + i) for i, p in enumerate(PROMPTS)
            ]
        ),
        role=lambda name: role,
        key=lambda *purposes: purposes,
        load_frozen=lambda name: f"weights of {name}",
        pooling=lambda name: f"pooling of {name}",
        anchor=lambda name: 0.25,
        is_complete=lambda name: name in complete,
        stage={stage.name: stage for stage in whole.stages}.get,
        reflects=lambda name: name == "thinks",
        improver=improver,
    )
    made = Suite(run, config)
    made.calls, made.scored, made.improvements = sampler.calls, sampler.scored, improved
    made.improving = improving
    return made


@pytest.fixture
def suite():
    return suite_of()


MORE = (
    tiny_runs.supervised("thinks", task="sft_pit_reflection"),
    tiny_runs.reward("rm_policy_2", task="rm_policy"),
    tiny_runs.reward("rm_pair", task="rm_gap"),
    tiny_runs.rl("longer", (Round("none", 2),), task="rl_policy"),
    tiny_runs.rl("third", (Round("none", 2),), task="rl_policy"),
    tiny_runs.rl("first", (Round("data", 2),), task="rl_pit"),
    dataclasses.replace(
        tiny_runs.rl("apart", (Round("policy", 2),), task="rl_pit"),
        task="rl_pit_difference",
        reward_model="rm_policy",
    ),
)
OURS = ("sft_policy", "sft_pit", "rm_policy", "rm_gap", "rl_policy", "rl_pit")


def test_improvements_are_sampled_as_the_configuration_says_and_never_stop(suite):
    suite.improved("M_PIT", 0.8, 2)
    ((models, anchors, responses, rows, key, config),) = suite.improvements
    assert models == ("weights of M_PIT", "weights of R_PIT", "R_PIT")
    # Gaps are as Figures 2 and 4 have the scores, and the best is counted from the anchor.
    assert anchors == (0, 2)
    assert responses == suite.policy("M_P", 0.8) and rows == [7, 8, 9]
    sampling = SamplingConfig(temperature=0.8, top_k=5)
    assert (config.iterations, config.sampling) == (2, sampling)
    assert (config.stop_unchanged, config.min_gap, config.time_budget) == (False, None, 0)
    assert key not in [call[2] for call in suite.calls]
    suite.improved("M_P", 0.8, 2, "self_refine")
    assert suite.improvements[1][-1].method == "self_refine"
    assert suite.improvements[1][4] != key
    assert suite.improving == ["pit", "policy"]


def test_nothing_is_improved_twice(suite):
    """Fewer iterations than there are need no others, for they draw alike."""
    traces = suite.improved("M_PIT", 0.8, 2)
    assert suite.improved("M_PIT", 0.8, 1) is traces
    assert suite.responses.swept("M_PIT", 0.8, "M_P") == suite.responses.swept("M_PIT", 0.8, "M_P")
    assert len(suite.improvements) == 2
    suite.improved("M_PIT", 0.8, 3)
    assert len(suite.improvements) == 3


def test_the_sweep_improves_what_was_sampled_at_1(suite):
    suite.responses.swept("M_PIT", 0.3, "M_P")
    suite.responses.swept("M_SFT", 0.3, "M_SFT", "self_refine")
    suite.responses.swept("SFT_PIT", 0.3, "M_SFT")
    for call, policy in zip(suite.improvements, ("M_P", "M_SFT", "M_SFT"), strict=True):
        assert call[2] == suite.policy(policy, 1.0)
        assert (call[-1].iterations, call[-1].sampling.temperature) == (1, 0.3)
        assert call[-1].min_gap is None and not call[-1].stop_unchanged
    assert [call[0] for call in suite.improvements] == [
        (f"weights of {name}",) for name in ("M_PIT", "M_SFT", "SFT_PIT")
    ]
    assert [call[4] for call in suite.improvements] == [
        ("evaluation", "M_PIT", "sweep"),
        ("evaluation", "M_SFT", "sweep", "self_refine"),
        ("evaluation", "SFT_PIT", "sweep"),
    ]
    assert suite.improving == ["pit", "policy", "pit"]


def test_rows_of_one_group_count_as_one(suite, monkeypatch):
    """Two wins and a loss of one prompt: each end is 0.975 of the way to its bound."""

    class Judge:
        name = "judge"

        def __call__(self, prompts, first, second):
            return np.array([1, 1, -1])

    monkeypatch.setattr(suite.responses, "groups", ["the same"] * 3)
    side = Side("pit", "PIT", suite.policy("M_P", 1.0))
    row = Tables(suite.responses, Judge(), 0).compare(1.0, "table1", side, side)
    assert row["delta"] == pytest.approx(100 / 3)
    assert row["ci_low"] == pytest.approx(100 / 3 - 0.975 * (100 / 3 + 100))
    assert row["ci_high"] == pytest.approx(100 / 3 + 0.975 * (100 - 100 / 3))
    assert row["sign_test"] == {"wins": 1, "losses": 0, "ties": 0, "p": 1.0}


def test_a_comparison_says_how_often_the_longer_text_wins(suite):
    class Judge:
        name = "judge"

        def __call__(self, prompts, first, second):
            return np.array([1, 1, -1])

    long, short = said("from 1 do +1"), said("x7")
    a, b = Side("pit", "PIT", [long, short, short]), Side("pit", "PIT", [short, long, long])
    lengths = Tables(suite.responses, Judge(), 0).compare(1.0, "table1", a, b)["lengths"]
    assert (lengths["longer_wins"], lengths["longer_n"]) == (pytest.approx(2 / 3), 3)
    assert lengths["delta"] > 0 and lengths["ci_low"] is lengths["ci_high"] is None


@pytest.mark.parametrize("exact", [True, False])
def test_iterations_are_judged_against_the_original(suite, exact):
    """Scores of 0, 0.1 and 1: a reward model as judge takes the second for a tie."""
    scores = {"1": 0.0, "2": 0.1, "3": 1.0}
    judge = ExactJudge(lambda prompt, text: types.SimpleNamespace(score=scores[text]))
    if not exact:
        judge = RewardJudge(lambda prompts, texts: [scores[text] for text in texts])
    responses = [said(digit) for digit in scores]
    traces = [Trace(responses, [0.25, -0.5])] * 3
    table = Tables(suite.responses, judge, 0).iterations(traces, [], 2)
    assert set(table) == {"rows"}
    rows = table["rows"]
    assert [row["mean_score"] for row in rows] == pytest.approx([0, 0.1, 1])
    assert [row["delta_vs_original"] for row in rows[1:]] == [100 if exact else 0, 100]
    assert [row["gap"] for row in rows[1:]] == [0.25, -0.5]
    assert rows[2]["elo"] > rows[0]["elo"]
    assert rows[2]["bradley_terry"] > 1200 > 800 > rows[0]["bradley_terry"]
    assert np.mean([row["bradley_terry"] for row in rows]) == pytest.approx(1000)
    assert rows[0]["bradley_terry_low"] is None  # alike on all prompts
    assert rows[2]["rank"] == 1 and (not exact or [row["rank"] for row in rows] == [3, 2, 1])


def test_stop_criteria_are_compared_by_score_and_tokens(suite):
    """Scores rise with the digit; a text of two words costs two tokens, and one for its end."""
    judge = ExactJudge(lambda prompt, text: types.SimpleNamespace(score=float(text[0]) / 9))
    long, short = (
        Trace([said(text) for text in texts], gaps)
        for texts, gaps in ((("1", "5 5", "3 3"), [2.0, -1.0]), (("4", "4", "8"), [0.5, 1.0]))
    )
    rows = Tables(suite.responses, judge, 0).stops([long, long, short], 2, min_gap=0.75)
    found = {(row["criterion"], row["limit"]): row for row in rows}
    assert list(found) == [
        ("iterations", 1),
        ("iterations", 2),
        ("unchanged", None),
        ("gap", 0.75),
        ("tokens", 3),  # 8 / 3
    ]
    expected = {  # iterations, tokens, nine times the score and Δ, in sum over the prompts
        ("iterations", 1): (3, 8, 5 + 5 + 4, 2),
        ("iterations", 2): (6, 16, 3 + 3 + 8, 3),
        ("unchanged", None): (5, 14, 3 + 3 + 4, 2),
        ("gap", 0.75): (5, 14, 5 + 5 + 4, 2),
        ("tokens", 3): (4, 10, 5 + 5 + 8, 3),
    }
    for key, (iterations, tokens, score, delta) in expected.items():
        row = found[key]
        assert 3 * row["iterations"] == pytest.approx(iterations), key
        assert 3 * row["tokens"] == pytest.approx(tokens), key
        assert 27 * row["mean_score"] == pytest.approx(score), key
        assert row["delta_vs_original"] == pytest.approx(100 * delta / 3), key
        assert row["ci_low"] <= row["delta_vs_original"] <= row["ci_high"]
    # The suite counts a gap from the anchor, 0.25, by improve's own limit, 0.5.
    limits = {row["criterion"]: row["limit"] for row in suite._iterations(1.0)["stops"]}
    assert limits["gap"] == 0.75


def test_self_refine_is_rated_beside_pit(suite):
    """PIT goes 0, 0.5, 1 and Self-Refine 0, 0.25, 0.75: each of the five beats all below it."""
    by_text = dict(zip("12345", (0, 0.5, 1, 0.25, 0.75), strict=True))
    judge = ExactJudge(lambda prompt, text: types.SimpleNamespace(score=by_text[text]))
    pit, refined = (
        [Trace([said(digit) for digit in digits], [gap, gap])] * 3
        for digits, gap in (("123", 1.0), ("145", -1.0))
    )
    table = Tables(suite.responses, judge, 0).iterations(pit, refined, 2)
    assert [row["iteration"] for row in table["rows"]] == [0, 1, 2]
    assert [row["iteration"] for row in table["self_refine"]] == [1, 2]
    assert [row["rank"] for row in table["rows"]] == [5, 3, 1]
    assert [row["rank"] for row in table["self_refine"]] == [4, 2]
    assert [row["gap"] for row in table["self_refine"]] == [-1, -1]
    assert [row["mean_score"] for row in table["self_refine"]] == [0.25, 0.75]


def test_a_response_that_stopped_early_stands_for_later_ones(suite, monkeypatch):
    judge = ExactJudge(lambda prompt, text: types.SimpleNamespace(score=float(text)))
    monkeypatch.setattr(suite, "_judge", judge)
    generations = [["0", "1", "0.5"], ["0.5", "1"], ["0.5"]]
    records = [{"prompt": p, "responses": r} for p, r in zip(PROMPTS, generations, strict=True)]
    found = suite.judge_generations(records)
    assert [row["mean_score"] for row in found["scores"]] == pytest.approx([1 / 3, 5 / 6, 2 / 3])
    assert [row["win"] for row in found["comparisons"]] == pytest.approx([200 / 3, 200 / 3])


def test_a_text_is_scored_as_its_reward_model_was_trained(suite):
    for _ in range(2):  # the second time they are known
        suite.responses.rewards("rm_policy", PROMPTS[:2], ["1 2", " ".join(["1"] * 13)])
    assert suite.scored == [
        (
            "weights of rm_policy",
            [(WORDS.encode("1 2"), True), (WORDS.encode(" ".join(["1"] * 13)), False)],
            "pooling of rm_policy",
        )
    ]


def with_variants(*, complete=tuple(stage.name for stage in MORE), **fields):
    return suite_of(EvaluationConfig(iterations=2, sweep=(0.5, 1.0), **fields), MORE, complete)


def test_other_complete_stages_are_compared_without_being_named():
    suite = with_variants(controls=(("Longer", "longer"),))
    assert [row["name"] for row in suite._comparisons(1.0)][5:] == [
        "first vs Original",
        "first vs Self-Refine",
        "PIT vs first",
        "apart vs Original",
        "apart vs Self-Refine",
        "PIT vs apart",
        "Policy re-sampled vs Original",
        "PIT vs Policy re-sampled",
        "Longer vs Original",
        "PIT vs Longer",
        "third vs Original",
        "PIT vs third",
    ]
    kinds = {row["name"]: (row["group"], row["first"]) for row in suite._comparisons(1.0)}
    assert kinds["first vs Self-Refine"] == ("table2", "first_only")
    assert kinds["apart vs Original"] == ("table2", "ablation")  # of another reward
    assert [row["name"] for row in suite._scores(1.0)][3:] == ["Longer", "third", "first", "apart"]
    said = {(row["group"], row["label"]): row["stage"] for row in suite._variants()}
    assert said["control", "Longer"] == "longer" and said["table2", "PIT"] == "rl_pit"
    assert said["reward_models", "rm_pair"] == "rm_pair"
    none = with_variants(complete=OURS)
    assert len(none._comparisons(1.0)) == 7 and none._variants() == []


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_is_sampled_scored_or_judged_twice(monkeypatch, exact):
    """The whole report, whose tables and figures come back to the same responses."""
    judged = []

    def scores(judge, prompts, texts):
        judged.extend(zip(prompts, texts, strict=True))
        return np.zeros(len(texts))

    monkeypatch.setattr(ExactJudge if exact else RewardJudge, "scores", scores)
    monkeypatch.setattr(intervals, "mean", lambda *_: (0.0, 0.0))  # which takes its time
    dataset = {} if exact else {"kind": "preferences", "path": "unused"}
    suite = suite_of(
        EvaluationConfig(iterations=2, sweep=(0.5, 1.0), controls=(("SFT", "sft_policy"),)),
        MORE,
        (*OURS, *(stage.name for stage in MORE)),
        dataset=dataset,
    )
    results, samples = suite._judged(), suite._samples()
    # Five draws of four policies at two temperatures, and the second draw at 0.5 too; of equal
    # lengths, y_0 and two improvements are three draws, of which other tables have two.
    sampled = [(model, key, sampling) for model, _, key, sampling in suite.calls]
    assert len(sampled) == len(set(sampled)) == 11 + 2
    # PIT, two others and Self-Refine at two temperatures; two and three more in two figures.
    improved = [(models, key, config) for models, _, _, _, key, config in suite.improvements]
    assert len(improved) == len(set(improved)) == 8 + 4 + 6
    assert judged and len(judged) == len(set(judged))
    # R_P reads each text that is a draw, or that it judges, once.
    read = sum(len(found) for _, found, _ in suite.scored)
    assert read == len(suite.responses._rewards) > 9
    assert len(results["comparisons"]) > 30 and len(samples) == 3
    names = [row["name"] for row in results["ground_truth"]]
    assert names == (["R_P (rm_policy)"] if exact else [])
    # R_PIT scores what the table of iterations shows, and nothing else.
    scored = {models[0] for models, *_ in improved if "weights of rm_gap" in models}
    assert scored == {"weights of rl_pit", "weights of rl_policy"}


def test_best_of_n_is_drawn_as_often_as_it_is_allowed():
    """y_0 and two improvements of equal lengths are three draws, of which two are always there."""
    for best_of, draws, shown in ((0, 2, 0), (1, 2, 2), (2, 2, 2), (3, 3, 2), (9, 3, 2)):
        suite = with_variants(temperatures=(0.5,), best_of=best_of)
        suite._comparisons(0.5)
        assert len(suite._budgets(0.5)) == shown
        policy = {call[2] for call in suite.calls if call[0] == "weights of rl_policy"}
        assert policy == {("evaluation", "rl_policy", draw) for draw in range(draws)}, best_of
    records = [{"prompt": PROMPTS[0], "responses": ["1 2", "3"]}]
    assert "has no further draws" in suite.judge_generations(records)["description"]
    assert with_variants(best_of=0).judge_generations(records)["description"] == ""


def test_without_self_refine_nothing_is_refined():
    suite = with_variants(self_refine=False)
    names = [row["name"] for row in suite._comparisons(1.0)]
    assert "first vs Original" in names and not any("Self-Refine" in name for name in names)
    assert set(suite._iterations(1.0)) == {"rows", "stops"} and len(suite._sweep()["series"]) == 2
    assert {call[-1].method for call in suite.improvements} == {"pit"}


def test_every_reward_model_has_its_rows(monkeypatch):
    suite = with_variants()
    scores = {
        "rm_policy": ([3.0, 0.0, 1.0], [1.0, 1.0, 0.0]),
        "rm_policy_2": ([1.0] * 3, [2.0] * 3),
    }
    monkeypatch.setattr(suite.pairs, "policy_rewards", scores.get)
    gaps = {
        name: {pair: np.full(3, value) for pair, value in zip(GAP_PAIRS, values, strict=True)}
        for name, values in (("rm_gap", (4, 3, 2, 1)), ("rm_pair", (1, 2, 3, 4)))
    }
    monkeypatch.setattr(suite.pairs, "gap_rewards", gaps.get)
    rows, figure2 = suite._reward_model_rows()
    assert [(row["name"], pytest.approx(row["accuracy"])) for row in rows] == [
        ("R_P", 2 / 3),
        ("R_PIT", 1),
        ("R_P(y1) - R_P(y2)", 2 / 3),
        ("rm_policy_2", 0),
        ("difference of rm_policy_2", 0),
        ("rm_pair", 0),
    ]
    assert figure2["wl"] == [4, 4, 4]
    # (|4 - 3| + |2 - 1|) / |4 - 1|, and by construction.
    assert [row["degeneration"] for row in (rows[1], rows[2])] == pytest.approx([2 / 3, 1])


def test_several_supervised_pit_models_are_compared_on_the_sft_policys_responses():
    suite = with_variants(complete=("sft_pit", "thinks"), temperatures=(0.5,))
    figure, rows = suite._supervised_pit()
    assert [(row["name"], row["group"]) for row in rows] == [
        ("PIT (SFT) vs Original (SFT)", "figure5"),
        ("PIT (SFT, CoT) vs Original (SFT)", "figure5"),
        ("Self-Refine (SFT) vs Original (SFT)", "figure5"),
        ("PIT (SFT) vs PIT (SFT, CoT)", "figure5"),
        ("PIT (SFT) vs Self-Refine (SFT)", "figure5"),
    ]
    assert list(figure["series"]) == [row["name"] for row in rows[:3]]
    assert figure["temperatures"] == [0.5, 1.0]
    # Each model once at each temperature: the table's are among the figure's.
    asked = [(c[0][0], c[-1].method, c[-1].sampling.temperature) for c in suite.improvements]
    names = (("sft_pit", "pit"), ("thinks", "pit"), ("sft_policy", "self_refine"))
    assert sorted(asked) == sorted(
        (f"weights of {name}", method, t) for name, method in names for t in (0.5, 1.0)
    )
    assert {call[0] for call in suite.improvements if "reflects" in call[0]} == {
        ("weights of thinks", "reflects")
    }
    assert [call[0] for call in suite.calls] == ["weights of sft_policy"]
    assert with_variants(complete=OURS)._supervised_pit() == ({}, [])
