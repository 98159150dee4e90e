"""The shell launchers, run for real against programs that stand for sbatch, srun, kubectl and gcloud."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

SCRIPTS = ("slurm.sh", "kubernetes.sh", "tpu_pod.sh", "tpu_host.sh")
AWKWARD = ["--config=a b.py", """--config.x={'a': "b"}""", "--config.y=$HOME `ls` $(ls) \\ * #", "--z=two\nlines\t'"]
TPU = ["--name=pod", "--zone=z", "--type=v5litepod-16", "--poll=0.05"]
NEEDED = {"slurm.sh": [], "kubernetes.sh": ["--image=here/vidlang:1"], "tpu_pod.sh": TPU}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name, script): a program that scripts find before the real one; the folder for all is its $BOX."""
    box = tmp_path / "box"
    (box / "bin").mkdir(parents=True)
    monkeypatch.setenv("BOX", str(box))
    monkeypatch.setenv("PATH", f"{box / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def program(name, script):
        path = box / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\nset -eu\n{script}")
        path.chmod(0o755)
        return box

    return program


@pytest.fixture
def launch_script(repository):
    def run(name, *arguments):
        command = ["bash", str(repository / "launch" / name), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


def test_slurm_may_take_fewer_nodes(launch_script):
    done = launch_script("slurm.sh", "--nodes=2-4", "--dry_run", "--config=x.py")
    assert done.returncode == 0 and "#SBATCH --nodes=2-4\n" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_it(repository, name):
    path = repository / "launch" / name
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize("name", NEEDED)
def test_it_says_how_it_is_used(launch_script, name):
    asked = launch_script(name, "--help")
    assert asked.returncode == 0 and asked.stdout.startswith(f"launch/{name} [OPTIONS] --config=")
    nothing = launch_script(name, *NEEDED[name])
    assert nothing.returncode == 2 and nothing.stderr and not nothing.stdout


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("slurm.sh", "--nodes=two", "--nodes is a whole number, or two as in --nodes=2-4; found 'two'"),
        ("slurm.sh", "--nodes=2-", "--nodes is a whole number, or two as in --nodes=2-4; found '2-'"),
        ("slurm.sh", "--notice=soon", "--notice is a whole number; found 'soon'"),
        ("kubernetes.sh", "--hosts=-1", "--hosts is a whole number; found '-1'"),
        ("kubernetes.sh", "--name=My_Job", "--name is of small letters"),
        ("kubernetes.sh", "--tpu=tpu-v5-lite-podslice", "needs the shape of a slice"),
        ("kubernetes.sh", "--claim=runs", "--claim is NAME:/PATH"),
        ("kubernetes.sh", "--slices=2", "--slices is for TPUs"),
        ("kubernetes.sh", "--image=", "--image is missing"),
        ("tpu_pod.sh", "--restarts=x", "--restarts and --poll are numbers"),
        ("tpu_pod.sh", "--zone=", "--name, --zone, --type"),
    ],
)
def test_a_mistake_is_one_sentence(launch_script, name, option, sentence):
    done = launch_script(name, *NEEDED[name], option, "--config=x.py")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1


# What stands for srun: keeps the command and ends as told, at once or after a signal.
SRUN = """
shift 2
printf '%s\\0' "$@" > "$BOX/command"
trap 'sleep 0.2; touch "$BOX/saved"; exit 143' TERM
touch "$BOX/running"
if [[ ${CODE:-} == wait ]]; then sleep 30 & wait $!; fi
exit "${CODE:-0}"
"""


@pytest.fixture
def job(programs, launch_script, monkeypatch, tmp_path):
    """job(code, *options) -> (process of the batch script, folder); `code` is how its srun ends."""
    programs("srun", SRUN)
    box = programs("scontrol", 'echo "$@" >> "$BOX/requeued"\n')
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)

    def run(code, *options):
        printed = launch_script("slurm.sh", "--dry_run", *options, *AWKWARD)
        assert printed.returncode == 0, printed.stderr
        batch = tmp_path / "batch.sh"
        batch.write_text(printed.stdout)
        return subprocess.Popen(["bash", str(batch)], env={**os.environ, "CODE": code}), box

    return run


def test_slurm_hands_on_every_argument(job, repository):
    process, box = job("0", "--python=/my python")
    assert process.wait(timeout=30) == 0
    command = (box / "command").read_text().split("\0")[:-1]
    assert command == ["/my python", "-m", "launch.train", *AWKWARD]


@pytest.mark.parametrize(
    ("code", "tries", "again"),
    [("0", 0, False), ("2", 0, False), ("143", 0, False), ("137", 3, True), ("137", 4, False), ("1", 0, True)],
)
def test_slurm_queues_again_after_a_failure_only(job, monkeypatch, code, tries, again):
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(tries))
    process, box = job(code, "--restarts=4")
    assert process.wait(timeout=30) == int(code)
    assert (box / "requeued").exists() == again


