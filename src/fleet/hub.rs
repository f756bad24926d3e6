//! What a command asks a hub about the sidecars that have joined it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use hyper::{Method, StatusCode, header::HeaderValue};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    Member, OpsTls, REQUEST_TIMEOUT,
    connect::Connector,
    request::{Message, Target, exchange, refusal},
};
use crate::{
    config::FleetHub,
    files::{Allowed, read_private},
    ledger::Verdict,
    model::{KeyringName, OpsUrl},
    wire::{
        hub::{
            Barrier, BarrierRequest, EvidenceRequest, HintRequest, Hinted, JoinedSidecar,
            JoinedSidecars, NamedProof, ProofResult, Proofs, ProofsRequest,
        },
        proof::{Proof, ProofRequest},
        status::Status,
    },
};

/// What the paths of a hub begin with. Those of an ops listener don't.
pub(super) const PATHS: &str = "/v1/";
/// How long sidecars may take to report when they are asked to, in seconds.
const REPORT_WAIT: u32 = 5;
/// The longest response, in bytes.
const MAX_RESPONSE: usize = 1 << 30;
/// The longest token, in bytes.
const MAX_TOKEN: usize = 8 << 10;

/// A hub that sidecars have joined.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The URL of its API.
    pub url: OpsUrl,
    /// The operator's bearer token, read for each request.
    pub token_file: Option<PathBuf>,
    /// How it is reached over TLS.
    pub tls: OpsTls,
}

impl From<FleetHub> for Hub {
    fn from(hub: FleetHub) -> Self {
        Self {
            url: hub.url,
            token_file: hub.token_file,
            tls: hub.tls.into(),
        }
    }
}

/// Asks a hub.
pub(super) struct HubClient {
    hub: Hub,
    connector: Connector,
}

impl HubClient {
    /// Creates a client. TLS files are read now.
    ///
    /// # Errors
    /// A TLS file can't be used.
    pub(super) fn new(hub: &Hub) -> Result<Self, String> {
        Ok(Self {
            connector: Connector::new(&hub.tls, hub.url.is_tls())?,
            hub: hub.clone(),
        })
    }

    /// What results call the hub itself.
    pub(super) fn name(&self) -> String {
        format!("hub {}", self.hub.url)
    }

    /// Asks every sidecar that has joined for a report, and returns their statuses. A hub that
    /// doesn't answer counts as a sidecar that doesn't.
    pub(super) async fn statuses(&self) -> Vec<(Member, Result<Status, String>)> {
        let asked = async {
            let request = BarrierRequest {
                wait_seconds: REPORT_WAIT,
            };
            let barrier: Barrier = self.post("/v1/barriers", &request).await?;
            let joined: JoinedSidecars = self.get("/v1/sidecars").await?;
            Ok(members(joined.sidecars, barrier.at))
        };
        asked
            .await
            .unwrap_or_else(|reason| vec![(Member::named(self.name()), Err(reason))])
    }

    /// Tells every connected sidecar about a generation.
    pub(super) async fn push(
        &self,
        keyring: &KeyringName,
        generation: u64,
    ) -> Vec<(String, Result<bool, String>)> {
        let hint = HintRequest {
            keyring: keyring.clone(),
            generation,
            manifest: None,
        };
        match self.post::<Hinted>("/v1/hints", &hint).await {
            Ok(hinted) => hinted
                .sent
                .into_iter()
                .map(|name| (name, Ok(true)))
                .collect(),
            Err(reason) => vec![(self.name(), Err(reason))],
        }
    }

    /// Returns what the ledger says about a version, after every sidecar was asked for a report.
    pub(super) async fn evidence(&self, request: &EvidenceRequest) -> Result<Verdict, String> {
        self.post("/v1/evidence", request).await
    }

