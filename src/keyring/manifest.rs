//! The manifest: the JSON document that carries a keyring. Nothing in it is secret. docs/format.md
//! specifies every member.

use std::{collections::BTreeSet, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Activation, WaveSelector, activation::current_or_scheduled};
use crate::{
    crypto::KeyringId,
    model::{KekUri, KeyringName, SignerKey, Span},
};

const FORMAT: &str = "sidekey-keyring/1";
/// The largest integer that RFC 8785 numbers (IEEE 754 doubles) represent exactly.
const MAX_GENERATION: u64 = (1 << 53) - 1;
const MAX_WRAPS: usize = 16;
const MAX_VERSIONS: usize = 10_000;
const MAX_ACTIVATIONS: usize = 20_000;
const MAX_WAVES: usize = 256;

/// A keyring as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `sidekey-keyring/1`.
    pub format: String,
    /// The keyring's name.
    pub name: KeyringName,
    /// The keyring's random id, to which every ciphertext is bound.
    pub id: KeyringId,
    /// Incremented by every change, from 1.
    pub generation: u64,
    /// When this generation was written.
    pub updated_at: Timestamp,
    /// Every version ever created, from 1, without gaps: a destroyed one leaves a tombstone.
    pub versions: Vec<Version>,
    /// Every activation, in the order in which they were decided.
    pub activations: Vec<Activation>,
    /// Periods and waiting times.
    pub policy: Policy,
    /// The last verified backup.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_backup: Option<BackupRecord>,
    /// Proof that holders of the keys wrote this manifest.
    pub authentication: Authentication,
}

/// One data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Its number, from 1.
    pub version: u32,
    /// Its stored state.
    pub state: State,
    /// Whether others may know the key.
    pub compromised: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When `state` last changed.
    pub state_changed_at: Timestamp,
    /// The data key under each KEK; empty once it is destroyed.
    pub wraps: Vec<Wrap>,
    /// The check value: 32 bytes that commit to the key.
    pub check: Base64,
}

/// The stored state of a version (NIST SP 800-57 part 1, section 7). Roles are computed, never
/// stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Decrypts, and encrypts while it is primary.
    Enabled,
    /// Suspended: doesn't decrypt, and can be enabled again.
    Disabled,
    /// Destroyed for good; only a tombstone is left.
    Destroyed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
        })
    }
}

/// A data key under one KEK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    /// The KEK.
    pub kek: KekUri,
    /// The wrapped data key.
    pub ciphertext: Base64,
    /// When it was wrapped.
    pub wrapped_at: Timestamp,
}

/// A keyring's periods and waiting times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How often a new version is due.
    pub rotate_every: Span,
    /// How long a version must be unused before it is disabled.
    pub quiet_period: Span,
    /// How long a sidecar that can't confirm its manifest keeps encrypting.
    pub encrypt_lease: Span,
    /// How long a version must be disabled before it is destroyed.
    pub destroy_after: Span,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rotate_every: Span::from_days(90),
            quiet_period: Span::from_days(30),
            encrypt_lease: Span::from_days(30),
            destroy_after: Span::from_days(30),
        }
    }
}

/// A backup that was decrypted and verified to contain the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRecord {
    /// When it was verified.
    pub verified_at: Timestamp,
    /// The SHA-256 of the file (32 bytes).
    pub sha256: Base64,
    /// The generation in the backup.
    pub generation: u64,
    /// The newest version in the backup, which holds it and all before that were not destroyed
    /// then.
    pub newest_version: u32,
}

/// A member that is present is not null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BackupRecord>, D::Error> {
    BackupRecord::deserialize(deserializer).map(Some)
}

/// Proof of who wrote a manifest. It covers the canonical form (RFC 8785) of all other members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authentication {
    /// One MAC by every version that is not destroyed.
    pub macs: Vec<Mac>,
    /// Operators' signatures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// An HMAC-SHA-256 (RFC 2104) with a version's manifest subkey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mac {
    /// The version.
    pub version: u32,
    /// 32 bytes.
    pub mac: Base64,
}

/// An Ed25519 signature (RFC 8032).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The signer's public key.
    pub signer: SignerKey,
    /// 64 bytes.
    pub signature: Base64,
}

/// Bytes, written as base64 with padding (RFC 4648, section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(text)
            .map(Self)
            .map_err(|_| de::Error::custom("not base64 with padding"))
    }
}

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
        let problems = manifest.problems();
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

impl Manifest {
    /// Returns a keyring without versions, for `init`.
    pub(super) fn empty(name: KeyringName, id: KeyringId, policy: Policy, now: Timestamp) -> Self {
        Self {
            format: FORMAT.into(),
            name,
            id,
            generation: 0,
            updated_at: now,
            versions: Vec::new(),
            activations: Vec::new(),
            policy,
            last_backup: None,
            authentication: Authentication::default(),
        }
    }

