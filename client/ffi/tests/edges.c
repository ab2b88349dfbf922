/*
 * What callers get wrong, and what daemons do: every call answers with a number and words, and nothing else happens.
 *
 *     edges SOCKET
 *
 * SOCKET is a running daemon's. Ends with 0 if all is as it should be; says what is not.
 */
#define _GNU_SOURCE

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static pid_t daemon_of(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer = {.pid = -1};
    socklen_t length = sizeof peer;
    int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    if (connect(socket_fd, (struct sockaddr *)&address, sizeof address) == 0)
        getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    close(socket_fd);
    return peer.pid;
}

static void nulls(undercroft_client *client, undercroft_space *space)
{
    uint8_t bytes[32] = {0};
    uint32_t pages;
    REFUSED(undercroft_connect(NULL, NULL), "client is null");
    REFUSED(undercroft_client_close(NULL, 0), "client is null");
    REFUSED(undercroft_client_state(client, NULL), "undercroft_state is null");
    REFUSED(undercroft_client_wait(NULL, 0), "client is null");
    REFUSED(undercroft_ping(NULL, 0, NULL), "client is null");
    REFUSED(undercroft_client_attach_gpu(client, NULL), "device is null");
    REFUSED(undercroft_family_digest(NULL, bytes), "undercroft_family is null");
    REFUSED(undercroft_keys_from_hashes(bytes, NULL, 32, 1, bytes), "hashes is null");
    REFUSED(undercroft_keys_from_tokens(bytes, 1, NULL, 0, NULL, 1, bytes, 1, NULL), "tokens is null");
    REFUSED(undercroft_space_open(client, NULL, 0, NULL), "undercroft_space_options is null");
    REFUSED(undercroft_space_is_open(NULL), "space is null");
    REFUSED(undercroft_prefetch(space, NULL, 1, 0, 0, NULL), "keys is null");
    REFUSED(undercroft_hint(NULL, bytes, 1, UNDERCROFT_HINT_ACTIVE, 0, 0), "space is null");
    REFUSED(undercroft_lookup(client, NULL, 1, bytes, 1, 0, 0, NULL), "undercroft_found is null");
    REFUSED(undercroft_hold_give(NULL, 0, bytes), "hold is null");
    REFUSED(undercroft_hold_take(client, NULL, 0, NULL), "token is null");
    REFUSED(undercroft_device_host(NULL, NULL), "undercroft_layout is null");
    REFUSED(undercroft_device_buffers(NULL, NULL, 0, 0, NULL), "geometry is null");
    REFUSED(undercroft_device_cuda(NULL, NULL, NULL), "undercroft_layout is null");
    REFUSED(undercroft_load(space, NULL, NULL), "undercroft_load_request is null");
    REFUSED(undercroft_store(space, NULL, NULL), "undercroft_store_request is null");
    REFUSED(undercroft_load_start(NULL, NULL, NULL), "space is null");
    REFUSED(undercroft_store_start(NULL, NULL, NULL), "space is null");
    REFUSED(undercroft_task_wait(NULL, 0), "task is null");
    REFUSED(undercroft_task_wait_layer(NULL, 0, 0, &pages), "task is null");
    REFUSED(undercroft_task_loaded(NULL, NULL), "task is null");
    REFUSED(undercroft_task_stored(NULL, NULL), "task is null");
    REFUSED(undercroft_task_cancel(NULL), "task is null");
    TRUE_THAT(undercroft_hold_pages(NULL) == 0);
    undercroft_client_free(NULL);
    undercroft_space_free(NULL);
    undercroft_hold_free(NULL);
    undercroft_device_free(NULL);
    undercroft_task_free(NULL);
}

