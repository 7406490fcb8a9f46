#include "pages.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace mlpdeploy::cpu {
namespace {

// In /proc/self/pagemap: the page is a file's, or shared. A private page loses this when it is written to.
constexpr std::uint64_t kFilePage = std::uint64_t{1} << 61;
constexpr std::size_t kEntries = 512;

}  // namespace

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

void release_file_pages(void const*, std::size_t) noexcept {}

}  // namespace mlpdeploy::cpu

#endif
