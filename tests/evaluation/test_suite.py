"""The evaluation of a tiny trained run: each table from its own account of samples and scores."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest

from pit_jax.data.synthetic import instructions
from pit_jax.evaluation.judges import ExactJudge, RewardJudge, RewardJudgeConfig, judge_for
from pit_jax.evaluation.scoring import GAP_PAIRS
from pit_jax.evaluation.suite import EvaluationConfig, Suite
from pit_jax.method.curriculum import Round
from pit_jax.report import paper, sections
from pit_jax.report.blocks import Table
from tests import tiny_runs

CONFIG = EvaluationConfig(
    split="dev",
    num_prompts=12,
    temperatures=(1.0,),
    sweep=(1.0,),
    iterations=2,
    num_samples=3,
    controls=(("SFT again", "sft_policy"),),
    ablations=(("PIT's SFT", "sft_pit"),),
)


@pytest.fixture(scope="module")
def run(trained):
    return tiny_runs.on_one_device(tiny_runs.config(trained))


@pytest.fixture(scope="module")
def suite(run):
    return Suite(run, CONFIG)


@pytest.fixture(scope="module")
def results(suite):
    return suite.results()


@pytest.fixture(scope="module")
def examples(run):
    return run.data.examples("dev")[:12]


def scores_of(run, examples, responses):
    vocabulary = run.role("policy").vocabulary
    texts = [vocabulary.decode(response.tokens) for response in responses]
    return np.array(
        [instructions.check("drafts", e.prompt, text).score for e, text in zip(examples, texts)]
    )


def test_only_the_prompts_asked_for_are_looked_at(results):
    assert results["num_prompts"] == 12
    told = "12 prompts of the dev split, judged by the exact checker; seed 0"
    assert told in results["description"]
    assert {row["n"] for row in results["comparisons"]} == {12}


def test_comparisons_of_every_table(results):
    names = {row["name"]: row["group"] for row in results["comparisons"]}
    assert names == {
        "RL vs SFT": "table1",
        "Original vs y_w": "table1",
        "PIT vs Original": "table1",
        "Self-Refine vs Original": "table1",
        "PIT vs Self-Refine": "table1",
        "PIT's SFT vs Original": "table2",
        "PIT's SFT vs Self-Refine": "table2",
        "PIT vs PIT's SFT": "table2",
        "Policy re-sampled vs Original": "control",
        "PIT vs Policy re-sampled": "control",
        "SFT again vs Original": "control",
        "PIT vs SFT again": "control",
    }
    for row in results["comparisons"]:
        assert row["win"] + row["lose"] + row["tie"] == pytest.approx(100)
        assert row["delta"] == pytest.approx(row["win"] - row["lose"])
        assert row["ci_low"] <= row["delta"] <= row["ci_high"]
        assert row["temperature"] == 1.0 and row["judge"] == "checker"


def test_the_original_against_the_chosen_response(results, suite, run, examples):
    original = scores_of(run, examples, suite.policy("rl_policy", 1.0))
    chosen = np.array([instructions.check("drafts", e.prompt, e.chosen).score for e in examples])
    (row,) = [row for row in results["comparisons"] if row["name"] == "Original vs y_w"]
    assert row["win"] == pytest.approx(100 * np.mean(original > chosen))
    assert row["lose"] == pytest.approx(100 * np.mean(original < chosen))
    assert row["lose"] > 0


def test_scores_are_means_of_the_checker(results, suite, run, examples):
    rows = {row["name"]: row for row in results["scores"]}
    assert set(rows) == {"SFT policy", "RL policy (Original)", "PIT", "SFT again", "PIT's SFT"}
    responses = suite.policy("rl_policy", 1.0)
    row = rows["RL policy (Original)"]
    assert row["mean_score"] == pytest.approx(scores_of(run, examples, responses).mean())
    assert row["eos_rate"] == np.mean([response.ended for response in responses])
    assert row["mean_length"] == np.mean([len(response.tokens) for response in responses])


def test_samples_are_drawn_once_and_draws_differ(suite):
    assert suite.policy("rl_policy", 1.0) is suite.policy("rl_policy", 1.0)
    assert suite.policy("rl_policy", 1.0) != suite.policy("rl_policy", 1.0, draw=1)
    assert suite.policy("rl_policy", 1.0) != suite.policy("sft_policy", 1.0)


def test_iterations_improve_on_the_original(results, suite, run, examples):
    ((table,),) = ([t for t in results["iterations"] if t["temperature"] == 1.0],)
    assert [row["iteration"] for row in table["rows"]] == [0, 1, 2]
    traces = suite.improved("rl_pit", 1.0, 2)
    for k, row in enumerate(table["rows"]):
        responses = [trace.responses[k] for trace in traces]
        assert row["mean_score"] == pytest.approx(scores_of(run, examples, responses).mean())
        if k:
            changed = [t.responses[k].tokens != t.responses[k - 1].tokens for t in traces]
            assert row["changed"] == np.mean(changed)
            assert row["gap"] == pytest.approx(np.mean([t.gaps[k - 1] for t in traces]))
    assert [trace.responses[0] for trace in traces] == suite.policy("rl_policy", 1.0)
    refined, rated = table["self_refine"], [*table["rows"], *table["self_refine"]]
    assert [row["iteration"] for row in refined] == [1, 2]
    traces = suite.improved("rl_policy", 1.0, 2, "self_refine")
    for k, row in enumerate(refined, 1):
        responses = [trace.responses[k] for trace in traces]
        assert row["mean_score"] == pytest.approx(scores_of(run, examples, responses).mean())
        assert row["gap"] == pytest.approx(np.mean([t.gaps[k - 1] for t in traces]))
    # Ratings move around 1000 and sum up to what they started with.
    assert np.mean([row["elo"] for row in rated]) == pytest.approx(1000)
    for row in rated:
        assert row["rank"] == 1 + sum(other["elo"] > row["elo"] for other in rated)


@pytest.mark.parametrize("fields", [{"stop_unchanged": True}, {"min_gap": 0.0}], ids=str)
def test_stop_criteria_end_where_algorithm_2_does(results, suite, run, fields):
    """Improved anew with the criterion, by the same draws."""
    name = "unchanged" if "stop_unchanged" in fields else "gap"
    (row,) = [r for r in results["iterations"][0]["stops"] if r["criterion"] == name]
    sampling = dataclasses.replace(run.config.improve.sampling, temperature=1.0)
    config = dataclasses.replace(run.config.improve, iterations=2, sampling=sampling, **fields)
    improver = run.improver(run.load_frozen("rl_pit"), run.load_frozen("rm_gap"), "rm_gap")
    original, inputs = suite.policy("rl_policy", 1.0), suite.responses
    key = run.key("evaluation", "rl_pit", "pit")
    traces = improver(inputs.prompts, original, inputs.rows, key, config)
    sampled = [trace.responses[1:] for trace in traces]
    assert row["iterations"] == pytest.approx(np.mean([len(each) for each in sampled]))
    tokens = [sum(len(r.tokens) + r.ended for r in each) for each in sampled]
    assert row["tokens"] == pytest.approx(np.mean(tokens))
    checked = [
        instructions.check("drafts", p, t.responses[t.last].text)
        for p, t in zip(inputs.prompts, traces)
    ]
    assert row["mean_score"] == pytest.approx(np.mean([each.score for each in checked]))


@pytest.mark.parametrize("stage", ["rm_policy", "rm_gap"])
def test_a_reward_model_of_the_run_judges(run, stage):
    """R_PIT's verdicts from the trees that Table 4 reads, R_P's from its own scores."""
    judge = RewardJudgeConfig(stage)
    made = Suite(run, dataclasses.replace(CONFIG, judge=judge))
    examples, prompts = made.responses.examples, made.responses.prompts
    texts = [[e.chosen for e in examples], [e.rejected for e in examples]]
    if stage == "rm_gap":
        pairs = made.pairs.gap_rewards(stage)
        difference, name = pairs["wl"] - pairs["lw"], "R_PIT (rm_gap)"
        found = made.responses.gaps(stage, prompts, *texts)
        np.testing.assert_allclose(found, pairs["wl"], atol=1e-5)
    else:
        scores = [made.responses.rewards(stage, prompts, each) for each in texts]
        difference, name = scores[0] - scores[1], "R_P (rm_policy)"
    expected = np.where(np.abs(difference) <= np.log(0.55 / 0.45), 0, np.sign(difference))
    row = made.judge_generations(
        [
            {"prompt": x, "responses": [a, b], "group": e.group}
            for x, a, b, e in zip(prompts, *texts, examples, strict=True)
        ]
    )["comparisons"][0]
    assert row["judge"] == name
    # The second response against the first.
    assert row["win"] == pytest.approx(100 * (expected < 0).mean())
    assert row["lose"] == pytest.approx(100 * (expected > 0).mean())
    assert made.pairs.judge_row(made._judge)["accuracy"] == pytest.approx((expected > 0).mean())


def test_best_of_n_by_an_account_of_its_own(results, suite, run, examples):
    """From whole draws of the policy, of which the suite samples no more than it needs."""
    whole = [suite.policy("rl_policy", 1.0, draw) for draw in range(8)]
    traces = suite.improved("rl_pit", 1.0, 2)
    checked = [
        [scores_of(run, [example] * len(own), own) for own in (draws, trace.responses)]
        for example, draws, trace in zip(examples, zip(*whole), traces, strict=True)
    ]
    rewards = [
        suite.responses.rewards("rm_policy", [e.prompt] * 8, [d.text for d in draws])
        for e, draws in zip(examples, zip(*whole), strict=True)
    ]
    gap_model, anchor = run.load_frozen("rm_gap"), run.anchor("rm_gap")
    improver = run.improver(run.load_frozen("rl_pit"), gap_model, "rm_gap")
    for k, row in enumerate(results["budgets"], 1):
        numbers, deltas = [], []
        for i, example in enumerate(examples):
            left = sum(len(r.tokens) + r.ended for r in traces[i].responses[: k + 1])
            number = 0
            for draws in whole:
                left -= len(draws[i].tokens) + draws[i].ended
                if left < 0:
                    break
                number += 1
            best = 0
            for j in range(1, k + 1):
                pair = ([each] for each in (traces[i].responses[j], traces[i].responses[best]))
                best = j if improver.gaps([example.prompt], *pair)[0] > 0 else best
            drawn, improved = checked[i]
            chosen = drawn[max(range(number), key=lambda n: (rewards[i][n], -n))]
            pairs = ((improved[best], chosen), (improved[k], chosen))
            pairs += ((chosen, drawn[0]), (drawn[number - 1], drawn[0]))
            deltas.append([np.sign(a - b) for a, b in pairs])
            numbers.append(number)
        assert (row["iteration"], row["draws"]) == (k, np.mean(numbers))
        found = [each["delta"] for each in row["comparisons"]]
        assert found == pytest.approx(list(100 * np.mean(deltas, axis=0)))
    assert anchor != 0 and k == 2 and max(numbers) > 2


def test_gaps_are_scores_of_the_gap_model_as_figures_2_and_4_have_them(
    results, suite, run, examples
):
    assert run.anchor("rm_gap") != 0
    rows = results["iterations"][0]["rows"]
    traces, role = suite.improved("rl_pit", 1.0, 2), run.role("gap_reward")
    for k in (1, 2):
        scores = role.sampler.score(
            run.load_frozen("rm_gap"),
            [
                role.layout.gap_prompt(e.prompt, role.reference(t.responses[k - 1]))
                for e, t in zip(examples, traces, strict=True)
            ],
            role.widths.gap,
            [trace.responses[k] for trace in traces],
            "sum",
        )
        assert rows[k]["gap"] == pytest.approx(np.mean(scores), rel=1e-4, abs=1e-4)


def test_rows_that_share_a_prompt_count_as_one(suite, monkeypatch):
    """With one prompt to all rows, each end is 0.975 of the way from the mean to the bound."""
    monkeypatch.setattr(suite.responses, "groups", ["the same"] * 12)

    def check(row, mean, low, high):
        assert row["ci_low"] == pytest.approx(mean - 0.975 * (mean - low))
        assert row["ci_high"] == pytest.approx(mean + 0.975 * (high - mean))

    for row in suite._comparisons(1.0):
        check(row, row["delta"], -100, 100)
    for row in suite._scores(1.0):
        check(row, row["mean_score"], 0, 1)
    table = suite._iterations(1.0)
    for row in table["rows"][1:] + table["self_refine"]:
        check(row, row["delta_vs_original"], -100, 100)
        assert row["elo_low"] is row["elo_high"] is None
    for row in suite._reward_model_rows()[0]:
        check(row, row["accuracy"], 0, 1)


def test_saved_generations_that_share_a_prompt_count_as_one(suite):
    prompt, right, half = "from 4 do +3 x7", "x7 9 +3 7 from 4", "x7 ? +3 7 from 4"
    results = suite.judge_generations([{"prompt": prompt, "responses": [half, right]}] * 40)
    (row,) = results["comparisons"]
    assert (row["win"], row["ci_low"], row["ci_high"]) == (100, pytest.approx(-95), 100)
    # One prompt of score 1, and another, with a weight of 0.975 at most, of 0.
    assert results["scores"][1]["ci_low"] == pytest.approx(0.025)


def test_table_4_reads_both_reward_models(results, run, examples):
    policy, gap, difference = results["reward_models"]
    assert (policy["name"], policy["n"], gap["name"], gap["n"]) == ("R_P", 12, "R_PIT", 12)

    role = run.role("policy")
    layout, widths = role.layout, role.widths
    expected = {
        a + b: role.sampler.score(
            run.load_frozen("rm_gap"),
            [layout.gap_prompt(e.prompt, e.chosen if b == "w" else e.rejected) for e in examples],
            widths.gap,
            [_response(run, e.chosen if a == "w" else e.rejected) for e in examples],
            "sum",
        )
        for a, b in GAP_PAIRS
    }
    for pair in GAP_PAIRS:
        np.testing.assert_allclose(results["figure2"][pair], expected[pair], rtol=1e-4, atol=1e-4)
        assert gap["means"][pair] == pytest.approx(np.asarray(expected[pair]).mean(), abs=1e-4)
    assert gap["accuracy"] == np.mean(np.asarray(expected["wl"]) > np.asarray(expected["lw"]))

    rewards = [
        role.sampler.score(
            run.load_frozen("rm_policy"),
            [layout.reward_prompt(e.prompt) for e in examples],
            widths.reward,
            [_response(run, getattr(e, name)) for e in examples],
            "sum",
        )
        for name in ("chosen", "rejected")
    ]
    assert policy["accuracy"] == np.mean(rewards[0] > rewards[1])
    # Whichever of the pair R_P prefers, its gap is positive one way round and negative the other.
    assert (difference["name"], difference["n"]) == ("R_P(y1) - R_P(y2)", 12)
    assert difference["accuracy"] == policy["accuracy"]
    assert set(difference["inequalities"].values()) == {policy["accuracy"]}
    assert difference["means"]["wl"] == pytest.approx(np.mean(rewards[0] - rewards[1]), rel=1e-5)
    assert difference["means"]["ww"] == difference["means"]["ll"] == 0
    assert difference["degeneration"] == pytest.approx(1)


def _response(run, text):
    from pit_jax.method.sampler import Response

    return Response(run.role("policy").vocabulary.encode(text), True)


def test_figures_show_steps_and_temperatures(results):
    sweep = results["figure3"]
    assert sweep["temperatures"] == [1.0]
    assert set(sweep["series"]) == {
        "PIT vs Original",
        "Policy re-sampled vs Original",
        "Self-Refine vs Original",
        "PIT vs Self-Refine",
    }
    assert results["figure5"] == {} and {v["group"] for v in results["variants"]} == {
        "table2",
        "control",
    }
    assert [curve["round"] for curve in results["figure4"]] == [
        "round 0: references from data",
        "round 1: references from policy",
    ]
    assert [curve["steps"] for curve in results["figure4"]] == [[1], [2, 3, 4]]
    curves = {curve["stage"]: curve for curve in reversed(results["curves"])}
    assert list(reversed(curves)) == [stage.name for stage in tiny_runs.config("x").stages]
    assert curves["rl_pit"]["metric"] == "score" and curves["rm_gap"]["metric"] == "loss"
    assert curves["pretrain"]["steps"] == [1, 2, 3, 4]


def test_samples_show_every_text_with_its_score(results, suite, run, examples):
    assert len(results["samples"]) == 3
    for sample, example, trace in zip(
        results["samples"], examples, suite.improved("rl_pit", 1.0, 2)
    ):
        assert (sample["prompt"], sample["chosen"]) == (example.prompt, example.chosen)
        vocabulary = run.role("policy").vocabulary
        texts = [vocabulary.decode(response.tokens) for response in trace.responses]
        assert [sample["original"], *sample["iterations"]] == texts
        expected = [instructions.check("drafts", example.prompt, text).score for text in texts]
        assert sample["scores"] == expected
        assert sample["gaps"] == [float(gap) for gap in trace.gaps]
        assert sample["rejected"] == example.rejected


def test_data_is_counted(results):
    rows = dict(map(tuple, results["data"]["rows"]))
    assert rows["examples read"] == 190
    dropped = sum(n for name, n in rows.items() if name.startswith("dropped"))
    splits = [rows[f"{split} split"] for split in ("train", "dev", "test")]
    assert dropped + sum(splits) == 190
    folds = [rows[f"fold {fold} of train"] for fold in ("sft", "rm", "rl")]
    assert sum(folds) == splits[0]


def test_data_without_a_checker_is_judged_by_the_reward_model(run, suite, examples):
    assert isinstance(suite._judge, ExactJudge)
    dataset = dataclasses.replace(run.config.dataset, kind="preferences", path="unused")
    rewards = functools.partial(suite.responses.rewards, "rm_policy")
    judge = judge_for(dataset, rewards, CONFIG.reward_model)
    assert isinstance(judge, RewardJudge) and judge.name == "R_P (rm_policy)"
    prompts, texts = [e.prompt for e in examples], [e.chosen for e in examples]
    # Over the window: cut, and read where it ends.
    long = " ".join(["from"] * 40)
    scores = judge.scores(prompts, [long, *texts[1:]])
    role = run.role("policy_reward")
    widths = role.widths
    responses = [_response(run, text) for text in texts]
    word = role.vocabulary.encode("from")[0]
    responses[0] = dataclasses.replace(responses[0], tokens=[word] * widths.response, ended=False)
    expected = role.sampler.score(
        run.load_frozen("rm_policy"),
        [role.layout.reward_prompt(prompt) for prompt in prompts],
        widths.reward,
        responses,
        "sum",
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_generations_of_different_depth(suite):
    prompt = "from 4 do +3 x7"
    right, half, wrong = "x7 9 +3 7 from 4", "x7 ? +3 7 from 4", "x7 8 +3 7 from 4"
    results = suite.judge_generations(
        [
            {"prompt": prompt, "responses": [half, right, wrong]},
            {"prompt": prompt, "responses": [half, right]},
            {"prompt": prompt, "responses": [half]},
        ]
    )
    rows = [(row["win"], row["lose"], row["tie"]) for row in results["comparisons"]]
    third = 100 / 3
    np.testing.assert_allclose(rows, [(2 * third, 0, third), (third, third, third)])
    assert [row["name"] for row in results["scores"]] == [
        "iteration 0",
        "iteration 1",
        "iteration 2",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "prod"}, r"evaluation: expected a split of \(.*\); got 'prod'$"),
        ({"iterations": 0}, "iterations: got 0, expected 1"),
        (
            {"temperatures": ()},
            r"evaluation: got temperatures=\(\), sweep=.*, expected numbers of 0",
        ),
        (
            {"temperatures": (1.0, -1)},
            r"evaluation: got temperatures=\(1.0, -1\), sweep=.*, expect",
        ),
        ({"sweep": (-0.2,)}, r"sweep=\(-0.2,\), expected numbers of 0 or more"),
    ],
)
def test_mistakes_in_a_configuration_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**fields)


def test_all_stages_that_are_evaluated():
    assert CONFIG.stages == (
        "sft_policy",
        "rl_policy",
        "rl_pit",
        "rm_policy",
        "rm_gap",
        "sft_policy",
        "sft_pit",
    )


@pytest.fixture(scope="module")
def with_ablations(trained, tmp_path_factory):
    """The comparisons of a run that has PIT models of one round each; their weights are PIT's."""
    folder = tmp_path_factory.mktemp("ablations")
    rounds = {
        "data_only": (Round("data", 4),),
        "policy_only": (Round("policy", 4), Round("data", 0)),
        "both_again": (Round("data", 2), Round("policy", 2)),
    }
    for stage in tiny_runs.config(trained).stages:
        (folder / stage.name).symlink_to(trained / stage.name)
    for name in rounds:
        (folder / name).mkdir()
        for path in (trained / "rl_pit").iterdir():
            if path.suffix == ".json":
                found = json.loads(path.read_text())
                del found["sha256"], found["name"]  # as of an earlier version
                (folder / name / path.name).write_text(json.dumps(found))
            else:
                (folder / name / path.name).symlink_to(path)
    extra = [tiny_runs.rl(name, each, task="rl_pit") for name, each in rounds.items()]
    run = tiny_runs.on_one_device(tiny_runs.with_stages(tiny_runs.config(folder), *extra))
    # Labels are the user's own words: the paper's comparison is found by the rounds of a stage.
    ablations = (("A", "data_only"), ("B", "policy_only"), ("C", "both_again"), ("D", "sft_pit"))
    config = dataclasses.replace(CONFIG, num_prompts=4, ablations=ablations)
    return Suite(run, config)._comparisons(1.0)


