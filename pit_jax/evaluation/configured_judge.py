"""Makes the judge that a configuration names, in the place of the data's checker or of R_P."""

from __future__ import annotations

import functools

from pit_jax.errors import UserError
from pit_jax.evaluation import classifier, language_judge
from pit_jax.evaluation.classifier import ClassifierConfig, ClassifierJudge
from pit_jax.evaluation.endpoint import EndpointConfig
from pit_jax.evaluation.judges import GapJudge, RewardJudge, RewardJudgeConfig
from pit_jax.evaluation.language_judge import LanguageModelJudge
from pit_jax.evaluation.responses import Responses
from pit_jax.run import stages
from pit_jax.run.run import Run

JudgeConfig = EndpointConfig | ClassifierConfig | RewardJudgeConfig


def make(
    config: JudgeConfig, run: Run, responses: Responses
) -> LanguageModelJudge | ClassifierJudge | RewardJudge | GapJudge:
    """Makes a judge.

    Args:
      config: a language model's, a classifier's or that of a reward model of the run.
      run: the run, whose directory keeps what a language model answers.
      responses: what scores texts by the run's models.

    Raises:
      UserError: if what it needs isn't there, or is wrong.
    """
    if isinstance(config, ClassifierConfig):
        return ClassifierJudge(config)
    if isinstance(config, EndpointConfig):
        return LanguageModelJudge(config, run.directory)
    task = run.stage(config.stage).task
    if task not in stages.REWARD_TASKS:
        raise UserError(
            f"RewardJudgeConfig.stage: got {config.stage!r} of task {task}, expected a stage of "
            f"task {' or '.join(stages.REWARD_TASKS)}"
        )
    if task == "rm_policy":
        rewards = functools.partial(responses.rewards, config.stage)
        return RewardJudge(rewards, f"R_P ({config.stage})")
    return GapJudge(functools.partial(responses.gaps, config.stage), f"R_PIT ({config.stage})")


def name_of(config: JudgeConfig) -> str:
    """Returns a name of the judge, which tables have too unless it is a model of the run."""
    if isinstance(config, ClassifierConfig):
        return classifier.name_of(config)
    if isinstance(config, RewardJudgeConfig):
        return f"reward model {config.stage}"
    return language_judge.name_of(config)
