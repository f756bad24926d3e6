//! The sidecars that have joined: listed piece by piece, for a fleet's statuses don't fit into
//! memory at once; and the inventory of the keys that they hold.

use std::{collections::VecDeque, sync::Arc};

use async_stream::stream;
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use super::{
    registry::{Instance, InstanceId},
    store::{Store, StoreError},
    streams::Streams,
};
use crate::{
    files::run_blocking,
    fleet::{
        Member,
        inventory::{self, KeyRow},
    },
    http::problem::Problem,
    wire::{Code, hub::JoinedSidecar, status::Status},
};

/// The instances that are read at a time.
const PAGE: usize = 256;

/// Reads the sidecars that have joined and not ended, by name.
pub(super) struct Joined {
    store: Arc<Store>,
    streams: Arc<Streams>,
    /// What was read and not returned.
    waiting: VecDeque<JoinedSidecar>,
    /// The last one that was read.
    after: Option<(String, InstanceId)>,
    is_end: bool,
}

impl Joined {
    pub(super) fn new(store: Arc<Store>, streams: Arc<Streams>) -> Self {
        Self {
            store,
            streams,
            waiting: VecDeque::new(),
            after: None,
            is_end: false,
        }
    }

    /// Returns those of the next name.
    ///
    /// One that isn't connected is left out if a later one reports: its process was replaced, and
    /// only the ledger has to remember that its end was not seen.
    async fn next(&mut self) -> Result<Option<Vec<JoinedSidecar>>, StoreError> {
        let name = loop {
            let first = self.waiting.front().map(|first| &first.name);
            match (first, self.waiting.back()) {
                // All of its instances were read, for another name follows.
                (Some(first), Some(last)) if self.is_end || *first != last.name => {
                    break first.clone();
                }
                (None, _) if self.is_end => return Ok(None),
                _ => self.read().await?,
            }
        };
        let count = self
            .waiting
            .iter()
            .take_while(|sidecar| sidecar.name == name)
            .count();
        let group: Vec<JoinedSidecar> = self.waiting.drain(..count).collect();
        let newest = group.iter().map(|sidecar| sidecar.received_at).max();
        let is_current = |one: &JoinedSidecar| one.connected || Some(one.received_at) == newest;
        Ok(Some(group.into_iter().filter(is_current).collect()))
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let after = self.after.as_ref();
        let page = self.store.open_instances(after, PAGE).await?;
        self.is_end = page.len() < PAGE;
        if let Some(last) = page.last() {
            self.after = Some((last.name.clone(), last.id));
        }
        let streams = Arc::clone(&self.streams);
        let joined = page.into_iter().map(|instance| joined(instance, &streams));
        self.waiting.extend(joined);
        Ok(())
    }
}

/// Returns [`JoinedSidecars`](crate::wire::hub::JoinedSidecars) as JSON.
pub(super) fn list(mut joined: Joined) -> impl Stream<Item = Result<Bytes, Problem>> + Send {
    stream! {
        let mut text = Vec::from(b"{\"sidecars\":[");
        let mut separator: &[u8] = b"";
        loop {
            let sidecars = match joined.next().await {
                Ok(Some(sidecars)) => sidecars,
                Ok(None) => break,
                Err(error) => {
                    yield Err(error.into());
                    return;
                }
            };
            for sidecar in sidecars {
                text.extend_from_slice(separator);
                separator = b",";
                if let Err(error) = serde_json::to_writer(&mut text, &sidecar) {
                    yield Err(Problem::new(Code::Internal, error.to_string()));
                    return;
                }
            }
            if text.len() >= CHUNK {
                yield Ok(Bytes::from(std::mem::take(&mut text)));
            }
        }
        text.extend_from_slice(b"]}");
        yield Ok(Bytes::from(text));
    }
}

/// How much of the list is sent at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// The key versions that the sidecars hold, as `sidekey fleet keys` shows them.
#[derive(Serialize)]
pub(super) struct Inventory {
    keys: Vec<KeyRow>,
}

/// Returns the inventory of the sidecars that have joined.
///
/// # Errors
/// The database can't be read.
pub(super) async fn inventory(mut joined: Joined) -> Result<Inventory, StoreError> {
    let mut statuses: Vec<(Member, Result<Status, String>)> = Vec::new();
    while let Some(sidecars) = joined.next().await? {
        statuses.extend(sidecars.into_iter().map(|sidecar| {
            let mut status = sidecar.status;
            // What the inventory has no use for.
            status.secrets.clear();
            status.renders.clear();
            let member = Member {
                name: sidecar.name,
                url: None,
                workload: Some(sidecar.workload),
                is_joined: true,
                shares_name: false,
            };
            (member, Ok(status))
        }));
    }
    let keys = run_blocking(move || inventory::keys(&statuses)).await;
    Ok(Inventory { keys })
}

fn joined(instance: Instance, streams: &Streams) -> JoinedSidecar {
    JoinedSidecar {
        connected: streams.of(&instance.id).is_some(),
        instance: instance.id,
        name: instance.name,
        workload: instance.workload,
        received_at: instance.received_at,
        status: instance.status,
    }
}
