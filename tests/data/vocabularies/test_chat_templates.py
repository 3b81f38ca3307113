"""Chat templates: what they render, which of it are special tokens, and what nobody can forge."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pit_jax.data.examples import Dialogue
from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.chat_templates import ChatTemplate
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from tests.tiny_chats import CHATML, GEMMA, LLAMA3, MISTRAL, THINKING, make_chats

MARKS = [("<|im_start|>", False, False), ("<|im_end|>", False, False)]
USER = ("user", "hi")
DIALOGUE = (("system", "be brief"), USER, ("assistant", "yes"), ("user", " why? "))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return make_chats(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def chatting(chats):
    return {
        name: load(f"tokenizer:{chat.folder}", chat_template="tokenizer")
        for name, chat in chats.items()
    }


def template(source, marks=MARKS, **variables):
    return ChatTemplate(source, "here", marks, variables)


def text_of(parts):
    return "".join(text for text, _ in parts)


def dialogue(turns):
    return Dialogue("\n\n".join(content for _, content in turns), turns)


# --- rendering ----------------------------------------------------------------------------------


def test_turns_by_hand():
    parts = list(template(CHATML).split(DIALOGUE[:2]))
    assert parts == [
        ("<|im_start|>", True),
        ("system\nbe brief", False),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", True),
        ("user\nhi", False),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", True),
        ("assistant\n", False),
    ]


@pytest.mark.parametrize(
    ("source", "marks", "end", "lead"),
    [
        (CHATML, ["<|im_end|>"], "<|im_end|>", ""),
        (LLAMA3, ["<|eot_id|>", "<|end_header_id|>"], "<|eot_id|>", ""),
        (GEMMA, ["<end_of_turn>", "<eos>"], "<end_of_turn>", ""),
        (MISTRAL, ["<s>", "</s>"], "</s>", " "),
        # Nothing special follows the answer, or the next turn's start does.
        (CHATML, ["<|im_start|>"], "", ""),
        ("{{ messages[-1]['content'] + ' </s>' }}", ["</s>"], "</s>", None),
        ("{{ messages[-1]['content'] + ' <s></s>' }}", ["</s>"], "", None),
    ],
)
def test_what_stands_around_an_answer(source, marks, end, lead):
    made = template(source, [(mark, False, False) for mark in marks], eos_token="</s>")
    assert made.end == end
    assert lead is None or made.lead == lead


def test_templates_have_what_those_of_transformers_have():
    source = (
        "{%- for m in messages -%}\n"
        "    {%- if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "    {%- generation %}{% set x = 1 %}{{ m['content'] }}{% endgeneration %}\n"
        "    {%- set inner = 3 %}\n"
        "{%- endfor %} {{ {'a': '<é>'} | tojson }} {{ tools is none }} {{ missing }}"
        "{{ bos_token }}{{ strftime_now('%Y') }}{{ inner }}"
    )
    parts = list(template(source, bos_token="B").split((USER,)))
    assert re.fullmatch(r'hi \{"a": "<é>"\} True B\d{4}', text_of(parts))


def test_white_space_that_belongs_to_a_token():
    """As Phi's tokens have it: none is left beside them, whoever wrote it."""
    source = "{% for m in messages %}{{ '<l>\n' + m['content'] + ' <r>' }}{% endfor %}x"
    marks = [("<l>", False, True), ("<r>", True, False)]
    parts = list(template(source, marks).split((("user", "  hi  "),)))
    assert parts == [("<l>", True), ("hi", False), ("<r>", True), ("x", False)]


def test_the_longest_name_counts():
    marks = [("<s>", False, False), ("<s>>", False, False)]
    parts = list(template("<s>>{{ messages[0]['content'] }}<s>", marks).split((USER,)))
    assert parts == [("<s>>", True), ("hi", False), ("<s>", True)]


# --- what can't be forged -----------------------------------------------------------------------

FORGED = st.lists(
    st.sampled_from([mark for mark, *_ in MARKS])
    | st.sampled_from(["<|im_", "end|>", "\n", " ", "user", "</think>", "\ufdd0", "\ufdd1"])
    | st.text(max_size=3),
    max_size=6,
).map("".join)


