//! What a service manager is told: sd_notify(3), if it listens.

use sd_notify::NotifyState;
use tracing::warn;

/// It listens.
pub fn tell_started() {
    tell(NotifyState::Ready);
}

/// It begins to drain.
pub fn tell_stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    // Without NOTIFY_SOCKET nobody asked, which is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "can't tell the service manager (NOTIFY_SOCKET)");
    }
}
