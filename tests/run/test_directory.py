"""What a stage's folder is made with: texts that decide whether a run may go on in it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re

import pytest
from etils import epath

from pit_jax import files
from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.method.curriculum import Round
from pit_jax.method.roles import ROLES
from pit_jax.run import directory, settings_diff
from pit_jax.run.config import RoleConfig
from tests import tiny_runs

CONFIG = tiny_runs.config("unused")
NO_WINDOWS = Lengths(prompt=0, reference=0, response=0)
VOCABULARY = load(CONFIG.vocabulary)
VOCABULARIES = dict.fromkeys(ROLES, VOCABULARY)
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
    return directory.settings(config, changed, VOCABULARIES)


def of_network(**changes):
    """Settings and identity of a network that is changed."""
    network = dataclasses.replace(CONFIG.network, **changes)
    config = dataclasses.replace(CONFIG, network=network)
    found = directory.settings(config, config.stages[0], VOCABULARIES)["network"]
    return found, directory.identity(network, VOCABULARY)["network"]


@pytest.mark.parametrize(
    ("stage", "digest"),
    [
        ("sft_pit", "44f633b9847eefb346aa9cc04e0460bc2abc2fd6a27b63cc07950e581f548e65"),
        ("rl_pit", "2df6966d2a2fa9fca3f0f46fcc8230b56ebca34210d9002bba33d9906bd4b618"),
    ],
)
def test_a_directory_made_before_goes_on(stage, digest, tmp_path):
    """Digests of an earlier version's settings, whose run directories another text would refuse."""
    identity = directory.identity(CONFIG.network, VOCABULARY)
    directory.claim(epath.Path(tmp_path), settings(stage), identity)
    written = json.loads((tmp_path / "stage.json").read_text())
    text = json.dumps(written["settings"], sort_keys=True)
    text = re.sub(r", (microbatches=1|loop=LoopConfig\(eval_every=\d\))", "", text)  # new in 2
    assert written["format"] == 2
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    assert written["model"] == {
        "vocabulary": "words 2 1152822d0dfccb9b",
        "network": NETWORK + ", remat='none')",
    }


def of_roles(stage, vocabulary=None, **roles):
    """Settings of a stage of the tiny run, in which these roles read bytes."""
    config = dataclasses.replace(CONFIG, **roles)
    table = {each.name: each for each in CONFIG.stages}
    read = {role: vocabulary or load("bytes") for role in roles}
    return directory.settings(config, table[stage], VOCABULARIES | read)


LETTERS = RoleConfig(
    dataclasses.replace(CONFIG.network, vocab_size=300),
    "bytes",
    Lengths(prompt=50, reference=60, response=61),
)
WINDOWS = "Lengths(prompt=50, reference=60, response=61)"


def test_settings_have_what_other_roles_add_beside_what_they_had():
    """Windows and vocabularies say which examples there are; networks, those it builds on."""
    network = directory._text(LETTERS.network, directory._result_counts)
    examples = {
        "lengths of gap_reward": WINDOWS,
        "vocabulary of gap_reward": "bytes 2",
    }
    assert of_roles("sft_policy", gap_reward=LETTERS) == settings("sft_policy") | examples
    assert of_roles("rl_pit", gap_reward=LETTERS) == (
        settings("rl_pit") | examples | {"network of gap_reward": network}
    )
    # Of its own role the names are those that they always were.
    own = {"lengths": WINDOWS, "vocabulary": "bytes 2", "network": network}
    others = ("policy", "pit", "policy_reward")
    words = {
        f"{name} of {role}": settings("rm_gap")[name]
        for role in others
        for name in ("lengths", "vocabulary")
    }
    words["network of policy"] = settings("rm_gap")["network"]  # of its warm-up
    assert of_roles("rm_gap", gap_reward=LETTERS) == settings("rm_gap") | own | words
    # What is said of a role and is the same as without is none of its own.
    fields = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(RoleConfig)}
    same = RoleConfig(**fields | {"lengths": None})
    assert of_roles("rl_pit", VOCABULARY, pit=same) == settings("rl_pit")


