"""Shows what became of every example, for the `data` command: as JSON and for a terminal."""

from __future__ import annotations

import collections
import itertools
import json
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax import files
from pit_jax.data import advice
from pit_jax.data.batching import Batch
from pit_jax.data.examples import FOLDS, SPLITS
from pit_jax.data.files.json_values import printable
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import TREES
from pit_jax.data.vocabularies.base import PAD_ID, Vocabulary
from pit_jax.errors import UserError
from pit_jax.run.stages import RL_TASKS, Stage, rows_of

_QUANTILES = (0, 10, 50, 90, 99, 100)
_BINS = 12
_BAR = 40


def gather(data: InputPipeline, stages: Sequence[Stage], num_examples: int = 0) -> dict[str, Any]:
    """Gathers all figures, as JSON values.

    Args:
      data: the dataset.
      stages: the run's stages; stages with the same task and batch size count once.
      num_examples: how many rows of each task to show token by token.

    Returns:
      `dataset`, `examples` (InputPipeline.report), `group_by` (what examples share that stay
      together), `overlap` (how many of these two folds or two splits share), `lengths` of every
      field in tokens, `batches` of every stage, `rows`.
    """
    found: dict[str, Any] = {
        "dataset": data.config.name,
        "examples": data.report(),
        "group_by": data.config.group_by,
        "overlap": _overlap(data),
        "lengths": _lengths(data),
        "batches": [],
        "rows": [],
    }
    seen = set()
    for stage in stages:
        task = rows_of(stage)
        if (task, stage.batch_size) in seen:
            continue
        seen.add((task, stage.batch_size))
        row: dict[str, Any] = {"task": task, "batch_size": stage.batch_size}
        try:
            row |= _padding(data, task, stage.batch_size)
        except UserError as error:
            row["error"] = str(error).partition(";")[0]
        found["batches"].append(row)
    for task in dict.fromkeys(map(rows_of, stages)):
        found["rows"] += itertools.islice(_rows(data, task), num_examples)
    return found


def _padding(data: InputPipeline, task: str, batch_size: int) -> dict[str, Any]:
    """Counts what an epoch of a task's training batches is made of.

    Returns:
      `rows` and `batches` of an epoch, `widths` of the batches, `real_tokens`, `tokens` and
      `real_share`; and `examples`, `window_width` and `window_share`, for rows of a single
      example that are as wide as all their windows together.

    Raises:
      UserError: if there is less than one batch of examples.
    """
    table = data.table(task, "train")
    lengths = data.feature_lengths(task)
    name, width = {
        "inputs": ("decoder_segment_ids", lengths.get("inputs", 0) + lengths.get("targets", 0)),
        "tokens": ("blocks", lengths.get("tokens", 0)),
        "prompt": ("prompt_tokens", lengths.get("prompt", 0)),
    }[next(iter(lengths))]
    batches = data.batches(task, "train", batch_size, num_epochs=1)
    shapes: collections.Counter[tuple[int, int]] = collections.Counter()
    real = 0
    for batch in batches:
        shapes[batch[name].shape] += 1
        real += int(np.sum(batch[name] > 0))
    tokens = sum(rows * columns * count for (rows, columns), count in shapes.items())
    return {
        "rows": sum(table.sources),
        "batches": sum(shapes.values()),
        "widths": sorted(columns for _, columns in shapes),
        "real_tokens": real,
        "tokens": tokens,
        "real_share": real / tokens,
        "examples": table.num_examples,
        "window_width": width,
        "window_share": len(table.features[name].values) / (table.num_examples * width),
    }


def _overlap(data: InputPipeline) -> dict[str, int]:
    parts = [{split: data.examples(split) for split in SPLITS}]
    parts.append({fold: data.examples("train", fold) for fold in FOLDS})
    return {
        f"{a} and {b}": len(np.intersect1d(part[a].hashes("split"), part[b].hashes("split")))
        for part in parts
        for a, b in itertools.combinations(part, 2)
    }


def _lengths(data: InputPipeline) -> dict[str, dict[str, Any]]:
    counts = [data.token_counts(split) for split in SPLITS]
    unknown = advice.unknown_shares(data)
    found = {}
    for field in ("prompt", "chosen", "rejected"):
        window = data.lengths.windows[field]
        tokens = np.concatenate([part[field] for part in counts])
        low, top = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
        # A few very long examples would squeeze all others into one bin: the last bin takes them.
        last = max(low, min(top, 2 * window))
        edges = np.unique(np.linspace(low, last + 1, _BINS + 1).round().astype(int))
        histogram, _ = np.histogram(np.minimum(tokens, last), edges)
        quantiles = np.percentile(tokens, _QUANTILES, method="inverted_cdf") if len(tokens) else []
        found[field] = {
            "window": window,
            "unknown": unknown[field],
            "over": int(np.sum(tokens > window)),
            "quantiles": dict(zip(map(str, _QUANTILES), map(int, quantiles), strict=False)),
            "edges": edges.tolist(),
            "counts": histogram.tolist(),
        }
    return found


def _rows(data: InputPipeline, task: str) -> Iterator[dict[str, Any]]:
    """Training rows of a task in the order of the data, as groups of tokens that go together."""
    if not data.num_rows(task, "train"):
        return
    for batch in data.batches(task, "train", 1, shuffle=False, num_epochs=1):
        row = {name: array[0] for name, array in batch.items()}
        groups = []
        for label, loss, tokens in _groups(task, row):
            pieces = [piece(data.vocabulary, token) for token in tokens]
            groups.append({"label": label, "loss": loss, "tokens": tokens, "pieces": pieces})
        yield {"task": task, "groups": groups}


