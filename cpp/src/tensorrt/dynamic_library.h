// A shared library that is loaded while the program runs, so that the program starts where it is not installed.
#pragma once

#include <dlfcn.h>

#include <string>

namespace mlpdeploy {

class DynamicLibrary {
 public:
  explicit DynamicLibrary(const char* name) : handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) error_ = dlerror();
  }
  DynamicLibrary(const DynamicLibrary&) = delete;
  DynamicLibrary& operator=(const DynamicLibrary&) = delete;
  // Never unloaded: its threads and its handlers for the end of the process may still run.
  ~DynamicLibrary() = default;

  explicit operator bool() const noexcept { return handle_; }
  const std::string& error() const noexcept { return error_; }

  template <typename Function>
  bool find(Function*& function, const char* name) const noexcept {
    function = reinterpret_cast<Function*>(dlsym(handle_, name));
    return function;
  }

 private:
  void* handle_;
  std::string error_;
};

}  // namespace mlpdeploy
