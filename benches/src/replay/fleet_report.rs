use super::fleet::{FleetOptions, Told};
use serde::Serialize;
use std::time::Duration;

/// Pages that a fleet may commit for each that one process does.
const MOST_COMMITTED: f64 = 1.02;

/// Several processes with one trace, beside one of them alone. Serializes as the JSON of schema 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FleetReport {
    /// Version of this layout: 1.
    pub schema: u32,
    /// Whether all looked up, then all stored, request by request.
    pub barrier: bool,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Requests each replayed.
    pub requests: u64,
    /// Pages each asked for.
    pub pages: u64,
    /// Prefix hits of the one alone, pages.
    pub alone_hits: u64,
    /// Pages committed with one alone.
    pub alone_committed_pages: u64,
    /// Pages committed with all of them.
    pub committed_pages: u64,
    /// The one over the other.
    pub committed_ratio: f64,
    /// Wrong bytes of all, the one alone included.
    pub wrong_bytes: u64,
    /// Bytes compared, of all.
    pub verified_bytes: u64,
    /// Each process.
    pub processes: Vec<FleetMember>,
    /// How long the fleet took, seconds.
    pub wall_s: f64,
    /// The first faults seen, in words.
    pub faults: Vec<String>,
}

/// One process of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FleetMember {
    /// Its prefix hits, pages.
    pub hits: u64,
    /// Requests that hit more pages than with one alone.
    pub requests_above: u64,
    /// Requests that hit fewer pages than with one alone.
    pub requests_below: u64,
    /// Pages it stored.
    pub stored_pages: u64,
    /// Pages it would have stored and others had.
    pub held_pages: u64,
    /// Pages it offered that were declined.
    pub declined_pages: u64,
    /// Calls after their deadline, unanswered lookups and fetches cut short.
    pub failed_calls: u64,
}

pub(super) struct Alone {
    pub(super) report: Told,
    pub(super) hits: Vec<u32>,
    pub(super) committed_pages: u64,
}

pub(super) struct Member {
    pub(super) report: Told,
    pub(super) hits: Vec<u32>,
}

impl FleetReport {
    pub(super) fn new(
        fleet: FleetOptions,
        page_bytes: u32,
        alone: Alone,
        members: Vec<Member>,
        committed_pages: u64,
        wall: Duration,
    ) -> Self {
        let all = || std::iter::once(&alone.report).chain(members.iter().map(|m| &m.report));
        let faults = all().flat_map(|told| told.faults.clone()).take(8).collect();
        let per_page = committed_pages as f64 / alone.committed_pages.max(1) as f64;
        Self {
            schema: 1,
            barrier: fleet.barrier,
            page_bytes,
            requests: alone.hits.len() as u64,
            pages: alone.report.pages,
            alone_hits: alone.report.prefix_hits,
            alone_committed_pages: alone.committed_pages,
            committed_pages,
            committed_ratio: per_page,
            wrong_bytes: all().map(|told| told.wrong_bytes).sum(),
            verified_bytes: all().map(|told| told.verified_bytes).sum(),
            processes: members.iter().map(|member| member.beside(&alone)).collect(),
            wall_s: wall.as_secs_f64(),
            faults,
        }
    }

    /// Whether sharing cost nobody anything: with a barrier each request of each process hits
    /// what it hits alone; without, none hits less in all. No wrong bytes, no late calls.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let hits = |member: &FleetMember| {
            if self.barrier {
                member.requests_above + member.requests_below == 0
            } else {
                member.hits >= self.alone_hits
            }
        };
        let well = |member: &FleetMember| hits(member) && member.failed_calls == 0;
        self.wrong_bytes == 0
            && self.committed_ratio <= MOST_COMMITTED
            && self.processes.iter().all(well)
    }

    /// The report for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let way = if self.barrier { "in step" } else { "each at its own pace" };
        let mut text = format!(
            "{} processes, {way}: {} requests, {} pages of {} bytes each, {:.1} s\n\
             {:<10} {:>10} {:>8} {:>8} {:>10} {:>10} {:>9} {:>7}\n\
             {:<10} {:>10} {:>8} {:>8} {:>10} {:>10} {:>9} {:>7}\n",
            self.processes.len(),
            self.requests,
            self.pages,
            self.page_bytes,
            self.wall_s,
            "process",
            "hits",
            "above",
            "below",
            "stored",
            "held",
            "declined",
            "failed",
            "alone",
            self.alone_hits,
            "-",
            "-",
            self.alone_committed_pages,
            "-",
            "-",
            "-",
        );
        for (index, member) in self.processes.iter().enumerate() {
            text.push_str(&format!(
                "{index:<10} {:>10} {:>8} {:>8} {:>10} {:>10} {:>9} {:>7}\n",
                member.hits,
                member.requests_above,
                member.requests_below,
                member.stored_pages,
                member.held_pages,
                member.declined_pages,
                member.failed_calls,
            ));
        }
        text.push_str(&format!(
            "committed  {} pages, {:.4} of one alone\nverified   {} MiB, wrong bytes {}\n",
            self.committed_pages,
            self.committed_ratio,
            self.verified_bytes >> 20,
            self.wrong_bytes,
        ));
        for fault in &self.faults {
            text.push_str(&format!("fault      {fault}\n"));
        }
        text
    }
}

impl Member {
    fn beside(&self, alone: &Alone) -> FleetMember {
        let differ = |order| {
            let pairs = self.hits.iter().zip(&alone.hits);
            pairs.filter(|(ours, theirs)| ours.cmp(theirs) == order).count() as u64
        };
        let missing = alone.hits.len().abs_diff(self.hits.len()) as u64;
        let Told { overdue_calls, unanswered_lookups, cut_fetches, .. } = self.report;
        FleetMember {
            hits: self.report.prefix_hits,
            requests_above: differ(std::cmp::Ordering::Greater),
            requests_below: differ(std::cmp::Ordering::Less) + missing,
            stored_pages: self.report.stored_pages,
            held_pages: self.report.held_pages,
            declined_pages: self.report.declined,
            failed_calls: overdue_calls + unanswered_lookups + cut_fetches,
        }
    }
}
