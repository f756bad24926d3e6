use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    on_one_thread,
    output::{Failure, Format, print},
    shown,
};
use crate::{
    app,
    clock::Clock,
    config::{self, LoadError, Settings},
    lifecycle::Signals,
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Config {
    /// The config file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Unreadable { .. } => Self::failed(error.to_string()),
            LoadError::Invalid(problems) => Self::failed(format!("the config is not valid\n{problems}")),
        }
    }
}

impl Config {
    pub(super) fn serve(self) -> Result<(), Failure> {
        serve(&config::load(&self.config)?, async |_| Ok(()))
    }

    pub(super) fn check(self, format: Format) -> Result<(), Failure> {
        let file = shown(&self.config);
        match (config::load(&self.config), format) {
            (Ok(settings), _) => {
                let keyrings = settings.keyrings.len();
                print(format, &json!({ "file": file, "valid": true, "keyrings": keyrings }), || {
                    format!("{file}: valid, {keyrings} keyrings\n")
                })
            }
            (Err(LoadError::Invalid(problems)), Format::Json) => {
                let items: Vec<_> = problems
                    .items
                    .iter()
                    .map(|item| json!({ "line": item.line, "key": item.key, "message": item.message }))
                    .collect();
                print(format, &json!({ "file": file, "valid": false, "problems": items }), String::new)?;
                Err(Failure::failed(format!("{file}: the config is not valid")))
            }
            (Err(error), _) => Err(error.into()),
        }
    }
}

pub(super) fn serve(settings: &Settings, started: impl AsyncFnOnce(&app::Bound) -> Result<(), Failure>) -> Result<(), Failure> {
    telemetry::init_logging(&settings.log).map_err(Failure::failed)?;
    on_one_thread(async {
        // Before anything else, so that no signal ends the process the hard way.
        let signals = Signals::listen().map_err(|error| Failure::failed(format!("can't listen to signals: {error}")))?;
        let bound = app::build(settings, Clock::system()).await?;
        started(&bound).await?;
        bound.run(signals).await;
        Ok(())
    })
}
