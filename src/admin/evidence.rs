//! Evidence from the fleet: the use of a version according to every sidecar's `/status`, and to the
//! ledger of the hub that others have joined.

use jiff::Timestamp;

use super::error::AdminError;
use crate::{
    crypto::KeyringId,
    fleet::{Fleet, FleetClient, Member},
    keyring::{
        self, FleetEvidence, LedgerEvidence, Manifest, PrimaryPeriod, SidecarReport, Sighting,
        State, VersionUse, primary_period, superseding_generation,
    },
    ledger::{Code, Reason, Superseded, Verdict},
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
    let policy = &manifest.policy;
    let superseded_at = match primary_period(&manifest.activations, version, now) {
        PrimaryPeriod::Ended(at) => at,
        PrimaryPeriod::Never => found.created_at,
        // It can't be disabled, whatever the ledger says.
        PrimaryPeriod::CurrentOrScheduled => now,
    };
    let superseded_in = superseding_generation(&manifest.activations, version, now);
    let request = EvidenceRequest {
        name: manifest.name.clone(),
        id: manifest.id.0,
        version,
        class: policy.class_of(found).to_string(),
        quiet_period: policy.quiet_period_of(found),
        superseded_at,
        // Older builds didn't record it, and it was not after the present one.
        generation: superseded_in.unwrap_or(generation),
        encrypt_lease: policy.encrypt_lease_of(found),
        destroy_after: (found.state == State::Disabled).then(|| policy.destroy_after_of(found)),
    };
    let (missing, asking) = match client.evidence(&request).await? {
        Ok(verdict) if is_about(&verdict, &request) => (lines(&verdict), asking(&verdict)),
        Ok(_) => (vec!["the hub answered another question".into()], Vec::new()),
        Err(reason) => (vec![reason], Vec::new()),
    };
    Some(LedgerEvidence {
        generation,
        missing,
        asking,
    })
}

/// Returns whether a verdict answers a request, rather than an easier one.
fn is_about(verdict: &Verdict, request: &EvidenceRequest) -> bool {
    let superseded = Some(Superseded {
        at: request.superseded_at,
        generation: request.generation,
    });
    verdict.keyring.0 == request.id
        && verdict.version == request.version
        && verdict.class.to_string() == request.class
        && verdict.quiet_period == request.quiet_period
        && verdict.destroy_after == request.destroy_after
        && verdict.superseded == superseded
}

/// Returns the workloads that ask for a version although it is disabled.
fn asking(verdict: &Verdict) -> Vec<String> {
    let asks = |reason: &Reason| reason.code == Code::Refused;
    let workloads = verdict.workloads.iter();
    workloads
        .filter(|workload| workload.reasons.iter().any(asks))
        .map(|workload| format!("workload {}", workload.workload))
        .collect()
}

/// Refuses to destroy a disabled version that the fleet still asks for. A fleet without sidecars
/// and hub says nothing.
///
/// # Errors
/// [`Refusal::StillAskedFor`](crate::keyring::Refusal::StillAskedFor); a TLS file can't be used.
pub async fn require_unasked(
    fleet: &Fleet,
    manifest: &Manifest,
    version: u32,
    now: Timestamp,
) -> Result<(), AdminError> {
    let is_disabled = manifest
        .version(version)
        .is_some_and(|found| found.state == State::Disabled);
    if fleet.is_empty() || !is_disabled {
        return Ok(());
    }
    let evidence = ask_fleet(fleet, manifest, version, now).await;
    let evidence = evidence.map_err(AdminError::System)?;
    Ok(keyring::require_unasked(manifest, version, &evidence, now)?)
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
    let mut versions = active.versions.iter();
    let version = versions.find(|found| found.version == version);
    Ok(VersionUse {
        generation: active.generation,
        observed_since: found.observed_since,
        last_used: version.and_then(|version| version.last_used),
        open: version
            .and_then(|version| version.uses)
            .map_or(0, |uses| uses.open),
        last_refused: version.and_then(|version| version.last_refused),
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
