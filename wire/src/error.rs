use thiserror::Error;

/// Why bytes from a peer could not be understood. Every one of them closes the session.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame does not start with the protocol's magic.
    #[error("bad magic {found:02x?}, expected {expected:02x?}")]
    Magic {
        /// The four bytes found.
        found: [u8; 4],
        /// The four bytes of the protocol.
        expected: [u8; 4],
    },
    /// The frame's version is not the one agreed in the hello.
    #[error("protocol version {found} is outside {min}..={max}")]
    Version {
        /// The version in the header.
        found: u16,
        /// The oldest version this build speaks.
        min: u16,
        /// The newest version this build speaks.
        max: u16,
    },
    /// The announced body is larger than any message may be.
    #[error("message body of {found} bytes exceeds the limit of {limit} bytes")]
    TooLong {
        /// Announced body length, bytes.
        found: u32,
        /// The limit, bytes.
        limit: u32,
    },
    /// A message kind this build does not know.
    #[error("unknown message kind {found}")]
    Kind {
        /// The kind in the header.
        found: u16,
    },
    /// The body is not what its kind announces.
    #[error("malformed body of message kind {kind}: {reason}")]
    Body {
        /// The kind in the header.
        kind: u16,
        /// What the decoder stumbled over.
        reason: String,
    },
    /// The body decoded but bytes were left over.
    #[error("{left} bytes left over after the body of message kind {kind}")]
    Trailing {
        /// The kind in the header.
        kind: u16,
        /// How many bytes were left.
        left: usize,
    },
    /// A field is outside its allowed range.
    #[error("field {field} is {found}, allowed {allowed}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What was found.
        found: u64,
        /// What is allowed, for people.
        allowed: &'static str,
    },
}
