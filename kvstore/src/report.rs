//! The status report, gathered from the core, the page log and the sessions.

use crate::arena;
use crate::config::DomainConfig;
use crate::control::Control;
use crate::device::Device;
use crate::process;
use crate::session::Session;
use std::time::Duration;
use undercroft_core::{CostStats, DeviceReport, DeviceState, Health, Stats, TierFill};
use undercroft_wire::{
    ArenaStatus, DeviceCondition, DomainStatus, Fallback, HitStatus, LoadStatus, MissCause,
    MissStatus, Mode, PrefetchStatus, SessionId, SessionStatus, SpaceStatus, SsdDeviceStatus,
    SsdStatus, StartStatus, StatusReport, StoreStatus, TierStatus, WearStatus,
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The version of the report's layout.
const SCHEMA: u32 = 1;

/// What `undercroft status` shows.
pub(crate) fn report(control: &Control) -> StatusReport {
    let stats = control.core.stats();
    StatusReport {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: control.started.elapsed().as_millis() as u64,
        epoch: control.arena.epoch.0,
        cpu_s: process::cpu_seconds(),
        socket: control.config.socket.display().to_string(),
        start: StartStatus { opening: !control.fitting.is_whole(), ..control.start.clone() },
        reload: control.reload.clone(),
        heap_bytes: process::heap_bytes(),
        known_pages: control.core.known_pages(),
        arena: ArenaStatus {
            wanted_bytes: control.config.arena_bytes(),
            ..arena::status(control.arena.iter())
        },
        dram: tier(control.core.dram(), stats.evicted_pages),
        ssd: ssd(control, stats),
        hits: HitStatus {
            lookups: stats.lookups,
            board_lookups: stats.board_lookups,
            keys: stats.lookup_keys,
            prefix_pages: stats.prefix_pages,
            dram_pages: stats.delivered_dram_pages,
            ssd_pages: stats.delivered_ssd_pages,
            incomplete_fetches: stats.incomplete_fetches,
            misses: misses(stats),
        },
        stores: StoreStatus {
            offered: stats.offered,
            stored: stats.stored,
            held: stats.held,
            declined: stats.declined_credit + stats.declined_parent + stats.declined_full,
            failed: stats.copy_failures,
        },
        loads: loads(control, &stats.cost),
        domains: domains(control),
        spaces: spaces(control),
        sessions: sessions(control, |_| true),
        refused: refused(control),
        protocol_errors: control.protocol_errors,
        descriptors: process::open_descriptors(),
        fallbacks: fallbacks(control),
        lease_alarms: control.lease_alarms,
        refused_probes: stats.refused_probes,
        told_to: None,
    }
}

/// What `undercroft status` shows to this session: everything to an operator, and to a tenant among
/// others what is its own.
pub(crate) fn report_for(control: &Control, id: SessionId) -> StatusReport {
    let Some(session) = control.sessions.get(&id) else { return StatusReport::default() };
    if session.is_operator() || control.domains.iter().count() == 1 {
        return report(control);
    }
    let name = session.domain_name();
    let own = control.domains.iter().find(|domain| domain.name == name);
    let own = own.map(|domain| domain_status(control, domain)).unwrap_or_default();
    StatusReport {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: control.started.elapsed().as_millis() as u64,
        epoch: control.arena.epoch.0,
        socket: control.config.socket.display().to_string(),
        arena: own.arena.clone(),
        dram: own.dram.clone(),
        known_pages: own.known_pages.into(),
        domains: vec![own],
        spaces: spaces(control).into_iter().filter(|space| space.domain == name).collect(),
        sessions: sessions(control, |session| session.domain_name() == name),
        told_to: Some(name.to_owned()),
        ..StatusReport::default()
    }
}

fn loads(control: &Control, cost: &CostStats) -> LoadStatus {
    LoadStatus {
        policy: control.config.load.to_string(),
        trimmed_lookups: cost.trimmed_lookups,
        trimmed_pages: cost.trimmed_pages,
        behind_fetches: cost.behind_fetches,
        behind_pages: cost.behind_pages,
        weighed_fetches: cost.weighed_fetches,
        expected_fetches: cost.expected_fetches,
        expected_us: cost.expected_us,
        taken_us: cost.taken_us,
        error_us: cost.error_us,
        saved_us: cost.saved_us,
        lost_us: cost.lost_us,
    }
}

fn domains(control: &Control) -> Vec<DomainStatus> {
    control.domains.iter().map(|domain| domain_status(control, domain)).collect()
}

fn domain_status(control: &Control, domain: &DomainConfig) -> DomainStatus {
    let own = control.sessions.iter().filter(|(_, session)| session.is_of(domain));
    let leased_pages = own.clone().map(|(id, _)| control.core.session_leases(*id).pages).sum();
    let sessions = own.filter(|(_, session)| session.is_open()).count() as u32;
    let known = control.core.domains().find(|report| report.domain == domain.id);
    let known = known.unwrap_or_default();
    let all = control.core.ssd().map_or(0, |ssd| ssd.capacity_bytes);
    let limits = known.limits;
    let quota = limits.ssd_bytes.min(all);
    DomainStatus {
        name: domain.name.clone(),
        arena: ArenaStatus {
            wanted_bytes: domain.dram_bytes,
            short: control.fitting.short(domain.id).cloned(),
            ..arena::status(control.arena.of(domain.id))
        },
        dram: tier(known.dram, known.evicted_pages),
        sessions,
        leased_pages,
        ssd: tier(TierFill { capacity_bytes: quota, ..known.ssd }, known.forgotten_records),
        ssd_floor_bytes: limits.ssd_floor_bytes,
        reads_in_flight: known.reads,
        max_reads_in_flight: limits.max_reads,
        known_pages: known.known_pages,
        max_pages: limits.max_pages,
        spaces: known.spaces,
        max_spaces: limits.max_spaces,
        weight: limits.weight,
    }
}

fn misses(stats: &Stats) -> Vec<MissStatus> {
    let counted = MissCause::ALL.into_iter().zip(stats.misses);
    counted.map(|(cause, lookups)| MissStatus { cause, lookups }).collect()
}

fn tier(fill: TierFill, evicted_pages: u64) -> TierStatus {
    TierStatus {
        capacity_bytes: fill.capacity_bytes,
        used_bytes: fill.used_bytes,
        pages: fill.pages,
        evicted_pages,
    }
}

fn ssd(control: &Control, stats: &Stats) -> Option<SsdStatus> {
    if control.devices.is_empty() {
        return None;
    }
    let reports = control.core.devices().zip(&control.devices);
    let devices: Vec<_> = reports
        .map(|(report, device)| SsdDeviceStatus {
            wear: wear(control, &report),
            ..ssd_device(&report, device)
        })
        .collect();
    let sum = |count: fn(&SsdDeviceStatus) -> u64| devices.iter().map(count).sum();
    let (written_bytes, reappended_bytes) =
        (sum(|device| device.written_bytes), sum(|device| device.reappended_bytes));
    let prefetched = stats.prefetched();
    Some(SsdStatus {
        tier: tier(control.core.ssd().unwrap_or_default(), stats.ssd_dropped_pages),
        written_bytes,
        reappended_bytes,
        write_amplification: SsdStatus::amplification(written_bytes, reappended_bytes),
        read_bytes: sum(|device| device.read_bytes),
        recovered_records: sum(|device| device.recovered_records),
        unproved_records: sum(|device| device.unproved_records),
        corrupt_records: sum(|device| device.corrupt_records),
        corrupt_tables: sum(|device| device.corrupt_tables),
        io_errors: sum(|device| device.io_errors),
        unreachable_pages: control.core.unreachable_pages(),
        refused_pages: stats.refused_pages,
        over_budget_pages: stats.over_budget_pages,
        prefetch: PrefetchStatus {
            pages: prefetched.pages,
            used_pages: prefetched.used_pages,
            wasted_pages: prefetched.wasted_pages,
            wasted_bytes: prefetched.wasted_bytes,
        },
        devices,
    })
}

fn ssd_device(report: &DeviceReport, device: &Device) -> SsdDeviceStatus {
    let (facts, counters, proofs) = (device.facts(), device.counters(), device.proofs());
    let stats = &report.stats;
    SsdDeviceStatus {
        path: device.directory().display().to_string(),
        condition: condition(report),
        tier: tier(report.fill, stats.dropped_pages),
        engine: facts.map_or_else(String::new, |facts| facts.engine.to_owned()),
        registered_buffers: facts.is_some_and(|facts| facts.registered_buffers),
        encrypted: facts.is_some_and(|facts| facts.encrypted),
        segments: facts.map_or(0, |facts| facts.segments),
        free_segments: report.free_segments,
        queue_depth: counters.queue_depth,
        written_bytes: stats.appended_bytes + stats.relocated_bytes,
        reappended_bytes: stats.relocated_bytes,
        read_bytes: stats.read_bytes,
        zeroed_bytes: counters.zeroed_bytes,
        recovered_records: counters.recovered_records,
        recovery_ms: device.recovery_time().map(|took| took.as_millis() as u64),
        unproved_records: report.unproved_records,
        proved_records: proofs.proved,
        disproved_records: proofs.disproved,
        corrupt_records: counters.corrupt_records,
        corrupt_tables: counters.corrupt_tables,
        io_errors: counters.io_errors,
        stalls: counters.stalls,
        read_bytes_per_s: report.read_bytes_per_s,
        read_latency_us: report.read_latency_us,
        set_aside: facts
            .and_then(|facts| facts.set_aside.as_ref())
            .map(|aside| aside.display().to_string()),
        wear: WearStatus::default(),
    }
}

/// A rate is told from the first minute on: before that it says nothing of a day.
fn wear(control: &Control, report: &DeviceReport) -> WearStatus {
    let (day_bytes, budget) = (report.written_in_a_day_bytes, control.core.write_budget());
    let over = control.started.elapsed().min(DAY);
    let capacity = report.fill.capacity_bytes;
    let a_day = (over >= MINUTE).then(|| day_bytes as f64 * DAY.div_duration_f64(over));
    let endurance = control.config.ssd.as_ref().and_then(|ssd| ssd.endurance_bytes);
    let endurance = endurance.unwrap_or_else(|| WearStatus::usual_endurance(capacity)) as f64;
    WearStatus {
        day_bytes,
        drive_writes_per_day: a_day.map(|bytes| bytes / capacity.max(1) as f64),
        life_years: a_day.filter(|bytes| *bytes > 0.0).map(|bytes| endurance / bytes / 365.0),
        budget_bytes_per_s: budget.bytes_per_s,
        budget_bytes_per_day: budget.bytes_per_day,
    }
}

fn condition(report: &DeviceReport) -> DeviceCondition {
    match (report.state, report.health) {
        (DeviceState::Lost, _) => DeviceCondition::Lost,
        (_, Health::Stalled) => DeviceCondition::Stalled,
        (_, Health::Out) => DeviceCondition::Out,
        (DeviceState::Recovering, _) => DeviceCondition::Recovering,
        (DeviceState::Ready, Health::ReadOnly) => DeviceCondition::ReadOnly,
        (DeviceState::Ready, Health::Well) => DeviceCondition::Well,
    }
}

fn spaces(control: &Control) -> Vec<SpaceStatus> {
    let one = |space: undercroft_core::SpaceInfo| SpaceStatus {
        domain: control.domains.name(space.domain).unwrap_or("unknown").to_owned(),
        digest: space.digest.to_hex(),
        page_bytes: space.page_bytes,
        pages: space.pages,
        probe: space
            .probe
            .map(|probe| probe.head().iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    };
    control.core.spaces().map(one).collect()
}

/// Those that are to be told of.
fn sessions(control: &Control, told: impl Fn(&Session) -> bool) -> Vec<SessionStatus> {
    let greeted = control.sessions.iter().filter(|(_, s)| s.mode.is_some() && told(s));
    let mut sessions: Vec<_> = greeted
        .map(|(id, session)| {
            let held = control.core.session_leases(*id);
            let (silent, alarm) = control.silence_of(session, held);
            SessionStatus {
                session: id.0,
                domain: session.domain_name().to_owned(),
                name: session.name.clone(),
                pid: session.peer.pid,
                uid: session.peer.uid,
                gid: session.peer.gid,
                mode: session.mode.unwrap_or(Mode::Copy),
                leases: held.leases,
                leased_pages: held.pages,
                lingering: session.is_lingering(),
                copy_reason: session.copy_reason,
                leased_bytes: held.bytes,
                silent_ms: silent.as_millis() as u64,
                process: alarm.unwrap_or_default(),
                alarm: alarm.is_some(),
                gpu: session.gpu.clone(),
            }
        })
        .collect();
    sessions.sort_by_key(|s| s.session);
    sessions
}

fn fallbacks(control: &Control) -> Vec<Fallback> {
    let mut fallbacks = control.fallbacks.clone();
    let facts = control.devices.iter().filter_map(Device::facts);
    for fallback in facts.flat_map(|facts| &facts.fallbacks) {
        if !fallbacks.contains(fallback) {
            fallbacks.push(fallback.clone());
        }
    }
    fallbacks
}

fn refused(control: &Control) -> Vec<String> {
    let mut lines = control.arena.refused();
    lines.extend(control.unkept());
    if control.is_blind
        && !control.domains.iter().all(|domain| control.arena.is_protected(domain.id))
    {
        let line = "processes of other users are hidden (ProtectProc=, hidepid): those in containers \
                    map the arena unless they are root";
        lines.push(line.to_owned());
    }
    for line in control.devices.iter().filter_map(Device::facts).flat_map(|facts| &facts.refused) {
        // All devices of a machine are mostly refused the same.
        if !lines.contains(line) {
            lines.push(line.clone());
        }
    }
    lines
}
