//! Ed25519 signatures (RFC 8032, section 5.1) over manifests, testaments and reports.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::{RandomnessUnavailable, random};

/// An Ed25519 private key (RFC 8032): an operator's, the succession key of a version, or that of a
/// process. AWS-LC zeroizes it when it is freed.
pub struct SigningKey(Ed25519KeyPair);

/// The input is not a signing key.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// Not a PKCS#8 key in PEM.
    #[error("not a PKCS#8 key in PEM; create one with: openssl genpkey -algorithm ed25519 ({0})")]
    Pem(String),
    /// A key of another type.
    #[error("not an Ed25519 key; create one with: openssl genpkey -algorithm ed25519")]
    NotEd25519,
}

impl SigningKey {
    /// Parses a PKCS#8 key in PEM (RFC 5958, RFC 7468), such as the output of
    /// `openssl genpkey -algorithm ed25519`.
    ///
    /// # Errors
    /// [`SigningKeyError`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, SigningKeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|error| SigningKeyError::Pem(error.to_string()))?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map(Self)
            .map_err(|_| SigningKeyError::NotEd25519)
    }

    /// Generates a key that lives only in this process.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn generate() -> Result<Self, RandomnessUnavailable> {
        Ok(Self::from_seed(&Zeroizing::new(random()?)))
    }

    /// Returns the key with this seed (the private key of RFC 8032, section 5.1.5).
    pub(super) fn from_seed(seed: &[u8; 32]) -> Self {
        match Ed25519KeyPair::from_seed_unchecked(seed) {
            Ok(pair) => Self(pair),
            Err(error) => unreachable!("every 32 bytes are an Ed25519 seed: {error}"),
        }
    }

    /// Returns the public key.
    pub fn public_key(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.0.public_key().as_ref());
        public
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

/// Verifies an Ed25519 signature (RFC 8032, section 5.1.7) over `message`.
pub fn verify_signature(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(message, signature)
        .is_ok()
}
