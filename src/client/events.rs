//! Server-sent events (WHATWG HTML, §9.2), with automatic reconnection.

use std::{collections::VecDeque, time::Duration};

use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming, header::ACCEPT};
use tokio::time::{sleep, timeout};

use super::{
    error::SidecarError,
    response::error_of,
    socket::{Socket, full_body, request},
};
use crate::wire::EVENTS;

/// The stream is lost after this time without data; the sidecar sends some every quarter of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The delay before reconnecting: initial and maximum.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The longest event, in bytes; far longer than any that a sidecar sends.
const MAX_EVENT: usize = 1 << 20;

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// The ID, sent as `Last-Event-ID` when reconnecting.
    pub id: Option<String>,
    /// `keyring`, `secret`, or a kind added in a later version.
    pub kind: String,
    /// A JSON document.
    pub data: String,
}

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
    parser: Parser,
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
            parser: Parser::default(),
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
            (self.was_connected, self.pause, self.parser) = (true, MIN_PAUSE, Parser::default());
            return Ok(StreamItem::Connected);
        };
        loop {
            if let Some(event) = self.parser.next() {
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
                        Err(reason) => reason,
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

/// Parses events from chunks of any size.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    event: ServerEvent,
    has_data: bool,
    ready: VecDeque<ServerEvent>,
}

impl Parser {
    fn push(&mut self, mut chunk: &[u8]) -> Result<(), String> {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            self.line.extend_from_slice(&chunk[..end]);
            chunk = &chunk[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.finish_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
        self.line.extend_from_slice(chunk);
        if self.line.len() + self.event.data.len() > MAX_EVENT {
            return Err(format!("an event exceeds {MAX_EVENT} bytes"));
        }
        Ok(())
    }

    fn finish_line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.into()),
            "event" => self.event.kind = value.into(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments, and fields of later versions.
            _ => {}
        }
    }

    fn next(&mut self) -> Option<ServerEvent> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = ": hello\n\nid: 1-1\nevent: keyring\ndata: {\"a\":1}\n\n:\n\n\
        event:secret\r\ndata: one\ndata: two\nodd\n\ndata: incomplete";

    fn event(id: Option<&str>, kind: &str, data: &str) -> ServerEvent {
        ServerEvent {
            id: id.map(str::to_owned),
            kind: kind.into(),
            data: data.into(),
        }
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_affect_events(
            cuts in prop::collection::vec(0..TEXT.len(), 0..8),
        ) {
            let mut cuts = [vec![0, TEXT.len()], cuts].concat();
            cuts.sort_unstable();
            let mut parser = Parser::default();
            for ends in cuts.windows(2) {
                parser.push(&TEXT.as_bytes()[ends[0]..ends[1]]).expect("within the limit");
            }
            let events: Vec<ServerEvent> = std::iter::from_fn(|| parser.next()).collect();
            let expected = [
                event(Some("1-1"), "keyring", "{\"a\":1}"),
                event(None, "secret", "one\ntwo"),
            ];
            prop_assert_eq!(events, expected);
        }
    }

    #[test]
    fn an_endless_event_is_rejected() {
        let mut parser = Parser::default();
        let line = vec![b'x'; MAX_EVENT / 2];
        parser.push(&line).expect("half the limit");
        parser.push(&line).expect("the limit");
        parser.push(b"x").expect_err("over the limit");
    }
}