    /// Returns the version with this number.
    pub fn version(&self, number: u32) -> Option<&Version> {
        self.versions
            .get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// Returns the versions that are not destroyed.
    pub fn live(&self) -> impl Iterator<Item = &Version> {
        self.versions
            .iter()
            .filter(|version| version.state != State::Destroyed)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.format != FORMAT {
            problems.push(format!(
                "format is {:?}, but this build supports only {FORMAT:?}",
                self.format
            ));
        }
        if !(1..=MAX_GENERATION).contains(&self.generation) {
            problems.push(format!(
                "generation {} is not between 1 and 2^53-1",
                self.generation
            ));
        }
        if self.versions.is_empty() {
            problems.push("there are no versions".into());
        }
        for (expected, version) in (1..).zip(&self.versions) {
            if version.version != expected {
                problems.push(format!(
                    "found version {} instead of version {expected}: versions count up from 1, \
                     each once",
                    version.version
                ));
                // Every later one would differ, too.
                break;
            }
            problems.extend(
                version
                    .problems()
                    .map(|problem| format!("version {expected}: {problem}")),
            );
        }
        // Before any computation whose cost grows with them: anyone may have written this manifest.
        let waves: BTreeSet<&WaveSelector> = self
            .activations
            .iter()
            .map(|activation| &activation.wave)
            .collect();
        if self.versions.len() > MAX_VERSIONS
            || self.activations.len() > MAX_ACTIVATIONS
            || waves.len() > MAX_WAVES
        {
            return vec![format!(
                "more than {MAX_VERSIONS} versions, {MAX_ACTIVATIONS} activations or {MAX_WAVES} \
                 waves"
            )];
        }
        for activation in &self.activations {
            if self.version(activation.version).is_none() {
                problems.push(format!(
                    "an activation names version {}, which doesn't exist",
                    activation.version
                ));
            }
        }
        let primaries = current_or_scheduled(&self.activations, self.updated_at);
        for version in self
            .versions
            .iter()
            .filter(|version| version.state != State::Enabled)
        {
            if primaries.contains(&version.version) {
                problems.push(format!(
                    "version {} is {}, but is or becomes a wave's primary",
                    version.version, version.state
                ));
            }
        }
        problems.extend(self.backup_problem());
        problems.extend(self.authentication_problems());
        problems
    }

    fn backup_problem(&self) -> Option<String> {
        let backup = self.last_backup.as_ref()?;
        let is_valid = backup.sha256.0.len() == 32
            && (1..self.generation).contains(&backup.generation)
            && self.version(backup.newest_version).is_some();
        (!is_valid).then(|| "last_backup has an invalid SHA-256, generation or version".into())
    }

    fn authentication_problems(&self) -> impl Iterator<Item = String> {
        let live: BTreeSet<u32> = self.live().map(|version| version.version).collect();
        let authenticated: BTreeSet<u32> = self
            .authentication
            .macs
            .iter()
            .map(|mac| mac.version)
            .collect();
        let mut problems = Vec::new();
        if live != authenticated || authenticated.len() != self.authentication.macs.len() {
            let problem = "authentication.macs must have exactly one entry for every version that \
                           is not destroyed";
            problems.push(problem.into());
        }
        if self
            .authentication
            .macs
            .iter()
            .any(|mac| mac.mac.0.len() != 32)
        {
            problems.push("a MAC is not 32 bytes long".into());
        }
        if self
            .authentication
            .signatures
            .iter()
            .any(|signature| signature.signature.0.len() != 64)
        {
            problems.push("a signature is not 64 bytes long".into());
        }
        problems.into_iter()
    }
}

impl Version {
    fn problems(&self) -> impl Iterator<Item = &'static str> {
        let keks: BTreeSet<&KekUri> = self.wraps.iter().map(|wrap| &wrap.kek).collect();
        let found = [
            (
                self.check.0.len() != 32,
                "its check value is not 32 bytes long",
            ),
            (
                self.state == State::Destroyed && !self.wraps.is_empty(),
                "it is destroyed but has wraps",
            ),
            (
                self.state != State::Destroyed && self.wraps.is_empty(),
                "it has no wrap",
            ),
            (self.wraps.len() > MAX_WRAPS, "it has more than 16 wraps"),
            (
                keks.len() != self.wraps.len(),
                "it has two wraps by one KEK",
            ),
        ];
        found
            .into_iter()
            .filter_map(|(wrong, problem)| wrong.then_some(problem))
    }
}
