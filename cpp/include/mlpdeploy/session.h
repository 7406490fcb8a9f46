// mlpdeploy for C++17: run an artifact folder that `mlpdeploy export` made. The only public C++ header.
//
// A complete program: name the most probable classes of each photograph.
//
//   #include <mlpdeploy/session.h>
//
//   #include <iostream>
//
//   int main(int argc, char** argv) {
//     try {
//       const std::vector<std::string> words(argv, argv + argc);  // the program, a folder, photographs
//       const auto session = mlpdeploy::Session::load(words.at(1));
//       for (const auto& prediction : mlpdeploy::classify(session, {words.begin() + 2, words.end()})) {
//         std::cout << prediction.path << '\n';
//         for (const auto& score : prediction.top) {
//           std::cout << "  " << 100 * score.probability << " %  " << score.label << '\n';
//         }
//       }
//       return 0;
//     } catch (const mlpdeploy::Error& error) {
//       std::cerr << error.what() << '\n';
//       return error.exit_code();
//     }
//   }
//
// With CMake: find_package(mlpdeploy) and target_link_libraries(program mlpdeploy::mlpdeploy).
//
// Every failure that a caller or a file can cause is an `Error`; the library never aborts, exits or prints. It changes
// nothing in an artifact folder. std::bad_alloc passes through.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#if defined(__GNUC__)
#define MLPDEPLOY_API __attribute__((visibility("default")))
#else
#define MLPDEPLOY_API
#endif

namespace mlpdeploy {

// ---------------------------------------------------------------------------------------------------------- errors

enum class ErrorKind {
  usage,         // the request itself is wrong
  artifact,      // the folder is incomplete, edited, truncated or not ours
  image,         // a picture cannot be used as input
  verification,  // the model gives scores that are not finite
  backend,       // the runtime is missing, has no engine for this machine, or failed to compute a batch
  cancelled,     // the request was cancelled before a batch took it
};

// A failure with three parts, as in Python: what came (`got`), what was wanted, and what to do about it (`fix`).
class MLPDEPLOY_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& got, const std::string& wanted = "", const std::string& fix = "");

  ErrorKind kind() const noexcept { return kind_; }
  const std::string& got() const noexcept { return got_; }
  const std::string& wanted() const noexcept { return wanted_; }
  const std::string& fix() const noexcept { return fix_; }
  int exit_code() const noexcept { return kind_ == ErrorKind::usage ? 2 : 1; }

 private:
  ErrorKind kind_;
  std::string got_, wanted_, fix_;
};

// --------------------------------------------------------------------------------------------------------- tensors

enum class DType { float32, float64, float16, int64, int32, uint8, int8 };

MLPDEPLOY_API std::size_t item_bytes(DType dtype) noexcept;
MLPDEPLOY_API const char* dtype_name(DType dtype) noexcept;  // numpy's name, e.g. "float32"

// One axis of an input or output: a fixed size, or a symbol (`batch`, `32*height`) whose size is that of the data.
struct Axis {
  std::int64_t size = 0;  // 0 where the axis is symbolic
  std::string symbol;     // empty where the size is fixed

  bool fixed() const noexcept { return symbol.empty(); }
};

struct TensorSpec {
  std::string name;
  std::vector<Axis> shape;
  DType dtype = DType::float32;
  std::string layout;  // one letter an axis, e.g. "NCHW"
};

// Contiguous data of the caller, read by the library. `shape` has `rank` sizes.
struct TensorView {
  std::string_view name;
  DType dtype = DType::float32;
  const std::int64_t* shape = nullptr;
  std::size_t rank = 0;
  const void* data = nullptr;
};

// Contiguous memory of the caller, written by the library.
struct MutableTensorView {
  std::string_view name;
  DType dtype = DType::float32;
  const std::int64_t* shape = nullptr;
  std::size_t rank = 0;
  void* data = nullptr;
};

// An array with its own memory.
struct MLPDEPLOY_API Tensor {
  std::string name;
  DType dtype = DType::float32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  // The values; throws Error (usage) where the tensor holds another type.
  const float* float32() const;
  std::size_t count() const noexcept;
  TensorView view() const noexcept { return {name, dtype, shape.data(), shape.size(), bytes.data()}; }
};

// --------------------------------------------------------------------------------------------------------- session

// From a decoded photograph to the input tensor: resize the shorter side, crop the centre, scale, normalize.
struct Preprocessing {
  int height = 0, width = 0;  // of the crop, in pixels
  double crop_pct = 1.0;      // side of the crop over side of the resized image
  std::string interpolation;  // "bicubic" or "bilinear", with antialiasing
  std::vector<double> mean, std;
  std::string color_order;  // "RGB", or "L" for one grey channel

  int channels() const noexcept { return color_order == "L" ? 1 : 3; }
};

