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

_PIT_TASKS = (*stages.PIT_SUPERVISED, *stages.PIT_RL, "rm_gap")


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
    role = run.role_name(name)
    own, model = run.role(role), run.config.of_role(role)
    kind, _, source = model.vocabulary.partition(":")
    if kind != "tokenizer":
        raise UserError(
            f"{name}: got vocabulary {model.vocabulary!r}, expected 'tokenizer:PATH', whose "
            "tokenizer.json transformers loads"
        )
    scalar = result["task"] in stages.REWARD_TASKS
    if scalar and result["pooling"] != "last":
        raise UserError(
            f"{name}: got pooling={result['pooling']!r}, expected 'last': transformers reads "
            "the score at the last token"
        )
    architecture = hugging_face.save(folder, run.load(name), own.network, own.vocabulary, dtype)
    improver = result["task"] in _PIT_TASKS
    template = model.chat_template
    pieces = write_tokenizer(epath.Path(source), folder, own.vocabulary, template, improver)
    if processes.is_first():
        anchor = run.anchor(name) if scalar else None
        text = _given(own.vocabulary, result["task"], pieces)
        if run.reflects(name):
            text += _written(pieces["improved"], own.vocabulary, own.widths.reflected)
        write_whole(folder / "README.md", _card(name, result, architecture, text, anchor))
    return architecture


def _given(vocabulary: Any, task: str, pieces: dict[str, str]) -> list[str]:
    """Says, in lines of Markdown, what a task's model is given."""
    improver, scalar = task in _PIT_TASKS, task in stages.REWARD_TASKS
    if vocabulary.has_template:
        lines = [
            "The turns of a dialogue, as the tokenizer's `apply_chat_template` renders them with"
        ]
        lines.append("`add_generation_prompt=True`.")
        if improver:
            lines.append("The last turn, of the role `candidate`, is the response to improve.")
        follows = "the response to score and the end-of-text token"
        return [*lines, f"Then {follows}."] if scalar else lines
    space = "" if vocabulary.prefixes_space else " "
    text = "    Human: {prompt}Assistant:"
    text += f"{pieces['candidate']}{space}{{response}}{pieces['improved']}" if improver else ""
    text += f"{space}{{response to score}}" if scalar else ""
    lines = [
        text,
        "",
        "What is in braces and what stands between is tokenized one by one, and joined.",
    ]
    if vocabulary.bos_id is not None:
        lines.append("The first token is BOS.")
    return [*lines, "The end-of-text token comes last."] if scalar else lines


def _written(improved: str, vocabulary: Any, window: int) -> list[str]:
    """Says, in lines of Markdown, what a model writes that reflects first, of `window` tokens."""
    id_ = int(vocabulary.tokenizer_ids[vocabulary.control_tokens.improved])
    return [
        "",
        "## What it writes",
        "",
        f"A reflection, `{improved}` and the response, of at most {window} tokens together, so set",
        f"`max_new_tokens={window}`. The response is what follows the last `{improved}`, which is",
        f"the id {id_}. `decode` with `skip_special_tokens=True` leaves it out, so split the ids",
        "first.",
        "A text that ended without it is a response alone.",
    ]


def _card(
    name: str, result: dict[str, Any], architecture: str, given: list[str], anchor: float | None
) -> str:
    """Says what a model is and what it is to be given; after that `given` may say more."""
    task = result["task"]
    what = {
        "pretrain": "a language model",
        "sft_policy": "a policy M_P after supervised fine-tuning, which answers a prompt",
        **dict.fromkeys(
            stages.PIT_SUPERVISED,
            "an improver M_PIT after supervised fine-tuning, which makes a better response of a "
            "prompt and a response",
        ),
        "rl_policy": "a policy M_P after reinforcement learning, which answers a prompt",
        **dict.fromkeys(
            stages.PIT_RL,
            "an improver M_PIT after curriculum reinforcement learning, which makes a better "
            "response of a prompt and a response",
        ),
        "rm_policy": "a reward model R_P, which scores a response to a prompt",
        "rm_gap": "a gap reward model R_PIT, which scores how much better one response is than "
        "another",
    }[task]
    auto = "SequenceClassification" if anchor is not None else "CausalLM"
    lines = [
        "---",
        "library_name: transformers",
        "tags: [pit]",
        "---",
        "",
        f"# {name}",
        "",
        f"This is {what}. pit_jax trained it by PIT (arXiv 2310.00898) in {result['steps']} steps.",
        f"It is a `{architecture}`; `AutoModelFor{auto}.from_pretrained` loads it.",
        "",
        "## What it is given",
        "",
        *given,
    ]
    if anchor is not None:
        lines += ["", f"A score of {anchor:.4f} counts as 0: subtract it."]
    return "\n".join(lines) + "\n"
