//! The streams of sidecars: one for each instance, of server-sent events (WHATWG HTML, §9.2).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_stream::stream;
use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    caller::Identity,
    metrics::{StreamEnd, StreamMetrics},
    registry::InstanceId,
};
use crate::{
    http::{problem::Problem, share::Pool},
    model::KeyringName,
    wire::{
        Code,
        hub::{Hint, Report, StreamEvent},
    },
};

/// The longest silence on a stream, so that both ends notice when the other is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The most events that wait for a sidecar to take them. One that lags further loses its stream.
const MAX_WAITING: usize = 64;

/// The streams that are open.
pub(super) struct Streams {
    live: Mutex<BTreeMap<InstanceId, Arc<Live>>>,
    /// Three quarters of the connections; the others are for reports and operators.
    places: Pool,
    metrics: StreamMetrics,
}

/// A stream that is open.
pub(super) struct Live {
    pub(super) instance: InstanceId,
    identity: Arc<Identity>,
    events: mpsc::Sender<Bytes>,
    ended: CancellationToken,
    about: Mutex<About>,
}

/// What is known of the sidecar behind a stream.
#[derive(Default)]
struct About {
    /// Its name and workload, once it has reported.
    name: Option<(String, String)>,
    /// The highest barrier that it has answered.
    answered: u64,
    /// The generations of its keyrings, by its last report.
    keyrings: BTreeMap<KeyringName, u64>,
    /// The numbers of the hints that it was sent on this stream.
    told: BTreeMap<KeyringName, u64>,
}

