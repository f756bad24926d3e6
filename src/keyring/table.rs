//! The opened keyring that requests are served from, and what a sidecar demands before it puts a new one in its place.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;

use super::{
    Activation, Document, Manifest, State, Version, WaveSelector,
    authentication::{verify_macs, verify_signatures},
    primary_at, succeeds,
};
use crate::{
    config,
    crypto::{KeyringId, VersionKeys},
    model::{KeyringName, SignerKey, Wave},
};

/// What the opening of each wanted version came to: its subkeys, or why no wrap opened.
pub type Opened = BTreeMap<u32, Result<VersionKeys, String>>;

/// One generation of a keyring, opened. Immutable: a request sees one of these from beginning to end (I4).
pub struct KeyTable {
    document: Arc<Document>,
    wave: Wave,
    slots: Vec<Slot>,
    /// The activations that speak to the wave, in decision order.
    schedule: Vec<Activation>,
}

/// What a table holds of one version.
pub enum Slot {
    /// Its subkeys.
    Open(VersionKeys),
    /// Enabled, but no wrap has opened yet; why not.
    Unopened(String),
    /// Suspended; its key is not in memory.
    Disabled,
    /// Gone.
    Destroyed,
}

/// The computed role of a version for one wave, or the stored state that leaves it none (NIST SP 800-57 part 1, §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Distributed, not yet activated for the wave: decrypts.
    Pending,
    /// Encrypts and decrypts.
    Primary,
    /// Superseded: decrypts.
    DecryptOnly,
    /// Suspended.
    Disabled,
    /// Gone.
    Destroyed,
}

impl Role {
    /// The role's name in answers, metrics and docs.
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

/// Why a manifest was not put in force. The table before it keeps serving (I3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Another keyring's manifest.
    #[error(
        "the manifest is that of keyring {found} ({found_id}), not of {expected}; check `location`"
    )]
    OtherKeyring {
        /// The name in the config, with the id if one is in force.
        expected: String,
        /// The name in the manifest.
        found: KeyringName,
        /// The id in the manifest.
        found_id: KeyringId,
    },
    /// Older than what is in force, or than `min_generation`.
    #[error(
        "the manifest went back to generation {found} from {least}; restore the newest one (`GET /manifests/NAME` on the ops listener gives it)"
    )]
    WentBack {
        /// The generation found.
        found: u64,
        /// The least that is accepted.
        least: u64,
    },
    /// Two different manifests of one generation.
    #[error(
        "generation {0} was seen with other content: two operators wrote past each other, or somebody tampers"
    )]
    Forked(u64),
    /// A version that this sidecar holds is missing.
    #[error("version {0} vanished; a destroyed version leaves a tombstone")]
    Vanished(u32),
    /// A destroyed version came back.
    #[error("version {0} was destroyed and is back")]
    Resurrected(u32),
    /// A version's key was exchanged.
    #[error("version {0} has another check value than before: its key was exchanged")]
    Exchanged(u32),
    /// A MAC doesn't verify.
    #[error(
        "the MAC by version {0} doesn't verify: the manifest was not written by a holder of that key"
    )]
    Unauthenticated(u32),
    /// No key to verify a MAC with.
    #[error("no key version could be opened, so nothing proves who wrote the manifest: {0}")]
    NothingOpened(String),
    /// No signature by a trusted signer.
    #[error("no valid signature by one of `trusted_signers`")]
    Unsigned,
    /// Nobody would encrypt.
    #[error("no version is activated for wave {0}")]
    NoPrimary(Wave),
    /// The primary can't be opened while the table in force can encrypt.
    #[error("the primary, version {version}, could not be opened: {reason}")]
    PrimaryUnavailable {
        /// The version.
        version: u32,
        /// Why.
        reason: String,
    },
}

