//! Pages come out of every engine's layout as the engine wrote them, and layouts in which two
//! blocks share a byte are refused.

use super::{BlockId, bytes_of, pages};
use crate::{
    Device, HostDevice, HostOptions, KvLayout, LayoutError, LoadJob, Place, StoreJob, Strip, Tensor,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashSet;
use undercroft_wire::Geometry;

const LAYERS: u32 = 3;
const BLOCKS: u32 = 5;
const TOKENS: u32 = 4;

/// What an engine writes for one byte of a block: where the byte is in the page says all.
fn written(block: u32, in_page: usize) -> u8 {
    (in_page as u32 * 7 + block * 31 + (in_page as u32 >> 6)) as u8
}

fn image(block: u32, geometry: Geometry) -> Vec<u8> {
    (0..geometry.page_bytes() as usize).map(|at| written(block, at)).collect()
}

/// An engine's own idea of where a byte lies: of (block, layer, part, token, byte of that token's
/// row) the address.
type Indexing = Box<dyn Fn(u64, u64, usize, u64, u64) -> u64>;

pub(super) struct Engine {
    pub(super) name: &'static str,
    pub(super) geometry: Geometry,
    pub(super) layout: KvLayout,
    at: Indexing,
}

/// The layouts of the engines, beside the index arithmetic of their tensors, which knows nothing
/// of strides and places.
pub(super) fn engines() -> Vec<Engine> {
    let (blocks, tokens, layers) = (u64::from(BLOCKS), u64::from(TOKENS), u64::from(LAYERS));
    // 64 bytes a token and part.
    let kv = Geometry::new(LAYERS, 2, 64 * TOKENS).unwrap();
    let latent = Geometry::new(LAYERS, 1, 144 * TOKENS).unwrap();
    let scaled = Geometry::of_parts(LAYERS, &[64 * TOKENS, 64 * TOKENS, 4 * TOKENS, 4 * TOKENS]);
    let scaled = scaled.unwrap();
    // Allocations are not neighbours, and not in the order of the layers.
    let apart = |count: usize, bytes: u64| -> Vec<u64> {
        (0..count as u64).map(|i| (count as u64 - 1 - i) * (bytes + 256) + 512).collect()
    };
    let layer_bytes = 2 * 64 * tokens * blocks;
    let by_layer = apart(3, layer_bytes);
    let by_part = apart(2, layers * 64 * tokens * blocks);
    let fragments = apart(12, 64 * tokens * blocks);
    let latents = apart(3, 144 * tokens * blocks);
    let pick = by_layer.clone();
    let parts_first: Indexing = Box::new(move |block, layer, part, token, byte| {
        let row = (part as u64 * blocks + block) * tokens + token;
        pick[layer as usize] + row * 64 + byte
    });
    let pick = by_layer.clone();
    let block_first: Indexing = Box::new(move |block, layer, part, token, byte| {
        let row = (block * 2 + part as u64) * tokens + token;
        pick[layer as usize] + row * 64 + byte
    });
    let cross_layer: Indexing = Box::new(move |block, layer, part, token, byte| {
        4096 + (((block * layers + layer) * 2 + part as u64) * tokens + token) * 64 + byte
    });
    let pick = by_part.clone();
    let token_first: Indexing = Box::new(move |block, layer, part, token, byte| {
        pick[part] + ((block * tokens + token) * layers + layer) * 64 + byte
    });
    let pick = latents.clone();
    let mla: Indexing = Box::new(move |block, layer, _, token, byte| {
        pick[layer as usize] + (block * tokens + token) * 144 + byte
    });
    let pick = fragments.clone();
    let with_scales: Indexing = Box::new(move |block, layer, part, token, byte| {
        let row = [64, 64, 4, 4][part];
        pick[layer as usize * 4 + part] + (block * tokens + token) * row + byte
    });
    let engine = |name, geometry, layout: Result<_, LayoutError>, at| {
        let layout = layout.unwrap();
        Engine { name, geometry, layout, at }
    };
    vec![
        engine("parts first", kv, KvLayout::parts_first(kv, BLOCKS, &by_layer), parts_first),
        engine("block first", kv, KvLayout::block_first(kv, BLOCKS, &by_layer), block_first),
        engine("cross layer", kv, KvLayout::cross_layer(kv, BLOCKS, 4096), cross_layer),
        engine("page first", kv, KvLayout::token_first(kv, BLOCKS, TOKENS, &by_part), token_first),
        engine("latent", latent, KvLayout::split(latent, BLOCKS, &latents), mla),
        engine("scales", scaled, KvLayout::split(scaled, BLOCKS, &fragments), with_scales),
    ]
}

impl Engine {
    /// Calls with (address, byte of the page) for each byte of a block.
    fn each_byte(&self, block: u32, mut each: impl FnMut(u64, usize)) {
        let mut in_page = 0;
        for layer in 0..LAYERS {
            for (part, bytes) in self.geometry.part_bytes().iter().enumerate() {
                for token in 0..TOKENS {
                    for byte in 0..bytes / TOKENS {
                        let (layer, token) = (u64::from(layer), u64::from(token));
                        let at = (self.at)(u64::from(block), layer, part, token, u64::from(byte));
                        each(at, in_page);
                        in_page += 1;
                    }
                }
            }
        }
        assert_eq!(in_page, self.geometry.page_bytes() as usize);
    }

    fn device(&self) -> HostDevice {
        HostDevice::with_layout(self.layout.clone(), HostOptions::default()).unwrap()
    }
}

#[test]
fn a_page_holds_what_the_engine_wrote_whatever_its_layout() {
    for engine in engines() {
        let device = engine.device();
        device.memory().unwrap().write(|memory| {
            memory.fill(0xee);
            for block in 0..BLOCKS {
                engine
                    .each_byte(block, |at, in_page| memory[at as usize] = written(block, in_page));
            }
        });
        let images = pages(BLOCKS as usize, engine.geometry.page_bytes() as usize);
        let jobs = images.iter().zip(0..BLOCKS);
        let jobs = jobs.map(|(page, b)| StoreJob { block: BlockId(b), page: page.clone() });
        device.store(jobs.collect()).unwrap().wait().unwrap();
        for (block, page) in (0..BLOCKS).zip(&images) {
            assert!(bytes_of(page) == image(block, engine.geometry), "{}: {block}", engine.name);
        }
    }
}

/// What lies where in the page of block 3, as runs of an engine's memory: the address of each in
/// units of 16 bytes, and how many units. Pages on SSD have this order: it never changes.
const GOLDEN: &str = include_str!("golden/pages.txt");
const UNIT: usize = 16;

#[test]
fn the_order_of_bytes_in_a_page_never_changes() {
    let mut found = String::new();
    for engine in engines() {
        let device = engine.device();
        // Each unit of the engine's memory holds its own number.
        device.memory().unwrap().write(|memory| {
            for (number, unit) in memory.chunks_mut(UNIT).enumerate() {
                unit.copy_from_slice(&(number as u128).to_le_bytes()[..unit.len()]);
            }
        });
        let page = pages(1, engine.geometry.page_bytes() as usize).remove(0);
        let store = StoreJob { block: BlockId(3), page: page.clone() };
        device.store(vec![store]).unwrap().wait().unwrap();
        let mut runs: Vec<(u128, u128)> = Vec::new();
        for unit in bytes_of(&page).chunks(UNIT) {
            let number = u128::from_le_bytes(unit.try_into().unwrap());
            match runs.last_mut() {
                Some((first, count)) if *first + *count == number => *count += 1,
                _ => runs.push((number, 1)),
            }
        }
        let runs: Vec<String> = runs.iter().map(|(at, count)| format!("{at}+{count}")).collect();
        found += &format!("{}: {}\n", engine.name, runs.join(" "));
    }
    assert!(found == GOLDEN, "the pages are now:\n{found}");
}

#[test]
fn a_load_changes_its_blocks_and_no_other_byte_of_the_device() {
    for engine in engines() {
        let device = engine.device();
        device.memory().unwrap().write(|memory| memory.fill(0xee));
        let page = pages(1, engine.geometry.page_bytes() as usize).remove(0);
        page.copy_from_slice(&image(2, engine.geometry));
        device.load(vec![LoadJob { page, block: BlockId(2) }]).unwrap().wait().unwrap();
        let mut expected = vec![0xee; device.memory().unwrap().len()];
        engine.each_byte(2, |at, in_page| expected[at as usize] = written(2, in_page));
        assert!(bytes_of(device.memory().unwrap()) == expected, "{}", engine.name);
    }
}

/// Where each byte of a block's layers lies, by (address, byte of the page), in the page's order.
fn by_runs(layout: &KvLayout, block: u32, layers: std::ops::Range<u32>) -> Vec<(u64, usize)> {
    let runs = layout.runs(BlockId(block), layers);
    runs.flat_map(|run| (0..run.bytes).map(move |i| (run.at + i as u64, run.in_page + i))).collect()
}

fn by_strips(layout: &KvLayout, block: u32, layers: std::ops::Range<u32>) -> Vec<(u64, usize)> {
    let bytes = |strip: Strip, row: usize| {
        let (at, in_page) = (strip.row_at(block, row), strip.in_page + row * strip.row_bytes);
        (0..strip.row_bytes).map(move |i| (at + i as u64, in_page + i))
    };
    let strips = layout.strips(layers).into_iter();
    strips.flat_map(|strip| (0..strip.rows).flat_map(move |row| bytes(strip, row))).collect()
}

#[test]
fn strips_are_the_same_bytes_as_runs_and_as_few_as_neighbours_give() {
    for engine in engines() {
        for layers in [0..LAYERS, 1..2, 1..3] {
            let (layout, name) = (&engine.layout, engine.name);
            let runs = by_runs(layout, 3, layers.clone());
            assert!(by_strips(layout, 3, layers.clone()) == runs, "{name}, layers {layers:?}");
        }
    }
    let count = |layout: Result<KvLayout, LayoutError>| {
        let strips = layout.unwrap().strips(0..LAYERS);
        strips.iter().map(|strip| (strip.rows, strip.row_bytes)).collect::<Vec<_>>()
    };
    let even = Geometry::new(LAYERS, 2, 64 * TOKENS).unwrap();
    // One run; six fragments at one distance.
    assert_eq!(count(KvLayout::cross_layer(even, BLOCKS, 0)), [(1, 1536)]);
    assert_eq!(count(KvLayout::packed(even, BLOCKS)), [(6, 256)]);
    // A tensor for each layer, K and V beside each other or apart; from one to another nothing is
    // joined, however even they lie.
    let layers = [0, 2560, 5120];
    assert_eq!(count(KvLayout::block_first(even, BLOCKS, &layers)), [(1, 512); 3]);
    assert_eq!(count(KvLayout::parts_first(even, BLOCKS, &layers)), [(2, 256); 3]);
    // A row for each token and fragment.
    let by_token = [(4, 64); 6];
    assert_eq!(count(KvLayout::token_first(even, BLOCKS, TOKENS, &[0, 1 << 20])), by_token);
}

fn kv() -> Geometry {
    Geometry::new(2, 2, 256).unwrap()
}

#[test]
fn layouts_that_cannot_be_say_why() {
    let whole = |tensor, offset, block_stride| Place {
        tensor,
        offset,
        block_stride,
        rows: 1,
        row_stride: 0,
    };
    let good: Vec<Place> = (0..4).map(|i| whole(0, i * 256, 1024)).collect();
    let tensors = || vec![Tensor { base: 0, bytes: 4096 }, Tensor { base: 8192, bytes: 64 }];
    let with = |change: &dyn Fn(&mut Vec<Place>)| {
        let mut places = good.clone();
        change(&mut places);
        KvLayout::new(kv(), 4, tensors(), places).unwrap_err()
    };
    KvLayout::new(kv(), 4, tensors(), good.clone()).unwrap();
    assert_eq!(KvLayout::cross_layer(kv(), 0, 0), Err(LayoutError::NoBlocks));
    let short = with(&|places| places.truncate(3));
    assert_eq!(short, LayoutError::Places { found: 3, expected: 4 });
    let gone = with(&|places| places[2].tensor = 2);
    assert_eq!(gone, LayoutError::NoTensor { fragment: 2, found: 2, count: 2 });
    let beyond = with(&|places| places[3].offset += 1);
    assert_eq!(beyond, LayoutError::Outside { fragment: 3, tensor: 0, bytes: 4096 });
    let far = with(&|places| places[1].block_stride = u64::MAX);
    assert!(matches!(far, LayoutError::Outside { fragment: 1, .. }));
    let rows = with(&|places| places[1].rows = 3);
    assert_eq!(rows, LayoutError::Rows { fragment: 1, rows: 3, bytes: 256 });
    let rows = with(&|places| places[1].rows = 0);
    assert_eq!(rows, LayoutError::Rows { fragment: 1, rows: 0, bytes: 256 });
    let near = with(&|places| places[1].offset -= 1);
    assert_eq!(near, LayoutError::Fragments { one: 0, other: 1 });
    let next_block = with(&|places| places[0].offset = 3 * 256 + 1024 - 1);
    assert_eq!(next_block, LayoutError::Outside { fragment: 0, tensor: 0, bytes: 4096 });
    let itself = with(&|places| places.iter_mut().for_each(|place| place.block_stride = 255));
    assert_eq!(itself, LayoutError::Fragments { one: 0, other: 0 });
    let mixed = with(&|places| places[3].block_stride = 1020);
    assert_eq!(mixed, LayoutError::Strides { one: 0, other: 3, tensor: 0 });

    let one_of = |bases: &[u64]| KvLayout::block_first(kv(), 4, bases).unwrap_err();
    assert_eq!(one_of(&[0]), LayoutError::Tensor { found: 1, expected: 2 });
    assert_eq!(one_of(&[0, 2047]), LayoutError::Tensors { one: 0, other: 1 });
    assert_eq!(one_of(&[2047, 0]), LayoutError::Tensors { one: 1, other: 0 });
    assert_eq!(one_of(&[0, u64::MAX - 100]), LayoutError::TensorEnd { tensor: 1 });
    let uneven = Geometry::of_parts(2, &[256, 128]).unwrap();
    let refused = KvLayout::parts_first(uneven, 4, &[0, 4096]);
    assert_eq!(refused, Err(LayoutError::UnequalParts { one: 256, other: 128 }));
    for tokens in [0, 3] {
        let refused = KvLayout::token_first(kv(), 4, tokens, &[0, 4096]);
        assert_eq!(refused, Err(LayoutError::Rows { fragment: 0, rows: tokens, bytes: 256 }));
    }
}

/// Whether no byte belongs to two blocks or fragments, found by looking at every byte.
fn is_apart(geometry: Geometry, blocks: u32, places: &[Place]) -> bool {
    let mut seen = HashSet::new();
    places.iter().zip(geometry.part_bytes().iter().cycle()).all(|(place, bytes)| {
        (0..u64::from(blocks)).all(|block| {
            (0..u64::from(place.rows)).all(|row| {
                let at = place.offset + block * place.block_stride + row * place.row_stride;
                (0..u64::from(bytes / place.rows)).all(|byte| seen.insert(at + byte))
            })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Of fragments with equal strides in one tensor, just those that share no byte are taken;
    /// but for rows and blocks that cross each other, which are refused even where they happen
    /// not to meet.
    #[test]
    fn a_layout_is_refused_where_two_fragments_share_a_byte(
        blocks in 1..5_u32, rows in 1..4_u32, block_stride in 0..3000_u64,
        row_stride in 0..700_u64, offsets in vec(0..3000_u64, 2), unit in 1..40_u32,
    ) {
        let part_bytes = [rows * unit * 8, rows * unit * 16];
        prop_assume!(part_bytes[0] + part_bytes[1] >= 512);
        let geometry = Geometry::of_parts(1, &part_bytes).unwrap();
        let places: Vec<Place> = offsets
            .iter()
            .map(|offset| Place { tensor: 0, offset: *offset, block_stride, rows, row_stride })
            .collect();
        let tensors = vec![Tensor { base: 64, bytes: 1 << 20 }];
        let made = KvLayout::new(geometry, blocks, tensors, places.clone());
        match made {
            Ok(_) => prop_assert!(is_apart(geometry, blocks, &places)),
            Err(LayoutError::Fragments { one, other }) if one == other && blocks > 1 && rows > 1 => {}
            Err(LayoutError::Fragments { .. }) => {
                prop_assert!(!is_apart(geometry, blocks, &places));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    /// Random places, padded and shuffled: what goes into a block comes out of it, and no other
    /// block notices.
    #[test]
    fn any_layout_survives_the_round_trip(
        layers in 1..6_u32, units in vec(1..60_u32, 1..=4), rows in 1..5_u32, blocks in 1..6_u32,
        pad in 0..100_u64, order: u64, block in 0..6_u32,
    ) {
        let part_bytes: Vec<u32> = units.iter().map(|unit| unit * rows).collect();
        prop_assume!(layers * part_bytes.iter().sum::<u32>() >= 512);
        let block = block % blocks;
        let geometry = Geometry::of_parts(layers, &part_bytes).unwrap();
        let count = part_bytes.len() as u64 * u64::from(layers);
        // One tensor, an area for each fragment, the areas in another order than the fragments.
        let unit = u64::from(*units.iter().max().unwrap());
        let area = (unit + pad) * u64::from(rows);
        let stride = area * count + pad;
        let places: Vec<Place> = (0..count)
            .map(|fragment| Place {
                tensor: 0,
                offset: (fragment + order % count) % count * area,
                block_stride: stride,
                rows,
                row_stride: unit + pad,
            })
            .collect();
        let tensor = Tensor { base: pad, bytes: stride * u64::from(blocks) };
        let layout = KvLayout::new(geometry, blocks, vec![tensor], places).unwrap();
        for layers in [0..layers, layers / 2..layers] {
            prop_assert_eq!(
                by_strips(&layout, block, layers.clone()), by_runs(&layout, block, layers)
            );
        }
        let device = HostDevice::with_layout(layout, HostOptions::default()).unwrap();
        device.memory().unwrap().write(|memory| memory.fill(0xee));
        let before = pages(blocks as usize, geometry.page_bytes() as usize);
        for (block, page) in (0..blocks).zip(&before) {
            page.copy_from_slice(&image(block, geometry));
        }
        let loads = before.iter().zip(0..blocks);
        let loads = loads.map(|(page, b)| LoadJob { page: page.clone(), block: BlockId(b) });
        device.load(loads.collect()).unwrap().wait().unwrap();
        let fresh = pages(1, geometry.page_bytes() as usize).remove(0);
        fresh.write(|bytes| bytes.fill(0x11));
        device.load(vec![LoadJob { page: fresh, block: BlockId(block) }]).unwrap().wait().unwrap();
        for other in 0..blocks {
            let page = pages(1, geometry.page_bytes() as usize).remove(0);
            let store = StoreJob { block: BlockId(other), page: page.clone() };
            device.store(vec![store]).unwrap().wait().unwrap();
            if other == block {
                prop_assert!(page.read(|bytes| bytes.iter().all(|byte| *byte == 0x11)));
            } else {
                prop_assert_eq!(bytes_of(&page), image(other, geometry));
            }
        }
    }
}
