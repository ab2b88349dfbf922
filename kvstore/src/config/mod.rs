//! Configuration in two steps: the raw file ([`raw`]), then the checked values ([`Config`]), held
//! against the machine before anything is opened. Defaults < file.

mod domains;
mod keys;
mod nodes;
mod raw;
mod renewal;
mod shares;
mod ssd;
#[cfg(test)]
mod tests;

pub use keys::{KEYS, Key, reference};

use crate::{bounds, paths};
use raw::{Quantity, RawArena, RawConfig, RawCopy, RawPolicy, RawServer};
use std::fmt::{self, Display, Formatter, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use undercroft_core::{Admission, LoadPolicy, Policy};

pub(crate) use domains::{DomainConfig, Rule};
pub(crate) use renewal::Renewal;
#[cfg(test)]
pub(crate) use shares::Shares;
pub(crate) use shares::{MAX_PAGES, MAX_SPACES};
pub(crate) use ssd::{KeyFile, SsdConfig, SsdDirectory};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Frames have 31-bit numbers, and the smallest is a 4 KiB page.
const MAX_DRAM: u64 = 7 << 40;

/// Each part on a mount is two descriptors, and the names of all descriptors of a service are one
/// string of its environment, which ends at 128 KiB.
pub(crate) const MAX_MOUNTED_PARTS: u64 = 2048;

/// Why a configuration is not acceptable.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file {}: cannot read it: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("config file {}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        reason: String,
    },
    /// A value is out of range.
    #[error("config key {key} = {}: allowed {allowed}", OneLine(found))]
    Value {
        /// The key, dotted.
        key: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
}

/// Text out of the file, with line ends and other control characters as escapes: an error is one line.
struct OneLine<'a>(&'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_debug())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// Where the arena is to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackingChoice {
    /// On private mounts if there are any, else in memfds.
    Auto,
    Memfd,
    /// On private mounts or not at all.
    Mount,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) socket: PathBuf,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) max_sessions: u32,
    /// Whether the control thread is to come before threads that only share the processors.
    pub(crate) realtime: bool,
    /// At least one; the first that fits a peer is its own.
    pub(crate) domains: Vec<DomainConfig>,
    pub(crate) part_bytes: u64,
    pub(crate) slab_bytes: u64,
    pub(crate) backing: BackingChoice,
    pub(crate) huge_pages: bool,
    pub(crate) lock: bool,
    pub(crate) staging_bytes: u64,
    pub(crate) staging_total_bytes: u64,
    pub(crate) ssd: Option<SsdConfig>,
    pub(crate) copy_workers: usize,
    pub(crate) policy: Policy,
    pub(crate) admission: Admission,
    pub(crate) load: LoadPolicy,
    pub(crate) demote_ahead: u32,
    pub(crate) fetch_window: u32,
    pub(crate) max_hold_ms: u32,
    /// How long a session may hold frames without a word.
    pub(crate) silence: Duration,
    pub(crate) max_offer_ms: u32,
    /// The file it was read from; `None`: there is none.
    pub(crate) file: Option<PathBuf>,
    /// What the file says.
    written: toml::Table,
}

impl Config {
    /// The configuration of `undercroft serve` without a file: sizes fitted to the machine.
    ///
    /// # Errors
    /// None of the defaults should be out of range; the type says so if one is.
    pub fn embedded() -> Result<Self, ConfigError> {
        Self::check(RawConfig::default())
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Unreadable file, unknown key, wrong type, value out of range.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text, path)?;
        config.file = Some(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
        Ok(config)
    }