def test_the_papers_delta_stands_beside_the_same_comparison(with_ablations):
    theirs = {row["name"]: paper.delta(row["first"], row["second"]) for row in with_ablations}
    assert {
        name: ", ".join(f"{value} {dataset}" for dataset, value in deltas.items())
        for name, deltas in theirs.items()
    } == {
        "RL vs SFT": "",
        "Original vs y_w": "-22.66 synthetic, +50.20 HH, +74.20 Summary",
        "PIT vs Original": "+33.59 synthetic, +14.00 HH, +7.20 Summary",
        "Self-Refine vs Original": "+16.41 synthetic, +8.90 HH",
        "PIT vs Self-Refine": "+10.16 synthetic, +3.70 HH",
        "A vs Original": "+4.40 HH",
        "A vs Self-Refine": "-15.70 HH",
        "PIT vs A": "+30.10 HH",
        "B vs Original": "+0.20 HH",
        "B vs Self-Refine": "-18.90 HH",
        "PIT vs B": "+36.70 HH",
        "C vs Original": "",
        "C vs Self-Refine": "",
        "PIT vs C": "",
        "D vs Original": "",
        "D vs Self-Refine": "",
        "PIT vs D": "",
        "Policy re-sampled vs Original": "",
        "PIT vs Policy re-sampled": "",
        "SFT again vs Original": "",
        "PIT vs SFT again": "",
    }


def test_the_report_shows_the_papers_delta_of_the_suites_rows(with_ablations):
    parts, _ = sections.build({"comparisons": with_ablations})
    table, tests = [
        block
        for part in parts
        if part.title == "The curriculum"
        for block in part.blocks
        if isinstance(block, Table)
    ]
    assert [row[0] for row in tests.rows] == [row[0] for row in table.rows]
    rows = {row[0]: row[-1] for row in table.rows}
    assert table.columns[-1] == "Paper’s Δ: HH"
    assert rows["PIT vs A"] == "+30.10" and rows["PIT vs C"] == "–"


def test_results_are_plain(results):
    """The report writes them as they are: only JSON's own types."""
    assert json.loads(json.dumps(results)) == results
