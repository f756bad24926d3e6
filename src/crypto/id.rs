//! The id of a keyring.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{RandomnessUnavailable, from_hex, random, to_hex};

/// A keyring's random 128-bit id, written as 32 lower-case hexadecimal digits. It is not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyringId(pub [u8; 16]);

impl KeyringId {
    /// Generates a random id.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        random().map(Self)
    }

    /// Returns the first four bytes, which every ciphertext carries.
    pub fn tag(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }
}

impl fmt::Display for KeyringId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for KeyringId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyringId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const REASON: &str = "a keyring id is 32 lower-case hexadecimal digits";
        if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(REASON);
        }
        from_hex(text.as_bytes()).map(Self).ok_or(REASON)
    }
}

impl Serialize for KeyringId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyringId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}
