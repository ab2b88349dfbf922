"""The client for Python. All times are seconds, all sizes bytes."""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, TypeAlias, final

__version__: str

# One run of bytes, 32 for each key, or a sequence of such: a run of one chain, in prefix order.
Keys: TypeAlias = bytes | bytearray | memoryview | Sequence[bytes]
# A tensor as torch has them, anything with a buffer or `__dlpack__`, or (address, bytes).
Memory: TypeAlias = Any
Why: TypeAlias = Literal[
    "absent",  # no tier holds the page
    "disconnected",  # no daemon, or the connection was lost during the call
    "deadline",  # the call's deadline passed
    "hung",  # the daemon has not moved since another call's deadline passed
    "changed",  # the page changed while it was copied
    "refused",  # the daemon refused the request
    "not_open",  # the space is not open in this session
    "forked",  # this process was forked from the one that connected
    "full",  # no frame or slot can be had
    "damaged",  # the record on SSD did not prove itself
    "invalid",  # the hold is gone, or the arguments contradict each other
    "released",  # given up before it was delivered
    "busy",  # too many calls or tasks wait
    "too_long",  # the run is longer than one request may be
    "device",  # the device could not copy it; `fault` says what it said
    "slower",  # computing it is faster than loading it
    "other",
]

class UndercroftError(Exception): ...
class ConnectError(UndercroftError): ...
class OpenError(UndercroftError): ...
class DeviceError(UndercroftError): ...

class Client:
    """A connection to the daemon of this node, kept up behind the caller's back.

    `socket`: None is $UNDERCROFT_SOCKET, else where this user's daemon has it, else the service's.
    `wait`: how long to wait for a daemon, and `ConnectError` without one; None goes on without.
    `copy_mode`: have pages delivered into staging although the arena could be mapped.
    `daemon_uid`: whom the socket must be served by, where that is neither root nor this user. None
        is $UNDERCROFT_DAEMON_UID, where it is set.
    `threads`: how many loads that were started go on at once; stores have one thread.
    `max_tasks`: how many started tasks may wait in each direction; more are "busy".
    """

    def __init__(
        self,
        socket: str | PathLike[str] | None = None,
        *,
        name: str | None = None,
        wait: float | None = None,
        copy_mode: bool = False,
        daemon_uid: int | None = None,
        gpu: CudaDevice | None = None,
        threads: int = 2,
        max_tasks: int = 1024,
    ) -> None: ...
    @property
    def state(self) -> Literal["connected", "hung", "connecting", "forked"]: ...
    @property
    def is_connected(self) -> bool:
        """Whether `state` is "connected", at less cost: for what asks at every step."""
    @property
    def failure(self) -> str | None:
        """What ended the last connection or attempt, while connecting."""
    @property
    def mode(self) -> Literal["zero_copy", "copy"] | None: ...
    def wait_connected(self, deadline: float) -> bool: ...
    def ping(self, deadline: float = 1.0) -> float | None:
        """How long a sign of life took; None without one."""
    def status(self, deadline: float = 1.0) -> dict[str, Any] | None:
        """What `undercroft status --json` shows."""
    def counters(self) -> dict[str, int]: ...
    def open_space(
        self,
        family: Family,
        geometry: Geometry,
        *,
        rank: tuple[int, int] | None = None,
        group: int = 0,
        deadline: float = 5.0,
        probe: bytes | None = None,
    ) -> Space:
        """Opens a space, now and again in every later session.

        `rank`: (index, count); None where the page is the same on every rank. A client made without
        `wait` gives out the space even if no daemon answers; what is asked of it misses until then.
        `probe`: `family.key` of what the engine's hash makes of one page of the token ids 1, 2, 3
        and so on. Where others have told another one the space is refused: their hashes or hash
        seeds differ, and neither would find the other's pages. None: not told; keys of `chain` need
        none. `OpenError` where it is refused.
        """
    def may_hold(self, first: bytes) -> bool:
        """Whether a chain that begins with the page of this key (32 bytes) may be found now.

        False: a lookup would find nothing, and needs not be made: not connected, the daemon hangs,
        or it has published that nothing begins so. True says nothing: look up. It asks nobody,
        never waits and does not release the GIL. Only what was stored without a parent begins a
        chain: of a page in the middle of one it may say False although it is there. The daemon
        counts a False as a lookup that found nothing.
        """
    def may_begin(
        self, family: Family, engine_hash: bytes, *, peek: bool = False
    ) -> bool | None:
        """As `may_hold`, of the page that `family.keys([engine_hash])` names.

        None: not connected, or the daemon hangs. With `peek` the daemon counts nothing: it is asked
        for again.
        """
    def lookup(
        self,
        spaces: Sequence[Space],
        keys: Keys,
        *,
        hold: float | None = None,
        deadline: float = 0.05,
        due: float | None = None,
        have: int = 0,
    ) -> Found:
        """The longest run of leading pages that all these spaces of one family hold.

        `due`: pages that take longer to load are not worth it. `have`: leading pages that the
        engine has itself, and that need not be loaded. What is found of pages that are worth
        loading is up to the daemon: see `Space.set_recompute`.
        """
    def start_lookup(
        self,
        spaces: Sequence[Space],
        keys: Keys,
        *,
        hold: float | None = None,
        deadline: float = 0.05,
        due: float | None = None,
        have: int = 0,
    ) -> LookupTask:
        """Sends a lookup and returns; `deadline` is for the sending. A hold lasts from when the
        daemon answers."""
    def take_hold(self, token: bytes, deadline: float = 1.0) -> Hold | None:
        """Takes over a hold that another session gave."""
    def attach_gpu(self, device: CudaDevice) -> None: ...
    def close(self, deadline: float = 2.0) -> bool:
        """Ends the session; calls under way and later ones miss. Says whether copies under way and
        the session's threads have ended. What is open when the interpreter ends is closed then."""
    def __enter__(self) -> Client: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

