"""Decoding without a look from the host: static memory, captured steps, Triton kernels."""
