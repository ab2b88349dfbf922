#!/usr/bin/env python3
"""A llama.cpp engine whose sequences outlive it, through libundercroft.

    pip install llama-cpp-python==0.3.36
    python llama_sequence.py MODEL.gguf --check

Reads a prompt, unless the state of its sequence is kept under the prompt's tokens already: then that is restored
(`llama_state_seq_get_data`, `llama_state_seq_set_data`). Generates greedily and prints what it did as one line of JSON.
`--check` runs three engines one after another (without Undercroft, with nothing kept, and restored), prints a table and
fails unless all three say the same and the last one restored.
"""

import argparse
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import time

PAGE_BYTES = 1 << 20
KEY_BYTES = 32
DTYPE_F16 = 2  # UNDERCROFT_DTYPE_F16: llama.cpp's KV cache unless it is told otherwise
TOO_LONG = 14  # UNDERCROFT_MISS_TOO_LONG
SECOND = 1_000_000

c_size, c_text, c_ptr, u32, u64 = (
    ctypes.c_size_t,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_uint64,
)


class ConnectOptions(ctypes.Structure):
    """undercroft_connect_options, up to the last field used here; the library takes it for an older caller's."""

    _fields_ = [
        ("size", c_size),
        ("socket", c_text),
        ("name", c_text),
        ("wait_us", u64),
        ("more", u32 * 6),
        ("gpu", c_ptr),
    ]


class Family(ctypes.Structure):
    """undercroft_family."""

    _fields_ = [
        ("size", c_size),
        ("model", ctypes.c_uint8 * 32),
        ("adapter", ctypes.c_uint8 * 32),
        ("dtype", u32),
        ("layers", u32),
        ("kv_heads", u32),
        ("page_tokens", u32),
        ("quantization", c_text),
        ("attention", c_text),
        ("layout", c_text),
    ]


class SpaceOptions(ctypes.Structure):
    """undercroft_space_options, with its undercroft_geometry in line."""

    _fields_ = [
        ("size", c_size),
        ("family", ctypes.POINTER(Family)),
        ("layers", u32),
        ("parts", u32),
        ("part_bytes", u32 * 8),
        ("rank_index", ctypes.c_uint16),
        ("rank_count", ctypes.c_uint16),
        ("group", u32),
        ("probe", c_ptr),
    ]


class Undercroft:
    """The few calls of the C ABI that blobs take. A miss is a value; what is wrong with a call is an exception."""

    def __init__(self, library: str, socket: str | None, family: Family) -> None:
        self.c = ctypes.CDLL(library)
        self.c.undercroft_last_error.restype = c_text
        self.c.undercroft_outcome_name.restype = c_text
        self.c.undercroft_client_free.argtypes = [c_ptr]
        self.c.undercroft_space_free.argtypes = [c_ptr]
        self.c.undercroft_space_open.argtypes = [c_ptr, c_ptr, u64, c_ptr]
        self.c.undercroft_blob_load.argtypes = [c_ptr, c_ptr, c_ptr, c_size, u64, c_ptr]
        self.c.undercroft_blob_store.argtypes = [c_ptr, c_ptr, c_ptr, c_size, u64, c_ptr]
        options = ConnectOptions(size=ctypes.sizeof(ConnectOptions), name=b"llama.cpp", wait_us=2 * SECOND)
        options.socket = socket.encode() if socket else None
        self.client, self.space = c_ptr(), c_ptr()
        self.checked(self.c.undercroft_connect(ctypes.byref(options), ctypes.byref(self.client)))
        self.digest = (ctypes.c_uint8 * KEY_BYTES)()
        self.checked(self.c.undercroft_family_digest(ctypes.byref(family), self.digest))
        space = SpaceOptions(size=ctypes.sizeof(SpaceOptions), family=ctypes.pointer(family))
        space.layers = space.parts = 1  # bytes without a shape
        space.part_bytes[0] = PAGE_BYTES
        opened = ctypes.byref(self.space)
        self.checked(self.c.undercroft_space_open(self.client, ctypes.byref(space), 5 * SECOND, opened))

    def checked(self, outcome: int) -> int:
        """Passes an outcome on, unless the call was wrong."""
        if outcome < 0:
            raise RuntimeError(self.c.undercroft_last_error().decode())
        return outcome

    def why(self, outcome: int) -> str:
        return self.c.undercroft_outcome_name(outcome).decode()

    def key(self, tokens: list[int]) -> ctypes.Array:
        """All of the tokens as one page: the key says exactly which they are."""
        key, count = (ctypes.c_uint8 * KEY_BYTES)(), c_size()
        given = (u32 * len(tokens))(*tokens)
        self.checked(
            self.c.undercroft_keys_from_tokens(
                self.digest, u32(len(tokens)), None, c_size(0), given, c_size(len(tokens)), key, c_size(1),
                ctypes.byref(count),
            )
        )
        return key

    def load(self, key: ctypes.Array, deadline_s: float) -> tuple[ctypes.Array | None, str]:
        """What is kept under a key, or why there is none."""
        length, deadline = c_size(), int(deadline_s * SECOND)
        found = self.checked(self.c.undercroft_blob_load(self.space, key, None, 0, deadline, ctypes.byref(length)))
        if found != TOO_LONG:
            return None, self.why(found)
        state = (ctypes.c_uint8 * length.value)()
        loaded = self.checked(
            self.c.undercroft_blob_load(self.space, key, state, length, deadline, ctypes.byref(length))
        )
        return (state if loaded == 0 else None), self.why(loaded)

    def store(self, key: ctypes.Array, state: ctypes.Array, deadline_s: float) -> str:
        """Keeps bytes under a key. Says "ok", or why they are not kept."""
        deadline = int(deadline_s * SECOND)
        return self.why(
            self.checked(self.c.undercroft_blob_store(self.space, key, state, len(state), deadline, None))
        )

    def close(self) -> None:
        self.c.undercroft_space_free(self.space)
        self.c.undercroft_client_free(self.client)


