//! Server-sent events (WHATWG HTML, §9.2): what changes, told to who listens. Events carry no keys and no secrets.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_stream::stream;
use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    sync::{
        Semaphore,
        broadcast::{self, error::RecvError},
    },
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::description::{Change, SecretChange};
use crate::http::problem::{Code, Problem};
use crate::{
    clock::Clock,
    model::{KeyringName, Operation, SecretName},
    policy::{Caller, Policy},
    refresh::Keyring,
    secrets::{self, Secret, Secrets},
};

/// How often a listener hears something at least, so that both sides notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How many events are kept for listeners that come back.
const KEPT: usize = 256;
/// The machine's clock may be set while a takeover is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What happened, as it is sent.
struct Event {
    number: u64,
    subject: Subject,
    text: Bytes,
}

/// What it happened to.
#[derive(Clone)]
enum Subject {
    Keyring(KeyringName),
    Secret(SecretName),
}

impl Subject {
    fn kind(&self) -> &'static str {
        match self {
            Self::Keyring(_) => "keyring",
            Self::Secret(_) => "secret",
        }
    }
}

/// Tells listeners what changes.
pub(crate) struct Events {
    /// Tells the numbers of one process from those of another.
    epoch: i64,
    keyrings: Vec<Arc<Keyring>>,
    secrets: Arc<Secrets>,
    recent: Mutex<VecDeque<Arc<Event>>>,
    sender: broadcast::Sender<Arc<Event>>,
    /// Half of the connections; the others are for work.
    places: Arc<Semaphore>,
    heartbeat: Duration,
    clock: Clock,
}

impl Events {
    /// `connections` is how many there may be at all, and `idle` how long one may be silent.
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
            sender: broadcast::Sender::new(KEPT),
            places: Arc::new(Semaphore::new((connections / 2).max(1))),
            heartbeat: HEARTBEAT.min(idle / 2),
            clock,
        })
    }

    /// Tells of changes until `ending` is cancelled.
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
                ending
                    .clone()
                    .run_until_cancelled_owned(async move { events.follow(&keyring).await }),
            );
        }
    }

    async fn follow_secrets(&self, mut changes: broadcast::Receiver<secrets::Change>) {
        loop {
            match changes.recv().await {
                Ok(change) => self.publish(
                    Subject::Secret(change.secret.clone()),
                    &SecretChange::text(&change),
                ),
                // Too many at once: how everything stands tells as much.
                Err(RecvError::Lagged(_)) => {
                    for change in self.standing_secrets() {
                        self.publish(
                            Subject::Secret(change.secret.clone()),
                            &SecretChange::text(&change),
                        );
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn standing_secrets(&self) -> Vec<secrets::Change> {
        let change = |secret: Arc<Secret>| {
            let standing = secret.standing();
            let version = standing.current.map(|current| current.version);
            // One that is gone is told of, too; one that never was isn't.
            let is_known = version.is_some() || secret.had_value();
            is_known.then(|| secrets::Change {
                secret: secret.name().clone(),
                version,
                previous: standing.previous,
            })
        };
        self.secrets.all().into_iter().filter_map(change).collect()
    }

    async fn follow(&self, keyring: &Keyring) {
        let mut generations = keyring.generations();
        let mut last = String::new();
        loop {
            generations.borrow_and_update();
            let now = self.clock.now();
            if let Some(state) = self.state(keyring)
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
                // An error means that the keyring is gone.
                None => match generations.changed().await {
                    Ok(()) => {}
                    Err(_) => return,
                },
                Some(wait) => {
                    if let Ok(Err(_)) = timeout(wait.min(LONGEST_WAIT), generations.changed()).await
                    {
                        return;
                    }
                }
            }
        }
    }

    fn state(&self, keyring: &Keyring) -> Option<String> {
        // Plain members serialize.
        serde_json::to_string(&Change::of(keyring, self.clock.now())?).ok()
    }

    fn publish(&self, subject: Subject, data: &str) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let number = recent.back().map_or(1, |event| event.number + 1);
        let event = Arc::new(self.event(number, subject, data));
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&event));
        // Nobody may be listening.
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

    /// What one listener is told, until `draining` is cancelled. `last_id` is the last event that it saw before.
    pub(crate) fn listen(
        self: &Arc<Self>,
        listener: Listener,
        last_id: Option<&str>,
        draining: CancellationToken,
    ) -> Result<impl Stream<Item = Result<Bytes, Problem>> + Send + use<>, Problem> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Problem::new(
                Code::TooManyConnections,
                "half of `limits.connections` listen to events already",
            )
            .retry_after(5)
        })?;
        let events = Arc::clone(self);
        let (mut missed, mut receiver) = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            (self.missed(&recent, last_id), self.sender.subscribe())
        };
        Ok(stream! {
            let _place = place;
            yield Ok(Bytes::from_static(b": sidekey\n\n"));
            loop {
                for event in missed.take().unwrap_or_else(|| events.everything()) {
                    if listener.may_see(&event.subject) {
                        yield Ok(event.text.clone());
                    }
                }
                loop {
                    tokio::select! {
                        event = receiver.recv() => match event {
                            Ok(event) if listener.may_see(&event.subject) => yield Ok(event.text.clone()),
                            Ok(_) => {}
                            // Too slow to hear all: it is told how things stand now.
                            Err(RecvError::Lagged(_)) => break,
                            Err(RecvError::Closed) => return,
                        },
                        () = sleep(events.heartbeat) => yield Ok(Bytes::from_static(b":\n\n")),
                        () = draining.cancelled() => return,
                    }
                }
            }
        })
    }

    /// What came after the event with `last_id`; `None` if that can't be told.
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

    /// How every keyring and secret stands now, as events that carry the newest number: who has seen them has missed nothing.
    fn everything(&self) -> Vec<Arc<Event>> {
        let number = self
            .recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .back()
            .map_or(0, |event| event.number);
        let event = |keyring: &Arc<Keyring>| {
            let subject = Subject::Keyring(keyring.name().clone());
            Some(Arc::new(self.event(number, subject, &self.state(keyring)?)))
        };
        let of_secret = |change: secrets::Change| {
            Arc::new(self.event(
                number,
                Subject::Secret(change.secret.clone()),
                &SecretChange::text(&change),
            ))
        };
        let secrets = self.standing_secrets().into_iter().map(of_secret);
        self.keyrings
            .iter()
            .filter_map(event)
            .chain(secrets)
            .collect()
    }
}

/// Who listens: only what he may inspect or fetch is told to him.
pub(crate) struct Listener {
    pub(crate) caller: Caller,
    pub(crate) policy: Arc<Policy>,
}

impl Listener {
    fn may_see(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Keyring(keyring) => self
                .policy
                .permissions(&self.caller, keyring)
                .allow(Operation::Inspect),
            Subject::Secret(secret) => self.policy.may_fetch(&self.caller, secret),
        }
    }
}
