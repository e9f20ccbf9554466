#!/bin/bash
# Train one stage on the nodes of a SLURM job; the job is requeued until the stage is done.
#
#   sbatch scripts/slurm.sh --config train/configs/stage1.yaml --data.root ~/data
#
# Start it in the checkout with the virtual environment active, both on a file system that all nodes share. docs/scale.md
#
# Edit these to fit your cluster. `--signal` says how many seconds before the time limit the stage ends: time for a step and a
# checkpoint; SLURM may send the signal a minute earlier.
#SBATCH --job-name=safety
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --output=slurm-%j.log
# Leave these as they are: one torchrun on each node, and one log for all runs of the job.
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append

# How the signal reaches train.run, which finishes its step, saves and stops:
# - SLURM -> this shell. Without the B: SLURM would signal the tasks only, and the job would not be requeued.
# - this shell -> srun -> the shell in `on_node`, on each node. With proctrack/cgroup, as on most clusters, SLURM signals only the
#   process that it started: that shell, neither torchrun nor train.run.
# - `on_node` -> the processes of train.run. Not torchrun: it handles SIGTERM, SIGINT, SIGHUP and SIGQUIT (others only in newer
#   releases, by an option), and gives its processes 30 s until SIGKILL; SIGUSR1 would kill it at once.
# So torchrun ignores SIGUSR1, and its processes inherit that until they train: a signal kills neither one that is still loading
# nor one that is writing final/. Hence it is sent again until the step ends.
on_node() {
    (
        trap '' USR1
        exec torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
            --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$FIRST_NODE:$RENDEZVOUS_PORT" \
            --rdzv-conf "is_host=$((SLURM_NODEID == 0)),read_timeout=600" --local-addr "$SLURMD_NODENAME" -m train.run "$@"
    ) &
    local agent=$!
    trap 'pkill -USR1 -P "$agent"' USR1
    trap 'pkill -TERM -P "$agent"' TERM # scancel, or the time limit: KillWait seconds, 30 by default
    while kill -0 "$agent" 2>/dev/null; do
        wait "$agent" # a signal ends the wait, not torchrun
    done
    wait "$agent"
}

set -u
FIRST_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
RENDEZVOUS_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs may share a node
export -f on_node # bash -c gets the arguments as "$@", so that they are not split
export FIRST_NODE RENDEZVOUS_PORT

stopped=
trap 'stopped=yes' USR1
# srun does not inherit --cpus-per-task from sbatch. A node that fails ends the others, which would wait for it.
srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=1 bash -c 'on_node "$@"' on_node "$@" &
step=$!
[ "$stopped" ] || wait "$step"
while kill -0 "$step" 2>/dev/null; do
    kill -USR1 "$step"
    sleep 20
done
wait "$step"
code=$?
if [ "$stopped" ] && [ "$code" -ne 0 ]; then
    echo "slurm.sh: stopped before the time limit; job $SLURM_JOB_ID is requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
