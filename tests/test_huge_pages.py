"""Tests of `pit_jax.huge_pages`."""

import os
import subprocess
import sys

import pytest

from pit_jax import huge_pages


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("always [madvise] never\n", {}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
        (
            "always [madvise] never\n",
            {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
            {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"},
        ),
        ("always [madvise] never\n", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, {}),
        ("[always] madvise never\n", {}, {}),
        ("always madvise [never]\n", {}, {}),
        (None, {}, {}),
    ],
)
def test_only_what_is_given_on_request_is_asked_for(tmp_path, setting, environment, expected):
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting)
    assert huge_pages.wish(environment, file) == expected


def test_a_process_starts_again_once_with_its_arguments_and_under_its_number(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "program.py").write_text(
        "import functools, os, pathlib, sys\n"
        "from pit_jax import huge_pages\n"
        "print(os.getpid(), flush=True)\n"
        f"setting = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "huge_pages.wish = functools.partial(huge_pages.wish, setting=setting)\n"
        "huge_pages.ask()\n"
        "print(sys.argv[1:], sys.flags.dev_mode, os.environ['GLIBC_TUNABLES'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "dev", str(tmp_path / "program.py"), "a b", "--c"]
    ended = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, words = ended.stdout.splitlines()
    assert first == second
    assert words == "['a b', '--c'] True glibc.malloc.hugetlb=1"
