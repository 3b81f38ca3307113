"""Takes a trained model out into a folder, with its tokenizer and a card that explains it.

It goes out whole, for transformers, with its adapters merged if it has some; or these alone, for
the library PEFT.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from pit_jax.data.vocabularies.export import piece_ids, write_tokenizer
from pit_jax.errors import UserError
from pit_jax.files import write_whole
from pit_jax.models import adapters
from pit_jax.models.weights import configs, peft
from pit_jax.run import hugging_face, loading, stages
from pit_jax.run.run import Run
from pit_jax.runtime import processes

_PIT_TASKS = (*stages.PIT_SUPERVISED, *stages.PIT_RL, "rm_gap")
# What each id that may be added is called, and the setting that takes one of the tokenizer's.
_SETTINGS = {"pad": "pad_token", "candidate": "control_tokens", "improved": "control_tokens"}


def take_out(run: Run, name: str, folder: epath.Path, dtype: str = "float32") -> str:
    """Writes a stage's whole model, its tokenizer and a card into a folder.

    Policy and PIT become language models, reward models ones with one label. Adapters are merged.

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
    _check(run, name)
    role, lora = run.role_of(name), loading.lora_of(run, name, run.role_name(name))
    params = run.load(name)
    params = adapters.merged(params, lora) if lora else params
    network = role.network.without_adapters
    architecture = hugging_face.save(folder, params, network, role.vocabulary, dtype)
    auto = "SequenceClassification" if "head" in params else "CausalLM"
    lines = [f"It is a `{architecture}`; `AutoModelFor{auto}.from_pretrained` loads it."]
    _write_rest(run, name, folder, ["library_name: transformers"], lines)
    return architecture


def take_out_adapter(
    run: Run,
    name: str,
    folder: epath.Path,
    dtype: str = "float32",
    base: str = "",
    with_base: epath.Path | None = None,
) -> str:
    """Writes a stage's adapters for PEFT, their tokenizer and a card into a folder.

    Args:
      run: the run that trained the stage.
      name: the stage.
      folder: a folder, made if missing.
      dtype: of the weights: `float32` or `bfloat16`.
      base: what to call the base model in place of where the backbone has come from.
      with_base: a folder to write the backbone into, with rows for all ids, which is the base model
        then; None to leave it where it is.

    Returns:
      the name of the base model.

    Raises:
      UserError: as `take_out`; or if the stage has no adapters, nobody knows their base model, or
        that one lacks rows of ids.
    """
    result = run.result(name)
    role, lora = run.role_of(name), loading.lora_of(run, name, run.role_name(name))
    if lora is None:
        raise UserError(f"{name}: got a model without adapters, expected one; --to=hf takes it out")
    _check(run, name)
    network = role.network.without_adapters
    model_type = configs.model_type_of(network)
    params = run.load(name)
    if not isinstance(params, adapters.Adapted):
        raise UserError(f"{name}: got adapters {lora}, expected NetworkConfig.lora of this run")
    if with_base is None:
        unembed = "unembed" in params.own.get("decoder", {})
        _check_ids(role.vocabulary, name, result["task"], unembed)
        base = base or _source(run, name)
    else:
        hugging_face.save(with_base, params.backbone, network, role.vocabulary, dtype)
        _write_tokenizer(run, name, with_base, improver=False)
        base = str(with_base)
    own = hugging_face.in_their_order(params.own, role.vocabulary)
    kept = ("task", "pooling", "anchor")
    notes: dict[str, Any] = {field: result[field] for field in kept if field in result}
    if with_base is None:
        model = run.config.of_role(run.role_name(name))
        notes["tokens"] = {field: getattr(model, field) for field in hugging_face.TOKENS}
    peft.write(folder, own, lora, model_type, base, dtype, notes)
    head = ["library_name: peft", f"base_model: {base}"]
    scalar = "head" in own
    auto = "SequenceClassification" if scalar else "CausalLM"
    lines = [
        f"It is a LoRA adapter of rank {lora.rank} for `{base}`, which PEFT loads:",
        "",
        f"    base = AutoModelFor{auto}.from_pretrained(BASE{', num_labels=1' * scalar})",
        *["    base.config.pad_token_id = tokenizer.pad_token_id"] * scalar,
        "    model = PeftModel.from_pretrained(base, FOLDER)",
        "",
        "The tokenizer is the one in this folder.",
    ]
    if lora.backbone == "int8" and with_base is None:
        lines.append("It was trained on the base model in int8, so scores and odds differ a bit.")
    _write_rest(run, name, folder, head, lines, added=with_base is not None)
    return base


