//! The frames on the socket.

use undercroft_wire::{
    DecodeError, Header, KeyRun, MAX_GPU_TEXT_BYTES, MAX_KEYS, MAX_PAGE_BYTES,
    MAX_SPACES_PER_LOOKUP, MIN_PAGE_BYTES, Reply, Request, RequestId, decode_reply, decode_request,
    encode_reply, encode_request, split_frame,
};

/// Every message of version 2, as the wire's own golden test holds it.
const GOLDEN: &str = include_str!("../../wire/tests/golden/protocol-v2.hex");

/// A stream of requests, and the same bytes as the body of one request.
pub fn wire_request(input: &[u8]) {
    let decode = |header: &Header, body: &[u8]| {
        let (request, message) = decode_request(header, body)?;
        check_request(request, &message);
        Ok(())
    };
    stream(input, decode);
    one_body(input, 1, 19, decode);
}

/// A stream of replies, and the same bytes as the body of one reply.
pub fn wire_reply(input: &[u8]) {
    let decode = |header: &Header, body: &[u8]| {
        let (request, message) = decode_reply(header, body)?;
        check_reply(request, &message);
        Ok(())
    };
    stream(input, decode);
    one_body(input, 101, 118, decode);
}

/// Decodes whole frames until one is refused, as a session does.
fn stream(mut input: &[u8], decode: impl Fn(&Header, &[u8]) -> Result<(), DecodeError>) {
    while let Ok(Some((header, body, end))) = split_frame(input) {
        if let Err(error) = decode(&header, body) {
            assert!(!error.to_string().is_empty());
            return;
        }
        input = &input[end..];
    }
}

/// Takes the first byte for the kind and the rest for the body: no header stands in the way.
fn one_body(
    input: &[u8],
    first: u16,
    last: u16,
    decode: impl Fn(&Header, &[u8]) -> Result<(), DecodeError>,
) {
    let Some((choice, body)) = input.split_first() else {
        return;
    };
    let kind = first + u16::from(*choice) % (last - first + 1);
    let header = Header { version: 1, kind, length: body.len() as u32, request: RequestId(1) };
    let _ = decode(&header, body);
}

/// What a decoded request promises to the daemon; and it means the same when it is sent again.
fn check_request(request: RequestId, message: &Request<'_>) {
    match message {
        Request::Lookup(lookup) => {
            assert!((1..=MAX_SPACES_PER_LOOKUP).contains(&lookup.spaces.len()));
            check_keys(&lookup.keys);
        }
        Request::Offer(offer) => {
            assert_eq!(offer.parent.is_some(), offer.first > 0);
            assert!(offer.first.checked_add(offer.keys.len() as u32).is_some());
            check_keys(&offer.keys);
        }
        Request::Prefetch(prefetch) => check_keys(&prefetch.keys),
        Request::Hint(hint) => check_keys(&hint.keys),
        Request::Gpu(gpu) => assert!(gpu.name.len().max(gpu.store.len()) <= MAX_GPU_TEXT_BYTES),
        Request::OpenSpace(open) if open.space.validate().is_ok() => {
            let page_bytes = open.space.geometry.page_bytes();
            assert!((MIN_PAGE_BYTES..=MAX_PAGE_BYTES).contains(&page_bytes));
            assert_eq!(open.space.digest(), open.space.clone().digest());
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    encode_request(&mut bytes, request, message);
    let (header, body, end) = split_frame(&bytes)
        .expect("what was decoded is in bounds")
        .expect("a whole frame was encoded");
    assert_eq!(end, bytes.len());
    let again = decode_request(&header, body).expect("what was decoded encodes to a message");
    assert_eq!(again.0, request);
    assert_eq!(again.1, *message);
}

fn check_keys(keys: &KeyRun<'_>) {
    assert!(keys.len() <= MAX_KEYS);
}

/// Compared by bytes: a status report may hold a number that is not equal to itself.
fn check_reply(request: RequestId, message: &Reply) {
    let encoded = |message: &Reply| {
        let mut bytes = Vec::new();
        encode_reply(&mut bytes, request, message);
        bytes
    };
    let bytes = encoded(message);
    let (header, body, _) = split_frame(&bytes)
        .expect("what was decoded is in bounds")
        .expect("a whole frame was encoded");
    let (_, again) = decode_reply(&header, body).expect("what was decoded encodes to a message");
    assert_eq!(encoded(&again), bytes);
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    seeds(1, 1..=19)
}

pub(crate) fn reply_seeds() -> Vec<Vec<u8>> {
    seeds(101, 101..=118)
}

/// Golden frames of these kinds, one by one, all in one stream, and each as a body alone.
fn seeds(first: u16, kinds: std::ops::RangeInclusive<u16>) -> Vec<Vec<u8>> {
    let frames: Vec<Vec<u8>> = GOLDEN
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(_, hex)| unhex(hex))
        .collect();
    let mut seeds = Vec::new();
    let mut all = Vec::new();
    for frame in frames {
        let kind = u16::from_le_bytes([frame[6], frame[7]]);
        if kinds.contains(&kind) {
            let mut body = vec![(kind - first) as u8];
            body.extend_from_slice(&frame[undercroft_wire::HEADER_BYTES..]);
            all.extend_from_slice(&frame);
            seeds.extend([frame, body]);
        }
    }
    seeds.push(all);
    seeds
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("golden bytes are hex"))
        .collect()
}
