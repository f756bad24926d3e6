//! Start orders and journals of rollouts: what requesters and signers exchange. Nothing here is
//! believed by a signer, which verifies orders and keeps its own state, so memory is enough:
//! after a restart, signers write the journals of active rollouts again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::requests::{LeftRequest, check_additions, check_order, left};
use crate::{
    crypto::{RolloutId, fingerprint},
    encoding::to_hex,
    http::problem::Problem,
    model::KeyringName,
    rollout::SignedStart,
    wire::{
        Code,
        orders::{OrderOutcome, OrderStatus, WaitingOrders},
    },
};

/// The longest journal, in bytes.
pub(super) const MAX_JOURNAL: usize = 8 << 20;
/// The longest time for which a request for orders waits, in seconds.
pub(super) const MAX_WAIT: u64 = 30;
/// How many orders of one operator are remembered, decided or not.
const MOST_OF_ONE: usize = 32;
/// How many orders a signer is handed at a time.
const HANDED: usize = 16;
/// How many keyrings have a journal.
const MAX_JOURNALS: usize = 256;

/// Orders and journals.
#[derive(Default)]
pub(super) struct Rollouts {
    kept: Mutex<Kept>,
    arrived: Notify,
}

#[derive(Default)]
struct Kept {
    /// The oldest first.
    orders: VecDeque<KeptOrder>,
    journals: BTreeMap<KeyringName, Journal>,
}

struct Journal {
    bytes: Bytes,
    left: Vec<LeftRequest>,
}

struct KeptOrder {
    start: SignedStart,
    /// The operator who handed it in.
    by: String,
    outcome: OrderOutcome,
}

/// What a journal must be so that it is replaced (RFC 9110, 13.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// There is none.
    Nothing,
    /// The one with this entity tag.
    Tag(String),
}

impl Rollouts {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an order of the operator `by` in for a signer. To repeat it changes nothing.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if no signer could take it, or another order has its id;
    /// [`Code::Overloaded`] if too many orders of this operator wait.
    pub(super) fn submit(
        &self,
        start: SignedStart,
        by: &str,
        now: Timestamp,
    ) -> Result<OrderStatus, Problem> {
        check_order(&start, now)?;
        let mut kept = self.kept();
        if let Some(known) = kept.order(start.order.id) {
            if known.start == start {
                return Ok(known.status());
            }
            return Err(Problem::new(
                Code::InvalidRequest,
                "another order has this id; draw a random one",
            ));
        }
        kept.make_room(by, now)?;
        let order = KeptOrder {
            start,
            by: by.into(),
            outcome: OrderOutcome::Waiting,
        };
        let status = order.status();
        kept.orders.push_back(order);
        drop(kept);
        self.arrived.notify_waiters();
        Ok(status)
    }

    /// Returns what became of an order.
    ///
    /// # Errors
    /// [`Code::NoSuchRollout`]
    pub(super) fn outcome(&self, id: RolloutId) -> Result<OrderStatus, Problem> {
        let mut kept = self.kept();
        kept.order(id)
            .map(|order| order.status())
            .ok_or_else(no_order)
    }

    /// Records what a signer made of an order.
    ///
    /// # Errors
    /// [`Code::NoSuchRollout`]
    pub(super) fn decide(
        &self,
        id: RolloutId,
        outcome: OrderOutcome,
    ) -> Result<OrderStatus, Problem> {
        let mut kept = self.kept();
        let order = kept.order(id).ok_or_else(no_order)?;
        order.outcome = outcome;
        Ok(order.status())
    }

    /// Waits until there is an order for one of these keyrings, at most for `wait`.
    pub(super) async fn waiting(
        &self,
        keyrings: &[KeyringName],
        wait: Duration,
    ) -> WaitingOrders<SignedStart> {
        let deadline = Instant::now() + wait;
        loop {
            // Before the look, so that an order that arrives after it is noticed.
            let mut arrived = Box::pin(self.arrived.notified());
            arrived.as_mut().enable();
            let orders = self.kept().waiting(keyrings);
            if !orders.is_empty() || timeout_at(deadline, arrived).await.is_err() {
                return WaitingOrders { orders };
            }
        }
    }

