use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    client::Connection,
    output::{Failure, Format},
};
use crate::client::{Feed, News};

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

impl Watch {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let mut feed = Feed::new(self.connection.socket());
        // A sidecar that was never there is a mistake; one that goes away comes back.
        loop {
            match feed.next().await? {
                News::Listening => {}
                News::Event(event) if event.kind == "keyring" => self.show(&event.data, format)?,
                News::Event(_) => {}
                News::Lost(reason) => eprintln!("sidekey: {reason}; trying again"),
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
