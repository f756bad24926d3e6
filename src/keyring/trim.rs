//! Dropping the tombstones of versions that were destroyed long ago.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    Base64, Document, Manifest, Refusal, State, Trimmed, authentication::Chain,
    lifecycle::successor,
};

/// The least age of a destruction that is dropped. A sidecar or a copy that is older than this must
/// start again.
const LEAST_AGE: SignedDuration = SignedDuration::from_hours(400 * 24);
/// The least age in encrypt leases.
const LEAST_LEASES: u32 = 2;

/// Drops the first versions, as far as all of them were destroyed before `before`, and every
/// activation of a destroyed version. Only the commitment to the dropped keys is left.
///
/// # Errors
/// [`Refusal`] if `before` is less than 400 days or two encrypt leases ago, or if there is nothing
/// to drop.
pub fn trim(current: &Document, before: Timestamp, now: Timestamp) -> Result<Manifest, Refusal> {
    let manifest = current.manifest();
    let destroyed = manifest
        .versions
        .iter()
        .filter(|version| version.state == State::Destroyed);
    let lease = destroyed
        .map(|version| manifest.policy.encrypt_lease_of(version).0)
        .fold(manifest.policy.encrypt_lease.0, Duration::max);
    let latest = [
        now.checked_sub(LEAST_AGE),
        now.checked_sub(lease.saturating_mul(LEAST_LEASES)),
    ]
    .map(|time| time.unwrap_or(Timestamp::MIN));
    let latest = latest[0].min(latest[1]);
    if before > latest {
        return Err(Refusal::TrimTooRecent { before, latest });
    }
    let mut next = successor(current, now);
    let dropped = next
        .versions
        .iter()
        .take_while(|version| {
            version.state == State::Destroyed && version.state_changed_at < before
        })
        .count();
    if dropped > 0 {
        let through = next.versions[dropped - 1].version;
        let link = Chain::of(&next).at(through).copied();
        next.trimmed = link.map(|link| Trimmed {
            through,
            l: Base64(link.to_vec()),
        });
        next.versions.drain(..dropped);
    }
    let activations = next.activations.len();
    let live: BTreeSet<u32> = next.live().map(|version| version.version).collect();
    next.activations
        .retain(|activation| live.contains(&activation.version));
    if dropped == 0 && next.activations.len() == activations {
        return Err(Refusal::NothingToTrim {
            first: next.first_version(),
            before,
        });
    }
    Ok(next)
}
