"""`improve` as a job: its checks, its shards and what it asks of the models, which stand-ins are.

tests/test_cli.py runs the command with models.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import shutil

import jax
import pytest

from pit_jax import files
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import NotFiniteError, UserError
from pit_jax.method import self_refine
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Response
from pit_jax.run import improving
from pit_jax.run.improver import RunImprover
from pit_jax.run.run import key_for
from pit_jax.runtime import processes
from pit_jax.runtime.owner import Owner
from pit_jax.runtime.signals import Signals
from tests import fake_bucket, tiny_runs

WORDS = load("words:drafts")
STAGES = {"policy": "rl_policy", "pit": "rl_pit", "gap_model": "rm_gap"}
IMPROVE = ImproveConfig(
    sampling=SamplingConfig(temperature=0.3), policy_sampling=SamplingConfig(top_p=0.7)
)


class Models:
    """A run whose models say a number of the row and the key; it notes what it is asked."""

    def __init__(self, folder, improve=IMPROVE, reflecting=(), **changes):
        self.config = tiny_runs.config(
            "unused", **({"improve": improve, "shard_size": 2} | changes)
        )
        self.signals, layout = Signals(), Layout(WORDS)
        self._role = Role(self.config.network, layout, self.config.lengths, self)
        self.folder, self.loaded, self.drafted, self.improved = folder, [], [], []
        self.results = {name: {"model_step": 4, "task": name} for name in STAGES.values()}
        self.gap, self.ended, self.words = 0.5, True, 3
        self.reflecting = reflecting
        prompts = self_refine.read(self.config.improve.self_refine)
        self.self_refine = self_refine.SelfRefine(prompts, layout, 13)

    def role(self, name):
        return self._role

    def identity(self, role):
        return {"vocabulary": "drafts", "network": "tiny"}

    def result(self, name, role):
        roles = {"rl_policy": "policy", "rl_pit": "pit", "rm_gap": "gap_reward"}
        assert role == roles.get(name, role)
        return self.results[name]

    def reflects(self, name):
        return name in self.reflecting

    def load_frozen(self, name, role):
        self.loaded.append(name)
        return name

    def key(self, *purposes):
        return key_for(self.config.seed, *purposes)

    def _say(self, row, key):
        draw, n = row + sum(jax.random.key_data(key).tolist()), len(WORDS.words)
        words = [WORDS.words[(draw // n**i) % n] for i in range(self.words)]
        return Response(WORDS.encode(" ".join(words)), self.ended)

    def respond(self, model, built, width, rows, key, sampling):
        assert len(built) == len(rows) and width == self.config.lengths.prompt
        self.drafted.append((model, list(rows), sampling))
        return [self._say(row, key) for row in rows]

    def improver(self, model, gap_model, gap_stage, reflects, role):
        assert reflects == (model in self.reflecting)
        assert role == {"rl_policy": "policy", "rl_pit": "pit"}.get(model, role)

        def say(row, key):
            response = self._say(row, key)
            thought = list(reversed(response.tokens)) if reflects else []
            return dataclasses.replace(response, reflection=thought)

        def improve(prompts, responses, rows, key, config):
            assert len(prompts) == len(responses) == len(rows)
            self.improved.append((model, gap_model, gap_stage, list(rows), config))
            more = [[say(row, key), say(row + 1, key)] for row in rows]
            return [
                Trace([y, *two], [self.gap, -1.0], last=2, best=1)
                for y, two in zip(responses, more, strict=True)
            ]

        return improve

    def __call__(self, *lines, on_error="stop", stages=STAGES, source=None):
        """Runs the job on these lines; returns the lines that it wrote."""
        path = self.folder / "in.jsonl"
        if lines:
            text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
            path.write_text("".join(f"{line}\n" for line in text))
        out = self.folder / "out.jsonl"
        improving.Job(RunImprover(self, stages), str(source or path), str(out), on_error)()
        return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def models(tmp_path):
    return lambda **changes: Models(tmp_path, **changes)


FIVE = [{"id": f"row {i}", "prompt": f"x{i}"} for i in range(5)]


# --- what is asked of the models -----------------------------------------------------------------


def test_each_role_samples_as_the_configuration_says(models):
    run = models()
    lines = run({"prompt": "x2"}, {"prompt": "x3", "response": "3"})
    assert run.drafted == [("rl_policy", [0], SamplingConfig(top_p=0.7))]
    assert run.improved == [("rl_pit", "rm_gap", "rm_gap", [0, 1], IMPROVE)]
    assert lines[1]["responses"][0] == "3"
    run = models()
    run.results = {name: {"model_step": 7} for name in "abc"}
    run(stages={"policy": "a", "pit": "b", "gap_model": "c"})
    assert run.drafted[0][0] == "a" and run.improved[0][:3] == ("b", "c", "c")


def test_only_what_is_missing_is_sampled_and_loaded(models):
    run = models()
    del run.results["rl_policy"]  # it isn't trained
    lines = run({"prompt": "x2", "response": " 3 "}, {"prompt": "x3", "response": ""})
    assert run.drafted == [] and sorted(run.loaded) == ["rl_pit", "rm_gap"]
    assert [line["responses"][0] for line in lines] == [" 3 ", ""]
    assert lines[0]["models"] == {"gap_model": "rm_gap@4", "pit": "rl_pit@4"}


def test_self_refine_improves_by_the_policy_itself(models):
    run = models(improve=dataclasses.replace(IMPROVE, method="self_refine"))
    del run.results["rl_pit"]
    (line,) = run({"prompt": "x", "response": "1"})
    assert run.improved[0][0] == "rl_policy" and "rl_pit" not in run.loaded
    assert line["models"] == {"gap_model": "rm_gap@4", "policy": "rl_policy@4"}


def test_seed_stage_and_purpose_each_move_the_draws(models):
    refine = dataclasses.replace(IMPROVE, method="self_refine")

    def texts(stages=STAGES, **changes):
        run = models(**changes)
        run.results["a"] = {"model_step": 0}
        return run({"prompt": "x"}, stages=stages)[0]["responses"]

    base = texts()
    seed, method, stage = texts(seed=1), texts(improve=refine), texts(STAGES | {"policy": "a"})
    assert base == texts() and base[0] == method[0] and base[1:] == stage[1:]
    assert seed[0] != base[0] != stage[0] and seed[1] != base[1] != method[1]


@pytest.mark.parametrize(("keep", "index"), [("best", 1), ("last", 2)])
def test_keep_says_which_response_is_the_result(models, capsys, keep, index):
    run = models(improve=dataclasses.replace(IMPROVE, keep=keep))
    lines = run({"prompt": "x2", "response": "x9"}, {"prompt": "x3", "response": "x9"})
    assert [line["response"] for line in lines] == [line["responses"][index] for line in lines]
    what = {"best": "the best response by gap", "last": "the last response"}[keep]
    assert (
        f"2 prompts, each with {what}: 2 changed; of 4 steps 2 better and 2 worse by gap; stopped: "
        "2 by iterations -> "
    ) in capsys.readouterr().out


def test_a_gap_that_is_not_a_number_is_no_result(models):
    run = models()
    run.gap = float("nan")
    with pytest.raises(NotFiniteError, match="in.jsonl:1: got a gap that isn't finite"):
        run({"prompt": "x"})


def test_the_models_of_a_run_say_the_same_in_shards_of_any_size(trained, tmp_path):
    """Against all rows at once, of a run whose data isn't there."""
    config = tiny_runs.config(trained)
    config = dataclasses.replace(
        config, dataset=DatasetConfig("preferences", 9, 9, 9, path="none.jsonl")
    )
    run = tiny_runs.on_one_device(config)
    prompts = ["from 4 do +3 x7", "from 2 do +1", "from 9 do x3 +1", "from 1 do +1 +2", "x", "+3"]
    lines = [{"prompt": x} for x in prompts]
    lines[3]["response"] = "x7 ? from 4"
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = []
    for size in (16, 2, 5):
        run.config = dataclasses.replace(run.config, shard_size=size)
        out = tmp_path / f"{size}.jsonl"
        improving.Job(RunImprover(run, STAGES), str(tmp_path / "in.jsonl"), str(out), "stop")()
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    assert found[0] == found[1] == found[2] and "data" not in vars(run)

    numbers, role = list(range(6)), run.role("policy")
    drafts = role.sampler.respond(
        run.load_frozen("rl_policy"),
        [role.layout.policy_prompt(x) for x in prompts],
        8,
        numbers,
        run.key("improve", "rl_policy"),
        run.config.improve.policy_sampling,
    )
    drafts[3] = Response(role.vocabulary.encode("x7 ? from 4"), True)
    improver = run.improver(run.load_frozen("rl_pit"), run.load_frozen("rm_gap"), "rm_gap")
    key = run.key("improve", "pit")
    traces = improver(prompts, drafts, numbers, key, run.config.improve)
    for line, trace in zip(found[0], traces, strict=True):
        assert line["responses"] == [role.vocabulary.decode(r.tokens) for r in trace.responses]
        assert line["gaps"] == trace.gaps and line["best"] == trace.best
        assert line["ended"] == [r.ended for r in trace.responses]


