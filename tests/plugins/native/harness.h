// A check that says what failed, and opens the library; headers of TensorRT only, no library of it, no GPU.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            std::printf("FAILED %s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                      \
        }                                                                      \
    } while (0)

template <typename Function>
Function* exported(void* library, char const* name) {
    auto* const function = reinterpret_cast<Function*>(dlsym(library, name));
    CHECK(function != nullptr);
    return function;
}

inline void* open_library(int argc, char** argv) {
    CHECK(argc == 2);
    void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        std::puts(dlerror());
        std::exit(1);
    }
    return library;
}
