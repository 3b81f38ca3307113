"""What a report opens with: the words, the verdict and the warnings, whoever was the judge."""

import pytest

from pit_jax.report import cautions, formatting, opening, write
from pit_jax.report.blocks import Paragraph, Terms, Tiles


def row(first, second, delta, half=4.0, group="table1", judge="checker", name="", **more):
    return {
        "name": name or f"{first} vs {second}",
        **{"first": first, "second": second, "temperature": 1.0, "judge": judge, "group": group},
        **{"win": 50.0, "lose": 50.0 - delta, "tie": delta, "delta": delta, "n": 300},
        **{"ci_low": delta - half, "ci_high": delta + half},
        **more,
    }


def blocks(results, kind):
    return [block for block in opening.section(results, {}).blocks if isinstance(block, kind)]


def test_the_report_leads_with_pit_against_the_original():
    rows = [
        row("original", "sft", 20.0),
        row("original", "chosen", -50.0, name="Original vs y_w"),
        row("pit", "original", 12.0, temperature=0.4),
        row("pit", "resampled", 9.0, group="control", name="PIT vs Policy re-sampled"),
        row("pit", "original", 10.0, name="PIT vs Original"),
        row("pit", "self_refine", 2.0, name="PIT vs Self-Refine"),
    ]

    results = {"comparisons": [*rows[:2], *rows[3:], rows[2]]}
    (tiles,) = blocks(results, Tiles)
    assert [tile.label for tile in tiles.tiles] == [
        *("PIT vs Original", "PIT vs Self-Refine", "PIT vs Policy re-sampled", "Original vs y_w")
    ]
    assert tiles.tiles[0].value == "Δ +10.0"
    assert tiles.tiles[0].note == "95% interval +6.0 to +14.0, 300 prompts: clearly better"
    (verdict,) = blocks(results, Paragraph)
    assert verdict.leads and verdict.text == (
        "PIT improves the original responses: on 300 held-out prompts at temperature 1, the exact "
        "checker prefers PIT’s response for 50.0%, the original for 40.0% and neither for 10.0%, "
        "which is Δ +10.0 points, 95% interval +6.0 to +14.0. PIT’s are clearly better than a "
        "second sample of the policy, which costs about as much. PIT’s don’t differ clearly from "
        "Self-Refine’s."
    )


@pytest.mark.parametrize(
    ("delta", "begins"),
    [
        (-10.0, "PIT makes the original responses worse: on 300"),
        (3.0, "Whether PIT improves the original responses can’t be told from this run: on 300"),
    ],
)
def test_a_verdict_says_no_more_than_the_interval(delta, begins):
    (verdict,) = blocks({"comparisons": [row("pit", "original", delta)]}, Paragraph)
    assert verdict.text.startswith(begins)


def test_saved_generations_have_a_verdict_of_their_own():
    results = {
        "comparisons": [
            row("iteration", "original", 9.0, name="Iteration 1 vs Original", temperature=None)
        ]
    }
    (verdict,) = blocks(results, Paragraph)
    assert verdict.text.startswith("Iteration 1 improves the original responses: on 300 prompts, ")
    (terms,) = blocks(results, Terms)
    assert dict(terms.terms)["Original"] == "The first response of each row of the file."


@pytest.mark.parametrize(
    ("judge", "of_judge", "of_score"),
    [
        ("checker", "The exact checker of the synthetic data", "Steps."),
        ("R_P (rm_policy)", "R_P (rm_policy), this run’s own reward model", "The reward that"),
        ("R_PIT (rm_gap)", "R_PIT (rm_gap), this run’s own gap reward model, which reads", None),
        ("language model m (dialogue)", "Language model m (dialogue), which is shown both", None),
        ("DeBERTa", "DeBERTa.", None),
    ],
)
def test_the_words_come_first_and_name_the_true_judge(judge, of_judge, of_score):
    results = {
        "comparisons": [
            row("pit", "original", 9.0, judge=judge),
            row("original", "chosen", 9.0, judge=judge),
            row("original", "sft", 9.0, judge=judge),
        ],
        "task": "Sums.",
        **({"score": "Steps."} if judge == "checker" else {}),
        "subjects": {"policy": "rl_policy_2", "pit": "rl_pit", "sft": "sft_policy"},
    }
    first = opening.section(results, {}).blocks[0]
    assert isinstance(first, Terms)
    words = dict(first.terms)
    scored = [] if of_score is None else ["Score"]
    assert list(words) == ["Task", "Judge", *scored, "Original", "PIT", "y_w"]
    assert words["Judge"].startswith(of_judge)
    assert words.get("Score", "").startswith(of_score or "")
    assert "(stage rl_policy_2)" in words["Original"] and "called RL" in words["Original"]
    (others,) = opening.terms(results, {}).blocks
    assert list(dict(others.terms)) == ["SFT", "Δ", "R_P and R_PIT"]


