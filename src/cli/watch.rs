use std::{
    io::{self, Write},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode, body::Incoming};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    client::{Connection, refusal, whole},
    output::{Failure, Format},
};

/// How long a sidecar that went away is waited for at a time.
const PAUSE: Duration = Duration::from_secs(1);
/// A sidecar says something every quarter of this.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct Watch {
    #[command(flatten)]
    connection: Connection,
    /// Tell of this keyring alone.
    #[arg(long)]
    keyring: Option<String>,
}

#[derive(Deserialize)]
struct Change {
    keyring: String,
    generation: u64,
    primary: Option<u32>,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
    role: String,
}

/// One event, as far as it has come.
#[derive(Default)]
struct Event {
    id: Option<String>,
    kind: String,
    data: String,
}

impl Watch {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let mut last_id = None;
        // A sidecar that was never there is a mistake; one that goes away comes back.
        let mut events = self.listen(None).await?;
        loop {
            let ended = self.follow(&mut events, &mut last_id, format).await?;
            eprintln!("sidekey: {ended}; trying again");
            events = loop {
                tokio::time::sleep(PAUSE).await;
                match self.listen(last_id.as_deref()).await {
                    Ok(events) => break events,
                    Err(failure) if failure.is_final() => return Err(failure),
                    // Not there yet, or no place.
                    Err(_) => {}
                }
            };
        }
    }

    async fn listen(&self, last_id: Option<&str>) -> Result<Incoming, Failure> {
        let headers: Vec<_> = last_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let response = self.connection.send(Method::GET, "/v1/events", &headers, whole(Bytes::new())).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        Ok(response.into_body())
    }

    /// Prints events until they end; says why they did.
    async fn follow(&self, events: &mut Incoming, last_id: &mut Option<String>, format: Format) -> Result<String, Failure> {
        let (mut buffer, mut event) = (Vec::new(), Event::default());
        loop {
            let Ok(came) = timeout(SILENCE, events.frame()).await else {
                return Ok(format!("nothing was heard for {SILENCE:?}"));
            };
            let piece = match came {
                None => return Ok("the sidecar ended".into()),
                Some(Err(error)) => return Ok(format!("the sidecar is gone: {error}")),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            buffer.extend_from_slice(&piece);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Some(event) = event.take(&String::from_utf8_lossy(&line[..end])) {
                    *last_id = event.id.or(last_id.take());
                    if event.kind == "keyring" {
                        self.show(&event.data, format)?;
                    }
                }
            }
        }
    }

    fn show(&self, data: &str, format: Format) -> Result<(), Failure> {
        let change: Change =
            serde_json::from_str(data).map_err(|error| Failure::failed(format!("an event is not understood: {error}")))?;
        if self.keyring.as_ref().is_some_and(|wanted| *wanted != change.keyring) {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match format {
            Format::Json => writeln!(out, "{data}")?,
            Format::Text => writeln!(out, "{}", change.describe(Timestamp::now()))?,
        }
        out.flush()?;
        Ok(())
    }
}

impl Change {
    fn describe(&self, now: Timestamp) -> String {
        let versions: Vec<String> = self.versions.iter().map(|version| format!("{} {}", version.version, version.role)).collect();
        let who = self.primary.map_or_else(|| "nothing encrypts".into(), |primary| format!("version {primary} encrypts"));
        format!("{now:.0}  {}  generation {}  {who}  ({})", self.keyring, self.generation, versions.join(", "))
    }
}

impl Event {
    /// Goes on with a line; gives the event when it was its last.
    fn take(&mut self, line: &str) -> Option<Self> {
        if line.is_empty() {
            return Some(std::mem::take(self));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.into()),
            "event" => self.kind = value.into(),
            "data" => self.data.push_str(value),
            // Comments, and what a later sidecar may say.
            _ => {}
        }
        None
    }
}
