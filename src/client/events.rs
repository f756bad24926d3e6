//! Server-sent events (WHATWG HTML, §9.2), followed for as long as one likes, whatever becomes of the sidecar meanwhile.

use std::{collections::VecDeque, time::Duration};

use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming, header::ACCEPT};
use tokio::time::{sleep, timeout};

use super::{SidecarError, Socket, refusal, request, whole};
use crate::wire::EVENTS;

/// A sidecar says something every quarter of this.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a sidecar that went away is waited for at first, and at most at a time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest event, in bytes: far more than a sidecar sends.
const LONGEST_EVENT: usize = 1 << 20;

/// What happened at a sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Tells it from the others, for whoever comes back.
    pub id: Option<String>,
    /// `keyring`, `secret`, or what a later sidecar has.
    pub kind: String,
    /// A JSON document.
    pub data: String,
}

/// What one hears who follows a sidecar.
#[derive(Debug)]
pub enum News {
    /// The sidecar is listened to, for the first time or again. What changes from here on is told.
    Listening,
    /// Something changed.
    Event(Event),
    /// The sidecar isn't heard any more, and why. Whoever asks on waits until it is.
    Lost(String),
}

/// The events of a sidecar, and of the one that comes after it on the same socket.
pub struct Feed {
    socket: Socket,
    answer: Option<Incoming>,
    parser: Parser,
    last_id: Option<String>,
    /// Whether it was there before. One that never was is most often a mistake.
    was_there: bool,
    pause: Duration,
}

impl Feed {
    /// The events of the sidecar behind `socket`. Nothing is asked yet.
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            answer: None,
            parser: Parser::default(),
            last_id: None,
            was_there: false,
            pause: SHORTEST_PAUSE,
        }
    }

    /// What comes next. Dropping the future may lose an event.
    ///
    /// # Errors
    /// The sidecar was never there, or refuses for good. Whoever asks again tries again at once.
    pub async fn next(&mut self) -> Result<News, SidecarError> {
        let Some(answer) = &mut self.answer else {
            self.answer = Some(self.open().await?);
            (self.was_there, self.pause, self.parser) = (true, SHORTEST_PAUSE, Parser::default());
            return Ok(News::Listening);
        };
        loop {
            if let Some(event) = self.parser.next() {
                if event.id.is_some() {
                    self.last_id.clone_from(&event.id);
                }
                return Ok(News::Event(event));
            }
            let reason = match timeout(SILENCE, answer.frame()).await {
                Err(_) => format!("nothing was heard for {SILENCE:?}"),
                Ok(None) => "the sidecar ended".into(),
                Ok(Some(Err(error))) => format!("the sidecar is gone: {error}"),
                Ok(Some(Ok(frame))) => {
                    match self.parser.take(&frame.into_data().unwrap_or_default()) {
                        Ok(()) => continue,
                        Err(reason) => reason,
                    }
                }
            };
            self.answer = None;
            return Ok(News::Lost(reason));
        }
    }

    /// Listens; waits for a sidecar that was there before.
    async fn open(&mut self) -> Result<Incoming, SidecarError> {
        loop {
            match self.listen().await {
                // Not there yet, or no place.
                Err(error) if self.was_there && !error.is_final() => {
                    // Not all at once, where many listened to one sidecar.
                    sleep(self.pause.mul_f64(0.5 + fastrand::f64())).await;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }

    async fn listen(&self) -> Result<Incoming, SidecarError> {
        let mut request = request(Method::GET, "/v1/events").header(ACCEPT, EVENTS);
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        let request = request
            .body(whole(""))
            .map_err(|error| SidecarError::Unexpected(error.to_string()))?;
        let silent = |_| SidecarError::Unexpected(format!("nothing was answered for {SILENCE:?}"));
        let response = timeout(SILENCE, self.socket.send(request))
            .await
            .map_err(silent)??;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        Ok(response.into_body())
    }
}

/// Makes events of bytes that come in pieces of any size.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    ready: VecDeque<Event>,
}

impl Parser {
    fn take(&mut self, mut piece: &[u8]) -> Result<(), String> {
        while let Some(end) = memchr::memchr(b'\n', piece) {
            self.line.extend_from_slice(&piece[..end]);
            piece = &piece[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.finish_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
        self.line.extend_from_slice(piece);
        if self.line.len() + self.event.data.len() > LONGEST_EVENT {
            return Err(format!("an event is longer than {LONGEST_EVENT} bytes"));
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
            // Comments, and what a later sidecar may say.
            _ => {}
        }
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = ": hello\n\nid: 1-1\nevent: keyring\ndata: {\"a\":1}\n\n:\n\nevent:secret\r\ndata: one\ndata: two\nodd\n\ndata: cut off";

    fn event(id: Option<&str>, kind: &str, data: &str) -> Event {
        Event {
            id: id.map(str::to_owned),
            kind: kind.into(),
            data: data.into(),
        }
    }

    proptest! {
        #[test]
        fn the_same_events_come_of_pieces_of_any_size(cuts in prop::collection::vec(0..TEXT.len(), 0..8)) {
            let mut cuts = [vec![0, TEXT.len()], cuts].concat();
            cuts.sort_unstable();
            let mut parser = Parser::default();
            for ends in cuts.windows(2) {
                parser.take(&TEXT.as_bytes()[ends[0]..ends[1]]).expect("short enough");
            }
            let events: Vec<Event> = std::iter::from_fn(|| parser.next()).collect();
            prop_assert_eq!(events, [event(Some("1-1"), "keyring", "{\"a\":1}"), event(None, "secret", "one\ntwo")]);
        }
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let mut parser = Parser::default();
        let line = vec![b'x'; LONGEST_EVENT / 2];
        parser.take(&line).expect("half of it");
        parser.take(&line).expect("all of it");
        parser.take(b"x").expect_err("more than an event has");
    }
}
