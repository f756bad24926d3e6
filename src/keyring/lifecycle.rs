//! The changes that an operator may make: each takes the manifest in force and gives the next one, or a refusal that says what
//! stands against it. Whoever writes the result authenticates it first, so he has opened every version that is left.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    Activation, Manifest, Policy, Reign, Rejection, State, Version, WaveSelector, Wrap,
    manifest::Base64, reign,
};
use crate::{
    crypto::KeyringId,
    model::{KeyringName, Span},
};

/// Why an invariant stands against a change, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A version that was never made.
    #[error("{keyring} has no version {version}; it has 1 to {last}")]
    NoSuchVersion {
        /// The keyring.
        keyring: KeyringName,
        /// The version asked for.
        version: u32,
        /// The newest one.
        last: u32,
    },
    /// The version's state doesn't allow it.
    #[error("version {version} is {state}; {needed}")]
    WrongState {
        /// The version.
        version: u32,
        /// Its state.
        state: State,
        /// What it would have to be, and how to get there.
        needed: &'static str,
    },
    /// The version is known to others, so nothing new may be encrypted under it.
    #[error(
        "version {0} is marked compromised and can't become primary; make a new one with `keyring rotate`"
    )]
    Compromised(u32),
    /// Some wave encrypts with it, or is about to.
    #[error(
        "version {0} is, or is scheduled to become, a wave's primary; activate another version for that wave first"
    )]
    IsPrimary(u32),
    /// The same of a version that is lost.
    #[error(
        "version {0} is, or is scheduled to become, a wave's primary; name the version that takes over at once with --successor N"
    )]
    LostPrimary(u32),
    /// A version that is called lost and opens.
    #[error(
        "version {0} opens, so it isn't lost; disable it and destroy it after its waiting times"
    )]
    NotLost(u32),
    /// A version that is called lost, and a KEK that may only be away.
    #[error(
        "version {version} isn't shown to be lost: a KEK that is away, switched off or out of reach comes back.\n{}\nIf every one of these is gone for good as well: --confirm '{phrase}'", list(.doubts)
    )]
    NotShownLost {
        /// The version.
        version: u32,
        /// What each KEK said that did not say that it is gone.
        doubts: Vec<String>,
        /// The words to say.
        phrase: String,
    },
    /// Nothing could open it any more.
    #[error(
        "version {0} would be left without a KEK; add another one first (`keyring rewrap-kek --add URI`)"
    )]
    LastWrap(u32),
    /// An activation may not rewrite what was.
    #[error("{at} is in the past; an activation takes effect now or later")]
    InThePast {
        /// The time asked for.
        at: Timestamp,
    },
    /// Invariant I5: a version is disabled on evidence.
    #[error("there is no evidence that version {version} is out of use:\n{}", list(.missing))]
    EvidenceMissing {
        /// The version.
        version: u32,
        /// What is missing, one line each.
        missing: Vec<String>,
    },
    /// A waiting time runs.
    #[error("version {version} can be destroyed from {from} on: {why}")]
    TooEarly {
        /// The version.
        version: u32,
        /// When it is allowed.
        from: Timestamp,
        /// Which waiting time.
        why: String,
    },
    /// Destroying needs a backup or the operator's word.
    #[error(
        "no verified backup of version {version} is recorded; destroying it can't be undone. To go on all the same, add: --confirm '{phrase}'"
    )]
    NotConfirmed {
        /// The version.
        version: u32,
        /// The words to say.
        phrase: String,
    },
    /// A version that is called lost is in a backup.
    #[error(
        "version {version} is in the backup that was verified at {verified_at} (SHA-256 {sha256}): `keyring restore` brings it back. To destroy it all the same, add: --confirm '{phrase}'"
    )]
    NotLostWithBackup {
        /// The version.
        version: u32,
        /// When the backup was shown to open.
        verified_at: Timestamp,
        /// Which file it is.
        sha256: String,
        /// The words to say.
        phrase: String,
    },
    /// Two manifests of one keyring that don't follow from each other.
    #[error("{0}")]
    Diverged(Rejection),
    /// Something newer than a backup is in its place.
    #[error(
        "{place} has generation {present}, and the backup generation {backup}: restoring would go back. If nothing is wrong there, nothing needs restoring. To keep the newer one and give its versions the backup's keys: --onto-newer"
    )]
    NewerPresent {
        /// Where the newer one is.
        place: String,
        /// Its generation.
        present: u64,
        /// That of the backup.
        backup: u64,
    },
    /// A restore that nobody was asked about.
    #[error(
        "{place} {what}, so nothing there shows whether the fleet has a newer generation than the backup's; name every live sidecar with --sidecar URL or, if there is none, say so with --no-sidecar"
    )]
    NobodyAsked {
        /// Where it is to be restored.
        place: String,
        /// What is the matter there.
        what: &'static str,
    },
    /// A backup that wouldn't have been one.
    #[error("{0}")]
    NoBackup(String),
    /// What sidecars hold is not enough to recover from.
    #[error("{0}")]
    NotRecoverable(String),
}

