// Products in tile registers (AMX): 32 rows times 32 columns at a time, in four tiles of sums. Included by product.h.
//
// The sums of one such block are finished while the next one is multiplied: tiles and vectors are different units, and
// a GELU takes longer than a product of few channels.
#pragma once

namespace mlpdeploy::cpu::MLPDEPLOY_ISA {

constexpr long kRowUnit = 16;  // rows of a tile
constexpr long kTileRowBytes = 64;
constexpr long kDepthUnit = kTileRowBytes / static_cast<long>(sizeof(Operand));
constexpr long kTile = kRowUnit * kDepthUnit;
constexpr long kBlockRows = 2 * kRowUnit;

// A panel is (depth / unit, 2, 16, 16, 2 or 4): for each step of the depth two tiles, in whose rows two or four
// operands of the depth follow each other, four bytes.
MLPDEPLOY_INLINE long packed_place(long column, long k) {
    constexpr long kTogether = 4 / static_cast<long>(sizeof(Operand));
    long const place = k % kDepthUnit / kTogether * kDepthUnit + column % 16 * kTogether + k % kTogether;
    return (k / kDepthUnit * 2 + column / 16) * kTile + place;
}

struct alignas(64) TileShapes {
    unsigned char palette = 1;
    unsigned char start_row = 0;
    unsigned char reserved[14] = {};
    unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Sums that wait to be finished: of `rows` rows from `first` on, at `column`.
struct Unfinished {
    Sum const* sums;
    long column;
    long first;
    long rows;
    long done;
};

template <Finish Kind>
MLPDEPLOY_INLINE void finish_rows(Product const& p, Unfinished& block, long count) {
    Columns const columns(p, block.column);
    long const end = block.done + count < block.rows ? block.done + count : block.rows;
    for (long r = block.done; r < end; ++r) {
        Sums row[2];
        memcpy(row, block.sums + r * kPanel, sizeof row);
        Vector values[] = {columns.value(row[0], 0), columns.value(row[1], 1)};
        finish<Kind>(p, columns, block.first + r, values);
    }
    block.done = end;
}

#ifdef MLPDEPLOY_INT8
#define MLPDEPLOY_MULTIPLY_TILES _tile_dpbusd
#else
#define MLPDEPLOY_MULTIPLY_TILES _tile_dpbf16ps
#endif

// The sums of up to 32 rows from `first` on times one panel. Of the last 16 rows all are read.
template <Finish Kind, bool Both>
MLPDEPLOY_INLINE void multiply_block(Product const& p, Operand const* panel, long first, Unfinished& before,
                                     Sum* sums) {
    long const stride = p.row_stride * static_cast<long>(sizeof(Operand));
    Operand const* upper = static_cast<Operand const*>(p.rows) + first * p.row_stride;
    Operand const* lower = upper + kRowUnit * p.row_stride;
    long const share = (kBlockRows * kDepthUnit + p.depth - 1) / p.depth;  // of the rows before, for each step
    _tile_zero(0);
    _tile_zero(1);
    if (Both) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long k = 0; k < p.depth; k += kDepthUnit, panel += 2 * kTile) {
        _tile_loadd(4, upper + k, stride);
        _tile_loadd(6, panel, kTileRowBytes);
        _tile_loadd(7, panel + kTile, kTileRowBytes);
        MLPDEPLOY_MULTIPLY_TILES(0, 4, 6);
        MLPDEPLOY_MULTIPLY_TILES(1, 4, 7);
        if (Both) {
            _tile_loadd(5, lower + k, stride);
            MLPDEPLOY_MULTIPLY_TILES(2, 5, 6);
            MLPDEPLOY_MULTIPLY_TILES(3, 5, 7);
        }
        finish_rows<Kind>(p, before, share);
    }
    constexpr long kRow = kPanel * static_cast<long>(sizeof(Sum));
    _tile_stored(0, sums, kRow);
    _tile_stored(1, sums + kVector, kRow);
    if (Both) {
        _tile_stored(2, sums + kRowUnit * kPanel, kRow);
        _tile_stored(3, sums + kRowUnit * kPanel + kVector, kRow);
    }
}

template <Finish Kind>
void multiply_as(Product const& p) {
    TileShapes const shapes;
    _tile_loadconfig(&shapes);
    alignas(64) Sum sums[2][kBlockRows * kPanel];
    Unfinished before{sums[0], 0, 0, 0, 0};
    int next = 0;
    Operand const* panel = static_cast<Operand const*>(p.panels);
    long const size = (p.depth + kDepthUnit - 1) / kDepthUnit * 2 * kTile;
    for (long i = 0; i < p.panel_count; ++i, panel += size) {
        for (long first = 0; first < p.row_count; first += kBlockRows, next ^= 1) {
            long const rows = p.row_count - first < kBlockRows ? p.row_count - first : kBlockRows;
            if (rows > kRowUnit) {
                multiply_block<Kind, true>(p, panel, first, before, sums[next]);
            } else {
                multiply_block<Kind, false>(p, panel, first, before, sums[next]);
            }
            before = {sums[next], i * kPanel, first, rows, 0};
        }
    }
    finish_rows<Kind>(p, before, kBlockRows);
    _tile_release();
}

}  // namespace mlpdeploy::cpu::MLPDEPLOY_ISA
