# Sourced by slurm_train.sh and slurm_test.sh: runs the tool in $1 with the words after it, a task a GPU.
tool=$1
shift
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
tasks_per_node=$((per_node > 0 ? (gpus < per_node ? gpus : per_node) : gpus))
gres=()
if [ "$per_node" -gt 0 ]; then
    gres=(--gres="gpu:$tasks_per_node")
fi

# SRUN_ARGS holds several words. A task that ends badly ends the others, which would wait for it.
# shellcheck disable=SC2086
exec srun --partition="$partition" --job-name="$job" "${gres[@]}" \
    --ntasks="$gpus" --ntasks-per-node="$tasks_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/$tool" "$@"
