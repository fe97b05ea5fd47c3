#!/bin/bash
# Stage two on the 8 GPUs of one machine: a copy of the policy on each (DDP). The steps, and what is
# learned, are those of one GPU. Run it again after a kill: it goes on from the last checkpoint.
set -euo pipefail

torchrun --standalone --nproc-per-node 8 --no-python \
    reflogp train \
    --cache "$CACHE" \
    --output "$OUTPUT" \
    --lora-r 16 \
    --batch-size 4 \
    --accumulation 8 \
    "$@"
