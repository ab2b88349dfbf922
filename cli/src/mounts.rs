//! `undercroft mounts`.

use crate::outcome::{Failure, Outcome};
use clap::Args;

/// Make the private mounts that a service's arena lies on, and have the service manager keep them.
///
/// For ExecStartPre= of the unit, as root: the daemon itself may not mount. The mounts are in no
/// directory; they belong to the owner of the service's RuntimeDirectory=.
#[derive(Debug, Args)]
#[command(after_help = "Example, in undercroft.service:
  NotifyAccess=exec
  ExecStartPre=-+/usr/bin/undercroft mounts")]
pub(crate) struct Mounts {}

impl Mounts {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        undercroft_kvstore::prepare_mounts().map_err(Failure::start)?;
        Ok(Outcome::Good)
    }
}
