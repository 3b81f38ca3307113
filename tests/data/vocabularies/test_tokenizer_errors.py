"""Mistakes with users' own tokenizers: names that don't fit, files that are none; each one line."""

import json
import pathlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pit_jax.data.vocabularies.load import load
from pit_jax.data.vocabularies.tokenizer_json import TokenizerVocabulary
from pit_jax.errors import UserError
from tests.tiny_tokenizers import byte_level_bpe, make_cases, save, train_sentencepiece, word_piece


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("tokenizers"))


def refused(match, spec, *names, **given):
    with pytest.raises(UserError, match=match) as error:
        load(spec, (), *names, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("bytes", {"control_tokens": ("<|pad|>", "x")}, "'<|pad|>', which is pad_token already"),
        ("bytes", {"pad_token": "<|endoftext|>"}, "pad_token: .*which is eos_token already"),
        ("bytes", {"eos_token": "!"}, "eos_token: got '!', which is a piece of ordinary text"),
        ("bytes", {"control_tokens": "ab"}, "control_tokens: got 'ab', expected two names"),
        ("bytes", {"control_tokens": ("a", "b", "c")}, "expected two names"),
        ("unigram", {"control_tokens": ("<r>", "<s>")}, "got '<r>', which the tokenizer doesn't"),
        ("unigram", {"control_tokens": ("<unk>", "<extra_id_0>")}, "which is the unknown token"),
        (
            "unigram",
            {"pad_token": "<unk>"},
            "got unknown token '<unk>', expected a piece of its own",
        ),
        (
            "unigram",
            {"control_tokens": ("<extra_id_0>",) * 2},
            "'<extra_id_0>', which is control_tokens already.*it has 1: '<extra_id_1>'$",
        ),
        ("words", {"eos_token": ""}, "json: eos_token: got none.*it has 2: '.CLS.', '.SEP.'$"),
        ("words", {"eos_token": "fox"}, "'fox', which is a piece of ordinary text"),
        ("whole", {"control_tokens": ("</s>", "<r1>")}, "'</s>', which is eos_token already"),
        (
            "sp_unigram",
            {"pad_token": "</s>"},
            "pad_token: .*which is eos_token.*it has 2: '<s>', '<pad>'$",
        ),
        ("sp_unigram", {"control_tokens": ("<0x0A>", "<c0>")}, "a piece of ordinary text"),
        (
            "sp_bpe",
            {"control_tokens": ("\n", "FIRST")},
            "got '.n', which is a piece of ordinary text",
        ),
        ("sp_t5", {"control_tokens": ("<unk>", "<c0>")}, "which is the unknown token already"),
    ],
)
def test_names_that_do_not_fit(cases, name, change, match):
    case = cases[name]
    message = refused(match.replace("|", r"\|"), case.spec, **{**case.names, **change})
    assert message.startswith(case.spec.partition(":")[2])


