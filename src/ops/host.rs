//! Which names the ops listener answers to.
//!
//! A web page can make a browser ask a name that its author then points at this listener (DNS
//! rebinding), and read the response. The request names the page's own host, so it is refused.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    header::HOST,
    http::{request, uri::Authority},
};

use crate::{http::problem::Problem, wire::Code};

/// Checks the host of a request, which is `names` in addition to addresses and localhost.
///
/// # Errors
/// [`Code::Forbidden`]
pub(super) fn check(head: &request::Parts, names: &[String]) -> Result<(), Problem> {
    let host = match (head.uri.authority(), head.headers.get(HOST)) {
        (Some(authority), _) => Some(authority.host().to_owned()),
        // Without a host, it is no browser.
        (None, None) => return Ok(()),
        (None, Some(value)) => value.to_str().ok().and_then(name),
    };
    let is_named = |host: &str| {
        host.eq_ignore_ascii_case("localhost")
            || names.iter().any(|name| name.eq_ignore_ascii_case(host))
    };
    match host {
        Some(host) if is_address(&host) || is_named(&host) => Ok(()),
        _ => Err(Problem::new(
            Code::Forbidden,
            "this listener answers requests for its address, localhost and the names in \
             `ops.hosts` only",
        )),
    }
}

/// The name or address in a `Host` header (RFC 9110 §7.2).
fn name(value: &str) -> Option<String> {
    let authority: Authority = value.parse().ok()?;
    Some(authority.host().to_owned())
}

fn is_address(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || host.parse::<SocketAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn is_allowed(uri: &str, host: Option<&str>) -> bool {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        check(&head, &["sidekey.prod.svc".into()]).is_ok()
    }

    #[test]
    fn addresses_and_known_names_are_answered() {
        for host in [
            "127.0.0.1:9464",
            "10.0.0.7",
            "[::1]:9464",
            "localhost:9464",
            "LocalHost",
            "sidekey.prod.svc:9464",
            "Sidekey.Prod.svc",
        ] {
            assert!(is_allowed("/status", Some(host)), "{host}");
        }
        assert!(is_allowed("/status", None));
        assert!(is_allowed("http://127.0.0.1:9464/status", None), "HTTP/2");
    }

    #[test]
    fn other_names_are_refused() {
        for host in [
            "evil.example:9464",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "x.sidekey.prod.svc",
            "",
            "a b",
        ] {
            assert!(!is_allowed("/status", Some(host)), "{host}");
        }
        assert!(!is_allowed("http://evil.example/status", None), "HTTP/2");
        // The target's own host counts, whatever the header says (RFC 9112 §3.2.2).
        assert!(!is_allowed("http://evil.example/status", Some("127.0.0.1")));
    }
}
