use crate::lacks::Lacks;
use io_uring::IoUring;
use std::io;
use std::sync::Arc;
use undercroft_arena::{Part, Span};

/// The kernel takes registered buffers of at most 1 GiB.
const MAX_BUFFER_BYTES: usize = 1 << 30;
/// The kernel's limit on their number.
const MAX_BUFFERS: usize = 1 << 14;

/// Memory the kernel has pinned for a ring: transfers in it need not pin it each time. Parts of
/// the arena come and go; the log's own memory stays.
pub(super) struct Buffers {
    /// What is registered, sorted by address.
    pieces: Vec<Piece>,
    /// Numbers nobody has; none where buffers cannot be changed one by one.
    free: Vec<u16>,
    /// Keeps the registered memory mapped as long as the kernel may use it.
    parts: Vec<Arc<Part>>,
    _scratch: Span,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
    number: u16,
}

impl Buffers {
    /// Registers the arena's parts and the log's own memory, as far as the machine allows: what
    /// it does not is added to `lacks`.
    pub(super) fn register(
        ring: &IoUring,
        (parts, scratch): (Vec<Arc<Part>>, Span),
        lacks: &mut Lacks,
    ) -> Self {
        let mut buffers = Self { pieces: vec![], free: vec![], parts: vec![], _scratch: scratch };
        let own = pieces_of(buffers._scratch.as_ptr().expose_provenance(), buffers._scratch.len());
        let registered = match ring.submitter().register_buffers_sparse(MAX_BUFFERS as u32) {
            Ok(()) => {
                buffers.free = (0..MAX_BUFFERS as u16).rev().collect();
                let added = buffers.add(ring, own);
                added.and_then(|()| buffers.add_parts(ring, &parts))
            }
            // Before Linux 5.19: all at once, and none that come later.
            Err(_) => {
                lacks.no_sparse_buffers();
                buffers.register_all(ring, own, &parts)
            }
        };
        if let Err(error) = registered {
            lacks.refused.push(format!("registered buffers: {error} (memlock limit)"));
        }
        buffers
    }

    pub(super) fn are_registered(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// The registered buffer a span lies in, whole.
    pub(super) fn of(&self, span: &Span) -> Option<u16> {
        let start = span.as_ptr().addr();
        let after = self.pieces.partition_point(|piece| piece.start <= start);
        let piece = self.pieces[after.checked_sub(1)?];
        (start + span.len() <= piece.start + piece.len).then_some(piece.number)
    }

    /// The arena has these parts now. Transfers under way keep what they use; what cannot be
    /// registered is used as it is.
    pub(super) fn set_parts(&mut self, ring: &IoUring, parts: &[Arc<Part>]) {
        let known =
            |list: &[Arc<Part>], part: &Arc<Part>| list.iter().any(|p| Arc::ptr_eq(p, part));
        let gone: Vec<_> = self.parts.extract_if(.., |part| !known(parts, part)).collect();
        for part in gone {
            if self.remove(ring, &part).is_err() {
                // Pinned memory is never given back: better no registered memory than that.
                self.remove_all(ring);
            }
        }
        let new: Vec<_> = parts.iter().filter(|part| !known(&self.parts, part)).cloned().collect();
        if !self.free.is_empty() {
            // Unregistered memory works all the same.
            let _as_it_is = self.add_parts(ring, &new);
        }
    }

    fn add_parts(&mut self, ring: &IoUring, parts: &[Arc<Part>]) -> io::Result<()> {
        for part in parts {
            self.add(ring, pieces_of(part.base_ptr().expose_provenance(), part.len()))?;
            self.parts.push(Arc::clone(part));
        }
        Ok(())
    }

    fn add(
        &mut self,
        ring: &IoUring,
        pieces: impl Iterator<Item = (usize, usize)>,
    ) -> io::Result<()> {
        for (start, len) in pieces {
            let full = || io::Error::other(format!("more than {MAX_BUFFERS} of them"));
            let number = self.free.pop().ok_or_else(full)?;
            if let Err(error) = update(ring, number, start, len) {
                self.free.push(number);
                return Err(error);
            }
            let at = self.pieces.partition_point(|piece| piece.start < start);
            self.pieces.insert(at, Piece { start, len, number });
        }
        Ok(())
    }

    fn register_all(
        &mut self,
        ring: &IoUring,
        own: impl Iterator<Item = (usize, usize)>,
        parts: &[Arc<Part>],
    ) -> io::Result<()> {
        let of_part = |part: &Arc<Part>| pieces_of(part.base_ptr().expose_provenance(), part.len());
        let all: Vec<_> = own.chain(parts.iter().flat_map(of_part)).collect();
        if all.len() > MAX_BUFFERS {
            return Err(io::Error::other(format!("the arena needs {} of them", all.len())));
        }
        let iovecs: Vec<_> = all.iter().map(|(start, len)| iovec(*start, *len)).collect();
        // SAFETY: the pieces lie in memory that `self` owns a share of until the ring is dropped.
        unsafe { ring.submitter().register_buffers(&iovecs)? };
        let number = |(number, (start, len))| Piece { start, len, number: number as u16 };
        self.pieces = all.into_iter().enumerate().map(number).collect();
        self.pieces.sort_by_key(|piece| piece.start);
        self.parts = parts.to_vec();
        Ok(())
    }

    fn remove(&mut self, ring: &IoUring, part: &Part) -> io::Result<()> {
        let (start, end) = (part.base_ptr().addr(), part.base_ptr().addr() + part.len());
        let inside = |piece: &mut Piece| (start..end).contains(&piece.start);
        let gone: Vec<_> = self.pieces.extract_if(.., inside).collect();
        for piece in gone {
            update(ring, piece.number, 0, 0)?;
            self.free.push(piece.number);
        }
        Ok(())
    }

    fn remove_all(&mut self, ring: &IoUring) {
        self.pieces.clear();
        self.free.clear();
        self.parts.clear();
        // Refused only where nothing is registered.
        let _none = ring.submitter().unregister_buffers();
    }

    /// The kernel may use this memory for ever: it must never be used for anything else.
    pub(super) fn leak(&mut self) {
        std::mem::forget((std::mem::take(&mut self.parts), self._scratch.clone()));
    }
}

/// A region in pieces the kernel takes, by address and length.
fn pieces_of(start: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let steps = (0..bytes).step_by(MAX_BUFFER_BYTES);
    steps.map(move |at| (start + at, MAX_BUFFER_BYTES.min(bytes - at)))
}

fn iovec(start: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(start), iov_len: len }
}

