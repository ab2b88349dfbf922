/*
 * The C ABI of Undercroft's client: what a serving engine links to keep its KV-cache pages on this node.
 *
 * Written by `cargo xtask header` from client/ffi; do not edit.
 *
 * What a call returns: UNDERCROFT_OK, or a positive UNDERCROFT_MISS_*: not all of what was asked for, go on
 * without it, which is part of the job; or a negative UNDERCROFT_ERROR_*: the call was wrong, and nothing was
 * done or written, but that the handle it was to make is null. (After UNDERCROFT_ERROR_INTERNAL, a bug in here, a
 * load may have written to its blocks.) undercroft_last_error() says either in words. Whatever is wrong with the
 * daemon is a miss.
 *
 * Ownership: a handle (undercroft_client, _space, _hold, _device, _task) belongs to the caller who got it, and is
 * freed once, by the function of that name, when no other thread is using it. Handles may be freed in any order:
 * what is behind one stays while another needs it. Everything else that is handed over (text, keys, options,
 * requests) is read during the call only. Memory that a device tells of must stay until the device is freed and
 * every call and task that uses it is over. What must not be null is refused if it is.
 *
 * Threads: every function may be called from any thread, on the same handle too.
 *
 * Deadlines: every call that asks the daemon takes one, in microseconds from now, and answers by then. Only a copy
 * into or out of the caller's own memory that has begun is waited for beyond it.
 *
 * Structs begin with their own size, which the caller sets; all other fields zero are the defaults. A later version
 * adds fields at the end and functions, changes nothing, and takes what was compiled with an older header. Those that
 * never grow have no size: undercroft_geometry, _tensor and _place.
 *
 * Processes: a handle belongs to the process that made it. In a forked child calls that return an outcome return
 * UNDERCROFT_MISS_FORKED, and wait for nobody. What came to its end before the fork is there, and all may be freed.
 *
 * No panic and no exception leaves this library. It installs no signal handlers; its threads block no signals, so that
 * a handler of the process may run on them. The environment is read where a client connects without a socket:
 * UNDERCROFT_SOCKET and XDG_RUNTIME_DIR.
 */


#ifndef UNDERCROFT_H
#define UNDERCROFT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define UNDERCROFT_NOEXCEPT noexcept
#else
#define UNDERCROFT_NOEXCEPT
#endif


// The version of this ABI. It grows when functions or fields are added; what is here stays.
#define UNDERCROFT_ABI_VERSION 1

// All of what was asked for.
#define UNDERCROFT_OK 0

// No tier holds the page.
#define UNDERCROFT_MISS_ABSENT 1

// No daemon is connected, or the connection was lost during the call.
#define UNDERCROFT_MISS_DISCONNECTED 2

// The call's deadline passed.
#define UNDERCROFT_MISS_DEADLINE 3

// An earlier call's deadline passed and the daemon has shown no sign of life since. It was not asked.
#define UNDERCROFT_MISS_HUNG 4

// The page changed while it was copied.
#define UNDERCROFT_MISS_CHANGED 5

// The daemon refused the request.
#define UNDERCROFT_MISS_REFUSED 6

// The daemon has not opened the space in this session.
#define UNDERCROFT_MISS_NOT_OPEN 7

// This process was forked from the one that connected. It must connect anew.
#define UNDERCROFT_MISS_FORKED 8

// The daemon has no frame or slot to deliver it in.
#define UNDERCROFT_MISS_FULL 9

// Its record on SSD did not prove itself, or a blob is not what was stored.
#define UNDERCROFT_MISS_DAMAGED 10

// The hold is gone, or the arguments contradict each other.
#define UNDERCROFT_MISS_INVALID 11

// It was given up before it was delivered: a task that was cancelled.
#define UNDERCROFT_MISS_RELEASED 12

// Too many calls of this client wait for an answer, or too many tasks for a thread.
#define UNDERCROFT_MISS_BUSY 13

// The run is longer than one request may be, or a blob is longer than the memory for it.
#define UNDERCROFT_MISS_TOO_LONG 14

// The device could not copy the page.
#define UNDERCROFT_MISS_DEVICE 15

// Other bytes are kept under the blob's key, all of them, and stay.
#define UNDERCROFT_MISS_TAKEN 16

// Computing it is faster than loading it, as far as the daemon can tell.
#define UNDERCROFT_MISS_SLOWER 17

// A reason that this header does not know.
#define UNDERCROFT_MISS_OTHER 99

// Not a miss: a task is not over yet.
#define UNDERCROFT_PENDING 100

// An argument is wrong: a null pointer, a number out of range, a struct without its size.
#define UNDERCROFT_ERROR_ARGUMENT -1

// There is no connection, and one was insisted on.
#define UNDERCROFT_ERROR_CONNECT -2

