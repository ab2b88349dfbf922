use crate::shared_file::SharedFile;
use crate::{ArenaError, HugePages, Mount, room};

/// Where the bytes of an arena live, and so what keeps others from writing them.
///
/// By default they are sealed memfds, re-opened read-only: whoever may override a file's mode, and
/// whoever has the daemon's uid, can open them for writing. On mounts they are files without a
/// name, opened through a read-only bind: nobody else can.
#[derive(Debug, Default)]
pub struct Backing {
    mounts: Option<Mounts>,
}

#[derive(Debug)]
struct Mounts {
    /// Ordinary memory.
    plain: Mount,
    /// Reserved huge pages.
    reserved: Option<Mount>,
}

impl Backing {
    /// Memfds.
    #[must_use]
    pub fn memfd() -> Self {
        Self::default()
    }

    /// Files on these mounts: `plain` on tmpfs, `reserved` on hugetlbfs. Without the latter there
    /// are no reserved huge pages.
    ///
    /// # Errors
    /// One of them is of the other kind.
    pub fn mounted(plain: Mount, reserved: Option<Mount>) -> Result<Self, ArenaError> {
        if plain.is_hugetlb() || reserved.as_ref().is_some_and(|mount| !mount.is_hugetlb()) {
            let what = "the first mount must be tmpfs, and the second hugetlbfs";
            return Err(ArenaError::Unprotected { what });
        }
        Ok(Self { mounts: Some(Mounts { plain, reserved }) })
    }

    /// Whether nobody but the daemon can open its memory for writing.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.mounts.is_some()
    }

    /// Checks that the machine, and the control groups of this process, have room for parts of so many
    /// bytes in all: who takes more is killed. Reserved huge pages are there already.
    ///
    /// # Errors
    /// [`ArenaError::NoRoom`].
    pub fn check_room(&self, bytes: u64, huge: HugePages) -> Result<(), ArenaError> {
        let gives = self.mounts.as_ref().is_none_or(|mounts| mounts.reserved.is_some());
        let reserved = if gives && huge == HugePages::Auto { room::reserved_bytes() } else { 0 };
        room::check(bytes.saturating_sub(reserved))
    }

    /// Memory of `bytes` bytes, in reserved huge pages or not. With `reserve` it is taken at once on
    /// a mount that has a size of its own: it can run out, and whoever touches a page then is killed.
    pub(crate) fn create(
        &self,
        bytes: u64,
        hugetlb: bool,
        reserve: bool,
    ) -> Result<SharedFile, ArenaError> {
        let mount = match &self.mounts {
            None => return SharedFile::memfd(bytes, hugetlb),
            Some(mounts) if !hugetlb => &mounts.plain,
            Some(mounts) => {
                let what = "there is no mount of reserved huge pages";
                mounts.reserved.as_ref().ok_or(ArenaError::Unprotected { what })?
            }
        };
        let (fd, read_only) = mount.create(bytes, reserve)?;
        Ok(SharedFile::mounted(fd, read_only, bytes))
    }
}