@pytest.mark.parametrize(
    ("changes", "vocabulary", "message"),
    [
        (
            {"lengths": Lengths(prompt=50, reference=70, response=61)},
            "bytes",
            r"lengths of gap_reward.reference 60 -> 70\.",
        ),
        ({}, "words:requirements", r"vocabulary of gap_reward .*bytes 2.* -> .*words 2"),
        (
            {"network": dataclasses.replace(LETTERS.network, num_layers=2)},
            "bytes",
            r"network of gap_reward.num_layers 1 -> 2\.",
        ),
    ],
)
def test_what_is_changed_of_another_role_is_refused(changes, vocabulary, message, tmp_path):
    folder = epath.Path(tmp_path)
    directory.claim(folder, of_roles("rl_pit", gap_reward=LETTERS), {})
    (folder / "references").mkdir()
    directory.claim(folder, of_roles("rl_pit", gap_reward=LETTERS), {})
    changed = dataclasses.replace(LETTERS, **changes)
    after = of_roles("rl_pit", load(vocabulary), gap_reward=changed)
    with pytest.raises(UserError, match=f"other settings: {message}"):
        directory.claim(folder, after, {})


def test_windows_that_the_data_gave_are_those_of_the_roles_own_stages(tmp_path):
    """`rl_pit` of the tiny run has M_PIT's, every other stage M_P's."""
    found = dataclasses.replace(LETTERS, lengths=Lengths(prompt=70, reference=80, response=81))
    config = dataclasses.replace(CONFIG, pit=found)
    folder = epath.Path(tmp_path)
    asked = dataclasses.replace(config, pit=dataclasses.replace(LETTERS, lengths=NO_WINDOWS))
    for role in ("policy", "pit"):
        assert directory.lengths(folder, asked, role) is None
    for name, role in (("rl_policy", "policy"), ("rl_pit", "pit")):
        stage = next(stage for stage in CONFIG.stages if stage.name == name)
        read = VOCABULARIES | {"pit": load("bytes")}
        directory.claim(folder / name, directory.settings(config, stage, read), {})
        assert directory.lengths(folder, asked, role) == config.of_role(role).windows
    assert directory.lengths(folder, asked, "policy") == CONFIG.lengths


def test_how_a_result_is_computed_does_not_count():
    loop = dataclasses.replace(tiny_runs.LOOP, log_every=7, checkpoint_every=5)
    assert settings("rm_gap", loop=loop) == settings("rm_gap")
    # Only a reward model is evaluated while it is trained.
    loop = dataclasses.replace(loop, eval_every=1)
    assert settings("sft_pit", loop=loop) == settings("sft_pit")
    assert settings("rl_pit", loop=loop, offload_frozen=True) == settings("rl_pit")
    assert of_network(remat="full", attention="xla") == (NETWORK + ")", NETWORK + ", remat='none')")


def test_what_is_computed_counts():
    assert settings("sft_pit", steps=3)["sft_pit"] != settings("sft_pit")["sft_pit"]
    for changes in ({"minibatches": 1}, {"microbatches": 2}):
        ppo = dataclasses.replace(tiny_runs.PPO, **changes)
        assert settings("rl_pit", ppo=ppo) != settings("rl_pit")
    assert settings("sft_pit", microbatches=2) != settings("sft_pit")
    often = dataclasses.replace(tiny_runs.LOOP, eval_every=1)
    assert settings("rm_gap", loop=often) != settings("rm_gap")
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
    before = directory.settings(CONFIG, stage, dict.fromkeys(ROLES, plain))
    after = directory.settings(CONFIG, stage, dict.fromkeys(ROLES, bos))
    assert after == before | {"protocol": "bos 5"}
    plain_identity, identity = (directory.identity(CONFIG.network, v) for v in (plain, bos))
    assert identity == plain_identity | {"protocol": "bos 5"}
    for first, second in ((before, after), (after, before)):
        directory.claim(folder, first, plain_identity)
        (folder / "checkpoints" / "2").mkdir(parents=True)
        with pytest.raises(UserError, match=r"other settings: protocol .*bos 5"):
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