# --- lines of the output -------------------------------------------------------------------------


def test_a_line_says_what_was_made_of_a_row_and_by_what(models):
    run = models(seed=3, improve=ImproveConfig(policy_sampling=SamplingConfig(0.5)))
    (line,) = run({"meta": {"a": [1, None]}, "prompt": "x", "response": None, "id": 2**60})
    assert list(line) == ["meta", "prompt", "id", *improving.FIELDS]
    assert line["meta"] == {"a": [1, None]} and line["id"] == 2**60
    assert line["models"] == {"gap_model": "rm_gap@4", "pit": "rl_pit@4", "policy": "rl_policy@4"}
    sampling = {"temperature": 0.5, "top_k": 0, "top_p": 1.0}
    assert line["seed"] == 3 and line["settings"] == {"policy_sampling": sampling}
    assert line["gaps"] == [0.5, -1.0] and line["best"] == 1 and line["ended"] == [True] * 3
    assert line["status"] == "ok" and line["truncated"] is False


def test_keys_of_an_earlier_output_are_replaced_and_named(models, capsys):
    (before,) = models()({"prompt": "x", "status": "reviewed"})
    assert "note: the output has its own status in place of the input's" in capsys.readouterr().out
    (line,) = models()(before)
    assert line["responses"][0] == before["response"] and line["status"] == "ok"
    assert "its own best, ended, gaps, models, responses" in capsys.readouterr().out


