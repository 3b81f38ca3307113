#!/usr/bin/env bash
# Cloud TPU VMs, through queued resources. `bash launch/tpu_vm.sh help` tells how.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
script=tpu_vm.sh
commands='create setup run status logs stop delete'
settings='project zone name type slices runtime service_account network subnetwork poll node worker'
switches='spot watch follow yes dry_run'
project=${PIT_JAX_PROJECT:-}
zone=${PIT_JAX_ZONE:-}
runtime=${PIT_JAX_RUNTIME:-}
service_account=${PIT_JAX_SERVICE_ACCOUNT:-}
network=${PIT_JAX_NETWORK:-}
subnetwork=${PIT_JAX_SUBNETWORK:-}
poll=60
node=0
worker=0
watch=
follow=
yes=
# shellcheck source=launch/tpu_command_line.sh
source launch/tpu_command_line.sh
scratch=/tmp/pit_jax  # as --dry_run prints it; otherwise a new folder

usage() {
  cat <<'TEXT'
Usage: bash launch/tpu_vm.sh COMMAND [FLAG ...]

Runs pit_jax on Cloud TPU VMs:

  create    ask for the machines: a queued resource of one slice or more
  setup     wait for them, copy this checkout to every worker and install it there
  run       start `python -m pit_jax run --distributed` on every worker, detached. Its flags follow:
              bash launch/tpu_vm.sh run --gin_file=FILE --gin.MODEL_DIR="'gs://BUCKET/FOLDER'"
            those that don't begin with --gin stand after a --
  status    what the queued resource and every worker say
  logs      the end of a worker's log
  stop      end the run on every worker, at a checkpoint
  delete    give the machines back, and all that is on them
  help      this text

Flags, as --flag=value or --flag value (the environment variable after them does as well):
  --project, --zone, --name     which queued resource   PIT_JAX_PROJECT, _ZONE, _NAME
  --type=TYPE                   v4-8, v4-128, v5e-16, v5p-128, v6e-64 …    PIT_JAX_TYPE
  --slices=N                    slices of that type (1)                    PIT_JAX_SLICES
  --spot                        cheaper machines that can be taken away    PIT_JAX_SPOT=yes
  --runtime=VERSION             TPU software (the one of the type)         PIT_JAX_RUNTIME
  --service_account=EMAIL       whom the workers act as                    PIT_JAX_SERVICE_ACCOUNT
  --network, --subnetwork       where they are connected      PIT_JAX_NETWORK, PIT_JAX_SUBNETWORK
  --secret=NAME                 run: an environment variable for the workers; repeatable.
                                WANDB_API_KEY, if set, goes without saying
  --watch                       run: create and set up first, where that isn't done; then stay, and
                                do it all again after a preemption. ^C ends only the watching
  --poll=SECONDS                between looks at the machines (60)
  --node=N, --worker=N          logs: slice and worker (0 and 0), or all
  --follow                      logs: go on as the log grows
  --yes                         delete: really
  --dry_run                     print the commands, shell-quoted, secrets as ***; run none
TEXT
}

# --- gcloud ---------------------------------------------------------------------------------

queued() {
  local action=$1
  shift
  execute gcloud compute tpus queued-resources "$action" "$name" "--project=$project" \
    "--zone=$zone" "$@"
}

on_all() {
  queued ssh --node=all --worker=all "--command=$1"
}

describe() {
  queued describe '--format=value(state.state)'
}

# A state of queued resources, NOT_FOUND, or UNKNOWN when gcloud can't say.
resource_state() {
  local state
  if state=$(describe 2>"$scratch/error"); then
    echo "${state:-UNKNOWN}"
  elif grep -q NOT_FOUND "$scratch/error"; then
    echo NOT_FOUND
  else
    cat "$scratch/error" >&2
    echo UNKNOWN
  fi
}

