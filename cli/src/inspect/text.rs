//! A store as lines for people.

use super::json::hex;
use super::{Key, Log, View};
use std::fmt::Display;
use undercroft_kvstore::inspect::{
    Damage, KeptPurges, RecordFacts, SegmentContents, SegmentFacts, SegmentState, SuperblockCopy,
    Verification,
};

/// Damaged records that are shown by name; `--json` has more.
const NAMED: usize = 20;

pub(super) fn show(log: &Log, view: &View) -> String {
    let mut out = Lines::default();
    head(log, &mut out);
    match view {
        View::Segments(segments) => list(segments, &mut out),
        View::Records(contents) => records(contents, &mut out),
        View::Record { segment, record, damage } => one_record(segment, record, *damage, &mut out),
        View::Verified(segments, verified) => {
            list(segments, &mut out);
            verification(verified, &mut out);
        }
    }
    out.text
}

fn head(log: &Log, out: &mut Lines) {
    let facts = log.inspector.facts();
    out.line("log", format!("{}, {}", log.inspector.path().display(), bytes(facts.file_bytes)));
    if facts.file_bytes != facts.expected_bytes {
        let expected = bytes(facts.expected_bytes);
        out.line("", format!("it should have {expected}: its end is missing or left over"));
    }
    if log.in_use {
        out.line("", "a daemon has it open: what it does meanwhile is seen half done");
    }
    out.line(
        "store",
        format!(
            "{}, format version {}, opened {} times",
            hex(&facts.store),
            facts.format_version,
            facts.generation
        ),
    );
    let copies = facts.superblocks.map(|copy| match copy {
        SuperblockCopy::Valid { generation } => format!("generation {generation}"),
        SuperblockCopy::Damaged => "damaged".to_owned(),
        SuperblockCopy::Missing => "missing".to_owned(),
    });
    out.line("heads", format!("{} at 0, {} at 4096", copies[0], copies[1]));
    out.line("purges", purges(log.inspector.purges()));
    let hidden = "records of encrypted segments are not shown";
    out.line(
        "key",
        match &log.key {
            Key::NotNeeded => "none: the store was never encrypted".to_owned(),
            Key::Fits(file) => file.display().to_string(),
            Key::Missing(file) => format!("not found at {}: {hidden}", file.display()),
            Key::Unusable(why) => format!("{why}: {hidden}"),
        },
    );
}

fn purges(kept: &KeptPurges) -> String {
    match kept {
        KeptPurges::Known(list) => match list.purges().len() {
            0 => "none remembered".to_owned(),
            count => format!("{count} remembered, the newest {}", list.last()),
        },
        KeptPurges::Unknown => {
            "the list beside the log cannot be read: no record here is believed".to_owned()
        }
    }
}

fn list(segments: &[SegmentFacts], out: &mut Lines) {
    let count = |state| segments.iter().filter(|segment| segment.state == state).count();
    let states = [
        SegmentState::Sealed,
        SegmentState::Unsealed,
        SegmentState::Freed,
        SegmentState::Free,
        SegmentState::Damaged,
        SegmentState::Unreadable,
    ];
    let counts = states.map(|name| (count(name), state(name)));
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, name)| format!("{count} {name}")).collect();
    out.line("segments", format!("{}: {}", segments.len(), counts.join(", ")));
    let shown = segments.iter().filter(|segment| segment.state != SegmentState::Free);
    if shown.clone().next().is_some() {
        out.text
            .push_str("\n segment  state       use           records       pages  protection\n");
    }
    for segment in shown {
        one_segment(segment, out);
    }
}

fn one_segment(facts: &SegmentFacts, out: &mut Lines) {
    let pages = facts.page_bytes.map_or("-".to_owned(), bytes);
    let protection = match (facts.segment_use, facts.encrypted) {
        (None, _) => "-",
        (_, true) => "aes-256-gcm",
        (_, false) => "none",
    };
    out.text.push_str(&format!(
        "{:>8}  {:<10}  {:<12} {:>8}  {pages:>10}  {protection}",
        facts.segment.0,
        state(facts.state),
        use_name(facts),
        facts.records,
    ));
    if facts.void_records > 0 {
        out.text.push_str(&format!(", {} void", facts.void_records));
    }
    if facts.damaged_tables > 0 {
        out.text.push_str(&format!(", {} damaged table blocks", facts.damaged_tables));
    }
    out.text.push('\n');
}

