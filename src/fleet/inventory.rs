//! The inventory of a fleet: what its sidecars' statuses say together.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::Member;
use crate::{
    model::{KeyringName, Wave},
    wire::status::{ActiveManifest, HubStatus, KeyringStatus, Status, VersionStatus, VersionUses},
};

/// What one sidecar reports.
#[derive(Debug, Serialize)]
pub struct SidecarRow {
    /// What the fleet calls it.
    pub sidecar: String,
    /// The URL of its ops listener; None for one that has joined a hub, or a name that DNS doesn't
    /// know.
    pub url: Option<String>,
    /// The workload that it serves, if the fleet file or the hub says so.
    pub workload: Option<String>,
    /// Why it gave no status.
    pub unreachable: Option<String>,
    /// The version of the build.
    pub build: Option<String>,
    /// The identity of the process.
    pub instance: Option<String>,
    /// Whether it is ready to serve.
    pub ready: Option<bool>,
    /// Its connection to a hub, if it has joined one.
    pub hub: Option<HubStatus>,
    /// Its keyrings.
    pub keyrings: Vec<ServedKeyring>,
}

/// A keyring on one sidecar.
#[derive(Debug, Serialize)]
pub struct ServedKeyring {
    /// The keyring.
    pub keyring: KeyringName,
    /// Its id; None without an active manifest.
    pub id: Option<String>,
    /// The wave that it is served for.
    pub wave: Wave,
    /// The active generation.
    pub generation: Option<u64>,
    /// The version that encrypts.
    pub encrypting: Option<u32>,
    /// By how many generations it lags behind the highest that any sidecar has active; None without
    /// an active manifest.
    pub lag: Option<u64>,
}

impl SidecarRow {
    /// Returns whether the sidecar needs attention: it gave no status, or runs an older generation
    /// than another one, or none.
    pub fn is_behind(&self) -> bool {
        self.unreachable.is_some() || self.keyrings.iter().any(|served| served.lag != Some(0))
    }
}

/// A version of a keyring, over the whole fleet.
#[derive(Debug, Serialize)]
pub struct KeyRow {
    /// The keyring.
    pub keyring: KeyringName,
    /// Its id.
    pub id: String,
    /// The version.
    pub version: u32,
    /// Its state in the highest generation that any sidecar has active.
    pub state: String,
    /// Whether it is marked as compromised there.
    pub compromised: bool,
    /// Its role in each wave, by the sidecars of that wave with the highest generation.
    pub roles: BTreeMap<Wave, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// How many sidecars that list the version have each generation active.
    pub generations: BTreeMap<u64, usize>,
    /// How many sidecars have not unwrapped it.
    pub unopened: usize,
    /// When any of the sidecars last used it, since their processes started.
    pub last_used: Option<Timestamp>,
    /// How often the sidecars used it, since their processes started.
    pub uses: VersionUses,
    /// Whether every sidecar that lists the version reports its uses; older builds don't.
    pub uses_are_complete: bool,
}

/// Lists the sidecars, in the order of the fleet.
pub fn sidecars(answers: Vec<(Member, Result<Status, String>)>) -> Vec<SidecarRow> {
    let mut highest: BTreeMap<(KeyringName, String), u64> = BTreeMap::new();
    for (keyring, active) in statuses(&answers).flat_map(actives) {
        let known = highest
            .entry((keyring.name.clone(), active.id.clone()))
            .or_default();
        *known = active.generation.max(*known);
    }
    answers
        .into_iter()
        .map(|(member, status)| row(member, status, &highest))
        .collect()
}

fn row(
    member: Member,
    status: Result<Status, String>,
    highest: &BTreeMap<(KeyringName, String), u64>,
) -> SidecarRow {
    let (status, unreachable) = match status {
        Ok(status) => (Some(status), None),
        Err(reason) => (None, Some(reason)),
    };
    let served = |keyring: &KeyringStatus| {
        let active = keyring.active.as_ref();
        let lag = active.and_then(|active| {
            let key = (keyring.name.clone(), active.id.clone());
            Some(highest.get(&key)?.saturating_sub(active.generation))
        });
        ServedKeyring {
            keyring: keyring.name.clone(),
            id: active.map(|active| active.id.clone()),
            wave: keyring.wave.clone(),
            generation: active.map(|active| active.generation),
            encrypting: active.and_then(|active| active.encrypting),
            lag,
        }
    };
    let keyrings = status.iter().flat_map(|status| &status.keyrings);
    SidecarRow {
        sidecar: member.name,
        url: member.url,
        workload: member.workload,
        unreachable,
        build: status.as_ref().map(|status| status.version.clone()),
        instance: status.as_ref().and_then(|status| status.instance.clone()),
        ready: status.as_ref().map(|status| status.ready),
        hub: status.as_ref().and_then(|status| status.hub.clone()),
        keyrings: keyrings.map(served).collect(),
    }
}

