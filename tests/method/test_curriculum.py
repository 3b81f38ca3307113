"""Rounds: which are valid, which are still to do at a step, how references are sampled."""

from __future__ import annotations

import jax
import pytest

from pit_jax.data.examples import Example
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.reference_store import ReferenceMeta, ReferenceStore, ReferenceWriter
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.method.curriculum import Round, locate, sample_references, to_sample
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import Improver
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Response

ROUNDS = (Round("data", 3), Round("policy", 0), Round("policy", 2), Round("pit", 4))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [(0, 0, 3), (2, 3, 5), (3, 5, 9)]),
        (2, [(0, 0, 3), (2, 3, 5), (3, 5, 9)]),
        (3, [(2, 3, 5), (3, 5, 9)]),
        (5, [(3, 5, 9)]),
        (8, [(3, 5, 9)]),
        (9, []),
    ],
)
def test_rounds_still_to_do(step, expected):
    """A round of no steps is left out, and so are its references."""
    found = [(number, first, last) for number, _, first, last in locate(ROUNDS, step)]
    assert found == expected
    assert all(ROUNDS[number] is round_ for number, round_, _, _ in locate(ROUNDS, step))


def test_only_models_are_sampled():
    sampled = {
        "none": False,
        "data": False,
        "policy": True,
        "checkpoint": True,
        "pit": True,
    }
    for source, expected in sampled.items():
        assert Round(source, 1, policy_step=int(source == "checkpoint")).is_sampled == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "web"}, r"got source='web', expected one of \('none', 'data', 'policy'"),
        ({"source": "checkpoint"}, "policy_step goes with source='checkpoint'"),
        ({"source": "policy", "policy_step": 3}, "policy_step goes with source='checkpoint'"),
        ({"source": "data", "steps": -1}, "expected steps >= 0 and improvements >= 1"),
        ({"source": "pit", "improvements": 0}, "expected steps >= 0 and improvements >= 1"),
    ],
)
def test_mistakes_in_a_round_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Round(**{"steps": 1, **fields})


# --- references ---------------------------------------------------------------------------------

WORDS = WordVocabulary(["Human:", "Assistant:", "p", "q", "s", "a", "b", "c", "d", "e"])
LAYOUT = Layout(WORDS)
LENGTHS = Lengths(prompt=5, reference=2, response=4)
POLICY, PIT = SamplingConfig(temperature=0.6, top_p=0.9), SamplingConfig(temperature=0.3, top_k=2)
EXAMPLES = [Example(prompt, "a", "b", index=index) for prompt, index in zip("pqs", (4, 7, 9))]


class Script:
    """A sampler whose answers tell how often they were improved; it keeps the calls."""

    def __init__(self):
        self.calls = []

    def respond(self, model, prompts, width, rows, key, sampling):
        key = tuple(jax.random.key_data(key).tolist())
        self.calls.append((model, prompts, width, list(rows), key, sampling))
        words = "abcdea"[len(self.calls) - 1]
        return [Response(WORDS.encode(f"{words} {words} {words}"), row != 7) for row in rows]


def sampled(folder, round_, key=0, shard_size=8):
    script = Script()
    writer = ReferenceWriter(folder, shard_size, ReferenceMeta(1, round_.source, "x", 0, 8))
    role = Role(None, LAYOUT, LENGTHS, script)
    improver, key = Improver(role, "M_PIT"), jax.random.key(key)
    sample_references(round_, writer, EXAMPLES, "M_P", role, improver, key, shard_size)
    return script.calls, list(ReferenceStore(folder))


def test_references_of_a_policy_are_sampled_as_the_round_says(tmp_path):
    round_ = Round("policy", 1, sampling=POLICY, pit_sampling=PIT, improvements=2)
    calls, records = sampled(tmp_path, round_)
    key = tuple(jax.random.key_data(jax.random.key(0)).tolist())
    prompts = [LAYOUT.policy_prompt(example.prompt) for example in EXAMPLES]
    assert calls == [("M_P", prompts, LENGTHS.prompt, [4, 7, 9], key, POLICY)]
    assert [record["index"] for record in records] == [4, 7, 9]
    # Cut to the window, and marked where the response didn't end.
    assert [record["text"] for record in records] == ["a a"] * 3
    assert [record["ended"] for record in records] == [True, False, True]


