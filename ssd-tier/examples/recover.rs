//! How fast a page log finds its records again: fills a log with pages of 4 KiB, drops it, opens
//! it again and says how long that took. `recover PATH RECORDS [plain]`; the file is removed.

use crossbeam_channel::unbounded;
use std::path::Path;
use std::time::Instant;
use undercroft_arena::{Memory, checksum};
use undercroft_ssd_tier::{AppendOutcome, Completion, LogConfig, Op, PageLog, StoreKey};
use undercroft_wire::{DomainId, JobId, PageIdentity, PageKey, SpaceDigest};

const PAGE: u32 = 4096;
const IN_FLIGHT: u64 = 256;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: recover PATH RECORDS [plain]";
    let path = arguments.next().ok_or(usage)?;
    let records: u64 = arguments.next().ok_or(usage)?.parse()?;
    let key = match arguments.next() {
        None => Some(StoreKey::generate()?),
        Some(_) => None,
    };
    let config = LogConfig {
        queue_depth: 64,
        key,
        ..LogConfig::new(&path, records * u64::from(PAGE) * 11 / 10)
    };
    let encrypted = config.key.is_some();
    let filled = fill(&config, records);
    let found = filled.and_then(|()| {
        let since = Instant::now();
        let (log, recovery) = PageLog::open(config, Vec::new(), Box::new(drop))?;
        let took = since.elapsed();
        drop(log);
        println!(
            "{} records in {:.3} s: {:.2} million records a second, encrypted: {}",
            recovery.records.len(),
            took.as_secs_f64(),
            recovery.records.len() as f64 / took.as_secs_f64() / 1e6,
            encrypted,
        );
        Ok(())
    });
    std::fs::remove_file(Path::new(&path))?;
    found
}

fn fill(config: &LogConfig, records: u64) -> Result<(), Failure> {
    let (sender, answers) = unbounded();
    let sink = Box::new(move |completion| drop(sender.send(completion)));
    let (log, _) = PageLog::open(config.clone(), Vec::new(), sink)?;
    let frame = Memory::new(PAGE.into(), 1)?.span(0, PAGE as usize)?;
    let payload_crc = checksum(&frame);
    let mut answered = 0;
    for number in 0..records {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let identity = PageIdentity {
            domain: DomainId::named("default"),
            space: SpaceDigest([1; 32]),
            key: PageKey(key),
            parent: None,
            depth: 0,
            page_bytes: PAGE,
        };
        let mut op = Op::Append {
            job: JobId(number),
            identity,
            origin: undercroft_wire::Origin::default(),
            payload: frame.clone(),
            payload_crc,
        };
        while let Err(refused) = log.submit(op) {
            op = refused;
            std::thread::yield_now();
        }
        while number + 1 - answered > IN_FLIGHT {
            answered += u64::from(is_written(&answers.recv()?)?);
        }
    }
    while answered < records {
        answered += u64::from(is_written(&answers.recv()?)?);
    }
    log.close();
    Ok(())
}

fn is_written(completion: &Completion) -> Result<bool, Failure> {
    match completion {
        Completion::Appended { outcome: AppendOutcome::Written(_), .. } => Ok(true),
        Completion::Appended { outcome, .. } => {
            Err(format!("a page was not written: {outcome:?}").into())
        }
        _ => Ok(false),
    }
}
