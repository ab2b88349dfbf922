use super::copies::is_absent;
use super::pages::{Pages, Way, wrong_in_block};
use super::{Findings, GpuChecks};
use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use undercroft_client::wire::Geometry;
use undercroft_gpu_shim::cuda::{CopyMode, CudaDevice, CudaOptions};
use undercroft_gpu_shim::{Device, KvLayout, Transfer};

const BLOCKS: u32 = 48;
const PAGES: u32 = 96;
/// Transfers of one device before another takes its place, with other pages laid out otherwise.
const ROUND: u32 = 200;
/// Transfers under way at once, at most.
const MOST_UNDER_WAY: usize = 4;
/// Enough to be heard of; the rest of a broken device's rounds says the same.
const MOST_ERRORS: usize = 5;

/// Random transfers, until the time is over: by every mode, of every layout, of pinned pages and
/// others, several at a time, some of them dropped as soon as they have begun. What each page and
/// block holds is known all the time, and compared.
pub(super) fn run(on: &GpuChecks) -> Result<Findings> {
    let columns =
        ["mode", "devices", "transfers", "pages", "dropped", "pages compared", "wrong bytes"];
    let mut findings = Findings::with_columns(&columns);
    let mut rng = Rng::with_seed(on.seed);
    let until = Instant::now() + Duration::from_secs_f64(on.minutes * 60.0);
    let modes: Vec<_> = CopyMode::ALL.map(Some).into_iter().chain([None]).collect();
    let mut tallies = vec![Tally::default(); modes.len()];
    let mut errors = 0;
    for number in 0_usize.. {
        // Each mode has its turn, however little time there is.
        if (number >= modes.len() && Instant::now() >= until) || errors >= MOST_ERRORS {
            break;
        }
        let (mode, tally) = (modes[number % modes.len()], &mut tallies[number % modes.len()]);
        let seed = rng.u64(..);
        match round(on, mode, seed, tally) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => tally.absent = Some(error.to_string()),
            Err(error) => {
                errors += 1;
                findings.wrong(format!("{} with seed {seed}: {error:#}", name(mode)));
            }
        }
    }
    for (mode, tally) in modes.iter().zip(&tallies) {
        if let Some(why) = &tally.absent {
            findings.note(why.clone());
            continue;
        }
        findings.row([
            json!(name(*mode)),
            json!(tally.devices),
            json!(tally.transfers),
            json!(tally.pages),
            json!(tally.dropped),
            json!(tally.compared),
            json!(tally.wrong_bytes),
        ]);
        if tally.wrong_bytes > 0 {
            findings.wrong(format!("{}: {} wrong bytes", name(*mode), tally.wrong_bytes));
        }
    }
    Ok(findings)
}

fn name(mode: Option<CopyMode>) -> &'static str {
    mode.map_or("auto", CopyMode::name)
}

#[derive(Debug, Clone, Default)]
struct Tally {
    devices: u64,
    transfers: u64,
    pages: u64,
    dropped: u64,
    compared: u64,
    wrong_bytes: u64,
    absent: Option<String>,
}

/// A transfer under way. What it uses is nobody else's.
struct UnderWay {
    transfer: Transfer,
    way: Way,
    /// Pages and blocks.
    jobs: Vec<(u32, u32)>,
}

/// One device, and the numbers of the pages that its blocks and the host's pages hold.
struct Model {
    device: CudaDevice,
    pages: Pages,
    in_page: Vec<u64>,
    in_block: Vec<u64>,
    next: u64,
    under_way: Vec<UnderWay>,
    rng: Rng,
}

fn round(on: &GpuChecks, mode: Option<CopyMode>, seed: u64, tally: &mut Tally) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let layout = layout(&mut rng)?;
    let options = CudaOptions { load: mode, store: mode, ..CudaOptions::default() };
    let device = CudaDevice::allocate_layout(on.ordinal, &layout, options)?;
    let pages = Pages::new(PAGES, layout.geometry().page_bytes())?;
    // Without it, what the driver does not know is copied through memory of its own.
    let pinned = rng.u8(..4) > 0;
    let _pinned = pinned.then(|| device.register(&pages.whole())).transpose()?;
    let (in_page, in_block) = (vec![0; PAGES as usize], vec![0; BLOCKS as usize]);
    let mut model = Model { device, pages, in_page, in_block, next: 0, under_way: Vec::new(), rng };
    model.begin()?;
    tally.devices += 1;
    let transfers = if on.quick { ROUND / 10 } else { ROUND };
    for _ in 0..transfers {
        model.step(tally)?;
    }
    model.end(tally)
}

