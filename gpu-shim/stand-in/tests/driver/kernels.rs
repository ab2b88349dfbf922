use crate::calls::{Driver, NON_BLOCKING, READ_ONLY};
use proptest::prelude::*;
use undercroft_stand_in::{Code, Setting};

/// What the shim hands to the driver.
const PTX: &str = include_str!("../../../kernels/pages.ptx");
const TILE_BYTES: usize = 8_192;
const LAUNCH: (u32, u32) = (3, 256);
const BLOCKS: usize = 4;

/// A part of each block: rows on the device at even distances, one after another in the page.
#[derive(Debug, Clone, Copy)]
struct Strip {
    /// Where it begins in the device's memory.
    at: usize,
    block_stride: usize,
    pitch: usize,
    in_page: usize,
    row_bytes: usize,
    rows: usize,
}

/// Strips that do not overlap, in a device's memory and in a page.
#[derive(Debug, Clone)]
struct Shape {
    strips: Vec<Strip>,
    device_bytes: usize,
    page_bytes: usize,
    unit: usize,
}

fn shape() -> impl Strategy<Value = Shape> {
    let unit = prop_oneof![Just(1_usize), Just(2), Just(4), Just(8), Just(16)];
    let strip = (1..400_usize, 1..30_usize, 0..5_usize, 0..3_usize, 0..2_usize);
    (unit, prop::collection::vec(strip, 1..5)).prop_map(|(unit, parts)| {
        let mut shape = Shape { strips: vec![], device_bytes: 0, page_bytes: 0, unit };
        for (row_units, rows, gap, block_gap, page_gap) in parts {
            let row_bytes = row_units * unit;
            let pitch = row_bytes + gap * unit;
            let block_stride = pitch * rows + block_gap * unit;
            let in_page = shape.page_bytes + page_gap * unit;
            let at = shape.device_bytes;
            shape.strips.push(Strip { at, block_stride, pitch, in_page, row_bytes, rows });
            shape.device_bytes = (at + block_stride * BLOCKS).next_multiple_of(16);
            shape.page_bytes = in_page + row_bytes * rows;
        }
        shape
    })
}

impl Shape {
    /// Tiles of one page.
    fn tiles(&self) -> usize {
        self.strips.iter().map(|it| (it.rows * it.row_bytes).div_ceil(TILE_BYTES)).sum()
    }

    /// The strips as the device reads them.
    fn bytes(&self, base: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut first_tile = 0;
        for strip in &self.strips {
            for number in [base + strip.at as u64, strip.block_stride as u64, strip.pitch as u64] {
                bytes.extend(number.to_le_bytes());
            }
            for number in [strip.in_page, strip.row_bytes, strip.rows, first_tile] {
                bytes.extend((number as u32).to_le_bytes());
            }
            first_tile += (strip.rows * strip.row_bytes).div_ceil(TILE_BYTES);
        }
        bytes
    }

    /// Row by row: where in the device's memory, where in the page, how many bytes.
    fn rows(&self, block: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        self.strips.iter().flat_map(move |it| {
            (0..it.rows).map(move |row| {
                let at = it.at + block * it.block_stride + row * it.pitch;
                (at, it.in_page + row * it.row_bytes, it.row_bytes)
            })
        })
    }
}

fn jobs(pages: &[Vec<u8>], blocks: &[usize]) -> [u8; 3_072] {
    let mut jobs = [0; 3_072];
    for (i, (page, block)) in pages.iter().zip(blocks).enumerate() {
        let address = page.as_ptr().expose_provenance() as u64;
        jobs[i * 8..][..8].copy_from_slice(&address.to_le_bytes());
        jobs[2_048 + i * 4..][..4].copy_from_slice(&(*block as u32).to_le_bytes());
    }
    jobs
}

