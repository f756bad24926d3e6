//! The unwrapped keyring that requests are served from, and the checks before a sidecar replaces
//! it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;

use super::{Activation, Document, Manifest, Rejection, State, Succession, Version, primary_at};
use crate::{
    crypto::{KeyringId, VersionKeys},
    model::Wave,
};

/// For each version to unwrap: its subkeys, or why every wrap failed.
pub type UnwrapResults = BTreeMap<u32, Result<VersionKeys, NotUnwrapped>>;

/// Why no KEK has unwrapped a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotUnwrapped {
    /// The error of each KEK.
    pub message: String,
    /// A KEK returned another key than the manifest commits to.
    pub is_exchanged: bool,
}

impl NotUnwrapped {
    /// No KEK has answered, or none could unwrap the version.
    pub fn because(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            is_exchanged: false,
        }
    }
}

/// One generation of a keyring, unwrapped. It is immutable: a request sees the same one from
/// beginning to end (I4). Clones share the keys.
#[derive(Clone)]
pub struct KeyTable {
    document: Arc<Document>,
    is_exposed: bool,
    wave: Wave,
    slots: Vec<Slot>,
    /// The activations of this wave, in the order in which they were decided.
    schedule: Vec<Activation>,
}

/// What a table holds of one version.
#[derive(Clone)]
pub enum Slot {
    /// Its subkeys.
    Unwrapped(VersionKeys),
    /// It is enabled, but no KEK has unwrapped it; the reason.
    NotUnwrapped(NotUnwrapped),
    /// It is enabled and new: unwrapped at this time, or once a request names it (`spread`).
    Waiting(Timestamp),
    /// Suspended; its key is not in memory.
    Disabled,
    /// Only a tombstone is left.
    Destroyed,
}

/// The role of a version for one wave, or the stored state that leaves it without one (NIST SP
/// 800-57 part 1, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Distributed but not yet activated for the wave: decrypts.
    Pending,
    /// Encrypts and decrypts.
    Primary,
    /// Superseded: decrypts.
    DecryptOnly,
    /// Suspended.
    Disabled,
    /// Only a tombstone is left.
    Destroyed,
}

