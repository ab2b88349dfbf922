use super::{Connection, locked};
use crate::MissReason;
use crate::pulse::Felt;
use std::sync::Arc;
use std::time::Instant;
use undercroft_wire::{Reply, RequestId};

/// A request whose answer is awaited. Dropping it gives the answer up.
#[derive(Debug)]
pub(crate) struct Ticket {
    connection: Arc<Connection>,
    pub(crate) request: RequestId,
    /// The daemon's heartbeat before the request was sent.
    felt: Option<Felt>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.connection.is_foreign() {
            return;
        }
        let chore = locked(&self.connection.inbox).give_up(self.request);
        chore.into_iter().for_each(|chore| self.connection.do_chore(&chore));
    }
}

impl Ticket {
    pub(super) fn new(
        connection: &Arc<Connection>,
        request: RequestId,
        felt: Option<Felt>,
    ) -> Self {
        Self { connection: Arc::clone(connection), request, felt }
    }

    /// Waits for the one reply to the request.
    pub(crate) fn reply(&self, until: Instant) -> Result<Reply, MissReason> {
        let request = self.request;
        let reply = self.connection.wait_until(request, until, |inbox| inbox.take_reply(request));
        if let Err(MissReason::Deadline) = reply {
            self.missed();
        }
        reply
    }

    /// The call's deadline passed before its answer came.
    pub(crate) fn missed(&self) {
        self.connection.pulse.missed(self.felt);
    }

    /// The reply if it has been read already.
    pub(crate) fn reply_at_hand(&self) -> Option<Reply> {
        locked(&self.connection.inbox).take_reply(self.request)
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}
