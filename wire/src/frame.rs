use crate::message::{
    BoardAdded, Commit, CommitReply, DropHold, Fetch, FetchEnd, FetchReady, Give, Given, Heirloom,
    Hello, Hint, Lookup, LookupReply, Missed, Offer, OfferReply, OpenSpace, PartAdded, PartLetGo,
    PartRetired, Prefetch, PrefetchReply, Purge, Purged, Recorded, Refused, Release, Reply,
    Request, SpaceOpened, Take, TakenHold, Welcome,
};
use crate::{
    DecodeError, Explain, Explained, GpuReport, MAX_EXPLAINED, MAX_GPU_TEXT_BYTES,
    MAX_SPACES_PER_LOOKUP, MAX_TEXT_BYTES, RequestId, StatusReport,
};
use serde::{Deserialize, Serialize};

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"UCFT";
/// Length of the fixed header, bytes.
pub const HEADER_BYTES: usize = 16;
/// The longest body, bytes: 65,536 keys and room for the fields around them.
pub const MAX_BODY_BYTES: u32 = (2 << 20) + (64 << 10);
/// Oldest protocol version this build speaks.
pub const PROTOCOL_MIN: u16 = 2;
/// Newest protocol version this build speaks.
pub const PROTOCOL_MAX: u16 = 2;

/// The fixed header of a frame. All numbers little-endian: magic (4 bytes), version (2), kind
/// (2), body length (4), request (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Protocol version.
    pub version: u16,
    /// Which message.
    pub kind: u16,
    /// Body length, bytes.
    pub length: u32,
    /// Which request it is or answers; 0 if the daemon speaks unasked.
    pub request: RequestId,
}

/// A decoded message and what its header said.
pub type Decoded<T> = (RequestId, T);

/// A whole frame found at the front of a stream: its header, its body, and how many bytes both
/// took.
pub type Cut<'a> = (Header, &'a [u8], usize);

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.request.0.to_le_bytes());
        bytes
    }

    /// Reads and bounds a header before anything is allocated for its body.
    ///
    /// # Errors
    /// Wrong magic, a version outside this build's range, a body over [`MAX_BODY_BYTES`].
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let [m0, m1, m2, m3, v0, v1, k0, k1, l0, l1, l2, l3, r0, r1, r2, r3] = *bytes;
        let found = [m0, m1, m2, m3];
        if found != MAGIC {
            return Err(DecodeError::Magic { found, expected: MAGIC });
        }
        let version = u16::from_le_bytes([v0, v1]);
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&version) {
            let (min, max) = (PROTOCOL_MIN, PROTOCOL_MAX);
            return Err(DecodeError::Version { found: version, min, max });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > MAX_BODY_BYTES {
            return Err(DecodeError::TooLong { found: length, limit: MAX_BODY_BYTES });
        }
        let request = RequestId(u32::from_le_bytes([r0, r1, r2, r3]));
        Ok(Self { version, kind: u16::from_le_bytes([k0, k1]), length, request })
    }
}

/// Cuts the first whole frame off `bytes`. `None` while more bytes are needed.
///
/// # Errors
/// As [`Header::parse`].
pub fn split_frame(bytes: &[u8]) -> Result<Option<Cut<'_>>, DecodeError> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header::parse(head)?;
    let end = HEADER_BYTES + header.length as usize;
    Ok(bytes.get(HEADER_BYTES..end).map(|body| (header, body, end)))
}

/// The newest version both sides speak; `None` if there is none.
#[must_use]
pub fn negotiate(min: u16, max: u16) -> Option<u16> {
    let version = max.min(PROTOCOL_MAX);
    (version >= min.max(PROTOCOL_MIN)).then_some(version)
}

fn put<T: Serialize>(out: &mut Vec<u8>, kind: u16, request: RequestId, body: &T) {
    let start = out.len();
    let header = Header { version: PROTOCOL_MAX, kind, length: 0, request };
    out.extend_from_slice(&header.to_bytes());
    *out = postcard::to_extend(body, std::mem::take(out))
        .expect("serializing a message into memory cannot fail");
    let length = (out.len() - start - HEADER_BYTES) as u32;
    out[start + 8..start + 12].copy_from_slice(&length.to_le_bytes());
}

fn take<'a, T: Deserialize<'a>>(header: &Header, body: &'a [u8]) -> Result<T, DecodeError> {
    let kind = header.kind;
    let (value, left) = postcard::take_from_bytes(body)
        .map_err(|e| DecodeError::Body { kind, reason: e.to_string() })?;
    if left.is_empty() { Ok(value) } else { Err(DecodeError::Trailing { kind, left: left.len() }) }
}

