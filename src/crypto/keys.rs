//! Data keys and the subkeys derived from them: HKDF-Expand (RFC 5869) with SHA-256 and a label per purpose.

use std::{io, sync::Arc};

use aws_lc_rs::{
    hkdf::{HKDF_SHA256, KeyType, Prk},
    hmac,
};
use zeroize::Zeroizing;

use super::{
    KeyringId, RandomnessUnavailable, equal_in_constant_time, memory::LockedBlock, random,
};

/// The length of every key, in bytes.
pub const KEY_LEN: usize = 32;

const MESSAGE_LABEL: &[u8] = b"sidekey message v1";
const STREAM_LABEL: &[u8] = b"sidekey stream v1";
const MANIFEST_LABEL: &[u8] = b"sidekey manifest v1";
const CHECK_LABEL: &[u8] = b"sidekey check v1";

/// A 256-bit key in memory for a short while: zeroized on drop, without `Debug`, never printed.
pub struct SecretKey(Box<Zeroizing<[u8; KEY_LEN]>>);

impl SecretKey {
    /// A fresh key from the operating system's generator.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        Ok(Self(Box::new(Zeroizing::new(random()?))))
    }

    /// The key in `bytes`, or `None` if there aren't [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(Box::new(Zeroizing::new(bytes.try_into().ok()?))))
    }

    /// The bytes themselves, for whoever must store or wrap them.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// A data-encryption key: the secret of one key version. Never used directly, only its subkeys are.
pub struct Dek(SecretKey);

impl Dek {
    /// A fresh key from the operating system's generator.
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        SecretKey::generate().map(Self)
    }

    /// The key in `bytes`, or `None` if there aren't [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        SecretKey::from_slice(bytes).map(Self)
    }

    /// The bytes themselves, for a KEK to wrap.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        self.0.expose()
    }

    /// The check value that the manifest carries: it finds a wrong unwrap at load, and commits to the key.
    pub fn check_value(&self, keyring: &KeyringId, version: u32) -> [u8; 32] {
        let mut value = [0; 32];
        self.expand(
            &[CHECK_LABEL, &keyring.0, &version.to_be_bytes()],
            &mut value,
        );
        value
    }

    /// Whether `expected` is this key's check value.
    pub fn matches_check(&self, keyring: &KeyringId, version: u32, expected: &[u8]) -> bool {
        equal_in_constant_time(&self.check_value(keyring, version), expected)
    }

    fn expand(&self, info: &[&[u8]], out: &mut [u8]) {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let prk = Prk::new_less_safe(HKDF_SHA256, self.expose());
        let filled = prk
            .expand(info, Length(out.len()))
            .and_then(|okm| okm.fill(out));
        // RFC 5869 §2.3: the only limit is 255 hashes of output; every caller asks for one.
        assert!(
            filled.is_ok(),
            "HKDF-Expand of {} bytes is within its limit",
            out.len()
        );
    }
}

/// The subkeys of one key version, in locked memory. Clones share the memory, which is zeroized with the last of them.
#[derive(Clone)]
pub struct VersionKeys {
    block: Arc<LockedBlock>,
}

impl VersionKeys {
    /// Derives a version's subkeys, into a block of locked memory of its own, so that it is zeroized when that version goes, however
    /// long others stay.
    ///
    /// # Errors
    /// The kernel gave no memory.
    pub fn derive(dek: &Dek) -> io::Result<Self> {
        let block = LockedBlock::new(Self::LEN, |bytes| {
            let labels = [MESSAGE_LABEL, MANIFEST_LABEL, STREAM_LABEL];
            for (label, subkey) in labels.into_iter().zip(bytes.chunks_exact_mut(KEY_LEN)) {
                dek.expand(&[label], subkey);
            }
        })?;
        Ok(Self {
            block: Arc::new(block),
        })
    }

    const LEN: usize = 3 * KEY_LEN;

    pub(super) fn message_key(&self) -> &[u8] {
        self.block.bytes(0..KEY_LEN)
    }

    pub(super) fn stream_key(&self) -> &[u8] {
        self.block.bytes(2 * KEY_LEN..Self::LEN)
    }

    /// HMAC-SHA-256 (RFC 2104) over a manifest's canonical form.
    pub fn manifest_mac(&self, canonical: &[u8]) -> [u8; 32] {
        let mut mac = [0; 32];
        mac.copy_from_slice(hmac::sign(&self.manifest_key(), canonical).as_ref());
        mac
    }

    /// Whether `mac` is this version's MAC over a manifest's canonical form.
    pub fn verifies_manifest(&self, canonical: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.manifest_key(), canonical, mac).is_ok()
    }

    fn manifest_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.block.bytes(KEY_LEN..2 * KEY_LEN))
    }
}
