//! The active rollout of a keyring: its fence, and the changes that only a rollout makes.
//!
//! The manifest itself says which rollout is active and how far it is. Every write of a rollout
//! moves that on, by compare-and-swap, so each step is written once: a replayed order, a second
//! runner or a resumed one finds that it is done, or that it isn't its turn.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Activation, Base64, Document, Manifest, Refusal, State, WaveSelector, compromise,
    lifecycle::{activate, activate_all, successor},
    primaries,
};
use crate::crypto::RolloutId;

/// How many ended rollouts a manifest lists at most.
pub const ENDED_ROLLOUTS: usize = 16;

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutMark {
    /// The rollout.
    pub id: RolloutId,
    /// The digest of its plan (32 bytes).
    pub plan: Base64,
    /// The step that wrote this generation or, if others wrote since, the last that did.
    pub step: u32,
    /// How often the step was tried, from 1.
    pub attempt: u32,
}

/// Lets a rollout write `next`, which a change made of `current`, as its step `mark`.
///
/// Of two writers of one step, one is refused. So is a rollout that ended, or another one, unless
/// the change ends that.
///
/// # Errors
/// [`Refusal::RolloutStepDone`] if the rollout is at this step or beyond;
/// [`Refusal::RolloutEnded`]; [`Refusal::OtherRollout`]; [`Refusal::OtherPlan`].
pub fn advance_rollout(
    current: &Document,
    mut next: Manifest,
    mark: RolloutMark,
) -> Result<Manifest, Refusal> {
    let before = current.manifest();
    if before.ended_rollouts.contains(&mark.id) {
        return Err(Refusal::RolloutEnded(mark.id));
    }
    if let Some(active) = &before.rollout {
        if active.id != mark.id {
            // A change that keeps it doesn't end it.
            if next.rollout.is_some() {
                return Err(other(active));
            }
        } else if active.plan != mark.plan {
            return Err(Refusal::OtherPlan(mark.id));
        } else if (mark.step, mark.attempt) <= (active.step, active.attempt) {
            return Err(Refusal::RolloutStepDone {
                id: mark.id,
                step: active.step,
                attempt: active.attempt,
            });
        }
    }
    next.ended_rollouts.retain(|ended| *ended != mark.id);
    next.rollout = Some(mark);
    Ok(next)
}

/// Ends a rollout. Nothing else changes.
///
/// # Errors
/// [`Refusal::RolloutEnded`] if it has ended; [`Refusal::OtherRollout`] if another one is active;
/// [`Refusal::NoSuchRollout`].
pub fn end_rollout(current: &Document, id: RolloutId, now: Timestamp) -> Result<Manifest, Refusal> {
    let before = current.manifest();
    if before.ended_rollouts.contains(&id) {
        return Err(Refusal::RolloutEnded(id));
    }
    require_last_rollout(before, id)?;
    let mut next = successor(current, now);
    end_active_rollout(&mut next);
    Ok(next)
}

/// Checks that a rollout is active, or was the last one that was.
///
/// # Errors
/// [`Refusal::OtherRollout`] if another one is active; [`Refusal::NoSuchRollout`].
pub fn require_last_rollout(manifest: &Manifest, id: RolloutId) -> Result<(), Refusal> {
    match &manifest.rollout {
        Some(active) if active.id == id => Ok(()),
        Some(active) => Err(other(active)),
        None if manifest.ended_rollouts.first() == Some(&id) => Ok(()),
        None => Err(Refusal::NoSuchRollout(id)),
    }
}

/// Refuses a change by hand that comes in the way of an active rollout: one that neither moves the
/// rollout on nor ends it, and changes more than the stamp and the record of a backup.
///
/// # Errors
/// [`Refusal::RolloutActive`]
pub fn require_no_rollout(current: &Manifest, next: &Manifest) -> Result<(), Refusal> {
    let Some(active) = &current.rollout else {
        return Ok(());
    };
    let is_harmless = current.versions == next.versions
        && current.activations == next.activations
        && current.policy == next.policy
        && current.trimmed == next.trimmed;
    if is_harmless || current.rollout != next.rollout {
        return Ok(());
    }
    Err(Refusal::RolloutActive {
        id: active.id,
        step: active.step,
    })
}

