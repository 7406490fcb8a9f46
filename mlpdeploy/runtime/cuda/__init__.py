"""CUDA as the TensorRT runtime needs it: one small interface, and two packages that provide it."""