def test_slurm_queues_again_when_the_time_is_over(job):
    process, box = job("wait", "--restarts=0")
    deadline = time.monotonic() + 20
    while not (box / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143, "the training's own code, after it has saved"
    assert (box / "requeued").read_text() == "requeue 77\n" and (box / "saved").exists()


def test_slurm_submits_what_it_prints(programs, launch_script):
    box = programs("sbatch", 'cat > "$BOX/submitted"\n')
    options = ["--nodes=4", "--gpus_per_node=2", "--time=1:00:00", "--sbatch=--partition=gpu", "--notice=90"]
    printed = launch_script("slurm.sh", "--dry_run", *options, *AWKWARD).stdout
    assert launch_script("slurm.sh", *options, *AWKWARD).returncode == 0
    assert (box / "submitted").read_text() == printed
    directives = [line.removeprefix("#SBATCH --") for line in printed.splitlines() if line.startswith("#SBATCH")]
    wanted = {"nodes=4", "ntasks-per-node=2", "gpus-per-node=2", "time=1:00:00", "requeue", "partition=gpu"}
    assert wanted | {"signal=B:TERM@90"} <= set(directives)


def pod_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_kubernetes_applies_what_it_prints(programs, launch_script):
    box = programs("kubectl", 'echo "$@" > "$BOX/arguments"; cat > "$BOX/applied"\n')
    given = ["--image=here/vidlang:1", "--hosts=3", "--claim=runs:/my runs", "--namespace=lab", "--name=long-run"]
    printed = launch_script("kubernetes.sh", "--dry_run", *given, *AWKWARD)
    applied = launch_script("kubernetes.sh", *given, *AWKWARD)
    assert applied.returncode == 0 and "kubectl logs --namespace=lab --follow" in applied.stdout
    assert (box / "applied").read_text() == printed.stdout and (box / "arguments").read_text() == "apply -f -\n"
    manifest = yaml.safe_load(printed.stdout)
    assert manifest["kind"] == "JobSet" and manifest["metadata"] == {"name": "long-run", "namespace": "lab"}
    (job,) = manifest["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], pod_of(manifest)
    assert (job["replicas"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (1, 3, 3, 0)
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "launch.train"]
    # Kubernetes reads $$( as $(.
    assert [argument.replace("$$(", "$(") for argument in container["args"]] == AWKWARD
    assert "$$(ls)" in container["args"][2]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    environment = {each["name"]: each for each in container["env"]}
    assert environment["VIDLANG_COORDINATOR"]["value"] == "long-run-train-0-0.long-run:1234"
    assert environment["VIDLANG_PROCESSES"]["value"] == "3"
    assert "job-completion-index" in environment["VIDLANG_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert {"name": "claim-runs", "mountPath": "/my runs"} in container["volumeMounts"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_kubernetes_never_tries_a_mistake_again(launch_script):
    printed = launch_script("kubernetes.sh", "--dry_run", "--image=i", "--restarts=7", "--config=x.py").stdout
    manifest = yaml.safe_load(printed)
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (rule,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod_of(manifest)["containers"][0]["name"]


def test_kubernetes_on_tpus_lets_jax_find_the_hosts(launch_script):
    options = ["--image=i", "--tpu=tpu-v5-lite-podslice", "--topology=4x8", "--hosts=8", "--slices=2", "--name=t"]
    manifest = yaml.safe_load(launch_script("kubernetes.sh", "--dry_run", *options, "--config=x.py").stdout)
    pod = pod_of(manifest)
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
    }
    assert pod["containers"][0]["env"] == [{"name": "VIDLANG_CLUSTER", "value": "auto"}]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert "exclusive-topology" in next(iter(manifest["metadata"]["annotations"]))


# A slice of one host, which is a folder: what goes over ssh runs in it.
GCLOUD = """
echo "$3 $4" >> "$BOX/calls"
host="$BOX/host"
for argument in "$@"; do
    case $argument in --command=*) command=${argument#--command=} ;; /*.tar) archive=$argument ;; esac
done
case "$3 $4" in
"tpu-vm describe") cat "$BOX/state" ;;
"tpu-vm create") mkdir -p "$host"; echo READY > "$BOX/state" ;;
"queued-resources create") mkdir -p "$host"; echo READY > "$BOX/state" ;;
"tpu-vm delete" | "queued-resources delete") rm -rf "$host" "$BOX/state" ;;
"tpu-vm scp") cp "$archive" "$host/vidlang.tar" ;;
"tpu-vm ssh") cd "$host" && bash -c "$command" ;;
"queued-resources describe") exit 1 ;;
esac
"""
# Python of the host: its trainings end as $BOX/codes says, one line each.
PYTHON = """
if [[ $2 != launch.train ]]; then exit 0; fi
shift 2
printf '%s\\0' "$@" > "$BOX/arguments"
echo "$VIDLANG_CLUSTER" >> "$BOX/runs"
echo "a line of the training"
code=$(head -n 1 "$BOX/codes")
sed -i 1d "$BOX/codes"
if [[ $code == preempted ]]; then echo PREEMPTED > "$BOX/state"; exit 143; fi
exit "$code"
"""


@pytest.fixture
def slice_of_tpus(programs):
    programs("gcloud", GCLOUD)
    programs("sudo", "exit 0")
    box = programs("python3.11", 'mkdir -p .venv/bin && cp "$BOX/bin/training" .venv/bin/python')
    programs("training", PYTHON)
    return box


@pytest.mark.slow
def test_a_pod_is_made_and_started_again_after_preemption_until_done(slice_of_tpus, launch_script):
    (slice_of_tpus / "codes").write_text("preempted\n134\n0\n")
    done = launch_script("tpu_pod.sh", *TPU, "--setup=touch mounted", *AWKWARD)
    assert done.returncode == 0, done.stderr
    calls = (slice_of_tpus / "calls").read_text().splitlines()
    assert [calls.count(f"tpu-vm {what}") for what in ("create", "delete", "scp")] == [2, 1, 3]
    assert (slice_of_tpus / "runs").read_text() == "auto\n" * 3
    assert (slice_of_tpus / "arguments").read_text().split("\0")[:-1] == AWKWARD
    assert (slice_of_tpus / "host" / "mounted").exists()
    assert (slice_of_tpus / "host" / "vidlang" / "vidlang" / "core" / "cluster.py").is_file()
    assert not (slice_of_tpus / "host" / "vidlang" / ".git").exists()
    assert "a line of the training" in done.stdout
    assert "the training ended (134); 49 new starts are left" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("codes", "restarts", "code", "runs"), [("2", 5, 2, 1), ("1\n1\n1", 1, 1, 2)])
def test_a_pod_is_not_tried_for_ever(slice_of_tpus, launch_script, codes, restarts, code, runs):
    (slice_of_tpus / "codes").write_text(codes + "\n")
    done = launch_script("tpu_pod.sh", *TPU, "--queued", f"--restarts={restarts}", "--config=x.py")
    assert done.returncode == code, done.stdout + done.stderr
    assert len((slice_of_tpus / "runs").read_text().splitlines()) == runs
    assert "queued-resources create" in (slice_of_tpus / "calls").read_text()


def test_a_dry_run_of_a_pod_prints_every_command(programs, launch_script):
    box = programs("gcloud", 'touch "$BOX/called"\n')
    done = launch_script("tpu_pod.sh", "--dry_run", *TPU, "--project=p", "--spot", "--setup=echo 'a b'", *AWKWARD)
    assert done.returncode == 0 and not (box / "called").exists()
    words = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("gcloud ")]
    assert all(line[-2:] == ["--project=p", "--zone=z"] for line in words)
    assert "--spot" in words[0] and words[0][3:6] == ["tpu-vm", "create", "pod"]
    assert ["--command=echo 'a b'"] in [line[7:8] for line in words]
    assert "-m launch.train" in done.stdout


def test_the_training_on_a_host_is_told_to_save_before_another_begins(repository, tmp_path):
    (tmp_path / "launch").mkdir()
    host = tmp_path / "launch" / "tpu_host.sh"
    host.write_text((repository / "launch" / "tpu_host.sh").read_text())
    script = "trap 'touch saved; exit 143' TERM\ntouch started\nsleep 30 & wait $!\n"
    (tmp_path / "train.sh").write_text(script)

    def call(what):
        return subprocess.run(["bash", str(host), what], capture_output=True, text=True, timeout=30)

    assert call("stop").returncode == 0, "nothing runs"
    assert call("start").returncode == 0
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert call("result").stdout == ""
    assert call("stop").returncode == 0
    assert (tmp_path / "saved").exists()
    assert call("result").stdout == "143\n"
    (tmp_path / "exit_code").unlink()
    assert call("result").stdout == "137\n", "a host that went down in the middle"
    assert call("other").returncode == 2


def test_every_launcher_is_in_the_docs(repository):
    page = Path(repository / "docs" / "clusters.md").read_text()
    for name in ("launch.local", *(f"launch/{script}" for script in NEEDED)):
        assert name in page
    assert json.dumps("VIDLANG_COORDINATOR").strip('"') in page
