/*
 * A serving engine in little, in C: what it computed for a prompt once, it loads the next time.
 *
 *     cc -Wall -Wextra -o engine engine.c $(pkg-config --cflags --libs undercroft)
 *     ./engine [SOCKET]
 *
 * The "model" is a hash of the tokens. Everything around it is what a real engine does: a KV cache of blocks, spread
 * over a tensor for each layer; keys from the prompt's tokens; a lookup before anything is computed; a load straight
 * into blocks while the engine could do something else; a store of what had to be computed. Run it twice: the second
 * run computes nothing.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "undercroft.h"

enum {
    LAYERS = 4,
    HEADS = 2,
    HEAD_BYTES = 64,          /* one head of one token: 32 elements of 2 bytes */
    PAGE_TOKENS = 16,
    BLOCKS = 32,              /* of the engine's KV cache */
    PROMPT = 20 * PAGE_TOKENS + 5,
    PAGES = PROMPT / PAGE_TOKENS,
    FRAGMENT = PAGE_TOKENS * HEADS * HEAD_BYTES, /* K, or V, of one layer of one page */
};

#define MS(n) ((uint64_t)(n) * 1000)

/* The engine's KV cache: for each layer a tensor [2 (K and V), blocks, tokens, heads, elements]. */
static uint8_t cache[LAYERS][2][BLOCKS][FRAGMENT];

/* An error is this program's fault, and ends it. A miss never is. */
static void must(int outcome, const char *what)
{
    if (outcome < 0) {
        fprintf(stderr, "%s: %s\n", what, undercroft_last_error());
        exit(EXIT_FAILURE);
    }
}

/* What the model would compute: K and V of every layer of a page, which depend on all tokens before it. */
static void compute_page(const uint32_t *tokens, size_t page, uint32_t block)
{
    uint64_t state = 1469598103934665603u;
    for (size_t i = 0; i < (page + 1) * PAGE_TOKENS; i++)
        state = (state ^ tokens[i]) * 1099511628211u;
    for (int layer = 0; layer < LAYERS; layer++)
        for (int part = 0; part < 2; part++)
            for (int i = 0; i < FRAGMENT; i++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                cache[layer][part][block][i] = (uint8_t)(state >> 56);
            }
}

static undercroft_client *connect_to(const char *socket)
{
    /* All zero but the size are the defaults. With `wait_us` it is an error if there is no daemon; an engine that
     * is to run without one leaves it zero, and everything is a miss until there is one. */
    undercroft_connect_options options = {.size = sizeof options};
    options.socket = socket;
    options.name = "engine in little";
    options.wait_us = MS(5000);
    undercroft_client *client = NULL;
    must(undercroft_connect(&options, &client), "connect");
    return client;
}

/* Two engines share pages if, and only if, they agree on all of this. */
static undercroft_space *open_space(undercroft_client *client, uint8_t digest[UNDERCROFT_KEY_BYTES])
{
    undercroft_family family = {.size = sizeof family};
    memcpy(family.model, "a digest of config and weights", 30);
    family.dtype = UNDERCROFT_DTYPE_BF16;
    family.layers = LAYERS;
    family.kv_heads = HEADS;
    family.page_tokens = PAGE_TOKENS;
    family.layout = "thd";
    must(undercroft_family_digest(&family, digest), "family");

    undercroft_space_options options = {.size = sizeof options};
    options.family = &family;
    options.geometry.layers = LAYERS;
    options.geometry.parts = 2;
    options.geometry.part_bytes[0] = options.geometry.part_bytes[1] = FRAGMENT;
    undercroft_space *space = NULL;
    must(undercroft_space_open(client, &options, MS(5000), &space), "space");
    return space;
}

/* Where the blocks lie. The library copies between them and the daemon's memory; nothing is copied twice. */
static undercroft_device *attach_cache(void)
{
    void *bases[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++)
        bases[layer] = cache[layer];
    undercroft_layout layout = {.size = sizeof layout};
    layout.geometry.layers = LAYERS;
    layout.geometry.parts = 2;
    layout.geometry.part_bytes[0] = layout.geometry.part_bytes[1] = FRAGMENT;
    layout.blocks = BLOCKS;
    layout.kind = UNDERCROFT_LAYOUT_PARTS_FIRST;
    layout.bases = bases;
    layout.n_bases = LAYERS;
    undercroft_device *device = NULL;
    must(undercroft_device_host(&layout, &device), "device");
    return device;
}

