#!/usr/bin/env bash
# One worker of a Cloud TPU VM: installs pit_jax in its home and runs it there, detached.
# tpu_vm.sh copies this script to every worker and calls it:
#   install        unpack pit_jax.tar.gz and install it
#   secrets        keep the NAME=VALUE lines of standard input for the next start
#   start [FLAG …] start `python -m pit_jax run --distributed FLAG …`; output: pit_jax_run/log
#   state          one line: idle, running, finished, failed, stopped, lost (the machine goes down)
#   stop [SIGNAL]  send the run a signal, TERM by default, and wait for its end
set -euo pipefail

cd
self=$(basename "${BASH_SOURCE[0]}")
tree=pit_jax
venv=pit_jax_venv
run=pit_jax_run  # lock, held while a run is under way; started, pid, exit, stopped; secrets; log
grace=600  # seconds a run has to write its checkpoint

fail() {
  echo "$(hostname): $1" >&2
  exit 1
}

is_running() {
  ! flock --shared --nonblock "$run/lock" true
}

# A virtual environment with Python 3.11 or newer, which the TPU software's own Python may not be.
make_venv() {
  local python
  rm -rf "$venv"
  for python in python3.13 python3.12 python3.11; do
    if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
      "$python" -m venv "$venv"
      return
    fi
  done
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python 3.12 "$venv"
}

install() {
  if is_running; then fail 'a run is under way; stop it before setup'; fi
  rm -rf "$tree"
  mkdir "$tree"
  tar -xzf pit_jax.tar.gz -C "$tree"
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
  cd "$tree"
  "../$venv/bin/python" -m pip install --quiet -e '.[tpu,wandb]' -c constraints.txt
  echo "$(hostname): installed"
}

keep_secrets() {
  umask 077
  rm -f "$run/secrets"
  cat >"$run/secrets"
}

start() {
  [[ -d $tree ]] || fail 'nothing is installed here; run setup first'
  if is_running; then fail 'a run is under way; stop it first'; fi
  rm -f "$run"/{pid,exit,stopped}
  touch "$run/started"
  setsid flock --timeout 5 --close "$run/lock" bash "$self" supervise "$@" \
    </dev/null >>"$run/log" 2>&1 &
  until [[ -e $run/pid ]]; do
    kill -0 "$!" 2>/dev/null || fail "the run didn't start; see the log"
    sleep 0.1
  done
  echo "$(hostname): started"
}

# Runs until pit_jax ends, and notes how it did.
supervise() {
  local status=0
  echo "--- $(date): python -m pit_jax run --distributed $*"
  if [[ -e $run/secrets ]]; then
    set -a
    # shellcheck source=/dev/null
    source "$run/secrets"
    set +a
    rm "$run/secrets"
  fi
  export JAX_PLATFORMS=tpu,cpu  # a TPU that doesn't start is an error, not a run on the CPU
  export TF_CPP_MIN_LOG_LEVEL=3 PYTHONUNBUFFERED=1
  (cd "$tree" && exec "../$venv/bin/python" -m pit_jax run --distributed "$@") &
  echo "$!" >"$run/pid.new"
  mv "$run/pid.new" "$run/pid"
  wait "$!" || status=$?
  echo "$status" >"$run/exit"
}

state() {
  local state=lost
  if is_running; then
    state=running
  elif [[ -e $run/stopped ]]; then
    state=stopped
  elif [[ -e $run/exit ]]; then
    case $(<"$run/exit") in
      0) state=finished ;;
      143) ;; # a SIGTERM that `stop` didn't send: this machine, or another's, is taken away
      *) state="failed, exit status $(<"$run/exit")" ;;
    esac
  elif [[ ! -e $run/started ]]; then
    state=idle
  fi
  echo "$(hostname): $state"
}

stop() {
  if is_running; then
    touch "$run/stopped"
    kill -s "${1:-TERM}" "$(<"$run/pid")" || true  # it may just have ended
    flock --shared --timeout "$grace" "$run/lock" true ||
      fail "still running $grace s after it was told to stop"
  fi
  echo "$(hostname): nothing runs"
}

mkdir -p "$run"
chmod 700 "$run"
command=${1:-}
(($# == 0)) || shift
case $command in
  install | start | supervise | state | stop) "$command" "$@" ;;
  secrets) keep_secrets ;;
  *) fail "unknown command '$command'" ;;
esac
