//! Tells requesters what becomes of their orders, through the hub.

use std::time::Duration;

use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::sleep,
};

use crate::{
    clock, crypto::RolloutId, fleet::HubRollouts, model::KeyringName, rollout::SignedStart,
    wire::orders::OrderOutcome,
};

/// How often the hub is told what became of an order.
const TELLS: u32 = 5;
/// The longest time between two tries.
const LONGEST: Duration = Duration::from_secs(2);
/// How many decisions wait for the hub. Orders whose decision it isn't told come again.
const WAITING: usize = 64;

/// Takes decisions, which wait until the hub answers. A rollout doesn't wait for that.
#[derive(Clone)]
pub(super) struct Teller {
    name: KeyringName,
    decisions: Sender<(RolloutId, OrderOutcome)>,
}

impl Teller {
    /// Creates a teller, and what passes its decisions on, as long as there is a clone of it.
    pub(super) fn new(
        name: &KeyringName,
        hub: &HubRollouts,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let (decisions, waiting) = mpsc::channel(WAITING);
        let teller = Self {
            name: name.clone(),
            decisions,
        };
        let (name, hub) = (name.clone(), hub.clone());
        let decide = async move |id, outcome: &OrderOutcome| hub.decide(id, outcome).await;
        (teller, pass_on(name, waiting, decide))
    }

    pub(super) fn refuse(&self, start: &SignedStart, reason: String) {
        tracing::warn!(
            keyring = %self.name, order = %start.order.id,
            requester = start.order.requester.key.map(|key| key.to_string()), reason,
            "refused an order"
        );
        self.tell(start, OrderOutcome::Refused(reason));
    }

    pub(super) fn tell(&self, start: &SignedStart, outcome: OrderOutcome) {
        if self.decisions.try_send((start.order.id, outcome)).is_err() {
            tracing::warn!(
                keyring = %self.name, order = %start.order.id,
                "too many decisions wait for the hub; the order comes again"
            );
        }
    }
}

async fn pass_on(
    name: KeyringName,
    mut waiting: Receiver<(RolloutId, OrderOutcome)>,
    decide: impl AsyncFn(RolloutId, &OrderOutcome) -> Result<(), String>,
) {
    while let Some((id, outcome)) = waiting.recv().await {
        for attempt in 1..=TELLS {
            let Err(reason) = decide(id, &outcome).await else {
                break;
            };
            tracing::warn!(keyring = %name, reason, "can't tell the hub of an order");
            sleep(clock::backoff(Duration::from_millis(100), attempt, LONGEST)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::{
        crypto::{Dek, KeyringId},
        rollout::{Intent, Requester, StartOrder, Strategy},
    };

    fn order(id: u8) -> SignedStart {
        let order = StartOrder {
            id: RolloutId([id; 16]),
            keyring: "demo".parse().expect("a name"),
            keyring_id: KeyringId([1; 16]),
            intent: Intent::Rotate,
            strategy: Strategy::built_in("quick").expect("built in"),
            requester: Requester {
                name: "ann".into(),
                key: None,
            },
            not_after: jiff::Timestamp::UNIX_EPOCH,
        };
        order.sign(&Dek::generate().expect("random").succession_key())
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_wait_for_a_hub_that_is_away_and_hold_up_nothing() {
        let (decisions, waiting) = mpsc::channel(WAITING);
        let name: KeyringName = "demo".parse().expect("a name");
        let teller = Teller {
            name: name.clone(),
            decisions,
        };
        // Not one of these waits, although nothing passes them on yet.
        teller.refuse(&order(1), "late".into());
        teller.tell(&order(2), OrderOutcome::Taken);
        for id in 3..=u8::MAX {
            teller.tell(&order(id), OrderOutcome::Taken);
        }
        drop(teller);
        let (told, away) = (RefCell::new(Vec::new()), RefCell::new(3));
        let decide = async |id: RolloutId, outcome: &OrderOutcome| {
            let mut away = away.borrow_mut();
            if *away > 0 {
                *away -= 1;
                return Err("no connection".to_owned());
            }
            told.borrow_mut().push((id, outcome.clone()));
            Ok(())
        };
        pass_on(name, waiting, decide).await;
        let told = told.into_inner();
        let first = (RolloutId([1; 16]), OrderOutcome::Refused("late".to_owned()));
        assert_eq!((told.len(), &told[0]), (WAITING, &first));
    }
}
