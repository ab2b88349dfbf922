use crate::Policy;
use crate::order::OrderKey;
use crate::page::PageId;

/// Bits of a stamp: the clock of a domain counts pages used. At a million a second it is full after
/// nine years.
const STAMP_BITS: u32 = 48;
/// The last stamp there is.
pub(crate) const LAST_STAMP: u64 = (1 << STAMP_BITS) - 1;

/// Bits of a credit's significand; what is above them says by how much it is shifted.
const DIGITS: u32 = 11;

const MOST_CREDIT: u64 = (1 << (DIGITS + 31)) - 1;

/// By how many pages used since the page would have to be newer to make up for lying one page
/// deeper. A deep page is of use to those only who come back with all that lies before it.
const DEPTH_COST: u64 = 16;

/// More than any depth costs.
const GROUND: u64 = DEPTH_COST << u32::BITS;

/// By how much a credit of so many pages is shifted.
fn shift_of(pages: u64) -> u32 {
    (u64::BITS - pages.leading_zeros()).saturating_sub(DIGITS)
}

/// How dear a page is: the newest request that used it or a page behind it, and what it was
/// granted for having been used again, in units of the same clock.
///
/// Of a page and the one before it that has no less of both, whatever the policy makes of them, so
/// a page never leaves before those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Heat(u64);

impl Heat {
    /// That of a page used for the first time.
    pub(crate) fn new(stamp: u64) -> Self {
        Self(stamp.min(LAST_STAMP))
    }

