"""What a stage's folder is made with: texts that decide whether a run may go on in it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from etils import epath

from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.method.curriculum import Round
from pit_jax.run import directory
from tests import tiny_runs

CONFIG = tiny_runs.config("unused")
VOCABULARY = load(CONFIG.vocabulary)
NETWORK = (
    "NetworkConfig(vocab_size=64, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=2, "
    "head_dim=8, mlp_dim=16, activation='silu', tied_embeddings=True, scale_embeddings=True, "
    "scale_attention=True, scale_logits=False, positions='rotary', rope_theta=100.0, "
    "norm_epsilon=1e-06, dtype='float32'"
)


def settings(stage, **changes):
    """Of a stage of the tiny run, itself changed."""
    table = {each.name: each for each in CONFIG.stages}
    changed = dataclasses.replace(table[stage], **changes)
    config = tiny_runs.with_stages(CONFIG, changed)
    return directory.settings(config, changed, VOCABULARY)


def of_network(**changes):
    """Settings and identity of a network that is changed."""
    network = dataclasses.replace(CONFIG.network, **changes)
    config = dataclasses.replace(CONFIG, network=network)
    found = directory.settings(config, config.stages[0], VOCABULARY)["network"]
    return found, directory.identity(network, VOCABULARY)["network"]


@pytest.mark.parametrize(
    ("stage", "fingerprint"),
    [
        ("sft_pit", "44f633b9847eefb346aa9cc04e0460bc2abc2fd6a27b63cc07950e581f548e65"),
        ("rl_pit", "2df6966d2a2fa9fca3f0f46fcc8230b56ebca34210d9002bba33d9906bd4b618"),
    ],
)
def test_a_directory_made_before_goes_on(stage, fingerprint, tmp_path):
    """Fingerprints of an earlier version, whose run directories another text would refuse."""
    identity = directory.identity(CONFIG.network, VOCABULARY)
    directory.claim(epath.Path(tmp_path), settings(stage), identity)
    written = json.loads((tmp_path / "stage.json").read_text())
    assert written["fingerprint"] == fingerprint
    assert written["model"] == {
        "vocabulary": "words 2 1152822d0dfccb9b",
        "network": NETWORK + ", remat='none')",
    }


def test_how_a_result_is_computed_does_not_count():
    loop = dataclasses.replace(tiny_runs.LOOP, log_every=7, eval_every=1)
    for stage in ("sft_pit", "rm_gap"):
        assert settings(stage, loop=loop, microbatches=4) == settings(stage)
    ppo = dataclasses.replace(tiny_runs.PPO, microbatches=2)
    assert settings("rl_pit", loop=loop, offload_frozen=True, ppo=ppo) == settings("rl_pit")
    assert of_network(remat="full", attention="xla") == (NETWORK + ")", NETWORK + ", remat='none')")


def test_what_is_computed_counts():
    assert settings("sft_pit", steps=3)["sft_pit"] != settings("sft_pit")["sft_pit"]
    ppo = dataclasses.replace(tiny_runs.PPO, minibatches=1)
    assert settings("rl_pit", ppo=ppo) != settings("rl_pit")
    before, identity = of_network()
    half, same_identity = of_network(dtype="bfloat16")
    assert half == before.replace("float32", "bfloat16") and same_identity == identity
    assert of_network(rope_theta=99.0)[1] != identity


def test_a_variation_counts_where_there_is_one():
    assert of_network(windows=(), gated_mlp=True, norm="rms", rope_factor=1.0) == of_network()
    windows, identity = of_network(windows=(4, 0))
    assert windows == NETWORK + ", windows=(4, 0))"
    assert identity == NETWORK + ", remat='none', windows=(4, 0))"


def test_what_prompts_have_beyond_layouts_counts_where_there_is_any(tmp_path):
    """A model that learned a protocol keeps it; one that learned none may learn one."""
    folder, plain = epath.Path(tmp_path), load("words:drafts")
    bos = load("words:drafts")
    bos.protocol = "bos 5"
    stage = CONFIG.stages[0]
    before = directory.settings(CONFIG, stage, plain)
    after = directory.settings(CONFIG, stage, bos)
    assert after == before | {"protocol": "bos 5"}
    plain_identity, identity = (directory.identity(CONFIG.network, v) for v in (plain, bos))
    assert identity == plain_identity | {"protocol": "bos 5"}
    for first, second in ((before, after), (after, before)):
        directory.claim(folder, first, plain_identity)
        (folder / "checkpoints" / "2").mkdir(parents=True)
        with pytest.raises(UserError, match=r"other settings \(protocol changed\)"):
            directory.claim(folder, second, identity)
        (folder / "checkpoints" / "2").rmdir()
    directory.claim(folder, before, plain_identity)
    directory.check_identity(folder, identity)
    directory.claim(folder, after, identity)
    with pytest.raises(UserError, match="another protocol: got none, expected bos 5"):
        directory.check_identity(folder, plain_identity)


def test_settings_hold_all_that_a_stage_builds_on():
    common = {"seed", "network", "dataset", "lengths", "batching", "vocabulary"}
    assert set(settings("sft_pit")) == common | {"sft_pit", "pretrain"}
    assert set(settings("rl_pit")) == common | {stage.name for stage in CONFIG.stages}


def test_other_settings_are_refused(tmp_path):
    folder, identity = epath.Path(tmp_path), directory.identity(CONFIG.network, VOCABULARY)
    directory.claim(folder, settings("sft_pit"), identity)
    directory.claim(folder, settings("sft_pit", steps=3), identity)  # nothing is trained yet
    (folder / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"other settings \(sft_pit changed\)"):
        directory.claim(folder, settings("sft_pit"), identity)


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("sft_pit", "pretrain"),  # initial
        ("rl_pit", "sft_pit"),  # initial and reference
        ("rl_pit", "rm_gap"),  # reward_model
        ("rl_pit", "rl_policy"),  # M_P of a round whose references are sampled
        ("rl_pit", "rm_policy"),  # reward_model of that M_P
        ("rl_policy", "rm_policy"),
    ],
)
def test_a_change_of_any_model_that_a_stage_uses_is_refused(stage, changed, tmp_path):
    folder, identity = epath.Path(tmp_path), directory.identity(CONFIG, VOCABULARY)
    table = {each.name: each for each in CONFIG.stages}
    directory.claim(folder, settings(stage), identity)
    (folder / "checkpoints" / "2").mkdir(parents=True)
    optimizer = dataclasses.replace(tiny_runs.OPTIMIZER, learning_rate=0.5)
    other = dataclasses.replace(table[changed], optimizer=optimizer)
    config = tiny_runs.with_stages(CONFIG, other)
    now = directory.settings(config, table[stage], VOCABULARY)
    with pytest.raises(UserError, match=rf"other settings \({changed} changed\)"):
        directory.claim(folder, now, identity)


def test_each_field_that_names_a_model_names_what_is_built_on():
    """One at a time, where nothing else leads to the same stage."""
    other = tiny_runs.supervised("other", task="sft_pit")

    def builds_on_other(stage):
        config = tiny_runs.with_stages(CONFIG, other, stage)
        return "other" in directory.settings(config, stage, VOCABULARY)

    for field in ("initial", "reference", "reward_model"):
        fields = {"task": "rl_pit", field: "other"}
        assert builds_on_other(tiny_runs.rl("x", (Round("data", 1),), **fields)), field
    for source, counts in (("data", False), ("policy", True), ("pit", True)):
        stage = tiny_runs.rl("x", (Round(source, 1, policy="other"),), task="rl_pit")
        assert builds_on_other(stage) == counts, source
    assert builds_on_other(tiny_runs.supervised("x", task="sft_pit", initial="other"))
    assert builds_on_other(tiny_runs.reward("x", task="rm_gap", initial="other"))


def test_a_directory_that_not_every_process_sees_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(directory.processes, "any_process", lambda value=False: True)
    with pytest.raises(UserError, match="not every process sees the first one's files.*gs://BUCK"):
        directory.claim(epath.Path(tmp_path), settings("sft_pit"), {})


def test_references_that_were_sampled_are_not_those_of_other_settings(tmp_path):
    """Also where no checkpoint is written yet."""
    folder, identity = epath.Path(tmp_path), directory.identity(CONFIG, VOCABULARY)
    directory.claim(folder, settings("rl_pit"), identity)
    (folder / "references").mkdir()
    with pytest.raises(UserError, match=r"other settings \(rl_pit changed\)"):
        directory.claim(folder, settings("rl_pit", batch_size=16), identity)
