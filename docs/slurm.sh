#!/bin/bash
# sbatch docs/slurm.sh PHOTOS RUN [KEY=VALUE]...: one run on all devices of two machines.
#SBATCH --job-name=belvedere
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
# Two minutes before its time is over this script gets a SIGTERM; --requeue alone would not queue it again then.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

photos=$1 run=$2
shift 2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))
# Processes that torchrun restarts meet at a new place, where none that died has left its address.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# After its SIGTERM a process has so many seconds to write checkpoint, model and report. A torch that does not know this
# variable gives it 30: a run that needs longer goes on from its checkpoint all the same.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100

over=
trap 'over=1; kill -TERM "$run_on_all"' TERM

# The same command begins the run and goes on with it, whatever ended it before.
srun python -m torch.distributed.run \
    --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:${BELVEDERE_PORT:-29500}" \
    -m belvedere pretrain "$photos" --out "$run" --resume "$@" &
run_on_all=$!
code=0
wait "$run_on_all" || code=$?
if [[ $over ]]; then
    # The signal ended the first wait; the run still writes its checkpoint.
    wait "$run_on_all" || true
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