static void wrong_numbers(undercroft_client *client)
{
    undercroft_family family = a_family();
    undercroft_space_options options = a_space(&family);
    undercroft_space *space = NULL;
    options.size = 3;
    REFUSED(undercroft_space_open(client, &options, 0, &space), "sizeof(undercroft_space_options)");
    options = a_space(&family);
    options.geometry.parts = 9;
    REFUSED(undercroft_space_open(client, &options, 0, &space), "geometry.parts is 9");
    options.geometry = (undercroft_geometry){.layers = 1, .parts = 1, .part_bytes = {511}};
    REFUSED(undercroft_space_open(client, &options, 0, &space), "511 bytes");
    options = a_space(&family);
    options.rank_index = options.rank_count = 2;
    REFUSED(undercroft_space_open(client, &options, 0, &space), "rank is 2");
    family.dtype = 0;
    REFUSED(undercroft_space_open(client, &options, 0, &space), "family.dtype is 0");
    family = a_family();
    family.layout = "\xff";
    REFUSED(undercroft_space_open(client, &options, 0, &space), "family.layout is not UTF-8");
    TRUE_THAT(space == NULL);

    uint32_t tokens[8] = {0};
    uint8_t digest[32] = {0}, keys[32];
    size_t count = 77;
    REFUSED(undercroft_keys_from_tokens(digest, 4, NULL, 0, tokens, 8, keys, 1, &count), "2 are needed");
    REFUSED(undercroft_keys_from_tokens(digest, 0, NULL, 0, tokens, 8, keys, 1, &count), "page_tokens is 0");
    TRUE_THAT(count == 77);
}

static void devices(void)
{
    static uint8_t memory[PAGE * 4];
    void *bases[] = {memory, memory + 100};
    undercroft_geometry geometry = {.layers = 2, .parts = 1, .part_bytes = {PAGE / 2}};
    undercroft_device *device = NULL;
    undercroft_layout layout = {.size = sizeof layout, .geometry = geometry, .blocks = 2};
    layout.kind = UNDERCROFT_LAYOUT_SPLIT;
    layout.bases = bases;
    layout.n_bases = 2;
    REFUSED(undercroft_device_host(&layout, &device), "tensors 0 and 1 overlap");
    layout.n_bases = 1;
    REFUSED(undercroft_device_host(&layout, &device), "1 tensors, 2 are needed");
    layout.kind = 9;
    REFUSED(undercroft_device_host(&layout, &device), "layout.kind is 9");
    undercroft_place place = {.tensor = 0, .rows = 1, .block_stride = 8};
    undercroft_tensor tensor = {.base = memory, .bytes = sizeof memory};
    undercroft_place places[] = {place, place};
    layout.kind = UNDERCROFT_LAYOUT_PLACES;
    layout.tensors = &tensor;
    layout.n_tensors = 1;
    layout.places = places;
    layout.n_places = 2;
    REFUSED(undercroft_device_host(&layout, &device), "overlap");
    places[0].tensor = 4;
    REFUSED(undercroft_device_host(&layout, &device), "lies in tensor 4");
    EXPECT(undercroft_device_buffers(&geometry, bases, 2, 0, &device), UNDERCROFT_ERROR_DEVICE, "buffers");
    TRUE_THAT(device == NULL);
}

static void wrong_requests(undercroft_space *space, chain *pages)
{
    undercroft_loaded loaded = {.size = sizeof loaded};
    undercroft_stored stored = {.size = sizeof stored};
    undercroft_load_request load = a_load(pages);
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_ABSENT, "no tier");
    TRUE_THAT(loaded.pages == 0 && loaded.why == UNDERCROFT_MISS_ABSENT);
    load.keys = NULL;
    REFUSED(undercroft_load(space, &load, &loaded), "exactly one of");
    load = a_load(pages);
    const uint32_t twice[] = {0, 1, 2, 3, 4, 5, 6, 6}, beyond[] = {0, 1, 2, 3, 4, 5, 6, 800};
    load.blocks = twice;
    REFUSED(undercroft_load(space, &load, &loaded), "block 6 twice");
    load.blocks = beyond;
    REFUSED(undercroft_load(space, &load, &loaded), "request.blocks[7] is 800, and the device has 8 blocks");
    load = a_load(pages);
    load.pages = UINT32_MAX;
    REFUSED(undercroft_load(space, &load, &loaded), "request.pages is 4294967295, and the device has 8 blocks");
    load.pages = SIZE_MAX;
    load.blocks = beyond;
    REFUSED(undercroft_load(space, &load, &loaded), "the device has 8 blocks");
    undercroft_store_request store = a_store(pages);
    store.first = 1;
    REFUSED(undercroft_store(space, &store, &stored), "contradict");
    store = a_store(pages);
    store.use_after_stream = 1;
    REFUSED(undercroft_store(space, &store, &stored), "no GPU");
    store = a_store(pages);
    store.blocks = beyond;
    REFUSED(undercroft_store(space, &store, &stored), "request.blocks[7] is 800, and the device has 8 blocks");
    store.blocks = NULL;
    store.pages = SIZE_MAX;
    REFUSED(undercroft_store(space, &store, &stored), "the device has 8 blocks");
    /* Nothing is started, and nothing is left to free. */
    undercroft_task *task = (undercroft_task *)pages;
    REFUSED(undercroft_store_start(space, &store, &task), "the device has 8 blocks");
    TRUE_THAT(task == NULL);
}

