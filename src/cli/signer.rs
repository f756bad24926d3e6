//! `sidekey signer`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    output::{CliError, Format, path_for_display, print},
    runtime::block_on,
};
use crate::{
    clock::Clock,
    config::load_signer,
    lifecycle::{Signal, Signals, notify_ready, notify_stopping},
    orders::OrderSigner,
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Signer {
    /// Config file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the config file and the files that it names, and report every problem.
    #[arg(long)]
    check: bool,
}

impl Signer {
    pub(super) fn run(self, format: Format) -> Result<(), CliError> {
        let settings = load_signer(&self.config)?;
        let signer = OrderSigner::new(&settings, &Clock::system())?;
        if self.check {
            let (file, keyrings) = (path_for_display(&self.config), settings.keyrings.len());
            let report = json!({ "file": file, "keyrings": keyrings });
            return print(format, &report, || {
                format!("{file}: valid: keyrings: {keyrings}\n")
            });
        }
        telemetry::init_logging(&settings.log).map_err(CliError::failed)?;
        block_on(run(signer))
    }
}

/// Runs a signer until it is told to stop.
async fn run(signer: OrderSigner) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let mut running = Box::pin(signer.run(stop.clone()));
    notify_ready();
    loop {
        let signal = tokio::select! {
            () = &mut running => return Ok(()),
            signal = signals.next() => signal,
        };
        if signal == Signal::Stop && stop.is_cancelled() {
            // Asked twice: what is being written is found out by the next signer.
            return Ok(());
        }
        if signal == Signal::Stop {
            tracing::info!("stopping after the present action");
            notify_stopping();
            stop.cancel();
        }
    }
}