def _groups(task: str, row: Batch) -> Iterator[tuple[str, bool, list[int]]]:
    """(what, whether the loss or the score is on it, tokens) of the parts of a row, in order."""
    if task in RL_TASKS:
        for name, tokens in row.items():
            if name.endswith("_tokens"):
                yield name.removesuffix("_tokens"), False, tokens[tokens != PAD_ID].tolist()
        return
    if task in TREES:
        for number, block in enumerate(TREES[task], 1):
            tokens = row["tokens"][row["blocks"] == number].tolist()
            yield block.label, bool(block.score), tokens
        return
    # A weight is of the prediction of the next column: a token's own is that of the one before.
    weights = np.roll(np.sign(row["decoder_loss_weights"]), 1)
    segments = row["decoder_segment_ids"]
    columns = (segments, weights, row["decoder_input_tokens"])
    keys = zip(*(column.tolist() for column in columns), strict=True)
    several = int(segments.max(initial=0)) > 1
    for (segment, loss), group in itertools.groupby(keys, key=lambda key: key[:2]):
        if segment:
            name = {0: "read", 1: "learnt", -1: "unlearnt"}[loss]
            found = [token for *_, token in group]
            yield f"{segment} {name}" if several else name, loss != 0, found


def piece(vocabulary: Vocabulary, token: int) -> str:
    """Shows a token as printable text; what is no text of its own stands in angle brackets."""
    if token in vocabulary.names:
        return vocabulary.names[token]
    text = vocabulary.decode([token])
    return printable(text) if text and "\ufffd" not in text else f"<{token}>"


def write(found: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes `data.json` and `lengths.png` into a folder, which is made if missing."""
    from pit_jax.report import plots

    files.write_whole(folder / "data.json", to_json(found) + "\n")
    image = plots.render(plots.lengths(found["lengths"]), "png")
    files.write_whole(folder / "lengths.png", image)


def to_json(found: Mapping[str, Any]) -> str:
    """Writes the figures as JSON."""
    return json.dumps(found, indent=1, ensure_ascii=False)


def to_text(found: Mapping[str, Any]) -> str:
    """Writes the figures for a terminal of 100 columns."""
    parts = (_examples_text, _overlap_text, _lengths_text, _batches_text, _rows_text)
    return "\n".join(line for part in parts for line in [*part(found), ""]).rstrip()


def _examples_text(found) -> Iterator[str]:
    examples = found["examples"]
    kept = sum(examples["splits"].values())
    yield f"Examples of {found['dataset']}"
    yield f"  {'read':<28}{examples['read']:>10,}"
    for reason, count in sorted(examples["dropped"].items(), key=lambda item: -item[1]):
        yield f"  {'dropped: ' + reason:<28}{count:>10,}"
    yield f"  {'kept':<28}{kept:>10,}"
    for name, parts in (("splits", examples["splits"]), ("folds of train", examples["folds"])):
        yield f"  {name:<28}" + "  ".join(f"{part} {count:,}" for part, count in parts.items())
    for shape in examples["shapes"]:
        yield f"  read as {printable(shape)}"
    for line in examples["malformed"]:
        yield f"  skipped {printable(line)}"


def _overlap_text(found) -> Iterator[str]:
    yield f"{found['group_by'].replace('_', ' ').capitalize()}s in both of"
    yield "  " + "   ".join(f"{pair}: {count}" for pair, count in found["overlap"].items())


def _lengths_text(found) -> Iterator[str]:
    for field, each in found["lengths"].items():
        quantiles = "  ".join(f"{q}% {tokens}" for q, tokens in each["quantiles"].items())
        yield f"Tokens of {field}: window {each['window']}, over it {each['over']:,};  {quantiles}"
        if each["unknown"]:
            yield f"  {100 * each['unknown']:.2f}% of them are unknown to the vocabulary"
        most = max(1, *each["counts"])
        for low, high, count in zip(each["edges"], each["edges"][1:], each["counts"], strict=False):
            label = f"{low}" if high == low + 1 else f"{low} to {high - 1}"
            if high == each["edges"][-1] <= each["quantiles"].get("100", 0):
                label = f"{low} or more"
            yield f"  {label:>16} {count:>8,} {'█' * round(_BAR * count / most)}"


def _batches_text(found) -> Iterator[str]:
    yield "Real tokens in an epoch of training batches (at fixed windows: unpacked, unbucketed)"
    yield (
        f"  {'task':<12}{'batch':>6}{'examples':>10}{'rows':>9}{'batches':>9}{'real %':>8}"
        f"{'at fixed windows %':>20}  widths"
    )
    for row in found["batches"]:
        start = f"  {row['task']:<12}{row['batch_size']:>6}"
        if "error" in row:
            yield f"{start}  {row['error']}"
            continue
        yield (
            f"{start}{row['examples']:>10,}{row['rows']:>9,}{row['batches']:>9,}"
            f"{100 * row['real_share']:>8.1f}{100 * row['window_share']:>14.1f} of "
            f"{row['window_width']:<5} {', '.join(map(str, row['widths']))}"
        )


def _rows_text(found) -> Iterator[str]:
    if found["rows"]:
        yield "Rows, token by token (* has the loss or the score on it)"
    for row in found["rows"]:
        yield f"  {row['task']}"
        for group in row["groups"]:
            mark = "*" if group["loss"] else " "
            label = f"  {mark} {group['label']:<15} {len(group['tokens']):>5}  "
            text = "|".join(group["pieces"])
            yield from textwrap.wrap(
                text,
                100,
                initial_indent=label,
                subsequent_indent=" " * len(label),
                drop_whitespace=False,
                break_on_hyphens=False,
            ) or [label]
