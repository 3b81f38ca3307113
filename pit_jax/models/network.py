"""Builds the decoder-only network.

These letters stand for dims in every name and einsum of the package:

    B batch         T query tokens   S key tokens     L layers
    D model width   F mlp width      E head width     V vocabulary
    H query heads   K kv heads       G = H // K query heads per kv head
    N buckets of distance  I pairs of a head's numbers that rotary positions turn
    P prompt tokens (left-padded)    R response tokens (right-padded)
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models import kernels
from pit_jax.models.attention import (
    RELATIVE_BUCKETS,
    Attention,
    CausalRows,
    Layers,
    cost,
    distances,
    relative_buckets,
)
from pit_jax.models.cache import KVCache
from pit_jax.models.config import NetworkConfig
from pit_jax.models.layers import MLP, PRODUCT, RESIDUAL, WHOLE, Dense, Embed, capped, make_norm
from pit_jax.models.trees import TreeRows
from pit_jax.runtime.partitioning import constrain


class Block(nn.Module):
    """Adds attention and MLP to the residual stream; it is a step of the scan over layers."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, carry, layer, positions_BT, mask, bias_HN, index):
        c = self.config
        x_BTD, cache = carry

        def read(name, x_BTD):
            if c.norm_place != "after":
                x_BTD = make_norm(c, name)(x_BTD)
            return constrain(x_BTD, *WHOLE)

        def written(name, out_BTD):
            out_BTD = constrain(out_BTD, *RESIDUAL)
            return out_BTD if c.norm_place == "before" else make_norm(c, name)(out_BTD)

        attention = Attention(c, name="attention")
        whole_BTD = read("attention_norm", x_BTD)
        out_BTD, cache = attention(whole_BTD, positions_BT, mask, bias_HN, cache, layer, index)
        between_BTD = x_BTD + written("attention_post_norm", out_BTD)
        whole_BTD = read("mlp_norm", x_BTD if c.parallel_blocks else between_BTD)
        x_BTD = between_BTD + written("mlp_post_norm", MLP(c, name="mlp")(whole_BTD))
        return (constrain(x_BTD, *RESIDUAL), cache), None


def _kept(config: NetworkConfig):
    """What rematerialisation keeps of a layer: nothing, or the products with matrices."""
    if config.remat == "full":
        return None
    return jax.checkpoint_policies.save_only_these_names(PRODUCT)


def _apart(stack, num_layers: int):
    """Takes the parameters of stacked layers apart; the trees' keys are '0', '1', …"""
    leaves, tree = jax.tree.flatten(stack)
    pieces = [jax.lax.split(x, [1] * num_layers) for x in leaves]
    return {
        str(n): jax.tree.unflatten(tree, [each[n][0] for each in pieces]) for n in range(num_layers)
    }


