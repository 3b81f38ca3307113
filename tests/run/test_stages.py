"""What a stage is made of: valid settings, starting states, what is taken from other stages."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.data import layouts
from pit_jax.errors import UserError
from pit_jax.method import forward, objectives
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Networks
from pit_jax.method.objectives import RewardConfig
from pit_jax.method.ppo import PPOConfig
from pit_jax.method.ppo_step import RLState
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel, in_compute_type
from pit_jax.run import stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig
from tests import tiny_runs
from tests.tiny_models import TINY, random_params

ONE_DEVICE = Partitioner(MeshConfig(), jax.devices()[:1])
DATA = (Round("data", 1),)
NO_REFERENCE = (Round("none", 1),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tiny_runs.supervised("x", task="rm_gap"),
            r"stage x: got task='rm_gap', expected one of \('pretrain', 'sft_policy', 'sft_pit', ",
        ),
        (lambda: tiny_runs.reward("x", task="sft_pit"), "expected one of .'rm_policy', 'rm_gap'."),
        (lambda: tiny_runs.rl("rl_pit", NO_REFERENCE), "got a round of source 'none'"),
        (lambda: tiny_runs.rl("rl_policy", DATA), "got a round of source 'data'; rl_policy takes"),
        (lambda: tiny_runs.rl("rl_pit", ()), "stage rl_pit: got steps=0, expected 1 or more"),
        (lambda: tiny_runs.supervised("pretrain", 0), "stage pretrain: got steps=0"),
        (
            lambda: tiny_runs.supervised("pretrain", microbatches=3),
            "got batch_size=8, expected a multiple of microbatches=3",
        ),
        (
            lambda: tiny_runs.reward("rm_gap", microbatches=0),
            "got batch_size=8, expected a multiple of microbatches=0",
        ),
        (
            lambda: tiny_runs.rl("rl_pit", DATA, ppo=PPOConfig(minibatches=3)),
            "got batch_size=8, expected a multiple of minibatches x microbatches=3",
        ),
    ],
)
def test_mistakes_in_a_stage_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_task_of_the_data_has_a_kind_of_stage():
    kinds = (stages.SUPERVISED_TASKS, stages.REWARD_TASKS, stages.RL_TASKS)
    tasks = {task for kind in kinds for task in kind}
    assert tasks | {"rm_gap_pair"} == set(layouts.FEATURES) and len(tasks) == len(sum(kinds, ()))


def test_rows_are_those_that_the_loss_reads():
    gap = tiny_runs.reward("rm_gap")
    assert stages.rows_of(gap) == "rm_gap"
    for kind, rows in (("two_term", "rm_gap_pair"), ("pointwise", "rm_gap")):
        changed = dataclasses.replace(gap, reward=RewardConfig(gap_loss=kind))
        assert stages.rows_of(changed) == rows
        policy = dataclasses.replace(changed, task="rm_policy")
        assert stages.rows_of(policy) == "rm_policy"
    assert stages.rows_of(tiny_runs.supervised("sft_pit_reflection")) == "sft_pit_reflection"


def test_a_model_is_of_the_role_of_its_task_and_a_warm_up_of_any():
    kinds = (stages.SUPERVISED_TASKS, stages.REWARD_TASKS, stages.RL_TASKS)
    assert set(stages.ROLE_OF) == {task for kind in kinds for task in kind}
    roles = {stage.name: stages.role_of(stage) for stage in tiny_runs.config("x").stages}
    assert roles == {
        "pretrain": "policy",
        "sft_policy": "policy",
        "sft_pit": "pit",
        "rm_policy": "policy_reward",
        "rm_gap": "gap_reward",
        "rl_policy": "policy",
        "rl_pit": "pit",
    }
    for role in ("policy", "pit", "policy_reward", "gap_reward"):
        assert stages.role_of(tiny_runs.supervised("pretrain", role=role)) == role
    for task, role in (("pretrain", "judge"), ("sft_pit", "pit")):
        with pytest.raises(ValueError, match=f"got role='{role}', expected one of .*'pit'.* warm-"):
            tiny_runs.supervised(task, role=role)


def test_the_reward_model_of_ppo_is_of_the_role_of_its_task():
    rounds = (Round("data", 1),)
    stage = tiny_runs.rl("rl_pit", rounds)
    tasks = {
        "rl_policy": "policy_reward",
        "rl_pit": "gap_reward",
        "rl_pit_difference": "policy_reward",
    }
    for task, role in tasks.items():
        fields = {"task": task, "rounds": NO_REFERENCE if task == "rl_policy" else rounds}
        assert stages.reward_role(dataclasses.replace(stage, **fields)) == role


def test_steps_of_all_rounds():
    assert tiny_runs.rl("rl_pit", (Round("data", 3), Round("policy", 4))).steps == 7


@pytest.mark.parametrize(
    "stage",
    [
        tiny_runs.supervised("sft_pit"),
        tiny_runs.reward("rm_gap"),
        tiny_runs.rl("rl_policy", NO_REFERENCE),
    ],
    ids=lambda stage: stage.name,
)
def test_starting_states(stage):
    state = jax.eval_shape(
        lambda key: stages.create_state(stage, Networks.same(TINY), ONE_DEVICE, key),
        jax.random.key(0),
    )
    train = state.train if isinstance(state, RLState) else state
    shapes = {
        "language": stages.init_language_model(TINY),
        "scalar": stages.init_scalar_model(TINY),
    }
    shapes = {
        name: nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
        for name, init in shapes.items()
    }
    expected = {
        "sft_pit": shapes["language"],
        "rm_gap": shapes["scalar"],
        "rl_policy": {"actor": shapes["language"], "critic": shapes["scalar"]},
    }[stage.name]
    assert jax.tree.structure(train.params) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(train.params), jax.tree.leaves(expected)):
        assert leaf.shape == other.shape and leaf.dtype == jnp.float32
    if isinstance(state, RLState):
        assert state.beta.dtype == state.moments.count.dtype == jnp.float32


def test_ppo_starts_with_its_beta_and_an_optimizer_for_actor_and_critic(monkeypatch):
    for name in ("init_language_model", "init_scalar_model"):
        monkeypatch.setattr(stages, name, lambda network: lambda key: jnp.zeros(2))
    ppo = dataclasses.replace(tiny_runs.PPO, beta=0.25, critic_warmup=1)
    stage = tiny_runs.rl("rl_policy", NO_REFERENCE, ppo=ppo)
    state = stages.starting_state(stage, Networks.same(TINY))(jax.random.key(0))
    assert float(state.beta) == 0.25
    grads = {"actor": jnp.ones(2), "critic": jnp.ones(2)}
    train, _ = state.train.apply_gradients(grads, jnp.float32(0))
    assert not np.any(train.params["actor"]) and np.all(train.params["critic"])


def test_random_starts_follow_the_key():
    stage = tiny_runs.supervised("pretrain")
    first, again, other = (
        stages.create_state(
            stage, Networks.same(tiny_runs.NETWORK), ONE_DEVICE, jax.random.key(seed)
        ).params
        for seed in (0, 0, 1)
    )
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(again)):
        np.testing.assert_array_equal(one, two)
    embeddings = [each["decoder"]["embed"]["embedding"] for each in (first, other)]
    assert (np.asarray(embeddings[0]) != np.asarray(embeddings[1])).all()


def test_a_reward_model_takes_a_language_models_decoder_and_its_own_head():
    untied = dataclasses.replace(TINY, tied_embeddings=False)
    scalar = random_params(ScalarModel(untied), seed=1)
    language = random_params(LanguageModel(untied), seed=2)
    made = stages.reward_from_language_model(scalar, language)
    assert jax.tree.structure(made) == jax.tree.structure(scalar)
    assert made["head"] is scalar["head"]
    assert made["decoder"]["layers"] is language["decoder"]["layers"]


def values(params):
    prompt, response = np.array([[3, 4]]), np.array([[5, 1]])
    model = ScalarModel(TINY)
    return np.asarray(forward.response_values(model, params, prompt, response, response > 0))


def test_critics():
    reward = random_params(ScalarModel(TINY), seed=1)
    assert stages.critic_from_reward_model(reward, "last") is reward
    summed = stages.critic_from_reward_model(reward, "sum")
    assert values(reward).any() and not values(summed).any()
    assert summed["decoder"] is reward["decoder"]
    actor = random_params(LanguageModel(TINY), seed=2)
    critic = stages.critic_from_actor(reward, actor)
    assert not values(critic).any()
    assert critic["decoder"]["embed"] is actor["decoder"]["embed"]


def test_a_copy_shares_no_buffer():
    params = {"w": jnp.arange(3.0)}
    copy = stages.own_copy(params)
    np.testing.assert_array_equal(copy["w"], params["w"])
    assert copy["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
    assert copy["w"].sharding == params["w"].sharding


def test_abstract_models_need_no_memory():
    shapes = stages.abstract_model(stages.init_scalar_model(TINY), ONE_DEVICE)
    params = random_params(ScalarModel(TINY))
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(params)):
        assert isinstance(shape, jax.ShapeDtypeStruct) and shape.shape == leaf.shape
        assert shape.sharding.mesh == ONE_DEVICE.mesh


def test_each_task_has_its_objective():
    for stage, make in (
        (tiny_runs.supervised("sft_pit"), objectives.supervised),
        (tiny_runs.reward("rm_policy"), objectives.reward),
        (tiny_runs.reward("rm_gap"), objectives.gap_reward),
    ):
        assert stages.objective(stage, TINY).__qualname__ == f"{make.__name__}.<locals>.loss"


def test_only_unlikelihood_pays_for_its_second_pass(monkeypatch):
    monkeypatch.setattr(objectives, "supervised", lambda network, unlikelihood: unlikelihood)
    found = {t: stages.objective(tiny_runs.supervised(t), TINY) for t in stages.SUPERVISED_TASKS}
    assert {task for task, unlikelihood in found.items() if unlikelihood} == set(layouts.UNLIKELY)


def test_held_out_pairs_have_all_their_scores(monkeypatch):
    trees = []
    monkeypatch.setattr(
        objectives,
        "gap_reward",
        lambda network, config, tree="whole", widths=None: trees.append((tree, widths)),
    )
    widths = layouts.widths(tiny_runs.LENGTHS, 0)
    stage = tiny_runs.reward("rm_gap", reward=RewardConfig(gap_loss="two_term"))
    stages.objective(stage, TINY, widths)
    stages.held_out_objective(stage, TINY, widths)
    assert trees == [(layouts.GAP_PAIR_TREE, widths), ("whole", widths)]


@pytest.mark.mesh
def test_a_batch_must_split_over_the_mesh():
    stage = tiny_runs.supervised("sft_policy", 1, batch_size=8, microbatches=2)
    stages.check_mesh(stage, tiny_runs.NETWORK, Partitioner(MeshConfig(model=2)))
    with pytest.raises(
        UserError, match="got batch_size=8 in 2 parts, expected a multiple of 2 x 8"
    ):
        stages.check_mesh(stage, tiny_runs.NETWORK, Partitioner(MeshConfig()))
    ppo = dataclasses.replace(tiny_runs.PPO, minibatches=2, microbatches=2)
    with pytest.raises(UserError, match="stage rl_policy: got batch_size=8 in 4 parts"):
        stages.check_mesh(
            tiny_runs.rl("rl_policy", (Round("none", 1),), ppo=ppo),
            tiny_runs.NETWORK,
            Partitioner(MeshConfig(model=2)),
        )
    with pytest.raises(UserError, match="mesh: got model=8, expected a divisor of 2 heads"):
        stages.check_mesh(stage, tiny_runs.NETWORK, Partitioner(MeshConfig(model=8)))


def test_frozen_models_have_their_matrices_in_the_compute_type():
    network = dataclasses.replace(tiny_runs.NETWORK, dtype="bfloat16")
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    init = stages.init_scalar_model(network)
    frozen = stages.abstract_frozen(init, network, partitioner)
    types = {
        jax.tree_util.keystr(path): str(x.dtype)
        for path, x in jax.tree_util.tree_leaves_with_path(frozen)
    }
    assert types.pop("['head']['kernel']") == "float32"  # scores are computed in float32
    norms = {name for name, dtype in types.items() if dtype == "float32"}
    assert norms and all("norm" in name for name in norms) and len(norms) < len(types)
    params = nn.meta.unbox(jax.jit(init)(jax.random.key(0)))
    given = jnp.array([[3, 4, 5]]), jnp.array([[0, 1, 2]]), jnp.tril(jnp.ones((1, 3, 3), bool))
    score = jax.jit(ScalarModel(network).apply)
    whole = score({"params": params}, *given)
    np.testing.assert_array_equal(
        whole, score({"params": in_compute_type(params, network)}, *given)
    )


# --- settings of a stage ------------------------------------------------------------------------

KINDS = [
    tiny_runs.supervised("sft_pit"),
    tiny_runs.reward("rm_gap"),
    tiny_runs.rl("rl_policy", NO_REFERENCE),
]


@pytest.mark.parametrize("stage", KINDS, ids=lambda stage: stage.name)
def test_each_kind_of_stage_steps_by_its_own_optimizer(stage):
    """The first step of Adam, whose epsilon is far above the gradient."""
    for rate in (0.5, 0.25):
        config = OptimizerConfig(learning_rate=rate, epsilon=1.0)
        rule = stages.optimizer(dataclasses.replace(stage, optimizer=config))
        params = {"actor": jnp.zeros(1), "critic": jnp.zeros(1)}
        grads = jax.tree.map(lambda x: x + 0.25, params)
        updates, _ = rule.update(grads, rule.init(params), params)
        for update in jax.tree.leaves(updates):
            np.testing.assert_allclose(update, -rate * 0.25 / 1.25, rtol=1e-5)


def test_ppo_starts_with_its_beta_and_a_key_for_each_network(monkeypatch):
    def init(network):
        return lambda key: jax.random.normal(key, (3,))

    monkeypatch.setattr(stages, "init_language_model", init)
    monkeypatch.setattr(stages, "init_scalar_model", init)
    for beta in (0.125, 0.5):
        ppo = dataclasses.replace(tiny_runs.PPO, beta=beta)
        create = stages.starting_state(dataclasses.replace(KINDS[2], ppo=ppo), Networks.same(TINY))
        one, other = create(jax.random.key(0)), create(jax.random.key(1))
        assert float(one.beta) == beta and float(one.moments.count) == 0
        drawn = [tuple(x.tolist()) for s in (one, other) for x in s.train.params.values()]
        assert len(set(drawn)) == 4


def test_a_reward_model_is_trained_as_its_reward_says(monkeypatch):
    found = []
    for name in ("reward", "gap_reward"):
        monkeypatch.setattr(objectives, name, lambda network, config, *_: found.append(config))
    configs = [RewardConfig(pooling="sum", centring=0.5), RewardConfig(gap_loss="two_term")]
    for task in ("rm_policy", "rm_gap"):
        for config in configs:
            stages.objective(tiny_runs.reward("x", task=task, reward=config), TINY)
    assert found == configs * 2


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", ".x", "a\\b", "a\0", "a\n", "x" * 101, "data_cache"]
)
def test_a_stage_is_a_folder_of_the_run_directory(name, tmp_path):
    with pytest.raises(UserError, match="stage: got the name .*expected that of a folder"):
        tiny_runs.supervised(name, task="pretrain")
    if "/" not in name:
        run = tiny_runs.on_one_device(tiny_runs.config(tmp_path))
        with pytest.raises(UserError, match="stage: got the name"):
            run.folder(name)
