//! When a value without a lease expires.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::schedule::FAR_FUTURE;

/// A value's successor is looked for at most this long before the value expires.
const MAX_LEAD: Duration = Duration::from_secs(60);
/// A value's successor is looked for again this long after the value expires.
const LAG: Duration = Duration::from_secs(1);

/// The expiry of the current value.
#[derive(Clone, Copy)]
pub(super) struct Expiry {
    at: Timestamp,
    instant: Instant,
}

impl Expiry {
    /// Returns the earlier of the provider's expiry and the age that the config allows
    /// (`rotate_after`); None if there is neither.
    ///
    /// If `known` is the same time, it is kept: a clock that was set since then must not move it.
    pub(super) fn of(
        known: Option<Self>,
        now: Timestamp,
        expires_at: Option<Timestamp>,
        created_at: Option<Timestamp>,
        rotate_after: Option<Duration>,
    ) -> Option<Self> {
        let rotated_at =
            rotate_after.and_then(|age| created_at.unwrap_or(now).checked_add(age).ok());
        let at = expires_at.into_iter().chain(rotated_at).min()?;
        let known = known.filter(|known| known.at == at);
        Some(known.unwrap_or_else(|| {
            let remaining = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            Self {
                at,
                instant: Instant::now() + remaining.min(FAR_FUTURE),
            }
        }))
    }

    /// Whether it is time to look for a successor.
    pub(super) fn is_due(&self, rotate_after: Option<Duration>) -> bool {
        Instant::now() + lead(rotate_after) >= self.instant
    }

    /// Returns when to look for a successor: shortly before and shortly after the expiry.
    pub(super) fn wake_ups(
        &self,
        rotate_after: Option<Duration>,
    ) -> impl Iterator<Item = Instant> + use<> {
        let now = Instant::now();
        [
            self.instant.checked_sub(lead(rotate_after)),
            self.instant.checked_add(LAG),
        ]
        .into_iter()
        .flatten()
        .filter(move |due| *due > now)
    }
}

/// How long before the expiry a successor is looked for.
fn lead(rotate_after: Option<Duration>) -> Duration {
    rotate_after.map_or(MAX_LEAD, |age| (age / 10).min(MAX_LEAD))
}
