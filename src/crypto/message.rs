//! The message format, suite 0x01: header, nonce, ciphertext and tag of XAES-256-GCM
//! (<https://c2sp.org/XAES-256-GCM>). docs/format.md specifies every byte.

use aws_lc_rs::error::Unspecified;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use smallvec::SmallVec;

use super::{
    CiphertextError, Header, KeyringId, OVERHEAD, PREFIX_LEN, RandomnessUnavailable, SUITE_MESSAGE,
    SUITE_STREAM, StreamOpener, VersionKeys,
    header::HEADER_LEN,
    random,
    xaes::{DerivedKey, NONCE_LEN},
};

/// The prefix of the text form.
pub const TEXT_PREFIX: &str = "sk1.";

/// Encrypts the messages of one request with XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>).
///
/// A request draws one random nonce and derives one AES-256-GCM key from its first half. Message
/// *i* uses the nonce with *i* added to its second half, so every message has a nonce of its own.
pub struct Sealer {
    keyring: KeyringId,
    header: Header,
    key: DerivedKey,
    nonce: [u8; NONCE_LEN],
}

impl Sealer {
    /// Creates a sealer with a version's message subkey and a random nonce.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
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

    /// Encrypts in place. `buffer[from..]` is [`PREFIX_LEN`] bytes of space followed by the
    /// plaintext, and becomes a message.
    ///
    /// # Panics
    /// If `buffer[from..]` is shorter than [`PREFIX_LEN`], or if the plaintext is longer than
    /// AES-GCM allows (64 GiB; NIST SP 800-38D, section 5.2.1.1).
    pub fn seal(&mut self, aad: &[u8], buffer: &mut Vec<u8>, from: usize) {
        let (prefix, plaintext) = buffer[from..].split_at_mut(PREFIX_LEN);
        prefix[..HEADER_LEN].copy_from_slice(&self.header.bytes());
        prefix[HEADER_LEN..].copy_from_slice(&self.nonce);
        let sealed = self.key.seal(
            &self.nonce,
            &bound_aad(&self.header, &self.keyring, aad),
            plaintext,
        );
        let Ok(tag) = sealed else {
            panic!("a plaintext is shorter than 64 GiB")
        };
        buffer.extend_from_slice(&tag);
        self.advance();
    }

    /// Like [`Sealer::seal`], but copies the plaintext.
    pub fn seal_copy(&mut self, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::with_capacity(plaintext.len() + OVERHEAD);
        buffer.resize(PREFIX_LEN, 0);
        buffer.extend_from_slice(plaintext);
        self.seal(aad, &mut buffer, 0);
        buffer
    }

    /// Adds one to the second half of the nonce: 12 bytes, big-endian, modulo 2^96.
    fn advance(&mut self) {
        for byte in self.nonce[NONCE_LEN / 2..].iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

/// Decrypts messages and streams of one keyring. The derived key is reused while consecutive
/// messages share version and first nonce half, as those of one batch do.
#[derive(Default)]
pub struct Opener {
    last: Option<(u32, [u8; NONCE_LEN / 2], DerivedKey)>,
}

impl Opener {
    /// Decrypts a complete message or stream in place and returns the plaintext. `header` is the
    /// result of [`Header::parse`] for `message`, and `keys` belong to the version that it names.
    ///
    /// # Errors
    /// [`CiphertextError::DecryptionFailed`]; the contents of `message` are then undefined.
    pub fn open<'m>(
        &mut self,
        keys: &VersionKeys,
        keyring: &KeyringId,
        header: &Header,
        aad: &[u8],
        message: &'m mut [u8],
    ) -> Result<&'m mut [u8], CiphertextError> {
        if header.suite == SUITE_STREAM {
            return StreamOpener::open_all(keys, keyring, aad, message);
        }
        let (prefix, sealed) = message
            .split_at_mut_checked(PREFIX_LEN)
            .ok_or(CiphertextError::DecryptionFailed)?;
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&prefix[HEADER_LEN..]);
        self.key(keys, header.version, &nonce)
            .open(&nonce, &bound_aad(header, keyring, aad), sealed)
            .map_err(|Unspecified| CiphertextError::DecryptionFailed)
    }

    fn key(&mut self, keys: &VersionKeys, version: u32, nonce: &[u8; NONCE_LEN]) -> &DerivedKey {
        let mut half = [0; NONCE_LEN / 2];
        half.copy_from_slice(&nonce[..NONCE_LEN / 2]);
        let is_same =
            |last: &(u32, [u8; NONCE_LEN / 2], DerivedKey)| (last.0, last.1) == (version, half);
        self.last = self.last.take().filter(is_same);
        let (_, _, key) = self
            .last
            .get_or_insert_with(|| (version, half, derive(keys, nonce)));
        key
    }
}