// The daemon refused the space, or did not answer.
#define UNDERCROFT_ERROR_OPEN -3

// The device cannot be made, or failed.
#define UNDERCROFT_ERROR_DEVICE -4

// A bug in this library. The process goes on, and so may the caller.
#define UNDERCROFT_ERROR_INTERNAL -5

// Connected; calls are answered.
#define UNDERCROFT_STATE_CONNECTED 1

// Connected, but a call missed its deadline and the daemon has shown no sign of life since: every call is a
// miss until it does.
#define UNDERCROFT_STATE_HUNG 2

// Not connected; every call is a miss, and a thread tries to connect.
#define UNDERCROFT_STATE_CONNECTING 3

// This process was forked from the one that connected; every call is a miss.
#define UNDERCROFT_STATE_FORKED 4

// Bytes of a key, of a family's digest, and of a model's.
#define UNDERCROFT_KEY_BYTES 32

// The most parts that a layer of a page may have.
#define UNDERCROFT_MAX_PARTS 8

// bfloat16.
#define UNDERCROFT_DTYPE_BF16 1

// IEEE half precision.
#define UNDERCROFT_DTYPE_F16 2

// IEEE single precision.
#define UNDERCROFT_DTYPE_F32 3

// 8 bits, 4 of them exponent.
#define UNDERCROFT_DTYPE_FP8_E4M3 4

// 8 bits, 5 of them exponent.
#define UNDERCROFT_DTYPE_FP8_E5M2 5

// 8-bit integers.
#define UNDERCROFT_DTYPE_INT8 6

// The conversation is in use now.
#define UNDERCROFT_HINT_ACTIVE 1

// It waits for its user or a tool.
#define UNDERCROFT_HINT_PAUSED 2

// It will not go on.
#define UNDERCROFT_HINT_ENDED 3

// It is expected to go on after `after_us`.
#define UNDERCROFT_HINT_EXPECTED 4

// Keep it for `after_us`.
#define UNDERCROFT_HINT_PIN 5

// Give its DRAM up first.
#define UNDERCROFT_HINT_DEMOTE 6

// Bytes of a token with which a hold is handed to another process.
#define UNDERCROFT_TOKEN_BYTES 16

// Every fragment by its tensor and its place: `tensors` and `places`.
#define UNDERCROFT_LAYOUT_PLACES 0

// `bases`: a tensor [blocks, …] for every fragment, in the order fragments have in a page.
#define UNDERCROFT_LAYOUT_SPLIT 1

// `bases`: a tensor [parts, blocks, …] for each layer.
#define UNDERCROFT_LAYOUT_PARTS_FIRST 2

// `bases`: a tensor [blocks, parts, …] for each layer.
#define UNDERCROFT_LAYOUT_BLOCK_FIRST 3

// `bases`: one tensor [blocks, layers, parts, …]: a block is a page as it stands.
#define UNDERCROFT_LAYOUT_CROSS_LAYER 4

// `bases`: a tensor [tokens, layers, …] for each part, `page_tokens` of its rows to a block.
#define UNDERCROFT_LAYOUT_TOKEN_FIRST 5

// What is fastest on this machine is found out when the device is made.
#define UNDERCROFT_COPY_MEASURED 0

// The copy engine, with one call for as many evenly spaced fragments as there are.
#define UNDERCROFT_COPY_PITCHED 1

// The copy engine, with one call for thousands of fragments (CUDA 12.8).
#define UNDERCROFT_COPY_BATCHED 2

// A kernel on few multiprocessors.
#define UNDERCROFT_COPY_KERNEL 3

// A session with the daemon, kept up behind the caller's back. Any number of threads may use it at once. It
// belongs to the process that made it: in a forked child every call that returns an outcome returns
// `UNDERCROFT_MISS_FORKED` at once, but for the state and what reads no client. It may be freed there, or left alone.
typedef struct undercroft_client undercroft_client;

// Where an engine keeps its blocks, and who copies between them and the daemon's memory. It refers to the
// caller's memory, which must stay until the device is freed and every call and task that uses it is over.
// Any number of threads may use it at once.
typedef struct undercroft_device undercroft_device;

// A promise that what a lookup found stays until it is fetched or the promise has expired. Any number of
// threads may load under it at once.
typedef struct undercroft_hold undercroft_hold;

// The identity under which keys mean something, in a client. It stays valid over lost connections. Any number
// of threads may use it at once.
typedef struct undercroft_space undercroft_space;

// A started load or store. The blocks are its alone (for a store: must not change) until it is over. Any number of
// threads may ask it.
typedef struct undercroft_task undercroft_task;

