"""Take the frozen reference model out of DPO training."""
