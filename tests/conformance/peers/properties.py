"""The properties by name, and what a check of a peer reports."""

from __future__ import annotations

import numpy as np

PROPERTIES = {
    "first_ratio": "the first ratio of an update is exactly 1 (float32)",
    "temperature": "log-probabilities are at the temperature that sampled",
    "rewards_unrounded": "a reward of 0.3 arrives as 0.3",
    "reward_on_last_token": "the reward is on the last real token, none is after it",
    "constant_in_reward": "a constant added to reward model and critic changes no advantage",
    "padding": "padding on either side changes nothing",
    "batch_size": "the batch's size changes nothing of a row",
    "neighbours": "the rows beside it change nothing of a row",
    "gradient_steps": "epochs x minibatches gradient steps are taken",
    "every_episode_once": "each episode is used once an epoch",
    "reshuffled": "each epoch has an order of its own",
    "resume": "a resumed run equals an uninterrupted one bit for bit",
}


class Failed(Exception):
    """The peer doesn't have the property; the message says what it did."""


class NotRun(Exception):
    """The property can't be asked of the peer; the message says why."""


def same(what: str, one, other, tolerance: float = 2e-5) -> None:
    """Fails if two arrays differ by more than the rounding of differently shaped programs."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.shape != other.shape:
        raise Failed(f"{what}: shape {one.shape} became {other.shape}")
    distance = np.max(np.abs(one - other), initial=0.0)
    if not distance <= tolerance * (1 + np.max(np.abs(one), initial=0.0)):
        raise Failed(f"{what} changed by up to {distance:.3g}")


def exactly_one(ratios) -> str:
    """Of the ratios before the first gradient step."""
    distance = float(np.max(np.abs(np.asarray(ratios, np.float64) - 1)))
    if distance:
        size = "which is rounding" if distance < 1e-5 else "which is no rounding"
        raise Failed(f"off by up to {distance:.1e}, {size}")
    return "exactly"


def frequencies(tokens, log_probs, n: int) -> str:
    """Whether samples of one distribution have the probabilities that they are said to have.

    Args:
      tokens: samples; some of the `n` drawn may be missing.
      log_probs: of the same.
      n: how many were drawn.
    """
    _, first, counts = np.unique(np.asarray(tokens), return_index=True, return_counts=True)
    p = np.exp(np.asarray(log_probs, np.float64)[first])
    error = np.sqrt(p * (1 - p) / n) + 1 / n
    worst = np.argmax(np.abs(counts / n - p) / error)
    said = f"of {n} samples {counts[worst] / n:.3f} have a token said to have {p[worst]:.3f}"
    if np.any(np.abs(counts / n - p) > 5 * error):
        raise Failed(said)
    return said


def last_token(rewards, lengths) -> str:
    """Rewards [B, R] of episodes without a KL penalty, and how many real tokens each has."""
    rewards, lengths = np.asarray(rewards), np.asarray(lengths)
    for row, n in zip(rewards, lengths):
        found = np.flatnonzero(row).tolist()
        if found != [n - 1]:
            places = ", ".join(str(column + 1) for column in found) or "none"
            raise Failed(f"a response of {n} real tokens has its reward at token {places}")
    return f"of {len(lengths)} responses with {min(lengths)} to {max(lengths)} tokens"


def schedule(
    steps: int, epochs: list[list[list[int]]], parts: int, episodes: int
) -> dict[str, tuple[str, str]]:
    """Answers for the three properties of epochs and minibatches.

    Args:
      steps: gradient steps that were counted.
      epochs: for each epoch, for each minibatch, the episodes in it.
      parts: minibatches an epoch, as asked for.
      episodes: how many there are.
    """
    asked, n = f"{len(epochs)} epochs of {parts} minibatches", len(epochs)
    found = {"gradient_steps": ("pass" if steps == n * parts else "fail", f"{steps} in {asked}")}
    for epoch in epochs:
        if sorted(row for part in epoch for row in part) != list(range(episodes)):
            reason = f"minibatches of an epoch: {epoch}"
            found["every_episode_once"] = ("fail", reason)
            found["reshuffled"] = ("not run", "an epoch is no pass over the episodes")
            return found
    orders = len({str(epoch) for epoch in epochs})
    found["every_episode_once"] = ("pass", asked)
    found["reshuffled"] = ("pass" if orders == n else "fail", f"{orders} orders in {asked}")
    return found


def table(results: list[dict]) -> str:
    """Markdown: a row a property, a column a peer; below it, why."""
    names = [f"{result['peer']} {result['version']}" for result in results]
    lines = [f"| property | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, sentence in PROPERTIES.items():
        cells = [result["properties"][name]["status"] for result in results]
        lines.append(f"| {sentence} | {' | '.join(cells)} |")
    lines.append("")
    for result, heading in zip(results, names):
        lines.append(f"{heading}, {result['date']}:\n")
        for name, answer in result["properties"].items():
            if answer["reason"]:
                lines.append(f"- `{name}` {answer['status']}: {answer['reason']}")
        lines.append("")
    return "\n".join(lines)
