"""A model repository for NVIDIA's Triton Inference Server out of artifact folders."""