/// A layout of some engine, with pieces of 1 byte to 16 KiB.
fn layout(rng: &mut Rng) -> Result<KvLayout> {
    let (layers, parts) = (rng.u32(1..12), rng.u32(1..3));
    let unit = 1 << rng.u32(0..5);
    let tokens = *rng.choice(&[1, 4, 16]).expect("some");
    let row = unit * rng.u32(1..1024 / unit + 1);
    let fragment = (row * tokens).max(512_u32.div_ceil(layers * parts).next_multiple_of(tokens));
    let geometry = Geometry::new(layers, parts, fragment).context("a possible page")?;
    let layer_bytes = u64::from(geometry.layer_bytes()) * u64::from(BLOCKS);
    let uneven = |count: u32, bytes: u64, rng: &mut Rng| -> Vec<u64> {
        let places = (0..u64::from(count)).map(|at| at * (bytes + 64) + rng.u64(..4) * 16);
        places.collect()
    };
    Ok(match rng.u8(..5) {
        0 => KvLayout::cross_layer(geometry, BLOCKS, 0)?,
        1 => KvLayout::parts_first(geometry, BLOCKS, &uneven(layers, layer_bytes, rng))?,
        2 => KvLayout::block_first(geometry, BLOCKS, &uneven(layers, layer_bytes, rng))?,
        3 => {
            let part = layer_bytes * u64::from(layers) / u64::from(parts);
            KvLayout::token_first(geometry, BLOCKS, tokens, &uneven(parts, part, rng))?
        }
        _ => KvLayout::packed(geometry, BLOCKS)?,
    })
}

impl Model {
    fn new_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Gives every page and block something to hold.
    fn begin(&mut self) -> Result<()> {
        for page in 0..PAGES {
            let number = self.new_number();
            self.pages.fill(page, number);
            self.in_page[page as usize] = number;
        }
        let jobs: Vec<_> = (0..BLOCKS).map(|at| (at, at)).collect();
        self.start(Way::Load, jobs)?.transfer.wait()?;
        Ok(())
    }

    fn step(&mut self, tally: &mut Tally) -> Result<()> {
        if self.under_way.len() >= MOST_UNDER_WAY || self.rng.u8(..3) == 0 {
            self.finish_one(tally)?;
        }
        let way = *self.rng.choice(&Way::ALL).expect("some");
        let jobs = self.choose();
        if jobs.is_empty() {
            return Ok(());
        }
        tally.transfers += 1;
        tally.pages += jobs.len() as u64;
        let under_way = self.start(way, jobs)?;
        self.under_way.push(under_way);
        Ok(())
    }

    /// Pages and blocks that no transfer has.
    fn choose(&mut self) -> Vec<(u32, u32)> {
        let used = || self.under_way.iter().flat_map(|under_way| &under_way.jobs);
        let pages_used: HashSet<u32> = used().map(|(page, _)| *page).collect();
        let blocks_used: HashSet<u32> = used().map(|(_, block)| *block).collect();
        let mut pages: Vec<u32> = (0..PAGES).filter(|page| !pages_used.contains(page)).collect();
        let mut blocks: Vec<u32> = (0..BLOCKS).filter(|at| !blocks_used.contains(at)).collect();
        self.rng.shuffle(&mut pages);
        self.rng.shuffle(&mut blocks);
        let most = if self.rng.u8(..4) == 0 { BLOCKS as usize } else { 6 };
        let count = self.rng.usize(1..=most);
        pages.into_iter().zip(blocks).take(count).collect()
    }

    /// Starts it. It counts as done in the model: nothing looks at what it uses before it is.
    fn start(&mut self, way: Way, jobs: Vec<(u32, u32)>) -> Result<UnderWay> {
        let spans = jobs.iter().map(|(page, block)| (self.pages.span(*page), *block));
        let transfer = way.start(&self.device, spans)?;
        for (page, block) in &jobs {
            let (page, block) =
                (&mut self.in_page[*page as usize], &mut self.in_block[*block as usize]);
            match way {
                Way::Load | Way::LoadByLayer => *block = *page,
                Way::Store => *page = *block,
            }
        }
        Ok(UnderWay { transfer, way, jobs })
    }

    /// Waits for a transfer or drops it, and looks at a few of the pages and blocks it had.
    fn finish_one(&mut self, tally: &mut Tally) -> Result<()> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let at = self.rng.usize(..self.under_way.len());
        let UnderWay { transfer, way, jobs } = self.under_way.swap_remove(at);
        if self.rng.u8(..4) == 0 {
            tally.dropped += 1;
            drop(transfer);
        } else {
            if way == Way::LoadByLayer && self.rng.bool() {
                let layer = self.rng.u32(..self.device.geometry().layers());
                transfer.wait_layer(layer, None)?;
            }
            transfer.wait()?;
        }
        let (page, block) = *self.rng.choice(&jobs).expect("a transfer of something");
        self.look(page, block, tally)?;
        if way == Way::Store {
            for (page, _) in jobs {
                // Another page from now on, so that the next load of it brings something new.
                let number = self.new_number();
                self.pages.fill(page, number);
                self.in_page[page as usize] = number;
            }
        }
        Ok(())
    }

    fn look(&self, page: u32, block: u32, tally: &mut Tally) -> Result<()> {
        let (in_page, in_block) = (self.in_page[page as usize], self.in_block[block as usize]);
        tally.compared += 2;
        tally.wrong_bytes += self.pages.wrong_bytes(page, in_page);
        tally.wrong_bytes += wrong_in_block(&self.device, block, in_block)?;
        Ok(())
    }

    /// Waits for all of them and looks at everything.
    fn end(&mut self, tally: &mut Tally) -> Result<()> {
        while !self.under_way.is_empty() {
            self.finish_one(tally)?;
        }
        for page in 0..PAGES {
            self.look(page, page % BLOCKS, tally)?;
        }
        Ok(())
    }
}
