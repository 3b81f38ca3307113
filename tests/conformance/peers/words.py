"""What the peers' tiny models read: a vocabulary of 16 words, and the shapes of a batch."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

PAD, EOS, VOCAB, B, P, R = 0, 1, 16, 16, 5, 6


def tokenizer():
    """A tokenizer of transformers, which all of the peers take."""
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{n}": n for n in range(2, VOCAB)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
