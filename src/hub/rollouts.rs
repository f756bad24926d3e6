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
/// The longest order, in bytes.
pub(super) const MAX_ORDER: usize = 256 << 10;
/// The longest time for which a request for orders waits, in seconds.
pub(super) const MAX_WAIT: u64 = 30;
/// How many orders are remembered, decided or not.
const MAX_ORDERS: usize = 256;
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
    journals: BTreeMap<KeyringName, Bytes>,
}

struct KeptOrder {
    start: SignedStart,
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

    /// Takes an order in for a signer. To repeat it changes nothing.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if another order has its id; [`Code::Overloaded`].
    pub(super) fn submit(
        &self,
        start: SignedStart,
        now: Timestamp,
    ) -> Result<OrderStatus, Problem> {
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
        if kept.orders.len() >= MAX_ORDERS {
            kept.forget(now)?;
        }
        let order = KeptOrder {
            start,
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
        let journal = self.kept().journals.get(keyring).cloned();
        journal.ok_or_else(|| {
            Problem::new(
                Code::NoSuchRollout,
                "the hub has no rollout of this keyring",
            )
        })
    }

    /// Replaces the journal of a keyring. Callers that are no signers may only add requests.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`] if it isn't as expected; [`Code::Forbidden`];
    /// [`Code::InvalidRequest`]; [`Code::Overloaded`].
    pub(super) fn replace(
        &self,
        keyring: KeyringName,
        expected: &Expected,
        new: Bytes,
        is_signer: bool,
    ) -> Result<(), Problem> {
        let parsed = parse(&new)?;
        let mut kept = self.kept();
        let present = kept.journals.get(&keyring);
        let is_expected = match (present, expected) {
            (None, Expected::Nothing) => true,
            (Some(present), Expected::Tag(tag)) => tag_of(present) == *tag,
            _ => false,
        };
        if !is_expected {
            return Err(Problem::new(
                Code::PreconditionFailed,
                "the journal was changed; read it again",
            ));
        }
        let before = present.map(|present| parse(present)).transpose()?;
        if !is_signer && !before.is_some_and(|before| only_adds_requests(before, parsed)) {
            return Err(Problem::new(
                Code::Forbidden,
                "only a signer may change a journal; operators add requests to it",
            ));
        }
        if present.is_none() && kept.journals.len() >= MAX_JOURNALS {
            let detail = format!("{MAX_JOURNALS} keyrings have a journal; use another hub");
            return Err(Problem::new(Code::Overloaded, detail));
        }
        kept.journals.insert(keyring, new);
        Ok(())
    }
}

impl Kept {
    fn order(&mut self, id: RolloutId) -> Option<&mut KeptOrder> {
        let mut orders = self.orders.iter_mut();
        orders.find(|order| order.start.order.id == id)
    }

    fn waiting(&self, keyrings: &[KeyringName]) -> Vec<SignedStart> {
        let orders = self.orders.iter();
        orders
            .filter(|order| order.outcome == OrderOutcome::Waiting)
            .map(|order| &order.start)
            .filter(|start| keyrings.contains(&start.order.keyring))
            .cloned()
            .collect()
    }

    /// Makes room: forgets the oldest order that was decided, or that is void.
    fn forget(&mut self, now: Timestamp) -> Result<(), Problem> {
        let is_done = |order: &KeptOrder| {
            order.outcome != OrderOutcome::Waiting || order.start.order.not_after < now
        };
        let Some(oldest) = self.orders.iter().position(is_done) else {
            let detail = format!("{MAX_ORDERS} orders wait for a signer; is one running?");
            return Err(Problem::new(Code::Overloaded, detail));
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

/// Returns whether all that differs is requests after those that there were.
fn only_adds_requests(mut before: Value, mut after: Value) -> bool {
    let take = |journal: &mut Value| match journal["requests"].take() {
        Value::Array(requests) => requests,
        _ => Vec::new(),
    };
    let (old, new) = (take(&mut before), take(&mut after));
    before == after && new.starts_with(&old)
}

#[cfg(test)]
mod tests {
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
            not_after: time(),
        };
        order.sign(&Dek::generate().expect("random").succession_key())
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
            rollouts.submit(other, time()).map(drop)?;
            rollouts.submit(order(1, "demo"), time())
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
        rollouts.submit(first.clone(), time()).expect("taken in");
        rollouts
            .decide(first.order.id, OrderOutcome::Taken)
            .expect("known");
        let again = rollouts.submit(first, time()).expect("known");
        assert_eq!(again.outcome, OrderOutcome::Taken);
        let other = rollouts.submit(order(1, "demo"), time());
        assert_eq!(code(other), Some(Code::InvalidRequest));
    }

    #[test]
    fn orders_are_bounded_and_void_ones_give_way() {
        let rollouts = Rollouts::default();
        for id in 0..=u8::MAX {
            rollouts.submit(order(id, "demo"), time()).expect("room");
        }
        let mut more = order(0, "demo");
        more.order.id = RolloutId([0x17; 16]);
        more.order.id.0[0] = 1;
        let full = rollouts.submit(more.clone(), time());
        assert_eq!(code(full), Some(Code::Overloaded));
        let later = time().checked_add(jiff::SignedDuration::from_secs(1));
        rollouts
            .submit(more, later.expect("in range"))
            .expect("one was void");
        assert_eq!(
            code(rollouts.outcome(RolloutId([0; 16]))),
            Some(Code::NoSuchRollout)
        );
    }

    #[test]
    fn a_journal_is_replaced_as_expected_and_operators_only_add_requests() {
        let rollouts = Rollouts::default();
        let bytes = |value: &Value| Bytes::from(value.to_string());
        let replace = |expected: &Expected, value: &Value, is_signer| {
            code(rollouts.replace(name("demo"), expected, bytes(value), is_signer))
        };
        let first = json!({"state": 1, "requests": [1]});
        assert_eq!(
            replace(&Expected::Nothing, &first, false),
            Some(Code::Forbidden)
        );
        assert_eq!(
            replace(&Expected::Nothing, &json!([]), true),
            Some(Code::InvalidRequest)
        );
        assert_eq!(replace(&Expected::Nothing, &first, true), None);
        assert_eq!(
            replace(&Expected::Nothing, &first, true),
            Some(Code::PreconditionFailed)
        );
        let stored = rollouts.journal(&name("demo")).expect("there");
        let tag = Expected::Tag(tag_of(&stored));
        for forged in [
            json!({"state": 2, "requests": [1, 2]}),
            json!({"state": 1, "requests": [2]}),
            json!({"state": 1}),
            json!({"state": 1, "requests": [1], "runner": null}),
        ] {
            assert_eq!(
                replace(&tag, &forged, false),
                Some(Code::Forbidden),
                "{forged}"
            );
        }
        assert_eq!(
            replace(&tag, &json!({"state": 1, "requests": [1, 2]}), false),
            None
        );
        assert_eq!(replace(&tag, &first, true), Some(Code::PreconditionFailed));
        let unknown = rollouts.journal(&name("other"));
        assert_eq!(code(unknown), Some(Code::NoSuchRollout));
    }
}