/// Takes every wave back to its former primary and ends the rollout.
///
/// `former` has the primary that each wave had before the rollout; a wave that isn't in it had that
/// of `*` and, if that isn't in it either, keeps its present one. From `now` on these are the
/// primaries: nothing that was scheduled before takes effect. A former primary that is disabled is
/// enabled.
///
/// # Errors
/// [`Refusal::RollForward`] if a former primary is compromised or destroyed.
pub fn roll_back(
    current: &Document,
    former: &BTreeMap<WaveSelector, u32>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let present: BTreeMap<WaveSelector, Option<u32>> =
        primaries(&next.activations, now).into_iter().collect();
    let waves: BTreeSet<&WaveSelector> = present.keys().chain(former.keys()).collect();
    let every = former.get(&WaveSelector::Every);
    let back: BTreeMap<&WaveSelector, u32> = waves
        .into_iter()
        .filter_map(|wave| {
            let recorded = former.get(wave).or(every).copied();
            let kept = || present.get(wave).copied().flatten();
            Some((wave, recorded.or_else(kept)?))
        })
        .collect();
    for (wave, version) in &back {
        let why = match next.version(*version) {
            None => Some("is gone"),
            Some(found) if found.state == State::Destroyed => Some("was destroyed"),
            Some(found) if found.compromised => Some("is marked compromised"),
            Some(_) => None,
        };
        if let Some(why) = why {
            let (wave, version) = ((*wave).clone(), *version);
            return Err(Refusal::RollForward { wave, version, why });
        }
    }
    for version in &mut next.versions {
        if version.state == State::Disabled && back.values().any(|back| *back == version.version) {
            version.state = State::Enabled;
            version.state_changed_at = now;
        }
    }
    let for_others = back.get(&WaveSelector::Every);
    let activations = back
        .iter()
        .filter(|(wave, version)| **wave == &WaveSelector::Every || Some(*version) != for_others)
        .map(|(wave, version)| Activation {
            version: *version,
            wave: (*wave).clone(),
            at: now,
            generation: Some(next.generation),
        })
        .collect();
    activate_all(&mut next, activations);
    end_active_rollout(&mut next);
    Ok(next)
}

/// Replaces a compromised version in one generation: `successor` becomes the primary of every wave
/// at once, nothing that was scheduled before takes effect, and the version is flagged. An active
/// rollout ends.
///
/// # Errors
/// [`Refusal`] if `successor` isn't enabled, is compromised, or is the version itself.
pub fn replace_compromised(
    current: &Document,
    compromised: u32,
    successor: u32,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    if compromised == successor {
        return Err(Refusal::OwnSuccessor(successor));
    }
    let activated = activate(current, successor, WaveSelector::Every, None, now)?;
    let mut next = compromise(current, compromised, now)?;
    // Without what `compromise` activates again, because the successor overrides it.
    next.activations = activated.activations;
    Ok(next)
}

/// Lists the active rollout among those that ended, the oldest of which is forgotten.
pub(super) fn end_active_rollout(next: &mut Manifest) {
    if let Some(ended) = next.rollout.take() {
        next.ended_rollouts.insert(0, ended.id);
        next.ended_rollouts.truncate(ENDED_ROLLOUTS);
    }
}

/// Lists the rollouts of another branch among those that ended.
pub(super) fn merge_ended_rollouts(next: &mut Manifest, branch: &Manifest) {
    let active = branch.rollout.as_ref().map(|mark| mark.id);
    let mut known: BTreeSet<RolloutId> = next.ended_rollouts.iter().copied().collect();
    let others = active
        .into_iter()
        .chain(branch.ended_rollouts.iter().copied());
    next.ended_rollouts
        .extend(others.filter(|id| known.insert(*id)));
    next.ended_rollouts.truncate(ENDED_ROLLOUTS);
}

fn other(active: &RolloutMark) -> Refusal {
    Refusal::OtherRollout {
        id: active.id,
        step: active.step,
    }
}