def test_only_a_stage_that_reflects_has_the_window_of_reflections():
    lengths = dataclasses.replace(CONFIG.lengths, reflection=8)
    wide = dataclasses.replace(CONFIG, lengths=lengths)
    (stage,) = (stage for stage in CONFIG.stages if stage.name == "sft_pit")
    assert directory.settings(wide, stage, VOCABULARIES) == settings("sft_pit")
    reflecting = dataclasses.replace(stage, task="sft_pit_reflection")
    found = directory.settings(wide, reflecting, VOCABULARIES)
    assert found["lengths"] == settings("sft_pit")["lengths"][:-1] + ", reflection=8)"


def test_other_settings_are_refused(tmp_path):
    folder, identity = epath.Path(tmp_path), directory.identity(CONFIG.network, VOCABULARY)
    directory.claim(folder, settings("sft_pit"), identity)
    directory.claim(folder, settings("sft_pit", steps=3), identity)  # nothing is trained yet
    (folder / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match=r"other settings: sft_pit.steps 3 -> 2\. Go back"):
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
    now = directory.settings(config, table[stage], VOCABULARIES)
    with pytest.raises(UserError, match=rf"settings: {changed}.optimizer.learning_rate .* -> 0.5"):
        directory.claim(folder, now, identity)


def test_each_field_that_names_a_model_names_what_is_built_on():
    """One at a time, where nothing else leads to the same stage."""
    other = tiny_runs.supervised("other", task="sft_pit")

    def builds_on_other(stage):
        config = tiny_runs.with_stages(CONFIG, other, stage)
        return "other" in directory.settings(config, stage, VOCABULARIES)

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
    with pytest.raises(UserError, match=r"other settings: rl_pit.batch_size 8 -> 16\. Go"):
        directory.claim(folder, settings("rl_pit", batch_size=16), identity)


def test_every_change_is_shown_old_and_new(tmp_path):
    folder = epath.Path(tmp_path)
    before, after = settings("rl_pit"), settings("rl_pit", batch_size=16)
    after |= {"seed": "7", "lengths": after["lengths"].replace("prompt=12", "prompt=13")}
    directory.claim(folder, before, {})
    (folder / "references").mkdir()
    with pytest.raises(UserError) as raised:
        directory.claim(folder, after, {})
    shown = str(raised.value).partition("settings: ")[2].partition(". Go back")[0]
    changes = ["seed 0 -> 7", "rl_pit.batch_size 8 -> 16"]
    for change in changes:
        assert change in shown.split("; ")
    rounds = (Round("data", 1), Round("policy", 4, policy="rl_policy"))
    texts = (directory._text(r, directory._result_counts) for r in (rounds, rounds[::-1]))
    found = list(settings_diff.differing("rounds", *texts))
    assert ("rounds[0].source", "'data'", "'policy'") in found
    assert ("rounds[1].steps", "4", "1") in found
    for before, after, change in (
        ("f(a=1)", "f(a=1, b=2)", ("x.b", "", "2")),
        ("f(a=1)", "g(a=1)", ("x", "f(a=1)", "g(a=1)")),
        ("(1, 2)", "(1,)", ("x", "(1, 2)", "(1,)")),
    ):
        assert list(settings_diff.differing("x", before, after)) == [change]
    assert settings_diff.told([("x", "", repr("a" * 90))]) == f"x (unset) -> '{'a' * 58}…"


# --- rates that are lowered -----------------------------------------------------------------------


