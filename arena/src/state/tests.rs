#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod cut;
mod golden;
mod model;
mod refusals;
mod room;

use super::*;
use crate::FileId;
use proptest::prelude::*;
use std::collections::BTreeMap;
use undercroft_wire::{DomainId, LeaseId, PageKey, SpaceDigest};

/// So tiny that every table is full sometimes.
const TINY: StateLimits = StateLimits {
    max_parts: 2,
    max_part_bytes: 16 * 4096,
    max_slabs: 3,
    max_spaces: 2,
    max_sessions: 2,
    max_leased_pages: 4,
};

fn tiny() -> State {
    State::create(Epoch(7), &TINY).unwrap()
}

/// What the next daemon finds.
fn again(state: State) -> State {
    let fd = rustix::io::dup(state.fd()).unwrap();
    drop(state);
    State::adopt(fd).unwrap()
}

/// Everything that can be read back, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Snapshot {
    parts: BTreeMap<u32, PartRow>,
    spaces: BTreeMap<u32, SpaceRow>,
    slabs: BTreeMap<(u32, u64), SlabRow>,
    frames: BTreeMap<(u32, u64), FrameRow>,
    sessions: BTreeMap<u64, SessionRow>,
    leases: BTreeMap<(u64, u64, u32), LeaseRow>,
}

fn unique<K: Ord + std::fmt::Debug, V>(rows: impl Iterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    for (key, value) in rows {
        let name = format!("{key:?}");
        assert!(map.insert(key, value).is_none(), "{name} was read twice");
    }
    map
}

impl Snapshot {
    fn of(state: &State) -> Self {
        let of_parts = state.parts().flat_map(|part| state.frames_of(part.part));
        assert!(of_parts.eq(state.frames()), "part by part it is the same");
        let lease = |row: LeaseRow| ((row.session.0, row.lease.0, row.index), row);
        Self {
            parts: unique(state.parts().map(|row| (row.part.0, row))),
            spaces: unique(state.spaces().map(|row| (row.space.0, row))),
            slabs: unique(state.slabs().map(|row| ((row.part.0, row.offset), row))),
            frames: unique(state.frames().map(|row| ((row.part.0, row.offset), row))),
            sessions: unique(state.sessions().map(|row| (row.session.0, row))),
            leases: unique(state.leased_pages().map(lease)),
        }
    }
}

fn domain(number: u32) -> DomainId {
    DomainId::named(&format!("domain {number}"))
}

