//! Server-sent events (WHATWG HTML, §9.2) about changes of keyrings and secrets. Events contain no
//! keys and no values.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_stream::stream;
use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::description::{KeyringEvent, SecretEvent};
use crate::{
    clock::Clock,
    http::{
        account::Account,
        memory::{MemoryShare, overloaded},
        problem::Problem,
        share::Pool,
    },
    model::{KeyringName, Operation, SecretName},
    policy::{ActivePolicy, Caller, Policy},
    refresh::Keyring,
    secrets::{self, Secret, Secrets},
    wire::Code,
};

/// The longest silence on a stream, so that both ends notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How many events are kept for subscribers that reconnect.
const MAX_RECENT: usize = 256;
/// The longest wait for a takeover, because the system clock may be set meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// An event, serialized.
struct Event {
    number: u64,
    subject: Subject,
    text: Bytes,
}

/// What an event is about.
#[derive(Clone)]
enum Subject {
    Keyring(KeyringName),
    Secret(SecretName),
    /// A secret that is no longer there.
    GoneSecret(SecretName),
}

impl Subject {
    fn of(change: &secrets::SecretChange) -> Self {
        let name = change.secret.clone();
        match change.version {
            Some(_) => Self::Secret(name),
            None => Self::GoneSecret(name),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Keyring(_) => "keyring",
            Self::Secret(_) | Self::GoneSecret(_) => "secret",
        }
    }
}

/// Publishes changes to subscribers.
pub(crate) struct Events {
    /// Distinguishes the event numbers of one process from those of another.
    epoch: i64,
    keyrings: Vec<Arc<Keyring>>,
    secrets: Arc<Secrets>,
    recent: Mutex<VecDeque<Arc<Event>>>,
    sender: broadcast::Sender<Arc<Event>>,
    /// Half of the connections; the other half is for requests.
    places: Pool,
    heartbeat: Duration,
    clock: Clock,
}