def test_what_a_model_writes_before_its_responses_is_kept(models, capsys):
    """The stand-in reflects on a response by its words in reverse."""
    (line,) = models(reflecting=("rl_pit",))({"prompt": "x", "reflections": "of another job"})
    assert list(line) == ["prompt", *improving.FIELDS, "reflections"]
    backwards = [" ".join(reversed(text.split())) for text in line["responses"]]
    assert line["reflections"] == backwards[1:]
    assert "its own reflections in place" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["pit", "self_refine"])
def test_without_reflections_a_key_of_that_name_is_the_inputs(models, capsys, method):
    improve = dataclasses.replace(IMPROVE, method=method)
    reflecting = () if method == "pit" else ("rl_pit",)
    (line,) = models(improve=improve, reflecting=reflecting)({"prompt": "x", "reflections": "mine"})
    assert line["reflections"] == "mine" and "note: " not in capsys.readouterr().out


def test_odd_text_comes_back_as_it_was_on_one_line(models):
    odd = "a\u2028b\u2029c\x85d\r\ne 🌊 \ud83d\ude00".encode("utf-16", "surrogatepass").decode(
        "utf-16"
    )
    run = models()
    (line,) = run(json.dumps({"prompt": f"x {odd}", "note": odd}, ensure_ascii=False))
    assert line["prompt"] == f"x {odd}" and line["note"] == odd
    assert len((run.folder / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda b: b"\xef\xbb\xbf" + b])
def test_files_are_read_as_those_of_data_are(models, pack):
    run = models()
    path = run.folder / "in.jsonl"
    path.write_bytes(pack(b'{"prompt": "x2"}\r\n\r\n{"prompt": "x3"}'))
    assert [line["prompt"] for line in run()] == ["x2", "x3"]


def test_prompts_may_be_turns(models):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "1"}]
    (line,) = models()({"prompt": [*turns, turns[0]]})
    assert line["prompt"] == [*turns, turns[0]]
    with pytest.raises(UserError, match="in.jsonl:1: .*'assistant'"):
        models()({"prompt": turns})


