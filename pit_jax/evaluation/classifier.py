"""Judges by a sequence classifier of Hugging Face, as the paper does by DeBERTa (section 4.3).

Such a reward model reads a prompt and a response, and says how good the response is. PyTorch
computes it, on a GPU if there is one for PyTorch. Both packages are in the extra `judges`.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data.examples import Turns, turns_of
from pit_jax.data.files.json_values import printable
from pit_jax.errors import UserError
from pit_jax.evaluation import judges
from pit_jax.method.self_refine import as_text
from pit_jax.runtime import processes

# A prompt and a response to it.
Pair = tuple[str, str]

_DTYPES = ("float32", "bfloat16", "float16")
_PROGRESS_SECONDS = 30.0
# What a tokenizer says that knows no limit is larger.
_NO_LIMIT = 10**9


@dataclasses.dataclass(frozen=True)
@checked
class ClassifierConfig:
    """Says which sequence classifier judges, and how it is computed.

    Attributes:
      model: a folder, or a name on Hugging Face's hub.
      label: of a classifier with several labels, the one that means a good response; empty for a
        classifier with one label.
      batch_size: how many responses are scored at once.
      max_length: the most tokens of a prompt with its response, of which the longer one is cut at
        its end; 0 takes the most that the model can read.
      dtype: of the weights: `float32`, `bfloat16` or `float16`.
    """

    model: UserPath
    label: str = ""
    batch_size: int = 16
    max_length: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        at_least(self, 1, "batch_size")
        at_least(self, 0, "max_length")
        if not self.model:
            raise UserError("ClassifierConfig.model: got '', expected a folder or a name")
        if self.dtype not in _DTYPES:
            raise UserError(
                f"ClassifierConfig.dtype: got {self.dtype!r}, expected one of {', '.join(_DTYPES)}"
            )


class Classifier:
    """Computes a classifier by transformers; its weights are read when it first scores.

    Args:
      config: which one, and how.

    Attributes:
      max_length: the most tokens of a prompt with its response; None if there is no limit.

    Raises:
      UserError: if the packages or the model aren't there, or the configuration doesn't fit it.
    """

    def __init__(self, config: ClassifierConfig):
        try:
            import torch
            import transformers
        except ImportError:
            raise UserError(
                "EvaluationConfig.judge: a classifier needs torch and transformers: "
                "pip install '.[judges]' -c constraints.txt"
            ) from None
        self._torch, self._transformers, self._config = torch, transformers, config
        self._tokenizer = self._read(transformers.AutoTokenizer.from_pretrained, config.model)
        self._settings = self._read(transformers.AutoConfig.from_pretrained, config.model)
        self._model: Any = None
        self.max_length = self._most()
        self._label = self._place()

    def __call__(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
        """Scores N responses to prompts, the longest first.

        Returns:
          scores, float64 [N], whose sigmoid is what the pipeline `text-classification` gives for
          the label; whether each was cut, bool [N].

        Raises:
          UserError: if the weights can't be read, the memory is too small, or the chat template
            alone takes all tokens.
        """
        if self._model is None:
            self._model = self._load()
        lengths_N = np.array([len(ids) for ids in self._tokens(pairs)["input_ids"]])
        order_N, scores_N = np.argsort(-lengths_N, kind="stable"), np.zeros(len(pairs))
        count = self._config.batch_size if self._pads() else 1
        said = time.monotonic()
        for start in range(0, len(pairs), count):
            rows = order_N[start : start + count]
            scores_N[rows] = self._scores([pairs[row] for row in rows])
            if time.monotonic() - said > _PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"judge: {start + len(rows):,} of {len(pairs):,} scores", flush=True)
        return scores_N, lengths_N > (self.max_length or _NO_LIMIT)

    def _read(self, read: Callable, *args: Any, **more: Any) -> Any:
        try:
            return read(*args, **more)
        except Exception as error:  # of a hub, of files and of many classes
            reason = printable((str(error).splitlines() or [repr(error)])[0])[:300]
            raise UserError(
                f"ClassifierConfig.model: can't read {self._config.model}: {reason}"
            ) from None

    def _load(self) -> Any:
        torch, name = self._torch, self._config.model
        kind = self._transformers.AutoModelForSequenceClassification
        dtype = getattr(torch, self._config.dtype)
        model, found = self._read(kind.from_pretrained, name, dtype=dtype, output_loading_info=True)
        if missing := sorted(found["missing_keys"]):
            raise UserError(
                f"ClassifierConfig.model: {name} has no weights of {missing[0]}, expected a "
                "trained sequence classifier"
            )
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def _most(self) -> int | None:
        limits = (self._positions(), self._tokenizer.model_max_length)
        most = min((limit for limit in limits if 0 < (limit or 0) < _NO_LIMIT), default=None)
        asked = self._config.max_length
        if most and asked > most:
            raise UserError(
                f"ClassifierConfig.max_length: got {asked}, expected at most {most}, which is what "
                f"{self._config.model} can read"
            )
        return asked or most

    def _positions(self) -> int:
        """How many tokens the model has positions for; 0 if its configuration doesn't say."""
        torch = self._torch
        most = getattr(self._settings.get_text_config(), "max_position_embeddings", 0) or 0
        with torch.device("meta"):  # without weights
            kind = self._transformers.AutoModelForSequenceClassification
            model = self._read(kind.from_config, self._settings)
        for name, module in model.named_modules():
            # RoBERTa and its kin give padding a position, and count the others from the next one.
            if name.endswith(".position_embeddings") and isinstance(module, torch.nn.Embedding):
                return most if module.padding_idx is None else most - module.padding_idx - 1
        return most

    def _place(self) -> int:
        """The number of the label whose score counts."""
        labels = {str(name): place for place, name in self._settings.id2label.items()}
        label = self._config.label
        if label in labels or (not label and len(labels) == 1):
            return labels.get(label, 0)
        raise UserError(
            f"ClassifierConfig.label: got {label!r}, expected one of the labels of "
            f"{self._config.model}: {printable(', '.join(labels))}"
        )

    def _pads(self) -> bool:
        """Whether the model knows the padding of its tokenizer; else a batch has one row."""
        padding = self._settings.get_text_config().pad_token_id
        return padding is not None and padding == self._tokenizer.pad_token_id

    def _tokens(self, pairs: Sequence[Pair], most: int | None = None, **how: Any) -> Any:
        """The tokens of pairs, at most so many of each.

        They are those of the chat template where there is one, else of a pair of texts.
        """
        tokenizer = self._tokenizer
        if not tokenizer.chat_template:
            prompts, responses = [as_text(x) for x, _ in pairs], [text for _, text in pairs]
            if most:
                how |= {"truncation": True, "max_length": most}
            return tokenizer(prompts, responses, verbose=False, **how)
        chats = [(*turns_of(x), ("assistant", text)) for x, text in pairs]
        if most:
            chats = [self._cut(turns, most) for turns in chats]
        return self._by_template(chats, **how)

    def _by_template(self, chats: Sequence[Turns], **how: Any) -> Any:
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns], tokenize=False
            )
            for turns in chats
        ]
        return self._tokenizer(texts, add_special_tokens=False, verbose=False, **how)

    def _cut(self, turns: Turns, most: int) -> Turns:
        """The turns with at most so many tokens by the chat template.

        The longer of the last two turns, which are prompt and response, is cut at its end. So that
        much is left of both, the oldest turns go first where all but these two, with what the
        template adds, take more than half of the tokens.
        """

        if self._length(turns) <= most:
            return turns
        ends = [self._ends(content) for _, content in turns[-2:]]

        def shortened(kept: int) -> Turns:
            last = []
            for (role, content), end in zip(turns[-2:], ends, strict=True):
                last.append((role, content[: end[kept - 1]] if kept < len(end) else content))
            return (*turns[:-2], *last)

        while (others := self._length(shortened(1))) > most / 2 and (newer := _newer(turns)):
            turns = newer
        if others > most:
            raise UserError(
                f"ClassifierConfig.max_length: got {most}, expected at least {others}, which the "
                f"chat template of {self._config.model} takes for a prompt and a response of a "
                "token each"
            )
        # How many tokens can be kept of each of the two, beside the first.
        more = range(2, max(map(len, ends)) + 1)
        return shortened(1 + bisect.bisect(more, most, key=lambda n: self._length(shortened(n))))

    def _length(self, turns: Turns) -> int:
        return len(self._by_template([turns])["input_ids"][0])

    def _ends(self, text: str) -> list[int]:
        """Where each token of a text ends; of a tokenizer that doesn't tell, each character."""
        if not self._tokenizer.is_fast:
            return list(range(1, len(text) + 1))
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        return [end for _, end in self._tokenizer(text, **how)["offset_mapping"]]

    def _scores(self, pairs: Sequence[Pair]) -> np.ndarray:
        """The scores of one batch [B]."""
        torch = self._torch
        tokens = self._tokens(
            pairs,
            self.max_length,
            padding=len(pairs) > 1,
            padding_side="right",
            return_tensors="pt",
        )
        try:
            with torch.inference_mode():
                logits_BL = self._model(**tokens.to(self._model.device)).logits.double()
        except torch.cuda.OutOfMemoryError:
            raise UserError(
                f"ClassifierConfig.batch_size: {len(pairs)} responses of up to "
                f"{tokens['input_ids'].shape[1]} tokens don't fit into the GPU's memory, expected "
                "fewer; XLA_PYTHON_CLIENT_PREALLOCATE=false leaves what JAX doesn't use"
            ) from None
        scores_B = logits_BL[:, self._label]
        kind = self._settings.problem_type
        if logits_BL.shape[1] > 1 and kind not in ("regression", "multi_label_classification"):
            others_BL = logits_BL.clone()
            others_BL[:, self._label] = -torch.inf
            scores_B = scores_B - torch.logsumexp(others_BL, 1)
        return scores_B.cpu().numpy()


