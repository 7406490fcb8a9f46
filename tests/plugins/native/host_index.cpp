// Answers questions about the index arithmetic, one a line on stdin: a verb,
// the eight parameters, and
//   source INDEX   the indices in x of the elements that land there in y_w and
//   y_h, with 64-bit indices launches       for each launch: its images, its
//   first element, elements of a chunk, bytes of an index refusal        why
//   the parameters are refused, or nothing
//   place INDEX    channel, row and column of an element, with 32-bit indices
#include <cstdint>
#include <iostream>
#include <string>

#include "axial_shift_index.h"

using namespace mlpdeploy;

int main() {
    std::string verb;
    AxialShiftParams p{};
    int64_t padding = 0;
    while (std::cin >> verb >> p.n >> p.c >> p.h >> p.w >> p.channel_block >> p.shift_size >> p.dilation >> padding) {
        p.padding = static_cast<Padding>(padding);
        if (verb == "source") {
            int64_t index = 0;
            std::cin >> index;
            auto const plan = plan_of<int64_t>(p);
            std::cout << source_of(plan, plan.along_w, index) << ' ' << source_of(plan, plan.along_h, index);
        } else if (verb == "place") {
            int32_t index = 0;
            std::cin >> index;
            auto const plan = plan_of<int32_t>(p);
            auto const divide = dividers_of<Reciprocal>(plan);
            auto const place =
                p.channel_block == kPLANAR ? place_of<true>(plan, divide, index) : place_of<false>(plan, divide, index);
            std::cout << place.within << ' ' << place.channel << ' ' << place.row << ' ' << place.column;
        } else if (verb == "launches") {
            auto* const base = reinterpret_cast<uint16_t*>(uintptr_t{kCHUNK_BYTES});
            for_each_launch(
                p, static_cast<uint16_t const*>(base), base, base, kNARROW_LIMIT,
                [base](auto variant, AxialShiftParams const& part, uint16_t const* x, uint16_t*, uint16_t*) {
                    using V = decltype(variant);
                    std::cout << part.n << ' ' << x - base << ' ' << V::kElements << ' ' << sizeof(typename V::Index)
                              << ' ';
                    return true;
                });
        } else if (verb == "refusal") {
            char const* const reason = refusal(p);
            std::cout << (reason ? reason : "");
        } else {
            return 2;
        }
        std::cout << '\n';
    }
}
