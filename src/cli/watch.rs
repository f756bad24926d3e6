//! `sidekey watch`.

use std::{
    io::{self, Write},
    thread,
};

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::{
    client::Connection,
    output::{CliError, Format, note, printable},
};
use crate::{
    client::{EventStream, StreamItem},
    files::Patient,
    wire::ServerEvent,
};

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
        let failed = |error| CliError::unwritable("standard output", &error);
        let mut out = Patient::stdout().map_err(failed)?;
        let mut events = EventStream::new(self.connection.socket());
        let closed = closed(Patient::stdout().map_err(failed)?)?;
        let watch = async {
            // The first connection must succeed; later ones are retried.
            loop {
                match events.next().await? {
                    StreamItem::Connected => {}
                    StreamItem::Event(event) => self.show(&event, format, &mut out)?,
                    StreamItem::Disconnected(reason) => {
                        note(format_args!("{reason}; reconnecting"));
                    }
                }
            }
        };
        tokio::select! {
            result = watch => result,
            Ok(()) = closed => Err(failed(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn show(&self, event: &ServerEvent, format: Format, out: &mut Patient) -> Result<(), CliError> {
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
        let line = match format {
            Format::Json => format!("{}\n", event.data),
            Format::Text => format!("{}\n", printable(&text)),
        };
        out.write_all(line.as_bytes())
            .map_err(|error| CliError::unwritable("standard output", &error))
    }

    /// Whether the filters select `name`, which belongs to the kind of `list`.
    fn selects(&self, list: &[String], name: &str) -> bool {
        self.keyring.is_empty() && self.secret.is_empty()
            || list.iter().any(|selected| selected == name)
    }
}

/// Resolves once `out` has no reader any more, such as `grep -m 1`: a write would notice that only
/// at the next change.
fn closed(out: Patient) -> io::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    // Ends with the process.
    thread::Builder::new().spawn(move || {
        out.wait_until_unread();
        // The watch may have ended.
        let _ = sender.send(());
    })?;
    Ok(receiver)
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
