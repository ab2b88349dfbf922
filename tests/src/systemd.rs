//! The daemon as an operator runs it: the unit files as they are, under a real systemd, which boots as
//! the first process of namespaces of its own. Nothing of it is seen from outside, and nothing is left.
//!
//! Four processes of one program. The one that was started takes mount and process namespaces
//! ([`run_contained`](crate::run_contained)); in these the *host* lays out a root directory and boots
//! systemd in it; systemd starts the *operator*, as root, who does to the daemon what is to be done;
//! and the operator starts the *engines*, as an ordinary user, who bear it.

mod boot;
mod cgroup;
mod engines;
mod operator;
mod root;
mod unit;

pub use boot::{boot, unbootable};
pub use cgroup::ControlGroup;
pub use engines::be_engines;
pub use operator::be_operator;
