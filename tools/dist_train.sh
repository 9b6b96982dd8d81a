#!/usr/bin/env bash
# Train on several GPUs:        tools/dist_train.sh CONFIG GPUS [options of train.py]
# On several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST tools/dist_train.sh ...
# To go on after a crash:       MAX_RESTARTS=3 tools/dist_train.sh ...
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n 2,4p "$0" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2

# `-m torch.distributed.run` is torchrun, of the python that is first on the PATH.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    --max_restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
