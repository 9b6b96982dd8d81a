#!/usr/bin/env bash
# Train on a Slurm cluster:  tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# The environment may give GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS="--time=3-0"; GPUS_PER_NODE=0: CPUs alone
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n 2,3p "$0" >&2
    exit 2
fi
partition=$1 job=$2 config=$3 work_dir=$4
shift 4
set -- train.py "$config" --work-dir "$work_dir" --launcher slurm "$@"
source "$(dirname "$0")/slurm_run.sh"
