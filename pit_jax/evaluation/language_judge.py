"""Judges by a language model, as the paper does by GPT-4 (section 4.3, Appendix E.2).

The model is shown a prompt and two responses, A and B, and ends its answer with a verdict: [[A]],
[[B]] or [[C]] for a tie. Every pair is asked in both orders. A response is better only where both
orders say so; all else is a tie, and so is an answer without a verdict, or a request without an
answer, which are counted. What the model is asked stands in a JSON file of one step, `judge`:

    {
      "judge": {
        "system": "You compare what assistants write. End with [[A]], [[B]] or [[C]] for a tie.",
        "user": "{prompt}\\n\\nA:\\n{first}\\n\\nB:\\n{second}"
      }
    }

`user` has to have the three fields, and its other braces are doubled; `system` may be left out.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.evaluation import scoring
from pit_jax.evaluation.answers import Answers
from pit_jax.evaluation.endpoint import Answer, Body, Endpoint, EndpointConfig
from pit_jax.method import prompt_files
from pit_jax.method.prompt_files import Step
from pit_jax.method.self_refine import as_text
from pit_jax.run.client import Unanswered
from pit_jax.runtime import processes

T = TypeVar("T")
# A prompt, and the responses that are shown as A and as B.
Shown = tuple[str, str, str]

# The prompts that come with the package; a file's name without `.json` stands for it.
SHIPPED = pathlib.Path(__file__).with_name("prompts")
# In the run directory.
FILE = "judge_answers.jsonl"
_PROGRESS_SECONDS = 30.0
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_SWAPPED = (("A", "A"), ("B", "B"))
# The share of verdicts that swap with the order from which on the report warns of it.
MUCH_BIAS = 0.2


def read(name: str) -> Step:
    """Reads what the judge is asked.

    Args:
      name: of prompts that come with the package, such as `dialogue`, or the path of a file.

    Raises:
      UserError: if there is no such file, or it isn't as this module's docstring says.
    """

    def made(found: dict[str, Any]) -> Step:
        prompt_files.check_keys(found, "the file", ("judge",), ("judge",))
        fields = ("prompt", "first", "second")
        return prompt_files.step("judge", found["judge"], fields, keys=("system", "user"))

    return prompt_files.read("EndpointConfig.prompts", SHIPPED, name, made)


def verdict(text: str) -> str:
    """Returns the last verdict in an answer: A, B or C; empty if it has none.

    What a model thinks before it answers, up to </think>, has no verdict. Of such thoughts <think>
    may be the last word of the prompt.
    """
    _, end, answer = text.rpartition("</think>")
    if end or text.lstrip().startswith("<think>"):
        text = answer if end else ""
    found = _VERDICT.findall(text)
    return found[-1] if found else ""


def _swaps(prompts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Counts pairs of verdicts, of the straight and the turned order, that are for one place."""
    told = [(x, pair) for x, pair in zip(prompts, pairs, strict=True) if all(pair)]
    swapped = np.array([pair in _SWAPPED for _, pair in told])
    low = high = None
    if told:
        mean = scoring.mean_interval(swapped, [x for x, _ in told], bounds=(0, 1))
        low, high = mean.ci_low, mean.ci_high
    return {
        "both": len(told),
        "first_twice": sum(pair == ("A", "A") for _, pair in told),
        "second_twice": sum(pair == ("B", "B") for _, pair in told),
        "swapped_low": low,
        "swapped_high": high,
    }


def name_of(config: EndpointConfig) -> str:
    """Returns the judge's name in tables."""
    return f"language model {config.model} ({pathlib.PurePath(config.prompts).stem})"


