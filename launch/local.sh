#!/usr/bin/env bash
# git clone ADDRESS pit_jax && cd pit_jax && bash launch/local.sh quickstart
#
# One machine: sets up all that pit_jax needs, then runs it. `bash launch/local.sh help` tells how.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${PIT_JAX_VENV:-.venv}
stamp=$venv/pit_jax.installed  # what the finished installation was made from
unfinished=$venv/pit_jax.unfinished  # here while an installation is under way
workers=(-n logical --maxprocesses 4 --dist worksteal)  # of pytest, for every test
wanted=  # what an installation would be made from now: set by ensure_venv

usage() {
  cat <<'TEXT'
From nothing to the first report, where ADDRESS is that of this repository:

  git clone ADDRESS pit_jax && cd pit_jax
  bash launch/local.sh quickstart

Usage: bash launch/local.sh COMMAND [ARGUMENT ...]

Sets up a virtual environment on the first call (Python 3.11 or newer and a network are all it
needs), then runs COMMAND from the root of the checkout:

  quickstart [ARGUMENT ...]   the whole of PIT, small: gin/runs/quickstart.gin -> runs/quickstart.
                              Arguments go to `python -m pit_jax run`; a later one wins:
                                bash launch/local.sh quickstart --gin.MODEL_DIR="'runs/again'"
  paper-tables [FLAG ...]     the paper's tables on synthetic data: gin/runs/paper_tables.gin with
                              seeds 0, 1 and 2 -> runs/paper_tables, which has the report of all
                              three, and seed0 to seed2. The same command goes on where it ended;
                              flags go to `python -m pit_jax sweep`
  test [ARGUMENT ...]         lint, types, and every test. With arguments, only pytest, with them:
                                bash launch/local.sh test tests/method/test_losses.py -k gap
                                bash launch/local.sh test -m slow
  coverage                    every test, and which lines none of them runs; 96% have to be run
  t5x-test [ARGUMENT ...]     the tests that run T5X itself, with the Python of PIT_JAX_PYTHON
                              (python3), which has to have it: docs/t5x.md. Nothing is installed
  lint                        ruff and mypy
  setup                       the virtual environment and nothing else
  help                        this text

Environment:
  PIT_JAX_VENV     folder of the virtual environment, seen from the checkout (.venv)
  PIT_JAX_PYTHON   Python to make it with (the first of python3.13, 3.12, 3.11, python3 that works)
  JAX_PLATFORMS    as for JAX; cpu where the machine shows no accelerator
TEXT
}

fail() {
  echo "launch/local.sh: $1" >&2
  exit 2
}

is_recent() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n ${PIT_JAX_PYTHON:-} ]]; then
    is_recent "$PIT_JAX_PYTHON" ||
      fail "PIT_JAX_PYTHON=$PIT_JAX_PYTHON is not a Python 3.11 or newer with the venv module"
    echo "$PIT_JAX_PYTHON"
    return
  fi
  for candidate in python3.13 python3.12 python3.11 python3; do
    if is_recent "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or newer with the venv module (python3.11-venv on Debian and Ubuntu);\
 found none among python3.13, python3.12, python3.11, python3. PIT_JAX_PYTHON can name one"
}

# A new virtual environment, from nothing or from what a stopped installation left.
make_venv() {
  local python
  python=$(find_python)
  if [[ -e $stamp || -e $unfinished ]]; then
    touch "$unfinished"
    find "$venv" -mindepth 1 ! -name "${unfinished##*/}" -delete
  elif [[ -n $(ls -A "$venv" 2>/dev/null) ]]; then
    fail "$venv was not made by this script; remove it, or set PIT_JAX_VENV to another folder"
  fi
  mkdir -p "$venv"
  touch "$unfinished"
  "$python" -m venv "$venv"
}

starts() {
  "$venv/bin/python" -c '' 2>/dev/null
}

is_ready() {
  [[ ! -e $unfinished && $(cat "$stamp" 2>/dev/null) == "$wanted" ]] && starts
}

install() {
  if [[ -e $stamp && ! -e $unfinished ]] && starts; then
    touch "$unfinished"
  else
    make_venv
  fi
  echo "Installing pit_jax and what it needs into $venv (once; a few minutes) ..." >&2
  # As variables, because pip hands those on to the pip that it starts to build a package.
  PIP_QUIET=2 PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip \
    install --log "$venv/pip.log" -e '.[test]' -c constraints.txt ||
    fail "the installation failed; see $venv/pip.log"
  echo "$wanted" >"$stamp"
  rm "$unfinished"
}

# Installs when there is nothing yet, when the last installation was stopped, and when the
# requirements or the place of the checkout have changed. One call installs, others wait for it.
ensure_venv() {
  wanted=$(cksum setup.py constraints.txt && pwd)
  if is_ready; then return; fi
  mkdir -p "$(dirname "$venv")"
  exec 9>"$venv.lock"
  if command -v flock >/dev/null; then flock 9; fi
  if ! is_ready; then install; fi
  exec 9>&-
}

# Less noise from native libraries; the CPU where there is nothing else to look for.
set_environment() {
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
  export TF_ENABLE_ONEDNN_OPTS=${TF_ENABLE_ONEDNN_OPTS:-0}
  if ! compgen -G '/dev/nvidia[0-9]*' >/dev/null && ! compgen -G '/dev/accel*' >/dev/null &&
    ! compgen -G '/dev/vfio/[0-9]*' >/dev/null && [[ ! -e /dev/kfd && ! -e /dev/dxg ]]; then
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
  fi
}

run_lint() {
  "$venv/bin/python" -m ruff check .
  "$venv/bin/python" -m ruff format --check .
  "$venv/bin/python" -m mypy
}

run_test() {
  if (($#)); then
    "$venv/bin/python" -m pytest "$@"
  else
    run_lint
    "$venv/bin/python" -m pytest "${workers[@]}"
  fi
}

run_coverage() {
  "$venv/bin/python" -m pytest "${workers[@]}" --cov=pit_jax --cov-report=term --cov-fail-under=96
}

run_quickstart() {
  "$venv/bin/python" -m pit_jax run --gin_file=gin/runs/quickstart.gin \
    --gin.MODEL_DIR="'runs/quickstart'" "$@"
}

run_paper_tables() {
  "$venv/bin/python" -m pit_jax sweep --gin_file=gin/runs/paper_tables.gin --seeds=0,1,2 "$@"
}

# Wherever T5X can be imported: no environment of this script's making has it.
run_t5x_test() {
  local python=${PIT_JAX_PYTHON:-python3} error
  error=$("$python" -c 'import pit_jax.adapters.t5x' 2>&1) ||
    fail "$python can't import T5X and what it needs; docs/t5x.md tells how to install them.\
 The error was: ${error##*$'\n'}"
  "$python" -m pytest -m t5x tests/adapters "$@"
}

main() {
  local command=${1:-help}
  (($# == 0)) || shift
  case $command in
    help | -h | --help) usage ;;
    setup) ensure_venv ;;
    lint | test | coverage | quickstart | paper-tables)
      ensure_venv
      set_environment
      "run_${command//-/_}" "$@"
      ;;
    t5x-test)
      set_environment
      run_t5x_test "$@"
      ;;
    *)
      fail "unknown command '$command';\
 expected quickstart, paper-tables, test, coverage, t5x-test, lint, setup or help"
      ;;
  esac
}

main "$@"
