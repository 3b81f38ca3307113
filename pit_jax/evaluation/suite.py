"""Evaluates a run: Tables 1 to 4 and Figures 2 to 5, as far as its judge can tell.

The judge is the exact checker if the data has one, else the run's own R_P; or a language model, a
classifier or another reward model of the run, if one is configured. What is compared with the main
models are all other complete stages of their tasks. Everything is measured on one split, which is
looked at once, with 95% intervals over the groups of examples: those that share a prompt, or a
dialogue, count as one draw.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from platform import python_version
from typing import Any, TypeVar

import jax

from pit_jax import __version__
from pit_jax.checked import at_least, checked
from pit_jax.data.examples import SPLITS
from pit_jax.evaluation import (
    budgets,
    configured_judge,
    curves,
    ground_truth,
    judges,
    responses,
    scoring,
    variants,
)
from pit_jax.evaluation.classifier import ClassifierJudge
from pit_jax.evaluation.held_out_pairs import HeldOutPairs
from pit_jax.evaluation.judges import ExactJudge, Judge, RewardJudgeConfig, Verdicts, checker
from pit_jax.evaluation.language_judge import LanguageModelJudge
from pit_jax.evaluation.responses import Responses
from pit_jax.evaluation.tables import Side, Tables, of_generations
from pit_jax.method.improve import Trace
from pit_jax.method.sampler import Response
from pit_jax.run import checks, stages
from pit_jax.run.run import Run

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
@checked
class EvaluationConfig:
    """Says what to evaluate.

    Attributes:
      split: `dev` while tuning, `test` for the report.
      num_prompts: how many prompts to take; 0 takes all. They are the first of the split, which is
        in the order of a hash, so that they are a sample of it.
      temperatures: temperatures of the tables, the main one first.
      sweep: temperatures of Figures 3 and 5.
      iterations: number of improvements in a row (Table 3).
      num_samples: number of prompts to show with all their texts.
      self_refine: whether to sample the Self-Refine baseline, as often in a row as PIT.
      best_of: the most draws of the policy to a prompt, y_0 among them, that are compared with PIT
        at as many tokens (best-of-n). Each temperature's tables have two draws anyway; of the
        others no more are sampled than the tokens of `iterations` improvements are enough for,
        which is about as many draws. 0 leaves the comparison out.
      sft, policy, pit, reward_model, gap_model: names of the stages to evaluate.
      controls: (label, stage) of policies compared with the original, as a policy trained longer;
        other complete stages of task `rl_policy` follow by their names.
      ablations: (label, stage) of PIT models compared with the original, Self-Refine and PIT
        (Table 2); the other complete stages that train PIT by PPO follow by their names.
      judge: a language model, a classifier or a reward model of the run that judges, in the place
        of the data's exact checker or R_P.
    """

    split: str = "test"
    num_prompts: int = 0
    temperatures: tuple[float, ...] = (1.0, 0.4)
    sweep: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    iterations: int = 5
    num_samples: int = 6
    self_refine: bool = True
    best_of: int = 8
    sft: str = "sft_policy"
    policy: str = "rl_policy"
    pit: str = "rl_pit"
    reward_model: str = "rm_policy"
    gap_model: str = "rm_gap"
    controls: tuple[tuple[str, str], ...] = ()
    ablations: tuple[tuple[str, str], ...] = ()
    judge: configured_judge.JudgeConfig | None = None

    def __post_init__(self):
        at_least(self, 0, "num_prompts", "num_samples", "best_of")
        at_least(self, 1, "iterations")
        if self.split not in SPLITS:
            raise ValueError(f"evaluation: expected a split of {SPLITS}; got {self.split!r}")
        if min(self.temperatures, default=-1) < 0 or min(self.sweep, default=0) < 0:
            told = f"temperatures={self.temperatures}, sweep={self.sweep}"
            raise ValueError(f"evaluation: got {told}, expected numbers of 0 or more")

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of all stages that the configuration asks for."""
        others = (stage for _, stage in (*self.controls, *self.ablations))
        own = [self.judge.stage] if isinstance(self.judge, RewardJudgeConfig) else []
        main = (self.sft, self.policy, self.pit, self.reward_model, self.gap_model)
        return (*main, *others, *own)


