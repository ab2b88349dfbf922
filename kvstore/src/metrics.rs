//! Prometheus text made from a status report, so that both always say the same.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use undercroft_wire::{
    DeviceCondition, LoadStatus, MissStatus, PrefetchStatus, SsdDeviceStatus, SsdStatus,
    StatusReport, WearStatus,
};

/// The report as OpenMetrics text.
pub(crate) fn encode(report: &StatusReport) -> String {
    let mut registry = Registry::with_prefix("undercroft");
    registry.register_collector(Box::new(Snapshot(report.clone())));
    let mut out = String::new();
    if text::encode(&mut out, &registry).is_err() {
        tracing::error!("metrics could not be written");
    }
    out
}

#[derive(Debug)]
struct Snapshot(StatusReport);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let report = &self.0;
        let mut out = Out { encoder: &mut encoder };
        out.gauge("uptime_seconds", "Time since start", report.uptime_ms as f64 / 1e3)?;
        out.seconds("cpu_seconds", "Processor time used, user and system", report.cpu_s)?;
        out.gauge("sessions", "Sessions connected", report.sessions.len() as f64)?;
        out.counter(
            "protocol_errors",
            "Sessions closed for malformed messages",
            report.protocol_errors,
        )?;
        out.gauge("arena_bytes", "Bytes of the arena", report.arena.bytes as f64)?;
        out.gauge("dram_capacity_bytes", "Capacity of DRAM", report.dram.capacity_bytes as f64)?;
        out.gauge("dram_used_bytes", "Resident bytes in DRAM", report.dram.used_bytes as f64)?;
        out.gauge("dram_pages", "Resident pages in DRAM", report.dram.pages as f64)?;
        out.counter("dram_evicted_pages", "Pages evicted from DRAM", report.dram.evicted_pages)?;
        out.counter("lookups", "Lookups answered", report.hits.lookups)?;
        out.counter("board_lookups", "Of these, by the board", report.hits.board_lookups)?;
        out.counter("lookup_keys", "Keys asked for", report.hits.keys)?;
        out.counter("lookup_prefix_pages", "Leading pages found", report.hits.prefix_pages)?;
        out.counter("hit_dram_pages", "Pages delivered from DRAM", report.hits.dram_pages)?;
        out.counter("hit_ssd_pages", "Pages delivered after an SSD read", report.hits.ssd_pages)?;
        out.misses(&report.hits.misses)?;
        out.counter("fetch_incomplete", "Fetches cut short", report.hits.incomplete_fetches)?;
        out.counter("offered_pages", "Keys offered", report.stores.offered)?;
        out.counter("stored_pages", "Pages stored", report.stores.stored)?;
        out.counter("held_pages", "Offered keys already held", report.stores.held)?;
        out.counter("declined_pages", "Offered keys declined", report.stores.declined)?;
        out.counter("failed_pages", "Pages whose copy failed", report.stores.failed)?;
        out.loads(&report.loads)?;
        out.gauge("open_descriptors", "Descriptors that are open", report.descriptors.into())?;
        let help = "Spaces refused to clients that name pages otherwise than others";
        out.counter("refused_probes", help, report.refused_probes)?;
        out.silence(report)?;
        match &report.ssd {
            Some(ssd) => out.ssd(ssd),
            None => Ok(()),
        }
    }
}

/// A text as a label's value: the library writes values as they are.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

struct Out<'a, 'b> {
    encoder: &'a mut DescriptorEncoder<'b>,
}

/// One number of each SSD.
type Each = fn(&SsdDeviceStatus) -> u64;

const SSD_GAUGES: [(&str, &str, Each); 10] = [
    ("ssd_capacity_bytes", "Capacity of SSD", |d| d.tier.capacity_bytes),
    ("ssd_used_bytes", "Bytes of pages on SSD", |d| d.tier.used_bytes),
    ("ssd_pages", "Pages on SSD", |d| d.tier.pages),
    ("ssd_segments", "Segments, spare ones included", |d| d.segments.into()),
    ("ssd_free_segments", "Free segments", |d| d.free_segments.into()),
    ("ssd_queue_depth", "Page transfers that may be in flight", |d| d.queue_depth.into()),
    ("ssd_unproved_records", "Records yet to prove themselves", |d| d.unproved_records),
    ("ssd_read_bytes_per_second", "Speed of reads, as measured", |d| d.read_bytes_per_s),
    ("ssd_read_latency_microseconds", "Time before a read's first byte", |d| d.read_latency_us),
    ("ssd_io_uring", "1 if io_uring is in use", |d| u64::from(d.engine == "io_uring")),
];

/// One number of each SSD's wear.
type EachWear = fn(&WearStatus) -> Option<f64>;

const WEAR_GAUGES: [(&str, &str, EachWear); 3] = [
    ("ssd_day_written_bytes", "Bytes written in the last day", |w| Some(w.day_bytes as f64)),
    ("ssd_drive_writes_per_day", "Times the capacity is written in a day", |w| {
        w.drive_writes_per_day
    }),
    ("ssd_life_years", "Years until the endurance is used up at this rate", |w| w.life_years),
];

