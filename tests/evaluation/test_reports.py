"""Reports that are combined: read in the order of their seeds, or refused in one line."""

import json
import pathlib

import pytest

from pit_jax.errors import UserError
from pit_jax.evaluation import reports
from tests import tiny_reports


@pytest.fixture
def folders(tmp_path):
    return tiny_reports.write(tmp_path)


def change(folder, **parts):
    """Changes parts of a run's report."""
    path = pathlib.Path(folder) / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def configure(folder, before, after):
    text = json.loads((pathlib.Path(folder) / "report.json").read_text())["config_text"]
    assert before in text
    change(folder, config_text=text.replace(before, after))


def refused(folders):
    with pytest.raises(UserError) as error:
        reports.read(folders)
    assert "\n" not in str(error.value) and str(error.value).startswith("--compare: ")
    return str(error.value)


def test_runs_come_in_the_order_of_their_seeds(folders):
    found = reports.read(folders[::-1])
    assert [r["seed"] for r in found] == [0, 1, 2] and [r["folder"] for r in found] == folders
    headings = reports.headings(found)
    assert headings["title"] == "PIT on made-up data: 3 seeds"
    assert headings["description"] == (
        "256 prompts of the test split, judged by the exact checker; seeds 0, 1, 2."
    )
    assert headings["seeds"] == [0, 1, 2] and headings["runs"][2]["seconds"] == 135.0
    # Seed, directory, place of the data and mesh differ, and none of them matters.
    assert headings["warnings"] == []


def test_a_folder_without_a_report(folders, tmp_path):
    message = refused([*folders, str(tmp_path / "none")])
    assert f"{tmp_path / 'none'} has no report.json, expected the directory of a run" in message


@pytest.mark.parametrize("given", [[], [""], ["", "x"]])
def test_no_folder(given):
    assert "got '" in refused(given) and "expected run directories" in refused(given)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"seeds": [0], "title": "several", "comparisons": []}',
        '{"seed": 0, "title": "no comparison", "comparisons": []}',
        '{"seed": "0", "title": "t", "comparisons": [{"judge": "c", "group": "g"}]}',
        '{"seed": 0, "title": "t", "comparisons": [{"judge": ["c"], "group": "g"}]}',
        '{"seed": 0, "title": "t", "comparisons": [{"judge": "c"}]}',
    ],
)
def test_what_is_no_report_of_a_run(folders, text):
    path = pathlib.Path(folders[1]) / "report.json"
    path.write_text(text)
    assert f"{path} is not the report of a run, expected JSON" in refused(folders)


def test_two_runs_of_one_seed(folders):
    change(folders[2], seed=0)
    expected = f"{folders[0]} and {folders[2]} both have seed 0, expected one run of each seed"
    assert expected in refused(folders)
    assert "both have seed 1" in refused([folders[1], folders[1]])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"title": "Other\n"}, r"title is 'Other\n', expected 'PIT on made-up data' as in "),
        ({"num_prompts": 99}, "num_prompts is 99, expected 256 as in "),
        ({"subjects": {"split": "dev"}}, "split is 'dev', expected 'test' as in "),
        ({"subjects": {"pit": "rl_other"}}, "pit is 'rl_other', expected 'rl_pit' as in "),
    ],
)
def test_another_subject(folders, parts, message):
    change(folders[1], **parts)
    assert f"{folders[1]}: {message}{folders[0]}" in refused(folders)


def test_another_judge(folders):
    rows = tiny_reports.report(1)["comparisons"]
    change(folders[1], comparisons=[row | {"judge": "R_P (rm)"} for row in rows])
    assert "judge is 'R_P (rm)', expected 'checker'" in refused(folders)
    change(folders[1], comparisons=[*rows, rows[0] | {"judge": "R_P (rm)"}])
    assert "expected JSON with a title, a seed and comparisons by one judge" in refused(folders)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("iterations = 1", "iterations = 2", "EvaluationConfig.iterations is '2', expected '1'"),
        ("test_size = 256", "test_size = 9", "DatasetConfig.test_size is '9', expected '256'"),
    ],
)
def test_another_setting_of_evaluation(folders, before, after, message):
    configure(folders[2], before, after)
    assert f"{folders[2]}: {message} as in {folders[0]}" in refused(folders)


def test_how_a_language_model_is_asked_may_differ_but_not_what(folders):
    fields = {"url": "'http://a/v1'", "concurrency": 8, "prompts": "'dialogue'", "max_tokens": 9}
    lines = "".join(f"endpoint.EndpointConfig.{key} = {value}\n" for key, value in fields.items())
    before = "suite.EvaluationConfig.iterations = 1\n"
    for folder in folders:
        configure(folder, before, before + lines)
    configure(folders[1], "http://a/v1", "http://b/v1")
    configure(folders[1], "concurrency = 8", "concurrency = 1")
    assert reports.warnings(reports.read(folders)) == []
    configure(folders[1], "max_tokens = 9", "max_tokens = 7")
    assert "EndpointConfig.max_tokens is '7', expected '9'" in refused(folders)


def test_settings_that_add_rows_may_differ(folders):
    configure(folders[2], "('First RL only', 'rl_pit_first_only'),", "")
    assert reports.warnings(reports.read(folders)) == []


def test_other_settings_of_training_are_warned_of(folders):
    configure(folders[1], "beta = 0.05", "beta = 0.5")
    configure(folders[2], "BATCH_SIZE = 8", "BATCH_SIZE = 16")
    assert reports.warnings(reports.read(folders)) == [
        "seed 1 has another rl_pit/PPOConfig.beta than seed 0: 0.5, not 0.05",
        "seed 2 has another rl_pit/RLStage.batch_size than seed 0: 16, not 8",
    ]


def test_many_warnings_are_counted(folders):
    more = "".join(f"rl_pit/ppo.PPOConfig.a{i} = 0\n" for i in range(20))
    for folder, text in zip(folders, (more, more, more.replace("= 0", "= 1")), strict=True):
        configure(folder, "rl_pit/ppo.PPOConfig.beta = 0.05\n", text)
    found = reports.warnings(reports.read(folders))
    assert len(found) == 9 and found[-1] == "12 more settings differ"


def test_settings_of_an_operative_configuration():
    found = reports.settings(tiny_reports.CONFIG.format(seed=3))
    assert found == {
        "DatasetConfig.path": "'/data/3'",
        "DatasetConfig.test_size": "256",
        "EvaluationConfig.ablations": (
            "(('First RL only', 'rl_pit_first_only'), ('Second RL only', 'rl_pit_second_only'))"
        ),
        "EvaluationConfig.iterations": "1",
        "MeshConfig.data": "3",
        "RunConfig.model_dir": "'runs/seed3'",
        "RunConfig.seed": "3",
        "rl_pit/PPOConfig.beta": "0.05",
        "rl_pit/RLStage.batch_size": "8",
    }


def test_reports_of_an_earlier_state_have_less(folders):
    for folder in folders:
        path = pathlib.Path(folder) / "report.json"
        report = json.loads(path.read_text())
        del report["subjects"], report["config_text"]
        path.write_text(json.dumps(report))
    assert [r["seed"] for r in reports.read(folders)] == [0, 1, 2]
