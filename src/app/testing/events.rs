use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::{Method, body::Incoming};
use serde_json::Value;

use super::{Client, time::Time, whole};

/// One subscription to `GET /v1/events`.
pub(crate) struct EventStream {
    body: Incoming,
    text: String,
    time: Arc<Time>,
}

/// A received event.
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

impl EventStream {
    pub(super) async fn open(mut client: Client, last_id: Option<&str>, time: Arc<Time>) -> Self {
        let headers = last_id.map(|id| ("last-event-id", id));
        let headers: Vec<_> = headers.into_iter().collect();
        let response = client
            .open(Method::GET, "/v1/events", &headers, whole(""))
            .await
            .expect("a response");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self {
            body: response.into_body(),
            text: String::new(),
            time,
        }
    }

    /// Returns the next event, or `None` at the end of the stream. Time moves by milliseconds
    /// meanwhile.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = Event::parse(block);
                self.text = rest.to_owned();
                if event.is_some() {
                    return event;
                }
            }
            let frame = self.time.pass_until(self.body.frame()).await?;
            let bytes = frame.expect("a whole stream").into_data().expect("data");
            self.text
                .push_str(std::str::from_utf8(&bytes).expect("text"));
        }
    }

    /// Returns the next event, which is about a keyring: its id and data.
    pub(crate) async fn keyring(&mut self) -> (String, Value) {
        let event = self.event().await.expect("an event");
        assert_eq!(event.kind, "keyring");
        (event.id, event.data)
    }

    /// Returns the data of the next event, which is about a secret.
    pub(crate) async fn secret(&mut self) -> Value {
        let event = self.event().await.expect("an event");
        assert_eq!(event.kind, "secret");
        event.data
    }

    /// Asserts that the next event is about this generation of a keyring, and returns its id.
    pub(crate) async fn expect(&mut self, keyring: &str, generation: u64) -> String {
        let (id, data) = self.keyring().await;
        assert_eq!(
            (&data["keyring"], &data["generation"]),
            (&keyring.into(), &generation.into())
        );
        id
    }
}

impl Event {
    /// Returns `None` for a comment.
    fn parse(block: &str) -> Option<Self> {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ")?;
        Some(Self {
            id: field("id: ").expect("an id").to_owned(),
            kind: field("event: ").expect("a kind").to_owned(),
            data: serde_json::from_str(data).expect("JSON"),
        })
    }
}
