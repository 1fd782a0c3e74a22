"""Training on a CPU: fused blocks, bfloat16 weights, optimizers."""
