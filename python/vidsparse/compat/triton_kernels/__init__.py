"""Stands in for `fastvideo_kernel.triton_kernels`."""

OWN_PATH = list(__path__)
