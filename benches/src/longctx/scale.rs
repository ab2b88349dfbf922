use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use undercroft_wire::MAX_KEYS;

/// A context of fewer pages than this tells nothing of a longer one.
const LEAST_PAGES: u64 = 8;
/// Nothing is scaled down further: what is measured would be another thing.
const MOST_SCALE: u64 = 4096;
const MAX_CONTEXT_TOKENS: u64 = 1 << 32;

/// The length of a context, typed as `8k`, `1m` or a number of tokens; k is 1024, m its square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContextTokens(pub u64);

/// Why a context's length could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{found:?} is no length of a context: allowed are 1 to 4294967296 tokens, as 8k, 1m or a number"
)]
pub struct ContextError {
    found: String,
}

impl FromStr for ContextTokens {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        let error = || ContextError { found: text.to_owned() };
        let lower = text.trim().to_ascii_lowercase();
        let (digits, shift) = match lower.strip_suffix(['k', 'm']) {
            Some(digits) if lower.ends_with('k') => (digits, 10),
            Some(digits) => (digits, 20),
            None => (lower.as_str(), 0),
        };
        let number: u64 = digits.parse().map_err(|_| error())?;
        let tokens = number.checked_mul(1 << shift).ok_or_else(error)?;
        if (1..=MAX_CONTEXT_TOKENS).contains(&tokens) { Ok(Self(tokens)) } else { Err(error()) }
    }
}

impl fmt::Display for ContextTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(20, "m"), (10, "k")] {
            if self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// How much smaller than asked for a context was that was measured: a power of two, 1 for all
/// of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale(pub u64);

impl Scale {
    /// Whether less was measured than was asked for.
    #[must_use]
    pub fn is_scaled(self) -> bool {
        self.0 > 1
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1/{}", self.0)
    }
}

/// `"1/64"`, or null where nothing was scaled.
impl Serialize for Scale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_scaled() { serializer.collect_str(self) } else { serializer.serialize_none() }
    }
}

/// How many pages of all contexts that are there at once find room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) pages: u64,
    /// What there is least of, for people.
    pub(super) tightest: &'static str,
}

/// The least scale at which `contexts` contexts of `pages` pages find room, and how many pages
/// each has then. The error says why there is none.
pub(super) fn scale(pages: u64, contexts: u64, room: Room) -> Result<(Scale, u64), String> {
    let most = (room.pages / contexts).min(MAX_KEYS as u64);
    let mut scale = 1;
    while pages.div_ceil(scale) > most && scale < MOST_SCALE {
        scale *= 2;
    }
    let scaled = pages.div_ceil(scale);
    let least = pages.min(LEAST_PAGES);
    if scaled > most || scaled < least {
        return Err(format!(
            "has {pages} pages, and {} has room for {most}: not even 1/{scale} of it can be measured",
            room.tightest
        ));
    }
    Ok((Scale(scale), scaled))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    fn room(pages: u64) -> Room {
        Room { pages, tightest: "DRAM" }
    }

    #[test]
    fn lengths_are_read_and_shown_as_they_are_typed() {
        for (text, tokens) in [("8k", 8192), ("1m", 1 << 20), ("1000", 1000), ("128K", 1 << 17)] {
            assert_eq!(text.parse::<ContextTokens>().unwrap().0, tokens);
        }
        for text in ["8k", "1m", "1000", "96k"] {
            assert_eq!(text.parse::<ContextTokens>().unwrap().to_string(), text);
        }
        for text in ["", "k", "0", "-1", "8g", "1.5k", "99999999999m"] {
            assert!(text.parse::<ContextTokens>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_fits_is_measured_whole_and_what_does_not_by_the_least_power_of_two() {
        assert_eq!(scale(512, 1, room(512)), Ok((Scale(1), 512)));
        assert_eq!(scale(513, 1, room(512)), Ok((Scale(2), 257)));
        assert_eq!(scale(65_536, 1, room(2048)), Ok((Scale(32), 2048)));
        assert_eq!(scale(512, 4, room(512)), Ok((Scale(4), 128)));
        // One request has at most so many keys.
        assert_eq!(scale(1 << 20, 1, room(1 << 30)), Ok((Scale(16), 65_536)));
    }

    #[test]
    fn what_would_be_another_thing_is_refused() {
        let error = scale(65_536, 1, room(4)).unwrap_err();
        assert!(error.contains("65536 pages, and DRAM has room for 4"), "{error}");
        assert!(scale(100, 1, room(0)).is_err());
        assert!(scale(1 << 26, 1, room(1000)).is_err(), "1/65536");
        // Few pages are measured whole.
        assert_eq!(scale(1, 1, room(9)), Ok((Scale(1), 1)));
    }

    #[test]
    fn json_says_what_was_scaled_and_nothing_of_what_was_not() {
        let text = |scale| serde_json::to_string(&Scale(scale)).unwrap();
        assert_eq!((text(1), text(64)), ("null".to_owned(), "\"1/64\"".to_owned()));
    }
}