    /// Checks a file's text; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |e: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            reason: e.to_string().trim_end().replace('\n', " | "),
        };
        let raw: RawConfig = toml::from_str(text).map_err(wrong)?;
        let written = toml::from_str(text).map_err(wrong)?;
        Ok(Self { written, ..Self::check(raw)? })
    }

    /// The socket the daemon will listen on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sizes and places in a few lines, for the start of `serve`.
    #[must_use]
    pub fn summary(&self) -> Vec<(&'static str, String)> {
        let ssd = self.ssd.as_ref().map_or_else(|| "none".to_owned(), SsdConfig::summary);
        let metrics =
            self.metrics.map_or_else(|| "off".to_owned(), |a| format!("http://{a}/metrics"));
        vec![
            ("socket", self.socket.display().to_string()),
            ("dram", self.dram_summary()),
            ("ssd", ssd),
            ("metrics", metrics),
        ]
    }

    /// Bytes of all arenas together.
    pub(crate) fn arena_bytes(&self) -> u64 {
        self.domains.iter().map(|domain| domain.dram_bytes).sum()
    }

    /// Parts that all arenas have when they are as large as they are to be.
    fn parts(&self) -> u64 {
        self.domains.iter().map(|domain| domain.dram_bytes.div_ceil(self.part_bytes)).sum()
    }

    fn check_parts(&self) -> Result<(), ConfigError> {
        let parts = self.parts();
        let (on_mounts, most) = match self.backing {
            BackingChoice::Mount => (" on mounts", MAX_MOUNTED_PARTS),
            _ => ("", bounds::MAX_PARTS.into()),
        };
        if parts <= most {
            return Ok(());
        }
        let (size, part) = (human(self.arena_bytes()), human(self.part_bytes));
        Err(ConfigError::Value {
            key: "arena.part",
            found: format!("\"{part}\", with arenas of {size}: {parts} parts"),
            allowed: format!("at most {most} parts{on_mounts}: larger parts or smaller arenas"),
        })
    }

    /// Whether the service manager could hand over so many parts on mounts.
    pub(crate) fn fits_on_mounts(&self) -> bool {
        self.parts() <= MAX_MOUNTED_PARTS
    }

    fn dram_summary(&self) -> String {
        let all = human(self.arena_bytes());
        match self.domains.as_slice() {
            [only] if only.rule.is_open() => all,
            several => {
                let each = several.iter().map(|d| format!("{} {}", d.name, human(d.dram_bytes)));
                format!("{all} ({})", each.collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn check(raw: RawConfig) -> Result<Self, ConfigError> {
        let RawConfig { server, arena, ssd, copy, policy, domain } = raw;
        let mut config = check_arena(&arena)?;
        check_server(&mut config, server)?;
        config.ssd = ssd::check(&ssd)?;
        let copy_mode = check_copy(&mut config, &copy)?;
        check_policy(&mut config, &policy)?;
        let key = "arena.size";
        let defaults = domains::Defaults {
            arena_bytes: size(key, arena.size.as_ref(), default_dram(), 64 * KIB, MAX_DRAM)?,
            arena_is_given: arena.size.is_some(),
            ssd_bytes: config.ssd.as_ref().map_or(0, SsdConfig::bytes),
            staging_bytes: config.staging_total_bytes,
            max_sessions: config.max_sessions,
            copy_mode,
            numa_nodes: match &arena.numa_node {
                Some(given) => nodes::check("arena.numa_node", given)?,
                None => Vec::new(),
            },
        };
        config.domains = domains::check(&domain, defaults)?;
        config.check_parts()?;
        Ok(config)
    }
}

fn check_arena(raw: &RawArena) -> Result<Config, ConfigError> {
    // A registered buffer of io_uring ends at 1 GiB, and a part is one registered buffer.
    let part_bytes = size("arena.part", raw.part.as_ref(), GIB, 64 * KIB, GIB)?;
    let slab_bytes = size("arena.slab", raw.slab.as_ref(), 64 * MIB, 4 * KIB, GIB)?;
    let staging_bytes = size("arena.staging", raw.staging.as_ref(), 64 * MIB, 4 * KIB, 4 * GIB)?;
    let total = raw.staging_total.as_ref();
    let staging_total_bytes =
        size("arena.staging_total", total, 64 * staging_bytes, 4 * KIB, 1 << 40)?;
    let huge_pages =
        choice("arena.huge_pages", raw.huge_pages.as_deref(), "auto", &["auto", "off"])?;
    let backing =
        choice("arena.backing", raw.backing.as_deref(), "auto", &["auto", "memfd", "mount"])?;
    let backing = [BackingChoice::Auto, BackingChoice::Memfd, BackingChoice::Mount][backing];
    Ok(Config {
        socket: PathBuf::new(),
        metrics: None,
        max_sessions: 0,
        realtime: true,
        domains: Vec::new(),
        part_bytes,
        slab_bytes,
        backing,
        huge_pages: huge_pages == 0,
        lock: raw.lock.unwrap_or(true),
        staging_bytes,
        staging_total_bytes,
        ssd: None,
        copy_workers: 0,
        policy: Policy::default(),
        admission: Admission::default(),
        load: LoadPolicy::default(),
        demote_ahead: 0,
        fetch_window: 0,
        max_hold_ms: 0,
        silence: Duration::ZERO,
        max_offer_ms: 0,
        file: None,
        written: toml::Table::new(),
    })
}

fn check_server(config: &mut Config, raw: RawServer) -> Result<(), ConfigError> {
    config.socket = raw.socket.map_or_else(paths::default_socket, PathBuf::from);
    let length = config.socket.as_os_str().len();
    if length == 0 || length > paths::MAX_SOCKET_PATH_BYTES {
        return Err(ConfigError::Value {
            key: "server.socket",
            found: format!("\"{}\" ({length} bytes)", config.socket.display()),
            allowed: format!(
                "a path of 1..={} bytes (the system's limit for unix sockets); choose a shorter one",
                paths::MAX_SOCKET_PATH_BYTES
            ),
        });
    }
    let metrics = raw.metrics.unwrap_or_else(|| keys::DEFAULT_METRICS.to_owned());
    config.metrics = check_metrics(&metrics)?;
    config.max_sessions = number("server.max_sessions", raw.max_sessions, 64, 1, 4096)? as u32;
    config.realtime = raw.realtime.unwrap_or(true);
    Ok(())
}

fn check_metrics(text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text == "off" {
        return Ok(None);
    }
    let refused = || ConfigError::Value {
        key: "server.metrics",
        found: format!("\"{text}\""),
        allowed: "\"off\" or a loopback address with a port, such as \"127.0.0.1:9753\"".to_owned(),
    };
    let address: SocketAddr = text.parse().map_err(|_| refused())?;
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if loopback { Ok(Some(address)) } else { Err(refused()) }
}

/// Says whether copy mode is for everybody.
fn check_copy(config: &mut Config, raw: &RawCopy) -> Result<bool, ConfigError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    config.copy_workers = number("copy.workers", raw.workers, cores.clamp(1, 4), 1, 64)? as usize;
    Ok(choice("copy.mode", raw.mode.as_deref(), "auto", &["auto", "copy"])? == 1)
}

fn check_policy(config: &mut Config, raw: &RawPolicy) -> Result<(), ConfigError> {
    let eviction = raw.eviction.as_deref();
    let policy = choice("policy.eviction", eviction, Policy::default().name(), &Policy::NAMES)?;
    config.policy = Policy::ALL[policy];
    if let Some(text) = &raw.admission {
        config.admission = text.parse().map_err(|_| ConfigError::Value {
            key: "policy.admission",
            found: format!("\"{text}\""),
            allowed: Admission::ALLOWED.to_owned(),
        })?;
    }
    let load = raw.load.as_deref();
    let load = choice("policy.load", load, LoadPolicy::default().name(), &LoadPolicy::NAMES)?;
    config.load = LoadPolicy::ALL[load];
    config.demote_ahead = number("policy.demote_ahead", raw.demote_ahead, 64, 0, 65_536)? as u32;
    config.fetch_window = number("policy.fetch_window", raw.fetch_window, 32, 1, 4096)? as u32;
    config.max_hold_ms =
        number("policy.max_hold_ms", raw.max_hold_ms, 60_000, 1, 3_600_000)? as u32;
    let silence = number("policy.silence_ms", raw.silence_ms, 60_000, 10, 86_400_000)?;
    config.silence = Duration::from_millis(silence);
    config.max_offer_ms =
        number("policy.max_offer_ms", raw.max_offer_ms, 60_000, 1, 3_600_000)? as u32;
    Ok(())
}

fn size(
    key: &'static str,
    found: Option<&Quantity>,
    default: u64,
    min: u64,
    max: u64,
) -> Result<u64, ConfigError> {
    let refused = |found: &Quantity| ConfigError::Value {
        key,
        found: found.to_string(),
        allowed: format!(
            "a size of {}..={}, as bytes or with KiB, MiB, GiB",
            human(min),
            human(max)
        ),
    };
    let Some(found) = found else {
        return Ok(default);
    };
    let bytes = match found {
        Quantity::Bytes(bytes) => *bytes,
        Quantity::Text(text) => parse_size(text).ok_or_else(|| refused(found))?,
    };
    if (min..=max).contains(&bytes) { Ok(bytes) } else { Err(refused(found)) }
}

fn parse_size(text: &str) -> Option<u64> {
    parse_size::Config::new().with_binary().parse_size(text).ok()
}

fn number(
    key: &'static str,
    found: Option<u64>,
    default: u64,
    min: u64,
    max: u64,
) -> Result<u64, ConfigError> {
    let value = found.unwrap_or(default);
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Value { key, found: value.to_string(), allowed: format!("{min}..={max}") })
}

fn choice(
    key: &'static str,
    found: Option<&str>,
    default: &str,
    allowed: &[&str],
) -> Result<usize, ConfigError> {
    let value = found.unwrap_or(default);
    allowed.iter().position(|a| *a == value).ok_or_else(|| ConfigError::Value {
        key,
        found: format!("\"{value}\""),
        allowed: allowed.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(" or "),
    })
}

/// 1 GiB, or a quarter of the available memory where that is less.
fn default_dram() -> u64 {
    let available = rustix::system::sysinfo();
    let free = available.freeram.saturating_mul(u64::from(available.mem_unit));
    GIB.min(free / 4).max(16 * MIB) / MIB * MIB
}

/// A size for people.
pub(crate) fn human(bytes: u64) -> String {
    for (unit, name) in
        [(1 << 50, "PiB"), (1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]
    {
        if bytes >= unit {
            let whole = bytes.is_multiple_of(unit);
            let value = bytes as f64 / unit as f64;
            return if whole { format!("{value:.0} {name}") } else { format!("{value:.1} {name}") };
        }
    }
    format!("{bytes} B")
}