@settings(max_examples=80)
@given(FORGED, FORGED, FORGED)
def test_what_is_said_is_never_special(system, question, answer):
    turns = (("system", system), ("user", question), ("assistant", answer), USER)
    parts = list(template(CHATML).split(turns))
    assert [text for text, special in parts if special] == ["<|im_start|>", "<|im_end|>"] * 4 + [
        "<|im_start|>"
    ]
    said = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert text_of(parts) == said + "<|im_start|>assistant\n"


def test_a_template_that_looks_into_what_is_said():
    """Where it can't be followed, texts with names of its tokens are refused, and no others."""
    made = template(THINKING)
    parts = list(made.split((USER, ("assistant", "<think>a</think>no"), USER)))
    assert ("assistant\nno", False) in parts
    with pytest.raises(ValueError, match="got '<|im_end|>' in a turn, which the chat template"):
        list(made.split((("assistant", "x</think><|im_end|>"), USER)))
    # What it leaves as it is may hold any name.
    assert ("user\n<|im_end|>", False) in list(made.split((("user", "<|im_end|>"),)))


def test_refusals_are_value_errors():
    made = template(GEMMA, [("<end_of_turn>", False, False)])
    with pytest.raises(ValueError, match="the chat template refuses: no system turn here"):
        list(made.split((("system", "a"), USER)))
    with pytest.raises(ValueError, match="the chat template refuses: roles must alternate"):
        list(made.split((USER, USER)))
    last = template("{{ messages[-1]['content'] }}")
    with pytest.raises(ValueError, match="a turn of role 'system' that the chat template leaves"):
        list(last.split((("system", "a secret"), USER)))
    assert text_of(last.split((("assistant", "left out"), USER))) == "hi"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('never') }}", "refuses: never"),
        ("{{ messages.append(1) }}", "refuses: "),
        ("{{ ''.__class__.__mro__ }}", "refuses: .*unsafe"),
        ("{{ 1 / 0 }}", "refuses: division by zero"),
    ],
)
def test_a_template_that_is_none_is_refused_at_once(source, problem):
    with pytest.raises(UserError, match=f"^here: expected a chat template.*{problem}") as error:
        template(source)
    assert "\n" not in str(error.value)


# --- its place among the tokenizer's files --------------------------------------------------------


def test_where_a_template_is_found(chats, tmp_path):
    chat = chats["chatml"]
    own = tmp_path / "own"
    own.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{chat.folder}/{name}", own / name)
    config = json.loads((own / "tokenizer_config.json").read_text())
    with pytest.raises(UserError, match="chat_template: got 'tokenizer', but .*/own has none"):
        load(f"tokenizer:{own}", chat_template="tokenizer")

    def prompt(choice="tokenizer"):
        vocabulary = load(f"tokenizer:{own}", chat_template=choice)
        return vocabulary.readable(vocabulary.encode_prompt("hi"))

    def source(text):
        return text + "{{ messages[0]['content'] }}<|im_end|>"

    several = [{"name": "tools", "template": source("t")}, {"name": "default", "template": "d"}]
    several[1]["template"] = source("default ")
    (own / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    assert prompt() == "default hi"
    text = config | {"chat_template": source("config ")}
    (own / "tokenizer_config.json").write_text(json.dumps(text))
    assert prompt() == "config hi"
    (own / "chat_template.json").write_text(json.dumps({"chat_template": source("json ")}))
    assert prompt() == "json hi"
    (own / "chat_template.jinja").write_text(source("jinja "))
    assert prompt() == "jinja hi"
    (tmp_path / "mine.jinja").write_text(source("mine "))
    assert prompt(str(tmp_path / "mine.jinja")) == "mine hi"
    (tmp_path / "mine.jinja").write_text(source("mark "), encoding="utf-8-sig")
    assert prompt(str(tmp_path / "mine.jinja")) == "mark hi"
    with pytest.raises(UserError, match="missing.jinja: can't be read"):
        prompt(str(tmp_path / "missing.jinja"))
    (tmp_path / "mine.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="mine.jinja: expected a chat template, which it isn't"):
        prompt(str(tmp_path / "mine.jinja"))


def test_a_template_needs_special_tokens():
    for spec in ("bytes", "words:drafts"):
        with pytest.raises(UserError, match=f"'{spec}' has no special tokens for a chat template"):
            load(spec, chat_template="tokenizer")


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatml", "llama3", "llama2", "mistral", "lines"])
@pytest.mark.parametrize("turns", [(USER,), DIALOGUE])
def test_prompts_have_the_ids_of_the_library(chats, chatting, name, turns):
    vocabulary = chatting[name]
    theirs = Tokenizer.from_file(f"{chats[name].folder}/tokenizer.json")
    ids = vocabulary.encode_prompt(dialogue(turns))
    expected = theirs.encode(rendered(name, turns), add_special_tokens=False).ids
    if chats[name].bos and expected[0] != theirs.token_to_id(chats[name].bos):
        expected.insert(0, theirs.token_to_id(chats[name].bos))
    assert [int(vocabulary.tokenizer_ids[i]) for i in ids] == expected


def rendered(name, turns):
    """The prompts of tiny_chats, written down once more."""
    if name == "chatml":
        start = "" if turns[0][0] == "system" else "<|im_start|>system\nBe kind.<|im_end|>\n"
        said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
        return f"{start}{said}<|im_start|>assistant\n"
    if name == "llama3":
        turns = [*((role, text.strip() + "<|eot_id|>") for role, text in turns), ("assistant", "")]
        heads = (f"<|start_header_id|>{r}<|end_header_id|>\n\n{text}" for r, text in turns)
        return "<|begin_of_text|>" + "".join(heads)
    if name == "lines":
        return "".join(f"|{role}|\n{text}</s>\n" for role, text in turns) + "|assistant|\n"
    said = (f" {t}</s>" if role == "assistant" else f"[INST] {t} [/INST]" for role, t in turns)
    return "<s>" + "".join(said)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "llama2", "mistral", "lines"])
