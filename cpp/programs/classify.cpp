#include <cstdio>

#include "commands.h"
#include "json.h"
#include "predictions.h"

Command classify_command() {
  const mlpdeploy::ClassifyOptions defaults;
  return {"classify",
          "FOLDER IMAGE...",
          "Classify photographs (JPEG or PNG), or folders of them.",
          2,
          static_cast<std::size_t>(-1),
          {{"--top", "N", std::to_string(defaults.top), "classes to name per image"},
           {"--batch", "N", "8", "images that go through the model at once"},
           {"--skip-bad", "", "", "name images that cannot be read, and go on"},
           backend_option(),
           device_option(),
           threads_option(),
           {"--json", "", "", "print JSON instead of text"}},
          "Example: mlpdeploy-infer classify asmlp_s photo.jpg --top 3"};
}

int run_classify(const Arguments& arguments) {
  using mlpdeploy::Json;
  mlpdeploy::ClassifyOptions options;
  options.top = arguments.number("--top");
  options.skip_bad = arguments.has("--skip-bad");
  const auto session = loaded(arguments, arguments.number("--batch"));
  const auto& words = arguments.operands();
  const auto predictions = mlpdeploy::classify(session, {words.begin() + 1, words.end()}, options);
  if (arguments.has("--json")) {
    Json images = Json::array();
    for (const auto& prediction : predictions) {
      Json image = Json::object();
      image.set("path", prediction.path);
      image.set("top", json_of(prediction.top));
      image.set("error", prediction.error.empty() ? Json() : Json(prediction.error));
      images.add(std::move(image));
    }
    Json document = Json::object();
    document.set("model", session.model().name);
    document.set("weights", session.model().source);
    document.set("images", std::move(images));
    std::puts(mlpdeploy::indented_json(document).c_str());
    return 0;
  }
  for (const auto& prediction : predictions) {
    std::printf("%s%s%s\n", prediction.path.c_str(), prediction.error.empty() ? "" : ": ", prediction.error.c_str());
    for (const auto& score : prediction.top) {
      std::printf("  %5.1f %%  %s (%d)\n", 100 * score.probability, score.label.c_str(), score.index);
    }
  }
  if (session.model().random_weights) {
    std::fputs("note: random weights: the classes mean nothing, the speed and the equality with PyTorch do\n", stderr);
  }
  return 0;
}
