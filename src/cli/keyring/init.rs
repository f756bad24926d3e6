use std::str::FromStr;

use clap::Args;

use crate::{
    admin::AdminError,
    backend::ErrorKind,
    cli::{
        output::{CliError, Format},
        record::Completed,
        target::{Place, anchored, changed},
    },
    keyring::{Class, Policy},
    model::{KekUri, KeyringName, Span},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Init {
    #[command(flatten)]
    pub(super) place: Place,
    /// Name of the keyring.
    #[arg(long, value_parser = KeyringName::from_str)]
    name: KeyringName,
    /// KEK that wraps every version; repeat for failover.
    #[arg(long, required = true, value_name = "URI", value_parser = KekUri::from_str)]
    kek: Vec<KekUri>,
    /// Interval after which a new version is due.
    #[arg(
        long,
        value_name = "DURATION",
        default_value_t = Policy::default().rotate_every,
        value_parser = Span::from_str
    )]
    rotate_every: Span,
    /// Time without use by any sidecar before a version may be disabled.
    #[arg(
        long,
        value_name = "DURATION",
        default_value_t = Policy::default().quiet_period,
        value_parser = Span::from_str
    )]
    quiet_period: Span,
    /// Time that a sidecar keeps encrypting without confirming its manifest.
    #[arg(
        long,
        value_name = "DURATION",
        default_value_t = Policy::default().encrypt_lease,
        value_parser = Span::from_str
    )]
    encrypt_lease: Span,
    /// Time that a version must stay disabled before it may be destroyed.
    #[arg(
        long,
        value_name = "DURATION",
        default_value_t = Policy::default().destroy_after,
        value_parser = Span::from_str
    )]
    destroy_after: Span,
    /// Time that a superseded version may decrypt before that is reported.
    #[arg(long, value_name = "DURATION", value_parser = Span::from_str)]
    decrypt_until: Option<Span>,
    /// Window after a version's creation over which sidecars unwrap it, each at a point of its own.
    #[arg(long, value_name = "DURATION", value_parser = Span::from_str)]
    spread: Option<Span>,
    /// What shows that a version is no longer needed: no use (`live`), a scan or a person's word
    /// (`archive`), or a storage migration (`kms`).
    #[arg(long, value_name = "CLASS", default_value_t, value_parser = Class::from_str)]
    class: Class,
    /// Trust the clock of this machine, although it differs from that of a KEK or the location.
    #[arg(long)]
    trust_clock: bool,
}

impl Init {
    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let keks = anchored(&self.kek)?;
        let policy = Policy {
            rotate_every: self.rotate_every,
            quiet_period: self.quiet_period,
            encrypt_lease: self.encrypt_lease,
            destroy_after: self.destroy_after,
            decrypt_until: self.decrypt_until,
            spread: self.spread,
            class: self.class,
        };
        let admin = self.place.admin_of_new(self.trust_clock)?;
        let document = admin
            .init(self.name, &keks, policy)
            .await
            .map_err(|error| match error {
                AdminError::Backend(error) if error.kind == ErrorKind::Conflict => {
                    let location = admin.location();
                    CliError::failed(format!(
                        "{location}: a keyring already exists; use `keyring rotate` to add a \
                         version"
                    ))
                }
                other => other.into(),
            })?;
        changed(
            format,
            &admin,
            &document,
            Some(1),
            "keyring created; version 1 is the primary",
        )
    }
}
