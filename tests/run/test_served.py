"""`improve --endpoint`: exported models behind a server, which a table stands in for."""

from __future__ import annotations

import dataclasses
import json
import re
import threading

import jax
import numpy as np
import pytest
from etils import epath
from tokenizers import Tokenizer

from pit_jax import cli
from pit_jax.errors import UserError
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.roles import PIT, POLICY
from pit_jax.method.sampler import Reflecting, Response
from pit_jax.run import client, exported, improving, served
from pit_jax.run.improver import RunImprover
from tests import tiny_exports, tiny_server

KEY = "sk-Very-Secret-0123456789"
ROWS = [
    {"id": 1, "prompt": "Count to 3", "response": "1"},
    {"id": 2, "prompt": "Say dog."},
    {"id": 3, "prompt": [{"role": "user", "content": "What is 7?"}], "response": "fox"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_exports.made(tmp_path_factory)


@pytest.fixture(scope="module")
def tokenizer(made):
    return Tokenizer.from_file(str(made / "all" / "pit" / "tokenizer.json"))


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits before requests are sent again, which aren't waited."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = []
    monkeypatch.setattr(client.Client, "_pause", lambda self, seconds: found.append(seconds))
    return found


@pytest.fixture
def table(tokenizer):
    """A server whose policy says `1 2` and whose PIT goes on; longer responses score higher."""

    def ids(text, end=True):
        return tokenizer.encode(text, add_special_tokens=False).ids + [END(tokenizer)] * end

    def policy(prompt, body):
        return ids("1 2"), "stop"

    def pit(prompt, body):
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        candidate = text.split("<<Candidate>>")[1].removesuffix("<<Improved>>")
        return ids(f"{candidate} 3"), "stop"

    def gap(tokens):
        text = tokenizer.decode(tokens, skip_special_tokens=False)
        before, after = text.split("<<Candidate>>")[1].split("<<Improved>>")
        return 0.25 + len(after.removesuffix("<|im_end|>")) - len(before)

    with tiny_server.serving({"policy": policy, "pit": pit}, {"gap": gap}) as server:
        server.ids = ids
        yield server


def END(tokenizer):
    return tokenizer.token_to_id("<|im_end|>")


MODELS = ("--model=pit", "--policy_model=policy", "--gap_model=gap")


@pytest.fixture
def improve(made, table, tmp_path, capsys):
    """Runs the command; returns its status, its lines, and what it printed."""

    def run(*flags, rows=ROWS, url=None, models=MODELS):
        given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["improve", f"--exported={made}/all", f"--endpoint={url or table.url}", *models]
        status = cli.main([*argv, f"--input={given}", f"--output={out}", *flags])
        captured = capsys.readouterr()
        lines = out.read_text().splitlines() if out.exists() else []
        return status, [json.loads(line) for line in lines], captured.out + captured.err

    return run


def test_rows_are_drafted_improved_and_scored(improve, table):
    status, lines, _ = improve("--gin.ImproveConfig.iterations=2")
    assert status == 0 and [line["id"] for line in lines] == [1, 2, 3]
    assert [line["responses"] for line in lines] == [
        ["1", "1 3", "1 3 3"],
        ["1 2", "1 2 3", "1 2 3 3"],
        ["fox", "fox 3", "fox 3 3"],
    ]
    for line in lines:
        assert line["gaps"] == [2, 2] and line["best"] == 2  # 0.25 is the anchor
        assert line["response"] == line["responses"][2] and line["ended"] == [True] * 3
        assert line["models"] == {"pit": "sft_pit@1", "gap_model": "rm_gap@1"} | (
            {"policy": "sft_policy@1"} if line["id"] == 2 else line["models"]
        )
        assert line["truncated"] is False and line["stop_reason"] == "iterations"


def test_a_request_has_the_ids_of_training_and_all_settings(improve, table, tokenizer):
    flags = ("--gin.pit/SamplingConfig.temperature=0.4", "--gin.policy/SamplingConfig.top_k=7")
    improve(*flags, "--gin.policy/SamplingConfig.top_p=0.9")
    end, rows = END(tokenizer), tiny_exports.NETWORK.vocab_size
    specials = [tokenizer.token_to_id(f"<|im_{name}|>") for name in ("start", "end")]
    assert specials == [300, 301] and tokenizer.get_vocab_size() == 305
    by_model = {}
    for body in table.bodies:
        by_model.setdefault(body["model"], []).append(body)
    texts = {
        name: sorted(
            tokenizer.decode(body.get("prompt") or body["input"], skip_special_tokens=False)
            for body in bodies
        )
        for name, bodies in by_model.items()
    }

    def asked(text):
        return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"

    told = [("Count to 3", "1"), ("Say dog.", "1 2"), ("What is 7?", "fox")]
    slots = [f"{asked(x)}<<Candidate>>{y}<<Improved>>" for x, y in told]
    assert texts["policy"] == [asked("Say dog.")] and texts["pit"] == slots
    assert texts["gap"] == [f"{slot}{y} 3<|im_end|>" for slot, (_, y) in zip(slots, told)]
    (policy,), pit = by_model["policy"], by_model["pit"][0]
    never = {str(id_): -100 for id_ in (300, *range(302, rows))}
    common = {"max_tokens": 25, "stop_token_ids": [end], "logit_bias": never}
    common |= {"return_token_ids": True}
    own = {"model", "prompt", "seed"}
    assert {name: policy[name] for name in policy.keys() - own} == common | {
        "temperature": 1.0,
        "top_k": 7,
        "top_p": 0.9,
    }
    assert {name: pit[name] for name in pit.keys() - own} == common | {"temperature": 0.4}
    gap = by_model["gap"][0]
    assert gap.keys() == {"model", "input", "use_activation"} and not gap["use_activation"]


def test_each_row_and_iteration_has_a_seed_that_comes_again(improve, table):
    def seeds(*flags):
        del table.bodies[:]
        improve("--gin.ImproveConfig.iterations=2", *flags)
        return sorted(body["seed"] for body in table.bodies if body["model"] == "pit")

    first = seeds()
    assert len({*first}) == 6 and all(0 <= seed < 2**31 for seed in first)
    assert seeds("--concurrency=1") == first and not {*seeds("--gin.SEED=1")} & {*first}


def test_a_response_may_be_cut_and_may_come_without_ids(improve, table):
    table.complete["pit"] = lambda prompt, body: (table.ids("1 2 3", end=False), "length")
    _, lines, _ = improve()
    assert all(line["responses"][1] == "1 2 3" and line["truncated"] for line in lines)
    assert [line["ended"] for line in lines] == [[True, False]] * 3
    table.complete["pit"] = lambda prompt, body: ("fox", "stop")
    _, lines, _ = improve()
    assert all(line["responses"][1] == "fox" and line["ended"][1] for line in lines)
    table.complete["pit"] = lambda prompt, body: (table.ids("dog") + table.ids("fox"), "length")
    _, lines, _ = improve()
    assert all(line["responses"][1] == "dog" and line["ended"][1] for line in lines)


def test_without_a_gap_model_the_last_response_is_the_result(improve, table):
    status, lines, said = improve("--gin.ImproveConfig.iterations=2", models=MODELS[:2])
    assert status == 0 and "note: without a gap model there are no gaps" in said
    for line in lines:
        assert (line["gaps"], line["best"]) == ([], None)
        assert line["response"] == line["responses"][2] and "gap_model" not in line["models"]
    assert "/classify" not in table.paths
    status, _, said = improve("--gin.ImproveConfig.min_gap=0.1", models=MODELS[:2])
    assert status == 2 and "ImproveConfig.min_gap: needs gaps, expected --gap_model" in said


def test_what_may_pass_is_asked_again(improve, table, waits):
    good = improve()[1]
    wrong = [
        b"{",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"text": 1, "finish_reason": "stop"}]}',
    ]
    wrong += [b'{"choices": [{"text": "x", "finish_reason": "abort"}]}']
    wrong += [b'{"choices": [{"text": "x", "finish_reason": "stop", "token_ids": [-1]}]}']
    table.trouble = [(429, {"Retry-After": "7"}, b""), (500, {}, b""), (503, {}, b"busy")]
    table.trouble += [(200, {}, content) for content in wrong]
    status, lines, _ = improve("--concurrency=1", "--retries=9")
    assert status == 0 and lines == good
    assert waits[:4] == [7, 2, 4, 8] and len(waits) == 9
    table.trouble = [(200, {}, b'{"data": [{"probs": [1, 2]}]}')] * 3
    status, _, said = improve("--retries=1", rows=ROWS[:1])
    assert status == 2 and "completions: no answer after 2 requests: it answers what is no" in said