@final
class Family:
    """What all shards of a model share; keys are bound to it.

    `model`: 32 bytes, digest of the config and of the weight files' names, sizes and headers.
    `adapter`: 32 bytes, digest of the adapter; None for none. `layers` and `kv_heads` are those of
    the whole model.
    """

    def __init__(
        self,
        *,
        model: bytes,
        dtype: Literal["bf16", "f16", "f32", "fp8_e4m3", "fp8_e5m2", "int8"],
        layers: int,
        kv_heads: int,
        page_tokens: int,
        adapter: bytes | None = None,
        quantization: str = "none",
        attention: str = "",
        layout: str = "",
    ) -> None: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def page_tokens(self) -> int: ...
    def key(self, engine_hash: bytes) -> bytes:
        """The key of a page from an engine's own hash of its prefix."""
    def keys(self, engine_hashes: Sequence[bytes]) -> bytes:
        """As `key`, of many: 32 bytes for each."""
    def chain(self, tokens: Sequence[int], *, salt: bytes | None = None) -> bytes:
        """The keys of the full pages of a sequence: 32 bytes for each."""
    def __hash__(self) -> int: ...

@final
class Geometry:
    """The shape of a page: layers, each of the same parts (K and V, say) of these sizes."""

    def __init__(self, layers: int, part_bytes: Sequence[int]) -> None: ...
    @property
    def layers(self) -> int: ...
    @property
    def part_bytes(self) -> list[int]: ...
    @property
    def page_bytes(self) -> int: ...
    def __hash__(self) -> int: ...

@final
class Layout:
    """Where an engine's blocks lie. Keeps their memory alive.

    `places`: one for each fragment in the order of a page (layer 0 part 0, layer 0 part 1, layer 1
    part 0, …): (index of its tensor, offset for block 0, stride from block to block), and where it is
    cut into rows of equal length, their number and the stride from row to row.
    """

    def __init__(
        self,
        geometry: Geometry,
        blocks: int,
        tensors: Sequence[Memory],
        places: Sequence[tuple[int, int, int] | tuple[int, int, int, int, int]],
    ) -> None: ...
    @staticmethod
    def of_tensors(
        tensors: Sequence[Memory], *, block_dim: int | Sequence[int], blocks: int
    ) -> Layout:
        """One tensor for each layer. Dimensions outside of the blocks' one make parts; what is
        inside of it lies in one piece or in pieces of equal length at one distance. Where the blocks'
        dimension has a multiple of `blocks` entries, as many in a row are one block. Views of one
        storage may overlap as long as no two fragments do."""
    @property
    def geometry(self) -> Geometry: ...
    @property
    def blocks(self) -> int: ...
    @property
    def places(self) -> list[tuple[int, int, int, int, int]]: ...

