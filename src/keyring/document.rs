//! A manifest with its bytes: parsing, and the canonical form that its authentication covers.

use bytes::Bytes;

use super::{Authentication, Manifest, consistency, manifest::FORMAT};
use crate::crypto::{fingerprint, to_hex};

/// The bytes are not a valid manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, another format, or a missing, unknown or duplicate member.
    #[error("not a keyring manifest: {0}")]
    Syntax(String),
    /// The members contradict each other. Lists every contradiction.
    #[error("the manifest is inconsistent: {}", shortened(.0))]
    Invalid(Vec<String>),
}

/// Bounds the length of a log line, because anyone may have written the manifest.
fn shortened(problems: &[String]) -> String {
    const SHOWN: usize = 5;

    let shown = problems
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// A manifest with its stored bytes, and with the bytes that its authentication covers.
#[derive(Debug, Clone)]
pub struct Document {
    manifest: Manifest,
    bytes: Bytes,
    canonical: Vec<u8>,
}

/// Returns whether bytes that don't parse are a manifest in another format, such as that of a newer
/// Sidekey, rather than a damaged one.
pub fn is_of_another_format(bytes: &[u8]) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    value
        .as_ref()
        .and_then(|value| value.get("format")?.as_str())
        .is_some_and(|format| format != FORMAT)
}

impl Document {
    /// Parses and validates a manifest. Its authentication is verified later, with the keys.
    ///
    /// # Errors
    /// [`ManifestError`], with line and column, or with every contradiction.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, ManifestError> {
        let bytes = bytes.into();
        let syntax = |error: serde_json::Error| ManifestError::Syntax(error.to_string());
        // The typed parser refuses unknown and duplicate members at every level, so the untyped
        // value below can't differ from it.
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(syntax)?;
        let value = serde_json::from_slice(&bytes).map_err(syntax)?;
        let problems = consistency::problems(&manifest);
        if !problems.is_empty() {
            return Err(ManifestError::Invalid(problems));
        }
        Ok(Self {
            manifest,
            bytes,
            canonical: canonical(value),
        })
    }

    /// Creates a document from a manifest. `prove` authenticates the canonical bytes.
    pub(super) fn compose(
        mut manifest: Manifest,
        prove: impl FnOnce(&Manifest, &[u8]) -> Authentication,
    ) -> Self {
        let canonical = canonical(to_value(&manifest));
        manifest.authentication = prove(&manifest, &canonical);
        let mut bytes = match serde_json::to_vec_pretty(&manifest) {
            Ok(bytes) => bytes,
            Err(error) => {
                unreachable!("a manifest has only string keys and finite numbers: {error}")
            }
        };
        bytes.push(b'\n');
        Self {
            manifest,
            bytes: bytes.into(),
            canonical,
        }
    }

    /// Returns the manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the stored bytes. A clone shares them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the bytes that the authentication covers: the RFC 8785 form without
    /// `authentication`.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// Returns the SHA-256 of the covered bytes, which names this generation in a lineage.
    pub fn digest(&self) -> [u8; 32] {
        fingerprint(&self.canonical)
    }

    /// Returns [`Document::digest`] in hexadecimal digits, as commands print and take it.
    pub fn digest_hex(&self) -> String {
        to_hex(&self.digest())
    }
}

fn to_value(manifest: &Manifest) -> serde_json::Value {
    match serde_json::to_value(manifest) {
        Ok(value) => value,
        Err(error) => unreachable!("a manifest has only string keys and finite numbers: {error}"),
    }
}

fn canonical(mut value: serde_json::Value) -> Vec<u8> {
    if let Some(members) = value.as_object_mut() {
        members.remove("authentication");
    }
    match serde_json_canonicalizer::to_vec(&value) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("every JSON value has a canonical form: {error}"),
    }
}