def begun(stage, tmp_path, step=4, **changes):
    """A stage's folder with a checkpoint."""
    folder = epath.Path(tmp_path / stage)
    directory.claim(folder, settings(stage, **changes), {}, "a" * 64)
    (folder / "checkpoints" / f"{step}").mkdir(parents=True)
    return folder


def rates(stage="rl_pit", **rates):
    """Settings of a stage with other rates; those of PPO are None or a number."""
    ppo = {name: rates.pop(name) for name in list(rates) if name.startswith("critic")}
    base = tiny_runs.RL_OPTIMIZER if stage == "rl_pit" else tiny_runs.OPTIMIZER
    changes = {"optimizer": dataclasses.replace(base, **rates)}
    if stage == "rl_pit":
        changes["ppo"] = dataclasses.replace(tiny_runs.PPO, **ppo)
    return settings(stage, **changes)


def test_a_lower_rate_is_gone_on_with_if_that_is_asked_for(tmp_path, capsys):
    folder = begun("rl_pit", tmp_path)
    (folder / directory.WANDB_ID).write_text("id")
    before, lower = (folder / "stage.json").read_text(), rates(learning_rate=1e-3, clip_norm=0.5)
    message = (
        r"other settings: rl_pit.optimizer.learning_rate 0.003 -> 0.001; "
        r"rl_pit.optimizer.clip_norm 1.0 -> 0.5. Go back to them, give `run` or `train` "
        r"--allow_change to go on with what is lower, use another MODEL_DIR, or delete"
    )
    for check in (directory.check_claim, lambda *given: directory.claim(*given[:2], {}, given[2])):
        with pytest.raises(UserError, match=message):
            check(folder, lower, "a" * 64)
    assert (folder / "stage.json").read_text() == before
    found = directory.check_claim(folder, lower, "a" * 64, allow_change=True)
    assert [name for name, _, _ in found] == [
        "rl_pit.optimizer.learning_rate",
        "rl_pit.optimizer.clip_norm",
    ]
    assert (folder / "stage.json").read_text() == before
    capsys.readouterr()
    directory.claim(folder, lower, {}, "a" * 64, allow_change=True)
    assert capsys.readouterr().out == (
        "rl_pit: goes on with rl_pit.optimizer.learning_rate 0.003 -> 0.001; "
        "rl_pit.optimizer.clip_norm 1.0 -> 0.5\n"
    )
    assert not (folder / directory.WANDB_ID).exists()
    stage = directory.read_json(folder / "stage.json")
    assert stage["settings"] == lower and stage["data"] == "a" * 64
    assert (
        directory.changes(folder)
        == stage["changes"]
        == [
            {"step": 4, "name": "rl_pit.optimizer.learning_rate", "from": 0.003, "to": 0.001},
            {"step": 4, "name": "rl_pit.optimizer.clip_norm", "from": 1.0, "to": 0.5},
        ]
    )
    # From here on the flag changes nothing, and isn't needed.
    (folder / directory.WANDB_ID).write_text("id")
    for allow in (True, False):
        directory.claim(folder, lower, {}, "a" * 64, allow_change=allow)
        assert directory.check_claim(folder, lower, "a" * 64, allow_change=allow) == []
    assert directory.read_json(folder / "stage.json") == stage and capsys.readouterr().out == ""
    assert (folder / directory.WANDB_ID).exists()
    with pytest.raises(UserError, match=r"learning_rate 0.001 -> 0.003.* Go back to them, use"):
        directory.claim(folder, settings("rl_pit"), {}, "a" * 64, allow_change=True)


