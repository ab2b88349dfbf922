//! The kernels' CUDA C, built as C++ and run thread by thread on random strips and pages, against
//! a copy of one byte after another. And what their PTX must be for drivers and host to take it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::env;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PTX: &str = include_str!("../kernels/pages.ptx");
const KERNELS: [&str; 2] = ["undercroft_scatter", "undercroft_gather"];
/// As in the kernels' source.
const TILE_BYTES: u32 = 8192;
const MAX_JOBS: usize = 256;
const READ: u8 = 1;
const WRITE: u8 = 2;
/// What `serial.cc` aligns memory to; more than any unit.
const MEMORY_ALIGN: usize = 4096;

/// As the kernels see it; `at` is an offset into memory.
#[derive(Debug, Clone, Copy)]
struct Strip {
    at: u64,
    block_stride: u64,
    pitch: u64,
    in_page: u32,
    row_bytes: u32,
    rows: u32,
    first_tile: u32,
}

impl Strip {
    fn bytes(&self) -> u32 {
        self.rows * self.row_bytes
    }

    fn encode(&self, into: &mut Vec<u8>) {
        for long in [self.at, self.block_stride, self.pitch] {
            into.extend(long.to_le_bytes());
        }
        for short in [self.in_page, self.row_bytes, self.rows, self.first_tile] {
            into.extend(short.to_le_bytes());
        }
    }
}

/// A launch, and all of memory: blocks in front, then pages.
#[derive(Debug, Clone)]
struct Launch {
    gather: bool,
    grid: u32,
    unit: u32,
    strips: Vec<Strip>,
    tiles: u32,
    /// Where a page lies in memory, and its block.
    jobs: Vec<(u64, u32)>,
    memory_bytes: usize,
}

impl Launch {
    /// Calls `each` with the address in a block and the address in a page of every byte to copy.
    fn each_byte(&self, mut each: impl FnMut(usize, usize)) {
        for (page, block) in &self.jobs {
            for strip in &self.strips {
                for byte in 0..u64::from(strip.bytes()) {
                    let (row, column) =
                        (byte / u64::from(strip.row_bytes), byte % u64::from(strip.row_bytes));
                    let at = strip.at + u64::from(*block) * strip.block_stride;
                    let in_block = at + row * strip.pitch + column;
                    let in_page = page + u64::from(strip.in_page) + byte;
                    each(in_block as usize, in_page as usize);
                }
            }
        }
    }

    /// What memory is after it, and what may be done with each byte of it.
    fn expected(&self, memory: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut after, mut permissions) = (memory.to_vec(), vec![0; memory.len()]);
        self.each_byte(|in_block, in_page| {
            let (from, to) = if self.gather { (in_block, in_page) } else { (in_page, in_block) };
            after[to] = memory[from];
            permissions[from] = READ;
            permissions[to] = WRITE;
        });
        (after, permissions)
    }

    fn encode(&self, memory: &[u8], permissions: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (strips, jobs) = (self.strips.len() as u32, self.jobs.len() as u32);
        for word in [u32::from(self.gather), self.grid, strips, self.tiles, jobs, self.unit] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend((memory.len() as u64).to_le_bytes());
        self.strips.iter().for_each(|strip| strip.encode(&mut bytes));
        let mut jobs = self.jobs.clone();
        jobs.resize(MAX_JOBS, (0, 0));
        jobs.iter().for_each(|(page, _)| bytes.extend(page.to_le_bytes()));
        jobs.iter().for_each(|(_, block)| bytes.extend(block.to_le_bytes()));
        bytes.extend(memory);
        bytes.extend(permissions);
        bytes
    }
}

/// A strip before it has its place, in units.
#[derive(Debug, Clone)]
struct Shape {
    row: u32,
    rows: u32,
    gap: u32,
    pad: u32,
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    // Rows of less than a warp's width, of about a tile, and of more than one.
    let row = prop_oneof![4 => 1..40_u32, 1 => 500..520_u32, 1 => 1000..1300_u32];
    let rows = prop_oneof![3 => Just(1_u32), 3 => 2..40_u32];
    let one = (row, rows, 0..5_u32, 0..5_u32);
    vec(one.prop_map(|(row, rows, gap, pad)| Shape { row, rows, gap, pad }), 1..12)
}

