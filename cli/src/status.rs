//! `undercroft status`.

use crate::outcome::{Failure, Outcome, print};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use undercroft_client::wire::{
    ArenaStatus, DeviceCondition, DomainStatus, GpuReport, LoadStatus, Mode, ProcessState,
    ReloadStatus, SessionStatus, SsdDeviceStatus, SsdStatus, StartKind, StartStatus, StatusReport,
    TierStatus, WearStatus,
};
use undercroft_client::{Client, ConnectOptions, Wait};

const PATIENCE: Duration = Duration::from_secs(5);

/// Show a running daemon's tiers, sizes, fill, hits, sessions, the I/O engine in use and what the
/// machine refused it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  undercroft status
  undercroft status --json | python3 -m json.tool
  undercroft status --socket /run/undercroft/undercroft.sock

Exit codes: 0 the daemon answered; 1 none did; 2 bad arguments.")]
pub(crate) struct Status {
    /// The daemon's socket [default: where `serve` has it for this user, else
    /// /run/undercroft/undercroft.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON (schema 1) instead of text.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let socket = self.socket.unwrap_or_else(undercroft_client::find_socket);
        if socket.as_os_str().len() > undercroft_kvstore::MAX_SOCKET_PATH_BYTES {
            let max = undercroft_kvstore::MAX_SOCKET_PATH_BYTES;
            return Err(Failure::start(format!(
                "--socket {}: the path is longer than the system's limit of {max} bytes; use a shorter one",
                socket.display()
            )));
        }
        let mut options = ConnectOptions::new(&socket);
        options.name = "undercroft status".to_owned();
        // Nothing will be fetched: copy mode spares mapping the arena.
        options.copy_mode = true;
        options.wait = Wait::Now(PATIENCE);
        let client = Client::connect(options).map_err(Failure::run)?;
        let report = client
            .status(PATIENCE)
            .map_err(|why| Failure::run(format!("no status from {}: {why}", socket.display())))?;
        if self.json {
            let text = serde_json::to_string_pretty(&report).map_err(Failure::run)?;
            print(&(text + "\n"))
        } else {
            print(&render(&report))
        }
    }
}

fn render(report: &StatusReport) -> String {
    let mut out = Lines::default();
    out.line(
        "daemon",
        format!("undercroft {}, pid {}, up {}", report.version, report.pid, age(report.uptime_ms)),
    );
    if let Some(tenant) = &report.told_to {
        out.line("told to", format!("{tenant}: what is its own; the rest is for operators"));
        out.line("socket", report.socket.clone());
        render_arena(&report.arena, &mut out);
        report.domains.iter().for_each(|domain| render_domain(domain, &mut out));
        render_spaces(report, &mut out);
        return out.text;
    }
    out.line("start", render_start(&report.start));
    render_reload(&report.reload, &mut out);
    out.line("socket", report.socket.clone());
    out.line("cpu", format!("{:.2} s", report.cpu_s));
    out.line("heap", heap(report));
    render_arena(&report.arena, &mut out);
    out.line("dram", tier(&report.dram));
    report.domains.iter().for_each(|domain| render_domain(domain, &mut out));
    match &report.ssd {
        None => out.line("ssd", "none".to_owned()),
        Some(ssd) => render_ssd(ssd, &mut out),
    }
    render_traffic(report, &mut out);
    render_spaces(report, &mut out);
    render_oddities(report, &mut out);
    out.text
}

fn render_arena(arena: &ArenaStatus, out: &mut Lines) {
    let locked = if arena.locked { "locked" } else { "not locked" };
    let (size, parts) = (bytes(arena.bytes), arena.parts);
    let nodes: Vec<_> = arena.numa_nodes.iter().map(u32::to_string).collect();
    let nodes =
        if nodes.is_empty() { String::new() } else { format!(", node {}", nodes.join(", ")) };
    let kind = format!("{} pages, {}, {locked}{nodes}", arena.pages, arena.backing);
    out.line("arena", format!("{size} in {parts} part(s), {kind}"));
    if let Some(change) = changing(arena) {
        out.line("", change);
    }
}

