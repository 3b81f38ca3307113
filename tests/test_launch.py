"""launch/local.sh, .ci/run and the requirements. A stand-in for Python keeps it off the network."""

import itertools
import os
import pathlib
import runpy
import shutil
import stat
import subprocess
import sys
import types

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Answers like a Python that makes environments, and logs what it is asked for.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
for word in "$@"; do printf '<%s>' "$word"; done >>"$LOG"
echo >>"$LOG"
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
elif [ "$1 $2" = "-m pip" ]; then
  [ -z "$KILL_DURING_PIP" ] || kill -9 "$PPID"
  exit "${PIP_STATUS:-0}"
elif [ "$1 $2 $3" = "-m pit_jax run" ]; then
  exit "${RUN_STATUS:-0}"
elif [ "$1 $2" = "-m pytest" ]; then
  exit "${PYTEST_STATUS:-0}"
fi
"""


class Checkout:
    """A folder with a copy of the scripts, and a PATH on which only the stand-in is a Python."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "check out"
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.temporary = folder / "temporary"
        for made in (self.root / "launch", self.root / ".ci", self.bin, self.temporary):
            made.mkdir(parents=True)
        for name in ("launch/local.sh", ".ci/run", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.root / name)
        for name in ("python3.13", "python3.12", "python3.11", "python3"):
            self.write_python(name)

    def write_python(self, name: str, script: str = PYTHON) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, script: str = "launch/local.sh", **environment: str):
        return subprocess.run(
            ["bash", str(self.root / script), *arguments],
            capture_output=True,
            text=True,
            cwd=self.bin,  # from anywhere
            timeout=60,
            env={
                "PATH": f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin",
                "LOG": str(self.log),
                "TMPDIR": str(self.temporary),
                **environment,
            },
        )

    def calls(self) -> list[str]:
        """What Python was asked for since the last look."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        self.log.unlink()
        return lines


def kinds(calls: list[str]) -> list[str]:
    return [call.removeprefix("<-m><").partition(">")[0] for call in calls]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",), ("-h",)])
def test_help_names_the_commands_and_installs_nothing(checkout, arguments):
    result = checkout.run(*arguments)
    assert result.returncode == 0
    for word in ("git clone", "quickstart", "paper-tables", "test", "lint", "PIT_JAX_VENV"):
        assert word in result.stdout
    assert checkout.calls() == []


def test_unknown_command_is_one_line_and_status_2(checkout):
    result = checkout.run("quickstrat")
    assert result.returncode == 2
    assert result.stderr == (
        "launch/local.sh: unknown command 'quickstrat'; "
        "expected quickstart, paper-tables, test, coverage, t5x-test, lint, setup or help\n"
    )
    assert checkout.calls() == []


def test_first_call_installs_and_later_calls_only_run(checkout):
    argument = "--gin.MODEL_DIR='runs/two words'"
    first = checkout.run("quickstart", argument)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("\n") == 1 and "Installing" in first.stderr
    venv, pip, run = checkout.calls()
    assert venv == "<-m><venv><.venv>"
    assert pip.startswith("<-m><pip><install>") and pip.endswith(
        "<-e><.[test]><-c><constraints.txt>"
    )
    assert run == (
        "<-m><pit_jax><run><--gin_file=gin/runs/quickstart.gin>"
        f"<--gin.MODEL_DIR='runs/quickstart'><{argument}>"
    )
    second = checkout.run("quickstart", argument)
    assert (second.returncode, second.stderr) == (0, "")
    assert checkout.calls() == [run]


def test_paper_tables_is_a_sweep_of_three_seeds(checkout):
    checkout.run("setup")
    checkout.calls()
    result = checkout.run("paper-tables", "--gin.PPOConfig.beta=0.1", "--gin.NAME='two words'")
    assert (result.returncode, result.stderr) == (0, "")
    assert checkout.calls() == [
        "<-m><pit_jax><sweep><--gin_file=gin/runs/paper_tables.gin><--seeds=0,1,2>"
        "<--gin.PPOConfig.beta=0.1><--gin.NAME='two words'>"
    ]


def test_venv_can_be_elsewhere(checkout, tmp_path):
    elsewhere = tmp_path / "some where" / "venv"
    assert checkout.run("setup", PIT_JAX_VENV=str(elsewhere)).returncode == 0
    assert checkout.calls()[0] == f"<-m><venv><{elsewhere}>"
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("name", ["setup.py", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_same_environment(checkout, name):
    checkout.run("setup")
    checkout.calls()
    with open(checkout.root / name, "a") as file:
        file.write("# changed\n")
    assert checkout.run("setup").returncode == 0
    assert kinds(checkout.calls()) == ["pip"]
    assert checkout.run("setup").returncode == 0
    assert checkout.calls() == []


def test_moved_checkout_is_installed_again(checkout):
    checkout.run("setup")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    checkout.calls()
    assert checkout.run("setup").returncode == 0
    assert kinds(checkout.calls()) == ["pip"]


@pytest.mark.parametrize("stop", [{"PIP_STATUS": "1"}, {"KILL_DURING_PIP": "yes"}])
@pytest.mark.parametrize("installed_before", [False, True])
def test_stopped_installation_is_made_again_from_nothing(checkout, stop, installed_before):
    if installed_before:
        checkout.run("setup")
        (checkout.root / "constraints.txt").write_text("# changed\n")
    assert checkout.run("test", **stop).returncode != 0
    assert "pytest" not in kinds(checkout.calls())
    left = checkout.root / ".venv" / "lib" / "half_a_package.py"
    left.parent.mkdir()
    left.write_text("")
    assert checkout.run("setup").returncode == 0
    assert kinds(checkout.calls()) == ["venv", "pip"]
    assert not left.exists()


def test_environment_whose_python_is_gone_is_made_again(checkout):
    checkout.run("setup")
    checkout.calls()
    (checkout.root / ".venv/bin/python").unlink()
    assert checkout.run("setup").returncode == 0
    assert kinds(checkout.calls()) == ["venv", "pip"]


@pytest.mark.parametrize("is_environment", [False, True])
def test_folder_of_someone_else_is_left_alone(checkout, is_environment):
    precious = checkout.root / ".venv" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    if is_environment:
        (precious.parent / "bin").mkdir()
        shutil.copy(checkout.bin / "python3", precious.parent / "bin" / "python")
    result = checkout.run("setup")
    assert result.returncode == 2
    assert ".venv was not made by this script" in result.stderr
    assert precious.read_text() == "mine"
    assert checkout.calls() == []


def test_first_python_that_is_recent_enough_is_taken(checkout):
    for name in ("python3.13", "python3.11"):  # a version manager's stub; one without venv
        checkout.write_python(name, "#!/bin/sh\nexit 127\n")
    checkout.write_python("python3.12", PYTHON.replace("cp ", "cp -p "))
    checkout.run("setup")
    taken = (checkout.root / ".venv/bin/python").read_text()
    assert taken == (checkout.bin / "python3.12").read_text()


def test_no_recent_python_is_one_line(checkout):
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        checkout.write_python(name, "#!/bin/sh\nexit 1\n")
    result = checkout.run("test")
    assert result.returncode == 2
    assert "needs Python 3.11 or newer" in result.stderr
    assert result.stderr.count("\n") == 1
    result = checkout.run("test", PIT_JAX_PYTHON="no-such-python")
    assert result.returncode == 2
    assert "PIT_JAX_PYTHON=no-such-python is not" in result.stderr


def test_test_command_lints_types_and_tests(checkout):
    checkout.run("setup")
    checkout.calls()
    assert checkout.run("test").returncode == 0
    calls = checkout.calls()
    assert calls[:3] == ["<-m><ruff><check><.>", "<-m><ruff><format><--check><.>", "<-m><mypy>"]
    assert "<--dist>" in calls[3] and "--cov" not in calls[3]
    assert checkout.run("coverage").returncode == 0
    (covering,) = checkout.calls()
    assert "<--cov=pit_jax>" in covering and "<--cov-fail-under=96>" in covering
    assert checkout.run("test", "-k", "gap or kl").returncode == 0
    assert checkout.calls() == ["<-m><pytest><-k><gap or kl>"]
    assert checkout.run("test", PYTEST_STATUS="1").returncode == 1


def test_t5x_tests_run_in_the_users_own_environment(checkout):
    assert checkout.run("t5x-test", "-k", "gap").returncode == 0
    assert checkout.calls() == ["<-m><pytest><-m><t5x><tests/adapters><-k><gap>"]  # no installation
    error = "Traceback:\nImportError: No module named airio"
    checkout.write_python("without", f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    result = checkout.run("t5x-test", PIT_JAX_PYTHON="without")
    assert result.returncode == 2
    assert result.stderr == (
        "launch/local.sh: without can't import T5X and what it needs; "
        "docs/t5x.md tells how to install them. "
        "The error was: ImportError: No module named airio\n"
    )


@pytest.mark.parametrize("status", [0, 1])
def test_ci_runs_in_a_fresh_environment_and_removes_it(checkout, status):
    checkout.run("setup")
    checkout.calls()
    result = checkout.run(script=".ci/run", PYTEST_STATUS=str(status))
    assert result.returncode == status
    assert kinds(checkout.calls()) == ["venv", "pip", "ruff", "ruff", "mypy", "pytest"]
    assert list(checkout.temporary.iterdir()) == []


@pytest.mark.parametrize("script", ["launch/local.sh", ".ci/run"])
def test_scripts_are_executable_and_clean(script):
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(ROOT / script)], check=True, timeout=60)


# --- requirements ---------------------------------------------------------------------------


def read_setup(monkeypatch) -> dict:
    """The keyword arguments of setup.py's call of `setuptools.setup`."""
    captured: dict = {}
    fake = types.ModuleType("setuptools")
    fake.setup = lambda **keywords: captured.update(keywords)
    fake.find_packages = lambda **_: []
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    runpy.run_path(str(ROOT / "setup.py"))
    return captured


