//! From the sidecars' `/status` to what a rollout sees.

use std::collections::BTreeMap;

use crate::{
    fleet::{FleetClient, Member},
    model::KeyringName,
    rollout::{Counters, FleetView, SidecarView, VersionView},
    wire::status::{KeyringStatus, KeyringUses, Status},
};

/// Asks every sidecar for its status.
pub(super) async fn fleet_view(fleet: &FleetClient, keyring: &KeyringName) -> FleetView {
    let statuses = fleet.members_and_statuses().await;
    let sidecars = statuses.into_iter().map(|(member, status)| {
        let view = status.and_then(|status| sidecar_view(&member, status, keyring));
        (member.name, view)
    });
    FleetView {
        sidecars: sidecars.collect(),
    }
}

fn sidecar_view(
    member: &Member,
    status: Status,
    keyring: &KeyringName,
) -> Result<SidecarView, String> {
    let failing_keks = status
        .keks
        .iter()
        .filter(|kek| kek.failures > 0)
        .map(|kek| {
            let reason = kek.last_error.as_ref().map(|error| error.message.clone());
            (kek.uri.to_string(), reason.unwrap_or_default())
        })
        .collect();
    let Status {
        instance,
        ready,
        now,
        keyrings,
        ..
    } = status;
    let found = keyrings
        .into_iter()
        .find(|found| found.name == *keyring)
        .ok_or("it doesn't serve the keyring; remove it from the fleet")?;
    let KeyringStatus {
        wave,
        observed_since,
        last_error,
        active,
        uses,
        ..
    } = found;
    let last_error = last_error.map(|error| error.message);
    let active = active.ok_or_else(|| {
        let reason = last_error.as_deref().unwrap_or("it has not started yet");
        format!("it has no active manifest: {reason}")
    })?;
    let versions: BTreeMap<u32, VersionView> = active
        .versions
        .into_iter()
        .map(|version| {
            let view = VersionView {
                unopened: version.unopened,
                waits: version.turn.is_some(),
                last_used: version.last_used,
                open: version.uses.map_or(0, |uses| uses.open),
                last_refused: version.last_refused,
            };
            (version.version, view)
        })
        .collect();
    Ok(SidecarView {
        instance: instance.unwrap_or_default(),
        is_joined: member.is_joined,
        shares_name: member.shares_name,
        wave,
        ready,
        now,
        keyring_id: active.id,
        generation: active.generation,
        encrypting: active.encrypting,
        observed_since,
        encrypt_until: active.encrypt_until,
        last_error,
        failing_keks,
        versions,
        counters: counters(uses),
    })
}

fn counters(uses: Option<KeyringUses>) -> Counters {
    let Some(uses) = uses else {
        return Counters::default();
    };
    let mut failed = BTreeMap::new();
    for failure in uses.failed {
        *failed.entry(failure.code).or_default() += failure.count;
    }
    Counters {
        encrypted: uses.encrypted,
        decrypted: uses.decrypted,
        failed,
    }
}