impl Rejection {
    /// A short stable name, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherKeyring { .. } => "other_keyring",
            Self::WentBack { .. } => "went_back",
            Self::Forked(_) => "forked",
            Self::Vanished(_) | Self::Resurrected(_) | Self::Exchanged(_) => "inconsistent",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Unsigned => "unsigned",
            Self::NoPrimary(_) => "no_primary",
            Self::NothingOpened(_) | Self::PrimaryUnavailable { .. } => "kek_unavailable",
        }
    }
}

/// What the config demands of a manifest.
#[derive(Debug, Clone)]
pub struct Expectations {
    /// The keyring's name.
    pub name: KeyringName,
    /// The least generation.
    pub min_generation: u64,
    /// Whose signature is demanded; empty for none.
    pub trusted_signers: Vec<SignerKey>,
}

impl From<&config::Keyring> for Expectations {
    fn from(settings: &config::Keyring) -> Self {
        Self {
            name: settings.name.clone(),
            min_generation: settings.min_generation,
            trusted_signers: settings.trusted_signers.clone(),
        }
    }
}

/// How a manifest stands to the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// The same generation with the same content.
    Unchanged,
    /// A newer generation, or the first.
    Newer,
}

/// Said of a version whose unwraps are under way.
const UNANSWERED: &str = "its KEKs have not answered yet";

fn reasons(opened: &Opened, candidate: &Document) -> String {
    let enabled = candidate
        .manifest()
        .versions
        .iter()
        .filter(|version| version.state == State::Enabled);
    let failed = enabled.filter_map(|version| match opened.get(&version.version) {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(format!("version {}: {reason}", version.version)),
        None => Some(format!("version {}: {UNANSWERED}", version.version)),
    });
    failed.collect::<Vec<_>>().join("; ")
}

impl KeyTable {
    /// Compares a manifest with the table in force, before any key is opened (I3).
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

