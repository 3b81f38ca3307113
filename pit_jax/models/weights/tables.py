"""Has a table of each family's tensors. What a row says, `rows` explains.

A table has the rows of all that its family may have; a row counts where our network has its
parameter. Names that no table has are refused, but for those that hold nothing learned (IDLE).
"""

from __future__ import annotations

from pit_jax.models.weights.rows import Row

# Buffers that older checkpoints hold: they follow from the configuration.
IDLE = (
    "model.layers.{}.self_attn.rotary_emb.inv_freq",
    "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
    "gpt_neox.layers.{}.attention.bias",
    "gpt_neox.layers.{}.attention.masked_bias",
)
# The output projection of tied embeddings, which some checkpoints repeat.
REPEATED = ("lm_head.weight", "embed_out.weight", "output.weight")

_LAYER = "model.layers.{}."
_ATTENTION = (
    Row(_LAYER + "self_attn.q_proj.weight", "layers/attention/query/kernel", "HE D -> D H E"),
    Row(_LAYER + "self_attn.k_proj.weight", "layers/attention/key/kernel", "KE D -> D K E"),
    Row(_LAYER + "self_attn.v_proj.weight", "layers/attention/value/kernel", "KE D -> D K E"),
    Row(_LAYER + "self_attn.o_proj.weight", "layers/attention/out/kernel", "D HE -> H E D"),
)
_BIASES = (
    Row(_LAYER + "self_attn.q_proj.bias", "layers/attention/query/bias", "HE -> H E"),
    Row(_LAYER + "self_attn.k_proj.bias", "layers/attention/key/bias", "KE -> K E"),
    Row(_LAYER + "self_attn.v_proj.bias", "layers/attention/value/bias", "KE -> K E"),
    Row(_LAYER + "self_attn.o_proj.bias", "layers/attention/out/bias", "D -> D"),
)
_MLP = (
    Row(_LAYER + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", "F D -> D F"),
    Row(_LAYER + "mlp.up_proj.weight", "layers/mlp/up/kernel", "F D -> D F"),
    Row(_LAYER + "mlp.down_proj.weight", "layers/mlp/down/kernel", "D F -> F D"),
)
_MLP_BIASES = (
    Row(_LAYER + "mlp.gate_proj.bias", "layers/mlp/gate/bias", "F -> F"),
    Row(_LAYER + "mlp.up_proj.bias", "layers/mlp/up/bias", "F -> F"),
    Row(_LAYER + "mlp.down_proj.bias", "layers/mlp/down/bias", "D -> D"),
)
_ENDS = (
    Row("model.embed_tokens.weight", "embed/embedding", "V D -> V D"),
    Row("model.norm.weight", "final_norm/scale", "D -> D"),
    Row("lm_head.weight", "unembed/kernel", "V D -> D V"),
    Row("score.weight", "head/kernel", "S D -> D S"),
)
_BEFORE = (
    Row(_LAYER + "input_layernorm.weight", "layers/attention_norm/scale", "D -> D"),
    Row(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale", "D -> D"),
)
_HEAD_NORMS = (
    Row(_LAYER + "self_attn.q_norm.weight", "layers/attention/query_norm/scale", "E -> E"),
    Row(_LAYER + "self_attn.k_norm.weight", "layers/attention/key_norm/scale", "E -> E"),
)
_PROJECTION_NORMS = (
    Row(_LAYER + "self_attn.q_norm.weight", "layers/attention/query_norm/scale", "HE -> H E"),
    Row(_LAYER + "self_attn.k_norm.weight", "layers/attention/key_norm/scale", "KE -> K E"),
)
_AFTER = (
    Row(_LAYER + "post_attention_layernorm.weight", "layers/attention_post_norm/scale", "D -> D"),
    Row(_LAYER + "post_feedforward_layernorm.weight", "layers/mlp_post_norm/scale", "D -> D"),
)
_AROUND = (
    _BEFORE[0],
    Row(_LAYER + "pre_feedforward_layernorm.weight", "layers/mlp_norm/scale", "D -> D"),
    *_AFTER,
)

LLAMA = (*_ENDS, *_BEFORE, *_ATTENTION, *_BIASES, *_MLP, *_MLP_BIASES)
QWEN3 = (*LLAMA, *_HEAD_NORMS)
OLMO2 = (*_ENDS, *_AFTER, *_ATTENTION, *_BIASES, *_MLP, *_PROJECTION_NORMS)
GEMMA2 = (*_ENDS, *_AROUND, *_ATTENTION, *_BIASES, *_MLP)
GEMMA3 = (*GEMMA2, *_HEAD_NORMS)

_NEOX = "gpt_neox.layers.{}."
_QUERY_KEY_VALUE = tuple(enumerate(("query", "key", "value")))
NEOX = (
    Row("gpt_neox.embed_in.weight", "embed/embedding", "V D -> V D"),
    Row("gpt_neox.final_layer_norm.weight", "final_norm/scale", "D -> D"),
    Row("gpt_neox.final_layer_norm.bias", "final_norm/bias", "D -> D"),
    Row("embed_out.weight", "unembed/kernel", "V D -> D V"),
    Row("score.weight", "head/kernel", "S D -> D S"),
    Row(_NEOX + "input_layernorm.weight", "layers/attention_norm/scale", "D -> D"),
    Row(_NEOX + "input_layernorm.bias", "layers/attention_norm/bias", "D -> D"),
    Row(_NEOX + "post_attention_layernorm.weight", "layers/mlp_norm/scale", "D -> D"),
    Row(_NEOX + "post_attention_layernorm.bias", "layers/mlp_norm/bias", "D -> D"),
    *(
        Row(
            _NEOX + "attention.query_key_value.weight",
            f"layers/attention/{name}/kernel",
            "HCE D -> D H E",
            part,
        )
        for part, name in _QUERY_KEY_VALUE
    ),
    *(
        Row(
            _NEOX + "attention.query_key_value.bias",
            f"layers/attention/{name}/bias",
            "HCE -> H E",
            part,
        )
        for part, name in _QUERY_KEY_VALUE
    ),
    Row(_NEOX + "attention.dense.weight", "layers/attention/out/kernel", "D HE -> H E D"),
    Row(_NEOX + "attention.dense.bias", "layers/attention/out/bias", "D -> D"),
    Row(_NEOX + "mlp.dense_h_to_4h.weight", "layers/mlp/up/kernel", "F D -> D F"),
    Row(_NEOX + "mlp.dense_h_to_4h.bias", "layers/mlp/up/bias", "F -> F"),
    Row(_NEOX + "mlp.dense_4h_to_h.weight", "layers/mlp/down/kernel", "D F -> F D"),
    Row(_NEOX + "mlp.dense_4h_to_h.bias", "layers/mlp/down/bias", "D -> D"),
)

_BLOCK = "blk.{}."
_GGUF = (
    Row("token_embd.weight", "embed/embedding", "V D -> V D"),
    Row("output_norm.weight", "final_norm/scale", "D -> D"),
    Row("output.weight", "unembed/kernel", "V D -> D V"),
    Row(_BLOCK + "attn_norm.weight", "layers/attention_norm/scale", "D -> D"),
    Row(_BLOCK + "ffn_norm.weight", "layers/mlp_norm/scale", "D -> D"),
    Row(_BLOCK + "attn_v.weight", "layers/attention/value/kernel", "KE D -> D K E"),
    Row(_BLOCK + "attn_v.bias", "layers/attention/value/bias", "KE -> K E"),
    Row(_BLOCK + "attn_output.weight", "layers/attention/out/kernel", "D HE -> H E D"),
    Row(_BLOCK + "attn_output.bias", "layers/attention/out/bias", "D -> D"),
    Row(_BLOCK + "ffn_gate.weight", "layers/mlp/gate/kernel", "F D -> D F"),
    Row(_BLOCK + "ffn_up.weight", "layers/mlp/up/kernel", "F D -> D F"),
    Row(_BLOCK + "ffn_down.weight", "layers/mlp/down/kernel", "D F -> F D"),
)
# A GGUF file of the architecture `llama` has the numbers of each pair beside each other.
GGUF_LLAMA = (
    *_GGUF,
    Row(_BLOCK + "attn_q.weight", "layers/attention/query/kernel", "HIP D -> D H PI"),
    Row(_BLOCK + "attn_k.weight", "layers/attention/key/kernel", "KIP D -> D K PI"),
)
GGUF_QWEN = (
    *_GGUF,
    Row(_BLOCK + "attn_q.weight", "layers/attention/query/kernel", "HE D -> D H E"),
    Row(_BLOCK + "attn_q.bias", "layers/attention/query/bias", "HE -> H E"),
    Row(_BLOCK + "attn_k.weight", "layers/attention/key/kernel", "KE D -> D K E"),
    Row(_BLOCK + "attn_k.bias", "layers/attention/key/bias", "KE -> K E"),
    Row(_BLOCK + "attn_q_norm.weight", "layers/attention/query_norm/scale", "E -> E"),
    Row(_BLOCK + "attn_k_norm.weight", "layers/attention/key_norm/scale", "E -> E"),
)