class Engine:
    """llama.cpp with one sequence."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        import llama_cpp  # not before it is known that there is something to do

        self.api, self.path = llama_cpp, path
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, c_ptr(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_extra_bufts = False  # AMX repacking crashes in 0.3.36 on some processors
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"{path} is no model that llama.cpp loads")
        setting = llama_cpp.llama_context_default_params()
        setting.n_ctx = setting.n_batch = context
        setting.n_threads = setting.n_threads_batch = threads  # another number gives other rounding
        self.context = llama_cpp.llama_init_from_model(self.model, setting)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)

    def family(self) -> Family:
        """What the state depends on: the weights, the shape, and the version that writes and reads it."""
        with open(self.path, "rb") as file:
            model = hashlib.file_digest(file, "sha256").digest()
        family = Family(size=ctypes.sizeof(Family), dtype=DTYPE_F16, page_tokens=1)
        family.model[:] = model
        family.layers = self.api.llama_model_n_layer(self.model)
        family.kv_heads = self.api.llama_model_n_head_kv(self.model)
        family.layout = f"sequence state of llama-cpp-python {self.api.__version__}".encode()
        return family

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        room = (self.api.llama_token * (len(raw) + 8))()
        count = self.api.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), True, False)
        return list(room[:count])

    def read(self, tokens: list[int]) -> None:
        """Adds tokens to the sequence."""
        given = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(given, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")

    def generate(self, last: int, count: int) -> list[int]:
        """Goes on after `last` with the likeliest tokens."""
        words = self.api.llama_vocab_n_tokens(self.vocabulary)
        said = []
        for _ in range(count):
            self.read([last])
            logits = self.api.llama_get_logits_ith(self.context, -1)
            last = max(range(words), key=logits.__getitem__)
            said.append(last)
        return said

    def state(self) -> ctypes.Array:
        size = self.api.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        if self.api.llama_state_seq_get_data(self.context, state, size, 0) != size:
            raise RuntimeError("llama_state_seq_get_data wrote less than it said")
        return state

    def restore(self, state: ctypes.Array) -> bool:
        return self.api.llama_state_seq_set_data(self.context, state, len(state), 0) == len(state)


def text(words: int) -> str:
    """A prompt with something to say."""
    facts = [f"Shelf {n} of the cellar holds {n * 37 % 101} jars of {what}." for n in range(1, words)
             for what in ("plums", "honey", "salt")]
    return " ".join(facts)[: words * 6] + " A question about the cellar: how many jars are on shelf 3?"


def serve(arguments: argparse.Namespace) -> dict:
    """One engine's life: a prompt, read or restored, and what follows it."""
    engine = Engine(arguments.model, arguments.context, arguments.threads)
    prompt = engine.tokens(text(arguments.words))[: arguments.context - arguments.generate]
    # The last token is read in either case: its logits are no part of a sequence's state.
    before, last = prompt[:-1], prompt[-1]
    cache = None if arguments.alone else Undercroft(arguments.library, arguments.socket, engine.family())
    result = {"prompt": len(prompt), "restored": False, "bytes": 0}
    began = time.perf_counter()
    if cache:
        key = cache.key(before)
        state, result["lookup"] = cache.load(key, deadline_s=5)
        result["restored"] = state is not None and engine.restore(state)
        result["bytes"] = len(state) if state is not None else 0
    if not result["restored"]:
        engine.read(before)
    result["seconds"] = round(time.perf_counter() - began, 4)
    if cache and not result["restored"]:
        state = engine.state()
        result["bytes"], result["store"] = len(state), cache.store(key, state, deadline_s=10)
    result["tokens"] = engine.generate(last, arguments.generate)
    if cache:
        cache.close()
    return result


def check(arguments: list[str]) -> int:
    """Three engines, each a process of its own."""
    rows = []
    for name, more in (("alone", ["--alone"]), ("first", []), ("restarted", [])):
        command = [sys.executable, os.path.abspath(__file__), *arguments, *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=600, check=True)
        rows.append((name, json.loads(done.stdout.splitlines()[-1])))
    print(f"{'engine':10} {'prompt':>7} {'restored':>8} {'state':>12} {'seconds':>8}  tokens")
    for name, row in rows:
        print(f"{name:10} {row['prompt']:7} {row['restored']!s:>8} {row['bytes']:12} {row['seconds']:8.4f}  "
              f"{row['tokens'][:6]}…")
    alone, first, restarted = (row for _, row in rows)
    same = alone["tokens"] == first["tokens"] == restarted["tokens"]
    print("same tokens" if same else "TOKENS DIFFER")
    if not restarted["restored"]:
        print(f"NOT RESTORED: {restarted.get('lookup')}; stored: {first.get('store')}")
    return 0 if same and restarted["restored"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--socket", help="the daemon's; without it where it is by default")
    parser.add_argument("--library", default="libundercroft.so.1", help="path or name of the C library")
    parser.add_argument("--words", type=int, default=700, help="about how long the prompt is")
    parser.add_argument("--context", type=int, default=4096, help="tokens of the engine's context")
    parser.add_argument("--generate", type=int, default=32, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=2, help="threads of the engine")
    parser.add_argument("--alone", action="store_true", help="without Undercroft")
    parser.add_argument("--check", action="store_true", help="three engines, compared")
    arguments = parser.parse_args()
    if arguments.check:
        return check([given for given in sys.argv[1:] if given != "--check"])
    print(json.dumps(serve(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