def test_a_server_that_takes_too_long_is_asked_again(improve, table):
    """The first answer comes late; what is asked again is the same."""
    released = threading.Event()
    pit, late = table.complete["pit"], []

    def slow(prompt, body):
        if not late:
            late.append(body)
            released.wait(5)
        return pit(prompt, body)

    table.complete["pit"] = slow
    status, lines, _ = improve("--timeout=0.3", "--concurrency=1", rows=ROWS[:1])
    released.set()
    assert status == 0 and lines[0]["response"] == "1 3"
    asked = [body for body in table.bodies if body["model"] == "pit"]
    assert len(asked) == 2 and asked[0] == asked[1]


class Killed(BaseException):
    """Ends a job where it stands, as a signal does."""


def test_a_job_that_was_ended_asks_nothing_again_for_what_is_written(improve, table):
    whole = improve()[1]
    write = improving.Shards.write

    def once(*arguments):
        write(*arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(improving.Shards, "write", once)
        improve()
    del table.bodies[:]
    status, lines, said = improve()
    assert status == 0 and lines == whole and "continues at row 3 of 3" in said
    assert [body["model"] for body in table.bodies] == ["pit", "gap"]  # of the third row alone
    status, _, said = improve(models=("--model=other", *MODELS[1:]), rows=ROWS[:1])
    assert status == 2


def test_shards_of_other_models_are_refused(improve, table):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        write = improving.Shards.write

        def once(*arguments):
            write(*arguments)
            raise Killed

        patch.setattr(improving.Shards, "write", once)
        improve()
    table.complete["other"] = table.complete["pit"]
    status, _, said = improve(models=("--model=other", *MODELS[1:]))
    assert status == 2 and re.search("shards of another job .pit: .* -> .*", said)


def test_models_may_be_on_servers_of_their_own(improve, table):
    with tiny_server.serving({"policy": lambda p, b: (table.ids("dog"), "stop")}) as other:
        models = ("--model=pit", f"--policy_model=policy@{other.url}/", "--gap_model=gap")
        _, lines, _ = improve(models=models)
        assert [line["responses"][0] for line in lines] == ["1", "dog", "fox"]
        assert other.paths == ["GET /v1/models", "/v1/completions"]


def one_line(said):
    (line,) = said.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=none"], "completions answers 404 Not Found: The model `none` does not exist."),
        (["--policy_model="], "--policy_model: got no value, expected --policy_model=VALUE"),
        (["--model="], "--model: got no value, expected --model=VALUE"),
        (["--endpoint=http://127.0.0.1:9/v1"], "http://127.0.0.1:9/v1/models: no answer: .*refuse"),
        (["--endpoint=localhost"], "--endpoint: got 'localhost', expected a URL such as"),
        (["--gap_model=gap@http://me:secret@x"], "--endpoint: expected a URL without a user"),
        (["--concurrency=0"], "--concurrency, --retries, --timeout: got 0, 6, 300.0"),
        (["--key_variable=sk-abc"], "--key_variable: expected the name of an environment variable"),
        (["--key_variable=NO_SUCH_KEY"], "--key_variable: the environment variable NO_SUCH_KEY"),
        (["--gin_file=x"], "--exported takes no gin file"),
        (["--exported="], "--exported: got no value, expected --exported=VALUE"),
        (["--exported=nowhere"], "nowhere/pit_jax.json: not found"),
        (["--distributed"], "--endpoint: several hosts would ask for everything twice"),
        (["--gin.RunConfig.vocabulary='bytes'"], "RunConfig.vocabulary: the directory says it"),
        (["--gin.NetworkConfig.num_layers=3"], "NetworkConfig.num_layers.*(no effect|no such)"),
        (["--gin.ImproveConfig.iteration=3"], "did you mean ImproveConfig.iterations"),
        (["--endpoint="], "--endpoint: got no value, expected --endpoint=VALUE"),
    ],
)
def test_mistakes_are_one_line(improve, flags, message):
    status, lines, said = improve(*flags)
    errors = [line for line in said.splitlines() if line.startswith("pit_jax improve: ")]
    assert status == 2 and lines == [] and re.search(message, one_line("\n".join(errors))), said
    assert "secret" not in said and "sk-abc" not in said


