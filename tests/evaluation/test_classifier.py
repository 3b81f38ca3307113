"""A classifier as judge: scores against transformers' own pipeline, and the wiring without it."""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest

from pit_jax.data.examples import Dialogue
from pit_jax.errors import UserError
from pit_jax.evaluation import classifier
from pit_jax.evaluation.classifier import Classifier, ClassifierConfig, ClassifierJudge
from pit_jax.evaluation.judges import ScoringJudge
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.report import opening, reward_models
from tests.evaluation.test_suite_scripted import MORE, suite_of

NAME = "classifier some/model"
CONFIG = ClassifierConfig("some/model")
SAID = "how do I boil an egg in water for ten minutes or leave it whole"
WORDS = SAID.split()


class Lengths:
    """Stands for a classifier of at most 12 characters: a response is worth its number."""

    max_length = 12

    def __init__(self, config):
        self.asked = []

    def __call__(self, pairs):
        self.asked += pairs
        return (
            np.array([float(text) for _, text in pairs]),
            np.array([len(x) + len(text) > self.max_length for x, text in pairs]),
        )


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(classifier, "Classifier", Lengths)
    return ClassifierJudge(CONFIG)


# --- without transformers ---------------------------------------------------------------------


def test_verdicts_by_hand_and_every_score_once(judge, capsys):
    """A difference of 0.2 is a probability of 0.5498, and a tie; of 0.21 one of 0.5523."""
    assert isinstance(judge, ScoringJudge) and judge.bounds is None and judge.name == NAME
    verdicts = judge(["x", "x", "x", "y"], ["0.2", "0.21", "0", "0"], ["0", "0", "0.21", "0"])
    assert verdicts.tolist() == [0, 1, -1, 0]
    assert judge._classifier.asked == [("x", "0.2"), ("x", "0.21"), ("x", "0"), ("y", "0")]
    assert judge.warnings() == [] and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="a response to each of 2 prompts, got 1"):
        judge.scores(["x", "y"], ["1"])


def test_responses_that_are_cut_are_said_and_counted(judge, capsys):
    judge.scores(["a long prompt", "x"], ["1", "2"])
    judge.scores(["a long prompt", "a long prompt"], ["1", "3"])
    assert capsys.readouterr().out.splitlines() == [
        "judge: 1 of 2 responses are over 12 tokens with their prompts, and are cut",
        "judge: 1 of 1 responses are over 12 tokens with their prompts, and are cut",
    ]
    assert judge.warnings() == [
        f"the {NAME} scores 2 of 3 responses by a part: with its prompt each is over 12 tokens, "
        "and what is over is cut"
    ]


def test_what_is_no_number_is_refused(judge):
    with pytest.raises(UserError, match="gives no number for the response 'nan'"):
        judge.scores(["x", "x"], ["1", "nan"])


