//! Refusals, counted by who was refused what. A caller can cause as many as he likes, so what is kept and written of them is bounded:
//! the first of a kind is recorded at once, those after it as a count, once a period.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::Event;
use crate::model::{KeyringName, SecretName};

/// How often a kind of refusal is recorded at most.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// How many kinds are told apart.
const KINDS: usize = 256;

/// Who was refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A process, by the ids that the kernel gives (SO_PEERCRED, unix(7)).
    Process {
        /// Its effective user id when it connected.
        uid: u32,
        /// Its effective group id when it connected.
        gid: u32,
    },
    /// A holder of the TCP listener's token.
    TokenHolder,
    /// Somebody on the TCP listener who showed no token, or a wrong one.
    Stranger,
}

/// A kind of refusal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The answer's code (docs/errors.md).
    pub code: &'static str,
    /// The keyring, if it was any one's.
    pub keyring: Option<KeyringName>,
    /// The secret, if it was any.
    pub secret: Option<SecretName>,
    /// What was asked for.
    pub operation: Option<&'static str>,
    /// The key version that a ciphertext named, if it is why.
    pub version: Option<u32>,
    /// Who asked.
    pub who: Who,
}

/// What is known of one kind, or of all that are too many to tell apart.
struct Tally {
    /// Since it was last recorded.
    count: u64,
    first: Timestamp,
    last: Timestamp,
    /// The process that asked last.
    pid: Option<i32>,
    due: Instant,
}

impl Tally {
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

    /// The record that is due, if any.
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

/// All refusals that aren't recorded yet.
#[derive(Default)]
pub(super) struct Tallies {
    kinds: BTreeMap<Refusal, Tally>,
    others: Option<Tally>,
}

impl Tallies {
    /// Counts one, and says whether it is the first of its kind: then it is due now.
    pub(super) fn add(
        &mut self,
        refusal: Refusal,
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
        let tally = if has_room {
            self.kinds
                .entry(refusal)
                .or_insert_with(|| Tally::new(at, now))
        } else {
            self.others.get_or_insert_with(|| Tally::new(at, now))
        };
        tally.add(pid, at);
        is_first
    }

    /// The records that are due at `now`, or all that would ever be with `everything`.
    pub(super) fn take(&mut self, now: Instant, everything: bool) -> Vec<Event> {
        let now = if everything { now + PERIOD } else { now };
        let mut events = Vec::new();
        for (refusal, tally) in &mut self.kinds {
            events.extend(tally.take(now).map(|event| refusal.describe(event)));
        }
        let of_others = self.others.as_mut().and_then(|tally| tally.take(now));
        events.extend(of_others.map(|event| {
            event
                .with("code", "several")
                .with("callers", "more than are told apart")
        }));
        // One that was quiet for a period is forgotten, which makes room.
        let is_alive = |tally: &Tally| tally.count > 0 || now < tally.due;
        self.kinds.retain(|_, tally| is_alive(tally));
        self.others = self.others.take().filter(is_alive);
        events
    }

    /// When the next record is due, or a kind to be forgotten.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.kinds
            .values()
            .chain(&self.others)
            .map(|tally| tally.due)
            .min()
    }
}

impl Refusal {
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
        match self.who {
            Who::Process { uid, gid } => event.with("uid", uid).with("gid", gid),
            Who::TokenHolder => event.with("caller", "token"),
            Who::Stranger => event.with("caller", "unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(uid: u32) -> Refusal {
        let keyring = Some("demo".parse().expect("name"));
        let who = Who::Process { uid, gid: 1 };
        Refusal {
            code: "forbidden",
            keyring,
            secret: None,
            operation: Some("decrypt"),
            version: None,
            who,
        }
    }

    fn count(events: &[Event]) -> u64 {
        events
            .iter()
            .filter_map(|event| event.details["count"].as_u64())
            .sum()
    }

    #[test]
    fn the_first_is_due_at_once_and_the_rest_once_a_period() {
        let (mut tallies, start) = (Tallies::default(), Instant::now());
        let at = |second| Timestamp::from_second(second).expect("in range");
        assert!(tallies.add(refusal(1), Some(7), at(1), start));
        assert_eq!(count(&tallies.take(start, false)), 1);
        for second in 2..1002 {
            assert!(!tallies.add(refusal(1), Some(8), at(second), start));
        }
        assert!(tallies.take(start, false).is_empty());
        let events = tallies.take(start + PERIOD, false);
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
        assert!(tallies.take(start + 2 * PERIOD, false).is_empty());
        assert_eq!(tallies.next_due(), None, "quiet ones are forgotten");
    }

    #[test]
    fn callers_without_number_cost_a_bounded_number_of_records_and_none_goes_uncounted() {
        let (mut tallies, now) = (Tallies::default(), Instant::now());
        for uid in 0..10_000 {
            tallies.add(refusal(uid), None, Timestamp::UNIX_EPOCH, now);
        }
        let events = tallies.take(now, false);
        assert_eq!((events.len(), count(&events)), (KINDS + 1, 10_000));
    }

    #[test]
    fn whatever_waits_is_given_up_at_the_end() {
        let (mut tallies, now) = (Tallies::default(), Instant::now());
        tallies.add(refusal(1), None, Timestamp::UNIX_EPOCH, now);
        tallies.take(now, false);
        tallies.add(refusal(1), None, Timestamp::UNIX_EPOCH, now);
        assert_eq!(count(&tallies.take(now, true)), 1);
    }
}
