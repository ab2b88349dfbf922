/// Doubling what is spent on tiers is not worth it below this, points of the hit ratio.
pub(super) const POINT: f64 = 0.01;

/// A size pair, as far as the knee goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) price: f64,
    pub(super) hit_ratio: f64,
}

/// Where the knee is, and whether it was seen from beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Knee {
    pub(super) at: usize,
    /// Nothing of twice its price was looked at: what more would bring is not known.
    pub(super) is_last: bool,
}

/// The cheapest of the choices beyond which twice the money buys less than a point of hits: the one
/// after which no choice of at most twice its price has a hit ratio better by [`POINT`]. Only those
/// count that have more hits than all that are cheaper.
pub(super) fn knee(choices: &[Choice]) -> Option<Knee> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    let by_price = |at: &usize| (choices[*at].price, -choices[*at].hit_ratio);
    order.sort_by(|a, b| by_price(a).partial_cmp(&by_price(b)).expect("prices are numbers"));
    let mut best = f64::MIN;
    let frontier: Vec<usize> = order
        .into_iter()
        .filter(|at| {
            let is_better = choices[*at].hit_ratio > best;
            best = best.max(choices[*at].hit_ratio);
            is_better
        })
        .collect();
    let dearest = choices.iter().map(|choice| choice.price).fold(0.0, f64::max);
    let is_knee = |at: &usize| {
        let here = choices[*at];
        let within = |other: &Choice| other.price <= 2.0 * here.price;
        let gain = |other: &Choice| other.hit_ratio - here.hit_ratio;
        choices.iter().filter(|other| within(other)).all(|other| gain(other) < POINT)
    };
    let at = frontier.into_iter().find(is_knee)?;
    Some(Knee { at, is_last: dearest < 2.0 * choices[at].price })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(choices: &[(f64, f64)]) -> Option<Knee> {
        let choices: Vec<Choice> = choices
            .iter()
            .map(|(price, hit_ratio)| Choice { price: *price, hit_ratio: *hit_ratio })
            .collect();
        knee(&choices)
    }

    #[test]
    fn it_is_where_twice_the_money_buys_less_than_a_point() {
        let found = of(&[(1.0, 0.2), (2.0, 0.3), (4.0, 0.35), (8.0, 0.355), (16.0, 0.357)]);
        assert_eq!(found, Some(Knee { at: 2, is_last: false }));
        // In any order, and with choices that cost more and bring less.
        let found = of(&[(8.0, 0.355), (3.0, 0.1), (4.0, 0.35), (2.0, 0.3), (1.0, 0.2)]);
        assert_eq!(found, Some(Knee { at: 2, is_last: false }));
    }

    #[test]
    fn a_step_that_is_small_is_no_knee_where_the_next_one_within_reach_is_large() {
        let found = of(&[(1.0, 0.2), (1.5, 0.205), (2.0, 0.3), (4.0, 0.302)]);
        assert_eq!(found, Some(Knee { at: 2, is_last: false }));
    }

    #[test]
    fn where_everything_still_gains_it_is_the_last_and_says_so() {
        let found = of(&[(1.0, 0.2), (2.0, 0.3), (4.0, 0.4)]);
        assert_eq!(found, Some(Knee { at: 2, is_last: true }));
        assert_eq!(of(&[]), None);
    }
}
