#include "mlpdeploy/session.h"

#include <algorithm>
#include <string>

#include "bindings.h"
#include "device.h"
#include "frame_batch.h"
#include "manifest.h"
#include "onnx_streams.h"
#include "processors.h"
#include "tensorrt/tensorrt.h"
#include "text.h"
#include "thread_pool.h"

namespace mlpdeploy {

namespace {

void check_options(const LoadOptions& options) {
  if (options.backend != "onnxruntime" && options.backend != tensorrt_name) {
    throw Error(ErrorKind::usage, "unknown backend " + repr(options.backend), "",
                closest(options.backend, {"onnxruntime", tensorrt_name}));
  }
  if (!options.device.empty() && options.device != "cpu" && !names_gpu(options.device)) {
    throw Error(ErrorKind::usage, "unknown device " + repr(options.device), "cpu or cuda");
  }
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
  if (options.backend != tensorrt_name && !options.role.empty() &&
      std::find(roles.begin(), roles.end(), options.role) == roles.end()) {
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

// On the session's threads, a frame each.
void convert_frames(const Session& session, const FrameBatch& batch, const Binding& tensor) {
  struct Work {
    const FrameBatch& batch;
    const Binding& tensor;
  } all{batch, tensor};
  const auto work = [](void* context, std::size_t index) {
    const Work& w = *static_cast<Work*>(context);
    const auto row = static_cast<std::int64_t>(index);
    convert_frame(w.batch.format, w.batch.frames[index], w.tensor.rows(row, row + 1).data);
  };
  session.parallel(static_cast<std::size_t>(tensor.shape[0]), work, &all);
}

}  // namespace

struct Session::Impl {
  Manifest manifest;
  int threads;
  std::string backend_name;
  mutable SharedPool pool;
  std::unique_ptr<Backend> backend;
  std::optional<FrameFormat> frames;

  Impl(Manifest known, const std::filesystem::path& folder, const LoadOptions& options)
      : manifest(std::move(known)),
        threads(options.threads.value_or(usable_processors())),
        backend_name(options.backend),
        pool(threads),
        frames(frame_format(manifest)) {
    if (backend_name == tensorrt_name) {
      backend = open_tensorrt(folder, manifest, options, manifest.model.file);
      return;
    }
    backend = open_onnxruntime(folder, manifest, options, pool, manifest.model.file);
  }
};

Session::Session(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Session Session::load(const std::filesystem::path& folder, const LoadOptions& options) {
  check_options(options);
  Manifest manifest = read_manifest(folder);
  check_manifest(manifest, folder, options);
  return Session(std::make_unique<Impl>(std::move(manifest), folder, options));
}

const std::vector<TensorSpec>& Session::inputs() const noexcept { return impl_->manifest.inputs; }
const std::vector<TensorSpec>& Session::outputs() const noexcept { return impl_->manifest.outputs; }
const ModelInfo& Session::model() const noexcept { return impl_->manifest.model; }
const std::vector<std::string>& Session::labels() const noexcept { return impl_->manifest.labels; }
const std::optional<Preprocessing>& Session::preprocessing() const noexcept { return impl_->manifest.preprocessing; }
int Session::threads() const noexcept { return impl_->threads; }
int Session::lanes() const noexcept { return impl_->backend->lanes(); }
int Session::max_batch() const noexcept { return impl_->backend->max_batch(); }
const std::string& Session::backend() const noexcept { return impl_->backend_name; }
std::string Session::backend_version() const { return impl_->backend->version(); }
std::string Session::kernels() const { return impl_->backend->kernels(); }
std::vector<GraphNote> Session::graphs() const { return impl_->backend->graphs(); }

std::optional<int> Session::fixed_batch() const noexcept {
  const Axis& batch = inputs().front().shape.front();
  return batch.fixed() ? std::optional<int>(static_cast<int>(batch.size)) : std::nullopt;
}

void Session::run(const TensorView* inputs, std::size_t input_count, const MutableTensorView* outputs,
                  std::size_t output_count) const {
  const Feeds feeds = checked_feeds(impl_->manifest.inputs, inputs, input_count);
  impl_->backend->run(feeds,
                      checked_results(impl_->manifest.outputs, outputs, output_count, impl_->manifest.inputs, feeds));
}

std::vector<Tensor> Session::run(const std::vector<TensorView>& inputs) const {
  const auto& specs = impl_->manifest.outputs;
  const Feeds feeds = checked_feeds(impl_->manifest.inputs, inputs.data(), inputs.size());
  const auto open = [](const TensorSpec& spec) {
    return std::any_of(spec.shape.begin() + 1, spec.shape.end(), [](const Axis& axis) { return !axis.fixed(); });
  };
  if (std::any_of(specs.begin(), specs.end(), open)) return impl_->backend->run_open(feeds);
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
  impl_->backend->run(feeds, results);
  return tensors;
}

std::string Session::frames() const { return impl_->backend->frames_note(); }

void Session::run_frames(const ImageView* frames, std::size_t count, const MutableTensorView* outputs,
                         std::size_t output_count) const {
  const TensorSpec& input = inputs().front();
  std::int64_t shape[4] = {};
  frame_shape(impl_->manifest, impl_->frames, frames, count, shape);
  const FrameBatch batch{*impl_->frames, frames};
  // Stands for the data where there is none: the sizes are checked as those of any input.
  TensorView view{input.name, input.dtype, shape, 4, frames};
  Feeds feeds = checked_feeds(impl_->manifest.inputs, &view, 1);
  const Results results =
      checked_results(impl_->manifest.outputs, outputs, output_count, impl_->manifest.inputs, feeds);
  std::vector<std::byte> tensor;
  if (impl_->backend->takes_frames()) {
    feeds.frames = &batch;
    feeds.tensors[0].data = nullptr;
  } else {
    tensor.resize(feeds.tensors[0].row_bytes() * count);
    feeds.tensors[0].data = tensor.data();
    convert_frames(*this, batch, feeds.tensors[0]);
  }
  impl_->backend->run(feeds, results);
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
  impl_->backend->prepare(checked_feeds(inputs(), views.data(), views.size()), runs);
  for (int i = 0; i < runs; ++i) run(views);
}

void Session::parallel(std::size_t count, void (*work)(void*, std::size_t), void* context) const {
  impl_->pool.get().run(count, work, context);
}

}  // namespace mlpdeploy
