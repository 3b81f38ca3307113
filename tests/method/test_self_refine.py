"""Self-Refine: files of prompts, how they are rendered, and a pass with a scripted model."""

from __future__ import annotations

import json
import pathlib

import jax
import pytest

from pit_jax.data.examples import Dialogue
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.vocabularies.chat_templates import ChatTemplate
from pit_jax.data.vocabularies.load import load
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.errors import UserError
from pit_jax.method import self_refine
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.prompt_files import Step
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Response
from pit_jax.method.self_refine import Prompts, SelfRefine
from tests.tiny_chats import make_chats

BYTES = ByteVocabulary()
LENGTHS = Lengths(prompt=64, reference=20, response=20)
ASK, IMPROVE = "{prompt}\nDraft: {response}", "{prompt}\nDraft: {response}\nAdvice: {feedback}"
FILE = {"feedback": {"user": ASK}, "refine": {"user": IMPROVE}}
FULL = Prompts(Step(ASK, "Be fair.", "Review:"), Step(IMPROVE, "Be kind.", "Better:"))


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    chats = make_chats(tmp_path_factory.mktemp("chats"))
    return lambda name: load(f"tokenizer:{chats[name].folder}", chat_template="tokenizer")


@pytest.fixture
def reading(tmp_path):
    """Reads prompts from a file of these contents."""

    def read(content):
        path = tmp_path / "mine.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return self_refine.read(str(path))

    return read


def text_of(vocabulary, ids):
    """A prompt with the names of its special tokens."""
    found, run = "", []
    for token in [*ids, None]:
        if token is None or token in vocabulary.names:
            found += vocabulary.readable(run) + vocabulary.names.get(token, "")
            run = []
        else:
            run.append(token)
    return found


# --- files --------------------------------------------------------------------------------------


def test_a_file_has_both_steps_with_their_parts(reading):
    content = {
        "feedback": {"user": ASK, "system": " Be fair.\n", "opening": "Review: "},
        "refine": {"user": "{{json}} {feedback}{response}{prompt}"},
    }
    found = reading(content)
    assert found.feedback == Step(ASK, "Be fair.", "Review: ")
    assert found.refine == Step("{{json}} {feedback}{response}{prompt}", "", "")
    texts = {"prompt": "{x}", "response": "{", "feedback": "{response}"}
    assert found.refine.says(texts) == "{json} {response}{{x}"  # braces of texts are theirs


def test_prompts_of_toys_are_the_words_that_their_vocabularies_were_made_with():
    """An order or a word more, and the models of every such run would have another vocabulary."""
    found = self_refine.read("words")
    assert found == Prompts(
        Step("{prompt} draft {response} what is wrong with the draft"),
        Step("{prompt} draft {response} advice {feedback} write it better"),
    )
    words = "draft what is wrong with the draft draft advice write it better"
    assert found.words == tuple(words.split())
    vocabularies = [load(f"words:{family}", found.words) for family in ("drafts", "requirements")]
    assert [each.fingerprint for each in vocabularies] == [
        "words 2 a873d9b97af39afc",
        "words 2 4522d2575b5913c9",
    ]


def test_words_are_those_of_all_texts_in_their_order():
    prompts = Prompts(Step("a {prompt} b{{", "s t", "o:"), Step("c {response}", "u", "p q"))
    assert prompts.words == ("s", "t", "a", "b{", "o:", "u", "c", "p", "q")


