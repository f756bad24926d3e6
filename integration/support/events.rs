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

impl Listener {
    pub async fn open(sidecar: &Sidecar) -> Self {
        let mut client = sidecar.client().await;
        let response = client.open(Method::GET, "/v1/events", &[], whole("")).await;
        Self {
            body: response.unwrap().into_body(),
            buffer: String::new(),
        }
    }

    /// Returns the data of the next event, or `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let mut lines = event.lines();
                let data = lines.find_map(|line| line.strip_prefix("data: "));
                let data = data.map(|data| serde_json::from_str(data).unwrap());
                self.buffer = rest.to_owned();
                if data.is_some() {
                    return data;
                }
            }
            let frame = timeout(PATIENCE, self.body.frame())
                .await
                .expect("an event")?
                .unwrap();
            self.buffer
                .push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }
}
