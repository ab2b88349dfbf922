/*
 * Version 1 of the ABI, as programs have it that were compiled with its header: where each field lies, how long each
 * struct is, what each constant is. It holds where pointers have 64 bits. Once a release has it nothing of it is ever
 * changed: what a later version adds comes behind the fields of a struct, and into a file of its own.
 */
#include "undercroft.h"

#define FIELD(type, field, at, bytes)                                                                                  \
    _Static_assert(offsetof(type, field) == (at) && sizeof(((type *)0)->field) == (bytes), #type "." #field)
/* In a newer header it is longer. What is behind the last field is no padding, which callers would leave as it is. */
#define STRUCT(type, bytes) _Static_assert(sizeof(type) >= (bytes) && sizeof(type) % 8 == 0, #type)
#define NEVER_GROWS(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#define CONSTANT(name, value) _Static_assert((name) == (value), #name)

STRUCT(undercroft_connect_options, 64);
FIELD(undercroft_connect_options, size, 0, 8);
FIELD(undercroft_connect_options, socket, 8, 8);
FIELD(undercroft_connect_options, name, 16, 8);
FIELD(undercroft_connect_options, wait_us, 24, 8);
FIELD(undercroft_connect_options, copy_mode, 32, 4);
FIELD(undercroft_connect_options, check_daemon_uid, 36, 4);
FIELD(undercroft_connect_options, daemon_uid, 40, 4);
FIELD(undercroft_connect_options, threads, 44, 4);
FIELD(undercroft_connect_options, max_tasks, 48, 4);
FIELD(undercroft_connect_options, reserved, 52, 4);
FIELD(undercroft_connect_options, gpu, 56, 8);

STRUCT(undercroft_state, 40);
FIELD(undercroft_state, size, 0, 8);
FIELD(undercroft_state, state, 8, 4);
FIELD(undercroft_state, copy_mode, 12, 4);
FIELD(undercroft_state, session, 16, 8);
FIELD(undercroft_state, changed_pages, 24, 8);
FIELD(undercroft_state, hung_calls, 32, 8);

STRUCT(undercroft_family, 112);
FIELD(undercroft_family, size, 0, 8);
FIELD(undercroft_family, model, 8, 32);
FIELD(undercroft_family, adapter, 40, 32);
FIELD(undercroft_family, dtype, 72, 4);
FIELD(undercroft_family, layers, 76, 4);
FIELD(undercroft_family, kv_heads, 80, 4);
FIELD(undercroft_family, page_tokens, 84, 4);
FIELD(undercroft_family, quantization, 88, 8);
FIELD(undercroft_family, attention, 96, 8);
FIELD(undercroft_family, layout, 104, 8);

NEVER_GROWS(undercroft_geometry, 40);
FIELD(undercroft_geometry, layers, 0, 4);
FIELD(undercroft_geometry, parts, 4, 4);
FIELD(undercroft_geometry, part_bytes, 8, 32);

STRUCT(undercroft_space_options, 64);
FIELD(undercroft_space_options, size, 0, 8);
FIELD(undercroft_space_options, family, 8, 8);
FIELD(undercroft_space_options, geometry, 16, 40);
FIELD(undercroft_space_options, rank_index, 56, 2);
FIELD(undercroft_space_options, rank_count, 58, 2);
FIELD(undercroft_space_options, group, 60, 4);

STRUCT(undercroft_prefetched, 16);
FIELD(undercroft_prefetched, size, 0, 8);
FIELD(undercroft_prefetched, resident, 8, 4);
FIELD(undercroft_prefetched, started, 12, 4);

STRUCT(undercroft_found, 48);
FIELD(undercroft_found, size, 0, 8);
FIELD(undercroft_found, pages, 8, 4);
FIELD(undercroft_found, dram, 12, 4);
FIELD(undercroft_found, ssd, 16, 4);
FIELD(undercroft_found, why, 20, 4);
FIELD(undercroft_found, stamp, 24, 8);
FIELD(undercroft_found, estimate_us, 32, 8);
FIELD(undercroft_found, hold, 40, 8);

NEVER_GROWS(undercroft_tensor, 16);
FIELD(undercroft_tensor, base, 0, 8);
FIELD(undercroft_tensor, bytes, 8, 8);

NEVER_GROWS(undercroft_place, 32);
FIELD(undercroft_place, tensor, 0, 4);
FIELD(undercroft_place, rows, 4, 4);
FIELD(undercroft_place, offset, 8, 8);
FIELD(undercroft_place, block_stride, 16, 8);
FIELD(undercroft_place, row_stride, 24, 8);

STRUCT(undercroft_layout, 112);
FIELD(undercroft_layout, size, 0, 8);
FIELD(undercroft_layout, geometry, 8, 40);
FIELD(undercroft_layout, blocks, 48, 4);
FIELD(undercroft_layout, kind, 52, 4);
FIELD(undercroft_layout, page_tokens, 56, 4);
FIELD(undercroft_layout, reserved, 60, 4);
FIELD(undercroft_layout, bases, 64, 8);
FIELD(undercroft_layout, n_bases, 72, 8);
FIELD(undercroft_layout, tensors, 80, 8);
FIELD(undercroft_layout, n_tensors, 88, 8);
FIELD(undercroft_layout, places, 96, 8);
FIELD(undercroft_layout, n_places, 104, 8);

STRUCT(undercroft_cuda_options, 48);
FIELD(undercroft_cuda_options, size, 0, 8);
FIELD(undercroft_cuda_options, load, 8, 4);
FIELD(undercroft_cuda_options, store, 12, 4);
FIELD(undercroft_cuda_options, kernel_blocks, 16, 4);
FIELD(undercroft_cuda_options, use_load_stream, 20, 4);
FIELD(undercroft_cuda_options, use_store_stream, 24, 4);
FIELD(undercroft_cuda_options, reserved, 28, 4);
FIELD(undercroft_cuda_options, load_stream, 32, 8);
FIELD(undercroft_cuda_options, store_stream, 40, 8);

STRUCT(undercroft_load_request, 80);
FIELD(undercroft_load_request, size, 0, 8);
FIELD(undercroft_load_request, device, 8, 8);
FIELD(undercroft_load_request, keys, 16, 8);
FIELD(undercroft_load_request, hold, 24, 8);
FIELD(undercroft_load_request, token, 32, 8);
FIELD(undercroft_load_request, blocks, 40, 8);
FIELD(undercroft_load_request, pages, 48, 8);
FIELD(undercroft_load_request, hold_first, 56, 4);
FIELD(undercroft_load_request, by_layer, 60, 4);
FIELD(undercroft_load_request, stamp, 64, 8);
FIELD(undercroft_load_request, deadline_us, 72, 8);

STRUCT(undercroft_loaded, 32);
FIELD(undercroft_loaded, size, 0, 8);
FIELD(undercroft_loaded, pages, 8, 4);
FIELD(undercroft_loaded, ssd_pages, 12, 4);
FIELD(undercroft_loaded, bytes, 16, 8);
FIELD(undercroft_loaded, why, 24, 4);
FIELD(undercroft_loaded, reserved, 28, 4);

STRUCT(undercroft_store_request, 88);
FIELD(undercroft_store_request, size, 0, 8);
FIELD(undercroft_store_request, device, 8, 8);
FIELD(undercroft_store_request, keys, 16, 8);
FIELD(undercroft_store_request, parent, 24, 8);
FIELD(undercroft_store_request, blocks, 32, 8);
FIELD(undercroft_store_request, pages, 40, 8);
FIELD(undercroft_store_request, first, 48, 4);
FIELD(undercroft_store_request, wait_for_credits, 52, 4);
FIELD(undercroft_store_request, stamp, 56, 8);
FIELD(undercroft_store_request, deadline_us, 64, 8);
FIELD(undercroft_store_request, after_stream, 72, 8);
FIELD(undercroft_store_request, use_after_stream, 80, 4);
FIELD(undercroft_store_request, reserved, 84, 4);

STRUCT(undercroft_stored, 48);
FIELD(undercroft_stored, size, 0, 8);
FIELD(undercroft_stored, stored, 8, 4);
FIELD(undercroft_stored, held, 12, 4);
FIELD(undercroft_stored, coming, 16, 4);
FIELD(undercroft_stored, declined_credits, 20, 4);
FIELD(undercroft_stored, declined_parent, 24, 4);
FIELD(undercroft_stored, declined_full, 28, 4);
FIELD(undercroft_stored, declined_admission, 32, 4);
FIELD(undercroft_stored, failed, 36, 4);
FIELD(undercroft_stored, unsettled, 40, 4);
FIELD(undercroft_stored, why, 44, 4);

CONSTANT(UNDERCROFT_OK, 0);
CONSTANT(UNDERCROFT_MISS_ABSENT, 1);
CONSTANT(UNDERCROFT_MISS_DISCONNECTED, 2);
CONSTANT(UNDERCROFT_MISS_DEADLINE, 3);
CONSTANT(UNDERCROFT_MISS_HUNG, 4);
CONSTANT(UNDERCROFT_MISS_CHANGED, 5);
CONSTANT(UNDERCROFT_MISS_REFUSED, 6);
CONSTANT(UNDERCROFT_MISS_NOT_OPEN, 7);
CONSTANT(UNDERCROFT_MISS_FORKED, 8);
CONSTANT(UNDERCROFT_MISS_FULL, 9);
CONSTANT(UNDERCROFT_MISS_DAMAGED, 10);
CONSTANT(UNDERCROFT_MISS_INVALID, 11);
CONSTANT(UNDERCROFT_MISS_RELEASED, 12);
CONSTANT(UNDERCROFT_MISS_BUSY, 13);
CONSTANT(UNDERCROFT_MISS_TOO_LONG, 14);
CONSTANT(UNDERCROFT_MISS_DEVICE, 15);
CONSTANT(UNDERCROFT_MISS_TAKEN, 16);
CONSTANT(UNDERCROFT_MISS_OTHER, 99);
CONSTANT(UNDERCROFT_PENDING, 100);
CONSTANT(UNDERCROFT_ERROR_ARGUMENT, -1);
CONSTANT(UNDERCROFT_ERROR_CONNECT, -2);
CONSTANT(UNDERCROFT_ERROR_OPEN, -3);
CONSTANT(UNDERCROFT_ERROR_DEVICE, -4);
CONSTANT(UNDERCROFT_ERROR_INTERNAL, -5);
CONSTANT(UNDERCROFT_STATE_CONNECTED, 1);
CONSTANT(UNDERCROFT_STATE_HUNG, 2);
CONSTANT(UNDERCROFT_STATE_CONNECTING, 3);
CONSTANT(UNDERCROFT_STATE_FORKED, 4);
CONSTANT(UNDERCROFT_KEY_BYTES, 32);
CONSTANT(UNDERCROFT_MAX_PARTS, 8);
CONSTANT(UNDERCROFT_DTYPE_BF16, 1);
CONSTANT(UNDERCROFT_DTYPE_F16, 2);
CONSTANT(UNDERCROFT_DTYPE_F32, 3);
CONSTANT(UNDERCROFT_DTYPE_FP8_E4M3, 4);
CONSTANT(UNDERCROFT_DTYPE_FP8_E5M2, 5);
CONSTANT(UNDERCROFT_DTYPE_INT8, 6);
CONSTANT(UNDERCROFT_HINT_ACTIVE, 1);
CONSTANT(UNDERCROFT_HINT_PAUSED, 2);
CONSTANT(UNDERCROFT_HINT_ENDED, 3);
CONSTANT(UNDERCROFT_HINT_EXPECTED, 4);
CONSTANT(UNDERCROFT_HINT_PIN, 5);
CONSTANT(UNDERCROFT_HINT_DEMOTE, 6);
CONSTANT(UNDERCROFT_TOKEN_BYTES, 16);
CONSTANT(UNDERCROFT_LAYOUT_PLACES, 0);
CONSTANT(UNDERCROFT_LAYOUT_SPLIT, 1);
CONSTANT(UNDERCROFT_LAYOUT_PARTS_FIRST, 2);
CONSTANT(UNDERCROFT_LAYOUT_BLOCK_FIRST, 3);
CONSTANT(UNDERCROFT_LAYOUT_CROSS_LAYER, 4);
CONSTANT(UNDERCROFT_LAYOUT_TOKEN_FIRST, 5);
CONSTANT(UNDERCROFT_COPY_MEASURED, 0);
CONSTANT(UNDERCROFT_COPY_PITCHED, 1);
CONSTANT(UNDERCROFT_COPY_BATCHED, 2);
CONSTANT(UNDERCROFT_COPY_KERNEL, 3);

int main(void)
{
    return undercroft_abi_version() < 1;
}
