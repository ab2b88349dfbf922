// Runs the kernels of pages.cu on what comes in, and answers with all of memory as they left it.
// gpu-shim/tests/kernels.rs builds it and talks to it over its standard input and output.

#include "serial.h"

#include "../../kernels/pages.cu"

#include <vector>

// One launch. Addresses in it and in what follows are offsets into memory.
struct Launch {
    u32 gather;
    u32 grid;
    u32 strip_count;
    u32 tiles;
    u32 job_count;
    u32 unit;
    u64 memory_bytes;
};

static bool read_all(void *to, std::size_t bytes)
{
    return std::fread(to, 1, bytes, stdin) == bytes;
}

static void need(bool read)
{
    if (!read) {
        std::fprintf(stderr, "input that ends too early\n");
        std::exit(1);
    }
}

static void run(const Launch &launch, const Strip *strips, const Jobs &jobs)
{
    auto kernel = launch.gather ? undercroft_gather : undercroft_scatter;
    gridDim.x = launch.grid;
    for (blockIdx.x = 0; blockIdx.x < launch.grid; ++blockIdx.x) {
        for (threadIdx.x = 0; threadIdx.x < THREADS_PER_BLOCK; ++threadIdx.x) {
            kernel(strips, launch.strip_count, launch.tiles, launch.job_count, launch.unit, jobs);
        }
    }
}

int main()
{
    Launch launch;
    while (read_all(&launch, sizeof launch)) {
        std::vector<Strip> strips(launch.strip_count);
        Jobs jobs;
        memory_bytes = launch.memory_bytes;
        // Aligned as the allocations of a GPU and pages of the host are, or more than any unit.
        memory = (unsigned char *)std::aligned_alloc(4096, memory_bytes);
        std::vector<unsigned char> allowed(memory_bytes);
        permissions = allowed.data();
        need(read_all(strips.data(), strips.size() * sizeof(Strip)));
        need(read_all(&jobs, sizeof jobs));
        need(read_all(memory, memory_bytes));
        need(read_all(permissions, memory_bytes));
        const u64 base = (std::uintptr_t)memory;
        for (Strip &strip : strips) {
            strip.at += base;
        }
        for (u64 &page : jobs.page) {
            page += base;
        }
        run(launch, strips.data(), jobs);
        std::fwrite(memory, 1, memory_bytes, stdout);
        std::fflush(stdout);
        std::free(memory);
    }
    return 0;
}
