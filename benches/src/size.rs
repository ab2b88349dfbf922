use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Why a size could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is not a size: allowed are {allowed}")]
pub struct SizeError {
    found: String,
    allowed: &'static str,
}

const BYTES_ALLOWED: &str = "whole bytes, or a whole number with KiB, MiB or GiB (4096, 64KiB)";
const RATE_ALLOWED: &str = "1/s and more, such as 4096/s, 64KiB/s, 2MiB/s or 1GiB/s";
const TIER_ALLOWED: &str = "whole bytes, a whole number with KiB, MiB or GiB (256MiB), or 0% to \
                            100% of the trace's distinct pages (5%, 2.5%)";

/// A number of bytes, typed as `4096`, `64KiB`, `2MiB` or `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_bytes(text)
            .map(Self)
            .ok_or_else(|| SizeError { found: text.to_owned(), allowed: BYTES_ALLOWED })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Bytes a second, typed as `4096/s`, `64KiB/s`, `2MiB/s` or `1GiB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRate(pub u64);

impl FromStr for ByteRate {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.trim().strip_suffix("/s").and_then(parse_bytes);
        bytes
            .filter(|bytes| *bytes > 0)
            .map(Self)
            .ok_or_else(|| SizeError { found: text.to_owned(), allowed: RATE_ALLOWED })
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// The size of a tier: bytes, or a share of the trace's distinct pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TierSize {
    /// This many bytes of pages.
    Bytes(u64),
    /// Millionths of the trace's distinct pages, so that `2.5%` stays exact.
    Share(u32),
}

impl TierSize {
    /// Whole pages of `page_bytes` this is, out of `distinct` pages of the trace; rounded down.
    #[must_use]
    pub fn pages(self, distinct: u64, page_bytes: u32) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes / u64::from(page_bytes.max(1)),
            Self::Share(millionths) => {
                let pages = u128::from(distinct) * u128::from(millionths) / 1_000_000;
                pages as u64
            }
        }
    }
}

impl FromStr for TierSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.trim().strip_suffix('%') {
            Some(percent) => parse_percent(percent.trim_end()).map(Self::Share),
            None => parse_bytes(text).map(Self::Bytes),
        };
        parsed.ok_or_else(|| SizeError { found: text.to_owned(), allowed: TIER_ALLOWED })
    }
}

impl fmt::Display for TierSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bytes(bytes) => ByteSize(bytes).fmt(f),
            Self::Share(millionths) => write!(f, "{}%", f64::from(millionths) / 1e4),
        }
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" => 0,
        "kib" => 10,
        "mib" => 20,
        "gib" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// `5`, `2.5`, up to four decimals; in millionths of the whole.
fn parse_percent(text: &str) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 4 {
        return None;
    }
    let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 100)?;
    let fraction: u32 = format!("{fraction:0<4}").parse().ok()?;
    let millionths = whole * 10_000 + fraction;
    (millionths <= 1_000_000).then_some(millionths)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_allowed_form() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64KiB", 65_536), ("2 MiB", 2 << 20), ("1gib", 1 << 30)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_with_what_is_allowed() {
        for text in ["", "KiB", "64KB", "64k", "-1", "1.5GiB", "99999999999GiB", "5%"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains("KiB, MiB or GiB"), "{error}");
        }
        for text in ["%", "101%", "100.1%", "5,5%", "-5%", "1.00001%", "x%"] {
            let error = text.parse::<TierSize>().unwrap_err().to_string();
            assert!(error.contains("100%"), "{error}");
        }
    }

    #[test]
    fn capacity_is_rounded_down_to_whole_pages() {
        let pages = |text: &str| text.parse::<TierSize>().unwrap().pages(182_790, 65_536);
        assert_eq!(pages("5%"), 9_139);
        assert_eq!(pages("2.5%"), 4_569);
        assert_eq!(pages("100%"), 182_790);
        assert_eq!(pages("0"), 0);
        assert_eq!(pages("200000"), 3);
    }

    #[test]
    fn sizes_are_shown_as_they_may_be_typed() {
        for text in ["0", "1000", "64KiB", "3MiB", "1GiB", "5%", "2.5%"] {
            assert_eq!(text.parse::<TierSize>().unwrap().to_string(), text);
        }
    }
}
