use crate::ArenaError;
use crate::mapping::Mapping;
use crate::span::Span;
use std::sync::Arc;
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