    /// What [`Heat::to_bits`] gave, or any other bits. Before there were credits it was a stamp.
    pub(crate) fn from_bits(bits: u64) -> Self {
        // A credit has one code, so that codes compare as credits do.
        Self(bits & LAST_STAMP).with_credit(Self(bits).credit())
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn stamp(self) -> u64 {
        self.0 & LAST_STAMP
    }

    /// Whether nothing is colder.
    pub(crate) fn is_cooled(self) -> bool {
        self.stamp() == 0
    }

    fn code(self) -> u64 {
        self.0 >> STAMP_BITS
    }

    fn credit(self) -> u64 {
        let (digits, shift) = (self.code() & ((1 << DIGITS) - 1), self.code() >> DIGITS);
        digits << shift
    }

    /// The same with a credit of about `pages`, if it has less.
    pub(crate) fn with_credit(self, pages: u64) -> Self {
        let pages = pages.min(MOST_CREDIT);
        let shift = shift_of(pages);
        let code = u64::from(shift) << DIGITS | pages >> shift;
        Self(self.stamp() | code.max(self.code()) << STAMP_BITS)
    }

    /// Until when it is kept by density.
    fn expiry(self) -> u64 {
        self.stamp() + self.credit()
    }

    /// The same, not newer than `stamp` and with a credit of no more than `pages`.
    pub(crate) fn at_most(self, stamp: u64, pages: u64) -> Self {
        Self(self.stamp().min(stamp)).with_credit(self.credit().min(pages))
    }

    /// The more of both. By density a credit counts from the stamp it was granted at, so there it
    /// is the newer stamp and the later expiry.
    pub(crate) fn joined(self, other: Self, policy: Policy) -> Self {
        let stamp = self.stamp().max(other.stamp());
        if policy == Policy::Density {
            let left = self.expiry().max(other.expiry()) - stamp;
            // What is not exact is more: it must not end before either.
            return Self(stamp).with_credit(left.next_multiple_of(1 << shift_of(left)));
        }
        let code = self.code().max(other.code());
        Self(code << STAMP_BITS | stamp)
    }

    /// Whether it has no less of either.
    pub(crate) fn covers(self, other: Self, policy: Policy) -> bool {
        self.joined(other, policy) == self
    }

    /// Where a page stands in the eviction order.
    pub(crate) fn order_key(self, policy: Policy, depth: u32, page: PageId) -> OrderKey {
        let rank = match policy {
            // Cooled.
            _ if self.is_cooled() => 0,
            Policy::Lru => self.stamp(),
            Policy::Density => self.expiry(),
            Policy::Depth => GROUND + self.stamp() + self.credit() - DEPTH_COST * u64::from(depth),
        };
        OrderKey::new(rank, depth, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heat(stamp: u64, credit: u64) -> Heat {
        Heat::new(stamp).with_credit(credit)
    }

    fn key(policy: Policy, heat: Heat, depth: u32) -> OrderKey {
        heat.order_key(policy, depth, PageId::at(0))
    }

    #[test]
    fn a_page_as_new_as_the_one_before_it_is_colder() {
        for policy in Policy::ALL {
            assert!(key(policy, Heat::new(7), 4) < key(policy, Heat::new(7), 3));
            assert!(key(policy, Heat::default(), u32::MAX) < key(policy, Heat::default(), 0));
        }
    }

    #[test]
    fn a_deeper_page_must_be_newer_by_what_its_depth_costs() {
        let shallow = key(Policy::Depth, Heat::new(1000), 10);
        assert!(key(Policy::Depth, Heat::new(1000 + 5 * 16), 15) < shallow);
        assert!(key(Policy::Depth, Heat::new(1001 + 5 * 16), 15) > shallow);
        assert!(key(Policy::Lru, Heat::new(1001), 15) > key(Policy::Lru, Heat::new(1000), 10));
    }

    #[test]
    fn a_credit_is_as_if_it_had_been_used_later() {
        let again = key(Policy::Depth, heat(1000, 500), 10);
        assert!(key(Policy::Depth, Heat::new(1500), 11) < again);
        assert!(key(Policy::Depth, Heat::new(1501), 10) > again);
        assert_eq!(key(Policy::Lru, heat(1000, 500), 10), key(Policy::Lru, Heat::new(1000), 10));
    }

    #[test]
    fn by_density_a_credit_ends_when_it_was_to_however_often_the_page_is_warmed() {
        let granted = heat(1000, 500);
        let warmed = granted.joined(Heat::new(1400), Policy::Density);
        assert_eq!((warmed.stamp(), warmed.credit()), (1400, 100));
        assert_eq!(warmed.joined(Heat::new(1600), Policy::Density).credit(), 0);
        let longest = heat(7, MOST_CREDIT);
        let warmed = longest.joined(Heat::new(8), Policy::Density);
        assert!(warmed.expiry() >= longest.expiry() && warmed.covers(longest, Policy::Density));
    }

    proptest! {
        #[test]
        fn credits_lose_less_than_a_thousandth(stamp in 0..=LAST_STAMP, pages in 0_u64..1 << 40) {
            let found = heat(stamp, pages);
            prop_assert_eq!(found.stamp(), stamp);
            prop_assert!(found.credit() <= pages && found.credit() >= pages - pages / 1000);
            prop_assert_eq!(Heat::from_bits(found.to_bits()), found);
            prop_assert_eq!(found.with_credit(pages / 2), found);
        }

        #[test]
        fn who_has_no_less_of_both_never_leaves_first(
            (a, b) in ((0_u64..9000, 0_u64..9000), (0_u64..9000, 0_u64..9000)),
            depth in 0_u32..5000,
        ) {
            let (below, other) = (heat(a.0, a.1), heat(b.0, b.1));
            for policy in Policy::ALL {
                let above = below.joined(other, policy);
                prop_assert!(above.covers(below, policy) && above.covers(other, policy));
                prop_assert_eq!(below.covers(other, policy), below == above);
                prop_assert!(key(policy, above, depth) > key(policy, below, depth + 1));
                prop_assert!(below.covers(below.at_most(5, 1000), policy));
            }
            let (above, cut) = (below.joined(other, Policy::Depth), below.at_most(5, 1000));
            prop_assert!(above.at_most(5, 1000).covers(cut, Policy::Depth));
            prop_assert!(cut.stamp() == a.0.min(5) && cut.credit() == below.credit().min(1000));
        }

        #[test]
        fn any_bits_are_a_heat((a, b) in any::<(u64, u64)>(), depth: u32) {
            let (a, b) = (Heat::from_bits(a), Heat::from_bits(b));
            prop_assert_eq!(Heat::from_bits(a.to_bits()), a);
            let depth = depth.max(1);
            for policy in Policy::ALL {
                let above = a.joined(b, policy);
                prop_assert!(above.covers(a, policy) && above.covers(b, policy));
                prop_assert!(key(policy, above, depth - 1) > key(policy, a, depth));
            }
            prop_assert!(a.joined(b, Policy::Depth).credit() >= a.credit().max(b.credit()));
        }
    }
}
