"""`pit_jax.load` and what it gives, with the tiny run's models."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest

import gin
import pit_jax
from gin import config as gin_config
from pit_jax.errors import UserError
from pit_jax.method import decode
from pit_jax.method.sampler import Response
from pit_jax.run import loading
from tests import tiny_runs
from tests.child_environment import child_environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROMPTS = ["from 4 do +3 x7", "from 2 do +1", "from 9 do x3 +1"]
GIVEN = [None, "+1 ? from 2", ""]


@pytest.fixture(scope="module")
def pit(trained):
    """The models of the tiny run on all eight devices."""
    return pit_jax.load(trained)


def lines_of(folder, out, prompts, responses, *flags):
    """What the command `improve` writes."""
    given = out.with_suffix(".in")
    rows = ({"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True))
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tiny_runs.command("improve", folder, f"--input={given}", f"--output={out}", *flags) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_answers_are_those_of_the_command(pit, trained, tmp_path):
    flags = ("--gin.ImproveConfig.iterations=2", "--gin.pit/SamplingConfig.temperature=0.6")
    lines = lines_of(trained, tmp_path / "out", PROMPTS, GIVEN, *flags, "--gin.RunConfig.seed=3")
    found = pit.improve(PROMPTS, GIVEN, 2, temperature=0.6, seed=3)
    for line, each in zip(lines, found, strict=True):
        of_line = {field: line[field] for field in dataclasses.asdict(each) if field in line}
        of_line |= {"responses": tuple(line["responses"]), "ended": tuple(line["ended"])}
        own = dataclasses.asdict(each)
        assert own.pop("reflections") == ()
        assert own.pop("gaps") == pytest.approx(of_line.pop("gaps"), abs=1e-5)
        assert own == of_line
    assert found[1].responses[0] == "+1 ? from 2" and len(found[0].responses) == 3
    assert pit.improve(PROMPTS, GIVEN, 2, temperature=0.6, seed=4) != found


def test_repeated_calls_load_and_compile_nothing(pit, monkeypatch, caplog):
    first = pit.improve(PROMPTS, GIVEN)
    monkeypatch.setattr(loading, "load_frozen", None)
    with jax.log_compiles():
        assert pit.improve(PROMPTS, GIVEN) == first
        again = pit.improve([PROMPTS[0], *PROMPTS * 6], [GIVEN[0], *GIVEN * 6])
    assert "Compiling" not in caplog.text
    assert len(again) == 19 and again[0] == first[0]


def test_models_are_loaded_when_they_are_needed(trained, monkeypatch):
    loaded = []
    load = loading.load_frozen

    def noted(run, name, *more):
        loaded.append(name)
        return load(run, name, *more)

    monkeypatch.setattr(loading, "load_frozen", noted)
    pit = pit_jax.load(str(trained), batch_size=9)
    assert loaded == [] and pit._run.config.sampling_batch == 16  # two rows for each device
    pit.improve(PROMPTS[:1], ["+1 ? from 2"], gaps=False)
    assert loaded == ["rl_pit"]
    assert pit.improve([]) == pit.score([], [], []) == [] and loaded == ["rl_pit"]
    pit.score(PROMPTS[:1], ["from 4"], ["from 4"])
    assert loaded == ["rl_pit", "rm_gap"]
    pit.improve(PROMPTS)
    assert loaded == ["rl_pit", "rm_gap", "rl_policy"]


def test_without_gaps_the_last_response_is_the_result(pit):
    with_gaps = pit.improve(PROMPTS, iterations=2)
    for each, other in zip(pit.improve(PROMPTS, iterations=2, gaps=False), with_gaps, strict=True):
        assert each.gaps == () and each.best is None
        assert each.responses == other.responses and each.response == each.responses[2]
    last = pit.improve(PROMPTS, iterations=2, keep="last")
    assert [each.response for each in last] == [each.responses[2] for each in with_gaps]
    assert [each.gaps for each in last] == [each.gaps for each in with_gaps]


def test_scores_are_gaps_without_the_anchor(pit, monkeypatch):
    """Against R_PIT asked by hand; the anchor is what is subtracted of every score."""
    a, b = ["x7 9 +3 7 from 4", "+1 3 from 2"], [" x7 ? +3 7 from 4", ""]
    found = pit.score(PROMPTS[:2], a, b)
    run = pit._run
    judge = run.role("gap_reward")
    encode, width = judge.vocabulary.encode, judge.widths.gap
    built = [judge.layout.gap_prompt(x, encode(y.strip())) for x, y in zip(PROMPTS, b)]
    texts = [Response(encode(text), True) for text in a]
    raw = judge.sampler.score(run.load_frozen("rm_gap"), built, width, texts, "sum")
    assert found == pytest.approx([float(score) - run.anchor("rm_gap") for score in raw], abs=1e-5)
    monkeypatch.setattr(run, "anchor", lambda stage: 100.0)
    assert pit.score(PROMPTS[:2], a, b) == pytest.approx([s - 100 for s in raw.tolist()], abs=1e-4)
    monkeypatch.undo()
    improved = pit.improve(PROMPTS, ["+3 ? from 4", "", "1"])
    scores = pit.score(PROMPTS, [each.responses[1] for each in improved], ["+3 ? from 4", "", "1"])
    assert scores == pytest.approx([each.gaps[0] for each in improved], abs=1e-5)
    assert len({each.ended[1] for each in improved}) == 2  # also of one that fills its window


TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x",), "prompts: got str, expected a list of prompts"),
        ((["x", 3],), "prompts[1]: got 3"),
        ((["x", "a b c d e f g"],), "prompts[1]: got a prompt of 9 tokens, expected at most 8"),
        ((["x", TURNS],), "prompts[1]: got "),
        ((["x"], "x"), "responses: got str, expected a list of texts"),
        ((["x"], []), "responses: got 0 texts for 1 prompts, expected as many"),
        ((["x"], [3]), "responses[0]: got int, expected a text"),
        ((["x"], ["1 " * 13]), "prompts[0]: got a response of 13 tokens, expected at most 12"),
        ((["x"], None, -1), "ImproveConfig.iterations: got -1, expected 0 or more"),
        ((["x"], None, 1.5), "ImproveConfig.iterations: got 1.5, expected a whole number"),
        ({"keep": "first"}, "got keep='first', expected one of"),
        ({"temperature": -1.0}, "temperature"),
        ({"seed": -1}, "seed: got -1, expected 0 to 4294967295"),
    ],
)
def test_mistakes_in_improve_are_one_clear_line(pit, arguments, message):
    plain, named = ((["x"],), arguments) if isinstance(arguments, dict) else (arguments, {})
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pit.improve(*plain, **named)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (["1"], ["1"], "b: got 1 texts for 2 prompts"),
        (["1"], ["1", "2"], "a: got 1 texts for 2 prompts"),
        (["1", None], ["1", "2"], "got None, expected a text"),
        (["1", "1 " * 14], ["1", "2"], "a[1]: got a response of 14 tokens, expected at most 13"),
        (["1", "2"], ["1", "1 " * 13], "prompts[1]: got a response of 13 tokens"),
    ],
)
def test_mistakes_in_score_are_one_clear_line(pit, a, b, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pit.score(["x", "+1"], a, b)


def test_what_cannot_be_loaded(trained, tmp_path):
    with pytest.raises(UserError, match="none: expected a run directory, which has a config.gin"):
        pit_jax.load(tmp_path / "none")
    shutil.copy(trained / "config.gin", tmp_path)
    with pytest.raises(UserError, match="rl_pit/result.json: not found; train stage 'rl_pit'"):
        pit_jax.load(tmp_path)
    with pytest.raises(ValueError, match="batch_size: got 0, expected a whole number above 0"):
        pit_jax.load(trained, batch_size=0)


def test_gin_is_left_as_it_was(trained):
    gin.clear_config()
    with gin.unlock_config():
        gin.parse_config(
            "from __gin__ import dynamic_registration\n"
            "from pit_jax.method import decode\ndecode.SamplingConfig.top_k = 3\n"
            "MINE = 2"
        )
    assert gin.get_configurable(decode.SamplingConfig)().top_k == 3
    before = gin.config_str(), gin.operative_config_str(), list(gin_config._LOCATION_PREFIXES)
    gin.finalize()
    with gin.config_scope("pit"):
        pit_jax.load(trained)
        assert gin.current_scope() == ["pit"]
    assert gin.config_is_locked()
    after = gin.config_str(), gin.operative_config_str(), list(gin_config._LOCATION_PREFIXES)
    assert after == before and gin.query_parameter("%MINE") == 2
    gin.clear_config()


def test_two_runs_side_by_side(pit, trained, tmp_path):
    """The second is a copy with another seed and other defaults, under a path of its own."""
    tiny_runs.copy(trained, tmp_path / "other")
    config = tmp_path / "other" / "config.gin"
    text = config.read_text()
    config.write_text(text.replace("SEED = 0", "SEED = 1"))
    assert config.read_text() != text
    other = pit_jax.load(tmp_path / "other")
    first = pit.improve(PROMPTS, seed=0)
    assert other.improve(PROMPTS) == pit.improve(PROMPTS, seed=1) != first
    assert pit.improve(PROMPTS) == first == other.improve(PROMPTS, seed=0)


def test_importing_the_package_imports_nothing_more():
    code = "import sys; before = {*sys.modules}; import pit_jax; print(*({*sys.modules} - before))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(1)
    )
    assert out.stdout.split() == ["pit_jax"] and pit_jax.load.__doc__


def test_the_lines_of_the_readme(trained, tmp_path, monkeypatch, capsys):
    """They run as they stand there, on a run directory of that name."""
    readme = (ROOT / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(import pit_jax\n.*?)```", readme, re.DOTALL)
    assert len(lines.splitlines()) <= 16
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 3
