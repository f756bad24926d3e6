use hyper::Uri;

/// Whether a URL may be talked to: over TLS, or in the clear with this machine and with hosts that are allowed by name.
///
/// # Errors
/// A sentence that says why not.
pub(super) fn allows(url: &Uri, allowed: &[String]) -> Result<(), String> {
    let (host, shown) = (url.host().unwrap_or_default(), shown(url));
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_here || allowed.iter().any(|name| name == host) => Ok(()),
        Some("http") => Err(format!(
            "{shown} is not https; to talk to {host} in the clear all the same, list it in `backends.plain_http`"
        )),
        _ => Err(format!("{shown} is not an http or https URL")),
    }
}

/// A URL for people and logs: without a query, a user or a password, each of which may be what lets its bearer in.
pub(super) fn shown(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let query = if url.query().is_some() { "?…" } else { "" };
    let scheme = url
        .scheme_str()
        .map(|scheme| format!("{scheme}://"))
        .unwrap_or_default();
    format!("{scheme}{host}{}{query}", url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_somebody_in_is_not_shown() {
        let shown = |url: &str| shown(&url.parse().expect("URL"));
        assert_eq!(
            shown("https://user:pw@host:8200/a?sig=secret"),
            "https://host:8200/a?…"
        );
        assert_eq!(shown("https://host/a"), "https://host/a");
        let refused = allows(
            &"http://user:pw@host/a?sig=secret".parse().expect("URL"),
            &[],
        )
        .expect_err("plain");
        assert!(
            refused.starts_with("http://host/a?… is not https"),
            "{refused}"
        );
    }

    #[test]
    fn only_this_machine_and_named_hosts_are_talked_to_in_the_clear() {
        let is_allowed =
            |url: &str| allows(&url.parse().expect("URL"), &["vault.internal".into()]).is_ok();
        for url in [
            "https://anywhere/",
            "http://127.0.0.1:8200",
            "http://[::1]/",
            "http://localhost",
            "http://vault.internal:8200",
        ] {
            assert!(is_allowed(url), "{url}");
        }
        for url in [
            "http://192.0.2.1/",
            "http://localhost.evil/",
            "http://internal/",
            "ftp://127.0.0.1/",
            "/path",
        ] {
            assert!(!is_allowed(url), "{url}");
        }
    }
}
