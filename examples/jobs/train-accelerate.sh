#!/bin/bash
# The same as train-torchrun.sh with accelerate as the launcher; --fsdp is reflogp's own, so
# accelerate need not be configured for it.
set -euo pipefail

accelerate launch --multi_gpu --num_machines 1 --num_processes 8 --mixed_precision no \
    --dynamo_backend no --no_python \
    reflogp train \
    --cache "$CACHE" \
    --output "$OUTPUT" \
    --lora-r 0 \
    --fsdp \
    --batch-size 2 \
    --accumulation 8 \
    "$@"
