#![expect(unsafe_code, reason = "memory policies are system calls that no crate here wraps")]

//! On which memory node pages lie.

use crate::mapping::Mapping;
use rustix::io::Errno;
use std::ffi::c_void;
use std::io;

/// As many nodes as any Linux knows.
const MAX_NODES: u32 = 1024;
const MASK_WORDS: usize = MAX_NODES as usize / 64;
/// `MPOL_F_ADDR`.
const POLICY_OF_ADDRESS: libc::c_ulong = 2;
/// How many places of a part are looked at to say where it lies.
const SAMPLES: usize = 64;

/// Asks for pages of `node`, where `mapping` has none yet. Pages of another node are taken when
/// that one has none left: better far away than not at all.
pub(crate) fn prefer(mapping: &Mapping, node: u32) -> Result<(), Errno> {
    if node >= MAX_NODES {
        return Err(Errno::INVAL);
    }
    let mut mask = [0u64; MASK_WORDS];
    mask[node as usize / 64] = 1 << (node % 64);
    let (start, len) = (mapping.base().as_ptr(), mapping.len());
    // The kernel looks at one bit less than it is told.
    let bits = libc::c_ulong::from(MAX_NODES) + 1;
    // SAFETY: the range is the mapping's, and the mask has as many bits as said, the last one that
    // the kernel does not look at excepted. No byte of the mapping changes.
    let rc = unsafe {
        libc::syscall(libc::SYS_mbind, start, len, libc::MPOL_PREFERRED, mask.as_ptr(), bits, 0)
    };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The node whose pages are preferred for `mapping`, if there is one. The kernel keeps it with the
/// file: it outlives the process that asked for it.
pub(crate) fn preferred(mapping: &Mapping) -> Option<u32> {
    let (mut mode, mut mask) = (0i32, [0u64; MASK_WORDS]);
    let bits = libc::c_ulong::from(MAX_NODES);
    // SAFETY: both places are ours and as large as said; the address lies in the mapping, of which
    // no byte changes.
    let rc = unsafe {
        let (at, mode, mask) = (mapping.base().as_ptr(), &raw mut mode, mask.as_mut_ptr());
        libc::syscall(libc::SYS_get_mempolicy, mode, mask, bits, at, POLICY_OF_ADDRESS)
    };
    if rc != 0 || mode != libc::MPOL_PREFERRED {
        return None;
    }
    let word = mask.iter().position(|word| *word != 0)?;
    Some(word as u32 * 64 + mask[word].trailing_zeros())
}

/// Of some places spread over `mapping`, how many lie on another node than `node`, and how many
/// were looked at. Only pages that are there count.
pub(crate) fn elsewhere(mapping: &Mapping, node: u32) -> Result<(usize, usize), Errno> {
    let pages = mapping.len() / 4096;
    let count = pages.clamp(1, SAMPLES);
    let base = mapping.base().as_ptr();
    let places: Vec<*const c_void> = (0..count)
        .map(|i| base.wrapping_add(i * pages / count * 4096).cast_const().cast())
        .collect();
    let mut nodes = vec![0i32; count];
    let nowhere: *const i32 = std::ptr::null();
    // SAFETY: both lists have `count` entries; without target nodes no page is moved.
    let rc = unsafe {
        let (places, nodes) = (places.as_ptr(), nodes.as_mut_ptr());
        libc::syscall(libc::SYS_move_pages, 0, count, places, nowhere, nodes, 0)
    };
    if rc != 0 {
        return Err(last_errno());
    }
    // A negative number is an error: there is no page.
    let there = nodes.into_iter().filter_map(|found| u32::try_from(found).ok());
    Ok(there.fold((0, 0), |(far, seen), found| (far + usize::from(found != node), seen + 1)))
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
