//! Refused requests, counted per caller and reason. Callers can cause any number of them, so memory
//! and records are bounded: the first of a kind is recorded immediately, later ones as a count per
//! period.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::Event;
use crate::model::{KeyringName, SecretName};

/// The shortest time between two records of one kind.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// The most kinds that are counted separately.
const KINDS: usize = 256;

/// The caller that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requester {
    /// A process, identified by the kernel (SO_PEERCRED, unix(7)).
    Process {
        /// Its effective user id when it connected.
        uid: u32,
        /// Its effective group id when it connected.
        gid: u32,
    },
    /// A holder of the TCP listener's token.
    TokenHolder,
    /// A caller of the TCP listener without a valid token.
    Unauthorized,
}

/// A kind of refused request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccessRefusal {
    /// The problem code (docs/errors.md).
    pub code: &'static str,
    /// The keyring, if the request was for one.
    pub keyring: Option<KeyringName>,
    /// The secret, if the request was for one.
    pub secret: Option<SecretName>,
    /// The requested operation.
    pub operation: Option<&'static str>,
    /// The key version of the ciphertext, if it is the reason.
    pub version: Option<u32>,
    /// The caller.
    pub requester: Requester,
}

/// The refusals of one kind, or of all kinds beyond [`KINDS`].
struct Count {
    /// How many there were since the last record.
    count: u64,
    first: Timestamp,
    last: Timestamp,
    /// The last process that was refused.
    pid: Option<i32>,
    due: Instant,
}

impl Count {
    fn new(now: Timestamp, due: Instant) -> Self {
        Self {
            count: 0,
            first: now,
            last: now,
            pid: None,
            due,
        }
    }

    fn add(&mut self, pid: Option<i32>, now: Timestamp) {
        if self.count == 0 {
            self.first = now;
        }
        self.count += 1;
        self.last = now;
        self.pid = pid;
    }

    /// Returns the event that is due at `now`, if any.
    fn take(&mut self, now: Instant) -> Option<Event> {
        if self.count == 0 || now < self.due {
            return None;
        }
        let event = Event::new("access.refused", self.last)
            .with("count", self.count)
            .with("first_at", self.first.to_string())
            .with("last_at", self.last.to_string());
        self.count = 0;
        self.due = now + PERIOD;
        Some(match self.pid {
            Some(pid) => event.with("last_pid", pid),
            None => event,
        })
    }
}

/// The refusals that are not recorded yet.
#[derive(Default)]
pub(super) struct RefusalCounts {
    kinds: BTreeMap<AccessRefusal, Count>,
    others: Option<Count>,
}

impl RefusalCounts {
    /// Counts a refusal. Returns whether it is the first of its kind, which is due immediately.
    pub(super) fn add(
        &mut self,
        refusal: AccessRefusal,
        pid: Option<i32>,
        at: Timestamp,
        now: Instant,
    ) -> bool {
        let is_known = self.kinds.contains_key(&refusal);
        let has_room = is_known || self.kinds.len() < KINDS;
        let is_first = if has_room {
            !is_known
        } else {
            self.others.is_none()
        };
        let count = if has_room {
            self.kinds
                .entry(refusal)
                .or_insert_with(|| Count::new(at, now))
        } else {
            self.others.get_or_insert_with(|| Count::new(at, now))
        };
        count.add(pid, at);
        is_first
    }

    /// Returns the events that are due at `now`, or all that remain if `everything` is set.
    pub(super) fn take(&mut self, now: Instant, everything: bool) -> Vec<Event> {
        let now = if everything { now + PERIOD } else { now };
        let mut events = Vec::new();
        for (refusal, count) in &mut self.kinds {
            events.extend(count.take(now).map(|event| refusal.describe(event)));
        }
        let of_others = self.others.as_mut().and_then(|count| count.take(now));
        events.extend(of_others.map(|event| {
            event
                .with("code", "several")
                .with("callers", "more than are told apart")
        }));
        // A kind without refusals for a period is dropped, which frees its slot.
        let is_alive = |count: &Count| count.count > 0 || now < count.due;
        self.kinds.retain(|_, count| is_alive(count));
        self.others = self.others.take().filter(is_alive);
        events
    }

    /// Returns when the next event is due or the next kind can be dropped.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.kinds
            .values()
            .chain(&self.others)
            .map(|count| count.due)
            .min()
    }
}

impl AccessRefusal {
    fn describe(&self, event: Event) -> Event {
        let mut event = event.with("code", self.code);
        if let Some(keyring) = &self.keyring {
            event = event.with("keyring", keyring.as_str());
        }
        if let Some(secret) = &self.secret {
            event = event.with("secret", secret.as_str());
        }
        if let Some(operation) = self.operation {
            event = event.with("operation", operation);
        }
        if let Some(version) = self.version {
            event = event.with("version", version);
        }
        match self.requester {
            Requester::Process { uid, gid } => event.with("uid", uid).with("gid", gid),
            Requester::TokenHolder => event.with("caller", "token"),
            Requester::Unauthorized => event.with("caller", "unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(uid: u32) -> AccessRefusal {
        let keyring = Some("demo".parse().expect("name"));
        let requester = Requester::Process { uid, gid: 1 };
        AccessRefusal {
            code: "forbidden",
            keyring,
            secret: None,
            operation: Some("decrypt"),
            version: None,
            requester,
        }
    }

    fn count(events: &[Event]) -> u64 {
        events
            .iter()
            .filter_map(|event| event.details["count"].as_u64())
            .sum()
    }

    #[test]
    fn the_first_refusal_is_due_immediately_and_later_ones_once_per_period() {
        let (mut counts, start) = (RefusalCounts::default(), Instant::now());
        let at = |second| Timestamp::from_second(second).expect("in range");
        assert!(counts.add(refusal(1), Some(7), at(1), start));
        assert_eq!(count(&counts.take(start, false)), 1);
        for second in 2..1002 {
            assert!(!counts.add(refusal(1), Some(8), at(second), start));
        }
        assert!(counts.take(start, false).is_empty());
        let events = counts.take(start + PERIOD, false);
        assert_eq!((events.len(), count(&events)), (1, 1000));
        let details = &events[0].details;
        assert_eq!(
            (&details["first_at"], &details["last_at"]),
            (&at(2).to_string().into(), &at(1001).to_string().into())
        );
        assert_eq!(
            (&details["last_pid"], &details["uid"]),
            (&8.into(), &1.into())
        );
        assert!(counts.take(start + 2 * PERIOD, false).is_empty());
        assert_eq!(counts.next_due(), None, "quiet kinds are dropped");
    }

    #[test]
    fn any_number_of_callers_causes_a_bounded_number_of_records_and_all_are_counted() {
        let (mut counts, now) = (RefusalCounts::default(), Instant::now());
        for uid in 0..10_000 {
            counts.add(refusal(uid), None, Timestamp::UNIX_EPOCH, now);
        }
        let events = counts.take(now, false);
        assert_eq!((events.len(), count(&events)), (KINDS + 1, 10_000));
    }

    #[test]
    fn remaining_refusals_are_returned_at_the_end() {
        let (mut counts, now) = (RefusalCounts::default(), Instant::now());
        counts.add(refusal(1), None, Timestamp::UNIX_EPOCH, now);
        counts.take(now, false);
        counts.add(refusal(1), None, Timestamp::UNIX_EPOCH, now);
        assert_eq!(count(&counts.take(now, true)), 1);
    }
}
