//! The message format, suite 0x01: header, nonce, ciphertext, tag. See docs/format.md for every byte.

use aws_lc_rs::error::Unspecified;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use smallvec::SmallVec;

use super::{
    KeyringId, RandomnessUnavailable, VersionKeys, random,
    stream::{SUITE_STREAM, StreamOpener},
    xaes::{DerivedKey, NONCE_LEN, TAG_LEN},
};

/// The first byte of a message.
pub const SUITE_MESSAGE: u8 = 0x01;
/// What stands before the ciphertext: header and nonce, in bytes.
pub const PREFIX_LEN: usize = HEADER_LEN + NONCE_LEN;
/// How much longer a message is than its plaintext, in bytes.
pub const OVERHEAD: usize = PREFIX_LEN + TAG_LEN;
/// What the text form begins with.
pub const TEXT_PREFIX: &str = "sk1.";

pub(super) const HEADER_LEN: usize = 9;

/// Why a message was not opened. Says nothing about the plaintext or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not a Sidekey message at all.
    #[error("{0}")]
    Malformed(&'static str),
    /// A message of another keyring.
    #[error("the ciphertext belongs to another keyring")]
    WrongKeyring,
    /// The tag doesn't verify: changed bytes, or not the AAD it was encrypted with.
    #[error("the ciphertext was changed, or the AAD is not the one it was encrypted with")]
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

    /// Reads the header of a whole ciphertext, or of a part of it that is at least as long as the shortest ([`OVERHEAD`]).
    ///
    /// # Errors
    /// [`MessageError::Malformed`] for what no version could open, [`MessageError::WrongKeyring`] for another keyring's tag.
    pub fn parse(ciphertext: &[u8], keyring: &KeyringId) -> Result<Self, MessageError> {
        let Some(([suite, header @ ..], _)) = ciphertext.split_first_chunk::<HEADER_LEN>() else {
            return Err(MessageError::Malformed("shorter than any ciphertext"));
        };
        if ![SUITE_MESSAGE, SUITE_STREAM].contains(suite) {
            return Err(MessageError::Malformed(
                "the first byte is not that of a ciphertext",
            ));
        }
        if ciphertext.len() < OVERHEAD {
            return Err(MessageError::Malformed("shorter than any ciphertext"));
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
            Err(MessageError::WrongKeyring)
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let ([t0, t1, t2, t3], [v0, v1, v2, v3]) = (self.tag, self.version.to_be_bytes());
        [self.suite, t0, t1, t2, t3, v0, v1, v2, v3]
    }

    fn aad(&self, keyring: &KeyringId, caller: &[u8]) -> SmallVec<[u8; 256]> {
        let mut aad = SmallVec::new();
        aad.extend_from_slice(&self.bytes());
        aad.extend_from_slice(&keyring.0);
        aad.extend_from_slice(caller);
        aad
    }
}

/// What the nine bytes before the nonce say to whoever looks for ciphertexts without knowing their keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peek {
    /// The first 4 bytes of the keyring's id.
    pub tag: [u8; 4],
    /// The key version, from 1.
    pub version: u32,
    /// Whether this is a stream (suite 0x02) and not a message (suite 0x01).
    pub is_stream: bool,
}

/// How many bytes [`peek`] reads.
pub const PEEK_LEN: usize = HEADER_LEN;

/// Reads suite, keyring tag and key version from the beginning of what may be a ciphertext of any suite. None if it is none.
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

/// Encrypts the messages of one request: one nonce is drawn and one key derived, and item *i* adds *i* to the nonce's second half.
pub struct Sealer {
    keyring: KeyringId,
    header: Header,
    key: DerivedKey,
    nonce: [u8; NONCE_LEN],
}