/// Appends a request's frame to `out`.
pub fn encode_request(out: &mut Vec<u8>, request: RequestId, message: &Request<'_>) {
    match message {
        Request::Hello(body) => put(out, 1, request, body),
        Request::OpenSpace(body) => put(out, 2, request, body),
        Request::Lookup(body) => put(out, 3, request, body),
        Request::Fetch(body) => put(out, 4, request, body),
        Request::Release(body) => put(out, 5, request, body),
        Request::DropHold(body) => put(out, 6, request, body),
        Request::Offer(body) => put(out, 7, request, body),
        Request::Commit(body) => put(out, 8, request, body),
        Request::Prefetch(body) => put(out, 9, request, body),
        Request::Hint(body) => put(out, 10, request, body),
        Request::Status => put(out, 11, request, &()),
        Request::Ping => put(out, 12, request, &()),
        Request::Give(body) => put(out, 13, request, body),
        Request::Take(body) => put(out, 14, request, body),
        Request::PartLetGo(body) => put(out, 15, request, body),
        Request::Purge(body) => put(out, 16, request, body),
        Request::TakeOver => put(out, 17, request, &()),
        Request::Gpu(body) => put(out, 18, request, body),
        Request::Missed(body) => put(out, 19, request, body),
        Request::Record => put(out, 20, request, &()),
        Request::Explain(body) => put(out, 21, request, body),
    }
}