/// What is under way to bring an arena to its size.
fn changing(arena: &ArenaStatus) -> Option<String> {
    let mut words = Vec::new();
    if arena.retiring_parts > 0 {
        let (parts, size) = (arena.retiring_parts, bytes(arena.retiring_bytes));
        words.push(format!("{parts} part(s), {size}, retire"));
    }
    if arena.bytes.saturating_sub(arena.retiring_bytes) < arena.wanted_bytes {
        words.push(format!("is to have {}", bytes(arena.wanted_bytes)));
    }
    if let Some(why) = &arena.short {
        words.push(format!("cannot have them: {why}"));
    }
    (!words.is_empty()).then(|| words.join("; "))
}

fn render_reload(reload: &ReloadStatus, out: &mut Lines) {
    if let Some(why) = &reload.refused {
        out.line("reload", format!("refused, the configuration from before runs on: {why}"));
    }
    if !reload.pending.is_empty() {
        out.line("reload", format!("needs a restart: {}", reload.pending.join("; ")));
    }
}

/// The daemon's own memory, and what it may take.
fn heap(report: &StatusReport) -> String {
    let (heap, pages) = (report.heap_bytes, report.known_pages);
    let allowed = report.allowed_heap_bytes();
    let verdict = if heap <= allowed { "within" } else { "MORE THAN" };
    format!(
        "{} for {pages} known pages; {verdict} the allowed {} ({} and {} B a page)",
        bytes(heap),
        bytes(allowed),
        bytes(StatusReport::HEAP_BYTES),
        StatusReport::HEAP_BYTES_PER_PAGE,
    )
}

fn render_start(start: &StartStatus) -> String {
    let kind = match start.kind {
        StartKind::Cold => "cold".to_owned(),
        StartKind::Warm => format!("warm, {} pages in DRAM as before", start.restored_pages),
        StartKind::Takeover => {
            format!("taken over, {} pages in DRAM as before", start.restored_pages)
        }
    };
    let ready = match start.opening {
        true => "the arena is being made".to_owned(),
        false => format!("ready after {} ms", start.ready_ms),
    };
    let mut text = format!("{kind}; {ready}; restart {}", start.restarts);
    if start.quarantined_bytes > 0 {
        text += &format!("; {} may still be written to", bytes(start.quarantined_bytes));
    }
    if let Some(why) = &start.dropped {
        text += &format!("; the arena that was kept was dropped: {why}");
    }
    text
}

fn render_domain(domain: &DomainStatus, out: &mut Lines) {
    out.line("domain", format!("{}: {}", domain.name, tier(&domain.dram)));
    out.line(
        "",
        format!(
            "{} in {} part(s); {} sessions, {} pages leased",
            bytes(domain.arena.bytes),
            domain.arena.parts,
            domain.sessions,
            domain.leased_pages
        ),
    );
    if let Some(change) = changing(&domain.arena) {
        out.line("", change);
    }
    let of = |used: u32, most: u32| match most {
        u32::MAX => used.to_string(),
        _ => format!("{used} of {most}"),
    };
    out.line(
        "",
        format!(
            "{} pages known, {} spaces, {} pages being read; weight {}",
            of(domain.known_pages, domain.max_pages),
            of(domain.spaces, domain.max_spaces),
            of(domain.reads_in_flight, domain.max_reads_in_flight),
            domain.weight
        ),
    );
    if domain.ssd.capacity_bytes > 0 {
        let floor = bytes(domain.ssd_floor_bytes);
        out.line("", format!("on SSD {}; floor {floor}", tier(&domain.ssd)));
    }
}

fn render_ssd(ssd: &SsdStatus, out: &mut Lines) {
    out.line("ssd", tier(&ssd.tier));
    out.line(
        "",
        format!(
            "written {} (re-appended {}, write amplification {:.3}), read {}",
            bytes(ssd.written_bytes),
            bytes(ssd.reappended_bytes),
            ssd.write_amplification,
            bytes(ssd.read_bytes),
        ),
    );
    out.line(
        "",
        format!(
            "corrupt: {} records, {} tables; I/O errors {}; pages unreachable {}, refused {} \
             ({} for the write budget)",
            ssd.corrupt_records,
            ssd.corrupt_tables,
            ssd.io_errors,
            ssd.unreachable_pages,
            ssd.refused_pages,
            ssd.over_budget_pages
        ),
    );
    let prefetch = &ssd.prefetch;
    out.line(
        "",
        format!(
            "prefetched {} pages: {} used, {} wasted ({})",
            prefetch.pages,
            prefetch.used_pages,
            prefetch.wasted_pages,
            bytes(prefetch.wasted_bytes)
        ),
    );
    for (number, device) in ssd.devices.iter().enumerate() {
        render_device(number, device, out);
    }
}

