use super::recompute::Recompute;
use serde::{Serialize, Serializer};
use std::fmt;

/// Contexts longer than this are nobody's: what pays off only there is said never to.
const LONGEST_TOKENS: f64 = 16.0 * 1024.0 * 1024.0;

/// How long a load takes: a fixed part and one for each token, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoadTime {
    /// Whatever the length.
    pub fixed_s: f64,
    /// For each token.
    pub s_per_token: f64,
}

impl LoadTime {
    /// The line through what was measured (tokens, seconds) with the least relative error; neither
    /// part is negative. Of one measurement all goes to the tokens.
    pub(super) fn fit(measured: &[(f64, f64)]) -> Self {
        // Weighted by 1/seconds²: a short context counts as much as a long one.
        let weigh = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            measured.iter().map(|(tokens, s)| of(*tokens, *s) / (s * s)).sum()
        };
        let (w, x, y) = (weigh(&|_, _| 1.0), weigh(&|t, _| t), weigh(&|_, s| s));
        let (xx, xy) = (weigh(&|t, _| t * t), weigh(&|t, s| t * s));
        let spread = w * xx - x * x;
        let through_origin =
            Self { fixed_s: 0.0, s_per_token: if xx > 0.0 { xy / xx } else { 0.0 } };
        if spread <= 1e-9 * w * xx {
            return through_origin;
        }
        let (slope, fixed) = ((w * xy - x * y) / spread, (y * xx - x * xy) / spread);
        match (fixed >= 0.0, slope >= 0.0) {
            (true, true) => Self { fixed_s: fixed, s_per_token: slope },
            (false, _) => through_origin,
            (true, false) => Self { fixed_s: y / w, s_per_token: 0.0 },
        }
    }

    /// For a context of so many tokens.
    #[must_use]
    pub fn seconds(&self, tokens: f64) -> f64 {
        self.fixed_s + tokens * self.s_per_token
    }
}

/// From which length of a context on a load takes no longer than its recompute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BreakEven {
    /// From the first page on.
    Always,
    /// From so many tokens on.
    Tokens(u64),
    /// At no length that anybody has.
    Never,
}

impl BreakEven {
    /// Where the two take as long, and loads of longer contexts less.
    pub(super) fn of(load: LoadTime, recompute: &Recompute, page_tokens: u32) -> Self {
        // recompute − load = a T² + b T − c, a ≥ 0, c ≥ 0: it is negative until its one positive
        // root, where it has one, and grows from there on.
        let (a, b) = (recompute.s_per_token2, recompute.s_per_token - load.s_per_token);
        let c = load.fixed_s;
        let root = if a > 0.0 {
            (-b + (b * b + 4.0 * a * c).sqrt()) / (2.0 * a)
        } else if b > 0.0 {
            c / b
        } else if b == 0.0 && c == 0.0 {
            0.0
        } else {
            return Self::Never;
        };
        if root <= f64::from(page_tokens) {
            Self::Always
        } else if root <= LONGEST_TOKENS {
            Self::Tokens(root.ceil() as u64)
        } else {
            Self::Never
        }
    }
}

impl fmt::Display for BreakEven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Tokens(tokens) => write!(f, "{tokens} tokens"),
            Self::Never => f.write_str("never"),
        }
    }
}

/// A number of tokens, or a word.
impl Serialize for BreakEven {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Always => serializer.serialize_str("always"),
            Self::Tokens(tokens) => serializer.serialize_u64(*tokens),
            Self::Never => serializer.serialize_str("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recompute(s_per_token: f64, s_per_token2: f64) -> Recompute {
        Recompute { source: String::new(), s_per_token, s_per_token2 }
    }

    fn of(fixed_s: f64, s_per_token: f64, recompute: Recompute) -> BreakEven {
        BreakEven::of(LoadTime { fixed_s, s_per_token }, &recompute, 16)
    }

    #[test]
    fn loads_that_are_faster_from_the_first_page_on_always_pay() {
        assert_eq!(of(0.0, 1e-5, recompute(1e-4, 0.0)), BreakEven::Always);
        assert_eq!(of(1e-3, 1e-5, recompute(1e-4, 0.0)), BreakEven::Always, "12 tokens, a page");
    }

    #[test]
    fn loads_that_are_slower_for_every_token_never_pay_against_a_flat_rate() {
        assert_eq!(of(0.0, 2e-4, recompute(1e-4, 0.0)), BreakEven::Never);
        // 1 s of fixed cost and a millionth of a second won for each token: 1e9 tokens.
        assert_eq!(of(1.0, 1e-6, recompute(1.001e-6, 0.0)), BreakEven::Never);
    }

    #[test]
    fn a_fixed_cost_is_made_good_by_length_and_attention_makes_any_load_good() {
        assert_eq!(of(0.9, 1e-4, recompute(1e-3, 0.0)), BreakEven::Tokens(1000));
        // 2e-4 T = 1e-4 T + 1e-8 T²
        assert_eq!(of(0.0, 2e-4, recompute(1e-4, 1e-8)), BreakEven::Tokens(10_000));
    }

    #[test]
    fn at_the_break_even_both_take_as_long() {
        let (load, anew) = (LoadTime { fixed_s: 0.02, s_per_token: 5e-5 }, recompute(3e-5, 4e-10));
        let BreakEven::Tokens(tokens) = BreakEven::of(load, &anew, 16) else {
            panic!("there is one");
        };
        let tokens = tokens as f64;
        assert!(load.seconds(tokens) <= anew.seconds(tokens));
        assert!(load.seconds(tokens - 2.0) > anew.seconds(tokens - 2.0));
    }

    #[test]
    fn a_fit_goes_through_what_lies_on_a_line_and_is_never_negative() {
        let fit = LoadTime::fit(&[(1000.0, 0.11), (2000.0, 0.21), (8000.0, 0.81)]);
        assert!((fit.fixed_s - 0.01).abs() < 1e-9 && (fit.s_per_token - 1e-4).abs() < 1e-12);
        let one = LoadTime::fit(&[(1000.0, 0.5)]);
        assert_eq!((one.fixed_s, one.s_per_token), (0.0, 5e-4));
        // Twice the same length is one measurement.
        let same = LoadTime::fit(&[(1000.0, 0.5), (1000.0, 0.5)]);
        assert_eq!(same.fixed_s, 0.0);
        let bent = LoadTime::fit(&[(1000.0, 0.05), (2000.0, 0.5)]);
        assert!(bent.fixed_s == 0.0 && bent.s_per_token > 0.0, "{bent:?}");
        let falling = LoadTime::fit(&[(1000.0, 0.5), (2000.0, 0.05)]);
        assert!(falling.s_per_token >= 0.0 && falling.fixed_s >= 0.0, "{falling:?}");
    }

    #[test]
    fn json_has_tokens_or_a_word() {
        let text = |of: BreakEven| serde_json::to_string(&of).expect("it can be written");
        assert_eq!(text(BreakEven::Tokens(5)), "5");
        assert_eq!(
            (text(BreakEven::Always), text(BreakEven::Never)),
            ("\"always\"".to_owned(), "\"never\"".to_owned())
        );
    }
}
