//! A client of `GET /v1/events`.

use http_body_util::BodyExt;
use hyper::{Method, body::Incoming};
use serde_json::Value;
use tokio::time::timeout;

use super::harness::{PATIENCE, Sidecar, whole};

/// One subscription.
pub struct Listener {
    body: Incoming,
    buffer: String,
}

/// A received event.
pub struct Event {
    pub id: String,
    pub kind: String,
    pub data: Value,
}

impl Listener {
    pub async fn open(sidecar: &Sidecar, last_id: Option<&str>) -> Self {
        let headers: Vec<_> = last_id
            .map(|id| ("last-event-id", id))
            .into_iter()
            .collect();
        let response = sidecar
            .client()
            .await
            .open(Method::GET, "/v1/events", &headers, whole(""))
            .await
            .unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self {
            body: response.into_body(),
            buffer: String::new(),
        }
    }

    /// Returns the next event, or `None` at the end of the stream.
    pub async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let event = event.to_owned();
                self.buffer = rest.to_owned();
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(str::to_owned)
                };
                if let Some(data) = field("data: ") {
                    let (id, kind) = (field("id: ").unwrap(), field("event: ").unwrap());
                    return Some(Event {
                        id,
                        kind,
                        data: serde_json::from_str(&data).unwrap(),
                    });
                }
                continue;
            }
            let frame = timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event")?
                .unwrap();
            self.buffer
                .push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }

    /// Returns the next event of a keyring: its id and data.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        let event = self.event().await?;
        assert_eq!(event.kind, "keyring");
        Some((event.id, event.data))
    }

    pub async fn expect(&mut self, keyring: &str, generation: u64) -> String {
        let (id, data) = self.next().await.unwrap();
        assert_eq!(
            (&data["keyring"], &data["generation"]),
            (&keyring.into(), &generation.into())
        );
        id
    }
}
