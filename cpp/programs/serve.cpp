#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "commands.h"
#include "service.h"

namespace {

using mlpdeploy::Error;
using mlpdeploy::ErrorKind;

constexpr std::size_t max_connections = 64;

std::atomic<bool> stopping{false};

std::size_t read_some(int file, std::uint8_t* out, std::size_t bytes) {
  while (true) {
    const ssize_t got = ::read(file, out, bytes);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) return 0;  // a connection that broke is at its end
  }
}

// Waits until there is room in the socket, or it is broken. False where the server is to stop and there was none for
// as long as its patience.
bool wait_for_room(int socket, int patience_ms) {
  while (true) {
    const bool last = stopping;  // before the wait, so that it is a whole one
    pollfd event{socket, POLLOUT, 0};
    const int ready = ::poll(&event, 1, patience_ms);
    if (ready > 0) return true;
    if (ready == 0 && last) return false;
  }
}

bool send_line(int socket, std::string line, int patience_ms) {
  line += '\n';
  for (std::size_t sent = 0; sent < line.size();) {
    const ssize_t count = ::send(socket, line.data() + sent, line.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) && wait_for_room(socket, patience_ms)) continue;
    if (count <= 0) return false;
    sent += static_cast<std::size_t>(count);
  }
  return true;
}

// A file descriptor that is closed at the end.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

int stop_pipe[2] = {-1, -1};

void on_stop(int) {
  const char byte = 0;
  [[maybe_unused]] const ssize_t written = ::write(stop_pipe[1], &byte, 1);
}

// A listening socket at a path, which is removed at the end.
class Listener {
 public:
  explicit Listener(const std::string& path) : path_(path), socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty()) throw Error(ErrorKind::usage, "an empty path for the socket", "the path of a file");
    if (path.size() >= sizeof address.sun_path) {
      throw Error(ErrorKind::usage, "the path " + path + " is too long",
                  "at most " + std::to_string(sizeof address.sun_path - 1) + " bytes");
    }
    std::memcpy(address.sun_path, path.c_str(), path.size());
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    remove_stale(generic, sizeof address);
    if (::bind(socket_.number(), generic, sizeof address) != 0 || ::listen(socket_.number(), 16) != 0) {
      throw Error(ErrorKind::usage, path + " cannot be listened at (" + std::strerror(errno) + ")", "",
                  "choose another path");
    }
  }
  ~Listener() { ::unlink(path_.c_str()); }

  int number() const { return socket_.number(); }

 private:
  std::string path_;
  Descriptor socket_;

  // A socket that a killed process left behind; never anything else.
  void remove_stale(const sockaddr* address, socklen_t bytes) const {
    struct stat status{};
    if (::lstat(path_.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return;
    const Descriptor probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(probe.number(), address, bytes) != 0 && errno == ECONNREFUSED) ::unlink(path_.c_str());
  }
};

struct Connection {
  Descriptor socket;
  std::thread thread{};
  std::atomic<bool> done{false};

  explicit Connection(int number) : socket(number) {}
};

void serve_connection(Service& service, Connection& connection, int patience_ms) {
  const int number = connection.socket.number();
  try {
    service.converse([number](std::uint8_t* out, std::size_t bytes) { return read_some(number, out, bytes); },
                     [&](const std::string& line) { return send_line(number, line, patience_ms); });
  } catch (const std::exception&) {
    // It has no thread for the answers: this connection ends, and the others stay.
    send_line(number, "{\"error\": \"too many connections\"}", patience_ms);
  }
  ::shutdown(number, SHUT_RDWR);
  connection.done = true;
}

void reap(std::list<Connection>& connections, bool all) {
  for (auto one = connections.begin(); one != connections.end();) {
    if (!all && !one->done) {
      ++one;
      continue;
    }
    one->thread.join();
    one = connections.erase(one);
  }
}

