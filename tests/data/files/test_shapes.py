"""Shapes of preferences: what each is read as, what is dropped, and what a file of none is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.examples import turns_of
from pit_jax.data.files import formats, shapes, turns
from pit_jax.data.files.fields import NAMES, Fields
from pit_jax.data.files.readers import read_hh, read_preferences, read_summaries
from pit_jax.errors import UserError


def turn(role, content):
    return {"role": role, "content": content}


def said(*contents):
    """Turns of the user and the assistant, one after the other."""
    return [turn(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(tmp_path, *records, **options):
    return read_preferences(write(tmp_path / "p.jsonl", *records), **options)


def only(reading):
    (example,) = reading.examples
    return str(example.prompt), example.chosen, example.rejected


HI = said("Hi.", "Hello!")
NO = said("Hi.", "No.")
FINE = {"prompt": "Hi.", "chosen": "Hello!", "rejected": "No."}
EXPECTED = ("Hi.\n\n", "Hello!", "No.")
HH = {
    "chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!",
    "rejected": "\n\nHuman: Hi.\n\nAssistant: No.",
}
GPT = {"from": "gpt", "value": "Hello!"}
BAD = {"from": "gpt", "value": "No."}
ANSWERS = {"response1": "No.", "response2": "Hello!"}
ARENA = {"conversation_a": NO, "conversation_b": HI}

# One record each of the shapes that published sets and tools have.
SAME = {
    "plain": FINE,
    "UltraFeedback binarized": {
        **{"prompt": "Hi.", "prompt_id": "0", "chosen": HI, "rejected": NO, "messages": HI},
        **{"score_chosen": 8.5, "score_rejected": 3.0},
    },
    "whole dialogues": {"chosen": HI, "rejected": NO, "source": "x"},
    "whole dialogues beside one of them": {"messages": HI, "chosen": HI, "rejected": NO},
    "HH": HH,
    "a dialogue as prompt and within answers": {
        **{"prompt": "\n\nHuman: Hi.\n\nAssistant:", **HH},
    },
    "a dialogue as prompt": {**FINE, "prompt": "Human: Hi.\n\nAssistant:", "chosen": " Hello!"},
    "a dialogue of single lines": {**FINE, "prompt": "Human: Hi.\nAssistant:"},
    "one turn each": {"prompt": HI[:1], "chosen": HI[1:], "rejected": NO[1:]},
    "one turn object each": {"prompt": HI[:1], "chosen": HI[1], "rejected": NO[1]},
    "all as turn objects": {"prompt": HI[0], "chosen": HI[1], "rejected": NO[1]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi."}],
        **{"chosen": GPT, "rejected": BAD},
    },
    "preferred_output": {
        "input": {"messages": HI[:1]},
        **{"preferred_output": HI[1:], "non_preferred_output": NO[1:]},
    },
    "objects of lists": {
        "chosen": {"role": ["user", "assistant"], "content": ["Hi.", "Hello!"]},
        "rejected": {"role": ["user", "assistant"], "content": ["Hi.", "No."]},
    },
    "turns as JSON text": {"chosen": json.dumps(HI), "rejected": json.dumps(NO)},
    "parts": {
        "prompt": [turn("user", [{"type": "text", "text": "Hi."}])],
        "chosen": [{"type": "text", "text": "Hello!"}],
        "rejected": turn("assistant", [{"type": "text", "text": "No.", "image": None}]),
    },
    "question": {"question": "Hi.", "response_j": "Hello!", "response_k": "No."},
    "chosen_response": {
        "instruction": "Hi.",
        "chosen_response": "Hello!",
        "rejected_response": "No.",
    },
    "empty system and input": {
        **{"system": "", "instruction": "Hi.", "input": "", "chosen": "Hello!", "rejected": "No."},
    },
    "HelpSteer3": {"context": HI[:1], **ANSWERS, "overall_preference": 2},
    "HelpSteer2 preference": {
        "prompt": "Hi.",
        **{"response_1": "Hello!", "response_2": "No.", "preference_strength": -1},
    },
    "winner by letter": {
        "prompt": "Hi.",
        "response_a": "No.",
        "response_b": "Hello!",
        "winner": "B",
    },
    "winner by name": {"question": "Hi.", **ANSWERS, "winner": "response2"},
    "arena": {**ARENA, "winner": "model_b", "model_a": "x", "model_b": "y"},
    "SHP": {"history": "Hi.", "human_ref_A": "Hello!", "human_ref_B": "No.", "labels": 1},
    "SafeRLHF": {
        "prompt": "Hi.",
        **{"response_0": "No.", "response_1": "Hello!", "better_response_id": 1},
    },
    "two scores": {
        "question": "Hi.",
        "answer_0": "No.",
        "answer_1": "Hello!",
        "score_0": -1.0,
        "score_1": 0.5,
    },
    "several with scores": {
        "instruction": "Hi.",
        "completions": [
            {"response": "Yes?", "overall_score": 5.0},
            {"response": "No.", "overall_score": 1.0},
            {"response": "Hello!", "overall_score": 7.5},
        ],
    },
    "several with ranks": {
        "prompt": "\n\nHuman: Hi.\n\nAssistant: ",
        "answers": [{"answer": "No.", "rank": 7.0}, {"answer": "Hello!", "rank": 1.0}],
    },
    "several beside ratings": {
        "instruction": "Hi.",
        "generations": ["No.", "Hello!"],
        "ratings": [1, 4],
    },
}


@pytest.mark.parametrize("record", SAME.values(), ids=SAME.keys())
def test_each_shape_is_read_as_the_same_pair(tmp_path, record):
    reading = read(tmp_path, record)
    assert (only(reading), reading.read, reading.dropped) == (EXPECTED, 1, {})
    assert turns_of(reading.examples[0].prompt) == (("user", "Hi."),)
    assert only(read_hh(str(tmp_path / "p.jsonl"))) == EXPECTED


ROWS = {
    "KTO": [
        {"prompt": "Hi.", "completion": "No.", "label": False},
        {"prompt": "Hi.", "completion": "Hello!", "label": True},
    ],
    "KTO as turns": [
        {"prompt": HI[:1], "completion": HI[1:], "label": 1},
        {"prompt": HI[:1], "completion": NO[1:], "label": 0},
    ],
    "KTO as dialogues": [{"messages": HI, "label": True}, {"messages": NO, "label": False}],
    "HelpSteer2": [
        {"prompt": "Hi.", "response": "No.", "helpfulness": 1, "correctness": 4},
        {"prompt": "Hi.", "response": "Hello!", "helpfulness": 3, "correctness": 0},
    ],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_rows_of_one_answer_are_paired_by_their_prompt(tmp_path, rows):
    reading = read(tmp_path, *rows)
    assert (only(reading), reading.read, reading.joined) == (EXPECTED, 1, 1)


def test_every_row_is_in_a_pair_or_counted(tmp_path):
    """Best with worst, second with last but one; what is left over or equal makes no pair."""
    scores = {"a": [2, 4, 0, 3, 1], "b": [3, 3], "c": [1], "d": [0, 4, 4, 4]}
    rows = [
        {"prompt": prompt, "response": f"{prompt}{place} {score}", "score": score}
        for prompt, numbers in scores.items()
        for place, score in enumerate(numbers)
    ]
    reading = read(tmp_path, *rows)
    found = [(e.prompt[0], e.chosen[-1], e.rejected[-1]) for e in reading.examples]
    assert found == [("a", "4", "0"), ("a", "3", "1"), ("d", "4", "0")]
    assert reading.columns["margin"] == [4, 2, 4]
    assert reading.dropped == {"no answer to pair it with": 2, "tie": 4}
    assert (reading.read, reading.joined) == (9, 3)
    assert reading.read + reading.joined == len(rows)

    labels = [{"prompt": "a", "completion": f"{n}", "label": n < 3} for n in range(4)]
    reading = read(tmp_path, *labels)
    assert [(e.chosen, e.rejected) for e in reading.examples] == [("0", "3")]
    assert reading.dropped == {"no answer to pair it with": 2} and reading.columns == {}


# --- prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "x", "roles"),
    [
        ({"prompt": " Hi.\n"}, "Hi.\n\n", "user"),
        ({"prompt": said("\tHi. ")}, "Hi.\n\n", "user"),
        ({"prompt": "Hi.\n\n"}, "Hi.\n\n", "user"),
        ({"system": "Be brief."}, "Be brief.\n\nHi.\n\n", "system user"),
        ({"instruction": "Add.", "input": "1 2", "prompt": None}, "Add.\n\n1 2\n\n", "user"),
        ({"prompt": [turn("developer", "Go."), *HI[:1]]}, "Go.\n\nHi.\n\n", "system user"),
        ({"prompt": [turn("system", None), *HI[:1]]}, "Hi.\n\n", "user"),
        ({"prompt": [turn("Human", "a"), turn("USER", "b")]}, "a\n\nHuman: b\n\n", "user user"),
        (
            {"prompt": [*HI, turn("function", "5")]},
            "Hi.\n\nAssistant: Hello!\n\nTool: 5\n\n",
            "user assistant tool",
        ),
        (
            {
                "prompt": [
                    turn("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
                ]
            },
            "a\n\nb\n\n",
            "user",
        ),
        (
            {"prompt": "Human: a\n\nAssistant: b \n\nHuman: c\n\nAssistant:"},
            "a\n\nAssistant: b \n\nHuman: c\n\n",
            "user assistant user",
        ),
        (
            {"prompt": "Human: a\nAssistant: b\nHuman: c\nAssistant:"},
            "a\n\nAssistant: b\n\nHuman: c\n\n",
            "user assistant user",
        ),
        ({"prompt": "Say Human: a\n\nAssistant:"}, "Say Human: a\n\nAssistant:\n\n", "user"),
        ({"prompt": "Human: a"}, "a\n\n", "user"),
    ],
)
def test_x_of_text_and_of_turns(tmp_path, change, x, roles):
    (example,) = read(tmp_path, {**FINE, **change}).examples
    assert example.prompt == x
    assert " ".join(role for role, _ in turns_of(example.prompt)) == roles


def test_pairs_whose_systems_differ_are_dropped_and_counted(tmp_path):
    """As those whose turns differ; one that only some of the places have is that of all."""
    said, other = turn("system", "Be brief."), turn("system", "Be kind.")
    for record in (
        {"chosen": [said, *HI], "rejected": [other, *NO]},
        {"prompt": [other, HI[0]], "chosen": [said, *HI], "rejected": [said, *NO]},
        {"system": "Be kind.", "chosen": [said, *HI], "rejected": [said, *NO]},
        {**FINE, "system": "Be kind.", "prompt": [said, HI[0]]},
    ):
        reading = read(tmp_path, record)
        assert (reading.examples, reading.dropped) == ([], {"contexts differ": 1})
    record = {"system": " Be brief. ", "chosen": [said, *HI], "rejected": NO}
    assert only(read(tmp_path, record))[0] == "Be brief.\n\nHi.\n\n"


def test_longer_dialogues_bring_their_context(tmp_path):
    more = said("a", "b", "c", "good")
    other = [*more[:3], turn("assistant", "bad")]
    expected = ("a\n\nAssistant: b\n\nHuman: c\n\n", "good", "bad")
    for prompt in ("a", "c", more[:3], more[:1]):
        record = {"prompt": prompt, "chosen": more, "rejected": other}
        if prompt == more[:1]:
            record |= {"chosen": more[1:], "rejected": other[1:]}
        assert only(read(tmp_path, record)) == expected
    (example,) = read(tmp_path, {"system": "s", "chosen": more, "rejected": other}).examples
    assert example.prompt == f"s\n\n{expected[0]}"
    reading = read(tmp_path, {"chosen": more, "rejected": NO})
    assert (reading.examples, reading.dropped) == ([], {"contexts differ": 1})
    reading = read(tmp_path, {"prompt": "c", "chosen": more, "rejected": "bad"})
    assert (reading.examples, reading.dropped) == ([], {"contexts differ": 1})


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(TEXT, TEXT, TEXT)
def test_no_accepted_text_differs_but_for_outer_white_space(prompt, chosen, rejected):
    for record in (
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"chosen": said(prompt, chosen), "rejected": said(prompt, rejected)},
        {"prompt": prompt, "response1": rejected, "response2": chosen, "overall_preference": 3},
    ):
        fields = Fields(record)
        shape = next(s for s in shapes.SHAPES if not s.lacks(fields) and s.fits(fields))
        example, _ = shape.parse(fields)
        if not prompt.strip().startswith("Human:"):
            assert example.prompt == prompt.strip() + "\n\n"
        assert (example.chosen, example.rejected) == (chosen.strip(), rejected.strip())


@given(st.lists(TEXT.map(lambda text: text.replace(":", "").strip() + "."), min_size=1, max_size=5))
def test_a_dialogue_is_the_same_x_as_text_as_turns_and_of_hh(contents):
    contents = contents[: len(contents) - 1 + len(contents) % 2]
    text = "".join(
        f"\n\n{('Human', 'Assistant')[i % 2]}: {content}" for i, content in enumerate(contents)
    )
    of_text = turns.of_text(f"{text}\n\nAssistant:")
    of_turns = turns.of_turns(turns.read(said(*contents), "prompt"))
    side = f"{text}\n\nAssistant: "
    of_hh, _ = formats.hh(Fields({"chosen": f"{side}a", "rejected": f"{side}b"}))
    assert of_text == of_turns == of_hh.prompt
    assert of_text.turns == of_turns.turns == of_hh.prompt.turns
    assert turns.of_text(f"Human: {of_text}Assistant:") == of_text


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "margin"),
    [
        ({"score_chosen": 8.5, "score_rejected": 3}, 5.5),
        ({"chosen_score": 4, "rejected_score": 5}, -1),
        ({"chosen_avg_rating": 5.0, "rejected_avg_rating": 1.5}, 3.5),
        ({"margin": 2}, 2),
        ({"rating": [9.0, 8.0]}, 1),
        ({"rating": 3}, None),
        ({"score_chosen": "8", "score_rejected": None}, None),
        ({"score_chosen": "high", "score_rejected": "low"}, None),
    ],
)
def test_scores_are_kept(tmp_path, scores, margin):
    columns = read(tmp_path, {**FINE, **scores}).columns
    assert columns.get("margin") == (None if margin is None else [margin])


@pytest.mark.parametrize(
    "record",
    [
        {**FINE, "score_chosen": 3, "score_rejected": 3.0},
        {**FINE, "margin": 0},
        {"context": HI[:1], **ANSWERS, "overall_preference": 0},
        {**ARENA, "winner": "tie (bothbad)"},
        {"question": "Hi.", "answer_0": "a", "answer_1": "b", "score_0": 0, "score_1": 0},
        {**SAME["winner by letter"], "score_a": 2, "score_b": 2},
        {"prompt": "Hi.", "responses": ["a", "b"], "scores": [2, 2]},
    ],
)
def test_ties_are_dropped_and_counted(tmp_path, record):
    reading = read(tmp_path, record)
    assert (reading.examples, reading.dropped) == ([], {"tie": 1})


def test_a_verdict_against_the_scores_is_counted(tmp_path):
    """Which is better is what the record says; its margin is that of its scores."""
    row = {"prompt": "Hi.", "response_a": "a", "response_b": "b", "winner": "a"}
    reading = read(tmp_path, {**row, "score_a": 1, "score_b": 4})
    assert (reading.examples[0].chosen, reading.columns["margin"]) == ("a", [-3])
    assert reading.shape.endswith("(the rejected answer has the higher score in 1)")
    reading = read(tmp_path, {**row, "score_a": 4, "score_b": 1})
    assert reading.columns["margin"] == [3]


def test_a_minimum_margin(tmp_path):
    rows = [{**FINE, "score_chosen": score, "score_rejected": 1} for score in (0, 2, 3, 4)]
    path = write(tmp_path / "p.jsonl", *rows, FINE)
    reading = read_preferences(path)
    assert len(reading.examples) == 5
    assert reading.shape.endswith("text answers (the rejected answer has the higher score in 1)")
    reading = read_preferences(path, min_margin=2)
    assert reading.columns["margin"] == [2, 3]
    assert reading.dropped == {"margin under 2": 2, "no score": 1}
    with pytest.raises(UserError, match="^min_margin: got 2 for files without scores, expected"):
        read(tmp_path, FINE, min_margin=2)


# --- names, and files of no shape ---------------------------------------------------------------


def test_columns_name_what_stands_for_what(tmp_path):
    record = {"text": "Hi.", "best": "Hello!", "prompt": "other", "answer": "No.", "chosen": "x"}
    columns = {"prompt": "text", "chosen": "best", "rejected": "answer"}
    reading = read(tmp_path, record, columns=columns)
    assert only(reading) == EXPECTED
    for name, key in columns.items():
        assert f"{name} is {key!r}" in reading.shape
    with pytest.raises(UserError) as error:
        read(tmp_path, record, columns={"prompt": "text", "chosen": "bets"})
    assert str(error.value) == (
        f"{tmp_path}/p.jsonl: columns: got 'bets' for 'chosen', expected one of answer, best, "
        "chosen, prompt, text; did you mean 'best'?"
    )


@pytest.mark.parametrize(
    ("record", "shape"),
    [
        (SAME["UltraFeedback binarized"], "pairs: text prompt, whole dialogues"),
        (SAME["one turn object each"], "pairs: prompt of turns, one turn each"),
        (SAME["question"], "pairs: text prompt, text answers, prompt is 'question', chosen is "),
        (HH, "pairs of HH dialogues"),
        (SAME["arena"], "two answers and which is better: response_a is 'conversation_a', respon"),
        (ROWS["HelpSteer2"][0], "one answer and its score: text prompt, score is 'helpfulness'"),
    ],
)
def test_the_shape_is_told(tmp_path, record, shape):
    assert read(tmp_path, record).shape.startswith(shape)
    assert read(tmp_path, SAME["whole dialogues"]).shape == "pairs of whole dialogues"


def test_each_file_has_its_own_shape(tmp_path):
    rows = {"a.jsonl": FINE, "b.jsonl": HH, "c.jsonl": FINE}
    reading = read_preferences([write(tmp_path / name, row) for name, row in rows.items()])
    assert [(str(e.prompt), e.chosen, e.rejected) for e in reading.examples] == [EXPECTED] * 3
    assert reading.shape == "pairs: text prompt, text answers; pairs of HH dialogues"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"prompt": "Hi.", "choosen": "a", "rejected": "b"},
            "the nearest, pairs, is as "
            '{"prompt": "Hi.", "chosen": "Hello!", "rejected": "No."} and this lacks \'chosen\'; '
            "did you mean 'choosen' for 'chosen'?",
        ),
        ({"chosen": "a", "rejected": "b"}, "and this lacks 'prompt'"),
        ({"prompt": "Hi.", "completion": "a"}, "one answer and its score, is as "),
        ({"a": 1}, "the nearest, pairs, is as"),
        ({}, "got the keys [], expected those of a known shape"),
        ({**FINE, "chosen": 3}, "got 3, expected text under 'chosen'; expected lines such as {"),
    ],
)
def test_a_file_of_no_shape_is_told_once_what_was_expected(tmp_path, record, message):
    path = write(tmp_path / "p.jsonl", *[record] * 60)
    with pytest.raises(UserError) as error:
        read_preferences(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}:1: got ") and message in line
    assert line.endswith("(and 59 more lines alike)")
    reading = read_preferences(path, on_error="skip")
    assert (reading.dropped, reading.malformed) == ({"malformed": 60}, (line,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt": [turn("narrator", "a")]},
            "got role 'narrator' under 'prompt', expected one of",
        ),
        (
            {"prompt": [turn("assistant", "a"), turn("user", "b")]},
            "got roles ['assistant', 'user'] under 'prompt', expected a dialogue that begins with",
        ),
        ({"prompt": [turn("user", None)]}, "got None under 'prompt', expected turns {role, cont"),
        (
            {"prompt": [turn("user", [{"type": "image_url", "image_url": "x"}])]},
            "got the part {'image_url': 'x', 'type': 'image_url'} under 'prompt', expected parts",
        ),
        (
            {"chosen": [{**turn("assistant", "a"), "tool_calls": [{"id": 1}]}]},
            "got 'tool_calls' in a turn under 'chosen', expected text alone",
        ),
        (
            {"history": [["Hello.", "Hi!"]]},
            "got [['Hello.', 'Hi!']] under 'history' beside 'prompt', expected the whole dialogue",
        ),
        (
            {"prompt": [{**turn("user", "a"), "images": ["a.png"]}]},
            "got 'images' in a turn under 'prompt', expected text alone",
        ),
        (
            {"prompt": [turn("user", "a"), turn("system", "b")]},
            "got roles ['user', 'system'] under 'prompt', expected a dialogue",
        ),
        ({"prompt": "Human: a\n\nAssistant: b"}, "got a dialogue that ends with what the assis"),
        ({"chosen": HI[:1]}, "got roles ['user'] under 'chosen', expected 'assistant' last"),
        ({"chosen": str(HI)}, "turns as Python prints them, expected them as JSON"),
        ({"system": ["a"]}, "got ['a'], expected text under 'system'"),
    ],
)
def test_what_a_shape_does_not_have_is_malformed(tmp_path, change, message):
    path = write(tmp_path / "p.jsonl", FINE, {**FINE, **change})
    with pytest.raises(UserError) as error:
        read_preferences(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}:2: ") and message in line


@pytest.mark.parametrize(
    ("first", "change", "message"),
    [
        (
            SAME["winner by letter"],
            {"winner": 1},
            "got 1 under 'winner', expected 'a', 'b' or 'tie'",
        ),
        (SAME["winner by letter"], {"winner": "c"}, "got 'c' under 'winner', expected 'a', 'b'"),
        (SAME["SafeRLHF"], {"better_response_id": True}, "got True under 'better_response_id'"),
        (ROWS["KTO"][0], {"label": "yes"}, "got 'yes' under 'label', expected true or false"),
        (ROWS["HelpSteer2"][0], {"helpfulness": "4"}, "got '4' under 'helpfulness', expected a n"),
        (
            SAME["HelpSteer3"],
            {"overall_preference": "1"},
            "got '1' under 'overall_preference', expected a number",
        ),
        (
            {**FINE, "score_chosen": 3, "score_rejected": 1},
            {"score_chosen": "8.5"},
            "got '8.5' under 'score_chosen', expected a number",
        ),
        (
            SAME["winner by letter"],
            {"response_c": "c"},
            "got 'response_c' beside 'response_a' and 'response_b', expected two answers, or a l",
        ),
        (
            {"prompt": "Hi.", "answer_0": "a", "answer_1": "b", "score_0": 0, "score_1": 1},
            {"answer_10": "c"},
            "got 'answer_10' beside 'answer_0' and 'answer_1'",
        ),
        (SAME["several beside ratings"], {"ratings": [1]}, "expected each with a score or rank"),
        (SAME["several beside ratings"], {"generations": ["a"]}, "expected two answers or more"),
    ],
)
def test_verdicts_that_are_none(tmp_path, first, change, message):
    with pytest.raises(UserError, match="p.jsonl:2: ") as error:
        read(tmp_path, first, {**first, **change})
    assert message in str(error.value)


def test_the_shape_is_that_of_most_of_the_first_lines(tmp_path):
    reading = read(tmp_path, {"chosen": HI}, FINE, FINE, HH, on_error="skip")
    assert (len(reading.examples), reading.dropped) == (2, {"malformed": 2})
    assert reading.shape == "pairs: text prompt, text answers"
    path = tmp_path / "late.jsonl"
    path.write_text("{\n" * 50 + json.dumps(FINE))
    reading = read_preferences(str(path), on_error="skip")
    assert (only(reading), reading.dropped) == (EXPECTED, {"malformed": 50})


def test_no_two_names_have_the_same_first_spelling():
    assert all(spellings[0] == name for name, spellings in NAMES.items() if name != "input")
    assert all(set(shape.needs) <= set(NAMES) for shape in shapes.SHAPES)


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=lambda shape: shape.name)
def test_the_example_of_a_shape_is_of_the_shape(shape):
    if "…" in shape.example:
        return
    fields = Fields(json.loads(shape.example))
    assert not shape.lacks(fields) and shape.fits(fields)
    shape.parse(fields)


# --- summaries as exporters write them -----------------------------------------------------------

SUMMARY = {
    "info": {"id": "t3_0", "post": "We argued.", "title": "Cats", "site": None, "article": None},
    "summaries": [{"text": " short", "note": None}, {"text": " longer"}],
    **{"choice": 1, "worker": "w", "split": "train", "extra": {"confidence": 7}},
}


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({}, ("train", 7)),
        ({"choice": 1.0}, ("train", 7)),
        ({"extra": {"confidence": 7.0}}, ("train", 7)),
        ({"extra": {"confidence": None}}, ("train", -1)),
        ({"split": "validation"}, ("validation", 7)),
        ({"summaries": {"text": [" short", " longer"], "policy": ["x", "y"]}}, ("train", 7)),
    ],
)
def test_summaries_as_exporters_write_them(tmp_path, change, columns):
    reading = read_summaries(write(tmp_path / "batch.json", {**SUMMARY, **change}))
    x = "Title: Cats\n\nWe argued.\n\nSummarise the post above.\n\n"
    assert only(reading) == (x, "longer", "short")
    assert (reading.columns["split"], reading.columns["confidence"]) == tuple([c] for c in columns)


def test_a_summary_that_is_null(tmp_path):
    record = {**SUMMARY, "summaries": [{"text": None}, {"text": "a"}]}
    path = write(tmp_path / "batch.json", SUMMARY, record)
    with pytest.raises(UserError, match="batch.json:2: got None, expected text under 'text'$"):
        read_summaries(path)
