//! The mounts that the arena lies on: made by a program that may mount and handed over by the
//! service manager, or made by the daemon itself where it may.

use crate::config::{BackingChoice, Config, MAX_MOUNTED_PARTS};
use crate::error::StartError;
use crate::estate::{Estate, Heirloom, Keeper, Side};
use rustix::fd::AsFd;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use undercroft_arena::{ArenaError, Backing, Mount, MountPair, OwnMounts};

/// Where the arena is to lie, and why not on mounts where that is only to be told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ground {
    pub(crate) backing: Arc<Backing>,
    pub(crate) refused: Option<String>,
}

/// Makes mounts for the service that this process prepares, and has the service manager keep them for
/// its daemon, in place of those from an earlier time. They are for the owner of the service's runtime
/// directory.
///
/// # Errors
/// There is no service manager, or this process may not mount.
pub fn prepare_mounts() -> Result<(), StartError> {
    if !Keeper::is_there() {
        return Err(StartError::NoManager);
    }
    let (uid, gid) = std::env::var_os("RUNTIME_DIRECTORY")
        .as_deref()
        .and_then(owner)
        .unwrap_or((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    let OwnMounts { plain, reserved } =
        OwnMounts::make(uid, gid).map_err(|source| StartError::Mounts { source })?;
    let pairs = [(false, Some(plain)), (true, reserved)];
    for (hugetlb, pair) in pairs {
        for side in [Side::Writable, Side::ReadOnly] {
            let heirloom = Heirloom::Mount { hugetlb, side };
            Keeper.forget(&heirloom.to_string());
            if let Some(MountPair { dir, read_only }) = &pair {
                let fd = if side == Side::Writable { dir } else { read_only };
                Keeper.keep(heirloom, fd.as_fd());
            }
        }
    }
    Ok(())
}

/// User and group that the first of some directories belongs to.
fn owner(directories: &OsStr) -> Option<(u32, u32)> {
    let first = directories.to_str()?.split(':').next()?;
    let facts = std::fs::metadata(Path::new(first)).ok()?;
    Some((facts.uid(), facts.gid()))
}

/// Finds out where the arena of this daemon is to lie.
///
/// # Errors
/// It must lie on mounts, and there are none.
pub(crate) fn ground(config: &Config, estate: &mut Estate) -> Result<Ground, StartError> {
    let (choice, handed) = (config.backing, Handed::take(estate));
    if choice == BackingChoice::Memfd {
        return Ok(Ground::of(Backing::memfd(), None));
    }
    if !config.fits_on_mounts() {
        let refused =
            format!("private mounts for the arena: it has more than {MAX_MOUNTED_PARTS} parts");
        return Ok(Ground::of(Backing::memfd(), Some(refused)));
    }
    match handed.into_backing().or_else(|why| own().map_err(|own| why.unwrap_or(own))) {
        Ok(backing) => Ok(Ground::of(backing, None)),
        Err(source) if choice == BackingChoice::Mount => Err(StartError::Mounts { source }),
        Err(error) => {
            let refused = format!("private mounts for the arena: {error}");
            Ok(Ground::of(Backing::memfd(), Some(refused)))
        }
    }
}

impl Ground {
    fn of(backing: Backing, refused: Option<String>) -> Self {
        Self { backing: Arc::new(backing), refused }
    }
}

fn own() -> Result<Backing, ArenaError> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    OwnMounts::make(uid.as_raw(), gid.as_raw())?.into_backing()
}

/// What was handed over of mounts.
#[derive(Debug, Default)]
struct Handed {
    plain: Option<MountPair>,
    reserved: Option<MountPair>,
}

impl Handed {
    fn take(estate: &mut Estate) -> Self {
        let mut pair = |hugetlb| {
            let mut one = |side| estate.take(Heirloom::Mount { hugetlb, side });
            let (dir, read_only) = (one(Side::Writable), one(Side::ReadOnly));
            dir.zip(read_only).map(|(dir, read_only)| MountPair { dir, read_only })
        };
        Self { plain: pair(false), reserved: pair(true) }
    }

    /// `Err` with nothing in it: nothing was handed over.
    fn into_backing(self) -> Result<Backing, Option<ArenaError>> {
        let MountPair { dir, read_only } = self.plain.ok_or(None)?;
        let reserved = self.reserved.map(|pair| Mount::new(pair.dir, pair.read_only));
        let backing = Mount::new(dir, read_only)
            .and_then(|plain| Backing::mounted(plain, reserved.transpose()?));
        backing.map_err(Some)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn config(backing: &str) -> Config {
        let text = format!("[arena]\nsize = \"1MiB\"\nbacking = \"{backing}\"\n[ssd]\nsize = 0\n");
        Config::parse(&text, Path::new("test.toml")).unwrap()
    }

    /// What the program that prepares a service leaves; `None` where none may be made here.
    fn handed(uid: u32, drop_one: Option<Side>) -> Option<Estate> {
        let OwnMounts { plain, .. } = OwnMounts::make(uid, uid).ok()?;
        let mut estate = Estate::default();
        let MountPair { dir, read_only } = plain;
        for (side, fd) in [(Side::Writable, dir), (Side::ReadOnly, read_only)] {
            if drop_one != Some(side) {
                estate.add(&Heirloom::Mount { hugetlb: false, side }.to_string(), fd);
            }
        }
        Some(estate)
    }

    #[test]
    fn mounts_that_were_handed_over_are_no_arena_and_are_used() {
        let own = rustix::process::geteuid().as_raw();
        let Some(mut estate) = handed(own, None) else {
            println!(
                "SKIPPED mounts_that_were_handed_over_are_no_arena_and_are_used: no right to mount"
            );
            return;
        };
        assert!(!estate.has_arena() && !estate.is_doubled());
        let ground = ground(&config("mount"), &mut estate).unwrap();
        assert!(ground.backing.is_protected() && ground.refused.is_none());
        assert_eq!(estate.names().count(), 0);
    }

    #[test]
    fn what_is_not_fit_is_told_and_costs_nothing_but_the_protection() {
        let name = "what_is_not_fit_is_told_and_costs_nothing_but_the_protection";
        let Some(mut estate) = handed(61_000, None) else {
            println!("SKIPPED {name}: no right to mount");
            return;
        };
        // Those of another user are not ours to use, and no others are asked for instead.
        let found = Handed::take(&mut estate).into_backing();
        assert!(matches!(found, Err(Some(ArenaError::Mount { .. }))), "{found:?}");
        for side in [Side::Writable, Side::ReadOnly] {
            let mut estate = handed(0, Some(side)).unwrap();
            assert!(matches!(Handed::take(&mut estate).into_backing(), Err(None)));
        }
    }

    #[test]
    fn memfds_are_used_where_they_are_asked_for() {
        let ground = ground(&config("memfd"), &mut Estate::default()).unwrap();
        assert!(!ground.backing.is_protected() && ground.refused.is_none());
    }
}
