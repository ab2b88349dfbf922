//! The store key: 32 secret bytes that every key on disk derives from.

use crate::format::StoreId;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use undercroft_wire::DomainId;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a store key.
const KEY_BYTES: usize = 32;
/// The longest a key file can be: hexadecimal digits and an end of line.
const MAX_FILE_BYTES: u64 = 2 * KEY_BYTES as u64 + 2;

const CHECK_LABEL: &[u8] = b"undercroft key check v1";
const DOMAIN_LABEL: &[u8] = b"undercroft domain secret v1";

/// Why a store key cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file could not be read or made.
    #[error("cannot {what} the store key {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file has something else in it.
    #[error(
        "{path} is not a store key: it has {found}, allowed are 32 bytes or 64 hexadecimal digits"
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
    },
    /// Others could have read the key, or chosen it.
    #[error(
        "the store key {path} {found}: it must belong to the daemon's user or root, and nobody \
         else may read or write it (chmod 600)"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
}

/// The secret that everything encrypted in a store derives from. Whoever has it and the disk can
/// read the pages; without it they are lost.
#[derive(Clone)]
pub struct StoreKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey")
    }
}

impl From<[u8; KEY_BYTES]> for StoreKey {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl StoreKey {
    /// A key nobody else has.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        let mut key = Self(Zeroizing::new([0; KEY_BYTES]));
        crate::entropy::fill(&mut key.0[..])?;
        Ok(key)
    }

    /// Reads a key file: 32 bytes, or 64 hexadecimal digits.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::load_of(path, rustix::process::geteuid().as_raw())
    }

    /// As [`StoreKey::load`], but the key may also belong to `owner`: root looks at the store of a
    /// daemon that is another user.
    pub(crate) fn load_of(path: &Path, owner: u32) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { what: "read", path: path.into(), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty());
        let file = File::from(file.map_err(|e| failed(e.into()))?);
        check_hands(path, &file.metadata().map_err(failed)?, owner)?;
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize + 1));
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text).ok_or_else(|| {
            let path = path.into();
            KeyError::NotAKey { path, found: format!("{} bytes of something else", text.len()) }
        })
    }

    /// Reads the key file, or makes one with a new key if there is none. When this returns, the
    /// key is on the medium: nothing is ever encrypted with a key that a power cut could take.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(path)
            }
            result => result,
        }
    }

    fn create(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { what: "make", path: path.into(), source };
        let key = Self::generate().map_err(failed)?;
        // Under another name first: a file of that name is a whole key or is not there.
        let draft = path.with_extension("new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::open(&draft, flags | OFlags::CLOEXEC, mode);
        let mut file = File::from(file.map_err(|e| failed(e.into()))?);
        file.write_all(key.to_hex().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&draft, path).map_err(failed)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new("."))).map_err(failed)?;
        directory.sync_all().map_err(failed)?;
        Ok(key)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(bytes) {
            return Some(raw.into());
        }
        let text = std::str::from_utf8(bytes).ok()?.trim_end();
        let digits = text.len() == 2 * KEY_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        digits.then_some(Self(key))
    }

    fn to_hex(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(2 * KEY_BYTES + 1));
        for byte in self.0.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).expect("below 16"));
            }
        }
        text.push('\n');
        text
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.0[..]
    }

    /// The secret of a domain: what its keys are hashed with before they leave the node.
    #[must_use]
    pub fn domain_secret(&self, domain: &DomainId) -> Zeroizing<[u8; KEY_BYTES]> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        self.derive(&domain.0, DOMAIN_LABEL, &mut secret[..]);
        secret
    }

    /// What a store keeps to tell its key from others. Says nothing about the key.
    pub(crate) fn check(&self, store: StoreId) -> [u8; 16] {
        let mut check = [0; 16];
        self.derive(&store.0, CHECK_LABEL, &mut check);
        check
    }

    fn derive(&self, salt: &[u8], label: &[u8], out: &mut [u8]) {
        struct Bytes(usize);
        impl KeyType for Bytes {
            fn len(&self) -> usize {
                self.0
            }
        }
        let prk = Salt::new(HKDF_SHA256, salt).extract(self.secret());
        let label = [label];
        let expanded = prk.expand(&label, Bytes(out.len()));
        let filled = expanded.and_then(|okm| okm.fill(out));
        if filled.is_err() {
            out.zeroize();
            unreachable!("32 bytes are fewer than HKDF's limit");
        }
    }
}

fn check_hands(path: &Path, facts: &fs::Metadata, owner: u32) -> Result<(), KeyError> {
    let exposed = |found: String| Err(KeyError::Exposed { path: path.into(), found });
    if !facts.is_file() {
        return exposed("is not a regular file".to_owned());
    }
    let user = rustix::process::geteuid().as_raw();
    if ![user, owner, 0].contains(&facts.uid()) {
        return exposed(format!("belongs to user {}", facts.uid()));
    }
    // systemd hands credentials out with mode 0400 or, by access lists, 0440.
    let others = facts.mode() & 0o037;
    if others != 0 || (facts.mode() & 0o040 != 0 && facts.uid() == user && user != 0) {
        return exposed(format!("has mode {:o}", facts.mode() & 0o7777));
    }
    Ok(())
}
