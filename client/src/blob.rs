use crate::space::SpaceHandle;
use crate::{FetchFrom, MissReason, ReadyRun, StoreOptions, StoreRun, Stored};
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{BlockId, Completion, Device, DeviceError, LoadJob, StoreJob, Transfer};
use undercroft_wire::{FamilyDigest, Geometry, MAX_KEYS, PageKey, Stamp, frame_bytes};

/// What a head begins with.
const MAGIC: [u8; 8] = *b"ucblob01";
/// Magic, length, digest, and room to grow.
const HEAD_BYTES: usize = 64;

/// Bytes of any length that are kept under one key, found and not yet loaded: the state of a
/// sequence, say, that an engine hands out in one piece.
///
/// A blob is a chain of pages. Its *head* is the last of them, lies under the blob's own key, and
/// has its length, its digest and its end; the keys of the pages before it come from
/// the digest. So eviction, which takes children first, takes the head before what it needs; a
/// blob that was stored anew with other bytes shares no page with the old one; and two keys with
/// the same bytes share all but their heads. One page that is missing is a miss of the whole.
#[derive(Debug)]
pub struct Blob {
    space: SpaceHandle,
    head: Head,
    /// The end of the blob, which lies in its head.
    end: Vec<u8>,
}

/// What a head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    bytes: u64,
    digest: [u8; 32],
}

impl SpaceHandle {
    /// Stores bytes under a key, in pages of this space. They can be loaded if all pages of
    /// what is returned are `stored` or `held`. What is under the key already stays: a key says
    /// what the bytes are, as the key of a page does. [`MissReason::TooLong`] if they take more
    /// than [`MAX_KEYS`] pages.
    pub fn store_blob(&self, key: PageKey, bytes: &[u8], options: StoreOptions) -> Stored {
        let page_bytes = self.state.page_bytes();
        let head = Head { bytes: bytes.len() as u64, digest: digest(bytes) };
        if !head.is_loadable(page_bytes) {
            return Stored { why: Some(MissReason::TooLong), ..Stored::default() };
        }
        let (before, end) = bytes.split_at(head.bytes_before(page_bytes));
        let whole = before.len() - before.len() % page_bytes;
        let mut padded = before[whole..].to_vec();
        padded.resize(page_bytes, 0);
        let pages = Pages {
            geometry: self.space().geometry,
            count: head.pages_before(page_bytes) + 1,
            whole: &before[..whole],
            padded: &padded,
            head: &head.page(end, page_bytes),
        };
        let mut keys = head.keys(&self.space().family.digest(), page_bytes);
        keys.push(key);
        let blocks: Vec<_> = (0..keys.len() as u32).map(BlockId).collect();
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(0) };
        self.store(run, &pages, &blocks, options)
    }

    /// Looks for bytes that were stored under a key, and says how many there are.
    ///
    /// # Errors
    /// Why there are none. [`MissReason::Damaged`] if what is under the key is no blob.
    pub fn find_blob(&self, key: PageKey, deadline: Duration) -> Result<Blob, MissReason> {
        let page_bytes = self.state.page_bytes();
        let mut page = vec![0; page_bytes];
        self.fetch_pages(&[key], &mut page, deadline)?;
        let head = Head::of(&page).ok_or(MissReason::Damaged)?;
        let end = head.bytes as usize - head.bytes_before(page_bytes);
        let end = page[HEAD_BYTES..HEAD_BYTES + end].to_vec();
        Ok(Blob { space: self.clone(), head, end })
    }

    /// Fetches pages one after another into memory, of the last one as much as has room there. All
    /// of them, or why not.
    fn fetch_pages(
        &self,
        keys: &[PageKey],
        into: &mut [u8],
        deadline: Duration,
    ) -> Result<(), MissReason> {
        if keys.is_empty() {
            return Ok(());
        }
        let page_bytes = self.state.page_bytes();
        let mut fetch = self.fetch(FetchFrom::Keys(keys), Stamp(0), deadline);
        while let Some(run) = fetch.next_ready() {
            let ReadyRun { first, ref pages, .. } = run;
            let at = first as usize * page_bytes;
            for (page, into) in pages.iter().zip(into[at..].chunks_mut(page_bytes)) {
                let page = page.sub(0, into.len()).expect("a chunk is no longer than a page");
                page.copy_to_slice(into);
            }
            if run.intact() < run.pages.len() {
                return Err(MissReason::Changed);
            }
            let upto = first + run.pages.len() as u32;
            drop(run);
            fetch.release_upto(upto);
        }
        fetch.report().why.map_or(Ok(()), Err)
    }
}

