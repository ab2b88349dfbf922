//! Putting the parts together, serving, and stopping.

use crate::bell::{Door, bell};
use crate::bounds;
use crate::config::Config;
use crate::control::{Control, ControlParts, Purging, Readiness};
use crate::copy_pool::{Copied, CopyPool};
use crate::device::{Completed, Device};
use crate::error::StartError;
use crate::estate::{Estate, Heirloom, Keeper};
use crate::inherited;
use crate::listener::BoundSocket;
use crate::mounts::{self, Ground};
use crate::mourner::Mourner;
use crate::part_maker::{PartMaker, Parted};
use crate::peer::Peer;
use crate::precedence::Precedence;
use crate::process;
use crate::purge_book::{PurgeBook, Saved, Savers};
use crate::quarantine;
use crate::recovery::{self, Found};
use crate::session;
use crate::staging_maker::{Made, StagingMaker};
use crate::store::{self, Opening, Prepared};
use crate::succession;
use crate::takeover;
use crate::watchdog::{self, Watchdog};
use crate::web::{Question, Web};
use rustix::rand::{GetRandomFlags, getrandom};
use sd_notify::NotifyState;
use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use undercroft_arena::Part;
use undercroft_core::{Core, Event};
use undercroft_ssd_tier::{OpenError, PreparedLog};
use undercroft_wire::{SessionId, StartKind};

/// Words that copy workers and device threads may have waiting for the control thread.
const BELL_ROOM: usize = 4096;
/// Copies waiting for a worker.
const COPY_ROOM: usize = 1024;

/// How long words of other threads are taken in before it is the sessions' turn.
const DOOR_TURN: Duration = Duration::from_millis(1);
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
    /// When its start began.
    began: Instant,
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
        let mut estate = inherited::take();
        let kept = Keeper::is_there() || estate.names().next().is_some();
        let ground = mounts::ground(&config, &mut estate)?;
        Self::open_with(config, (estate, StartKind::Warm), ground, kept)
    }

    /// As [`Daemon::open`], from the daemon that serves the configured socket: that one closes its
    /// stores, hands over its arena and everybody who waits to connect, and ends. What can be refused
    /// beforehand is, so that it serves on.
    ///
    /// # Errors
    /// There is none, or it refuses; else as [`Daemon::open`].
    pub fn take_over(config: Config) -> Result<Self, StartError> {
        let mut handed = inherited::take();
        if handed.has_socket_unit() {
            return Err(StartError::TakeOverManaged);
        }
        let ground = mounts::ground(&config, &mut handed)?;
        config.ssd.as_ref().map(store::look_ahead).transpose()?;
        let estate = takeover::ask(&config.socket)?;
        Self::open_with(config, (estate, StartKind::Takeover), ground, Keeper::is_there())
    }

    /// `kept` says that somebody else keeps the socket when this daemon ends.
    fn open_with(
        config: Config,
        (mut estate, kind): (Estate, StartKind),
        ground: Ground,
        kept: bool,
    ) -> Result<Self, StartError> {
        let began = Instant::now();
        process::raise_file_limit();
        process::keep_to_itself();
        let mut socket = match estate.take(Heirloom::Socket) {
            Some(inherited) => BoundSocket::inherit(inherited, &config.socket)?,
            None => BoundSocket::bind(&config.socket)?,
        };
        if kept {
            Keeper.keep(Heirloom::Socket, socket.listener.as_fd());
            socket.stay();
        }
        let metrics = match config.metrics.map(listen).transpose() {
            // Nobody else serves any more: it is known only now whose the port was.
            Err(error) if kind == StartKind::Takeover => {
                tracing::error!(%error, "there are no metrics");
                None
            }
            listening => listening?,
        };
        let succeeds = estate.has_arena();
        let prepared = config.ssd.as_ref().map(|ssd| store::prepare(ssd, succeeds)).transpose()?;
        let prepared = prepared.unwrap_or_default();
        let (control, doors) = assemble(config, prepared, (estate, kind), &ground)?;
        Ok(Self { control, doors, socket, metrics, began })
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
    pub fn run(mut self, ready: impl FnOnce()) -> Result<(), StartError> {
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
        let leaving = Arc::clone(&self.control.leaving);
        let precedence = precedence(self.control.config.realtime);
        let control = Rc::new(RefCell::new(self.control));
        let doors = self.doors;
        let mut failure = None;
        let served = LocalSet::new().block_on(&runtime, async {
            let listener = self.socket.listener.try_clone()?;
            let listener = UnixListener::from_std(listener)?;
            let mut terminated = signal(SignalKind::terminate())?;
            let mut interrupted = signal(SignalKind::interrupt())?;
            let hung_up = signal(SignalKind::hangup())?;
            tokio::select! {
                () = work(&control, &doors, reports, &precedence) => {}
                never = accept(listener, &control) => match never {},
                error = open_up(&control, self.began, ready) => failure = Some(error),
                () = reload(&control, hung_up) => tracing::info!("SIGHUP: stopping"),
                _ = terminated.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupted.recv() => tracing::info!("SIGINT: stopping"),
                () = leaving.notified() => tracing::info!("another daemon takes over: stopping"),
            }
            Ok(())
        });
        notify(&[NotifyState::Stopping]);
        drop(web);
        let successor = control.borrow_mut().take_successor();
        if successor.is_some() {
            self.socket.stay();
        }
        let late = std::iter::from_fn(|| doors.found.take()).collect();
        // Whoever still has word for us is not to wait for somebody to take it.
        drop(doors);
        control.borrow_mut().shut(late);
        if let Some(successor) = successor {
            let bequest = control.borrow_mut().bequeath(&self.socket);
            let successor: &tokio::net::UnixStream = (*successor).as_ref();
            // An end that is no success: whoever runs this daemon is to start it anew, as nobody
            // else serves.
            bequest
                .and_then(|bequest| takeover::give(successor.as_fd(), bequest))
                .map_err(|source| StartError::HandOver { source })?;
            tracing::info!("everything is handed over");
        }
        tracing::info!("stopped");
        match failure {
            Some(failure) => Err(failure),
            None => served.map_err(failed("the control thread")),
        }
    }
}

