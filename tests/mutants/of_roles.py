"""Small wrong changes of what models of several networks, vocabularies and windows need."""

MUTANTS = {
    "data/input_pipeline.py": [
        (
            "an example that another model has no room for is counted",
            "return sizes, left_out or self._left_out_beside(e)",
            "return sizes, left_out",
            "data/test_other_readers.py::"
            "test_an_example_is_left_out_of_all_pipelines_where_one_has_no_room",
        ),
        (
            "an example that another model has no room for is in batches",
            "        if not self.beside:\n",
            "        if True:\n",
            "data/test_other_readers.py::"
            "test_an_example_is_left_out_of_all_pipelines_where_one_has_no_room",
        ),
        (
            "a reward model reads the ids of a store of another vocabulary",
            "window = self.lengths.reference if as_text else 0",
            "window = 0",
            "data/test_other_readers.py::"
            "test_references_of_a_store_are_read_as_text_by_another_vocabulary",
        ),
    ],
    "data/reference_store.py": [
        (
            "a text of a store may be longer than the window",
            'encode(record["text"])[: self._text_window]',
            'encode(record["text"])',
            "data/test_other_readers.py::"
            "test_references_of_a_store_are_read_as_text_by_another_vocabulary",
        ),
    ],
    "data/tables.py": [
        (
            "the critic reads the reward model's ids",
            '{**batch, **read, "critic_prompt_tokens": critic}',
            "{**batch, **read}",
            "data/test_other_readers.py::"
            "test_a_reward_model_reads_the_rows_of_the_actor_in_its_own_ids",
        ),
        (
            "the actor's prompts are in the reward model's ids",
            'own = ("prompt_tokens", "example_index")',
            'own = ("example_index",)',
            "data/test_other_readers.py::"
            "test_a_reward_model_reads_the_rows_of_the_actor_in_its_own_ids",
        ),
    ],
    "evaluation/responses.py": [
        (
            "Self-Refine improves with M_PIT's windows",
            'return PIT if method == "pit" else POLICY',
            "return PIT",
            "evaluation/test_suite_scripted.py::"
            "test_improvements_are_sampled_as_the_configuration_says_and_never_stop",
        ),
    ],
    "method/curriculum.py": [
        (
            "a reference is in M_P's ids",
            "improver.role.reference(response)",
            "policy_role.reference(response)",
            "method/test_curriculum.py::"
            "test_references_go_as_text_to_a_model_of_another_vocabulary",
        ),
    ],
    "method/improve.py": [
        (
            "R_PIT reads the ids of M_PIT",
            "judge = self.judge or self.role",
            "judge = self.role",
            "method/test_improve.py::test_a_judge_of_another_vocabulary_reads_texts",
        ),
    ],
    "method/ppo_step.py": [
        (
            "what is translated is sampled with another key",
            "translated(actor, placed, rollout_key)",
            "translated(actor, placed, update_key)",
            "method/test_ppo_translation.py::"
            "test_a_translation_that_changes_nothing_is_the_fused_step",
        ),
    ],
    "method/rollouts.py": [
        (
            "an episode is scored in the actor's ids",
            '    if "reward_response_tokens" in batch:\n',
            "    if False:\n",
            "method/test_ppo_translation.py::"
            "test_scores_are_those_of_the_texts_that_the_reward_model_reads",
        ),
    ],
    "method/roles.py": [
        (
            "a text that is cut has ended",
            "ended and len(tokens) < window",
            "ended",
            "method/test_roles.py",
        ),
        (
            "a text fills its window and has an end beyond it",
            "len(tokens) < window",
            "len(tokens) <= window",
            "method/test_roles.py",
        ),
        (
            "ids are read by whatever vocabulary",
            "if writer.vocabulary == self.vocabulary:",
            "if True:",
            "method/test_roles.py",
        ),
        (
            "pieces that were sampled are encoded anew",
            "if writer.vocabulary == self.vocabulary:",
            "if False:",
            "method/test_roles.py",
        ),
        (
            "what a text says is read off its ids",
            "if response.text is None else response.text",
            "",
            "method/test_roles.py",
        ),
    ],
    "run/checks.py": [
        (
            "a critic starts from a reward model whose ids it can't read",
            'if stage.ppo.critic_start == "reward" and run.reward_data(stage) is not None:',
            "if False:",
            "run/test_checks.py::test_a_critic_is_not_a_reward_model_that_reads_another_vocabulary",
        ),
    ],
    "run/config.py": [
        (
            "a critic that starts as the actor has the reward model's network",
            'own if stage.ppo.critic_start == "actor" else reward',
            "reward",
            "run/test_run.py::test_networks_of_ppo_are_those_of_its_roles",
        ),
    ],
    "run/directory.py": [
        (
            "other windows of another role aren't refused",
            'found[f"lengths of {role}"] = ',
            "_ = ",
            "run/test_directory.py::test_what_is_changed_of_another_role_is_refused",
        ),
        (
            "windows of the data are those of any role",
            "if folder.name not in others and ",
            "if ",
            "run/test_directory.py::"
            "test_windows_that_the_data_gave_are_those_of_the_roles_own_stages",
        ),
    ],
    "run/run.py": [
        (
            "examples have to fit the windows of their own role only",
            "for reader in dict.fromkeys(readers.values()) if reader != mine]",
            "for reader in dict.fromkeys(readers.values()) if False]",
            "run/test_run.py::test_the_data_of_a_role_fits_the_windows_of_all",
        ),
    ],
    "run/stage_training.py": [
        (
            "a response that didn't end is read as one that did",
            "ended = [bool(is_end(row, own.vocabulary.ends).any()) for row in rows]",
            "ended = [True for row in rows]",
            "run/test_stage_training.py::"
            "test_a_reward_model_of_another_vocabulary_reads_what_the_actor_said",
        ),
        (
            "the reward model's ids are in no batch",
            "        reward=run.reward_data(stage),\n",
            "",
            "run/test_stage_training.py::"
            "test_batches_have_what_the_reward_model_reads_where_that_is_other_ids",
        ),
    ],
}
