use super::AheadReport;
use serde::Serialize;

/// What a replay measured. Serializes as the JSON of schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplayReport {
    /// Version of this layout: 1.
    pub schema: u32,
    /// Requests replayed.
    pub requests: u64,
    /// Pages they asked for, repeated ones included.
    pub pages: u64,
    /// Leading pages that were delivered to the device.
    pub prefix_hits: u64,
    /// Of all pages asked for, the share that was a prefix hit.
    pub prefix_hit_ratio: f64,
    /// Where the hits came from.
    pub hits: HitPages,
    /// Bytes in the device that were not what they should be.
    pub wrong_bytes: u64,
    /// Pages stored.
    pub stored_pages: u64,
    /// Pages offered and declined: no credits, no room, no parent.
    pub declined: u64,
    /// Bytes of records the daemon wrote to SSD.
    pub ssd_bytes_written: u64,
    /// Of these, bytes that reclaim wrote again.
    pub ssd_bytes_reappended: u64,
    /// All bytes written to SSD over those that were not written again; 1 if there were none.
    pub write_amplification: f64,
    /// Pages on SSD at the end that no lookup can reach because an ancestor is gone.
    pub unreachable_pages: u64,
    /// Bytes of records the daemon read from SSD.
    pub ssd_bytes_read: u64,
    /// Round trips of lookups, microseconds.
    pub lookup_us: LookupTimes,
    /// Fetch and scatter into the device, 10⁹ bytes a second.
    pub fetch_gbps: f64,
    /// Gather, check and store, 10⁹ bytes a second.
    pub store_gbps: f64,
    /// Processor time of the daemon, seconds.
    pub daemon_cpu_s: f64,
    /// The whole replay, seconds; reading the trace and starting the daemon not included.
    pub wall_s: f64,
    /// Different pages of the whole trace.
    pub distinct_pages: u64,
    /// Capacity of the benchmark's own daemon, pages; absent with `--socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dram_pages: Option<u64>,
    /// Capacity of the benchmark's own daemon, pages; absent with `--socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssd_pages: Option<u64>,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Clients that ran.
    pub clients: u32,
    /// Whether requests came strictly one after another.
    pub serial: bool,
    /// Bytes verified in the device.
    pub verified_bytes: u64,
    /// Pages that were to be stored and were there already.
    pub held_pages: u64,
    /// Pages whose copy failed.
    pub failed_pages: u64,
    /// Pages whose fate is unknown because the daemon went away.
    pub unsettled_pages: u64,
    /// Fetches that delivered less than their lookup had found.
    pub cut_fetches: u64,
    /// Lookups that got no answer.
    pub unanswered_lookups: u64,
    /// Calls that came back after their deadline.
    pub overdue_calls: u64,
    /// How often the benchmark's own daemon died and was started again.
    pub daemon_restarts: u32,
    /// The first faults seen, in words.
    pub faults: Vec<String>,
    /// Only with `--speed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_time: Option<AheadReport>,
}

/// Prefix hits by tier, pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct HitPages {
    /// Delivered from host memory.
    pub dram: u64,
    /// Delivered after a read from SSD.
    pub ssd: u64,
}

/// Percentiles, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LookupTimes {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl ReplayReport {
    /// Whether every byte was right and every call was back in time.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.wrong_bytes == 0 && self.overdue_calls == 0
    }

    /// The report for people, a few lines.
    #[must_use]
    pub fn summary(&self) -> String {
        let share = |pages: u64| 100.0 * pages as f64 / self.pages.max(1) as f64;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "requests     {} in {:.1} s, {} pages of {} bytes ({} distinct in the trace)\n\
             prefix hits  {} pages, {:.2} % (dram {:.2} %, ssd {:.2} %)\n\
             verified     {:.0} MiB, wrong bytes {}\n\
             stored       {} pages, declined {}\n\
             ssd          {:.0} MiB written ({:.0} MiB re-appended), {:.0} MiB read\n\
             \x20            write amplification {:.3}, unreachable pages {}\n\
             lookup       p50 {:.1} us, p99 {:.1} us\n\
             fetch        {:.2} GB/s    store {:.2} GB/s\n\
             daemon cpu   {:.2} s\n",
            self.requests,
            self.wall_s,
            self.pages,
            self.page_bytes,
            self.distinct_pages,
            self.prefix_hits,
            100.0 * self.prefix_hit_ratio,
            share(self.hits.dram),
            share(self.hits.ssd),
            mib(self.verified_bytes),
            self.wrong_bytes,
            self.stored_pages,
            self.declined,
            mib(self.ssd_bytes_written),
            mib(self.ssd_bytes_reappended),
            mib(self.ssd_bytes_read),
            self.write_amplification,
            self.unreachable_pages,
            self.lookup_us.p50,
            self.lookup_us.p99,
            self.fetch_gbps,
            self.store_gbps,
            self.daemon_cpu_s,
        );
        if let Some(in_time) = &self.in_time {
            text.push_str(&in_time.summary());
        }
        for (count, what) in [
            (self.cut_fetches, "fetches were cut short"),
            (self.unanswered_lookups, "lookups got no answer"),
            (self.unsettled_pages + self.failed_pages, "pages failed to be stored"),
            (self.overdue_calls, "calls came back after their deadline"),
            (self.daemon_restarts.into(), "times the daemon died and was started again"),
        ] {
            if count > 0 {
                text.push_str(&format!("note         {count} {what}\n"));
            }
        }
        for fault in &self.faults {
            text.push_str(&format!("fault        {fault}\n"));
        }
        text
    }
}
