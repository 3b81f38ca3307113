"""The lists of mutants fit the package, and what tries them tells a killed one from a survivor."""

from __future__ import annotations

import collections
import subprocess

import pytest

from tests.mutants import run
from tests.mutants.run import ROOT, Mutant

FILE = "package/folder/half.py"
CASE = "tests/test_half.py::test_half"


def test_every_mutant_is_one_change_and_names_its_tests():
    mutants = run.load()
    assert len(mutants) >= 150
    assert {mutant.folder for mutant in mutants} == set(run.FOLDERS)
    repeated = collections.Counter(mutant.name for mutant in mutants)
    assert [name for name, count in repeated.items() if count > 1] == []
    changed = [run.mutated(mutant, (ROOT / mutant.file).read_text()) for mutant in mutants]
    for mutant, text in zip(mutants, changed, strict=True):
        compile(text, mutant.file, "exec")  # a file that doesn't parse fails any test
        assert mutant.tests and mutant.new != mutant.old, mutant.name
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), f"{mutant.name}: {test}"
            assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text() or not name, test
    assert len({(m.file, m.old, m.new) for m in mutants}) == len(mutants)


def test_a_text_that_is_not_there_once_is_refused():
    mutant = Mutant("x", FILE, "a", "b", (CASE,))
    assert run.mutated(mutant, "cat") == "cbt"
    with pytest.raises(ValueError, match="mutant 'x': package/folder/half.py has 'a' 2 times"):
        run.mutated(mutant, "banal")


@pytest.fixture
def checkout(tmp_path):
    """A package of one function and its tests, of which one fails."""
    for name, text in (
        (FILE, "def half(x):\n    return x / 2 if x > 0 else 0\n"),
        (
            "tests/test_half.py",
            "from package.folder.half import half\n"
            "def test_half():\n    assert half(3) == 1.5\n"
            "def test_broken():\n    assert half(3) == 2\n",
        ),
        ("pyproject.toml", "[tool.pytest.ini_options]\npythonpath = ['.']\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_killed_and_survived(checkout):
    mutants = [
        Mutant("doubled", FILE, "x / 2", "x * 2", (CASE,)),
        Mutant("floored", FILE, "x / 2", "x // 2", (CASE,)),
        Mutant("negative too", FILE, "x > 0", "x > -1", (CASE,)),
        Mutant("no zero", FILE, "else 0", "else 1", (CASE,), "It isn't, but the table says so."),
        Mutant("broken before", FILE, "x / 2", "0", ("tests/test_half.py::test_broken",)),
    ]
    before = (checkout / FILE).read_text()
    results, broken = run.try_all(mutants, checkout, libraries=("pytest",))
    assert {r["name"]: r["killed"] for r in results} == {
        "doubled": True,
        "floored": True,
        "negative too": False,
        "no zero": False,
    }
    assert {r["by"].split(" - ")[0] for r in results if r["killed"]} == {f"FAILED {CASE}"}
    assert [*broken] == ["tests/test_half.py::test_broken"]
    assert (checkout / FILE).read_text() == before
    assert run.table(results).splitlines()[-2:] == [
        "| all | 4 | 2 | 1 | 1 |",
        "survived: package/folder/half.py: negative too",
    ]
