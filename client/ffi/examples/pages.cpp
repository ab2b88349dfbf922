// Pages that a cache in front of an engine has gathered already, kept from C++17.
//
//     c++ -std=c++17 -Wall -Wextra -o pages pages.cpp $(pkg-config --cflags --libs undercroft)
//     ./pages [SOCKET]
//
// Handles are unique pointers, wrong calls are exceptions, and a miss is a value. One client stores pages and holds
// them for another, which takes the hold over by its token, as a worker does from a scheduler.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "undercroft.h"

namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t us(std::chrono::microseconds time) { return static_cast<std::uint64_t>(time.count()); }

// Only what this program got wrong is an exception.
int checked(int outcome, const char *what) {
    if (outcome < 0) throw std::runtime_error(std::string(what) + ": " + undercroft_last_error());
    return outcome;
}

template <auto free>
struct Free {
    template <typename Handle>
    void operator()(Handle *handle) const { free(handle); }
};

using Client = std::unique_ptr<undercroft_client, Free<undercroft_client_free>>;
using Space = std::unique_ptr<undercroft_space, Free<undercroft_space_free>>;
using Device = std::unique_ptr<undercroft_device, Free<undercroft_device_free>>;
using Hold = std::unique_ptr<undercroft_hold, Free<undercroft_hold_free>>;
using Task = std::unique_ptr<undercroft_task, Free<undercroft_task_free>>;
using Key = std::array<std::uint8_t, UNDERCROFT_KEY_BYTES>;
using Token = std::array<std::uint8_t, UNDERCROFT_TOKEN_BYTES>;

// A struct of the library, all defaults.
template <typename Struct>
Struct sized() {
    Struct made{};
    made.size = sizeof(Struct);
    return made;
}

constexpr std::size_t page_bytes = 48 * 1024;
constexpr std::size_t pages = 12;
constexpr undercroft_geometry geometry{1, 1, {page_bytes, 0, 0, 0, 0, 0, 0, 0}};

Client connect(const char *socket, const char *name) {
    auto options = sized<undercroft_connect_options>();
    options.socket = socket;
    options.name = name;
    options.wait_us = us(5s);
    undercroft_client *client = nullptr;
    checked(undercroft_connect(&options, &client), "connect");
    return Client(client);
}

undercroft_family family() {
    auto family = sized<undercroft_family>();
    std::fill(std::begin(family.model), std::end(family.model), std::uint8_t{0x2a});
    family.dtype = UNDERCROFT_DTYPE_F16;
    family.layers = 24;
    family.kv_heads = 8;
    family.page_tokens = 64;
    family.layout = "pages of a cache";
    return family;
}

Space open(const Client &client) {
    const auto kind = family();
    auto options = sized<undercroft_space_options>();
    options.family = &kind;
    options.geometry = geometry;
    undercroft_space *space = nullptr;
    checked(undercroft_space_open(client.get(), &options, us(5s), &space), "space");
    return Space(space);
}

// Pages in memory of their own, and the device over them. The memory outlives the device: members go in reverse.
struct Pages {
    std::vector<std::vector<std::uint8_t>> bytes;
    Device device;

    explicit Pages(std::uint8_t seed) : bytes(pages, std::vector<std::uint8_t>(page_bytes)) {
        std::vector<void *> buffers;
        for (auto &page : bytes) {
            std::fill(page.begin(), page.end(), seed);
            if (seed != 0) seed = static_cast<std::uint8_t>(seed * 5 + 1);
            buffers.push_back(page.data());
        }
        undercroft_device *made = nullptr;
        checked(undercroft_device_buffers(&geometry, buffers.data(), buffers.size(), 0, &made), "buffers");
        device.reset(made);
    }
};

