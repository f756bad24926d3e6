//! What `/status` tells: the evidence that operators and `sidekey keyring disable` act on. Nothing in it is secret.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    audit::Standing,
    backend::SecretError,
    crypto::{KeyringId, lock_report},
    keks::KekHealth,
    keyring::{Slot, State},
    model::{KekUri, KeyringName, Wave},
    refresh::{Keyring, VersionUsage},
    render::{self, Render},
    secrets::{Secret, Usage},
};

/// A sidecar's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The build's version.
    pub version: String,
    /// When the process started.
    pub started_at: Timestamp,
    /// Whether it serves.
    pub ready: bool,
    /// What it waits for, if it isn't ready.
    pub pending: Vec<String>,
    /// How much key memory is locked against swapping.
    pub key_memory: KeyMemory,
    /// The audit log, if there is one.
    #[serde(default)]
    pub audit: Option<AuditStatus>,
    /// The certificates of its listeners that have TLS.
    #[serde(default)]
    pub tls: Vec<TlsStatus>,
    /// The KEKs that it has asked.
    pub keks: Vec<KekStatus>,
    /// Its keyrings.
    pub keyrings: Vec<KeyringStatus>,
    /// Its secrets, without their values.
    #[serde(default)]
    pub secrets: Vec<SecretStatus>,
    /// The files that are made of secrets.
    #[serde(default)]
    pub renders: Vec<RenderStatus>,
}

/// How the audit log is doing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The file, or standard output.
    pub sink: String,
    /// Whether a key vouches for the records.
    pub keyed: bool,
    /// The last record that this process wrote, as `sidekey audit verify --anchor` takes it.
    pub last: Option<String>,
    /// Events that wait to be written.
    pub waiting: usize,
    /// Events that were lost since the start; the log says so, too.
    pub lost: u64,
    /// Why it can't be written.
    pub last_error: Option<RefreshError>,
}

impl From<Standing> for AuditStatus {
    fn from(standing: Standing) -> Self {
        let error = |(at, message)| RefreshError {
            at,
            code: "audit_unavailable".into(),
            message,
        };
        Self {
            sink: standing.sink,
            keyed: standing.has_key,
            last: standing.last.map(|last| last.to_string()),
            waiting: standing.waiting,
            lost: standing.lost,
            last_error: standing.failure.map(error),
        }
    }
}

/// Bytes of key memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyMemory {
    /// Locked.
    pub locked_bytes: usize,
    /// Refused by the kernel.
    pub unlocked_bytes: usize,
    /// The process's limit; none is unlimited.
    pub limit_bytes: Option<u64>,
}

/// A listener's TLS.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TlsStatus {
    /// `tcp` or `ops`, as in metrics.
    pub listener: String,
    /// The certificate's file.
    pub certificate: String,
    /// When the certificate in force expires.
    pub expires_at: Timestamp,
    /// When it came into force here.
    pub loaded_at: Timestamp,
    /// Why what is in the files now isn't in force.
    pub last_error: Option<RefreshError>,
}

/// How a KEK has been answering a sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KekStatus {
    /// Its URI.
    pub uri: KekUri,
    /// How long it takes, in milliseconds, smoothed over its last answers.
    pub latency_ms: Option<f64>,
    /// Failures in a row.
    pub failures: u32,
    /// Whether it is asked last for now, because of them.
    pub circuit_open: bool,
    /// Its last success.
    pub last_success: Option<Timestamp>,
    /// Its last failure.
    pub last_error: Option<RefreshError>,
}

impl From<KekHealth> for KekStatus {
    fn from(health: KekHealth) -> Self {
        Self {
            uri: health.uri,
            latency_ms: health.latency.map(|latency| latency.as_secs_f64() * 1000.0),
            failures: health.consecutive_failures,
            circuit_open: health.is_circuit_open,
            last_success: health.last_success,
            last_error: health.last_failure.map(|(at, error)| RefreshError {
                at,
                code: error.fault.as_str().into(),
                message: error.to_string(),
            }),
        }
    }
}