fn list(items: &[String]) -> String {
    items
        .iter()
        .map(|item| format!("  - {item}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A data key that its KEKs have wrapped, on its way into a manifest.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// One wrap for every KEK.
    pub wraps: Vec<Wrap>,
    /// Its check value.
    pub check: [u8; 32],
}

/// A new keyring: version 1, primary everywhere at once.
pub fn init(
    name: KeyringName,
    id: KeyringId,
    policy: Policy,
    new: NewVersion,
    now: Timestamp,
) -> Manifest {
    let mut manifest = Manifest::empty(name, id, policy, now);
    push_version(&mut manifest, new, now);
    manifest.activations.push(Activation {
        version: 1,
        wave: WaveSelector::Every,
        at: now,
    });
    manifest.generation = 1;
    manifest
}

/// Adds a version. It stays pending until an activation names it (I1).
pub fn rotate(current: &Manifest, new: NewVersion, now: Timestamp) -> Manifest {
    let mut next = successor(current, now);
    let now = next.updated_at;
    push_version(&mut next, new, now);
    next
}

/// Lets an enabled version take over for `wave` at `at` (now, if `None`). Rolling back is activating the former version.
///
/// # Errors
/// [`Refusal`] for a version that isn't enabled or is compromised, and for a time in the past.
pub fn activate(
    current: &Manifest,
    version: u32,
    wave: WaveSelector,
    at: Option<Timestamp>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let target = find(&mut next, version)?;
    require(
        target,
        State::Enabled,
        "only an enabled version can become primary (`keyring enable`)",
    )?;
    if target.compromised {
        return Err(Refusal::Compromised(version));
    }
    let at = at.unwrap_or(next.updated_at);
    if at < next.updated_at {
        return Err(Refusal::InThePast { at });
    }
    next.activations.push(Activation { version, wave, at });
    Ok(next)
}

/// What speaks for disabling a version.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// What every sidecar of the fleet said when it was asked.
    Fleet(Vec<SidecarReport>),
    /// The operator's decision without evidence, with the reason.
    Override(String),
}

/// One sidecar's word on one version.
#[derive(Debug, Clone)]
pub struct SidecarReport {
    /// The sidecar, as the operator named it.
    pub sidecar: String,
    /// What it said, or why it said nothing.
    pub answer: Result<VersionUse, String>,
}

/// What a sidecar knows of its use of a version.
#[derive(Debug, Clone)]
pub struct VersionUse {
    /// The generation that it serves.
    pub generation: u64,
    /// Since when it has been counting; it knows nothing of the time before.
    pub observed_since: Timestamp,
    /// The last use that it saw.
    pub last_used: Option<Timestamp>,
}

/// Suspends a version: decrypts under it are refused until it is enabled again.
///
/// # Errors
/// [`Refusal`] for a primary, and without evidence (I5).
pub fn disable(
    current: &Manifest,
    version: u32,
    evidence: &Evidence,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let now = next.updated_at;
    let target = find(&mut next, version)?;
    require(
        target,
        State::Enabled,
        "only an enabled version can be disabled",
    )?;
    if reign(&current.activations, version, now) == Reign::CurrentOrScheduled {
        return Err(Refusal::IsPrimary(version));
    }
    let missing = match evidence {
        Evidence::Override(_) => Vec::new(),
        Evidence::Fleet(reports) => missing_evidence(reports, current, now),
    };
    if !missing.is_empty() {
        return Err(Refusal::EvidenceMissing { version, missing });
    }
    target.state = State::Disabled;
    target.state_changed_at = now;
    Ok(next)
}

fn missing_evidence(reports: &[SidecarReport], current: &Manifest, now: Timestamp) -> Vec<String> {
    if reports.is_empty() {
        return vec![
            "no sidecar was asked: name every live one with --sidecar URL, or decide without evidence with --override REASON"
                .into(),
        ];
    }
    let quiet = current.policy.quiet_period;
    let quiet_since = before(now, quiet);
    let objection = |usage: &VersionUse| {
        if usage.generation != current.generation {
            Some(format!(
                "serves generation {}, not {}",
                usage.generation, current.generation
            ))
        } else if usage.last_used.is_some_and(|used| used > quiet_since) {
            usage
                .last_used
                .map(|used| format!("used it at {used}, within the quiet period of {quiet}"))
        } else if usage.observed_since > quiet_since {
            Some(format!(
                "has been counting only since {}, which is less than the quiet period of {quiet}",
                usage.observed_since
            ))
        } else {
            None
        }
    };
    reports
        .iter()
        .filter_map(|report| {
            let objection = match &report.answer {
                Ok(usage) => objection(usage)?,
                Err(reason) => format!("did not answer ({reason})"),
            };
            Some(format!("{} {objection}", report.sidecar))
        })
        .collect()
}

/// Lets a disabled version decrypt again.
///
/// # Errors
/// [`Refusal`] for a version that isn't disabled.
pub fn enable(current: &Manifest, version: u32, now: Timestamp) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let now = next.updated_at;
    let target = find(&mut next, version)?;
    require(
        target,
        State::Disabled,
        "only a disabled version can be enabled",
    )?;
    target.state = State::Enabled;
    target.state_changed_at = now;
    Ok(next)
}