// Keys from the hashes that a cache has for its pages: here of one chain, each a text.
std::vector<std::uint8_t> keys(const std::string &prompt) {
    Key digest{};
    const auto kind = family();
    checked(undercroft_family_digest(&kind, digest.data()), "family");
    std::vector<std::uint8_t> hashes;
    for (std::size_t page = 0; page < pages; page++) {
        Key hash{};
        const std::string text = prompt + "/" + std::to_string(page);
        std::memcpy(hash.data(), text.data(), std::min(text.size(), hash.size()));
        hashes.insert(hashes.end(), hash.begin(), hash.end());
    }
    std::vector<std::uint8_t> keys(pages * UNDERCROFT_KEY_BYTES);
    checked(undercroft_keys_from_hashes(digest.data(), hashes.data(), sizeof(Key), pages, keys.data()), "keys");
    return keys;
}

// Stores in the background, as an engine does while it computes the next step.
void store(const Space &space, const Pages &from, const std::vector<std::uint8_t> &keys) {
    auto request = sized<undercroft_store_request>();
    request.device = from.device.get();
    request.keys = keys.data();
    request.pages = pages;
    request.wait_for_credits = 1;
    request.deadline_us = us(5s);
    undercroft_task *started = nullptr;
    if (checked(undercroft_store_start(space.get(), &request, &started), "store") != UNDERCROFT_OK) return;
    const Task task(started);
    while (undercroft_task_wait(task.get(), us(1ms)) == UNDERCROFT_PENDING) {
    }
    auto stored = sized<undercroft_stored>();
    checked(undercroft_task_stored(task.get(), &stored), "stored");
    std::cout << "stored " << stored.stored << ", held already " << stored.held << '\n';
}

// Looks the pages up and holds them for whoever has the token.
struct Held {
    Hold hold;
    Token token{};
    std::uint32_t pages = 0;
};

Held hold(const Client &client, const Space &space, const std::vector<std::uint8_t> &keys) {
    auto found = sized<undercroft_found>();
    const undercroft_space *spaces[] = {space.get()};
    checked(undercroft_lookup(client.get(), spaces, 1, keys.data(), pages, us(2s), us(100ms), &found), "lookup");
    Held held{Hold(found.hold), {}, found.pages};
    if (held.hold && checked(undercroft_hold_give(held.hold.get(), us(1s), held.token.data()), "give") != UNDERCROFT_OK)
        held.pages = 0;
    return held;
}

// The other side: takes the hold over and loads what it stands for.
std::uint32_t take(const Client &client, const Space &space, const Held &held, const Pages &into) {
    undercroft_hold *taken = nullptr;
    if (checked(undercroft_hold_take(client.get(), held.token.data(), us(1s), &taken), "take") != UNDERCROFT_OK) return 0;
    const Hold hold(taken);
    auto request = sized<undercroft_load_request>();
    request.device = into.device.get();
    request.hold = hold.get();
    request.pages = undercroft_hold_pages(hold.get());
    request.deadline_us = us(5s);
    auto loaded = sized<undercroft_loaded>();
    const int outcome = checked(undercroft_load(space.get(), &request, &loaded), "load");
    std::cout << "loaded " << loaded.pages << " of " << held.pages << " (" << undercroft_outcome_name(outcome) << ")\n";
    return loaded.pages;
}

int run(const char *socket) {
    const Client scheduler = connect(socket, "scheduler");
    const Client worker = connect(socket, "worker");
    const Space seen = open(scheduler);
    const Space used = open(worker);
    const auto chain = keys("a prompt of " + std::to_string(pages) + " pages");

    const Pages computed(7);
    store(used, computed, chain);
    const Held held = hold(scheduler, seen, chain);
    const Pages restored(0);
    const std::uint32_t loaded = held.pages == 0 ? 0 : take(worker, used, held, restored);
    // The conversation waits for its user now: its pages may go before others'.
    checked(undercroft_hint(seen.get(), chain.data(), pages, UNDERCROFT_HINT_PAUSED, 0, us(100ms)), "hint");

    const bool same = std::equal(computed.bytes.begin(), computed.bytes.begin() + loaded, restored.bytes.begin());
    if (!same) throw std::runtime_error("wrong bytes were loaded");
    return loaded == pages ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        return run(argc > 1 ? argv[1] : nullptr);
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