impl Events {
    /// `connections` is the connection limit, and `idle` how long a connection may be silent.
    pub(crate) fn new(
        keyrings: Vec<Arc<Keyring>>,
        secrets: Arc<Secrets>,
        connections: usize,
        idle: Duration,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            epoch: clock.now().as_millisecond(),
            keyrings,
            secrets,
            recent: Mutex::default(),
            sender: broadcast::Sender::new(MAX_RECENT),
            places: Pool::new((connections / 2).max(1)),
            heartbeat: HEARTBEAT.min(idle / 2),
            clock,
        })
    }

    /// Publishes changes until `ending` is cancelled.
    pub(crate) fn watch(self: &Arc<Self>, ending: &CancellationToken) {
        let (events, changes) = (Arc::clone(self), self.secrets.changes());
        tokio::spawn(
            ending
                .clone()
                .run_until_cancelled_owned(async move { events.follow_secrets(changes).await }),
        );
        for keyring in &self.keyrings {
            let (events, keyring) = (Arc::clone(self), Arc::clone(keyring));
            tokio::spawn(
                ending.clone().run_until_cancelled_owned(async move {
                    events.follow_keyring(&keyring).await
                }),
            );
        }
    }

    async fn follow_secrets(&self, mut changes: broadcast::Receiver<secrets::SecretChange>) {
        loop {
            match changes.recv().await {
                Ok(change) => self.publish(Subject::of(&change), &SecretEvent::to_json(&change)),
                // Too many changes to report each: publish the current state instead.
                Err(RecvError::Lagged(_)) => {
                    for change in self.secret_states() {
                        self.publish(Subject::of(&change), &SecretEvent::to_json(&change));
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn secret_states(&self) -> Vec<secrets::SecretChange> {
        let change = |secret: Arc<Secret>| {
            let status = secret.status();
            let version = status.current.map(|current| current.version);
            // A deleted secret is reported; one that never had a value is not.
            let is_known = version.is_some() || secret.had_value();
            is_known.then(|| secrets::SecretChange {
                secret: secret.name().clone(),
                version,
                previous: status.previous,
            })
        };
        self.secrets.all().into_iter().filter_map(change).collect()
    }

    async fn follow_keyring(&self, keyring: &Keyring) {
        let mut generations = keyring.generations();
        let mut last = String::new();
        loop {
            generations.borrow_and_update();
            let now = self.clock.now();
            if let Some(state) = self.keyring_state(keyring)
                && state != last
            {
                self.publish(Subject::Keyring(keyring.name().clone()), &state);
                last = state;
            }
            let takeover = keyring
                .snapshot()
                .as_ref()
                .and_then(|snapshot| snapshot.table.next_takeover(now));
            let takeover = takeover.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
            match takeover {
                // An error means that the keyring was dropped.
                None => match generations.changed().await {
                    Ok(()) => {}
                    Err(_) => return,
                },
                Some(wait) => {
                    if let Ok(Err(_)) = timeout(wait.min(MAX_WAIT), generations.changed()).await {
                        return;
                    }
                }
            }
        }
    }

    fn keyring_state(&self, keyring: &Keyring) -> Option<String> {
        // Strings and numbers always serialize.
        serde_json::to_string(&KeyringEvent::of(keyring, self.clock.now())?).ok()
    }

    fn publish(&self, subject: Subject, data: &str) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let number = recent.back().map_or(1, |event| event.number + 1);
        let event = Arc::new(self.event(number, subject, data));
        if recent.len() == MAX_RECENT {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&event));
        // There may be no subscribers.
        let _ = self.sender.send(event);
    }

    fn event(&self, number: u64, subject: Subject, data: &str) -> Event {
        let text = format!(
            "id: {}-{number}\nevent: {}\ndata: {data}\n\n",
            self.epoch,
            subject.kind()
        );
        Event {
            number,
            subject,
            text: text.into(),
        }
    }

    /// Returns the events for a subscriber, until `draining` is cancelled. `last_id` is the last
    /// event that it received before.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        subscriber: Subscriber,
        last_id: Option<&str>,
        draining: CancellationToken,
    ) -> Result<impl Stream<Item = Result<Bytes, Problem>> + Send + use<>, Problem> {
        let place = self.place(&subscriber.account)?;
        let events = Arc::clone(self);
        let mut view = View::new(subscriber);
        let (mut missed, mut receiver) = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            (self.missed(&recent, last_id), self.sender.subscribe())
        };
        Ok(stream! {
            let _place = place;
            yield Ok(Bytes::from_static(b": sidekey\n\n"));
            // The newest event that the current state covers. The receiver may still have it.
            let mut covered = 0;
            while view.is_allowed() {
                let (backlog, share) = match missed.take() {
                    Some(missed) => (missed, MemoryShare::default()),
                    None => {
                        let (number, state) = events.current_state();
                        covered = number;
                        let length = state.iter().map(|event| event.text.len()).sum();
                        let Some(share) = view.subscriber.account.try_reserve(length) else {
                            yield Err(overloaded());
                            return;
                        };
                        (state, share)
                    }
                };
                for event in backlog {
                    if view.shows(&event.subject) {
                        yield Ok(event.text.clone());
                    }
                }
                drop(share);
                // Events that the subscriber may not see are silence to it.
                let mut beat_at = Instant::now() + events.heartbeat;
                loop {
                    tokio::select! {
                        event = receiver.recv() => match event {
                            Ok(event)
                                if view.shows(&event.subject)
                                    && (event.number > covered
                                        || events.is_gone(&event.subject)) =>
                            {
                                yield Ok(event.text.clone());
                                beat_at = Instant::now() + events.heartbeat;
                            }
                            Ok(_) => {}
                            // Too slow to receive every event: send the current state instead.
                            Err(RecvError::Lagged(_)) => break,
                            Err(RecvError::Closed) => return,
                        },
                        () = sleep_until(beat_at) => {
                            yield Ok(Bytes::from_static(b":\n\n"));
                            beat_at = Instant::now() + events.heartbeat;
                        }
                        // Other rules may show more: send the current state.
                        () = view.changed() => break,
                        () = draining.cancelled() => return,
                    }
                }
            }
        })
    }

    fn place(self: &Arc<Self>, account: &Arc<Account>) -> Result<Place, Problem> {
        let taken = self.places.try_take(&account.subscriptions, 1, usize::MAX);
        taken.map_err(|_| {
            Problem::new(
                Code::TooManyConnections,
                "half of `limits.connections` already receive events, or this caller has its \
                 share of them; share a subscription",
            )
            .retry_after(5)
        })?;
        Ok(Place {
            events: Arc::clone(self),
            account: Arc::clone(account),
        })
    }

    /// Returns whether an event says that a secret is gone, and it still is. The current state
    /// doesn't: a secret that was removed from the config isn't part of it.
    fn is_gone(&self, subject: &Subject) -> bool {
        let Subject::GoneSecret(name) = subject else {
            return false;
        };
        let secrets = self.secrets.all();
        let found = secrets.iter().find(|secret| secret.name() == name);
        found.is_none_or(|secret| secret.status().current.is_none())
    }

    /// Returns the events after `last_id`; None if they are not known.
    fn missed(
        &self,
        recent: &VecDeque<Arc<Event>>,
        last_id: Option<&str>,
    ) -> Option<Vec<Arc<Event>>> {
        let (epoch, number) = last_id?.split_once('-')?;
        let number: u64 = number.parse().ok()?;
        let newest = recent.back().map_or(0, |event| event.number);
        let oldest = recent.front().map_or(1, |event| event.number);
        if epoch != self.epoch.to_string() || number > newest || number + 1 < oldest {
            return None;
        }
        Some(
            recent
                .iter()
                .filter(|event| event.number > number)
                .cloned()
                .collect(),
        )
    }

    /// Returns the current state of every keyring and secret, as events with the newest number, and
    /// this number. They replace all events up to it.
    fn current_state(&self) -> (u64, Vec<Arc<Event>>) {
        let number = self
            .recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .back()
            .map_or(0, |event| event.number);
        let event = |keyring: &Arc<Keyring>| {
            let subject = Subject::Keyring(keyring.name().clone());
            Some(Arc::new(self.event(
                number,
                subject,
                &self.keyring_state(keyring)?,
            )))
        };
        let of_secret = |change: secrets::SecretChange| {
            Arc::new(self.event(number, Subject::of(&change), &SecretEvent::to_json(&change)))
        };
        let secrets = self.secret_states().into_iter().map(of_secret);
        let keyrings = self.keyrings.iter().filter_map(event);
        (number, keyrings.chain(secrets).collect())
    }
}