/// Lists the versions of every keyring that a sidecar serves. Keyrings of one name with different
/// ids are different keyrings.
pub fn keys(answers: &[(Member, Result<Status, String>)]) -> Vec<KeyRow> {
    let mut views: Vec<View<'_>> = statuses(answers)
        .flat_map(actives)
        .map(|(keyring, active)| View { keyring, active })
        .collect();
    // The newest view of a keyring comes first.
    views.sort_by_key(|view| std::cmp::Reverse(view.active.generation));
    let keyrings: BTreeSet<(&KeyringName, &str)> = views
        .iter()
        .map(|view| (&view.keyring.name, view.active.id.as_str()))
        .collect();
    let mut rows = Vec::new();
    for (name, id) in keyrings {
        let of_keyring: Vec<&View<'_>> = views
            .iter()
            .filter(|view| view.keyring.name == *name && view.active.id == id)
            .collect();
        let numbers: BTreeSet<u32> = of_keyring
            .iter()
            .flat_map(|view| &view.active.versions)
            .map(|version| version.version)
            .collect();
        rows.extend(
            numbers
                .into_iter()
                .filter_map(|number| key_row(number, &of_keyring)),
        );
    }
    rows
}

/// A keyring as one sidecar sees it.
struct View<'s> {
    keyring: &'s KeyringStatus,
    active: &'s ActiveManifest,
}