// How to connect. A field that is zero has its default.
typedef struct undercroft_connect_options {
    // `sizeof(undercroft_connect_options)`.
    size_t size;
    // The daemon's socket. Null: `$UNDERCROFT_SOCKET`, else where a daemon's socket is by default.
    const char *socket;
    // What `undercroft status` calls this session; at most 64 bytes are kept. Null: the program's name.
    const char *name;
    // How long to wait for the daemon's greeting, microseconds; without it, connecting is an error. 0: go on
    // without a daemon; a thread connects when there is one, and all is a miss until then.
    uint64_t wait_us;
    // Not 0: have pages delivered into staging although the arena could be mapped.
    uint32_t copy_mode;
    // Not 0: only take a daemon of user `daemon_uid`.
    uint32_t check_daemon_uid;
    // The user that the daemon's socket must be served by. Without `check_daemon_uid`: root, this process's
    // own user, or the owner of the directory that the socket lies in.
    uint32_t daemon_uid;
    // Threads that run started loads, made with the first one; 0: 2. At most 64. Stores have one more for
    // themselves: no load waits behind a store.
    uint32_t threads;
    // Started loads that may wait for a thread, and as many stores; 0: 1024.
    uint32_t max_tasks;
    // Must be zero.
    uint32_t reserved;
    // The GPU to copy with, from `undercroft_device_cuda`; null for none. Once the device is freed and what uses it
    // is over, the daemon's memory is no longer registered with it.
    const struct undercroft_device *gpu;
} undercroft_connect_options;

// How a client stands with its daemon.
typedef struct undercroft_state {
    // `sizeof(undercroft_state)`.
    size_t size;
    // One of `UNDERCROFT_STATE_*`.
    uint32_t state;
    // Not 0: pages are delivered into staging (copy mode), not read where they lie.
    uint32_t copy_mode;
    // The session, as the daemon numbers it; 0 where there is none.
    uint64_t session;
    // Loads that found a page changed under its lease, and took it for a miss.
    uint64_t changed_pages;
    // Calls that missed at once because the daemon had not turned since another one's deadline.
    uint64_t hung_calls;
} undercroft_state;

// What all shards of one model share. Two families never share a page: whatever changes the bytes or the
// meaning of the KV cache must change a field of it.
typedef struct undercroft_family {
    // `sizeof(undercroft_family)`.
    size_t size;
    // A digest of the model: of its configuration and of its weight files' names, sizes and headers, never
    // of a name or a path alone.
    uint8_t model[32];
    // A digest of the adapter (LoRA); all zero for none.
    uint8_t adapter[32];
    // Element type of the stored KV: one of `UNDERCROFT_DTYPE_*`.
    uint32_t dtype;
    // Layers of the whole model.
    uint32_t layers;
    // KV heads of the whole model.
    uint32_t kv_heads;
    // Tokens in one page.
    uint32_t page_tokens;
    // Quantization of the KV; null for "none". At most 256 bytes, as the next two.
    const char *quantization;
    // Rope and attention-window settings, in the engine's words; null for "".
    const char *attention;
    // Memory layout of a fragment, in the engine's words; null for "".
    const char *layout;
} undercroft_family;

// The shape of a page: its layers one after another, each made of the same parts in the same order. One
// part of one layer is a fragment. It never grows.
typedef struct undercroft_geometry {
    // Layers in a page.
    uint32_t layers;
    // Parts of a layer: 2 for K and V, 1 for a shared latent or for bytes without a shape.
    uint32_t parts;
    // Bytes of each part. A page has 512 bytes to 64 MiB altogether.
    uint32_t part_bytes[8];
} undercroft_geometry;

// Which space to open.
typedef struct undercroft_space_options {
    // `sizeof(undercroft_space_options)`.
    size_t size;
    // What all shards share.
    const struct undercroft_family *family;
    // The shape of a page.
    struct undercroft_geometry geometry;
    // Which shard of `rank_count`, from 0.
    uint16_t rank_index;
    // How many shards there are; 0: the pages are the same on every rank.
    uint16_t rank_count;
    // Which KV-cache group of a hybrid model; 0 where there is one.
    uint32_t group;
    // The key of the first page of the probe prefix, token ids 1, 2, 3 ... `page_tokens`, as this process's
    // hash names it: 32 bytes. A space of which others have told another one is refused, as neither would
    // find the other's pages. Null: not told. Keys of `undercroft_keys_from_tokens` need none.
    const uint8_t *probe;
} undercroft_space_options;

// What a prefetch set in motion.
typedef struct undercroft_prefetched {
    // `sizeof(undercroft_prefetched)`.
    size_t size;
    // Pages that are in DRAM already.
    uint32_t resident;
    // Pages that are being read.
    uint32_t started;
} undercroft_prefetched;

