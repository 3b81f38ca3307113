"""Evaluates a run: Tables 1 to 4 and Figures 2 to 4, as far as its judge can tell.

The judge is the exact checker if the data has one, else the run's own R_P. Everything is measured
on one split, which is looked at once, with 95% intervals over the groups of examples: those that
share a prompt, or a dialogue, count as one draw.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from platform import python_version
from typing import Any

import jax
import numpy as np

from pit_jax import __version__
from pit_jax.checked import at_least, checked
from pit_jax.data.examples import SPLITS, Example
from pit_jax.data.layouts import GAP_TREE
from pit_jax.evaluation import curves, elo, scoring
from pit_jax.evaluation.judges import ExactJudge, judge_for
from pit_jax.method import curriculum
from pit_jax.method.forward import tree_scores
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.losses import reference_moves_score
from pit_jax.method.sampler import Response
from pit_jax.models.heads import ScalarModel
from pit_jax.run.run import Run
from pit_jax.run.stages import RewardStage, RLStage


@dataclasses.dataclass(frozen=True)
@checked
class EvaluationConfig:
    """Says what to evaluate.

    Attributes:
      split: `dev` while tuning, `test` for the report.
      num_prompts: how many prompts to take; 0 takes all. They are the first of the split, which is
        in the order of a hash, so that they are a sample of it.
      temperatures: temperatures of the tables, the main one first.
      sweep: temperatures of Figure 3.
      iterations: number of improvements in a row (Table 3).
      num_samples: number of prompts to show with all their texts.
      self_refine: whether to sample the Self-Refine baseline.
      sft, policy, pit, reward_model, gap_model: names of the stages to evaluate.
      controls: (label, stage) of policies compared with the original, as a policy trained longer.
      ablations: (label, stage) of PIT models compared with the original (Table 2).
    """

    split: str = "test"
    num_prompts: int = 0
    temperatures: tuple[float, ...] = (1.0, 0.4)
    sweep: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    iterations: int = 5
    num_samples: int = 6
    self_refine: bool = True
    sft: str = "sft_policy"
    policy: str = "rl_policy"
    pit: str = "rl_pit"
    reward_model: str = "rm_policy"
    gap_model: str = "rm_gap"
    controls: tuple[tuple[str, str], ...] = ()
    ablations: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        at_least(self, 0, "num_prompts", "num_samples")
        at_least(self, 1, "iterations")
        if self.split not in SPLITS or not self.temperatures:
            raise ValueError(f"evaluation: expected a split of {SPLITS}, temperatures; got {self}")

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of all stages that are evaluated."""
        others = (stage for _, stage in (*self.controls, *self.ablations))
        return (self.sft, self.policy, self.pit, self.reward_model, self.gap_model, *others)


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
      kind: what the responses are, one of those that report/write.py lists.
      label: what tables call them.
      responses: one to each prompt.
    """

    kind: str
    label: str
    responses: Sequence[Response]


class Suite:
    """Samples a run's models, judges their responses and makes the tables.

    Args:
      run: the run, whose stages are trained.
      config: what to evaluate.
    """

    def __init__(self, run: Run, config: EvaluationConfig):
        self._run = run
        self._config = config
        examples = run.data.examples(config.split)
        self._examples: list[Example] = examples[: config.num_prompts or None]
        self._prompts = [e.prompt for e in self._examples]
        self._groups = [e.group for e in self._examples]
        self._rows = [e.index for e in self._examples]
        # A report comes back to the same few models.
        self._model = functools.lru_cache(maxsize=8)(run.load_frozen)
        self._judge = judge_for(run.config.dataset, self._reward, config.reward_model)
        self._cache: dict[tuple, list[Response]] = {}
        self._traces: dict[tuple, list[Trace]] = {}

    def results(self) -> dict[str, Any]:
        """Computes all that the report shows, as JSON values in the layout of report/write.py."""
        config, run = self._config, self._run
        comparisons, scores = [], []
        for temperature in config.temperatures:
            comparisons += self._comparisons(temperature)
            scores += self._scores(temperature)
        gap_rows, gap_values = self._gap_rewards()
        versions = {"pit_jax": __version__, "jax": jax.__version__, "python": python_version()}
        return {
            "title": f"PIT on {run.config.dataset.name}",
            "description": (
                f"{len(self._prompts)} prompts of the {config.split} split, judged by the "
                f"{self._judge.name}; seed {run.config.seed}."
            ),
            "seed": run.config.seed,
            "num_prompts": len(self._prompts),
            "versions": versions,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "data": {"rows": self._data_rows()},
            "stages": [run.result(s.name) for s in run.config.stages if run.is_complete(s.name)],
            "comparisons": comparisons,
            "scores": scores,
            "iterations": [
                {"temperature": t, "rows": self._iteration_rows(t)} for t in config.temperatures
            ],
            "reward_models": [self._pair_rewards(), *gap_rows],
            "figure2": {pair: values.tolist() for pair, values in gap_values.items()},
            "figure3": self._sweep(),
            "figure4": curves.reward_curves(run, config.pit),
            "curves": curves.learning_curves(run),
            "samples": self._samples(),
        }

    def judge_generations(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Judges saved generations: compares each iteration's text with the original's.

        Args:
          records: `prompt` and `responses` [y_0, y_1, …], all of the same length or stopped early
            (the last one then stands for the later ones).
        """
        prompts = [record["prompt"] for record in records]
        depth = max(len(record["responses"]) for record in records)
        texts = [
            [r["responses"][min(k, len(r["responses"]) - 1)] for r in records] for k in range(depth)
        ]
        comparisons, scores = [], []
        for k, each in enumerate(texts):
            values = self._judge.scores(prompts, each)
            mean = scoring.mean_interval(values, prompts, self._judge.bounds)
            interval = {"ci_low": _known(mean.ci_low), "ci_high": _known(mean.ci_high)}
            scores.append({"name": f"iteration {k}", "mean_score": mean.mean, **interval})
            if k:
                outcomes = self._judge(prompts, each, texts[0])
                comparisons.append(
                    {
                        "name": f"Iteration {k} vs Original",
                        "first": "iteration",
                        "second": "original",
                        "judge": self._judge.name,
                        "group": "table1",
                        **dataclasses.asdict(scoring.compare(outcomes, prompts)),
                    }
                )
        return {
            "title": "Saved generations",
            "num_prompts": len(prompts),
            "comparisons": comparisons,
            "scores": scores,
        }

    # Samples

    def policy(self, stage: str, temperature: float, draw: int = 0) -> list[Response]:
        """Samples a policy's response to each prompt; another `draw` is an independent sample."""
        key = ("policy", stage, temperature, draw)
        if key not in self._cache:
            run = self._run
            self._cache[key] = run.sampler.respond(
                self._model(stage),
                [run.layout.policy_prompt(prompt) for prompt in self._prompts],
                run.layout.widths(run.config.lengths).policy,
                self._rows,
                run.key("evaluation", stage, draw),
                dataclasses.replace(run.config.improve.policy_sampling, temperature=temperature),
            )
        return self._cache[key]

    def improved(
        self, stage: str, temperature: float, iterations: int, method: str = "pit"
    ) -> list[Trace]:
        """Improves the original responses at the same temperature (Algorithm 2)."""
        key = (stage, temperature, iterations, method)
        if key not in self._traces:
            config, run = self._config, self._run
            gap_model = self._model(config.gap_model)
            improver = run.improver(self._model(stage), gap_model, config.gap_model)
            # Gaps are shown beside Figures 2 and 4, which have R_PIT's scores as they are.
            improver = dataclasses.replace(improver, anchor=0.0)
            improve = dataclasses.replace(
                run.config.improve,
                iterations=iterations,
                sampling=dataclasses.replace(run.config.improve.sampling, temperature=temperature),
                stop_unchanged=False,
                min_gap=None,
                time_budget=0.0,
                method=method,
            )
            original = self.policy(config.policy, temperature)
            draw = run.key("evaluation", stage, method)
            self._traces[key] = improver(self._prompts, original, self._rows, draw, improve)
        return self._traces[key]

    def _pit(self, stage: str, temperature: float, iteration: int = 1) -> list[Response]:
        depth = self._config.iterations if stage == self._config.pit else 1
        return [t.responses[iteration] for t in self.improved(stage, temperature, depth)]

    def _texts(self, responses: Sequence[Response]) -> list[str]:
        return [self._run.vocabulary.decode(r.tokens) for r in responses]

    def _reward(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Scores texts by R_P, for data without a checker."""
        run, name = self._run, self._config.reward_model
        widths, eos = run.layout.widths(run.config.lengths), run.vocabulary.eos_id
        encoded = [run.layout.response(text)[: widths.response] for text in texts]
        responses = [
            Response(row[:-1] if row[-1] == eos else row, row[-1] == eos) for row in encoded
        ]
        built = [run.layout.reward_prompt(prompt) for prompt in prompts]
        model, pooling = self._model(name), run.pooling(name)
        return run.sampler.score(model, built, widths.reward, responses, pooling)

    # Tables

    def _compare(self, temperature: float, group: str, a: Side, b: Side) -> dict[str, Any]:
        outcomes = self._judge(self._prompts, self._texts(a.responses), self._texts(b.responses))
        return {
            "name": f"{a.label} vs {b.label}",
            "first": a.kind,
            "second": b.kind,
            "temperature": temperature,
            "judge": self._judge.name,
            "group": group,
            **dataclasses.asdict(scoring.compare(outcomes, self._groups, self._run.config.seed)),
        }

    def _comparisons(self, temperature: float) -> list[dict[str, Any]]:
        config = self._config
        encode = self._run.vocabulary.encode
        original = Side("original", "Original", self.policy(config.policy, temperature))
        pit = Side("pit", "PIT", self._pit(config.pit, temperature))
        sft = Side("sft", "SFT", self.policy(config.sft, temperature))
        chosen = Side("chosen", "y_w", [Response(encode(e.chosen), True) for e in self._examples])
        again = self.policy(config.policy, temperature, draw=1)
        rows = [
            ("table1", dataclasses.replace(original, label="RL"), sft),
            ("table1", original, chosen),
            ("table1", pit, original),
        ]
        if config.self_refine:
            traces = self.improved(config.policy, temperature, 1, "self_refine")
            refined = Side("self_refine", "Self-Refine", [trace.responses[1] for trace in traces])
            rows += [("table1", refined, original), ("table1", pit, refined)]
        others = [
            ("table2", Side(self._ablation(stage), label, self._pit(stage, temperature)))
            for label, stage in config.ablations
        ]
        others.append(("control", Side("resampled", "Policy re-sampled", again)))
        others += [
            ("control", Side("control", label, self.policy(stage, temperature)))
            for label, stage in config.controls
        ]
        for group, other in others:
            rows += [(group, other, original), (group, pit, other)]
        return [self._compare(temperature, group, a, b) for group, a, b in rows]

    def _ablation(self, name: str) -> str:
        """What a PIT model of Table 2 is, by the rounds that its stage has."""
        stage = next((stage for stage in self._run.config.stages if stage.name == name), None)
        rounds = stage.rounds if isinstance(stage, RLStage) else ()
        sources = {round_.source for _, round_, *_ in curriculum.locate(rounds, 0)}
        if sources == {"data"}:
            return "first_only"
        return "second_only" if sources == {"policy"} else "ablation"

    def _scores(self, temperature: float) -> list[dict[str, Any]]:
        config = self._config
        models = [
            ("SFT policy", self.policy(config.sft, temperature)),
            ("RL policy (Original)", self.policy(config.policy, temperature)),
            ("PIT", self._pit(config.pit, temperature)),
        ]
        models += [(label, self.policy(s, temperature)) for label, s in config.controls]
        models += [(label, self._pit(s, temperature)) for label, s in config.ablations]
        rows, seed = [], self._run.config.seed
        for name, responses in models:
            values = self._judge.scores(self._prompts, self._texts(responses))
            mean = scoring.mean_interval(values, self._groups, self._judge.bounds, seed)
            rows.append(
                {
                    "name": name,
                    "temperature": temperature,
                    "mean_score": mean.mean,
                    "ci_low": _known(mean.ci_low),
                    "ci_high": _known(mean.ci_high),
                    "eos_rate": float(np.mean([r.ended for r in responses])),
                    "mean_length": float(np.mean([len(r.tokens) for r in responses])),
                }
            )
        return rows

    def _iteration_rows(self, temperature: float) -> list[dict[str, Any]]:
        traces = self.improved(self._config.pit, temperature, self._config.iterations)
        count = self._config.iterations + 1
        texts = [self._texts([t.responses[k] for t in traces]) for k in range(count)]
        scores_MN = np.stack([self._judge.scores(self._prompts, each) for each in texts])
        verdict: Callable[[np.ndarray, np.ndarray], np.ndarray] = scoring.win_lose_tie
        if not isinstance(self._judge, ExactJudge):
            verdict = scoring.reward_judge_outcomes
        pairs, outcomes = scoring.pairwise_outcomes(scores_MN, verdict)
        ratings = elo.elo_ratings(pairs, outcomes, self._groups, seed=self._run.config.seed)
        rows = []
        for k in range(count):
            delta = scoring.compare(verdict(scores_MN[k], scores_MN[0]), self._groups)
            row = {
                "iteration": k,
                "mean_score": float(scores_MN[k].mean()),
                "elo": float(ratings.rating[k]),
                "elo_low": _known(ratings.low[k]),
                "elo_high": _known(ratings.high[k]),
            }
            if k:
                changed = [t.responses[k].tokens != t.responses[k - 1].tokens for t in traces]
                row |= {
                    "delta_vs_original": delta.delta,
                    "ci_low": delta.ci_low,
                    "ci_high": delta.ci_high,
                    "changed": float(np.mean(changed)),
                    "gap": float(np.mean([t.gaps[k - 1] for t in traces])),
                }
            rows.append(row)
        return rows

    def _pair_rewards(self) -> dict[str, Any]:
        chosen = self._reward(self._prompts, [e.chosen for e in self._examples])
        rejected = self._reward(self._prompts, [e.rejected for e in self._examples])
        verdicts = scoring.win_lose_tie(chosen, rejected)
        return {"name": "R_P", **dataclasses.asdict(scoring.agreement(verdicts, self._groups))}

    def _gap_rewards(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Computes R_PIT's row of Table 4 and the rewards of Figure 2, on the evaluated split."""
        run, name = self._run, self._config.gap_model
        model, pooling = ScalarModel(run.config.network), run.pooling(name)
        score = run.partitioner.jit(
            lambda params, batch: tree_scores(model, params, batch, GAP_TREE, pooling),
            out_shardings=run.partitioner.replicated,
        )
        stage = run.stage(name)
        assert isinstance(stage, RewardStage)
        found: dict[str, list[np.ndarray]] = {pair: [] for pair in scoring.GAP_PAIRS}
        batches = run.data.batches(
            "rm_gap", self._config.split, stage.batch_size, shuffle=False, num_epochs=1
        )
        for batch in batches:
            real = batch.pop("weight") > 0
            scores = score(self._model(name), run.partitioner.shard_batch(batch))
            for pair in scoring.GAP_PAIRS:
                found[pair].append(np.asarray(scores[pair])[real])
        values = {p: np.concatenate(v)[: len(self._prompts)] for p, v in found.items()}
        moved, spread = reference_moves_score(values)
        row = {
            "name": "R_PIT",
            **scoring.gap_reward_summary(values, self._groups),
            "degeneration": float(moved / max(float(spread), 1e-9)),
        }
        return [row], values

    # Figures

    def _sweep(self) -> dict[str, Any]:
        config = self._config
        series: dict[str, list[float]] = {}
        intervals: dict[str, list[list[float]]] = {}
        for temperature in config.sweep:
            original = Side("original", "Original", self.policy(config.policy, 1.0))
            improver = self._run.improver(self._model(config.pit))
            own = self._run.config.improve.sampling
            improve = ImproveConfig(sampling=dataclasses.replace(own, temperature=temperature))
            draw = self._run.key("evaluation", config.pit, "sweep")
            traces = improver(self._prompts, original.responses, self._rows, draw, improve)
            again = self.policy(config.policy, temperature, draw=1)
            for side in (
                Side("pit", "PIT", [trace.responses[1] for trace in traces]),
                Side("resampled", "Policy re-sampled", again),
            ):
                row = self._compare(temperature, "figure3", side, original)
                series.setdefault(row["name"], []).append(row["delta"])
                intervals.setdefault(row["name"], []).append([row["ci_low"], row["ci_high"]])
        return {"temperatures": list(config.sweep), "series": series, "intervals": intervals}

    def _samples(self) -> list[dict[str, Any]]:
        traces = self.improved(
            self._config.pit, self._config.temperatures[0], self._config.iterations
        )
        samples = []
        for example, trace in list(zip(self._examples, traces, strict=True))[
            : self._config.num_samples
        ]:
            texts = self._texts(trace.responses)
            scores = self._judge.scores([example.prompt] * len(texts), texts)
            samples.append(
                {
                    "prompt": example.prompt,
                    "original": texts[0],
                    "iterations": texts[1:],
                    "scores": [float(score) for score in scores],
                    "chosen": example.chosen,
                }
            )
        return samples

    def _data_rows(self) -> list[list[Any]]:
        report = self._run.data.report()
        rows: list[list[Any]] = [["examples read", report["read"]]]
        rows += [[f"dropped: {reason}", n] for reason, n in sorted(report["dropped"].items())]
        rows += [[f"{split} split", n] for split, n in report["splits"].items()]
        rows += [[f"fold {fold} of train", n] for fold, n in report["folds"].items()]
        return rows


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
