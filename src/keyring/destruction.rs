//! Destroying a version: removes its wraps and keeps a tombstone.

use jiff::Timestamp;

use super::{
    BackupRecord, Manifest, PrimaryPeriod, Refusal, State, Version, WaveSelector,
    lifecycle::{activate, after, find, require, successor},
    primary_period,
};
use crate::model::KeyringName;

/// How a version is destroyed, with the operator's confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destruction<'a> {
    /// The version is disabled and its waiting times are over.
    Orderly {
        /// The phrase that replaces a verified backup; ignored if there is one.
        confirm: Option<&'a str>,
    },
    /// Every KEK that wraps the version is permanently lost. No one can unwrap it again, so waiting
    /// would not help.
    Lost {
        /// The phrase that declares the loss.
        confirm: Option<&'a str>,
        /// The version that replaces the lost one as primary, for every wave and immediately.
        successor: Option<u32>,
    },
}

/// Returns the phrase that replaces a verified backup.
pub fn backup_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("there is no backup of version {version} of {keyring}")
}

/// Returns the phrase that declares a version's KEKs lost.
pub fn lost_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("every KEK of version {version} of {keyring} is lost")
}

/// Returns the phrase that declares a version's KEKs lost although one of them may only be
/// unavailable. It is stronger than [`lost_phrase`] and accepted in its place.
pub fn doubted_loss_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("no KEK of version {version} of {keyring} will ever come back")
}

/// Destroys a version. What was encrypted under it is lost.
///
/// # Errors
/// [`Refusal`] unless the version is disabled, both waiting times are over (I5, I11), and a
/// verified backup holds it or the operator confirmed that none does. A lost version needs a
/// confirmation alone, and a successor if it is a primary.
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
        // In the same generation: no one can unwrap the lost version, so no one could authenticate
        // a generation in between.
        let activated = activate(current, successor, WaveSelector::Every, None, now)?;
        next.activations = activated.activations;
    }
    let period = primary_period(&next.activations, version, now);
    let target = find(&mut next, version)?;
    if period == PrimaryPeriod::CurrentOrScheduled {
        return Err(match how {
            Destruction::Orderly { .. } => Refusal::IsPrimary(version),
            Destruction::Lost { .. } => Refusal::LostPrimary(version),
        });
    }
    match how {
        Destruction::Orderly { .. } => require_waiting_times(current, target, period, now)?,
        Destruction::Lost { .. } if target.state == State::Destroyed => {
            return Err(Refusal::WrongState {
                version,
                state: State::Destroyed,
                needed: "it can't be destroyed again",
            });
        }
        Destruction::Lost { .. } => {}
    }
    require_confirmation(current, version, how)?;
    target.state = State::Destroyed;
    target.state_changed_at = now;
    target.wraps.clear();
    Ok(next)
}

fn require_waiting_times(
    current: &Manifest,
    target: &Version,
    period: PrimaryPeriod,
    now: Timestamp,
) -> Result<(), Refusal> {
    require(
        target,
        State::Disabled,
        "only a disabled version can be destroyed (`keyring disable`)",
    )?;
    let version = target.version;
    let too_early = |from, why| Err(Refusal::TooEarly { version, from, why });
    let policy = &current.policy;
    let disabled_long_enough = after(target.state_changed_at, policy.destroy_after);
    if now < disabled_long_enough {
        let why = format!(
            "destroy_after ({}) must pass after it was disabled",
            policy.destroy_after
        );
        return too_early(disabled_long_enough, why);
    }
    if let PrimaryPeriod::Ended(end) = period {
        let leases_over = after(end, policy.encrypt_lease);
        if now < leases_over {
            let why = format!(
                "a disconnected sidecar may encrypt with it until encrypt_lease ({}) ends",
                policy.encrypt_lease
            );
            return too_early(leases_over, why);
        }
    }
    Ok(())
}

fn require_confirmation(
    current: &Manifest,
    version: u32,
    how: Destruction<'_>,
) -> Result<(), Refusal> {
    let holds_version = |backup: &&BackupRecord| version <= backup.newest_version;
    let backup = current.last_backup.as_ref().filter(holds_version);
    let name = &current.name;
    match (how, backup) {
        // The backup can restore it.
        (Destruction::Orderly { .. }, Some(_)) => Ok(()),
        (Destruction::Orderly { confirm }, None) => {
            let phrase = backup_phrase(name, version);
            if confirm == Some(phrase.as_str()) {
                return Ok(());
            }
            Err(Refusal::NotConfirmed { version, phrase })
        }
        (Destruction::Lost { confirm, .. }, backup) => {
            let phrase = lost_phrase(name, version);
            let accepted = [phrase.as_str(), &doubted_loss_phrase(name, version)];
            if confirm.is_some_and(|confirm| accepted.contains(&confirm)) {
                return Ok(());
            }
            Err(match backup {
                None => Refusal::NotConfirmed { version, phrase },
                Some(backup) => Refusal::NotLostWithBackup {
                    version,
                    verified_at: backup.verified_at,
                    sha256: backup.sha256_hex(),
                    phrase,
                },
            })
        }
    }
}
