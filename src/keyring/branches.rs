//! Two branches of one keyring, as after a store was rolled back and written again.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{
    Activation, Ancestor, Base64, Document, Manifest, Refusal, State, WaveSelector,
    activation::primary_for,
    lifecycle::{activate_all, limit_lineage, successor},
    policy::keep_waits,
    primaries,
    rollout::{end_active_rollout, merge_ended_rollouts},
};

/// Returns the next generation of the branch `chosen`, which also descends from `others`: it has
/// their versions, destructions and flags, and the activations of all, and then activates the
/// present primaries of `chosen` again. The policy is that of `chosen`, but no wait is shortened by
/// it. The rollouts of all of them end. Another branch that made a version of the same number as
/// `chosen` can't be merged and is left out; its readers won't follow.
///
/// # Errors
/// [`Refusal::Unmergeable`] if another branch destroyed or flagged a primary of `chosen`.
pub fn merge(chosen: &Document, others: &[&Document], now: Timestamp) -> Result<Manifest, Refusal> {
    let mut next = successor(chosen, now);
    end_active_rollout(&mut next);
    for other in others {
        let branch = other.manifest();
        merge_ended_rollouts(&mut next, branch);
        next.generation = next.generation.max(branch.generation.saturating_add(1));
        if can_merge(&next, branch) {
            merge_versions(&mut next, branch);
            merge_activations(&mut next.activations, &branch.activations);
            next.lineage.push(Ancestor {
                generation: branch.generation,
                sha256: Base64(other.digest().to_vec()),
            });
            next.lineage.extend(branch.lineage.iter().cloned());
        }
    }
    sort_lineage(&mut next.lineage);
    // A reader of `chosen` learns of these now, whatever generation decided them.
    let known = chosen.manifest().activations.len();
    for activation in &mut next.activations[known..] {
        activation.generation = Some(next.generation);
    }
    // Last, so that what another branch activated doesn't win over the chosen one.
    let decided = &chosen.manifest().activations;
    let mut present = Vec::new();
    for (wave, _) in primaries(&next.activations, now) {
        let primary = match &wave {
            WaveSelector::Every => primary_for(decided, now, None),
            WaveSelector::One(name) => primary_for(decided, now, Some(name)),
        };
        let Some(version) = primary else { continue };
        let is_usable = next
            .version(version)
            .is_some_and(|version| version.state == State::Enabled && !version.compromised);
        if !is_usable {
            return Err(Refusal::Unmergeable { version, wave });
        }
        present.push(Activation {
            version,
            wave,
            at: now,
            generation: Some(next.generation),
        });
    }
    activate_all(&mut next, present);
    for other in others {
        keep_waits(&mut next, &other.manifest().policy);
    }
    Ok(next)
}

fn can_merge(next: &Manifest, branch: &Manifest) -> bool {
    branch.versions.iter().all(|version| {
        next.version(version.version)
            .is_none_or(|known| known.check == version.check && known.key == version.key)
    }) && branch.trimmed == next.trimmed
}

fn merge_versions(next: &mut Manifest, branch: &Manifest) {
    for version in &branch.versions {
        let known = next
            .versions
            .iter_mut()
            .find(|known| known.version == version.version);
        let Some(known) = known else {
            next.versions.push(version.clone());
            continue;
        };
        known.compromised |= version.compromised;
        let kept = known.kept.or_longer(version.kept);
        if version.state == State::Destroyed && known.state != State::Destroyed {
            *known = version.clone();
        }
        known.kept = kept;
    }
}

/// Appends what the branch decided since both had the same activations.
fn merge_activations(activations: &mut Vec<Activation>, branch: &[Activation]) {
    let common = activations
        .iter()
        .zip(branch)
        .take_while(|(one, other)| one.is_same(other))
        .count();
    activations.extend_from_slice(&branch[common..]);
}

fn sort_lineage(lineage: &mut Vec<Ancestor>) {
    let mut seen = BTreeSet::new();
    lineage.retain(|ancestor| seen.insert((ancestor.generation, ancestor.sha256.0.clone())));
    lineage.sort_by_key(|ancestor| std::cmp::Reverse(ancestor.generation));
    limit_lineage(lineage);
}
