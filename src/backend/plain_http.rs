use hyper::Uri;

/// Whether a URL may be talked to: over TLS, or in the clear with this machine and with hosts that are allowed by name.
///
/// # Errors
/// A sentence that says why not.
pub(super) fn allows(url: &Uri, allowed: &[String]) -> Result<(), String> {
    let host = url.host().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_here || allowed.iter().any(|name| name == host) => Ok(()),
        Some("http") => {
            Err(format!("{url} is not https; to talk to {host} in the clear all the same, list it in `backends.plain_http`"))
        }
        _ => Err(format!("{url} is not an http or https URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_named_hosts_are_talked_to_in_the_clear() {
        let is_allowed = |url: &str| allows(&url.parse().expect("URL"), &["vault.internal".into()]).is_ok();
        for url in
            ["https://anywhere/", "http://127.0.0.1:8200", "http://[::1]/", "http://localhost", "http://vault.internal:8200"]
        {
            assert!(is_allowed(url), "{url}");
        }
        for url in ["http://192.0.2.1/", "http://localhost.evil/", "http://internal/", "ftp://127.0.0.1/", "/path"] {
            assert!(!is_allowed(url), "{url}");
        }
    }
}
