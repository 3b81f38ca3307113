"""Gives T5X the stages' models in the shape of `t5x.models.BaseTransformerModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax.core
import flax.linen as nn
import flax.linen.partitioning
import jax
import jax.numpy as jnp
import t5x.models
import t5x.optimizers
from flax import traverse_util
from jax.sharding import PartitionSpec

from pit_jax.adapters.t5x.setups import Setup
from pit_jax.adapters.t5x.states import Optimizer
from pit_jax.data import layouts
from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.method import forward, losses
from pit_jax.method.decode import SamplingConfig, generate, row_keys
from pit_jax.models.attention import CausalRows
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.run import stages
from pit_jax.run.stages import RLStage
from pit_jax.run.t5x_checkpoints import ppo_part
from pit_jax.runtime.microbatches import accumulate

Batch = Mapping[str, jax.Array]


class _Model(t5x.models.BaseTransformerModel):
    """Has what the models of all stages share.

    Args:
      setup: the stage.
      optimizer_def: an optimizer of T5X's to use in place of the stage's own.
      sampling: how responses are drawn in `predict` modes.
    """

    def __init__(
        self,
        setup: Setup,
        optimizer_def: t5x.optimizers.OptimizerDef | None = None,
        sampling: SamplingConfig = SamplingConfig(temperature=0.0),
    ):
        self.setup = setup
        self.stage: Any = setup.trained  # of the kind that the class is for
        self.sampling = sampling
        self.FEATURE_CONVERTER_CLS = setup.data.feature_converter(stages.rows_of(self.stage))
        vocabulary = setup.role_of(self.stage).vocabulary
        super().__init__(
            module=self._module(),
            input_vocabulary=vocabulary,
            output_vocabulary=vocabulary,
            optimizer_def=optimizer_def or Optimizer(stages.optimizer(self.stage)),
        )

    def _module(self) -> nn.Module:
        return LanguageModel(self.setup.config.network)

    def _init(self, key: jax.Array) -> Any:
        return stages.init_language_model(self.setup.config.network)(key)

    def get_initial_variables(self, rng, input_shapes, input_types=None):
        """Makes random parameters, with the logical names of their dims as T5X has them."""
        del input_shapes, input_types
        boxed = self._init(rng)
        return flax.core.freeze({"params": nn.meta.unbox(boxed), "params_axes": _axes(boxed)})

    def loss_fn(self, params, batch: Batch, dropout_rng=None):
        """Computes a batch's mean loss in the stage's microbatches, and metrics (objectives.py)."""
        del dropout_rng  # the network has no dropout
        objective = stages.objective(
            self.stage, self.setup.config.network, self.setup.role_of(self.stage).widths
        )
        parts = self.stage.microbatches
        if parts > 1:
            objective = jax.checkpoint(objective)  # or all parts' activations would be kept
        ((total, weight), metrics), _ = accumulate(
            lambda part: (objective(params, part), ()), batch, parts
        )
        return total / jnp.maximum(weight, 1e-8), averages(metrics)

    def predict_batch_with_aux(self, params, batch: Batch, rng=None):
        """Samples a response to each prompt of a batch.

        Args:
          params: parameters of the language model; of a PPO stage's, the actor's are taken.
          batch: a batch of the stage's feature converter.
          rng: key of the samples; rows draw by their place in the batch.

        Returns:
          tokens [B, R], EOS included, and {"scores": log-probability [B]}.
        """
        width = self.setup.role_of(self.stage).widths.response
        prompt_BP = _prompts(batch, width)
        rng = jax.random.key(0) if rng is None else rng
        keys = row_keys(rng, jnp.arange(len(prompt_BP)))
        actor = params.get("actor", params)
        ends = self.setup.role_of(self.stage).vocabulary.ends
        generation = generate(self.module, actor, prompt_BP, keys, width, self.sampling, ends=ends)
        return generation.tokens_BR, {"scores": jnp.sum(generation.log_probs_BR, axis=1)}


class SupervisedModel(_Model):
    """This is the model of the supervised stages: pretrain, sft_policy, sft_pit and its kind."""

    def _compute_logits(self, params, batch: Batch, dropout_rng=None):
        del dropout_rng
        return self.module.apply(
            {"params": params},
            batch["decoder_input_tokens"],
            batch["decoder_positions"],
            CausalRows(batch["decoder_segment_ids"]),
        )

    def score_batch(self, params, batch: Batch, return_intermediates: bool = False):
        """Computes log-likelihoods of the targets, float32 [B]."""
        logits_BTV = self._compute_logits(params, batch)
        targets_BT = batch["decoder_target_tokens"]
        log_probs_BT = losses.token_log_probs(logits_BTV, targets_BT)
        token_scores_BT = log_probs_BT * jnp.abs(batch["decoder_loss_weights"])
        scores_B = jnp.sum(token_scores_BT, axis=1)
        if return_intermediates:
            return scores_B, {"decoder": {"token_scores": (token_scores_BT,)}}
        return scores_B


class PairwiseRewardModel(_Model):
    """This is the model of the stage rm_policy, which scores two responses."""

    margin = ("chosen", "rejected")

    def _module(self) -> nn.Module:
        return ScalarModel(self.setup.config.network)

    def _init(self, key: jax.Array) -> Any:
        return stages.init_scalar_model(self.setup.config.network)(key)

    def _compute_logits(self, params, batch: Batch, dropout_rng=None):
        raise NotImplementedError("a reward model has no logits; see score_batch")

    def score_batch(self, params, batch: Batch, return_intermediates: bool = False):
        """Computes the better response's score minus the other's [B], and each score by name."""
        del return_intermediates
        pooling = self.stage.reward.pooling
        tree = layouts.TREES[stages.rows_of(self.stage)]
        scores = forward.tree_scores(
            self.module, params, batch, tree, pooling, self.setup.role_of(self.stage).widths
        )
        better, worse = self.margin
        return scores[better] - scores[worse], scores

    def predict_batch_with_aux(self, params, batch: Batch, rng=None):
        """Raises an error, since a reward model has nothing to predict."""
        raise NotImplementedError("a reward model predicts no text; infer.mode must be 'score'")


class GapRewardModel(PairwiseRewardModel):
    """This is the model of the stage rm_gap, with the scores that its loss reads."""

    margin = ("wl", "lw")


class PPOModel(_Model):
    """This is the model of the stages rl_policy and rl_pit: actor and critic, with PPO's own state.

    That state is a collection of its own, `ppo`, which T5X keeps with the parameters and saves.
    """

    def _init(self, key: jax.Array) -> Any:
        return self._start(key).train.params

    def _start(self, key: jax.Array) -> Any:
        return stages.starting_state(self.stage, self.setup.config.networks(self.stage))(key)

    def get_initial_variables(self, rng, input_shapes, input_types=None):
        """Makes parameters of actor and critic, and PPO's counters."""
        variables = super().get_initial_variables(rng, input_shapes, input_types)
        ppo = ppo_part(self._start(rng))
        return variables.copy({"ppo": ppo, "ppo_axes": _axes(ppo)})

    def _compute_logits(self, params, batch: Batch, dropout_rng=None):
        raise NotImplementedError("PPO has no logits of a batch; see PPOTrainer")

    def loss_fn(self, params, batch: Batch, dropout_rng=None):
        """Raises an error, since PPO's loss is of episodes and not of a batch."""
        raise NotImplementedError("a PPO stage needs train.trainer_cls = @pit.PPOTrainer")

    def score_batch(self, params, batch: Batch, return_intermediates: bool = False):
        """Computes log-likelihoods of the chosen responses under the actor, float32 [B]."""
        del return_intermediates
        chosen_BR = batch["chosen_tokens"]
        log_probs_BR, _ = forward.response_log_probs(
            self.module,
            params["actor"],
            batch["prompt_tokens"],
            chosen_BR,
            (chosen_BR != PAD_ID).astype(jnp.float32),
        )
        return jnp.sum(log_probs_BR, axis=1)


