// Memory of weights that have been copied and are not read again.
#pragma once

#include <cstddef>

namespace mlpdeploy::cpu {

// Let go of those whole pages of [data, data + bytes) that are unchanged pages of a mapped file: they come back from
// the file, should anybody read them. All other memory stays as it is; where the system does not tell, everything does.
void release_file_pages(void const* data, std::size_t bytes) noexcept;

}  // namespace mlpdeploy::cpu
