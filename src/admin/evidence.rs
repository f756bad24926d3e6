//! Evidence from the fleet: the use of a version according to every sidecar's `/status`.

use crate::{
    crypto::KeyringId,
    fleet::{Fleet, FleetClient},
    keyring::{Manifest, SidecarReport, Sighting, VersionUse},
    model::KeyringName,
    wire::status::{ActiveManifest, KeyringStatus, Status},
};

/// Asks sidecars for their use of a version. A failed request is part of the report.
///
/// # Errors
/// A TLS file can't be used.
pub async fn ask_sidecars(
    fleet: &Fleet,
    keyring: &KeyringName,
    id: KeyringId,
    version: u32,
) -> Result<Vec<SidecarReport>, String> {
    let statuses = FleetClient::new(fleet)?.statuses().await;
    let report = |(sidecar, status): (String, Result<Status, String>)| SidecarReport {
        sidecar,
        usage: status.and_then(|status| usage(&status, keyring, id, version)),
    };
    Ok(statuses.into_iter().map(report).collect())
}

/// Returns the earliest time at which any of the sidecars saw the state of a version. A sidecar
/// that doesn't answer, or serves another keyring or generation, saw nothing.
///
/// # Errors
/// A TLS file can't be used.
pub(super) async fn ask_sightings(
    fleet: &Fleet,
    manifest: &Manifest,
    version: u32,
) -> Result<Sighting, String> {
    let statuses = FleetClient::new(fleet)?.statuses().await;
    let seen = statuses.iter().filter_map(|(_, status)| {
        let (_, active) = find(status.as_ref().ok()?, &manifest.name, manifest.id).ok()?;
        if active.generation != manifest.generation {
            return None;
        }
        let found = active
            .versions
            .iter()
            .find(|found| found.version == version)?;
        Some(Sighting {
            disabled: found.seen_disabled,
            superseded: found.seen_superseded,
            end: None,
        })
    });
    Ok(seen.fold(Sighting::default(), Sighting::or_earlier))
}

fn usage(
    status: &Status,
    keyring: &KeyringName,
    id: KeyringId,
    version: u32,
) -> Result<VersionUse, String> {
    let (found, active) = find(status, keyring, id)?;
    let last_used = active
        .versions
        .iter()
        .find(|found| found.version == version)
        .and_then(|found| found.last_used);
    Ok(VersionUse {
        generation: active.generation,
        observed_since: found.observed_since,
        last_used,
    })
}

/// Finds a keyring and its active manifest in a sidecar's status.
fn find<'a>(
    status: &'a Status,
    keyring: &KeyringName,
    id: KeyringId,
) -> Result<(&'a KeyringStatus, &'a ActiveManifest), String> {
    let found = status
        .keyrings
        .iter()
        .find(|found| found.name == *keyring)
        .ok_or("it doesn't serve the keyring; omit it")?;
    let active = found.active.as_ref().ok_or("it has no active manifest")?;
    if active.id != id.to_string() {
        return Err(format!(
            "its keyring of that name has another ID, {}",
            active.id
        ));
    }
    Ok((found, active))
}