def model(
    setup: Setup,
    optimizer_def: t5x.optimizers.OptimizerDef | None = None,
    sampling: SamplingConfig = SamplingConfig(temperature=0.0),
) -> _Model:
    """Makes the model of a stage; the arguments are those of the models."""
    kinds = {"rm_policy": PairwiseRewardModel, "rm_gap": GapRewardModel}
    kind = PPOModel if isinstance(setup.trained, RLStage) else SupervisedModel
    return kinds.get(setup.trained.task, kind)(setup, optimizer_def, sampling)


def _axes(boxed: Any) -> dict[str, Any]:
    """Returns dims' logical names as T5X has them, under `NAME_axes`; none for unboxed arrays."""

    def names(leaf):
        axes = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        return flax.linen.partitioning.AxisMetadata(PartitionSpec(*axes))

    axes = jax.tree.map(names, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    flat = traverse_util.flatten_dict(axes)
    return traverse_util.unflatten_dict(
        {(*path[:-1], f"{path[-1]}_axes"): value for path, value in flat.items()}
    )


def averages(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, clu.metrics.Metric]:
    """Turns metrics into those that T5X merges and writes."""
    return {
        name: clu.metrics.Average(
            total=jnp.asarray(total, jnp.float32), count=jnp.asarray(count, jnp.float32)
        )
        for name, (total, count) in metrics.items()
    }


def _prompts(batch: Batch, width: int) -> jax.Array:
    """Returns left-padded prompts [B, P] for a batch of any stage; `width` is the responses' R."""
    if "prompt_tokens" in batch:
        return batch["prompt_tokens"]
    tokens_BT = batch["decoder_input_tokens"]
    # The first target's weight stands at the prompt's last token.
    length_B = jnp.argmax(batch["decoder_loss_weights"] != 0, axis=1) + 1
    P = tokens_BT.shape[1] - width
    column_BP = jnp.arange(P)[None] - (P - length_B)[:, None]
    moved_BP = jnp.take_along_axis(tokens_BT, jnp.maximum(column_BP, 0), axis=1)
    return jnp.where(column_BP >= 0, moved_BP, PAD_ID)