class Suite:
    """Samples a run's models, judges their responses and makes the tables.

    Attributes:
      responses, tables, pairs: what samples, what judges, and the held-out pairs.

    Args:
      run: the run, whose stages are trained.
      config: what to evaluate.
    """

    def __init__(self, run: Run, config: EvaluationConfig):
        self._run = run
        self._config = config
        self.responses = Responses.of(run, config)
        self._judge: Judge
        self._rewards = functools.partial(self.responses.rewards, config.reward_model)
        if config.judge:
            self._judge = configured_judge.make(config.judge, run, self.responses)
        else:
            self._judge = judges.judge_for(run.config.dataset, self._rewards, config.reward_model)
        self.tables = Tables(self.responses, self._judge, run.config.seed)
        self.pairs = HeldOutPairs(run, self.responses, config.split)
        of = functools.partial(variants.others, run)
        self._controls = of(("rl_policy",), config.policy, config.controls)
        self._ablations = of(stages.PIT_RL, config.pit, config.ablations)
        self._reward_models = of(("rm_policy",), config.reward_model)
        self._gap_models = of(("rm_gap",), config.gap_model)
        self._supervised = variants.supervised(run)

    def results(self) -> dict[str, Any]:
        """Computes all that the report shows, as JSON values in the layout of report/write.py."""
        config, run = self._config, self._run
        found = (self._controls, self._ablations, self._reward_models, self._gap_models)
        checks.check_models(run, (stage for models in found for _, stage in models))
        judged = self.with_verdicts(self._judged)
        reward_models, figure2 = self._reward_model_rows()
        versions = {"pit_jax": __version__, "jax": jax.__version__, "python": python_version()}
        return {
            "title": f"PIT on {run.config.dataset.name}",
            "description": (
                f"{len(self.responses.prompts)} prompts of the {config.split} split, judged by "
                f"{judges.told(self._judge.name)}; seed {run.config.seed}."
            ),
            "seed": run.config.seed,
            "num_prompts": len(self.responses.prompts),
            "versions": versions,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "data": {"rows": self._data_rows()},
            "stages": curves.stages(run),
            "variants": self._variants(),
            **judged,
            "reward_models": reward_models + judged["reward_models"],
            "figure2": figure2,
            "figure4": curves.reward_curves(run, (("PIT", config.pit), *self._ablations)),
            "curves": curves.learning_curves(run),
            "samples": self._samples(),
            **self.judging(),
        }

    def _judged(self) -> dict[str, Any]:
        """Makes all that needs verdicts on two responses."""
        config = self._config
        comparisons, scores = [], []
        for temperature in config.temperatures:
            comparisons += self._comparisons(temperature)
            scores += self._scores(temperature)
        figure5, supervised_rows = self._supervised_pit()
        agreement = [self.pairs.judge_row(self._judge)] if config.judge else []
        return {
            "comparisons": comparisons + supervised_rows,
            "scores": scores,
            "iterations": [{"temperature": t, **self._iterations(t)} for t in config.temperatures],
            "budgets": [row for t in config.temperatures for row in self._budgets(t)],
            "reward_models": agreement,
            "ground_truth": self._ground_truth(),
            "figure3": self._sweep(),
            "figure5": figure5,
        }

    def with_verdicts(self, make: Callable[[], T]) -> T:
        """Returns what `make` makes of verdicts; a language model is asked for them together."""
        if isinstance(self._judge, LanguageModelJudge):
            return self._judge.together(make)
        return make()

    def judging(self) -> dict[str, Any]:
        """What the report says of a judge that is configured."""
        judge = self._judge
        if isinstance(judge, LanguageModelJudge):
            return {"judging": judge.counts(), "warnings": judge.warnings()}
        return {"warnings": judge.warnings()} if isinstance(judge, ClassifierJudge) else {}

    def judge_generations(
        self, records: Sequence[dict[str, Any]], names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Judges saved generations, as `tables.of_generations` does."""
        made = self.with_verdicts(lambda: of_generations(self._judge, records, names))
        return {
            "title": " and ".join(names) or "Saved generations",
            "num_prompts": len({record["prompt"] for record in records}),
            "description": budgets.LEFT_OUT if self._config.best_of and not names else "",
            **made,
            **self.judging(),
        }

    # Responses

    def policy(self, stage: str, temperature: float, draw: int = 0) -> list[Response]:
        """Samples a policy's response to each prompt; another `draw` is an independent sample."""
        return self.responses.policy(stage, temperature, draw)

    def improved(
        self, stage: str, temperature: float, iterations: int, method: str = "pit"
    ) -> list[Trace]:
        """Improves the original responses at the same temperature (Algorithm 2)."""
        return self.responses.improved(stage, temperature, iterations, method)

    def _pit(self, stage: str, temperature: float) -> list[Response]:
        if stage == self._config.pit:
            traces = self.improved(stage, temperature, self._config.iterations)
        else:  # of which no table has further iterations, or gaps
            traces = self.responses.improved(stage, temperature, 1, with_gaps=False)
        return [t.responses[1] for t in traces]

    def _self_refine(self, temperature: float) -> list[Trace]:
        """The original's refinements; none if Self-Refine isn't asked for."""
        config = self._config
        if not config.self_refine:
            return []
        return self.improved(config.policy, temperature, config.iterations, "self_refine")

    # Tables

    def _comparisons(self, temperature: float) -> list[dict[str, Any]]:
        rows = self._sides(temperature)
        return [self.tables.compare(temperature, group, a, b) for group, a, b in rows]

    def _sides(self, temperature: float) -> list[tuple[str, Side, Side]]:
        """Lists what is compared, by the group of its table."""
        config = self._config
        original = Side("original", "Original", self.policy(config.policy, temperature))
        pit = Side("pit", "PIT", self._pit(config.pit, temperature))
        sft = Side("sft", "SFT", self.policy(config.sft, temperature))
        examples = self.responses.examples
        chosen = Side("chosen", "y_w", [Response([], True, text=e.chosen) for e in examples])
        again = self.policy(config.policy, temperature, draw=1)
        rows = [
            ("table1", dataclasses.replace(original, label="RL"), sft),
            ("table1", original, chosen),
            ("table1", pit, original),
        ]
        refined = []
        if traces := self._self_refine(temperature):
            refined = [Side("self_refine", "Self-Refine", [t.responses[1] for t in traces])]
        rows += [("table1", each, original) for each in refined]
        rows += [("table1", pit, each) for each in refined]
        for label, stage in self._ablations:
            kind = variants.kind(self._run, stage, config.pit)
            variant = Side(kind, label, self._pit(stage, temperature))
            rows += [("table2", variant, other) for other in (original, *refined)]
            rows.append(("table2", pit, variant))
        others = [Side("resampled", "Policy re-sampled", again)]
        others += [
            Side("control", label, self.policy(stage, temperature))
            for label, stage in self._controls
        ]
        for other in others:
            rows += [("control", other, original), ("control", pit, other)]
        return rows

    def _scores(self, temperature: float) -> list[dict[str, Any]]:
        config = self._config
        models = [
            ("SFT policy", self.policy(config.sft, temperature)),
            ("RL policy (Original)", self.policy(config.policy, temperature)),
            ("PIT", self._pit(config.pit, temperature)),
        ]
        models += [(label, self.policy(s, temperature)) for label, s in self._controls]
        models += [(label, self._pit(s, temperature)) for label, s in self._ablations]
        return [self.tables.score(name, temperature, each) for name, each in models]

    def _iterations(self, temperature: float) -> dict[str, Any]:
        count = self._config.iterations
        traces = self.improved(self._config.pit, temperature, count)
        min_gap = self._run.config.improve.min_gap or 0.0
        return {
            **self.tables.iterations(traces, self._self_refine(temperature), count),
            # `improve` counts a gap from the anchor, and these are scores as they are.
            "stops": self.tables.stops(
                traces, count, min_gap + self._run.anchor(self._config.gap_model)
            ),
        }

    def _budgets(self, temperature: float) -> list[dict[str, Any]]:
        """Compares PIT with as many tokens of the policy's draws; nothing if that isn't asked."""
        config = self._config
        if not config.best_of:
            return []
        most, best_of = config.iterations, config.best_of
        traces = self.improved(config.pit, temperature, most)
        tokens = [budgets.tokens(trace, most) for trace in traces]
        draws = self.responses.draws(temperature, tokens, best_of)
        how = temperature, traces, draws, most, best_of
        return budgets.rows(self.tables, self._rewards, *how)

    def _reward_model_rows(self) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
        """Makes Table 4 and, of R_PIT's rewards, Figure 2.

        A gap that is a difference of R_P's scores stands beside R_PIT's (Appendix C).
        """
        pairs, config = self.pairs, self._config
        difference = scoring.difference_rewards(*pairs.policy_rewards(config.reward_model))
        rewards = pairs.gap_rewards(config.gap_model)
        rows = [
            pairs.policy_row("R_P", config.reward_model),
            pairs.gap_row("R_PIT", rewards),
            pairs.gap_row("R_P(y1) - R_P(y2)", difference),
        ]
        for label, stage in self._reward_models:
            own = scoring.difference_rewards(*pairs.policy_rewards(stage))
            rows += [pairs.policy_row(label, stage), pairs.gap_row(f"difference of {label}", own)]
        rows += [pairs.gap_row(label, pairs.gap_rewards(s)) for label, s in self._gap_models]
        return rows, {pair: values.tolist() for pair, values in rewards.items()}

    def _ground_truth(self) -> list[dict[str, Any]]:
        """Compares the judge, and R_P as one, with the exact checker on what Table 1 compares."""
        exact, true = checker(self._run.config.dataset), self.tables.verdicts
        if exact is None:
            return []
        rewards = judges.RewardJudge(self._rewards, f"R_P ({self._config.reward_model})")
        compared = {rewards.name: Verdicts(rewards, self.responses.prompts)}
        if not isinstance(self._judge, ExactJudge):
            true = Verdicts(exact, self.responses.prompts)
            compared = {self._judge.name: self.tables.verdicts, **compared}
        pairs = [
            (responses.texts(a.responses), responses.texts(b.responses))
            for temperature in self._config.temperatures
            for group, a, b in self._sides(temperature)
            if group == "table1"
        ]
        groups, seed = self.responses.groups, self._run.config.seed
        return [
            ground_truth.row(name, verdicts, true, pairs, groups, seed)
            for name, verdicts in compared.items()
        ]

    def _variants(self) -> list[dict[str, str]]:
        """Says what each model of a group is, where there are several."""
        config = self._config
        rewards = (("R_P", config.reward_model), ("R_PIT", config.gap_model))
        groups = {
            "table2": ([("PIT", config.pit)], self._ablations),
            "control": ([("Original", config.policy)], self._controls),
            "reward_models": (rewards, (*self._reward_models, *self._gap_models)),
            "figure5": (self._supervised[:1], self._supervised[1:]),
        }
        return variants.rows(self._run, groups)

    # Figures

    def _sweep(self) -> dict[str, Any]:
        """Makes Figure 3: improvements at each temperature of the original of temperature 1."""
        config, swept = self._config, self.responses.swept

        def sides(temperature):
            pit = Side("pit", "PIT", swept(config.pit, temperature, config.policy))
            again = self.policy(config.policy, temperature, draw=1)
            original = Side("original", "Original", self.policy(config.policy, 1.0))
            yield pit, original
            yield Side("resampled", "Policy re-sampled", again), original
            if config.self_refine:
                traces = swept(config.policy, temperature, config.policy, "self_refine")
                refined = Side("self_refine", "Self-Refine", traces)
                yield refined, original
                yield pit, refined

        return self._series(sides)

    def _supervised_pit(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Makes Figure 5 and its comparisons, for a run of several supervised PIT models."""
        config, swept = self._config, self.responses.swept
        if len(self._supervised) < 2:
            return {}, []

        def models(temperature):
            improved = [
                Side("pit_sft", label, swept(stage, temperature, config.sft))
                for label, stage in self._supervised
            ]
            if config.self_refine:
                responses = swept(config.sft, temperature, config.sft, "self_refine")
                improved.append(Side("self_refine_sft", "Self-Refine (SFT)", responses))
            return improved

        def sides(temperature):
            original = Side("original_sft", "Original (SFT)", self.policy(config.sft, 1.0))
            return [(side, original) for side in models(temperature)]

        temperature = config.temperatures[0]
        first, *more = models(temperature)
        pairs = [*sides(temperature), *((first, other) for other in more)]
        rows = [self.tables.compare(temperature, "figure5", a, b) for a, b in pairs]
        return self._series(sides), rows

    def _series(self, sides) -> dict[str, Any]:
        """Makes a curve of each comparison of `sides(temperature)` over the sweep."""
        series: dict[str, list[float]] = {}
        intervals: dict[str, list[list[float]]] = {}
        for temperature in self._config.sweep:
            for a, b in sides(temperature):
                found, name = self.tables.delta(a, b), f"{a.label} vs {b.label}"
                series.setdefault(name, []).append(found.delta)
                intervals.setdefault(name, []).append([found.ci_low, found.ci_high])
        return {"temperatures": list(self._config.sweep), "series": series, "intervals": intervals}

    def _samples(self) -> list[dict[str, Any]]:
        """Shows the first examples with all their texts, as the table of iterations has them."""
        config = self._config
        traces = self.improved(config.pit, config.temperatures[0], config.iterations)
        said = list(zip(*(responses.texts(trace.responses) for trace in traces), strict=True))
        scores_KN = [self.tables.verdicts.scores(texts) for texts in said]
        return [
            {
                "prompt": example.prompt,
                "original": said[0][i],
                "iterations": [texts[i] for texts in said[1:]],
                "scores": [float(scores_N[i]) for scores_N in scores_KN if scores_N is not None],
                "gaps": [float(gap) for gap in traces[i].gaps[: config.iterations]],
                "chosen": example.chosen,
                "rejected": example.rejected,
            }
            for i, example in enumerate(self.responses.examples[: config.num_samples])
        ]

    def _data_rows(self) -> list[list[Any]]:
        report = self._run.data.report()
        rows: list[list[Any]] = [["examples read", report["read"]]]
        rows += [[f"dropped: {reason}", n] for reason, n in sorted(report["dropped"].items())]
        rows += [[f"{split} split", n] for split, n in report["splits"].items()]
        rows += [[f"fold {fold} of train", n] for fold, n in report["folds"].items()]
        return rows
