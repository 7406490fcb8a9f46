#include "mlpdeploy/session.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "bindings.h"
#include "manifest.h"
#include "onnxruntime.h"
#include "text.h"
#include "thread_pool.h"

namespace mlpdeploy {

namespace {

constexpr int default_max_batch = 32;
constexpr std::int64_t rows_per_stream_run = 2;  // as in mlpdeploy/runtime/onnxruntime.py

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1U, std::thread::hardware_concurrency());
}

void check_options(const LoadOptions& options) {
  if (options.threads && *options.threads < 1) {
    throw Error(ErrorKind::usage, "threads is " + std::to_string(*options.threads), "at least 1");
  }
  if (options.max_batch && *options.max_batch < 1) {
    throw Error(ErrorKind::usage, "max_batch is " + std::to_string(*options.max_batch), "at least 1");
  }
}

void check_manifest(const Manifest& manifest, const std::filesystem::path& folder, const LoadOptions& options) {
  if (manifest.inputs.empty() || manifest.outputs.empty()) {
    throw Error(ErrorKind::artifact, folder.string() + " has no inputs or no outputs", "", "export the model again");
  }
  const auto roles = manifest.roles();
  if (!options.role.empty() && std::find(roles.begin(), roles.end(), options.role) == roles.end()) {
    throw Error(ErrorKind::usage, folder.string() + " has no model for " + repr(options.role), "",
                closest(options.role, roles));
  }
  for (const auto* specs : {&manifest.inputs, &manifest.outputs}) {
    const auto other = [](const TensorSpec& spec) { return spec.dtype != DType::float32; };
    if (options.role == "canonical" && std::any_of(specs->begin(), specs->end(), other)) {
      throw Error(ErrorKind::usage, "the canonical model of " + folder.string() + ", which takes float32",
                  std::string("a model with the artifact's inputs, ") + dtype_name(manifest.inputs.front().dtype),
                  "leave the role out, or load the float32 artifact that this one was made from");
    }
    const auto deep = [](const TensorSpec& spec) { return spec.shape.size() > max_rank; };
    if (specs->size() > max_tensors || std::any_of(specs->begin(), specs->end(), deep)) {
      throw Error(ErrorKind::artifact, folder.string() + " has too many inputs, outputs or axes",
                  std::to_string(max_tensors) + " tensors of " + std::to_string(max_rank) + " axes");
    }
  }
}

// Zeros behind the rows of a part, and room for the results of a whole fixed batch; kept from call to call.
struct Scratch {
  std::vector<std::byte> inputs[max_tensors], outputs[max_tensors];
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

}  // namespace

// One image, or a few, are computed by all threads together. As many images as threads, or more, are computed by one
// single-threaded model in as many streams; docs/design.md says why. Both give the same bits. The second model, with
// its own copy of the weights, is loaded when the first such batch comes.
struct Session::Impl {
  Manifest manifest;
  std::filesystem::path file;
  int threads;
  int max_batch;
  std::optional<int> fixed_batch;
  OnnxModel whole;
  mutable std::mutex making;
  mutable std::unique_ptr<OnnxModel> single_threaded;
  mutable std::unique_ptr<ThreadPool> pool;
  mutable Scratches scratches;

  Impl(Manifest known, std::filesystem::path path, const LoadOptions& options)
      : manifest(std::move(known)),
        file(std::move(path)),
        threads(options.threads.value_or(usable_processors())),
        whole(file, threads, manifest.inputs, manifest.outputs) {
    const Axis& batch = manifest.inputs.front().shape.front();
    if (batch.fixed()) fixed_batch = static_cast<int>(batch.size);
    max_batch = fixed_batch.value_or(options.max_batch.value_or(default_max_batch));
  }

  std::size_t input_count() const noexcept { return manifest.inputs.size(); }
  std::size_t output_count() const noexcept { return manifest.outputs.size(); }

  ThreadPool& threads_of_session() const {
    const std::lock_guard<std::mutex> lock(making);
    if (!pool) pool = std::make_unique<ThreadPool>(threads);
    return *pool;
  }

  const OnnxModel& stream_model() const {
    const std::lock_guard<std::mutex> lock(making);
    if (!single_threaded) {
      single_threaded = std::make_unique<OnnxModel>(file, 1, manifest.inputs, manifest.outputs);
    }
    return *single_threaded;
  }

  void run(const Feeds& feeds, const Results& results) const {
    const std::int64_t rows = feeds.rows();
    for (std::int64_t start = 0; start < rows; start += max_batch) {
      const std::int64_t stop = std::min<std::int64_t>(start + max_batch, rows);
      if (fixed_batch && stop - start < *fixed_batch) {
        run_padded(feeds, results, start, stop);
      } else {
        execute(feeds, results, start, stop);
      }
    }
  }

