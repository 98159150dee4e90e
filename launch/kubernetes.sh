#!/usr/bin/env bash
# Trains on Kubernetes as a JobSet: a pod for each host, all started again when one fails.
set -euo pipefail

usage() {
    cat <<'END'
launch/kubernetes.sh [OPTIONS] --config=configs/x.py --workdir=/runs/x [MORE ARGUMENTS OF launch.train]

  --image=IMAGE         an image with this package installed and its checkout as the working folder; required
  --name=vidlang        name of the JobSet
  --namespace=NAME      default: that of kubectl
  --hosts=1             pods of the job, or of each TPU slice
  --gpus=8              GPUs of each pod; one process drives them all
  --tpu=ACCELERATOR     TPUs instead, by GKE's name, as in tpu-v5-lite-podslice, with
  --topology=4x4        the shape of a slice,
  --chips=4             the chips of each of its hosts, and
  --slices=1            how many slices
  --claim=NAME:/PATH    a volume claim that all pods mount, for data and workdir; may be repeated
  --grace=180           seconds that a pod has to save when it is told to leave
  --restarts=20         how often all pods start again after a failure; never after a mistake (exit code 2)
  --dry_run             print the manifest, apply nothing

The cluster needs the JobSet controller (jobset.sigs.k8s.io). docs/clusters.md tells more.
END
}

name=vidlang namespace='' image='' hosts=1 gpus=8 tpu='' topology='' chips=4 slices=1 grace=180 restarts=20 dry_run=''
claims=() train=()
for argument in "$@"; do
    value=${argument#*=}
    case $argument in
    --name=*) name=$value ;;
    --namespace=*) namespace=$value ;;
    --image=*) image=$value ;;
    --hosts=*) hosts=$value ;;
    --gpus=*) gpus=$value ;;
    --tpu=*) tpu=$value ;;
    --topology=*) topology=$value ;;
    --chips=*) chips=$value ;;
    --slices=*) slices=$value ;;
    --claim=*) claims+=("$value") ;;
    --grace=*) grace=$value ;;
    --restarts=*) restarts=$value ;;
    --dry_run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    *) train+=("$argument") ;;
    esac
done

fail() {
    echo "error: $1" >&2
    exit 2
}

for pair in hosts="$hosts" gpus="$gpus" chips="$chips" slices="$slices" grace="$grace" restarts="$restarts"; do
    [[ $pair =~ =[0-9]+$ ]] || fail "--${pair%%=*} is a whole number; found '${pair#*=}'"
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name is of small letters, digits and '-'; found '$name'"
[[ $image ]] || fail "--image is missing: the image that the pods run"
[[ -z $tpu || $topology ]] || fail "--tpu=$tpu needs the shape of a slice, as in --topology=4x4"
[[ $tpu || $slices -eq 1 ]] || fail "--slices is for TPUs; give the number of GPU hosts as --hosts"
for claim in ${claims[@]+"${claims[@]}"}; do
    [[ $claim == ?*:/?* ]] || fail "--claim is NAME:/PATH, as in --claim=runs:/runs; found '$claim'"
done
if [[ ${#train[@]} -eq 0 ]]; then
    usage >&2
    exit 2
fi

# A text as YAML writes it; Kubernetes would read $(NAME) as a variable.
quoted() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\t'/\\t}
    printf '"%s"' "${text//\$(/\$\$(}"
}

manifest() {
    cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
${namespace:+  namespace: $namespace
}${tpu:+  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
}spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - action: FailJobSet  # a mistake stays one, however often it is tried
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: train
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0  # one pod alone cannot start again: the others wait for arrays from the one that died
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [2]}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace
END
    if [[ $tpu ]]; then
        cat <<END
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $tpu
              cloud.google.com/gke-tpu-topology: $topology
END
    fi
    cat <<END
            containers:
            - name: train
              image: $(quoted "$image")
              command: [python, -m, launch.train]
              args:
END
    for argument in "${train[@]}"; do
        echo "              - $(quoted "$argument")"
    done
    echo "              env:"
    if [[ $tpu ]]; then
        cat <<END
              - {name: VIDLANG_CLUSTER, value: auto}
              resources: {limits: {google.com/tpu: $chips}}
END
    else
        cat <<END
              - {name: VIDLANG_COORDINATOR, value: "$name-train-0-0.$name:1234"}
              - {name: VIDLANG_PROCESSES, value: "$hosts"}
              - name: VIDLANG_PROCESS
                valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
              resources: {limits: {nvidia.com/gpu: $gpus}}
END
    fi
    cat <<END
              volumeMounts:
              - {name: memory, mountPath: /dev/shm}
END
    for claim in ${claims[@]+"${claims[@]}"}; do
        echo "              - {name: claim-${claim%%:*}, mountPath: $(quoted "${claim#*:}")}"
    done
    cat <<END
            volumes:
            - {name: memory, emptyDir: {medium: Memory}}  # batches travel through it from the data workers
END
    for claim in ${claims[@]+"${claims[@]}"}; do
        echo "            - {name: claim-${claim%%:*}, persistentVolumeClaim: {claimName: ${claim%%:*}}}"
    done
}

if [[ $dry_run ]]; then
    manifest
else
    manifest | kubectl apply -f -
    first="jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    echo "its log: kubectl logs ${namespace:+--namespace=$namespace }--follow \\"
    echo "    --selector=jobset.sigs.k8s.io/jobset-name=$name,$first"
fi