def test_a_tokenizer_without_spare_ids_says_how_to_add_them(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    save(tmp_path / "t", tokenizer)
    given = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    expected = "it has 0; add some with add_special_tokens .*network's vocab_size cover them"
    refused(expected, f"tokenizer:{tmp_path}/t", control_tokens=("<<Candidate>>", "x"), **given)
    save(tmp_path / "none", byte_level_bpe())
    refused(f"eos_token: got none.*{expected}", f"tokenizer:{tmp_path}/none")

    train_sentencepiece(tmp_path / "t.model", vocab_size=150)
    refused(
        "control_tokens: got 'x'.*it has 0; train it with control_symbols or user_defined",
        f"sentencepiece:{tmp_path}/t.model",
        control_tokens=("<s>", "x"),
    )
    # The advice taken.
    tokenizer.add_special_tokens(["<<Candidate>>", "<<Improved>>"])
    save(tmp_path / "more", tokenizer)
    vocabulary = load(
        f"tokenizer:{tmp_path}/more", control_tokens=("<<Candidate>>", "<<Improved>>"), **given
    )
    assert vocabulary.vocab_size == 304
    assert vocabulary.decode(vocabulary.encode("<<Candidate>>")) == "<<Candidate>>"


def test_files_that_are_none(cases, tmp_path):
    config = tmp_path / "tokenizer_config.json"
    file = tmp_path / "tokenizer.json"
    model = tmp_path / "x.model"
    for kind, path in (("tokenizer", file), ("sentencepiece", model)):
        refused(f"{path}: can't be read .No such file", f"{kind}:{path}")
        for content in (b"", b"{}", b"\xff\xfe", b"[1, 2]", b"\x00" * 50, b"not one\n" * 3, b"{\n"):
            path.write_bytes(content)
            refused(f"{path}: expected a ", f"{kind}:{path}")
    refused("can't be read .Is a directory", f"sentencepiece:{tmp_path}")
    refused("can't be read", f"sentencepiece:{tmp_path}/\0")
    good = pathlib.Path(cases["sp_t5"].spec.partition(":")[2]).read_bytes()
    for end in (10, 1000, len(good) - 5):
        model.write_bytes(good[:end])
        refused(f"{model}: expected a SentencePiece model", f"sentencepiece:{model}")
    model.write_bytes(good.replace(b"<extra_id_1>", b"\xff" * 12))
    refused(f"{model}: expected .* that aren't UTF-8", f"sentencepiece:{model}")

    word_piece().save(str(file))
    for content in ("", "[1]", "{", '"x"', '{"eos_token": 5}', '{"eos_token": {"content": null}}'):
        config.write_text(content)
        expected = "expected a JSON object" if "eos" not in content else "eos_token: got none"
        refused(expected, f"tokenizer:{tmp_path}")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_tokenizer_json_is_one_line(cases, tmp_path_factory, data):
    source = pathlib.Path(cases["unigram"].spec.partition(":")[2]).read_text()
    start = data.draw(st.integers(0, len(source)))
    end = start + data.draw(st.integers(0, 40))
    junk = data.draw(st.sampled_from(["", "null", "-1", "99999", '"', "[]", "{}", "true", "\x00"]))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_text(source[:start] + junk + source[end:])
    names = cases["unigram"].names
    try:
        vocabulary = TokenizerVocabulary(
            str(path), names["control_tokens"], eos_token="</s>", pad_token="<pad>"
        )
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert vocabulary.decode(vocabulary.encode("the fox")) is not None


def test_an_unknown_token_must_be_a_piece(tmp_path):
    file = tmp_path / "tokenizer.json"
    word_piece().save(str(file))
    spec = json.loads(file.read_text())
    spec["model"]["unk_token"] = "[OOV]"
    file.write_text(json.dumps(spec))
    refused("got unknown token '.OOV.', expected a piece of its own", f"tokenizer:{file}")
    spec["model"]["unk_token"] = "[UNK]"  # an added token, but no piece of the model
    del spec["model"]["vocab"]["[UNK]"]
    file.write_text(json.dumps(spec))
    refused("got unknown token '.UNK.', expected a piece of its own", f"tokenizer:{file}")
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.add_special_tokens(["<eos>", "<pad>", "<c0>", "<c1>"])
    tokenizer.save(str(file))
    spec = json.loads(file.read_text())
    spec["model"]["unk_token"] = ""  # as in GPT-2's
    file.write_text(json.dumps(spec))
    vocabulary = TokenizerVocabulary(str(file), ("<c0>", "<c1>"), "<eos>", "<pad>")
    assert vocabulary.unk_id is None
    assert vocabulary.encode("☃") == []
    spec["model"]["unk_token"] = "<eos>"  # as in OPT's
    file.write_text(json.dumps(spec))
    vocabulary = TokenizerVocabulary(str(file), ("<c0>", "<c1>"), "<eos>", "<pad>")
    assert vocabulary.unk_id is None
    assert vocabulary.encode("a☃") == vocabulary.encode("a")


@pytest.mark.parametrize("package", ["tokenizers", "sentencepiece"])
def test_a_missing_package_is_named(cases, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    case = cases["bytes" if package == "tokenizers" else "sp_t5"]
    refused(f"needs a package that isn't installed.*pip install {package}", case.spec)


def test_the_module_needs_no_tokenizer_library_to_be_imported():
    import subprocess

    program = (
        "import sys\n"
        "from pit_jax.data.vocabularies import subwords\n"
        "from pit_jax.data.vocabularies.load import load\n"
        "load('bytes')\n"
        "assert not {'tensorflow', 'seqio', 'tokenizers', 'sentencepiece'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_model_that_its_library_refuses_is_one_line(cases, tmp_path, monkeypatch):
    """It parses, but SentencePiece itself finds fault with it."""
    import sentencepiece

    def refuse(**_):
        raise RuntimeError("piece is already defined")

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", refuse)
    path = cases["sp_t5"].spec.partition(":")[2]
    refused(
        f"{path}: expected a SentencePiece model.*piece is already defined",
        cases["sp_t5"].spec,
        **cases["sp_t5"].names,
    )
