//! The identity of a log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::crypto::{RandomnessUnavailable, from_hex, random, to_hex};

/// A log's random 128-bit id, written as 32 lower-case hexadecimal digits. Every record carries it,
/// under its MAC, so no record of one log passes as one of another with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogId([u8; 16]);

impl LogId {
    pub(super) fn generate() -> Result<Self, RandomnessUnavailable> {
        random().map(Self)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl FromStr for LogId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_lower = !text.bytes().any(|digit| digit.is_ascii_uppercase());
        is_lower
            .then(|| from_hex(text.as_bytes()))
            .flatten()
            .map(Self)
            .ok_or("a log's id is 32 lower-case hexadecimal digits")
    }
}

impl Serialize for LogId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LogId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
