#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlpdeploy.h"
#include "mlpdeploy/session.h"

struct mlpdeploy_session {
  mlpdeploy::Session session;
  std::optional<mlpdeploy::Preprocessor> prepare;
  std::vector<std::vector<std::int64_t>> shapes;  // of inputs, then outputs; 0 for a symbolic axis
};

namespace {

using mlpdeploy::Error;
using mlpdeploy::ErrorKind;

constexpr int failed = 1;

thread_local std::string last_error;  // NOLINT: the C interface's memory

// Runs `work`; no exception crosses the C interface.
template <typename Work>
int guard(Work&& work) noexcept {
  try {
    work();
    return 0;
  } catch (const Error& error) {
    try {
      last_error = error.what();
    } catch (...) {
      last_error.clear();
    }
    return error.exit_code();
  } catch (const std::exception& error) {
    try {
      last_error = error.what();
    } catch (...) {
      last_error.clear();
    }
    return failed;
  } catch (...) {
    last_error.clear();
    return failed;
  }
}

[[noreturn]] void refuse(const std::string& got, const std::string& wanted) {
  throw Error(ErrorKind::usage, got, wanted);
}

template <typename T>
T* given(T* pointer, const char* what) {
  if (!pointer) refuse(std::string(what) + " is NULL", "a pointer");
  return pointer;
}

mlpdeploy::LoadOptions options_of(const mlpdeploy_options* options) {
  mlpdeploy::LoadOptions result;
  if (!options) return result;
  if (options->backend && *options->backend) result.backend = options->backend;
  if (options->device) result.device = options->device;
  if (options->role) result.role = options->role;
  if (options->threads != 0) result.threads = options->threads;
  if (options->max_batch != 0) result.max_batch = options->max_batch;
  return result;
}

mlpdeploy::DType dtype_of(const char* name) {
  using mlpdeploy::DType;
  const std::string wanted = given(name, "a tensor's dtype");
  for (const DType dtype :
       {DType::float32, DType::float64, DType::float16, DType::int64, DType::int32, DType::uint8, DType::int8}) {
    if (wanted == mlpdeploy::dtype_name(dtype)) return dtype;
  }
  refuse("dtype " + wanted, "a name such as float32");
}

template <typename View>
View view_of(const mlpdeploy_tensor& tensor) {
  View view;
  view.name = given(tensor.name, "a tensor's name");
  view.dtype = dtype_of(tensor.dtype);
  view.shape = given(tensor.shape, "a tensor's shape");
  view.rank = tensor.rank;
  view.data = given(tensor.data, "a tensor's data");
  return view;
}

template <typename View>
std::vector<View> views_of(const mlpdeploy_tensor* tensors, std::size_t count) {
  std::vector<View> views;
  for (std::size_t i = 0; i < count; ++i) views.push_back(view_of<View>(given(tensors, "the tensors")[i]));
  return views;
}

int describe(const mlpdeploy_session* session, bool output, std::size_t index, mlpdeploy_spec* spec) {
  return guard([&] {
    const auto& inputs = given(session, "session")->session.inputs();
    const auto& specs = output ? session->session.outputs() : inputs;
    const std::size_t first = output ? inputs.size() : 0;
    given(spec, "spec");
    if (index >= specs.size()) refuse("index " + std::to_string(index), "below " + std::to_string(specs.size()));
    const auto& found = specs[index];
    const auto& shape = session->shapes[first + index];
    *spec = {found.name.c_str(), mlpdeploy::dtype_name(found.dtype), found.layout.c_str(), shape.data(), shape.size()};
  });
}

const mlpdeploy::Preprocessor& preparer(const mlpdeploy_session* session, std::size_t count) {
  const auto& prepare = given(session, "session")->prepare;
  if (!prepare) {
    refuse("the artifact does not say how a photograph becomes its input", "an artifact with preprocessing");
  }
  if (count != prepare->count()) {
    refuse("room for " + std::to_string(count) + " floats", std::to_string(prepare->count()));
  }
  return *prepare;
}

}  // namespace

extern "C" {

int mlpdeploy_load(const char* folder, const mlpdeploy_options* options, mlpdeploy_session** session) {
  return guard([&] {
    *given(session, "session") = nullptr;
    auto loaded = std::make_unique<mlpdeploy_session>(
        mlpdeploy_session{mlpdeploy::Session::load(given(folder, "folder"), options_of(options)), std::nullopt, {}});
    if (loaded->session.preprocessing()) loaded->prepare.emplace(*loaded->session.preprocessing());
    for (const auto* specs : {&loaded->session.inputs(), &loaded->session.outputs()}) {
      for (const auto& spec : *specs) {
        auto& shape = loaded->shapes.emplace_back();
        for (const auto& axis : spec.shape) shape.push_back(axis.size);
      }
    }
    *session = loaded.release();
  });
}

void mlpdeploy_free(mlpdeploy_session* session) { delete session; }

size_t mlpdeploy_input_count(const mlpdeploy_session* session) {
  return session ? session->session.inputs().size() : 0;
}

size_t mlpdeploy_output_count(const mlpdeploy_session* session) {
  return session ? session->session.outputs().size() : 0;
}

int mlpdeploy_input(const mlpdeploy_session* session, size_t index, mlpdeploy_spec* spec) {
  return describe(session, false, index, spec);
}

int mlpdeploy_output(const mlpdeploy_session* session, size_t index, mlpdeploy_spec* spec) {
  return describe(session, true, index, spec);
}

int mlpdeploy_run(mlpdeploy_session* session, const mlpdeploy_tensor* inputs, size_t input_count,
                  const mlpdeploy_tensor* outputs, size_t output_count) {
  return guard([&] {
    const auto feeds = views_of<mlpdeploy::TensorView>(inputs, input_count);
    const auto results = views_of<mlpdeploy::MutableTensorView>(outputs, output_count);
    given(session, "session")->session.run(feeds.data(), feeds.size(), results.data(), results.size());
  });
}

int mlpdeploy_run_frames(mlpdeploy_session* session, const mlpdeploy_frame* frames, size_t frame_count,
                         const mlpdeploy_tensor* outputs, size_t output_count) {
  return guard([&] {
    std::vector<mlpdeploy::ImageView> views;
    for (size_t i = 0; i < frame_count; ++i) {
      const mlpdeploy_frame& frame = given(frames, "the frames")[i];
      const auto order = frame.bgr ? mlpdeploy::PixelOrder::bgr : mlpdeploy::PixelOrder::rgb;
      views.push_back({frame.pixels, frame.height, frame.width, frame.stride_bytes, order});
    }
    const auto results = views_of<mlpdeploy::MutableTensorView>(outputs, output_count);
    given(session, "session")->session.run_frames(views.data(), views.size(), results.data(), results.size());
  });
}

int mlpdeploy_prepare_file(const mlpdeploy_session* session, const char* path, float* out, size_t count) {
  return guard([&] {
    const auto& prepare = preparer(session, count);
    prepare(mlpdeploy::read_image(given(path, "path")).view(), given(out, "out"));
  });
}

int mlpdeploy_prepare_pixels(const mlpdeploy_session* session, const uint8_t* pixels, int height, int width,
                             ptrdiff_t stride_bytes, float* out, size_t count) {
  return guard([&] { preparer(session, count)({pixels, height, width, stride_bytes}, given(out, "out")); });
}

const char* mlpdeploy_label(const mlpdeploy_session* session, size_t index) {
  return session && index < session->session.labels().size() ? session->session.labels()[index].c_str() : "";
}

const char* mlpdeploy_last_error(void) { return last_error.c_str(); }

}  // extern "C"
