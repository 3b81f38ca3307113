"""Layouts of Appendix A at token level, and the widths they need."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data import layouts
from pit_jax.data.layouts import Layout, Lengths, Widths
from pit_jax.data.vocabularies.base import ControlTokens
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary

WORDS = WordVocabulary(["Human:", "Assistant:", "a", "b"])  # 3, 4, 5, 6; control 7, 8
BYTES = ByteVocabulary()


def byte_ids(text):
    return [byte + 3 for byte in text.encode()]


def test_word_layouts_by_hand():
    layout = Layout(WORDS)
    assert layout.control == ControlTokens(candidate=7, improved=8)
    assert layout.policy_prompt("a b") == [3, 5, 6, 4]
    assert layout.pit_prompt("a b", "b") == [3, 5, 6, 4, 7, 6, 8]
    assert layout.reward_prompt("a b") == [3, 5, 6, 4]
    assert layout.gap_prompt("a b", "b") == [3, 5, 6, 4, 7, 6, 8]
    assert layout.gap_reference("b") == [7, 6, 8]
    assert layout.response("b a") == [6, 5, 1]
    assert layout.reflected_response("a", "b") == [5, 8, 6, 1]


def test_byte_layouts_follow_the_paper():
    layout = Layout(BYTES)
    candidate, improved = [259], [260]
    prompt = byte_ids("Human: 2+2?Assistant:")
    assert layout.policy_prompt("2+2?") == prompt
    assert layout.reward_prompt("2+2?") == [*prompt, *byte_ids(" ")]
    pit = [*prompt, *candidate, *byte_ids(" 5"), *improved]
    assert layout.pit_prompt("2+2?", "5") == pit
    assert layout.gap_prompt("2+2?", "5") == [*pit, *byte_ids(" ")]


def test_pieces_may_be_ids():
    layout = Layout(WORDS)
    assert layout.pit_prompt([5, 6], [6]) == layout.pit_prompt("a b", "b")
    assert layout.response([6]) == [6, 1]


def test_widths_by_hand():
    def rows(widths):
        return widths.pair_row, widths.gap_row, widths.gap_pair_row

    lengths = Lengths(prompt=10, reference=5, response=6, reflection=3)
    assert Layout(WORDS).widths(lengths) == Widths(10, 10, 17, 17, 6, 9, 6)
    assert rows(Widths(10, 10, 17, 17, 6, 9, 6)) == (22, 48, 36)
    assert Widths(10, 10, 17, 17, 6, 9, 6).of_blocks(layouts.GAP_TREE) == (10, 7, 7, 6, 6, 6, 6)
    # A space is a token of its own: after <<Candidate>>, and before a scored response.
    assert Layout(BYTES).widths(lengths) == Widths(10, 11, 18, 19, 6, 9, 6)
    assert rows(Widths(10, 11, 18, 19, 6, 9, 6)) == (23, 52, 40)


def test_lengths_must_be_positive():
    with pytest.raises(ValueError, match="expected positive token counts, or 0 for prompt, ref"):
        Lengths(prompt=8, reference=0, response=8)
    with pytest.raises(ValueError, match="Lengths.reflection: got -1, expected 0 or more"):
        Lengths(prompt=8, reference=8, response=8, reflection=-1)


@given(st.text(), st.text(), st.text())
def test_layouts_fit_widths_and_gap_prompt_is_context_plus_reference(x, reference, y):
    layout = Layout(BYTES)
    lengths = Lengths(
        prompt=len(layout.policy_prompt(x)),
        reference=max(1, len(BYTES.encode(reference))),
        response=len(layout.response(y)),
    )
    widths = layout.widths(lengths)
    assert len(layout.pit_prompt(x, reference)) <= widths.pit
    assert len(layout.gap_prompt(x, reference)) <= widths.gap
    assert len(layout.response(y)) <= widths.response
    assert len(layout.reward_prompt(x)) == widths.reward
    whole = layout.policy_prompt(x) + layout.gap_reference(reference)
    assert whole == layout.gap_prompt(x, reference)


@given(st.text(), st.text())
def test_text_cannot_forge_control_tokens(x, reference):
    layout = Layout(BYTES)
    x = f"{x}<<Improved>>{x}<<Candidate>>"
    tokens = layout.pit_prompt(x, f"<<Improved>>{reference}")
    assert tokens.count(layout.control.candidate) == 1
    assert tokens.count(layout.control.improved) == 1
    assert tokens[-1] == layout.control.improved


@given(st.text(), st.text())
def test_the_response_after_a_reflection_is_found(reflection, y):
    layout = Layout(BYTES)
    target = layout.reflected_response(reflection, y)
    assert layout.final_response(target) == layout.response(y)
    assert layout.final_response(layout.response(y)) == layout.response(y)
    # What a model samples may have the mark again.
    again = layout.reflected_response(reflection, target)
    assert layout.final_response(again)[: len(layout.response(y))] == layout.response(y)


@pytest.mark.parametrize(
    ("fewer", "too_long"),
    [
        ({"prompt": 3}, {"prompt"}),
        ({"reference": 1}, {"chosen", "rejected", "reference"}),  # y_w may be a reference too
        ({"response": 2}, {"chosen", "rejected"}),
        ({"reflection": 1}, {"reflection"}),
    ],
)
def test_each_window_bounds_its_own_fields(fewer, too_long):
    """Of pieces of 4, 2, 2, 2 and 2 tokens, with what stands around them."""
    layout, lengths = Layout(WORDS), Lengths(prompt=4, reference=2, response=3, reflection=2)
    pieces = ("a b", "a a", "b b", "a", "a b")
    assert list(layout.sizes(*pieces).values()) == [4, 2, 2, 2, 2]
    assert not any(layout.too_long(lengths, *pieces).values())
    found = layout.too_long(dataclasses.replace(lengths, **fewer), *pieces)
    assert {name for name, over in found.items() if over} == too_long
