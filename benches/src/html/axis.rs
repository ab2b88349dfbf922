/// Where values lie on a logarithmic scale: from `low` at `from` to `high` at `to`, pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogAxis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl LogAxis {
    /// Over all of these values, none of which is 0 or less.
    pub(crate) fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        // One value alone lies in the middle.
        let (low, high) = if high > low { (low, high) } else { (low / 2.0, low * 2.0) };
        Self { low, high, from, to }
    }

    /// From the power of ten before its lowest value to the one after its highest.
    pub(crate) fn of_decades(self) -> Self {
        let (low, high) = (self.low.log10().floor(), self.high.log10().ceil());
        Self { low: 10_f64.powf(low), high: 10_f64.powf(high), ..self }
    }

    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// The powers of ten on it.
    pub(crate) fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        let (low, high) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
        (low..=high).map(|exponent| 10_f64.powi(exponent))
    }

    pub(crate) fn has(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// So many values from one end to the other, evenly spaced as they lie.
    pub(crate) fn walk(&self, steps: u32) -> impl Iterator<Item = f64> + use<> {
        let (low, ratio) = (self.low, self.high / self.low);
        (0..=steps).map(move |step| low * ratio.powf(f64::from(step) / f64::from(steps)))
    }
}

/// Moves what stands too near to its neighbour: returns places at least `gap` apart and between
/// `top` and `bottom` where there is room, in the order given, each as near as can be to its own.
pub(crate) fn spread(places: &[f64], gap: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| places[*a].total_cmp(&places[*b]));
    let mut moved = places.to_vec();
    let mut least = top;
    for at in &order {
        moved[*at] = moved[*at].max(least);
        least = moved[*at] + gap;
    }
    let mut most = bottom;
    for at in order.iter().rev() {
        moved[*at] = moved[*at].min(most);
        most = moved[*at] - gap;
    }
    moved
}

/// The largest step of 1, 2 or 5 times a power of ten that cuts `most` into more than three pieces;
/// there are at most nine then.
pub(crate) fn step(most: f64) -> f64 {
    let largest = most / 3.4;
    let power = 10_f64.powf(largest.log10().floor());
    let times = [5.0, 2.0].into_iter().find(|times| times * power <= largest);
    times.unwrap_or(1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_factors_are_equally_far_apart() {
        let axis = LogAxis::over([8.0, 512.0, 64.0].into_iter(), 100.0, 400.0);
        assert!((axis.at(8.0) - 100.0).abs() < 1e-9 && (axis.at(512.0) - 400.0).abs() < 1e-9);
        assert!((axis.at(64.0) - 250.0).abs() < 1e-9);
        let decades: Vec<f64> = axis.of_decades().decades().collect();
        assert_eq!(decades, [1.0, 10.0, 100.0, 1000.0]);
        let one = LogAxis::over([5.0].into_iter(), 0.0, 10.0);
        assert!((one.at(5.0) - 5.0).abs() < 1e-9);
        let walked: Vec<f64> = axis.walk(2).map(f64::round).collect();
        assert_eq!(walked, [8.0, 64.0, 512.0]);
    }

    #[test]
    fn labels_are_moved_apart_and_stay_inside() {
        assert_eq!(spread(&[10.0, 12.0, 50.0], 16.0, 0.0, 100.0), [10.0, 26.0, 50.0]);
        assert_eq!(spread(&[98.0, 99.0], 16.0, 0.0, 100.0), [84.0, 100.0]);
        assert_eq!(spread(&[50.0, 49.0], 16.0, 0.0, 100.0), [65.0, 49.0]);
    }

    #[test]
    fn steps_are_round() {
        for (most, expected) in [(5.0, 1.0), (9.8, 2.0), (0.7, 0.2), (130.0, 20.0), (24.0, 5.0)] {
            assert!((step(most) - expected).abs() < 1e-9, "{most}: {}", step(most));
        }
        for tenth in 1..2_000 {
            let most = f64::from(tenth) / 10.0;
            assert!((3.0..=9.0).contains(&(most / step(most))), "{most}: {}", step(most));
        }
    }
}
