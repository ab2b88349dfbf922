// A layer of decoding in little, to be disturbed by copies: it reads its weights once, which is
// what a step with few sequences spends its time on, and does a little arithmetic with each of
// them. Only the checks that need a GPU use it. `cargo xtask ptx` compiles it.

// Adds up `vectors` products of the weights with themselves. `sum` has a float for each thread of
// the launch: the reads must lead to something, or the compiler leaves them out.
extern "C" __global__ void __launch_bounds__(256)
undercroft_decode(const float4 *weights, unsigned long long vectors, float *sum)
{
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long threads = (unsigned long long)gridDim.x * blockDim.x;
    float found = 0.0f;
#pragma unroll 4
    for (unsigned long long at = thread; at < vectors; at += threads) {
        const float4 weight = weights[at];
        found = fmaf(weight.x, weight.x, found);
        found = fmaf(weight.y, weight.y, found);
        found = fmaf(weight.z, weight.z, found);
        found = fmaf(weight.w, weight.w, found);
    }
    sum[thread] = found;
}
