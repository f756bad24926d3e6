//! The KEK clients that are kept. The writer of a manifest can name any number of KEKs under a
//! pattern of the config, and each is asked before the manifest is authenticated: so both the
//! clients and the metrics that they leave behind are bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::client::KekClient;
use crate::model::KekUri;

/// More than the keyrings of one sidecar have.
const MAX_CLIENTS: usize = 256;
/// How many KEKs have series of their own, which last as long as the process.
const MAX_LABELS: usize = 256;
/// The label of all others. It isn't a KEK's URI.
const OTHERS: &str = "other";

/// Clients by KEK.
#[derive(Default)]
pub(super) struct Clients {
    kept: BTreeMap<KekUri, Kept>,
    labelled: BTreeSet<KekUri>,
    /// How many times a client was requested.
    uses: u64,
}

struct Kept {
    client: Arc<KekClient>,
    last_use: u64,
}

/// The metrics of a KEK: its own, or those of all that have none.
pub(super) enum Label<'u> {
    Own(&'u KekUri),
    Others,
}

impl Label<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Own(uri) => uri.as_str(),
            Self::Others => OTHERS,
        }
    }
}

impl Clients {
    /// Returns the client of a KEK, made with `create` if there is none. To make room, a client is
    /// forgotten with its health: one that never worked, or else the one that was not used longest.
    pub(super) fn client(
        &mut self,
        uri: &KekUri,
        create: impl FnOnce(Label<'_>) -> KekClient,
    ) -> Arc<KekClient> {
        self.uses += 1;
        if let Some(kept) = self.kept.get_mut(uri) {
            kept.last_use = self.uses;
            return Arc::clone(&kept.client);
        }
        if self.kept.len() >= MAX_CLIENTS {
            self.forget_one();
        }
        let client = Arc::new(create(self.label(uri)));
        let kept = Kept {
            client: Arc::clone(&client),
            last_use: self.uses,
        };
        self.kept.insert(uri.clone(), kept);
        client
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &KekClient> {
        self.kept.values().map(|kept| &*kept.client)
    }

    fn forget_one(&mut self) {
        let oldest = self
            .kept
            .iter()
            .min_by_key(|(_, kept)| (kept.client.has_worked(), kept.last_use))
            .map(|(uri, _)| uri.clone());
        if let Some(uri) = oldest {
            self.kept.remove(&uri);
        }
    }

    fn label<'u>(&mut self, uri: &'u KekUri) -> Label<'u> {
        if self.labelled.len() < MAX_LABELS {
            self.labelled.insert(uri.clone());
        }
        if self.labelled.contains(uri) {
            Label::Own(uri)
        } else {
            Label::Others
        }
    }
}

#[cfg(all(test, feature = "local"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        backend::{BackendError, ErrorKind, Kek, local::LocalKek},
        clock::Clock,
        crypto::{Dek, KeyringId, WrapContext},
        telemetry::Registry,
    };

    struct World {
        registry: Arc<Registry>,
        clients: Clients,
    }

    impl World {
        fn client(
            &mut self,
            name: &str,
            kek: Result<Arc<dyn Kek>, BackendError>,
        ) -> Arc<KekClient> {
            let uri = format!("vault-transit:transit/{name}");
            let uri = uri.parse().expect("a KEK's URI");
            let registry = &self.registry;
            self.clients.client(&uri, |label| {
                let timeout = Duration::from_secs(1);
                KekClient::new(&uri, label, kek, timeout, Clock::system(), registry)
            })
        }

        fn unusable(&mut self, name: &str) -> Arc<KekClient> {
            let error = BackendError::new(ErrorKind::NotFound, name, "there is no such key");
            self.client(name, Err(error))
        }
    }

    #[tokio::test]
    async fn any_number_of_keks_leaves_few_clients_and_series_and_those_that_worked() {
        let mut world = World {
            registry: Arc::new(Registry::default()),
            clients: Clients::default(),
        };
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("kek");
        LocalKek::create(&file).expect("a KEK");
        let kek = Arc::new(LocalKek::new(&file));
        let good = world.client("good", Ok(kek));
        let context = WrapContext {
            keyring: KeyringId::generate().expect("randomness"),
            version: 1,
        };
        let dek = Dek::generate().expect("randomness");
        good.wrap(&dek, context).await.expect("wrapped");
        for number in 0..10_000 {
            world.unusable(&format!("bad-{number}"));
        }
        assert_eq!(world.clients.kept.len(), MAX_CLIENTS);
        let again = world.unusable("good");
        assert!(Arc::ptr_eq(&good, &again), "one that worked is kept");
        let metrics = world.registry.render();
        let labels: BTreeSet<&str> = metrics
            .lines()
            .filter_map(|line| line.split_once("kek=\"")?.1.split('"').next())
            .collect();
        assert_eq!(labels.len(), MAX_LABELS + 1);
        assert!(labels.contains(OTHERS) && labels.contains("vault-transit:transit/good"));
    }
}