@pytest.mark.parametrize(
    ("changes", "lowered"),
    [
        ({"learning_rate": 1e-3}, True),
        ({"clip_norm": 0.5}, True),
        ({"critic_learning_rate": 1e-3}, True),
        ({"learning_rate": 1e-2}, False),
        ({"learning_rate": 1e-3, "clip_norm": 2.0}, False),
        ({"critic_learning_rate": 1.0}, False),
        ({"critic_learning_rate": None}, False),
        ({"weight_decay": 0.0}, False),
        ({"learning_rate": 1e-3, "b2": 0.9}, False),
    ],
)
def test_nothing_but_what_only_lowers_the_risk_may_change(changes, lowered, tmp_path):
    started = {
        "optimizer": dataclasses.replace(tiny_runs.RL_OPTIMIZER, weight_decay=0.1),
        "ppo": dataclasses.replace(tiny_runs.PPO, critic_learning_rate=0.01),
    }
    folder = begun("rl_pit", tmp_path, **started)
    changes = {"weight_decay": 0.1, "critic_learning_rate": 0.01} | changes
    for allow in (False, True):
        if allow and lowered:
            assert len(directory.check_claim(folder, rates(**changes), "a" * 64, {}, allow)) == 1
            continue
        with pytest.raises(UserError, match="was started with other settings") as refused:
            directory.check_claim(folder, rates(**changes), "a" * 64, {}, allow)
        assert ("--allow_change" in str(refused.value)) == lowered


def test_neither_a_complete_stage_nor_another_s_rate_may_change(tmp_path):
    """Nor one whose name begins as the stage's does, nor other data beside a lower rate."""
    lower = rates("sft_pit", learning_rate=1e-3)
    for case in ("complete", "another", "data"):
        folder = begun("sft_pit", tmp_path / case)
        now, data = lower, "a" * 64
        if case == "complete":
            (folder / "result.json").write_text("{}")
        elif case == "another":
            now = settings("sft_pit") | {
                "pretrain": rates("pretrain", learning_rate=1e-3)["pretrain"]
            }
        else:
            data = "b" * 64
        with pytest.raises(UserError, match=r"started with other settings.* Go back to them, use"):
            directory.claim(folder, now, {}, data, allow_change=True)
    assert settings_diff.lowers("rl.1", ("rl.1.optimizer.learning_rate", "0.1", "0.01"))
    assert not settings_diff.lowers("rl", ("rl.1.optimizer.learning_rate", "0.1", "0.01"))


def test_what_changed_after_the_step_it_goes_on_from_holds_from_there(tmp_path):
    """The newest checkpoint is deleted, or damaged; after all of them are, nothing has changed."""
    folder = begun("sft_pit", tmp_path)
    for step, rate in ((4, 1e-3), (8, 5e-4), (12, 1e-4)):
        (folder / "checkpoints" / f"{step}").mkdir(exist_ok=True)
        directory.claim(folder, rates("sft_pit", learning_rate=rate), {}, "a" * 64, {}, True)
    name = "sft_pit.optimizer.learning_rate"

    def found():
        changes = directory.changes(folder)
        assert all(change["name"] == name for change in changes)
        return [(change["step"], change["from"], change["to"]) for change in changes]

    directory.went_on(folder, 12)
    assert found() == [(4, 3e-3, 1e-3), (8, 1e-3, 5e-4), (12, 5e-4, 1e-4)]
    directory.went_on(folder, 8)
    assert found() == [(4, 3e-3, 1e-3), (8, 1e-3, 1e-4)]
    directory.went_on(folder, 0)
    assert found() == []
    directory.went_on(epath.Path(tmp_path / "none"), 0)
    assert directory.changes(epath.Path(tmp_path / "none")) == []