/// Pages with room in front, so that they begin at a multiple of 16.
fn aligned(page_bytes: usize, fill: impl Fn(usize) -> u8) -> Vec<u8> {
    // The allocator aligns what is large; a page of a property test may be small.
    (0..page_bytes.max(1 << 12).next_multiple_of(16)).map(fill).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_kernels_do_what_a_plain_loop_does(
        shape in shape(),
        blocks in prop::sample::subsequence(vec![0_usize, 1, 2, 3], 0..=BLOCKS).prop_shuffle(),
    ) {
        let driver = Driver::with_context();
        let stream = driver.stream(NON_BLOCKING).unwrap();
        let module = driver.load_module(PTX).unwrap();
        let scatter = driver.function(module, "undercroft_scatter").unwrap();
        let gather = driver.function(module, "undercroft_gather").unwrap();
        let pages: Vec<Vec<u8>> = blocks
            .iter()
            .map(|block| aligned(shape.page_bytes, |at| (at * 7 + block * 5 + at / 251) as u8))
            .collect();
        let back = vec![aligned(shape.page_bytes, |_| 0xaa); blocks.len()];
        for page in pages.iter().chain(&back) {
            driver.register(page, 0).unwrap();
        }
        let device = driver.alloc(shape.device_bytes).unwrap();
        let mut model = vec![0x55; shape.device_bytes];
        driver.write(device, &model).unwrap();
        let table = shape.bytes(device);
        let strips = driver.alloc(table.len()).unwrap();
        driver.write(strips, &table).unwrap();
        let numbers = [shape.strips.len(), shape.tiles(), blocks.len(), shape.unit];
        let parameters = (strips, numbers.map(|number| number as u32));

        driver.launch(scatter, LAUNCH, stream, parameters, &jobs(&pages, &blocks)).unwrap();
        driver.launch(gather, LAUNCH, stream, parameters, &jobs(&back, &blocks)).unwrap();
        driver.synchronize_stream(stream).unwrap();

        let mut wanted = back.clone();
        wanted.iter_mut().for_each(|page| page.fill(0xaa));
        for (job, block) in blocks.iter().enumerate() {
            for (at, in_page, bytes) in shape.rows(*block) {
                let row = &pages[job][in_page..][..bytes];
                model[at..][..bytes].copy_from_slice(row);
                wanted[job][in_page..][..bytes].copy_from_slice(row);
            }
        }
        let mut found = vec![0; shape.device_bytes];
        driver.read(&mut found, device).unwrap();
        prop_assert_eq!(found, model);
        prop_assert_eq!(&back, &wanted);
        prop_assert_eq!(driver.stand_in.report().kernels, 2);
        prop_assert_eq!(driver.stand_in.report().most_thread_blocks, 3);

        for page in pages.iter().chain(&back) {
            driver.unregister(page).unwrap();
        }
        driver.free(strips).unwrap();
        driver.free(device).unwrap();
        driver.unload(module).unwrap();
        driver.destroy_stream(stream).unwrap();
        driver.end();
    }
}

/// One strip of one row, and what a launch of it answers when it is over.
fn launch_of(
    change: impl FnOnce(&Driver, &mut Shape, &mut [u8; 3_072], &mut [u32; 4]),
    kernel: &str,
    flags: Option<u32>,
) -> Result<(), Code> {
    let driver = Driver::with_context();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let module = driver.load_module(PTX).unwrap();
    let function = driver.function(module, kernel).unwrap();
    let row = Strip { at: 0, block_stride: 256, pitch: 256, in_page: 0, row_bytes: 256, rows: 1 };
    let mut shape = Shape { strips: vec![row], device_bytes: 1_024, page_bytes: 4_096, unit: 16 };
    let page = aligned(4_096, |at| at as u8);
    if let Some(flags) = flags {
        driver.register(&page, flags).unwrap();
    }
    let device = driver.alloc(1_024).unwrap();
    let mut jobs = jobs(std::slice::from_ref(&page), &[3]);
    let mut numbers = [1, 1, 1, 16];
    change(&driver, &mut shape, &mut jobs, &mut numbers);
    let table = shape.bytes(device);
    let strips = driver.alloc(table.len()).unwrap();
    driver.write(strips, &table).unwrap();
    driver.launch(function, LAUNCH, stream, (strips, numbers), &jobs).unwrap();
    let outcome = driver.synchronize_stream(stream);
    // A context that is dead stays dead, and all can be given back.
    assert_eq!(driver.alloc(16).map(|at| driver.free(at).unwrap()), outcome);
    if flags.is_some() {
        driver.unregister(&page).unwrap();
    }
    driver.free(strips).unwrap();
    driver.free(device).unwrap();
    driver.unload(module).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end();
    outcome
}