impl Role {
    /// Returns the role's name in responses, metrics and docs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Primary => "primary",
            Self::DecryptOnly => "decrypt-only",
            Self::Disabled => "disabled",
            Self::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reported while unwraps are pending.
const UNANSWERED: &str = "its KEKs have not answered yet";

fn failures(unwrapped: &UnwrapResults, candidate: &Document) -> String {
    let enabled = candidate
        .manifest()
        .versions
        .iter()
        .filter(|version| version.state == State::Enabled);
    let failed = enabled.filter_map(|version| match unwrapped.get(&version.version) {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(format!("version {}: {reason}", version.version)),
        None => Some(format!("version {}: {UNANSWERED}", version.version)),
    });
    failed.collect::<Vec<_>>().join("; ")
}

impl KeyTable {
    /// Returns the enabled versions of a manifest whose keys the active table doesn't hold.
    pub fn versions_to_unwrap<'d>(
        current: Option<&Self>,
        candidate: &'d Document,
    ) -> Vec<&'d Version> {
        let held = |version: &Version| {
            matches!(
                current.and_then(|table| table.slot(version.version)),
                Some(Slot::Unwrapped(_))
            )
        };
        candidate
            .manifest()
            .versions
            .iter()
            .filter(|version| version.state == State::Enabled && !held(version))
            .collect()
    }

    /// Builds the next table from the keys that `current` holds and those in `unwrapped`. Both were
    /// compared with the manifest's check values and succession keys. A version that is in neither
    /// waits for its KEKs or, if it is in `waiting`, for that time.
    ///
    /// # Errors
    /// [`Rejection`]
    pub fn build(
        current: Option<&Self>,
        candidate: Arc<Document>,
        succession: Succession,
        unwrapped: &UnwrapResults,
        waiting: &BTreeMap<u32, Timestamp>,
        wave: Wave,
        now: Timestamp,
    ) -> Result<Self, Rejection> {
        // Without a table, the keys that open prove that the manifest is this keyring's.
        if current.is_none() && !unwrapped.values().any(Result::is_ok) {
            return Err(Rejection::NothingUnwrapped(failures(unwrapped, &candidate)));
        }
        let manifest = candidate.manifest();
        let slots = manifest.versions.iter().map(|version| match version.state {
            State::Destroyed => Slot::Destroyed,
            State::Disabled => Slot::Disabled,
            State::Enabled => match (
                current.and_then(|table| table.slot(version.version)),
                unwrapped.get(&version.version),
            ) {
                (Some(Slot::Unwrapped(keys)), _) | (_, Some(Ok(keys))) => {
                    Slot::Unwrapped(keys.clone())
                }
                (_, Some(Err(reason))) => Slot::NotUnwrapped(reason.clone()),
                (_, None) => match waiting.get(&version.version) {
                    Some(turn) => Slot::Waiting(*turn),
                    None => Slot::NotUnwrapped(NotUnwrapped::because(UNANSWERED)),
                },
            },
        });
        let slots = slots.collect();
        let schedule = manifest
            .activations
            .iter()
            .filter(|activation| activation.wave.covers(Some(&wave)))
            .cloned()
            .collect();
        let is_exposed = match succession {
            Succession::Unchanged => current.is_some_and(|current| current.is_exposed),
            Succession::Newer => false,
            Succession::Exposed => true,
        };
        let table = Self {
            document: candidate,
            is_exposed,
            wave,
            slots,
            schedule,
        };

        // A sidecar that can't encrypt has nothing to lose, and can decrypt more than before.
        if current.is_none_or(|current| current.encryption_key(now).is_none())
            || table.encryption_key(now).is_some()
        {
            return Ok(table);
        }
        let primary = table
            .primary(now)
            .ok_or_else(|| Rejection::NoPrimary(table.wave.clone()))?;
        match table.slot(primary) {
            Some(Slot::NotUnwrapped(reason)) => Err(Rejection::PrimaryUnavailable {
                version: primary,
                reason: reason.to_string(),
            }),
            _ => Ok(table),
        }
    }

    /// Returns the active manifest as it was read.
    pub fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// Returns the active manifest.
    pub fn manifest(&self) -> &Manifest {
        self.document.manifest()
    }

    /// Returns the keyring's id.
    pub fn id(&self) -> KeyringId {
        self.manifest().id
    }

    /// Returns the active generation.
    pub fn generation(&self) -> u64 {
        self.manifest().generation
    }

    /// Returns whether only compromised versions vouch for the active manifest.
    pub fn is_exposed(&self) -> bool {
        self.is_exposed
    }

    /// Returns the wave that roles are computed for.
    pub fn wave(&self) -> &Wave {
        &self.wave
    }

    /// Returns what is held of a version, or `None` if it is unknown. A version that was trimmed
    /// was destroyed.
    pub fn slot(&self, version: u32) -> Option<&Slot> {
        if (1..self.manifest().first_version()).contains(&version) {
            return Some(&Slot::Destroyed);
        }
        self.slots.get(self.manifest().index_of(version)?)
    }

    /// Returns the primary at `now`.
    pub fn primary(&self, now: Timestamp) -> Option<u32> {
        primary_at(&self.schedule, self.time_of(now), &self.wave)
    }

    /// Returns when the primary of `now` took over.
    pub fn primary_since(&self, now: Timestamp) -> Option<Timestamp> {
        let now = self.time_of(now);
        self.schedule
            .iter()
            .rev()
            .find(|activation| activation.at <= now)
            .map(|activation| activation.at)
    }

    /// The time that decides which activations have taken effect. A clock that is before all of
    /// them is behind the manifest's own stamp: what had taken effect when it was written has done
    /// so. While any has, the clock decides: a stamp must not hurry the others (I15).
    fn time_of(&self, now: Timestamp) -> Timestamp {
        if self.schedule.iter().any(|activation| activation.at <= now) {
            now
        } else {
            now.max(self.manifest().updated_at)
        }
    }

    /// Returns when the next activation of this wave is due after `now`.
    pub fn next_takeover(&self, now: Timestamp) -> Option<Timestamp> {
        self.schedule
            .iter()
            .map(|activation| activation.at)
            .filter(|at| *at > now)
            .min()
    }

    /// Returns whether the primary at `now` is unwrapped.
    pub fn has_unwrapped_primary(&self, now: Timestamp) -> bool {
        self.primary(now)
            .is_some_and(|primary| matches!(self.slot(primary), Some(Slot::Unwrapped(_))))
    }

    /// Returns the version to encrypt with and its keys. That is the primary or, while no KEK
    /// unwraps it, the last primary before it that is unwrapped and not compromised (I10).
    pub fn encryption_key(&self, now: Timestamp) -> Option<(u32, &VersionKeys)> {
        let now = self.time_of(now);
        let mut due = self
            .schedule
            .iter()
            .rev()
            .filter(|activation| activation.at <= now)
            .map(|activation| activation.version);
        let primary = due.next()?;
        match self.slot(primary) {
            Some(Slot::Unwrapped(keys)) => Some((primary, keys)),
            _ => due.find_map(|version| match self.slot(version) {
                Some(Slot::Unwrapped(keys)) if !self.is_compromised(version) => {
                    Some((version, keys))
                }
                _ => None,
            }),
        }
    }

    fn is_compromised(&self, version: u32) -> bool {
        self.manifest()
            .version(version)
            .is_some_and(|version| version.compromised)
    }

    /// Returns the role of a version, or `None` if it is unknown.
    pub fn role(&self, version: u32, now: Timestamp) -> Option<Role> {
        let now = self.time_of(now);
        Some(match self.slot(version)? {
            Slot::Disabled => Role::Disabled,
            Slot::Destroyed => Role::Destroyed,
            Slot::Unwrapped(_) | Slot::NotUnwrapped(_) | Slot::Waiting(_)
                if self.primary(now) == Some(version) =>
            {
                Role::Primary
            }
            Slot::Unwrapped(_) | Slot::NotUnwrapped(_) | Slot::Waiting(_) => {
                let activated = self
                    .schedule
                    .iter()
                    .any(|activation| activation.version == version && activation.at <= now);
                if activated {
                    Role::DecryptOnly
                } else {
                    Role::Pending
                }
            }
        })
    }

    /// Returns the time of the first turn of a version that waits for one.
    pub fn next_turn(&self) -> Option<Timestamp> {
        let turns = self.slots.iter().filter_map(|slot| match slot {
            Slot::Waiting(turn) => Some(*turn),
            _ => None,
        });
        turns.min()
    }

    /// Returns the enabled versions that no KEK has unwrapped, with the reasons.
    pub fn not_unwrapped(&self) -> impl Iterator<Item = (u32, &NotUnwrapped)> {
        (self.manifest().first_version()..)
            .zip(&self.slots)
            .filter_map(|(version, slot)| match slot {
                Slot::NotUnwrapped(reason) => Some((version, reason)),
                _ => None,
            })
    }
}
