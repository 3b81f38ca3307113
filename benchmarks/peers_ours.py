"""Does what `peers.py` compares, with pit_jax: a worker of it, see peers_protocol.py."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers_cases as cases
from peers_protocol import Prepared, clock, serve

from pit_jax import huge_pages
from pit_jax.data import batching, tables
from pit_jax.data.layouts import Widths
from pit_jax.data.rows import Feature
from pit_jax.method import flops, forward, losses, objectives, ppo, ppo_step, supervised_step
from pit_jax.method.decode import SamplingConfig, generate, row_keys
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.frozen import Frozen
from pit_jax.method.sampler import Sampler
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights import hugging_face
from pit_jax.models.weights import tables as families
from pit_jax.models.weights.rows import Row
from pit_jax.plan import host
from pit_jax.run import stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig, TrainState

PARTITIONER = Partitioner(MeshConfig(), jax.devices()[:1])
OPTIMIZER = OptimizerConfig(
    learning_rate=cases.LEARNING_RATE,
    b1=cases.B1,
    b2=cases.B2,
    epsilon=cases.EPSILON,
    clip_norm=cases.CLIP,
)
ROWS = {
    "llama": families.LLAMA,
    "qwen3": families.QWEN3,
    "t5x": (
        *families.LLAMA,
        Row("model.relative_attention_bias.weight", "relative_bias", "N H -> H N"),
    ),
}


def network_of(case: cases.Case) -> NetworkConfig:
    """The network that a peer has, too."""
    size = case.network
    t5x, qwen3 = case.family == "t5x", case.family == "qwen3"
    return NetworkConfig(
        vocab_size=size.vocabulary,
        embed_dim=size.embed,
        num_layers=size.layers,
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head,
        mlp_dim=size.mlp,
        activation="gelu" if t5x else "silu",
        tied_embeddings=True,
        scale_embeddings=False,
        scale_attention=not t5x,
        scale_logits=t5x,
        positions="relative" if t5x else "rotary",
        # The Qwen3 of tunix 0.1.7 turns by this base, whatever its configuration says.
        rope_theta=1_000_000.0 if qwen3 else size.theta,
        norm_epsilon=1e-6,
        dtype="float32",
        remat="none",
        qk_norm="head" if qwen3 else "none",
    )


@dataclasses.dataclass
class Arrays:
    """Gives a file's weights to `hugging_face.fill`."""

    where: str

    def __post_init__(self):
        self._arrays = dict(np.load(self.where))
        self.shapes = {name: array.shape for name, array in self._arrays.items()}

    def read(self, name: str, part: slice) -> np.ndarray:
        """Returns a slice of a tensor's first dim."""
        return self._arrays[name][part]


def load(case: cases.Case, path: str, scalar: bool = False) -> Any:
    """Reads the parameters of a language model, or of a scalar model."""
    init = stages.init_scalar_model if scalar else stages.init_language_model
    abstract = nn.meta.unbox(stages.abstract_model(init(network_of(case)), PARTITIONER))
    arrays = Arrays(path)
    hugging_face.check(arrays, ROWS[case.family], abstract)
    return hugging_face.fill(arrays, ROWS[case.family], abstract)