impl Blob {
    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.head.bytes
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.bytes == 0
    }

    /// Loads it into memory of exactly its length. What lies there after a miss is not to be used.
    ///
    /// # Errors
    /// [`MissReason::Invalid`] if the length is another, [`MissReason::Damaged`] if the bytes are
    /// not those that were stored, or why a page is missing.
    pub fn load(&self, into: &mut [u8], deadline: Duration) -> Result<(), MissReason> {
        if into.len() as u64 != self.head.bytes {
            return Err(MissReason::Invalid);
        }
        let page_bytes = self.space.state.page_bytes();
        let keys = self.head.keys(&self.space.space().family.digest(), page_bytes);
        let (before, end) = into.split_at_mut(self.head.bytes_before(page_bytes));
        self.space.fetch_pages(&keys, before, deadline)?;
        end.copy_from_slice(&self.end);
        if digest(into) == self.head.digest { Ok(()) } else { Err(MissReason::Damaged) }
    }
}

impl Head {
    fn of(page: &[u8]) -> Option<Self> {
        let head = page.get(..HEAD_BYTES)?;
        let bytes = u64::from_le_bytes(head[8..16].try_into().ok()?);
        let digest = head[16..48].try_into().ok()?;
        let is_head = head[..8] == MAGIC && head[48..].iter().all(|byte| *byte == 0);
        let head = Self { bytes, digest };
        (is_head && head.is_loadable(page.len())).then_some(head)
    }

    /// The page that it lies in, with the end of the blob.
    fn page(&self, end: &[u8], page_bytes: usize) -> Vec<u8> {
        let mut page = vec![0; page_bytes];
        page[..8].copy_from_slice(&MAGIC);
        page[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        page[16..48].copy_from_slice(&self.digest);
        page[HEAD_BYTES..HEAD_BYTES + end.len()].copy_from_slice(end);
        page
    }

    /// Whether it has no more pages than one request may name.
    fn is_loadable(&self, page_bytes: usize) -> bool {
        self.pages_before(page_bytes) < MAX_KEYS
    }

    /// How many pages are before it: whole ones, and one more where the rest has no room in the
    /// head.
    fn pages_before(&self, page_bytes: usize) -> usize {
        let (whole, rest) = (self.bytes / page_bytes as u64, self.bytes % page_bytes as u64);
        let more = u64::from(rest > (page_bytes - HEAD_BYTES) as u64);
        usize::try_from(whole + more).unwrap_or(usize::MAX)
    }

    /// How many bytes of a loadable blob lie in them. The others are in the head.
    fn bytes_before(&self, page_bytes: usize) -> usize {
        (self.pages_before(page_bytes) * page_bytes).min(self.bytes as usize)
    }

    /// The keys of the pages before it.
    fn keys(&self, family: &FamilyDigest, page_bytes: usize) -> Vec<PageKey> {
        let key = |page: usize| {
            let mut name = [0; 48];
            name[..8].copy_from_slice(&MAGIC);
            name[8..40].copy_from_slice(&self.digest);
            name[40..].copy_from_slice(&(page as u64).to_le_bytes());
            PageKey::from_engine_hash(family, &name)
        };
        (0..self.pages_before(page_bytes)).map(key).collect()
    }
}

/// Bound to its use: the digest of these bytes for anything else is another one.
fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("undercroft blob v1");
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

/// A blob's pages in the caller's memory, to be stored out of it: the last block is the head.
struct Pages<'a> {
    geometry: Geometry,
    count: usize,
    whole: &'a [u8],
    /// What is behind the whole pages and has no room in the head, if there is such.
    padded: &'a [u8],
    head: &'a [u8],
}

