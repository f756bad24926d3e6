use clap::Args;
use jiff::Timestamp;

use crate::cli::{
    output::{CliError, Format},
    record::Completed,
    target::{Target, changed},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Trim {
    #[command(flatten)]
    pub(super) target: Target,
    /// Drop the first versions, as far as all of them were destroyed before this time (RFC 3339).
    ///
    /// It must be at least 400 days and two encrypt leases ago: sidecars, copies and backups that
    /// still know one of the versions as not destroyed can't follow any more, and an `anchor` in a
    /// config must not name one.
    #[arg(long, value_name = "TIME")]
    before: Timestamp,
}

impl Trim {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let admin = self.target.admin()?;
        let document = admin.trim(self.before).await?;
        let message = format!(
            "the manifest starts with version {}",
            document.manifest().first_version()
        );
        changed(format, &admin, &document, None, &message)
    }
}
