"""Times the gap reward's training pass: shared prefixes against four separate sequences.

    python benchmarks/gap_shared_prefix.py --prompt 128 --reference 128 --response 128

Both ways compute Eq. 2's loss and its gradient on the same batch. They run in turn in one process,
and the ratio of each pair is taken, so a machine that is busy for a while shifts both. Prints
one line.
"""

from __future__ import annotations

import argparse
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data import layouts
from pit_jax.method import forward, losses
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.run import stages


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    # Those of gin/runs/quickstart.gin, about.
    sizes = {"batch": 64, "prompt": 12, "reference": 14, "response": 14, "embed": 64, "layers": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--pairs", type=int, default=15, help="paired runs; default 15")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser.parse_args()


def make_batch(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Pieces of random tokens, and the row that holds them all."""
    rng = np.random.default_rng(0)
    widths = {"x": options.prompt} | dict.fromkeys(("ref_w", "ref_l"), options.reference)
    widths |= dict.fromkeys(("w", "l"), options.response)
    batch = {
        name: rng.integers(1, 64, size=(options.batch, width)).astype(np.int32)
        for name, width in widths.items()
    }
    row = [batch[name] for name in ("x", "ref_w", "ref_l", "w", "w", "l", "l")]
    batch["tokens"] = np.concatenate(row, axis=1)
    numbers = np.repeat(np.arange(1, 8, dtype=np.int32), [piece.shape[1] for piece in row])
    batch["blocks"] = np.tile(numbers, (options.batch, 1))
    return batch


def in_one_pass(model, params, batch):
    """All four scores from rows that share prefixes."""
    return forward.tree_scores(model, params, batch, layouts.GAP_TREE, "last")


def separately(model, params, batch):
    """The same from four whole sequences."""
    scores = {}
    for a, b in ("wl", "ww", "ll", "lw"):
        prompt = jnp.concatenate([batch["x"], batch[f"ref_{b}"]], axis=1)
        mask = jnp.ones(batch[a].shape, bool)
        scores[a + b] = forward.response_scores(model, params, prompt, batch[a], mask, "last")
    return scores


def main() -> None:
    """Compiles both, times pairs of runs, prints the medians."""
    options = parse_arguments()
    network = NetworkConfig(
        vocab_size=64,
        embed_dim=options.embed,
        num_layers=options.layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=2 * options.embed,
        activation="silu",
        tied_embeddings=True,
        scale_embeddings=True,
        scale_attention=True,
        scale_logits=False,
        positions="rotary",
        rope_theta=10000.0,
        norm_epsilon=1e-6,
        dtype=options.dtype,
        remat="full",
    )
    model = ScalarModel(network)
    params = nn.meta.unbox(stages.init_scalar_model(network)(jax.random.key(0)))
    batch = make_batch(options)

    def step(scores):
        def loss(params, batch):
            found = scores(model, params, batch)
            return losses.gap_loss(found, jnp.ones(options.batch))[0]

        return jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile()

    shared, separate = step(in_one_pass), step(separately)
    values = [float(run(params, batch)[0]) for run in (shared, separate)]

    def seconds(run) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(params, batch))
        return time.perf_counter() - start

    times = [(seconds(shared), seconds(separate)) for _ in range(options.pairs)]
    ratio = statistics.median(apart / together for together, apart in times)
    together, apart = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"shared {together:.1f} ms, separate {apart:.1f} ms, separate/shared {ratio:.2f} "
        f"(median of {options.pairs} pairs; losses {values[0]:.5f}, {values[1]:.5f}; "
        f"{jax.devices()[0].device_kind})"
    )


if __name__ == "__main__":
    main()
