#!/bin/bash
# Stage two with all weights trained, over 2 nodes of 8 GPUs: FSDP2 shards weights, gradients and
# optimizer. After a requeue it goes on from the last checkpoint. Other nodes or GPUs: change the
# lines below, or sbatch --nodes=1 --gpus-per-node=4 train-fsdp-slurm.sh; the steps stay the same.
#SBATCH --job-name=reflogp-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

# CACHE and OUTPUT must be where all nodes see them. Since Slurm 22.05 srun does not take the job's
# --cpus-per-task by itself. What stands after the file's name goes to reflogp.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((29500 + SLURM_JOB_ID % 1000)) # jobs that share a node must not share it
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$port" --no-python \
    reflogp train \
    --cache "$CACHE" \
    --output "$OUTPUT" \
    --lora-r 0 \
    --fsdp \
    --gradient-checkpointing \
    --batch-size 2 \
    --accumulation 16 \
    "$@"
