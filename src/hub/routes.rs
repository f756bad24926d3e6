//! What a method and a path ask for, and of whom.

use std::collections::BTreeMap;

use hyper::Method;
use matchit::Router;

use super::caller::Access;
use crate::{http::problem::Problem, wire::Code};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Metrics,
    OpenApi,
    Stream,
    Report,
    ProofAnswer,
    Sidecars,
    Keyrings,
    Hint,
    Proofs,
    Barrier,
    Evidence,
    SubmitOrder,
    WaitingOrders,
    OrderStatus,
    DecideOrder,
    Journal,
    ReplaceJournal,
}

impl Route {
    /// Whether it is about orders and rollouts.
    pub(super) fn is_about_rollouts(self) -> bool {
        matches!(
            self,
            Self::SubmitOrder
                | Self::WaitingOrders
                | Self::OrderStatus
                | Self::DecideOrder
                | Self::Journal
                | Self::ReplaceJournal
        )
    }
}

/// A route, as the table of routes has it.
pub(super) struct Entry {
    pub(super) route: Route,
    pub(super) path: &'static str,
    pub(super) access: Access,
    method: Method,
}

impl Entry {
    const fn get(path: &'static str, route: Route, access: Access) -> Self {
        Self::with(Method::GET, path, route, access)
    }

    const fn post(path: &'static str, route: Route, access: Access) -> Self {
        Self::with(Method::POST, path, route, access)
    }

    const fn put(path: &'static str, route: Route, access: Access) -> Self {
        Self::with(Method::PUT, path, route, access)
    }

    const fn with(method: Method, path: &'static str, route: Route, access: Access) -> Self {
        Self {
            route,
            path,
            access,
            method,
        }
    }

    #[cfg(test)]
    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// The methods of the path, for the header `Allow`.
    fn allow(&self) -> &'static str {
        match self.route {
            Route::Journal | Route::ReplaceJournal => "GET, HEAD, PUT",
            // The response to HEAD would be the end of the stream before it.
            Route::Stream => "GET",
            _ if self.method == Method::POST => "POST",
            _ => "GET, HEAD",
        }
    }

    /// Whether this is the entry of its path for a method.
    fn is_for(&self, method: &Method) -> bool {
        let is_head = method == Method::HEAD && self.method == Method::GET;
        (self.method == method || is_head)
            && self.allow().split(", ").any(|allowed| method == allowed)
    }

    /// # Errors
    /// [`Code::MethodNotAllowed`]
    pub(super) fn require(&self, method: &Method) -> Result<(), Problem> {
        if self.is_for(method) {
            return Ok(());
        }
        Err(Problem::method_not_allowed(self.allow()))
    }
}

/// Every route.
pub(super) static ROUTES: [Entry; 18] = [
    Entry::get("/healthz", Route::Health, Access::Open),
    Entry::get("/v1/openapi.json", Route::OpenApi, Access::Open),
    Entry::get("/v1/stream", Route::Stream, Access::Report),
    Entry::post("/v1/reports", Route::Report, Access::Report),
    Entry::post("/v1/proof-answers", Route::ProofAnswer, Access::Report),
    Entry::get("/metrics", Route::Metrics, Access::Read),
    Entry::get("/v1/sidecars", Route::Sidecars, Access::Read),
    Entry::get("/v1/keyrings", Route::Keyrings, Access::Read),
    Entry::post("/v1/hints", Route::Hint, Access::Act),
    Entry::post("/v1/proofs", Route::Proofs, Access::Act),
    Entry::post("/v1/barriers", Route::Barrier, Access::Act),
    Entry::post("/v1/evidence", Route::Evidence, Access::Act),
    Entry::post("/v1/orders", Route::SubmitOrder, Access::Act),
    Entry::get("/v1/orders/waiting", Route::WaitingOrders, Access::Sign),
    Entry::get("/v1/orders/{id}", Route::OrderStatus, Access::Read),
    Entry::post("/v1/orders/{id}/outcome", Route::DecideOrder, Access::Sign),
    Entry::get("/v1/rollouts/{keyring}", Route::Journal, Access::Read),
    Entry::put("/v1/rollouts/{keyring}", Route::ReplaceJournal, Access::Act),
];

/// Finds routes by path and method.
pub(super) struct Routes(Router<Vec<&'static Entry>>);

impl Routes {
    pub(super) fn new() -> Self {
        let mut by_path: BTreeMap<&str, Vec<&'static Entry>> = BTreeMap::new();
        for entry in &ROUTES {
            by_path.entry(entry.path).or_default().push(entry);
        }
        let mut router = Router::new();
        for (path, entries) in by_path {
            if let Err(error) = router.insert(path, entries) {
                unreachable!("the routes above do not conflict: {error}");
            }
        }
        Self(router)
    }

    /// Returns the entry for a path and method, or one of the path's others.
    ///
    /// # Errors
    /// [`Code::NotFound`]
    pub(super) fn find(&self, path: &str, method: &Method) -> Result<&'static Entry, Problem> {
        let unknown = || {
            Problem::new(
                Code::NotFound,
                "unknown path; /v1/openapi.json lists the paths",
            )
        };
        let entries = self.0.at(path).map_err(|_| unknown())?.value;
        let fitting = entries.iter().find(|entry| entry.is_for(method));
        fitting.or(entries.first()).copied().ok_or_else(unknown)
    }
}
