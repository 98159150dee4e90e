#!/usr/bin/env bash
# Submits a training to SLURM: a process for each GPU, put back into the queue until it is done.
set -euo pipefail

usage() {
    cat <<'END'
launch/slurm.sh [OPTIONS] --config=configs/x.py --workdir=runs/x [MORE ARGUMENTS OF launch.train]

  --nodes=1            nodes; with --nodes=2-4 as many of these as are free at each start, so fewer when one is lost
  --gpus_per_node=8    GPUs, and processes, of each node
  --time=24:00:00      time limit of one go; at its end the run saves, and the job queues again
  --restarts=20        how often the job queues again after a failure; never after a mistake (exit code 2)
  --notice=180         seconds before the time limit at which the run is told to save
  --sbatch=OPTION      any other option of sbatch, as in --sbatch=--partition=gpu; may be repeated
  --python=PATH        default: .venv/bin/python of this checkout
  --dry_run            print the batch script, submit nothing

The checkout, the data and the workdir lie on a file system that all nodes share. A preempted job is put back by SLURM
itself; scancel saves and ends it. docs/clusters.md tells more.
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nodes=1 gpus=8 time=24:00:00 restarts=20 notice=180 python="$root/.venv/bin/python" dry_run=''
sbatch=() train=()
for argument in "$@"; do
    value=${argument#*=}
    case $argument in
    --nodes=*) nodes=$value ;;
    --gpus_per_node=*) gpus=$value ;;
    --time=*) time=$value ;;
    --restarts=*) restarts=$value ;;
    --notice=*) notice=$value ;;
    --sbatch=*) sbatch+=("$value") ;;
    --python=*) python=$value ;;
    --dry_run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    *) train+=("$argument") ;;
    esac
done
if ! [[ $nodes =~ ^[0-9]+(-[0-9]+)?$ ]]; then
    echo "error: --nodes is a whole number, or two as in --nodes=2-4; found '$nodes'" >&2
    exit 2
fi
for pair in gpus_per_node="$gpus" restarts="$restarts" notice="$notice"; do
    if ! [[ $pair =~ =[0-9]+$ ]]; then
        echo "error: --${pair%%=*} is a whole number; found '${pair#*=}'" >&2
        exit 2
    fi
done
if [[ ${#train[@]} -eq 0 ]]; then
    usage >&2
    exit 2
fi

batch_script() {
    cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=vidlang
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@$notice
END
    for option in ${sbatch[@]+"${sbatch[@]}"}; do
        echo "#SBATCH $option"
    done
    printf 'cd %q\n' "$root"
    printf 'train=(%q -m launch.train' "$python"
    printf ' %q' "${train[@]}"
    printf ')\nrestarts=%s\n' "$restarts"
    # From here on as it is written: this runs in the job.
    cat <<'END'
# Only the time limit signals this shell; scancel and preemption signal the processes.
out_of_time=
trap 'out_of_time=1; kill -TERM "$step"' TERM
# When one process has ended, the others have a minute: they may be about to tell the same mistake.
srun --kill-on-bad-exit=0 --wait=60 "${train[@]}" &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # the signal came while it was waited for
    code=0
    wait "$step" || code=$?
done
tries=${SLURM_RESTART_COUNT:-0}
case $code in
0 | 2) ;;
130 | 143) if [[ $out_of_time ]]; then scontrol requeue "$SLURM_JOB_ID"; fi ;;
*) if ((tries < restarts)); then scontrol requeue "$SLURM_JOB_ID"; fi ;;
esac
exit "$code"
END
}

if [[ $dry_run ]]; then
    batch_script
else
    batch_script | sbatch
fi
