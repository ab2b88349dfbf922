// What CUDA C needs to be C++: the words the kernels use, and one thread at a time. A kernel that
// shares nothing between its threads does the same here as on a GPU, byte by byte. Every access to
// memory goes through __ldcs and __stcs, and is held against what the kernel may touch.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)

struct Index {
    unsigned x;
};

static Index gridDim, blockIdx, threadIdx;

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// All memory of a run: what a device and its host have, in one piece, so that one address serves
// for both. For each byte, what may still be done with it.
enum Permission : unsigned char { NOTHING = 0, READ = 1, WRITE = 2 };

static unsigned char *memory;
static unsigned char *permissions;
static std::size_t memory_bytes;

[[noreturn]] inline void wrong(const char *what, std::uint64_t at)
{
    std::fprintf(stderr, "%s at byte %llu, by thread %u of block %u\n", what,
                 (unsigned long long)at, threadIdx.x, blockIdx.x);
    std::exit(1);
}

// Takes a permission away: nothing is read or written twice.
inline void use(const void *address, std::size_t bytes, Permission permission)
{
    const std::uint64_t at = (std::uintptr_t)address - (std::uintptr_t)memory;
    if (at >= memory_bytes || memory_bytes - at < bytes) {
        wrong("access outside memory", at);
    }
    if ((std::uintptr_t)address % bytes != 0) {
        wrong("access that is not aligned", at);
    }
    for (std::size_t byte = at; byte < at + bytes; ++byte) {
        if (permissions[byte] != permission) {
            wrong(permission == READ ? "read" : "write", byte);
        }
        permissions[byte] = NOTHING;
    }
}

template <typename Vector> Vector __ldcs(const Vector *from)
{
    use(from, sizeof(Vector), READ);
    return *from;
}

template <typename Vector> void __stcs(Vector *to, Vector value)
{
    use(to, sizeof(Vector), WRITE);
    *to = value;
}
