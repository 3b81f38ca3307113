"""Rules, shardings, and equal results on eight simulated devices and on one."""

from __future__ import annotations

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

from pit_jax.errors import UserError
from pit_jax.method import decode
from pit_jax.method.losses import sft_loss
from pit_jax.models.network import LanguageModel
from pit_jax.runtime import partitioning
from pit_jax.runtime.partitioning import DEFAULT_RULES, MeshConfig, OnHost, Partitioner, constrain
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests.tiny_models import TINY, abstract_params, inputs_of, random_params

pytestmark = pytest.mark.mesh

CONFIG = dataclasses.replace(TINY, tied_embeddings=False)
MODEL = LanguageModel(CONFIG)
RELATIVE = LanguageModel(dataclasses.replace(CONFIG, positions="relative", scale_attention=False))


@pytest.fixture(scope="module")
def mesh():
    return Partitioner(MeshConfig(data=4, model=2))


@pytest.fixture(scope="module")
def single():
    return Partitioner(MeshConfig(), devices=jax.devices()[:1])


# --- arrangement of a TPU's devices ---------------------------------------------------------------


class Chip:
    """Stands for a device of a TPU slice, as JAX describes it."""

    platform, device_kind, core_on_chip, process_index = "tpu", "TPU v4", 0, 0

    def __init__(self, number, slice_index, coords):
        self.id, self.slice_index, self.coords = number, slice_index, coords


def chips(slices, rows, columns):
    places = itertools.product(range(slices), range(rows), range(columns))
    return [Chip(n, s, (x, y, 0)) for n, (s, x, y) in enumerate(places)]


def test_each_slice_holds_whole_data_and_model_axes():
    """Only the slice axis crosses the network between slices."""
    devices = chips(2, 4, 2)
    devices = devices[::2] + devices[1::2]  # the order in which they are found says nothing
    array = partitioning._arranged(devices, (2, 2, 4))
    assert array.shape == (2, 2, 4)
    found = [{chip.slice_index for chip in part.flat} for part in array]
    assert found in ([{0}, {1}], [{1}, {0}])
    assert len({chip.id for chip in array.flat}) == 16


def test_neighbours_on_the_model_axis_are_neighbours_on_the_chip_grid():
    array = partitioning._arranged(chips(1, 4, 2)[::-1], (1, 4, 2))
    assert array.shape == (1, 4, 2)
    for one, other in array.reshape(4, 2):
        assert sum(abs(a - b) for a, b in zip(one.coords, other.coords)) == 1


@pytest.mark.parametrize("slices", [1, 2])
def test_a_slice_may_be_several_of_the_mesh(slices):
    """Four parts with all parameters each; those of a slice follow each other."""
    array = partitioning._arranged(chips(slices, 8 // slices, 2), (4, 2, 2))
    assert array.shape == (4, 2, 2) and len({chip.id for chip in array.flat}) == 16
    found = [{chip.slice_index for chip in part.flat} for part in array]
    assert all(len(each) == 1 for each in found)
    assert [*itertools.chain(*found)] in ([0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0])


def test_slices_are_those_that_there_are():
    with pytest.raises(UserError, match="mesh: got slices=1, expected 2, the slices there are"):
        partitioning._arranged(chips(2, 2, 2), (1, 4, 2))


def test_a_shape_that_the_slices_cannot_have_is_one_line():
    odd = [*chips(2, 2, 2)[:-1], Chip(8, 0, (2, 0, 0))]  # five chips of one, three of another
    with pytest.raises(UserError, match=r"mesh: \(2, 2, 2\) doesn't suit these slices: "):
        partitioning._arranged(odd, (2, 2, 2))


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(model=2), (1, 4, 2)),
        (MeshConfig(data=2, model=4), (1, 2, 4)),
        (MeshConfig(model=8), (1, 1, 8)),
        (MeshConfig(slices=2, model=2), (2, 2, 2)),
    ],
)
def test_mesh_shape(config, shape):
    mesh = Partitioner(config).mesh
    assert mesh.axis_names == ("slice", "data", "model")
    assert mesh.devices.shape == shape