# What the workers say of their run, as one word: the most telling of their answers, or `silent`
# when not all of them answer. A machine made anew has nothing to say: `lost`.
run_state() {
  local answers state
  answers=$(on_all 'bash tpu_worker.sh state 2>/dev/null || echo worker: lost' \
    2>/dev/null) || true
  if (($(grep -c '^[^ :]*: [a-z]' <<<"$answers") < workers)); then
    echo silent
    return
  fi
  for state in lost idle stopped failed running finished; do
    if grep -q "^[^ :]*: $state" <<<"$answers"; then
      echo "$state"
      return
    fi
  done
}

wait_until_active() {
  local state seen=
  if [[ -n $dry_run ]]; then
    remark "every $poll s, until it prints ACTIVE:"
    describe
    return
  fi
  while :; do
    state=$(resource_state)
    [[ $state == "$seen" ]] || echo "$name: $state" >&2
    seen=$state
    case $state in
      ACTIVE) return ;;
      UNKNOWN) give_up "gcloud doesn't say how $name is" ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NOT_FOUND)
        give_up "$name is $state; \`create\` asks for machines, after \`delete\` if it exists"
        ;;
    esac
    sleep "$poll"
  done
}

# --- the commands ---------------------------------------------------------------------------

create() {
  local flags=("--accelerator-type=$type" "--runtime-version=${runtime:-$software}")
  if ((slices > 1)); then
    flags+=("--node-count=$slices" "--node-prefix=$name")
  else
    flags+=("--node-id=$name")
  fi
  [[ -z $spot ]] || flags+=(--spot)
  [[ -z $service_account ]] || flags+=("--service-account=$service_account")
  [[ -z $network ]] || flags+=("--network=$network")
  [[ -z $subnetwork ]] || flags+=("--subnetwork=$subnetwork")
  queued create "${flags[@]}"
}

delete() {
  queued delete --force --quiet
}

# The working tree as it is, without ignored files, and its installer, on every worker.
copy() {
  local archive=$scratch/pit_jax.tar.gz tree=TREE git=(env "GIT_INDEX_FILE=$scratch/index" git)
  execute mkdir -p "$scratch" &&
    execute "${git[@]}" add --all &&
    if [[ -n $dry_run ]]; then
      remark 'prints TREE:'
      execute "${git[@]}" write-tree
    else
      tree=$("${git[@]}" write-tree)
    fi &&
    execute git archive --format=tar.gz "--output=$archive" "$tree" &&
    execute gcloud compute tpus queued-resources scp launch/tpu_worker.sh "$archive" "$name:" \
      "--project=$project" "--zone=$zone" --node=all --worker=all
}

print_secrets() {
  local secret
  for secret in "${secrets[@]}"; do
    printf '%s=' "$secret"
    print_secret "$secret" shell
  done
}

send_secrets_to() {
  feed print_secrets gcloud compute tpus queued-resources ssh "$name" "--project=$project" \
    "--zone=$zone" "--node=$1" "--worker=$2" '--command=bash tpu_worker.sh secrets'
}

wait_for() {
  local process failures=0
  for process; do wait "$process" || failures=1; done
  return "$failures"
}

