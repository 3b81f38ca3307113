"""Base models from Hugging Face folders, and folders that trained models leave in."""

import copy
import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

import gin
from pit_jax import bindings, cli
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.sampler import Response, Sampler
from pit_jax.models.config import NetworkConfig
from pit_jax.models.weights import hugging_face as weights
from pit_jax.models.weights.rows import flatten
from pit_jax.run import exports, hugging_face, stages
from pit_jax.run.config import RunConfig
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import fake_bucket, tiny_runs, tiny_tokenizers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As SmolLM2 and Qwen have it: padding is the end of text, and nothing is spare.
TOKENIZER = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}
SPARE = 5  # rows of the embedding beyond the tokenizer
NETWORK = dataclasses.replace(tiny_runs.NETWORK, scale_embeddings=False, tied_embeddings=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny Llama, and its network."""
    folder = epath.Path(tmp_path_factory.mktemp("hub") / "tiny")
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tiny_tokenizers.save(folder, tokenizer, TOKENIZER)
    network = dataclasses.replace(NETWORK, vocab_size=tokenizer.get_vocab_size() + SPARE)
    params = random_params(network, Partitioner(MeshConfig(), jax.devices()[:1]))
    weights.write(folder, params, network, "llama")
    return folder, network


def abstract(network, partitioner):
    return stages.abstract_model(stages.init_language_model(network), partitioner)


def random_params(network, partitioner):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding),
        abstract(network, partitioner),
    )


def ours(network, vocabulary):
    size = max(network.vocab_size, vocabulary.vocab_size + 1)
    return dataclasses.replace(network, vocab_size=size)


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(model=2)])
def test_rows_are_in_our_order_and_new_ones_are_the_mean(model, mesh):
    folder, network = model
    vocabulary = load_vocabulary(f"tokenizer:{folder}")
    n = network.vocab_size - SPARE
    assert vocabulary.vocab_size == n + 3  # padding and two control tokens are added
    network = dataclasses.replace(network, vocab_size=n + 8)  # 310, in halves on the mesh
    params = hugging_face.load(folder, network, vocabulary, abstract(network, Partitioner(mesh)))
    theirs = load_file(folder / "model.safetensors")
    found = np.asarray(params["decoder"]["embed"]["embedding"])
    table = theirs["model.embed_tokens.weight"]
    mean = table[:n].mean(axis=0)
    end = vocabulary.tokenizer_ids[1]
    assert end == n - 1  # <|im_end|>
    np.testing.assert_array_equal(found[1], table[end])
    for row in (0, vocabulary.control_tokens.candidate, vocabulary.control_tokens.improved, n + 7):
        np.testing.assert_allclose(found[row], mean, rtol=1e-5, atol=1e-6)
    text = vocabulary.encode("The quick brown fox!")
    own = tiny_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
        "The quick brown fox!", add_special_tokens=False
    )
    np.testing.assert_array_equal(found[text], table[own.ids])
    unembed = np.asarray(params["decoder"]["unembed"]["kernel"])
    np.testing.assert_array_equal(unembed[:, text], theirs["lm_head.weight"][own.ids].T)
    np.testing.assert_allclose(
        unembed[:, 0], theirs["lm_head.weight"][:n].mean(axis=0), rtol=1e-5, atol=1e-6
    )


def test_what_is_taken_out_comes_in_again_bit_for_bit(model, tmp_path):
    folder, network = model
    vocabulary = load_vocabulary(f"tokenizer:{folder}")
    network = dataclasses.replace(network, vocab_size=vocabulary.vocab_size)
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    params = random_params(network, partitioner)
    hugging_face.save(epath.Path(tmp_path / "out"), params, network, vocabulary)
    vocabulary = as_written(vocabulary, network.vocab_size)
    again = hugging_face.load(
        epath.Path(tmp_path / "out"), network, vocabulary, abstract(network, partitioner)
    )
    for (name, one), (_, other) in zip(flatten(params), flatten(again), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def as_written(vocabulary, pieces):
    """The vocabulary of the tokenizer that has the added pieces, whose ids are the same."""
    copied = copy.copy(vocabulary)
    copied.num_pieces = pieces
    return copied


RUN = [
    "--gin_file=gin/runs/from_base.gin",
    "--gin_file=base/model.gin",
    "--gin.MODEL_DIR='run'",
    "--gin.PREFERENCES_PATH='pairs.jsonl'",
    "--gin.BATCH_SIZE=8",
    "--gin.NetworkConfig.dtype='float32'",
    "--gin.Lengths.prompt=64",
    "--gin.Lengths.reference=24",
    "--gin.Lengths.response=25",
    "--gin.BatchingConfig.packed_length=128",
    "--gin.RewardStage.held_out=4",
    "--gin.sft_policy/SupervisedStage.steps=1",
    "--gin.rm_gap/RewardStage.steps=1",
]


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A folder where a base model was brought in, two stages trained and taken out."""
    folder, _ = model
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        pairs = (
            {"prompt": f"Count to {i}", "chosen": f"1 to {i}", "rejected": f"{i}"}
            for i in range(200)
        )
        (place / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
        argv = ["convert", "--from=hf", f"--input={folder}", "--output=base"]
        assert cli.main([*argv, "--chat_template=tokenizer"]) == 0
        for stage in ("sft_policy", "rm_gap"):
            argv = [*RUN, f"--gin.STAGE='{stage}'"]
            assert cli.main(["train", *argv]) == 0
            assert cli.main(["convert", *argv, "--to=hf", f"--output=out/{stage}"]) == 0
        yield place


def test_a_base_model_is_as_the_papers_runs_expect_one(model, trained):
    _, network = model
    gin.clear_config()
    gin.parse_config_file(str(trained / "base" / "model.gin"))
    found = NetworkConfig(**gin.get_bindings(NetworkConfig))
    gin.clear_config()
    expected = dataclasses.replace(network, dtype="bfloat16", remat="full")
    assert dataclasses.replace(found, vocab_size=network.vocab_size) == expected
    assert found.vocab_size == 384  # of 307 rows and 3 more ids: a multiple of 128
    result = json.loads((trained / "base" / "model" / "result.json").read_text())
    assert result["task"] == "pretrain"
    names = {path.name for path in (trained / "base" / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


def test_a_role_takes_a_base_model_of_its_own(model, trained, tmp_path, monkeypatch, capsys):
    folder, _ = model
    monkeypatch.chdir(trained)
    argv = ["convert", "--from=hf", f"--input={folder}", "--chat_template=tokenizer"]
    assert cli.main([*argv, f"--output={tmp_path}/other", "--role=pit"]) == 0
    file = f"{tmp_path}/other/pit.gin"
    assert capsys.readouterr().out.strip().endswith(f"other/tokenizer, {file}")
    flags = [f"--gin_file={file}", f"--gin.MODEL_DIR='{tmp_path}/run'"]
    assert cli.main(["train", *RUN, *flags, "--gin.STAGE='sft_pit'", "--dry_run"]) == 0
    out = " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    assert f"initial = '{tmp_path}/other/model'" in out
    assert re.search(r"\bpit = @pit/[\w.]*RoleConfig\(\)", out)
    assert cli.main(
        ["convert", *RUN, "--gin.STAGE='rm_gap'", "--to=hf", "--output=x", "--role=pit"]
    )
    assert "--role: expected it with --from=hf alone" in capsys.readouterr().err


def test_what_a_stage_leaves_for_transformers(trained):
    for stage, architecture in (
        ("sft_policy", "LlamaForCausalLM"),
        ("rm_gap", "LlamaForSequenceClassification"),
    ):
        folder = trained / "out" / stage
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [architecture]
        tokenizer = tiny_tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = {"<|im_end|>": "eos_token_id", "<<Pad>>": "pad_token_id"}
        for name, field in names.items():
            assert tokenizer.token_to_id(name) == config[field]
        card = (folder / "README.md").read_text()
        assert f"# {stage}" in card and "apply_chat_template" in card and "Human:" not in card
        assert ("candidate" in card) == ("counts as 0" in card) == (stage == "rm_gap")
        assert "assistant" in (folder / "chat_template.jinja").read_text()
    slot = "<<Candidate>>{{ candidate }}<<Improved>>"
    assert slot in (trained / "out" / "rm_gap" / "chat_template.jinja").read_text()
    score = load_file(trained / "out" / "rm_gap" / "model.safetensors")["score.weight"]
    assert score.shape == (1, NETWORK.embed_dim)


def test_improve_by_self_refine_asks_with_a_system_turn_and_an_opening(trained, monkeypatch):
    asked, sampled = [], []
    respond = Sampler.respond

    def recorded(self, model, prompts, *more):
        answers = respond(self, model, prompts, *more)
        asked.extend(prompts)
        sampled.extend(answers)
        return answers

    monkeypatch.setattr(Sampler, "respond", recorded)
    user = "{prompt}\nDraft: {response}"
    steps = {
        "feedback": {
            "system": "Be fair, and short in all that you say.",
            "user": user,
            "opening": "Review:",
        },
        "refine": {"user": user + "\n{feedback}!", "opening": "Better:"},
    }
    (trained / "prompts.json").write_text(json.dumps(steps))
    (trained / "in.jsonl").write_text('{"prompt": "Count to 3", "response": "1"}\n')
    flags = ["--input=in.jsonl", "--output=out.jsonl", "--gin.ImproveConfig.method=self_refine"]
    flags += ["--gin.EvaluationConfig.policy=sft_policy"]
    flags += ["--gin.ImproveConfig.self_refine=prompts.json"]
    assert cli.main(["improve", *RUN, *flags]) == 0
    vocabulary = load_vocabulary("tokenizer:base/tokenizer", chat_template="tokenizer")
    names = {vocabulary.encode_prompt("x")[0]: "<|im_start|>", vocabulary.eos_id: "<|im_end|>"}
    text = "".join(names.get(i) or vocabulary.readable([i]) for i in asked[0])
    assert text == (
        "<|im_start|>system\nBe fair, and short in all that you say.<|im_end|>\n"
        "<|im_start|>user\nCount to 3\nDraft: 1<|im_end|>\n<|im_start|>assistant\nReview:"
    )
    feedback, response = (vocabulary.decode(answer.tokens) for answer in sampled)
    user = f"Count to 3\nDraft: 1\n{feedback.strip()}!"
    assert asked[1] == vocabulary.encode_prompt(user) + vocabulary.encode("Better:")
    line = json.loads((trained / "out.jsonl").read_text())
    assert line["responses"] == ["1", response.lstrip()] and len(line["gaps"]) == 1
    assert line["models"] == {"gap_model": "rm_gap@1", "policy": "sft_policy@1"}


def test_a_card_of_the_papers_layout_shows_its_pieces(model):
    pieces = {"candidate": "<C>", "improved": "<I>"}
    plain = load_vocabulary(f"tokenizer:{model[0]}")
    first, *_, last = exports._given(plain, "rm_gap", pieces)
    assert first == "    Human: {prompt}Assistant:<C> {response}<I> {response to score}"
    assert last == "The end-of-text token comes last."
    assert exports._given(plain, "rl_policy", pieces)[0] == "    Human: {prompt}Assistant:"


def test_a_card_says_how_a_response_is_read_out_after_its_reflection(model):
    plain = load_vocabulary(f"tokenizer:{model[0]}")
    control = plain.tokenizer_ids[plain.control_tokens.improved]
    text = exports._written("<I>", plain, 60)
    result = {"task": "sft_pit_reflection", "steps": 3}
    card = exports._card("thinking", result, [], [], ["given", *text], None)
    assert "improver M_PIT after supervised fine-tuning" in card and "max_new_tokens=60" in card
    assert f"what follows the last `<I>`, which is\nthe id {control}." in card
    assert card.index("## What it is given") < card.index("## What it writes")


def test_a_taken_out_tokenizer_has_the_ids_of_the_run(trained):
    before = load_vocabulary("tokenizer:" + str(trained / "base" / "tokenizer"))
    after = load_vocabulary("tokenizer:" + str(trained / "out" / "sft_policy"))
    assert after.vocab_size == before.vocab_size == after.num_pieces == before.num_pieces + 3
    np.testing.assert_array_equal(after.tokenizer_ids, before.tokenizer_ids)
    assert after.control_tokens == before.control_tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "got num_layers=1 in its config, expected 3, which the run's network"),
        ({"rope_theta": 7.0}, "got rope_theta=100.0 in its config, expected 7.0"),
    ],
)
def test_another_network_is_refused_by_field(model, change, message):
    folder, network = model
    vocabulary = load_vocabulary(f"tokenizer:{folder}")
    with pytest.raises(UserError, match=re.escape(message)):
        hugging_face.check(folder, dataclasses.replace(network, **change), vocabulary, None)


def test_another_vocabulary_is_refused(model):
    folder, network = model
    with pytest.raises(UserError, match="got a vocabulary that isn't this model's"):
        hugging_face.check(folder, network, load_vocabulary("bytes"), None)


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(model, tmp_path):
    folder, network = model
    small = dataclasses.replace(network, vocab_size=300)
    params = random_params(small, Partitioner(MeshConfig(), jax.devices()[:1]))
    weights.write(epath.Path(tmp_path), params, small, "llama")
    vocabulary = load_vocabulary(f"tokenizer:{folder}")
    with pytest.raises(UserError, match="got 300 rows of the embedding, expected at least 302"):
        hugging_face.check(epath.Path(tmp_path), network, vocabulary, None)


def test_a_config_that_is_not_computed_is_refused_by_folder(model, tmp_path):
    folder, network = model
    vocabulary = load_vocabulary(f"tokenizer:{folder}")
    broken = epath.Path(tmp_path)
    for content, message in (
        ({"model_type": "mamba"}, "config.json: got model_type='mamba', expected one of llama, "),
        ([], "/config.json: expected a JSON object, got a list"),
        ("{", "/config.json: expected a JSON object; Expecting"),
    ):
        text = content if isinstance(content, str) else json.dumps(content)
        (broken / "config.json").write_text(text)
        with pytest.raises(UserError) as raised:
            hugging_face.check(broken, network, vocabulary, None)
        assert str(raised.value).startswith(f"{broken}") and message in str(raised.value)


def drop(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [
        (drop, [], "model.layers.0.mlp.up_proj.weight: got none, expected shape (16, 16)"),
        (cut, [], "the file isn't whole, get it again"),
        (None, ["--gin.MeshConfig.model=4"], "mesh: got model=4, expected a divisor of 2 heads"),
        (None, ["--gin.NetworkConfig.num_layers=2"], "got num_layers=1 in its config, expected 2"),
    ],
)
@pytest.mark.mesh
def test_a_dry_run_refuses_what_cannot_be_loaded(
    damage, flags, message, model, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(trained)
    folder = shutil.copytree(model[0], tmp_path / "theirs")
    if damage:
        damage(folder)
    there = [f"--gin.INITIAL_CHECKPOINT_PATH='{folder}'", f"--gin.VOCABULARY='tokenizer:{folder}'"]
    argv = ["run", *RUN, *there, "--gin.MODEL_DIR='other'", *flags, "--dry_run"]
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_model_in_a_bucket(model, tmp_path, monkeypatch):
    folder, network = model
    fake_bucket.install(monkeypatch, tmp_path)
    shutil.copytree(folder, tmp_path / "bucket" / "theirs")
    there = epath.Path("gs://bucket/theirs")
    vocabulary = load_vocabulary(f"tokenizer:{there}")
    like = abstract(network, Partitioner(MeshConfig(), jax.devices()[:1]))
    one = hugging_face.load(there, network, vocabulary, like)
    other = hugging_face.load(folder, network, vocabulary, like)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    (tmp_path / "bucket" / "none").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "bucket" / "none")
    with pytest.raises(UserError, match=r"gs://bucket/none: expected model.safetensors or "):
        hugging_face.load(epath.Path("gs://bucket/none"), network, vocabulary, like)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --input=MODEL"),
        (["--input=nowhere"], "--input: nowhere not found, expected a folder, a GGUF file"),
        (["--input=x", "--gin_file=y"], "--from=hf takes no gin file"),
    ],
)
def test_mistakes_in_bringing_a_model_in(arguments, message, tmp_path, capsys):
    argv = ["convert", "--from=hf", f"--output={tmp_path}/base", *arguments]
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_name_of_the_hub_is_fetched_by_the_hubs_client(model, tmp_path, monkeypatch):
    """Only what is read of it: weights that may run code stay where they are."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = {}

    def fetch(name, allow_patterns):
        asked[name] = allow_patterns
        if name == "who/none":
            raise LocalEntryNotFoundError("no connection\nand more")
        return str(model[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    assert hugging_face.found("who/tiny") == model[0]
    assert {"*.safetensors", "config.json", "tokenizer.json"} <= {*asked["who/tiny"]}
    assert not any("bin" in pattern or ".py" in pattern for pattern in asked["who/tiny"])
    with pytest.raises(
        UserError, match="who/none: no folder here, and from the hub: no connection"
    ):
        hugging_face.found("who/none")


def test_a_base_model_is_not_written_twice(model, trained, capsys):
    folder, _ = model
    argv = ["convert", "--from=hf", f"--input={folder}", f"--output={trained}/base"]
    assert cli.main(argv) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_vocabulary_of_words_is_not_taken_out(tmp_path_factory, tmp_path, capsys):
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path))
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "result.json").write_text('{"task": "pretrain", "model_step": 0}')
    with pytest.raises(UserError, match="got vocabulary 'words:drafts', expected 'tokenizer:PATH'"):
        exports.take_out(run, "pretrain", epath.Path(tmp_path / "out"))


# --- against transformers -----------------------------------------------------------------------


def the_run():
    """The run, with its configuration as its commands read it."""
    files = [word.partition("=")[2] for word in RUN if word.startswith("--gin_file")]
    _, flags = bindings.take_out(RUN)
    bindings.parse(files, "", flags, (RunConfig, EvaluationConfig))
    config = bindings.configured(RunConfig)
    gin.clear_config()
    return tiny_runs.on_one_device(config)


@pytest.mark.hf
def test_transformers_writes_what_we_write_and_scores_as_we_score(trained, monkeypatch):
    import torch
    import transformers

    monkeypatch.chdir(trained)
    run, prompts = the_run(), ["Count to 3", "Say dog.", "What is 7?"]
    role = run.role("policy")
    vocabulary, width = role.vocabulary, role.widths
    auto = transformers.AutoTokenizer.from_pretrained("out/sft_policy")
    policy = transformers.AutoModelForCausalLM.from_pretrained("out/sft_policy").eval()
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    ids = [
        auto.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in turns
    ]
    built = [role.layout.policy_prompt(prompt) for prompt in prompts]
    assert [vocabulary.tokenizer_ids[row].tolist() for row in built] == ids
    greedy = SamplingConfig(temperature=0.0)
    model = run.load_frozen("sft_policy")
    responses = role.sampler.respond(model, built, width.policy, [0, 1, 2], run.key("x"), greedy)
    for row, response in zip(ids, responses, strict=True):
        with torch.no_grad():
            out = policy.generate(torch.tensor([row]), do_sample=False, max_new_tokens=25)
        new = out[0, len(row) :].tolist()
        assert new[: len(response.tokens)] == vocabulary.tokenizer_ids[response.tokens].tolist()

    scorer = transformers.AutoModelForSequenceClassification.from_pretrained("out/rm_gap").eval()
    slot = transformers.AutoTokenizer.from_pretrained("out/rm_gap")
    candidate, better = "1 2", "1 2 3"
    turn = [*turns[0], {"role": "candidate", "content": candidate}]
    given = slot.apply_chat_template(turn, return_dict=False)
    ours = role.layout.gap_prompt(prompts[0], vocabulary.encode(candidate))
    assert vocabulary.tokenizer_ids[ours].tolist() == given
    whole = [*given, *slot.encode(better, add_special_tokens=False), slot.eos_token_id]
    with torch.no_grad():
        score = float(scorer(torch.tensor([whole])).logits[0, 0])
    response = Response(vocabulary.encode(better), True)
    found = role.sampler.score(
        run.load_frozen("rm_gap"), [ours], width.gap, [response], run.pooling("rm_gap")
    )
    assert float(found[0]) == pytest.approx(score, abs=1e-4)


def test_a_model_that_was_half_brought_in_is_not_taken_for_another(model, trained, tmp_path):
    """Its checkpoint was written, and its result wasn't."""
    shutil.copytree(trained / "base", tmp_path / "base")
    (tmp_path / "base" / "model" / "result.json").unlink()
    shutil.copytree(model[0], tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, path, {"format": "pt"})
    bring_in = functools.partial(
        hugging_face.bring_in, output=epath.Path(tmp_path / "base"), dtype="float32"
    )
    with pytest.raises(UserError, match=r"was started with other settings: .*digest \w+ -> \w+"):
        bring_in(epath.Path(tmp_path / "other"))
