//! What outlives a daemon: its listening socket, the arena's parts, boards and the state file, as
//! descriptors with names. A service manager keeps them, or one daemon hands them to the next. The
//! mounts that parts are made on come the same way.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, sockopt};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use undercroft_wire::{DomainId, PartId};

/// What all names but the socket unit's own begin with.
const PREFIX: &str = "undercroft-";

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Heirloom {
    /// The listening socket.
    Socket,
    /// The state file: what lies in the arena, and who may be reading it.
    State,
    /// A part of the arena, for its owner.
    Part(PartId),
    /// The same part, for readers.
    ReadOnly(PartId),
    /// A domain's board, for its owner.
    Board(DomainId),
    /// The same board, for readers.
    ReadOnlyBoard(DomainId),
    /// A mount to make parts and boards on: no piece of an arena itself.
    Mount {
        /// Whether it is one of reserved huge pages.
        hugetlb: bool,
        side: Side,
    },
}

/// One of the two directories that a mount is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    Writable,
    ReadOnly,
}

impl Heirloom {
    const MOUNTS: [(&'static str, bool, Side); 4] = [
        ("plain", false, Side::Writable),
        ("plain-read", false, Side::ReadOnly),
        ("huge", true, Side::Writable),
        ("huge-read", true, Side::ReadOnly),
    ];

    /// Whether there is an arena without it, too.
    fn is_arena(self) -> bool {
        !matches!(self, Self::Socket | Self::Mount { .. })
    }
}

impl fmt::Display for Heirloom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No colon: they separate names in LISTEN_FDNAMES.
        match self {
            Self::Socket => write!(f, "undercroft-socket"),
            Self::State => write!(f, "undercroft-state"),
            Self::Part(part) => write!(f, "undercroft-part-{part}"),
            Self::ReadOnly(part) => write!(f, "undercroft-read-{part}"),
            Self::Board(domain) => write!(f, "undercroft-board-{domain}"),
            Self::ReadOnlyBoard(domain) => write!(f, "undercroft-glance-{domain}"),
            Self::Mount { hugetlb, side } => {
                let is_it = |(_, huge, of): &&(&str, bool, Side)| (huge, of) == (hugetlb, side);
                let name = Self::MOUNTS.iter().find(is_it).map_or("", |(name, ..)| name);
                write!(f, "undercroft-mount-{name}")
            }
        }
    }
}

impl FromStr for Heirloom {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let part = |number: &str| number.parse().map(PartId).map_err(drop);
        match name.strip_prefix(PREFIX).ok_or(())?.split_once('-') {
            Some(("part", number)) => part(number).map(Self::Part),
            Some(("read", number)) => part(number).map(Self::ReadOnly),
            Some(("board", domain)) => parse_domain(domain).map(Self::Board).ok_or(()),
            Some(("glance", domain)) => parse_domain(domain).map(Self::ReadOnlyBoard).ok_or(()),
            Some(("mount", which)) => {
                let known = Self::MOUNTS.iter().find(|(name, ..)| *name == which);
                let mount = known.map(|&(_, hugetlb, side)| Self::Mount { hugetlb, side });
                mount.ok_or(())
            }
            Some(_) => Err(()),
            None if name == "undercroft-socket" => Ok(Self::Socket),
            None if name == "undercroft-state" => Ok(Self::State),
            None => Err(()),
        }
    }
}

fn parse_domain(hex: &str) -> Option<DomainId> {
    let mut id = [0; 16];
    if hex.len() != 2 * id.len() || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(DomainId(id))
}

/// Everything a daemon before this one has left.
#[derive(Debug, Default)]
pub(crate) struct Estate {
    items: BTreeMap<Heirloom, OwnedFd>,
    /// Names that only another build knows.
    strange: Vec<String>,
    /// A listening socket came under a name that is not ours.
    has_socket_unit: bool,
    /// Something of the arena came more than once: which one is meant is not to be told.
    is_doubled: bool,
}

impl Estate {
    /// Takes a descriptor in under the name it came with. One that is a listening socket is taken
    /// for the daemon's, whatever a socket unit calls it; what nobody knows is closed.
    pub(crate) fn add(&mut self, name: &str, fd: OwnedFd) {
        let known = name.parse().ok();
        let of_unit = known.is_none() && is_listening(fd.as_fd());
        self.has_socket_unit |= of_unit;
        match known.or(of_unit.then_some(Heirloom::Socket)) {
            Some(heirloom) => {
                // A socket comes from its own unit and from what was kept: it is the same one.
                if self.items.insert(heirloom, fd).is_some() && heirloom.is_arena() {
                    tracing::warn!(name, "inherited twice");
                    self.is_doubled = true;
                }
            }
            None => {
                tracing::warn!(name, "an inherited descriptor of no known name was closed");
                if name.starts_with(PREFIX) {
                    self.strange.push(name.to_owned());
                }
            }
        }
    }

    /// Whether something of the arena came more than once.
    pub(crate) fn is_doubled(&self) -> bool {
        self.is_doubled
    }

    pub(crate) fn take(&mut self, heirloom: Heirloom) -> Option<OwnedFd> {
        self.items.remove(&heirloom)
    }

    /// Whether a socket unit of the service manager listens, and will when this daemon has ended.
    pub(crate) fn has_socket_unit(&self) -> bool {
        self.has_socket_unit
    }

    /// Whether there is anything of an arena in it.
    pub(crate) fn has_arena(&self) -> bool {
        self.items.keys().any(|heirloom| heirloom.is_arena())
    }

