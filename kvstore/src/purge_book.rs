//! The list of purges that all SSDs have in common, and the threads that write it down beside each
//! page log. A disk that hangs holds up its own thread and nobody else.

use crate::bell::Bell;
use crate::error::StartError;
use crate::store::{Opening, Prepared};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};
use undercroft_core::RecoveredRecord;
use undercroft_ssd_tier::{KeptPurges, PurgeList, StoreKey};
use undercroft_wire::{DeviceId, PurgeId, PurgeScope};

/// The list as it is written beside a page log.
#[derive(Debug)]
struct Copy {
    directory: PathBuf,
    /// What the files in it are encrypted with; `None` where nobody can say.
    key: Option<Option<StoreKey>>,
    /// Whether it was read. One is read or written at a time, so that nothing is written over that
    /// nobody has read, and the last one written is the newest.
    was_read: Mutex<bool>,
}

/// All purges there were, as far as anybody knows. Held for a moment only, by the control thread and
/// by those that write it down.
#[derive(Debug)]
pub(crate) struct PurgeBook {
    list: Mutex<PurgeList>,
    /// The newest purge in any of the lists that were read.
    newest_read: AtomicU32,
    copies: Vec<Copy>,
}

/// The list was written beside a page log, or could not be.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) device: DeviceId,
    /// The newest purge that it has.
    pub(crate) upto: PurgeId,
    pub(crate) result: io::Result<()>,
    /// What it had, and no other.
    pub(crate) learned: Vec<(PurgeScope, PurgeId)>,
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

const NO_PANIC: &str = "nobody panics while reading or writing";

impl Copy {
    /// What lies there, if that was not read yet.
    fn read_once(
        &self,
        key: Option<&StoreKey>,
        was_read: &mut bool,
    ) -> io::Result<Option<KeptPurges>> {
        if *was_read {
            return Ok(None);
        }
        let kept = PurgeList::load(&self.directory, key).map_err(io::Error::other)?;
        *was_read = true;
        Ok(Some(kept))
    }
}

impl PurgeBook {
    /// What the page logs that are open know together.
    pub(crate) fn new(prepared: &[Prepared]) -> Self {
        let copies = prepared.iter().map(|prepared| Copy {
            directory: prepared.directory.clone(),
            key: prepared.key.clone(),
            was_read: Mutex::default(),
        });
        let (list, newest_read) = (Mutex::default(), AtomicU32::new(0));
        let book = Self { list, newest_read, copies: copies.collect() };
        let open = prepared.iter().filter_map(|prepared| match &prepared.log {
            Opening::Open(log) => Some((prepared.device, log.purges())),
            Opening::Late(_) | Opening::Failed(_) => None,
        });
        let (known, unknown): (Vec<_>, Vec<_>) =
            open.partition(|(_, kept)| matches!(kept, KeptPurges::Known(_)));
        // What is known first: it may speak for what cannot be read.
        for (device, kept) in known.into_iter().chain(unknown) {
            book.take_in(device, kept);
        }
        book
    }

    fn list(&self) -> MutexGuard<'_, PurgeList> {
        self.list.lock().expect("no holder of the list panics")
    }

    /// The newest purge.
    pub(crate) fn last(&self) -> PurgeId {
        self.list().last()
    }

    /// The purges that are newer, oldest first.
    pub(crate) fn since(&self, purge: PurgeId) -> Vec<(PurgeScope, PurgeId)> {
        let mut purges = self.list().purges();
        purges.retain(|(_, id)| *id > purge);
        purges
    }

    /// A purge begins.
    pub(crate) fn add(&self, scope: PurgeScope) -> PurgeId {
        self.list().add(scope, unix_s())
    }

    /// Says of each record whether it was purged.
    pub(crate) fn judge(&self, records: &mut [RecoveredRecord]) {
        let list = self.list();
        for record in records {
            record.purged = list.covers(&record.identity, &record.origin);
        }
    }

    /// A page log that was not known yet is open. Says which purges it is that nobody else knew of.
    pub(crate) fn take_in(
        &self,
        device: DeviceId,
        kept: &KeptPurges,
    ) -> Vec<(PurgeScope, PurgeId)> {
        let copy = &self.copies[usize::from(device.0)];
        let mut was_read = copy.was_read.lock().expect(NO_PANIC);
        if std::mem::replace(&mut *was_read, true) { Vec::new() } else { self.merge(kept) }
    }

    fn merge(&self, kept: &KeptPurges) -> Vec<(PurgeScope, PurgeId)> {
        let mut list = self.list();
        let floor = list.floor();
        let mut learned = match kept {
            KeptPurges::Known(other) => {
                self.newest_read.fetch_max(other.last().0, Ordering::Relaxed);
                list.merge(other)
            }
            KeptPurges::Unknown if self.newest_read.load(Ordering::Relaxed) == 0 => {
                tracing::error!(
                    "a list of purges cannot be read, and there is no other: no page on SSD that \
                     was stored before is served"
                );
                let next = list.last().0.saturating_add(1);
                list.doubt(PurgeId(unix_s().max(next)));
                Vec::new()
            }
            KeptPurges::Unknown => Vec::new(),
        };
        if list.floor() > floor {
            learned.push((PurgeScope::default(), list.floor()));
        }
        learned
    }

    /// A device has records that had seen this purge.
    pub(crate) fn seen(&self, newest: PurgeId) {
        if self.list().doubt(newest) {
            tracing::error!(
                "the list of purges is older than the pages: what was stored before the purges it \
                 lacks is not served"
            );
        }
    }

    /// Whether a device's own list says what all know.
    pub(crate) fn is_newest(&self, own: &KeptPurges) -> bool {
        *own == KeptPurges::Known(self.list().clone())
    }

    /// Writes the list down beside a page log. What lies there and was not read yet, because the
    /// page log is not open, is taken in first: nobody else may know of it.
    pub(crate) fn save(&self, device: DeviceId) -> Saved {
        let copy = &self.copies[usize::from(device.0)];
        let mut was_read = copy.was_read.lock().expect(NO_PANIC);
        let key = copy.key.as_ref().ok_or_else(|| io::Error::other("the store key is not there"));
        let read = key.and_then(|key| {
            let kept = copy.read_once(key.as_ref(), &mut was_read)?;
            Ok((key.as_ref(), kept.map_or_else(Vec::new, |kept| self.merge(&kept))))
        });
        let list = self.list().clone();
        let (result, learned) = match read {
            Ok((key, learned)) => (list.save(&copy.directory, key), learned),
            Err(error) => (Err(error), Vec::new()),
        };
        Saved { device, upto: list.last(), result, learned }
    }

    /// Where the list lies beside a device's page log.
    pub(crate) fn directory(&self, device: DeviceId) -> String {
        self.copies[usize::from(device.0)].directory.display().to_string()
    }
}

