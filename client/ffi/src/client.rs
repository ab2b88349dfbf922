//! The connection with the daemon of this node.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::device::UndercroftDevice;
use crate::grows::{self, Grows, Out};
use crate::outcome::{Fault, UNDERCROFT_OK, UNDERCROFT_PENDING, answer, miss, quietly, remember};
use crate::strings::{self, Place, time};
use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::Arc;
use undercroft_client::wire::Mode;
use undercroft_client::{
    Client, ClientState, ConnectOptions, MissReason, TaskPool, Wait, find_socket,
};

/// Connected; calls are answered.
pub const UNDERCROFT_STATE_CONNECTED: u32 = 1;
/// Connected, but a call missed its deadline and the daemon has shown no sign of life since: every call is a
/// miss until it does.
pub const UNDERCROFT_STATE_HUNG: u32 = 2;
/// Not connected; every call is a miss, and a thread tries to connect.
pub const UNDERCROFT_STATE_CONNECTING: u32 = 3;
/// This process was forked from the one that connected; every call is a miss.
pub const UNDERCROFT_STATE_FORKED: u32 = 4;

/// Threads that run started loads and stores, where nobody says how many.
const THREADS: u32 = 2;
/// The most there may be.
const MOST_THREADS: u32 = 64;
/// Tasks that may be waiting or under way, where nobody says how many.
const MAX_TASKS: u32 = 1024;

/// A session with the daemon, kept up behind the caller's back. Any number of threads may use it at once. It
/// belongs to the process that made it: in a forked child every call that returns an outcome returns
/// `UNDERCROFT_MISS_FORKED` at once, but for the state and what reads no client. It may be freed there, or left alone.
pub struct UndercroftClient {
    pub(crate) client: Client,
    pub(crate) pool: Arc<TaskPool>,
}

impl UndercroftClient {
    /// Whether this is a forked child of the process that it belongs to.
    pub(crate) fn is_foreign(&self) -> bool {
        self.client.state() == ClientState::Forked
    }
}

/// How to connect. A field that is zero has its default.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftConnectOptions {
    /// `sizeof(undercroft_connect_options)`.
    pub size: usize,
    /// The daemon's socket. Null: `$UNDERCROFT_SOCKET`, else where a daemon's socket is by default.
    pub socket: *const c_char,
    /// What `undercroft status` calls this session; at most 64 bytes are kept. Null: the program's name.
    pub name: *const c_char,
    /// How long to wait for the daemon's greeting, microseconds; without it, connecting is an error. 0: go on
    /// without a daemon; a thread connects when there is one, and all is a miss until then.
    pub wait_us: u64,
    /// Not 0: have pages delivered into staging although the arena could be mapped.
    pub copy_mode: u32,
    /// Not 0: only take a daemon of user `daemon_uid`.
    pub check_daemon_uid: u32,
    /// The user that the daemon's socket must be served by. Without `check_daemon_uid`: root, this process's
    /// own user, or the owner of the directory that the socket lies in.
    pub daemon_uid: u32,
    /// Threads that run started loads, made with the first one; 0: 2. At most 64. Stores have one more for
    /// themselves: no load waits behind a store.
    pub threads: u32,
    /// Started loads that may wait for a thread, and as many stores; 0: 1024.
    pub max_tasks: u32,
    /// Must be zero.
    pub reserved: u32,
    /// The GPU to copy with, from `undercroft_device_cuda`; null for none. Once the device is freed and what uses it
    /// is over, the daemon's memory is no longer registered with it.
    pub gpu: *const UndercroftDevice,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftConnectOptions {
    const NAME: &'static str = "undercroft_connect_options";
    const FIRST_BYTES: usize = 64;
}

