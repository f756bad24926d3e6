//! `sidekey watch`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    client::Connection,
    output::{CliError, Format, printable},
};
use crate::client::{EventStream, ServerEvent, StreamItem};

#[derive(Debug, Args)]
pub(super) struct Watch {
    #[command(flatten)]
    connection: Connection,
    /// Print only changes of this keyring, and of others that are named.
    #[arg(long, value_name = "NAME")]
    keyring: Vec<String>,
    /// Print only changes of this secret, and of others that are named.
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
    pub(super) async fn run(self, format: Format) -> Result<(), CliError> {
        let mut events = EventStream::new(self.connection.socket());
        // The first connection must succeed; later ones are retried.
        loop {
            match events.next().await? {
                StreamItem::Connected => {}
                StreamItem::Event(event) => self.show(&event, format)?,
                // A closed standard error doesn't end the watch.
                StreamItem::Disconnected(reason) => drop(writeln!(
                    io::stderr().lock(),
                    "sidekey: {reason}; reconnecting"
                )),
            }
        }
    }

    fn show(&self, event: &ServerEvent, format: Format) -> Result<(), CliError> {
        let now = Timestamp::now();
        let (is_selected, text) = match event.kind.as_str() {
            "keyring" => {
                let change: KeyringChange = parse(event)?;
                (
                    self.selects(&self.keyring, &change.keyring),
                    change.describe(now),
                )
            }
            "secret" => {
                let change: SecretChange = parse(event)?;
                (
                    self.selects(&self.secret, &change.secret),
                    change.describe(now),
                )
            }
            // A newer sidecar may send other events.
            _ => return Ok(()),
        };
        if !is_selected {
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

    /// Whether the filters select `name`, which belongs to the kind of `list`.
    fn selects(&self, list: &[String], name: &str) -> bool {
        self.keyring.is_empty() && self.secret.is_empty()
            || list.iter().any(|selected| selected == name)
    }
}

fn parse<'e, T: Deserialize<'e>>(event: &'e ServerEvent) -> Result<T, CliError> {
    serde_json::from_str(&event.data)
        .map_err(|error| CliError::failed(format!("unexpected event from the sidecar: {error}")))
}

impl KeyringChange {
    fn describe(&self, now: Timestamp) -> String {
        let versions: Vec<String> = self
            .versions
            .iter()
            .map(|version| format!("{} {}", version.version, version.role))
            .collect();
        let primary = self.primary.map_or_else(
            || "no primary".into(),
            |primary| format!("primary {primary}"),
        );
        format!(
            "{now:.0}  {}  generation {}  {primary}  ({})",
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
            None => "deleted at the provider".into(),
        };
        let before = self
            .previous
            .as_ref()
            .map(|previous| format!("  (previous: {previous})"))
            .unwrap_or_default();
        format!("{now:.0}  secret {}  {state}{before}", self.secret)
    }
}
