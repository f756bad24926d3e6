//! The manifest: the JSON document that carries a keyring. Nothing in it is secret. docs/format.md describes every member.

use std::{collections::BTreeSet, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Activation, WaveSelector, activation::reigning};
use crate::{
    crypto::KeyringId,
    model::{KekUri, KeyringName, SignerKey, Span},
};

const FORMAT: &str = "sidekey-keyring/1";
/// The largest integer that RFC 8785 numbers (IEEE 754 doubles) keep exactly.
const MAX_GENERATION: u64 = (1 << 53) - 1;
const MAX_WRAPS: usize = 16;
const MAX_VERSIONS: usize = 10_000;
const MAX_ACTIVATIONS: usize = 20_000;
const MAX_WAVES: usize = 256;

/// A keyring, as its manifest tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `sidekey-keyring/1`.
    pub format: String,
    /// The keyring's name.
    pub name: KeyringName,
    /// The keyring's random id, which every ciphertext is bound to.
    pub id: KeyringId,
    /// Counts the changes, from 1.
    pub generation: u64,
    /// When this generation was written.
    pub updated_at: Timestamp,
    /// Every version ever made, from 1, without gaps: a destroyed one leaves a tombstone.
    pub versions: Vec<Version>,
    /// Every decision about who encrypts, in the order in which they were taken.
    pub activations: Vec<Activation>,
    /// The keyring's rules.
    pub policy: Policy,
    /// The last backup that was shown to open; none if there never was one.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_backup: Option<BackupRecord>,
    /// What proves that holders of the keys wrote this.
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
    /// Whether somebody else may know the key.
    pub compromised: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When `state` last changed.
    pub state_changed_at: Timestamp,
    /// The data key under every KEK; none once it is destroyed.
    pub wraps: Vec<Wrap>,
    /// Its check value: 32 bytes that commit to the key.
    pub check: Base64,
}

/// The stored state of a version (NIST SP 800-57 part 1, §7). Roles are computed, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Decrypts, and encrypts while it is primary.
    Enabled,
    /// Suspended: refuses, and can be enabled again.
    Disabled,
    /// Gone for good; only this tombstone is left.
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
    /// What the KEK made of the data key.
    pub ciphertext: Base64,
    /// When.
    pub wrapped_at: Timestamp,
}

/// The keyring's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How often a new version is due.
    pub rotate_every: Span,
    /// How long no sidecar may have used a version before it is disabled.
    pub quiet_period: Span,
    /// How long a sidecar that can't confirm its manifest goes on encrypting.
    pub encrypt_lease: Span,
    /// How long a version stays disabled before it may be destroyed.
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

/// A backup that was shown to open and to hold the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRecord {
    /// When it was shown.
    pub verified_at: Timestamp,
    /// The SHA-256 of the file, 32 bytes.
    pub sha256: Base64,
    /// The generation that it holds.
    pub generation: u64,
    /// The newest version in it. Of all up to this one it holds those that weren't destroyed then.
    pub newest_version: u32,
}

/// A member that is there is not null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BackupRecord>, D::Error> {
    BackupRecord::deserialize(deserializer).map(Some)
}

/// What proves who wrote a manifest. Covers the RFC 8785 form of everything else in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authentication {
    /// One for every version that is not destroyed.
    pub macs: Vec<Mac>,
    /// Operators' signatures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// HMAC-SHA-256 under a version's manifest subkey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mac {
    /// The version whose subkey made it.
    pub version: u32,
    /// 32 bytes.
    pub mac: Base64,
}

/// An Ed25519 signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Whose.
    pub signer: SignerKey,
    /// 64 bytes.
    pub signature: Base64,
}

/// Bytes, written in base64 with padding (RFC 4648 §4).
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

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, not this format, a member missing, unknown or twice.
    #[error("not a keyring manifest: {0}")]
    Syntax(String),
    /// Members that contradict each other: every contradiction.
    #[error("the manifest contradicts itself: {}", some(.0))]
    Invalid(Vec<String>),
}

/// Few enough for a log line: anybody may have written the manifest.
fn some(problems: &[String]) -> String {
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

/// A manifest as it was read or is to be written: what it says, its bytes, and the bytes that its authentication covers.
#[derive(Debug, Clone)]
pub struct Document {
    manifest: Manifest,
    bytes: Bytes,
    canonical: Vec<u8>,
}

/// Whether bytes that don't parse are a manifest of another format, such as a newer Sidekey's, and not a damaged one.
pub fn is_of_another_format(bytes: &[u8]) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    value
        .as_ref()
        .and_then(|value| value.get("format")?.as_str())
        .is_some_and(|format| format != FORMAT)
}