/* Calls that could never load or store anything are wrong, and no misses. */
static void what_does_not_fit(undercroft_client *client, undercroft_space *space, const char *socket)
{
    undercroft_family family = a_family();
    undercroft_space_options options = a_space(&family);
    undercroft_connect_options connect = {.size = sizeof connect, .socket = socket, .wait_us = MS(5000)};
    undercroft_client *other = NULL;
    undercroft_space *others = NULL, *longer = NULL;
    EXPECT(undercroft_connect(&connect, &other), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_space_open(other, &options, MS(5000), &others), UNDERCROFT_OK, NULL);
    options.geometry.part_bytes[0] = 2 * PAGE;
    EXPECT(undercroft_space_open(client, &options, MS(5000), &longer), UNDERCROFT_OK, NULL);
    chain *pages = a_chain(1);
    undercroft_loaded loaded = {.size = sizeof loaded};
    undercroft_stored stored = {.size = sizeof stored};
    undercroft_load_request load = a_load(pages);
    undercroft_store_request store = a_store(pages);
    REFUSED(undercroft_load(longer, &load, &loaded), "the device's pages are");
    REFUSED(undercroft_store(longer, &store, &stored), "the device's pages are");
    undercroft_found found = {.size = sizeof found};
    const undercroft_space *spaces[] = {space, others};
    REFUSED(undercroft_lookup(client, spaces, 0, pages->keys, 1, 0, MS(100), &found), "n_spaces is 0, allowed 1 to 256");
    REFUSED(undercroft_lookup(client, spaces, 257, pages->keys, 1, 0, MS(100), &found), "n_spaces is 257");
    REFUSED(undercroft_lookup(client, spaces, 2, pages->keys, 1, 0, MS(100), &found), "spaces[1] was opened by another");
    REFUSED(undercroft_hint(space, pages->keys, 1, 7, 0, MS(100)), "kind is 7");
    uint32_t token = 7;
    uint8_t digest[UNDERCROFT_KEY_BYTES] = {0};
    size_t count = 77;
    REFUSED(undercroft_keys_from_tokens(digest, 1, NULL, 0, &token, 1, NULL, 1, &count), "keys is null");
    TRUE_THAT(count == 77);
    free_chain(pages);
    undercroft_space_free(longer);
    undercroft_space_free(others);
    undercroft_client_free(other);
}