struct LoadOptions {
  std::string backend = "onnxruntime";  // or "tensorrt": an engine of the artifact, on an NVIDIA GPU
  std::string device;                   // "cpu", or "cuda:1" for the second GPU; empty: the CPU, `tensorrt`'s first GPU
  std::optional<int> threads;           // of one run on the CPU, and of preprocessing; none: all usable processors
  std::optional<int> max_batch;  // rows that go through the backend at once; none: 32, or all that the engine takes
  std::string role;  // `canonical` or a target's name; empty: the model lowered for the device, or the canonical one
};

// What the artifact says about its model.
struct ModelInfo {
  std::string name;       // e.g. "asmlp_s"
  std::string source;     // where the weights come from
  std::string precision;  // e.g. "fp32"
  std::string file;       // the file of the folder that was loaded
  bool random_weights = false;
};

// Whether runs of one set of input shapes are one CUDA graph.
struct GraphNote {
  std::string shapes;  // e.g. "8x3x224x224"
  std::string note;    // "CUDA graph", or why there is none: then the work is launched kernel by kernel
};

enum class PixelOrder { rgb, bgr };

// Pixels of 8 bits, three channels interleaved, lines `stride_bytes` apart (negative: upwards in memory): a camera's
// frame as it is.
struct ImageView {
  const std::uint8_t* pixels = nullptr;  // of the upper left corner
  int height = 0, width = 0;
  std::ptrdiff_t stride_bytes = 0;
  PixelOrder order = PixelOrder::rgb;
};

// A loaded model on ONNX Runtime (CPU, or its CUDA provider), or on TensorRT. Any batch is taken: it is split, and
// padded with zeros where the model's batch is fixed or the engine takes no fewer rows; the padding is dropped.
//
// Thread-safe: `run` may be called on one session from any number of threads at once. Moving and destroying may not
// happen while another thread uses it. After the first calls at a batch size, `run` with the caller's outputs
// allocates nothing of its own; what the runtime allocates inside is its affair. With TensorRT two calls compute at the
// same time, others wait.
class MLPDEPLOY_API Session {
 public:
  // Checks the manifest's version and checksum, and size and SHA-256 of the model and its weights, then loads it. With
  // TensorRT the engine is compared with this machine first, and its plugin library is found and loaded.
  // A device is never replaced by another one.
  // Throws Error: usage (an option), artifact (anything wrong with the folder), backend (no TensorRT, GPU or engine).
  static Session load(const std::filesystem::path& folder, const LoadOptions& options = {});

  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  const std::vector<TensorSpec>& inputs() const noexcept;
  const std::vector<TensorSpec>& outputs() const noexcept;
  const ModelInfo& model() const noexcept;
  const std::vector<std::string>& labels() const noexcept;  // empty where the artifact has none
  const std::optional<Preprocessing>& preprocessing() const noexcept;
  int threads() const noexcept;
  int max_batch() const noexcept;
  std::optional<int> fixed_batch() const noexcept;

  // How many runs are worth having side by side: two on a GPU, where one batch is copied while another is computed; one
  // on the CPU, where every batch has all threads.
  int lanes() const noexcept;

  const std::string& backend() const noexcept;
  std::string backend_version() const;    // e.g. "1.31.1"
  std::string kernels() const;            // of ours that run AS-MLP on the CPU: "avx512"; or "none", and why
  std::vector<GraphNote> graphs() const;  // of the shapes that were run; empty on the CPU. Waits for running calls.

  // Writes every output of the model to the caller's memory, which must not overlap the inputs'.
  // Throws Error: usage (a missing, unknown or misfitting tensor), backend (the runtime failed).
  void run(const TensorView* inputs, std::size_t input_count, const MutableTensorView* outputs,
           std::size_t output_count) const;

  // The same with outputs of its own, in the model's order.
  std::vector<Tensor> run(const std::vector<TensorView>& inputs) const;

  // Runs frames that have the size of the model's input, one a row: a change of layout, scaling and normalization, no
  // resizing (a Preprocessor resizes). With TensorRT the pixels go to the GPU as they are, from the caller's memory,
  // and a CUDA kernel does the rest in the run's stream: the processor passes over no pixel, and nothing is allocated
  // after the first calls; copies are fastest from page-locked memory. Otherwise the session's threads do it.
  // Throws Error: usage (a frame of another size, or a misfitting output), image (no pixels), backend.
  void run_frames(const ImageView* frames, std::size_t count, const MutableTensorView* outputs,
                  std::size_t output_count) const;

  // What normalizes frames: "CUDA kernel", or "processor" and why.
  std::string frames() const;

  // Runs zeros a few times, so that later runs of `rows` rows find everything allocated. Symbolic image sizes take
  // `height` and `width`.
  void warmup(int rows = 1, int runs = 3, int height = 224, int width = 224) const;

  // Calls work(context, index) for every index in 0..count-1 on the session's threads, at most `threads()` at once,
  // and returns when all are done; the first exception is thrown again. Not to be called from inside of `work`.
  void parallel(std::size_t count, void (*work)(void* context, std::size_t index), void* context) const;

  struct Impl;