/// One thread for each SSD.
#[derive(Debug)]
pub(crate) struct Savers {
    wanted: Vec<Sender<()>>,
}

impl Savers {
    pub(crate) fn start(
        book: &Arc<PurgeBook>,
        devices: usize,
        saved: &Bell<Saved>,
    ) -> Result<Self, StartError> {
        let start = |at: usize| {
            let (sender, wanted) = bounded(1);
            let (book, saved, device) = (Arc::clone(book), saved.clone(), DeviceId(at as u8));
            let body = move || serve(&book, device, &wanted, &saved);
            let thread = std::thread::Builder::new().name(format!("ucft-purge-{device}"));
            match thread.spawn(body) {
                Ok(_) => Ok(sender),
                Err(source) => Err(StartError::Thread { what: "a writer of purges", source }),
            }
        };
        Ok(Self { wanted: (0..devices).map(start).collect::<Result<_, _>>()? })
    }

    /// Has the list written down everywhere; each says when it is.
    pub(crate) fn save(&self) {
        for wanted in &self.wanted {
            match wanted.try_send(()) {
                // Who is asked already looks at the list when it is its turn.
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Disconnected(())) => {
                    tracing::error!("a writer of purges is gone: this is a bug");
                }
            }
        }
    }

    /// Those that write it.
    pub(crate) fn devices(&self) -> impl Iterator<Item = DeviceId> + use<> {
        (0..self.wanted.len() as u8).map(DeviceId)
    }
}

fn serve(book: &PurgeBook, device: DeviceId, wanted: &Receiver<()>, saved: &Bell<Saved>) {
    while wanted.recv().is_ok() {
        saved.ring(book.save(device));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use undercroft_wire::DomainId;

    const FIRST: DeviceId = DeviceId(0);
    const SECOND: DeviceId = DeviceId(1);

    /// A book of page logs none of which is open yet.
    fn book(directories: [&std::path::Path; 2]) -> PurgeBook {
        let late = |(at, directory): (usize, &std::path::Path)| Prepared {
            device: DeviceId(at as u8),
            directory: directory.to_owned(),
            key: Some(None),
            log: Opening::Failed("not open".to_owned()),
        };
        let prepared: Vec<_> = directories.into_iter().enumerate().map(late).collect();
        PurgeBook::new(&prepared)
    }

    fn of(domain: u8) -> PurgeScope {
        PurgeScope { domain: Some(DomainId([domain; 16])), ..PurgeScope::default() }
    }

    fn written(directory: &std::path::Path) -> PurgeList {
        match PurgeList::load(directory, None).unwrap() {
            KeptPurges::Known(list) => list,
            KeptPurges::Unknown => panic!("it is whole"),
        }
    }

    #[test]
    fn what_only_a_log_that_is_not_open_knows_is_not_written_over() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut alone = PurgeList::default();
        let known = alone.add(of(1), 1000);
        alone.save(second.path(), None).unwrap();
        let book = book([first.path(), second.path()]);
        let new = book.add(of(2));
        assert_eq!(book.save(FIRST).learned, []);
        let saved = book.save(SECOND);
        assert!(saved.result.is_ok() && saved.upto == new);
        assert_eq!(saved.learned, [(of(1), known)]);
        assert_eq!(written(second.path()).purges(), [(of(1), known), (of(2), new)]);
        // Its opening comes later, with what lay there before.
        assert_eq!(book.take_in(SECOND, &KeptPurges::Known(alone)), []);
        assert!(book.save(FIRST).learned.is_empty());
        assert_eq!(written(first.path()).purges(), [(of(1), known), (of(2), new)]);
    }

    #[test]
    fn a_damaged_list_that_no_other_speaks_for_is_doubted_before_it_is_written_over() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(second.path().join("purges"), b"damaged").unwrap();
        let book = book([first.path(), second.path()]);
        let new = book.add(of(2));
        let [(scope, floor)] = book.save(SECOND).learned[..] else { panic!("nothing is believed") };
        assert_eq!((scope, floor), (PurgeScope::default(), written(second.path()).floor()));
        assert!(floor > new);
        assert_eq!(book.take_in(SECOND, &KeptPurges::Unknown), [], "it is doubted once");
    }
}
