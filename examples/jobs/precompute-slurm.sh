#!/bin/bash
# Stage one as a SLURM array: 16 jobs, one GPU each, no job waits for another. The last one to end
# seals the cache. One that was killed or requeued goes on where it was; submit the array again to
# finish what is left, with any number of tasks.
#SBATCH --job-name=reflogp-precompute
#SBATCH --array=1-16
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

# REFERENCE, DATA and CACHE must be where all nodes see them.
srun reflogp precompute \
    --reference "$REFERENCE" \
    --data "$DATA" \
    --cache "$CACHE" \
    --shard slurm
