#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kLine = 64;

std::size_t rounded(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

void FreeDeleter::operator()(void* memory) const { std::free(memory); }

Bytes aligned_bytes(long count) {
    std::size_t const size = rounded(static_cast<std::size_t>(std::max(count, 1L)), kLine);
    auto* memory = static_cast<char*>(std::aligned_alloc(kLine, size));
    if (memory == nullptr) throw std::bad_alloc();
    std::fill_n(memory, size, 0);
    return Bytes(memory);
}

}  // namespace mlpdeploy::cpu

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>

namespace mlpdeploy::cpu {
namespace {

constexpr std::size_t kLargePage = std::size_t{2} << 20;
constexpr std::size_t kSlab = 32 * kLargePage;

// Addresses for the weights of many layers; only what has been written to takes memory.
class Slab {
public:
    explicit Slab(std::size_t bytes) : size_(rounded(bytes, kLargePage)) {
        void* const all = mmap(nullptr, size_ + kLargePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) throw std::bad_alloc();
        mapped_ = static_cast<char*>(all);
        std::size_t const before =
            rounded(reinterpret_cast<std::uintptr_t>(all), kLargePage) - reinterpret_cast<std::uintptr_t>(all);
        begin_ = mapped_ + before;
        madvise(begin_, size_, MADV_HUGEPAGE);
    }
    ~Slab() { munmap(mapped_, size_ + kLargePage); }
    Slab(Slab const&) = delete;
    Slab& operator=(Slab const&) = delete;

    // Return so many bytes, or null if there are not so many left.
    char* take(std::size_t bytes) {
        std::size_t const first = used_;
        if (bytes > size_ - first) return nullptr;
        used_ = std::min(size_, first + rounded(bytes, kLine));
        return begin_ + first;
    }

private:
    std::size_t size_;
    std::size_t used_ = 0;
    char* mapped_;
    char* begin_;
};

// In /proc/self/pagemap: the page is a file's, or shared. A private page loses this when it is written to.
constexpr std::uint64_t kFilePage = std::uint64_t{1} << 61;
constexpr std::size_t kEntries = 512;

}  // namespace

std::shared_ptr<char[]> weight_memory(std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    return aligned_bytes(static_cast<long>(bytes));  // reads beyond the end are found there
#else
    static std::mutex mutex;
    static std::weak_ptr<Slab> current;
    std::lock_guard<std::mutex> const lock(mutex);
    std::shared_ptr<Slab> slab = current.lock();
    char* memory = slab == nullptr ? nullptr : slab->take(bytes);
    if (memory == nullptr) {
        slab = std::make_shared<Slab>(std::max(bytes, kSlab));
        memory = slab->take(bytes);
        current = slab;
    }
    return std::shared_ptr<char[]>(slab, memory);
#endif
}

void release_file_pages(void const* data, std::size_t bytes) noexcept {
    auto const size = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    auto const begin = reinterpret_cast<std::uintptr_t>(data);
    std::uintptr_t page = (begin + size - 1) / size;
    std::uintptr_t const end = (begin + bytes) / size;
    int const file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    std::uint64_t entries[kEntries];
    while (page < end) {
        std::size_t const count = end - page < kEntries ? end - page : kEntries;
        ssize_t const wanted = static_cast<ssize_t>(count * sizeof *entries);
        if (pread(file, entries, static_cast<std::size_t>(wanted), static_cast<off_t>(page * sizeof *entries)) !=
            wanted)
            break;
        for (std::size_t first = 0; first < count; ++first) {
            std::size_t last = first;
            while (last < count && (entries[last] & kFilePage) != 0) ++last;
            if (last > first)
                madvise(reinterpret_cast<void*>((page + first) * size), (last - first) * size, MADV_DONTNEED);
            first = last;
        }
        page += count;
    }
    close(file);
}

}  // namespace mlpdeploy::cpu

#else

namespace mlpdeploy::cpu {

std::shared_ptr<char[]> weight_memory(std::size_t bytes) { return aligned_bytes(static_cast<long>(bytes)); }

void release_file_pages(void const*, std::size_t) noexcept {}

}  // namespace mlpdeploy::cpu

#endif