impl Document {
    /// Parses and validates a manifest; authentication is verified later, when keys are at hand.
    ///
    /// # Errors
    /// [`ManifestError`], with the line and column or every contradiction.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, ManifestError> {
        let bytes = bytes.into();
        let syntax = |error: serde_json::Error| ManifestError::Syntax(error.to_string());
        // The typed reading refuses unknown and repeated members at every level, so the untyped one below can't differ from it.
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

    /// A manifest on its way to a store. `prove` makes the authentication from the bytes that it covers.
    pub(super) fn compose(
        mut manifest: Manifest,
        prove: impl FnOnce(&Manifest, &[u8]) -> Authentication,
    ) -> Self {
        let canonical = canonical(to_value(&manifest));
        manifest.authentication = prove(&manifest, &canonical);
        let mut bytes = match serde_json::to_vec_pretty(&manifest) {
            Ok(bytes) => bytes,
            Err(error) => {
                unreachable!("a manifest has string keys and finite numbers only: {error}")
            }
        };
        bytes.push(b'\n');
        Self {
            manifest,
            bytes: bytes.into(),
            canonical,
        }
    }

    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its bytes, as they are stored. A clone shares them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What its authentication covers: the RFC 8785 form without the member `authentication`.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }
}

fn to_value(manifest: &Manifest) -> serde_json::Value {
    match serde_json::to_value(manifest) {
        Ok(value) => value,
        Err(error) => unreachable!("a manifest has string keys and finite numbers only: {error}"),
    }
}

fn canonical(mut value: serde_json::Value) -> Vec<u8> {
    if let Some(members) = value.as_object_mut() {
        members.remove("authentication");
    }
    match serde_json_canonicalizer::to_vec(&value) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a JSON value has a canonical form: {error}"),
    }
}

impl Manifest {
    /// A keyring without versions, which `init` fills.
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

    /// The version of that number.
    pub fn version(&self, number: u32) -> Option<&Version> {
        self.versions
            .get(usize::try_from(number.checked_sub(1)?).ok()?)
    }

    /// The versions that still have a key.
    pub fn live(&self) -> impl Iterator<Item = &Version> {
        self.versions
            .iter()
            .filter(|version| version.state != State::Destroyed)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.format != FORMAT {
            problems.push(format!(
                "format is {:?}, this build reads {FORMAT:?}",
                self.format
            ));
        }
        if !(1..=MAX_GENERATION).contains(&self.generation) {
            problems.push(format!(
                "generation {} is not within 1 to 2^53-1",
                self.generation
            ));
        }
        if self.versions.is_empty() {
            problems.push("there is no version".into());
        }
        for (expected, version) in (1..).zip(&self.versions) {
            if version.version != expected {
                problems.push(format!(
                    "version {} stands where version {expected} belongs: versions count up from 1, each once",
                    version.version
                ));
                // Every later one would be off, too.
                break;
            }
            problems.extend(
                version
                    .problems()
                    .map(|problem| format!("version {expected}: {problem}")),
            );
        }
        // Before anything is computed whose cost grows with them: this manifest may be anybody's.
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
                "more than {MAX_VERSIONS} versions, {MAX_ACTIVATIONS} activations or {MAX_WAVES} waves"
            )];
        }
        for activation in &self.activations {
            if self.version(activation.version).is_none() {
                problems.push(format!(
                    "an activation names version {}, which isn't there",
                    activation.version
                ));
            }
        }
        let reigning = reigning(&self.activations, self.updated_at);
        for version in self
            .versions
            .iter()
            .filter(|version| version.state != State::Enabled)
        {
            if reigning.contains(&version.version) {
                problems.push(format!(
                    "version {} is {} but is or becomes a wave's primary",
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
        let is_right = backup.sha256.0.len() == 32
            && (1..self.generation).contains(&backup.generation)
            && self.version(backup.newest_version).is_some();
        (!is_right).then(|| {
            "last_backup names no SHA-256, no earlier generation or no version of this keyring"
                .into()
        })
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
            problems.push("authentication.macs has not exactly one entry for every version that is not destroyed".into());
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
            (keks.len() != self.wraps.len(), "one KEK wraps it twice"),
        ];
        found
            .into_iter()
            .filter_map(|(wrong, problem)| wrong.then_some(problem))
    }
}
