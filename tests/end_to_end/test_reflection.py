"""Chain of thought from the command line: a stage learns to reflect, and `improve` reads out.

The stage is trained; what it writes in `improve` is a script, for a tiny model writes anything.
"""

from __future__ import annotations

import json
import shutil

import jax.numpy as jnp
import numpy as np

from pit_jax.method import decode
from pit_jax.method.decode import Generation
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


def in_order(sampler, lengths, width):
    """One batch of all rows, not the shortest first."""
    yield np.minimum(np.arange(sampler._batch_size), len(lengths) - 1), width


def scripted(run, texts):
    """A `generate` that writes these texts, in turn, where a model reflects; | is <<Improved>>."""
    role, window = run.role("pit"), REFLECTION + RESPONSE
    encode, control = role.vocabulary.encode, role.layout.control

    def ids(text):
        before, marker, after = text.partition(" | ")
        whole = [*encode(before), *[control.improved] * bool(marker), *encode(after)]
        return [*whole, role.vocabulary.eos_id][:window]

    def generate(model, params, prompt_BP, keys_B, length, sampling, allowed_V, ends, *rest):
        assert not allowed_V[control.candidate]
        assert allowed_V[control.improved] == (length == window)
        if length != window:
            assert length == RESPONSE
            given = (model, params, prompt_BP, keys_B, length, sampling, allowed_V, ends)
            return decode.generate(*given, *rest)
        tokens = np.zeros((prompt_BP.shape[0], window), np.int32)
        for row in range(len(tokens)):
            written = ids(texts[row % len(texts)])
            tokens[row, : len(written)] = written
        return Generation(jnp.array(tokens), jnp.zeros(tokens.shape), jnp.array(tokens != 0))

    return generate


def test_improve_returns_the_response_and_keeps_the_reflection(
    trained, tmp_path, monkeypatch, capsys
):
    """The first row's response is right, which only the response alone is."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
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
    monkeypatch.setattr("pit_jax.method.sampler.generate", scripted(run, written))
    monkeypatch.setattr(Sampler, "_batches", in_order)
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
