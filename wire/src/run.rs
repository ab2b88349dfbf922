use crate::PageKey;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use zerocopy::{FromBytes, IntoBytes};

/// The most keys one message may carry: a million tokens at 16 tokens a page.
pub const MAX_KEYS: usize = 65_536;

/// A run of keys of one chain, in prefix order. Travels as one byte string; decoding borrows it
/// from the receive buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRun<'a>(Cow<'a, [PageKey]>);

impl<'a> KeyRun<'a> {
    /// The keys, in prefix order.
    #[must_use]
    pub fn as_slice(&self) -> &[PageKey] {
        &self.0
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A run that owns its keys.
    #[must_use]
    pub fn into_owned(self) -> KeyRun<'static> {
        KeyRun(Cow::Owned(self.0.into_owned()))
    }
}

impl<'a> From<&'a [PageKey]> for KeyRun<'a> {
    fn from(keys: &'a [PageKey]) -> Self {
        Self(Cow::Borrowed(keys))
    }
}

impl From<Vec<PageKey>> for KeyRun<'static> {
    fn from(keys: Vec<PageKey>) -> Self {
        Self(Cow::Owned(keys))
    }
}

impl fmt::Debug for KeyRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRun({} keys)", self.0.len())
    }
}

impl Serialize for KeyRun<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for KeyRun<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = KeyRun<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_KEYS} keys of 32 bytes")
            }

            fn visit_borrowed_bytes<E: serde::de::Error>(
                self,
                bytes: &'de [u8],
            ) -> Result<Self::Value, E> {
                let keys = <[PageKey]>::ref_from_bytes(bytes)
                    .map_err(|_| E::custom("key run is not a multiple of 32 bytes"))?;
                if keys.len() > MAX_KEYS {
                    return Err(E::custom("key run exceeds the limit of 65536 keys"));
                }
                Ok(KeyRun(Cow::Borrowed(keys)))
            }
        }
        deserializer.deserialize_bytes(Keys).map_err(|e| D::Error::custom(e.to_string()))
    }
}
