use crate::ArenaError;
use crate::mapping::Mapping;
use crate::span::Span;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};
use undercroft_wire::PartId;

/// Who may change the bytes of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Not this process: a client's view of the arena.
    ReadOnly,
    /// This process, and nobody it does not trust.
    ReadWrite,
    /// This process, and another one that is not believed: a session's staging, seen by the
    /// daemon. It is only ever copied out of or into.
    Foreign,
}

/// A mapping, how it may be used, and which part of the arena it is.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) mapping: Mapping,
    /// Usable bytes; the mapping may be longer, up to its page size.
    pub(crate) bytes: usize,
    pub(crate) access: Access,
    pub(crate) part: Option<PartId>,
}

/// Tells one mapping from all others, also from a later one at the same address. Does not keep it
/// mapped.
#[derive(Debug, Clone)]
pub struct MappingId(Weak<Region>);

impl MappingId {
    pub(crate) fn of(region: &Arc<Region>) -> Self {
        Self(Arc::downgrade(region))
    }

    /// Whether it is mapped still.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl PartialEq for MappingId {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl Eq for MappingId {}

impl Hash for MappingId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ptr().hash(state);
    }
}

impl Region {
    pub(crate) fn span(self: &Arc<Self>, offset: u64, len: usize) -> Result<Span, ArenaError> {
        let refused = ArenaError::OutOfRange { offset, len: len as u64, bytes: self.bytes as u64 };
        let Ok(offset) = usize::try_from(offset) else {
            return Err(refused);
        };
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(Span::new(Arc::clone(self), offset, len)),
            _ => Err(refused),
        }
    }
}
