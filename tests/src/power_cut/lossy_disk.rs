use fastrand::Rng;
use std::fmt;
use std::ops::Range;
use thiserror::Error;

/// What a disk writes as a whole or not at all, bytes.
const ATOM: usize = 512;
/// What is kept, dropped or torn by one throw of the dice, bytes.
const SECTOR: usize = 4096;

/// A disk with a volatile write cache, in memory. A write is answered when it is in the cache; a
/// flush brings the cache to the medium. A power cut leaves the medium and what it chooses of the
/// cache.
#[derive(Debug)]
pub(crate) struct LossyDisk {
    /// What readers see: the medium with the cache over it.
    seen: Vec<u8>,
    /// What a power cut cannot take away.
    medium: Vec<u8>,
    cache: Vec<CachedWrite>,
    cached_bytes: usize,
    cache_limit: usize,
    powered: bool,
    trap: Option<Trap>,
    last_cut: Cut,
    counts: DiskCounts,
}

/// A power cut to come.
#[derive(Debug)]
struct Trap {
    /// Writes and flushes that are still let through.
    left: u64,
    survival: Survival,
    random: Rng,
}

#[derive(Debug)]
struct CachedWrite {
    at: usize,
    bytes: Box<[u8]>,
}

/// Which of the cached writes a power cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Survival {
    /// None: the medium is as it was after the last flush.
    None,
    /// All of them.
    All,
    /// Those before a moment, in the order they came.
    Earlier,
    /// Each as a whole or not at all, without regard to order.
    Writes,
    /// Each sector of 4096 bytes as a whole, not at all, or torn: some of its 512-byte pieces.
    Sectors,
}

impl Survival {
    /// All kinds there are.
    pub const ALL: [Self; 5] = [Self::None, Self::All, Self::Earlier, Self::Writes, Self::Sectors];

    /// One of them.
    pub(crate) fn any(random: &mut Rng) -> Self {
        Self::ALL[random.usize(..Self::ALL.len())]
    }
}

impl fmt::Display for Survival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::All => "all",
            Self::Earlier => "earlier",
            Self::Writes => "writes",
            Self::Sectors => "sectors",
        })
    }
}

/// What a disk did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Writes and flushes.
    pub requests: u64,
    /// Flushes.
    pub flushes: u64,
    /// How often the cache was full, so that all of it went to the medium unasked.
    pub overflows: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// What a power cut did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Writes that were in the cache.
    pub writes: u64,
    /// Sectors of them that survived as a whole.
    pub kept: u64,
    /// Sectors that did not.
    pub dropped: u64,
    /// Sectors of which some pieces survived.
    pub torn: u64,
}

/// Why a disk does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum DiskError {
    /// The power is off.
    #[error("the power is off")]
    Off,
    /// Beyond the disk's end.
    #[error("beyond the disk's end")]
    Range,
}

impl LossyDisk {
    /// A disk full of zeros. The cache takes up to `cache_limit` bytes.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of the sector.
    #[must_use]
    pub(crate) fn new(bytes: usize, cache_limit: usize) -> Self {
        assert!(bytes.is_multiple_of(SECTOR), "a disk is a number of sectors");
        Self {
            seen: vec![0; bytes],
            medium: vec![0; bytes],
            cache: Vec::new(),
            cached_bytes: 0,
            cache_limit,
            powered: true,
            trap: None,
            last_cut: Cut::default(),
            counts: DiskCounts::default(),
        }
    }

