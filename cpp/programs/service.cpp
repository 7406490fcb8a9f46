#include "service.h"

#include <algorithm>
#include <atomic>

#include "json.h"
#include "predictions.h"

using mlpdeploy::Error;
using mlpdeploy::Json;

namespace {

constexpr int max_decoders = 4;  // each may hold one picture in full size

std::string error_line(std::size_t frame, const std::string& why) {
  Json line = Json::object();
  line.set("frame", static_cast<std::int64_t>(frame));
  line.set("error", why);
  return mlpdeploy::json_line(line);
}

}  // namespace

Service::Service(const mlpdeploy::Session& session, const ServiceOptions& options)
    : session_(session),
      options_(options),
      prepare_(*session.preprocessing()),
      batching_(session, options.batching),
      jobs_(static_cast<std::size_t>(options.batching.max_batch)) {
  try {
    for (int i = 0; i < std::min(max_decoders, session.threads()); ++i) decoders_.emplace_back([this] { decode(); });
  } catch (...) {
    stop();  // those that were started
    throw;
  }
}

Service::~Service() { stop(); }

void Service::stop() {
  jobs_.close();
  for (auto& decoder : decoders_) decoder.join();
}

bool Service::converse(FrameReader::Source source, const std::function<bool(const std::string&)>& write) {
  Channel<Answer> answers(options_.batching.queue_limit);
  std::atomic<bool> fine{true};
  std::thread writer([&] {
    while (auto answer = answers.pop()) {
      const std::string text = line(std::move(*answer));
      if (fine && !write(text)) {
        fine = false;
        answers.close();  // nobody listens: the reader stops at its next frame
      }
    }
  });
  FrameReader frames(std::move(source), options_.max_frame_bytes);
  std::string broken;
  std::size_t index = 0;
  try {
    while (auto file = frames.next()) {
      Job job{"frame " + std::to_string(index), std::move(*file), {}};
      if (!answers.push({index, job.name, job.outcome.get_future()}) || !jobs_.push(std::move(job))) break;
      ++index;
    }
  } catch (const std::exception& error) {  // also that there is no memory for a frame
    broken = error.what();
  }
  answers.close();
  writer.join();
  if (!broken.empty()) fine = write(error_line(index, broken)) && false;
  return fine;
}

void Service::decode() {
  while (auto job = jobs_.pop()) {
    try {
      job->outcome.set_value(outcome_of(*job));
    } catch (...) {
      job->outcome.set_exception(std::current_exception());
    }
  }
}

Service::Outcome Service::outcome_of(const Job& job) {
  try {
    if (job.file.empty()) throw Error(mlpdeploy::ErrorKind::image, job.name + " is empty", "an image file");
    const auto image = mlpdeploy::decode_image(job.file.data(), job.file.size(), job.name);
    std::vector<float> pixels(prepare_.count());
    prepare_(image.view(), pixels.data());
    const auto& p = *session_.preprocessing();
    const std::int64_t shape[] = {1, p.channels(), p.height, p.width};
    return batching_.submit({session_.inputs().front().name, mlpdeploy::DType::float32, shape, 4, pixels.data()});
  } catch (const Error& error) {
    return std::string(error.what());
  }
}

std::string Service::line(Answer answer) const {
  try {
    Outcome outcome = answer.outcome.get();
    if (auto* why = std::get_if<std::string>(&outcome)) return error_line(answer.frame, *why);
    const auto outputs = std::get<mlpdeploy::BatchingSession::Request>(outcome).get();
    const auto classes = static_cast<std::size_t>(outputs.front().shape[1]);
    Json line = Json::object();
    line.set("frame", static_cast<std::int64_t>(answer.frame));
    line.set("top",
             json_of(mlpdeploy::best_classes(session_, outputs.front().float32(), classes, options_.top, answer.name)));
    return mlpdeploy::json_line(line);
  } catch (const std::exception& error) {
    return error_line(answer.frame, error.what());
  }
}