/* The last pages of a hold, into places that are told one by one, in the other order. */
static void parts_of_a_hold(undercroft_client *client, undercroft_space *space, chain *pages)
{
    undercroft_found found = {.size = sizeof found};
    const undercroft_space *spaces[] = {space};
    EXPECT(undercroft_lookup(client, spaces, 1, pages->keys, PAGES, MS(5000), MS(1000), &found), UNDERCROFT_OK, NULL);
    TRUE_THAT(found.pages == PAGES && undercroft_hold_pages(found.hold) == PAGES);
    static uint8_t memory[2 * PAGE];
    memset(memory, 0, sizeof memory);
    undercroft_place place = {.tensor = 0, .rows = 1, .block_stride = PAGE};
    undercroft_tensor tensor = {.base = memory, .bytes = sizeof memory};
    undercroft_layout layout = {.size = sizeof layout, .blocks = 2, .kind = UNDERCROFT_LAYOUT_PLACES};
    layout.geometry = (undercroft_geometry){.layers = 1, .parts = 1, .part_bytes = {PAGE}};
    layout.tensors = &tensor;
    layout.n_tensors = 1;
    layout.places = &place;
    layout.n_places = 1;
    undercroft_device *device = NULL;
    EXPECT(undercroft_device_host(&layout, &device), UNDERCROFT_OK, NULL);
    undercroft_loaded loaded = {.size = sizeof loaded};
    const uint32_t backwards[] = {1, 0};
    undercroft_load_request load = {.size = sizeof load, .device = device, .hold = found.hold, .hold_first = PAGES - 2};
    load.pages = 2;
    load.blocks = backwards;
    load.stamp = found.stamp;
    load.deadline_us = MS(5000);
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_OK, NULL);
    TRUE_THAT(loaded.pages == 2 && memory[0] == PAGES && memory[PAGE] == PAGES - 1);
    undercroft_hold_free(found.hold);
    undercroft_device_free(device);
}

/* A load layer by layer of which the end is missing: each wait says of how many pages a layer is there. */
static void layers_that_miss(undercroft_space *space, chain *pages)
{
    chain *others = a_chain(77);
    memcpy(pages->keys + 3 * UNDERCROFT_KEY_BYTES, others->keys, UNDERCROFT_KEY_BYTES);
    undercroft_load_request load = a_load(pages);
    load.by_layer = 1;
    undercroft_task *task = NULL;
    EXPECT(undercroft_load_start(space, &load, &task), UNDERCROFT_OK, NULL);
    uint32_t there = 77;
    EXPECT(undercroft_task_wait_layer(task, 0, MS(5000), &there), UNDERCROFT_OK, NULL);
    TRUE_THAT(there == 3);
    REFUSED(undercroft_task_wait_layer(task, 1, 0, &there), "layer is 1, allowed less than 1");
    undercroft_loaded loaded = {.size = sizeof loaded};
    EXPECT(undercroft_task_wait(task, MS(5000)), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_loaded(task, &loaded), UNDERCROFT_MISS_ABSENT, "no tier");
    TRUE_THAT(loaded.pages == 3);
    undercroft_task_free(task);
    /* Not by layer: one wait for all of it. */
    load.by_layer = 0;
    EXPECT(undercroft_load_start(space, &load, &task), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_wait_layer(task, 0, MS(5000), &there), UNDERCROFT_MISS_ABSENT, "no tier");
    TRUE_THAT(there == 3);
    undercroft_task_free(task);
    undercroft_store_request store = a_store(others);
    store.pages = 1;
    EXPECT(undercroft_store_start(space, &store, &task), UNDERCROFT_OK, NULL);
    REFUSED(undercroft_task_wait_layer(task, 0, MS(5000), &there), "the task is a store");
    EXPECT(undercroft_task_wait(task, MS(5000)), UNDERCROFT_OK, NULL);
    undercroft_task_free(task);
    free_chain(others);
}

static void requests(undercroft_client *client, undercroft_space *space)
{
    chain *pages = a_chain(1);
    wrong_requests(space, pages);
    undercroft_loaded loaded = {.size = sizeof loaded};
    undercroft_stored stored = {.size = sizeof stored};
    undercroft_store_request store = a_store(pages);
    EXPECT(undercroft_store(space, &store, &stored), UNDERCROFT_OK, NULL);
    TRUE_THAT(stored.stored == PAGES);
    memset(pages->memory, 0, sizeof pages->memory);
    /* Backwards, in a task. */
    const uint32_t backwards[] = {7, 6, 5, 4, 3, 2, 1, 0};
    undercroft_load_request load = a_load(pages);
    load.blocks = backwards;
    undercroft_task *task = NULL;
    EXPECT(undercroft_load_start(space, &load, &task), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_wait(task, MS(10000)), UNDERCROFT_OK, NULL);
    REFUSED(undercroft_task_stored(task, &stored), "the task is a load");
    EXPECT(undercroft_task_loaded(task, &loaded), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_cancel(task), UNDERCROFT_OK, NULL);
    undercroft_task_free(task);
    TRUE_THAT(loaded.pages == PAGES && loaded.bytes == PAGES * PAGE);
    for (int i = 0; i < PAGES; i++)
        TRUE_THAT(pages->memory[i][0] == PAGES - i && pages->memory[i][PAGE - 1] == PAGES - i);
    /* What is kept, by other ways: hints, prefetches, a part of a hold, a layout of places. */
    EXPECT(undercroft_hint(space, pages->keys, PAGES, UNDERCROFT_HINT_PIN, MS(1000), MS(1000)), UNDERCROFT_OK, NULL);
    undercroft_prefetched lifted = {.size = sizeof lifted};
    EXPECT(undercroft_prefetch(space, pages->keys, PAGES, MS(100), MS(1000), &lifted), UNDERCROFT_OK, NULL);
    TRUE_THAT(lifted.resident == PAGES && lifted.started == 0);
    parts_of_a_hold(client, space, pages);
    layers_that_miss(space, pages);
    free_chain(pages);
}

