"""Mutants of pit_jax/method/; `run.load` says what the fields are."""

MUTANTS = {
    "method/choice.py": [
        (
            "what hardly ends may be chosen",
            "good and m.ended >= _ENDED * most",
            "good",
            "method/test_choice.py::test_what_does_not_end_is_left_out",
        ),
        (
            "a KL that isn't finite may be chosen",
            "math.isfinite(m.kl) and math.isfinite(m.reward)",
            "math.isfinite(m.reward)",
            "method/test_choice.py::test_what_is_not_finite_is_left_out",
        ),
        (
            "candidates are those of the lowest KL of their group",
            "sorted(group, key=lambda m: (-m.reward, m.kl, m.step))",
            "sorted(group, key=lambda m: (m.kl, m.step))",
            "method/test_choice.py::test_candidates_have_the_highest_reward_of_their_group",
        ),
        (
            "the highest reward is proposed, however little it is above another",
            "if below <= error:",
            "if below <= 0:",
            "method/test_choice.py::test_the_least_kl_is_proposed_that_is_not_clearly_worse",
        ),
        (
            "the least KL is proposed, whatever its reward",
            "if below <= error:",
            "if True:",
            "method/test_choice.py::test_not_the_largest_kl_but_the_highest_reward_is_proposed",
        ),
        (
            "responses to one prompt are draws of their own",
            "sums = np.bincount(of_group, values - mean)",
            "sums = values - mean",
            "method/test_choice.py::test_values_of_one_prompt_are_one_draw",
        ),
    ],
    "method/curriculum.py": [
        (
            "a round cut short is skipped",
            "if max(step, first) < last:",
            "if step <= first < last:",
            "method/test_curriculum.py::test_rounds_still_to_do",
        ),
        (
            "sampling settings of PIT's references are dropped",
            "ImproveConfig(iterations=round_.improvements, sampling=round_.pit_sampling)",
            "ImproveConfig(iterations=round_.improvements)",
            "method/test_curriculum.py",
        ),
        (
            "PIT's references are sampled as M_P's",
            "sampling=round_.pit_sampling)",
            "sampling=round_.sampling)",
            "method/test_curriculum.py",
        ),
        (
            "M_P's references are sampled as PIT's",
            "prompts, rows, key, round_.sampling)",
            "prompts, rows, key, round_.pit_sampling)",
            "method/test_curriculum.py",
        ),
        (
            "PIT improves a reference once, however often it is asked to",
            "iterations=round_.improvements",
            "iterations=1",
            "method/test_curriculum.py",
        ),
        (
            "the first improvement becomes the reference",
            "trace.responses[-1]",
            "trace.responses[1]",
            "method/test_curriculum.py",
        ),
        (
            "M_P and PIT draw a reference with one key",
            "improve_key = jax.random.fold_in(key, 1)",
            "improve_key = key",
            "method/test_curriculum.py",
            "Each iteration folds its number in, so that no draw of M_PIT has a key of M_P.",
        ),
        (
            "a reference that was cut isn't marked",
            '"ended": response.ended',
            '"ended": True',
            "method/test_curriculum.py",
        ),
        (
            "references of all shards draw alike",
            "rows = [example.index for example in part]",
            "rows = list(range(len(part)))",
            "method/test_curriculum.py",
        ),
        (
            "an interrupted store starts at its first record",
            "range(writer.next_record, len(examples), shard_size)",
            "range(0, len(examples), shard_size)",
            "method/test_curriculum.py",
        ),
    ],
    "method/decode.py": [
        (
            "all rows draw with one key",
            "(key, rows_B)",
            "(key, jnp.zeros_like(rows_B))",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "all tokens of a row are drawn with one key",
            "jax.vmap(jax.random.fold_in)(rows.keys_B, drawn_B)",
            "jax.vmap(jax.random.fold_in)(rows.keys_B, 0 * drawn_B)",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "a decoded token has the position after its own",
            "(count_B + rows.drawn - 1)[:, None]",
            "(count_B + rows.drawn)[:, None]",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "padding of a prompt is seen while decoding",
            "sees_BS |= (responses_S[None] >= 0) & (responses_S[None] < drawn_B1)",
            "sees_BS |= responses_S[None] < drawn_B1",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "top-p leaves out the token that reaches p",
            "kept_BV = jnp.where(before_BV < config.top_p",
            "kept_BV = jnp.where(before_BV + probability_BV < config.top_p",
            "method/test_decode.py::test_filters_never_draw_an_excluded_token",
        ),
        (
            "top-p counts probability before the temperature",
            "logits_BV = logits_BV / own\n        tokens_B = jax.vmap(jax.random.categorical)("
            "keys_B, filter_logits(logits_BV, config))",
            "kept_BV = filter_logits(logits_BV, config) / own\n"
            "        logits_BV = logits_BV / own\n"
            "        tokens_B = jax.vmap(jax.random.categorical)(keys_B, kept_BV)",
            "method/test_decode.py::test_filters_never_draw_an_excluded_token",
        ),
        (
            "log-probabilities of a sample have no temperature",
            "logits_BV = logits_BV / own\n        tokens_B = jax.vmap(jax.random.categorical)("
            "keys_B, filter_logits(logits_BV, config))",
            "drawn_BV = filter_logits(logits_BV / own, config)\n"
            "        tokens_B = jax.vmap(jax.random.categorical)(keys_B, drawn_BV)",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "ids that aren't allowed are sampled",
            "allowed_BV = allow(logits_BV, self.allowed_V)",
            "allowed_BV = logits_BV",
            "method/test_ppo_step.py::test_ids_outside_of_the_text_are_never_sampled_nor_counted_on",
        ),
        (
            "log-probabilities go on after the end",
            "here_BR &= ~rows.done_B[:, None]",
            "here_BR &= True",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "only EOS ends a response",
            "rows.done_B | is_end(token_B, self.ends)",
            "rows.done_B | (token_B == EOS_ID)",
            "method/test_decode.py::test_any_of_several_ends_ends_a_row",
        ),
        (
            "decoding stops with the first row that ends",
            "~jnp.all(done_B)",
            "~jnp.any(done_B)",
            "method/test_decode.py::test_log_probs_equal_teacher_forced_ones",
        ),
        (
            "rows of a pool go on until all are done",
            "jnp.sum(done_B) < enough",
            "~jnp.all(done_B)",
            "method/test_sampler.py::test_a_place_is_taken_before_the_longest_row_is_done",
        ),
        (
            "rows of a pool that are done go on counting",
            "(~rows.done_B if rows.drawn.ndim else 1)",
            "1",
            "method/test_sampler.py::test_prompts_that_wait_take_the_places_of_rows_that_are_done",
        ),
        (
            "a wider pool has its new columns on the right",
            "jnp.pad(self.prompt_valid_BP, ((0, 0), (more, 0)))",
            "jnp.pad(self.prompt_valid_BP, ((0, 0), (0, more)))",
            "method/test_sampler.py::test_rows_of_like_lengths_go_together_in_the_width_that_they_fit_in",
        ),
    ],
    "method/flops.py": [
        (
            "attention counts the whole square",
            "return tokens * tokens / 2 - beyond * beyond / 2",
            "return tokens * tokens - beyond * beyond",
            "method/test_flops.py::test_arithmetic_by_hand",
        ),
        (
            "the reference's log-probabilities aren't counted",
            "Work(rows // parts, actor, R, times=2 * parts)",
            "Work(rows // parts, actor, R, times=parts)",
            "method/test_flops.py::test_steps_by_hand",
        ),
        (
            "the score of y_w is always counted",
            "times=parts * (1 + config.subtract_chosen + difference)",
            "times=parts * 2",
            "method/test_flops.py::test_steps_by_hand",
        ),
    ],
    "method/forward.py": [
        (
            "log-probabilities have no temperature",
            "token_log_probs(logits_BRV, response_BR, temperature)",
            "token_log_probs(logits_BRV, response_BR)",
            "method/test_forward.py::test_log_probs_and_entropy_of_ragged_rows_in_numpy",
        ),
        (
            "log-probabilities count ids that aren't allowed",
            "logits_BRV = allow(logits_BRV, allowed_V)",
            "logits_BRV = allow(logits_BRV, None)",
            "method/test_ppo_step.py::test_ids_outside_of_the_text_are_never_sampled_nor_counted_on",
        ),
        (
            "a score is read on the prompt as well",
            "_of_response(scalars_BT, prompt_BP, 0, response_BR.shape[1])",
            "scalars_BT[:, : mask_BR.shape[1]]",
            "method/test_forward.py::test_shared_prefixes_give_the_gradient_of_separate_passes",
        ),
        (
            "a value is read at the first tokens of the row",
            "_of_response(scalars_BT, prompt_BP, 1, response_BR.shape[1])",
            "scalars_BT[:, : mask_BR.shape[1]]",
            "method/test_forward.py::test_a_value_is_read_before_its_token",
        ),
        (
            "padding after a response is seen",
            "[prompt_BP != PAD_ID, mask_BR > 0]",
            "[prompt_BP != PAD_ID, mask_BR >= 0]",
            "method/test_forward.py",
            "It follows the response, so no real token sees it, and what is read on it is masked.",
        ),
    ],
    "method/improve.py": [
        (
            "a later best response stands for all iterations",
            "(i for i in self.bests if i <= iteration)",
            "(i for i in self.bests)",
            "method/test_improve.py::test_a_row_ends_with_its_best_response_by_gap",
        ),
        (
            "every iteration draws alike",
            "step_key = jax.random.fold_in(key, iteration)",
            "step_key = key",
            "method/test_improve.py::test_each_iteration_improves_on_the_one_before",
        ),
        (
            "rows that go on take the keys of those that stopped",
            "current, [rows[i] for i in active], step_key, config",
            "current, rows, step_key, config",
            "method/test_improve.py::test_an_unchanged_response_stops_its_row",
        ),
        (
            "the gap compares the old response with the new one",
            "self.gaps(texts, improved, current)",
            "self.gaps(texts, current, improved)",
            "method/test_improve.py::test_the_gap_compares_the_new_response_with_the_old_one",
        ),
        (
            "a gap is counted from 0 whatever the anchor",
            "return scores - np.float32(self.anchor)",
            "return scores",
            "method/test_improve.py::test_a_gap_is_counted_from_the_models_anchor",
        ),
        (
            "a gap is read at the last token whatever the pooling",
            "judge.widths.gap, read, self.pooling)",
            'judge.widths.gap, read, "last")',
            "method/test_improve.py::test_the_gap_compares_the_new_response_with_the_old_one",
        ),
        (
            "the best response is that of the last positive gap",
            "if others:",
            "if False:",
            "method/test_improve.py::test_a_row_ends_with_its_best_response_by_gap",
        ),
        (
            "the result is the last response, whatever is kept",
            'self.best if keep == "best" and self.gaps else self.last',
            "self.last",
            "method/test_improve.py::test_a_row_ends_with_its_best_response_by_gap",
        ),
        (
            "a gap of exactly the threshold stops a row",
            "gaps[position] < config.min_gap",
            "gaps[position] <= config.min_gap",
            "method/test_improve.py::test_a_gap_below_epsilon_keeps_the_response_before",
        ),
        (
            "M_PIT samples as M_P",
            "role.widths, config.sampling",
            "role.widths, config.policy_sampling",
            "method/test_improve.py::test_each_iteration_improves_on_the_one_before",
        ),
        (
            "a reflection that didn't end is a response",
            "        else:\n            tokens = []\n",
            "",
            "method/test_improve.py::test_a_response_is_read_out_after_its_reflection",
        ),
        (
            "a response that was cut after its reflection has ended",
            "text.ended and len(tokens) < window",
            "text.ended",
            "method/test_improve.py::test_a_response_is_read_out_after_its_reflection",
        ),
    ],
    "method/roles.py": [
        (
            "a reference has the response's window",
            "[: self.lengths.reference]",
            "[: self.lengths.response]",
            "method/test_improve.py::test_a_long_or_forged_draft_becomes_a_reference_of_plain_text",
        ),
    ],
    "method/losses.py": [
        (
            "the policy loss takes the smaller of its two",
            "jnp.sum(jnp.maximum(plain_BR, clipped_BR) * mask_BR)",
            "jnp.sum(jnp.minimum(plain_BR, clipped_BR) * mask_BR)",
            "method/test_losses.py::test_policy_loss_by_hand",
        ),
        (
            "values are clipped around the returns",
            "jnp.clip(values_BR, old_values_BR - clip, old_values_BR + clip)",
            "jnp.clip(values_BR, returns_BR - clip, returns_BR + clip)",
            "method/test_losses.py::test_clip_fractions_match_numpy",
        ),
        (
            "every stage pays for unlikelihood",
            "    if not unlikelihood:\n",
            "    if not unlikelihood and weights_BT is None:\n",
            "method/test_losses.py::test_without_unlikelihood_the_logits_are_gone_through_once",
        ),
        (
            "filler rows are centred",
            "jnp.square(scores_NB) * weight_B[None]",
            "jnp.square(scores_NB)",
            "method/test_losses.py::test_centring_penalty_is_the_mean_square_of_real_rows",
        ),
    ],
    "method/objectives.py": [
        (
            "a tie of R_P is right",
            "_count(chosen_B > rejected_B, weight_B)",
            "_count(chosen_B >= rejected_B, weight_B)",
            "method/test_objectives.py::test_equal_scores_are_not_right",
        ),
        (
            "a tie of R_PIT is right",
            '_count(scores["wl"] > scores["lw"], weight_B)',
            '_count(scores["wl"] >= scores["lw"], weight_B)',
            "method/test_objectives.py::test_equal_scores_are_not_right",
        ),
        (
            "a tie meets an inequality",
            "_count(scores[a] > scores[b], weight_B)",
            "_count(scores[a] >= scores[b], weight_B)",
            "method/test_objectives.py::test_equal_scores_are_not_right",
        ),
        (
            "R_P is read at the last token whatever the pooling",
            "PAIR_TREE, config.pooling, widths)",
            'PAIR_TREE, "last", widths)',
            "method/test_objectives.py::test_scores_are_read_as_the_configuration_says",
        ),
        (
            "R_PIT is read at the last token whatever the pooling",
            "batch, tree, config.pooling, widths)",
            'batch, tree, "last", widths)',
            "method/test_objectives.py::test_scores_are_read_as_the_configuration_says",
        ),
        (
            "centring is a sum among means",
            "config.centring * squares * weight / jnp.maximum(count, 1)",
            "config.centring * squares",
            "method/test_objectives.py::test_reward_metrics_by_hand",
        ),
        (
            "token accuracy counts tokens without loss",
            "(own_BT1[..., 0] >= jnp.max(logits_BTV, axis=-1)) & (weights_BT > 0)",
            "own_BT1[..., 0] >= jnp.max(logits_BTV, axis=-1)",
            "method/test_objectives.py::test_token_accuracy_is_of_the_tokens_that_are_learned",
        ),
    ],
    "method/targets.py": [
        (
            "targets aren't put first",
            "jnp.argsort(~is_BT, axis=1, stable=True)",
            "jnp.argsort(is_BT, axis=1, stable=True)",
            "method/test_targets.py::test_parts_have_the_sum_and_the_gradients_of_the_whole",
        ),
        (
            "the last part, if it isn't full, is left out",
            "count = -(-jnp.max(jnp.sum(is_BT, axis=1)) // columns)",
            "count = jnp.max(jnp.sum(is_BT, axis=1)) // columns",
            "method/test_targets.py::test_parts_have_the_sum_and_the_gradients_of_the_whole",
        ),
        (
            "all columns are looked at",
            "count = -(-jnp.max(jnp.sum(is_BT, axis=1)) // columns)",
            "count = jnp.int32(-(-is_BT.shape[1] // columns))",
            "method/test_targets.py::test_columns_after_the_last_target_are_not_looked_at",
        ),
    ],
    "method/widths.py": [
        (
            "a row of just the width goes to the next",
            "jnp.max(lengths_B) > jnp.asarray",
            "jnp.max(lengths_B) >= jnp.asarray",
            "method/test_widths.py::test_the_least_width_that_fits_is_chosen",
        ),
        (
            "the gradient is of the whole width",
            "return None, at_width(gradient, widths, number), None, None",
            "return None, gradient(widths[-1]), None, None",
            "method/test_widths.py::test_gradients_are_those_of_the_width_that_is_chosen",
        ),
    ],
    "method/sampler.py": [
        (
            "a scoring program is cached without its pooling",
            'self._program(("score", pooling, width), score)',
            'self._program(("score", width), score)',
            "method/test_sampler.py::test_each_pooling_has_a_program_of_its_own",
        ),
        (
            "a sampling program is cached without its settings",
            "if (sampling, reflecting) not in self._pools:",
            "for sampling in [next((key[0] for key in self._pools), sampling)]:",
            "method/test_sampler.py::test_each_sampling_has_a_program_of_its_own",
        ),
        (
            "a reflecting model's program samples for one that doesn't reflect",
            "if (sampling, reflecting) not in self._pools:",
            "for reflecting in [next((key[1] for key in self._pools), reflecting)]:",
            "method/test_sampler.py::test_one_that_reflects_may_sample_improved_in_a_wider_window",
        ),
        (
            "a response that was cut is scored as ended",
            "[EOS_ID] * (response.ended or not response.tokens)",
            "[EOS_ID]",
            "method/test_sampler.py::test_scores_are_those_of_whole_sequences",
        ),
        (
            "a row draws by its place",
            '"rows": numbers[filled]',
            '"rows": np.asarray(filled, np.int32)',
            "method/test_sampler.py::test_order_and_neighbours_change_nothing",
        ),
        (
            "ids that aren't allowed are sampled in batches",
            "length, sampling, allowed_V, self._ends)",
            "length, sampling, None, self._ends)",
            "method/test_sampler.py::test_one_that_reflects_may_sample_improved_in_a_wider_window",
        ),
        (
            "a row takes a place whose row isn't done",
            "if place not in held][: len(chosen)]",
            "][: len(chosen)]",
            "method/test_sampler.py::test_prompts_that_wait_take_the_places_of_rows_that_are_done",
        ),
        (
            "rows that only fill up take places",
            "[size] * (few - len(places))",
            "[places[0]] * (few - len(places))",
            "method/test_sampler.py::test_prompts_that_wait_take_the_places_of_rows_that_are_done",
        ),
    ],
    "method/self_refine.py": [
        (
            "feedback and refinement draw alike",
            "feedback_key, refine_key = jax.random.split(key)",
            "feedback_key = refine_key = key",
            "method/test_improve.py::test_self_refine_asks_for_feedback_and_then_for_a_better_response",
        ),
        (
            "the opening is left out",
            "policy_prompt(turns.of_turns(asked)) + opening",
            "policy_prompt(turns.of_turns(asked))",
            "method/test_self_refine.py::"
            "test_the_papers_layout_has_the_system_in_front_and_the_opening_behind",
        ),
        (
            "a response keeps the space after its opening",
            "if step.opening else sampled",
            "if False else sampled",
            "method/test_self_refine.py::"
            "test_what_is_sampled_after_an_opening_is_the_feedback_and_the_response",
        ),
        (
            "a cut response counts as ended",
            "ended = answer.ended and len(tokens) <= window",
            "ended = answer.ended",
            "method/test_self_refine.py::"
            "test_a_response_that_grows_without_its_space_is_cut_to_the_window",
        ),
    ],
    "method/supervised_step.py": [
        (
            "a gradient is divided by the rows",
            "g / jnp.maximum(weight, 1e-8)",
            "g / jax.tree.leaves(batch)[0].shape[0]",
            "runtime/test_loop.py::test_a_step_divides_once_by_the_weight",
        ),
        (
            "held-out metrics are those of the last batch",
            "totals = metrics_lib.merge(totals, program(params, partitioner.shard_batch(batch)))",
            "totals = program(params, partitioner.shard_batch(batch))",
            "runtime/test_loop.py::test_evaluation_leaves_fillers_out",
        ),
    ],
}
