# What tpu_vm.sh, gke.sh and xpk.sh share: flags, the table of TPUs, secrets, and commands that are
# run or, with --dry_run, printed. They source it after they have set `script`, `commands`,
# `settings` (flags that take a value, each a variable of that name) and `switches` (flags that
# don't), and define a function `usage`.
# shellcheck shell=bash
# shellcheck disable=SC2034  # some variables are read only there

name=${PIT_JAX_NAME:-}
type=${PIT_JAX_TYPE:-}
slices=${PIT_JAX_SLICES:-1}
spot=${PIT_JAX_SPOT:-}
dry_run=
run_flags=()  # for python -m pit_jax
secrets=()  # names of environment variables

fail() {
  echo "launch/${script:?}: $1" >&2
  exit 2
}

give_up() {
  echo "launch/$script: $1" >&2
  exit 1
}

case $spot in
  '' | 0 | [Nn] | [Nn][Oo] | [Ff]alse | FALSE | [Oo]ff | OFF) spot= ;;
  1 | [Yy] | [Yy][Ee][Ss] | [Tt]rue | TRUE | [Oo]n | ON) spot=yes ;;
  *) fail "PIT_JAX_SPOT=$spot: expected yes or no" ;;
esac

# --- flags ----------------------------------------------------------------------------------

# Sets the variable of one flag.
set_flag() {
  local flag=$1 value=$2
  [[ $value != *$'\n'* ]] || fail "--$flag: expected one line"
  case " secret ${settings:?} " in
    *" $flag "*) ;;
    *) fail "unknown flag '--$flag'; \`bash launch/$script help\` lists those there are" ;;
  esac
  if [[ $flag == secret ]]; then secrets+=("$value"); else printf -v "$flag" %s "$value"; fi
}

add_run_flag() {
  [[ $1 != *$'\n'* ]] || fail "${1%%=*}: expected one line"
  run_flags+=("$1")
}

# Flags as --flag=value or --flag value; --gin… and all that follows -- is for python -m pit_jax.
read_flags() {
  local word
  while (($#)); do
    word=$1
    shift
    case $word in
      --)
        for word; do add_run_flag "$word"; done
        return
        ;;
      --gin*=*) add_run_flag "$word" ;;
      --*=*) set_flag "$(name_of "$word")" "${word#*=}" ;;
      --*)
        if [[ " ${switches:?} " == *" ${word#--} "* ]]; then
          printf -v "${word#--}" yes
          continue
        fi
        (($#)) || fail "$word: expected a value"
        if [[ $word == --gin* ]]; then add_run_flag "$word=$1"; else set_flag "${word#--}" "$1"; fi
        shift
        ;;
      *) fail "unexpected '$word'; expected flags" ;;
    esac
  done
}

