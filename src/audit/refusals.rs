//! Refused requests, counted per kind. Callers can cause any number of them, so memory and reports
//! are bounded: the first of a kind is reported immediately, later ones as a count per period.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::Event;
use crate::model::{KeyringName, SecretName};

/// The shortest time between two reports of one kind.
const PERIOD: Duration = Duration::from_secs(60);
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

/// Refusals of one kind since the last report, or of all kinds that aren't told apart.
#[derive(Debug)]
pub struct Refused<D> {
    /// How many there were.
    pub count: u64,
    /// When the first one was.
    pub first: Timestamp,
    /// When the last one was.
    pub last: Timestamp,
    /// More about the last one.
    pub detail: D,
}

/// The refusals of one kind, or of all kinds beyond [`KINDS`].
struct Count<D> {
    refused: Option<Refused<D>>,
    due: Instant,
}

impl<D> Count<D> {
    fn new(due: Instant) -> Self {
        Self { refused: None, due }
    }

    fn add(&mut self, detail: D, now: Timestamp) {
        let refused = self.refused.take();
        self.refused = Some(Refused {
            count: refused.as_ref().map_or(0, |refused| refused.count) + 1,
            first: refused.map_or(now, |refused| refused.first),
            last: now,
            detail,
        });
    }

    /// Returns what is due at `now`, if anything.
    fn take(&mut self, now: Instant) -> Option<Refused<D>> {
        let refused = self.refused.take_if(|_| now >= self.due)?;
        self.due = now + PERIOD;
        Some(refused)
    }
}

/// Refusals of kinds `K` that are not reported yet, with a detail of the last one of each.
pub struct RefusalCounts<K, D> {
    kinds: BTreeMap<K, Count<D>>,
    others: Option<Count<D>>,
}

impl<K, D> Default for RefusalCounts<K, D> {
    fn default() -> Self {
        Self {
            kinds: BTreeMap::new(),
            others: None,
        }
    }
}

impl<K: Ord + Clone, D> RefusalCounts<K, D> {
    /// Counts a refusal. Returns whether it is the first of its kind, which is due immediately.
    pub fn add(&mut self, kind: K, detail: D, at: Timestamp, now: Instant) -> bool {
        let is_known = self.kinds.contains_key(&kind);
        let has_room = is_known || self.kinds.len() < KINDS;
        let is_first = if has_room {
            !is_known
        } else {
            self.others.is_none()
        };
        let count = if has_room {
            self.kinds.entry(kind).or_insert_with(|| Count::new(now))
        } else {
            self.others.get_or_insert_with(|| Count::new(now))
        };
        count.add(detail, at);
        is_first
    }

    /// Returns the reports that are due at `now`, or all that remain if `everything` is set. The
    /// one without a kind is of all kinds that found no room.
    pub fn take(&mut self, now: Instant, everything: bool) -> Vec<(Option<K>, Refused<D>)> {
        let now = if everything { now + PERIOD } else { now };
        let mut due = Vec::new();
        for (kind, count) in &mut self.kinds {
            let refused = count.take(now);
            due.extend(refused.map(|refused| (Some(kind.clone()), refused)));
        }
        let of_others = self.others.as_mut().and_then(|count| count.take(now));
        due.extend(of_others.map(|refused| (None, refused)));
        // A kind without refusals for a period is dropped, which frees its slot.
        let is_alive = |count: &Count<D>| count.refused.is_some() || now < count.due;
        self.kinds.retain(|_, count| is_alive(count));
        self.others = self.others.take().filter(is_alive);
        due
    }

    /// Returns when the next report is due or the next kind can be dropped.
    pub fn next_due(&self) -> Option<Instant> {
        self.kinds
            .values()
            .chain(&self.others)
            .map(|count| count.due)
            .min()
    }
}

/// The event that reports refusals. `None` covers kinds that aren't told apart; the detail is
/// the last process that was refused.
pub(super) fn event(kind: Option<AccessRefusal>, refused: &Refused<Option<i32>>) -> Event {
    let event = Event::new("access.refused", refused.last)
        .with("count", refused.count)
        .with("first_at", refused.first.to_string())
        .with("last_at", refused.last.to_string());
    let event = match refused.detail {
        Some(pid) => event.with("last_pid", pid),
        None => event,
    };
    match kind {
        Some(kind) => kind.describe(event),
        None => event
            .with("code", "several")
            .with("callers", "more than are told apart"),
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

    type Counts = RefusalCounts<AccessRefusal, Option<i32>>;

    fn take(counts: &mut Counts, now: Instant, everything: bool) -> Vec<Event> {
        let due = counts.take(now, everything);
        due.into_iter()
            .map(|(kind, refused)| event(kind, &refused))
            .collect()
    }

    fn count(events: &[Event]) -> u64 {
        events
            .iter()
            .filter_map(|event| event.details["count"].as_u64())
            .sum()
    }

    #[test]
    fn the_first_refusal_is_due_immediately_and_later_ones_once_per_period() {
        let (mut counts, start) = (Counts::default(), Instant::now());
        let at = |second| Timestamp::from_second(second).expect("in range");
        assert!(counts.add(refusal(1), Some(7), at(1), start));
        assert_eq!(count(&take(&mut counts, start, false)), 1);
        for second in 2..1002 {
            assert!(!counts.add(refusal(1), Some(8), at(second), start));
        }
        assert!(take(&mut counts, start, false).is_empty());
        let events = take(&mut counts, start + PERIOD, false);
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
        assert!(take(&mut counts, start + 2 * PERIOD, false).is_empty());
        assert_eq!(counts.next_due(), None, "quiet kinds are dropped");
    }

    #[test]
    fn any_number_of_callers_causes_a_bounded_number_of_records_and_all_are_counted() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        for uid in 0..10_000 {
            counts.add(refusal(uid), None, Timestamp::UNIX_EPOCH, now);
        }
        let events = take(&mut counts, now, false);
        assert_eq!((events.len(), count(&events)), (KINDS + 1, 10_000));
    }

    #[test]
    fn remaining_refusals_are_returned_at_the_end() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        counts.add(refusal(1), None, Timestamp::UNIX_EPOCH, now);
        take(&mut counts, now, false);
        counts.add(refusal(1), None, Timestamp::UNIX_EPOCH, now);
        assert_eq!(count(&take(&mut counts, now, true)), 1);
    }
}