/// A page of which every field follows from one number: a mixture of two is seen.
fn page(number: u64) -> PageRow {
    let key = |of: u64| {
        let mut bytes = [0; 32];
        for (at, chunk) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *chunk = (of ^ (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
        }
        PageKey(bytes)
    };
    PageRow {
        space: SpaceId(number as u32),
        key: key(number),
        parent: (!number.is_multiple_of(3)).then(|| key(number + 1)),
        depth: number as u32 ^ 1,
        crc: !number,
        heat: number,
        generation: number as u32 ^ 2,
        writer: number as u32 ^ 3,
        born: number as u32 ^ 4,
        purged: number.is_multiple_of(5),
    }
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
enum Op {
    Part { part: u32, units: u64 },
    Retiring { part: u32 },
    PartGone { part: u32 },
    Space { space: u32 },
    SpaceProbed { space: u32, probe: u8 },
    SpaceGone { space: u32 },
    Slab { part: u32, unit: u64, frames: u64, frame_units: u32 },
    SlabGone { part: u32, unit: u64 },
    Filling { part: u32, unit: u64 },
    Filled { part: u32, unit: u64, page: u64 },
    Gone { part: u32, unit: u64 },
    Touched { part: u32, unit: u64, heat: u64 },
    Session { session: u64 },
    SessionGone { session: u64 },
    Leased { session: u64, lease: u64, index: u32, part: u32, unit: u64 },
    Released { session: u64, lease: u64, upto: u32 },
}

fn part_row(part: u32, units: u64) -> PartRow {
    PartRow {
        part: PartId(part),
        domain: domain(part),
        bytes: units * 4096,
        board_offset: 64 + units,
        file: FileId { device: 3, inode: units + 1 },
        retiring: false,
    }
}

fn space_row(space: u32) -> SpaceRow {
    let digest = SpaceDigest([space as u8 + 1; 32]);
    let (domain, page_bytes) = (domain(space), space + 1);
    SpaceRow { space: SpaceId(space), domain, digest, page_bytes, probe: None }
}

fn slab_row(part: u32, unit: u64, frames: u64, frame_units: u32) -> SlabRow {
    let frame_bytes = frame_units * 4096;
    let bytes = frames * u64::from(frame_bytes);
    SlabRow { part: PartId(part), offset: unit * 4096, bytes, frame_bytes }
}

fn session_row(session: u64) -> SessionRow {
    let (session, pid) = (SessionId(session), session as u32 + 1000);
    SessionRow { session, pid, started: session.0 + 9, domain: domain(session.0 as u32) }
}

fn apply(state: &mut State, op: Op) -> Result<(), Unkept> {
    match op {
        Op::Part { part, units } => state.part_added(&part_row(part, units))?,
        Op::Retiring { part } => state.part_retiring(PartId(part))?,
        Op::PartGone { part } => state.part_gone(PartId(part)),
        Op::Space { space } => state.space(&space_row(space))?,
        Op::SpaceProbed { space, probe } => {
            state.space_probed(SpaceId(space), PageKey([probe; 32]))?;
        }
        Op::SpaceGone { space } => state.space_gone(SpaceId(space)),
        Op::Slab { part, unit, frames, frame_units } => {
            state.slab(&slab_row(part, unit, frames, frame_units))?;
        }
        Op::SlabGone { part, unit } => state.slab_gone(PartId(part), unit * 4096),
        Op::Filling { part, unit } => state.filling(PartId(part), unit * 4096)?,
        Op::Filled { part, unit, page: number } => {
            state.filled(PartId(part), unit * 4096, &page(number))?;
        }
        Op::Gone { part, unit } => state.gone(PartId(part), unit * 4096)?,
        Op::Touched { part, unit, heat } => {
            state.touched(PartId(part), unit * 4096, heat)?;
        }
        Op::Session { session } => state.session(&session_row(session))?,
        Op::SessionGone { session } => state.session_gone(SessionId(session)),
        Op::Leased { session, lease, index, part, unit } => {
            let (session, lease) = (SessionId(session), LeaseId(lease));
            state.leased(session, lease, index, PartId(part), unit * 4096)?;
        }
        Op::Released { session, lease, upto } => {
            state.released(SessionId(session), LeaseId(lease), upto);
        }
    }
    Ok(())
}

fn ops() -> impl Strategy<Value = Op> {
    let (part, unit) = (0..3u32, 0..18u64);
    let place = (part.clone(), unit.clone());
    prop_oneof![
        3 => (part.clone(), 0..18u64).prop_map(|(part, units)| Op::Part { part, units }),
        1 => part.clone().prop_map(|part| Op::Retiring { part }),
        1 => part.prop_map(|part| Op::PartGone { part }),
        1 => (0..3u32).prop_map(|space| Op::Space { space }),
        1 => (0..3u32).prop_map(|space| Op::SpaceGone { space }),
        4 => (place.clone(), 0..6u64, 0..4u32)
            .prop_map(|((part, unit), frames, frame_units)| Op::Slab { part, unit, frames, frame_units }),
        1 => place.clone().prop_map(|(part, unit)| Op::SlabGone { part, unit }),
        6 => place.clone().prop_map(|(part, unit)| Op::Filling { part, unit }),
        9 => (place.clone(), any::<u64>())
            .prop_map(|((part, unit), page)| Op::Filled { part, unit, page }),
        3 => place.clone().prop_map(|(part, unit)| Op::Gone { part, unit }),
        3 => (place.clone(), any::<u64>())
            .prop_map(|((part, unit), heat)| Op::Touched { part, unit, heat }),
        3 => (1..4u64).prop_map(|session| Op::Session { session }),
        1 => (1..4u64).prop_map(|session| Op::SessionGone { session }),
        9 => (1..4u64, 0..2u64, 0..4u32, place).prop_map(
            |(session, lease, index, (part, unit))| Op::Leased { session, lease, index, part, unit }
        ),
        2 => (1..4u64, 0..2u64, prop_oneof![0..4u32, Just(u32::MAX)])
            .prop_map(|(session, lease, upto)| Op::Released { session, lease, upto }),
    ]
}

/// What makes most of what follows possible, so that random places hit something.
const SETTLED: [Op; 6] = [
    Op::Part { part: 0, units: 16 },
    Op::Slab { part: 0, unit: 0, frames: 4, frame_units: 1 },
    Op::Slab { part: 0, unit: 4, frames: 3, frame_units: 3 },
    Op::Session { session: 1 },
    Op::Filled { part: 0, unit: 1, page: 11 },
    Op::Filled { part: 0, unit: 7, page: 77 },
];

#[test]
fn a_spaces_probe_takes_its_rows_place() {
    let mut state = tiny();
    let (one, other) = (PageKey([1; 32]), PageKey([2; 32]));
    assert!(matches!(state.space_probed(SpaceId(0), one), Err(Unkept::Conflict { .. })));
    state.space(&space_row(0)).unwrap();
    for probe in [one, other] {
        state.space_probed(SpaceId(0), probe).unwrap();
        state = again(state);
        let row = SpaceRow { probe: Some(probe), ..space_row(0) };
        assert_eq!((state.odd(), state.spaces().collect::<Vec<_>>()), (0, vec![row]));
    }
    // There is no row but those that are taken.
    state.space(&space_row(1)).unwrap();
    state.space_probed(SpaceId(1), one).unwrap();
    let state = again(state);
    let probes = state.spaces().map(|row| (row.space.0, row.probe));
    assert_eq!(unique(probes), [(0, Some(other)), (1, Some(one))].into());
}
