"""Takes a trained model out into a folder that transformers loads, with a card that explains it."""

from __future__ import annotations

from typing import Any

from etils import epath

from pit_jax.data.vocabularies.export import write_tokenizer
from pit_jax.errors import UserError
from pit_jax.files import write_whole
from pit_jax.run import hugging_face, stages
from pit_jax.run.run import Run
from pit_jax.runtime import processes

_PIT_TASKS = ("sft_pit", "rl_pit", "rm_gap")
_LOADED_BY = {
    False: "AutoModelForCausalLM",
    True: "AutoModelForSequenceClassification",
}


def take_out(run: Run, name: str, folder: epath.Path, dtype: str = "float32") -> str:
    """Writes a stage's model, its tokenizer and a card into a folder.

    Policy and PIT become language models, reward models ones with one label.

    Args:
      run: the run that trained the stage.
      name: the stage.
      folder: a folder, made if missing.
      dtype: of the weights: `float32` or `bfloat16`.

    Returns:
      the class of transformers that loads it.

    Raises:
      UserError: if the stage isn't trained, its vocabulary is no `tokenizer.json`, its score isn't
        read as transformers reads one, or no family computes what its network does.
    """
    result = run.result(name)
    kind, _, source = run.config.vocabulary.partition(":")
    if kind != "tokenizer":
        raise UserError(
            f"{name}: got vocabulary {run.config.vocabulary!r}, expected 'tokenizer:PATH', whose "
            "tokenizer.json transformers loads"
        )
    scalar = result["task"] in stages.REWARD_TASKS
    if scalar and result["pooling"] != "last":
        raise UserError(
            f"{name}: got pooling={result['pooling']!r}, expected 'last': transformers reads "
            "the score at the last token"
        )
    architecture = hugging_face.save(
        folder, run.load(name), run.config.network, run.vocabulary, dtype
    )
    improver = result["task"] in _PIT_TASKS
    template = run.config.chat_template
    pieces = write_tokenizer(epath.Path(source), folder, run.vocabulary, template, improver)
    if processes.is_first():
        card = _card(name, result, architecture, pieces, run.anchor(name) if scalar else None)
        write_whole(folder / "README.md", card)
    return architecture


def _card(
    name: str, result: dict[str, Any], architecture: str, pieces: dict[str, str], anchor: Any
) -> str:
    """Says what a model is and what it is to be given."""
    task = result["task"]
    what = {
        "pretrain": "a language model",
        "sft_policy": "a policy M_P after supervised fine-tuning, which answers a prompt",
        "sft_pit": "an improver M_PIT after supervised fine-tuning, which makes a better response "
        "of a prompt and a response",
        "rl_policy": "a policy M_P after reinforcement learning, which answers a prompt",
        "rl_pit": "an improver M_PIT after curriculum reinforcement learning, which makes a better "
        "response of a prompt and a response",
        "rm_policy": "a reward model R_P, which scores a response to a prompt",
        "rm_gap": "a gap reward model R_PIT, which scores how much better one response is than "
        "another",
    }[task]
    prompt = "Human: {prompt}Assistant:"
    reference = f"{pieces['candidate']} {{response}}{pieces['improved']}"
    given = prompt + (reference if task in _PIT_TASKS else "")
    given += " {response to score}" if anchor is not None else ""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [pit]",
        "---",
        "",
        f"# {name}",
        "",
        f"This is {what}. pit_jax trained it by PIT (arXiv 2310.00898) in {result['steps']} steps.",
        f"It is a `{architecture}`; `{_LOADED_BY[anchor is not None]}.from_pretrained` loads it.",
        "",
        "## What it is given",
        "",
        "    " + given,
        "",
        "The pieces in braces and what stands between them are tokenized one by one, without",
        "special tokens, and joined.",
    ]
    if anchor is not None:
        lines += [f"A score of {anchor:.4f} counts as 0: subtract it.", ""]
    return "\n".join(lines) + "\n"