fn render_device(number: usize, device: &SsdDeviceStatus, out: &mut Lines) {
    let condition = match device.condition {
        DeviceCondition::Recovering => "recovering",
        DeviceCondition::Well => "well",
        DeviceCondition::Stalled => "stalled",
        DeviceCondition::ReadOnly => "read-only",
        DeviceCondition::Out => "out",
        DeviceCondition::Lost => "lost",
    };
    out.line(&format!("ssd {number}"), format!("{}: {condition}", device.path));
    if let Some(aside) = &device.set_aside {
        out.line("", format!("a page log that could not be read was set aside: {aside}"));
    }
    if device.engine.is_empty() {
        return;
    }
    let buffers = if device.registered_buffers { "registered buffers" } else { "plain buffers" };
    let encrypted = if device.encrypted { "encrypted" } else { "not encrypted" };
    out.line(
        "",
        format!(
            "{} ({buffers}, queue depth {}), {encrypted}; {} of {} segments free",
            device.engine, device.queue_depth, device.free_segments, device.segments
        ),
    );
    out.line(
        "",
        format!(
            "{}; written {} (re-appended {}), read {}",
            tier(&device.tier),
            bytes(device.written_bytes),
            bytes(device.reappended_bytes),
            bytes(device.read_bytes),
        ),
    );
    out.line("", wear(&device.wear));
    out.line("", recovery(device));
    out.line(
        "",
        format!(
            "corrupt: {} records, {} tables; I/O errors {}; stalls {}",
            device.corrupt_records, device.corrupt_tables, device.io_errors, device.stalls
        ),
    );
}

fn wear(wear: &WearStatus) -> String {
    let rate = match (wear.drive_writes_per_day, wear.life_years) {
        (None, _) => "at what rate is not known yet".to_owned(),
        (Some(rate), None) => format!("drive writes per day {rate:.3}"),
        (Some(rate), Some(years)) => {
            format!("drive writes per day {rate:.3}, life at this rate {years:.1} years")
        }
    };
    let budgets = [(wear.budget_bytes_per_s, "second"), (wear.budget_bytes_per_day, "day")];
    let budgets = budgets.map(|(most, of)| most.map(|most| format!("{} a {of}", bytes(most))));
    let budgets: Vec<_> = budgets.into_iter().flatten().collect();
    let budget = if budgets.is_empty() { "none".to_owned() } else { budgets.join(", ") };
    format!("written in a day {}; {rate}; write budget {budget}", bytes(wear.day_bytes))
}

fn recovery(device: &SsdDeviceStatus) -> String {
    let records = device.recovered_records;
    let found = match device.recovery_ms {
        None => format!("{records} records found so far"),
        Some(ms) => {
            let per_s = records as f64 * 1e3 / ms.max(1) as f64;
            format!("recovered {records} records in {ms} ms ({per_s:.0}/s)")
        }
    };
    format!(
        "{found}; unproved {}, proved {}, disproved {}",
        device.unproved_records, device.proved_records, device.disproved_records
    )
}

fn render_traffic(report: &StatusReport, out: &mut Lines) {
    let hits = &report.hits;
    let ratio =
        if hits.keys == 0 { 0.0 } else { 100.0 * hits.prefix_pages as f64 / hits.keys as f64 };
    out.line(
        "hits",
        format!(
            "{} of {} pages looked up ({ratio:.2} %) in {} lookups, {} answered by the board",
            hits.prefix_pages, hits.keys, hits.lookups, hits.board_lookups
        ),
    );
    out.line(
        "",
        format!(
            "delivered: dram {}, ssd {}; incomplete fetches {}",
            hits.dram_pages, hits.ssd_pages, hits.incomplete_fetches
        ),
    );
    let misses = hits.misses.iter().filter(|miss| miss.lookups > 0);
    let misses: Vec<_> =
        misses.map(|miss| format!("{} {}", miss.cause.name(), miss.lookups)).collect();
    if !misses.is_empty() {
        out.line("", format!("lookups that missed a page: {}", misses.join(", ")));
    }
    render_loads(&report.loads, out);
    let stores = &report.stores;
    out.line(
        "stores",
        format!(
            "{} stored of {} offered (held {}, declined {}, failed {})",
            stores.stored, stores.offered, stores.held, stores.declined, stores.failed
        ),
    );
}

