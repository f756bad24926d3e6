//! Current values of Secrets Manager, several per request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_secretsmanager::{
    Client, operation::get_secret_value::GetSecretValueOutput, types::SecretValueEntry,
};
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::{sync::oneshot, time::sleep};
use tracing::info;
use zeroize::Zeroizing;

use super::{
    errors::{explain, explain_code},
    timestamp,
};
use crate::backend::{ErrorKind, error::Failure, last_error};

/// How long the first request waits for others to share its batch.
const BATCH_WINDOW: Duration = Duration::from_millis(10);
/// Secrets per batch request (AWS's limit).
const MAX_BATCH: usize = 20;

type Results = BTreeMap<String, Result<SecretValue, Failure>>;

/// Loads the current values of one region. Requests made at about the same time share a batch.
pub(super) struct BatchLoader {
    client: Client,
    waiting: Mutex<Vec<Request>>,
    /// Cleared when AWS denies batches, which require a separate permission.
    may_batch: AtomicBool,
}

struct Request {
    id: String,
    recorders: Vec<last_error::Recorder>,
    result: oneshot::Sender<Result<SecretValue, Failure>>,
}

/// A secret's value and its metadata.
#[derive(Clone)]
pub(super) struct SecretValue {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) version: String,
    pub(super) created_at: Option<Timestamp>,
}

impl SecretValue {
    /// Takes the text or the bytes of a response. The SDK does not zeroize its own copies of it.
    pub(super) fn new(response: GetSecretValueOutput) -> Result<Self, Failure> {
        let text = response.secret_string.map(String::into_bytes);
        let bytes = text.or_else(|| {
            let binary = response.secret_binary?;
            Some(binary.into_inner())
        });
        let (bytes, version) = bytes.zip(response.version_id).ok_or_else(|| {
            let message = "AWS's response has no value or no version";
            Failure::new(ErrorKind::Unavailable, message)
        })?;
        Ok(Self {
            bytes: Zeroizing::new(bytes),
            version,
            created_at: timestamp(response.created_date),
        })
    }
}