  void run_rows(const OnnxModel& model, const Feeds& feeds, const Results& results, std::int64_t start,
                std::int64_t stop) const {
    Binding inputs[max_tensors], outputs[max_tensors];
    for (std::size_t i = 0; i < input_count(); ++i) inputs[i] = feeds.tensors[i].rows(start, stop);
    for (std::size_t i = 0; i < output_count(); ++i) outputs[i] = results.tensors[i].rows(start, stop);
    model.run(inputs, outputs);
  }

  // Rows start..stop, which the backend takes as they are.
  void execute(const Feeds& feeds, const Results& results, std::int64_t start, std::int64_t stop) const {
    const std::int64_t rows = stop - start;
    if (fixed_batch || threads < 2 || rows < threads) return run_rows(whole, feeds, results, start, stop);
    const std::int64_t shared = start + rows - rows % threads;
    stream(feeds, results, start, shared);
    if (shared < stop) run_rows(whole, feeds, results, shared, stop);
  }

  void stream(const Feeds& feeds, const Results& results, std::int64_t start, std::int64_t stop) const {
    struct Part {
      const Impl& session;
      const OnnxModel& model;
      const Feeds& feeds;
      const Results& results;
      std::int64_t start, stop, step;
    };
    const std::int64_t rows = stop - start, step = std::min(rows_per_stream_run, rows / threads);
    Part part{*this, stream_model(), feeds, results, start, stop, step};
    const auto work = [](void* context, std::size_t index) {
      const Part& p = *static_cast<Part*>(context);
      const std::int64_t from = p.start + static_cast<std::int64_t>(index) * p.step;
      p.session.run_rows(p.model, p.feeds, p.results, from, std::min(from + p.step, p.stop));
    };
    threads_of_session().run(static_cast<std::size_t>((rows + step - 1) / step), work, &part);
  }

  // Fewer rows than the model's fixed batch: zeros behind them, and only their results are copied out.
  void run_padded(const Feeds& feeds, const Results& results, std::int64_t start, std::int64_t stop) const {
    auto scratch = scratches.take();
    const auto rows = static_cast<std::size_t>(stop - start), whole_batch = static_cast<std::size_t>(*fixed_batch);
    Binding inputs[max_tensors], outputs[max_tensors];
    for (std::size_t i = 0; i < input_count(); ++i) {
      const Binding part = feeds.tensors[i].rows(start, stop);
      const std::size_t row_bytes = part.row_bytes();
      auto& bytes = scratch->inputs[i];
      bytes.resize(row_bytes * whole_batch);
      std::memcpy(bytes.data(), part.data, row_bytes * rows);
      std::memset(bytes.data() + row_bytes * rows, 0, row_bytes * (whole_batch - rows));
      inputs[i] = part;
      inputs[i].shape[0] = *fixed_batch;
      inputs[i].data = bytes.data();
    }
    for (std::size_t i = 0; i < output_count(); ++i) {
      auto& bytes = scratch->outputs[i];
      outputs[i] = results.tensors[i];
      outputs[i].shape[0] = *fixed_batch;
      bytes.resize(outputs[i].row_bytes() * whole_batch);
      outputs[i].data = bytes.data();
    }
    whole.run(inputs, outputs);
    for (std::size_t i = 0; i < output_count(); ++i) {
      const Binding target = results.tensors[i].rows(start, stop);
      std::memcpy(target.data, outputs[i].data, target.row_bytes() * rows);
    }
    scratches.give_back(std::move(scratch));
  }

  // Where the manifest leaves an output's size open, ONNX Runtime says it: part by part, without streams.
  std::vector<Tensor> run_open(const Feeds& feeds) const {
    struct Collector {
      std::vector<Tensor> tensors;
      std::size_t rows;
    } collector{std::vector<Tensor>(output_count()), 0};
    const auto take = [](void* context, std::size_t output, const Binding& value) {
      auto& all = *static_cast<Collector*>(context);
      Tensor& tensor = all.tensors[output];
      tensor.shape.assign(value.shape, value.shape + value.rank);
      const auto* data = static_cast<const std::byte*>(value.data);
      tensor.bytes.insert(tensor.bytes.end(), data, data + value.row_bytes() * all.rows);
    };
    const std::int64_t rows = feeds.rows();
    for (std::int64_t start = 0; start < rows; start += max_batch) {
      const std::int64_t stop = std::min<std::int64_t>(start + max_batch, rows);
      collector.rows = static_cast<std::size_t>(stop - start);
      run_open_part(feeds, start, stop, take, &collector);
    }
    for (std::size_t i = 0; i < output_count(); ++i) {
      collector.tensors[i].name = manifest.outputs[i].name;
      collector.tensors[i].dtype = manifest.outputs[i].dtype;
      collector.tensors[i].shape[0] = rows;
    }
    return std::move(collector.tensors);
  }

