use crate::bell::from_now;
use crate::space::SpaceHandle;
use crate::{FetchFrom, LookupOptions, MissReason, ReadyRun, StoreOptions, StoreRun, Stored};
use std::time::{Duration, Instant};
use undercroft_gpu_shim::{BlockId, Completion, Device, DeviceError, LoadJob, StoreJob, Transfer};
use undercroft_wire::{FamilyDigest, Geometry, MAX_KEYS, PageKey, Stamp, frame_bytes};

/// What a head begins with.
const MAGIC: [u8; 8] = *b"ucblob01";
/// Magic, length, digest, and room to grow.
const HEAD_BYTES: usize = 64;
/// How many heads one key may have, one behind another. The next is for where the one before is of
/// other bytes whose pages are gone: it can neither be loaded nor replaced while it is kept.
const PLACES: u8 = 4;
/// How much is hashed between two looks at the clock.
const HASHED_AT_ONCE: usize = 1 << 20;

/// Bytes of any length that are kept under one key, found and not yet loaded: the state of a
/// sequence, say, that an engine hands out in one piece.
///
/// A blob is a chain of pages. Its *head* is the last of them and has its length, its digest and
/// its end; the key of the head comes from the blob's key, those of the pages before it from the
/// digest, and no page of a KV cache has such keys. Eviction, which takes children first, takes
/// the head before what it needs; blobs of other bytes share no page; and two keys with
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
    /// Stores bytes under a key, in pages of this space. They can be loaded if `why` of what is
    /// returned is `None`, and only then. The same bytes may be stored again, which brings back
    /// what is missing of them. [`MissReason::Taken`] if other bytes are under the key: they stay,
    /// and nothing is stored; a key says what the bytes are, as the key of a page does.
    /// [`MissReason::Full`] if a page was declined, [`MissReason::TooLong`] if there are more than
    /// [`MAX_KEYS`].
    pub fn store_blob(&self, key: PageKey, bytes: &[u8], options: StoreOptions) -> Stored {
        let until = from_now(options.deadline);
        self.try_store(key, bytes, until, options.wait_for_credits).unwrap_or_else(|why| {
            let before = pages_before(bytes.len() as u64, self.state.page_bytes());
            let unsettled = u32::try_from(before.saturating_add(1)).unwrap_or(u32::MAX);
            Stored { unsettled, why: Some(why), ..Stored::default() }
        })
    }

    fn try_store(
        &self,
        key: PageKey,
        bytes: &[u8],
        until: Instant,
        wait_for_credits: bool,
    ) -> Result<Stored, MissReason> {
        if pages_before(bytes.len() as u64, self.state.page_bytes()) >= MAX_KEYS {
            return Err(MissReason::TooLong);
        }
        let _there_is_a_daemon = self.ready()?;
        let mut hasher = hasher();
        hash(&mut hasher, bytes, until)?;
        let head = Head { bytes: bytes.len() as u64, digest: *hasher.finalize().as_bytes() };
        for place in 0..PLACES {
            match self.look_at(key, place, until) {
                Ok(found) if found.head == head => {}
                Ok(found) if found.is_whole(until)? => return Err(MissReason::Taken),
                Ok(_) => continue,
                Err(MissReason::Absent | MissReason::Damaged) => {}
                Err(why) => return Err(why),
            }
            let stored = self.store_at(head_key(&self.family(), key, place), head, bytes, {
                let deadline = until.saturating_duration_since(Instant::now());
                StoreOptions { deadline, wait_for_credits }
            });
            let why = stored.why.or_else(|| self.lost(&stored, (key, place), head, until));
            return Ok(Stored { why, ..stored });
        }
        Err(MissReason::Full)
    }

    fn store_at(&self, key: PageKey, head: Head, bytes: &[u8], options: StoreOptions) -> Stored {
        let page_bytes = self.state.page_bytes();
        let (before, end) = bytes.split_at(head.bytes_before(page_bytes));
        let whole = before.len() - before.len() % page_bytes;
        let mut padded = before[whole..].to_vec();
        padded.resize(page_bytes, 0);
        let pages = Pages {
            geometry: self.space().geometry,
            count: pages_before(head.bytes, page_bytes) + 1,
            whole: &before[..whole],
            padded: &padded,
            head: &head.page(end, page_bytes),
        };
        let mut keys = head.keys(&self.family(), page_bytes);
        keys.push(key);
        let blocks: Vec<_> = (0..keys.len() as u32).map(BlockId).collect();
        let run = StoreRun { parent: None, first: 0, keys: &keys, stamp: Stamp(0) };
        self.store(run, &pages, &blocks, options)
    }

    /// Why a blob whose pages are settled cannot be loaded, if it cannot.
    fn lost(
        &self,
        stored: &Stored,
        (key, place): (PageKey, u8),
        head: Head,
        until: Instant,
    ) -> Option<MissReason> {
        let lost = stored.coming + stored.declined.total() + stored.failed + stored.unsettled;
        if lost == 0 && stored.held == 0 {
            return None;
        }
        // A head that was held need not be this one, nor be what declined the head: another writer
        // may have been there first.
        match self.look_at(key, place, until) {
            Ok(found) if found.head != head => Some(MissReason::Taken),
            Ok(_) if lost == 0 => None,
            Err(why) if lost == 0 => Some(why),
            _ if stored.coming > 0 => Some(MissReason::Deadline),
            _ if stored.failed > 0 => Some(MissReason::Device),
            _ => Some(MissReason::Full),
        }
    }

    /// Looks for bytes that were stored under a key and are all there, and says how many there are.
    ///
    /// # Errors
    /// Why there are none. [`MissReason::Damaged`] if what is under the key is not what was stored.
    pub fn find_blob(&self, key: PageKey, deadline: Duration) -> Result<Blob, MissReason> {
        let until = from_now(deadline);
        for place in 0..PLACES {
            let found = self.look_at(key, place, until)?;
            if found.is_whole(until)? {
                return Ok(found);
            }
        }
        Err(MissReason::Absent)
    }

    /// The head in one of a key's places. Pages before it may be missing.
    fn look_at(&self, key: PageKey, place: u8, until: Instant) -> Result<Blob, MissReason> {
        let page_bytes = self.state.page_bytes();
        let mut page = vec![0; page_bytes];
        let key = head_key(&self.family(), key, place);
        self.fetch_pages(&[key], &mut page, until, |_| Ok(()))?;
        let head = Head::of(&page).ok_or(MissReason::Damaged)?;
        let end = head.bytes as usize - head.bytes_before(page_bytes);
        let end = page[HEAD_BYTES..HEAD_BYTES + end].to_vec();
        Ok(Blob { space: self.clone(), head, end })
    }

    /// Fetches pages one after another into memory, of the last one as much as has room there. All
    /// of them, or why not; `seen` is shown the bytes in their order.
    fn fetch_pages(
        &self,
        keys: &[PageKey],
        into: &mut [u8],
        until: Instant,
        mut seen: impl FnMut(&[u8]) -> Result<(), MissReason>,
    ) -> Result<(), MissReason> {
        if keys.is_empty() {
            return Ok(());
        }
        let page_bytes = self.state.page_bytes();
        let left = until.saturating_duration_since(Instant::now());
        let mut fetch = self.fetch(FetchFrom::Keys(keys), Stamp(0), left);
        while let Some(run) = fetch.next_ready() {
            let ReadyRun { first, ref pages, .. } = run;
            let (at, upto) = (first as usize * page_bytes, first + pages.len() as u32);
            let end = into.len().min(upto as usize * page_bytes);
            let into = &mut into[at..end];
            for (page, into) in pages.iter().zip(into.chunks_mut(page_bytes)) {
                if Instant::now() >= until {
                    return Err(MissReason::Deadline);
                }
                let page = page.sub(0, into.len()).expect("a chunk is no longer than a page");
                page.copy_to_slice(into);
            }
            if run.intact() < run.pages.len() {
                fetch.found_changed();
                return Err(MissReason::Changed);
            }
            drop(run);
            fetch.release_upto(upto);
            seen(into)?;
        }
        fetch.report().why.map_or(Ok(()), Err)
    }

    fn family(&self) -> FamilyDigest {
        self.space().family.digest()
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
        let until = from_now(deadline);
        let page_bytes = self.space.state.page_bytes();
        let (before, end) = into.split_at_mut(self.head.bytes_before(page_bytes));
        let mut hasher = hasher();
        let seen = |bytes: &[u8]| hash(&mut hasher, bytes, until);
        self.space.fetch_pages(&self.keys(), before, until, seen)?;
        end.copy_from_slice(&self.end);
        hasher.update(end);
        let is_same = *hasher.finalize().as_bytes() == self.head.digest;
        if is_same { Ok(()) } else { Err(MissReason::Damaged) }
    }

    /// Whether the pages before its head are there too.
    fn is_whole(&self, until: Instant) -> Result<bool, MissReason> {
        let keys = self.keys();
        if keys.is_empty() {
            return Ok(true);
        }
        let deadline = until.saturating_duration_since(Instant::now());
        let found = self
            .space
            .lookup(&keys, LookupOptions { hold: None, deadline, ..LookupOptions::default() });
        match found.why {
            None => Ok(true),
            Some(MissReason::Absent) => Ok(false),
            Some(why) => Err(why),
        }
    }

    /// The keys of the pages before its head.
    fn keys(&self) -> Vec<PageKey> {
        self.head.keys(&self.space.family(), self.space.state.page_bytes())
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
        pages_before(self.bytes, page_bytes) < MAX_KEYS
    }

    /// How many bytes of a loadable blob lie in them. The others are in the head.
    fn bytes_before(&self, page_bytes: usize) -> usize {
        (pages_before(self.bytes, page_bytes) * page_bytes).min(self.bytes as usize)
    }

    /// The keys of the pages before it.
    fn keys(&self, family: &FamilyDigest, page_bytes: usize) -> Vec<PageKey> {
        let pages = 0..pages_before(self.bytes, page_bytes) as u64;
        let key = |page: u64| key_of(family, &[b"page", &self.digest, &page.to_le_bytes()]);
        pages.map(key).collect()
    }
}

