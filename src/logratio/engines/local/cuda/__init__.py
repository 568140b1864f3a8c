"""Decoding without a look from the host: static memory, captured steps, Triton kernels.

Not run on a GPU yet. On a CPU the step runs uncaptured and the kernels are interpreted, both held
to the plain path, and the kernels are compiled for a GPU.
"""
