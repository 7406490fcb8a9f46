// Frames in, one line of JSON per frame out, in their order: what `serve` does with one stream.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "channel.h"
#include "frames.h"
#include "mlpdeploy/session.h"

struct ServiceOptions {
  int top;
  std::size_t max_frame_bytes;
  mlpdeploy::BatchingOptions batching;
};

// Decodes frames on threads of its own and runs them in batches, for any number of streams at once.
class Service {
 public:
  Service(const mlpdeploy::Session& session, const ServiceOptions& options);
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  ~Service();

  // Serves one stream to its end. `write` gets one line at a time and says whether it could be written.
  // False where the stream ended inside of a frame, a frame was too long, or writing failed.
  bool converse(FrameReader::Source source, const std::function<bool(const std::string& line)>& write);

 private:
  using Outcome = std::variant<mlpdeploy::BatchingSession::Request, std::string>;  // or why there is none

  struct Job {
    std::string name;
    std::vector<std::uint8_t> file;
    std::promise<Outcome> outcome;
  };

  struct Answer {
    std::size_t frame;
    std::string name;
    std::future<Outcome> outcome;
  };

  const mlpdeploy::Session& session_;
  const ServiceOptions options_;
  const mlpdeploy::Preprocessor prepare_;
  mlpdeploy::BatchingSession batching_;
  Channel<Job> jobs_;
  std::vector<std::thread> decoders_;

  void stop();
  void decode();
  Outcome outcome_of(const Job& job);
  std::string line(Answer answer) const;
};
