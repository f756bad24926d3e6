//! When a value without a lease expires.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    clock::{Clock, Uptime},
    schedule::FAR_FUTURE,
};

/// A value's successor is looked for at most this long before the value expires.
const MAX_LEAD: Duration = Duration::from_secs(60);
/// A value's successor is looked for again this long after the value expires.
const LAG: Duration = Duration::from_secs(1);

/// The expiry of the current value.
#[derive(Clone, Copy)]
pub(super) struct Expiry {
    at: Timestamp,
    due: Uptime,
}

impl Expiry {
    /// Returns the earlier of the provider's expiry and the age that the config allows
    /// (`rotate_after`); None if there is neither.
    ///
    /// If `known` is the same time, it is kept: a clock that was set since then must not move it.
    pub(super) fn of(
        known: Option<Self>,
        clock: &Clock,
        expires_at: Option<Timestamp>,
        created_at: Option<Timestamp>,
        rotate_after: Option<Duration>,
    ) -> Option<Self> {
        let now = clock.now();
        let rotated_at =
            rotate_after.and_then(|age| created_at.unwrap_or(now).checked_add(age).ok());
        let at = expires_at.into_iter().chain(rotated_at).min()?;
        let known = known.filter(|known| known.at == at);
        Some(known.unwrap_or_else(|| {
            let remaining = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            Self {
                at,
                due: clock.uptime() + remaining.min(FAR_FUTURE),
            }
        }))
    }

    /// Whether it is time to look for a successor.
    pub(super) fn is_due(&self, now: Uptime, rotate_after: Option<Duration>) -> bool {
        now + lead(rotate_after) >= self.due
    }

    /// Returns how long to wait until a successor is looked for: until shortly before and shortly
    /// after the expiry.
    pub(super) fn wake_ups(
        &self,
        now: Uptime,
        rotate_after: Option<Duration>,
    ) -> impl Iterator<Item = Duration> + use<> {
        [
            self.due.checked_sub(lead(rotate_after)),
            Some(self.due + LAG),
        ]
        .into_iter()
        .flatten()
        .map(move |due| due.since(now))
        .filter(|wait| !wait.is_zero())
    }
}

/// How long before the expiry a successor is looked for.
fn lead(rotate_after: Option<Duration>) -> Duration {
    rotate_after.map_or(MAX_LEAD, |age| (age / 10).min(MAX_LEAD))
}
