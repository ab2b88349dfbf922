//! What a model's pages are, and what they are called.

#![expect(unsafe_code, reason = "exported by name, for C; pointers come from there")]

use crate::grows::{self, Grows};
use crate::outcome::{Fault, UNDERCROFT_OK, answer};
use crate::strings::{self, Place};
use std::ffi::c_char;
use std::ptr;
use undercroft_wire::{Chain, Dtype, Family, FamilyDigest, Geometry, MAX_PARTS, PageKey};

/// Bytes of a key, of a family's digest, and of a model's.
pub const UNDERCROFT_KEY_BYTES: usize = 32;
/// The most parts that a layer of a page may have.
pub const UNDERCROFT_MAX_PARTS: usize = 8;

const _: () = assert!(UNDERCROFT_MAX_PARTS == MAX_PARTS);

/// bfloat16.
pub const UNDERCROFT_DTYPE_BF16: u32 = 1;
/// IEEE half precision.
pub const UNDERCROFT_DTYPE_F16: u32 = 2;
/// IEEE single precision.
pub const UNDERCROFT_DTYPE_F32: u32 = 3;
/// 8 bits, 4 of them exponent.
pub const UNDERCROFT_DTYPE_FP8_E4M3: u32 = 4;
/// 8 bits, 5 of them exponent.
pub const UNDERCROFT_DTYPE_FP8_E5M2: u32 = 5;
/// 8-bit integers.
pub const UNDERCROFT_DTYPE_INT8: u32 = 6;

/// What all shards of one model share. Two families never share a page: whatever changes the bytes or the
/// meaning of the KV cache must change a field of it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftFamily {
    /// `sizeof(undercroft_family)`.
    pub size: usize,
    /// A digest of the model: of its configuration and of its weight files' names, sizes and headers, never
    /// of a name or a path alone.
    pub model: [u8; 32],
    /// A digest of the adapter (LoRA); all zero for none.
    pub adapter: [u8; 32],
    /// Element type of the stored KV: one of `UNDERCROFT_DTYPE_*`.
    pub dtype: u32,
    /// Layers of the whole model.
    pub layers: u32,
    /// KV heads of the whole model.
    pub kv_heads: u32,
    /// Tokens in one page.
    pub page_tokens: u32,
    /// Quantization of the KV; null for "none". At most 256 bytes, as the next two.
    pub quantization: *const c_char,
    /// Rope and attention-window settings, in the engine's words; null for "".
    pub attention: *const c_char,
    /// Memory layout of a fragment, in the engine's words; null for "".
    pub layout: *const c_char,
}

// SAFETY: numbers and raw pointers.
unsafe impl Grows for UndercroftFamily {
    const NAME: &'static str = "undercroft_family";
    const FIRST_BYTES: usize = 112;
}

/// The shape of a page: its layers one after another, each made of the same parts in the same order. One
/// part of one layer is a fragment. It never grows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct UndercroftGeometry {
    /// Layers in a page.
    pub layers: u32,
    /// Parts of a layer: 2 for K and V, 1 for a shared latent or for bytes without a shape.
    pub parts: u32,
    /// Bytes of each part. A page has 512 bytes to 64 MiB altogether.
    pub part_bytes: [u32; 8],
}

impl UndercroftGeometry {
    pub(crate) fn check(&self) -> Result<Geometry, Fault> {
        let parts = self.part_bytes.get(..self.parts as usize).ok_or_else(|| {
            let found = self.parts;
            Fault::argument(format!("geometry.parts is {found}, allowed 1 to {MAX_PARTS}"))
        })?;
        let geometry = Geometry::of_parts(self.layers, parts);
        geometry.map_err(|error| Fault::argument(format!("geometry: {error}")))
    }
}

/// # Safety
/// As [`grows::read`], and its texts as [`strings::text`].
pub(crate) unsafe fn family(at: *const UndercroftFamily) -> Result<Family, Fault> {
    // SAFETY: the caller's.
    let given = unsafe { grows::read(at) }?;
    let text = |what, at, default| {
        // SAFETY: the caller's.
        unsafe { strings::text(what, at, default) }
    };
    Ok(Family {
        model: given.model,
        adapter: given.adapter,
        dtype: dtype(given.dtype)?,
        quantization: text("family.quantization", given.quantization, "none")?,
        attention: text("family.attention", given.attention, "")?,
        layout: text("family.layout", given.layout, "")?,
        layers: given.layers,
        kv_heads: given.kv_heads,
        page_tokens: given.page_tokens,
    })
}

fn dtype(given: u32) -> Result<Dtype, Fault> {
    Ok(match given {
        UNDERCROFT_DTYPE_BF16 => Dtype::Bf16,
        UNDERCROFT_DTYPE_F16 => Dtype::F16,
        UNDERCROFT_DTYPE_F32 => Dtype::F32,
        UNDERCROFT_DTYPE_FP8_E4M3 => Dtype::Fp8E4m3,
        UNDERCROFT_DTYPE_FP8_E5M2 => Dtype::Fp8E5m2,
        UNDERCROFT_DTYPE_INT8 => Dtype::Int8,
        _ => {
            let what = format!("family.dtype is {given}, allowed UNDERCROFT_DTYPE_* (1 to 6)");
            return Err(Fault::Argument(what));
        }
    })
}

