#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes or reuses it, installs this checkout, and starts again after preemption until done.
set -euo pipefail

usage() {
    cat <<'END'
launch/tpu_pod.sh [OPTIONS] --config=configs/x.py --workdir=/mnt/runs/x [MORE ARGUMENTS OF launch.train]

  --name=NAME          the slice; one of that name is reused; required
  --zone=ZONE          required
  --type=TYPE          accelerator type, as in v5litepod-64; required
  --version=VERSION    runtime version; default: tpu-ubuntu2204-base
  --project=PROJECT    default: that of gcloud
  --spot               a slice that may be preempted
  --queued             ask for it as a queued resource, and wait in the queue
  --setup=COMMAND      runs on every host before the training, as in --setup='sudo mount 10.0.0.2:/share /mnt'
  --restarts=50        how often to start again after preemption or a failure; never after a mistake (exit code 2)
  --poll=30            seconds between two looks at a slice that is not ready
  --dry_run            print the commands for a slice that is not there yet, run none

The workdir and the data lie on a file system that all hosts mount. The output of host 0 is shown. Ctrl-C ends this
script, not the training; the same command again lets the training save and goes on with it. The slice stays when the
training is done. docs/clusters.md tells more.
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name='' zone='' type='' version=tpu-ubuntu2204-base setup='' restarts=50 poll=30 queued='' dry_run=''
where=() spot=() train=()
for argument in "$@"; do
    value=${argument#*=}
    case $argument in
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --project=*) where+=("--project=$value") ;;
    --spot) spot=(--spot) ;;
    --queued) queued=1 ;;
    --setup=*) setup=$value ;;
    --restarts=*) restarts=$value ;;
    --poll=*) poll=$value ;;
    --dry_run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    *) train+=("$argument") ;;
    esac
done
if [[ -z $name || -z $zone || -z $type || ${#train[@]} -eq 0 ]]; then
    echo "error: --name, --zone, --type and the arguments of launch.train are needed; see --help" >&2
    exit 2
fi
if ! [[ $restarts =~ ^[0-9]+$ && $poll =~ ^[0-9.]+$ ]]; then
    echo "error: --restarts and --poll are numbers; found '$restarts' and '$poll'" >&2
    exit 2
fi
where+=("--zone=$zone")

tpus() {
    if [[ $dry_run ]]; then
        printf '%q ' gcloud compute tpus "$@" "${where[@]}" && echo
    else
        gcloud compute tpus "$@" "${where[@]}"
    fi
}
on() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2"; }

# States of the slice and of its place in the queue; empty where there is none.
state() { tpus tpu-vm describe "$name" --format='value(state)' 2>/dev/null || true; }
queue_state() {
    [[ -z $queued ]] || tpus queued-resources describe "$name" --format='value(state.state)' 2>/dev/null || true
}

create() {
    if [[ $queued ]]; then
        tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
            --runtime-version="$version" ${spot[@]+"${spot[@]}"}
    else
        tpus tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}
    fi
}

remove() {
    echo "slice $name is gone; making it anew" >&2
    if [[ $queued ]]; then
        tpus queued-resources delete "$name" --quiet --force || true
    else
        tpus tpu-vm delete "$name" --quiet || true
    fi
}

make_ready() {
    local found
    while found=$(state) && [[ $found != READY ]]; do
        case $found-$(queue_state) in
        PREEMPTED-* | TERMINATED-* | STOPPED-* | *-FAILED | *-SUSPENDED) remove ;;
        -) create || echo "slice $name cannot be made now; trying again" >&2 ;;
        esac
        sleep "$poll"
    done
}

train_script() {
    printf 'exec .venv/bin/python -m launch.train'
    printf ' %q' "${train[@]}"
    echo
}

# This checkout as it stands, without what git ignores, and the command beside it.
pack() {
    train_script >"$1/train.sh"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar -C "$root" --null --files-from=- --ignore-failed-read -cf "$1/vidlang.tar"
    tar -C "$1" -rf "$1/vidlang.tar" train.sh
}

start_training() {
    on all '[ ! -f vidlang/launch/tpu_host.sh ] || bash vidlang/launch/tpu_host.sh stop' &&
        tpus tpu-vm scp "$1/vidlang.tar" "$name:vidlang.tar" --worker=all &&
        on all 'rm -rf vidlang/vidlang vidlang/configs vidlang/launch && mkdir -p vidlang' &&
        on all 'tar -xf vidlang.tar -C vidlang && bash vidlang/launch/tpu_host.sh install' &&
        { [[ -z $setup ]] || on all "$setup"; } &&
        on all 'bash vidlang/launch/tpu_host.sh start'
}

# Shows the log of host 0 until the training has ended or the slice is gone, and sets `code`.
follow() {
    code=''
    while [[ -z $code && $(state) == READY ]]; do
        on 0 'bash vidlang/launch/tpu_host.sh follow' || true
        # A connection may break while the training goes on; then the log is shown again.
        code=$(on 0 'bash vidlang/launch/tpu_host.sh result') || sleep "$poll"
    done
}

if [[ $dry_run ]]; then
    create
    start_training .
    printf '# where ./vidlang.tar is this checkout with train.sh:\n# %s\n' "$(train_script)"
    on 0 'bash vidlang/launch/tpu_host.sh follow'
    on 0 'bash vidlang/launch/tpu_host.sh result'
    exit 0
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pack "$folder"
for ((tries = 0; tries <= restarts; tries++)); do
    make_ready
    code=''
    if start_training "$folder"; then
        follow
    fi
    case $code in
    0 | 2) exit "$code" ;;
    esac
    echo "the training ended (${code:-the slice or a host is lost}); $((restarts - tries)) new starts are left" >&2
    sleep "$poll"
done
echo "error: given up after $restarts new starts; vidlang/train.log on the hosts says why" >&2
exit 1