def test_a_key_is_sent_and_never_shown(improve, table, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    status, lines, said = improve("--key_variable=SERVER_KEY")
    assert status == 0 and KEY not in said and KEY not in json.dumps(lines)
    assert {headers.get("Authorization") for headers in table.headers} == {f"Bearer {KEY}"}
    improve()
    assert table.headers[-1].get("Authorization") is None


def test_a_dry_run_asks_for_nothing(improve, table):
    status, lines, said = improve("--dry_run")
    assert status == 0 and lines == [] and table.bodies == []
    assert "3 rows in 2 shards: 3 to improve, of which 1 need a response; 0 to skip" in said


def sampler_of(made, table):
    models = {PIT: served.Served("pit", table.url), POLICY: served.Served("policy", table.url)}
    run = served.ServedRun(epath.Path(made / "all"), models, client.Client("", 9, 0), 2)
    return run, run.role(PIT).sampler


def test_a_reflection_is_read_by_its_ids(made, table, tokenizer):
    run, sampler = sampler_of(made, table)
    role, improved = run.role(PIT), tokenizer.token_to_id("<<Improved>>")
    told = [*table.ids("a b", end=False), improved, *table.ids("1 2")]
    table.complete["pit"] = lambda prompt, body: (told, "stop")
    control = role.layout.control.improved
    (model, prompt), key = (run._served[PIT], role.layout.policy_prompt("x")), jax.random.key(0)
    arguments = (model, [prompt], 64, [0], key, SamplingConfig(), Reflecting(60, control))
    (found,) = sampler.respond(*arguments)
    encode = role.vocabulary.encode
    assert found == Response([*encode("a b"), control, *encode("1 2")], True)
    assert table.bodies[-1]["max_tokens"] == 60
    assert str(improved) not in table.bodies[-1]["logit_bias"]
    assert str(tokenizer.token_to_id("<<Candidate>>")) in table.bodies[-1]["logit_bias"]
    table.complete["pit"] = lambda prompt, body: ("a b", "stop")
    with pytest.raises(UserError, match="got no token_ids from the server, expected them"):
        sampler.respond(*arguments)


def test_a_text_without_ids_is_cut_to_the_window(made, table):
    run, sampler = sampler_of(made, table)
    role = run.role(PIT)
    table.complete["pit"] = lambda prompt, body: ("x?" * 20, "stop")
    prompt = role.layout.policy_prompt("x")
    arguments = (run._served[PIT], [prompt], 64, [0], jax.random.key(0), SamplingConfig())
    (found,) = sampler.respond(*arguments)
    tokens = role.vocabulary.encode("x?" * 20)
    assert found == Response(tokens[:25], False)


def test_a_served_model_answers_as_a_loaded_one(made, table, tmp_path, improve):
    """At temperature 0, by a server that has the exported models itself."""
    greedy, folder = SamplingConfig(temperature=0.0), epath.Path(made / "all")
    config = exported.config_of(folder, exported.read(folder)).improve
    changes = {"improve": dataclasses.replace(config, sampling=greedy, policy_sampling=greedy)}
    run = exported.ExportedRun(folder, jax.devices()[:1], changes)
    loaded = RunImprover(run, run.stages)
    role, lock, key = run.role(PIT), threading.Lock(), run.key("x")  # all roles are alike
    theirs = np.arange(role.network.vocab_size)
    theirs[: role.vocabulary.vocab_size] = role.vocabulary.tokenizer_ids
    ours = np.argsort(theirs)

    def complete(name, width):
        def answer(ids, body):
            with lock:
                model, prompt = loaded.load(name), ours[ids].tolist()
                (found,) = role.sampler.respond(model, [prompt], width, [0], key, greedy)
            tokens = [*found.tokens, *[1] * found.ended]
            return theirs[tokens].tolist(), "stop" if found.ended else "length"

        return answer

    def gap(ids):
        tokens = ours[ids].tolist()
        at = len(tokens) - tokens[::-1].index(role.layout.control.improved)
        ended = tokens[-1] == 1
        text = Response(tokens[at:-1] if ended else tokens[at:], ended)
        with lock:
            arguments = ([tokens[:at]], role.widths.gap, [text], "last")
            return float(role.sampler.score(loaded.load("gap_model"), *arguments)[0])

    table.complete = {
        "policy": complete(POLICY, role.widths.policy),
        "pit": complete(PIT, role.widths.pit),
    }
    table.classify = {"gap": gap}
    flags = ("--gin.pit/SamplingConfig.temperature=0.0",)
    _, remote, _ = improve(*flags, "--gin.policy/SamplingConfig.temperature=0.0")
    improving.Job(loaded, f"{tmp_path}/in.jsonl", f"{tmp_path}/here.jsonl", "stop")()
    here = [json.loads(line) for line in (tmp_path / "here.jsonl").read_text().splitlines()]
    assert len({text for line in here for text in line["responses"]}) == 6
    for one, other in zip(here, remote, strict=True):
        assert other.pop("gaps") == pytest.approx(one.pop("gaps"), abs=1e-4)
        assert other == one
