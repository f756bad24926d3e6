//! The hub of `sidekey dev --fleet`, which the sidecars join.

use std::{fs, net::SocketAddr, path::Path};

use crate::{
    cli::output::CliError,
    clock::Clock,
    config,
    crypto::{fingerprint, random, to_hex},
    files::replace,
    hub::{self, Hub},
};

/// A hub in this process, with its database in the dev folder.
pub(super) struct DevHub(Hub);

impl DevHub {
    /// Starts a hub whose files are in `folder`.
    pub(super) async fn start(folder: &Path) -> Result<Self, CliError> {
        for holder in ["sidecars", "operator"] {
            write_token(folder, holder)?;
        }
        let file = folder.join("hub.toml");
        write(&file, CONFIG)?;
        let settings = config::load_hub(&file)?;
        let hub = hub::start(&settings, Clock::system()).await;
        hub.map(Self).map_err(CliError::failed)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// What lets a sidecar join.
    pub(super) fn sidecar_config(&self, name: &str) -> String {
        format!(
            "\n[hub]\nurl = \"http://{}\"\nname = \"{name}\"\nworkload = \"demo\"\n\
             token_file = \"hub-sidecars.token\"\n",
            self.address()
        )
    }

    /// What lets commands ask the hub.
    pub(super) fn fleet_config(&self) -> String {
        format!(
            "\n# Counts the sidecars' uses, over restarts.\n[hub]\nurl = \"http://{}\"\n\
             token_file = \"hub-operator.token\"\n",
            self.address()
        )
    }

    pub(super) async fn stop(self) {
        self.0.stop(std::future::ready(())).await;
    }
}

const CONFIG: &str = r#"# Written by `sidekey dev --fleet` at every start.
listen = "127.0.0.1:0"
state_dir = "hub"
report_seconds = 2

[log]
level = "warn"

[[sidecar_identity]]
token_file = "hub-sidecars.sha256"
workloads = ["demo"]

[[operator]]
name = "you"
token_file = "hub-operator.sha256"
role = "operator"

[[workload]]
name = "demo"
keyrings = ["demo"]
"#;

/// Draws a token, and writes it and its digest.
fn write_token(folder: &Path, holder: &str) -> Result<(), CliError> {
    let token = to_hex(&random::<32>().map_err(CliError::failed)?);
    let digest = to_hex(&fingerprint(token.as_bytes()));
    for (kind, text) in [("token", token), ("sha256", digest)] {
        let file = folder.join(format!("hub-{holder}.{kind}"));
        replace(&file, format!("{text}\n").as_bytes(), |_| Ok(()))
            .map_err(|error| CliError::failed(format!("{}: {error}", file.display())))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), CliError> {
    fs::write(file, text).map_err(|error| CliError::failed(format!("{}: {error}", file.display())))
}
