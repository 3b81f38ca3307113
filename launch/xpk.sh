#!/usr/bin/env bash
# TPUs of a cluster that xpk made, as an xpk workload. `bash launch/xpk.sh help` tells how.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
script=xpk.sh
commands='run status delete'
settings='project zone cluster name type slices image max_restarts command'
switches='spot yes dry_run'
project=${PIT_JAX_PROJECT:-}
zone=${PIT_JAX_ZONE:-}
cluster=${PIT_JAX_CLUSTER:-}
image=${PIT_JAX_IMAGE:-}
max_restarts=100
command='python -m pit_jax run --distributed'
yes=
# shellcheck source=launch/tpu_command_line.sh
source launch/tpu_command_line.sh
names=/tmp/pit_jax.env  # as --dry_run prints it; otherwise a new file

usage() {
  cat <<'TEXT'
Usage: bash launch/xpk.sh COMMAND [FLAG ...]

Runs pit_jax on a cluster made with `xpk cluster create`, as an xpk workload:

  run       xpk workload create. The flags of pit_jax follow:
              bash launch/xpk.sh run --gin_file=FILE --gin.MODEL_DIR="'gs://BUCKET/FOLDER'"
            those that don't begin with --gin stand after a --
  status    xpk workload list
  delete    xpk workload delete
  help      this text

Flags, as --flag=value or --flag value (the environment variable after them does as well):
  --project, --zone, --cluster  which cluster        PIT_JAX_PROJECT, _ZONE, _CLUSTER
  --name=NAME                   of the workload                            PIT_JAX_NAME
  --type=TYPE                   v4-8, v4-128, v5e-16, v5p-128, v6e-64 …    PIT_JAX_TYPE
  --slices=N                    slices of that type (1)                    PIT_JAX_SLICES
  --spot                        on spot nodes of an autoprovisioned cluster  PIT_JAX_SPOT=yes
  --image=IMAGE                 container image with pit_jax               PIT_JAX_IMAGE
  --max_restarts=N              before the workload counts as failed (100)
  --command=WORDS               before the flags (python -m pit_jax run --distributed)
  --secret=NAME                 an environment variable for the workers; repeatable. xpk writes its
                                value into the JobSet, for all to read who may read JobSets there:
                                so none goes without saying, and gke.sh keeps them better
  --yes                         delete: really
  --dry_run                     print the commands; run none
TEXT
}

# Names alone: xpk takes their values from its environment.
write_names() {
  if [[ -n $dry_run ]]; then
    printf "printf '%%s\\\\n' %s >%s\n" "$(quoted "${secrets[@]}")" "$names"
  else
    printf '%s\n' "${secrets[@]}" >"$names"
  fi
}

xpk_run() {
  local flags words
  require type image
  read_type
  expect max_restarts '[0-9]+' 'a number'
  read_secrets
  require_gin_file
  require_bucket 'it has to outlive the pods'
  words="env JAX_PLATFORMS=tpu,cpu PYTHONUNBUFFERED=1 $command $(quoted "${run_flags[@]}")"
  flags=("--project=$project" "--zone=$zone" "--cluster=$cluster" "--workload=$name"
    "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image"
    "--max-restarts=$max_restarts" --termination-grace-period-seconds=600
    "--command=$(unexpanded "$words")")
  [[ -z $spot ]] || flags+=(--spot)
  if ((${#secrets[@]})); then
    write_names
    flags+=("--env-file=$names")
  fi
  execute xpk workload create "${flags[@]}"
}

xpk_status() {
  execute xpk workload list "--project=$project" "--zone=$zone" "--cluster=$cluster" \
    "--filter-by-job=$name"
}

xpk_delete() {
  [[ -n $yes || -n $dry_run ]] || fail "delete: ends $name; say --yes"
  execute xpk workload delete "--project=$project" "--zone=$zone" "--cluster=$cluster" \
    "--workload=$name" --force
}

read_command_line "$@"
require project zone cluster name
expect_name name
if [[ -z $dry_run ]]; then
  names=$(mktemp)
  trap 'rm -f "$names"' EXIT
fi
"xpk_$action"
