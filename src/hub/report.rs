//! A report, from the bytes of a request: bounded, well-formed and signed by the key that it names.

use hyper::HeaderMap;
use jiff::Timestamp;

use crate::{
    crypto::{fingerprint, verify_signature},
    encoding::decode_base64,
    http::{memory::MemoryShare, problem::Problem},
    wire::{
        Code,
        hub::{PROTOCOL, REPORT_DOMAIN, Report, SIGNATURE_HEADER},
    },
};

/// The longest name of a sidecar or workload, as of a host in DNS.
const MAX_NAME: usize = 253;
/// The most keyrings that an instance reports.
pub(super) const MAX_KEYRINGS: usize = 256;
/// The most versions of a keyring: as many as a manifest may have.
pub(super) const MAX_VERSIONS: usize = 10_000;
/// How far ahead a sequence may start: no process makes more reports.
const MAX_SEQUENCE: u64 = i64::MAX as u64;

/// A report that is what its key signed.
pub(super) struct Received {
    pub(super) report: Report,
    /// The SHA-256 of its body: a resend has the same.
    pub(super) digest: [u8; 32],
    /// When it was received, on the hub's clock.
    pub(super) at: Timestamp,
    /// Its share of the memory for bodies, until it is stored.
    pub(super) _share: MemoryShare,
}

impl Received {
    /// Whether its sender waits for it to be stored: it ends, or others wait for its answer.
    pub(super) fn is_urgent(&self) -> bool {
        self.report.is_final || self.report.answers.is_some()
    }
}

/// Parses a report and verifies its signature. Whose key it is remains to be seen.
///
/// # Errors
/// [`Code::InvalidRequest`] and [`Code::InvalidSignature`]
pub(super) fn verify(headers: &HeaderMap, body: &[u8]) -> Result<(Report, [u8; 32]), Problem> {
    let invalid = |detail: String| Problem::new(Code::InvalidRequest, detail);
    let signature = headers
        .get(SIGNATURE_HEADER)
        .and_then(|value| signature(value.as_bytes()))
        .ok_or_else(|| {
            invalid(format!(
                "send the header {SIGNATURE_HEADER} with an Ed25519 signature in base64"
            ))
        })?;
    let report: Report = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is not a report: {error}")))?;
    if report.protocol != PROTOCOL {
        return Err(invalid(format!(
            "this hub reads reports of protocol {PROTOCOL}; update the hub first, then the sidecars"
        )));
    }
    for (member, name) in [("name", &report.name), ("workload", &report.workload)] {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(invalid(format!(
                "{member} must have 1 to {MAX_NAME} bytes, and no control characters"
            )));
        }
    }
    if !(1..=MAX_SEQUENCE).contains(&report.sequence) {
        return Err(invalid(format!("sequence must be 1 to {MAX_SEQUENCE}")));
    }
    let signed = [REPORT_DOMAIN, body].concat();
    if !verify_signature(&report.key, &signed, &signature) {
        return Err(Problem::new(
            Code::InvalidSignature,
            format!("{SIGNATURE_HEADER} is not a signature of this body by the report's key"),
        ));
    }
    Ok((report, fingerprint(body)))
}

fn signature(text: &[u8]) -> Option<[u8; 64]> {
    let mut bytes = Vec::new();
    decode_base64(text, &mut bytes).ok()?;
    bytes.try_into().ok()
}