/* Loads what a lookup found, and says how many leading pages are in place. */
static uint32_t load(undercroft_space *space, undercroft_device *device, const undercroft_found *found,
                     const uint8_t *keys, const uint32_t *blocks)
{
    undercroft_load_request request = {.size = sizeof request};
    request.device = device;
    /* There may be no hold although one was asked for: a tenant holds no more than it may. */
    request.hold = found->hold;
    request.keys = found->hold == NULL ? keys : NULL;
    request.pages = found->pages;
    request.blocks = blocks;
    request.stamp = found->stamp;
    request.by_layer = 1;
    request.deadline_us = MS(2000);
    undercroft_task *task = NULL;
    int started = undercroft_load_start(space, &request, &task);
    must(started, "load");
    if (started != UNDERCROFT_OK)
        return 0;
    /* An engine would begin with its first layer as soon as that is there. */
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint32_t pages = 0;
        must(undercroft_task_wait_layer(task, layer, MS(5000), &pages), "wait for a layer");
    }
    undercroft_loaded loaded = {.size = sizeof loaded};
    must(undercroft_task_wait(task, MS(5000)), "wait");
    must(undercroft_task_loaded(task, &loaded), "loaded");
    undercroft_task_free(task);
    return loaded.pages;
}

static void store(undercroft_space *space, undercroft_device *device, const uint8_t *keys, uint32_t from,
                  const uint32_t *blocks, uint64_t stamp)
{
    undercroft_store_request request = {.size = sizeof request};
    request.device = device;
    request.keys = keys + (size_t)from * UNDERCROFT_KEY_BYTES;
    request.parent = from == 0 ? NULL : request.keys - UNDERCROFT_KEY_BYTES;
    request.first = from;
    request.pages = PAGES - from;
    request.blocks = blocks + from;
    request.stamp = stamp;
    request.wait_for_credits = 1;
    request.deadline_us = MS(2000);
    undercroft_stored stored = {.size = sizeof stored};
    must(undercroft_store(space, &request, &stored), "store");
    printf("stored %" PRIu32 " pages, %" PRIu32 " were there already\n", stored.stored, stored.held);
}

/* Serves one prompt. Says how many pages were loaded instead of computed. */
static uint32_t serve(undercroft_client *client, undercroft_space *space, undercroft_device *device,
                      const uint8_t *digest, const uint32_t *tokens)
{
    uint8_t keys[PAGES * UNDERCROFT_KEY_BYTES];
    size_t count = 0;
    must(undercroft_keys_from_tokens(digest, PAGE_TOKENS, NULL, 0, tokens, PROMPT, keys, PAGES, &count), "keys");

    /* Which blocks this prompt gets is the engine's business. */
    uint32_t blocks[PAGES];
    for (uint32_t page = 0; page < PAGES; page++)
        blocks[page] = (page * 7 + 3) % BLOCKS;

    undercroft_found found = {.size = sizeof found};
    const undercroft_space *spaces[] = {space};
    must(undercroft_lookup(client, spaces, 1, keys, count, MS(1000), MS(50), &found), "lookup");
    printf("found %" PRIu32 " of %d pages (%s)\n", found.pages, PAGES, undercroft_outcome_name(found.why));
    uint32_t loaded = found.pages == 0 ? 0 : load(space, device, &found, keys, blocks);
    undercroft_hold_free(found.hold);

    for (uint32_t page = loaded; page < PAGES; page++)
        compute_page(tokens, page, blocks[page]);
    if (loaded < PAGES)
        store(space, device, keys, loaded, blocks, found.stamp);
    return loaded;
}

/* What was loaded must be what would have been computed. */
static void check(const uint32_t *tokens)
{
    static uint8_t loaded[LAYERS][2][BLOCKS][FRAGMENT];
    memcpy(loaded, cache, sizeof cache);
    memset(cache, 0, sizeof cache);
    for (uint32_t page = 0; page < PAGES; page++)
        compute_page(tokens, page, (page * 7 + 3) % BLOCKS);
    if (memcmp(loaded, cache, sizeof cache) != 0) {
        fprintf(stderr, "wrong bytes were loaded\n");
        exit(EXIT_FAILURE);
    }
}

int main(int argc, char **argv)
{
    if (undercroft_abi_version() < UNDERCROFT_ABI_VERSION) {
        fprintf(stderr, "libundercroft %s is older than its header\n", undercroft_version());
        return EXIT_FAILURE;
    }
    undercroft_client *client = connect_to(argc > 1 ? argv[1] : NULL);
    uint8_t digest[UNDERCROFT_KEY_BYTES];
    undercroft_space *space = open_space(client, digest);
    undercroft_device *device = attach_cache();

    uint32_t tokens[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = i * 2654435761u % 50000;

    uint32_t loaded = 0;
    for (int round = 1; round <= 2; round++) {
        memset(cache, 0, sizeof cache);
        loaded = serve(client, space, device, digest, tokens);
        printf("round %d: %" PRIu32 " pages loaded, %" PRIu32 " computed\n", round, loaded, PAGES - loaded);
        check(tokens);
    }

    undercroft_device_free(device);
    undercroft_space_free(space);
    undercroft_client_free(client);
    return loaded == PAGES ? EXIT_SUCCESS : EXIT_FAILURE;
}
