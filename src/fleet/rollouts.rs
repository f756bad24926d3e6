//! Rollouts through a hub: start orders, and the journals that it keeps for signers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{
    Method, StatusCode,
    header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Hub,
    hub::HubClient,
    request::{Message, refusal},
};
use crate::{
    backend::{BackendError, ErrorKind, ManifestStore},
    crypto::{RolloutId, fingerprint},
    encoding::to_hex,
    model::KeyringName,
    rollout::SignedStart,
    wire::orders::{OrderOutcome, OrderStatus, WaitingOrders},
};

/// The longest response in bytes: orders that wait,
const MAX_ORDERS: usize = 8 << 20;
/// what became of one, with the reason,
const MAX_OUTCOME: usize = 1 << 20;
/// a journal,
const MAX_JOURNAL: usize = 16 << 20;
/// and that a journal was replaced.
const MAX_DONE: usize = 64 << 10;

/// Orders and journals in a hub.
#[derive(Clone)]
pub struct HubRollouts {
    client: Arc<HubClient>,
}

/// The journal of a keyring in a hub.
struct HubJournal {
    client: Arc<HubClient>,
    path: String,
}

impl HubRollouts {
    /// Creates a client. TLS files are read now.
    ///
    /// # Errors
    /// A TLS file can't be used.
    pub fn new(hub: &Hub) -> Result<Self, String> {
        let client = Arc::new(HubClient::new(hub)?);
        Ok(Self { client })
    }

    /// What messages call the hub.
    pub fn name(&self) -> String {
        self.client.name()
    }

    /// Hands in an order. To repeat it does no harm.
    ///
    /// # Errors
    /// A message for the requester.
    pub async fn submit(&self, start: &SignedStart) -> Result<OrderOutcome, String> {
        let status: OrderStatus = self
            .ask((Method::POST, "/v1/orders"), Some(start), MAX_OUTCOME)
            .await?;
        Ok(status.outcome)
    }

    /// Returns what became of an order.
    ///
    /// # Errors
    /// A message for the requester.
    pub async fn outcome(&self, id: RolloutId) -> Result<OrderOutcome, String> {
        let path = format!("/v1/orders/{id}");
        let status: OrderStatus = self
            .ask((Method::GET, &path), None::<&()>, MAX_OUTCOME)
            .await?;
        Ok(status.outcome)
    }

    /// Waits for orders for these keyrings, at most for `wait`.
    ///
    /// # Errors
    /// A message for the operator of the signer.
    pub async fn waiting(
        &self,
        keyrings: &[KeyringName],
        wait: Duration,
    ) -> Result<Vec<SignedStart>, String> {
        let names = keyrings.iter().map(|name| format!("keyring={name}&"));
        let path = format!(
            "/v1/orders/waiting?{}wait_seconds={}",
            names.collect::<String>(),
            wait.as_secs()
        );
        let waiting: WaitingOrders<SignedStart> = self
            .ask((Method::GET, &path), None::<&()>, MAX_ORDERS)
            .await?;
        Ok(waiting.orders)
    }

    /// Says what became of an order.
    ///
    /// # Errors
    /// A message for the operator of the signer.
    pub async fn decide(&self, id: RolloutId, outcome: &OrderOutcome) -> Result<(), String> {
        let path = format!("/v1/orders/{id}/outcome");
        let _: OrderStatus = self
            .ask((Method::POST, &path), Some(outcome), MAX_OUTCOME)
            .await?;
        Ok(())
    }

    /// Returns the journal of a keyring.
    pub fn journal(&self, keyring: &KeyringName) -> Arc<dyn ManifestStore> {
        Arc::new(HubJournal {
            client: Arc::clone(&self.client),
            path: format!("/v1/rollouts/{keyring}"),
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        (method, path): (Method, &str),
        body: Option<&impl Serialize>,
        limit: usize,
    ) -> Result<T, String> {
        let json = body.map(serde_json::to_vec).transpose();
        let message = Message {
            method,
            path,
            condition: None,
            json: json.map_err(|error| error.to_string())?.unwrap_or_default(),
        };
        let (status, body) = self.client.exchange(message, limit).await?;
        if !status.is_success() {
            return Err(refusal(status, &body, path));
        }
        serde_json::from_slice(&body).map_err(|error| {
            format!("unexpected response to {path}, maybe of another version of Sidekey: {error}")
        })
    }
}

impl HubJournal {
    async fn exchange(
        &self,
        message: Message<'_>,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), BackendError> {
        let answer = self.client.exchange(message, limit).await;
        answer.map_err(|reason| self.failed(ErrorKind::Unavailable, reason))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> BackendError {
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::PRECONDITION_FAILED => ErrorKind::Conflict,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::TooLarge,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Throttled,
            status if status.is_server_error() => ErrorKind::Unavailable,
            _ => ErrorKind::Rejected,
        };
        self.failed(kind, refusal(status, body, &self.path))
    }

    fn failed(&self, kind: ErrorKind, reason: String) -> BackendError {
        let name = self.client.name();
        BackendError::new(kind, format_args!("{name}: {}", self.path), reason)
    }
}

impl ManifestStore for HubJournal {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        Box::pin(async move {
            let message = Message {
                method: Method::GET,
                path: &self.path,
                condition: None,
                json: Vec::new(),
            };
            match self.exchange(message, limit.min(MAX_JOURNAL)).await? {
                (StatusCode::OK, body) => Ok(body),
                (status, body) => Err(self.refused(status, &body)),
            }
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(async move {
            let condition = condition(expected.as_deref())
                .map_err(|error| self.failed(ErrorKind::Misconfigured, error.to_string()))?;
            let message = Message {
                method: Method::PUT,
                path: &self.path,
                condition: Some(condition),
                json: new,
            };
            match self.exchange(message, MAX_DONE).await? {
                (status, _) if status.is_success() => Ok(()),
                (status, body) => Err(self.refused(status, &body)),
            }
        })
    }
}

/// The header that makes a write a compare-and-swap. The entity tag of a journal is the SHA-256 of
/// its bytes.
fn condition(
    expected: Option<&[u8]>,
) -> Result<(HeaderName, HeaderValue), hyper::header::InvalidHeaderValue> {
    match expected {
        None => Ok((IF_NONE_MATCH, HeaderValue::from_static("*"))),
        Some(bytes) => {
            let tag = format!("\"{}\"", to_hex(&fingerprint(bytes)));
            Ok((IF_MATCH, HeaderValue::from_str(&tag)?))
        }
    }
}
