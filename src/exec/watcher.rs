//! Watches the secrets. An event only triggers a read; the program is notified if values differ.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{bindings::SecretRef, log::log, plan::Plan, values::Values};
use crate::{
    client::{EventStream, Socket, StreamItem},
    model::SecretName,
};

/// A burst of changes is acted on after at most this many settle times.
const MAX_BURST: u32 = 10;
/// The delay between attempts to reach the sidecar: initial and maximum.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The data of a `secret` event.
#[derive(Deserialize)]
struct SecretChange {
    secret: String,
}

/// Starts to watch the secrets and returns a receiver of their values, which starts with `values`.
///
/// Must be called in a Tokio runtime.
pub(super) fn spawn(
    plan: &Plan,
    secrets: BTreeSet<SecretRef>,
    values: Arc<Values>,
) -> watch::Receiver<Arc<Values>> {
    let (sender, receiver) = watch::channel(values);
    let trigger = Arc::new(Notify::new());
    let names = secrets.iter().map(|secret| secret.name.clone()).collect();
    tokio::spawn(listen(
        EventStream::new(plan.socket.clone()),
        names,
        Arc::clone(&trigger),
    ));
    let refresher = Refresher {
        socket: plan.socket.clone(),
        secrets,
        settle: plan.settle,
        splay: plan.splay,
        trigger,
        sender,
    };
    tokio::spawn(refresher.run());
    receiver
}

/// Triggers a read for every event about `secrets`, and whenever an event may have been missed.
async fn listen(mut events: EventStream, secrets: BTreeSet<SecretName>, trigger: Arc<Notify>) {
    let mut pause = MIN_PAUSE;
    let mut is_lost = false;
    loop {
        match events.next().await {
            Ok(StreamItem::Connected) => {
                if std::mem::take(&mut is_lost) {
                    log("watching the sidecar for changes again");
                }
                pause = MIN_PAUSE;
                trigger.notify_one();
            }
            Ok(StreamItem::Event(event)) if event.kind == "secret" => {
                let is_selected = |change: SecretChange| {
                    secrets.iter().any(|name| name.as_str() == change.secret)
                };
                // An event that can't be parsed may be about these secrets.
                if serde_json::from_str(&event.data).map_or(true, is_selected) {
                    trigger.notify_one();
                }
            }
            Ok(StreamItem::Event(_)) => {}
            Ok(StreamItem::Disconnected(reason)) => {
                is_lost = true;
                log(format_args!(
                    "{reason}; the program keeps running, reconnecting to the sidecar"
                ));
            }
            Err(error) => {
                if !std::mem::replace(&mut is_lost, true) {
                    log(format_args!("can't watch the secrets for changes: {error}"));
                }
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

struct Refresher {
    socket: Socket,
    secrets: BTreeSet<SecretRef>,
    settle: Duration,
    splay: Duration,
    trigger: Arc<Notify>,
    sender: watch::Sender<Arc<Values>>,
}

impl Refresher {
    async fn run(self) {
        loop {
            self.trigger.notified().await;
            self.debounce().await;
            if let Some(values) = self.read().await
                && !self.sender.borrow().changed(&values).is_empty()
            {
                self.sender.send_replace(Arc::new(values));
            }
        }
    }

    /// Waits until the settle time passes without a trigger, so that a rotation of several
    /// secrets is one change.
    async fn debounce(&self) {
        let latest = Instant::now() + self.settle * MAX_BURST;
        while let Ok(Ok(())) =
            timeout_at(latest, timeout(self.settle, self.trigger.notified())).await
        {}
        sleep(self.splay.mul_f64(fastrand::f64())).await;
    }

    /// Reads the secrets with retries. Returns None if retrying is pointless until the next event.
    async fn read(&self) -> Option<Values> {
        let mut pause = MIN_PAUSE;
        let mut is_logged = false;
        loop {
            match Values::fetch(&self.socket, &self.secrets).await {
                Ok(values) => return Some(values),
                Err(error) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        log(format_args!(
                            "{error}; the program keeps its current values"
                        ));
                    }
                    if error.is_final() {
                        return None;
                    }
                }
            }
            // A trigger ends the pause: the error may be resolved.
            let _ = timeout(
                pause.mul_f64(0.5 + fastrand::f64()),
                self.trigger.notified(),
            )
            .await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}