def size_of(params: Any) -> int:
    """The bytes of parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(params))


def training(
    step: Callable, params: Any, batches: list[dict[str, np.ndarray]], tokens: float, work: float
) -> Prepared:
    """Prepares the steps of a supervised stage.

    Args:
      step: of supervised_step.make_step.
      params: what it starts from.
      batches: the batches, over and over.
      tokens: what a step counts as.
      work: the model's floating-point operations in a step.
    """
    state = TrainState.create(params, OPTIMIZER.build())
    held = {"state": jax.device_put(state, PARTITIONER.replicated), "number": 0}

    def one():
        held["state"], metrics = step(held["state"], held["batch"])
        held["number"] += 1
        return metrics

    def place():
        held["batch"] = PARTITIONER.shard_batch(batches[held["number"] % len(batches)])

    def loss():
        place()
        total, weight = jax.device_get(one()["loss"])
        return float(total / weight)

    losses = []
    compiled = clock(lambda: losses.append(loss()))
    losses += [loss(), loss()]

    def go(times: int) -> dict:
        start, placing = time.perf_counter(), 0.0
        for _ in range(times):
            placing += clock(place)
            one()
        jax.block_until_ready(held["state"])
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": times * tokens, "phases": {"input": placing}}

    checks = {"loss": losses[0], "loss after 2 steps": losses[2]}
    return Prepared(go, checks, compile_seconds=compiled, flops_per_token=work / tokens)


def supervised_batch(inputs, targets, weights, segments, positions) -> dict[str, np.ndarray]:
    """A batch as the supervised stages have it."""
    return {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
        "decoder_segment_ids": segments,
        "decoder_positions": positions,
    }


def train(message: dict, paths: dict[str, str]) -> Prepared:
    """A supervised step on full rows."""
    case = cases.Case(**message)
    network, width = network_of(case), case.prompt + case.response
    positions = np.tile(np.arange(width, dtype=np.int32), (case.rows, 1))
    batches = [
        supervised_batch(*cases.training_rows(case, n), np.ones_like(positions), positions)
        for n in range(cases.BATCHES)
    ]
    step = supervised_step.make_step(objectives.supervised(network), PARTITIONER)
    work = flops.total(flops.training_step(case.rows, width, True), network)
    return training(step, load(case, paths["actor"]), batches, case.rows * width, work)


def sft(message: dict, paths: dict[str, str], packed: bool = True) -> Prepared:
    """A supervised step on rows of HH's lengths: packed, or an example in each row."""
    case = cases.Case(**message)
    network, width = network_of(case), case.prompt + case.response
    count = case.rows * cases.BATCHES * (8 if packed else 1)
    of_prompt, of_response = cases.lengths(case, count)
    columns, ones = np.arange(width)[None], np.ones((count, 1), np.int32)
    real = columns < (of_prompt + of_response)[:, None]
    tokens = cases.tokens(dataclasses.replace(case, rows=count), 0, width + 1)
    batch = supervised_batch(
        tokens[:, :-1] * real,
        tokens[:, 1:] * real,
        (real & (columns >= of_prompt[:, None])).astype(np.float32),
        real.astype(np.int32),
        (columns * ones * real).astype(np.int32),
    )
    if packed:
        batch = _packed(batch, width)
    full = len(batch["decoder_segment_ids"]) // case.rows
    batches = [
        {name: array[n * case.rows : (n + 1) * case.rows] for name, array in batch.items()}
        for n in range(full)
    ]
    mean = float(np.mean([np.sum(one["decoder_segment_ids"] > 0) for one in batches]))
    step = supervised_step.make_step(objectives.supervised(network), PARTITIONER)
    work = flops.total(flops.training_step(case.rows, width, True), network)
    prepared = training(step, load(case, paths["actor"]), batches, mean, work)
    prepared.answer["checks"] = {}  # the batches are others
    return prepared


def _packed(rows: dict, width: int) -> dict:
    """Packs examples into rows of that width, as a supervised stage does."""

    found = {name: Feature.of_padded(x) for name, x in rows.items()}
    config = batching.BatchingConfig(packed_length=width)
    table = tables.make("sft", found, [len(rows["decoder_segment_ids"])], config)
    return table.batch(np.arange(sum(table.sources)))


def decode(message: dict, paths: dict[str, str]) -> Prepared:
    """Decoding, greedy to full length."""
    case = cases.Case(**message)
    network = network_of(case)
    params = load(case, paths["actor"])
    stops, sampling = (case.network.vocabulary,), SamplingConfig(temperature=0.0)  # no token stops

    def answer(params, prompt_BP, key):
        keys_B = row_keys(key, jnp.arange(case.rows))
        model = LanguageModel(network)
        return generate(model, params, prompt_BP, keys_B, case.response, sampling, None, stops)

    program = PARTITIONER.jit(answer)
    prompts = [cases.tokens(case, n, case.prompt) for n in range(cases.BATCHES)]
    found: dict[str, Any] = {}

    def one(number: int):
        prompt_BP = PARTITIONER.shard_batch(prompts[number % len(prompts)])
        found["last"] = program(params, prompt_BP, jax.random.key(number))
        return found["last"]

    compiled = clock(lambda: jax.block_until_ready(one(0)))
    checks = {"tokens": np.asarray(found["last"].tokens_BR).tolist()}

    def go(times: int) -> dict:
        tokens = 0

        def all_of():
            nonlocal tokens
            for number in range(times):
                tokens += int(jnp.sum(one(number).mask_BR))

        seconds = clock(all_of)
        return {"seconds": seconds, "tokens": tokens}

    c, seen = network, case.prompt + case.response / 2
    cache = 2 * 4 * c.num_layers * case.rows * seen * c.num_kv_heads * c.head_dim
    moved = (size_of(params) + cache) / case.rows
    return Prepared(go, checks, compile_seconds=compiled, bytes_per_token=moved)


