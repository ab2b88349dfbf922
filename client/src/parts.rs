use crate::bell::Bell;
use crate::connection::{Connection, Lost, locked};
use crate::watch::{PartWatcher, Watching};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use undercroft_arena::{BoardView, FileId, PartView, StagingView};
use undercroft_wire::{Epoch, PartAdded, PartId, PartLetGo, Request};

/// The most parts an arena may have.
pub(crate) const MAX_PARTS: usize = 65_536;

/// Which file a descriptor is of, and its length, bytes. Only memory has seals to ask for: of
/// anything else nothing more is asked, as it may be a file system that never answers.
fn file_of(fd: &OwnedFd) -> Result<(FileId, i64), Lost> {
    rustix::fs::fcntl_get_seals(fd)
        .map_err(|errno| Lost::Protocol(format!("a descriptor that is not memory: {errno}")))?;
    let stat = rustix::fs::fstat(fd).map_err(Lost::System)?;
    Ok((FileId { device: stat.st_dev, inode: stat.st_ino }, stat.st_size))
}

/// A part of the arena as it is mapped here. Whoever wants to keep the mapping keeps this one, so
/// that the view's other users are those that use its pages.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) view: PartView,
    file: (FileId, i64),
}

/// The arena as this client maps it. It belongs to the client, not to a connection: when the next
/// daemon has the same arena, mappings and registrations are still good.
#[derive(Debug)]
pub(crate) struct Arena {
    kept: Mutex<Kept>,
    /// Held while they are told. Taken before `kept` where both are, and never inside a
    /// connection's lock.
    watchers: Mutex<Vec<Watching>>,
    /// Something is new that the keeper must see to.
    stirred: AtomicBool,
    /// A thread sees to it.
    seen_to: AtomicBool,
    /// How often a watcher panicked.
    pub(crate) watcher_panics: Arc<AtomicU64>,
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct Kept {
    epoch: Option<Epoch>,
    board: Option<((FileId, i64), Arc<BoardView>)>,
    parts: HashMap<PartId, Arc<Mapped>>,
    /// No connection can deliver pages of these any more.
    leaving: Vec<Leaving>,
    /// Mapped, and its page tables not filled yet.
    new: Vec<Arc<Mapped>>,
    joining: Vec<Watching>,
    /// Staging areas that watchers may not have heard of.
    staging: Vec<StagingView>,
}

#[derive(Debug)]
struct Leaving {
    part: Arc<Mapped>,
    /// The daemon waits to hear that it is unmapped.
    tell: bool,
}

impl Arena {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self {
            kept: Mutex::default(),
            watchers: Mutex::default(),
            stirred: AtomicBool::new(false),
            seen_to: AtomicBool::new(false),
            watcher_panics: Arc::default(),
            bell,
        }
    }