def test_other_examples_are_refused_and_the_same_ones_elsewhere_are_not(tmp_path):
    """Of a directory made before, it isn't known which examples it had."""
    folder, stage = epath.Path(tmp_path), settings("sft_pit")
    moved = stage | {"dataset": stage["dataset"].replace("path=''", "path='elsewhere'")}
    directory.claim(folder, stage, {}, "a" * 64)
    (folder / "references").mkdir()
    directory.claim(folder, moved, {}, "a" * 64)
    directory.check_data(folder, "a" * 64)
    with pytest.raises(UserError, match=r"the examples of the data \(aaaaaaaa -> bbbbbbbb\)"):
        directory.claim(folder, stage, {}, "b" * 64)
    with pytest.raises(UserError, match="was trained on other examples than the data has now"):
        directory.check_data(folder, "b" * 64)
    old = json.loads((tmp_path / "stage.json").read_text())
    del old["data"], old["sha256"]
    (tmp_path / "stage.json").write_text(json.dumps(old))
    directory.claim(folder, stage, {}, "b" * 64)
    directory.check_data(folder, "b" * 64)
    directory.claim(epath.Path(tmp_path / "files"), moved, {}, "a" * 64)
    (tmp_path / "files" / "references").mkdir()
    with pytest.raises(UserError, match=r"settings: the examples of elsewhere \(aaaaaaaa -> "):
        directory.claim(epath.Path(tmp_path / "files"), moved, {}, "b" * 64)
    with pytest.raises(UserError, match="was trained on other examples than elsewhere has now"):
        directory.check_data(epath.Path(tmp_path / "files"), "b" * 64)
    with pytest.raises(UserError, match=r"other settings: dataset.path '' -> 'elsewhere'"):
        directory.claim(folder, moved, {}, "b" * 64)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "stage.json").write_text(content)
    (tmp_path / "references").mkdir()
    with pytest.raises(UserError, match="stage.json: is damaged, expected a JSON object; bring"):
        directory.claim(epath.Path(tmp_path), settings("sft_pit"), {}, "a")


def test_a_result_alone_is_a_stages_too(tmp_path):
    """Of one whose checkpoints were deleted to have room."""
    folder = epath.Path(tmp_path)
    directory.claim(folder, settings("sft_pit"), {})
    (folder / "result.json").write_text("{}")
    before = (folder / "stage.json").read_text()
    with pytest.raises(UserError, match=r"sft_pit.steps 2 -> 3\. Go back"):
        directory.claim(folder, settings("sft_pit", steps=3), {})
    assert (folder / "stage.json").read_text() == before


@pytest.mark.parametrize("left", ["checkpoints/2", "references/round-0", "result.json"])
def test_a_stage_of_which_nothing_is_known_is_nobodys(left, tmp_path):
    (tmp_path / left).mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds a stage without stage.json, .* bring that back"):
        directory.claim(epath.Path(tmp_path), settings("sft_pit"), {})
    assert not (tmp_path / "stage.json").exists()


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "rm_gap",
            {"loop": dataclasses.replace(tiny_runs.LOOP, eval_every=1)},
            "rm_gap.loop.eval_every 0 -> 1",
        ),
        ("sft_pit", {"microbatches": 2}, "sft_pit.microbatches 1 -> 2"),
        (
            "rl_pit",
            {"ppo": dataclasses.replace(tiny_runs.PPO, microbatches=2)},
            "rl_pit.ppo.microbatches 1 -> 2",
        ),
    ],
)
def test_what_an_earlier_version_did_not_record_is_said(stage, changes, message, tmp_path, capsys):
    """It is refused where it is known, and else the stage goes on."""
    folder = epath.Path(tmp_path / stage)
    directory.claim(folder, settings(stage), {}, "a" * 64, {f"{stage}.initial": "b" * 32})
    (folder / "references").mkdir()
    with pytest.raises(UserError, match=rf"other settings: {message}\. Go back"):
        directory.claim(folder, settings(stage, **changes), {}, "a" * 64)
    old = json.loads((folder / "stage.json").read_text())
    del old["format"], old["models"], old["data"], old["sha256"]
    late = r", (microbatches=1|loop=LoopConfig\(eval_every=\d\))"
    old["settings"] = {name: re.sub(late, "", text) for name, text in old["settings"].items()}
    (folder / "stage.json").write_text(json.dumps(old))
    capsys.readouterr()
    now = settings(stage, **changes)
    directory.claim(folder, now, {}, "a" * 64, {f"{stage}.initial": "c" * 32})
    said = capsys.readouterr().out
    assert said.startswith(f"{stage}: couldn't check {stage}.initial, ") and said.count("\n") == 1
    assert message.partition(" ")[0].removesuffix(".eval_every") in said and "examples" in said
    assert json.loads((folder / "stage.json").read_text()) == old
    with pytest.raises(UserError, match=r"batch_size 8 -> 16"):
        directory.claim(folder, settings(stage, **changes, batch_size=16), {}, "a" * 64)
    (folder / "result.json").write_text("{}")  # nothing is to be gone on with
    directory.claim(folder, now, {}, "a" * 64)
    assert capsys.readouterr().out == ""