class Decoder(nn.Module):
    """Makes hidden states of tokens, and logits of hidden states (`Decoder.logits`)."""

    config: NetworkConfig

    def setup(self):
        c = self.config
        block: type[nn.Module] = Block
        if c.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=_kept(c))
        self.embed = Embed(c)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *4 * (nn.broadcast,)),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        if c.positions == "relative":
            init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
            self.relative_bias = self.param(
                "relative_bias",
                nn.with_logical_partitioning(init, ("heads", "relpos_buckets")),
                (c.num_heads, RELATIVE_BUCKETS),
                jnp.float32,
            )
        self.final_norm = make_norm(c)
        if not c.tied_embeddings:
            shape, axes = (c.embed_dim, c.vocab_size), ("embed", "vocab")
            lora = c.adapter("unembed")
            self.unembed = Dense(shape, axes, 1, c.dtype, out_dtype="float32", lora=lora)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask: jax.Array | CausalRows | TreeRows,
        cache: KVCache | None = None,
        index: int | jax.Array = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        """Returns the hidden states after the last norm.

        Args:
          tokens_BT: int32 token ids.
          positions_BT: int32 position of each token.
          mask: bool [B, T, S], True where a query sees a key; CausalRows for the platform's
            kernel; or TreeRows, whose blocks attend apart where that takes less. If S is T, the
            tokens attend to each other; if S is the cache's length, they attend to the cache.
          cache: a cache to write at `index`, in place.
          index: column of the cache where the first of the T tokens goes.

        Returns:
          hidden_BTD in the compute type, and the cache.
        """
        x_BTD = self.embed(tokens_BT)
        seen, bias_HN = self._seen(mask)
        layers = Layers.of(self.config)
        shared = positions_BT, seen, bias_HN, index
        if kernels.written_out(self.config) and not self.is_initializing():
            x_BTD, cache = self._in_turn(x_BTD, cache, layers, *shared)
        else:
            (x_BTD, cache), _ = self.layers((x_BTD, cache), layers, *shared)
        return self.final_norm(x_BTD), cache

    def _seen(self, mask: jax.Array | CausalRows | TreeRows):
        """What the layers' attention takes for a mask, made once here and not in each of them."""
        relative, windows = self.config.positions == "relative", any(self.config.windows)
        if isinstance(mask, CausalRows):
            if kernels.choose(self.config) != "xla":
                return mask, None
            mask = mask.dense()
        if isinstance(mask, TreeRows):
            branches = None if relative or windows else mask.apart(cost)
            if branches is not None:
                return branches, None
            mask = mask.dense()
        if relative:
            return relative_buckets(mask), self.relative_bias
        return (distances(mask) if windows else mask), None

    def _in_turn(self, x_BTD, cache, layers: Layers, *shared):
        """Applies the layers without a loop."""
        c = self.config
        stack = nn.meta.unbox(self.variables["params"]["layers"])
        each = stack if "0" in stack else _apart(stack, c.num_layers)
        for number in range(c.num_layers):
            layer = jax.tree.map(lambda x, n=number: x[n], layers).replace(number_L=number)

            def block(params, x_BTD, cache, layer=layer):
                return Block(c, parent=None).apply(
                    {"params": params}, (x_BTD, cache), layer, *shared
                )[0]

            if c.remat != "none":
                block = jax.checkpoint(block, policy=_kept(c))
            x_BTD, cache = block(each[str(number)], x_BTD, cache)
        return x_BTD, cache

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns the logits of the next token, float32 [B, T, V]."""
        if self.config.tied_embeddings:
            logits_BTV = self.embed.attend(hidden_BTD)
        else:
            logits_BTV = self.unembed(hidden_BTD)
        return constrain(capped(logits_BTV, self.config.logit_cap), "batch", "length", "vocab")


class LanguageModel(nn.Module):
    """Computes a policy or PIT model: the decoder and its logits, in one set of parameters."""

    config: NetworkConfig

    def setup(self):
        self.decoder = Decoder(self.config)

    def __call__(self, tokens_BT, positions_BT, mask, first: int = 0) -> jax.Array:
        """Returns the logits of the columns from `first` on, float32 [B, T - first, V]."""
        return self.logits(self.hidden(tokens_BT, positions_BT, mask)[:, first:])

    def hidden(self, tokens_BT, positions_BT, mask) -> jax.Array:
        """Returns the hidden states after the last norm, [B, T, D] in the compute type."""
        return self.decoder(tokens_BT, positions_BT, mask)[0]

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns the logits of hidden states, float32 [B, T, V]; `head_of` is all it reads."""
        return self.decoder.logits(hidden_BTD)

    def step(self, tokens_BT, positions_BT, mask, cache: KVCache, index):
        """Returns the last column's logits, float32 [B, V], and the cache with the tokens written.

        The arguments are those of Decoder.__call__.
        """
        hidden_BTD, written = self.decoder(tokens_BT, positions_BT, mask, cache, index)
        return self.decoder.logits(hidden_BTD[:, -1:])[:, 0], written


def head_of(params, config: NetworkConfig):
    """Returns the part of a language model's parameters that `LanguageModel.logits` reads."""
    decoder = params["decoder"]
    names = ("embed" if config.tied_embeddings else "unembed", "relative_bias")
    return {"decoder": {name: decoder[name] for name in names if name in decoder}}


def for_decoding(params, config: NetworkConfig):
    """Prepares a language model's parameters for many passes: in the compute type, and apart.

    Where layers are written out, their stack is taken apart here, once, and not for each token.
    """
    params = in_compute_type(params, config)
    if not kernels.written_out(config):
        return params
    decoder = params["decoder"]
    apart = _apart(decoder["layers"], config.num_layers)
    return {**params, "decoder": {**decoder, "layers": apart}}


# Of the decoder's parameters, those that every use of them casts to the compute type.
_MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


def in_compute_type(params, config: NetworkConfig):
    """Casts the decoder's matrices to the compute type, as every use of them does anyway.

    With bfloat16 this halves the memory that frozen models take and that decoding reads, and
    changes no result. Matrices that are int8 stay so.
    """

    def one(path, x):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        matrix = "decoder" in names and names[-1] in _MATRICES and x.dtype != jnp.int8
        return x.astype(config.dtype) if matrix else x

    return jax.tree_util.tree_map_with_path(one, params)