/// Binds a message to its header and keyring: header, keyring id, and the caller's AAD.
fn bound_aad(header: &Header, keyring: &KeyringId, caller: &[u8]) -> SmallVec<[u8; 256]> {
    let mut aad = SmallVec::new();
    aad.extend_from_slice(&header.bytes());
    aad.extend_from_slice(&keyring.0);
    aad.extend_from_slice(caller);
    aad
}

fn derive(keys: &VersionKeys, nonce: &[u8; NONCE_LEN]) -> DerivedKey {
    // Fails only for a key of another length, which the types rule out, or without memory.
    let Ok(key) = DerivedKey::new(keys.message_key(), nonce) else {
        panic!("a 32-byte key derives")
    };
    key
}

/// Returns the text form: `sk1.` and the message in base64url without padding (RFC 4648, section
/// 5).
pub fn to_text(message: &[u8]) -> String {
    let mut text = String::with_capacity(TEXT_PREFIX.len() + message.len().div_ceil(3) * 4);
    text.push_str(TEXT_PREFIX);
    URL_SAFE_NO_PAD.encode_string(message, &mut text);
    text
}

/// Decodes the text form of a message.
///
/// # Errors
/// [`CiphertextError::Malformed`]
pub fn from_text(text: &str) -> Result<Vec<u8>, CiphertextError> {
    let encoded = text
        .strip_prefix(TEXT_PREFIX)
        .ok_or(CiphertextError::Malformed(
            "the text form doesn't begin with `sk1.`",
        ))?;
    URL_SAFE_NO_PAD.decode(encoded).map_err(|_| {
        CiphertextError::Malformed(
            "the text after `sk1.` is not base64url (RFC 4648 §5) without padding and line breaks",
        )
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

    fn open(
        keys: &VersionKeys,
        aad: &[u8],
        mut message: Vec<u8>,
    ) -> Result<Vec<u8>, CiphertextError> {
        let header = Header::parse(&message, &ID)?;
        Opener::default()
            .open(keys, &ID, &header, aad, &mut message)
            .map(|plaintext| plaintext.to_vec())
    }

    proptest! {
        #[test]
        fn a_sealed_message_opens(plaintext: Vec<u8>, aad: Vec<u8>, version: u32) {
            let keys = keys(1);
            let mut sealer = Sealer::new(&keys, ID, version).expect("random");
            let message = sealer.seal_copy(&aad, &plaintext);
            prop_assert_eq!(message.len(), plaintext.len() + OVERHEAD);
            prop_assert_eq!(Header::parse(&message, &ID).expect("header").version, version);
            prop_assert_eq!(from_text(&to_text(&message)).expect("text"), message.clone());
            prop_assert_eq!(open(&keys, &aad, message).expect("open"), plaintext);
        }

        #[test]
        fn every_flipped_bit_is_refused(at in 0..OVERHEAD + 20, bit in 0..8) {
            let keys = keys(1);
            let mut sealer = Sealer::new(&keys, ID, 1).expect("random");
            let mut message = sealer.seal_copy(b"aad", &[0; 20]);
            message[at] ^= 1u8 << bit;
            prop_assert!(open(&keys, b"aad", message).is_err());
        }

        #[test]
        fn garbage_is_an_error_and_never_panics(bytes: Vec<u8>, text: String) {
            prop_assert!(open(&keys(1), b"", bytes).is_err());
            prop_assert!(from_text(&text).is_err() || text.starts_with(TEXT_PREFIX));
        }
    }

    #[test]
    fn every_truncation_is_refused() {
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
    fn other_aad_keyrings_and_keys_are_refused() {
        let keys = keys(1);
        let message = Sealer::new(&keys, ID, 1)
            .expect("random")
            .seal_copy(b"aad", b"plaintext");
        assert_eq!(
            open(&keys, b"other", message.clone()),
            Err(CiphertextError::DecryptionFailed)
        );
        assert_eq!(
            open(&super::tests::keys(2), b"aad", message.clone()),
            Err(CiphertextError::DecryptionFailed)
        );
        assert_eq!(
            Header::parse(&message, &KeyringId([0; 16])),
            Err(CiphertextError::WrongKeyring)
        );
        // The AAD includes the whole keyring id, which tells apart keyrings with one tag.
        let mut twin = ID;
        twin.0[15] ^= 1;
        let header = Header::parse(&message, &twin).expect("same tag");
        let opened = Opener::default()
            .open(&keys, &twin, &header, b"aad", &mut message.clone())
            .map(|plaintext| plaintext.to_vec());
        assert_eq!(opened, Err(CiphertextError::DecryptionFailed));
    }

    #[test]
    fn each_message_increments_the_second_nonce_half_which_wraps() {
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