const SSD_COUNTERS: [(&str, &str, Each); 12] = [
    ("ssd_evicted_pages", "Pages dropped from SSD", |d| d.tier.evicted_pages),
    ("ssd_written_bytes", "Record bytes written", |d| d.written_bytes),
    ("ssd_reappended_bytes", "Record bytes re-appended", |d| d.reappended_bytes),
    ("ssd_read_bytes", "Record bytes read", |d| d.read_bytes),
    ("ssd_zeroed_bytes", "Bytes zeroed ahead of their first use", |d| d.zeroed_bytes),
    ("ssd_recovered_records", "Records found at start", |d| d.recovered_records),
    ("ssd_proved_records", "Recovered records that proved themselves", |d| d.proved_records),
    ("ssd_disproved_records", "Recovered records that did not", |d| d.disproved_records),
    ("ssd_corrupt_records", "Records that failed proof", |d| d.corrupt_records),
    ("ssd_corrupt_tables", "Table batches that failed proof", |d| d.corrupt_tables),
    ("ssd_io_errors", "Failed reads, writes and flushes", |d| d.io_errors),
    ("ssd_stalls", "Times the device's answers were overdue", |d| d.stalls),
];

const CONDITIONS: [(&str, DeviceCondition); 6] = [
    ("recovering", DeviceCondition::Recovering),
    ("well", DeviceCondition::Well),
    ("stalled", DeviceCondition::Stalled),
    ("read-only", DeviceCondition::ReadOnly),
    ("out", DeviceCondition::Out),
    ("lost", DeviceCondition::Lost),
];

