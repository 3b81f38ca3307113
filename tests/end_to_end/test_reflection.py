"""Chain of thought from the command line: a stage learns to reflect, and `improve` reads out.

The stage is trained; what it writes in `improve` is a script, for a tiny model writes anything.
"""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from pit_jax.method import sampler
from pit_jax.method.decode import Decoding, Generation
from pit_jax.method.sampler import Sampler
from tests import tiny_runs

REFLECTION, RESPONSE = 8, 13
GIN = f"""{tiny_runs.GIN}
layouts.Lengths.reflection = {REFLECTION}
sft_pit/reflection/stages.SupervisedStage:
    name = 'reflecting'
    task = 'sft_pit_reflection'
run_config.RunConfig.stages = (
    @pretrain/stages.SupervisedStage(),
    @sft_pit/reflection/stages.SupervisedStage(),
    @rm_policy/stages.RewardStage(),
    @rm_gap/stages.RewardStage(),
    @rl_policy/stages.RLStage(),
)
suite.EvaluationConfig.pit = 'reflecting'
"""


def in_order(lengths, width, size):
    """All rows at once, not the shortest first."""
    assert len(lengths) <= size
    yield np.arange(len(lengths)), width


def scripted(run, texts):
    """A `Decoding.begin` that has written these texts where a model reflects; | is <<Improved>>."""
    role, window = run.role("pit"), REFLECTION + RESPONSE
    encode, control = role.vocabulary.encode, role.layout.control
    begins = Decoding.begin

    def ids(text):
        before, marker, after = text.partition(" | ")
        whole = [*encode(before), *[control.improved] * bool(marker), *encode(after)]
        return [*whole, role.vocabulary.eos_id][:window]

    def begin(decoding, params, prompt_BP, *rest):
        assert not decoding.allowed_V[control.candidate]
        assert decoding.allowed_V[control.improved] == (decoding.response_length == window)
        rows = begins(decoding, params, prompt_BP, *rest)
        if decoding.response_length != window:
            assert decoding.response_length == RESPONSE
            return rows
        tokens = np.zeros((prompt_BP.shape[0], window), np.int32)
        for row in range(len(tokens)):
            written = ids(texts[row % len(texts)])
            tokens[row, : len(written)] = written
        whole = Generation(jnp.array(tokens), jnp.zeros(tokens.shape), jnp.array(tokens != 0))
        return dataclasses.replace(rows, generation=whole, done_B=jnp.ones(len(tokens), bool))

    return begin


def test_improve_returns_the_response_and_keeps_the_reflection(
    trained, tmp_path, monkeypatch, capsys
):
    """The first row's response is right, which only the response alone is."""
    folder = tmp_path / "run"
    tiny_runs.copy(trained, folder)
    assert tiny_runs.command("train", folder, "--gin.STAGE='reflecting'", gin=GIN) == 0
    run = tiny_runs.on_one_device(tiny_runs.config(folder))
    examples = run.data.examples("dev")[:4]
    right, lost = examples[0], " ".join(["step"] * (REFLECTION + RESPONSE))
    long = "from 4 do from 4 do from 4 do from 4 do from"  # 13 words, which no end follows
    written = (f"{right.reflection} | {right.chosen}", "from 4", lost, f"cut back | {long} 4 do")
    expected = (
        (right.reflection, right.chosen, True),
        ("", "from 4", True),
        (lost, "", False),
        ("cut back", long, False),
    )
    monkeypatch.setattr(Decoding, "begin", scripted(run, written))
    monkeypatch.setattr(Sampler, "_few", lambda self: self._batch_size)
    monkeypatch.setattr(sampler, "_like", in_order)
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": example.prompt, "response": ""} for example in examples]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    iterations = "--gin.ImproveConfig.iterations=2"
    arguments = (f"--input={given}", f"--output={out}", iterations)
    assert tiny_runs.command("improve", folder, *arguments, gin=GIN) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line, (reflection, response, ended) in zip(lines, expected, strict=True):
        assert line["responses"] == ["", response, response]
        assert line["reflections"] == [reflection] * 2
        assert line["ended"] == [True, ended, ended] and line["truncated"] != ended
        assert line["models"]["pit"] == "reflecting@2" and len(line["gaps"]) == 2

    capsys.readouterr()
    assert tiny_runs.command("evaluate", folder, f"--generations={out}", gin=GIN) == 0
    # One of four wins: the right one, against an empty draft.
    shown = " ".join(capsys.readouterr().out.split())
    assert "Iteration 2 vs Original 25.0 0.0 75.0 +25.0" in shown
