use super::report::Row;
use crate::BenchError;
use crate::interrupt::Interrupt;
use crate::median::{median, sorted};
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
    /// The more the better.
    PerSecond,
    /// The less the better.
    Microseconds,
}

/// What one side of a pair came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    pub(super) value: f64,
    /// Where the value is the median of calls, their 99th percentile.
    pub(super) p99: Option<f64>,
}

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Self { value, p99: None }
    }
}

/// Measures for about as long as it is told and returns the figure.
pub(super) type Side<'a, T> = &'a mut dyn FnMut(Duration) -> Result<T, BenchError>;

/// Runs both sides in turn, the first side of a pair alternating so that drift hits both.
pub(super) struct Pairs<'a> {
    pub(super) interrupt: &'a Interrupt,
    pub(super) bar: &'a ProgressBar,
}

impl Pairs<'_> {
    pub(super) fn measure<T: Into<Figure>>(
        &self,
        name: &'static str,
        unit: Unit,
        ours: Side<'_, T>,
        limit: Side<'_, T>,
    ) -> Result<Row, BenchError> {
        let pairs = self.collect(name, ours, limit)?;
        let pairs: Vec<_> = pairs.into_iter().map(|(o, l)| (o.into(), l.into())).collect();
        Ok(row(name, unit, &pairs))
    }

    /// What both sides of each pair came to.
    pub(super) fn collect<T>(
        &self,
        name: &'static str,
        ours: Side<'_, T>,
        limit: Side<'_, T>,
    ) -> Result<Vec<(T, T)>, BenchError> {
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
        Ok(pairs)
    }
}

/// The row that such pairs make.
pub(super) fn row(name: &'static str, unit: Unit, pairs: &[(Figure, Figure)]) -> Row {
    let ratios = pairs.iter().map(|(ours, limit)| match unit {
        Unit::BytesPerSecond | Unit::PerSecond => ours.value / limit.value,
        Unit::Microseconds => limit.value / ours.value,
    });
    let ratios = sorted(ratios);
    let of = |side: fn(&(Figure, Figure)) -> Figure| pairs.iter().map(side);
    let p99 = |side| of(side).map(|figure| figure.p99).collect::<Option<Vec<f64>>>();
    Row {
        name,
        ours: median(&sorted(of(|pair| pair.0).map(|figure| figure.value))),
        limit: median(&sorted(of(|pair| pair.1).map(|figure| figure.value))),
        ours_p99: p99(|pair| pair.0).map(|all| median(&sorted(all.into_iter()))),
        limit_p99: p99(|pair| pair.1).map(|all| median(&sorted(all.into_iter()))),
        ratio: median(&ratios),
        spread: [ratios[0], ratios[ratios.len() - 1]],
        unit: match unit {
            Unit::BytesPerSecond => "B/s",
            Unit::PerSecond => "1/s",
            Unit::Microseconds => "us",
        },
        pairs: pairs.len() as u32,
        bare: String::new(),
        threads: 1,
        daemon_cpu_s_per_gib: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(unit: Unit, pairs: &[(f64, f64)]) -> Row {
        let pairs: Vec<_> = pairs.iter().map(|(o, l)| ((*o).into(), (*l).into())).collect();
        row("r", unit, &pairs)
    }

    #[test]
    fn a_row_is_the_median_of_its_pairs() {
        let row = of(Unit::BytesPerSecond, &[(8.0, 10.0), (9.0, 10.0), (6.0, 12.0)]);
        assert_eq!((row.ours, row.limit, row.ratio), (8.0, 10.0, 0.8));
        assert_eq!(row.ours_p99, None);
        assert_eq!((row.spread, row.unit), ([0.5, 0.9], "B/s"));
    }

    #[test]
    fn for_times_less_is_better() {
        let row = of(Unit::Microseconds, &[(20.0, 10.0), (40.0, 10.0)]);
        assert_eq!((row.ours, row.ratio, row.unit), (30.0, 0.375, "us"));
        let figure = |value, p99| Figure { value, p99: Some(p99) };
        let pairs = [(figure(2.0, 9.0), figure(1.0, 3.0)), (figure(2.0, 7.0), figure(1.0, 5.0))];
        let row = super::row("r", Unit::Microseconds, &pairs);
        assert_eq!((row.ours_p99, row.limit_p99), (Some(8.0), Some(4.0)));
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
