"""Tokenizers of today's models as they are published: nothing has to be named for any of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from tests.tiny_chats import make_chats, put_first, sentence_bpe
from tests.tiny_tokenizers import byte_level_bpe, save, train_sentencepiece

FAMILIES = ("chatml", "llama3", "gemma", "llama2", "mistral", "lines")
SPACED = ("llama2", "mistral", "lines")


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return make_chats(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def bases(chats):
    return {name: load(f"tokenizer:{chat.folder}") for name, chat in chats.items()}


@pytest.fixture(scope="module")
def chatting(chats):
    return {
        name: load(f"tokenizer:{chat.folder}", chat_template="tokenizer")
        for name, chat in chats.items()
    }


def library(chat):
    return Tokenizer.from_file(f"{chat.folder}/tokenizer.json")


def own(vocabulary, ids):
    return [int(vocabulary.tokenizer_ids[i]) for i in ids]


def named(vocabulary, ids):
    return tuple(vocabulary.names[i] for i in ids)


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("template", [False, True])
def test_roles_come_from_the_files(chats, bases, chatting, name, template):
    chat, vocabulary = chats[name], (chatting if template else bases)[name]
    theirs = library(chat)
    assert vocabulary.num_pieces == chat.own
    assert vocabulary.vocab_size == chat.own + (2 if chat.padding else 3)
    assert sorted(vocabulary.tokenizer_ids) == list(range(vocabulary.vocab_size))
    # Padding, candidate and improved follow the tokenizer's own ids, in this order.
    pad = theirs.token_to_id(chat.padding) if chat.padding else chat.own
    control = vocabulary.control_tokens
    appended = [vocabulary.vocab_size - 2, vocabulary.vocab_size - 1]
    assert own(vocabulary, [0, control.candidate, control.improved]) == [pad, *appended]
    ends = chat.ends if template else chat.base_ends
    assert named(vocabulary, vocabulary.ends[:1]) == ends[:1]
    assert {*named(vocabulary, vocabulary.ends)} == {*ends}
    assert own(vocabulary, vocabulary.ends[:1]) == [theirs.token_to_id(ends[0])]
    bos = theirs.token_to_id(chat.bos) if chat.bos else None
    assert (vocabulary.bos_id is None) == (bos is None)
    assert bos is None or own(vocabulary, [vocabulary.bos_id]) == [bos]


def test_ids_by_hand(tmp_path):
    """Of 304 ids: EOS, which is padding too, is 301; padding becomes 304."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<a>", "<eos>", "<b>", "<c>"])
    save(tmp_path / "t", tokenizer, {"eos_token": "<eos>", "pad_token": "<eos>"})
    vocabulary = load(f"tokenizer:{tmp_path}/t")
    assert (vocabulary.num_pieces, vocabulary.vocab_size) == (304, 307)
    expected = np.arange(307)
    expected[[0, 304]] = 304, 0
    expected[[1, 301]] = 301, 1
    assert vocabulary.tokenizer_ids.tolist() == expected.tolist()
    assert vars(vocabulary.control_tokens) == {"candidate": 305, "improved": 306}
    assert np.flatnonzero(vocabulary.tokenizer_ids >= vocabulary.num_pieces).tolist() == [
        *(0, 305, 306)
    ]
    # A token of the tokenizer's for padding leaves two ids to append, control tokens one.
    pad = load(f"tokenizer:{tmp_path}/t", pad_token="<c>")
    assert pad.vocab_size == 306 and pad.control_tokens.candidate == 304
    control = load(f"tokenizer:{tmp_path}/t", control_tokens=("<a>", "<b>"))
    assert control.vocab_size == 305 and own(control, [0]) == [304]
    assert len({v.fingerprint for v in (vocabulary, pad, control)}) == 3


@pytest.mark.parametrize("padding", ["<eos>", "<bos>", "<other>", "none", "a", None])
def test_padding_of_the_files_counts_where_it_is_a_token_of_its_own(tmp_path, padding):
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>", "<bos>", "<other>", "<pad>"])
    put_first(tokenizer, "<bos>")
    config = {"eos_token": "<eos>", "pad_token": padding}
    save(tmp_path / "t", tokenizer, config)
    (tmp_path / "t" / "generation_config.json").write_text('{"eos_token_id": [300, 302]}')
    assert own(load(f"tokenizer:{tmp_path}/t"), [0]) == [304]
    config["pad_token"] = "<pad>"
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(config))
    assert own(load(f"tokenizer:{tmp_path}/t"), [0]) == [303]


