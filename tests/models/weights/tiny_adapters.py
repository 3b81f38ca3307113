"""Adapters of the tiny models of all families, and what they add up to, written down here again."""

from __future__ import annotations

import dataclasses

import numpy as np

from pit_jax.models.config import LoraConfig
from pit_jax.models.weights.rows import flatten, nest
from tests.models.weights import tiny_families

LORA = LoraConfig(rank=2, alpha=6.0)


def network(name, lora=LORA):
    """The network of a tiny model with adapters."""
    return dataclasses.replace(tiny_families.network(name), lora=lora)


def own(network, scalar=False, seed=0):
    """A tree of random adapters, none of them 0, and of a head if it is a scalar model's."""
    rng, rank = np.random.default_rng(seed), network.lora.rank
    leaves = {}
    for name, leaf in flatten(tiny_families.abstract(dataclasses.replace(network, lora=None))):
        module = name.removeprefix("decoder/").removeprefix("layers/").removesuffix("/kernel")
        if not name.endswith("/kernel") or not network.lora.matches(module):
            continue
        stacked = "layers/" in name
        layers, shape = leaf.shape[:stacked], leaf.shape[stacked:]
        split = 2 if module == "attention/out" else 1
        ours = name.removesuffix("kernel")
        leaves[ours + "lora_a"] = rng.normal(size=(*layers, *shape[:split], rank)) / 4
        leaves[ours + "lora_b"] = rng.normal(size=(*layers, rank, *shape[split:])) / 4
    if scalar:
        leaves["head/kernel"] = rng.normal(size=(network.embed_dim, 1))
    return nest({name: leaf.astype(np.float32) for name, leaf in leaves.items()})


def merged(params, own, lora):
    """Parameters with W + scale * A B in the place of each W, in float64."""
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    leaves, adapters = dict(flatten(params)), dict(flatten(own))
    for name in [name for name in adapters if name.endswith("lora_a")]:
        module = name.removesuffix("lora_a")
        a, b = (np.float64(adapters[module + part]) for part in ("lora_a", "lora_b"))
        kernel = np.float64(leaves[module + "kernel"])
        layers = kernel.shape[: "layers/" in name]
        flat = a.reshape(*layers, -1, lora.rank) @ b.reshape(*layers, lora.rank, -1)
        leaves[module + "kernel"] = (kernel + scale * flat.reshape(kernel.shape)).astype(np.float32)
    leaves |= {name: leaf for name, leaf in adapters.items() if name.startswith("head/")}
    return nest(leaves)
