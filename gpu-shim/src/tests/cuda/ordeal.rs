//! Thousands of random transfers while calls and copies fail at random: whatever is told as good is
//! good, whatever fails says what failed, and nothing is left behind.

use super::super::layouts::engines;
use super::*;
use undercroft_stand_in::Chaos;

const TRANSFERS: usize = 10_000;
/// How often a device is exchanged although it is not lost.
const LIFE: usize = 200;
const FRAMES: usize = 6;

/// What is known of a block or frame: the seed of the page that lies in it.
type Known = Option<u64>;

struct Ordeal<'a> {
    random: fastrand::Rng,
    stand_in: &'a StandIn,
    chaos: Chaos,
    next_seed: u64,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    good: usize,
    failed: usize,
    lost: usize,
    unmade: usize,
    verified: usize,
    by_mode: [usize; 3],
}

/// A device and all that is known of what it holds.
struct Life {
    device: CudaDevice,
    geometry: Geometry,
    frames: Vec<Span>,
    blocks: Vec<Known>,
    in_frames: Vec<Known>,
}

#[test]
fn ten_thousand_random_transfers_with_random_failures() {
    let stand_in = stand_in();
    let seed = std::env::var("UNDERCROFT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(1);
    let chaos = Chaos { seed, per_million: 4_000, sticky_per_million: 300, destroying: false };
    let random = fastrand::Rng::with_seed(seed);
    let counts = Counts::default();
    let mut ordeal = Ordeal { random, stand_in: &stand_in, chaos, next_seed: 1, counts };
    while ordeal.counts.good + ordeal.counts.failed < TRANSFERS {
        ordeal.live();
    }
    let counts = ordeal.counts;
    println!("{counts:?}");
    // An ordeal in which nothing failed, or nothing else, has shown nothing.
    assert!(counts.good > TRANSFERS / 2 && counts.failed > TRANSFERS / 50, "{counts:?}");
    assert!(counts.lost > 5 && counts.unmade > 0 && counts.verified > TRANSFERS, "{counts:?}");
    assert!(counts.by_mode.iter().all(|count| *count > TRANSFERS / 20), "{counts:?}");
}

impl Ordeal<'_> {
    /// A device from its making to its end.
    fn live(&mut self) {
        self.stand_in.chaos(Chaos { seed: self.random.u64(..), ..self.chaos });
        let (memory, frames) = frames(FRAMES, 1 << 16);
        match self.make(&frames) {
            Ok(mut life) => {
                let whole = memory.span(0, memory.len()).unwrap();
                // Where it is refused pages go through the driver's memory.
                let registered = life.device.register(&whole).ok();
                for _ in 0..self.random.usize(1..LIFE) {
                    if !self.transfers(&mut life) {
                        self.counts.lost += 1;
                        break;
                    }
                }
                drop((registered, life));
            }
            Err(error) => {
                self.counts.unmade += 1;
                assert!(is_typed(&error), "{error}");
            }
        }
        drop((frames, memory));
        self.stand_in.chaos(Chaos::default());
        self.stand_in.assert_clean();
        self.stand_in.reset();
    }

    fn make(&mut self, frames: &[Span]) -> Result<Life, DeviceError> {
        let engines = engines();
        let engine = self.random.choice(&engines).unwrap();
        let geometry = engine.geometry;
        let mut mode = || match self.random.usize(..4) {
            3 => None,
            mode => Some(CopyMode::ALL[mode]),
        };
        let options = CudaOptions { load: mode(), store: mode(), ..CudaOptions::default() };
        let device = CudaDevice::allocate_layout(0, &engine.layout, options)?;
        let blocks = vec![None; device.blocks() as usize];
        let bytes = geometry.page_bytes() as usize;
        let frames = frames.iter().map(|frame| frame.sub(0, bytes).unwrap()).collect();
        Ok(Life { device, geometry, frames, blocks, in_frames: vec![None; FRAMES] })
    }

    /// Up to three random transfers at once, of different frames and blocks, waited for in any
    /// order. Says whether the device lives.
    fn transfers(&mut self, life: &mut Life) -> bool {
        let pairs = self.pairs(life);
        let at_once = self.random.usize(1..=3);
        let mut flying = Vec::new();
        for pairs in pairs.chunks(pairs.len().div_ceil(at_once).max(1)) {
            let what = if self.random.usize(..3) == 0 { Store } else { Load };
            flying.push((what, pairs, self.start(life, what, pairs)));
        }
        self.random.shuffle(&mut flying);
        let mut lives = true;
        for (what, pairs, started) in flying {
            let outcome = started.and_then(|transfer| self.end(transfer, life.geometry.layers()));
            match &outcome {
                Ok(told) => {
                    self.counts.good += 1;
                    note(life, pairs, what, *told);
                }
                Err(error) => {
                    self.counts.failed += 1;
                    assert!(is_typed(error), "{error}");
                    note(life, pairs, what, false);
                    lives &= !matches!(error, DeviceError::Cuda(error) if error.is_sticky());
                }
            }
        }
        lives && self.verify(life)
    }

    fn start(
        &mut self,
        life: &mut Life,
        what: What,
        pairs: &[(usize, u32)],
    ) -> Result<Transfer, DeviceError> {
        let modes = life.device.modes();
        let (mode, started) = match what {
            Store => (modes.store, life.device.store(store_jobs(life, pairs))),
            Load => {
                self.fill(life, pairs);
                if self.random.bool() {
                    (modes.load, life.device.load(jobs(life, pairs)))
                } else {
                    (modes.load_by_layer, life.device.load_by_layer(jobs(life, pairs)))
                }
            }
        };
        self.counts.by_mode[CopyMode::ALL.iter().position(|one| *one == mode).unwrap()] += 1;
        started
    }

    /// Some frames and as many different blocks.
    fn pairs(&mut self, life: &Life) -> Vec<(usize, u32)> {
        let mut frames: Vec<usize> = (0..FRAMES).collect();
        let mut blocks: Vec<u32> = (0..life.device.blocks()).collect();
        self.random.shuffle(&mut frames);
        self.random.shuffle(&mut blocks);
        let count = self.random.usize(0..=frames.len().min(blocks.len()));
        frames.into_iter().zip(blocks).take(count).collect()
    }

    fn fill(&mut self, life: &mut Life, pairs: &[(usize, u32)]) {
        for (frame, _) in pairs {
            self.next_seed += 1;
            life.frames[*frame].copy_from_slice(&page_of(self.next_seed, life.geometry));
            life.in_frames[*frame] = Some(self.next_seed);
        }
    }

    /// Waits in some way, or does not. Says whether somebody was told that it is good.
    fn end(&mut self, transfer: Transfer, layers: u32) -> Result<bool, DeviceError> {
        match self.random.usize(..4) {
            0 => {
                drop(transfer);
                return Ok(false);
            }
            1 => transfer.wait_layer(self.random.u32(..layers), None)?,
            2 => {
                let soon = Instant::now() + Duration::from_micros(self.random.u64(..50));
                match transfer.wait_deadline(soon) {
                    Ok(()) | Err(DeviceError::Expired { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            _ => {}
        }
        transfer.wait().map(|()| true)
    }

    /// Looks at a block and a frame of which all is known. Says whether the device lives.
    fn verify(&mut self, life: &Life) -> bool {
        let frame = self.random.usize(..FRAMES);
        if let Some(seed) = life.in_frames[frame] {
            assert!(bytes_of(&life.frames[frame]) == page_of(seed, life.geometry), "wrong frame");
            self.counts.verified += 1;
        }
        let block = self.random.usize(..life.blocks.len());
        if let Some(seed) = life.blocks[block] {
            let mut page = vec![0; life.geometry.page_bytes() as usize];
            match life.device.read_block(BlockId(block as u32), &mut page) {
                Ok(()) => {
                    assert!(page == page_of(seed, life.geometry), "a wrong byte in block {block}");
                    self.counts.verified += 1;
                }
                Err(error) => {
                    assert!(is_typed(&error), "{error}");
                    return !matches!(error, DeviceError::Cuda(error) if error.is_sticky());
                }
            }
        }
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Load,
    Store,
}
use What::{Load, Store};

fn jobs(life: &Life, pairs: &[(usize, u32)]) -> Vec<LoadJob> {
    let job = |(frame, block): &(usize, u32)| LoadJob {
        page: life.frames[*frame].clone(),
        block: BlockId(*block),
    };
    pairs.iter().map(job).collect()
}

fn store_jobs(life: &Life, pairs: &[(usize, u32)]) -> Vec<StoreJob> {
    let job = |(frame, block): &(usize, u32)| StoreJob {
        page: life.frames[*frame].clone(),
        block: BlockId(*block),
    };
    pairs.iter().map(job).collect()
}

/// What lies where after a transfer; nobody knows where it was not told as good.
fn note(life: &mut Life, pairs: &[(usize, u32)], what: What, good: bool) {
    for (frame, block) in pairs {
        let (frame, block) = (&mut life.in_frames[*frame], &mut life.blocks[*block as usize]);
        match what {
            Load => *block = frame.filter(|_| good),
            Store => *frame = block.filter(|_| good),
        }
    }
}

/// An error that a call's name or the device's loss explains.
fn is_typed(error: &DeviceError) -> bool {
    match error {
        DeviceError::Cuda(CudaError::Call { call, .. }) => call.starts_with("cu"),
        DeviceError::Cuda(CudaError::Lost { .. } | CudaError::NoMode { .. }) => true,
        DeviceError::Lost { reason } => reason.contains("copies right"),
        _ => false,
    }
}
