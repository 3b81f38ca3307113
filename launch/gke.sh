#!/usr/bin/env bash
# TPUs of a Google Kubernetes Engine cluster, as a JobSet. `bash launch/gke.sh help` tells how.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
script=gke.sh
commands='run status logs delete'
settings='name type slices image namespace service_account topology max_restarts command'
switches='spot follow dry_run'
image=${PIT_JAX_IMAGE:-}
namespace=${PIT_JAX_NAMESPACE:-default}
service_account=${PIT_JAX_KUBERNETES_SERVICE_ACCOUNT:-}
topology=
max_restarts=100
command='python -m pit_jax run --distributed'
follow=
# shellcheck source=launch/tpu_command_line.sh
source launch/tpu_command_line.sh

usage() {
  cat <<'TEXT'
Usage: bash launch/gke.sh COMMAND [FLAG ...]

Runs pit_jax on the TPU node pools of the cluster that kubectl is set to, as a JobSet:

  run       apply the JobSet; all of it restarts after a preemption or a failure, and pit_jax goes
            on at its last checkpoint. Its flags follow:
              bash launch/gke.sh run --gin_file=FILE --gin.MODEL_DIR="'gs://BUCKET/FOLDER'"
            those that don't begin with --gin stand after a --
  status    the JobSet and its pods
  logs      the end of the first worker's log
  delete    end the run at a checkpoint and remove the JobSet and its secrets
  help      this text

Flags, as --flag=value or --flag value (the environment variable after them does as well):
  --name=NAME                   of the JobSet                              PIT_JAX_NAME
  --type=TYPE                   v4-8, v4-128, v5e-16, v5p-128, v6e-64 …    PIT_JAX_TYPE
  --slices=N                    slices of that type, a node pool each (1)  PIT_JAX_SLICES
  --topology=AxB or AxBxC       of a slice, if not the usual one
  --spot                        on spot nodes                              PIT_JAX_SPOT=yes
  --image=IMAGE                 container image with pit_jax               PIT_JAX_IMAGE
  --namespace=NAMESPACE         (default)                                  PIT_JAX_NAMESPACE
  --service_account=NAME        Kubernetes service account     PIT_JAX_KUBERNETES_SERVICE_ACCOUNT
  --max_restarts=N              before the JobSet counts as failed (100)
  --command=WORDS               before the flags (python -m pit_jax run --distributed)
  --secret=NAME                 an environment variable for the workers, as a Kubernetes secret;
                                repeatable. WANDB_API_KEY, if set, goes without saying
  --follow                      logs: go on as the log grows
  --dry_run                     print manifest and commands, secrets as ***; run none
TEXT
}

# A word as a YAML string.
yaml() {
  local quote="'"
  printf "'%s'" "${1//$quote/$quote$quote}"
}

print_secrets() {
  local secret
  cat <<YAML
apiVersion: v1
kind: Secret
metadata:
  name: $name-secrets
data:
YAML
  for secret in "${secrets[@]}"; do
    printf '  %s: ' "$secret"
    print_secret "$secret" base64
  done
}

print_jobset() {
  local word words
  read -ra words <<<"$command"
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
    - name: userMistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: pit-jax
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 600
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
YAML
  [[ -z $spot ]] || echo '              cloud.google.com/gke-spot: "true"'
  [[ -z $service_account ]] || echo "            serviceAccountName: $(yaml "$service_account")"
  cat <<YAML
            containers:
            - name: pit-jax
              image: $(yaml "$image")
              securityContext:
                privileged: true
              ports:
              - containerPort: 8471
              - containerPort: 8080
              env:
              - name: JAX_PLATFORMS
                value: tpu,cpu
              - name: PYTHONUNBUFFERED
                value: "1"
YAML
  if ((${#secrets[@]})); then
    printf '              envFrom:\n              - secretRef:\n'
    echo "                  name: $name-secrets"
  fi
  echo '              command:'
  for word in "${words[@]}" "${run_flags[@]}"; do
    echo "              - $(yaml "$(unexpanded "$word")")"
  done
  cat <<YAML
              resources:
                limits:
                  google.com/tpu: $host_chips
YAML
}

read_topology() {
  expect topology '[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?' 'a shape such as 4x4 or 4x4x8'
  if [[ -z $topology ]]; then
    topology=$(usual_topology)
    [[ -n $topology ]] ||
      fail "--type=$type: expected --topology: $chips chips have no usual arrangement"
  elif ((${topology//x/*} != chips)); then
    fail "--topology=$topology: expected the $chips chips of $type"
  fi
}

gke_run() {
  require type image
  read_type
  ((slices == 1 || hosts > 1)) ||
    fail "--type=$type: expected slices of several hosts: GKE joins no others"
  read_topology
  expect max_restarts '[0-9]+' 'a number'
  add_wandb_key
  read_secrets
  require_gin_file
  require_bucket 'it has to outlive the pods'
  if ((${#secrets[@]})); then
    feed print_secrets kubectl apply "--namespace=$namespace" -f -
  fi
  feed print_jobset kubectl apply "--namespace=$namespace" -f -
}

gke_status() {
  execute kubectl get jobset "$name" "--namespace=$namespace"
  execute kubectl get pods "--namespace=$namespace" \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

gke_logs() {
  local first=jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
  execute kubectl logs "--namespace=$namespace" --tail=100 ${follow:+--follow} \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name,$first"
}

gke_delete() {
  execute kubectl delete jobset "$name" "--namespace=$namespace"
  execute kubectl delete secret "$name-secrets" "--namespace=$namespace" --ignore-not-found
}

read_command_line "$@"
require name
expect_name name
"gke_$action"
