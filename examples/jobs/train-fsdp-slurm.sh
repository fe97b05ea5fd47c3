#!/bin/bash
# Stage two with all weights trained, over 2 nodes of 8 GPUs: FSDP2 shards weights, gradients and
# optimizer. After a requeue it goes on from the last checkpoint.
#SBATCH --job-name=reflogp-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$head:29500" --no-python \
    reflogp train \
    --cache "$CACHE" \
    --output "$OUTPUT" \
    --lora-r 0 \
    --fsdp \
    --gradient-checkpointing \
    --batch-size 2 \
    --accumulation 16
