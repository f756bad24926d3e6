//! The header that messages (suite 0x01) and streams (suite 0x02) share. See docs/format.md.

use super::{
    KeyringId,
    xaes::{NONCE_LEN, TAG_LEN},
};

/// The first byte of a message.
pub const SUITE_MESSAGE: u8 = 0x01;
/// The first byte of a stream.
pub const SUITE_STREAM: u8 = 0x02;
/// The length of header and nonce, which precede the ciphertext, in bytes.
pub const PREFIX_LEN: usize = HEADER_LEN + NONCE_LEN;
/// How much longer a message is than its plaintext, in bytes.
pub const OVERHEAD: usize = PREFIX_LEN + TAG_LEN;

pub(super) const HEADER_LEN: usize = 9;

/// A ciphertext was not opened. Says nothing about the plaintext or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CiphertextError {
    /// Not a Sidekey ciphertext.
    #[error("{0}")]
    Malformed(&'static str),
    /// The header has the tag of another keyring.
    #[error("the ciphertext belongs to another keyring")]
    WrongKeyring,
    /// The authentication tag doesn't verify.
    #[error("the ciphertext was modified, or the AAD differs from the one used to encrypt")]
    DecryptionFailed,
}

/// The nine bytes before the nonce: suite, keyring tag, key version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// [`SUITE_MESSAGE`] or [`SUITE_STREAM`].
    pub suite: u8,
    /// The key version that opens the ciphertext.
    pub version: u32,
    tag: [u8; 4],
}

impl Header {
    pub(super) fn new(suite: u8, version: u32, keyring: &KeyringId) -> Self {
        Self {
            suite,
            version,
            tag: keyring.tag(),
        }
    }

    /// Parses the header of a ciphertext, or of a prefix of one that has at least [`OVERHEAD`]
    /// bytes, the length of the shortest ciphertext.
    ///
    /// # Errors
    /// [`CiphertextError::Malformed`] if this can't be a ciphertext, and
    /// [`CiphertextError::WrongKeyring`] if the tag isn't that of `keyring`.
    pub fn parse(ciphertext: &[u8], keyring: &KeyringId) -> Result<Self, CiphertextError> {
        let Some(([suite, header @ ..], _)) = ciphertext.split_first_chunk::<HEADER_LEN>() else {
            return Err(CiphertextError::Malformed("shorter than any ciphertext"));
        };
        if ![SUITE_MESSAGE, SUITE_STREAM].contains(suite) {
            return Err(CiphertextError::Malformed(
                "the first byte is not a known ciphertext suite",
            ));
        }
        if ciphertext.len() < OVERHEAD {
            return Err(CiphertextError::Malformed("shorter than any ciphertext"));
        }
        let [t0, t1, t2, t3, v0, v1, v2, v3] = *header;
        let header = Self {
            suite: *suite,
            version: u32::from_be_bytes([v0, v1, v2, v3]),
            tag: [t0, t1, t2, t3],
        };
        if header.tag == keyring.tag() {
            Ok(header)
        } else {
            Err(CiphertextError::WrongKeyring)
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let ([t0, t1, t2, t3], [v0, v1, v2, v3]) = (self.tag, self.version.to_be_bytes());
        [self.suite, t0, t1, t2, t3, v0, v1, v2, v3]
    }
}

/// The header of what may be a ciphertext of any keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peek {
    /// The first 4 bytes of the keyring's id.
    pub tag: [u8; 4],
    /// The key version, from 1.
    pub version: u32,
    /// Whether this is a stream rather than a message.
    pub is_stream: bool,
}

/// How many bytes [`peek`] reads.
pub const PEEK_LEN: usize = HEADER_LEN;

/// Reads the header of what may be a ciphertext of any keyring. Returns `None` if it isn't one.
pub fn peek(bytes: &[u8]) -> Option<Peek> {
    let ([suite, t0, t1, t2, t3, v0, v1, v2, v3], _) = bytes.split_first_chunk::<PEEK_LEN>()?;
    let is_stream = match *suite {
        SUITE_MESSAGE => false,
        SUITE_STREAM => true,
        _ => return None,
    };
    let version = u32::from_be_bytes([*v0, *v1, *v2, *v3]);
    // Versions count from 1.
    (version > 0).then_some(Peek {
        tag: [*t0, *t1, *t2, *t3],
        version,
        is_stream,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peeks_at_either_suite_and_nothing_else() {
        let header = Header::new(SUITE_MESSAGE, 7, &KeyringId([0xA5; 16])).bytes();
        let peeked = Peek {
            tag: [0xA5; 4],
            version: 7,
            is_stream: false,
        };
        assert_eq!(peek(&header), Some(peeked));
        assert_eq!(peek(&[&header[..], b"nonce"].concat()), Some(peeked));
        assert_eq!(peek(&header[..PEEK_LEN - 1]), None);
        assert_eq!(
            peek(&[2, 0, 0, 0, 0, 0, 0, 1, 0]),
            Some(Peek {
                tag: [0; 4],
                version: 256,
                is_stream: true
            })
        );
        for other in [
            [1, 9, 9, 9, 9, 0, 0, 0, 0],
            [0, 9, 9, 9, 9, 0, 0, 0, 1],
            [3, 9, 9, 9, 9, 0, 0, 0, 1],
        ] {
            assert_eq!(peek(&other), None);
        }
    }
}
