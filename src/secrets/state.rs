//! What is served of a secret now.

use std::sync::Arc;

use jiff::Timestamp;

use super::Value;
use crate::{backend::BackendError, clock::Uptime};

/// What is served now. A request takes one and uses it to its end.
pub(super) struct State {
    pub(super) current: Option<CurrentValue>,
    pub(super) previous: Option<PreviousValue>,
    /// Why the last read failed; None once one succeeds.
    pub(super) failure: Option<ReadFailure>,
}

#[derive(Clone)]
pub(super) struct CurrentValue {
    pub(super) value: Arc<Value>,
    /// When the provider last returned or confirmed it.
    pub(super) confirmed_at: Timestamp,
    /// When it was created or, if the provider doesn't say, first seen.
    pub(super) since: Timestamp,
    /// When its lease ends.
    pub(super) valid_until: Option<Uptime>,
}

#[derive(Clone)]
pub(super) struct PreviousValue {
    pub(super) value: Arc<Value>,
    /// Until when it is served.
    pub(super) until: Uptime,
}

#[derive(Clone)]
pub(super) struct ReadFailure {
    pub(super) error: BackendError,
    pub(super) at: Timestamp,
    pub(super) uptime: Uptime,
    /// When the first of the consecutive failures occurred.
    pub(super) since: Uptime,
}
