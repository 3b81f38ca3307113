"""The made-up results of a run, with every part that a report shows, and scripts in its texts."""

import numpy as np

SCRIPT = '<script>alert("owned")</script>'


def comparison(name, kinds, group, delta=21.5, temperature=1.0):
    first, second = kinds
    return {
        "name": name,
        "first": first,
        "second": second,
        "temperature": temperature,
        "judge": "checker",
        "group": group,
        "win": 40.0,
        "lose": 40.0 - delta,
        "tie": 20.0 + delta,
        "delta": delta,
        "ci_low": delta - 8,
        "ci_high": delta + 8,
        "n": 256,
    }


def results():
    rng = np.random.default_rng(0)
    means = {"wl": 3.0, "ww": 0.0, "ll": -0.5, "lw": -4.0}
    return {
        "title": "A small run",
        "description": "What was done.",
        "command": "python -m pit_jax run --gin_file=gin/runs/small.gin",
        "seed": 7,
        "commit": "c0ffee with changes",
        "versions": {"jax": "0.10"},
        "device": "CPU",
        "num_prompts": 256,
        "config_text": f"train.steps = 4\n# {SCRIPT}\n",
        "data": {"rows": [["examples", 12000], ["dropped", 3]]},
        "stages": [
            {
                "name": "sft_policy",
                "steps": 400,
                "seconds": 83.0,
                "tokens": 1_234_567,
                "tokens_per_second": 14874.0,
                "mfu": 0.4321,
                "parameters": 1_204_331,
                "final": {"loss": 0.3125},
            }
        ],
        "comparisons": [
            comparison("PIT vs original", ("pit", "original"), "table1"),
            comparison("PIT vs original", ("pit", "original"), "table1", temperature=0.4),
            comparison(f"PIT vs {SCRIPT}", ("pit", "first_only"), "table2", delta=20.0),
            comparison("PIT vs itself", ("pit", "control"), "control", delta=0.0),
        ],
        "scores": [
            {
                "name": "original",
                "temperature": 1.0,
                "mean_score": 0.625,
                "ci_low": 0.6,
                "ci_high": 0.65,
                "eos_rate": 0.992,
                "mean_length": 21.0,
            }
        ],
        "iterations": [
            {
                "temperature": 0.4,
                "rows": [
                    {
                        "iteration": 0,
                        "mean_score": 0.6,
                        "elo": 950.0,
                        "elo_low": 940.0,
                        "elo_high": 960.0,
                    },
                    {
                        "iteration": 1,
                        "mean_score": 0.7,
                        "delta_vs_original": 31.2,
                        "ci_low": 20.0,
                        "ci_high": 40.0,
                        "elo": 1050.0,
                        "elo_low": 1040.0,
                        "elo_high": 1060.0,
                        "changed": 0.5,
                        "gap": float("nan"),
                    },
                ],
            }
        ],
        "reward_models": [
            {
                "name": "R_PIT",
                "accuracy": 0.9609,
                "ci_low": 0.94,
                "ci_high": 0.98,
                "n": 512,
                "inequalities": {"wl>ww": 0.91, "wl>ll": 0.92, "wl>lw": 0.96, "ww>lw": 0.9},
                "means": means,
                "degeneration": 3.5,
            },
            {"name": "R_P", "accuracy": 0.875, "ci_low": 0.84, "ci_high": 0.9, "n": 512},
        ],
        "figure2": {pair: rng.normal(mean, 1, 50).tolist() for pair, mean in means.items()},
        "figure3": {
            "temperatures": [0.0, 0.5, 1.0],
            "series": {"PIT vs original": [20.0, 25.0, None]},
            "intervals": {"PIT vs original": [[15, 25], [20, 30], [None, None]]},
        },
        "figure4": [
            {"round": "Both rounds", "steps": [0, 1, 2], "reward": [0.0, 1.0, 2.0]},
            {"round": "Second only", "steps": [0, 1], "reward": [-1.0, 0.0]},
        ],
        "curves": [
            {"stage": "sft_policy", "metric": "loss", "steps": [1, 2], "values": [2.0, 1.0]}
        ],
        "samples": [
            {
                "prompt": f"do {SCRIPT}",
                "original": f"one {SCRIPT} two",
                "iterations": [f"one two {SCRIPT} `three`", f"one two {SCRIPT} `three`"],
                "scores": [0.25, 0.5, 0.5],
                "gaps": [1.25, -0.5],
                "chosen": f"```\n{SCRIPT}",
                "rejected": f"bad {SCRIPT}",
            }
        ],
        "warnings": [f"careful with {SCRIPT}"],
    }