/* Every length around a page's end comes back as it was, and nothing comes back of another key. */
static void blobs(undercroft_space *space)
{
    static uint8_t kept[5 * PAGE], restored[5 * PAGE];
    const size_t lengths[] = {0, 1, PAGE - 65, PAGE - 64, PAGE - 63, PAGE, 2 * PAGE - 64, 2 * PAGE - 63, 4 * PAGE + 17};
    uint8_t key[UNDERCROFT_KEY_BYTES] = {0xb1, 0x0b};
    size_t length = 1;
    EXPECT(undercroft_blob_load(space, key, restored, sizeof restored, MS(1000), &length), UNDERCROFT_MISS_ABSENT, NULL);
    TRUE_THAT(length == 0);
    for (size_t i = 0; i < sizeof kept; i++)
        kept[i] = (uint8_t)(i * 31 + i / PAGE);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        undercroft_stored stored = {.size = sizeof stored};
        key[2] = (uint8_t)i;
        memset(restored, 0, sizeof restored);
        EXPECT(undercroft_blob_store(space, key, kept, lengths[i], MS(5000), &stored), UNDERCROFT_OK, NULL);
        TRUE_THAT(stored.stored + stored.held == lengths[i] / PAGE + (lengths[i] % PAGE > PAGE - 64) + 1);
        EXPECT(undercroft_blob_load(space, key, NULL, 0, MS(5000), &length),
               lengths[i] == 0 ? UNDERCROFT_OK : UNDERCROFT_MISS_TOO_LONG, NULL);
        TRUE_THAT(length == lengths[i]);
        EXPECT(undercroft_blob_load(space, key, restored, lengths[i], MS(5000), &length), UNDERCROFT_OK, NULL);
        TRUE_THAT(length == lengths[i] && memcmp(kept, restored, length) == 0);
    }
    /* Nobody waits, but what has come by then is taken. */
    int at_once = undercroft_blob_load(space, key, restored, sizeof restored, 0, &length);
    TRUE_THAT(at_once == UNDERCROFT_MISS_DEADLINE || (at_once == UNDERCROFT_OK && memcmp(kept, restored, length) == 0));
    REFUSED(undercroft_blob_load(space, key, NULL, 1, 0, &length), "into is null");
    REFUSED(undercroft_blob_store(space, key, NULL, 1, 0, NULL), "bytes is null");
    /* Other bytes under a key that is taken. */
    undercroft_stored stored = {.size = sizeof stored};
    EXPECT(undercroft_blob_store(space, key, kept + 1, 3 * PAGE, MS(5000), &stored), UNDERCROFT_MISS_TAKEN, "other bytes");
    TRUE_THAT(stored.stored == 0 && stored.held == 0 && stored.unsettled == 4 && stored.why == UNDERCROFT_MISS_TAKEN);
    /* A page that is no blob, and a blob that is no page. */
    chain *pages = a_chain(1);
    EXPECT(undercroft_blob_load(space, pages->keys, restored, sizeof restored, MS(1000), &length),
           UNDERCROFT_MISS_ABSENT, NULL);
    undercroft_loaded loaded = {.size = sizeof loaded};
    undercroft_load_request load = a_load(pages);
    load.keys = key;
    load.pages = 1;
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_ABSENT, NULL);
    free_chain(pages);
}

