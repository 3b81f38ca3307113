"""The report's section on chosen checkpoints."""

from __future__ import annotations

from pit_jax.report import choices, sections
from pit_jax.report import write as report
from pit_jax.report.blocks import Code, Table

RECORD = {
    "stage": "rl_policy",
    "proposed": 20,
    "chosen": 40,
    "checkpoints": [
        {"step": 20, "kl": 1.0, "kl_error": 0.5, "reward": 0.25, "reward_error": 0.125}
        | {"ended": 0.875, "group": 1, "candidate": True, "chosen": False},
        {"step": 40, "kl": 3.0, "kl_error": 0.0, "reward": 0.5, "reward_error": 0.0}
        | {"ended": 1.0, "group": 2, "candidate": True, "chosen": True},
        {"step": 60, "kl": None, "kl_error": None, "reward": 9.0, "reward_error": 0.0}
        | {"ended": 1.0, "group": None, "candidate": False, "chosen": False},
    ],
    "samples": [
        {
            "prompt": "Say yes.",
            "reference": reference,
            "responses": [
                {"step": 20, "text": "<b>yes", "reward": 0.5, "ended": True},
                {"step": 40, "text": "yes yes", "reward": None, "ended": False},
            ],
        }
        for reference in ("no", None)
    ],
}


def test_checkpoints_are_a_table_and_samples_of_each_candidate_are_folded():
    table, *samples = choices.section({"choices": [RECORD]}, {}).blocks
    assert isinstance(table, Table)
    assert [[str(cell).replace("\u00a0", " ") for cell in row] for row in table.rows] == [
        ["20", "candidate", "1", "1.000 [0.020, 1.980]", "0.250 [0.005, 0.495]", "87.5"],
        ["40", "chosen", "2", "3.000 [3.000, 3.000]", "0.500 [0.500, 0.500]", "100.0"],
        ["60", "", "–", "–", "9.000 [9.000, 9.000]", "100.0"],
    ]
    assert "Step 20 was proposed." in table.caption
    assert samples == [
        Code(
            "Prompt: Say yes.\nReference: no\nResponse (reward 0.500): <b>yes\n\n"
            "Prompt: Say yes.\nResponse (reward 0.500): <b>yes",
            title="Samples of rl_policy at step 20",
        ),
        Code(
            "Prompt: Say yes.\nReference: no\nResponse (reward –, didn't end): yes yes\n\n"
            "Prompt: Say yes.\nResponse (reward –, didn't end): yes yes",
            title="Samples of rl_policy at step 40",
        ),
    ]


def test_the_rule_is_explained_once():
    tables = [
        block
        for block in choices.section({"choices": [RECORD, RECORD]}, {}).blocks
        if isinstance(block, Table)
    ]
    assert ["Appendix F" in table.caption for table in tables] == [False, True]


def test_without_a_choice_there_is_no_section(tmp_path):
    for results in ({}, {"choices": []}):
        assert sections.build(results)[0] == []
    report.write_report({"choices": [RECORD]}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Choice of checkpoints" in page and "&lt;b&gt;yes" in page
    assert page.count("<details>") == 2