def test_prompts_are_those_of_training_on_the_dataset(models):
    """Text, turns and ready-made markers of one prompt make one x."""
    asked = []
    preferences = DatasetConfig("preferences", 9, 9, 9, path="none.jsonl")
    run = models(dataset=preferences)
    respond = run.respond
    run.respond = lambda model, built, *more: asked.extend(built) or respond(model, built, *more)
    turns = [{"role": "user", "content": "x7"}]
    prompts = ["x7", turns, "Human: x7\n\nAssistant:", "\n\nHuman: x7\n\nAssistant:"]
    lines = run(*({"prompt": prompt} for prompt in prompts))
    assert asked == [run.role("policy").layout.policy_prompt("x7")] * 4
    assert [line["prompt"] for line in lines] == prompts


def test_what_a_window_cuts_is_marked(models, capsys):
    """References have 12 tokens here, responses 13 with an end that these don't have."""
    run = models()
    assert [line["truncated"] for line in run({"prompt": "x"})] == [False]
    run.ended = False
    assert [line["truncated"] for line in run({"prompt": "x"})] == [True]
    run.ended, run.words = True, 12
    assert [line["truncated"] for line in run({"prompt": "x"})] == [False]
    assert "truncated" not in capsys.readouterr().out.splitlines()[-1]
    run.words = 13
    assert [line["truncated"] for line in run({"prompt": "x"})] == [True]
    assert "; 1 truncated -> " in capsys.readouterr().out


# --- rows that can't be used ---------------------------------------------------------------------

BAD = {
    "{": "got '{' .*, expected a JSON object",
    '{"prompt": "\\ud800"}': "got half a surrogate pair",
    '{"prompt": 3}': "got 3",
    '{"prompt": "x", "response": 3}': "got 3, expected text under 'response'",
    '{"prompt": "a b c d e f g"}': "got a prompt of 9 tokens, expected at most 8",
    json.dumps({"prompt": "x", "response": "1 " * 13}): "got a response of 13 tokens.* at most 12",
    '{"prompt": "x", "prompt": "y"}': "got the key 'prompt' twice",
    '{"prompt": ' + "[" * 5000 + "]" * 5000 + "}": "nested too deeply",
}


def test_all_bad_rows_are_named_before_anything_is_loaded(models):
    run = models()
    with pytest.raises(UserError) as error:
        run({"prompt": "x"}, *BAD)
    for number, (line, told) in enumerate(zip(str(error.value).splitlines(), BAD.values())):
        assert f"in.jsonl:{number + 2}: " in line and re.search(told, line)
    assert str(error.value).splitlines()[-1] == f"{len(BAD)} malformed rows in all"
    assert run.loaded == [] and os.listdir(run.folder) == ["in.jsonl"]


def test_bad_rows_can_be_skipped_and_say_why(models, capsys):
    run = models()
    good = {"prompt": "x", "id": 7}
    lines = run(good, *BAD, good, on_error="skip")
    assert lines[0] == run(good)[0]
    assert lines[-1]["id"] == 7 and run.drafted[0][1] == [0]
    assert [rows for _, rows, _ in run.drafted] == [[0], [9], [0]]
    for number, told in enumerate(BAD.values(), 1):
        status = lines[number]["status"]
        assert f"in.jsonl:{number + 1}: " in status and re.search(told, status)
        assert not {"responses", "gaps", "best"} & lines[number].keys()
    assert lines[4] == {"prompt": "x", "response": 3, "status": lines[4]["status"]}
    assert "; 8 skipped, whose status says why -> " in capsys.readouterr().out


def test_a_job_is_of_the_prompts_as_they_were_when_it_began(models):
    """The same path isn't enough, since its file may be written anew between two shards."""
    path, found = models().folder / "prompts.json", []
    asked = {"user": "{prompt} {response} {feedback}"}
    for said in ("why {prompt} {response}", "why {prompt} {response}", "how {prompt} {response}"):
        path.write_text(json.dumps({"feedback": {"user": said}, "refine": asked}))
        run = models(improve=dataclasses.replace(IMPROVE, self_refine=str(path)))
        (run.folder / "in.jsonl").write_text('{"prompt": "x"}\n')
        out = str(run.folder / "out.jsonl")
        job = improving.Job(RunImprover(run, STAGES), str(run.folder / "in.jsonl"), out, "stop")
        found.append(job._depends_on("stop"))
    assert found[0] == found[1]
    assert {name for name in found[0] if found[0][name] != found[2][name]} == {
        "prompts of Self-Refine"
    }


