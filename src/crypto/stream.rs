//! The stream format, suite 0x02: header, nonce and chunks. docs/format.md specifies every byte.
//!
//! Chunks use the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár, "Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015, section 7) over
//! AES-256-GCM (NIST SP 800-38D). Their layout is that of age (<https://c2sp.org/age>, "Payload").

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
};

use super::{
    CiphertextError, Header, KeyringId, PREFIX_LEN, RandomnessUnavailable, SUITE_STREAM,
    VersionKeys, fingerprint,
    header::HEADER_LEN,
    random,
    xaes::{NONCE_LEN, TAG_LEN},
};

/// The plaintext length of every chunk but the last, which may be shorter, in bytes.
pub const CHUNK_LEN: usize = 64 << 10;
/// The length of a full chunk in a stream, in bytes.
pub const SEALED_CHUNK_LEN: usize = CHUNK_LEN + TAG_LEN;

const LABEL: &[u8] = b"sidekey stream v1";

/// Returns the length of a plaintext's stream in bytes, or `None` if it doesn't fit in 64 bits.
pub fn sealed_stream_len(plaintext: u64) -> Option<u64> {
    let chunks = plaintext.div_ceil(CHUNK_LEN as u64).max(1);
    plaintext
        .checked_add(PREFIX_LEN as u64)?
        .checked_add(chunks.checked_mul(TAG_LEN as u64)?)
}

/// Returns the length of a stream's plaintext in bytes, or `None` if no stream has this length.
pub fn opened_stream_len(stream: u64) -> Option<u64> {
    let sealed = stream.checked_sub(PREFIX_LEN as u64)?;
    let plaintext =
        sealed.checked_sub(sealed.div_ceil(SEALED_CHUNK_LEN as u64).max(1) * TAG_LEN as u64)?;
    (sealed_stream_len(plaintext) == Some(stream)).then_some(plaintext)
}

/// Encrypts the chunks of one stream in order, as STREAM over AES-256-GCM (see the module).
pub struct StreamSealer(Chunks);

impl StreamSealer {
    /// Creates a sealer with a version's stream subkey and a random nonce, and returns it with the
    /// first bytes of the stream.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
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

    /// Encrypts the plaintext `buffer[from..]` in place as the next chunk. Every chunk but the last
    /// has [`CHUNK_LEN`] bytes. The last may be shorter, and empty only if it is also the first.
    ///
    /// # Panics
    /// If the chunk has another length, or the last chunk was sealed already.
    pub fn seal(&mut self, is_last: bool, buffer: &mut Vec<u8>, from: usize) {
        let length = buffer.len() - from;
        assert!(
            length == CHUNK_LEN
                || is_last && length < CHUNK_LEN && (length > 0 || self.0.next == 0),
            "invalid chunk length: {length} bytes"
        );
        let nonce = self.0.nonce(is_last);
        let tag = self
            .0
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut buffer[from..]);
        let Ok(tag) = tag else {
            unreachable!("AES-GCM encrypts 64 KiB")
        };
        buffer.extend_from_slice(tag.as_ref());
    }
}

/// Decrypts the chunks of one stream in order, as STREAM over AES-256-GCM (see the module).
pub struct StreamOpener(Chunks);

impl StreamOpener {
    /// Creates an opener for the stream that begins with `prefix`. `keys` belong to the version
    /// that its header names.
    pub fn new(
        keys: &VersionKeys,
        keyring: &KeyringId,
        prefix: &[u8; PREFIX_LEN],
        aad: &[u8],
    ) -> Self {
        Self(Chunks::new(keys, keyring, prefix, aad))
    }

    /// Decrypts the next chunk in place and returns its plaintext. `is_last` states whether the
    /// stream ends after it.
    ///
    /// # Errors
    /// [`CiphertextError::DecryptionFailed`]: the chunk was modified, reordered, dropped or
    /// truncated, or the AAD differs. Nothing after it can be decrypted.
    pub fn open<'c>(
        &mut self,
        is_last: bool,
        chunk: &'c mut [u8],
    ) -> Result<&'c mut [u8], CiphertextError> {
        let is_full = chunk.len() == SEALED_CHUNK_LEN;
        let is_shorter =
            chunk.len() < SEALED_CHUNK_LEN && (chunk.len() > TAG_LEN || self.0.next == 0);
        if !(is_full || is_last && is_shorter) {
            return Err(CiphertextError::DecryptionFailed);
        }
        let nonce = self.0.nonce(is_last);
        self.0
            .key
            .open_in_place(nonce, Aad::empty(), chunk)
            .map_err(|Unspecified| CiphertextError::DecryptionFailed)
    }

    /// Decrypts a complete stream in place and returns its plaintext.
    ///
    /// # Errors
    /// Those of [`Self::open`]; the contents of `stream` are then undefined.
    pub fn open_all<'s>(
        keys: &VersionKeys,
        keyring: &KeyringId,
        aad: &[u8],
        stream: &'s mut [u8],
    ) -> Result<&'s mut [u8], CiphertextError> {
        let (prefix, sealed) = stream
            .split_first_chunk_mut::<PREFIX_LEN>()
            .ok_or(CiphertextError::DecryptionFailed)?;
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

/// A stream's key and the number of its next chunk.
struct Chunks {
    key: LessSafeKey,
    next: u64,
    is_finished: bool,
}

impl Chunks {
    fn new(keys: &VersionKeys, keyring: &KeyringId, prefix: &[u8; PREFIX_LEN], aad: &[u8]) -> Self {
        let (header, nonce) = prefix.split_at(HEADER_LEN);
        let info = [LABEL, header, &keyring.0, &fingerprint(aad)];
        let prk = Salt::new(HKDF_SHA256, nonce).extract(keys.stream_key());
        // RFC 5869, section 2.3 limits the output to 255 hashes; a key takes one.
        let Ok(okm) = prk.expand(&info, &AES_256_GCM) else {
            unreachable!("HKDF-Expand returns 32 bytes")
        };
        Self {
            key: LessSafeKey::new(UnboundKey::from(okm)),
            next: 0,
            is_finished: false,
        }
    }

    /// Returns the next chunk's nonce: its number in 11 bytes, then 1 for the last chunk, else 0.
    fn nonce(&mut self, is_last: bool) -> Nonce {
        assert!(!self.is_finished, "the last chunk was processed already");
        self.is_finished = is_last;
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.next += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

#[cfg(test)]
mod tests;
