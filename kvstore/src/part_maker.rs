//! Makes parts of the arena and frees them on a thread of its own: to fault one in takes long, and
//! so does giving its memory back, and the control thread has sessions to answer.

use crate::arena::ArenaPart;
use crate::bell::Bell;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_arena::{ArenaError, Backing, HugePages, Part, PartFacts, PartOptions};
use undercroft_wire::{DomainId, PartId};

/// Parts that wait to be made or freed.
const ROOM: usize = 16 << 10;
/// How often it is looked whether others are done with a part, or have given memory back.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A part that a domain's arena is to grow by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedPart {
    pub(crate) id: PartId,
    pub(crate) domain: DomainId,
    pub(crate) bytes: u64,
    /// Bytes of it and of those that are to come after it. There must be room for all of them: what
    /// can never be whole is not begun.
    pub(crate) in_all: u64,
    /// Until when it is waited for memory that others have and may give back.
    pub(crate) patience: Option<Instant>,
    pub(crate) options: PartOptions,
}

impl WantedPart {
    /// Whether it is worth waiting for what this says is not there.
    fn may_yet(&self, error: &ArenaError) -> bool {
        let patient = self.patience.is_some_and(|until| Instant::now() < until);
        patient && matches!(error, ArenaError::NoRoom { needed, most, .. } if needed <= most)
    }
}

/// A part that was made, or why it was not.
#[derive(Debug)]
pub(crate) struct MadePart {
    pub(crate) wanted: WantedPart,
    pub(crate) made: Result<(Part, PartFacts), ArenaError>,
}

/// What the thread has done.
#[derive(Debug)]
pub(crate) enum Parted {
    Made(MadePart),
    /// Bytes in huge pages of parts that were taken over.
    Told(Vec<(PartId, u64)>),
}

#[derive(Debug)]
enum Work {
    Make(WantedPart),
    LookAt(Vec<Arc<Part>>),
    Free(Box<ArenaPart>),
    Discard(Box<Part>),
}

/// The thread. It sleeps while nothing is wanted, and is not waited for: what it makes for a daemon
/// that ends goes with the process.
#[derive(Debug)]
pub(crate) struct PartMaker {
    work: Sender<Work>,
}

impl PartMaker {
    /// Starts the thread, which makes parts on `backing`; `done` is rung with every part that was
    /// wanted.
    pub(crate) fn start(done: Bell<Parted>, backing: Arc<Backing>) -> std::io::Result<Self> {
        let room = Arc::clone(&backing);
        Self::start_with(done, backing, move |bytes, huge| room.check_room(bytes, huge))
    }

    /// As [`PartMaker::start`], where `check_room` says whether there is memory for so much.
    fn start_with(
        done: Bell<Parted>,
        backing: Arc<Backing>,
        check_room: impl Fn(u64, HugePages) -> Result<(), ArenaError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = bounded(ROOM);
        let body = move || run(&receiver, &done, &backing, check_room);
        std::thread::Builder::new().name("parts".to_owned()).spawn(body)?;
        Ok(Self { work: sender })
    }

    /// Asks for a part; `false` when too much waits already.
    pub(crate) fn make(&self, wanted: WantedPart) -> bool {
        self.work.try_send(Work::Make(wanted)).is_ok()
    }

    /// Asks how much of these is in huge pages: to find that out takes long.
    pub(crate) fn look_at(&self, parts: Vec<Arc<Part>>) {
        // Not to know it does no harm.
        drop(self.work.try_send(Work::LookAt(parts)));
    }

    /// Frees a part, once nobody else has any of it.
    pub(crate) fn free(&self, part: ArenaPart) {
        // What does not go into the queue is freed here: slow, but freed.
        drop(self.work.try_send(Work::Free(Box::new(part))));
    }

    /// Frees a part that nobody knows.
    pub(crate) fn discard(&self, part: Part) {
        drop(self.work.try_send(Work::Discard(Box::new(part))));
    }
}

