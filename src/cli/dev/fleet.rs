//! `sidekey dev --fleet`: several sidecars in waves, with applications that use them, to try out
//! `sidekey rollout`.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;

use super::{hub::DevHub, load};
use crate::{
    app::{self, Bound, Config, ConfigFile},
    backend,
    cli::{
        output::{CliError, write_out},
        runtime::block_on,
    },
    clock::Clock,
    config::Log,
    lifecycle::{Signal, Signals},
    model::Wave,
    telemetry,
};

/// How long the sidecars may take to start.
const START: Duration = Duration::from_secs(30);
/// What the sidecars log.
const LEVEL: &str = "warn";
/// The most that one machine should run for a trial.
const MOST: usize = 64;

/// A fleet to try out.
pub(super) struct DevFleet {
    /// How many sidecars.
    pub(super) size: usize,
    /// The wave whose messages are damaged once they are encrypted under a new version.
    pub(super) fault: Option<Wave>,
}

impl DevFleet {
    /// Runs the fleet in `folder`, which has a KEK and the keyring `demo`, until a signal.
    pub(super) fn run(&self, folder: &Path) -> Result<(), CliError> {
        if !(1..=MOST).contains(&self.size) {
            return Err(CliError::usage(format!(
                "--fleet takes 1 to {MOST} sidecars, not {}",
                self.size
            )));
        }
        let log = Log {
            filter: LEVEL.into(),
            ..Log::default()
        };
        telemetry::init_logging(&log).map_err(CliError::failed)?;
        block_on(async {
            let mut signals = Signals::listen().map_err(CliError::failed)?;
            let hub = DevHub::start(folder).await?;
            let configs: Vec<Config> = self
                .configure(folder, &hub)?
                .into_iter()
                .map(|file| ConfigFile::new(file).load())
                .collect::<Result<_, _>>()?;
            let mut sidecars = Vec::new();
            for config in &configs {
                let backends = backend::configured(&config.settings.backends);
                sidecars.push(app::build(config, backends, Clock::system()).await?);
            }
            let ready = join_all(sidecars.iter().map(Bound::ready));
            if tokio::time::timeout(START, ready).await.is_err() {
                return Err(CliError::failed("the sidecars did not start; see the log"));
            }
            let file = describe(folder, &configs, &sidecars, &hub)?;
            let sockets = sidecars.iter().zip(&configs);
            let load = load::run(
                sockets
                    .map(|(sidecar, config)| load::Application {
                        socket: sidecar.socket().to_owned(),
                        is_faulty: self.fault.as_ref() == Some(&config.settings.wave),
                    })
                    .collect(),
            );
            write_out(&instructions(&file, self.fault.is_some()))?;
            tokio::select! {
                () = load => {}
                () = until_stopped(&mut signals) => {}
            }
            join_all(sidecars.into_iter().map(|sidecar| sidecar.stop(async {}))).await;
            hub.stop().await;
            Ok(())
        })
    }

    /// Writes a config for each sidecar.
    fn configure(&self, folder: &Path, hub: &DevHub) -> Result<Vec<PathBuf>, CliError> {
        (0..self.size)
            .map(|index| {
                let name = name(index);
                let config = folder.join(format!("{name}.toml"));
                let text =
                    sidecar_config(&name, wave(index, self.size)) + &hub.sidecar_config(&name);
                fs::write(&config, text)
                    .map_err(|error| CliError::failed(format!("{}: {error}", config.display())))?;
                Ok(config)
            })
            .collect()
    }
}

async fn until_stopped(signals: &mut Signals) {
    while signals.next().await != Signal::Stop {}
}

fn name(index: usize) -> String {
    format!("app-{}", index + 1)
}

/// One canary; a third of the others is `standard`, and the rest, which takes over last, is
/// `critical`.
fn wave(index: usize, size: usize) -> &'static str {
    match index {
        0 => "canary",
        _ if index <= ((size - 1) / 3).max(1) => "standard",
        _ => "critical",
    }
}

fn sidecar_config(name: &str, wave: &str) -> String {
    format!(
        r#"# Written by `sidekey dev --fleet` at every start.
wave = "{wave}"

[listen]
socket = "{name}.sock"
mode = "0600"

[ops]
listen = "127.0.0.1:0"

[log]
level = "{LEVEL}"

[backends]
local_keks = true

[[keyring]]
name = "demo"
location = "file:keyrings/demo.json"
keks = ["local:kek"]
"#
    )
}

/// Writes the fleet file, and returns its path.
fn describe(
    folder: &Path,
    configs: &[Config],
    sidecars: &[Bound],
    hub: &DevHub,
) -> Result<PathBuf, CliError> {
    let mut text = String::from(
        "# Written by `sidekey dev --fleet` at every start.\n\
         [[keyring]]\nname = \"demo\"\nlocation = \"file:keyrings/demo.json\"\n",
    );
    for (index, (sidecar, config)) in sidecars.iter().zip(configs).enumerate() {
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "\n# wave {}\n[[sidecar]]\nname = \"{}\"\nurl = \"http://{}\"\n",
            config.settings.wave,
            name(index),
            sidecar.ops()
        );
    }
    text.push_str(&hub.fleet_config());
    let file = folder.join("fleet.toml");
    fs::write(&file, text)
        .map_err(|error| CliError::failed(format!("{}: {error}", file.display())))?;
    Ok(file)
}

fn instructions(file: &Path, has_fault: bool) -> String {
    let program = std::env::current_exe()
        .map_or_else(|_| "sidekey".into(), |path| path.display().to_string());
    let (file, expected) = (
        file.display(),
        if has_fault {
            "fails in the wave with the injected fault and is rolled back"
        } else {
            "takes about a minute"
        },
    );
    format!(
        r#"
A fleet serves the keyring demo, and applications use it. Paste into another terminal:

export SIDEKEY_FLEET='{file}'
alias sidekey='{program}'

# the sidecars, and the versions of the keyring
sidekey fleet status
sidekey fleet keys

# what a rotation would do, and the rotation itself, which {expected}
sidekey rollout run demo --strategy quick --dry-run
sidekey rollout run demo --strategy quick

# in a third terminal, while it runs
sidekey rollout status demo
sidekey rollout pause demo
sidekey rollout resume demo

# go back to the version before, and write the report
sidekey rollout rollback demo
sidekey rollout report demo --format html --to rollout.html

Press Ctrl-C to stop.
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn every_fleet_has_one_canary_and_splits_the_rest() {
        let waves = |size| (0..size).map(|index| wave(index, size)).collect::<Vec<_>>();
        assert_eq!(waves(1), ["canary"]);
        assert_eq!(waves(2), ["canary", "standard"]);
        assert_eq!(
            waves(5),
            ["canary", "standard", "critical", "critical", "critical"]
        );
    }

    #[test]
    fn the_config_of_a_sidecar_is_valid() {
        let text = sidecar_config("app-1", "canary");
        let settings = config::parse(Path::new("/dev/app-1.toml"), &text).expect("valid");
        assert_eq!(settings.wave.as_str(), "canary");
    }
}
