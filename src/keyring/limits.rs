//! How much of the format's limits a manifest uses.

use std::collections::BTreeSet;

use super::{
    Document,
    consistency::{MAX_ACTIVATIONS, MAX_GENERATION, MAX_VERSIONS, MAX_WAVES, MAX_WRAPS},
};

/// A limit of which at least half is used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {used} of at most {limit}; {remedy}")]
pub struct NearLimit {
    what: &'static str,
    used: u64,
    limit: u64,
    remedy: &'static str,
}

const TRIM: &str = "drop versions that were destroyed long ago (`keyring trim`)";

/// Returns the limits of which a manifest uses half or more. `capacity` is how many bytes its
/// location and its readers take.
pub fn near_limits(document: &Document, capacity: usize) -> Vec<NearLimit> {
    let manifest = document.manifest();
    let waves: BTreeSet<_> = manifest
        .activations
        .iter()
        .map(|activation| &activation.wave)
        .collect();
    let wraps = manifest
        .versions
        .iter()
        .map(|version| version.wraps.len())
        .max();
    let limit = |what, used: usize, limit: usize, remedy| NearLimit {
        what,
        used: used as u64,
        limit: limit as u64,
        remedy,
    };
    let uses = [
        limit("bytes", document.bytes().len(), capacity, TRIM),
        limit("versions", manifest.versions.len(), MAX_VERSIONS, TRIM),
        limit(
            "activations",
            manifest.activations.len(),
            MAX_ACTIVATIONS,
            TRIM,
        ),
        limit("waves", waves.len(), MAX_WAVES, "use fewer wave names"),
        limit(
            "KEKs of one version",
            wraps.unwrap_or_default(),
            MAX_WRAPS,
            "remove KEKs that are no longer needed (`keyring rewrap-kek --remove URI`)",
        ),
        NearLimit {
            what: "generation",
            used: manifest.generation,
            limit: MAX_GENERATION,
            remedy: "create a new keyring and move the data to it",
        },
    ];
    uses.into_iter()
        .filter(|near| near.used >= near.limit.div_ceil(2))
        .collect()
}
