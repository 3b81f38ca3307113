"""Mutants of pit_jax/evaluation/; `run.load` says what the fields are."""

MUTANTS = {
    "evaluation/bradley_terry.py": [
        (
            "a tie is a loss for Bradley-Terry",
            "(row + 1) / 2",
            "(row > 0) * 1.0",
            "evaluation/test_bradley_terry.py::test_two_models_by_hand",
        ),
        (
            "the worst model has the highest rating",
            "1.0 * (pairs_Q2[:, :1] == models) - (pairs_Q2[:, 1:] == models)",
            "1.0 * (pairs_Q2[:, 1:] == models) - (pairs_Q2[:, :1] == models)",
            "evaluation/test_bradley_terry.py::test_two_models_by_hand",
        ),
        (
            "rows of a prompt are drawn one by one for Bradley-Terry",
            "group_N = intervals.group_numbers(groups, outcomes_QN.shape[1])",
            "group_N = intervals.group_numbers(None, outcomes_QN.shape[1])",
            "evaluation/test_bradley_terry.py::test_intervals_are_those_of_resampled_prompts",
        ),
    ],
    "evaluation/ground_truth.py": [
        (
            "chance agrees where each verdict is as frequent as the other",
            "np.sum(tables_R33.sum(axis=1) * tables_R33.sum(axis=2), axis=1)",
            "np.full(len(tables_R33), 1 / 3)",
            "evaluation/test_ground_truth.py::test_kappa_by_hand",
        ),
        (
            "equal responses count as agreement",
            "np.array([a != b for first, second in pairs for a, b in zip(first, second)])",
            "np.array([True for first, second in pairs for a, b in zip(first, second)])",
            "evaluation/test_ground_truth.py::test_a_row_is_of_responses_that_differ",
        ),
    ],
    "evaluation/lengths.py": [
        (
            "the shorter response wins",
            "np.sign(longer_N))[told_N]",
            "-np.sign(longer_N))[told_N]",
            "evaluation/test_lengths.py::test_the_longer_response_wins_by_hand",
        ),
        (
            "errors are those of independent rows",
            "intervals.by_group(each, group_N)[0] for each",
            "each for each",
            "evaluation/test_lengths.py::test_delta_at_equal_length_against_another_optimiser",
        ),
    ],
    "evaluation/logistic.py": [
        (
            "there is no prior",
            "PRECISION = 0.01",
            "PRECISION = 1e-9",
            "evaluation/test_lengths.py::test_delta_at_equal_length_against_another_optimiser",
        ),
    ],
    "evaluation/budgets.py": [
        (
            "a draw that is dearer than what is left is skipped, not the last",
            "spent = itertools.accumulate(draw.sampled for draw in draws)",
            "spent = sorted(draw.sampled for draw in draws)",
            "evaluation/test_budgets.py::test_as_many_draws_are_taken_as_fit_the_budget",
        ),
        (
            "y_0 isn't in PIT's budget",
            "trace.responses[: iterations + 1]",
            "trace.responses[1 : iterations + 1]",
            "evaluation/test_budgets.py::test_a_budget_counts_the_end_of_each_response_and_its_reflection",
        ),
        (
            "R_P chooses among draws that aren't paid for",
            "np.argmax(scores[:number])",
            "np.argmax(scores)",
            "evaluation/test_budgets.py::test_of_equal_scores_the_earlier_draw_is_the_best",
        ),
        (
            "PIT's best is that of all iterations",
            "t.responses[t.best_after(k)]",
            "t.responses[t.best_after(iterations)]",
            "evaluation/test_budgets.py::test_rows_by_hand",
        ),
        (
            "re-sampling keeps y_0",
            "[own[n - 1] for own, _, n in each]",
            "[own[0] for own, _, n in each]",
            "evaluation/test_budgets.py::test_rows_by_hand",
        ),
    ],
    "evaluation/stopping.py": [
        (
            "a rejected response is kept",
            "return Stop(kept, k, tokens)\n        kept = k",
            "return Stop(k, k, tokens)\n        kept = k",
            "evaluation/test_suite_scripted.py::test_stop_criteria_are_compared_by_score_and_tokens",
        ),
        (
            "a rejected response costs nothing",
            "        tokens += new.sampled\n",
            "        if criterion.name != 'gap' or trace.gaps[k - 1] >= (criterion.limit or 0):\n"
            "            tokens += new.sampled\n",
            "evaluation/test_suite_scripted.py::test_stop_criteria_are_compared_by_score_and_tokens",
        ),
    ],
    "evaluation/curves.py": [
        (
            "a round's curve has the last step of the round before",
            'if first < r["step"] <= last]',
            'if first <= r["step"] <= last]',
            "evaluation/test_curves.py::test_the_reward_by_round",
        ),
        (
            "curves beside the three that tell most aren't folded",
            "folded = name not in shown",
            "folded = False",
            "evaluation/test_curves.py::test_three_curves_are_shown_and_the_others_thinned_and_folded",
        ),
        (
            "a stage without a second round begins one at once",
            "second[0] if second else stage.steps",
            "second[0] if second else 0",
            "evaluation/test_curves.py::test_the_rewards_of_other_stages_beside_pits",
        ),
        (
            "rewards of other scales are one figure",
            " or stage.reward_model != rewards[0]",
            "",
            "evaluation/test_curves.py::test_the_rewards_of_other_stages_beside_pits",
        ),
    ],
    "evaluation/elo.py": [
        (
            "the interval is that of one order",
            "+ within / shuffles",
            "+ within",
            "evaluation/test_elo.py::test_interval_is_that_of_the_mean_over_orders",
        ),
        (
            "the variance of groups has that of orders in it",
            "var(axis=0, ddof=1) - within / values_RmM.shape[1]",
            "var(axis=0, ddof=1)",
            "evaluation/test_elo.py::test_interval_is_that_of_the_mean_over_orders",
        ),
        (
            "rows of a prompt are drawn one by one",
            "group_N = intervals.group_numbers(groups, num_rows)",
            "group_N = intervals.group_numbers(None, num_rows)",
            "evaluation/test_elo.py::test_interval_counts_rows_of_a_prompt_as_one",
        ),
        (
            "the worst model has rank 1",
            "(self.rating[None, :] > self.rating[:, None])",
            "(self.rating[None, :] < self.rating[:, None])",
            "evaluation/test_elo.py::test_elo_of_one_match_by_hand",
        ),
        (
            "a tie is a loss",
            "np.tile([0.0, stake / 2, stake]",
            "np.tile([0.0, 0.0, stake]",
            "evaluation/test_elo.py::test_elo_of_one_match_by_hand",
        ),
        (
            "all orders of a list are one",
            "            rng.shuffle(kinds_T)\n",
            "            np.random.default_rng(0).shuffle(kinds_T)\n",
            "evaluation/test_elo.py::test_orders_are_those_of_the_seed",
        ),
    ],
    "evaluation/intervals.py": [
        (
            "groups count alike, however few rows are in most",
            "if effective < FEW or",
            "if sums_G.size < FEW or",
            "evaluation/test_intervals.py::test_thin_are_few_groups_few_that_differ_or_skewed_ones",
        ),
        (
            "Student's distribution has a degree of freedom too many",
            "stats.t.ppf(1 - _TAIL, num_groups - 1)",
            "stats.t.ppf(1 - _TAIL, num_groups)",
            "evaluation/test_intervals.py::test_student_by_hand",
        ),
        (
            "a resample's mean is that of its groups",
            "sums_G[drawn].sum(axis=1) / sizes_G[drawn].sum(axis=1)",
            "(sums_G / sizes_G)[drawn].mean(axis=1)",
            "evaluation/test_intervals.py::test_bootstrap_is_of_the_mean_over_rows",
        ),
        (
            "an interval is of 90%",
            "_TAIL = 0.025",
            "_TAIL = 0.05",
            "evaluation/test_intervals.py::test_bounded_of_two_values_is_clopper_and_pearsons",
        ),
        (
            "the group at the bound has one row",
            "np.append(sizes, sizes.max())",
            "np.append(sizes, 1)",
            "evaluation/test_intervals.py::test_bounded_of_one_group_by_hand",
        ),
        (
            "rows without a group are one group",
            "[(i,) if group is None else (None, group) for i, group in enumerate(groups)]",
            "[(None, group) for group in groups]",
            "evaluation/test_intervals.py::test_groups_are_numbered_as_they_occur",
        ),
        (
            "skewed means are bootstrapped too",
            "abs(skewness) > SKEWED * np.sqrt(sums_G.size)",
            "abs(skewness) > SKEWED * sums_G.size",
            "evaluation/test_intervals.py::test_thin_are_few_groups_few_that_differ_or_skewed_ones",
        ),
    ],
    "evaluation/judges.py": [
        (
            "responses are scored anew each time",
            "if row not in self._scores",
            "if True",
            "evaluation/test_suite_scripted.py::test_nothing_is_sampled_scored_or_judged_twice",
        ),
        (
            "a reward model as judge has no ties",
            "return scoring.reward_judge_outcomes(first, second)",
            "return scoring.win_lose_tie(first, second)",
            "evaluation/test_judges.py::test_reward_judge_ties_close_rewards",
        ),
        (
            "the checker judges the second response",
            "return scoring.win_lose_tie(first, second)",
            "return scoring.win_lose_tie(second, first)",
            "evaluation/test_judges.py::test_exact_judge_compares_checker_scores",
        ),
    ],
    "evaluation/scoring.py": [
        (
            "a difference of rewards is the other way round",
            "scores[pair[0]] - scores[pair[1]]",
            "scores[pair[1]] - scores[pair[0]]",
            "evaluation/test_scoring.py::test_a_difference_of_two_rewards_by_hand",
        ),
        (
            "a tie agrees with the label",
            "agreed_N = _outcomes(outcomes) == 1",
            "agreed_N = _outcomes(outcomes) >= 0",
            "evaluation/test_scoring.py::test_agreement_by_hand",
        ),
        (
            "a difference of exactly the margin is no tie",
            "np.abs(difference_N) <= tie_margin",
            "np.abs(difference_N) < tie_margin",
            "evaluation/test_scoring.py::test_a_difference_of_exactly_the_margin_is_a_tie",
        ),
        (
            "the tie rule is of probabilities",
            "math.log(0.55 / 0.45)",
            "0.55 - 0.45",
            "evaluation/test_scoring.py::test_reward_judge_outcomes_follow_the_paper",
        ),
        (
            "verdicts of a prompt count as independent",
            "intervals.by_group(outcomes_N, intervals.group_numbers(groups, n))",
            "intervals.by_group(outcomes_N, intervals.group_numbers(None, n))",
            "evaluation/test_scoring.py::test_compare_counts_rows_of_a_prompt_as_one",
        ),
        (
            "values of a prompt count as independent",
            "intervals.by_group(values_N, intervals.group_numbers(groups, n))",
            "intervals.by_group(values_N, intervals.group_numbers(None, n))",
            "evaluation/test_scoring.py::test_mean_interval_counts_rows_of_a_prompt_as_one",
        ),
        (
            "labels of a prompt count as independent",
            "intervals.by_group(agreed_N, intervals.group_numbers(groups, n))",
            "intervals.by_group(agreed_N, intervals.group_numbers(None, n))",
            "evaluation/test_scoring.py::test_agreement_counts_pairs_of_a_prompt_as_one",
        ),
        (
            "every comparison is resampled by the first seed",
            "np.random.default_rng(seed).multinomial",
            "np.random.default_rng(0).multinomial",
            "evaluation/test_scoring.py::test_seed_moves_the_resamples_of_every_interval",
        ),
        (
            "Table 4 is of another inequality",
            'agreement(verdict["wl>lw"], groups)',
            'agreement(verdict["wl>ll"], groups)',
            "evaluation/test_scoring.py::test_gap_reward_summary_by_hand",
        ),
        (
            "verdicts of pairs are for the second model",
            "np.stack([judge(a, b) for a, b in pairs])",
            "np.stack([judge(b, a) for a, b in pairs])",
            "evaluation/test_scoring.py::test_pairwise_outcomes_are_for_the_first_of_each_pair",
        ),
        (
            "Worse ends between the worst and the better of the alike",
            '(means["lw"] + min(alike)) / 2',
            '(means["lw"] + max(alike)) / 2',
            "evaluation/test_scoring.py::test_reward_regions_by_hand",
        ),
        (
            "densities have bins of their own",
            "np.histogram(values, bins=edges, density=True)",
            "np.histogram(values, bins=bins, density=True)",
            "evaluation/test_scoring.py::test_density_histograms_share_bins_and_integrate_to_one",
        ),
    ],
    "evaluation/answers.py": [
        (
            "an answer goes on a damaged line",
            'not self._content.endswith(b"\\n")',
            "False",
            "evaluation/test_language_judge.py::test_answers_come_back_from_their_file",
        ),
        (
            "answers wait in memory",
            "            self._file.flush()\n",
            "",
            "evaluation/test_language_judge.py::test_answers_come_back_from_their_file",
        ),
    ],
    "evaluation/classifier.py": [
        (
            "responses are scored again",
            "if pair not in self._known",
            "if True",
            "evaluation/test_classifier.py::test_a_whole_evaluation_by_a_classifier",
        ),
    ],
    "evaluation/language_judge.py": [
        (
            "the first verdict of an answer counts",
            "found[-1] if found",
            "found[0] if found",
            "evaluation/test_language_judge.py::test_the_last_verdict_of_an_answer_counts",
        ),
        (
            "a request without an answer is none that is missing",
            "            if isinstance(answer, Unanswered):\n                unanswered += 1\n",
            "            if isinstance(answer, Unanswered):\n                kept += 1\n",
            "evaluation/test_judge_faults.py::test_so_many_may_stay_without_an_answer",
        ),
        (
            "a response that speaks to the judge is not told",
            "sum(pair in _SWAPPED for pair, m in zip(pairs, marked) if m)",
            "0",
            "evaluation/test_judge_faults.py::"
            "test_a_judge_that_obeys_a_response_is_biased_and_the_report_says_so",
        ),
        (
            "one order decides",
            '{("A", "B"): 1, ("B", "A"): -1}.get(orders, 0)',
            '{"A": 1, "B": -1}.get(orders[0], 0)',
            "evaluation/test_language_judge.py::test_verdicts_of_both_orders_by_hand",
        ),
        (
            "the API is no part of what names a request",
            "json.dumps([self._endpoint.url, body], sort_keys=True)",
            "json.dumps([body], sort_keys=True)",
            "evaluation/test_language_judge.py::test_what_an_answer_depends_on_is_asked_anew",
        ),
        (
            "known answers are asked for again",
            "if (key := self._digests[each]) not in self._answers",
            "if (key := self._digests[each])",
            "evaluation/test_language_judge.py::test_no_request_is_sent_twice",
        ),
        (
            "verdicts are asked for table by table",
            "        self._ask(list(self._digests))\n",
            "",
            "evaluation/test_language_judge.py::test_all_that_is_needed_is_asked_for_together",
        ),
    ],
    "evaluation/held_out_pairs.py": [
        (
            "fillers of the last batch are kept",
            'real = batch.pop("weight") > 0',
            'real = batch.pop("weight") >= 0',
            "evaluation/test_suite_scripted.py",
            "They are the last rows, and the rows are cut to the number of prompts.",
        ),
    ],
    "evaluation/responses.py": [
        (
            "prompts without tokens are drawn for, too",
            "if spent[i] < tokens]",
            "if tokens]",
            "evaluation/test_budgets.py::test_only_prompts_with_tokens_left_are_drawn_for_again",
        ),
        (
            "another draw is the same sample",
            'run.key("evaluation", stage, draw)',
            'run.key("evaluation", stage)',
            "evaluation/test_suite_fields.py::test_stage_draw_and_purpose_each_move_the_key",
        ),
        (
            "original responses lose their filters",
            "dataclasses.replace(run.config.improve.policy_sampling, temperature=temperature)",
            "SamplingConfig(temperature=temperature)",
            "evaluation/test_suite_fields.py::test_what_is_asked_of_improve_is_its_own_sampling",
        ),
        (
            "improvements are sampled as the original",
            "improve.sampling, temperature=temperature",
            "improve.policy_sampling, temperature=temperature",
            "evaluation/test_suite_scripted.py::test_improvements_are_sampled_as_the_configuration_says_and_never_stop",
        ),
        (
            "gaps of Figures 2 and 4 are of different origins",
            "(improver, anchor=0.0, better_above=anchor)",
            "(improver, better_above=anchor)",
            "evaluation/test_suite_scripted.py::test_improvements_are_sampled_as_the_configuration_says_and_never_stop",
        ),
        (
            "a report's iterations stop by the gap",
            "            min_gap=None,\n",
            "",
            "evaluation/test_suite_scripted.py::test_improvements_are_sampled_as_the_configuration_says_and_never_stop",
        ),
        (
            "R_P is read at the last token whatever its pooling",
            "model, pooling = self.model(stage), run.pooling(stage)",
            'model, pooling = self.model(stage), "last"',
            "evaluation/test_suite_scripted.py::test_a_text_is_scored_as_its_reward_model_was_trained",
        ),
        (
            "improvements draw with the original's key",
            'draw = run.key("evaluation", stage, method)',
            'draw = run.key("evaluation", self._policy, 0)',
            "evaluation/test_suite_scripted.py::test_improvements_are_sampled_as_the_configuration_says_and_never_stop",
        ),
        (
            "Self-Refine draws with PIT's key of the sweep",
            'purposes = () if method == "pit" else (method,)',
            "purposes = ()",
            "evaluation/test_suite_scripted.py::test_the_sweep_improves_what_was_sampled_at_1",
        ),
        (
            "Figure 5 improves the original",
            "original = self.policy(policy, 1.0)",
            "original = self.policy(self._policy, 1.0)",
            "evaluation/test_suite_scripted.py::test_the_sweep_improves_what_was_sampled_at_1",
        ),
        (
            "too few iterations are taken for enough",
            "len(known[0].responses) <= iterations",
            "len(known[0].responses) < iterations",
            "evaluation/test_suite_scripted.py::test_nothing_is_improved_twice",
        ),
        (
            "a text is scored anew each time",
            "if each not in self._rewards",
            "if True",
            "evaluation/test_suite_scripted.py::test_a_text_is_scored_as_its_reward_model_was_trained",
        ),
    ],
    "evaluation/tables.py": [
        (
            "a response that stopped early has no later one",
            'min(k, len(r["responses"]) - 1)',
            "0",
            "evaluation/test_suite_scripted.py::test_a_response_that_stopped_early_stands_for_later_ones",
        ),
        (
            "a comparison's rows count as independent",
            "compared(outcomes, *said, self.responses.groups, self.seed)",
            "compared(outcomes, *said, None, self.seed)",
            "evaluation/test_suite_scripted.py::test_rows_of_one_group_count_as_one",
        ),
        (
            "delta is of the original against an iteration",
            "scoring.compare(verdicts(m, 0), groups)",
            "scoring.compare(verdicts(0, m), groups)",
            "evaluation/test_suite_scripted.py::test_iterations_are_judged_against_the_original",
        ),
        (
            "every iteration has the first one's gap",
            "t.gaps[k - 1] for t in traces",
            "t.gaps[0] for t in traces",
            "evaluation/test_suite_scripted.py::test_iterations_are_judged_against_the_original",
        ),
        (
            "Self-Refine has PIT's gaps",
            "t.gaps[k - 1] for t in traces",
            "t.gaps[k - 1] for t in pit",
            "evaluation/test_suite_scripted.py::test_self_refine_is_rated_beside_pit",
        ),
        (
            "a judge of verdicts is asked for the other order",
            "return self.verdicts(said[a], said[b])",
            "return self.verdicts(said[b], said[a])",
            "evaluation/test_language_judge.py::"
            "test_a_judge_of_verdicts_makes_the_same_table_3_as_the_checker",
        ),
    ],
    "evaluation/people.py": [
        (
            "A and B are exchanged",
            'if self.shown_as == "A" else',
            'if self.shown_as == "B" else',
            "evaluation/test_people.py::test_who_is_shown_what",
        ),
        (
            "the first response is always A",
            '"AB"[rng.integers(2)]',
            '"A"',
            "evaluation/test_people.py::test_who_is_shown_what",
        ),
        (
            "comparisons are asked in the order of the prompts",
            "[items[i] for i in rng.permutation(len(items))]",
            "items",
            "evaluation/test_people.py::test_who_is_shown_what",
        ),
        (
            "one person's verdict is enough",
            "np.where((said_PN == said_PN[0]).all(axis=0), said_PN[0], 0)",
            "said_PN[0]",
            "evaluation/test_people.py::test_agreement_and_a_win_only_if_both_say_so_by_hand",
        ),
        (
            "equal responses aren't counted as ties",
            "[(item, 0) for item in key.items if not item.shown_as]",
            "[]",
            "evaluation/test_people.py::test_agreement_and_a_win_only_if_both_say_so_by_hand",
        ),
        (
            "the digest leaves out whether there are ties",
            "[self.question, self.ties, [",
            "[self.question, [",
            "evaluation/test_people.py::test_the_digest_is_of_all_that_is_seen",
        ),
        (
            "comparisons of a prompt are draws of their own for agreement",
            "said_PN[i], said_PN[j], groups, seed",
            "said_PN[i], said_PN[j], None, seed",
            "evaluation/test_people.py::test_intervals_are_those_of_prompts",
        ),
        (
            "a comparison counts that one person hasn't judged",
            "if all(n in s.verdicts for s in sheets)]",
            "if n in sheets[0].verdicts]",
            "evaluation/test_people.py::test_what_is_missing_is_refused_or_left_out",
        ),
        (
            "one person may send two files",
            "sheet.annotator.casefold()",
            "sheet.path",
            "evaluation/test_people.py::test_files_of_people",
        ),
    ],
    "evaluation/verdict_files.py": [
        (
            "a sheet of another page is read",
            'row["page"] != page',
            'not row["page"]',
            "evaluation/test_verdict_files.py::test_what_is_wrong_is_said_with_file_and_line",
        ),
        (
            "a comparison may be judged again",
            "if number in verdicts or number in blank:",
            "if number in blank:",
            "evaluation/test_verdict_files.py::test_what_is_wrong_is_said_with_file_and_line",
        ),
        (
            "a response is a formula of the spreadsheet",
            'f"\'{text}" if text.startswith(_FORMULA) else text',
            "text",
            "evaluation/test_verdict_files.py::test_a_sheet_that_is_filled_in_is_read",
        ),
        (
            "lines are counted by rows",
            "line = reader.line_num + 1",
            "line += 1",
            "evaluation/test_verdict_files.py::test_what_is_wrong_is_said_with_file_and_line",
        ),
        (
            "a tie is a verdict where there are none",
            '["A", "B", TIE] if ties else ["A", "B"]',
            '["A", "B", TIE]',
            "evaluation/test_verdict_files.py::test_a_tie_where_there_are_none",
        ),
    ],
    "evaluation/variants.py": [
        (
            "an unfinished stage is compared",
            " and run.is_complete(stage.name)",
            "",
            "evaluation/test_variants.py::test_complete_stages_of_a_task_follow_those_that_are_named",
        ),
        (
            "a stage that is named is listed twice",
            "listed = {main, *(stage for _, stage in named)}",
            "listed = {main}",
            "evaluation/test_variants.py::test_complete_stages_of_a_task_follow_those_that_are_named",
        ),
        (
            "the paper's variants may have another reward",
            "main.reward_model != stage.reward_model",
            "False",
            "evaluation/test_variants.py::test_kinds_are_the_papers_where_rounds_and_reward_are",
        ),
    ],
    "evaluation/suite.py": [
        (
            "gaps are scored that nothing shows",
            "with_gaps=False",
            "with_gaps=True",
            "evaluation/test_suite_scripted.py::test_nothing_is_sampled_scored_or_judged_twice",
        ),
    ],
}
