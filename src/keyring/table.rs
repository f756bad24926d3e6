//! The unwrapped keyring that requests are served from, and the checks before a sidecar replaces
//! it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;

use super::{
    Activation, Document, Manifest, Rejection, State, Succession, Version,
    authentication::{verify_macs, verify_signatures},
    primary_at, succeeds,
};
use crate::{
    crypto::{KeyringId, VersionKeys},
    model::{KeyringName, SignerKey, Wave},
};

/// For each version to unwrap: its subkeys, or why every wrap failed.
pub type UnwrapResults = BTreeMap<u32, Result<VersionKeys, String>>;

/// One generation of a keyring, unwrapped. It is immutable: a request sees the same one from
/// beginning to end (I4).
pub struct KeyTable {
    document: Arc<Document>,
    wave: Wave,
    slots: Vec<Slot>,
    /// The activations of this wave, in the order in which they were decided.
    schedule: Vec<Activation>,
}

/// What a table holds of one version.
pub enum Slot {
    /// Its subkeys.
    Unwrapped(VersionKeys),
    /// It is enabled, but no KEK has unwrapped it; the reason.
    NotUnwrapped(String),
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

/// What the configuration requires of a manifest.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// The keyring's name.
    pub name: KeyringName,
    /// The lowest accepted generation.
    pub min_generation: u64,
    /// One of these must have signed it, unless there are none.
    pub trusted_signers: Vec<SignerKey>,
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
    /// Compares a manifest with the active table before any key is unwrapped (I3).
    ///
    /// # Errors
    /// [`Rejection`]
    pub fn examine(
        current: Option<&Self>,
        candidate: &Document,
        expect: &Expectations,
    ) -> Result<Succession, Rejection> {
        let found = candidate.manifest();
        let id_differs = current.is_some_and(|table| table.id() != found.id);
        if found.name != expect.name || id_differs {
            let id = current
                .map(|table| format!(" ({})", table.id()))
                .unwrap_or_default();
            return Err(Rejection::OtherKeyring {
                expected: format!("{}{id}", expect.name),
                found: found.name.clone(),
                found_id: found.id,
            });
        }
        let least = current
            .map_or(0, Self::generation)
            .max(expect.min_generation);
        if found.generation < least {
            return Err(Rejection::WentBack {
                found: found.generation,
                least,
            });
        }
        verify_signatures(candidate, &expect.trusted_signers)?;
        let Some(current) = current else {
            return Ok(Succession::Newer);
        };
        succeeds(&current.document, candidate)?;
        if found.generation == current.generation() {
            return Ok(Succession::Unchanged);
        }
        Ok(Succession::Newer)
    }

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

    /// Builds the next table from the keys that `current` holds and those in `unwrapped`. Each of
    /// these keys must verify the manifest's MAC. A version that is in neither waits for its KEKs.
    ///
    /// # Errors
    /// [`Rejection`]
    pub fn build(
        current: Option<&Self>,
        candidate: Arc<Document>,
        unwrapped: &UnwrapResults,
        wave: Wave,
        now: Timestamp,
    ) -> Result<Self, Rejection> {
        let held = current.into_iter().flat_map(Self::unwrapped);
        let fresh = unwrapped
            .iter()
            .filter_map(|(version, result)| Some((*version, result.as_ref().ok()?)));
        verify_macs(&candidate, held.chain(fresh)).map_err(|rejection| match rejection {
            Rejection::NothingUnwrapped(_) => {
                Rejection::NothingUnwrapped(failures(unwrapped, &candidate))
            }
            other => other,
        })?;

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
                (_, None) => Slot::NotUnwrapped(UNANSWERED.into()),
            },
        });
        let slots = slots.collect();
        let schedule = manifest
            .activations
            .iter()
            .filter(|activation| activation.wave.covers(Some(&wave)))
            .cloned()
            .collect();
        let table = Self {
            document: candidate,
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
                reason: reason.clone(),
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

    /// Returns the wave that roles are computed for.
    pub fn wave(&self) -> &Wave {
        &self.wave
    }

    /// Returns what is held of a version, or `None` if it is unknown.
    pub fn slot(&self, version: u32) -> Option<&Slot> {
        self.slots
            .get(usize::try_from(version.checked_sub(1)?).ok()?)
    }

    /// Returns the primary at `now`.
    pub fn primary(&self, now: Timestamp) -> Option<u32> {
        primary_at(&self.schedule, now, &self.wave)
    }

    /// Returns when the primary of `now` took over.
    pub fn primary_since(&self, now: Timestamp) -> Option<Timestamp> {
        self.schedule
            .iter()
            .rev()
            .find(|activation| activation.at <= now)
            .map(|activation| activation.at)
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
        Some(match self.slot(version)? {
            Slot::Disabled => Role::Disabled,
            Slot::Destroyed => Role::Destroyed,
            Slot::Unwrapped(_) | Slot::NotUnwrapped(_) if self.primary(now) == Some(version) => {
                Role::Primary
            }
            Slot::Unwrapped(_) | Slot::NotUnwrapped(_) => {
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

    /// Returns the enabled versions that are not unwrapped, with the reasons.
    pub fn not_unwrapped(&self) -> impl Iterator<Item = (u32, &str)> {
        (1..)
            .zip(&self.slots)
            .filter_map(|(version, slot)| match slot {
                Slot::NotUnwrapped(reason) => Some((version, reason.as_str())),
                _ => None,
            })
    }

    fn unwrapped(&self) -> impl Iterator<Item = (u32, &VersionKeys)> {
        (1..)
            .zip(&self.slots)
            .filter_map(|(version, slot)| match slot {
                Slot::Unwrapped(keys) => Some((version, keys)),
                _ => None,
            })
    }
}