class Device:
    """What pages are loaded into and stored from. While a call or a task has blocks of it, nobody
    else touches them."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def blocks(self) -> int: ...

@final
class HostDevice(Device):
    """An engine's KV cache in host memory. The thread of the call or task copies."""

    def __init__(self, layout: Layout) -> None: ...

@final
class CudaDevice(Device):
    """An engine's KV cache on a GPU, in the context that is current in the calling thread.

    `load`, `store`: "2d", "batch" or "kernel"; None: what is found fastest, now.
    `load_stream`, `store_stream`: handles of the engine's streams to copy on.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        load: str | None = None,
        store: str | None = None,
        kernel_blocks: int | None = None,
        load_stream: int | None = None,
        store_stream: int | None = None,
    ) -> None: ...
    def after(self, stream: int) -> Device:
        """The device for transfers that wait for all that is on a stream of the engine's now."""
    @property
    def name(self) -> str: ...
    @property
    def modes(self) -> tuple[str, str]:
        """By what it loads and stores."""

@final
class Buffers(Device):
    """Pages in host memory, each in memory of its own: block i is memories[i], which is one memory
    or a list of them, one for each fragment in the order they have in a page.

    `geometry`: the space's, or the size of a page of one layer and part.
    `writable`: whether they may be loaded into.
    """

    def __init__(
        self,
        geometry: Geometry | int,
        memories: Sequence[Memory] | Sequence[list[Memory]],
        *,
        writable: bool = True,
    ) -> None: ...

@final
class Space:
    """An open space. It stays valid over lost connections."""

    @property
    def is_open(self) -> bool: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def rank(self) -> tuple[int, int] | None: ...
    @property
    def group(self) -> int: ...
    def set_recompute(self, page: float) -> None:
        """Says what computing one page anew costs, in seconds, when the engine does little else;
        0: not known, as at first. The daemon weighs lookups and loads of this space against it."""
    def lookup(
        self,
        keys: Keys,
        *,
        hold: float | None = None,
        deadline: float = 0.05,
        due: float | None = None,
        have: int = 0,
    ) -> Found:
        """The longest run of leading pages it holds. `hold`: nothing of it is evicted until it is
        fetched and the hold dropped, or so long has passed."""
    def load(
        self,
        device: Device,
        source: Keys | Hold | tuple[Hold, int, int],
        blocks: Sequence[int],
        *,
        stamp: int = 0,
        deadline: float = 10.0,
    ) -> Loaded:
        """Loads page i of the source into blocks[i]. `(hold, first, count)` is a piece of a hold.
        Returns when every page is in place or the rest will not come. No block may be named twice.
        `stamp` is what the request's lookup answered with."""
    def take(
        self, device: Device, token: bytes, blocks: Sequence[int], *, deadline: float = 10.0
    ) -> Loaded:
        """Loads the pages of a lease that another session gave."""
    def store(
        self,
        device: Device,
        keys: Keys,
        blocks: Sequence[int],
        *,
        parent: bytes | None = None,
        first: int = 0,
        stamp: int = 0,
        deadline: float = 10.0,
        wait_for_credits: bool = False,
    ) -> Stored:
        """Stores page i out of blocks[i]: a run of one chain. `parent`: the key of the page before
        the first one, None at the chain's start; `first`: how many pages come before.
        `wait_for_credits`: offer again, until the deadline, what no staging slot was free for and
        what somebody else is storing."""
    def start_load(
        self,
        device: Device,
        source: Keys | Hold | tuple[Hold, int, int],
        blocks: Sequence[int],
        *,
        stamp: int = 0,
        deadline: float = 10.0,
        by_layer: bool = False,
    ) -> LoadTask:
        """As `load`, on a thread of the client's. Never waits. Until the task is done the blocks
        are its alone. `by_layer`: first layers of all pages first, see `LoadTask.wait_layer`."""
    def start_store(
        self,
        device: Device,
        keys: Keys,
        blocks: Sequence[int],
        *,
        parent: bytes | None = None,
        first: int = 0,
        stamp: int = 0,
        deadline: float = 10.0,
        wait_for_credits: bool = False,
    ) -> StoreTask:
        """As `store`, on a thread of the client's. Never waits. Until the task is done the blocks
        must not change. Tasks of one client are begun in the order they were started in."""
    def prefetch(self, keys: Keys, *, ttl: float = 10.0, deadline: float = 0.05) -> Prefetched:
        """Lifts pages towards DRAM ahead of need, to stay there for about `ttl`."""
    def purge(self, deadline: float = 10.0) -> bool:
        """Has all pages of the space forgotten for good, in every tier and for every process that
        shares it. Says whether the daemon did so, on all its SSDs, in time."""

    def hint(
        self,
        keys: Keys,
        kind: Literal["active", "paused", "ended", "expected", "pin", "demote"],
        seconds: float | None = None,
        *,
        deadline: float = 0.05,
    ) -> Why | None:
        """Tells the daemon about the conversation whose (last) pages are `keys`. `expected` and
        `pin` take seconds. None: it was heard."""