// What a lookup found.
typedef struct undercroft_found {
    // `sizeof(undercroft_found)`.
    size_t size;
    // Leading pages that every space asked about holds; where the daemon enforces its cost model, of these no
    // more than are worth loading.
    uint32_t pages;
    // Of these, how many are in DRAM in every space.
    uint32_t dram;
    // Of these, how many must be read from SSD in at least one space.
    uint32_t ssd;
    // Why it was not more: what the call returned.
    int32_t why;
    // The request's place in the daemon's order, for its loads and stores.
    uint64_t stamp;
    // Estimated time until all found pages are in DRAM, microseconds.
    uint64_t estimate_us;
    // The hold, if one was asked for and anything was found, else null. The caller's: free it with
    // `undercroft_hold_free`. It may be null although pages were found, where the tenant holds as much as it may:
    // load them by their keys then.
    struct undercroft_hold *hold;
    // Leading pages that are there, whether or not they are worth loading.
    uint32_t present;
    // Leading pages that are worth loading, as far as the daemon can tell.
    uint32_t worth;
    // Estimated time to copy all found pages out of DRAM, microseconds.
    uint64_t copy_us;
} undercroft_found;

// One allocation of the engine that holds fragments.
typedef struct undercroft_tensor {
    // Its first byte.
    void *base;
    // Its length, bytes.
    uint64_t bytes;
} undercroft_tensor;

// Where one fragment of every block lies.
typedef struct undercroft_place {
    // Index of the tensor it lies in.
    uint32_t tensor;
    // Into how many rows of equal length it is cut; 1 where it is in one piece.
    uint32_t rows;
    // Where it begins for block 0, bytes from the tensor's first.
    uint64_t offset;
    // From one block to the next, bytes.
    uint64_t block_stride;
    // From one row to the next, bytes; of no meaning with one row.
    uint64_t row_stride;
} undercroft_place;

// Where the fragments of each block lie. It and what it points to are needed during the call only; the memory it
// tells of for as long as the device.
typedef struct undercroft_layout {
    // `sizeof(undercroft_layout)`.
    size_t size;
    // The shape of a page.
    struct undercroft_geometry geometry;
    // Number of blocks.
    uint32_t blocks;
    // One of `UNDERCROFT_LAYOUT_*`.
    uint32_t kind;
    // For `UNDERCROFT_LAYOUT_TOKEN_FIRST`: tokens in a page.
    uint32_t page_tokens;
    // Must be zero.
    uint32_t reserved;
    // The first bytes of tensors, as the kind has them.
    void *const *bases;
    // How many.
    size_t n_bases;
    // For `UNDERCROFT_LAYOUT_PLACES`: the tensors, which must not overlap.
    const struct undercroft_tensor *tensors;
    // How many.
    size_t n_tensors;
    // For `UNDERCROFT_LAYOUT_PLACES`: one for each fragment in the order of a page: layer 0 part 0, layer 0
    // part 1, layer 1 part 0, …
    const struct undercroft_place *places;
    // How many.
    size_t n_places;
} undercroft_layout;

// How a GPU copies. A field that is zero has its default.
typedef struct undercroft_cuda_options {
    // `sizeof(undercroft_cuda_options)`.
    size_t size;
    // By what pages are loaded: one of `UNDERCROFT_COPY_*`.
    uint32_t load;
    // By what pages are stored: one of `UNDERCROFT_COPY_*`.
    uint32_t store;
    // The most multiprocessors the kernel may use; 0: 16, or an eighth of all if that is less.
    uint32_t kernel_blocks;
    // Not 0: load on `load_stream` instead of a stream of the device's own.
    uint32_t use_load_stream;
    // Not 0: store on `store_stream` instead of a stream of the device's own.
    uint32_t use_store_stream;
    // Must be zero.
    uint32_t reserved;
    // A `CUstream`, which is also a `cudaStream_t`.
    void *load_stream;
    // A `CUstream`, which is also a `cudaStream_t`.
    void *store_stream;
} undercroft_cuda_options;

// What to load, and where to. Exactly one of `keys`, `hold` and `token` is set. A field that is zero has its
// default. It and its arrays are needed during the call only, for a started load too.
typedef struct undercroft_load_request {
    // `sizeof(undercroft_load_request)`.
    size_t size;
    // Where the blocks lie.
    const struct undercroft_device *device;
    // `pages` keys of 32 bytes: a run of one chain, in prefix order.
    const uint8_t *keys;
    // What a lookup held: `pages` of it from page `hold_first` on. It may be freed during a started load.
    const struct undercroft_hold *hold;
    // 16 bytes: a lease that another process gave. It has ended when the load is over.
    const uint8_t *token;
    // `pages` numbers: page `i` goes to block `blocks[i]`, and none is named twice. Null: to block `i`.
    const uint32_t *blocks;
    // How many pages: no more than the device has blocks.
    size_t pages;
    // With `hold`: the first page of it.
    uint32_t hold_first;
    // Not 0: the first layers of all pages come first, so that an engine can begin on them. For started loads
    // from keys or a hold: `undercroft_task_wait_layer` waits for each.
    uint32_t by_layer;
    // What the request's lookup answered with.
    uint64_t stamp;
    // No copy is begun after it, microseconds from the call on. Those that were are waited for.
    uint64_t deadline_us;
} undercroft_load_request;

