//! Putting the parts together, serving, and stopping.

use crate::arena::Arena;
use crate::bell::{Door, bell};
use crate::config::{Config, DomainConfig, SsdConfig};
use crate::control::{Control, ControlParts};
use crate::copy_pool::{Copied, CopyPool};
use crate::device::{Completed, Device};
use crate::error::StartError;
use crate::listener::BoundSocket;
use crate::mourner::Mourner;
use crate::process;
use crate::recovery::{self, Found};
use crate::session;
use crate::staging_maker::{Made, StagingMaker};
use crate::store::{self, Opening, Prepared};
use crate::web::{Question, Web};
use rustix::rand::{GetRandomFlags, getrandom};
use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use undercroft_arena::Part;
use undercroft_core::{Core, DomainLimits, Event, Limits, Micros, Policy};
use undercroft_ssd_tier::{OpenError, PreparedLog};
use undercroft_wire::{Epoch, SessionId};

/// Words that copy workers and device threads may have waiting for the control thread.
const BELL_ROOM: usize = 4096;
/// Copies waiting for a worker.
const COPY_ROOM: usize = 1024;

/// How long records are taken in before it is the sessions' turn.
const RECOVERY_TURN: Duration = Duration::from_micros(500);

/// How soon a full queue of the page log is tried again when nothing else happens.
const QUEUE_RETRY: Duration = Duration::from_millis(2);

/// A daemon with everything opened that can fail, ready to run.
pub struct Daemon {
    control: Control,
    doors: Doors,
    socket: BoundSocket,
    metrics: Option<(SocketAddr, TcpListener)>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Opens everything: arena, store, socket, metrics. Nothing is served yet.
    ///
    /// # Errors
    /// The first thing that cannot be had, in one line.
    pub fn open(config: Config) -> Result<Self, StartError> {
        process::raise_file_limit();
        let socket = BoundSocket::bind(&config.socket)?;
        let metrics = config.metrics.map(listen).transpose()?;
        let prepared = config.ssd.as_ref().map(store::prepare).transpose()?.unwrap_or_default();
        let (control, doors) = assemble(config, prepared)?;
        Ok(Self { control, doors, socket, metrics })
    }

    /// The address metrics are served on, if they are.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(address, _)| *address)
    }

    /// Serves until SIGTERM or SIGINT, then stops in order. `ready` is called when clients can
    /// connect.
    ///
    /// # Errors
    /// The runtime, a signal handler or the web thread could not be started.
    pub fn run(self, ready: impl FnOnce()) -> Result<(), StartError> {
        let failed = |what| move |source| StartError::Thread { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("the control runtime"))?;
        let (report_sender, reports) = mpsc::channel(8);
        let web = self
            .metrics
            .map(|(_, listener)| Web::start(listener, report_sender))
            .transpose()
            .map_err(failed("the web thread"))?;
        let control = Rc::new(RefCell::new(self.control));
        let doors = self.doors;
        let served = LocalSet::new().block_on(&runtime, async {
            let listener = self.socket.listener.try_clone()?;
            let listener = UnixListener::from_std(listener)?;
            let mut terminated = signal(SignalKind::terminate())?;
            let mut interrupted = signal(SignalKind::interrupt())?;
            notify(&[sd_notify::NotifyState::Ready]);
            ready();
            tokio::select! {
                () = work(&control, &doors, reports) => {}
                never = accept(listener, &control) => match never {},
                _ = terminated.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupted.recv() => tracing::info!("SIGINT: stopping"),
            }
            Ok(())
        });
        notify(&[sd_notify::NotifyState::Stopping]);
        drop(web);
        drop(self.socket);
        let late = std::iter::from_fn(|| doors.found.take()).collect();
        // Whoever still has word for us is not to wait for somebody to take it.
        drop(doors);
        control.borrow_mut().shut(late);
        tracing::info!("stopped");
        served.map_err(failed("the control thread"))
    }
}

