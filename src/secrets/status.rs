//! The status of a secret, for `/status`, metrics and callers' descriptions.

use std::time::Duration;

use jiff::Timestamp;

use super::state::State;
use crate::{backend::BackendError, clock::Uptime};

/// The status of a secret, without its value.
#[derive(Debug, Clone, Default)]
pub struct SecretStatus {
    pub(crate) current: Option<CurrentVersion>,
    /// The version before, while it is still served.
    pub(crate) previous: Option<String>,
    /// The last read's failure and its time; None once one succeeds.
    pub(crate) failure: Option<(Timestamp, BackendError)>,
    pub(crate) lease_remaining: Option<Duration>,
}

/// The current version of a secret, without its value.
#[derive(Debug, Clone)]
pub struct CurrentVersion {
    pub(crate) version: String,
    /// When it was created, if the provider says so.
    pub(crate) created_at: Option<Timestamp>,
    /// When it was created or, if the provider doesn't say, first seen.
    pub(crate) since: Timestamp,
    /// When the provider last returned or confirmed it.
    pub(crate) confirmed_at: Timestamp,
}

impl SecretStatus {
    pub(super) fn of(state: &State, now: Uptime) -> Self {
        let current = state.current.as_ref();
        Self {
            current: current.map(|current| CurrentVersion {
                version: current.value.version().to_owned(),
                created_at: current.value.created_at(),
                since: current.since,
                confirmed_at: current.confirmed_at,
            }),
            previous: state
                .previous
                .as_ref()
                .filter(|previous| now < previous.until)
                .map(|previous| previous.value.version().to_owned()),
            failure: state
                .failure
                .as_ref()
                .map(|failure| (failure.at, failure.error.clone())),
            lease_remaining: current
                .and_then(|current| current.valid_until)
                .map(|end| end.since(now)),
        }
    }
}
