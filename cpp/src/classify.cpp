#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>
#include <system_error>

#include "mlpdeploy/session.h"
#include "text.h"

namespace mlpdeploy {

namespace {

namespace fs = std::filesystem;

// As in mlpdeploy/images.py. A folder's pictures of the other formats are found and refused, not passed over.
const std::vector<std::string> suffixes = {".jpg",  ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif",
                                           ".tiff", ".gif",  ".ppm",  ".pgm", ".pbm",  ".pnm"};

bool is_picture(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return std::find(suffixes.begin(), suffixes.end(), suffix) != suffixes.end();
}

bool hidden(const fs::path& path) { return path.filename().string().rfind('.', 0) == 0; }

std::vector<fs::path> images_under(const fs::path& folder) {
  std::vector<fs::path> found;
  try {
    for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::recursive_directory_iterator(); ++entry) {
      if (hidden(entry->path())) {
        if (entry->is_directory()) entry.disable_recursion_pending();
      } else if (!entry->is_directory() && is_picture(entry->path())) {
        found.push_back(entry->path());
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::usage, error.path1().string() + " cannot be listed (" + error.code().message() + ")", "",
                "make it readable");
  }
  if (found.empty()) {
    throw Error(ErrorKind::usage, folder.string() + " holds no image", "files that end in " + join(suffixes, ", "));
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<fs::path> find_images(const std::vector<fs::path>& paths) {
  std::vector<fs::path> found;
  for (const fs::path& path : paths) {
    std::error_code failed;
    if (fs::is_directory(path, failed)) {
      const auto under = images_under(path);
      found.insert(found.end(), under.begin(), under.end());
    } else if (fs::exists(path, failed)) {
      found.push_back(path);
    } else {
      throw Error(ErrorKind::usage, path.string() + " does not exist", "an image file or a folder of them");
    }
  }
  if (found.empty()) throw Error(ErrorKind::usage, "no image is given", "image files or folders of them");
  return found;
}

// One picture: its tensor is written, or `error` says why not.
struct Slot {
  const fs::path* path = nullptr;
  std::optional<Error> error;
};

struct Part {
  const Preprocessor& prepare;
  std::vector<Slot> slots;
  std::vector<float> pixels;  // count() floats a slot

  void fill(std::size_t index) {
    Slot& slot = slots[index];
    try {
      const Image image = read_image(*slot.path);
      try {
        prepare(image.view(), pixels.data() + index * prepare.count());
      } catch (const Error& error) {
        slot.error.emplace(error.kind(), slot.path->string() + ": " + error.got(), error.wanted(), error.fix());
      }
    } catch (const Error& error) {
      slot.error.emplace(error);
    }
  }
};

void run_part(const Session& session, Part& part, const ClassifyOptions& options,
              std::vector<Prediction>& predictions) {
  session.parallel(
      part.slots.size(), [](void* context, std::size_t index) { static_cast<Part*>(context)->fill(index); }, &part);
  std::size_t good = 0;
  const std::size_t count = part.prepare.count();
  for (std::size_t i = 0; i < part.slots.size(); ++i) {
    if (part.slots[i].error) {
      if (!options.skip_bad) throw *part.slots[i].error;
      continue;
    }
    if (good != i) std::copy_n(part.pixels.data() + i * count, count, part.pixels.data() + good * count);
    ++good;
  }
  std::vector<Tensor> outputs;
  if (good) {
    const Preprocessing& p = *session.preprocessing();
    const std::int64_t shape[] = {static_cast<std::int64_t>(good), p.channels(), p.height, p.width};
    const TensorSpec& input = session.inputs().front();
    outputs = session.run({{input.name, DType::float32, shape, 4, part.pixels.data()}});
  }
  std::size_t row = 0;
  for (const Slot& slot : part.slots) {
    Prediction prediction;
    prediction.path = slot.path->string();
    if (slot.error) {
      prediction.error = slot.error->what();
    } else {
      const auto classes = static_cast<std::size_t>(outputs.front().shape[1]);
      const float* logits = outputs.front().float32() + classes * row++;
      prediction.top = best_classes(session, logits, classes, options.top, prediction.path);
    }
    predictions.push_back(std::move(prediction));
  }
}

}  // namespace

void check_classifier(const Session& session) {
  const TensorSpec& output = session.outputs().front();
  if (output.layout != "NK") {
    std::vector<std::string> sizes;
    for (const Axis& axis : output.shape) sizes.push_back(axis.fixed() ? std::to_string(axis.size) : axis.symbol);
    throw Error(ErrorKind::usage, "the artifact gives feature maps (" + output.layout + ": " + join(sizes, ", ") + ")",
                "a classifier that gives logits", "run it with Session::run");
  }
  if (!session.preprocessing() || session.inputs().size() != 1) {
    throw Error(ErrorKind::usage, "the artifact does not say how a photograph becomes its input",
                "an artifact with preprocessing and one input", "prepare the input yourself, and use Session::run");
  }
  for (const auto* spec : {&session.inputs().front(), &output}) {
    if (spec->dtype != DType::float32) {
      throw Error(ErrorKind::usage, spec->name + " is " + dtype_name(spec->dtype), "float32",
                  "prepare the input yourself, and use Session::run");
    }
  }
}

std::vector<ClassScore> best_classes(const Session& session, const float* logits, std::size_t classes, int top,
                                     const std::string& name) {
  const auto& labels = session.labels();
  if (!labels.empty() && labels.size() != classes) {
    throw Error(ErrorKind::artifact, "the artifact has " + std::to_string(labels.size()) + " labels",
                std::to_string(classes) + ", one for each class");
  }
  if (!std::all_of(logits, logits + classes, [](float value) { return std::isfinite(value); })) {
    throw Error(ErrorKind::verification, name + ": the model gives scores that are not finite numbers", "",
                "check it with mlpdeploy verify");
  }
  // One logit is told beside a zero: its sigmoid.
  const bool alone = classes == 1;
  const double largest = std::max<double>(*std::max_element(logits, logits + classes), alone ? 0.0 : -INFINITY);
  double sum = alone ? std::exp(-largest) : 0.0;
  for (std::size_t i = 0; i < classes; ++i) sum += std::exp(logits[i] - largest);
  std::vector<int> order(classes);
  std::iota(order.begin(), order.end(), 0);
  // Of equal scores the lower index comes first.
  std::stable_sort(order.begin(), order.end(), [&](int one, int other) { return logits[one] > logits[other]; });
  std::vector<ClassScore> best;
  for (std::size_t i = 0; i < std::min(static_cast<std::size_t>(std::max(top, 0)), classes); ++i) {
    const int index = order[i];
    const auto place = static_cast<std::size_t>(index);
    best.push_back({index, labels.empty() ? "" : labels[place], std::exp(logits[index] - largest) / sum});
  }
  return best;
}

std::vector<Prediction> classify(const Session& session, const std::vector<fs::path>& images,
                                 const ClassifyOptions& options) {
  if (options.top < 1) throw Error(ErrorKind::usage, "top is " + std::to_string(options.top), "at least 1");
  check_classifier(session);
  const Preprocessor prepare(*session.preprocessing());
  const auto paths = find_images(images);
  const auto rows = static_cast<std::size_t>(session.max_batch());
  std::vector<Prediction> predictions;
  for (std::size_t start = 0; start < paths.size(); start += rows) {
    Part part{prepare, {}, {}};
    part.slots.resize(std::min(rows, paths.size() - start));
    part.pixels.resize(part.slots.size() * prepare.count());
    for (std::size_t i = 0; i < part.slots.size(); ++i) part.slots[i].path = &paths[start + i];
    run_part(session, part, options, predictions);
  }
  return predictions;
}

}  // namespace mlpdeploy
