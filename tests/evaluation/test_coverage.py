"""How many truths 95% intervals cover, by simulation, each of data with its own truth.

`pytest -m slow` draws 1,000 truths for each, of which 93 to 97% have to be covered; the suite draws
fewer, and allows for their number.
"""

import math

import numpy as np
import pytest

from pit_jax.evaluation import bradley_terry, elo, ground_truth, lengths, scoring

# Trials, and how far the share that is covered may be from 95%.
FEW = pytest.param(60, 0.07, id="60")
MANY = pytest.param(1000, 0.02, id="1000", marks=pytest.mark.slow)


def share_covered(trial, trials):
    """The share of trials whose truth lies in the interval; a trial gives truth, low and high."""
    rng = np.random.default_rng(0)
    found = np.array([trial(rng, seed) for seed in range(trials)], float)
    truth, low, high = found.T
    assert np.isfinite(found).all() and len(np.unique(truth)) > 1
    return np.mean((low <= truth) & (truth <= high))


def prompts(rng, clustered):
    """Prompts of unlike numbers of rows, or of one row each: the number of each row's prompt."""
    sizes = rng.integers(1, 9, size=120) if clustered else np.ones(200, int)
    return np.repeat(np.arange(sizes.size), sizes)


def verdicts(rng, group, chances):
    """Verdicts with these chances of a win, a tie and a loss; most rows of a prompt are alike."""
    one = rng.choice([1, 0, -1], size=group.max() + 1, p=chances)[group]
    own = rng.choice([1, 0, -1], size=group.size, p=chances)
    return np.where(rng.random(group.size) < 0.7, one, own)


def delta(rng, seed, clustered):
    group, chances = prompts(rng, clustered), rng.dirichlet([4, 2, 4])
    found = scoring.compare(verdicts(rng, group, chances), group.tolist(), seed, resamples=1000)
    return 100 * (chances[0] - chances[2]), found.ci_low, found.ci_high


def mean(rng, seed, clustered):
    group, centre = prompts(rng, clustered), rng.normal()
    values = centre + rng.gamma(2.0, size=group.max() + 1)[group] + rng.normal(size=group.size)
    found = scoring.mean_interval(values, group.tolist(), None, seed, resamples=1000)
    return centre + 2, found.ci_low, found.ci_high


def accuracy(rng, seed, clustered):
    group, share = prompts(rng, clustered), rng.uniform(0.3, 0.85)
    found = scoring.agreement(
        verdicts(rng, group, [share, (1 - share) / 2, (1 - share) / 2]), group.tolist()
    )
    return share, found.ci_low, found.ci_high


def kappa(rng, seed, clustered):
    """A judge that is right for some rows and else as likely to say any of the three."""
    group, right = prompts(rng, clustered), rng.uniform(0.2, 0.65)
    true = verdicts(rng, group, [1 / 3] * 3)
    knows = rng.random(group.max() + 1)[group] < right
    said = np.where(knows, true, rng.choice([1, 0, -1], size=group.size))
    found = ground_truth.accord(said, true, group.tolist(), seed, resamples=400)
    return right, found.kappa_low, found.kappa_high


def at_equal_length(rng, seed, clustered):
    """Verdicts by the model that is fitted; rows of a prompt share how long and how hard it is."""
    group = prompts(rng, clustered)
    level, slope = rng.uniform(-1.2, 1.2), rng.uniform(-2, 2)
    longer = np.round(rng.normal(20, 50, size=group.max() + 1)[group])
    longer += np.round(rng.normal(0, 20, size=group.size))
    odds = level + slope * np.tanh(longer / longer.std())
    # A prompt's rows are decided by one draw or by their own, each uniform.
    own = rng.random(group.size)
    draw = np.where(rng.random(group.size) < 0.6, rng.random(group.max() + 1)[group], own)
    outcomes = np.where(draw < 1 / (1 + np.exp(-odds)), 1, -1)
    found = lengths.effect(outcomes, 300 + longer, np.full(group.size, 300), group.tolist())
    return 100 * math.tanh(level / 2), found.ci_low, found.ci_high