def test_a_job_says_what_there_is_to_do(models):
    run = models()
    (run.folder / "in.jsonl").write_text('{"prompt": "x"}\n{\n{"prompt": "x", "response": "1"}\n')
    out = str(run.folder / "out.jsonl")
    job = improving.Job(RunImprover(run, STAGES), str(run.folder / "in.jsonl"), out, "skip")
    expected = "3 rows in 2 shards: 2 to improve, of which 1 need a response; 1 to skip"
    assert job.describe() == expected and job.needed == STAGES
    assert run.loaded == [] and os.listdir(run.folder) == ["in.jsonl"]


def test_a_file_of_bad_rows_alone_needs_no_model(models, capsys):
    run = models()
    run.results = {}
    assert [list(line) for line in run("{", "[]", "3", on_error="skip")] == [["status"]] * 3
    assert "0 prompts" in capsys.readouterr().out and run.loaded == []


def test_an_empty_file_is_refused(models):
    with pytest.raises(UserError, match="in.jsonl: is empty"):
        models()("", "")


# --- paths ---------------------------------------------------------------------------------------


def test_the_output_is_never_the_input(models, monkeypatch):
    run = models()
    given = run.folder / "in.jsonl"
    given.write_text('{"prompt": "x"}\n')
    (run.folder / "link.jsonl").symlink_to(given)
    os.link(given, run.folder / "hard.jsonl")
    monkeypatch.chdir(run.folder)
    outputs = (
        "in.jsonl",
        f"{run.folder}/../{run.folder.name}/in.jsonl",
        "link.jsonl",
        "hard.jsonl",
    )
    for source in ("in.jsonl", "i*.jsonl", str(given)):
        for output in outputs:
            with pytest.raises(UserError, match="expected another file than --input"):
                improving.Job(RunImprover(run, STAGES), source, output, "stop")
    assert given.read_text() == '{"prompt": "x"}\n'


def test_outputs_that_cannot_be_written_are_refused_at_once(models):
    run = models()
    (run.folder / "in.jsonl").write_text('{"prompt": "x"}\n')
    (run.folder / "out.jsonl.parts").write_text("a file")
    for output, told in (
        (run.folder, "expected a file in a folder there is"),
        (run.folder / "none" / "out.jsonl", "expected a file in a folder there is"),
        (run.folder / "out.jsonl", "--output: can't write .*out.jsonl: File exists"),
        ("/proc/out.jsonl", "--output: can't write /proc/out.jsonl: No such file"),
    ):
        with pytest.raises(UserError, match=told):
            improver = RunImprover(run, STAGES)
            improving.Job(improver, str(run.folder / "in.jsonl"), str(output), "stop")()
    with pytest.raises(UserError, match="got '-', expected a file, since it is read twice"):
        improving.Job(RunImprover(run, STAGES), "-", str(run.folder / "out"), "stop")
    assert run.loaded == []


def test_two_jobs_do_not_write_one_file(models):
    run = models()
    (run.folder / "in.jsonl").write_text('{"prompt": "x"}\n')
    output = run.folder / "out.jsonl"
    job = improving.Job(RunImprover(run, STAGES), str(run.folder / "in.jsonl"), str(output), "stop")
    with (
        Owner(output, "improve", f"{output}.lock", "--output"),
        pytest.raises(UserError, match=r"out.jsonl: `improve` of .*or use another --output$"),
    ):
        job()
    assert run.loaded == [] and not output.exists()
    assert not (run.folder / "out.jsonl.parts").exists()


def test_input_and_output_may_be_in_a_bucket(models, monkeypatch):
    run = models()
    fake_bucket.install(monkeypatch, run.folder)
    files.write_whole("gs://bucket/in.jsonl", "".join(json.dumps(row) + "\n" for row in FIVE))
    for output in ("gs://bucket/in.jsonl", "gs://bucket/out.jsonl"):
        try:
            improving.Job(RunImprover(run, STAGES), "gs://bucket/in.jsonl", output, "stop")()
        except UserError as error:
            assert "expected another file" in str(error) and output.endswith("in.jsonl")
    text = (run.folder / "bucket" / "out.jsonl").read_text()
    assert [json.loads(line)["id"] for line in text.splitlines()] == [row["id"] for row in FIVE]


