"""A cloud for tests of the launchers: stand-ins for gcloud, kubectl and xpk that log their words,
and workers that are folders, in which the commands sent to them really run."""

import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

# Answers a `describe` with the next line of $CLOUD/states and, with $CLOUD/runs, a question for the
# run's state with the next of those, for every worker or, after `one:`, the first. Without
# $CLOUD/runs the command of an ssh runs in the home of each worker, one after the other and all
# with this standard input, as for gcloud. A call that matches a line of $CLOUD/failures fails and
# takes the line away.
GCLOUD = r"""#!/bin/bash
printf '%s\n' "$(printf '<%s>' "$@")" >>"$CLOUD/log"
next() { head -n 1 "$1"; [ "$(wc -l <"$1")" = 1 ] || sed -i 1d "$1"; }
failure=$(head -n 1 "$CLOUD/failures" 2>/dev/null)
if [ -n "$failure" ] && [[ $* == *$failure* ]]; then sed -i 1d "$CLOUD/failures"; exit 1; fi
node=all worker=all command=
for word; do
  case $word in
    --node=*) node=${word#*=} ;;
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
homes=()
for home in "$CLOUD"/workers/*; do
  if [[ $home == */${node/all/*}-${worker/all/*} ]]; then homes+=("$home"); fi
done
case $4 in
  describe)
    state=$(next "$CLOUD/states")
    case $state in
      NOT_FOUND | UNREACHABLE) echo "ERROR: (gcloud.compute) $state: pit" >&2; exit 1 ;;
      *) echo "$state" ;;
    esac
    ;;
  scp) for home in "${homes[@]}"; do cp "$5" "$6" "$home"; done ;;
  ssh)
    if [ -e "$CLOUD/runs" ]; then
      [[ $command == *'tpu_worker.sh state'* ]] || { cat >/dev/null; exit 0; }
      state=$(next "$CLOUD/runs")
      for home in "${homes[@]}"; do
        [ "$state" = silent ] || echo "host: ${state#one:}"
        [[ $state != one:* ]] || break
      done
      exit 0
    fi
    status=0
    for home in "${homes[@]}"; do (cd "$home"; HOME=$home bash -c "$command") || status=$?; done
    exit "$status"
    ;;
esac
"""
KUBECTL = r"""#!/bin/bash
printf '%s\n' "$(printf '<%s>' "$@")" >>"$CLOUD/log"
if [ "$1" = apply ]; then cat >>"$CLOUD/applied"; echo --- >>"$CLOUD/applied"; fi
"""
XPK = r"""#!/bin/bash
printf '%s\n' "$(printf '<%s>' "$@")" >>"$CLOUD/log"
for word; do [[ $word != --env-file=* ]] || cp "${word#*=}" "$CLOUD/names"; done
"""
# Python on a worker: pit_jax runs until its home has a file `end`, with that exit status.
PYTHON = r"""#!/bin/bash
if [ "$1" = -c ]; then exit 0; fi
echo "$PWD: $*" >>"$HOME/python.log"
case "$1 $2" in
  '-m venv') mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  '-m pit_jax')
    echo "$JAX_PLATFORMS"
    printf %s "$WANDB_API_KEY" >"$HOME/key"
    trap 'echo saved; exit 0' TERM
    until [ -e "$HOME/end" ]; do sleep 0.02; done
    exit "$(cat "$HOME/end")"
    ;;
esac
"""


class Cloud:
    """A checkout with the scripts, a PATH of stand-ins, and folders that are workers."""

    def __init__(self, folder: pathlib.Path, workers: tuple[str, ...]):
        self.root, self.folder, self.bin = folder / "check out", folder / "cloud", folder / "bin"
        for made in (self.root / "launch", self.folder, self.bin, folder / "temporary"):
            made.mkdir(parents=True)
        for path in SCRIPTS:
            shutil.copy(path, self.root / "launch")
        for name, script in (("gcloud", GCLOUD), ("kubectl", KUBECTL), ("xpk", XPK)):
            self.write_program(name, script)
        self.write_program("python3.13", PYTHON)
        self.workers = [self.folder / "workers" / name for name in workers]
        for worker in self.workers:
            worker.mkdir(parents=True)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "CLOUD": str(self.folder),
            "TMPDIR": str(folder / "temporary"),
            "LANG": "C.UTF-8",
        }

    def write_program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def run(self, script: str, *arguments: str, shell=("bash",), **environment: str):
        return self.bash(*shell, f"{self.root}/launch/{script}", *arguments, **environment)

    def bash(self, *words: str, **environment: str):
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=self.root,
            timeout=60,
            env=self.environment | environment,
        )

    def calls(self) -> list[str]:
        """What the stand-ins were asked for since the last look."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def close(self) -> None:
        for worker in self.workers:
            (worker / "end").write_text("0")


def make_checkout(cloud) -> None:
    """A checkout with an untracked, an ignored and a removed file."""
    for name in ("setup.py", "constraints.txt", "gone", "ignored"):
        (cloud.root / name).write_text(name)
    (cloud.root / ".gitignore").write_text("ignored\n")
    for command in (("init", "-q"), ("add", "setup.py", "gone")):
        assert cloud.bash("git", *command).returncode == 0
    (cloud.root / "gone").unlink()


def steps(calls: list[str]) -> list[str]:
    """What changes something, a word each."""
    words = ("create", "delete", "scp", "install", "start", "secrets", "stop")
    found = [[word for word in words if re.search(rf"[< ]{word}[> ]", call)] for call in calls]
    return [words[-1] for words in found if words]
