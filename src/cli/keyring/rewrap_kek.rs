use std::str::FromStr;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

use crate::{
    admin::KekChange,
    cli::{
        output::{CliError, Format},
        record::Completed,
        target::{Target, anchored, changed},
    },
    model::KekUri,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct RewrapKek {
    #[command(flatten)]
    pub(super) target: Target,
    /// Add a wrap with this KEK to every version.
    #[arg(
        long,
        value_name = "URI",
        value_parser = KekUri::from_str,
        required_unless_present_any = ["remove", "refresh", "refresh_before"]
    )]
    add: Vec<KekUri>,
    /// Remove the wraps of this KEK.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str)]
    remove: Vec<KekUri>,
    /// Renew every remaining wrap, for example after a KEK was rotated.
    #[arg(long)]
    refresh: bool,
    /// Renew only wraps older than this time, to resume an interrupted --refresh.
    #[arg(long, value_name = "TIME", conflicts_with = "refresh")]
    refresh_before: Option<Timestamp>,
}

impl RewrapKek {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let (add, remove) = (anchored(&self.add)?, anchored(&self.remove)?);
        let admin = self.target.admin()?;
        let refresh_before = if self.refresh {
            Some(admin.now())
        } else {
            self.refresh_before
        };
        let change = KekChange {
            add,
            remove,
            refresh_before,
        };
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::new(0).with_style(style());
        let progress = |done: usize, of: usize| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        };
        let result = admin.rewrap(&change, progress).await;
        bar.finish_and_clear();
        let (document, done) = result.map_err(|error| {
            let failure = CliError::from(error);
            match refresh_before {
                Some(time) => failure.with_hint(&format!("to resume: --refresh-before {time}")),
                None => failure,
            }
        })?;
        let message = format!("rewrapped {done} versions");
        changed(format, &admin, &document, None, &message)
    }
}

fn style() -> ProgressStyle {
    // The template is valid, so the fallback is never used.
    ProgressStyle::with_template("{bar:40} {pos}/{len} versions  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