@pytest.mark.parametrize("name", ["dialogue", "instructions"])
def test_prompts_for_language_models_come_with_the_package(name):
    found = self_refine.read(name)
    for step in (found.feedback, found.refine):
        assert step.opening.endswith(":") and "alone" in step.user
    assert "copy" in found.refine.user and "repeat" in found.refine.user
    setup = (pathlib.Path(self_refine.__file__).parents[2] / "setup.py").read_text()
    assert '"pit_jax.method": ["prompts/*.json"]' in setup


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "got byte 0xff at position 0, expected UTF-8 text"),
        ([], "got [], expected a JSON object"),
        ({"feedback": {"user": ASK}}, "the file: got no 'refine', expected the keys 'feedback', "),
        (FILE | {"review": {}}, "the file: got 'review', expected the keys 'feedback', 'refine'"),
        (FILE | {"refine": IMPROVE}, "refine: got '{prompt}\\nDraft: "),
        (FILE | {"feedback": {}}, "feedback: got no 'user', expected the keys 'user', 'system', "),
        (
            FILE | {"feedback": {"user": ASK, "System": "s"}},
            "feedback: got 'System', expected the keys 'user', 'system', 'opening'",
        ),
        (
            FILE | {"refine": {"user": IMPROVE, "opening": 3}},
            "refine.opening: got 3, expected text",
        ),
        (
            FILE | {"feedback": {"user": ASK, "opening": "{response}"}},
            "feedback.opening: got {response}, expected fields in 'user' alone",
        ),
        *(
            (
                FILE | {"feedback": {"user": user}},
                f"feedback.user: got {got}, expected the fields {{prompt}}, {{response}}, and "
                "other braces doubled",
            )
            for user, got in (
                ("{prompt}", "no {response}"),
                ("{promt} {response}", "{promt}"),
                (ASK + "{feedback}", "{feedback}"),
                (ASK + "{prompt.x}", "{prompt.x}"),
                (ASK + "{prompt!r:>9}", "{prompt!r:>9}"),
                (ASK + "{}", "{}"),
                (ASK + " }", "a single brace"),
                (ASK + " {", "a single brace"),
            )
        ),
        (
            FILE | {"refine": {"user": ASK}},
            "refine.user: got no {feedback}, expected the fields {prompt}, {response}, {feedback}",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(reading, content, message):
    with pytest.raises(UserError) as error:
        reading(content)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "mine.json: " in str(error.value)


def test_prompts_that_are_not_there_are_named_beside_those_that_are(tmp_path):
    with pytest.raises(UserError, match="'dialog', expected one of dialogue, instructions, words"):
        self_refine.read("dialog")
    with pytest.raises(UserError, match=f"self_refine: can't read {tmp_path}: Is a directory"):
        self_refine.read(str(tmp_path))


# --- rendering ----------------------------------------------------------------------------------


def test_the_papers_layout_has_the_system_in_front_and_the_opening_behind():
    layout = Layout(BYTES)
    refine = SelfRefine(FULL, layout, 9)
    expected = b"Human: Be fair.\n\nTea?\nDraft: No.\n\nAssistant:Review:"
    texts = {"prompt": "Tea?", "response": "No."}
    assert refine.prompt(FULL.feedback, texts) == [byte + 3 for byte in expected]
    plain = SelfRefine(Prompts(Step(ASK), Step(IMPROVE)), layout, 9)
    asked = plain.prompt(plain.prompts.feedback, texts)
    assert asked == [byte + 3 for byte in b"Human: Tea?\nDraft: No.\n\nAssistant:"]


END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nTea?\nDraft: No.<|im_end|>\n"
            "<|im_start|>assistant\nReview:",
        ),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe fair.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nTea?\nDraft: No.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nReview:",
        ),
        (  # takes no system turn
            "gemma",
            "<bos><start_of_turn>user\nBe fair.\n\nTea?\nDraft: No.<end_of_turn>\n"
            "<start_of_turn>model\nReview:",
        ),
    ],
)
def test_a_template_has_the_system_as_a_turn_and_the_opening_after_its_header(
    chatting, name, expected
):
    vocabulary = chatting(name)
    refine = SelfRefine(FULL, Layout(vocabulary), 9)
    ids = refine.prompt(FULL.feedback, {"prompt": "Tea?", "response": "No."})
    # EOS is one of the template's tokens, called by its role.
    assert text_of(vocabulary, ids).replace("<EOS>", END[name]) == expected


def test_a_step_that_the_template_refuses_is_named_before_anything_is_sampled(chatting):
    vocabulary = chatting("chatml")
    vocabulary._template = ChatTemplate(
        "{% for m in messages %}{{ m.content }}{% if 'Advice' in m.content %}"
        "{{ raise_exception('no advice') }}{% endif %}{% endfor %}",
        "here",
        [],
        {},
    )
    message = "self_refine: refine: got turns that the chat template refuses: no advice"
    with pytest.raises(UserError, match=message):
        SelfRefine(Prompts(Step(ASK), Step(IMPROVE)), Layout(vocabulary), 9)


# --- a pass -------------------------------------------------------------------------------------


class Script:
    """A sampler whose k-th call gives the k-th list of responses; it keeps what it is asked."""

    def __init__(self, *responses):
        self.responses, self.calls = iter(responses), []

    def respond(self, model, prompts, width, rows, key, sampling):
        self.calls.append((model, [BYTES.readable(ids) for ids in prompts], width, rows, sampling))
        return [Response(BYTES.encode(text), ended) for text, ended in next(self.responses)]