# One call a worker, 16 at a time: the workers of one gcloud call share its standard input.
send_secrets() {
  local slice host processes=()
  ((${#secrets[@]})) || return 0
  for ((slice = 0; slice < slices; slice++)); do
    for ((host = 0; host < hosts; host++)); do
      if [[ -n $dry_run ]]; then
        send_secrets_to "$slice" "$host"
        continue
      fi
      send_secrets_to "$slice" "$host" >&2 &
      processes+=("$!")
      if ((${#processes[@]} == 16)); then
        wait_for "${processes[@]}" || return
        processes=()
      fi
    done
  done
  ((${#processes[@]} == 0)) || wait_for "${processes[@]}"
}

start() {
  send_secrets && on_all "bash tpu_worker.sh start $(quoted "${run_flags[@]}")"
}

# --- watching -------------------------------------------------------------------------------

create_again() {
  delete && create
}

set_up_and_start() {
  copy && on_all 'bash tpu_worker.sh stop KILL && bash tpu_worker.sh install' && start
}

# Looks until the run is over, and does what the state asks for. Three steps that fail in a row are
# given up.
watch() {
  local state step seen='' started='' failures=0
  while :; do
    step=
    state=$(resource_state)
    [[ $state != ACTIVE ]] || state=$(run_state)
    [[ $state == "$seen" ]] || echo "$(date '+%F %T') $name: $state" >&2
    judge
    [[ $step != end ]] || return 0
    seen=$state
    if [[ -z $step ]]; then
      failures=0
    elif "$step"; then
      seen='' failures=0
      if [[ $step == set_up_and_start ]]; then started=yes; fi
    else
      failures=$((failures + 1))
      ((failures < 3)) || give_up "$name: gave up after three attempts; machines that are there\
 cost until \`delete\`"
    fi
    sleep "$poll"
  done
}

# Sets the step that a state asks for; `started` says whether the run was seen or started here. A
# run that failed is believed at the second look: the first may come before the news that the
# machines are gone.
judge() {
  case $state${started:+ after its start} in
    running*) started=yes ;;
    SUSPENDED*) started='' step=create_again ;;
    FAILED*) give_up "$name: the request failed; the console says why, \`delete\` removes it" ;;
    NOT_FOUND) step=create ;;
    'NOT_FOUND after its start') give_up "$name was deleted" ;;
    UNKNOWN) step=false ;;
    'finished after its start') step=end ;;
    'stopped after its start') give_up "$name: the run was stopped" ;;
    'failed after its start')
      [[ $seen != failed ]] || give_up "$name: the run failed; \`logs\` shows why, and the machines\
 cost until \`delete\`"
      ;;
    lost* | idle* | finished | stopped | failed) started='' step=set_up_and_start ;;
  esac
}

print_watch() {
  remark "every $poll s; where it answers ACTIVE, the workers are asked as well:"
  describe
  on_all 'bash tpu_worker.sh state 2>/dev/null || echo worker: lost'
  remark 'where there is none:'
  create
  remark 'where it is SUSPENDED, by a preemption:'
  create_again
  remark 'where it is ACTIVE and no run is under way:'
  set_up_and_start
}

# --- command line ---------------------------------------------------------------------------

tpu_create() {
  require type
  read_type
  create
}

require_checkout() {
  git rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    fail "$1: expected a git checkout: what git doesn't ignore is copied"
}

tpu_setup() {
  require_checkout setup
  wait_until_active
  copy
  on_all 'bash tpu_worker.sh install'
}

tpu_run() {
  local why=
  require type
  read_type
  add_wandb_key
  read_secrets
  require_gin_file
  if ((workers > 1)); then why="$workers workers write it"; fi
  if [[ -n $spot || -n $watch ]]; then why='it has to outlive the machines'; fi
  [[ -z $why ]] || require_bucket "$why"
  [[ -z $watch ]] || require_checkout 'run --watch'
  case $watch-$dry_run in
    -*) start ;;
    yes-) watch ;;
    *) print_watch ;;
  esac
}

tpu_status() {
  local state
  if [[ -n $dry_run ]]; then
    describe
    remark 'where it prints ACTIVE:'
    on_all 'bash tpu_worker.sh state'
    return
  fi
  state=$(resource_state)
  echo "$name: $state"
  [[ $state != ACTIVE ]] || on_all 'bash tpu_worker.sh state'
}

tpu_logs() {
  queued ssh "--node=$node" "--worker=$worker" \
    "--command=tail -n 100 ${follow:+-F }pit_jax_run/log"
}

tpu_stop() {
  on_all 'bash tpu_worker.sh stop'
}

tpu_delete() {
  [[ -n $yes || -n $dry_run ]] ||
    fail "delete: takes the machines of $name and all that is on them; say --yes"
  delete
}

read_command_line "$@"
require project zone name
expect_name name
expect poll '[0-9.]+' 'seconds'
if [[ -z $dry_run ]]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi
"tpu_$action"
