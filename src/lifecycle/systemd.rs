//! Notifies systemd, or another service manager that implements sd_notify(3).

use sd_notify::NotifyState;
use tracing::warn;

/// Tells the service manager that the process has started.
pub fn notify_ready() {
    notify(NotifyState::Ready);
}

/// Tells the service manager that the process has begun to drain.
pub fn notify_stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    // Without NOTIFY_SOCKET there is no service manager, which is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "can't notify the service manager (NOTIFY_SOCKET)");
    }
}
