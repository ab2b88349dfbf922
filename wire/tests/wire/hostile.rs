//! Bytes of somebody who means harm: an error every time, never a panic, never a message.

use crate::{reply_frame, request_frame, samples, strategies};
use proptest::prelude::*;
use undercroft_wire::{
    DecodeError, HEADER_BYTES, Header, MAGIC, PROTOCOL_MAX, RequestId, decode_reply,
    decode_request, split_frame,
};

const REQUEST: RequestId = RequestId(7);

/// The frame with the last `cut` bytes of its body gone and its header saying so.
fn shortened(frame: &[u8], cut: usize) -> Vec<u8> {
    let mut bytes = frame[..frame.len() - cut].to_vec();
    let length = (bytes.len() - HEADER_BYTES) as u32;
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Every prefix is incomplete; every body cut short, with a header that admits it, is malformed.
fn assert_no_part_decodes(
    frame: &[u8],
    decodes: impl Fn(&Header, &[u8]) -> Result<(), DecodeError>,
) {
    for end in 0..frame.len() {
        assert_eq!(split_frame(&frame[..end]).unwrap(), None, "{end} of {} bytes", frame.len());
    }
    for cut in 1..=frame.len() - HEADER_BYTES {
        let bytes = shortened(frame, cut);
        let (header, body, _) = split_frame(&bytes).unwrap().unwrap();
        let outcome = decodes(&header, body);
        assert!(matches!(outcome, Err(DecodeError::Body { .. })), "{cut} cut: {outcome:?}");
    }
}

#[test]
fn no_part_of_a_message_decodes() {
    for (_, message) in samples::requests() {
        assert_no_part_decodes(&request_frame(REQUEST, &message), |header, body| {
            decode_request(header, body).map(drop)
        });
    }
    for (_, message) in samples::replies() {
        assert_no_part_decodes(&reply_frame(REQUEST, &message), |header, body| {
            decode_reply(header, body).map(drop)
        });
    }
}

#[test]
fn bytes_after_a_body_are_refused() {
    for (name, message) in samples::requests() {
        let mut bytes = request_frame(REQUEST, &message);
        bytes.push(0);
        let bytes = shortened(&bytes, 0);
        let (header, body, _) = split_frame(&bytes).unwrap().unwrap();
        let outcome = decode_request(&header, body);
        let kind = header.kind;
        assert_eq!(outcome, Err(DecodeError::Trailing { kind, left: 1 }), "{name}");
    }
}

#[test]
fn a_kind_nobody_knows_is_refused_on_both_sides() {
    let known = |kind: u16| (1..=21).contains(&kind);
    let answers = |kind: u16| (101..=120).contains(&kind);
    for kind in 0..=u16::MAX {
        let header = Header { version: PROTOCOL_MAX, kind, length: 0, request: REQUEST };
        let unknown = Err(DecodeError::Kind { found: kind });
        assert_eq!(decode_request(&header, &[]).map(drop) == unknown, !known(kind), "{kind}");
        assert_eq!(decode_reply(&header, &[]).map(drop) == unknown, !answers(kind), "{kind}");
    }
}

#[test]
fn another_magic_and_another_version_are_refused_by_the_header_alone() {
    let good = request_frame(REQUEST, &undercroft_wire::Request::Ping);
    for index in 0..MAGIC.len() {
        let mut bytes = good.clone();
        bytes[index] ^= 0x20;
        let error = split_frame(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Magic { .. }), "{error}");
    }
    for version in [0_u16, 1, 3, 0x0100, u16::MAX] {
        let mut bytes = good.clone();
        bytes[4..6].copy_from_slice(&version.to_le_bytes());
        let error = split_frame(&bytes).unwrap_err();
        assert_eq!(error, DecodeError::Version { found: version, min: 2, max: 2 });
    }
}

/// The longest length a body may announce, with nothing behind it. Whoever believed it would ask
/// for all the memory there is and be aborted.
const PROMISE: [u8; 9] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];

fn header(kind: u16) -> Header {
    Header { version: PROTOCOL_MAX, kind, length: 0, request: REQUEST }
}

#[test]
fn a_list_that_promises_too_much_is_refused() {
    // Kind, and the body up to the length of its first list.
    let requests: [(u16, &[u8]); 7] = [
        (1, &[1, 3]),
        (3, &[]),
        (4, &[5, 1, 0]),
        (7, &[5, 0, 0]),
        (8, &[5, 1]),
        (9, &[5]),
        (10, &[5]),
    ];
    for (kind, start) in requests {
        let body = [start, &PROMISE].concat();
        let error = decode_request(&header(kind), &body).unwrap_err();
        assert!(matches!(error, DecodeError::Body { .. }), "{error}");
    }
    let replies: [(u16, &[u8]); 5] =
        [(105, &[1, 4]), (107, &[1]), (108, &[1]), (110, &[1]), (111, &[0])];
    for (kind, start) in replies {
        let body = [start, &PROMISE].concat();
        let error = decode_reply(&header(kind), &body).unwrap_err();
        assert!(matches!(error, DecodeError::Body { .. }), "{error}");
    }
}

#[test]
fn a_promise_anywhere_in_a_body_allocates_nothing() {
    for kind in (1..=19).chain(101..=118) {
        for fill in [0x00, 0x01, 0x7f] {
            for before in 0..120 {
                let mut body = vec![fill; before];
                body.extend(PROMISE);
                let _ = decode_request(&header(kind), &body);
                let _ = decode_reply(&header(kind), &body);
            }
        }
    }
}

proptest! {
    #[test]
    fn noise_never_panics(
        kind in 0_u16..130, body in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let header = Header { version: PROTOCOL_MAX, kind, length: body.len() as u32, request: REQUEST };
        let _ = decode_request(&header, &body);
        let _ = decode_reply(&header, &body);
        let _ = split_frame(&body);
    }

    /// A damaged request is an error or another well-formed request, never a panic; what it
    /// decodes to can be sent again.
    #[test]
    fn a_damaged_request_never_panics(
        message in strategies::request(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
    ) {
        let mut bytes = request_frame(REQUEST, &message);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(Some((header, body, _))) = split_frame(&bytes)
            && let Ok((number, heard)) = decode_request(&header, body)
        {
            let again = request_frame(number, &heard);
            prop_assert_eq!(crate::request_of(&again).unwrap(), (number, heard));
        }
    }

    #[test]
    fn a_damaged_reply_never_panics(
        message in strategies::reply(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
    ) {
        let mut bytes = reply_frame(REQUEST, &message);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(Some((header, body, _))) = split_frame(&bytes) {
            let _ = decode_reply(&header, body);
        }
    }
}