def read_pins() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, separator, version = line.partition("==")
            assert separator and name and version, f"not of the form name==version: {line!r}"
            pins[canonicalize_name(name)] = version
    return pins


def test_every_requirement_is_pinned_inside_its_range(monkeypatch):
    setup, pins = read_setup(monkeypatch), read_pins()
    groups = [setup["install_requires"], *setup["extras_require"].values()]
    for requirement in map(Requirement, itertools.chain.from_iterable(groups)):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no line for {requirement.name}"
        assert version in requirement.specifier, f"{requirement} excludes the pinned {version}"


def test_pins_are_plain_versions():
    for name, version in read_pins().items():
        assert not set("/@: ;") & set(name + version), f"{name}=={version} names a place"


def test_files_that_are_not_python_are_installed(monkeypatch):
    package_data = read_setup(monkeypatch)["package_data"]
    listed = {
        path
        for package, patterns in package_data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    others = {path for path in (ROOT / "pit_jax").rglob("*.*") if path.is_file()}
    others = {path for path in others if path.suffix not in (".py", ".pyc")}
    assert others == listed and any(path.name == "report.html.j2" for path in listed)


def test_version_has_one_source(monkeypatch):
    import pit_jax

    assert read_setup(monkeypatch)["version"] == pit_jax.__version__