def test_other_processes_score_nothing(judge, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert judge.scores(["x"], ["1"]).tolist() == [0] and judge._classifier.asked == []


def test_the_packages_are_asked_for_in_one_line(monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError) as error:
            Classifier(CONFIG)
        (line,) = str(error.value).splitlines()
        assert line.endswith(
            "needs torch and transformers: pip install '.[judges]' -c constraints.txt"
        )
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "ClassifierConfig.model: got '', expected a folder or a name"),
        ({"batch_size": 0}, "ClassifierConfig.batch_size: got 0, expected 1 or more"),
        ({"max_length": -1}, "ClassifierConfig.max_length: got -1"),
        ({"dtype": "int8"}, "dtype: got 'int8', expected one of float32, bfloat16, float16"),
    ],
)
def test_mistakes_in_a_configuration_are_named(fields, message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(CONFIG, **fields)
    assert message in str(error.value)


def test_a_whole_evaluation_by_a_classifier(monkeypatch):
    """Table 3's ratings and mean scores, agreement with labels and with the checker follow."""
    monkeypatch.setattr(classifier, "Classifier", Lengths)
    fields = {"iterations": 2, "sweep": (0.5,), "temperatures": (1.0,)}
    suite = suite_of(EvaluationConfig(judge=CONFIG, **fields), MORE, ("first",))
    examples = [
        dataclasses.replace(example, chosen="9", rejected=str(row))
        for row, example in enumerate(suite.responses.examples, 8)
    ]  # chosen is better, then equal, then worse
    monkeypatch.setattr(suite.responses, "examples", examples)
    judged = suite.with_verdicts(suite._judged)
    rows = {row["name"]: row for row in judged["comparisons"]}
    assert {row["judge"] for row in judged["comparisons"]} == {NAME}
    # The sampler's responses are 1, 2, … by call: first the original's, then SFT's.
    assert rows["RL vs SFT"]["delta"] == rows["Original vs y_w"]["delta"] == -100
    assert rows["PIT vs Original"]["tie"] == 100
    assert judged["scores"][0]["mean_score"] > judged["scores"][1]["mean_score"] == 1
    assert {"elo", "bradley_terry", "mean_score"} <= set(judged["iterations"][0]["rows"][0])
    (row,) = judged["reward_models"]
    assert (row["name"], row["accuracy"], row["n"]) == (NAME, pytest.approx(1 / 3), 3)
    assert [row["name"] for row in judged["ground_truth"]] == [NAME, "R_P (rm_policy)"]
    assert len(suite._samples()[0]["scores"]) == 3
    assert suite.judging()["warnings"][0].startswith(f"the {NAME} scores ")
    asked = suite._judge._classifier.asked
    assert len(asked) == len(set(asked))
    records = [{"prompt": "x", "responses": ["1", "3", "2"]}, {"prompt": "y", "responses": ["5"]}]
    found = suite.judge_generations(records)
    assert [row["win"] for row in found["comparisons"]] == [50, 50]
    assert [row["mean_score"] for row in found["scores"]] == [3, 4, 3.5]


def test_the_report_says_what_a_classifier_is():
    comparison = {"first": "pit", "second": "original", "group": "table1", "judge": NAME}
    first, _ = opening.glossary({"comparisons": [comparison]})
    words = dict(first)
    assert words["Judge"].startswith("Classifier some/model, a reward model that this run didn’t")
    assert words["Score"].startswith("What the classifier gives to a response")
    rows = [{"name": name, "accuracy": 0.6, "n": 9} for name in ("R_P", NAME)]
    results = {"comparisons": [comparison], "reward_models": rows}
    assert "The last row is the judge" in reward_models.section(results, {}).blocks[0].caption
    results["comparisons"] = [comparison | {"judge": "R_P (rm_policy)"}]
    assert "last row" not in reward_models.section(results, {}).blocks[0].caption


# --- with transformers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Saves a random DeBERTa of at most 32 tokens, with a tokenizer of words."""
    import tokenizers
    import torch
    import transformers
    from tokenizers.processors import TemplateProcessing

    def save(folder, labels=("LABEL_0",), template=None, pad_token_id=0, **fields):
        vocabulary = {word: row for row, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])}
        vocabulary |= {word: row for row, word in enumerate(dict.fromkeys(WORDS), 4)}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        model.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=model,
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            unk_token="[UNK]",
            padding_side="left",
        )
        tokenizer.chat_template = template
        torch.manual_seed(0)
        config = transformers.DebertaV2Config(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
            relative_attention=True,
            position_biased_input=False,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            position_buckets=8,
            type_vocab_size=2,
            initializer_range=0.5,
            pad_token_id=pad_token_id,
            id2label=dict(enumerate(labels)),
            label2id={label: row for row, label in enumerate(labels)},
            **fields,
        )
        transformers.DebertaV2ForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return lambda name="tiny", **fields: save(tmp_path_factory.mktemp(name), **fields)


def pairs_of(count, longest=18):
    """Prompts and responses of one to so many words each, of which some are over 32 tokens."""
    draw = np.random.default_rng(0)
    return [
        tuple(" ".join(draw.choice(WORDS, draw.integers(1, longest))) for _ in range(2))
        for _ in range(count)
    ]


def by_pipeline(folder, pairs, **how):
    import transformers

    pipe = transformers.pipeline("text-classification", model=folder, device="cpu")
    rows = [{"text": x, "text_pair": text} for x, text in pairs]
    found = pipe(rows, truncation=True, max_length=32, top_k=None, **how)
    return [{each["label"]: each["score"] for each in row} for row in found]