def improve(script, prompts, xs, drafts, window=20):
    layout = Layout(BYTES)
    return SelfRefine(prompts, layout, window)(
        Role(None, layout, LENGTHS, script),
        "model",
        xs,
        [Response(BYTES.encode(draft), True) for draft in drafts],
        [7, 8],
        jax.random.key(0),
        SamplingConfig(temperature=0.4),
    )


def test_what_is_sampled_after_an_opening_is_the_feedback_and_the_response():
    script = Script(
        [(" too short", True), ("{x}\n", False)], [(" Yes, please.", True), ("7", True)]
    )
    found = improve(script, FULL, ["Tea?\n\n", "3 + {4}?\n\n"], ["No.", "8"])
    asked = [texts for _, texts, *_ in script.calls]
    assert asked == [
        [
            "Human: Be fair.\n\nTea?\nDraft: No.\n\nAssistant:Review:",
            "Human: Be fair.\n\n3 + {4}?\nDraft: 8\n\nAssistant:Review:",
        ],
        [
            "Human: Be kind.\n\nTea?\nDraft: No.\nAdvice: too short\n\nAssistant:Better:",
            "Human: Be kind.\n\n3 + {4}?\nDraft: 8\nAdvice: {x}\n\nAssistant:Better:",
        ],
    ]
    assert [call[0] for call in script.calls] == ["model"] * 2
    assert [call[2:] for call in script.calls] == [
        (64, [7, 8], SamplingConfig(temperature=0.4)),
        (96, [7, 8], SamplingConfig(temperature=0.4)),
    ]
    # As in the data, a response begins without the space after what stands before it.
    assert found == [
        Response(BYTES.encode("Yes, please."), True),
        Response(BYTES.encode("7"), True),
    ]


def test_without_an_opening_the_answer_stays_as_it_was_sampled():
    script = Script([("a", True)], [(" b", True)])
    prompts = Prompts(Step(ASK), Step(IMPROVE))
    assert improve(script, prompts, ["x"], ["y"]) == [Response(BYTES.encode(" b"), True)]


def test_a_dialogue_is_one_text_in_which_each_turn_has_its_speaker():
    turns = (("system", "s"), ("user", "Hi."), ("assistant", "Hello."), ("user", "Tea?"))
    x = Dialogue("s\n\nHi.\n\nAssistant: Hello.\n\nHuman: Tea?\n\n", turns)
    script = Script([("a", True)] * 2, [("b", True)] * 2)
    prompts = Prompts(Step(ASK), Step(IMPROVE))
    improve(script, prompts, [x, Dialogue("s\n\nTea?\n\n", turns[::3])], ["y", "y"])
    assert script.calls[0][1] == [
        "Human: Human: s\n\nHi.\n\nAssistant: Hello.\n\nHuman: Tea?\nDraft: y\n\nAssistant:",
        "Human: s\n\nTea?\nDraft: y\n\nAssistant:",
    ]


def test_a_response_that_grows_without_its_space_is_cut_to_the_window():
    """One piece, ` wide`, is two without its space: `w` and `ide`."""

    class Pieces(WordVocabulary):
        def decode(self, ids):
            return {(30,): " wide"}.get(tuple(ids), "a")

        def encode(self, text):
            return [31, 32] if text == "wide" else super().encode(text)

    class One:
        def respond(self, *_):
            return [Response([30], True)]

    prompts = Prompts(Step(ASK), Step(IMPROVE, opening="a"))
    given = ["x"], [Response([3], True)], [0], jax.random.key(0), SamplingConfig()
    layout = Layout(Pieces(["a"]))
    role = Role(None, layout, LENGTHS, One())
    for window, expected in ((3, Response([31, 32], True)), (2, Response([31], False))):
        assert SelfRefine(prompts, layout, window)(role, "model", *given) == [expected]


def test_the_example_of_the_questions_page_is_a_file_of_prompts(reading):
    page = pathlib.Path(self_refine.__file__).parents[2] / "docs" / "faq.md"
    (example,) = page.read_text().split("```json\n")[1:]
    found = reading(example.partition("```")[0].encode())
    assert (found.feedback.opening, found.refine.opening) == ("Review:", "Better:")