    /// Has the keeper look after it.
    pub(crate) fn stir(&self) {
        self.stirred.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Takes a watcher on. `staging` gives the areas that are in use, and is asked when no new one
    /// can be missed any more.
    pub(crate) fn watch(
        &self,
        watcher: Arc<dyn PartWatcher>,
        staging: impl FnOnce() -> Vec<StagingView>,
    ) {
        let watching = Watching::new(watcher, Arc::clone(&self.watcher_panics));
        locked(&self.kept).joining.push(watching);
        let staging = staging();
        locked(&self.kept).staging.extend(staging);
        self.stir();
    }

    /// A space's staging area is mapped.
    pub(crate) fn staging_mapped(&self, staging: &StagingView) {
        locked(&self.kept).staging.push(staging.clone());
        self.stir();
    }

    /// A daemon greeted with this epoch. Another one's mappings are let go at once unless pages of
    /// them are in use: together with the new arena they may be more than the machine has.
    pub(crate) fn enter(&self, epoch: Epoch) {
        {
            let mut kept = locked(&self.kept);
            if kept.epoch == Some(epoch) {
                return;
            }
            kept.epoch = Some(epoch);
            kept.board = None;
            kept.dismiss(false, |_| true);
        }
        let _nobody_waits = self.see_to(false);
    }

    /// Maps a part, or finds it mapped.
    pub(crate) fn add(&self, added: PartAdded, fd: &OwnedFd) -> Result<Arc<Mapped>, Lost> {
        let file = file_of(fd)?;
        let id = added.part;
        let mut kept = locked(&self.kept);
        kept.stays_after_all(id, file);
        if let Some(known) = kept.parts.get(&id) {
            if known.file != file || known.view.len() as u64 != added.bytes {
                return Err(Lost::Protocol(format!("part {id} is not what it was in this epoch")));
            }
            return Ok(Arc::clone(known));
        }
        let view = PartView::map(fd, id, added.bytes)
            .map_err(|e| Lost::Protocol(format!("part {id}: {e}")))?;
        let part = Arc::new(Mapped { view, file });
        kept.parts.insert(id, Arc::clone(&part));
        kept.new.push(Arc::clone(&part));
        drop(kept);
        self.stir();
        Ok(part)
    }

    /// Maps the board of this epoch, or finds it mapped.
    pub(crate) fn board(&self, epoch: Epoch, fd: &OwnedFd) -> Result<Arc<BoardView>, Lost> {
        let file = file_of(fd)?;
        let mut kept = locked(&self.kept);
        if let Some((_, known)) = kept.board.as_ref().filter(|(of, _)| *of == file) {
            return Ok(Arc::clone(known));
        }
        let view = BoardView::map(fd).map_err(|e| Lost::Protocol(format!("the board: {e}")))?;
        if view.epoch() != epoch {
            let found = view.epoch();
            return Err(Lost::Protocol(format!("a board of epoch {found} in epoch {epoch}")));
        }
        let view = Arc::new(view);
        kept.board = Some((file, Arc::clone(&view)));
        Ok(view)
    }

    /// Parts of this epoch that the daemon did not name again are of no use any more.
    pub(crate) fn keep_only(&self, named: impl Fn(PartId) -> bool) {
        locked(&self.kept).dismiss(false, |id| !named(id));
        self.stir();
    }

    /// Parts that retired and that no connection delivers from any more.
    fn retire(&self, gone: &[PartId]) {
        if !gone.is_empty() {
            locked(&self.kept).dismiss(true, |id| gone.contains(&id));
            self.stirred.store(true, Ordering::Release);
        }
    }

    /// Does what is to be done about parts, in a thread of its own where it may take long. Says
    /// whether to look again soon.
    pub(crate) fn tend(self: &Arc<Self>, connection: Option<&Arc<Connection>>) -> bool {
        let waiting = connection.is_some_and(|connection| {
            let (gone, waiting) = connection.vacated_parts();
            self.retire(&gone);
            waiting
        });
        let (leaving, ready) = {
            let kept = locked(&self.kept);
            let ready = kept.leaving.iter().any(|leaving| leaving.part.view.users() == 0);
            (!kept.leaving.is_empty(), ready)
        };
        let due = ready || self.stirred.load(Ordering::Acquire);
        if due && !self.seen_to.swap(true, Ordering::AcqRel) {
            self.stirred.store(false, Ordering::Release);
            let (arena, connection) = (Arc::clone(self), connection.cloned());
            let started = std::thread::Builder::new()
                .name("undercroft-parts".into())
                .spawn(move || arena.work(connection.as_deref()));
            if started.is_err() {
                self.seen_to.store(false, Ordering::Release);
                self.stirred.store(true, Ordering::Release);
            }
        }
        waiting || leaving || self.stirred.load(Ordering::Acquire)
    }

    fn work(&self, connection: Option<&Connection>) {
        for part in self.see_to(false) {
            let told = connection.map(|c| c.tell(&Request::PartLetGo(PartLetGo { part })));
            // The next session is asked again, if the part is still there by then.
            let _lost = told;
        }
        // Views of their own, so that nothing is said to be unmapped before it is.
        let new: Vec<PartView> =
            locked(&self.kept).new.drain(..).map(|part| part.view.clone()).collect();
        // Nobody who comes or leaves waits for page tables.
        self.seen_to.store(false, Ordering::Release);
        for view in new {
            // Where the kernel refuses, loads fault page by page and work all the same.
            let _refused = view.prefault(1);
        }
    }

    /// Tells the watchers what came and what leaves, and unmaps the latter. Says of which parts
    /// the daemon wants to hear that. At the `end` nothing may be read any more.
    fn see_to(&self, end: bool) -> Vec<PartId> {
        let mut watchers = locked(&self.watchers);
        let (leaving, staging) = {
            let mut kept = locked(&self.kept);
            watchers.append(&mut kept.joining);
            (std::mem::take(&mut kept.leaving), std::mem::take(&mut kept.staging))
        };
        let mut gone = Vec::new();
        for Leaving { part, tell } in leaving {
            // Or it would be unmapped by whoever lets go of its last page: page tables take their
            // time, and an engine's thread has none.
            if !end && part.view.users() > 0 {
                locked(&self.kept).leaving.push(Leaving { part, tell });
                continue;
            }
            watchers.iter_mut().for_each(|watching| watching.leaves(&part));
            if tell {
                gone.push(part.view.id());
            }
        }
        let here: Vec<Arc<Mapped>> = locked(&self.kept).parts.values().cloned().collect();
        for part in here {
            watchers.iter_mut().for_each(|watching| watching.came(&part));
        }
        for staging in staging.iter().filter(|_| !end) {
            watchers.iter_mut().for_each(|watching| watching.came_staging(staging));
        }
        gone
    }

    /// The client ends, and with it every lease: lets all of it go.
    pub(crate) fn end(&self) {
        locked(&self.kept).dismiss(false, |_| true);
        let _nobody_waits = self.see_to(true);
        locked(&self.watchers).clear();
    }
}

impl Kept {
    fn dismiss(&mut self, tell: bool, which: impl Fn(PartId) -> bool) {
        let parts = self.parts.extract_if(|id, _| which(*id));
        self.leaving.extend(parts.map(|(_, part)| Leaving { part, tell }));
        let parts = &self.parts;
        self.new.retain(|new| parts.contains_key(&new.view.id()));
    }

