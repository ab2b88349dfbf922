use crate::ledger::StoredChain;
use crate::traffic::{Seat, Wrong, engine};
use crate::{Engine, EngineOptions, TestDaemon};
use anyhow::{Context, Result, ensure};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use undercroft_client::wire::{DeviceCondition, SsdStatus};

/// How long lookups may take to find more than they did, before what they do not find counts as
/// lost: pages whose proof must be read first count only once it was.
const PATIENCE: Duration = Duration::from_secs(3);
const NAP: Duration = Duration::from_millis(5);
/// A load may be cut short for want of frames, which others of the survey hold.
const TRIES: u32 = 5;

/// Whom to ask for what.
#[derive(Debug, Clone)]
pub(crate) struct SurveyOptions<'a> {
    /// Bytes of a page.
    pub(crate) page_bytes: u64,
    /// Pages of a chain, at most.
    pub(crate) chain_pages: u32,
    /// Clients that ask at once.
    pub(crate) threads: u32,
    /// The chains that may be there, oldest first.
    pub(crate) chains: &'a [StoredChain],
    /// Which of them should all be there.
    pub(crate) awaited: Range<usize>,
    /// Chains whose store was cut: whatever is there of them must be right.
    pub(crate) cut: &'a [u32],
}

/// What a daemon serves of what it was given to keep, every byte compared.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Of each chain, how many leading pages were delivered.
    pub(crate) served: Vec<u32>,
    /// Pages of cut chains that were delivered.
    pub(crate) cut_pages: u64,
    /// When the last of what was found by lookups was found.
    pub(crate) seen: Instant,
    /// Bytes that are not the page's.
    pub(crate) wrong: Wrong,
    /// What the daemon says of its SSDs, when all of this was over.
    pub(crate) ssd: SsdStatus,
}

/// Looks at everything, as soon as the daemon knows what is on its SSDs.
///
/// # Errors
/// The daemon does not answer, or not of a device: it did not come back, or without its store.
pub(crate) fn survey(daemon: &TestDaemon, options: SurveyOptions<'_>) -> Result<Survey> {
    let page = EngineOptions { page_bytes: options.page_bytes, blocks: options.chain_pages };
    let site = daemon.site();
    let mut seats: Vec<Seat> = (0..options.threads)
        .map(|thread| engine(&site, &format!("survey-{thread}"), page))
        .collect::<Result<_>>()?;
    let seen = wait_until_seen(&mut seats[0].engine, &options.chains[options.awaited.clone()]);
    daemon.wait_recovered()?;
    let next = AtomicUsize::new(0);
    let parts: Vec<Part> = std::thread::scope(|scope| {
        let threads: Vec<_> = seats
            .iter_mut()
            .map(|seat| scope.spawn(|| load_all(&mut seat.engine, &options, &next)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no survey panics")).collect()
    });
    let ssd = daemon.status().ssd.context("the daemon reports no SSD tier")?;
    for device in &ssd.devices {
        let is_back = matches!(device.condition, DeviceCondition::Well | DeviceCondition::Stalled);
        ensure!(is_back && device.set_aside.is_none(), "an SSD did not come back: {device:?}");
    }
    let mut survey = Survey {
        served: vec![0; options.chains.len()],
        cut_pages: 0,
        seen,
        wrong: Wrong::default(),
        ssd,
    };
    for part in parts {
        for (chain, pages) in part.served {
            survey.served[chain] = pages;
        }
        survey.cut_pages += part.cut_pages;
        survey.wrong.add(part.wrong);
    }
    Ok(survey)
}

/// Asks until all pages of `chains` are found or nothing new is; when the last was.
fn wait_until_seen(engine: &mut Engine, chains: &[StoredChain]) -> Instant {
    let mut missing: Vec<(StoredChain, u32)> = chains.iter().map(|chain| (*chain, 0)).collect();
    let mut seen = Instant::now();
    loop {
        let mut news = false;
        missing.retain_mut(|(chain, known)| {
            let keys = engine.keys(chain.id, chain.pages);
            let found = engine.lookup(&keys).pages;
            news |= found > *known;
            *known = found;
            found < chain.pages
        });
        if news {
            seen = Instant::now();
        }
        if missing.is_empty() || seen.elapsed() > PATIENCE {
            return seen;
        }
        std::thread::sleep(NAP);
    }
}

#[derive(Debug, Default)]
struct Part {
    served: Vec<(usize, u32)>,
    cut_pages: u64,
    wrong: Wrong,
}

/// Takes chains from the common list until it is empty.
fn load_all(engine: &mut Engine, options: &SurveyOptions<'_>, next: &AtomicUsize) -> Part {
    let mut part = Part::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if let Some(chain) = options.chains.get(index) {
            let pages = load(engine, chain.id, chain.pages, &mut part.wrong);
            part.served.push((index, pages));
        } else if let Some(cut) = options.cut.get(index - options.chains.len()) {
            let pages = load(engine, *cut, options.chain_pages, &mut part.wrong);
            part.cut_pages += u64::from(pages);
        } else {
            return part;
        }
    }
}

fn load(engine: &mut Engine, chain: u32, pages: u32, wrong: &mut Wrong) -> u32 {
    let keys = engine.keys(chain, pages);
    let mut most = 0;
    for _ in 0..TRIES {
        let found = engine.lookup(&keys);
        if found.pages <= most {
            break;
        }
        let inspected = engine.inspect(&keys[..found.pages as usize], found.stamp);
        wrong.look(chain, &inspected);
        most = most.max(inspected.loaded.pages);
        if inspected.loaded.pages == found.pages {
            break;
        }
        std::thread::sleep(NAP);
    }
    most
}
