#!/usr/bin/env bash
# What launch/tpu_pod.sh has every host of a slice do, in the copy of the checkout that it put there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Whether the training that was started here runs; after a reboot another process may have its number.
alive() {
    [[ -f train.pid ]] && ps -o args= -p "$(cat train.pid)" | grep -q tpu_host.sh
}

case ${1:-} in
install)
    if [[ ! -x .venv/bin/python ]]; then
        sudo apt-get update -qq
        sudo apt-get install -y -qq python3.11-venv
        python3.11 -m venv .venv
    fi
    .venv/bin/python -m pip install --quiet --constraint requirements.txt --editable '.[tpu]'
    ;;
start)
    rm -f exit_code
    setsid nohup bash launch/tpu_host.sh run >train.log 2>&1 </dev/null &
    echo $! >train.pid
    ;;
run)
    trap : TERM # the training gets it as well, and leaves
    code=0
    VIDLANG_CLUSTER=auto bash train.sh || code=$?
    echo "$code" >exit_code
    ;;
follow)
    tail -n +1 -f --pid="$(cat train.pid)" train.log
    ;;
result) # the exit code; nothing while the training runs
    if [[ -f exit_code ]]; then
        cat exit_code
    elif ! alive; then
        echo 137
    fi
    ;;
stop) # before its files are replaced; what it saves now, the next one goes on from
    alive || exit 0
    pid=$(cat train.pid)
    kill -TERM -- "-$pid"
    for _ in {1..300}; do
        alive || exit 0
        sleep 1
    done
    kill -KILL -- "-$pid"
    ;;
*)
    echo "error: launch/tpu_pod.sh calls this with install, start, follow, result or stop" >&2
    exit 2
    ;;
esac