/* What waits for a thread is given up when the client is freed, and what was begun ends. */
static void ends_with_tasks(const char *socket)
{
    undercroft_connect_options options = {.size = sizeof options, .socket = socket, .wait_us = MS(5000)};
    options.threads = 1;
    options.max_tasks = 2;
    undercroft_client *client = NULL;
    undercroft_space *space = NULL;
    undercroft_family family = a_family();
    undercroft_space_options opened = a_space(&family);
    EXPECT(undercroft_connect(&options, &client), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_space_open(client, &opened, MS(5000), &space), UNDERCROFT_OK, NULL);
    chain *pages = a_chain(2);
    undercroft_store_request store = a_store(pages);
    store.deadline_us = MS(1000);
    pid_t daemon = daemon_of(socket);
    TRUE_THAT(daemon > 0 && kill(daemon, SIGSTOP) == 0);
    undercroft_task *tasks[3] = {NULL};
    uint64_t until = now_ms() + 10000;
    for (int started = 0; started < 3 && now_ms() < until;)
        started += undercroft_store_start(space, &store, &tasks[started]) == UNDERCROFT_OK;
    undercroft_client_free(client);
    TRUE_THAT(kill(daemon, SIGCONT) == 0);
    for (int i = 0; i < 3; i++) {
        undercroft_stored stored = {.size = sizeof stored};
        int wanted = i == 0 ? UNDERCROFT_MISS_DEADLINE : UNDERCROFT_MISS_RELEASED;
        EXPECT(undercroft_task_wait(tasks[i], 0), UNDERCROFT_OK, NULL);
        EXPECT(undercroft_task_stored(tasks[i], &stored), wanted, i == 0 ? "deadline" : "given up before it began");
        TRUE_THAT(stored.unsettled == PAGES && stored.why == wanted);
        undercroft_task_free(tasks[i]);
    }
    undercroft_task *late = NULL;
    EXPECT(undercroft_store_start(space, &store, &late), UNDERCROFT_MISS_DISCONNECTED, NULL);
    TRUE_THAT(late == NULL);
    undercroft_space_free(space);
    free_chain(pages);
}

/* While the daemon stands still: what is under way, what waits, and what is refused. */
static void tasks_that_wait(const char *socket)
{
    undercroft_connect_options options = {.size = sizeof options, .socket = socket, .wait_us = MS(5000)};
    options.threads = 1;
    options.max_tasks = 2;
    undercroft_client *client = NULL;
    undercroft_space *space = NULL;
    undercroft_family family = a_family();
    undercroft_space_options opened = a_space(&family);
    EXPECT(undercroft_connect(&options, &client), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_space_open(client, &opened, MS(5000), &space), UNDERCROFT_OK, NULL);
    chain *pages = a_chain(3), *stored = a_chain(4);
    undercroft_load_request load = a_load(pages);
    undercroft_store_request store = a_store(stored);
    load.deadline_us = MS(1500);
    store.deadline_us = MS(60000);
    pid_t daemon = daemon_of(socket);
    TRUE_THAT(daemon > 0 && kill(daemon, SIGSTOP) == 0);
    undercroft_task *slow = NULL, *tasks[3] = {NULL}, *refused = NULL;
    EXPECT(undercroft_store_start(space, &store, &slow), UNDERCROFT_OK, NULL);
    /* One more than may wait is taken as soon as the first is under way, and then no more. */
    uint64_t until = now_ms() + 10000;
    for (int started = 0; started < 3 && now_ms() < until;)
        started += undercroft_load_start(space, &load, &tasks[started]) == UNDERCROFT_OK;
    EXPECT(undercroft_load_start(space, &load, &refused), UNDERCROFT_MISS_BUSY, "too many");
    TRUE_THAT(refused == NULL);
    undercroft_loaded loaded = {.size = sizeof loaded};
    EXPECT(undercroft_task_wait(tasks[0], 0), UNDERCROFT_PENDING, "undercroft_task_wait: pending");
    EXPECT(undercroft_task_loaded(tasks[0], &loaded), UNDERCROFT_PENDING, "undercroft_task_loaded: pending");
    EXPECT(undercroft_task_cancel(tasks[0]), UNDERCROFT_PENDING, "pending");
    EXPECT(undercroft_task_cancel(tasks[1]), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_wait(tasks[1], 0), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_loaded(tasks[1], &loaded), UNDERCROFT_MISS_RELEASED, "given up before it began");
    TRUE_THAT(loaded.pages == 0 && loaded.why == UNDERCROFT_MISS_RELEASED);
    /* No load waits behind a store. */
    EXPECT(undercroft_task_wait(tasks[0], MS(20000)), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_loaded(tasks[0], &loaded), UNDERCROFT_MISS_DEADLINE, "deadline");
    EXPECT(undercroft_task_wait(slow, 0), UNDERCROFT_PENDING, NULL);
    TRUE_THAT(kill(daemon, SIGCONT) == 0);
    EXPECT(undercroft_task_wait(slow, MS(20000)), UNDERCROFT_OK, NULL);
    undercroft_stored kept = {.size = sizeof kept};
    EXPECT(undercroft_task_stored(slow, &kept), UNDERCROFT_OK, NULL);
    TRUE_THAT(kept.stored == PAGES);
    for (int i = 0; i < 3; i++)
        undercroft_task_free(tasks[i]);
    undercroft_task_free(slow);
    undercroft_space_free(space);
    undercroft_client_free(client);
    free_chain(pages);
    free_chain(stored);
}