/// How a client stands with its daemon.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftState {
    /// `sizeof(undercroft_state)`.
    pub size: usize,
    /// One of `UNDERCROFT_STATE_*`.
    pub state: u32,
    /// Not 0: pages are delivered into staging (copy mode), not read where they lie.
    pub copy_mode: u32,
    /// The session, as the daemon numbers it; 0 where there is none.
    pub session: u64,
    /// Loads that found a page changed under its lease, and took it for a miss.
    pub changed_pages: u64,
    /// Calls that missed at once because the daemon had not turned since another one's deadline.
    pub hung_calls: u64,
}

// SAFETY: numbers.
unsafe impl Grows for UndercroftState {
    const NAME: &'static str = "undercroft_state";
    const FIRST_BYTES: usize = 40;
}

/// Connects. `options` may be null: go on without a daemon, at the default socket.
///
/// The client goes to `client`; free it with `undercroft_client_free`. With `wait_us` the daemon must greet
/// within it, else `UNDERCROFT_ERROR_CONNECT`; without, only a socket path that no socket can have, or
/// threads that cannot be made, are an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_connect(
    options: *const UndercroftConnectOptions,
    client: *mut *mut UndercroftClient,
) -> i32 {
    answer("undercroft_connect", || {
        // SAFETY: the caller's, as the header says.
        unsafe { strings::clear(client) };
        // SAFETY: as above.
        let place = unsafe { Place::new("client", client) }?;
        // SAFETY: as above.
        let given = unsafe { given(options) }?;
        // SAFETY: as above.
        let connect = unsafe { connect_options(&given) }?;
        let (threads, tasks) = pool_size(&given)?;
        let client = if given.gpu.is_null() {
            Client::connect(connect)?
        } else {
            // SAFETY: as above.
            let device = unsafe { strings::handle("options.gpu", given.gpu) }?;
            Client::connect_with_gpu(connect, device.gpu()?)?
        };
        let pool = Arc::new(TaskPool::new(threads, tasks));
        place.put(Box::into_raw(Box::new(UndercroftClient { client, pool })));
        Ok(UNDERCROFT_OK)
    })
}

/// # Safety
/// As [`grows::read`]; null has the defaults.
unsafe fn given(
    options: *const UndercroftConnectOptions,
) -> Result<UndercroftConnectOptions, Fault> {
    let none = UndercroftConnectOptions {
        size: size_of::<UndercroftConnectOptions>(),
        socket: std::ptr::null(),
        name: std::ptr::null(),
        wait_us: 0,
        copy_mode: 0,
        check_daemon_uid: 0,
        daemon_uid: 0,
        threads: 0,
        max_tasks: 0,
        reserved: 0,
        gpu: std::ptr::null(),
    };
    if options.is_null() {
        return Ok(none);
    }
    // SAFETY: the caller's.
    unsafe { grows::read(options) }
}

/// # Safety
/// Its texts are as [`strings::text`].
unsafe fn connect_options(given: &UndercroftConnectOptions) -> Result<ConnectOptions, Fault> {
    // SAFETY: the caller's.
    let socket = unsafe { strings::text("options.socket", given.socket, "") }?;
    let socket = if given.socket.is_null() { find_socket() } else { PathBuf::from(socket) };
    let mut options = ConnectOptions::new(socket);
    // SAFETY: the caller's.
    options.name = unsafe { strings::text("options.name", given.name, &options.name) }?;
    options.copy_mode = given.copy_mode != 0;
    options.daemon_uid = (given.check_daemon_uid != 0).then_some(given.daemon_uid);
    options.wait = match given.wait_us {
        0 => Wait::Background,
        wait => Wait::Now(time(wait)),
    };
    Ok(options)
}

fn pool_size(given: &UndercroftConnectOptions) -> Result<(usize, usize), Fault> {
    if given.threads > MOST_THREADS {
        let what = format!("options.threads is {}, allowed 0 to {MOST_THREADS}", given.threads);
        return Err(Fault::Argument(what));
    }
    if given.reserved != 0 {
        return Err(Fault::argument("options.reserved is not 0"));
    }
    let or = |given: u32, default: u32| if given == 0 { default } else { given } as usize;
    Ok((or(given.threads, THREADS), or(given.max_tasks, MAX_TASKS)))
}

