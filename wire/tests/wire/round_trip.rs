//! What one side says is what the other side hears, for every message.

use crate::{reply_frame, reply_of, request_frame, request_of, strategies};
use proptest::prelude::*;
use undercroft_wire::{RequestId, decode_request, split_frame};

proptest! {
    #[test]
    fn a_request_arrives_as_it_was_sent(
        number in any::<u32>(), message in strategies::request(),
    ) {
        let bytes = request_frame(RequestId(number), &message);
        prop_assert_eq!(request_of(&bytes).unwrap(), (RequestId(number), message));
    }

    #[test]
    fn a_reply_arrives_as_it_was_sent(number in any::<u32>(), message in strategies::reply()) {
        let bytes = reply_frame(RequestId(number), &message);
        prop_assert_eq!(reply_of(&bytes).unwrap(), (RequestId(number), message));
    }

    /// However the stream is cut into reads, the same messages come out.
    #[test]
    fn messages_are_found_in_a_stream(
        messages in prop::collection::vec(strategies::request(), 1..6),
        cut in 1_usize..200,
    ) {
        let mut stream = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            stream.extend(request_frame(RequestId(index as u32), message));
        }
        let mut buffer = Vec::new();
        let mut heard = Vec::new();
        for piece in stream.chunks(cut) {
            buffer.extend_from_slice(piece);
            while let Some((header, body, end)) = split_frame(&buffer).unwrap() {
                let (number, message) = decode_request(&header, body).unwrap();
                prop_assert_eq!(number, RequestId(heard.len() as u32));
                prop_assert_eq!(&message, &messages[heard.len()]);
                heard.push(number);
                buffer.drain(..end);
            }
        }
        prop_assert_eq!(heard.len(), messages.len());
        prop_assert!(buffer.is_empty());
    }
}
