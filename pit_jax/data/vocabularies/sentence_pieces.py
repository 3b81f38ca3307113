"""Makes vocabularies of SentencePiece models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from pit_jax.data.vocabularies import tokenizer_files
from pit_jax.data.vocabularies.subwords import MARK, SubwordVocabulary, choose_roles, fingerprint


class SentencePieceVocabulary(SubwordVocabulary):
    """Uses a SentencePiece model (`tokenizer.model`, `spiece.model`) with its normalisation.

    Reserved are its control and unused pieces, and user-defined pieces that look like marks
    (`<extra_id_0>`, `[INST]`) or are named here; other user-defined pieces stay text.
    """

    def __init__(
        self,
        path: str,
        control_tokens: Sequence[str] = (),
        eos_token: str = "",
        pad_token: str = "",
    ):
        """Reads the model.

        Args:
          path: a local file.
          control_tokens: names of the reserved pieces for `<<Candidate>>` and `<<Improved>>`, by
            default appended ids.
          eos_token: name of the EOS piece, by default the model's own.
          pad_token: name of the padding piece, by default the model's own, else an appended id.

        Raises:
          UserError: if the file can't be read, or a name doesn't fit.
        """
        try:
            import sentencepiece
            from sentencepiece import sentencepiece_model_pb2
        except ImportError as error:
            raise tokenizer_files.not_installed(path, "sentencepiece protobuf", error) from error

        content = tokenizer_files.read(epath.Path(path))
        messages: Any = sentencepiece_model_pb2
        piece_type = messages.ModelProto.SentencePiece
        try:
            model = messages.ModelProto.FromString(content)
            if not model.pieces or any(isinstance(piece.piece, bytes) for piece in model.pieces):
                raise ValueError("it has no pieces, or pieces that aren't UTF-8")
        except Exception as error:
            raise tokenizer_files.unreadable(path, "a SentencePiece model", error) from error
        ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
        types = {piece.piece: piece.type for piece in model.pieces}
        control = {name for name, type_ in types.items() if type_ == piece_type.CONTROL}
        closed = control | {name for name, type_ in types.items() if type_ == piece_type.UNUSED}
        defined = {name for name, type_ in types.items() if type_ == piece_type.USER_DEFINED}
        unknown = next((name for name in ids if types[name] == piece_type.UNKNOWN), None)
        own_eos, own_pad = model.trainer_spec.eos_piece, model.trainer_spec.pad_piece
        roles = choose_roles(
            path,
            ids,
            closed | defined,
            unknown,
            control_tokens,
            eos_token or (own_eos if own_eos in control else ""),
            pad_token or (own_pad if own_pad in control else ""),
            advice="train it with control_symbols or user_defined_symbols, or take its "
            "tokenizer.json and add some with add_special_tokens of the package tokenizers",
        )
        folder = epath.Path(path).parent
        config = tokenizer_files.settings(folder / tokenizer_files.CONFIG)
        bos = tokenizer_files.special_names(config).get("bos_token", model.trainer_spec.bos_piece)
        adds_bos = config.get("add_bos_token") is True and bos in control
        ends = [i for i in tokenizer_files.end_ids(folder) if 0 <= i < len(model.pieces)]
        closed |= {name for name in defined if MARK.fullmatch(name)} | {*roles} - {""}
        for piece in model.pieces:
            if piece.piece in closed and piece.type == piece_type.USER_DEFINED:
                piece.type = piece_type.CONTROL
        super().__init__(
            ids,
            [ids[name] for name in closed],
            None if unknown is None else ids[unknown],
            roles,
            fingerprint("sentencepiece", content, roles),
            bos=ids[bos] if adds_bos else None,
            ends=[i for i in ends if model.pieces[i].piece in closed],
        )
        make = sentencepiece.SentencePieceProcessor
        try:
            self._model = make(model_proto=model.SerializeToString())
        except Exception as error:
            raise tokenizer_files.unreadable(path, "a SentencePiece model", error) from error
        model.normalizer_spec.add_dummy_prefix = False
        self._joining = make(model_proto=model.SerializeToString())
        self._settle()

    def _pieces(self, text: str, joined: bool = False) -> Sequence[int]:
        return (self._joining if joined else self._model).encode(text)

    def _pieces_of(self, texts: list[str], joined: bool) -> Sequence[Sequence[int]]:
        return (self._joining if joined else self._model).encode(texts)

    def _shown(self, pieces: Sequence[int]) -> str:
        return "".join(self._model.id_to_piece(list(pieces)))

    def _joined(self, pieces: list[int]) -> str:
        return self._model.decode(pieces)
