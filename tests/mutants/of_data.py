"""Mutants of pit_jax/data/; `run.load` says what the fields are."""

MUTANTS = {
    "data/batching.py": [
        (
            "every epoch of rows in one order",
            "np.random.default_rng([seed, epoch])",
            "np.random.default_rng([seed, 0])",
            "data/test_batching.py::test_seed_and_epoch_each_move_the_order",
        ),
        (
            "the order of rows has no seed",
            "np.random.default_rng([seed, epoch])",
            "np.random.default_rng([0, epoch])",
            "data/test_batching.py::test_seed_and_epoch_each_move_the_order",
        ),
        (
            "every cycle of a mixture in one order",
            "np.random.default_rng([seed, 1, c])",
            "np.random.default_rng([seed, 1, 0])",
            "data/test_batching.py::test_seed_cycle_and_source_each_move_a_mixture",
        ),
        (
            "a source of a mixture repeats its first order",
            "np.random.default_rng([seed, 2, source, epoch])",
            "np.random.default_rng([seed, 2, source, 0])",
            "data/test_batching.py::test_seed_cycle_and_source_each_move_a_mixture",
        ),
        (
            "sources of a mixture have one order",
            "np.random.default_rng([seed, 2, source, epoch])",
            "np.random.default_rng([seed, 2, 0, epoch])",
            "data/test_batching.py::test_seed_cycle_and_source_each_move_a_mixture",
        ),
        (
            "batches to skip are skipped in every epoch",
            "first_batch if epoch == first_epoch else 0",
            "first_batch",
            "data/test_batching.py::test_an_epoch_has_each_row_at_most_once",
        ),
        (
            "an epoch leaves out the same rows",
            "rng.permutation(sum(sources)) if shuffle else np.arange(sum(sources))",
            "rng.permutation(size) if shuffle else np.arange(sum(sources))",
            "data/test_batching.py::test_rows_that_are_left_over_are_others_in_each_epoch",
        ),
    ],
    "data/flat_arrays.py": [
        (
            "a cache is good in the place of another",
            'name.encode() + b"\\n" + content',
            "content",
            "data/test_flat_arrays.py::test_two_folders_in_each_other_s_places_are_made_anew",
        ),
        (
            "damaged files are read",
            'hexdigest() != about["sha256"]',
            'hexdigest() == ""',
            "data/test_flat_arrays.py::test_what_is_damaged_is_made_anew",
        ),
    ],
    "data/tables.py": [
        (
            "examples of a packed row are one segment",
            "np.cumsum(begins, axis=1, dtype=begins.dtype)",
            "1",
            "data/test_tables.py::test_packed_rows_by_hand",
        ),
        (
            "examples of a packed row all begin where the row does",
            "columns = before - before[np.repeat(np.cumsum(counts) - counts, counts)]",
            "columns = before * 0",
            "data/test_tables.py::test_packed_rows_by_hand",
        ),
        (
            "a batch is as wide as its shortest row needs",
            "self.buckets[numbers].max()",
            "self.buckets[numbers].min()",
            "data/test_input_pipeline.py::test_buckets_cut_padding_and_nothing_else",
        ),
        (
            "fillers have weight",
            "weight = (rows < size).astype(np.float32)",
            "weight = np.ones(batch_size, np.float32)",
            "data/test_row_counts.py::test_exactly_so_many_rows_are_evaluated",
        ),
        (
            "a limit of rows counts whole batches",
            "size = min(size, limit) if limit else size",
            "size = min(size, -(-limit // batch_size) * batch_size) if limit else size",
            "data/test_row_counts.py::test_exactly_so_many_rows_are_evaluated",
        ),
        (
            "rows in order always start at the first",
            "range(start_batch * batch_size, size, batch_size)",
            "range(0, size, batch_size)",
            "data/test_input_pipeline.py::test_evaluation_keeps_every_row_once",
        ),
    ],
    "data/datasets.py": [
        (
            "train_size takes the first of the file",
            "np.sort(splits.by_order(texts, train)[: config.train_size])",
            "train[: config.train_size]",
            "data/test_datasets.py::test_the_first_of_every_split_are_a_sample_of_the_file",
        ),
        (
            "prompts of the test files are trained on",
            "rows[0][~np.isin(groups[rows[0]], groups[pool])]",
            "rows[0]",
            "data/test_datasets.py::test_test_files_hold_out_their_prompts",
        ),
        (
            "synthetic examples have the first seed",
            "config.family, split, sizes[split], config.seed, config.level",
            "config.family, split, sizes[split], 0, config.level",
            "data/test_datasets.py::test_family_level_and_seed_are_those_of_the_generator",
        ),
    ],
    "data/splits.py": [
        (
            "dev and test are in the order of the file",
            "{name: by_order(texts, rows[part == n]) for",
            "{name: rows[part == n] for",
            "data/test_datasets.py::test_the_first_of_every_split_are_a_sample_of_the_file",
        ),
        (
            "examples are grouped by the whole prompt",
            '"first_turn": lambda prompt, group: (turns.first_turn(prompt),) * 2',
            '"first_turn": lambda prompt, group: (prompt,) * 2',
            "data/test_datasets.py::test_cut_dialogues_stay_together_by_their_first_turn",
        ),
        (
            "parts of a mixture share groups across splits",
            "kept = splits[split][~np.isin(groups[splits[split]], held_out)]",
            "kept = splits[split]",
            "data/test_datasets.py::test_test_files_and_mixtures_hold_out_first_turns",
        ),
        (
            "dev of a mixture is one part after the other",
            "rows, parts = rows[order], parts[order]",
            "pass",
            "data/test_datasets.py::test_the_first_of_a_mixture_are_a_sample_of_its_parts",
        ),
        (
            "dev counts examples that don't fit",
            "sum(fits(texts.example(int(row), 0)) for row in rows[members])",
            "len(members)",
            "data/test_datasets.py::test_sizes_count_what_fits",
        ),
        (
            "a group is named by the first way in which it is written",
            "min(voted, key=lambda name: (len(name), name))",
            "voted[0]",
            "data/test_texts.py::test_files_are_divided_as_lists_are",
        ),
    ],
    "data/texts.py": [
        (
            "folds divide a group by its prompts",
            "names = self.groups(np.arange(count)[some])",
            "names = [prompt for prompt, _ in self.asked(np.arange(count)[some])]",
            "data/test_datasets.py::test_cut_dialogues_stay_together_by_their_first_turn",
        ),
    ],
    "data/input_pipeline.py": [
        (
            "rates of a mixture are ignored",
            "rates = self._rates if len(table.sources) > 1 else ()",
            "rates: tuple = ()",
            "data/test_input_pipeline.py::test_a_mixture_draws_at_its_rates",
        ),
        (
            "rates are ignored where references are sampled",
            "rates = self._rates if len(table.sources) > 1 else ()",
            "rates = self._rates if references == DATA_REFERENCES else ()",
            "data/test_input_pipeline.py::test_references_of_a_mixture_are_those_of_its_prompts",
        ),
        (
            "batches have the first seed",
            "            batch_size,\n            seed,\n",
            "            batch_size,\n            0,\n",
            "data/test_input_pipeline.py::test_restart_at_any_batch_is_exact",
        ),
        (
            "batches always start at the first",
            "            start_batch=start_batch,\n            num_epochs",
            "            num_epochs",
            "data/test_input_pipeline.py::test_restart_at_any_batch_is_exact",
        ),
        (
            "every task learns from all folds",
            'fold or (TASK_FOLDS[task] if split == "train" else _ALL)',
            "fold or _ALL",
            "data/test_input_pipeline.py::test_every_stage_holds_its_layouts",
        ),
        (
            "rows of another reference store are reused",
            "key = (task, split, fold, store and store.fingerprint, as_text)",
            "key = (task, split, fold, store is None, as_text)",
            "data/test_input_pipeline.py::test_references_of_a_store",
        ),
        (
            "an example that doesn't fit takes a row off the bound",
            "                    most -= each\n",
            "                    most -= 1\n",
            "data/test_row_counts.py::test_row_bounds_are_exact_where_rows_do_not_suffice",
        ),
        (
            "a sampled reference counts as two rows",
            "each = 1 if sampled else TASK_ROWS.get(task, 1)",
            "each = TASK_ROWS.get(task, 1)",
            "data/test_row_counts.py::test_row_bounds_are_exact_where_rows_do_not_suffice",
        ),
        (
            "examples that don't fit are prompts too",
            "return examples.select(self._left_out(split)[examples.indices] == 0)",
            "return examples",
            "data/test_input_pipeline.py::test_reflection_is_part_of_the_target_and_has_its_window",
        ),
    ],
    "data/layouts.py": [
        (
            "the last of several reasons counts",
            "in reversed(self.too_long(sizes).items())",
            "in self.too_long(sizes).items()",
            "data/test_task_rows.py::test_examples_are_measured_as_seqios_preprocessors_do",
        ),
        (
            "the gap loss has an inequality the wrong way round",
            '("ww", "lw"), ("ll", "lw"))',
            '("lw", "ww"), ("ll", "lw"))',
            "method/test_losses.py::test_gap_loss_is_equation_two",
        ),
        (
            "y_l after y_w follows the reference y_l",
            'Block("y_l after y_w", Layout.response, "rejected", 2, "lw")',
            'Block("y_l after y_w", Layout.response, "rejected", 3, "lw")',
            "method/test_forward.py::test_gap_scores_are_those_of_four_whole_sequences",
        ),
        (
            "R_PIT learns from the fold of SFT",
            '"rm_gap": "rm",',
            '"rm_gap": "sft",',
            "data/test_input_pipeline.py::test_every_stage_holds_its_layouts",
        ),
        (
            "a response has no room for its EOS",
            "min(self.reference, self.response - 1)",
            "min(self.reference, self.response)",
            "data/test_layouts.py::test_each_window_bounds_its_own_fields",
        ),
        (
            "a reflected response follows its first mark",
            "tokens[len(tokens) - tokens[::-1].index(self.control.improved) :]",
            "tokens[tokens.index(self.control.improved) + 1 :]",
            "data/test_layouts.py::test_the_response_after_a_reflection_is_found",
        ),
        (
            "a prompt is measured without what stands around it",
            '"prompt": self._size(self.policy_prompt(x))',
            '"prompt": self._size(self._ids(x))',
            "data/test_layouts.py::test_each_window_bounds_its_own_fields",
        ),
    ],
    "data/ragged.py": [
        (
            "ids that every row has stand before the rows",
            "values[starts[:, None] + np.arange(len(part))] = part",
            "values[found.offsets[:-1][:, None] + np.arange(len(part))] = part",
            "data/test_ragged.py::test_rows_are_joined_one_by_one",
        ),
    ],
    "data/task_rows.py": [
        (
            "what doesn't fit the windows stays",
            "fits = measured(columns, layout, windows.of_task(task))[1] == 0",
            "fits = measured(columns, layout, windows.of_task(task))[1] >= 0",
            "data/test_task_rows.py::test_every_task_has_the_rows_of_seqio",
        ),
        (
            "a weight is that of the token itself",
            '"decoder_loss_weights": _next(learned)',
            '"decoder_loss_weights": learned.values',
            "data/test_task_rows.py::test_every_task_has_the_rows_of_seqio",
        ),
    ],
    "data/reference_store.py": [
        (
            "a control token in a sampled reference stays",
            'self._vocabulary.text_ids(record["reference_tokens"])',
            'record["reference_tokens"]',
            "data/test_input_pipeline.py::test_references_of_a_store",
        ),
        (
            "references that ended count as cut",
            'sum(not json.loads(line)["ended"]',
            'sum(json.loads(line)["ended"]',
            "data/test_reference_store.py::test_reads_back_what_was_written",
        ),
        (
            "a store of another checkpoint goes on",
            "if (earlier | self._manifest).get(key) != value:",
            'if key != "checkpoint" and (earlier | self._manifest).get(key) != value:',
            "data/test_reference_store.py::test_another_round_needs_another_directory",
        ),
        (
            "a resumed writer forgets what waits for its shard",
            ' for shard in self._manifest["shards"]) + len(self._pending)',
            ' for shard in self._manifest["shards"])',
            "data/test_reference_store.py::test_resumes_after_the_last_whole_shard",
        ),
    ],
    "data/files/formats.py": [
        (
            "a dialogue ends with its first answer",
            "dialogue.rpartition(turns.ASSISTANT)",
            "dialogue.partition(turns.ASSISTANT)",
            "data/files/test_readers.py::test_hh_dialogue",
        ),
        (
            "the answer that is preferred is the other one",
            "return int(signed > 0)",
            "return int(signed < 0)",
            "data/files/test_shapes.py::test_each_shape_is_read_as_the_same_pair",
        ),
    ],
    "data/files/shapes.py": [
        (
            "the worst answer is the chosen one",
            "key=lambda row: -row[1].score",
            "key=lambda row: row[1].score",
            "data/files/test_shapes.py::test_every_row_is_in_a_pair_or_counted",
        ),
    ],
    "data/files/summaries.py": [
        (
            "the summary that was chosen is rejected",
            "texts[choice], texts[1 - choice]",
            "texts[1 - choice], texts[choice]",
            "data/files/test_readers.py::test_summaries_of_posts",
        ),
    ],
    "data/files/turns.py": [
        (
            "the first turn is all turns",
            "x.partition(ASSISTANT)[0]",
            "x.rpartition(ASSISTANT)[0]",
            "data/test_datasets.py::test_cut_dialogues_stay_together_by_their_first_turn",
        ),
    ],
    "data/files/json_values.py": [
        (
            "half a surrogate pair passes",
            'rb"\\\\u[dD][89a-fA-F]"',
            'rb"\\\\u[dD][89abAB]"',
            "data/files/test_readers.py::test_a_malformed_line_is_named_and_loses_no_other",
        ),
        (
            "a float that is too large becomes infinite",
            "if math.isinf(value):",
            "if math.isnan(value):",
            "data/files/test_readers.py::test_a_malformed_line_is_named_and_loses_no_other",
        ),
    ],
    "data/files/json_stream.py": [
        (
            "a value is over where the buffer ends",
            "if self._is_all or end < len(self._text):",
            "if self._is_all or end <= len(self._text):",
            "data/files/test_records.py::test_numbers_lie_across_the_end_of_a_buffer",
        ),
    ],
    "data/files/tables.py": [
        (
            "the offsets of Arrow files are trusted",
            "batch.validate(full=True)",
            "batch.validate(full=False)",
            "data/files/test_records.py::test_an_arrow_file_whose_offsets_lead_out_of_it",
        ),
    ],
    "data/files/records.py": [
        (
            "a file is packed once at most",
            "_MAX_PACKED = 4",
            "_MAX_PACKED = 1",
            "data/files/test_records.py::test_every_kind_gives_the_same_objects",
        ),
        (
            "rows are counted from 0",
            "enumerate(rows, 1)",
            "enumerate(rows)",
            "data/files/test_records.py::test_every_kind_gives_the_same_objects",
        ),
    ],
    "data/files/readers.py": [
        (
            "examples are there twice",
            "            examples.append(example)\n",
            "            examples.append(example)\n            examples.append(example)\n",
            "data/files/test_readers.py::test_hh_skips_and_counts",
        ),
    ],
    "data/files/builders.py": [
        (
            "a builder's first config is its last",
            "config or builder_class.BUILDER_CONFIGS[0].name",
            "config or builder_class.BUILDER_CONFIGS[-1].name",
            "data/files/test_builders.py::test_hh_is_what_its_reader_reads",
        ),
    ],
    "data/sequences.py": [
        (
            "M_PIT learns to improve y_w",
            'y_l)."""\n    inputs = layout.pit_prompt(f["prompt"], f["rejected"])',
            'y_l)."""\n    inputs = layout.pit_prompt(f["prompt"], f["chosen"])',
            "data/test_input_pipeline.py::test_every_stage_holds_its_layouts",
        ),
        (
            "R_PIT doesn't see the reference",
            'layout.gap_prompt(f["prompt"], reference)',
            'layout.reward_prompt(f["prompt"])',
            "data/test_input_pipeline.py::test_every_stage_holds_its_layouts",
        ),
        (
            "only y_l is a reference of the data",
            '[f["rejected"], f["chosen"]]',
            '[f["rejected"]]',
            "data/test_input_pipeline.py::test_every_stage_holds_its_layouts",
        ),
        (
            "the warm-up repeats a response after itself",
            'layout.pit_prompt(f["prompt"], f[other])',
            'layout.pit_prompt(f["prompt"], f[y])',
            "data/test_input_pipeline.py::test_pretrain_reads_each_response_alone_and_after_the_other",
        ),
    ],
    "data/seqio_tasks/feature_converters.py": [
        (
            "the first token of a packed example is a target",
            "(segments[1:] == segments[:-1])",
            "(segments[1:] >= segments[:-1])",
            "data/seqio_tasks/test_feature_converters.py::test_sft_packed",
        ),
        (
            "the last token of a prompt isn't trained to go on",
            "tf.gather([0.0, 0.0, 1.0, -1.0], tf.roll(marks, -1, axis=0))",
            "tf.gather([0.0, 0.0, 1.0, -1.0], marks)",
            "data/seqio_tasks/test_feature_converters.py::test_sft",
        ),
    ],
    "data/vocabularies/base.py": [
        (
            "rows beyond the vocabulary may be sampled",
            "allowed = np.arange(size) < self.vocab_size",
            "allowed = np.ones(size, bool)",
            "data/vocabularies/test_words.py::test_ids_that_may_be_sampled",
        ),
        (
            "control tokens may be sampled",
            "        allowed[[i for i in self._reserved if i < size]] = False\n",
            "        allowed[PAD_ID] = False\n",
            "data/vocabularies/test_words.py::test_ids_that_may_be_sampled",
        ),
        (
            "no response may end",
            "        allowed[[*self.ends]] = True\n",
            "",
            "data/vocabularies/test_words.py::test_ids_that_may_be_sampled",
        ),
    ],
    "data/vocabularies/subwords.py": [
        (
            "an appended id is a piece of the tokenizer",
            "numbers.append(pieces[name] if name else size)",
            "numbers.append(pieces[name] if name else size - 1)",
            "data/vocabularies/test_families.py::test_ids_by_hand",
        ),
        (
            "a template's own BOS is doubled",
            "if self.bos_id is not None and ids[:1] != [self.bos_id]:",
            "if self.bos_id is not None:",
            "data/vocabularies/test_families.py::test_every_layout_begins_with_bos_once",
        ),
        (
            "a text after a special token begins as a first one does",
            "self._pieces_within(_well_formed(part), first=not ids)",
            "self._pieces_within(_well_formed(part), first=True)",
            "data/vocabularies/test_chat_templates.py::test_prompts_have_the_ids_of_the_library",
        ),
    ],
    "data/vocabularies/chat_templates.py": [
        (
            "what is said may be special",
            "self._names.finditer(self._masked(turns, text))",
            "self._names.finditer(text)",
            "data/vocabularies/test_chat_templates.py::test_what_is_said_is_never_special",
        ),
        (
            "a turn may be left out",
            'if role != "assistant" and content.strip() not in text:',
            "if False:",
            "data/vocabularies/test_chat_templates.py::test_refusals_are_value_errors",
        ),
    ],
    "data/synthetic/drafts.py": [
        (
            "a sheet with a mistake has a score",
            "/ (len(operations) + 1) if first_mistake == done else 0.0",
            "/ (len(operations) + 1)",
            "data/synthetic/test_drafts.py::test_verdicts_by_hand",
        ),
    ],
    "data/synthetic/requirements.py": [
        (
            "requirements that nobody asked for cost nothing",
            "extras = len(shown - set(required))",
            "extras = 0",
            "data/synthetic/test_requirements.py::test_verdicts_by_hand",
        ),
    ],
    "data/synthetic/instructions.py": [
        (
            "a prompt may be in several splits",
            'if prompt not in found and stable_hash(prompt, "split") % 10 in _SPLIT_OF_TEN[split]:',
            "if prompt not in found:",
            "data/synthetic/test_instructions.py::test_prompts_never_repeat",
        ),
    ],
}
