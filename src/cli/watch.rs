use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    client::Connection,
    output::{Failure, Format, printable},
};
use crate::client::{Event, Feed, News};

#[derive(Debug, Args)]
pub(super) struct Watch {
    #[command(flatten)]
    connection: Connection,
    /// Tell of this keyring; of nothing else, unless it is named as well.
    #[arg(long, value_name = "NAME")]
    keyring: Vec<String>,
    /// Tell of this secret; of nothing else, unless it is named as well.
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
}

#[derive(Deserialize)]
struct KeyringChange {
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

#[derive(Deserialize)]
struct SecretChange {
    secret: String,
    version: Option<String>,
    previous: Option<String>,
}

impl Watch {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let mut feed = Feed::new(self.connection.socket());
        // A sidecar that was never there is a mistake; one that goes away comes back.
        loop {
            match feed.next().await? {
                News::Listening => {}
                News::Event(event) => self.show(&event, format)?,
                // Nobody may read it, which is no reason to end.
                News::Lost(reason) => drop(writeln!(
                    io::stderr().lock(),
                    "sidekey: {reason}; trying again"
                )),
            }
        }
    }

    fn show(&self, event: &Event, format: Format) -> Result<(), Failure> {
        let now = Timestamp::now();
        let (is_wanted, text) = match event.kind.as_str() {
            "keyring" => {
                let change: KeyringChange = parse(event)?;
                (
                    self.wants(&self.keyring, &change.keyring),
                    change.describe(now),
                )
            }
            "secret" => {
                let change: SecretChange = parse(event)?;
                (
                    self.wants(&self.secret, &change.secret),
                    change.describe(now),
                )
            }
            // What a later sidecar may tell.
            _ => return Ok(()),
        };
        if !is_wanted {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        match format {
            Format::Json => writeln!(out, "{}", event.data)?,
            Format::Text => writeln!(out, "{}", printable(&text))?,
        }
        out.flush()?;
        Ok(())
    }

    /// Whether a change is told of what stands in one list, if anything stands in either.
    fn wants(&self, list: &[String], name: &str) -> bool {
        self.keyring.is_empty() && self.secret.is_empty()
            || list.iter().any(|wanted| wanted == name)
    }
}

fn parse<'e, T: Deserialize<'e>>(event: &'e Event) -> Result<T, Failure> {
    serde_json::from_str(&event.data)
        .map_err(|error| Failure::failed(format!("an event is not understood: {error}")))
}

impl KeyringChange {
    fn describe(&self, now: Timestamp) -> String {
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|version| format!("{} {}", version.version, version.role))
            .collect();
        let who = self.primary.map_or_else(
            || "nothing encrypts".into(),
            |primary| format!("version {primary} encrypts"),
        );
        format!(
            "{now:.0}  {}  generation {}  {who}  ({})",
            self.keyring,
            self.generation,
            versions.join(", ")
        )
    }
}

impl SecretChange {
    fn describe(&self, now: Timestamp) -> String {
        let state = match &self.version {
            Some(version) => format!("version {version}"),
            None => "deleted at its provider".into(),
        };
        let before = self
            .previous
            .as_ref()
            .map(|previous| format!("  (before: {previous})"))
            .unwrap_or_default();
        format!("{now:.0}  secret {}  {state}{before}", self.secret)
    }
}
