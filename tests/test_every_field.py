"""Every field of every configuration has a test that shows what it changes.

Configurations are the frozen dataclasses of the package, but for those that only hold results or
parts that are made. A new field fails here until its test is named.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import pathlib
import typing

import pytest

from pit_jax.data.synthetic.instructions import FAMILIES
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.run.config import RunConfig
from tests.test_architecture import fields_of, is_frozen_dataclass, sources

TESTS = pathlib.Path(__file__).parent

# Configuration -> test -> the fields whose effect it shows.
SHOWN_BY: dict[str, dict[str, str]] = {
    "data.batching.BatchingConfig": {
        "data/test_input_pipeline.py::test_packed_rows_hold_the_same_examples": "packed_length",
        "data/test_input_pipeline.py::test_buckets_cut_padding_and_nothing_else": "length_buckets",
    },
    "data.datasets.DatasetConfig": {
        "data/test_datasets.py::test_kind_says_how_a_file_is_read": "kind",
        "data/test_datasets.py::test_sizes_are_upper_bounds": "train_size dev_size test_size",
        "data/test_datasets.py::test_family_level_and_seed_are_those_of_the_generator": (
            "family level seed"
        ),
        "data/test_datasets.py::test_files_are_divided_by_prompt": "path",
        "data/test_datasets.py::test_test_files_hold_out_their_prompts": "test_path",
        "data/files/test_builders.py::test_data_dir_is_where_a_tfds_dataset_is_looked_for": (
            "data_dir"
        ),
        "data/test_datasets.py::test_on_error_says_what_becomes_of_a_malformed_line": "on_error",
        "data/test_datasets.py::test_cut_dialogues_stay_together_by_their_first_turn": "group_by",
        "data/test_datasets.py::test_columns_and_a_minimum_margin_are_those_of_the_reader": (
            "columns min_margin"
        ),
    },
    "data.datasets.MixtureConfig": {
        "data/test_datasets.py::test_parts_of_a_mixture_are_loaded_each_by_its_own_config": "parts",
        "data/test_input_pipeline.py::test_a_mixture_draws_at_its_rates": "rates",
    },
    "data.layouts.Lengths": {
        "data/test_layouts.py::test_each_window_bounds_its_own_fields": (
            "prompt reference response reflection"
        ),
    },
    "data.synthetic.drafts.DraftsConfig": {
        "data/synthetic/test_drafts.py::test_kinds_come_in_their_shares": "min_steps max_steps",
        "data/synthetic/test_drafts.py::test_max_ahead": "max_ahead",
        "data/synthetic/test_drafts.py::test_mistakes_are_cut_back": "mistakes",
        "data/synthetic/test_drafts.py::test_bluffs_are_cut_back_and_may_go_a_step_on": "bluffs",
        "data/synthetic/test_drafts.py::test_malformed_sheets_are_worth_nothing": "malformed",
    },
    "data.synthetic.requirements.RequirementsConfig": {
        "data/synthetic/test_requirements.py::"
        "test_each_field_of_a_level_bounds_what_prompts_have": (
            "tasks min_words max_words min_requirements max_requirements requirements"
        ),
        "data/synthetic/test_requirements.py::test_each_share_is_that_of_one_kind_of_fault": (
            "damaged extras malformed bluffs"
        ),
    },
    "evaluation.classifier.ClassifierConfig": {
        "evaluation/test_classifier.py::test_scores_are_those_of_the_pipeline": "model batch_size",
        "evaluation/test_classifier.py::test_the_label_that_counts": "label",
        "evaluation/test_classifier.py::test_max_length_and_dtype": "max_length dtype",
    },
    "evaluation.judges.RewardJudgeConfig": {
        "evaluation/test_suite.py::test_a_reward_model_of_the_run_judges": "stage",
    },
    "evaluation.endpoint.EndpointConfig": {
        "evaluation/test_language_judge.py::test_what_an_answer_depends_on_is_asked_anew": (
            "url model prompts"
        ),
        "evaluation/test_endpoint.py::test_what_is_left_to_the_api_is_not_sent": (
            "key_variable temperature max_tokens"
        ),
        "evaluation/test_language_judge.py::test_so_many_requests_are_under_way_at_once": (
            "concurrency"
        ),
        "evaluation/test_endpoint.py::test_so_many_retries_and_no_more": "retries",
        "evaluation/test_judge_faults.py::test_so_many_may_stay_without_an_answer": (
            "max_unanswered"
        ),
        "evaluation/test_judge_faults.py::"
        "test_answers_without_usage_are_counted_and_prices_make_a_cost": "prices",
        "evaluation/test_endpoint.py::test_a_timeout_and_a_broken_connection_are_tried_again": (
            "timeout"
        ),
    },
    "evaluation.suite.EvaluationConfig": {
        "evaluation/test_suite_fields.py::"
        "test_the_split_is_the_one_that_is_asked_for_and_0_takes_all_of_it": "split num_prompts",
        "evaluation/test_suite_fields.py::test_temperatures_of_tables_and_of_the_sweep": (
            "temperatures sweep"
        ),
        "evaluation/test_suite_fields.py::test_iterations_of_pit_and_self_refine": "iterations",
        "evaluation/test_suite_fields.py::test_so_many_samples_are_shown": "num_samples",
        "evaluation/test_suite_fields.py::test_each_further_model_has_its_own_rows": (
            "self_refine controls ablations"
        ),
        "evaluation/test_suite_fields.py::test_each_stage_that_is_named_is_the_one_that_is_asked": (
            "sft policy pit reward_model gap_model"
        ),
        "evaluation/test_language_judge.py::test_a_whole_evaluation_by_verdicts": "judge",
        "evaluation/test_suite_scripted.py::"
        "test_best_of_n_is_drawn_as_often_as_it_is_allowed": "best_of",
    },
    "method.choice.Choice": {
        "run/test_choosing.py::"
        "test_groups_candidates_and_samples_are_as_many_as_asked_for": "groups per_group samples",
        "run/test_choosing.py::test_so_many_prompts_of_dev_are_answered": "num_prompts",
        "run/test_choosing.py::test_the_model_of_a_stage_is_the_chosen_one": "step",
    },
    "method.curriculum.Round": {
        "method/test_curriculum.py::"
        "test_references_of_pit_are_sampled_and_improved_as_the_round_says": (
            "source improvements pit_sampling"
        ),
        "method/test_curriculum.py::test_references_of_a_policy_are_sampled_as_the_round_says": (
            "sampling"
        ),
        "method/test_curriculum.py::test_rounds_still_to_do": "steps",
        "run/test_stage_training.py::"
        "test_references_come_from_the_policy_and_the_step_that_the_round_names": (
            "policy policy_step"
        ),
    },
    "method.decode.SamplingConfig": {
        "method/test_decode.py::test_draws_follow_the_tempered_softmax": "temperature",
        "method/test_decode.py::test_filters_never_draw_an_excluded_token": "top_k top_p",
    },
    "method.improve.ImproveConfig": {
        "method/test_improve.py::test_a_fixed_number_of_iterations": "iterations",
        "method/test_improve.py::test_every_pass_samples_as_sampling_says": "sampling",
        "run/test_improving.py::test_each_role_samples_as_the_configuration_says": (
            "policy_sampling"
        ),
        "run/test_improving.py::test_keep_says_which_response_is_the_result": "keep",
        "run/test_run.py::test_self_refine_names_what_a_run_asks_its_policy": "self_refine",
        "method/test_improve.py::test_an_unchanged_response_stops_its_row": "stop_unchanged",
        "method/test_improve.py::test_a_gap_below_epsilon_keeps_the_response_before": "min_gap",
        "method/test_improve.py::test_a_time_budget_starts_no_further_iteration": "time_budget",
        "method/test_improve.py::"
        "test_self_refine_asks_for_feedback_and_then_for_a_better_response": ("method"),
    },
    "method.objectives.RewardConfig": {
        "method/test_objectives.py::test_reward_metrics_by_hand": "pooling centring",
        "method/test_objectives.py::test_ablations_of_the_gap_loss_are_selected": "gap_loss",
    },
    "method.ppo.PPOConfig": {
        "run/test_stages.py::test_ppo_starts_with_its_beta_and_a_key_for_each_network": "beta",
        "method/test_ppo.py::test_adapt_beta_by_hand": "target_kl horizon",
        "method/test_ppo_settings.py::test_each_setting_of_the_update_moves_its_own_gradient": (
            "gamma gae_lambda clip value_clip value_coefficient"
        ),
        "conformance/test_properties.py::test_gradient_steps": "epochs minibatches",
        "method/test_ppo_settings.py::test_so_many_rows_pass_through_the_networks_at_once": (
            "microbatches"
        ),
        "method/test_ppo_step.py::test_what_is_computed_is_counted_by_the_widths": "widths",
        "method/test_ppo_settings.py::test_each_option_of_the_scores_by_hand": (
            "missing_eos_penalty scale_rewards scale_floor"
        ),
        "method/test_ppo_step.py::test_rewards_are_the_shaped_score_and_the_kl_penalty": (
            "subtract_chosen"
        ),
        "method/test_ppo_step.py::test_the_critic_has_a_learning_rate_of_its_own": (
            "critic_learning_rate"
        ),
        "method/test_ppo_step.py::test_the_actor_waits_while_the_critic_warms_up": "critic_warmup",
        "run/test_stage_training.py::"
        "test_ppo_starts_from_its_initial_model_with_the_critic_that_is_asked_for": "critic_start",
        "method/test_ppo_step.py::test_log_probs_are_those_of_decoding_and_of_numpy": "temperature",
    },
    "models.config.LoraConfig": {
        "models/test_adapters.py::test_adapters_add_their_scaled_product_as_in_numpy": (
            "rank alpha targets rslora"
        ),
        "end_to_end/test_lora.py::test_int8_backbones_go_through_ppo": "backbone",
    },
    "models.config.NetworkConfig": {
        "models/test_network.py::test_each_field_moves_the_shapes_of_its_own_parameters": (
            "vocab_size embed_dim num_layers num_heads num_kv_heads head_dim mlp_dim "
            "tied_embeddings positions"
        ),
        "models/test_network.py::"
        "test_each_field_that_has_no_parameter_moves_the_logits_as_in_numpy": (
            "activation scale_embeddings scale_attention scale_logits rope_theta norm_epsilon "
            "norm_offset parallel_blocks attention_scalar attention_cap logit_cap windows "
            "rotary_layers rotary_dim rope_local_theta rope_factor rope_original_length rope_low "
            "rope_high"
        ),
        "models/test_network.py::test_each_variation_adds_or_takes_its_own_parameters": (
            "norm norm_place qk_norm qkv_bias out_bias mlp_bias gated_mlp"
        ),
        "models/test_network.py::"
        "test_bfloat16_stays_near_float32_and_logits_are_not_rounded": "dtype",
        "models/test_network.py::test_rematerialisation_keeps_what_it_says": "remat",
        "models/test_kernels.py::test_a_network_takes_the_kernel_that_is_chosen": "attention",
        "models/test_cache.py::test_int8_keys_and_values_are_those_within_half_a_step": "cache",
        "models/test_adapters.py::"
        "test_kernels_with_two_dims_on_either_side_have_adapters_of_these_dims": "lora",
    },
    "run.config.RunConfig": {
        "run/test_run.py::test_each_field_reaches_what_it_is_of": (
            "model_dir seed network vocabulary dataset lengths stages control_tokens eos_token "
            "pad_token chat_template batching mesh sampling_batch improve"
        ),
        "run/test_stage_training.py::"
        "test_references_come_from_the_policy_and_the_step_that_the_round_names": "shard_size",
        "run/test_stage_training.py::test_metrics_go_where_the_run_says": (
            "tensorboard wandb_project"
        ),
        "test_cli.py::test_compiled_programs_are_kept_in_the_run_directory": "compilation_cache",
        "run/test_run.py::test_each_field_of_a_role_reaches_its_models_alone": (
            "policy pit policy_reward gap_reward"
        ),
    },
    "run.config.RoleConfig": {
        "run/test_run.py::test_each_field_of_a_role_reaches_its_models_alone": (
            "network vocabulary control_tokens eos_token pad_token chat_template lengths"
        ),
    },
    "run.stages.SupervisedStage": {
        "run/test_stage_training.py::test_a_stage_goes_on_with_its_loop_in_its_folder": "name loop",
        "run/test_stage_training.py::test_a_stage_goes_on_for_its_steps_in_its_parts": (
            "steps microbatches"
        ),
        "run/test_stage_training.py::test_batches_are_those_of_the_stage": "task batch_size",
        "run/test_stages.py::test_each_kind_of_stage_steps_by_its_own_optimizer": "optimizer",
        "run/test_stage_training.py::"
        "test_each_kind_of_stage_starts_from_the_stage_that_it_names": "initial",
        "run/test_stages.py::test_a_model_is_of_the_role_of_its_task_and_a_warm_up_of_any": "role",
    },
    "run.stages.RewardStage": {
        "run/test_stage_training.py::test_a_stage_goes_on_with_its_loop_in_its_folder": "name loop",
        "run/test_stage_training.py::test_a_stage_goes_on_for_its_steps_in_its_parts": (
            "steps microbatches"
        ),
        "run/test_stage_training.py::test_batches_are_those_of_the_stage": "task batch_size",
        "run/test_stages.py::test_each_kind_of_stage_steps_by_its_own_optimizer": "optimizer",
        "run/test_stage_training.py::"
        "test_each_kind_of_stage_starts_from_the_stage_that_it_names": "initial",
        "run/test_stages.py::test_a_reward_model_is_trained_as_its_reward_says": "reward",
        "run/test_stage_training.py::"
        "test_a_reward_model_is_evaluated_on_as_many_pairs_as_are_held_out": "held_out",
    },
    "run.stages.RLStage": {
        "run/test_stage_training.py::test_a_stage_goes_on_with_its_loop_in_its_folder": "name loop",
        "run/test_stage_training.py::test_batches_are_those_of_the_stage": "task batch_size",
        "run/test_stages.py::test_each_kind_of_stage_steps_by_its_own_optimizer": "optimizer",
        "run/test_stage_training.py::"
        "test_ppo_starts_from_its_initial_model_with_the_critic_that_is_asked_for": "initial",
        "run/test_stage_training.py::test_frozen_models_are_those_that_the_stage_names": (
            "reference reward_model"
        ),
        "run/test_stage_training.py::test_frozen_models_may_wait_in_the_hosts_memory": (
            "offload_frozen"
        ),
        "run/test_stage_training.py::"
        "test_each_round_has_its_steps_its_batches_and_its_references": "rounds keep_every",
        "run/test_stage_training.py::test_ppo_has_the_stages_settings_and_a_key_of_its_own": "ppo",
        "run/test_choosing.py::test_the_model_of_a_stage_is_the_chosen_one": "choice",
    },
    "runtime.loop.LoopConfig": {
        "runtime/test_loop.py::test_records_and_checkpoints_come_when_they_are_due": (
            "log_every checkpoint_every"
        ),
        "runtime/test_loop.py::test_the_first_of_the_best_evaluations_is_kept": "eval_every",
    },
    "runtime.partitioning.MeshConfig": {
        "runtime/test_partitioning.py::test_mesh_shape": "model slices",
        "runtime/test_partitioning.py::test_mesh_that_does_not_fit_is_rejected": "data",
        "runtime/test_partitioning.py::test_first_rule_of_a_name_counts": "rules",
        "runtime/test_partitioning.py::test_decoding_splits_activations_as_parameters_are": (
            "decode_rules"
        ),
        "runtime/test_partitioning.py::test_sequence_parallelism_splits_the_residual_stream": (
            "sequence_parallel"
        ),
    },
    "runtime.train_state.OptimizerConfig": {
        "runtime/test_train_state.py::test_steps_match_numpy_adamw": (
            "learning_rate b1 b2 epsilon weight_decay clip_norm"
        ),
        "runtime/test_train_state.py::test_schedule": "warmup_steps decay_steps final_fraction",
        "runtime/test_train_state.py::test_adafactor_keeps_one_row_and_one_column_of_a_matrix": (
            "kind"
        ),
    },
}

# Frozen dataclasses that nobody sets: results, records, and parts that are made of a configuration.
MADE = {
    "api": "Improvement",
    "data.datasets": "Dataset Read _Source",
    "data.examples": "Check Example",
    "data.files.formats": "Half",
    "data.files.readers": "Reading",
    "data.files.records": "Record",
    "data.files.shapes": "Rules Shape",
    "data.layouts": "Block Widths",
    "data.reference_store": "ReferenceMeta",
    "data.ragged": "Ragged",
    "data.rows": "Feature",
    "data.seqio_tasks.tasks": "TaskRow",
    "data.tables": "Packing Table",
    "data.task_rows": "Padded",
    "data.texts": "Texts",
    "data.vocabularies.base": "ControlTokens",
    "evaluation.elo": "Ratings",
    "evaluation.ground_truth": "Accord",
    "evaluation.lengths": "LengthEffect",
    "evaluation.endpoint": "Answer",
    "evaluation.judges": "ExactJudge GapJudge RewardJudge",
    "evaluation.people": "Item Key Sides",
    "evaluation.verdict_files": "Sheet",
    "evaluation.scoring": "Agreement Comparison Mean SignTest",
    "evaluation.stopping": "Criterion Stop",
    "evaluation.seeds": "Summary",
    "evaluation.tables": "Side Tables",
    "method.choice": "Decision Measured",
    "method.decode": "Decoding",
    "method.environment": "Environment Networks",
    "method.flops": "Work",
    "method.improve": "Improver",
    "method.roles": "Role",
    "method.sampler": "Reflecting Response",
    "method.prompt_files": "Step",
    "method.self_refine": "Prompts",
    "models.weights.families": "Family",
    "plan.chips": "Chip Shares Slice",
    "plan.cuda": "Cores",
    "plan.costs": "Cost",
    "plan.estimate": "Estimate Machine",
    "plan.hlo": "Collective",
    "plan.programs": "Program",
    "report.blocks": (
        "Cell Code Curves Figure Paragraph Response Sample Section Table Terms Tile Tiles Warnings"
    ),
    "report.seed_plots": "Panel",
    "run.choosing": "Row",
    "run.improver": "Asked",
    "run.improving": "Row",
    "run.variations": "Merged",
    "runtime.profiling": "Window",
}


def frozen_dataclasses() -> dict[str, list[str]]:
    """`module.Class` without `pit_jax.` -> its fields, as the source has them."""
    return {
        f"{module}.{node.name}": fields_of(node)
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and is_frozen_dataclass(node)
    }


def reachable(cls: type) -> set[type]:
    """A configuration and all that its fields hold, by their types."""
    found, todo = set(), [cls]
    while todo:
        each = todo.pop()
        todo += typing.get_args(each)
        if inspect.isclass(each) and dataclasses.is_dataclass(each) and each not in found:
            found.add(each)
            todo += typing.get_type_hints(each).values()
    return found


@functools.cache
def defined_in(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_frozen_dataclass_is_a_configuration_or_made_of_one():
    made = {f"{module}.{name}" for module, names in MADE.items() for name in names.split()}
    assert not made & set(SHOWN_BY)
    assert set(frozen_dataclasses()) == made | set(SHOWN_BY)


def test_all_that_a_run_or_a_report_is_configured_with_is_in_the_table():
    configured = reachable(RunConfig) | reachable(EvaluationConfig)
    configured |= {family.CONFIG for family in FAMILIES.values()}  # of a field of type Any
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in configured}
    assert names == {f"pit_jax.{name}" for name in SHOWN_BY}


@pytest.mark.parametrize("name", SHOWN_BY)
def test_every_field_has_a_test_that_is_there(name):
    shown = [field for fields in SHOWN_BY[name].values() for field in fields.split()]
    assert sorted(shown) == sorted(frozen_dataclasses()[name])
    for node in SHOWN_BY[name]:
        path, _, test = node.partition("::")
        assert test.startswith("test_") and test in defined_in(path), node
