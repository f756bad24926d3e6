//! Data keys and their subkeys, derived with HKDF-Expand (RFC 5869, section 2.3) over SHA-256 and
//! one label per purpose.

use std::{io, sync::Arc};

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use zeroize::Zeroizing;

use super::{
    KeyringId, ProofKey, RandomnessUnavailable, ReportKey, SigningKey, equal_in_constant_time,
    memory::LockedBlock, random,
};

/// The length of every key, in bytes.
pub const KEY_LEN: usize = 32;

const MESSAGE_LABEL: &[u8] = b"sidekey message v1";
const STREAM_LABEL: &[u8] = b"sidekey stream v1";
const SUCCESSION_LABEL: &[u8] = b"sidekey succession v1";
const CHECK_LABEL: &[u8] = b"sidekey check v1";
const PROOF_LABEL: &[u8] = b"sidekey proof v1";
const REPORT_LABEL: &[u8] = b"sidekey report v1";

/// A 256-bit key that is held briefly. It is zeroized on drop and has no `Debug`.
pub struct SecretKey(Box<Zeroizing<[u8; KEY_LEN]>>);

impl SecretKey {
    /// Generates a random key.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        Ok(Self(Box::new(Zeroizing::new(random()?))))
    }

    /// Returns the key in `bytes`, or `None` unless there are exactly [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(Box::new(Zeroizing::new(bytes.try_into().ok()?))))
    }

    /// Exposes the key bytes, to store or wrap them.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// A data-encryption key: the secret of one key version. Only subkeys derived from it encrypt.
pub struct Dek(SecretKey);

impl Dek {
    /// Generates a random key.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        SecretKey::generate().map(Self)
    }

    /// Returns the key in `bytes`, or `None` unless there are exactly [`KEY_LEN`] of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        SecretKey::from_slice(bytes).map(Self)
    }

    /// Exposes the key bytes, for a KEK to wrap.
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        self.0.expose()
    }

    /// Returns the check value that the manifest carries. It detects a wrong unwrap, and commits to
    /// the key.
    pub fn check_value(&self, keyring: &KeyringId, version: u32) -> [u8; 32] {
        let mut value = [0; 32];
        self.expand(
            &[CHECK_LABEL, &keyring.0, &version.to_be_bytes()],
            &mut value,
        );
        value
    }

    /// Returns whether `expected` is this key's check value, in constant time.
    pub fn matches_check(&self, keyring: &KeyringId, version: u32, expected: &[u8]) -> bool {
        equal_in_constant_time(&self.check_value(keyring, version), expected)
    }

    /// Derives the succession key, which signs manifests and, once, the version's testament. Only
    /// commands keep it: what a sidecar holds in memory can't forge a manifest.
    pub fn succession_key(&self) -> SigningKey {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        self.expand(&[SUCCESSION_LABEL], &mut *seed);
        SigningKey::from_seed(&seed)
    }

    /// Derives the proof key, which shows that a sidecar holds the version.
    pub fn proof_key(&self) -> ProofKey {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        self.expand(&[PROOF_LABEL], &mut *key);
        ProofKey::new(&key)
    }

    /// Derives the report key, which shows that a report's counts come from a holder of the
    /// version.
    pub fn report_key(&self) -> ReportKey {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        self.expand(&[REPORT_LABEL], &mut *key);
        ReportKey::new(&key)
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
        // RFC 5869, section 2.3 limits the output to 255 hashes; every caller takes one.
        assert!(filled.is_ok(), "HKDF-Expand returns {} bytes", out.len());
    }
}

/// The subkeys of one key version in locked memory. Clones share the memory; dropping the last one
/// zeroizes it.
#[derive(Clone)]
pub struct VersionKeys {
    block: Arc<LockedBlock>,
}

impl VersionKeys {
    /// Derives a version's subkeys with HKDF-Expand (RFC 5869) into their own block of locked
    /// memory, so that dropping one version zeroizes its keys while others stay.
    ///
    /// # Errors
    /// The kernel provides no memory.
    pub fn derive(dek: &Dek) -> io::Result<Self> {
        let block = LockedBlock::new(Self::LEN, |bytes| {
            let labels = [MESSAGE_LABEL, STREAM_LABEL, PROOF_LABEL, REPORT_LABEL];
            for (label, subkey) in labels.into_iter().zip(bytes.chunks_exact_mut(KEY_LEN)) {
                dek.expand(&[label], subkey);
            }
        })?;
        Ok(Self {
            block: Arc::new(block),
        })
    }

    const LEN: usize = 4 * KEY_LEN;

    pub(super) fn message_key(&self) -> &[u8] {
        self.block.bytes(0..KEY_LEN)
    }

    pub(super) fn stream_key(&self) -> &[u8] {
        self.block.bytes(KEY_LEN..2 * KEY_LEN)
    }

    /// Returns the proof key, which shows that this process holds the version.
    pub fn proof_key(&self) -> ProofKey {
        ProofKey::new(&self.copy(2 * KEY_LEN))
    }

    /// Returns the report key, which authenticates the counts of a report.
    pub fn report_key(&self) -> ReportKey {
        ReportKey::new(&self.copy(3 * KEY_LEN))
    }

    fn copy(&self, from: usize) -> Zeroizing<[u8; KEY_LEN]> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(self.block.bytes(from..from + KEY_LEN));
        key
    }
}