# --- ended and given again -----------------------------------------------------------------------


class Killed(BaseException):
    """Ends a job where it stands, as a signal does."""


def deaths(monkeypatch, at):
    """Ends the job at the `at`-th change that it makes to the disk, before or after it."""
    count = [0]

    def dying(function):
        def change(*arguments, **keywords):
            count[0] += 2
            if count[0] == at + 1:
                raise Killed
            result = function(*arguments, **keywords)
            if count[0] == at:
                raise Killed
            return result

        return change

    for owner, name in ((os, "replace"), (os, "fsync"), (os, "remove"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))


def test_a_job_ended_at_any_change_of_the_disk_goes_on(models, monkeypatch, tmp_path):
    expected = models()(*FIVE)
    (tmp_path / "out.jsonl").unlink()
    for at in range(1, 1000):
        run = models()
        ended = True
        with monkeypatch.context() as patch:
            deaths(patch, at)
            try:
                run()
                ended = False
            except Killed:
                pass
        if not ended:
            break
        before = [row for _, rows, _ in run.drafted for row in rows]
        written = len(list(tmp_path.glob("out.jsonl.parts/*.jsonl")))
        complete = (tmp_path / "out.jsonl").exists()  # and its shards were being deleted
        again = models()
        assert again() == expected
        after = [row for _, rows, _ in again.drafted for row in rows]
        assert complete or after == list(range(min(2 * written, 5), 5)), "no whole shard again"
        assert {*before, *after} == {*range(5)}
        assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]
        (tmp_path / "out.jsonl").unlink()
    assert at > 20


def test_what_a_signal_says_is_true(models, monkeypatch):
    """It is said while a shard is worked on, and by the same command when it goes on."""
    told = []
    run = models()
    respond = run.respond

    def note(*arguments):
        told.append(run.signals.kept.split(";")[0])
        if len(told) == 3:
            raise Killed
        return respond(*arguments)

    run.respond = note
    with pytest.raises(Killed):
        run(*FIVE)
    run()
    expected = [0, 2, 4, 4]
    assert told == [f"{rows} of 5 rows are done" for rows in expected]
    assert run.signals.kept == "5 of 5 rows are done; give the same command again to continue"