def test_layouts_build_on_the_templates_prompt(chatting, name):
    vocabulary = chatting[name]
    layout, x = Layout(vocabulary), dialogue((USER,))
    prompt = vocabulary.encode_prompt(x)
    y, other = vocabulary.encode("the fox"), vocabulary.encode("a dog")
    candidate, improved = [layout.control.candidate], [layout.control.improved]
    assert layout.policy_prompt(x) == layout.reward_prompt(x) == prompt
    pit = [*prompt, *candidate, *other, *improved]
    assert layout.pit_prompt(x, "a dog") == layout.gap_prompt(x, "a dog") == pit
    assert layout.gap_reference("a dog") == [*candidate, *other, *improved]
    assert layout.response("the fox") == [*y, 1]
    assert layout.policy_prompt("hi") == layout.policy_prompt(prompt) == prompt


@pytest.mark.parametrize("name", ["llama2", "mistral", "lines", "chatml", "llama3"])
def test_answers_have_the_ids_that_they_have_in_a_whole_dialogue(chats, chatting, name):
    """A space before them is theirs where the template writes one."""
    vocabulary = chatting[name]
    theirs = Tokenizer.from_file(f"{chats[name].folder}/tokenizer.json")
    text = rendered(name, (USER,)) + chats[name].lead + "the fox" + chats[name].ends[0]
    whole = theirs.encode(text, add_special_tokens=False).ids
    layout = Layout(vocabulary)
    ours = layout.policy_prompt("hi") + layout.response("the fox")
    bos = 1 if name == "lines" else 0  # put before what the template renders
    assert [int(vocabulary.tokenizer_ids[i]) for i in ours][bos:] == whole


def test_prompts_in_graphs(chatting):
    import tensorflow as tf

    from pit_jax.data.examples import turns_json

    vocabulary = chatting["llama3"]
    prompts = [dialogue(DIALOGUE), "hi <|eot_id|>", dialogue((("user", "naïve 你好"),))]
    tensors = ([str(x) for x in prompts], [turns_json(x) for x in prompts])
    dataset = tf.data.Dataset.from_tensor_slices(tensors).map(vocabulary.encode_prompt_tf)
    assert dataset.element_spec == tf.TensorSpec([None], tf.int32)
    rows = [row.tolist() for row in dataset.as_numpy_iterator()]
    assert rows == [vocabulary.encode_prompt(x) for x in prompts]
    found = vocabulary.encode_prompts(*tensors)
    assert [row.tolist() for row in np.split(found.values, found.offsets[1:-1])] == rows
    assert rows[1].count(vocabulary.eos_id) == 1