def test_a_weak_reward_model_is_named():
    models = [
        {"name": "R_P", "accuracy": 0.55, "n": 300},
        {"name": "R_PIT", "accuracy": 0.61, "n": 300, "degeneration": 0.05},
        {"name": "R_P(y1) - R_P(y2)", "accuracy": 0.55, "n": 300},
    ]
    weak, ignores = cautions.cautions({"reward_models": models})
    assert weak.startswith("R_P is weak: it agrees with the data on 55.0% of 300 held-out pairs")
    assert ignores.startswith("R_PIT hardly looks at its reference (reference moves 0.05)")


def test_a_judge_that_hardly_agrees_with_the_data_is_named():
    models = [{"name": name, "accuracy": 0.49, "n": 500} for name in ("R_PIT (rm_2)", "other")]
    results = {"comparisons": [row("pit", "self", 1.0, judge="R_PIT (rm_2)")]}
    (weak,) = cautions.cautions(results | {"reward_models": models})
    assert weak.startswith("the judge, R_PIT (rm_2), agrees with the data on 49.0% of 500 held-out")
    models[0]["accuracy"] = 0.6
    assert cautions.cautions(results | {"reward_models": models}) == []


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"seed": 0, "num_prompts": 1200}, "1,200 held-out prompts"),
        ({"seeds": [0, 1]}, "held-out prompts"),
        ({"num_prompts": 1}, "1 prompt"),
        ({"num_prompts": 2}, "2 prompts"),
    ],
)
def test_only_the_prompts_of_a_run_are_held_out(results, said):
    assert formatting.held_out(results) == said


def test_a_stage_that_went_on_with_a_lower_rate_is_named():
    rate, clip = "rl_pit.optimizer.learning_rate", "rl_pit.optimizer.clip_norm"
    changes = [
        {"step": 200, "name": rate, "from": 0.003, "to": 0.001},
        {"step": 1400, "name": rate, "from": 0.001, "to": 1e-05},
        {"step": 1400, "name": clip, "from": 1.0, "to": 0.5},
    ]
    stages = [{"name": "sft_pit"}, {"name": "rl_pit", "changes": changes}]
    more = "; config.gin has the last value alone"
    assert cautions.cautions({"stages": stages}) == [
        "rl_pit was trained with learning_rate 0.003 up to step 200, 0.001 up to step 1,400 and "
        f"1e-05 from then on{more}",
        f"rl_pit was trained with clip_norm 1.0 up to step 1,400 and 0.5 from then on{more}",
    ]


@pytest.mark.parametrize(
    ("delta", "parameters", "said"),
    [
        (
            -30.0,
            100_000,
            "it makes the policy's responses worse (Δ -30.0), and a policy of 100,000",
        ),
        (-30.0, 7e9, "it makes the policy's responses worse (Δ -30.0). That"),
        (3.0, 1.1e8, "a policy of 110M parameters doesn't follow a prompt that asks for feedback"),
        (3.0, 7e9, None),
        (3.0, None, None),
    ],
)
def test_self_refine_out_of_its_depth_is_named(delta, parameters, said):
    results = {
        "comparisons": [row("self_refine", "original", delta)],
        "subjects": {"policy": "rl_policy"},
        "stages": [
            {"name": "other", "parameters": 5},
            {"name": "rl_policy", "parameters": parameters},
        ],
    }
    found = cautions.cautions(results)
    assert len(found) == (said is not None) and (said or "") in "".join(found)
    assert cautions.cautions({**results, "comparisons": []}) == []


def test_cut_responses_and_few_prompts_are_named():
    score = {"name": "PIT", "temperature": 0.4, "eos_rate": 0.88}
    (cut,) = cautions.cautions({"scores": [score, score | {"eos_rate": 0.9}]})
    assert cut.startswith("12% of the responses of PIT at temperature 0.4 were cut off")
    assert cautions.few_prompts({"num_prompts": 99})[0].endswith("differences can't be told")
    assert cautions.few_prompts({"num_prompts": 100}) == [] == cautions.few_prompts({})


def test_a_flag_in_a_warning_stays_in_one_piece_and_is_escaped(tmp_path):
    write.write_report({"warnings": ["try --gin.A=<b> now, a - b"]}, tmp_path)
    found = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<li>try <span class="flag">--gin.A=&lt;b&gt;</span> now, a - b</li>' in found
