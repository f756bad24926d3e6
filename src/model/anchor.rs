use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::Malformed;

/// A version that a fresh reader trusts: its number and the public half of its succession key
/// (Ed25519, RFC 8032). Its text is `VERSION:KEY`, with the key's 32 bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The version.
    pub version: u32,
    /// The public key.
    pub key: [u8; 32],
}

impl FromStr for Anchor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parse = || {
            let (version, key) = text.split_once(':')?;
            Some(Self {
                version: version.parse().ok().filter(|version| *version > 0)?,
                key: STANDARD.decode(key).ok()?.try_into().ok()?,
            })
        };
        parse().ok_or_else(|| {
            Malformed::new("expected `VERSION:KEY`, as `sidekey keyring status` prints it")
        })
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.version, STANDARD.encode(self.key))
    }
}