def in_pool(
    case: cases.Case, params: Any, prompts: list[list[int]], stops: tuple[int, ...]
) -> Callable[[int], int]:
    """Makes what samples responses by a pool of rows and returns the number of their tokens."""
    sampler = Sampler(network_of(case), PARTITIONER, case.response, case.rows, ends=stops)

    def one(number: int) -> int:
        key, rows = jax.random.key(number), range(len(prompts))
        found = sampler.respond(params, prompts, case.prompt, rows, key, SamplingConfig())
        return sum(len(each.tokens) + each.ended for each in found)

    return one


def sampled(one: Callable[[int], int]) -> Prepared:
    """Prepares sampling that returns the number of its tokens, by the number of the draw."""
    compiled = clock(lambda: one(0))

    def go(times: int) -> dict:
        start = time.perf_counter()
        tokens = sum(map(one, range(times)))
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    return Prepared(go, {}, compile_seconds=compiled)


def to_ends(message: dict, paths: dict[str, str]) -> Prepared:
    """Sampling to ends, where prompts that wait take the places of rows that are done."""
    case = cases.Case(**message)
    params, stops = load(case, paths["actor"]), cases.ends(case, 0.5)
    batches = [cases.tokens(case, n, case.prompt) for n in range(cases.WAITING)]
    prompts = np.concatenate(batches).tolist()

    return sampled(in_pool(case, params, prompts, stops))


def improve(message: dict, paths: dict[str, str], fixed: bool = False) -> Prepared:
    """Sampling improvements of prompts and references of HH's lengths: as `improve` does, or fixed.

    `fixed` decodes batch after batch in whole windows until all rows of a batch have ended.
    """
    case = cases.Case(**message)
    network = network_of(case)
    params, stops = load(case, paths["actor"]), cases.ends(case, cases.HH[1])
    count = case.rows * cases.WAITING
    of_prompt, _ = cases.lengths(case, count)
    drawn = cases.tokens(dataclasses.replace(case, rows=count), 0, case.prompt)
    prompts = [row[:length].tolist() for row, length in zip(drawn, of_prompt)]
    padded = np.where(np.arange(case.prompt) >= case.prompt - of_prompt[:, None], drawn, 0)
    parts = np.split(padded, cases.WAITING)

    def answer(params, prompt_BP, key):
        keys_B, model = row_keys(key, jnp.arange(case.rows)), LanguageModel(network)
        return generate(
            model, params, prompt_BP, keys_B, case.response, SamplingConfig(), None, stops
        )

    program = PARTITIONER.jit(answer)

    def in_windows(number: int) -> int:
        keys = jax.random.split(jax.random.key(number), len(parts))
        found = [program(params, PARTITIONER.shard_batch(part), key)
                 for part, key in zip(parts, keys)]  # fmt: skip
        return sum(int(jnp.sum(each.mask_BR)) for each in found)

    return sampled(in_windows if fixed else in_pool(case, params, prompts, stops))


def reward(message: dict, paths: dict[str, str]) -> Prepared:
    """A pairwise step of a reward model, in one pass that shares the prompt."""
    case = cases.Case(**message)
    network, R = network_of(case), case.response
    blocks_T = np.repeat(np.int32([1, 2, 3]), (case.prompt, R, R))
    batches = [
        {
            "tokens": cases.tokens(case, n, case.prompt + 2 * R),
            "blocks": np.tile(blocks_T, (case.rows, 1)),
        }
        for n in range(cases.BATCHES)
    ]
    widths = Widths(case.prompt, case.prompt, 0, 0, R, 0, 0)
    loss = objectives.reward(network, objectives.RewardConfig(), widths)
    step = supervised_step.make_step(loss, PARTITIONER)
    # Counted as two whole sequences, which is what a peer computes.
    tokens = 2 * case.rows * (case.prompt + R)
    work = flops.total(flops.training_step(2 * case.rows, case.prompt + R, False), network)
    return training(step, load(case, paths["reward"], True), batches, tokens, work)


