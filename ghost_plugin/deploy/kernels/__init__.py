"""Triton kernels and the modules that use them."""
