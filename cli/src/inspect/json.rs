//! A store as JSON, schema 1.

use super::{Key, Log, View};
use serde_json::{Value, json};
use std::fmt::Write;
use undercroft_client::wire::{PurgeId, PurgeScope};
use undercroft_kvstore::inspect::{
    Damage, DamagedRecord, KeptPurges, RecordFacts, SegmentContents, SegmentFacts, SuperblockCopy,
    Verification,
};

pub(super) fn show(log: &Log, view: &View) -> String {
    let mut all = head(log);
    match view {
        View::Segments(segments) => all["segment_list"] = list(segments),
        View::Records(contents) => all["segment"] = with_records(contents),
        View::Record { segment, record, damage } => {
            all["segment"] = one_segment(segment);
            all["record"] = one_record(segment, record);
            all["record"]["damage"] = damage_name(*damage);
        }
        View::Verified(segments, verified) => {
            all["segment_list"] = list(segments);
            all["verified"] = verification(verified);
        }
    }
    // The alternate form is indented.
    format!("{all:#}\n")
}

fn head(log: &Log) -> Value {
    let facts = log.inspector.facts();
    let copies = facts.superblocks.map(|copy| match copy {
        SuperblockCopy::Valid { generation } => json!({"state": "valid", "generation": generation}),
        SuperblockCopy::Damaged => json!({"state": "damaged"}),
        SuperblockCopy::Missing => json!({"state": "missing"}),
    });
    let (key, key_file) = match &log.key {
        Key::NotNeeded => ("not needed", None),
        Key::Fits(file) => ("fits", Some(file)),
        Key::Missing(file) => ("missing", Some(file)),
        Key::Unusable(_) => ("unusable", None),
    };
    json!({
        "schema": 1,
        "path": log.inspector.path().display().to_string(),
        "in_use": log.in_use,
        "format_version": facts.format_version,
        "store": hex(&facts.store),
        "generation": facts.generation,
        "file_bytes": facts.file_bytes,
        "expected_bytes": facts.expected_bytes,
        "segments": facts.segments,
        "segment_bytes": facts.segment_bytes,
        "room_bytes": facts.room_bytes,
        "key_check": facts.key_check.map(|check| hex(&check)),
        "key": key,
        "key_file": key_file.map(|file| file.display().to_string()),
        "superblocks": copies,
        "purges": purges(log.inspector.purges()),
    })
}

/// `null`: the list cannot be read.
fn purges(kept: &KeptPurges) -> Value {
    let KeptPurges::Known(list) = kept else { return Value::Null };
    let one = |(scope, id): &(PurgeScope, PurgeId)| {
        json!({
            "purge": id.0,
            "domain": scope.domain.map(|domain| hex(&domain.0)),
            "space": scope.space.map(|space| hex(&space.0)),
            "writer": scope.writer,
        })
    };
    json!({
        "newest": list.last().0,
        "floor": list.floor().0,
        "list": list.purges().iter().map(one).collect::<Value>(),
    })
}

fn list(segments: &[SegmentFacts]) -> Value {
    segments.iter().map(one_segment).collect()
}

fn one_segment(facts: &SegmentFacts) -> Value {
    json!({
        "segment": facts.segment.0,
        "state": super::text::state(facts.state),
        "use": facts.segment_use.map(|segment_use| segment_use.0),
        "encrypted": facts.encrypted,
        "records": facts.records,
        "page_bytes": facts.page_bytes,
        "void_records": facts.void_records,
        "damaged_tables": facts.damaged_tables,
    })
}

fn with_records(contents: &SegmentContents) -> Value {
    let mut segment = one_segment(&contents.facts);
    let records = contents.records.iter().map(|record| one_record(&contents.facts, record));
    segment["record_list"] = records.collect();
    segment
}

fn one_record(segment: &SegmentFacts, record: &RecordFacts) -> Value {
    let identity = &record.identity;
    json!({
        "segment": segment.segment.0,
        "use": segment.segment_use.map(|segment_use| segment_use.0),
        "record": record.record,
        "domain": hex(&identity.domain.0),
        "space": hex(&identity.space.0),
        "key": hex(&identity.key.0),
        "parent": identity.parent.map(|parent| hex(&parent.0)),
        "depth": identity.depth,
        "page_bytes": identity.page_bytes,
        "writer": record.origin.writer,
        "born": record.origin.born,
        "purge": record.origin.purge.0,
        "purged": record.purged,
        "offset": record.offset,
        "void": record.void,
        "sealed": record.sealed,
        "payload_crc": format!("{:016x}", record.payload_crc),
        "proof_kind": super::text::proof_kind(record),
        "proof": hex(&record.proof),
    })
}

fn verification(verified: &Verification) -> Value {
    json!({
        "good": verified.is_good(),
        "records": verified.records,
        "page_bytes": verified.page_bytes,
        "damaged_records": verified.damaged_records,
        "damaged": verified.damaged.iter().map(damaged).collect::<Value>(),
        "damaged_tables": verified.damaged_tables,
        "damaged_headers": verified.damaged_headers,
        "damaged_superblocks": verified.damaged_superblocks,
        "unreadable_segments": verified.unreadable_segments,
        "missing_bytes": verified.missing_bytes,
    })
}

fn damaged(record: &DamagedRecord) -> Value {
    json!({
        "segment": record.segment.0,
        "use": record.segment_use.0,
        "sealed": record.sealed,
        "record": record.record,
        "damage": damage_name(Some(record.damage)),
    })
}

fn damage_name(damage: Option<Damage>) -> Value {
    damage.map_or(Value::Null, |damage| {
        Value::from(match damage {
            Damage::Corrupt => "corrupt",
            Damage::Outside => "outside",
            Damage::Unreadable => "unreadable",
        })
    })
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}