/// Makes the arena and everything that works on it, and has the records on SSD looked for.
fn assemble(
    config: Config,
    prepared: Vec<Prepared>,
    from: (Estate, StartKind),
    ground: &Ground,
) -> Result<(Control, Doors), StartError> {
    let limits = bounds::limits(&config);
    let late = prepared.iter().filter(|prepared| !matches!(prepared.log, Opening::Open(_)));
    let unlocked = late.map(|prepared| prepared.device).collect();
    let has_socket_unit = from.0.has_socket_unit();
    let mut succession = succession::begin(&config, &limits, from, ground)?;
    let name = store::name(config.ssd.as_ref());
    let are_the_same = succession.state.replace_devices(quarantine::MIXED) == name;
    let devices = quarantine::Devices { unlocked, are_the_same, any: !prepared.is_empty() };
    let parts = succession.arena.memory();
    let (copy_bell, copied) = bell(BELL_ROOM);
    let pool = CopyPool::start(config.copy_workers, COPY_ROOM, &copy_bell)
        .map_err(|source| StartError::Thread { what: "copy workers", source })?;
    let (gone_bell, gone) = bell(BELL_ROOM);
    let mourner = Mourner::start(gone_bell)
        .map_err(|source| StartError::Thread { what: "the mourner", source })?;
    let (made_bell, made) = bell(BELL_ROOM);
    let staging_maker = StagingMaker::start(made_bell)
        .map_err(|source| StartError::Thread { what: "the staging maker", source })?;
    let (parted_bell, parted) = bell(BELL_ROOM);
    let part_maker = PartMaker::start(parted_bell, Arc::clone(&ground.backing))
        .map_err(|source| StartError::Thread { what: "the part maker", source })?;
    let from = (random(), succession.state.next_stamp());
    let book = Arc::new(PurgeBook::new(&prepared));
    let (saved_bell, saved) = bell(BELL_ROOM);
    let savers = Savers::start(&book, prepared.len(), &saved_bell)?;
    let is_empty = succession.start.kind == StartKind::Cold;
    let over = Purging::over(&book, &mut succession.state, is_empty);
    let core = Core::new(bounds::core_config(&config, limits, from, over));
    let core = core.expect("the checked configuration is inside the core's ranges");
    let device = |prepared: &Prepared| Device::new(prepared.device, prepared.directory.clone());
    let mut control = Control::new(ControlParts {
        core,
        succession,
        devices: prepared.iter().map(device).collect(),
        config,
        pool,
        mourner,
        staging_maker,
        part_maker,
        has_socket_unit,
        purging: Purging::new(Arc::clone(&book), savers),
    });
    control.take_over_arena(devices);
    let (completed, found) = start_recovery(prepared, &parts, &book, &mut control)?;
    let doors = Doors { copied, completed, found, gone, made, parted, saved };
    Ok((control, doors))
}

