"""Decoding: the C kernel, speculative decoding, CUDA graphs."""