// What a load brought.
typedef struct undercroft_loaded {
    // `sizeof(undercroft_loaded)`.
    size_t size;
    // Leading pages that lie in their blocks. What is in the other blocks is not to be used.
    uint32_t pages;
    // Of what the daemon delivered, how many pages it read from SSD.
    uint32_t ssd_pages;
    // Bytes copied into blocks.
    uint64_t bytes;
    // Why it was not more: what the call returned.
    int32_t why;
    // Zero.
    uint32_t reserved;
} undercroft_loaded;

// What to store. A field that is zero has its default. It and its arrays are needed during the call only, for a
// started store too.
typedef struct undercroft_store_request {
    // `sizeof(undercroft_store_request)`.
    size_t size;
    // Where the blocks lie.
    const struct undercroft_device *device;
    // `pages` keys of 32 bytes: a run of one chain, in prefix order.
    const uint8_t *keys;
    // 32 bytes: the key of the page before the first one. Null, and `first` 0: the run starts its chain.
    const uint8_t *parent;
    // `pages` numbers: page `i` lies in block `blocks[i]`. Null: in block `i`.
    const uint32_t *blocks;
    // How many pages.
    size_t pages;
    // Distance of the first page from the start of the chain.
    uint32_t first;
    // Not 0: pages for which no room in staging was free, or that somebody else is storing just now, are offered
    // again until they are settled or the deadline has come. Otherwise nobody is waited for.
    uint32_t wait_for_credits;
    // What the request's lookup answered with.
    uint64_t stamp;
    // It is over by then, microseconds from the call on; a copy that has begun is waited for.
    uint64_t deadline_us;
    // With `use_after_stream`: a `CUstream` or `cudaStream_t`. What is on it at the time of the call happens
    // before the blocks are read.
    void *after_stream;
    // Not 0: `after_stream` counts. For a GPU only.
    uint32_t use_after_stream;
    // Must be zero.
    uint32_t reserved;
} undercroft_store_request;

// What became of the pages of a store. The first nine counts add up to the pages of the request.
typedef struct undercroft_stored {
    // `sizeof(undercroft_stored)`.
    size_t size;
    // Pages that lookups find from now on.
    uint32_t stored;
    // Pages that were there already.
    uint32_t held;
    // Pages that somebody else was storing when the call ended, and may yet give up.
    uint32_t coming;
    // Declined: no room in staging was free.
    uint32_t declined_credits;
    // Declined: the page before was in no tier.
    uint32_t declined_parent;
    // Declined: no room, and nothing older to give up for it.
    uint32_t declined_full;
    // Declined: the daemon's admission decided against it.
    uint32_t declined_admission;
    // Pages whose copy failed, here or at the daemon.
    uint32_t failed;
    // Pages whose fate is unknown: the call ended before they were settled.
    uint32_t unsettled;
    // Why it ended early: what the call returned.
    int32_t why;
} undercroft_stored;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The ABI version of the library that is linked, to hold against `UNDERCROFT_ABI_VERSION` of the header.
uint32_t undercroft_abi_version(void) UNDERCROFT_NOEXCEPT;

// The library's own version, as "0.1.0". It stays for ever.
const char *undercroft_version(void) UNDERCROFT_NOEXCEPT;

// A short name for what a call returned, as "absent" or "deadline". It stays for ever; never null.
const char *undercroft_outcome_name(int32_t outcome) UNDERCROFT_NOEXCEPT;

// In words, why this thread's last call that did not return `UNDERCROFT_OK` did not: what was found, and
// what is allowed. Never null; valid until this thread calls this library again.
const char *undercroft_last_error(void) UNDERCROFT_NOEXCEPT;

// Connects. `options` may be null: go on without a daemon, at the default socket.
//
// The client goes to `client`; free it with `undercroft_client_free`. With `wait_us` the daemon must greet
// within it, else `UNDERCROFT_ERROR_CONNECT`; without, only a socket path that no socket can have, or
// threads that cannot be made, are an error.
int32_t undercroft_connect(const struct undercroft_connect_options *options,
                           struct undercroft_client **client)
UNDERCROFT_NOEXCEPT;

// Frees a client. Null is allowed. Tasks that have not begun never will, and those under way are waited for,
// which takes no longer than their deadlines and the copies under way. Other handles made from the client may
// be freed before or after, and the session ends with the last one.
void undercroft_client_free(struct undercroft_client *client) UNDERCROFT_NOEXCEPT;

