use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    cli::{
        output::{CliError, Format, columns, note, print},
        target::ReadTarget,
    },
    crypto::KeyringId,
    keyring::{
        Activation, BackupRecord, Document, Kept, Manifest, Policy, RolloutMark, State,
        WaveSelector, overdue, primaries, scheduled,
    },
    model::{Anchor, KekUri, KeyringName},
};

#[derive(Serialize)]
struct KeyringStatus<'a> {
    name: &'a KeyringName,
    id: KeyringId,
    generation: u64,
    updated_at: Timestamp,
    /// SHA-256 of the covered bytes, for --first-time.
    digest: String,
    /// The newest version that can be trusted, for `anchor` in the config.
    anchor: Option<String>,
    policy: &'a Policy,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_backup: Option<&'a BackupRecord>,
    /// The active rollout.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<&'a RolloutMark>,
    /// Superseded versions that still decrypt although `decrypt_until` is over.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    overdue: Vec<Overdue>,
    primaries: BTreeMap<String, Option<u32>>,
    versions: Vec<VersionStatus<'a>>,
    activations: &'a [Activation],
}

#[derive(Serialize)]
struct Overdue {
    version: u32,
    /// When `decrypt_until` ended.
    since: Timestamp,
}

#[derive(Serialize)]
struct VersionStatus<'a> {
    version: u32,
    state: State,
    compromised: bool,
    created_at: Timestamp,
    /// What it keeps of former policies.
    #[serde(skip_serializing_if = "Kept::is_empty")]
    kept: Kept,
    /// Waves whose primary this version is.
    primary_for: Vec<String>,
    keks: Vec<&'a KekUri>,
}

pub(super) async fn run(target: ReadTarget, format: Format) -> Result<(), CliError> {
    let admin = target.admin()?;
    let document = admin.read().await?;
    let now = admin.now();
    let status = status(&document, now);
    for warning in admin.near_limits(&document) {
        note(format_args!("{}: {warning}", status.name));
    }
    print(format, &status, || describe(&status, now))
}

fn status(document: &Document, now: Timestamp) -> KeyringStatus<'_> {
    let manifest = document.manifest();
    let primaries: BTreeMap<String, Option<u32>> = primaries(&manifest.activations, now)
        .into_iter()
        .map(|(wave, version)| (wave.to_string(), version))
        .collect();
    let versions = manifest.versions.iter().map(|version| VersionStatus {
        version: version.version,
        state: version.state,
        compromised: version.compromised,
        created_at: version.created_at,
        kept: version.kept,
        primary_for: primaries
            .iter()
            .filter(|(_, primary)| **primary == Some(version.version))
            .map(|(wave, _)| wave.clone())
            .collect(),
        keks: version.wraps.iter().map(|wrap| &wrap.kek).collect(),
    });
    KeyringStatus {
        name: &manifest.name,
        id: manifest.id,
        generation: manifest.generation,
        updated_at: manifest.updated_at,
        digest: document.digest_hex(),
        anchor: anchor(manifest).map(|anchor| anchor.to_string()),
        policy: &manifest.policy,
        last_backup: manifest.last_backup.as_ref(),
        rollout: manifest.rollout.as_ref(),
        overdue: overdue(manifest, now)
            .into_iter()
            .map(|(version, since)| Overdue { version, since })
            .collect(),
        versions: versions.collect(),
        primaries,
        activations: &manifest.activations,
    }
}

fn anchor(manifest: &Manifest) -> Option<Anchor> {
    let trusted = manifest
        .versions
        .iter()
        .rev()
        .find(|version| version.state == State::Enabled && !version.compromised)?;
    Some(Anchor {
        version: trusted.version,
        key: trusted.key.0.as_slice().try_into().ok()?,
    })
}

fn describe(status: &KeyringStatus<'_>, now: Timestamp) -> String {
    let mut text = format!(
        "{}  id {}  generation {}  updated {:.3}\ndigest {}\n",
        status.name, status.id, status.generation, status.updated_at, status.digest
    );
    if let Some(anchor) = &status.anchor {
        text.push_str(&format!("anchor {anchor}\n"));
    }
    text.push_str(&format!("policy {}\n\n", status.policy));
    let heading = ["VERSION", "STATE", "PRIMARY FOR", "CREATED", "KEKS"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for version in &status.versions {
        let state = if version.compromised {
            format!("{}, compromised", version.state)
        } else {
            version.state.to_string()
        };
        let keks: Vec<&str> = version.keks.iter().map(|kek| kek.as_str()).collect();
        rows.push(vec![
            version.version.to_string(),
            state,
            or_dash(version.primary_for.join(", ")),
            format!("{:.3}", version.created_at),
            or_dash(keks.join(", ")),
        ]);
    }
    text.push_str(&columns(&rows));
    if let Some(backup) = status.last_backup {
        text.push_str(&format!(
            "\nlast backup: versions up to {}, verified {:.3}, SHA-256 {}\n",
            backup.newest_version,
            backup.verified_at,
            backup.sha256_hex()
        ));
    }
    for version in status
        .versions
        .iter()
        .filter(|version| !version.kept.is_empty())
    {
        text.push_str(&format!(
            "\nkept: version {} has {} of a former policy\n",
            version.version, version.kept
        ));
    }
    for Overdue { version, since } in &status.overdue {
        text.push_str(&format!(
            "\noverdue: version {version} was to stop decrypting by {since:.3}; move what it \
             encrypted, then disable it\n"
        ));
    }
    if let Some(mark) = status.rollout {
        text.push_str(&format!(
            "\nrollout {}: active, at step {}, attempt {}\n",
            mark.id, mark.step, mark.attempt
        ));
    }
    for activation in scheduled(status.activations, now) {
        let wave = match &activation.wave {
            WaveSelector::Every => "every wave".into(),
            WaveSelector::One(wave) => format!("wave {wave}"),
        };
        text.push_str(&format!(
            "\nscheduled: version {} becomes the primary of {wave} at {}\n",
            activation.version, activation.at
        ));
    }
    text
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
