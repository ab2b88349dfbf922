//! The first page: what the file is, and numbers that must not be used twice.

use super::error::StateError;
use super::layout::{FRAME_WORDS, StateLimits};
use super::rows::{check, halves, pair};
use super::words::WORD_BYTES;
use undercroft_wire::Epoch;

/// `UCSTATE` and a zero byte.
const MAGIC: u64 = u64::from_le_bytes(*b"UCSTATE\0");
/// What this build writes.
pub(super) const VERSION: u64 = 1;
/// The oldest layout it reads.
pub(super) const OLDEST: u64 = 1;

/// Words that say what the file is; they never change.
pub(super) const FORM_WORDS: usize = 8;
/// Bytes of the form.
pub(super) const FORM_BYTES: usize = FORM_WORDS * WORD_BYTES;

/// A number that only grows. Each of its two copies is one word, so that it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Counter {
    /// How often the file was created or adopted.
    Starts = 16,
    /// The first session number that is not taken.
    NextSession = 17,
    /// The first part number that is not taken.
    NextPart = 18,
    /// The first stamp that is not taken.
    NextStamp = 19,
    /// The first number of a cut that is not taken.
    NextCut = 20,
    /// The newest purge that no page of an earlier one has outlived.
    Purged = 23,
}

/// The word that is 1 if the daemon ended in order and everything is as it left it.
pub(super) const CLEAN: usize = 21;
/// The word that names the devices which the daemon reads from; 0 if there are none.
pub(super) const DEVICES: usize = 22;
/// From a number to its copy: another cache line.
const COPY_WORDS: usize = 16;

impl Counter {
    /// Every one.
    pub(super) const ALL: [Self; 6] = [
        Self::Starts,
        Self::NextSession,
        Self::NextPart,
        Self::NextStamp,
        Self::NextCut,
        Self::Purged,
    ];

    /// The words of both copies.
    pub(super) fn places(self) -> [usize; 2] {
        [self as usize, self as usize + COPY_WORDS]
    }
}

/// What the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) epoch: Epoch,
    pub(super) limits: StateLimits,
}

impl Form {
    pub(super) fn encode(&self) -> [u64; FORM_WORDS] {
        let limits = &self.limits;
        let mut words = [
            MAGIC,
            VERSION,
            self.epoch.0,
            pair(limits.max_parts, limits.max_spaces),
            limits.max_part_bytes,
            pair(limits.max_slabs, limits.max_sessions),
            pair(limits.max_leased_pages, FRAME_WORDS as u32),
            0,
        ];
        words[FORM_WORDS - 1] = form_check(&words);
        words
    }

    /// # Errors
    /// Bytes that are not the head of a state file this build reads.
    pub(super) fn decode(words: &[u64; FORM_WORDS]) -> Result<Self, StateError> {
        if words[0] != MAGIC {
            return Err(StateError::NotState { what: "it does not begin with UCSTATE" });
        }
        // Of another version nothing else is known, not even where its checksum lies.
        let found = words[1];
        if !(OLDEST..=VERSION).contains(&found) {
            return Err(StateError::Version { found, oldest: OLDEST, newest: VERSION });
        }
        let (found, expected) = (words[FORM_WORDS - 1], form_check(words));
        if found != expected {
            return Err(StateError::Damaged { found, expected });
        }
        let (max_parts, max_spaces) = halves(words[3]);
        let (max_slabs, max_sessions) = halves(words[5]);
        let (max_leased_pages, frame_words) = halves(words[6]);
        if frame_words as usize != FRAME_WORDS {
            return Err(StateError::NotState { what: "its frame rows are of another size" });
        }
        let limits = StateLimits {
            max_parts,
            max_part_bytes: words[4],
            max_slabs,
            max_spaces,
            max_sessions,
            max_leased_pages,
        };
        Ok(Self { epoch: Epoch(words[2]), limits })
    }
}

fn form_check(words: &[u64; FORM_WORDS]) -> u64 {
    let mut covered = [0; 16];
    covered[..FORM_WORDS - 1].copy_from_slice(&words[..FORM_WORDS - 1]);
    check(covered)
}
