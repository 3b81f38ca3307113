"""Prompts against transformers' own, ids and all. Needs transformers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pit_jax.data.examples import Dialogue
from pit_jax.data.vocabularies.load import load
from tests.tiny_chats import make_chats

pytestmark = pytest.mark.hf

FAMILIES = ("chatml", "llama3", "gemma", "llama2", "mistral", "lines")
# U+2581 is a space to half of these tokenizers.
ANSWERS = st.text("abcdef thequickbrown.,!?\n\té你/[]", min_size=1, max_size=20).map(str.strip)
SAID = st.text("abcdef thequickbrown.,!?\n\té你▁/[]", min_size=1, max_size=20).filter(str.strip)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (vocabulary, what transformers makes of the same folder)."""
    from transformers import PreTrainedTokenizerFast

    chats = make_chats(tmp_path_factory.mktemp("chats"))
    return {
        name: (
            load(f"tokenizer:{chat.folder}", chat_template="tokenizer"),
            PreTrainedTokenizerFast.from_pretrained(chat.folder),
        )
        for name, chat in chats.items()
    }


def own(vocabulary, ids):
    return [int(vocabulary.tokenizer_ids[i]) for i in ids]


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(said=st.lists(SAID, min_size=1, max_size=5), answer=ANSWERS)
def test_prompts_and_answers_are_those_of_transformers(made, name, said, answer):
    vocabulary, theirs = made[name]
    said = said[: len(said) - 1 + len(said) % 2]
    turns = tuple((("user", "assistant")[n % 2], text) for n, text in enumerate(said))
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = own(vocabulary, vocabulary.encode_prompt(Dialogue("", turns)))
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, tokenize=True
    )
    if vocabulary.bos_id is not None and expected[0] != own(vocabulary, [vocabulary.bos_id])[0]:
        expected = [*own(vocabulary, [vocabulary.bos_id]), *expected]
    assert prompt == expected

    whole = theirs.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], return_dict=False, tokenize=True
    )
    ours = prompt + own(vocabulary, [*vocabulary.encode(answer), vocabulary.eos_id])
    bos = len(expected) - len(
        theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, tokenize=True
        )
    )
    assert ours[bos:] == whole[: len(ours) - bos]


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_begin_as_in_transformers(made, name):
    vocabulary, theirs = made[name]
    first = theirs("the fox").input_ids[0]
    bos = None if vocabulary.bos_id is None else own(vocabulary, [vocabulary.bos_id])[0]
    assert (first == bos) == (bos is not None)
