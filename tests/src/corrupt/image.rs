//! A medium in memory whose changes can all be taken back, and an engine that is done at once.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use undercroft_arena::Span;
use undercroft_ssd_tier::{Done, Engine, Io, Kind, Storage};

/// The medium. Clones are one and the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Image(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    /// What changes took the place of, the newest last; `None` while nobody wants to know.
    before: Option<Vec<Before>>,
}

#[derive(Debug)]
enum Before {
    Bytes(usize, Vec<u8>),
    /// The length, and what lay behind the new end.
    Length(usize, Vec<u8>),
}

impl Image {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it.
    pub(super) fn copy(&self) -> Vec<u8> {
        self.inner().bytes.clone()
    }

    /// Looks at some of it.
    pub(super) fn look<T>(&self, at: usize, bytes: usize, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.inner().bytes[at..at + bytes])
    }

    /// From here on changes are kept, until they are taken back.
    pub(super) fn begin(&self) {
        self.inner().before = Some(Vec::new());
    }

    /// Takes everything back since [`Image::begin`].
    pub(super) fn take_back(&self) {
        let inner = &mut *self.inner();
        for before in inner.before.take().into_iter().flatten().rev() {
            match before {
                Before::Bytes(at, old) => inner.bytes[at..at + old.len()].copy_from_slice(&old),
                Before::Length(length, tail) => {
                    inner.bytes.truncate(length);
                    inner.bytes.extend(tail);
                }
            }
        }
    }

    /// Puts bytes there.
    pub(super) fn put(&self, at: usize, bytes: &[u8]) {
        let inner = &mut *self.inner();
        let room = &mut inner.bytes[at..at + bytes.len()];
        if let Some(before) = &mut inner.before {
            before.push(Before::Bytes(at, room.to_vec()));
        }
        room.copy_from_slice(bytes);
    }

    /// Gives it another length; what is new is zero.
    pub(super) fn resize(&self, bytes: usize) {
        let inner = &mut *self.inner();
        let length = inner.bytes.len();
        if let Some(before) = &mut inner.before {
            let tail = inner.bytes.get(bytes..).map_or(Vec::new(), <[u8]>::to_vec);
            before.push(Before::Length(length.min(bytes), tail));
        }
        inner.bytes.resize(bytes, 0);
    }
}

impl Storage for Image {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.inner().bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &Span) -> io::Result<usize> {
        let inner = self.inner();
        let rest = inner.bytes.get(offset as usize..).unwrap_or(&[]);
        let moved = rest.len().min(into.len());
        into.write(|room| room[..moved].copy_from_slice(&rest[..moved]));
        Ok(moved)
    }

    fn write_at(&self, offset: u64, from: &Span) -> io::Result<usize> {
        let end = offset as usize + from.len();
        if self.inner().bytes.len() < end {
            self.resize(end);
        }
        from.read(|bytes| self.put(offset as usize, bytes));
        Ok(from.len())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.resize(bytes as usize);
        Ok(())
    }
}

/// Carries every transfer out at once.
#[derive(Debug)]
pub(super) struct AtOnce {
    image: Image,
    done: Vec<Done>,
}

impl AtOnce {
    pub(super) fn on(image: &Image) -> Self {
        Self { image: image.clone(), done: Vec::new() }
    }
}

impl Engine for AtOnce {
    fn name(&self) -> &'static str {
        "at once"
    }

    fn start(&mut self, io: Io) {
        let result = match (io.kind, io.rest()) {
            (Kind::Write, Some((offset, rest))) => self.image.write_at(offset, &rest),
            (Kind::Read, Some((offset, rest))) => self.image.read_at(offset, &rest),
            _ => self.image.flush().map(|()| 0),
        };
        self.done.push(Done { io, result });
    }

    fn wait(&mut self, _timeout: Option<Duration>, done: &mut Vec<Done>) -> io::Result<()> {
        done.append(&mut self.done);
        Ok(())
    }
}
