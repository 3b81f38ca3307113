"""Writes a tokenizer with the pieces that its vocabulary has added, as transformers loads it."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.errors import UserError
from pit_jax.files import write_whole

# What added pieces are called; the vocabulary of a tokenizer that has them takes them as they are.
ADDED = {"pad": "<<Pad>>", "candidate": "<<Candidate>>", "improved": "<<Improved>>"}
_CONFIG = "tokenizer_config.json"


def piece_ids(vocabulary: Any) -> dict[str, int]:
    """Returns the tokenizer's own id of padding, `<<Candidate>>` and `<<Improved>>`."""
    control = vocabulary.control_tokens
    ours = {"pad": PAD_ID, "candidate": control.candidate, "improved": control.improved}
    return {name: int(vocabulary.tokenizer_ids[id_]) for name, id_ in ours.items()}


def write_tokenizer(
    source: epath.Path, folder: epath.Path, vocabulary: Any, chat_template: str = ""
) -> dict[str, str]:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Args:
      source: the tokenizer's file or folder, which the vocabulary was made of.
      folder: where they are written.
      vocabulary: its added pieces become special tokens of the tokenizer.
      chat_template: takes the place of the tokenizer's own; empty leaves it.

    Returns:
      the pieces of padding, `<<Candidate>>` and `<<Improved>>`, by these names: pad, candidate,
      improved.

    Raises:
      UserError: if the source isn't a `tokenizer.json`.
    """
    from tokenizers import AddedToken, Tokenizer

    file = source / "tokenizer.json" if source.is_dir() else source
    if file.suffix != ".json":
        raise UserError(f"{file}: expected a tokenizer.json, which transformers loads")
    tokenizer = Tokenizer.from_str(file.read_text())
    ids = piece_ids(vocabulary)
    for name, id_ in sorted(ids.items(), key=lambda item: item[1]):
        if id_ >= vocabulary.num_pieces:
            tokenizer.add_special_tokens([AddedToken(ADDED[name], special=True)])
    pieces = {name: str(tokenizer.id_to_token(id_)) for name, id_ in ids.items()}
    config_file = file.with_name(_CONFIG)
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    # The table of added pieces is that of tokenizer.json, which now has more.
    config.pop("added_tokens_decoder", None)
    config |= {"pad_token": pieces["pad"], "padding_side": "left"}
    if chat_template:
        config["chat_template"] = chat_template
    write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_whole(folder / _CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return pieces
