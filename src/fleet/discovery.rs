//! Sidecars in DNS: every address of a name is one.

use std::{collections::BTreeSet, net::SocketAddr};

use tokio::net::lookup_host;

use super::{Sidecar, parallel::ask_all};
use crate::{config::FleetDiscovery, model::OpsUrl};

/// A name of which every address (A and AAAA, by the system's resolver) is a sidecar.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// The name. Certificates are expected to be for it.
    pub dns: String,
    /// The port of the ops listeners.
    pub port: u16,
    /// Whether they speak TLS.
    pub is_tls: bool,
    /// The workload that they serve.
    pub workload: Option<String>,
}

impl From<FleetDiscovery> for Discovery {
    fn from(listed: FleetDiscovery) -> Self {
        Self {
            dns: listed.dns,
            port: listed.port,
            is_tls: listed.is_tls,
            workload: listed.workload,
        }
    }
}

/// A sidecar, or what DNS has none for, with the reason.
pub(super) type Found = Result<Sidecar, (String, String)>;

/// Returns the sidecars that are known, and those that DNS has now, each once.
pub(super) async fn find(known: &[Sidecar], discover: &[Discovery]) -> Vec<Found> {
    let answers = ask_all(discover, async |discovery: &Discovery| {
        let host = (discovery.dns.as_str(), discovery.port);
        let found = lookup_host(host).await;
        let found = found.map_err(|error| format!("can't be resolved: {error}"))?;
        // In a stable order.
        Ok(found.collect::<BTreeSet<SocketAddr>>())
    })
    .await;
    let mut found: Vec<Found> = known.iter().cloned().map(Ok).collect();
    for (discovery, addresses) in discover.iter().zip(answers) {
        match addresses {
            Err(reason) => {
                let name = format!("{}:{}", discovery.dns, discovery.port);
                found.push(Err((name, reason)));
            }
            Ok(addresses) => add(&mut found, discovery, addresses),
        }
    }
    found
}

fn add(found: &mut Vec<Found>, discovery: &Discovery, addresses: BTreeSet<SocketAddr>) {
    let scheme = if discovery.is_tls { "https" } else { "http" };
    for address in addresses {
        let url: OpsUrl = match format!("{scheme}://{address}").parse() {
            Ok(url) => url,
            Err(error) => {
                found.push(Err((address.to_string(), error.to_string())));
                continue;
            }
        };
        let is_known = |known: &Found| known.as_ref().is_ok_and(|known| known.url == url);
        if !found.iter().any(is_known) {
            found.push(Ok(Sidecar {
                workload: discovery.workload.clone(),
                found_as: Some(discovery.dns.clone()),
                ..Sidecar::at(url)
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery(dns: &str, is_tls: bool) -> Discovery {
        Discovery {
            dns: dns.into(),
            port: 9464,
            is_tls,
            workload: Some("shop".into()),
        }
    }

    fn addresses(texts: &[&str]) -> BTreeSet<SocketAddr> {
        let parse = |text: &&str| text.parse().expect("an address");
        texts.iter().map(parse).collect()
    }

    #[test]
    fn each_address_is_a_sidecar_once() {
        let known = Sidecar {
            name: "first".into(),
            ..Sidecar::at("https://10.0.0.1:9464".parse().expect("a URL"))
        };
        let mut found: Vec<Found> = vec![Ok(known)];
        let both = addresses(&["10.0.0.2:9464", "10.0.0.1:9464", "[fd00::1]:9464"]);
        add(&mut found, &discovery("a.svc", true), both);
        add(
            &mut found,
            &discovery("b.svc", true),
            addresses(&["10.0.0.2:9464"]),
        );
        let found: Vec<Sidecar> = found.into_iter().map(|one| one.expect("valid")).collect();
        let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(
            names,
            ["first", "https://10.0.0.2:9464", "https://[fd00::1]:9464"]
        );
        assert_eq!(found[1].found_as.as_deref(), Some("a.svc"));
        assert_eq!(found[1].workload.as_deref(), Some("shop"));
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_part_of_the_result() {
        // RFC 6761 §6.4: no such name exists.
        let found = find(&[], &[discovery("sidekey.invalid", false)]).await;
        let [Err((name, reason))] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(name, "sidekey.invalid:9464");
        assert!(reason.starts_with("can't be resolved"), "{reason}");
    }

    #[tokio::test]
    async fn localhost_is_found() {
        let found = find(&[], &[discovery("localhost", false)]).await;
        let is_loopback = |one: &Found| {
            one.as_ref()
                .is_ok_and(|one| one.url.host() == "127.0.0.1" || one.url.host() == "::1")
        };
        assert!(
            !found.is_empty() && found.iter().all(is_loopback),
            "{found:?}"
        );
    }
}