def test_a_model_is_known_by_its_content_and_not_by_its_place(tmp_path):
    folder = epath.Path(tmp_path)
    here, there = (settings("sft_pit", initial=f"/{place}/model") for place in ("here", "there"))
    directory.claim(folder, here, {}, "", {"sft_pit.initial": "a" * 32})
    (folder / "references").mkdir()
    directory.claim(folder, there, {}, "", {"sft_pit.initial": "a" * 32})
    for now in (here, there):
        with pytest.raises(UserError, match=r"model of sft_pit.initial \(aaaaaaaa -> bbbbbbbb\)"):
            directory.claim(folder, now, {}, "", {"sft_pit.initial": "b" * 32})
    directory.claim(folder, here, {}, "", {"sft_pit.initial": ""})  # it isn't there any more
    with pytest.raises(UserError, match="initial '/here/model' -> '/there/model'"):
        directory.claim(folder, there, {}, "", {"sft_pit.initial": ""})


def test_no_flipped_bit_of_what_is_written_gives_other_values(tmp_path):
    """It is refused, or changes white space or a name that nothing reads."""
    path = epath.Path(tmp_path) / "result.json"
    value = {"model_step": 4, "final": {"loss": 0.125}, "name": "rm_é", "rounds": (1, 2)}
    directory.write_json(path, value)
    read = {**value, "rounds": [1, 2]}
    assert directory.read_json(path) == read
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert read.items() <= directory.read_json(path).items()
        except UserError as error:
            assert re.search(
                r"result.json: is damaged, .*; bring it back from a copy, or delete", str(error)
            )
            refused += 1
    assert refused > 0.8 * len(whole)


def test_two_files_in_each_other_s_places_are_refused(tmp_path):
    folder = epath.Path(tmp_path)
    directory.write_json(folder / "result.json", {"model_step": 4})
    (folder / "result.json").rename(folder / "stage.json")
    with pytest.raises(
        UserError, match="stage.json: is damaged, its content isn't what its sha256"
    ):
        directory.read_json(folder / "stage.json")


@pytest.mark.parametrize("name", ["stage.json", "result.json", "choice.json"])
def test_two_stages_files_in_each_other_s_places_are_refused_by_name(name, tmp_path):
    folders = [epath.Path(tmp_path) / stage for stage in ("rm_gap", "rm_policy")]
    for folder in folders:
        for each in ("stage.json", "result.json", "choice.json"):
            directory.write_json(folder / each, {"name": folder.name, "settings": {}})
    (tmp_path / "rm_gap").rename(tmp_path / "copy")  # with all of its files, which is allowed
    assert directory.read_json(epath.Path(tmp_path) / "copy" / name)["name"] == "rm_gap"
    (tmp_path / "copy").rename(tmp_path / "rm_gap")
    (tmp_path / "rm_policy" / name).rename(tmp_path / "rm_gap" / name)
    with pytest.raises(UserError) as refusal:
        directory.read_json(folders[0] / name)
    assert str(refusal.value) == (
        f"{folders[0]}/{name}: is damaged, it is that of stage rm_policy; bring it back from a "
        f"copy, or delete {folders[0]} to train the stage again"
    )