    /// Returns the journal of a keyring.
    ///
    /// # Errors
    /// [`Code::NoSuchRollout`]
    pub(super) fn journal(&self, keyring: &KeyringName) -> Result<Bytes, Problem> {
        let kept = self.kept();
        let journal = kept.journals.get(keyring);
        let bytes = journal.map(|journal| journal.bytes.clone());
        bytes.ok_or_else(|| {
            Problem::new(
                Code::NoSuchRollout,
                "the hub has no rollout of this keyring",
            )
        })
    }

    /// Replaces the journal of a keyring. An operator (`by`) may only add requests; a signer is
    /// `None`.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`] if it isn't as expected; [`Code::Forbidden`];
    /// [`Code::InvalidRequest`]; [`Code::Overloaded`].
    pub(super) fn replace(
        &self,
        keyring: KeyringName,
        expected: &Expected,
        new: Bytes,
        by: Option<&str>,
    ) -> Result<(), Problem> {
        let parsed = parse(&new)?;
        let mut kept = self.kept();
        let present = kept.journals.get(&keyring);
        let is_expected = match (present, expected) {
            (None, Expected::Nothing) => true,
            (Some(present), Expected::Tag(tag)) => tag_of(&present.bytes) == *tag,
            _ => false,
        };
        if !is_expected {
            return Err(Problem::new(
                Code::PreconditionFailed,
                "the journal was changed; read it again",
            ));
        }
        let known = present.map_or(&[][..], |present| &present.left);
        if let Some(by) = by {
            let present = present.ok_or_else(|| {
                Problem::new(
                    Code::Forbidden,
                    "only a signer may begin a journal; operators add requests to it",
                )
            })?;
            check_additions(known, parse(&present.bytes)?, parsed.clone(), by)?;
        }
        let left = left(known, &parsed, by);
        if present.is_none() && kept.journals.len() >= MAX_JOURNALS {
            let detail = format!("{MAX_JOURNALS} keyrings have a journal; use another hub");
            return Err(Problem::new(Code::Overloaded, detail));
        }
        kept.journals.insert(keyring, Journal { bytes: new, left });
        Ok(())
    }
}

impl Kept {
    fn order(&mut self, id: RolloutId) -> Option<&mut KeptOrder> {
        let mut orders = self.orders.iter_mut();
        orders.find(|order| order.start.order.id == id)
    }

    /// The oldest order of each operator, then the second one of each, and so on, so that no one's
    /// orders wait for all of another one's.
    fn waiting(&self, keyrings: &[KeyringName]) -> Vec<SignedStart> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut waiting: Vec<(usize, &SignedStart)> = self
            .orders
            .iter()
            .filter(|order| order.outcome == OrderOutcome::Waiting)
            .filter(|order| keyrings.contains(&order.start.order.keyring))
            .map(|order| {
                let count = counts.entry(&order.by).or_default();
                *count += 1;
                (*count, &order.start)
            })
            .collect();
        waiting.sort_by_key(|(turn, _)| *turn);
        let handed = waiting.into_iter().take(HANDED);
        handed.map(|(_, start)| start.clone()).collect()
    }

    /// Makes room for another order of `by`: forgets the oldest of theirs that was decided or, if
    /// there is none, that is void.
    fn make_room(&mut self, by: &str, now: Timestamp) -> Result<(), Problem> {
        let orders = self.orders.iter();
        if orders.filter(|order| order.by == by).count() < MOST_OF_ONE {
            return Ok(());
        }
        let oldest = |is_done: &dyn Fn(&KeptOrder) -> bool| {
            let mut orders = self.orders.iter();
            orders.position(|order| order.by == by && is_done(order))
        };
        let oldest = oldest(&|order| order.outcome != OrderOutcome::Waiting)
            .or_else(|| oldest(&|order| order.start.order.not_after < now));
        let Some(oldest) = oldest else {
            let detail =
                format!("{MOST_OF_ONE} orders of this operator wait for a signer; is one running?");
            return Err(Problem::new(Code::Overloaded, detail).retry_after(10));
        };
        self.orders.remove(oldest);
        Ok(())
    }
}