/// How this thread is to get a processor.
fn precedence(is_wanted: bool) -> Precedence {
    if !is_wanted {
        return Precedence::none();
    }
    Precedence::ask().unwrap_or_else(|error| {
        let limit = "RLIMIT_RTPRIO of 1 allows it";
        tracing::info!(%error, limit, "the control thread shares processors as others do");
        Precedence::none()
    })
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

fn listen(address: SocketAddr) -> Result<(SocketAddr, TcpListener), StartError> {
    let failed = |source| StartError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    Ok((listener.local_addr().map_err(failed)?, listener))
}

pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    let got = getrandom(&mut bytes, GetRandomFlags::empty());
    assert!(got.is_ok_and(|n| n == 8), "the system has randomness to give");
    u64::from_le_bytes(bytes)
}

/// Has the records of all devices looked for, from now on.
fn start_recovery(
    prepared: Vec<Prepared>,
    memory: &[Arc<Part>],
    book: &Arc<PurgeBook>,
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
        let memory = memory.iter().map(Arc::downgrade).collect();
        let bells = (done.clone(), tell.clone());
        recovery::start(device, log, memory, Arc::clone(book), bells)
            .map_err(|source| StartError::Thread { what: "a search for records", source })?;
    }
    Ok((completed, found))
}

fn broke_off() -> Result<PreparedLog, OpenError> {
    Err(OpenError::Thread { source: std::io::Error::other("it broke off: this is a bug") })
}