/// Marks a version as known to others. It goes on decrypting, but is never activated again.
///
/// # Errors
/// [`Refusal`] for a version that isn't there.
pub fn compromise(current: &Manifest, version: u32, now: Timestamp) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    find(&mut next, version)?.compromised = true;
    Ok(next)
}

/// Gives versions other wraps of the same keys: no ciphertext changes.
///
/// # Errors
/// [`Refusal`] for a version that isn't there or is destroyed, and for one that would be left without a wrap.
pub fn rewrap(
    current: &Manifest,
    wraps: BTreeMap<u32, Vec<Wrap>>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    for (version, wraps) in wraps {
        let target = find(&mut next, version)?;
        if target.state == State::Destroyed {
            return Err(Refusal::WrongState {
                version,
                state: State::Destroyed,
                needed: "its key is gone for good",
            });
        }
        if wraps.is_empty() {
            return Err(Refusal::LastWrap(version));
        }
        target.wraps = wraps;
    }
    Ok(next)
}

/// A new generation with nothing else new, to confirm copies of the manifest within the encrypt lease (I11).
pub fn touch(current: &Manifest, now: Timestamp) -> Manifest {
    successor(current, now)
}

/// How a version is to be destroyed, with the words that the operator said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destruction<'a> {
    /// By the rule: disabled, waiting times over.
    Orderly {
        /// What the operator said in place of a verified backup; not asked for if there is one.
        confirm: Option<&'a str>,
    },
    /// Every KEK that wraps it is gone for good, so nobody can open it ever again and no waiting time helps.
    Lost {
        /// What the operator said.
        confirm: Option<&'a str>,
        /// The version that encrypts for every wave from now on, if the lost one does for any.
        successor: Option<u32>,
    },
}

/// The words that stand in for a verified backup.
pub fn backup_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("there is no backup of version {version} of {keyring}")
}

/// The words that declare a version's KEKs lost.
pub fn lost_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("every KEK of version {version} of {keyring} is lost")
}

/// The words that declare them lost although one of them didn't say so. They say more than [`lost_phrase`], so they stand in for it.
pub fn doubted_loss_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("no KEK of version {version} of {keyring} will ever come back")
}

