#include "tensorrt.h"

#include <algorithm>

#include "../bindings.h"
#include "../device.h"
#include "../text.h"
#include "choice.h"
#include "lane.h"

namespace mlpdeploy {

namespace {

// As many of an engine are looked at; the rest is not used.
constexpr std::size_t max_profiles = 64;

std::string sizes_text(const std::int64_t* sizes, std::size_t count) {
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < count; ++i) texts.push_back(std::to_string(sizes[i]));
  return join(texts, "x");
}

std::string sizes_text(const nvinfer1::Dims& dims) {
  const std::vector<std::int64_t> sizes(dims.d + 1, dims.d + dims.nbDims);
  return sizes_text(sizes.data(), sizes.size());
}

// What of an engine takes a call's sizes, on the stack.
struct Fitting {
  RowRange ranges[max_profiles];
  std::size_t count = 0;
};

class TensorRt final : public Backend {
 public:
  // The GPU must be current.
  TensorRt(std::shared_ptr<Cuda> cuda, const Engine::Source& source, const Manifest& manifest,
           std::optional<int> max_batch)
      : cuda_(std::move(cuda)), kernel_(std::make_unique<FrameKernel>(*cuda_)) {
    engine_ = std::make_unique<Engine>(source, manifest.inputs, manifest.outputs);
    pool_ = std::make_unique<LanePool>(*engine_, *cuda_, *kernel_);
    for (const RowRange& range : engine_->profiles()) most_rows_ = std::max(most_rows_, range.most);
    if (max_batch && *max_batch > most_rows_) {
      throw Error(ErrorKind::usage, "max_batch is " + std::to_string(*max_batch),
                  "at most " + std::to_string(most_rows_) + ", as the engine was built", "build one with --max-batch");
    }
    limit_ = max_batch.value_or(0);
  }

  ~TensorRt() override {
    try {
      const Current current(*cuda_);
      pool_.reset();
      engine_.reset();
      kernel_.reset();
    } catch (const CudaFailure&) {
      // The GPU is lost, and what was on it with it: TensorRT must not touch that any more.
      static_cast<void>(pool_.release());
      static_cast<void>(engine_.release());
      static_cast<void>(kernel_.release());
    }
  }

  int lanes() const noexcept override { return static_cast<int>(most_lanes); }
  int max_batch() const noexcept override { return static_cast<int>(limit_ ? limit_ : most_rows_); }
  std::string version() const override { return engine_->nvinfer().version; }

  bool takes_frames() const noexcept override { return static_cast<bool>(*kernel_); }
  std::string frames_note() const override { return kernel_->note(); }

  void run(const Feeds& feeds, const Results& results) const override {
    guarded([&] { run_rows(feeds, results); });
  }

  std::vector<Tensor> run_open(const Feeds& feeds) const override {
    std::vector<Tensor> tensors(engine_->outputs().size());
    guarded([&] {
      const Results results = results_for(feeds, tensors);
      run_rows(feeds, results);
    });
    return tensors;
  }

  void prepare(const Feeds& feeds, int runs) const override {
    guarded([&] {
      const Fitting fitting = fitting_profiles(feeds);
      const LanePool::Loan lanes = pool_->lend_all();
      for (std::size_t lane = 0; lane < lanes.count(); ++lane) {
        for (int i = 0; i < runs; ++i) {
          for (Chunk chunk; chunk.stop < feeds.rows();) {
            chunk = chunk_after(chunk, fitting, feeds);
            lanes[lane].start(feeds, {}, chunk);
            lanes[lane].finish();
          }
        }
      }
    });
  }

  std::vector<GraphNote> graphs() const override {
    std::vector<GraphNote> notes;
    guarded([&] {
      const LanePool::Loan lanes = pool_->lend_all();
      for (std::size_t i = 0; i < lanes.count(); ++i) lanes[i].add_notes(notes);
    });
    return notes;
  }

 private:
  std::shared_ptr<Cuda> cuda_;
  std::unique_ptr<FrameKernel> kernel_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<LanePool> pool_;
  std::int64_t most_rows_ = 0, limit_ = 0;

  // Has the GPU current in `work`, and CUDA's failures as errors.
  template <typename Work>
  void guarded(const Work& work) const {
    try {
      const Current current(*cuda_);
      work();
    } catch (const CudaFailure& failure) {
      throw Error(ErrorKind::backend, failure.message);
    }
  }

  Chunk chunk_after(const Chunk& last, const Fitting& fitting, const Feeds& feeds) const noexcept {
    Chunk chunk = next_chunk(fitting.ranges, fitting.count, last.stop, feeds.rows(), limit_);
    const auto its = [&](const RowRange& range) { return range.profile == chunk.profile; };
    const RowRange& range = *std::find_if(fitting.ranges, fitting.ranges + fitting.count, its);
    chunk.computed = std::min(next_of_few_sizes(chunk.computed), range.most);
    return chunk;
  }

