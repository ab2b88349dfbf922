use crate::connection::locked;
use std::collections::HashMap;
use std::sync::Mutex;
use undercroft_wire::{Epoch, LeaseId, Release, SessionId};

/// `Release::upto` that ends the lease.
pub(crate) const ALL: u32 = u32::MAX;

/// The most leases whose release is remembered until the daemon has confirmed it.
const MAX_KEPT: usize = 65_536;

/// What the daemon may not have heard of: how far each lease was let go. If it closes a connection
/// unread and lives on, it is told again, or pages would stay leased for good. A lease is forgotten
/// when its end is confirmed.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    kept: Mutex<HashMap<(SessionId, LeaseId), Kept>>,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    epoch: Epoch,
    upto: u32,
}

impl Releases {
    /// To be called before it is told.
    pub(crate) fn keep(&self, epoch: Epoch, release: Release) {
        let mut kept = locked(&self.kept);
        let (lease, upto) = ((release.session, release.lease), release.upto);
        if let Some(known) = kept.get_mut(&lease) {
            known.upto = known.upto.max(upto);
        } else if kept.len() < MAX_KEPT {
            kept.insert(lease, Kept { epoch, upto });
        }
    }

    pub(crate) fn forget(&self, session: SessionId, lease: LeaseId) {
        locked(&self.kept).remove(&(session, lease));
    }

    /// What is to be told in a new connection of this arena. Leases in another one ended with it.
    pub(crate) fn to_tell(&self, epoch: Epoch) -> Vec<Release> {
        let mut kept = locked(&self.kept);
        kept.retain(|_, kept| kept.epoch == epoch);
        let release = |(&(session, lease), kept): (&(SessionId, LeaseId), &Kept)| Release {
            session,
            lease,
            upto: kept.upto,
        };
        kept.iter().map(release).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Has every lock there is.
    pub(crate) fn hold(releases: &Releases) -> impl Sized {
        locked(&releases.kept)
    }

    fn release(lease: u64, upto: u32) -> Release {
        Release { session: SessionId(5), lease: LeaseId(lease), upto }
    }

    #[test]
    fn a_lease_is_told_again_as_far_as_it_was_let_go_until_its_end_is_confirmed() {
        let releases = Releases::default();
        for upto in [3, 9, 7] {
            releases.keep(Epoch(1), release(1, upto));
        }
        assert_eq!(releases.to_tell(Epoch(1)), [release(1, 9)]);
        releases.keep(Epoch(1), release(1, ALL));
        assert_eq!(releases.to_tell(Epoch(1)), [release(1, ALL)]);
        releases.forget(SessionId(5), LeaseId(1));
        assert_eq!(releases.to_tell(Epoch(1)), []);
    }

    #[test]
    fn they_are_bounded_and_end_with_their_arena() {
        let releases = Releases::default();
        (0..MAX_KEPT as u64 + 10).for_each(|lease| releases.keep(Epoch(1), release(lease, ALL)));
        assert_eq!(releases.to_tell(Epoch(1)).len(), MAX_KEPT);
        assert_eq!(releases.to_tell(Epoch(2)), []);
        assert_eq!(releases.to_tell(Epoch(1)), []);
    }
}
