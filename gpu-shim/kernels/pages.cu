// Pages between host memory and a device's blocks, for layouts whose fragments are too small for
// the copy engines. A block is cut into strips, rows of bytes at an even distance from each other,
// whose bytes lie one after another in the page. Host memory is read and written over the link by
// the kernel itself, so that a thousand fragments cost no more than one of the same size.
//
// The text uses nothing but what pages.ptx needs and what tests/kernels/serial.h imitates: NVRTC
// has no standard headers, and there the same text runs on a processor, thread after thread.
// `cargo xtask ptx` compiles it.

typedef unsigned int u32;
typedef unsigned long long u64;

// Part of each block and where it lies in the page. The host makes these once for a layout; they
// lie in device memory, in the order of first_tile.
struct Strip {
    u64 at;            // device address of row 0 of block 0
    u64 block_stride;  // from one block to the next, bytes
    u64 pitch;         // from one row to the next on the device, bytes; in the page they adjoin
    u32 in_page;       // where row 0 begins in the page, bytes
    u32 row_bytes;
    u32 rows;
    u32 first_tile;    // how many tiles the strips before it have
};

// The pages of one launch. By value, in the kernel's parameters, which are 4 KiB at most up to
// CUDA 12.0 (CUDA C++ Programming Guide, "Function Parameters"): no copy to the device precedes it.
struct Jobs {
    u64 page[256];  // device-visible address of the page on the host
    u32 block[256];
};

static_assert(sizeof(Strip) == 40 && sizeof(Jobs) == 3072, "as the host lays them out");

// What a warp takes at a time: so many bytes of a strip, or what is left of it. Known to the host,
// which counts tiles.
#define TILE_BYTES 8192u
#define WARP 32u
#define WARPS_PER_BLOCK 8u
#define THREADS_PER_BLOCK (WARP * WARPS_PER_BLOCK)

// Loads a thread has under way at once. A read over PCIe comes back after 0.5 to 1.5 us (Neugebauer
// et al., "Understanding PCIe performance for end host networking", SIGCOMM 2018, and the way
// through the device on top), and PCIe 5.0 with 16 lanes brings 63 GB/s (32 GT/s, 128b/130b): up to
// 95 kB must be under way. One thread block has 256 x 8 x 16 B = 32 KiB, so that a few fill the link,
// and the other multiprocessors are left to the engine.
#define IN_FLIGHT 8u

enum Direction { SCATTER, GATHER };

// Every byte is touched once: cached as what goes first (ld.cs, st.cs), it drives nothing of the
// engine's out of the L2 cache.
//
// Adjacent lanes move adjacent vectors, so that a warp's access to host memory becomes whole
// requests of 128 bytes, without which the link is not filled (Min et al., "EMOGI", VLDB 2020).
template <typename Vector, Direction direction>
__device__ __forceinline__ void move_tile(const Strip &strip, u32 tile, char *block, char *page,
                                          u32 lane)
{
    const u32 strip_bytes = strip.rows * strip.row_bytes;
    const u32 begin = tile * TILE_BYTES;
    const u32 end = strip_bytes - begin < TILE_BYTES ? strip_bytes : begin + TILE_BYTES;
    const u32 row_bytes = strip.row_bytes;
    const u64 pitch = strip.pitch;
    // A vector lies in one row, as its size divides the length of a row.
    auto in_block = [=](u32 byte) {
        const u32 row = byte / row_bytes;
        return (Vector *)(block + row * pitch + (byte - row * row_bytes));
    };
    auto in_page = [=](u32 byte) { return (Vector *)(page + byte); };
    const u32 step = WARP * (u32)sizeof(Vector);
    for (u32 from = begin + lane * (u32)sizeof(Vector); from < end; from += IN_FLIGHT * step) {
        Vector held[IN_FLIGHT];
        // All loads are issued before the first store waits for one.
#pragma unroll
        for (u32 i = 0; i < IN_FLIGHT; ++i) {
            const u32 byte = from + i * step;
            if (byte < end) {
                held[i] = __ldcs(direction == SCATTER ? in_page(byte) : in_block(byte));
            }
        }
#pragma unroll
        for (u32 i = 0; i < IN_FLIGHT; ++i) {
            const u32 byte = from + i * step;
            if (byte < end) {
                __stcs(direction == SCATTER ? in_block(byte) : in_page(byte), held[i]);
            }
        }
    }
}

// The strip a tile of the page belongs to: the last one that does not begin behind it.
__device__ __forceinline__ u32 strip_of(const Strip *strips, u32 strip_count, u32 tile)
{
    u32 low = 0;
    u32 high = strip_count;
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        if (strips[middle].first_tile <= tile) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// A tile to a warp, not to a thread block: while one warp looks up its strip, the others of its
// multiprocessor keep the link busy. Neighbouring tiles go to different thread blocks, so that a
// single page has all of them at work.
template <typename Vector, Direction direction>
__device__ __forceinline__ void move_pages(const Strip *strips, u32 strip_count, u32 tiles,
                                           u32 job_count, const Jobs &jobs)
{
    const u32 lane = threadIdx.x % WARP;
    const u32 items = job_count * tiles;
    const u32 warps = gridDim.x * WARPS_PER_BLOCK;
    for (u32 item = threadIdx.x / WARP * gridDim.x + blockIdx.x; item < items; item += warps) {
        const u32 job = item / tiles;
        const u32 tile = item % tiles;
        const Strip strip = strips[strip_of(strips, strip_count, tile)];
        char *block = (char *)(strip.at + jobs.block[job] * strip.block_stride);
        char *page = (char *)(jobs.page[job] + strip.in_page);
        move_tile<Vector, direction>(strip, tile - strip.first_tile, block, page, lane);
    }
}

// The host finds the largest unit that divides all addresses and lengths of the layout and of the
// pages. Single bytes are right whatever it says.
template <Direction direction>
__device__ __forceinline__ void move_by_unit(const Strip *strips, u32 strip_count, u32 tiles,
                                             u32 job_count, u32 unit, const Jobs &jobs)
{
    switch (unit) {
    case 16: return move_pages<uint4, direction>(strips, strip_count, tiles, job_count, jobs);
    case 8: return move_pages<uint2, direction>(strips, strip_count, tiles, job_count, jobs);
    case 4: return move_pages<u32, direction>(strips, strip_count, tiles, job_count, jobs);
    case 2: return move_pages<unsigned short, direction>(strips, strip_count, tiles, job_count, jobs);
    default: return move_pages<unsigned char, direction>(strips, strip_count, tiles, job_count, jobs);
    }
}

// Pages into blocks.
extern "C" __global__ void __launch_bounds__(THREADS_PER_BLOCK)
undercroft_scatter(const Strip *strips, u32 strip_count, u32 tiles, u32 job_count, u32 unit,
                   const __grid_constant__ Jobs jobs)
{
    move_by_unit<SCATTER>(strips, strip_count, tiles, job_count, unit, jobs);
}

// Blocks into pages.
extern "C" __global__ void __launch_bounds__(THREADS_PER_BLOCK)
undercroft_gather(const Strip *strips, u32 strip_count, u32 tiles, u32 job_count, u32 unit,
                  const __grid_constant__ Jobs jobs)
{
    move_by_unit<GATHER>(strips, strip_count, tiles, job_count, unit, jobs);
}
