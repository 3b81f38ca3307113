"""What a report says of its task, its code and its data."""

import subprocess
import types

import pytest

from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.evaluation import about
from tests import tiny_runs


def test_facts_of_synthetic_data():
    run = types.SimpleNamespace(
        config=tiny_runs.config("unused"), data=types.SimpleNamespace(digest="ab12")
    )
    found = about.facts(run)
    assert found["task"].startswith("Work sheets of arithmetic: ")
    assert found["task"].endswith("(synthetic data).")
    assert found["score"].startswith("The share of the sheet") and found["score"].endswith(".")
    assert found["data_digest"] == "ab12"


def test_the_task_of_files():
    pairs = DatasetConfig("preferences", 0, 0, 0, path=("a.jsonl", "b.jsonl"))
    posts = DatasetConfig("summaries", 0, 0, 0, path="posts.jsonl")
    assert about.task(pairs) == (
        "Preference pairs: to each prompt, a response that is preferred to another, from a.jsonl, "
        "b.jsonl."
    )
    both = about.task(MixtureConfig((pairs, posts)))
    assert "b.jsonl; and posts and their summaries" in both
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(dataset=pairs), data=types.SimpleNamespace(digest="")
    )
    assert "score" not in about.facts(run)


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *author, *arguments], check=True, text=True)

    git("init", "-q")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    return tmp_path


def test_the_commit_of_a_checkout(checkout):
    package = checkout / "package"
    clean = about.commit(package)
    assert len(clean) == 40
    (checkout / "beside.txt").write_text("not of the package")
    assert about.commit(package) == clean
    (package / "code.py").write_text("2")
    assert about.commit(package) == f"{clean} with changes"


def test_no_commit_outside_a_checkout_nor_in_that_of_another_project(checkout, tmp_path_factory):
    assert about.commit(tmp_path_factory.mktemp("plain")) is None
    installed = checkout / "venv" / "pit_jax"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("3")
    assert about.commit(installed) is None


def test_no_commit_without_git(monkeypatch, checkout):
    monkeypatch.setenv("PATH", "")
    assert about.commit(checkout / "package") is None
