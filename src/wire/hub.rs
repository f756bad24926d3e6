//! What a sidecar and a hub exchange, and what operators ask a hub. None of it contains secrets.
//!
//! A sidecar opens `GET /v1/stream?instance=…` and keeps it: the hub sends [`StreamEvent`]s as
//! server-sent events, named as in [`StreamEvent::name`], with the JSON of their content as data.
//! It posts a signed [`Report`] to `/v1/reports` and a [`ProofAnswer`] to `/v1/proof-answers`.
//! Unknown members are ignored on both sides, so that a hub works with older and newer sidecars.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    in_base64, in_hex,
    proof::{Proof, ProofRequest},
    status::Status,
};
use crate::model::{KeyringName, Span};

/// The version of these messages.
pub const PROTOCOL: u32 = 1;

/// Header of a report: the Ed25519 signature by [`Report::key`], in base64, over
/// [`REPORT_DOMAIN`] and the body as it is sent.
pub const SIGNATURE_HEADER: &str = "sidekey-signature";

/// Comes before the body in what the signature of a report covers.
pub const REPORT_DOMAIN: &[u8] = b"sidekey hub report v1";

/// What a sidecar says about itself: about every [`Welcome::report_seconds`], at once after a
/// change of generation or a refused use of a disabled version, and when it ends. Everything in it
/// counts from the start of the process, so a report replaces the ones before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The version of the message: [`PROTOCOL`].
    pub protocol: u32,
    /// The process, as in `/status`; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub instance: [u8; 16],
    /// The Ed25519 key of the process, drawn at its start; in base64. The hub remembers the key of
    /// an instance's first report and takes no report by another.
    #[serde(with = "in_base64")]
    pub key: [u8; 32],
    /// Counts the reports of the instance, from 1. The highest one counts.
    pub sequence: u64,
    /// Whether the process ends, and this is its last report: nothing is used after it.
    #[serde(default, rename = "final")]
    pub is_final: bool,
    /// The [`ReportNow::barrier`] that it answers: all uses that were complete when that event
    /// arrived are in the report.
    #[serde(default)]
    pub answers: Option<u64>,
    /// What the fleet calls the sidecar.
    pub name: String,
    /// The workload that it serves.
    pub workload: String,
    /// The uses of its keyrings: those with an active manifest.
    pub usage: Vec<KeyringUsage>,
    /// Its `/status`, without secrets and rendered files.
    pub status: Status,
}

/// How often a process used the versions of a keyring since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringUsage {
    /// The keyring's name.
    pub name: KeyringName,
    /// The keyring's id; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub id: [u8; 16],
    /// The generation of the active manifest.
    pub generation: u64,
    /// Every version that the process has seen, in ascending order.
    pub versions: Vec<VersionUsage>,
    /// The version whose report key made the MAC; None if the process holds no key.
    #[serde(default)]
    pub mac_version: Option<u32>,
    /// HMAC-SHA-256 by that key over the report's instance, sequence and finality, and over id,
    /// generation and versions (docs/format.md); in base64. The signer verifies it: a hub has no
    /// keys.
    #[serde(default, with = "optional_mac")]
    pub mac: Option<[u8; 32]>,
}

/// How often a process used a version since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionUsage {
    /// The number of the version.
    pub version: u32,
    /// Messages encrypted.
    pub encrypted: u64,
    /// Messages decrypted.
    pub decrypted: u64,
    /// Requests that were refused because the version is disabled or destroyed.
    #[serde(default)]
    pub refused: u64,
    /// Requests that hold the version now and may use it until they end, such as streams.
    #[serde(default)]
    pub open: u64,
}

/// What a hub sends on a sidecar's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// The first event of a stream.
    Welcome(Welcome),
    /// There is a new generation.
    Hint(Hint),
    /// Show that a key is held.
    Prove(Prove),
    /// Report at once.
    ReportNow(ReportNow),
}