impl KeptOrder {
    fn status(&self) -> OrderStatus {
        OrderStatus {
            outcome: self.outcome.clone(),
        }
    }
}

/// The entity tag of a journal: the SHA-256 of its bytes.
pub(super) fn tag_of(journal: &[u8]) -> String {
    format!("\"{}\"", to_hex(&fingerprint(journal)))
}

fn no_order() -> Problem {
    Problem::new(Code::NoSuchRollout, "the hub has no such order")
}

fn parse(journal: &[u8]) -> Result<Value, Problem> {
    match serde_json::from_slice(journal) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(Problem::new(
            Code::InvalidRequest,
            "the body is not a rollout's journal",
        )),
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use serde_json::json;

    use super::*;
    use crate::{
        crypto::{Dek, KeyringId},
        rollout::{Intent, Requester, StartOrder, Strategy},
    };

    fn time() -> Timestamp {
        Timestamp::from_second(1_700_000_000).expect("in range")
    }

    fn name(text: &str) -> KeyringName {
        text.parse().expect("a name")
    }

    fn order(id: u8, keyring: &str) -> SignedStart {
        let order = StartOrder {
            id: RolloutId([id; 16]),
            keyring: name(keyring),
            keyring_id: KeyringId([1; 16]),
            intent: Intent::Rotate,
            strategy: Strategy::built_in("quick").expect("built in"),
            requester: Requester {
                name: "ann".into(),
                key: None,
            },
            not_after: time().checked_add(1.hour()).expect("in range"),
        };
        order.sign(&Dek::generate().expect("random").succession_key())
    }

    /// Hands an order in as Ann.
    fn submit(rollouts: &Rollouts, start: SignedStart) -> Result<OrderStatus, Problem> {
        rollouts.submit(start, "ann", time())
    }

    fn code<T>(result: Result<T, Problem>) -> Option<Code> {
        result.err().map(|problem| problem.code)
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_waits_for_the_signer_of_its_keyring() {
        let rollouts = Rollouts::default();
        let (asking, other) = ([name("demo")], order(2, "other"));
        let none = rollouts.waiting(&asking, Duration::from_secs(10)).await;
        assert!(none.orders.is_empty());
        let wait = rollouts.waiting(&asking, Duration::from_secs(10));
        let submit = async {
            submit(&rollouts, other).map(drop)?;
            submit(&rollouts, order(1, "demo"))
        };
        let (waiting, submitted) = tokio::join!(wait, submit);
        assert_eq!(submitted.expect("taken in").outcome, OrderOutcome::Waiting);
        assert_eq!(waiting.orders.len(), 1);

        let id = RolloutId([1; 16]);
        let refused = OrderOutcome::Refused("late".into());
        rollouts.decide(id, refused.clone()).expect("known");
        assert_eq!(rollouts.outcome(id).expect("known").outcome, refused);
        let none = rollouts.waiting(&asking, Duration::ZERO).await;
        assert!(none.orders.is_empty());
        let unknown = rollouts.outcome(RolloutId([3; 16]));
        assert_eq!(code(unknown), Some(Code::NoSuchRollout));
    }

    #[test]
    fn an_order_may_be_repeated_and_not_replaced() {
        let rollouts = Rollouts::default();
        let first = order(1, "demo");
        submit(&rollouts, first.clone()).expect("taken in");
        rollouts
            .decide(first.order.id, OrderOutcome::Taken)
            .expect("known");
        let again = submit(&rollouts, first).expect("known");
        assert_eq!(again.outcome, OrderOutcome::Taken);
        let other = submit(&rollouts, order(1, "demo"));
        assert_eq!(code(other), Some(Code::InvalidRequest));
    }

    #[test]
    fn the_orders_of_one_operator_are_bounded_and_decided_ones_give_way() {
        let rollouts = Rollouts::default();
        let most = u8::try_from(MOST_OF_ONE).expect("few");
        for id in 0..most {
            submit(&rollouts, order(id, "demo")).expect("room");
        }
        let more = order(most, "demo");
        let full = submit(&rollouts, more.clone());
        assert_eq!(code(full), Some(Code::Overloaded));
        let ben = rollouts.submit(order(100, "demo"), "ben", time());
        ben.expect("places of his own");
        let handed = rollouts.kept().waiting(&[name("demo")]);
        let ids: Vec<u8> = handed.iter().map(|start| start.order.id.0[0]).collect();
        assert_eq!((handed.len(), &ids[..3]), (HANDED, &[0, 100, 1][..]));

        let decided = RolloutId([5; 16]);
        rollouts
            .decide(decided, OrderOutcome::Taken)
            .expect("known");
        submit(&rollouts, more).expect("one was decided");
        let outcome = |id| rollouts.outcome(RolloutId([id; 16]));
        assert_eq!(code(outcome(5)), Some(Code::NoSuchRollout));
        outcome(0).expect("it waits");
        let later = time().checked_add(2.hours()).expect("in range");
        let mut late = order(most + 1, "demo").order;
        late.not_after = later.checked_add(1.hour()).expect("in range");
        let late = late.sign(&Dek::generate().expect("random").succession_key());
        rollouts.submit(late, "ann", later).expect("one was void");
        assert_eq!(code(outcome(0)), Some(Code::NoSuchRollout));
    }

    #[test]
    fn an_order_that_no_signer_could_take_is_refused() {
        let rollouts = Rollouts::default();
        let mut forged = order(1, "demo");
        forged.order.intent = Intent::ReplaceCompromised { version: 1 };
        let mut anonymous = order(1, "demo");
        anonymous.order.requester.key = None;
        let key = Dek::generate().expect("random").succession_key();
        let changed = |change: fn(&mut StartOrder)| {
            let mut order = order(1, "demo").order;
            change(&mut order);
            order.sign(&key)
        };
        let late = changed(|order| order.not_after = time().checked_sub(1.hour()).expect("valid"));
        let long =
            changed(|order| order.not_after = time().checked_add(48.hours()).expect("valid"));
        let huge = changed(|order| {
            order.strategy.max_unavailable = vec!["x".repeat(1000); 300];
        });
        for (start, words) in [
            (forged, "signature"),
            (anonymous, "without a key"),
            (late, "was valid until"),
            (long, "may be for"),
            (huge, "bytes"),
        ] {
            let problem = submit(&rollouts, start).expect_err(words);
            assert_eq!(problem.code, Code::InvalidRequest);
            let shown = format!("{problem:?}");
            assert!(shown.contains(words), "{shown}");
        }
    }

    #[test]
    fn a_journal_is_replaced_as_expected_and_operators_only_add_requests() {
        let rollouts = Rollouts::default();
        let bytes = |value: &Value| Bytes::from(value.to_string());
        let replace = |expected: &Expected, value: &Value, by| {
            code(rollouts.replace(name("demo"), expected, bytes(value), by))
        };
        let (ann, signer) = (Some("ann"), None);
        let first = json!({"state": 1, "requests": []});
        let nothing = &Expected::Nothing;
        assert_eq!(replace(nothing, &first, ann), Some(Code::Forbidden));
        assert_eq!(
            replace(nothing, &json!([]), signer),
            Some(Code::InvalidRequest)
        );
        assert_eq!(replace(nothing, &first, signer), None);
        assert_eq!(
            replace(nothing, &first, signer),
            Some(Code::PreconditionFailed)
        );
        let stored = rollouts.journal(&name("demo")).expect("there");
        let tag = Expected::Tag(tag_of(&stored));
        let forged = json!({"state": 2, "requests": []});
        assert_eq!(replace(&tag, &forged, ann), Some(Code::Forbidden));
        let malformed = json!({"state": 1, "requests": [1]});
        assert_eq!(replace(&tag, &malformed, ann), Some(Code::InvalidRequest));
        let request = json!({"asked": {
            "rollout": RolloutId([1; 16]), "step": 0, "verb": "pause", "by": "ann",
        }});
        let asked = json!({"state": 1, "requests": [request]});
        assert_eq!(replace(&tag, &asked, ann), None);
        assert_eq!(
            replace(&tag, &first, signer),
            Some(Code::PreconditionFailed)
        );
        let unknown = rollouts.journal(&name("other"));
        assert_eq!(code(unknown), Some(Code::NoSuchRollout));
    }
}