/// Makes a number stand for a piece of memory, or for none.
fn update(ring: &IoUring, number: u16, start: usize, len: usize) -> io::Result<()> {
    // SAFETY: the piece lies in memory that the owner of `Buffers` shares until the ring is
    // dropped or the number stands for something else.
    unsafe { ring.submitter().register_buffers_update(number.into(), &[iovec(start, len)], None) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use undercroft_arena::{HugePages, Memory, PartOptions};
    use undercroft_wire::PartId;

    const BYTES: u64 = 4 << 20;

    fn part(id: u32) -> Arc<Part> {
        let options = PartOptions { huge: HugePages::Off, lock: false, ..PartOptions::default() };
        Arc::new(Part::create(PartId(id), BYTES, &options).unwrap().0)
    }

    /// A ring with one part, or why there is none.
    fn ring(first: &Arc<Part>) -> Result<(IoUring, Buffers), String> {
        let (ring, _) = super::super::build(4).map_err(|error| format!("io_uring: {error}"))?;
        let own = Memory::new(1 << 20, 0).unwrap().span(0, 1 << 20).unwrap();
        let mut lacks = Lacks::default();
        let buffers = Buffers::register(&ring, (vec![Arc::clone(first)], own), &mut lacks);
        if buffers.free.is_empty() || !lacks.refused.is_empty() {
            return Err(format!("buffers cannot be registered one by one: {lacks:?}"));
        }
        Ok((ring, buffers))
    }

    fn is_registered(buffers: &Buffers, part: &Part) -> bool {
        buffers.of(&part.span(BYTES - 4096, 4096).unwrap()).is_some()
    }

    #[test]
    fn parts_come_and_go_and_their_memory_with_them() {
        let (first, second) = (part(1), part(2));
        let (ring, mut buffers) = match ring(&first) {
            Ok(made) => made,
            Err(why) => {
                return println!("SKIPPED parts_come_and_go_and_their_memory_with_them: {why}");
            }
        };
        assert!(is_registered(&buffers, &first) && !is_registered(&buffers, &second));

        buffers.set_parts(&ring, &[Arc::clone(&first), Arc::clone(&second)]);
        assert!(is_registered(&buffers, &first) && is_registered(&buffers, &second));
        let number = buffers.of(&first.span(0, 4096).unwrap());

        buffers.set_parts(&ring, &[Arc::clone(&second)]);
        assert!(!is_registered(&buffers, &first) && is_registered(&buffers, &second));
        assert_eq!(Arc::strong_count(&first), 1, "nothing keeps its memory mapped");

        let third = part(3);
        buffers.set_parts(&ring, &[Arc::clone(&second), Arc::clone(&third)]);
        assert_eq!(buffers.of(&third.span(0, 4096).unwrap()), number, "numbers are used again");
        assert!(is_registered(&buffers, &second));
    }

    #[test]
    fn a_span_that_leaves_its_part_is_in_no_buffer() {
        let first = part(1);
        let (_ring, buffers) = match ring(&first) {
            Ok(made) => made,
            Err(why) => {
                return println!("SKIPPED a_span_that_leaves_its_part_is_in_no_buffer: {why}");
            }
        };
        let elsewhere = Memory::new(4096, 0).unwrap().span(0, 4096).unwrap();
        assert_eq!(buffers.of(&elsewhere), None);
        assert!(buffers.are_registered());
    }
}