def interrupted(models, **changes):
    """A job of which the first of three shards is done."""
    run = models(**changes)
    write = improving.Shards.write

    def once(*arguments):
        write(*arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(improving.Shards, "write", once)
        run(*FIVE)
    return run


def test_shards_of_another_job_are_refused(models, tmp_path):
    interrupted(models)
    refine = dataclasses.replace(IMPROVE, iterations=4)
    retrained = models()
    retrained.results["rl_pit"] = {"model_step": 4, "seconds": 2.0}
    further = models()
    further.results["rl_pit"] = {"model_step": 9}
    delete = "delete the folder to start again, or give another --output"
    for run, told in (
        (models(seed=1), "seed: 0 -> 1"),
        (models(improve=refine), "improve.iterations: 1 -> 4"),
        (models(shard_size=3), "shard_size: 2 -> 3"),
        (retrained, "pit: rl_pit@4, result .* -> rl_pit@4, result "),
        (further, "pit: rl_pit@4, result .* -> rl_pit@9, result "),
    ):
        with pytest.raises(UserError, match=f"out.jsonl.parts: has 1 shards of .*{told}.*{delete}"):
            run()
        assert run.loaded == []
    with pytest.raises(UserError, match="on_error: stop -> skip"):
        models()(on_error="skip")
    with pytest.raises(UserError, match="input: 5 rows, hash .* -> 5 rows, hash"):
        models()(*FIVE[:4], {"prompt": "other"})
    with pytest.raises(UserError, match="input: 5 rows, hash .* -> 6 rows, hash"):
        models()(*FIVE, FIVE[0])
    assert len(models()(*FIVE)) == 5  # none of them has changed what was there


def test_sampling_in_other_batches_goes_on(models):
    interrupted(models)
    run = models(sampling_batch=4)
    run()
    assert [rows for _, rows, _ in run.drafted] == [[2, 3], [4]]


def test_a_job_with_reflections_goes_on_as_if_it_had_not_ended(models, tmp_path):
    out = tmp_path / "out.jsonl"
    models(reflecting=("rl_pit",))(*FIVE)
    expected = out.read_bytes()
    out.unlink()
    interrupted(models, reflecting=("rl_pit",))
    run = models(reflecting=("rl_pit",))
    run()
    assert out.read_bytes() == expected and [call[3] for call in run.improved] == [[2, 3], [4]]


def test_a_job_without_a_whole_shard_is_no_obstacle_and_old_shards_are_not_taken(models, tmp_path):
    interrupted(models)
    parts = tmp_path / "out.jsonl.parts"
    (parts / "000000.jsonl").rename(parts / "000001.jsonl")
    interrupted(models, seed=1)
    assert [line["seed"] for line in models(seed=1)()] == [1] * 5


def test_a_damaged_shard_is_set_aside_and_made_again(models, tmp_path, capsys):
    expected = models()(*FIVE)
    (tmp_path / "out.jsonl").unlink()
    interrupted(models)
    shard = tmp_path / "out.jsonl.parts" / "000000.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"row 1", b"row 7"))
    run = models()
    assert run() == expected and len(run.drafted) == 3
    assert (
        f"{shard}: is damaged, now 000000.jsonl.damaged, and made again" in capsys.readouterr().out
    )
    (tmp_path / "out.jsonl").unlink()
    # One of an earlier version has no digest, and is taken as it is.
    interrupted(models)
    (tmp_path / "out.jsonl.parts" / "000000.sha256").unlink()
    run = models()
    assert run() == expected and len(run.drafted) == 2


def test_a_shard_that_is_damaged_while_others_are_made_is_not_joined(models, tmp_path):
    interrupted(models)
    run, shard = models(), tmp_path / "out.jsonl.parts" / "000000.jsonl"
    improve = run.improver

    def damage(*arguments):
        shard.write_bytes(b"")
        return improve(*arguments)

    run.improver = damage
    with pytest.raises(
        UserError, match=f"{shard}: is damaged, expected what its digest says; give"
    ):
        run()
    assert not (tmp_path / "out.jsonl").exists()
    assert len(models()()) == 5


@pytest.mark.parametrize("content", ["", "{", '{"seed": "1"'])
def test_a_damaged_job_is_told_from_another_one(models, tmp_path, content):
    interrupted(models)
    job = tmp_path / "out.jsonl.parts" / "job.json"
    whole = job.read_text()
    for text in (content, whole.replace('"seed": "0', '"seed": "1')):
        job.write_text(text)
        with pytest.raises(
            UserError, match=f"{job}: is damaged, .*; bring it back from a copy, or"
        ):
            models()()
    job.write_text(whole)
    assert len(models()()) == 5


def test_a_folder_of_others_is_left_alone(models, tmp_path):
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="has 'thesis.tex' and isn't of an unfinished job"):
        models()(*FIVE)
    assert os.listdir(parts) == ["thesis.tex"]


def test_an_input_that_changes_while_it_is_read_is_refused(models, monkeypatch):
    run = models()
    respond = run.respond

    def change(*arguments):
        (run.folder / "in.jsonl").write_text(json.dumps({"prompt": "x9"}) + "\n")
        return respond(*arguments)

    monkeypatch.setattr(run, "respond", change)
    rows = [row | {"id": "long" * 500_000} for row in FIVE]
    with pytest.raises(UserError, match="in.jsonl: changed while it was read; delete .*parts"):
        run(*rows)
    with pytest.raises(UserError, match="isn't of an unfinished job"):
        run()


def test_only_the_first_process_writes(models, monkeypatch):
    run = models()
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with pytest.raises(FileNotFoundError):
        run(*FIVE)
    assert os.listdir(run.folder) == ["in.jsonl"]
    assert [rows for _, rows, _ in run.drafted] == [[0, 1], [2, 3], [4]]
    assert [rows for *_, rows, _ in run.improved] == [[0, 1], [2, 3], [4]]