    /// Its size.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.seen.len() as u64
    }

    /// What it did so far.
    #[must_use]
    pub(crate) fn counts(&self) -> DiskCounts {
        self.counts
    }

    /// What was written last, flushed or not.
    ///
    /// # Errors
    /// No power, or beyond the end.
    pub(crate) fn read(&self, at: u64, bytes: usize) -> Result<&[u8], DiskError> {
        Ok(&self.seen[self.range(at, bytes)?])
    }

    /// Takes a write into the cache.
    ///
    /// # Errors
    /// No power, or beyond the end.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.spring();
        let range = self.range(at, bytes.len())?;
        if self.cached_bytes + bytes.len() > self.cache_limit {
            self.counts.overflows += 1;
            self.empty_cache();
        }
        self.cache.push(CachedWrite { at: range.start, bytes: bytes.into() });
        self.cached_bytes += bytes.len();
        self.counts.requests += 1;
        self.counts.written_bytes += bytes.len() as u64;
        self.seen[range].copy_from_slice(bytes);
        Ok(())
    }

    /// Brings the cache to the medium.
    ///
    /// # Errors
    /// No power.
    pub(crate) fn flush(&mut self) -> Result<(), DiskError> {
        self.spring();
        if !self.powered {
            return Err(DiskError::Off);
        }
        self.counts.requests += 1;
        self.counts.flushes += 1;
        self.empty_cache();
        Ok(())
    }

    /// The power goes: of the cache survives what `survival` and the dice say, and nothing is
    /// answered until the power is back. Without power already, all is as it was then.
    pub(crate) fn cut(&mut self, survival: Survival, random: &mut Rng) -> Cut {
        if !self.powered {
            return self.last_cut;
        }
        self.trap = None;
        self.powered = false;
        let mut cut = Cut { writes: self.cache.len() as u64, ..Cut::default() };
        let survivors = random.usize(..=self.cache.len());
        let writes = std::mem::take(&mut self.cache);
        self.cached_bytes = 0;
        for (index, write) in writes.iter().enumerate() {
            let whole = match survival {
                Survival::None => Some(false),
                Survival::All => Some(true),
                Survival::Earlier => Some(index < survivors),
                Survival::Writes => Some(random.bool()),
                Survival::Sectors => None,
            };
            self.land(write, whole, random, &mut cut);
        }
        self.seen.copy_from_slice(&self.medium);
        self.last_cut = cut;
        cut
    }

    /// The power will go when `after` more writes and flushes have been answered: at an exact point
    /// of what somebody does, however fast that is.
    pub(crate) fn cut_after(&mut self, after: u64, survival: Survival, random: &mut Rng) {
        self.trap = Some(Trap { left: after, survival, random: random.fork() });
    }

    /// Whether the power is on.
    pub(crate) fn is_powered(&self) -> bool {
        self.powered
    }

    fn spring(&mut self) {
        let Some(mut trap) = self.trap.take() else {
            return;
        };
        if trap.left == 0 {
            self.cut(trap.survival, &mut trap.random);
        } else {
            trap.left -= 1;
            self.trap = Some(trap);
        }
    }

    /// The power is back.
    pub(crate) fn power_on(&mut self) {
        self.powered = true;
    }

    fn range(&self, at: u64, bytes: usize) -> Result<Range<usize>, DiskError> {
        if !self.powered {
            return Err(DiskError::Off);
        }
        let from = usize::try_from(at).map_err(|_too_large| DiskError::Range)?;
        let upto = from.checked_add(bytes).filter(|upto| *upto <= self.seen.len());
        Ok(from..upto.ok_or(DiskError::Range)?)
    }

    fn empty_cache(&mut self) {
        for write in self.cache.drain(..) {
            self.medium[write.at..][..write.bytes.len()].copy_from_slice(&write.bytes);
        }
        self.cached_bytes = 0;
    }

    /// Sector by sector: kept if `whole` says so, dropped if not, by the dice if it says nothing.
    fn land(&mut self, write: &CachedWrite, whole: Option<bool>, random: &mut Rng, cut: &mut Cut) {
        for piece in pieces(write.at, write.bytes.len(), SECTOR) {
            let fate = match whole {
                Some(kept) => usize::from(kept),
                None => random.usize(..3),
            };
            match fate {
                0 => cut.dropped += 1,
                1 => {
                    cut.kept += 1;
                    self.copy(write, piece);
                }
                _ => {
                    cut.torn += 1;
                    for atom in pieces(piece.start, piece.len(), ATOM) {
                        if random.bool() {
                            self.copy(write, atom);
                        }
                    }
                }
            }
        }
    }

    fn copy(&mut self, write: &CachedWrite, range: Range<usize>) {
        let from = range.start - write.at;
        self.medium[range.clone()].copy_from_slice(&write.bytes[from..][..range.len()]);
    }
}

