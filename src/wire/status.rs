//! The document that `GET /status` on the ops listener returns: the evidence that operators and
//! `sidekey keyring disable` act on. It contains no secrets.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{KekUri, KeyringName, Wave};

/// The state of a sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of the build.
    pub version: String,
    /// The process: 32 random hexadecimal digits, drawn at its start.
    #[serde(default)]
    pub instance: Option<String>,
    /// The time on the sidecar's clock. Commands compare it with theirs.
    #[serde(default)]
    pub now: Option<Timestamp>,
    /// When the process started.
    pub started_at: Timestamp,
    /// Whether the sidecar is ready to serve.
    pub ready: bool,
    /// What readiness waits for; empty when ready.
    pub pending: Vec<String>,
    /// The config in use.
    #[serde(default)]
    pub config: Option<ConfigStatus>,
    /// How much key memory is locked against swapping.
    pub key_memory: KeyMemory,
    /// The audit log, if one is configured.
    #[serde(default)]
    pub audit: Option<AuditStatus>,
    /// The certificates of the listeners with TLS.
    #[serde(default)]
    pub tls: Vec<TlsStatus>,
    /// The hub that the sidecar has joined, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubStatus>,
    /// The KEKs used since the start.
    pub keks: Vec<KekStatus>,
    /// The keyrings served.
    pub keyrings: Vec<KeyringStatus>,
    /// The secrets held, without their values.
    #[serde(default)]
    pub secrets: Vec<SecretStatus>,
    /// The files rendered from secrets.
    #[serde(default)]
    pub renders: Vec<RenderStatus>,
}

/// The config that a sidecar runs with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The path of the file.
    pub file: String,
    /// The SHA-256 of the file when it was loaded: 64 hexadecimal digits.
    pub sha256: String,
    /// When the file was last read and found valid.
    pub loaded_at: Timestamp,
    /// The settings in that file that are not in use yet, because they need a restart.
    pub needs_restart: Vec<String>,
    /// Why the current file changes nothing: every problem, one per line.
    pub last_error: Option<LastError>,
}

/// The last error of something that is retried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When it occurred.
    pub at: Timestamp,
    /// A stable code (docs/errors.md).
    pub code: String,
    /// What failed, on what, and what to do.
    pub message: String,
}

/// The state of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The file, or standard output.
    pub sink: String,
    /// Whether records are authenticated with a key.
    pub keyed: bool,
    /// The log's id, as `sidekey audit verify --log` takes it, once a record was written.
    pub log: Option<String>,
    /// The last record that this process wrote, as `sidekey audit verify --anchor` takes it.
    pub last: Option<String>,
    /// Events that are not written yet.
    pub waiting: usize,
    /// Events lost since the start. The log records losses as well.
    pub lost: u64,
    /// Why the log can't be written.
    pub last_error: Option<LastError>,
    /// The collectors that get copies of this process's records.
    #[serde(default)]
    pub forwards: Vec<AuditForwardStatus>,
}

/// A collector that gets copies of audit records.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditForwardStatus {
    /// Where it is.
    pub to: String,
    /// Records that it has not taken yet.
    pub waiting: usize,
    /// Records that it lacks since the start: it refused them, or they found no room. The log has
    /// them.
    pub lost: u64,
    /// Why it takes none.
    pub last_error: Option<LastError>,
}

/// Key memory in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyMemory {
    /// Memory that is locked against swapping.
    pub locked_bytes: usize,
    /// Memory that the kernel refused to lock.
    pub unlocked_bytes: usize,
    /// The limit of the process (RLIMIT_MEMLOCK); None if unlimited.
    pub limit_bytes: Option<u64>,
}

/// The TLS state of a listener.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TlsStatus {
    /// `tcp` or `ops`, as in metrics.
    pub listener: String,
    /// The path of the certificate.
    pub certificate: String,
    /// When the active certificate expires.
    pub expires_at: Timestamp,
    /// When the active certificate was loaded.
    pub loaded_at: Timestamp,
    /// Why the current files can't be used.
    pub last_error: Option<LastError>,
}

/// The state of a sidecar's connection to its hub. Nothing that a sidecar serves depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubStatus {
    /// The URL of the hub.
    pub url: String,
    /// Since when the sidecar is connected; None while it isn't.
    pub connected_since: Option<Timestamp>,
    /// When the hub last accepted a report.
    pub last_report: Option<Timestamp>,
    /// Why the last connection or report failed; None once a report is accepted.
    pub last_error: Option<LastError>,
}

/// The health of a KEK.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KekStatus {
    /// The URI of the KEK.
    pub uri: KekUri,
    /// Smoothed latency of its last responses, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Consecutive failures.
    pub failures: u32,
    /// Whether the KEK is tried last because of its failures.
    pub circuit_open: bool,
    /// When it last succeeded.
    pub last_success: Option<Timestamp>,
    /// Its last failure.
    pub last_error: Option<LastError>,
}

/// The state of a keyring on one sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyringStatus {
    /// The keyring.
    pub name: KeyringName,
    /// The location of its manifest.
    pub location: String,
    /// The wave that it is served for.
    pub wave: Wave,
    /// The start of the time in which uses are counted.
    pub observed_since: Timestamp,
    /// When the manifest was last read and accepted.
    pub last_refresh: Option<Timestamp>,
    /// Why the last refresh failed.
    pub last_error: Option<LastError>,
    /// What this process did with the keyring; None from builds that don't report it.
    #[serde(default)]
    pub uses: Option<KeyringUses>,
    /// The active manifest; None until the first refresh succeeds.
    pub active: Option<ActiveManifest>,
}