def test_a_mesh_that_is_arranged_already_is_taken_as_it_is():
    """Also one without an axis for slices, as T5X makes them."""
    devices = np.asarray(jax.devices())[::-1].reshape(4, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    partitioner = Partitioner(MeshConfig(model=3), mesh=mesh)
    assert partitioner.mesh is mesh and partitioner.row_shards == 4
    assert partitioner.spec(("batch", "mlp"), (8, 6)) == Spec("data", "model")
    batch = partitioner.shard_batch({"x": np.arange(8.0)})
    assert partitioner.shard_batch(batch)["x"] is batch["x"]  # on the devices already
    np.testing.assert_array_equal(batch["x"], np.arange(8.0))


@pytest.mark.parametrize("fields", [{"model": 0}, {"slices": 0}, {"model": -1}], ids=str)
def test_an_axis_of_no_devices_is_refused(fields):
    ((name, value),) = fields.items()
    with pytest.raises(UserError, match=f"mesh: got {name}={value}, expected 1 or more"):
        Partitioner(MeshConfig(**fields))


@pytest.mark.parametrize(("data", "model"), [(3, 2), (-1, 3), (-1, 16), (4, 4)])
def test_mesh_that_does_not_fit_is_rejected(data, model):
    message = rf"got slices=1 x data={data} x model={model}, expected a product of 8, the number"
    with pytest.raises(ValueError, match=message):
        Partitioner(MeshConfig(data=data, model=model))


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("vocab", "embed"), (16, 8), Spec("model", "data")),
        (("embed", "heads", "kv"), (8, 4, 4), Spec("data", "model", None)),
        (("layers", "embed", "mlp"), (2, 8, 12), Spec(None, "data", "model")),
        (("embed", "scalar"), (8, 1), Spec("data", None)),
        (("batch", None), (8, 3), Spec("data", None)),
        (("batch", "length", "activation_embed"), (8, 3, 8), Spec("data", None, None)),
        (("vocab", "embed"), (15, 6), Spec(None, None)),  # neither divides
        (("embed", "mlp"), (6, 12), Spec(None, "model")),  # 6 rows over 4 devices don't
        (("batch", "embed"), (8, 8), Spec("data", None)),  # `data` is taken
        (("heads", "mlp"), (3, 4), Spec(None, "model")),  # a dim that stays whole takes nothing
        ((), (), Spec()),
    ],
)
def test_spec(mesh, names, shape, expected):
    assert mesh.spec(names, shape) == expected


def test_unknown_axis_names_the_choices(mesh):
    with pytest.raises(
        ValueError, match=r"no rule for the logical axis 'colour', expected one of \['activation_b"
    ):
        mesh.spec(("colour",), (8,))


def test_names_and_dims_must_pair_up(mesh):
    with pytest.raises(ValueError):
        mesh.spec(("batch",), (8, 8))


def test_first_rule_of_a_name_counts():
    rules = (("batch", None), *DEFAULT_RULES)
    assert Partitioner(MeshConfig(model=2, rules=rules)).spec(("batch",), (8,)) == Spec(None)


def test_rows_go_over_slices_and_data_but_parameters_stay_on_a_slice():
    mesh = Partitioner(MeshConfig(slices=2, model=2))
    assert mesh.spec(("batch", "length"), (8, 5)) == Spec(("slice", "data"), None)
    assert mesh.spec(("embed", "mlp"), (8, 6)) == Spec("data", "model")
    assert mesh.spec(("batch",), (6,)) == Spec(None)  # 6 rows over 4 parts don't
    assert mesh.row_shards == 4


def test_decoding_splits_activations_as_parameters_are(mesh):
    names, shape = ("activation_batch", "activation_length", "activation_embed"), (8, 1, 8)
    assert mesh.spec(names, shape) == Spec("data", None, None)
    assert mesh.spec(names, shape, decoding=True) == Spec(None, None, "data")
    own = MeshConfig(model=2, decode_rules=(("activation_embed", None),))
    assert Partitioner(own).spec(names, shape, decoding=True) == Spec("data", None, None)