/// Cuts a run of bytes at the multiples of `size`.
fn pieces(at: usize, bytes: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = at + bytes;
    let mut next = at;
    std::iter::from_fn(move || {
        let from = next;
        next = ((from / size + 1) * size).min(end);
        (from < end).then_some(from..next)
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    const DISK: usize = 16 * SECTOR;

    /// A disk whose medium is all 1 and whose cache holds a 2 for every byte.
    fn disk() -> LossyDisk {
        let mut disk = LossyDisk::new(DISK, 4 * DISK);
        disk.write(0, &[1; DISK]).unwrap();
        disk.flush().unwrap();
        for sector in 0..DISK / SECTOR / 2 {
            disk.write((sector * 2 * SECTOR) as u64, &[2; 2 * SECTOR]).unwrap();
        }
        disk
    }

    fn after(survival: Survival, seed: u64) -> (Vec<u8>, Cut) {
        let mut disk = disk();
        assert_eq!(disk.read(0, DISK).unwrap(), [2; DISK], "readers see the cache");
        let cut = disk.cut(survival, &mut Rng::with_seed(seed));
        assert_eq!(disk.read(0, 1), Err(DiskError::Off));
        assert_eq!(disk.write(0, &[3]), Err(DiskError::Off));
        assert_eq!(disk.flush(), Err(DiskError::Off));
        disk.power_on();
        (disk.read(0, DISK).unwrap().to_vec(), cut)
    }

    #[test]
    fn a_flush_is_what_survives_and_nothing_else_need() {
        assert_eq!(
            after(Survival::None, 1),
            (vec![1; DISK], Cut { writes: 8, dropped: 16, ..Cut::default() })
        );
        assert_eq!(
            after(Survival::All, 1),
            (vec![2; DISK], Cut { writes: 8, kept: 16, ..Cut::default() })
        );
    }

    #[test]
    fn whole_writes_survive_in_order_or_without() {
        let mut orders = [0, 0];
        for seed in 0..50 {
            for (kind, survival) in [Survival::Earlier, Survival::Writes].into_iter().enumerate() {
                let (left, cut) = after(survival, seed);
                assert_eq!((cut.kept + cut.dropped, cut.torn), (16, 0));
                let writes: Vec<u8> = left.chunks(2 * SECTOR).map(|write| write[0]).collect();
                for (write, first) in left.chunks(2 * SECTOR).zip(&writes) {
                    assert!(write.iter().all(|byte| byte == first), "a torn write");
                }
                orders[kind] += usize::from(writes.is_sorted_by(|a, b| a >= b));
            }
        }
        assert_eq!(orders[0], 50, "earlier ones first");
        assert!(orders[1] < 10, "any");
    }

    #[test]
    fn sectors_are_torn_between_atoms_and_the_seed_decides() {
        let (left, cut) = after(Survival::Sectors, 7);
        assert_eq!(cut.kept + cut.dropped + cut.torn, 16);
        assert!(cut.kept > 0 && cut.dropped > 0 && cut.torn > 0, "{cut:?}");
        for atom in left.chunks(ATOM) {
            assert!(atom.iter().all(|byte| *byte == atom[0]), "a torn atom");
        }
        let torn = left.chunks(SECTOR).filter(|s| s.iter().any(|byte| *byte != s[0])).count();
        assert!(torn > 0 && torn as u64 <= cut.torn);
        assert_eq!(after(Survival::Sectors, 7), (left.clone(), cut));
        assert_ne!(after(Survival::Sectors, 8).0, left);
    }

    #[test]
    fn a_full_cache_goes_to_the_medium_and_is_counted() {
        let mut disk = LossyDisk::new(DISK, 2 * SECTOR);
        for sector in 0..3 {
            disk.write(sector * SECTOR as u64, &[9; SECTOR]).unwrap();
        }
        assert_eq!(disk.counts().overflows, 1);
        disk.cut(Survival::None, &mut Rng::with_seed(1));
        disk.power_on();
        assert_eq!(disk.read(0, 2 * SECTOR).unwrap(), [9; 2 * SECTOR]);
        assert_eq!(disk.read(2 * SECTOR as u64, SECTOR).unwrap(), [0; SECTOR]);
        assert_eq!(disk.write(DISK as u64 - 1, &[0; 2]), Err(DiskError::Range));
        assert_eq!(disk.read(u64::MAX, 1), Err(DiskError::Range));
    }

    #[test]
    fn a_trap_lets_so_many_requests_through() {
        let mut disk = LossyDisk::new(DISK, DISK);
        disk.cut_after(3, Survival::All, &mut Rng::with_seed(1));
        disk.write(0, &[1]).unwrap();
        disk.flush().unwrap();
        disk.write(1, &[2]).unwrap();
        assert!(disk.is_powered());
        assert_eq!(disk.write(2, &[3]), Err(DiskError::Off), "not even cached");
        assert_eq!(disk.flush(), Err(DiskError::Off));
        let again = disk.cut(Survival::None, &mut Rng::with_seed(2));
        assert_eq!((again.writes, again.kept), (1, 1), "it was cut before");
        disk.power_on();
        assert_eq!(disk.read(0, 3).unwrap(), [1, 2, 0]);
        disk.write(2, &[3]).unwrap();
    }

    #[test]
    fn pieces_end_at_multiples() {
        let cut: Vec<_> = pieces(1000, 2000, 512).collect();
        assert_eq!(cut, [1000..1024, 1024..1536, 1536..2048, 2048..2560, 2560..3000]);
    }
}