def whole():
    """Those of a run with Self-Refine and with several models of each kind."""
    found = results()
    rng = np.random.default_rng(1)
    names = ("First RL only", "Second RL only", "rl_pit_turned")
    kinds = ("first_only", "second_only", "ablation")
    found["comparisons"] = [
        comparison(name, pair, group, delta)
        for group, delta, name, pair in (
            ("table1", 30, "RL vs SFT", ("original", "sft")),
            ("table1", 15, "PIT vs Original", ("pit", "original")),
            ("table1", -18, "Self-Refine vs Original", ("self_refine", "original")),
            *(
                ("table2", delta, name, pair)
                for variant, kind in zip(names, kinds, strict=True)
                for delta, name, pair in (
                    (10, f"{variant} vs Original", (kind, "original")),
                    (35, f"{variant} vs Self-Refine", (kind, "self_refine")),
                    (5, f"PIT vs {variant}", ("pit", kind)),
                )
            ),
            ("control", 0, "rl_policy_longer vs Original", ("control", "original")),
            ("figure5", 12, "PIT (SFT) vs Original (SFT)", ("pit_sft", "original_sft")),
            ("figure5", 4, "PIT (SFT, CoT) vs Original (SFT)", ("pit_sft", "original_sft")),
            ("figure5", 8, "PIT (SFT) vs PIT (SFT, CoT)", ("pit_sft", "pit_sft")),
        )
    ]
    what = "from sft_pit: 40 steps on references from the data, then 40 steps on references from "
    found["variants"] = [
        {"group": group, "label": label, "stage": stage, "what": said}
        for group, label, stage, said in (
            ("table2", "PIT", "rl_pit", f"{what}rl_policy; reward: rm_gap (gap loss eq2)"),
            ("table2", "First RL only", "rl_pit_first_only", "from sft_pit: 80 steps"),
            ("control", "rl_policy_longer", "rl_policy_longer", "from rl_policy: 80 steps"),
            ("reward_models", "R_PIT", "rm_gap", "gap loss eq2, 400 steps from sft_pit"),
            ("reward_models", "rm_gap_pair", "rm_gap_pair", "gap loss two_term, 400 steps"),
            ("figure5", "PIT (SFT)", "sft_pit", "sft_pit, 400 steps from pretrain"),
        )
    ]

    def rating(iteration, mean, elo, rank):
        spread = {"elo_low": elo - 12, "elo_high": elo + 12}
        row = {"iteration": iteration, "mean_score": mean, "elo": elo, "rank": rank, **spread}
        names = ("bradley_terry", "bradley_terry_low", "bradley_terry_high")
        row |= dict(zip(names, (elo + 5, elo - 1, elo + 11), strict=True))
        delta = {"delta_vs_original": 300 * (mean - 0.6), "changed": 0.5, "gap": mean - 0.5}
        ends = {"ci_low": 300 * (mean - 0.6) - 7, "ci_high": 300 * (mean - 0.6) + 7}
        return row | (delta | ends if iteration else {})

    found["iterations"] = [
        {
            "temperature": temperature,
            "rows": [rating(0, 0.6, 995, 3), rating(1, 0.7, 1040, 2), rating(2, 0.75, 1075, 1)],
            "self_refine": [rating(1, 0.5, 950, 4), rating(2, 0.45, 940, 5)],
        }
        for temperature in (1.0, 0.4)
    ]
    names = ("PIT, best vs Best-of-n", "PIT, last vs Best-of-n", "Best-of-n vs Original")
    found["budgets"] = [
        {
            "temperature": temperature,
            "iteration": k,
            "pit_tokens": 21.5 * (k + 1),
            "drawn_tokens": 20.0 * (k + 1),
            "draws": k + 0.9,
            "capped": 0.02 * k,
            "gap_passes": float(k),
            "reward_passes": k + 0.8,
            "comparisons": [
                comparison(name, ("a", "b"), "", 9.0 * i) for i, name in enumerate(names)
            ],
        }
        for temperature in (1.0, 0.4)
        for k in (1, 2)
    ]
    both = {"wl>ww": 0.8, "wl>ll": 0.8, "wl>lw": 0.8, "ww>lw": 0.8, "ll>lw": 0.8}
    means = {"wl": 1.5, "ww": 0.0, "ll": 0.0, "lw": -1.5}
    found["reward_models"].insert(
        1,
        {
            "name": "R_P(y1) - R_P(y2)",
            "accuracy": 0.8,
            "n": 512,
            "inequalities": both,
            "means": means,
            "degeneration": 1.0,
        },
    )
    for figure, curves in (
        ("figure3", ("PIT", "Policy re-sampled", "Self-Refine")),
        ("figure5", ("PIT (SFT)", "PIT (SFT, CoT)", "Self-Refine (SFT)")),
    ):
        series = {f"{c} vs Original": [20 - 9 * i, 24 - 9 * i] for i, c in enumerate(curves)}
        series["PIT vs Self-Refine"] = [38.0, 40.0]
        intervals = {c: [[v - 5, v + 5] for v in values] for c, values in series.items()}
        found[figure] = {"temperatures": [0.4, 1.0], "series": series, "intervals": intervals}

    def curve(model, round_, steps, start, low, high):
        reward = np.linspace(low, high, len(steps)) + rng.normal(0, 0.3, len(steps))
        return {
            "model": model,
            "round": f"round {round_}: references from {('data', 'policy')[round_]}",
            "steps": list(steps),
            "reward": reward.tolist(),
            "start": start,
        }

    found["figure4"] = [
        curve("PIT", 0, range(1, 41), 40, -3, 3),
        curve("PIT", 1, range(41, 81), 40, 0, 3),
        curve("First RL only", 0, range(1, 81), 80, -3, 4),
        curve("Second RL only", 1, range(1, 81), 0, -1.5, 0.5),
    ]
    return found
