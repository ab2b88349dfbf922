//! Protocol version 2, byte by byte: a change that breaks these bytes needs a new version.

use crate::{reply_frame, reply_of, request_frame, request_of, samples};
use std::collections::BTreeMap;
use undercroft_wire::{DomainId, PageKey, RequestId};

const FILE: &str = include_str!("../golden/protocol-v2.hex");
/// The request number of every sample: four different bytes, so that byte order shows.
const REQUEST: RequestId = RequestId(0x0403_0201);

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0, "whole bytes: {text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Name → bytes. Lines are `name hex`; `#` starts a comment.
fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = FILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, hex)| (name, unhex(hex))).collect()
}

#[test]
fn every_message_has_the_bytes_of_protocol_version_2() {
    let mut encoded = BTreeMap::new();
    for (name, message) in samples::requests() {
        encoded.insert(name, request_frame(REQUEST, &message));
    }
    for (name, message) in samples::replies() {
        encoded.insert(name, reply_frame(REQUEST, &message));
    }
    let golden = golden();
    let shown = |bytes: &BTreeMap<&str, Vec<u8>>| {
        bytes.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect::<String>()
    };
    assert!(encoded == golden, "the messages are now\n{}", shown(&encoded));
}

#[test]
fn the_golden_bytes_decode_and_encode_to_themselves() {
    let golden = golden();
    for (name, message) in samples::requests() {
        let (request, decoded) = request_of(&golden[name]).unwrap();
        assert_eq!((request, &decoded), (REQUEST, &message), "{name}");
        assert_eq!(request_frame(request, &decoded), golden[name], "{name}");
    }
    for (name, message) in samples::replies() {
        let (request, decoded) = reply_of(&golden[name]).unwrap();
        assert_eq!((request, &decoded), (REQUEST, &message), "{name}");
        assert_eq!(reply_frame(request, &decoded), golden[name], "{name}");
    }
}

#[test]
fn the_header_is_laid_out_as_documented() {
    let bytes = &golden()["ping"];
    assert_eq!(hex(bytes), "5543465402000c000000000001020304");
    assert_eq!(&bytes[0..4], b"UCFT");
}

#[test]
fn every_kind_has_a_golden_message() {
    let kind = |bytes: &[u8]| u16::from_le_bytes([bytes[6], bytes[7]]);
    let mut kinds: Vec<u16> = golden().values().map(|bytes| kind(bytes)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, (1..=21).chain(101..=120).collect::<Vec<u16>>());
}

/// Digests and keys name pages on disk and between nodes: they never change.
#[test]
fn digests_and_keys_are_what_they_always_were() {
    let family = samples::family().digest();
    let mut chain = undercroft_wire::Chain::new(&family, b"salt");
    let first = chain.push(&[1, 2, 3]);
    let second = chain.push(&[4, 5, 6]);
    let engine = PageKey::from_engine_hash(&family, &[7; 32]);
    let found = [
        ("family", hex(&family.0)),
        ("space", hex(&samples::space().digest().0)),
        ("first page", hex(&first.0)),
        ("second page", hex(&second.0)),
        ("engine hash", hex(&engine.0)),
        ("domain", hex(&DomainId::named("tenant-a").0)),
    ];
    let wanted = [
        ("family", "71b9f9a0ae951c87057bc2e87c0914be7ba277845e922b81e3c1aba202ac79b5"),
        ("space", "3482d569e5034aa97f9fd630abd70ec9832690c0d9c07486ace767afa0b4465f"),
        ("first page", "964a44a49c4bf25c267309a8b0934aeb7d64fae7fc885c146cce6ff6cdebe888"),
        ("second page", "e6da35fc32d4c43e5bff323c11b88627b73437102e178aee6418f3b5e8cdc1dd"),
        ("engine hash", "b17dbdc225b8259d875e98ca8b5be7ce93b8031dea5464944ed8d3c5ca4c48de"),
        ("domain", "17136414cac2fe628ec3d6d758104bc9"),
    ];
    assert_eq!(found, wanted.map(|(name, hex)| (name, hex.to_owned())));
}
