"""The native kernels (`csrc`), and what builds and finds the library that they become."""