impl Sealer {
    /// A sealer under a version's message subkey, with a fresh nonce.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn new(
        keys: &VersionKeys,
        keyring: KeyringId,
        version: u32,
    ) -> Result<Self, RandomnessUnavailable> {
        Ok(Self::with_nonce(keys, keyring, version, random()?))
    }

    fn with_nonce(
        keys: &VersionKeys,
        keyring: KeyringId,
        version: u32,
        nonce: [u8; NONCE_LEN],
    ) -> Self {
        let header = Header::new(SUITE_MESSAGE, version, &keyring);
        Self {
            keyring,
            header,
            key: derive(keys, &nonce),
            nonce,
        }
    }

    /// Turns what `buffer` holds from `from` on, [`PREFIX_LEN`] bytes of room and then the plaintext, into a message in place.
    ///
    /// # Panics
    /// If the room is missing, or the plaintext is longer than AES-GCM allows (64 GiB).
    pub fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>, from: usize) {
        let (prefix, plaintext) = buffer[from..].split_at_mut(PREFIX_LEN);
        prefix[..HEADER_LEN].copy_from_slice(&self.header.bytes());
        prefix[HEADER_LEN..].copy_from_slice(&self.nonce);
        let sealed = self
            .key
            .seal(&self.nonce, &self.header.aad(&self.keyring, aad), plaintext);
        let Ok(tag) = sealed else {
            panic!("a plaintext is shorter than 64 GiB")
        };
        buffer.extend_from_slice(&tag);
        self.advance();
    }

    /// A message from a plaintext that stands elsewhere.
    pub fn seal_copy(&mut self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(plaintext.len() + OVERHEAD);
        buffer.resize(PREFIX_LEN, 0);
        buffer.extend_from_slice(plaintext);
        self.seal(aad, &mut buffer, 0);
        buffer
    }

    /// Adds one to the last 12 bytes, big endian, modulo 2^96.
    fn advance(&mut self) {
        for byte in self.nonce[NONCE_LEN / 2..].iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

/// Decrypts messages of one keyring, and derives a key anew only when version or first nonce half change.
#[derive(Default)]
pub struct Opener {
    last: Option<(u32, [u8; NONCE_LEN / 2], DerivedKey)>,
}

impl Opener {
    /// Decrypts a whole message or stream in place and gives its plaintext, which stands behind the prefix. `header` is the one that
    /// [`Header::parse`] read from it, and `keys` are those of its version.
    ///
    /// # Errors
    /// [`MessageError::DecryptionFailed`]; `message` is then no longer of any use.
    pub fn open<'m>(
        &mut self,
        keys: &VersionKeys,
        keyring: &KeyringId,
        header: &Header,
        aad: &[u8],
        message: &'m mut [u8],
    ) -> Result<&'m mut [u8], MessageError> {
        if header.suite == SUITE_STREAM {
            return StreamOpener::open_all(keys, keyring, aad, message);
        }
        let (prefix, sealed) = message
            .split_at_mut_checked(PREFIX_LEN)
            .ok_or(MessageError::DecryptionFailed)?;
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&prefix[HEADER_LEN..]);
        self.key(keys, header.version, &nonce)
            .open(&nonce, &header.aad(keyring, aad), sealed)
            .map_err(|Unspecified| MessageError::DecryptionFailed)
    }

    fn key(&mut self, keys: &VersionKeys, version: u32, nonce: &[u8; NONCE_LEN]) -> &DerivedKey {
        let mut half = [0; NONCE_LEN / 2];
        half.copy_from_slice(&nonce[..NONCE_LEN / 2]);
        if !matches!(&self.last, Some((last_version, last_half, _)) if (*last_version, *last_half) == (version, half))
        {
            self.last = None;
        }
        &self
            .last
            .get_or_insert_with(|| (version, half, derive(keys, nonce)))
            .2
    }
}

fn derive(keys: &VersionKeys, nonce: &[u8; NONCE_LEN]) -> DerivedKey {
    // The only failures are a key or an input of another length than the types here allow, and no memory.
    let Ok(key) = DerivedKey::new(keys.message_key(), nonce) else {
        panic!("a 32-byte key derives")
    };
    key
}

/// The text form: `sk1.` and the message in base64url without padding (RFC 4648 §5).
pub fn to_text(message: &[u8]) -> String {
    let mut text = String::with_capacity(TEXT_PREFIX.len() + message.len().div_ceil(3) * 4);
    text.push_str(TEXT_PREFIX);
    URL_SAFE_NO_PAD.encode_string(message, &mut text);
    text
}

