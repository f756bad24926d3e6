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
    encoding::to_hex,
    files::{Allowed, read_private},
    ledger::Verdict,
    model::{HubUrl, KeyringName},
    wire::{
        hub::{
            Barrier, BarrierRequest, EvidenceRequest, HintRequest, Hinted, JoinedSidecar,
            JoinedSidecars, ProofResult, Proofs, ProofsRequest,
        },
        proof::{Proof, ProofRequest},
        status::Status,
    },
};

/// What the paths of a hub begin with. Those of an ops listener don't.
pub(super) const PATHS: &str = "/v1/";
/// How long sidecars may take to report when they are asked to, in seconds.
const REPORT_WAIT: u32 = 5;
/// The longest response in bytes: a list of statuses of a whole fleet,
const MAX_LIST: usize = 512 << 20;
/// a list of names,
const MAX_NAMES: usize = 32 << 20;
/// what a ledger says of a version,
const MAX_VERDICT: usize = 16 << 20;
/// and a proof.
const MAX_PROOF: usize = 16 << 10;
/// The longest token, in bytes.
const MAX_TOKEN: usize = 8 << 10;

/// A hub that sidecars have joined.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The URL of its API.
    pub url: HubUrl,
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
            let barrier: Barrier = self.post("/v1/barriers", &request, MAX_NAMES).await?;
            let joined: JoinedSidecars = self.ask("/v1/sidecars", None, MAX_LIST).await?;
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
        match self.post::<Hinted>("/v1/hints", &hint, MAX_NAMES).await {
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
        self.post("/v1/evidence", request, MAX_VERDICT).await
    }

    /// Asks the sidecars that results call so for a proof.
    pub(super) async fn prove(
        &self,
        names: Vec<String>,
        request: &ProofRequest,
    ) -> BTreeMap<String, Result<Proof, String>> {
        let body = ProofsRequest {
            sidecars: names.iter().map(|name| asked_by(name).to_owned()).collect(),
            request: request.clone(),
        };
        let limit = MAX_PROOF * (names.len() + 1);
        match self.post::<Proofs>("/v1/proofs", &body, limit).await {
            Ok(proofs) => {
                let mut answers: BTreeMap<String, ProofResult> = proofs
                    .answers
                    .into_iter()
                    .map(|answer| (answer.name, answer.result))
                    .collect();
                let answer = |name: String| {
                    let proof = match answers.remove(asked_by(&name)) {
                        Some(ProofResult::Proof(proof)) => Ok(proof),
                        Some(ProofResult::Refused(reason)) => Err(reason),
                        None => Err("the hub said nothing about it".into()),
                    };
                    (name, proof)
                };
                names.into_iter().map(answer).collect()
            }
            Err(reason) => {
                let failed = |name| (name, Err(reason.clone()));
                names.into_iter().map(failed).collect()
            }
        }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: usize,
    ) -> Result<T, String> {
        let json = serde_json::to_vec(body).map_err(|error| error.to_string())?;
        self.ask(path, Some(json), limit).await
    }

    /// Sends a request whose response has up to `limit` bytes.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        json: Option<Vec<u8>>,
        limit: usize,
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
        let (status, answer) = self.exchange(message, limit).await?;
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

/// Comes before and after the instance in the name of a sidecar that shares its name.
const INSTANCE: [&str; 2] = [" (instance ", ")"];

/// Every sidecar that is connected or has answered and, of a name without such a one, the latest.
/// Those that share a name are named by their instances. One that has not reported since
/// `asked_at`, on the hub's clock, has not answered.
fn members(
    joined: Vec<JoinedSidecar>,
    asked_at: Timestamp,
) -> Vec<(Member, Result<Status, String>)> {
    let mut by_name: BTreeMap<String, Vec<JoinedSidecar>> = BTreeMap::new();
    for sidecar in joined {
        by_name
            .entry(sidecar.name.clone())
            .or_default()
            .push(sidecar);
    }
    by_name
        .into_values()
        .flat_map(|mut group| {
            group.sort_by_key(|sidecar| (sidecar.received_at, sidecar.instance));
            let latest = group.last().map(|sidecar| sidecar.instance);
            let is_live = |one: &JoinedSidecar| one.connected || one.received_at >= asked_at;
            let has_live = group.iter().any(is_live);
            group.retain(|one| is_live(one) || !has_live && Some(one.instance) == latest);
            let shares_name = group.len() > 1;
            group
                .into_iter()
                .map(move |sidecar| member(sidecar, shares_name, asked_at))
        })
        .collect()
}

fn member(
    sidecar: JoinedSidecar,
    shares_name: bool,
    asked_at: Timestamp,
) -> (Member, Result<Status, String>) {
    let since = sidecar.received_at;
    let status = match (since >= asked_at, sidecar.connected) {
        (true, _) => Ok(sidecar.status),
        (false, true) => Err(format!(
            "it has joined the hub and did not report when it was asked to; its last report is of \
             {since}"
        )),
        (false, false) => Err(format!(
            "it has lost its connection to the hub; its last report is of {since}"
        )),
    };
    let name = if shares_name {
        let [before, after] = INSTANCE;
        format!(
            "{}{before}{}{after}",
            sidecar.name,
            to_hex(&sidecar.instance)
        )
    } else {
        sidecar.name
    };
    let member = Member {
        name,
        url: None,
        workload: Some(sidecar.workload),
        is_joined: true,
        shares_name,
    };
    (member, status)
}

/// Returns by what the hub is asked for a sidecar's proof: its instance, if others have its name.
fn asked_by(name: &str) -> &str {
    let [before, after] = INSTANCE;
    let instance = name
        .strip_suffix(after)
        .and_then(|name| name.rsplit_once(before))
        .map(|(_, instance)| instance);
    instance.unwrap_or(name)
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
    fn live_sidecars_of_one_name_all_count_and_are_named() {
        let asked_at: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a time");
        let rows = members(
            vec![
                joined("a", 1, true, "2026-11-24T12:00:01Z"),
                joined("a", 2, true, "2026-11-24T12:00:02Z"),
                // Cut off, and it may go on.
                joined("a", 3, true, "2026-11-24T11:00:00Z"),
                joined("a", 4, false, "2026-11-24T11:30:00Z"),
                joined("b", 5, true, "2026-11-24T12:00:01Z"),
            ],
            asked_at,
        );
        let shown: Vec<(&str, bool, bool)> = rows
            .iter()
            .map(|(member, status)| (&*member.name, member.shares_name, status.is_ok()))
            .collect();
        let name = |instance: &str| format!("a (instance {})", instance.repeat(16));
        let [silent, one, two] = ["03", "01", "02"].map(name);
        let expected = [
            (&*silent, true, false),
            (&*one, true, true),
            (&*two, true, true),
            ("b", false, true),
        ];
        assert_eq!(shown, expected);
        assert_eq!(asked_by(&one), "01".repeat(16));
        assert_eq!(asked_by("b"), "b");
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