@pytest.mark.hf
@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_those_of_the_pipeline(tiny, batch_size):
    """Also in batches of different lengths, which are padded, and where inputs are cut."""
    folder, pairs = tiny(), pairs_of(40)
    scores, cut = Classifier(ClassifierConfig(folder, batch_size=batch_size))(pairs)
    expected = [row["LABEL_0"] for row in by_pipeline(folder, pairs, function_to_apply="none")]
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected) > 0.1
    lengths = np.array([len(x.split()) + len(text.split()) + 3 for x, text in pairs])
    np.testing.assert_array_equal(cut, lengths > 32)
    assert 0 < cut.sum() < 20
    judge = ClassifierJudge(ClassifierConfig(folder))
    prompts, responses = map(list, zip(*pairs))
    np.testing.assert_allclose(judge.scores(prompts, responses), expected, atol=1e-5, rtol=0)
    assert f"{cut.sum()} of 40 responses by a part" in judge.warnings()[0]


@pytest.mark.hf
def test_a_padding_that_the_model_does_not_know_is_not_used(tiny):
    folder, pairs = tiny(pad_token_id=None), pairs_of(5)
    made = Classifier(ClassifierConfig(folder))
    batches, scores = [], made._scores
    made._scores = lambda rows: batches.append(len(rows)) or scores(rows)
    made(pairs)
    assert batches == [1] * 5


@pytest.mark.hf
def test_the_label_that_counts(tiny):
    """Its score is the log odds of the pipeline's probability."""
    labels, pairs = ("bad", "good", "spam"), pairs_of(9)
    for kind in ("single_label_classification", "multi_label_classification"):
        folder = tiny(labels=labels, problem_type=kind)
        scores, _ = Classifier(ClassifierConfig(folder, label="good"))(pairs)
        expected = [row["good"] for row in by_pipeline(folder, pairs)]
        np.testing.assert_allclose(1 / (1 + np.exp(-scores)), expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="label: got '', expected one of .*: bad, good, spam$"):
        Classifier(ClassifierConfig(folder))


@pytest.mark.hf
def test_max_length_and_dtype(tiny):
    folder, pairs = tiny(), pairs_of(20)
    made = Classifier(ClassifierConfig(folder, max_length=16, dtype="bfloat16"))
    scores, cut = made(pairs)
    assert made.max_length == 16 and str(made._model.dtype) == "torch.bfloat16"
    whole, cut_at_32 = Classifier(ClassifierConfig(folder))(pairs)
    assert cut.sum() > cut_at_32.sum() and not np.allclose(scores[cut], whole[cut], atol=0.05)
    np.testing.assert_allclose(scores[~cut], whole[~cut], atol=0.3)
    with pytest.raises(UserError, match="max_length: got 33, expected at most 32"):
        Classifier(ClassifierConfig(folder, max_length=33))


@pytest.mark.hf
def test_a_chat_template_makes_what_is_read(tiny):
    template = "{% for turn in messages %}{{ turn.role }} {{ turn.content }} {% endfor %}"
    turns = (("user", "boil an egg"), ("assistant", "whole"), ("user", "how"))
    made = Classifier(ClassifierConfig(tiny(template=template)))
    (ids,) = made._tokens([(Dialogue("unused", turns), "in water")])["input_ids"]
    said = made._tokenizer.decode(ids)
    assert said == "[UNK] boil an egg [UNK] whole [UNK] how [UNK] in water"


CHAT = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }} {% endfor %}"


def read_of(made, x, response):
    """What a classifier of at most so many tokens reads of a chat, word by word."""
    (ids,) = made._tokens([(x, response)], made.max_length)["input_ids"]
    assert len(ids) <= made.max_length
    said = made._tokenizer.decode(ids).replace("[UNK] [UNK]", "/").split()
    return " ".join(said).removeprefix("/ ").split(" / ")


