use crate::stats::{SessionLeases, SpaceInfo, Stats, TierFill};
use crate::{Action, Config, ConfigError, Event, Micros};
use undercroft_wire::{DomainId, Refused, SessionId, SpaceDigest, SpaceId};

/// All decisions of the daemon as a state machine: what happened goes in, what to do comes out.
/// It does no I/O, reads no clock, holds no threads, and the same events give the same actions.
#[derive(Debug)]
pub struct Core {
    stats: Stats,
}

impl Core {
    /// An empty core.
    ///
    /// # Errors
    /// A value of the configuration out of range.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            stats: Stats::default(),
        })
    }

    /// Takes in one event and appends to `actions` what is to be done about it. Time never goes
    /// backwards: a `now` before an earlier one counts as that earlier one.
    pub fn step(&mut self, now: Micros, event: Event<'_>, actions: &mut Vec<Action>) {
        let _ = (now, event, actions);
    }

    /// When to send the next [`Event::Tick`]; `None` while nothing waits for time to pass.
    #[must_use]
    pub fn next_timer(&self) -> Option<Micros> {
        None
    }

    /// The number of the space `(domain, digest)`, given now if it has none yet.
    ///
    /// # Errors
    /// `Busy` when no more spaces can be known, `Invalid` when `page_bytes` is out of range or
    /// not what it was before.
    pub fn intern_space(
        &mut self,
        domain: DomainId,
        digest: SpaceDigest,
        page_bytes: u32,
    ) -> Result<SpaceId, Refused> {
        let _ = (domain, digest, page_bytes);
        Ok(SpaceId(0))
    }

    /// Whether a session of this process-to-be would find room.
    #[must_use]
    pub fn has_session_room(&self) -> bool {
        true
    }

    /// Whether `session` has opened `space`.
    #[must_use]
    pub fn is_open(&self, session: SessionId, space: SpaceId) -> bool {
        let _ = (session, space);
        false
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How full DRAM is.
    #[must_use]
    pub fn dram(&self) -> TierFill {
        TierFill::default()
    }

    /// How full the SSD is; `None` without one.
    #[must_use]
    pub fn ssd(&self) -> Option<TierFill> {
        None
    }

    /// Pages on SSD that no lookup can reach because an ancestor is in no tier. Walks all pages
    /// unless no ancestor is missing.
    #[must_use]
    pub fn unreachable_pages(&self) -> u64 {
        0
    }

    /// All spaces known.
    pub fn spaces(&self) -> impl Iterator<Item = SpaceInfo> + '_ {
        std::iter::empty()
    }

    /// What `session` holds.
    #[must_use]
    pub fn session_leases(&self, session: SessionId) -> SessionLeases {
        let _ = session;
        SessionLeases::default()
    }

    /// Checks the whole state against itself.
    ///
    /// # Panics
    /// Naming the first broken invariant.
    pub fn audit(&self) {}
}
