"""Has people judge: asks them blind, and makes of their verdicts what other judges give.

As in the paper's human evaluation (Appendix I), two people or more see each prompt with the same
two responses, A and B, in an order that is drawn. A response is better only where all of them say
so; all else is a tie. What stands behind A and B is in a key that they don't get.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.evaluation import ground_truth, verdict_files
from pit_jax.evaluation.judges import known
from pit_jax.evaluation.responses import Responses, texts
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.evaluation.tables import compared
from pit_jax.evaluation.verdict_files import TIE, Sheet
from pit_jax.method.self_refine import as_text
from pit_jax.run.run import Run

FORMAT = "pit_jax people 1"
QUESTION = "Which response is better?"
# Below it, agreement is slight (Landis and Koch, 1977).
_SLIGHT = 0.2
# A choice of sides that is as one-sided by chance once in so many times is told.
_ONE_SIDED = 0.01


@dataclasses.dataclass(frozen=True)
class Sides:
    """Two responses to each prompt, as people compare them.

    Attributes:
      row: what a comparison's row says of them, such as name, first, second and temperature.
      prompts: the prompts.
      first, second: the responses.
      groups: which prompts count as one draw, by name.
    """

    row: dict[str, Any]
    prompts: Sequence[str]
    first: Sequence[str]
    second: Sequence[str]
    groups: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Item:
    """One comparison.

    Attributes:
      sides: the index of its Sides.
      group: of its prompt.
      prompt, first, second: the texts.
      shown_as: which of A and B the first response is; empty where both responses are equal, which
        is a tie that nobody is asked for.
    """

    sides: int
    group: str
    prompt: str
    first: str
    second: str
    shown_as: str

    @property
    def shown(self) -> tuple[str, str, str]:
        """The prompt, A and B."""
        a, b = (self.first, self.second) if self.shown_as == "A" else (self.second, self.first)
        return self.prompt, a, b


@dataclasses.dataclass(frozen=True)
class Key:
    """Knows what people are asked, and what stands behind A and B.

    Attributes:
      question: what they are asked.
      ties: whether they may say that neither is better.
      about: what a report says of where the responses are from.
      rows: the `row` of each Sides.
      items: the comparisons, those that are asked first, by their numbers from 1.
    """

    question: str
    ties: bool
    about: dict[str, Any]
    rows: list[dict[str, Any]]
    items: list[Item]

    @property
    def asked(self) -> list[Item]:
        """The comparisons that people see."""
        return [item for item in self.items if item.shown_as]

    @property
    def page(self) -> str:
        """A digest of all that people see."""
        seen = [self.question, self.ties, [item.shown for item in self.asked]]
        # Not a number to a spreadsheet, whatever its digits are.
        return "page-" + hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def ask(sides: Sequence[Sides], question: str, ties: bool, seed: int, about: dict[str, Any]) -> Key:
    """Draws the order of comparisons, and which response of each is A.

    Args:
      sides: what is compared.
      question, ties, about: as a Key has them.
      seed: of the draws.

    Raises:
      UserError: if no two responses differ.
    """
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    alike: list[Item] = []
    for number, each in enumerate(sides):
        for row in zip(each.groups, each.prompts, each.first, each.second, strict=True):
            item = Item(number, *row, shown_as="AB"[rng.integers(2)])
            if item.first == item.second:
                alike.append(dataclasses.replace(item, shown_as=""))
            else:
                items.append(item)
    if not items:
        raise UserError("all responses are equal: there is nothing to judge")
    drawn = [items[i] for i in rng.permutation(len(items))]
    return Key(question, ties, about, [each.row for each in sides], drawn + alike)


def of_run(run: Run, config: EvaluationConfig) -> list[Sides]:
    """Samples what people compare of a run: PIT with the original, and with Self-Refine if asked.

    The responses are those of the run's report at its main temperature.
    """
    made = Responses.of(run, config)
    temperature = config.temperatures[0]

    def improved(stage: str, method: str) -> list[str]:
        traces = made.improved(stage, temperature, 1, method, with_gaps=False)
        return texts([trace.responses[1] for trace in traces])

    pit = improved(config.pit, "pit")
    others = {"Original": ("original", texts(made.policy(config.policy, temperature)))}
    if config.self_refine:
        others["Self-Refine"] = ("self_refine", improved(config.policy, "self_refine"))
    shown = list(map(as_text, made.prompts))
    return [
        Sides(
            {"name": f"PIT vs {label}", "first": "pit", "second": kind, "temperature": temperature},
            *(shown, pit, said, made.groups),
        )
        for label, (kind, said) in others.items()
    ]


def to_json(key: Key) -> str:
    """Writes a key, one comparison a line."""
    head = {"format": FORMAT, "page": key.page, "question": key.question, "ties": key.ties}
    head |= {"about": key.about, "sides": key.rows}
    items = ",\n".join(json.dumps(dataclasses.asdict(item)) for item in key.items)
    return json.dumps(head)[:-1] + f', "comparisons": [\n{items}\n]}}\n'


def read_key(path: epath.Path) -> Key:
    """Reads a key.

    Raises:
      UserError: if it can't be read, or isn't as `to_json` wrote it.
    """
    with files.reported(path, f"can't read {path}"):
        if not path.exists():
            raise UserError(
                f"{path} isn't there, expected the folder that evaluate --people has written"
            )
        content = path.read_bytes()
    try:
        found = json.loads(content)
        items = [Item(**item) for item in found["comparisons"]]
        key = Key(found["question"], found["ties"], found["about"], found["sides"], items)
        fits = (
            found["format"] == FORMAT
            and found["page"] == key.page
            and all(0 <= item.sides < len(key.rows) for item in items)
            and isinstance(key.about, dict)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise UserError(f"{path} was changed, expected the key that evaluate --people has written")
    return key


def read_sheets(key: Key, paths: Sequence[str]) -> list[Sheet]:
    """Reads what each person has said.

    Raises:
      UserError: for a file that isn't of the key's page or is wrong, and for fewer than two people.
    """
    if len(paths) < 2:
        raise UserError(f"--verdicts: got {len(paths)} file, expected those of two people or more")
    sheets: dict[str, Sheet] = {}
    for path in paths:
        sheet = verdict_files.read(path, key.page, len(key.asked), key.ties)
        name = unicodedata.normalize("NFKC", sheet.annotator).casefold()
        before = sheets.setdefault(name, sheet)
        if before is not sheet:
            raise UserError(
                f"{path}: is by {sheet.annotator} as {before.path} is, expected one file of each"
            )
    return list(sheets.values())


def check_whole(key: Key, sheets: Sequence[Sheet]) -> None:
    """Refuses sheets on which verdicts are missing.

    Raises:
      UserError: that names the first of them.
    """
    for sheet in sheets:
        missing = sorted(set(range(1, len(key.asked) + 1)) - set(sheet.verdicts))
        if missing:
            line = sheet.blank.get(missing[0])
            raise UserError(
                f"{sheet.path}{f':{line}' if line else ''}: has no verdict on comparison "
                f"{missing[0]}, and on {len(missing)} of {len(key.asked)} in all; "
                "--on_error=skip leaves them out"
            )


def results(key: Key, sheets: Sequence[Sheet], seed: int = 0) -> dict[str, Any]:
    """Makes of verdicts the parts of a report, in the layout of report/write.py.

    Comparisons on which a verdict is missing are left out, with those that compare the same sides.

    Args:
      key: what was asked.
      sheets: what each person has said.
      seed: of the intervals.

    Raises:
      UserError: if no comparison has the verdicts of all.
    """
    numbers = [n for n in range(1, len(key.asked) + 1) if all(n in s.verdicts for s in sheets)]
    if not numbers:
        raise UserError("no comparison has the verdicts of all: there is nothing to count")
    said_PN = np.array([[_outcome(key, sheet, n) for n in numbers] for sheet in sheets])
    common_N = np.where((said_PN == said_PN[0]).all(axis=0), said_PN[0], 0)
    judged = [(key.items[n - 1], int(v)) for n, v in zip(numbers, common_N, strict=True)]
    judged += [(item, 0) for item in key.items if not item.shown_as]
    names = [sheet.annotator for sheet in sheets]
    judge = f"people ({', '.join(names)})"
    groups = [key.items[n - 1].group for n in numbers]
    accords = {
        f"{names[i]} and {names[j]}": ground_truth.accord(said_PN[i], said_PN[j], groups, seed)
        for i, j in itertools.combinations(range(len(sheets)), 2)
    }
    if len(sheets) > 2:
        accords[f"all {len(sheets)}"] = ground_truth.joint_accord(said_PN, groups, seed)
    agreement = [
        {"name": name, **{k: known(v) for k, v in dataclasses.asdict(found).items()}}
        for name, found in accords.items()
    ]
    people = {
        "question": key.question,
        "ties": key.ties,
        "asked": len(key.asked),
        "judged": len(numbers),
        "alike": len(key.items) - len(key.asked),
        "agreed": int((said_PN == said_PN[0]).all(axis=0).sum()),
        "annotators": [_places(sheet, numbers) for sheet in sheets],
    }
    found: dict[str, Any] = {
        "comparisons": list(_comparisons(key, judged, judge, seed)),
        "people": people,
    }
    found |= {"agreement": agreement, "num_prompts": len({item.prompt for item, _ in judged})}
    told = [*key.about.get("warnings", ()), *_warnings(people, agreement)]
    return key.about | found | {"warnings": told}


def _outcome(key: Key, sheet: Sheet, number: int) -> int:
    """The verdict for the first response."""
    said = sheet.verdicts[number]
    return 0 if said == TIE else 1 if said == key.items[number - 1].shown_as else -1


def _comparisons(
    key: Key, judged: Sequence[tuple[Item, int]], judge: str, seed: int
) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(key.rows):
        own = [(item, verdict) for item, verdict in judged if item.sides == number]
        if own:
            items, verdicts = zip(*own)
            first, second = [i.first for i in items], [i.second for i in items]
            made = compared(np.array(verdicts), first, second, [i.group for i in items], seed)
            yield {**row, "judge": judge, "group": "table1", **made}


def _places(sheet: Sheet, numbers: Sequence[int]) -> dict[str, Any]:
    """How often a person preferred what stood first, second, or neither."""
    said = [sheet.verdicts[number] for number in numbers]
    counts = {field: said.count(v) for field, v in (("first", "A"), ("second", "B"), ("tie", TIE))}
    return {"name": sheet.annotator, **counts}


def _warnings(people: dict[str, Any], agreement: Sequence[dict[str, Any]]) -> Iterator[str]:
    from scipy import stats  # its import takes a second or two

    left_out = people["asked"] - people["judged"]
    if left_out:
        yield (
            f"{left_out} of {people['asked']} comparisons are left out, on which the verdict of "
            "somebody is missing"
        )
    pairs = agreement[:-1] if len(people["annotators"]) > 2 else agreement  # the last is of all
    for row in pairs:
        if row["kappa"] is not None and row["kappa"] < _SLIGHT:
            yield (
                f"{row['name']} agree hardly more often than by chance (Cohen's kappa "
                f"{row['kappa']:.2f}): where they don't, it counts as a tie"
            )
    for row in people["annotators"]:
        first, decided = row["first"], row["first"] + row["second"]
        if decided and stats.binomtest(first, decided).pvalue < _ONE_SIDED:
            side = "A" if first > row["second"] else "B"
            yield (
                f"position bias: {row['name']} preferred {side} in {max(first, row['second'])} of "
                f"{decided} verdicts, although the order was drawn"
            )