class LanguageModelJudge:
    """Judges by what a language model answers; it has verdicts and no scores.

    Where several processes run, the first one asks, and the others take all for ties: it alone
    prints and writes.

    Args:
      config: which model, and how it is asked.
      directory: the run directory, which keeps the answers.

    Attributes:
      name: the judge's name in tables.

    Raises:
      UserError: if the prompts or the API's key aren't there, or are wrong.
    """

    def __init__(self, config: EndpointConfig, directory: epath.Path):
        self.name = name_of(config)
        self._step = read(config.prompts)
        self._config = config
        self._endpoint = Endpoint(config)
        files.check_folder(directory, "judge")
        self._answers = Answers(directory / FILE)
        # The digest of the request of all that was compared so far, in both orders.
        self._digests: dict[Shown, str] = {}
        self._collects = False
        self._failed: set[str] = set()  # requests without an answer, which aren't sent again
        self._works = False  # whether there has been an answer
        self._problem = ""  # of the first request without an answer

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """Returns verdicts [N] for the first responses, int8; asks for what isn't known yet.

        Raises:
          ValueError: if there aren't two responses to each prompt.
          UserError: if the API gives no answers.
        """
        if not len(prompts) == len(first) == len(second):
            raise ValueError(
                f"expected two responses to each of {len(prompts)} prompts, got {len(first)} and "
                f"{len(second)}"
            )
        rows = list(zip(prompts, first, second, strict=True))
        # Equal responses tie: both orders of them are the same request.
        shown = [each for x, a, b in rows if a != b for each in ((x, a, b), (x, b, a))]
        for each in shown:
            if each not in self._digests:
                self._digests[each] = self._digest(self._body(each))
        if self._collects:
            return np.zeros(len(rows), np.int8)
        self._ask(shown)
        return np.array([self._outcome(*row) for row in rows], np.int8)

    def together(self, make: Callable[[], T]) -> T:
        """Returns what `make` makes of verdicts, all of which are asked for at once.

        Args:
          make: is called twice, first with ties in the place of all verdicts: it has to ask for
            the same ones.

        Raises:
          UserError: if the API gives no answers.
        """
        self._collects = True
        try:
            make()
        finally:
            self._collects = False
        self._ask(list(self._digests))
        return make()

    def counts(self) -> dict[str, Any]:
        """Counts the answers of all comparisons so far.

        Returns:
          name; comparisons of responses that differ, and in how many of them both orders agree;
          `both`, those with a verdict in both orders, in how many of them the response is preferred
          that comes first (`first_twice`) or second (`second_twice`) in both, and the 95% interval
          over prompts of the share of these two, `swapped_low` to `swapped_high`; comparisons where
          a response has a verdict in it (`marked`), and in how many of them the verdicts swapped
          (`marked_swapped`); comparisons that are `unjudged`, for want of an answer; answers, and
          how many of them have the verdict `first` (A), `second` (B), `tie` (C) and `none`; how
          many were `cut`; `prompt_tokens` and `completion_tokens`, the answers whose tokens the API
          didn't count (`uncounted`), and the `cost` by `EndpointConfig.prices`, None without. A
          judge without position bias prefers A as often as B.
        """
        keys = [key for key in dict.fromkeys(self._digests.values()) if key in self._answers]
        answers = [self._answers[key] for key in keys]
        found = Counter(verdict(answer.text) for answer in answers)
        straight = [(x, a, b) for x, a, b in self._digests if a < b]
        pairs = [(self._verdict((x, a, b)), self._verdict((x, b, a))) for x, a, b in straight]
        marked = [bool(_VERDICT.search(a + " " + b)) for _, a, b in straight]
        tokens = [sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers)]
        return {
            "name": self.name,
            "comparisons": len(self._digests) // 2,
            "agreed": sum(pair in (("A", "B"), ("B", "A"), ("C", "C")) for pair in pairs),
            **_swaps([x for x, _, _ in straight], pairs),
            "marked": sum(marked),
            "marked_swapped": sum(pair in _SWAPPED for pair, m in zip(pairs, marked) if m),
            "unjudged": sum(not self._is_judged(each) for each in straight),
            "answers": len(answers),
            **{key: found[v] for key, v in (("first", "A"), ("second", "B"), ("tie", "C"))},
            "none": found[""],
            "cut": sum(answer.cut for answer in answers),
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "uncounted": sum(not (a.prompt_tokens or a.completion_tokens) for a in answers),
            "cost": self._cost(tokens) if any(self._config.prices) else None,
        }

    def warnings(self) -> list[str]:
        """Says how much is unjudged or has no verdict, and position bias where there is much.

        Responses with a verdict in them that a judge may have obeyed are said too.
        """
        found, said = self.counts(), []
        if found["unjudged"]:
            said.append(
                f"{found['unjudged']} of {found['comparisons']} comparisons by the {self.name} are "
                "unjudged and count as ties: a request has no answer; the same command asks again"
                f"{self._problem and ': '}{self._problem}"
            )
        if found["none"]:
            cut = f", {found['cut']} were cut at max_tokens" if found["cut"] else ""
            said.append(
                f"{found['none']} of {found['answers']} answers of the {self.name} have no verdict "
                f"and count as ties{cut}"
            )
        swapped = found["first_twice"] + found["second_twice"]
        if swapped and swapped >= MUCH_BIAS * found["both"]:
            said.append(
                f"position bias: in {swapped} of {found['both']} comparisons the verdict of the "
                f"{self.name} swapped with the order, which counts as a tie; it preferred the "
                f"first response {found['first_twice']} times and the second "
                f"{found['second_twice']} times"
            )
        if found["marked_swapped"]:
            said.append(
                f"position bias: in {found['marked']} comparisons by the {self.name} a response "
                "has a verdict such as [[A]] in it, which may be meant for the judge; in "
                f"{found['marked_swapped']} of them the verdict swapped with the order, as it does "
                "where the judge obeys, which counts as a tie"
            )
        return said

    # Requests

    def _body(self, shown: Shown) -> Body:
        prompt, first, second = shown
        texts = {"prompt": as_text(prompt), "first": first, "second": second}
        return self._endpoint.body(self._step.system, self._step.says(texts))

    def _digest(self, body: Body) -> str:
        """Names a request by all that its answer depends on."""
        text = json.dumps([self._endpoint.url, body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _ask(self, shown: Sequence[Shown]) -> None:
        problem = ""
        if processes.is_first():
            keys = {self._digests[each]: each for each in shown}
            known = {key for key in keys if key in self._answers}
            unknown = {key: keys[key] for key in keys if key not in known | self._failed}
            try:
                self._works |= bool(known)
                if unknown:
                    self._announce(len(set(shown)), len(keys), len(unknown), len(known))
                    self._send({key: self._body(each) for key, each in unknown.items()})
            except UserError as error:
                problem = str(error)
        if processes.any_process(bool(problem)):
            raise UserError(problem or "the judge doesn't answer, and the first process says why")

    def _announce(self, shown: int, count: int, missing: int, known: int) -> None:
        done = f", {known:,} of them answered before" if known else ""
        print(
            f"judge: {shown // 2:,} comparisons of different responses in both orders: {count:,} "
            f"requests to {self._config.model}{done}; asking {missing:,}",
            flush=True,
        )

    def _send(self, requests: Mapping[str, Body]) -> None:
        """Sends requests from several threads, and keeps each answer when it comes.

        The API is known to work where others were answered before.
        """
        todo: queue.SimpleQueue[tuple[str, Body]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[str, Answer | Exception]] = queue.SimpleQueue()
        for request in requests.items():
            todo.put(request)
        ended = threading.Event()

        def end() -> None:
            ended.set()
            self._endpoint.stop()

        def work() -> None:
            while not ended.is_set():
                try:
                    key, body = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((key, self._endpoint.ask(body)))
                except Exception as error:
                    done.put((key, error))  # before what others say once all is ended
                    if not isinstance(error, Unanswered):
                        end()

        # Daemons: an interrupted process doesn't wait for answers.
        count = min(self._config.concurrency, len(requests))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            kept, problem = self._keep(done, threads, len(requests), end)
        finally:
            ended.set()
            self._answers.close()
        self._works |= bool(kept)
        if not (self._works or problem):  # a mistake in the configuration
            problem = UserError(self._problem)
        if isinstance(problem, UserError):
            path = self._answers.path
            raise UserError(f"{problem}; the same command goes on from the answers in {path}")
        if problem:
            raise problem

    def _keep(
        self,
        done: queue.SimpleQueue,
        threads: list[threading.Thread],
        count: int,
        end: Callable[[], None],
    ) -> tuple[int, Exception | None]:
        """Keeps answers; returns how many there are, and why there are no more."""
        problem: Exception | None = None
        most = self._config.max_unanswered
        kept, unanswered, tokens, said = 0, 0, [0, 0], time.monotonic()
        while kept + unanswered < count:
            if problem and not any(thread.is_alive() for thread in threads) and done.empty():
                break
            try:
                key, answer = done.get(timeout=0.1 if problem else None)
            except queue.Empty:
                continue
            if isinstance(answer, Unanswered):
                unanswered += 1
                self._failed.add(key)
                self._problem = self._problem or str(answer)
                if len(self._failed) > most and not problem:
                    end()
                    problem = UserError(
                        f"{len(self._failed)} requests have no answer, more than "
                        f"EndpointConfig.max_unanswered={most}: {self._problem}"
                    )
                continue
            if isinstance(answer, Exception):
                problem = problem or answer
                continue
            self._answers.add(key, answer)
            kept += 1
            tokens[0] += answer.prompt_tokens
            tokens[1] += answer.completion_tokens
            if time.monotonic() - said > _PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"judge: {kept:,} of {count:,} answers", flush=True)
        line = f"judge: {kept:,} answers; tokens: {tokens[0]:,} read, {tokens[1]:,} written"
        if any(self._config.prices):
            line += f"; cost: {self._cost(tokens):,.4f}"
        if unanswered:
            line += f"; {unanswered:,} requests without an answer: {self._problem}"
        print(line, flush=True)
        return kept, problem

    def _cost(self, tokens: Sequence[int]) -> float:
        return sum(n * price for n, price in zip(tokens, self._config.prices, strict=True)) / 1e6

    # Verdicts

    def _verdict(self, shown: Shown) -> str:
        key = self._digests[shown]  # which has no answer in other processes than the first
        return verdict(self._answers[key].text) if key in self._answers else ""

    def _is_judged(self, shown: Shown) -> bool:
        prompt, first, second = shown
        return all(
            self._digests[each] in self._answers for each in (shown, (prompt, second, first))
        )

    def _outcome(self, prompt: str, first: str, second: str) -> int:
        if first == second:
            return 0
        orders = self._verdict((prompt, first, second)), self._verdict((prompt, second, first))
        return {("A", "B"): 1, ("B", "A"): -1}.get(orders, 0)