    /// The enabled versions of a manifest whose keys the table in force doesn't hold.
    pub fn wanted<'d>(current: Option<&Self>, candidate: &'d Document) -> Vec<&'d Version> {
        let held = |version: &Version| {
            matches!(
                current.and_then(|table| table.slot(version.version)),
                Some(Slot::Open(_))
            )
        };
        candidate
            .manifest()
            .versions
            .iter()
            .filter(|version| version.state == State::Enabled && !held(version))
            .collect()
    }

    /// The next table: keys that are held are carried over, those in `opened` join them, and every one of them must vouch for the
    /// manifest by its MAC. Versions that `opened` doesn't tell of wait for their KEKs.
    ///
    /// # Errors
    /// [`Rejection`]
    pub fn build(
        current: Option<&Self>,
        candidate: Arc<Document>,
        opened: &Opened,
        wave: Wave,
        now: Timestamp,
    ) -> Result<Self, Rejection> {
        let held = current.into_iter().flat_map(Self::open_slots);
        let fresh = opened
            .iter()
            .filter_map(|(version, result)| Some((*version, result.as_ref().ok()?)));
        verify_macs(&candidate, held.chain(fresh)).map_err(|rejection| match rejection {
            Rejection::NothingOpened(_) => Rejection::NothingOpened(reasons(opened, &candidate)),
            other => other,
        })?;

        let manifest = candidate.manifest();
        let slots = manifest.versions.iter().map(|version| match version.state {
            State::Destroyed => Slot::Destroyed,
            State::Disabled => Slot::Disabled,
            State::Enabled => match (
                current.and_then(|table| table.slot(version.version)),
                opened.get(&version.version),
            ) {
                (Some(Slot::Open(keys)), _) | (_, Some(Ok(keys))) => Slot::Open(keys.clone()),
                (_, Some(Err(reason))) => Slot::Unopened(reason.clone()),
                (_, None) => Slot::Unopened(UNANSWERED.into()),
            },
        });
        let slots = slots.collect();
        let speaks = |activation: &&Activation| match &activation.wave {
            WaveSelector::Every => true,
            WaveSelector::One(name) => *name == wave,
        };
        let schedule = manifest
            .activations
            .iter()
            .filter(speaks)
            .cloned()
            .collect();
        let table = Self {
            document: candidate,
            wave,
            slots,
            schedule,
        };

        // A sidecar that can't encrypt has nothing to lose, and at least decrypts with what it gets.
        if current.is_none_or(|current| current.encrypting(now).is_none())
            || table.encrypting(now).is_some()
        {
            return Ok(table);
        }
        let primary = table
            .primary(now)
            .ok_or_else(|| Rejection::NoPrimary(table.wave.clone()))?;
        match table.slot(primary) {
            Some(Slot::Unopened(reason)) => Err(Rejection::PrimaryUnavailable {
                version: primary,
                reason: reason.clone(),
            }),
            _ => Ok(table),
        }
    }

    /// The manifest in force.
    pub fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        self.document.manifest()
    }

    /// The keyring's id.
    pub fn id(&self) -> KeyringId {
        self.manifest().id
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.manifest().generation
    }

    /// The wave that this table computes roles for.
    pub fn wave(&self) -> &Wave {
        &self.wave
    }

    /// What is held of a version; `None` for one that was never heard of.
    pub fn slot(&self, version: u32) -> Option<&Slot> {
        self.slots
            .get(usize::try_from(version.checked_sub(1)?).ok()?)
    }

    /// The version that encrypts at `now`.
    pub fn primary(&self, now: Timestamp) -> Option<u32> {
        primary_at(&self.schedule, now, &self.wave)
    }

    /// When the primary took over, as far as `now` can tell.
    pub fn primary_since(&self, now: Timestamp) -> Option<Timestamp> {
        self.schedule
            .iter()
            .rev()
            .find(|activation| activation.at <= now)
            .map(|activation| activation.at)
    }

    /// When the next activation of this wave is due after `now`.
    pub fn next_takeover(&self, now: Timestamp) -> Option<Timestamp> {
        self.schedule
            .iter()
            .map(|activation| activation.at)
            .filter(|at| *at > now)
            .min()
    }

    /// Whether the primary's key is open.
    pub fn has_open_primary(&self, now: Timestamp) -> bool {
        self.primary(now)
            .is_some_and(|primary| matches!(self.slot(primary), Some(Slot::Open(_))))
    }

    /// The version that this sidecar encrypts with: the primary or, while no KEK opens that, the open version that it most lately
    /// took over from and that nobody else may know (I10).
    pub fn encrypting(&self, now: Timestamp) -> Option<(u32, &VersionKeys)> {
        let mut due = self
            .schedule
            .iter()
            .rev()
            .filter(|activation| activation.at <= now)
            .map(|activation| activation.version);
        let primary = due.next()?;
        match self.slot(primary) {
            Some(Slot::Open(keys)) => Some((primary, keys)),
            _ => due.find_map(|version| match self.slot(version) {
                Some(Slot::Open(keys)) if !self.is_compromised(version) => Some((version, keys)),
                _ => None,
            }),
        }
    }

    fn is_compromised(&self, version: u32) -> bool {
        self.manifest()
            .version(version)
            .is_some_and(|version| version.compromised)
    }

    /// The role of a version; `None` for one that was never heard of.
    pub fn role(&self, version: u32, now: Timestamp) -> Option<Role> {
        Some(match self.slot(version)? {
            Slot::Disabled => Role::Disabled,
            Slot::Destroyed => Role::Destroyed,
            Slot::Open(_) | Slot::Unopened(_) if self.primary(now) == Some(version) => {
                Role::Primary
            }
            Slot::Open(_) | Slot::Unopened(_) => {
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

    /// The versions that could not be opened, with the reasons.
    pub fn unopened(&self) -> impl Iterator<Item = (u32, &str)> {
        (1..)
            .zip(&self.slots)
            .filter_map(|(version, slot)| match slot {
                Slot::Unopened(reason) => Some((version, reason.as_str())),
                _ => None,
            })
    }

    fn open_slots(&self) -> impl Iterator<Item = (u32, &VersionKeys)> {
        (1..)
            .zip(&self.slots)
            .filter_map(|(version, slot)| match slot {
                Slot::Open(keys) => Some((version, keys)),
                _ => None,
            })
    }
}
