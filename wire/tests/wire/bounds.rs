//! Every limit, from both sides.

use crate::samples::{key, space};
use crate::{reply_frame, request_frame, request_of};
use undercroft_wire::*;

const REQUEST: RequestId = RequestId(7);

/// Puts a run of keys into a message.
type Carrier = fn(KeyRun<'static>) -> Request<'static>;
/// Spoils one field.
type Change = fn(&mut Space);

fn lookup(spaces: usize, keys: usize) -> Vec<u8> {
    let spaces = (0..spaces).map(|index| SpaceId(u32::MAX - index as u32)).collect();
    let keys = KeyRun::from(vec![key(1); keys]);
    request_frame(
        REQUEST,
        &Request::Lookup(Lookup { spaces, keys, hold_ms: u32::MAX, rival: Rival::default() }),
    )
}

#[test]
fn a_run_may_have_65536_keys_and_no_more() {
    assert_eq!(MAX_KEYS, 65_536);
    // The longest lookup there is: every space, every key, every number at its widest.
    let longest = lookup(MAX_SPACES_PER_LOOKUP, MAX_KEYS);
    let (_, message) = request_of(&longest).unwrap();
    let Request::Lookup(message) = message else { panic!("a lookup was sent") };
    assert_eq!(message.keys.len(), MAX_KEYS);
    let error = request_of(&lookup(1, MAX_KEYS + 1)).unwrap_err();
    assert!(matches!(error, DecodeError::Body { kind: 3, .. }), "{error}");
}

#[test]
fn the_bound_on_keys_holds_in_every_message_that_carries_them() {
    let keys = |count| KeyRun::from(vec![key(1); count]);
    let carriers: [(u16, Carrier); 4] = [
        (4, |keys| {
            let source = FetchSource::Keys { keys };
            let (lease, stamp) = (LeaseId(1), Stamp(0));
            Request::Fetch(Fetch {
                space: SpaceId(1),
                lease,
                source,
                stamp,
                deadline_ms: 1,
                recompute_ns: 0,
            })
        }),
        (7, |keys| {
            let (parent, first, stamp) = (None, 0, Stamp(0));
            Request::Offer(Offer { space: SpaceId(1), parent, first, keys, stamp })
        }),
        (9, |keys| Request::Prefetch(Prefetch { space: SpaceId(1), keys, ttl_ms: 1 })),
        (10, |keys| Request::Hint(Hint { space: SpaceId(1), keys, kind: HintKind::Active })),
    ];
    for (kind, carrier) in carriers {
        request_of(&request_frame(REQUEST, &carrier(keys(MAX_KEYS)))).unwrap();
        let error = request_of(&request_frame(REQUEST, &carrier(keys(MAX_KEYS + 1)))).unwrap_err();
        assert!(matches!(error, DecodeError::Body { kind: found, .. } if found == kind), "{error}");
    }
}

#[test]
fn a_run_is_a_whole_number_of_keys() {
    for odd in [1_u8, 31, 33, 63] {
        // Prefetch: space 1, a byte string of `odd` bytes, ttl 0.
        let mut body = vec![1, odd];
        body.extend(vec![0; usize::from(odd) + 1]);
        let header = Header { version: 1, kind: 9, length: body.len() as u32, request: REQUEST };
        let error = decode_request(&header, &body).unwrap_err();
        assert!(matches!(error, DecodeError::Body { kind: 9, .. }), "{error}");
    }
}

#[test]
fn a_lookup_asks_about_1_to_256_spaces() {
    for good in [1, MAX_SPACES_PER_LOOKUP] {
        request_of(&lookup(good, 1)).unwrap();
    }
    for bad in [0, MAX_SPACES_PER_LOOKUP + 1] {
        let error = request_of(&lookup(bad, 1)).unwrap_err();
        let found = bad as u64;
        let wanted = DecodeError::Field { field: "lookup.spaces", found, allowed: "1..=256" };
        assert_eq!(error, wanted);
    }
}

#[test]
fn a_body_over_the_limit_is_refused_by_its_header_alone() {
    let header = |length: u32| {
        let mut bytes = request_frame(REQUEST, &Request::Ping);
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    // Only 16 bytes are there: nothing can have been allocated for the body.
    assert_eq!(split_frame(&header(MAX_BODY_BYTES)).unwrap(), None);
    for found in [MAX_BODY_BYTES + 1, u32::MAX] {
        let limit = MAX_BODY_BYTES;
        assert_eq!(split_frame(&header(found)), Err(DecodeError::TooLong { found, limit }));
    }
}

#[test]
fn an_offer_has_a_parent_exactly_when_it_does_not_start_the_chain() {
    let offer = |parent, first, keys: usize| {
        let keys = KeyRun::from(vec![key(1); keys]);
        let stamp = Stamp(0);
        let message = Request::Offer(Offer { space: SpaceId(1), parent, first, keys, stamp });
        request_of(&request_frame(REQUEST, &message)).map(drop)
    };
    offer(None, 0, 2).unwrap();
    offer(Some(key(1)), 1, 2).unwrap();
    offer(Some(key(1)), u32::MAX - 2, 2).unwrap();
    for error in [
        offer(None, 1, 2).unwrap_err(),
        offer(Some(key(1)), 0, 2).unwrap_err(),
        offer(Some(key(1)), u32::MAX - 1, 2).unwrap_err(),
    ] {
        assert!(matches!(error, DecodeError::Field { field: "offer.first", .. }), "{error}");
    }
}

#[test]
fn texts_about_a_gpu_are_short() {
    let report = |bytes: usize| GpuReport { store: "x".repeat(bytes), ..GpuReport::default() };
    let decoded =
        |bytes| request_of(&request_frame(REQUEST, &Request::Gpu(report(bytes)))).map(drop);
    decoded(MAX_GPU_TEXT_BYTES).unwrap();
    let error = decoded(MAX_GPU_TEXT_BYTES + 1).unwrap_err();
    assert!(matches!(error, DecodeError::Field { found: 129, .. }), "{error}");
}

#[test]
fn one_answer_explains_1_to_1024_lookups() {
    let decoded = |last| {
        let explain = Request::Explain(Explain { last, session: None });
        request_of(&request_frame(REQUEST, &explain)).map(drop)
    };
    for good in [1, MAX_EXPLAINED] {
        decoded(good).unwrap();
    }
    for bad in [0, MAX_EXPLAINED + 1] {
        let error = decoded(bad).unwrap_err();
        assert!(matches!(error, DecodeError::Field { field: "explain.last", .. }), "{error}");
    }
}

#[test]
fn as_much_as_an_answer_may_explain_fits_a_body() {
    let text = || "x".repeat(MAX_TEXT_BYTES);
    let miss = Miss {
        key: [u8::MAX; 8],
        cause: MissCause::OtherSpace,
        left_unix_s: Some(u32::MAX),
        held_in: Some(SpaceDigest([u8::MAX; 32])),
    };
    let looked = Looked {
        space: SpaceDigest([u8::MAX; 32]),
        spaces: u32::MAX,
        keys: u32::MAX,
        dram: u32::MAX,
        ssd: u32::MAX,
        miss: Some(miss),
    };
    let one = ExplainedLookup {
        unix_ms: u64::MAX,
        session: SessionId(u64::MAX),
        pid: u32::MAX,
        name: text(),
        domain: text(),
        finding: Finding::Looked(looked),
    };
    let lookups = vec![one; MAX_EXPLAINED as usize];
    let frame = reply_frame(REQUEST, &Reply::Explained(Explained { now_unix_ms: 0, lookups }));
    assert!(frame.len() - HEADER_BYTES <= MAX_BODY_BYTES as usize, "{} bytes", frame.len());
}

#[test]
fn causes_stand_in_their_order() {
    let places = MissCause::ALL.map(|cause| cause as usize);
    assert!(places.into_iter().eq(0..MissCause::ALL.len()), "each has its place");
}

#[test]
fn versions_are_negotiated_down_to_what_both_speak() {
    for (min, max, agreed) in [
        (2, 2, Some(2)),
        (1, 9, Some(2)),
        (0, 2, Some(2)),
        (3, 9, None),
        (0, 1, None),
        (9, 2, None),
        (u16::MAX, u16::MAX, None),
    ] {
        assert_eq!(negotiate(min, max), agreed, "{min}..={max}");
    }
}

#[test]
fn a_page_has_512_bytes_to_64_mib() {
    assert_eq!(Geometry::new(1, 1, MIN_PAGE_BYTES).unwrap().page_bytes(), MIN_PAGE_BYTES);
    assert_eq!(Geometry::new(64, 2, 512 << 10).unwrap().page_bytes(), MAX_PAGE_BYTES);
    for (layers, parts, fragment) in [(1, 1, 511), (64, 2, (512 << 10) + 1), (u32::MAX, 2, 9)] {
        let error = Geometry::new(layers, parts, fragment).unwrap_err();
        assert!(matches!(error, GeometryError::PageBytes { .. }), "{error}");
    }
    for (layers, parts, fragment) in [(0, 2, 512), (32, 0, 512), (32, 2, 0)] {
        let error = Geometry::new(layers, parts, fragment).unwrap_err();
        assert!(matches!(error, GeometryError::Zero { .. }), "{error}");
    }
    let scaled = Geometry::of_parts(32, &[4096, 4096, 128, 128]).unwrap();
    assert_eq!((scaled.parts(), scaled.layer_bytes()), (4, 8448));
    assert_eq!(scaled.page_bytes(), 32 * 8448);
    assert_eq!(Geometry::of_parts(3, &[512; 2]), Geometry::new(3, 2, 512));
    assert_eq!(Geometry::new(1, 8, 512).unwrap().parts(), MAX_PARTS as u32);
    for parts in [vec![512; 9], vec![1; 100]] {
        let error = Geometry::of_parts(1, &parts).unwrap_err();
        assert_eq!(error, GeometryError::Parts { found: parts.len() as u64 });
    }
    assert_eq!(Geometry::new(1, u32::MAX, 512), Err(GeometryError::Parts { found: 0xffff_ffff }));
    assert_eq!(Geometry::of_parts(1, &[]), Err(GeometryError::Zero { field: "parts" }));
    let hole = Geometry::of_parts(1, &[512, 0, 512]);
    assert_eq!(hole, Err(GeometryError::Zero { field: "fragment_bytes" }));
    let huge = Geometry::of_parts(u32::MAX, &[u32::MAX; MAX_PARTS]).unwrap_err();
    assert!(matches!(huge, GeometryError::PageBytes { .. }), "{huge}");
    assert_eq!(frame_bytes(1), FRAME_ALIGN);
    assert_eq!(frame_bytes(FRAME_ALIGN), FRAME_ALIGN);
    assert_eq!(frame_bytes(FRAME_ALIGN + 1), 2 * FRAME_ALIGN);
    assert_eq!(frame_bytes(MAX_PAGE_BYTES), MAX_PAGE_BYTES);
}

#[test]
fn an_identity_out_of_range_names_its_field() {
    let with = |change: Change| {
        let mut changed = space();
        change(&mut changed);
        changed.validate().map_err(|error| error.to_string())
    };
    with(|_| {}).unwrap();
    with(|space| space.family.layout = "x".repeat(MAX_TEXT_BYTES)).unwrap();
    with(|space| space.rank = Rank::Shared).unwrap();
    let refused: [(Change, &str); 8] = [
        (|space| space.family.quantization = "x".repeat(MAX_TEXT_BYTES + 1), "quantization"),
        (|space| space.family.attention = "x".repeat(MAX_TEXT_BYTES + 1), "attention"),
        (|space| space.family.layout = "x".repeat(MAX_TEXT_BYTES + 1), "layout"),
        (|space| space.family.layers = 0, "layers"),
        (|space| space.family.kv_heads = 0, "kv_heads"),
        (|space| space.family.page_tokens = 0, "page_tokens"),
        (|space| space.rank = Rank::Of { index: 4, count: 4 }, "rank"),
        (|space| space.rank = Rank::Of { index: 0, count: 0 }, "rank"),
    ];
    for (change, field) in refused {
        let error = with(change).unwrap_err();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn a_geometry_off_the_wire_is_checked_not_believed() {
    // OpenSpace ends with the geometry: 32 layers, 2 parts of 32,768 bytes, room for six more; and
    // no probe.
    let frame =
        request_frame(REQUEST, &Request::OpenSpace(OpenSpace { space: space(), probe: None }));
    let good = [32, 0x80, 0x80, 2, 0x80, 0x80, 2, 0, 0, 0, 0, 0, 0, 0];
    let start = frame.len() - good.len();
    assert_eq!(&frame[start..], good);
    let no_layer = [0, 0x80, 0x80, 2, 0x80, 0x80, 2, 0, 0, 0, 0, 0, 0, 0];
    let a_hole = [32, 0x80, 0x80, 2, 0, 0x80, 0x80, 2, 0, 0, 0, 0, 0, 0];
    let no_part = [32, 0, 0, 0, 0, 0, 0x80, 0x80, 2, 0x80, 0x80, 2, 0, 0];
    for bad in [no_layer, a_hole, no_part] {
        let mut bytes = frame[..start].to_vec();
        bytes.extend(bad);
        let (_, message) = request_of(&bytes).unwrap();
        let Request::OpenSpace(open) = message else { panic!("an open was sent") };
        let outcome = open.space.validate();
        assert!(matches!(outcome, Err(SpaceError::Geometry(_))), "{bad:?}: {outcome:?}");
    }
}

#[test]
fn outcome_bytes_are_stable_and_unknown_ones_are_none() {
    for (count, known) in [
        (7, (0..=u8::MAX).filter(|byte| OfferOutcome::from_byte(*byte).is_some()).count()),
        (5, (0..=u8::MAX).filter(|byte| CommitOutcome::from_byte(*byte).is_some()).count()),
        (8, (0..=u8::MAX).filter(|byte| FetchOutcome::from_byte(*byte).is_some()).count()),
    ] {
        assert_eq!(known, count);
    }
    for byte in 0..=u8::MAX {
        assert!(OfferOutcome::from_byte(byte).is_none_or(|outcome| outcome.to_byte() == byte));
        assert!(CommitOutcome::from_byte(byte).is_none_or(|outcome| outcome.to_byte() == byte));
        assert!(FetchOutcome::from_byte(byte).is_none_or(|outcome| outcome.to_byte() == byte));
    }
}
