//! Which URLs may be used without TLS, and how URLs appear in messages.

use hyper::Uri;

/// Checks that a URL uses TLS, or plain HTTP to loopback or to a host in `allowed`.
///
/// # Errors
/// A sentence that names the URL and the setting.
pub(super) fn check(url: &Uri, allowed: &[String]) -> Result<(), String> {
    let (host, shown) = (url.host().unwrap_or_default(), redacted(url));
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let is_loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback || allowed.iter().any(|name| name == host) => Ok(()),
        Some("http") => Err(format!(
            "{shown} is not https; to allow plain HTTP to {host}, list it in `backends.plain_http`"
        )),
        _ => Err(format!("{shown} is not an http or https URL")),
    }
}

/// Returns a URL for messages and logs, without its query, user and password: each of them may be
/// a credential.
pub(super) fn redacted(url: &Uri) -> String {
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
    fn credentials_in_a_url_are_redacted() {
        let redacted = |url: &str| redacted(&url.parse().expect("URL"));
        assert_eq!(
            redacted("https://user:pw@host:8200/a?sig=secret"),
            "https://host:8200/a?…"
        );
        assert_eq!(redacted("https://host/a"), "https://host/a");
        let url = "http://user:pw@host/a?sig=secret".parse().expect("URL");
        let error = check(&url, &[]).expect_err("plain HTTP");
        assert!(error.starts_with("http://host/a?… is not https"), "{error}");
    }

    #[test]
    fn plain_http_is_allowed_for_loopback_and_listed_hosts_only() {
        let is_allowed =
            |url: &str| check(&url.parse().expect("URL"), &["vault.internal".into()]).is_ok();
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
