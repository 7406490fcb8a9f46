#include "onnx_streams.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "device.h"
#include "kernels.h"
#include "onnxruntime.h"
#include "split.h"

namespace mlpdeploy {

namespace {

constexpr int default_max_batch = 32;
constexpr std::int64_t rows_per_stream_run = 2;  // as in mlpdeploy/runtime/session.py

// Rows of a part with zeros behind them, and room for the results of all that is computed; kept from call to call.
struct Scratch {
  Staging inputs[max_tensors], outputs[max_tensors];
};

// A stack of scratches: as many as threads have padded at once.
class Scratches {
 public:
  std::unique_ptr<Scratch> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Scratch>();
    auto scratch = std::move(free_.back());
    free_.pop_back();
    return scratch;
  }

  void give_back(std::unique_ptr<Scratch> scratch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(scratch));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

// What changes where a file is replaced or written to; empty where there is none.
std::vector<std::int64_t> state_of(const std::vector<std::filesystem::path>& files) {
  std::vector<std::int64_t> states;
  for (const auto& file : files) {
    struct stat found{};
    if (stat(file.c_str(), &found) != 0) return {};
    states.insert(states.end(),
                  {static_cast<std::int64_t>(found.st_dev), static_cast<std::int64_t>(found.st_ino),
                   static_cast<std::int64_t>(found.st_size), static_cast<std::int64_t>(found.st_mtim.tv_sec),
                   static_cast<std::int64_t>(found.st_mtim.tv_nsec)});
  }
  return states;
}

// A model's file, and that of its weights.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& file, const Manifest& manifest) {
  const FileEntry* const entry = manifest.file(file.filename().string());
  if (!entry || entry->weights.empty()) return {file};
  return {file, file.parent_path() / entry->weights};
}

class OnnxStreams final : public Backend {
 public:
  OnnxStreams(const std::filesystem::path& file, const Manifest& manifest, std::optional<int> max_batch,
              std::optional<int> gpu, Kernels kernels, SharedPool& pool)
      : files_(files_of(std::filesystem::absolute(file), manifest)),
        on_disk_(state_of(files_)),
        kernels_(std::move(kernels)),
        inputs_(manifest.inputs),
        outputs_(manifest.outputs),
        threads_(pool.threads()),
        gpu_(gpu.has_value()),
        pool_(pool),
        whole_(file, threads_, gpu, kernels_.library, inputs_, outputs_) {
    const Axis& batch = inputs_.front().shape.front();
    fixed_ = batch.fixed();
    range_.most = fixed_ ? batch.size : max_batch.value_or(default_max_batch);
    if (fixed_) range_.least = range_.most;
  }

  int lanes() const noexcept override { return gpu_ ? 2 : 1; }
  int max_batch() const noexcept override { return static_cast<int>(range_.most); }
  std::string version() const override { return OnnxModel::version(); }
  std::string kernels() const override { return kernels_.note; }
  std::vector<GraphNote> graphs() const override { return {}; }
  void prepare(const Feeds&, int) const override {}  // the first runs do it

  void run(const Feeds& feeds, const Results& results) const override {
    const std::int64_t rows = feeds.rows();
    for (Chunk chunk; chunk.stop < rows;) {
      chunk = next_chunk(&range_, 1, chunk.stop, rows);
      if (gpu_ || chunk.computed > chunk.rows()) {
        run_staged(feeds, results, chunk);
      } else {
        execute(feeds, results, chunk.start, chunk.stop);
      }
    }
  }