impl Out<'_, '_> {
    fn ssd(&mut self, ssd: &SsdStatus) -> Result<(), std::fmt::Error> {
        for (name, help, each) in SSD_GAUGES {
            let mut family = self.family(name, help, MetricType::Gauge)?;
            for (number, device) in ssd.devices.iter().enumerate() {
                let labels = [("device", number.to_string())];
                ConstGauge::new(each(device) as f64).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, each) in SSD_COUNTERS {
            let mut family = self.family(name, help, MetricType::Counter)?;
            for (number, device) in ssd.devices.iter().enumerate() {
                let labels = [("device", number.to_string())];
                ConstCounter::new(each(device)).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "1 for the condition the device is in";
        let mut family = self.family("ssd_condition", help, MetricType::Gauge)?;
        for (number, device) in ssd.devices.iter().enumerate() {
            for (name, condition) in CONDITIONS {
                let labels = [("device", number.to_string()), ("condition", name.to_owned())];
                let is = f64::from(u8::from(device.condition == condition));
                ConstGauge::new(is).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = self.family("ssd_path", "Where a device lies", MetricType::Gauge)?;
        for (number, device) in ssd.devices.iter().enumerate() {
            let labels = [("device", number.to_string()), ("path", label(&device.path))];
            ConstGauge::new(1.0).encode(family.encode_family(&labels)?)?;
        }
        let (name, pages) = ("ssd_unreachable_pages", ssd.unreachable_pages);
        self.gauge(name, "Pages without ancestors", pages as f64)?;
        let help = "Pages that were not worth writing, or not to be paid for";
        self.counter("ssd_refused_pages", help, ssd.refused_pages)?;
        let help = "Of these, pages that the write budget had nothing left for";
        self.counter("ssd_over_budget_pages", help, ssd.over_budget_pages)?;
        let PrefetchStatus { pages, used_pages, wasted_pages, wasted_bytes } = ssd.prefetch;
        self.counter("prefetched_pages", "Pages read before anybody fetched them", pages)?;
        self.counter("prefetched_used_pages", "Of these, pages fetched in time", used_pages)?;
        self.counter("prefetched_wasted_pages", "And pages that nobody fetched", wasted_pages)?;
        self.counter("prefetched_wasted_bytes", "Bytes of these", wasted_bytes)?;
        self.wear(&ssd.devices)
    }

    /// How fast the devices wear out. What is not known yet is left out.
    fn wear(&mut self, devices: &[SsdDeviceStatus]) -> Result<(), std::fmt::Error> {
        for (name, help, each) in WEAR_GAUGES {
            let mut family = self.family(name, help, MetricType::Gauge)?;
            for (number, device) in devices.iter().enumerate() {
                if let Some(value) = each(&device.wear) {
                    let labels = [("device", number.to_string())];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    /// Lookups by why their first missing page was not there.
    fn misses(&mut self, misses: &[MissStatus]) -> Result<(), std::fmt::Error> {
        let help = "Lookups by why the first page they did not find was not there";
        let mut family = self.family("lookup_misses", help, MetricType::Counter)?;
        for MissStatus { cause, lookups } in misses {
            let labels = [("cause", cause.name())];
            ConstCounter::new(*lookups).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// What the cost model said, and how right it was.
    fn loads(&mut self, loads: &LoadStatus) -> Result<(), std::fmt::Error> {
        for (name, help, value) in [
            ("load_trimmed_lookups", "Lookups not all worth loading", loads.trimmed_lookups),
            ("load_trimmed_pages", "Pages found and not worth loading", loads.trimmed_pages),
            ("load_behind_fetches", "Fetches that fell behind computing", loads.behind_fetches),
            ("load_behind_pages", "Pages of these that were missing then", loads.behind_pages),
            ("load_weighed_fetches", "Fetches weighed against computing", loads.weighed_fetches),
            ("load_expected_fetches", "Of these, whole ones from SSD", loads.expected_fetches),
        ] {
            self.counter(name, help, value)?;
        }
        for (name, help, us) in [
            ("load_expected_seconds", "Time these were expected to take", loads.expected_us),
            ("load_taken_seconds", "Time they took", loads.taken_us),
            ("load_error_seconds", "Difference of the two, fetch by fetch", loads.error_us),
            ("load_saved_seconds", "Time saved against computing", loads.saved_us),
            ("load_lost_seconds", "Time lost against computing", loads.lost_us),
        ] {
            self.seconds(name, help, us as f64 / 1e6)?;
        }
        Ok(())
    }

    /// Processes that hold frames and say nothing.
    fn silence(&mut self, report: &StatusReport) -> Result<(), std::fmt::Error> {
        let help = "Times a process was found to hold frames in silence";
        self.counter("lease_alarms", help, report.lease_alarms)?;
        let help = "Bytes of frames held by a process that says nothing";
        let mut family = self.family("silent_leased_bytes", help, MetricType::Gauge)?;
        for session in report.sessions.iter().filter(|session| session.alarm) {
            let labels = [
                ("session", session.session.to_string()),
                ("domain", label(&session.domain)),
                ("pid", session.pid.to_string()),
            ];
            ConstGauge::new(session.leased_bytes as f64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn family(
        &mut self,
        name: &'static str,
        help: &str,
        metric: MetricType,
    ) -> Result<MetricEncoder<'_>, std::fmt::Error> {
        self.encoder.encode_descriptor(name, help, None, metric)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
        self.put(name, help, &ConstCounter::new(value))
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> Result<(), std::fmt::Error> {
        self.put(name, help, &ConstCounter::new(value))
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), std::fmt::Error> {
        self.put(name, help, &ConstGauge::new(value))
    }

    fn put<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        metric: &M,
    ) -> Result<(), std::fmt::Error> {
        let one = self.encoder.encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undercroft_wire::{MissCause, Mode, ProcessState, SessionStatus};

    #[test]
    fn the_report_is_there_in_prometheus_words() {
        let mut report = StatusReport::default();
        report.hits.dram_pages = 7;
        let misses = [(MissCause::NeverStored, 5), (MissCause::Evicted, 0)];
        report.hits.misses = misses.map(|(cause, lookups)| MissStatus { cause, lookups }).to_vec();
        let device = SsdDeviceStatus {
            path: "/a \"b\"".to_owned(),
            engine: "io_uring".to_owned(),
            condition: DeviceCondition::ReadOnly,
            stalls: 3,
            ..SsdDeviceStatus::default()
        };
        let devices = vec![SsdDeviceStatus::default(), device];
        report.ssd = Some(SsdStatus { devices, ..SsdStatus::default() });
        let one = |pid, alarm| SessionStatus {
            session: 5,
            domain: "tenant".to_owned(),
            name: String::new(),
            pid,
            uid: 0,
            gid: 0,
            mode: Mode::ZeroCopy,
            leases: 1,
            leased_pages: 1,
            lingering: false,
            copy_reason: None,
            leased_bytes: 4096,
            silent_ms: 0,
            process: ProcessState::Unknown,
            alarm,
            gpu: None,
        };
        report.sessions = vec![one(77, true), one(78, false)];
        report.lease_alarms = 3;
        let text = encode(&report);
        assert!(!text.contains("pid=\"78\""), "{text}");
        for line in [
            "undercroft_lease_alarms_total 3",
            "undercroft_silent_leased_bytes{session=\"5\",domain=\"tenant\",pid=\"77\"} 4096.0",
            "undercroft_hit_dram_pages_total 7",
            "undercroft_lookup_misses_total{cause=\"never-stored\"} 5",
            "undercroft_lookup_misses_total{cause=\"evicted\"} 0",
            "undercroft_ssd_io_uring{device=\"0\"} 0.0",
            "undercroft_ssd_io_uring{device=\"1\"} 1.0",
            "undercroft_ssd_stalls_total{device=\"1\"} 3",
            "undercroft_ssd_condition{device=\"0\",condition=\"recovering\"} 1.0",
            "undercroft_ssd_condition{device=\"1\",condition=\"read-only\"} 1.0",
            "undercroft_ssd_condition{device=\"1\",condition=\"well\"} 0.0",
            "undercroft_ssd_path{device=\"1\",path=\"/a \\\"b\\\"\"} 1.0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("# TYPE undercroft_ssd_stalls counter").count(), 1, "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