/// `views` are of one keyring, newest first. Returns None if none of them lists the version.
fn key_row(number: u32, views: &[&View<'_>]) -> Option<KeyRow> {
    let listing: Vec<(&View<'_>, &VersionStatus)> = views
        .iter()
        .filter_map(|view| {
            let mut versions = view.active.versions.iter();
            Some((*view, versions.find(|version| version.version == number)?))
        })
        .collect();
    let (view, newest) = listing.first()?;
    let mut row = KeyRow {
        keyring: view.keyring.name.clone(),
        id: view.active.id.clone(),
        version: number,
        state: newest.state.clone(),
        compromised: newest.compromised,
        roles: BTreeMap::new(),
        created_at: newest.created_at,
        generations: BTreeMap::new(),
        unopened: 0,
        last_used: None,
        uses: VersionUses::default(),
        uses_are_complete: true,
    };
    for (view, version) in listing {
        row.roles
            .entry(view.keyring.wave.clone())
            .or_insert_with(|| version.role.clone());
        *row.generations.entry(view.active.generation).or_default() += 1;
        row.unopened += usize::from(version.unopened.is_some());
        row.last_used = row.last_used.max(version.last_used);
        match version.uses {
            Some(uses) => {
                row.uses.encrypted += uses.encrypted;
                row.uses.refused += uses.refused;
                row.uses.open += uses.open;
                row.uses.decrypted += uses.decrypted;
            }
            None => row.uses_are_complete = false,
        }
    }
    Some(row)
}

fn statuses(answers: &[(Member, Result<Status, String>)]) -> impl Iterator<Item = &Status> {
    answers
        .iter()
        .filter_map(|(_, status)| status.as_ref().ok())
}

fn actives(status: &Status) -> impl Iterator<Item = (&KeyringStatus, &ActiveManifest)> {
    status
        .keyrings
        .iter()
        .filter_map(|keyring| Some((keyring, keyring.active.as_ref()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "6aa04d462abfa7a377ccded916eb6fd8";

    fn version(number: u32, role: &str, uses: Value, last_used: Value) -> Value {
        json!({
            "version": number, "state": "enabled", "role": role, "compromised": false,
            "created_at": "2026-11-24T12:00:00Z", "last_used": last_used, "uses": uses,
        })
    }

    fn uses(encrypted: u64, decrypted: u64) -> Value {
        json!({ "encrypted": encrypted, "decrypted": decrypted })
    }

    fn keyring(wave: &str, id: &str, generation: u64, versions: &[Value]) -> Value {
        json!({
            "name": "orders", "location": "file:orders.json", "wave": wave,
            "observed_since": "2026-11-24T12:00:00Z", "last_refresh": null, "last_error": null,
            "active": {
                "id": id, "generation": generation, "updated_at": "2026-11-24T12:00:00Z",
                "primary": 1, "encrypting": 1, "primary_since": null, "confirmed_at": null,
                "encrypt_until": "2026-12-24T12:00:00Z", "versions": versions,
            },
        })
    }

    fn answer(name: &str, keyring: Value) -> (Member, Result<Status, String>) {
        // As builds before this one write it, without what they don't report.
        let status = json!({
            "version": "0.1.0", "started_at": "2026-11-24T12:00:00Z", "ready": true, "pending": [],
            "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
            "keks": [], "keyrings": [keyring],
        });
        let status = serde_json::from_value(status).expect("a status");
        (Member::named(name), Ok(status))
    }

    #[test]
    fn a_sidecar_lags_behind_the_highest_generation_of_its_keyring() {
        let mut empty = keyring("standard", ID, 1, &[]);
        empty["active"] = Value::Null;
        let rows = sidecars(vec![
            answer("a", keyring("canary", ID, 7, &[])),
            answer("b", keyring("standard", ID, 5, &[])),
            answer("c", keyring("standard", "00", 2, &[])),
            answer("d", empty),
            (Member::named("e"), Err("no connection within 2s".into())),
            (Member::named("f.svc:9464"), Err("why".into())),
        ]);
        let lags: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row.keyrings.first().map(|served| served.lag),
                    row.is_behind(),
                )
            })
            .collect();
        assert_eq!(
            lags,
            [
                (Some(Some(0)), false),
                (Some(Some(2)), true),
                (Some(Some(0)), false),
                (Some(None), true),
                (None, true),
                (None, true),
            ]
        );
        assert_eq!(
            rows[4].unreachable.as_deref(),
            Some("no connection within 2s")
        );
        assert_eq!(
            (rows[5].sidecar.as_str(), &rows[5].url),
            ("f.svc:9464", &None)
        );
        assert_eq!(rows[0].instance, None, "an older build has none");
    }

    #[test]
    fn a_version_is_summed_up_over_the_fleet() {
        let never = Value::Null;
        let rows = keys(&[
            answer(
                "a",
                keyring(
                    "standard",
                    ID,
                    5,
                    &[version(
                        1,
                        "primary",
                        uses(10, 20),
                        json!("2026-11-24T13:00:00Z"),
                    )],
                ),
            ),
            answer(
                "b",
                keyring(
                    "canary",
                    ID,
                    6,
                    &[
                        version(1, "decrypt-only", uses(1, 2), json!("2026-11-24T14:00:00Z")),
                        version(2, "primary", uses(5, 0), never.clone()),
                    ],
                ),
            ),
            answer(
                "c",
                keyring(
                    "standard",
                    ID,
                    6,
                    &[
                        version(1, "decrypt-only", Value::Null, never.clone()),
                        version(2, "pending", uses(0, 3), never.clone()),
                    ],
                ),
            ),
            (Member::named("d"), Err("unreachable".into())),
        ]);
        let [first, second] = &rows[..] else {
            panic!("two versions: {rows:?}")
        };
        let roles = |row: &KeyRow| -> Vec<String> {
            let roles = row.roles.iter();
            roles.map(|(wave, role)| format!("{wave}={role}")).collect()
        };
        assert_eq!(
            roles(first),
            ["canary=decrypt-only", "standard=decrypt-only"]
        );
        assert_eq!(roles(second), ["canary=primary", "standard=pending"]);
        assert_eq!(first.generations, BTreeMap::from([(5, 1), (6, 2)]));
        assert_eq!(second.generations, BTreeMap::from([(6, 2)]));
        assert_eq!((first.uses.encrypted, first.uses.decrypted), (11, 22));
        assert_eq!((second.uses.encrypted, second.uses.decrypted), (5, 3));
        assert_eq!(
            (first.uses_are_complete, second.uses_are_complete),
            (false, true)
        );
        let used = first.last_used.map(|at| at.to_string());
        assert_eq!(used.as_deref(), Some("2026-11-24T14:00:00Z"));
    }
}
