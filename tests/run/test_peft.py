"""Adapters of PEFT that become stages, and stages whose adapters go out."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from safetensors.numpy import load_file

import gin
from pit_jax import bindings, cli
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.models import adapters
from pit_jax.models.attention import CausalRows, positions_of
from pit_jax.models.config import LoraConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights import hugging_face as weights
from pit_jax.models.weights import peft
from pit_jax.models.weights.rows import flatten
from pit_jax.run import directory as run_directory
from pit_jax.run import exports, hugging_face, loading
from pit_jax.run.config import RunConfig
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import TrainState
from tests import tiny_runs, tiny_tokenizers
from tests.models.weights import tiny_adapters
from tests.run.test_hugging_face import NETWORK, TEMPLATE, random_params

RESERVED = ["<|im_start|>", "<|im_end|>", "<|r0|>", "<|r1|>", "<|r2|>"]
TOKENIZER = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}
LORA = LoraConfig(rank=2, alpha=3.0, targets="attention/query|attention/out|mlp/up")
STAGES = {
    "sft_policy": {"task": "sft_policy"},
    "sft_pit": {"task": "sft_pit"},
    "rm_gap": {"task": "rm_gap", "pooling": "last", "anchor": 0.25},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of the hub, adapters, and what `convert --from=peft` made of them."""
    place = epath.Path(tmp_path_factory.mktemp("work"))
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(RESERVED)
    (place / "hub").mkdir()
    tiny_tokenizers.save(place / "hub" / "tiny", tokenizer, TOKENIZER)
    size = tokenizer.get_vocab_size() + 4  # rows that the tokenizer has no pieces for
    network = dataclasses.replace(NETWORK, vocab_size=size, lora=LORA)
    plain = network.without_adapters
    params = random_params(plain, Partitioner(MeshConfig(), jax.devices()[:1]))
    weights.write(place / "hub" / "tiny", params, plain, "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
        for seed, (name, notes) in enumerate(STAGES.items()):
            own = tiny_adapters.own(network, "pooling" in notes, seed)
            folder = place / "theirs" / name
            peft.write(folder, own, LORA, "llama", "hub/tiny", notes=notes)
            assert cli.main(bring(folder)) == 0
        yield place


def bring(folder, output="base", *more):
    argv = ["convert", "--from=peft", f"--input={folder}", f"--output={output}"]
    return [*argv, "--dtype=float32", "--chat_template=tokenizer", *more]


def argv(stage, output, *more, model_dir="base"):
    """Takes a stage out, as if `base` were the run that trained it."""
    return [
        "convert",
        *("--gin_file=gin/runs/from_base.gin", "--gin_file=base/model.gin"),
        f"--gin_file=base/{stage}.gin",
        f"--gin.MODEL_DIR='{model_dir}'",
        "--gin.PREFERENCES_PATH='pairs.jsonl'",
        f"--gin.STAGE='{stage}'",
        f"--output={output}",
        *more,
    ]


def the_run(*more, stage="sft_policy"):
    words = [word for word in argv(stage, "out", *more) if "output" not in word]
    files = [word.partition("=")[2] for word in words if word.startswith("--gin_file")]
    _, flags = bindings.take_out([word for word in words if "STAGE" not in word])
    bindings.parse(files, "", flags, (RunConfig, EvaluationConfig))
    config = bindings.configured(RunConfig)
    gin.clear_config()
    return tiny_runs.on_one_device(config)


def outputs(network, params):
    """Of a model on rows of our ids."""
    tokens = jnp.arange(2, 26).reshape(2, 12)
    kind = ScalarModel if "head" in adapters.whole(params) else LanguageModel
    inputs = tokens, positions_of(tokens > 0), CausalRows(jnp.ones_like(tokens))
    return np.asarray(jax.jit(kind(network).apply)({"params": adapters.whole(params)}, *inputs))


def test_an_adapter_becomes_a_stage_on_its_base_model(place):
    result = json.loads((place / "base" / "rm_gap" / "result.json").read_text())
    assert re.fullmatch("[0-9a-f]{32}", result.pop("digest")) and result.pop("sha256")
    assert result == {
        **STAGES["rm_gap"],
        "name": "rm_gap",
        "steps": 0,
        "model_step": 0,
        "backbone": "model",
        "lora": dataclasses.asdict(LORA),
        # query 16x2 and 2x16, out the same, up 16x2 and 2x16, the head
        "trained_parameters": 3 * 64 + 16,
    }
    base = json.loads((place / "base" / "model" / "result.json").read_text())
    assert base["source"] == str(place / "hub" / "tiny")
    run = the_run()
    assert run.config.network.lora == LORA
    for seed, name in enumerate(STAGES):
        params = run.load(f"{place}/base/{name}")
        before = dict(flatten(tiny_adapters.own(run.config.network, name == "rm_gap", seed)))
        assert before.keys() == dict(flatten(params.own)).keys()
        for leaf, array in flatten(params.own):
            np.testing.assert_array_equal(array, before[leaf], leaf)
        whole = run.load("base/model")
        jax.tree.map(np.testing.assert_array_equal, params.backbone, whole)
    assert run.anchor("rm_gap") == 0.25


def test_it_goes_out_again_bit_for_bit(place):
    assert cli.main(argv("sft_policy", "out/policy", "--to=peft")) == 0
    folders = place / "theirs/sft_policy", place / "out/policy"
    one, other = (load_file(folder / peft.WEIGHTS) for folder in folders)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)
    config = json.loads((place / "out/policy/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "hub" / "tiny")
    assert (config["r"], config["lora_alpha"]) == (2, 3)
    card = (place / "out/policy/README.md").read_text()
    assert "library_name: peft" in card and "LoRA adapter of rank 2 for" in card
    assert "policy M_P after supervised fine-tuning" in card and "pad_token_id" not in card
    # The base model has no rows for ids that were added, so the tokenizer has no such pieces.
    tokenizer = json.loads((place / "out/policy/tokenizer_config.json").read_text())
    assert tokenizer["pad_token"] == tokenizer["eos_token"] == "<|im_end|>"
    text = (place / "out/policy/tokenizer.json").read_text()
    assert "<<Pad>>" not in text and "<<Candidate>>" not in text
    assert (place / "out/policy/chat_template.jinja").read_text() == TEMPLATE


def test_merged_it_computes_what_the_adapter_does(place):
    for name, kind in (("sft_policy", "ForCausalLM"), ("rm_gap", "ForSequenceClassification")):
        assert cli.main(argv(name, f"merged/{name}", "--to=hf")) == 0
        folder = place / "merged" / name
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["Llama" + kind]
        run = the_run()
        network = run.config.network
        vocabulary = load_vocabulary(f"tokenizer:{folder}", chat_template="tokenizer")
        like = run.load(f"base/{name}")
        plain = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            adapters.merged(like, LORA),
        )
        merged = weights.read(folder, plain)
        merged = hugging_face.in_our_order(merged, as_written(vocabulary, network), plain)
        found = outputs(network.without_adapters, merged)
        np.testing.assert_allclose(found, outputs(network, like), atol=1e-5, rtol=1e-5)
        one, other = (load_file(f / "model.safetensors") for f in (folder, place / "hub/tiny"))
        moved = [each for each in one.keys() & other.keys() if each.startswith("model.layers")]
        moved = [each for each in moved if not np.array_equal(one[each], other[each])]
        assert sorted(each.split(".")[-2] for each in moved) == ["o_proj", "q_proj", "up_proj"]


def as_written(vocabulary, network):
    """The vocabulary of a tokenizer for weights that have rows of their own for all of our ids."""
    vocabulary.num_pieces = network.vocab_size
    return vocabulary


def test_ids_that_were_added_need_a_base_model_with_rows_for_them(place, capsys):
    for name, added, setting in (
        ("sft_pit", "candidate, improved", "RunConfig.control_tokens"),
        ("rm_gap", "candidate, improved, pad", "RunConfig.control_tokens and RunConfig.pad_token"),
    ):
        assert cli.main(argv(name, "out/none", "--to=peft")) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"added to the tokenizer ({added})" in error
        assert "add --with_base=DIR, which" in error and f"or train with {setting} set to" in error
    assert not (place / "out/none").exists()
    flags = "--to=peft", "--with_base=out/own_base"
    assert cli.main(argv("rm_gap", "out/gap", *flags)) == 0
    config = json.loads((place / "out/gap/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "out/own_base"
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    base = load_file(place / "out/own_base/model.safetensors")["model.embed_tokens.weight"]
    theirs = load_file(place / "hub/tiny/model.safetensors")["model.embed_tokens.weight"]
    pieces = len(theirs) - 4
    np.testing.assert_array_equal(base[:pieces], theirs[:pieces])
    for folder in ("out/own_base", "out/gap"):
        tokenizer = tiny_tokenizers.Tokenizer.from_file(str(place / folder / "tokenizer.json"))
        assert tokenizer.token_to_id("<<Candidate>>") == pieces + 1
    mean = theirs[:pieces].mean(axis=0)
    np.testing.assert_allclose(base[pieces + 1], mean, rtol=1e-5, atol=1e-6)
    card = (place / "out/gap/README.md").read_text()
    assert "num_labels=1" in card and "A score of 0.2500 counts as 0" in card


def test_reserved_pieces_need_no_base_model(place, tmp_path):
    """A run that starts from the hub's folder itself, and takes the tokenizer's own pieces."""
    more = {
        "VOCABULARY": f"tokenizer:{place}/hub/tiny",
        "RunConfig.control_tokens": ("<|r0|>", "<|r1|>"),
        "RunConfig.pad_token": "<|r2|>",
    }
    run = the_run(*(f"--gin.{name}={value!r}" for name, value in more.items()))
    network = run.config.network
    stage = epath.Path(tmp_path) / "rm_gap"
    own = tiny_adapters.own(network, scalar=True)
    result = STAGES["rm_gap"] | {"model_step": 0, "steps": 0, "lora": dataclasses.asdict(LORA)}
    run_directory.claim(stage, {}, run_directory.identity(network, run.role("pit").vocabulary))
    run_directory.write_json(stage / "result.json", result | {"backbone": f"{place}/hub/tiny"})
    checkpoints = Checkpoints(stage / "checkpoints")
    checkpoints.save(0, TrainState.create(jax.tree.map(jnp.array, own), optax.identity()), {})
    checkpoints.close()
    out = epath.Path(tmp_path) / "out"
    assert exports.take_out_adapter(run, str(stage), out) == f"{place}/hub/tiny"
    assert "<<" not in (out / "tokenizer.json").read_text()
    assert json.loads((out / "tokenizer_config.json").read_text())["pad_token"] == "<|r2|>"
    slot = "<|r0|>{{ candidate }}<|r1|>"
    assert slot in (out / "chat_template.jinja").read_text()
    # It comes in again for runs with the same pieces.
    assert cli.main(bring(out, tmp_path / "again")) == 0
    again = epath.Path(tmp_path) / "again"
    before, after = (run_directory.read_json(x / "stage.json") for x in (stage, again / "out"))
    assert before["model"]["vocabulary"] == after["model"]["vocabulary"]
    assert run_directory.read_json(again / "out" / "result.json")["task"] == "rm_gap"


def test_an_adapter_of_the_output_projection_has_the_ids_order(place):
    lora = dataclasses.replace(LORA, targets="attention/query|unembed")
    size = len(load_file(place / "hub/tiny/model.safetensors")["lm_head.weight"])
    network = dataclasses.replace(NETWORK, vocab_size=size, lora=lora)
    own = tiny_adapters.own(network)
    peft.write(place / "theirs/unembed", own, lora, "llama", "hub/tiny", notes=STAGES["sft_policy"])
    assert cli.main(bring("theirs/unembed")) == 0
    run = the_run(stage="unembed")
    b = np.asarray(run.load("base/unembed").own["decoder"]["unembed"]["lora_b"])
    theirs = own["decoder"]["unembed"]["lora_b"]
    end = run.role("policy").vocabulary.tokenizer_ids[1]
    np.testing.assert_array_equal(b[:, 1], theirs[:, end])
    np.testing.assert_allclose(b[:, 0], theirs[:, : size - 4].mean(axis=1), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="got an adapter of unembed, which has a column for each"):
        exports.take_out_adapter(run, "base/unembed", place / "out/none")
    exports.take_out_adapter(
        run, "base/unembed", place / "out/unembed", with_base=place / "out/own_base"
    )
    out = load_file(place / "out/unembed" / peft.WEIGHTS)["base_model.model.lm_head.lora_B.weight"]
    np.testing.assert_array_equal(out[: size - 4], theirs.T[: size - 4])
    assert out.shape == (run.config.network.vocab_size, 2)


def test_what_was_trained_on_a_rounded_backbone_says_so_or_brings_it(place, tmp_path):
    stage = tmp_path / "rounded"
    shutil.copytree(place / "base/sft_policy", stage)
    result = run_directory.read_json(stage / "result.json")
    result["lora"]["backbone"] = "int8"
    result["backbone"] = f"{place}/base/model"
    (stage / "result.json").write_text(json.dumps(result))
    out = epath.Path(tmp_path / "out")
    exports.take_out_adapter(the_run(), str(stage), out)
    assert "on the base model in int8" in (out / "README.md").read_text()
    exports.take_out_adapter(the_run(), str(stage), out, with_base=out / "base")
    assert "in int8" not in (out / "README.md").read_text()
    name = "model.layers.0.mlp.up_proj.weight"
    one, other = (
        load_file(f / "model.safetensors")[name] for f in (place / "hub/tiny", out / "base")
    )
    half = np.abs(one).max(axis=1, keepdims=True) / 127 / 2  # of an output's scale
    assert np.abs(one - other).max() > 0 and (np.abs(one - other) <= half * 1.0001).all()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bring("theirs/sft_pit"), "base/sft_pit: is there already; delete it to write it again"),
        (bring("./nowhere"), "--input: ./nowhere not found, expected a folder"),
        (bring("hub/tiny"), "hub/tiny/adapter_config.json: not found; the folder of a PEFT"),
        (bring("theirs/sft_pit", "other", "--base=./none"), "--base: ./none not found, expected"),
        (bring("theirs/sft_pit", "other", "--with_base=x"), "--with_base: expected it with --to="),
        (
            ["convert", "--from=hf", "--input=hub/tiny", "--output=other", "--base=x"],
            "--base: got it with hf, expected it with peft alone",
        ),
        (
            argv("sft_policy", "out/none", "--to=hf", "--with_base=x"),
            "--with_base: got it with hf, expected it with peft alone",
        ),
        (
            argv("sft_policy", "out/none", "--to=t5x", "--base=x"),
            "--base: got it with t5x, expected it with peft alone",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, place, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_base_model_is_not_mixed_in(place, capsys):
    folder = place / "again" / "tiny"
    folder.parent.mkdir()
    hub = place / "hub" / "tiny"
    folder.mkdir()
    for path in hub.iterdir():
        path.copy(folder / path.name)
    own = tiny_adapters.own(dataclasses.replace(NETWORK, lora=LORA))
    peft.write(place / "theirs/stranger", own, LORA, "llama", "again/tiny")
    assert cli.main(bring("theirs/stranger")) == 2
    assert re.search(
        rf"base/model: is '{hub}', expected '{folder}', the adapter's base", capsys.readouterr().err
    )
    assert cli.main(bring("theirs/stranger", "base", "--base=hub/tiny")) == 0
    result = json.loads((place / "base/stranger/result.json").read_text())
    assert result["task"] == "pretrain"  # nobody says more of it


def test_what_has_no_adapters_that_could_go_out(place):
    with pytest.raises(UserError, match="base/model: got a model without adapters, expected one"):
        exports.take_out_adapter(the_run(), "base/model", place / "out/none")
    other = the_run("--gin.LoraConfig.rank=5")
    with pytest.raises(UserError, match=r"got adapters LoraConfig\(rank=2.*, expected NetworkConf"):
        exports.take_out_adapter(other, "base/sft_policy", place / "out/none")


def test_an_adapter_of_the_hub_is_called_as_there(place, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(name, allow_patterns):
        asked[name] = allow_patterns
        return str(place / "theirs/sft_policy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert cli.main(bring("who/polite")) == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {*asked["who/polite"]}
    assert (place / "base/polite/result.json").exists()


def test_a_backbone_that_was_trained_here_is_no_base_model_elsewhere(place, tmp_path):
    run = the_run()
    base = place / "base" / "model" / "result.json"
    for name in ("model", "policy"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "result.json").write_text('{"task": "sft_policy", "model_step": 3}')
    result = json.loads((place / "base/sft_policy/result.json").read_text())
    (tmp_path / "policy" / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="whose Hugging Face folder isn't known, expected --with_"):
        exports._source(run, f"{tmp_path}/policy")
    assert json.loads(base.read_text())["source"] and loading.lora_of(
        run, "base/sft_policy", "policy"
    )


# --- against PEFT -------------------------------------------------------------------------------


@pytest.mark.hf
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sft_policy", []),
        ("sft_pit", ["--with_base=out/their_base"]),
        ("rm_gap", ["--with_base=out/their_base"]),
    ],
)
def test_peft_computes_on_the_base_model_what_we_compute(name, flags, place):
    import peft as library
    import torch
    import transformers

    out = f"out/for_{name}"
    assert cli.main(argv(name, out, "--to=peft", *flags)) == 0
    run, kind = the_run(), "SequenceClassification" if name == "rm_gap" else "CausalLM"
    base = json.loads((place / out / "adapter_config.json").read_text())["base_model_name_or_path"]
    labels = {"num_labels": 1} if name == "rm_gap" else {}
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(base, **labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model.config.pad_token_id = tokenizer.pad_token_id
    model = library.PeftModel.from_pretrained(model, out).eval()
    tokens = jnp.arange(2, 26).reshape(2, 12)
    ours = outputs(run.config.network, run.load(f"base/{name}"))
    vocabulary = run.role_of(f"base/{name}").vocabulary
    ids = vocabulary.tokenizer_ids[np.asarray(tokens)]
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    if name == "rm_gap":
        np.testing.assert_allclose(ours[:, -1], theirs[:, 0], atol=1e-4)
        return
    # Our columns in the order of the tokenizer, for all that it has itself.
    own = np.arange(2, 300)
    np.testing.assert_allclose(
        ours[..., own], theirs[..., vocabulary.tokenizer_ids[own]], atol=1e-4
    )
