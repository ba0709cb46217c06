"""The local GRPO trainer: one process, a CPU or one GPU."""
