//! What requesters, a hub and a signer exchange about start orders. The hub passes orders on as
//! they are: whether they count, the signer decides.

use serde::{Deserialize, Serialize};

/// What became of an order. The signer posts it to `/v1/orders/{id}/outcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderOutcome {
    /// No signer has taken it yet.
    Waiting,
    /// Its rollout begins.
    Taken,
    /// It begins nothing, for this reason.
    Refused(String),
}

/// What `GET /v1/orders/{id}` and `POST /v1/orders` return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderStatus {
    /// What became of it.
    pub outcome: OrderOutcome,
}

/// What `GET /v1/orders/waiting?keyring=…&wait_seconds=…`
/// returns: at once if there is an order, else after the wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitingOrders<T> {
    /// Orders that wait for a signer: the oldest of each operator, then the second one of each, and
    /// so on, up to a bound. The others are returned once these are decided.
    pub orders: Vec<T>,
}