  void run_open_part(const Feeds& feeds, std::int64_t start, std::int64_t stop, OnnxModel::Take take,
                     void* context) const {
    const auto rows = static_cast<std::size_t>(stop - start);
    const auto taken = fixed_batch ? static_cast<std::size_t>(*fixed_batch) : rows;
    std::vector<std::byte> padded[max_tensors];
    Binding inputs[max_tensors], outputs[max_tensors];
    for (std::size_t i = 0; i < input_count(); ++i) {
      inputs[i] = feeds.tensors[i].rows(start, stop);
      if (taken == rows) continue;
      const std::size_t row_bytes = inputs[i].row_bytes();
      padded[i].resize(row_bytes * taken);
      std::memcpy(padded[i].data(), inputs[i].data, row_bytes * rows);
      inputs[i].shape[0] = *fixed_batch;
      inputs[i].data = padded[i].data();
    }
    whole.run(inputs, outputs, take, context);
  }
};

std::string backend_version() { return OnnxModel::version(); }

Session::Session(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Session Session::load(const std::filesystem::path& folder, const LoadOptions& options) {
  check_options(options);
  Manifest manifest = read_manifest(folder);
  check_manifest(manifest, folder, options);
  const std::string name = manifest.file_for(options.role.empty() ? "cpu" : options.role).name;
  const auto file = checked_file(folder, manifest, name);
  manifest.model.file = name;
  return Session(std::make_unique<Impl>(std::move(manifest), file, options));
}

const std::vector<TensorSpec>& Session::inputs() const noexcept { return impl_->manifest.inputs; }
const std::vector<TensorSpec>& Session::outputs() const noexcept { return impl_->manifest.outputs; }
const ModelInfo& Session::model() const noexcept { return impl_->manifest.model; }
const std::vector<std::string>& Session::labels() const noexcept { return impl_->manifest.labels; }
const std::optional<Preprocessing>& Session::preprocessing() const noexcept { return impl_->manifest.preprocessing; }
int Session::threads() const noexcept { return impl_->threads; }
int Session::max_batch() const noexcept { return impl_->max_batch; }
std::optional<int> Session::fixed_batch() const noexcept { return impl_->fixed_batch; }

void Session::run(const TensorView* inputs, std::size_t input_count, const MutableTensorView* outputs,
                  std::size_t output_count) const {
  const Feeds feeds = checked_feeds(impl_->manifest.inputs, inputs, input_count);
  impl_->run(feeds, checked_results(impl_->manifest.outputs, outputs, output_count, feeds.rows()));
}

std::vector<Tensor> Session::run(const std::vector<TensorView>& inputs) const {
  const auto& specs = impl_->manifest.outputs;
  const Feeds feeds = checked_feeds(impl_->manifest.inputs, inputs.data(), inputs.size());
  const auto open = [](const TensorSpec& spec) {
    return std::any_of(spec.shape.begin() + 1, spec.shape.end(), [](const Axis& axis) { return !axis.fixed(); });
  };
  if (std::any_of(specs.begin(), specs.end(), open)) return impl_->run_open(feeds);
  std::vector<Tensor> tensors(specs.size());
  Results results;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    Tensor& tensor = tensors[i];
    tensor.name = specs[i].name;
    tensor.dtype = specs[i].dtype;
    tensor.shape.push_back(feeds.rows());
    for (std::size_t axis = 1; axis < specs[i].shape.size(); ++axis) tensor.shape.push_back(specs[i].shape[axis].size);
    tensor.bytes.resize(tensor.count() * item_bytes(tensor.dtype));
    results.tensors[i] = binding(tensor.dtype, tensor.shape.data(), tensor.shape.size(), tensor.bytes.data());
  }
  impl_->run(feeds, results);
  return tensors;
}

void Session::warmup(int rows, int runs, int height, int width) const {
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::vector<std::byte>> zeros;
  std::vector<TensorView> views;
  for (const TensorSpec& spec : inputs()) {
    auto& shape = shapes.emplace_back();
    std::size_t bytes = item_bytes(spec.dtype);
    for (std::size_t axis = 0; axis < spec.shape.size(); ++axis) {
      const std::int64_t open = spec.layout[axis] == 'H' ? height : width;
      shape.push_back(axis == 0 ? rows : spec.shape[axis].fixed() ? spec.shape[axis].size : open);
      bytes *= static_cast<std::size_t>(std::max<std::int64_t>(shape.back(), 0));
    }
    zeros.emplace_back(bytes);
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    views.push_back({inputs()[i].name, inputs()[i].dtype, shapes[i].data(), shapes[i].size(), zeros[i].data()});
  }
  for (int i = 0; i < runs; ++i) run(views);
}

void Session::parallel(std::size_t count, void (*work)(void*, std::size_t), void* context) const {
  impl_->threads_of_session().run(count, work, context);
}

}  // namespace mlpdeploy