    /// A part that is named again while it still leaves stays.
    fn stays_after_all(&mut self, id: PartId, file: (FileId, i64)) {
        let same = |l: &Leaving| l.part.view.id() == id && l.part.file == file;
        if let Some(at) = self.leaving.iter().position(same) {
            let Leaving { part, .. } = self.leaving.swap_remove(at);
            self.parts.entry(id).or_insert(part);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    /// Has every lock there is.
    pub(crate) fn hold(arena: &Arena) -> impl Sized {
        (locked(&arena.watchers), locked(&arena.kept))
    }

    #[test]
    fn nothing_is_asked_of_a_descriptor_that_is_not_memory() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let disk = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
        let socket = OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
        for fd in [pipe, disk, socket] {
            assert!(matches!(file_of(&fd), Err(Lost::Protocol(_))), "{fd:?}");
        }
        let memory = undercroft_arena::Staging::create(1, 4096).unwrap();
        assert_eq!(file_of(&memory.fd().try_clone_to_owned().unwrap()).unwrap().1, 4096);
    }

    #[test]
    fn a_part_that_leaves_is_not_unmapped_by_who_reads_it_last() {
        let bell = Arc::new(Bell::new().unwrap());
        let arena = Arena::new(bell);
        arena.enter(Epoch(1));
        let id = PartId(3);
        let options = undercroft_arena::PartOptions::default();
        let (ours, _) = undercroft_arena::Part::create(id, 1 << 20, &options).unwrap();
        let added = PartAdded { part: id, bytes: 1 << 20, board_offset: 0 };
        let part = arena.add(added, &ours.read_only_fd().unwrap()).unwrap();
        let page = part.view.span(0, 4096).unwrap();
        drop(part);
        locked(&arena.kept).new.clear();
        arena.enter(Epoch(2));
        assert_eq!(locked(&arena.kept).leaving.len(), 1);
        drop(page);
        let _nobody_waits = arena.see_to(false);
        assert_eq!(locked(&arena.kept).leaving.len(), 0);
    }
}
