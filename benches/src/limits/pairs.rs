use super::report::Row;
use crate::BenchError;
use crate::interrupt::Interrupt;
use indicatif::ProgressBar;
use std::time::Duration;

/// Pairs of every row.
pub(super) const PAIRS: u32 = 9;
/// One side of a pair; the pair takes about a second.
const WINDOW: Duration = Duration::from_millis(500);
const WARM_UP: Duration = Duration::from_millis(150);

/// What a row's figures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// The more the better.
    BytesPerSecond,
    /// The less the better.
    Microseconds,
}

/// Measures for about as long as it is told and returns the figure.
pub(super) type Side<'a> = &'a mut dyn FnMut(Duration) -> Result<f64, BenchError>;

/// Runs both sides in turn, the first side of a pair alternating so that drift hits both.
pub(super) struct Pairs<'a> {
    pub(super) interrupt: &'a Interrupt,
    pub(super) bar: &'a ProgressBar,
}

impl Pairs<'_> {
    pub(super) fn measure(
        &self,
        name: &'static str,
        unit: Unit,
        ours: Side<'_>,
        limit: Side<'_>,
    ) -> Result<Row, BenchError> {
        self.bar.set_message(name);
        ours(WARM_UP)?;
        limit(WARM_UP)?;
        let mut pairs = Vec::new();
        for pair in 0..PAIRS {
            self.interrupt.check()?;
            let figures = if pair % 2 == 0 {
                let ours = ours(WINDOW)?;
                (ours, limit(WINDOW)?)
            } else {
                let limit = limit(WINDOW)?;
                (ours(WINDOW)?, limit)
            };
            pairs.push(figures);
            self.bar.inc(1);
        }
        Ok(row(name, unit, &pairs))
    }
}

fn row(name: &'static str, unit: Unit, pairs: &[(f64, f64)]) -> Row {
    let ratios = pairs.iter().map(|(ours, limit)| match unit {
        Unit::BytesPerSecond => ours / limit,
        Unit::Microseconds => limit / ours,
    });
    let ratios = sorted(ratios);
    Row {
        name,
        ours: median(&sorted(pairs.iter().map(|pair| pair.0))),
        limit: median(&sorted(pairs.iter().map(|pair| pair.1))),
        ratio: median(&ratios),
        spread: [ratios[0], ratios[ratios.len() - 1]],
        unit: match unit {
            Unit::BytesPerSecond => "B/s",
            Unit::Microseconds => "us",
        },
        pairs: pairs.len() as u32,
        bare: String::new(),
        threads: 1,
        daemon_cpu_s_per_gib: None,
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_of_its_pairs() {
        let row = row("r", Unit::BytesPerSecond, &[(8.0, 10.0), (9.0, 10.0), (6.0, 12.0)]);
        assert_eq!((row.ours, row.limit, row.ratio), (8.0, 10.0, 0.8));
        assert_eq!((row.spread, row.unit), ([0.5, 0.9], "B/s"));
    }

    #[test]
    fn for_times_less_is_better() {
        let row = row("r", Unit::Microseconds, &[(20.0, 10.0), (40.0, 10.0)]);
        assert_eq!((row.ours, row.ratio, row.unit), (30.0, 0.375, "us"));
    }

    #[test]
    fn sides_take_turns_in_going_first() {
        let interrupt = Interrupt::watch().expect("signals can be watched");
        let bar = ProgressBar::hidden();
        let order = std::cell::RefCell::new(String::new());
        let side = |name: char| {
            let order = &order;
            move |_| {
                order.borrow_mut().push(name);
                Ok(1.0)
            }
        };
        let pairs = Pairs { interrupt: &interrupt, bar: &bar };
        let measured = pairs.measure("r", Unit::Microseconds, &mut side('o'), &mut side('l'));
        assert_eq!(measured.expect("both sides work").pairs, PAIRS);
        assert!(order.borrow().starts_with("olollool"), "{}", order.borrow());
    }
}