def test_ends_are_special_tokens_that_are_there(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>", "<end>"])
    save(tmp_path / "t", tokenizer)
    generation = tmp_path / "t" / "generation_config.json"
    for ids, expected in (
        ([301, 300], ("<end>", "<eos>")),  # the first one where nothing else says which
        (301, ("<end>",)),
        ([301, 4, 999, "x", None], ("<end>",)),  # 4 is text, 999 isn't there
    ):
        generation.write_text(json.dumps({"eos_token_id": ids}))
        vocabulary = load(f"tokenizer:{tmp_path}/t")
        assert named(vocabulary, vocabulary.ends) == expected
    text = vocabulary.encode("%")
    assert own(vocabulary, text) == [4] and vocabulary.decode(text) == "%"
    generation.write_text("[]")
    with pytest.raises(UserError, match="generation_config.json: expected a JSON object"):
        load(f"tokenizer:{tmp_path}/t")


def test_every_end_ends_a_response_and_is_no_text(chatting):
    vocabulary = chatting["llama3"]
    text = vocabulary.encode("the fox")
    assert len(vocabulary.ends) == 3
    allowed = vocabulary.sampled_ids(vocabulary.vocab_size + 2)
    for end in vocabulary.ends:
        assert vocabulary.text_ids([*text, end, *text]) == text
        assert vocabulary.decode([*text, end, *text]) == "the fox"
        assert vocabulary.readable([*text, end, *text, 0]) == "the foxthe fox"
        assert allowed[end]
    special = set(vocabulary.names) - set(vocabulary.ends)
    assert len(special) == 3 + 2 and not allowed[[0, *special]].any()
    assert not allowed[vocabulary.vocab_size :].any()


# --- BOS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_begins_with_bos_once(chats, bases, chatting, name):
    for vocabulary in (bases[name], chatting[name]):
        layout, bos = Layout(vocabulary), vocabulary.bos_id
        for prompt in (
            layout.policy_prompt("the fox"),
            layout.reward_prompt("the fox"),
            layout.pit_prompt("the fox", "a dog"),
            layout.gap_prompt("the fox", "a dog"),
        ):
            assert prompt.count(bos) == (chats[name].bos != "")
            assert bos is None or prompt[0] == bos
        for piece in (layout.response("the"), layout.gap_reference("the")):
            assert bos not in piece


@pytest.mark.parametrize(
    ("config", "first", "expected"),
    [
        ({}, "", None),
        ({}, "<bos>", "<bos>"),
        ({"add_bos_token": False}, "<bos>", None),
        ({"add_bos_token": True, "bos_token": "<other>"}, "<bos>", "<other>"),
        ({"add_bos_token": True}, "<bos>", "<bos>"),
        ({"add_bos_token": True, "bos_token": "fox"}, "", None),
        ({"bos_token": "<bos>"}, "", None),
    ],
)
def test_who_says_that_prompts_begin_with_bos(tmp_path, config, first, expected):
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>", "<bos>", "<other>"])
    if first:
        put_first(tokenizer, first)
    save(tmp_path / "t", tokenizer, {"eos_token": "<eos>", **config})
    vocabulary = load(f"tokenizer:{tmp_path}/t")
    assert vocabulary.names.get(vocabulary.bos_id) == expected
    assert ("bos" in vocabulary.protocol) == (expected is not None)


# --- spaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_layouts_read_as_they_are_written(chats, bases, name):
    """Whether the tokenizer puts spaces before texts or not."""
    vocabulary = bases[name]
    layout = Layout(vocabulary)
    x, y = "the quick fox\n\n", "hello  dog"
    assert vocabulary.readable(layout.policy_prompt(x)) == f"Human: {x}Assistant:"
    prompt = layout.gap_prompt(x, y) + layout.response(y)
    assert vocabulary.readable(prompt) == f"Human: {x}Assistant: {y} {y}"
    assert vocabulary.prefixes_space == (name in SPACED)
    candidate = prompt.index(vocabulary.control_tokens.candidate)
    improved = prompt.index(vocabulary.control_tokens.improved)
    theirs = library(chats[name])
    pieces = map(theirs.id_to_token, own(vocabulary, prompt[candidate + 1 : improved]))
    assert "".join(pieces).replace("Ġ", "▁") == "▁hello▁▁dog"  # Ġ is the space of bytes


@pytest.mark.parametrize("name", SPACED)
def test_whole_dialogues_have_the_pieces_of_the_library(chats, bases, name):
    """As far as no piece reaches from one part into the next."""
    vocabulary, theirs = bases[name], library(chats[name])
    for x in ("the quick fox!", "a  dog"):
        text = f"Human: {x}Assistant:"
        expected = theirs.encode(text).ids
        assert own(vocabulary, Layout(vocabulary).policy_prompt(x)) == expected


TEXTS = st.text("abcdef thequickbrown.,!?\n\té你▁<s>/[]", max_size=30)
RESPONSES = TEXTS.map(str.strip).filter(lambda text: "▁" not in text)


@settings(max_examples=60)
@given(RESPONSES)
def test_responses_come_back_from_their_ids(bases, chatting, text):
    for vocabulary in (*bases.values(), *chatting.values()):
        ids = vocabulary.encode(text)
        assert vocabulary.decode([*ids, 1]) == text
        assert vocabulary.encode(vocabulary.decode(ids)) == ids


@settings(max_examples=40)
@given(TEXTS)
def test_pieces_of_a_text_are_those_of_the_library(chats, bases, text):
    for name, vocabulary in bases.items():
        if "<s>" not in text:
            expected = library(chats[name]).encode(text, add_special_tokens=False).ids
            assert own(vocabulary, vocabulary.encode(text)) == expected


def test_sentencepiece_models_are_joined_alike(tmp_path):
    library = train_sentencepiece(
        tmp_path / "tokenizer.model",
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    vocabulary = load(f"sentencepiece:{tmp_path}/tokenizer.model")
    pieces = library.model.get_piece_size()
    assert (vocabulary.num_pieces, vocabulary.vocab_size) == (pieces, pieces + 3)
    assert vocabulary.prefixes_space and vocabulary.bos_id is None
    layout = Layout(vocabulary)
    assert own(vocabulary, layout.policy_prompt("a  fox\n\n")) == library.encode(
        "Human: a  fox\n\nAssistant:"
    )
    text = vocabulary.readable(layout.gap_prompt("a fox\n", "the dog") + layout.response("hello"))
    assert text == "Human: a fox\nAssistant: the dog hello"
    config = {"add_bos_token": True, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    again = load(f"sentencepiece:{tmp_path}/tokenizer.model")
    assert (
        again.names[again.bos_id] == "<s>" and Layout(again).policy_prompt("a")[0] == again.bos_id
    )
    assert again.fingerprint == vocabulary.fingerprint and again != vocabulary
    with pytest.raises(UserError, match="no special tokens for a chat template: .*'tokenizer'"):
        load(f"sentencepiece:{tmp_path}/tokenizer.model", chat_template="tokenizer")


def test_a_lossy_tokenizer_keeps_its_own_spaces(tmp_path):
    """T5 drops the space around a text; nothing is taken away from what it puts before."""
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    train_sentencepiece(tmp_path / "t5.model", vocab_size=150, **ids)
    vocabulary = load(f"sentencepiece:{tmp_path}/t5.model")
    assert not vocabulary.prefixes_space and vocabulary.protocol == ""
    assert vocabulary.encode_joined("the fox") == vocabulary.encode("the fox")


# --- what counts for run directories --------------------------------------------------------------


def test_protocols_say_what_prompts_have(bases, chatting):
    for vocabulary in (load("bytes"), load("words:drafts")):
        assert vocabulary.protocol == "" and vocabulary.ends == (1,)
    chatml, llama3 = bases["chatml"], bases["llama3"]
    assert chatml.protocol == f"ends {chatml.ends[1]}"
    ends = " ".join(map(str, llama3.ends[1:]))
    assert llama3.protocol == f"bos {llama3.bos_id}, ends {ends}"
    assert bases["llama2"].protocol == f"bos {bases['llama2'].bos_id}, spaces joined"
    # A template that ends answers as texts end changes what ids are used for, not what they are.
    assert chatting["chatml"].fingerprint == chatml.fingerprint
    assert chatting["chatml"].protocol.startswith(f"{chatml.protocol}, template ")
    assert chatting["chatml"] != chatml
    assert chatting["llama3"].fingerprint != llama3.fingerprint


def test_a_space_before_a_text_is_seen_in_what_the_tokenizer_does():
    for prefix, expected in (("none", False), ("first", True), ("prepend", True)):
        tokenizer = sentence_bpe(prefix, ["<unk>", "<s>", "</s>"])
        tokens = tokenizer.encode("a  a ", add_special_tokens=False).tokens
        assert ("".join(tokens) == "▁a▁▁a▁") == expected