/// The digest of a family: what its keys are bound to. Writes 32 bytes to `digest`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_family_digest(
    family: *const UndercroftFamily,
    digest: *mut u8,
) -> i32 {
    answer("undercroft_family_digest", || {
        // SAFETY: the caller's, as the header says.
        let (family, digest) = unsafe { (self::family(family)?, bytes_at("digest", digest)?) };
        digest.put(family.digest().0);
        Ok(UNDERCROFT_OK)
    })
}

/// Keys from an engine's own hashes of prefixes, which cover neither model nor layout: each is bound to the
/// family. `hashes` are `count` hashes of `hash_bytes` bytes each, one after another; `keys` has room for
/// `count` keys of 32 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_keys_from_hashes(
    family_digest: *const u8,
    hashes: *const u8,
    hash_bytes: usize,
    count: usize,
    keys: *mut u8,
) -> i32 {
    answer("undercroft_keys_from_hashes", || {
        let all = hash_bytes.checked_mul(count).filter(|_| hash_bytes > 0);
        let all = all.ok_or_else(|| Fault::argument("hash_bytes is 0, or far too many"))?;
        // SAFETY: the caller's, as the header says.
        let digest = unsafe { strings::bytes("family_digest", family_digest) }?;
        // SAFETY: as above.
        let hashes: &[u8] = unsafe { strings::items("hashes", hashes, all) }?;
        let family = FamilyDigest(digest);
        let made = hashes.chunks_exact(hash_bytes);
        let made: Vec<_> = made.map(|hash| PageKey::from_engine_hash(&family, hash)).collect();
        // SAFETY: as above.
        unsafe { put_keys(&made, keys) }
    })
}

/// Keys of the full pages of a list of tokens: each depends on all tokens up to the end of its page. What is
/// left of the tokens after the last full page has no key.
///
/// `salt` narrows who shares the pages (a tenant's `cache_salt`); null and 0 for none. `keys` has room for
/// `capacity` keys of 32 bytes, and `tokens / page_tokens` are needed; how many were written goes to
/// `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn undercroft_keys_from_tokens(
    family_digest: *const u8,
    page_tokens: u32,
    salt: *const u8,
    salt_bytes: usize,
    tokens: *const u32,
    n_tokens: usize,
    keys: *mut u8,
    capacity: usize,
    count: *mut usize,
) -> i32 {
    answer("undercroft_keys_from_tokens", || {
        // SAFETY: the caller's, as the header says.
        let digest = unsafe { strings::bytes("family_digest", family_digest) }?;
        // SAFETY: as above.
        let salt: &[u8] = unsafe { strings::items("salt", salt, salt_bytes) }?;
        // SAFETY: as above.
        let tokens: &[u32] = unsafe { strings::items("tokens", tokens, n_tokens) }?;
        // SAFETY: as above.
        let count = unsafe { Place::new("count", count) }?;
        if page_tokens == 0 {
            return Err(Fault::argument("page_tokens is 0, allowed 1 or more"));
        }
        let needed = tokens.len() / page_tokens as usize;
        if needed > capacity {
            let what = format!("room for {capacity} keys, {needed} are needed");
            return Err(Fault::Argument(what));
        }
        let mut chain = Chain::new(&FamilyDigest(digest), salt);
        let pages = tokens.chunks_exact(page_tokens as usize);
        let made: Vec<_> = pages.map(|page| chain.push(page)).collect();
        // SAFETY: as above.
        let outcome = unsafe { put_keys(&made, keys) }?;
        count.put(made.len());
        Ok(outcome)
    })
}

/// # Safety
/// `at` is null or has room for that many keys.
unsafe fn put_keys(keys: &[PageKey], at: *mut u8) -> Result<i32, Fault> {
    if keys.is_empty() {
        return Ok(UNDERCROFT_OK);
    }
    if at.is_null() {
        return Err(Fault::argument(format!("keys is null, and there are {}", keys.len())));
    }
    // SAFETY: a key is 32 bytes and nothing else; the room is the caller's promise.
    unsafe { ptr::copy_nonoverlapping(keys.as_ptr().cast::<u8>(), at, size_of_val(keys)) };
    Ok(UNDERCROFT_OK)
}

/// A place for so many bytes.
///
/// # Safety
/// As [`Place::new`], for as many bytes.
pub(crate) unsafe fn bytes_at<const N: usize>(
    what: &str,
    at: *mut u8,
) -> Result<Place<[u8; N]>, Fault> {
    // SAFETY: the caller's; bytes have no alignment.
    unsafe { Place::new(what, at.cast::<[u8; N]>()) }
}