impl Streams {
    pub(super) fn new(connections: usize, metrics: StreamMetrics) -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            places: Pool::new((connections / 4 * 3).max(1)),
            metrics,
        })
    }

    /// Opens the stream of an instance, in place of an older one of the same identity. It begins
    /// with `first`, and ends when `draining` is cancelled. `owner` is the identity that the
    /// instance has reported by, and `name` what it has reported as.
    ///
    /// # Errors
    /// [`Code::Forbidden`] if the instance belongs to another identity, and
    /// [`Code::TooManyConnections`].
    pub(super) fn open(
        self: &Arc<Self>,
        instance: InstanceId,
        identity: &Arc<Identity>,
        (owner, name): (Option<&Arc<Identity>>, Option<(String, String)>),
        first: &[StreamEvent],
        draining: CancellationToken,
    ) -> Result<impl Stream<Item = Result<Bytes, Problem>> + Send + use<>, Problem> {
        let place = self.place(identity)?;
        let (events, mut receiver) = mpsc::channel(MAX_WAITING);
        let live = Arc::new(Live {
            instance,
            identity: Arc::clone(identity),
            events,
            ended: CancellationToken::new(),
            about: Mutex::new(About {
                name,
                ..About::default()
            }),
        });
        let first: Vec<Bytes> = first.iter().filter_map(text).collect();
        if let Some(older) = self.insert(&live, owner)? {
            older.ended.cancel();
            self.metrics.ended(StreamEnd::Replaced);
        }
        let open = OpenStream {
            streams: Arc::clone(self),
            live,
            _place: place,
            end: StreamEnd::Closed,
        };
        self.metrics.open.increment(1);
        Ok(stream! {
            let mut open = open;
            for event in first {
                yield Ok(event);
            }
            loop {
                tokio::select! {
                    biased;
                    () = open.live.ended.cancelled() => return,
                    () = draining.cancelled() => {
                        open.end = StreamEnd::Drained;
                        return;
                    }
                    Some(event) = receiver.recv() => yield Ok(event),
                    () = sleep(KEEP_ALIVE) => yield Ok(Bytes::from_static(b":\n\n")),
                }
            }
        })
    }

    /// Returns the stream whose place it takes. Before the first report, an instance belongs to the
    /// identity that was there first.
    fn insert(
        &self,
        live: &Arc<Live>,
        owner: Option<&Arc<Identity>>,
    ) -> Result<Option<Arc<Live>>, Problem> {
        let mut all = self.lock();
        let owner = owner.or(all.get(&live.instance).map(|present| &present.identity));
        if owner.is_some_and(|owner| !live.is_of(owner)) {
            return Err(Problem::new(
                Code::Forbidden,
                "the instance belongs to another [[sidecar_identity]]; a process keeps its \
                 credential, and draws its own instance",
            ));
        }
        Ok(all.insert(live.instance, Arc::clone(live)))
    }

    fn place(self: &Arc<Self>, identity: &Arc<Identity>) -> Result<Place, Problem> {
        let held = &identity.account.subscriptions;
        self.places.try_take(held, 1, usize::MAX).map_err(|_| {
            Problem::new(
                Code::TooManyConnections,
                "three quarters of `limits.connections` are streams already, or this identity has \
                 its share of them",
            )
            .retry_after(5)
        })?;
        Ok(Place {
            streams: Arc::clone(self),
            identity: Arc::clone(identity),
        })
    }

    /// Returns the streams that are open, by instance.
    pub(super) fn all(&self) -> Vec<Arc<Live>> {
        self.lock().values().cloned().collect()
    }

    /// Returns the stream of an instance.
    pub(super) fn of(&self, instance: &InstanceId) -> Option<Arc<Live>> {
        self.lock().get(instance).cloned()
    }

    /// Sends an event. Returns whether there was room for it: a sidecar that doesn't take its
    /// events loses its stream, and compares generations when it connects again.
    pub(super) fn send(&self, live: &Arc<Live>, event: Bytes) -> bool {
        match live.events.try_send(event) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                self.end(live, StreamEnd::Slow);
                false
            }
        }
    }

    /// Records what a stored report says. `identity` sent it: a stream that another one opened for
    /// the instance ends.
    pub(super) fn reported(&self, report: &Report, identity: &Arc<Identity>) {
        let Some(live) = self.of(&report.instance) else {
            return;
        };
        if !Arc::ptr_eq(&live.identity, identity) {
            self.end(&live, StreamEnd::Foreign);
            return;
        }
        let mut about = live.about();
        about.name = Some((report.name.clone(), report.workload.clone()));
        about.answered = about.answered.max(report.answers.unwrap_or(0));
        about.keyrings = report
            .usage
            .iter()
            .map(|usage| (usage.name.clone(), usage.generation))
            .collect();
    }

    fn end(&self, live: &Arc<Live>, reason: StreamEnd) {
        if self.remove(live) {
            live.ended.cancel();
            self.metrics.ended(reason);
        }
    }

    /// Returns whether the stream was open: a newer one may have taken its place.
    fn remove(&self, live: &Arc<Live>) -> bool {
        let mut all = self.lock();
        let is_there = all
            .get(&live.instance)
            .is_some_and(|known| Arc::ptr_eq(known, live));
        if is_there {
            all.remove(&live.instance);
        }
        is_there
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Returns what the fleet calls the sidecar, once it has reported.
    pub(super) fn name(&self) -> Option<String> {
        self.about().name.as_ref().map(|(name, _)| name.clone())
    }

    /// Returns the highest barrier that the sidecar has answered.
    pub(super) fn answered(&self) -> u64 {
        self.about().answered
    }

    /// Whether the stream was opened by `identity`.
    pub(super) fn is_of(&self, identity: &Arc<Identity>) -> bool {
        Arc::ptr_eq(&self.identity, identity)
    }

    /// Whether the sidecar may serve the keyring, and isn't known to have the generation.
    pub(super) fn is_behind(&self, hint: &Hint) -> bool {
        let about = self.about();
        match about.keyrings.get(&hint.keyring) {
            Some(generation) => *generation < hint.generation,
            // Before its first report, it may serve any keyring.
            None => about.keyrings.is_empty(),
        }
    }

    /// The generation of a keyring, by the last report.
    pub(super) fn generation(&self, keyring: &KeyringName) -> Option<u64> {
        self.about().keyrings.get(keyring).copied()
    }

    /// Records that the sidecar is sent a hint, by its number. Returns whether it is news on this
    /// stream.
    pub(super) fn tell(&self, keyring: &KeyringName, number: u64) -> bool {
        let mut about = self.about();
        let told = about.told.get(keyring).copied().unwrap_or(0);
        if told < number {
            about.told.insert(keyring.clone(), number);
        }
        told < number
    }

    /// Resolves when the stream has ended.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    fn about(&self) -> MutexGuard<'_, About> {
        self.about.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an event as it is sent.
pub(super) fn text(event: &StreamEvent) -> Option<Bytes> {
    // Strings and numbers always serialize.
    let data = event.to_json().ok()?;
    Some(format!("event: {}\ndata: {data}\n\n", event.name()).into())
}

/// Keeps a stream open until its response is dropped.
struct OpenStream {
    streams: Arc<Streams>,
    live: Arc<Live>,
    _place: Place,
    end: StreamEnd,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.end(&self.live, self.end);
        self.streams.metrics.open.decrement(1);
    }
}

/// An identity's place, until it is dropped.
struct Place {
    streams: Arc<Streams>,
    identity: Arc<Identity>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = &self.identity.account.subscriptions;
        self.streams.places.give_back(held, 1);
    }
}