def rating(rng, seed, clustered):
    """Bradley-Terry of three models, the first of which the truth is of.

    None wins nearly always, for then there is no interval.
    """
    group = prompts(rng, clustered)
    strength = rng.uniform(-1, 1, size=3)
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    # A prompt decides which of its rows are one draw.
    shared = rng.random(group.size) < 0.6
    outcomes = []
    for a, b in pairs:
        draw = np.where(shared, rng.random(group.max() + 1)[group], rng.random(group.size))
        outcomes.append(np.where(draw < 1 / (1 + np.exp(strength[b] - strength[a])), 1, -1))
    found = bradley_terry.ratings(pairs, outcomes, group.tolist(), seed, resamples=200)
    truth = 1000 + 400 / math.log(10) * (strength[0] - strength.mean())
    return truth, found.low[0], found.high[0]


@pytest.mark.parametrize(("trials", "margin"), [FEW, MANY])
@pytest.mark.parametrize("clustered", [False, True], ids=["rows", "prompts"])
@pytest.mark.parametrize(
    "trial", [delta, mean, accuracy, kappa, at_equal_length, rating], ids=lambda f: f.__name__
)
def test_intervals_cover_the_truth(trial, clustered, trials, margin):
    covered = share_covered(lambda rng, seed: trial(rng, seed, clustered), trials)
    assert abs(covered - 0.95) <= margin


@pytest.mark.parametrize("trial", [delta, at_equal_length, rating], ids=lambda f: f.__name__)
def test_rows_of_a_prompt_taken_one_by_one_cover_too_few(trial, monkeypatch):
    """The simulation tells: with each row as a draw of its own, intervals are too narrow."""
    from pit_jax.evaluation import intervals

    numbers = intervals.group_numbers
    monkeypatch.setattr(intervals, "group_numbers", lambda groups, n: numbers(None, n))
    assert share_covered(lambda rng, seed: trial(rng, seed, True), 60) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True], ids=["rows", "prompts"])
def test_elos_interval_covers_the_mean_over_prompts_and_orders(clustered):
    """The truth is the mean rating of all trials of a chance; ten chances, each 100 times."""
    rng, covered = np.random.default_rng(0), []
    for chance in np.linspace(0.2, 0.8, 10):
        found = []
        for seed in range(100):
            group = np.repeat(np.arange(80), 4 if clustered else 1)
            outcomes = verdicts(rng, group, [0.9 * chance, 0.1, 0.9 * (1 - chance)])
            found.append(
                elo.elo_ratings(
                    [[0, 1]], outcomes[None], group.tolist(), seed=seed, shuffles=20, resamples=150
                )
            )
        truth = np.mean([each.rating[0] for each in found])
        covered += [each.low[0] <= truth <= each.high[0] for each in found]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.slow
def test_bradley_terrys_interval_of_a_far_better_model_covers_or_is_missing():
    """The first of three models wins 73 to 99.8% against an average one; another may be better."""
    pairs, rng = np.array([[0, 1], [0, 2], [1, 2]]), np.random.default_rng(0)
    covered, won_all = [], 0
    for seed in range(1000):
        strength = np.array([rng.uniform(1, 6), *rng.normal(0, 0.5, size=2)])
        truth = 1000 + 400 / math.log(10) * (strength - strength.mean())
        chances = 1 / (1 + np.exp(strength[pairs[:, 1]] - strength[pairs[:, 0]]))
        outcomes = np.where(rng.random((3, 200)) < chances[:, None], 1, -1)
        found = bradley_terry.ratings(pairs, outcomes, seed=seed, resamples=100)
        given = np.isfinite(found.low)
        won_all += (outcomes[:2] == 1).all()
        assert not given.any() or (given.all() and (outcomes[:2] == -1).any(axis=0).sum() >= 10)
        if given.all():
            covered.append((found.low <= truth) & (truth <= found.high))
    assert won_all > 30 and len(covered) > 400
    np.testing.assert_allclose(np.mean(covered, axis=0), 0.95, atol=0.02)
