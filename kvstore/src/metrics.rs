//! Prometheus text made from a status report, so that both always say the same.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use undercroft_wire::{SsdStatus, StatusReport};

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
        out.counter("lookup_keys", "Keys asked for", report.hits.keys)?;
        out.counter("lookup_prefix_pages", "Leading pages found", report.hits.prefix_pages)?;
        out.counter("hit_dram_pages", "Pages delivered from DRAM", report.hits.dram_pages)?;
        out.counter("hit_ssd_pages", "Pages delivered after an SSD read", report.hits.ssd_pages)?;
        out.counter("fetch_incomplete", "Fetches cut short", report.hits.incomplete_fetches)?;
        out.counter("offered_pages", "Keys offered", report.stores.offered)?;
        out.counter("stored_pages", "Pages stored", report.stores.stored)?;
        out.counter("held_pages", "Offered keys already held", report.stores.held)?;
        out.counter("declined_pages", "Offered keys declined", report.stores.declined)?;
        out.counter("failed_pages", "Pages whose copy failed", report.stores.failed)?;
        match &report.ssd {
            Some(ssd) => out.ssd(ssd),
            None => Ok(()),
        }
    }
}

struct Out<'a, 'b> {
    encoder: &'a mut DescriptorEncoder<'b>,
}

impl Out<'_, '_> {
    fn ssd(&mut self, ssd: &SsdStatus) -> Result<(), std::fmt::Error> {
        self.gauge("ssd_capacity_bytes", "Capacity of SSD", ssd.tier.capacity_bytes as f64)?;
        self.gauge("ssd_used_bytes", "Bytes of pages on SSD", ssd.tier.used_bytes as f64)?;
        self.gauge("ssd_pages", "Pages on SSD", ssd.tier.pages as f64)?;
        self.counter("ssd_evicted_pages", "Pages dropped from SSD", ssd.tier.evicted_pages)?;
        self.counter("ssd_written_bytes", "Record bytes written", ssd.written_bytes)?;
        self.counter("ssd_reappended_bytes", "Record bytes re-appended", ssd.reappended_bytes)?;
        self.counter("ssd_read_bytes", "Record bytes read", ssd.read_bytes)?;
        self.counter("ssd_corrupt_records", "Records that failed proof", ssd.corrupt_records)?;
        self.counter("ssd_corrupt_tables", "Table batches that failed proof", ssd.corrupt_tables)?;
        self.counter("ssd_io_errors", "Failed reads and writes", ssd.io_errors)?;
        self.gauge(
            "ssd_unreachable_pages",
            "Pages without ancestors",
            ssd.unreachable_pages as f64,
        )?;
        let uring = if ssd.engine == "io_uring" { 1.0 } else { 0.0 };
        self.gauge("ssd_io_uring", "1 if io_uring is in use, 0 for threads", uring)
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

    #[test]
    fn the_report_is_there_in_prometheus_words() {
        let mut report = StatusReport::default();
        report.hits.dram_pages = 7;
        report.ssd = Some(SsdStatus { engine: "io_uring".to_owned(), ..SsdStatus::default() });
        let text = encode(&report);
        assert!(text.contains("undercroft_hit_dram_pages_total 7\n"), "{text}");
        assert!(text.contains("undercroft_ssd_io_uring 1.0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
