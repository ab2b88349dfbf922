use fastrand::Rng;

/// How well one set of times can be told from another: the probability that a time of the second
/// is longer than one of the first, ties halved. 0.5: not at all; 1: always.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distinction {
    /// The area under the curve of the best guesser that looks at one time only.
    pub auc: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How well two sets of times can be told apart.
///
/// # Panics
/// If one of them is empty.
#[must_use]
pub fn distinction(first: &[u64], second: &[u64]) -> Distinction {
    assert!(!first.is_empty() && !second.is_empty(), "both have times in them");
    let mut all: Vec<(u64, bool)> = first.iter().map(|time| (*time, false)).collect();
    all.extend(second.iter().map(|time| (*time, true)));
    all.sort_unstable_by_key(|(time, _)| *time);
    // The sum of the second set's ranks; equal times share the mean of theirs.
    let mut ranks = 0.0;
    let mut at = 0;
    while at < all.len() {
        let end = at + all[at..].iter().take_while(|(time, _)| *time == all[at].0).count();
        let mean = (at + 1 + end) as f64 / 2.0;
        ranks += mean * all[at..end].iter().filter(|(_, is_second)| *is_second).count() as f64;
        at = end;
    }
    let (m, n) = (first.len() as f64, second.len() as f64);
    let auc = (ranks - n * (n + 1.0) / 2.0) / (m * n);
    // Hanley and McNeil's standard error.
    let (q1, q2) = (auc / (2.0 - auc), 2.0 * auc * auc / (1.0 + auc));
    let square = auc * auc;
    let spread = auc * (1.0 - auc) + (n - 1.0) * (q1 - square) + (m - 1.0) * (q2 - square);
    let margin = 1.96 * (spread.max(0.0) / (m * n)).sqrt();
    Distinction { auc, low: auc - margin, high: auc + margin }
}

/// `count` times `false` and as often `true`, in no order.
#[must_use]
pub fn coin(count: usize, seed: u64) -> Vec<bool> {
    let mut sides: Vec<bool> = (0..2 * count).map(|at| at < count).collect();
    Rng::with_seed(seed).shuffle(&mut sides);
    sides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_cannot_be_told_apart_and_what_differs_can() {
        let mut random = Rng::with_seed(7);
        let mut draw = |shift: u64| -> Vec<u64> {
            (0..5000).map(|_| 1000 + shift + random.u64(..500)).collect()
        };
        let (a, b, late) = (draw(0), draw(0), draw(600));
        let alike = distinction(&a, &b);
        assert!(alike.low < 0.5 && 0.5 < alike.high, "{alike:?}");
        assert!(alike.low > 0.47 && alike.high < 0.53, "{alike:?}");
        assert_eq!(distinction(&a, &late).auc, 1.0);
        assert_eq!(distinction(&late, &a).auc, 0.0);
        let a_little = distinction(&a, &draw(60));
        assert!(a_little.low > 0.53, "{a_little:?}");
        assert_eq!(distinction(&[5; 10], &[5; 10]).auc, 0.5);
    }

    #[test]
    fn a_coin_is_fair() {
        let sides = coin(50, 1);
        assert_eq!(sides.iter().filter(|side| **side).count(), 50);
        assert_ne!(sides, coin(50, 2));
    }
}
