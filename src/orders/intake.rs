//! Fetches orders from the hub, and hands each to the desk of its keyring.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc::Sender, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{crypto::RolloutId, fleet::HubRollouts, model::KeyringName, rollout::SignedStart};

/// How long the hub may keep a request for orders.
const WAIT: Duration = Duration::from_secs(10);
/// The time between two requests while orders are looked at, or the hub doesn't answer.
const PAUSE: Duration = Duration::from_secs(1);
/// After this time, an order that is still waiting in the hub is handed over again.
const DECISION: Duration = Duration::from_secs(60);

/// Hands over orders until `stop` is cancelled.
pub(super) async fn distribute(
    hub: &HubRollouts,
    keyrings: &[KeyringName],
    desks: &BTreeMap<KeyringName, Sender<SignedStart>>,
    stop: &CancellationToken,
) {
    let mut handed: BTreeMap<RolloutId, Instant> = BTreeMap::new();
    let mut trouble = None;
    while !stop.is_cancelled() {
        let Some(waiting) = stop.run_until_cancelled(hub.waiting(keyrings, WAIT)).await else {
            return;
        };
        let orders = match waiting {
            Ok(orders) => {
                if trouble.take().is_some() {
                    tracing::info!(hub = hub.name(), "the hub answers again");
                }
                orders
            }
            Err(reason) => {
                if trouble.as_ref() != Some(&reason) {
                    tracing::warn!(hub = hub.name(), reason, "can't fetch orders");
                }
                trouble = Some(reason);
                stop.run_until_cancelled(sleep(PAUSE)).await;
                continue;
            }
        };
        // One that is not among them was decided: if it comes again, it is decided again.
        handed.retain(|id, since| {
            since.elapsed() < DECISION && orders.iter().any(|start| start.order.id == *id)
        });
        for start in orders {
            let id = start.order.id;
            let Some(desk) = desks.get(&start.order.keyring) else {
                continue;
            };
            if !handed.contains_key(&id) && desk.try_send(start).is_ok() {
                handed.insert(id, Instant::now());
            }
        }
        if !handed.is_empty() {
            stop.run_until_cancelled(sleep(PAUSE)).await;
        }
    }
}