def test_sequence_parallelism_splits_the_residual_stream():
    mesh = Partitioner(MeshConfig(model=2, sequence_parallel=True))
    names = ("activation_batch", "activation_length", "activation_embed")
    assert mesh.spec(names, (8, 6, 8)) == Spec("data", "model", None)
    assert mesh.spec(names, (8, 5, 8)) == Spec("data", None, None)


def test_constrain_outside_a_partitioner_does_nothing():
    x = jnp.ones((8, 2))
    assert constrain(x, "batch", None) is x
    assert constrain(x, "no such axis", None) is x


def test_constrain_inside_a_partitioner_shards(mesh):
    result = mesh.jit(lambda x: constrain(x * 1, "batch", "mlp"))(jnp.ones((8, 2)))
    assert result.sharding.spec == Spec("data", "model")
    assert constrain(result, "batch", "mlp") is result  # the partitioner is inactive again

    def decode(x):
        with partitioning.decoding():
            return constrain(x * 1, "activation_batch", "activation_embed")

    assert mesh.jit(decode)(jnp.ones((8, 8))).sharding.spec == Spec(None, "data")


def test_arrays_wait_on_the_host_and_come_back(mesh):
    sharding = mesh.sharding(("embed", "mlp"), (8, 4))
    array = jax.device_put(np.arange(32.0).reshape(8, 4), sharding)
    waiting = OnHost({"kernel": array})
    (kept,) = jax.tree.leaves(waiting._tree)
    assert kept.sharding.memory_kind == "pinned_host" and kept.sharding.spec == sharding.spec
    back = waiting()["kernel"]
    assert back.sharding == sharding
    np.testing.assert_array_equal(back, array)


def test_arrays_on_the_host_wait_until_others_are_ready():
    waited = []

    class Pending:
        def block_until_ready(self):
            waited.append(self)

    OnHost({"kernel": jnp.ones(2)})(after=Pending())
    assert len(waited) == 1


def test_shard_batch_splits_rows(mesh):
    rows = np.arange(16, dtype=np.int32).reshape(8, 2)
    batch = mesh.shard_batch({"tokens": rows, "weight": np.arange(8.0), "odd": np.arange(3)})
    assert batch["tokens"].sharding.spec == Spec("data", None)
    assert batch["weight"].sharding.spec == Spec("data")
    assert batch["odd"].sharding.is_fully_replicated
    np.testing.assert_array_equal(batch["tokens"], rows)
    assert {shard.data.shape for shard in batch["tokens"].addressable_shards} == {(2, 2)}


# --- state trees ---------------------------------------------------------------------------------


def test_shardings_of_parameters_and_optimizer(mesh):
    optimizer = OptimizerConfig().build()
    boxed = jax.eval_shape(lambda p: TrainState.create(p, optimizer), abstract_params(MODEL))
    shardings = mesh.tree_shardings(boxed)
    assert jax.tree.structure(shardings) == jax.tree.structure(nn.unbox(boxed))
    decoder = {
        "embed": {"embedding": Spec("model", "data")},
        "final_norm": {"scale": Spec(None)},
        "unembed": {"kernel": Spec("data", "model")},
        "layers": {
            "attention": {
                "query": {"kernel": Spec(None, "data", "model", None)},
                "key": {"kernel": Spec(None, "data", "model", None)},
                "value": {"kernel": Spec(None, "data", "model", None)},
                "out": {"kernel": Spec(None, "model", None, "data")},
            },
            "attention_norm": {"scale": Spec(None, None)},
            "mlp": {
                "gate": {"kernel": Spec(None, "data", "model")},
                "up": {"kernel": Spec(None, "data", "model")},
                "down": {"kernel": Spec(None, "model", "data")},
            },
            "mlp_norm": {"scale": Spec(None, None)},
        },
    }
    expected = {"decoder": decoder}
    assert jax.tree.map(lambda s: s.spec, shardings.params) == expected
    adam = next(s for s in jax.tree.leaves(shardings.opt_state, is_leaf=is_adam) if is_adam(s))
    assert jax.tree.map(lambda s: s.spec, adam.mu) == expected
    assert jax.tree.map(lambda s: s.spec, adam.nu) == expected
    for scalar in (shardings.step, shardings.skipped, shardings.skipped_in_row, adam.count):
        assert scalar.is_fully_replicated


