"""What the script that runs other libraries takes for a pass and for a failure."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tests.conformance.peers import properties
from tests.conformance.peers.properties import Failed


def test_differences_beyond_rounding_fail():
    properties.same("x", [1.0, 2.0], [1.0, 2.00001])
    with pytest.raises(Failed, match="x changed by up to 0.001"):
        properties.same("x", [1.0, 2.0], [1.0, 2.001])
    with pytest.raises(Failed, match="x changed by up to nan"):
        properties.same("x", [1.0], [math.nan])
    with pytest.raises(Failed, match="shape"):
        properties.same("x", [1.0], [1.0, 1.0])


def test_ratios_are_1_or_not():
    assert properties.exactly_one([[1.0, 1.0]]) == "exactly"
    with pytest.raises(Failed, match="1.0e-06, which is rounding"):
        properties.exactly_one([1.0, 1 - 1e-6])
    with pytest.raises(Failed, match="2.0e-01, which is no rounding"):
        properties.exactly_one([1.0, 1.2])


def test_samples_have_the_probabilities_they_are_said_to_have():
    tokens = np.array([3] * 700 + [5] * 300)
    p = np.where(tokens == 3, 0.7, 0.3)
    properties.frequencies(tokens, np.log(p), 1000)
    properties.frequencies(tokens[:700], np.log(p[:700]), 1000)
    # The same logits at half the temperature.
    cold = np.where(tokens == 3, 0.49, 0.09) / 0.58
    with pytest.raises(Failed, match="0.700 have a token said to have 0.845"):
        properties.frequencies(tokens, np.log(cold), 1000)


def test_the_reward_is_on_the_last_real_token():
    assert properties.last_token([[0, 2.0, 0], [0, 0, -1.0]], [2, 3])
    for rewards in ([[0, 0, 2.0]], [[0, 2.0, 2.0]], [[0, 0, 0]]):
        with pytest.raises(Failed, match="of 2 real tokens has its reward at token"):
            properties.last_token(rewards, [2])


def statuses(answers):
    return {name: status for name, (status, _) in answers.items()}


def test_epochs_and_minibatches():
    right = [[[0, 2], [1, 3]], [[3, 0], [1, 2]]]
    assert set(statuses(properties.schedule(4, right, 2, 4)).values()) == {"pass"}
    nested = [[[0, 1], [0, 1]], [[2, 3], [2, 3]]]
    found = statuses(properties.schedule(4, nested, 2, 4))
    assert found["every_episode_once"] == "fail" and found["reshuffled"] == "not run"
    found = statuses(properties.schedule(2, [right[0]] * 2, 2, 4))
    assert found == {"gradient_steps": "fail", "every_episode_once": "pass", "reshuffled": "fail"}


def test_the_table():
    answers = {name: {"status": "pass", "reason": ""} for name in properties.PROPERTIES}
    other = answers | {"padding": {"status": "fail", "reason": "tokens changed"}}
    results = [
        {"peer": "one", "version": "1.0", "date": "2026-11-26", "properties": answers},
        {"peer": "two", "version": "0.2", "date": "2026-11-26", "properties": other},
    ]
    table = properties.table(results)
    assert table.startswith("| property | one 1.0 | two 0.2 |\n|---|---|---|\n")
    assert re.search(r"^\| padding .* \| pass \| fail \|$", table, re.MULTILINE)
    assert "- `padding` fail: tokens changed" in table
    assert len(re.findall(r"^\| ", table, re.MULTILINE)) == 1 + len(properties.PROPERTIES)
