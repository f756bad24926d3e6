//! The list of sidecars, written piece by piece: a fleet's statuses don't fit into memory at once.

use std::sync::Arc;

use async_stream::stream;
use bytes::Bytes;
use futures_util::Stream;

use super::{
    registry::{Instance, Registry},
    streams::Streams,
};
use crate::{
    http::problem::Problem,
    wire::{Code, hub::JoinedSidecar},
};

/// The instances that are read at a time.
const PAGE: usize = 256;

/// Returns [`JoinedSidecars`](crate::wire::hub::JoinedSidecars) as JSON.
///
/// A name may have several instances. One that isn't connected is left out if a later one reports:
/// its process was replaced, and only the ledger has to remember that its end was not seen.
pub(super) fn list(
    registry: Arc<Registry>,
    streams: Arc<Streams>,
) -> impl Stream<Item = Result<Bytes, Problem>> + Send {
    stream! {
        let mut text = Vec::from(b"{\"sidecars\":[");
        let mut group: Vec<JoinedSidecar> = Vec::new();
        let (mut after, mut is_first, mut is_end) = (None, true, false);
        while !is_end {
            let page = registry.open(after.as_ref(), PAGE);
            is_end = page.len() < PAGE;
            after = page.last().map(|last| (last.name.clone(), last.id));
            for instance in page {
                let sidecar = joined(instance, &streams);
                let is_next = group.first().is_some_and(|first| first.name != sidecar.name);
                if is_next && let Err(problem) = write(&mut text, &mut group, &mut is_first) {
                    yield Err(problem);
                    return;
                }
                group.push(sidecar);
            }
            if !text.is_empty() {
                yield Ok(Bytes::from(std::mem::take(&mut text)));
            }
        }
        if let Err(problem) = write(&mut text, &mut group, &mut is_first) {
            yield Err(problem);
            return;
        }
        text.extend_from_slice(b"]}");
        yield Ok(Bytes::from(text));
    }
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

/// Writes the instances of one name, but for those that were replaced.
fn write(
    text: &mut Vec<u8>,
    group: &mut Vec<JoinedSidecar>,
    is_first: &mut bool,
) -> Result<(), Problem> {
    let newest = group.iter().map(|sidecar| sidecar.received_at).max();
    for sidecar in group.drain(..) {
        if !sidecar.connected && Some(sidecar.received_at) < newest {
            continue;
        }
        if !std::mem::take(is_first) {
            text.push(b',');
        }
        serde_json::to_writer(&mut *text, &sidecar)
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    }
    Ok(())
}