// Ends the session now, for all handles: calls under way and later ones miss. Waits until the client's
// threads have let go of the daemon's memory, at most until the deadline, and returns `UNDERCROFT_OK` if they
// have, else `UNDERCROFT_PENDING`. Nobody needs to call it before `undercroft_client_free`.
int32_t undercroft_client_close(const struct undercroft_client *client,
                                uint64_t deadline_us)
UNDERCROFT_NOEXCEPT;

// How the client stands with its daemon, without asking it. Never waits. While it is connecting,
// `undercroft_last_error` says what ended the last attempt.
int32_t undercroft_client_state(const struct undercroft_client *client,
                                struct undercroft_state *state)
UNDERCROFT_NOEXCEPT;

// Waits until a daemon is connected, at most until the deadline: then `UNDERCROFT_MISS_DISCONNECTED`.
int32_t undercroft_client_wait(const struct undercroft_client *client,
                               uint64_t deadline_us)
UNDERCROFT_NOEXCEPT;

// Asks the daemon for a sign of life. How long it took goes to `took_us` (microseconds), which may be null.
int32_t undercroft_ping(const struct undercroft_client *client,
                        uint64_t deadline_us,
                        uint64_t *took_us)
UNDERCROFT_NOEXCEPT;

// The digest of a family: what its keys are bound to. Writes 32 bytes to `digest`.
int32_t undercroft_family_digest(const struct undercroft_family *family, uint8_t *digest) UNDERCROFT_NOEXCEPT;

// Keys from an engine's own hashes of prefixes, which cover neither model nor layout: each is bound to the
// family. `hashes` are `count` hashes of `hash_bytes` bytes each, one after another; `keys` has room for
// `count` keys of 32 bytes.
int32_t undercroft_keys_from_hashes(const uint8_t *family_digest,
                                    const uint8_t *hashes,
                                    size_t hash_bytes,
                                    size_t count,
                                    uint8_t *keys)
UNDERCROFT_NOEXCEPT;

// Keys of the full pages of a list of tokens: each depends on all tokens up to the end of its page. What is
// left of the tokens after the last full page has no key.
//
// `salt` narrows who shares the pages (a tenant's `cache_salt`); null and 0 for none. `keys` has room for
// `capacity` keys of 32 bytes, and `tokens / page_tokens` are needed; how many were written goes to
// `count`.
int32_t undercroft_keys_from_tokens(const uint8_t *family_digest,
                                    uint32_t page_tokens,
                                    const uint8_t *salt,
                                    size_t salt_bytes,
                                    const uint32_t *tokens,
                                    size_t n_tokens,
                                    uint8_t *keys,
                                    size_t capacity,
                                    size_t *count)
UNDERCROFT_NOEXCEPT;

// Opens a space, now and again in every later session. It goes to `space`; free it with
// `undercroft_space_free`.
//
// Where nobody insisted on a daemon (`wait_us` of 0), a space is handed out even if the daemon is not there or
// does not answer in time, which takes the deadline to find out (0 to wait for nobody); what is asked of it
// misses until it is open. Otherwise `UNDERCROFT_ERROR_OPEN`.
int32_t undercroft_space_open(const struct undercroft_client *client,
                              const struct undercroft_space_options *options,
                              uint64_t deadline_us,
                              struct undercroft_space **space)
UNDERCROFT_NOEXCEPT;

// Frees a space. Null is allowed. Tasks started in it go on.
void undercroft_space_free(struct undercroft_space *space) UNDERCROFT_NOEXCEPT;

// `UNDERCROFT_OK` if the space is open in the session of the moment, else why not. Never waits.
int32_t undercroft_space_is_open(const struct undercroft_space *space) UNDERCROFT_NOEXCEPT;

// Says what computing one page anew costs, nanoseconds, when the engine does little else; 0: not known, as at
// first. The daemon weighs lookups and loads of the space against it from the next call on. Never waits.
int32_t undercroft_space_set_recompute(const struct undercroft_space *space,
                                       uint64_t page_ns)
UNDERCROFT_NOEXCEPT;

// Lifts pages towards DRAM ahead of need, to stay there for about `ttl_us`. `keys` are `count` keys of one
// chain from its start. What was set in motion goes to `prefetched`, which may be null.
int32_t undercroft_prefetch(const struct undercroft_space *space,
                            const uint8_t *keys,
                            size_t count,
                            uint64_t ttl_us,
                            uint64_t deadline_us,
                            struct undercroft_prefetched *prefetched)
UNDERCROFT_NOEXCEPT;

// Tells the daemon about the conversation whose pages, or last pages, are `keys`. `kind` is one of
// `UNDERCROFT_HINT_*`; `after_us` has a meaning for two of them.
int32_t undercroft_hint(const struct undercroft_space *space,
                        const uint8_t *keys,
                        size_t count,
                        uint32_t kind,
                        uint64_t after_us,
                        uint64_t deadline_us)