/// What a process did with a keyring since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringUses {
    /// Messages encrypted; a rewrap counts as a decryption, too.
    pub encrypted: u64,
    /// Messages decrypted.
    pub decrypted: u64,
    /// Requests and items of batches that failed. What never failed is left out.
    pub failed: Vec<FailureCount>,
}

/// How often an operation failed for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureCount {
    /// The operation, as in metrics.
    pub operation: String,
    /// The code of the problem (docs/errors.md).
    pub code: String,
    /// How often.
    pub count: u64,
}

/// How often a process used a version since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionUses {
    /// Messages encrypted.
    pub encrypted: u64,
    /// Messages decrypted.
    pub decrypted: u64,
    /// Requests and items of batches that were refused because the version is disabled or
    /// destroyed.
    #[serde(default)]
    pub refused: u64,
    /// Requests that hold the version at present and may use it until they end, such as streams.
    #[serde(default)]
    pub open: u64,
}

/// The active manifest of a keyring.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ActiveManifest {
    /// The id of the keyring: 32 hexadecimal digits.
    pub id: String,
    /// The generation of the manifest.
    pub generation: u64,
    /// When the generation was written.
    pub updated_at: Timestamp,
    /// The version that should encrypt.
    pub primary: Option<u32>,
    /// The version that encrypts: another one while no KEK unwraps the primary.
    pub encrypting: Option<u32>,
    /// When the primary became primary.
    pub primary_since: Option<Timestamp>,
    /// When the manifest was last confirmed.
    pub confirmed_at: Option<Timestamp>,
    /// When encrypting stops unless the manifest is confirmed again.
    pub encrypt_until: Timestamp,
    /// Whether only compromised versions vouch for the manifest.
    #[serde(default)]
    pub exposed: bool,
    /// Versions that no longer encrypt, because a manifest that isn't accepted yet declares them
    /// lost.
    #[serde(default)]
    pub lost: Vec<u32>,
    /// The versions of the keyring.
    pub versions: Vec<VersionStatus>,
}

/// The state of a key version on one sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VersionStatus {
    /// The number of the version.
    pub version: u32,
    /// Its stored state: `enabled`, `disabled` or `destroyed`.
    pub state: String,
    /// Its role for this wave.
    pub role: String,
    /// Whether it is marked as compromised.
    pub compromised: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last encrypted or decrypted on this sidecar.
    pub last_used: Option<Timestamp>,
    /// How often this process used it; None from builds that don't report it.
    #[serde(default)]
    pub uses: Option<VersionUses>,
    /// When this process last refused a request because the version is disabled or destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refused: Option<Timestamp>,
    /// When this process first saw it disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_disabled: Option<Timestamp>,
    /// When this process first saw it superseded in every wave, at once or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_superseded: Option<Timestamp>,
    /// When it is unwrapped, if it waits for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Timestamp>,
    /// Why an enabled version is not unwrapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unopened: Option<String>,
}

/// The state of a secret on one sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretStatus {
    /// The name of the secret.
    pub name: String,
    /// The URI of its source.
    pub source: String,
    /// Whether readiness waits for it.
    pub required: bool,
    /// The current version; None while none is held.
    pub version: Option<String>,
    /// When the current version was created, if the provider reports it.
    pub created_at: Option<Timestamp>,
    /// When the provider last returned or confirmed the current version.
    pub confirmed_at: Option<Timestamp>,
    /// The previous version, while it is still served.
    pub previous: Option<String>,
    /// The remaining seconds of its lease.
    pub lease_seconds: Option<u64>,
    /// Why the last read failed.
    pub last_error: Option<LastError>,
    /// The versions seen by this process, newest last.
    pub versions: Vec<SecretVersionStatus>,
}

/// The use of one version of a secret: the evidence that it is out of use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretVersionStatus {
    /// The version.
    pub version: String,
    /// How many times this sidecar served it.
    pub uses: u64,
    /// When this sidecar last served it.
    pub last_used: Option<Timestamp>,
}

/// The state of a rendered file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenderStatus {
    /// The path of the file.
    pub file: String,
    /// Whether readiness waits for it.
    pub required: bool,
    /// The secrets in the file, once its content is known to be current.
    pub secrets: Vec<RenderedSecret>,
    /// When this process last wrote the file; None if the content was current already.
    pub written_at: Option<Timestamp>,
    /// When the content was last written or found to be current.
    pub confirmed_at: Option<Timestamp>,
    /// Why the file is out of date.
    pub last_error: Option<LastError>,
    /// The result of the last command or signal.
    pub last_notice: Option<NoticeStatus>,
}

/// A secret in a rendered file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedSecret {
    /// The name of the secret.
    pub secret: String,
    /// The version in the file.
    pub version: String,
}

/// The result of a command or signal after a render.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NoticeStatus {
    /// When it completed.
    pub at: Timestamp,
    /// `ok`, or a code for the failure.
    pub result: String,
    /// Details of the failure.
    pub message: Option<String>,
}