    /// What is left in it.
    pub(crate) fn names(&self) -> impl Iterator<Item = Heirloom> + '_ {
        self.items.keys().copied()
    }

    /// The names of all of an arena that is left in it, those that only another build knows included.
    pub(crate) fn arena_names(&self) -> Vec<String> {
        let known = self.names().filter(|heirloom| heirloom.is_arena());
        known.map(|heirloom| heirloom.to_string()).chain(self.strange.iter().cloned()).collect()
    }
}

/// Whether the descriptor is a unix socket that listens.
fn is_listening(fd: BorrowedFd<'_>) -> bool {
    let is_unix = sockopt::socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
    is_unix && sockopt::socket_acceptconn(fd).unwrap_or(false)
}

/// How many descriptors our own unit has kept (`FileDescriptorStoreMax=`).
const UNIT_KEEPS: usize = 8448;

/// The service manager, if it keeps descriptors for us.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeper;

impl Keeper {
    /// Whether there is a service manager to talk to. Whether it keeps anything is its own
    /// configuration (`FileDescriptorStoreMax=`).
    pub(crate) fn is_there() -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// What it means that so many descriptors are to be kept, where they are too many. It takes the
    /// ones that are too many without a word, and closes them.
    pub(crate) fn shortage(self, needed: usize) -> Option<String> {
        // Told from systemd 254 on.
        let told = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
        shortage_of(needed, told)
    }

    /// Has a descriptor kept under its name. The same one kept again is kept once.
    pub(crate) fn keep(self, heirloom: Heirloom, fd: BorrowedFd<'_>) {
        let name = heirloom.to_string();
        let state = [sd_notify::NotifyState::FdStore, sd_notify::NotifyState::FdName(&name)];
        if let Err(error) = sd_notify::notify_with_fds(false, &state, &[fd]) {
            tracing::warn!(%error, name, "the service manager does not take a descriptor");
        }
    }

    /// Has everything that was kept under a name forgotten.
    pub(crate) fn forget(self, name: &str) {
        let state = [sd_notify::NotifyState::FdStoreRemove, sd_notify::NotifyState::FdName(name)];
        if let Err(error) = sd_notify::notify(false, &state) {
            tracing::warn!(%error, name, "the service manager does not forget a descriptor");
        }
    }
}

fn shortage_of(needed: usize, told: Option<usize>) -> Option<String> {
    let (most, whose) = match told {
        Some(most) => (most, "the unit's"),
        None => (UNIT_KEEPS, "as installed, the unit's"),
    };
    (needed > most).then(|| {
        format!(
            "keeping the arena over a restart: it takes {needed} descriptors, {whose} \
             FileDescriptorStoreMax= is {most}: the next start will be a cold one"
        )
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn names_are_read_as_they_are_written() {
        let domain = DomainId::named("tenant-a");
        for heirloom in [
            Heirloom::Socket,
            Heirloom::State,
            Heirloom::Part(PartId(7)),
            Heirloom::ReadOnly(PartId(7)),
            Heirloom::Board(domain),
            Heirloom::ReadOnlyBoard(domain),
            Heirloom::Mount { hugetlb: false, side: Side::Writable },
            Heirloom::Mount { hugetlb: false, side: Side::ReadOnly },
            Heirloom::Mount { hugetlb: true, side: Side::Writable },
            Heirloom::Mount { hugetlb: true, side: Side::ReadOnly },
        ] {
            let name = heirloom.to_string();
            assert!(!name.contains(':') && name.len() < 255, "{name}");
            assert_eq!(name.parse(), Ok(heirloom));
        }
        for name in [
            "",
            "undercroft-",
            "undercroft-part-x",
            "undercroft-board-00",
            "undercroft-mount-",
            "stored",
        ] {
            assert_eq!(name.parse::<Heirloom>(), Err(()), "{name}");
        }
    }

    #[test]
    fn a_listening_socket_is_known_whatever_it_is_called() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("u.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let connected = UnixStream::connect(&path).unwrap();
        let mut estate = Estate::default();
        estate.add("undercroft.socket", connected.into());
        assert_eq!(estate.names().count(), 0);
        estate.add("undercroft-socket", listener.try_clone().unwrap().into());
        assert!(!estate.has_socket_unit(), "it was kept by a daemon");
        estate.add("undercroft.socket", listener.into());
        assert!(estate.has_socket_unit());
        assert!(estate.take(Heirloom::Socket).is_some() && !estate.has_arena());
    }

    #[test]
    fn more_than_the_unit_keeps_is_told() {
        assert_eq!(shortage_of(20, Some(20)), None);
        let line = shortage_of(21, Some(20)).unwrap();
        assert!(line.contains("21 descriptors") && line.contains("is 20"), "{line}");
        assert_eq!(shortage_of(UNIT_KEEPS, None), None);
        assert!(shortage_of(UNIT_KEEPS + 1, None).is_some());
        let unit = include_str!("../../systemd/undercroft.service");
        assert!(
            unit.contains(&format!("\nFileDescriptorStoreMax={UNIT_KEEPS}\n")),
            "the unit says so"
        );
    }

    #[test]
    fn what_is_not_to_be_told_apart_is_said_so() {
        let some = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut estate = Estate::default();
        estate.add("undercroft-socket", some());
        estate.add("undercroft-socket", some());
        estate.add("undercroft-state", some());
        assert!(!estate.is_doubled(), "{estate:?}");
        estate.add("undercroft-ledger-3", some());
        estate.add("somebody-else", some());
        estate.add("undercroft-state", some());
        assert!(estate.is_doubled(), "{estate:?}");
        assert_eq!(estate.arena_names(), ["undercroft-state", "undercroft-ledger-3"]);
    }
}