impl BatchLoader {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            waiting: Mutex::default(),
            may_batch: AtomicBool::new(true),
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Loads the current value of a secret.
    pub(super) async fn current(self: &Arc<Self>, id: &str) -> Result<SecretValue, Failure> {
        if !self.may_batch.load(Ordering::Relaxed) {
            return self.load_one(id).await;
        }
        let (result, receiver) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting();
            waiting.push(Request {
                id: id.to_owned(),
                recorders: last_error::recorders(),
                result,
            });
            waiting.len() == 1
        };
        if is_first {
            let loader = Arc::clone(self);
            // In a separate task: a caller that stops waiting must not cancel the others' batch.
            tokio::spawn(async move {
                sleep(BATCH_WINDOW).await;
                loader.load_waiting().await;
            });
        }
        let aborted = |_| Failure::new(ErrorKind::Unavailable, "the batch request was aborted");
        receiver.await.map_err(aborted)?
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Request>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        // Several requests may be for the same secret.
        let mut by_id: BTreeMap<String, Vec<Request>> = BTreeMap::new();
        for request in waiting {
            by_id.entry(request.id.clone()).or_default().push(request);
        }
        let mut batches = Vec::new();
        while !by_id.is_empty() {
            let rest = by_id
                .keys()
                .nth(MAX_BATCH)
                .cloned()
                .map(|first| by_id.split_off(&first))
                .unwrap_or_default();
            batches.push(std::mem::replace(&mut by_id, rest));
        }
        join_all(batches.into_iter().map(|batch| self.load_batch(batch))).await;
    }

    async fn load_batch(&self, mut batch: BTreeMap<String, Vec<Request>>) {
        let recorders = batch
            .values()
            .flatten()
            .flat_map(|request| request.recorders.clone())
            .collect();
        let ids: Vec<String> = batch.keys().cloned().collect();
        let results = {
            let all_callers_left = join_all(
                batch
                    .values_mut()
                    .flatten()
                    .map(|request| request.result.closed()),
            );
            tokio::select! {
                results = last_error::recording(recorders, self.load(ids)) => results,
                _ = all_callers_left => return,
            }
        };
        for (id, requests) in batch {
            let result = results.get(&id).cloned().unwrap_or_else(|| {
                let message = "AWS's response does not include this secret";
                Err(Failure::new(ErrorKind::Unavailable, message))
            });
            for request in requests {
                // Fails only if the caller no longer waits.
                let _ = request.result.send(result.clone());
            }
        }
    }

    async fn load(&self, mut ids: Vec<String>) -> Results {
        let mut results = BTreeMap::new();
        if ids.len() > 1 {
            match self.load_many(&ids).await {
                Ok(loaded) => results = loaded,
                // One invalid name or missing value fails the whole batch, and the role may lack
                // the permission. Each secret is then loaded by itself, so only the bad one fails.
                Err(_) if !self.may_batch.load(Ordering::Relaxed) => {}
                Err(Failure {
                    kind: ErrorKind::NotFound | ErrorKind::Misconfigured,
                    ..
                }) => {}
                Err(failure) => {
                    return ids
                        .into_iter()
                        .map(|id| (id, Err(failure.clone())))
                        .collect();
                }
            }
            ids.retain(|id| !results.contains_key(id));
        }
        let single = join_all(ids.into_iter().map(async |id| {
            let result = self.load_one(&id).await;
            (id, result)
        }));
        results.extend(single.await);
        results
    }

    /// Loads several secrets. The result has an entry for each secret in AWS's response.
    async fn load_many(&self, ids: &[String]) -> Result<Results, Failure> {
        let response = self
            .client
            .batch_get_secret_value()
            .set_secret_id_list(Some(ids.to_vec()))
            .send()
            .await
            .map_err(|error| {
                let failure = explain(&error);
                self.note_denial(&failure);
                failure
            })?;
        let mut results = BTreeMap::new();
        for error in response.errors.unwrap_or_default() {
            let (code, message) = (
                error.error_code.unwrap_or_default(),
                error.message.unwrap_or_default(),
            );
            if let Some(id) = error.secret_id {
                results.insert(id, Err(explain_code(&code, &message)));
            }
        }
        for entry in response.secret_values.unwrap_or_default() {
            let requested: Vec<&String> = ids.iter().filter(|id| is_named(&entry, id)).collect();
            let Ok(value) = SecretValue::new(output(entry)) else {
                continue;
            };
            for id in requested {
                results.insert(id.clone(), Ok(value.clone()));
            }
        }
        Ok(results)
    }

    fn note_denial(&self, failure: &Failure) {
        if failure.kind == ErrorKind::Denied && failure.message.contains("AccessDenied") {
            info!(
                "the role lacks secretsmanager:BatchGetSecretValue on \"*\", so secrets are read \
                 one by one; granting it saves requests"
            );
            self.may_batch.store(false, Ordering::Relaxed);
        }
    }

    async fn load_one(&self, id: &str) -> Result<SecretValue, Failure> {
        let response = self
            .client
            .get_secret_value()
            .secret_id(id)
            .version_stage("AWSCURRENT")
            .send()
            .await
            .map_err(|error| explain(&error))?;
        SecretValue::new(response)
    }
}

/// Whether `id` names the secret of this entry: by its name, its ARN, or its ARN without the six
/// random characters that AWS appends.
fn is_named(entry: &SecretValueEntry, id: &str) -> bool {
    let is_partial = |arn: &str| {
        arn.strip_prefix(id)
            .is_some_and(|rest| rest.len() == 7 && rest.starts_with('-'))
    };
    entry.name() == Some(id)
        || entry
            .arn()
            .is_some_and(|arn| arn == id || id.starts_with("arn:") && is_partial(arn))
}

/// Converts an entry of a batch into the response for a single secret.
fn output(entry: SecretValueEntry) -> GetSecretValueOutput {
    GetSecretValueOutput::builder()
        .set_secret_string(entry.secret_string)
        .set_secret_binary(entry.secret_binary)
        .set_version_id(entry.version_id)
        .set_created_date(entry.created_date)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_by_its_name_and_its_arn() {
        let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders/db-a1B2c3";
        let entry = SecretValueEntry::builder()
            .name("orders/db")
            .arn(arn)
            .build();
        for name in ["orders/db", arn, &arn[..arn.len() - 7]] {
            assert!(is_named(&entry, name), "{name}");
        }
        for other in [
            "orders",
            "orders/db-a1B2c3",
            &arn[..arn.len() - 6],
            &arn[..arn.len() - 10],
            "",
        ] {
            assert!(!is_named(&entry, other), "{other}");
        }
    }
}