fn run(
    work: &Receiver<Work>,
    done: &Bell<Parted>,
    backing: &Backing,
    check_room: impl Fn(u64, HugePages) -> Result<(), ArenaError>,
) {
    // The rings let go of a part when they come to it, and must not be the ones to free it.
    let mut going: Vec<Box<ArenaPart>> = Vec::new();
    // There is no room for them now.
    let mut waiting: Vec<WantedPart> = Vec::new();
    // Says why the part has to wait, if it does.
    let make = |wanted: WantedPart| -> Option<ArenaError> {
        let WantedPart { id, bytes, in_all, options, .. } = wanted;
        let made = match check_room(in_all, options.huge) {
            Err(error) if wanted.may_yet(&error) => return Some(error),
            Err(error) => Err(error),
            Ok(()) => Part::create_in(backing, id, bytes, &options),
        };
        done.ring(Parted::Made(MadePart { wanted, made }));
        None
    };
    loop {
        let next = if going.is_empty() && waiting.is_empty() {
            work.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            work.recv_timeout(LOOK_AGAIN)
        };
        match next {
            Ok(Work::Make(wanted)) => {
                if let Some(why) = make(wanted) {
                    tracing::warn!(%why, "the arena waits for memory that others have");
                    waiting.push(wanted);
                }
            }
            Ok(Work::LookAt(parts)) => {
                let told = parts.iter().map(|part| part.id()).zip(Part::huge_bytes(&parts));
                done.ring(Parted::Told(told.collect()));
            }
            Ok(Work::Free(part)) => going.push(part),
            Ok(Work::Discard(part)) => drop(part),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waiting.retain(|wanted| make(*wanted).is_some());
        going.retain(|part| Arc::strong_count(&part.part) > 1);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use crate::arena::PartStage;
    use crate::bell::{Door, bell};
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    const BYTES: u64 = 1 << 20;
    const HOUR: Duration = Duration::from_secs(3600);

    fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(found) = what() {
                return found;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "nothing came of it");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn next(door: &Door<Parted>) -> MadePart {
        match wait_for(|| door.take()) {
            Parted::Made(made) => made,
            told @ Parted::Told(_) => panic!("nobody has asked: {told:?}"),
        }
    }

    fn made(maker: &PartMaker, door: &Door<Parted>) -> ArenaPart {
        let options = PartOptions { huge: HugePages::Off, ..PartOptions::default() };
        let (id, domain) = (PartId(3), DomainId::named("default"));
        let (bytes, in_all, patience) = (BYTES, BYTES, None);
        assert!(maker.make(WantedPart { id, domain, bytes, in_all, patience, options }));
        let (part, facts) = next(door).made.unwrap();
        let read_only = Arc::new(part.read_only_fd().unwrap());
        let (part, stage) = (Arc::new(part), PartStage::Empty);
        let (board_offset, usable_bytes) = (64, BYTES);
        ArenaPart { domain, part, facts, read_only, board_offset, usable_bytes, stage }
    }

    /// Whether some descriptor of this process is of this file.
    fn is_open(inode: u64) -> bool {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
        let mut files = links.filter_map(|link| std::fs::metadata(link.path()).ok());
        files.any(|file| file.ino() == inode)
    }

    #[test]
    fn what_there_is_no_memory_for_is_not_begun() {
        let (bell, door) = bell(4);
        let maker = PartMaker::start(bell, Arc::default()).unwrap();
        let options = PartOptions { huge: HugePages::Off, ..PartOptions::default() };
        let (id, domain) = (PartId(3), DomainId::named("default"));
        // However patient one is: no machine has that much.
        let (bytes, in_all, patience) = (BYTES, 1 << 60, Some(Instant::now() + 10 * HOUR));
        assert!(maker.make(WantedPart { id, domain, bytes, in_all, patience, options }));
        let made = next(&door).made;
        assert!(matches!(made, Err(ArenaError::NoRoom { .. })), "{made:?}");
    }

    /// Engines have the arena of the daemon before, until they hear of the new one.
    #[test]
    fn memory_that_others_have_is_waited_for() {
        let (bell, door) = bell(4);
        let room = Arc::new(AtomicU64::new(0));
        let of_machine = Arc::clone(&room);
        let check = move |needed, _| match of_machine.load(Ordering::Relaxed) {
            room if room < needed => {
                let of = "the machine".to_owned();
                Err(ArenaError::NoRoom { needed, room, most: 4 * BYTES, of })
            }
            _ => Ok(()),
        };
        let maker = PartMaker::start_with(bell, Arc::default(), check).unwrap();
        let options = PartOptions { huge: HugePages::Off, ..PartOptions::default() };
        let wanted = |id, in_all, patience| {
            let domain = DomainId::named("default");
            let id = PartId(id);
            maker.make(WantedPart { id, domain, bytes: BYTES, in_all, patience, options })
        };
        let patient = Some(Instant::now() + 10 * HOUR);
        assert!(wanted(1, 2 * BYTES, patient));
        assert!(wanted(2, 5 * BYTES, patient) && wanted(3, 2 * BYTES, None));
        for expected in [2, 3] {
            let MadePart { wanted, made } = next(&door);
            assert_eq!(wanted.id, PartId(expected));
            assert!(matches!(made, Err(ArenaError::NoRoom { .. })), "{made:?}");
        }
        room.store(2 * BYTES, Ordering::Relaxed);
        let MadePart { wanted: first, made } = next(&door);
        assert!(first.id == PartId(1) && made.is_ok(), "{made:?}");
        room.store(0, Ordering::Relaxed);
        assert!(wanted(4, 2 * BYTES, Some(Instant::now() + LOOK_AGAIN)));
        let made = next(&door).made;
        assert!(
            matches!(made, Err(ArenaError::NoRoom { .. })),
            "its patience has an end: {made:?}"
        );
    }

    #[test]
    fn a_part_is_freed_once_nobody_else_has_it() {
        let (bell, door) = bell(4);
        let maker = PartMaker::start(bell, Arc::default()).unwrap();
        let part = made(&maker, &door);
        let inode = part.part.file_id().unwrap().inode;
        let ring = Arc::clone(&part.part);
        maker.free(part);
        // The maker goes on meanwhile.
        let other = made(&maker, &door);
        assert!(is_open(inode) && Arc::strong_count(&ring) == 2);
        drop(ring);
        wait_for(|| (!is_open(inode)).then_some(()));
        drop(other);
    }
}
