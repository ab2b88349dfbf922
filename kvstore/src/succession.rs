//! What a daemon goes on with: the arena of the one before it and what lies in it, or a new one.

use crate::arena::Arena;
use crate::config::Config;
use crate::error::StartError;
use crate::estate::{Estate, Heirloom, Keeper};
use crate::mounts::Ground;
use undercroft_arena::{PartRow, State, StateLimits};
use undercroft_core::{DomainLimits, Limits};
use undercroft_wire::{Epoch, StartKind, StartStatus};

/// The largest part there can be: what a part may have in `arena.part`.
const MAX_PART_BYTES: u64 = 1 << 30;
const MAX_SLABS: u32 = 1 << 18;
/// Rows the state file may have for leased pages.
const MAX_LEASED_PAGES: u32 = 1 << 26;

/// The arenas, and what is remembered of them.
pub(crate) struct Succession {
    pub(crate) arena: Arena,
    pub(crate) state: State,
    pub(crate) start: StartStatus,
}

/// Goes on with what is in `estate`, if it can be gone on with, else begins anew: a cache may
/// forget, but not misremember.
pub(crate) fn begin(
    config: &Config,
    limits: &Limits,
    (mut estate, kind): (Estate, StartKind),
    ground: &Ground,
) -> Result<Succession, StartError> {
    let mut dropped = None;
    let mut inherited = None;
    let all = estate.arena_names();
    if estate.has_arena() {
        match inherit(config, limits, &mut estate, ground) {
            Ok(found) => inherited = Some(found),
            Err(reason) => {
                tracing::warn!(reason, "the arena that was kept is dropped");
                dropped = Some(reason);
            }
        }
    }
    // What is left over is of no use to anybody: its memory goes before more is taken. Of an arena
    // that cannot be gone on with that is all of it, also what was taken already: kept on, it would
    // come back beside the new one under the same name.
    let useless = if inherited.is_some() { estate.arena_names() } else { all };
    if Keeper::is_there() {
        useless.iter().for_each(|name| Keeper.forget(name));
    }
    drop(estate);
    let kind = if inherited.is_some() { kind } else { StartKind::Cold };
    let (mut arena, state) = match inherited {
        Some(found) => found,
        None => anew(config, limits, ground)?,
    };
    for domain in &config.domains {
        // Parts come later, and who is greeted before needs it.
        arena.board_of(domain).map_err(|source| StartError::Arena {
            domain: domain.name.clone(),
            bytes: domain.dram_bytes,
            source,
        })?;
    }
    if Keeper::is_there() {
        keep(&arena, &state);
    }
    let restarts = u32::try_from(state.starts() - 1).unwrap_or(u32::MAX);
    let start = StartStatus { kind, restarts, dropped, ..StartStatus::default() };
    Ok(Succession { arena, state, start })
}

fn inherit(
    config: &Config,
    limits: &Limits,
    estate: &mut Estate,
    ground: &Ground,
) -> Result<(Arena, State), String> {
    if estate.is_doubled() {
        return Err("something of it was kept twice".to_owned());
    }
    let fd = estate.take(Heirloom::State).ok_or("its state file is missing")?;
    let mut state = State::adopt(fd).map_err(|error| error.to_string())?;
    if state.odd() > 0 {
        tracing::warn!(rows = state.odd(), "rows of the state file did not prove themselves");
    }
    let limits = state_limits(config, limits);
    if !state.limits().cover(&limits) {
        // Its place is taken below: a daemon that is killed meanwhile leaves none, and that is a
        // cold start.
        state = state.widened(&limits).map_err(|error| error.to_string())?;
        if Keeper::is_there() {
            Keeper.forget(&Heirloom::State.to_string());
        }
    }
    let mut arena = Arena::new(state.epoch(), config, ground.clone());
    let parts: Vec<PartRow> = state.parts().collect();
    for domain in &config.domains {
        if parts.iter().any(|row| row.domain == domain.id) {
            arena.adopt_board(domain.id, estate)?;
        }
    }
    for row in parts {
        if let Some(domain) = config.domains.iter().find(|domain| domain.id == row.domain) {
            arena.adopt_part(&row, domain, estate)?;
        } else {
            // The domain is gone, and its pages with it.
            state.part_gone(row.part);
        }
    }
    Ok((arena, state))
}

fn anew(config: &Config, limits: &Limits, ground: &Ground) -> Result<(Arena, State), StartError> {
    let epoch = Epoch(crate::daemon::random());
    let limits = state_limits(config, limits);
    let state = State::create(epoch, &limits).map_err(|source| StartError::State { source })?;
    Ok((Arena::new(epoch, config, ground.clone()), state))
}

fn state_limits(config: &Config, limits: &Limits) -> StateLimits {
    let leased = leased_pages_per_domain(config).saturating_mul(config.domains.len() as u32);
    StateLimits {
        max_parts: limits.max_parts,
        max_part_bytes: MAX_PART_BYTES,
        max_slabs: MAX_SLABS,
        max_spaces: limits.max_spaces,
        max_sessions: limits.max_sessions,
        max_leased_pages: leased.min(MAX_LEASED_PAGES),
    }
}

/// Pages that the sessions of one domain may lease: all domains together no more than are
/// remembered.
pub(crate) fn leased_pages_per_domain(config: &Config) -> u32 {
    let share = MAX_LEASED_PAGES / (config.domains.len().max(1) as u32);
    DomainLimits::default().max_leased_pages.min(share)
}

/// Has everything kept that the next daemon needs. What is kept already stays kept once.
pub(crate) fn keep(arena: &Arena, state: &State) {
    arena.estate().for_each(|(heirloom, fd)| Keeper.keep(heirloom, fd));
    Keeper.keep(Heirloom::State, state.fd());
}