def gap(message: dict, paths: dict[str, str], shared: bool = True) -> Prepared:
    """A step of a gap reward model: one pass that shares prefixes, or a pass for each score."""
    case = cases.Case(**message)
    network, R = network_of(case), case.response
    widths = (case.prompt, *[R] * 6)  # the prompt, both references, each response to both
    blocks_T = np.repeat(np.arange(1, 8, dtype=np.int32), widths)
    batches = []
    for n in range(cases.BATCHES):
        x = cases.tokens(case, n, case.prompt, "prompts")
        w, other = (cases.tokens(case, n, R, name) for name in ("chosen", "rejected"))
        tokens = np.concatenate([x, w, other, w, w, other, other], axis=1)
        batches.append({"tokens": tokens, "blocks": np.tile(blocks_T, (case.rows, 1))})

    def in_passes(params, batch):
        starts = np.cumsum((0, *widths))
        x, w, other = (batch["tokens"][:, starts[n] : starts[n + 1]] for n in range(3))
        model, mask, scores = ScalarModel(network), jnp.ones((case.rows, R), bool), {}
        for a, b in itertools.product((("w", w), ("l", other)), repeat=2):
            prompt = jnp.concatenate([x, b[1]], axis=1)
            score = forward.response_scores(model, params, prompt, a[1], mask, "last")
            scores[a[0] + b[0]] = score
        found = losses.gap_loss(scores, jnp.ones(case.rows))
        return found, {"loss": found}

    windows = Widths(case.prompt, 0, 0, case.prompt + R, R, 0, 0)
    config = objectives.RewardConfig()
    loss = objectives.gap_reward(network, config, widths=windows) if shared else in_passes
    step = supervised_step.make_step(loss, PARTITIONER)
    # Counted as four whole sequences.
    tokens = 4 * case.rows * (case.prompt + 2 * R)
    work = flops.total(flops.training_step(4 * case.rows, case.prompt + 2 * R, False), network)
    return training(step, load(case, paths["reward"], True), batches, tokens, work)


def ppo_iteration(
    message: dict, paths: dict[str, str], lengths: bool = False, **settings: Any
) -> Prepared:
    """A PPO iteration of four models in one epoch: one minibatch to full length, or HH's lengths.

    With `lengths` prompts are padded and responses end; `settings` are those of PPO. Beside tunix
    there is one minibatch either way, as it has: of lengths four parts whose gradients are added,
    and a learning rate that leaves lengths as they are drawn.
    """
    case = cases.Case(**message)
    network = network_of(case)
    loaded = {name: load(case, path, name in cases.SCALAR) for name, path in paths.items()}
    rule = OPTIMIZER
    if not lengths:
        settings["minibatches"] = 1
    elif case.peer == "tunix":
        settings |= {"minibatches": 1, "microbatches": 4}
        rule = dataclasses.replace(rule, learning_rate=1e-12)
    config = ppo.PPOConfig(epochs=1, **settings)
    ends = cases.ends(case, cases.HH[1]) if lengths else (case.network.vocabulary,)  # or never
    environment = Environment(case.response, "last", ends=ends)
    networks = Networks.same(network)
    checks = {} if lengths else ppo_checks(case, loaded, network)
    trained = {name: loaded[name] for name in ("actor", "critic")}
    train = TrainState.create(trained, ppo.make_optimizer(rule, config))
    state = ppo_step.RLState(train, jnp.float32(config.beta), ppo.Moments.zero())
    held: dict[str, Any] = {"state": jax.device_put(state, PARTITIONER.replicated)}
    fixed = {name: loaded[name] for name in ("reference", "reward")}
    frozen = Frozen.share(fixed, {"actor": None, "critic": None})
    collect, update = ppo_step.make_programs(networks, config, environment, PARTITIONER)
    sample = PARTITIONER.jit(ppo_step.make_sample(networks, config, environment))
    prompts = [cases.tokens(case, n, case.prompt) for n in range(cases.BATCHES)]
    if lengths:
        of_prompt, _ = cases.lengths(case, case.rows)
        prompts = [rows * (np.arange(case.prompt) >= case.prompt - of_prompt[:, None])
                   for rows in prompts]  # fmt: skip

    def batch(number: int) -> Any:
        prompt_BP = prompts[number % len(prompts)]
        rows = {"prompt_tokens": prompt_BP, "reward_prompt_tokens": prompt_BP}
        return PARTITIONER.shard_batch(rows)

    def gather(number: int) -> None:
        keys = jax.random.split(jax.random.key(number))
        held["episodes"], beta, moments, metrics, _ = collect(
            held["state"], frozen, batch(number), *keys
        )
        held["state"] = held["state"].replace(beta=beta, moments=moments)
        held["metrics"] = jax.device_get((metrics["tokens"][0], metrics["model_flops"][0]))
        held["tokens"] += int(held["metrics"][0])

    def learn(number: int) -> None:
        _, key = jax.random.split(jax.random.key(number))
        held["state"], _ = update(held["state"], frozen.of_trained, held["episodes"], key)
        jax.block_until_ready(held["state"])

    def rollout(number: int) -> None:
        key, _ = jax.random.split(jax.random.key(number))
        actor = held["state"].train.params["actor"]
        jax.block_until_ready(sample(actor, batch(number), key))

    held["tokens"] = 0
    compiled = clock(lambda: (gather(0), learn(0)))
    tokens, work = map(float, held["metrics"])
    rollout(0)

    def go(times: int) -> dict:
        held["tokens"], gathering, learning, sampling = 0, 0.0, 0.0, 0.0
        for number in range(times):
            sampling += clock(functools.partial(rollout, number))  # beside the iteration
            gathering += clock(functools.partial(gather, number))
            learning += clock(functools.partial(learn, number))
        phases = {"rollout": sampling, "scoring": gathering - sampling, "update": learning}
        return {"seconds": gathering + learning, "tokens": held["tokens"], "phases": phases}

    return Prepared(go, checks, compile_seconds=compiled, flops_per_token=work / tokens)


