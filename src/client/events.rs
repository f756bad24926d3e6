//! The events of a sidecar, with automatic reconnection.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming, header::ACCEPT};
use tokio::time::{sleep, timeout};

use super::{
    error::SidecarError,
    response::error_of,
    socket::{Socket, full_body, request},
};
use crate::wire::{EVENTS, EventParser, ServerEvent};

/// The stream is lost after this time without data; the sidecar sends some every quarter of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The delay before reconnecting: initial and maximum.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The longest event, in bytes; far longer than any that a sidecar sends.
const MAX_EVENT: usize = 1 << 20;

/// An item of an [`EventStream`].
#[derive(Debug)]
pub enum StreamItem {
    /// The stream is connected. Later changes are reported; earlier ones may have been missed.
    Connected,
    /// A change.
    Event(ServerEvent),
    /// The connection was lost, for this reason. The next call reconnects.
    Disconnected(String),
}

/// The events of the sidecar at a socket, across its restarts.
pub struct EventStream {
    socket: Socket,
    body: Option<Incoming>,
    parser: EventParser,
    last_id: Option<String>,
    /// Whether a connection ever succeeded. The first failure is an error, most often a wrong path.
    was_connected: bool,
    pause: Duration,
}

impl EventStream {
    /// Creates a stream without connecting.
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            body: None,
            parser: EventParser::new(MAX_EVENT),
            last_id: None,
            was_connected: false,
            pause: MIN_PAUSE,
        }
    }

    /// Waits for the next item, and connects or reconnects if necessary. Not cancel safe.
    ///
    /// # Errors
    /// The first connection failed, or the sidecar returned a final error. The next call retries
    /// immediately.
    pub async fn next(&mut self) -> Result<StreamItem, SidecarError> {
        let Some(body) = &mut self.body else {
            self.body = Some(self.connect().await?);
            (self.was_connected, self.pause) = (true, MIN_PAUSE);
            self.parser = EventParser::new(MAX_EVENT);
            return Ok(StreamItem::Connected);
        };
        loop {
            if let Some(event) = self.parser.next_event() {
                if event.id.is_some() {
                    self.last_id.clone_from(&event.id);
                }
                return Ok(StreamItem::Event(event));
            }
            let reason = match timeout(IDLE_TIMEOUT, body.frame()).await {
                Err(_) => format!("no data from the sidecar for {IDLE_TIMEOUT:?}"),
                Ok(None) => "the sidecar closed the event stream".into(),
                Ok(Some(Err(error))) => format!("lost the connection to the sidecar: {error}"),
                Ok(Some(Ok(frame))) => {
                    match self.parser.push(&frame.into_data().unwrap_or_default()) {
                        Ok(()) => continue,
                        Err(error) => error.to_string(),
                    }
                }
            };
            self.body = None;
            return Ok(StreamItem::Disconnected(reason));
        }
    }

    /// Connects, and retries if a connection succeeded before.
    async fn connect(&mut self) -> Result<Incoming, SidecarError> {
        loop {
            match self.request().await {
                Err(error) if self.was_connected && !error.is_final() => {
                    // Jitter, so that the clients of a sidecar don't all reconnect at once.
                    sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
                    self.pause = (self.pause * 2).min(MAX_PAUSE);
                }
                result => return result,
            }
        }
    }

    async fn request(&self) -> Result<Incoming, SidecarError> {
        let mut request = request(Method::GET, "/v1/events").header(ACCEPT, EVENTS);
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        let request = request
            .body(full_body(""))
            .map_err(|error| SidecarError::Unexpected(error.to_string()))?;
        let timed_out =
            |_| SidecarError::Unexpected(format!("no response within {IDLE_TIMEOUT:?}"));
        let response = timeout(IDLE_TIMEOUT, self.socket.send(request))
            .await
            .map_err(timed_out)??;
        if response.status() != StatusCode::OK {
            return Err(error_of(response).await);
        }
        Ok(response.into_body())
    }
}
