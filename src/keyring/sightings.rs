//! When someone first saw what waiting times count from (I15). The stamps in a manifest come from
//! its writer's clock, and one that was slow would cut every waiting time short.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Manifest, State, activation::ends};

/// How far two clocks may differ.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// When a reader of manifests first saw the present state of each version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sightings(BTreeMap<u32, Sighting>);

/// When the present state of one version was first seen; `None` if it wasn't seen before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The first manifest in which it was disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Timestamp>,
    /// The first manifest in which other versions supersede it in every wave at `end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<Timestamp>,
    /// When they do, which may be in the future.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
}

impl Sightings {
    /// Records what `manifest` shows at `now`. A state that ended is forgotten.
    pub fn observe(&mut self, manifest: &Manifest, now: Timestamp) {
        let ends = ends(&manifest.activations);
        let sighting = |version: u32, state: State| {
            let before = self.of(version);
            let since =
                |holds: bool, before: Option<Timestamp>| holds.then(|| before.unwrap_or(now));
            let end = ends.get(&version).copied().flatten();
            // Another decision is another state: a slow clock may have brought the end forward.
            let superseded = before.superseded.filter(|_| before.end == end);
            Sighting {
                disabled: since(state == State::Disabled, before.disabled),
                superseded: since(end.is_some(), superseded),
                end,
            }
        };
        self.0 = manifest
            .live()
            .map(|version| (version.version, sighting(version.version, version.state)))
            .filter(|(_, sighting)| *sighting != Sighting::default())
            .collect();
    }

    /// Returns when the state of a version was first seen.
    pub fn of(&self, version: u32) -> Sighting {
        self.0.get(&version).copied().unwrap_or_default()
    }
}

impl Sighting {
    /// Returns the earlier of two parties' sightings. Both have seen the same generation.
    #[must_use]
    pub fn or_earlier(self, other: Self) -> Self {
        let earlier = |one: Option<Timestamp>, other: Option<Timestamp>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            disabled: earlier(self.disabled, other.disabled),
            superseded: earlier(self.superseded, other.superseded),
            end: self.end.or(other.end),
        }
    }
}