 private:
  explicit Session(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

// ---------------------------------------------------------------------------------------------------- photographs

constexpr std::int64_t max_image_pixels = 64'000'000;

struct Image {
  int height = 0, width = 0;
  std::vector<std::uint8_t> pixels;  // (height, width, 3)

  ImageView view() const noexcept { return {pixels.data(), height, width, std::ptrdiff_t{3} * width}; }
};

// Decodes a JPEG or PNG, upright as its EXIF orientation says. Grey, palette, 16-bit and CMYK pictures become RGB as
// in Python; alpha is dropped. `name` stands for the picture in error texts. Throws Error (image).
MLPDEPLOY_API Image decode_image(const void* data, std::size_t bytes, const std::string& name,
                                 std::int64_t max_pixels = max_image_pixels);
MLPDEPLOY_API Image read_image(const std::filesystem::path& path, std::int64_t max_pixels = max_image_pixels);

// Makes input tensors of pictures. Thread-safe.
class MLPDEPLOY_API Preprocessor {
 public:
  explicit Preprocessor(const Preprocessing& preprocessing);  // throws Error (usage) where it is impossible
  Preprocessor(Preprocessor&&) noexcept;
  ~Preprocessor();

  // Floats of one picture's tensor: channels x height x width.
  std::size_t count() const noexcept;

  // Resizes, crops, scales and normalizes in one go; `out` takes count() floats. Equal to Python's values.
  // Throws Error (image) where the picture is too elongated.
  void operator()(const ImageView& image, float* out) const;

  // The same for several pictures, side by side on the session's threads; `out` takes images.size() * count() floats.
  void batch(const Session& session, const std::vector<ImageView>& images, float* out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct ClassScore {
  int index = 0;
  std::string label;         // empty where the artifact carries no labels
  double probability = 0.0;  // softmax over all classes, 0..1
};

struct Prediction {
  std::string path;
  std::vector<ClassScore> top;  // best first; empty where the file could not be read
  std::string error;            // why it could not be read, else empty
};

struct ClassifyOptions {
  int top = 5;
  bool skip_bad = false;  // name pictures that cannot be read in `Prediction::error`, and go on
};

// One prediction per picture, in order; folders are searched for pictures. The session's max_batch pictures are decoded
// and run at a time. Throws Error: usage, image (without skip_bad), artifact, verification.
MLPDEPLOY_API std::vector<Prediction> classify(const Session& session, const std::vector<std::filesystem::path>& images,
                                               const ClassifyOptions& options = {});

// Throws Error (usage) where the artifact does not classify photographs.
MLPDEPLOY_API void check_classifier(const Session& session);

// The best classes of one row of logits. Throws Error (artifact, verification).
MLPDEPLOY_API std::vector<ClassScore> best_classes(const Session& session, const float* logits, std::size_t classes,
                                                   int top, const std::string& name);

// ------------------------------------------------------------------------------------------------ dynamic batching

struct BatchingOptions {
  int max_batch = 8;  // rows that are run together at most
  // How long a batch may wait for rows that are expected, although a worker is idle.
  std::chrono::microseconds max_delay{2000};
  std::size_t queue_limit = 64;  // requests that wait; then `submit` blocks
};

// Collects single rows from many threads into batches, for as many workers as the session has lanes. The session must
// outlive it and have one input.
//
// A worker that is idle takes what waits at once; so one client never waits for company. Only where more requests were
// open lately than are open now, a batch that is not full waits for them, at most `max_delay`.
//
// Thread-safe. The destructor refuses new requests, answers all that were accepted, and returns.
class MLPDEPLOY_API BatchingSession {
 public:
  class MLPDEPLOY_API Request {
   public:
    // The outputs for this row, each with one row, in the model's order; throws what the run threw, or Error
    // (cancelled).
    std::vector<Tensor> get() { return future_.get(); }
    std::future<std::vector<Tensor>>& future() noexcept { return future_; }

    // Takes the request back while it waits: true, and its future throws Error (cancelled). False where a batch
    // already took it: then the answer comes.
    bool cancel();

   private:
    friend class BatchingSession;
    std::future<std::vector<Tensor>> future_;
    std::weak_ptr<void> pending_;
    std::weak_ptr<void> queue_;
  };

  explicit BatchingSession(const Session& session, const BatchingOptions& options = {});
  BatchingSession(const BatchingSession&) = delete;
  BatchingSession& operator=(const BatchingSession&) = delete;
  ~BatchingSession();

  // Takes one row (the shape's first size is 1), which is copied. Blocks while the queue is full.
  // Throws Error: usage (it does not fit the input, or the session was shut down).
  Request submit(const TensorView& row);

  // The same, or nothing where the queue is full.
  std::optional<Request> try_submit(const TensorView& row);

  // Refuses new requests, answers those that were accepted, and returns. Twice is fine.
  void shutdown();

 private:
  struct Queue;
  std::optional<Request> enqueue(const TensorView& row, bool wait);
  std::shared_ptr<Queue> queue_;
};

}  // namespace mlpdeploy
