/*
 * What callers get wrong, and what daemons do: every call answers with a number and words, and nothing else happens.
 *
 *     edges SOCKET
 *
 * SOCKET is a running daemon's. Ends with 0 if all is as it should be; says what is not.
 */
#define _POSIX_C_SOURCE 200809L

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
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_INVALID, NULL);
    undercroft_store_request store = a_store(pages);
    store.first = 1;
    REFUSED(undercroft_store(space, &store, &stored), "contradict");
    store = a_store(pages);
    store.use_after_stream = 1;
    REFUSED(undercroft_store(space, &store, &stored), "no GPU");
    store = a_store(pages);
    store.blocks = beyond;
    EXPECT(undercroft_store(space, &store, &stored), UNDERCROFT_MISS_DEVICE, "block 800");
}

static void requests(undercroft_space *space)
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
    undercroft_task *tasks[64] = {NULL};
    int started = 0, busy = 0;
    for (int i = 0; i < 64; i++) {
        int outcome = undercroft_store_start(space, &store, &tasks[i]);
        started += outcome == UNDERCROFT_OK;
        busy += outcome == UNDERCROFT_MISS_BUSY;
    }
    TRUE_THAT(started > 0 && started + busy == 64);
    undercroft_client_free(client);
    for (int i = 0; i < 64; i++) {
        undercroft_stored stored = {.size = sizeof stored};
        if (tasks[i] == NULL)
            continue;
        EXPECT(undercroft_task_wait(tasks[i], 0), UNDERCROFT_OK, NULL);
        int outcome = undercroft_task_stored(tasks[i], &stored);
        TRUE_THAT(outcome == UNDERCROFT_OK || outcome == UNDERCROFT_MISS_RELEASED);
        TRUE_THAT(stored.stored + stored.held + stored.coming + stored.unsettled == PAGES);
        undercroft_task_free(tasks[i]);
    }
    undercroft_task *late = NULL;
    EXPECT(undercroft_store_start(space, &store, &late), UNDERCROFT_MISS_DISCONNECTED, NULL);
    TRUE_THAT(late == NULL);
    undercroft_space_free(space);
    free_chain(pages);
}

static void a_child_misses(undercroft_client *client, undercroft_space *space)
{
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
        undercroft_space_free(space);
        undercroft_client_free(client);
        free_chain(pages);
        _exit(failures == 0 ? 0 : 1);
    }
    int status = -1;
    TRUE_THAT(waitpid(child, &status, 0) == child);
    TRUE_THAT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT(undercroft_ping(client, MS(2000), NULL), UNDERCROFT_OK, NULL);
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
    EXPECT(undercroft_lookup(client, spaces, 1, pages->keys, PAGES, MS(100), MS(50), &found),
           UNDERCROFT_MISS_DISCONNECTED, NULL);
    undercroft_loaded loaded = {.size = sizeof loaded};
    undercroft_stored stored = {.size = sizeof stored};
    undercroft_load_request load = a_load(pages);
    undercroft_store_request store = a_store(pages);
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_DISCONNECTED, NULL);
    EXPECT(undercroft_store(space, &store, &stored), UNDERCROFT_MISS_DISCONNECTED, NULL);
    TRUE_THAT(found.pages == 0 && found.hold == NULL && loaded.pages == 0 && stored.unsettled == PAGES);
    EXPECT(undercroft_client_wait(client, MS(20)), UNDERCROFT_MISS_DISCONNECTED, NULL);
    TRUE_THAT(now_ms() - began < 5000);
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
    requests(space);
    blobs(space);
    ends_with_tasks(argv[1]);
    a_child_misses(client, space);
    without_a_daemon();

    EXPECT(undercroft_client_close(client, MS(5000)), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_ping(client, MS(100), NULL), UNDERCROFT_MISS_DISCONNECTED, NULL);
    undercroft_space_free(space);
    undercroft_client_free(client);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
