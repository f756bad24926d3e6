//! Follows the secrets: what is told of changes is a hint to read again, and only another value counts.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Plan, bindings::Piece, say, values::Values};
use crate::{
    client::{Feed, News, Socket},
    model::SecretName,
};

/// What never comes to rest counts after so many times the rest that was asked for.
const LONGEST_BURST: u32 = 10;
/// How long a sidecar that has no answer is left alone, at first and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// An event of the kind `secret`.
#[derive(Deserialize)]
struct Change {
    secret: String,
}

/// The values from now on, beginning with those that were read already. Needs a Tokio runtime.
pub(super) fn follow(
    plan: &Plan,
    pieces: BTreeSet<Piece>,
    values: Arc<Values>,
) -> watch::Receiver<Arc<Values>> {
    let (sender, receiver) = watch::channel(values);
    let hints = Arc::new(Notify::new());
    let secrets = pieces.iter().map(|piece| piece.secret.clone()).collect();
    tokio::spawn(listen(
        Feed::new(plan.socket.clone()),
        secrets,
        Arc::clone(&hints),
    ));
    let reader = Reader {
        socket: plan.socket.clone(),
        pieces,
        settle: plan.settle,
        splay: plan.splay,
        hints,
        sender,
    };
    tokio::spawn(reader.run());
    receiver
}

/// Gives a hint at every change of one of the secrets, and whenever one may have been missed.
async fn listen(mut feed: Feed, secrets: BTreeSet<SecretName>, hints: Arc<Notify>) {
    let mut pause = SHORTEST_PAUSE;
    let mut said = false;
    loop {
        match feed.next().await {
            Ok(News::Listening) => {
                if std::mem::take(&mut said) {
                    say("the sidecar tells of changes again");
                }
                pause = SHORTEST_PAUSE;
                hints.notify_one();
            }
            Ok(News::Event(event)) if event.kind == "secret" => {
                let is_ours =
                    |change: Change| secrets.iter().any(|name| name.as_str() == change.secret);
                // What isn't understood may be about ours.
                if serde_json::from_str(&event.data).map_or(true, is_ours) {
                    hints.notify_one();
                }
            }
            Ok(News::Event(_)) => {}
            Ok(News::Lost(reason)) => {
                said = true;
                say(format_args!(
                    "{reason}; the program goes on, and changes are taken up when the sidecar is back"
                ));
            }
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    say(format_args!("changes of secrets are not heard of: {error}"));
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

struct Reader {
    socket: Socket,
    pieces: BTreeSet<Piece>,
    settle: Duration,
    splay: Duration,
    hints: Arc<Notify>,
    sender: watch::Sender<Arc<Values>>,
}

impl Reader {
    async fn run(self) {
        loop {
            self.hints.notified().await;
            self.settled().await;
            if let Some(values) = self.read().await
                && !self.sender.borrow().changed(&values).is_empty()
            {
                self.sender.send_replace(Arc::new(values));
            }
        }
    }

    /// Waits until nothing more happens, so that a rotation of several secrets is one change.
    async fn settled(&self) {
        let latest = Instant::now() + self.settle * LONGEST_BURST;
        while let Ok(Ok(())) = timeout_at(latest, timeout(self.settle, self.hints.notified())).await
        {
        }
        sleep(self.splay.mul_f64(fastrand::f64())).await;
    }

    /// What the secrets are now; nothing if that can't be had until something changes.
    async fn read(&self) -> Option<Values> {
        let mut pause = SHORTEST_PAUSE;
        let mut said = false;
        loop {
            match Values::fetch(&self.socket, &self.pieces).await {
                Ok(values) => return Some(values),
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        say(format_args!(
                            "{error}; the program goes on with the values that it has"
                        ));
                    }
                    if error.is_final() {
                        return None;
                    }
                }
            }
            // A change of what was refused before is a reason to ask at once.
            let _ = timeout(pause.mul_f64(0.5 + fastrand::f64()), self.hints.notified()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