#[test]
fn a_kernel_that_reaches_too_far_kills_its_context() {
    let illegal = Err(Code::ILLEGAL_ADDRESS);
    let (scatter, gather) = ("undercroft_scatter", "undercroft_gather");
    assert_eq!(launch_of(|_, _, _, _| {}, scatter, Some(0)), Ok(()));
    assert_eq!(launch_of(|_, _, _, _| {}, gather, Some(0)), Ok(()));
    assert_eq!(launch_of(|_, _, _, _| {}, scatter, Some(READ_ONLY)), Ok(()));
    assert_eq!(launch_of(|_, _, _, _| {}, gather, Some(READ_ONLY)), illegal);
    assert_eq!(launch_of(|_, _, _, _| {}, scatter, None), illegal, "not pinned");
    let block = |_: &Driver, _: &mut Shape, jobs: &mut [u8; 3_072], _: &mut [u32; 4]| {
        jobs[2_048] = 4;
    };
    assert_eq!(launch_of(block, scatter, Some(0)), illegal, "there are four blocks");
    let in_page = |_: &Driver, shape: &mut Shape, _: &mut [u8; 3_072], _: &mut [u32; 4]| {
        shape.strips[0].in_page = 4_096 - 240;
    };
    assert_eq!(launch_of(in_page, gather, Some(0)), illegal, "the page ends before");
    let strips = |_: &Driver, _: &mut Shape, _: &mut [u8; 3_072], numbers: &mut [u32; 4]| {
        numbers[0] = 2;
    };
    assert_eq!(launch_of(strips, scatter, Some(0)), illegal, "there is one strip");
    let many = |_: &Driver, _: &mut Shape, _: &mut [u8; 3_072], numbers: &mut [u32; 4]| {
        numbers[2] = 257;
    };
    assert_eq!(launch_of(many, scatter, Some(0)), illegal, "there are 256 jobs at most");
    let unit = |_: &Driver, shape: &mut Shape, _: &mut [u8; 3_072], _: &mut [u32; 4]| {
        shape.strips[0].in_page = 8;
    };
    assert_eq!(launch_of(unit, scatter, Some(0)), Err(Code::MISALIGNED_ADDRESS));
}

#[test]
fn a_module_is_what_the_device_can_take() {
    let driver = Driver::with_context();
    let old = driver.load_module(PTX).unwrap();
    assert_eq!(driver.function(old, "undercroft_shuffle"), Err(Code::NOT_FOUND));
    assert_eq!(driver.load_module(""), Err(Code::INVALID_IMAGE));
    let without = PTX.replace(".entry undercroft_", ".entry other_");
    assert_eq!(driver.load_module(&without), Err(Code::INVALID_IMAGE));
    driver.stand_in.set(Setting::DriverVersion, 11_080);
    assert_eq!(driver.load_module(PTX), Err(Code::UNSUPPORTED_PTX_VERSION));
    driver.stand_in.set(Setting::DriverVersion, 12_000);
    driver.stand_in.set(Setting::ComputeCapability, 61);
    assert_eq!(driver.load_module(PTX), Err(Code::NO_BINARY_FOR_GPU));

    let function = driver.function(old, "undercroft_gather").unwrap();
    let launch =
        |grid, threads| driver.launch(function, (grid, threads), 0, (8, [0; 4]), &[0; 3_072]);
    assert_eq!(launch(1, 256), Ok(()));
    assert_eq!(launch(0, 256), Err(Code::INVALID_VALUE));
    assert_eq!(launch(1, 512), Err(Code::INVALID_VALUE));
    driver.synchronize().unwrap();
    driver.unload(old).unwrap();
    assert_eq!(launch(1, 256), Err(Code::INVALID_HANDLE));
    driver.end_with(&["cuLaunchKernel: function"]);
}

/// Neither the pages nor the blocks, which only the strips name, may go before it has run.
#[test]
fn what_a_kernel_still_needs_is_not_given_back() {
    let driver = Driver::with_context();
    let module = driver.load_module(PTX).unwrap();
    let function = driver.function(module, "undercroft_gather").unwrap();
    let row = Strip { at: 0, block_stride: 256, pitch: 256, in_page: 0, row_bytes: 256, rows: 1 };
    let shape = Shape { strips: vec![row], device_bytes: 1_024, page_bytes: 4_096, unit: 16 };
    let page = aligned(4_096, |_| 0);
    driver.register(&page, 0).unwrap();
    let device = driver.alloc(1_024).unwrap();
    let table = shape.bytes(device);
    let strips = driver.alloc(table.len()).unwrap();
    driver.write(strips, &table).unwrap();
    let stream = driver.stream(NON_BLOCKING).unwrap();
    let jobs = jobs(std::slice::from_ref(&page), &[3]);
    driver.stand_in.hold(true);
    driver.launch(function, LAUNCH, stream, (strips, [1, 1, 1, 16]), &jobs).unwrap();
    driver.free(device).unwrap();
    driver.free(strips).unwrap();
    driver.unregister(&page).unwrap();
    driver.stand_in.hold(false);
    assert_eq!(driver.synchronize_stream(stream), Err(Code::ILLEGAL_ADDRESS));
    driver.unload(module).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.end_with(&["cuMemFree_v2: an op", "cuMemFree_v2: an op", "cuMemHostUnregister: an op"]);
}