/// The message in a text form.
///
/// # Errors
/// [`MessageError::Malformed`] says which part is not a text form's.
pub fn from_text(text: &str) -> Result<Vec<u8>, MessageError> {
    let encoded = text
        .strip_prefix(TEXT_PREFIX)
        .ok_or(MessageError::Malformed("the text form begins with `sk1.`"))?;
    URL_SAFE_NO_PAD.decode(encoded).map_err(|_| {
        MessageError::Malformed("what follows `sk1.` is not base64url without padding")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Dek;
    use proptest::prelude::*;

    const ID: KeyringId = KeyringId([0xA5; 16]);

    fn keys(byte: u8) -> VersionKeys {
        let dek = Dek::from_slice(&[byte; 32]).expect("32 bytes");
        VersionKeys::derive(&dek).expect("memory")
    }

    fn open(keys: &VersionKeys, aad: &[u8], mut message: Vec<u8>) -> Result<Vec<u8>, MessageError> {
        let header = Header::parse(&message, &ID)?;
        Opener::default()
            .open(keys, &ID, &header, aad, &mut message)
            .map(|plaintext| plaintext.to_vec())
    }

    proptest! {
        #[test]
        fn opens_what_it_sealed(plaintext: Vec<u8>, aad: Vec<u8>, version: u32) {
            let keys = keys(1);
            let message = Sealer::new(&keys, ID, version).expect("random").seal_copy(&aad, &plaintext);
            prop_assert_eq!(message.len(), plaintext.len() + OVERHEAD);
            prop_assert_eq!(Header::parse(&message, &ID).expect("header").version, version);
            prop_assert_eq!(from_text(&to_text(&message)).expect("text"), message.clone());
            prop_assert_eq!(open(&keys, &aad, message).expect("open"), plaintext);
        }

        #[test]
        fn refuses_every_flipped_bit(at in 0..OVERHEAD + 20, bit in 0..8) {
            let keys = keys(1);
            let mut message = Sealer::new(&keys, ID, 1).expect("random").seal_copy(b"aad", &[0; 20]);
            message[at] ^= 1u8 << bit;
            prop_assert!(open(&keys, b"aad", message).is_err());
        }

        #[test]
        fn never_panics_on_garbage(bytes: Vec<u8>, text: String) {
            prop_assert!(open(&keys(1), b"", bytes).is_err());
            prop_assert!(from_text(&text).is_err() || text.starts_with(TEXT_PREFIX));
        }
    }

    #[test]
    fn refuses_every_truncation() {
        let keys = keys(1);
        let message = Sealer::new(&keys, ID, 1)
            .expect("random")
            .seal_copy(b"", b"plaintext");
        for len in 0..message.len() {
            assert!(
                open(&keys, b"", message[..len].to_vec()).is_err(),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn refuses_other_aad_keyrings_and_keys() {
        let keys = keys(1);
        let message = Sealer::new(&keys, ID, 1)
            .expect("random")
            .seal_copy(b"aad", b"plaintext");
        assert_eq!(
            open(&keys, b"other", message.clone()),
            Err(MessageError::DecryptionFailed)
        );
        assert_eq!(
            open(&super::tests::keys(2), b"aad", message.clone()),
            Err(MessageError::DecryptionFailed)
        );
        assert_eq!(
            Header::parse(&message, &KeyringId([0; 16])),
            Err(MessageError::WrongKeyring)
        );
        // Another keyring that shares the four-byte tag is told apart by the AAD.
        let mut twin = ID;
        twin.0[15] ^= 1;
        let header = Header::parse(&message, &twin).expect("same tag");
        let opened = Opener::default()
            .open(&keys, &twin, &header, b"aad", &mut message.clone())
            .map(|plaintext| plaintext.to_vec());
        assert_eq!(opened, Err(MessageError::DecryptionFailed));
    }

    #[test]
    fn peeks_at_what_the_sealer_wrote() {
        let message = Sealer::new(&keys(1), ID, 7)
            .expect("random")
            .seal_copy(b"", b"");
        let peeked = Peek {
            tag: ID.tag(),
            version: 7,
            is_stream: false,
        };
        assert_eq!(peek(&message), Some(peeked));
        assert_eq!(peek(&message[..PEEK_LEN]), Some(peeked));
        assert_eq!(peek(&message[..PEEK_LEN - 1]), None);
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

    #[test]
    fn counts_items_up_in_the_nonces_second_half_and_wraps() {
        let keys = keys(1);
        let mut nonce = [0xFF; NONCE_LEN];
        nonce[NONCE_LEN - 1] = 0xFE;
        let mut sealer = Sealer::with_nonce(&keys, ID, 1, nonce);
        let messages: Vec<_> = (0..3).map(|_| sealer.seal_copy(b"", b"same")).collect();
        let tails: Vec<_> = messages
            .iter()
            .map(|message| message[HEADER_LEN + 12..PREFIX_LEN].to_vec())
            .collect();
        assert_eq!(tails[1], [0xFF; 12]);
        assert_eq!(tails[2], [0; 12]);
        let mut opener = Opener::default();
        for mut message in messages {
            let header = Header::parse(&message, &ID).expect("header");
            assert_eq!(
                opener
                    .open(&keys, &ID, &header, b"", &mut message)
                    .expect("open"),
                b"same"
            );
        }
    }

    #[test]
    fn an_opener_follows_a_change_of_version() {
        let (first, second) = (keys(1), keys(2));
        let nonce = [5; NONCE_LEN];
        let mut opener = Opener::default();
        for (keys, version) in [(&first, 1), (&second, 2), (&first, 1)] {
            let mut message = Sealer::with_nonce(keys, ID, version, nonce).seal_copy(b"", b"text");
            let header = Header::parse(&message, &ID).expect("header");
            assert_eq!(
                opener
                    .open(keys, &ID, &header, b"", &mut message)
                    .expect("open"),
                b"text"
            );
        }
    }
}
