"""Has the simple layers: Dense, Embed, RMSNorm, LayerNorm, MLP. Dims: see `network.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pit_jax.models.config import LoraConfig, NetworkConfig
from pit_jax.runtime import partitioning
from pit_jax.runtime.partitioning import constrain

RESIDUAL = ("activation_batch", "activation_length", "activation_embed")
PRODUCT = "product"  # the name of a product with a matrix, for rematerialisation
WHOLE = ("activation_batch", "length", "activation_embed")  # the input of a layer's products
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_EMBED_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


class Dense(nn.Module):
    """Applies a linear map to the last dims.

    Attributes:
      shape: shape of the kernel, input dims first.
      axes: logical axis of each dim of the kernel.
      num_inputs: how many of the kernel's dims are input dims.
      dtype: compute type.
      out_dtype: type of the result; the compute type by default.
      initial_scale: factor of the kernel's initial values.
      bias: whether a bias is added.
      lora: the adapter, see LoraConfig; a model whose parameters have none is computed without.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_inputs: int
    dtype: str
    out_dtype: str | None = None
    initial_scale: float = 1.0
    bias: bool = False
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.num_inputs
        out_dtype = self.out_dtype or self.dtype

        def init(key, shape):
            flat = (_product(shape[:n]), _product(shape[n:]))
            return self.initial_scale * _INIT(key, flat, jnp.float32).reshape(shape)

        kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), self.shape)
        scale = None
        if kernel.dtype == jnp.int8:
            scale = self.get_variable("params", "kernel_scale")
        y = _product_of(x, kernel, n, self.dtype, out_dtype, scale=scale)
        adapted = self.has_variable("params", "lora_a")
        assert self.lora or not adapted
        if self.lora and (adapted or self.is_initializing()):
            y += self._adapted(x, init, out_dtype)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[n:])
            bias = self.param("bias", zeros, self.shape[n:], jnp.float32)
            # Added in float32, so that its gradient is summed over all tokens in float32.
            bias = jnp.expand_dims(bias, tuple(range(x.ndim - n)))
            y = (y.astype(jnp.float32) + bias).astype(y.dtype)
        return y

    def _adapted(self, x: jax.Array, init: Callable, out_dtype: str) -> jax.Array:
        """The product with A and B, scaled."""
        n, lora = self.num_inputs, self.lora
        assert lora is not None
        zeros = nn.initializers.zeros_init()
        make = nn.with_logical_partitioning
        a_axes, b_axes = (*self.axes[:n], "lora_rank"), ("lora_rank", *self.axes[n:])
        a = self.param("lora_a", make(init, a_axes), (*self.shape[:n], lora.rank))
        b = self.param("lora_b", make(zeros, b_axes), (lora.rank, *self.shape[n:]), jnp.float32)
        low = _product_of(x, a, n, self.dtype, self.dtype) * lora.scale
        return _product_of(low, b, 1, self.dtype, out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
    """Rows of a table in the compute type, whose gradients are added up in the table's own type.

    A token that a batch holds thousands of times would lose most of its gradient in bfloat16, where
    a sum stops growing at 256 times the size of what is added.

    Args:
      table_VD: the table, float32 while it is trained.
      ids: int32 rows to take, of any shape.
      dtype: of the result, [*ids.shape, D].
    """
    return table_VD.astype(dtype)[ids]


def _look_up_forward(table_VD, ids, dtype):
    return look_up(table_VD, ids, dtype), (ids, table_VD)


def _look_up_backward(dtype, residuals, cotangent):
    del dtype
    ids, table_VD = residuals
    zeros_VD = jnp.zeros_like(table_VD)
    return zeros_VD.at[ids].add(cotangent.astype(table_VD.dtype)), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class Embed(nn.Module):
    """Embeds tokens and, if the embeddings are tied, projects to logits."""

    config: NetworkConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(1.0) if c.scale_logits else _EMBED_INIT
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(init, ("vocab", "embed")),
            (c.vocab_size, c.embed_dim),
            jnp.float32,
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        if (scale_V := self._scale()) is not None:
            rows_BTD = self.embedding[tokens_BT].astype(jnp.float32)
            x_BTD = (rows_BTD * scale_V[tokens_BT][..., None]).astype(self.config.dtype)
        else:
            x_BTD = look_up(self.embedding, tokens_BT, self.config.dtype)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * jnp.asarray(self.config.embed_dim**0.5, self.config.dtype)
        return constrain(x_BTD, *RESIDUAL)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the logits of tied embeddings, float32 [B, T, V]."""
        dtype = self.config.dtype
        logits_BTV = _product_of(
            x_BTD, self.embedding, 1, dtype, "float32", output_first=True, scale=self._scale()
        )
        return logits_BTV / self.config.embed_dim**0.5 if self.config.scale_logits else logits_BTV

    def _scale(self) -> jax.Array | None:
        """The scale of each row of an int8 embedding."""
        found = self.has_variable("params", "embedding_scale")
        return self.get_variable("params", "embedding_scale") if found else None


class RMSNorm(nn.Module):
    """Divides by the root mean square, computed in float32 (Zhang and Sennrich, 2019).

    Attributes:
      epsilon: added to the mean square.
      dtype: type of the result.
      offset: whether the scale is kept as an offset from 1.
      axes: logical axes of the last dims, over which the mean is taken.
    """

    epsilon: float
    dtype: str
    offset: bool = False
    axes: tuple[str, ...] = ("norm",)

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        n = len(self.axes)
        init = nn.initializers.zeros_init() if self.offset else nn.initializers.ones_init()
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(init, self.axes),
            x_BTD.shape[-n:],
            jnp.float32,
        )
        scale = scale + 1 if self.offset else scale
        x = x_BTD.astype(jnp.float32)
        square = jnp.mean(x**2, axis=tuple(range(-n, 0)), keepdims=True)
        x = x * jax.lax.rsqrt(square + self.epsilon)
        return (x * jnp.expand_dims(scale, tuple(range(x.ndim - n)))).astype(self.dtype)


class LayerNorm(nn.Module):
    """Subtracts the mean and divides by the standard deviation, in float32 (Ba et al., 2016)."""

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        inits = {"scale": nn.initializers.ones_init(), "bias": nn.initializers.zeros_init()}
        scale_D, bias_D = (
            self.param(
                name,
                nn.with_logical_partitioning(init, ("norm",)),
                (x_BTD.shape[-1],),
                jnp.float32,
            )
            for name, init in inits.items()
        )
        x = x_BTD.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale_D[None, None] + bias_D[None, None]).astype(self.dtype)


def make_norm(config: NetworkConfig, name: str | None = None) -> RMSNorm | LayerNorm:
    """Makes the network's norm of the residual stream."""
    if config.norm == "layer":
        return LayerNorm(config.norm_epsilon, config.dtype, name=name)
    return RMSNorm(config.norm_epsilon, config.dtype, config.norm_offset, name=name)


class MLP(nn.Module):
    """Computes `down(activation(gate(x)) * up(x))` (Shazeer, 2020).

    Without a gate it is `down(activation(up(x)))`.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (c.embed_dim, c.mlp_dim), ("embed", "mlp")
        activation = _ACTIVATIONS[c.activation]

        def project(name, shape, axes, x):
            lora = c.adapter(f"mlp/{name}")
            return Dense(shape, axes, 1, c.dtype, bias=c.mlp_bias, lora=lora, name=name)(x)

        if c.gated_mlp:
            gate_BTF = project("gate", shape, axes, x_BTD)
            hidden_BTF = activation(gate_BTF) * project("up", shape, axes, x_BTD)
        else:
            hidden_BTF = activation(project("up", shape, axes, x_BTD))
        hidden_BTF = constrain(hidden_BTF, "activation_batch", "length", "mlp")
        return project("down", shape[::-1], axes[::-1], hidden_BTF)


def capped(x: jax.Array, cap: float) -> jax.Array:
    """Squeezes numbers into (-cap, cap) by `cap * tanh(x / cap)`; 0 leaves them as they are."""
    return cap * jnp.tanh(x / cap) if cap else x


def _product_of(
    x: jax.Array,
    kernel: jax.Array,
    num_inputs: int,
    dtype: str,
    out_dtype: str,
    output_first: bool = False,
    scale: jax.Array | None = None,
) -> jax.Array:
    """The product of the last dims of `x` with a kernel's first ones, or last if output_first.

    Each output of an int8 kernel is multiplied with its own `scale`.
    """
    n, dims = num_inputs, kernel.ndim
    inputs = tuple(range(dims - n, dims) if output_first else range(n))
    y = _contract(x.astype(dtype), kernel, scale, inputs, dtype, out_dtype)
    return checkpoint_name(y, PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _contract(x, kernel, scale, inputs, dtype, out_dtype):
    """A product of the compute type, summed in float32.

    A result of bfloat16 is rounded from it: a CPU has instructions for this, not for sums in
    bfloat16. The gradient of the kernel is float32 as it is, and for that of `x` the kernel is
    cast again, where what was cast would take several times as much as one of int8.
    """
    last = tuple(range(x.ndim - len(inputs), x.ndim))
    y = _sum_of_products(x, _cast(kernel, scale, inputs, dtype), last, inputs)
    return _times(y, scale, dtype).astype(out_dtype)


def _cast(kernel, scale, inputs, dtype):
    """A kernel in the compute type, in float32 with its scale.

    A scale after the product would be rounded or not before what is added next, as the compiler
    fuses the two into one instruction or doesn't: then two programs differ. Matrices of bfloat16
    have no room for it, and what comes after their product is rounded anyway.
    """
    kernel = kernel.astype(dtype)
    scales = scale is not None and dtype == "float32"
    return kernel * jnp.expand_dims(scale, inputs) if scales else kernel


def _times(y, scale, dtype):
    """Multiplies outputs with their scales where `_cast` doesn't."""
    scales = scale is not None and dtype != "float32"
    return y * jnp.expand_dims(scale, tuple(range(y.ndim - scale.ndim))) if scales else y


def _contract_forward(x, kernel, scale, inputs, dtype, out_dtype):
    return _contract(x, kernel, scale, inputs, dtype, out_dtype), (x, kernel, scale)


def _contract_backward(inputs, dtype, out_dtype, residuals, cotangent):
    del out_dtype
    x, kernel, scale = residuals
    cotangent = _times(cotangent, scale, dtype).astype(dtype)
    outputs = tuple(dim for dim in range(kernel.ndim) if dim not in inputs)
    last = tuple(range(cotangent.ndim - len(outputs), cotangent.ndim))
    cast = _cast(kernel, scale, inputs, dtype)
    back = _sum_of_products(cotangent, cast, last, outputs).astype(x.dtype)
    if kernel.dtype == jnp.int8:
        return back, None, None
    return back, _kernel_gradient(x, cotangent, kernel, inputs), None


def _kernel_gradient(x, cotangent, kernel, inputs):
    """Sums over all rows; `inputs` are those dims of the kernel that `x` has."""
    rows, first = tuple(range(x.ndim - len(inputs))), inputs[0] == 0
    a, b = (x, cotangent) if first else (cotangent, x)
    if partitioning.platform() != "cpu":
        return _sum_of_products(a, b, rows, rows).astype(kernel.dtype)
    # A CPU copies what it transposes: one of the two, or the other and the result. The compiler,
    # left to itself, may choose forms that its products of bfloat16 don't have.
    a, b = (each.reshape(_product(each.shape[: len(rows)]), -1) for each in (a, b))
    if a.size <= b.size + kernel.size:
        grad = _sum_of_products(jax.lax.optimization_barrier(a.T), b, (1,), (0,))
    else:
        grad = _sum_of_products(jax.lax.optimization_barrier(b.T), a, (1,), (0,))
        grad = jax.lax.optimization_barrier(grad).T
    return grad.reshape(kernel.shape).astype(kernel.dtype)


_contract.defvjp(_contract_forward, _contract_backward)


def _sum_of_products(a, b, a_dims, b_dims):
    return jax.lax.dot_general(a, b, ((a_dims, b_dims), ((), ())), preferred_element_type="float32")


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