impl StreamEvent {
    /// Returns the name of the event. An event with an unknown name is ignored.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Welcome(_) => "welcome",
            Self::Hint(_) => "hint",
            Self::Prove(_) => "prove",
            Self::ReportNow(_) => "report-now",
        }
    }

    /// Returns the event's data.
    ///
    /// # Errors
    /// None of the events has content that JSON can't express.
    pub fn to_json(&self) -> serde_json::Result<String> {
        match self {
            Self::Welcome(welcome) => serde_json::to_string(welcome),
            Self::Hint(hint) => serde_json::to_string(hint),
            Self::Prove(prove) => serde_json::to_string(prove),
            Self::ReportNow(report_now) => serde_json::to_string(report_now),
        }
    }

    /// Parses an event. Returns `None` for a name that this build doesn't know.
    ///
    /// # Errors
    /// The data is not what the name says.
    pub fn parse(name: &str, data: &str) -> serde_json::Result<Option<Self>> {
        Ok(Some(match name {
            "welcome" => Self::Welcome(serde_json::from_str(data)?),
            "hint" => Self::Hint(serde_json::from_str(data)?),
            "prove" => Self::Prove(serde_json::from_str(data)?),
            "report-now" => Self::ReportNow(serde_json::from_str(data)?),
            _ => return Ok(None),
        }))
    }
}

/// The first event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of the hub's messages.
    pub protocol: u32,
    /// The version of the hub's build.
    pub hub: String,
    /// The time between two reports, in seconds. Sidecars spread them by up to a fifth.
    pub report_seconds: u32,
}

/// A keyring has a new generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The keyring's name.
    pub keyring: KeyringName,
    /// Its generation.
    pub generation: u64,
    /// The manifest, as text. It authenticates itself, and is examined like any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
}

/// Asks a sidecar for a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prove {
    /// What the answer names.
    pub id: u64,
    /// What to prove.
    pub request: ProofRequest,
}

/// Asks a sidecar for a report at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportNow {
    /// What the report names in [`Report::answers`]. Rises over all streams of a hub's database.
    pub barrier: u64,
}

/// A sidecar's answer to [`Prove`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofAnswer {
    /// The process that answers; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub instance: [u8; 16],
    /// The [`Prove::id`] that it answers.
    pub id: u64,
    /// The proof, or why there is none.
    pub result: ProofResult,
}

/// A proof, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofResult {
    /// The proof. The signer verifies it.
    Proof(Proof),
    /// Why there is none, for the operator.
    Refused(String),
}

/// What `GET /v1/sidecars` returns: every sidecar that has joined and not ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinedSidecars {
    /// The sidecars, by name.
    pub sidecars: Vec<JoinedSidecar>,
}

/// A sidecar, as a hub knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinedSidecar {
    /// What the fleet calls it.
    pub name: String,
    /// The workload that it serves.
    pub workload: String,
    /// The process; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub instance: [u8; 16],
    /// Whether it has a stream to one of the hub's replicas.
    pub connected: bool,
    /// When its last report was received, on the hub's clock.
    pub received_at: Timestamp,
    /// Its last report's status.
    pub status: Status,
}

/// The body of `POST /v1/hints`: tells every connected sidecar about a generation.
pub type HintRequest = Hint;

/// What `POST /v1/hints` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hinted {
    /// The names of the sidecars that it was sent to.
    pub sent: Vec<String>,
}

/// The body of `POST /v1/proofs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofsRequest {
    /// The names of the sidecars to ask, or instances: 32 hexadecimal digits. One of several
    /// connected sidecars of one name is asked by its instance.
    pub sidecars: Vec<String>,
    /// What to prove.
    pub request: ProofRequest,
}

/// What `POST /v1/proofs` returns: an answer for each name, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs {
    /// The answers.
    pub answers: Vec<NamedProof>,
}

/// A sidecar's answer to a request for a proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedProof {
    /// The sidecar.
    pub name: String,
    /// The proof, or why there is none: it isn't connected, didn't answer, or refused.
    pub result: ProofResult,
}

