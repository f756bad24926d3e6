//! Ed25519 (RFC 8032) signatures over manifests.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

/// An operator's signing key.
pub struct SigningKey(Ed25519KeyPair);

/// Why a file holds no signing key.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// Not readable, or not PEM.
    #[error("not a PKCS#8 PEM file (make one with `openssl genpkey -algorithm ed25519`): {0}")]
    Pem(String),
    /// A key of another kind.
    #[error("not an Ed25519 key (make one with `openssl genpkey -algorithm ed25519`)")]
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

    /// The public half.
    pub fn public_key(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.0.public_key().as_ref());
        public
    }

    /// The signature over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

/// Whether `signature` over `message` is that of the holder of `public_key`.
pub fn verify_signature(public_key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(message, signature)
        .is_ok()
}
