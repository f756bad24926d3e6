//! The task that stays joined: it dials, follows the hub's events and reports.

use std::{collections::BTreeMap, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{
    Hub, Parts,
    connection::{Connection, Requests},
    failure::Failure,
    report::{Reporter, SignedReport},
    report_times::ReportTimes,
};
use crate::{
    clock::backoff,
    crypto::to_hex,
    files::run_blocking,
    refresh::Trigger,
    wire::{
        EventParser, ServerEvent,
        hub::{Hint, ProofAnswer, Prove, StreamEvent},
    },
};

const STREAM: &str = "/v1/stream";
const REPORTS: &str = "/v1/reports";
const PROOF_ANSWERS: &str = "/v1/proof-answers";

/// The wait after the first connection that failed.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// A connection that lasted for this long was no failure.
const STABLE: Duration = Duration::from_secs(10);
/// The most requests in flight. While there are so many, no event is read.
const MAX_POSTS: usize = 8;
/// The least time between two refreshes that the hub causes.
const HINT_SPACING: Duration = Duration::from_secs(1);
/// The event that may have a manifest in it.
const HINT: &str = "hint";
/// The room for what an event holds besides a manifest.
const EVENT_ROOM: usize = 16 << 10;
/// Events with more data, in bytes, are parsed on a blocking thread.
const LARGE: usize = 64 << 10;

/// A sidecar that joins a hub.
pub(super) struct Member {
    hub: Hub,
    parts: Parts,
    reporter: Reporter,
    times: ReportTimes,
    /// Notified of what is to be reported at once.
    news: Arc<Notify>,
    /// The barrier that no accepted report has answered.
    barrier: Option<u64>,
    /// The keyrings that a hint was about, by index, and the manifest in the last one.
    hinted: BTreeMap<usize, Option<Bytes>>,
    /// When hints may cause refreshes again.
    hints_allowed: Instant,
    connection: Option<Connection>,
}

/// Why a connection ended.
enum Ending {
    Failed(Failure),
    /// There are other files to connect with.
    Renewed,
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a request has come to.
enum Posted {
    Report {
        answers: Option<u64>,
        result: Result<(), Failure>,
    },
    Proof(Result<(), Failure>),
}

type Posts = FuturesUnordered<BoxFuture<'static, Posted>>;

impl Member {
    pub(super) fn new(hub: &Hub, reporter: Reporter, parts: Parts, news: Arc<Notify>) -> Self {
        Self {
            hub: hub.clone(),
            parts,
            reporter,
            times: ReportTimes::new(),
            news,
            barrier: None,
            hinted: BTreeMap::new(),
            hints_allowed: Instant::now(),
            connection: None,
        }
    }

    /// Stays joined until `end` asks for the last report, or is dropped.
    pub(super) async fn run(mut self, end: oneshot::Receiver<oneshot::Sender<()>>) {
        let done = tokio::select! {
            end = end => end,
            never = self.stay_joined() => match never {},
        };
        if let Ok(done) = done {
            self.report_end().await;
            self.connection = None;
            self.hub.state.left();
            // The caller may have given up.
            let _ = done.send(());
        }
    }

    async fn stay_joined(&mut self) -> Infallible {
        let mut failures = 0;
        loop {
            let start = Instant::now();
            let ending = match self.follow().await {
                Ok(never) => match never {},
                Err(ending) => ending,
            };
            self.connection = None;
            match ending {
                Ending::Renewed => self.hub.state.left(),
                Ending::Failed(failure) => {
                    self.hub.state.disconnected(failure);
                    if start.elapsed() >= STABLE {
                        failures = 0;
                    }
                    failures += 1;
                    let wait = backoff(FIRST_BACKOFF, failures, self.parts.max_backoff);
                    // Wide, because a hub that restarts has lost its whole fleet at once.
                    sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
                }
            }
        }
    }

    /// Connects, and follows the hub's events until the connection ends.
    async fn follow(&mut self) -> Result<Infallible, Ending> {
        let credentials = Arc::clone(&self.hub.credentials);
        let connection = Box::pin(Connection::open(&self.hub.settings.url, &credentials)).await?;
        let requests = connection.requests().clone();
        let fingerprint = connection.fingerprint;
        self.connection = Some(connection);
        let mut body = requests.stream(&to_hex(&self.parts.instance)).await?;
        self.hub.state.connected();
        // The hub compares generations.
        self.times.soon();
        let mut events = EventParser::new(self.event_limit());
        let mut renewed = pin!(credentials.renewed(fingerprint));
        let (mut posts, mut is_reporting) = (Posts::new(), false);
        loop {
            while posts.len() < MAX_POSTS
                && let Some(event) = events.next_event()
            {
                posts.extend(self.take(event, &requests).await?);
            }
            tokio::select! {
                chunk = next_chunk(&mut body, &requests), if posts.len() < MAX_POSTS => {
                    let parsed = events.push(&chunk?);
                    parsed.map_err(|error| requests.protocol(STREAM, &format!(": {error}")))?;
                }
                Some(posted) = posts.next() => {
                    is_reporting &= !matches!(posted, Posted::Report { .. });
                    self.posted(posted);
                }
                () = self.news.notified() => self.times.soon(),
                () = sleep_until(self.times.due()), if !is_reporting => {
                    posts.push(self.start_report(&requests)?);
                    is_reporting = true;
                }
                () = sleep_until(self.hints_allowed), if !self.hinted.is_empty() => {
                    self.refresh_hinted();
                }
                () = &mut renewed => return Err(Ending::Renewed),
            }
        }
    }

    /// The most bytes of an event: a manifest in a JSON string, where quotes and line breaks take
    /// two bytes.
    fn event_limit(&self) -> usize {
        self.parts.manifest_bytes * 2 + EVENT_ROOM
    }

    /// Does what the hub asks. Returns the request that answers it.
    ///
    /// # Errors
    /// The event is longer than one of its kind can be.
    async fn take(
        &mut self,
        event: ServerEvent,
        requests: &Requests,
    ) -> Result<Option<BoxFuture<'static, Posted>>, Failure> {
        self.hub.state.received(&event.kind);
        if event.kind != HINT && event.data.len() > EVENT_ROOM {
            return Err(requests.protocol(
                STREAM,
                &format!(": an event that has no manifest in it exceeds {EVENT_ROOM} bytes"),
            ));
        }
        let is_large = event.data.len() > LARGE;
        let parse = move || StreamEvent::parse(&event.kind, &event.data);
        let parsed = if is_large {
            run_blocking(parse).await
        } else {
            parse()
        };
        Ok(match parsed {
            Ok(Some(StreamEvent::Welcome(welcome))) => {
                let interval = Duration::from_secs(welcome.report_seconds.into());
                self.times.set_interval(interval);
                None
            }
            Ok(Some(StreamEvent::Hint(hint))) => {
                self.hint(hint);
                None
            }
            Ok(Some(StreamEvent::Prove(prove))) => self.prove(prove, requests.clone()),
            Ok(Some(StreamEvent::ReportNow(report_now))) => {
                self.barrier = self.barrier.max(Some(report_now.barrier));
                self.times.soon();
                None
            }
            Ok(None) => None,
            Err(error) => {
                debug!(%error, "the hub sent an event that can't be understood");
                None
            }
        })
    }

    /// Notes a generation that is not active here.
    fn hint(&mut self, hint: Hint) {
        let mut keyrings = self.parts.keyrings.iter().enumerate();
        let found = keyrings.find(|(_, keyring)| *keyring.name() == hint.keyring);
        let Some((index, keyring)) = found else {
            return;
        };
        let active = keyring
            .snapshot()
            .as_ref()
            .map_or(0, |snapshot| snapshot.table.generation());
        if hint.generation > active {
            let limit = self.parts.manifest_bytes;
            let manifest = hint.manifest.filter(|text| text.len() <= limit);
            self.hinted.insert(index, manifest.map(Bytes::from));
        }
    }

    /// Refreshes the keyrings that hints were about. Whatever the hub sends, a location is read at
    /// a bounded rate.
    fn refresh_hinted(&mut self) {
        for (index, manifest) in std::mem::take(&mut self.hinted) {
            let keyring = &self.parts.keyrings[index];
            match manifest {
                Some(manifest) => keyring.offer(manifest),
                None => keyring.request(Trigger::Push),
            }
        }
        self.hints_allowed = Instant::now() + HINT_SPACING;
    }

    fn prove(&self, prove: Prove, requests: Requests) -> Option<BoxFuture<'static, Posted>> {
        let answer = ProofAnswer {
            instance: self.parts.instance,
            id: prove.id,
            result: (self.parts.prove)(&prove.request),
        };
        let body = match serde_json::to_vec(&answer) {
            Ok(body) => Bytes::from(body),
            Err(error) => {
                debug!(%error, "can't write a proof");
                return None;
            }
        };
        Some(Box::pin(async move {
            Posted::Proof(requests.post(PROOF_ANSWERS, None, body).await)
        }))
    }

    fn start_report(&mut self, requests: &Requests) -> Result<BoxFuture<'static, Posted>, Failure> {
        let answers = self.barrier;
        self.times.sent();
        let report = self.reporter.next(&self.parts, answers, false)?;
        let requests = requests.clone();
        Ok(Box::pin(async move {
            let result = post(&requests, report).await;
            Posted::Report { answers, result }
        }))
    }

    fn posted(&mut self, posted: Posted) {
        match posted {
            Posted::Report {
                answers,
                result: Ok(()),
            } => {
                self.hub.state.reported();
                self.times.accepted();
                // Unless another one was set meanwhile, for which a report is due.
                if self.barrier == answers {
                    self.barrier = None;
                }
            }
            Posted::Report {
                result: Err(failure),
                ..
            } => {
                self.hub.state.report_failed(failure);
                self.times.failed();
            }
            Posted::Proof(Ok(())) => {}
            // Proofs are asked for again.
            Posted::Proof(Err(failure)) => debug!("the hub has no proof: {failure}"),
        }
    }

    /// Sends the last report, once more on a new connection if the one that is open has broken.
    async fn report_end(&mut self) {
        let report = match self.reporter.next(&self.parts, self.barrier, true) {
            Ok(report) => report,
            Err(failure) => return self.hub.state.report_failed(failure),
        };
        if let Some(connection) = &self.connection {
            let requests = connection.requests();
            match post(requests, report.clone()).await {
                Ok(()) => return self.hub.state.reported(),
                Err(failure) if failure.is_refusal() => {
                    return self.hub.state.report_failed(failure);
                }
                Err(failure) => self.hub.state.report_failed(failure),
            }
        }
        let (url, credentials) = (&self.hub.settings.url, &self.hub.credentials);
        let again = async {
            let connection = Box::pin(Connection::open(url, credentials)).await?;
            post(connection.requests(), report).await
        };
        match again.await {
            Ok(()) => self.hub.state.reported(),
            Err(failure) => self.hub.state.report_failed(failure),
        }
    }
}

async fn post(requests: &Requests, report: SignedReport) -> Result<(), Failure> {
    let SignedReport { body, signature } = report;
    requests.post(REPORTS, Some(signature), body).await
}

/// Returns the next bytes of the stream. Dropping the future loses nothing.
async fn next_chunk(body: &mut Incoming, requests: &Requests) -> Result<Bytes, Failure> {
    match body.frame().await {
        Some(Ok(frame)) => Ok(frame.into_data().unwrap_or_default()),
        Some(Err(error)) => Err(requests.lost(STREAM, &error)),
        None => Err(requests.ended(STREAM)),
    }
}
