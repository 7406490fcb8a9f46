/* mlpdeploy for C, and for other languages through it: the same as mlpdeploy/session.h, without images and batching
 * by time.
 *
 * Every function returns 0 for success, 1 for a failure and 2 for a wrong request. After one that did not return 0,
 * mlpdeploy_last_error() tells the calling thread why. Nothing is printed, and no exception leaves a function. */
#ifndef MLPDEPLOY_H
#define MLPDEPLOY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MLPDEPLOY_C_API __attribute__((visibility("default")))
#else
#define MLPDEPLOY_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mlpdeploy_session mlpdeploy_session;

/* One contiguous array of the caller. As input only read; as output written. */
typedef struct {
  const char* name;
  const char* dtype; /* numpy's name, e.g. "float32" */
  const int64_t* shape;
  size_t rank;
  void* data;
} mlpdeploy_tensor;

/* A symbolic axis has the size 0. The pointers live as long as the session. */
typedef struct {
  const char* name;
  const char* dtype;
  const char* layout; /* one letter an axis */
  const int64_t* shape;
  size_t rank;
} mlpdeploy_spec;

/* NULL, "" and 0 take the defaults: ONNX Runtime on the CPU, all processors, the model lowered for the backend. */
typedef struct {
  const char* backend; /* "onnxruntime" or "tensorrt" */
  const char* device;  /* "cpu", or e.g. "cuda:1" */
  const char* role;
  int threads;
  int max_batch;
} mlpdeploy_options;

/* options: NULL takes all defaults. */
MLPDEPLOY_C_API int mlpdeploy_load(const char* folder, const mlpdeploy_options* options, mlpdeploy_session** session);
MLPDEPLOY_C_API void mlpdeploy_free(mlpdeploy_session* session); /* NULL is fine */

MLPDEPLOY_C_API size_t mlpdeploy_input_count(const mlpdeploy_session* session);
MLPDEPLOY_C_API size_t mlpdeploy_output_count(const mlpdeploy_session* session);
MLPDEPLOY_C_API int mlpdeploy_input(const mlpdeploy_session* session, size_t index, mlpdeploy_spec* spec);
MLPDEPLOY_C_API int mlpdeploy_output(const mlpdeploy_session* session, size_t index, mlpdeploy_spec* spec);

/* Thread-safe. All inputs and all outputs of the model, in any order. */
MLPDEPLOY_C_API int mlpdeploy_run(mlpdeploy_session* session, const mlpdeploy_tensor* inputs, size_t input_count,
                                  const mlpdeploy_tensor* outputs, size_t output_count);

/* Pixels of 8 bits, three channels interleaved, lines `stride_bytes` apart (negative: upwards in memory). */
typedef struct {
  const uint8_t* pixels; /* of the upper left corner */
  int height, width;
  ptrdiff_t stride_bytes;
  int bgr; /* 1: blue comes first; 0: red */
} mlpdeploy_frame;

/* Thread-safe. Frames that have the size of the model's input, one a row; with TensorRT normalized on the GPU. */
MLPDEPLOY_C_API int mlpdeploy_run_frames(mlpdeploy_session* session, const mlpdeploy_frame* frames, size_t frame_count,
                                         const mlpdeploy_tensor* outputs, size_t output_count);

/* The input tensor of one JPEG or PNG file; `count` is the number of floats at `out`, channels x height x width. */
MLPDEPLOY_C_API int mlpdeploy_prepare_file(const mlpdeploy_session* session, const char* path, float* out,
                                           size_t count);

/* The same of pixels: 8 bits, red, green, blue interleaved, rows `stride_bytes` apart. */
MLPDEPLOY_C_API int mlpdeploy_prepare_pixels(const mlpdeploy_session* session, const uint8_t* pixels, int height,
                                             int width, ptrdiff_t stride_bytes, float* out, size_t count);

/* The class's name, or "" where the artifact has none. */
MLPDEPLOY_C_API const char* mlpdeploy_label(const mlpdeploy_session* session, size_t index);

/* Of this thread's last failure, until its next one; "" where there was none. */
MLPDEPLOY_C_API const char* mlpdeploy_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