def ppo_checks(case: cases.Case, loaded: dict[str, Any], network: NetworkConfig) -> dict:
    """What both make of the same episodes, in the mean."""
    prompt_BP = jnp.asarray(cases.tokens(case, 0, case.prompt))
    response_BR = jnp.asarray(cases.tokens(case, 0, case.response, "responses"))
    rows = prompt_BP, response_BR, jnp.ones(response_BR.shape)
    language, scalar = LanguageModel(network), ScalarModel(network)
    log_probs = jax.jit(lambda p: jnp.mean(forward.response_log_probs(language, p, *rows)[0]))
    values = jax.jit(lambda p: jnp.mean(forward.response_values(scalar, p, *rows)))
    scores = jax.jit(lambda p: jnp.mean(forward.response_scores(scalar, p, *rows, "last")))
    return {
        "log-probability": float(log_probs(loaded["actor"])),
        "log-probability of the reference": float(log_probs(loaded["reference"])),
        "value": float(values(loaded["critic"])),
        "score": float(scores(loaded["reward"])),
    }


def machine(message: dict, paths: dict[str, str]) -> Prepared:
    """What the machine does at its best, by XLA."""
    del message, paths
    device = jax.devices()[0]
    measure = host.meter(device, "float32", width=2048, length=2**25, times=3)
    matrix = jnp.full((2048, 2048), 1 / 2048, jnp.bfloat16)
    halves = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    jax.block_until_ready(halves(matrix))

    def go(times: int) -> dict:
        del times
        found = measure()
        half = 2 * 2048**3 / clock(lambda: jax.block_until_ready(halves(matrix)))
        rates = {"float32": found.flops, "bfloat16": half, "bandwidth": found.bandwidth}
        return {"seconds": 1.0, "tokens": 0, "rates": rates}

    return Prepared(go, {})


TASKS = {
    "train": train,
    "sft": sft,
    "sft_fixed": functools.partial(sft, packed=False),
    "decode": decode,
    "ends": to_ends,
    "improve": improve,
    "improve_fixed": functools.partial(improve, fixed=True),
    "reward": reward,
    "gap": gap,
    "gap_passes": functools.partial(gap, shared=False),
    "ppo": ppo_iteration,
    "ppo_lengths": functools.partial(ppo_iteration, lengths=True),
    "ppo_fixed": functools.partial(ppo_iteration, lengths=True, widths=1),
    "machine": machine,
}

if __name__ == "__main__":
    huge_pages.ask()  # as `python -m pit_jax` does
    serve(TASKS, {name: importlib.metadata.version(name) for name in ("pit_jax", "jax", "jaxlib")})