static void a_child_misses(undercroft_client *client, undercroft_space *space)
{
    /* What is there before the fork: the threads of tasks, a task that is over, a hold. */
    chain *kept = a_chain(1);
    undercroft_load_request before = a_load(kept);
    undercroft_task *done = NULL;
    EXPECT(undercroft_load_start(space, &before, &done), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_wait(done, MS(10000)), UNDERCROFT_OK, NULL);
    undercroft_found found = {.size = sizeof found};
    const undercroft_space *spaces[] = {space};
    EXPECT(undercroft_lookup(client, spaces, 1, kept->keys, PAGES, MS(9000), MS(1000), &found), UNDERCROFT_OK, NULL);
    TRUE_THAT(found.hold != NULL);
    pid_t child = fork();
    if (child == 0) {
        chain *pages = a_chain(1);
        undercroft_loaded loaded = {.size = sizeof loaded};
        undercroft_load_request load = a_load(pages);
        undercroft_task *task = NULL;
        undercroft_state state = {.size = sizeof state};
        EXPECT(undercroft_ping(client, MS(100), NULL), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_load_start(space, &load, &task), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_client_state(client, &state), UNDERCROFT_OK, NULL);
        TRUE_THAT(state.state == UNDERCROFT_STATE_FORKED);
        undercroft_family family = a_family();
        undercroft_space_options opened = a_space(&family);
        undercroft_space *none = space;
        uint8_t token[UNDERCROFT_TOKEN_BYTES];
        EXPECT(undercroft_space_open(client, &opened, MS(100), &none), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_space_is_open(space), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_client_wait(client, MS(100)), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_client_close(client, MS(100)), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_hold_give(found.hold, MS(100), token), UNDERCROFT_MISS_FORKED, "forked");
        EXPECT(undercroft_blob_store(space, kept->keys, "", 1, MS(100), NULL), UNDERCROFT_MISS_FORKED,
               "forked");
        TRUE_THAT(none == NULL);
        /* What was over is over here too. */
        EXPECT(undercroft_task_wait(done, 0), UNDERCROFT_OK, NULL);
        EXPECT(undercroft_task_loaded(done, &loaded), UNDERCROFT_OK, NULL);
        TRUE_THAT(loaded.pages == PAGES);
        undercroft_task_free(done);
        undercroft_hold_free(found.hold);
        undercroft_space_free(space);
        undercroft_client_free(client);
        free_chain(kept);
        free_chain(pages);
        _exit(failures == 0 ? 0 : 1);
    }
    int status = -1;
    TRUE_THAT(waitpid(child, &status, 0) == child);
    TRUE_THAT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(undercroft_ping(client, MS(2000), NULL), UNDERCROFT_OK, NULL);
    undercroft_task_free(done);
    undercroft_hold_free(found.hold);
    free_chain(kept);
}