@final
class Hold:
    """A promise that what a lookup found stays until it is fetched. Ends with the object."""

    @property
    def pages(self) -> int: ...
    def give(self, deadline: float = 1.0) -> bytes | None:
        """A token of 16 bytes with which one other session can take it over, once."""
    def drop(self) -> None:
        """Gives it back now."""

@final
class Found:
    @property
    def pages(self) -> int:
        """Leading pages that every space asked about holds; where the daemon enforces its cost
        model, of these no more than are worth loading."""
    @property
    def dram(self) -> int: ...
    @property
    def ssd(self) -> int: ...
    @property
    def stamp(self) -> int:
        """The request's place in the daemon's order, for its loads and stores."""
    @property
    def estimate(self) -> float:
        """Time until all of them are in DRAM."""
    @property
    def present(self) -> int:
        """Leading pages that are there, whether or not they are worth loading."""
    @property
    def worth(self) -> int:
        """Leading pages that are worth loading, as far as the daemon can tell."""
    @property
    def copy(self) -> float:
        """Time to copy all of them out of DRAM."""
    @property
    def hold(self) -> Hold | None: ...
    @property
    def why(self) -> Why | None:
        """Why it was not more; None if every page was found."""

@final
class Loaded:
    @property
    def pages(self) -> int:
        """Leading pages that lie in their blocks; what the others' blocks hold is undefined."""
    @property
    def ssd_pages(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def why(self) -> Why | None: ...
    @property
    def fault(self) -> str | None: ...

@final
class Stored:
    @property
    def stored(self) -> int: ...
    @property
    def held(self) -> int:
        """Pages that were there already."""
    @property
    def coming(self) -> int:
        """Pages that somebody else was storing when the call ended, and may yet give up."""
    @property
    def declined(self) -> dict[str, int]:
        """Pages the daemon did not want, by "credits", "parent", "full" and "admission"."""
    @property
    def failed(self) -> int: ...
    @property
    def unsettled(self) -> int:
        """Pages whose fate is unknown: the call ended before they were settled."""
    @property
    def why(self) -> Why | None: ...
    @property
    def fault(self) -> str | None: ...

@final
class Prefetched:
    @property
    def resident(self) -> int: ...
    @property
    def started(self) -> int: ...
    @property
    def why(self) -> Why | None: ...

@final
class LookupTask:
    """A lookup that was sent. Without a reference left its answer is given up, and its hold."""

    def result(self, deadline: float = 0.05) -> Found:
        """The answer. "deadline" if it is not there by then: it may be asked for again. Given out
        once, after that "released"."""

@final
class LoadTask:
    @property
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def result(self, timeout: float | None = None) -> Loaded | None:
        """What it came to; None if it is not done by then."""
    def wait_layer(self, layer: int, timeout: float | None = None) -> int | None:
        """How many leading pages have this layer and all before it in place; None if it is not there
        by then. A later layer may have fewer."""
    def cancel(self) -> bool:
        """Calls it off if it has not begun, and says whether it did: "released" then."""

@final
class StoreTask:
    @property
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def result(self, timeout: float | None = None) -> Stored | None: ...
    def cancel(self) -> bool: ...

def probe_cuda() -> str | None:
    """Why there is no GPU to copy with; None if there is a driver."""
