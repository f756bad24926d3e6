//! What a method and a path ask for, and of whom.

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
}

/// A route, as the table of routes has it.
pub(super) struct Entry {
    pub(super) route: Route,
    pub(super) path: &'static str,
    pub(super) access: Access,
    is_post: bool,
}

impl Entry {
    const fn get(path: &'static str, route: Route, access: Access) -> Self {
        Self {
            route,
            path,
            access,
            is_post: false,
        }
    }

    const fn post(path: &'static str, route: Route, access: Access) -> Self {
        Self {
            route,
            path,
            access,
            is_post: true,
        }
    }

    #[cfg(test)]
    pub(super) fn method(&self) -> Method {
        if self.is_post {
            Method::POST
        } else {
            Method::GET
        }
    }

    /// # Errors
    /// [`Code::MethodNotAllowed`]
    pub(super) fn require(&self, method: &Method) -> Result<(), Problem> {
        let allow = match self.route {
            _ if self.is_post => "POST",
            // The response to HEAD would be the end of the stream before it.
            Route::Stream => "GET",
            _ => "GET, HEAD",
        };
        if allow.split(", ").any(|allowed| method == allowed) {
            return Ok(());
        }
        Err(Problem::method_not_allowed(allow))
    }
}

/// Every route.
pub(super) const ROUTES: [Entry; 11] = [
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
];

/// Finds routes by path.
pub(super) struct Routes(Router<&'static Entry>);

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = Router::new();
        for entry in &ROUTES {
            if let Err(error) = router.insert(entry.path, entry) {
                unreachable!("the routes above do not conflict: {error}");
            }
        }
        Self(router)
    }

    /// # Errors
    /// [`Code::NotFound`]
    pub(super) fn find(&self, path: &str) -> Result<&'static Entry, Problem> {
        let found = self.0.at(path).map_err(|_| {
            Problem::new(
                Code::NotFound,
                "unknown path; /v1/openapi.json lists the paths",
            )
        })?;
        Ok(found.value)
    }
}