/// Decodes a request's body, borrowing key runs from it.
///
/// # Errors
/// An unknown kind, a malformed body, or a field out of range.
pub fn decode_request<'a>(
    header: &Header,
    body: &'a [u8],
) -> Result<Decoded<Request<'a>>, DecodeError> {
    let message = match header.kind {
        1 => Request::Hello(take::<Hello>(header, body)?),
        2 => Request::OpenSpace(take::<OpenSpace>(header, body)?),
        3 => Request::Lookup(check_lookup(take::<Lookup<'a>>(header, body)?)?),
        4 => Request::Fetch(take::<Fetch<'a>>(header, body)?),
        5 => Request::Release(take::<Release>(header, body)?),
        6 => Request::DropHold(take::<DropHold>(header, body)?),
        7 => Request::Offer(check_offer(take::<Offer<'a>>(header, body)?)?),
        8 => Request::Commit(take::<Commit>(header, body)?),
        9 => Request::Prefetch(take::<Prefetch<'a>>(header, body)?),
        10 => Request::Hint(take::<Hint<'a>>(header, body)?),
        11 => take::<()>(header, body).map(|()| Request::Status)?,
        12 => take::<()>(header, body).map(|()| Request::Ping)?,
        13 => Request::Give(take::<Give>(header, body)?),
        14 => Request::Take(take::<Take>(header, body)?),
        15 => Request::PartLetGo(take::<PartLetGo>(header, body)?),
        16 => Request::Purge(check_purge(take::<Purge>(header, body)?)?),
        17 => take::<()>(header, body).map(|()| Request::TakeOver)?,
        18 => Request::Gpu(check_gpu(take::<GpuReport>(header, body)?)?),
        19 => Request::Missed(take::<Missed>(header, body)?),
        20 => take::<()>(header, body).map(|()| Request::Record)?,
        21 => Request::Explain(check_explain(take::<Explain>(header, body)?)?),
        found => return Err(DecodeError::Kind { found }),
    };
    Ok((header.request, message))
}

fn check_lookup(lookup: Lookup<'_>) -> Result<Lookup<'_>, DecodeError> {
    let found = lookup.spaces.len();
    if found == 0 || found > MAX_SPACES_PER_LOOKUP {
        return Err(DecodeError::Field {
            field: "lookup.spaces",
            found: found as u64,
            allowed: "1..=256",
        });
    }
    Ok(lookup)
}

fn check_purge(purge: Purge) -> Result<Purge, DecodeError> {
    let found = purge.domain.as_ref().map_or(0, String::len);
    if found > MAX_TEXT_BYTES {
        let (field, allowed) = ("purge.domain", "at most 256 bytes");
        return Err(DecodeError::Field { field, found: found as u64, allowed });
    }
    Ok(purge)
}

fn check_explain(explain: Explain) -> Result<Explain, DecodeError> {
    if !(1..=MAX_EXPLAINED).contains(&explain.last) {
        let found = explain.last.into();
        return Err(DecodeError::Field { field: "explain.last", found, allowed: "1..=1024" });
    }
    Ok(explain)
}

fn check_gpu(gpu: GpuReport) -> Result<GpuReport, DecodeError> {
    let texts = [&gpu.name, &gpu.load, &gpu.load_by_layer, &gpu.store];
    let found = texts.map(String::len).into_iter().max().unwrap_or(0);
    if found > MAX_GPU_TEXT_BYTES {
        let (field, allowed) = ("gpu.name, load, load_by_layer, store", "at most 128 bytes each");
        return Err(DecodeError::Field { field, found: found as u64, allowed });
    }
    Ok(gpu)
}

fn check_offer(offer: Offer<'_>) -> Result<Offer<'_>, DecodeError> {
    let consistent = offer.parent.is_some() == (offer.first > 0);
    if !consistent {
        return Err(DecodeError::Field {
            field: "offer.first",
            found: u64::from(offer.first),
            allowed: "0 exactly when there is no parent",
        });
    }
    if offer.first.checked_add(offer.keys.len() as u32).is_none() {
        return Err(DecodeError::Field {
            field: "offer.first",
            found: u64::from(offer.first),
            allowed: "first + keys must fit 32 bits",
        });
    }
    Ok(offer)
}

/// Appends a reply's frame to `out`.
pub fn encode_reply(out: &mut Vec<u8>, request: RequestId, message: &Reply) {
    match message {
        Reply::Welcome(body) => put(out, 101, request, body),
        Reply::PartAdded(body) => put(out, 102, request, body),
        Reply::SpaceOpened(body) => put(out, 103, request, body),
        Reply::Lookup(body) => put(out, 104, request, body),
        Reply::FetchReady(body) => put(out, 105, request, body),
        Reply::FetchEnd(body) => put(out, 106, request, body),
        Reply::Offer(body) => put(out, 107, request, body),
        Reply::Commit(body) => put(out, 108, request, body),
        Reply::Prefetch(body) => put(out, 109, request, body),
        Reply::Status(body) => put(out, 110, request, body),
        Reply::Refused(body) => put(out, 111, request, body),
        Reply::Done => put(out, 112, request, &()),
        Reply::BoardAdded(body) => put(out, 113, request, body),
        Reply::PartRetired(body) => put(out, 114, request, body),
        Reply::Given(body) => put(out, 115, request, body),
        Reply::TakenHold(body) => put(out, 116, request, body),
        Reply::Purged(body) => put(out, 117, request, body),
        Reply::Heirloom(body) => put(out, 118, request, body),
        Reply::Recorded(body) => put(out, 119, request, body),
        Reply::Explained(body) => put(out, 120, request, body),
    }
}

/// Decodes a reply's body.
///
/// # Errors
/// An unknown kind or a malformed body.
pub fn decode_reply(header: &Header, body: &[u8]) -> Result<Decoded<Reply>, DecodeError> {
    let message = match header.kind {
        101 => Reply::Welcome(take::<Welcome>(header, body)?),
        102 => Reply::PartAdded(take::<PartAdded>(header, body)?),
        103 => Reply::SpaceOpened(take::<SpaceOpened>(header, body)?),
        104 => Reply::Lookup(take::<LookupReply>(header, body)?),
        105 => Reply::FetchReady(take::<FetchReady>(header, body)?),
        106 => Reply::FetchEnd(take::<FetchEnd>(header, body)?),
        107 => Reply::Offer(take::<OfferReply>(header, body)?),
        108 => Reply::Commit(take::<CommitReply>(header, body)?),
        109 => Reply::Prefetch(take::<PrefetchReply>(header, body)?),
        110 => Reply::Status(Box::new(take::<StatusReport>(header, body)?)),
        111 => Reply::Refused(take::<Refused>(header, body)?),
        112 => take::<()>(header, body).map(|()| Reply::Done)?,
        113 => Reply::BoardAdded(take::<BoardAdded>(header, body)?),
        114 => Reply::PartRetired(take::<PartRetired>(header, body)?),
        115 => Reply::Given(take::<Given>(header, body)?),
        116 => Reply::TakenHold(take::<TakenHold>(header, body)?),
        117 => Reply::Purged(take::<Purged>(header, body)?),
        118 => Reply::Heirloom(take::<Heirloom>(header, body)?),
        119 => Reply::Recorded(take::<Recorded>(header, body)?),
        120 => Reply::Explained(take::<Explained>(header, body)?),
        found => return Err(DecodeError::Kind { found }),
    };
    Ok((header.request, message))
}
