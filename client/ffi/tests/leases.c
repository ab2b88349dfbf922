/*
 * Leases that another process gave, taken over by their tokens.
 *
 *     leases SOCKET SHORT SHORT WHOLE
 *
 * Each token stands for a lease of six pages of the chain 1, as 32 hexadecimal digits. The first two are asked for
 * all eight pages, the last for those that it has.
 */
#include "check.h"

enum { THERE = 6 };

static const uint8_t *a_token(const char *digits)
{
    static uint8_t token[UNDERCROFT_TOKEN_BYTES];
    for (int i = 0; i < UNDERCROFT_TOKEN_BYTES; i++) {
        unsigned byte = 0;
        TRUE_THAT(sscanf(digits + 2 * i, "%2x", &byte) == 1);
        token[i] = (uint8_t)byte;
    }
    return token;
}

static undercroft_load_request of_lease(const chain *into, const char *token, size_t pages)
{
    undercroft_load_request request = a_load(into);
    request.keys = NULL;
    request.token = a_token(token);
    request.pages = pages;
    return request;
}

/* Whether the pages that are there, and no others, were written. */
static int has(const chain *pages, int there)
{
    for (int i = 0; i < PAGES; i++)
        if (pages->memory[i][0] != (i < there ? i + 1 : 0) || pages->memory[i][PAGE - 1] != pages->memory[i][0])
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s SOCKET SHORT SHORT WHOLE\n", argv[0]);
        return 2;
    }
    undercroft_connect_options options = {.size = sizeof options, .socket = argv[1], .wait_us = MS(5000)};
    undercroft_client *client = NULL;
    undercroft_space *space = NULL;
    undercroft_family family = a_family();
    undercroft_space_options opened = a_space(&family);
    EXPECT(undercroft_connect(&options, &client), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_space_open(client, &opened, MS(5000), &space), UNDERCROFT_OK, NULL);
    chain *pages = a_chain(1);
    undercroft_loaded loaded = {.size = sizeof loaded};

    memset(pages->memory, 0, sizeof pages->memory);
    undercroft_load_request load = of_lease(pages, argv[2], PAGES);
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_ABSENT, "no tier");
    TRUE_THAT(loaded.pages == THERE && loaded.why == UNDERCROFT_MISS_ABSENT && has(pages, THERE));
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_MISS_REFUSED, NULL);
    TRUE_THAT(loaded.pages == 0);

    memset(pages->memory, 0, sizeof pages->memory);
    undercroft_task *task = NULL;
    load = of_lease(pages, argv[3], PAGES);
    EXPECT(undercroft_load_start(space, &load, &task), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_wait(task, MS(10000)), UNDERCROFT_OK, NULL);
    EXPECT(undercroft_task_loaded(task, &loaded), UNDERCROFT_MISS_ABSENT, NULL);
    undercroft_task_free(task);
    TRUE_THAT(loaded.pages == THERE && has(pages, THERE));

    memset(pages->memory, 0, sizeof pages->memory);
    load = of_lease(pages, argv[4], THERE);
    EXPECT(undercroft_load(space, &load, &loaded), UNDERCROFT_OK, NULL);
    TRUE_THAT(loaded.pages == THERE && loaded.why == UNDERCROFT_OK && has(pages, THERE));

    free_chain(pages);
    undercroft_space_free(space);
    undercroft_client_free(client);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