/// The body of `POST /v1/barriers`: asks every sidecar for a report at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierRequest {
    /// For how long the hub waits for the reports, in seconds: 0 to 30.
    pub wait_seconds: u32,
}

/// What `POST /v1/barriers` returns, at once when every connected sidecar has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// Its number: what reports name in [`Report::answers`].
    pub barrier: u64,
    /// When it was set, on the hub's clock. What was used before is in the reports that answer it.
    pub at: Timestamp,
    /// The names of the sidecars that have not ended and not answered, connected or not.
    pub unanswered: Vec<String>,
}

/// The body of `POST /v1/evidence`: asks for what shows that a version of a keyring is out of use.
/// The hub sets a barrier first, and returns the ledger's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceRequest {
    /// The keyring's name, under which workloads are declared.
    pub name: KeyringName,
    /// The keyring's id; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub id: [u8; 16],
    /// The version.
    pub version: u32,
    /// What shows that it isn't needed, as in the keyring's policy.
    pub class: String,
    /// How long it must have been unused.
    pub quiet_period: Span,
    /// When it was superseded in every wave.
    pub superseded_at: Timestamp,
    /// The generation that superseded it: what every sidecar must have reached.
    pub generation: u64,
    /// For how long a sidecar that is cut off may encrypt with it.
    pub encrypt_lease: Span,
    /// How long it must have been disabled without a request for it, if the question is whether it
    /// may be destroyed. None if the question is whether it may be disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_after: Option<Span>,
}

mod optional_mac {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserializer, Serialize, Serializer};

    use super::in_base64;

    pub(super) fn serialize<S: Serializer>(
        mac: &Option<[u8; 32]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        mac.map(|mac| STANDARD.encode(mac)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        #[derive(serde::Deserialize)]
        struct Mac(#[serde(with = "in_base64")] [u8; 32]);

        let mac: Option<Mac> = serde::Deserialize::deserialize(deserializer)?;
        Ok(mac.map(|Mac(mac)| mac))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_parsed_as_they_are_sent_and_unknown_ones_ignored() {
        let events = [
            StreamEvent::Welcome(Welcome {
                protocol: PROTOCOL,
                hub: "1.0.0".into(),
                report_seconds: 30,
            }),
            StreamEvent::Hint(Hint {
                keyring: "orders".parse().expect("a name"),
                generation: 7,
                manifest: None,
            }),
            StreamEvent::ReportNow(ReportNow { barrier: 3 }),
        ];
        for event in events {
            let data = event.to_json().expect("JSON");
            let parsed = StreamEvent::parse(event.name(), &data).expect("valid");
            assert_eq!(parsed, Some(event));
        }
        let newer = StreamEvent::parse("hint", r#"{"keyring":"a","generation":1,"later":[]}"#);
        assert!(matches!(newer, Ok(Some(StreamEvent::Hint(_)))));
        assert!(matches!(StreamEvent::parse("later", "{"), Ok(None)));
        StreamEvent::parse("hint", "{}").expect_err("no keyring");
    }

    #[test]
    fn unknown_and_absent_members_of_usage_are_accepted() {
        let usage = json!({
            "name": "orders",
            "id": "01".repeat(16),
            "generation": 2,
            "versions": [{"version": 1, "encrypted": 1, "decrypted": 2, "later": 3}],
            "later": {},
        });
        let parsed: KeyringUsage = serde_json::from_value(usage).expect("valid");
        assert_eq!((parsed.mac, parsed.versions[0].refused), (None, 0));
        let mut with_mac = serde_json::to_value(&parsed).expect("JSON");
        with_mac["mac"] = json!("AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=");
        let parsed: KeyringUsage = serde_json::from_value(with_mac.clone()).expect("valid");
        assert_eq!(parsed.mac, Some([3; 32]));
        assert_eq!(serde_json::to_value(&parsed).expect("JSON"), with_mac);
    }
}
