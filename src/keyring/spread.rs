//! When a sidecar unwraps a new version: at a point of a window that is its own, so that a large
//! fleet asks its KEKs at a bounded rate.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Manifest, State, lifecycle::after};
use crate::{
    crypto::{InstanceId, fingerprint},
    model::Span,
};

/// Separates this hash from others.
const DOMAIN: &[u8] = b"sidekey spread v1\0";

/// Returns the versions that the process `instance` needn't unwrap yet, each with the time of its
/// turn: within `policy.spread` of the version's creation.
///
/// A version that some wave was given is about to be used: it doesn't wait. Neither does one whose
/// turn is further away than the whole window, by a clock that is far behind.
pub fn waiting(
    manifest: &Manifest,
    instance: InstanceId,
    now: Timestamp,
) -> BTreeMap<u32, Timestamp> {
    let Some(window) = manifest.policy.spread else {
        return BTreeMap::new();
    };
    let is_activated = |number| {
        let mut activations = manifest.activations.iter();
        activations.any(|activation| activation.version == number)
    };
    let latest = after(now, window);
    manifest
        .versions
        .iter()
        .filter(|version| version.state == State::Enabled && !is_activated(version.version))
        .map(|version| {
            let point = point(window, manifest, version.version, instance);
            (version.version, after(version.created_at, point))
        })
        .filter(|(_, turn)| now < *turn && *turn <= latest)
        .collect()
}

/// Returns a point of the window that is uniformly distributed over processes and versions, and
/// the same each time.
fn point(window: Span, manifest: &Manifest, version: u32, instance: InstanceId) -> Span {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend(manifest.id.0);
    bytes.extend(version.to_be_bytes());
    bytes.extend(instance.0);
    let hash = fingerprint(&bytes);
    let share = hash[..4]
        .iter()
        .fold(0_u32, |share, byte| share << 8 | u32::from(*byte));
    Span(window.0.mul_f64(f64::from(share) / f64::from(u32::MAX)))
}
