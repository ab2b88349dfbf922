//! Tests of the wire format from outside: what another program would see.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod bounds;
mod digests;
mod golden;
mod hostile;
mod round_trip;
mod samples;
mod strategies;

use undercroft_wire::{
    DecodeError, Reply, Request, RequestId, decode_reply, decode_request, encode_reply,
    encode_request, split_frame,
};

/// One whole request frame.
fn request_frame(request: RequestId, message: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, request, message);
    bytes
}

/// One whole reply frame.
fn reply_frame(request: RequestId, message: &Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_reply(&mut bytes, request, message);
    bytes
}

/// Decodes one whole frame as a request.
fn request_of(bytes: &[u8]) -> Result<(RequestId, Request<'_>), DecodeError> {
    let (header, body, end) = split_frame(bytes)?.expect("a whole frame was given");
    assert_eq!(end, bytes.len(), "one frame and nothing after it");
    decode_request(&header, body)
}

/// Decodes one whole frame as a reply.
fn reply_of(bytes: &[u8]) -> Result<(RequestId, Reply), DecodeError> {
    let (header, body, end) = split_frame(bytes)?.expect("a whole frame was given");
    assert_eq!(end, bytes.len(), "one frame and nothing after it");
    decode_reply(&header, body)
}
