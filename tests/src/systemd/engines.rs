use crate::restarts::Ordeal;
use crate::{Ending, Restarts, RestartsReport, Site};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, Write};
use std::time::Instant;
use undercroft_client::wire::StartKind;

/// What the program is told to be the engines.
pub(super) const ENGINES: &str = "--engines";
const SOCKET: &str = "/run/undercroft/undercroft.sock";

const OPTIONS: Restarts = Restarts {
    rounds: 6,
    pages: 2_000,
    new_pages: 240,
    page_bytes: 16 << 10,
    chain_pages: 8,
    load_ms: 400,
    on_ssd: 1,
    seed: 1,
};

/// What is done to the daemon while pages are stored, loaded and leased.
const ENDINGS: [(Ending, &str); 4] = [
    (Ending::Stopped, "restart"),
    (Ending::Killed, "kill"),
    (Ending::Aborted, "hang"),
    (Ending::Upgraded, "upgrade"),
];

/// What the arena must hold.
pub(super) fn arena_bytes() -> u64 {
    OPTIONS.all_bytes()
}

/// Stores, loads, leases and compares, through all that the operator is asked to do.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn be_engines() -> Result<()> {
    let site = Site::new(SOCKET.into());
    connect_to_nobody(&site)?;
    let ordeal = Ordeal::begin(&OPTIONS, &site, &|| Ok(()))?;
    let mut report = RestartsReport::default();
    let since = Instant::now();
    for (number, ending) in (0..).zip(ENDINGS) {
        try_one(&ordeal, &site, number, ending, &mut report)?;
    }
    on_mounts(&site)?;
    order("stop")?;
    connect_to_nobody(&site)?;
    ordeal.nothing_wrong(&site)?;
    order("stop and start")?;
    begins_anew(&site)?;
    ordeal.nothing_wrong(&site)?;
    println!("arena           on {}", on_mounts(&site)?);
    println!("stop and start  begins anew, READY {} ms", site.status().start.ready_ms);
    let ordeal = Ordeal::begin(&OPTIONS, &site, &|| Ok(()))?;
    try_one(&ordeal, &site, OPTIONS.rounds, ENDINGS[1], &mut report)?;
    report.took = since.elapsed();
    println!("{report}");
    report.check()
}

fn try_one(
    ordeal: &Ordeal<'_>,
    site: &Site,
    number: u32,
    (ending, what): (Ending, &str),
    report: &mut RestartsReport,
) -> Result<()> {
    let restart = ordeal.round(site, number, ending, || {
        let since = Instant::now();
        order(what)?;
        site.client("probe").context("the new daemon does not answer")?;
        Ok(since.elapsed())
    })?;
    println!("{what:<16}{restart}");
    report.restarts.push(restart);
    Ok(())
}

/// No daemon runs. Who connects waits until there is one, and is not refused.
fn connect_to_nobody(site: &Site) -> Result<()> {
    let since = Instant::now();
    let client = site.client("first").context("a connection to a socket nobody serves failed")?;
    let waited = since.elapsed();
    begins_anew(site)?;
    drop(client);
    let ready = site.status().start.ready_ms;
    println!(
        "activated       answers after {:.0} ms, READY {ready} ms",
        waited.as_secs_f64() * 1e3
    );
    Ok(())
}

/// The unit's mounts came to the daemon, over all restarts, and its engines read the arena in place.
fn on_mounts(site: &Site) -> Result<String> {
    let status = site.status();
    let backing = status.arena.backing;
    ensure!(backing == "mount", "the arena lies in {backing}: {:?}", status.refused);
    Ok(backing)
}

/// Nothing was kept for this daemon, and it does not mind.
fn begins_anew(site: &Site) -> Result<()> {
    let status = site.status();
    ensure!(status.start.kind == StartKind::Cold, "it was not to be warm: {:?}", status.start);
    ensure!(status.start.dropped.is_none(), "it was to have nothing: {:?}", status.start);
    ensure!(status.dram.pages == 0, "pages from nowhere: {:?}", status.dram);
    Ok(())
}

/// Has the operator do something to the daemon.
fn order(what: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{what}")?;
    out.flush()?;
    drop(out);
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    ensure!(answer.trim() == "done", "{what}: {answer}");
    Ok(())
}
