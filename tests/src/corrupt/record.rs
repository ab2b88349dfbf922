//! Damage to records, found by reading them in a log that is open.

use super::kind::Kind;
use super::outcome::{Outcome, Verdict};
use super::store::{SECTOR, Seen, Store};
use anyhow::Result;
use fastrand::Rng;

/// A record of one of two devices.
type Place = (usize, usize);

/// Does one kind of damage to two devices, reads what was hit and something that was not, and
/// takes the damage back.
///
/// # Errors
/// The log answers something that is neither a page nor a miss.
pub(super) fn damage(kind: Kind, pair: &mut [Store; 2], rng: &mut Rng) -> Result<Verdict> {
    let device = rng.usize(..2);
    let hit = (device, rng.usize(..pair[device].records.len()));
    if kind == Kind::AskedByAnother {
        return asked_by_another(pair, hit, rng);
    }
    pair.iter().for_each(|store| store.image.begin());
    let hits = inflict(kind, pair, hit, rng);
    let verdict = judge(pair, &hits, rng);
    pair.iter().for_each(|store| store.image.take_back());
    verdict
}

/// Reads what was hit: it is a miss if its page's bytes have changed, and else that page.
fn judge(pair: &mut [Store; 2], hits: &[Place], rng: &mut Rng) -> Result<Verdict> {
    let mut outcome = Outcome::Harmless;
    for &(device, record) in hits {
        let changed = pair[device].is_changed(record);
        let seen = pair[device].read(record)?;
        let expected = if changed { Seen::Miss } else { Seen::Right };
        if changed {
            outcome = Outcome::Miss;
        }
        if seen != expected {
            let what = format!("device {device}, record {record}, changed: {changed}: {seen:?}");
            return Ok(Verdict::wrong(what));
        }
    }
    let device = rng.usize(..2);
    let other = rng.usize(..pair[device].records.len());
    if !hits.contains(&(device, other)) {
        let seen = pair[device].read(other)?;
        if seen != Seen::Right {
            let what = format!("device {device}, record {other} was not hit and is {seen:?}");
            return Ok(Verdict::wrong(what));
        }
    }
    Ok(Verdict::from(outcome))
}

/// The record is there, and somebody asks for another page at its place: one of another key, space
/// or domain, or one that lies on the other device.
fn asked_by_another(pair: &mut [Store; 2], hit: Place, rng: &mut Rng) -> Result<Verdict> {
    let (device, record) = hit;
    let mut identity = pair[device].records[record].identity;
    match rng.u8(..5) {
        0 => identity.domain.0[rng.usize(..16)] ^= 1 << rng.u8(..8),
        1 => identity.space.0[rng.usize(..32)] ^= 1 << rng.u8(..8),
        2 => identity.key.0[rng.usize(..32)] ^= 1 << rng.u8(..8),
        3 => identity.depth ^= 1 << rng.u8(..32),
        _ => {
            let other = (record + 1 + rng.usize(..pair[device].records.len() - 1))
                % pair[device].records.len();
            identity = pair[device].records[other].identity;
        }
    }
    let extent = pair[device].records[record].extent;
    let (asked, itself) = (pair[device].life.read(&identity, &extent)?, pair[device].read(record)?);
    if (asked, itself) == (Seen::Miss, Seen::Right) {
        return Ok(Verdict::from(Outcome::Miss));
    }
    let what = format!("device {device}, record {record}: another's {asked:?}, itself {itself:?}");
    Ok(Verdict::wrong(what))
}

/// Damages the record that is hit, and maybe another; all whose stored bytes were touched.
fn inflict(kind: Kind, pair: &mut [Store; 2], hit: Place, rng: &mut Rng) -> Vec<Place> {
    let (device, record) = hit;
    let store = &pair[device];
    let (at, bytes) = (store.records[record].at, store.frame_bytes());
    let other = match kind {
        Kind::Bit => {
            let bit = rng.usize(..bytes * 8);
            let byte = store.pristine[at + bit / 8] ^ (1 << (bit % 8));
            store.image.put(at + bit / 8, &[byte]);
            return vec![hit];
        }
        Kind::Sector => {
            garble(store, at + rng.usize(..bytes / SECTOR) * SECTOR, rng);
            return vec![hit];
        }
        Kind::OldUse => {
            store.image.put(at, &store.old[at..at + bytes]);
            return vec![hit];
        }
        Kind::Torn => {
            let through = rng.usize(..bytes / SECTOR) * SECTOR;
            let rest = rest_of_a_torn_write(pair, hit, rng);
            pair[device].image.put(at + through, &rest[through..]);
            return vec![hit];
        }
        Kind::SwapDevices => (1 - device, rng.usize(..pair[1 - device].records.len())),
        Kind::OtherSpace | Kind::OtherDomain => {
            let other = another(store, record, rng, |a, b| match kind {
                Kind::OtherSpace => a.identity.space != b.identity.space,
                _ => a.identity.domain != b.identity.domain,
            });
            let from = store.records[other].at;
            store.image.put(at, &store.pristine[from..from + bytes]);
            return vec![hit];
        }
        _ => {
            let other = another(store, record, rng, |a, b| {
                (a.extent.segment == b.extent.segment) == (kind == Kind::SwapInSegment)
            });
            (device, other)
        }
    };
    swap(pair, hit, other);
    vec![hit, other]
}

/// What lay where a write was torn.
fn rest_of_a_torn_write(pair: &[Store; 2], (device, record): Place, rng: &mut Rng) -> Vec<u8> {
    let store = &pair[device];
    let (at, bytes) = (store.records[record].at, store.frame_bytes());
    match rng.u8(..3) {
        0 => vec![0; bytes],
        1 => store.old[at..at + bytes].to_vec(),
        _ => {
            let other = store.records[rng.usize(..store.records.len())].at;
            store.pristine[other..other + bytes].to_vec()
        }
    }
}

/// Another record that is as it is wanted.
fn another(
    store: &Store,
    record: usize,
    rng: &mut Rng,
    wanted: impl Fn(&super::store::Record, &super::store::Record) -> bool,
) -> usize {
    loop {
        let other = rng.usize(..store.records.len());
        if other != record && wanted(&store.records[record], &store.records[other]) {
            return other;
        }
    }
}

fn swap(pair: &[Store; 2], one: Place, other: Place) {
    let stored = |(device, record): Place| {
        let store = &pair[device];
        let at = store.records[record].at;
        (at, &store.pristine[at..at + store.frame_bytes()])
    };
    let ((here, ours), (there, theirs)) = (stored(one), stored(other));
    pair[one.0].image.put(here, theirs);
    pair[other.0].image.put(there, ours);
}

/// Fills a sector with noise, zeros or ones.
pub(super) fn garble(store: &Store, at: usize, rng: &mut Rng) {
    let mut sector = [0; SECTOR];
    match rng.u8(..4) {
        0 => {}
        1 => sector.fill(0xff),
        _ => rng.fill(&mut sector),
    }
    store.image.put(at, &sector);
}