def test_the_stage_json_of_another_unfinished_stage_is_refused_by_name(tmp_path):
    folders = [epath.Path(tmp_path) / stage for stage in ("rm_gap", "rm_policy")]
    for folder in folders:
        directory.claim(folder, settings("rm_gap"), {})
        (folder / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "rm_policy" / "stage.json").rename(tmp_path / "rm_gap" / "stage.json")
    with pytest.raises(UserError, match=r"rm_gap/stage.json: is damaged, it is that of stage rm_p"):
        directory.check_claim(folders[0], settings("rm_gap"))


def test_what_an_earlier_version_wrote_is_read(tmp_path):
    (tmp_path / "result.json").write_text('{"model_step": 4, "task": "rm_gap"}')
    found = directory.read_json(epath.Path(tmp_path) / "result.json")
    assert found == {"model_step": 4, "task": "rm_gap"}


@pytest.mark.parametrize(
    ("name", "key"),
    [("stage.json", "settings"), ("result.json", "task"), ("choice.json", "checkpoints")],
)
def test_another_json_file_in_the_place_of_ours_is_refused(name, key, tmp_path):
    """Such as one of orbax's, which has no digest, as ours of earlier versions have none."""
    (tmp_path / name).write_text('{"item_handlers": {}, "metrics": {}}')
    with pytest.raises(UserError, match=f"{name}: is damaged, expected '{key}' in it; bring it b"):
        directory.read_json(epath.Path(tmp_path) / name)


STAGE = {"settings": {"seed": "0"}, "model": {"network": "n"}, "models": {}, "data": "d"}
RESULT = {"task": "rm_gap", "model_step": 4, "steps": 4, "digest": "d", "records": {}}
CHOICE = {"checkpoints": [], "chosen": 1, "proposed": 1, "settings": {"groups": 3}}


@pytest.mark.parametrize(
    ("name", "whole", "key", "values"),
    [
        ("stage.json", STAGE, "settings", (None, [], {"seed": 0}, {"dataset": None}, "text")),
        ("stage.json", STAGE, "model", (None, {"network": None}, 1)),
        ("stage.json", STAGE, "models", (None, {"rm.initial": 3})),
        ("stage.json", STAGE, "data", (5, None)),
        ("result.json", RESULT, "model_step", (None, "4", 4.0, True)),
        ("result.json", RESULT, "digest", (None, 7)),
        ("result.json", RESULT, "records", ([],)),
        ("choice.json", CHOICE, "chosen", (None, "1")),
        ("choice.json", CHOICE, "checkpoints", ({},)),
    ],
)
def test_a_file_without_a_digest_has_to_hold_what_it_should(name, whole, key, values, tmp_path):
    """It is one of an earlier version, or somebody has changed it by hand."""
    path = epath.Path(tmp_path) / name
    path.write_text(json.dumps(whole))
    assert directory.read_json(path) == whole
    for value in values:
        path.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(UserError, match=f"{name}: is damaged, '{key}' isn't what it has to be"):
            directory.read_json(path)


def test_a_stages_file_beside_one_without_a_name_is_no_renamed_folder(tmp_path):
    (tmp_path / "rl_pit").mkdir()
    path = epath.Path(tmp_path) / "rl_pit" / "result.json"
    path.write_text(json.dumps({**RESULT, "name": "rl_policy"}))
    (tmp_path / "rl_pit" / "stage.json").write_text(json.dumps(STAGE))  # of an earlier version
    with pytest.raises(UserError, match="result.json: is damaged, it is that of stage rl_policy"):
        directory.read_json(path)


def test_only_a_step_s_own_number_names_a_checkpoint(tmp_path):
    for name in ("0", "30", "²", "٣", "0099", "2.damaged", "-1", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert sorted(directory.steps(epath.Path(tmp_path))) == [0, 30]


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = epath.Path(tmp_path) / "result.json"
    directory.write_json(path, {"steps": 1})
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="result.json: can't be written: No space left on device"):
        directory.write_json(path, {"steps": 2})
    assert directory.read_json(path) == {"steps": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
