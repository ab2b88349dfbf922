use crate::mapping::{HUGE_BYTES, Mapping};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How a mapping is to be faulted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Page tables only; the pages are there.
    Read,
    /// Pages of whatever size the kernel gives.
    Write,
    /// Shared memory as huge pages where the kernel can make them, else small pages.
    Collapse,
    /// The same, with small pages for what is left after so long: for each huge page the kernel
    /// waits for all processors, and may have to move other memory out of the way.
    CollapseWithin(Duration),
}

/// Faults the whole of `mapping` in with up to `threads` threads and returns how many bytes were
/// made huge on request.
pub(crate) fn prefault(mapping: &Mapping, fault: Fault, threads: usize) -> Result<usize, Errno> {
    let next = AtomicUsize::new(0);
    let huge = AtomicUsize::new(0);
    let until = match fault {
        Fault::CollapseWithin(patience) => Some(Instant::now() + patience),
        Fault::Read | Fault::Write | Fault::Collapse => None,
    };
    let is_huge = matches!(fault, Fault::Collapse | Fault::CollapseWithin(_));
    let collapsing = AtomicBool::new(is_huge);
    let work = || -> Result<(), Errno> {
        loop {
            // A stripe is small enough to share the work evenly and large enough that a system
            // call does not show.
            let stripe = 8 * HUGE_BYTES;
            let start = next.fetch_add(stripe, Ordering::Relaxed);
            if start >= mapping.len() {
                return Ok(());
            }
            let end = (start + stripe).min(mapping.len());
            if is_huge {
                let made = fault_huge(mapping, start..end, &collapsing, until)?;
                huge.fetch_add(made, Ordering::Relaxed);
            } else {
                mapping.populate(&(start..end), fault == Fault::Write)?;
            }
        }
    };
    let threads = threads.clamp(1, mapping.len().div_ceil(8 * HUGE_BYTES));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        workers.into_iter().fold(mine, |all, worker| {
            all.and(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })?;
    Ok(huge.into_inner())
}

/// Touches one page of every huge page and has the kernel fill in the rest: many times faster
/// than faulting 512 small pages, and the only way to huge shared memory where the system's
/// setting for it is `never`.
fn fault_huge(
    mapping: &Mapping,
    range: Range<usize>,
    collapsing: &AtomicBool,
    until: Option<Instant>,
) -> Result<usize, Errno> {
    let mut made = 0;
    let mut start = range.start;
    while start < range.end {
        let end = (start + HUGE_BYTES).min(range.end);
        let whole = end - start == HUGE_BYTES;
        if until.is_some_and(|until| Instant::now() >= until) {
            collapsing.store(false, Ordering::Relaxed);
        }
        if whole && collapsing.load(Ordering::Relaxed) {
            mapping.populate(&(start..start + 4096), true)?;
            match mapping.collapse(&(start..end)) {
                Ok(()) => {
                    made += HUGE_BYTES;
                    start = end;
                    continue;
                }
                // The kernel does not know the call or forbids it: no use in asking again.
                Err(Errno::INVAL | Errno::PERM) => collapsing.store(false, Ordering::Relaxed),
                // No huge page is to be had for this one.
                Err(_) => {}
            }
        }
        mapping.populate(&(start..end), true)?;
        start = end;
    }
    Ok(made)
}
