//! Handles: numbers that are never given out twice, so that one that is used too long is known.

use std::collections::HashMap;
use std::fmt;

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
}

/// What the driver gives out instead of a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct Handle(pub(crate) u64);

impl Handle {
    pub(crate) const NULL: Self = Self(0);
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// No address looks like this.
const MARK: u64 = 0x57 << 56;

/// Objects of one kind by handle.
#[derive(Debug)]
pub(crate) struct Table<T> {
    kind: Kind,
    next: u64,
    /// Handles of a state that was reset are unknown, not destroyed.
    first: u64,
    objects: HashMap<Handle, T>,
}

impl<T> Table<T> {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, next: 1, first: 1, objects: HashMap::new() }
    }

    pub(crate) fn insert(&mut self, object: T) -> Handle {
        let handle = Handle(MARK | (self.kind as u64) << 48 | self.next << 4);
        self.next += 1;
        self.objects.insert(handle, object);
        handle
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<T> {
        self.objects.remove(&handle)
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        self.objects.get(&handle)
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.objects.get_mut(&handle)
    }

    /// Whether it stood for an object that is gone.
    pub(crate) fn is_stale(&self, handle: Handle) -> bool {
        let number = (handle.0 & 0xffff_ffff_ffff) >> 4;
        let tag = MARK | (self.kind as u64) << 48;
        handle.0 & !0xffff_ffff_ffff == tag
            && (self.first..self.next).contains(&number)
            && !self.objects.contains_key(&handle)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.objects.iter().map(|(handle, object)| (*handle, object))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.objects.values_mut()
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.objects.retain(|_, object| keep(object));
    }

    /// Forgets everything, stale handles too.
    pub(crate) fn reset(&mut self) {
        self.objects.clear();
        self.first = self.next;
    }
}