/// A keyring's state on one sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyringStatus {
    /// Its name.
    pub name: KeyringName,
    /// Where its manifest is.
    pub location: String,
    /// The wave that it is served for.
    pub wave: Wave,
    /// Since when uses are counted.
    pub observed_since: Timestamp,
    /// When the manifest was last read and found good.
    pub last_refresh: Option<Timestamp>,
    /// What is wrong now.
    pub last_error: Option<RefreshError>,
    /// What is in force; none until the first refresh succeeded.
    pub in_force: Option<InForce>,
}

/// A secret's state on one sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretStatus {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: String,
    /// Whether readiness waits for it.
    pub required: bool,
    /// The version in force; none while none is held.
    pub version: Option<String>,
    /// When that was made, if its provider says so.
    pub created_at: Option<Timestamp>,
    /// When its provider last gave or confirmed it.
    pub confirmed_at: Option<Timestamp>,
    /// The version before, while it is still handed out.
    pub previous: Option<String>,
    /// For how many seconds its lease still runs.
    pub lease_seconds: Option<u64>,
    /// What is wrong now.
    pub last_error: Option<RefreshError>,
    /// The versions that were seen here, the newest last.
    pub versions: Vec<SecretVersionStatus>,
}

/// What is known of one version's use: the evidence that it is out of use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretVersionStatus {
    /// The version.
    pub version: String,
    /// How often it was handed out here.
    pub uses: u64,
    /// When last.
    pub last_used: Option<Timestamp>,
}

impl SecretStatus {
    pub(crate) fn of(secret: &Secret) -> Self {
        let standing = secret.standing();
        let (settings, current) = (secret.settings(), standing.current);
        let error = |(at, error): (Timestamp, SecretError)| RefreshError {
            at,
            code: error.fault.as_str().into(),
            message: error.to_string(),
        };
        let version = |usage: &Arc<Usage>| SecretVersionStatus {
            version: usage.version().into(),
            uses: usage.count(),
            last_used: usage.last(),
        };
        Self {
            name: settings.name.to_string(),
            source: settings.source.to_string(),
            required: settings.required,
            version: current.as_ref().map(|current| current.version.clone()),
            created_at: current.as_ref().and_then(|current| current.created_at),
            confirmed_at: current.map(|current| current.confirmed_at),
            previous: standing.previous,
            lease_seconds: standing
                .lease_remaining
                .map(|remaining| remaining.as_secs()),
            last_error: standing.failure.map(error),
            versions: secret.usages().iter().map(version).collect(),
        }
    }
}

/// A file that is made of secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenderStatus {
    /// Where it is.
    pub file: String,
    /// Whether readiness waits for it.
    pub required: bool,
    /// The secrets in it, once it has been found or made as it has to be.
    pub secrets: Vec<RenderedSecret>,
    /// When this process last wrote it; none if it was as it has to be.
    pub written_at: Option<Timestamp>,
    /// When it was last found or made as it has to be.
    pub confirmed_at: Option<Timestamp>,
    /// Why what is in it isn't what it should be now.
    pub last_error: Option<RefreshError>,
    /// What came of the last command or signal.
    pub last_notice: Option<NoticeStatus>,
}

/// A secret in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedSecret {
    /// The secret.
    pub secret: String,
    /// The version of the value in the file.
    pub version: String,
}

/// What came of a command or a signal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NoticeStatus {
    /// When.
    pub at: Timestamp,
    /// `ok`, or why not.
    pub result: String,
    /// More on that.
    pub message: Option<String>,
}

