//! The two kernels that gather and scatter pages, as `gpu-shim/kernels/pages.cu` has them.
#![expect(unsafe_code, reason = "what the device would read at an address is read there")]

use crate::Code;
use crate::handles::Handle;
use crate::memory::Memory;
use crate::operation::{Touch, merge, reachable};
use crate::rows::Rows;
use crate::state::State;
use std::ptr::with_exposed_provenance;

/// Bytes of a strip that one warp takes at a time.
const TILE_BYTES: u32 = 8_192;
/// Most pages of one launch.
pub(crate) const MAX_JOBS: usize = 256;
/// Threads of a thread block.
pub(crate) const THREADS: u32 = 256;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From pages into blocks.
    Scatter,
    /// From blocks into pages.
    Gather,
}

impl Direction {
    /// The kernels by name.
    pub(crate) const KERNELS: [(&'static str, Self); 2] =
        [("undercroft_scatter", Self::Scatter), ("undercroft_gather", Self::Gather)];
}

/// Part of each block and where it lies in the page. Only its layout is that of C.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Strip {
    at: u64,
    block_stride: u64,
    pitch: u64,
    in_page: u32,
    row_bytes: u32,
    rows: u32,
    first_tile: u32,
}

/// The pages of one launch, as they stand in its parameters.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Jobs {
    pub(crate) page: [u64; MAX_JOBS],
    pub(crate) block: [u32; MAX_JOBS],
}

const _: () = assert!(size_of::<Strip>() == 40 && size_of::<Jobs>() == 3_072);

/// A kernel with its parameters.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The module it comes from.
    pub(crate) module: Handle,
    pub(crate) direction: Direction,
    /// Address of the strips.
    pub(crate) strips: u64,
    pub(crate) strip_count: u32,
    pub(crate) tiles: u32,
    pub(crate) job_count: u32,
    pub(crate) unit: u32,
    pub(crate) jobs: Box<Jobs>,
}

impl Launch {
    fn is_empty(&self) -> bool {
        self.job_count == 0 || self.tiles == 0
    }

    fn strip_bytes(&self) -> u64 {
        u64::from(self.strip_count) * size_of::<Strip>() as u64
    }

    /// What it will touch, as far as can be known when it is launched: the pages begin where its
    /// parameters say, the rest stands in the strips, if nothing that is queued writes those.
    pub(crate) fn touches(&self, state: &State, context: Handle) -> Vec<Touch> {
        let end = self.strips.saturating_add(self.strip_bytes());
        let settled = !state.streams.iter().any(|(_, it)| it.will_write(self.strips, end));
        if settled && let Ok((_, touches)) = plan(state, context, self) {
            return touches;
        }
        let strips = reachable(&state.memory, context, self.strips, self.strip_bytes(), false);
        let writes = self.direction == Direction::Gather;
        let pages = self.jobs.page.iter().take(self.job_count as usize);
        let pages = pages.filter_map(|at| reachable(&state.memory, context, *at, 1, writes));
        merge(strips.into_iter().chain(pages).collect())
    }

    /// Reads the strips, from memory that was just found to be there.
    fn read_strips(&self) -> Vec<Strip> {
        let strips = with_exposed_provenance::<Strip>(self.strips as usize);
        // SAFETY: `plan` found these bytes in memory that the driver keeps, every pattern of them
        // is a strip, and whoever writes them while the kernel reads errs with a device too.
        (0..self.strip_count as usize).map(|i| unsafe { strips.add(i).read_unaligned() }).collect()
    }
}

/// The copies that the kernel comes to, in the order of its tiles, with what they touch.
pub(crate) fn plan(
    state: &State,
    context: Handle,
    launch: &Launch,
) -> Result<(Vec<Rows>, Vec<Touch>), Code> {
    let mut plan = Plan { memory: &state.memory, context, launch, rows: vec![], touches: vec![] };
    if launch.is_empty() {
        return Ok((plan.rows, plan.touches));
    }
    if launch.job_count as usize > MAX_JOBS || launch.strip_count == 0 {
        return Err(Code::ILLEGAL_ADDRESS);
    }
    plan.touch(launch.strips, launch.strip_bytes(), false)?;
    if !launch.strips.is_multiple_of(align_of::<Strip>() as u64) {
        return Err(Code::MISALIGNED_ADDRESS);
    }
    let strips = launch.read_strips();
    for job in 0..launch.job_count as usize {
        for tile in 0..launch.tiles {
            let strip = &strips[strip_of(&strips, tile)];
            plan.tile(strip, job, tile.wrapping_sub(strip.first_tile))?;
        }
    }
    Ok((plan.rows, merge(plan.touches)))
}

