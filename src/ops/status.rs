//! Collects `/status` from the parts of a sidecar.

use jiff::Timestamp;

use super::OpsParts;
use crate::{
    audit,
    backend::BackendError,
    crypto::lock_report,
    keks::KekHealth,
    keyring::{Slot, Version},
    refresh::{self, Keyring, Snapshot, VersionUsage},
    render::{self, Render},
    secrets::{Secret, Usage},
    wire::status::{
        ActiveManifest, AuditForwardStatus, AuditStatus, FailureCount, KekStatus, KeyMemory,
        KeyringStatus, KeyringUses, LastError, NoticeStatus, RenderStatus, RenderedSecret,
        SecretStatus, SecretVersionStatus, Status, VersionStatus, VersionUses,
    },
};

pub(super) fn status(parts: &OpsParts, started_at: Timestamp) -> Status {
    let now = parts.clock.now();
    let pending = (parts.pending)();
    let (secrets, renders) = (parts.secrets.all(), parts.renders.all());
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        instance: Some(parts.prover.instance()),
        now: Some(parts.clock.now()),
        started_at,
        ready: pending.is_empty(),
        pending,
        config: (parts.config)(),
        key_memory: key_memory(),
        tls: parts.tls.iter().map(|tls| tls.status()).collect(),
        hub: (parts.hub)(),
        audit: parts.audit.health().map(audit_status),
        keks: parts.keks.health().into_iter().map(kek_status).collect(),
        keyrings: parts
            .keyrings
            .iter()
            .map(|keyring| keyring_status(keyring, now))
            .collect(),
        secrets: secrets.iter().map(|secret| secret_status(secret)).collect(),
        renders: renders.iter().map(|render| render_status(render)).collect(),
    }
}

fn key_memory() -> KeyMemory {
    let report = lock_report();
    KeyMemory {
        locked_bytes: report.locked,
        unlocked_bytes: report.unlocked,
        limit_bytes: report.limit,
    }
}

fn audit_status(health: audit::LogHealth) -> AuditStatus {
    AuditStatus {
        sink: health.sink,
        keyed: health.has_key,
        log: health.log.map(|log| log.to_string()),
        last: health.last.map(|last| last.to_string()),
        waiting: health.waiting,
        lost: health.lost,
        last_error: health.failure.map(|(at, message)| LastError {
            at,
            code: "audit_unavailable".into(),
            message,
        }),
        forwards: health.forwards.into_iter().map(forward_status).collect(),
    }
}

fn forward_status(health: audit::ForwardHealth) -> AuditForwardStatus {
    AuditForwardStatus {
        to: health.to,
        waiting: health.waiting,
        lost: health.lost,
        last_error: health.failure.map(|(at, message)| LastError {
            at,
            code: "audit_forward_failed".into(),
            message,
        }),
    }
}

fn kek_status(health: KekHealth) -> KekStatus {
    KekStatus {
        uri: health.uri,
        latency_ms: health.latency.map(|latency| latency.as_secs_f64() * 1000.0),
        failures: health.consecutive_failures,
        circuit_open: health.is_circuit_open,
        last_success: health.last_success,
        last_error: health.last_failure.map(|(at, error)| LastError {
            at,
            code: error.kind.kek_code().into(),
            message: error.to_string(),
        }),
    }
}

fn keyring_status(keyring: &Keyring, now: Timestamp) -> KeyringStatus {
    let status = keyring.status();
    let snapshot = keyring.snapshot().clone();
    KeyringStatus {
        name: keyring.name().clone(),
        location: keyring.location().to_string(),
        wave: keyring.wave().clone(),
        observed_since: keyring.observed_since(),
        last_refresh: status.last_success,
        last_error: status.failure.map(|(at, failure)| LastError {
            at,
            code: failure.code.into(),
            message: failure.message,
        }),
        uses: Some(keyring_uses(keyring, snapshot.as_deref())),
        active: snapshot.map(|snapshot| active_manifest(keyring, &snapshot, now)),
    }
}

fn keyring_uses(keyring: &Keyring, snapshot: Option<&Snapshot>) -> KeyringUses {
    let total = snapshot.map_or_else(refresh::Uses::default, Snapshot::uses);
    let failed = keyring.failures().counts();
    KeyringUses {
        encrypted: total.encrypted,
        decrypted: total.decrypted,
        failed: failed
            .map(|(operation, code, count)| FailureCount {
                operation: operation.as_str().into(),
                code: code.as_str().into(),
                count,
            })
            .collect(),
    }
}

