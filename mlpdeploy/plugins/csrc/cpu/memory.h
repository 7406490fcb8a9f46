// Memory that is aligned; of weights: that of our copies, and that of those which have been copied.
#pragma once

#include <cstddef>
#include <memory>

namespace mlpdeploy::cpu {

struct FreeDeleter {
    void operator()(void* memory) const;
};
using Bytes = std::unique_ptr<char[], FreeDeleter>;
using Floats = std::unique_ptr<float[], FreeDeleter>;

// Return `count` zero bytes, or zeros, on a cache line's boundary. Throw std::bad_alloc.
Bytes aligned_bytes(long count);
inline Floats aligned_floats(long count) {
    return Floats(reinterpret_cast<float*>(aligned_bytes(count * static_cast<long>(sizeof(float))).release()));
}

// Return `bytes` zeros on a cache line's boundary, in large pages where the system has them: all weights are read once
// in each run, and of small pages a processor forgets where they are in between. Throw std::bad_alloc.
std::shared_ptr<char[]> weight_memory(std::size_t bytes);

// Let go of those whole pages of [data, data + bytes) that are unchanged pages of a mapped file: they come back from
// the file, should anybody read them. All other memory stays as it is; where the system does not tell, everything does.
void release_file_pages(void const* data, std::size_t bytes) noexcept;

}  // namespace mlpdeploy::cpu