/// Frees a client. Null is allowed. Tasks that have not begun never will, and those under way are waited for,
/// which takes no longer than their deadlines and the copies under way. Other handles made from the client may
/// be freed before or after, and the session ends with the last one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_client_free(client: *mut UndercroftClient) {
    quietly("undercroft_client_free", || {
        if !client.is_null() {
            // SAFETY: the caller's, as the header says: it is ours, and is not used again.
            let client = unsafe { Box::from_raw(client) };
            client.pool.give_up();
        }
    });
}

/// Ends the session now, for all handles: calls under way and later ones miss. Waits until the client's
/// threads have let go of the daemon's memory, at most until the deadline, and returns `UNDERCROFT_OK` if they
/// have, else `UNDERCROFT_PENDING`. Nobody needs to call it before `undercroft_client_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_client_close(
    client: *const UndercroftClient,
    deadline_us: u64,
) -> i32 {
    answer("undercroft_client_close", || {
        // SAFETY: the caller's, as the header says.
        let client = unsafe { strings::handle("client", client) }?;
        if client.is_foreign() {
            return Ok(miss(Some(MissReason::Forked)));
        }
        let has_ended = client.client.close(time(deadline_us));
        Ok(if has_ended { UNDERCROFT_OK } else { UNDERCROFT_PENDING })
    })
}

/// How the client stands with its daemon, without asking it. Never waits. While it is connecting,
/// `undercroft_last_error` says what ended the last attempt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_client_state(
    client: *const UndercroftClient,
    state: *mut UndercroftState,
) -> i32 {
    answer("undercroft_client_state", || {
        // SAFETY: the caller's, as the header says.
        let (client, out) = unsafe { (strings::handle("client", client)?, Out::new(state)?) };
        let counters = client.client.counters();
        let mut told = UndercroftState {
            size: 0,
            state: UNDERCROFT_STATE_CONNECTING,
            copy_mode: 0,
            session: 0,
            changed_pages: counters.changed_pages,
            hung_calls: counters.hung_calls,
        };
        match client.client.state() {
            ClientState::Connected { session, mode, .. } => {
                told.state = UNDERCROFT_STATE_CONNECTED;
                told.session = session.0;
                told.copy_mode = (mode == Mode::Copy).into();
            }
            ClientState::Hung => told.state = UNDERCROFT_STATE_HUNG,
            ClientState::Forked => told.state = UNDERCROFT_STATE_FORKED,
            ClientState::Connecting { failure } => remember(&failure.unwrap_or_default()),
            _ => {}
        }
        out.put(told);
        Ok(UNDERCROFT_OK)
    })
}

/// Waits until a daemon is connected, at most until the deadline: then `UNDERCROFT_MISS_DISCONNECTED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_client_wait(
    client: *const UndercroftClient,
    deadline_us: u64,
) -> i32 {
    answer("undercroft_client_wait", || {
        // SAFETY: the caller's, as the header says.
        let client = unsafe { strings::handle("client", client) }?;
        if client.is_foreign() {
            return Ok(miss(Some(MissReason::Forked)));
        }
        let is_connected = client.client.wait_connected(time(deadline_us));
        Ok(miss((!is_connected).then_some(MissReason::Disconnected)))
    })
}

/// Asks the daemon for a sign of life. How long it took goes to `took_us` (microseconds), which may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_ping(
    client: *const UndercroftClient,
    deadline_us: u64,
    took_us: *mut u64,
) -> i32 {
    answer("undercroft_ping", || {
        // SAFETY: the caller's, as the header says.
        let client = unsafe { strings::handle("client", client) }?;
        // SAFETY: as above.
        let place = unsafe { Place::new("took_us", took_us) }.ok();
        match client.client.ping(time(deadline_us)) {
            Ok(took) => {
                if let Some(place) = place {
                    place.put(took.as_micros() as u64);
                }
                Ok(UNDERCROFT_OK)
            }
            Err(why) => Ok(miss(Some(why))),
        }
    })
}