    /// Asks the sidecars with these names for a proof.
    pub(super) async fn prove(
        &self,
        names: Vec<String>,
        request: &ProofRequest,
    ) -> BTreeMap<String, Result<Proof, String>> {
        let body = ProofsRequest {
            sidecars: names.clone(),
            request: request.clone(),
        };
        let answers = match self.post::<Proofs>("/v1/proofs", &body).await {
            Ok(proofs) => proofs.answers,
            Err(reason) => names
                .into_iter()
                .map(|name| NamedProof {
                    name,
                    result: ProofResult::Refused(reason.clone()),
                })
                .collect(),
        };
        let result = |answer: NamedProof| match answer.result {
            ProofResult::Proof(proof) => (answer.name, Ok(proof)),
            ProofResult::Refused(reason) => (answer.name, Err(reason)),
        };
        answers.into_iter().map(result).collect()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        self.ask(path, None).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, String> {
        let json = serde_json::to_vec(body).map_err(|error| error.to_string())?;
        self.ask(path, Some(json)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        json: Option<Vec<u8>>,
    ) -> Result<T, String> {
        let method = match json {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let message = Message {
            method,
            path,
            condition: None,
            json: json.unwrap_or_default(),
        };
        let (status, answer) = self.exchange(message, MAX_RESPONSE).await?;
        if !status.is_success() {
            return Err(refusal(status, &answer, path));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            format!("unexpected response to {path}, maybe of another version of Sidekey: {error}")
        })
    }

    /// Sends a request, and returns the status and body of the response.
    ///
    /// # Errors
    /// A message for the operator: there is no response, or it is longer than `limit`.
    pub(super) async fn exchange(
        &self,
        message: Message<'_>,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let token = self.token()?;
        let to = Target {
            url: &self.hub.url,
            host: self.hub.url.host(),
            token: token.as_ref(),
        };
        let patience = REQUEST_TIMEOUT + Duration::from_secs(REPORT_WAIT.into());
        timeout(patience, exchange(&self.connector, &to, message, limit))
            .await
            .map_err(|_| format!("no response within {patience:?}"))?
    }

    fn token(&self) -> Result<Option<HeaderValue>, String> {
        let Some(file) = &self.hub.token_file else {
            return Ok(None);
        };
        let failed = |reason: String| format!("{}: {reason}", file.display());
        let what = "the hub's token";
        let token = read_private(file, what, Allowed::OwnerAndGroup, MAX_TOKEN + 1)
            .map_err(|error| failed(error.to_string()))?;
        let mut header = Zeroizing::new(b"Bearer ".to_vec());
        header.extend_from_slice(token.trim_ascii_end());
        let mut header = HeaderValue::from_bytes(&header)
            .map_err(|_| failed("the token must be one line of visible characters".into()))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// The latest instance of each name. One that has not reported since `asked_at`, on the hub's
/// clock, has not answered.
fn members(
    joined: Vec<JoinedSidecar>,
    asked_at: Timestamp,
) -> Vec<(Member, Result<Status, String>)> {
    let mut latest: BTreeMap<String, JoinedSidecar> = BTreeMap::new();
    for sidecar in joined {
        let is_later = latest
            .get(&sidecar.name)
            .is_none_or(|known| known.received_at < sidecar.received_at);
        if is_later {
            latest.insert(sidecar.name.clone(), sidecar);
        }
    }
    latest
        .into_values()
        .map(|sidecar| {
            let since = sidecar.received_at;
            let status = match (since >= asked_at, sidecar.connected) {
                (true, _) => Ok(sidecar.status),
                (false, true) => Err(format!(
                    "it has joined the hub and did not report when it was asked to; its last \
                     report is of {since}"
                )),
                (false, false) => Err(format!(
                    "it has lost its connection to the hub; its last report is of {since}"
                )),
            };
            let member = Member {
                name: sidecar.name,
                url: None,
                workload: Some(sidecar.workload),
                is_joined: true,
            };
            (member, status)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn joined(name: &str, instance: u8, connected: bool, received_at: &str) -> JoinedSidecar {
        let status = json!({
            "version": "0.1.0", "instance": format!("{instance:02x}").repeat(16),
            "started_at": "2026-11-24T12:00:00Z", "ready": true, "pending": [],
            "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
            "keks": [], "keyrings": [],
        });
        JoinedSidecar {
            name: name.into(),
            workload: "shop".into(),
            instance: [instance; 16],
            connected,
            received_at: received_at.parse().expect("a time"),
            status: serde_json::from_value(status).expect("a status"),
        }
    }

    #[test]
    fn one_that_did_not_report_when_asked_has_not_answered() {
        let asked_at: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a time");
        let rows = members(
            vec![
                joined("a", 1, true, "2026-11-24T12:00:00Z"),
                joined("b", 2, true, "2026-11-24T11:59:59Z"),
                joined("c", 3, false, "2026-11-24T11:00:00Z"),
            ],
            asked_at,
        );
        let [(a, answered), (_, silent), (_, gone)] = &rows[..] else {
            panic!("three rows")
        };
        assert_eq!(
            (a.name.as_str(), a.workload.as_deref()),
            ("a", Some("shop"))
        );
        assert!(answered.is_ok());
        let silent = silent.as_ref().expect_err("it did not report");
        assert!(silent.contains("did not report"), "{silent}");
        let gone = gone.as_ref().expect_err("it is gone");
        assert!(gone.contains("lost its connection"), "{gone}");
    }

    #[test]
    fn a_restarted_sidecar_replaces_its_former_process() {
        let asked_at: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a time");
        for swap in [false, true] {
            let mut both = vec![
                joined("a", 1, false, "2026-11-24T11:00:00Z"),
                joined("a", 2, true, "2026-11-24T12:00:01Z"),
            ];
            if swap {
                both.reverse();
            }
            let rows = members(both, asked_at);
            let [(_, Ok(status))] = &rows[..] else {
                panic!("one answer")
            };
            assert_eq!(status.instance, Some("02".repeat(16)));
        }
    }
}