# Sets `action`, one of the commands, and the variables of the flags after it; or shows the usage.
read_command_line() {
  local choices=${commands:?}
  action=${1:-help}
  (($# == 0)) || shift
  if [[ $action =~ ^(help|-h|--help)$ ]]; then
    usage
    exit
  fi
  [[ $action =~ ^(${choices// /|})$ ]] ||
    fail "unknown command '$action'; expected ${choices// /, } or help"
  read_flags "$@"
  [[ $action == run ]] || no_run_flags "$action"
}

name_of() {
  local flag=${1%%=*}
  echo "${flag#--}"
}

# Fails unless each of these settings has a value.
require() {
  local setting missing=
  for setting; do
    [[ -n ${!setting} ]] || missing+="${missing:+, }--$setting"
  done
  [[ -z $missing ]] || fail "missing $missing (\`bash launch/$script help\` names the environment\
 variables that do as well)"
}

# Fails unless a setting, if it has a value, matches a regular expression.
expect() {
  local setting=$1 pattern=$2 expected=$3
  [[ -z ${!setting} || ${!setting} =~ ^($pattern)$ ]] ||
    fail "--$setting=${!setting}: expected $expected"
}

expect_name() {
  expect "$1" '[a-z]([-a-z0-9]*[a-z0-9])?' 'lower-case letters, digits and -, a letter first'
}

no_run_flags() {
  ((${#run_flags[@]} == 0)) || fail "$1: takes no flags of pit_jax, got ${run_flags[0]}"
}

require_gin_file() {
  [[ " ${run_flags[*]-}" == *" --gin_file="* ]] || fail "run: expected --gin_file=FILE"
}

# Fails unless MODEL_DIR is a bucket's folder; the argument says why it has to be.
require_bucket() {
  local why=$1 flag found=
  for flag in ${run_flags[@]+"${run_flags[@]}"}; do
    if [[ $flag == --gin.MODEL_DIR=* ]]; then found=${flag#*=}; fi
  done
  [[ $found =~ ^([\'\"]gs://[a-z0-9].*[\'\"]|gs://[a-z0-9][^\'\"]*)$ ]] ||
    fail "run: $why, so expected --gin.MODEL_DIR=gs://BUCKET/FOLDER, got\
 ${found:-no --gin.MODEL_DIR=…}"
}

# --- TPUs -----------------------------------------------------------------------------------

# From --type and --slices: chips and hosts of a slice, chips of a host, hosts of all slices, names.
# After Google Cloud's pages on each TPU version, on TPU software versions, and on TPUs in GKE.
read_type() {
  local generation number
  expect slices '[1-9][0-9]*' 'a number of slices'
  type=${type/#v5e-/v5litepod-}
  [[ $type =~ ^(v4|v5p|v5litepod|v6e)-([1-9][0-9]*)$ ]] ||
    fail "--type=$type: expected v4-N or v5p-N (N TensorCores, two a chip), v5e-N, v6e-N (N chips)"
  generation=${BASH_REMATCH[1]}
  number=${BASH_REMATCH[2]}
  case $generation in
    v4) software=tpu-ubuntu2204-base accelerator=tpu-v4-podslice dimensions=3 ;;
    v5p) software=v2-alpha-tpuv5 accelerator=tpu-v5p-slice dimensions=3 ;;
    v5litepod) software=v2-alpha-tpuv5-lite accelerator=tpu-v5-lite-podslice dimensions=2 ;;
    v6e) software=v2-alpha-tpuv6e accelerator=tpu-v6e-slice dimensions=2 ;;
  esac
  case $dimensions-$number in
    3-*)
      ((number % 8 == 0)) || fail "--type=$type: expected a multiple of 8: hosts have 4 chips"
      chips=$((number / 2))
      host_chips=4
      ;;
    2-1 | 2-4 | 2-8) chips=$number host_chips=$number ;;
    2-16 | 2-32 | 2-64 | 2-128 | 2-256) chips=$number host_chips=4 ;;
    *) fail "--type=$type: expected 1, 4, 8, 16, 32, 64, 128 or 256 chips" ;;
  esac
  hosts=$((chips / host_chips))
  workers=$((hosts * ${slices:?}))
}

# The usual arrangement of a slice's chips; nothing where there is none.
usual_topology() {
  case $dimensions-$chips in
    2-1) echo 1x1 ;;
    2-4) echo 2x2 ;;
    2-8) echo 2x4 ;;
    2-16) echo 4x4 ;;
    2-32) echo 4x8 ;;
    2-64) echo 8x8 ;;
    2-128) echo 8x16 ;;
    2-256) echo 16x16 ;;
    3-4) echo 2x2x1 ;;
    3-8) echo 2x2x2 ;;
    3-16) echo 2x2x4 ;;
    3-32) echo 2x4x4 ;;
    3-64) echo 4x4x4 ;;
    3-128) echo 4x4x8 ;;
    3-256) echo 4x8x8 ;;
    3-512) echo 8x8x8 ;;
    3-1024) echo 8x8x16 ;;
    3-2048) echo 8x16x16 ;;
    3-4096) echo 16x16x16 ;;
    3-6144) echo 16x16x24 ;;
  esac
}

# --- secrets --------------------------------------------------------------------------------

# Checks the names. Values stay in the environment, out of variables, arguments and traces; a word
# that isn't the name of one may be a value given by mistake, so no message repeats it.
read_secrets() {
  local name number=0
  for name in ${secrets[@]+"${secrets[@]}"}; do
    number=$((number + 1))
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -n ${!name:+set} ]] ||
      fail "--secret, number $number: expected the name of an environment variable that is set"
  done
}

add_wandb_key() {
  if [[ -n ${WANDB_API_KEY:+set} ]]; then secrets+=(WANDB_API_KEY); fi
}

# The value of an environment variable, in base64 or quoted for a shell; *** with --dry_run.
print_secret() {
  { set +x; } 2>/dev/null
  case ${dry_run:-$2} in
    shell) printf '%q\n' "${!1}" ;;
    base64) printf %s "${!1}" | base64 | tr -d '\n' && echo ;;
    *) echo '***' ;;
  esac
}

# --- commands -------------------------------------------------------------------------------

# Words as a shell takes them back; of --flag=value, only the value is quoted.
quoted() {
  local word flag separator='' quote="'" escaped="'\\''" special='["$`\!]'
  for word; do
    flag=
    if [[ $word =~ ^--[A-Za-z0-9_.-]+= ]]; then
      flag=${BASH_REMATCH[0]}
      word=${word#"$flag"}
    fi
    if [[ $word == *"'"* && ! $word =~ $special ]]; then
      word=\"$word\"
    elif [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      word="'${word//$quote/$escaped}'"
    fi
    printf '%s%s' "$separator" "$flag$word"
    separator=' '
  done
}

# A word as Kubernetes takes it, which would put variables in the places of $(NAME), and $ of $$.
unexpanded() {
  printf %s "${1//$/'$$'}"
}

execute() {
  if [[ -n $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@" </dev/null
  fi
}

# Runs a command whose standard input is what a function prints: feed FUNCTION COMMAND …
feed() {
  local source=$1
  shift
  if [[ -n $dry_run ]]; then
    printf "%s <<'END'\n" "$(quoted "$@")"
    "$source"
    echo END
  else
    "$source" | "$@"
  fi
}

# A remark between printed commands.
remark() {
  [[ -z $dry_run ]] || echo "# $1"
}