async fn accept(listener: UnixListener, control: &Rc<RefCell<Control>>) -> Infallible {
    let mut serving = JoinSet::new();
    let mut turned_away = TurnedAway::default();
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
            Ok((stream, _)) => {
                if let Some(session) = admit(stream, control, &mut turned_away) {
                    drop(serving.spawn_local(session));
                    // What it has said already counts before the next one is looked at.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Makes a session of a connection, unless there is no room for it: then it is closed.
fn admit(
    stream: UnixStream,
    control: &Rc<RefCell<Control>>,
    turned_away: &mut TurnedAway,
) -> Option<impl Future<Output = ()> + use<>> {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            turned_away.one(&format!("it has no credentials: {error}"));
            return None;
        }
    };
    let domain = control.borrow().domains.of(&peer);
    if let Err(why) = control.borrow().has_room(&peer, domain.as_deref()) {
        turned_away.one(&why);
        return None;
    }
    let id = control.borrow_mut().next_session();
    Some(session::admit(stream, (peer, domain), id, Rc::clone(control)))
}

/// Connections that were closed at once. A flood of them is told in a line a second.
#[derive(Debug, Default)]
struct TurnedAway {
    count: u64,
    told: Option<Instant>,
}

impl TurnedAway {
    fn one(&mut self, why: &str) {
        self.count += 1;
        if self.told.is_none_or(|told| told.elapsed() >= Duration::from_secs(1)) {
            tracing::warn!(why, closed = self.count, "connections are closed at once");
            (self.count, self.told) = (0, Some(Instant::now()));
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
    parted: Door<Parted>,
    saved: Door<Saved>,
}

/// Everything that reaches the control thread other than by a session's socket.
async fn work(
    control: &Rc<RefCell<Control>>,
    Doors { copied, completed, found, gone, made, parted, saved }: &Doors,
    mut reports: mpsc::Receiver<Question>,
    precedence: &Precedence,
) {
    let look_again = Arc::clone(&control.borrow().look_again);
    let mut watchdog = Watchdog::of_this_process();
    control.borrow_mut().fit();
    loop {
        let timer = control.borrow().next_timer();
        let behind = control.borrow().is_device_behind();
        let settled_by = control.borrow().quarantine.wakes_at();
        let listen_at = control.borrow().listen_at;
        let purge_due = control.borrow().purging.due();
        tokio::select! {
            () = copied.rung() => drain(control, copied, Control::copied).await,
            () = completed.rung() => drain(control, completed, Control::completed).await,
            () = found.rung() => recover(control, found, precedence).await,
            () = gone.rung() => drain(control, gone, Control::bury).await,
            () = made.rung() => drain(control, made, Control::staging_made).await,
            () = parted.rung() => drain(control, parted, Control::parted).await,
            () = until(timer) => control.borrow_mut().feed(Event::Tick),
            () = look_again.notified() => {}
            () = watchdog.is_due() => watchdog::pet(),
            () = until(settled_by) => control.borrow_mut().settle(),
            () = until(listen_at) => control.borrow_mut().listen(),
            () = saved.rung() => drain(control, saved, Control::saved).await,
            () = until(purge_due) => control.borrow_mut().purges_overdue(),
            () = tokio::time::sleep(QUEUE_RETRY), if behind => control.borrow_mut().push_waiting(),
            Some(question) = reports.recv() => answer(control, question),
        }
        let mut control = control.borrow_mut();
        control.fit();
        control.flush_all();
    }
}

/// Tells that the daemon is ready, once the arena is as large as it is to be at the start. Comes
/// back if it cannot be.
async fn open_up(
    control: &Rc<RefCell<Control>>,
    began: Instant,
    ready: impl FnOnce(),
) -> StartError {
    let mut readiness = control.borrow().fitting.readiness();
    while *readiness.borrow_and_update() < Readiness::Whole {
        let failure = control.borrow_mut().fitting.take_failure();
        if let Some(failure) = failure {
            return failure;
        }
        // Its other end is the control thread's own.
        let _changed = readiness.changed().await;
    }
    control.borrow_mut().start.ready_ms = began.elapsed().as_millis() as u64;
    notify(&[NotifyState::Ready]);
    ready();
    std::future::pending().await
}

/// Reads the configuration again at every SIGHUP. Comes back at one if there is none: then it is
/// the terminal that closes.
async fn reload(control: &Rc<RefCell<Control>>, mut hung_up: Signal) {
    while hung_up.recv().await.is_some() {
        let file = control.borrow().config.file.clone();
        let Some(file) = file else { return };
        let mut reloading = vec![NotifyState::Reloading];
        reloading.extend(NotifyState::monotonic_usec_now());
        notify(&reloading);
        // It asks file systems, which may take long to answer.
        let read = tokio::task::spawn_blocking(move || Config::load(&file)).await;
        if let Ok(read) = read {
            let mut control = control.borrow_mut();
            control.reload(read);
            control.look_again.notify_one();
        }
        let whole = control.borrow().fitting.is_whole();
        if whole {
            notify(&[NotifyState::Ready]);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        // The runtime's clock ticks once a millisecond: what is due goes on as soon as sessions had their turn.
        Some(at) if at <= Instant::now() => tokio::task::yield_now().await,
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Takes in what was found on the SSDs, for a moment: there may be millions of records, and engines
/// have more use for the processor.
async fn recover(control: &Rc<RefCell<Control>>, found: &Door<Found>, precedence: &Precedence) {
    let began = Instant::now();
    while let Some(word) = found.take() {
        precedence.without(|| control.borrow_mut().found(word));
        if began.elapsed() >= RECOVERY_TURN {
            found.look_again();
            control.borrow_mut().flush_all();
            // Comes back after sessions that have something to say had their turn.
            return tokio::task::yield_now().await;
        }
    }
}

/// Takes in what was left at a door, for a moment: the end of many sessions may be a lot of work.
async fn drain<T>(
    control: &Rc<RefCell<Control>>,
    door: &Door<T>,
    mut take: impl FnMut(&mut Control, T),
) {
    let began = Instant::now();
    while let Some(word) = door.take() {
        take(&mut control.borrow_mut(), word);
        if began.elapsed() >= DOOR_TURN {
            door.look_again();
            control.borrow_mut().push_waiting();
            control.borrow_mut().flush_all();
            return tokio::task::yield_now().await;
        }
    }
    control.borrow_mut().push_waiting();
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
