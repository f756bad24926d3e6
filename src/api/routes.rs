//! What a method and a path ask for.

use std::borrow::Cow;

use hyper::Method;
use matchit::Router;
use percent_encoding::percent_decode_str;

use crate::{http::problem::Problem, model::Operation, wire::Code};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Keyrings,
    Keyring,
    Secrets,
    Secret,
    Events,
    OpenApi,
    Operation(Operation),
}

/// The paths of the API.
pub(super) struct Routes(Router<Route>);

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = Router::new();
        let operation = |name: &str, operation| {
            let path = format!("/v1/keyrings/{{name}}/{name}");
            (path, Route::Operation(operation))
        };
        let routes = [
            ("/v1/keyrings".into(), Route::Keyrings),
            ("/v1/keyrings/{name}".into(), Route::Keyring),
            ("/v1/secrets".into(), Route::Secrets),
            ("/v1/secrets/{name}".into(), Route::Secret),
            ("/v1/events".into(), Route::Events),
            ("/v1/openapi.json".into(), Route::OpenApi),
            operation("data-key", Operation::DataKey),
            operation("encrypt", Operation::Encrypt),
            operation("decrypt", Operation::Decrypt),
            operation("rewrap", Operation::Rewrap),
        ];
        for (path, route) in routes {
            if let Err(error) = router.insert(path, route) {
                unreachable!("the routes above do not conflict: {error}");
            }
        }
        Self(router)
    }

    /// Finds the route of a request, and the name in its path; empty where the path has none.
    ///
    /// # Errors
    /// [`Code::NotFound`], [`Code::MethodNotAllowed`], and [`Code::InvalidRequest`] for a path that
    /// can't be decoded.
    pub(super) fn find<'r>(
        &self,
        method: &Method,
        path: &'r str,
    ) -> Result<(Route, Cow<'r, str>), Problem> {
        let (route, name) = match decoded(path)? {
            Cow::Borrowed(path) => {
                let (route, name) = self.at(path)?;
                (route, Cow::Borrowed(name))
            }
            Cow::Owned(path) => {
                let (route, name) = self.at(&path)?;
                (route, Cow::Owned(name.to_owned()))
            }
        };
        match route {
            Route::Operation(_) if *method != Method::POST => {
                Err(Problem::method_not_allowed("POST"))
            }
            Route::Operation(_) => Ok((route, name)),
            _ if *method != Method::GET && *method != Method::HEAD => {
                Err(Problem::method_not_allowed("GET, HEAD"))
            }
            _ => Ok((route, name)),
        }
    }

    fn at<'p>(&self, path: &'p str) -> Result<(Route, &'p str), Problem> {
        match self.0.at(path) {
            Ok(found) => Ok((*found.value, found.params.get("name").unwrap_or_default())),
            Err(_) => Err(Problem::new(Code::NotFound, unknown(path))),
        }
    }
}

/// Decodes a path once, as far as that leaves no doubt about its segments.
fn decoded(path: &str) -> Result<Cow<'_, str>, Problem> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let invalid = |detail| Problem::new(Code::InvalidRequest, detail);
    let is_hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    for (at, _) in path.match_indices('%') {
        let digits = &path.as_bytes()[at + 1..];
        if !is_hex(digits.first()) || !is_hex(digits.get(1)) {
            return Err(invalid(
                "the path contains a % without two hexadecimal digits after it",
            ));
        }
        if digits[..2].eq_ignore_ascii_case(b"2f") {
            return Err(invalid(
                "the path contains an encoded slash (%2F), and no name contains a slash",
            ));
        }
    }
    let decoded = percent_decode_str(path).decode_utf8();
    decoded.map_err(|_| invalid("the path is not UTF-8 after percent-decoding"))
}

/// Says what is wrong with a path.
fn unknown(path: &str) -> &'static str {
    let mut segments = path.split('/').skip(1);
    if segments
        .clone()
        .any(|segment| matches!(segment, "." | ".."))
    {
        "unknown path: the segments . and .. are not resolved; docs/api.md lists the valid paths"
    } else if segments.any(str::is_empty) {
        "unknown path: it contains // or ends with a slash; docs/api.md lists the valid paths"
    } else {
        "docs/api.md lists the valid paths"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'p>(method: Method, path: &'p str) -> Result<(Route, Cow<'p, str>), String> {
        let found = Routes::new().find(&method, path);
        found.map_err(|problem| String::from_utf8(problem.to_json()).expect("text"))
    }

    #[test]
    fn a_name_may_be_percent_encoded_once() {
        for path in [
            "/v1/secrets/team-a.b_c",
            "/v1/secrets/team%2Da%2eb%5Fc",
            "/v1/%73ecrets/te%61m-a.b_c",
        ] {
            let found = (Route::Secret, "team-a.b_c".into());
            assert_eq!(find(Method::GET, path), Ok(found), "{path}");
        }
        let twice = (Route::Secret, "a%2Eb".into());
        assert_eq!(find(Method::GET, "/v1/secrets/a%252Eb"), Ok(twice));
        let operation = (Route::Operation(Operation::Encrypt), "a.b".into());
        let path = "/v1/keyrings/a%2Eb/encrypt";
        assert_eq!(find(Method::POST, path), Ok(operation));
    }

    #[test]
    fn a_path_with_two_readings_is_refused_with_the_reason() {
        for (path, expected) in [
            ("/v1/secrets/a%2Fb", "encoded slash"),
            ("/v1/secrets%2fa", "encoded slash"),
            ("/v1/secrets/a%", "hexadecimal"),
            ("/v1/secrets/a%4", "hexadecimal"),
            ("/v1/secrets/a%zz", "hexadecimal"),
            ("/v1/secrets/a%ff", "UTF-8"),
        ] {
            let problem = find(Method::GET, path).expect_err(path);
            assert!(problem.contains("invalid_request"), "{path}: {problem}");
            assert!(problem.contains(expected), "{path}: {problem}");
        }
    }

    #[test]
    fn an_unknown_path_says_what_is_unusual_about_it() {
        for (path, expected) in [
            ("//v1/secrets/a", "contains // or ends with a slash"),
            ("/v1//secrets/a", "contains // or ends with a slash"),
            ("/v1/secrets/a/", "contains // or ends with a slash"),
            ("/v1/secrets/", "contains // or ends with a slash"),
            ("/v1/./secrets/a", "not resolved"),
            ("/v1/x/%2E%2E/secrets", "not resolved"),
            ("/", "docs/api.md"),
            ("*", "docs/api.md"),
            ("", "docs/api.md"),
            ("/v1/nothing", "docs/api.md"),
        ] {
            let problem = find(Method::GET, path).expect_err(path);
            assert!(problem.contains("not_found"), "{path}: {problem}");
            assert!(problem.contains(expected), "{path}: {problem}");
        }
    }

    #[test]
    fn what_can_be_fetched_has_a_head() {
        for path in [
            "/v1/keyrings",
            "/v1/keyrings/a",
            "/v1/secrets",
            "/v1/secrets/a",
            "/v1/events",
            "/v1/openapi.json",
        ] {
            assert!(find(Method::GET, path).is_ok() && find(Method::HEAD, path).is_ok());
            let problem = find(Method::POST, path).expect_err(path);
            assert!(problem.contains("allowed: GET, HEAD"), "{problem}");
        }
        let problem = find(Method::HEAD, "/v1/keyrings/a/encrypt").expect_err("POST only");
        assert!(problem.contains("allowed: POST"), "{problem}");
    }
}
