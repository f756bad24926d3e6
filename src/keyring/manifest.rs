//! The manifest: the JSON document that carries a keyring. Nothing in it is secret. docs/format.md
//! specifies every member.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Activation, Kept, Policy, RolloutMark};
use crate::{
    crypto::{Dek, KeyringId, RolloutId},
    model::{KekUri, KeyringName, SignerKey},
};

pub(super) const FORMAT: &str = "sidekey-keyring/2";

/// A keyring as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `sidekey-keyring/2`.
    pub format: String,
    /// The keyring's name.
    pub name: KeyringName,
    /// The keyring's random id, to which every ciphertext is bound.
    pub id: KeyringId,
    /// Incremented by every change, from 1.
    pub generation: u64,
    /// When this generation was written.
    pub updated_at: Timestamp,
    /// Digests of the generations that this one descends from, newest first, at most
    /// [`LINEAGE`](super::LINEAGE) of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<Ancestor>,
    /// The versions that were removed after all of them were destroyed.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub trimmed: Option<Trimmed>,
    /// Every other version ever created, in order, without gaps: a destroyed one leaves a
    /// tombstone.
    pub versions: Vec<Version>,
    /// Every activation, in the order in which they were decided.
    pub activations: Vec<Activation>,
    /// Class, periods and waiting times.
    pub policy: Policy,
    /// The last verified backup.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_backup: Option<BackupRecord>,
    /// The active rollout, and how far it is.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub rollout: Option<RolloutMark>,
    /// The rollouts that ended last, newest first, at most
    /// [`ENDED_ROLLOUTS`](super::ENDED_ROLLOUTS) of them. None of them goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_rollouts: Vec<RolloutId>,
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
    /// The public half of the succession key (Ed25519, 32 bytes).
    pub key: Base64,
    /// Who speaks for the version since it was destroyed. A destroyed version without one is lost.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub testament: Option<Testament>,
    /// What it keeps of former policies.
    #[serde(default, skip_serializing_if = "Kept::is_empty")]
    pub kept: Kept,
}

impl Version {
    /// Returns whether `dek` is the key that the manifest commits to: with this check value, and
    /// with this succession key.
    pub fn commits_to(&self, keyring: &KeyringId, dek: &Dek) -> bool {
        dek.matches_check(keyring, self.version, &self.check.0)
            && dek.succession_key().public_key()[..] == self.key.0
    }

    /// Returns whether the version is destroyed without a testament, because no KEK could unwrap
    /// it.
    pub fn is_lost(&self) -> bool {
        self.state == State::Destroyed && self.testament.is_none()
    }
}

/// The last statement of a version, signed with its succession key when it is destroyed: the
/// versions that speak for it from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Testament {
    /// The generation that destroyed the version.
    pub generation: u64,
    /// The newest version of that generation.
    pub newest: u32,
    /// The versions that speak for the destroyed one, in ascending order.
    pub heirs: Vec<u32>,
    /// 64 bytes; empty until [`authenticate`](super::authenticate) signs it.
    pub signature: Base64,
}

/// A generation that a manifest descends from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// Its number.
    pub generation: u64,
    /// The SHA-256 of its covered bytes (32 bytes).
    pub sha256: Base64,
}

/// What is left of versions that were removed from the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trimmed {
    /// The last version removed, as were all before it.
    pub through: u32,
    /// L(`through`): 32 bytes that commit to their check values and succession keys.
    pub l: Base64,
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
pub(super) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Proof of who wrote a manifest. It covers the canonical form (RFC 8785) of all other members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authentication {
    /// One signature by the succession key of every version that is not destroyed.
    pub words: Vec<Word>,
    /// Operators' signatures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// A version's word for a manifest: an Ed25519 signature (RFC 8032) with its succession key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Word {
    /// The version.
    pub version: u32,
    /// 64 bytes.
    pub signature: Base64,
}

/// An operator's Ed25519 signature (RFC 8032).
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

impl Manifest {
    /// Returns a keyring without versions, for `init`.
    pub(super) fn empty(name: KeyringName, id: KeyringId, policy: Policy, now: Timestamp) -> Self {
        Self {
            format: FORMAT.into(),
            name,
            id,
            generation: 0,
            updated_at: now,
            lineage: Vec::new(),
            trimmed: None,
            versions: Vec::new(),
            activations: Vec::new(),
            policy,
            last_backup: None,
            rollout: None,
            ended_rollouts: Vec::new(),
            authentication: Authentication::default(),
        }
    }

    /// Returns the number of the first version that is listed; those before it were trimmed.
    pub fn first_version(&self) -> u32 {
        self.trimmed
            .as_ref()
            .map_or(1, |trimmed| trimmed.through.saturating_add(1))
    }

    /// Returns the number of the newest version.
    pub fn newest_version(&self) -> u32 {
        self.versions.last().map_or(0, |version| version.version)
    }

    /// Returns the version with this number, or `None` if it is unknown or trimmed.
    pub fn version(&self, number: u32) -> Option<&Version> {
        self.versions.get(self.index_of(number)?)
    }

    /// Returns the position of a version in `versions` if it were listed, or `None` if it is
    /// trimmed.
    pub fn index_of(&self, number: u32) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first_version())?).ok()
    }

    /// Returns the versions that are not destroyed.
    pub fn live(&self) -> impl Iterator<Item = &Version> {
        self.versions
            .iter()
            .filter(|version| version.state != State::Destroyed)
    }
}
