"""TPU kernels of attention between pixels and tokens."""