/// What loads were worth, where engines say what computing costs.
fn render_loads(loads: &LoadStatus, out: &mut Lines) {
    if loads.weighed_fetches == 0 && loads.trimmed_lookups == 0 {
        return;
    }
    let seconds = |us: u64| us as f64 / 1e6;
    out.line(
        "loads",
        format!(
            "{}: {:.3} s saved and {:.3} s lost against computing, in {} fetches",
            loads.policy,
            seconds(loads.saved_us),
            seconds(loads.lost_us),
            loads.weighed_fetches
        ),
    );
    out.line(
        "",
        format!(
            "not worth it: {} pages in {} lookups; fell behind: {} fetches, {} pages",
            loads.trimmed_pages, loads.trimmed_lookups, loads.behind_fetches, loads.behind_pages
        ),
    );
    out.line(
        "",
        format!(
            "from ssd: {:.3} s expected, {:.3} s taken, off by {:.3} s, in {} fetches",
            seconds(loads.expected_us),
            seconds(loads.taken_us),
            seconds(loads.error_us),
            loads.expected_fetches
        ),
    );
}

fn render_spaces(report: &StatusReport, out: &mut Lines) {
    for space in &report.spaces {
        // As logs show it; all of it is in the JSON.
        let short: String = space.digest.chars().take(16).collect();
        let (pages, size) = (space.pages, bytes(space.page_bytes.into()));
        let probe = space.probe.as_ref().map(|probe| format!(", probe {probe}"));
        let probe = probe.unwrap_or_default();
        out.line("space", format!("{short} of {}: {pages} pages of {size}{probe}", space.domain));
    }
    for session in &report.sessions {
        render_session(session, out);
    }
}

/// What the machine does not have, and what clients did wrong.
fn render_oddities(report: &StatusReport, out: &mut Lines) {
    for refused in &report.refused {
        out.line("refused", refused.clone());
    }
    for fallback in &report.fallbacks {
        out.line("fallback", fallback.to_string());
    }
    if report.refused_probes > 0 {
        let (count, why) = (report.refused_probes, "their hash of the probe prefix is another");
        out.line("REFUSED", format!("{count} space(s) to clients, as {why}: `undercroft explain`"));
    }
    if report.protocol_errors > 0 {
        out.line(
            "protocol",
            format!("{} session(s) closed for malformed messages", report.protocol_errors),
        );
    }
}

fn render_session(session: &SessionStatus, out: &mut Lines) {
    let mode = match (session.mode, session.copy_reason) {
        (Mode::ZeroCopy, _) => "zero-copy".to_owned(),
        (Mode::Copy, None) => "copy".to_owned(),
        (Mode::Copy, Some(reason)) => format!("copy ({reason})"),
    };
    let lingering = if session.lingering { ", gone but still leasing" } else { "" };
    out.line(
        "session",
        format!(
            "{} \"{}\" pid {} uid {}: {mode}, {} leases on {} pages ({}){lingering}",
            session.session,
            session.name,
            session.pid,
            session.uid,
            session.leases,
            session.leased_pages,
            bytes(session.leased_bytes),
        ),
    );
    if let Some(gpu) = &session.gpu {
        out.line("", render_gpu(gpu));
    }
    if session.alarm {
        let does = match session.process {
            ProcessState::Unknown => "silent",
            ProcessState::Alive => "alive but silent",
            ProcessState::Stopped => "stopped, and silent",
            ProcessState::Dead => "dead, and silent",
        };
        let (pid, held) = (session.pid, bytes(session.leased_bytes));
        let silent = age(session.silent_ms);
        out.line("ALARM", format!("process {pid} is {does} for {silent} and holds {held} of DRAM"));
    }
}

