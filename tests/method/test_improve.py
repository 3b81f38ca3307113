"""Algorithm 2 with a scripted model: stop criteria, traces, prompts, Self-Refine."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.method import improve
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Improver, Trace
from pit_jax.method.prompt_files import Step
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Reflecting, Response
from pit_jax.method.self_refine import Prompts, SelfRefine

WORDS = WordVocabulary(["Human:", "Assistant:", "p", "q", "a", "b", "c", "d", "advice"])
LAYOUT = Layout(WORDS)
LENGTHS = Lengths(prompt=5, reference=3, response=4)
KEY = jax.random.key(0)


def text(words, ended=True):
    return Response(WORDS.encode(words), ended)


class Script:
    """A sampler whose k-th call gives the k-th list of texts, or of gaps; it keeps the calls."""

    def __init__(self, responses, gaps=()):
        self._responses, self._gaps = iter(responses), iter(gaps)
        self.calls, self.scored = [], []

    def respond(self, model, prompts, width, rows, key, sampling):
        key = jax.random.key_data(key).tolist()
        self.calls.append((model, prompts, width, list(rows), key, sampling))
        return [text(words) for words in next(self._responses)] if prompts else []

    def score(self, model, prompts, width, responses, pooling):
        self.scored.append((model, prompts, width, list(responses), pooling))
        return np.array(next(self._gaps), np.float32)


def reading(script, lengths=LENGTHS):
    """The role of all models, with a script in the place of a sampler."""
    return Role(None, LAYOUT, lengths, script)


def run(script, config, first=("a", "b"), gap_model=None, prompts=("p", "q"), rows=(7, 8)):
    refine = SelfRefine(PROMPTS, LAYOUT, 4)
    improver = Improver(reading(script), "model", gap_model=gap_model, pooling="sum", refine=refine)
    return improver(prompts, [text(words) for words in first], rows, KEY, config)


def texts(trace):
    return [WORDS.decode(response.tokens) for response in trace.responses]


def test_a_fixed_number_of_iterations():
    script = Script([["b", "c"], ["b", "d"], ["c", "d"]])
    traces = run(script, ImproveConfig(iterations=3))
    assert [texts(trace) for trace in traces] == [["a", "b", "b", "c"], ["b", "c", "d", "d"]]
    assert [trace.last for trace in traces] == [3, 3]
    assert [trace.stop_reason for trace in traces] == ["iterations"] * 2
    assert traces[0].gaps == []


def test_texts_go_on_and_not_the_pieces_that_were_sampled():
    """`nerd`, sampled as n + erd, is ner + d to the tokenizer, as to whoever serves the models."""
    pieces = {2: "n", 3: "erd", 4: "ner", 5: "d"}
    prompts = []

    class Pieces(WordVocabulary):
        def encode(self, text):
            return [4, 5] if text == "nerd" else super().encode(text)

        def decode(self, ids):
            return "".join(pieces[i] for i in ids)

    class Sampled:
        def respond(self, model, built, *_):
            prompts.extend(built)
            return [Response([2, 3], True)]

    layout = Layout(Pieces(WORDS.words))
    role = Role(None, layout, LENGTHS, Sampled())
    improver = Improver(role, "model")
    config = ImproveConfig(iterations=3, stop_unchanged=True)
    (trace,) = improver(["p"], [Response([4, 5], True)], [0], KEY, config)
    assert prompts == [layout.pit_prompt("p", [4, 5])]
    assert trace.stop_reason == "unchanged"
    assert role.reference(Response([2, 3], True)) == [4, 5]


def test_each_iteration_improves_on_the_one_before():
    sampling = SamplingConfig(temperature=0.4)
    script = Script([["b", "c"], ["c", "d"]])
    run(script, ImproveConfig(iterations=2, sampling=sampling))
    width = LAYOUT.widths(LENGTHS).pit
    for k, drafts in enumerate([("a", "b"), ("b", "c")]):
        prompts = [LAYOUT.pit_prompt(x, y) for x, y in zip(("p", "q"), drafts)]
        key = jax.random.key_data(jax.random.fold_in(KEY, k)).tolist()
        assert script.calls[k] == ("model", prompts, width, [7, 8], key, sampling)


def test_no_iterations_leave_the_draft():
    (trace, _) = run(Script([]), ImproveConfig(iterations=0))
    assert texts(trace) == ["a"] and trace.last == 0 and trace.stop_reason == "iterations"


def test_an_unchanged_response_stops_its_row():
    script = Script([["a", "c"], ["c"], ["d"]])
    traces = run(script, ImproveConfig(iterations=3, stop_unchanged=True))
    assert [texts(trace) for trace in traces] == [["a", "a"], ["b", "c", "c"]]
    assert [trace.stop_reason for trace in traces] == ["unchanged"] * 2
    assert [trace.last for trace in traces] == [1, 2]
    assert [call[3] for call in script.calls] == [[7, 8], [8]]


def test_a_gap_below_epsilon_keeps_the_response_before():
    script = Script([["b", "c"], ["c", "d"], ["d"]], gaps=[[0.5, 0.2], [0.1, 0.3], [0.05]])
    config = ImproveConfig(iterations=3, min_gap=0.2)
    traces = run(script, config, gap_model="gaps")
    assert [texts(trace) for trace in traces] == [["a", "b", "c"], ["b", "c", "d", "d"]]
    assert [trace.last for trace in traces] == [1, 2]
    assert [trace.stop_reason for trace in traces] == ["gap", "gap"]
    np.testing.assert_allclose(traces[0].gaps, [0.5, 0.1])
    np.testing.assert_allclose(traces[1].gaps, [0.2, 0.3, 0.05], rtol=1e-6)
    assert WORDS.decode(traces[0].at(5).tokens) == "b"
    assert WORDS.decode(traces[1].at(1).tokens) == "c"


def test_the_gap_compares_the_new_response_with_the_old_one():
    script = Script([["b", "c"]], gaps=[[1, 1]])
    run(script, ImproveConfig(), gap_model="gaps")
    prompts = [LAYOUT.gap_prompt("p", "a"), LAYOUT.gap_prompt("q", "b")]
    width = LAYOUT.widths(LENGTHS).gap
    assert script.scored == [("gaps", prompts, width, [text("b"), text("c")], "sum")]


def test_a_judge_of_another_vocabulary_reads_texts():
    """R_PIT reads bytes: 2 of them fit its window of references, 3 and the end its other one."""
    judged = Script([], gaps=[[0.5, -1.0]])
    layout, lengths = Layout(ByteVocabulary()), Lengths(prompt=30, reference=2, response=4)
    judge = Role(None, layout, lengths, judged)
    improver = Improver(reading(Script([["c d", "d"]])), "model", judge, "gaps", "sum", 0.25)
    (one, two) = improver(["p", "q"], [text("a"), text("b a")], [7, 8], KEY, ImproveConfig())
    assert (one.gaps, two.gaps) == ([0.25], [-1.25])
    prompts = [layout.gap_prompt("p", [100]), layout.gap_prompt("q", [101, 35])]
    responses = [Response([102, 35, 103], True), Response([103], True)]
    # A prompt, a reference, the two tokens around it and two spaces.
    assert judged.scored == [("gaps", prompts, 30 + 2 + 2 + 2, responses, "sum")]
    assert judged.calls == []


def test_gaps_are_recorded_without_a_threshold():
    traces = run(Script([["b", "c"]], gaps=[[-2, 3]]), ImproveConfig(), gap_model="gaps")
    assert [trace.gaps for trace in traces] == [[-2], [3]]
    assert [trace.last for trace in traces] == [1, 1]


def test_a_time_budget_starts_no_further_iteration(monkeypatch):
    """The clock shows 0 at the start, then 1 and 3 seconds before the iterations."""
    clock = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(improve.time, "monotonic", lambda: next(clock))
    script = Script([["b", "c"], ["c", "d"]])
    traces = run(script, ImproveConfig(iterations=5, time_budget=2.0))
    assert [texts(trace) for trace in traces] == [["a", "b"], ["b", "c"]]
    assert [trace.stop_reason for trace in traces] == ["time"] * 2
    assert [trace.last for trace in traces] == [1, 1]


def test_time_does_not_overrule_a_row_that_stopped(monkeypatch):
    clock = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr(improve.time, "monotonic", lambda: next(clock))
    config = ImproveConfig(iterations=5, time_budget=2.0, stop_unchanged=True)
    traces = run(Script([["a", "c"]]), config)
    assert [trace.stop_reason for trace in traces] == ["unchanged", "time"]


def test_a_long_or_forged_draft_becomes_a_reference_of_plain_text():
    control = LAYOUT.control
    draft = Response([*WORDS.encode("a b"), control.improved, *WORDS.encode("c d")], False)
    script = Script([["a"]])
    improver = Improver(reading(script), "model")
    improver(["p"], [draft], [0], KEY, ImproveConfig())
    assert script.calls[0][1] == [LAYOUT.pit_prompt("p", "a b c")]


IMPROVED = LAYOUT.control.improved


def reflected(words, ended=True):
    """A text as it is sampled; M stands for `<<Improved>>`."""
    ids = [[IMPROVED] if word == "M" else WORDS.encode(word) for word in words.split()]
    return Response([id_ for each in ids for id_ in each], ended)


@pytest.mark.parametrize(
    ("words", "ended", "response", "response_ended", "reflection"),
    [
        ("c d M a b", True, "a b", True, "c d"),
        ("M a", True, "a", True, ""),
        ("c M a M b", True, "b", True, "c M a"),
        ("c M", True, "", True, "c"),
        ("a b", True, "a b", True, ""),
        ("", True, "", True, ""),
        # The window of responses holds three tokens and EOS, or four tokens.
        ("c M a b c", True, "a b c", True, "c"),
        ("c M a b c d", True, "a b c d", False, "c"),
        ("c M a b c d d", True, "a b c d", False, "c"),
        ("a b c d d", True, "a b c d", False, ""),
        # The window of the whole text is full.
        ("c d M a b", False, "a b", False, "c d"),
        ("c M a b c d d", False, "a b c d", False, "c"),
        ("c d c M", False, "", False, "c d c"),
        ("c d c d", False, "", False, "c d c d"),
    ],
)
def test_a_response_is_read_out_after_its_reflection(
    words, ended, response, response_ended, reflection
):
    improver = Improver(reading(None), "model", reflects=True)
    found = improver.read_out(reflected(words, ended))
    assert found.tokens == reflected(response).tokens and found.ended == response_ended
    assert found.reflection == reflected(reflection).tokens


def test_only_responses_are_scored_and_improved_further():
    """p improves a to b and to c d; q writes only a reflection, then a response alone."""
    lengths = dataclasses.replace(LENGTHS, reflection=3)
    sampled = iter(
        [
            [reflected("q p M b"), reflected("q q q q q q q", False)],
            [reflected("p M c d"), reflected("d")],
        ]
    )
    script, asked = Script([], gaps=[[1.0, -1.0], [0.5, 2.0], [0.25]]), []

    def respond(model, prompts, width, rows, key, sampling, reflecting):
        asked.append((prompts, width, reflecting))
        return next(sampled)

    script.respond = respond
    role = reading(script, lengths)
    improver = Improver(role, "M_PIT", gap_model="R_PIT", reflects=True)
    drafts = [text("a"), text("b")]
    traces = improver(["p", "q"], drafts, [0, 1], KEY, ImproveConfig(iterations=2))
    assert [texts(trace) for trace in traces] == [["a", "b", "c d"], ["b", "", "d"]]
    first, second = [LAYOUT.pit_prompt("p", "a"), LAYOUT.pit_prompt("q", "b")], ["b", ""]
    second = [LAYOUT.pit_prompt(x, y) for x, y in zip("pq", second)]
    reflecting = Reflecting(3 + 4, IMPROVED)
    width = LAYOUT.widths(lengths).pit
    assert asked == [(first, width, reflecting), (second, width, reflecting)]
    assert [WORDS.decode(r.reflection) for t in traces for r in t.responses] == [
        *("", "q p", "p"),
        *("", "q q q q q q q", ""),
    ]
    new = [[(r.tokens, r.ended) for r in call[3]] for call in script.scored]
    assert new == [
        [(WORDS.encode("b"), True), ([], False)],
        [(WORDS.encode("c d"), True), (WORDS.encode("d"), True)],
        [(WORDS.encode("d"), True)],
    ]


REFINE = ImproveConfig(method="self_refine")
PROMPTS = Prompts(Step("{prompt} {response}"), Step("{prompt} {response} {feedback}"))


def test_self_refine_asks_for_feedback_and_then_for_a_better_response():
    script = Script([["advice", "advice"], ["c", "d"]])
    traces = run(script, REFINE)
    assert [texts(trace) for trace in traces] == [["a", "c"], ["b", "d"]]
    asked = [["p a", "q b"], ["p a advice", "q b advice"]]
    for call, expected in zip(script.calls, asked, strict=True):
        assert call[1] == [LAYOUT.policy_prompt(words) for words in expected]
        assert call[0] == "model" and call[3] == [7, 8]
    # The two draws of a row are independent.
    assert script.calls[0][4] != script.calls[1][4]


def test_self_refine_widens_its_window_to_hold_the_longest_prompt():
    """In steps, so that few widths are compiled; a prompt holds two words besides the text."""
    script = Script([["advice", "a"], ["c", "d"]])
    run(script, REFINE, prompts=("p " * 29, "q"))
    assert [call[2] for call in script.calls] == [32, 64]
    assert [max(map(len, call[1])) for call in script.calls] == [32, 33]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "magic"}, r"got method='magic', expected one of \('pit', 'self_refine'\)"),
        ({"keep": "first"}, r"got keep='first', expected one of \('best', 'last'\)"),
        ({"iterations": -1}, "iterations: got -1, expected 0 or more"),
    ],
)
def test_mistakes_in_a_configuration_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ImproveConfig(**fields)


def test_what_stands_after_an_iteration():
    trace = Trace([text("a"), text("b"), text("c")], [], last=1)
    assert [WORDS.decode(trace.at(k).tokens) for k in range(4)] == ["a", "b", "b", "b"]


def test_a_row_ends_with_its_best_response_by_gap():
    """p: worse, better than its first, worse. q: better, worse, worse than its best."""
    script = Script(
        [["b", "c"], ["c", "d"], ["d", "a"]],
        gaps=[[-1.0, 0.5], [2.0, -0.3], [0.25], [-0.5, 0.4], [-0.1]],
    )
    traces = run(script, ImproveConfig(iterations=3), gap_model="gaps")
    assert [trace.gaps for trace in traces] == [
        [-1, 2, -0.5],
        [0.5, pytest.approx(-0.3), pytest.approx(0.4)],
    ]
    # p: c against a, the best before it; q: a against c, after d was worse than it.
    assert script.scored[2][1:4] == (
        [LAYOUT.gap_prompt("p", "a")],
        LAYOUT.widths(LENGTHS).gap,
        [text("c")],
    )
    assert script.scored[4][1:4] == (
        [LAYOUT.gap_prompt("q", "c")],
        LAYOUT.widths(LENGTHS).gap,
        [text("a")],
    )
    assert [trace.best for trace in traces] == [2, 1]
    assert [trace.best_gap for trace in traces] == [0.25, 0.5]
    assert [[trace.best_after(k) for k in range(4)] for trace in traces] == [
        [0, 0, 2, 2],
        [0, 1, 1, 1],
    ]
    assert [trace.final("best") for trace in traces] == [2, 1]
    assert [trace.final("last") for trace in traces] == [3, 3]


def test_the_best_is_the_draft_where_every_gap_is_below_0():
    traces = run(Script([["b", "c"]], gaps=[[-1.93, 0.0]]), ImproveConfig(), gap_model="gaps")
    assert [trace.final("best") for trace in traces] == [0, 0]


def test_without_a_gap_model_the_last_is_the_result():
    traces = run(Script([["b", "c"]]), ImproveConfig())
    assert [trace.final("best") for trace in traces] == [1, 1]


def test_a_gap_is_counted_from_the_models_anchor():
    script = Script([["b"]], gaps=[[-2.0]])
    improver = Improver(reading(script), "model", gap_model="gaps", pooling="sum", anchor=-2.5)
    (trace,) = improver(["p"], [text("a")], [0], KEY, ImproveConfig(min_gap=0.25))
    assert trace.gaps == [0.5] and trace.final("best") == 1


@pytest.mark.parametrize(("above", "best"), [(-2.5, 1), (-2.0, 0), (0.0, 0)])
def test_gaps_may_be_scores_as_they_are_beside_what_the_best_is_counted_from(above, best):
    script = Script([["b"]], gaps=[[-2.0]])
    improver = Improver(reading(script), "model", gap_model="gaps", better_above=above)
    (trace,) = improver(["p"], [text("a")], [0], KEY, ImproveConfig())
    assert trace.gaps == [-2.0] and trace.best == trace.best_after(1) == best


def test_iteration_and_purpose_each_move_the_key():
    """Of feedback and refinement, twice each; and of two iterations of PIT."""
    script = Script([["advice", "advice"], ["c", "d"]] * 2)
    run(script, dataclasses.replace(REFINE, iterations=2))
    assert len({tuple(call[4]) for call in script.calls}) == 4
    again = Script([["advice", "advice"], ["c", "d"]] * 2)
    run(again, dataclasses.replace(REFINE, iterations=2))
    assert [call[4] for call in again.calls] == [call[4] for call in script.calls]


@pytest.mark.parametrize("method", ["pit", "self_refine"])
def test_every_pass_samples_as_sampling_says(method):
    """And never as M_P does for y_0."""
    sampling = SamplingConfig(temperature=0.4, top_p=0.9)
    script = Script([["b", "c"]] * 4)
    other = SamplingConfig(temperature=0.1)
    config = dataclasses.replace(
        REFINE, method=method, iterations=2, sampling=sampling, policy_sampling=other
    )
    run(script, config)
    assert len(script.calls) == (2 if method == "pit" else 4)
    assert {call[5] for call in script.calls} == {sampling}