fn active_manifest(keyring: &Keyring, snapshot: &Snapshot, now: Timestamp) -> ActiveManifest {
    let table = &snapshot.table;
    let versions = table
        .manifest()
        .versions
        .iter()
        .filter_map(|version| version_status(snapshot, version, now));
    ActiveManifest {
        id: table.id().to_string(),
        generation: table.generation(),
        updated_at: table.manifest().updated_at,
        primary: table.primary(now),
        encrypting: table.encryption_key(now).map(|(version, _)| version),
        primary_since: table.primary_since(now),
        confirmed_at: keyring.confirmed_at(),
        encrypt_until: keyring.lease_end(table),
        exposed: table.is_exposed(),
        lost: snapshot.lost().to_vec(),
        versions: versions.collect(),
    }
}

fn version_uses(uses: refresh::Uses) -> VersionUses {
    VersionUses {
        encrypted: uses.encrypted,
        decrypted: uses.decrypted,
        refused: uses.refused,
        open: uses.open,
    }
}

fn version_status(snapshot: &Snapshot, version: &Version, now: Timestamp) -> Option<VersionStatus> {
    let (table, number) = (&snapshot.table, version.version);
    let (seen, usage) = (snapshot.sightings().of(number), snapshot.usage(number));
    Some(VersionStatus {
        version: number,
        state: version.state.to_string(),
        role: table.role(number, now)?.to_string(),
        compromised: version.compromised,
        created_at: version.created_at,
        last_used: usage.and_then(VersionUsage::last_used),
        uses: usage.map(|usage| version_uses(usage.uses())),
        last_refused: usage.and_then(VersionUsage::last_refused),
        seen_disabled: seen.disabled,
        seen_superseded: seen.superseded,
        turn: match table.slot(number)? {
            Slot::Waiting(turn) => Some(*turn),
            _ => None,
        },
        unopened: match table.slot(number)? {
            Slot::NotUnwrapped(reason) => Some(reason.to_string()),
            Slot::Waiting(turn) => Some(format!("its turn is at {turn} (`spread` of the policy)")),
            _ => None,
        },
    })
}

fn secret_status(secret: &Secret) -> SecretStatus {
    let status = secret.status();
    let current = status.current;
    let last_error = |(at, error): (Timestamp, BackendError)| LastError {
        at,
        code: error.kind.secret_code().into(),
        message: error.to_string(),
    };
    let version = |usage: &Usage| SecretVersionStatus {
        version: usage.version().into(),
        uses: usage.count(),
        last_used: usage.last(),
    };
    SecretStatus {
        name: secret.name().to_string(),
        source: secret.source().to_string(),
        required: secret.is_required(),
        version: current.as_ref().map(|current| current.version.clone()),
        created_at: current.as_ref().and_then(|current| current.created_at),
        confirmed_at: current.map(|current| current.confirmed_at),
        previous: status.previous,
        lease_seconds: status.lease_remaining.map(|remaining| remaining.as_secs()),
        last_error: status.failure.map(last_error),
        versions: secret.usages().iter().map(|usage| version(usage)).collect(),
    }
}

fn render_status(render: &Render) -> RenderStatus {
    let (settings, status) = (render.settings(), render.status());
    let last_error = |(at, failure): (Timestamp, render::RenderFailure)| LastError {
        at,
        code: format!("render_{}", failure.reason),
        message: failure.message,
    };
    let secret = |(secret, version): &(String, String)| RenderedSecret {
        secret: secret.clone(),
        version: version.clone(),
    };
    let content = status.content.as_ref();
    RenderStatus {
        file: settings.file.display().to_string(),
        required: settings.required,
        secrets: content
            .map(|content| content.secrets.iter().map(secret).collect())
            .unwrap_or_default(),
        written_at: content.and_then(|content| content.written_at),
        confirmed_at: content.map(|content| content.confirmed_at),
        last_error: status.failure.map(last_error),
        last_notice: status.last_notice.map(notice_status),
    }
}

fn notice_status(notice: render::NoticeResult) -> NoticeStatus {
    let result = notice
        .failure
        .as_ref()
        .map_or("ok", |failure| failure.reason);
    NoticeStatus {
        at: notice.at,
        result: result.into(),
        message: notice.failure.map(|failure| failure.message),
    }
}