def test_references_of_pit_are_sampled_and_improved_as_the_round_says(tmp_path):
    """M_P samples as it samples, M_PIT as M_PIT does, so often as there are improvements."""
    round_ = Round("pit", 1, sampling=POLICY, pit_sampling=PIT, improvements=2)
    calls, records = sampled(tmp_path, round_)
    assert [(model, sampling) for model, *_, sampling in calls] == [
        ("M_P", POLICY),
        ("M_PIT", PIT),
        ("M_PIT", PIT),
    ]
    assert [prompts[0] for _, prompts, *_ in calls[1:]] == [
        LAYOUT.pit_prompt("p", "a a"),
        LAYOUT.pit_prompt("p", "b b"),
    ]
    assert [record["text"] for record in records] == ["c c"] * 3
    assert all(rows == [4, 7, 9] for _, _, _, rows, _, _ in calls)


def test_references_go_as_text_to_a_model_of_another_vocabulary(tmp_path):
    """M_PIT reads bytes, of which five fit its window; M_P's own window has two words."""
    pit = Role(None, Layout(ByteVocabulary()), Lengths(prompt=30, reference=5, response=6), None)
    writer = ReferenceWriter(tmp_path, 8, ReferenceMeta(1, "policy", "x", 0, 8))
    role, key = Role(None, LAYOUT, LENGTHS, Script()), jax.random.key(0)
    improver = Improver(pit, "M_PIT")
    sample_references(Round("policy", 1), writer, EXAMPLES, "M_P", role, improver, key, 8)
    records = list(ReferenceStore(tmp_path))
    assert [record["index"] for record in records] == [4, 7, 9]
    assert [record["reference_tokens"] for record in records] == [[100, 35, 100, 35, 100]] * 3
    assert [record["text"] for record in records] == ["a a a"] * 3
    assert [record["ended"] for record in records] == [True, False, True]


def test_references_draw_with_keys_of_their_round_and_purpose(tmp_path):
    """Shards share the round's key: the number of an example is what tells its draw."""
    round_ = Round("pit", 1, improvements=2)
    found = [sampled(tmp_path / str(n), round_, key)[0] for n, key in enumerate((0, 1, 0))]
    keys = [[call[4] for call in calls] for calls in found]
    assert len({*keys[0], *keys[1]}) == 6 and keys[2] == keys[0]
    shards, records = sampled(tmp_path / "shards", round_, shard_size=2)
    assert [call[3] for call in shards] == [[4, 7]] * 3 + [[9]] * 3
    assert [call[4] for call in shards] == keys[0] * 2 and len(records) == 3


def test_references_go_on_where_a_crash_left_them(tmp_path):
    """The first shard is there: only the example after it is sampled, and the store is whole."""
    round_ = Round("policy", 1)
    writer = ReferenceWriter(tmp_path, 2, ReferenceMeta(1, "policy", "x", 0, 8))
    record = {"reference_tokens": [], "text": "", "ended": True}
    writer.add({"index": index, **record} for index in (4, 7))
    calls, records = sampled(tmp_path, round_, shard_size=2)
    assert [call[3] for call in calls] == [[9]]
    assert [record["index"] for record in records] == [4, 7, 9]


def test_no_more_prompts_are_sampled_for_than_the_steps_use():
    """Six of ten, at random and in order; all where the steps use as many or more."""
    examples = list("abcdefghij")
    two = [to_sample(examples, Round("policy", steps=3), 2, seed) for seed in (0, 1)]
    assert two[0] == to_sample(examples, Round("policy", steps=3), 2, 0) != two[1]
    for chosen in two:
        assert len(set(chosen)) == 6 and list(chosen) == sorted(chosen)
    for steps in (5, 9):
        assert to_sample(examples, Round("policy", steps=steps), 2, 0) == examples
    drawn = [x for seed in range(200) for x in to_sample(examples, Round("policy", 1), 1, seed)]
    assert set(drawn) == set(examples)