/* An engine without a daemon goes on, at once and without an error. */
static void without_a_daemon(void)
{
    undercroft_connect_options options = {.size = sizeof options, .socket = "/nonexistent/undercroft.sock"};
    undercroft_client *client = NULL;
    undercroft_space *space = NULL;
    undercroft_family family = a_family();
    undercroft_space_options opened = a_space(&family);
    EXPECT(undercroft_connect(&options, &client), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_space_open(client, &opened, 0, &space), UNDERCROFT_OK, NULL);
    chain *pages = a_chain(1);
    undercroft_found found = {.size = sizeof found};
    const undercroft_space *spaces[] = {space};
    uint64_t began = now_ms();
    EXPECT(undercroft_lookup(client, spaces, 1, pages->keys, PAGES, MS(100), MS(60000), &found),
           UNDERCROFT_MISS_DISCONNECTED, NULL);
    undercroft_loaded loaded = {.size = sizeof loaded};
    undercroft_stored stored = {.size = sizeof stored};
    undercroft_load_request load = a_load(pages);
    undercroft_store_request store = a_store(pages);
    load.deadline_us = store.deadline_us = MS(60000);
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_DISCONNECTED, NULL);
    EXPECT(undercroft_store(space, &store, &stored), UNDERCROFT_MISS_DISCONNECTED, NULL);
    TRUE_THAT(found.pages == 0 && found.hold == NULL && loaded.pages == 0 && stored.unsettled == PAGES);
    EXPECT(undercroft_client_wait(client, MS(20)), UNDERCROFT_MISS_DISCONNECTED, "no daemon");
    EXPECT(undercroft_space_is_open(space), UNDERCROFT_MISS_DISCONNECTED, "no daemon");
    /* None of them has waited for its deadline. */
    TRUE_THAT(now_ms() - began < 60000);
    options.wait_us = MS(10);
    undercroft_client *none = NULL;
    EXPECT(undercroft_connect(&options, &none), UNDERCROFT_ERROR_CONNECT, "undercroft serve");
    TRUE_THAT(none == NULL);
    free_chain(pages);
    undercroft_space_free(space);
    undercroft_client_free(client);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
        return 2;
    }
    TRUE_THAT(undercroft_abi_version() == UNDERCROFT_ABI_VERSION);
    TRUE_THAT(strcmp(undercroft_outcome_name(UNDERCROFT_MISS_TOO_LONG), "too_long") == 0);
    TRUE_THAT(strcmp(undercroft_outcome_name(12345), "unknown") == 0);
    undercroft_connect_options options = {.size = sizeof options, .socket = argv[1], .wait_us = MS(5000)};
    undercroft_client *client = NULL;
    undercroft_space *space = NULL;
    undercroft_family family = a_family();
    undercroft_space_options opened = a_space(&family);
    EXPECT(undercroft_connect(&options, &client), UNDERCROFT_OK, NULL);
    if (client == NULL)
        return EXIT_FAILURE;
    EXPECT(undercroft_space_open(client, &opened, MS(5000), &space), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_space_is_open(space), UNDERCROFT_OK, NULL);
    undercroft_state state = {.size = sizeof state};
    EXPECT(undercroft_client_state(client, &state), UNDERCROFT_OK, NULL);
    TRUE_THAT(state.state == UNDERCROFT_STATE_CONNECTED);

    nulls(client, space);
    wrong_numbers(client);
    devices();
    requests(client, space);
    what_does_not_fit(client, space, argv[1]);
    blobs(space);
    ends_with_tasks(argv[1]);
    tasks_that_wait(argv[1]);
    a_child_misses(client, space);
    without_a_daemon();

    EXPECT(undercroft_client_close(client, MS(5000)), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_ping(client, MS(100), NULL), UNDERCROFT_MISS_DISCONNECTED, NULL);
    undercroft_space_free(space);
    undercroft_client_free(client);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
