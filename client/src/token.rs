use crate::bell::from_now;
use crate::client::not_expected;
use crate::fetch::{Delivery, Lease};
use crate::inbox::Expects;
use crate::space::SpaceHandle;
use crate::{Client, Fetch, Hold, MissReason};
use std::sync::Arc;
use std::time::{Duration, Instant};
use undercroft_wire::{Gift, Give, LeaseId, MAX_KEYS, Reply, Request, Take, TakenHold, Token};

impl Hold {
    /// A token with which one other session of this domain can take the hold over, once, within
    /// the time a hold may last. Until then it stays this one's: keep it until the other side has
    /// it. Dropping it earlier gives it back and makes the token worthless; dropping it later
    /// does nothing.
    ///
    /// A hold belongs to one session at a time, in which any number of threads may fetch any of
    /// its spaces under it. Workers in processes of their own need a hold each.
    ///
    /// # Errors
    /// Why there is none; the hold is as good as it was before.
    pub fn give(&self, deadline: Duration) -> Result<Token, MissReason> {
        if self.client.is_foreign() {
            return Err(MissReason::Forked);
        }
        give(&self.connection, Gift::Hold(self.id), from_now(deadline))
    }
}

impl Fetch {
    /// A token with which one other session of this domain can take the lease over, once, within
    /// the time a hold may last. The fetch must be over and nothing of it let go. Until the lease
    /// is taken it stays this one's: keep it until the other side has it. Dropping it earlier
    /// releases it and makes the token worthless; dropping it later does nothing, and the pages
    /// must not be read here any more.
    ///
    /// # Errors
    /// Why there is none; the lease is as good as it was before.
    pub fn give(&self, deadline: Duration) -> Result<Token, MissReason> {
        let Some(lease) = self.lease.as_ref().filter(|l| self.is_over() && l.is_whole()) else {
            return Err(MissReason::Invalid);
        };
        if lease.client.is_foreign() {
            return Err(MissReason::Forked);
        }
        give(lease.connection(), Gift::Lease(lease.id), from_now(deadline))
    }
}

fn give(
    connection: &Arc<crate::connection::Connection>,
    what: Gift,
    until: Instant,
) -> Result<Token, MissReason> {
    match connection.call(&Request::Give(Give { what }), Expects::Reply, until)? {
        Reply::Given(given) => Ok(given.token),
        other => Err(not_expected(connection, &other, "a token")),
    }
}

impl Client {
    /// Takes over a hold that another session gave. From here on it is this one's, whatever
    /// becomes of the giver.
    ///
    /// # Errors
    /// Why not. [`MissReason::Refused`] if the token is no hold's, was used or has expired.
    pub fn take_hold(&self, token: Token, deadline: Duration) -> Result<Hold, MissReason> {
        let until = from_now(deadline);
        let client = self.inner();
        let connection = client.connection()?;
        let take = Request::Take(Take { token, lease: LeaseId(0), space: None });
        match connection.call(&take, Expects::Reply, until)? {
            Reply::TakenHold(TakenHold { hold: id, pages }) => {
                Ok(Hold { client: Arc::clone(client), connection, id, pages })
            }
            other => Err(not_expected(&connection, &other, "a hold")),
        }
    }
}

impl SpaceHandle {
    /// Takes over a lease of pages of this space that another session gave. From here on it is
    /// this one's, whatever becomes of the giver; its pages are delivered as those of a fetch.
    /// [`MissReason::Refused`] is how it ends if the token is no lease's of this space, was used
    /// or has expired.
    pub fn take_lease(&self, token: Token, deadline: Duration) -> Fetch {
        let until = from_now(deadline);
        Fetch::of(self.take(token, until), None, until)
    }

    fn take(&self, token: Token, until: Instant) -> Result<Lease, MissReason> {
        let (connection, opened) = self.ready()?;
        let id = connection.new_lease();
        // How many there are only the daemon knows.
        let delivery = Delivery::new(MAX_KEYS as u32, &self.state, &opened);
        let take = Request::Take(Take { token, lease: id, space: Some(opened.id) });
        let ticket = connection.post(&take, Expects::Pages(id, delivery), until)?;
        Ok(Lease::new(Arc::clone(&self.client), ticket, id))
    }
}
