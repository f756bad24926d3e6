//! Serves operators and applications, and joins the hub.

use std::sync::Arc;

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Context, ListenerTls, Sockets, State};
use crate::{
    api,
    crypto::RandomnessUnavailable,
    http::Accounts,
    join::{self, Hub, Membership},
    ops::{OpsParts, OpsServer},
    session::Prover,
};

/// What serves.
pub(super) struct Serving {
    /// Resolves when the last application connection is closed.
    pub(super) applications: JoinHandle<()>,
    /// Closes the connections of applications, whatever they are doing.
    pub(super) closing: CancellationToken,
    /// Being joined to a hub, if one is configured.
    pub(super) membership: Option<Membership>,
}

/// Serves operators on the current runtime and applications on `data_plane`.
pub(super) fn serve(
    context: &Context<'_>,
    state: &State,
    tls: &ListenerTls,
    hub: Option<Hub>,
    sockets: Sockets,
    data_plane: &Handle,
) -> Result<Serving, RandomnessUnavailable> {
    let (draining, ending) = (&context.stopping.draining, &context.stopping.ending);
    for tls in tls.all() {
        tokio::spawn(tls.follow_files(ending.clone()));
    }
    let (limits, timeouts) = (&context.settings.limits, &context.settings.timeouts);
    // Half of the time is for waiting, so that a body that gets its share can still arrive.
    let accounts = Accounts::new(limits, timeouts.body / 2);
    let prover = Prover::new()?;
    let instance = prover.id();
    let ops = operators(context, state, tls, &accounts, (prover, hub.clone()));
    let membership = match hub {
        Some(hub) => Some(hub.join(member(context, state, instance, &ops))?),
        None => None,
    };
    tokio::spawn(ops.run(sockets.ops, tls.operators.clone(), ending.clone()));
    let parts = api::Parts {
        accounts,
        settings: context.settings,
        policy: Arc::clone(&state.policy),
        keyrings: state.keyrings.clone(),
        secrets: Arc::clone(&state.secrets),
        registry: Arc::clone(&context.registry),
        audit: context.audit.clone(),
        clock: context.clock.clone(),
        tls: tls.applications.clone(),
    };
    let closing = ending.child_token();
    let applications =
        sockets
            .applications
            .serve(parts, draining.clone(), closing.clone(), data_plane);
    Ok(Serving {
        applications,
        closing,
        membership,
    })
}

fn operators(
    context: &Context<'_>,
    state: &State,
    tls: &ListenerTls,
    accounts: &Arc<Accounts>,
    (prover, hub): (Prover, Option<Hub>),
) -> Arc<OpsServer> {
    let (readiness, config) = (Arc::clone(&state.readiness), Arc::clone(&state.config));
    OpsServer::new(OpsParts {
        accounts: Arc::clone(accounts),
        keyrings: state.keyrings.clone(),
        secrets: Arc::clone(&state.secrets),
        renders: Arc::clone(&state.renders),
        keks: Arc::clone(&state.keks),
        prover,
        registry: Arc::clone(&context.registry),
        audit: context.audit.clone(),
        clock: context.clock.clone(),
        config: Box::new(move || Some(config.status())),
        hub: Box::new(move || hub.as_ref().map(Hub::status)),
        pending: Box::new(move || readiness.pending()),
        hosts: match &tls.operators {
            None => Some(context.settings.ops.hosts.clone()),
            Some(_) => None,
        },
        tls: tls.all(),
    })
}

fn member(
    context: &Context<'_>,
    state: &State,
    instance: [u8; 16],
    ops: &Arc<OpsServer>,
) -> join::Parts {
    let (status, prover) = (Arc::clone(ops), Arc::clone(ops));
    let refresh = &context.settings.refresh;
    join::Parts {
        instance,
        keyrings: state.keyrings.clone(),
        clock: context.clock.clone(),
        max_backoff: refresh.max_backoff,
        manifest_bytes: refresh.manifest_bytes,
        status: Box::new(move || status.state()),
        prove: Box::new(move |request| prover.prove(request)),
    }
}