/// The last strip that does not begin behind the tile.
fn strip_of(strips: &[Strip], tile: u32) -> usize {
    strips.partition_point(|strip| strip.first_tile <= tile).saturating_sub(1)
}

struct Plan<'a> {
    memory: &'a Memory,
    context: Handle,
    launch: &'a Launch,
    rows: Vec<Rows>,
    touches: Vec<Touch>,
}

impl Plan<'_> {
    fn touch(&mut self, start: u64, bytes: u64, writes: bool) -> Result<(), Code> {
        let touch = reachable(self.memory, self.context, start, bytes, writes);
        self.touches.push(touch.ok_or(Code::ILLEGAL_ADDRESS)?);
        Ok(())
    }

    /// One tile of a strip, cut at the ends of rows. The arithmetic wraps as the kernel's does.
    fn tile(&mut self, strip: &Strip, job: usize, tile: u32) -> Result<(), Code> {
        let block = u64::from(self.launch.jobs.block[job]).wrapping_mul(strip.block_stride);
        let block = strip.at.wrapping_add(block);
        let page = self.launch.jobs.page[job].wrapping_add(strip.in_page.into());
        let strip_bytes = strip.rows.wrapping_mul(strip.row_bytes);
        let begin = tile.wrapping_mul(TILE_BYTES);
        let left = strip_bytes.wrapping_sub(begin);
        let end = if left < TILE_BYTES { strip_bytes } else { begin.wrapping_add(TILE_BYTES) };
        if begin < end {
            self.check_unit(strip, block, page)?;
        }
        let mut byte = begin;
        while byte < end {
            let (row, column) = (byte / strip.row_bytes, byte % strip.row_bytes);
            let width = (strip.row_bytes - column).min(end - byte);
            let whole = if column == 0 { (end - byte) / strip.row_bytes } else { 0 };
            let (width, count) = if whole > 0 { (strip.row_bytes, whole) } else { (width, 1) };
            let at = block
                .wrapping_add(u64::from(row).wrapping_mul(strip.pitch))
                .wrapping_add(column.into());
            self.piece(
                page.wrapping_add(byte.into()),
                at,
                strip.pitch,
                width.into(),
                count.into(),
            )?;
            byte += width * count;
        }
        Ok(())
    }

    /// Every address must be a multiple of the unit, as that is how it is accessed.
    fn check_unit(&self, strip: &Strip, block: u64, page: u64) -> Result<(), Code> {
        let unit = match self.launch.unit {
            unit @ (16 | 8 | 4 | 2) => u64::from(unit),
            _ => 1,
        };
        let numbers = [block, page, strip.pitch, strip.row_bytes.into()];
        let even = numbers.iter().all(|number| number.is_multiple_of(unit));
        even.then_some(()).ok_or(Code::MISALIGNED_ADDRESS)
    }

    /// Rows that adjoin in the page and lie at the strip's pitch in the block.
    fn piece(
        &mut self,
        page: u64,
        block: u64,
        pitch: u64,
        width: u64,
        count: u64,
    ) -> Result<(), Code> {
        let rows = match self.launch.direction {
            Direction::Scatter => {
                Rows { from: page, from_pitch: width, to: block, to_pitch: pitch, width, count }
            }
            Direction::Gather => {
                Rows { from: block, from_pitch: pitch, to: page, to_pitch: width, width, count }
            }
        };
        let (read, written) =
            rows.read_span().zip(rows.written_span()).ok_or(Code::ILLEGAL_ADDRESS)?;
        self.touch(rows.from, read, false)?;
        self.touch(rows.to, written, true)?;
        self.rows.push(rows);
        Ok(())
    }
}
