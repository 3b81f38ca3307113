"""Reads a GGUF file, as llama.cpp keeps models, with the package `gguf`, and dequantises it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from pit_jax.errors import UserError
from pit_jax.files import on_disk
from pit_jax.models.weights import hugging_face, tables
from pit_jax.models.weights.rows import Row

_TABLES = {"llama": tables.GGUF_LLAMA, "qwen2": tables.GGUF_QWEN, "qwen3": tables.GGUF_QWEN}
# The numbers of config.json, and the names of GGUF's fields after that of the architecture.
_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
}


class GGUFFile:
    """Has the tensors of a GGUF file.

    Attributes:
      where: the file.
      shapes: the shape of each tensor.
      architecture: the file's name for the family.

    Raises:
      UserError: if the package `gguf` is missing, the file is damaged, or the architecture is one
        that we don't know.
    """

    def __init__(self, path: epath.Path):
        try:
            import gguf
        except ImportError as error:
            raise UserError(
                f"{path}: a GGUF file needs the package gguf: pip install '.[gguf]'"
            ) from error
        try:
            self._reader = gguf.GGUFReader(on_disk(path.parent, (path.name,)) / path.name)
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}: {error}; the file isn't whole, get it again") from error
        self._dequantize = gguf.quants.dequantize
        self.where = str(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(int(n) for n in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        self.architecture = self._field("general.architecture")
        if self.architecture not in _TABLES:
            raise UserError(
                f"{path}: got architecture {self.architecture!r}, expected one of "
                f"{', '.join(_TABLES)}"
            )

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        return None if field is None else field.contents()

    def config(self) -> dict[str, Any]:
        """Makes the content of a `config.json`.

        Raises:
          UserError: if the file scales rotary positions in a way that it doesn't tell.
        """
        scaling = self._field(f"{self.architecture}.rope.scaling.type")
        if "rope_freqs.weight" in self.shapes or scaling not in (None, "none", "linear"):
            raise UserError(
                f"{self.where}: got rotary positions scaled by {scaling or 'rope_freqs.weight'}, "
                "expected none or linear; take the model's safetensors"
            )
        config = {"model_type": self.architecture}
        for ours, theirs in _FIELDS.items():
            value = self._field(f"{self.architecture}.{theirs}")
            if value is not None:  # of float32, the number that was meant
                config[ours] = float(f"{value:.7g}") if isinstance(value, float) else value
        if scaling == "linear":
            factor = self._field(f"{self.architecture}.rope.scaling.factor")
            config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
        tied = "output.weight" not in self.shapes
        return config | {
            "vocab_size": self.shapes["token_embd.weight"][0],
            "tie_word_embeddings": tied,
        }

    def read(self, name: str, part: slice) -> np.ndarray:
        """Returns a slice of a tensor's first dim, float32."""
        tensor = self._tensors[name]
        return self._dequantize(tensor.data[part], tensor.tensor_type).astype(np.float32)


def read(path: epath.Path, abstract: Any) -> Any:
    """Reads a file's weights onto the mesh, as `hugging_face.read` does those of a folder."""
    return hugging_face.fill(*checked(path, abstract), abstract)


def checked(path: epath.Path, abstract: Any) -> tuple[GGUFFile, Iterable[Row]]:
    """Returns a file's tensors and the family's table, once names and shapes are checked."""
    file = GGUFFile(path)
    table = _TABLES[file.architecture]
    hugging_face.check(file, table, abstract)
    return file, table