fn records(contents: &SegmentContents, out: &mut Lines) {
    list(std::slice::from_ref(&contents.facts), out);
    if contents.records.is_empty() {
        return;
    }
    let header = "\n  record  domain            space             key               depth       bytes      offset\n";
    out.text.push_str(header);
    for record in &contents.records {
        let identity = &record.identity;
        out.text.push_str(&format!(
            "{:>8}  {}  {}  {}  {:>5}  {:>10}  {:>10}{}\n",
            record.record,
            &hex(&identity.domain.0)[..16],
            identity.space,
            &hex(&identity.key.0)[..16],
            identity.depth,
            identity.page_bytes,
            record.offset,
            match record {
                _ if record.void => "  void",
                _ if record.purged == Some(true) => "  purged",
                _ => "",
            },
        ));
    }
}

fn one_record(
    segment: &SegmentFacts,
    record: &RecordFacts,
    damage: Option<Damage>,
    out: &mut Lines,
) {
    let identity = &record.identity;
    let sealed = if record.sealed { "sealed" } else { "not sealed" };
    out.line(
        "record",
        format!(
            "{} of segment {} in its use {}, {sealed}",
            record.record,
            segment.segment,
            use_name(segment)
        ),
    );
    out.line("domain", identity.domain);
    out.line("space", hex(&identity.space.0));
    out.line("key", hex(&identity.key.0));
    out.line("parent", identity.parent.map_or("none".to_owned(), |parent| hex(&parent.0)));
    out.line("depth", identity.depth);
    out.line("page", format!("{} bytes at {} of the file", identity.page_bytes, record.offset));
    let purged = if record.purged == Some(true) { ", purged since" } else { "" };
    out.line(
        "origin",
        format!(
            "stored by user {} at {} s since 1970, after purge {}{purged}",
            record.origin.writer, record.origin.born, record.origin.purge
        ),
    );
    out.line("crc", format!("{:016x}", record.payload_crc));
    out.line("proof", format!("{} {}", proof_kind(record), hex(&record.proof)));
    out.line(
        "verdict",
        match damage {
            _ if record.void => "void: its write failed, and there is nothing to read",
            None => "whole",
            Some(damage) => damage_words(damage),
        },
    );
}

fn verification(verified: &Verification, out: &mut Lines) {
    out.text.push('\n');
    for record in verified.damaged.iter().take(NAMED) {
        let sealed = if record.sealed { "" } else { " (no seal speaks for it)" };
        out.line(
            "damaged",
            format!(
                "segment {} record {}: {}{sealed}",
                record.segment,
                record.record,
                damage_words(record.damage)
            ),
        );
    }
    let more = verified.damaged_records.saturating_sub(NAMED as u64);
    if more > 0 {
        out.line("", format!("and {more} more"));
    }
    out.line(
        "verified",
        format!(
            "{} records of {} whole, {} damaged",
            verified.records,
            bytes(verified.page_bytes),
            verified.damaged_records
        ),
    );
    let losses = [
        (verified.damaged_tables, "table blocks damaged: what they named is lost"),
        (verified.damaged_headers, "segment headers damaged: what they headed is lost"),
        (verified.damaged_superblocks, "superblock damaged: the other one serves"),
        (verified.unreadable_segments, "segments unreadable"),
        (verified.missing_bytes, "bytes missing at the end of the file"),
    ];
    for (count, what) in losses.iter().filter(|(count, _)| *count > 0) {
        out.line("", format!("{count} {what}"));
    }
}

pub(super) fn state(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Free => "free",
        SegmentState::Freed => "freed",
        SegmentState::Sealed => "sealed",
        SegmentState::Unsealed => "unsealed",
        SegmentState::Damaged => "damaged",
        SegmentState::Unreadable => "unreadable",
    }
}

pub(super) fn proof_kind(record: &RecordFacts) -> &'static str {
    if record.encrypted { "aes-256-gcm" } else { "crc-64-nvme" }
}

fn damage_words(damage: Damage) -> &'static str {
    match damage {
        Damage::Corrupt => "damaged: its bytes do not agree with its proof",
        Damage::Outside => "damaged: its table puts it outside its segment",
        Damage::Unreadable => "unreadable",
    }
}

/// A use as people can tell them apart: which opening of the store began it, and its number.
fn use_name(facts: &SegmentFacts) -> String {
    facts.segment_use.map_or("-".to_owned(), |segment_use| {
        format!("{}:{}", segment_use.0 >> 32, segment_use.0 & u64::from(u32::MAX))
    })
}

fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, name: &str, value: impl Display) {
        self.text.push_str(&format!("{name:<9}{value}\n"));
    }
}