/// Destroys a version: its wraps go, a tombstone stays, what was encrypted under it is lost.
///
/// # Errors
/// [`Refusal`] unless it is disabled, both waiting times are over (I5, I11), and a verified backup holds it or the operator said in
/// words that none does.
pub fn destroy(
    current: &Manifest,
    version: u32,
    how: Destruction<'_>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let now = next.updated_at;
    if let Destruction::Lost {
        successor: Some(successor),
        ..
    } = how
    {
        // Nobody can open the lost version, so nobody could authenticate a generation in between.
        let activated = activate(current, successor, WaveSelector::Every, None, now)?;
        next.activations = activated.activations;
    }
    let reign = reign(&next.activations, version, now);
    let target = find(&mut next, version)?;
    if reign == Reign::CurrentOrScheduled {
        return Err(match how {
            Destruction::Orderly { .. } => Refusal::IsPrimary(version),
            Destruction::Lost { .. } => Refusal::LostPrimary(version),
        });
    }
    let (confirm, phrase) = match how {
        Destruction::Orderly { confirm } => {
            require(
                target,
                State::Disabled,
                "only a disabled version can be destroyed (`keyring disable`)",
            )?;
            let early = |from, why| Refusal::TooEarly { version, from, why };
            let disabled_long_enough = after(target.state_changed_at, current.policy.destroy_after);
            if now < disabled_long_enough {
                return Err(early(
                    disabled_long_enough,
                    format!(
                        "destroy_after ({}) has to pass from disabling",
                        current.policy.destroy_after
                    ),
                ));
            }
            if let Reign::Ended(end) = reign {
                let leases_over = after(end, current.policy.encrypt_lease);
                if now < leases_over {
                    let why = format!(
                        "a sidecar that heard nothing may encrypt under it until encrypt_lease ({}) ends",
                        current.policy.encrypt_lease
                    );
                    return Err(early(leases_over, why));
                }
            }
            (confirm, backup_phrase(&current.name, version))
        }
        Destruction::Lost { confirm, .. } => {
            if target.state == State::Destroyed {
                return Err(Refusal::WrongState {
                    version,
                    state: State::Destroyed,
                    needed: "it is destroyed already",
                });
            }
            (confirm, lost_phrase(&current.name, version))
        }
    };
    let backup = current
        .last_backup
        .as_ref()
        .filter(|backup| version <= backup.newest_version);
    match (how, backup) {
        // It can be brought back from the backup, should that be wanted.
        (Destruction::Orderly { .. }, Some(_)) => {}
        _ if confirm == Some(phrase.as_str()) => {}
        (Destruction::Lost { .. }, _)
            if confirm == Some(doubted_loss_phrase(&current.name, version).as_str()) => {}
        (Destruction::Orderly { .. }, None) | (Destruction::Lost { .. }, None) => {
            return Err(Refusal::NotConfirmed { version, phrase });
        }
        (Destruction::Lost { .. }, Some(backup)) => {
            let (verified_at, sha256) = (backup.verified_at, backup.sha256_hex());
            return Err(Refusal::NotLostWithBackup {
                version,
                verified_at,
                sha256,
                phrase,
            });
        }
    }
    target.state = State::Destroyed;
    target.state_changed_at = now;
    target.wraps.clear();
    Ok(next)
}

pub(super) fn successor(current: &Manifest, now: Timestamp) -> Manifest {
    let mut next = current.clone();
    next.generation += 1;
    // An operator's clock that is behind the last one's must not send time backwards.
    next.updated_at = now.max(current.updated_at);
    next.authentication = Default::default();
    next
}

fn push_version(manifest: &mut Manifest, new: NewVersion, now: Timestamp) {
    let number = manifest.versions.last().map_or(1, |last| last.version + 1);
    manifest.versions.push(Version {
        version: number,
        state: State::Enabled,
        compromised: false,
        created_at: now,
        state_changed_at: now,
        wraps: new.wraps,
        check: Base64(new.check.to_vec()),
    });
}

fn find(manifest: &mut Manifest, version: u32) -> Result<&mut Version, Refusal> {
    let last = manifest.versions.last().map_or(0, |last| last.version);
    let missing = Refusal::NoSuchVersion {
        keyring: manifest.name.clone(),
        version,
        last,
    };
    manifest
        .versions
        .iter_mut()
        .find(|candidate| candidate.version == version)
        .ok_or(missing)
}

fn require(version: &Version, state: State, needed: &'static str) -> Result<(), Refusal> {
    if version.state == state {
        Ok(())
    } else {
        Err(Refusal::WrongState {
            version: version.version,
            state: version.state,
            needed,
        })
    }
}

fn after(time: Timestamp, span: Span) -> Timestamp {
    time.checked_add(span.0).unwrap_or(Timestamp::MAX)
}

fn before(time: Timestamp, span: Span) -> Timestamp {
    time.checked_sub(span.0).unwrap_or(Timestamp::MIN)
}