impl Pages<'_> {
    fn page(&self, block: BlockId) -> Option<&[u8]> {
        let (block, page_bytes) = (block.0 as usize, self.head.len());
        match (self.whole.len() / page_bytes, self.count.checked_sub(1)?) {
            (_, head) if block == head => Some(self.head),
            (_, head) if block > head => None,
            (whole, _) if block < whole => Some(&self.whole[block * page_bytes..][..page_bytes]),
            _ => Some(self.padded),
        }
    }
}

impl Device for Pages<'_> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn blocks(&self) -> u32 {
        self.count as u32
    }

    fn load(&self, jobs: Vec<LoadJob>) -> Result<Transfer, DeviceError> {
        let block = jobs.first().map_or(0, |job| job.block.0);
        Err(DeviceError::ReadOnly { block })
    }

    fn store(&self, jobs: Vec<StoreJob>) -> Result<Transfer, DeviceError> {
        let page_bytes = self.geometry.page_bytes();
        for StoreJob { block, page } in &jobs {
            let missing = DeviceError::Block { found: block.0, blocks: self.blocks() };
            let from = self.page(*block).ok_or(missing)?;
            let frame_bytes = frame_bytes(page_bytes);
            let found = page.len();
            let to = page.sub(0, page_bytes as usize);
            let short = DeviceError::PageBytes { found, page_bytes, frame_bytes };
            to.map_err(|_| short)?.copy_from_slice(from);
        }
        let layers = self.geometry.layers();
        Ok(Transfer::new(layers, Box::new(Over { layers })))
    }
}

/// A transfer that was over before anybody could wait for it.
struct Over {
    layers: u32,
}

impl Completion for Over {
    fn wait_layers(&self, _: u32, _: Option<Instant>) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn layers_done(&self) -> u32 {
        self.layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 512;
    const ROOM: u64 = (PAGE - HEAD_BYTES) as u64;

    fn head(bytes: u64) -> Head {
        Head { bytes, digest: [7; 32] }
    }

    #[test]
    fn the_end_of_a_blob_always_has_room_in_its_head() {
        for bytes in 0..4 * PAGE as u64 {
            let (pages, before) = (head(bytes).pages_before(PAGE), head(bytes).bytes_before(PAGE));
            assert!(before as u64 <= bytes && bytes - before as u64 <= ROOM, "{bytes}: {before}");
            assert!(before <= pages * PAGE && before + PAGE > pages * PAGE, "{bytes}: {before}");
        }
        assert_eq!(head(ROOM).pages_before(PAGE), 0);
        assert_eq!(head(ROOM + 1).pages_before(PAGE), 1);
        assert_eq!(head(PAGE as u64 + ROOM).pages_before(PAGE), 1);
    }

    #[test]
    fn a_head_is_read_as_it_was_written_and_nothing_else_is_one() {
        let end = [9; 5];
        let page = head(PAGE as u64 + ROOM).page(&end, PAGE);
        assert_eq!(Head::of(&page), Some(head(PAGE as u64 + ROOM)));
        assert_eq!(page[HEAD_BYTES..HEAD_BYTES + 5], end);
        for (at, what) in [(0, "magic"), (50, "room to grow")] {
            let mut wrong = page.clone();
            wrong[at] ^= 1;
            assert_eq!(Head::of(&wrong), None, "{what}");
        }
        assert_eq!(Head::of(&page[..HEAD_BYTES - 1]), None);
        assert_eq!(Head::of(&[0; PAGE]), None);
        // A length that no blob has is not allocated for.
        assert_eq!(Head::of(&head(u64::MAX).page(&[], PAGE)), None);
        assert_eq!(Head::of(&head((MAX_KEYS * PAGE) as u64).page(&[], PAGE)), None);
    }

    #[test]
    fn pages_of_other_bytes_have_other_keys() {
        let family = FamilyDigest([1; 32]);
        let keys = |digest| Head { bytes: 3 * PAGE as u64, digest }.keys(&family, PAGE);
        let (one, other) = (keys(digest(b"one")), keys(digest(b"other")));
        assert_eq!(one.len(), 3);
        assert!(one.iter().all(|key| !other.contains(key)));
        assert_ne!(one[0], one[1]);
    }
}