@pytest.mark.hf
def test_the_longer_of_prompt_and_response_is_cut_in_a_chat(tiny):
    """A role and its colon are two tokens, so 12 of 16 are left for the two."""
    config, long = ClassifierConfig(tiny(template=CHAT), max_length=16), " ".join(WORDS)
    scores = ClassifierJudge(config).scores([long] * 3, ["leave it", "leave", "in water"])
    assert len(set(scores)) == 3
    made = Classifier(config)
    assert read_of(made, long, "leave it") == [" ".join(WORDS[:10]), "leave it"]
    assert read_of(made, "leave it", long) == ["leave it", " ".join(WORDS[:10])]
    assert read_of(made, long, long) == [" ".join(WORDS[:6])] * 2
    scores, cut = made([(long, "leave it"), (long, "ten minutes"), ("whole", "egg")])
    assert cut.tolist() == [True, True, False] and scores[0] != scores[1]
    # What is cut ends within the text as it is written.
    assert made._cut((("user", long), ("assistant", "it  or")), 16)[0][1] == long[:37]


@pytest.mark.hf
def test_the_oldest_turns_go_where_they_take_more_than_half(tiny):
    made = Classifier(ClassifierConfig(tiny(template=CHAT), max_length=30))
    long = " ".join(WORDS)
    first = (("user", "boil an egg"), ("assistant", long))
    turns = (("system", "whole"), *first, ("user", "how"), ("assistant", "in"), ("user", "for ten"))
    said = read_of(made, Dialogue("unused", turns), "do it")
    assert said == ["whole", "how", "in", "for ten", "do it"]
    # All but the response are 15 tokens of 30, so 15 of its 30 are left.
    said = read_of(made, Dialogue("unused", turns), f"{long} {long}")
    assert said == ["whole", "how", "in", "for ten", long]
    # Of what isn't over nothing goes.
    turns = (("user", " ".join(WORDS[:12])), ("assistant", "in"), ("user", "for ten"))
    said = read_of(made, Dialogue("unused", turns), "do it")
    assert said == [" ".join(WORDS[:12]), "in", "for ten", "do it"]
    few = Classifier(ClassifierConfig(made._config.model, max_length=5))
    with pytest.raises(UserError, match="max_length: got 5, expected at least 6, which the chat"):
        few([(long, "it")])


@pytest.mark.hf
def test_a_chat_is_cut_by_letters_where_tokens_have_no_offsets(tiny, monkeypatch):
    made = Classifier(ClassifierConfig(tiny(template=CHAT), max_length=8))
    monkeypatch.setattr(type(made._tokenizer), "is_fast", False)
    assert read_of(made, "whole water in", "in it") == ["whole water", "in it"]
    assert read_of(made, "in it", " ".join(WORDS)) == ["in it", "how do"]


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert", "MPNet", "Bert", "GPT2"])
def test_positions_that_the_padding_takes_are_not_counted(tiny, kind):
    """A model of RoBERTa's kind reads two tokens fewer than it has positions, with padding 1."""
    import torch
    import transformers

    folder = tiny()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=20,
        type_vocab_size=2,
        pad_token_id=1,
        num_labels=1,
    )
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    made = Classifier(ClassifierConfig(folder))
    assert made.max_length == 20 - 2 * (kind not in ("Bert", "GPT2"))
    scores, cut = made([(SAID, SAID), ("how", "egg")])
    assert np.isfinite(scores).all() and cut.tolist() == [True, False]
    with pytest.raises(UserError, match=f"got 21, expected at most {made.max_length}, which"):
        Classifier(ClassifierConfig(folder, max_length=21))


@pytest.mark.hf
def test_what_is_no_trained_classifier_is_refused(tiny, tmp_path):
    import safetensors.torch

    with pytest.raises(UserError, match="ClassifierConfig.model: can't read .*nothing"):
        Classifier(ClassifierConfig(str(tmp_path / "nothing")))
    folder = tiny()
    path = f"{folder}/model.safetensors"
    weights = safetensors.torch.load_file(path)
    del weights["classifier.weight"]
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match="no weights of classifier.weight, expected a trained"):
        Classifier(ClassifierConfig(folder))(pairs_of(1))
    with open(path, "wb") as file:
        file.write(b"damaged")
    with pytest.raises(UserError, match="can't read .*: .*[Hh]eader"):
        Classifier(ClassifierConfig(folder))(pairs_of(1))
