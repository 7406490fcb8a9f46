"""The place of the native kernels and of what builds and finds them. Nothing is here yet."""
