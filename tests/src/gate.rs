use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What becomes of reads of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They are carried out.
    Open,
    /// One after another is carried out, with a pause before each.
    Drip(Duration),
    /// They hang.
    Shut,
    /// They fail.
    Refuse,
}

/// A file whose reads hang or fail when a test says so, as those of a sick disk do. The kernel
/// asks the gate before each of them, whatever way they come. Dropped, it lets everything through.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    way: Mutex<Way>,
    held: AtomicUsize,
    over: AtomicBool,
}

impl Gate {
    /// A gate before a file that is there, for all who open it from now on; `None` where the
    /// system does not let us have one: it takes root.
    ///
    /// # Panics
    /// If no thread can be started.
    #[must_use]
    pub fn before(file: &Path, way: Way) -> Option<Self> {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLOEXEC;
        let fanotify =
            Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).ok()?;
        let (add, reads) = (MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_ACCESS_PERM);
        fanotify.mark(add, reads, rustix::fs::CWD, Some(file)).ok()?;
        let (held, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { way: Mutex::new(way), held, over });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || own.keep(&fanotify));
        Some(Self { shared, thread: Some(thread) })
    }

    /// From now on, for reads that hang already, too.
    ///
    /// # Panics
    /// If the gate's thread did.
    pub fn set(&self, way: Way) {
        *self.shared.way.lock().expect("the gate's thread does not panic") = way;
    }

    /// Waits until a read hangs.
    ///
    /// # Panics
    /// If none does within half a minute.
    pub fn wait_until_held(&self) {
        let since = Instant::now();
        while self.shared.held.load(Ordering::SeqCst) == 0 {
            assert!(since.elapsed() < PATIENCE, "nobody reads");
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Shared {
    fn keep(&self, fanotify: &Fanotify) {
        let mut held: Vec<FanotifyEvent> = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            // Without a read to ask about there is nothing to be had.
            held.extend(fanotify.read_events().unwrap_or_default());
            let way = *self.way.lock().expect("nobody panics with the lock");
            match way {
                Way::Open => held.drain(..).for_each(|read| answer(fanotify, &read, true)),
                Way::Refuse => held.drain(..).for_each(|read| answer(fanotify, &read, false)),
                Way::Drip(pause) if !held.is_empty() => {
                    std::thread::sleep(pause);
                    answer(fanotify, &held.remove(0), true);
                }
                Way::Drip(_) | Way::Shut => {}
            }
            self.held.store(held.len(), Ordering::SeqCst);
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

fn answer(fanotify: &Fanotify, read: &FanotifyEvent, allowed: bool) {
    let Some(fd) = read.fd() else { return };
    let response = if allowed { Response::FAN_ALLOW } else { Response::FAN_DENY };
    // Whoever was reading may be dead by now.
    let _nobody = fanotify.write_response(FanotifyResponse::new(fd, response));
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // With its end the kernel stops asking, and lets go what hangs.
            let _ended = thread.join();
        }
    }
}
