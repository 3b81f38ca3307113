"""Made-up reports of runs that differ in their seed, with every part that is combined."""

from __future__ import annotations

import json
import pathlib
from typing import Any

CONFIG = """from __gin__ import dynamic_registration
from pit_jax.evaluation import suite

# Macros:
# ==============================================================================
BATCH_SIZE = 8
MODEL_DIR = 'runs/seed{seed}'
SEED = {seed}

# Parameters for datasets.DatasetConfig:
# ==============================================================================
datasets.DatasetConfig.path = '/data/{seed}'
datasets.DatasetConfig.test_size = 256

# Parameters for suite.EvaluationConfig:
# ==============================================================================
suite.EvaluationConfig.ablations = \\
    (('First RL only', 'rl_pit_first_only'),
     ('Second RL only', 'rl_pit_second_only'))
suite.EvaluationConfig.iterations = 1

# Parameters for partitioning.MeshConfig:
# ==============================================================================
partitioning.MeshConfig.data = {seed}

# Parameters for run_config.RunConfig:
# ==============================================================================
run_config.RunConfig.model_dir = %MODEL_DIR
run_config.RunConfig.seed = %SEED

# Parameters for rl_pit/ppo.PPOConfig:
# ==============================================================================
rl_pit/ppo.PPOConfig.beta = 0.05

# Parameters for rl_pit/stages.RLStage:
# ==============================================================================
rl_pit/stages.RLStage.batch_size = %BATCH_SIZE
"""


def _comparison(group, name, kinds, delta, temperature) -> dict[str, Any]:
    first, second = kinds
    row = {"name": name, "first": first, "second": second, "temperature": temperature}
    row |= {"judge": "checker", "group": group, "n": 256}
    rates = {"win": 60.0, "lose": 60.0 - delta, "tie": delta - 20.0}
    return row | rates | {"delta": delta, "ci_low": delta - 5, "ci_high": delta + 5}


def report(seed: int) -> dict[str, Any]:
    """The report of a seed, whose figures rise with the seed."""
    rise = [0.0, 2.0, 7.0][seed % 3]
    comparisons = [
        _comparison(group, name, kinds, delta + rise, temperature)
        for temperature in (1.0, 0.4)
        for group, name, kinds, delta in (
            ("table1", "PIT vs Original", ("pit", "original"), 30.0),
            ("table2", "First RL only vs Original", ("first_only", "original"), 25.0),
            ("control", "Policy re-sampled vs Original", ("resampled", "original"), -3.0),
            ("figure5", "Reflected vs Original", ("pit_sft", "original_sft"), 10.0),
            ("mine", "A vs B", ("control", "control"), 0.0),
        )
    ]
    score = {"name": "PIT", "temperature": 1.0, "mean_score": 0.5 + rise / 100}
    score |= {"ci_low": 0.45, "ci_high": 0.6, "eos_rate": 0.9, "mean_length": 20.0}
    first = {"iteration": 0, "mean_score": 0.3 + rise / 100, "elo": 900.0 + rise}
    second = {"iteration": 1, "mean_score": 0.4, "elo": 1100.0 - rise, "changed": 0.5, "gap": 1.0}
    second |= {"delta_vs_original": 31.0 + rise, "ci_low": 25.0, "ci_high": 40.0}
    means = {"wl": 3.0, "ww": 0.0, "ll": -0.5, "lw": -4.0 - rise}
    model = {"name": "R_PIT", "accuracy": 0.95 - rise / 100, "ci_low": 0.8, "ci_high": 0.99}
    model |= {"n": 256, "means": means, "inequalities": {"wl>lw": 0.95}, "degeneration": 1.0}
    sweep = {
        "temperatures": [0.4, 1.0],
        "series": {"PIT vs Original": [20.0 + rise, 30.0]},
        "intervals": {"PIT vs Original": [[10.0, 40.0], [20.0, 40.0]]},
    }
    return {
        "title": "PIT on made-up data",
        "seed": seed,
        "num_prompts": 256,
        "subjects": {"split": "test", "num_prompts": 0, "pit": "rl_pit"},
        "versions": {"pit_jax": "0.1.0", "jax": "0.10"},
        "device": "1 x cpu",
        "commit": "c" * 40,
        "data_digest": str(seed) * 64,
        "config_text": CONFIG.format(seed=seed),
        "stages": [{"name": "rl_pit", "seconds": 90.0}, {"name": "rm_gap", "seconds": 45.0}],
        "comparisons": comparisons,
        "variants": [{"group": "figure5", "label": "PIT, no reflection", "stage": "s", "what": ""}],
        "scores": [score],
        "iterations": [{"temperature": 1.0, "rows": [first, second], "self_refine": [second]}],
        "reward_models": [model],
        "figure3": sweep,
        "figure4": [
            {
                "model": "PIT",
                "round": f"round {i}",
                "steps": [2 * i, 2 * i + 1],
                "reward": [0, rise],
            }
            for i in range(2)
        ],
        "figure5": sweep,
    }


def brief(seed: int) -> dict[str, Any]:
    """A report of a single comparison, which is quick to draw."""
    whole = report(seed)
    parts = ("iterations", "scores", "reward_models", "figure3", "figure4", "figure5", "variants")
    return {k: v for k, v in whole.items() if k not in parts} | {
        "comparisons": whole["comparisons"][:1]
    }


def write(folder: pathlib.Path, seeds=(0, 1, 2), report=report) -> list[str]:
    """Writes the reports of seeds, each into a folder of its own; returns the folders."""
    folders = [folder / f"seed{seed}" for seed in seeds]
    for path, seed in zip(folders, seeds, strict=True):
        path.mkdir()
        (path / "report.json").write_text(json.dumps(report(seed)), encoding="utf-8")
    return [str(path) for path in folders]