def _newer(turns: Turns) -> Turns:
    """The turns from the second of the user's on, after what the system says; none if it's last."""
    system = [turn for turn in turns[:1] if turn[0] == "system"]
    for place in range(len(system) + 1, len(turns) - 1):
        if turns[place][0] == "user":
            return (*system, *turns[place:])
    return ()


def name_of(config: ClassifierConfig) -> str:
    """Returns the judge's name in tables."""
    return f"classifier {config.model}"


class ClassifierJudge(judges.ByScores):
    """Judges by the scores of a classifier, with the paper's tie rule (section 4.4).

    Where several processes run, the first one scores, and the others take 0 for all: it alone
    prints and writes.

    Args:
      config: which classifier.

    Attributes:
      name: the judge's name in tables.
      bounds: None: a score can be any number.

    Raises:
      UserError: as `Classifier`.
    """

    bounds: None = None

    def __init__(self, config: ClassifierConfig):
        self.name = name_of(config)
        self._classifier = Classifier(config)
        # The score of all that was scored so far, and whether it was cut.
        self._known: dict[Pair, tuple[float, bool]] = {}

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns the scores [N], float64, of which each is computed once.

        Raises:
          ValueError: if there isn't a response to each prompt.
          UserError: if the classifier can't be computed, or a score is no number.
        """
        judges.check_lengths(prompts, responses)
        pairs, problem = list(zip(prompts, responses, strict=True)), ""
        if processes.is_first():
            try:
                self._score([pair for pair in dict.fromkeys(pairs) if pair not in self._known])
            except UserError as error:
                problem = str(error)
        if processes.any_process(bool(problem)):
            raise UserError(problem or "the judge can't score, and the first process says why")
        return np.array([self._known.get(pair, (0.0, False))[0] for pair in pairs], np.float64)

    def warnings(self) -> list[str]:
        """Says how many of all responses so far were cut with their prompts, if any."""
        cut = sum(was_cut for _, was_cut in self._known.values())
        if not cut:
            return []
        return [
            f"the {self.name} scores {cut:,} of {len(self._known):,} responses by a part: with its "
            f"prompt each is over {self._classifier.max_length:,} tokens, and what is over is cut"
        ]

    def _score(self, pairs: Sequence[Pair]) -> None:
        if not pairs:
            return
        scores, cut = self._classifier(pairs)
        if not np.isfinite(scores).all():
            where = pairs[int(np.argmin(np.isfinite(scores)))]
            raise UserError(
                f"ClassifierConfig.model: the {self.name} gives no number for the response "
                f"{where[1][:60]!r}, expected one; float32 has the widest range"
            )
        self._known |= dict(zip(pairs, zip(scores.tolist(), cut.tolist()), strict=True))
        if cut.any():
            print(
                f"judge: {int(cut.sum()):,} of {len(pairs):,} responses are over "
                f"{self._classifier.max_length:,} tokens with their prompts, and are cut",
                flush=True,
            )
