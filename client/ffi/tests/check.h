/*
 * What the tests of the C library share: how a call is held against what is due, and a chain of pages.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "undercroft.h"

enum { PAGE = 4096, PAGES = 8 };

#define MS(n) ((uint64_t)(n) * 1000)

static int failures;

static inline void expect_at(int line, const char *call, int found, int wanted, const char *words)
{
    const char *said = undercroft_last_error();
    if (found != wanted || (words != NULL && strstr(said, words) == NULL)) {
        fprintf(stderr, "line %d: %s returned %d (%s), %d was due; it said \"%s\", \"%s\" was due\n", line, call, found,
                undercroft_outcome_name(found), wanted, said, words == NULL ? "anything" : words);
        failures++;
    }
}

#define EXPECT(call, wanted, words) expect_at(__LINE__, #call, call, wanted, words)
#define REFUSED(call, words) EXPECT(call, UNDERCROFT_ERROR_ARGUMENT, words)
#define TRUE_THAT(fact) expect_at(__LINE__, #fact, (fact) ? 1 : 0, 1, NULL)

static inline undercroft_family a_family(void)
{
    undercroft_family family = {.size = sizeof family};
    memset(family.model, 3, sizeof family.model);
    family.dtype = UNDERCROFT_DTYPE_F16;
    family.layers = family.kv_heads = family.page_tokens = 1;
    return family;
}

static inline undercroft_space_options a_space(const undercroft_family *family)
{
    undercroft_space_options options = {.size = sizeof options};
    options.family = family;
    options.geometry = (undercroft_geometry){.layers = 1, .parts = 1, .part_bytes = {PAGE}};
    return options;
}

/* A chain of pages, each byte of page `i` being `i + 1`. */
typedef struct chain {
    uint8_t memory[PAGES][PAGE];
    uint8_t keys[PAGES * UNDERCROFT_KEY_BYTES];
    undercroft_device *device;
} chain;

static inline chain *a_chain(uint32_t seed)
{
    chain *made = calloc(1, sizeof *made);
    void *buffers[PAGES];
    uint32_t tokens[PAGES];
    for (uint32_t i = 0; i < PAGES; i++) {
        memset(made->memory[i], (int)i + 1, PAGE);
        buffers[i] = made->memory[i];
        tokens[i] = seed * 1000 + i;
    }
    undercroft_family family = a_family();
    uint8_t digest[UNDERCROFT_KEY_BYTES];
    size_t count = 0;
    EXPECT(undercroft_family_digest(&family, digest), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_keys_from_tokens(digest, 1, NULL, 0, tokens, PAGES, made->keys, PAGES, &count), UNDERCROFT_OK, NULL);
    undercroft_geometry geometry = {.layers = 1, .parts = 1, .part_bytes = {PAGE}};
    EXPECT(undercroft_device_buffers(&geometry, buffers, PAGES, 0, &made->device), UNDERCROFT_OK, NULL);
    return made;
}

static inline void free_chain(chain *made)
{
    undercroft_device_free(made->device);
    free(made);
}

static inline undercroft_store_request a_store(const chain *from)
{
    undercroft_store_request request = {.size = sizeof request, .device = from->device, .keys = from->keys};
    request.pages = PAGES;
    request.wait_for_credits = 1;
    request.deadline_us = MS(5000);
    return request;
}

static inline undercroft_load_request a_load(const chain *into)
{
    undercroft_load_request request = {.size = sizeof request, .device = into->device, .keys = into->keys};
    request.pages = PAGES;
    request.deadline_us = MS(5000);
    return request;
}

#endif