UNDERCROFT_NOEXCEPT;

// Finds the longest run of leading pages that all these spaces hold: the ranks and groups of one family, opened
// by this client. `spaces` are `n_spaces` handles, `keys` are `n_keys` keys of one chain from its start.
//
// With `hold_us` nothing of what was found is evicted until the hold is freed or that long has passed, or as long as
// the daemon lets a hold last (`policy.max_hold_ms`); 0 for no hold. The answer is there by the deadline, or it is a miss. Returns why not all was found; `found` is filled
// in whatever is returned that is not an error.
int32_t undercroft_lookup(const struct undercroft_client *client,
                          const struct undercroft_space *const *spaces,
                          size_t n_spaces,
                          const uint8_t *keys,
                          size_t n_keys,
                          uint64_t hold_us,
                          uint64_t deadline_us,
                          struct undercroft_found *found)
UNDERCROFT_NOEXCEPT;

// How many pages are held, counted from the start of the lookup's keys; 0 for null.
uint32_t undercroft_hold_pages(const struct undercroft_hold *hold) UNDERCROFT_NOEXCEPT;

// Gives the hold back and frees it. Null is allowed. Loads under way under it go on.
void undercroft_hold_free(struct undercroft_hold *hold) UNDERCROFT_NOEXCEPT;

// Makes a token with which one other process of the same tenant can take the hold over, once, within the time a
// hold may last. Writes 16 bytes to `token`. Keep the hold until the other side has it; then free it.
int32_t undercroft_hold_give(const struct undercroft_hold *hold,
                             uint64_t deadline_us,
                             uint8_t *token)
UNDERCROFT_NOEXCEPT;

// Takes over a hold that another process gave, by its token of 16 bytes. It goes to `hold`; free it with
// `undercroft_hold_free`. `UNDERCROFT_MISS_REFUSED` if the token is no hold's, was used or has expired.
int32_t undercroft_hold_take(const struct undercroft_client *client,
                             const uint8_t *token,
                             uint64_t deadline_us,
                             struct undercroft_hold **hold)
UNDERCROFT_NOEXCEPT;

// A device over blocks in host memory, laid out like an engine's KV cache. The calling thread copies. It goes to
// `device`; free it with `undercroft_device_free`. A layout whose blocks share bytes is refused.
int32_t undercroft_device_host(const struct undercroft_layout *layout,
                               struct undercroft_device **device)
UNDERCROFT_NOEXCEPT;

// A device of pages that each lie whole in a buffer of their own, in host memory: block `i` is `buffers[i]`, of
// as many bytes as the geometry's page. With `read_only` not 0 pages can be stored out of them only. It goes to
// `device`; free it with `undercroft_device_free`. Buffers that overlap are refused unless they are read-only.
int32_t undercroft_device_buffers(const struct undercroft_geometry *geometry,
                                  void *const *buffers,
                                  size_t count,
                                  uint32_t read_only,
                                  struct undercroft_device **device)
UNDERCROFT_NOEXCEPT;

// A device over blocks in a GPU's memory, in the CUDA context that is current in this thread. `options` may be
// null. It goes to `device`; free it with `undercroft_device_free`.
//
// By what it copies is measured now, unless `options` say it: some blocks are read and written back as they
// were, so nothing else may touch them during the call. The memory, the context and the streams in `options`
// must outlive the device. `UNDERCROFT_ERROR_DEVICE` if there is no driver, no context, or a call of it failed.
int32_t undercroft_device_cuda(const struct undercroft_layout *layout,
                               const struct undercroft_cuda_options *options,
                               struct undercroft_device **device)
UNDERCROFT_NOEXCEPT;

// Copies with this GPU from now on, for a client that connected before it had its device: the daemon's memory is
// registered with it in the background, and `undercroft status` says by what it copies.
int32_t undercroft_client_attach_gpu(const struct undercroft_client *client,
                                     const struct undercroft_device *device)
UNDERCROFT_NOEXCEPT;

// Frees a device. Null is allowed. Blocks of a task that is under way are still written to or read: wait for it
// first, before the memory goes.
void undercroft_device_free(struct undercroft_device *device)
UNDERCROFT_NOEXCEPT;

// Loads pages into blocks, each as soon as it is ready. Returns when every page is in place, or when the rest
// will not come; why not goes into the return value, and `loaded` is filled in whatever is returned that is not an
// error. Until it returns the blocks are the call's alone.
int32_t undercroft_load(const struct undercroft_space *space,
                        const struct undercroft_load_request *request,
                        struct undercroft_loaded *loaded)
UNDERCROFT_NOEXCEPT;

