"""Puts a model of a frozen backbone and what is trained of it, low-rank adapters above all (LoRA).

Many models share one backbone: the policy, its KL reference, reward models and the critic each have
adapters of a few megabytes on the same arrays. `config.LoraConfig` says which matrices have some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models.config import LoraConfig

_ADAPTERS = ("lora_a", "lora_b")
_HEAD = "head"  # of a scalar model, trained whole
_QUANTISED = ("kernel", "embedding")
_TWO_INPUT_DIMS = ("out",)  # modules whose kernels have two; all others have one


class Adapted(flax.struct.PyTreeNode):
    """Holds a model's parameters in two parts, of which only one is the model's own.

    Attributes:
      backbone: a whole model's tree, without adapters, which other models may share. What it has
        more of than the model needs, such as the output projection for a scalar model, is unused.
      own: a tree of the same nesting with what is trained: `lora_a` and `lora_b` beside kernels,
        and a scalar model's head.
    """

    backbone: Any
    own: Any


def on(backbone: Any, own: Any) -> Any:
    """Returns the parameters of a model with this backbone; `own` is all of it if that is None."""
    return own if backbone is None else Adapted(backbone, own)


def whole(params: Any) -> Any:
    """Returns the one tree that `model.apply` takes; a tree that is whole stays as it is."""
    return _joined(params.backbone, params.own) if isinstance(params, Adapted) else params


def count(params: Any) -> int:
    """Counts a model's parameters, trained or not; the scales of int8 matrices aren't any."""
    leaves = jax.tree_util.tree_leaves_with_path(whole(params))
    return sum(x.size for path, x in leaves if not path[-1].key.endswith("_scale"))


def split(tree: Any) -> tuple[Any, Any]:
    """Returns the backbone, and what is trained in a network with adapters, of a whole tree."""
    backbone = _where(tree, lambda path: not _is_own(path))
    return backbone, _where(tree, _is_own)


def merged(params: Any, lora: LoraConfig) -> Any:
    """Returns the model without adapters: each kernel plus the product A B, scaled, in float32."""
    if not isinstance(params, Adapted):
        return params

    def merge(tree):
        if not isinstance(tree, dict):
            return tree
        tree = {name: merge(value) for name, value in tree.items()}
        if "lora_a" in tree:
            a, b = tree.pop("lora_a"), tree.pop("lora_b")
            kernel = tree["kernel"].astype(jnp.float32)
            tree["kernel"] = kernel + lora.scale * _times(a, b, kernel.shape)
        return tree

    tree = merge(_joined(dequantised(params.backbone), params.own))
    if _HEAD in tree:  # which a backbone with an output projection has too much for
        tree["decoder"].pop("unembed", None)
    return tree


def quantised(backbone: Any) -> Any:
    """Returns a backbone whose decoder's matrices are int8, with float32 scales beside them.

    The scale of an output channel of a kernel, `kernel_scale`, is the largest size of its numbers
    over 127, and so is `embedding_scale` of a row of the embedding: a row is read as an input, and
    with tied embeddings gives one logit. So no number is off by more than half its scale.
    """

    def quantise(path, name, x):
        x = x.astype(jnp.float32)
        dims = input_dims(path, name)
        scale = jnp.max(jnp.abs(x), axis=dims, keepdims=True) / 127
        rounded = jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
        return {name: rounded, f"{name}_scale": jnp.squeeze(scale, dims)}

    return _matrices(backbone, quantise)


def dequantised(backbone: Any) -> Any:
    """Returns a quantised backbone with float32 matrices again, and any other as it is."""

    def multiply(path, name, x, scale):
        return {name: x.astype(jnp.float32) * jnp.expand_dims(scale, input_dims(path, name))}

    return _matrices(backbone, multiply, quantised=True)


def quantisation_error(backbone: Any, quantised_backbone: Any) -> float:
    """Returns the relative error of a quantised backbone: the root of squares, of all matrices."""
    error = size = 0.0

    def compare(path, name, x):
        nonlocal error, size
        other = quantised_backbone
        for key in path:
            other = other[key]
        scale = jnp.expand_dims(other[f"{name}_scale"], input_dims(path, name))
        x = x.astype(jnp.float32)
        error += float(jnp.sum((other[name].astype(jnp.float32) * scale - x) ** 2))
        size += float(jnp.sum(x**2))
        return {name: x}

    _matrices(backbone, compare)
    return float(np.sqrt(error / size)) if size else 0.0


def input_dims(path: tuple[str, ...], name: str) -> tuple[int, ...]:
    """Returns the dims that share a scale; the matrices of all layers are stacked along dim 0."""
    if name == "embedding":
        return (1,)
    first = "layers" in path
    return tuple(range(first, first + 1 + (path[-1] in _TWO_INPUT_DIMS)))


def _matrices(backbone: Any, change: Callable, quantised: bool = False) -> Any:
    """Replaces the decoder's matrices by the entries that `change` returns."""

    def walk(tree, path):
        found = {}
        for name, value in tree.items():
            scale = f"{name}_scale"
            if isinstance(value, dict):
                found[name] = walk(value, (*path, name))
            elif quantised and scale in tree:
                found |= change(path, name, value, tree[scale])
            elif quantised and name.removesuffix("_scale") != name:
                continue
            elif not quantised and name in _QUANTISED:
                found |= change(path, name, value)
            else:
                found[name] = value
        return found

    return {**backbone, "decoder": walk(backbone["decoder"], ("decoder",))}


def _is_own(path: tuple[str, ...]) -> bool:
    return path[0] == _HEAD or path[-1] in _ADAPTERS


def _where(tree: Any, kept: Callable, path: tuple[str, ...] = ()) -> Any:
    """The part of nested dicts whose leaves are kept, by their paths."""
    found = {}
    for name, value in tree.items():
        here = (*path, name)
        if isinstance(value, dict):
            if part := _where(value, kept, here):
                found[name] = part
        elif kept(here):
            found[name] = value
    return found


def _joined(one: Any, other: Any) -> Any:
    """Two nested dicts as one; where both have a leaf, it is the second one's."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    both = {name: _joined(one[name], other[name]) for name in one if name in other}
    return {**one, **other, **both}


def _times(a: jax.Array, b: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A B, for each layer if they are stacked, in the shape of their kernel."""
    rank = a.shape[-1]
    layers = a.shape[0] if a.ndim + b.ndim > len(shape) + 2 else 1
    product = jnp.matmul(
        a.reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision="highest"
    )
    return product.reshape(shape)
