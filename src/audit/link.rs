//! A record's position in the chain.

use super::LogId;
use crate::crypto::{from_hex, to_hex};

/// A position in the chain: a record's number and the SHA-256 (FIPS 180-4) of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The record's number, from 1; 0 before the first.
    pub seq: u64,
    /// The SHA-256 of the record's line without its newline; zeros before the first.
    pub hash: [u8; 32],
}

impl Link {
    /// The position before the first record.
    pub const START: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// Returns the hash as lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        to_hex(&self.hash)
    }
}

/// A position in the chain of a certain log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) log: LogId,
    pub(super) link: Link,
}

impl Position {
    /// Before the first record of a log.
    pub(super) fn start(log: LogId) -> Self {
        Self {
            log,
            link: Link::START,
        }
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.to_hex())
    }
}

impl std::str::FromStr for Link {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(seq, hash)| {
            Some(Self {
                seq: seq.parse().ok()?,
                hash: from_lower_hex(hash)?,
            })
        });
        parsed.ok_or(
            "expected SEQ:HASH, a record's number and the SHA-256 of its line as 64 lower-case \
             hexadecimal digits",
        )
    }
}

pub(super) fn from_lower_hex(text: &str) -> Option<[u8; 32]> {
    let is_lower = !text.bytes().any(|digit| digit.is_ascii_uppercase());
    is_lower.then(|| from_hex(text.as_bytes())).flatten()
}
