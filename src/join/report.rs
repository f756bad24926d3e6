//! Reports: what the process used, signed by its key, with a MAC for each keyring.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::{failure::Failure, parts::Parts};
use crate::{
    config,
    crypto::{RandomnessUnavailable, SigningKey, VersionKeys},
    keyring::{KeyTable, Slot},
    refresh::{Keyring, Snapshot},
    wire::hub::{KeyringUsage, PROTOCOL, REPORT_DOMAIN, Report, SIGNATURE_HEADER, VersionUsage},
};

/// Makes the reports of a process.
pub(super) struct Reporter {
    key: SigningKey,
    instance: [u8; 16],
    name: String,
    workload: String,
    /// The number of the last report.
    sequence: u64,
}

/// A report as it is sent, which may be sent again.
#[derive(Clone)]
pub(super) struct SignedReport {
    pub(super) body: Bytes,
    pub(super) signature: (HeaderName, HeaderValue),
}

impl Reporter {
    pub(super) fn new(
        settings: &config::Hub,
        parts: &Parts,
    ) -> Result<Self, RandomnessUnavailable> {
        Ok(Self {
            key: SigningKey::generate()?,
            instance: parts.instance,
            name: settings.name.clone(),
            workload: settings.workload.clone(),
            sequence: 0,
        })
    }

    /// Returns the next report. All uses that are complete by now are in it.
    pub(super) fn next(
        &mut self,
        parts: &Parts,
        answers: Option<u64>,
        is_final: bool,
    ) -> Result<SignedReport, Failure> {
        // Each number is of one report, whether that arrives or not.
        self.sequence += 1;
        let now = parts.clock.now();
        let usage = parts
            .keyrings
            .iter()
            .filter_map(|keyring| self.usage(keyring, is_final, now))
            .collect();
        let mut status = (parts.status)();
        status.secrets.clear();
        status.renders.clear();
        let report = Report {
            protocol: PROTOCOL,
            instance: self.instance,
            key: self.key.public_key(),
            sequence: self.sequence,
            is_final,
            answers,
            name: self.name.clone(),
            workload: self.workload.clone(),
            usage,
            status,
        };
        let body = serde_json::to_vec(&report)
            .map_err(|error| Failure::protocol(format!("can't write a report: {error}")))?;
        let signature = self.key.sign(&[REPORT_DOMAIN, &body].concat());
        let signature = HeaderValue::from_str(&STANDARD.encode(signature))
            .map_err(|error| Failure::protocol(format!("can't sign a report: {error}")))?;
        Ok(SignedReport {
            body: body.into(),
            signature: (HeaderName::from_static(SIGNATURE_HEADER), signature),
        })
    }

    fn usage(&self, keyring: &Keyring, is_final: bool, now: Timestamp) -> Option<KeyringUsage> {
        let snapshot = keyring.snapshot().clone()?;
        let table = &snapshot.table;
        let mut usage = KeyringUsage {
            name: keyring.name().clone(),
            id: table.id().0,
            generation: table.generation(),
            versions: versions(&snapshot),
            mac_version: None,
            mac: None,
        };
        if let Some((version, keys)) = vouching(table, now) {
            usage.mac_version = Some(version);
            let key = keys.report_key();
            usage.mac = Some(key.mac(self.instance, self.sequence, is_final, &usage));
        }
        Some(usage)
    }
}

fn versions(snapshot: &Snapshot) -> Vec<VersionUsage> {
    let versions = snapshot.usages().map(|(version, usage)| {
        let uses = usage.uses();
        VersionUsage {
            version,
            encrypted: uses.encrypted,
            decrypted: uses.decrypted,
            refused: uses.refused,
            open: uses.open,
        }
    });
    versions.collect()
}

/// The version whose key makes the MAC: the one that encrypts, or else the highest whose key is
/// held.
fn vouching(table: &KeyTable, now: Timestamp) -> Option<(u32, &VersionKeys)> {
    table.encryption_key(now).or_else(|| {
        let versions = table.manifest().versions.iter().rev();
        versions
            .filter_map(|version| match table.slot(version.version)? {
                Slot::Unwrapped(keys) => Some((version.version, keys)),
                _ => None,
            })
            .next()
    })
}
