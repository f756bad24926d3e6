//! Evidence from the fleet: the use of a version according to every sidecar's `/status`, and to the
//! ledger of the hub that others have joined.

use jiff::Timestamp;

use crate::{
    crypto::KeyringId,
    fleet::{Fleet, FleetClient, Member},
    keyring::{
        FleetEvidence, LedgerEvidence, Manifest, PrimaryPeriod, SidecarReport, Sighting,
        VersionUse, primary_period,
    },
    ledger::{Reason, Verdict},
    model::KeyringName,
    wire::{
        hub::EvidenceRequest,
        status::{ActiveManifest, KeyringStatus, Status},
    },
};

/// Asks the fleet whether a version is out of use: the hub for what its ledger says of the sidecars
/// that have joined, and every other one for its own uses. A failed request is part of the
/// result.
///
/// # Errors
/// A TLS file can't be used.
pub async fn ask_fleet(
    fleet: &Fleet,
    manifest: &Manifest,
    version: u32,
    now: Timestamp,
) -> Result<FleetEvidence, String> {
    let client = FleetClient::new(fleet)?;
    let statuses = client.members_and_statuses().await.into_iter();
    let reports = statuses.filter(|(member, _)| !member.is_joined);
    let report = |(member, status): (Member, Result<Status, String>)| SidecarReport {
        sidecar: member.name,
        usage: status.and_then(|status| usage(&status, &manifest.name, manifest.id, version)),
    };
    Ok(FleetEvidence {
        reports: reports.map(report).collect(),
        ledger: ask_ledger(&client, manifest, version, now).await,
    })
}

/// Asks the hub, if the fleet has one, what its ledger lacks to show that a version is out of use.
pub async fn ask_ledger(
    client: &FleetClient,
    manifest: &Manifest,
    version: u32,
    now: Timestamp,
) -> Option<LedgerEvidence> {
    let generation = manifest.generation;
    let found = manifest.version(version)?;
    let superseded_at = match primary_period(&manifest.activations, version, now) {
        PrimaryPeriod::Ended(at) => at,
        PrimaryPeriod::Never => found.created_at,
        // It can't be disabled, whatever the ledger says.
        PrimaryPeriod::CurrentOrScheduled => now,
    };
    let request = EvidenceRequest {
        name: manifest.name.clone(),
        id: manifest.id.0,
        version,
        class: manifest.policy.class_of(found).to_string(),
        quiet_period: manifest.policy.quiet_period_of(found),
        superseded_at,
        generation,
    };
    let missing = match client.evidence(&request).await? {
        Ok(verdict) => lines(&verdict),
        Err(reason) => vec![reason],
    };
    Some(LedgerEvidence {
        generation,
        missing,
    })
}

/// What a verdict lacks, one line each.
fn lines(verdict: &Verdict) -> Vec<String> {
    let own = verdict.reasons.iter().map(|reason| reason.message.clone());
    let of_workloads = verdict.workloads.iter().flat_map(|workload| {
        let line = |reason: &Reason| format!("workload {}: {}", workload.workload, reason.message);
        workload.reasons.iter().map(line)
    });
    own.chain(of_workloads).collect()
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
    // Not those that joined a hub: it could make the waiting time shorter (I15).
    let statuses = FleetClient::new(fleet)?.dialled_statuses().await;
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