int serve_socket(Service& service, const std::string& path, int patience_ms) {
  if (::pipe(stop_pipe) != 0) throw Error(ErrorKind::backend, "no pipe can be made");
  const Descriptor reading(stop_pipe[0]), writing(stop_pipe[1]);
  struct sigaction action{};
  action.sa_handler = on_stop;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  const Listener listener(path);
  std::fprintf(stderr, "listening at %s\n", path.c_str());
  std::list<Connection> connections;
  while (true) {
    pollfd events[2] = {{listener.number(), POLLIN, 0}, {reading.number(), POLLIN, 0}};
    if (::poll(events, 2, -1) < 0 && errno != EINTR) break;
    if (events[1].revents) break;
    reap(connections, false);
    if (!(events[0].revents & POLLIN)) continue;
    const int socket = ::accept4(listener.number(), nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) continue;
    if (connections.size() >= max_connections) {
      send_line(socket, "{\"error\": \"too many connections\"}", patience_ms);
      ::close(socket);
      continue;
    }
    Connection& connection = connections.emplace_back(socket);
    try {
      connection.thread =
          std::thread([&service, &connection, patience_ms] { serve_connection(service, connection, patience_ms); });
    } catch (const std::system_error&) {
      send_line(socket, "{\"error\": \"too many connections\"}", patience_ms);
      connections.pop_back();
    }
  }
  stopping = true;
  // No more frames are read; those that were are answered.
  for (Connection& connection : connections) ::shutdown(connection.socket.number(), SHUT_RD);
  reap(connections, true);
  return 0;
}

int serve_stdin(Service& service) {
  const bool fine = service.converse(
      [](std::uint8_t* out, std::size_t bytes) { return read_some(STDIN_FILENO, out, bytes); },
      [](const std::string& line) { return std::puts(line.c_str()) >= 0 && std::fflush(stdout) == 0; });
  return fine ? 0 : 1;
}

}  // namespace

Command serve_command() {
  const mlpdeploy::BatchingOptions defaults;
  return {
      "serve",
      "FOLDER --stdin | --unix PATH",
      "Classify frames from another process, in batches; answer each with a line of JSON.",
      1,
      1,
      {{"--stdin", "", "", "read frames from stdin until its end, answer on stdout"},
       {"--unix", "PATH", "", "listen at a socket of this path until SIGTERM or SIGINT"},
       {"--top", "N", "5", "classes to name per frame"},
       {"--batch", "N", std::to_string(defaults.max_batch), "frames that are run together at most"},
       {"--delay-ms", "N", std::to_string(defaults.max_delay.count() / 1000), "how long a batch may wait for frames"},
       {"--queue", "N", std::to_string(defaults.queue_limit), "frames that wait; then the sender waits"},
       {"--max-frame-mb", "N", "64", "largest frame, in megabytes"},
       {"--patience-ms", "N", "5000", "with --unix, at its end: how long a client may take none of its answers"},
       backend_option(),
       device_option(),
       threads_option()},
      "A frame is 4 bytes with a length, little-endian, and a JPEG or PNG file of that length. Answers come in the\n"
      "frames' order: {\"frame\": 0, \"top\": [{\"index\": 3, \"label\": \"...\", \"probability\": 0.9}, ...]}, or\n"
      "{\"frame\": 1, \"error\": \"...\"} for one that cannot be read. A stream that breaks off inside of a frame "
      "ends\n"
      "with exit code 1."};
}

int run_serve(const Arguments& arguments) {
  const bool from_stdin = arguments.has("--stdin");
  if (from_stdin == arguments.has("--unix")) {
    throw Error(ErrorKind::usage, from_stdin ? "--stdin and --unix" : "neither --stdin nor --unix", "one of them");
  }
  const auto positive = [&](const char* name) {
    const int number = arguments.number(name);
    if (number < 1) throw Error(ErrorKind::usage, std::string(name) + " " + std::to_string(number), "at least 1");
    return number;
  };
  ServiceOptions options{};
  options.top = positive("--top");
  options.max_frame_bytes = static_cast<std::size_t>(positive("--max-frame-mb")) * 1'000'000;
  options.batching.max_batch = positive("--batch");
  options.batching.queue_limit = static_cast<std::size_t>(positive("--queue"));
  options.batching.max_delay = std::chrono::milliseconds(std::max(arguments.number("--delay-ms"), 0));
  const int patience_ms = positive("--patience-ms");
  const auto session = loaded(arguments, options.batching.max_batch);
  mlpdeploy::check_classifier(session);
  Service service(session, options);
  return from_stdin ? serve_stdin(service) : serve_socket(service, arguments.text("--unix"), patience_ms);
}