def _check(run: Run, name: str) -> None:
    """Refuses a tokenizer, or a way to read scores, that transformers doesn't have."""
    result, model = run.result(name), run.config.of_role(run.role_name(name))
    if model.vocabulary.partition(":")[0] != "tokenizer":
        raise UserError(
            f"{name}: got vocabulary {model.vocabulary!r}, expected 'tokenizer:PATH', whose "
            "tokenizer.json transformers loads"
        )
    if result["task"] in stages.REWARD_TASKS and result["pooling"] != "last":
        raise UserError(
            f"{name}: got pooling={result['pooling']!r}, expected 'last': transformers reads "
            "the score at the last token"
        )


def _check_ids(vocabulary: Any, name: str, task: str, unembed: bool) -> None:
    """Refuses adapters that need rows of ids which the base model doesn't have."""
    used = (["candidate", "improved"] if task in _PIT_TASKS else []) + (
        # Where it looks for the last token, transformers takes EOS for padding if that is EOS.
        ["pad"] if task in stages.REWARD_TASKS else []
    )
    ids = piece_ids(vocabulary)
    added = [each for each in used if ids[each] >= vocabulary.num_pieces]
    if added:
        settings = " and ".join(sorted({f"RunConfig.{_SETTINGS[each]}" for each in added}))
        raise UserError(
            f"{name}: got ids that were added to the tokenizer ({', '.join(added)}), expected ones "
            "that the base model has rows for: add --with_base=DIR, which writes the base model "
            f"with rows for them, or train with {settings} set to reserved pieces of the tokenizer"
        )
    if unembed:
        raise UserError(
            f"{name}: got an adapter of unembed, which has a column for each of our ids, expected "
            "--with_base=DIR, which writes the base model with as many"
        )


def _source(run: Run, name: str) -> str:
    """What the backbone of a stage is called elsewhere."""
    backbone = loading.backbone_of(run, name, run.role_name(name))
    folder = run.folder(backbone)
    if hugging_face.is_model(folder):
        source = hugging_face.source_of(str(folder), folder)
    else:
        source = run.result(backbone).get("source", "")
    if not source:
        raise UserError(
            f"{name}: got the backbone {backbone!r}, whose Hugging Face folder isn't known, "
            "expected --with_base=DIR, which writes it, or --base=NAME, which says what it is"
        )
    return source


def _write_tokenizer(
    run: Run, name: str, folder: epath.Path, improver: bool, added: bool = True
) -> dict[str, str]:
    role = run.role_name(name)
    model, vocabulary = run.config.of_role(role), run.role(role).vocabulary
    source = epath.Path(model.vocabulary.partition(":")[2])
    return write_tokenizer(source, folder, vocabulary, model.chat_template, improver, added)


def _write_rest(
    run: Run, name: str, folder: epath.Path, head: list[str], lines: list[str], added: bool = True
) -> None:
    """Writes tokenizer and card of a stage; for `added` see `write_tokenizer`."""
    result, role = run.result(name), run.role_of(name)
    task = result["task"]
    pieces = _write_tokenizer(run, name, folder, task in _PIT_TASKS, added)
    if not processes.is_first():
        return
    anchor = run.anchor(name) if task in stages.REWARD_TASKS else None
    text = _given(role.vocabulary, task, pieces)
    if run.reflects(name):
        text += _written(pieces["improved"], role.vocabulary, role.widths.reflected)
    write_whole(folder / "README.md", _card(name, result, head, lines, text, anchor))


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
    name: str,
    result: dict[str, Any],
    head: list[str],
    loads: list[str],
    given: list[str],
    anchor: float | None,
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
    lines = [
        "---",
        *head,
        "tags: [pit]",
        "---",
        "",
        f"# {name}",
        "",
        f"This is {what}. pit_jax trained it by PIT (arXiv 2310.00898) in {result['steps']} steps.",
        *loads,
        "",
        "## What it is given",
        "",
        *given,
    ]
    if anchor is not None:
        lines += ["", f"A score of {anchor:.4f} counts as 0: subtract it."]
    return "\n".join(lines) + "\n"
