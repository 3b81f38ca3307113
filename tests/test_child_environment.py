"""Programs that tests start keep what the user's environment has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.child_environment import ROOT, child_environment


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, str(ROOT)),
        ({"PYTHONPATH": ""}, str(ROOT)),  # an empty entry would stand for the current folder
        (
            {"PYTHONPATH": os.pathsep.join(["/t5x", "/airio"])},
            os.pathsep.join([str(ROOT), "/t5x", "/airio"]),
        ),
    ],
)
def test_the_checkout_comes_before_what_is_in_pythonpath(given, path):
    assert child_environment(1, given)["PYTHONPATH"] == path


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, "--xla_force_host_platform_device_count=2"),
        (
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/x"},
            "--xla_dump_to=/tmp/x --xla_force_host_platform_device_count=2",
        ),
    ],
)
def test_the_number_of_devices_comes_beside_other_flags(given, flags):
    assert child_environment(2, given)["XLA_FLAGS"] == flags


def test_other_variables_stay_or_change_as_told():
    given = {"HOME": "/home/me", "LANG": "C"}
    found = child_environment(1, given, LANG="C.UTF-8")
    assert (found["HOME"], found["LANG"]) == ("/home/me", "C.UTF-8")
    assert given == {"HOME": "/home/me", "LANG": "C"}


def test_a_program_finds_this_checkout_and_what_pythonpath_names(tmp_path):
    (tmp_path / "found_by_pythonpath.py").write_text("")
    given = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import importlib.util, found_by_pythonpath as other\n"
    code += "print(importlib.util.find_spec('pit_jax').origin, other.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=child_environment(1, given),
        capture_output=True,
        text=True,
    )
    expected = [str(ROOT / "pit_jax/__init__.py"), str(tmp_path / "found_by_pythonpath.py")]
    assert run.stdout.split() == expected, run.stderr