// Stores blocks: has those pages copied that the daemon wants. Returns when it has settled all of them, or at the
// deadline. That a page was declined is no miss: `stored` has the counts, and is filled in whatever is returned
// that is not an error. Until it returns the blocks must not change.
int32_t undercroft_store(const struct undercroft_space *space,
                         const struct undercroft_store_request *request,
                         struct undercroft_stored *stored)
UNDERCROFT_NOEXCEPT;

// Starts a load and returns; a thread of the client's does it. The task goes to `task`; free it with
// `undercroft_task_free`. Its deadline counts from now on. `UNDERCROFT_MISS_BUSY` if too many wait for a thread:
// then there is no task.
int32_t undercroft_load_start(const struct undercroft_space *space,
                              const struct undercroft_load_request *request,
                              struct undercroft_task **task)
UNDERCROFT_NOEXCEPT;

// Starts a store and returns; a thread of the client's does it. As `undercroft_load_start`.
int32_t undercroft_store_start(const struct undercroft_space *space,
                               const struct undercroft_store_request *request,
                               struct undercroft_task **task)
UNDERCROFT_NOEXCEPT;

// Waits until the task is over, at most until the deadline; 0 looks only. `UNDERCROFT_OK` if it is over, else
// `UNDERCROFT_PENDING`.
int32_t undercroft_task_wait(const struct undercroft_task *task, uint64_t deadline_us) UNDERCROFT_NOEXCEPT;

// Waits until layer `layer` and all before it lie in their blocks, of a load that was started with `by_layer`; of
// another one, until it is over. Of how many leading pages goes to `pages`: of fewer than were asked for if the rest
// is a miss, and of a later layer possibly of fewer than of an earlier one. `UNDERCROFT_PENDING` if that takes longer
// than the deadline.
int32_t undercroft_task_wait_layer(const struct undercroft_task *task,
                                   uint32_t layer,
                                   uint64_t deadline_us,
                                   uint32_t *pages)
UNDERCROFT_NOEXCEPT;

// The end of a started load, as `undercroft_load` would have returned it. `UNDERCROFT_PENDING`, and `loaded` as it
// was, if it is not over.
int32_t undercroft_task_loaded(const struct undercroft_task *task,
                               struct undercroft_loaded *loaded)
UNDERCROFT_NOEXCEPT;

// The end of a started store, as `undercroft_store` would have returned it. `UNDERCROFT_PENDING`, and `stored` as
// it was, if it is not over.
int32_t undercroft_task_stored(const struct undercroft_task *task,
                               struct undercroft_stored *stored)
UNDERCROFT_NOEXCEPT;

// Gives a task up that has not begun: it ends as `UNDERCROFT_MISS_RELEASED`. `UNDERCROFT_OK` if it is over and
// touches no block any more, `UNDERCROFT_PENDING` if it is under way. Never waits.
int32_t undercroft_task_cancel(const struct undercroft_task *task)
UNDERCROFT_NOEXCEPT;

// Frees a task. Null is allowed. One that has not begun is given up; one that is under way is waited for, so that no
// block is touched after this.
void undercroft_task_free(struct undercroft_task *task)
UNDERCROFT_NOEXCEPT;

// Stores bytes of any length under a key of 32 bytes: the state of a sequence, say, that an engine hands out in one
// piece (`llama_state_seq_get_data`). They are cut into pages of the space and kept as a chain of them.
//
// `UNDERCROFT_OK` if they can be loaded from now on, `UNDERCROFT_MISS_FULL` if a page of them was declined, else why
// not. `UNDERCROFT_MISS_TAKEN` if other bytes are under the key: they stay, and can be loaded, and these are not
// stored. The key must say what the bytes are, as `undercroft_keys_from_tokens` with all tokens as one page does. It is
// the key of no page: both may be in one space. The counts of pages go to `stored`, which may be null.
int32_t undercroft_blob_store(const struct undercroft_space *space,
                              const uint8_t *key,
                              const void *bytes,
                              size_t length,
                              uint64_t deadline_us,
                              struct undercroft_stored *stored)
UNDERCROFT_NOEXCEPT;

// Loads what `undercroft_blob_store` stored under a key into memory with room for `capacity` bytes. All of it, as it
// was stored, or nothing: one page that is missing is a miss, and what lies in the memory then is not to be used.
//
// How long it is goes to `length`, also where it is too long for the memory: then `UNDERCROFT_MISS_TOO_LONG` is
// returned, and a `capacity` of 0 asks for the length alone. 0 where nothing was found. `UNDERCROFT_MISS_DAMAGED` if
// the bytes are not those that were stored.
int32_t undercroft_blob_load(const struct undercroft_space *space,
                             const uint8_t *key,
                             void *into,
                             size_t capacity,
                             uint64_t deadline_us,
                             size_t *length)
UNDERCROFT_NOEXCEPT;

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UNDERCROFT_H */