  void run_rows(const Feeds& feeds, const Results& results) const {
    const Fitting fitting = fitting_profiles(feeds);
    Chunk chunk = chunk_after({}, fitting, feeds);
    const LanePool::Loan lanes = pool_->lend(chunk.stop < feeds.rows() ? most_lanes : 1);
    for (std::size_t number = 0;; ++number) {
      Lane& lane = lanes[number % lanes.count()];
      lane.finish();
      lane.start(feeds, results, chunk);
      if (chunk.stop == feeds.rows()) break;
      chunk = chunk_after(chunk, fitting, feeds);
    }
    for (std::size_t i = 0; i < lanes.count(); ++i) lanes[i].finish();
  }

  // Makes the output tensors as large as the engine says for these inputs.
  Results results_for(const Feeds& feeds, std::vector<Tensor>& tensors) const {
    const Chunk first = chunk_after({}, fitting_profiles(feeds), feeds);
    const LanePool::Loan lanes = pool_->lend(1);
    const Slot& slot = lanes[0].slot(feeds, first);
    Results results;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const Binding& computed = slot.outputs()[i]->tensor;
      Tensor& tensor = tensors[i];
      tensor.name = engine_->outputs()[i].name;
      tensor.dtype = computed.dtype;
      tensor.shape.assign(computed.shape, computed.shape + computed.rank);
      tensor.shape[0] = feeds.rows();
      tensor.bytes.resize(computed.row_bytes() * static_cast<std::size_t>(feeds.rows()));
      results.tensors[i] = binding(tensor.dtype, tensor.shape.data(), tensor.shape.size(), tensor.bytes.data());
    }
    return results;
  }

  bool takes(std::size_t profile, const Feeds& feeds) const noexcept {
    for (std::size_t i = 0; i < engine_->inputs().size(); ++i) {
      const SizeRange& range = engine_->inputs()[i].ranges[profile];
      for (std::size_t axis = 1; axis < feeds.tensors[i].rank; ++axis) {
        const std::int64_t size = feeds.tensors[i].shape[axis];
        if (size < range.least.d[axis] || size > range.most.d[axis]) return false;
      }
    }
    return true;
  }

  // The profiles that take the sizes behind the batch. Throws Error (usage).
  Fitting fitting_profiles(const Feeds& feeds) const {
    Fitting fitting;
    const auto& profiles = engine_->profiles();
    for (std::size_t i = 0; i < std::min(profiles.size(), max_profiles); ++i) {
      if (takes(i, feeds)) fitting.ranges[fitting.count++] = profiles[i];
    }
    if (fitting.count == 0) refuse_sizes(feeds);
    std::int64_t least = fitting.ranges[0].least;
    for (std::size_t i = 1; i < fitting.count; ++i) least = std::min(least, fitting.ranges[i].least);
    if (limit_ && least > limit_) {
      throw Error(ErrorKind::usage,
                  "max_batch is " + std::to_string(limit_) + ", and the engine takes no fewer than " +
                      std::to_string(least) + " rows",
                  "at least " + std::to_string(least));
    }
    return fitting;
  }

  [[noreturn]] void refuse_sizes(const Feeds& feeds) const {
    std::vector<std::string> asked, known;
    for (std::size_t i = 0; i < engine_->inputs().size(); ++i) {
      asked.push_back(sizes_text(feeds.tensors[i].shape + 1, feeds.tensors[i].rank - 1));
    }
    for (const SizeRange& range : engine_->inputs().front().ranges) {
      const std::string least = sizes_text(range.least), most = sizes_text(range.most);
      known.push_back(least == most ? least : least + " to " + most);
    }
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    throw Error(ErrorKind::usage, "inputs of " + join(asked, ", "), join(known, " or ") + ", as the engine was built",
                "build one with --image-size");
  }
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const std::filesystem::path& folder, const Manifest& manifest,
                                       const LoadOptions& options, std::string& file) {
  if (!options.device.empty() && !names_gpu(options.device)) {
    throw Error(ErrorKind::usage, "device " + options.device + " on the backend tensorrt", "cuda",
                "leave the device out");
  }
  const int index = gpu_index(options.device);
  if (!options.role.empty() && options.role != tensorrt_name) {
    throw Error(ErrorKind::usage, "the file for " + options.role + " on tensorrt", "an engine for tensorrt",
                "leave the role out for tensorrt's own");
  }
  check_targets(folder, index);
  const Nvinfer& nvinfer = load_nvinfer();
  const auto cuda = Cuda::open(index);
  const Gpu& gpu = cuda->gpu();
  const Sidecar sidecar =
      choose_engine(folder, manifest, {nvinfer.version, gpu.name, gpu.major, gpu.compute_capability(), index});
  file = (std::filesystem::path(engine_folder) / sidecar.file).string();
  Engine::Source source;
  source.path = (folder / file).string();
  source.plugin_library = plugin_for(folder, sidecar).string();
  source.plan = read_engine(folder, sidecar);
  source.version_compatible = sidecar.flag("version_compatible");
  try {
    const Current current(*cuda);
    return std::make_unique<TensorRt>(cuda, source, manifest, options.max_batch);
  } catch (const CudaFailure& failure) {
    throw Error(ErrorKind::backend, failure.message);
  }
}

}  // namespace mlpdeploy
