use crate::parts::Mapped;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use undercroft_arena::{MappingId, PartView, StagingView};
use undercroft_gpu_shim::cuda::Pins;

/// Hears of the memory that pages are copied from and to, as it comes and goes: what a device needs
/// that registers it. It is
/// called from a thread of the client's own, never by a caller's call, one call at a time; it may
/// take its time, but one that never returns keeps the client from ever letting a part go or going
/// on in a new arena. It must not panic (which is caught and counted: it was told all the same) or
/// keep the [`Client`](crate::Client) it watches.
///
/// Parts are told apart by their address: after a cold start of the daemon a new part may have the
/// number of an old one that is still read from.
pub trait PartWatcher: Send + Sync {
    /// A part is mapped, and stays so until [`PartWatcher::leaving`] has returned. Pages of it may
    /// be delivered before, while and after this is called. A clone of the view that is kept keeps
    /// the part from ever leaving.
    fn mapped(&self, part: &PartView);

    /// A part that was told of before is about to be unmapped: no fetch has pages of it any more,
    /// and no span of it is left while the client lives. What was registered is to be unregistered
    /// before this returns.
    fn leaving(&self, part: &PartView);

    /// A staging area is mapped: its slots are stored into, and in copy mode loaded from. Slots may
    /// be in use before, while and after this is called. Nobody says when it leaves: a clone that
    /// is kept keeps it mapped, and [`StagingView::users`] is 0 when nobody else does.
    fn staging(&self, _staging: &StagingView) {}
}

/// A GPU registers what it hears of, in the background.
impl PartWatcher for Pins {
    fn mapped(&self, part: &PartView) {
        self.part(part);
    }

    fn leaving(&self, part: &PartView) {
        self.part_leaves(part);
    }

    fn staging(&self, staging: &StagingView) {
        Self::staging(self, staging);
    }
}

/// A watcher and what it has been told.
pub(crate) struct Watching {
    watcher: Arc<dyn PartWatcher>,
    told: Vec<Arc<Mapped>>,
    /// The staging areas it was told of that are mapped still.
    told_staging: Vec<MappingId>,
    panics: Arc<AtomicU64>,
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching").field("told", &self.told).finish_non_exhaustive()
    }
}

impl Watching {
    /// Whose panics are counted.
    pub(crate) fn new(watcher: Arc<dyn PartWatcher>, panics: Arc<AtomicU64>) -> Self {
        Self { watcher, told: Vec::new(), told_staging: Vec::new(), panics }
    }

    fn tell(&self, call: impl FnOnce(&dyn PartWatcher)) {
        // Nothing of ours is in its hands: what it broke is its own.
        let told = catch_unwind(AssertUnwindSafe(|| call(&*self.watcher)));
        if told.is_err() {
            self.panics.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn knows(&self, part: &Arc<Mapped>) -> bool {
        self.told.iter().any(|told| Arc::ptr_eq(told, part))
    }

    /// Tells of a part, once.
    pub(crate) fn came(&mut self, part: &Arc<Mapped>) {
        if !self.knows(part) {
            self.told.push(Arc::clone(part));
            self.tell(|watcher| watcher.mapped(&part.view));
        }
    }

    /// Tells of a staging area, once.
    pub(crate) fn came_staging(&mut self, staging: &StagingView) {
        self.told_staging.retain(MappingId::is_mapped);
        let id = staging.mapping_id();
        if !self.told_staging.contains(&id) {
            self.told_staging.push(id);
            self.tell(|watcher| watcher.staging(staging));
        }
    }

    /// Tells that a part leaves, if it was told of.
    pub(crate) fn leaves(&mut self, part: &Arc<Mapped>) {
        if let Some(at) = self.told.iter().position(|told| Arc::ptr_eq(told, part)) {
            self.tell(|watcher| watcher.leaving(&part.view));
            self.told.swap_remove(at);
        }
    }
}