/// Makes the arena and everything that works on it, and has the records on SSD looked for.
fn assemble(config: Config, prepared: Vec<Prepared>) -> Result<(Control, Doors), StartError> {
    let arena = Arena::make(&config)?;
    let parts = arena.memory();
    let (copy_bell, copied) = bell(BELL_ROOM);
    let pool = CopyPool::start(config.copy_workers, COPY_ROOM, &copy_bell)
        .map_err(|source| StartError::Thread { what: "copy workers", source })?;
    let (gone_bell, gone) = bell(BELL_ROOM);
    let mourner = Mourner::start(gone_bell)
        .map_err(|source| StartError::Thread { what: "the mourner", source })?;
    let (made_bell, made) = bell(BELL_ROOM);
    let staging_maker = StagingMaker::start(made_bell)
        .map_err(|source| StartError::Thread { what: "the staging maker", source })?;
    let core = make_core(&config, &arena);
    let device = |prepared: &Prepared| Device::new(prepared.device, prepared.directory.clone());
    let mut control = Control::new(ControlParts {
        core,
        arena,
        devices: prepared.iter().map(device).collect(),
        config,
        epoch: Epoch(random()),
        pool,
        mourner,
        staging_maker,
    });
    let (completed, found) = start_recovery(prepared, &parts, &mut control)?;
    let doors = Doors { copied, completed, found, gone, made };
    Ok((control, doors))
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

fn listen(address: SocketAddr) -> Result<(SocketAddr, TcpListener), StartError> {
    let failed = |source| StartError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    Ok((listener.local_addr().map_err(failed)?, listener))
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    let got = getrandom(&mut bytes, GetRandomFlags::empty());
    assert!(got.is_ok_and(|n| n == 8), "the system has randomness to give");
    u64::from_le_bytes(bytes)
}

/// Has the records of all devices looked for, from now on.
fn start_recovery(
    prepared: Vec<Prepared>,
    memory: &[Arc<Part>],
    control: &mut Control,
) -> Result<(Door<Completed>, Door<Found>), StartError> {
    let (done, completed) = bell(BELL_ROOM);
    let (tell, found) = bell(recovery::ROOM);
    for Prepared { device, log, .. } in prepared {
        let log: recovery::Coming = match log {
            Opening::Open(log) => Box::new(move || Ok(*log)),
            Opening::Late(late) => Box::new(move || late.recv().unwrap_or_else(|_| broke_off())),
            Opening::Failed(reason) => {
                control.found(Found::Failed { device, reason });
                continue;
            }
        };
        recovery::start(device, log, memory.to_vec(), done.clone(), tell.clone())
            .map_err(|source| StartError::Thread { what: "a search for records", source })?;
    }
    Ok((completed, found))
}

fn broke_off() -> Result<PreparedLog, OpenError> {
    Err(OpenError::Thread { source: std::io::Error::other("it broke off: this is a bug") })
}

fn make_core(config: &Config, arena: &Arena) -> Core {
    let ssd_bytes = config.ssd.as_ref().map_or(0, SsdConfig::bytes);
    let total = config.arena_bytes().saturating_add(ssd_bytes);
    // Enough for pages of 16 KiB; smaller pages meet the bound before they fill the tiers.
    let max_pages = (total / (16 << 10)).clamp(1 << 16, 1 << 26) as u32;
    let directories = config.ssd.iter().flat_map(|ssd| &ssd.directories);
    let devices = directories.map(|directory| undercroft_core::DeviceConfig {
        capacity_bytes: directory.bytes,
        // The one being filled, the one kept for relocations, and one to go on with meanwhile.
        low_water_segments: 3,
        read_bytes_per_s: 1 << 30,
        read_latency_us: 200,
    });
    let limits = Limits {
        max_pages,
        max_sessions: config.max_sessions * 2,
        max_hold_ms: config.max_hold_ms,
        ..Limits::default()
    };
    let domain = |domain: &DomainConfig| {
        // As for all of them together: those too that only hold leases are counted.
        let max_sessions = domain.max_sessions.saturating_mul(2);
        let limits = DomainLimits { max_sessions, ..DomainLimits::default() };
        undercroft_core::DomainConfig { id: domain.id, limits }
    };
    let config = undercroft_core::Config {
        domains: config.domains.iter().map(domain).collect(),
        slab_bytes: config.slab_bytes,
        devices: devices.collect(),
        demote_ahead: config.demote_ahead,
        fetch_window: config.fetch_window,
        notes: false,
        first_stamp: 0,
        policy: Policy::Lru,
        limits,
        seed: random(),
    };
    let core = Core::new(config);
    let mut core = core.expect("the checked configuration is inside the core's ranges");
    for (part, of) in arena.iter() {
        let added = Event::PartAdded { part, domain: of.domain, bytes: of.usable_bytes };
        core.step(Micros(0), added, &mut Vec::new());
    }
    core
}

async fn accept(listener: UnixListener, control: &Rc<RefCell<Control>>) -> Infallible {
    let mut next = 1;
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = serving.join_next() => {
                // A panic is our bug, and it may have left the core half-way: a daemon that
                // starts anew serves better than one that goes on with that.
                if let Err(error) = ended && let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) if control.borrow().has_room() => {
                match session::admit(stream, SessionId(next), Rc::clone(control)) {
                    Ok(session) => drop(serving.spawn_local(session)),
                    Err(error) => {
                        tracing::warn!(%error, "a peer without credentials was turned away");
                    }
                }
                next += 1;
            }
            Ok(_) => tracing::warn!("server.max_sessions is reached: a connection was closed"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Where other threads leave word.
struct Doors {
    copied: Door<Copied>,
    completed: Door<Completed>,
    found: Door<Found>,
    gone: Door<SessionId>,
    made: Door<Made>,
}

/// Everything that reaches the control thread other than by a session's socket.
async fn work(
    control: &Rc<RefCell<Control>>,
    Doors { copied, completed, found, gone, made }: &Doors,
    mut reports: mpsc::Receiver<Question>,
) {
    let look_again = Arc::clone(&control.borrow().look_again);
    loop {
        let timer = control.borrow().next_timer();
        let behind = control.borrow().is_device_behind();
        let tick = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = copied.rung() => drain(control, copied, Control::copied),
            () = completed.rung() => drain(control, completed, Control::completed),
            () = found.rung() => recover(control, found).await,
            () = gone.rung() => drain(control, gone, Control::bury),
            () = made.rung() => drain(control, made, Control::staging_made),
            () = tick => control.borrow_mut().feed(Event::Tick),
            () = look_again.notified() => {}
            () = tokio::time::sleep(QUEUE_RETRY), if behind => control.borrow_mut().push_waiting(),
            Some(question) = reports.recv() => answer(control, question),
        }
        control.borrow_mut().flush_all();
    }
}

/// Takes in what was found on the SSDs, for a moment: there may be millions of records.
async fn recover(control: &Rc<RefCell<Control>>, found: &Door<Found>) {
    let began = Instant::now();
    while let Some(word) = found.take() {
        control.borrow_mut().found(word);
        if began.elapsed() >= RECOVERY_TURN {
            found.look_again();
            control.borrow_mut().flush_all();
            // Comes back after sessions that have something to say had their turn.
            return tokio::task::yield_now().await;
        }
    }
}

fn drain<T>(control: &Rc<RefCell<Control>>, door: &Door<T>, mut take: impl FnMut(&mut Control, T)) {
    let mut control = control.borrow_mut();
    // A bound, so that sessions get their turn under a flood of completions.
    for _ in 0..BELL_ROOM {
        match door.take() {
            Some(word) => take(&mut control, word),
            None => break,
        }
    }
    control.push_waiting();
}

fn answer(control: &Rc<RefCell<Control>>, question: Question) {
    // The asker may have given up.
    match question {
        Question::Alive(asker) => drop(asker.send(())),
        Question::Report(asker) => {
            let report = Box::new(crate::report::report(&control.borrow()));
            drop(asker.send(report));
        }
    }
}

#[cfg(test)]
mod tests;
