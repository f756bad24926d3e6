//! The stream format, suite 0x02: header, nonce, and chunks by the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár,
//! "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", §7), laid out as age does (C2SP, age.md, "Payload").
//! See docs/format.md for every byte.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
};

use super::{
    KeyringId, MessageError, RandomnessUnavailable, VersionKeys, fingerprint,
    message::{HEADER_LEN, Header, PREFIX_LEN},
    random,
    xaes::{NONCE_LEN, TAG_LEN},
};

/// The first byte of a stream.
pub const SUITE_STREAM: u8 = 0x02;
/// The plaintext bytes of every chunk but the last, which may have fewer.
pub const CHUNK_LEN: usize = 64 << 10;
/// The bytes of a whole chunk in a stream.
pub const SEALED_CHUNK_LEN: usize = CHUNK_LEN + TAG_LEN;

const LABEL: &[u8] = b"sidekey stream v1";

/// How long the stream of a plaintext is, in bytes; `None` if that is more than 2^64.
pub fn sealed_stream_len(plaintext: u64) -> Option<u64> {
    let chunks = plaintext.div_ceil(CHUNK_LEN as u64).max(1);
    plaintext
        .checked_add(PREFIX_LEN as u64)?
        .checked_add(chunks.checked_mul(TAG_LEN as u64)?)
}

/// How long the plaintext of a stream is, in bytes; `None` if no stream has that length.
pub fn opened_stream_len(stream: u64) -> Option<u64> {
    let sealed = stream.checked_sub(PREFIX_LEN as u64)?;
    let plaintext =
        sealed.checked_sub(sealed.div_ceil(SEALED_CHUNK_LEN as u64).max(1) * TAG_LEN as u64)?;
    (sealed_stream_len(plaintext) == Some(stream)).then_some(plaintext)
}

/// Encrypts the chunks of one stream, in order.
pub struct StreamSealer(Chunks);

impl StreamSealer {
    /// A sealer under a version's stream subkey, with a fresh nonce, and the bytes that the stream begins with.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn new(
        keys: &VersionKeys,
        keyring: &KeyringId,
        version: u32,
        aad: &[u8],
    ) -> Result<(Self, [u8; PREFIX_LEN]), RandomnessUnavailable> {
        let mut prefix = [0; PREFIX_LEN];
        let (header, nonce) = prefix.split_at_mut(HEADER_LEN);
        header.copy_from_slice(&Header::new(SUITE_STREAM, version, keyring).bytes());
        nonce.copy_from_slice(&random::<NONCE_LEN>()?);
        Ok((Self(Chunks::new(keys, keyring, &prefix, aad)), prefix))
    }

    /// Encrypts the plaintext in `buffer` from `from` on, in place, as the next chunk. Every chunk but the last has [`CHUNK_LEN`]
    /// bytes; the last is empty only if it is also the first.
    ///
    /// # Panics
    /// If a chunk has another length than that, or one came after the last.
    pub fn seal(&mut self, is_last: bool, buffer: &mut Vec<u8>, from: usize) {
        let length = buffer.len() - from;
        assert!(
            length == CHUNK_LEN
                || is_last && length < CHUNK_LEN && (length > 0 || self.0.next == 0),
            "a chunk of {length} bytes"
        );
        let nonce = self.0.nonce(is_last);
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut buffer[from..]);
        let Ok(tag) = tag else {
            unreachable!("64 KiB are not too much for AES-GCM")
        };
        buffer.extend_from_slice(tag.as_ref());
    }
}

/// Decrypts the chunks of one stream, in order.
pub struct StreamOpener(Chunks);

impl StreamOpener {
    /// An opener for the stream that begins with `prefix`, by the keys of the version that its header names.
    pub fn new(
        keys: &VersionKeys,
        keyring: &KeyringId,
        prefix: &[u8; PREFIX_LEN],
        aad: &[u8],
    ) -> Self {
        Self(Chunks::new(keys, keyring, prefix, aad))
    }

    /// Decrypts the next chunk in place and gives the plaintext's part of it. `is_last` says whether the stream ends behind it.
    ///
    /// # Errors
    /// [`MessageError::DecryptionFailed`]: other bytes than were sealed, another AAD, or not the chunk that stood here. A chunk of
    /// a length that no sealer makes is the same. The rest of the stream is then of no use.
    pub fn open<'c>(
        &mut self,
        is_last: bool,
        chunk: &'c mut [u8],
    ) -> Result<&'c mut [u8], MessageError> {
        let is_whole = chunk.len() == SEALED_CHUNK_LEN;
        let is_shorter =
            chunk.len() < SEALED_CHUNK_LEN && (chunk.len() > TAG_LEN || self.0.next == 0);
        if !(is_whole || is_last && is_shorter) {
            return Err(MessageError::DecryptionFailed);
        }
        let nonce = self.0.nonce(is_last);
        self.0
            .key
            .open_in_place(nonce, Aad::empty(), chunk)
            .map_err(|Unspecified| MessageError::DecryptionFailed)
    }

    /// Decrypts a whole stream that is in memory, in place, and gives its plaintext, which stands behind the prefix.
    ///
    /// # Errors
    /// As [`Self::open`]; `stream` is then no longer of any use.
    pub fn open_all<'s>(
        keys: &VersionKeys,
        keyring: &KeyringId,
        aad: &[u8],
        stream: &'s mut [u8],
    ) -> Result<&'s mut [u8], MessageError> {
        let (prefix, sealed) = stream
            .split_first_chunk_mut::<PREFIX_LEN>()
            .ok_or(MessageError::DecryptionFailed)?;
        let mut opener = Self::new(keys, keyring, prefix, aad);
        let (mut read, mut written) = (0, 0);
        loop {
            let end = sealed.len().min(read + SEALED_CHUNK_LEN);
            let length = opener
                .open(end == sealed.len(), &mut sealed[read..end])?
                .len();
            sealed.copy_within(read..read + length, written);
            (read, written) = (end, written + length);
            if read == sealed.len() {
                return Ok(&mut sealed[..written]);
            }
        }
    }
}

/// The key of one stream and the number of its next chunk.
struct Chunks {
    key: LessSafeKey,
    next: u64,
    is_over: bool,
}

impl Chunks {
    fn new(keys: &VersionKeys, keyring: &KeyringId, prefix: &[u8; PREFIX_LEN], aad: &[u8]) -> Self {
        let (header, nonce) = prefix.split_at(HEADER_LEN);
        let info = [LABEL, header, &keyring.0, &fingerprint(aad)];
        let prk = Salt::new(HKDF_SHA256, nonce).extract(keys.stream_key());
        // RFC 5869 §2.3: the only limit is 255 hashes of output; a key is one.
        let Ok(okm) = prk.expand(&info, &AES_256_GCM) else {
            unreachable!("a key of 32 bytes expands")
        };
        Self {
            key: LessSafeKey::new(UnboundKey::from(okm)),
            next: 0,
            is_over: false,
        }
    }

    /// The next chunk's nonce: its number in 11 bytes, and whether it is the last in one.
    fn nonce(&mut self, is_last: bool) -> Nonce {
        assert!(!self.is_over, "no chunk comes after the last");
        self.is_over = is_last;
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.next += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

#[cfg(test)]
mod tests;