/// A subscriber's place, until it is dropped.
struct Place {
    events: Arc<Events>,
    account: Arc<Account>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let places = &self.events.places;
        places.give_back(&self.account.subscriptions, 1);
    }
}

/// A subscriber receives only events about what it may inspect or fetch.
pub(crate) struct Subscriber {
    pub(crate) caller: Caller,
    pub(crate) account: Arc<Account>,
    pub(crate) policy: Arc<ActivePolicy>,
}

/// What a subscriber sees under the current rules.
struct View {
    subscriber: Subscriber,
    policy: Arc<Policy>,
    /// The policy before the current one.
    former: Arc<Policy>,
}

impl View {
    fn new(subscriber: Subscriber) -> Self {
        let policy = subscriber.policy.current();
        Self {
            subscriber,
            former: Arc::clone(&policy),
            policy,
        }
    }

    /// Waits until other rules apply than at the last call of [`View::is_allowed`].
    async fn changed(&self) {
        self.subscriber.policy.replaced(&self.policy).await;
    }

    /// Takes the current rules. Returns whether they allow the subscriber anything.
    fn is_allowed(&mut self) -> bool {
        let current = self.subscriber.policy.current();
        if !Arc::ptr_eq(&current, &self.policy) {
            self.former = std::mem::replace(&mut self.policy, current);
        }
        self.policy.knows(&self.subscriber.caller)
    }

    fn shows(&self, subject: &Subject) -> bool {
        let caller = &self.subscriber.caller;
        // Not the policy that the view has: it may have been replaced a moment ago.
        let current = self.subscriber.policy.current();
        match subject {
            Subject::Keyring(keyring) => current
                .permissions(caller, keyring)
                .allow(Operation::Inspect),
            Subject::Secret(secret) => current.may_fetch(caller, secret),
            // A config that removes a secret removes it from the rules, too.
            Subject::GoneSecret(secret) => [&current, &self.policy, &self.former]
                .into_iter()
                .any(|policy| policy.may_fetch(caller, secret)),
        }
    }
}

#[cfg(test)]
mod tests;
