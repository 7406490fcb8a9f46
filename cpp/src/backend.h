// What computes a batch: ONNX Runtime's streams on the CPU, or TensorRT's lanes on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "mlpdeploy/session.h"

namespace mlpdeploy {

// Inputs or outputs of one model; more are refused when it is loaded, so that a call keeps its handles on the stack.
constexpr std::size_t max_tensors = 16;
constexpr std::size_t max_rank = 8;

// One tensor of one run, in the model's order.
struct Binding {
  DType dtype = DType::float32;
  std::int64_t shape[max_rank] = {};
  std::size_t rank = 0;
  void* data = nullptr;  // null for an output that the backend allocates

  std::size_t row_bytes() const noexcept;
  Binding rows(std::int64_t start, std::int64_t stop) const noexcept;  // without a copy
};

struct FrameBatch;

struct Feeds {
  const FrameBatch* frames = nullptr;  // the rows of the only tensor, which has no data then; see takes_frames
  Binding tensors[max_tensors];  // the model reads them; `data` is not const because the runtimes' interfaces are not

  std::int64_t rows() const noexcept { return tensors[0].shape[0]; }
};

struct Results {
  Binding tensors[max_tensors];
};

// Takes any batch: splits and pads it. Thread-safe. Everything that computes throws Error (backend).
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  virtual void run(const Feeds& feeds, const Results& results) const = 0;

  // For outputs whose sizes the manifest leaves open: the backend says them.
  virtual std::vector<Tensor> run_open(const Feeds& feeds) const = 0;

  // Makes what runs of these shapes need and would otherwise make when they come.
  virtual void prepare(const Feeds& feeds, int runs) const = 0;

  // Whether `run` takes frames. What normalizes them is said either way.
  virtual bool takes_frames() const noexcept { return false; }
  virtual std::string frames_note() const { return "processor"; }

  // Session::kernels.
  virtual std::string kernels() const { return "none"; }

  virtual int lanes() const noexcept { return 1; }  // Session::lanes
  virtual int max_batch() const noexcept = 0;
  virtual std::string version() const = 0;
  virtual std::vector<GraphNote> graphs() const = 0;
};

}  // namespace mlpdeploy