prop_compose! {
    /// Strips as layouts have them: blocks apart or woven into each other, nothing shared between
    /// two strips or blocks, pages with gaps between them and no byte of room to spare.
    fn launches()(
        gather: bool, grid in 1..9_u32, log_unit in 0..5_u32, shapes in shapes(),
        blocks in 1..7_u32, woven: bool, order in any::<prop::sample::Index>(),
        picks in vec(any::<prop::sample::Index>(), 1..7), page_gap in 0..3_u64,
    ) -> Launch {
        let unit = 1 << log_unit;
        let (mut in_page, mut first_tile) = (0, 0);
        let mut strips: Vec<Strip> = shapes.iter().map(|shape| {
            let (row_bytes, rows) = (shape.row * unit, shape.rows);
            let row_room = u64::from((shape.row + shape.gap) * unit);
            // Woven: the same row of all blocks side by side. Apart: all rows of a block together.
            let (pitch, block_stride) = if woven {
                (row_room * u64::from(blocks), row_room)
            } else {
                (row_room, row_room * u64::from(rows))
            };
            let strip = Strip { at: 0, block_stride, pitch, in_page, row_bytes, rows, first_tile };
            in_page += strip.bytes();
            first_tile += strip.bytes().div_ceil(TILE_BYTES);
            strip
        }).collect();
        // The order in memory is not the order in the page.
        let (count, mut end) = (strips.len(), 0);
        for index in (0..count).map(|index| (index + order.index(count)) % count) {
            let (Shape { row, rows, gap, pad }, strip) = (&shapes[index], &mut strips[index]);
            strip.at = end + u64::from(pad * unit);
            end = strip.at + u64::from((row + gap) * unit * rows * blocks);
        }
        let mut free: Vec<u32> = (0..blocks).collect();
        let mut jobs = Vec::new();
        for pick in picks.iter().take(blocks as usize) {
            let block = free.swap_remove(pick.index(free.len()));
            jobs.push((end, block));
            end += u64::from(in_page) + page_gap * u64::from(unit);
        }
        let memory_bytes = (end as usize).next_multiple_of(MEMORY_ALIGN);
        Launch { gather, grid, unit, strips, tiles: first_tile, jobs, memory_bytes }
    }
}

/// The kernels as a program.
struct Serial(Child);

impl Serial {
    fn start(program: &Path) -> Self {
        let mut command = Command::new(program);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Memory after a launch; `None` if the program ended in the middle of it, having said why.
    fn run(&mut self, launch: &Launch, memory: &[u8], permissions: &[u8]) -> Option<Vec<u8>> {
        let mut after = vec![0; memory.len()];
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(&launch.encode(memory, permissions)).ok()?;
        input.flush().ok()?;
        self.0.stdout.as_mut().unwrap().read_exact(&mut after).ok()?;
        Some(after)
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        // Its input ends, and so it does.
        drop(self.0.stdin.take());
        let _status = self.0.wait();
    }
}

/// Builds the kernels as C++.
///
/// # Errors
/// There is no compiler.
fn build() -> Result<PathBuf, String> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/serial.cc");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serial-kernels");
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O1", "-g", "-w", "-o"]).arg(&program).arg(source);
    let output = command
        .output()
        .map_err(|error| format!("no C++ compiler ({}): {error}", compiler.to_string_lossy()))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

fn noise(bytes: usize) -> Vec<u8> {
    // Long enough a period that no strip of a test looks like another.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..bytes).map(next).collect()
}

#[test]
fn the_kernels_copy_what_a_copy_byte_by_byte_does_and_touch_nothing_else() {
    let program = match build() {
        Ok(program) => program,
        Err(why) => {
            let test = "the_kernels_copy_what_a_copy_byte_by_byte_does_and_touch_nothing_else";
            writeln!(std::io::stdout(), "SKIPPED {test}: {why}").unwrap();
            return;
        }
    };
    let serial = RefCell::new(Serial::start(&program));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(400));
    let checked = runner.run(&launches(), |launch| {
        let memory = noise(launch.memory_bytes);
        let (expected, permissions) = launch.expected(&memory);
        let Some(after) = serial.borrow_mut().run(&launch, &memory, &permissions) else {
            serial.replace(Serial::start(&program));
            return Err(TestCaseError::fail("it touched what it must not: see standard error"));
        };
        let first = after.iter().zip(&expected).position(|(found, wanted)| found != wanted);
        prop_assert_eq!(first, None, "a wrong byte in memory");
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn the_ptx_is_for_the_oldest_driver_and_takes_the_hosts_parameters() {
    assert!(PTX.contains("\n.version 8.0\n"), "PTX ISA 8.0 came with CUDA 12.0");
    assert!(PTX.contains("\n.target sm_70\n"));
    for kernel in KERNELS {
        let types = [".u64", ".u32", ".u32", ".u32", ".u32", ".align 8 .b8"];
        let parameters = types.iter().enumerate().map(|(index, kind)| {
            let length = if index == 5 { "[3072]" } else { "" };
            format!("\t.param {kind} {kernel}_param_{index}{length}")
        });
        let parameters: Vec<String> = parameters.collect();
        let head = format!(".visible .entry {kernel}(\n{}\n)", parameters.join(",\n"));
        assert!(PTX.contains(&head), "{head}");
    }
    // Spilled pages, or a copy of the jobs, would lie there.
    assert!(!PTX.contains(".local"));
    for access in ["ld.global.cs.v4.u32", "st.global.cs.v4.u32"] {
        // Eight under way in each of the two kernels.
        assert_eq!(PTX.matches(access).count(), 16, "{access}");
    }
}