/// How many pages are before a head: whole ones, and one more where the rest has no room in it.
fn pages_before(bytes: u64, page_bytes: usize) -> usize {
    let (whole, rest) = (bytes / page_bytes as u64, bytes % page_bytes as u64);
    let more = u64::from(rest > (page_bytes - HEAD_BYTES) as u64);
    usize::try_from(whole + more).unwrap_or(usize::MAX)
}

/// The key of the head of what is kept under `key`.
fn head_key(family: &FamilyDigest, key: PageKey, place: u8) -> PageKey {
    key_of(family, &[b"head", &[place], &key.0])
}

/// Bound to its use: what comes out is never the key of a page of tokens, nor of an engine's hash.
fn key_of(family: &FamilyDigest, parts: &[&[u8]]) -> PageKey {
    let mut hasher = blake3::Hasher::new_derive_key("undercroft page key of a blob v1");
    hasher.update(&family.0);
    for part in parts {
        hasher.update(part);
    }
    PageKey(*hasher.finalize().as_bytes())
}

/// Of a blob's digest. Bound to its use: the digest of these bytes for anything else is another one.
fn hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("undercroft blob v1")
}

fn hash(hasher: &mut blake3::Hasher, bytes: &[u8], until: Instant) -> Result<(), MissReason> {
    for piece in bytes.chunks(HASHED_AT_ONCE) {
        if Instant::now() >= until {
            return Err(MissReason::Deadline);
        }
        hasher.update(piece);
    }
    Ok(())
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
            let (pages, before) = (pages_before(bytes, PAGE), head(bytes).bytes_before(PAGE));
            assert!(before as u64 <= bytes && bytes - before as u64 <= ROOM, "{bytes}: {before}");
            assert!(before <= pages * PAGE && before + PAGE > pages * PAGE, "{bytes}: {before}");
        }
        assert_eq!(pages_before(ROOM, PAGE), 0);
        assert_eq!(pages_before(ROOM + 1, PAGE), 1);
        assert_eq!(pages_before(PAGE as u64 + ROOM, PAGE), 1);
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
        let (one, other) = (keys([1; 32]), keys([2; 32]));
        assert_eq!(one.len(), 3);
        assert!(one.iter().all(|key| !other.contains(key)));
        assert_ne!(one[0], one[1]);
    }

    #[test]
    fn no_head_has_a_key_of_anything_else() {
        let (family, key) = (FamilyDigest([1; 32]), PageKey([2; 32]));
        let heads: Vec<_> = (0..PLACES).map(|place| head_key(&family, key, place)).collect();
        assert!(
            heads
                .iter()
                .all(|head| *head != key && heads.iter().filter(|h| *h == head).count() == 1)
        );
        assert_ne!(heads[0], PageKey::from_engine_hash(&family, &key.0));
        assert_ne!(heads[0], head_key(&FamilyDigest([3; 32]), key, 0));
    }

    #[test]
    fn hashing_ends_with_the_time_for_it() {
        let (bytes, now) = (vec![0; 3 * HASHED_AT_ONCE], Instant::now());
        assert_eq!(hash(&mut hasher(), &bytes, now), Err(MissReason::Deadline));
        let mut in_pieces = hasher();
        assert_eq!(hash(&mut in_pieces, &bytes, now + Duration::from_secs(60)), Ok(()));
        assert_eq!(in_pieces.finalize(), hasher().update(&bytes).finalize());
    }
}
