//! Finds what would keep a sidecar from starting, without starting one.

use std::sync::Arc;

use super::{ListenerTls, StartError, load_hub, registry};
use crate::{api, audit, backend::Backends, clock::Clock, config::Settings, http::tcp};

/// Does all that [`build`](super::build) may fail in, in the same order, but doesn't listen, read
/// manifests and secrets, or write records. A sidecar with the same settings may be running.
///
/// Returns everything that would keep a sidecar from starting.
pub async fn rehearse(
    settings: &Settings,
    backends: &Arc<dyn Backends>,
    clock: &Clock,
) -> Vec<StartError> {
    let mut found = Vec::new();
    let mut note = |error: Option<StartError>| found.extend(error);
    let registry = registry();
    note(fault(
        ListenerTls::operators(settings, &registry, clock).await,
    ));
    note(fault(
        ListenerTls::applications(settings, &registry, clock).await,
    ));
    note(fault(load_hub(settings, &registry, clock).await));
    let address = settings.ops.listen;
    let failed = |error| StartError::Ops { address, error };
    note(tcp::rehearse(address).map_err(failed).err());
    api::rehearse(settings)
        .into_iter()
        .for_each(|error| note(Some(error.into())));
    note(
        settings
            .audit
            .as_ref()
            .and_then(|settings| fault(audit::open(settings))),
    );
    for keyring in &settings.keyrings {
        note(fault(backends.store(&keyring.location)));
    }
    for secret in &settings.secrets.named {
        note(fault(backends.secret(&secret.source)));
    }
    found
}

fn fault<T>(result: Result<T, impl Into<StartError>>) -> Option<StartError> {
    result.err().map(Into::into)
}
