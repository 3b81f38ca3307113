"""Turns on their way from a file to batches that a model's chat template makes."""

import json
import pathlib

import numpy as np
import pytest

from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.datasets import prompt as prompt_of
from pit_jax.data.examples import Dialogue, Example, turns_json, turns_of, with_turns
from pit_jax.data.files import formats, readers, summaries
from pit_jax.data.files.fields import Fields
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.reference_store import ReferenceMeta, ReferenceWriter
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.report import data as data_report
from tests import tiny_runs
from tests.tiny_chats import make_chats

LENGTHS = Lengths(prompt=120, reference=40, response=41)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    chats = make_chats(tmp_path_factory.mktemp("chats"))
    return {
        name: load(f"tokenizer:{chat.folder}", chat_template="tokenizer")
        for name, chat in chats.items()
    }


def turn(role, content):
    return {"role": role, "content": content}


def pairs(count=24):
    """Every third with a system turn, every third plain text."""
    found = []
    for i in range(count):
        prompt = [turn("user", f"what is {i}?")]
        if i % 3 == 1:
            prompt = [turn("system", "be kind"), *prompt]
        elif i % 3 == 2:
            prompt = f"what is {i}?"
        found.append({"prompt": prompt, "chosen": f"it is {i}", "rejected": "no <|eot_id|>"})
    return found


def pipeline(folder, vocabulary, records, **changes):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    config = DatasetConfig("preferences", 0, 3, 3, path=str(path), **changes)
    return InputPipeline(config, vocabulary, LENGTHS)


# --- turns --------------------------------------------------------------------------------------


def test_a_dialogue_is_its_text_and_knows_its_turns():
    turns = (("user", "a \ud83d"), ("assistant", 'b "'))
    x = Dialogue("a\n\nb", turns)
    assert x == "a\n\nb" and hash(x) == hash("a\n\nb") and Example(x, "c", "d").group == str(x)
    assert turns_of(x) == turns and turns_of("a\n\nb") == (("user", "a\n\nb"),)
    again = with_turns(str(x), turns_json(x))
    assert again == x and turns_of(again) == turns
    assert turns_json("a") == "" and type(with_turns("a", "")) is str


def test_each_format_keeps_its_turns(tmp_path):
    prompt = [turn("system", "s"), turn("user", " u "), turn("assistant", "a"), turn("user", "v")]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "chosen": "c", "rejected": "r"}))
    (example,) = readers.read_preferences(str(path)).examples
    assert example.prompt == "s\n\nu\n\nAssistant: a\n\nHuman: v\n\n"
    expected = (("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"))
    assert turns_of(example.prompt) == expected

    text = "\n\nHuman: hi \n\nHuman: are you\nthere?\n\nAssistant: yes\n\nHuman: why?\n\nAssistant:"
    example, _ = formats.hh(Fields({"chosen": f"{text} so", "rejected": f"{text} no"}))
    assert example.prompt.startswith("hi \n\nHuman: are") and example.prompt.endswith("why?\n\n")
    said = [("user", "hi"), ("user", "are you\nthere?"), ("assistant", "yes"), ("user", "why?")]
    assert turns_of(example.prompt) == tuple(said)

    record = {"info": {"post": "p", "title": "t"}, "split": "train", "choice": 0}
    record["summaries"] = [{"text": "good"}, {"text": "bad"}]
    example, _ = summaries.summary(record, "posts")
    assert turns_of(example.prompt) == (("user", example.prompt.strip()),)


@pytest.mark.parametrize("prompt", ["tea?", [turn("user", "tea?")]])
def test_what_is_asked_for_later_is_what_was_learned(prompt, chatting):
    """Text and turns, as `improve` reads them, make the prompts of training."""
    record = {"prompt": prompt, "chosen": "a", "rejected": "b"}
    example, _ = formats.pair(Fields(record))
    x = prompt_of(DatasetConfig("preferences", 0, 0, 0, path="x"), {"prompt": prompt})
    assert x == example.prompt and turns_of(x) == turns_of(example.prompt) == (("user", "tea?"),)
    vocabulary = chatting["chatml"]
    assert vocabulary.encode_prompt(x) == vocabulary.encode_prompt("tea?")


# --- batches ------------------------------------------------------------------------------------


def rows(batches, name):
    return [row[row != 0].tolist() for batch in batches for row in batch[name]]