  // ONNX Runtime says the sizes: part by part, without streams.
  std::vector<Tensor> run_open(const Feeds& feeds) const override {
    struct Collector {
      std::vector<Tensor> tensors;
      std::size_t rows;
    } collector{std::vector<Tensor>(outputs_.size()), 0};
    const auto take = [](void* context, std::size_t output, const Binding& value) {
      auto& all = *static_cast<Collector*>(context);
      Tensor& tensor = all.tensors[output];
      tensor.shape.assign(value.shape, value.shape + value.rank);
      const auto* data = static_cast<const std::byte*>(value.data);
      tensor.bytes.insert(tensor.bytes.end(), data, data + value.row_bytes() * all.rows);
    };
    const std::int64_t rows = feeds.rows();
    for (Chunk chunk; chunk.stop < rows;) {
      chunk = next_chunk(&range_, 1, chunk.stop, rows);
      collector.rows = static_cast<std::size_t>(chunk.rows());
      run_open_part(feeds, chunk, take, &collector);
    }
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      collector.tensors[i].name = outputs_[i].name;
      collector.tensors[i].dtype = outputs_[i].dtype;
      collector.tensors[i].shape[0] = rows;
    }
    return std::move(collector.tensors);
  }

 private:
  std::vector<std::filesystem::path> files_;
  std::vector<std::int64_t> on_disk_;
  Kernels kernels_;
  std::vector<TensorSpec> inputs_, outputs_;
  int threads_;
  bool gpu_;
  SharedPool& pool_;
  OnnxModel whole_;
  RowRange range_;
  bool fixed_;
  mutable std::mutex making_;
  mutable std::unique_ptr<OnnxModel> single_threaded_;
  mutable bool replaced_ = false;
  mutable Scratches scratches_;

  // With its own copy of the weights: loaded when the first batch for streams comes. Null where the file is not any
  // more the one that this session has read: it goes on with what it has.
  const OnnxModel* stream_model() const {
    const std::lock_guard<std::mutex> lock(making_);
    if (single_threaded_ || replaced_) return single_threaded_.get();
    if (state_of(files_) == on_disk_) {
      auto model = std::make_unique<OnnxModel>(files_[0], 1, std::nullopt, kernels_.library, inputs_, outputs_);
      if (state_of(files_) == on_disk_) single_threaded_ = std::move(model);
    }
    replaced_ = !single_threaded_;
    return single_threaded_.get();
  }

  void run_rows(const OnnxModel& model, const Feeds& feeds, const Results& results, std::int64_t start,
                std::int64_t stop) const {
    Binding inputs[max_tensors], outputs[max_tensors];
    for (std::size_t i = 0; i < inputs_.size(); ++i) inputs[i] = feeds.tensors[i].rows(start, stop);
    for (std::size_t i = 0; i < outputs_.size(); ++i) outputs[i] = results.tensors[i].rows(start, stop);
    model.run(inputs, outputs);
  }

  // Rows start..stop, which the backend takes as they are.
  void execute(const Feeds& feeds, const Results& results, std::int64_t start, std::int64_t stop) const {
    const std::int64_t rows = stop - start;
    const OnnxModel* const model = fixed_ || threads_ < 2 || rows < threads_ ? nullptr : stream_model();
    if (!model) return run_rows(whole_, feeds, results, start, stop);
    const std::int64_t shared = start + rows - rows % threads_;
    stream(*model, feeds, results, start, shared);
    if (shared < stop) run_rows(whole_, feeds, results, shared, stop);
  }

  // Every stream has the same number of rows to compute. The shorter runs come last, so that all streams end together.
  void stream(const OnnxModel& model, const Feeds& feeds, const Results& results, std::int64_t start,
              std::int64_t stop) const {
    struct Part {
      const OnnxStreams& session;
      const OnnxModel& model;
      const Feeds& feeds;
      const Results& results;
      std::int64_t start, whole_runs, rest;
    };
    const std::int64_t share = (stop - start) / threads_, rest = share % rows_per_stream_run;
    Part part{*this, model, feeds, results, start, share / rows_per_stream_run * threads_, rest};
    const auto work = [](void* context, std::size_t index) {
      const Part& p = *static_cast<Part*>(context);
      const auto run = static_cast<std::int64_t>(index), shorter = std::max<std::int64_t>(run - p.whole_runs, 0);
      const std::int64_t from = p.start + (run - shorter) * rows_per_stream_run + shorter * p.rest;
      p.session.run_rows(p.model, p.feeds, p.results, from,
                         from + (run < p.whole_runs ? rows_per_stream_run : p.rest));
    };
    pool_.get().run(static_cast<std::size_t>(part.whole_runs + (rest > 0 ? threads_ : 0)), work, &part);
  }

