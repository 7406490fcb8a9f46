// How the functions are marked that the device and the host share.
#pragma once

#ifdef __CUDACC__
#define MLPDEPLOY_HD __host__ __device__ __forceinline__
#else
#define MLPDEPLOY_HD inline
#endif

#ifdef __CUDA_ARCH__
#define MLPDEPLOY_UNROLL _Pragma("unroll")
#define MLPDEPLOY_NO_UNROLL _Pragma("unroll 1")
#else
#define MLPDEPLOY_UNROLL
#define MLPDEPLOY_NO_UNROLL
#endif