def test_batches_hold_the_templates_prompts(tmp_path, chatting):
    vocabulary = chatting["llama3"]
    data = pipeline(tmp_path, vocabulary, pairs(60))
    layout = Layout(vocabulary)
    examples = data.examples("train", "sft")
    assert {len(turns_of(e.prompt)) for e in examples} == {1, 2}
    batches = list(data.batches("sft_pit", "train", 1, shuffle=False, num_epochs=1))
    expected = [
        layout.pit_prompt(e.prompt, e.rejected) + layout.response(e.chosen) for e in examples
    ]
    assert rows(batches, "decoder_input_tokens") == expected
    learned = [b["decoder_target_tokens"][b["decoder_loss_weights"] > 0].tolist() for b in batches]
    assert learned == [layout.response(e.chosen) for e in examples]
    sizes = data.token_counts("train")["prompt"]
    prompts = [layout.policy_prompt(e.prompt) for e in data.examples("train")]
    assert sizes.tolist() == [len(prompt) for prompt in prompts]
    assert all(np.count_nonzero(np.equal(p, vocabulary.bos_id)) == 1 for p in prompts)

    writer = ReferenceWriter(tmp_path / "store", 8, ReferenceMeta(1, "rl_policy", "0", 0, 8))
    end = vocabulary.ends[1]
    rl = data.examples("train", "rl")
    text = vocabulary.encode("the dog")
    sampled = {"reference_tokens": [*text, end, *text], "text": "the dog", "ended": True}
    writer.add([{"index": e.index, **sampled} for e in rl])
    writer.close()
    store = str(tmp_path / "store")
    batches = data.batches("rl_pit", "train", 1, shuffle=False, num_epochs=1, references=store)
    expected = [layout.pit_prompt(e.prompt, "the dog") for e in rl]
    assert rows(batches, "prompt_tokens") == expected


def test_turns_that_a_template_refuses_are_malformed_lines(tmp_path, chatting):
    records = pairs()
    place = f"{tmp_path}/pairs.jsonl"
    expected = (
        f"{place}:2: got turns that the chat template refuses: no system turn here "
        "(and 7 more lines alike)"
    )
    with pytest.raises(UserError) as error:
        pipeline(tmp_path, chatting["gemma"], records)
    assert str(error.value) == expected
    report = pipeline(tmp_path, chatting["gemma"], records, on_error="skip").report()
    assert report["dropped"] == {"malformed": 8}
    assert report["malformed"] == [expected]
    # Without the template, nothing is refused.
    assert pipeline(tmp_path, load("bytes"), records).report()["dropped"] == {}


def test_a_response_without_a_token_has_no_target(tmp_path):
    (tmp_path / "chats").mkdir()
    file = pathlib.Path(make_chats(tmp_path / "chats")["chatml"].folder, "tokenizer.json")
    spec = json.loads(file.read_text())
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    file.write_text(json.dumps(spec))
    vocabulary = load(f"tokenizer:{file}", chat_template="tokenizer")
    records = [*pairs(6), {"prompt": "a", "chosen": "b", "rejected": "~~"}]
    with pytest.raises(UserError, match="jsonl:7: got a rejected response without a token"):
        pipeline(tmp_path, vocabulary, records)


def test_prepared_examples_are_checked_by_number():
    examples = [Example(x, "a", "b") for x in ("one", "two", "three")]

    def check(example):
        if example.prompt == "two":
            raise ValueError("got two")

    reading = readers.checked(examples, "mine", "skip", check)
    assert [(e.prompt, e.index) for e in reading.examples] == [("one", 0), ("three", 1)]
    assert (reading.read, reading.dropped) == (3, {"malformed": 1})
    assert reading.malformed == ("mine:1: got two",)
    with pytest.raises(UserError, match="mine:1: got two"):
        readers.checked(examples, "mine", "raise", check)


# --- what people see ----------------------------------------------------------------------------


def test_rows_show_the_templates_tokens_by_name(tmp_path, chatting):
    data = pipeline(tmp_path, chatting["llama3"], pairs(60))
    stages = (tiny_runs.supervised("sft_policy"), tiny_runs.reward("rm_policy"))
    shown = data_report.gather(data, stages, num_examples=1)["rows"]
    texts = [[(g["label"], g["loss"], "".join(g["pieces"])) for g in r["groups"]] for r in shown]
    e = data.examples("train", "sft")[0]
    turns = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>"
        for role, content in turns_of(e.prompt)
    )
    answer = "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
    assert texts[0] == [
        ("read", False, f"<|begin_of_text|>{turns}{answer}"),
        ("learnt", True, f"{e.chosen}<|eot_id|>"),
    ]
    assert texts[1][2][2] == "no <|eot_id|><|eot_id|>"  # the first one is text


def test_the_dev_split_and_folds_are_those_of_the_texts(tmp_path, chatting):
    """A template moves no example to another split or fold."""
    bytes_ = pipeline(tmp_path, load("bytes"), pairs(60))
    chat = pipeline(tmp_path, chatting["chatml"], pairs(60))
    for split, fold in (("train", "sft"), ("train", "rl"), ("dev", "all"), ("test", "all")):
        prompts = [[e.prompt for e in data.examples(split, fold)] for data in (bytes_, chat)]
        assert prompts[0] == prompts[1]