fn render_gpu(gpu: &GpuReport) -> String {
    let mut text = format!(
        "{}: loads by {} (layer by layer: {}), stores by {}; {} pinned",
        gpu.name,
        gpu.load,
        gpu.load_by_layer,
        gpu.store,
        bytes(gpu.pinned_bytes)
    );
    if gpu.waiting_bytes > 0 {
        text += &format!(", {} still to be", bytes(gpu.waiting_bytes));
    }
    if gpu.refused_bytes > 0 {
        text += &format!(", {} REFUSED by its driver", bytes(gpu.refused_bytes));
    }
    text
}

#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, name: &str, value: String) {
        self.text.push_str(&format!("{name:<9}{value}\n"));
    }
}

fn tier(tier: &TierStatus) -> String {
    let fill = if tier.capacity_bytes == 0 {
        0.0
    } else {
        100.0 * tier.used_bytes as f64 / tier.capacity_bytes as f64
    };
    format!(
        "{} of {} ({fill:.1} %), {} pages, {} evicted",
        bytes(tier.used_bytes),
        bytes(tier.capacity_bytes),
        tier.pages,
        tier.evicted_pages
    )
}

fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

fn age(ms: u64) -> String {
    indicatif::HumanDuration(Duration::from_millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use undercroft_client::wire::{HitStatus, MissCause, MissStatus};

    #[test]
    fn an_empty_report_reads_well() {
        let text = render(&StatusReport::default());
        assert!(text.contains("ssd      none\n"), "{text}");
        assert!(text.contains("(0.00 %)"), "{text}");
    }

    #[test]
    fn an_arena_that_changes_says_how() {
        let arena = ArenaStatus {
            parts: 3,
            bytes: 3 << 20,
            wanted_bytes: 4 << 20,
            retiring_parts: 1,
            retiring_bytes: 1 << 20,
            short: Some("out of memory".to_owned()),
            ..ArenaStatus::default()
        };
        let reload = ReloadStatus {
            pending: vec!["ssd.size".to_owned(), "ssd.path".to_owned()],
            refused: Some("config key arena.size = 1".to_owned()),
            ..ReloadStatus::default()
        };
        let text = render(&StatusReport { arena, reload, ..StatusReport::default() });
        for words in [
            "1 part(s), 1.00 MiB, retire; is to have 4.00 MiB; cannot have them: out of memory\n",
            "reload   needs a restart: ssd.size; ssd.path\n",
            "reload   refused, the configuration from before runs on: config key arena.size = 1\n",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }

    #[test]
    fn misses_are_told_by_their_causes() {
        let misses = [(MissCause::NeverStored, 5), (MissCause::Evicted, 0), (MissCause::Purged, 2)];
        let misses = misses.map(|(cause, lookups)| MissStatus { cause, lookups }).to_vec();
        let hits = HitStatus { misses, ..HitStatus::default() };
        let text = render(&StatusReport { hits, ..StatusReport::default() });
        let words = "         lookups that missed a page: never-stored 5, purged 2\nstores ";
        assert!(text.contains(words), "{text}");
    }

    #[test]
    fn each_ssd_is_told_by_itself() {
        let well = SsdDeviceStatus {
            path: "/one".to_owned(),
            condition: DeviceCondition::Well,
            engine: "io_uring".to_owned(),
            encrypted: true,
            recovered_records: 1_000,
            recovery_ms: Some(500),
            unproved_records: 7,
            ..SsdDeviceStatus::default()
        };
        let lost = SsdDeviceStatus {
            path: "/two".to_owned(),
            condition: DeviceCondition::Lost,
            ..SsdDeviceStatus::default()
        };
        let ssd = SsdStatus {
            write_amplification: 1.25,
            devices: vec![well, lost],
            ..SsdStatus::default()
        };
        let text = render(&StatusReport { ssd: Some(ssd), ..StatusReport::default() });
        for words in [
            "ssd 0    /one: well\n",
            "plain buffers, queue depth 0), encrypted; 0 of 0 segments free\n",
            "recovered 1000 records in 500 ms (2000/s); unproved 7,",
            "ssd 1    /two: lost\nhits ",
            "write amplification 1.250",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
}
