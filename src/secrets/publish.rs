//! Publishes the outcome of a read to requests, subscribers, the log and the audit log.

use std::sync::Arc;

use tracing::{info, warn};

use super::{
    Secret, SecretChange, Trigger,
    state::{CurrentValue, PreviousValue, ReadFailure, State},
};
use crate::{
    backend::{BackendError, ErrorKind, FetchedValue},
    clock::Uptime,
};

/// Publishes that the provider confirmed the current value.
pub(super) fn confirmation(secret: &Secret, valid_until: Option<Uptime>) {
    let Some(state) = secret.state().filter(|state| state.current.is_some()) else {
        return;
    };
    log_recovery(secret, &state);
    let current = state.current.clone().map(|current| CurrentValue {
        confirmed_at: secret.shared.clock.now(),
        valid_until,
        ..current
    });
    secret.publish(State {
        current,
        previous: state.previous.clone(),
        failure: None,
    });
}

/// Publishes a new current value. The one before is served until `previous_until`.
pub(super) fn value(
    secret: &Secret,
    fetched: FetchedValue,
    previous_until: Uptime,
    valid_until: Option<Uptime>,
    trigger: Trigger,
) {
    if secret.stopping.is_cancelled() {
        // Removed while it was read: nothing may serve it any more.
        return;
    }
    let now = secret.shared.clock.now();
    let former = secret.state();
    if let Some(state) = &former {
        log_recovery(secret, state);
    }
    let before = former.as_ref().and_then(|state| state.current.as_ref());
    let version_before = before.map(|before| before.value.version().to_owned());
    let previous = before
        .filter(|_| previous_until > secret.shared.clock.uptime())
        .map(|before| PreviousValue {
            value: Arc::clone(&before.value),
            until: previous_until,
        });
    let value = secret.adopt(fetched);
    let (name, version) = (secret.name(), value.version().to_owned());
    let change = SecretChange {
        secret: name.clone(),
        version: Some(version.clone()),
        previous: previous
            .as_ref()
            .map(|previous| previous.value.version().to_owned()),
    };
    let current = CurrentValue {
        since: value.created_at().unwrap_or(now),
        value,
        confirmed_at: now,
        valid_until,
    };
    secret.publish(State {
        current: Some(current),
        previous,
        failure: None,
    });
    info!(
        secret = %name, %version, before = version_before, trigger = trigger.as_str(),
        "secret active"
    );
    secret.shared.audit.record("secret.in_force", |event| {
        event
            .with("secret", name.as_str())
            .with("version", version)
            .with("version_before", version_before)
    });
    notify(secret, change);
}

/// Publishes that a read failed. If the secret is deleted, its values are no longer served.
pub(super) fn failure(
    secret: &Secret,
    error: &BackendError,
    is_deleted: bool,
    valid_until: Option<Uptime>,
    trigger: Trigger,
) {
    let state = secret.state();
    let name = secret.name();
    let (mut current, mut previous) = state.as_ref().map_or((None, None), |state| {
        (state.current.clone(), state.previous.clone())
    });
    if let (Some(current), Some(end)) = (&mut current, valid_until) {
        current.valid_until = Some(end);
    }
    if is_deleted {
        (current, previous) = (None, None);
    }
    let now = secret.shared.clock.uptime();
    let before = state.as_ref().and_then(|state| state.failure.as_ref());
    if is_deleted || before.is_none_or(|before| before.error != *error) {
        let serving = current.as_ref().map(|current| current.value.version());
        let what = if is_deleted {
            "secret deleted"
        } else {
            "can't read the secret"
        };
        warn!(
            secret = %name, trigger = trigger.as_str(), fault = error.kind.secret_code(), serving,
            "{what}: {error}"
        );
    }
    secret.publish(State {
        current,
        previous,
        failure: Some(ReadFailure {
            error: error.clone(),
            at: secret.shared.clock.now(),
            uptime: now,
            since: before.map_or(now, |before| before.since),
        }),
    });
    if is_deleted {
        announce_deletion(secret);
    // A provider's message may differ every time.
    } else if before.is_none_or(|before| before.error.kind != error.kind) {
        secret.shared.audit.record("secret.failed", |event| {
            event
                .with("secret", name.as_str())
                .with("fault", error.kind.secret_code())
                .with("reason", error.to_string())
        });
    }
}

/// Publishes that the config no longer has the secret. Its values are dropped.
pub(super) fn removal(secret: &Secret) {
    let had_value = secret.had_value();
    let message = "the config no longer has this secret";
    let uptime = secret.shared.clock.uptime();
    secret.publish(State {
        current: None,
        previous: None,
        failure: Some(ReadFailure {
            error: BackendError::new(ErrorKind::NotFound, secret.source(), message),
            at: secret.shared.clock.now(),
            uptime,
            since: uptime,
        }),
    });
    secret.end();
    secret.clear_gauges();
    info!(secret = %secret.name(), "secret removed");
    if had_value {
        notify_of_end(secret);
    }
}

fn announce_deletion(secret: &Secret) {
    secret.shared.audit.record("secret.deleted", |event| {
        event.with("secret", secret.name().as_str())
    });
    notify_of_end(secret);
}

fn notify_of_end(secret: &Secret) {
    let name = secret.name();
    let change = SecretChange {
        secret: name.clone(),
        version: None,
        previous: None,
    };
    notify(secret, change);
}

/// Drops the previous value if it is no longer served.
pub(super) fn drop_expired_previous(secret: &Secret) {
    let Some(state) = secret.state() else {
        return;
    };
    let now = secret.shared.clock.uptime();
    let is_expired = |previous: &PreviousValue| previous.until <= now;
    if !state.previous.as_ref().is_some_and(is_expired) {
        return;
    }
    secret.publish(State {
        current: state.current.clone(),
        previous: None,
        failure: state.failure.clone(),
    });
    if let Some(current) = &state.current {
        let change = SecretChange {
            secret: secret.name().clone(),
            version: Some(current.value.version().to_owned()),
            previous: None,
        };
        notify(secret, change);
    }
}

fn log_recovery(secret: &Secret, former: &State) {
    if former.failure.is_some() && former.current.is_some() {
        info!(secret = %secret.name(), "reading the secret works again");
    }
}

fn notify(secret: &Secret, change: SecretChange) {
    // Fails if there are no subscribers.
    let _ = secret.shared.changes.send(change);
}