def is_adam(node):
    return hasattr(node, "mu") and hasattr(node, "nu")


# --- one result, whatever the mesh ---------------------------------------------------------------

TOKENS = np.random.default_rng(0).integers(3, 16, (8, 6)).astype(np.int32)
# Adam divides a gradient by its size plus epsilon: a large one doesn't amplify rounding.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, epsilon=0.1).build()


def train_step(partitioner, model):
    """Loss, gradients and the state after one step, on a partitioner's devices."""
    boxed = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER), abstract_params(model))
    shardings = partitioner.tree_shardings(boxed)
    positions, _ = inputs_of(np.ones_like(TOKENS))
    causal = np.tril(np.ones((6, 6), bool))[None].repeat(8, axis=0)
    batch = partitioner.shard_batch({"tokens": TOKENS, "positions": positions, "mask": causal})

    def step(state, batch):
        def loss(params):
            inputs = (batch[name] for name in ("tokens", "positions", "mask"))
            logits = model.apply({"params": params}, *inputs)
            targets = batch["tokens"][:, 1:]
            total, weight = sft_loss(logits[:, :-1], targets, jnp.ones(targets.shape))
            return total / weight

        value, grads = jax.value_and_grad(loss)(state.params)
        return value, grads, state.apply_gradients(grads, value)[0]

    state = jax.device_put(TrainState.create(random_params(model), OPTIMIZER), shardings)
    program = partitioner.jit(
        step, out_shardings=(partitioner.replicated, shardings.params, shardings)
    )
    return program(state, batch), shardings


@pytest.mark.parametrize("model", [MODEL, RELATIVE], ids=["rotary", "relative"])
def test_training_step_on_the_mesh_equals_one_device(mesh, single, model):
    (loss, grads, state), shardings = train_step(mesh, model)
    (expected_loss, expected_grads, expected_state), _ = train_step(single, model)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        grads,
        expected_grads,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (state.params, state.opt_state),
        (expected_state.params, expected_state.opt_state),
    )
    placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings)
    assert all(jax.tree.leaves(placed))
    kernel = state.params["decoder"]["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8 // 4, 12 // 2)


@pytest.mark.parametrize("model", [MODEL, RELATIVE], ids=["rotary", "relative"])
def test_generation_on_the_mesh_equals_one_device(mesh, single, model):
    prompts = np.array([[0, 3, 4], [5, 6, 7]] * 4, np.int32)
    results = []
    for partitioner in (mesh, single):
        shardings = partitioner.tree_shardings(abstract_params(model))
        params = jax.device_put(random_params(model, seed=4), shardings)
        keys = decode.row_keys(jax.random.key(0), jnp.arange(8))

        def program(params, prompts, keys):
            return decode.generate(model, params, prompts, keys, 5, decode.SamplingConfig())

        batch = partitioner.shard_batch(prompts)
        keys = jax.device_put(keys, partitioner.replicated)
        results.append(jax.tree.map(np.asarray, partitioner.jit(program)(params, batch, keys)))
    on_mesh, on_one = results
    np.testing.assert_array_equal(on_mesh.tokens_BR, on_one.tokens_BR)
    np.testing.assert_array_equal(on_mesh.mask_BR, on_one.mask_BR)
    np.testing.assert_allclose(on_mesh.log_probs_BR, on_one.log_probs_BR, atol=1e-5)
