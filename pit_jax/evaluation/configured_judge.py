"""Makes the judge that a configuration names, in the place of the data's checker or of R_P."""

from __future__ import annotations

from etils import epath

from pit_jax.evaluation import classifier, language_judge
from pit_jax.evaluation.classifier import ClassifierConfig, ClassifierJudge
from pit_jax.evaluation.endpoint import EndpointConfig
from pit_jax.evaluation.language_judge import LanguageModelJudge

JudgeConfig = EndpointConfig | ClassifierConfig


def make(config: JudgeConfig, directory: epath.Path) -> LanguageModelJudge | ClassifierJudge:
    """Makes a judge.

    Args:
      config: a language model's or a classifier's.
      directory: the run directory, which keeps what a language model answers.

    Raises:
      UserError: if what it needs isn't there, or is wrong.
    """
    if isinstance(config, ClassifierConfig):
        return ClassifierJudge(config)
    return LanguageModelJudge(config, directory)


def name_of(config: JudgeConfig) -> str:
    """Returns the judge's name in tables."""
    if isinstance(config, ClassifierConfig):
        return classifier.name_of(config)
    return language_judge.name_of(config)
