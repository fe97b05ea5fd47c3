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

# REFERENCE, DATA and CACHE must be where all nodes see them. Since Slurm 22.05 srun does not take the
# job's --cpus-per-task by itself. What stands after the file's name goes to reflogp, such as
# sbatch --array=1-4 precompute-slurm.sh --max-length 2048.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" reflogp precompute \
    --reference "$REFERENCE" \
    --data "$DATA" \
    --cache "$CACHE" \
    --share slurm \
    "$@"
