"""Mutants of pit_jax/runtime/; `run.load` says what the fields are."""

MUTANTS = {
    "runtime/checkpoints.py": [
        (
            "one checkpoint is kept, and none before it",
            "_NEWEST = 2",
            "_NEWEST = 1",
            "runtime/test_checkpoints.py::test_the_latest_the_best_and_multiples_are_kept",
        ),
        (
            "the best checkpoint isn't kept",
            "{*newest, *best, *multiples}",
            "{*newest, *multiples}",
            "runtime/test_checkpoints.py::test_the_latest_the_best_and_multiples_are_kept",
        ),
        (
            "what was read isn't compared with its digest",
            "if now[array] != saved[array]",
            "if False",
            "runtime/test_damage.py::test_no_damage_gives_other_values_or_a_traceback",
        ),
        (
            "a damaged checkpoint stays the newest",
            "            lines = [self._set_aside(*each) for each in damaged.items()]",
            "            lines = [str(each) for each in damaged.items()]",
            "runtime/test_damage.py::test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used",
        ),
        (
            "a checkpoint is written before its records",
            "        self._attempt(before)\n",
            "",
            "runtime/test_damage.py::test_a_checkpoint_is_not_written_before_what_has_to_be_there",
        ),
        (
            "arrays come back in the order of their names",
            "[arrays[name] for name in names]",
            "list(arrays.values())",
            "runtime/test_checkpoints.py::test_a_state_comes_back_bit_for_bit",
        ),
        (
            "a certain step's model is that of the newest",
            "        step = self.latest_step() if step is None else step\n        return",
            "        step = self.latest_step()\n        return",
            "runtime/test_checkpoints.py::test_the_model_of_a_certain_step_is_read",
        ),
    ],
    "runtime/loop.py": [
        (
            "a state that isn't finite is saved",
            "            check_state(state, progress.step, checkpoints)\n",
            "",
            "runtime/test_loop.py::test_a_state_that_is_not_finite_is_never_saved",
        ),
        (
            "the last of equally good evaluations is the best",
            'progress.accuracy > progress.best.get("accuracy", -1.0)',
            'progress.accuracy >= progress.best.get("accuracy", -1.0)',
            "runtime/test_loop.py::test_the_first_of_the_best_evaluations_is_kept",
        ),
        (
            "steps that are to be kept aren't saved",
            "        saving = saving or _due(progress.step, keep_every)\n",
            "",
            "runtime/test_loop.py::test_checkpoints_of_certain_steps_are_kept",
        ),
        (
            "eleven bad steps in a row stop a stage",
            "skipped >= MAX_SKIPPED_IN_ROW",
            "skipped > MAX_SKIPPED_IN_ROW",
            "runtime/test_loop.py::test_ten_bad_steps_in_a_row_stop_the_run_with_the_last_good_parameters",
        ),
        (
            "a record has the mean since the start",
            "scalars, pending = _recorded(pending, seconds, peak, progress), {}",
            "scalars = _recorded({**pending}, seconds, peak, progress)",
            "runtime/test_loop.py::test_a_record_is_the_mean_since_the_one_before",
        ),
        (
            "evaluation counts in the rates",
            "        clock = time.monotonic()\n    checkpoints.wait()\n",
            "    checkpoints.wait()\n",
            "runtime/test_loop.py::test_rates_are_those_of_the_steps_alone",
        ),
        (
            "what is pending at a signal is lost",
            "            progress.pending = _on_host(pending)\n",
            "",
            "runtime/test_loop.py::test_a_signal_changes_nothing_that_is_recorded",
        ),
        (
            "the time that is pending at a signal is lost",
            "clock = time.monotonic() - progress.pending_seconds",
            "clock = time.monotonic()",
            "runtime/test_loop.py::test_a_signal_changes_nothing_that_is_recorded",
        ),
        (
            "a signal writes a record",
            "recording = saving or _due(",
            "recording = saving or stopping > 0 or _due(",
            "runtime/test_loop.py::test_a_signal_changes_nothing_that_is_recorded",
        ),
        (
            "a stage may end with a skipped step",
            "(last and skipped)",
            "(last and skipped >= step)",
            "runtime/test_loop.py::test_a_stage_whose_last_step_was_skipped_is_not_complete",
        ),
    ],
    "runtime/records.py": [
        (
            "the record of the last checkpoint is dropped",
            'record.get("step", 0) <= last',
            'record.get("step", 0) < last',
            "runtime/test_records.py::test_resumed_jsonl_has_every_step_once",
        ),
        (
            "records that are cut off at a line's end aren't noticed",
            "if written and found != written and",
            'if written and found["count"] > written["count"] and',
            "runtime/test_records.py::test_no_damage_goes_unnoticed_and_what_can_be_read_is_kept",
        ),
    ],
    "runtime/metrics.py": [
        (
            "TensorBoard hides the last checkpoint's step",
            "else resume_step + 1",
            "else resume_step",
            "runtime/test_metrics.py::test_tensorboard_hides_what_comes_after_the_last_checkpoint",
        ),
        (
            "weights of merged metrics aren't added",
            "merged[name][0] + total, merged[name][1] + weight",
            "merged[name][0] + total, weight",
            "runtime/test_metrics.py::test_merge_weighs_every_token_alike",
        ),
        (
            "W&B gets a step that it has again",
            "        if step > self._written:",
            "        if step >= self._written:",
            "runtime/test_metrics.py::test_metrics_go_to_weights_and_biases",
        ),
    ],
    "runtime/microbatches.py": [
        (
            "rows of microbatches are interleaved",
            "x.reshape(parts, -1, *x.shape[1:])",
            "x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)",
            "runtime/test_microbatches.py::test_each_part_has_rows_that_follow_each_other",
        ),
        (
            "the last microbatch replaces those before it",
            "return jax.tree.map(jnp.add, total, new), kept",
            "return new, kept",
            "runtime/test_microbatches.py::test_sums_are_added_up_and_the_rest_is_kept",
        ),
    ],
    "runtime/partitioning.py": [
        (
            "ICI and DCN shapes are swapped",
            "own, (slices, 1, 1), devices",
            "(slices, 1, 1), own, devices",
            "runtime/test_partitioning.py::test_each_slice_holds_whole_data_and_model_axes",
        ),
        (
            "slices don't count as parts of a batch",
            'return self._size("slice") * self._size("data")',
            'return self._size("data")',
            "runtime/test_partitioning.py::test_rows_go_over_slices_and_data_but_parameters_stay_on_a_slice",
        ),
        (
            "every slice has all rows",
            '("batch", ("slice", "data"))',
            '("batch", "data")',
            "runtime/test_partitioning.py::test_rows_go_over_slices_and_data_but_parameters_stay_on_a_slice",
        ),
        (
            "decoding has the rules of training",
            "table = self._decode_table if decoding else self._table",
            "table = self._table",
            "runtime/test_partitioning.py::test_decoding_splits_activations_as_parameters_are",
        ),
        (
            "constrain doesn't know of decoding",
            "partitioner.sharding(names, array.shape, _DECODING.get())",
            "partitioner.sharding(names, array.shape)",
            "runtime/test_partitioning.py::test_constrain_inside_a_partitioner_shards",
        ),
        (
            "an axis splits two dimensions",
            "if axis not in taken and self._size(axis) > 1",
            "if self._size(axis) > 1",
            "runtime/test_partitioning.py::test_spec",
        ),
        (
            "the last rule of a name counts",
            "self._table = dict(reversed(rules))",
            "self._table = dict(rules)",
            "runtime/test_partitioning.py::test_first_rule_of_a_name_counts",
        ),
        (
            "models on the host come back at once",
            "        jax.block_until_ready(after)\n",
            "",
            "runtime/test_partitioning.py::test_arrays_on_the_host_wait_until_others_are_ready",
        ),
    ],
    "runtime/processes.py": [
        (
            "any process means all of them",
            "jax.jit(jnp.max,",
            "jax.jit(jnp.min,",
            "runtime/test_processes.py::test_of_several_values_the_largest_is_told",
        ),
    ],
    "runtime/profiling.py": [
        (
            "a window that is cut isn't moved back",
            "Window(max(1, last - self.last + self.first), last)",
            "Window(max(1, self.first), last)",
            "runtime/test_profiling.py::test_windows",
        ),
    ],
    "runtime/signals.py": [
        (
            "a second SIGINT waits too",
            "again = number == signal.SIGINT and self._received",
            "again = False",
            "runtime/test_signals.py::test_a_second_sigint_ends_a_stage_that_trains",
        ),
    ],
    "runtime/train_state.py": [
        (
            "decay begins after its steps are over",
            "max(self.decay_steps - self.warmup_steps, 1)",
            "max(self.decay_steps, 1)",
            "runtime/test_train_state.py::test_schedule",
        ),
        (
            "a step that is skipped moves the moments",
            "opt_state=jax.tree.map(keep, opt_state, self.opt_state)",
            "opt_state=opt_state",
            "runtime/test_train_state.py::test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters",
        ),
        (
            "a step is skipped for its gradient only",
            "finite = jnp.isfinite(norm) & jnp.isfinite(loss)",
            "finite = jnp.isfinite(norm)",
            "runtime/test_train_state.py::test_a_step_whose_loss_is_not_finite_changes_no_parameter",
        ),
        (
            "skipped steps in a row are all skipped steps",
            "skipped_in_row=(self.skipped_in_row + 1) * bad",
            "skipped_in_row=self.skipped_in_row + bad",
            "runtime/test_train_state.py::test_skipped_in_row_counts_up_and_resets_and_training_goes_on",
        ),
        (
            "parts are clipped by the norm of all",
            "{name: clip.update(part, state, params)[0] for name, part in updates.items()}",
            "clip.update(updates, state, params)[0]",
            "method/test_ppo_step.py::test_a_large_gradient_of_the_critic_does_not_shorten_the_actors_step",
        ),
        (
            "AdamW's epsilon is optax's",
            "                eps=self.epsilon,\n",
            "",
            "runtime/test_train_state.py::test_every_field_of_the_config_changes_the_result",
        ),
        (
            "PPO's epsilon is every stage's",
            "epsilon: float = 1e-8",
            "epsilon: float = 1e-5",
            "test_gin.py::test_epsilon_is_that_of_the_stage",
        ),
    ],
}
