//! Whether an order may end the work at hand: only an emergency, once, and only while it is valid.
//! Those who carry orders could replay one.

use std::{cell::RefCell, collections::VecDeque};

use jiff::Timestamp;

use super::taken::TakenOrders;
use crate::{
    crypto::{KeyringId, RolloutId},
    model::KeyringName,
    rollout::{Intent, SignedStart, StartRefusal, StartRules},
    runner::KeptState,
};

/// How many refused emergencies are remembered.
const REMEMBERED: usize = 256;

/// What is known of emergencies without asking anyone.
pub(super) struct Gate {
    name: KeyringName,
    id: KeyringId,
    rules: StartRules,
    taken: TakenOrders,
    kept: KeptState,
    /// Those that were refused for what the manifest says, the oldest first.
    refused: RefCell<VecDeque<RolloutId>>,
}

/// What an emergency order may do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes first, and the work at hand ends.
    Preempts,
    /// Its rollout has begun here.
    Begun,
    /// It is no order to follow, for this reason.
    Refused(String),
}

impl Gate {
    pub(super) fn new(
        (name, id): (KeyringName, KeyringId),
        rules: StartRules,
        taken: TakenOrders,
        kept: KeptState,
    ) -> Self {
        Self {
            name,
            id,
            rules,
            taken,
            kept,
            refused: RefCell::default(),
        }
    }

    /// Judges an emergency order while other work is at hand.
    pub(super) fn judge(&self, start: &SignedStart, now: Timestamp) -> Verdict {
        let order = &start.order;
        let here = (&self.name, self.id);
        if let Err(refusal) = start.check_requester(&self.rules.requesters) {
            return Verdict::Refused(refusal.to_string());
        }
        match self.kept.read() {
            Ok(Some(last)) if last.id == order.id => return Verdict::Begun,
            Ok(_) => {}
            Err(error) => return Verdict::Refused(error.to_string()),
        }
        if let Err(refusal) = start.check_without_manifest(&self.rules, here, now) {
            return Verdict::Refused(refusal.to_string());
        }
        match self.taken.contains(order) {
            Ok(false) if !self.refused.borrow().contains(&order.id) => Verdict::Preempts,
            Ok(_) => Verdict::Refused(StartRefusal::Taken.to_string()),
            Err(reason) => Verdict::Refused(reason),
        }
    }

    /// Remembers that an order was refused once it was looked at.
    pub(super) fn refuse(&self, id: RolloutId) {
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= REMEMBERED {
            refused.pop_front();
        }
        refused.push_back(id);
    }
}

pub(super) fn is_emergency(start: &SignedStart) -> bool {
    matches!(start.order.intent, Intent::ReplaceCompromised { .. })
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;
    use crate::{
        crypto::{Dek, SigningKey},
        model::{KekScope, SignerKey},
        rollout::{Requester, StartOrder, Strategy},
    };

    const KEYRING: KeyringId = KeyringId([1; 16]);

    fn time() -> Timestamp {
        Timestamp::from_second(1_700_000_000).expect("in range")
    }

    fn key() -> SigningKey {
        Dek::generate().expect("random").succession_key()
    }

    fn gate(folder: &tempfile::TempDir, ann: &SigningKey) -> Gate {
        let rules = StartRules {
            requesters: vec![SignerKey(ann.public_key())],
            approvals: None,
            backup: None,
            keks: KekScope::Any,
            versions_per_day: 4,
        };
        let name = "demo".parse().expect("a name");
        let taken = TakenOrders::in_folder(folder.path(), KEYRING);
        let kept = KeptState::in_folder(folder.path(), KEYRING);
        Gate::new((name, KEYRING), rules, taken, kept)
    }

    fn order(id: u8) -> StartOrder {
        StartOrder {
            id: RolloutId([id; 16]),
            keyring: "demo".parse().expect("a name"),
            keyring_id: KEYRING,
            intent: Intent::ReplaceCompromised { version: 1 },
            strategy: Strategy::built_in("quick").expect("built in"),
            requester: Requester {
                name: "ann".into(),
                key: None,
            },
            not_after: time().checked_add(1.hour()).expect("in range"),
        }
    }

    #[test]
    fn an_emergency_ends_other_work_once_and_while_it_is_valid() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ann, eve) = (key(), key());
        let gate = gate(&folder, &ann);
        let start = order(1).sign(&ann);
        assert_eq!(gate.judge(&start, time()), Verdict::Preempts);

        let refused = |gate: &Gate, start: &SignedStart, now, words: &str| {
            let Verdict::Refused(reason) = gate.judge(start, now) else {
                panic!("not refused: {words}")
            };
            assert!(reason.contains(words), "{reason}");
        };
        let by_eve = order(2).sign(&eve);
        refused(&gate, &by_eve, time(), "takes no orders by");
        let later = time().checked_add(2.hours()).expect("in range");
        refused(&gate, &start, later, "was valid until");
        let other = StartOrder {
            keyring_id: KeyringId([2; 16]),
            ..order(3)
        };
        refused(&gate, &other.sign(&ann), time(), "is for keyring");
        let mut changed = order(4).sign(&ann);
        changed.order.intent = Intent::ReplaceCompromised { version: 2 };
        refused(&gate, &changed, time(), "signature is not valid");

        // A replay, by a hub whose database was restored.
        assert_eq!(gate.taken.take(&start.order, time()), Ok(true));
        refused(&gate, &start, time(), "was taken before");
        // One that only the manifest showed to be void.
        let void = order(5).sign(&ann);
        gate.refuse(void.order.id);
        refused(&gate, &void, time(), "was taken before");
    }
}