impl RenderStatus {
    pub(crate) fn of(render: &Render) -> Self {
        let (settings, standing) = (render.settings(), render.standing());
        let error = |(at, failure): (Timestamp, render::Failure)| RefreshError {
            at,
            code: format!("render_{}", failure.reason),
            message: failure.message,
        };
        let notice = |told: render::Told| NoticeStatus {
            at: told.at,
            result: told
                .failure
                .as_ref()
                .map_or("ok", |failure| failure.reason)
                .into(),
            message: told.failure.map(|failure| failure.message),
        };
        let secret = |(secret, version): &(String, String)| RenderedSecret {
            secret: secret.clone(),
            version: version.clone(),
        };
        let written = standing.written.as_ref();
        Self {
            file: settings.file.display().to_string(),
            required: settings.required,
            secrets: written
                .map(|written| written.secrets.iter().map(secret).collect())
                .unwrap_or_default(),
            written_at: written.and_then(|written| written.written_at),
            confirmed_at: written.map(|written| written.confirmed_at),
            last_error: standing.failure.map(error),
            last_notice: standing.notice.map(notice),
        }
    }
}

/// What went wrong last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefreshError {
    /// When.
    pub at: Timestamp,
    /// A stable code (docs/errors.md).
    pub code: String,
    /// What failed, on what, what to do.
    pub message: String,
}

/// A manifest in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InForce {
    /// The keyring's id.
    pub id: KeyringId,
    /// The generation.
    pub generation: u64,
    /// When the generation was written.
    pub updated_at: Timestamp,
    /// The version that should encrypt.
    pub primary: Option<u32>,
    /// The version that does: another one while no KEK opens the primary.
    pub encrypting: Option<u32>,
    /// Since when.
    pub primary_since: Option<Timestamp>,
    /// When the manifest was last confirmed.
    pub confirmed_at: Option<Timestamp>,
    /// Until when it encrypts without being confirmed again.
    pub encrypt_until: Timestamp,
    /// Its versions.
    pub versions: Vec<VersionStatus>,
}

/// A version's state on one sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Its number.
    pub version: u32,
    /// Its stored state.
    pub state: State,
    /// Its role for this wave.
    pub role: String,
    /// Whether somebody else may know it.
    pub compromised: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last encrypted or decrypted here.
    pub last_used: Option<Timestamp>,
    /// Why an enabled version isn't open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unopened: Option<String>,
}

impl KeyMemory {
    pub(crate) fn now() -> Self {
        let report = lock_report();
        Self {
            locked_bytes: report.locked,
            unlocked_bytes: report.unlocked,
            limit_bytes: report.limit,
        }
    }
}

impl KeyringStatus {
    pub(crate) fn of(keyring: &Keyring, now: Timestamp) -> Self {
        let standing = keyring.status();
        let failure = standing.failure;
        Self {
            name: keyring.name().clone(),
            location: keyring.location().to_string(),
            wave: keyring.wave().clone(),
            observed_since: keyring.observed_since(),
            last_refresh: standing.last_success,
            last_error: failure.map(|(at, failure)| RefreshError {
                at,
                code: failure.code.into(),
                message: failure.message,
            }),
            in_force: InForce::of(keyring, now),
        }
    }
}

impl InForce {
    fn of(keyring: &Keyring, now: Timestamp) -> Option<Self> {
        let snapshot = keyring.snapshot().clone()?;
        let table = &snapshot.table;
        let versions = table.manifest().versions.iter().filter_map(|version| {
            let number = version.version;
            Some(VersionStatus {
                version: number,
                state: version.state,
                role: table.role(number, now)?.to_string(),
                compromised: version.compromised,
                created_at: version.created_at,
                last_used: snapshot.usage(number).and_then(VersionUsage::last_used),
                unopened: match table.slot(number)? {
                    Slot::Unopened(reason) => Some(reason.clone()),
                    _ => None,
                },
            })
        });
        Some(Self {
            id: table.id(),
            generation: table.generation(),
            updated_at: table.manifest().updated_at,
            primary: table.primary(now),
            encrypting: table.encrypting(now).map(|(version, _)| version),
            primary_since: table.primary_since(now),
            confirmed_at: keyring.confirmed_at(),
            encrypt_until: keyring.lease_end(table),
            versions: versions.collect(),
        })
    }
}