  // Through memory of its own: with zeros behind the rows where the model's batch is fixed, and pinned on a GPU.
  void run_staged(const Feeds& feeds, const Results& results, const Chunk& chunk) const {
    auto scratch = scratches_.take();
    Binding inputs[max_tensors], outputs[max_tensors];
    stage(feeds, chunk, *scratch, inputs);
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      outputs[i] = results.tensors[i];
      outputs[i].shape[0] = chunk.computed;
      outputs[i].data = scratch->outputs[i].room(whole_, outputs[i].row_bytes() * rows_of(chunk.computed));
    }
    whole_.run(inputs, outputs);
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      const Binding target = results.tensors[i].rows(chunk.start, chunk.stop);
      std::memcpy(target.data, outputs[i].data, target.row_bytes() * rows_of(chunk.rows()));
    }
    scratches_.give_back(std::move(scratch));
  }

  void run_open_part(const Feeds& feeds, const Chunk& chunk, OnnxModel::Take take, void* context) const {
    auto scratch = scratches_.take();
    Binding inputs[max_tensors], outputs[max_tensors];
    if (gpu_ || chunk.computed > chunk.rows()) {
      stage(feeds, chunk, *scratch, inputs);
    } else {
      for (std::size_t i = 0; i < inputs_.size(); ++i) inputs[i] = feeds.tensors[i].rows(chunk.start, chunk.stop);
    }
    whole_.run(inputs, outputs, take, context);
    scratches_.give_back(std::move(scratch));
  }

  static std::size_t rows_of(std::int64_t rows) noexcept { return static_cast<std::size_t>(rows); }

  // Has the inputs point to copies of a part's rows, with zeros up to the rows that are computed.
  void stage(const Feeds& feeds, const Chunk& chunk, Scratch& scratch, Binding* inputs) const {
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const Binding part = feeds.tensors[i].rows(chunk.start, chunk.stop);
      void* const room = scratch.inputs[i].room(whole_, part.row_bytes() * rows_of(chunk.computed));
      copy_padded(part, chunk.computed, room);
      inputs[i] = part;
      inputs[i].shape[0] = chunk.computed;
      inputs[i].data = room;
    }
  }
};

// The GPU of ONNX Runtime's CUDA provider; none where the CPU is asked for. Throws Error (usage).
std::optional<int> onnx_gpu(const Manifest& manifest, const std::string& device) {
  if (!names_gpu(device)) return std::nullopt;
  const int index = gpu_index(device);
  if (!OnnxModel::has_cuda()) {
    throw Error(ErrorKind::usage, "this ONNX Runtime has no CUDA provider", "",
                "load a libonnxruntime.so.1 of a package for GPUs, or use --device cpu");
  }
  if (manifest.model.precision != "fp32") {
    throw Error(ErrorKind::usage, "an artifact in " + manifest.model.precision + " on " + device,
                "a float32 artifact, or --device cpu");
  }
  return index;
}

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& folder, const Manifest& manifest,
                                          const LoadOptions& options, SharedPool& pool, std::string& file) {
  const auto gpu = onnx_gpu(manifest, options.device);
  const std::string role = !options.role.empty() ? options.role : gpu ? "cuda" : "cpu";
  file = manifest.file_for(role).name;
  const auto path = checked_file(folder, manifest, file);
  Kernels kernels = gpu ? Kernels{{}, "none"} : find_kernels(manifest, role);
  return std::make_unique<OnnxStreams>(path, manifest, options.max_batch, gpu, std::move(kernels), pool);
}

}  // namespace mlpdeploy
