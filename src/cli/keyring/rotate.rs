use std::str::FromStr;

use clap::Args;
use jiff::Timestamp;

use crate::{
    admin::Takeover,
    cli::{
        output::{CliError, Format},
        record::Completed,
        target::{Target, anchored, changed},
    },
    keyring::WaveSelector,
    model::KekUri,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Rotate {
    #[command(flatten)]
    pub(super) target: Target,
    /// Make the version the primary of every wave, now or at a time such as 2027-01-31T06:00:00Z.
    ///
    /// Without this flag the version stays pending until `keyring activate`.
    #[arg(long, value_name = "now|TIME", value_parser = parse_takeover)]
    activate: Option<Takeover>,
    /// Wrap the version with these KEKs instead of those of the newest version.
    #[arg(long, value_name = "URI", value_parser = KekUri::from_str)]
    kek: Vec<KekUri>,
}

fn parse_takeover(text: &str) -> Result<Takeover, String> {
    match text {
        "now" => Ok(Takeover::Now),
        time => time
            .parse()
            .map(Takeover::At)
            .map_err(|_| "expected `now` or a time such as 2027-01-31T06:00:00Z".into()),
    }
}

impl Rotate {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let keks = anchored(&self.kek)?;
        let admin = self.target.admin()?;
        let takeover = self.activate.unwrap_or(Takeover::Later);
        let (document, version) = admin.rotate(&keks, takeover).await?;
        let message = match takeover {
            Takeover::Later => format!(
                "version {version} added, pending; activate it with \
                 `keyring activate --version {version}`"
            ),
            Takeover::Now => format!("version {version} added and activated"),
            Takeover::At(at) => {
                format!("version {version} added; it becomes the primary of every wave at {at}")
            }
        };
        changed(format, &admin, &document, Some(version), &message)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Activate {
    #[command(flatten)]
    pub(super) target: Target,
    /// Version to activate.
    #[arg(long)]
    pub(super) version: u32,
    /// Wave to activate it for; `*` means every wave.
    #[arg(long, value_parser = WaveSelector::from_str, default_value = "*")]
    wave: WaveSelector,
    /// Time of the activation, such as 2027-01-31T06:00:00Z; now by default.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
}

impl Activate {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let admin = self.target.admin()?;
        let document = admin
            .activate(self.version, self.wave.clone(), self.at)
            .await?;
        let version = self.version;
        let wave = match &self.wave {
            WaveSelector::Every => "every wave".into(),
            WaveSelector::One(wave) => format!("wave {wave}"),
        };
        let message = match self.at {
            None => format!("version {version} activated for {wave}"),
            Some(at) => format!("version {version} becomes the primary of {wave} at {at}"),
        };
        changed(format, &admin, &document, Some(version), &message)
    }
}
