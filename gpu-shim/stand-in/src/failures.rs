//! What fails although nothing is wrong.

use crate::Code;
use crate::calls::Call;
use crate::stream::Fate;

/// Calls that are to fail.
#[derive(Debug)]
struct PlannedCall {
    call: Call,
    /// So many go well first.
    skip: u64,
    times: u64,
    code: Code,
}

/// An operation that is to fail.
#[derive(Debug)]
struct PlannedOperation {
    skip: u64,
    fate: Fate,
}

/// Failures by chance.
#[derive(Debug)]
struct Chance {
    random: u64,
    per_million: u64,
    sticky_per_million: u64,
    destroying: bool,
}

/// What fails, planned and by chance.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    calls: Vec<PlannedCall>,
    operations: Vec<PlannedOperation>,
    chance: Option<Chance>,
    /// Operations that failed so.
    pub(crate) failed_operations: u64,
}

/// What a copy fails with while its context lives on.
const FAILED_OPERATION: [Code; 2] = [Code::OPERATING_SYSTEM, Code::LAUNCH_OUT_OF_RESOURCES];
/// What a context dies of.
const STICKY: [Code; 4] =
    [Code::ILLEGAL_ADDRESS, Code::LAUNCH_FAILED, Code::ECC_UNCORRECTABLE, Code::UNKNOWN];
const MILLION: u64 = 1_000_000;

impl Failures {
    /// The `nth` of the calls to come, and those after it, `times` in all.
    pub(crate) fn plan(&mut self, call: Call, nth: u64, code: Code, times: u64) {
        self.calls.push(PlannedCall { call, skip: nth.saturating_sub(1), times, code });
    }

    /// The `nth` of the operations that start from now on.
    pub(crate) fn plan_operation(&mut self, nth: u64, fate: Fate) {
        self.operations.push(PlannedOperation { skip: nth.saturating_sub(1), fate });
    }

    /// From now on, of a million calls and operations so many fail, and of a million operations so
    /// many kill the context. Nothing fails by chance if both are 0.
    pub(crate) fn set_chance(
        &mut self,
        seed: u64,
        per_million: u64,
        sticky_per_million: u64,
        destroying: bool,
    ) {
        let random = seed;
        let any = per_million + sticky_per_million > 0;
        self.chance = any.then_some(Chance { random, per_million, sticky_per_million, destroying });
    }

    /// Whether this call was planned to fail. It then does nothing else.
    pub(crate) fn planned(&mut self, call: Call) -> Option<Code> {
        let mut found = None;
        for plan in self.calls.iter_mut().filter(|plan| plan.call == call) {
            if plan.skip > 0 {
                plan.skip -= 1;
            } else if plan.times > 0 {
                plan.times -= 1;
                found = found.or(Some(plan.code));
            }
        }
        self.calls.retain(|plan| plan.times > 0);
        found
    }

    /// Whether this call fails by chance.
    pub(crate) fn by_chance(&mut self, call: Call) -> Option<Code> {
        let chance = self.chance.as_mut()?;
        let codes = call.plausible_failures();
        let spared = call.destroys() && !chance.destroying;
        (!spared && !codes.is_empty() && chance.hits(chance.per_million))
            .then(|| chance.one_of(codes))
    }

    /// How the operation fails that starts now, if it does.
    pub(crate) fn next_operation(&mut self) -> Option<Fate> {
        let mut fate = None;
        self.operations.retain_mut(|plan| {
            if plan.skip > 0 {
                plan.skip -= 1;
                return true;
            }
            fate.get_or_insert(plan.fate);
            false
        });
        let fate = fate.or_else(|| self.chance.as_mut()?.fate());
        self.failed_operations += u64::from(fate.is_some());
        fate
    }
}

impl Chance {
    /// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn hits(&mut self, per_million: u64) -> bool {
        self.next() % MILLION < per_million
    }

    fn one_of(&mut self, codes: &[Code]) -> Code {
        codes[(self.next() % codes.len() as u64) as usize]
    }

    fn fate(&mut self) -> Option<Fate> {
        if self.hits(self.sticky_per_million) {
            return Some(Fate { code: self.one_of(&STICKY), sticky: true });
        }
        let hit = self.hits(self.per_million);
        hit.then(|| Fate { code: self.one_of(&FAILED_OPERATION), sticky: false })
    }
}
